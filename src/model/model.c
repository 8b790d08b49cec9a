/* model/model.c: opens and closes a model: file, numbers, tokenizer, weights, scratch.
 *
 * Everything that can fail fails here, on the loading thread, so that model_forward cannot. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "model/model_internal.h"
#include "model/weight_folder.h"

#define DEFAULT_BATCH_TOKENS  512
#define DEFAULT_BATCH_OUTPUTS 64
#define MAX_BATCH_TOKENS      65536

/* general.name, or else the file's name without folder and ".gguf". */
static const char *name_of(model *m, const char *path, const char *wanted)
{
    gguf_string name = {0};
    if (wanted != NULL)
        return arena_copy(&m->arena, wanted, strlen(wanted));
    if (gguf_get_string(m->gguf, "general.name", &name, NULL) == REALM_OK && name.size > 0)
        return arena_copy(&m->arena, name.data, name.size);
    const char *slash = strrchr(path, '/');
    const char *base = slash == NULL ? path : slash + 1;
    const char *dot = strrchr(base, '.');
    return arena_copy(&m->arena, base,
                      dot == NULL || dot == base ? strlen(base) : (size_t)(dot - base));
}

static int32_t batch_tokens(const model_options *o)
{
    return o->max_batch_tokens == 0 ? DEFAULT_BATCH_TOKENS : o->max_batch_tokens;
}

static int32_t batch_outputs(const model_options *o)
{
    return o->max_batch_outputs == 0 ? DEFAULT_BATCH_OUTPUTS : o->max_batch_outputs;
}

static realm_status read_options(model *m, const model_options *options, realm_error *error)
{
    m->max_tokens = batch_tokens(options);
    m->max_outputs = batch_outputs(options);
    if (m->max_tokens < 1 || m->max_tokens > MAX_BATCH_TOKENS)
        return realm_fail(error, REALM_INVALID, "max_batch_tokens is %" PRId32 ", not in 1 to %d",
                          m->max_tokens, MAX_BATCH_TOKENS);
    if (m->max_outputs < 1 || m->max_outputs > MAX_BATCH_TOKENS)
        return realm_fail(error, REALM_INVALID, "max_batch_outputs is %" PRId32 ", not in 1 to %d",
                          m->max_outputs, MAX_BATCH_TOKENS);
    return REALM_OK;
}

static realm_status check_tokenizer(const model *m, realm_error *error)
{
    size_t count = tokenizer_count(m->tokenizer);
    if (count == (size_t)m->h.n_vocab)
        return REALM_OK;
    return realm_fail(error, REALM_CORRUPT, "the tokenizer has %zu tokens but the model %" PRId32,
                      count, m->h.n_vocab);
}

static realm_status build_shapes(model *m, int32_t context_tokens, realm_error *error)
{
    size_t n_layers = (size_t)m->h.n_layers;
    m->kv_layers = arena_take_array(&m->arena, n_layers, sizeof *m->kv_layers);
    if (m->kv_layers == NULL)
        return realm_fail_memory(error, n_layers * sizeof *m->kv_layers, "the shapes of layers");
    for (size_t i = 0; i < n_layers; i++)
        m->kv_layers[i] = (kv_layer_shape){m->h.n_kv_heads[i], m->h.key_dim, m->h.value_dim};
    if (context_tokens == 0)
        context_tokens = m->h.n_context;
    realm_status status = rope_build(&m->ropes[ROPE_GLOBAL], &m->arena, &m->h, m->gguf, ROPE_GLOBAL,
                                     context_tokens, error);
    if (status != REALM_OK)
        return status;
    return rope_build(&m->ropes[ROPE_LOCAL], &m->arena, &m->h, m->gguf, ROPE_LOCAL, context_tokens,
                      error);
}

static int32_t largest(const int32_t *values, int32_t count)
{
    int32_t most = 0;
    for (int32_t i = 0; i < count; i++)
        most = values[i] > most ? values[i] : most;
    return most;
}

typedef struct scratch_shape {
    size_t offset; /* of the tensor in struct scratch */
    int32_t n_rows, n_cols;
} scratch_shape;

enum { N_SCRATCH = 11 };

static void scratch_shapes(scratch_shape out[N_SCRATCH], const hyperparameters *h, int32_t rows,
                           int32_t outputs)
{
    int32_t head_dim = h->key_dim > h->value_dim ? h->key_dim : h->value_dim;
    int32_t n_kv = largest(h->n_kv_heads, h->n_layers), n_ff = largest(h->n_ff, h->n_layers);
    const scratch_shape shapes[N_SCRATCH] = {
        {offsetof(scratch, x), rows, h->n_embd},
        {offsetof(scratch, kept), rows, h->n_embd},
        {offsetof(scratch, normed), rows, h->n_embd},
        {offsetof(scratch, projected), rows, h->n_embd},
        {offsetof(scratch, q), rows, h->n_heads * head_dim},
        {offsetof(scratch, k), rows, n_kv * h->key_dim},
        {offsetof(scratch, v), rows, n_kv * h->value_dim},
        {offsetof(scratch, attention), rows, h->n_heads * h->value_dim},
        {offsetof(scratch, gate), rows, n_ff},
        {offsetof(scratch, up), rows, n_ff},
        {offsetof(scratch, logits), outputs, h->n_vocab},
    };
    memcpy(out, shapes, sizeof shapes);
}

uint64_t model_scratch_bytes(const hyperparameters *h, const model_options *options)
{
    scratch_shape shapes[N_SCRATCH];
    uint64_t bytes = 0;
    scratch_shapes(shapes, h, batch_tokens(options), batch_outputs(options));
    for (size_t i = 0; i < N_SCRATCH; i++)
        bytes += (uint64_t)shapes[i].n_rows * (uint64_t)shapes[i].n_cols * sizeof(float);
    return bytes;
}

static realm_status open_scratch(model *m, realm_error *error)
{
    scratch *s = &m->scratch;
    int32_t rows = m->max_tokens;
    scratch_shape shapes[N_SCRATCH];
    scratch_shapes(shapes, &m->h, rows, m->max_outputs);
    for (size_t i = 0; i < N_SCRATCH; i++) {
        tensor *t = (tensor *)((char *)s + shapes[i].offset);
        realm_status status = m->backend->table->tensor_open(m->backend, t, shapes[i].n_rows,
                                                             shapes[i].n_cols, error);
        if (status != REALM_OK)
            return status;
    }
    s->groups = arena_take_array(&m->arena, (size_t)rows, sizeof *s->groups);
    s->output_groups = arena_take_array(&m->arena, (size_t)rows, sizeof *s->output_groups);
    if (s->groups == NULL || s->output_groups == NULL)
        return realm_fail_memory(error, (size_t)rows * sizeof *s->groups, "groups of rows");
    return REALM_OK;
}

static void close_scratch(model *m)
{
    scratch *s = &m->scratch;
    tensor *all[] = {&s->x,         &s->kept, &s->normed, &s->projected, &s->q,   &s->k,    &s->v,
                     &s->attention, &s->gate, &s->up,     &s->logits,    &s->low, &s->delta};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        if (all[i]->data != NULL)
            m->backend->table->tensor_close(m->backend, all[i]);
}

/* Fills *m, which is zeroed; what was made so far is undone by model_close. */
static realm_status open_into(model *m, const char *path, const model_options *options,
                              realm_error *error)
{
    realm_status status = read_options(m, options, error);
    if (status == REALM_OK)
        status = gguf_open(&m->gguf, path, error);
    if (status != REALM_OK)
        return status;
    m->name = name_of(m, path, options->name);
    if (m->name == NULL)
        return realm_fail_memory(error, strlen(path), "the model's name");
    weights_progress progress = {options->progress, options->progress_context};
    if ((status = hyperparameters_read(&m->h, m->gguf, error)) != REALM_OK ||
        (status = tokenizer_open(&m->tokenizer, m->gguf, error)) != REALM_OK ||
        (status = check_tokenizer(m, error)) != REALM_OK ||
        (status = build_shapes(m, options->context_tokens, error)) != REALM_OK ||
        (status = weight_folder_open(&m->cache, options->weight_folder, options->map_weights,
                                     m->gguf, m->backend, error)) != REALM_OK ||
        (status = weights_open(&m->weights, &m->arena, m->backend, &m->h, m->gguf, m->cache,
                               &progress, error)) != REALM_OK ||
        (status = open_scratch(m, error)) != REALM_OK)
        return realm_fail_in(error, status, "%s", path);
    weight_folder_save(m->cache);
    return REALM_OK;
}

realm_status model_open(model **out, backend *b, const char *path, const model_options *options,
                        realm_error *error)
{
    const model_options defaults = {0};
    *out = NULL;
    model *m = calloc(1, sizeof *m);
    if (m == NULL)
        return realm_fail_memory(error, sizeof *m, "a model");
    m->backend = b;
    arena_init(&m->arena, 0);
    realm_status status = open_into(m, path, options == NULL ? &defaults : options, error);
    if (status != REALM_OK) {
        model_close(m);
        return status;
    }
    LOG_I("model", "opened %s: %s, %" PRId32 " layers, %" PRId32 " tokens of vocabulary", m->name,
          m->h.architecture->name, m->h.n_layers, m->h.n_vocab);
    *out = m;
    return REALM_OK;
}

void model_close(model *m)
{
    if (m == NULL)
        return;
    close_scratch(m);
    weights_release(&m->weights);
    weight_cache_close(m->cache);
    tokenizer_close(m->tokenizer);
    gguf_close(m->gguf);
    arena_release(&m->arena);
    free(m);
}

const char *model_name(const model *m)
{
    return m->name;
}
const gguf *model_gguf(const model *m)
{
    return m->gguf;
}
const tokenizer *model_tokenizer(const model *m)
{
    return m->tokenizer;
}
const hyperparameters *model_hyperparameters(const model *m)
{
    return &m->h;
}
backend *model_backend(const model *m)
{
    return m->backend;
}

int32_t model_max_tokens(const model *m)
{
    return m->max_tokens;
}

int32_t model_max_outputs(const model *m)
{
    return m->max_outputs;
}

void model_kv_shape(const model *m, kv_shape *shape)
{
    shape->n_layers = m->h.n_layers;
    shape->layers = m->kv_layers;
}

uint64_t model_kv_page_bytes(const model *m, dtype type)
{
    uint64_t bytes = 0;
    for (int32_t i = 0; i < m->h.n_layers; i++)
        bytes += (uint64_t)m->h.n_kv_heads[i] * (dtype_row_bytes(type, (uint64_t)m->h.key_dim) +
                                                 dtype_row_bytes(type, (uint64_t)m->h.value_dim));
    return bytes * KV_PAGE_TOKENS;
}

const weight *model_weight(const model *m, const char *name)
{
    return map_get(&m->weights.by_name, name, strlen(name));
}

const rope *model_rope(const model *m, int32_t layer)
{
    return &m->ropes[m->h.window[layer] > 0 ? ROPE_LOCAL : ROPE_GLOBAL];
}
