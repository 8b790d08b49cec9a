/* tests/unit/model/architectures_test.c: hyperparameters against what the families' papers and
 * llama.cpp say, and a refusal by name for every absurd value. */
#include "unit/unit.h"

#include <math.h>

#include "model/architecture.h"
#include "support/tiny_model.h"

static realm_status read_metadata(const tiny_model *t, hyperparameters *h, realm_error *error)
{
    gguf_writer w;
    buffer bytes;
    gguf *g = NULL;
    gguf_writer_init(&w);
    buffer_init(&bytes, 1 << 20);
    tiny_model_metadata(t, &w);
    assert_status(gguf_writer_bytes(&w, &bytes, error), REALM_OK, *error);
    assert_status(gguf_open_memory(&g, bytes.data, bytes.size, error), REALM_OK, *error);
    realm_status status = hyperparameters_read(h, g, error);
    gguf_close(g);
    buffer_release(&bytes);
    gguf_writer_release(&w);
    return status;
}

static void read_good(const tiny_model *t, hyperparameters *h)
{
    realm_error error;
    assert_status(read_metadata(t, h, &error), REALM_OK, error);
}

static void every_name_in_the_table_is_found_and_no_other(void **state)
{
    (void)state;
    const char *wanted[] = {"llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3"};
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++)
        assert_string_equal(architecture_find(wanted[i], strlen(wanted[i]))->name, wanted[i]);
    for (size_t i = 0; architecture_name_at(i) != NULL; i++)
        assert_non_null(
            architecture_find(architecture_name_at(i), strlen(architecture_name_at(i))));
    assert_null(architecture_find("llama2", 6));
    assert_null(architecture_find("llam", 4));
    assert_null(architecture_find("", 0));
}

static void a_plain_llama_is_read_as_written(void **state)
{
    (void)state;
    hyperparameters h;
    read_good(&(tiny_model){.architecture = "llama"}, &h);
    assert_int_equal(h.n_layers, 2);
    assert_int_equal(h.n_embd, TINY_EMBD);
    assert_int_equal(h.n_vocab, TINY_VOCAB);
    assert_int_equal(h.n_context, TINY_CONTEXT);
    assert_int_equal(h.n_heads, TINY_HEADS);
    assert_int_equal(h.n_kv_heads[1], TINY_KV_HEADS);
    assert_int_equal(h.n_ff[1], TINY_FF);
    assert_int_equal(h.key_dim, TINY_HEAD_DIM);
    assert_true(h.attention_scale == (float)(1 / sqrt(TINY_HEAD_DIM)));
    assert_true(h.attention_soft_cap == 0 && h.logit_soft_cap == 0);
    assert_true(h.embedding_scale == 1 && h.rope_scale_linear == 1);
    assert_int_equal(h.window[0], 0);
}

static void heads_share_the_embedding_when_no_length_is_given(void **state)
{
    (void)state;
    hyperparameters h;
    read_good(&(tiny_model){.architecture = "llama", .omit = "llama.attention.value_length"}, &h);
    assert_int_equal(h.value_dim, TINY_EMBD / TINY_HEADS);
}

static void key_heads_default_to_query_heads(void **state)
{
    (void)state;
    hyperparameters h;
    read_good(&(tiny_model){.architecture = "llama", .omit = "llama.attention.head_count_kv"}, &h);
    assert_int_equal(h.n_kv_heads[0], TINY_HEADS);
}

static void more_arrays(gguf_writer *w)
{
    gguf_writer_u32s(w, "llama.feed_forward_length", (uint32_t[]){32, 64}, 2);
}

static void layers_may_differ_in_width(void **state)
{
    (void)state;
    hyperparameters h;
    read_good(&(tiny_model){.architecture = "llama",
                            .omit = "llama.feed_forward_length",
                            .more = more_arrays},
              &h);
    assert_int_equal(h.n_ff[0], 32);
    assert_int_equal(h.n_ff[1], 64);
}

/* Gemma 2's report, table 1: caps 50 and 30, a window of 4096 in every other layer. */
static void gemma2_has_its_caps_and_windows_when_the_file_is_silent(void **state)
{
    (void)state;
    hyperparameters h;
    read_good(&(tiny_model){.architecture = "gemma2", .omit = "gemma2.attention.sliding_window"},
              &h);
    assert_true(h.attention_soft_cap == 50 && h.logit_soft_cap == 30);
    assert_int_equal(h.window[0], 4096);
    assert_int_equal(h.window[1], 0);
    assert_true(h.embedding_scale == 8); /* the root of 64 */
}

/* Gemma 3's report, section 2: five local layers to one global, bases 10 k and 1 M. */
static void gemma3_has_five_local_layers_to_one_global(void **state)
{
    (void)state;
    hyperparameters h;
    read_good(&(tiny_model){.architecture = "gemma3"}, &h);
    for (int i = 0; i < 7; i++)
        assert_int_equal(h.window[i], i == 5 ? 0 : 20);
    assert_true(h.rope_base_local == 10000);
    read_good(&(tiny_model){.architecture = "gemma3", .omit = "gemma3.attention.sliding_window"},
              &h);
    for (int i = 0; i < 7; i++)
        assert_int_equal(h.window[i], 0);
}

static void more_pattern(gguf_writer *w)
{
    gguf_writer_u32(w, "gemma3.attention.sliding_window_pattern", 2);
}

static void more_pattern_list(gguf_writer *w)
{
    gguf_writer_u32s(w, "gemma3.attention.sliding_window_pattern",
                     (uint32_t[]){0, 0, 1, 1, 0, 0, 1}, 7);
}

static void a_file_may_give_the_pattern_of_windows_itself(void **state)
{
    (void)state;
    hyperparameters h;
    read_good(&(tiny_model){.architecture = "gemma3", .more = more_pattern}, &h);
    for (int i = 0; i < 7; i++)
        assert_int_equal(h.window[i], i % 2 == 1 ? 0 : 20);
    read_good(&(tiny_model){.architecture = "gemma3", .more = more_pattern_list}, &h);
    for (int i = 0; i < 7; i++)
        assert_int_equal(h.window[i], i == 2 || i == 3 || i == 6 ? 20 : 0);
}

/* google/gemma_pytorch, gemma/config.py: query_pre_attn_scalar of the 27B sizes is the width
 * divided by the heads (4608/32 = 144 and 5376/32 = 168), of the others the head's length. */
static void more_27b(gguf_writer *w)
{
    gguf_writer_u32(w, "gemma2.block_count", 46);
    gguf_writer_u32(w, "gemma2.embedding_length", 4608);
    gguf_writer_u32(w, "gemma2.attention.head_count", 32);
    gguf_writer_u32(w, "gemma2.attention.head_count_kv", 16);
    gguf_writer_u32(w, "gemma2.attention.key_length", 128);
    gguf_writer_u32(w, "gemma2.attention.value_length", 128);
    gguf_writer_u32(w, "gemma2.feed_forward_length", 36864);
    gguf_writer_f32(w, "gemma2.attention.layer_norm_rms_epsilon", 1e-6f);
    gguf_writer_u32(w, "gemma2.context_length", 8192);
    gguf_writer_string(w, "general.architecture", "gemma2");
    gguf_writer_u32s(w, "tokenizer.ggml.tokens", (uint32_t[]){0, 1}, 2);
}

static void the_27b_size_of_gemma2_scales_queries_by_144(void **state)
{
    (void)state;
    hyperparameters h;
    gguf_writer w;
    buffer bytes;
    gguf *g = NULL;
    realm_error error;
    gguf_writer_init(&w);
    buffer_init(&bytes, 1 << 20);
    more_27b(&w);
    assert_status(gguf_writer_bytes(&w, &bytes, &error), REALM_OK, error);
    assert_status(gguf_open_memory(&g, bytes.data, bytes.size, &error), REALM_OK, error);
    assert_status(hyperparameters_read(&h, g, &error), REALM_OK, error);
    assert_true(h.attention_scale == (float)(1 / sqrt(144)));
    gguf_close(g);
    buffer_release(&bytes);
    gguf_writer_release(&w);
}

/* ---- refusals --------------------------------------------------------------------------------- */

#define MORE(name, body)                                                                           \
    static void name(gguf_writer *w)                                                               \
    {                                                                                              \
        body;                                                                                      \
    }

MORE(zero_layers, gguf_writer_u32(w, "llama.block_count", 0))
MORE(many_layers, gguf_writer_u32(w, "llama.block_count", MODEL_MAX_LAYERS + 1))
MORE(text_layers, gguf_writer_string(w, "llama.block_count", "2"))
MORE(zero_width, gguf_writer_u32(w, "llama.embedding_length", 0))
MORE(huge_width, gguf_writer_u32(w, "llama.embedding_length", 4000000000u))
MORE(zero_context, gguf_writer_u32(w, "llama.context_length", 0))
MORE(zero_heads, gguf_writer_u32(w, "llama.attention.head_count", 0))
MORE(uneven_heads, gguf_writer_u32(w, "llama.attention.head_count", 5))
MORE(zero_kv, gguf_writer_u32(w, "llama.attention.head_count_kv", 0))
MORE(uneven_kv, gguf_writer_u32(w, "llama.attention.head_count_kv", 3))
MORE(more_kv, gguf_writer_u32(w, "llama.attention.head_count_kv", 8))
MORE(short_kv, gguf_writer_u32s(w, "llama.attention.head_count_kv", (uint32_t[]){2}, 1))
MORE(heads_differ, gguf_writer_u32s(w, "llama.attention.head_count", (uint32_t[]){4, 8}, 2))
MORE(float_ff, gguf_writer_f32s(w, "llama.feed_forward_length", (float[]){96, 96}, 2))
MORE(huge_ff, gguf_writer_u32(w, "llama.feed_forward_length", 1u << 30))
MORE(long_head, gguf_writer_u32(w, "llama.attention.key_length", 100000))
MORE(zero_value, gguf_writer_u32(w, "llama.attention.value_length", 0))
MORE(odd_rot, gguf_writer_u32(w, "llama.rope.dimension_count", 7))
MORE(wide_rot, gguf_writer_u32(w, "llama.rope.dimension_count", TINY_HEAD_DIM + 2))
MORE(nan_epsilon, gguf_writer_f32(w, "llama.attention.layer_norm_rms_epsilon", NAN))
MORE(zero_epsilon, gguf_writer_f32(w, "llama.attention.layer_norm_rms_epsilon", 0))
MORE(negative_epsilon, gguf_writer_f32(w, "llama.attention.layer_norm_rms_epsilon", -1e-5f))
MORE(infinite_base, gguf_writer_f32(w, "llama.rope.freq_base", INFINITY))
MORE(zero_base, gguf_writer_f32(w, "llama.rope.freq_base", 0))
MORE(tiny_factor, gguf_writer_f32(w, "llama.rope.scaling.factor", 1e-20f))
MORE(negative_factor, gguf_writer_f32(w, "llama.rope.scaling.factor", -1))
MORE(number_type, gguf_writer_u32(w, "llama.rope.scaling.type", 1))
MORE(experts, gguf_writer_u32(w, "llama.expert_count", 8))
MORE(nan_cap, gguf_writer_f32(w, "gemma2.attn_logit_softcapping", NAN))
MORE(negative_cap, gguf_writer_f32(w, "gemma2.final_logit_softcapping", -30))
MORE(zero_window, gguf_writer_u32(w, "gemma2.attention.sliding_window", 0))
MORE(parallel, gguf_writer_bool(w, "stablelm.use_parallel_residual", 1))
MORE(short_pattern,
     gguf_writer_u32s(w, "gemma3.attention.sliding_window_pattern", (uint32_t[]){1, 0}, 2))

static const struct {
    const char *architecture, *key; /* the key is in the sentence */
    void (*more)(gguf_writer *w);
    realm_status wanted;
} refusals[] = {
    {"llama", "llama.block_count", NULL, REALM_CORRUPT},
    {"llama", "llama.block_count", zero_layers, REALM_CORRUPT},
    {"llama", "llama.block_count", many_layers, REALM_CORRUPT},
    {"llama", "llama.block_count", text_layers, REALM_CORRUPT},
    {"llama", "llama.embedding_length", NULL, REALM_CORRUPT},
    {"llama", "llama.embedding_length", zero_width, REALM_CORRUPT},
    {"llama", "llama.embedding_length", huge_width, REALM_CORRUPT},
    {"llama", "llama.context_length", NULL, REALM_CORRUPT},
    {"llama", "llama.context_length", zero_context, REALM_CORRUPT},
    {"llama", "llama.attention.head_count", NULL, REALM_CORRUPT},
    {"llama", "llama.attention.head_count", zero_heads, REALM_CORRUPT},
    {"llama", "llama.attention.head_count", uneven_heads, REALM_CORRUPT},
    {"llama", "llama.attention.head_count", heads_differ, REALM_UNSUPPORTED},
    {"llama", "llama.attention.head_count_kv", zero_kv, REALM_CORRUPT},
    {"llama", "llama.attention.head_count_kv", uneven_kv, REALM_CORRUPT},
    {"llama", "llama.attention.head_count_kv", more_kv, REALM_CORRUPT},
    {"llama", "llama.attention.head_count_kv", short_kv, REALM_CORRUPT},
    {"llama", "llama.feed_forward_length", NULL, REALM_CORRUPT},
    {"llama", "llama.feed_forward_length", float_ff, REALM_CORRUPT},
    {"llama", "llama.feed_forward_length", huge_ff, REALM_CORRUPT},
    {"llama", "llama.attention.key_length", long_head, REALM_CORRUPT},
    {"llama", "llama.attention.value_length", zero_value, REALM_CORRUPT},
    {"llama", "llama.rope.dimension_count", odd_rot, REALM_CORRUPT},
    {"llama", "llama.rope.dimension_count", wide_rot, REALM_CORRUPT},
    {"llama", "llama.attention.layer_norm_rms_epsilon", NULL, REALM_CORRUPT},
    {"llama", "llama.attention.layer_norm_rms_epsilon", nan_epsilon, REALM_CORRUPT},
    {"llama", "llama.attention.layer_norm_rms_epsilon", zero_epsilon, REALM_CORRUPT},
    {"llama", "llama.attention.layer_norm_rms_epsilon", negative_epsilon, REALM_CORRUPT},
    {"llama", "llama.rope.freq_base", infinite_base, REALM_CORRUPT},
    {"llama", "llama.rope.freq_base", zero_base, REALM_CORRUPT},
    {"llama", "llama.rope.scaling.factor", tiny_factor, REALM_CORRUPT},
    {"llama", "llama.rope.scaling.factor", negative_factor, REALM_CORRUPT},
    {"llama", "llama.rope.scaling.type", number_type, REALM_CORRUPT},
    {"llama", "llama.expert_count", experts, REALM_UNSUPPORTED},
    {"gemma2", "gemma2.attn_logit_softcapping", nan_cap, REALM_CORRUPT},
    {"gemma2", "gemma2.final_logit_softcapping", negative_cap, REALM_CORRUPT},
    {"gemma2", "gemma2.attention.sliding_window", zero_window, REALM_CORRUPT},
    {"gemma3", "gemma3.attention.sliding_window_pattern", short_pattern, REALM_CORRUPT},
    {"stablelm", "stablelm.attention.layer_norm_epsilon", NULL, REALM_CORRUPT},
    {"stablelm", "stablelm.use_parallel_residual", parallel, REALM_UNSUPPORTED},
};

static void absurd_numbers_are_refused_by_the_name_of_their_key(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        const tiny_model t = {.architecture = refusals[i].architecture,
                              .omit = refusals[i].key,
                              .more = refusals[i].more};
        hyperparameters h;
        realm_error error = {0};
        assert_status(read_metadata(&t, &h, &error), refusals[i].wanted, error);
        assert_holds(error.message, refusals[i].key);
    }
}

static void an_unknown_family_is_refused_with_a_list_of_the_known(void **state)
{
    (void)state;
    hyperparameters h;
    realm_error error;
    assert_status(read_metadata(&(tiny_model){.architecture = "mamba"}, &h, &error),
                  REALM_UNSUPPORTED, error);
    assert_holds(error.message, "mamba");
    assert_holds(error.message, "qwen3");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_name_in_the_table_is_found_and_no_other),
        cmocka_unit_test(a_plain_llama_is_read_as_written),
        cmocka_unit_test(heads_share_the_embedding_when_no_length_is_given),
        cmocka_unit_test(key_heads_default_to_query_heads),
        cmocka_unit_test(layers_may_differ_in_width),
        cmocka_unit_test(gemma2_has_its_caps_and_windows_when_the_file_is_silent),
        cmocka_unit_test(gemma3_has_five_local_layers_to_one_global),
        cmocka_unit_test(a_file_may_give_the_pattern_of_windows_itself),
        cmocka_unit_test(the_27b_size_of_gemma2_scales_queries_by_144),
        cmocka_unit_test(absurd_numbers_are_refused_by_the_name_of_their_key),
        cmocka_unit_test(an_unknown_family_is_refused_with_a_list_of_the_known),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
