/* compute/cuda/stream.cu: products of more than 32 tokens on devices of 9.0, on wgmma.
 *
 * A job is 128 rows by 64 or 128 tokens (a place) of one of the sum's segments (product.cuh). A warp fetches slabs of
 * weights (packed.h) and tiles of activations in bulk copies, as many stages ahead as shared memory holds and from
 * one job to the next; two warpgroups unpack 64 rows each in registers and multiply, a slab's unpacking beside the
 * multiplication of the one before.
 *
 * Every block has the same number of whole places, and those that are left are shared: a block has so many segments
 * of them (share). Each has an owner, the block with the first ones; other blocks have as many of the next, and
 * what is less than a share of each place is dealt out as one line. Segments of shares that are not the owner's go to
 * memory, each one's sums on their own, as they are added in order; they come before a block's whole places, and the
 * owner's after them, so that it finds the others there and adds them. Where nobody has whole places all are done at
 * once, and each block with a share adds up a slice of the place's tokens.
 *
 * Either way a block waits a little for others, but never for ever: other work may keep them off the device, and may
 * itself wait for this. Then it leaves its sums, or its slice, to whoever brings the last segments. Who adds up
 * changes nothing. */
#include "compute/cuda/product.cuh"
#include "compute/cuda/wgmma.cuh"

#define SLAB_ROWS (PACKED_SLAB_TILES * PACKED_ROWS)
/* The threads that multiply; after them those that fetch, a warpgroup of which one thread works: sums need more
 * registers than twelve warps can have, and a warpgroup gives its own away as a whole. */
#define CONSUMERS    256
#define THREADS      (CONSUMERS + 128)
#define PART_SUMS    (PACKED_SEGMENTS - 1) /* the most of a share */
#define SHARED_BYTES 232448                /* that a block may have */
#define STATIC_BYTES 1024
#define PATIENCE     16 /* readings of a counter, 0.7 us each */

#define SLAB_BYTES  ((int)packed_slab_bytes(KIND, K_SCALES))
#define SUPER_BYTES (PACKED_SLAB_TILES * (int)packed_super_bytes(KIND, K_SCALES))

/* Of a kernel whose places have so many tokens. */
template <int TOKENS> struct stream_shape {
    static constexpr int tokens = TOKENS, groups = TOKENS / 8,
                         sums = TOKENS / 2; /* sums: a thread's */
    /* A stage: a tile of activations for all tokens, the slab, its supers. */
    static constexpr int slab_place = TOKENS * PACKED_COLS * 2;
    static constexpr int super_place = slab_place + SLAB_BYTES;
    static constexpr int stage = (super_place + SUPER_BYTES + 1023) / 1024 * 1024;
    static constexpr int stages = (SHARED_BYTES - 1024 - STATIC_BYTES) / stage;
    /* Then two barriers a stage: full and empty. Stages begin at multiples of 1024. */
    static constexpr int dynamic = stages * stage + stages * 16 + 1024;
};

/* What all threads of a block know. */
struct stream_block {
    uint32_t base, full, empty; /* shared memory: stages, their barriers */
    int32_t k_tiles, token_blocks, blocks;
    int32_t whole;                  /* places of every block */
    int32_t first_shared, n_shared; /* places that are shared */
    int32_t share, pieces, rest; /* segments of a share; shares of a place; segments beyond them */
    int32_t tail, jobs; /* of the block: those of others' places, which come first, and all */
};

/* Segments of one place that a block has. */
struct stream_run {
    int32_t place, segment, count;
};

__device__ __forceinline__ void find_share(stream_block &s, int32_t places, int32_t block)
{
    s.first_shared = s.whole * s.blocks;
    s.n_shared = places - s.first_shared;
    s.pieces = PACKED_SEGMENTS / s.share;
    s.rest = PACKED_SEGMENTS % s.share;
    const int32_t others = block - s.pieces * s.n_shared; /* of the blocks that have what is left */
    s.tail = block < s.n_shared ? 0
             : others < 0       ? s.share
                                : max(min(s.n_shared * s.rest - others * s.share, s.share), 0);
    s.jobs = s.tail + s.whole * PACKED_SEGMENTS + (block < s.n_shared ? s.share : 0);
}

/* From a block's job on, as far as they are of one place. */
__device__ __forceinline__ stream_run run_at(const stream_block &s, int32_t job)
{
    const int32_t block = (int32_t)blockIdx.x;
    if (job < s.tail) {
        const int32_t others = block - s.pieces * s.n_shared, at = others * s.share + job;
        if (others < 0)
            return {s.first_shared + block % s.n_shared, block / s.n_shared * s.share + job,
                    s.tail - job};
        return {s.first_shared + at / s.rest, s.pieces * s.share + at % s.rest,
                min(s.rest - at % s.rest, s.tail - job)};
    }
    const int32_t round = (job - s.tail) / PACKED_SEGMENTS,
                  segment = job - s.tail - round * PACKED_SEGMENTS;
    if (round < s.whole)
        return {block + round * s.blocks, segment, PACKED_SEGMENTS - segment};
    return {s.first_shared + block, segment, s.share - segment};
}

/* The part that a segment of a shared place is; the owner's is the sum of its own. */
__device__ __forceinline__ int32_t part_of(const stream_block &s, int32_t place, int32_t segment)
{
    const int32_t piece = segment / s.share, shared = place - s.first_shared;
    if (piece < s.pieces)
        return (piece * s.n_shared + shared) * PART_SUMS + segment - piece * s.share;
    const int32_t at = shared * s.rest + segment - s.pieces * s.share;
    return (s.pieces * s.n_shared + at / s.share) * PART_SUMS + at % s.share;
}

__device__ __forceinline__ void consumers_meet(void)
{
    asm volatile("bar.sync 1, %0;" ::"n"(CONSUMERS) : "memory");
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* ---- fetching ----------------------------------------------------------------------------------- */

/* Where the thread that fetches stands: tile k of a segment of a place. */
template <typename S> struct stream_cursor {
    const uint8_t *slab, *supers; /* supers: of the rows */
    const uint16_t *x;
    uint64_t policy; /* of the slab's copy */
    uint32_t x_bytes;
    int32_t job, k, end;

    /* At the first job from job on that has tiles; k == end if there is none. */
    __device__ __forceinline__ void open(const matmul_args &a, const stream_block &s)
    {
        const int32_t groups = (int32_t)(a.x.n_stride / 8);
        for (k = end = 0; job < s.jobs; job++) {
            const stream_run run = run_at(s, job);
            k = segment_first(s.k_tiles, run.segment);
            end = segment_first(s.k_tiles, run.segment + 1);
            if (k == end)
                continue;
            const int32_t rows = run.place / s.token_blocks;
            const int32_t token_block = run.place - rows * s.token_blocks;
            const int32_t which = find_weight(a, rows);
            const int64_t slabs = rows - a.first_block[which];
            slab = a.w[which].planes + (slabs * s.k_tiles + k) * SLAB_BYTES;
            supers = a.w[which].supers + slabs * ((s.k_tiles + 3) / 4) * SUPER_BYTES;
            x = a.x.halves + ((int64_t)k * groups + token_block * S::groups) * (8 * PACKED_COLS);
            x_bytes = (uint32_t)min(groups - token_block * S::groups, S::groups) * 1024;
            return;
        }
    }

    __device__ __forceinline__ void advance(const matmul_args &a, const stream_block &s)
    {
        slab += SLAB_BYTES;
        x += a.x.n_stride * PACKED_COLS;
        if (++k == end) {
            job++;
            open(a, s);
        }
    }

    __device__ __forceinline__ void fetch_weights(uint32_t stage, uint32_t barrier)
    {
        barrier_expect(barrier, x_bytes + SLAB_BYTES + SUPER_BYTES);
        copy_bulk(stage + S::slab_place, slab, SLAB_BYTES, barrier, policy);
        if (SUPER_BYTES > 0)
            copy_bulk(stage + S::super_place, supers + (k >> 2) * SUPER_BYTES, SUPER_BYTES,
                      barrier);
    }

    __device__ __forceinline__ void fetch_x(uint32_t stage, uint32_t barrier)
    {
        copy_bulk(stage, x, x_bytes, barrier);
    }
};

/* The thread that fetches. Copies of weights run before the inputs are there, as many as there are stages; those
 * of activations follow them. */
template <typename S>
__device__ __forceinline__ void fetch(const matmul_args &a, const stream_block &s)
{
    stream_cursor<S> ahead;
    ahead.job = 0;
    ahead.policy = copy_policy(s.token_blocks == 1);
    ahead.open(a, s);
    stream_cursor<S> behind = ahead;
    int stages = 0;
    for (; stages < S::stages && ahead.k < ahead.end; stages++, ahead.advance(a, s))
        ahead.fetch_weights(s.base + stages * S::stage, s.full + stages * 8);
    await_inputs();
    for (int i = 0; i < stages; i++, behind.advance(a, s))
        behind.fetch_x(s.base + i * S::stage, s.full + i * 8);
    uint32_t parity = 0, stage = s.base, barrier = s.full;
    while (ahead.k < ahead.end) {
        barrier_wait(barrier + S::stages * 8, parity);
        ahead.fetch_weights(stage, barrier);
        ahead.fetch_x(stage, barrier);
        ahead.advance(a, s);
        stage += S::stage;
        barrier += 8;
        if (barrier == s.empty)
            stage = s.base, barrier = s.full, parity ^= 1;
    }
}

/* ---- multiplying -------------------------------------------------------------------------------- */

/* A thread of those that multiply, and its sums of a segment: of its warp's 16 rows. */
template <typename S> struct stream_sums {
    float sums[S::sums];
    uint32_t
        head[4]
            [4]; /* operands of the first slab of the segment to come, once a first one was begun */
    uint32_t table[4], parity;
    int stage, lane, warp;

    __device__ __forceinline__ void open(const matmul_args &a)
    {
        lane = (int)threadIdx.x % 32;
        warp = (int)threadIdx.x / 32;
        stage = 0;
        parity = 0;
        load_table(table, a.w[0].table);
    }

    /* The stage before is free. */
    __device__ __forceinline__ void release(const stream_block &s)
    {
        if (lane == 0)
            barrier_arrive(s.empty + (stage == 0 ? S::stages - 1 : stage - 1) * 8);
    }

    /* The stage's slab; f: operands that no instruction under way has. */
    __device__ __forceinline__ void unpack(const stream_block &s, uint32_t f[4][4])
    {
        const uint32_t now = s.base + stage * S::stage, slab = now + S::slab_place;
        barrier_wait(s.full + stage * 8, parity);
        raw<KIND> in;
        load_parts<KIND>(in, slab + warp * (int)tile_bytes<KIND>::planes,
                         slab + PACKED_SLAB_TILES * (int)tile_bytes<KIND>::planes +
                             warp * (int)packed_scale_bytes(KIND, K_SCALES),
                         now + S::super_place + warp * (int)packed_super_bytes(KIND, K_SCALES),
                         K_SCALES, lane);
        fragment<KIND>(*(uint32_t(*)[2][4])f, in, 0, lane % 4 / 2, K_SCALES, table);
        fragment<KIND>(*(uint32_t(*)[2][4])(f + 2), in, 1, lane % 4 / 2, K_SCALES, table);
    }

    /* Begins what was unpacked, and waits for what was begun before. more: the stage before is not released yet. */
    __device__ __forceinline__ void begin(const stream_block &s, uint32_t f[4][4], bool more)
    {
        const uint64_t x = wgmma_operand(s.base + stage * S::stage);
        wgmma_begin();
#pragma unroll
        for (int i = 0; i < 4; i++)
            wgmma<S::tokens>(sums, f[i], x + i * 2);
        wgmma_commit();
        wgmma_wait<1>(); /* unconditional: the compiler must see which registers are free */
        if (more)
            release(s);
        if (++stage == S::stages)
            stage = 0, parity ^= 1;
    }

    /* A segment of n slabs, the first of which is unpacked; and unpacks that of the next one, if one comes. */
    __device__ __forceinline__ void multiply_segment(const stream_block &s, int32_t n, bool comes)
    {
        uint32_t f[2][4][4];
        int32_t k = 1;
#pragma unroll
        for (int i = 0; i < S::sums; i++)
            sums[i] = 0;
        if (n == 0)
            return;
        begin(s, head, false);
        for (; k + 1 < n; k += 2) {
            unpack(s, f[0]);
            begin(s, f[0], true);
            unpack(s, f[1]);
            begin(s, f[1], true);
        }
        if (k < n) {
            unpack(s, f[0]);
            begin(s, f[0], true);
        } else if (n == 1) {
            wgmma_wait<0>(); /* it has head */
        }
        if (comes)
            unpack(s, head);
        wgmma_wait<0>();
        release(s);
    }
};

__device__ __forceinline__ int32_t segment_slabs(const stream_block &s, int32_t segment)
{
    return segment_first(s.k_tiles, segment + 1) - segment_first(s.k_tiles, segment);
}

/* Whether any slab comes from a block's job on. */
__device__ __forceinline__ bool any_comes(const stream_block &s, int32_t job)
{
    while (job < s.jobs && segment_slabs(s, run_at(s, job).segment) == 0)
        job++;
    return job < s.jobs;
}

/* Sums in memory: [block][PART_SUMS][groups][CONSUMERS] of four, each thread's its own. */
template <typename S>
__device__ __forceinline__ float4 *part_at(const matmul_args &a, int32_t part, int group)
{
    return (float4 *)a.parts + ((int64_t)part * S::groups + group) * CONSUMERS + threadIdx.x;
}

template <typename S>
__device__ __forceinline__ void put_part(const matmul_args &a, int32_t part,
                                         const float sums[S::sums])
{
#pragma unroll
    for (int i = 0; i < S::groups; i++)
        __stcg(part_at<S>(a, part, i),
               make_float4(sums[i * 4], sums[i * 4 + 1], sums[i * 4 + 2], sums[i * 4 + 3]));
}

template <typename S>
__device__ __forceinline__ void load_half(float4 v[S::groups / 2], const matmul_args &a,
                                          int32_t part, int half)
{
#pragma unroll
    for (int i = 0; i < S::groups / 2; i++)
        v[i] = __ldcg(part_at<S>(a, part, half * (S::groups / 2) + i));
}

template <typename S>
__device__ __forceinline__ void add_half(float total[S::sums], const float4 v[S::groups / 2],
                                         int half)
{
#pragma unroll
    for (int i = 0; i < S::groups / 2; i++) {
        float *to = total + (half * (S::groups / 2) + i) * 4;
        to[0] = __fadd_rn(to[0], v[i].x);
        to[1] = __fadd_rn(to[1], v[i].y);
        to[2] = __fadd_rn(to[2], v[i].z);
        to[3] = __fadd_rn(to[3], v[i].w);
    }
}

/* Adds a place's parts in order, a half of one is asked for while the other is added: the owner's, if total is
 * nothing yet, and those of the others. */
template <typename S>
__device__ __forceinline__ void add_parts(const matmul_args &a, const stream_block &s,
                                          int32_t place, bool is_owner, float total[S::sums])
{
    float4 v[2][S::groups / 2];
    int32_t segment = is_owner ? s.share : 0;
    load_half<S>(v[0], a, part_of(s, place, segment), 0);
    load_half<S>(v[1], a, part_of(s, place, segment), 1);
#pragma unroll 1
    while (segment < PACKED_SEGMENTS) {
        segment = segment == 0 ? s.share : segment + 1;
        const bool more = segment < PACKED_SEGMENTS;
        const int32_t next = more ? part_of(s, place, segment) : 0;
        add_half<S>(total, v[0], 0);
        if (more)
            load_half<S>(v[0], a, next, 0);
        add_half<S>(total, v[1], 1);
        if (more)
            load_half<S>(v[1], a, next, 1);
    }
}

/* Whether the others' segments are in memory, all but the owner's; waits for them a little. If so nobody else will
 * add up. The same in all threads; last: shared memory. */
__device__ __forceinline__ bool others_are_there(const stream_block &s, int32_t *counter,
                                                 int32_t *last)
{
    if (threadIdx.x == 0) {
        int32_t count = 0;
        for (int i = 0; i < PATIENCE && count != PACKED_SEGMENTS - s.share; i++)
            asm volatile("ld.acquire.gpu.s32 %0, [%1];" : "=r"(count) : "l"(counter) : "memory");
        *last = count == PACKED_SEGMENTS - s.share;
        if (*last)
            *counter = 0;
    }
    consumers_meet();
    const bool are_there = *(volatile int32_t *)last != 0;
    consumers_meet();
    return are_there;
}

/* After so many segments of a place are in memory: whether they were the last. The same in all threads; last:
 * shared memory. */
__device__ __forceinline__ bool bring_part(int32_t *counter, int32_t segments, int32_t *last)
{
    consumers_meet(); /* thread 0 makes known what all have written */
    if (threadIdx.x == 0) {
        __threadfence();
        *last = atomicAdd(counter, segments) + segments == PACKED_SEGMENTS;
        if (*last)
            *counter = 0;
        __threadfence();
    }
    consumers_meet();
    const bool is_last = *(volatile int32_t *)last != 0;
    consumers_meet();
    return is_last;
}

/* Results of a place for the rows of a thread. */
template <typename S> struct stream_rows {
    float *out[2];       /* of its rows, which are 8 apart, and of the place's first token */
    const float *scales; /* of the place's tokens */
    float row_scale[2], bias[2];
    int32_t n_rows, n_tokens; /* of the product; tokens from the place's first on */
    int32_t row;              /* the first of its rows; of a pair: the one of either */
    int32_t first_token;      /* of the place */
    bool there[2], scaled, biased;

    __device__ __forceinline__ void open(const matmul_args &a, const stream_block &s, int32_t place,
                                         int warp, int lane)
    {
        const int32_t rows = place / s.token_blocks, token_block = place - rows * s.token_blocks;
        const int which = find_weight(a, rows);
        const packed &w = a.w[which];
        const int32_t at = (rows - a.first_block[which]) * SLAB_ROWS + warp * PACKED_ROWS +
                           lane / 4;
        first_token = token_block * S::tokens;
        row = w.pair ? at / PACKED_ROWS * 8 + lane / 4 : at;
        n_rows = w.pair ? w.pair : w.n_rows;
        n_tokens = a.n_tokens - first_token;
        scales = a.x.scales + first_token;
        scaled = w.row_scales != nullptr;
        biased = a.bias[which] != nullptr;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int32_t own = w.pair ? row : row + r * 8;
            there[r] = own < n_rows;
            out[r] = a.out[w.pair ? r : which] + (int64_t)first_token * n_rows + own;
            row_scale[r] = there[r] && scaled ? w.row_scales[at + r * 8] : 1.0f;
            bias[r] = there[r] && biased ? a.bias[which][own] : 0.0f;
        }
    }

    __device__ __forceinline__ float result(int r, float sum, float scale) const
    { /* as product.cuh's */
        float v = __fmul_rn(sum, scale);
        if (scaled)
            v = __fmul_rn(v, row_scale[r]);
        if (biased)
            v = __fadd_rn(v, bias[r]);
        return v;
    }
};

/* Eight tokens' sums, as the instruction has them. */
template <typename S>
__device__ __forceinline__ void store_group(const stream_rows<S> &rows, int group, int lane,
                                            const float sums[4])
{
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int32_t token = group * 8 + lane % 4 * 2 + i;
        if (token >= rows.n_tokens)
            continue;
        const float scale = rows.scales[token];
#pragma unroll
        for (int r = 0; r < 2; r++)
            if (rows.there[r])
                rows.out[r][(int64_t)token * rows.n_rows] = rows.result(r, sums[r * 2 + i], scale);
    }
}

/* N groups of eight tokens of a pair from group on. largest: of the block's elements of each of a place's tokens, in
 * shared memory. */
template <typename S, int N>
__device__ __forceinline__ void gate_groups(const matmul_args &a, const stream_rows<S> &rows,
                                            int group, int lane, const float *sums,
                                            uint32_t *largest)
{
    const int32_t first = group * 8 + lane % 4 * 2, n_tokens = rows.n_tokens; /* of the place */
    float v[N * 2];
#pragma unroll
    for (int j = 0; j < N * 2; j++) {
        const int32_t token = first + j / 2 * 8 + j % 2;
        v[j] = token < n_tokens ? rows.scales[token] : 0;
    }
    const auto gate = [&](int32_t kind) {
#pragma unroll
        for (int j = 0; j < N * 2; j++) {
            const float *const sum = sums + j / 2 * 4 + j % 2;
            v[j] = activate(rows.result(0, sum[0], v[j]), kind) * rows.result(1, sum[2], v[j]);
        }
    };
    if (a.activation == ACTIVATION_SILU) /* without branches, many at once */
        gate(ACTIVATION_SILU);
    else
        gate(a.activation);
    if (!rows.there[0])
        return;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        /* The next input is in tiles, as this one is. */
        uint16_t *const halves =
            prepared_place(a.next, rows.first_token + first + i, rows.row & ~1) + (rows.row & 1);
        float *const out = rows.out[0] + (int64_t)(first + i) * rows.n_rows;
#pragma unroll
        for (int j = 0; j < N; j++)
            if (first + j * 8 + i < n_tokens) {
                out[(int64_t)j * 8 * rows.n_rows] = v[j * 2 + i];
                *(__half *)(halves +
                            j * 8 * PACKED_COLS) = __float2half_rn(v[j * 2 + i] * a.next.scale);
                atomicMax(largest + first + j * 8 + i, __float_as_uint(fabsf(v[j * 2 + i])));
            }
    }
}

/* Groups from .. end-1 of a shared place: adds up the parts and stores the sums. */
template <typename S, int EPILOGUE>
__device__ __forceinline__ void add_slice(const matmul_args &a, const stream_block &s,
                                          int32_t place, int32_t from, int32_t end, int lane,
                                          const stream_rows<S> &rows, uint32_t *largest)
{
    int32_t at[PACKED_SEGMENTS];
#pragma unroll
    for (int j = 0; j < PACKED_SEGMENTS; j++)
        at[j] = j > 0 && j < s.share ? -1 : part_of(s, place, j);
#pragma unroll 1
    for (int32_t group = from; group < end; group++) {
        float4 v[PACKED_SEGMENTS];
#pragma unroll
        for (int j = 0; j < PACKED_SEGMENTS; j++)
            if (at[j] >= 0)
                v[j] = __ldcg(part_at<S>(a, at[j], group));
        float sums[4] = {v[0].x, v[0].y, v[0].z, v[0].w};
#pragma unroll
        for (int j = 1; j < PACKED_SEGMENTS; j++)
            if (at[j] >= 0) {
                sums[0] = __fadd_rn(sums[0], v[j].x);
                sums[1] = __fadd_rn(sums[1], v[j].y);
                sums[2] = __fadd_rn(sums[2], v[j].z);
                sums[3] = __fadd_rn(sums[3], v[j].w);
            }
        if (EPILOGUE == EPILOGUE_GATED)
            gate_groups<S, 1>(a, rows, group, lane, sums, largest);
        else
            store_group(rows, group, lane, sums);
    }
}

/* After a block's segments of a place are in memory, where nobody has whole places: which slices it adds up, a bit
 * each. counter[0] counts segments; a bit above the count is a slice that its block left to whoever brings the last
 * ones. counter[1] counts slices that somebody adds: after the last of them nobody reads the counters. The same in all
 * threads; slices: shared memory. */
__device__ __forceinline__ int32_t find_slices(const stream_block &s, int32_t *counter,
                                               int32_t segments, int32_t *slices)
{
    consumers_meet(); /* thread 0 makes known what all have written */
    if (threadIdx.x == 0) {
        const int32_t piece = (int32_t)blockIdx.x / s.n_shared;
        const int32_t own = piece < s.pieces ? 1 << piece : 0;
        __threadfence();
        int32_t word = atomicAdd(counter, segments) + segments, mine = 0;
        if (word % 16 == PACKED_SEGMENTS) {
            mine = own | word >> 4;
        } else if (own) {
            for (int i = 0; i < PATIENCE && word % 16 != PACKED_SEGMENTS; i++)
                asm volatile("ld.acquire.gpu.s32 %0, [%1];" : "=r"(word) : "l"(counter) : "memory");
            if (word % 16 != PACKED_SEGMENTS)
                word = atomicAdd(counter, own << 4);
            mine = word % 16 == PACKED_SEGMENTS ? own : 0;
        }
        __threadfence();
        *slices = mine;
    }
    consumers_meet();
    const int32_t mine = *(volatile int32_t *)slices;
    consumers_meet();
    return mine;
}

/* By one thread, after the block added so many slices of a place. */
__device__ __forceinline__ void added_slices(const stream_block &s, int32_t *counter, int32_t n)
{
    if (n > 0 && atomicAdd(counter + 1, n) + n == s.pieces)
        counter[0] = counter[1] = 0;
}

/* What the block has found of the tokens from first on goes to memory. By all that multiply. */
template <typename S>
__device__ __forceinline__ void put_largest(const matmul_args &a, uint32_t *largest, int32_t first)
{
    const int32_t token = (int32_t)threadIdx.x;
    consumers_meet();
    if (token < S::tokens && first + token < a.n_tokens) {
        raise_largest(&a.next.sums[first + token].largest, largest[token]);
        largest[token] = 0;
    }
    consumers_meet();
}

template <typename S, int EPILOGUE>
__device__ __forceinline__ void consume(const matmul_args &a, const stream_block &s,
                                        uint32_t *largest, int32_t *last)
{
    const int32_t first_part = (int32_t)blockIdx.x * PART_SUMS;
    stream_sums<S> m;
    stream_rows<S> rows;
    float total[S::sums];
    m.open(a);
    await_inputs();
    if (any_comes(s, 0))
        m.unpack(s, m.head);
    for (int32_t job = 0; job < s.jobs;) {
        const stream_run run = run_at(s, job);
        const bool is_owner = run.segment == 0;
#pragma unroll
        for (int i = 0; i < S::sums; i++)
            total[i] = 0;
        for (int32_t i = 0; i < run.count; i++, job++) {
            m.multiply_segment(s, segment_slabs(s, run.segment + i), any_comes(s, job + 1));
            if (is_owner) {
#pragma unroll
                for (int j = 0; j < S::sums; j++)
                    total[j] = __fadd_rn(total[j], m.sums[j]);
            } else {
                put_part<S>(a, first_part + job, m.sums);
            }
        }
        if (run.count < PACKED_SEGMENTS) {
            int32_t *counter = a.counters + 2 * (run.place - s.first_shared);
            if (s.whole == 0 && s.pieces > 1) {
                if (is_owner)
                    put_part<S>(a, first_part, total);
                rows.open(a, s, run.place, m.warp, m.lane);
                const int32_t slices = find_slices(s, counter, run.count, last);
                for (int32_t i = 0; i < s.pieces; i++)
                    if (slices >> i & 1)
                        add_slice<S, EPILOGUE>(a, s, run.place, S::groups * i / s.pieces,
                                               S::groups * (i + 1) / s.pieces, m.lane, rows,
                                               largest);
                if (threadIdx.x == 0)
                    added_slices(s, counter, __popc(slices));
                if (EPILOGUE == EPILOGUE_GATED && s.token_blocks > 1)
                    put_largest<S>(a, largest, rows.first_token);
                continue;
            }
            if (!is_owner || !others_are_there(s, counter, last)) {
                if (is_owner)
                    put_part<S>(a, first_part, total);
                if (!bring_part(counter, run.count, last))
                    continue;
            }
            add_parts<S>(a, s, run.place, is_owner, total);
        }
        rows.open(a, s, run.place, m.warp, m.lane);
        if (EPILOGUE == EPILOGUE_GATED)
#pragma unroll
            for (int i = 0; i < S::groups; i += 8)
                gate_groups<S, 8>(a, rows, i, m.lane, total + i * 4, largest);
        else
#pragma unroll
            for (int i = 0; i < S::groups; i++)
                store_group(rows, i, m.lane, total + i * 4);
        if (EPILOGUE == EPILOGUE_GATED && s.token_blocks > 1)
            put_largest<S>(a, largest, rows.first_token);
    }
    if (EPILOGUE == EPILOGUE_GATED && s.token_blocks == 1)
        put_largest<S>(a, largest, 0);
}

#endif

template <typename S, int EPILOGUE>
static __global__ void __launch_bounds__(THREADS, 1) stream(matmul_args a)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ uint8_t shared[];
    __shared__ int32_t last;
    __shared__ uint32_t largest[S::tokens];
    const int thread = (int)threadIdx.x;
    stream_block s;
    s.base = ((uint32_t)__cvta_generic_to_shared(shared) + 1023) / 1024 * 1024;
    s.full = s.base + S::stages * S::stage;
    s.empty = s.full + S::stages * 8;
    s.k_tiles = a.w[0].k_tiles;
    s.token_blocks = (a.n_tokens + S::tokens - 1) / S::tokens;
    s.blocks = (int32_t)gridDim.x;
    s.whole = a.whole;
    s.share = a.share;
    find_share(s, a.first_block[a.count] * s.token_blocks, (int32_t)blockIdx.x);
    allow_next();
    if (thread == 0) {
        for (int i = 0; i < S::stages; i++) {
            barrier_init(s.full + i * 8, 1);
            barrier_init(s.empty + i * 8, CONSUMERS / 32);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    if (EPILOGUE == EPILOGUE_GATED && thread < S::tokens)
        largest[thread] = 0;
    __syncthreads();
    if (thread >= CONSUMERS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (thread == CONSUMERS)
            fetch<S>(a, s);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        consume<S, EPILOGUE>(a, s, largest, &last);
    }
#endif
}

template <typename S, int EPILOGUE> static matmul_kernel stream_kernel(void)
{
    return {(const void *)stream<S, EPILOGUE>,
            SLAB_ROWS,
            S::tokens,
            THREADS,
            S::dynamic,
            2,
            PART_SUMS * SLAB_ROWS * S::tokens * (int)sizeof(float)};
}

/* Norms of more than 32 tokens are made of whole rows, by kernels of their own: here they would cost more. */
extern "C" matmul_kernel MATMUL_NAME(int which, int epilogue)
{
    using few = stream_shape<64>;
    using many = stream_shape<128>;
    switch (epilogue) {
    case EPILOGUE_NORM: return {};
    case EPILOGUE_GATED:
        return which == MATMUL_64_WIDE ? stream_kernel<few, EPILOGUE_GATED>()
                                       : stream_kernel<many, EPILOGUE_GATED>();
    default:
        return which == MATMUL_64_WIDE ? stream_kernel<few, EPILOGUE_STORE>()
                                       : stream_kernel<many, EPILOGUE_STORE>();
    }
}
