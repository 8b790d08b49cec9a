/* compute/cpu/pack.h: the one layout in which the processor's matrix products read quantized
 * weights, the same for every instruction set.
 *
 * Rows are taken sixteen at a time (a panel), columns 32 at a time (a block). Within a block four
 * neighbouring columns of the sixteen rows are 64 bytes side by side, row by row (a quad: byte
 * 4 * row + column % 4), so a vector lane of 32 bits is a row, a dot-product instruction adds four
 * columns to it, and activations are broadcast. The last panel is filled up with zero rows.
 * Nothing is requantized: scales and values are the file's bits in another order.
 *
 *   types of 32 values   panel = scales [n_blocks][scale_bytes], up to a multiple of 64, then
 *                        values [n_blocks][value_bytes]
 *   types of 256 values  panel = n_cols / 256 times: scales [scale_bytes] of eight blocks, then
 *                        values [8][value_bytes]
 *
 * scales (sixteen rows side by side; f16 unless said)
 *   Q4_0 Q5_0 Q8_0 Q8_1 IQ4_NL  d
 *   Q4_1 Q5_1                   d, m
 *   MXFP4                       exponent, u8
 *   Q4_K Q5_K                   d, dmin; u8 scale [8]; u8 minimum [8], as two quads
 *   Q6_K Q3_K                   d, 32 bytes of zero; i8 scale [16]
 *   Q2_K                        d, dmin; u8 scale | minimum << 4 [16], as four quads
 *   IQ4_XS                      d, 32 bytes of zero; i8 scale [8]
 *   Q8_K                        d as f32
 * values, as the bits of one byte of the quads 0..7 of a block
 *   4 bits  4 vectors v: quad v low, quad v + 4 high
 *   8 bits  8 vectors; signed bytes have their top bit flipped (128 added)
 *   6 bits  6 vectors v: quad v in bits 7..2; below them quad 6's bits 5..0 in v = 0..2, two each,
 *           highest first, and quad 7's in v = 3..5
 *   5 bits  5 vectors v: quad v in bits 7..3; below them, three bits a vector, highest first, the
 *           15 bits of quads 5, 6 and 7 one after the other
 *   3 bits  3 vectors v: quad v in bits 7..5, quad v + 3 in bits 4..2; below them, two bits a
 *           vector, highest first, the six bits of quads 6 and 7
 *   2 bits  2 vectors v: quads 4v .. 4v+3, lowest bits first
 * Minimums stand in quads, as values do, since they are multiplied like them: with the sums of the
 * activations' blocks. Unsigned values stay as they are; with the top-aligned ones, a kernel that masks instead of
 * shifting has them times a power of two, which it takes out of the scale.
 *
 * Sizes are those of the file but for Q3_K (+5 %), IQ4_XS (+3 %) and Q6_K (+1 %), whose scales are
 * widened to bytes. Packing is a pure function from bytes to bytes, so that packed weights can
 * live in a file: PACK_VERSION changes when the layout does. No state; any thread. */
#ifndef REALM_COMPUTE_CPU_PACK_H
#define REALM_COMPUTE_CPU_PACK_H

#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"

#define PACK_VERSION 2
#define PACK_LAYOUT  (0x504B0000u + PACK_VERSION) /* for weight_cache: "PK" and the version */
#define PACK_ROWS    16                           /* rows of a panel */
#define PACK_BLOCK   32                           /* columns of a block */

/* Everything a packed type is made of. super is blocks a scale group: 1, or 8 for 256 values. */
#define PACK_MAP(X)                                                                                \
    /* type, super, scale_bytes, value_bytes */                                                    \
    X(Q4_0, 1, 32, 256)                                                                            \
    X(Q4_1, 1, 64, 256)                                                                            \
    X(Q5_0, 1, 32, 320)                                                                            \
    X(Q5_1, 1, 64, 320)                                                                            \
    X(Q8_0, 1, 32, 512)                                                                            \
    X(Q8_1, 1, 32, 512)                                                                            \
    X(IQ4_NL, 1, 32, 256)                                                                          \
    X(MXFP4, 1, 16, 256)                                                                           \
    X(Q2_K, 8, 320, 128)                                                                           \
    X(Q3_K, 8, 320, 192)                                                                           \
    X(Q4_K, 8, 320, 256)                                                                           \
    X(Q5_K, 8, 320, 320)                                                                           \
    X(Q6_K, 8, 320, 384)                                                                           \
    X(IQ4_XS, 8, 192, 256)                                                                         \
    X(Q8_K, 8, 64, 512)

/* 1 if the type has a packed form and n_cols is whole blocks of it. */
int pack_supports(uint32_t type, int32_t n_cols);

/* Bytes of one panel, a multiple of 64, and of a whole matrix. The type must be supported. */
size_t pack_panel_bytes(uint32_t type, int32_t n_cols);
size_t pack_bytes(uint32_t type, int32_t n_rows, int32_t n_cols);

/* Packs panels first .. first+count-1 of the matrix whose rows of the file's blocks begin at data.
 * packed is the whole matrix's memory, aligned to 64 bytes; other panels are left alone. */
void pack_panels(void *packed, uint32_t type, const void *data, int32_t n_rows, int32_t n_cols,
                 int32_t first, int32_t count);

/* Takes block number block of a panel of n_blocks apart: value k of a row is
 * values[k][row] * scales[h][row] + minimums[h][row], with h = k / 16. minimums are -0 for types
 * without. Plain and slow: the truth for kernels, and what machines without one use. */
void pack_block(uint32_t type, const void *panel, int32_t n_blocks, int32_t block,
                int16_t values[PACK_BLOCK][PACK_ROWS], float scales[2][PACK_ROWS],
                float minimums[2][PACK_ROWS]);

/* The scales of a block of a type of 256 values, taken apart: pack_block's scales are d * scale,
 * its minimums -dmin * minimum. */
typedef struct pack_scales {
    float d[PACK_ROWS], dmin[PACK_ROWS]; /* dmin is 0 for types without minimums */
    int16_t scale[2][PACK_ROWS], minimum[2][PACK_ROWS];
} pack_scales;
void pack_block_scales(uint32_t type, const void *panel, int32_t block, pack_scales *out);

/* out[0 .. n_cols) = one row as F32, with the bits that dequantizing the file's row gives. */
void pack_row(float *out, const void *packed, uint32_t type, int32_t n_cols, int32_t row);

#endif
