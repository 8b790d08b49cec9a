/* compute/cpu/matmul_prepare.inl: the walk over tokens and blocks that prepares activations
 * (matmul_prepared.h). Included by each instruction set's file after its own
 *   static float magnitude(const float *x)
 *       the largest magnitude of x[32], infinity and NaN above all numbers
 *   static void quantize_block(matmul_input *in, const float *x, float largest)
 *       writes *in from x[32]; largest is magnitude(x)
 *   static float energy(const float *x, int32_t n)
 *       sum of squares of n (a multiple of 32) values: sixteen sums of values 16 apart, products
 *       rounded before they are added; then the upper half of the sums onto the lower until one
 *       is left */
#include <math.h>
#include <string.h>

/* Takes the quads with a magnitude above threshold out of the block x into list and leaves the
 * rest of it in rest. sums[h] is the sum, as quantized, of those of half h. block is its number. */
static void take_outliers(matmul_list *list, uint32_t room, float rest[32], float sums[2],
                          const float *x, int32_t block, float threshold)
{
    sums[0] = sums[1] = 0;
    memcpy(rest, x, 32 * sizeof *rest);
    for (int j = 0; j < 8; j++) {
        const float *v = x + 4 * j;
        float largest = 0;
        for (int i = 0; i < 4; i++)
            largest = fabsf(v[i]) > largest ? fabsf(v[i]) : largest;
        if (!(largest > threshold) || list->count == room)
            continue;
        matmul_outlier *o = &list->items[list->count++];
        float inverse = 127 / largest;
        int sum = 0;
        o->quad = (uint32_t)block * 8 + (uint32_t)j;
        o->d = largest * (1.0f / 127);
        for (int i = 0; i < 4; i++) {
            int q = (int)lrintf(v[i] * inverse);
            o->q[i] = (int8_t)q;
            sum += q;
            rest[4 * j + i] = fmaf(-(float)q, o->d, v[i]);
        }
        o->bias = -128 * sum;
        sums[j / 4] += o->d * (float)sum;
    }
}

/* Prepares one token. in is its first block; the next is stride on. */
static void prepare_token(matmul_input *in, size_t stride, matmul_list *list, const float *x,
                          int32_t n_blocks)
{
    float mean = energy(x, n_blocks * 32) / (float)(n_blocks * 32);
    /* Not below what quantize_block calls zero, so that no outlier's scale is subnormal. */
    float threshold = fmaxf(MATMUL_OUTLIER * sqrtf(mean), 0x1p-100f);
    memset(list, 0, sizeof *list);
    /* All magnitudes before all the rest: finding one is a chain of dependent instructions, which
     * overlaps with the next block's only if little stands between them. */
    for (int32_t b = 0; b < n_blocks; b++)
        in[(size_t)b * stride].d = magnitude(x + 32 * (size_t)b);
    for (int32_t b = 0; b < n_blocks; b++, in += stride, x += 32) {
        float largest = in->d;
        if (!(largest > threshold && largest < INFINITY)) {
            quantize_block(in, x, largest);
            continue;
        }
        float rest[32], sums[2];
        take_outliers(list, matmul_list_room(n_blocks), rest, sums, x, b, threshold);
        quantize_block(in, rest, magnitude(rest));
        in->sum += sums[0] + sums[1];
        in->half_sum[0] += sums[0];
        in->half_sum[1] += sums[1];
    }
}

static void prepare(void *prepared, const float *x, int32_t first_token, int32_t count,
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
