/* engine/kv_prefix.c: see kv_prefix.h.
 *
 * A page's entry has a serial number that is never used again; the next page's key names it. When
 * a page is evicted, what followed it can no longer be found and leaves by age. */
#include "engine/kv_prefix.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

typedef struct entry {
    uint64_t serial; /* 0: the page is not in the index */
    uint64_t parent; /* serial of the page before; 0 for the first, which the root tells apart */
    kv_root root;
    uint64_t hash;
    int32_t next; /* page in the same bucket, -1 at the end */
    token_id tokens[KV_PAGE_TOKENS];
} entry;

struct kv_prefix {
    kv_pool *pool;
    entry *entries;     /* [pages of the pool] by page id */
    int32_t *buckets;   /* [n_buckets] -> page id or -1 */
    uint32_t n_buckets; /* a power of two */
    uint64_t last_serial;
};

/* Not for secrets: keys are compared in full, so a collision costs a comparison only. */
static uint64_t mix(uint64_t hash, uint64_t value)
{
    hash = (hash ^ value) * 0x9E3779B97F4A7C15u;
    return hash ^ (hash >> 29);
}

static uint64_t hash_key(uint64_t parent, const kv_root *root, const token_id *tokens)
{
    uint64_t hash = mix(mix(mix(0x243F6A8885A308D3u, parent), root->tenant),
                        (uint64_t)(uintptr_t)root->adapter);
    for (int i = 0; i < KV_PAGE_TOKENS; i += 2)
        hash = mix(hash, (uint64_t)(uint32_t)tokens[i] << 32 | (uint32_t)tokens[i + 1]);
    return hash;
}

static void on_forget(void *context, int32_t page)
{
    kv_prefix *x = context;
    entry *gone = &x->entries[page];
    int32_t *link = &x->buckets[gone->hash & (x->n_buckets - 1)];
    while (*link != page)
        link = &x->entries[*link].next;
    *link = gone->next;
    gone->serial = 0;
}

realm_status kv_prefix_open(kv_prefix **out, kv_pool *pool, realm_error *error)
{
    size_t n_pages = (size_t)kv_pool_count(pool);
    uint32_t n_buckets = 16;
    while (n_buckets < n_pages)
        n_buckets *= 2;
    kv_prefix *x = calloc(1, sizeof *x);
    entry *entries = calloc(n_pages, sizeof *entries);
    int32_t *buckets = malloc(n_buckets * sizeof *buckets);
    if (!x || !entries || !buckets) {
        free(x);
        free(entries);
        free(buckets);
        return realm_fail_memory(error, n_pages * sizeof(entry), "the prefix cache");
    }
    memset(buckets, 0xff, n_buckets * sizeof *buckets);
    *x = (kv_prefix){pool, entries, buckets, n_buckets, 0};
    kv_pool_on_forget(pool, on_forget, x);
    *out = x;
    return REALM_OK;
}

void kv_prefix_close(kv_prefix *x)
{
    if (!x)
        return;
    kv_pool_on_forget(x->pool, NULL, NULL);
    free(x->entries);
    free(x->buckets);
    free(x);
}

static int32_t find(const kv_prefix *x, uint64_t hash, uint64_t parent, const kv_root *root,
                    const token_id *tokens)
{
    for (int32_t id = x->buckets[hash & (x->n_buckets - 1)]; id >= 0; id = x->entries[id].next) {
        const entry *it = &x->entries[id];
        if (it->hash == hash && it->parent == parent && it->root.tenant == root->tenant &&
            it->root.adapter == root->adapter && memcmp(it->tokens, tokens, sizeof it->tokens) == 0)
            return id;
    }
    return -1;
}

int32_t kv_prefix_match(kv_prefix *x, const kv_root *root, const token_id *tokens, int32_t n_tokens,
                        kv_table *t, kv_account *account)
{
    uint64_t parent = 0;
    assert(t->count == 0);
    for (; (t->count + 1) * KV_PAGE_TOKENS <= n_tokens; tokens += KV_PAGE_TOKENS) {
        int32_t id = find(x, hash_key(parent, root, tokens), parent, root, tokens);
        if (id < 0 || kv_table_push(t, id, NULL) != REALM_OK)
            break;
        kv_pool_share(x->pool, id, account);
        parent = x->entries[id].serial;
    }
    return t->count * KV_PAGE_TOKENS;
}

void kv_prefix_publish(kv_prefix *x, const kv_root *root, const token_id *tokens, kv_table *t,
                       int32_t index, kv_account *account)
{
    uint64_t parent = index > 0 ? x->entries[t->pages[index - 1]].serial : 0;
    int32_t id = t->pages[index];
    assert(index == 0 || parent != 0);
    if (kv_pool_is_published(x->pool, id))
        return;
    tokens += (size_t)index * KV_PAGE_TOKENS;
    uint64_t hash = hash_key(parent, root, tokens);
    int32_t known = find(x, hash, parent, root, tokens);
    if (known >= 0) {
        kv_pool_share(x->pool, known, account);
        kv_pool_give(x->pool, id);
        t->pages[index] = known;
        return;
    }
    entry *it = &x->entries[id];
    int32_t *bucket = &x->buckets[hash & (x->n_buckets - 1)];
    *it = (entry){++x->last_serial, parent, *root, hash, *bucket, {0}};
    memcpy(it->tokens, tokens, sizeof it->tokens);
    *bucket = id;
    kv_pool_publish(x->pool, id);
}

void kv_prefix_forget_adapter(kv_prefix *x, const void *adapter)
{
    /* With a parent that no page has, an entry is never asked for again; its page leaves the cache by
     * age, or is unpublished by whoever writes it. */
    for (int32_t id = 0; id < kv_pool_count(x->pool); id++)
        if (x->entries[id].serial && x->entries[id].root.adapter == adapter)
            x->entries[id].parent = UINT64_MAX - x->entries[id].serial;
}

#ifndef NDEBUG
void kv_prefix_assert(const kv_prefix *x)
{
    for (int32_t id = 0; id < kv_pool_count(x->pool); id++) {
        const entry *it = &x->entries[id];
        assert((it->serial != 0) == kv_pool_is_published(x->pool, id)); /* P1 */
        if (it->serial)
            assert(find(x, it->hash, it->parent, &it->root, it->tokens) == id); /* P2 */
    }
}
#else
void kv_prefix_assert(const kv_prefix *x)
{
    (void)x;
}
#endif
