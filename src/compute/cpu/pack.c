/* compute/cpu/pack.c: see pack.h.
 *
 * A block's 32 codes (the file's integers before scale and offset) are handled as four words of
 * eight bytes, a byte a code, since that is eight at a time in plain C on every machine. Packing
 * goes down a panel row by row, so that each of its reads is a sequential stream. */
#include "compute/cpu/pack.h"

#include <string.h>

#include "compute/cpu/quants.h"

#define INLINE static inline __attribute__((always_inline))

typedef struct shape {
    uint16_t super, scale_bytes, value_bytes; /* 0: no packed form */
} shape;

static const shape shapes[] = {
#define SHAPE(type, super, scale_bytes, value_bytes)                                               \
    [DTYPE_##type] = {super, scale_bytes, value_bytes},
    PACK_MAP(SHAPE)
#undef SHAPE
};

int pack_supports(uint32_t type, int32_t n_cols)
{
    return type < sizeof shapes / sizeof *shapes && shapes[type].super && n_cols > 0 &&
           n_cols % (shapes[type].super * PACK_BLOCK) == 0;
}

size_t pack_panel_bytes(uint32_t type, int32_t n_cols)
{
    const shape *s = &shapes[type];
    size_t n_blocks = (size_t)n_cols / PACK_BLOCK;
    return (n_blocks / s->super * s->scale_bytes + 63) / 64 * 64 + n_blocks * s->value_bytes;
}

size_t pack_bytes(uint32_t type, int32_t n_rows, int32_t n_cols)
{
    return ((size_t)n_rows + PACK_ROWS - 1) / PACK_ROWS * pack_panel_bytes(type, n_cols);
}

/* Where a block's scales and values are in a panel; as in pack.h. */
INLINE size_t scales_offset(shape s, int32_t block)
{
    size_t b = (size_t)block;
    return s.super == 1 ? b * s.scale_bytes : b / 8 * (size_t)(s.scale_bytes + 8 * s.value_bytes);
}

INLINE size_t values_offset(shape s, int32_t n_blocks, int32_t block)
{
    size_t b = (size_t)block;
    return s.super == 1 ? ((size_t)n_blocks * s.scale_bytes + 63) / 64 * 64 + b * s.value_bytes
                        : scales_offset(s, block) + s.scale_bytes + b % 8 * s.value_bytes;
}

INLINE uint64_t load8(const uint8_t *p)
{
    uint64_t w;
    memcpy(&w, p, 8);
    return w;
}

INLINE uint64_t every(int byte)
{
    return 0x0101010101010101u * (uint64_t)byte;
}

INLINE uint64_t field(uint64_t w, int shift, int mask)
{
    return w >> shift & every(mask);
}

/* Bit i of the byte becomes bit 4 of byte i. */
INLINE uint64_t fifth_bits(uint32_t byte)
{
    uint64_t one_each = (byte & 255) * 0x0101010101010101u & 0x8040201008040201u;
    return ((one_each + every(0x7F)) >> 3) & every(0x10);
}

/* ---- the file's blocks to codes ------------------------------------------------------------- */

/* The codes of block i (0..7; 0 for types of 32) of a block of the file, k = 8w .. 8w+7 in c[w].
 * Codes of Q3_K and Q6_K are offset by 4 and 32, of signed bytes by 128. */
INLINE void read_codes(uint32_t type, uint64_t c[4], const uint8_t *b, int i)
{
    switch (type) {
    case DTYPE_Q4_0:
    case DTYPE_IQ4_NL:
    case DTYPE_Q4_1:
    case DTYPE_MXFP4:
    case DTYPE_Q5_0:
    case DTYPE_Q5_1:
    case DTYPE_IQ4_XS: {
        const uint8_t *q = b + (type == DTYPE_MXFP4    ? 1
                                : type == DTYPE_Q4_1   ? 4
                                : type == DTYPE_Q5_0   ? 6
                                : type == DTYPE_Q5_1   ? 8
                                : type == DTYPE_IQ4_XS ? 8 + 16 * i
                                                       : 2);
        for (int w = 0; w < 4; w++)
            c[w] = field(load8(q + w % 2 * 8), w / 2 * 4, 15);
        if (type == DTYPE_Q5_0 || type == DTYPE_Q5_1)
            for (int w = 0; w < 4; w++)
                c[w] |= fifth_bits(q[w - 4]);
        return;
    }
    case DTYPE_Q8_0:
    case DTYPE_Q8_1:
    case DTYPE_Q8_K: {
        const uint8_t *q = b + (type == DTYPE_Q8_0 ? 2 : 4 + 32 * i);
        for (int w = 0; w < 4; w++)
            c[w] = load8(q + 8 * w) ^ every(0x80);
        return;
    }
    case DTYPE_Q4_K:
    case DTYPE_Q5_K: {
        const uint8_t *q = b + (type == DTYPE_Q4_K ? 16 : 48) + i / 2 * 32;
        for (int w = 0; w < 4; w++) {
            c[w] = field(load8(q + 8 * w), i % 2 * 4, 15);
            if (type == DTYPE_Q5_K)
                c[w] |= field(load8(b + 16 + 8 * w), i, 1) << 4;
        }
        return;
    }
    case DTYPE_Q6_K: {
        const uint8_t *low = b + i / 4 * 64 + i % 2 * 32, *high = b + 128 + i / 4 * 32;
        for (int w = 0; w < 4; w++)
            c[w] = field(load8(low + 8 * w), i % 4 / 2 * 4, 15) |
                   field(load8(high + 8 * w), i % 4 * 2, 3) << 4;
        return;
    }
    case DTYPE_Q3_K:
        for (int w = 0; w < 4; w++)
            c[w] = field(load8(b + 32 + i / 4 * 32 + 8 * w), i % 4 * 2, 3) |
                   field(load8(b + 8 * w), i, 1) << 2;
        return;
    case DTYPE_Q2_K:
        for (int w = 0; w < 4; w++)
            c[w] = field(load8(b + 16 + i / 4 * 32 + 8 * w), i % 4 * 2, 3);
        return;
    default: return;
    }
}

/* ---- codes to a panel, and back ------------------------------------------------------------- */

INLINE int value_bits(shape s)
{
    return s.value_bytes / 64;
}

/* Four bytes of one row: shifted left, then masked bytewise. */
INLINE uint32_t bits(uint32_t quad, int left, uint32_t mask)
{
    return (left >= 0 ? quad << left : quad >> -left) & mask * 0x01010101u;
}

INLINE void put_codes(int n_bits, uint8_t *values, int row, const uint64_t c[4])
{
    uint32_t q[8], v[8];
    for (int w = 0; w < 4; w++) {
        q[2 * w] = (uint32_t)c[w];
        q[2 * w + 1] = (uint32_t)(c[w] >> 32);
    }
    switch (n_bits) {
    case 8: memcpy(v, q, sizeof v); break;
    case 4:
        for (int i = 0; i < 4; i++)
            v[i] = q[i] | q[i + 4] << 4;
        break;
    case 6:
        for (int i = 0; i < 6; i++)
            v[i] = q[i] << 2 | bits(q[6 + i / 3], i % 3 * 2 - 4, 3);
        break;
    case 5:
        v[0] = q[0] << 3 | bits(q[5], -2, 7);
        v[1] = q[1] << 3 | bits(q[5], 1, 6) | bits(q[6], -4, 1);
        v[2] = q[2] << 3 | bits(q[6], -1, 7);
        v[3] = q[3] << 3 | bits(q[6], 2, 4) | bits(q[7], -3, 3);
        v[4] = q[4] << 3 | bits(q[7], 0, 7);
        break;
    case 3:
        v[0] = q[0] << 5 | q[3] << 2 | bits(q[6], -1, 3);
        v[1] = q[1] << 5 | q[4] << 2 | bits(q[6], 1, 2) | bits(q[7], -2, 1);
        v[2] = q[2] << 5 | q[5] << 2 | bits(q[7], 0, 3);
        break;
    default: /* 2 */
        for (int i = 0; i < 2; i++)
            v[i] = q[4 * i] | q[4 * i + 1] << 2 | q[4 * i + 2] << 4 | q[4 * i + 3] << 6;
    }
    for (int i = 0; i < n_bits; i++)
        memcpy(values + 64 * i + 4 * row, &v[i], 4);
}

INLINE void get_codes(int n_bits, uint8_t codes[32], const uint8_t *values, int row)
{
    uint32_t v[8] = {0}, q[8];
    for (int i = 0; i < n_bits; i++)
        memcpy(&v[i], values + 64 * i + 4 * row, 4);
    switch (n_bits) {
    case 8: memcpy(q, v, sizeof q); break;
    case 4:
        for (int i = 0; i < 8; i++)
            q[i] = bits(v[i % 4], i / 4 * -4, 15);
        break;
    case 6:
        for (int i = 0; i < 6; i++)
            q[i] = bits(v[i], -2, 63);
        for (int i = 6; i < 8; i++) {
            const uint32_t *s = v + (i - 6) * 3;
            q[i] = bits(s[0], 4, 0x30) | bits(s[1], 2, 0x0C) | bits(s[2], 0, 0x03);
        }
        break;
    case 5:
        for (int i = 0; i < 5; i++)
            q[i] = bits(v[i], -3, 31);
        q[5] = bits(v[0], 2, 0x1C) | bits(v[1], -1, 3);
        q[6] = bits(v[1], 4, 0x10) | bits(v[2], 1, 0x0E) | bits(v[3], -2, 1);
        q[7] = bits(v[3], 3, 0x18) | bits(v[4], 0, 7);
        break;
    case 3:
        for (int i = 0; i < 3; i++) {
            q[i] = bits(v[i], -5, 7);
            q[i + 3] = bits(v[i], -2, 7);
        }
        q[6] = bits(v[0], 1, 6) | bits(v[1], -1, 1);
        q[7] = bits(v[1], 2, 4) | bits(v[2], 0, 3);
        break;
    default:
        for (int i = 0; i < 8; i++)
            q[i] = bits(v[i / 4], i % 4 * -2, 3);
    }
    memcpy(codes, q, 32);
}

/* ---- scales --------------------------------------------------------------------------------- */

/* Scale and minimum j of the eight of 6 bits that Q4_K and Q5_K keep in 12 bytes. */
INLINE int k4_scale(const uint8_t *p, int j)
{
    return j < 4 ? p[j] & 63 : (p[j + 4] & 15) | p[j - 4] >> 6 << 4;
}

INLINE int k4_minimum(const uint8_t *p, int j)
{
    return j < 4 ? p[j + 4] & 63 : p[j + 4] >> 4 | p[j] >> 6 << 4;
}

/* Where number j of some bytes of a row stands when four of them make a quad. */
INLINE size_t in_quads(size_t j, size_t row)
{
    return 64 * (j / 4) + 4 * row + j % 4;
}

/* The scales of one row's block of the file, b, into s. */
INLINE void put_scales(uint32_t type, uint8_t *s, int row, const uint8_t *b)
{
    size_t r = (size_t)row;
    switch (type) {
    case DTYPE_Q4_1:
    case DTYPE_Q5_1:
        memcpy(s + 32 + 2 * r, b + 2, 2);
        memcpy(s + 2 * r, b, 2);
        return;
    case DTYPE_MXFP4: s[r] = b[0]; return;
    case DTYPE_Q8_K: memcpy(s + 4 * r, b, 4); return;
    case DTYPE_Q4_K:
    case DTYPE_Q5_K:
        memcpy(s + 2 * r, b, 2);
        memcpy(s + 32 + 2 * r, b + 2, 2);
        for (size_t j = 0; j < 8; j++) {
            s[64 + 16 * j + r] = (uint8_t)k4_scale(b + 4, (int)j);
            s[192 + in_quads(j, r)] = (uint8_t)k4_minimum(b + 4, (int)j);
        }
        return;
    case DTYPE_Q6_K:
        memcpy(s + 2 * r, b + 208, 2);
        for (size_t j = 0; j < 16; j++)
            s[64 + 16 * j + r] = b[192 + j];
        return;
    case DTYPE_Q3_K:
        memcpy(s + 2 * r, b + 108, 2);
        for (size_t j = 0; j < 16; j++) {
            int low = j < 8 ? b[96 + j] & 15 : b[96 + j - 8] >> 4;
            int high = b[104 + j % 4] >> (j / 4 * 2) & 3;
            s[64 + 16 * j + r] = (uint8_t)((low | high << 4) - 32);
        }
        return;
    case DTYPE_Q2_K:
        memcpy(s + 2 * r, b + 80, 2);
        memcpy(s + 32 + 2 * r, b + 82, 2);
        for (size_t j = 0; j < 16; j++)
            s[64 + in_quads(j, r)] = b[j];
        return;
    case DTYPE_IQ4_XS:
        memcpy(s + 2 * r, b, 2);
        for (size_t j = 0; j < 8; j++) {
            int high = (b[2] | b[3] << 8) >> (j * 2) & 3;
            int low = b[4 + j / 2] >> (j % 2 * 4) & 15;
            s[64 + 16 * j + r] = (uint8_t)((low | high << 4) - 32);
        }
        return;
    default: memcpy(s + 2 * r, b, 2);
    }
}

/* ---- panels --------------------------------------------------------------------------------- */

INLINE void pack_panel(uint32_t type, shape s, uint8_t *panel, const uint8_t *rows,
                       size_t row_bytes, int n_rows, int32_t n_blocks)
{
    uint32_t file_bytes = dtype_block_bytes(type);
    for (int32_t first = 0; first < n_blocks; first += s.super) {
        uint8_t *scales = panel + scales_offset(s, first);
        uint8_t *values = panel + values_offset(s, n_blocks, first);
        for (int row = 0; row < n_rows; row++) {
            const uint8_t *b = rows + (size_t)row * row_bytes +
                               (size_t)(first / s.super) * file_bytes;
            put_scales(type, scales, row, b);
            for (int i = 0; i < s.super; i++) {
                uint64_t c[4] = {0};
                read_codes(type, c, b, i);
                put_codes(value_bits(s), values + i * s.value_bytes, row, c);
            }
        }
    }
}

void pack_panels(void *packed, uint32_t type, const void *data, int32_t n_rows, int32_t n_cols,
                 int32_t first, int32_t count)
{
    size_t row_bytes = dtype_row_bytes(type, (uint64_t)n_cols);
    size_t panel_bytes = pack_panel_bytes(type, n_cols);
    int32_t n_blocks = n_cols / PACK_BLOCK;
    for (int32_t p = first; p < first + count; p++) {
        uint8_t *panel = (uint8_t *)packed + (size_t)p * panel_bytes;
        const uint8_t *rows = (const uint8_t *)data + (size_t)p * PACK_ROWS * row_bytes;
        int rest = n_rows - p * PACK_ROWS < PACK_ROWS ? n_rows - p * PACK_ROWS : PACK_ROWS;
        /* Padding between scales and values, rows past the end, and what the layout leaves free:
         * zero, so that equal files give equal bytes. */
        if (rest < PACK_ROWS || shapes[type].super > 1)
            memset(panel, 0, panel_bytes);
        else {
            size_t used = (size_t)n_blocks * shapes[type].scale_bytes;
            memset(panel + used, 0, (used + 63) / 64 * 64 - used);
        }
        switch (type) {
#define PACK(type, super, scale_bytes, value_bytes)                                                \
    case DTYPE_##type:                                                                             \
        pack_panel(DTYPE_##type, (shape){super, scale_bytes, value_bytes}, panel, rows, row_bytes, \
                   rest, n_blocks);                                                                \
        break;
            PACK_MAP(PACK)
#undef PACK
        }
    }
}

/* ---- a row back ----------------------------------------------------------------------------- */

static const int8_t iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                      1,    13,   25,  38,  53,  69,  89,  113};
/* E2M1 numbers of OCP's MX specification, doubled. */
static const int8_t fp4_values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

static float half_at(const uint8_t *p)
{
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return quants_f16_float(h);
}

/* Scale and minimum (to be added) of the sixteen values in half h of block i of a scale group: the
 * products that dequantizing the file's block makes. The minimum of types without is -0, which
 * changes no number it is added to. */
INLINE void get_scale(uint32_t type, float *scale, float *minimum, const uint8_t *s, int row, int i,
                      int h)
{
    size_t r = (size_t)row, eighth = 16 * (size_t)i + r;
    size_t sixteenth = 16 * (size_t)(2 * i + h) + r;
    *minimum = -0.0f;
    switch (type) {
    case DTYPE_MXFP4:
        *scale = quants_bits_float(s[r] < 2 ? (uint32_t)0x00200000 << s[r]
                                            : (uint32_t)(s[r] - 1) << 23);
        return;
    case DTYPE_Q8_K: memcpy(scale, s + 4 * r, 4); return;
    default: *scale = half_at(s + 2 * r);
    }
    switch (type) {
    case DTYPE_Q4_1:
    case DTYPE_Q5_1: *minimum = half_at(s + 32 + 2 * r); return;
    case DTYPE_Q4_K:
    case DTYPE_Q5_K:
        *scale *= (float)s[64 + eighth];
        *minimum = -half_at(s + 32 + 2 * r) * (float)s[192 + in_quads((size_t)i, r)];
        return;
    case DTYPE_Q6_K:
    case DTYPE_Q3_K: *scale *= (float)(int8_t)s[64 + sixteenth]; return;
    case DTYPE_Q2_K:
        *scale *= (float)(s[64 + in_quads((size_t)(2 * i + h), r)] & 15);
        *minimum = -half_at(s + 32 + 2 * r) *
                   (float)(s[64 + in_quads((size_t)(2 * i + h), r)] >> 4);
        return;
    case DTYPE_IQ4_XS: *scale *= (float)(int8_t)s[64 + eighth]; return;
    default: return;
    }
}

/* The integer that a code stands for, in units of the scale (doubled for MXFP4, as there). */
INLINE int integer(uint32_t type, int code)
{
    switch (type) {
    case DTYPE_Q4_0: return code - 8;
    case DTYPE_Q5_0: return code - 16;
    case DTYPE_Q6_K: return code - 32;
    case DTYPE_Q3_K: return code - 4;
    case DTYPE_Q4_1:
    case DTYPE_Q5_1:
    case DTYPE_Q4_K:
    case DTYPE_Q5_K:
    case DTYPE_Q2_K: return code;
    case DTYPE_IQ4_NL:
    case DTYPE_IQ4_XS: return iq4_values[code];
    case DTYPE_MXFP4: return fp4_values[code];
    default: return code - 128;
    }
}

void pack_block(uint32_t type, const void *panel, int32_t n_blocks, int32_t block,
                int16_t values[PACK_BLOCK][PACK_ROWS], float scales[2][PACK_ROWS],
                float minimums[2][PACK_ROWS])
{
    shape s = shapes[type];
    for (int row = 0; row < PACK_ROWS; row++) {
        uint8_t codes[PACK_BLOCK];
        get_codes(value_bits(s), codes, (const uint8_t *)panel + values_offset(s, n_blocks, block),
                  row);
        for (int i = 0; i < PACK_BLOCK; i++)
            values[i][row] = (int16_t)integer(type, codes[i]);
        for (int h = 0; h < 2; h++)
            get_scale(type, &scales[h][row], &minimums[h][row],
                      (const uint8_t *)panel + scales_offset(s, block), row, block % s.super, h);
    }
}

void pack_block_scales(uint32_t type, const void *panel, int32_t block, pack_scales *out)
{
    shape shape_ = shapes[type];
    const uint8_t *s = (const uint8_t *)panel + scales_offset(shape_, block);
    size_t i = (size_t)(block % shape_.super);
    memset(out, 0, sizeof *out);
    for (size_t r = 0; r < PACK_ROWS; r++) {
        const uint8_t *eighth = s + 64 + 16 * i + r, *sixteenth = s + 64 + 32 * i + r;
        if (type == DTYPE_Q8_K)
            memcpy(&out->d[r], s + 4 * r, 4);
        else
            out->d[r] = half_at(s + 2 * r);
        if (type == DTYPE_Q4_K || type == DTYPE_Q5_K || type == DTYPE_Q2_K)
            out->dmin[r] = half_at(s + 32 + 2 * r);
        for (size_t h = 0; h < 2; h++) {
            int16_t *scale = &out->scale[h][r], *minimum = &out->minimum[h][r];
            switch (type) {
            case DTYPE_Q4_K:
            case DTYPE_Q5_K:
                *scale = *eighth;
                *minimum = s[192 + in_quads(i, r)];
                break;
            case DTYPE_Q6_K:
            case DTYPE_Q3_K: *scale = (int8_t)sixteenth[16 * h]; break;
            case DTYPE_Q2_K:
                *scale = s[64 + in_quads(2 * i + h, r)] & 15;
                *minimum = s[64 + in_quads(2 * i + h, r)] >> 4;
                break;
            case DTYPE_IQ4_XS: *scale = (int8_t)*eighth; break;
            default: *scale = 1; /* Q8_K */
            }
        }
    }
}

INLINE void unpack_row(uint32_t type, shape s, float *out, const uint8_t *panel, int32_t n_blocks,
                       int row)
{
    for (int32_t block = 0; block < n_blocks; block++, out += PACK_BLOCK) {
        uint8_t codes[PACK_BLOCK];
        get_codes(value_bits(s), codes, panel + values_offset(s, n_blocks, block), row);
        for (int h = 0; h < 2; h++) {
            float scale, minimum;
            get_scale(type, &scale, &minimum, panel + scales_offset(s, block), row, block % s.super,
                      h);
            for (int i = 16 * h; i < 16 * h + 16; i++)
                out[i] = (float)integer(type, codes[i]) * scale + minimum;
            if (type == DTYPE_MXFP4)
                for (int i = 16 * h; i < 16 * h + 16; i++)
                    if (codes[i] == 8)
                        out[i] = -0.0f; /* the one number that integers lack */
        }
    }
}

void pack_row(float *out, const void *packed, uint32_t type, int32_t n_cols, int32_t row)
{
    const uint8_t *panel = (const uint8_t *)packed +
                           (size_t)(row / PACK_ROWS) * pack_panel_bytes(type, n_cols);
    switch (type) {
#define UNPACK(type, super, scale_bytes, value_bytes)                                              \
    case DTYPE_##type:                                                                             \
        unpack_row(DTYPE_##type, (shape){super, scale_bytes, value_bytes}, out, panel,             \
                   n_cols / PACK_BLOCK, row % PACK_ROWS);                                          \
        break;
        PACK_MAP(UNPACK)
#undef UNPACK
    }
}
