/* compute/cpu/matmul_avx512.c: packed products with AVX-512 and VNNI.
 *
 * A vector holds sixteen rows. For each block the eight quads of weights are unpacked to unsigned
 * bytes one after the other and each is multiplied at once with up to twelve tokens, whose four
 * activations the dot-product instruction broadcasts from memory: twelve integer sums and twelve
 * float sums stay in registers, so a token's block costs eight dot products, one conversion and
 * two or three float operations, and unpacking is spread over the tokens. One token is bound by
 * memory; its loads run panels ahead by software prefetch, since a panel of a narrow matrix is
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

INLINE __m512i nibbles(const uint8_t *p, int shift)
{
    __m512i both = _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *)p));
    return _mm512_and_si512(_mm512_srli_epi32(both, (unsigned)shift), _mm512_set1_epi32(15));
}

/* The scale of a block (of its half, for types that have two), over what quad multiplies with. p is
 * where its scales are. */
INLINE __m512 load_scale(pack_kind kind, const uint8_t *p, int32_t block, int half)
{
    if (kind == PACK_MXFP4)
        return exponent_scale(p);
    if (kind == PACK_Q8_K)
        return _mm512_load_ps((const float *)(const void *)p);
    __m512 d = halves(p);
    if (inverse_power(kind) != 1.0f)
        d = _mm512_mul_ps(d, _mm512_set1_ps(inverse_power(kind)));
    const uint8_t *eighth = p + 64 + 16 * (block % 8),
                  *sixteenth = p + 64 + 32 * (block % 8) + 16 * half;
    switch (kind) {
    case PACK_Q4_K:
    case PACK_Q5_K: return _mm512_mul_ps(d, unsigned_bytes(eighth));
    case PACK_IQ4_XS: return _mm512_mul_ps(d, signed_bytes(eighth));
    case PACK_Q6_K:
    case PACK_Q3_K: return _mm512_mul_ps(d, signed_bytes(sixteenth));
    case PACK_Q2_K: return _mm512_mul_ps(d, _mm512_cvtepi32_ps(nibbles(sixteenth, 0)));
    default: return d;
    }
}

/* Likewise the minimum, of types that have one; to be subtracted if matmul_minimum_is_negative. */
INLINE __m512 load_minimum(pack_kind kind, const uint8_t *p, int32_t block, int half)
{
    if (!matmul_has_minimum(kind))
        return _mm512_setzero_ps();
    __m512 m = halves(p + 32);
    switch (kind) {
    case PACK_Q4_K:
    case PACK_Q5_K: return _mm512_mul_ps(m, unsigned_bytes(p + 192 + 16 * (block % 8)));
    case PACK_Q2_K:
        return _mm512_mul_ps(m,
                             _mm512_cvtepi32_ps(nibbles(p + 64 + 32 * (block % 8) + 16 * half, 4)));
    default: return m;
    }
}

/* ---- the product ---------------------------------------------------------------------------- */

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

INLINE __m512 subtract_or_add(pack_kind kind, __m512 minimum, float sum, __m512 acc)
{
    if (matmul_minimum_is_negative(kind))
        return _mm512_fnmadd_ps(minimum, _mm512_set1_ps(sum), acc);
    return _mm512_fmadd_ps(minimum, _mm512_set1_ps(sum), acc);
}

/* Adds one block of T tokens to acc. v and p are where its values and scales are; in[t] is token
 * t's. */
INLINE void add_block(pack_kind kind, int T, __m512 *acc, const uint8_t *v, const uint8_t *p,
                      int32_t block, const matmul_input *in)
{
    __m512 y[12];
    __m512 scale0 = load_scale(kind, p, block, 0), minimum0 = load_minimum(kind, p, block, 0);
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
            y[t] = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[t]), scale0);
            acc[t] = _mm512_fmadd_ps(y[t], _mm512_set1_ps(in[t].d), acc[t]);
            if (matmul_has_minimum(kind))
                acc[t] = subtract_or_add(kind, minimum0, in[t].sum, acc[t]);
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
            y[t] = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[t]), scale0);
    }
    __m512 scale1 = load_scale(kind, p, block, 1), minimum1 = load_minimum(kind, p, block, 1);
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
        y[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale1, y[t]);
        acc[t] = _mm512_fmadd_ps(y[t], _mm512_set1_ps(in[t].d), acc[t]);
        if (matmul_has_minimum(kind)) {
            acc[t] = subtract_or_add(kind, minimum0, in[t].half_sum[0], acc[t]);
            acc[t] = subtract_or_add(kind, minimum1, in[t].half_sum[1], acc[t]);
        }
    }
}

INLINE void tile(pack_kind kind, int T, float (*sums)[PACK_ROWS], const uint8_t *panel,
                 size_t panel_bytes, int32_t n_blocks, const matmul_input *in, size_t stride)
{
    /* Whole panels ahead, so that nothing is left out between one panel's end and the next one's
     * values. Into the second-level cache: a core waits for at most two dozen lines of its first
     * level, which at this latency is less than memory can give. */
    size_t ahead = panel_bytes < 16384 ? 2 * panel_bytes : 16384;
    __m512 acc[12];
    UNROLL
    for (int t = 0; t < T; t++)
        acc[t] = _mm512_setzero_ps();
    for (int32_t b = 0; b < n_blocks; b++, in += stride) {
        const uint8_t *p = matmul_scales_at(kind, panel, b),
                      *v = matmul_values_at(kind, panel, n_blocks, b);
        UNROLL
        for (int line = 0; line < matmul_value_bytes(kind); line += 64)
            _mm_prefetch((const char *)v + ahead + line, _MM_HINT_T1);
        _mm_prefetch((const char *)p + ahead, _MM_HINT_T1);
        add_block(kind, T, acc, v, p, b, in);
    }
    UNROLL
    for (int t = 0; t < T; t++)
        _mm512_store_ps(sums[t], acc[t]);
}

/* As quad, j not constant: what takes shifts alone has no branch. */
INLINE __m512i quad_at(pack_kind kind, const uint8_t *v, uint32_t j)
{
    __m512i both = load(v, (int)(j % 4));
    switch (kind) {
    case PACK_Q4_0:
        return _mm512_and_si512(_mm512_sll_epi16(both, _mm_cvtsi32_si128((int)(~j & 4))),
                                bytes(0xF0));
    case PACK_Q4_1:
    case PACK_Q4_K:
        return _mm512_and_si512(_mm512_srl_epi16(both, _mm_cvtsi32_si128((int)(j & 4))), bytes(15));
    case PACK_Q8_0:
    case PACK_Q8_1:
    case PACK_Q8_K: return load(v, (int)j);
    default: break;
    }
    switch (j) {
    case 0: return quad(kind, v, 0);
    case 1: return quad(kind, v, 1);
    case 2: return quad(kind, v, 2);
    case 3: return quad(kind, v, 3);
    case 4: return quad(kind, v, 4);
    case 5: return quad(kind, v, 5);
    case 6: return quad(kind, v, 6);
    default: return quad(kind, v, 7);
    }
}

INLINE void correct(pack_kind kind, float *sums, const uint8_t *panel, int32_t n_blocks,
                    const matmul_list *list)
{
    __m512 acc = _mm512_load_ps(sums);
    for (uint32_t i = 0; i < list->count; i++) {
        const matmul_outlier *o = &list->items[i];
        int32_t b = (int32_t)(o->quad / 8);
        __m512 scale = load_scale(kind, matmul_scales_at(kind, panel, b), b,
                                  (int)(o->quad & 4) / 4);
        __m512i w = quad_at(kind, matmul_values_at(kind, panel, n_blocks, b), o->quad % 8);
        __m512i sum = dot(first_sum(kind, &o->bias), w, o->q);
        acc = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale), _mm512_set1_ps(o->d),
                              acc);
    }
    _mm512_store_ps(sums, acc);
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
    __m128i qa = _mm512_cvtepi32_epi8(a), qb = _mm512_cvtepi32_epi8(b);
    _mm_store_si128((__m128i *)in->q, qa);
    _mm_store_si128((__m128i *)(in->q + 16), qb);
    /* Sums of eight bytes at a time are of unsigned ones: 128 is added before and taken off after. */
    const __m128i offset = _mm_set1_epi8((char)0x80), zero = _mm_setzero_si128();
    __m128i sa = _mm_sad_epu8(_mm_xor_si128(qa, offset), zero);
    __m128i sb = _mm_sad_epu8(_mm_xor_si128(qb, offset), zero);
    /* The two sums as 64-bit lanes, both plus 2048. */
    __m128i s = _mm_add_epi64(_mm_unpacklo_epi64(sa, sb), _mm_unpackhi_epi64(sa, sb));
    s = _mm_sub_epi32(s, _mm_setr_epi32(2048, 0, 2048, 0));
    __m128i total = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4E));
    /* first, total, second, 0 */
    s = _mm_or_si128(s, _mm_slli_epi64(_mm_move_epi64(total), 32));
    /* d .. unused in the order of the struct: the integer 1 becomes d. */
    __m256i all = _mm256_permutevar8x32_epi32(_mm256_setr_m128i(s, _mm_setr_epi32(1, 0, 0, 0)),
                                              _mm256_setr_epi32(4, 1, 1, 0, 2, 0, 2, 3));
    __m256 floats = _mm256_mul_ps(_mm256_cvtepi32_ps(all), _mm256_set1_ps(d));
    __m256i biases = _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_slli_epi32(all, 7));
    _mm256_store_si256((__m256i *)(void *)&in->d,
                       _mm256_blend_epi32(_mm256_castps_si256(floats), biases, 0x1C));
}

_Static_assert(offsetof(matmul_input, d) == 32 && offsetof(matmul_input, bias) == 40 &&
                   offsetof(matmul_input, half_sum) == 52,
               "what put_block writes at once");

INLINE float magnitude(const float *x)
{
    /* As integers magnitudes are in the same order, with infinity and NaN above all numbers. */
    const __m512i mask = _mm512_set1_epi32(0x7FFFFFFF);
    __m512i m16 = _mm512_max_epi32(_mm512_and_si512(_mm512_loadu_si512(x), mask),
                                   _mm512_and_si512(_mm512_loadu_si512(x + 16), mask));
    __m256i m8 = _mm256_max_epi32(_mm512_castsi512_si256(m16), _mm512_extracti64x4_epi64(m16, 1));
    __m128i m4 = _mm_max_epi32(_mm256_castsi256_si128(m8), _mm256_extracti128_si256(m8, 1));
    m4 = _mm_max_epi32(m4, _mm_shuffle_epi32(m4, 0x4E));
    m4 = _mm_max_epi32(m4, _mm_shuffle_epi32(m4, 0xB1));
    return _mm_cvtss_f32(_mm_castsi128_ps(m4));
}

INLINE void quantize_block(matmul_input *in, const float *x, float largest)
{
    if (!(largest >= 0x1p-100f && largest <= __FLT_MAX__)) {
        put_block(in, _mm512_setzero_si512(), _mm512_setzero_si512(),
                  largest < 0x1p-100f ? 0 : __builtin_nanf(""));
        return;
    }
    const __m512 inverse = _mm512_set1_ps(127 / largest);
    put_block(in, _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), inverse)),
              _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + 16), inverse)),
              largest * (1.0f / 127));
}

#include "compute/cpu/matmul_prepare.inl"

/* ---- one function for each type and number of tokens ---------------------------------------- */

#define WIDTHS(X, kind)                                                                            \
    X(kind, 1) X(kind, 2) X(kind, 3) X(kind, 4) X(kind, 6) X(kind, 8) X(kind, 12)
#define TILE(kind, T)                                                                              \
    static void tile_##kind##_##T(float(*sums)[PACK_ROWS], const uint8_t *panel,                   \
                                  size_t panel_bytes, int32_t n_blocks, const matmul_input *input, \
                                  size_t stride)                                                   \
    {                                                                                              \
        tile(PACK_##kind, T, sums, panel, panel_bytes, n_blocks, input, stride);                   \
    }
#define CORRECT(kind)                                                                              \
    static void correct_##kind(float *sums, const uint8_t *panel, int32_t n_blocks,                \
                               const matmul_list *list)                                            \
    {                                                                                              \
        correct(PACK_##kind, sums, panel, n_blocks, list);                                         \
    }
MATMUL_ISA(avx512)
