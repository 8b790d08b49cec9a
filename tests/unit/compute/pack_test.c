/* tests/unit/compute/pack_test.c: packed weights hold what the file's blocks hold. */
#include "unit/compute/matmul_fixture.h"

#define assert_bits(a, b, n) assert_memory_equal(a, b, (size_t)(n) * sizeof *(a))

static void a_packed_row_comes_back_as_the_file_dequantizes(void **state)
{
    (void)state;
    for (size_t t = 0; t < N_PACKED_TYPES; t++) {
        int32_t step = (int32_t)dtype_block_elements(packed_types[t]);
        static const int32_t rows[] = {1, 15, 16, 17, 50};
        for (size_t i = 0; i < 5; i++)
            for (int32_t n_cols = step; n_cols <= 5 * step; n_cols += step) {
                fixture f;
                fixture_open(&f, packed_types[t], rows[i], n_cols);
                float *out = malloc((size_t)n_cols * sizeof *out);
                for (int32_t r = 0; r < rows[i]; r++) {
                    matmul_packed_scalar.row(out, &f.weight, r);
                    assert_bits(out, f.rows + r * n_cols, n_cols);
                }
                free(out);
                fixture_close(&f);
            }
    }
}

static void every_panel_packed_alone_gives_the_bytes_of_all_at_once(void **state)
{
    (void)state;
    for (size_t t = 0; t < N_PACKED_TYPES; t++) {
        fixture f;
        fixture_open(&f, packed_types[t], 39, 512);
        size_t size = pack_bytes(packed_types[t], 39, 512);
        uint8_t *again = aligned_alloc(64, size);
        memset(again, 0xAA, size);
        for (int32_t p = 2; p >= 0; p--)
            pack_panels(again, packed_types[t], f.data, 39, 512, p, 1);
        assert_memory_equal(again, f.weight.packed, size);
        free(again);
        fixture_close(&f);
    }
}

static void packed_weights_are_at_most_six_percent_larger_than_the_file(void **state)
{
    (void)state;
    for (size_t t = 0; t < N_PACKED_TYPES; t++) {
        size_t file = dtype_row_bytes(packed_types[t], 2048) * 1024;
        assert_true(pack_bytes(packed_types[t], 1024, 2048) <= file + file * 6 / 100);
        assert_int_equal(pack_panel_bytes(packed_types[t], 2048) % 64, 0);
    }
}

static void what_has_no_packed_form_is_refused(void **state)
{
    (void)state;
    assert_false(pack_supports(DTYPE_F32, 64));
    assert_false(pack_supports(DTYPE_F16, 64));
    assert_false(pack_supports(4, 64));
    assert_false(pack_supports(1000, 64));
    assert_false(pack_supports(DTYPE_Q4_0, 48));
    assert_false(pack_supports(DTYPE_Q4_0, 0));
    assert_false(pack_supports(DTYPE_Q4_K, 128));
    assert_true(pack_supports(DTYPE_Q4_K, 256));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_packed_row_comes_back_as_the_file_dequantizes),
        cmocka_unit_test(every_panel_packed_alone_gives_the_bytes_of_all_at_once),
        cmocka_unit_test(packed_weights_are_at_most_six_percent_larger_than_the_file),
        cmocka_unit_test(what_has_no_packed_form_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
