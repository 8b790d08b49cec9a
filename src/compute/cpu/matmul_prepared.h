/* compute/cpu/matmul_prepared.h: activations as the quantized products read them.
 *
 * A token's row is cut into groups of 256 values (the last may be shorter), as K-quants cut the
 * weights' rows. A group is integers n times one F32 scale d, with |n| <= 1016. An integer is
 * written as n = q + 255 * high with q of -127..127. Nearly all have high = 0: d is such that only
 * values above MATMUL_OUTLIER times the row's root mean square need more (or those within an eighth
 * of the group's largest, so that n stays below 1016). Quads (four neighbouring values, what one
 * dot-product instruction takes) with a high part stand in a list, which the product adds after all
 * blocks. So a few large values do not cost the others their precision, which is where most of the
 * error of 8-bit activations comes from. At most one quad in three is in the list; in real models it
 * is one in thirty, in noise one in five hundred. docs/NUMERICS.md has the figures. A group below
 * 2^-100 everywhere counts as zero, one that holds NaN or infinity as NaN.
 *
 * Tokens stand in tiles of up to MATMUL_TILE, which is how many a kernel multiplies while it has a
 * block of weights unpacked. A tile of T tokens and n blocks of 32 values is
 *   matmul_input [n][T]                      the blocks
 *   then for each token, matmul_list_bytes apart, a matmul_list
 * Written by prepare on pool threads, one token by one thread; then read by all. */
#ifndef REALM_COMPUTE_CPU_MATMUL_PREPARED_H
#define REALM_COMPUTE_CPU_MATMUL_PREPARED_H

#include <stddef.h>
#include <stdint.h>

#define MATMUL_TILE    12
#define MATMUL_GROUP   8 /* blocks of a group */
#define MATMUL_OUTLIER 3.5f
#define MATMUL_HIGH    255 /* what the high part of an integer counts */

typedef struct matmul_input {
    int8_t q[32];
    float d;              /* of its group: x ~ d * (q + 255 * high) */
    float sum;            /* of all n: what a minimum is times, but for d */
    int32_t bias;         /* -128 * sum of q: takes back what makes signed weights unsigned */
    int32_t half_bias[2]; /* the same of q[0..15] and q[16..31] */
    /* The sums of n of a whole group's eight blocks and sixteen half blocks, for minimums that are
     * bytes: sum = low + 256 * high, low -128..127, four a dot-product instruction. Block k has the
     * low digits of half blocks 4k .. 4k+3, and block 4 + k their high digits; block k < 2 has the
     * low digits of blocks 4k .. 4k+3, and block 2 + k their high digits. */
    int8_t half_digits[4], block_digits[4];
    int32_t unused;
} matmul_input;

_Static_assert(sizeof(matmul_input) == 64, "one cache line a block");

/* The high parts of four values. */
typedef struct matmul_outlier {
    uint32_t quad; /* columns 4 * quad .. 4 * quad + 3 */
    int8_t q[4];
    float d;      /* 255 times its group's */
    int32_t bias; /* -128 * sum of q */
} matmul_outlier;

typedef struct matmul_list {
    uint32_t count, unused[3];
    matmul_outlier items[]; /* [count], ascending */
} matmul_list;

/* The square of a value with a high part is more than MATMUL_OUTLIER^2 = 12.25 times the mean, so
 * there are fewer than n_cols / 12.25 = 2.7 a block; the rest is for rounding. */
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
