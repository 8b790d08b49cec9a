/* model/adapter.c: see adapter.h.
 *
 * Opening asks for each matrix of the model whether the file changes it, so shapes are checked
 * against the model's own and matrices that a file stores fused are cut as the model cuts them:
 * their parts share A and have rows of B. Whatever tensor was not asked for is then refused by
 * name; to ignore it would serve a model that its owner did not train. */
#include "model/adapter.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/metadata.h"
#include "model/model_internal.h"

typedef struct adapter_pair {
    weight *a; /* [rank, n_cols]; NULL: this matrix is not changed */
    weight *b; /* [n_rows, rank] */
    float scale;
} adapter_pair;

typedef struct adapter_layer {
    adapter_pair matrix[MATRIX_COUNT];
} adapter_layer;

struct adapter {
    model *model; /* borrowed */
    gguf *gguf;   /* holds the data of all weights */
    arena arena;
    float alpha;           /* 0: the scale is 1 */
    adapter_layer *layers; /* [n_layers] */
    adapter_pair output;
    adapter_pair embedding; /* a is [n_vocab, rank] here: a row for each token */
    int32_t max_rank;
    weight **opened; /* [n_opened] */
    int32_t n_opened;
    map known; /* names of the tensors that were asked for and found */
};

/* ---- opening ---------------------------------------------------------------------------------- */

static realm_status expect_text(const gguf *g, const char *key, const char *wanted, size_t size,
                                realm_error *error)
{
    gguf_string text = {"", 0};
    realm_status status = gguf_get_string(g, key, &text, error);
    if (status != REALM_OK && status != REALM_NOT_FOUND)
        return status;
    if (text.size == size && memcmp(text.data, wanted, size) == 0)
        return REALM_OK;
    return realm_fail(error, REALM_INVALID, "'%s' is '%.*s', expected '%.*s'", key,
                      (int)(text.size < 64 ? text.size : 64), text.data, (int)size, wanted);
}

static realm_status check_kind(adapter *a, realm_error *error)
{
    const char *family = a->model->h.architecture->name;
    metadata m = {a->gguf, "adapter"};
    int found = 0;
    realm_status status;
    if ((status = expect_text(a->gguf, "general.type", "adapter", 7, error)) != REALM_OK ||
        (status = expect_text(a->gguf, "adapter.type", "lora", 4, error)) != REALM_OK ||
        (status = expect_text(a->gguf, "general.architecture", family, strlen(family), error)) !=
            REALM_OK)
        return status;
    if (gguf_find(a->gguf, "adapter.alora.invocation_tokens") != NULL)
        return realm_fail(error, REALM_UNSUPPORTED,
                          "'adapter.alora.invocation_tokens': adapters "
                          "that start at a token are not supported");
    return metadata_float(&m, "lora.alpha", 0, 1e6, &a->alpha, &found, error);
}

/* Opens one of the two tensors and remembers that its name is known. */
static realm_status open_half(adapter *a, weight **out, const weight_piece *piece,
                              realm_error *error)
{
    realm_status status = weights_open_piece(a->model->backend, out, a->gguf, piece, NULL, error);
    if (status != REALM_OK)
        return status;
    a->opened[a->n_opened++] = *out;
    if (map_put(&a->known, piece->name, strlen(piece->name), a, NULL) != REALM_OK)
        return realm_fail_memory(error, sizeof piece->name, "the table of an adapter's tensors");
    return REALM_OK;
}

/* The rank is what A and B must agree on. Present is 0 where the file does not change name. */
static realm_status find_rank(const adapter *a, const char *name, int32_t *rank, int *present,
                              realm_error *error)
{
    char key[96];
    snprintf(key, sizeof key, "%s.lora_a", name);
    const gguf_tensor *ta = gguf_find_tensor(a->gguf, key);
    snprintf(key, sizeof key, "%s.lora_b", name);
    const gguf_tensor *tb = gguf_find_tensor(a->gguf, key);
    *present = ta != NULL || tb != NULL;
    if (!*present)
        return REALM_OK;
    if (ta == NULL || tb == NULL)
        return realm_fail(error, REALM_CORRUPT, "'%s' has a lora_%c but no lora_%c", name,
                          ta == NULL ? 'b' : 'a', ta == NULL ? 'a' : 'b');
    if (tb->dims[0] < 1 || tb->dims[0] > ADAPTER_MAX_RANK)
        return realm_fail(error, REALM_CORRUPT,
                          "'%s' has rank %" PRIu64 ", which is not in 1 to %d", key, tb->dims[0],
                          ADAPTER_MAX_RANK);
    *rank = (int32_t)tb->dims[0];
    return REALM_OK;
}

static void name_half(weight_piece *piece, const char *name, const char *half)
{
    snprintf(piece->name, sizeof piece->name, "%.48s.%s", name, half);
}

static void finish_pair(adapter *a, adapter_pair *pair, int32_t rank)
{
    pair->scale = a->alpha == 0 ? 1 : a->alpha / (float)rank;
    if (rank > a->max_rank)
        a->max_rank = rank;
}

/* The pair for rows [base->first, +n_rows) of the model's matrix base->name. shared, if not NULL,
 * is the pair of an earlier part of the same fused matrix, whose A serves this part too. */
static realm_status open_pair(adapter *a, adapter_pair *pair, const weight_piece *base,
                              const adapter_pair *shared, realm_error *error)
{
    int32_t rank = 0;
    int present = 0;
    realm_status status = find_rank(a, base->name, &rank, &present, error);
    if (status != REALM_OK || !present)
        return status;
    weight_piece half = {.n_rows = rank, .n_stored = rank, .n_cols = base->n_cols};
    name_half(&half, base->name, "lora_a");
    if (shared != NULL)
        pair->a = shared->a;
    else
        status = open_half(a, &pair->a, &half, error);
    if (status != REALM_OK)
        return status;
    half = *base;
    half.n_cols = rank;
    name_half(&half, base->name, "lora_b");
    finish_pair(a, pair, rank);
    return open_half(a, &pair->b, &half, error);
}

/* An embedding's A has a column for each token, stored as rows, so that a lookup reads one. */
static realm_status open_embedding_pair(adapter *a, realm_error *error)
{
    const hyperparameters *h = &a->model->h;
    int32_t rank = 0;
    int present = 0;
    realm_status status = find_rank(a, "token_embd.weight", &rank, &present, error);
    if (status != REALM_OK || !present)
        return status;
    weight_piece half = {.n_rows = h->n_vocab, .n_stored = h->n_vocab, .n_cols = rank};
    name_half(&half, "token_embd.weight", "lora_a");
    status = open_half(a, &a->embedding.a, &half, error);
    if (status != REALM_OK)
        return status;
    half.n_rows = half.n_stored = h->n_embd;
    name_half(&half, "token_embd.weight", "lora_b");
    finish_pair(a, &a->embedding, rank);
    return open_half(a, &a->embedding.b, &half, error);
}

static realm_status open_layer(adapter *a, int32_t layer, realm_error *error)
{
    const model *m = a->model;
    weight_piece before = {0};
    for (int i = 0; i < MATRIX_COUNT; i++) {
        adapter_pair *pair = &a->layers[layer].matrix[i];
        weight_piece piece = weights_piece(&m->h, m->gguf, layer, (matrix_slot)i);
        int same = strcmp(piece.name, before.name) == 0;
        realm_status status = open_pair(a, pair, &piece, same ? pair - 1 : NULL, error);
        if (status != REALM_OK)
            return status;
        before = piece;
    }
    return REALM_OK;
}

static realm_status open_output_pair(adapter *a, realm_error *error)
{
    const hyperparameters *h = &a->model->h;
    weight_piece piece = {
        .name = "output.weight", .n_rows = h->n_vocab, .n_stored = h->n_vocab, .n_cols = h->n_embd};
    return open_pair(a, &a->output, &piece, NULL, error);
}

static realm_status refuse_unknown(const adapter *a, realm_error *error)
{
    for (size_t i = 0; i < gguf_tensor_count(a->gguf); i++) {
        gguf_string name = gguf_tensor_at(a->gguf, i)->name;
        if (map_get(&a->known, name.data, name.size) == NULL)
            return realm_fail(error, REALM_UNSUPPORTED,
                              "tensor '%.*s' adapts nothing that the model has or Realm can adapt",
                              (int)(name.size < 128 ? name.size : 128), name.data);
    }
    if (a->n_opened == 0)
        return realm_fail(error, REALM_CORRUPT, "the adapter has no tensors");
    return REALM_OK;
}

/* Makes a scratch tensor hold at least n_rows x n_cols. */
static realm_status reserve(model *m, tensor *t, int32_t n_rows, int32_t n_cols, realm_error *error)
{
    if (t->data != NULL && (int64_t)t->n_rows * t->n_cols >= (int64_t)n_rows * n_cols)
        return REALM_OK;
    if (t->data != NULL)
        m->backend->table->tensor_close(m->backend, t);
    *t = (tensor){0};
    return m->backend->table->tensor_open(m->backend, t, n_rows, n_cols, error);
}

/* The model's scratch for A x and B A x, as large as the largest adapter needs. */
static realm_status reserve_scratch(const adapter *a, realm_error *error)
{
    model *m = a->model;
    scratch *s = &m->scratch;
    int32_t widest = s->x.n_cols;
    const tensor *outs[] = {&s->q, &s->k, &s->v, &s->gate};
    for (size_t i = 0; i < sizeof outs / sizeof outs[0]; i++)
        widest = outs[i]->n_cols > widest ? outs[i]->n_cols : widest;
    realm_status status = reserve(m, &s->low, m->max_tokens, a->max_rank, error);
    if (status == REALM_OK)
        status = reserve(m, &s->delta, m->max_tokens, widest, error);
    if (status == REALM_OK && a->output.a != NULL)
        status = reserve(m, &s->delta, m->max_outputs, m->h.n_vocab, error);
    return status;
}

static realm_status open_pairs(adapter *a, realm_error *error)
{
    size_t n_layers = (size_t)a->model->h.n_layers;
    a->layers = arena_take_array(&a->arena, n_layers, sizeof *a->layers);
    /* two halves for each matrix and for both ends of the network */
    a->opened = arena_take_array(&a->arena, 2 * (n_layers * MATRIX_COUNT + 2), sizeof *a->opened);
    if (a->layers == NULL || a->opened == NULL)
        return realm_fail_memory(error, n_layers * sizeof *a->layers, "an adapter's layers");
    realm_status status = open_embedding_pair(a, error);
    if (status == REALM_OK)
        status = open_output_pair(a, error);
    for (int32_t i = 0; i < a->model->h.n_layers && status == REALM_OK; i++)
        status = open_layer(a, i, error);
    return status;
}

realm_status adapter_open(adapter **out, model *m, const char *path, realm_error *error)
{
    *out = NULL;
    adapter *a = calloc(1, sizeof *a);
    if (a == NULL)
        return realm_fail_memory(error, sizeof *a, "an adapter");
    a->model = m;
    arena_init(&a->arena, 0);
    map_init(&a->known);
    realm_status status = gguf_open(&a->gguf, path, error);
    if (status != REALM_OK)
        goto out;
    if ((status = check_kind(a, error)) != REALM_OK ||
        (status = open_pairs(a, error)) != REALM_OK ||
        (status = refuse_unknown(a, error)) != REALM_OK ||
        (status = reserve_scratch(a, error)) != REALM_OK)
        status = realm_fail_in(error, status, "%s", path);
out:
    if (status != REALM_OK) {
        adapter_close(a);
        return status;
    }
    *out = a;
    return REALM_OK;
}

void adapter_close(adapter *a)
{
    if (a == NULL)
        return;
    backend *b = a->model->backend;
    for (int32_t i = 0; i < a->n_opened; i++)
        b->table->weight_close(b, a->opened[i]);
    map_release(&a->known);
    gguf_close(a->gguf);
    arena_release(&a->arena);
    free(a);
}

/* ---- applying --------------------------------------------------------------------------------- */

int32_t adapter_groups(adapter_group *groups, const forward_input *input, const int32_t *rows,
                       int32_t n_rows)
{
    int32_t count = 0;
    if (input->adapters == NULL)
        return 0;
    for (int32_t i = 0; i < n_rows; i++) {
        const adapter *a = input->adapters[input->rows.sequences[rows == NULL ? i : rows[i]]];
        adapter_group *last = count > 0 ? &groups[count - 1] : NULL;
        if (a == NULL)
            continue;
        if (last != NULL && last->adapter == a && last->first + last->count == i)
            last->count++;
        else
            groups[count++] = (adapter_group){i, 1, a};
    }
    return count;
}

/* out += scale * B low, for the rows of one group. */
static void add_low(const adapter *a, const adapter_pair *pair, tensor out, tensor low, float scale)
{
    backend *b = a->model->backend;
    tensor delta = scratch_front(a->model->scratch.delta, out.n_rows, out.n_cols);
    const weight *w = pair->b;
    b->table->matmul(b, &delta, low, &w, NULL, 1);
    b->table->add(b, out, out, delta, scale);
}

static void apply_pair(const adapter_group *group, const adapter_pair *pair, tensor out, tensor x)
{
    const adapter *a = group->adapter;
    backend *b = a->model->backend;
    if (pair->a == NULL)
        return;
    assert(pair->a->n_cols == x.n_cols && pair->b->n_rows == out.n_cols);
    const weight *w = pair->a;
    tensor low = scratch_front(a->model->scratch.low, group->count, w->n_rows);
    b->table->matmul(b, &low, tensor_rows(x, group->first, group->count), &w, NULL, 1);
    add_low(a, pair, tensor_rows(out, group->first, group->count), low, pair->scale);
}

void adapter_apply(const adapter_group *groups, int32_t n_groups, int32_t layer, matrix_slot slot,
                   tensor out, tensor x)
{
    for (int32_t i = 0; i < n_groups; i++)
        apply_pair(&groups[i], &groups[i].adapter->layers[layer].matrix[slot], out, x);
}

void adapter_apply_output(const adapter_group *groups, int32_t n_groups, tensor out, tensor x)
{
    for (int32_t i = 0; i < n_groups; i++)
        apply_pair(&groups[i], &groups[i].adapter->output, out, x);
}

void adapter_apply_embedding(const adapter_group *groups, int32_t n_groups, tensor out,
                             const token_id *tokens, float scale)
{
    for (int32_t i = 0; i < n_groups; i++) {
        const adapter_group *group = &groups[i];
        const adapter_pair *pair = &group->adapter->embedding;
        backend *b = group->adapter->model->backend;
        if (pair->a == NULL)
            continue;
        tensor low = scratch_front(group->adapter->model->scratch.low, group->count,
                                   pair->a->n_cols);
        b->table->embed(b, low, pair->a, tokens + group->first, 1);
        add_low(group->adapter, pair, tensor_rows(out, group->first, group->count), low,
                pair->scale * scale);
    }
}
