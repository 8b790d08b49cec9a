/* tests/unit/compute/cuda_test.c: every operation of the CUDA backend against the scalar reference on
 * random shapes, and the same bits for any batch, chunking and former use of memory. Reported as
 * skipped where there is no device. */
#include "unit/compute/cpu_fixture.h"

#include "compute/backend_open.h"
#include "engine/logits.h"

static backend *cuda, *truth;

/* ---- comparing -------------------------------------------------------------------------------- */

/* |out - wanted| / |wanted|; NaN and infinity count as wrong. */
static double distance(const float *out, const float *wanted, size_t n)
{
    double difference = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(out[i]))
            return INFINITY;
        difference += ((double)out[i] - (double)wanted[i]) * ((double)out[i] - (double)wanted[i]);
        size += (double)wanted[i] * (double)wanted[i];
    }
    return size > 0 ? sqrt(difference / size) : sqrt(difference);
}

static double largest_distance;

static void assert_close(const float *out, const float *wanted, size_t n, double limit,
                         const char *what)
{
    double d = distance(out, wanted, n);
    largest_distance = fmax(largest_distance, d);
    if (!(d <= limit))
        fail_msg("%s: the distance to the reference is %g, over %g", what, d, limit);
}

static void assert_equal_bits(const float *a, const float *b, size_t n, const char *what)
{
    for (size_t i = 0; i < n; i++)
        if (memcmp(&a[i], &b[i], sizeof *a) != 0)
            fail_msg("%s: element %zu of %zu is %.9g and not %.9g", what, i, n, (double)a[i],
                     (double)b[i]);
}

static tensor poisoned(backend *b, int32_t n_rows, int32_t n_cols)
{
    size_t n = (size_t)n_rows * (size_t)n_cols;
    float *nan = malloc(n * sizeof *nan);
    for (size_t i = 0; i < n; i++)
        nan[i] = NAN;
    tensor t = open_tensor(b, n_rows, n_cols, nan);
    free(nan);
    return t;
}

/* ---- rows and elements -------------------------------------------------------------------------- */

#define RESULTS 12

typedef struct row_inputs {
    int32_t n_rows, n_cols;
    float *x, *y, *gain, *frequencies;
    uint8_t *table;
} row_inputs;

/* Every operation that is no product; results[i] as [n_rows, n_cols]. */
static void run_row_operations(backend *b, const row_inputs *in, int32_t first, int32_t count,
                               float **results)
{
    const backend_table *t = b->table;
    int32_t n = in->n_cols, i = 0;
    size_t at = (size_t)first * (size_t)n;
    tensor x = open_tensor(b, count, n, in->x + at), y = open_tensor(b, count, n, in->y + at);
    tensor out = poisoned(b, count, n);
    weight *gain = open_weight(b, DTYPE_F32, 1, n, in->gain);
    weight *table = open_weight(b, DTYPE_Q8_0, 64, (n + 31) / 32 * 32, in->table);
    tensor embedded = poisoned(b, count, (n + 31) / 32 * 32);
    int32_t *numbers = malloc((size_t)count * sizeof *numbers * 3), *ids = numbers + count,
            *order = ids + count;
    for (int32_t j = 0; j < count; j++) {
        numbers[j] = (first + j) * 977;
        ids[j] = (first + j) * 5 % 64;
        order[j] = j;
    }
    rope normal = {ROPE_NORMAL, n / 8 * 2, in->frequencies, 1.25f},
         neox = {ROPE_NEOX, n / 8 * 2, in->frequencies, 1};
    t->norm(b, out, x, NORM_RMS, gain, NULL, 1e-6f);
    t->read(b, results[i++], out);
    t->norm(b, out, x, NORM_LAYER, gain, gain, 1e-6f);
    t->read(b, results[i++], out);
    t->norm(b, out, x, NORM_RMS, NULL, NULL, 1e-6f);
    t->read(b, results[i++], out);
    for (int kind = 0; kind < 3; kind++) {
        t->gated(b, out, x, y, (activation_kind)kind);
        t->read(b, results[i++], out);
    }
    t->add(b, out, x, y, 0.7f);
    t->soft_cap(b, out, 2);
    t->read(b, results[i++], out);
    t->gather(b, out, x, order);
    t->apply_rope(b, out, n, &normal, numbers);
    t->read(b, results[i++], out);
    t->gather(b, out, x, order);
    t->apply_rope(b, out, n, &neox, numbers);
    t->read(b, results[i++], out);
    t->embed(b, embedded, table, ids, 3.0f);
    t->read(b, results[i++], tensor_reshape(embedded, n)); /* its front, as the room is */
    /* In a step, where an addition waits for its norm. */
    int32_t *positions = numbers, *sequences = calloc((size_t)count, sizeof *sequences);
    const int32_t page = 0, *tables[1] = {&page};
    step_rows rows = {count, positions, sequences, 1, tables};
    t->begin(b, &rows);
    t->gather(b, out, x, order);
    t->add(b, out, out, y, -0.3f);
    t->norm(b, y, out, NORM_RMS, gain, NULL, 1e-6f);
    t->end(b);
    t->read(b, results[i++], out);
    t->read(b, results[i++], y);
    t->weight_close(b, gain), t->weight_close(b, table);
    t->tensor_close(b, &x), t->tensor_close(b, &y), t->tensor_close(b, &out),
        t->tensor_close(b, &embedded);
    free(numbers), free(sequences);
}

static void rows_and_elements_are_those_of_the_reference(void **state)
{
    (void)state;
    static const int32_t shapes[][2] = {{1, 8},    {3, 40},   {5, 576},   {2, 2048},
                                        {9, 4096}, {2, 5120}, {2, 11008}, {1, 20480}};
    rng r;
    rng_init(&r, 11);
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        row_inputs in = {shapes[s][0], shapes[s][1]};
        size_t n = (size_t)in.n_rows * (size_t)in.n_cols, wide = (size_t)(in.n_cols + 31);
        float *results[2][RESULTS], *one[RESULTS];
        in.x = random_floats(&r, n, 3);
        in.y = random_floats(&r, n, 3);
        in.gain = random_floats(&r, (size_t)in.n_cols, 1);
        in.frequencies = random_floats(&r, (size_t)in.n_cols, 1);
        in.table = random_weights(&r, DTYPE_Q8_0, 64, (in.n_cols + 31) / 32 * 32);
        for (int i = 0; i < RESULTS; i++) {
            results[0][i] = calloc((size_t)in.n_rows * wide, sizeof(float));
            results[1][i] = calloc((size_t)in.n_rows * wide, sizeof(float));
            one[i] = calloc((size_t)in.n_rows * wide, sizeof(float));
        }
        run_row_operations(truth, &in, 0, in.n_rows, results[0]);
        run_row_operations(cuda, &in, 0, in.n_rows, results[1]);
        for (int i = 0; i < RESULTS; i++) {
            char what[80];
            snprintf(what, sizeof what, "operation %d, %d x %d", i, in.n_rows, in.n_cols);
            assert_close(results[1][i], results[0][i], n, 1e-6, what);
        }
        for (int32_t row = 0; row < in.n_rows; row++) {
            run_row_operations(cuda, &in, row, 1, one);
            for (int i = 0; i < RESULTS; i++)
                if (i != 9) /* whose rows are cut differently by the reshape */
                    assert_equal_bits(one[i], results[1][i] + (size_t)row * (size_t)in.n_cols,
                                      (size_t)in.n_cols, "a row alone");
        }
        for (int i = 0; i < RESULTS; i++)
            free(results[0][i]), free(results[1][i]), free(one[i]);
        free(in.x), free(in.y), free(in.gain), free(in.frequencies), free(in.table);
    }
}

static void rows_of_every_type_are_embedded_to_the_bit(void **state)
{
    (void)state;
    rng r;
    rng_init(&r, 12);
    for (size_t t = 0; t < N_WEIGHT_TYPES; t++) {
        uint32_t type = weight_types[t];
        int32_t block = (int32_t)dtype_block_elements(type), n_rows = 37;
        int32_t n_cols = block == 1 ? 77 : block * 3, ids[5] = {0, 36, 17, 9, 8};
        uint8_t *data = random_weights(&r, type, n_rows, n_cols);
        float *wanted = malloc((size_t)n_cols * 5 * 4), *out = malloc((size_t)n_cols * 5 * 4);
        backend *both[2] = {truth, cuda};
        for (int i = 0; i < 2; i++) {
            backend *b = both[i];
            weight *w = open_weight(b, type, n_rows, n_cols, data);
            tensor to = poisoned(b, 5, n_cols);
            b->table->embed(b, to, w, ids, 1);
            b->table->read(b, i == 0 ? wanted : out, to);
            b->table->tensor_close(b, &to);
            b->table->weight_close(b, w);
        }
        /* A scale of more than a half's eleven bits (IQ4_XS) is rounded to them. */
        if (type == DTYPE_IQ4_XS || type == DTYPE_Q8_K)
            assert_close(out, wanted, (size_t)n_cols * 5, 5e-4, dtype_name(type));
        else
            for (int32_t i = 0; i < n_cols * 5; i++)
                if (out[i] != wanted[i])
                    fail_msg("%s: element %d is %.9g and not %.9g", dtype_name(type), i,
                             (double)out[i], (double)wanted[i]);
        free(data), free(wanted), free(out);
    }
}

/* ---- products ----------------------------------------------------------------------------------- */

static float *multiply(backend *b, const weight *w, const weight *bias, const float *x,
                       int32_t n_tokens)
{
    float *out = malloc((size_t)n_tokens * (size_t)w->n_rows * sizeof *out);
    tensor in = open_tensor(b, n_tokens, w->n_cols, x), to = poisoned(b, n_tokens, w->n_rows);
    b->table->matmul(b, &to, in, &w, &bias, 1);
    b->table->read(b, out, to);
    b->table->tensor_close(b, &in);
    b->table->tensor_close(b, &to);
    return out;
}

static void check_product(uint32_t type, int32_t n_rows, int32_t n_cols, int32_t n_tokens, rng *r)
{
    uint8_t *data = random_weights(r, type, n_rows, n_cols);
    float *x = random_floats(r, (size_t)n_tokens * (size_t)n_cols, 1),
          *bias = random_floats(r, (size_t)n_rows, 1);
    for (int32_t t = 0; t < n_tokens; t++) /* rows of very different sizes */
        for (int32_t k = 0; k < n_cols; k++)
            x[(size_t)t * (size_t)n_cols + (size_t)k] *= ldexpf(1, (t * 7) % 41 - 20);
    weight *ws[2] = {open_weight(truth, type, n_rows, n_cols, data),
                     open_weight(cuda, type, n_rows, n_cols, data)};
    float *wanted = multiply(truth, ws[0], NULL, x, n_tokens),
          *out = multiply(cuda, ws[1], NULL, x, n_tokens);
    char what[100];
    snprintf(what, sizeof what, "%s %d x %d, %d tokens", dtype_name(type), n_rows, n_cols,
             n_tokens);
    /* Weights and activations are halves: 2^-11 of each term. Few sums may cancel to nearly nothing. */
    double limit = (type == DTYPE_F32 ? 2e-6 : 3e-3) * (n_rows < 16 ? 10 : 1);
    for (int32_t t = 0; t < n_tokens; t++)
        assert_close(out + (size_t)t * (size_t)n_rows, wanted + (size_t)t * (size_t)n_rows,
                     (size_t)n_rows, limit, what);
    /* Any part of the tokens gives the same bits, and so with a bias. */
    static const int32_t steps[] = {1, 3, 8, 9, 16, 31, 64, 100};
    for (int32_t first = 0, i = 0; first < n_tokens; first += steps[i++ % 8]) {
        int32_t count = steps[i % 8] < n_tokens - first ? steps[i % 8] : n_tokens - first;
        float *part = multiply(cuda, ws[1], NULL, x + (size_t)first * (size_t)n_cols, count);
        assert_equal_bits(part, out + (size_t)first * (size_t)n_rows,
                          (size_t)count * (size_t)n_rows, what);
        free(part);
    }
    weight *row = open_weight(cuda, DTYPE_F32, 1, n_rows, bias);
    float *biased = multiply(cuda, ws[1], row, x, n_tokens);
    for (int32_t i = 0; i < n_tokens * n_rows; i++)
        out[i] += bias[i % n_rows];
    assert_equal_bits(biased, out, (size_t)n_tokens * (size_t)n_rows, what);
    cuda->table->weight_close(cuda, row);
    truth->table->weight_close(truth, ws[0]);
    cuda->table->weight_close(cuda, ws[1]);
    free(data), free(x), free(bias), free(wanted), free(out), free(biased);
}

static void products_of_every_type_are_those_of_the_reference(void **state)
{
    (void)state;
    rng r;
    rng_init(&r, 1);
    for (size_t t = 0; t < N_WEIGHT_TYPES; t++) {
        int32_t block = (int32_t)dtype_block_elements(weight_types[t]);
        largest_distance = 0;
        check_product(weight_types[t], 37, block == 1 ? 77 : block * 3, 5, &r);
        check_product(weight_types[t], 2, block, 1, &r);
        check_product(weight_types[t], 160, block * (1 + 576 / block), 13, &r);
        check_product(weight_types[t], 333, 1024, 140, &r);
        check_product(weight_types[t], 96, 2816, 300, &r);
        /* More tiles than two a multiprocessor, three of each segment. */
        check_product(weight_types[t], 4300, 1280, 26, &r);
        print_message("  %-7s distance to the reference at most %.2e\n",
                      dtype_name(weight_types[t]), largest_distance);
    }
}

/* More rows than the device has at once, and more columns than shared memory has room for. */
static void products_of_long_matrices_are_those_of_the_reference(void **state)
{
    (void)state;
    static const uint32_t types[] = {DTYPE_Q4_K, DTYPE_Q6_K, DTYPE_F16};
    rng r;
    rng_init(&r, 4);
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        check_product(types[t], 13000, 512, 64, &r);
        check_product(types[t], 9000, 1280, 20, &r);
        check_product(types[t], 200, 28672, 49, &r);
        check_product(types[t], 130, 28672, 16, &r);
    }
}

/* Of more than 32 tokens, that a device of 132 multiprocessors divides in each way that there is: shares of 2 and 5
 * segments of eight, places that are all whole, and whole places before shares of 3, also where some segments have no
 * columns. */
static void products_that_blocks_share_are_those_of_the_reference(void **state)
{
    (void)state;
    static const uint32_t types[] = {DTYPE_Q4_K, DTYPE_F16};
    rng r;
    rng_init(&r, 5);
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        check_product(types[t], 4200, 1280, 96, &r);
        check_product(types[t], 4200, 1280, 40, &r);
        check_product(types[t], 5100, 512, 140, &r);
        check_product(types[t], 10200, 512, 64, &r);
        check_product(types[t], 12200, 512, 70, &r);
        check_product(types[t], 22000, 256, 80, &r);
        check_product(types[t], 22000, 768, 65, &r);
        check_product(types[t], 22000, 256, 33, &r);
    }
}

static void products_of_few_columns_work(void **state)
{
    (void)state;
    rng r;
    rng_init(&r, 2);
    for (int32_t cols = 1; cols < 40; cols += 3) {
        check_product(DTYPE_F16, cols + 1, cols, 1 + cols % 14, &r);
        check_product(DTYPE_BF16, cols + 1, cols, 1 + cols % 14, &r);
    }
}

/* Several products of one input, of different kinds and sizes, are each what they are alone. */
static void products_that_share_an_input_are_those_alone(void **state)
{
    (void)state;
    rng r;
    rng_init(&r, 3);
    enum { COLS = 512, TOKENS = 6 };
    static const uint32_t types[] = {DTYPE_Q4_K, DTYPE_Q4_K, DTYPE_Q6_K, DTYPE_F32, DTYPE_Q4_0};
    static const int32_t rows[] = {96, 17, 200, 33, 64};
    float *x = random_floats(&r, TOKENS * COLS, 2);
    tensor in = open_tensor(cuda, TOKENS, COLS, x), outs[5];
    weight *ws[5];
    for (int i = 0; i < 5; i++) {
        uint8_t *data = random_weights(&r, types[i], rows[i], COLS);
        ws[i] = open_weight(cuda, types[i], rows[i], COLS, data);
        outs[i] = poisoned(cuda, TOKENS, rows[i]);
        free(data);
    }
    cuda->table->matmul(cuda, outs, in, (const weight *const *)ws, NULL, 5);
    for (int i = 0; i < 5; i++) {
        float *alone = multiply(cuda, ws[i], NULL, x, TOKENS),
              *out = malloc(sizeof *out * TOKENS * 200);
        cuda->table->read(cuda, out, outs[i]);
        assert_equal_bits(out, alone, (size_t)TOKENS * (size_t)rows[i], dtype_name(types[i]));
        free(alone), free(out);
        cuda->table->weight_close(cuda, ws[i]);
        cuda->table->tensor_close(cuda, &outs[i]);
    }
    cuda->table->tensor_close(cuda, &in);
    free(x);
}

/* ---- products that make what follows them --------------------------------------------------------- */

enum { CHAIN_COLS = 512, CHAIN_FF = 704, CHAIN_ROWS = 150 };

typedef struct chain {
    weight *gain[2], *through, *back, *pair[2], *down;
    void *data[7]; /* the backend's to read until weights are closed */
    activation_kind activation;
    float scale; /* of what is added */
} chain;

static chain open_chain(backend *b, uint32_t type, activation_kind activation, float scale)
{
    rng r;
    rng_init(&r, type);
    chain c = {.activation = activation, .scale = scale};
    for (int i = 0; i < 2; i++) {
        float *gain = random_floats(&r, CHAIN_COLS, 1);
        c.gain[i] = open_weight(b, DTYPE_F32, 1, CHAIN_COLS, gain);
        c.data[5 + i] = gain;
    }
    const struct {
        weight **to;
        int32_t rows, cols;
    } all[] = {{&c.through, CHAIN_COLS, CHAIN_COLS},
               {&c.back, CHAIN_COLS, CHAIN_COLS},
               {&c.pair[0], CHAIN_FF, CHAIN_COLS},
               {&c.pair[1], CHAIN_FF, CHAIN_COLS},
               {&c.down, CHAIN_COLS, CHAIN_FF}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        /* 704 columns are no whole blocks of 256. */
        uint32_t of = i == 4 && dtype_block_elements(type) == 256 ? DTYPE_Q8_0 : type;
        uint8_t *data = random_weights(&r, of, all[i].rows, all[i].cols);
        if (i == 2 || i == 3)
            *all[i].to = open_of_pair(b, of, CHAIN_FF, CHAIN_COLS, data, i == 3 ? c.pair[0] : NULL);
        else
            *all[i].to = open_weight(b, of, all[i].rows, all[i].cols, data);
        c.data[i] = data;
    }
    return c;
}

static void close_chain(backend *b, chain *c)
{
    weight *all[] = {c->gain[0], c->gain[1], c->through, c->back, c->pair[0], c->pair[1], c->down};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        b->table->weight_close(b, all[i]);
        free(c->data[i]);
    }
}

/* Two sublayers and the norm after them, as a model has them, of n rows, after the first of which only the last `kept`
 * go on. results: the stream, its norm, and a product of that, [kept, CHAIN_COLS] each. apart: with a product and a gate
 * instead of both at once, as where adapters come between. */
static void run_chain(backend *b, const chain *c, const float *x0, int32_t n, int32_t kept,
                      int apart, float *const results[3])
{
    const backend_table *t = b->table;
    int32_t numbers[CHAIN_ROWS], zeros[CHAIN_ROWS] = {0}, page = 0;
    const int32_t *tables[1] = {&page};
    step_rows rows = {n, numbers, zeros, 1, tables};
    tensor all[6], ff[2];
    for (int i = 0; i < 6; i++)
        all[i] = i == 0 ? open_tensor(b, n, CHAIN_COLS, x0) : poisoned(b, n, CHAIN_COLS);
    for (int i = 0; i < 2; i++)
        ff[i] = poisoned(b, n, CHAIN_FF);
    tensor x = all[0], normed = all[1], q = all[2], room = all[3];
    for (int32_t i = 0; i < n; i++)
        numbers[i] = i;
    t->begin(b, &rows);
    t->norm(b, normed, x, NORM_RMS, c->gain[0], NULL, 1e-6f);
    t->matmul(b, &q, normed, (const weight *const *)&c->through, NULL, 1);
    if (kept < n) {
        int32_t order[CHAIN_ROWS];
        for (int32_t i = 0; i < kept; i++)
            order[i] = n - kept + i;
        t->gather(b, tensor_rows(all[4], 0, kept), q, order);
        t->gather(b, tensor_rows(all[5], 0, kept), x, order);
        q = tensor_rows(all[4], 0, kept), x = tensor_rows(all[5], 0, kept);
        normed = tensor_rows(normed, 0, kept), room = tensor_rows(room, 0, kept);
    }
    tensor both[] = {tensor_rows(ff[0], 0, kept), tensor_rows(ff[1], 0, kept)};
    backend_matmul_add(b, x, room, q, c->back, c->scale);
    t->norm(b, normed, x, NORM_RMS, c->gain[1], NULL, 1e-6f);
    if (apart) {
        t->matmul(b, both, normed, (const weight *const *)c->pair, NULL, 2);
        t->gated(b, both[0], both[0], both[1], c->activation);
    } else {
        backend_gated_matmul(b, both[0], both[1], normed, (const weight *const *)c->pair,
                             c->activation);
    }
    if (apart) {
        t->matmul(b, &room, both[0], (const weight *const *)&c->down, NULL, 1);
        t->add(b, x, x, room, c->scale);
    } else {
        backend_matmul_add(b, x, room, both[0], c->down, c->scale);
    }
    t->norm(b, normed, x, NORM_RMS, c->gain[0], NULL, 1e-6f);
    tensor out = tensor_rows(all[2], 0, kept);
    t->matmul(b, &out, normed, (const weight *const *)&c->through, NULL, 1);
    t->end(b);
    t->read(b, results[0], x);
    t->read(b, results[1], normed);
    t->read(b, results[2], out);
    for (int i = 0; i < 6; i++)
        t->tensor_close(b, &all[i]);
    for (int i = 0; i < 2; i++)
        t->tensor_close(b, &ff[i]);
}

/* Sizes of what is added and of rows: next to each other, and far beyond what scales are guessed for. */
static void chains_of_products_are_those_of_the_reference_in_any_batch(void **state)
{
    (void)state;
    static const struct {
        uint32_t type;
        activation_kind activation;
        float scale, size;
    } cases[] = {
        {DTYPE_Q4_K, ACTIVATION_SILU, 0.01f, 1},        {DTYPE_Q4_K, ACTIVATION_SILU, 1e6f, 1e-3f},
        {DTYPE_Q6_K, ACTIVATION_GELU_TANH, 0.001f, 30}, {DTYPE_Q8_K, ACTIVATION_GELU, 1e-5f, 1e-6f},
        {DTYPE_F16, ACTIVATION_SILU, 0.05f, 1e6f},      {DTYPE_BF16, ACTIVATION_SILU, 1e-9f, 1},
        {DTYPE_MXFP4, ACTIVATION_SILU, 0.01f, 1},       {DTYPE_Q5_0, ACTIVATION_SILU, 0.01f, 1}};
    static const int32_t batches[] = {1, 7, 8, 9, 16, 30, 33, 64, 65};
    const size_t n = (size_t)CHAIN_ROWS * CHAIN_COLS;
    float *wanted[3], *whole[3], *part[3];
    rng r;
    rng_init(&r, 8);
    for (int i = 0; i < 3; i++) {
        wanted[i] = malloc(n * sizeof(float));
        whole[i] = malloc(n * sizeof(float));
        part[i] = malloc(n * sizeof(float));
    }
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        float *x = random_floats(&r, n, cases[i].size);
        for (int32_t k = 0; k < CHAIN_COLS; k++) /* some rows are others' size */
            x[5 * CHAIN_COLS + k] *= 1e4f, x[11 * CHAIN_COLS + k] *= 1e-5f;
        x[3 * CHAIN_COLS + 77] *= 3000; /* and one has an element alone */
        chain on_truth = open_chain(truth, cases[i].type, cases[i].activation, cases[i].scale),
              c = open_chain(cuda, cases[i].type, cases[i].activation, cases[i].scale);
        char what[60];
        snprintf(what, sizeof what, "case %zu", i);
        run_chain(truth, &on_truth, x, CHAIN_ROWS, CHAIN_ROWS, 0, wanted);
        run_chain(cuda, &c, x, CHAIN_ROWS, CHAIN_ROWS, 0, whole);
        for (int j = 0; j < 3; j++)
            for (size_t row = 0; row < CHAIN_ROWS; row++)
                assert_close(whole[j] + row * CHAIN_COLS, wanted[j] + row * CHAIN_COLS, CHAIN_COLS,
                             1e-2, what);
        for (int32_t first = 0, k = 0; first < CHAIN_ROWS; first += batches[k++ % 9]) {
            int32_t count = batches[k % 9] < CHAIN_ROWS - first ? batches[k % 9]
                                                                : CHAIN_ROWS - first;
            for (int way = 0; way < 3; way++) {
                int32_t kept = way == 1 ? (count + 1) / 2 : count;
                run_chain(cuda, &c, x + (size_t)first * CHAIN_COLS, count, kept, way == 2, part);
                for (int j = 0; j < 3; j++)
                    assert_equal_bits(part[j],
                                      whole[j] + (size_t)(first + count - kept) * CHAIN_COLS,
                                      (size_t)kept * CHAIN_COLS, what);
            }
        }
        close_chain(truth, &on_truth);
        close_chain(cuda, &c);
        free(x);
    }
    for (int i = 0; i < 3; i++)
        free(wanted[i]), free(whole[i]), free(part[i]);
}

/* ---- attention ---------------------------------------------------------------------------------- */

typedef struct shape {
    int32_t n_heads, n_kv_heads, key_dim, value_dim;
    dtype type;
    float soft_cap;
    int32_t window;
} shape;

static const shape shapes[] = {
    {9, 3, 64, 64, DTYPE_F16, 0, 0},      {4, 1, 256, 256, DTYPE_F16, 0, 40},
    {8, 8, 128, 128, DTYPE_F16, 50, 0},   {6, 2, 80, 48, DTYPE_F16, 0, 0},
    {5, 5, 7, 3, DTYPE_F16, 0, 5},        {40, 1, 16, 16, DTYPE_F16, 0, 0},
    {9, 3, 64, 64, DTYPE_Q8_0, 0, 0},     {8, 2, 32, 96, DTYPE_Q8_0, 20, 33},
    {16, 2, 100, 20, DTYPE_F16, 10, 300}, {8, 1, 128, 128, DTYPE_Q8_0, 0, 0},
    {12, 3, 128, 128, DTYPE_F16, 0, 0},   {6, 6, 128, 128, DTYPE_F16, 0, 70},
};
#define N_SHAPES  ((int)(sizeof shapes / sizeof *shapes))
#define MAX_PAGES 64

typedef struct sequence {
    int32_t n;
    float *q, *k, *v;
    int32_t pages[MAX_PAGES];
} sequence;

static sequence random_sequence(rng *r, const shape *s, int32_t n, int32_t first_page, int32_t step)
{
    sequence out = {.n = n};
    out.q = random_floats(r, (size_t)n * s->n_heads * s->key_dim, 3);
    out.k = random_floats(r, (size_t)n * s->n_kv_heads * s->key_dim, 2);
    out.v = random_floats(r, (size_t)n * s->n_kv_heads * s->value_dim, 1);
    for (int i = 0; i < MAX_PAGES; i++)
        out.pages[i] = first_page + i * step; /* never in order of memory */
    return out;
}

static void free_sequence(sequence *s)
{
    free(s->q), free(s->k), free(s->v);
}

/* Pages full of NaN, as another sequence may have left them. */
static kv_store *open_pages(backend *b, const shape *s)
{
    realm_error error;
    kv_store *kv;
    kv_layer_shape layers[2] = {{1, 32, 32}, {s->n_kv_heads, s->key_dim, s->value_dim}};
    kv_shape shape_of = {2, layers, MAX_PAGES, s->type};
    assert_status(b->table->kv_open(b, &kv, &shape_of, &error), REALM_OK, error);
    int32_t positions[KV_PAGE_TOKENS], sequences[KV_PAGE_TOKENS] = {0};
    tensor k = poisoned(b, KV_PAGE_TOKENS, s->n_kv_heads * s->key_dim);
    tensor v = poisoned(b, KV_PAGE_TOKENS, s->n_kv_heads * s->value_dim);
    for (int32_t page = 0; page < MAX_PAGES; page++) {
        const int32_t *tables[1] = {&page};
        for (int32_t i = 0; i < KV_PAGE_TOKENS; i++)
            positions[i] = i;
        step_rows rows = {KV_PAGE_TOKENS, positions, sequences, 1, tables};
        b->table->begin(b, &rows);
        b->table->kv_write(b, kv, 1, k, v);
        b->table->end(b);
    }
    b->table->tensor_close(b, &k);
    b->table->tensor_close(b, &v);
    return kv;
}

/* Writes and attends tokens first .. first+count-1 of each of n sequences in one step, with the queries
 * and keys turned on the way; outs[i] gets those rows. */
static void step(backend *b, kv_store *kv, const shape *s, const sequence *const *list, int32_t n,
                 const int32_t *firsts, const int32_t *counts, float *const *outs)
{
    static const float frequencies[64] = {1, 0.1f, 0.7f, 0.3f, 0.03f, 0.05f, 0.01f, 0.2f};
    int32_t total = 0, q_cols = s->n_heads * s->key_dim, k_cols = s->n_kv_heads * s->key_dim;
    int32_t v_cols = s->n_kv_heads * s->value_dim, out_cols = s->n_heads * s->value_dim;
    for (int32_t i = 0; i < n; i++)
        total += counts[i];
    int32_t *positions = malloc((size_t)total * 4), *sequences = malloc((size_t)total * 4);
    const int32_t *tables[8];
    tensor q = open_tensor(b, total, q_cols, NULL), k = open_tensor(b, total, k_cols, NULL);
    tensor v = open_tensor(b, total, v_cols, NULL), out = poisoned(b, total, out_cols);
    for (int32_t i = 0, row = 0; i < n; row += counts[i++]) {
        const sequence *x = list[i];
        tables[i] = x->pages;
        for (int32_t t = 0; t < counts[i]; t++) {
            positions[row + t] = firsts[i] + t;
            sequences[row + t] = i;
        }
        b->table->write(b, tensor_rows(q, row, counts[i]), x->q + (size_t)firsts[i] * q_cols);
        b->table->write(b, tensor_rows(k, row, counts[i]), x->k + (size_t)firsts[i] * k_cols);
        b->table->write(b, tensor_rows(v, row, counts[i]), x->v + (size_t)firsts[i] * v_cols);
    }
    step_rows rows = {total, positions, sequences, n, tables};
    attention_options o = {1, s->n_heads, 1 / sqrtf((float)s->key_dim), s->soft_cap, s->window};
    /* Whole heads of 128 in both ways, of others a part. */
    rope turn = {s->window ? ROPE_NORMAL : ROPE_NEOX, s->key_dim == 128 ? 128 : 4, frequencies, 1};
    b->table->begin(b, &rows);
    b->table->apply_rope(b, q, s->key_dim, &turn, positions);
    b->table->apply_rope(b, k, s->key_dim, &turn, positions);
    b->table->kv_write(b, kv, 1, k, v);
    b->table->attention(b, out, q, kv, &o);
    b->table->end(b);
    for (int32_t i = 0, row = 0; i < n; row += counts[i++])
        b->table->read(b, outs[i], tensor_rows(out, row, counts[i]));
    b->table->tensor_close(b, &q), b->table->tensor_close(b, &k);
    b->table->tensor_close(b, &v), b->table->tensor_close(b, &out);
    free(positions), free(sequences);
}

/* All positions of one sequence, chunk tokens a step; chunk 0: steps of 1, 2, 3, ... tokens. */
static float *attend(backend *b, const shape *s, const sequence *x, int32_t chunk)
{
    size_t cols = (size_t)s->n_heads * s->value_dim;
    float *out = calloc((size_t)x->n * cols + 1, sizeof *out);
    kv_store *kv = open_pages(b, s);
    for (int32_t first = 0, size = 1; first < x->n; size++) {
        int32_t count = chunk ? chunk : size;
        count = count < x->n - first ? count : x->n - first;
        float *at = out + (size_t)first * cols;
        step(b, kv, s, &x, 1, &first, &count, &at);
        first += count;
    }
    b->table->kv_close(b, kv);
    return out;
}

static void attention_is_that_of_the_reference(void **state)
{
    (void)state;
    rng r;
    rng_init(&r, 1);
    for (int i = 0; i < N_SHAPES; i++) {
        const shape *s = &shapes[i];
        sequence x = random_sequence(&r, s, 330, 60, -3);
        float *wanted = attend(truth, s, &x, x.n), *out = attend(cuda, s, &x, x.n);
        char what[40];
        snprintf(what, sizeof what, "shape %d", i);
        assert_close(out, wanted, (size_t)x.n * s->n_heads * s->value_dim, 3e-3, what);
        print_message("  shape %d: distance to the reference %.2e\n", i,
                      distance(out, wanted, (size_t)x.n * s->n_heads * s->value_dim));
        free(wanted), free(out);
        free_sequence(&x);
    }
}

static void chunks_change_no_bit_of_attention(void **state)
{
    (void)state;
    rng r;
    rng_init(&r, 2);
    static const int32_t ways[] = {1, 7, 0, 100, 32, 65};
    for (int i = 0; i < N_SHAPES; i++) {
        const shape *s = &shapes[i];
        sequence x = random_sequence(&r, s, 270 + 7 * i, 3, 1);
        float *wanted = attend(cuda, s, &x, x.n);
        for (size_t c = 0; c < sizeof ways / sizeof *ways; c++) {
            float *out = attend(cuda, s, &x, ways[c]);
            char what[60];
            snprintf(what, sizeof what, "shape %d, chunks of %d", i, ways[c]);
            assert_equal_bits(out, wanted, (size_t)x.n * s->n_heads * s->value_dim, what);
            free(out);
        }
        free(wanted);
        free_sequence(&x);
    }
}

/* A sequence of n tokens in one step, or its last ones alone: heads enough to have a warp each, or so few that the
 * units of a long sequence are dealt to many. */
static void last_tokens_have_the_bits_of_whole_prompts(void **state)
{
    (void)state;
    static const struct {
        shape s;
        int32_t n;
    } cases[] = {{{2, 2, 128, 128, DTYPE_F16, 0, 0}, 700},
                 {{8, 2, 128, 128, DTYPE_F16, 0, 200}, 1000},
                 {{3, 3, 64, 64, DTYPE_F16, 0, 0}, 700},
                 {{420, 420, 128, 128, DTYPE_F16, 0, 0}, 150}};
    rng r;
    rng_init(&r, 7);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const shape *s = &cases[i].s;
        const size_t cols = (size_t)s->n_heads * s->value_dim;
        const int32_t n = cases[i].n;
        sequence x = random_sequence(&r, s, n, 3, 1);
        const sequence *list[1] = {&x};
        float *wanted = attend(cuda, s, &x, n), *out = malloc((size_t)n * cols * sizeof *out);
        kv_store *kv = open_pages(cuda, s);
        for (int32_t first = 0; first < n; first += first == 0 ? n - 4 : 1) {
            const int32_t count = first == 0 ? n - 4 : 1;
            float *at = out + (size_t)first * cols;
            step(cuda, kv, s, list, 1, &first, &count, &at);
        }
        cuda->table->kv_close(cuda, kv);
        char what[40];
        snprintf(what, sizeof what, "case %zu", i);
        assert_equal_bits(out, wanted, (size_t)n * cols, what);
        free(wanted), free(out);
        free_sequence(&x);
    }
}

/* A step of few rows of each sequence, whose keys attention may write itself, and one that reads what it wrote. */
static void few_rows_of_sequences_have_the_bits_of_whole_prompts(void **state)
{
    (void)state;
    enum { MOST = 6 };
    static const struct {
        shape s;
        int32_t n, firsts[MOST], counts[MOST];
    } cases[] = {
        {{8, 8, 128, 128, DTYPE_F16, 0, 0}, 6, {0, 31, 32, 63, 64, 127}, {1, 1, 1, 1, 1, 1}},
        {{160, 160, 128, 128, DTYPE_F16, 0, 0}, 6, {0, 31, 32, 63, 64, 127}, {1, 1, 1, 1, 1, 1}},
        {{160, 20, 128, 128, DTYPE_F16, 30, 0}, 6, {0, 31, 32, 63, 64, 127}, {1, 1, 1, 1, 1, 1}},
        {{8, 2, 128, 128, DTYPE_F16, 0, 0}, 6, {0, 31, 32, 63, 62, 127}, {2, 2, 1, 2, 2, 2}},
        {{16, 2, 128, 128, DTYPE_F16, 0, 70}, 6, {0, 31, 32, 63, 62, 127}, {2, 2, 1, 2, 2, 2}},
        {{40, 2, 128, 128, DTYPE_F16, 0, 40}, 4, {0, 31, 63, 200}, {2, 2, 2, 1}},
        {{2, 1, 128, 128, DTYPE_F16, 0, 0}, 1, {767}, {2}},
        {{8, 1, 128, 128, DTYPE_F16, 0, 300}, 2, {767, 63}, {2, 1}},
        {{8, 2, 128, 128, DTYPE_F16, 0, 0}, 3, {30, 62, 383}, {3, 4, 2}},
        {{4, 2, 64, 64, DTYPE_F16, 0, 0}, 2, {31, 63}, {2, 1}},
        {{4, 2, 128, 128, DTYPE_Q8_0, 0, 0}, 2, {31, 63}, {2, 1}},
    };
    rng r;
    rng_init(&r, 9);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const shape *s = &cases[i].s;
        const size_t cols = (size_t)s->n_heads * s->value_dim;
        const int32_t n = cases[i].n;
        sequence x[MOST];
        const sequence *list[MOST];
        float *out[MOST], *at[MOST];
        int32_t firsts[MOST], ones[MOST];
        kv_store *kv = open_pages(cuda, s);
        for (int32_t j = 0; j < n; j++) {
            firsts[j] = cases[i].firsts[j], ones[j] = 1;
            const int32_t end = firsts[j] + cases[i].counts[j], from = 0;
            x[j] = random_sequence(&r, s, end + 1, j, n);
            list[j] = &x[j];
            at[j] = out[j] = malloc((size_t)x[j].n * cols * sizeof **out);
            if (firsts[j] > 0)
                step(cuda, kv, s, &list[j], 1, &from, &firsts[j], &at[j]);
            at[j] += (size_t)firsts[j] * cols;
        }
        step(cuda, kv, s, list, n, firsts, cases[i].counts, at);
        for (int32_t j = 0; j < n; j++) {
            firsts[j] += cases[i].counts[j];
            at[j] = out[j] + (size_t)firsts[j] * cols;
        }
        step(cuda, kv, s, list, n, firsts, ones, at);
        cuda->table->kv_close(cuda, kv);
        for (int32_t j = 0; j < n; j++) {
            char what[60];
            snprintf(what, sizeof what, "case %zu, sequence %d", i, j);
            float *truly = attend(truth, s, &x[j], x[j].n);
            assert_close(out[j], truly, (size_t)x[j].n * cols, 3e-3, what);
            float *wanted = attend(cuda, s, &x[j], x[j].n);
            assert_equal_bits(out[j], wanted, (size_t)x[j].n * cols, what);
            free(out[j]), free(wanted), free(truly);
            free_sequence(&x[j]);
        }
    }
}

static void neighbours_in_a_batch_change_no_bit(void **state)
{
    (void)state;
    rng r;
    rng_init(&r, 3);
    for (int i = 0; i < N_SHAPES; i++) {
        const shape *s = &shapes[i];
        size_t cols = (size_t)s->n_heads * s->value_dim;
        sequence x[3] = {random_sequence(&r, s, 70, 0, 3), random_sequence(&r, s, 270, 1, 3),
                         random_sequence(&r, s, 33, 2, 3)};
        const sequence *all[3] = {&x[0], &x[1], &x[2]};
        float *wanted[3], *out[3], *rest[3];
        for (int j = 0; j < 3; j++) {
            wanted[j] = attend(cuda, s, &x[j], x[j].n);
            out[j] = malloc((size_t)x[j].n * cols * 4);
        }
        kv_store *kv = open_pages(cuda, s);
        int32_t firsts[3] = {0}, counts[3] = {69, 261, 32};
        step(cuda, kv, s, all, 3, firsts, counts, out);
        for (int j = 0; j < 3; j++) {
            firsts[j] = counts[j];
            counts[j] = x[j].n - firsts[j];
            rest[j] = out[j] + (size_t)firsts[j] * cols;
        }
        step(cuda, kv, s, all, 3, firsts, counts, rest);
        for (int j = 0; j < 3; j++) {
            assert_equal_bits(out[j], wanted[j], (size_t)x[j].n * cols, "in company");
            free(out[j]), free(wanted[j]);
            free_sequence(&x[j]);
        }
        cuda->table->kv_close(cuda, kv);
    }
}

static void keys_and_values_are_read_back_and_copied_with_their_page(void **state)
{
    (void)state;
    rng r;
    rng_init(&r, 4);
    for (int i = 0; i < N_SHAPES; i++) {
        const shape *s = &shapes[i];
        sequence x = random_sequence(&r, s, 45, 10, 1);
        float *read[2][2];
        for (int which = 0; which < 2; which++) {
            backend *b = which ? cuda : truth;
            kv_store *kv = open_pages(b, s);
            const sequence *one = &x;
            int32_t first = 0, pages[2] = {39, 11};
            float *out = malloc((size_t)x.n * s->n_heads * s->value_dim * 4);
            step(b, kv, s, &one, 1, &first, &x.n, &out);
            void *host = copy_through_host(b, kv, 39, 10, 38);
            for (int values = 0; values < 2; values++) {
                size_t cols = (size_t)s->n_kv_heads * (size_t)(values ? s->value_dim : s->key_dim);
                float *same = malloc(40 * cols * 4);
                read[which][values] = malloc(40 * cols * 4);
                b->table->kv_read(b, kv, 1, values, pages, 5, 40, read[which][values]);
                b->table->kv_read(b, kv, 1, values, x.pages, 5, 40, same);
                assert_equal_bits(read[which][values], same, 40 * cols, "a copied page");
                free(same);
                if (which == 1)
                    assert_close(read[1][values], read[0][values], 40 * cols,
                                 s->type == DTYPE_Q8_0 ? 2e-3 : 2e-4, "what the pages hold");
            }
            free(out);
            close_host(b, host);
            b->table->kv_close(b, kv);
        }
        for (int values = 0; values < 2; values++)
            free(read[0][values]), free(read[1][values]);
        free_sequence(&x);
    }
}

/* ---- refusals ----------------------------------------------------------------------------------- */

/* tops are x's largest, by going through x for each. */
static void assert_tops(const top_column *tops, const float *x, int32_t n)
{
    uint8_t *taken = calloc((size_t)n, 1);
    assert_int_equal(cuda->table->gives_tops, 1);
    for (int32_t i = 0; i < TOP_COLUMNS && i < n; i++) {
        int32_t best = -1;
        float most = -INFINITY;
        for (int32_t k = 0; k < n; k++) {
            float v = isnan(x[k]) ? -INFINITY : x[k];
            if (!taken[k] && (best < 0 || v > most))
                best = k, most = v;
        }
        taken[best] = 1;
        assert_int_equal(tops[i].column, best);
        assert_memory_equal(&tops[i].value, isnan(x[best]) ? &most : &x[best], sizeof most);
    }
    free(taken);
}

/* The very bits of the host's own sums, where a sampler may ask for them. */
static void assert_sums(const double *sums, const float *x, int32_t n, float scale)
{
    int has_nan;
    float most = logits_max(x, n, &has_nan);
    if (scale == 0 || has_nan || !isfinite(most))
        return;
    double *wanted = malloc((size_t)peaks_count(n) * sizeof *wanted);
    logits_exp_sums(x, n, scale, -most * scale, wanted);
    assert_memory_equal(sums, wanted, (size_t)peaks_count(n) * sizeof *wanted);
    free(wanted);
}

/* The block is where the running sum passes the point, give or take what rounding does. */
static void assert_block(const row_block *block, const double *sums, const float *x, int32_t n,
                         const row_wish *wish)
{
    double total = 0, before = 0;
    int has_nan;
    if (wish->scale == 0 || !isfinite(logits_max(x, n, &has_nan)) || has_nan)
        return;
    if (!(wish->point >= 0)) {
        assert_int_equal(block->first, -1);
        return;
    }
    for (int32_t p = 0; p < peaks_count(n); p++)
        total += sums[p];
    if (total == 0)
        return;
    assert_in_range(block->first, 0, n - 1);
    int32_t at = block->first / PEAK_COLS, left = n - block->first;
    assert_int_equal(block->first % PEAK_COLS, 0);
    for (int32_t p = 0; p < at; p++)
        before += sums[p];
    assert_true(before <= wish->point * total + total * 1e-12);
    assert_true(before + sums[at] >= wish->point * total - total * 1e-12);
    assert_equal_bits(block->values, x + block->first,
                      (size_t)(left < PEAK_COLS ? left : PEAK_COLS), "a block");
}

/* Rows with what is found in them, to pinned memory and to any. */
static void results_are_read_with_their_peaks(void **state)
{
    (void)state;
    enum { ROWS = 9 };
    static const row_wish wishes[ROWS] = {
        {1, 1, 0.3},       {1 / 0.7f, 0, 0.999999}, {1, 1, 0.5}, {0, 1, 0.5},
        {0.01f, 1, 0.7},   {100, 0, 0.01},          {1, 1, -1},  {100, 0, 0},
        {1 / 0.9f, 1, 0.1}};
    static const int32_t lengths[] = {1, 255, 256, 257, 1000, 2500, 32003, 150001};
    rng r;
    rng_init(&r, 77);
    for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++) {
        int32_t n = lengths[l], n_peaks = peaks_count(n);
        size_t width = ((size_t)n + 1) / 2 * 2 + (peaks_bytes(n, 1) + 7) / 8 * 2;
        float *x = malloc((size_t)n * ROWS * sizeof *x);
        for (size_t i = 0; i < (size_t)n * ROWS; i++)
            x[i] = (float)rng_double(&r) * 20 - 10;
        x[(size_t)n * 2 + (size_t)n / 2] = NAN;
        x[(size_t)n * 3] = -INFINITY;
        for (int32_t k = 0; k < n; k++) { /* many equal numbers, both zeros among them */
            x[(size_t)n + (size_t)k] = roundf(x[(size_t)n + (size_t)k] / 4);
            x[(size_t)n * 4 + (size_t)k] = 1;
            x[(size_t)n * 6 + (size_t)k] *= 4; /* most of them weigh nothing, some nearly */
            x[(size_t)n * 7 + (size_t)k] *= 1e37f;
            x[(size_t)n * 8 + (size_t)k] = k % 3 ? x[(size_t)n * 8 + (size_t)k] : -INFINITY;
        }
        tensor t = open_tensor(cuda, ROWS, n, x);
        for (int pinned = 0; pinned < 2; pinned++) {
            size_t bytes = width * ROWS * sizeof(float);
            float *memory = pinned ? cuda->table->host_open(cuda, bytes) : malloc(bytes);
            float *to[ROWS], *peaks[ROWS];
            assert_non_null(memory);
            memset(memory, 0x55, bytes);
            for (int i = 0; i < ROWS; i++) {
                to[i] = memory + (size_t)(ROWS - 1 - i) * width;
                peaks[i] = to[i] + (n + 1) / 2 * 2;
            }
            cuda->table->read_peaks(cuda, to, peaks, wishes, t);
            for (int i = 0; i < ROWS; i++) {
                if (pinned && wishes[i].stays) { /* then nobody has touched it */
                    for (size_t k = 0; k < (size_t)n * sizeof(float); k++)
                        assert_int_equal(((uint8_t *)to[i])[k], 0x55);
                    cuda->table->read_row(cuda, to[i], tensor_rows(t, i, 1));
                }
                assert_equal_bits(to[i], x + (size_t)i * (size_t)n, (size_t)n, "a row");
                for (int32_t p = 0; p < n_peaks; p++) {
                    float most = -INFINITY;
                    for (int32_t k = p * PEAK_COLS; k < n && k < (p + 1) * PEAK_COLS; k++)
                        most = isnan(most) || isnan(to[i][k]) ? NAN : fmaxf(most, to[i][k]);
                    assert_true(isnan(most) ? isnan(peaks[i][p]) : peaks[i][p] == most);
                }
                assert_tops(peaks_tops(peaks[i], n), to[i], n);
                const double *sums = peaks_sums(peaks[i], n);
                if (pinned)
                    assert_sums(sums, to[i], n, wishes[i].scale);
                else if (wishes[i].scale != 0)
                    assert_true(isnan(sums[0]));
                if (pinned)
                    assert_block(peaks_block(peaks[i], n), sums, to[i], n, &wishes[i]);
            }
            if (pinned)
                cuda->table->host_close(cuda, memory);
            else
                free(memory);
        }
        cuda->table->tensor_close(cuda, &t);
        free(x);
    }
    float *first = cuda->table->host_open(cuda, 4096), *second = cuda->table->host_open(cuda, 4096);
    assert_true(first && second && first != second);
    cuda->table->host_close(cuda, first);
    assert_ptr_equal(cuda->table->host_open(cuda, 4096), first);
    cuda->table->host_close(cuda, first);
    cuda->table->host_close(cuda, second);
    cuda->table->host_close(cuda, NULL);
}

static void what_cannot_be_is_refused(void **state)
{
    (void)state;
    realm_error error;
    weight *w = NULL;
    tensor t;
    kv_store *kv = NULL;
    weight_source source = {DTYPE_I32, 4, 32, "", "odd", 0};
    assert_status(cuda->table->weight_open(cuda, &w, &source, &error), REALM_UNSUPPORTED, error);
    assert_holds(error.message, "odd");
    source = (weight_source){DTYPE_Q4_K, 4, 100, "", "short", 0};
    assert_status(cuda->table->weight_open(cuda, &w, &source, &error), REALM_CORRUPT, error);
    assert_status(cuda->table->tensor_open(cuda, &t, 0, 4, &error), REALM_INVALID, error);
    assert_status(cuda->table->tensor_open(cuda, &t, 1 << 20, 1 << 20, &error), REALM_NO_MEMORY,
                  error);
    kv_layer_shape layer = {8, 128, 128};
    kv_shape s = {1, &layer, INT32_MAX / KV_PAGE_TOKENS, DTYPE_F16};
    assert_status(cuda->table->kv_open(cuda, &kv, &s, &error), REALM_NO_MEMORY, error);
    s.type = DTYPE_F32;
    assert_status(cuda->table->kv_open(cuda, &kv, &s, &error), REALM_UNSUPPORTED, error);
    layer.key_dim = 48;
    s = (kv_shape){1, &layer, 4, DTYPE_Q8_0};
    assert_status(cuda->table->kv_open(cuda, &kv, &s, &error), REALM_UNSUPPORTED, error);
    /* And after all that it works. */
    assert_status(cuda->table->tensor_open(cuda, &t, 4, 4, &error), REALM_OK, error);
    float zeros[16], kept[16] = {1, 2, 3};
    cuda->table->read(cuda, zeros, t);
    assert_true(zeros[0] == 0 && zeros[15] == 0);
    cuda->table->write(cuda, t, kept);
    cuda->table->read(cuda, zeros, t);
    assert_memory_equal(zeros, kept, sizeof kept);
    cuda->table->tensor_close(cuda, &t);
}

/* test_compute_cuda [PATTERN]: all, or those whose names match, as a slow sanitizer may want. */
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_and_elements_are_those_of_the_reference),
        cmocka_unit_test(rows_of_every_type_are_embedded_to_the_bit),
        cmocka_unit_test(products_of_every_type_are_those_of_the_reference),
        cmocka_unit_test(products_of_long_matrices_are_those_of_the_reference),
        cmocka_unit_test(products_that_blocks_share_are_those_of_the_reference),
        cmocka_unit_test(products_of_few_columns_work),
        cmocka_unit_test(products_that_share_an_input_are_those_alone),
        cmocka_unit_test(chains_of_products_are_those_of_the_reference_in_any_batch),
        cmocka_unit_test(attention_is_that_of_the_reference),
        cmocka_unit_test(chunks_change_no_bit_of_attention),
        cmocka_unit_test(last_tokens_have_the_bits_of_whole_prompts),
        cmocka_unit_test(few_rows_of_sequences_have_the_bits_of_whole_prompts),
        cmocka_unit_test(neighbours_in_a_batch_change_no_bit),
        cmocka_unit_test(keys_and_values_are_read_back_and_copied_with_their_page),
        cmocka_unit_test(results_are_read_with_their_peaks),
        cmocka_unit_test(what_cannot_be_is_refused),
    };
    realm_error error;
    if (backend_open(&cuda, &(backend_options){.device = "cuda"}, &error) != REALM_OK) {
        printf("skipped: %s\n", error.message);
        return 77; /* CTest's "Skipped" */
    }
    if (backend_cpu_open(&truth, &(backend_cpu_options){.reference = 1}, &error) != REALM_OK)
        return 1;
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    int failed = cmocka_run_group_tests_name("cuda", tests, NULL, NULL);
    cuda->table->close(cuda);
    truth->table->close(truth);
    return failed;
}
