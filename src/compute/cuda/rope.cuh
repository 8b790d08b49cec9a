/* compute/cuda/rope.cuh: the turning of queries and keys, and their halves in pages, said once for the kernels that write
 * keys (rows.cu) and for attention that does so on its way (attention_staged.cu): both give the same bits. */
#ifndef REALM_COMPUTE_CUDA_ROPE_CUH
#define REALM_COMPUTE_CUDA_ROPE_CUH

#include "compute/cuda/device.cuh"

/* A pair turned by an angle: its first and its second element. */
__device__ __forceinline__ float turned_first(float u, float v, float cosine, float sine)
{
    return fmaf(u, cosine, -__fmul_rn(v, sine));
}

__device__ __forceinline__ float turned_second(float u, float v, float cosine, float sine)
{
    return fmaf(u, sine, __fmul_rn(v, cosine));
}

/* Four neighbours, which are two pairs. */
__device__ __forceinline__ float4 turn_pairs(float4 x, float2 c, float2 s)
{
    return make_float4(turned_first(x.x, x.y, c.x, s.x), turned_second(x.x, x.y, c.x, s.x),
                       turned_first(x.z, x.w, c.y, s.y), turned_second(x.z, x.w, c.y, s.y));
}

/* What turns dimensions 4 * lane .. of a head of STAGED_DIM of one token, all of whose dimensions are turned; ROPE_NORMAL:
 * also those of a neighbour. */
struct lane_angles {
    float4 c, s;
};

__device__ __forceinline__ lane_angles load_angles(const float *cosines, const float *sines,
                                                   int32_t kind, int lane)
{
    const int at = kind == ROPE_NORMAL ? lane / 2 : lane % 16;
    return {((const float4 *)cosines)[at], ((const float4 *)sines)[at]};
}

/* By a warp, of which each lane has four elements. */
__device__ __forceinline__ float4 turn_four(float4 x, const lane_angles &a, int32_t kind)
{
    if (kind == ROPE_NORMAL)
        return threadIdx.x & 1
                   ? turn_pairs(x, make_float2(a.c.z, a.c.w), make_float2(a.s.z, a.s.w))
                   : turn_pairs(x, make_float2(a.c.x, a.c.y), make_float2(a.s.x, a.s.y));
    const bool second = threadIdx.x & 16;
    float *e = &x.x;
    const float *cosine = &a.c.x, *sine = &a.s.x;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float other = __shfl_xor_sync(0xFFFFFFFF, e[i], 16);
        e[i] = second ? turned_second(other, e[i], cosine[i], sine[i])
                      : turned_first(e[i], other, cosine[i], sine[i]);
    }
    return x;
}

/* Two numbers as halves, saturated; a NaN stays one. */
__device__ __forceinline__ uint32_t saturated_pair(float x, float y)
{
    const __half2 most = __half2half2(__ushort_as_half(0x7BFF)), least = __hneg2(most),
                  v = __hmax2_nan(__hmin2_nan(__floats2half2_rn(x, y), most), least);
    return *(uint32_t *)&v;
}

__device__ __forceinline__ uint2 four_halves(float4 v)
{
    return make_uint2(saturated_pair(v.x, v.y), saturated_pair(v.z, v.w));
}

#endif
