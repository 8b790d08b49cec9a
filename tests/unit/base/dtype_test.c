/* tests/unit/base/dtype_test.c: the table of number kinds against the block layouts they come
 * from. */
#include "unit/unit.h"

#include "base/dtype.h"

static void every_block_has_the_bytes_of_its_layout(void **state)
{
    (void)state;
    /* From ggml-common.h, field by field: half scales are 2 bytes, quants count bits / 8. */
    static const struct {
        dtype type;
        const char *name;
        uint32_t elements, bytes;
    } layouts[] = {
        {DTYPE_F32, "F32", 1, 4},
        {DTYPE_F16, "F16", 1, 2},
        {DTYPE_BF16, "BF16", 1, 2},
        {DTYPE_F64, "F64", 1, 8},
        {DTYPE_I8, "I8", 1, 1},
        {DTYPE_I16, "I16", 1, 2},
        {DTYPE_I32, "I32", 1, 4},
        {DTYPE_I64, "I64", 1, 8},
        {DTYPE_Q4_0, "Q4_0", 32, 2 + 32 / 2},
        {DTYPE_Q4_1, "Q4_1", 32, 2 + 2 + 32 / 2},
        {DTYPE_Q5_0, "Q5_0", 32, 2 + 4 + 32 / 2},
        {DTYPE_Q5_1, "Q5_1", 32, 2 + 2 + 4 + 32 / 2},
        {DTYPE_Q8_0, "Q8_0", 32, 2 + 32},
        {DTYPE_Q8_1, "Q8_1", 32, 2 + 2 + 32},
        {DTYPE_Q2_K, "Q2_K", 256, 256 / 16 + 256 / 4 + 2 + 2},
        {DTYPE_Q3_K, "Q3_K", 256, 256 / 8 + 256 / 4 + 12 + 2},
        {DTYPE_Q4_K, "Q4_K", 256, 2 + 2 + 12 + 256 / 2},
        {DTYPE_Q5_K, "Q5_K", 256, 2 + 2 + 12 + 256 / 8 + 256 / 2},
        {DTYPE_Q6_K, "Q6_K", 256, 256 / 2 + 256 / 4 + 256 / 16 + 2},
        {DTYPE_Q8_K, "Q8_K", 256, 4 + 256 + 256 / 16 * 2},
        {DTYPE_IQ4_NL, "IQ4_NL", 32, 2 + 32 / 2},
        {DTYPE_IQ4_XS, "IQ4_XS", 256, 2 + 2 + 256 / 64 + 256 / 2},
        {DTYPE_MXFP4, "MXFP4", 32, 1 + 32 / 2},
    };
    uint32_t known = 0;
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
        assert_string_equal(dtype_name(layouts[i].type), layouts[i].name);
        assert_int_equal(dtype_block_elements(layouts[i].type), layouts[i].elements);
        assert_int_equal(dtype_block_bytes(layouts[i].type), layouts[i].bytes);
    }
    for (uint32_t number = 0; number < 1000; number++)
        known += dtype_name(number) != NULL;
    assert_int_equal(known, sizeof layouts / sizeof *layouts);
}

static void rows_are_whole_blocks_and_do_not_wrap(void **state)
{
    (void)state;
    assert_int_equal(dtype_row_bytes(DTYPE_Q4_K, 512), 288);
    assert_int_equal(dtype_row_bytes(DTYPE_Q4_K, 513), 0);
    assert_int_equal(dtype_row_bytes(DTYPE_F32, (uint64_t)1 << 62), 0);
    assert_int_equal(dtype_row_bytes(DTYPE_F32, UINT64_MAX), 0);
    assert_int_equal(dtype_row_bytes(DTYPE_I8, UINT64_MAX), UINT64_MAX);
}

static void numbers_outside_the_list_are_nothing(void **state)
{
    (void)state;
    static const uint32_t numbers[] = {4, 5, 16, 29, 31, 38, 40, 41, 1000, UINT32_MAX};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        assert_null(dtype_name(numbers[i]));
        assert_int_equal(dtype_block_elements(numbers[i]), 0);
        assert_int_equal(dtype_row_bytes(numbers[i], 256), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_block_has_the_bytes_of_its_layout),
        cmocka_unit_test(rows_are_whole_blocks_and_do_not_wrap),
        cmocka_unit_test(numbers_outside_the_list_are_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
