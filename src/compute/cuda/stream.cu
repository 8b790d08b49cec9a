/* compute/cuda/stream.cu: products of more than 64 tokens on devices of 9.0, on wgmma.
 *
 * A job is 128 rows by 128 tokens of one of the sum's segments (product.cuh). The jobs of a launch stand in one
 * line, the segments of the same rows and tokens (a place) after each other, and every block has an equal
 * stretch of it. A warp fetches slabs of weights (packed.h) and tiles of activations in bulk copies, as many
 * stages ahead as shared memory holds and from one job to the next; two warpgroups unpack 64 rows each in
 * registers and multiply, a slab's unpacking beside the multiplication of the one before.
 *
 * Where a stretch begins or ends inside a place, its sums go to memory: those of the place's first segments as one,
 * added up as far as they go, and of each later segment its own, as they are added in order. Whoever is the
 * last to bring some adds up; which block that is changes nothing. */
#include "compute/cuda/product.cuh"
#include "compute/cuda/wgmma.cuh"

#define TOKENS    128
#define GROUPS    (TOKENS / 8)
#define SLAB_ROWS (PACKED_SLAB_TILES * PACKED_ROWS)
/* The threads that multiply; after them those that fetch, a warpgroup of which one thread works: sums need more
 * registers than twelve warps can have, and a warpgroup gives its own away as a whole. */
#define CONSUMERS 256
#define THREADS   (CONSUMERS + 128)
#define PART_SUMS                                                                                  \
    (PACKED_SEGMENTS + 1)   /* of a block: segments of its first place, sum of its last */
#define SHARED_BYTES 232448 /* that a block may have */

/* A stage: a tile of activations for all tokens, the slab, its supers. */
#define SLAB_BYTES  ((int)packed_slab_bytes(KIND, K_SCALES))
#define SUPER_BYTES (PACKED_SLAB_TILES * (int)packed_super_bytes(KIND, K_SCALES))
#define SLAB_PLACE  (TOKENS * PACKED_COLS * 2)
#define SUPER_PLACE (SLAB_PLACE + SLAB_BYTES)
#define STAGE       ((SUPER_PLACE + SUPER_BYTES + 1023) / 1024 * 1024)
#define STAGES      ((SHARED_BYTES - 1024 - 512) / STAGE)
/* Then two barriers a stage: full and empty. Stages begin at multiples of 1024. */
#define DYNAMIC_BYTES (STAGES * STAGE + STAGES * 16 + 1024)

/* What all threads of a block know. Jobs first_job .. end_job-1 are its own. */
struct stream_block {
    uint32_t base, full, empty; /* shared memory: stages, their barriers */
    int32_t k_tiles, token_blocks, blocks, jobs, first_job, end_job;
};

__device__ __forceinline__ int32_t stretch_first(uint32_t jobs, uint32_t block, uint32_t blocks)
{
    return (int32_t)(jobs * block / blocks);
}

__device__ __forceinline__ int32_t job_owner(uint32_t jobs, uint32_t job, uint32_t blocks)
{
    return (int32_t)(((job + 1) * blocks - 1) / jobs);
}

__device__ __forceinline__ void consumers_meet(void)
{
    asm volatile("bar.sync 1, %0;" ::"n"(CONSUMERS) : "memory");
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* ---- fetching ----------------------------------------------------------------------------------- */

/* Where the thread that fetches stands: tile k of job's segment. */
struct stream_cursor {
    const uint8_t *slab, *supers; /* supers: of the rows */
    const uint16_t *x;
    uint32_t x_bytes;
    int32_t job, k, end;

    /* At the first job from job on that has tiles; k == end if there is none. */
    __device__ __forceinline__ void open(const matmul_args &a, const stream_block &s)
    {
        const int32_t groups = (int32_t)(a.x.n_stride / 8);
        for (k = end = 0; job < s.end_job; job++) {
            const int segment = job % PACKED_SEGMENTS;
            k = segment_first(s.k_tiles, segment);
            end = segment_first(s.k_tiles, segment + 1);
            if (k == end)
                continue;
            const int32_t place = job / PACKED_SEGMENTS, rows = place / s.token_blocks;
            const int32_t token_block = place - rows * s.token_blocks, which = find_weight(a, rows);
            const int64_t slabs = rows - a.first_block[which];
            slab = a.w[which].planes + (slabs * s.k_tiles + k) * SLAB_BYTES;
            supers = a.w[which].supers + slabs * ((s.k_tiles + 3) / 4) * SUPER_BYTES;
            x = a.x.halves + ((int64_t)k * groups + token_block * GROUPS) * (8 * PACKED_COLS);
            x_bytes = (uint32_t)min(groups - token_block * GROUPS, GROUPS) * 1024;
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
        copy_bulk(stage + SLAB_PLACE, slab, SLAB_BYTES, barrier);
        if (SUPER_BYTES > 0)
            copy_bulk(stage + SUPER_PLACE, supers + (k >> 2) * SUPER_BYTES, SUPER_BYTES, barrier);
    }

    __device__ __forceinline__ void fetch_x(uint32_t stage, uint32_t barrier)
    {
        copy_bulk(stage, x, x_bytes, barrier);
    }
};

/* The thread that fetches. Copies of weights run before the inputs are there, as many as there are stages; those
 * of activations follow them. */
__device__ __forceinline__ void fetch(const matmul_args &a, const stream_block &s)
{
    stream_cursor ahead;
    ahead.job = s.first_job;
    ahead.open(a, s);
    stream_cursor behind = ahead;
    int stages = 0;
    for (; stages < STAGES && ahead.k < ahead.end; stages++, ahead.advance(a, s))
        ahead.fetch_weights(s.base + stages * STAGE, s.full + stages * 8);
    await_inputs();
    for (int i = 0; i < stages; i++, behind.advance(a, s))
        behind.fetch_x(s.base + i * STAGE, s.full + i * 8);
    uint32_t parity = 0, stage = s.base, barrier = s.full;
    while (ahead.k < ahead.end) {
        barrier_wait(barrier + STAGES * 8, parity);
        ahead.fetch_weights(stage, barrier);
        ahead.fetch_x(stage, barrier);
        ahead.advance(a, s);
        stage += STAGE;
        barrier += 8;
        if (barrier == s.empty)
            stage = s.base, barrier = s.full, parity ^= 1;
    }
}

/* ---- multiplying -------------------------------------------------------------------------------- */

/* A thread of those that multiply, and its sums of a segment: of its warp's 16 rows. */
struct stream_sums {
    float sums[TOKENS / 2];
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
            barrier_arrive(s.empty + (stage == 0 ? STAGES - 1 : stage - 1) * 8);
    }

    /* A stage; f: operands that no instruction under way has. more: the stage before is not released yet. */
    __device__ __forceinline__ void step(const stream_block &s, uint32_t f[4][4], bool more)
    {
        const uint32_t now = s.base + stage * STAGE, slab = now + SLAB_PLACE;
        barrier_wait(s.full + stage * 8, parity);
        raw<KIND> in;
        load_parts<KIND>(in, slab + warp * (int)tile_bytes<KIND>::planes,
                         slab + PACKED_SLAB_TILES * (int)tile_bytes<KIND>::planes +
                             warp * (int)packed_scale_bytes(KIND, K_SCALES),
                         now + SUPER_PLACE + warp * (int)packed_super_bytes(KIND, K_SCALES),
                         K_SCALES, lane);
        fragment<KIND>(*(uint32_t(*)[2][4])f, in, 0, lane % 4 / 2, K_SCALES, table);
        fragment<KIND>(*(uint32_t(*)[2][4])(f + 2), in, 1, lane % 4 / 2, K_SCALES, table);
        const uint64_t x = wgmma_operand(now);
        wgmma_begin();
#pragma unroll
        for (int i = 0; i < 4; i++)
            wgmma_128(sums, f[i], x + i * 2);
        wgmma_commit();
        wgmma_wait<1>(); /* unconditional: the compiler must see which registers are free */
        if (more)
            release(s);
        if (++stage == STAGES)
            stage = 0, parity ^= 1;
    }

    __device__ __forceinline__ void multiply_segment(const stream_block &s, int segment)
    {
        const int32_t first = segment_first(s.k_tiles, segment),
                      end = segment_first(s.k_tiles, segment + 1);
        uint32_t f[2][4][4];
        int32_t k = first;
#pragma unroll
        for (int i = 0; i < TOKENS / 2; i++)
            sums[i] = 0;
        for (; k + 1 < end; k += 2) {
            step(s, f[0], k > first);
            step(s, f[1], true);
        }
        if (k < end)
            step(s, f[0], k > first);
        wgmma_wait<0>();
        if (first < end)
            release(s);
    }
};

/* Sums in memory: [block][PART_SUMS][GROUPS][CONSUMERS] of four, each thread's its own. */
__device__ __forceinline__ float4 *part_at(const matmul_args &a, int32_t part, int group)
{
    return (float4 *)a.parts + ((int64_t)part * GROUPS + group) * CONSUMERS + threadIdx.x;
}

__device__ __forceinline__ void put_part(const matmul_args &a, int32_t part,
                                         const float sums[TOKENS / 2])
{
#pragma unroll
    for (int i = 0; i < GROUPS; i++)
        __stcg(part_at(a, part, i),
               make_float4(sums[i * 4], sums[i * 4 + 1], sums[i * 4 + 2], sums[i * 4 + 3]));
}

/* Adds up a place's parts: where[j] is segment j's, or -1 if the one before holds it too. */
__device__ __forceinline__ void add_parts(const matmul_args &a, const int32_t *where,
                                          float total[TOKENS / 2])
{
    constexpr int together = 4; /* asked for before one is added */
#pragma unroll
    for (int i = 0; i < GROUPS; i++)
#pragma unroll
        for (int from = 0; from < PACKED_SEGMENTS; from += together) {
            float4 v[together];
            float *to = total + i * 4;
#pragma unroll
            for (int j = 0; j < together; j++)
                if (where[from + j] >= 0)
                    v[j] = __ldcg(part_at(a, where[from + j], i));
#pragma unroll
            for (int j = 0; j < together; j++)
                if (from + j == 0) {
                    to[0] = v[0].x, to[1] = v[0].y, to[2] = v[0].z, to[3] = v[0].w;
                } else if (where[from + j] >= 0) {
                    to[0] = __fadd_rn(to[0], v[j].x);
                    to[1] = __fadd_rn(to[1], v[j].y);
                    to[2] = __fadd_rn(to[2], v[j].z);
                    to[3] = __fadd_rn(to[3], v[j].w);
                }
            asm volatile("" ::: "memory"); /* not all loads at once: registers */
        }
}

/* After this block's part of a place is in memory: 1 in all threads if it was the last one, and then where
 * all are. Both are shared memory. */
__device__ __forceinline__ bool bring_part(const matmul_args &a, const stream_block &s,
                                           int32_t place, int32_t segments, int32_t *last,
                                           int32_t *where)
{
    const int thread = (int)threadIdx.x;
    /* Counted where the block with the first segment is: the place is the last of that one alone. */
    const int32_t owner = job_owner(s.jobs, place * PACKED_SEGMENTS, s.blocks);
    __threadfence();
    consumers_meet();
    if (thread < PACKED_SEGMENTS) {
        const int32_t job = place * PACKED_SEGMENTS + thread,
                      block = job_owner(s.jobs, job, s.blocks);
        where[thread] = block != owner
                            ? block * PART_SUMS + job - stretch_first(s.jobs, block, s.blocks)
                        : thread == 0 ? block * PART_SUMS + PACKED_SEGMENTS
                                      : -1;
    }
    if (thread == 0) {
        *last = atomicAdd(a.counters + owner, segments) + segments == PACKED_SEGMENTS;
        if (*last)
            a.counters[owner] = 0;
        __threadfence();
    }
    consumers_meet();
    const bool is_last = *(volatile int32_t *)last != 0;
    consumers_meet();
    return is_last;
}

__device__ __forceinline__ void store_place(const matmul_args &a, const stream_block &s,
                                            int32_t place, const stream_sums &m,
                                            const float total[TOKENS / 2])
{
    const int32_t rows = place / s.token_blocks, token_block = place - rows * s.token_blocks;
    const int which = find_weight(a, rows);
    const packed &w = a.w[which];
    const int32_t row = (rows - a.first_block[which]) * SLAB_ROWS + m.warp * PACKED_ROWS +
                        m.lane / 4;
    float row_scale[2], bias[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const bool there = row + r * 8 < w.n_rows;
        row_scale[r] = there && w.row_scales ? w.row_scales[row + r * 8] : 1.0f;
        bias[r] = there && a.bias[which] ? a.bias[which][row + r * 8] : 0.0f;
    }
    float *const out = a.out[which] + row;
#pragma unroll
    for (int i = 0; i < TOKENS / 4; i++) {
        const int32_t token = token_block * TOKENS + i / 2 * 8 + m.lane % 4 * 2 + i % 2;
        if (token >= a.n_tokens)
            continue;
        const float scale = a.x.scales[token];
#pragma unroll
        for (int r = 0; r < 2; r++) { /* as product.cuh's store */
            float v = __fmul_rn(total[i / 2 * 4 + r * 2 + i % 2], scale);
            if (w.row_scales)
                v = __fmul_rn(v, row_scale[r]);
            if (a.bias[which])
                v = __fadd_rn(v, bias[r]);
            if (row + r * 8 < w.n_rows)
                out[(int64_t)token * w.n_rows + r * 8] = v;
        }
    }
}

__device__ __forceinline__ void consume(const matmul_args &a, const stream_block &s, int32_t *last,
                                        int32_t *where)
{
    stream_sums m;
    float total[TOKENS / 2];
    m.open(a);
    await_inputs();
    for (int32_t job = s.first_job; job < s.end_job;) {
        const int32_t place = job / PACKED_SEGMENTS, place_job = job;
        const int32_t end = min((place + 1) * PACKED_SEGMENTS, s.end_job);
        const bool from_first = job % PACKED_SEGMENTS == 0;
#pragma unroll
        for (int i = 0; i < TOKENS / 2; i++)
            total[i] = 0;
        for (; job < end; job++) {
            m.multiply_segment(s, job % PACKED_SEGMENTS);
            if (from_first) {
#pragma unroll
                for (int i = 0; i < TOKENS / 2; i++)
                    total[i] = __fadd_rn(total[i], m.sums[i]);
            } else {
                put_part(a, (int32_t)blockIdx.x * PART_SUMS + job - place_job, m.sums);
            }
        }
        if (end - place_job < PACKED_SEGMENTS) {
            if (from_first)
                put_part(a, (int32_t)blockIdx.x * PART_SUMS + PACKED_SEGMENTS, total);
            if (!bring_part(a, s, place, end - place_job, last, where))
                continue;
            add_parts(a, where, total);
        }
        store_place(a, s, place, m, total);
    }
}

#endif

static __global__ void __launch_bounds__(THREADS, 1) stream(matmul_args a)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ uint8_t shared[];
    __shared__ int32_t last, where[PACKED_SEGMENTS];
    stream_block s;
    s.base = ((uint32_t)__cvta_generic_to_shared(shared) + 1023) / 1024 * 1024;
    s.full = s.base + STAGES * STAGE;
    s.empty = s.full + STAGES * 8;
    s.k_tiles = a.w[0].k_tiles;
    s.token_blocks = (a.n_tokens + TOKENS - 1) / TOKENS;
    s.blocks = (int32_t)gridDim.x;
    s.jobs = a.first_block[a.count] * s.token_blocks * PACKED_SEGMENTS;
    s.first_job = stretch_first(s.jobs, blockIdx.x, s.blocks);
    s.end_job = stretch_first(s.jobs, blockIdx.x + 1, s.blocks);
    allow_next();
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(s.full + i * 8, 1);
            barrier_init(s.empty + i * 8, CONSUMERS / 32);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x >= CONSUMERS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (threadIdx.x == CONSUMERS)
            fetch(a, s);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        consume(a, s, &last, where);
    }
#endif
}

extern "C" matmul_kernel MATMUL_NAME(void)
{
    return {(const void *)stream,
            SLAB_ROWS,
            TOKENS,
            THREADS,
            DYNAMIC_BYTES,
            2,
            PART_SUMS * SLAB_ROWS * TOKENS * (int)sizeof(float)};
}
