/* tests/unit/model/model_test.c: a model as a whole, on the processor's kernels: that logits do not
 * depend on how tokens are batched, that fused tensors are the same as separate ones, and that a
 * broken file is refused by the name of what is wrong with it. */
#include "unit/unit.h"

#include <unistd.h>

#include "model/model.h"
#include "support/model_run.h"
#include "support/test_device.h"
#include "support/tiny_model.h"

#define N_TOKENS 75 /* more than two pages, more than the window of 20 */

static const char *const families[] = {"llama",  "qwen2",  "qwen3", "gemma",
                                       "gemma2", "gemma3", "phi3",  "stablelm"};
#define N_FAMILIES (sizeof families / sizeof families[0])

static char path[64];

static int make_path(void **state)
{
    (void)state;
    snprintf(path, sizeof path, "/tmp/realm_model_test_XXXXXX");
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

static void open_saved(fixture *f, const backend_cpu_options *cpu)
{
    realm_error error;
    const model_options options = {.max_batch_tokens = 128, .max_batch_outputs = 128};
    assert_status(test_device_open(&f->b, cpu, &error), REALM_OK, error);
    assert_status(model_open(&f->m, f->b, path, &options, &error), REALM_OK, error);
    model_run_open(&f->run, f->m, N_TOKENS);
}

static void open_fixture(fixture *f, const tiny_model *t, const backend_cpu_options *cpu)
{
    tiny_model_save(t, path);
    open_saved(f, cpu);
}

static void close_fixture(fixture *f)
{
    model_run_close(&f->run);
    model_close(f->m);
    f->b->table->close(f->b);
}

static void make_tokens(token_id *tokens, int32_t n, int32_t seed)
{
    for (int32_t i = 0; i < n; i++)
        tokens[i] = (i * i * 7 + i * 13 + seed * 29) % TINY_VOCAB;
}

/* Bytes of logits of n tokens. */
static size_t logit_bytes(int32_t n)
{
    return (size_t)n * TINY_VOCAB * sizeof(float);
}

static float *take_logits(int32_t n)
{
    float *p = malloc(logit_bytes(n));
    assert_non_null(p);
    return p;
}

/* ---- batches ---------------------------------------------------------------------------------- */

static void chunks_are_the_same(const tiny_model *t, const backend_cpu_options *cpu)
{
    static const int32_t chunks[] = {1, 2, 7, 32, 33, 64};
    fixture f;
    token_id tokens[N_TOKENS];
    float *whole = take_logits(N_TOKENS), *cut = take_logits(N_TOKENS);
    open_fixture(&f, t, cpu);
    make_tokens(tokens, N_TOKENS, 1);
    model_run_prompt(&f.run, tokens, N_TOKENS, N_TOKENS, NULL, whole);
    for (size_t i = 0; i < sizeof chunks / sizeof chunks[0]; i++) {
        model_run_prompt(&f.run, tokens, N_TOKENS, chunks[i], NULL, cut);
        if (memcmp(whole, cut, logit_bytes(N_TOKENS)) != 0)
            fail_msg("%s: logits differ with steps of %d tokens", t->architecture, chunks[i]);
    }
    close_fixture(&f);
    free(whole);
    free(cut);
}

static void logits_do_not_depend_on_how_a_prompt_is_cut(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_FAMILIES; i++)
        chunks_are_the_same(&(tiny_model){.architecture = families[i], .seed = i}, NULL);
}

static void nor_with_quantized_weights(void **state)
{
    (void)state;
    const tiny_model t = {.architecture = "llama", .type = DTYPE_Q8_0, .seed = 3};
    chunks_are_the_same(&t, NULL);
    chunks_are_the_same(&t, &(backend_cpu_options){.exact = 1});
    chunks_are_the_same(&t, &(backend_cpu_options){.reference = 1});
}

static void nor_on_the_number_of_threads(void **state)
{
    (void)state;
    fixture f;
    token_id tokens[N_TOKENS];
    float *logits[3];
    make_tokens(tokens, N_TOKENS, 1);
    for (int i = 0; i < 3; i++) {
        logits[i] = take_logits(N_TOKENS);
        open_fixture(&f, &(tiny_model){.architecture = "gemma2", .type = DTYPE_Q8_0},
                     &(backend_cpu_options){.n_threads = i + 1});
        model_run_prompt(&f.run, tokens, N_TOKENS, 30, NULL, logits[i]);
        close_fixture(&f);
        assert_memory_equal(logits[0], logits[i], logit_bytes(N_TOKENS));
    }
    for (int i = 0; i < 3; i++)
        free(logits[i]);
}

/* Four sequences of different lengths grow together, each by other amounts, in every step. */
static void one_family_in_a_crowd(const char *family)
{
    enum { N = 4, STEPS = 6 };
    static const int32_t counts[STEPS][N] = {{10, 1, 20, 5}, {3, 1, 1, 31}, {1, 1, 33, 1},
                                             {1, 16, 1, 1},  {1, 1, 1, 1},  {9, 7, 5, 3}};
    fixture f;
    token_id tokens[N][N_TOKENS];
    float *alone = take_logits(N_TOKENS), *crowd = take_logits(N_TOKENS), *kept[N];
    int32_t lengths[N] = {0};
    open_fixture(&f, &(tiny_model){.architecture = family}, NULL);
    for (int32_t s = 0; s < N; s++) {
        make_tokens(tokens[s], N_TOKENS, s);
        kept[s] = take_logits(N_TOKENS);
    }
    for (int step = 0; step < STEPS; step++) {
        model_run_part parts[N];
        for (int32_t i = 0; i < N; i++) {
            int32_t s = (i + step) % N; /* the order of the sequences changes too */
            parts[i] = (model_run_part){s, tokens[s] + lengths[s], counts[step][s], NULL,
                                        counts[step][s]};
        }
        model_run_step(&f.run, parts, N, 0, crowd);
        size_t row = 0;
        for (int32_t i = 0; i < N; i++) {
            int32_t s = parts[i].sequence;
            memcpy(kept[s] + (size_t)lengths[s] * TINY_VOCAB, crowd + row * TINY_VOCAB,
                   logit_bytes(parts[i].count));
            row += (size_t)parts[i].count;
            lengths[s] += parts[i].count;
        }
    }
    for (int32_t s = 0; s < N; s++) {
        model_run_prompt(&f.run, tokens[s], lengths[s], lengths[s], NULL, alone);
        if (memcmp(alone, kept[s], logit_bytes(lengths[s])) != 0)
            fail_msg("%s: sequence %d differs in company", family, (int)s);
        free(kept[s]);
    }
    close_fixture(&f);
    free(alone);
    free(crowd);
}

static void a_sequence_alone_and_in_a_batch_has_the_same_logits(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_FAMILIES; i++)
        one_family_in_a_crowd(families[i]);
}

/* Rows whose results nobody wants are dropped in the last layer: that changes no bit of others. */
static void unwanted_rows_change_nothing(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_FAMILIES; i++) {
        fixture f;
        token_id tokens[N_TOKENS];
        float *all = take_logits(N_TOKENS), few[3 * TINY_VOCAB];
        open_fixture(&f, &(tiny_model){.architecture = families[i]}, NULL);
        make_tokens(tokens, N_TOKENS, 2);
        model_run_prompt(&f.run, tokens, N_TOKENS, N_TOKENS, NULL, all);
        f.run.length[1] = 0;
        const model_run_part first = {1, tokens, 40, NULL, 0};
        const model_run_part rest = {1, tokens + 40, N_TOKENS - 40, NULL, 3};
        model_run_step(&f.run, &first, 1, 0, few);
        model_run_step(&f.run, &rest, 1, 0, few);
        assert_memory_equal(few, all + (size_t)(N_TOKENS - 3) * TINY_VOCAB, sizeof few);
        close_fixture(&f);
        free(all);
    }
}

static void the_reference_kernels_agree_with_the_fast_ones(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_FAMILIES; i++) {
        fixture f;
        token_id tokens[N_TOKENS];
        float *fast = take_logits(N_TOKENS), *slow = take_logits(N_TOKENS);
        make_tokens(tokens, N_TOKENS, 2);
        open_fixture(&f, &(tiny_model){.architecture = families[i]}, NULL);
        model_run_prompt(&f.run, tokens, N_TOKENS, 16, NULL, fast);
        close_fixture(&f);
        open_fixture(&f, &(tiny_model){.architecture = families[i]},
                     &(backend_cpu_options){.reference = 1});
        model_run_prompt(&f.run, tokens, N_TOKENS, 16, NULL, slow);
        close_fixture(&f);
        /* Other devices round attention's queries and weights to half. */
        const float limit = test_device() ? 2e-2f : 5e-3f;
        for (size_t j = 0; j < (size_t)N_TOKENS * TINY_VOCAB; j++)
            if (fast[j] - slow[j] > limit || slow[j] - fast[j] > limit)
                fail_msg("%s: %g and %g", families[i], (double)fast[j], (double)slow[j]);
        free(fast);
        free(slow);
    }
}

/* ---- what else forward gives ------------------------------------------------------------------ */

/* The head is the embedding of a tied model, so hidden states give the logits. */
static void hidden_states_times_the_head_are_the_logits(void **state)
{
    (void)state;
    fixture f;
    token_id tokens[5];
    float hidden[TINY_EMBD], logits[TINY_VOCAB];
    make_tokens(tokens, 5, 4);
    open_fixture(&f, &(tiny_model){.architecture = "llama"}, NULL);
    const model_run_part part = {0, tokens, 5, NULL, 1}, again = {1, tokens, 5, NULL, 1};
    model_run_step(&f.run, &part, 1, 1, hidden);
    model_run_step(&f.run, &again, 1, 0, logits);
    const gguf_tensor *head = gguf_find_tensor(model_gguf(f.m), "token_embd.weight");
    const float *w = (const float *)(const void *)head->data;
    for (size_t i = 0; i < TINY_VOCAB; i++) {
        double sum = 0;
        for (size_t j = 0; j < TINY_EMBD; j++)
            sum += (double)w[i * TINY_EMBD + j] * (double)hidden[j];
        assert_true(sum - (double)logits[i] < 1e-4 && (double)logits[i] - sum < 1e-4);
    }
    close_fixture(&f);
}

static void a_soft_cap_bounds_the_logits(void **state)
{
    (void)state;
    fixture f;
    token_id tokens[20];
    float *logits = take_logits(20);
    make_tokens(tokens, 20, 4);
    open_fixture(&f, &(tiny_model){.architecture = "gemma2"}, NULL);
    model_run_prompt(&f.run, tokens, 20, 20, NULL, logits);
    for (size_t i = 0; i < (size_t)20 * TINY_VOCAB; i++)
        assert_true(logits[i] < 30 && logits[i] > -30);
    close_fixture(&f);
    free(logits);
}

static void weights_are_found_by_name_and_fused_ones_by_their_parts(void **state)
{
    (void)state;
    fixture f;
    open_fixture(&f, &(tiny_model){.architecture = "phi3"}, NULL);
    assert_int_equal(model_weight(f.m, "blk.1.attn_q.weight")->n_rows, TINY_HEADS * TINY_HEAD_DIM);
    assert_int_equal(model_weight(f.m, "blk.1.attn_v.weight")->n_rows,
                     TINY_KV_HEADS * TINY_HEAD_DIM);
    assert_int_equal(model_weight(f.m, "blk.0.ffn_gate.weight")->n_cols, TINY_EMBD);
    assert_int_equal(model_weight(f.m, "token_embd.weight")->n_rows, TINY_VOCAB);
    assert_null(model_weight(f.m, "output.weight"));
    assert_null(model_weight(f.m, "blk.2.attn_q.weight"));
    assert_string_equal(model_name(f.m), "tiny");
    close_fixture(&f);
}

static void pages_have_the_layers_shapes(void **state)
{
    (void)state;
    fixture f;
    kv_shape shape;
    open_fixture(&f, &(tiny_model){.architecture = "gemma3"}, NULL);
    model_kv_shape(f.m, &shape);
    assert_int_equal(shape.n_layers, 7);
    assert_int_equal(shape.layers[6].n_kv_heads, TINY_KV_HEADS);
    assert_int_equal(shape.layers[6].key_dim, TINY_HEAD_DIM);
    /* 7 layers, 32 tokens, 2 heads, key and value of 32 elements of two bytes */
    assert_int_equal(model_kv_page_bytes(f.m, DTYPE_F16), 7 * 32 * 2 * 2 * 32 * 2);
    assert_int_equal(model_kv_page_bytes(f.m, DTYPE_Q8_0), 7 * 32 * 2 * 2 * 34);
    assert_true(model_rope(f.m, 0) != model_rope(f.m, 5));
    close_fixture(&f);
}

static void note_progress(void *context, double fraction)
{
    double *last = context;
    assert_true(fraction >= *last && fraction <= 1);
    *last = fraction;
}

static void progress_rises_to_one(void **state)
{
    (void)state;
    backend *b = NULL;
    model *m = NULL;
    realm_error error;
    double last = 0;
    const model_options options = {
        .progress = note_progress, .progress_context = &last, .name = "by another name"};
    tiny_model_save(&(tiny_model){.architecture = "llama", .untied = 1}, path);
    assert_status(test_device_open(&b, NULL, &error), REALM_OK, error);
    assert_status(model_open(&m, b, path, &options, &error), REALM_OK, error);
    assert_true(last == 1);
    assert_string_equal(model_name(m), "by another name");
    assert_non_null(model_weight(m, "output.weight"));
    model_close(m);
    b->table->close(b);
}

/* ---- refusals --------------------------------------------------------------------------------- */

static void refuse(const tiny_model *t, const model_options *options, realm_status wanted,
                   const char *part)
{
    backend *b = NULL;
    model *m = NULL;
    realm_error error = {0};
    tiny_model_save(t, path);
    assert_status(test_device_open(&b, NULL, &error), REALM_OK, error);
    assert_status(model_open(&m, b, path, options, &error), wanted, error);
    assert_null(m);
    assert_holds(error.message, part);
    b->table->close(b);
}

static void every_missing_tensor_is_named(void **state)
{
    (void)state;
    static const char *const names[][2] = {
        {"llama", "token_embd.weight"},           {"llama", "output_norm.weight"},
        {"llama", "blk.0.attn_norm.weight"},      {"llama", "blk.1.attn_q.weight"},
        {"llama", "blk.1.attn_k.weight"},         {"llama", "blk.1.attn_v.weight"},
        {"llama", "blk.1.attn_output.weight"},    {"llama", "blk.1.ffn_norm.weight"},
        {"llama", "blk.1.ffn_gate.weight"},       {"llama", "blk.1.ffn_up.weight"},
        {"llama", "blk.1.ffn_down.weight"},       {"qwen2", "blk.0.attn_q.bias"},
        {"qwen3", "blk.0.attn_k_norm.weight"},    {"gemma2", "blk.1.post_attention_norm.weight"},
        {"gemma3", "blk.6.post_ffw_norm.weight"}, {"phi3", "blk.0.ffn_up.weight"},
        {"stablelm", "blk.0.attn_norm.bias"},     {"stablelm", "output_norm.bias"},
    };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        refuse(&(tiny_model){.architecture = names[i][0], .omit = names[i][1]}, NULL, REALM_CORRUPT,
               names[i][1]);
}

static void every_wrong_shape_is_named(void **state)
{
    (void)state;
    static const char *const names[][2] = {
        {"llama", "token_embd.weight"},
        {"llama", "output_norm.weight"},
        {"llama", "output.weight"},
        {"llama", "blk.1.attn_q.weight"},
        {"llama", "blk.1.ffn_down.weight"},
        {"qwen2", "blk.1.attn_v.bias"},
        {"qwen3", "blk.1.attn_q_norm.weight"},
        {"phi3", "blk.1.attn_qkv.weight"},
        {"phi3", "blk.1.ffn_up.weight"},
        {"gemma2", "blk.0.post_ffw_norm.weight"},
    };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const tiny_model t = {.architecture = names[i][0], .reshape = names[i][1], .untied = 1};
        refuse(&t, NULL, REALM_CORRUPT, names[i][1]);
        refuse(&t, NULL, REALM_CORRUPT, "expected [");
    }
}

static void norms_and_biases_are_f32(void **state)
{
    (void)state;
    refuse(&(tiny_model){.architecture = "llama", .retype = "blk.0.attn_norm.weight"}, NULL,
           REALM_CORRUPT, "blk.0.attn_norm.weight");
    refuse(&(tiny_model){.architecture = "qwen2", .retype = "blk.0.attn_q.bias"}, NULL,
           REALM_CORRUPT, "is of type F16");
}

static void absurd_options_are_refused(void **state)
{
    (void)state;
    const tiny_model t = {.architecture = "llama"};
    refuse(&t, &(model_options){.max_batch_tokens = -1}, REALM_INVALID, "max_batch_tokens");
    refuse(&t, &(model_options){.max_batch_outputs = 1 << 30}, REALM_INVALID, "max_batch_outputs");
}

static void a_file_that_is_not_there_is_named(void **state)
{
    (void)state;
    backend *b = NULL;
    model *m = NULL;
    realm_error error = {0};
    assert_status(test_device_open(&b, NULL, &error), REALM_OK, error);
    assert_status(model_open(&m, b, "/nowhere/model.gguf", NULL, &error), REALM_NOT_FOUND, error);
    assert_holds(error.message, "/nowhere/model.gguf");
    b->table->close(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_do_not_depend_on_how_a_prompt_is_cut),
        cmocka_unit_test(nor_with_quantized_weights),
        cmocka_unit_test(nor_on_the_number_of_threads),
        cmocka_unit_test(a_sequence_alone_and_in_a_batch_has_the_same_logits),
        cmocka_unit_test(unwanted_rows_change_nothing),
        cmocka_unit_test(the_reference_kernels_agree_with_the_fast_ones),
        cmocka_unit_test(hidden_states_times_the_head_are_the_logits),
        cmocka_unit_test(a_soft_cap_bounds_the_logits),
        cmocka_unit_test(weights_are_found_by_name_and_fused_ones_by_their_parts),
        cmocka_unit_test(pages_have_the_layers_shapes),
        cmocka_unit_test(progress_rises_to_one),
        cmocka_unit_test(every_missing_tensor_is_named),
        cmocka_unit_test(every_wrong_shape_is_named),
        cmocka_unit_test(norms_and_biases_are_f32),
        cmocka_unit_test(absurd_options_are_refused),
        cmocka_unit_test(a_file_that_is_not_there_is_named),
    };
    if (test_device_missing())
        return TEST_SKIPPED;
    return cmocka_run_group_tests(tests, make_path, drop_path);
}
