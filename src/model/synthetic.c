/* model/synthetic.c: see synthetic.h.
 *
 * A shape's tensors are visited twice in the same order: once to announce them, which gives the
 * file's head, and once to write their bytes a chunk at a time. Each tensor has a stream of random
 * numbers of its own. The vocabulary is the smallest that is valid for every family: SentencePiece
 * with a few control tokens, the 256 bytes and made-up words. */
#include "model/synthetic.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/rng.h"
#include "formats/gguf_writer.h"

typedef struct making {
    const synthetic_model *m;
    gguf_writer head;
    uint64_t done_bytes; /* of tensors */
    uint64_t n_tensors;  /* written */
    uint64_t parameters; /* announced */
    int descriptor;      /* -1 while tensors are announced */
    uint8_t *chunk;      /* [SYNTHETIC_CHUNK_BYTES + 8] */
    void (*progress)(void *context, double fraction);
    void *context;
    realm_status status; /* the first failure */
    realm_error *error;
} making;

static int is(const making *k, const char *architecture)
{
    return strcmp(k->m->shape->architecture, architecture) == 0;
}

/* ---- metadata ----------------------------------------------------------------------------------- */

static void put_number(making *k, const char *suffix, int32_t value)
{
    char key[96];
    snprintf(key, sizeof key, "%s.%s", k->m->shape->architecture, suffix);
    gguf_writer_u32(&k->head, key, (uint32_t)value);
}

static void put_real(making *k, const char *suffix, float value)
{
    char key[96];
    snprintf(key, sizeof key, "%s.%s", k->m->shape->architecture, suffix);
    gguf_writer_f32(&k->head, key, value);
}

#define END_OF_TEXT                                                                                \
    259 /* after three control tokens and the bytes. llama.cpp wants it in every model
                           whose name says Phi-3 */
#define TOKEN_SIZE 16

static realm_status put_vocabulary(making *k)
{
    size_t n = (size_t)k->m->shape->n_vocab;
    size_t bytes = n * (TOKEN_SIZE + sizeof(char *) + sizeof(float) + sizeof(int32_t));
    char *texts = malloc(n * TOKEN_SIZE);
    const char **tokens = malloc(n * sizeof *tokens);
    float *scores = malloc(n * sizeof *scores);
    int32_t *kinds = malloc(n * sizeof *kinds);
    int got_all = texts && tokens && scores && kinds;
    for (size_t i = 0; i < n && got_all; i++) {
        static const char *const control[] = {"<unk>", "<s>", "</s>"};
        char *text = texts + i * TOKEN_SIZE;
        tokens[i] = text;
        scores[i] = -(float)i;
        kinds[i] = i < END_OF_TEXT ? 6 : 1; /* a byte, a word */
        if (i < 3 || i == END_OF_TEXT)
            kinds[i] = i == 0 ? 2 : 3; /* unknown, control */
        if (i < 3)
            snprintf(text, TOKEN_SIZE, "%s", control[i]);
        else if (i < END_OF_TEXT)
            snprintf(text, TOKEN_SIZE, "<0x%02X>", (unsigned)i - 3);
        else if (i == END_OF_TEXT)
            snprintf(text, TOKEN_SIZE, "<|endoftext|>");
        else
            snprintf(text, TOKEN_SIZE, "\xe2\x96\x81t%u", (unsigned)i - END_OF_TEXT);
    }
    if (got_all) {
        gguf_writer_string(&k->head, "tokenizer.ggml.model", "llama");
        gguf_writer_strings(&k->head, "tokenizer.ggml.tokens", tokens, n);
        gguf_writer_f32s(&k->head, "tokenizer.ggml.scores", scores, n);
        gguf_writer_i32s(&k->head, "tokenizer.ggml.token_type", kinds, n);
        gguf_writer_u32(&k->head, "tokenizer.ggml.unknown_token_id", 0);
        gguf_writer_u32(&k->head, "tokenizer.ggml.bos_token_id", 1);
        gguf_writer_u32(&k->head, "tokenizer.ggml.eos_token_id", 2);
    }
    free(kinds);
    free(scores);
    free(tokens);
    free(texts);
    return got_all ? REALM_OK : realm_fail_memory(k->error, bytes, "a vocabulary");
}

static realm_status put_metadata(making *k)
{
    const synthetic_shape *s = k->m->shape;
    char name[96];
    snprintf(name, sizeof name, "random %s %s", s->name, k->m->quantization->name);
    gguf_writer_string(&k->head, "general.architecture", s->architecture);
    gguf_writer_string(&k->head, "general.name", name);
    gguf_writer_u32(&k->head, "general.quantization_version", 2);
    put_number(k, "block_count", s->n_layers);
    put_number(k, "context_length", s->n_context);
    put_number(k, "embedding_length", s->n_embd);
    put_number(k, "feed_forward_length", s->n_ff);
    put_number(k, "attention.head_count", s->n_heads);
    put_number(k, "attention.head_count_kv", s->n_kv_heads);
    put_number(k, "attention.key_length", s->head_dim);
    put_number(k, "attention.value_length", s->head_dim);
    put_number(k, "rope.dimension_count", s->head_dim);
    put_number(k, "vocab_size", s->n_vocab);
    put_real(k, "rope.freq_base", s->rope_base);
    put_real(k, "attention.layer_norm_rms_epsilon", s->norm_epsilon);
    if (s->window > 0)
        put_number(k, "attention.sliding_window", s->window);
    return put_vocabulary(k);
}

/* ---- tensors ------------------------------------------------------------------------------------ */

static void write_all(making *k, const void *data, size_t size)
{
    const char *at = data;
    while (size > 0 && k->status == REALM_OK) {
        ssize_t n = write(k->descriptor, at, size);
        if (n >= 0) {
            at += n;
            size -= (size_t)n;
        } else if (errno != EINTR) {
            k->status = realm_fail(k->error, REALM_IO, "cannot write the model: %s",
                                   strerror(errno));
        }
    }
}

/* Announced bytes have been written: zeros up to the alignment, and a look at the clock for who
 * watches. */
static void finish_tensor(making *k, size_t bytes)
{
    static const char zeros[GGUF_WRITER_ALIGNMENT];
    write_all(k, zeros,
              (GGUF_WRITER_ALIGNMENT - bytes % GGUF_WRITER_ALIGNMENT) % GGUF_WRITER_ALIGNMENT);
    k->n_tensors++;
}

static void wrote(making *k, size_t bytes)
{
    k->done_bytes += bytes;
    if (k->progress)
        k->progress(k->context, (double)k->done_bytes / (double)k->head.data_bytes);
}

static void put_matrix(making *k, const char *name, uint32_t type, int32_t n_cols, int32_t n_rows)
{
    if (k->descriptor < 0) {
        gguf_writer_announce(&k->head, name, type, (uint64_t)n_cols, (uint64_t)n_rows);
        k->parameters += (uint64_t)n_cols * (uint64_t)n_rows;
        return;
    }
    rng random;
    rng_init(&random, k->m->seed * 1000003 + k->n_tensors);
    size_t bytes = dtype_row_bytes(type, (uint64_t)n_cols) * (size_t)n_rows;
    size_t block = dtype_block_bytes(type), most = SYNTHETIC_CHUNK_BYTES / block * block;
    for (size_t left = bytes; left > 0 && k->status == REALM_OK;) {
        size_t size = left < most ? left : most;
        synthetic_fill(type, k->chunk, size, &random);
        write_all(k, k->chunk, size);
        wrote(k, size);
        left -= size;
    }
    finish_tensor(k, bytes);
}

/* A gain or bias. All its elements are the same: there is nothing to see in them. */
static void put_vector(making *k, const char *name, int32_t n, float value)
{
    size_t bytes = (size_t)n * sizeof value;
    if (k->descriptor < 0) {
        gguf_writer_announce(&k->head, name, DTYPE_F32, (uint64_t)n, 0);
        k->parameters += (uint64_t)n;
        return;
    }
    for (size_t i = 0; i < bytes; i += sizeof value)
        memcpy(k->chunk + i, &value, sizeof value);
    write_all(k, k->chunk, bytes);
    wrote(k, bytes);
    finish_tensor(k, bytes);
}

static void put_layer_matrix(making *k, int32_t layer, const char *name, synthetic_role role,
                             int32_t n_cols, int32_t n_rows)
{
    char full[64];
    snprintf(full, sizeof full, "blk.%d.%s.weight", (int)layer, name);
    put_matrix(k, full, synthetic_type_of(k->m, role, layer, n_cols), n_cols, n_rows);
}

static void put_layer_vector(making *k, int32_t layer, const char *name, int32_t n, float value)
{
    char full[64];
    snprintf(full, sizeof full, "blk.%d.%s", (int)layer, name);
    put_vector(k, full, n, value);
}

static void put_attention(making *k, int32_t layer)
{
    const synthetic_shape *s = k->m->shape;
    int32_t q = s->n_heads * s->head_dim, kv = s->n_kv_heads * s->head_dim;
    if (is(k, "phi3")) {
        put_layer_matrix(k, layer, "attn_qkv", SYNTHETIC_QKV, s->n_embd, q + 2 * kv);
    } else {
        put_layer_matrix(k, layer, "attn_q", SYNTHETIC_Q, s->n_embd, q);
        put_layer_matrix(k, layer, "attn_k", SYNTHETIC_K, s->n_embd, kv);
        put_layer_matrix(k, layer, "attn_v", SYNTHETIC_V, s->n_embd, kv);
    }
    if (is(k, "qwen2")) {
        put_layer_vector(k, layer, "attn_q.bias", q, 0);
        put_layer_vector(k, layer, "attn_k.bias", kv, 0);
        put_layer_vector(k, layer, "attn_v.bias", kv, 0);
    }
    if (is(k, "qwen3") || is(k, "gemma3")) {
        put_layer_vector(k, layer, "attn_q_norm.weight", s->head_dim, 1);
        put_layer_vector(k, layer, "attn_k_norm.weight", s->head_dim, 1);
    }
    put_layer_matrix(k, layer, "attn_output", SYNTHETIC_O, q, s->n_embd);
}

static void put_layer(making *k, int32_t layer)
{
    const synthetic_shape *s = k->m->shape;
    put_layer_vector(k, layer, "attn_norm.weight", s->n_embd, 1);
    put_attention(k, layer);
    if (is(k, "gemma3")) {
        put_layer_vector(k, layer, "post_attention_norm.weight", s->n_embd, 1);
        put_layer_vector(k, layer, "post_ffw_norm.weight", s->n_embd, 1);
    }
    put_layer_vector(k, layer, "ffn_norm.weight", s->n_embd, 1);
    if (is(k, "phi3")) {
        put_layer_matrix(k, layer, "ffn_up", SYNTHETIC_UP, s->n_embd, 2 * s->n_ff);
    } else {
        put_layer_matrix(k, layer, "ffn_gate", SYNTHETIC_GATE, s->n_embd, s->n_ff);
        put_layer_matrix(k, layer, "ffn_up", SYNTHETIC_UP, s->n_embd, s->n_ff);
    }
    put_layer_matrix(k, layer, "ffn_down", SYNTHETIC_DOWN, s->n_ff, s->n_embd);
}

static void put_tensors(making *k)
{
    const synthetic_shape *s = k->m->shape;
    put_matrix(k, "token_embd.weight", synthetic_type_of(k->m, SYNTHETIC_EMBEDDING, 0, s->n_embd),
               s->n_embd, s->n_vocab);
    put_vector(k, "output_norm.weight", s->n_embd, 1);
    if (!s->tied)
        put_matrix(k, "output.weight", synthetic_type_of(k->m, SYNTHETIC_OUTPUT, 0, s->n_embd),
                   s->n_embd, s->n_vocab);
    for (int32_t i = 0; i < s->n_layers; i++)
        put_layer(k, i);
}

/* ---- the file ----------------------------------------------------------------------------------- */

/* Leaves in *head what comes before the tensors' bytes. */
static realm_status make_head(making *k, buffer *head)
{
    k->descriptor = -1;
    gguf_writer_init(&k->head);
    buffer_init(head, (size_t)1 << 30);
    realm_status status = put_metadata(k);
    if (status != REALM_OK)
        return status;
    put_tensors(k);
    return gguf_writer_head(&k->head, head, k->error);
}

realm_status synthetic_measure(const synthetic_model *m, synthetic_size *out, realm_error *error)
{
    making k = {.m = m, .error = error};
    buffer head;
    realm_status status = make_head(&k, &head);
    *out = (synthetic_size){head.size + k.head.data_bytes, k.parameters};
    buffer_release(&head);
    gguf_writer_release(&k.head);
    return status;
}

realm_status synthetic_write(const synthetic_model *m, int descriptor,
                             void (*progress)(void *context, double fraction), void *context,
                             realm_error *error)
{
    making k = {.m = m, .progress = progress, .context = context, .error = error};
    buffer head;
    realm_status status = make_head(&k, &head);
    if (status == REALM_OK && !(k.chunk = malloc(SYNTHETIC_CHUNK_BYTES + 8)))
        status = realm_fail_memory(error, SYNTHETIC_CHUNK_BYTES + 8, "random weights");
    if (status == REALM_OK) {
        k.descriptor = descriptor;
        write_all(&k, head.data, head.size);
        put_tensors(&k);
        status = k.status;
    }
    free(k.chunk);
    buffer_release(&head);
    gguf_writer_release(&k.head);
    return status;
}
