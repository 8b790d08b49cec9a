/* tests/unit/model/split_test.c: a model whose layers are divided between two backends. Both are the
 * processor here, so the bits must be those of the processor alone wherever the layers are cut. */
#include "unit/unit.h"

#include <math.h>
#include <unistd.h>

#include "compute/backend_split.h"
#include "model/model.h"
#include "support/model_run.h"
#include "support/tiny_model.h"

#define N_TOKENS 75
#define N_LAYERS 7 /* of the tiny gemma3, which also has windows and norms after its sublayers */

static char path[64];

static int make_path(void **state)
{
    (void)state;
    snprintf(path, sizeof path, "/tmp/realm_split_test_XXXXXX");
    int descriptor = mkstemp(path);
    return descriptor < 0 || close(descriptor) != 0;
}

static int drop_path(void **state)
{
    (void)state;
    return unlink(path);
}

typedef struct fixture {
    backend *b;
    model *m;
    model_run run;
} fixture;

static backend *processor(const backend_cpu_options *options)
{
    backend *b;
    realm_error error;
    assert_status(backend_cpu_open(&b, options, &error), REALM_OK, error);
    return b;
}

static backend *divided(const backend_cpu_options *front, int32_t n_front)
{
    backend *b;
    realm_error error;
    assert_status(backend_split_open(&b, processor(front), processor(NULL), n_front, &error),
                  REALM_OK, error);
    return b;
}

static void open_on(fixture *f, backend *b)
{
    realm_error error;
    const model_options options = {.max_batch_tokens = 128, .max_batch_outputs = 128};
    f->b = b;
    assert_status(model_open(&f->m, b, path, &options, &error), REALM_OK, error);
    model_run_open(&f->run, f->m, N_TOKENS);
}

static void close_fixture(fixture *f)
{
    model_run_close(&f->run);
    model_close(f->m);
    f->b->table->close(f->b);
}

static size_t logit_bytes(void)
{
    return (size_t)N_TOKENS * TINY_VOCAB * sizeof(float);
}

/* Logits of a prompt in steps of so many tokens. */
static float *logits_of(fixture *f, int32_t chunk)
{
    token_id tokens[N_TOKENS];
    float *logits = malloc(logit_bytes());
    assert_non_null(logits);
    for (int32_t i = 0; i < N_TOKENS; i++)
        tokens[i] = (i * i * 7 + i * 13) % TINY_VOCAB;
    model_run_prompt(&f->run, tokens, N_TOKENS, chunk, NULL, logits);
    return logits;
}

static void a_cut_changes_no_bit(void **state)
{
    (void)state;
    for (int quantized = 0; quantized < 2; quantized++) {
        fixture alone, cut;
        tiny_model_save(&(tiny_model){.architecture = "gemma3",
                                      .type = quantized ? DTYPE_Q8_0 : DTYPE_F32,
                                      .seed = 3},
                        path);
        open_on(&alone, processor(NULL));
        float *expected = logits_of(&alone, N_TOKENS);
        for (int32_t n = 0; n <= N_LAYERS + 1; n++) {
            open_on(&cut, divided(NULL, n));
            for (int32_t chunk = 1; chunk <= N_TOKENS; chunk += 37) {
                float *found = logits_of(&cut, chunk);
                if (memcmp(expected, found, logit_bytes()) != 0)
                    fail_msg("other logits with %d layers in front, steps of %d", n, chunk);
                free(found);
            }
            close_fixture(&cut);
        }
        free(expected);
        close_fixture(&alone);
    }
}

/* The scalar reference does not quantize activations, so where it works can be seen. */
static void the_front_computes_its_layers(void **state)
{
    (void)state;
    fixture alone, cut;
    float *before = NULL;
    tiny_model_save(&(tiny_model){.architecture = "gemma3", .type = DTYPE_Q8_0, .seed = 4}, path);
    open_on(&alone, processor(NULL));
    float *expected = logits_of(&alone, N_TOKENS);
    for (int32_t n = 0; n <= N_LAYERS; n++) {
        open_on(&cut, divided(&(backend_cpu_options){.reference = 1}, n));
        float *found = logits_of(&cut, 32);
        if (n == 0)
            assert_memory_equal(expected, found, logit_bytes());
        else
            assert_memory_not_equal(before, found, logit_bytes());
        for (int32_t i = 0; i < N_TOKENS * TINY_VOCAB; i++)
            assert_true(fabsf(found[i] - expected[i]) < 0.5f);
        free(before);
        before = found;
        close_fixture(&cut);
    }
    free(before);
    free(expected);
    close_fixture(&alone);
}

/* Operations as a guest asks for them: nobody says which layer begins. */
static void walk_by_hand(fixture *f, float *result)
{
    const backend_table *t = f->b->table;
    tensor x, y, z;
    realm_error error;
    int32_t positions[] = {0, 1, 2}, sequences[] = {0, 0, 0};
    const int32_t ids[] = {5, 9, 5}, *table = f->run.pages[0];
    const step_rows rows = {3, positions, sequences, 1, &table};
    int32_t width = TINY_HEADS * TINY_HEAD_DIM, kv_width = TINY_KV_HEADS * TINY_HEAD_DIM;
    assert_status(t->tensor_open(f->b, &x, 3, TINY_EMBD, &error), REALM_OK, error);
    assert_status(t->tensor_open(f->b, &y, 3, width, &error), REALM_OK, error);
    assert_status(t->tensor_open(f->b, &z, 3, width, &error), REALM_OK, error);
    const weight *q = model_weight(f->m, "blk.0.attn_q.weight");
    const weight *k = model_weight(f->m, "blk.0.attn_k.weight");
    const weight *v = model_weight(f->m, "blk.0.attn_v.weight");
    const weight *o = model_weight(f->m, "blk.0.attn_output.weight");
    const weight *gain = model_weight(f->m, "blk.1.attn_norm.weight");
    const weight *embeddings = model_weight(f->m, "token_embd.weight");
    tensor keys = {z.data, 3, kv_width}, values = {z.data + 3 * kv_width, 3, kv_width};
    assert_true(q && k && v && o && gain && embeddings);
    t->begin(f->b, &rows);
    t->embed(f->b, x, embeddings, ids, 2);
    t->norm(f->b, x, x, NORM_RMS, gain, NULL, 1e-6f);
    t->matmul(f->b, (const tensor[]){y, keys, values}, x, (const weight *const[]){q, k, v}, NULL,
              3);
    t->apply_rope(f->b, keys, TINY_HEAD_DIM, model_rope(f->m, 0), positions);
    t->kv_write(f->b, f->run.kv, 0, keys, values);
    t->attention(f->b, z, y, f->run.kv,
                 &(attention_options){.layer = 0, .n_heads = TINY_HEADS, .scale = 1});
    t->matmul(f->b, &x, z, &o, NULL, 1);
    t->add(f->b, x, x, x, 0.5f);
    t->end(f->b);
    t->read(f->b, result, x);
    t->kv_read(f->b, f->run.kv, 0, 0, table, 0, 3, result + 3 * TINY_EMBD);
    t->tensor_close(f->b, &x);
    t->tensor_close(f->b, &y);
    t->tensor_close(f->b, &z);
}

static void operations_go_where_their_weights_are(void **state)
{
    (void)state;
    enum { RESULT = 3 * TINY_EMBD + 3 * TINY_KV_HEADS * TINY_HEAD_DIM };
    float expected[RESULT], found[RESULT];
    fixture f;
    tiny_model_save(&(tiny_model){.architecture = "llama", .seed = 5}, path);
    open_on(&f, processor(NULL));
    walk_by_hand(&f, expected);
    close_fixture(&f);
    for (int32_t n = 0; n <= 2; n++) {
        open_on(&f, divided(NULL, n));
        walk_by_hand(&f, found);
        assert_memory_equal(expected, found, sizeof expected);
        close_fixture(&f);
    }
}

static void the_fuller_side_bounds_the_pages(void **state)
{
    (void)state;
    backend_memory whole, half;
    fixture f;
    tiny_model_save(&(tiny_model){.architecture = "llama", .seed = 6}, path);
    open_on(&f, processor(NULL));
    f.b->table->memory(f.b, &whole);
    close_fixture(&f);
    open_on(&f, divided(NULL, 1));
    f.b->table->memory(f.b, &half);
    close_fixture(&f);
    assert_true(half.total_bytes == 2 * whole.total_bytes);
    /* Each side has half of the layers, so as much memory serves twice the tokens; what is free
     * changes meanwhile. */
    assert_true(half.page_bytes > whole.page_bytes + whole.page_bytes / 2);
    assert_true(half.bound[0] != '\0');
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_cut_changes_no_bit),
        cmocka_unit_test(the_front_computes_its_layers),
        cmocka_unit_test(operations_go_where_their_weights_are),
        cmocka_unit_test(the_fuller_side_bounds_the_pages),
    };
    return cmocka_run_group_tests(tests, make_path, drop_path);
}
