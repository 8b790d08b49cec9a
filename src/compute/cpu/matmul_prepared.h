/* compute/cpu/matmul_prepared.h: activations as the quantized products read them.
 *
 * A token's row is cut into blocks of 32 values; a block becomes 32 integers of -127..127 and the
 * F32 scale d = max|x| / 127. A value far above the others would cost them their precision, and
 * that is where most of the error of 8-bit activations comes from. So quads (four neighbouring
 * values, what one dot-product instruction takes) with a magnitude above MATMUL_OUTLIER times the
 * row's root mean square are taken out first: quantized on their own with a scale of their own,
 * and what rounding left of them stays in the block. The product adds them after all blocks. At
 * most one quad in three can be one; in real models it is one in thirty, in noise one in five hundred.
 * docs/NUMERICS.md has the figures. A block below 2^-100 everywhere counts as zero, one that holds
 * NaN or infinity as NaN.
 *
 * Tokens stand in tiles of up to MATMUL_TILE, which is how many a kernel multiplies while it has a
 * block of weights unpacked. A tile of T tokens and n blocks is
 *   matmul_input [n][T]                      the blocks
 *   then for each token, matmul_list_bytes apart, a matmul_list
 * Written by prepare on pool threads, one token by one thread; then read by all. */
#ifndef REALM_COMPUTE_CPU_MATMUL_PREPARED_H
#define REALM_COMPUTE_CPU_MATMUL_PREPARED_H

#include <stddef.h>
#include <stdint.h>

#define MATMUL_TILE    12
#define MATMUL_OUTLIER 3.5f

typedef struct matmul_input {
    int8_t q[32];
    float d;              /* x ~ d * q, but for what is in the list */
    float sum;            /* of the block as quantized, list included: what a minimum is times */
    int32_t bias;         /* -128 * sum of q: takes back what makes signed weights unsigned */
    int32_t half_bias[2]; /* the same of q[0..15] and q[16..31] */
    float half_sum[2];    /* likewise */
    int32_t unused;
} matmul_input;

_Static_assert(sizeof(matmul_input) == 64, "one cache line a block");

/* Four values apart from their block. */
typedef struct matmul_outlier {
    uint32_t quad; /* columns 4 * quad .. 4 * quad + 3 */
    int8_t q[4];
    float d;
    int32_t bias; /* -128 * sum of q */
} matmul_outlier;

typedef struct matmul_list {
    uint32_t count, unused[3];
    matmul_outlier items[]; /* [count], ascending */
} matmul_list;

/* Each outlier's square is more than MATMUL_OUTLIER^2 = 12.25 times the mean, so there are fewer
 * than n_cols / 12.25 = 2.7 a block; the rest is for rounding. */
static inline uint32_t matmul_list_room(int32_t n_blocks)
{
    return 4 * (uint32_t)n_blocks;
}

static inline size_t matmul_list_bytes(int32_t n_blocks)
{
    return sizeof(matmul_list) + 48 + matmul_list_room(n_blocks) * sizeof(matmul_outlier);
}

/* Bytes of a tile of count tokens; a multiple of 64. */
static inline size_t matmul_tile_bytes(int32_t count, int32_t n_blocks)
{
    return (size_t)count * ((size_t)n_blocks * sizeof(matmul_input) + matmul_list_bytes(n_blocks));
}

/* The list of token t of a tile of count tokens. */
static inline const matmul_list *matmul_list_of(const void *tile, int32_t count, int32_t t,
                                                int32_t n_blocks)
{
    return (const void *)((const uint8_t *)tile +
                          (size_t)count * (size_t)n_blocks * sizeof(matmul_input) +
                          (size_t)t * matmul_list_bytes(n_blocks));
}

/* What cpu_matmul's input_bytes is, for every instruction set. */
static inline size_t matmul_prepared_bytes(int32_t n_tokens, int32_t n_cols)
{
    int32_t n_blocks = n_cols / 32, rest = n_tokens % MATMUL_TILE;
    return (size_t)(n_tokens / MATMUL_TILE) * matmul_tile_bytes(MATMUL_TILE, n_blocks) +
           (rest ? matmul_tile_bytes(rest, n_blocks) : 0);
}

#endif
