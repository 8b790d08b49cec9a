/* model/weights.c: see weights.h.
 *
 * Two small tables say what a layer is made of: matrices with their shapes and the fused tensor
 * that may hold them instead, and norms with the families that have them. Norms and biases are
 * F32 in every GGUF file; matrices have any type the backend takes. (Gemma's norm gains are
 * stored with the 1 that its formula adds already in them: its converter does that.) */
#include "model/weights.h"

#include <stdio.h>
#include <string.h>

/* ---- what a layer is made of ----------------------------------------------------------------- */

typedef enum dimension { DIM_NONE, DIM_EMBD, DIM_Q, DIM_K, DIM_V, DIM_ATTENTION, DIM_FF } dimension;

typedef struct matrix_row {
    const char *name;
    dimension rows, cols;
    const char *fused;     /* the tensor that may hold it with others, or NULL */
    dimension before[2];   /* what stands before it in there */
    dimension together[3]; /* all that stands in there */
} matrix_row;

// clang-format off
static const matrix_row matrix_rows[MATRIX_COUNT] = {
    [MATRIX_Q] = {"attn_q", DIM_Q, DIM_EMBD, "attn_qkv", {DIM_NONE, DIM_NONE}, {DIM_Q, DIM_K, DIM_V}},
    [MATRIX_K] = {"attn_k", DIM_K, DIM_EMBD, "attn_qkv", {DIM_Q, DIM_NONE}, {DIM_Q, DIM_K, DIM_V}},
    [MATRIX_V] = {"attn_v", DIM_V, DIM_EMBD, "attn_qkv", {DIM_Q, DIM_K}, {DIM_Q, DIM_K, DIM_V}},
    [MATRIX_O] = {"attn_output", DIM_EMBD, DIM_ATTENTION, NULL, {DIM_NONE}, {DIM_NONE}},
    [MATRIX_GATE] = {"ffn_gate", DIM_FF, DIM_EMBD, "ffn_up", {DIM_NONE, DIM_NONE}, {DIM_FF, DIM_FF, DIM_NONE}},
    [MATRIX_UP] = {"ffn_up", DIM_FF, DIM_EMBD, "ffn_up", {DIM_FF, DIM_NONE}, {DIM_FF, DIM_FF, DIM_NONE}},
    [MATRIX_DOWN] = {"ffn_down", DIM_EMBD, DIM_FF, NULL, {DIM_NONE}, {DIM_NONE}},
};

typedef enum presence { ALWAYS, WITH_QK_NORM, WITH_POST_NORMS } presence;

typedef struct norm_row {
    const char *name;
    int of_head; /* as long as a head's key, not as the embedding */
    presence presence;
} norm_row;

static const norm_row norm_rows[NORM_COUNT] = {
    [NORM_BEFORE_ATTENTION] = {"attn_norm", 0, ALWAYS},
    [NORM_QUERY] = {"attn_q_norm", 1, WITH_QK_NORM},
    [NORM_KEY] = {"attn_k_norm", 1, WITH_QK_NORM},
    [NORM_AFTER_ATTENTION] = {"post_attention_norm", 0, WITH_POST_NORMS},
    [NORM_BEFORE_FEED_FORWARD] = {"ffn_norm", 0, ALWAYS},
    [NORM_AFTER_FEED_FORWARD] = {"post_ffw_norm", 0, WITH_POST_NORMS},
};
// clang-format on

static int32_t length_of(dimension d, const hyperparameters *h, int32_t layer)
{
    switch (d) {
    case DIM_NONE: return 0;
    case DIM_EMBD: return h->n_embd;
    case DIM_Q: return h->n_heads * h->key_dim;
    case DIM_K: return h->n_kv_heads[layer] * h->key_dim;
    case DIM_V: return h->n_kv_heads[layer] * h->value_dim;
    case DIM_ATTENTION: return h->n_heads * h->value_dim;
    case DIM_FF: return h->n_ff[layer];
    }
    return 0;
}

static int has_norm(const architecture *a, presence p)
{
    return p == ALWAYS || (p == WITH_QK_NORM && a->qk_norm) ||
           (p == WITH_POST_NORMS && a->post_norms);
}

/* Fused attention is told by the tensor's being there; the fused feed-forward is not (its name is
 * that of the plain one), so there the family decides. */
static int is_fused(const hyperparameters *h, const gguf *g, int32_t layer, matrix_slot slot)
{
    if (slot == MATRIX_GATE || slot == MATRIX_UP)
        return h->architecture->gate_up_fused;
    if (matrix_rows[slot].fused == NULL)
        return 0;
    char name[64];
    snprintf(name, sizeof name, "blk.%d.%s.weight", (int)layer, matrix_rows[slot].fused);
    return gguf_find_tensor(g, name) != NULL;
}

static weight_piece piece_of(const hyperparameters *h, const gguf *g, int32_t layer,
                             matrix_slot slot, const char *kind)
{
    const matrix_row *row = &matrix_rows[slot];
    int fused = is_fused(h, g, layer, slot);
    weight_piece piece = {.n_rows = length_of(row->rows, h, layer),
                          .n_cols = length_of(row->cols, h, layer)};
    snprintf(piece.name, sizeof piece.name, "blk.%d.%s.%s", (int)layer,
             fused ? row->fused : row->name, kind);
    piece.n_stored = piece.n_rows;
    if (!fused)
        return piece;
    piece.first = length_of(row->before[0], h, layer) + length_of(row->before[1], h, layer);
    piece.n_stored = 0;
    for (int i = 0; i < 3; i++)
        piece.n_stored += length_of(row->together[i], h, layer);
    return piece;
}

weight_piece weights_piece(const hyperparameters *h, const gguf *g, int32_t layer, matrix_slot slot)
{
    return piece_of(h, g, layer, slot, "weight");
}

/* ---- checking and opening one tensor --------------------------------------------------------- */

static realm_status wrong_shape(const gguf_tensor *t, const char *name, int32_t n_cols,
                                int32_t n_rows, realm_error *error)
{
    char rows[24] = "";
    if (n_rows > 0)
        snprintf(rows, sizeof rows, ", %" PRId32, n_rows);
    return realm_fail(error, REALM_CORRUPT,
                      "tensor '%s' has shape [%" PRIu64 ", %" PRIu64 ", %" PRIu64 ", %" PRIu64
                      "], expected [%" PRId32 "%s]",
                      name, t->dims[0], t->dims[1], t->dims[2], t->dims[3], n_cols, rows);
}

/* pair: what the source says of one. */
static realm_status open_piece(backend *b, weight **out, const gguf *g, const weight_piece *piece,
                               weight_cache *cache, weight_source pair, realm_error *error)
{
    const gguf_tensor *t = gguf_find_tensor(g, piece->name);
    if (t == NULL)
        return realm_fail(error, REALM_CORRUPT, "tensor '%s' is missing", piece->name);
    if (t->dims[0] != (uint64_t)piece->n_cols || t->dims[1] != (uint64_t)piece->n_stored ||
        t->dims[2] != 1 || t->dims[3] != 1)
        return wrong_shape(t, piece->name, piece->n_cols, piece->n_stored, error);
    size_t row_bytes = dtype_row_bytes(t->type, (uint64_t)piece->n_cols);
    if (row_bytes == 0)
        return realm_fail(error, REALM_CORRUPT,
                          "tensor '%s': a row of %" PRId32 " is no multiple of the block of %s",
                          piece->name, piece->n_cols, dtype_name(t->type));
    weight_source source = {.type = t->type,
                            .n_rows = piece->n_rows,
                            .n_cols = piece->n_cols,
                            .data = t->data + (size_t)piece->first * row_bytes,
                            .name = piece->name,
                            .first_row = piece->first,
                            .cache = cache,
                            .begins_pair = pair.begins_pair,
                            .first = pair.first,
                            .from_file = gguf_shard_descriptor(g, t->shard) >= 0};
    return b->table->weight_open(b, out, &source, error);
}

realm_status weights_open_piece(backend *b, weight **out, const gguf *g, const weight_piece *piece,
                                weight_cache *cache, realm_error *error)
{
    return open_piece(b, out, g, piece, cache, (weight_source){0}, error);
}

/* A gain or bias: elements first .. first + n of a vector of n_stored. */
static realm_status open_vector(backend *b, weight **out, const gguf *g, const char *name,
                                int32_t first, int32_t n, int32_t n_stored, realm_error *error)
{
    const gguf_tensor *t = gguf_find_tensor(g, name);
    if (t == NULL)
        return realm_fail(error, REALM_CORRUPT, "tensor '%s' is missing", name);
    if (t->dims[0] != (uint64_t)n_stored || t->dims[1] != 1 || t->dims[2] != 1 || t->dims[3] != 1)
        return wrong_shape(t, name, n_stored, 0, error);
    if (t->type != DTYPE_F32)
        return realm_fail(error, REALM_CORRUPT, "tensor '%s' is of type %s, expected F32", name,
                          dtype_name(t->type));
    weight_source source = {.type = t->type,
                            .n_rows = 1,
                            .n_cols = n,
                            .data = t->data + (size_t)first * sizeof(float),
                            .name = name};
    return b->table->weight_open(b, out, &source, error);
}

/* ---- all of them ------------------------------------------------------------------------------ */

typedef struct loading {
    weights *w;
    const hyperparameters *h;
    const gguf *g;
    weight_cache *cache;
    const weights_progress *progress;
    uint64_t done_bytes, total_bytes;
    realm_error *error;
} loading;

/* Registers an opened weight, so that it is found by name and closed at the end. */
static realm_status keep(loading *l, weight *opened, const char *name)
{
    weights *w = l->w;
    w->all[w->count++] = opened;
    l->done_bytes += dtype_row_bytes(opened->type, (uint64_t)opened->n_cols) *
                     (uint64_t)opened->n_rows;
    if (l->progress->call != NULL && l->total_bytes > 0)
        l->progress->call(l->progress->context, (double)l->done_bytes / (double)l->total_bytes);
    if (map_put(&w->by_name, name, strlen(name), opened, NULL) != REALM_OK)
        return realm_fail_memory(l->error, strlen(name), "the table of tensors");
    return REALM_OK;
}

static realm_status load_matrix(loading *l, weight **out, const weight_piece *piece,
                                weight_source pair, const char *name)
{
    realm_status status = open_piece(l->w->backend, out, l->g, piece, l->cache, pair, l->error);
    return status == REALM_OK ? keep(l, *out, name) : status;
}

static realm_status load_vector(loading *l, weight **out, const char *name, int32_t n)
{
    realm_status status = open_vector(l->w->backend, out, l->g, name, 0, n, n, l->error);
    return status == REALM_OK ? keep(l, *out, name) : status;
}

static realm_status load_vector_if_present(loading *l, weight **out, const char *name, int32_t n)
{
    return gguf_find_tensor(l->g, name) == NULL ? REALM_OK : load_vector(l, out, name, n);
}

/* The bias of a fused matrix is fused too, or each part has its own. */
static realm_status load_bias(loading *l, int32_t layer, matrix_slot slot, weight **out)
{
    const architecture *a = l->h->architecture;
    char name[64];
    snprintf(name, sizeof name, "blk.%d.%s.bias", (int)layer, matrix_rows[slot].name);
    weight_piece piece = piece_of(l->h, l->g, layer, slot, "bias");
    if (gguf_find_tensor(l->g, piece.name) == NULL) {
        if (a->qkv_bias && slot <= MATRIX_V)
            return load_vector(l, out, name, piece.n_rows);
        return load_vector_if_present(l, out, name, piece.n_rows);
    }
    realm_status status = open_vector(l->w->backend, out, l->g, piece.name, piece.first,
                                      piece.n_rows, piece.n_stored, l->error);
    return status == REALM_OK ? keep(l, *out, name) : status;
}

static realm_status load_norm(loading *l, int32_t layer, norm_slot slot, layer_weights *to)
{
    const norm_row *row = &norm_rows[slot];
    const architecture *a = l->h->architecture;
    if (!has_norm(a, row->presence))
        return REALM_OK;
    char name[64];
    int32_t n = row->of_head ? l->h->key_dim : l->h->n_embd;
    snprintf(name, sizeof name, "blk.%d.%s.weight", (int)layer, row->name);
    realm_status status = load_vector(l, &to->norm[slot], name, n);
    if (status != REALM_OK || !a->norm_bias)
        return status;
    snprintf(name, sizeof name, "blk.%d.%s.bias", (int)layer, row->name);
    return load_vector(l, &to->norm_bias[slot], name, n);
}

/* Gate and up, of one type and without biases, are a pair. */
static int has_pair(const loading *l, int32_t layer)
{
    static const matrix_slot slots[] = {MATRIX_GATE, MATRIX_UP};
    uint32_t types[2] = {0, 0};
    for (int i = 0; i < 2; i++) {
        weight_piece bias = piece_of(l->h, l->g, layer, slots[i], "bias");
        const gguf_tensor *t = gguf_find_tensor(l->g,
                                                weights_piece(l->h, l->g, layer, slots[i]).name);
        char name[64];
        snprintf(name, sizeof name, "blk.%d.%s.bias", (int)layer, matrix_rows[slots[i]].name);
        if (t == NULL || gguf_find_tensor(l->g, bias.name) != NULL ||
            gguf_find_tensor(l->g, name) != NULL)
            return 0;
        types[i] = t->type;
    }
    return types[0] == types[1];
}

static realm_status load_layer(loading *l, int32_t layer)
{
    int pair = has_pair(l, layer);
    layer_weights *to = &l->w->layers[layer];
    realm_status status = REALM_OK;
    for (int i = 0; i < NORM_COUNT && status == REALM_OK; i++)
        status = load_norm(l, layer, (norm_slot)i, to);
    for (int i = 0; i < MATRIX_COUNT && status == REALM_OK; i++) {
        matrix_slot slot = (matrix_slot)i;
        char name[64];
        snprintf(name, sizeof name, "blk.%d.%s.weight", (int)layer, matrix_rows[i].name);
        weight_piece piece = weights_piece(l->h, l->g, layer, slot);
        weight_source of = {.begins_pair = pair && slot == MATRIX_GATE,
                            .first = pair && slot == MATRIX_UP ? to->matrix[MATRIX_GATE] : NULL};
        status = load_matrix(l, &to->matrix[i], &piece, of, name);
        if (status == REALM_OK)
            status = load_bias(l, layer, slot, &to->bias[i]);
    }
    return status;
}

static realm_status load_ends(loading *l)
{
    weights *w = l->w;
    int32_t n_embd = l->h->n_embd, n_vocab = l->h->n_vocab;
    weight_piece embd = {
        .name = "token_embd.weight", .n_rows = n_vocab, .n_stored = n_vocab, .n_cols = n_embd};
    weight_piece output = embd;
    snprintf(output.name, sizeof output.name, "output.weight");
    realm_status status = load_matrix(l, &w->token_embd, &embd, (weight_source){0}, embd.name);
    if (status == REALM_OK)
        status = load_vector(l, &w->output_norm, "output_norm.weight", n_embd);
    if (status == REALM_OK && l->h->architecture->norm_bias)
        status = load_vector(l, &w->output_norm_bias, "output_norm.bias", n_embd);
    if (status == REALM_OK)
        status = load_vector_if_present(l, &w->output_bias, "output.bias", n_vocab);
    w->output = w->token_embd;
    if (status == REALM_OK && gguf_find_tensor(l->g, output.name) != NULL)
        status = load_matrix(l, &w->output, &output, (weight_source){0}, output.name);
    return status;
}

realm_status weights_open(weights *w, arena *a, backend *b, const hyperparameters *h, const gguf *g,
                          weight_cache *cache, const weights_progress *progress, realm_error *error)
{
    *w = (weights){.backend = b};
    map_init(&w->by_name);
    size_t n_layers = (size_t)h->n_layers;
    size_t most = n_layers * 2 * (MATRIX_COUNT + NORM_COUNT) + 5; /* 5: the ends of the network */
    w->layers = arena_take_array(a, n_layers, sizeof *w->layers);
    w->all = arena_take_array(a, most, sizeof *w->all);
    if (w->layers == NULL || w->all == NULL)
        return realm_fail_memory(error, n_layers * sizeof *w->layers, "the table of layers");
    loading l = {.w = w, .h = h, .g = g, .cache = cache, .progress = progress, .error = error};
    for (size_t i = 0; i < gguf_tensor_count(g); i++)
        l.total_bytes += gguf_tensor_at(g, i)->size;
    realm_status status = load_ends(&l);
    for (int32_t i = 0; i < h->n_layers && status == REALM_OK; i++)
        status = load_layer(&l, i);
    if (status == REALM_OK && progress->call != NULL)
        progress->call(progress->context, 1);
    return status;
}

void weights_release(weights *w)
{
    for (int32_t i = 0; i < w->count; i++)
        w->backend->table->weight_close(w->backend, w->all[i]);
    w->count = 0;
    map_release(&w->by_name);
}
