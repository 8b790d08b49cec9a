/* text/merge.c: see merge.h. A binary heap of 16-byte candidates. */
#include "text/merge.h"

#include <stdlib.h>

void merge_space_init(merge_space *s)
{
    *s = (merge_space){0};
}

void merge_space_release(merge_space *s)
{
    free(s->symbols);
    free(s->heap);
    *s = (merge_space){0};
}

void merge_clear(merge_space *s)
{
    s->symbol_count = 0;
    s->heap_count = 0;
}

static realm_status grow(void **memory, size_t *capacity, size_t size)
{
    size_t wanted = *capacity ? *capacity * 2 : 64;
    if (wanted > SIZE_MAX / size)
        return REALM_TOO_LARGE;
    void *grown = realloc(*memory, wanted * size);
    if (!grown)
        return REALM_NO_MEMORY;
    *memory = grown;
    *capacity = wanted;
    return REALM_OK;
}

realm_status merge_add(merge_space *s, uint32_t start, uint32_t size, int32_t id)
{
    if (s->symbol_count >= INT32_MAX)
        return REALM_TOO_LARGE;
    if (s->symbol_count == s->symbol_capacity) {
        realm_status status = grow((void **)&s->symbols, &s->symbol_capacity, sizeof *s->symbols);
        if (status != REALM_OK)
            return status;
    }
    int32_t index = (int32_t)s->symbol_count++;
    if (index > 0)
        s->symbols[index - 1].next = index;
    s->symbols[index] = (merge_symbol){start, size, index - 1, -1, id};
    return REALM_OK;
}

static realm_status push(merge_space *s, merge_candidate candidate)
{
    if (s->heap_count == s->heap_capacity) {
        realm_status status = grow((void **)&s->heap, &s->heap_capacity, sizeof *s->heap);
        if (status != REALM_OK)
            return status;
    }
    size_t at = s->heap_count++;
    while (at > 0 && s->heap[(at - 1) / 2].order > candidate.order) {
        s->heap[at] = s->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    s->heap[at] = candidate;
    return REALM_OK;
}

static merge_candidate pop(merge_space *s)
{
    merge_candidate best = s->heap[0], last = s->heap[--s->heap_count];
    size_t at = 0, count = s->heap_count;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= count)
            break;
        if (child + 1 < count && s->heap[child + 1].order < s->heap[child].order)
            child++;
        if (s->heap[child].order >= last.order)
            break;
        s->heap[at] = s->heap[child];
        at = child;
    }
    s->heap[at] = last;
    return best;
}

static realm_status consider(merge_space *s, const char *text, const merge_rules *rules,
                             int32_t left, int32_t right)
{
    if (left < 0 || right < 0)
        return REALM_OK;
    const merge_symbol *l = &s->symbols[left], *r = &s->symbols[right];
    uint32_t order;
    if (!rules->may_join(rules->context, text, l, r, &order))
        return REALM_OK;
    return push(s, (merge_candidate){(uint64_t)order << 32 | (uint32_t)left, (uint32_t)right,
                                     l->size + r->size});
}

/* The right symbol disappears into the left. */
static void join(merge_space *s, int32_t left, int32_t right)
{
    merge_symbol *l = &s->symbols[left], *r = &s->symbols[right];
    l->size += r->size;
    l->next = r->next;
    r->size = 0;
    if (l->next >= 0)
        s->symbols[l->next].previous = left;
}

realm_status merge_run(merge_space *s, const char *text, const merge_rules *rules)
{
    realm_status status = REALM_OK;
    for (size_t i = 1; i < s->symbol_count && status == REALM_OK; i++)
        status = consider(s, text, rules, (int32_t)i - 1, (int32_t)i);
    while (s->heap_count > 0 && status == REALM_OK) {
        merge_candidate best = pop(s);
        int32_t left = (int32_t)(uint32_t)best.order, right = (int32_t)best.right;
        merge_symbol *l = &s->symbols[left], *r = &s->symbols[right];
        if (l->size == 0 || r->size == 0 || l->size + r->size != best.size)
            continue;
        join(s, left, right);
        if (rules->joined_id)
            l->id = rules->joined_id(rules->context, text, l);
        status = consider(s, text, rules, l->previous, left);
        if (status == REALM_OK)
            status = consider(s, text, rules, left, l->next);
    }
    return status;
}
