/* compute/cpu/quants.h: what the bytes of every weight type mean, and the conversions to them that
 * activations, keys and values need.
 *
 * Plain scalar functions without state; any thread. The layouts are those of GGUF files
 * (little-endian, ggml's published block formats); tests compare them bit for bit with the
 * independent implementation of the PyPI package `gguf`. */
#ifndef REALM_COMPUTE_CPU_QUANTS_H
#define REALM_COMPUTE_CPU_QUANTS_H

#include <stdint.h>
#include <string.h>

#include "base/dtype.h"

/* Writes n values of type from blocks to out. n is a multiple of the type's block. Returns 0 if the
 * type has no meaning as a weight (integers, F64), and then writes nothing. */
int quants_dequantize(uint32_t type, float *out, const void *blocks, int64_t n);

/* 1 if quants_dequantize knows the type. */
int quants_is_weight(uint32_t type);

/* n (a multiple of 32) values to Q8_0 blocks of 34 bytes: scale max|x| / 127 as F16, values
 * rounded to nearest, ties away from zero. */
void quants_quantize_q8_0(void *blocks, const float *x, int64_t n);

static inline float quants_bits_float(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline uint32_t quants_float_bits(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

/* IEEE half to float, exact; NaN payloads move along. */
static inline float quants_f16_float(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
    if (exponent == 31)
        return quants_bits_float(sign | 0x7F800000 | mantissa << 13);
    if (exponent)
        return quants_bits_float(sign | (exponent + 112) << 23 | mantissa << 13);
    /* Subnormal: mantissa * 2^-24, which is normal (or zero) as a float. */
    return quants_bits_float(sign | quants_float_bits((float)mantissa * 0x1p-24f));
}

/* Float to IEEE half, nearest even; too large becomes infinity, NaN stays (quiet) NaN. */
uint16_t quants_float_f16(float f);

static inline float quants_bf16_float(uint16_t h)
{
    return quants_bits_float((uint32_t)h << 16);
}

/* Float to bfloat16, nearest even; NaN stays NaN. */
static inline uint16_t quants_float_bf16(float f)
{
    uint32_t bits = quants_float_bits(f);
    if ((bits & 0x7FFFFFFF) > 0x7F800000)
        return (uint16_t)(bits >> 16 | 64);
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

#endif
