/* tests/unit/compute/backend_test.c: the processor's backend through its table: every operation
 * gives a row the same bits alone, in a batch and with any number of threads; what cannot be is
 * refused; nothing of size zero goes wrong. */
#include "unit/compute/cpu_fixture.h"

#define ROWS 23
#define COLS 640
#define OUTS 210

typedef struct inputs {
    float *x, *y, *gain, *bias;
    uint8_t *ws[3];
    const float *frequencies;
} inputs;

static const uint32_t ws_types[3] = {DTYPE_F16, DTYPE_Q8_0, DTYPE_F32};

static inputs random_inputs(rng *r)
{
    static float frequencies[32];
    inputs in = {random_floats(r, ROWS * COLS, 3),
                 random_floats(r, ROWS * COLS, 3),
                 random_floats(r, COLS, 1),
                 random_floats(r, OUTS, 1),
                 {0},
                 frequencies};
    for (int i = 0; i < 3; i++)
        in.ws[i] = random_weights(r, ws_types[i], OUTS, COLS);
    for (int i = 0; i < 32; i++)
        frequencies[i] = powf(10000.0f, -(float)i / 32);
    return in;
}

static void free_inputs(inputs *in)
{
    free(in->x), free(in->y), free(in->gain), free(in->bias);
    for (int i = 0; i < 3; i++)
        free(in->ws[i]);
}

#define N_RESULTS     9
#define RESULT_FLOATS (ROWS * COLS)

/* Every operation on rows first .. first+count-1; results[i] as [count, ...]. */
static void run_rows(backend *b, const inputs *in, int32_t first, int32_t count, float **results)
{
    const backend_table *t = b->table;
    tensor x = open_tensor(b, count, COLS, in->x + (size_t)first * COLS);
    tensor y = open_tensor(b, count, COLS, in->y + (size_t)first * COLS);
    tensor out = open_tensor(b, count, COLS, NULL), products[3];
    weight *gain = open_weight(b, DTYPE_F32, 1, COLS, in->gain);
    weight *bias = open_weight(b, DTYPE_F32, 1, OUTS, in->bias), *ws[3];
    const weight *biases[3] = {bias, NULL, bias};
    int32_t positions[ROWS], ids[ROWS], order[ROWS], i = 0;
    for (int j = 0; j < 3; j++) {
        ws[j] = open_weight(b, ws_types[j], OUTS, COLS, in->ws[j]);
        products[j] = open_tensor(b, count, OUTS, NULL);
    }
    for (int32_t j = 0; j < count; j++) {
        positions[j] = (first + j) * 7;
        ids[j] = (first + j) * 5 % OUTS;
        order[j] = j;
    }
    rope turn = {ROPE_NEOX, 64, in->frequencies, 1.25f};

    t->norm(b, out, x, NORM_RMS, gain, NULL, 1e-6f);
    t->read(b, results[i++], out);
    t->norm(b, out, x, NORM_LAYER, gain, gain, 1e-6f);
    t->read(b, results[i++], out);
    t->gated(b, out, x, y, ACTIVATION_GELU_TANH);
    t->read(b, results[i++], out);
    t->add(b, out, x, y, 0.7f);
    t->soft_cap(b, out, 2);
    t->read(b, results[i++], out);
    t->gather(b, out, x, order);
    t->apply_rope(b, out, 64, &turn, positions);
    t->read(b, results[i++], out);
    t->embed(b, out, ws[1], ids, 3.0f);
    t->read(b, results[i++], out);
    t->matmul(b, products, x, (const weight *const *)ws, biases, 3);
    for (int j = 0; j < 3; j++)
        t->read(b, results[i++], products[j]);

    for (int j = 0; j < 3; j++) {
        t->weight_close(b, ws[j]);
        t->tensor_close(b, &products[j]);
    }
    t->weight_close(b, gain), t->weight_close(b, bias);
    t->tensor_close(b, &x), t->tensor_close(b, &y), t->tensor_close(b, &out);
}

static void new_results(float **results)
{
    for (int i = 0; i < N_RESULTS; i++)
        results[i] = calloc(RESULT_FLOATS, sizeof **results);
}

static void free_results(float **results)
{
    for (int i = 0; i < N_RESULTS; i++)
        free(results[i]);
}

static size_t row_floats(int result)
{
    return result < 6 ? COLS : OUTS;
}

static void a_row_alone_in_a_batch_and_over_threads_has_the_same_bits(void **state)
{
    (void)state;
    rng r;
    rng_init(&r, 1);
    inputs in = random_inputs(&r);
    const cpu_kernels *list[4];
    int n = cpu_kernels_here(list);
    list[n++] = NULL; /* the backend as it chooses for itself, quantizing activations */
    for (int k = 0; k < n; k++) {
        float *all[N_RESULTS], *some[N_RESULTS];
        new_results(all), new_results(some);
        for (int32_t threads = 1; threads <= 4; threads++) {
            realm_error error;
            backend_cpu_options o = {.n_threads = threads};
            backend *b;
            if (list[k])
                b = open_with(list[k], threads);
            else
                assert_status(backend_cpu_open(&b, &o, &error), REALM_OK, error);
            run_rows(b, &in, 0, ROWS, threads == 1 ? all : some);
            for (int i = 0; i < N_RESULTS && threads > 1; i++)
                assert_same_bits(some[i], all[i], ROWS * row_floats(i), "threads");
            for (int32_t first = 0, count = 1; first < ROWS;
                 first += count, count = count % 5 + 1) {
                int32_t left = ROWS - first;
                run_rows(b, &in, first, count < left ? count : left, some);
                for (int i = 0; i < N_RESULTS; i++)
                    assert_same_bits(some[i], all[i] + first * row_floats(i),
                                     (count < left ? count : left) * row_floats(i), "rows alone");
            }
            b->table->close(b);
        }
        free_results(all), free_results(some);
    }
    free_inputs(&in);
}

static void every_operation_is_that_of_the_reference(void **state)
{
    (void)state;
    rng r;
    rng_init(&r, 2);
    inputs in = random_inputs(&r);
    const cpu_kernels *list[4];
    int n = cpu_kernels_here(list);
    float *wanted[N_RESULTS], *out[N_RESULTS];
    new_results(wanted), new_results(out);
    backend *b = open_with(&cpu_kernels_reference, 1);
    run_rows(b, &in, 0, ROWS, wanted);
    b->table->close(b);
    for (int k = 0; k < n; k++) {
        b = open_with(list[k], 2);
        run_rows(b, &in, 0, ROWS, out);
        for (int i = 0; i < N_RESULTS; i++)
            assert_near(out[i], wanted[i], ROWS * row_floats(i), 2e-6, i < 6 ? 1e-6 : 4e-5,
                        list[k]->name);
        b->table->close(b);
    }
    free_results(wanted), free_results(out);
    free_inputs(&in);
}

static void a_gated_product_is_two_products_and_a_gate(void **state)
{
    (void)state;
    rng r;
    rng_init(&r, 3);
    inputs in = random_inputs(&r);
    for (int32_t threads = 1; threads <= 3; threads++)
        for (int32_t rows = 1; rows <= ROWS; rows += 11) {
            realm_error error;
            backend_cpu_options o = {.n_threads = threads};
            backend *b;
            assert_status(backend_cpu_open(&b, &o, &error), REALM_OK, error);
            const backend_table *t = b->table;
            tensor x = open_tensor(b, rows, COLS, in.x), outs[4];
            for (int i = 0; i < 4; i++)
                outs[i] = open_tensor(b, rows, OUTS, NULL);
            weight *ws[2];
            for (int i = 0; i < 2; i++)
                ws[i] = open_weight(b, ws_types[i], OUTS, COLS, in.ws[i]);
            t->matmul(b, outs, x, (const weight *const *)ws, NULL, 2);
            t->gated(b, outs[0], outs[0], outs[1], ACTIVATION_GELU_TANH);
            t->gated_matmul(b, outs[2], outs[3], x, (const weight *const *)ws,
                            ACTIVATION_GELU_TANH);
            assert_same_bits(outs[2].data, outs[0].data, (size_t)rows * OUTS, "gated product");
            for (int i = 0; i < 2; i++)
                t->weight_close(b, ws[i]);
            for (int i = 0; i < 4; i++)
                t->tensor_close(b, &outs[i]);
            t->tensor_close(b, &x);
            t->close(b);
        }
    free_inputs(&in);
}

/* Angles at far positions must be those of real numbers, not of floats. */
static void rope_is_exact_at_far_positions(void **state)
{
    (void)state;
    float frequency[2] = {1, 0.3f};
    rope turn = {ROPE_NORMAL, 4, frequency, 1};
    const float ones[4] = {1, 0, 1, 0};
    float out[4];
    int32_t position = 1000003;
    backend *b = open_with(&cpu_kernels_reference, 1);
    tensor x = open_tensor(b, 1, 4, ones);
    b->table->apply_rope(b, x, 4, &turn, &position);
    b->table->read(b, out, x);
    for (int i = 0; i < 2; i++) {
        double angle = (double)position * (double)frequency[i];
        assert_true(fabs((double)out[2 * i] - cos(angle)) < 1e-7);
        assert_true(fabs((double)out[2 * i + 1] - sin(angle)) < 1e-7);
    }
    b->table->tensor_close(b, &x);
    b->table->close(b);
}

static void weights_that_cannot_be_are_refused(void **state)
{
    (void)state;
    realm_error error;
    backend *b;
    assert_status(backend_cpu_open(&b, NULL, &error), REALM_OK, error);
    static _Alignas(64) uint8_t data[4096];
    weight *w = NULL;
    weight_source s = {DTYPE_I32, 4, 4, data, "blk.0.x", 0};
    assert_status(b->table->weight_open(b, &w, &s, &error), REALM_UNSUPPORTED, error);
    assert_holds(error.message, "blk.0.x");
    s.type = 999;
    assert_status(b->table->weight_open(b, &w, &s, &error), REALM_UNSUPPORTED, error);
    s.type = DTYPE_Q4_K;
    s.n_cols = 128;
    assert_status(b->table->weight_open(b, &w, &s, &error), REALM_CORRUPT, error);
    s.n_cols = -256;
    assert_status(b->table->weight_open(b, &w, &s, &error), REALM_CORRUPT, error);
    s = (weight_source){DTYPE_F32, 2, 4, data + 1, "odd", 0};
    assert_status(b->table->weight_open(b, &w, &s, &error), REALM_UNSUPPORTED, error);
    assert_holds(error.message, "not aligned");
    tensor t;
    assert_status(b->table->tensor_open(b, &t, 0, 5, &error), REALM_INVALID, error);
    assert_null(w);
    b->table->close(b);
}

static void a_gain_of_halves_is_as_good_as_one_of_floats(void **state)
{
    (void)state;
    const uint16_t halves[3] = {0x3C00, 0x4000, 0xBC00}; /* 1, 2, -1 */
    const float x[3] = {1, 1, 1};
    float out[3];
    backend *b = open_with(&cpu_kernels_reference, 1);
    weight *gain = open_weight(b, DTYPE_F16, 1, 3, halves);
    tensor t = open_tensor(b, 1, 3, x);
    b->table->norm(b, t, t, NORM_RMS, gain, NULL, 0);
    b->table->read(b, out, t);
    assert_true(out[0] == 1 && out[1] == 2 && out[2] == -1);
    backend_memory memory;
    b->table->memory(b, &memory);
    assert_int_equal(memory.weight_bytes, 12);
    assert_true(memory.total_bytes > 0);
    b->table->weight_close(b, gain);
    b->table->memory(b, &memory);
    assert_int_equal(memory.weight_bytes, 0);
    b->table->tensor_close(b, &t);
    b->table->close(b);
}

static void no_rows_are_no_work(void **state)
{
    (void)state;
    rng r;
    rng_init(&r, 3);
    backend *b = open_with(&cpu_kernels_reference, 2);
    uint8_t *data = random_weights(&r, DTYPE_F32, 40, 64);
    weight *w = open_weight(b, DTYPE_F32, 40, 64, data);
    const weight *ws[1] = {w};
    tensor x = open_tensor(b, 1, 64, NULL), out = open_tensor(b, 1, 40, NULL);
    tensor none = tensor_rows(x, 0, 0), no_out = tensor_rows(out, 0, 0);
    b->table->matmul(b, &no_out, none, ws, NULL, 1);
    b->table->norm(b, none, none, NORM_RMS, NULL, NULL, 1e-6f);
    b->table->gated(b, none, none, none, ACTIVATION_SILU);
    b->table->add(b, none, none, none, 1);
    b->table->soft_cap(b, none, 1);
    b->table->gather(b, none, x, NULL);
    b->table->embed(b, none, w, NULL, 1);
    b->table->weight_close(b, w);
    b->table->tensor_close(b, &x), b->table->tensor_close(b, &out);
    b->table->close(b);
    free(data);
}

static void the_log_line_names_threads_and_kernels(void **state)
{
    (void)state;
    realm_error error;
    backend *b;
    backend_cpu_options o = {.n_threads = 3, .reference = 1};
    assert_status(backend_cpu_open(&b, &o, &error), REALM_OK, error);
    char text[200];
    b->table->describe(b, text, sizeof text);
    assert_holds(text, "3 threads");
    assert_holds(text, "reference");
    assert_string_equal(b->table->kind, "cpu");
    b->table->close(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_row_alone_in_a_batch_and_over_threads_has_the_same_bits),
        cmocka_unit_test(every_operation_is_that_of_the_reference),
        cmocka_unit_test(a_gated_product_is_two_products_and_a_gate),
        cmocka_unit_test(rope_is_exact_at_far_positions),
        cmocka_unit_test(weights_that_cannot_be_are_refused),
        cmocka_unit_test(a_gain_of_halves_is_as_good_as_one_of_floats),
        cmocka_unit_test(no_rows_are_no_work),
        cmocka_unit_test(the_log_line_names_threads_and_kernels),
    };
    return cmocka_run_group_tests_name("backend", tests, NULL, NULL);
}
