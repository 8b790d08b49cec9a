/* compute/cuda/activation.cuh: the activations of gated feed-forwards. */
#ifndef REALM_COMPUTE_CUDA_ACTIVATION_CUH
#define REALM_COMPUTE_CUDA_ACTIVATION_CUH

#include "compute/cuda/device.cuh"

/* A call: the library's functions would take registers of all that a product does. */
static __device__ __noinline__ float activate_slowly(float x, int32_t kind)
{
    if (kind == ACTIVATION_GELU_TANH) {
        float u = 0.79788456080286536f * fmaf(0.044715f, x * x * x, x);
        return x / (1.0f + expf(-2.0f * u));
    }
    return 0.5f * x * erfcf(-x * 0.70710678118654752f);
}

__device__ __forceinline__ float activate(float x, int32_t kind)
{
    if (kind == ACTIVATION_SILU) {
        const float v = __fdividef(x,
                                   1.0f + expf(-x)); /* 2 units of the last place, and no branch */
        return x == -INFINITY ? -0.0f : v;
    }
    return x == -INFINITY ? -0.0f : activate_slowly(x, kind); /* not -inf / inf */
}

__device__ __forceinline__ float4 gated_four(float4 x, float4 y, int32_t kind)
{
    if (kind == ACTIVATION_SILU) /* once for all four */
        return make_float4(
            activate(x.x, ACTIVATION_SILU) * y.x, activate(x.y, ACTIVATION_SILU) * y.y,
            activate(x.z, ACTIVATION_SILU) * y.z, activate(x.w, ACTIVATION_SILU) * y.w);
    return make_float4(activate(x.x, kind) * y.x, activate(x.y, kind) * y.y,
                       activate(x.z, kind) * y.z, activate(x.w, kind) * y.w);
}

#endif
