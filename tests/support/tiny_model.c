/* tests/support/tiny_model.c: see tiny_model.h. */
#include "support/tiny_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

static int is(const char *a, const char *b)
{
    return a != NULL && strcmp(a, b) == 0;
}

static int is_gemma(const tiny_model *t)
{
    return strncmp(t->architecture, "gemma", 5) == 0;
}
static int has_post_norms(const tiny_model *t)
{
    return is(t->architecture, "gemma2") || is(t->architecture, "gemma3");
}
static int has_qk_norm(const tiny_model *t)
{
    return is(t->architecture, "qwen3") || is(t->architecture, "gemma3");
}
static int n_layers(const tiny_model *t)
{
    return is(t->architecture, "gemma3") ? 7 : 2;
}

/* ---- metadata --------------------------------------------------------------------------------- */

static const char *own_key(const tiny_model *t, const char *suffix, char key[128])
{
    snprintf(key, 128, "%s.%s", t->architecture, suffix);
    return key;
}

static void own_u32(const tiny_model *t, gguf_writer *w, const char *suffix, uint32_t value)
{
    char key[128];
    if (!is(t->omit, own_key(t, suffix, key)))
        gguf_writer_u32(w, key, value);
}

static void own_f32(const tiny_model *t, gguf_writer *w, const char *suffix, float value)
{
    char key[128];
    if (!is(t->omit, own_key(t, suffix, key)))
        gguf_writer_f32(w, key, value);
}

static void vocabulary(gguf_writer *w)
{
    static char bytes[256][8];
    const char *tokens[TINY_VOCAB] = {"<unk>", "<s>", "</s>"};
    const char *letters[] = {"\xe2\x96\x81", "a", "b", "c", "d"};
    float scores[TINY_VOCAB] = {0};
    int32_t kinds[TINY_VOCAB] = {2, 3, 3};
    for (int i = 0; i < 256; i++) {
        snprintf(bytes[i], sizeof bytes[i], "<0x%02X>", i);
        tokens[3 + i] = bytes[i];
        kinds[3 + i] = 6;
    }
    for (int i = 0; i < 5; i++) {
        tokens[259 + i] = letters[i];
        kinds[259 + i] = 1;
    }
    gguf_writer_string(w, "tokenizer.ggml.model", "llama");
    gguf_writer_strings(w, "tokenizer.ggml.tokens", tokens, TINY_VOCAB);
    gguf_writer_f32s(w, "tokenizer.ggml.scores", scores, TINY_VOCAB);
    gguf_writer_i32s(w, "tokenizer.ggml.token_type", kinds, TINY_VOCAB);
    gguf_writer_u32(w, "tokenizer.ggml.bos_token_id", 1);
    gguf_writer_u32(w, "tokenizer.ggml.eos_token_id", 2);
    gguf_writer_u32(w, "tokenizer.ggml.unknown_token_id", 0);
}

void tiny_model_metadata(const tiny_model *t, gguf_writer *w)
{
    gguf_writer_string(w, "general.architecture", t->architecture);
    gguf_writer_string(w, "general.name", "tiny");
    own_u32(t, w, "block_count", (uint32_t)n_layers(t));
    own_u32(t, w, "context_length", TINY_CONTEXT);
    own_u32(t, w, "embedding_length", TINY_EMBD);
    own_u32(t, w, "feed_forward_length", TINY_FF);
    own_u32(t, w, "attention.head_count", TINY_HEADS);
    own_u32(t, w, "attention.head_count_kv", TINY_KV_HEADS);
    own_u32(t, w, "attention.key_length", TINY_HEAD_DIM);
    own_u32(t, w, "attention.value_length", TINY_HEAD_DIM);
    own_u32(t, w, "rope.dimension_count", TINY_HEAD_DIM);
    own_f32(t, w, "rope.freq_base", 10000);
    own_f32(t, w,
            is(t->architecture, "stablelm") ? "attention.layer_norm_epsilon"
                                            : "attention.layer_norm_rms_epsilon",
            1e-5f);
    if (has_post_norms(t))
        own_u32(t, w, "attention.sliding_window", 20);
    vocabulary(w);
    if (t->more != NULL)
        t->more(w);
}

/* ---- tensors ---------------------------------------------------------------------------------- */

static float *random_floats(uint64_t seed, const char *name, size_t n, double low, double high)
{
    float *values = malloc(n * sizeof *values);
    rng r;
    uint64_t hash = seed * 31 + 7;
    for (const char *c = name; *c != '\0'; c++)
        hash = hash * 1099511628211u + (uint8_t)*c;
    if (values == NULL)
        abort();
    rng_init(&r, hash);
    for (size_t i = 0; i < n; i++)
        values[i] = (float)(low + (high - low) * rng_double(&r));
    return values;
}

/* A block of Q8_0: an F16 scale and 32 bytes. The scale is a power of two, whose F16 is easy. */
static void *as_q8_0(const float *values, size_t n)
{
    uint8_t *blocks = malloc(n / 32 * 34);
    if (blocks == NULL)
        abort();
    for (size_t i = 0; i < n / 32; i++) {
        const uint16_t two_to_minus_7 = 0x2000;
        memcpy(blocks + i * 34, &two_to_minus_7, 2);
        for (size_t j = 0; j < 32; j++) {
            double q = round((double)values[i * 32 + j] * 128);
            blocks[i * 34 + 2 + j] = (uint8_t)(int8_t)fmax(-127, fmin(127, q));
        }
    }
    return blocks;
}

static void put_matrix(const tiny_model *t, gguf_writer *w, const char *name, uint64_t n_cols,
                       uint64_t n_rows, double gain)
{
    if (is(t->omit, name))
        return;
    n_rows += is(t->reshape, name);
    double spread = gain * sqrt(3.0 / (double)n_cols);
    float *values = random_floats(t->seed, name, n_cols * n_rows, -spread, spread);
    if (t->type == DTYPE_Q8_0) {
        void *blocks = as_q8_0(values, n_cols * n_rows);
        gguf_writer_tensor(w, name, DTYPE_Q8_0, n_cols, n_rows, blocks);
        free(blocks);
    } else {
        gguf_writer_tensor(w, name, DTYPE_F32, n_cols, n_rows, values);
    }
    free(values);
}

static void put_vector(const tiny_model *t, gguf_writer *w, const char *name, uint64_t n,
                       double low, double high)
{
    if (is(t->omit, name))
        return;
    n += is(t->reshape, name);
    float *values = random_floats(t->seed, name, n, low, high);
    gguf_writer_tensor(w, name, is(t->retype, name) ? DTYPE_F16 : DTYPE_F32, n, 0, values);
    free(values);
}

static void put_norm(const tiny_model *t, gguf_writer *w, const char *prefix, uint64_t n)
{
    char name[96];
    snprintf(name, sizeof name, "%s.weight", prefix);
    put_vector(t, w, name, n, 0.7, 1.3);
    snprintf(name, sizeof name, "%s.bias", prefix);
    if (is(t->architecture, "stablelm"))
        put_vector(t, w, name, n, -0.2, 0.2);
}

typedef struct tiny_matrix {
    const char *name;
    uint64_t n_cols, n_rows;
    int has_bias;
} tiny_matrix;

/* Writes the matrices of one layer of the family to out; returns how many. */
static int matrices_of(const tiny_model *t, tiny_matrix out[8])
{
    const uint64_t q = TINY_HEADS * TINY_HEAD_DIM, kv = TINY_KV_HEADS * TINY_HEAD_DIM;
    int bias = is(t->architecture, "qwen2"), n = 0;
    if (is(t->architecture, "phi3")) {
        out[n++] = (tiny_matrix){"attn_qkv", TINY_EMBD, q + 2 * kv, 0};
        out[n++] = (tiny_matrix){"ffn_up", TINY_EMBD, (uint64_t)2 * TINY_FF, 0};
    } else {
        out[n++] = (tiny_matrix){"attn_q", TINY_EMBD, q, bias};
        out[n++] = (tiny_matrix){"attn_k", TINY_EMBD, kv, bias};
        out[n++] = (tiny_matrix){"attn_v", TINY_EMBD, kv, bias};
        out[n++] = (tiny_matrix){"ffn_gate", TINY_EMBD, TINY_FF, 0};
        out[n++] = (tiny_matrix){"ffn_up", TINY_EMBD, TINY_FF, 0};
    }
    out[n++] = (tiny_matrix){"attn_output", q, TINY_EMBD, 0};
    out[n++] = (tiny_matrix){"ffn_down", TINY_FF, TINY_EMBD, 0};
    return n;
}

static void put_layer(const tiny_model *t, gguf_writer *w, int layer)
{
    tiny_matrix matrices[8];
    char name[96];
    int n = matrices_of(t, matrices);
    for (int i = 0; i < n; i++) {
        snprintf(name, sizeof name, "blk.%d.%s.weight", layer, matrices[i].name);
        put_matrix(t, w, name, matrices[i].n_cols, matrices[i].n_rows, 1.3);
        snprintf(name, sizeof name, "blk.%d.%s.bias", layer, matrices[i].name);
        if (matrices[i].has_bias)
            put_vector(t, w, name, matrices[i].n_rows, -0.3, 0.3);
    }
    const struct {
        const char *name;
        int wanted;
        uint64_t n;
    } norms[] = {
        {"attn_norm", 1, TINY_EMBD},
        {"ffn_norm", 1, TINY_EMBD},
        {"post_attention_norm", has_post_norms(t), TINY_EMBD},
        {"post_ffw_norm", has_post_norms(t), TINY_EMBD},
        {"attn_q_norm", has_qk_norm(t), TINY_HEAD_DIM},
        {"attn_k_norm", has_qk_norm(t), TINY_HEAD_DIM},
    };
    for (size_t i = 0; i < sizeof norms / sizeof norms[0]; i++) {
        snprintf(name, sizeof name, "blk.%d.%s", layer, norms[i].name);
        if (norms[i].wanted)
            put_norm(t, w, name, norms[i].n);
    }
}

/* A file that cannot be written ends the test program: there is nothing a test could do about it. */
static void save(gguf_writer *w, const char *path)
{
    realm_error error;
    if (gguf_writer_save(w, path, &error) != REALM_OK) {
        fprintf(stderr, "tiny_model: %s\n", error.message);
        abort();
    }
    gguf_writer_release(w);
}

void tiny_model_save(const tiny_model *t, const char *path)
{
    gguf_writer w;
    gguf_writer_init(&w);
    tiny_model_metadata(t, &w);
    put_matrix(t, &w, "token_embd.weight", TINY_EMBD, TINY_VOCAB, 2);
    put_norm(t, &w, "output_norm", TINY_EMBD);
    if (t->untied && !is_gemma(t))
        put_matrix(t, &w, "output.weight", TINY_EMBD, TINY_VOCAB, 2);
    for (int i = 0; i < n_layers(t); i++)
        put_layer(t, &w, i);
    save(&w, path);
}

/* ---- adapters --------------------------------------------------------------------------------- */

static void put_half(const tiny_adapter *t, gguf_writer *w, const char *base, char half,
                     uint64_t n_cols, uint64_t n_rows)
{
    const tiny_model as = {
        .type = DTYPE_F32, .seed = t->seed, .omit = t->omit, .reshape = t->reshape};
    char name[96];
    snprintf(name, sizeof name, "%s.lora_%c", base, half);
    put_matrix(&as, w, name, n_cols, n_rows, 0.7);
}

static void put_pair(const tiny_adapter *t, gguf_writer *w, const char *matrix)
{
    tiny_matrix matrices[8];
    uint64_t rank = (uint64_t)t->rank;
    char name[64];
    int n = matrices_of(t->model, matrices);
    for (int i = 0; i < n; i++) {
        if (!is(matrices[i].name, matrix))
            continue;
        snprintf(name, sizeof name, "blk.0.%s.weight", matrix);
        put_half(t, w, name, 'a', matrices[i].n_cols, rank);
        put_half(t, w, name, 'b', rank, matrices[i].n_rows);
    }
    if (is("output", matrix)) {
        put_half(t, w, "output.weight", 'a', TINY_EMBD, rank);
        put_half(t, w, "output.weight", 'b', rank, TINY_VOCAB);
    }
    if (is("token_embd", matrix)) {
        put_half(t, w, "token_embd.weight", 'a', rank, TINY_VOCAB);
        put_half(t, w, "token_embd.weight", 'b', rank, TINY_EMBD);
    }
}

void tiny_adapter_save(const tiny_adapter *t, const char *path)
{
    gguf_writer w;
    gguf_writer_init(&w);
    if (!is(t->omit, "general.type"))
        gguf_writer_string(&w, "general.type", "adapter");
    if (!is(t->omit, "adapter.type"))
        gguf_writer_string(&w, "adapter.type", "lora");
    gguf_writer_string(&w, "general.architecture", t->model->architecture);
    gguf_writer_f32(&w, "adapter.lora.alpha", t->alpha);
    if (t->more != NULL)
        t->more(&w);
    for (size_t i = 0; t->matrices[i] != NULL; i++)
        put_pair(t, &w, t->matrices[i]);
    save(&w, path);
}
