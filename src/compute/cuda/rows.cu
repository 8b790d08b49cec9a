/* compute/cuda/rows.cu: operations on rows and elements, one block a row where a row is summed up. */
#include "compute/cuda/activation.cuh"
#include "compute/cuda/element.cuh"
#include "compute/cuda/input.cuh"
#include "compute/cuda/rope.cuh"
#include "compute/exp_parts.h"

/* ---- input of products ------------------------------------------------------------------------ */

static __global__ void prepare_kernel(rows_args a)
{
    __shared__ float scratch[33];
    allow_next();
    await_inputs();
    const float *x = a.x + (int64_t)blockIdx.x * a.n_cols;
    const int32_t first = (int32_t)threadIdx.x * 4, step = (int32_t)blockDim.x * 4;
    float4 kept[KEPT];
    float largest = 0;
#pragma unroll
    for (int i = 0; i < KEPT; i++) {
        kept[i] = first + i * step < a.n_cols ? load_four(x, first + i * step, a.n_cols)
                                              : make_float4(0, 0, 0, 0);
        largest = fmaxf(largest, largest_of(kept[i]));
    }
    for (int32_t k = first + KEPT * step; k < a.n_cols; k += step)
        largest = fmaxf(largest, largest_of(load_four(x, k, a.n_cols)));
    prepare_row(a.p, kept, x, a.n_cols, blockIdx.x, largest, scratch);
}

/* Whoever made the halves had a part of each row alone. A thread a row; blocks remake those that do not fit. */
static __global__ void settle_kernel(rows_args a)
{
    __shared__ float factors[SETTLE_ROWS];
    const int32_t first = (int32_t)blockIdx.x * SETTLE_ROWS, thread = (int32_t)threadIdx.x;
    allow_next();
    await_inputs();
    bool misfit = false;
    if (first + thread < a.n_elements) {
        const float factor = input_factor(a.p, first + thread, true);
        a.p.scales[first + thread] = factors[thread] = factor;
        misfit = factor < 0;
    }
    if (!__syncthreads_or(misfit))
        return;
    for (int32_t i = 0; i < SETTLE_ROWS && first + i < a.n_elements; i++) {
        if (factors[i] >= 0)
            continue;
        const float2 made = remake_row(a.p, first + i);
        if (thread == 0) {
            a.p.scales[first + i] = made.x;
            if (a.p.state == PREPARED_NORMED)
                a.p.sums[first + i].inverse = made.y;
        }
    }
}

static __global__ void clear_kernel(rows_args a)
{
    allow_next();
    await_inputs();
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < a.n_elements)
        ((uint4 *)a.out)[i] = make_uint4(0, 0, 0, 0);
}

/* ---- norms ------------------------------------------------------------------------------------ */

__device__ __forceinline__ float4 norm_gain(const norm_args &a, int32_t k)
{
    return a.gain ? load_four(a.gain, k, a.n_cols) : make_float4(1, 1, 1, 1);
}

__device__ __forceinline__ float4 norm_four(const norm_args &a, float4 v, float4 gain, float mean,
                                            float inverse, int32_t k)
{
    float4 bias = a.bias ? load_four(a.bias, k, a.n_cols) : make_float4(0, 0, 0, 0);
    float *x = &v.x, *g = &gain.x, *b = &bias.x;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x[i] = __fmul_rn(__fmul_rn(x[i] - mean, inverse), g[i]);
        if (a.bias)
            x[i] = __fadd_rn(x[i], b[i]);
    }
    return v;
}

/* The row's numbers, summed up where an addition comes first. */
__device__ __forceinline__ float4 norm_input(const norm_args &a, int64_t at, int32_t k)
{
    float4 x = load_four(a.x + at, k, a.n_cols);
    if (!a.y)
        return x;
    float4 y = load_four(a.y + at, k, a.n_cols);
    x = make_float4(fmaf(a.factor, y.x, x.x), fmaf(a.factor, y.y, x.y), fmaf(a.factor, y.z, x.z),
                    fmaf(a.factor, y.w, x.w));
    store_four(a.sum + at, k, a.n_cols, x);
    return x;
}

/* Of the columns there are: (x - mean)^2, or x itself. */
__device__ __forceinline__ float norm_sum(float4 v, int32_t k, int32_t n_cols, float mean,
                                          int squared, float total)
{
    const float *x = &v.x;
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (k + i < n_cols)
            total = squared ? fmaf(x[i] - mean, x[i] - mean, total) : total + x[i];
    return total;
}

/* Of heads, and with means and biases. An optional addition comes first: the stream grows by a sublayer's result and
 * is normed for the next in one go. */
static __global__ void norm_kernel(norm_args a)
{
    __shared__ float scratch[3][33];
    const int64_t at = (int64_t)blockIdx.x * a.n_cols;
    const float *again = a.y ? a.sum + at
                             : a.x + at; /* where a thread finds what it did not keep */
    const int32_t first = (int32_t)threadIdx.x * 4, step = (int32_t)blockDim.x * 4, n = a.n_cols;
    float4 kept[KEPT], gain[KEPT];
    float mean = 0, total = 0;
    allow_next();
#pragma unroll
    for (int i = 0; i < KEPT; i++)
        gain[i] = norm_gain(a, first + i * step);
    await_inputs();
#pragma unroll
    for (int i = 0; i < KEPT; i++)
        kept[i] = first + i * step < n ? norm_input(a, at, first + i * step)
                                       : make_float4(0, 0, 0, 0);
    for (int32_t k = first + KEPT * step; a.y && k < n; k += step)
        norm_input(a, at, k);
    if (a.kind == NORM_LAYER) {
#pragma unroll
        for (int i = 0; i < KEPT; i++)
            total = norm_sum(kept[i], first + i * step, n, 0, 0, total);
        for (int32_t k = first + KEPT * step; k < n; k += step)
            total = norm_sum(load_four(again, k, n), k, n, 0, 0, total);
        mean = block_sum(total, scratch[0]) / (float)n;
        total = 0;
    }
#pragma unroll
    for (int i = 0; i < KEPT; i++)
        total = norm_sum(kept[i], first + i * step, n, mean, 1, total);
    for (int32_t k = first + KEPT * step; k < n; k += step)
        total = norm_sum(load_four(again, k, n), k, n, mean, 1, total);
    float inverse = 1.0f / sqrtf(block_sum(total, scratch[1]) / (float)n + a.epsilon), largest = 0;
#pragma unroll
    for (int i = 0; i < KEPT; i++) {
        int32_t k = first + i * step;
        if (k < n) {
            kept[i] = norm_four(a, kept[i], gain[i], mean, inverse, k);
            largest = fmaxf(largest, largest_of(kept[i]));
            store_four(a.out + at, k, n, kept[i]);
        }
    }
    for (int32_t k = first + KEPT * step; k < n; k += step) {
        float4 v = norm_four(a, load_four(again, k, n), norm_gain(a, k), mean, inverse, k);
        largest = fmaxf(largest, largest_of(v));
        store_four(a.out + at, k, n, v);
    }
    if (a.p.halves)
        prepare_row(a.p, kept, a.out + at, n, blockIdx.x, largest, scratch[2]);
}

/* Norms by RMS whose results products read (input.cuh). With few rows all wait for what is one chain of instructions in
 * each thread, so it has no branches that whole tiles of at most VECTORS * 4096 columns do not need, and every load
 * before the first store. Its few registers let it in beside blocks of a product. */
template <int VECTORS>
static __global__ void __launch_bounds__(1024, VECTORS == 1 ? 2 : 1) norm_whole(norm_args a)
{
    __shared__ block_scratch scratch;
    const int32_t n = a.n_cols, first = (int32_t)threadIdx.x * 4, step = (int32_t)blockDim.x * 4;
    const int64_t at = (int64_t)blockIdx.x * n + first;
    float4 v[VECTORS], y[VECTORS], gain[VECTORS];
    row_part part = {0, 0};
    allow_next();
#pragma unroll
    for (int i = 0; i < VECTORS; i++)
        gain[i] = first + i * step < n && a.gain ? *(const float4 *)(a.gain + first + i * step)
                                                 : make_float4(1, 1, 1, 1);
    await_inputs();
    const float before = a.p.before ? a.p.before[blockIdx.x].inverse : 0;
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        v[i] = y[i] = make_float4(0, 0, 0, 0);
        if (first + i * step < n) {
            v[i] = *(const float4 *)(a.x + at + i * step);
            if (a.y)
                y[i] = *(const float4 *)(a.y + at + i * step);
        }
    }
    const int bits = guess_bits(before);
    const float guess = power_of_two(bits), scale = power_of_two(bits + NORMED_SIZE_BITS);
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        float *x = &v[i].x, *more = &y[i].x;
#pragma unroll
        for (int e = 0; e < 4; e++)
            x[e] = a.y ? fmaf(a.factor, more[e], x[e]) : x[e];
        add_four(part, v[i], times(v[i], gain[i]), guess);
        if (a.y && first + i * step < n)
            *(float4 *)(a.sum + at + i * step) = v[i];
    }
    part = block_part(part, scratch);
    float inverse, factor;
    if (normed_fits(a.p, part.squares, part.largest, bits, &inverse) && a.p.before) {
        factor = __fmul_rn(inverse, power_of_two(-bits - NORMED_SIZE_BITS));
#pragma unroll
        for (int i = 0; i < VECTORS; i++)
            if (first + i * step < n)
                store_prepared(a.p, blockIdx.x, first + i * step, times(v[i], gain[i]), scale);
    } else {
        const float2 made = remake_row(a.p, blockIdx.x);
        factor = made.x;
        inverse = made.y;
    }
#pragma unroll
    for (int i = 0; i < VECTORS; i++)
        if (first + i * step < n)
            *(float4 *)(a.out + at + i * step) = times(
                times(v[i], make_float4(inverse, inverse, inverse, inverse)), gain[i]);
    if (threadIdx.x == 0) {
        a.p.scales[blockIdx.x] = factor;
        a.p.sums[blockIdx.x].inverse = inverse;
    }
}

/* The same, bit for bit, of any number of columns. */
static __global__ void norm_any(norm_args a)
{
    __shared__ block_scratch scratch;
    const int64_t at = (int64_t)blockIdx.x * a.n_cols;
    const int32_t first = (int32_t)threadIdx.x * 4, step = (int32_t)blockDim.x * 4, n = a.n_cols;
    row_part part = {0, 0};
    allow_next();
    await_inputs();
    const int bits = guess_bits(a.p.before ? a.p.before[blockIdx.x].inverse : 0);
    const float guess = power_of_two(bits);
    for (int32_t k = first; k - first < n; k += step) {
        const float4 v = k < n ? norm_input(a, at, k) : make_float4(0, 0, 0, 0);
        add_four(part, v, k < n ? times(v, norm_gain(a, k)) : v, guess);
    }
    part = block_part(part, scratch);
    const float *row = (a.y ? a.sum : a.x) + at;
    float inverse, factor;
    if (normed_fits(a.p, part.squares, part.largest, bits, &inverse) && a.p.before) {
        factor = __fmul_rn(inverse, power_of_two(-bits - NORMED_SIZE_BITS));
        for (int32_t k = first; k < padded_cols(n); k += step)
            store_prepared(a.p, blockIdx.x, k, times(load_four(row, k, n), norm_gain(a, k)),
                           power_of_two(bits + NORMED_SIZE_BITS));
    } else {
        const float2 made = remake_row(a.p, blockIdx.x);
        factor = made.x;
        inverse = made.y;
    }
    for (int32_t k = first; k < n; k += step)
        store_four(
            a.out + at, k, n,
            times(times(load_four(row, k, n), make_float4(inverse, inverse, inverse, inverse)),
                  norm_gain(a, k)));
    if (threadIdx.x == 0) {
        a.p.scales[blockIdx.x] = factor;
        a.p.sums[blockIdx.x].inverse = inverse;
    }
}

/* ---- elements --------------------------------------------------------------------------------- */

/* A cluster of blocks a row, which agree on its largest element; blocks y of gridDim.x parts. */
static __global__ void gated_kernel(rows_args a)
{
    __shared__ float scratch[33], cluster[1];
    const int32_t n = a.n_cols, part = (padded_cols(n) / PACKED_COLS + (int32_t)gridDim.x - 1) /
                                       (int32_t)gridDim.x * PACKED_COLS;
    const int32_t from = part * (int32_t)blockIdx.x, end = min(from + part, padded_cols(n));
    const int64_t at = (int64_t)blockIdx.y * n;
    float4 kept = make_float4(0, 0, 0, 0);
    float largest = 0;
    allow_next();
    await_inputs();
    for (int32_t k = from + (int32_t)threadIdx.x * 4; k < end; k += (int32_t)blockDim.x * 4) {
        float4 x = load_four(a.x + at, k, n), y = load_four(a.y + at, k, n);
        kept = gated_four(x, y, a.kind);
        store_four(a.out + at, k, n, kept);
        largest = fmaxf(largest, largest_of(kept));
    }
    if (!a.p.halves)
        return;
    float inverse,
        factor = plain_scale(a.p, cluster_max(block_most(largest, scratch), cluster), &inverse);
    for (int32_t k = from + (int32_t)threadIdx.x * 4; k < end; k += (int32_t)blockDim.x * 4)
        store_prepared(a.p, blockIdx.y, k,
                       part <= (int32_t)blockDim.x * 4 ? kept : load_four(a.out + at, k, n),
                       factor);
    if (blockIdx.x == 0 && threadIdx.x == 0)
        a.p.scales[blockIdx.y] = inverse;
}

static __global__ void add_kernel(rows_args a)
{
    allow_next();
    await_inputs();
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    for (; i < a.n_elements; i += (int64_t)gridDim.x * blockDim.x)
        a.out[i] = fmaf(a.factor, a.y[i], a.x[i]);
}

static __global__ void soft_cap_kernel(rows_args a)
{
    allow_next();
    await_inputs();
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    for (; i < a.n_elements; i += (int64_t)gridDim.x * blockDim.x)
        a.out[i] = a.factor * tanhf(a.x[i] / a.factor);
}

static __global__ void gather_kernel(rows_args a)
{
    allow_next();
    await_inputs();
    const float *x = a.x + (int64_t)a.rows[blockIdx.x] * a.n_cols;
    float *out = a.out + (int64_t)blockIdx.x * a.n_cols;
    for (int32_t k = (int32_t)threadIdx.x; k < a.n_cols; k += (int32_t)blockDim.x)
        out[k] = x[k];
    if (a.p.before && threadIdx.x == 0)
        a.p.sums[blockIdx.x].inverse = a.p.before[a.rows[blockIdx.x]].inverse;
}

/* ---- results for the host ---------------------------------------------------------------------- */

#define RESULT_THREADS 1024
#define PEAK_PARTS     (PEAK_COLS / 32) /* of a peak's columns each lane of its warp has so many */
#define GROUPS_MOST    256 /* of a row's columns, whose largest say where the row's largest may be */
#define CANDIDATES                                                                                 \
    2048 /* usually as many as TOP_COLUMNS and a few; more of a row of equal numbers */

/* Columns in the order of tops: the larger number first, of equal ones the first; no two are the same. */
__device__ __forceinline__ uint32_t order_of(float x)
{
    uint32_t bits = __float_as_uint((x == x ? x : -INFINITY) + 0.0f); /* -0 is 0 */
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ uint64_t place_of(float x, int32_t column)
{
    return (uint64_t)order_of(x) << 32 | (uint32_t)~column;
}

/* The k-th place from the top, digit by digit; by the block. */
__device__ __forceinline__ uint64_t kth_place(const float *x, int32_t n, int32_t k, int32_t *counts)
{
    __shared__ uint64_t found;
    __shared__ int32_t left;
    if (threadIdx.x == 0)
        found = 0, left = k;
    for (int shift = 56; shift >= 0; shift -= 8) {
        if (threadIdx.x < 256)
            counts[threadIdx.x] = 0;
        __syncthreads();
        for (int32_t i = (int32_t)threadIdx.x; i < n; i += RESULT_THREADS) {
            const uint64_t place = place_of(x[i], i);
            if (shift == 56 || place >> (shift + 8) == found)
                atomicAdd(counts + (place >> shift & 255), 1);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            int digit = 255;
            for (; counts[digit] < left; digit--)
                left -= counts[digit];
            found = found << 8 | (uint64_t)digit;
        }
        __syncthreads();
    }
    return found;
}

/* The largest columns of a row, by a block: the largest of groups of columns give a bound that at least
 * TOP_COLUMNS reach, what reaches it is collected, and how many stand before each is its place. */
__device__ __forceinline__ void write_tops(const float *x, int32_t n, top_column *out)
{
    __shared__ uint64_t candidates[CANDIDATES];
    __shared__ uint32_t largest[GROUPS_MOST], bound;
    __shared__ int32_t counts[256], count;
    const int32_t thread = (int32_t)threadIdx.x, k = min(n, TOP_COLUMNS);
    const int32_t group = ((n + GROUPS_MOST - 1) / GROUPS_MOST + 31) / 32 * 32;
    const int32_t groups = (n + group - 1) / group;
    for (int32_t g = thread / 32; g < groups; g += RESULT_THREADS / 32) {
        uint32_t most = 0;
#pragma unroll 4
        for (int32_t i = thread % 32; i < group; i += 32)
            if (g * group + i < n)
                most = max(most, order_of(x[g * group + i]));
        most = __reduce_max_sync(0xffffffffu, most);
        if (thread % 32 == 0)
            largest[g] = most;
    }
    if (thread == 0)
        count = 0, bound = 0;
    __syncthreads();
    if (thread < groups && groups >= TOP_COLUMNS) {
        int32_t before = 0;
        for (int32_t g = 0; g < groups; g++)
            before += largest[g] > largest[thread] || (largest[g] == largest[thread] && g < thread);
        if (before == TOP_COLUMNS - 1)
            bound = largest[thread];
    }
    __syncthreads();
    for (int32_t i = thread; i < n; i += RESULT_THREADS) {
        const float v = x[i];
        if (order_of(v) >= bound) {
            const int32_t at = atomicAdd(&count, 1);
            if (at < CANDIDATES)
                candidates[at] = place_of(v, i);
        }
    }
    __syncthreads();
    const bool too_many = count > CANDIDATES;
    __syncthreads();
    if (too_many) {
        const uint64_t last = kth_place(x, n, k, counts);
        if (thread == 0)
            count = 0;
        __syncthreads();
        for (int32_t i = thread; i < n; i += RESULT_THREADS)
            if (place_of(x[i], i) >= last)
                candidates[atomicAdd(&count, 1)] = place_of(x[i], i);
        __syncthreads();
    }
    for (int32_t i = thread; i < count; i += RESULT_THREADS) {
        const uint64_t place = candidates[i];
        int32_t before = 0;
        for (int32_t j = 0; j < count; j++)
            before += candidates[j] > place;
        if (before < k) {
            const int32_t column = (int32_t) ~(uint32_t)place;
            const float v = x[column];
            out[before] = {column, v == v ? v : -INFINITY};
        }
    }
}

/* A lane's columns of a peak, beyond the row's end -INFINITY. */
__device__ __forceinline__ void load_peak(const float *x, int32_t n, int32_t peak,
                                          float v[PEAK_PARTS])
{
#pragma unroll
    for (int32_t i = 0; i < PEAK_PARTS; i++) {
        const int32_t k = peak * PEAK_COLS + i * 32 + (int32_t)threadIdx.x % 32;
        v[i] = k < n ? x[k] : -INFINITY;
    }
}

/* By a warp, whose stores are whole lines; returns the largest number. row NULL: it stays. */
__device__ __forceinline__ float write_peak(const float *x, int32_t n, int32_t peak, float *row,
                                            float *peaks)
{
    float v[PEAK_PARTS], most = -INFINITY;
    int odd = 0;
    load_peak(x, n, peak, v);
#pragma unroll
    for (int32_t i = 0; i < PEAK_PARTS; i++) {
        const int32_t k = peak * PEAK_COLS + i * 32 + (int32_t)threadIdx.x % 32;
        if (k < n && row)
            row[k] = v[i];
        most = fmaxf(most, v[i]);
        odd |= v[i] != v[i];
    }
    most = warp_max(most);
    odd = __any_sync(0xffffffffu, odd);
    if (threadIdx.x % 32 == 0)
        peaks[peak] = odd ? NAN : most;
    return most;
}

/* As exp_parts.h says; nothing here may be fused. */
__device__ __forceinline__ float exp_of(float x)
{
    const float bounded = x > EXP_LEAST ? x : EXP_LEAST;
    const float shifted = __fadd_rn(__fmul_rn(bounded, EXP_LOG2E), EXP_ROUNDS);
    const float n = __fsub_rn(shifted, EXP_ROUNDS);
    const float r = __fsub_rn(__fsub_rn(bounded, __fmul_rn(n, EXP_LN2_HIGH)),
                              __fmul_rn(n, EXP_LN2_LOW));
    float p = __fadd_rn(__fmul_rn(r, EXP_P0), EXP_P1);
    p = __fadd_rn(__fmul_rn(p, r), EXP_P2);
    p = __fadd_rn(__fmul_rn(p, r), EXP_P3);
    p = __fadd_rn(__fmul_rn(p, r), EXP_P4);
    p = __fadd_rn(__fmul_rn(p, r), EXP_P5);
    p = __fadd_rn(__fadd_rn(__fmul_rn(p, __fmul_rn(r, r)), r), 1.0f);
    const int32_t power = (__float_as_int(shifted) - EXP_ROUNDS_BITS + 127) * (1 << 23);
    return x > EXP_LEAST ? __fmul_rn(p, __int_as_float(power)) : 0.0f;
}

/* By a warp: lane l of the sum has columns l, l + 16, ..., which are two lanes' of the warp in turns. */
__device__ __forceinline__ double write_sum(const float *x, int32_t n, int32_t peak, float scale,
                                            float shift, double *sums)
{
    float v[PEAK_PARTS], lane_sum = 0;
    double sum = 0;
    load_peak(x, n, peak, v);
#pragma unroll
    for (int32_t i = 0; i < PEAK_PARTS; i++) {
        v[i] = exp_of(__fadd_rn(__fmul_rn(v[i], scale), shift));
        const float above = __shfl_down_sync(0xffffffffu, v[i], EXP_LANES);
        lane_sum = __fadd_rn(__fadd_rn(lane_sum, v[i]), above);
    }
#pragma unroll
    for (int32_t i = 0; i < EXP_LANES; i++)
        sum += (double)__shfl_sync(0xffffffffu, lane_sum, i);
    if (threadIdx.x % 32 == 0)
        sums[peak] = sum;
    return sum;
}

/* The largest of what each warp of a row's cluster of blocks has found; the same in all threads. */
__device__ __forceinline__ float row_max(float most)
{
    __shared__ float of_warps[32], of_block;
    if (threadIdx.x % 32 == 0)
        of_warps[threadIdx.x / 32] = most;
    __syncthreads();
    return cluster_max(warp_max(of_warps[threadIdx.x % 32]), &of_block);
}

/* Of a row's sums a block of its cluster keeps every gridDim.x-th here. */
#define SUMS_MOST 256

/* The n sums from first on, in order. */
__device__ __forceinline__ double add_sums(const double *part, int32_t first, int32_t n)
{
    double sum = 0;
    for (int32_t i = first; i < first + n; i++)
        sum += cluster_read(part + i / (int32_t)gridDim.x, (uint32_t)i % gridDim.x);
    return sum;
}

/* By a warp: the block in which the running sum passes point * total. Added up in another order than the host does, which
 * may choose the block beside it once in a blue moon: then it looks for itself. */
__device__ __forceinline__ void write_block(const double *part, int32_t n_peaks, double point,
                                            const float *x, int32_t n, row_block *out)
{
    const int32_t lane = (int32_t)threadIdx.x, share = (n_peaks + 31) / 32;
    const int32_t first = min(lane * share, n_peaks), count = min(share, n_peaks - first);
    const double own = add_sums(part, first, count);
    double up_to = own;
    for (int i = 1; i < 32; i *= 2) {
        const double before = __shfl_up_sync(0xffffffffu, up_to, i);
        up_to += lane >= i ? before : 0;
    }
    const double wanted = point * __shfl_sync(0xffffffffu, up_to, 31);
    const uint32_t past = __ballot_sync(0xffffffffu, up_to > wanted);
    int32_t found = -1;
    if (past && lane == __ffs((int)past) - 1) {
        double sum = up_to - own;
        for (int32_t i = first; i < first + count && found < 0; i++) {
            sum += add_sums(part, i, 1);
            found = sum > wanted ? i : -1;
        }
    }
    found = past ? __shfl_sync(0xffffffffu, found, __ffs((int)past) - 1) : -1;
    if (lane == 0)
        out->first = found < 0 ? -1 : found * PEAK_COLS;
    for (int32_t i = lane; found >= 0 && i < PEAK_COLS && found * PEAK_COLS + i < n; i += 32)
        out->values[i] = x[found * PEAK_COLS + i];
    __syncwarp();
}

/* By a cluster: the row and its peaks; when all know its largest number, its sums; and when all have those, a block. */
__device__ __forceinline__ void write_row(const peaks_args &a, const float *x, int32_t at)
{
    __shared__ double part[SUMS_MOST];
    const int32_t n_peaks = (a.n_cols + PEAK_COLS - 1) / PEAK_COLS;
    const int32_t first = (int32_t)(threadIdx.x / 32 * gridDim.x + blockIdx.x);
    const int32_t step = (int32_t)gridDim.x * (RESULT_THREADS / 32);
    const row_wish wish = a.wishes[at];
    float *row = wish.stays ? NULL : a.rows[at], *peaks = a.rows[a.n_rows + at], most = -INFINITY;
    for (int32_t peak = first; peak < n_peaks; peak += step)
        most = fmaxf(most, write_peak(x, a.n_cols, peak, row, peaks));
    if (wish.scale == 0)
        return;
    const float shift = __fmul_rn(-row_max(most), wish.scale);
    for (int32_t peak = first; peak < n_peaks; peak += step) {
        const double sum = write_sum(x, a.n_cols, peak, wish.scale, shift,
                                     (double *)((uint8_t *)peaks + a.sums));
        if (threadIdx.x % 32 == 0 && peak / (int32_t)gridDim.x < SUMS_MOST)
            part[peak / (int32_t)gridDim.x] = sum;
    }
    row_block *block = (row_block *)((uint8_t *)peaks + a.block);
    if (!(wish.point >= 0 && wish.point < 1) || n_peaks > SUMS_MOST * (int32_t)gridDim.x) {
        if (blockIdx.x == 0 && threadIdx.x == 0)
            block->first = -1;
        return;
    }
    cluster_sync();
    if (blockIdx.x == 0 && threadIdx.x < 32)
        write_block(part, n_peaks, wish.point, x, a.n_cols, block);
    cluster_sync(); /* nobody's sums go before they are read */
}

/* As backend.h's read_peaks has it, written through to the host. blockIdx.y goes through the rows: a block for the
 * largest columns of each, the first of its cluster, and a cluster for the rest. */
static __global__ void __launch_bounds__(RESULT_THREADS) results_kernel(peaks_args a)
{
    allow_next();
    await_inputs();
    const int32_t at = (int32_t)blockIdx.y / 2;
    const float *x = a.x + (int64_t)at * a.n_cols;
    if (blockIdx.y % 2)
        write_row(a, x, at);
    else if (blockIdx.x == 0)
        write_tops(x, a.n_cols, (top_column *)((uint8_t *)a.rows[a.n_rows + at] + a.tops));
}

static __global__ void embed_kernel(embed_args a)
{
    allow_next();
    await_inputs();
    int32_t row = a.ids[blockIdx.x];
    float *out = a.out + (int64_t)blockIdx.x * a.w.n_cols;
    for (int32_t k = (int32_t)threadIdx.x; k < a.w.n_cols; k += (int32_t)blockDim.x)
        out[k] = __fmul_rn(packed_element(a.w, row, k), a.scale);
}

/* ---- rope ------------------------------------------------------------------------------------- */

/* The angle is taken in double and brought near zero there: as a float it is wrong by a hundredth of a
 * radian at position 100,000. What is left is small, and a float's sine is good enough for it. */
static __global__ void angles_kernel(angles_args a)
{
    allow_next();
    await_inputs();
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (int64_t)a.n_tokens * a.n_pairs)
        return;
    double angle = (double)a.positions[i / a.n_pairs] * (double)a.frequencies[i % a.n_pairs];
    angle -= 6.283185307179586476925 * rint(angle * 0.15915494309189533577);
    float sine, cosine;
    sincosf((float)angle, &sine, &cosine);
    a.cosines[i] = cosine * a.magnitude;
    a.sines[i] = sine * a.magnitude;
}

/* Turns heads first .. first+count-1 of x[which] of one token; by all threads of the block. */
__device__ __forceinline__ void rotate_heads(const rope_args &a, int which, int64_t token,
                                             int32_t first, int32_t count)
{
    int32_t dim = a.head_dim[which];
    float *x = a.x[which] + (token * a.n_heads[which] + first) * dim;
    const float *cosines = a.cosines + token * a.n_pairs, *sines = a.sines + token * a.n_pairs;
    for (int32_t i = (int32_t)threadIdx.x; i < count * a.n_pairs; i += (int32_t)blockDim.x) {
        int32_t pair = i % a.n_pairs;
        float *p = x + i / a.n_pairs * dim + (a.kind == ROPE_NORMAL ? 2 * pair : pair);
        float *q = a.kind == ROPE_NORMAL ? p + 1 : p + a.n_pairs;
        float u = *p, v = *q, c = cosines[pair], s = sines[pair];
        *p = turned_first(u, v, c, s);
        *q = turned_second(u, v, c, s);
    }
}

static __global__ void rope_kernel(rope_args a)
{
    allow_next();
    await_inputs();
    rotate_heads(a, blockIdx.y, blockIdx.x, 0, a.n_heads[blockIdx.y]);
}

/* ---- pages ------------------------------------------------------------------------------------ */

__device__ __forceinline__ float saturated(float x, float limit)
{
    return x > limit ? limit : x < -limit ? -limit : x;
}

/* Of F16 pages, in halves. */
__device__ __forceinline__ int32_t key_at(const cuda_kv_layer &l, int32_t slot, int32_t d)
{
    return l.staged ? key_place(slot, d) : slot * l.key_stride + d;
}

__device__ __forceinline__ int32_t value_at(const cuda_kv_layer &l, int32_t slot, int32_t d)
{
    return l.staged ? value_place(slot, d) : d * KV_PAGE_TOKENS + slot;
}

/* One head of one token. */
__device__ __forceinline__ void store_halves(const cuda_kv_layer &l, uint8_t *head, int32_t slot,
                                             const float *k, const float *v)
{
    for (int32_t d = (int32_t)threadIdx.x; d < l.key_stride; d += (int32_t)blockDim.x) {
        float x = d < l.key_dim ? saturated(k[d], 65504.0f) : 0.0f;
        ((__half *)head)[key_at(l, slot, d)] = __float2half_rn(x);
    }
    for (int32_t d = (int32_t)threadIdx.x; d < l.value_stride; d += (int32_t)blockDim.x) {
        float x = d < l.value_dim ? saturated(v[d], 65504.0f) : 0.0f;
        ((__half *)(head + l.values))[value_at(l, slot, d)] = __float2half_rn(x);
    }
}

/* A warp a block of 32; dims are multiples of 32 here. */
__device__ __forceinline__ void store_bytes(const cuda_kv_layer &l, uint8_t *head, int32_t slot,
                                            const float *from, int32_t dim, int values)
{
    int32_t lane = (int32_t)threadIdx.x % 32;
    for (int32_t block = (int32_t)threadIdx.x / 32; block < dim / 32;
         block += (int32_t)blockDim.x / 32) {
        int32_t d = block * 32 + lane;
        float x = from[d];
        x = x == x ? saturated(x, 65504.0f * 127.0f) : 0.0f;
        float scale = warp_max(fabsf(x)) / 127.0f;
        float inverse = scale > 1e-30f ? 1.0f / scale : 0.0f;
        int8_t q = (int8_t)__float2int_rn(x * inverse);
        int8_t *bytes = (int8_t *)(head + (values ? l.value_data : l.key_data));
        bytes[values ? d * KV_PAGE_TOKENS + slot : slot * dim + d] = q;
        if (lane == 0)
            ((__half *)(head + (values ? l.values : 0)))[block * KV_PAGE_TOKENS + slot] =
                __float2half_rn(scale);
    }
}

/* A block a token and kv head, which also turns the head and the queries of its group. */
static __global__ void kv_write_kernel(kv_write_args a)
{
    const cuda_kv_layer &l = a.layer;
    const int64_t token = blockIdx.x;
    const int32_t head = (int32_t)blockIdx.y, slot = a.slots[token];
    const int keys = a.rope.x[1] ? 1 : 0; /* which of the two are the keys */
    allow_next();
    await_inputs();
    if (a.rope.n_pairs > 0) {
        int32_t group = a.rope.n_heads[0] / l.n_kv_heads;
        if (keys == 1)
            rotate_heads(a.rope, 0, token, head * group, group);
        rotate_heads(a.rope, keys, token, head, 1);
        __syncthreads();
    }
    uint8_t *to = a.pages + (int64_t)(slot / KV_PAGE_TOKENS) * a.page_bytes + l.offset +
                  head * l.head_bytes;
    const float *k = a.k + (token * l.n_kv_heads + head) * l.key_dim;
    const float *v = a.v + (token * l.n_kv_heads + head) * l.value_dim;
    if (l.q8) {
        store_bytes(l, to, slot % KV_PAGE_TOKENS, k, l.key_dim, 0);
        store_bytes(l, to, slot % KV_PAGE_TOKENS, v, l.value_dim, 1);
    } else {
        store_halves(l, to, slot % KV_PAGE_TOKENS, k, v);
    }
}

#define PLAIN_WARPS 8
#define PLAIN_HEADS 4 /* of queries whose loads are under way at once */

/* The same, bit for bit, for the usual case: staged layers, all of whose dimensions are turned, and queries with
 * them. A warp a token and kv head, which asks for all that it needs at once. */
static __global__ void __launch_bounds__(PLAIN_WARPS * 32) kv_write_plain(kv_write_args a)
{
    const cuda_kv_layer &l = a.layer;
    const int64_t token = blockIdx.x;
    const int32_t lane = (int32_t)threadIdx.x % 32, slot = a.slots[token];
    const int32_t head = (int32_t)blockIdx.y * PLAIN_WARPS + (int32_t)threadIdx.x / 32;
    allow_next();
    await_inputs();
    if (head >= l.n_kv_heads)
        return;
    const int32_t group = a.rope.n_heads[0] / l.n_kv_heads, kind = a.rope.kind;
    float4 *q = (float4 *)a.rope.x[0] + (token * l.n_kv_heads + head) * group * (STAGED_DIM / 4) +
                lane;
    float4 *k = (float4 *)a.rope.x[1] + (token * l.n_kv_heads + head) * (STAGED_DIM / 4) + lane;
    const float *cosines = a.rope.cosines + token * (STAGED_DIM / 2),
                *sines = a.rope.sines + token * (STAGED_DIM / 2);
    const lane_angles angles = load_angles(cosines, sines, kind, lane);
    float4 key = *k, heads[PLAIN_HEADS];
    const float4 value =
        ((const float4 *)a.v)[(token * l.n_kv_heads + head) * (STAGED_DIM / 4) + lane];
    for (int32_t first = 0; first < group; first += PLAIN_HEADS) {
#pragma unroll
        for (int i = 0; i < PLAIN_HEADS; i++)
            if (first + i < group)
                heads[i] = q[(first + i) * (STAGED_DIM / 4)];
#pragma unroll
        for (int i = 0; i < PLAIN_HEADS; i++)
            if (first + i < group)
                q[(first + i) * (STAGED_DIM / 4)] = turn_four(heads[i], angles, kind);
    }
    key = turn_four(key, angles, kind);
    *k = key;
    uint8_t *to = a.pages + (int64_t)(slot / KV_PAGE_TOKENS) * a.page_bytes + l.offset +
                  head * l.head_bytes;
    const int32_t place = slot % KV_PAGE_TOKENS;
    *(uint2 *)((__half *)to + key_place(place, lane * 4)) = four_halves(key);
    *(uint2 *)((__half *)(to + l.values) + value_place(place, lane * 4)) = four_halves(value);
}

extern "C" const void *cuda_kernel_kv_write(const kv_write_args *a, int32_t *heads,
                                            int32_t *threads)
{
    const cuda_kv_layer *l = &a->layer;
    const int plain = l->staged && a->rope.x[1] && a->rope.n_pairs * 2 == STAGED_DIM &&
                      a->rope.head_dim[0] == STAGED_DIM;
    *heads = plain ? PLAIN_WARPS : 1;
    *threads = plain ? PLAIN_WARPS * 32 : 128;
    return plain ? (const void *)kv_write_plain : (const void *)kv_write_kernel;
}

static __global__ void kv_read_kernel(kv_read_args a)
{
    const cuda_kv_layer &l = a.layer;
    int32_t position = a.first + (int32_t)blockIdx.x, slot = position % KV_PAGE_TOKENS;
    int32_t dim = a.values ? l.value_dim : l.key_dim,
            stride = a.values ? l.value_stride : l.key_stride;
    const uint8_t *page = a.pages +
                          (int64_t)a.page_table[position / KV_PAGE_TOKENS] * a.page_bytes +
                          l.offset;
    for (int32_t i = (int32_t)threadIdx.x; i < l.n_kv_heads * dim; i += (int32_t)blockDim.x) {
        int32_t head = i / dim, d = i % dim;
        const uint8_t *at = page + head * l.head_bytes;
        int32_t place = a.values ? d * KV_PAGE_TOKENS + slot : slot * stride + d;
        float x;
        if (l.q8) {
            const __half *scales = (const __half *)(at + (a.values ? l.values : 0));
            const int8_t *bytes = (const int8_t *)(at + (a.values ? l.value_data : l.key_data));
            x = __half2float(scales[d / 32 * KV_PAGE_TOKENS + slot]) * (float)bytes[place];
        } else {
            place = a.values ? value_at(l, slot, d) : key_at(l, slot, d);
            x = __half2float(((const __half *)(at + (a.values ? l.values : 0)))[place]);
        }
        a.to[(int64_t)blockIdx.x * l.n_kv_heads * dim + i] = x;
    }
}

/* ---- F32 products ----------------------------------------------------------------------------- */

/* A warp a row of weights and up to four tokens; exact in F32. For adapters and small matrices. */
static __global__ void matmul_f32_kernel(matmul_args a)
{
    allow_next();
    await_inputs();
    const packed &w = a.w[0];
    int32_t row = (int32_t)(blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32);
    int32_t lane = (int32_t)threadIdx.x % 32, token = (int32_t)blockIdx.y * 4;
    if (row >= w.n_rows)
        return;
    const float *weights = (const float *)w.planes + (int64_t)row * w.n_cols;
    float sums[4] = {0, 0, 0, 0};
    for (int32_t k = lane; k < w.n_cols; k += 32) {
        float v = weights[k];
        for (int i = 0; i < 4; i++)
            if (token + i < a.n_tokens)
                sums[i] = fmaf(v, a.x_floats[(int64_t)(token + i) * w.n_cols + k], sums[i]);
    }
    for (int i = 0; i < 4; i++) {
        float sum = warp_sum(sums[i]);
        if (lane == 0 && token + i < a.n_tokens)
            a.out[0][(int64_t)(token + i) * w.n_rows + row] = a.bias[0] ? sum + a.bias[0][row]
                                                                        : sum;
    }
}

#define KERNEL(name)                                                                               \
    extern "C" const void *cuda_kernel_##name(void)                                                \
    {                                                                                              \
        return (const void *)name##_kernel;                                                        \
    }
KERNEL(prepare)
KERNEL(settle)
KERNEL(clear)
KERNEL(gated)
KERNEL(add)
KERNEL(soft_cap)
KERNEL(gather)
KERNEL(results)
KERNEL(embed)
KERNEL(angles)
KERNEL(rope)
KERNEL(kv_read)
KERNEL(matmul_f32)

extern "C" const void *cuda_kernel_norm(const norm_args *a)
{
    if (a->p.state != PREPARED_NORMED)
        return (const void *)norm_kernel;
    if (a->n_cols % PACKED_COLS != 0 || a->n_cols > 2 * 4096)
        return (const void *)norm_any;
    return a->n_cols <= 4096 ? (const void *)norm_whole<1> : (const void *)norm_whole<2>;
}
