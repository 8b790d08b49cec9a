/* compute/cpu/matmul_packed.h: products of packed weights (pack.h) with prepared activations
 * (matmul_prepared.h): what one instruction set brings, and what all of them share.
 *
 * Every instruction set gives the same bits, because each output is made by the same operations:
 *   acc = 0
 *   for each group of up to eight blocks, in order:
 *       types of 32 values:
 *           g = 0
 *           for each block, in order:
 *               g = fma((float)dot, scale, g)
 *               g = fma(minimum, (float)sum of n, g)                      types with minimums
 *       types of 256 values, whose blocks or half blocks have small whole numbers for scales:
 *           g = (float)(sum of dot * small scale) * d
 *           g = fma(-dmin, (float)(sum of small minimum * sum of n), g)   types with minimums
 *       acc = fma(g, the activations' d, acc)
 *   for each outlier, in order:
 *       acc = fma((float)dot * scale, d, acc)
 *   acc + bias
 * and it involves nothing but the row and the token. dot is an exact integer sum of value * q, and
 * so are the sums of 256 values (below 2^30 in magnitude in all types, times the powers of two that
 * a kernel may leave in). An integer is rounded to F32 once, as conversion does, so a power of two
 * in it and its inverse in the scale change nothing.
 *
 * Functions here run on pool threads and keep no state. */
#ifndef REALM_COMPUTE_CPU_MATMUL_PACKED_H
#define REALM_COMPUTE_CPU_MATMUL_PACKED_H

#include "compute/cpu/matmul.h"
#include "compute/cpu/matmul_prepared.h"
#include "compute/cpu/pack.h"

/* A number for each packed type, to index tables. */
typedef enum pack_kind {
#define PACK_KIND(type, super, scale_bytes, value_bytes) PACK_##type,
    PACK_MAP(PACK_KIND)
#undef PACK_KIND
        PACK_KINDS
} pack_kind;

/* What kernels that are compiled once a type ask about it; all are constants there. */

static inline int matmul_has_minimum(pack_kind kind)
{
    return kind == PACK_Q4_1 || kind == PACK_Q5_1 || kind == PACK_Q4_K || kind == PACK_Q5_K ||
           kind == PACK_Q2_K;
}

/* Two scales a block, sixteen columns each. */
static inline int matmul_has_halves(pack_kind kind)
{
    return kind == PACK_Q6_K || kind == PACK_Q3_K || kind == PACK_Q2_K;
}

static inline int matmul_super(pack_kind kind)
{
    static const uint8_t super_blocks[PACK_KINDS] = {
#define PACK_SUPER(type, super, scale_bytes, value_bytes) super,
        PACK_MAP(PACK_SUPER)
#undef PACK_SUPER
    };
    return super_blocks[kind];
}

static inline int matmul_scale_bytes(pack_kind kind)
{
    static const uint16_t scale_sizes[PACK_KINDS] = {
#define PACK_SCALE_BYTES(type, super, scale_bytes, value_bytes) scale_bytes,
        PACK_MAP(PACK_SCALE_BYTES)
#undef PACK_SCALE_BYTES
    };
    return scale_sizes[kind];
}

static inline int matmul_value_bytes(pack_kind kind)
{
    static const uint16_t value_sizes[PACK_KINDS] = {
#define PACK_VALUE_BYTES(type, super, scale_bytes, value_bytes) value_bytes,
        PACK_MAP(PACK_VALUE_BYTES)
#undef PACK_VALUE_BYTES
    };
    return value_sizes[kind];
}

/* Where a block's scales and values are in a panel (pack.h). */
static inline const uint8_t *matmul_scales_at(pack_kind kind, const uint8_t *panel, int32_t block)
{
    size_t b = (size_t)block, scale_bytes = (size_t)matmul_scale_bytes(kind);
    if (matmul_super(kind) == 1)
        return panel + b * scale_bytes;
    return panel + b / 8 * (scale_bytes + 8 * (size_t)matmul_value_bytes(kind));
}

static inline const uint8_t *matmul_values_at(pack_kind kind, const uint8_t *panel,
                                              int32_t n_blocks, int32_t block)
{
    size_t b = (size_t)block, scale_bytes = (size_t)matmul_scale_bytes(kind);
    size_t value_bytes = (size_t)matmul_value_bytes(kind);
    if (matmul_super(kind) == 1)
        return panel + ((size_t)n_blocks * scale_bytes + 63) / 64 * 64 + b * value_bytes;
    return matmul_scales_at(kind, panel, block) + scale_bytes + b % 8 * value_bytes;
}

/* Where, from a block's scales, the line lies that is to be fetched ahead with the block: types of
 * 256 values have scales of five lines for eight blocks, of which each block fetches one. (The
 * hardware finds the values' stream, but not these lines; with the first line alone products of few
 * tokens ran at 60 % of the speed.) */
static inline size_t matmul_scales_ahead(pack_kind kind, int32_t block)
{
    return matmul_super(kind) == 1 ? 0 : 64 * (size_t)(block % 8);
}

/* sums[t][row] = the product of one panel with T neighbouring tokens of a tile, all blocks.
 * input is the first token's first block; its next block stride inputs on. */
typedef void (*matmul_tile)(float (*sums)[PACK_ROWS], const uint8_t *panel, size_t panel_bytes,
                            int32_t n_blocks, const matmul_input *input, size_t stride);

/* Adds a token's outliers to its sums[row] of one panel. */
typedef void (*matmul_correct)(float *sums, const uint8_t *panel, int32_t n_blocks,
                               const matmul_list *list);

/* A block of a panel as products of many tokens read it: unpacked by the first tile of tokens and
 * read by all others and by corrections, from the first- and second-level caches. */
typedef struct matmul_unpacked {
    _Alignas(64) uint8_t quads[8][4 * PACK_ROWS]; /* as the kernel's dot products take them */
    float scales[2][PACK_ROWS];                   /* what their dot products are times; of the
                                                     whole block, or of each half */
} matmul_unpacked;

/* As matmul_tile, for MATMUL_TILE tokens; unpacked is the panel's, [n_blocks]. */
typedef void (*matmul_many_tile)(float (*sums)[PACK_ROWS], const uint8_t *panel, size_t panel_bytes,
                                 int32_t n_blocks, const matmul_input *input,
                                 matmul_unpacked *unpacked);

typedef struct matmul_many {
    matmul_many_tile unpacking; /* writes unpacked */
    matmul_many_tile unpacked;  /* reads it, to the same bits */
    /* Adds the outliers of two neighbouring tokens. */
    void (*correct_two)(float (*sums)[PACK_ROWS], const matmul_unpacked *unpacked,
                        const matmul_list *one, const matmul_list *other);
} matmul_many;

typedef struct matmul_isa {
    /* As cpu_matmul's. */
    void (*prepare)(void *prepared, const float *x, int32_t first_token, int32_t count,
                    int32_t n_tokens, int32_t n_cols);
    const matmul_tile *tiles[PACK_KINDS]; /* [MATMUL_TILE + 1] by T; NULL: not built */
    matmul_correct corrects[PACK_KINDS];
    const matmul_many *many; /* [PACK_KINDS]; NULL: the tiles do for many tokens too */
} matmul_isa;

/* The table of one instruction set, from its file's macros: WIDTHS(X, kind) names the token counts
 * that it has kernels for (others are put together from them), TILE(kind, T) and CORRECT(kind)
 * define the functions tile_<kind>_<T> and correct_<kind>. More fields may follow the name. */
#define MATMUL_TILE_ENTRY(kind, T) [T] = tile_##kind##_##T,
#define MATMUL_KIND(kind, super, scale_bytes, value_bytes)                                         \
    WIDTHS(TILE, kind)                                                                             \
    CORRECT(kind)                                                                                  \
    static const matmul_tile tiles_##kind[MATMUL_TILE + 1] = {WIDTHS(MATMUL_TILE_ENTRY, kind)};
#define MATMUL_TILES(kind, super, scale_bytes, value_bytes)    [PACK_##kind] = tiles_##kind,
#define MATMUL_CORRECTS(kind, super, scale_bytes, value_bytes) [PACK_##kind] = correct_##kind,
#define MATMUL_ISA(isa, ...)                                                                       \
    PACK_MAP(MATMUL_KIND)                                                                          \
    const matmul_isa matmul_isa_##isa = {.prepare = prepare,                                       \
                                         .tiles = {PACK_MAP(MATMUL_TILES)},                        \
                                         .corrects = {PACK_MAP(MATMUL_CORRECTS)},                  \
                                         __VA_ARGS__};

extern const matmul_isa matmul_isa_scalar;
#if defined(__x86_64__)
extern const matmul_isa matmul_isa_avx2, matmul_isa_avx_vnni, matmul_isa_avx512;
#elif defined(__aarch64__)
extern const matmul_isa matmul_isa_neon, matmul_isa_neon_dot, matmul_isa_neon_i8mm;
#endif

/* The kernels of the backend's contract made of them. Each takes all packed types. */
extern const cpu_matmul matmul_packed_scalar;
#if defined(__x86_64__)
extern const cpu_matmul matmul_packed_avx2, matmul_packed_avx_vnni, matmul_packed_avx512,
    matmul_packed_amx;
#elif defined(__aarch64__)
extern const cpu_matmul matmul_packed_neon, matmul_packed_neon_dot, matmul_packed_neon_i8mm;
#endif

#endif
