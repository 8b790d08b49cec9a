/* compute/cpu/matmul_avx2.c: packed products with AVX2 and FMA.
 *
 * A vector holds eight rows, half a panel. Bytes are multiplied by vpmaddubsw, which adds pairs in
 * 16 bits with saturation; that never happens here: values of up to six bits stay unsigned and
 * small (63 * 127 * 2 = 16002, and as many products are added in 16 bits as fit), signed bytes are
 * multiplied as |w| * sign(w) x (128 * 127 * 2 = 32512). The integers are then exact, as with
 * every other instruction set.
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

/* How a type's values come out of quad: unsigned with so many bits, or as signed bytes. */
INLINE int value_bits(pack_kind kind)
{
    switch (kind) {
    case PACK_Q4_0:
    case PACK_Q4_1:
    case PACK_Q4_K: return 4;
    case PACK_Q5_0:
    case PACK_Q5_1:
    case PACK_Q5_K: return 5;
    case PACK_Q6_K: return 6;
    case PACK_Q3_K: return 3;
    case PACK_Q2_K: return 2;
    default: return 8;
    }
}

INLINE __m256i bytes(int value)
{
    return _mm256_set1_epi8((char)value);
}

INLINE __m256i load(const uint8_t *p, int vector)
{
    return _mm256_load_si256((const __m256i *)(p + 64 * vector));
}

/* (a shifted left by n) & mask, bytewise: mask clears what comes over from the next byte. */
INLINE __m256i left(__m256i a, int n, int mask)
{
    return _mm256_and_si256(_mm256_slli_epi16(a, n), bytes(mask));
}

INLINE __m256i right(__m256i a, int n, int mask)
{
    return _mm256_and_si256(_mm256_srli_epi16(a, n), bytes(mask));
}

INLINE __m256i either(__m256i a, __m256i b)
{
    return _mm256_or_si256(a, b);
}

/* As in ggml's kvalues_iq4nl and, doubled, the E2M1 numbers of OCP's MX specification. */
INLINE __m256i list_values(pack_kind kind)
{
    if (kind == PACK_MXFP4)
        return _mm256_broadcastsi128_si256(
            _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12));
    return _mm256_broadcastsi128_si256(
        _mm_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113));
}

/* Quad j of half a panel. v is the half's first row. */
INLINE __m256i quad(pack_kind kind, const uint8_t *v, int j)
{
    switch (kind) {
    case PACK_Q4_0:
    case PACK_Q4_1:
    case PACK_Q4_K: return j < 4 ? right(load(v, j), 0, 15) : right(load(v, j - 4), 4, 15);
    case PACK_IQ4_NL:
    case PACK_IQ4_XS:
    case PACK_MXFP4:
        return _mm256_shuffle_epi8(list_values(kind),
                                   j < 4 ? right(load(v, j), 0, 15) : right(load(v, j - 4), 4, 15));
    case PACK_Q5_0:
    case PACK_Q5_1:
    case PACK_Q5_K:
        if (j < 5)
            return right(load(v, j), 3, 31);
        if (j == 5)
            return either(left(load(v, 0), 2, 0x1C), right(load(v, 1), 1, 3));
        if (j == 6)
            return either(either(left(load(v, 1), 4, 0x10), left(load(v, 2), 1, 0x0E)),
                          right(load(v, 3), 2, 1));
        return either(left(load(v, 3), 3, 0x18), right(load(v, 4), 0, 7));
    case PACK_Q6_K:
        if (j < 6)
            return right(load(v, j), 2, 63);
        v += j == 6 ? 0 : 192;
        return either(either(left(load(v, 0), 4, 0x30), left(load(v, 1), 2, 0x0C)),
                      right(load(v, 2), 0, 3));
    case PACK_Q3_K:
        if (j < 6)
            return j < 3 ? right(load(v, j), 5, 7) : right(load(v, j - 3), 2, 7);
        if (j == 6)
            return either(left(load(v, 0), 1, 6), right(load(v, 1), 1, 1));
        return either(left(load(v, 1), 2, 4), right(load(v, 2), 0, 3));
    case PACK_Q2_K: return right(load(v, j / 4), j % 4 * 2, 3);
    default: /* 8 bits */ return _mm256_xor_si256(load(v, j), bytes(0x80));
    }
}

INLINE __m256 halves(const uint8_t *p)
{
    return _mm256_cvtph_ps(_mm_load_si128((const __m128i *)p));
}

INLINE __m256i unsigned_bytes(const uint8_t *p)
{
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
}

INLINE __m256 signed_bytes(const uint8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}

/* Powers of two from biased exponents, halved (the values are doubled). */
INLINE __m256 exponent_scale(const uint8_t *p)
{
    __m256i e = unsigned_bytes(p);
    __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
    __m256i tiny = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
    __m256i is_tiny = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e);
    return _mm256_castsi256_ps(_mm256_blendv_epi8(normal, tiny, is_tiny));
}

/* Scales and minimums of a block; [1] is the second half's. Minimums are to be subtracted if
 * minimum_is_negative. */
typedef struct scales {
    __m256 scale[2], minimum[2];
} scales;

/* p is the block's scales; half is 0 or 1: rows 0..7 or 8..15. */
INLINE scales load_scales(pack_kind kind, const uint8_t *p, int32_t block, int half)
{
    scales s = {{_mm256_setzero_ps(), _mm256_setzero_ps()},
                {_mm256_setzero_ps(), _mm256_setzero_ps()}};
    size_t h = (size_t)half;
    const uint8_t *small = p + 64 + 8 * h, *first = small + (size_t)block % 8 * 16;
    const uint8_t *second = small + (size_t)block % 8 * 32; /* of types with halves */
    switch (kind) {
    case PACK_MXFP4: s.scale[0] = exponent_scale(p + 8 * h); return s;
    case PACK_Q8_K:
        s.scale[0] = _mm256_load_ps((const float *)(const void *)(p + 32 * h));
        return s;
    default: break;
    }
    __m256 d = halves(p + 16 * h);
    s.scale[0] = d;
    switch (kind) {
    case PACK_Q4_1:
    case PACK_Q5_1: s.minimum[0] = halves(p + 32 + 16 * h); break;
    case PACK_Q4_K:
    case PACK_Q5_K:
        s.scale[0] = _mm256_mul_ps(d, _mm256_cvtepi32_ps(unsigned_bytes(first)));
        s.minimum[0] = _mm256_mul_ps(halves(p + 32 + 16 * h),
                                     _mm256_cvtepi32_ps(unsigned_bytes(first + 128)));
        break;
    case PACK_Q6_K:
    case PACK_Q3_K:
        s.scale[0] = _mm256_mul_ps(d, signed_bytes(second));
        s.scale[1] = _mm256_mul_ps(d, signed_bytes(second + 16));
        break;
    case PACK_IQ4_XS: s.scale[0] = _mm256_mul_ps(d, signed_bytes(first)); break;
    case PACK_Q2_K:
        for (int i = 0; i < 2; i++) {
            __m256i both = unsigned_bytes(second + 16 * i);
            __m256i low = _mm256_and_si256(both, _mm256_set1_epi32(15));
            s.scale[i] = _mm256_mul_ps(d, _mm256_cvtepi32_ps(low));
            s.minimum[i] = _mm256_mul_ps(halves(p + 32 + 16 * h),
                                         _mm256_cvtepi32_ps(_mm256_srli_epi32(both, 4)));
        }
        break;
    default: break;
    }
    return s;
}

/* ---- the product ---------------------------------------------------------------------------- */

/* Sums of pairs, in 16 bits, of the products of w with four activations. */
INLINE __m256i pairs(pack_kind kind, __m256i w, const int8_t *q)
{
    __m256i x = _mm256_set1_epi32(*(const int32_t *)(const void *)q);
    if (value_bits(kind) < 8)
        return _mm256_maddubs_epi16(w, x);
    return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
}

/* How many results of pairs can be added in 16 bits. */
INLINE int pairs_that_fit(pack_kind kind)
{
    return value_bits(kind) <= 4 ? 8 : value_bits(kind) == 5 ? 4 : value_bits(kind) == 6 ? 2 : 1;
}

/* What the sums begin with: the offset of signed types that quad leaves unsigned. */
INLINE __m256i first_sum(pack_kind kind, int32_t bias)
{
    switch (kind) {
    case PACK_Q4_0: return _mm256_set1_epi32(bias / 16);
    case PACK_Q5_0: return _mm256_set1_epi32(bias / 8);
    case PACK_Q6_K: return _mm256_set1_epi32(bias / 4);
    case PACK_Q3_K: return _mm256_set1_epi32(bias / 32);
    default: return _mm256_setzero_si256();
    }
}

/* sum[t] += the products of quads first .. first+count-1 with T tokens. */
INLINE void dots(pack_kind kind, int T, __m256i *sum, const uint8_t *v, const matmul_input *in,
                 int first, int count)
{
    int fit = pairs_that_fit(kind);
    __m256i small[4];
    UNROLL
    for (int j = first; j < first + count; j++) {
        __m256i w = quad(kind, v, j);
        UNROLL
        for (int t = 0; t < T; t++) {
            __m256i p = pairs(kind, w, in[t].q + 4 * j);
            small[t] = (j - first) % fit == 0 ? p : _mm256_add_epi16(small[t], p);
            if ((j - first) % fit == fit - 1 || j == first + count - 1)
                sum[t] = _mm256_add_epi32(sum[t],
                                          _mm256_madd_epi16(small[t], _mm256_set1_epi16(1)));
        }
    }
}

INLINE __m256 subtract_or_add(pack_kind kind, __m256 minimum, float sum, __m256 acc)
{
    if (matmul_minimum_is_negative(kind))
        return _mm256_fnmadd_ps(minimum, _mm256_set1_ps(sum), acc);
    return _mm256_fmadd_ps(minimum, _mm256_set1_ps(sum), acc);
}

/* Adds one block of T <= 4 tokens to acc, for eight rows. */
INLINE void add_block(pack_kind kind, int T, __m256 *acc, const uint8_t *v, scales s,
                      const matmul_input *in)
{
    __m256i sum[4];
    __m256 y[4];
    int both = matmul_has_halves(kind);
    UNROLL
    for (int t = 0; t < T; t++)
        sum[t] = first_sum(kind, both ? in[t].half_bias[0] : in[t].bias);
    dots(kind, T, sum, v, in, 0, both ? 4 : 8);
    UNROLL
    for (int t = 0; t < T; t++)
        y[t] = _mm256_mul_ps(_mm256_cvtepi32_ps(sum[t]), s.scale[0]);
    if (both) {
        UNROLL
        for (int t = 0; t < T; t++)
            sum[t] = first_sum(kind, in[t].half_bias[1]);
        dots(kind, T, sum, v, in, 4, 4);
        UNROLL
        for (int t = 0; t < T; t++)
            y[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[t]), s.scale[1], y[t]);
    }
    UNROLL
    for (int t = 0; t < T; t++) {
        acc[t] = _mm256_fmadd_ps(y[t], _mm256_set1_ps(in[t].d), acc[t]);
        if (!matmul_has_minimum(kind))
            continue;
        acc[t] = subtract_or_add(kind, s.minimum[0], both ? in[t].half_sum[0] : in[t].sum, acc[t]);
        if (both)
            acc[t] = subtract_or_add(kind, s.minimum[1], in[t].half_sum[1], acc[t]);
    }
}

/* H halves of the panel from half on, in one go: both for one or two tokens, so that memory is read
 * in one stream; one after the other for more, whose sums fill the registers. */
INLINE void tile_halves(pack_kind kind, int T, int H, int half, float (*sums)[PACK_ROWS],
                        const uint8_t *panel, size_t panel_bytes, int32_t n_blocks,
                        const matmul_input *in, size_t stride)
{
    size_t ahead = panel_bytes < 16384 ? 2 * panel_bytes : 16384;
    __m256 acc[2][4];
    UNROLL
    for (int h = 0; h < H; h++) {
        UNROLL
        for (int t = 0; t < T; t++)
            acc[h][t] = _mm256_setzero_ps();
    }
    for (int32_t b = 0; b < n_blocks; b++, in += stride) {
        const uint8_t *p = matmul_scales_at(kind, panel, b);
        const uint8_t *v = matmul_values_at(kind, panel, n_blocks, b);
        if (half == 0) {
            UNROLL
            for (int line = 0; line < matmul_value_bytes(kind); line += 64)
                _mm_prefetch((const char *)v + ahead + line, _MM_HINT_T1);
            _mm_prefetch((const char *)p + ahead, _MM_HINT_T1);
        }
        UNROLL
        for (int h = 0; h < H; h++)
            add_block(kind, T, acc[h], v + 32 * (half + h), load_scales(kind, p, b, half + h), in);
    }
    UNROLL
    for (int h = 0; h < H; h++) {
        UNROLL
        for (int t = 0; t < T; t++)
            _mm256_store_ps(sums[t] + 8 * (half + h), acc[h][t]);
    }
}

INLINE void tile(pack_kind kind, int T, float (*sums)[PACK_ROWS], const uint8_t *panel,
                 size_t panel_bytes, int32_t n_blocks, const matmul_input *in, size_t stride)
{
    if (T <= 2) {
        tile_halves(kind, T, 2, 0, sums, panel, panel_bytes, n_blocks, in, stride);
        return;
    }
    tile_halves(kind, T, 1, 0, sums, panel, panel_bytes, n_blocks, in, stride);
    tile_halves(kind, T, 1, 1, sums, panel, panel_bytes, n_blocks, in, stride);
}

/* As quad, j not constant: what takes shifts alone has no branch. */
INLINE __m256i quad_at(pack_kind kind, const uint8_t *v, uint32_t j)
{
    if (value_bits(kind) == 4) {
        __m256i both = load(v, (int)(j % 4));
        return _mm256_and_si256(_mm256_srl_epi16(both, _mm_cvtsi32_si128((int)(j & 4))), bytes(15));
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
    for (int half = 0; half < 2; half++) {
        __m256 acc = _mm256_load_ps(sums + 8 * half);
        for (uint32_t i = 0; i < list->count; i++) {
            const matmul_outlier *o = &list->items[i];
            int32_t b = (int32_t)(o->quad / 8);
            scales s = load_scales(kind, matmul_scales_at(kind, panel, b), b, half);
            __m256i w = quad_at(kind, matmul_values_at(kind, panel, n_blocks, b) + 32 * half,
                                o->quad % 8);
            __m256i sum = _mm256_add_epi32(
                first_sum(kind, o->bias),
                _mm256_madd_epi16(pairs(kind, w, o->q), _mm256_set1_epi16(1)));
            __m256 scale = s.scale[matmul_has_halves(kind) && o->quad & 4 ? 1 : 0];
            acc = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sum), scale),
                                  _mm256_set1_ps(o->d), acc);
        }
        _mm256_store_ps(sums + 8 * half, acc);
    }
}

/* ---- activations ---------------------------------------------------------------------------- */

static float energy(const float *x, int32_t n)
{
    __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps();
    for (int32_t i = 0; i < n; i += 16) {
        __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + 8);
        low = _mm256_add_ps(low, _mm256_mul_ps(a, a));
        high = _mm256_add_ps(high, _mm256_mul_ps(b, b));
    }
    low = _mm256_add_ps(low, high);
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(low), _mm256_extractf128_ps(low, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

INLINE int32_t add_all(__m256i a)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xB1)));
}

/* Writes the integers q (eight each) with scale d. */
INLINE void put_block(matmul_input *in, const __m256i q[4], float d)
{
    int32_t first = add_all(_mm256_add_epi32(q[0], q[1]));
    int32_t second = add_all(_mm256_add_epi32(q[2], q[3]));
    __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]),
                                        _mm256_packs_epi32(q[2], q[3]));
    /* packs works in each half alone: put the fours back in order. */
    packed = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_store_si256((__m256i *)in->q, packed);
    in->d = d;
    in->sum = d * (float)(first + second);
    in->bias = -128 * (first + second);
    in->half_bias[0] = -128 * first;
    in->half_bias[1] = -128 * second;
    in->half_sum[0] = d * (float)first;
    in->half_sum[1] = d * (float)second;
    in->unused = 0;
}

INLINE float magnitude(const float *x)
{
    /* As integers magnitudes are in the same order, with infinity and NaN above all numbers. */
    const __m256i mask = _mm256_set1_epi32(0x7FFFFFFF);
    __m256i m8 = _mm256_setzero_si256();
    for (int i = 0; i < 4; i++) {
        __m256i a = _mm256_loadu_si256((const __m256i *)(const void *)(x + 8 * i));
        m8 = _mm256_max_epi32(m8, _mm256_and_si256(a, mask));
    }
    __m128i m4 = _mm_max_epi32(_mm256_castsi256_si128(m8), _mm256_extracti128_si256(m8, 1));
    m4 = _mm_max_epi32(m4, _mm_shuffle_epi32(m4, 0x4E));
    m4 = _mm_max_epi32(m4, _mm_shuffle_epi32(m4, 0xB1));
    return _mm_cvtss_f32(_mm_castsi128_ps(m4));
}

INLINE void quantize_block(matmul_input *in, const float *x, float largest)
{
    __m256i q[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(),
                    _mm256_setzero_si256()};
    if (!(largest >= 0x1p-100f && largest <= __FLT_MAX__)) {
        put_block(in, q, largest < 0x1p-100f ? 0 : __builtin_nanf(""));
        return;
    }
    const __m256 inverse = _mm256_set1_ps(127 / largest);
    for (int i = 0; i < 4; i++)
        q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), inverse));
    put_block(in, q, largest * (1.0f / 127));
}

#include "compute/cpu/matmul_prepare.inl"

/* ---- one function for each type and number of tokens ---------------------------------------- */

#define WIDTHS(X, kind) X(kind, 1) X(kind, 2) X(kind, 3) X(kind, 4)
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
MATMUL_ISA(avx2)
