/* compute/cpu/matmul_scalar.c: packed products in plain C: the order of arithmetic that
 * matmul_packed.h promises, written down once without vectors. Tests hold every instruction set to
 * these bits. Pool threads; no state. */
#include <math.h>
#include <string.h>

#include "compute/cpu/matmul_packed.h"
#include "compute/cpu/quants.h"

static int has_minimum(uint32_t type)
{
    return type == DTYPE_Q4_1 || type == DTYPE_Q5_1 || type == DTYPE_Q4_K || type == DTYPE_Q5_K ||
           type == DTYPE_Q2_K;
}

typedef struct unpacked {
    int16_t values[PACK_BLOCK][PACK_ROWS];
    float scales[2][PACK_ROWS], minimums[2][PACK_ROWS];
} unpacked;

static int32_t dot(const unpacked *u, const matmul_input *in, int row, int first, int count)
{
    int32_t sum = 0;
    for (int k = first; k < first + count; k++)
        sum += u->values[k][row] * in->q[k];
    return sum;
}

/* Adds a group of count blocks of a type of 32 values for one token. */
static void add_group_32(uint32_t type, float *acc, const uint8_t *panel, int32_t n_blocks,
                         int32_t first, int32_t count, const matmul_input *in, size_t stride)
{
    float g[PACK_ROWS] = {0}, d = in->d;
    for (int32_t b = first; b < first + count; b++, in += stride) {
        unpacked u;
        pack_block(type, panel, n_blocks, b, u.values, u.scales, u.minimums);
        for (int r = 0; r < PACK_ROWS; r++) {
            g[r] = fmaf((float)dot(&u, in, r, 0, 32), u.scales[0][r], g[r]);
            if (has_minimum(type))
                g[r] = fmaf(u.minimums[0][r], in->sum, g[r]);
        }
    }
    for (int r = 0; r < PACK_ROWS; r++)
        acc[r] = fmaf(g[r], d, acc[r]);
}

/* The sum of n of half block i of a group, put together from its digits. */
static int32_t half_sum(const matmul_input *group, size_t stride, int i)
{
    const matmul_input *low = group + (size_t)(i / 4) * stride;
    return low->half_digits[i % 4] + 256 * low[4 * stride].half_digits[i % 4];
}

/* The same for a type of 256 values. */
static void add_group_256(uint32_t type, float *acc, const uint8_t *panel, int32_t n_blocks,
                          int32_t first, const matmul_input *in, size_t stride)
{
    int32_t sums[PACK_ROWS] = {0}, minimums[PACK_ROWS] = {0};
    pack_scales s;
    for (int32_t b = 0; b < MATMUL_GROUP; b++) {
        unpacked u;
        pack_block(type, panel, n_blocks, first + b, u.values, u.scales, u.minimums);
        pack_block_scales(type, panel, first + b, &s);
        for (int r = 0; r < PACK_ROWS; r++)
            for (int h = 0; h < 2; h++) {
                sums[r] += dot(&u, in + (size_t)b * stride, r, 16 * h, 16) * s.scale[h][r];
                minimums[r] += half_sum(in, stride, 2 * b + h) * s.minimum[h][r];
            }
    }
    for (int r = 0; r < PACK_ROWS; r++) {
        float g = (float)sums[r] * s.d[r];
        if (has_minimum(type))
            g = fmaf(-s.dmin[r], (float)minimums[r], g);
        acc[r] = fmaf(g, in->d, acc[r]);
    }
}

static void tile(uint32_t type, int T, float (*sums)[PACK_ROWS], const uint8_t *panel,
                 int32_t n_blocks, const matmul_input *in, size_t stride)
{
    memset(sums, 0, (size_t)T * sizeof *sums);
    for (int32_t b = 0; b < n_blocks; b += MATMUL_GROUP, in += MATMUL_GROUP * stride) {
        int32_t count = n_blocks - b < MATMUL_GROUP ? n_blocks - b : MATMUL_GROUP;
        for (int t = 0; t < T; t++)
            if (dtype_block_elements(type) == 32)
                add_group_32(type, sums[t], panel, n_blocks, b, count, in + t, stride);
            else
                add_group_256(type, sums[t], panel, n_blocks, b, in + t, stride);
    }
}

static void correct(uint32_t type, float *sums, const uint8_t *panel, int32_t n_blocks,
                    const matmul_list *list)
{
    for (uint32_t i = 0; i < list->count; i++) {
        const matmul_outlier *o = &list->items[i];
        unpacked u;
        pack_block(type, panel, n_blocks, (int32_t)(o->quad / 8), u.values, u.scales, u.minimums);
        for (int r = 0; r < PACK_ROWS; r++) {
            int32_t sum = 0, first = (int32_t)(o->quad % 8) * 4;
            for (int k = 0; k < 4; k++)
                sum += u.values[first + k][r] * o->q[k];
            sums[r] = fmaf((float)sum * u.scales[first / 16][r], o->d, sums[r]);
        }
    }
}

/* ---- activations ---------------------------------------------------------------------------- */

static float energy(const float *x, int32_t n)
{
    float sums[16] = {0};
    for (int32_t i = 0; i < n; i++)
        sums[i % 16] += x[i] * x[i];
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++)
            sums[i] += sums[i + half];
    return sums[0];
}

static float magnitude_below(const float *x, int32_t n, float most)
{
    float largest = 0;
    for (int32_t i = 0; i < n; i++)
        if (fabsf(x[i]) <= most && fabsf(x[i]) > largest)
            largest = fabsf(x[i]);
    return largest;
}

static float magnitude(const float *x, int32_t n)
{
    uint32_t largest = 0;
    for (int32_t i = 0; i < n; i++) {
        uint32_t bits = quants_float_bits(x[i]) & 0x7FFFFFFF;
        largest = bits > largest ? bits : largest;
    }
    return quants_bits_float(largest);
}

static uint32_t put_block(matmul_input *in, int32_t sums[2], int8_t high[32], const float *x,
                          float inverse)
{
    uint32_t quads = 0;
    sums[0] = sums[1] = 0;
    for (int i = 0; i < 32; i++) {
        int32_t n = (int32_t)lrintf(x[i] * inverse);
        int32_t h = (int32_t)lrintf((float)n * (1.0f / MATMUL_HIGH));
        in->q[i] = (int8_t)(n - h * MATMUL_HIGH);
        high[i] = (int8_t)h;
        quads |= (uint32_t)(h != 0) << i / 4;
        sums[i / 16] += in->q[i];
    }
    in->bias = -128 * (sums[0] + sums[1]);
    in->half_bias[0] = -128 * sums[0];
    in->half_bias[1] = -128 * sums[1];
    return quads;
}

#include "compute/cpu/matmul_prepare.inl"

/* ---- one function for each type and number of tokens ---------------------------------------- */

#define WIDTHS(X, kind) X(kind, 1) X(kind, 2) X(kind, 3) X(kind, 4) X(kind, 12)
#define TILE(kind, T)                                                                              \
    static void tile_##kind##_##T(float(*sums)[PACK_ROWS], const uint8_t *panel,                   \
                                  size_t panel_bytes, int32_t n_blocks, const matmul_input *input, \
                                  size_t stride)                                                   \
    {                                                                                              \
        (void)panel_bytes;                                                                         \
        tile(DTYPE_##kind, T, sums, panel, n_blocks, input, stride);                               \
    }
#define CORRECT(kind)                                                                              \
    static void correct_##kind(float *sums, const uint8_t *panel, int32_t n_blocks,                \
                               const matmul_list *list)                                            \
    {                                                                                              \
        correct(DTYPE_##kind, sums, panel, n_blocks, list);                                        \
    }
MATMUL_ISA(scalar)
