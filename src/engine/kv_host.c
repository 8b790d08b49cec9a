/* engine/kv_host.c: see kv_host.h. */
#include "engine/kv_host.h"

#include <assert.h>
#include <stdlib.h>

realm_status kv_host_grow(kv_host *h, int32_t n_pages, realm_error *error)
{
    assert(n_pages >= h->n_pages);
    size_t bytes = (size_t)n_pages * sizeof *h->free;
    int32_t *grown = realloc(h->free, bytes);
    if (!grown)
        return realm_fail_memory(error, bytes, "the book of host pages");
    h->free = grown;
    /* The lowest is taken first. */
    for (int32_t id = n_pages - 1; id >= h->n_pages; id--)
        h->free[h->n_free++] = id;
    h->n_pages = n_pages;
    return REALM_OK;
}

void kv_host_release(kv_host *h)
{
    assert(h->n_free == h->n_pages);
    free(h->free);
    *h = (kv_host){0};
}

realm_status kv_host_save(kv_host *h, kv_table *saved, const kv_table *t, kv_copies *copies,
                          realm_error *error)
{
    assert(saved->count < t->count);
    if (h->n_free == 0)
        return realm_fail(error, REALM_QUOTA, "no host page is free");
    realm_status status = kv_copies_reserve(copies, 1, error);
    if (status == REALM_OK)
        status = kv_table_push(saved, h->free[h->n_free - 1], error);
    if (status != REALM_OK)
        return status;
    int32_t to = h->free[--h->n_free];
    copies->items[copies->count++] = (kv_copy){KV_COPY_OUT, to, t->pages[saved->count - 1]};
    return REALM_OK;
}

void kv_host_trim(kv_host *h, kv_table *saved, int32_t count)
{
    while (saved->count > count)
        h->free[h->n_free++] = saved->pages[--saved->count];
}

void kv_host_forget(kv_host *h, kv_table *saved)
{
    kv_host_trim(h, saved, 0);
    free(saved->pages);
    *saved = (kv_table){0};
}
