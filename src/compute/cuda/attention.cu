/* compute/cuda/attention.cu: attention as any device has it, warps that read pages where they lie: split, its combination, and
 * walk. See attention.cuh. */
#include "compute/cuda/attention.cuh"
#include "compute/cuda/input.cuh"

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
            word[i] = saturated_pair(x, y);
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
