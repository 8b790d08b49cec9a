/* compute/cpu/matmul_neon.inl: packed products with NEON, for what the file that includes this is
 * compiled for: matmul_neon.c any 64-bit ARM, matmul_neon_dot.c the dot product (SDOT, ARMv8.2),
 * matmul_neon_i8mm.c the matrix product (SMMLA, ARMv8.6) as well.
 *
 * A vector holds four rows, a quarter of a panel. Values of up to six bits stay unsigned, which
 * signed bytes have room for, and their offset is what the sums begin with.
 *
 *   SDOT    adds four products of signed bytes to each of four 32-bit sums and takes its
 *           activations from any quad of a vector of sixteen, so nothing is broadcast.
 *   SMMLA   multiplies two tokens by two rows, eight columns each: twice SDOT's products. Two quads
 *           zipped are two rows of eight columns, two tokens zipped likewise. Its sums lie as
 *           [token 0 row 0, token 0 row 1, token 1 row 0, token 1 row 1], and all that is made of
 *           them is kept so as well, with scales doubled to match once a block: taking rows and
 *           tokens apart waits for the end of the row. Tokens go in pairs; one left over takes SDOT.
 *   neither widening multiplies (SMLAL) add products in 16 bits, as many as fit, then in 32.
 *
 * Pool threads; no state. The arithmetic's order is fixed by matmul_packed.h. */
#include <arm_neon.h>
#include <string.h>

#include "compute/cpu/matmul_packed.h"
#include "compute/cpu/quants.h"

#define INLINE static inline __attribute__((always_inline))
/* The kernels keep arrays of vectors in registers, which needs their loops gone. */
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* Vectors of rows in a panel. */
#define QUARTERS 4

/* ---- what differs between types ------------------------------------------------------------- */

INLINE uint8x16_t load(const uint8_t *p, int vector)
{
    return vld1q_u8(p + 64 * vector);
}

INLINE uint8x16_t left(uint8x16_t a, int n, int mask)
{
    return (a << (uint8_t)n) & vdupq_n_u8((uint8_t)mask);
}

INLINE uint8x16_t right(uint8x16_t a, int n, int mask)
{
    return (a >> (uint8_t)n) & vdupq_n_u8((uint8_t)mask);
}

/* As in ggml's kvalues_iq4nl and, doubled, the E2M1 numbers of OCP's MX specification. */
INLINE int8x16_t list_values(pack_kind kind)
{
    if (kind == PACK_MXFP4)
        return (int8x16_t){0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    return (int8x16_t){-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
}

INLINE uint8x16_t unsigned_quad(pack_kind kind, const uint8_t *v, int j)
{
    switch (kind) {
    case PACK_Q5_0:
    case PACK_Q5_1:
    case PACK_Q5_K:
        if (j < 5)
            return right(load(v, j), 3, 31);
        if (j == 5)
            return left(load(v, 0), 2, 0x1C) | right(load(v, 1), 1, 3);
        if (j == 6)
            return left(load(v, 1), 4, 0x10) | left(load(v, 2), 1, 0x0E) | right(load(v, 3), 2, 1);
        return left(load(v, 3), 3, 0x18) | right(load(v, 4), 0, 7);
    case PACK_Q6_K:
        if (j < 6)
            return right(load(v, j), 2, 63);
        v += j == 6 ? 0 : 192;
        return left(load(v, 0), 4, 0x30) | left(load(v, 1), 2, 0x0C) | right(load(v, 2), 0, 3);
    case PACK_Q3_K:
        if (j < 6)
            return j < 3 ? right(load(v, j), 5, 7) : right(load(v, j - 3), 2, 7);
        if (j == 6)
            return left(load(v, 0), 1, 6) | right(load(v, 1), 1, 1);
        return left(load(v, 1), 2, 4) | right(load(v, 2), 0, 3);
    case PACK_Q2_K: return right(load(v, j / 4), j % 4 * 2, 3);
    default: /* 4 bits */ return j < 4 ? right(load(v, j), 0, 15) : right(load(v, j - 4), 4, 15);
    }
}

/* Quad j of a quarter of a panel, less the offset that first_sum brings. v is the quarter's first
 * row. */
INLINE int8x16_t quad(pack_kind kind, const uint8_t *v, int j)
{
    switch (kind) {
    case PACK_IQ4_NL:
    case PACK_IQ4_XS:
    case PACK_MXFP4: return vqtbl1q_s8(list_values(kind), unsigned_quad(kind, v, j));
    case PACK_Q8_0:
    case PACK_Q8_1:
    case PACK_Q8_K: return vreinterpretq_s8_u8(load(v, j) ^ vdupq_n_u8(0x80));
    default: return vreinterpretq_s8_u8(unsigned_quad(kind, v, j));
    }
}

/* What the sums begin with: the offset of signed types that quad leaves unsigned. bias is -128 times
 * the sum of the activations. */
INLINE int32x4_t first_sum(pack_kind kind, int32_t bias)
{
    switch (kind) {
    case PACK_Q4_0: return vdupq_n_s32(bias / 16);
    case PACK_Q5_0: return vdupq_n_s32(bias / 8);
    case PACK_Q6_K: return vdupq_n_s32(bias / 4);
    case PACK_Q3_K: return vdupq_n_s32(bias / 32);
    default: return vdupq_n_s32(0);
    }
}

INLINE float32x4_t halves(const uint8_t *p)
{
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p)));
}

INLINE uint8x8_t four_bytes(const uint8_t *p)
{
    uint32_t four;
    memcpy(&four, p, sizeof four);
    return vreinterpret_u8_u32(vdup_n_u32(four));
}

INLINE uint32x4_t unsigned_bytes(const uint8_t *p)
{
    return vmovl_u16(vget_low_u16(vmovl_u8(four_bytes(p))));
}

INLINE int32x4_t signed_bytes(const uint8_t *p)
{
    int8x8_t bytes = vreinterpret_s8_u8(four_bytes(p));
    return vmovl_s16(vget_low_s16(vmovl_s8(bytes)));
}

/* Powers of two from biased exponents, halved (the values are doubled). */
INLINE float32x4_t exponent_scale(const uint8_t *p)
{
    uint32x4_t e = unsigned_bytes(p);
    uint32x4_t normal = vshlq_n_u32(vsubq_u32(e, vdupq_n_u32(1)), 23);
    uint32x4_t tiny = vshlq_u32(vdupq_n_u32(0x00200000), vreinterpretq_s32_u32(e));
    uint32x4_t is_tiny = vcltq_u32(e, vdupq_n_u32(2));
    return vreinterpretq_f32_u32(vbslq_u32(is_tiny, tiny, normal));
}

/* The small scale of a block of a type of 256 values (of its second half if second). p is the group's
 * scales; quarter q is rows 4q .. 4q+3. */
INLINE int32x4_t small_scale(pack_kind kind, const uint8_t *p, int32_t block, int quarter,
                             int second)
{
    const uint8_t *eighth = p + 64 + 4 * quarter + 16 * block;
    const uint8_t *sixteenth = p + 64 + 4 * quarter + 32 * block + 16 * second;
    switch (kind) {
    case PACK_Q4_K:
    case PACK_Q5_K: return vreinterpretq_s32_u32(unsigned_bytes(eighth));
    case PACK_IQ4_XS: return signed_bytes(eighth);
    case PACK_Q2_K: {
        uint32x4_t four = vreinterpretq_u32_u8(load(p + 64 + 16 * quarter, block / 2));
        four = vshlq_u32(four, vdupq_n_s32(-8 * (block % 2 * 2 + second)));
        return vreinterpretq_s32_u32(vandq_u32(four, vdupq_n_u32(15)));
    }
    default: return signed_bytes(sixteenth);
    }
}

/* What the small scales of a type of 256 values are times, or the scale of one of 32. */
INLINE float32x4_t base_scale(pack_kind kind, const uint8_t *p, int quarter)
{
    switch (kind) {
    case PACK_MXFP4: return exponent_scale(p + 4 * quarter);
    case PACK_Q8_K: return vld1q_f32((const float *)(const void *)(p + 16 * quarter));
    default: return halves(p + 8 * quarter);
    }
}

/* Likewise the minimum, or what small minimums are times. */
INLINE float32x4_t base_minimum(pack_kind kind, const uint8_t *p, int quarter)
{
    return matmul_has_minimum(kind) ? halves(p + 32 + 8 * quarter) : vdupq_n_f32(0);
}

/* ---- the product ---------------------------------------------------------------------------- */

/* Tokens multiplied with a quarter of a panel while it is unpacked: what the 32 registers have room
 * for, with a sum of integers and one of floats for each. */
#if defined(__ARM_FEATURE_MATMUL_INT8)
#define MOST_TOKENS     12
#define WIDTHS(X, kind) X(kind, 1) X(kind, 2) X(kind, 4) X(kind, 6) X(kind, 8) X(kind, 12)
#elif defined(__ARM_FEATURE_DOTPROD)
#define MOST_TOKENS     8
#define WIDTHS(X, kind) X(kind, 1) X(kind, 2) X(kind, 3) X(kind, 4) X(kind, 6) X(kind, 8)
#else
#define MOST_TOKENS     4
#define WIDTHS(X, kind) X(kind, 1) X(kind, 2) X(kind, 3) X(kind, 4)
#endif

#if defined(__ARM_FEATURE_DOTPROD)

/* sum + w times quad j of the sixteen activations x. The instruction holds j. */
INLINE int32x4_t dot(int32x4_t sum, int8x16_t w, int8x16_t x, int j)
{
    switch (j) {
    case 0: return vdotq_laneq_s32(sum, w, x, 0);
    case 1: return vdotq_laneq_s32(sum, w, x, 1);
    case 2: return vdotq_laneq_s32(sum, w, x, 2);
    default: return vdotq_laneq_s32(sum, w, x, 3);
    }
}

/* sum + w times the four activations in every lane of x. */
INLINE int32x4_t dot_one(int32x4_t sum, int8x16_t w, int8x16_t x)
{
    return vdotq_s32(sum, w, x);
}

/* sum[t] += the products of the quads of one half (0 or 1) with T tokens. */
INLINE void dots(pack_kind kind, int T, int32x4_t *sum, const uint8_t *v, const matmul_input *in,
                 int half)
{
    int8x16_t x[MOST_TOKENS];
    UNROLL
    for (int t = 0; t < T; t++)
        x[t] = vld1q_s8(in[t].q + 16 * half);
    UNROLL
    for (int j = 0; j < 4; j++) {
        int8x16_t w = quad(kind, v, 4 * half + j);
        UNROLL
        for (int t = 0; t < T; t++)
            sum[t] = dot(sum[t], w, x[t], j);
    }
}

#else

/* How many products of a value and an activation (up to 127) can be added in 16 bits, of the four
 * quads of a half. */
INLINE int products_that_fit(pack_kind kind)
{
    switch (kind) {
    case PACK_Q8_0:
    case PACK_Q8_1:
    case PACK_Q8_K:
    case PACK_IQ4_NL:
    case PACK_IQ4_XS: return 2; /* 128 * 127 each */
    default: return 4;          /* 63 * 127 */
    }
}

/* Four sums of a row's four products from the products of two rows each. */
INLINE int32x4_t add_products(int16x8_t low, int16x8_t high)
{
    return vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
}

INLINE int32x4_t dot_one(int32x4_t sum, int8x16_t w, int8x16_t x)
{
    return vaddq_s32(sum, add_products(vmull_s8(vget_low_s8(w), vget_low_s8(x)),
                                       vmull_high_s8(w, x)));
}

INLINE void dots(pack_kind kind, int T, int32x4_t *sum, const uint8_t *v, const matmul_input *in,
                 int half)
{
    int fit = products_that_fit(kind);
    int16x8_t low[MOST_TOKENS], high[MOST_TOKENS]; /* rows 0 and 1, rows 2 and 3 */
    UNROLL
    for (int j = 0; j < 4; j++) {
        int8x16_t w = quad(kind, v, 4 * half + j);
        UNROLL
        for (int t = 0; t < T; t++) {
            const void *four = in[t].q + 16 * half + 4 * j;
            int8x16_t x = vreinterpretq_s8_s32(vld1q_dup_s32(four));
            if (j % fit == 0) {
                low[t] = vmull_s8(vget_low_s8(w), vget_low_s8(x));
                high[t] = vmull_high_s8(w, x);
            } else {
                low[t] = vmlal_s8(low[t], vget_low_s8(w), vget_low_s8(x));
                high[t] = vmlal_high_s8(high[t], w, x);
            }
            if (j % fit == fit - 1)
                sum[t] = vaddq_s32(sum[t], add_products(low[t], high[t]));
        }
    }
}

#endif

/* products += sum * small scale. */
INLINE int32x4_t add_scaled(pack_kind kind, int32x4_t products, int32x4_t sum, int32x4_t scale)
{
    return kind == PACK_Q8_K ? vaddq_s32(products, sum) : vmlaq_s32(products, sum, scale);
}

/* sum[t] = first_sum and a block's (or a half's, for types that have two scales) products. */
INLINE void block_dots(pack_kind kind, int T, int32x4_t *sum, const uint8_t *v,
                       const matmul_input *in, int second)
{
    int both = matmul_has_halves(kind);
    UNROLL
    for (int t = 0; t < T; t++)
        sum[t] = first_sum(kind, both ? in[t].half_bias[second] : in[t].bias);
    dots(kind, T, sum, v, in, both ? second : 0);
    if (!both)
        dots(kind, T, sum, v, in, 1);
}

/* Small minimums of four half blocks (or blocks), k-th four of a group. */
INLINE int8x16_t four_minimums(pack_kind kind, const uint8_t *p, int quarter, int k)
{
    uint8x16_t w = kind == PACK_Q2_K ? right(load(p + 64 + 16 * quarter, k), 4, 15)
                                     : load(p + 192 + 16 * quarter, k);
    return vreinterpretq_s8_u8(w);
}

INLINE int32x4_t add_digits(int32x4_t sum, int8x16_t w, const int8_t *digits)
{
    int32_t four;
    memcpy(&four, digits, sizeof four);
    return dot_one(sum, w, vreinterpretq_s8_s32(vdupq_n_s32(four)));
}

/* The sum over a group of small minimums times the activations' sums, of one token: the high digits'
 * products, then, 256 times smaller, the low ones'. digits is the first block's; block k's are
 * k * step bytes on. */
INLINE int32x4_t add_minimums(pack_kind kind, const uint8_t *p, const int8_t *digits, size_t step,
                              int quarter)
{
    int32x4_t sum = vdupq_n_s32(0);
    int n = kind == PACK_Q2_K ? 4 : 2;
    UNROLL
    for (int k = 0; k < n; k++)
        sum = add_digits(sum, four_minimums(kind, p, quarter, k), digits + (size_t)(n + k) * step);
    sum = vshlq_n_s32(sum, 8);
    UNROLL
    for (int k = 0; k < n; k++)
        sum = add_digits(sum, four_minimums(kind, p, quarter, k), digits + (size_t)k * step);
    return sum;
}

/* Asks memory for the block that lies ahead of a panel's block. */
INLINE void fetch_ahead(pack_kind kind, int32_t b, const uint8_t *p, const uint8_t *v,
                        size_t panel_bytes)
{
    size_t ahead = panel_bytes < 16384 ? 2 * panel_bytes : 16384;
    UNROLL
    for (int line = 0; line < matmul_value_bytes(kind); line += 64)
        __builtin_prefetch((const char *)v + ahead + line, 0, 2);
    __builtin_prefetch((const char *)p + ahead + matmul_scales_ahead(kind, b), 0, 2);
}

/* Adds a group of count blocks of a type of 32 values to acc, for H quarters of the panel. */
INLINE void add_group_32(pack_kind kind, int T, int H, int quarter,
                         float32x4_t (*acc)[MOST_TOKENS], const uint8_t *panel, size_t panel_bytes,
                         int32_t n_blocks, int32_t first, int32_t count, const matmul_input *in,
                         size_t stride)
{
    float32x4_t g[QUARTERS][MOST_TOKENS];
    const matmul_input *group = in;
    UNROLL
    for (int h = 0; h < H; h++) {
        UNROLL
        for (int t = 0; t < T; t++)
            g[h][t] = vdupq_n_f32(0);
    }
    for (int32_t b = first; b < first + count; b++, in += stride) {
        const uint8_t *p = matmul_scales_at(kind, panel, b);
        const uint8_t *v = matmul_values_at(kind, panel, n_blocks, b);
        if (quarter == 0)
            fetch_ahead(kind, b, p, v, panel_bytes);
        UNROLL
        for (int h = 0; h < H; h++) {
            int32x4_t sum[MOST_TOKENS];
            float32x4_t scale = base_scale(kind, p, quarter + h);
            float32x4_t minimum = base_minimum(kind, p, quarter + h);
            block_dots(kind, T, sum, v + 16 * (quarter + h), in, 0);
            UNROLL
            for (int t = 0; t < T; t++) {
                g[h][t] = vfmaq_f32(g[h][t], vcvtq_f32_s32(sum[t]), scale);
                if (matmul_has_minimum(kind))
                    g[h][t] = vfmaq_n_f32(g[h][t], minimum, in[t].sum);
            }
        }
    }
    UNROLL
    for (int h = 0; h < H; h++) {
        UNROLL
        for (int t = 0; t < T; t++)
            acc[h][t] = vfmaq_n_f32(acc[h][t], g[h][t], group[t].d);
    }
}

/* The same of a type of 256 values: all MATMUL_GROUP blocks. p is the group's scales. */
INLINE void add_group_256(pack_kind kind, int T, int H, int quarter,
                          float32x4_t (*acc)[MOST_TOKENS], const uint8_t *p, size_t panel_bytes,
                          const matmul_input *in, size_t stride)
{
    int32x4_t products[QUARTERS][MOST_TOKENS];
    const uint8_t *v = p + matmul_scale_bytes(kind);
    const matmul_input *block = in;
    UNROLL
    for (int h = 0; h < H; h++) {
        UNROLL
        for (int t = 0; t < T; t++)
            products[h][t] = vdupq_n_s32(0);
    }
    for (int32_t b = 0; b < MATMUL_GROUP; b++, block += stride, v += matmul_value_bytes(kind)) {
        if (quarter == 0)
            fetch_ahead(kind, b, p, v, panel_bytes);
        UNROLL
        for (int h = 0; h < H; h++) {
            UNROLL
            for (int second = 0; second < 1 + matmul_has_halves(kind); second++) {
                int32x4_t sum[MOST_TOKENS], scale = small_scale(kind, p, b, quarter + h, second);
                block_dots(kind, T, sum, v + 16 * (quarter + h), block, second);
                UNROLL
                for (int t = 0; t < T; t++)
                    products[h][t] = add_scaled(kind, products[h][t], sum[t], scale);
            }
        }
    }
    UNROLL
    for (int h = 0; h < H; h++) {
        float32x4_t d = base_scale(kind, p, quarter + h), dmin = base_minimum(kind, p, quarter + h);
        UNROLL
        for (int t = 0; t < T; t++) {
            float32x4_t g = vmulq_f32(vcvtq_f32_s32(products[h][t]), d);
            if (matmul_has_minimum(kind)) {
                const int8_t *digits = kind == PACK_Q2_K ? in[t].half_digits : in[t].block_digits;
                int32x4_t sum = add_minimums(kind, p, digits, stride * sizeof *in, quarter + h);
                g = vfmsq_f32(g, dmin, vcvtq_f32_s32(sum));
            }
            acc[h][t] = vfmaq_n_f32(acc[h][t], g, in[t].d);
        }
    }
}

/* H quarters of the panel from quarter on, in one go: all for one or two tokens, so that memory is
 * read in one stream; fewer for more, whose sums fill the registers. */
INLINE void tile_quarters(pack_kind kind, int T, int H, int quarter, float (*sums)[PACK_ROWS],
                          const uint8_t *panel, size_t panel_bytes, int32_t n_blocks,
                          const matmul_input *in, size_t stride)
{
    float32x4_t acc[QUARTERS][MOST_TOKENS];
    UNROLL
    for (int h = 0; h < H; h++) {
        UNROLL
        for (int t = 0; t < T; t++)
            acc[h][t] = vdupq_n_f32(0);
    }
    for (int32_t b = 0; b < n_blocks; b += MATMUL_GROUP, in += MATMUL_GROUP * stride) {
        int32_t left = n_blocks - b;
        if (matmul_super(kind) == 1)
            add_group_32(kind, T, H, quarter, acc, panel, panel_bytes, n_blocks, b,
                         left < MATMUL_GROUP ? left : MATMUL_GROUP, in, stride);
        else
            add_group_256(kind, T, H, quarter, acc, matmul_scales_at(kind, panel, b), panel_bytes,
                          in, stride);
    }
    UNROLL
    for (int h = 0; h < H; h++) {
        UNROLL
        for (int t = 0; t < T; t++)
            vst1q_f32(sums[t] + 4 * (quarter + h), acc[h][t]);
    }
}

#if defined(__ARM_FEATURE_MATMUL_INT8)

/* ---- two tokens by two rows ----------------------------------------------------------------- */

/* A block of two tokens as SMMLA wants it, in place of their two matmul_inputs (pair_up). What is
 * one number a token stands there twice, side by side, as each meets two rows. */
typedef struct pair_block {
    int8_t x[4][16];        /* eight columns of the first, eight of the second */
    float d[4], sum[4];      /* doubled */
    int32_t half_bias[2][2]; /* [half][token] */
    int8_t half_digits[2][4], block_digits[2][4]; /* of each token, not doubled */
} pair_block;

_Static_assert(sizeof(pair_block) == 2 * sizeof(matmul_input), "they take the same memory");

/* What the sums begin with: first_sum of each token, doubled. half is 0 or 1, or 2 for both. */
INLINE int32x4_t first_sums(pack_kind kind, const pair_block *in, int half)
{
    int32_t none = vgetq_lane_s32(first_sum(kind, -128), 0) == 0; /* a constant of the kind */
    if (none)
        return vdupq_n_s32(0);
    int32x2_t bias = half < 2 ? vld1_s32(in->half_bias[half])
                              : vadd_s32(vld1_s32(in->half_bias[0]), vld1_s32(in->half_bias[1]));
    int32x4_t a = vcombine_s32(bias, vdup_n_s32(0));
    a = vzip1q_s32(a, a);
    switch (kind) { /* multiples of 128, so a shift is the division */
    case PACK_Q4_0: return vshrq_n_s32(a, 4);
    case PACK_Q5_0: return vshrq_n_s32(a, 3);
    case PACK_Q6_K: return vshrq_n_s32(a, 2);
    default: return vshrq_n_s32(a, 5);
    }
}

/* Rearranges two neighbouring tokens' block. */
INLINE void pair_up(matmul_input *two)
{
    matmul_input a = two[0], b = two[1];
    pair_block *p = (pair_block *)(void *)two;
    for (int j = 0; j < 4; j++) {
        memcpy(p->x[j], a.q + 8 * j, 8);
        memcpy(p->x[j] + 8, b.q + 8 * j, 8);
    }
    for (int i = 0; i < 2; i++) {
        p->d[i] = a.d;
        p->d[2 + i] = b.d;
        p->sum[i] = a.sum;
        p->sum[2 + i] = b.sum;
        p->half_bias[i][0] = a.half_bias[i];
        p->half_bias[i][1] = b.half_bias[i];
    }
    memcpy(p->half_digits[0], a.half_digits, 4);
    memcpy(p->half_digits[1], b.half_digits, 4);
    memcpy(p->block_digits[0], a.block_digits, 4);
    memcpy(p->block_digits[1], b.block_digits, 4);
}

/* Rows 0 and 1 (pair 0), or 2 and 3, of a number for each of four rows, twice. */
INLINE float32x4_t row_pair(float32x4_t rows, int pair)
{
    float64x2_t a = vreinterpretq_f64_f32(rows);
    return vreinterpretq_f32_f64(pair ? vdupq_laneq_f64(a, 1) : vdupq_laneq_f64(a, 0));
}

/* sum[i][p] += the products of the quads of one half with P pairs of tokens, for row pair i. */
INLINE void pair_dots(pack_kind kind, int P, int32x4_t (*sum)[MOST_TOKENS / 2], const uint8_t *v,
                      const pair_block *in, int half)
{
    UNROLL
    for (int j = 2 * half; j < 2 * half + 2; j++) {
        int32x4_t a = vreinterpretq_s32_s8(quad(kind, v, 2 * j));
        int32x4_t b = vreinterpretq_s32_s8(quad(kind, v, 2 * j + 1));
        int8x16_t w0 = vreinterpretq_s8_s32(vzip1q_s32(a, b));
        int8x16_t w1 = vreinterpretq_s8_s32(vzip2q_s32(a, b));
        UNROLL
        for (int p = 0; p < P; p++) {
            int8x16_t x = vld1q_s8(in[p].x[j]);
            sum[0][p] = vmmlaq_s32(sum[0][p], x, w0);
            sum[1][p] = vmmlaq_s32(sum[1][p], x, w1);
        }
    }
}

INLINE int32x4_t row_pair_int(int32x4_t rows, int pair)
{
    return vreinterpretq_s32_f32(row_pair(vreinterpretq_f32_s32(rows), pair));
}

/* sum[row pair][pair of tokens] = first_sums and a block's (or a half's) products. */
INLINE void block_pair_dots(pack_kind kind, int P, int32x4_t (*sum)[MOST_TOKENS / 2],
                            const uint8_t *v, const pair_block *in, int second)
{
    int both = matmul_has_halves(kind);
    UNROLL
    for (int p = 0; p < P; p++)
        sum[0][p] = sum[1][p] = first_sums(kind, in + p, both ? second : 2);
    pair_dots(kind, P, sum, v, in, both ? second : 0);
    if (!both)
        pair_dots(kind, P, sum, v, in, 1);
}

/* As add_group_32, for P pairs of tokens and one quarter; acc[row pair][pair of tokens]. */
INLINE void add_pairs_32(pack_kind kind, int P, int quarter, float32x4_t (*acc)[MOST_TOKENS / 2],
                         const uint8_t *panel, size_t panel_bytes, int32_t n_blocks, int32_t first,
                         int32_t count, const matmul_input *in, size_t stride)
{
    float32x4_t g[2][MOST_TOKENS / 2];
    const pair_block *group = (const pair_block *)(const void *)in;
    UNROLL
    for (int p = 0; p < P; p++)
        g[0][p] = g[1][p] = vdupq_n_f32(0);
    for (int32_t b = first; b < first + count; b++, in += stride) {
        const uint8_t *s = matmul_scales_at(kind, panel, b);
        const uint8_t *v = matmul_values_at(kind, panel, n_blocks, b);
        const pair_block *block = (const pair_block *)(const void *)in;
        int32x4_t sum[2][MOST_TOKENS / 2];
        float32x4_t scale = base_scale(kind, s, quarter), minimum = base_minimum(kind, s, quarter);
        if (quarter == 0)
            fetch_ahead(kind, b, s, v, panel_bytes);
        block_pair_dots(kind, P, sum, v + 16 * quarter, block, 0);
        UNROLL
        for (int p = 0; p < P; p++) {
            UNROLL
            for (int i = 0; i < 2; i++) {
                g[i][p] = vfmaq_f32(g[i][p], vcvtq_f32_s32(sum[i][p]), row_pair(scale, i));
                if (matmul_has_minimum(kind))
                    g[i][p] = vfmaq_f32(g[i][p], row_pair(minimum, i), vld1q_f32(block[p].sum));
            }
        }
    }
    UNROLL
    for (int p = 0; p < P; p++) {
        UNROLL
        for (int i = 0; i < 2; i++)
            acc[i][p] = vfmaq_f32(acc[i][p], g[i][p], vld1q_f32(group[p].d));
    }
}

/* As add_group_256, likewise. s is the group's scales. */
INLINE void add_pairs_256(pack_kind kind, int P, int quarter, float32x4_t (*acc)[MOST_TOKENS / 2],
                          const uint8_t *s, size_t panel_bytes, const matmul_input *in,
                          size_t stride)
{
    int32x4_t products[2][MOST_TOKENS / 2];
    const uint8_t *v = s + matmul_scale_bytes(kind);
    const pair_block *group = (const pair_block *)(const void *)in;
    UNROLL
    for (int p = 0; p < P; p++)
        products[0][p] = products[1][p] = vdupq_n_s32(0);
    for (int32_t b = 0; b < MATMUL_GROUP; b++, in += stride, v += matmul_value_bytes(kind)) {
        if (quarter == 0)
            fetch_ahead(kind, b, s, v, panel_bytes);
        UNROLL
        for (int second = 0; second < 1 + matmul_has_halves(kind); second++) {
            int32x4_t sum[2][MOST_TOKENS / 2], scale = small_scale(kind, s, b, quarter, second);
            block_pair_dots(kind, P, sum, v + 16 * quarter,
                            (const pair_block *)(const void *)in, second);
            UNROLL
            for (int p = 0; p < P; p++) {
                UNROLL
                for (int i = 0; i < 2; i++)
                    products[i][p] = add_scaled(kind, products[i][p], sum[i][p],
                                                row_pair_int(scale, i));
            }
        }
    }
    float32x4_t d = base_scale(kind, s, quarter), dmin = base_minimum(kind, s, quarter);
    UNROLL
    for (int p = 0; p < P; p++) {
        int32x4_t minimums[2] = {vdupq_n_s32(0), vdupq_n_s32(0)};
        if (matmul_has_minimum(kind)) {
            int32x4_t of[2]; /* each token's, for the four rows */
            UNROLL
            for (int t = 0; t < 2; t++)
                of[t] = add_minimums(kind, s,
                                     kind == PACK_Q2_K ? group[p].half_digits[t]
                                                       : group[p].block_digits[t],
                                     stride * sizeof *in, quarter);
            minimums[0] = vcombine_s32(vget_low_s32(of[0]), vget_low_s32(of[1]));
            minimums[1] = vcombine_s32(vget_high_s32(of[0]), vget_high_s32(of[1]));
        }
        UNROLL
        for (int i = 0; i < 2; i++) {
            float32x4_t g = vmulq_f32(vcvtq_f32_s32(products[i][p]), row_pair(d, i));
            if (matmul_has_minimum(kind))
                g = vfmsq_f32(g, row_pair(dmin, i), vcvtq_f32_s32(minimums[i]));
            acc[i][p] = vfmaq_f32(acc[i][p], g, vld1q_f32(group[p].d));
        }
    }
}

/* As tile_quarters, P pairs of tokens. */
INLINE void tile_pairs(pack_kind kind, int P, int H, int quarter, float (*sums)[PACK_ROWS],
                       const uint8_t *panel, size_t panel_bytes, int32_t n_blocks,
                       const matmul_input *in, size_t stride)
{
    float32x4_t acc[QUARTERS][2][MOST_TOKENS / 2];
    UNROLL
    for (int i = 0; i < 2 * H; i++) {
        UNROLL
        for (int p = 0; p < P; p++)
            acc[i / 2][i % 2][p] = vdupq_n_f32(0);
    }
    for (int32_t b = 0; b < n_blocks; b += MATMUL_GROUP, in += MATMUL_GROUP * stride) {
        int32_t left = n_blocks - b;
        UNROLL
        for (int h = 0; h < H; h++) {
            if (matmul_super(kind) == 1)
                add_pairs_32(kind, P, quarter + h, acc[h], panel, panel_bytes, n_blocks, b,
                             left < MATMUL_GROUP ? left : MATMUL_GROUP, in, stride);
            else
                add_pairs_256(kind, P, quarter + h, acc[h], matmul_scales_at(kind, panel, b),
                              panel_bytes, in, stride);
        }
    }
    UNROLL
    for (int i = 0; i < 2 * H; i++) {
        UNROLL
        for (int p = 0; p < P; p++) {
            float32x4_t four = acc[i / 2][i % 2][p];
            vst1_f32(sums[2 * p] + 4 * quarter + 2 * i, vget_low_f32(four));
            vst1_f32(sums[2 * p + 1] + 4 * quarter + 2 * i, vget_high_f32(four));
        }
    }
}

#define TILE_QUARTERS(kind, T, H, quarter)                                                         \
    tile_pairs(kind, (T) / 2, H, quarter, sums, panel, panel_bytes, n_blocks, in, stride)

#else

#define TILE_QUARTERS(kind, T, H, quarter)                                                         \
    tile_quarters(kind, T, H, quarter, sums, panel, panel_bytes, n_blocks, in, stride)

#endif

INLINE void tile(pack_kind kind, int T, float (*sums)[PACK_ROWS], const uint8_t *panel,
                 size_t panel_bytes, int32_t n_blocks, const matmul_input *in, size_t stride)
{
    if (T == 1) {
        tile_quarters(kind, 1, 4, 0, sums, panel, panel_bytes, n_blocks, in, stride);
    } else if (T == 2) {
        TILE_QUARTERS(kind, T, 4, 0);
    } else if (T <= 4) {
        TILE_QUARTERS(kind, T, 2, 0);
        TILE_QUARTERS(kind, T, 2, 2);
    } else {
        TILE_QUARTERS(kind, T, 1, 0);
        TILE_QUARTERS(kind, T, 1, 1);
        TILE_QUARTERS(kind, T, 1, 2);
        TILE_QUARTERS(kind, T, 1, 3);
    }
}

/* As quad, j not constant. */
INLINE int8x16_t quad_at(pack_kind kind, const uint8_t *v, uint32_t j)
{
    switch (j) {
    case 0: return quad(kind, v, 0);
    case 1: return quad(kind, v, 1);
    case 2: return quad(kind, v, 2);
    case 3: return quad(kind, v, 3);
    case 4: return quad(kind, v, 4);
    case 5: return quad(kind, v, 5);
    case 6: return quad(kind, v, 6);
    default: return quad(kind, v, 7);
    }
}

INLINE void correct(pack_kind kind, float *sums, const uint8_t *panel, int32_t n_blocks,
                    const matmul_list *list)
{
    for (int quarter = 0; quarter < QUARTERS; quarter++) {
        float32x4_t acc = vld1q_f32(sums + 4 * quarter);
        for (uint32_t i = 0; i < list->count; i++) {
            const matmul_outlier *o = &list->items[i];
            int32_t b = (int32_t)(o->quad / 8), four;
            memcpy(&four, o->q, sizeof four);
            const uint8_t *p = matmul_scales_at(kind, panel, b);
            int8x16_t w = quad_at(kind, matmul_values_at(kind, panel, n_blocks, b) + 16 * quarter,
                                  o->quad % 8);
            int32x4_t sum = dot_one(first_sum(kind, o->bias), w,
                                    vreinterpretq_s8_s32(vdupq_n_s32(four)));
            float32x4_t scale = base_scale(kind, p, quarter);
            if (matmul_super(kind) == MATMUL_GROUP && kind != PACK_Q8_K)
                scale = vmulq_f32(scale, vcvtq_f32_s32(small_scale(kind, p, b % 8, quarter,
                                                                   (int)(o->quad & 4) / 4)));
            acc = vfmaq_n_f32(acc, vmulq_f32(vcvtq_f32_s32(sum), scale), o->d);
        }
        vst1q_f32(sums + 4 * quarter, acc);
    }
}

/* ---- activations ---------------------------------------------------------------------------- */

static float energy(const float *x, int32_t n)
{
    float32x4_t sums[4] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
    for (int32_t i = 0; i < n; i += 16)
        for (int k = 0; k < 4; k++) {
            float32x4_t a = vld1q_f32(x + i + 4 * k);
            sums[k] = vaddq_f32(sums[k], vmulq_f32(a, a));
        }
    float32x4_t s = vaddq_f32(vaddq_f32(sums[0], sums[2]), vaddq_f32(sums[1], sums[3]));
    float32x2_t pair = vadd_f32(vget_low_f32(s), vget_high_f32(s));
    return vget_lane_f32(pair, 0) + vget_lane_f32(pair, 1);
}

/* As integers magnitudes are in the same order, with infinity and NaN above all numbers. */
INLINE uint32x4_t magnitudes(const float *x)
{
    return vreinterpretq_u32_f32(vabsq_f32(vld1q_f32(x)));
}

static float magnitude(const float *x, int32_t n)
{
    uint32x4_t a = vdupq_n_u32(0), b = a;
    for (int32_t i = 0; i < n; i += 8) {
        a = vmaxq_u32(a, magnitudes(x + i));
        b = vmaxq_u32(b, magnitudes(x + i + 4));
    }
    return quants_bits_float(vmaxvq_u32(vmaxq_u32(a, b)));
}

static float magnitude_below(const float *x, int32_t n, float most)
{
    uint32x4_t largest = vdupq_n_u32(0), limit = vreinterpretq_u32_f32(vdupq_n_f32(most));
    for (int32_t i = 0; i < n; i += 4) {
        uint32x4_t a = magnitudes(x + i);
        largest = vmaxq_u32(largest, vandq_u32(a, vcleq_u32(a, limit)));
    }
    return quants_bits_float(vmaxvq_u32(largest));
}

/* The bytes of sixteen integers, which fit them. */
INLINE int8x16_t to_bytes(const int32x4_t a[4])
{
    int16x8_t low = vcombine_s16(vmovn_s32(a[0]), vmovn_s32(a[1]));
    int16x8_t high = vcombine_s16(vmovn_s32(a[2]), vmovn_s32(a[3]));
    return vcombine_s8(vmovn_s16(low), vmovn_s16(high));
}

INLINE uint32_t put_block(matmul_input *in, int32_t sums[2], int8_t high[32], const float *x,
                          float inverse)
{
    int32x4_t n[8], most = vdupq_n_s32(0);
    uint32_t quads = 0;
    for (int i = 0; i < 8; i++) {
        n[i] = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 4 * i), inverse));
        most = vmaxq_s32(most, vabsq_s32(n[i]));
    }
    if (vmaxvq_s32(most) > 127) {
        for (int i = 0; i < 8; i++) {
            float32x4_t share = vmulq_n_f32(vcvtq_f32_s32(n[i]), 1.0f / MATMUL_HIGH);
            int32x4_t h = vcvtnq_s32_f32(share);
            int8x8_t four = vmovn_s16(vcombine_s16(vmovn_s32(h), vdup_n_s16(0)));
            vst1_lane_s32((int32_t *)(void *)(high + 4 * i), vreinterpret_s32_s8(four), 0);
            quads |= (uint32_t)(vmaxvq_u32(vreinterpretq_u32_s32(vabsq_s32(h))) != 0) << i;
            n[i] = vmlsq_n_s32(n[i], h, MATMUL_HIGH);
        }
    }
    for (int h = 0; h < 2; h++) {
        int8x16_t q = to_bytes(n + 4 * h);
        vst1q_s8(in->q + 16 * h, q);
        sums[h] = vaddlvq_s8(q);
    }
    in->bias = -128 * (sums[0] + sums[1]);
    in->half_bias[0] = -128 * sums[0];
    in->half_bias[1] = -128 * sums[1];
    return quads;
}

#if defined(__ARM_FEATURE_MATMUL_INT8)

#define prepare prepare_each
#include "compute/cpu/matmul_prepare.inl"
#undef prepare

/* Ranges begin at even tokens, and tiles have room for whole pairs: what a tile leaves over is its
 * last token, which stays as it is. */
_Static_assert(MATMUL_TILE % 2 == 0, "pairs do not straddle tiles");

static void prepare(void *prepared, const float *x, int32_t first_token, int32_t count,
                    int32_t n_tokens, int32_t n_cols)
{
    int32_t n_blocks = n_cols / PACK_BLOCK, end = first_token + count;
    size_t tile_bytes = matmul_tile_bytes(MATMUL_TILE, n_blocks);
    prepare_each(prepared, x, first_token, count, n_tokens, n_cols);
    for (int32_t t = first_token; t + 1 < end; t += 2) {
        uint8_t *tile = (uint8_t *)prepared + (size_t)(t / MATMUL_TILE) * tile_bytes;
        int32_t in_tile = t % MATMUL_TILE, rest = n_tokens - (t - in_tile);
        int32_t tile_count = rest < MATMUL_TILE ? rest : MATMUL_TILE;
        matmul_input *in = (matmul_input *)(void *)tile + in_tile;
        for (int32_t b = 0; b < n_blocks; b++, in += tile_count)
            pair_up(in);
    }
}

#else

#include "compute/cpu/matmul_prepare.inl"

#endif

/* ---- one function for each type and number of tokens ---------------------------------------- */

#define TILE(kind, T)                                                                              \
    static void tile_##kind##_##T(float(*sums)[PACK_ROWS], const uint8_t *panel,                   \
                                  size_t panel_bytes, int32_t n_blocks, const matmul_input *input, \
                                  size_t stride)                                                   \
    {                                                                                              \
        tile(PACK_##kind, T, sums, panel, panel_bytes, n_blocks, input, stride);                   \
    }
#define CORRECT(kind)                                                                              \
    static void correct_##kind(float *sums, const uint8_t *panel, int32_t n_blocks,                \
                               const matmul_list *list)                                            \
    {                                                                                              \
        correct(PACK_##kind, sums, panel, n_blocks, list);                                         \
    }
