/* compute/cpu/dequantize.inl: what the bytes of each weight type mean, as loops that a compiler can
 * turn into any instruction set's vectors. Included once by quants.c and once by each isa_<name>.c;
 * everything in it is static. Each function does n values, a multiple of its block. Products are
 * rounded in the order of ggml's published scalar code, so every build gives the same bits. */

static inline float half_at(const uint8_t *p)
{
    uint16_t h;
    memcpy(&h, p, sizeof h);
#if defined(__F16C__)
    return _cvtsh_ss(h);
#else
    return quants_f16_float(h);
#endif
}

static void dequantize_f16(float *out, const uint8_t *b, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = half_at(b + i * 2);
}

static void dequantize_bf16(float *out, const uint8_t *b, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, b + i * 2, sizeof h);
        out[i] = quants_bf16_float(h);
    }
}

static void dequantize_q4_0(float *out, const uint8_t *b, int64_t n)
{
    for (; n > 0; n -= 32, out += 32, b += 18) {
        float d = half_at(b);
        for (int i = 0; i < 16; i++) {
            out[i] = (float)((b[2 + i] & 15) - 8) * d;
            out[i + 16] = (float)((b[2 + i] >> 4) - 8) * d;
        }
    }
}

static void dequantize_q4_1(float *out, const uint8_t *b, int64_t n)
{
    for (; n > 0; n -= 32, out += 32, b += 20) {
        float d = half_at(b), m = half_at(b + 2);
        for (int i = 0; i < 16; i++) {
            out[i] = (float)(b[4 + i] & 15) * d + m;
            out[i + 16] = (float)(b[4 + i] >> 4) * d + m;
        }
    }
}

static void dequantize_q5_0(float *out, const uint8_t *b, int64_t n)
{
    for (; n > 0; n -= 32, out += 32, b += 22) {
        float d = half_at(b);
        uint32_t high;
        memcpy(&high, b + 2, sizeof high);
        for (int i = 0; i < 16; i++) {
            int low = (int)(b[6 + i] & 15) | (int)(high >> i & 1) << 4;
            int up = (int)(b[6 + i] >> 4) | (int)(high >> (i + 16) & 1) << 4;
            out[i] = (float)(low - 16) * d;
            out[i + 16] = (float)(up - 16) * d;
        }
    }
}

static void dequantize_q5_1(float *out, const uint8_t *b, int64_t n)
{
    for (; n > 0; n -= 32, out += 32, b += 24) {
        float d = half_at(b), m = half_at(b + 2);
        uint32_t high;
        memcpy(&high, b + 4, sizeof high);
        for (int i = 0; i < 16; i++) {
            int low = (int)(b[8 + i] & 15) | (int)(high >> i & 1) << 4;
            int up = (int)(b[8 + i] >> 4) | (int)(high >> (i + 16) & 1) << 4;
            out[i] = (float)low * d + m;
            out[i + 16] = (float)up * d + m;
        }
    }
}

static inline void scaled_bytes(float *out, const uint8_t *q, float d, int count)
{
    for (int i = 0; i < count; i++)
        out[i] = (float)(int8_t)q[i] * d;
}

static void dequantize_q8_0(float *out, const uint8_t *b, int64_t n)
{
    for (; n > 0; n -= 32, out += 32, b += 34)
        scaled_bytes(out, b + 2, half_at(b), 32);
}

/* The second half of the header is the sum of the block, of use to products alone. */
static void dequantize_q8_1(float *out, const uint8_t *b, int64_t n)
{
    for (; n > 0; n -= 32, out += 32, b += 36)
        scaled_bytes(out, b + 4, half_at(b), 32);
}

static void dequantize_q8_k(float *out, const uint8_t *b, int64_t n)
{
    for (; n > 0; n -= 256, out += 256, b += 292) {
        float d;
        memcpy(&d, b, sizeof d);
        scaled_bytes(out, b + 4, d, 256);
    }
}

/* scales[16] (4 bits scale, 4 bits minimum), qs[64], d, dmin */
static void dequantize_q2_k(float *out, const uint8_t *b, int64_t n)
{
    for (; n > 0; n -= 256, out += 256, b += 84) {
        float d = half_at(b + 80), dmin = half_at(b + 82);
        for (int s = 0; s < 16; s++) {
            const uint8_t *q = b + 16 + s / 8 * 32 + s % 2 * 16;
            float scale = d * (float)(b[s] & 15), minimum = dmin * (float)(b[s] >> 4);
            int shift = s % 8 / 2 * 2;
            for (int i = 0; i < 16; i++)
                out[s * 16 + i] = scale * (float)(q[i] >> shift & 3) - minimum;
        }
    }
}

/* hmask[32], qs[64], scales[12] (sixteen of 6 bits, 32 taken off), d */
static void dequantize_q3_k(float *out, const uint8_t *b, int64_t n)
{
    for (; n > 0; n -= 256, out += 256, b += 110) {
        const uint8_t *scales = b + 96;
        float d = half_at(b + 108);
        for (int s = 0; s < 16; s++) {
            int low = s < 8 ? scales[s] & 15 : scales[s - 8] >> 4;
            int high = scales[8 + s % 4] >> (s / 4 * 2) & 3;
            float scale = d * (float)((low | high << 4) - 32);
            const uint8_t *q = b + 32 + s / 8 * 32 + s % 2 * 16, *h = b + s % 2 * 16;
            int shift = s % 8 / 2 * 2, bit = s / 2;
            for (int i = 0; i < 16; i++)
                out[s * 16 + i] = scale * (float)((q[i] >> shift & 3) - (~h[i] >> bit & 1) * 4);
        }
    }
}

/* The eight scales and minimums of 6 bits that Q4_K and Q5_K pack into 12 bytes. */
static inline void k4_scale(const uint8_t *p, int j, float d, float dmin, float *scale,
                            float *minimum)
{
    int s = j < 4 ? p[j] & 63 : (p[j + 4] & 15) | p[j - 4] >> 6 << 4;
    int m = j < 4 ? p[j + 4] & 63 : p[j + 4] >> 4 | p[j] >> 6 << 4;
    *scale = d * (float)s;
    *minimum = dmin * (float)m;
}

/* d, dmin, scales[12], qs[128] */
static void dequantize_q4_k(float *out, const uint8_t *b, int64_t n)
{
    for (; n > 0; n -= 256, out += 256, b += 144) {
        float d = half_at(b), dmin = half_at(b + 2);
        for (int j = 0; j < 8; j++) {
            const uint8_t *q = b + 16 + j / 2 * 32;
            int shift = j % 2 * 4;
            float scale, minimum;
            k4_scale(b + 4, j, d, dmin, &scale, &minimum);
            for (int i = 0; i < 32; i++)
                out[j * 32 + i] = scale * (float)(q[i] >> shift & 15) - minimum;
        }
    }
}

/* d, dmin, scales[12], qh[32], qs[128] */
static void dequantize_q5_k(float *out, const uint8_t *b, int64_t n)
{
    for (; n > 0; n -= 256, out += 256, b += 176) {
        float d = half_at(b), dmin = half_at(b + 2);
        const uint8_t *high = b + 16;
        for (int j = 0; j < 8; j++) {
            const uint8_t *q = b + 48 + j / 2 * 32;
            int shift = j % 2 * 4;
            float scale, minimum;
            k4_scale(b + 4, j, d, dmin, &scale, &minimum);
            for (int i = 0; i < 32; i++) {
                int value = (q[i] >> shift & 15) | (high[i] >> j & 1) << 4;
                out[j * 32 + i] = scale * (float)value - minimum;
            }
        }
    }
}

/* ql[128], qh[64], scales[16], d */
static void dequantize_q6_k(float *out, const uint8_t *b, int64_t n)
{
    for (; n > 0; n -= 256, out += 256, b += 210) {
        float d = half_at(b + 208);
        for (int s = 0; s < 16; s++) {
            int quarter = s % 8 / 2; /* of the half block of 128 */
            const uint8_t *low = b + s / 8 * 64 + quarter % 2 * 32 + s % 2 * 16;
            const uint8_t *high = b + 128 + s / 8 * 32 + s % 2 * 16;
            int low_shift = quarter / 2 * 4, high_shift = quarter * 2;
            float scale = d * (float)(int8_t)b[192 + s];
            for (int i = 0; i < 16; i++) {
                int value = (low[i] >> low_shift & 15) | (high[i] >> high_shift & 3) << 4;
                out[s * 16 + i] = scale * (float)(value - 32);
            }
        }
    }
}

static const float iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                     1,    13,   25,  38,  53,  69,  89,  113};

/* FP4 E2M1 times two: the halving is in the scale. */
static const float fp4_values[16] = {0, 1, 2, 3, 4, 6, 8, 12, -0.0f, -1, -2, -3, -4, -6, -8, -12};

static inline void table_nibbles(float *out, const uint8_t *q, const float *table, float d)
{
    for (int i = 0; i < 16; i++) {
        out[i] = d * table[q[i] & 15];
        out[i + 16] = d * table[q[i] >> 4];
    }
}

static void dequantize_iq4_nl(float *out, const uint8_t *b, int64_t n)
{
    for (; n > 0; n -= 32, out += 32, b += 18)
        table_nibbles(out, b + 2, iq4_values, half_at(b));
}

/* d, scales_h, scales_l[4], qs[128] */
static void dequantize_iq4_xs(float *out, const uint8_t *b, int64_t n)
{
    for (; n > 0; n -= 256, out += 256, b += 136) {
        float d = half_at(b);
        int high = b[2] | b[3] << 8;
        for (int j = 0; j < 8; j++) {
            int scale = (b[4 + j / 2] >> (j % 2 * 4) & 15) | (high >> (j * 2) & 3) << 4;
            table_nibbles(out + j * 32, b + 8 + j * 16, iq4_values, d * (float)(scale - 32));
        }
    }
}

/* An exponent byte of E8M0, then nibbles: d is half of 2^(e - 127), subnormal for the least two. */
static void dequantize_mxfp4(float *out, const uint8_t *b, int64_t n)
{
    for (; n > 0; n -= 32, out += 32, b += 17) {
        float d = quants_bits_float(b[0] < 2 ? (uint32_t)0x00200000 << b[0]
                                             : (uint32_t)(b[0] - 1) << 23);
        table_nibbles(out, b + 1, fp4_values, d);
    }
}

static int dequantize(uint32_t type, float *out, const void *blocks, int64_t n)
{
    switch (type) {
    case DTYPE_F32: memcpy(out, blocks, (size_t)n * sizeof *out); return 1;
    case DTYPE_F16: dequantize_f16(out, blocks, n); return 1;
    case DTYPE_BF16: dequantize_bf16(out, blocks, n); return 1;
    case DTYPE_Q4_0: dequantize_q4_0(out, blocks, n); return 1;
    case DTYPE_Q4_1: dequantize_q4_1(out, blocks, n); return 1;
    case DTYPE_Q5_0: dequantize_q5_0(out, blocks, n); return 1;
    case DTYPE_Q5_1: dequantize_q5_1(out, blocks, n); return 1;
    case DTYPE_Q8_0: dequantize_q8_0(out, blocks, n); return 1;
    case DTYPE_Q8_1: dequantize_q8_1(out, blocks, n); return 1;
    case DTYPE_Q2_K: dequantize_q2_k(out, blocks, n); return 1;
    case DTYPE_Q3_K: dequantize_q3_k(out, blocks, n); return 1;
    case DTYPE_Q4_K: dequantize_q4_k(out, blocks, n); return 1;
    case DTYPE_Q5_K: dequantize_q5_k(out, blocks, n); return 1;
    case DTYPE_Q6_K: dequantize_q6_k(out, blocks, n); return 1;
    case DTYPE_Q8_K: dequantize_q8_k(out, blocks, n); return 1;
    case DTYPE_IQ4_NL: dequantize_iq4_nl(out, blocks, n); return 1;
    case DTYPE_IQ4_XS: dequantize_iq4_xs(out, blocks, n); return 1;
    case DTYPE_MXFP4: dequantize_mxfp4(out, blocks, n); return 1;
    default: return 0;
    }
}
