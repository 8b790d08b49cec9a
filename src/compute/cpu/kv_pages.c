/* compute/cpu/kv_pages.c: see kv_pages.h. */
#include "compute/cpu/kv_pages.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "compute/cpu/quants.h"

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

#define BLOCK     32 /* elements of a Q8_0 block */
#define MAX_DIM   4096
#define MAX_HEADS 4096

static size_t align64(size_t n)
{
    return (n + 63) & ~(size_t)63;
}

static void lay_out(kv_layer *l, dtype type)
{
    size_t key = (size_t)l->key_dim, value = (size_t)l->value_dim;
    if (type == DTYPE_F16) {
        l->value_stride = (l->value_dim + 15) / 16 * 16;
        l->key_values = 0;
        l->values = align64(key * KV_PAGE_TOKENS * 2);
        l->value_values = l->values;
        l->head_bytes = l->values + align64((size_t)l->value_stride * KV_PAGE_TOKENS * 2);
        return;
    }
    l->value_stride = l->value_dim;
    l->key_values = align64(key / BLOCK * KV_PAGE_TOKENS * 2);
    l->values = l->key_values + align64(key * KV_PAGE_TOKENS);
    l->value_values = l->values + align64(value / BLOCK * KV_PAGE_TOKENS * 2);
    l->head_bytes = l->value_values + align64(value * KV_PAGE_TOKENS);
}

static realm_status check_layer(const kv_layer_shape *s, dtype type, int32_t i, realm_error *error)
{
    if (s->n_kv_heads < 1 || s->n_kv_heads > MAX_HEADS || s->key_dim < 1 || s->value_dim < 1 ||
        s->key_dim > MAX_DIM || s->value_dim > MAX_DIM)
        return realm_fail(error, REALM_UNSUPPORTED,
                          "layer %d has %d key-value heads of %d and %d dimensions; 1 to %d heads "
                          "of 1 to %d are possible",
                          i, s->n_kv_heads, s->key_dim, s->value_dim, MAX_HEADS, MAX_DIM);
    if (type == DTYPE_Q8_0 && (s->key_dim % BLOCK || s->value_dim % BLOCK))
        return realm_fail(error, REALM_UNSUPPORTED,
                          "layer %d has heads of %d and %d dimensions; Q8_0 keys and values need "
                          "multiples of %d: choose F16",
                          i, s->key_dim, s->value_dim, BLOCK);
    return REALM_OK;
}

/* Never a huge page: a store's first page would then take megabytes where it needs kilobytes. */
static realm_status map_pages(kv_store *kv, realm_error *error)
{
    kv->mapped_bytes = kv->page_bytes * (size_t)kv->n_pages;
    void *pages = mmap(NULL, kv->mapped_bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED)
        return realm_fail_memory(error, kv->mapped_bytes, "the pages of keys and values");
    kv->pages = pages;
    return REALM_OK;
}

realm_status kv_pages_open(kv_store **out, const kv_shape *shape, realm_error *error)
{
    if (shape->type != DTYPE_F16 && shape->type != DTYPE_Q8_0)
        return realm_fail(error, REALM_UNSUPPORTED, "keys and values can be F16 or Q8_0, not %s",
                          dtype_name(shape->type) ? dtype_name(shape->type) : "an unknown type");
    if (shape->n_layers < 1 || shape->n_pages < 1)
        return realm_fail(error, REALM_INVALID, "%d layers and %d pages of keys and values",
                          shape->n_layers, shape->n_pages);
    size_t size = sizeof(kv_store) + (size_t)shape->n_layers * sizeof(kv_layer);
    kv_store *kv = calloc(1, size);
    if (!kv)
        return realm_fail_memory(error, size, "the layers of keys and values");
    kv->type = shape->type;
    kv->n_layers = shape->n_layers;
    kv->n_pages = shape->n_pages;
    realm_status status = REALM_OK;
    for (int32_t i = 0; i < shape->n_layers && status == REALM_OK; i++) {
        const kv_layer_shape *s = &shape->layers[i];
        status = check_layer(s, shape->type, i, error);
        kv_layer *l = &kv->layers[i];
        *l = (kv_layer){.n_kv_heads = s->n_kv_heads,
                        .key_dim = s->key_dim,
                        .value_dim = s->value_dim,
                        .offset = kv->page_bytes};
        lay_out(l, shape->type);
        kv->page_bytes += l->head_bytes * (size_t)l->n_kv_heads;
    }
    if (status == REALM_OK && (size_t)kv->n_pages > SIZE_MAX / 2 / kv->page_bytes)
        status = realm_fail_memory(error, SIZE_MAX, "the pages of keys and values");
    if (status == REALM_OK)
        status = map_pages(kv, error);
    if (status != REALM_OK) {
        free(kv);
        return status;
    }
    *out = kv;
    return REALM_OK;
}

void kv_pages_close(kv_store *kv)
{
    if (!kv)
        return;
    munmap(kv->pages, kv->mapped_bytes);
    free(kv);
}

/* ---- one token at a time ------------------------------------------------------------------- */

/* Saturates; NaN passes through. */
static float to_half_range(float x)
{
    return x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x;
}

static void put_f16(const kv_layer *l, uint8_t *head, int32_t slot, const float *key,
                    const float *value)
{
    uint16_t *k = (uint16_t *)(void *)head + slot;
    uint16_t *v = (uint16_t *)(void *)(head + l->values) + (size_t)slot * l->value_stride;
    for (int32_t d = 0; d < l->key_dim; d++)
        k[(size_t)d * KV_PAGE_TOKENS] = quants_float_f16(to_half_range(key[d]));
    for (int32_t d = 0; d < l->value_dim; d++)
        v[d] = quants_float_f16(to_half_range(value[d]));
    for (int32_t d = l->value_dim; d < l->value_stride; d++)
        v[d] = 0;
}

/* A block's scale and values, saturated so that the scale is a finite half. */
static uint16_t quantize_block(const float *x, int8_t *to, size_t step)
{
    float in[BLOCK];
    uint8_t block[2 + BLOCK];
    uint16_t scale;
    for (int i = 0; i < BLOCK; i++) {
        float limit = 65504.0f * 127.0f;
        in[i] = x[i] > limit ? limit : x[i] < -limit ? -limit : x[i];
    }
    quants_quantize_q8_0(block, in, BLOCK);
    memcpy(&scale, block, 2);
    for (int i = 0; i < BLOCK; i++)
        to[(size_t)i * step] = (int8_t)block[2 + i];
    return scale;
}

static void put_q8_0(const kv_layer *l, uint8_t *head, int32_t slot, const float *key,
                     const float *value)
{
    uint16_t *key_scales = (uint16_t *)(void *)head;
    int8_t *keys = (int8_t *)(head + l->key_values) + slot;
    for (int32_t i = 0; i < l->key_dim / BLOCK; i++)
        key_scales[i * KV_PAGE_TOKENS + slot] = quantize_block(
            key + i * BLOCK, keys + (size_t)i * BLOCK * KV_PAGE_TOKENS, KV_PAGE_TOKENS);
    int32_t n = l->value_dim / BLOCK;
    uint16_t *value_scales = (uint16_t *)(void *)(head + l->values) + slot * n;
    int8_t *values = (int8_t *)(head + l->value_values) + (size_t)slot * l->value_dim;
    for (int32_t i = 0; i < n; i++)
        value_scales[i] = quantize_block(value + i * BLOCK, values + i * BLOCK, 1);
}

void kv_pages_put(const kv_store *kv, const kv_layer *l, uint8_t *head, int32_t slot,
                  const float *key, const float *value)
{
    if (kv->type == DTYPE_F16)
        put_f16(l, head, slot, key, value);
    else
        put_q8_0(l, head, slot, key, value);
}

static void get_key(const kv_store *kv, const kv_layer *l, const uint8_t *head, int32_t slot,
                    float *out)
{
    const uint16_t *halves = (const uint16_t *)(const void *)head;
    const int8_t *keys = (const int8_t *)(head + l->key_values);
    for (int32_t d = 0; d < l->key_dim; d++)
        out[d] = kv->type == DTYPE_F16
                     ? quants_f16_float(halves[d * KV_PAGE_TOKENS + slot])
                     : quants_f16_float(halves[d / BLOCK * KV_PAGE_TOKENS + slot]) *
                           (float)keys[d * KV_PAGE_TOKENS + slot];
}

static void get_value(const kv_store *kv, const kv_layer *l, const uint8_t *head, int32_t slot,
                      float *out)
{
    const uint16_t *halves = (const uint16_t *)(const void *)(head + l->values);
    const int8_t *values = (const int8_t *)(head + l->value_values);
    for (int32_t d = 0; d < l->value_dim; d++)
        out[d] = kv->type == DTYPE_F16
                     ? quants_f16_float(halves[slot * l->value_stride + d])
                     : quants_f16_float(halves[slot * (l->value_dim / BLOCK) + d / BLOCK]) *
                           (float)values[slot * l->value_dim + d];
}

void kv_pages_get(const kv_store *kv, const kv_layer *l, const uint8_t *head, int32_t slot,
                  int values, float *out)
{
    if (values)
        get_value(kv, l, head, slot, out);
    else
        get_key(kv, l, head, slot, out);
}
