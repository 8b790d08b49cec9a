/* compute/cuda/product.cuh: what the kernels of products (matmul.cu, stream.cu) share: both are compiled once for
 * each packed kind (MATMUL_KIND, MATMUL_K_SCALES, MATMUL_NAME) and give the same bits. */
#ifndef REALM_COMPUTE_CUDA_PRODUCT_CUH
#define REALM_COMPUTE_CUDA_PRODUCT_CUH

#include "compute/cuda/activation.cuh"
#include "compute/cuda/fragments.cuh"
#include "compute/cuda/input.cuh"

#define KIND     MATMUL_KIND
#define K_SCALES MATMUL_K_SCALES /* 0 or 1: packed.k_scales */

/* Of segment s: tiles first .. end-1. */
__device__ __forceinline__ int32_t segment_first(int32_t k_tiles, int32_t s)
{
    int32_t step = (k_tiles + PACKED_SEGMENTS - 1) / PACKED_SEGMENTS;
    return min(s * step, k_tiles);
}

__device__ __forceinline__ int find_weight(const matmul_args &a, int32_t block)
{
    return (a.count > 1 && block >= a.first_block[1]) + (a.count > 2 && block >= a.first_block[2]);
}

/* A result: factor is the input's (input.cuh). */
__device__ __forceinline__ float result(const matmul_args &a, int which, int32_t row, float sum,
                                        float factor)
{
    float v = __fmul_rn(sum, factor);
    if (a.w[which].row_scales)
        v = __fmul_rn(v, a.w[which].row_scales[row]);
    if (a.bias[which])
        v = __fadd_rn(v, a.bias[which][row]);
    return v;
}

/* Stores a result of a weight, or of either of a pair. */
__device__ __forceinline__ void put_result(const matmul_args &a, int which, int32_t row,
                                           int32_t token, float v)
{
    const packed &w = a.w[which];
    if (w.pair == 0) {
        if (row < w.n_rows)
            a.out[which][(int64_t)token * w.n_rows + row] = v;
        return;
    }
    const int32_t own = row / 16 * 8 + row % 8;
    if (own < w.pair)
        a.out[row / 8 % 2][(int64_t)token * w.pair + own] = v;
}

/* Where the input is FINAL. */
__device__ __forceinline__ void store_final(const matmul_args &a, int which, int32_t row,
                                            int32_t token, float sum)
{
    if (row < a.w[which].n_rows && token < a.n_tokens)
        put_result(a, which, row, token, result(a, which, row, sum, a.x.scales[token]));
}

#endif
