/* compute/cuda/attention.cu: paged attention on the matrix units.
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
 * Queries and weights are rounded to half (2^-11), sums are F32. Keys lie as [token][dimension] and
 * values as [dimension][token], so that both are read into the matrix units' operands in loads of 16
 * bytes; the 32 tokens of a page are dealt to instructions in the order that makes the scores' registers
 * the next product's operand (token 8c/2 + 2j + c%2 is column c of key tile j). */
#include "compute/cuda/fragments.cuh"
#include "compute/cuda/wgmma.cuh"

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

/* Two scaled elements as halves. */
__device__ __forceinline__ uint32_t query_pair(float x, float y)
{
    x = x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x;
    y = y > 65504.0f ? 65504.0f : y < -65504.0f ? -65504.0f : y;
    return as_word(__floats2half2_rn(x, y));
}

/* The tile's queries, scaled, as operands: [key_stride / 32][2 instructions][32 lanes] of 16 bytes. By
 * n_warps warps, of which this is one. */
__device__ __forceinline__ void load_queries(uint4 *to, const attention_args &a,
                                             const attention_tile &tile, int32_t kv_head, int lane,
                                             int warp, int n_warps)
{
    const cuda_kv_layer &l = a.layer;
    int g = lane / 4, t = lane % 4;
    const float *q[2];
    for (int r = 0; r < 2; r++) {
        int i = g + r * 8;
        query_place p = find_query(a, tile, kv_head, i < tile.n_queries ? i : 0);
        q[r] = i < tile.n_queries ? a.q + (p.row * a.n_heads + p.head) * l.key_dim : nullptr;
    }
#pragma unroll 2
    for (int32_t part = warp; part < l.key_stride / 16; part += n_warps) {
        int32_t c = part / 2, m = part % 2;
        uint32_t word[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int32_t d = c * 32 + t * 8 + m * 4 + i / 2 * 2;
            const float *from = q[i % 2];
            float x = from && d < l.key_dim ? from[d] * a.scale : 0.0f;
            float y = from && d + 1 < l.key_dim ? from[d + 1] * a.scale : 0.0f;
            word[i] = query_pair(x, y);
        }
        to[part * 32 + lane] = make_uint4(word[0], word[1], word[2], word[3]);
    }
}

/* Eight bytes with 128 added to each... as four pairs of halves times a scale. */
__device__ __forceinline__ uint4 bytes_to_halves(uint2 v, __half2 s0, __half2 s1, __half2 s2,
                                                 __half2 s3)
{
    const __half2 offset = __half2half2(__ushort_as_half(0x6480));
    uint32_t lo = v.x ^ 0x80808080, hi = v.y ^ 0x80808080;
    uint4 out;
    out.x = as_word(__hmul2(__hsub2(as_half2(__byte_perm(lo, HALVES_1024, 0x7170)), offset), s0));
    out.y = as_word(__hmul2(__hsub2(as_half2(__byte_perm(lo, HALVES_1024, 0x7372)), offset), s1));
    out.z = as_word(__hmul2(__hsub2(as_half2(__byte_perm(hi, HALVES_1024, 0x7170)), offset), s2));
    out.w = as_word(__hmul2(__hsub2(as_half2(__byte_perm(hi, HALVES_1024, 0x7372)), offset), s3));
    return out;
}

/* Dimensions 8t .. 8t+7 of half c of a page's key at slot. */
template <bool Q8>
__device__ __forceinline__ uint4 load_key(const cuda_kv_layer &l, const uint8_t *head, int32_t slot,
                                          int32_t c, int t)
{
    if constexpr (!Q8) {
        return __ldg((const uint4 *)(head + (slot * l.key_stride + c * 32 + t * 8) * 2));
    } else {
        uint2 v = load_8(head + l.key_data + (int64_t)slot * l.key_stride + c * 32 + t * 8);
        __half2 s = __half2half2(((const __half *)head)[c * KV_PAGE_TOKENS + slot]);
        return bytes_to_halves(v, s, s, s, s);
    }
}

/* Tokens 8t .. 8t+7 of a page's values at dimension d. */
template <bool Q8>
__device__ __forceinline__ uint4 load_values(const cuda_kv_layer &l, const uint8_t *head, int32_t d,
                                             int t)
{
    if constexpr (!Q8) {
        return __ldg((const uint4 *)(head + l.values + (d * KV_PAGE_TOKENS + t * 8) * 2));
    } else {
        uint2 bytes = load_8(head + l.value_data + (int64_t)d * KV_PAGE_TOKENS + t * 8);
        uint4 s = __ldg((const uint4 *)(head + l.values + (d / 32 * KV_PAGE_TOKENS + t * 8) * 2));
        return bytes_to_halves(bytes, as_half2(s.x), as_half2(s.y), as_half2(s.z), as_half2(s.w));
    }
}

/* What keeps, of the lane's eight tokens of each page, those before n_seen: the others may be what another
 * sequence left, and no weight of zero makes a number of a NaN. */
__device__ __forceinline__ void seen_masks(uint4 masks[], int pages, int32_t n_seen, int t)
{
#pragma unroll
    for (int page = 0; page < pages; page++) {
        uint32_t *words = &masks[page].x;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int32_t token = page * KV_PAGE_TOKENS + t * 8 + i * 2;
            words[i] = token + 1 < n_seen ? 0xFFFFFFFF : token < n_seen ? 0xFFFF : 0;
        }
    }
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

/* Scores of the unit's positions: s[key tile] as the instruction has them. CHUNKS: key_stride / 32, or 0:
 * any. */
template <bool Q8, int CHUNKS>
__device__ __forceinline__ void score_unit(float s[KEY_TILES][4], const uint4 *queries,
                                           const attention_args &a, const uint8_t *const *heads,
                                           int lane)
{
    const cuda_kv_layer &l = a.layer;
    const int g = lane / 4, t = lane % 4, slot = g / 2 * 8 + g % 2;
    const int32_t chunks = CHUNKS ? CHUNKS : l.key_stride / 32;
#pragma unroll
    for (int j = 0; j < KEY_TILES; j++)
        s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0;
#pragma unroll 2
    for (int32_t c = 0; c < chunks; c++) {
        uint4 k[KEY_TILES];
#pragma unroll
        for (int j = 0; j < KEY_TILES; j++)
            k[j] = load_key<Q8>(l, heads[j / 4], slot + j % 4 * 2, c, t);
        uint4 q0 = queries[c * 2 * 32 + lane], q1 = queries[(c * 2 + 1) * 32 + lane];
#pragma unroll
        for (int j = 0; j < KEY_TILES; j++)
            multiply(s[j], &q0.x, k[j].x, k[j].y);
#pragma unroll
        for (int j = 0; j < KEY_TILES; j++)
            multiply(s[j], &q1.x, k[j].z, k[j].w);
    }
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

/* Values of dimensions 8d .. 8d+7 of the unit's pages. */
template <bool Q8>
__device__ __forceinline__ void load_unit_values(uint4 v[UNIT_PAGES], const attention_args &a,
                                                 const uint8_t *const *heads, int32_t d, int lane)
{
#pragma unroll
    for (int page = 0; page < UNIT_PAGES; page++)
        v[page] = load_values<Q8>(a.layer, heads[page], d * 8 + lane / 4, lane % 4);
}

/* Their weighted sums as the instruction has them. */
__device__ __forceinline__ void weigh_values(float sums[4], const uint32_t p[UNIT_PAGES][2][4],
                                             const uint4 v[UNIT_PAGES],
                                             const uint4 masks[UNIT_PAGES])
{
    sums[0] = sums[1] = sums[2] = sums[3] = 0;
#pragma unroll
    for (int page = 0; page < UNIT_PAGES; page++) {
        multiply(sums, p[page][0], v[page].x & masks[page].x, v[page].y & masks[page].y);
        multiply(sums, p[page][1], v[page].z & masks[page].z, v[page].w & masks[page].w);
    }
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

__device__ __forceinline__ void find_heads(const uint8_t *heads[UNIT_PAGES],
                                           const attention_args &a, const attention_tile &tile,
                                           int32_t kv_head, int32_t unit, int32_t last_position)
{
    const int32_t *ids = a.page_ids + tile.pages + unit * UNIT_PAGES;
#pragma unroll
    for (int i = 0; i < UNIT_PAGES; i++) {
        bool there = (unit * UNIT_PAGES + i) * KV_PAGE_TOKENS <= last_position;
        heads[i] = a.pages + (int64_t)(there ? ids[i] : ids[0]) * a.page_bytes + a.layer.offset +
                   kv_head * a.layer.head_bytes;
    }
}

/* Brings the unit's pages of the head into the second-level cache, where a later writer puts its bytes
 * too: no harm is done by being early. By a warp. */
__device__ __forceinline__ void fetch_heads(const attention_args &a,
                                            const uint8_t *const heads[UNIT_PAGES], int32_t unit,
                                            int32_t last_position, int lane)
{
#pragma unroll
    for (int i = 0; i < UNIT_PAGES; i++)
        if ((unit * UNIT_PAGES + i) * KV_PAGE_TOKENS <= last_position)
            for (int32_t at = lane * 128; at < (int32_t)a.layer.head_bytes; at += 32 * 128)
                asm volatile("prefetch.global.L2 [%0];" ::"l"(heads[i] + at));
}

/* Values of so many groups of eight dimensions are asked for at once. */
#define VALUES_AHEAD 8
#define WALK_AHEAD   4

#define SPLIT_WARPS 4

/* ---- split ------------------------------------------------------------------------------------- */

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

/* A unit of a tile into its partials; last: the tile's last position. By a warp. CHUNKS, GROUPS: key_stride / 32
 * and value_stride / 8, or 0 and 0: any. */
template <bool Q8, int CHUNKS, int GROUPS>
__device__ __forceinline__ void
split_unit(const attention_args &a, const attention_tile &tile, int32_t kv_head, int32_t unit,
           int32_t last, const uint4 *queries, const uint8_t *const *heads, int lane)
{
    const int g = lane / 4, t = lane % 4;
    const int32_t n_groups = GROUPS ? GROUPS : a.layer.value_stride / 8;
    float s[KEY_TILES][4];
    uint4 v[VALUES_AHEAD][UNIT_PAGES], masks[UNIT_PAGES];
    seen_masks(masks, UNIT_PAGES, last + 1 - unit * ATTENTION_UNIT_TOKENS, t);
    score_unit<Q8, CHUNKS>(s, queries, a, heads, lane);
#pragma unroll
    for (int i = 0; i < VALUES_AHEAD; i++) /* while the weights are made */
        if (GROUPS || i < n_groups)
            load_unit_values<Q8>(v[i], a, heads, i, lane);
    uint32_t p[UNIT_PAGES][2][4];
    const unit_rows rows = weigh_unit(p, s, a, tile, unit, lane);
    float *to[2];
#pragma unroll
    for (int r = 0; r < 2; r++)
        to[r] = g + r * 8 < tile.n_queries ? partial_of(a, tile, kv_head, g + r * 8, unit) + t * 2
                                           : nullptr;
    for (int32_t d0 = 0; d0 < n_groups; d0 += VALUES_AHEAD) {
        float sums[VALUES_AHEAD][4];
#pragma unroll
        for (int i = 0; i < VALUES_AHEAD; i++)
            if (GROUPS || d0 + i < n_groups)
                weigh_values(sums[i], p, v[i], masks);
#pragma unroll
        for (int i = 0; i < VALUES_AHEAD; i++)
            if (d0 + VALUES_AHEAD + i < n_groups)
                load_unit_values<Q8>(v[i], a, heads, d0 + VALUES_AHEAD + i, lane);
#pragma unroll
        for (int r = 0; r < 2; r++)
#pragma unroll
            for (int i = 0; i < VALUES_AHEAD; i++)
                if (to[r] && (GROUPS || d0 + i < n_groups))
                    *(float2 *)(to[r] + (d0 + i) * 8) = make_float2(sums[i][r * 2],
                                                                    sums[i][r * 2 + 1]);
    }
    for (int r = 0; r < 2; r++)
        if (t == 0 && g + r * 8 < tile.n_queries)
            *(float2 *)(partial_of(a, tile, kv_head, g + r * 8, unit) +
                        a.layer.value_stride) = make_float2(rows.largest[r], rows.weights[r]);
}

template <bool Q8, int CHUNKS, int GROUPS>
__device__ __forceinline__ void split(const attention_args &a)
{
    extern __shared__ uint4 shared[];
    const attention_tile tile = a.tiles[blockIdx.z];
    const int32_t kv_head = (int32_t)blockIdx.y, last = tile_last_position(a, tile);
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int32_t unit = (int32_t)blockIdx.x * SPLIT_WARPS + warp;
    const bool seen = unit >= tile_first_unit(a, tile) && unit * ATTENTION_UNIT_TOKENS <= last;
    const uint8_t *heads[UNIT_PAGES];
    if (seen) { /* most of a unit was written in earlier steps, and this waits for the rest */
        find_heads(heads, a, tile, kv_head, unit, last);
        fetch_heads(a, heads, unit, last, lane);
    }
    await_inputs();
    if ((int32_t)blockIdx.x * SPLIT_WARPS * ATTENTION_UNIT_TOKENS > last)
        return;
    load_queries(shared, a, tile, kv_head, lane, warp, SPLIT_WARPS);
    __syncthreads();
    if (!seen)
        return;
    split_unit<Q8, CHUNKS, GROUPS>(a, tile, kv_head, unit, last, shared, heads, lane);
}

static __global__ void __launch_bounds__(SPLIT_WARPS * 32) attention_split_kernel(attention_args a)
{
    allow_next();
    if (a.layer.q8)
        split<true, 0, 0>(a);
    else if (a.layer.key_stride == 128 && a.layer.value_stride == 128)
        split<false, 4, 16>(a);
    else
        split<false, 0, 0>(a);
}

/* ---- staged ------------------------------------------------------------------------------------- */

/* On 9.0, heads of 128 dimensions as F16: a warp a block, which goes through the units of a tile, all of them or one
 * alone, with its totals in registers. A unit's keys and values are copied in bulk into shared memory, those
 * of the next unit as soon as the warp has read this one's, and of the first, if nobody writes it in this step,
 * before the inputs are there. Six such blocks are on a multiprocessor, so much of its memory is under way. */
#define STAGED_HALF (KV_PAGE_TOKENS * STAGED_DIM * 2) /* bytes of a page's keys of a head */
#define STAGED_PART (UNIT_PAGES * STAGED_HALF)
#define STAGED_KEPT (STAGED_DIM / 8) /* groups of eight dimensions */
#define WIDE_WARPS  (ATTENTION_WIDE / ATTENTION_ROWS)
#define WIDE_STAGES 3

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* As load_queries, into the lane's registers. */
template <int ROWS>
__device__ __forceinline__ void take_queries(uint32_t to[STAGED_DIM / 32][2][4],
                                             const attention_args &a, const attention_tile &tile,
                                             int32_t kv_head, int lane)
{
    float4 x[ROWS][STAGED_DIM / 32][2];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const int i = lane / 4 + r * 8;
        const query_place p = find_query(a, tile, kv_head, i);
        const float *from = a.q + (p.row * a.n_heads + p.head) * STAGED_DIM + lane % 4 * 8;
#pragma unroll
        for (int c = 0; c < STAGED_DIM / 32; c++)
#pragma unroll
            for (int m = 0; m < 2; m++)
                x[r][c][m] = i < tile.n_queries ? *(const float4 *)(from + c * 32 + m * 4)
                                                : make_float4(0, 0, 0, 0);
    }
#pragma unroll
    for (int c = 0; c < STAGED_DIM / 32; c++)
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const float4 v = r < ROWS ? x[r % ROWS][c][m] : make_float4(0, 0, 0, 0);
                to[c][m][r] = r < ROWS ? query_pair(v.x * a.scale, v.y * a.scale) : 0;
                to[c][m][2 + r] = r < ROWS ? query_pair(v.z * a.scale, v.w * a.scale) : 0;
            }
}

__device__ __forceinline__ int unit_pages(int32_t n_seen)
{
    return n_seen > KV_PAGE_TOKENS ? 2 : 1;
}

/* A unit's keys (offset 0) or values, by one thread; full expects them. */
__device__ __forceinline__ void copy_unit(const attention_args &a, int2 ids, int32_t n_seen,
                                          int64_t offset, uint32_t to, uint32_t full)
{
    copy_bulk(to, a.pages + ids.x * a.page_bytes + offset, STAGED_HALF, full);
    if (unit_pages(n_seen) > 1)
        copy_bulk(to + STAGED_HALF, a.pages + ids.y * a.page_bytes + offset, STAGED_HALF, full);
}

__device__ __forceinline__ void fetch_unit(const attention_args &a, int2 ids, int32_t n_seen,
                                           int64_t offset, uint32_t to, uint32_t full)
{
    barrier_expect(full, unit_pages(n_seen) * STAGED_HALF);
    copy_unit(a, ids, n_seen, offset, to, full);
}

/* As score_unit. */
__device__ __forceinline__ void score_staged(float s[KEY_TILES][4],
                                             const uint32_t q[STAGED_DIM / 32][2][4], uint32_t keys,
                                             int lane)
{
    const int g = lane / 4, t = lane % 4;
    keys += key_place(g / 2 * 8 + g % 2, t * 8) * 2;
#pragma unroll
    for (int j = 0; j < KEY_TILES; j++)
        s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0;
#pragma unroll
    for (int c = 0; c < STAGED_DIM / 32; c++) {
        uint4 k[KEY_TILES];
#pragma unroll
        for (int j = 0; j < KEY_TILES; j++)
            k[j] = load_16((keys ^ c * 64) + j / 4 * STAGED_HALF + j % 4 * 2 * (STAGED_DIM * 2));
#pragma unroll
        for (int j = 0; j < KEY_TILES; j++)
            multiply(s[j], q[c][0], k[j].x, k[j].y);
#pragma unroll
        for (int j = 0; j < KEY_TILES; j++)
            multiply(s[j], q[c][1], k[j].z, k[j].w);
    }
}

/* Tokens 8t .. 8t+7 of a page's values at dimension 8d + g, from rows of which each lane says one. */
__device__ __forceinline__ uint4 turn_values(uint32_t at)
{
    uint4 v;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(at));
    return v;
}

/* Zeroes values of tokens that nobody may see: no weight of zero makes a number of a NaN. By so many threads. */
__device__ __forceinline__ void clear_unseen(uint32_t values, int32_t n_seen, int thread,
                                             int n_threads)
{
    for (uint32_t at = n_seen * (STAGED_DIM * 2) + thread * 16; at < STAGED_PART;
         at += n_threads * 16)
        asm volatile("st.shared.v4.u32 [%0], {%1,%1,%1,%1};" ::"r"(values + at), "r"(0) : "memory");
}

/* What a warp has of its tile so far. ROWS: 2, or 1 if it has at most 8 queries and rows g+8 are nobody's. */
template <int ROWS> struct staged_sums {
    float totals[STAGED_KEPT][ROWS * 2], largest[ROWS], weights[ROWS];
};

template <int ROWS> __device__ __forceinline__ void clear_sums(staged_sums<ROWS> &sums)
{
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        sums.largest[r] = -INFINITY, sums.weights[r] = 0;
#pragma unroll
        for (int d = 0; d < STAGED_KEPT; d++)
            sums.totals[d][r * 2] = sums.totals[d][r * 2 + 1] = 0;
    }
}

/* Where the lane's reading of values begins: at the row of the token that ldmatrix wants of it. */
__device__ __forceinline__ uint32_t token_values(uint32_t values, int lane)
{
    return values + value_place(lane % 8 / 2 * 8 + lane / 8 * 2 + lane % 2, 0) * 2;
}

/* values: as token_values says. */
template <int ROWS>
__device__ __forceinline__ void
merge_values(staged_sums<ROWS> &sums, uint32_t values, const uint32_t p[UNIT_PAGES][2][4],
             const float old_factor[ROWS], const float new_factor[ROWS])
{
#pragma unroll
    for (int d = 0; d < STAGED_KEPT; d++) {
        float more[4] = {0, 0, 0, 0};
#pragma unroll
        for (int page = 0; page < UNIT_PAGES; page++) {
            const uint4 v = turn_values((values ^ d * 16) + page * STAGED_HALF);
            multiply(more, p[page][0], v.x, v.y);
            multiply(more, p[page][1], v.z, v.w);
        }
#pragma unroll
        for (int i = 0; i < ROWS * 2; i++)
            sums.totals[d][i] = merge(sums.totals[d][i], more[i], old_factor[i / 2],
                                      new_factor[i / 2]);
    }
}

template <int ROWS>
__device__ __forceinline__ void merge_weights(staged_sums<ROWS> &sums, const unit_rows &rows,
                                              float old_factor[ROWS], float new_factor[ROWS])
{
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        merge_factors(&sums.largest[r], rows.largest[r], &old_factor[r], &new_factor[r]);
        sums.weights[r] = merge(sums.weights[r], rows.weights[r], old_factor[r], new_factor[r]);
    }
}

/* The tile's results, or its sums of a unit alone as partials. */
template <int ROWS>
__device__ __forceinline__ void store_sums(const attention_args &a, const attention_tile &tile,
                                           int32_t kv_head, const staged_sums<ROWS> &sums,
                                           bool walks, int32_t unit, int lane)
{
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const int i = g + r * 8;
        if (i >= tile.n_queries)
            continue;
        const query_place place = find_query(a, tile, kv_head, i);
        float *to = walks ? a.out + (place.row * a.n_heads + place.head) * STAGED_DIM
                          : partial_of(a, tile, kv_head, i, unit);
        const float factor = walks ? __frcp_rn(sums.weights[r]) : 1.0f;
#pragma unroll
        for (int d = 0; d < STAGED_KEPT; d++)
            *(float2 *)(to + d * 8 +
                        t * 2) = make_float2(__fmul_rn(sums.totals[d][r * 2], factor),
                                             __fmul_rn(sums.totals[d][r * 2 + 1], factor));
        if (!walks && t == 0)
            *(float2 *)(to + STAGED_DIM) = make_float2(sums.largest[r], sums.weights[r]);
    }
}

/* What a block does: a tile's units first .. end-1, and whether those are all. */
struct staged_task {
    attention_tile tile;
    int32_t kv_head, first, end, last;
    bool walks;
};

__device__ __forceinline__ staged_task find_task(const attention_args &a)
{
    const int32_t heads = a.layer.n_kv_heads, n_walk = a.n_tiles - a.n_split;
    const int32_t index = (int32_t)blockIdx.x / heads;
    staged_task task;
    task.kv_head = (int32_t)blockIdx.x % heads;
    task.walks = index < n_walk;
    task.tile = a.tiles[task.walks ? a.n_split + index : (index - n_walk) % a.n_split];
    task.last = tile_last_position(a, task.tile);
    task.first = tile_first_unit(a, task.tile);
    task.end = task.last / ATTENTION_UNIT_TOKENS + 1;
    if (!task.walks) {
        const int32_t mine = (index - n_walk) / a.n_split;
        task.end = mine >= task.first && mine < task.end ? mine + 1 : 0;
        task.first = mine;
    }
    return task;
}

template <int ROWS> __device__ __forceinline__ void attend_staged(const attention_args &a)
{
    extern __shared__ uint4 shared[];
    const int lane = (int)threadIdx.x;
    const uint32_t keys = (uint32_t)__cvta_generic_to_shared(shared), values = keys + STAGED_PART,
                   keys_full = values + STAGED_PART, values_full = keys_full + 8;
    const staged_task task = find_task(a);
    if (task.first >= task.end) {
        await_inputs();
        return;
    }
    const int2 *pages = (const int2 *)(a.page_ids + task.tile.pages);
    const int64_t offset = a.layer.offset + task.kv_head * a.layer.head_bytes;
    const bool old = (task.first + 1) * ATTENTION_UNIT_TOKENS <= task.tile.position;
    if (lane == 0) {
        barrier_init(keys_full, 1);
        barrier_init(values_full, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    if (!old)
        await_inputs();
    __syncwarp();
    if (lane == 0) {
        const int32_t n_seen = task.last + 1 - task.first * ATTENTION_UNIT_TOKENS;
        const int2 ids = pages[task.first];
        fetch_unit(a, ids, n_seen, offset, keys, keys_full);
        fetch_unit(a, ids, n_seen, offset + a.layer.values, values, values_full);
    }
    if (old)
        await_inputs();
    uint32_t q[STAGED_DIM / 32][2][4];
    take_queries<ROWS>(q, a, task.tile, task.kv_head, lane);
    staged_sums<ROWS> sums;
    clear_sums(sums);
    __syncwarp();
    uint32_t parity = 0;
    for (int32_t unit = task.first; unit < task.end; unit++, parity ^= 1) {
        const int32_t n_seen = task.last + 1 - unit * ATTENTION_UNIT_TOKENS;
        const bool more = unit + 1 < task.end;
        const int2 next = more ? pages[unit + 1] : make_int2(0, 0);
        float s[KEY_TILES][4], old_factor[ROWS], new_factor[ROWS];
        barrier_wait(keys_full, parity);
        score_staged(s, q, keys, lane);
        __syncwarp();
        if (more && lane == 0)
            fetch_unit(a, next, n_seen - ATTENTION_UNIT_TOKENS, offset, keys, keys_full);
        uint32_t p[UNIT_PAGES][2][4];
        merge_weights(sums, weigh_unit<ROWS>(p, s, a, task.tile, unit, lane), old_factor,
                      new_factor);
        barrier_wait(values_full, parity);
        if (n_seen < ATTENTION_UNIT_TOKENS) {
            clear_unseen(values, n_seen, lane, 32);
            __syncwarp();
        }
        merge_values(sums, token_values(values, lane), p, old_factor, new_factor);
        __syncwarp();
        if (more && lane == 0)
            fetch_unit(a, next, n_seen - ATTENTION_UNIT_TOKENS, offset + a.layer.values, values,
                       values_full);
    }
    store_sums(a, task.tile, task.kv_head, sums, task.walks, task.end - 1, lane);
}

/* A few queries of few sequences: the block's warps go through a tile's units in turn and after each round merge
 * them in order, each for its share of the dimensions. */
__device__ __forceinline__ void attend_together(const attention_args &a)
{
    extern __shared__ uint4 shared[];
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32,
              n_warps = (int)blockDim.x / 32;
    const uint32_t base = (uint32_t)__cvta_generic_to_shared(shared),
                   keys = base + warp * 2 * STAGED_PART, values = keys + STAGED_PART,
                   keys_full = base + n_warps * 2 * STAGED_PART + warp * 16,
                   values_full = keys_full + 8;
    /* [warp][group of eight dimensions, then largest and sum of weights][lane] */
    float2 *const all = (float2 *)(shared + n_warps * (2 * STAGED_PART + 16) / 16);
    float2 *const mine = all + warp * (STAGED_KEPT + 1) * 32 + lane;
    const staged_task task = find_task(a);
    const int2 *pages = (const int2 *)(a.page_ids + task.tile.pages);
    const int64_t offset = a.layer.offset + task.kv_head * a.layer.head_bytes;
    int32_t unit = task.first + warp;
    const bool old = (unit + 1) * ATTENTION_UNIT_TOKENS <= task.tile.position;
    if (lane == 0) {
        barrier_init(keys_full, 1);
        barrier_init(values_full, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    if (!old)
        await_inputs();
    __syncwarp();
    if (lane == 0 && unit < task.end) {
        const int32_t n_seen = task.last + 1 - unit * ATTENTION_UNIT_TOKENS;
        const int2 ids = pages[unit];
        fetch_unit(a, ids, n_seen, offset, keys, keys_full);
        fetch_unit(a, ids, n_seen, offset + a.layer.values, values, values_full);
    }
    if (old)
        await_inputs();
    uint32_t q[STAGED_DIM / 32][2][4];
    take_queries<1>(q, a, task.tile, task.kv_head, lane);
    float largest = -INFINITY, weights = 0;
    float2 totals[STAGED_KEPT / 2];
#pragma unroll
    for (int k = 0; k < STAGED_KEPT / 2; k++)
        totals[k] = make_float2(0, 0);
    __syncwarp();
    uint32_t parity = 0;
    for (int32_t from = task.first; from < task.end;
         from += n_warps, unit += n_warps, parity ^= 1) {
        if (unit < task.end) {
            const int32_t n_seen = task.last + 1 - unit * ATTENTION_UNIT_TOKENS,
                          n_next = n_seen - n_warps * ATTENTION_UNIT_TOKENS;
            const bool more = unit + n_warps < task.end;
            const int2 next = more ? pages[unit + n_warps] : make_int2(0, 0);
            float s[KEY_TILES][4], old_factor[1], new_factor[1];
            staged_sums<1> sums;
            clear_sums(sums);
            barrier_wait(keys_full, parity);
            score_staged(s, q, keys, lane);
            __syncwarp();
            if (more && lane == 0)
                fetch_unit(a, next, n_next, offset, keys, keys_full);
            uint32_t p[UNIT_PAGES][2][4];
            merge_weights(sums, weigh_unit<1>(p, s, a, task.tile, unit, lane), old_factor,
                          new_factor);
            barrier_wait(values_full, parity);
            if (n_seen < ATTENTION_UNIT_TOKENS) {
                clear_unseen(values, n_seen, lane, 32);
                __syncwarp();
            }
            merge_values(sums, token_values(values, lane), p, old_factor, new_factor);
            __syncwarp();
            if (more && lane == 0)
                fetch_unit(a, next, n_next, offset + a.layer.values, values, values_full);
#pragma unroll
            for (int d = 0; d < STAGED_KEPT; d++)
                mine[d * 32] = make_float2(sums.totals[d][0], sums.totals[d][1]);
            mine[STAGED_KEPT * 32] = make_float2(sums.largest[0], sums.weights[0]);
        }
        __syncthreads();
        const int n = min(n_warps, task.end - from);
        for (int i = 0; i < n; i++) {
            const float2 *const his = all + i * (STAGED_KEPT + 1) * 32 + lane;
            const float2 rows = his[STAGED_KEPT * 32];
            float old_factor, new_factor;
            merge_factors(&largest, rows.x, &old_factor, &new_factor);
            weights = merge(weights, rows.y, old_factor, new_factor);
#pragma unroll
            for (int k = 0; k < STAGED_KEPT / 2; k++)
                if (warp + k * n_warps < STAGED_KEPT) {
                    const float2 sum = his[(warp + k * n_warps) * 32];
                    totals[k].x = merge(totals[k].x, sum.x, old_factor, new_factor);
                    totals[k].y = merge(totals[k].y, sum.y, old_factor, new_factor);
                }
        }
        __syncthreads();
    }
    if (lane / 4 >= task.tile.n_queries)
        return;
    const query_place place = find_query(a, task.tile, task.kv_head, lane / 4);
    float *to = a.out + (place.row * a.n_heads + place.head) * STAGED_DIM + lane % 4 * 2;
    const float factor = __frcp_rn(weights);
#pragma unroll
    for (int k = 0; k < STAGED_KEPT / 2; k++)
        if (warp + k * n_warps < STAGED_KEPT)
            *(float2 *)(to + (warp + k * n_warps) * 8) = make_float2(
                __fmul_rn(totals[k].x, factor), __fmul_rn(totals[k].y, factor));
}

/* Tiles of up to WIDE_WARPS * 16 queries, a warp for each 16 of them, which read units in a ring together. */
__device__ __forceinline__ void attend_wide(const attention_args &a)
{
    extern __shared__ uint4 shared[];
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const uint32_t stages = (uint32_t)__cvta_generic_to_shared(shared),
                   full = stages + WIDE_STAGES * 2 * STAGED_PART;
    const staged_task task = find_task(a);
    if (task.first >= task.end) {
        await_inputs();
        return;
    }
    const int2 *pages = (const int2 *)(a.page_ids + task.tile.pages);
    const int64_t offset = a.layer.offset + task.kv_head * a.layer.head_bytes;
    if (threadIdx.x == 0) {
        for (int i = 0; i < WIDE_STAGES; i++)
            barrier_init(full + i * 8, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    await_inputs();
    __syncthreads();
    const auto fetch = [&](int32_t unit) {
        const int stage = (unit - task.first) % WIDE_STAGES;
        const uint32_t to = stages + stage * 2 * STAGED_PART;
        const int32_t n_seen = task.last + 1 - unit * ATTENTION_UNIT_TOKENS;
        const int2 ids = pages[unit];
        barrier_expect(full + stage * 8, unit_pages(n_seen) * 2 * STAGED_HALF);
        copy_unit(a, ids, n_seen, offset, to, full + stage * 8);
        copy_unit(a, ids, n_seen, offset + a.layer.values, to + STAGED_PART, full + stage * 8);
    };
    if (threadIdx.x == 0)
        for (int32_t unit = task.first; unit < task.end && unit < task.first + WIDE_STAGES; unit++)
            fetch(unit);
    attention_tile tile = task.tile; /* the warp's own */
    tile.first_query += warp * ATTENTION_ROWS;
    tile.partial += warp * ATTENTION_ROWS;
    tile.n_queries = min(tile.n_queries - warp * ATTENTION_ROWS, ATTENTION_ROWS);
    const int32_t end = tile.n_queries > 0 ? tile_last_position(a, tile) / ATTENTION_UNIT_TOKENS + 1
                                           : 0;
    uint32_t q[STAGED_DIM / 32][2][4];
    take_queries<2>(q, a, tile, task.kv_head, lane);
    staged_sums<2> sums;
    clear_sums(sums);
    int stage = 0;
    uint32_t parity = 0;
    for (int32_t unit = task.first; unit < task.end; unit++) {
        const int32_t n_seen = task.last + 1 - unit * ATTENTION_UNIT_TOKENS;
        const uint32_t keys = stages + stage * 2 * STAGED_PART, values = keys + STAGED_PART;
        barrier_wait(full + stage * 8, parity);
        if (n_seen < ATTENTION_UNIT_TOKENS) {
            clear_unseen(values, n_seen, (int)threadIdx.x, WIDE_WARPS * 32);
            __syncthreads();
        }
        if (unit < end) {
            float s[KEY_TILES][4], old_factor[2], new_factor[2];
            uint32_t p[UNIT_PAGES][2][4];
            score_staged(s, q, keys, lane);
            merge_weights(sums, weigh_unit(p, s, a, tile, unit, lane), old_factor, new_factor);
            merge_values(sums, token_values(values, lane), p, old_factor, new_factor);
        }
        __syncthreads();
        if (threadIdx.x == 0 && unit + WIDE_STAGES < task.end)
            fetch(unit + WIDE_STAGES);
        if (++stage == WIDE_STAGES)
            stage = 0, parity ^= 1;
    }
    if (task.walks || task.end <= end)
        store_sums(a, tile, task.kv_head, sums, task.walks, task.end - 1, lane);
}

#endif

template <int ROWS>
static __global__ void __launch_bounds__(32, 6) attention_staged_kernel(attention_args a)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    allow_next();
    attend_staged<ROWS>(a);
#endif
}

static __global__ void __launch_bounds__(ATTENTION_TOGETHER * 32, 2)
    attention_staged_together_kernel(attention_args a)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    allow_next();
    attend_together(a);
#endif
}

static __global__ void __launch_bounds__(WIDE_WARPS * 32, 2)
    attention_staged_wide_kernel(attention_args a)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    allow_next();
    attend_wide(a);
#endif
}

/* ---- combine ------------------------------------------------------------------------------------ */

/* Four dimensions of a query: its units in order. part: of the query's first unit. */
__device__ __forceinline__ float4 combine_units(const attention_args &a, const float *part,
                                                int32_t d, int32_t first, int32_t end)
{
    float largest = -INFINITY, weights = 0;
    float4 total = make_float4(0, 0, 0, 0);
#pragma unroll 4
    for (int32_t unit = first; unit < end; unit++, part += partial_floats(a)) {
        float2 rows = *(const float2 *)(part + a.layer.value_stride);
        float4 v = *(const float4 *)(part + d);
        float old_factor, new_factor;
        merge_factors(&largest, rows.x, &old_factor, &new_factor);
        weights = merge(weights, rows.y, old_factor, new_factor);
        total.x = merge(total.x, v.x, old_factor, new_factor);
        total.y = merge(total.y, v.y, old_factor, new_factor);
        total.z = merge(total.z, v.z, old_factor, new_factor);
        total.w = merge(total.w, v.w, old_factor, new_factor);
    }
    const float factor = __frcp_rn(weights);
    return make_float4(__fmul_rn(total.x, factor), __fmul_rn(total.y, factor),
                       __fmul_rn(total.z, factor), __fmul_rn(total.w, factor));
}

/* A query a block. */
static __global__ void attention_combine_kernel(attention_args a)
{
    allow_next();
    await_inputs();
    const attention_tile tile = a.tiles[blockIdx.z];
    const int i = (int)blockIdx.x;
    const int32_t kv_head = (int32_t)blockIdx.y;
    if (i >= tile.n_queries)
        return;
    query_place q = find_query(a, tile, kv_head, i);
    int32_t first = tile_first_unit(a, tile), end = q.position / ATTENTION_UNIT_TOKENS + 1;
    const float *part = partial_of(a, tile, kv_head, i, first);
    float *out = a.out + (q.row * a.n_heads + q.head) * a.layer.value_dim;
    for (int32_t d = (int32_t)threadIdx.x * 4; d < a.layer.value_stride;
         d += (int32_t)blockDim.x * 4)
        store_four(out, d, a.layer.value_dim, combine_units(a, part, d, first, end));
}

/* Where all rows are split: a row a block, all heads, which is then prepared for the product to come. The
 * row's queries are a.tiles' in order, so its partials are found without them. */
static __global__ void attention_combine_row_kernel(attention_args a)
{
    __shared__ float scratch[33];
    allow_next();
    await_inputs();
    const int64_t row = blockIdx.x;
    const int32_t dim = a.layer.value_dim, n = a.n_heads * dim, position = a.positions[row];
    const int32_t first = a.window > 0 && position >= a.window
                              ? (position - a.window + 1) / ATTENTION_UNIT_TOKENS
                              : 0;
    const int32_t mine = (int32_t)threadIdx.x * 4, step = (int32_t)blockDim.x * 4;
    float *out = a.out + row * n, largest = 0;
    float4 kept[KEPT] = {};
    auto combine = [&](int32_t k) {
        int32_t head = k / dim, kv_head = head / a.group;
        int64_t query = row * a.group + head % a.group;
        const float *part = a.partials +
                            ((query * a.layer.n_kv_heads + kv_head) * a.units + first) *
                                partial_floats(a);
        float4 v = combine_units(a, part, k % dim, first, position / ATTENTION_UNIT_TOKENS + 1);
        *(float4 *)(out + k) = v;
        largest = fmaxf(largest, largest_of(v));
        return v;
    };
#pragma unroll
    for (int i = 0; i < KEPT; i++)
        if (mine + i * step < n)
            kept[i] = combine(mine + i * step);
    for (int32_t k = mine + KEPT * step; k < n; k += step)
        combine(k);
    if (a.p.halves)
        prepare_row(a.p, kept, out, n, row, largest, scratch);
}

/* ---- walk -------------------------------------------------------------------------------------- */

template <bool Q8, int CHUNKS, int GROUPS>
__device__ __forceinline__ void walk(const attention_args &a)
{
    extern __shared__ uint4 shared[];
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int32_t index = (int32_t)(blockIdx.x * (blockDim.x / 32) + warp);
    int32_t kv_head = (int32_t)blockIdx.y;
    if (index >= a.n_tiles)
        return;
    const attention_tile tile = a.tiles[index];
    const cuda_kv_layer &l = a.layer;
    uint4 *queries = shared + (int64_t)warp * a.warp_bytes / 16;
    float4 *totals = (float4 *)(queries +
                                l.key_stride / 32 * 2 * 32); /* [value_stride / 8][32 lanes] */
    load_queries(queries, a, tile, kv_head, lane, 0, 1);
    for (int32_t d = 0; d < l.value_stride / 8; d++)
        totals[d * 32 + lane] = make_float4(0, 0, 0, 0);
    __syncwarp();
    int32_t last = tile_last_position(a, tile);
    float largest[2] = {-INFINITY, -INFINITY}, weights[2] = {0, 0};
    for (int32_t unit = tile_first_unit(a, tile); unit * ATTENTION_UNIT_TOKENS <= last; unit++) {
        const uint8_t *heads[UNIT_PAGES];
        find_heads(heads, a, tile, kv_head, unit, last);
        const int32_t n_groups = GROUPS ? GROUPS : l.value_stride / 8;
        float s[KEY_TILES][4];
        uint4 v[WALK_AHEAD][UNIT_PAGES], masks[UNIT_PAGES];
        seen_masks(masks, UNIT_PAGES, last + 1 - unit * ATTENTION_UNIT_TOKENS, t);
        score_unit<Q8, CHUNKS>(s, queries, a, heads, lane);
#pragma unroll
        for (int i = 0; i < WALK_AHEAD; i++)
            if (GROUPS || i < n_groups)
                load_unit_values<Q8>(v[i], a, heads, i, lane);
        uint32_t p[UNIT_PAGES][2][4];
        const unit_rows rows = weigh_unit(p, s, a, tile, unit, lane);
        float old_factor[2], new_factor[2];
        for (int r = 0; r < 2; r++) {
            merge_factors(&largest[r], rows.largest[r], &old_factor[r], &new_factor[r]);
            weights[r] = merge(weights[r], rows.weights[r], old_factor[r], new_factor[r]);
        }
        for (int32_t d0 = 0; d0 < n_groups; d0 += WALK_AHEAD) {
            float sums[WALK_AHEAD][4];
#pragma unroll
            for (int i = 0; i < WALK_AHEAD; i++)
                if (GROUPS || d0 + i < n_groups)
                    weigh_values(sums[i], p, v[i], masks);
#pragma unroll
            for (int i = 0; i < WALK_AHEAD; i++)
                if (d0 + WALK_AHEAD + i < n_groups)
                    load_unit_values<Q8>(v[i], a, heads, d0 + WALK_AHEAD + i, lane);
#pragma unroll
            for (int i = 0; i < WALK_AHEAD; i++)
                if (GROUPS || d0 + i < n_groups) {
                    float4 sum = totals[(d0 + i) * 32 + lane];
                    sum.x = merge(sum.x, sums[i][0], old_factor[0], new_factor[0]);
                    sum.y = merge(sum.y, sums[i][1], old_factor[0], new_factor[0]);
                    sum.z = merge(sum.z, sums[i][2], old_factor[1], new_factor[1]);
                    sum.w = merge(sum.w, sums[i][3], old_factor[1], new_factor[1]);
                    totals[(d0 + i) * 32 + lane] = sum;
                }
        }
    }
    for (int r = 0; r < 2; r++) {
        if (g + r * 8 >= tile.n_queries)
            continue;
        query_place q = find_query(a, tile, kv_head, g + r * 8);
        float *out = a.out + (q.row * a.n_heads + q.head) * l.value_dim;
        const float factor = __frcp_rn(weights[r]);
        for (int32_t d = 0; d < l.value_stride / 8; d++) {
            float4 v = totals[d * 32 + lane];
            int32_t at = d * 8 + t * 2;
            if (at < l.value_dim)
                out[at] = __fmul_rn(r == 0 ? v.x : v.z, factor);
            if (at + 1 < l.value_dim)
                out[at + 1] = __fmul_rn(r == 0 ? v.y : v.w, factor);
        }
    }
}

static __global__ void __launch_bounds__(128, 3) attention_walk_kernel(attention_args a)
{
    allow_next();
    await_inputs();
    if (a.layer.q8)
        walk<true, 0, 0>(a);
    else if (a.layer.key_stride == 128 && a.layer.value_stride == 128)
        walk<false, 4, 16>(a);
    else
        walk<false, 0, 0>(a);
}

extern "C" const void *cuda_kernel_attention_split(void)
{
    return (const void *)attention_split_kernel;
}

extern "C" const void *cuda_kernel_attention_staged(int queries, int together, int32_t *threads,
                                                    int32_t *shared_bytes)
{
    const int wide = queries > ATTENTION_ROWS;
    *threads = wide ? WIDE_WARPS * 32 : together * 32;
    if (wide) {
        *shared_bytes = WIDE_STAGES * (2 * STAGED_PART + 8);
        return (const void *)attention_staged_wide_kernel;
    }
    *shared_bytes = together * (2 * STAGED_PART + 16);
    if (together == 1)
        return queries <= 8 ? (const void *)attention_staged_kernel<1>
                            : (const void *)attention_staged_kernel<2>;
    *shared_bytes += together * (STAGED_KEPT + 1) * 32 * (int32_t)sizeof(float2);
    return (const void *)attention_staged_together_kernel;
}

extern "C" const void *cuda_kernel_attention_combine(void)
{
    return (const void *)attention_combine_kernel;
}

extern "C" const void *cuda_kernel_attention_walk(void)
{
    return (const void *)attention_walk_kernel;
}

extern "C" const void *cuda_kernel_attention_combine_row(void)
{
    return (const void *)attention_combine_row_kernel;
}
