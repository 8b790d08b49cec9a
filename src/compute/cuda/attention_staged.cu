/* compute/cuda/attention_staged.cu: attention on 9.0 over heads of 128 dimensions as F16. See attention.cuh.
 *
 * A warp a block, which goes through the units of a tile, all of them or one alone, with its totals in
 * registers. A unit's keys and values are copied in bulk into shared memory, those of the next unit as soon as
 * the warp has read this one's, and of the first, if nobody writes it in this step, before the inputs are there.
 * Six such blocks are on a multiprocessor, so much of its memory is under way. Prompts have four such warps a block,
 * which read the same units for 64 queries; few queries of few sequences have up to four that share a tile's. */
#include "compute/cuda/attention.cuh"
#include "compute/cuda/wgmma.cuh"

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
