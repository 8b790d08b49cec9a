/* compute/cuda/pack.cu: turns raw rows of a file into packed tiles, on the device.
 *
 * A file is read once and sent as it is; what a processor would need a minute for takes milliseconds
 * here. Blocks of 16 rows; a warp a tile. */
#include "compute/cuda/element.cuh"

/* Where a row of the file stands. */
__device__ __forceinline__ int32_t packed_row(const pack_args &a, int32_t row)
{
    return a.w.pair ? PACKED_PAIR_ROW(row, a.which) : row;
}

/* The power of two taken out of a row whose type's range is not a half's. */
static __global__ void row_scales_kernel(pack_args a)
{
    int32_t row = (int32_t)blockIdx.x, type = a.w.type;
    const uint8_t *from = a.rows + (int64_t)row * a.row_bytes;
    float largest = 0;
    int32_t step = type == DTYPE_BF16 ? 1 : type == DTYPE_MXFP4 ? 32 : 256;
    for (int32_t k = (int32_t)threadIdx.x * step; k < a.w.n_cols; k += 32 * step) {
        float v;
        if (type == DTYPE_BF16)
            v = __uint_as_float(file_code(type, from, k) << 16);
        else if (type == DTYPE_MXFP4)
            v = file_e8m0_half(file_block(from, k, 32, 17)[0]);
        else
            v = file_float(file_block(from, k, 256, 292));
        largest = fmaxf(largest, fabsf(v));
    }
    largest = warp_max(largest);
    if (threadIdx.x == 0) {
        float inverse;
        scale_for(largest, &inverse);
        /* A scale times a code of up to 128 is a half too. */
        ((float *)a.w.row_scales)[packed_row(a, a.first_row + row)] = type == DTYPE_BF16
                                                                          ? inverse
                                                                          : inverse * 256;
    }
}

__device__ __forceinline__ void put_half(uint8_t *to, __half h)
{
    *(uint16_t *)to = __half_as_ushort(h);
}

/* Scales of the row at p.g and p.r, of the half tile c. */
__device__ void pack_scales(const pack_args &a, const uint8_t *row, const packed_place &p, int c,
                            int32_t k, float row_scale)
{
    const packed &w = a.w;
    uint8_t *scales = (uint8_t *)w.scales + p.scales, *supers = (uint8_t *)w.supers + p.supers;
    uint8_t *pair = scales + p.g * 16 + (p.r * 2 + c) * 4,
            *byte_pair = scales + p.g * 8 + p.r * 4 + c * 2;
    const uint8_t *b;
    __half d, m;
    int j = k % 256 / 32;
    switch (w.type) {
    case DTYPE_Q4_0:
    case DTYPE_Q5_0:
        d = file_half(file_block(row, k, 32, w.type == DTYPE_Q4_0 ? 18 : 22));
        put_half(pair, d);
        put_half(pair + 2,
                 __float2half_rn(__half2float(d) * (w.type == DTYPE_Q4_0 ? -8.0f : -16.0f)));
        return;
    case DTYPE_Q4_1:
    case DTYPE_Q5_1:
        b = file_block(row, k, 32, w.type == DTYPE_Q4_1 ? 20 : 24);
        put_half(pair, file_half(b));
        put_half(pair + 2, file_half(b + 2));
        return;
    case DTYPE_Q8_0: put_half(byte_pair, file_half(file_block(row, k, 32, 34))); return;
    case DTYPE_Q8_1: put_half(byte_pair, file_half(file_block(row, k, 32, 36))); return;
    case DTYPE_IQ4_NL: put_half(byte_pair, file_half(file_block(row, k, 32, 18))); return;
    case DTYPE_Q8_K:
        put_half(byte_pair, __float2half_rn(file_float(file_block(row, k, 256, 292)) / row_scale));
        return;
    case DTYPE_MXFP4:
        put_half(byte_pair,
                 __float2half_rn(file_e8m0_half(file_block(row, k, 32, 17)[0]) / row_scale));
        return;
    case DTYPE_IQ4_XS: {
        b = file_block(row, k, 256, 136);
        int scale = (b[4 + j / 2] >> (j % 2 * 4) & 15) | ((b[2] | b[3] << 8) >> (j * 2) & 3) << 4;
        put_half(byte_pair, __float2half_rn(__half2float(file_half(b)) * (float)(scale - 32)));
        return;
    }
    case DTYPE_Q4_K:
    case DTYPE_Q5_K: {
        b = file_block(row, k, 256, w.type == DTYPE_Q4_K ? 144 : 176);
        uint2 s = file_k4_scale(b + 4, j);
        byte_pair[0] = (uint8_t)s.x;
        byte_pair[1] = (uint8_t)s.y;
        d = file_half(b);
        m = __hneg(file_half(b + 2));
        break;
    }
    case DTYPE_Q2_K:
        b = file_block(row, k, 256, 84);
        for (int i = 0; i < 2; i++) {
            pair[i * 2] = b[j * 2 + i] & 15;
            pair[i * 2 + 1] = b[j * 2 + i] >> 4;
        }
        d = file_half(b + 80);
        m = __hneg(file_half(b + 82));
        break;
    case DTYPE_Q3_K:
        b = file_block(row, k, 256, 110);
        for (int i = 0; i < 2; i++) {
            int s = j * 2 + i, low = s < 8 ? b[96 + s] & 15 : b[88 + s] >> 4;
            byte_pair[i] = (uint8_t)((low | (b[104 + s % 4] >> (s / 4 * 2) & 3) << 4) - 32 + 128);
        }
        put_half(supers + p.g * 4 + p.r * 2, file_half(b + 108));
        return;
    case DTYPE_Q6_K:
        b = file_block(row, k, 256, 210);
        byte_pair[0] = b[192 + j * 2] ^ 128;
        byte_pair[1] = b[192 + j * 2 + 1] ^ 128;
        put_half(supers + p.g * 4 + p.r * 2, file_half(b + 208));
        return;
    default: return;
    }
    put_half(supers + p.g * 8 + p.r * 4, d);
    put_half(supers + p.g * 8 + p.r * 4 + 2, m);
}

/* Sets bits of a lane's word of a plane; the lane owns the word. */
__device__ __forceinline__ void or_word(uint8_t *at, uint32_t bits)
{
    *(uint32_t *)at |= bits;
}

__device__ void pack_code(const packed &w, uint8_t *tile, const packed_place &p, uint32_t code)
{
    uint8_t *nibbles = tile + p.lane * 16 + (p.c * 2 + p.r) * 4;
    switch (w.kind) {
    case PACKED_F16:
        *(uint16_t *)(tile + (p.c * 2 + p.i / 4) * 512 + p.lane * 16 + (p.i / 2 % 2 * 2 + p.r) * 4 +
                      p.i % 2 * 2) = (uint16_t)code;
        return;
    case PACKED_Q8: tile[p.c * 512 + p.lane * 16 + p.r * 8 + p.i] = (uint8_t)code; return;
    case PACKED_T4: or_word(nibbles, code << (p.i * 4)); return;
    case PACKED_Q2:
        or_word(tile + p.lane * 8 + p.r * 4, code << packed_pair_shift(p, 2, p.c * 4));
        return;
    case PACKED_Q3:
        or_word(tile + p.lane * 8 + p.r * 4, (code & 3) << packed_pair_shift(p, 2, p.c * 4));
        or_word(tile + 256 + p.lane * 4, (code >> 2)
                                             << packed_pair_shift(p, 1, (p.c * 2 + p.r) * 4));
        return;
    default: break;
    }
    or_word(nibbles, (code & 15) << packed_pair_shift(p, 4, 0));
    if (w.kind == PACKED_Q5)
        or_word(tile + 512 + p.lane * 4, (code >> 4)
                                             << packed_pair_shift(p, 1, (p.c * 2 + p.r) * 4));
    if (w.kind == PACKED_Q6)
        or_word(tile + 512 + p.lane * 8 + p.r * 4, (code >> 4) << packed_pair_shift(p, 2, p.c * 4));
}

/* The packed memory was zeroed before. */
static __global__ void pack_kernel(pack_args a)
{
    const packed &w = a.w;
    int32_t lane = (int32_t)threadIdx.x % 32,
            row_tile = a.first_row / PACKED_ROWS + (int32_t)blockIdx.x;
    for (int32_t k_tile = (int32_t)threadIdx.x / 32; k_tile < w.k_tiles;
         k_tile += (int32_t)blockDim.x / 32) {
        for (int n = 0; n < 32; n++) {
            int r = n / 16, c = n / 8 % 2, i = n % 8;
            int32_t row = row_tile * PACKED_ROWS + r * 8 + lane / 4;
            int32_t k = k_tile * PACKED_COLS + c * 32 + lane % 4 * 8 + i;
            if (row - a.first_row >= a.n_rows || k >= w.n_cols)
                continue;
            const uint8_t *from = a.rows + (int64_t)(row - a.first_row) * a.row_bytes;
            const int32_t place = packed_row(a, row);
            packed_place p = packed_find(w, place, k);
            uint8_t *tile = (uint8_t *)w.planes + p.planes;
            uint32_t code = file_code(w.type, from, k);
            if (w.type == DTYPE_BF16)
                code = __half_as_ushort(
                    __float2half_rn(__uint_as_float(code << 16) / w.row_scales[place]));
            pack_code(w, tile, p, code);
            if (w.kind != PACKED_F16 && p.t == 0 && i == 0)
                pack_scales(a, from, p, c, k, w.row_scales ? w.row_scales[place] : 1.0f);
        }
    }
}

extern "C" const void *cuda_kernel_pack(void)
{
    return (const void *)pack_kernel;
}

extern "C" const void *cuda_kernel_row_scales(void)
{
    return (const void *)row_scales_kernel;
}
