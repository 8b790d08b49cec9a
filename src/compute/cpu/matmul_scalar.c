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

static int has_halves(uint32_t type)
{
    return type == DTYPE_Q6_K || type == DTYPE_Q3_K || type == DTYPE_Q2_K;
}

typedef struct unpacked {
    int16_t values[PACK_BLOCK][PACK_ROWS];
    float scales[2][PACK_ROWS], minimums[2][PACK_ROWS];
} unpacked;

static float dot(const unpacked *u, const matmul_input *in, int row, int first, int count)
{
    int32_t sum = 0;
    for (int k = first; k < first + count; k++)
        sum += u->values[k][row] * in->q[k];
    return (float)sum;
}

static void add_block(uint32_t type, float *acc, const unpacked *u, const matmul_input *in)
{
    for (int r = 0; r < PACK_ROWS; r++) {
        float y;
        if (has_halves(type)) {
            y = dot(u, in, r, 0, 16) * u->scales[0][r];
            y = fmaf(dot(u, in, r, 16, 16), u->scales[1][r], y);
        } else {
            y = dot(u, in, r, 0, 32) * u->scales[0][r];
        }
        acc[r] = fmaf(y, in->d, acc[r]);
        if (has_minimum(type) && has_halves(type)) {
            acc[r] = fmaf(u->minimums[0][r], in->half_sum[0], acc[r]);
            acc[r] = fmaf(u->minimums[1][r], in->half_sum[1], acc[r]);
        } else if (has_minimum(type)) {
            acc[r] = fmaf(u->minimums[0][r], in->sum, acc[r]);
        }
    }
}

static void tile(uint32_t type, int T, float (*sums)[PACK_ROWS], const uint8_t *panel,
                 int32_t n_blocks, const matmul_input *in, size_t stride)
{
    memset(sums, 0, (size_t)T * sizeof *sums);
    for (int32_t b = 0; b < n_blocks; b++, in += stride) {
        unpacked u;
        pack_block(type, panel, n_blocks, b, u.values, u.scales, u.minimums);
        for (int t = 0; t < T; t++)
            add_block(type, sums[t], &u, in + t);
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

static void put_block(matmul_input *in, const int32_t *q, float d)
{
    int32_t first = 0, second = 0;
    for (int i = 0; i < 16; i++) {
        in->q[i] = (int8_t)q[i];
        in->q[i + 16] = (int8_t)q[i + 16];
        first += q[i];
        second += q[i + 16];
    }
    in->d = d;
    in->sum = d * (float)(first + second);
    in->bias = -128 * (first + second);
    in->half_bias[0] = -128 * first;
    in->half_bias[1] = -128 * second;
    in->half_sum[0] = d * (float)first;
    in->half_sum[1] = d * (float)second;
    in->unused = 0;
}

static float magnitude(const float *x)
{
    uint32_t largest = 0;
    for (int i = 0; i < 32; i++) {
        uint32_t bits = quants_float_bits(x[i]) & 0x7FFFFFFF;
        largest = bits > largest ? bits : largest;
    }
    return quants_bits_float(largest);
}

static void quantize_block(matmul_input *in, const float *x, float largest)
{
    int32_t q[32] = {0};
    if (!isfinite(largest) || largest < 0x1p-100f) {
        put_block(in, q, isfinite(largest) ? 0 : NAN);
        return;
    }
    float inverse = 127 / largest;
    for (int i = 0; i < 32; i++)
        q[i] = (int32_t)lrintf(x[i] * inverse);
    put_block(in, q, largest * (1.0f / 127));
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
