/* tests/unit/compute/cpu_fixture.h: backends for each instruction set that this machine has, and
 * random numbers to give them. */
#ifndef REALM_TESTS_COMPUTE_CPU_FIXTURE_H
#define REALM_TESTS_COMPUTE_CPU_FIXTURE_H

#include "unit/unit.h"

#include <math.h>

#include "base/rng.h"
#include "compute/cpu/cpu_backend.h"
#include "compute/cpu/quants.h"

/* The kernels that can run here, slowest first; returns how many. */
static inline int cpu_kernels_here(const cpu_kernels *list[4])
{
    int n = 0;
#if defined(__aarch64__)
    list[n++] = &cpu_kernels_neon;
#else
    list[n++] = &cpu_kernels_generic;
#endif
#if defined(__x86_64__)
    if (cpu_features_get()->avx2)
        list[n++] = &cpu_kernels_avx2;
    if (cpu_features_get()->avx512_vnni)
        list[n++] = &cpu_kernels_avx512;
#endif
    return n;
}

/* A backend that computes with these kernels; F32 products only. */
static inline backend *open_with(const cpu_kernels *kernels, int32_t n_threads)
{
    realm_error error;
    backend *b;
    backend_cpu_options o = {
        .n_threads = n_threads, .exact = 1, .reference = kernels == &cpu_kernels_reference};
    assert_status(backend_cpu_open(&b, &o, &error), REALM_OK, error);
    cpu_backend *cpu = (cpu_backend *)b;
    cpu->kernels = kernels;
    cpu->matmuls[0] = kernels->dense;
    cpu->matmuls[1] = NULL;
    return b;
}

static inline float random_unit(rng *r)
{
    return (float)(rng_double(r) * 2 - 1);
}

static inline float *random_floats(rng *r, size_t n, float size)
{
    float *x = malloc((n + 1) * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = random_unit(r) * size;
    return x;
}

static inline tensor open_tensor(backend *b, int32_t n_rows, int32_t n_cols, const float *values)
{
    realm_error error;
    tensor t;
    assert_status(b->table->tensor_open(b, &t, n_rows, n_cols, &error), REALM_OK, error);
    if (values)
        b->table->write(b, t, values);
    return t;
}

static inline weight *open_source(backend *b, weight_source s)
{
    realm_error error;
    weight *w;
    assert_status(b->table->weight_open(b, &w, &s, &error), REALM_OK, error);
    return w;
}

static inline weight *open_weight(backend *b, uint32_t type, int32_t n_rows, int32_t n_cols,
                                  const void *data)
{
    return open_source(b, (weight_source){type, n_rows, n_cols, data, "test", 0});
}

/* The first of a pair, or the second, of first. */
static inline weight *open_of_pair(backend *b, uint32_t type, int32_t n_rows, int32_t n_cols,
                                   const void *data, const weight *first)
{
    return open_source(b, (weight_source){.type = type,
                                          .n_rows = n_rows,
                                          .n_cols = n_cols,
                                          .data = data,
                                          .name = "pair",
                                          .begins_pair = first == NULL,
                                          .first = first});
}

/* Rows of random blocks of a type whose values are about 1 in size. */
static inline uint8_t *random_weights(rng *r, uint32_t type, int32_t n_rows, int32_t n_cols)
{
    size_t bytes = dtype_row_bytes(type, (uint64_t)n_cols) * (size_t)n_rows;
    size_t block = dtype_block_bytes(type);
    uint8_t *data = malloc(bytes + 64);
    for (size_t i = 0; i < bytes; i++)
        data[i] = (uint8_t)rng_next(r);
    for (uint8_t *p = data; p < data + bytes; p += block) {
        float f = random_unit(r);
        uint16_t one = quants_float_f16(f), small = quants_float_f16(f / 100),
                 tiny = quants_float_f16(f / 3000);
        switch (type) {
        case DTYPE_F32: memcpy(p, &f, 4); break;
        case DTYPE_F16: memcpy(p, &one, 2); break;
        case DTYPE_BF16:
            one = quants_float_bf16(f);
            memcpy(p, &one, 2);
            break;
        case DTYPE_Q2_K:
            memcpy(p + 80, &small, 2);
            memcpy(p + 82, &small, 2);
            break;
        case DTYPE_Q3_K: memcpy(p + 108, &small, 2); break;
        case DTYPE_Q6_K: memcpy(p + 208, &tiny, 2); break;
        case DTYPE_Q8_K:
            f /= 100;
            memcpy(p, &f, 4);
            break;
        case DTYPE_MXFP4: p[0] = (uint8_t)(116 + p[0] % 8); break;
        case DTYPE_IQ4_XS: memcpy(p, &tiny, 2); break;
        case DTYPE_Q4_K:
        case DTYPE_Q5_K:
            memcpy(p, &tiny, 2);
            memcpy(p + 2, &tiny, 2);
            break;
        case DTYPE_Q4_1:
        case DTYPE_Q5_1:
        case DTYPE_Q8_1:
            memcpy(p, &small, 2);
            memcpy(p + 2, &small, 2);
            break;
        default: memcpy(p, &small, 2); break;
        }
    }
    return data;
}

static const uint32_t weight_types[] = {
    DTYPE_F32,  DTYPE_F16,  DTYPE_BF16, DTYPE_Q4_0,   DTYPE_Q4_1,   DTYPE_Q5_0,
    DTYPE_Q5_1, DTYPE_Q8_0, DTYPE_Q8_1, DTYPE_Q2_K,   DTYPE_Q3_K,   DTYPE_Q4_K,
    DTYPE_Q5_K, DTYPE_Q6_K, DTYPE_Q8_K, DTYPE_IQ4_NL, DTYPE_IQ4_XS, DTYPE_MXFP4};
#define N_WEIGHT_TYPES (sizeof weight_types / sizeof *weight_types)

/* Fails unless |a - b| <= relative * |b| + absolute everywhere. */
static inline void assert_near(const float *a, const float *b, size_t n, double relative,
                               double absolute, const char *what)
{
    for (size_t i = 0; i < n; i++) {
        double distance = fabs((double)a[i] - (double)b[i]);
        if (!(distance <= relative * fabs((double)b[i]) + absolute))
            fail_msg("%s: element %zu of %zu is %.9g, not %.9g", what, i, n, (double)a[i],
                     (double)b[i]);
    }
}

static inline void assert_same_bits(const float *a, const float *b, size_t n, const char *what)
{
    for (size_t i = 0; i < n; i++)
        if (memcmp(a + i, b + i, sizeof *a) != 0)
            fail_msg("%s: element %zu of %zu is %a, not %a", what, i, n, (double)a[i],
                     (double)b[i]);
}

/* A copy of page from in page to, by way of another page and of the host, whose memory is returned: it is
 * to be closed once something was read. between ends up as the page after from. */
static inline void *copy_through_host(backend *b, kv_store *kv, int32_t to, int32_t from,
                                      int32_t between)
{
    size_t bytes = b->table->kv_page_bytes(b, kv);
    void *host = b->table->host_open ? b->table->host_open(b, bytes) : malloc(bytes);
    b->table->kv_copy_page(b, kv, between, from);
    b->table->kv_save_page(b, kv, host, between);
    b->table->kv_copy_page(b, kv, between, from + 1);
    b->table->kv_load_page(b, kv, to, host);
    return host;
}

static inline void close_host(backend *b, void *host)
{
    if (b->table->host_close)
        b->table->host_close(b, host);
    else
        free(host);
}

#endif
