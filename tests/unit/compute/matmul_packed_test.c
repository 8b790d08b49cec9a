/* tests/unit/compute/matmul_packed_test.c: the quantized products of every instruction set that
 * this processor has, against the scalar one bit for bit and against exact arithmetic. */
#include "unit/compute/matmul_fixture.h"

static const cpu_matmul *kernels[6];
static size_t n_kernels;

static int find_kernels(void **state)
{
    (void)state;
    kernels[n_kernels++] = &matmul_packed_scalar;
#if defined(__x86_64__)
    if (cpu_features_get()->avx2)
        kernels[n_kernels++] = &matmul_packed_avx2;
    if (cpu_features_get()->avx_vnni)
        kernels[n_kernels++] = &matmul_packed_avx_vnni;
    else
        print_message("AVX-VNNI: this processor has none, its kernels are not tested\n");
    if (cpu_features_get()->avx512_vnni)
        kernels[n_kernels++] = &matmul_packed_avx512;
    if (cpu_features_get()->amx_int8)
        kernels[n_kernels++] = &matmul_packed_amx;
    else
        print_message("AMX: this processor has none, its kernels are not tested\n");
#elif defined(__aarch64__)
    kernels[n_kernels++] = &matmul_packed_neon;
    if (cpu_features_get()->neon_dot)
        kernels[n_kernels++] = &matmul_packed_neon_dot;
    if (cpu_features_get()->neon_i8mm)
        kernels[n_kernels++] = &matmul_packed_neon_i8mm;
#endif
    return 0;
}

/* Gaussian-like values with an outlier now and then, as real activations have. */
static float *random_activations(int32_t n_tokens, int32_t n_cols)
{
    size_t n = (size_t)n_tokens * (size_t)n_cols;
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++) {
        x[i] = random_unit() + random_unit() + random_unit();
        if (random_bits() % 128 == 0)
            x[i] *= 20;
    }
    return x;
}

/* [n_tokens, n_rows], the whole product at once. */
static float *multiply(const cpu_matmul *kernel, const cpu_weight *w, const float *x,
                       int32_t n_tokens, const float *bias)
{
    int32_t n_cols = w->head.n_cols, n_rows = w->head.n_rows;
    size_t size = kernel->input_bytes(n_tokens, n_cols);
    assert_true(size <= 8 * (size_t)n_tokens * (size_t)n_cols + 4096);
    void *prepared = aligned_alloc(64, (size + 63) / 64 * 64);
    memset(prepared, 0xAA, size);
    kernel->prepare(prepared, x, 0, n_tokens, n_tokens, n_cols);
    float *out = malloc((size_t)n_tokens * (size_t)n_rows * sizeof *out);
    kernel->product(w, prepared, n_tokens, out, n_rows, bias, 0, n_rows);
    free(prepared);
    return out;
}

static void check_same_bits(const float *a, const float *b, size_t n, uint32_t type,
                            const char *what)
{
    for (size_t i = 0; i < n; i++)
        if (memcmp(a + i, b + i, 4) != 0 && !(isnan(a[i]) && isnan(b[i])))
            fail_msg("%s: %s: [%zu] %.9g is not %.9g", dtype_name(type), what, i, (double)a[i],
                     (double)b[i]);
}

typedef struct shape {
    int32_t n_rows, n_cols, n_tokens;
} shape;

/* AMX's kernels leave some types to AVX-512's. */
static int takes(const cpu_matmul *kernel, uint32_t type)
{
    return kernel->accepts(type, 16, 256);
}

static void every_instruction_set_gives_the_scalar_bits(void **state)
{
    (void)state;
    static const shape shapes[] = {{1, 1, 1},     {15, 3, 2},   {16, 2, 5},   {17, 18, 1},
                                   {33, 6, 3},    {48, 5, 4},   {20, 7, 6},   {64, 3, 7},
                                   {31, 9, 8},    {16, 4, 9},   {40, 2, 12},  {18, 48, 13},
                                   {35, 3, 24},   {16, 8, 33},  {19, 11, 48}, {16, 515, 25},
                                   {33, 390, 49}, {40, 18, 64}, {17, 9, 600}, {32, 64, 261}};
    for (size_t t = 0; t < N_PACKED_TYPES; t++)
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
            fixture f;
            int32_t step = (int32_t)dtype_block_elements(packed_types[t]), n = shapes[s].n_tokens;
            int32_t n_blocks = step == 32 ? shapes[s].n_cols : 1 + shapes[s].n_cols / 5;
            fixture_open(&f, packed_types[t], shapes[s].n_rows, n_blocks * step);
            float *x = random_activations(n, n_blocks * step), *bias = NULL;
            if (s % 2)
                bias = random_activations(1, shapes[s].n_rows);
            float *truth = multiply(kernels[0], &f.weight, x, n, bias);
            for (size_t k = 1; k < n_kernels; k++) {
                if (!takes(kernels[k], packed_types[t]))
                    continue;
                float *out = multiply(kernels[k], &f.weight, x, n, bias);
                check_same_bits(out, truth, (size_t)(n * shapes[s].n_rows), packed_types[t],
                                kernels[k]->name);
                free(out);
            }
            free(truth);
            free(bias);
            free(x);
            fixture_close(&f);
        }
}

static void a_token_has_the_same_bits_alone_and_in_any_company(void **state)
{
    (void)state;
    for (size_t k = n_kernels - 1; k > 0; k--)
        for (size_t t = 0; t < N_PACKED_TYPES; t++) {
            if (!takes(kernels[k], packed_types[t]))
                continue;
            fixture f;
            enum { N = 67, ROWS = 37, COLS = 512 };
            fixture_open(&f, packed_types[t], ROWS, COLS);
            float *x = random_activations(N, COLS);
            /* A neighbour without a correction beside ones that have: x[1] is smooth. */
            for (int i = 0; i < COLS; i++)
                x[COLS + i] = random_unit();
            float *all = multiply(kernels[k], &f.weight, x, N, NULL);
            for (int32_t n = 1; n < N; n++) {
                float *first = multiply(kernels[k], &f.weight, x, n, NULL);
                float *last = multiply(kernels[k], &f.weight, x + (N - n) * COLS, n, NULL);
                check_same_bits(first, all, (size_t)(n * ROWS), packed_types[t], "the first");
                check_same_bits(last, all + (N - n) * ROWS, (size_t)(n * ROWS), packed_types[t],
                                "the last");
                free(first);
                free(last);
            }
            free(all);
            free(x);
            fixture_close(&f);
        }
}

static void ranges_of_rows_and_tokens_make_up_the_whole(void **state)
{
    (void)state;
    enum { N = 77, ROWS = 71, COLS = 256, STRIDE = 80 };
    for (size_t k = 0; k < n_kernels; k++)
        for (size_t t = 0; t < N_PACKED_TYPES; t++) {
            const cpu_matmul *kernel = kernels[k];
            if (!takes(kernel, packed_types[t]))
                continue;
            fixture f;
            fixture_open(&f, packed_types[t], ROWS, COLS);
            float *x = random_activations(N, COLS);
            float *whole = multiply(kernel, &f.weight, x, N, NULL);
            void *prepared = aligned_alloc(64, (kernel->input_bytes(N, COLS) + 63) / 64 * 64);
            int32_t step = 2 * matmul_token_step(kernel, N);
            for (int32_t token = 0; token < N; token += step)
                kernel->prepare(prepared, x, token, N - token < step ? N - token : step, N, COLS);
            float out[N * STRIDE];
            memset(out, 0x55, sizeof out);
            kernel->product(&f.weight, prepared, N, out, STRIDE, NULL, 32, ROWS - 32);
            kernel->product(&f.weight, prepared, N, out, STRIDE, NULL, 0, 16);
            kernel->product(&f.weight, prepared, N, out, STRIDE, NULL, 16, 16);
            for (int i = 0; i < N; i++) {
                check_same_bits(out + i * STRIDE, whole + i * ROWS, ROWS, packed_types[t],
                                "ranges");
                for (int r = ROWS; r < STRIDE; r++)
                    assert_memory_equal(&out[i * STRIDE + r], "\x55\x55\x55\x55", 4);
            }
            free(prepared);
            free(whole);
            free(x);
            fixture_close(&f);
        }
}

/* |product - exact| <= sum |w| * (half a step of the activation) + rounding of F32. */
static void products_are_as_near_the_exact_ones_as_quantized_activations_allow(void **state)
{
    (void)state;
    enum { N = 5, ROWS = 19, COLS = 1536 };
    for (size_t k = 0; k < n_kernels; k++)
        for (size_t t = 0; t < N_PACKED_TYPES; t++) {
            if (!takes(kernels[k], packed_types[t]))
                continue;
            fixture f;
            fixture_open(&f, packed_types[t], ROWS, COLS);
            float *x = random_activations(N, COLS);
            float *out = multiply(kernels[k], &f.weight, x, N, NULL);
            double largest_ratio = 0;
            for (int i = 0; i < N; i++)
                for (int r = 0; r < ROWS; r++) {
                    double exact = 0, bound = 0;
                    for (int b = 0; b < COLS; b += 256) { /* a group has one step */
                        double largest = 0, weights = 0;
                        for (int c = b; c < b + 256; c++) {
                            double w = (double)f.rows[r * COLS + c], v = (double)x[i * COLS + c];
                            exact += w * v;
                            weights += fabs(w);
                            largest = fmax(largest, fabs(v));
                            bound += fabs(w * v) * 1e-5;
                        }
                        bound += weights * largest / 127 * 0.501;
                    }
                    double error = fabs((double)out[i * ROWS + r] - exact);
                    if (error > bound)
                        fail_msg("%s: error %g, bound %g", dtype_name(packed_types[t]), error,
                                 bound);
                    largest_ratio = fmax(largest_ratio, error / bound);
                }
            assert_true(largest_ratio <
                        0.1); /* errors are random, the bound is the worst case, and large
                                                values do not make the step coarse */
            free(out);
            free(x);
            fixture_close(&f);
        }
}

static void zeros_give_zeros_and_what_is_no_number_gives_none(void **state)
{
    (void)state;
    enum { N = 6, ROWS = 17, COLS = 256 };
    for (size_t k = 0; k < n_kernels; k++)
        for (size_t t = 0; t < N_PACKED_TYPES; t++) {
            if (!takes(kernels[k], packed_types[t]))
                continue;
            fixture f;
            fixture_open(&f, packed_types[t], ROWS, COLS);
            float *x = random_activations(N, COLS);
            memset(x, 0, COLS * sizeof *x);
            x[1 * COLS + 100] = NAN;
            x[2 * COLS + 40] = -INFINITY;
            for (int i = 0; i < COLS; i++) {
                x[3 * COLS + i] = 1e-40f; /* subnormal: counts as zero */
                x[4 * COLS + i] *= 1e30f; /* its squares overflow */
            }
            float *out = multiply(kernels[k], &f.weight, x, N, NULL);
            for (int r = 0; r < ROWS; r++) {
                assert_true(out[0 * ROWS + r] == 0);
                assert_true(isnan(out[1 * ROWS + r]));
                assert_true(isnan(out[2 * ROWS + r]));
                assert_true(out[3 * ROWS + r] == 0);
                assert_true(isfinite(out[4 * ROWS + r]) && out[4 * ROWS + r] != 0);
                assert_true(isfinite(out[5 * ROWS + r]));
            }
            free(out);
            free(x);
            fixture_close(&f);
        }
}

static void a_vocabulary_of_49152_rows_is_multiplied_to_its_last_row(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, DTYPE_Q8_0, 49152, 64);
    float *x = random_activations(2, 64);
    float *truth = multiply(kernels[0], &f.weight, x, 2, NULL);
    for (size_t k = 1; k < n_kernels; k++) {
        if (!takes(kernels[k], DTYPE_Q8_0))
            continue;
        float *out = multiply(kernels[k], &f.weight, x, 2, NULL);
        check_same_bits(out, truth, 2 * 49152, DTYPE_Q8_0, kernels[k]->name);
        free(out);
    }
    free(truth);
    free(x);
    fixture_close(&f);
}

static void a_processor_gets_the_best_kernels_it_can_run(void **state)
{
    (void)state;
    cpu_features f = {0};
    assert_null(matmul_kernels(&f)[0]);
#if defined(__x86_64__)
    f.avx2 = 1;
    assert_ptr_equal(matmul_kernels(&f)[0], &matmul_packed_avx2);
    f.avx_vnni = 1;
    assert_ptr_equal(matmul_kernels(&f)[0], &matmul_packed_avx_vnni);
    f.avx512_vnni = 1;
    assert_ptr_equal(matmul_kernels(&f)[0], &matmul_packed_avx512);
    f.amx_int8 = 1;
    assert_ptr_equal(matmul_kernels(&f)[0], &matmul_packed_amx);
    assert_ptr_equal(matmul_kernels(&f)[1], &matmul_packed_avx512);
    assert_true(takes(&matmul_packed_amx, DTYPE_Q4_K));
    assert_false(takes(&matmul_packed_amx, DTYPE_Q4_0));
#elif defined(__aarch64__)
    f.neon = 1;
    assert_ptr_equal(matmul_kernels(&f)[0], &matmul_packed_neon);
    f.neon_dot = 1;
    assert_ptr_equal(matmul_kernels(&f)[0], &matmul_packed_neon_dot);
    f.neon_i8mm = 1;
    assert_ptr_equal(matmul_kernels(&f)[0], &matmul_packed_neon_i8mm);
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_processor_gets_the_best_kernels_it_can_run),
        cmocka_unit_test(every_instruction_set_gives_the_scalar_bits),
        cmocka_unit_test(a_token_has_the_same_bits_alone_and_in_any_company),
        cmocka_unit_test(ranges_of_rows_and_tokens_make_up_the_whole),
        cmocka_unit_test(products_are_as_near_the_exact_ones_as_quantized_activations_allow),
        cmocka_unit_test(zeros_give_zeros_and_what_is_no_number_gives_none),
        cmocka_unit_test(a_vocabulary_of_49152_rows_is_multiplied_to_its_last_row),
    };
    return cmocka_run_group_tests(tests, find_kernels, NULL);
}
