/* compute/cpu/matmul_avx512.inl: what the packed products of AVX-512 and of AMX share: how each type's
 * weights and scales are taken from a panel, how outliers are added, and the vector half of
 * matmul_prepare.inl. Included by matmul_avx512.c and matmul_amx.c, which say what they make of it.
 *
 * Pool threads; no state. The arithmetic's order is fixed by matmul_packed.h. */
#include <immintrin.h>

#include "compute/cpu/matmul_packed.h"

#define INLINE static inline __attribute__((always_inline))
/* The kernels keep arrays of vectors in registers, which needs their loops gone. */
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* ---- what differs between types ------------------------------------------------------------- */

INLINE __m512i bytes(int value)
{
    return _mm512_set1_epi8((char)value);
}

INLINE __m512i load(const uint8_t *p, int vector)
{
    return _mm512_load_si512(p + 64 * vector);
}

/* (a shifted left by n) & mask, bytewise: mask clears what comes over from the next byte. */
INLINE __m512i left(__m512i a, int n, int mask)
{
    return _mm512_and_si512(_mm512_slli_epi16(a, (unsigned)n), bytes(mask));
}

INLINE __m512i right(__m512i a, int n, int mask)
{
    return _mm512_and_si512(_mm512_srli_epi16(a, (unsigned)n), bytes(mask));
}

/* mask ? a : b, bitwise. */
INLINE __m512i select_bits(int mask, __m512i a, __m512i b)
{
    return _mm512_ternarylogic_epi64(bytes(mask), a, b, 0xCA);
}

/* Values of the 4-bit types that are a list, plus 128: as in ggml's kvalues_iq4nl and, doubled,
 * the E2M1 numbers of OCP's MX specification. */
INLINE __m512i list_values(pack_kind kind)
{
    if (kind == PACK_MXFP4)
        return _mm512_broadcast_i32x4(_mm_setr_epi8(-128, -127, -126, -125, -124, -122, -120, -116,
                                                    -128, 127, 126, 125, 124, 122, 120, 116));
    return _mm512_broadcast_i32x4(
        _mm_setr_epi8(1, 24, 45, 63, 79, 93, 106, 118, -127, -115, -103, -90, -75, -59, -39, -15));
}

/* Quad j of a block as unsigned bytes: the value, or value * power(kind) (+ 128 if signed). */
INLINE __m512i quad(pack_kind kind, const uint8_t *v, int j)
{
    switch (kind) {
    case PACK_Q4_0:
        return j < 4 ? left(load(v, j), 4, 0xF0) : _mm512_and_si512(load(v, j - 4), bytes(0xF0));
    case PACK_Q4_1:
    case PACK_Q4_K:
        return j < 4 ? _mm512_and_si512(load(v, j), bytes(15)) : right(load(v, j - 4), 4, 15);
    case PACK_IQ4_NL:
    case PACK_IQ4_XS:
    case PACK_MXFP4:
        return _mm512_shuffle_epi8(list_values(kind), j < 4
                                                          ? _mm512_and_si512(load(v, j), bytes(15))
                                                          : right(load(v, j - 4), 4, 15));
    case PACK_Q5_0:
    case PACK_Q5_1:
    case PACK_Q5_K:
        if (j < 5)
            return _mm512_and_si512(load(v, j), bytes(0xF8));
        if (j == 5)
            return select_bits(0xE0, _mm512_slli_epi16(load(v, 0), 5), left(load(v, 1), 2, 0x18));
        if (j == 6)
            return select_bits(
                0x80, _mm512_slli_epi16(load(v, 1), 7),
                select_bits(0x70, _mm512_slli_epi16(load(v, 2), 4), left(load(v, 3), 1, 0x08)));
        return select_bits(0xC0, _mm512_slli_epi16(load(v, 3), 6), left(load(v, 4), 3, 0x38));
    case PACK_Q6_K:
        if (j < 6)
            return _mm512_and_si512(load(v, j), bytes(0xFC));
        v += j == 6 ? 0 : 192;
        return select_bits(
            0xC0, _mm512_slli_epi16(load(v, 0), 6),
            select_bits(0x30, _mm512_slli_epi16(load(v, 1), 4), left(load(v, 2), 2, 0x0C)));
    case PACK_Q3_K:
        if (j < 3)
            return _mm512_and_si512(load(v, j), bytes(0xE0));
        if (j < 6)
            return left(load(v, j - 3), 3, 0xE0);
        if (j == 6)
            return select_bits(0xC0, _mm512_slli_epi16(load(v, 0), 6), left(load(v, 1), 4, 0x20));
        return select_bits(0x80, _mm512_slli_epi16(load(v, 1), 7), left(load(v, 2), 5, 0x60));
    case PACK_Q2_K: return right(load(v, j / 4), j % 4 * 2, 3);
    default: /* 8 bits */ return load(v, j);
    }
}

/* What quad multiplies values with, inverted. */
INLINE float inverse_power(pack_kind kind)
{
    switch (kind) {
    case PACK_Q4_0: return 1.0f / 16;
    case PACK_Q5_0:
    case PACK_Q5_1:
    case PACK_Q5_K: return 1.0f / 8;
    case PACK_Q6_K: return 1.0f / 4;
    case PACK_Q3_K: return 1.0f / 32;
    default: return 1.0f;
    }
}

INLINE __m512 halves(const uint8_t *p)
{
    return _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)p));
}

/* Powers of two from biased exponents, halved (the values are doubled). */
INLINE __m512 exponent_scale(const uint8_t *p)
{
    __m512i e = _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *)p));
    __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
    __m512i tiny = _mm512_sllv_epi32(_mm512_set1_epi32(0x00200000), e);
    __mmask16 is_tiny = _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2));
    return _mm512_castsi512_ps(_mm512_mask_mov_epi32(normal, is_tiny, tiny));
}

/* The small scale of a block of a type of 256 values (of its half, for types that have two). */
INLINE __m512i small_scale(pack_kind kind, const uint8_t *p, int32_t block, int half)
{
    const uint8_t *eighth = p + 64 + 16 * block, *sixteenth = p + 64 + 32 * block + 16 * half;
    switch (kind) {
    case PACK_Q4_K:
    case PACK_Q5_K: return _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *)eighth));
    case PACK_IQ4_XS: return _mm512_cvtepi8_epi32(_mm_load_si128((const __m128i *)eighth));
    case PACK_Q2_K:
        return _mm512_and_si512(_mm512_srl_epi32(load(p + 64, block / 2),
                                                 _mm_cvtsi32_si128(8 * (block % 2 * 2 + half))),
                                _mm512_set1_epi32(15));
    default: return _mm512_cvtepi8_epi32(_mm_load_si128((const __m128i *)sixteenth));
    }
}

/* What the small scales of a type of 256 values are times, or the scale of one of 32, over what
 * quad multiplies with. p is where the scales are. */
INLINE __m512 base_scale(pack_kind kind, const uint8_t *p)
{
    if (kind == PACK_MXFP4)
        return exponent_scale(p);
    if (kind == PACK_Q8_K)
        return _mm512_load_ps((const float *)(const void *)p);
    __m512 d = halves(p);
    if (inverse_power(kind) != 1.0f)
        d = _mm512_mul_ps(d, _mm512_set1_ps(inverse_power(kind)));
    return d;
}

/* The scale of a block (of its half, for types that have two). */
INLINE __m512 load_scale(pack_kind kind, const uint8_t *p, int32_t block, int half)
{
    __m512 d = base_scale(kind, p);
    if (matmul_super(kind) == 1 || kind == PACK_Q8_K)
        return d;
    return _mm512_mul_ps(d, _mm512_cvtepi32_ps(small_scale(kind, p, block % 8, half)));
}

/* Likewise the minimum (to be added), or what small minimums are times (to be subtracted). */
INLINE __m512 load_minimum(pack_kind kind, const uint8_t *p)
{
    return matmul_has_minimum(kind) ? halves(p + 32) : _mm512_setzero_ps();
}

/* ---- pieces of products ---------------------------------------------------------------------- */

/* sum + dot products of the unsigned bytes of w with four activations. As assembly, because the
 * compilers load the broadcast into a register of its own, which twelve tokens do not leave. */
INLINE __m512i dot(__m512i sum, __m512i w, const int8_t *q)
{
    __asm__("vpdpbusd %2%{1to16%}, %1, %0"
            : "+v"(sum)
            : "v"(w), "m"(*(const int32_t(*)[1])(const void *)q));
    return sum;
}

INLINE __m512i first_sum(pack_kind kind, const int32_t *bias)
{
    return matmul_has_minimum(kind) ? _mm512_setzero_si512() : _mm512_set1_epi32(*bias);
}

/* What correct does, of unpacked weights and of two tokens at once: a token's sums are a chain, in which
 * each outlier waits for the one before. */
INLINE __m512 add_outlier(pack_kind kind, __m512 acc, const matmul_unpacked *unpacked,
                          const matmul_outlier *o)
{
    const matmul_unpacked *block = &unpacked[o->quad / 8];
    int half = matmul_has_halves(kind) ? (int)(o->quad / 4 % 2) : 0;
    __m512i sum = dot(first_sum(kind, &o->bias), load(block->quads[o->quad % 8], 0), o->q);
    return _mm512_fmadd_ps(
        _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_load_ps(block->scales[half])),
        _mm512_set1_ps(o->d), acc);
}

INLINE void correct_two(pack_kind kind, float (*sums)[PACK_ROWS], const matmul_unpacked *unpacked,
                        const matmul_list *one, const matmul_list *other)
{
    __m512 a = _mm512_load_ps(sums[0]), b = _mm512_load_ps(sums[1]);
    uint32_t both = one->count < other->count ? one->count : other->count, i = 0;
    for (; i < both; i++) {
        a = add_outlier(kind, a, unpacked, &one->items[i]);
        b = add_outlier(kind, b, unpacked, &other->items[i]);
    }
    for (uint32_t k = i; k < one->count; k++)
        a = add_outlier(kind, a, unpacked, &one->items[k]);
    for (uint32_t k = i; k < other->count; k++)
        b = add_outlier(kind, b, unpacked, &other->items[k]);
    _mm512_store_ps(sums[0], a);
    _mm512_store_ps(sums[1], b);
}

/* ---- activations ---------------------------------------------------------------------------- */

static float energy(const float *x, int32_t n)
{
    __m512 sum = _mm512_setzero_ps();
    for (int32_t i = 0; i < n; i += 16) {
        __m512 a = _mm512_loadu_ps(x + i);
        sum = _mm512_add_ps(sum, _mm512_mul_ps(a, a));
    }
    __m256 s8 = _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps(sum, 1));
    __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    s4 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_add_ss(s4, _mm_movehdup_ps(s4)));
}

INLINE float largest_float(__m512i m16)
{
    __m256i m8 = _mm256_max_epi32(_mm512_castsi512_si256(m16), _mm512_extracti64x4_epi64(m16, 1));
    __m128i m4 = _mm_max_epi32(_mm256_castsi256_si128(m8), _mm256_extracti128_si256(m8, 1));
    m4 = _mm_max_epi32(m4, _mm_shuffle_epi32(m4, 0x4E));
    m4 = _mm_max_epi32(m4, _mm_shuffle_epi32(m4, 0xB1));
    return _mm_cvtss_f32(_mm_castsi128_ps(m4));
}

/* As integers magnitudes are in the same order, with infinity and NaN above all numbers. */
static float magnitude(const float *x, int32_t n)
{
    const __m512i mask = _mm512_set1_epi32(0x7FFFFFFF);
    __m512i a = _mm512_setzero_si512(), b = a;
    for (int32_t i = 0; i < n; i += 32) {
        a = _mm512_max_epi32(a, _mm512_and_si512(_mm512_loadu_si512(x + i), mask));
        b = _mm512_max_epi32(b, _mm512_and_si512(_mm512_loadu_si512(x + i + 16), mask));
    }
    return largest_float(_mm512_max_epi32(a, b));
}

static float magnitude_below(const float *x, int32_t n, float most)
{
    const __m512i mask = _mm512_set1_epi32(0x7FFFFFFF);
    const __m512i limit = _mm512_castps_si512(_mm512_set1_ps(most));
    __m512i largest = _mm512_setzero_si512();
    for (int32_t i = 0; i < n; i += 16) {
        __m512i a = _mm512_and_si512(_mm512_loadu_si512(x + i), mask);
        __mmask16 below = _mm512_cmple_epi32_mask(a, limit);
        largest = _mm512_mask_max_epi32(largest, below, largest, a);
    }
    return largest_float(largest);
}

/* Moves what 255 is taken out of n into *high. */
INLINE __m512i take_high(__m512i *high, __m512i n)
{
    *high = _mm512_cvtps_epi32(
        _mm512_mul_ps(_mm512_cvtepi32_ps(n), _mm512_set1_ps(1.0f / MATMUL_HIGH)));
    return _mm512_sub_epi32(n, _mm512_mullo_epi32(*high, _mm512_set1_epi32(MATMUL_HIGH)));
}

INLINE uint32_t put_block(matmul_input *in, int32_t sums[2], int8_t high[32], const float *x,
                          float inverse)
{
    const __m512 f = _mm512_set1_ps(inverse);
    __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), f));
    __m512i b = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + 16), f));
    uint32_t quads = 0;
    __m512i most = _mm512_max_epi32(_mm512_abs_epi32(a), _mm512_abs_epi32(b));
    if (_mm512_cmpgt_epi32_mask(most, _mm512_set1_epi32(127))) {
        __m512i ha, hb;
        a = take_high(&ha, a);
        b = take_high(&hb, b);
        __m128i pa = _mm512_cvtepi32_epi8(ha), pb = _mm512_cvtepi32_epi8(hb);
        _mm_storeu_si128((__m128i *)(void *)high, pa);
        _mm_storeu_si128((__m128i *)(void *)(high + 16), pb);
        quads = _mm_test_epi32_mask(pa, pa) | (uint32_t)_mm_test_epi32_mask(pb, pb) << 4;
    }
    __m128i qa = _mm512_cvtepi32_epi8(a), qb = _mm512_cvtepi32_epi8(b);
    _mm_store_si128((__m128i *)in->q, qa);
    _mm_store_si128((__m128i *)(in->q + 16), qb);
    /* Sums of eight bytes at a time are of unsigned ones: 128 is added before and taken off after. */
    const __m128i offset = _mm_set1_epi8((char)0x80), zero = _mm_setzero_si128();
    __m128i sa = _mm_sad_epu8(_mm_xor_si128(qa, offset), zero);
    __m128i sb = _mm_sad_epu8(_mm_xor_si128(qb, offset), zero);
    sums[0] = _mm_cvtsi128_si32(_mm_add_epi32(sa, _mm_unpackhi_epi64(sa, sa))) - 2048;
    sums[1] = _mm_cvtsi128_si32(_mm_add_epi32(sb, _mm_unpackhi_epi64(sb, sb))) - 2048;
    in->bias = -128 * (sums[0] + sums[1]);
    in->half_bias[0] = -128 * sums[0];
    in->half_bias[1] = -128 * sums[1];
    return quads;
}

#include "compute/cpu/matmul_prepare.inl"
