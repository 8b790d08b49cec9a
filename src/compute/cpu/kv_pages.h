/* compute/cpu/kv_pages.h: where a key or value stands in the pages of the processor's backend.
 *
 * All pages are one anonymous mapping that the system fills when a page is first written, so a
 * store may be far larger than what is in use. A page id's bytes for all layers are neighbours
 * (copying a page is one memcpy); within it stand layers, and within a layer kv heads, each a key
 * block and a value block:
 *
 *     F16   keys   [key_dim][32 tokens] half           dimension-major: 32 scores at once are
 *           values [32 tokens][value_stride] half      q[d] * a vector of tokens, no sum over lanes
 *     Q8_0  keys   [key_dim/32][32 tokens] half scales, [key_dim][32 tokens] int8
 *           values [32 tokens][value_dim/32] half scales, [32 tokens][value_dim] int8
 *
 * value_stride is value_dim rounded up to 16, the widest vector. Blocks are 64-byte aligned.
 *
 * Keys and values are stored saturated: a number beyond the largest half becomes that half, so that
 * no infinity can ever turn a masked score times zero into NaN. A NaN stays NaN as F16 and becomes
 * zero as Q8_0. Either way attention (attention.inl) lets nothing beyond a sequence's own last
 * token into a sum, so what a page held before, for another sequence, cannot be seen.
 *
 * Written and read by the engine's pool threads inside operations, on disjoint tokens. */
#ifndef REALM_COMPUTE_CPU_KV_PAGES_H
#define REALM_COMPUTE_CPU_KV_PAGES_H

#include "compute/backend.h"

typedef struct kv_layer {
    int32_t n_kv_heads, key_dim, value_dim;
    int32_t value_stride;                    /* elements from one token's value to the next */
    size_t offset;                           /* of this layer in a page */
    size_t head_bytes;                       /* one kv head: key block, value block */
    size_t key_values, values, value_values; /* offsets in a head of: int8 keys (0 for F16), the
                                                 value block, int8 values (= values for F16) */
} kv_layer;

struct kv_store {
    dtype type;
    int32_t n_layers, n_pages;
    size_t page_bytes;
    uint8_t *pages; /* [n_pages] of page_bytes */
    size_t mapped_bytes;
    kv_layer layers[];
};

realm_status kv_pages_open(kv_store **out, const kv_shape *shape, realm_error *error);
void kv_pages_close(kv_store *kv);

static inline uint8_t *kv_pages_head(const kv_store *kv, const kv_layer *l, int32_t page,
                                     int32_t head)
{
    return kv->pages + (size_t)page * kv->page_bytes + l->offset + (size_t)head * l->head_bytes;
}

/* Keys (values = 0) or values of one token's head as F32 [dim]. Slow and plain; for the host and
 * the reference. slot is the token's place in its page. */
void kv_pages_get(const kv_store *kv, const kv_layer *l, const uint8_t *head, int32_t slot,
                  int values, float *out);

/* Stores one token's head. key [key_dim], value [value_dim]. */
void kv_pages_put(const kv_store *kv, const kv_layer *l, uint8_t *head, int32_t slot,
                  const float *key, const float *value);

#endif
