/* engine/compute.c: see compute.h. The sandbox checked shapes and handles when it recorded the
 * list; what depends on the session (pages, positions, layers) and what a mistake there would let
 * a guest read is checked here. */
#include "engine/compute.h"

#include "engine/engine_internal.h"

typedef struct runner {
    engine *e;
    session *s; /* may be NULL */
    realm_error *error;
    backend *backend;
    const backend_table *table;
    const hyperparameters *h;
    int begun;
    const int32_t *pages;
    step_rows rows; /* of the step begun */
} runner;

typedef realm_status (*op_function)(runner *r, const compute_op *op);

/* A step must have run before the host reads, or memory goes away. */
static void finish_step(runner *r)
{
    if (r->begun)
        r->table->end(r->backend);
    r->begun = 0;
}

static void begin_step(runner *r)
{
    if (!r->begun)
        r->table->begin(r->backend, &r->rows);
    r->begun = 1;
}

/* Steps differ in the rows that attention is over; the other operations do not look at them. */
static void begin_rows(runner *r, int32_t first, int32_t count)
{
    batch *b = &r->e->batch;
    finish_step(r);
    for (int32_t i = 0; i < count; i++) {
        b->positions[i] = first + i;
        b->sequences[i] = 0;
    }
    r->pages = r->s->item.table.pages;
    r->rows = (step_rows){count, b->positions, b->sequences, 1, &r->pages};
    begin_step(r);
}

static realm_status run_new(runner *r, const compute_op *op)
{
    return r->table->tensor_open(r->backend, &op->out->device, op->out->n_rows, op->out->n_cols,
                                 r->error);
}

static realm_status run_free(runner *r, const compute_op *op)
{
    finish_step(r);
    if (op->out->device.data)
        r->table->tensor_close(r->backend, &op->out->device);
    op->out->device.data = NULL;
    return REALM_OK;
}

/* count elements from first on, seen as one row each. */
static realm_status view_elements(runner *r, const compute_tensor *t, int32_t first, int32_t count,
                                  tensor *out)
{
    if (first < 0 || count < 0 || count > (int64_t)t->n_rows * t->n_cols - first)
        return realm_fail(r->error, REALM_INVALID,
                          "%" PRId32 " elements from %" PRId32 " on are not in the tensor", count,
                          first);
    *out = (tensor){t->device.data + first, 1, count};
    return REALM_OK;
}

static realm_status run_write(runner *r, const compute_op *op)
{
    tensor view;
    realm_status status = view_elements(r, op->out, op->first, op->count, &view);
    finish_step(r);
    if (status == REALM_OK && op->count > 0)
        r->table->write(r->backend, view, op->host);
    return status;
}

static realm_status run_read(runner *r, const compute_op *op)
{
    tensor view;
    const compute_tensor *from = op->x ? op->x : op->out;
    realm_status status = view_elements(r, from, op->first, op->count, &view);
    finish_step(r);
    if (status == REALM_OK && op->count > 0)
        r->table->read(r->backend, op->host, view);
    return status;
}

static realm_status run_embed(runner *r, const compute_op *op)
{
    const weight *w = op->gain ? op->gain : model_weight(r->e->device.model, "token_embd.weight");
    for (int32_t i = 0; i < op->count; i++)
        if (op->ids[i] < 0 || op->ids[i] >= w->n_rows)
            return realm_fail(r->error, REALM_INVALID, "token %" PRId32 " is not in the vocabulary",
                              op->ids[i]);
    begin_step(r);
    r->table->embed(r->backend, op->out->device, w, op->ids,
                    op->number != 0 ? op->number : r->h->embedding_scale);
    return REALM_OK;
}

static realm_status run_matmul(runner *r, const compute_op *op)
{
    begin_step(r);
    r->table->matmul(r->backend, &op->out->device, op->x->device, &op->gain,
                     op->bias ? &op->bias : NULL, 1);
    return REALM_OK;
}

static realm_status run_norm(runner *r, const compute_op *op)
{
    int32_t n_cols = op->gain ? op->gain->n_cols : op->x->n_cols; /* a head's, or the whole row's */
    begin_step(r);
    r->table->norm(
        r->backend, tensor_reshape(op->out->device, n_cols), tensor_reshape(op->x->device, n_cols),
        op->kind == COMPUTE_RMS_NORM ? NORM_RMS : NORM_LAYER, op->gain, op->bias, op->number);
    return REALM_OK;
}

static realm_status check_layer(runner *r, int32_t layer)
{
    if (layer >= 0 && layer < r->h->n_layers)
        return REALM_OK;
    return realm_fail(r->error, REALM_INVALID, "layer %" PRId32 " of %" PRId32, layer,
                      r->h->n_layers);
}

static compute_tensor *rope_target(const compute_op *op)
{
    return op->x ? op->x : op->out;
}

static realm_status run_rope(runner *r, const compute_op *op)
{
    realm_status status = check_layer(r, op->layer);
    if (status != REALM_OK)
        return status;
    begin_step(r);
    r->table->apply_rope(r->backend, rope_target(op)->device, r->h->key_dim,
                         model_rope(r->e->device.model, op->layer), op->ids);
    return REALM_OK;
}

static realm_status run_gated(runner *r, const compute_op *op)
{
    begin_step(r);
    r->table->gated(r->backend, op->out->device, op->x->device, op->y->device, op->activation);
    return REALM_OK;
}

static realm_status run_add(runner *r, const compute_op *op)
{
    begin_step(r);
    r->table->add(r->backend, op->out->device, op->x->device, op->y->device,
                  op->number != 0 ? op->number : 1);
    return REALM_OK;
}

static realm_status run_soft_cap(runner *r, const compute_op *op)
{
    begin_step(r);
    r->table->soft_cap(r->backend, (op->x ? op->x : op->out)->device, op->number);
    return REALM_OK;
}

/* ---- keys and values --------------------------------------------------------------------------- */

static realm_status check_attention(runner *r, const compute_op *op)
{
    const hyperparameters *h = r->h;
    int32_t rows = op->x->n_rows;
    realm_status status = check_layer(r, op->layer);
    if (status != REALM_OK)
        return status;
    if (!r->s)
        return realm_fail(r->error, REALM_INVALID, "attention needs a session");
    int32_t n_kv = h->n_kv_heads[op->layer];
    if (op->x->n_cols != h->n_heads * h->key_dim || op->y->n_cols != n_kv * h->key_dim ||
        op->z->n_cols != n_kv * h->value_dim || op->out->n_cols != h->n_heads * h->value_dim)
        return realm_fail(r->error, REALM_INVALID,
                          "queries, keys, values and result do not have "
                          "the model's heads");
    if (op->y->n_rows != rows || op->z->n_rows != rows || op->out->n_rows != rows)
        return realm_fail(r->error, REALM_INVALID,
                          "queries, keys, values and result differ in rows");
    if (rows > r->e->batch.capacity)
        return realm_fail(r->error, REALM_TOO_LARGE,
                          "%" PRId32 " rows, at most %" PRId32 " at once", rows,
                          r->e->batch.capacity);
    if (op->position < 0 || op->position > r->s->n_context - rows)
        return realm_fail(r->error, REALM_CONTEXT_FULL,
                          "rows %" PRId32 " to %" PRId32 " pass the context of %" PRId32,
                          op->position, op->position + rows, r->s->n_context);
    return REALM_OK;
}

/* Layer 0 begins a walk where it likes; every other layer goes on with it, in order. */
static realm_status walk_on(runner *r, const compute_op *op)
{
    session *s = r->s;
    layer_walk *walk = &s->walk;
    if (op->layer == 0) {
        if (op->position > s->length)
            return realm_fail(r->error, REALM_INVALID,
                              "position %" PRId32 " is past the %" PRId32 " tokens there are",
                              op->position, s->length);
        if (op->position < s->length) {
            s->length = op->position;
            s->has_logits = 0;
        }
        scheduler_truncate(r->e->scheduler, &s->item, s->length);
        *walk = (layer_walk){.first = op->position, .count = op->x->n_rows};
        return REALM_OK;
    }
    if (walk->n_layers == 0 || walk->first != op->position || walk->count != op->x->n_rows ||
        op->layer > walk->n_layers)
        return realm_fail(r->error, REALM_INVALID,
                          "layer %" PRId32 " at position %" PRId32
                          " does not follow: layers must be walked from 0 in order",
                          op->layer, op->position);
    return REALM_OK;
}

static realm_status make_pages(runner *r, int32_t first, int32_t count)
{
    engine *e = r->e;
    e->copies.count = 0;
    finish_step(r);
    realm_status status = scheduler_reserve(e->scheduler, &r->s->item, first, count, &e->copies,
                                            r->error);
    engine_make_copies(e, &e->copies);
    return status;
}

/* Every layer has the rows: they are part of the sequence, as tokens nobody knows. */
static realm_status end_walk(runner *r)
{
    session *s = r->s;
    token_id unknown = -1;
    int32_t count = s->walk.count;
    s->walk = (layer_walk){0};
    realm_status status = session_reserve(s, s->length + count, r->error);
    if (status != REALM_OK)
        return status;
    for (int32_t i = 0; i < count; i++)
        session_append(s, &unknown, 1);
    s->mark = s->length;
    s->mark_logits = 0;
    scheduler_written(r->e->scheduler, &s->item, s->length);
    return REALM_OK;
}

static realm_status run_attention(runner *r, const compute_op *op)
{
    const hyperparameters *h = r->h;
    session *s = r->s;
    realm_status status = check_attention(r, op);
    if (status == REALM_OK)
        status = walk_on(r, op);
    int is_new = status == REALM_OK &&
                 (!r->begun || r->rows.n_tokens != op->x->n_rows || op->layer == 0 ||
                  r->rows.positions[0] != op->position || !s->item.reserved);
    if (is_new)
        status = make_pages(r, op->position, op->x->n_rows);
    if (status != REALM_OK)
        return status;
    if (is_new)
        begin_rows(r, op->position, op->x->n_rows);
    attention_options options = {op->layer, h->n_heads, h->attention_scale, h->attention_soft_cap,
                                 h->window[op->layer]};
    r->table->kv_write(r->backend, r->e->device.kv, op->layer, op->y->device, op->z->device);
    r->table->attention(r->backend, op->out->device, op->x->device, r->e->device.kv, &options);
    if (op->layer == s->walk.n_layers)
        s->walk.n_layers++;
    return s->walk.n_layers == h->n_layers ? end_walk(r) : REALM_OK;
}

static realm_status run_kv_read(runner *r, const compute_op *op)
{
    realm_status status = check_layer(r, op->layer);
    if (status != REALM_OK)
        return status;
    if (!r->s)
        return realm_fail(r->error, REALM_INVALID, "keys and values need a session");
    const layer_walk *walk = &r->s->walk;
    int32_t length = r->s->item.computed;
    if (op->layer < walk->n_layers)
        length = walk->first + walk->count;
    if (op->first < 0 || op->count < 0 || op->count > length - op->first)
        return realm_fail(r->error, REALM_INVALID,
                          "%" PRId32 " tokens from %" PRId32 " on are not among the %" PRId32
                          " there are",
                          op->count, op->first, length);
    finish_step(r);
    if (op->count > 0)
        r->table->kv_read(r->backend, r->e->device.kv, op->layer, op->values,
                          r->s->item.table.pages, op->first, op->count, op->host);
    return REALM_OK;
}

static op_function function_of(compute_kind kind)
{
    static const op_function functions[] = {
        [COMPUTE_NEW] = run_new,         [COMPUTE_FREE] = run_free,
        [COMPUTE_WRITE] = run_write,     [COMPUTE_READ] = run_read,
        [COMPUTE_EMBED] = run_embed,     [COMPUTE_MATMUL] = run_matmul,
        [COMPUTE_RMS_NORM] = run_norm,   [COMPUTE_LAYER_NORM] = run_norm,
        [COMPUTE_ROPE] = run_rope,       [COMPUTE_ATTENTION] = run_attention,
        [COMPUTE_KV_READ] = run_kv_read, [COMPUTE_GATED] = run_gated,
        [COMPUTE_ADD] = run_add,         [COMPUTE_SOFT_CAP] = run_soft_cap,
    };
    return (size_t)kind < sizeof functions / sizeof *functions ? functions[kind] : NULL;
}

/* NEW failed earlier, or FREE came before: the sandbox's mistake, but not the device's crash. */
static int has_memory(const compute_op *op)
{
    const compute_tensor *tensors[] = {op->out, op->x, op->y, op->z};
    for (int i = 0; i < 4; i++)
        if (tensors[i] && !tensors[i]->device.data)
            return 0;
    return 1;
}

static realm_status run_op(runner *r, const compute_op *op)
{
    op_function function = function_of(op->kind);
    if (!function)
        return realm_fail(r->error, REALM_INVALID, "operation %d is not known", (int)op->kind);
    if (op->kind != COMPUTE_NEW && op->kind != COMPUTE_FREE && !has_memory(op))
        return realm_fail(r->error, REALM_INVALID, "a tensor has no memory");
    return function(r, op);
}

realm_status compute_run(engine *e, session *s, work *w)
{
    if (!e->device.model)
        return realm_fail(&w->error, REALM_UNSUPPORTED, "this device has no tensors");
    if (!w->list)
        return realm_fail(&w->error, REALM_INVALID, "a list of operations is missing");
    runner r = {.e = e, .s = s, .error = &w->error, .h = model_hyperparameters(e->device.model)};
    r.backend = model_backend(e->device.model);
    r.table = r.backend->table;
    realm_status status = REALM_OK;
    for (int32_t i = 0; status == REALM_OK && i < w->list->count; i++) {
        status = run_op(&r, &w->list->ops[i]);
        if (status != REALM_OK)
            status = realm_fail_in(&w->error, status, "operation %" PRId32, i);
    }
    finish_step(&r);
    return status;
}
