/* compute/cpu/matmul_avx512.c: packed products with AVX-512 and VNNI.
 *
 * A vector holds sixteen rows. For each block the eight quads of weights are unpacked to unsigned
 * bytes one after the other and each is multiplied at once with up to twelve tokens, whose four
 * activations the dot-product instruction broadcasts from memory: twelve integer sums and twelve
 * float sums stay in registers, so a token's block costs eight dot products, one conversion and
 * two or three float operations, and unpacking is spread over the tokens. One token is bound by
 * memory; its loads run one panel ahead by software prefetch, since a panel of a narrow matrix is
 * too short for the hardware to find its pace.
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
    return _mm512_broadcast_i32x4(_mm_setr_epi8(1, 24, 45, 63, 79, 93, 106, 118, -127, -115, -103,
                                                -90, -75, -59, -39, -15));
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
        return _mm512_shuffle_epi8(list_values(kind),
                                   j < 4 ? _mm512_and_si512(load(v, j), bytes(15))
                                         : right(load(v, j - 4), 4, 15));
    case PACK_Q5_0:
    case PACK_Q5_1:
    case PACK_Q5_K:
        if (j < 5)
            return _mm512_and_si512(load(v, j), bytes(0xF8));
        if (j == 5)
            return select_bits(0xE0, _mm512_slli_epi16(load(v, 0), 5), left(load(v, 1), 2, 0x18));
        if (j == 6)
            return select_bits(0x80, _mm512_slli_epi16(load(v, 1), 7),
                               select_bits(0x70, _mm512_slli_epi16(load(v, 2), 4),
                                           left(load(v, 3), 1, 0x08)));
        return select_bits(0xC0, _mm512_slli_epi16(load(v, 3), 6), left(load(v, 4), 3, 0x38));
    case PACK_Q6_K:
        if (j < 6)
            return _mm512_and_si512(load(v, j), bytes(0xFC));
        v += j == 6 ? 0 : 192;
        return select_bits(0xC0, _mm512_slli_epi16(load(v, 0), 6),
                           select_bits(0x30, _mm512_slli_epi16(load(v, 1), 4),
                                       left(load(v, 2), 2, 0x0C)));
    case PACK_Q3_K:
        if (j < 3)
            return _mm512_and_si512(load(v, j), bytes(0xE0));
        if (j < 6)
            return left(load(v, j - 3), 3, 0xE0);
        if (j == 6)
            return select_bits(0xC0, _mm512_slli_epi16(load(v, 0), 6), left(load(v, 1), 4, 0x20));
        return select_bits(0x80, _mm512_slli_epi16(load(v, 1), 7), left(load(v, 2), 5, 0x60));
    case PACK_Q2_K:
        return right(load(v, j / 4), j % 4 * 2, 3);
    default: /* 8 bits */
        return load(v, j);
    }
}

/* What quad multiplies values with, inverted. */
INLINE float inverse_power(pack_kind kind)
{
    switch (kind) {
    case PACK_Q4_0:
        return 1.0f / 16;
    case PACK_Q5_0:
    case PACK_Q5_1:
    case PACK_Q5_K:
        return 1.0f / 8;
    case PACK_Q6_K:
        return 1.0f / 4;
    case PACK_Q3_K:
        return 1.0f / 32;
    default:
        return 1.0f;
    }
}

INLINE __m512 halves(const uint8_t *p)
{
    return _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)p));
}

INLINE __m512 unsigned_bytes(const uint8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *)p)));
}

INLINE __m512 signed_bytes(const uint8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128((const __m128i *)p)));
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

/* Scales and minimums of a block; [1] is the second half's. Minimums are to be subtracted if
 * matmul_minimum_is_negative. */
typedef struct scales {
    __m512 scale[2], minimum[2];
} scales;

INLINE scales load_scales(pack_kind kind, const uint8_t *p, int32_t block)
{
    scales s = {{_mm512_setzero_ps(), _mm512_setzero_ps()},
                {_mm512_setzero_ps(), _mm512_setzero_ps()}};
    size_t i = (size_t)block % 8 * 16; /* where byte scales of this block begin */
    __m512 d;
    switch (kind) {
    case PACK_MXFP4:
        s.scale[0] = exponent_scale(p);
        return s;
    case PACK_Q8_K:
        s.scale[0] = _mm512_load_ps((const float *)(const void *)p);
        return s;
    default:
        d = halves(p);
    }
    if (inverse_power(kind) != 1.0f)
        d = _mm512_mul_ps(d, _mm512_set1_ps(inverse_power(kind)));
    s.scale[0] = d;
    switch (kind) {
    case PACK_Q4_1:
    case PACK_Q5_1:
        s.minimum[0] = halves(p + 32);
        break;
    case PACK_Q4_K:
    case PACK_Q5_K:
        s.scale[0] = _mm512_mul_ps(d, unsigned_bytes(p + 64 + i));
        s.minimum[0] = _mm512_mul_ps(halves(p + 32), unsigned_bytes(p + 192 + i));
        break;
    case PACK_Q6_K:
    case PACK_Q3_K:
        s.scale[0] = _mm512_mul_ps(d, signed_bytes(p + 64 + 2 * i));
        s.scale[1] = _mm512_mul_ps(d, signed_bytes(p + 80 + 2 * i));
        break;
    case PACK_IQ4_XS:
        s.scale[0] = _mm512_mul_ps(d, signed_bytes(p + 64 + i));
        break;
    case PACK_Q2_K:
        for (int h = 0; h < 2; h++) {
            __m512i both = _mm512_cvtepu8_epi32(
                _mm_load_si128((const __m128i *)(p + 64 + 2 * i + 16 * (size_t)h)));
            __m512i low = _mm512_and_si512(both, _mm512_set1_epi32(15));
            s.scale[h] = _mm512_mul_ps(d, _mm512_cvtepi32_ps(low));
            s.minimum[h] = _mm512_mul_ps(halves(p + 32),
                                         _mm512_cvtepi32_ps(_mm512_srli_epi32(both, 4)));
        }
        break;
    default:
        break;
    }
    return s;
}

/* ---- the product ---------------------------------------------------------------------------- */

/* sum + dot products of the unsigned bytes of w with four activations. As assembly, because the
 * compilers load the broadcast into a register of its own, which twelve tokens do not leave. */
INLINE __m512i dot(__m512i sum, __m512i w, const int8_t *q)
{
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(w), "m"(*(const int32_t(*)[1])(const void *)q));
    return sum;
}

INLINE __m512i first_sum(pack_kind kind, const int32_t *bias)
{
    return matmul_has_minimum(kind) ? _mm512_setzero_si512() : _mm512_set1_epi32(*bias);
}

INLINE __m512 subtract_or_add(pack_kind kind, __m512 minimum, float sum, __m512 acc)
{
    if (matmul_minimum_is_negative(kind))
        return _mm512_fnmadd_ps(minimum, _mm512_set1_ps(sum), acc);
    return _mm512_fmadd_ps(minimum, _mm512_set1_ps(sum), acc);
}

/* Adds one block of T tokens to acc. in[t] is token t's. */
INLINE void add_block(pack_kind kind, int T, __m512 *acc, const uint8_t *v, scales s,
                      const matmul_input *in)
{
    __m512 y[12];
    if (!matmul_has_halves(kind)) {
        __m512i sum[12];
        UNROLL
        for (int t = 0; t < T; t++)
            sum[t] = first_sum(kind, &in[t].bias);
        UNROLL
        for (int j = 0; j < 8; j++) {
            __m512i w = quad(kind, v, j);
            UNROLL
            for (int t = 0; t < T; t++)
                sum[t] = dot(sum[t], w, in[t].q + 4 * j);
        }
        UNROLL
        for (int t = 0; t < T; t++) {
            y[t] = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[t]), s.scale[0]);
            acc[t] = _mm512_fmadd_ps(y[t], _mm512_set1_ps(in[t].d), acc[t]);
            if (matmul_has_minimum(kind))
                acc[t] = subtract_or_add(kind, s.minimum[0], in[t].sum, acc[t]);
        }
        return;
    }
    {
        __m512i sum[12];
        UNROLL
        for (int t = 0; t < T; t++)
            sum[t] = first_sum(kind, &in[t].half_bias[0]);
        UNROLL
        for (int j = 0; j < 4; j++) {
            __m512i w = quad(kind, v, j);
            UNROLL
            for (int t = 0; t < T; t++)
                sum[t] = dot(sum[t], w, in[t].q + 4 * j);
        }
        UNROLL
        for (int t = 0; t < T; t++)
            y[t] = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[t]), s.scale[0]);
    }
    __m512i w[4];
    UNROLL
    for (int j = 0; j < 4; j++)
        w[j] = quad(kind, v, 4 + j);
    /* Token by token, as sums of all would not fit the registers beside y. */
    UNROLL
    for (int t = 0; t < T; t++) {
        __m512i sum = first_sum(kind, &in[t].half_bias[1]);
        UNROLL
        for (int j = 0; j < 4; j++)
            sum = dot(sum, w[j], in[t].q + 16 + 4 * j);
        y[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), s.scale[1], y[t]);
        acc[t] = _mm512_fmadd_ps(y[t], _mm512_set1_ps(in[t].d), acc[t]);
        if (matmul_has_minimum(kind)) {
            acc[t] = subtract_or_add(kind, s.minimum[0], in[t].half_sum[0], acc[t]);
            acc[t] = subtract_or_add(kind, s.minimum[1], in[t].half_sum[1], acc[t]);
        }
    }
}

INLINE void tile(pack_kind kind, int T, float (*sums)[PACK_ROWS], const uint8_t *panel,
                 size_t panel_bytes, int32_t n_blocks, const matmul_input *in, size_t stride)
{
    /* A panel ahead, so that nothing is left out between one panel's end and the next one's
     * values; no farther than the first-level cache can hold. */
    size_t ahead = panel_bytes < 8192 ? panel_bytes : 6144;
    __m512 acc[12];
    UNROLL
    for (int t = 0; t < T; t++)
        acc[t] = _mm512_setzero_ps();
    for (int32_t b = 0; b < n_blocks; b++, in += stride) {
        const uint8_t *p = matmul_scales_at(kind, panel, b), *v = matmul_values_at(kind, panel, n_blocks, b);
        UNROLL
        for (int line = 0; line < matmul_value_bytes(kind); line += 64)
            _mm_prefetch((const char *)v + ahead + line, _MM_HINT_T0);
        _mm_prefetch((const char *)p + ahead, _MM_HINT_T0);
        add_block(kind, T, acc, v, load_scales(kind, p, b), in);
    }
    UNROLL
    for (int t = 0; t < T; t++)
        _mm512_store_ps(sums[t], acc[t]);
}

INLINE void correct(pack_kind kind, int T, float (*sums)[PACK_ROWS], const uint8_t *panel,
                    int32_t n_blocks, const uint32_t *list, const matmul_input *in)
{
    __m512 acc[MATMUL_GROUP], old[MATMUL_GROUP];
    UNROLL
    for (int t = 0; t < T; t++)
        acc[t] = _mm512_load_ps(sums[t]);
    for (uint32_t i = 0; i < list[0]; i++, in += T) {
        int32_t b = (int32_t)(list[1 + i] & ((1u << MATMUL_INDEX_BITS) - 1));
        UNROLL
        for (int t = 0; t < T; t++)
            old[t] = acc[t];
        add_block(kind, T, acc, matmul_values_at(kind, panel, n_blocks, b),
                  load_scales(kind, matmul_scales_at(kind, panel, b), b), in);
        /* Adding zero is not always nothing (-0, infinite weights): a token whose block needs no
         * correction keeps its bits whatever its neighbours need. */
        UNROLL
        for (int t = 0; t < T; t++) {
            __mmask16 wanted = (__mmask16)-(int)(list[1 + i] >> (MATMUL_INDEX_BITS + t) & 1);
            acc[t] = _mm512_mask_mov_ps(old[t], wanted, acc[t]);
        }
    }
    UNROLL
    for (int t = 0; t < T; t++)
        _mm512_store_ps(sums[t], acc[t]);
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

/* Writes the integers a, b (sixteen each) with scale d. */
INLINE void put_block(matmul_input *in, __m512i a, __m512i b, float d)
{
    int32_t first = _mm512_reduce_add_epi32(a), second = _mm512_reduce_add_epi32(b);
    _mm_store_si128((__m128i *)in->q, _mm512_cvtepi32_epi8(a));
    _mm_store_si128((__m128i *)(in->q + 16), _mm512_cvtepi32_epi8(b));
    in->d = d;
    in->sum = d * (float)(first + second);
    in->bias = -128 * (first + second);
    in->half_bias[0] = -128 * first;
    in->half_bias[1] = -128 * second;
    in->half_sum[0] = d * (float)first;
    in->half_sum[1] = d * (float)second;
    in->unused = 0;
}

static int prepare_block(matmul_input *in, matmul_input *correction, const float *x,
                         float threshold)
{
    __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
    __m512 abs_a = _mm512_abs_ps(a), abs_b = _mm512_abs_ps(b);
    const __m512 finite = _mm512_set1_ps(__FLT_MAX__);
    if (_mm512_cmp_ps_mask(abs_a, finite, _CMP_NLE_UQ) |
        _mm512_cmp_ps_mask(abs_b, finite, _CMP_NLE_UQ)) {
        put_block(in, _mm512_setzero_si512(), _mm512_setzero_si512(), __builtin_nanf(""));
        return 0;
    }
    float largest = _mm512_reduce_max_ps(_mm512_max_ps(abs_a, abs_b));
    if (largest < 0x1p-100f) {
        put_block(in, _mm512_setzero_si512(), _mm512_setzero_si512(), 0);
        return 0;
    }
    float d = largest / 127, inverse = 127 / largest;
    __m512i qa = _mm512_cvtps_epi32(_mm512_mul_ps(a, _mm512_set1_ps(inverse)));
    __m512i qb = _mm512_cvtps_epi32(_mm512_mul_ps(b, _mm512_set1_ps(inverse)));
    put_block(in, qa, qb, d);
    if (!(largest > threshold))
        return 0;
    a = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(qa), _mm512_set1_ps(d), a);
    b = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(qb), _mm512_set1_ps(d), b);
    inverse = 254 / d;
    put_block(correction, _mm512_cvtps_epi32(_mm512_mul_ps(a, _mm512_set1_ps(inverse))),
              _mm512_cvtps_epi32(_mm512_mul_ps(b, _mm512_set1_ps(inverse))), d / 254);
    return 1;
}

#include "compute/cpu/matmul_prepare.inl"

/* ---- one function for each type and number of tokens ---------------------------------------- */

#define WIDTHS(X, kind)                                                                            \
    X(kind, 1) X(kind, 2) X(kind, 3) X(kind, 4) X(kind, 6) X(kind, 8) X(kind, 12)
#define TILE(kind, T)                                                                              \
    static void tile_##kind##_##T(float (*sums)[PACK_ROWS], const uint8_t *panel,                  \
                                  size_t panel_bytes, int32_t n_blocks, const matmul_input *input, \
                                  size_t stride)                                                   \
    {                                                                                              \
        tile(PACK_##kind, T, sums, panel, panel_bytes, n_blocks, input, stride);                   \
    }
#define CORRECT(kind, T)                                                                           \
    static void correct_##kind##_##T(float (*sums)[PACK_ROWS], const uint8_t *panel,               \
                                     int32_t n_blocks, const uint32_t *list,                       \
                                     const matmul_input *input)                                    \
    {                                                                                              \
        correct(PACK_##kind, T, sums, panel, n_blocks, list, input);                               \
    }
MATMUL_ISA(avx512)
