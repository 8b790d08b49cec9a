/* compute/cuda/attention_staged.cu: attention on 9.0 over heads of 128 dimensions as F16. See attention.cuh.
 *
 * A warp a block, which goes through the units of a tile, all of them or one alone, with its totals in
 * registers. A unit's keys and values are copied in bulk into shared memory, those of the next unit as soon as
 * the warp has read this one's, and of the first, if no kernel before writes it in this step, before the inputs are
 * there. Six such blocks are on a multiprocessor, so much of its memory is under way. Prompts have four such warps a
 * block, which read the same units for 64 queries; few queries of few sequences have up to four that share a tile's.
 *
 * Where a sequence has few rows, these kernels write their keys and values too (fresh_rows): a tile's warps make those of
 * all rows that it sees, and put them into their copy of a unit, which may have been made while they were not
 * in the page; the tile that has a row's first query puts them into the page as well. No warp reads them there. */
#include "compute/cuda/attention.cuh"
#include "compute/cuda/input.cuh"
#include "compute/cuda/wgmma.cuh"

#define STAGED_HALF (KV_PAGE_TOKENS * STAGED_DIM * 2) /* bytes of a page's keys of a head */
#define STAGED_PART (UNIT_PAGES * STAGED_HALF)
#define STAGED_KEPT (STAGED_DIM / 8) /* groups of eight dimensions */
#define FRESH_BYTES                                                                                \
    (ATTENTION_FRESH * 32 * 16) /* [row][lane] of four halves of its key, four of its value */
#define WIDE_WARPS  (ATTENTION_WIDE / ATTENTION_ROWS)
#define WIDE_STAGES 3

/* Bytes of staged_place. */
template <bool FRESH> __host__ __device__ constexpr int32_t shared_of(int n_warps)
{
    return n_warps * (2 * STAGED_PART + 16) + (FRESH ? FRESH_BYTES : 0);
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* Turns a lane's elements of a query by its token's angles. */
__device__ __forceinline__ void turn_query(float4 x[STAGED_DIM / 32][2],
                                           const float4 c[STAGED_DIM / 32],
                                           const float4 s[STAGED_DIM / 32], int64_t kind)
{
    if (kind == ROPE_NORMAL) {
#pragma unroll
        for (int i = 0; i < STAGED_DIM / 32; i++) {
            x[i][0] = turn_pairs(x[i][0], make_float2(c[i].x, c[i].y), make_float2(s[i].x, s[i].y));
            x[i][1] = turn_pairs(x[i][1], make_float2(c[i].z, c[i].w), make_float2(s[i].z, s[i].w));
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < STAGED_DIM / 32; i++) {
        float *u = &x[i / 2][i % 2].x, *v = &x[i / 2 + STAGED_DIM / 64][i % 2].x;
        const float *cosine = &c[i].x, *sine = &s[i].x;
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float first = turned_first(u[e], v[e], cosine[e], sine[e]);
            v[e] = turned_second(u[e], v[e], cosine[e], sine[e]);
            u[e] = first;
        }
    }
}

/* Where a lane's queries begin and, of FRESH ones, their angles; worked out while the inputs are waited for. NULL:
 * nobody's. */
template <int ROWS> struct query_source {
    const float *q[ROWS];
    int64_t angles[ROWS];
};

template <int ROWS>
__device__ __forceinline__ query_source<ROWS>
find_queries(const attention_args &a, const attention_tile &tile, int32_t kv_head, int lane)
{
    query_source<ROWS> source;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const int i = lane / 4 + r * 8, t = lane % 4;
        const query_place p = find_query(a, tile, kv_head, i);
        source.q[r] = i < tile.n_queries ? a.q + (p.row * a.n_heads + p.head) * STAGED_DIM + t * 8
                                         : nullptr;
        source.angles[r] = p.row * (STAGED_DIM / 2) + t * (a.fresh.kind == ROPE_NORMAL ? 4 : 8);
    }
    return source;
}

/* As load_queries, into the lane's registers; FRESH: turned on the way. */
template <int ROWS, bool FRESH>
__device__ __forceinline__ void take_queries(uint32_t to[STAGED_DIM / 32][2][4],
                                             const attention_args &a,
                                             const query_source<ROWS> &source)
{
    float4 x[ROWS][STAGED_DIM / 32][2], cosines[ROWS][STAGED_DIM / 32],
        sines[ROWS][STAGED_DIM / 32];
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int c = 0; c < STAGED_DIM / 32; c++) {
            const bool there = source.q[r];
            const float4 none = make_float4(0, 0, 0, 0);
#pragma unroll
            for (int m = 0; m < 2; m++)
                x[r][c][m] = there ? *(const float4 *)(source.q[r] + c * 32 + m * 4) : none;
            if constexpr (FRESH) {
                const int64_t at = source.angles[r] +
                                   (a.fresh.kind == ROPE_NORMAL ? c * 16 : c / 2 * 32 + c % 2 * 4);
                cosines[r][c] = there ? *(const float4 *)(a.fresh.cosines + at) : none;
                sines[r][c] = there ? *(const float4 *)(a.fresh.sines + at) : none;
            }
        }
    if constexpr (FRESH)
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            turn_query(x[r], cosines[r], sines[r], a.fresh.kind);
#pragma unroll
    for (int c = 0; c < STAGED_DIM / 32; c++)
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const float4 v = r < ROWS ? x[r % ROWS][c][m] : make_float4(0, 0, 0, 0);
                to[c][m][r] = r < ROWS ? saturated_pair(v.x * a.scale, v.y * a.scale) : 0;
                to[c][m][2 + r] = r < ROWS ? saturated_pair(v.z * a.scale, v.w * a.scale) : 0;
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

/* Results at column k and the next of a row of out, which is also the input of what comes; returns the larger
 * magnitude. */
__device__ __forceinline__ float put_results(const attention_args &a, int64_t row, int32_t k,
                                             float x, float y)
{
    *(float2 *)(a.out + row * a.n_heads * STAGED_DIM + k) = make_float2(x, y);
    if (a.p.halves)
        store_pair(a.p, row, k, x, y, a.p.scale);
    return fmaxf(fabsf(x), fabsf(y));
}

/* The largest result that four lanes beside each other have of a row. */
__device__ __forceinline__ void put_largest(const attention_args &a, int64_t row, float largest,
                                            int lane)
{
    if (!a.p.halves)
        return;
    const uint32_t most = __reduce_max_sync(0xFu << lane / 4 * 4, __float_as_uint(largest));
    if (lane % 4 == 0)
        raise_largest(&a.p.sums[row].largest, most);
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
        if (walks) {
            const query_place place = find_query(a, tile, kv_head, i);
            const float factor = __frcp_rn(sums.weights[r]);
            float largest = 0;
#pragma unroll
            for (int d = 0; d < STAGED_KEPT; d++)
                largest = fmaxf(largest,
                                put_results(a, place.row, place.head * STAGED_DIM + d * 8 + t * 2,
                                            __fmul_rn(sums.totals[d][r * 2], factor),
                                            __fmul_rn(sums.totals[d][r * 2 + 1], factor)));
            put_largest(a, place.row, largest, lane);
            continue;
        }
        float *to = partial_of(a, tile, kv_head, i, unit);
#pragma unroll
        for (int d = 0; d < STAGED_KEPT; d++)
            *(float2 *)(to + d * 8 + t * 2) = make_float2(sums.totals[d][r * 2],
                                                          sums.totals[d][r * 2 + 1]);
        if (t == 0)
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

/* Shared memory of one of a block's warps: a unit's keys and values, the barriers of their copies; and the block's fresh
 * rows, each of which is made and used by the warp that has its unit. */
struct staged_place {
    uint32_t keys, values, keys_full, values_full, fresh;
};

__device__ __forceinline__ staged_place place_of(uint32_t base, int warp, int n_warps)
{
    const uint32_t keys = base + warp * 2 * STAGED_PART,
                   full = base + n_warps * 2 * STAGED_PART + warp * 16;
    return {keys, keys + STAGED_PART, full, full + 8, base + (uint32_t)shared_of<false>(n_warps)};
}

__device__ __forceinline__ int64_t head_offset(const attention_args &a, int32_t kv_head)
{
    return a.layer.offset + kv_head * a.layer.head_bytes;
}

__device__ __forceinline__ int32_t fresh_page(const attention_args &a, const staged_task &task,
                                              int32_t row)
{
    return a.page_ids[task.tile.pages + (task.tile.position + row) / KV_PAGE_TOKENS];
}

/* A warp's first unit is asked for and its inputs are there after this. FRESH: nobody has written in this step what the
 * warp reads of pages. */
template <bool FRESH>
__device__ __forceinline__ void begin_units(const attention_args &a, const staged_task &task,
                                            const staged_place &at, int32_t unit, int lane)
{
    const bool old = FRESH || (unit + 1) * ATTENTION_UNIT_TOKENS <= task.tile.position;
    if (lane == 0) {
        barrier_init(at.keys_full, 1);
        barrier_init(at.values_full, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    if (!old)
        await_inputs();
    __syncwarp();
    if (lane == 0 && unit < task.end) {
        const int32_t n_seen = task.last + 1 - unit * ATTENTION_UNIT_TOKENS;
        const int2 ids = ((const int2 *)(a.page_ids + task.tile.pages))[unit];
        const int64_t offset = head_offset(a, task.kv_head);
        fetch_unit(a, ids, n_seen, offset, at.keys, at.keys_full);
        fetch_unit(a, ids, n_seen, offset + a.layer.values, at.values, at.values_full);
    }
    if (old)
        await_inputs();
}

/* A lane's part of a row that is to be written, on its way. */
struct fresh_row {
    float4 key, value;
    lane_angles angles;
    int32_t page;
};

__device__ __forceinline__ fresh_row load_fresh(const attention_args &a, const staged_task &task,
                                                int32_t row, int32_t page, int lane)
{
    const int64_t at = task.tile.first_row + row;
    const int64_t from = (at * a.layer.n_kv_heads + task.kv_head) * (STAGED_DIM / 4) + lane;
    return {((const float4 *)a.fresh.k)[from], ((const float4 *)a.fresh.v)[from],
            load_angles(a.fresh.cosines + at * (STAGED_DIM / 2),
                        a.fresh.sines + at * (STAGED_DIM / 2), (int32_t)a.fresh.kind, lane),
            page};
}

/* Keeps it for the unit's copy, and puts it into the page if its first query is the tile's. */
__device__ __forceinline__ void keep_fresh(const attention_args &a, const staged_task &task,
                                           uint32_t fresh, int32_t row, const fresh_row &r,
                                           int lane)
{
    const uint2 key = four_halves(turn_four(r.key, r.angles, (int32_t)a.fresh.kind)),
                value = four_halves(r.value);
    asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(fresh + (row * 32 + lane) * 16),
                 "r"(key.x), "r"(key.y), "r"(value.x), "r"(value.y)
                 : "memory");
    const int32_t query = row * a.group - task.tile.first_query,
                  position = task.tile.position + row, token = position % KV_PAGE_TOKENS,
                  unit = position / ATTENTION_UNIT_TOKENS;
    if (query < 0 || query >= task.tile.n_queries || unit < task.first || unit >= task.end)
        return;
    uint8_t *to = a.pages + r.page * a.page_bytes + head_offset(a, task.kv_head);
    *(uint2 *)(to + key_place(token, lane * 4) * 2) = key;
    *(uint2 *)(to + a.layer.values + value_place(token, lane * 4) * 2) = value;
}

/* The tile's queries, and the fresh rows in the units of the warp, which has one of so many from unit on. What the first
 * of them needs is under way with the queries. */
template <int ROWS, bool FRESH>
__device__ __forceinline__ void take_rows(uint32_t q[STAGED_DIM / 32][2][4],
                                          const attention_args &a, const staged_task &task,
                                          const staged_place &at, const query_source<ROWS> &source,
                                          int32_t unit, int32_t step, int32_t page, int lane)
{
    if constexpr (FRESH) {
        const int32_t position = task.tile.position, n = task.last - position + 1;
        const auto is_mine = [&](int32_t row) {
            return ((position + row) / ATTENTION_UNIT_TOKENS - unit) % step == 0;
        };
        const fresh_row first = load_fresh(a, task, 0, page, lane);
        take_queries<ROWS, true>(q, a, source);
        if (is_mine(0))
            keep_fresh(a, task, at.fresh, 0, first, lane);
#pragma unroll 1
        for (int32_t row = 1; row < n; row++)
            if (is_mine(row))
                keep_fresh(a, task, at.fresh, row,
                           load_fresh(a, task, row, fresh_page(a, task, row), lane), lane);
    } else {
        take_queries<ROWS, false>(q, a, source);
    }
}

/* Fresh rows' keys, or values, into the warp's copy of the unit. Each lane puts what it has made. */
template <bool VALUES>
__device__ __forceinline__ void put_fresh(const staged_task &task, const staged_place &at,
                                          int32_t unit, int lane)
{
    const int32_t position = task.tile.position, begin = unit * ATTENTION_UNIT_TOKENS,
                  end = min(begin + ATTENTION_UNIT_TOKENS, task.last + 1);
#pragma unroll 1
    for (int32_t i = max(position, begin); i < end; i++) {
        const int32_t token = i % KV_PAGE_TOKENS;
        const uint32_t page = (VALUES ? at.values : at.keys) +
                              (i - begin) / KV_PAGE_TOKENS * STAGED_HALF;
        const uint2 v = load_8(at.fresh + ((i - position) * 32 + lane) * 16 + VALUES * 8);
        asm volatile(
            "st.shared.v2.u32 [%0], {%1,%2};" ::"r"(
                page + (VALUES ? value_place(token, lane * 4) : key_place(token, lane * 4)) * 2),
            "r"(v.x), "r"(v.y)
            : "memory");
    }
    if (begin + ATTENTION_UNIT_TOKENS <= task.last) /* the next copy comes after these writes */
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncwarp();
}

/* Adds a unit, whose copies are under way, to the warp's sums, and asks for the one so many further on. */
template <int ROWS, bool FRESH>
__device__ __forceinline__ void add_unit(staged_sums<ROWS> &sums, const attention_args &a,
                                         const staged_task &task, const staged_place &at,
                                         const uint32_t q[STAGED_DIM / 32][2][4], int32_t unit,
                                         int32_t step, uint32_t parity, int lane)
{
    const int32_t n_seen = task.last + 1 - unit * ATTENTION_UNIT_TOKENS,
                  n_next = n_seen - step * ATTENTION_UNIT_TOKENS;
    const int64_t offset = head_offset(a, task.kv_head);
    const bool more = unit + step < task.end,
               fresh = FRESH && (unit + 1) * ATTENTION_UNIT_TOKENS > task.tile.position;
    const int2 next = more ? ((const int2 *)(a.page_ids + task.tile.pages))[unit + step]
                           : make_int2(0, 0);
    float s[KEY_TILES][4], old_factor[ROWS], new_factor[ROWS];
    barrier_wait(at.keys_full, parity);
    if (fresh)
        put_fresh<false>(task, at, unit, lane);
    score_staged(s, q, at.keys, lane);
    __syncwarp();
    if (more && lane == 0)
        fetch_unit(a, next, n_next, offset, at.keys, at.keys_full);
    uint32_t p[UNIT_PAGES][2][4];
    merge_weights(sums, weigh_unit<ROWS>(p, s, a, task.tile, unit, lane), old_factor, new_factor);
    barrier_wait(at.values_full, parity);
    if (fresh)
        put_fresh<true>(task, at, unit, lane);
    if (n_seen < ATTENTION_UNIT_TOKENS) {
        clear_unseen(at.values, n_seen, lane, 32);
        __syncwarp();
    }
    merge_values(sums, token_values(at.values, lane), p, old_factor, new_factor);
    __syncwarp();
    if (more && lane == 0)
        fetch_unit(a, next, n_next, offset + a.layer.values, at.values, at.values_full);
}

template <int ROWS, bool FRESH>
__device__ __forceinline__ void attend_staged(const attention_args &a)
{
    extern __shared__ uint4 shared[];
    const int lane = (int)threadIdx.x;
    const staged_place at = place_of((uint32_t)__cvta_generic_to_shared(shared), 0, 1);
    const staged_task task = find_task(a);
    if (task.first >= task.end) {
        await_inputs();
        return;
    }
    const int32_t page = FRESH ? fresh_page(a, task, 0) : 0;
    const query_source<ROWS> source = find_queries<ROWS>(a, task.tile, task.kv_head, lane);
    begin_units<FRESH>(a, task, at, task.first, lane);
    uint32_t q[STAGED_DIM / 32][2][4];
    take_rows<ROWS, FRESH>(q, a, task, at, source, task.first, 1, page, lane);
    staged_sums<ROWS> sums;
    clear_sums(sums);
    __syncwarp();
    uint32_t parity = 0;
    for (int32_t unit = task.first; unit < task.end; unit++, parity ^= 1)
        add_unit<ROWS, FRESH>(sums, a, task, at, q, unit, 1, parity, lane);
    store_sums(a, task.tile, task.kv_head, sums, task.walks, task.end - 1, lane);
}

/* A few queries of few sequences: the block's warps go through a tile's units in turn and after each round merge
 * them in order, each for its share of the dimensions. */
template <bool FRESH> __device__ __forceinline__ void attend_together(const attention_args &a)
{
    extern __shared__ uint4 shared[];
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32,
              n_warps = (int)blockDim.x / 32;
    const staged_place at = place_of((uint32_t)__cvta_generic_to_shared(shared), warp, n_warps);
    /* [warp][group of eight dimensions, then largest and sum of weights][lane] */
    float2 *const all = (float2 *)(shared + shared_of<FRESH>(n_warps) / 16);
    float2 *const mine = all + warp * (STAGED_KEPT + 1) * 32 + lane;
    const staged_task task = find_task(a);
    int32_t unit = task.first + warp;
    const int32_t page = FRESH ? fresh_page(a, task, 0) : 0;
    const query_source<1> source = find_queries<1>(a, task.tile, task.kv_head, lane);
    begin_units<FRESH>(a, task, at, unit, lane);
    uint32_t q[STAGED_DIM / 32][2][4];
    take_rows<1, FRESH>(q, a, task, at, source, unit, n_warps, page, lane);
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
            staged_sums<1> sums;
            clear_sums(sums);
            add_unit<1, FRESH>(sums, a, task, at, q, unit, n_warps, parity, lane);
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
    const int32_t first = place.head * STAGED_DIM + lane % 4 * 2;
    const float factor = __frcp_rn(weights);
    float most = 0;
#pragma unroll
    for (int k = 0; k < STAGED_KEPT / 2; k++)
        if (warp + k * n_warps < STAGED_KEPT)
            most = fmaxf(most, put_results(a, place.row, first + (warp + k * n_warps) * 8,
                                           __fmul_rn(totals[k].x, factor),
                                           __fmul_rn(totals[k].y, factor)));
    put_largest(a, place.row, most, lane);
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
    take_queries<2, false>(q, a, find_queries<2>(a, tile, task.kv_head, lane));
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

template <int ROWS, bool FRESH>
static __global__ void __launch_bounds__(32, 6) attention_staged_kernel(attention_args a)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    allow_next();
    attend_staged<ROWS, FRESH>(a);
#endif
}

template <bool FRESH>
static __global__ void __launch_bounds__(ATTENTION_TOGETHER * 32, 2)
    attention_staged_together_kernel(attention_args a)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    allow_next();
    attend_together<FRESH>(a);
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

template <bool FRESH>
static const void *choose_kernel(int queries, int together, int32_t *shared_bytes)
{
    *shared_bytes = shared_of<FRESH>(together);
    if (together == 1)
        return queries <= 8 ? (const void *)attention_staged_kernel<1, FRESH>
                            : (const void *)attention_staged_kernel<2, FRESH>;
    *shared_bytes += together * (STAGED_KEPT + 1) * 32 * (int32_t)sizeof(float2);
    return (const void *)attention_staged_together_kernel<FRESH>;
}

extern "C" const void *cuda_kernel_attention_staged(int queries, int together, int fresh,
                                                    int32_t *threads, int32_t *shared_bytes)
{
    if (queries > ATTENTION_ROWS) {
        *threads = WIDE_WARPS * 32;
        *shared_bytes = WIDE_STAGES * (2 * STAGED_PART + 8);
        return (const void *)attention_staged_wide_kernel;
    }
    *threads = together * 32;
    return fresh ? choose_kernel<true>(queries, together, shared_bytes)
                 : choose_kernel<false>(queries, together, shared_bytes);
}
