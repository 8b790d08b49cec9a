/* model/synthetic_types.c: how random weights are stored: which type each matrix of a quantization
 * has, and random blocks of every type.
 *
 * Types of a single name ("q4_0") are for measuring that type and hold for all matrices. Mixes are
 * what models are published in: the rules are llama.cpp's (llama_tensor_get_type in its
 * src/llama-quant.cpp), so that such a file reads the bytes the real one would.
 *
 * A block's quants are random bits. Its scales are constants that give the weights a standard
 * deviation of about 0.02, from which transformers are trained; where a type has finer scales inside
 * (K-quants) those are random too. Halves and floats get random signs and mantissas at the exponent
 * of 2^-6. */
#include <string.h>

#include "base/dtype.h"
#include "base/rng.h"
#include "compute/cpu/quants.h"
#include "model/synthetic.h"

static const synthetic_quantization quantizations[] = {
    {"f32", DTYPE_F32, 0},        {"f16", DTYPE_F16, 0},     {"bf16", DTYPE_BF16, 0},
    {"q4_0", DTYPE_Q4_0, 0},      {"q4_1", DTYPE_Q4_1, 0},   {"q5_0", DTYPE_Q5_0, 0},
    {"q5_1", DTYPE_Q5_1, 0},      {"q8_0", DTYPE_Q8_0, 0},   {"q8_1", DTYPE_Q8_1, 0},
    {"q3_k", DTYPE_Q3_K, 0},      {"q4_k", DTYPE_Q4_K, 0},   {"q5_k", DTYPE_Q5_K, 0},
    {"q6_k", DTYPE_Q6_K, 0},      {"q8_k", DTYPE_Q8_K, 0},   {"iq4_nl", DTYPE_IQ4_NL, 0},
    {"iq4_xs", DTYPE_IQ4_XS, 0},  {"mxfp4", DTYPE_MXFP4, 0}, {"q2_k", DTYPE_Q2_K, 1},
    {"q3_k_m", DTYPE_Q3_K, 1},    {"q4_k_m", DTYPE_Q4_K, 1}, {"q5_k_m", DTYPE_Q5_K, 1},
    {"q2_k_pure", DTYPE_Q2_K, 0},
};

const synthetic_quantization *synthetic_quantization_at(size_t index)
{
    return index < sizeof quantizations / sizeof *quantizations ? &quantizations[index] : NULL;
}

/* ---- which type --------------------------------------------------------------------------------- */

/* The first and last eighth of the layers, and every third between. */
static int gets_more_bits(int32_t layer, int32_t n_layers)
{
    return layer < n_layers / 8 || layer >= 7 * n_layers / 8 || (layer - n_layers / 8) % 3 == 2;
}

static uint32_t value_type(const synthetic_model *m, int32_t layer)
{
    const synthetic_shape *s = m->shape;
    uint32_t type = m->quantization->type;
    if (type == DTYPE_Q2_K)
        type = s->n_heads / s->n_kv_heads >= 4 ? DTYPE_Q4_K : DTYPE_Q3_K;
    else if (type == DTYPE_Q3_K)
        type = layer < 2 ? DTYPE_Q5_K : DTYPE_Q4_K;
    else if (gets_more_bits(layer, s->n_layers))
        type = DTYPE_Q6_K;
    /* Llama's 70B has eight heads to a value matrix, which is small beside the others. */
    int is_70b = strcmp(s->architecture, "llama") == 0 && s->n_layers == 80;
    return is_70b && (type == DTYPE_Q3_K || type == DTYPE_Q4_K) ? DTYPE_Q5_K : type;
}

static uint32_t down_type(const synthetic_model *m, int32_t layer)
{
    int32_t n_layers = m->shape->n_layers;
    switch (m->quantization->type) {
    case DTYPE_Q2_K: return DTYPE_Q3_K;
    case DTYPE_Q3_K: return layer < n_layers / 16 ? DTYPE_Q5_K : DTYPE_Q4_K;
    default: return gets_more_bits(layer, n_layers) ? DTYPE_Q6_K : m->quantization->type;
    }
}

static uint32_t mixed_type(const synthetic_model *m, synthetic_role role, int32_t layer,
                           int32_t n_cols)
{
    uint32_t type = m->quantization->type;
    switch (role) {
    case SYNTHETIC_EMBEDDING:
        if (!m->shape->tied)
            return type;
        /* fallthrough */
    case SYNTHETIC_OUTPUT:
        return (uint32_t)n_cols % dtype_block_elements(type) ? DTYPE_Q8_0 : DTYPE_Q6_K;
    case SYNTHETIC_V:
    case SYNTHETIC_QKV: return value_type(m, layer);
    case SYNTHETIC_DOWN: return down_type(m, layer);
    case SYNTHETIC_O:
        return type == DTYPE_Q2_K ? DTYPE_Q3_K : type == DTYPE_Q3_K ? DTYPE_Q4_K : type;
    case SYNTHETIC_Q:
    case SYNTHETIC_K:
    case SYNTHETIC_GATE:
    case SYNTHETIC_UP: return type;
    }
    return type;
}

/* Another type for rows that are no multiple of 256. */
static uint32_t narrower(uint32_t type)
{
    switch (type) {
    case DTYPE_Q2_K:
    case DTYPE_Q3_K: return DTYPE_Q4_0;
    case DTYPE_Q4_K: return DTYPE_Q5_0;
    case DTYPE_Q5_K: return DTYPE_Q5_1;
    case DTYPE_IQ4_XS: return DTYPE_IQ4_NL;
    default: return DTYPE_Q8_0;
    }
}

uint32_t synthetic_type_of(const synthetic_model *m, synthetic_role role, int32_t layer,
                           int32_t n_cols)
{
    uint32_t type = m->quantization->mixed ? mixed_type(m, role, layer, n_cols)
                                           : m->quantization->type;
    return (uint32_t)n_cols % dtype_block_elements(type) ? narrower(type) : type;
}

/* ---- random blocks ------------------------------------------------------------------------------ */

#define SPREAD 0.02f

/* Halves of a block that are constants. The numbers by which SPREAD is divided are the standard
 * deviations of what the rest of the block says when its bits are random; offsets move the mean of
 * unsigned types to zero. */
static const struct {
    uint32_t type;
    int count;
    struct {
        size_t offset;
        float value;
    } halves[2];
} scales[] = {
    {DTYPE_Q4_0, 1, {{0, SPREAD / 4.6f}}},
    {DTYPE_Q4_1, 2, {{0, SPREAD / 4.6f}, {2, -SPREAD / 4.6f * 7.5f}}},
    {DTYPE_Q5_0, 1, {{0, SPREAD / 9.2f}}},
    {DTYPE_Q5_1, 2, {{0, SPREAD / 9.2f}, {2, -SPREAD / 9.2f * 15.5f}}},
    {DTYPE_Q8_0, 1, {{0, SPREAD / 74}}},
    {DTYPE_Q8_1, 1, {{0, SPREAD / 74}}},
    {DTYPE_Q2_K, 2, {{80, SPREAD / 13}, {82, SPREAD / 13 * 1.5f}}},
    {DTYPE_Q3_K, 1, {{108, SPREAD / 42}}},
    {DTYPE_Q4_K, 2, {{0, SPREAD / 200}, {2, SPREAD / 200 * 7.5f}}},
    {DTYPE_Q5_K, 2, {{0, SPREAD / 400}, {2, SPREAD / 400 * 15.5f}}},
    {DTYPE_Q6_K, 1, {{208, SPREAD / 1369}}},
    {DTYPE_IQ4_NL, 1, {{0, SPREAD / 67}}},
    {DTYPE_IQ4_XS, 1, {{0, SPREAD / 1240}}},
};

static void set_scales(uint32_t type, uint8_t *out, size_t bytes)
{
    size_t block = dtype_block_bytes(type);
    for (size_t i = 0; i < sizeof scales / sizeof *scales; i++)
        for (int j = 0; j < scales[i].count && scales[i].type == type; j++) {
            uint16_t half = quants_float_f16(scales[i].halves[j].value);
            for (size_t at = scales[i].halves[j].offset; at < bytes; at += block)
                memcpy(out + at, &half, sizeof half);
        }
}

/* Q8_1 and Q8_K also say what their values add up to. */
static void set_sums_q8_1(uint8_t *out, size_t bytes)
{
    for (uint8_t *block = out; block < out + bytes; block += 36) {
        int sum = 0;
        for (int i = 0; i < 32; i++)
            sum += (int8_t)block[4 + i];
        uint16_t scale, half;
        memcpy(&scale, block, sizeof scale);
        half = quants_float_f16(quants_f16_float(scale) * (float)sum);
        memcpy(block + 2, &half, sizeof half);
    }
}

static void set_sums_q8_k(uint8_t *out, size_t bytes)
{
    const float scale = SPREAD / 74;
    for (uint8_t *block = out; block < out + bytes; block += 292) {
        memcpy(block, &scale, sizeof scale);
        for (int group = 0; group < 16; group++) {
            int16_t sum = 0;
            for (int i = 0; i < 16; i++)
                sum = (int16_t)(sum + (int8_t)block[4 + 16 * group + i]);
            memcpy(block + 260 + 2 * group, &sum, sizeof sum);
        }
    }
}

void synthetic_fill(uint32_t type, uint8_t *out, size_t bytes, struct rng *random)
{
    uint64_t keep = UINT64_MAX, set = 0;
    if (type == DTYPE_F32)
        keep = 0x807FFFFF807FFFFF, set = 0x3C8000003C800000;
    else if (type == DTYPE_F16)
        keep = 0x83FF83FF83FF83FF, set = 0x2400240024002400;
    else if (type == DTYPE_BF16)
        keep = 0x807F807F807F807F, set = 0x3C803C803C803C80;
    for (size_t i = 0; i < bytes; i += 8) {
        uint64_t bits = (rng_next(random) & keep) | set;
        memcpy(out + i, &bits, 8);
    }
    set_scales(type, out, bytes);
    if (type == DTYPE_Q8_1)
        set_sums_q8_1(out, bytes);
    else if (type == DTYPE_Q8_K)
        set_sums_q8_k(out, bytes);
    else if (type == DTYPE_MXFP4) /* an exponent: values of up to 12 / 2, times 2^(120 - 127) */
        for (size_t at = 0; at < bytes; at += 17)
            out[at] = 120;
}
