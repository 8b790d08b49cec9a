/* tests/unit/compute/matmul_fixture.h: random weights of every packed type, for tests of their
 * layout and of the products. */
#ifndef REALM_TESTS_COMPUTE_MATMUL_FIXTURE_H
#define REALM_TESTS_COMPUTE_MATMUL_FIXTURE_H

#include <math.h>

#include "unit/unit.h"

#include "compute/cpu/matmul_packed.h"
#include "compute/cpu/quants.h"

static const uint32_t packed_types[] = {
#define TYPE(type, super, scale_bytes, value_bytes) DTYPE_##type,
    PACK_MAP(TYPE)
#undef TYPE
};
#define N_PACKED_TYPES (sizeof packed_types / sizeof *packed_types)

static uint64_t random_state = 1;

static inline uint32_t random_bits(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 32);
}

/* -1 .. 1 */
static inline float random_unit(void)
{
    return (float)(int32_t)random_bits() * 0x1p-31f;
}

static inline void put_half(uint8_t *p, float value)
{
    uint16_t h = quants_float_f16(value);
    memcpy(p, &h, 2);
}

/* Random blocks: any bytes, but scales of both signs around 0.01. */
static inline void random_blocks(uint32_t type, uint8_t *data, size_t size)
{
    for (size_t i = 0; i < size; i++)
        data[i] = (uint8_t)random_bits();
    uint32_t step = dtype_block_bytes(type);
    for (uint8_t *b = data; b < data + size; b += step) {
        float d = 0.01f * random_unit(), m = 0.02f * random_unit();
        switch (type) {
        case DTYPE_MXFP4:
            b[0] = (uint8_t)(random_bits() % 8 == 0 ? random_bits() % 3 : 115 + random_bits() % 8);
            break;
        case DTYPE_Q8_K: memcpy(b, &d, 4); break;
        case DTYPE_Q2_K:
            put_half(b + 80, d);
            put_half(b + 82, m);
            break;
        case DTYPE_Q3_K: put_half(b + 108, d); break;
        case DTYPE_Q6_K: put_half(b + 208, d / 8); break;
        case DTYPE_Q4_1:
        case DTYPE_Q5_1:
        case DTYPE_Q4_K:
        case DTYPE_Q5_K:
            put_half(b + 2, m);
            put_half(b, d);
            break;
        default: put_half(b, d);
        }
    }
}

typedef struct fixture {
    uint8_t *data;
    float *rows; /* [n_rows, n_cols] dequantized */
    cpu_weight weight;
} fixture;

static inline void fixture_open(fixture *f, uint32_t type, int32_t n_rows, int32_t n_cols)
{
    realm_error error;
    memset(f, 0, sizeof *f);
    f->weight.head = (weight){type, n_rows, n_cols};
    f->weight.row_bytes = dtype_row_bytes(type, (uint64_t)n_cols);
    size_t size = f->weight.row_bytes * (size_t)n_rows;
    f->data = malloc(size);
    f->rows = malloc((size_t)n_rows * (size_t)n_cols * sizeof *f->rows);
    random_blocks(type, f->data, size);
    assert_true(quants_dequantize(type, f->rows, f->data, (int64_t)n_rows * n_cols));
    f->weight.data = f->data;
    assert_true(matmul_packed_scalar.accepts(type, n_rows, n_cols));
    assert_status(matmul_packed_scalar.pack(&f->weight, &error), REALM_OK, error);
    matmul_packed_scalar.pack_rows(&f->weight, 0, n_rows);
}

static inline void fixture_close(fixture *f)
{
    free(f->weight.packed);
    free(f->rows);
    free(f->data);
}

#endif
