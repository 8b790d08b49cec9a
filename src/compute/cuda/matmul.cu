/* compute/cuda/matmul.cu: products of packed weights with activations as halves, on the matrix units.
 *
 * Compiled once for each packed kind (MATMUL_KIND, MATMUL_K_SCALES, MATMUL_NAME). Weights are the instruction's 16 rows,
 * tokens its 8 columns, so that a weight is unpacked once in registers and used for all tokens of a
 * warp; accumulation is F32. Two kernels:
 *
 *   few     a block's 8 warps share 16 or 32 rows, each takes one of the sum's segments. Each weight is
 *           read once, several tiles ahead, into a ring that no other warp reads; a block goes from rows to
 *           rows, so that loads never stop.
 *   tiles   128 rows by 32, 64 or 128 tokens a block; weights and activations go through shared memory,
 *           stages ahead; segments follow each other.
 *
 * A sum is, in both: for each of PACKED_SEGMENTS segments the instructions of its tiles in order, then
 * the segments in order, added to zero. So a row's bits are the same in either and for any number of
 * tokens. (An instruction's column depends on that column of its input alone.) */
#include "compute/cuda/product.cuh"

/* 16 bytes to a place in shared memory; zeros if they are not valid. */
__device__ __forceinline__ void copy_async(uint32_t to, const void *from, bool valid)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(valid ? 16 : 0));
}

/* The same where `on`, as one instruction under a predicate: branches would cost more than they leave out. */
__device__ __forceinline__ void copy_async_if(bool on, uint32_t to, const void *from, bool valid)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.s32 p, %3, 0;\n"
                 "@p cp.async.cg.shared.global [%0], [%1], 16, %2;\n}" ::"r"(to),
                 "l"(from), "r"(valid ? 16 : 0), "r"((int)on));
}

__device__ __forceinline__ void copy_commit(void)
{
    asm volatile("cp.async.commit_group;");
}

/* All but the last n groups of copies are there. */
template <int n> __device__ __forceinline__ void copy_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}

/* Keeps a number in its register: the compiler would rather make it anew for every tile. */
__device__ __forceinline__ void keep(int &v)
{
    asm volatile("" : "+r"(v));
}

/* What a warp of `few` keeps in shared memory: a ring of stages of one or two tiles of weights beside each other. With
 * at most 8 tokens their part of a stage's columns comes beside it, as what is left to wait for then is latency. */
template <int NT, int RT, int DEPTH> struct few_memory {
    static constexpr int planes = (int)packed_plane_bytes(KIND);
    static constexpr int scales = (int)packed_scale_bytes(KIND, K_SCALES);
    static constexpr int small = scales + (int)packed_super_bytes(KIND, K_SCALES);
    static constexpr int pieces = small / 16; /* a lane copies one of a stage's */
    static constexpr bool has_x = NT == 1 && (KIND != PACKED_F16 || RT == 1);
    /* Tiles of a stage beside each other: two share what a stage costs, where a lane each has their pieces. */
    static constexpr int depth = DEPTH * RT * pieces > 32 ? 1 : DEPTH;
    static constexpr int tiles = depth * RT;
    /* Without x in the ring: whether a half tile's columns are asked for as the half tile before them begins, or as
     * their registers are free, which is earlier, but comes behind instructions that wait. As measured. */
    static constexpr bool early = depth == 1 &&
                                  (KIND == PACKED_Q4 || NT == 1 || (NT == 2 && planes < 1024));
    static constexpr int smalls = tiles * planes; /* where they stand in a stage */
    /* [half tiles][8 tokens][32]; copies into lines of 128 bytes that they do not fill take twice as long. */
    static constexpr int x = (smalls + tiles * small + 127) / 128 * 128;
    static constexpr int stage = x + (has_x ? depth * 1024 : 0);
    static constexpr int fitting = 6144 / x, most = (has_x ? 6 : 8) / depth;
    static constexpr int stages = fitting < 3 ? 3 : fitting > most ? most : fitting;
    static constexpr int ring = stages * stage; /* of one warp */
    /* Tiles of rows whose sums are added up together; as measured. */
    static constexpr int at_once = RT == 2 && NT == 1 && KIND != PACKED_F16 ? 2 : 1;
    /* Of sums: one of each of those tiles, or one is filled while one is added up. */
    static constexpr int sets = NT <= 4 ? 2 : 1;
    static constexpr int row = PACKED_ROWS + 4; /* no two lanes of a store meet in a bank */
    static constexpr int set = NT * 8 * row;
    static constexpr int bytes = PACKED_SEGMENTS * (ring + sets * set * (int)sizeof(float));
};

/* Where a warp reads weights: the lane's pieces of tile k of a block's rows. */
struct few_cursor {
    const uint8_t *planes, *small; /* small: the lane's piece of scales or supers */
    int32_t block, k, small_step;
};

/* What the tokens' results are multiplied by and, for EPILOGUE_NORM, what their elements are, into shared memory; by
 * the thread of each. Whether its row's halves are to be remade. */
template <int EPILOGUE>
__device__ __forceinline__ bool read_factors(const matmul_args &a, float *factors, float *guesses)
{
    const int token = (int)threadIdx.x;
    if (token >= a.n_tokens)
        return false;
    if (EPILOGUE == EPILOGUE_NORM)
        guesses[token] = power_of_two(guess_bits(a.next.before[token].inverse));
    factors[token] = input_factor(a.x, token, blockIdx.x == 0);
    return factors[token] < 0;
}

/* EPILOGUE_GATED, by 16 lanes that have the results of a tile's rows, of either of the pair 8. */
__device__ __forceinline__ void gate(const matmul_args &a, int32_t row_tile, int32_t token, float v,
                                     uint32_t *largest)
{
    const uint32_t lane = threadIdx.x % 32;
    const float up = __shfl_xor_sync(0xFFFFu << lane / 16 * 16, v, 8);
    if (lane % 16 >= 8)
        return;
    const int32_t row = row_tile * 8 + (int32_t)lane % 8;
    const float made = activate(v, a.activation) * up;
    a.out[0][(int64_t)token * a.w[0].pair + row] = made;
    store_one(a.next, token, row, made, a.next.scale);
    const uint32_t most = __reduce_max_sync(0xFFu << lane / 8 * 8, __float_as_uint(fabsf(made)));
    if (lane % 8 == 0)
        atomicMax(largest + token, most);
}

/* EPILOGUE_NORM, by 16 lanes whose rows are beside each other. */
__device__ __forceinline__ void add_normed(const matmul_args &a, int32_t row, int32_t token,
                                           float v, float old, float gain, float guess)
{
    const uint32_t lane = threadIdx.x % 32, mask = 0xFFFFu << lane / 16 * 16;
    const float x = fmaf(a.factor, v, old), made = __fmul_rn(x, gain);
    a.out[0][(int64_t)token * a.w[0].n_rows + row] = x;
    store_one(a.next, token, row, made, guess * (1 << NORMED_SIZE_BITS));
    float square = square_of(x, guess);
#pragma unroll
    for (int bit = 1; bit < 16; bit *= 2)
        square = __fadd_rn(square, __shfl_xor_sync(mask, square, bit));
    uint32_t largest = __float_as_uint(fabsf(made));
    const unsigned long long squares = join_squares(square, largest);
    largest = __reduce_max_sync(mask, largest);
    if (lane % 16 == 0) {
        raise_largest(&a.next.sums[token].largest, largest);
        add_squares(&a.next.sums[token].squares, squares);
    }
}

/* NT: groups of 8 tokens; RT: tiles of 16 rows; DEPTH: tiles of a stage; BLOCKS on a multiprocessor. */
template <int NT, int RT, int DEPTH, int BLOCKS, int EPILOGUE>
static __global__ void __launch_bounds__(PACKED_SEGMENTS * 32, BLOCKS) few(matmul_args a)
{
    using memory = few_memory<NT, RT, DEPTH>;
    constexpr int depth = memory::depth;
    /* Behind what follows, whose size is anything; see few_memory on places. */
    extern __shared__ __align__(128) uint4 shared[];
    __shared__ float factors[NT * 8], guesses[NT * 8]; /* of tokens */
    __shared__ uint32_t largest[NT * 8]; /* GATED: of what the block has made of them */
    allow_next();
    const int lane = (int)threadIdx.x % 32, segment = (int)threadIdx.x / 32, g = lane / 4,
              t = lane % 4;
    float *sums = (float *)shared;
    const uint32_t ring = (uint32_t)__cvta_generic_to_shared(sums + memory::sets * PACKED_SEGMENTS *
                                                                        memory::set) +
                          segment * memory::ring;
    const int32_t k_tiles = a.w[0].k_tiles, n_blocks = a.first_block[a.count];
    const int32_t first = segment_first(k_tiles, segment),
                  end = segment_first(k_tiles, segment + 1);
    constexpr int slab_bytes = (int)packed_slab_bytes(KIND, K_SCALES);
    constexpr int super_bytes = memory::small - memory::scales;

    /* The lane's piece of a stage's scales and supers, and whose it is. Scales stand behind their slab's planes;
     * supers go on behind four tiles. */
    constexpr int pieces = memory::pieces > 0 ? memory::pieces : 1;
    const int piece = lane % pieces * 16, small_tile = lane / pieces % RT,
              small_k = lane / pieces / RT;
    const bool has_small = memory::pieces > 0 && small_k < depth, is_scale = piece < memory::scales;
    /* Its steps from stage to stage: of scales each is one, of supers every fourth tile's is, which with stages of
     * two tiles is every other one. */
    int small_step = is_scale ? depth * slab_bytes : PACKED_SLAB_TILES * super_bytes,
        small_mask = is_scale ? 0 : 4 - depth, small_both = is_scale ? 2 * small_step : small_step;
    if (NT == 1) {
        keep(small_step);
        keep(small_mask);
        keep(small_both);
    }
    few_cursor at;
    auto weight_at = [&](int32_t block) {
        return EPILOGUE == EPILOGUE_STORE ? find_weight(a, block) : 0;
    };
    auto find_rows = [&](int32_t block) {
        const int which = weight_at(block);
        const packed &w = a.w[which];
        const int32_t row_tile = (block - a.first_block[which]) * RT, supers = (k_tiles + 3) / 4;
        const int32_t rows = row_tile / PACKED_SLAB_TILES, part = row_tile % PACKED_SLAB_TILES;
        const int64_t slab = (int64_t)rows * k_tiles + first;
        at.block = block;
        at.k = first;
        at.small_step = ((first + small_k) & small_mask) == small_mask ? small_step : 0;
        at.planes = w.planes + slab * slab_bytes + part * memory::planes + lane * 16;
        at.small = is_scale
                       ? w.scales + (slab + small_k) * slab_bytes +
                             (part + small_tile) * memory::scales + piece
                       : w.supers +
                             (((int64_t)rows * supers + (first + small_k) / 4) * PACKED_SLAB_TILES +
                              part + small_tile) *
                                 super_bytes +
                             (piece - memory::scales);
    };
    const int32_t n_tokens = a.n_tokens;
    const int64_t step = a.x.n_stride * 32; /* from half tile to half tile */
    /* With at most 8 tokens lanes copy what there is of 2 (4 with stages of one tile), 4 or 8 tokens, several half
     * tiles at once; those beyond n_tokens are copies of the last. */
    const int x_tokens = depth == 2 && n_tokens <= 2 ? 2
                         : n_tokens <= 4             ? 4
                                                     : 8,
              x_half = g / x_tokens, x_token = min(g % x_tokens, n_tokens - 1);
    const uint32_t x_to = memory::x + x_half * 512 + g % x_tokens * 64 + t * 16,
                   x_from = memory::x + g % x_tokens * 64 + t * 16;
    const uint16_t *const first_x = a.x.halves + first * 2 * step + t * 8 +
                                    (memory::has_x ? x_half * step + x_token * 32
                                                   : (int64_t)(g * 32));
    const uint16_t *next_x = first_x; /* the columns that are copied next */
    const int64_t x_step = 2 * depth * step;
    /* The next tiles' copies into a stage of the ring; whole: none is beyond the segment, where zeros stand for
     * both, which add nothing. */
    auto copy_weights = [&](uint32_t stage, bool whole) {
        const uint32_t to = stage + lane * 16;
#pragma unroll
        for (int j = 0; j < depth; j++)
#pragma unroll
            for (int i = 0; i < (RT * memory::planes + 511) / 512; i++)
                copy_async_if(RT * memory::planes % 512 == 0 ||
                                  i * 512 + lane * 16 < RT * memory::planes,
                              to + j * RT * memory::planes + i * 512,
                              at.planes + j * slab_bytes + i * 512, j == 0 || whole);
        if (memory::pieces > 0)
            copy_async_if(has_small, to + memory::smalls, at.small, whole || small_k == 0);
    };
    auto copy_x = [&](uint32_t stage, bool whole) {
        if (!memory::has_x)
            return;
        copy_async(stage + x_to, next_x, whole || x_half < 2);
        if (x_tokens * depth > 4) {
            const uint16_t *from = next_x;
#pragma unroll
            for (int i = 1; i < 2 * depth; i++) {
                from += 8 / x_tokens * step;
                copy_async_if(i * 8 < 2 * depth * x_tokens, stage + x_to + i * (8 / x_tokens) * 512,
                              from, whole || (8 / x_tokens) * i < 2);
            }
        }
    };
    auto advance = [&] {
        at.planes += depth * slab_bytes;
        if (memory::pieces > 0 && depth == 2) {
            at.small += at.small_step;
            at.small_step = small_both - at.small_step;
        } else if (memory::pieces > 0) {
            at.small += (at.k & small_mask) == small_mask ? small_step : 0;
        }
        next_x += x_step;
        at.k += depth;
        if (at.k >= end) {
            find_rows(at.block + (int32_t)gridDim.x);
            next_x = first_x;
        }
    };
    auto fetch = [&](uint32_t stage) {
        if (at.block < n_blocks) {
            const bool whole = depth == 1 || at.k + 1 < end;
            copy_weights(stage, whole);
            copy_x(stage, whole);
            advance();
        }
        copy_commit();
    };
    if (EPILOGUE == EPILOGUE_GATED && threadIdx.x < NT * 8)
        largest[threadIdx.x] = 0; /* long before anybody adds to it: there are barriers between */
    auto ask_weights = [&] {
        for (int i = 0; i < memory::stages - 1 && first < end && at.block < n_blocks; i++) {
            copy_weights(ring + i * memory::stage, depth == 1 || at.k + 1 < end);
            advance();
        }
    };
    find_rows((int32_t)blockIdx.x);
    ask_weights();
    auto load_x = [&](uint4 b[NT], const uint16_t *from, bool valid) {
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
            b[nt] = valid && nt * 8 + g < n_tokens ? *(const uint4 *)(from + nt * 256)
                                                   : make_uint4(0, 0, 0, 0);
    };
    float acc[RT][NT][4] = {};
    uint32_t table[4];
    load_table(table, a.w[0].table);
    int set = 0;
    /* The block's threads go over so many tiles of rows at once, each having so many of their results: tile by tile,
     * token by token, row by row. Beyond the tokens that there are they have none. */
    constexpr int at_once = memory::at_once, results = at_once * NT * 8 * PACKED_ROWS,
                  each = (results + PACKED_SEGMENTS * 32 - 1) / (PACKED_SEGMENTS * 32);
    struct one {
        int tile, token, row;
    };
    auto find = [&](int i) {
        const int at = (int)threadIdx.x / PACKED_ROWS + i * (PACKED_SEGMENTS * 32 / PACKED_ROWS),
                  row = (int)threadIdx.x % PACKED_ROWS;
        return at_once == 1 ? one{0, at, row} : one{at / (NT * 8), at % (NT * 8), row};
    };
    /* EPILOGUE_NORM: what is added to, and gains, asked for while the rows before are multiplied. */
    float old[RT / at_once][each] = {}, gain[RT / at_once][each] = {};
    auto ask_old = [&](int32_t block) {
#pragma unroll
        for (int rt = 0; rt < RT && EPILOGUE == EPILOGUE_NORM && block < n_blocks; rt += at_once)
#pragma unroll
            for (int i = 0; i < each; i++) {
                const one r = find(i);
                const int32_t place = (block * RT + rt + r.tile) * PACKED_ROWS + r.row;
                gain[rt / at_once][i] = a.next.gain ? a.next.gain[place] : 1.0f;
                old[rt / at_once][i] = r.token < n_tokens
                                           ? a.out[0][(int64_t)r.token * a.w[0].n_rows + place]
                                           : 0.0f;
            }
    };
    bool remade = false, misfit = false; /* misfit: the thread's token's halves do not fit */
    /* The segments of a block's rows, in order from zero. False: nothing was done, as some token's halves do not fit. */
    auto finish = [&](int32_t block) {
        const int which = weight_at(block);
        const int32_t row_tile = (block - a.first_block[which]) * RT;
        if (at_once > 1)
            __syncthreads(); /* the sums before have been read */
#pragma unroll
        for (int rt = 0; rt < RT; rt += at_once) {
            float *const here = sums + (at_once > 1 ? 0 : set) * PACKED_SEGMENTS * memory::set;
#pragma unroll
            for (int j = 0; j < at_once; j++)
#pragma unroll
                for (int nt = 0; nt < NT; nt++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        here[(j * PACKED_SEGMENTS + segment) * memory::set +
                             (nt * 8 + t * 2 + i % 2) * memory::row + g + i / 2 * 8] =
                            acc[rt + j][nt][i];
                        acc[rt + j][nt][i] = 0;
                    }
            if (__syncthreads_or(misfit))
                return false;
#pragma unroll
            for (int i = 0; i < each; i++) {
                const one r = find(i);
                const int32_t tile = row_tile + rt + r.tile, place = tile * PACKED_ROWS + r.row;
                if (r.token >= n_tokens)
                    continue;
                float sum = 0;
#pragma unroll
                for (int s = 0; s < PACKED_SEGMENTS; s++)
                    sum = __fadd_rn(sum, here[(r.tile * PACKED_SEGMENTS + s) * memory::set +
                                              r.token * memory::row + r.row]);
                if (EPILOGUE == EPILOGUE_STORE && place >= a.w[which].n_rows)
                    continue;
                const float v = result(a, which, place, sum, factors[r.token]);
                if (EPILOGUE == EPILOGUE_NORM)
                    add_normed(a, place, r.token, v, old[rt / at_once][i], gain[rt / at_once][i],
                               guesses[r.token]);
                else if (EPILOGUE == EPILOGUE_GATED)
                    gate(a, tile, r.token, v, largest);
                else
                    put_result(a, which, place, r.token, v);
            }
            if (memory::sets == 1)
                __syncthreads();
            else if (at_once == 1)
                set ^= 1;
        }
        ask_old(block + (int32_t)gridDim.x);
        return true;
    };
    await_inputs(); /* weights are nobody's output */
    const uint32_t ring_end = ring + memory::ring;
    /* Once, unless some token's halves do not fit, which is known when the first rows are done. */
    for (;;) {
        uint4 b[2 * depth][NT]; /* of half tiles */
        int32_t block = (int32_t)blockIdx.x, k = first;
        next_x = first_x;
        for (int i = 0; i < memory::stages - 1 && first < end; i++) {
            copy_x(ring + i * memory::stage, depth == 1 || k + 1 < end);
            copy_commit();
            next_x += x_step, k += depth;
            if (k >= end)
                next_x = first_x, k = first;
        }
        if (!memory::has_x && first < end)
#pragma unroll
            for (int h = 0; h < 2 * depth; h++)
                load_x(b[h], first_x + h * step, h < 2 || first + 1 < end);
        ask_old(block);
        if (!remade)
            misfit = read_factors<EPILOGUE>(a, factors, guesses);
        bool fits = true;
        if (first == end)
            for (; block < n_blocks && fits; block += (int32_t)gridDim.x)
                fits = finish(block);
        const uint16_t *x = first_x;
        uint32_t now = ring, next = ring_end - memory::stage;
        k = first;
        while (block < n_blocks && fits) {
            copy_wait<memory::stages - 2>();
            __syncwarp();
            fetch(next);
            raw<KIND> in[depth][RT];
#pragma unroll
            for (int i = 0; i < memory::tiles; i++) {
                const uint32_t small = now + memory::smalls + i * memory::small;
                load_parts<KIND>(in[i / RT][i % RT], now + i * memory::planes, small,
                                 small + memory::scales, K_SCALES, lane);
            }
            if (memory::has_x)
#pragma unroll
                for (int h = 0; h < 2 * depth; h++)
                    b[h][0] = load_16(now + x_from + h * 512);
            next = now;
            now += memory::stage;
            now = now == ring_end ? ring : now;
            const bool last = k + depth >= end;
            k = last ? first : k + depth;
            const uint16_t *const x_now = x;
            x = last ? first_x : x + 2 * depth * step;
#pragma unroll
            for (int h = 0; h < 2 * depth; h++) {
                if (!memory::has_x && memory::early)
                    load_x(b[1 - h], h == 0 ? x_now + step : x, true);
#pragma unroll
                for (int rt = 0; rt < RT; rt++) {
                    uint32_t f[2][4];
                    fragment<KIND>(f, in[h / 2][rt], h % 2, t / 2, K_SCALES, table);
#pragma unroll
                    for (int m = 0; m < 2; m++)
#pragma unroll
                        for (int nt = 0; nt < NT; nt++)
                            multiply(acc[rt][nt], f[m], m == 0 ? b[h][nt].x : b[h][nt].z,
                                     m == 0 ? b[h][nt].y : b[h][nt].w);
                }
                if (!memory::has_x && !memory::early)
                    load_x(b[h], x + h * step, h < 2 || k + 1 < end);
            }
            if (last) {
                fits = finish(block);
                block += (int32_t)gridDim.x;
            }
        }
        if (fits)
            break;
        copy_wait<0>();
        remake_rows(a.x, factors, n_tokens, blockIdx.x == 0);
        remade = true;
        misfit = false;
#pragma unroll
        for (int i = 0; i < RT * NT * 4; i++)
            acc[i / (NT * 4)][i / 4 % NT][i % 4] = 0;
        find_rows((int32_t)blockIdx.x);
        ask_weights();
    }
    if (EPILOGUE == EPILOGUE_GATED) {
        __syncthreads();
        if (threadIdx.x < n_tokens)
            raise_largest(&a.next.sums[threadIdx.x].largest, largest[threadIdx.x]);
    }
}

/* ---- many tokens ------------------------------------------------------------------------------- */

#define TILE_ROWS 128
#define STAGES    (KIND == PACKED_F16 ? 3 : 4)
#define ROW_TILES (TILE_ROWS / PACKED_ROWS)

/* A stage of shared memory: column tile k of the block's rows and tokens. */
template <int TOKENS> struct stage {
    static constexpr int planes = TOKENS * PACKED_COLS * 2; /* after [2 halves][tokens][32] */
    static constexpr int scales = planes + ROW_TILES * (int)tile_bytes<KIND>::planes;
    static constexpr int supers = scales + ROW_TILES * (int)tile_bytes<KIND>::scales;
    static constexpr int bytes = supers + ROW_TILES * (int)tile_bytes<KIND>::supers;
};

/* PART bytes of each of the block's row tiles, which are `bytes` long and `stride` apart in memory. */
template <int PART>
__device__ __forceinline__ void copy_part(uint32_t to, const uint8_t *from, int64_t stride,
                                          int bytes, int32_t n_tiles)
{
    constexpr int pieces = ROW_TILES * PART / 16;
#pragma unroll
    for (int i = 0; i < (pieces + 255) / 256; i++) {
        int piece = i * 256 + (int)threadIdx.x, tile = piece / (PART / 16),
            at = piece % (PART / 16) * 16;
        if (pieces % 256 != 0 && piece >= pieces)
            break;
        bool valid = tile < n_tiles && at < bytes;
        copy_async(to + tile * PART + at, valid ? from + tile * stride + at : from, valid);
    }
}

template <int TOKENS>
__device__ __forceinline__ void copy_weights(uint32_t to, const packed &w, int32_t row_tile,
                                             int32_t k)
{
    using s = stage<TOKENS>;
    using t = tile_bytes<KIND>;
    int32_t n = w.row_tiles - row_tile, rows = row_tile / PACKED_SLAB_TILES;
    int64_t supers = (w.k_tiles + 3) / 4;
    int64_t slab = ((int64_t)rows * w.k_tiles + k) * packed_slab_bytes(KIND, K_SCALES);
    constexpr int scale_bytes = (int)packed_scale_bytes(KIND, K_SCALES);
    constexpr int super_bytes = (int)packed_super_bytes(KIND, K_SCALES);
    copy_part<t::planes>(to + s::planes, w.planes + slab, t::planes, t::planes, n);
    if constexpr (t::scales > 0)
        copy_part<t::scales>(to + s::scales, w.scales + slab, scale_bytes, scale_bytes, n);
    if constexpr (t::supers > 0) {
        if (super_bytes > 0)
            copy_part<t::supers>(to + s::supers,
                                 w.supers +
                                     (rows * supers + k / 4) * PACKED_SLAB_TILES * super_bytes,
                                 super_bytes, super_bytes, n);
    }
}

template <int TOKENS>
__device__ __forceinline__ void copy_tokens(uint32_t to, const prepared &x, int32_t k,
                                            int32_t first_token)
{
#pragma unroll
    for (int i = 0; i < TOKENS * 8 / 256; i++) {
        int piece = i * 256 + (int)threadIdx.x, c = piece / (TOKENS * 4),
            token = piece / 4 % TOKENS;
        bool valid = first_token + token < x.n_stride;
        const uint16_t *from = x.halves +
                               ((int64_t)(k * 2 + c) * x.n_stride + first_token + token) * 32 +
                               piece % 4 * 8;
        copy_async(to + piece * 16, valid ? from : x.halves, valid);
    }
}

/* WR by WT warps of RT tiles of rows by NT groups of 8 tokens; BLOCKS on a multiprocessor. */
template <int WR, int WT, int RT, int NT, int BLOCKS>
static __global__ void __launch_bounds__(256, BLOCKS) tiles(matmul_args a)
{
    constexpr int TOKENS = WT * NT * 8;
    using s = stage<TOKENS>;
    static_assert(WR * RT * PACKED_ROWS == TILE_ROWS && WR * WT == 8,
                  "a block is 128 rows and 8 warps");
    static_assert(STAGES * s::bytes <= 99 << 10, "a block of any device has room for this");
    extern __shared__ __align__(128) uint4 shared[];
    allow_next();
    const uint32_t stages = (uint32_t)__cvta_generic_to_shared(shared);
    const int which = find_weight(a, (int32_t)blockIdx.x);
    const packed w = a.w[which];
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, g = lane / 4,
              t = lane % 4;
    const int row_warp = warp / WT, token_warp = warp % WT;
    const int32_t block_tile = ((int32_t)blockIdx.x - a.first_block[which]) * ROW_TILES;
    const int32_t first_token = (int32_t)blockIdx.y * TOKENS;
    const int32_t n = w.k_tiles, segment_tiles = (n + PACKED_SEGMENTS - 1) / PACKED_SEGMENTS;
    uint32_t table[4];
    load_table(table, w.table);
    for (int i = 0; i < STAGES - 1; i++)
        if (i < n)
            copy_weights<TOKENS>(stages + i * s::bytes, w, block_tile, i);
    await_inputs(); /* weights are nobody's output */
    for (int i = 0; i < STAGES - 1; i++) {
        if (i < n)
            copy_tokens<TOKENS>(stages + i * s::bytes, a.x, i, first_token);
        copy_commit();
    }
    float acc[RT][NT][4] = {}, total[RT][NT][4] = {};
    int32_t left = segment_tiles;
    for (int32_t k = 0; k < n; k++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        if (k + STAGES - 1 < n) {
            const uint32_t to = stages + (k + STAGES - 1) % STAGES * s::bytes;
            copy_weights<TOKENS>(to, w, block_tile, k + STAGES - 1);
            copy_tokens<TOKENS>(to, a.x, k + STAGES - 1, first_token);
        }
        copy_commit();
        const uint32_t now = stages + k % STAGES * s::bytes;
        raw<KIND> in[RT];
#pragma unroll
        for (int rt = 0; rt < RT; rt++) {
            int tile = row_warp * RT + rt;
            load_parts<KIND>(in[rt], now + s::planes + tile * tile_bytes<KIND>::planes,
                             now + s::scales + tile * tile_bytes<KIND>::scales,
                             now + s::supers + tile * tile_bytes<KIND>::supers, K_SCALES, lane);
        }
        const uint32_t x = now + ((token_warp * NT * 8 + g) * 4 + t) * 16;
#pragma unroll
        for (int c = 0; c < 2; c++) {
            uint4 b[NT];
#pragma unroll
            for (int nt = 0; nt < NT; nt++)
                b[nt] = load_16(x + c * (TOKENS * 64) + nt * 512);
            uint32_t f[RT][2][4];
#pragma unroll
            for (int rt = 0; rt < RT; rt++)
                fragment<KIND>(f[rt], in[rt], c, t / 2, K_SCALES, table);
                /* Instructions on one sum stand far apart: each waits for the one before it. */
#pragma unroll
            for (int m = 0; m < 2; m++)
#pragma unroll
                for (int nt = 0; nt < NT; nt++)
#pragma unroll
                    for (int rt = 0; rt < RT; rt++)
                        multiply(acc[rt][nt], f[rt][m], m == 0 ? b[nt].x : b[nt].z,
                                 m == 0 ? b[nt].y : b[nt].w);
        }
        if (--left == 0 || k + 1 == n) {
            left = segment_tiles;
#pragma unroll
            for (int rt = 0; rt < RT; rt++)
#pragma unroll
                for (int nt = 0; nt < NT; nt++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        total[rt][nt][i] = __fadd_rn(total[rt][nt][i], acc[rt][nt][i]);
                        acc[rt][nt][i] = 0;
                    }
        }
    }
#pragma unroll
    for (int rt = 0; rt < RT; rt++)
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                store_final(
                    a, which, (block_tile + row_warp * RT + rt) * PACKED_ROWS + g + i / 2 * 8,
                    first_token + (token_warp * NT + nt) * 8 + t * 2 + i % 2, total[rt][nt][i]);
}

/* ---- the list ---------------------------------------------------------------------------------- */

template <int NT, int RT, int DEPTH, int BLOCKS> static matmul_kernel few_kernel(int epilogue)
{
    const void *function = (const void *)few<NT, RT, DEPTH, BLOCKS, EPILOGUE_STORE>;
    if (epilogue == EPILOGUE_NORM)
        function = (const void *)few<NT, RT, DEPTH, BLOCKS, EPILOGUE_NORM>;
    if (epilogue == EPILOGUE_GATED) { /* with more it costs more than a kernel of its own */
        if constexpr (NT <= 2)
            function = (const void *)few<NT, RT, DEPTH, BLOCKS, EPILOGUE_GATED>;
        else
            return {};
    }
    return {function,
            PACKED_ROWS * RT,
            NT * 8,
            PACKED_SEGMENTS * 32,
            few_memory<NT, RT, DEPTH>::bytes,
            1,
            0};
}

extern "C" matmul_kernel MATMUL_NAME(int which, int epilogue)
{
    constexpr bool f16 = KIND == PACKED_F16;
    constexpr int tall = f16 ? 1 : 2; /* two blocks' rings must have room */
    constexpr int deep = f16 ? 1 : 2, deep_beside = KIND == PACKED_Q4 || KIND == PACKED_T4 ? 2 : 1;
    switch (which) {
    case MATMUL_8: return few_kernel<1, 1, deep, 2>(epilogue);
    case MATMUL_8_LONG: return few_kernel<1, 2, 1, 2>(epilogue);
    case MATMUL_16: return few_kernel<2, tall, deep_beside, 4 - tall>(epilogue);
    case MATMUL_16_SHORT: return few_kernel<2, 1, deep, 2>(epilogue);
    case MATMUL_32: return few_kernel < 4, 2, 1, f16 ? 1 : 2 > (epilogue);
    case MATMUL_32_SHORT: return few_kernel<4, 2, deep, 1>(epilogue);
    case MATMUL_64: return few_kernel<8, 2, 1, 1>(epilogue);
    default:
        if (epilogue != EPILOGUE_STORE)
            return {};
        return {(const void *)tiles<4, 2, 2, 8, 1>, TILE_ROWS, 128, 256,
                STAGES * stage<128>::bytes,         0,         0};
    }
}
