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
#include "compute/cpu/matmul_avx512.inl"

/* ---- the product ---------------------------------------------------------------------------- */

/* Where a kernel takes the quads of a panel from: from the panel; or from there, leaving them in a
 * matmul_unpacked for those who come after; or from that. */
typedef enum quads_from { FROM_PACKED, FROM_PACKED_KEEPING, FROM_UNPACKED } quads_from;

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
