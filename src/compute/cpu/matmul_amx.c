/* compute/cpu/matmul_amx.c: packed products of many tokens with AMX.
 *
 * Sixteen tokens (a strip) are a tile's rows, a quad of the panel is one row of the other tile as it is,
 * and a third tile gathers exact integers. Multiplying is cheap then; what binds is all else: a tile
 * goes through memory to be scaled, and a tile that is stored is not multiplied. So as little as
 * possible is left to do afterwards. The small scales are multiplied into the weights beforehand, once for
 * all tokens. The products are of two bytes, so there are two planes of weights, two tiles gather a
 * whole group of 256 columns, and one float product is left for each group instead of eight or sixteen
 * integer ones.
 *   Q4_K Q5_K  value * (scale % 8) and value * (scale / 8): both below 256, so one 16-bit product makes
 *              two bytes
 *   Q2_K Q8_K  one plane does
 *   the rest   low and high byte of value * scale
 *
 * Types of 32 values are left to AVX-512: their scales are F16 and each block is added up as F32, so a
 * tile can gather no more than a block, half of what it could, and is stored for each. That was tried:
 * up to 1.27 times AVX-512's speed in products alone, and none in whole prompts.
 *
 * The tiles of one step are multiplied while the vector units are at the step's before (pending), since
 * neither waits for the other then and the processor looks less far ahead than a step is long.
 *
 * A panel is unpacked a group at a time for all strips of a span, which comes from the second-level
 * cache once a panel. The quads and scales are kept for corrections as products of AVX-512 keep them.
 *
 * Tiles are set up and given back within one call, so that no other code meets them. As assembly,
 * since compilers' own functions do not say that they read memory.
 *
 * Pool threads; no state. The arithmetic's order is fixed by matmul_packed.h. */
#include "compute/cpu/matmul_amx.h"
#include "compute/cpu/matmul_avx512.inl"

#define STRIP MATMUL_AMX_STRIP
/* Prepared bytes of a span, half of a second-level cache of 2 MB, and the most strips: their sums stay
 * near. */
#define SPAN_BYTES  (1024 * 1024)
#define SPAN_STRIPS 32
/* Panels of more blocks are unpacked again for corrections. */
#define UNPACKED_BLOCKS 384

/* ---- activations ---------------------------------------------------------------------------- */

/* The high parts of four values of a token: a matmul_outlier that says where, in bytes, what it meets
 * lies: the token's sums from the strip's, the quad and its scale from the group's first
 * matmul_unpacked. */
typedef struct strip_outlier {
    uint16_t sums_at, quad_at, scale_at, unused;
    int8_t q[4];
    float d;      /* 255 times its group's */
    int32_t bias; /* -128 * sum of q */
} strip_outlier;

/* A group of sixteen tokens. Prepared activations are [n_groups][n_strips] of them, so that what is read
 * one after the other lies so, then each strip's outliers, group after group, in a group token after
 * token. Rows of tokens that are not there hold anything. */
typedef struct strip_group {
    int8_t q[MATMUL_GROUP / 2][STRIP][64]; /* two blocks a row */
    float d[STRIP];
    /* The sums of n of blocks and half blocks. Of each four neighbours the
     * second and third are exchanged: as the bytes of a quad lie when every other is taken. */
    int16_t block_sums[STRIP][MATMUL_GROUP];
    int16_t half_sums[STRIP][2 * MATMUL_GROUP];
    uint32_t first_outlier, n_outliers; /* of the strip's */
    uint32_t unused[14];
} strip_group;

_Static_assert(sizeof(strip_group) % 64 == 0, "tiles begin at cache lines");

static int32_t groups_of(int32_t n_blocks)
{
    return n_blocks / MATMUL_GROUP;
}

static int32_t strips_of(int32_t n_tokens)
{
    return (n_tokens + STRIP - 1) / STRIP;
}

static const strip_group *group_of(const void *prepared, int32_t n_tokens, int32_t group,
                                   int32_t strip)
{
    return (const strip_group *)prepared + (size_t)group * (size_t)strips_of(n_tokens) + strip;
}

static size_t outliers_room(int32_t n_blocks)
{
    return STRIP * (size_t)matmul_list_room(n_blocks);
}

static const strip_outlier *outliers_of(const void *prepared, int32_t n_tokens, int32_t n_blocks,
                                        int32_t strip)
{
    const void *all = group_of(prepared, n_tokens, groups_of(n_blocks), 0);
    return (const strip_outlier *)all + (size_t)strip * outliers_room(n_blocks);
}

size_t matmul_amx_bytes(int32_t n_tokens, int32_t n_cols)
{
    int32_t n_blocks = n_cols / PACK_BLOCK;
    return (size_t)strips_of(n_tokens) * ((size_t)groups_of(n_blocks) * sizeof(strip_group) +
                                          outliers_room(n_blocks) * sizeof(strip_outlier));
}

/* Where sum i of a group stands in block_sums and half_sums. */
static int sum_place(int i)
{
    static const uint8_t exchanged[4] = {0, 2, 1, 3};
    return i / 4 * 4 + exchanged[i % 4];
}

static void put_in_strip(strip_group *g, int32_t t, const matmul_input *in)
{
    g->d[t] = in[0].d;
    for (int b = 0; b < MATMUL_GROUP; b++) {
        memcpy(g->q[b / 2][t] + b % 2 * 32, in[b].q, 32);
        g->block_sums[t][sum_place(b)] = (int16_t)in[b].sum;
    }
    for (int h = 0; h < 2 * MATMUL_GROUP; h++)
        g->half_sums[t][sum_place(h)] = (int16_t)(in[h / 4].half_digits[h % 4] +
                                                  256 * in[4 + h / 4].half_digits[h % 4]);
}

/* A matmul_list with room for every quad of a group. */
typedef union group_list {
    matmul_list list;
    char bytes[sizeof(matmul_list) + 8 * MATMUL_GROUP * sizeof(matmul_outlier)];
} group_list;

/* Appends the outliers of token t; room is of the strip's list. */
static void put_outliers(strip_group *g, strip_outlier *outliers, size_t room, int32_t t,
                         const matmul_list *list)
{
    for (uint32_t i = 0; i < list->count && g->first_outlier + g->n_outliers < room; i++) {
        const matmul_outlier *from = &list->items[i];
        strip_outlier *to = &outliers[g->first_outlier + g->n_outliers++];
        size_t block = from->quad / 8 * sizeof(matmul_unpacked);
        to->sums_at = (uint16_t)(t * PACK_ROWS * (int32_t)sizeof(float));
        to->quad_at = (uint16_t)(block + offsetof(matmul_unpacked, quads[from->quad % 8]));
        to->scale_at = (uint16_t)(block + offsetof(matmul_unpacked, scales[from->quad / 4 % 2]));
        memcpy(to->q, from->q, sizeof to->q);
        to->d = from->d;
        to->bias = from->bias;
    }
}

/* Prepares the count tokens of a strip; x is the first one's row. */
static void prepare_strip(void *prepared, const float *x, int32_t strip, int32_t count,
                          int32_t n_tokens, int32_t n_cols)
{
    int32_t n_blocks = n_cols / PACK_BLOCK;
    strip_outlier *outliers = (strip_outlier *)(uintptr_t)outliers_of(prepared, n_tokens, n_blocks,
                                                                      strip);
    float thresholds[STRIP];
    uint32_t n_outliers = 0;
    for (int32_t t = 0; t < count; t++)
        thresholds[t] = outlier_threshold(x + (size_t)t * (size_t)n_cols, n_blocks);
    for (int32_t i = 0; i < groups_of(n_blocks); i++) {
        strip_group *g = (strip_group *)(uintptr_t)group_of(prepared, n_tokens, i, strip);
        g->first_outlier = n_outliers;
        g->n_outliers = 0;
        for (int32_t t = 0; t < count; t++) {
            matmul_input in[MATMUL_GROUP] = {0};
            group_list list;
            list.list.count = 0;
            prepare_group(in, 1, &list.list, 8 * MATMUL_GROUP,
                          x + (size_t)t * (size_t)n_cols + (size_t)i * MATMUL_GROUP * PACK_BLOCK, 0,
                          MATMUL_GROUP, thresholds[t]);
            put_in_strip(g, t, in);
            put_outliers(g, outliers, outliers_room(n_blocks), t, &list.list);
        }
        n_outliers += g->n_outliers;
    }
}

void matmul_amx_prepare(void *prepared, const float *x, int32_t first_token, int32_t count,
                        int32_t n_tokens, int32_t n_cols)
{
    for (int32_t t = first_token; t < first_token + count; t += STRIP) {
        int32_t left = first_token + count - t;
        prepare_strip(prepared, x + (size_t)t * (size_t)n_cols, t / STRIP,
                      left < STRIP ? left : STRIP, n_tokens, n_cols);
    }
}

/* ---- tiles ---------------------------------------------------------------------------------- */

/* Tiles 0..3 gather, 4 and 5 are tokens, 6 and 7 weights. */
#define TILE_ZERO(t) __asm__ volatile("tilezero %%tmm" #t : :)
#define TILE_LOAD(t, from)                                                                         \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t : : "r"(from), "r"((int64_t)64) : "memory")
#define TILE_STORE(t, to)                                                                          \
    __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" : : "r"(to), "r"((int64_t)64) : "memory")
/* sums += tokens (signed) x weights */
#define TILE_DOT_SIGNED(sums, tokens, weights)                                                     \
    __asm__ volatile("tdpbssd %%tmm" #weights ", %%tmm" #tokens ", %%tmm" #sums : :)
#define TILE_DOT_UNSIGNED(sums, tokens, weights)                                                   \
    __asm__ volatile("tdpbsud %%tmm" #weights ", %%tmm" #tokens ", %%tmm" #sums : :)
/* is_signed is a constant where this stands. */
#define TILE_DOT(is_signed, sums, tokens, weights)                                                 \
    do {                                                                                           \
        if (is_signed)                                                                             \
            TILE_DOT_SIGNED(sums, tokens, weights);                                                \
        else                                                                                       \
            TILE_DOT_UNSIGNED(sums, tokens, weights);                                              \
    } while (0)

/* The layout that LDTILECFG reads. */
typedef struct tile_shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shapes;

_Static_assert(sizeof(tile_shapes) == 64, "LDTILECFG reads 64 bytes");

static void open_tiles(void)
{
    _Alignas(64) tile_shapes s = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        s.row_bytes[t] = 64;
        s.rows[t] = 16;
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(s));
}

static void close_tiles(void)
{
    __asm__ volatile("tilerelease" : :);
}

typedef int32_t tile_sums[STRIP][PACK_ROWS];

/* ---- weights -------------------------------------------------------------------------------- */

/* A panel's group as tiles take it. */
typedef struct weights {
    _Alignas(64) uint8_t planes[2][8 * MATMUL_GROUP][4 * PACK_ROWS]; /* quads */
    __m512 d, dmin;                         /* what small scales and minimums are times */
    __m512i minimums[2 * MATMUL_GROUP / 2]; /* small ones of two blocks (or halves), 16 bits each */
} weights;

/* Values with a minimum are unsigned, the others signed once their top bit is flipped back. */
INLINE int is_signed(pack_kind kind)
{
    return !matmul_has_minimum(kind);
}

INLINE int has_digits(pack_kind kind)
{
    return kind == PACK_Q4_K || kind == PACK_Q5_K;
}

INLINE int has_one_plane(pack_kind kind)
{
    return kind == PACK_Q2_K || kind == PACK_Q8_K;
}

/* A panel's next groups come to the second-level cache while this one is multiplied: the hardware does
 * not find a stream that stands still for so long. */
#define AHEAD_BYTES 8192
INLINE void fetch_ahead(const uint8_t *from, size_t size)
{
    for (size_t line = 0; line < size; line += 64)
        _mm_prefetch((const char *)from + AHEAD_BYTES + line, _MM_HINT_T1);
}

INLINE __m512i keep_quad(pack_kind kind, const uint8_t *v, int j, uint8_t *to)
{
    __m512i w = quad(kind, v, j);
    _mm512_store_si512(to, w);
    return is_signed(kind) ? _mm512_xor_si512(w, bytes(0x80)) : w;
}

/* Both 16-bit halves of a lane are its low one. */
INLINE __m512i twice(__m512i a)
{
    return _mm512_or_si512(_mm512_and_si512(a, _mm512_set1_epi32(0xFFFF)),
                           _mm512_slli_epi32(a, 16));
}

/* The planes of a quad whose rows have these small scales (32-bit lanes). */
INLINE void put_planes(pack_kind kind, __m512i w, __m512i scale, uint8_t *low, uint8_t *high)
{
    const __m512i odd = _mm512_set1_epi16((short)0xFF00);
    if (kind == PACK_Q8_K) {
        _mm512_store_si512(low, w);
    } else if (kind == PACK_Q2_K) {
        _mm512_store_si512(low, _mm512_mullo_epi16(w, twice(scale)));
    } else if (has_digits(kind)) {
        __m512i seven = _mm512_set1_epi32(7);
        __m512i value = kind == PACK_Q5_K ? right(w, 3, 31) : w;
        _mm512_store_si512(low, _mm512_mullo_epi16(value, twice(_mm512_and_si512(scale, seven))));
        _mm512_store_si512(high, _mm512_mullo_epi16(value, twice(_mm512_srli_epi32(scale, 3))));
    } else {
        /* The upper half of 256 value * 256 scale. */
        __m512i s = twice(_mm512_slli_epi32(scale, 8));
        __m512i a = _mm512_mulhi_epi16(_mm512_slli_epi16(w, 8), s);
        __m512i b = _mm512_mulhi_epi16(_mm512_and_si512(w, odd), s);
        _mm512_store_si512(low, _mm512_ternarylogic_epi64(odd, _mm512_slli_epi16(b, 8), a, 0xCA));
        _mm512_store_si512(high, _mm512_ternarylogic_epi64(odd, b, _mm512_srli_epi16(a, 8), 0xCA));
    }
}

/* The small minimums' quad k as two vectors of pairs. */
INLINE void put_minimums(pack_kind kind, weights *w, const uint8_t *p, int k)
{
    __m512i m = kind == PACK_Q2_K ? right(load(p + 64, k), 4, 15) : load(p + 192, k);
    w->minimums[2 * k] = _mm512_and_si512(m, _mm512_set1_epi16(0xFF));
    w->minimums[2 * k + 1] = _mm512_srli_epi16(m, 8);
}

/* Sets *w and unpacked to a group; p is its scales. */
INLINE void unpack_scaled(pack_kind kind, weights *w, const uint8_t *p, matmul_unpacked *unpacked)
{
    const uint8_t *v = p + matmul_scale_bytes(kind);
    w->d = base_scale(kind, p);
    w->dmin = load_minimum(kind, p);
    fetch_ahead(p,
                (size_t)matmul_scale_bytes(kind) + MATMUL_GROUP * (size_t)matmul_value_bytes(kind));
    for (int k = 0; matmul_has_minimum(kind) && k < (kind == PACK_Q2_K ? 4 : 2); k++)
        put_minimums(kind, w, p, k);
    for (int32_t b = 0; b < MATMUL_GROUP; b++, unpacked++, v += matmul_value_bytes(kind)) {
        UNROLL
        for (int half = 0; half < 2; half++) {
            int which = matmul_has_halves(kind) ? half : 0;
            __m512i scale = small_scale(kind, p, b, which);
            UNROLL
            for (int j = 4 * half; j < 4 * half + 4; j++)
                put_planes(kind, keep_quad(kind, v, j, unpacked->quads[j]), scale,
                           w->planes[0][8 * b + j], w->planes[1][8 * b + j]);
            _mm512_store_ps(unpacked->scales[half], load_scale(kind, p, b, which));
        }
    }
}

/* ---- steps ---------------------------------------------------------------------------------- */

/* Tiles of a group that are gathered and not yet added to the tokens' sums. */
typedef struct pending {
    tile_sums *sums; /* strip 0 low, strip 1 low, strip 0 high, strip 1 high */
    const weights *w;
    const strip_group *in[2]; /* neighbouring strips */
    int32_t n_strips;         /* 0: nothing is pending */
    float (*acc)[PACK_ROWS];
} pending;

/* sum + dot products of the pairs of w with two of 16 bits; as assembly for dot's reason. */
INLINE __m512i dot_pairs(__m512i sum, __m512i w, const int16_t *pair)
{
    __asm__("vpdpwssd %2%{1to16%}, %1, %0"
            : "+v"(sum)
            : "v"(w), "m"(*(const int32_t(*)[1])(const void *)pair));
    return sum;
}

/* acc of some tokens of a strip += the pending group. */
INLINE void add_group(pack_kind kind, const pending *p, int strip, int first, int count)
{
    const weights *w = p->w;
    const strip_group *in = p->in[strip];
    UNROLL
    for (int t = first; t < first + count; t++) {
        float *acc = p->acc[STRIP * strip + t];
        __m512i sum = _mm512_load_si512(p->sums[strip][t]);
        if (!has_one_plane(kind))
            sum = _mm512_add_epi32(sum, _mm512_slli_epi32(_mm512_load_si512(p->sums[2 + strip][t]),
                                                          has_digits(kind) ? 3 : 8));
        if (kind == PACK_Q5_K) /* what its quads are times */
            sum = _mm512_slli_epi32(sum, 3);
        __m512 g = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), w->d);
        if (matmul_has_minimum(kind)) {
            const int16_t *sums = kind == PACK_Q2_K ? in->half_sums[t] : in->block_sums[t];
            const int n_pairs = kind == PACK_Q2_K ? 8 : 4;
            __m512i minimum = _mm512_setzero_si512();
            UNROLL
            for (int k = 0; k < n_pairs; k++)
                minimum = dot_pairs(minimum, w->minimums[k], sums + 2 * k);
            g = _mm512_fnmadd_ps(w->dmin, _mm512_cvtepi32_ps(minimum), g);
        }
        _mm512_store_ps(acc, _mm512_fmadd_ps(g, _mm512_set1_ps(in->d[t]), _mm512_load_ps(acc)));
    }
}

/* Multiplies one or two strips with a group, adding up what is pending meanwhile. */
INLINE void step(pack_kind kind, const pending *now, const pending *before)
{
    int two = now->n_strips == 2;
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
    for (int k = 0; k < 4; k++) {
        int strip = k / 2, t = k % 2 * 8, adds = strip < before->n_strips;
        TILE_LOAD(4, now->in[0]->q[k]);
        TILE_LOAD(6, now->w->planes[0][16 * k]);
        TILE_DOT(kind == PACK_Q8_K, 0, 4, 6);
        if (adds)
            add_group(kind, before, strip, t, 2);
        if (two) {
            TILE_LOAD(5, now->in[1]->q[k]);
            TILE_DOT(kind == PACK_Q8_K, 1, 5, 6);
        }
        if (adds)
            add_group(kind, before, strip, t + 2, 2);
        if (!has_one_plane(kind)) {
            TILE_LOAD(7, now->w->planes[1][16 * k]);
            TILE_DOT(is_signed(kind), 2, 4, 7);
            if (adds)
                add_group(kind, before, strip, t + 4, 2);
            if (two)
                TILE_DOT(is_signed(kind), 3, 5, 7);
        } else if (adds) {
            add_group(kind, before, strip, t + 4, 2);
        }
        if (adds)
            add_group(kind, before, strip, t + 6, 2);
    }
    TILE_STORE(0, now->sums[0]);
    if (two)
        TILE_STORE(1, now->sums[1]);
    if (!has_one_plane(kind)) {
        TILE_STORE(2, now->sums[2]);
        if (two)
            TILE_STORE(3, now->sums[3]);
    }
}

/* ---- panels --------------------------------------------------------------------------------- */

/* A span of tokens and one or two neighbouring panels, which share what is read of the tokens. */
#define PANELS 2
typedef struct panels_job {
    int32_t n_panels;
    const uint8_t *panels[PANELS];
    int32_t n_blocks;
    const void *prepared; /* of all_tokens */
    int32_t all_tokens, first_token, n_tokens;
    float (*acc[PANELS])[PACK_ROWS];   /* [n_tokens, up to a whole strip] */
    matmul_unpacked *unpacked[PANELS]; /* [n_blocks]; if there are more than UNPACKED_BLOCKS,
                                          [MATMUL_GROUP], the last one's */
} panels_job;

static const strip_group *strip_at(const panels_job *j, int32_t strip, int32_t group)
{
    return group_of(j->prepared, j->all_tokens, group, j->first_token / STRIP + strip);
}

static matmul_unpacked *unpacked_at(const panels_job *j, int panel, int32_t group)
{
    return j->unpacked[panel] + (j->n_blocks > UNPACKED_BLOCKS ? 0 : group * MATMUL_GROUP);
}

/* Sets w[n_panels] and the group's unpacked. */
INLINE void unpack_group(pack_kind kind, const panels_job *j, weights *w, int32_t group)
{
    for (int i = 0; i < j->n_panels; i++)
        unpack_scaled(kind, &w[i], matmul_scales_at(kind, j->panels[i], group * MATMUL_GROUP),
                      unpacked_at(j, i, group));
}

/* The sums of all tokens but for outliers. */
INLINE void multiply_all(pack_kind kind, const panels_job *j)
{
    _Alignas(64) tile_sums sums[2][4];
    weights w[2][PANELS];
    pending before = {0};
    int32_t n_strips = strips_of(j->n_tokens), turn = 0;
    for (int32_t g = 0; g < groups_of(j->n_blocks); g++) {
        unpack_group(kind, j, w[g % 2], g);
        for (int32_t s = 0; s < n_strips; s += 2)
            for (int i = 0; i < j->n_panels; i++, turn ^= 1) {
                pending now = {.sums = sums[turn],
                               .w = &w[g % 2][i],
                               .in = {strip_at(j, s, g), strip_at(j, s + 1, g)},
                               .n_strips = n_strips - s < 2 ? 1 : 2,
                               .acc = j->acc[i] + STRIP * s};
                step(kind, &now, &before);
                before = now;
            }
    }
    for (int32_t s = 0; s < before.n_strips; s++)
        add_group(kind, &before, s, 0, STRIP);
}

/* Adds an outlier to its token's sums. unpacked is the group's, whose scales stand for both halves. */
INLINE void add_strip_outlier(pack_kind kind, float (*strip_sums)[PACK_ROWS],
                              const matmul_unpacked *unpacked, const strip_outlier *o)
{
    float *acc = (float *)(void *)((uint8_t *)strip_sums + o->sums_at);
    const uint8_t *group = (const uint8_t *)unpacked;
    __m512i sum = dot(first_sum(kind, &o->bias), load(group + o->quad_at, 0), o->q);
    __m512 scale = _mm512_load_ps((const float *)(const void *)(group + o->scale_at));
    __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale);
    _mm512_store_ps(acc, _mm512_fmadd_ps(product, _mm512_set1_ps(o->d), _mm512_load_ps(acc)));
}

/* Adds the outliers of all tokens: a group of columns after the other, as each token's come, since its
 * quads are wanted in any order by tokens that are met in order. */
INLINE void correct_all(pack_kind kind, const panels_job *j)
{
    for (int32_t g = 0; g < groups_of(j->n_blocks); g++) {
        if (j->n_blocks > UNPACKED_BLOCKS) {
            weights w[PANELS];
            unpack_group(kind, j, w, g);
        }
        for (int32_t s = 0; s < strips_of(j->n_tokens); s++) {
            const strip_group *in = strip_at(j, s, g);
            const strip_outlier *o = outliers_of(j->prepared, j->all_tokens, j->n_blocks,
                                                 j->first_token / STRIP + s) +
                                     in->first_outlier;
            for (const strip_outlier *end = o + in->n_outliers; o < end; o++) {
                add_strip_outlier(kind, j->acc[0] + STRIP * s, unpacked_at(j, 0, g), o);
                if (j->n_panels == 2)
                    add_strip_outlier(kind, j->acc[1] + STRIP * s, unpacked_at(j, 1, g), o);
            }
        }
    }
}

/* out is where the first token's results of the panel begin; bias likewise, or NULL. */
static void write_panel(const panels_job *j, int panel, float *out, size_t out_stride,
                        const float *bias_, int32_t n_rows)
{
    __mmask16 rows = (__mmask16)(n_rows < PACK_ROWS ? (1u << n_rows) - 1 : 0xFFFF);
    __m512 bias = bias_ ? _mm512_maskz_loadu_ps(rows, bias_) : _mm512_setzero_ps();
    for (int32_t t = 0; t < j->n_tokens; t++) {
        __m512 sum = _mm512_load_ps(j->acc[panel][t]);
        if (bias_)
            sum = _mm512_add_ps(sum, bias);
        _mm512_mask_storeu_ps(out + (size_t)t * out_stride, rows, sum);
    }
}

/* Only of types of 256 values: of others the functions are never called, and empty. */
#define MULTIPLY(kind, super, scale_bytes, value_bytes)                                            \
    static void multiply_##kind(const panels_job *j)                                               \
    {                                                                                              \
        if (super > 1) {                                                                           \
            multiply_all(PACK_##kind, j);                                                          \
            correct_all(PACK_##kind, j);                                                           \
        }                                                                                          \
    }
#define MULTIPLY_ENTRY(kind, super, scale_bytes, value_bytes) [PACK_##kind] = multiply_##kind,
PACK_MAP(MULTIPLY)
static void (*const multiply[PACK_KINDS])(const panels_job *) = {PACK_MAP(MULTIPLY_ENTRY)};

/* Strips of a span. */
static int32_t span_of(int32_t n_blocks)
{
    int32_t strips = (int32_t)(SPAN_BYTES / ((size_t)groups_of(n_blocks) * sizeof(strip_group)));
    strips = strips < SPAN_STRIPS ? strips & -2 : SPAN_STRIPS;
    return strips < 2 ? 2 : strips;
}

void matmul_amx_product(pack_kind kind, const cpu_weight *w, const void *prepared, int32_t n_tokens,
                        float *out, int32_t out_stride, const float *bias, int32_t first_row,
                        int32_t row_count)
{
    _Alignas(64) float acc[PANELS][SPAN_STRIPS * STRIP][PACK_ROWS];
    matmul_unpacked unpacked[PANELS][UNPACKED_BLOCKS];
    panels_job j = {.n_blocks = w->head.n_cols / PACK_BLOCK,
                    .prepared = prepared,
                    .all_tokens = n_tokens,
                    .acc = {acc[0], acc[1]},
                    .unpacked = {unpacked[0], unpacked[1]}};
    size_t panel_bytes = pack_panel_bytes(w->head.type, w->head.n_cols),
           stride = (size_t)out_stride;
    int32_t span = STRIP * span_of(j.n_blocks), end_row = first_row + row_count;
    open_tiles();
    for (j.first_token = 0; j.first_token < n_tokens; j.first_token += span) {
        int32_t left = n_tokens - j.first_token;
        j.n_tokens = left < span ? left : span;
        for (int32_t row = first_row; row < end_row; row += PANELS * PACK_ROWS) {
            j.n_panels = end_row - row > PACK_ROWS ? 2 : 1;
            for (int i = 0; i < j.n_panels; i++) {
                j.panels[i] = (const uint8_t *)w->packed +
                              ((size_t)(row / PACK_ROWS) + (size_t)i) * panel_bytes;
                memset(acc[i], 0, (size_t)strips_of(j.n_tokens) * STRIP * sizeof *acc[i]);
            }
            multiply[kind](&j);
            for (int i = 0; i < j.n_panels; i++)
                write_panel(&j, i, out + (size_t)j.first_token * stride + row + i * PACK_ROWS,
                            stride, bias ? bias + row + i * PACK_ROWS : NULL,
                            end_row - row - i * PACK_ROWS);
        }
    }
    close_tiles();
}
