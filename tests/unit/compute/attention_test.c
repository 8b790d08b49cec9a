/* tests/unit/compute/attention_test.c: paged attention against the scalar reference on the same
 * pages, and the same bits for any chunking, batch, number of threads and former use of a page. */
#include "unit/compute/cpu_fixture.h"

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
    {16, 2, 100, 20, DTYPE_F16, 10, 300},
};
#define N_SHAPES ((int)(sizeof shapes / sizeof *shapes))

/* A sequence's queries, keys and values, for n positions. */
typedef struct sequence {
    int32_t n;
    float *q, *k, *v;
    int32_t pages[64];
} sequence;

static sequence random_sequence(rng *r, const shape *s, int32_t n, int32_t first_page, int32_t step)
{
    sequence out = {.n = n};
    out.q = random_floats(r, (size_t)n * s->n_heads * s->key_dim, 3);
    out.k = random_floats(r, (size_t)n * s->n_kv_heads * s->key_dim, 2);
    out.v = random_floats(r, (size_t)n * s->n_kv_heads * s->value_dim, 1);
    for (int i = 0; i < 64; i++)
        out.pages[i] = first_page + i * step; /* never in order of memory */
    return out;
}

static void free_sequence(sequence *s)
{
    free(s->q), free(s->k), free(s->v);
}

#define MAX_PAGES 40

static kv_store *open_pages(backend *b, const shape *s)
{
    realm_error error;
    kv_store *kv;
    kv_layer_shape layers[2] = {{1, 32, 32}, {s->n_kv_heads, s->key_dim, s->value_dim}};
    kv_shape shape_of = {2, layers, MAX_PAGES, s->type};
    assert_status(b->table->kv_open(b, &kv, &shape_of, &error), REALM_OK, error);
    memset(kv->pages, 0xFF, kv->mapped_bytes); /* every half a NaN: what another sequence left */
    return kv;
}

/* Writes and attends tokens first .. first+count-1 of each of n sequences in one step; out[i] gets
 * those rows. */
static void step(backend *b, kv_store *kv, const shape *s, const sequence *const *list, int32_t n,
                 const int32_t *firsts, const int32_t *counts, float *const *outs)
{
    int32_t total = 0, q_cols = s->n_heads * s->key_dim, k_cols = s->n_kv_heads * s->key_dim;
    int32_t v_cols = s->n_kv_heads * s->value_dim, out_cols = s->n_heads * s->value_dim;
    for (int32_t i = 0; i < n; i++)
        total += counts[i];
    int32_t *positions = malloc(total * 4), *sequences = malloc(total * 4);
    const int32_t *tables[8];
    tensor q = open_tensor(b, total, q_cols, NULL), k = open_tensor(b, total, k_cols, NULL);
    tensor v = open_tensor(b, total, v_cols, NULL), out = open_tensor(b, total, out_cols, NULL);
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
    b->table->begin(b, &rows);
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
    const cpu_kernels *list[4];
    int n = cpu_kernels_here(list);
    for (int i = 0; i < N_SHAPES; i += unit_is_emulated() ? 2 : 1) {
        const shape *s = &shapes[i];
        sequence x = random_sequence(&r, s, 330, 38, -3);
        backend *b = open_with(&cpu_kernels_reference, 2);
        float *wanted = attend(b, s, &x, x.n);
        b->table->close(b);
        for (int k = 0; k < n; k++) {
            b = open_with(list[k], 2);
            float *out = attend(b, s, &x, x.n);
            char what[80];
            snprintf(what, sizeof what, "%s, shape %d", list[k]->name, i);
            assert_near(out, wanted, (size_t)x.n * s->n_heads * s->value_dim, 0, 2e-6, what);
            free(out);
            b->table->close(b);
        }
        free(wanted);
        free_sequence(&x);
    }
}

static void chunks_and_threads_change_no_bit(void **state)
{
    (void)state;
    rng r;
    rng_init(&r, 2);
    const cpu_kernels *list[4];
    int n = cpu_kernels_here(list);
    /* Threads and chunk sizes together; 0 is steps of 1, 2, 3, ... tokens. */
    static const int32_t ways[][2] = {{1, 7}, {2, 0}, {2, 100}, {3, 32}, {4, 65}};
    for (int i = 0; i < N_SHAPES; i += unit_is_emulated() ? 2 : 1) {
        const shape *s = &shapes[i];
        sequence x = random_sequence(&r, s, 270 + 7 * i, 3, 1);
        for (int k = 0; k < n; k++) {
            backend *b = open_with(list[k], 1);
            float *wanted = attend(b, s, &x, x.n);
            b->table->close(b);
            for (size_t c = 0; c < sizeof ways / sizeof *ways; c++) {
                b = open_with(list[k], ways[c][0]);
                float *out = attend(b, s, &x, ways[c][1]);
                char what[80];
                snprintf(what, sizeof what, "%s, shape %d, %d threads, chunks of %d", list[k]->name,
                         i, ways[c][0], ways[c][1]);
                assert_same_bits(out, wanted, (size_t)x.n * s->n_heads * s->value_dim, what);
                free(out);
                b->table->close(b);
            }
            free(wanted);
        }
        free_sequence(&x);
    }
}

/* Decoding: one token a step, several splits of positions, pieces fewer than threads. */
static void a_token_at_a_time_is_the_prompt_at_once(void **state)
{
    (void)state;
    rng r;
    rng_init(&r, 5);
    const shape s = {4, 2, 32, 32, DTYPE_F16, 0, 0};
    sequence x = random_sequence(&r, &s, 600, 3, 1);
    const cpu_kernels *list[4];
    int n = cpu_kernels_here(list);
    for (int k = 0; k < n; k++) {
        backend *b = open_with(list[k], 2);
        float *wanted = attend(b, &s, &x, x.n), *out = attend(b, &s, &x, 1);
        assert_same_bits(out, wanted, (size_t)x.n * s.n_heads * s.value_dim, list[k]->name);
        free(wanted), free(out);
        b->table->close(b);
    }
    free_sequence(&x);
}

/* Three sequences step together, each somewhere else; each must get what it gets alone. */
static void neighbours_in_a_batch_change_no_bit(void **state)
{
    (void)state;
    rng r;
    rng_init(&r, 3);
    const cpu_kernels *list[4];
    int n = cpu_kernels_here(list);
    for (int i = 0; i < N_SHAPES; i += unit_is_emulated() ? 2 : 1) {
        const shape *s = &shapes[i];
        size_t cols = (size_t)s->n_heads * s->value_dim;
        sequence x[3] = {random_sequence(&r, s, 70, 0, 3), random_sequence(&r, s, 270, 1, 3),
                         random_sequence(&r, s, 33, 2, 3)};
        const sequence *all[3] = {&x[0], &x[1], &x[2]};
        for (int k = 0; k < n; k++) {
            backend *b = open_with(list[k], 2);
            float *wanted[3], *out[3];
            for (int j = 0; j < 3; j++) {
                wanted[j] = attend(b, s, &x[j], x[j].n);
                out[j] = malloc((size_t)x[j].n * cols * 4);
            }
            kv_store *kv = open_pages(b, s);
            int32_t firsts[3] = {0}, counts[3] = {69, 261, 32};
            step(b, kv, s, all, 3, firsts, counts, out);
            float *rest[3];
            for (int j = 0; j < 3; j++) {
                firsts[j] = counts[j];
                counts[j] = x[j].n - firsts[j];
                rest[j] = out[j] + (size_t)firsts[j] * cols;
            }
            step(b, kv, s, all, 3, firsts, counts, rest);
            for (int j = 0; j < 3; j++) {
                assert_same_bits(out[j], wanted[j], (size_t)x[j].n * cols, list[k]->name);
                free(out[j]), free(wanted[j]);
            }
            b->table->kv_close(b, kv);
            b->table->close(b);
        }
        for (int j = 0; j < 3; j++)
            free_sequence(&x[j]);
    }
}

/* Pieces enough for all threads, but those of one sequence far longer than the others: they are cut. */
static void a_few_rows_far_into_a_prompt_beside_young_streams_change_no_bit(void **state)
{
    (void)state;
    enum { N = 8, LONG = 700, YOUNG = 20, ROWS = 4 };
    const shape *s = &shapes[0];
    const size_t cols = (size_t)s->n_heads * s->value_dim;
    rng r;
    rng_init(&r, 7);
    const cpu_kernels *list[4];
    int n = cpu_kernels_here(list);
    sequence x[N];
    const sequence *all[N];
    for (int j = 0; j < N; j++) {
        x[j] = random_sequence(&r, s, j ? YOUNG : LONG, j ? MAX_PAGES - j : 0, 1);
        all[j] = &x[j];
    }
    for (int k = 0; k < n; k++) {
        for (int32_t threads = 1; threads <= 4; threads++) {
            backend *b = open_with(list[k], threads);
            float *wanted[N], *out[N], *rest[N];
            int32_t firsts[N] = {0}, counts[N], lasts[N];
            for (int j = 0; j < N; j++) {
                wanted[j] = attend(b, s, &x[j], x[j].n);
                out[j] = malloc((size_t)x[j].n * cols * 4);
                lasts[j] = j ? 1 : ROWS;
                counts[j] = x[j].n - lasts[j];
                rest[j] = out[j] + (size_t)counts[j] * cols;
            }
            kv_store *kv = open_pages(b, s);
            step(b, kv, s, all, N, firsts, counts, out);
            step(b, kv, s, all, N, counts, lasts, rest);
            for (int j = 0; j < N; j++) {
                assert_same_bits(out[j], wanted[j], (size_t)x[j].n * cols, list[k]->name);
                free(out[j]), free(wanted[j]);
            }
            b->table->kv_close(b, kv);
            b->table->close(b);
        }
    }
    for (int j = 0; j < N; j++)
        free_sequence(&x[j]);
}

static void keys_and_values_are_read_back_and_copied_with_their_page(void **state)
{
    (void)state;
    rng r;
    rng_init(&r, 4);
    const cpu_kernels *list[4];
    int n = cpu_kernels_here(list);
    for (int i = 0; i < N_SHAPES; i++) {
        const shape *s = &shapes[i];
        sequence x = random_sequence(&r, s, 45, 10, 1);
        x.k[3] = 1e9f; /* stored as the largest half */
        x.v[2] = -INFINITY;
        for (int k = 0; k < n; k++) {
            backend *b = open_with(list[k], 2);
            kv_store *kv = open_pages(b, s);
            const sequence *one = &x;
            int32_t first = 0;
            float *out = malloc((size_t)x.n * s->n_heads * s->value_dim * 4);
            step(b, kv, s, &one, 1, &first, &x.n, &out);
            void *host = copy_through_host(b, kv, 39, 10, 38);
            int32_t pages[2] = {39, 11};
            for (int values = 0; values < 2; values++) {
                int32_t cols = s->n_kv_heads * (values ? s->value_dim : s->key_dim);
                const float *from = values ? x.v : x.k;
                float *back = malloc(40 * cols * sizeof *back), *same = malloc(40 * cols * 4);
                b->table->kv_read(b, kv, 1, values, pages, 5, 40, back);
                b->table->kv_read(b, kv, 1, values, x.pages, 5, 40, same);
                assert_same_bits(back, same, 40 * cols, "a copied page");
                assert_near(back, from + 5 * cols, 40 * cols, 5e-4,
                            s->type == DTYPE_Q8_0 ? 0.009 : 1e-6, list[k]->name);
                b->table->kv_read(b, kv, 1, values, pages, 0, 1, back);
                if (s->type == DTYPE_F16)
                    assert_true(back[values ? 2 : 3] == (values ? -65504.0f : 65504.0f));
                for (int32_t c = 0; c < cols; c++)
                    assert_true(isfinite(back[c]));
                free(back), free(same);
            }
            free(out);
            close_host(b, host);
            b->table->kv_close(b, kv);
            b->table->close(b);
        }
        free_sequence(&x);
    }
}

static void pages_that_cannot_be_are_refused(void **state)
{
    (void)state;
    realm_error error;
    backend *b = open_with(&cpu_kernels_reference, 1);
    kv_store *kv = NULL;
    kv_layer_shape layer = {2, 48, 48};
    kv_shape s = {1, &layer, 4, DTYPE_Q8_0};
    assert_status(b->table->kv_open(b, &kv, &s, &error), REALM_UNSUPPORTED, error);
    assert_holds(error.message, "multiples of 32");
    s.type = DTYPE_F32;
    assert_status(b->table->kv_open(b, &kv, &s, &error), REALM_UNSUPPORTED, error);
    s.type = DTYPE_F16;
    s.n_pages = 0;
    assert_status(b->table->kv_open(b, &kv, &s, &error), REALM_INVALID, error);
    layer.key_dim = 0;
    s.n_pages = 4;
    assert_status(b->table->kv_open(b, &kv, &s, &error), REALM_UNSUPPORTED, error);
    layer.key_dim = 48;
    s.n_pages = INT32_MAX; /* terabytes: refused by the system or never touched */
    if (b->table->kv_open(b, &kv, &s, &error) == REALM_OK)
        b->table->kv_close(b, kv);
    b->table->close(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_is_that_of_the_reference),
        cmocka_unit_test(chunks_and_threads_change_no_bit),
        cmocka_unit_test(a_token_at_a_time_is_the_prompt_at_once),
        cmocka_unit_test(neighbours_in_a_batch_change_no_bit),
        cmocka_unit_test(a_few_rows_far_into_a_prompt_beside_young_streams_change_no_bit),
        cmocka_unit_test(keys_and_values_are_read_back_and_copied_with_their_page),
        cmocka_unit_test(pages_that_cannot_be_are_refused),
    };
    return cmocka_run_group_tests_name("attention", tests, NULL, NULL);
}
