/* compute/cpu/matmul_prepared.h: activations as the quantized products read them.
 *
 * A token's row is cut into blocks of 32 values; a block becomes 32 integers of -127..127 and the
 * F32 scale d = max|x| / 127. A block whose largest magnitude is over MATMUL_OUTLIER times the
 * row's root mean square would lose its small values to that one large one, and such blocks are
 * where most of the error of 8-bit activations comes from; what rounding took from them is
 * quantized once more, with scale d / 254, as a correction that the product adds after all blocks.
 * A correction costs what a block costs; one block in ten has one in real models, none in noise.
 * docs/NUMERICS.md has the figures. A block below 2^-100 everywhere counts as zero, one that holds
 * NaN or infinity as NaN.
 *
 * Tokens stand in tiles of up to MATMUL_TILE, which is how many a kernel multiplies while it has a
 * block of weights unpacked. A tile of T tokens and n blocks is
 *   matmul_input [n][T]                            all blocks
 *   and for each group of up to MATMUL_GROUP tokens of it:
 *   uint32_t [n + 1], up to a multiple of 64 bytes the number of corrected blocks, then for each
 *                                                  its index | bits of the tokens it is for << 28
 *   matmul_input [n][tokens of the group]          the corrections, zero for the other tokens
 * Written by prepare on pool threads, one tile by one thread; then read by all. */
#ifndef REALM_COMPUTE_CPU_MATMUL_PREPARED_H
#define REALM_COMPUTE_CPU_MATMUL_PREPARED_H

#include <stddef.h>
#include <stdint.h>

#define MATMUL_TILE 12
#define MATMUL_GROUP 4
#define MATMUL_OUTLIER 5.0f

#define MATMUL_INDEX_BITS 28

typedef struct matmul_input {
    int8_t q[32];
    float d;       /* x ~ d * q */
    float sum;     /* d * sum of q: what a minimum is multiplied with */
    int32_t bias;  /* -128 * sum of q: takes back what makes signed weights unsigned */
    int32_t half_bias[2]; /* the same of q[0..15] and q[16..31] */
    float half_sum[2];
    int32_t unused;
} matmul_input;

_Static_assert(sizeof(matmul_input) == 64, "one cache line a block");

static inline size_t matmul_list_bytes(int32_t n_blocks)
{
    return ((size_t)n_blocks * 4 + 4 + 63) / 64 * 64;
}

/* Bytes of a tile of count tokens. */
static inline size_t matmul_tile_bytes(int32_t count, int32_t n_blocks)
{
    size_t groups = ((size_t)count + MATMUL_GROUP - 1) / MATMUL_GROUP;
    return (size_t)count * (size_t)n_blocks * sizeof(matmul_input) * 2 +
           groups * matmul_list_bytes(n_blocks);
}

/* Start of the group that begins with token first (a multiple of MATMUL_GROUP) of a tile of count
 * tokens, from the tile's start. */
static inline size_t matmul_group_offset(int32_t count, int32_t first, int32_t n_blocks)
{
    return (size_t)(count + first) * (size_t)n_blocks * sizeof(matmul_input) +
           (size_t)(first / MATMUL_GROUP) * matmul_list_bytes(n_blocks);
}

/* What cpu_matmul's input_bytes is, for every instruction set. */
static inline size_t matmul_prepared_bytes(int32_t n_tokens, int32_t n_cols)
{
    int32_t n_blocks = n_cols / 32, rest = n_tokens % MATMUL_TILE;
    return (size_t)(n_tokens / MATMUL_TILE) * matmul_tile_bytes(MATMUL_TILE, n_blocks) +
           (rest ? matmul_tile_bytes(rest, n_blocks) : 0);
}

#endif
