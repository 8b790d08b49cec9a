/* compute/cpu/matmul_avx2.inl: packed products with vectors of 256 bits, for what the file that includes
 * this is compiled for: matmul_avx2.c AVX2 and FMA, matmul_avx_vnni.c AVX-VNNI as well (Alder Lake and
 * later, which have no AVX-512).
 *
 * A vector holds eight rows, half a panel.
 *
 *   AVX-VNNI  vpdpbusd adds four products of unsigned bytes of weights with signed activations to each
 *             of eight 32-bit sums, as with AVX-512: signed bytes have 128 added, which their sums
 *             begin without. Its operands cannot be broadcast, so both halves share a register that is.
 *   neither   vpmaddubsw adds pairs of products in 16 bits with saturation, which never happens here:
 *             values of up to six bits stay unsigned and small (63 * 127 * 2 = 16002, and as many
 *             products are added in 16 bits as fit), signed bytes are multiplied as |w| * sign(w) x
 *             (128 * 127 * 2 = 32512).
 *
 * Either way the integers are exact, as with every other instruction set.
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

#if defined(__AVXVNNI__)
#define HAS_VNNI 1
#else
#define HAS_VNNI 0
#endif

/* How a type's values come out of quad: unsigned with so many bits; 8: as signed bytes, or with VNNI as
 * unsigned ones, 128 more. */
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
    __m128i list = kind == PACK_MXFP4
                       ? _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
                       : _mm_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53,
                                       69, 89, 113);
    if (HAS_VNNI)
        list = _mm_xor_si128(list, _mm_set1_epi8((char)0x80));
    return _mm256_broadcastsi128_si256(list);
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
    default: /* 8 bits, 128 added */
        return HAS_VNNI ? load(v, j) : _mm256_xor_si256(load(v, j), bytes(0x80));
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

INLINE __m256i signed_bytes(const uint8_t *p)
{
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p));
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

/* The small scale of a block of a type of 256 values (of its second half if second). p is the group's
 * scales; half is 0 or 1: rows 0..7 or 8..15. */
INLINE __m256i small_scale(pack_kind kind, const uint8_t *p, int32_t block, int half, int second)
{
    const uint8_t *eighth = p + 64 + 8 * half + 16 * block;
    const uint8_t *sixteenth = p + 64 + 8 * half + 32 * block + 16 * second;
    switch (kind) {
    case PACK_Q4_K:
    case PACK_Q5_K: return unsigned_bytes(eighth);
    case PACK_IQ4_XS: return signed_bytes(eighth);
    case PACK_Q2_K:
        return _mm256_and_si256(_mm256_srl_epi32(load(p + 64 + 32 * half, block / 2),
                                                 _mm_cvtsi32_si128(8 * (block % 2 * 2 + second))),
                                _mm256_set1_epi32(15));
    default: return signed_bytes(sixteenth);
    }
}

/* What the small scales of a type of 256 values are times, or the scale of one of 32. */
INLINE __m256 base_scale(pack_kind kind, const uint8_t *p, int half)
{
    switch (kind) {
    case PACK_MXFP4: return exponent_scale(p + 8 * half);
    case PACK_Q8_K: return _mm256_load_ps((const float *)(const void *)(p + 32 * half));
    default: return halves(p + 16 * half);
    }
}

/* Likewise the minimum, or what small minimums are times. */
INLINE __m256 base_minimum(pack_kind kind, const uint8_t *p, int half)
{
    return matmul_has_minimum(kind) ? halves(p + 32 + 16 * half) : _mm256_setzero_ps();
}

/* ---- the product ---------------------------------------------------------------------------- */

/* Four activations, for every row. */
INLINE __m256i broadcast(const int8_t *q)
{
    return _mm256_set1_epi32(*(const int32_t *)(const void *)q);
}

/* What the sums begin with: the offset of signed types that quad leaves unsigned. */
INLINE __m256i first_sum(pack_kind kind, int32_t bias)
{
    switch (kind) {
    case PACK_Q4_0: return _mm256_set1_epi32(bias / 16);
    case PACK_Q5_0: return _mm256_set1_epi32(bias / 8);
    case PACK_Q6_K: return _mm256_set1_epi32(bias / 4);
    case PACK_Q3_K: return _mm256_set1_epi32(bias / 32);
    default:
        return HAS_VNNI && value_bits(kind) == 8 ? _mm256_set1_epi32(bias)
                                                 : _mm256_setzero_si256();
    }
}

#if HAS_VNNI

/* sum + the products of a quad with four activations. */
INLINE __m256i dot(pack_kind kind, __m256i sum, __m256i w, __m256i x)
{
    (void)kind;
    return _mm256_dpbusd_avx_epi32(sum, w, x);
}

/* sum[h][t] += the products of quads first .. first+count-1 of H halves with T tokens. */
INLINE void dots(pack_kind kind, int T, int H, __m256i (*sum)[MATMUL_TILE], const uint8_t *v,
                 const matmul_input *in, int first, int count)
{
    UNROLL
    for (int j = first; j < first + count; j++) {
        __m256i w[2];
        UNROLL
        for (int h = 0; h < H; h++)
            w[h] = quad(kind, v + 32 * h, j);
        UNROLL
        for (int t = 0; t < T; t++) {
            __m256i x = broadcast(in[t].q + 4 * j);
            UNROLL
            for (int h = 0; h < H; h++)
                sum[h][t] = dot(kind, sum[h][t], w[h], x);
        }
    }
}

#else

/* Sums of pairs, in 16 bits, of the products of w with four activations. */
INLINE __m256i pairs(pack_kind kind, __m256i w, __m256i x)
{
    if (value_bits(kind) < 8)
        return _mm256_maddubs_epi16(w, x);
    return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
}

/* How many results of pairs can be added in 16 bits. */
INLINE int pairs_that_fit(pack_kind kind)
{
    return value_bits(kind) <= 4 ? 8 : value_bits(kind) == 5 ? 4 : value_bits(kind) == 6 ? 2 : 1;
}

INLINE __m256i dot(pack_kind kind, __m256i sum, __m256i w, __m256i x)
{
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs(kind, w, x), _mm256_set1_epi16(1)));
}

INLINE void dots_of_half(pack_kind kind, int T, __m256i *sum, const uint8_t *v,
                         const matmul_input *in, int first, int count)
{
    int fit = pairs_that_fit(kind);
    __m256i small[4];
    UNROLL
    for (int j = first; j < first + count; j++) {
        __m256i w = quad(kind, v, j);
        UNROLL
        for (int t = 0; t < T; t++) {
            __m256i p = pairs(kind, w, broadcast(in[t].q + 4 * j));
            small[t] = (j - first) % fit == 0 ? p : _mm256_add_epi16(small[t], p);
            if ((j - first) % fit == fit - 1 || j == first + count - 1)
                sum[t] = _mm256_add_epi32(sum[t],
                                          _mm256_madd_epi16(small[t], _mm256_set1_epi16(1)));
        }
    }
}

INLINE void dots(pack_kind kind, int T, int H, __m256i (*sum)[MATMUL_TILE], const uint8_t *v,
                 const matmul_input *in, int first, int count)
{
    UNROLL
    for (int h = 0; h < H; h++)
        dots_of_half(kind, T, sum[h], v + 32 * h, in, first, count);
}

#endif

/* sum[h][t] = first_sum and quads first .. first+count-1 of a block with T tokens; second: the block's
 * second half alone. v is at the first of the H halves of the panel. */
INLINE void block_dots(pack_kind kind, int T, int H, __m256i (*sum)[MATMUL_TILE], const uint8_t *v,
                       const matmul_input *in, int second)
{
    int both = matmul_has_halves(kind);
    UNROLL
    for (int t = 0; t < T; t++) {
        __m256i begin = first_sum(kind, both ? in[t].half_bias[second] : in[t].bias);
        UNROLL
        for (int h = 0; h < H; h++)
            sum[h][t] = begin;
    }
    dots(kind, T, H, sum, v, in, 4 * second, both ? 4 : 8);
}

INLINE void fetch_ahead(pack_kind kind, const uint8_t *v, const uint8_t *p, int32_t block,
                        size_t ahead)
{
    UNROLL
    for (int line = 0; line < matmul_value_bytes(kind); line += 64)
        _mm_prefetch((const char *)v + ahead + line, _MM_HINT_T1);
    _mm_prefetch((const char *)p + ahead + matmul_scales_ahead(kind, block), _MM_HINT_T1);
}

/* sums[t][8 * half ..] += g * d of token t. */
INLINE void add_group(float *sums, __m256 g, float d, int half)
{
    _mm256_store_ps(sums + 8 * half,
                    _mm256_fmadd_ps(g, _mm256_set1_ps(d), _mm256_load_ps(sums + 8 * half)));
}

/* Adds a group of count blocks of a type of 32 values to sums, for H halves of the panel. */
INLINE void add_group_32(pack_kind kind, int T, int H, int half, float (*sums)[PACK_ROWS],
                         const uint8_t *panel, int32_t n_blocks, int32_t first, int32_t count,
                         const matmul_input *in, size_t stride, size_t ahead)
{
    __m256 g[2][MATMUL_TILE];
    const matmul_input *group = in;
    UNROLL
    for (int h = 0; h < H; h++) {
        UNROLL
        for (int t = 0; t < T; t++)
            g[h][t] = _mm256_setzero_ps();
    }
    for (int32_t b = first; b < first + count; b++, in += stride) {
        const uint8_t *p = matmul_scales_at(kind, panel, b);
        const uint8_t *v = matmul_values_at(kind, panel, n_blocks, b);
        if (half == 0)
            fetch_ahead(kind, v, p, b, ahead);
        __m256i sum[2][MATMUL_TILE];
        block_dots(kind, T, H, sum, v + 32 * half, in, 0);
        UNROLL
        for (int h = 0; h < H; h++) {
            __m256 scale = base_scale(kind, p, half + h);
            __m256 minimum = base_minimum(kind, p, half + h);
            UNROLL
            for (int t = 0; t < T; t++) {
                g[h][t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[h][t]), scale, g[h][t]);
                if (matmul_has_minimum(kind))
                    g[h][t] = _mm256_fmadd_ps(minimum, _mm256_set1_ps(in[t].sum), g[h][t]);
            }
        }
    }
    UNROLL
    for (int h = 0; h < H; h++) {
        UNROLL
        for (int t = 0; t < T; t++)
            add_group(sums[t], g[h][t], group[t].d, half + h);
    }
}

INLINE void add_scaled(pack_kind kind, int T, __m256i *products, const __m256i *sum, __m256i scale)
{
    UNROLL
    for (int t = 0; t < T; t++)
        products[t] = _mm256_add_epi32(
            products[t], kind == PACK_Q8_K ? sum[t] : _mm256_mullo_epi32(sum[t], scale));
}

/* The sum over a group of small minimums times the activations' sums, of one token: the high digits'
 * products, then, 256 times smaller, the low ones'. */
INLINE __m256i add_minimums(pack_kind kind, const uint8_t *p, const matmul_input *in, size_t stride,
                            int half)
{
    __m256i sum = _mm256_setzero_si256(), w[4];
    int n = kind == PACK_Q2_K ? 4 : 2;
    UNROLL
    for (int k = 0; k < n; k++)
        w[k] = kind == PACK_Q2_K ? right(load(p + 64 + 32 * half, k), 4, 15)
                                 : load(p + 192 + 32 * half, k);
    UNROLL
    for (int k = n; k < 2 * n; k++)
        sum = dot(kind, sum, w[k - n],
                  broadcast(kind == PACK_Q2_K ? in[(size_t)k * stride].half_digits
                                              : in[(size_t)k * stride].block_digits));
    sum = _mm256_slli_epi32(sum, 8);
    UNROLL
    for (int k = 0; k < n; k++)
        sum = dot(kind, sum, w[k],
                  broadcast(kind == PACK_Q2_K ? in[(size_t)k * stride].half_digits
                                              : in[(size_t)k * stride].block_digits));
    return sum;
}

/* The same of a type of 256 values: all MATMUL_GROUP blocks. p is the group's scales. */
INLINE void add_group_256(pack_kind kind, int T, int H, int half, float (*sums)[PACK_ROWS],
                          const uint8_t *p, const matmul_input *in, size_t stride, size_t ahead)
{
    __m256i products[2][MATMUL_TILE];
    const uint8_t *v = p + matmul_scale_bytes(kind);
    const matmul_input *block = in;
    UNROLL
    for (int h = 0; h < H; h++) {
        UNROLL
        for (int t = 0; t < T; t++)
            products[h][t] = _mm256_setzero_si256();
    }
    for (int32_t b = 0; b < MATMUL_GROUP; b++, block += stride, v += matmul_value_bytes(kind)) {
        if (half == 0)
            fetch_ahead(kind, v, p, b, ahead);
        UNROLL
        for (int second = 0; second <= matmul_has_halves(kind); second++) {
            __m256i sum[2][MATMUL_TILE];
            block_dots(kind, T, H, sum, v + 32 * half, block, second);
            UNROLL
            for (int h = 0; h < H; h++)
                add_scaled(kind, T, products[h], sum[h],
                           small_scale(kind, p, b, half + h, second));
        }
    }
    UNROLL
    for (int h = 0; h < H; h++) {
        __m256 d = base_scale(kind, p, half + h), dmin = base_minimum(kind, p, half + h);
        UNROLL
        for (int t = 0; t < T; t++) {
            __m256 g = _mm256_mul_ps(_mm256_cvtepi32_ps(products[h][t]), d);
            if (matmul_has_minimum(kind))
                g = _mm256_fnmadd_ps(
                    dmin, _mm256_cvtepi32_ps(add_minimums(kind, p, in + t, stride, half + h)), g);
            add_group(sums[t], g, in[t].d, half + h);
        }
    }
}

/* H halves of the panel from half on, in one go: both for few tokens, so that memory is read in one
 * stream and activations are broadcast once; one after the other where sums fill the registers. */
INLINE void tile_halves(pack_kind kind, int T, int H, int half, float (*sums)[PACK_ROWS],
                        const uint8_t *panel, size_t panel_bytes, int32_t n_blocks,
                        const matmul_input *in, size_t stride)
{
    size_t ahead = panel_bytes < 16384 ? 2 * panel_bytes : 16384;
    UNROLL
    for (int h = 0; h < H; h++) {
        UNROLL
        for (int t = 0; t < T; t++)
            _mm256_store_ps(sums[t] + 8 * (half + h), _mm256_setzero_ps());
    }
    for (int32_t b = 0; b < n_blocks; b += MATMUL_GROUP, in += MATMUL_GROUP * stride) {
        int32_t left = n_blocks - b;
        if (matmul_super(kind) == 1)
            add_group_32(kind, T, H, half, sums, panel, n_blocks, b,
                         left < MATMUL_GROUP ? left : MATMUL_GROUP, in, stride, ahead);
        else
            add_group_256(kind, T, H, half, sums, matmul_scales_at(kind, panel, b), in, stride,
                          ahead);
    }
}

INLINE void tile(pack_kind kind, int T, float (*sums)[PACK_ROWS], const uint8_t *panel,
                 size_t panel_bytes, int32_t n_blocks, const matmul_input *in, size_t stride)
{
    if (T <= (HAS_VNNI ? 6 : 2)) {
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
            const uint8_t *p = matmul_scales_at(kind, panel, b);
            __m256i w = quad_at(kind, matmul_values_at(kind, panel, n_blocks, b) + 32 * half,
                                o->quad % 8);
            __m256i sum = dot(kind, first_sum(kind, o->bias), w, broadcast(o->q));
            __m256 scale = base_scale(kind, p, half);
            if (matmul_super(kind) == MATMUL_GROUP && kind != PACK_Q8_K)
                scale = _mm256_mul_ps(scale, _mm256_cvtepi32_ps(small_scale(
                                                 kind, p, b % 8, half, (int)(o->quad & 4) / 4)));
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

INLINE float largest_float(__m256i m8)
{
    __m128i m4 = _mm_max_epi32(_mm256_castsi256_si128(m8), _mm256_extracti128_si256(m8, 1));
    m4 = _mm_max_epi32(m4, _mm_shuffle_epi32(m4, 0x4E));
    m4 = _mm_max_epi32(m4, _mm_shuffle_epi32(m4, 0xB1));
    return _mm_cvtss_f32(_mm_castsi128_ps(m4));
}

/* As integers magnitudes are in the same order, with infinity and NaN above all numbers. */
INLINE __m256i magnitudes(const float *x)
{
    return _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(const void *)x),
                            _mm256_set1_epi32(0x7FFFFFFF));
}

static float magnitude(const float *x, int32_t n)
{
    __m256i a = _mm256_setzero_si256(), b = a;
    for (int32_t i = 0; i < n; i += 16) {
        a = _mm256_max_epi32(a, magnitudes(x + i));
        b = _mm256_max_epi32(b, magnitudes(x + i + 8));
    }
    return largest_float(_mm256_max_epi32(a, b));
}

static float magnitude_below(const float *x, int32_t n, float most)
{
    const __m256i limit = _mm256_castps_si256(_mm256_set1_ps(most));
    __m256i largest = _mm256_setzero_si256();
    for (int32_t i = 0; i < n; i += 8) {
        __m256i a = magnitudes(x + i);
        largest = _mm256_max_epi32(largest, _mm256_andnot_si256(_mm256_cmpgt_epi32(a, limit), a));
    }
    return largest_float(largest);
}

/* The bytes of q, eight integers each, in order. */
INLINE __m256i to_bytes(const __m256i q[4])
{
    __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]),
                                        _mm256_packs_epi32(q[2], q[3]));
    /* packs works in each half alone: put the fours back in order. */
    return _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

INLINE uint32_t put_block(matmul_input *in, int32_t sums[2], int8_t high[32], const float *x,
                          float inverse)
{
    __m256i q[4], most = _mm256_setzero_si256();
    uint32_t quads = 0;
    for (int i = 0; i < 4; i++) {
        q[i] = _mm256_cvtps_epi32(
            _mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), _mm256_set1_ps(inverse)));
        most = _mm256_max_epi32(most, _mm256_abs_epi32(q[i]));
    }
    if (_mm256_movemask_epi8(_mm256_cmpgt_epi32(most, _mm256_set1_epi32(127)))) {
        __m256i h[4];
        for (int i = 0; i < 4; i++) {
            h[i] = _mm256_cvtps_epi32(
                _mm256_mul_ps(_mm256_cvtepi32_ps(q[i]), _mm256_set1_ps(1.0f / MATMUL_HIGH)));
            q[i] = _mm256_sub_epi32(q[i], _mm256_mullo_epi32(h[i], _mm256_set1_epi32(MATMUL_HIGH)));
        }
        __m256i packed = to_bytes(h);
        _mm256_storeu_si256((__m256i *)(void *)high, packed);
        __m256i none = _mm256_cmpeq_epi32(packed, _mm256_setzero_si256());
        quads = ~(uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(none)) & 0xFF;
    }
    sums[0] = add_all(_mm256_add_epi32(q[0], q[1]));
    sums[1] = add_all(_mm256_add_epi32(q[2], q[3]));
    _mm256_store_si256((__m256i *)in->q, to_bytes(q));
    in->bias = -128 * (sums[0] + sums[1]);
    in->half_bias[0] = -128 * sums[0];
    in->half_bias[1] = -128 * sums[1];
    return quads;
}

#include "compute/cpu/matmul_prepare.inl"

/* ---- one function for each type and number of tokens ---------------------------------------- */

#if HAS_VNNI
#define WIDTHS(X, kind) X(kind, 1) X(kind, 2) X(kind, 3) X(kind, 4) X(kind, 6)
#else
#define WIDTHS(X, kind) X(kind, 1) X(kind, 2) X(kind, 3) X(kind, 4)
#endif
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
