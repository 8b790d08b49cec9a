/* compute/cpu/vec.h: one vector of floats in whatever instruction set the file is compiled for.
 *
 * vf is a compiler vector, so + - * / and comparisons are the operators; what operators cannot say
 * is a function here. isa_<name>.c includes this after the compiler was told the instruction set
 * (CMakeLists.txt) and then the .inl files that are written with it.
 *
 * Sums over a row are sixteen sums, element i in sum i % 16, whatever VF_LANES is: VF_PARTS vectors
 * make sixteen lanes. So every set with fused multiply-adds (AVX-512, AVX2, NEON) gives the same
 * bits; only isa_generic.c, which rounds products, gives others. Multiplications and additions are
 * fused only by vf_fma; the build forbids the compiler to. */
#ifndef REALM_COMPUTE_CPU_VEC_H
#define REALM_COMPUTE_CPU_VEC_H

#include <stdint.h>
#include <string.h>

#include "compute/cpu/quants.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define VF_LANES 16
#elif defined(__AVX2__)
#define VF_LANES 8
#else
#define VF_LANES 4
#endif

#define VF_PARTS (16 / VF_LANES)

typedef float vf __attribute__((vector_size(VF_LANES * 4)));
typedef int32_t vi __attribute__((vector_size(VF_LANES * 4)));
/* The same, for memory of any alignment. */
typedef float vf_any __attribute__((vector_size(VF_LANES * 4), aligned(4), may_alias));

#define VF_INLINE static inline __attribute__((always_inline, unused))

VF_INLINE vf vf_load(const float *p)
{
    return *(const vf_any *)p;
}

VF_INLINE void vf_store(float *p, vf x)
{
    *(vf_any *)p = x;
}

VF_INLINE vf vf_set(float x)
{
    return x - (vf){0};
}

/* The first n < VF_LANES floats, the rest zero. */
VF_INLINE vf vf_load_part(const float *p, int64_t n)
{
    vf x = {0};
    memcpy(&x, p, (size_t)n * sizeof *p);
    return x;
}

VF_INLINE void vf_store_part(float *p, vf x, int64_t n)
{
    memcpy(p, &x, (size_t)n * sizeof *p);
}

/* bfloat16 -> floats */
VF_INLINE vf vf_load_bf16(const uint16_t *p)
{
    uint16_t halves __attribute__((vector_size(VF_LANES * 2)));
    memcpy(&halves, p, sizeof halves);
    return (vf)(__builtin_convertvector(halves, vi) << 16);
}

/* ---- what differs ---------------------------------------------------------------------------- */

/* a * b + c, fused where the set can; halves -> floats; int8 -> floats. vf_max(a, b) is b if either
 * is NaN on x86 and NaN elsewhere: give the number that may be NaN as b. */
#if defined(__AVX512F__)

VF_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}
VF_INLINE vf vf_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}
VF_INLINE vf vf_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}
VF_INLINE vf vf_sqrt(vf a)
{
    return _mm512_sqrt_ps(a);
}
VF_INLINE vf vf_round(vf a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
VF_INLINE vi vf_int(vf a)
{
    return (vi)_mm512_cvtps_epi32(a);
}
VF_INLINE vf vf_load_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p));
}
VF_INLINE void vf_store_f16(uint16_t *p, vf x)
{
    _mm256_storeu_si256((void *)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
VF_INLINE vf vf_load_i8(const int8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p)));
}
/* where mask (all ones or zero a lane) is set a, else b */
VF_INLINE vf vf_select(vi mask, vf a, vf b)
{
    return _mm512_mask_blend_ps(_mm512_movepi32_mask((__m512i)mask), b, a);
}

#elif defined(__AVX2__)

VF_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}
VF_INLINE vf vf_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}
VF_INLINE vf vf_min(vf a, vf b)
{
    return _mm256_min_ps(a, b);
}
VF_INLINE vf vf_sqrt(vf a)
{
    return _mm256_sqrt_ps(a);
}
VF_INLINE vf vf_round(vf a)
{
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
VF_INLINE vi vf_int(vf a)
{
    return (vi)_mm256_cvtps_epi32(a);
}
VF_INLINE vf vf_load_f16(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const void *)p));
}
VF_INLINE void vf_store_f16(uint16_t *p, vf x)
{
    _mm_storeu_si128((void *)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
VF_INLINE vf vf_load_i8(const int8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p)));
}
VF_INLINE vf vf_select(vi mask, vf a, vf b)
{
    return _mm256_blendv_ps(b, a, (vf)mask);
}

#elif defined(__aarch64__)

VF_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
VF_INLINE vf vf_max(vf a, vf b)
{
    return (vf)vmaxq_f32((float32x4_t)a, (float32x4_t)b);
}
VF_INLINE vf vf_min(vf a, vf b)
{
    return (vf)vminq_f32((float32x4_t)a, (float32x4_t)b);
}
VF_INLINE vf vf_sqrt(vf a)
{
    return (vf)vsqrtq_f32((float32x4_t)a);
}
VF_INLINE vf vf_round(vf a)
{
    return (vf)vrndnq_f32((float32x4_t)a);
}
VF_INLINE vi vf_int(vf a)
{
    return (vi)vcvtnq_s32_f32((float32x4_t)a);
}
VF_INLINE vf vf_load_f16(const uint16_t *p)
{
    return (vf)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
VF_INLINE void vf_store_f16(uint16_t *p, vf x)
{
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)x)));
}
VF_INLINE vf vf_load_i8(const int8_t *p)
{
    int32_t four;
    memcpy(&four, p, sizeof four);
    int8x8_t bytes = vreinterpret_s8_s32(vdup_n_s32(four));
    return (vf)vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))));
}
VF_INLINE vf vf_select(vi mask, vf a, vf b)
{
    return (vf)vbslq_f32((uint32x4_t)mask, (float32x4_t)a, (float32x4_t)b);
}

#else

VF_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return a * b + c;
}
VF_INLINE vf vf_select(vi mask, vf a, vf b)
{
    return (vf)(((vi)a & mask) | ((vi)b & ~mask));
}
VF_INLINE vf vf_max(vf a, vf b)
{
    return vf_select(a > b, a, b);
}
VF_INLINE vf vf_min(vf a, vf b)
{
    return vf_select(a < b, a, b);
}
VF_INLINE vf vf_sqrt(vf a)
{
    vf r;
    for (int i = 0; i < VF_LANES; i++)
        r[i] = __builtin_sqrtf(a[i]);
    return r;
}
/* For |a| < 2^22: adding 1.5 * 2^23 leaves no bits for a fraction. */
VF_INLINE vf vf_round(vf a)
{
    return a + vf_set(12582912.0f) - vf_set(12582912.0f);
}
/* a is already whole. */
VF_INLINE vi vf_int(vf a)
{
    return __builtin_convertvector(a, vi);
}
VF_INLINE vf vf_load_f16(const uint16_t *p)
{
    vf r;
    for (int i = 0; i < VF_LANES; i++)
        r[i] = quants_f16_float(p[i]);
    return r;
}
VF_INLINE void vf_store_f16(uint16_t *p, vf x)
{
    for (int i = 0; i < VF_LANES; i++)
        p[i] = quants_float_f16(x[i]);
}
VF_INLINE vf vf_load_i8(const int8_t *p)
{
    vf r;
    for (int i = 0; i < VF_LANES; i++)
        r[i] = (float)p[i];
    return r;
}

#endif

/* a * 2^n for whole n from -126 to 0; NaN if a is. */
VF_INLINE vf vf_scale(vf a, vf n)
{
#if defined(__AVX512F__)
    return _mm512_scalef_ps(a, n);
#else
    /* n may be NaN where a is: its integer is any, and NaN times anything stays. */
    return a * (vf)((vf_int(n) + 127) << 23);
#endif
}

/* ---- sums over lanes, always in the same order ----------------------------------------------- */

VF_INLINE float vf_sum(vf x)
{
    float f[VF_LANES];
    memcpy(f, &x, sizeof f);
    for (int half = VF_LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++)
            f[i] += f[i + half];
    return f[0];
}

/* Of sixteen lanes: the upper half onto the lower until one is left. */
VF_INLINE float vf_sum16(const vf x[VF_PARTS])
{
#if VF_PARTS == 1
    return vf_sum(x[0]);
#elif VF_PARTS == 2
    return vf_sum(x[0] + x[1]);
#else
    return vf_sum((x[0] + x[2]) + (x[1] + x[3]));
#endif
}

VF_INLINE float vf_largest(vf x)
{
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps(x);
#elif defined(__AVX2__)
    __m128 a = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    a = _mm_max_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_max_ss(a, _mm_shuffle_ps(a, a, 1)));
#else
    float largest = x[0];
    for (int i = 1; i < VF_LANES; i++)
        largest = x[i] > largest ? x[i] : largest;
    return largest;
#endif
}

/* ---- functions ------------------------------------------------------------------------------- */

/* e^x. Relative error below 2e-7 (tested over all exponents) for results that are normal floats;
 * 0 below -87.33, where results would be subnormal; infinity above 88.72; NaN for NaN; exactly 1
 * for 0.
 * Reduction by ln 2 in two parts and a polynomial after Cephes expf. */
VF_INLINE vf vf_exp(vf x)
{
    const vf high = vf_set(88.7228317f), low = vf_set(-87.3365402f);
    vf bounded = vf_max(low, vf_min(high, x));
    vf n = vf_round(bounded * vf_set(1.44269504088896341f));
    vf r = vf_fma(n, vf_set(-0.693359375f), bounded);
    r = vf_fma(n, vf_set(2.12194440e-4f), r);
    vf p = vf_set(1.9875691500e-4f);
    p = vf_fma(p, r, vf_set(1.3981999507e-3f));
    p = vf_fma(p, r, vf_set(8.3334519073e-3f));
    p = vf_fma(p, r, vf_set(4.1665795894e-2f));
    p = vf_fma(p, r, vf_set(1.6666665459e-1f));
    p = vf_fma(p, r, vf_set(5.0000001201e-1f));
    p = vf_fma(p, r * r, r) + vf_set(1.0f);
    /* 2^n in two factors: n reaches 128, one more than an exponent holds. */
    vi whole = vf_int(n), half = whole >> 1;
    vf first = (vf)((half + 127) << 23), second = (vf)((whole - half + 127) << 23);
    vf result = p * first * second;
    result = vf_select(x < low, vf_set(0), result);
    result = vf_select(x > high, vf_set(__builtin_inff()), result);
    return vf_select(x == x, result, x);
}

/* e^x for x <= 0 (or NaN), the same polynomial with less to guard: what softmax needs. Exactly 1
 * for 0; 0 below -87.33. */
VF_INLINE vf vf_exp_negative(vf x)
{
    const vf low = vf_set(-87.3365402f);
    vf bounded = vf_max(low, x);
    vf n = vf_round(bounded * vf_set(1.44269504088896341f));
    vf r = vf_fma(n, vf_set(-0.693359375f), bounded);
    r = vf_fma(n, vf_set(2.12194440e-4f), r);
    vf p = vf_set(1.9875691500e-4f);
    p = vf_fma(p, r, vf_set(1.3981999507e-3f));
    p = vf_fma(p, r, vf_set(8.3334519073e-3f));
    p = vf_fma(p, r, vf_set(4.1665795894e-2f));
    p = vf_fma(p, r, vf_set(1.6666665459e-1f));
    p = vf_fma(p, r, vf_set(5.0000001201e-1f));
    p = vf_fma(p, r * r, r) + vf_set(1.0f);
    vf result = vf_scale(p, n);
    return vf_select(x < low, vf_set(0), result);
}

/* tanh x. Relative error below 4e-7. Near zero a polynomial (Cephes tanhf), since 1 - 2 / (e + 1)
 * cancels there. */
VF_INLINE vf vf_tanh(vf x)
{
    vi sign = (vi)x & (vi)vf_set(-0.0f);
    vf a = (vf)((vi)x & ~(vi)vf_set(-0.0f));
    vf far = vf_set(1.0f) - vf_set(2.0f) / (vf_exp(a + a) + vf_set(1.0f));
    vf z = x * x;
    vf p = vf_set(-5.70498872745e-3f);
    p = vf_fma(p, z, vf_set(2.06390887954e-2f));
    p = vf_fma(p, z, vf_set(-5.37397155531e-2f));
    p = vf_fma(p, z, vf_set(1.33314422036e-1f));
    p = vf_fma(p, z, vf_set(-3.33332819422e-1f));
    vf near = vf_fma(p * z, x, x);
    return vf_select(a < vf_set(0.625f), near, (vf)((vi)far | sign));
}

#endif
