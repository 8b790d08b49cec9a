/* compute/cpu/quants.c: see quants.h. */
#include "compute/cpu/quants.h"

#include <math.h>

#include "compute/cpu/dequantize.inl"

int quants_dequantize(uint32_t type, float *out, const void *blocks, int64_t n)
{
    return dequantize(type, out, blocks, n);
}

int quants_is_weight(uint32_t type)
{
    float in = 0, out;
    return dequantize(type, &out, &in, 0);
}

void quants_quantize_q8_0(void *blocks, const float *x, int64_t n)
{
    uint8_t *b = blocks;
    for (; n > 0; n -= 32, x += 32, b += 34) {
        float largest = 0;
        for (int i = 0; i < 32; i++)
            largest = fmaxf(largest, fabsf(x[i]));
        float d = largest / 127.0f, inverse = d != 0 ? 1.0f / d : 0;
        uint16_t scale = quants_float_f16(d);
        memcpy(b, &scale, sizeof scale);
        for (int i = 0; i < 32; i++) {
            float q = roundf(x[i] * inverse);
            /* A NaN has no integer; and 1/d of a subnormal d overflows. */
            q = q > 127.0f ? 127.0f : q < -127.0f ? -127.0f : q == q ? q : 0.0f;
            b[2 + i] = (uint8_t)(int8_t)q;
        }
    }
}

uint16_t quants_float_f16(float f)
{
    uint32_t bits = quants_float_bits(f), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7FFFFFFF;
    if (magnitude > 0x7F800000)
        return (uint16_t)(sign | 0x7E00 | (magnitude >> 13 & 0x3FF));
    if (magnitude >= 0x477FF000) /* rounds to 65536 or more */
        return (uint16_t)(sign | 0x7C00);
    if (magnitude < 0x38800000) {
        /* Subnormal: adding 0.5 leaves units of 2^-24, rounded to even, in the low bits. */
        float shifted = quants_bits_float(magnitude) + 0.5f;
        return (uint16_t)(sign | (quants_float_bits(shifted) - 0x3F000000));
    }
    uint32_t odd = magnitude >> 13 & 1;
    return (uint16_t)(sign | (magnitude - 0x38000000 + 0xFFF + odd) >> 13);
}
