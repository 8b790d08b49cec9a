/* engine/kv_pool.c: see kv_pool.h. Lists are doubly linked by page id, so every call but the
 * asserting one takes constant time. */
#include "engine/kv_pool.h"

#include <assert.h>
#include <stdlib.h>

enum page_state { PAGE_FREE, PAGE_HELD, PAGE_KEPT };

typedef struct page {
    int32_t previous, next; /* on the list of its state; -1 at the ends */
    int32_t n_references;
    uint8_t state;
    uint8_t published;
    kv_account *account; /* of a HELD page */
} page;

typedef struct page_list {
    int32_t first, last, count;
} page_list;

struct kv_pool {
    page *pages; /* [n_pages] */
    int32_t n_pages;
    page_list free; /* taken from the front, given to the front: memory stays warm and small */
    page_list kept; /* oldest first */
    void (*forget)(void *context, int32_t page);
    void *forget_context;
};

static void list_remove(kv_pool *p, page_list *list, int32_t id)
{
    page *it = &p->pages[id];
    if (it->previous >= 0)
        p->pages[it->previous].next = it->next;
    else
        list->first = it->next;
    if (it->next >= 0)
        p->pages[it->next].previous = it->previous;
    else
        list->last = it->previous;
    it->previous = it->next = -1;
    list->count--;
}

static void list_add_first(kv_pool *p, page_list *list, int32_t id)
{
    page *it = &p->pages[id];
    it->previous = -1;
    it->next = list->first;
    if (list->first >= 0)
        p->pages[list->first].previous = id;
    else
        list->last = id;
    list->first = id;
    list->count++;
}

static void list_add_last(kv_pool *p, page_list *list, int32_t id)
{
    page *it = &p->pages[id];
    it->next = -1;
    it->previous = list->last;
    if (list->last >= 0)
        p->pages[list->last].next = id;
    else
        list->first = id;
    list->last = id;
    list->count++;
}

realm_status kv_pool_open(kv_pool **out, int32_t n_pages, realm_error *error)
{
    assert(n_pages > 0);
    size_t bytes = (size_t)n_pages * sizeof(page);
    kv_pool *p = calloc(1, sizeof *p);
    page *pages = calloc((size_t)n_pages, sizeof(page));
    if (!p || !pages) {
        free(p);
        free(pages);
        return realm_fail_memory(error, bytes, "the book of pages");
    }
    p->pages = pages;
    p->n_pages = n_pages;
    p->free = p->kept = (page_list){-1, -1, 0};
    for (int32_t id = 0; id < n_pages; id++)
        list_add_last(p, &p->free, id);
    *out = p;
    return REALM_OK;
}

void kv_pool_close(kv_pool *p)
{
    if (!p)
        return;
    free(p->pages);
    free(p);
}

static void forget(kv_pool *p, int32_t id)
{
    p->pages[id].published = 0;
    if (p->forget)
        p->forget(p->forget_context, id);
}

int32_t kv_pool_take(kv_pool *p, kv_account *account)
{
    int32_t id = p->free.first;
    if (id >= 0) {
        list_remove(p, &p->free, id);
    } else {
        id = p->kept.first;
        if (id < 0)
            return -1;
        list_remove(p, &p->kept, id);
        forget(p, id);
    }
    page *it = &p->pages[id];
    it->state = PAGE_HELD;
    it->n_references = 1;
    it->account = account;
    account->n_pages++;
    return id;
}

void kv_pool_share(kv_pool *p, int32_t id, kv_account *account)
{
    page *it = &p->pages[id];
    assert(it->state != PAGE_FREE);
    if (it->state == PAGE_KEPT) {
        list_remove(p, &p->kept, id);
        it->state = PAGE_HELD;
        it->account = account;
        account->n_pages++;
    }
    assert(it->account == account); /* K6: no tenant reads another's page */
    it->n_references++;
}

void kv_pool_give(kv_pool *p, int32_t id)
{
    page *it = &p->pages[id];
    assert(it->state == PAGE_HELD && it->n_references > 0);
    if (--it->n_references > 0)
        return;
    it->account->n_pages--;
    it->account = NULL;
    it->state = it->published ? PAGE_KEPT : PAGE_FREE;
    if (it->published)
        list_add_last(p, &p->kept, id);
    else
        list_add_first(p, &p->free, id);
}

int32_t kv_pool_references(const kv_pool *p, int32_t id)
{
    return p->pages[id].n_references;
}

int32_t kv_pool_available(const kv_pool *p)
{
    return p->free.count + p->kept.count;
}

int32_t kv_pool_held(const kv_pool *p)
{
    return p->n_pages - kv_pool_available(p);
}

int32_t kv_pool_count(const kv_pool *p)
{
    return p->n_pages;
}

void kv_pool_on_forget(kv_pool *p, void (*function)(void *context, int32_t page), void *context)
{
    p->forget = function;
    p->forget_context = context;
}

void kv_pool_publish(kv_pool *p, int32_t id)
{
    assert(p->pages[id].state == PAGE_HELD && !p->pages[id].published);
    p->pages[id].published = 1;
}

void kv_pool_unpublish(kv_pool *p, int32_t id)
{
    assert(p->pages[id].state == PAGE_HELD);
    if (p->pages[id].published)
        forget(p, id);
}

int kv_pool_is_published(const kv_pool *p, int32_t id)
{
    return p->pages[id].published;
}

#ifndef NDEBUG
static void assert_list(const kv_pool *p, const page_list *list, int state)
{
    int32_t count = 0, previous = -1;
    for (int32_t id = list->first; id >= 0; id = p->pages[id].next) {
        assert(p->pages[id].state == state);       /* K1 */
        assert(p->pages[id].previous == previous); /* K1 */
        previous = id;
        count++;
        assert(count <= p->n_pages);
    }
    assert(list->last == previous && list->count == count); /* K2 */
}

void kv_pool_assert(const kv_pool *p)
{
    int32_t held = 0;
    assert_list(p, &p->free, PAGE_FREE);
    assert_list(p, &p->kept, PAGE_KEPT);
    for (int32_t id = 0; id < p->n_pages; id++) {
        const page *it = &p->pages[id];
        held += it->state == PAGE_HELD;
        assert((it->state == PAGE_HELD) == (it->n_references > 0)); /* K3 */
        assert((it->state == PAGE_HELD) == (it->account != NULL));
        assert(it->state != PAGE_KEPT || it->published); /* K5 */
        assert(it->state != PAGE_FREE || !it->published);
        assert(it->state != PAGE_HELD || it->account->n_pages > 0); /* K4, as far as seen here */
    }
    assert(held == kv_pool_held(p)); /* K2 */
}
#else
void kv_pool_assert(const kv_pool *p)
{
    (void)p;
}
#endif

/* ---- tables ------------------------------------------------------------------------------------ */

int32_t kv_table_needs(const kv_pool *p, const kv_table *t, int32_t first, int32_t count)
{
    int32_t end = kv_pages_for(first + count);
    int32_t needs = end > t->count ? end - t->count : 0;
    for (int32_t i = first / KV_PAGE_TOKENS; i < end && i < t->count; i++)
        needs += p->pages[t->pages[i]].n_references > 1;
    return needs;
}

static realm_status reserve(kv_table *t, int32_t count, realm_error *error)
{
    if (count <= t->capacity)
        return REALM_OK;
    int32_t capacity = t->capacity ? t->capacity : 8;
    while (capacity < count)
        capacity *= 2;
    size_t bytes = (size_t)capacity * sizeof *t->pages;
    int32_t *pages = realloc(t->pages, bytes);
    if (!pages)
        return realm_fail_memory(error, bytes, "a table of pages");
    t->pages = pages;
    t->capacity = capacity;
    return REALM_OK;
}

realm_status kv_table_reserve(kv_table *t, int32_t n_tokens, realm_error *error)
{
    return reserve(t, kv_pages_for(n_tokens), error);
}

realm_status kv_copies_reserve(kv_copies *copies, int32_t more, realm_error *error)
{
    if (copies->capacity - copies->count >= more)
        return REALM_OK;
    int32_t capacity = copies->capacity ? 2 * copies->capacity : 16;
    while (capacity - copies->count < more)
        capacity *= 2;
    size_t bytes = (size_t)capacity * sizeof *copies->items;
    kv_copy *items = realloc(copies->items, bytes);
    if (!items)
        return realm_fail_memory(error, bytes, "a list of copies");
    copies->items = items;
    copies->capacity = capacity;
    return REALM_OK;
}

/* A page that is about to be written must be this sequence's alone and in no cache. */
static realm_status own(kv_pool *p, int32_t *slot, kv_account *account, kv_copies *copies,
                        realm_error *error)
{
    if (p->pages[*slot].n_references == 1) {
        kv_pool_unpublish(p, *slot);
        return REALM_OK;
    }
    realm_status status = kv_copies_reserve(copies, 1, error);
    if (status != REALM_OK)
        return status;
    int32_t copy = kv_pool_take(p, account);
    assert(copy >= 0);
    copies->items[copies->count++] = (kv_copy){.to = copy, .from = *slot};
    kv_pool_give(p, *slot);
    *slot = copy;
    return REALM_OK;
}

realm_status kv_table_prepare(kv_pool *p, kv_table *t, kv_account *account, int32_t first,
                              int32_t count, kv_copies *copies, realm_error *error)
{
    int32_t end = kv_pages_for(first + count);
    realm_status status = reserve(t, end, error);
    for (int32_t i = first / KV_PAGE_TOKENS; status == REALM_OK && i < end && i < t->count; i++)
        status = own(p, &t->pages[i], account, copies, error);
    if (status != REALM_OK)
        return status;
    while (t->count < end) {
        int32_t id = kv_pool_take(p, account);
        assert(id >= 0);
        t->pages[t->count++] = id;
    }
    return REALM_OK;
}

void kv_table_trim(kv_pool *p, kv_table *t, int32_t n_tokens)
{
    int32_t keep = kv_pages_for(n_tokens);
    /* From the end: of a chain that is kept, the far pages are then evicted before the near ones,
     * without which they could not be found. */
    while (t->count > keep)
        kv_pool_give(p, t->pages[--t->count]);
}

realm_status kv_table_push(kv_table *t, int32_t id, realm_error *error)
{
    realm_status status = reserve(t, t->count + 1, error);
    if (status == REALM_OK)
        t->pages[t->count++] = id;
    return status;
}

void kv_table_share(kv_pool *p, kv_table *to, const kv_table *from, kv_account *account,
                    int32_t n_tokens)
{
    int32_t count = kv_pages_for(n_tokens);
    assert(to->count == 0 && count <= from->count && count <= to->capacity);
    for (int32_t i = 0; i < count; i++) {
        kv_pool_share(p, from->pages[i], account);
        to->pages[to->count++] = from->pages[i];
    }
}

void kv_table_release(kv_pool *p, kv_table *t)
{
    kv_table_trim(p, t, 0);
    free(t->pages);
    *t = (kv_table){0};
}
