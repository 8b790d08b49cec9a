/* compute/cpu/matmul_prepare.inl: the walk over tokens and blocks that prepares activations
 * (matmul_prepared.h). Included by each instruction set's file after its own
 *   static int prepare_block(matmul_input *in, matmul_input *correction, const float *x,
 *                            float threshold)
 *       writes *in from x[32]; and *correction, returning 1, if a magnitude is above threshold
 *   static float energy(const float *x, int32_t n)
 *       sum of squares of n (a multiple of 32) values: sixteen sums of values 16 apart, products
 *       rounded before they are added; then the upper half of the sums onto the lower until one
 *       is left */
#include <math.h>
#include <string.h>

/* The tokens first .. first+n-1 of a tile of count. x is the group's first token's. */
static void prepare_group(uint8_t *tile, int32_t count, int32_t first, int32_t n, const float *x,
                          int32_t n_cols)
{
    int32_t n_blocks = n_cols / 32;
    uint8_t *group = tile + matmul_group_offset(count, first, n_blocks);
    uint32_t *list = (uint32_t *)(void *)group, listed = 0;
    matmul_input *in = (matmul_input *)(void *)tile + first;
    matmul_input *corrections = (matmul_input *)(void *)(group + matmul_list_bytes(n_blocks));
    float thresholds[MATMUL_GROUP];
    for (int32_t t = 0; t < n; t++)
        thresholds[t] = MATMUL_OUTLIER * sqrtf(energy(x + (size_t)t * (size_t)n_cols, n_cols) /
                                               (float)n_cols);
    for (int32_t b = 0; b < n_blocks; b++, in += count) {
        uint32_t corrected = 0;
        for (int32_t t = 0; t < n; t++)
            if (prepare_block(in + t, corrections + t,
                              x + (size_t)t * (size_t)n_cols + (size_t)b * 32, thresholds[t]))
                corrected |= 1u << t;
        if (!corrected)
            continue;
        for (int32_t t = 0; t < n; t++)
            if (!(corrected >> t & 1))
                memset(corrections + t, 0, sizeof *corrections);
        corrections += n;
        list[++listed] = (uint32_t)b | corrected << MATMUL_INDEX_BITS;
    }
    list[0] = listed;
}

static void prepare(void *prepared, const float *x, int32_t first_token, int32_t count,
                    int32_t n_tokens, int32_t n_cols)
{
    size_t tile_bytes = matmul_tile_bytes(MATMUL_TILE, n_cols / 32);
    for (int32_t t = first_token; t < first_token + count; t += MATMUL_GROUP) {
        int32_t in_tile = t % MATMUL_TILE, begin = t - in_tile;
        int32_t tile_count = n_tokens - begin < MATMUL_TILE ? n_tokens - begin : MATMUL_TILE;
        int32_t n = tile_count - in_tile < MATMUL_GROUP ? tile_count - in_tile : MATMUL_GROUP;
        prepare_group((uint8_t *)prepared + (size_t)(begin / MATMUL_TILE) * tile_bytes, tile_count,
                      in_tile, n, x + (size_t)t * (size_t)n_cols, n_cols);
    }
}
