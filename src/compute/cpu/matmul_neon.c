/* compute/cpu/matmul_neon.c: packed products with NEON and its dot product (SDOT, ARMv8.2).
 *
 * A vector holds four rows, a quarter of a panel. SDOT adds four products of signed bytes to each
 * of four 32-bit sums and takes its activations from any quad of a vector of sixteen, so nothing is
 * broadcast. Values of up to six bits stay unsigned, which signed bytes have room for, and their
 * offset is what the sums begin with.
 *
 * The matrix instruction (SMMLA) does twice the products, but leaves rows and tokens interleaved two
 * by two, and every block has its own scale: taking that apart once a block costs what it saves.
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

INLINE float32x4_t signed_bytes(const uint8_t *p)
{
    int8x8_t bytes = vreinterpret_s8_u8(four_bytes(p));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))));
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

/* Scales and minimums of a block; [1] is the second half's. Minimums are to be subtracted if
 * matmul_minimum_is_negative. */
typedef struct scales {
    float32x4_t scale[2], minimum[2];
} scales;

/* p is the block's scales; quarter q is rows 4q .. 4q+3. */
INLINE scales load_scales(pack_kind kind, const uint8_t *p, int32_t block, int quarter)
{
    const float32x4_t zero = vdupq_n_f32(0);
    scales s = {{zero, zero}, {zero, zero}};
    const uint8_t *small = p + 64 + 4 * quarter, *first = small + (size_t)block % 8 * 16;
    const uint8_t *second = small + (size_t)block % 8 * 32; /* of types with halves */
    switch (kind) {
    case PACK_MXFP4: s.scale[0] = exponent_scale(p + 4 * quarter); return s;
    case PACK_Q8_K:
        s.scale[0] = vld1q_f32((const float *)(const void *)(p + 16 * quarter));
        return s;
    default: break;
    }
    float32x4_t d = halves(p + 8 * quarter);
    s.scale[0] = d;
    switch (kind) {
    case PACK_Q4_1:
    case PACK_Q5_1: s.minimum[0] = halves(p + 32 + 8 * quarter); break;
    case PACK_Q4_K:
    case PACK_Q5_K:
        s.scale[0] = vmulq_f32(d, vcvtq_f32_u32(unsigned_bytes(first)));
        s.minimum[0] = vmulq_f32(halves(p + 32 + 8 * quarter),
                                 vcvtq_f32_u32(unsigned_bytes(first + 128)));
        break;
    case PACK_Q6_K:
    case PACK_Q3_K:
        s.scale[0] = vmulq_f32(d, signed_bytes(second));
        s.scale[1] = vmulq_f32(d, signed_bytes(second + 16));
        break;
    case PACK_IQ4_XS: s.scale[0] = vmulq_f32(d, signed_bytes(first)); break;
    case PACK_Q2_K:
        for (int i = 0; i < 2; i++) {
            uint32x4_t both = unsigned_bytes(second + 16 * i);
            s.scale[i] = vmulq_f32(d, vcvtq_f32_u32(vandq_u32(both, vdupq_n_u32(15))));
            s.minimum[i] = vmulq_f32(halves(p + 32 + 8 * quarter),
                                     vcvtq_f32_u32(vshrq_n_u32(both, 4)));
        }
        break;
    default: break;
    }
    return s;
}

/* ---- the product ---------------------------------------------------------------------------- */

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

/* sum[t] += the products of the quads of one half (0 or 1) with T tokens. */
INLINE void dots(pack_kind kind, int T, int32x4_t *sum, const uint8_t *v, const matmul_input *in,
                 int half)
{
    int8x16_t x[4];
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

INLINE float32x4_t subtract_or_add(pack_kind kind, float32x4_t minimum, float sum, float32x4_t acc)
{
    if (matmul_minimum_is_negative(kind))
        return vfmsq_n_f32(acc, minimum, sum);
    return vfmaq_n_f32(acc, minimum, sum);
}

/* Adds one block of T <= 4 tokens to acc, for four rows. */
INLINE void add_block(pack_kind kind, int T, float32x4_t *acc, const uint8_t *v, scales s,
                      const matmul_input *in)
{
    int32x4_t sum[4];
    float32x4_t y[4];
    int both = matmul_has_halves(kind);
    UNROLL
    for (int t = 0; t < T; t++)
        sum[t] = first_sum(kind, both ? in[t].half_bias[0] : in[t].bias);
    dots(kind, T, sum, v, in, 0);
    if (both) {
        UNROLL
        for (int t = 0; t < T; t++) {
            y[t] = vmulq_f32(vcvtq_f32_s32(sum[t]), s.scale[0]);
            sum[t] = first_sum(kind, in[t].half_bias[1]);
        }
    }
    dots(kind, T, sum, v, in, 1);
    UNROLL
    for (int t = 0; t < T; t++) {
        float32x4_t f = vcvtq_f32_s32(sum[t]);
        y[t] = both ? vfmaq_f32(y[t], f, s.scale[1]) : vmulq_f32(f, s.scale[0]);
        acc[t] = vfmaq_n_f32(acc[t], y[t], in[t].d);
        if (!matmul_has_minimum(kind))
            continue;
        acc[t] = subtract_or_add(kind, s.minimum[0], both ? in[t].half_sum[0] : in[t].sum, acc[t]);
        if (both)
            acc[t] = subtract_or_add(kind, s.minimum[1], in[t].half_sum[1], acc[t]);
    }
}

/* H quarters of the panel from quarter on, in one go: all for one or two tokens, so that memory is
 * read in one stream; two after two for more, whose sums fill the registers. */
INLINE void tile_quarters(pack_kind kind, int T, int H, int quarter, float (*sums)[PACK_ROWS],
                          const uint8_t *panel, size_t panel_bytes, int32_t n_blocks,
                          const matmul_input *in, size_t stride)
{
    size_t ahead = panel_bytes < 16384 ? 2 * panel_bytes : 16384;
    float32x4_t acc[QUARTERS][4];
    UNROLL
    for (int h = 0; h < H; h++) {
        UNROLL
        for (int t = 0; t < T; t++)
            acc[h][t] = vdupq_n_f32(0);
    }
    for (int32_t b = 0; b < n_blocks; b++, in += stride) {
        const uint8_t *p = matmul_scales_at(kind, panel, b);
        const uint8_t *v = matmul_values_at(kind, panel, n_blocks, b);
        if (quarter == 0) {
            UNROLL
            for (int line = 0; line < matmul_value_bytes(kind); line += 64)
                __builtin_prefetch((const char *)v + ahead + line, 0, 2);
            __builtin_prefetch((const char *)p + ahead, 0, 2);
        }
        UNROLL
        for (int h = 0; h < H; h++)
            add_block(kind, T, acc[h], v + 16 * (quarter + h), load_scales(kind, p, b, quarter + h),
                      in);
    }
    UNROLL
    for (int h = 0; h < H; h++) {
        UNROLL
        for (int t = 0; t < T; t++)
            vst1q_f32(sums[t] + 4 * (quarter + h), acc[h][t]);
    }
}

INLINE void tile(pack_kind kind, int T, float (*sums)[PACK_ROWS], const uint8_t *panel,
                 size_t panel_bytes, int32_t n_blocks, const matmul_input *in, size_t stride)
{
    if (T <= 2) {
        tile_quarters(kind, T, 4, 0, sums, panel, panel_bytes, n_blocks, in, stride);
        return;
    }
    tile_quarters(kind, T, 2, 0, sums, panel, panel_bytes, n_blocks, in, stride);
    tile_quarters(kind, T, 2, 2, sums, panel, panel_bytes, n_blocks, in, stride);
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
            scales s = load_scales(kind, matmul_scales_at(kind, panel, b), b, quarter);
            int8x16_t w = quad_at(kind, matmul_values_at(kind, panel, n_blocks, b) + 16 * quarter,
                                  o->quad % 8);
            int32x4_t sum = vdotq_s32(first_sum(kind, o->bias), w,
                                      vreinterpretq_s8_s32(vdupq_n_s32(four)));
            float32x4_t scale = s.scale[matmul_has_halves(kind) && o->quad & 4 ? 1 : 0];
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

/* Writes the integers q (four each) with scale d. */
INLINE void put_block(matmul_input *in, const int32x4_t q[8], float d)
{
    int32_t sums[2];
    for (int h = 0; h < 2; h++) {
        const int32x4_t *a = q + 4 * h;
        int16x8_t low = vcombine_s16(vmovn_s32(a[0]), vmovn_s32(a[1]));
        int16x8_t high = vcombine_s16(vmovn_s32(a[2]), vmovn_s32(a[3]));
        sums[h] = vaddlvq_s16(low) + vaddlvq_s16(high);
        vst1q_s8(in->q + 16 * h, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
    }
    in->d = d;
    in->sum = d * (float)(sums[0] + sums[1]);
    in->bias = -128 * (sums[0] + sums[1]);
    in->half_bias[0] = -128 * sums[0];
    in->half_bias[1] = -128 * sums[1];
    in->half_sum[0] = d * (float)sums[0];
    in->half_sum[1] = d * (float)sums[1];
    in->unused = 0;
}

INLINE float magnitude(const float *x)
{
    /* As integers magnitudes are in the same order, with infinity and NaN above all numbers. */
    uint32x4_t most = vdupq_n_u32(0);
    for (int i = 0; i < 8; i++)
        most = vmaxq_u32(most, vreinterpretq_u32_f32(vabsq_f32(vld1q_f32(x + 4 * i))));
    return quants_bits_float(vmaxvq_u32(most));
}

INLINE void quantize_block(matmul_input *in, const float *x, float largest)
{
    int32x4_t q[8] = {{0}};
    if (!(largest >= 0x1p-100f && largest <= __FLT_MAX__)) {
        put_block(in, q, largest < 0x1p-100f ? 0 : __builtin_nanf(""));
        return;
    }
    float inverse = 127 / largest;
    for (int i = 0; i < 8; i++)
        q[i] = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 4 * i), inverse));
    put_block(in, q, largest * (1.0f / 127));
}

#include "compute/cpu/matmul_prepare.inl"

/* ---- one function for each type and number of tokens ---------------------------------------- */

#define WIDTHS(X, kind) X(kind, 1) X(kind, 2) X(kind, 3) X(kind, 4)
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
MATMUL_ISA(neon)
