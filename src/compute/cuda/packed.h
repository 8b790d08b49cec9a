/* compute/cuda/packed.h: how weights lie in the device's memory. Shared by host and device code.
 *
 * A matrix is cut into tiles of 16 rows by 64 columns, the shape that a warp multiplies by four
 * instructions of the matrix units (m16n8k16). A tile's bytes are planes of 32 lanes: each lane finds
 * what it needs, in the registers' order, in one or two loads of up to 16 bytes next to its
 * neighbours'. Rows are padded to 128 and columns to 64 with weights of zero. Lane 4g+t holds rows g
 * and g+8 and, of each half tile of 32 columns, columns 8t .. 8t+7; instruction m of a half takes
 * columns 8t+4m .. 8t+4m+3. Activations are read by the same rule, so the order of columns inside an
 * instruction is nobody's business.
 *
 * Quantized weights stay quantized, at the file's bits: nibbles, bits and bytes are only moved. A slab is
 * what eight tiles under each other (128 rows by 64 columns) have: their planes, then their scales. Slabs
 * of the same rows follow each other, so that a block's loads are few and long:
 *
 *     kind  planes a tile                        scales a tile, by g (rows g and g+8)
 *     F16   64 B a lane: halves                  none
 *     Q8    32 B: bytes, 128 added               2 x 2 halves, one a 32
 *     Q4    16 B: nibbles                        2 x 2 pairs of halves (scale, minimum), one a 32;
 *                                                or, of K-quants, 2 x 2 pairs of bytes
 *     Q5    16 B nibbles, 4 B fifth bits         as Q4
 *     Q6    16 B nibbles, 8 B upper two bits     2 x 4 bytes, 128 added, one a 16
 *     Q3    8 B two bits, 4 B third bits         as Q6
 *     Q2    8 B two bits                         2 x 4 pairs of bytes (scale, minimum), one a 16
 *     T4    16 B: nibbles, places in a table     as Q8
 *
 * Where scales are bytes, "supers" hold the halves that multiply them, once a 256 columns, also of eight
 * tiles together. Types whose
 * scales may not fit a half (BF16, Q8_K, MXFP4) have a power of two a row taken out of them. F32
 * matrices are rows as in the file and are multiplied in F32.
 *
 * Two matrices of one shape and type that are always multiplied together (gate and up) may be one, a pair: each tile
 * has 8 rows of the first, then the same 8 of the second, so that a thread has both numbers of what is made of them. */
#ifndef REALM_COMPUTE_CUDA_PACKED_H
#define REALM_COMPUTE_CUDA_PACKED_H

#include <stdint.h>

typedef enum packed_kind {
    PACKED_F32,
    PACKED_F16,
    PACKED_Q8,
    PACKED_Q4,
    PACKED_Q5,
    PACKED_Q6,
    PACKED_Q3,
    PACKED_Q2,
    PACKED_T4,
    PACKED_KINDS
} packed_kind;

#define PACKED_ROWS       16 /* of a tile */
#define PACKED_COLS       64
#define PACKED_SLAB_TILES 8

/* Every product's sum over columns is this many sums over neighbouring tiles, added in order from
 * zero, whatever the kernel and the number of tokens: so that all give the same bits. */
#define PACKED_SEGMENTS 8

typedef struct packed {
    const uint8_t
        *planes; /* [slabs of rows, k_tiles] of packed_slab_bytes; F32: [n_rows, n_cols] */
    const uint8_t *scales;   /* of the first slab */
    const uint8_t *supers;   /* [slabs of rows, ceil(k_tiles / 4), 8] of packed_super_bytes */
    const float *row_scales; /* [row_tiles * 16], or NULL: 1 */
    int32_t n_rows, n_cols, row_tiles, k_tiles;
    int32_t kind;     /* packed_kind */
    int32_t k_scales; /* Q4, Q5: scales are bytes with supers */
    int32_t table;    /* T4: 0 IQ4, 1 FP4 */
    int32_t type;     /* dtype in the file */
    int32_t pair;     /* rows of each of two matrices; 0: it is one */
    int32_t zero;
} packed;

/* Of a pair: where row r of matrix 0 or 1 stands. */
#define PACKED_PAIR_ROW(r, which) ((r) / 8 * 16 + (which)*8 + (r) % 8)

#ifdef __CUDACC__
#define PACKED_FUNCTION static constexpr __host__ __device__ __forceinline__
#else
#define PACKED_FUNCTION static inline
#endif

PACKED_FUNCTION uint32_t packed_plane_bytes(int32_t kind)
{
    switch (kind) {
    case PACKED_F16: return 2048;
    case PACKED_Q8: return 1024;
    case PACKED_Q5: return 640;
    case PACKED_Q6: return 768;
    case PACKED_Q3: return 384;
    case PACKED_Q2: return 256;
    case PACKED_Q4:
    case PACKED_T4: return 512;
    default: return 0;
    }
}

PACKED_FUNCTION uint32_t packed_scale_bytes(int32_t kind, int32_t k_scales)
{
    switch (kind) {
    case PACKED_Q4:
    case PACKED_Q5: return k_scales ? 64 : 128;
    case PACKED_Q2: return 128;
    case PACKED_Q8:
    case PACKED_T4:
    case PACKED_Q6:
    case PACKED_Q3: return 64;
    default: return 0;
    }
}

PACKED_FUNCTION uint32_t packed_super_bytes(int32_t kind, int32_t k_scales)
{
    switch (kind) {
    case PACKED_Q6:
    case PACKED_Q3: return 32;
    case PACKED_Q2: return 64;
    default: return k_scales ? 64 : 0;
    }
}

PACKED_FUNCTION uint32_t packed_slab_bytes(int32_t kind, int32_t k_scales)
{
    return PACKED_SLAB_TILES * (packed_plane_bytes(kind) + packed_scale_bytes(kind, k_scales));
}

#endif
