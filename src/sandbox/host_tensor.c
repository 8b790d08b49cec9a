/* sandbox/host_tensor.c: a guest that walks the network layer by layer.
 *
 * Each operation is checked here (handles, shapes, ids, quota) and recorded (tensor_list.h), so that
 * what the engine gets is right but for what only it can know: device memory, pages, the order of
 * layers. Nothing before tensor_list_make_room, or record which calls it, may have an effect: the
 * function may be called again from its beginning. */
#include <stdlib.h>
#include <string.h>

#include "sandbox/guest_memory.h"
#include "sandbox/host_groups.h"
#include "sandbox/tensor_list.h"

/* What a weight or layer handle stands for; kept by name, so that asking again gives the same. */
typedef struct part_entry {
    engine *engine;
    const weight *weight; /* of a weight */
    int32_t layer;        /* of a layer */
    int32_t handle;
} part_entry;

static engine *default_engine(const sandbox_request *r)
{
    const tenant_grants *g = &r->tenant->grants;
    return g->n_models > 0 ? g->models[0].engine : NULL;
}

/* The engine for an operation that only has tensors: theirs, or the default. */
static engine *engine_of(guest_call *c, tensor_entry *const *tensors, int count)
{
    for (int i = 0; i < count; i++)
        if (tensors[i] && tensors[i]->engine)
            return tensors[i]->engine;
    engine *e = default_engine(c->request);
    if (!e)
        guest_trap(c, REALM_NOT_FOUND, "the tenant has no model");
    return e;
}

static tensor_entry *tensor_at(guest_call *c, int argument)
{
    return guest_handle(c, argument, HANDLE_TENSOR);
}

static int same_rows(guest_call *c, const tensor_entry *a, const tensor_entry *b)
{
    if (a->tensor.n_rows == b->tensor.n_rows)
        return 1;
    guest_trap(c, REALM_INVALID, "%d rows do not go with %d rows", a->tensor.n_rows,
               b->tensor.n_rows);
    return 0;
}

static int has_cols(guest_call *c, const char *name, const tensor_entry *a, int64_t cols)
{
    if (a->tensor.n_cols == cols)
        return 1;
    guest_trap(c, REALM_INVALID, "tensor '%s' has %d columns; %" PRId64 " are needed", name,
               a->tensor.n_cols, cols);
    return 0;
}

static int same_shape(guest_call *c, const tensor_entry *a, const tensor_entry *b)
{
    return same_rows(c, a, b) && has_cols(c, "out", a, b->tensor.n_cols);
}

/* ---- layers and weights --------------------------------------------------------------------------------- */

static part_entry *find_part(guest_call *c, const char *key, size_t size)
{
    return map_get(&c->request->tensors.parts, key, size);
}

/* Remembers a part under key and gives it a handle. */
static int64_t add_part(guest_call *c, const char *key, size_t size, handle_kind kind,
                        const part_entry *part)
{
    part_entry *p = malloc(sizeof *p);
    if (!p)
        return REALM_NO_MEMORY;
    *p = *part;
    if (map_put(&c->request->tensors.parts, key, size, p, NULL) != REALM_OK) {
        free(p);
        return REALM_NO_MEMORY;
    }
    int64_t handle = guest_new_handle(c, kind, p);
    p->handle = (int32_t)handle;
    return handle;
}

#define KEY_SIZE 192

/* A part's key: which engine, and its full name. */
static size_t part_key(char *key, const engine *e, const char *name)
{
    int n = snprintf(key, KEY_SIZE, "%p %s", (const void *)e, name);
    return n < 0 ? 0 : n < KEY_SIZE ? (size_t)n : KEY_SIZE - 1;
}

int64_t host_tensor_load_layer(guest_call *c)
{
    const sandbox_model *m = guest_handle(c, 0, HANDLE_MODEL);
    if (!m)
        return GUEST_TRAPPED;
    int32_t layer = c->arguments[1].i32;
    if (layer < 0 || layer >= model_hyperparameters(engine_model(m->engine))->n_layers)
        return REALM_NOT_FOUND;
    char name[32], key[KEY_SIZE];
    snprintf(name, sizeof name, "layer %" PRId32, layer);
    size_t size = part_key(key, m->engine, name);
    part_entry *known = find_part(c, key, size);
    if (known)
        return known->handle;
    return add_part(c, key, size, HANDLE_LAYER, &(part_entry){.engine = m->engine, .layer = layer});
}

/* The full name of a weight of the owner in argument 0. 0 after a trap. */
static int weight_name(guest_call *c, const char *name, char *full, size_t room, engine **e)
{
    handle_kind kind;
    uint64_t size = c->arguments[2].u64;
    int length = size < room ? (int)size : (int)room;
    const part_entry *layer = handles_find(&c->request->handles, c->arguments[0].i32, HANDLE_LAYER,
                                           &kind);
    if (layer) {
        *e = layer->engine;
        snprintf(full, room, "blk.%" PRId32 ".%.*s", layer->layer, length, name);
        return 1;
    }
    const sandbox_model *m = guest_handle(c, 0, HANDLE_MODEL);
    if (!m)
        return 0;
    *e = m->engine;
    snprintf(full, room, "%.*s", length, name);
    return 1;
}

int64_t host_tensor_weight(guest_call *c)
{
    const char *name = guest_bytes(c, 1, 2);
    char full[128], key[KEY_SIZE];
    engine *e;
    if (!name || !weight_name(c, name, full, sizeof full, &e))
        return GUEST_TRAPPED;
    size_t size = part_key(key, e, full);
    part_entry *known = find_part(c, key, size);
    if (known)
        return known->handle;
    const weight *w = model_weight(engine_model(e), full);
    if (!w)
        return REALM_NOT_FOUND;
    return add_part(c, key, size, HANDLE_WEIGHT, &(part_entry){.engine = e, .weight = w});
}

/* ---- tensors --------------------------------------------------------------------------------------------- */

static uint64_t tensor_size(const tensor_entry *x)
{
    return (uint64_t)x->tensor.n_rows * (uint64_t)x->tensor.n_cols * sizeof(float);
}

int64_t host_tensor_new(guest_call *c)
{
    tensor_state *t = &c->request->tensors;
    int32_t rows = c->arguments[0].i32, cols = c->arguments[1].i32;
    if (rows <= 0 || cols <= 0)
        return guest_trap(c, REALM_INVALID, "%" PRId32 " rows of %" PRId32 " columns", rows, cols);
    uint64_t limit = c->request->tenant->grants.limits.tensor_bytes;
    uint64_t size = (uint64_t)rows * (uint64_t)cols * sizeof(float);
    if (size > limit || t->used_bytes > limit - size || (uint64_t)rows * (uint64_t)cols > INT32_MAX)
        return REALM_QUOTA;
    tensor_entry *x = calloc(1, sizeof *x);
    if (!x)
        return REALM_NO_MEMORY;
    x->tensor.n_rows = rows;
    x->tensor.n_cols = cols;
    int64_t handle = guest_new_handle(c, HANDLE_TENSOR, x);
    if (handle <= 0) {
        free(x);
        return handle;
    }
    x->next = t->tensors;
    t->tensors = x;
    t->used_bytes += size;
    return handle;
}

int64_t host_tensor_free(guest_call *c)
{
    tensor_state *t = &c->request->tensors;
    tensor_entry *x = tensor_at(c, 0);
    if (!x)
        return GUEST_TRAPPED;
    handles_give(&c->request->handles, c->arguments[0].i32);
    t->used_bytes -= tensor_size(x);
    if (x->engine && (!t->engine || t->engine == x->engine)) {
        compute_op *op = tensor_list_add(c, COMPUTE_FREE);
        if (!op)
            return GUEST_TRAPPED;
        op->out = &x->tensor;
        t->engine = x->engine;
        x->freed = 1;
    } else if (!x->engine) {
        x->freed = 1;
        if (t->n_ops == 0)
            tensor_list_sweep(t);
    } /* else it waits for the end of the request: the list is another engine's */
    return 0;
}

/* first and count of a read or write; 0 after a trap. */
static int check_span(guest_call *c, const tensor_entry *x, int32_t first, uint64_t count)
{
    uint64_t n = (uint64_t)x->tensor.n_rows * (uint64_t)x->tensor.n_cols;
    if (first >= 0 && (uint64_t)first <= n && count <= n - (uint64_t)first)
        return 1;
    guest_trap(c, REALM_INVALID,
               "%" PRIu64 " elements from %" PRId32 " are not all among the tensor's %" PRIu64,
               count, first, n);
    return 0;
}

static int64_t finish_read(guest_call *c)
{
    tensor_state *t = &c->request->tensors;
    float *result = t->result;
    t->result = NULL;
    int64_t count = -1;
    if (tensor_list_went_well(c)) {
        float *out = guest_words(c, 2, 3);
        count = (int64_t)c->arguments[3].u64;
        memcpy(out, result, (size_t)count * sizeof *out);
    }
    free(result);
    return count;
}

int64_t host_tensor_read(guest_call *c)
{
    tensor_state *t = &c->request->tensors;
    tensor_entry *x = tensor_at(c, 0);
    float *out = x ? guest_words(c, 2, 3) : NULL;
    int32_t first = c->arguments[1].i32;
    uint64_t count = c->arguments[3].u64;
    if (!out || !check_span(c, x, first, count))
        return GUEST_TRAPPED;
    if (count == 0)
        return 0;
    engine *e = engine_of(c, &x, 1);
    if (!e || !tensor_list_make_room(c, e, NULL) || !tensor_list_bind(c, x, e))
        return 0;
    float *result = malloc((size_t)count * sizeof *result);
    compute_op *op = result ? tensor_list_add(c, COMPUTE_READ) : NULL;
    if (!op) {
        free(result);
        return REALM_NO_MEMORY;
    }
    t->result = result;
    op->x = &x->tensor;
    op->host = result;
    op->first = first;
    op->count = (int32_t)count;
    tensor_list_submit(c->request);
    return guest_suspend(c, WAIT_OP, &t->op, finish_read);
}

int64_t host_tensor_write(guest_call *c)
{
    tensor_entry *x = tensor_at(c, 0);
    const float *from = x ? guest_words(c, 2, 3) : NULL;
    int32_t first = c->arguments[1].i32;
    uint64_t count = c->arguments[3].u64;
    if (!from || !check_span(c, x, first, count))
        return GUEST_TRAPPED;
    if (count == 0)
        return 0;
    engine *e = engine_of(c, &x, 1);
    if (!e || !tensor_list_make_room(c, e, NULL) || !tensor_list_bind(c, x, e))
        return 0;
    float *copy = tensor_list_copy(c, from, (size_t)count * sizeof *from);
    compute_op *op = copy ? tensor_list_add(c, COMPUTE_WRITE) : NULL;
    if (!op)
        return GUEST_TRAPPED;
    op->out = &x->tensor;
    op->host = copy;
    op->first = first;
    op->count = (int32_t)count;
    return (int64_t)count;
}

/* ---- operations ------------------------------------------------------------------------------------------- */

/* Room for an operation over these tensors (NULLs allowed), each with memory; the operation, with
 * out, x, y and z in that order, or NULL: suspended or trapped. */
static compute_op *record(guest_call *c, compute_kind kind, engine *e, session_entry *s,
                          tensor_entry *const tensors[4])
{
    if (!e || !tensor_list_make_room(c, e, s))
        return NULL;
    for (int i = 0; i < 4; i++)
        if (tensors[i] && !tensor_list_bind(c, tensors[i], e))
            return NULL;
    compute_op *op = tensor_list_add(c, kind);
    if (!op)
        return NULL;
    compute_tensor **slots[4] = {&op->out, &op->x, &op->y, &op->z};
    for (int i = 0; i < 4; i++)
        if (tensors[i])
            *slots[i] = &tensors[i]->tensor;
    return op;
}

static const int32_t *ids_below(guest_call *c, int pointer, int count, int32_t bound,
                                const char *what)
{
    const int32_t *ids = guest_words(c, pointer, count);
    uint64_t n = ids ? c->arguments[count].u64 : 0;
    for (uint64_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= bound) {
            guest_trap(c, REALM_INVALID,
                       "%s %" PRId32 " at %" PRIu64 " is not between 0 and %" PRId32, what, ids[i],
                       i, bound - 1);
            return NULL;
        }
    }
    return ids;
}

static int has_rows(guest_call *c, const tensor_entry *x, uint64_t count)
{
    if ((uint64_t)x->tensor.n_rows == count)
        return 1;
    guest_trap(c, REALM_INVALID, "%" PRIu64 " items for %d rows", count, x->tensor.n_rows);
    return 0;
}

int64_t host_tensor_embed_tokens(guest_call *c)
{
    tensor_entry *out = tensor_at(c, 0);
    const sandbox_model *m = out ? guest_handle(c, 1, HANDLE_MODEL) : NULL;
    if (!m)
        return GUEST_TRAPPED;
    const model *own = engine_model(m->engine);
    const hyperparameters *h = model_hyperparameters(own);
    const int32_t *ids = ids_below(c, 2, 3, h->n_vocab, "token");
    if (!ids || !has_rows(c, out, c->arguments[3].u64) || !has_cols(c, "out", out, h->n_embd))
        return GUEST_TRAPPED;
    compute_op *op = record(c, COMPUTE_EMBED, m->engine, NULL,
                            (tensor_entry *[4]){out, NULL, NULL, NULL});
    if (!op)
        return 0;
    op->gain = model_weight(own, "token_embd.weight");
    op->number = h->embedding_scale;
    op->count = out->tensor.n_rows;
    op->ids = tensor_list_copy(c, ids, (size_t)op->count * sizeof *ids);
    return 0;
}

int64_t host_tensor_matmul(guest_call *c)
{
    tensor_entry *out = tensor_at(c, 0);
    const part_entry *w = out ? guest_handle(c, 1, HANDLE_WEIGHT) : NULL;
    tensor_entry *x = w ? tensor_at(c, 2) : NULL;
    if (!x || !same_rows(c, out, x) || !has_cols(c, "x", x, w->weight->n_cols) ||
        !has_cols(c, "out", out, w->weight->n_rows))
        return GUEST_TRAPPED;
    if (out == x)
        return guest_trap(c, REALM_INVALID, "'out' must not be 'x'");
    compute_op *op = record(c, COMPUTE_MATMUL, w->engine, NULL,
                            (tensor_entry *[4]){out, x, NULL, NULL});
    if (op)
        op->gain = w->weight;
    return 0;
}

/* The weight of a norm: handle 0 is none. One F32 row whose length divides that of x. */
static int norm_weight(guest_call *c, int argument, const tensor_entry *x, const part_entry **out)
{
    *out = NULL;
    if (c->arguments[argument].i32 == 0)
        return 1;
    const part_entry *w = guest_handle(c, argument, HANDLE_WEIGHT);
    if (!w)
        return 0;
    *out = w;
    if (w->weight->n_rows == 1 && w->weight->type == DTYPE_F32 &&
        x->tensor.n_cols % w->weight->n_cols == 0)
        return 1;
    guest_trap(c, REALM_INVALID, "a weight of %d x %d is no norm's for %d columns",
               w->weight->n_rows, w->weight->n_cols, x->tensor.n_cols);
    return 0;
}

static int64_t norm(guest_call *c, compute_kind kind, int bias_argument, int epsilon_argument)
{
    tensor_entry *out = tensor_at(c, 0);
    tensor_entry *x = out ? tensor_at(c, 1) : NULL;
    const part_entry *gain, *bias = NULL;
    if (!x || !same_shape(c, out, x) || !norm_weight(c, 2, x, &gain) ||
        (bias_argument && !norm_weight(c, bias_argument, x, &bias)))
        return GUEST_TRAPPED;
    tensor_entry *tensors[4] = {out, x, NULL, NULL};
    engine *e = gain ? gain->engine : bias ? bias->engine : engine_of(c, tensors, 2);
    if (bias && bias->engine != e)
        return guest_trap(c, REALM_INVALID, "the weights belong to different models");
    compute_op *op = record(c, kind, e, NULL, tensors);
    if (!op)
        return 0;
    op->gain = gain ? gain->weight : NULL;
    op->bias = bias ? bias->weight : NULL;
    op->number = c->arguments[epsilon_argument].f32;
    return 0;
}

int64_t host_tensor_rms_norm(guest_call *c)
{
    return norm(c, COMPUTE_RMS_NORM, 0, 3);
}

int64_t host_tensor_layer_norm(guest_call *c)
{
    return norm(c, COMPUTE_LAYER_NORM, 3, 4);
}

int64_t host_tensor_apply_rope(guest_call *c)
{
    tensor_entry *x = tensor_at(c, 0);
    const sandbox_model *m = x ? guest_handle(c, 1, HANDLE_MODEL) : NULL;
    if (!m)
        return GUEST_TRAPPED;
    const hyperparameters *h = model_hyperparameters(engine_model(m->engine));
    int32_t layer = c->arguments[2].i32;
    const int32_t *positions = ids_below(c, 3, 4, INT32_MAX, "position");
    if (!positions || !has_rows(c, x, c->arguments[4].u64))
        return GUEST_TRAPPED;
    if (layer < 0 || layer >= h->n_layers)
        return guest_trap(c, REALM_INVALID, "argument 'layer': there is no layer %" PRId32, layer);
    if (x->tensor.n_cols % h->key_dim)
        return guest_trap(c, REALM_INVALID, "%d columns are not heads of %d", x->tensor.n_cols,
                          h->key_dim);
    compute_op *op = record(c, COMPUTE_ROPE, m->engine, NULL,
                            (tensor_entry *[4]){x, x, NULL, NULL});
    if (!op)
        return 0;
    op->layer = layer;
    op->count = x->tensor.n_rows;
    op->ids = tensor_list_copy(c, positions, (size_t)op->count * sizeof *positions);
    return 0;
}

static int attention_shapes(guest_call *c, const hyperparameters *h, int32_t layer,
                            const tensor_entry *q, const tensor_entry *k, const tensor_entry *v,
                            const tensor_entry *out)
{
    int64_t n_kv = h->n_kv_heads[layer];
    return same_rows(c, q, k) && same_rows(c, q, v) && same_rows(c, q, out) &&
           has_cols(c, "q", q, (int64_t)h->n_heads * h->key_dim) &&
           has_cols(c, "k", k, n_kv * h->key_dim) && has_cols(c, "v", v, n_kv * h->value_dim) &&
           has_cols(c, "out", out, (int64_t)h->n_heads * h->value_dim);
}

int64_t host_tensor_attention(guest_call *c)
{
    session_entry *s = guest_handle(c, 0, HANDLE_SESSION);
    tensor_entry *q = s ? tensor_at(c, 3) : NULL;
    tensor_entry *k = q ? tensor_at(c, 4) : NULL;
    tensor_entry *v = k ? tensor_at(c, 5) : NULL;
    tensor_entry *out = v ? tensor_at(c, 6) : NULL;
    if (!out)
        return GUEST_TRAPPED;
    const hyperparameters *h = model_hyperparameters(engine_model(s->engine));
    int32_t layer = c->arguments[1].i32, position = c->arguments[2].i32;
    if (layer < 0 || layer >= h->n_layers)
        return guest_trap(c, REALM_INVALID, "argument 'layer': there is no layer %" PRId32, layer);
    if (position < 0 || position > h->n_context - q->tensor.n_rows)
        return position < 0
                   ? guest_trap(c, REALM_INVALID, "argument 'position': %" PRId32, position)
                   : REALM_CONTEXT_FULL;
    if (!attention_shapes(c, h, layer, q, k, v, out))
        return GUEST_TRAPPED;
    compute_op *op = record(c, COMPUTE_ATTENTION, s->engine, s, (tensor_entry *[4]){out, q, k, v});
    if (!op)
        return 0;
    op->layer = layer;
    op->position = position;
    op->count = q->tensor.n_rows;
    return 0;
}

static int64_t finish_kv(guest_call *c)
{
    tensor_state *t = &c->request->tensors;
    float *result = t->result;
    t->result = NULL;
    int64_t whole = t->kv_whole;
    if (tensor_list_went_well(c)) {
        float *out = guest_words(c, 5, 6);
        uint64_t cap = c->arguments[6].u64;
        memcpy(out, result, ((uint64_t)whole < cap ? (uint64_t)whole : cap) * sizeof *out);
    }
    free(result);
    return whole;
}

int64_t host_tensor_kv_cache_get(guest_call *c)
{
    tensor_state *t = &c->request->tensors;
    session_entry *s = guest_handle(c, 0, HANDLE_SESSION);
    float *out = s ? guest_words(c, 5, 6) : NULL;
    if (!out)
        return GUEST_TRAPPED;
    if (tensor_list_flush_first(c, s))
        return 0;
    const hyperparameters *h = model_hyperparameters(engine_model(s->engine));
    int32_t layer = c->arguments[1].i32, values = c->arguments[2].i32;
    int32_t first = c->arguments[3].i32, count = c->arguments[4].i32;
    int32_t length = session_length(s->session);
    if (layer < 0 || layer >= h->n_layers || (values != 0 && values != 1))
        return guest_trap(c, REALM_INVALID, "layer %" PRId32 ", values %" PRId32, layer, values);
    if (first < 0 || count < 0 || first > length || count > length - first)
        return REALM_INVALID;
    int64_t per_token = (int64_t)h->n_kv_heads[layer] * (values ? h->value_dim : h->key_dim);
    int64_t whole = per_token * count;
    uint64_t wanted = (c->arguments[6].u64 + (uint64_t)per_token - 1) / (uint64_t)per_token;
    int32_t tokens = wanted < (uint64_t)count ? (int32_t)wanted : count;
    if (whole > INT32_MAX || tokens == 0)
        return whole > INT32_MAX ? REALM_TOO_LARGE : whole;
    compute_op *op = record(c, COMPUTE_KV_READ, s->engine, s,
                            (tensor_entry *[4]){NULL, NULL, NULL, NULL});
    if (!op)
        return 0;
    t->result = malloc((size_t)(per_token * tokens) * sizeof(float));
    if (!t->result) {
        t->n_ops--;
        return REALM_NO_MEMORY;
    }
    t->kv_whole = whole;
    op->layer = layer;
    op->values = values;
    op->first = first;
    op->count = tokens;
    op->host = t->result;
    tensor_list_submit(c->request);
    return guest_suspend(c, WAIT_OP, &t->op, finish_kv);
}

/* out = f(x, y), all of one shape. */
static compute_op *elementwise(guest_call *c, compute_kind kind)
{
    tensor_entry *out = tensor_at(c, 0);
    tensor_entry *x = out ? tensor_at(c, 1) : NULL;
    tensor_entry *y = x ? tensor_at(c, 2) : NULL;
    if (!y || !same_shape(c, out, x) || !same_shape(c, x, y))
        return NULL;
    tensor_entry *tensors[4] = {out, x, y, NULL};
    return record(c, kind, engine_of(c, tensors, 3), NULL, tensors);
}

static int64_t gated(guest_call *c, activation_kind activation)
{
    compute_op *op = elementwise(c, COMPUTE_GATED);
    if (op)
        op->activation = activation;
    return 0;
}

int64_t host_tensor_silu_mul(guest_call *c)
{
    return gated(c, ACTIVATION_SILU);
}

int64_t host_tensor_gelu_mul(guest_call *c)
{
    return gated(c, ACTIVATION_GELU_TANH);
}

int64_t host_tensor_add(guest_call *c)
{
    compute_op *op = elementwise(c, COMPUTE_ADD);
    if (op)
        op->number = 1;
    return 0;
}

/* ---- the end ------------------------------------------------------------------------------------------------ */

/* Records the release of one engine's tensors; 1 if there were any. */
static int free_device_memory(tensor_state *t)
{
    t->n_ops = 0;
    t->engine = NULL;
    t->session = NULL;
    for (tensor_entry *x = t->tensors; x; x = x->next) {
        if ((t->engine && t->engine != x->engine) || !tensor_list_grow(t))
            continue;
        t->ops[t->n_ops++] = (compute_op){.kind = COMPUTE_FREE, .out = &x->tensor};
        t->engine = x->engine;
        x->freed = 1;
    }
    return t->n_ops > 0;
}

static void free_parts(map *parts)
{
    size_t position = 0;
    for (const map_slot *slot; (slot = map_next(parts, &position));)
        free(slot->value);
    map_release(parts);
}

void host_tensor_release_all(sandbox_request *r)
{
    tensor_state *t = &r->tensors;
    arena_release(&t->inputs);
    free(t->result);
    t->result = NULL;
    if (!t->closing) {
        /* What was recorded and has not run will not: tensors freed there still have memory. */
        t->closing = 1;
        for (tensor_entry *x = t->tensors; x; x = x->next)
            x->freed = !x->tensor.device.data;
    }
    tensor_list_sweep(t);
    if (free_device_memory(t)) {
        tensor_list_submit(r);
        return; /* called again when that is over */
    }
    free(t->ops);
    free_parts(&t->parts);
    *t = (tensor_state){0};
}
