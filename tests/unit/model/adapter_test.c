/* tests/unit/model/adapter_test.c: LoRA adapters in batches with other tenants' rows, and files
 * that are refused. That an adapter's result is llama.cpp's is shown by tests/golden. */
#include "unit/unit.h"

#include <math.h>
#include <unistd.h>

#include "model/adapter.h"
#include "support/model_run.h"
#include "support/test_device.h"
#include "support/tiny_model.h"

#define N_TOKENS 40

static char model_path[64], adapter_path[64];

static int make_path(char path[64])
{
    snprintf(path, 64, "/tmp/realm_adapter_test_XXXXXX");
    int descriptor = mkstemp(path);
    return descriptor < 0 || close(descriptor) != 0;
}

static int make_paths(void **state)
{
    (void)state;
    return make_path(model_path) || make_path(adapter_path);
}

static int drop_paths(void **state)
{
    (void)state;
    return unlink(model_path) || unlink(adapter_path);
}

static const char *const everything[] = {"attn_q", "attn_k",   "attn_v", "attn_output", "ffn_gate",
                                         "ffn_up", "ffn_down", "output", "token_embd",  NULL};
static const char *const fused[] = {"attn_qkv", "ffn_up", "attn_output", NULL};
static const tiny_model llama = {.architecture = "llama", .untied = 1};
static const tiny_model phi3 = {.architecture = "phi3"};

typedef struct fixture {
    backend *b;
    model *m;
    model_run run;
    adapter *first, *second; /* of ranks 4 and 9 */
    float *a, *b_logits, *c;
} fixture;

static adapter *open_adapter(model *m, const tiny_adapter *t)
{
    adapter *a = NULL;
    realm_error error;
    tiny_adapter_save(t, adapter_path);
    assert_status(adapter_open(&a, m, adapter_path, &error), REALM_OK, error);
    return a;
}

static void open_fixture(fixture *f, const tiny_model *t, const char *const *matrices)
{
    realm_error error;
    const size_t bytes = (size_t)4 * N_TOKENS * TINY_VOCAB * sizeof(float);
    const model_options options = {.max_batch_tokens = 160, .max_batch_outputs = 160};
    tiny_model_save(t, model_path);
    assert_status(test_device_open(&f->b, NULL, &error), REALM_OK, error);
    assert_status(model_open(&f->m, f->b, model_path, &options, &error), REALM_OK, error);
    model_run_open(&f->run, f->m, N_TOKENS);
    f->first = open_adapter(f->m, &(tiny_adapter){t, matrices, 4, 8, 1, NULL, NULL, NULL});
    f->second = open_adapter(f->m, &(tiny_adapter){t, matrices, 9, 0, 2, NULL, NULL, NULL});
    f->a = malloc(bytes);
    f->b_logits = malloc(bytes);
    f->c = malloc(bytes);
}

static void close_fixture(fixture *f)
{
    free(f->a);
    free(f->b_logits);
    free(f->c);
    adapter_close(f->second);
    adapter_close(f->first);
    model_run_close(&f->run);
    model_close(f->m);
    f->b->table->close(f->b);
}

static void make_tokens(token_id *tokens)
{
    for (int32_t i = 0; i < N_TOKENS; i++)
        tokens[i] = (i * i * 7 + i * 13) % TINY_VOCAB;
}

static const size_t row_bytes = TINY_VOCAB * sizeof(float);

/* In one batch: without, first, second, without. Each row is what its sequence has alone. */
static void batch_is_its_parts(const tiny_model *t, const char *const *matrices)
{
    fixture f;
    token_id tokens[N_TOKENS];
    open_fixture(&f, t, matrices);
    make_tokens(tokens);
    adapter *with[] = {NULL, f.first, f.second, NULL};
    model_run_part parts[4];
    for (int32_t i = 0; i < 4; i++)
        parts[i] = (model_run_part){i, tokens, 30, with[i], 30};
    model_run_step(&f.run, parts, 4, 0, f.a);
    for (int32_t i = 0; i < 4; i++)
        parts[i] = (model_run_part){i, tokens + 30, 10, with[i], i + 1}; /* some rows dropped */
    model_run_step(&f.run, parts, 4, 0, f.b_logits);
    const float *later = f.b_logits;
    for (int32_t i = 0; i < 4; i++) {
        model_run_prompt(&f.run, tokens, N_TOKENS, 7, with[i], f.c);
        assert_memory_equal(f.a + (size_t)i * 30 * TINY_VOCAB, f.c, 30 * row_bytes);
        size_t n = (size_t)i + 1;
        assert_memory_equal(later, f.c + (N_TOKENS - n) * TINY_VOCAB, n * row_bytes);
        later += n * TINY_VOCAB;
    }
    close_fixture(&f);
}

static void rows_with_other_adapters_or_none_do_not_touch_each_other(void **state)
{
    (void)state;
    batch_is_its_parts(&llama, everything);
    batch_is_its_parts(&phi3, fused);
}

static void an_adapter_changes_the_logits(void **state)
{
    (void)state;
    fixture f;
    token_id tokens[N_TOKENS];
    make_tokens(tokens);
    open_fixture(&f, &phi3, fused);
    model_run_prompt(&f.run, tokens, N_TOKENS, N_TOKENS, NULL, f.a);
    model_run_prompt(&f.run, tokens, N_TOKENS, N_TOKENS, f.first, f.b_logits);
    double most = 0;
    for (size_t i = 0; i < (size_t)N_TOKENS * TINY_VOCAB; i++)
        most = fmax(most, fabs((double)(f.a[i] - f.b_logits[i])));
    assert_true(most > 0.1);
    close_fixture(&f);
}

/* ---- refusals --------------------------------------------------------------------------------- */

static const char *const queries[] = {"attn_q", NULL};
static const char *const none[] = {NULL};

static void wrong_general_type(gguf_writer *w)
{
    gguf_writer_string(w, "general.type", "model");
}
static void wrong_adapter_type(gguf_writer *w)
{
    gguf_writer_string(w, "adapter.type", "ia3");
}
static void starts_at_a_token(gguf_writer *w)
{
    gguf_writer_u32s(w, "adapter.alora.invocation_tokens", (uint32_t[]){1}, 1);
}
static void a_norm(gguf_writer *w)
{
    float gain[TINY_EMBD] = {0};
    gguf_writer_tensor(w, "blk.0.attn_norm.weight", DTYPE_F32, TINY_EMBD, 0, gain);
}
static void a_layer_too_many(gguf_writer *w)
{
    float zeros[TINY_EMBD] = {0};
    gguf_writer_tensor(w, "blk.2.attn_q.weight.lora_a", DTYPE_F32, TINY_EMBD, 1, zeros);
}

static void refuse(const tiny_adapter *t, realm_status wanted, const char *part)
{
    backend *b = NULL;
    model *m = NULL;
    adapter *a = NULL;
    realm_error error = {0};
    tiny_model_save(&llama, model_path);
    tiny_adapter_save(t, adapter_path);
    assert_status(test_device_open(&b, NULL, &error), REALM_OK, error);
    assert_status(model_open(&m, b, model_path, NULL, &error), REALM_OK, error);
    assert_status(adapter_open(&a, m, adapter_path, &error), wanted, error);
    assert_null(a);
    assert_holds(error.message, part);
    model_close(m);
    b->table->close(b);
}

#define Q_A "blk.0.attn_q.weight.lora_a"
#define Q_B "blk.0.attn_q.weight.lora_b"

static void files_that_are_no_adapter_of_this_model_are_refused(void **state)
{
    (void)state;
    const tiny_adapter good = {&llama, queries, 4, 8, 1, NULL, NULL, NULL};
    tiny_adapter t = good;
    t.omit = "general.type";
    refuse(&t, REALM_INVALID, "general.type");
    t.more = wrong_general_type;
    refuse(&t, REALM_INVALID, "'general.type' is 'model'");
    t = good;
    t.omit = "adapter.type";
    t.more = wrong_adapter_type;
    refuse(&t, REALM_INVALID, "ia3");
    t = good;
    t.model = &phi3;
    t.matrices = fused;
    refuse(&t, REALM_INVALID, "phi3");
    t = good;
    t.matrices = none;
    refuse(&t, REALM_CORRUPT, "no tensors");
    t = good;
    t.more = starts_at_a_token;
    refuse(&t, REALM_UNSUPPORTED, "adapter.alora.invocation_tokens");
    t.more = a_norm;
    refuse(&t, REALM_UNSUPPORTED, "blk.0.attn_norm.weight");
    t.more = a_layer_too_many;
    refuse(&t, REALM_UNSUPPORTED, "blk.2.attn_q.weight.lora_a");
}

static void halves_that_do_not_fit_are_named(void **state)
{
    (void)state;
    const tiny_adapter good = {&llama, queries, 4, 8, 1, NULL, NULL, NULL};
    tiny_adapter t = good;
    t.omit = Q_A;
    refuse(&t, REALM_CORRUPT, "has a lora_b but no lora_a");
    t.omit = Q_B;
    refuse(&t, REALM_CORRUPT, "has a lora_a but no lora_b");
    t = good;
    t.reshape = Q_A;
    refuse(&t, REALM_CORRUPT, Q_A);
    t.reshape = Q_B;
    refuse(&t, REALM_CORRUPT, Q_B);
    t = good;
    t.rank = ADAPTER_MAX_RANK + 1;
    refuse(&t, REALM_CORRUPT, "rank 1025");
    t = good;
    t.alpha = NAN;
    refuse(&t, REALM_CORRUPT, "adapter.lora.alpha");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_with_other_adapters_or_none_do_not_touch_each_other),
        cmocka_unit_test(an_adapter_changes_the_logits),
        cmocka_unit_test(files_that_are_no_adapter_of_this_model_are_refused),
        cmocka_unit_test(halves_that_do_not_fit_are_named),
    };
    if (test_device_missing())
        return TEST_SKIPPED;
    return cmocka_run_group_tests(tests, make_paths, drop_paths);
}
