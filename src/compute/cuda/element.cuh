/* compute/cuda/element.cuh: one weight at a time: as it lies in a file's block, and as it lies packed
 * (packed.h). Slow and plain; for packing, for embedding rows, and to be compared with. */
#ifndef REALM_COMPUTE_CUDA_ELEMENT_CUH
#define REALM_COMPUTE_CUDA_ELEMENT_CUH

#include "compute/cuda/device.cuh"

/* ---- in the file ------------------------------------------------------------------------------ */

__device__ __forceinline__ __half file_half(const uint8_t *p)
{
    return __ushort_as_half((uint16_t)(p[0] | p[1] << 8));
}

__device__ __forceinline__ float file_float(const uint8_t *p)
{
    return __uint_as_float((uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 |
                           (uint32_t)p[3] << 24);
}

__device__ __forceinline__ const uint8_t *file_block(const uint8_t *row, int32_t k, int elements,
                                                     int bytes)
{
    return row + (int64_t)(k / elements) * bytes;
}

__device__ __forceinline__ uint32_t nibble_of_32(const uint8_t *q, int32_t k)
{
    return q[k % 16] >> (k % 32 / 16 * 4) & 15;
}

/* The number that column k's bits are, as the packed kind stores it. */
__device__ __forceinline__ uint32_t file_code(int32_t type, const uint8_t *row, int32_t k)
{
    int32_t i = k % 256;
    const uint8_t *b;
    switch (type) {
    case DTYPE_F16: return row[k * 2] | row[k * 2 + 1] << 8;
    case DTYPE_BF16: return row[k * 2] | row[k * 2 + 1] << 8;
    case DTYPE_Q4_0:
    case DTYPE_IQ4_NL: return nibble_of_32(file_block(row, k, 32, 18) + 2, k);
    case DTYPE_Q4_1: return nibble_of_32(file_block(row, k, 32, 20) + 4, k);
    case DTYPE_MXFP4: return nibble_of_32(file_block(row, k, 32, 17) + 1, k);
    case DTYPE_Q5_0:
        b = file_block(row, k, 32, 22);
        return nibble_of_32(b + 6, k) | (b[2 + k % 32 / 8] >> (k % 8) & 1) << 4;
    case DTYPE_Q5_1:
        b = file_block(row, k, 32, 24);
        return nibble_of_32(b + 8, k) | (b[4 + k % 32 / 8] >> (k % 8) & 1) << 4;
    case DTYPE_Q8_0: return file_block(row, k, 32, 34)[2 + k % 32] ^ 128;
    case DTYPE_Q8_1: return file_block(row, k, 32, 36)[4 + k % 32] ^ 128;
    case DTYPE_Q8_K: return file_block(row, k, 256, 292)[4 + i] ^ 128;
    case DTYPE_Q2_K:
        return file_block(row, k, 256, 84)[16 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
    case DTYPE_Q3_K:
        b = file_block(row, k, 256, 110);
        return (b[32 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3) |
               (b[i % 32] >> (i / 32) & 1) << 2;
    case DTYPE_Q4_K:
        return file_block(row, k, 256, 144)[16 + i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15;
    case DTYPE_Q5_K:
        b = file_block(row, k, 256, 176);
        return (b[48 + i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15) |
               (b[16 + i % 32] >> (i / 32) & 1) << 4;
    case DTYPE_Q6_K:
        b = file_block(row, k, 256, 210);
        return (b[i / 128 * 64 + i % 64] >> (i % 128 / 64 * 4) & 15) |
               (b[128 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3) << 4;
    case DTYPE_IQ4_XS: return nibble_of_32(file_block(row, k, 256, 136) + 8 + i / 32 * 16, k);
    default: return 0;
    }
}

/* The 6-bit scale and minimum of sub-block j of 32 that Q4_K and Q5_K pack into 12 bytes. */
__device__ __forceinline__ uint2 file_k4_scale(const uint8_t *p, int j)
{
    if (j < 4)
        return make_uint2(p[j] & 63, p[j + 4] & 63);
    return make_uint2((p[j + 4] & 15) | p[j - 4] >> 6 << 4, p[j + 4] >> 4 | p[j] >> 6 << 4);
}

/* MXFP4's scale: half of 2^(e - 127), subnormal for the least two. */
__device__ __forceinline__ float file_e8m0_half(uint32_t e)
{
    return __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
}

/* ---- packed ----------------------------------------------------------------------------------- */

static __device__ __constant__ int8_t packed_table[2][16] = {
    {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113},
    {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12}};

/* Where an element stands in a tile: lane 4g+t, row half r, column half c, and place i of eight. */
typedef struct packed_place {
    int64_t planes, scales, supers; /* the tile's, in bytes from the matrix's */
    int g, t, r, c, i, lane;
} packed_place;

__device__ __forceinline__ packed_place packed_find(const packed &w, int32_t row, int32_t k)
{
    packed_place p;
    int32_t row_tile = row / PACKED_ROWS, k_tile = k / PACKED_COLS, j = k % 32;
    int32_t part = row_tile % PACKED_SLAB_TILES, rows = row_tile / PACKED_SLAB_TILES;
    int64_t slab = ((int64_t)rows * w.k_tiles + k_tile) * packed_slab_bytes(w.kind, w.k_scales);
    p.planes = slab + part * packed_plane_bytes(w.kind);
    p.scales = slab + part * packed_scale_bytes(w.kind, w.k_scales);
    p.supers = (((int64_t)rows * ((w.k_tiles + 3) / 4) + k_tile / 4) * PACKED_SLAB_TILES + part) *
               packed_super_bytes(w.kind, w.k_scales);
    p.g = row % 8;
    p.r = row % PACKED_ROWS / 8;
    p.c = k % PACKED_COLS / 32;
    p.t = j / 8;
    p.i = j % 8;
    p.lane = p.g * 4 + p.t;
    return p;
}

__device__ __forceinline__ uint32_t packed_word(const uint8_t *p)
{
    return *(const uint32_t *)p;
}

/* Where bits of pairs (columns 2p, 2p+1) stand in the two halves of a word. */
__device__ __forceinline__ int packed_pair_shift(const packed_place &p, int bits, int first)
{
    return bits * (first + p.i / 2) + 16 * (p.i % 2);
}

__device__ __forceinline__ uint32_t packed_code(const packed &w, const packed_place &p)
{
    const uint8_t *tile = w.planes + p.planes;
    const uint8_t *nibbles = tile + p.lane * 16 + (p.c * 2 + p.r) * 4;
    uint32_t low = packed_word(nibbles) >> packed_pair_shift(p, 4, 0) & 15;
    switch (w.kind) {
    case PACKED_F16:
        return *(const uint16_t *)(tile + (p.c * 2 + p.i / 4) * 512 + p.lane * 16 +
                                   (p.i / 2 % 2 * 2 + p.r) * 4 + p.i % 2 * 2);
    case PACKED_Q8: return tile[p.c * 512 + p.lane * 16 + p.r * 8 + p.i];
    case PACKED_Q4: return low;
    case PACKED_Q5:
        return low | (packed_word(tile + 512 + p.lane * 4) >>
                          packed_pair_shift(p, 1, (p.c * 2 + p.r) * 4) &
                      1) << 4;
    case PACKED_Q6:
        return low |
               (packed_word(tile + 512 + p.lane * 8 + p.r * 4) >> packed_pair_shift(p, 2, p.c * 4) &
                3) << 4;
    case PACKED_Q3:
        return (packed_word(tile + p.lane * 8 + p.r * 4) >> packed_pair_shift(p, 2, p.c * 4) & 3) |
               (packed_word(tile + 256 + p.lane * 4) >>
                    packed_pair_shift(p, 1, (p.c * 2 + p.r) * 4) &
                1) << 2;
    case PACKED_Q2:
        return packed_word(tile + p.lane * 8 + p.r * 4) >> packed_pair_shift(p, 2, p.c * 4) & 3;
    case PACKED_T4: return packed_word(nibbles) >> (p.i * 4) & 15;
    default: return 0;
    }
}

/* The weight as the file means it, rounded where the file's formula rounds. */
__device__ __forceinline__ float packed_element(const packed &w, int32_t row, int32_t k)
{
    if (w.kind == PACKED_F32)
        return ((const float *)w.planes)[(int64_t)row * w.n_cols + k];
    packed_place p = packed_find(w, row, k);
    uint32_t code = packed_code(w, p);
    const uint8_t *scales = w.scales + p.scales, *supers = w.supers + p.supers;
    float row_scale = w.row_scales ? w.row_scales[row] : 1.0f;
    switch (w.kind) {
    case PACKED_F16: return __half2float(__ushort_as_half((uint16_t)code)) * row_scale;
    case PACKED_Q8:
    case PACKED_T4: {
        float d = __half2float(*(const __half *)(scales + p.g * 8 + p.r * 4 + p.c * 2));
        int q = w.kind == PACKED_Q8 ? (int)code - 128 : packed_table[w.table][code];
        return __fmul_rn((float)q, d) * row_scale;
    }
    case PACKED_Q6:
    case PACKED_Q3: {
        float d = __half2float(*(const __half *)(supers + p.g * 4 + p.r * 2));
        int scale = (int)scales[p.g * 8 + p.r * 4 + p.c * 2 + p.t / 2] - 128;
        return __fmul_rn(__fmul_rn(d, (float)scale),
                         (float)((int)code - (w.kind == PACKED_Q6 ? 32 : 4)));
    }
    default: break;
    }
    float scale, minimum;
    if (w.kind == PACKED_Q2 || w.k_scales) {
        const uint8_t *s = w.kind == PACKED_Q2
                               ? scales + p.g * 16 + (p.r * 2 + p.c) * 4 + p.t / 2 * 2
                               : scales + p.g * 8 + p.r * 4 + p.c * 2;
        const __half *d = (const __half *)(supers + p.g * 8 + p.r * 4);
        scale = __fmul_rn(__half2float(d[0]), (float)s[0]);
        minimum = __fmul_rn(__half2float(d[1]), (float)s[1]);
    } else {
        const __half *s = (const __half *)(scales + p.g * 16 + (p.r * 2 + p.c) * 4);
        scale = __half2float(s[0]);
        minimum = __half2float(s[1]);
    }
    return __fadd_rn(__fmul_rn(scale, (float)code), minimum);
}

#endif
