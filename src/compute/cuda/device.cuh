/* compute/cuda/device.cuh: what all kernels share: waiting for the step's previous kernel, sums over a
 * block in a fixed order.
 *
 * Bits: no kernel uses atomics on floats, and the threads of a block are a function of the row's length
 * alone, so a row's result does not depend on the grid. Where two kernels must agree to the bit, the
 * arithmetic is written with the intrinsics that the compiler does not fuse. */
#ifndef REALM_COMPUTE_CUDA_DEVICE_CUH
#define REALM_COMPUTE_CUDA_DEVICE_CUH

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "compute/cuda/kernels.h"

/* The next kernel may be brought onto the multiprocessors once every block of this one has begun. */
__device__ __forceinline__ void allow_next(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* With programmatic launches a kernel is on the multiprocessors, where there is room, before the one
 * before it has ended, and so may several be: each lets the next one come as the first thing that it does.
 * Nothing that a kernel of this step wrote may be read, and nothing written, before this, which every
 * thread calls: the kernel before has then ended, and waited likewise for the one before it. What is
 * constant over a step (weights, what the host staged) may be loaded earlier. */
__device__ __forceinline__ void await_inputs(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* All threads of the cluster's blocks, and what they have written to shared memory. */
__device__ __forceinline__ void cluster_sync(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::
                     : "memory");
#else
    __syncthreads();
#endif
}

#if __CUDA_ARCH__ >= 900
/* Where this place of the shared memory is in a block of the cluster. */
__device__ __forceinline__ uint32_t cluster_place(const void *shared, uint32_t block)
{
    uint32_t at = (uint32_t)__cvta_generic_to_shared(shared), there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(block));
    return there;
}
#endif

/* What stands at this place of the shared memory of a block of the cluster. */
__device__ __forceinline__ double cluster_read(const double *shared, uint32_t block)
{
#if __CUDA_ARCH__ >= 900
    double v;
    asm volatile("ld.shared::cluster.f64 %0, [%1];"
                 : "=d"(v)
                 : "r"(cluster_place(shared, block))
                 : "memory");
    return v;
#else
    return *shared;
#endif
}

__device__ __forceinline__ float warp_sum(float v)
{
    for (int i = 16; i > 0; i >>= 1)
        v += __shfl_xor_sync(0xFFFFFFFF, v, i);
    return v;
}

__device__ __forceinline__ float warp_max(float v)
{
    for (int i = 16; i > 0; i >>= 1)
        v = fmaxf(v, __shfl_xor_sync(0xFFFFFFFF, v, i));
    return v;
}

/* Of the whole block; every thread gets it. (block_max is for what is not negative.) scratch [33] is shared memory of this call alone. */
__device__ __forceinline__ float block_sum(float v, float *scratch)
{
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0)
        scratch[threadIdx.x / 32] = v;
    __syncthreads();
    return warp_sum(threadIdx.x % 32 < blockDim.x / 32 ? scratch[threadIdx.x % 32] : 0.0f);
}

__device__ __forceinline__ float block_max(float v, float *scratch)
{
    v = warp_max(v);
    if (threadIdx.x % 32 == 0)
        scratch[threadIdx.x / 32] = v;
    __syncthreads();
    return warp_max(threadIdx.x % 32 < blockDim.x / 32 ? scratch[threadIdx.x % 32] : 0.0f);
}

/* The power of two that brings largest to 2^13 .. 2^14, and its inverse. Zero, infinity and NaN, which
 * have none, are left alone. */
__device__ __forceinline__ float scale_for(float largest, float *inverse)
{
    int exponent = (int)(__float_as_uint(largest) >> 23 & 255) - 127;
    if (!(largest > 0) || exponent == 128) {
        *inverse = 1;
        return 1;
    }
    int shift = 13 - exponent; /* 13-127 .. 13+127 */
    shift = shift < -120 ? -120 : shift > 120 ? 120 : shift;
    *inverse = __uint_as_float((uint32_t)(127 - shift) << 23);
    return __uint_as_float((uint32_t)(127 + shift) << 23);
}

/* Four elements of a row from k on, zeros beyond its end; at once where rows are whole vectors. */
__device__ __forceinline__ float4 load_four(const float *row, int32_t k, int32_t n_cols)
{
    if (n_cols % 4 == 0)
        return k < n_cols ? *(const float4 *)(row + k) : make_float4(0, 0, 0, 0);
    return make_float4(k < n_cols ? row[k] : 0, k + 1 < n_cols ? row[k + 1] : 0,
                       k + 2 < n_cols ? row[k + 2] : 0, k + 3 < n_cols ? row[k + 3] : 0);
}

__device__ __forceinline__ void store_four(float *row, int32_t k, int32_t n_cols, float4 v)
{
    if (n_cols % 4 == 0) {
        if (k < n_cols)
            *(float4 *)(row + k) = v;
        return;
    }
    const float *from = &v.x;
    for (int i = 0; i < 4 && k + i < n_cols; i++)
        row[k + i] = from[i];
}

__device__ __forceinline__ float largest_of(float4 v)
{
    return fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
}

/* The largest of a cluster's blocks; the same in all. With one block a cluster it is v. */
__device__ __forceinline__ float cluster_max(float v, float *shared)
{
#if __CUDA_ARCH__ >= 900
    uint32_t n;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(n));
    if (n == 1)
        return v;
    if (threadIdx.x == 0)
        *shared = v;
    cluster_sync();
    for (uint32_t i = 0; i < n; i++) {
        float other;
        asm volatile("ld.shared::cluster.f32 %0, [%1];"
                     : "=f"(other)
                     : "r"(cluster_place(shared, i))
                     : "memory");
        v = fmaxf(v, other);
    }
    cluster_sync(); /* nobody's shared memory goes before all have read it */
#endif
    return v;
}

/* Where a token's dimension d stands, in halves, among keys or values of a staged layer's page. Swizzled, so that
 * the matrix units' operands come out of shared memory without conflicts: two tokens by four chunks of keys
 * at once, and a chunk of values of eight tokens 0, 1, 8, 9, 16, 17, 24, 25 and so on. */
#define STAGED_DIM 128

__device__ __forceinline__ int32_t key_place(int32_t token, int32_t d)
{
    return token * STAGED_DIM + (d ^ (token & 1) << 5);
}

__device__ __forceinline__ int32_t value_place(int32_t token, int32_t d)
{
    return token * STAGED_DIM + (d ^ (token >> 3 << 4 | (token & 1) << 3));
}

__device__ __forceinline__ int32_t padded_cols(int32_t n_cols)
{
    return (n_cols + PACKED_COLS - 1) / PACKED_COLS * PACKED_COLS;
}

#endif
