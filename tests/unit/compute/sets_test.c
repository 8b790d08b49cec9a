/* tests/unit/compute/sets_test.c: every instruction set with fused multiply-adds gives the same
 * bits. Sums over a row are held to an order written out in plain C here, so that sets which no one
 * machine has together (AVX-512, NEON) agree too; the rest to each other. */
#include "unit/compute/cpu_fixture.h"

#include "compute/cpu/kv_pages.h"

/* The kernels here that fuse; returns how many. */
static int fused_kernels(const cpu_kernels *list[4])
{
    const cpu_kernels *all[4];
    int n = 0, n_all = cpu_kernels_here(all);
    for (int i = 0; i < n_all; i++)
#if !defined(__aarch64__)
        if (all[i] != &cpu_kernels_generic)
#endif
            list[n++] = all[i];
    return n;
}

/* Sixteen sums, the upper half onto the lower until one is left. */
static float fold(float *sums)
{
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++)
            sums[i] += sums[i + half];
    return sums[0];
}

static float dot_in_order(const float *w, const float *x, int32_t n)
{
    float total = 0;
    for (int32_t from = 0; from < n; from += 1024) {
        float sums[16] = {0};
        for (int32_t c = from; c < n && c < from + 1024; c++)
            sums[c % 16] = fmaf(w[c], x[c], sums[c % 16]);
        float sum = fold(sums);
        total = from ? total + sum : sum;
    }
    return total;
}

static void products_add_up_in_the_order_that_is_written_down(void **state)
{
    (void)state;
    static const int32_t columns[] = {1, 15, 16, 40, 576, 1024, 1030, 2560};
    const uint32_t types[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
    const cpu_kernels *list[4];
    int n = fused_kernels(list);
    rng r;
    rng_init(&r, 1);
    enum { ROWS = 19, TOKENS = 8 };
    for (int k = 0; k < n; k++)
        for (size_t i = 0; i < sizeof columns / sizeof *columns; i++)
            for (int t = 0; t < 3; t++) {
                int32_t cols = columns[i];
                uint8_t *data = random_weights(&r, types[t], ROWS, cols);
                float *x = random_floats(&r, (size_t)TOKENS * cols, 1), *row = malloc(cols * 4);
                float out[TOKENS * ROWS];
                cpu_weight w = {.head = {types[t], ROWS, cols},
                                .data = data,
                                .row_bytes = dtype_row_bytes(types[t], (uint64_t)cols)};
                const cpu_matmul *d = list[k]->dense;
                void *prepared = aligned_alloc(64, (d->input_bytes(TOKENS, cols) + 127) & ~63ul);
                d->prepare(prepared, x, 0, TOKENS, TOKENS, cols);
                d->product(&w, prepared, TOKENS, out, ROWS, NULL, 0, ROWS);
                for (int j = 0; j < ROWS; j++) {
                    quants_dequantize(types[t], row, data + j * w.row_bytes, cols);
                    for (int token = 0; token < TOKENS; token++) {
                        float wanted = dot_in_order(row, x + token * cols, cols);
                        assert_same_bits(&out[token * ROWS + j], &wanted, 1, d->name);
                    }
                }
                free(data), free(x), free(row), free(prepared);
            }
}

static void norms_add_up_in_the_order_that_is_written_down(void **state)
{
    (void)state;
    static const int32_t sizes[] = {1, 7, 16, 63, 64, 65, 100, 576, 640, 2048, 2051};
    const cpu_kernels *list[4];
    int n = fused_kernels(list);
    rng r;
    rng_init(&r, 2);
    for (int k = 0; k < n; k++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            int32_t size = sizes[s];
            float *x = random_floats(&r, size, 3), *out = malloc(size * 4);
            float sums[4][16] = {{0}}, folded[16];
            for (int32_t i = 0; i < size; i++) {
                float *sum = &sums[i / 16 % 4][i % 16];
                *sum = fmaf(x[i], x[i], *sum);
            }
            for (int i = 0; i < 16; i++)
                folded[i] = (sums[0][i] + sums[2][i]) + (sums[1][i] + sums[3][i]);
            float inverse = 1.0f / sqrtf(fold(folded) / (float)size + 1e-5f);
            list[k]->norm(out, x, size, NORM_RMS, NULL, NULL, 1e-5f);
            for (int32_t i = 0; i < size; i++)
                x[i] *= inverse;
            assert_same_bits(out, x, size, list[k]->name);
            free(x), free(out);
        }
}

static void operations_on_elements_have_the_same_bits(void **state)
{
    (void)state;
    enum { N = 5003 };
    const cpu_kernels *list[4];
    int n = fused_kernels(list);
    rng r;
    rng_init(&r, 3);
    float *x = random_floats(&r, N, 90), *y = random_floats(&r, N, 2), *z = random_floats(&r, N, 1);
    float *first = malloc(6 * N * 4), *out = malloc(6 * N * 4);
    for (int k = 0; k < n; k++) {
        rope turn = {.kind = ROPE_NEOX, .n_rot = 38};
        for (int kind = 0; kind < 3; kind++)
            list[k]->gated(out + kind * N, x, y, N, (activation_kind)kind);
        memcpy(out + 3 * N, x, N * 4);
        list[k]->soft_cap(out + 3 * N, N, 30);
        list[k]->norm(out + 4 * N, x, N, NORM_LAYER, y, z, 1e-5f);
        memcpy(out + 5 * N, x, N * 4);
        list[k]->rotate(out + 5 * N, N / 40, 40, &turn, y, z);
        list[k]->scale(out + 5 * N, N, 0.3f);
        list[k]->add(out + 5 * N, out + 5 * N, y, N, 0.7f);
        if (k == 0)
            memcpy(first, out, 6 * N * 4);
        assert_same_bits(out, first, 6 * N, list[k]->name);
    }
    free(x), free(y), free(z), free(first), free(out);
}

/* Some tokens of one sequence, from keys and values written to what attention reads of them. */
static float *attend(const cpu_kernels *kernels, dtype type, const float *q, const float *k,
                     const float *v, int32_t n_tokens)
{
    enum { HEADS = 6, KV_HEADS = 2, DIM = 64 };
    realm_error error;
    int32_t pages[16], positions[512], sequences[512] = {0};
    const int32_t *table = pages;
    for (int i = 0; i < 16; i++)
        pages[i] = 15 - i;
    for (int i = 0; i < n_tokens; i++)
        positions[i] = i;
    backend *b = open_with(kernels, 1);
    kv_layer_shape layer = {KV_HEADS, DIM, DIM};
    kv_shape shape = {1, &layer, 16, type};
    kv_store *kv;
    assert_status(b->table->kv_open(b, &kv, &shape, &error), REALM_OK, error);
    tensor tq = open_tensor(b, n_tokens, HEADS * DIM, q);
    tensor tk = open_tensor(b, n_tokens, KV_HEADS * DIM, k);
    tensor tv = open_tensor(b, n_tokens, KV_HEADS * DIM, v);
    tensor out = open_tensor(b, n_tokens, HEADS * DIM, NULL);
    step_rows rows = {n_tokens, positions, sequences, 1, &table};
    attention_options o = {0, HEADS, 0.125f, 0, 0};
    b->table->begin(b, &rows);
    b->table->kv_write(b, kv, 0, tk, tv);
    b->table->attention(b, out, tq, kv, &o);
    b->table->end(b);
    float *result = malloc((size_t)n_tokens * HEADS * DIM * sizeof *result);
    b->table->read(b, result, out);
    b->table->tensor_close(b, &tq), b->table->tensor_close(b, &tk);
    b->table->tensor_close(b, &tv), b->table->tensor_close(b, &out);
    b->table->kv_close(b, kv);
    b->table->close(b);
    return result;
}

static void attention_has_the_same_bits(void **state)
{
    (void)state;
    enum { TOKENS = 301 };
    const cpu_kernels *list[4];
    int n = fused_kernels(list);
    rng r;
    rng_init(&r, 4);
    float *q = random_floats(&r, TOKENS * 384, 3), *k = random_floats(&r, TOKENS * 128, 2);
    float *v = random_floats(&r, TOKENS * 128, 1);
    for (int t = 0; t < 2; t++) {
        dtype type = t ? DTYPE_Q8_0 : DTYPE_F16;
        float *first = n ? attend(list[0], type, q, k, v, TOKENS) : NULL;
        for (int i = 1; i < n; i++) {
            float *out = attend(list[i], type, q, k, v, TOKENS);
            assert_same_bits(out, first, TOKENS * 384, list[i]->name);
            free(out);
        }
        free(first);
    }
    free(q), free(k), free(v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_add_up_in_the_order_that_is_written_down),
        cmocka_unit_test(norms_add_up_in_the_order_that_is_written_down),
        cmocka_unit_test(operations_on_elements_have_the_same_bits),
        cmocka_unit_test(attention_has_the_same_bits),
    };
    return cmocka_run_group_tests_name("sets", tests, NULL, NULL);
}
