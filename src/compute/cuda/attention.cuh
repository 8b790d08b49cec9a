/* compute/cuda/attention.cuh: paged attention on the matrix units; what its kernels (attention.cu, and for 9.0
 * attention_staged.cu) share.
 *
 * A tile is up to 16 queries of one sequence that share a kv head: (token, head of the group) pairs. A
 * unit is 64 positions. A warp makes a unit of a tile: scores (16 x 64) in registers, their largest,
 * weights and their sum, and the weighted values, eight dimensions at a time. Units are combined in order
 * of position by one formula (merge), whether that happens
 *
 *   split   in a second kernel, after as many warps as there are units have each written theirs: few
 *           queries over long sequences, where only the number of warps reads memory fast enough
 *           (Flash-Decoding's way), or
 *   walk    in one warp that walks the units and keeps the totals: prompts, and on 9.0 all but few queries over
 *           long sequences.
 *
 * A query's numbers depend on its row, its position and the pages alone, and a unit that a query sees
 * nothing of changes nothing; so both ways, any tile and any cut of a prompt give the same bits.
 *
 * Queries and weights are rounded to half (2^-11), sums are F32. Keys and values lie in pages as each kernel
 * reads them into the matrix units' operands in loads of 16 bytes (cuda_kv_layer); the 32 tokens of a page are
 * dealt to instructions in the order that makes the scores' registers the next product's operand
 * (token 8c/2 + 2j + c%2 is column c of key tile j). */
#ifndef REALM_COMPUTE_CUDA_ATTENTION_CUH
#define REALM_COMPUTE_CUDA_ATTENTION_CUH

#include "compute/cuda/fragments.cuh"
#include "compute/cuda/rope.cuh"

#define UNIT_PAGES (ATTENTION_UNIT_TOKENS / KV_PAGE_TOKENS)
#define KEY_TILES  (ATTENTION_UNIT_TOKENS / 8)
#define LOG2_E     1.4426950408889634f

typedef struct query_place {
    int64_t row;  /* in the step */
    int32_t head; /* query head */
    int32_t position;
} query_place;

__device__ __forceinline__ query_place find_query(const attention_args &a,
                                                  const attention_tile &tile, int32_t kv_head,
                                                  int i)
{
    int32_t flat = tile.first_query + i;
    return {tile.first_row + flat / a.group, kv_head * a.group + flat % a.group,
            tile.position + flat / a.group};
}

/* What a warp knows of a unit for the rows g and g+8 of its lanes. */
typedef struct unit_rows {
    float largest[2], weights[2]; /* of the row, in every lane of its four */
} unit_rows;

__device__ __forceinline__ int32_t tile_last_position(const attention_args &a,
                                                      const attention_tile &tile)
{
    return tile.position + (tile.first_query + tile.n_queries - 1) / a.group;
}

/* The first unit that some query of the tile sees. */
__device__ __forceinline__ int32_t tile_first_unit(const attention_args &a,
                                                   const attention_tile &tile)
{
    int32_t first = tile.position + tile.first_query / a.group - a.window + 1;
    return a.window > 0 && first > 0 ? first / ATTENTION_UNIT_TOKENS : 0;
}

/* The processor's own powers of two, in one instruction: 2^-22 of the result. The library's functions,
 * unrolled sixty times, are a program that no instruction cache holds. */
__device__ __forceinline__ float two_to(float x)
{
    float v;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(v) : "f"(x));
    return v;
}

__device__ __forceinline__ float tanh_of(float x)
{
    return 1.0f - __fdividef(2.0f, two_to(x * (2 * LOG2_E)) + 1.0f);
}

/* From scores to weights: p gets them as operands, [page][instruction][4]. ROWS: 2, or 1 if rows g+8 are nobody's. */
template <int ROWS = 2>
__device__ __forceinline__ unit_rows weigh_unit(uint32_t p[UNIT_PAGES][2][4], float s[KEY_TILES][4],
                                                const attention_args &a, const attention_tile &tile,
                                                int32_t unit, int lane)
{
    const int g = lane / 4, t = lane % 4;
    unit_rows rows;
    /* Units that every query sees all of, most of a long sequence's, need no masks. */
    const int32_t from = unit * ATTENTION_UNIT_TOKENS, last = tile_last_position(a, tile);
    const bool masked = from + ATTENTION_UNIT_TOKENS - 1 >
                            tile.position + tile.first_query / a.group ||
                        (a.window > 0 && from <= last - a.window);
    if (a.soft_cap > 0) {
        const float inverse = 1.0f / a.soft_cap;
#pragma unroll
        for (int j = 0; j < KEY_TILES; j++)
#pragma unroll
            for (int i = 0; i < ROWS * 2; i++)
                s[j][i] = a.soft_cap * tanh_of(s[j][i] * inverse);
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const int i = g + r * 8;
        if (masked) {
            /* The first and the last position of the unit that the row sees, from its first. */
            int32_t position = i < tile.n_queries ? tile.position + (tile.first_query + i) / a.group
                                                  : -1;
            int32_t end = position - from, begin = a.window > 0 ? end - a.window + 1 : 0;
#pragma unroll
            for (int j = 0; j < KEY_TILES; j++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    int at = j / 4 * KV_PAGE_TOKENS + t * 8 + j % 4 * 2 + e;
                    if (at > end || at < begin)
                        s[j][r * 2 + e] = -INFINITY;
                }
        }
        float largest = -INFINITY, weights = 0;
#pragma unroll
        for (int j = 0; j < KEY_TILES; j++)
            largest = fmaxf(largest, fmaxf(s[j][r * 2], s[j][r * 2 + 1]));
        largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFF, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFF, largest, 2)) * LOG2_E;
        const float shift = largest == -INFINITY ? 0.0f : largest;
#pragma unroll
        for (int j = 0; j < KEY_TILES; j++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float v = two_to(__fmaf_rn(s[j][r * 2 + e], LOG2_E, -shift));
                s[j][r * 2 + e] = v;
                weights = __fadd_rn(weights, v);
            }
        weights = __fadd_rn(weights, __shfl_xor_sync(0xFFFFFFFF, weights, 1));
        weights = __fadd_rn(weights, __shfl_xor_sync(0xFFFFFFFF, weights, 2));
        rows.largest[r] = largest;
        rows.weights[r] = weights;
    }
#pragma unroll
    for (int page = 0; page < UNIT_PAGES; page++)
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float *from = s[page * 4 + m * 2 + i / 2];
                p[page][m][i] = i % 2 < ROWS ? as_word(__floats2half2_rn(from[i % 2 * 2],
                                                                         from[i % 2 * 2 + 1]))
                                             : 0;
            }
    return rows;
}

/* Factors for what is there and what comes; total's largest becomes that of both. */
__device__ __forceinline__ void merge_factors(float *largest, float comes, float *old_factor,
                                              float *new_factor)
{
    float now = fmaxf(*largest, comes);
    *old_factor = *largest == -INFINITY ? 0.0f : two_to(*largest - now);
    *new_factor = comes == -INFINITY ? 0.0f : two_to(comes - now);
    *largest = now;
}

__device__ __forceinline__ float merge(float total, float sum, float old_factor, float new_factor)
{
    return __fmaf_rn(sum, new_factor, __fmul_rn(total, old_factor));
}

__device__ __forceinline__ int64_t partial_floats(const attention_args &a)
{
    return a.layer.value_stride + 4; /* whole vectors; the last two are not used */
}

/* Partials of a tile: [queries of the tile's sequence][kv heads][units]. */
__device__ __forceinline__ float *partial_of(const attention_args &a, const attention_tile &tile,
                                             int32_t kv_head, int i, int32_t unit)
{
    int64_t query = (int64_t)tile.partial + i;
    return a.partials +
           ((query * a.layer.n_kv_heads + kv_head) * a.units + unit) * partial_floats(a);
}

#endif
