/* tests/unit/compute/quants_test.c: block formats against the PyPI package gguf (golden file, see
 * make_quants_golden.py), halves against the compiler's own. */
#include "unit/unit.h"

#include <math.h>

#include "base/rng.h"
#include "compute/cpu/quants.h"

static uint8_t golden[1 << 17];
static size_t golden_size;

static int load_golden(void **state)
{
    (void)state;
    FILE *file = fopen(REALM_SOURCE_DIR "/tests/unit/compute/quants_golden.bin", "rb");
    if (!file)
        return -1;
    golden_size = fread(golden, 1, sizeof golden, file);
    fclose(file);
    return golden_size > 0 && golden_size < sizeof golden ? 0 : -1;
}

/* The record of a type: blocks (bytes) and what follows them. NULL if there is none. */
static const uint8_t *find(uint32_t type, uint32_t *elements, uint32_t *bytes)
{
    for (size_t at = 0; at + 12 <= golden_size;) {
        uint32_t header[3];
        memcpy(header, golden + at, sizeof header);
        if (header[0] == type) {
            *elements = header[1];
            *bytes = header[2];
            return golden + at + 12;
        }
        at += 12 + header[2] + (header[0] == UINT32_MAX ? header[1] / 32 * 34 : header[1] * 4);
    }
    return NULL;
}

static const uint32_t types[] = {DTYPE_F16,    DTYPE_BF16, DTYPE_Q4_0, DTYPE_Q4_1, DTYPE_Q5_0,
                                 DTYPE_Q5_1,   DTYPE_Q8_0, DTYPE_Q8_1, DTYPE_Q2_K, DTYPE_Q3_K,
                                 DTYPE_Q4_K,   DTYPE_Q5_K, DTYPE_Q6_K, DTYPE_Q8_K, DTYPE_IQ4_NL,
                                 DTYPE_IQ4_XS, DTYPE_MXFP4};

static void blocks_of_every_type_mean_what_the_gguf_package_says(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        uint32_t n = 0, bytes = 0;
        const uint8_t *blocks = find(types[i], &n, &bytes);
        if (!blocks)
            fail_msg("no golden %s", dtype_name(types[i]));
        assert_int_equal(bytes, dtype_row_bytes(types[i], n));
        float *out = malloc(n * sizeof *out);
        assert_int_equal(quants_dequantize(types[i], out, blocks, n), 1);
        for (uint32_t j = 0; j < n; j++) {
            float wanted;
            memcpy(&wanted, blocks + bytes + j * 4, 4);
            /* -0 and 0 are the same weight */
            if (memcmp(&out[j], &wanted, 4) != 0 && !(out[j] == 0 && wanted == 0))
                fail_msg("%s element %u: %.9g, not %.9g", dtype_name(types[i]), j, (double)out[j],
                         (double)wanted);
        }
        free(out);
    }
}

static void floats_become_the_q8_0_blocks_of_the_gguf_package(void **state)
{
    (void)state;
    uint32_t n = 0, bytes = 0;
    const uint8_t *values = find(UINT32_MAX, &n, &bytes);
    assert_non_null(values);
    uint8_t *blocks = malloc(n / 32 * 34);
    quants_quantize_q8_0(blocks, (const float *)(const void *)values, n);
    assert_memory_equal(blocks, values + bytes, n / 32 * 34);
    free(blocks);
}

static void integers_are_no_weights(void **state)
{
    (void)state;
    float out = 7;
    assert_int_equal(quants_dequantize(DTYPE_I32, &out, &out, 1), 0);
    assert_int_equal(quants_dequantize(12345, &out, &out, 1), 0);
    assert_true(out == 7);
    assert_true(quants_is_weight(DTYPE_Q6_K) && !quants_is_weight(DTYPE_F64));
}

static void q8_0_of_values_that_have_no_integer_is_defined(void **state)
{
    (void)state;
    float x[32] = {NAN, INFINITY, -INFINITY, 1}, tiny[32] = {1e-42f, -1e-42f}, out[32];
    uint8_t block[34];
    quants_quantize_q8_0(block, x, 32);
    assert_int_equal(block[2], 0);
    quants_quantize_q8_0(block, tiny, 32);
    assert_int_equal(quants_dequantize(DTYPE_Q8_0, out, block, 32), 1);
    for (int i = 0; i < 32; i++)
        assert_true(fabsf(out[i]) < 1e-6f);
}

#if defined(__FLT16_MAX__)
static void every_half_converts_as_the_compiler_converts_it(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 65536; i++) {
        uint16_t bits = (uint16_t)i;
        _Float16 half;
        memcpy(&half, &bits, 2);
        float mine = quants_f16_float(bits), theirs = (float)half;
        if (theirs != theirs)
            assert_true(mine != mine);
        else
            assert_memory_equal(&mine, &theirs, 4);
        if (theirs == theirs)
            assert_int_equal(quants_float_f16(mine), bits);
        else
            assert_int_equal(quants_float_f16(mine) & 0x7C00, 0x7C00);
    }
}

static void floats_round_to_halves_as_the_compiler_rounds_them(void **state)
{
    (void)state;
    rng r;
    rng_init(&r, 1);
    for (int i = 0; i < 2000000; i++) {
        uint32_t bits = (uint32_t)rng_next(&r);
        if (i % 2) /* near what halves can hold, ties among them */
            bits = (bits & 0x8FFFE000) + 0x30000000 + (i % 4 == 1 ? 0x1000 : (bits & 0x1FFF));
        float f = quants_bits_float(bits);
        if (f != f)
            continue;
        _Float16 half = (_Float16)f;
        uint16_t wanted;
        memcpy(&wanted, &half, 2);
        if (quants_float_f16(f) != wanted)
            fail_msg("%.9g (%08x): %04x, not %04x", (double)f, bits, quants_float_f16(f), wanted);
    }
}
#endif

static void floats_round_to_the_nearest_bfloat16(void **state)
{
    (void)state;
    assert_int_equal(quants_float_bf16(1.0f), 0x3F80);
    assert_int_equal(quants_float_bf16(quants_bits_float(0x3F808000)), 0x3F80); /* tie to even */
    assert_int_equal(quants_float_bf16(quants_bits_float(0x3F818000)), 0x3F82);
    assert_int_equal(quants_float_bf16(quants_bits_float(0x3F808001)), 0x3F81);
    assert_int_equal(quants_float_bf16(-INFINITY), 0xFF80);
    float nan = quants_bf16_float(quants_float_bf16(quants_bits_float(0x7F800001)));
    assert_true(nan != nan);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_of_every_type_mean_what_the_gguf_package_says),
        cmocka_unit_test(floats_become_the_q8_0_blocks_of_the_gguf_package),
        cmocka_unit_test(integers_are_no_weights),
        cmocka_unit_test(q8_0_of_values_that_have_no_integer_is_defined),
#if defined(__FLT16_MAX__)
        cmocka_unit_test(every_half_converts_as_the_compiler_converts_it),
        cmocka_unit_test(floats_round_to_halves_as_the_compiler_rounds_them),
#endif
        cmocka_unit_test(floats_round_to_the_nearest_bfloat16),
    };
    return cmocka_run_group_tests_name("quants", tests, load_golden, NULL);
}
