/* compute/cpu/matmul_avx512.c: packed products with AVX-512 and VNNI.
 *
 * A vector holds sixteen rows. For each block the eight quads of weights are unpacked to unsigned
 * bytes one after the other and each is multiplied at once with up to twelve tokens, whose four
 * activations the dot-product instruction broadcasts from memory. What binds are the two units that
 * do dot products and float products alike: a token's block costs eight dot products, and one float
 * product for types of 32 values. The small scales of types of 256 values are multiplied as
 * integers, on another unit, so that beside dot products next to nothing is left (on Zen 4: 65
 * cycles for the 64 dot products of eight tokens; with float scales a block 88).
 *
 * One token is bound by memory; its loads run panels ahead by software prefetch, since a panel of a
 * narrow matrix is too short for the hardware to find its pace.
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

/* Where a kernel takes the quads of a panel from: from the panel; or from there, leaving them in a
 * matmul_unpacked for those who come after; or from that. */
typedef enum quads_from { FROM_PACKED, FROM_PACKED_KEEPING, FROM_UNPACKED } quads_from;

INLINE __m512i first_sum(pack_kind kind, const int32_t *bias)
{
    return matmul_has_minimum(kind) ? _mm512_setzero_si512() : _mm512_set1_epi32(*bias);
}

/* sum[t] += quads first .. first+count-1 of a block times those of T tokens. */
INLINE void dots(pack_kind kind, quads_from from, int T, __m512i *sum, const uint8_t *v,
                 matmul_unpacked *unpacked, const matmul_input *in, int first, int count)
{
    UNROLL
    for (int j = first; j < first + count; j++) {
        __m512i w = from == FROM_UNPACKED ? load(unpacked->quads[j], 0) : quad(kind, v, j);
        if (from == FROM_PACKED_KEEPING)
            _mm512_store_si512(unpacked->quads[j], w);
        UNROLL
        for (int t = 0; t < T; t++)
            sum[t] = dot(sum[t], w, in[t].q + 4 * j);
    }
}

INLINE void fetch_ahead(pack_kind kind, quads_from from, const uint8_t *v, const uint8_t *p,
                        int32_t block, size_t ahead)
{
    if (from == FROM_UNPACKED)
        return;
    UNROLL
    for (int line = 0; line < matmul_value_bytes(kind); line += 64)
        _mm_prefetch((const char *)v + ahead + line, _MM_HINT_T1);
    _mm_prefetch((const char *)p + ahead + matmul_scales_ahead(kind, block), _MM_HINT_T1);
}

/* Adds a group of count blocks from block number first on to sums, of a type of 32 values. */
INLINE void add_group_32(pack_kind kind, quads_from from, int T, float (*sums)[PACK_ROWS],
                         const uint8_t *panel, int32_t n_blocks, int32_t first, int32_t count,
                         const matmul_input *in, size_t stride, size_t ahead,
                         matmul_unpacked *unpacked)
{
    __m512 g[12];
    const matmul_input *group = in;
    UNROLL
    for (int t = 0; t < T; t++)
        g[t] = _mm512_setzero_ps();
    for (int32_t b = first; b < first + count; b++, in += stride, unpacked++) {
        const uint8_t *p = matmul_scales_at(kind, panel, b),
                      *v = matmul_values_at(kind, panel, n_blocks, b);
        fetch_ahead(kind, from, v, p, b, ahead);
        __m512i sum[12];
        UNROLL
        for (int t = 0; t < T; t++)
            sum[t] = first_sum(kind, &in[t].bias);
        dots(kind, from, T, sum, v, unpacked, in, 0, 8);
        __m512 minimum = load_minimum(kind, p);
        __m512 scale = from == FROM_UNPACKED ? _mm512_load_ps(unpacked->scales[0])
                                             : load_scale(kind, p, b, 0);
        if (from == FROM_PACKED_KEEPING)
            _mm512_store_ps(unpacked->scales[0], scale);
        UNROLL
        for (int t = 0; t < T; t++) {
            g[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[t]), scale, g[t]);
            if (matmul_has_minimum(kind))
                g[t] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(in[t].sum), g[t]);
        }
    }
    UNROLL
    for (int t = 0; t < T; t++)
        _mm512_store_ps(sums[t],
                        _mm512_fmadd_ps(g[t], _mm512_set1_ps(group[t].d), _mm512_load_ps(sums[t])));
}

/* sums += small scale * (the block's dot products). */
INLINE void add_scaled(pack_kind kind, int T, __m512i *sums, const __m512i *dots_, __m512i scale)
{
    UNROLL
    for (int t = 0; t < T; t++)
        sums[t] = _mm512_add_epi32(
            sums[t], kind == PACK_Q8_K ? dots_[t] : _mm512_mullo_epi32(dots_[t], scale));
}

/* The sum over a group of small minimums times the activations' sums, of one token: the high digits'
 * products, then, 256 times smaller, the low ones'. */
INLINE __m512i add_minimums(pack_kind kind, const uint8_t *p, const matmul_input *in, size_t stride)
{
    __m512i sum = _mm512_setzero_si512(), w[4];
    int n = kind == PACK_Q2_K ? 4 : 2;
    UNROLL
    for (int k = 0; k < n; k++)
        w[k] = kind == PACK_Q2_K ? right(load(p + 64, k), 4, 15) : load(p + 192, k);
    UNROLL
    for (int k = n; k < 2 * n; k++)
        sum = dot(sum, w[k - n],
                  kind == PACK_Q2_K ? in[(size_t)k * stride].half_digits
                                    : in[(size_t)k * stride].block_digits);
    sum = _mm512_slli_epi32(sum, 8);
    UNROLL
    for (int k = 0; k < n; k++)
        sum = dot(sum, w[k],
                  kind == PACK_Q2_K ? in[(size_t)k * stride].half_digits
                                    : in[(size_t)k * stride].block_digits);
    return sum;
}

INLINE void keep_scales(pack_kind kind, const uint8_t *p, int32_t block, matmul_unpacked *unpacked)
{
    UNROLL
    for (int half = 0; half <= matmul_has_halves(kind); half++)
        _mm512_store_ps(unpacked->scales[half], load_scale(kind, p, block, half));
}

/* The same of a type of 256 values: all MATMUL_GROUP blocks. p is the group's scales. */
INLINE void add_group_256(pack_kind kind, quads_from from, int T, float (*sums)[PACK_ROWS],
                          const uint8_t *p, const matmul_input *in, size_t stride, size_t ahead,
                          matmul_unpacked *unpacked)
{
    __m512i products[12];
    const uint8_t *v = p + matmul_scale_bytes(kind);
    const matmul_input *block = in;
    UNROLL
    for (int t = 0; t < T; t++)
        products[t] = _mm512_setzero_si512();
    for (int32_t b = 0; b < MATMUL_GROUP;
         b++, block += stride, v += matmul_value_bytes(kind), unpacked++) {
        __m512i sum[12];
        int halves_ = matmul_has_halves(kind);
        fetch_ahead(kind, from, v, p, b, ahead);
        if (from == FROM_PACKED_KEEPING)
            keep_scales(kind, p, b, unpacked);
        UNROLL
        for (int t = 0; t < T; t++)
            sum[t] = first_sum(kind, halves_ ? &block[t].half_bias[0] : &block[t].bias);
        dots(kind, from, T, sum, v, unpacked, block, 0, halves_ ? 4 : 8);
        add_scaled(kind, T, products, sum, small_scale(kind, p, b, 0));
        if (halves_) {
            UNROLL
            for (int t = 0; t < T; t++)
                sum[t] = first_sum(kind, &block[t].half_bias[1]);
            dots(kind, from, T, sum, v, unpacked, block, 4, 4);
            add_scaled(kind, T, products, sum, small_scale(kind, p, b, 1));
        }
    }
    __m512 d = base_scale(kind, p), dmin = load_minimum(kind, p);
    UNROLL
    for (int t = 0; t < T; t++) {
        __m512 g = _mm512_mul_ps(_mm512_cvtepi32_ps(products[t]), d);
        if (matmul_has_minimum(kind))
            g = _mm512_fnmadd_ps(dmin, _mm512_cvtepi32_ps(add_minimums(kind, p, in + t, stride)),
                                 g);
        _mm512_store_ps(sums[t],
                        _mm512_fmadd_ps(g, _mm512_set1_ps(in[t].d), _mm512_load_ps(sums[t])));
    }
}

INLINE void tile_of(pack_kind kind, quads_from from, int T, float (*sums)[PACK_ROWS],
                    const uint8_t *panel, size_t panel_bytes, int32_t n_blocks,
                    const matmul_input *in, size_t stride, matmul_unpacked *unpacked)
{
    /* Whole panels ahead, so that nothing is left out between one panel's end and the next one's
     * values. Into the second-level cache: a core waits for at most two dozen lines of its first
     * level, which at this latency is less than memory can give. */
    size_t ahead = panel_bytes < 16384 ? 2 * panel_bytes : 16384;
    UNROLL
    for (int t = 0; t < T; t++)
        _mm512_store_ps(sums[t], _mm512_setzero_ps());
    for (int32_t b = 0; b < n_blocks; b += MATMUL_GROUP, in += MATMUL_GROUP * stride) {
        int32_t left = n_blocks - b;
        matmul_unpacked *group = from == FROM_PACKED ? NULL : unpacked + b;
        if (matmul_super(kind) == 1)
            add_group_32(kind, from, T, sums, panel, n_blocks, b,
                         left < MATMUL_GROUP ? left : MATMUL_GROUP, in, stride, ahead, group);
        else
            add_group_256(kind, from, T, sums, matmul_scales_at(kind, panel, b), in, stride, ahead,
                          group);
    }
}

/* Twelve tokens' sums and the many pieces that half blocks' quads are made of do not fit the
 * registers: six, twice, of which the second finds the quads unpacked if the first keeps them. */
INLINE void tile(pack_kind kind, quads_from from, int T, float (*sums)[PACK_ROWS],
                 const uint8_t *panel, size_t panel_bytes, int32_t n_blocks, const matmul_input *in,
                 size_t stride, matmul_unpacked *unpacked)
{
    if (T == 12 && matmul_has_halves(kind) && from != FROM_UNPACKED) {
        tile_of(kind, from, 6, sums, panel, panel_bytes, n_blocks, in, stride, unpacked);
        tile_of(kind, from == FROM_PACKED ? FROM_PACKED : FROM_UNPACKED, 6, sums + 6, panel,
                panel_bytes, n_blocks, in + 6, stride, unpacked);
    } else {
        tile_of(kind, from, T, sums, panel, panel_bytes, n_blocks, in, stride, unpacked);
    }
}

/* Quads that are put together from the low bits of several vectors, as up to three pieces: a vector,
 * how far left its bytes are shifted, and which bits are taken. */
typedef struct quad_piece {
    uint8_t vector[3], shift[3], mask[3];
} quad_piece;

static const quad_piece five_bits[8] = {
    {{0}, {0}, {0xF8}},
    {{1}, {0}, {0xF8}},
    {{2}, {0}, {0xF8}},
    {{3}, {0}, {0xF8}},
    {{4}, {0}, {0xF8}},
    {{0, 1}, {5, 2}, {0xE0, 0x18}},
    {{1, 2, 3}, {7, 4, 1}, {0x80, 0x70, 0x08}},
    {{3, 4}, {6, 3}, {0xC0, 0x38}},
};
static const quad_piece six_bits[8] = {
    {{0}, {0}, {0xFC}},
    {{1}, {0}, {0xFC}},
    {{2}, {0}, {0xFC}},
    {{3}, {0}, {0xFC}},
    {{4}, {0}, {0xFC}},
    {{5}, {0}, {0xFC}},
    {{0, 1, 2}, {6, 4, 2}, {0xC0, 0x30, 0x0C}},
    {{3, 4, 5}, {6, 4, 2}, {0xC0, 0x30, 0x0C}},
};
static const quad_piece three_bits[8] = {
    {{0}, {0}, {0xE0}},
    {{1}, {0}, {0xE0}},
    {{2}, {0}, {0xE0}},
    {{0}, {3}, {0xE0}},
    {{1}, {3}, {0xE0}},
    {{2}, {3}, {0xE0}},
    {{0, 1}, {6, 4}, {0xC0, 0x20}},
    {{1, 2}, {7, 5}, {0x80, 0x60}},
};

INLINE __m512i put_together(const quad_piece *q, const uint8_t *v)
{
    __m512i sum = _mm512_setzero_si512();
    UNROLL
    for (int i = 0; i < 3; i++) {
        __m512i part = _mm512_sll_epi16(load(v, q->vector[i]), _mm_cvtsi32_si128(q->shift[i]));
        sum = _mm512_or_si512(sum, _mm512_and_si512(part, bytes(q->mask[i])));
    }
    return sum;
}

/* As quad, j not constant and without a branch, which would be guessed wrong half of the time. */
INLINE __m512i quad_at(pack_kind kind, const uint8_t *v, uint32_t j)
{
    int upper = (int)(j & 4);
    switch (kind) {
    case PACK_Q4_0:
        return _mm512_and_si512(
            _mm512_sll_epi16(load(v, (int)(j % 4)), _mm_cvtsi32_si128(4 - upper)), bytes(0xF0));
    case PACK_Q4_1:
    case PACK_Q4_K:
        return _mm512_and_si512(_mm512_srl_epi16(load(v, (int)(j % 4)), _mm_cvtsi32_si128(upper)),
                                bytes(15));
    case PACK_IQ4_NL:
    case PACK_IQ4_XS:
    case PACK_MXFP4:
        return _mm512_shuffle_epi8(
            list_values(kind),
            _mm512_and_si512(_mm512_srl_epi16(load(v, (int)(j % 4)), _mm_cvtsi32_si128(upper)),
                             bytes(15)));
    case PACK_Q5_0:
    case PACK_Q5_1:
    case PACK_Q5_K: return put_together(&five_bits[j], v);
    case PACK_Q6_K: return put_together(&six_bits[j], v);
    case PACK_Q3_K: return put_together(&three_bits[j], v);
    case PACK_Q2_K:
        return _mm512_and_si512(
            _mm512_srl_epi16(load(v, (int)(j / 4)), _mm_cvtsi32_si128((int)(j % 4) * 2)), bytes(3));
    default: /* 8 bits */ return load(v, (int)j);
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

/* ---- one function for each type and number of tokens ---------------------------------------- */

#define WIDTHS(X, kind)                                                                            \
    X(kind, 1) X(kind, 2) X(kind, 3) X(kind, 4) X(kind, 6) X(kind, 8) X(kind, 12)
#define TILE(kind, T)                                                                              \
    static void tile_##kind##_##T(float(*sums)[PACK_ROWS], const uint8_t *panel,                   \
                                  size_t panel_bytes, int32_t n_blocks, const matmul_input *input, \
                                  size_t stride)                                                   \
    {                                                                                              \
        tile(PACK_##kind, FROM_PACKED, T, sums, panel, panel_bytes, n_blocks, input, stride,       \
             NULL);                                                                                \
    }
#define CORRECT(kind)                                                                              \
    static void correct_##kind(float *sums, const uint8_t *panel, int32_t n_blocks,                \
                               const matmul_list *list)                                            \
    {                                                                                              \
        correct(PACK_##kind, sums, panel, n_blocks, list);                                         \
    }
#define MANY(kind, super, scale_bytes, value_bytes)                                                \
    static void unpacking_##kind(float(*sums)[PACK_ROWS], const uint8_t *panel,                    \
                                 size_t panel_bytes, int32_t n_blocks, const matmul_input *input,  \
                                 matmul_unpacked *unpacked)                                        \
    {                                                                                              \
        tile(PACK_##kind, FROM_PACKED_KEEPING, MATMUL_TILE, sums, panel, panel_bytes, n_blocks,    \
             input, MATMUL_TILE, unpacked);                                                        \
    }                                                                                              \
    static void unpacked_##kind(float(*sums)[PACK_ROWS], const uint8_t *panel, size_t panel_bytes, \
                                int32_t n_blocks, const matmul_input *input,                       \
                                matmul_unpacked *unpacked)                                         \
    {                                                                                              \
        tile(PACK_##kind, FROM_UNPACKED, MATMUL_TILE, sums, panel, panel_bytes, n_blocks, input,   \
             MATMUL_TILE, unpacked);                                                               \
    }                                                                                              \
    static void correct_two_##kind(float(*sums)[PACK_ROWS], const matmul_unpacked *unpacked,       \
                                   const matmul_list *one, const matmul_list *other)               \
    {                                                                                              \
        correct_two(PACK_##kind, sums, unpacked, one, other);                                      \
    }
#define MANY_ENTRY(kind, super, scale_bytes, value_bytes)                                          \
    [PACK_##kind] = {unpacking_##kind, unpacked_##kind, correct_two_##kind},
PACK_MAP(MANY)
static const matmul_many many[PACK_KINDS] = {PACK_MAP(MANY_ENTRY)};

MATMUL_ISA(avx512, .many = many)
