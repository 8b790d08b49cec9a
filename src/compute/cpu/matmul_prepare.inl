/* compute/cpu/matmul_prepare.inl: the walk over tokens, groups and blocks that prepares activations
 * (matmul_prepared.h). Included by each instruction set's file after its own
 *   static float energy(const float *x, int32_t n)
 *       sum of squares of n (a multiple of 32) values: sixteen sums of values 16 apart, products
 *       rounded before they are added; then the upper half of the sums onto the lower until one
 *       is left
 *   static float magnitude(const float *x, int32_t n)
 *       the largest magnitude of n (a multiple of 32) values, infinity and NaN above all numbers
 *   static float magnitude_below(const float *x, int32_t n, float most)
 *       the same of those that are not above most; 0 if all are
 *   static uint32_t put_block(matmul_input *in, int32_t sums[2], int8_t high[32], const float *x,
 *                             float inverse)
 *       writes q and the biases of *in from n = x[32] * inverse, rounded to nearest, and the sums of
 *       both halves of q; returns which quads have high parts, a bit each. If any, high is the high
 *       parts of all */
#include <math.h>
#include <string.h>

/* Takes the high parts of the quads of a block into the list and into the block's sums. */
static void list_high(matmul_list *list, uint32_t room, int32_t sums[2], const int8_t high[32],
                      uint32_t quads, int32_t block, float d)
{
    for (; quads && list->count < room; quads &= quads - 1) {
        int j = __builtin_ctz(quads), sum = 0;
        matmul_outlier *o = &list->items[list->count++];
        memcpy(o->q, high + 4 * j, sizeof o->q);
        for (int i = 0; i < 4; i++)
            sum += o->q[i];
        o->quad = (uint32_t)block * 8 + (uint32_t)j;
        o->d = d * MATMUL_HIGH;
        o->bias = -128 * sum;
        sums[j / 4] += MATMUL_HIGH * sum;
    }
}

/* All of a group's integers are zero and its scale d is 0 or NaN. */
static void clear_group(matmul_input *in, size_t stride, int32_t count, float d)
{
    for (int32_t b = 0; b < count; b++, in += stride) {
        memset(in, 0, sizeof *in);
        in->d = d;
    }
}

/* The digits of a whole group's sums. */
static void put_digits(matmul_input *in, size_t stride, int32_t sums[MATMUL_GROUP][2])
{
    int8_t halves_[2][16], blocks[2][8];
    const int32_t *half = sums[0];
    for (int i = 0; i < 16; i++) {
        int32_t high = (half[i] + 128) >> 8;
        halves_[0][i] = (int8_t)(half[i] - 256 * high);
        halves_[1][i] = (int8_t)high;
    }
    for (int i = 0; i < 8; i++) {
        int32_t sum = half[2 * i] + half[2 * i + 1], high = (sum + 128) >> 8;
        blocks[0][i] = (int8_t)(sum - 256 * high);
        blocks[1][i] = (int8_t)high;
    }
    for (int k = 0; k < MATMUL_GROUP; k++)
        memcpy(in[(size_t)k * stride].half_digits, &halves_[k / 4][k % 4 * 4], 4);
    for (int k = 0; k < 4; k++)
        memcpy(in[(size_t)k * stride].block_digits, &blocks[k / 2][k % 2 * 4], 4);
}

/* Prepares count blocks from block number first on, a group. */
static void prepare_group(matmul_input *in, size_t stride, matmul_list *list, uint32_t room,
                          const float *x, int32_t first, int32_t count, float threshold)
{
    int32_t sums[MATMUL_GROUP][2];
    float largest = magnitude(x, 32 * count);
    if (!(largest >= 0x1p-100f && largest <= __FLT_MAX__)) {
        clear_group(in, stride, count, largest < 0x1p-100f ? 0 : __builtin_nanf(""));
        return;
    }
    if (largest > threshold)
        largest = fmaxf(magnitude_below(x, 32 * count, threshold), largest * 0.125f);
    float inverse = 127 / largest, d = largest * (1.0f / 127);
    for (int32_t b = 0; b < count; b++) {
        _Alignas(32) int8_t high[32];
        matmul_input *block = in + (size_t)b * stride;
        uint32_t quads = put_block(block, sums[b], high, x + 32 * (size_t)b, inverse);
        if (quads)
            list_high(list, room, sums[b], high, quads, first + b, d);
        block->d = d;
        block->sum = (float)(sums[b][0] + sums[b][1]);
        memset(block->half_digits, 0, sizeof *block - offsetof(matmul_input, half_digits));
    }
    if (count == MATMUL_GROUP)
        put_digits(in, stride, sums);
}

/* Magnitudes above this have a high part. Not below what counts as zero, so that no scale is
 * subnormal. */
static float outlier_threshold(const float *x, int32_t n_blocks)
{
    float mean = energy(x, n_blocks * 32) / (float)(n_blocks * 32);
    return fmaxf(MATMUL_OUTLIER * sqrtf(mean), 0x1p-100f);
}

/* Prepares one token. in is its first block; the next is stride on. */
static inline void prepare_token(matmul_input *in, size_t stride, matmul_list *list, const float *x,
                          int32_t n_blocks)
{
    float threshold = outlier_threshold(x, n_blocks);
    memset(list, 0, sizeof *list);
    for (int32_t b = 0; b < n_blocks; b += MATMUL_GROUP)
        prepare_group(in + (size_t)b * stride, stride, list, matmul_list_room(n_blocks),
                      x + 32 * (size_t)b, b,
                      n_blocks - b < MATMUL_GROUP ? n_blocks - b : MATMUL_GROUP, threshold);
}

static inline void prepare(void *prepared, const float *x, int32_t first_token, int32_t count,
                    int32_t n_tokens, int32_t n_cols)
{
    int32_t n_blocks = n_cols / 32;
    size_t tile_bytes = matmul_tile_bytes(MATMUL_TILE, n_blocks);
    for (int32_t t = first_token; t < first_token + count; t++) {
        uint8_t *tile = (uint8_t *)prepared + (size_t)(t / MATMUL_TILE) * tile_bytes;
        int32_t in_tile = t % MATMUL_TILE, rest = n_tokens - (t - in_tile);
        int32_t tile_count = rest < MATMUL_TILE ? rest : MATMUL_TILE;
        matmul_list *list = (matmul_list *)(uintptr_t)matmul_list_of(tile, tile_count, in_tile,
                                                                     n_blocks);
        prepare_token((matmul_input *)(void *)tile + in_tile, (size_t)tile_count, list,
                      x + (size_t)t * (size_t)n_cols, n_blocks);
    }
}
