/* tests/unit/compute/dense_test.c: F32 products of weights of every type against the scalar
 * reference, and the same bits however tokens and rows are divided. */
#include "unit/compute/cpu_fixture.h"

/* [n_tokens, n_rows] in one call; freed by the caller. */
static float *multiply(const cpu_matmul *kernel, const cpu_weight *w, const float *x,
                       int32_t n_tokens, const float *bias)
{
    float *out = calloc((size_t)n_tokens * (size_t)w->head.n_rows + 1, sizeof *out);
    void *prepared = aligned_alloc(64,
                                   (kernel->input_bytes(n_tokens, w->head.n_cols) + 127) & ~63ul);
    kernel->prepare(prepared, x, 0, n_tokens, n_tokens, w->head.n_cols);
    kernel->product(w, prepared, n_tokens, out, w->head.n_rows, bias, 0, w->head.n_rows);
    free(prepared);
    return out;
}

static cpu_weight weight_of(uint32_t type, int32_t n_rows, int32_t n_cols, const uint8_t *data)
{
    return (cpu_weight){.head = {type, n_rows, n_cols},
                        .data = data,
                        .row_bytes = dtype_row_bytes(type, (uint64_t)n_cols)};
}

static void check_type(const cpu_kernels *k, uint32_t type, int32_t n_rows, int32_t n_cols,
                       int32_t n_tokens, rng *r)
{
    uint8_t *data = random_weights(r, type, n_rows, n_cols);
    float *x = random_floats(r, (size_t)n_tokens * n_cols, 1), *bias = random_floats(r, n_rows, 1);
    cpu_weight w = weight_of(type, n_rows, n_cols, data);
    assert_true(k->dense->accepts(type, n_rows, n_cols));
    float *out = multiply(k->dense, &w, x, n_tokens, bias);
    float *wanted = multiply(&reference_matmul, &w, x, n_tokens, bias);
    char what[100];
    snprintf(what, sizeof what, "%s %s %d x %d, %d tokens", k->name, dtype_name(type), n_rows,
             n_cols, n_tokens);
    /* Weights are about 1, so a sum of n is about sqrt(n); an error is a few 2^-24 of that. */
    assert_near(out, wanted, (size_t)n_tokens * n_rows, 1e-6, 4e-7 * sqrt(n_cols) + 1e-6, what);
    free(data), free(x), free(bias), free(out), free(wanted);
}

static void products_of_every_type_are_those_of_the_reference(void **state)
{
    (void)state;
    rng r;
    rng_init(&r, 1);
    const cpu_kernels *list[4];
    int n = cpu_kernels_here(list);
    for (int i = 0; i < n; i++) {
        for (size_t t = 0; t < N_WEIGHT_TYPES; t++) {
            int32_t block = (int32_t)dtype_block_elements(weight_types[t]);
            check_type(list[i], weight_types[t], 37, block == 1 ? 77 : block * 3, 5, &r);
            check_type(list[i], weight_types[t], 1, block, 1, &r);
            check_type(list[i], weight_types[t], 16, block * (1 + 576 / block), 13, &r);
            check_type(list[i], weight_types[t], 65, 512, 26, &r);
        }
    }
}

static void a_product_of_one_column_works(void **state)
{
    (void)state;
    rng r;
    rng_init(&r, 2);
    const cpu_kernels *list[4];
    int n = cpu_kernels_here(list);
    for (int i = 0; i < n; i++)
        for (int32_t cols = 1; cols < 40; cols++)
            check_type(list[i], DTYPE_F16, cols, cols, 1 + cols % 14, &r);
}

static void a_token_alone_and_in_a_batch_has_the_same_bits(void **state)
{
    (void)state;
    rng r;
    rng_init(&r, 3);
    const uint32_t types[] = {DTYPE_F32, DTYPE_F16, DTYPE_Q4_K, DTYPE_Q8_0};
    const cpu_kernels *list[4];
    int n = cpu_kernels_here(list);
    enum { ROWS = 83, COLS = 768, TOKENS = 31 };
    for (int i = 0; i < n; i++) {
        for (size_t t = 0; t < 4; t++) {
            uint8_t *data = random_weights(&r, types[t], ROWS, COLS);
            float *x = random_floats(&r, TOKENS * COLS, 1), *bias = random_floats(&r, ROWS, 1);
            cpu_weight w = weight_of(types[t], ROWS, COLS, data);
            float *all = multiply(list[i]->dense, &w, x, TOKENS, bias);
            for (int32_t first = 0, count = 1; first < TOKENS;
                 first += count, count = count % 7 + 1) {
                int32_t some = count < TOKENS - first ? count : TOKENS - first;
                float *part = multiply(list[i]->dense, &w, x + first * COLS, some, bias);
                assert_same_bits(part, all + first * ROWS, (size_t)some * ROWS, list[i]->name);
                free(part);
            }
            free(data), free(x), free(bias), free(all);
        }
    }
}

static void rows_and_tokens_may_be_divided_anywhere(void **state)
{
    (void)state;
    rng r;
    rng_init(&r, 4);
    const cpu_kernels *list[4];
    int n = cpu_kernels_here(list);
    enum { ROWS = 90, COLS = 320, TOKENS = 17 };
    uint8_t *data = random_weights(&r, DTYPE_F16, ROWS, COLS);
    float *x = random_floats(&r, TOKENS * COLS, 1);
    cpu_weight w = weight_of(DTYPE_F16, ROWS, COLS, data);
    for (int i = 0; i < n; i++) {
        const cpu_matmul *d = list[i]->dense;
        float *all = multiply(d, &w, x, TOKENS, NULL), *out = calloc(TOKENS * ROWS, 4);
        void *prepared = aligned_alloc(64, (d->input_bytes(TOKENS, COLS) + 127) & ~63ul);
        for (int32_t t = 0; t < TOKENS; t += 5)
            d->prepare(prepared, x, t, TOKENS - t < 5 ? TOKENS - t : 5, TOKENS, COLS);
        for (int32_t row = 0; row < ROWS; row += 48)
            d->product(&w, prepared, TOKENS, out, ROWS, NULL, row,
                       ROWS - row < 48 ? ROWS - row : 48);
        assert_same_bits(out, all, TOKENS * ROWS, d->name);
        free(all), free(out), free(prepared);
    }
    free(data), free(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_of_every_type_are_those_of_the_reference),
        cmocka_unit_test(a_product_of_one_column_works),
        cmocka_unit_test(a_token_alone_and_in_a_batch_has_the_same_bits),
        cmocka_unit_test(rows_and_tokens_may_be_divided_anywhere),
    };
    return cmocka_run_group_tests_name("dense", tests, NULL, NULL);
}
