/* compute/cuda/input.cuh: the input of products: rows of floats as halves (prepared, kernels.h).
 *
 * A row is multiplied by a power of two so that it fits, and results are divided by it, so half's eleven bits are kept
 * whatever the numbers' size. Which power is a function of the row, but whoever makes halves may have a part of a
 * row alone. So there is one that nearly always fits, which is known beforehand:
 *
 *   plain   the kind's (inputs.c).
 *   normed  x / RMS(x) * gain is multiplied as x * gain, and results by 1 / RMS(x): nobody waits for the sum of
 *           squares before a result is stored. The power brings RMS(x) near 2^NORMED_SIZE_BITS if it is near what it was
 *           when the row was last normed, a layer's half before.
 *
 * Where it does not fit, or there is none, whoever has the whole row (a norm, the product that reads it) takes the
 * power that the row's largest element asks for. Squares are summed up as integers, whose order is no matter.
 * So a row has the same bits whoever makes it, in parts or whole. */
#ifndef REALM_COMPUTE_CUDA_INPUT_CUH
#define REALM_COMPUTE_CUDA_INPUT_CUH

#include "compute/cuda/device.cuh"

#define NORMED_SIZE_BITS 4  /* the guess brings RMS near 2^4 */
#define GUESS_BITS_MOST  60 /* of a power of two, so that its square is a float's too */
/* Of the largest half, 2^-8 at least: what its last bit is worth is far above a subnormal's. */
#define FIT_LEAST         0.00390625f
#define FIT_MOST          65504.0f
#define SQUARE_BITS       24 /* behind the point, of squares of x * guess, which are about 1 */
#define SQUARE_MOST       67108864.0f /* 2^26: a row with more in 16 columns does not fit */
#define SQUARES_LEAST     65536       /* 2^-8 in the mean: with less too few bits are left */
#define WHOLE_SQUARE_BITS 40          /* of squares of a row whose largest element is made 1 to 2 */

/* ---- where halves go ---------------------------------------------------------------------------- */

/* Where, in a tile of 8 tokens by 64 columns, a token's chunk of eight halves stands: swizzled, so that
 * eight tokens' chunks are in eight banks. */
__device__ __forceinline__ int prepared_chunk(int token, int chunk)
{
    return token * PACKED_COLS + (chunk ^ token) * 8;
}

/* Where columns k, which is even, and k+1 of a token stand. */
__device__ __forceinline__ uint16_t *prepared_place(const prepared &p, int64_t token, int32_t k)
{
    if (!p.tiles)
        return p.halves + ((int64_t)(k / 32) * p.n_stride + token) * 32 + k % 32;
    const int row = (int)(token % 8), chunk = k % 64 / 32 * 4 + k % 8 / 2, pair = k % 32 / 8 * 2;
    return p.halves + (int64_t)(k / PACKED_COLS) * p.n_stride * PACKED_COLS +
           token / 8 * (8 * PACKED_COLS) + prepared_chunk(row, chunk) + pair;
}

__device__ __forceinline__ void store_pair(const prepared &p, int64_t token, int32_t k, float x,
                                           float y, float scale)
{
    *(__half2 *)prepared_place(p, token, k) = __floats2half2_rn(x * scale, y * scale);
}

/* Column k of a token, by the threads of all columns beside each other. */
__device__ __forceinline__ void store_one(const prepared &p, int64_t token, int32_t k, float x,
                                          float scale)
{
    *(__half *)(prepared_place(p, token, k & ~1) + (k & 1)) = __float2half_rn(x * scale);
}

/* Columns k .. k+3 of a token's prepared input. */
__device__ __forceinline__ void store_prepared(const prepared &p, int64_t token, int32_t k,
                                               float4 v, float scale)
{
    if (p.tiles) {
        store_pair(p, token, k, v.x, v.y, scale);
        store_pair(p, token, k + 2, v.z, v.w, scale);
        return;
    }
    const __half2 lo = __floats2half2_rn(v.x * scale, v.y * scale),
                  hi = __floats2half2_rn(v.z * scale, v.w * scale);
    *(uint2 *)prepared_place(p, token, k) = make_uint2(*(uint32_t *)&lo, *(uint32_t *)&hi);
}

/* ---- the rules ---------------------------------------------------------------------------------- */

__device__ __forceinline__ float power_of_two(int bits)
{
    return __uint_as_float((uint32_t)(127 + bits) << 23);
}

__device__ __forceinline__ bool scale_fits(float largest, float scale)
{
    const float v = largest * scale;
    return v < FIT_MOST && (v >= FIT_LEAST || v == 0);
}

/* A plain row's scale. */
__device__ __forceinline__ float plain_scale(const prepared &p, float largest, float *inverse)
{
    *inverse = 1 / p.scale;
    return scale_fits(largest, p.scale) ? p.scale : scale_for(largest, inverse);
}

/* Bits of the power of two that makes about 1 of a row's RMS, whose inverse it had when it was last normed. */
__device__ __forceinline__ int guess_bits(float inverse_before)
{
    const int bits = (int)(__float_as_uint(inverse_before) >> 23 & 255) - 127;
    return max(-GUESS_BITS_MOST, min(GUESS_BITS_MOST, bits));
}

/* What a thread knows of a row. largest: as bits, as integers are compared faster; none is negative or NaN. */
struct row_part {
    unsigned long long squares;
    uint32_t largest;
};

/* Of an element; guess: 2^guess_bits. Those of 16 columns, from a multiple of 16 on, are added as floats, each with
 * that one column further, then sums of two columns, of four and of eight. */
__device__ __forceinline__ float square_of(float x, float guess)
{
    const float t = x * guess;
    return __fmul_rn(t, t);
}

/* The sum of 16 columns in fixed point. If there is no room for it the row's largest says so. */
__device__ __forceinline__ unsigned long long join_squares(float sum, uint32_t &largest)
{
    if (sum > SQUARE_MOST)
        largest = __float_as_uint(INFINITY);
    return __float2ull_rn(fminf(sum, SQUARE_MOST) * (float)(1 << SQUARE_BITS));
}

/* Four columns of x, which become normed, by a warp whose lanes have neighbouring ones; all lanes take part. */
__device__ __forceinline__ void add_four(row_part &part, float4 x, float4 normed, float guess)
{
    float sum = __fadd_rn(__fadd_rn(square_of(x.x, guess), square_of(x.y, guess)),
                          __fadd_rn(square_of(x.z, guess), square_of(x.w, guess)));
    sum = __fadd_rn(sum, __shfl_xor_sync(0xFFFFFFFF, sum, 1));
    sum = __fadd_rn(sum, __shfl_xor_sync(0xFFFFFFFF, sum, 2));
    part.largest = max(part.largest, __float_as_uint(largest_of(normed)));
    const unsigned long long squares = join_squares(sum, part.largest);
    part.squares += threadIdx.x % 4 == 0 ? squares : 0;
}

/* 1 / RMS of a row of n, out of squares of x * power that were summed up with so many bits. */
__device__ __forceinline__ float inverse_of(unsigned long long squares, int32_t n,
                                            float inverse_power, int bits, float epsilon)
{
    const float once = inverse_power * power_of_two(-bits / 2);
    const float mean = __fmul_rn(__fmul_rn(__ull2float_rn(squares) / (float)n, once), once);
    return 1.0f / sqrtf(__fadd_rn(mean, epsilon));
}

/* Whether a normed row's guess fits; then also 1 / RMS. */
__device__ __forceinline__ bool normed_fits(const prepared &p, unsigned long long squares,
                                            uint32_t largest, int bits, float *inverse)
{
    *inverse = inverse_of(squares, p.n_cols, power_of_two(-bits), SQUARE_BITS, p.epsilon);
    return scale_fits(__uint_as_float(largest), power_of_two(bits + NORMED_SIZE_BITS)) &&
           squares >= (unsigned long long)p.n_cols * SQUARES_LEAST;
}

/* ---- sums over a block --------------------------------------------------------------------------- */

__device__ __forceinline__ unsigned long long warp_sum(unsigned long long v)
{
    const uint32_t low = __reduce_add_sync(0xFFFFFFFF, (uint32_t)v & 0xFFFFFF),
                   middle = __reduce_add_sync(0xFFFFFFFF, (uint32_t)(v >> 24) & 0xFFFFFF),
                   high = __reduce_add_sync(0xFFFFFFFF, (uint32_t)(v >> 48));
    return low + ((unsigned long long)middle << 24) + ((unsigned long long)high << 48);
}

struct block_scratch {
    unsigned long long squares[32];
    uint32_t largest[32];
};

/* Of all threads of the block; the same in each. scratch: shared memory of this call alone. */
__device__ __forceinline__ row_part block_part(row_part part, block_scratch &scratch)
{
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    part.squares = warp_sum(part.squares);
    part.largest = __reduce_max_sync(0xFFFFFFFF, part.largest);
    if (lane == 0) {
        scratch.squares[warp] = part.squares;
        scratch.largest[warp] = part.largest;
    }
    __syncthreads();
    const bool there = lane < (int32_t)blockDim.x / 32;
    return {warp_sum(there ? scratch.squares[lane] : 0ull),
            __reduce_max_sync(0xFFFFFFFF, there ? scratch.largest[lane] : 0u)};
}

/* As block_max, of numbers whose bits are in order: none is negative or NaN. */
__device__ __forceinline__ float block_most(float v, float *scratch)
{
    uint32_t most = __reduce_max_sync(0xFFFFFFFF, __float_as_uint(v));
    if (threadIdx.x % 32 == 0)
        scratch[threadIdx.x / 32] = __uint_as_float(most);
    __syncthreads();
    most = (int)threadIdx.x % 32 < (int32_t)blockDim.x / 32
               ? __float_as_uint(scratch[threadIdx.x % 32])
               : 0;
    return __uint_as_float(__reduce_max_sync(0xFFFFFFFF, most));
}

/* ---- by those who have parts ----------------------------------------------------------------------- */

__device__ __forceinline__ void raise_largest(uint32_t *to, uint32_t largest)
{
    asm volatile("red.relaxed.gpu.global.max.u32 [%0], %1;" ::"l"(to), "r"(largest) : "memory");
}

__device__ __forceinline__ void add_squares(unsigned long long *to, unsigned long long squares)
{
    asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(to), "l"(squares) : "memory");
}

/* ---- whole rows ----------------------------------------------------------------------------------- */

/* Vectors of a row that a thread keeps in registers; what is beyond is read again. */
#define KEPT 2

/* Puts a row of n_cols floats as a product's plain input; by the threads of a block, of which each has made
 * elements 4i .. 4i+3 with i = thread, thread + threads, ...: the first KEPT vectors are given, zeros
 * beyond the row's end, the others stand in row. largest is the thread's own. */
__device__ __forceinline__ void prepare_row(const prepared &p, const float4 kept[KEPT],
                                            const float *row, int32_t n_cols, int64_t token,
                                            float largest, float *scratch)
{
    float inverse, scale = plain_scale(p, block_max(largest, scratch), &inverse);
    const int32_t padded = padded_cols(n_cols), first = (int32_t)threadIdx.x * 4,
                  step = (int32_t)blockDim.x * 4;
#pragma unroll
    for (int i = 0; i < KEPT; i++)
        if (first + i * step < padded)
            store_prepared(p, token, first + i * step, kept[i], scale);
    for (int32_t k = first + KEPT * step; k < padded; k += step)
        store_prepared(p, token, k, load_four(row, k, n_cols), scale);
    if (threadIdx.x == 0)
        p.scales[token] = inverse;
}

__device__ __forceinline__ float4 times(float4 v, float4 by)
{
    return make_float4(__fmul_rn(v.x, by.x), __fmul_rn(v.y, by.y), __fmul_rn(v.z, by.z),
                       __fmul_rn(v.w, by.w));
}

/* A row that no guess fits, or none was made for, from p.from: its halves, by the threads of a block. x: what results
 * are multiplied by; y: normed, 1 / RMS. Each thread reads elements 4i .. 4i+3 as prepare_row says. */
__device__ __forceinline__ float2 remake_row(const prepared &p, int64_t token)
{
    __shared__ float largest[2][33];
    __shared__ block_scratch sums;
    const bool normed = p.state == PREPARED_NORMED;
    const int32_t n = p.n_cols, padded = padded_cols(n), step = (int32_t)blockDim.x * 4;
    const float *row = p.from + token * n;
    float most = 0, most_made = 0, inverse = 1, inverse_scale;
    const auto made = [&](float4 v, int32_t k) {
        return normed && p.gain ? times(v, load_four(p.gain, k, n)) : v;
    };
    __syncthreads(); /* a row before this one has been made of the same shared memory */
    for (int32_t k = (int32_t)threadIdx.x * 4; k < n; k += step) {
        const float4 v = load_four(row, k, n);
        most = fmaxf(most, largest_of(v));
        most_made = fmaxf(most_made, largest_of(made(v, k)));
    }
    most_made = block_most(most_made, largest[0]);
    const float scale = scale_for(most_made, &inverse_scale);
    if (normed) {
        most = block_most(most, largest[1]);
        const int bits = max(-100, (int)(__float_as_uint(most) >> 23 & 255) - 127);
        const float power = bits > 120 ? power_of_two(-120) : power_of_two(-bits);
        row_part part = {0, 0};
        for (int32_t k = (int32_t)threadIdx.x * 4; k < n; k += step) {
            const float4 v = load_four(row, k, n);
            const float t[4] = {v.x * power, v.y * power, v.z * power, v.w * power};
#pragma unroll
            for (int i = 0; i < 4; i++)
                part.squares += __float2ull_rn(t[i] * t[i] * power_of_two(WHOLE_SQUARE_BITS));
        }
        inverse = inverse_of(block_part(part, sums).squares, n, 1.0f / power, WHOLE_SQUARE_BITS,
                             p.epsilon);
    }
    for (int32_t k = (int32_t)threadIdx.x * 4; k < padded; k += step)
        store_prepared(p, token, k, made(load_four(row, k, n), k), scale);
    return make_float2(__fmul_rn(inverse, inverse_scale), inverse);
}

/* ---- by those who read ------------------------------------------------------------------------------- */

/* What results of a token are multiplied by, or less than zero: its halves are to be remade. first: the thread also
 * says what the next norm's guess is made of. */
__device__ __forceinline__ float input_factor(const prepared &p, int64_t token, bool first)
{
    if (p.state == PREPARED_FINAL)
        return p.scales[token];
    const unsigned long long squares = p.sums[token].squares;
    const uint32_t largest = p.sums[token].largest;
    if (p.state == PREPARED_PLAIN)
        return scale_fits(__uint_as_float(largest), p.scale) ? 1 / p.scale : -1.0f;
    const int bits = guess_bits(p.before[token].inverse);
    float inverse;
    if (!normed_fits(p, squares, largest, bits, &inverse))
        return -1;
    if (first)
        p.sums[token].inverse = inverse;
    return __fmul_rn(inverse, power_of_two(-bits - NORMED_SIZE_BITS));
}

/* Remakes the rows whose factors, in shared memory, are less than zero. By all threads of a block. */
__device__ __forceinline__ void remake_rows(const prepared &p, float *factors, int32_t n_tokens,
                                            bool first)
{
    for (int32_t token = 0; token < n_tokens; token++) {
        if (factors[token] >= 0) /* for all threads: written behind remake_row's barriers */
            continue;
        const float2 made = remake_row(p, token);
        __syncthreads();
        if (threadIdx.x == 0) {
            factors[token] = made.x;
            if (first && p.state == PREPARED_NORMED)
                p.sums[token].inverse = made.y;
        }
    }
    __threadfence();
    __syncthreads();
}

#endif
