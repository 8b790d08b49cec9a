/* model/transformer.c: the walk of a batch through the layers, one for all families.
 *
 * A layer is attention and a gated feed-forward, each reading a norm of the residual stream and
 * adding to it. What differs between families shows as weights that are there or not (biases,
 * norms of heads, norms after a sublayer) and as numbers (scales, caps, windows).
 *
 * In the last layer only rows whose results are wanted go on after the keys and values are
 * written: of a prompt's chunk that is one row or none, which saves the widest products (the head)
 * and most of a layer. Rows do not influence each other, so leaving some out changes no bit of
 * the others. Engine thread only. */
#include <assert.h>
#include <string.h>

#include "model/model_internal.h"

typedef struct walk {
    model *m;
    backend *b;
    const backend_table *t;
    const forward_input *in;
    tensor x;                    /* [n rows in flight, n_embd] the residual stream */
    const adapter_group *groups; /* of the rows in flight */
    int32_t n_groups;
    int32_t layer;
} walk;

static const layer_weights *layer_of(const walk *w)
{
    return &w->m->weights.layers[w->layer];
}

static void norm_with(const walk *w, tensor out, tensor x, norm_slot slot)
{
    const layer_weights *l = layer_of(w);
    w->t->norm(w->b, out, x, w->m->h.architecture->norm, l->norm[slot], l->norm_bias[slot],
               w->m->h.norm_epsilon);
}

/* outs[i] = matrix slots[i] times x, with bias and adapter; the products share the input. */
static void project(const walk *w, const tensor *outs, tensor x, const matrix_slot *slots,
                    int32_t count)
{
    const layer_weights *l = layer_of(w);
    const weight *ws[3], *biases[3];
    int any_bias = 0;
    assert(count <= 3);
    for (int32_t i = 0; i < count; i++) {
        ws[i] = l->matrix[slots[i]];
        biases[i] = l->bias[slots[i]];
        any_bias |= biases[i] != NULL;
    }
    w->t->matmul(w->b, outs, x, ws, any_bias ? biases : NULL, count);
    for (int32_t i = 0; i < count && w->n_groups > 0; i++)
        adapter_apply(w->groups, w->n_groups, w->layer, slots[i], outs[i], x);
}

/* Norm and rotation of every head of queries or keys. */
static void prepare_heads(const walk *w, tensor x, norm_slot slot)
{
    const hyperparameters *h = &w->m->h;
    if (layer_of(w)->norm[slot] != NULL) {
        tensor heads = tensor_reshape(x, h->key_dim);
        norm_with(w, heads, heads, slot);
    }
    w->t->apply_rope(w->b, x, h->key_dim, model_rope(w->m, w->layer), w->in->rows.positions);
}

/* Computes and stores keys and values of all rows, and their queries if wanted. */
static void fill_pages(const walk *w, tensor q, int with_queries)
{
    static const matrix_slot slots[] = {MATRIX_Q, MATRIX_K, MATRIX_V};
    const hyperparameters *h = &w->m->h;
    const scratch *s = &w->m->scratch;
    int32_t n = w->x.n_rows, n_kv = h->n_kv_heads[w->layer];
    tensor normed = scratch_front(s->normed, n, h->n_embd);
    tensor outs[] = {q, scratch_front(s->k, n, n_kv * h->key_dim),
                     scratch_front(s->v, n, n_kv * h->value_dim)};
    norm_with(w, normed, w->x, NORM_BEFORE_ATTENTION);
    int skip = with_queries ? 0 : 1;
    project(w, outs + skip, normed, slots + skip, 3 - skip);
    if (with_queries)
        prepare_heads(w, q, NORM_QUERY);
    prepare_heads(w, outs[1], NORM_KEY);
    w->t->kv_write(w->b, w->in->kv, w->layer, outs[1], outs[2]);
}

/* What each row reads from the pages: [n, n_heads * value_dim]. */
static tensor attend(const walk *w)
{
    const hyperparameters *h = &w->m->h;
    const scratch *s = &w->m->scratch;
    tensor q = scratch_front(s->q, w->x.n_rows, h->n_heads * h->key_dim);
    tensor out = scratch_front(s->attention, w->x.n_rows, h->n_heads * h->value_dim);
    const attention_options options = {.layer = w->layer,
                                       .n_heads = h->n_heads,
                                       .scale = h->attention_scale,
                                       .soft_cap = h->attention_soft_cap,
                                       .window = h->window[w->layer]};
    fill_pages(w, q, 1);
    w->t->attention(w->b, out, q, w->in->kv, &options);
    return out;
}

/* From here on only the wanted rows: of attention's output (returned) and of the stream. Queries
 * are done with, so their memory holds the rows that stay. */
static tensor keep_wanted(walk *w, tensor attention)
{
    const scratch *s = &w->m->scratch;
    int32_t n = w->in->n_outputs;
    if (n == w->x.n_rows)
        return attention;
    tensor kept = scratch_front(s->q, n, attention.n_cols);
    tensor x = scratch_front(s->kept, n, w->x.n_cols);
    w->t->gather(w->b, kept, attention, w->in->output_rows);
    w->t->gather(w->b, x, w->x, w->in->output_rows);
    w->x = x;
    w->groups = s->output_groups;
    w->n_groups = adapter_groups(s->output_groups, w->in, w->in->output_rows, n);
    return kept;
}

/* stream += matrix times y, normed first where the family has norms after its sublayers. */
static void add_to_stream(const walk *w, tensor y, matrix_slot matrix, norm_slot after)
{
    tensor out = scratch_front(w->m->scratch.projected, w->x.n_rows, w->x.n_cols);
    const layer_weights *l = layer_of(w);
    if (w->n_groups == 0 && !l->bias[matrix] && !l->norm[after]) {
        backend_matmul_add(w->b, w->x, out, y, l->matrix[matrix], w->m->h.residual_scale);
        return;
    }
    project(w, &out, y, &matrix, 1);
    if (l->norm[after] != NULL)
        norm_with(w, out, out, after);
    w->t->add(w->b, w->x, w->x, out, w->m->h.residual_scale);
}

static void feed_forward(const walk *w)
{
    static const matrix_slot slots[] = {MATRIX_GATE, MATRIX_UP};
    const hyperparameters *h = &w->m->h;
    const scratch *s = &w->m->scratch;
    int32_t n = w->x.n_rows, n_ff = h->n_ff[w->layer];
    tensor normed = scratch_front(s->normed, n, h->n_embd);
    tensor outs[] = {scratch_front(s->gate, n, n_ff), scratch_front(s->up, n, n_ff)};
    const layer_weights *l = layer_of(w);
    norm_with(w, normed, w->x, NORM_BEFORE_FEED_FORWARD);
    if (w->n_groups == 0 && !l->bias[MATRIX_GATE] && !l->bias[MATRIX_UP]) {
        const weight *ws[] = {l->matrix[MATRIX_GATE], l->matrix[MATRIX_UP]};
        backend_gated_matmul(w->b, outs[0], outs[1], normed, ws, h->architecture->activation);
    } else {
        project(w, outs, normed, slots, 2);
        w->t->gated(w->b, outs[0], outs[0], outs[1], h->architecture->activation);
    }
    add_to_stream(w, outs[0], MATRIX_DOWN, NORM_AFTER_FEED_FORWARD);
}

static void embed(walk *w)
{
    const model *m = w->m;
    w->t->embed(w->b, w->x, m->weights.token_embd, w->in->tokens, m->h.embedding_scale);
    if (w->n_groups > 0)
        adapter_apply_embedding(w->groups, w->n_groups, w->x, w->in->tokens, m->h.embedding_scale);
}

static void enter_layer(const walk *w, int32_t layer)
{
    if (w->t->enter_layer)
        w->t->enter_layer(w->b, layer, w->x);
}

static void layers(walk *w)
{
    int32_t last = w->m->h.n_layers - 1;
    for (w->layer = 0; w->layer <= last; w->layer++) {
        enter_layer(w, w->layer);
        if (w->layer == last && w->in->n_outputs == 0) {
            fill_pages(w, (tensor){0}, 0);
            return;
        }
        tensor attention = attend(w);
        if (w->layer == last)
            attention = keep_wanted(w, attention);
        add_to_stream(w, attention, MATRIX_O, NORM_AFTER_ATTENTION);
        feed_forward(w);
    }
}

/* Hidden states or logits of the wanted rows, still on the device. */
static tensor head(const walk *w)
{
    const model *m = w->m;
    const weights *ws = &m->weights;
    tensor hidden = scratch_front(m->scratch.normed, w->x.n_rows, m->h.n_embd);
    enter_layer(w, m->h.n_layers);
    w->t->norm(w->b, hidden, w->x, m->h.architecture->norm, ws->output_norm, ws->output_norm_bias,
               m->h.norm_epsilon);
    if (w->in->hidden)
        return hidden;
    tensor logits = scratch_front(m->scratch.logits, w->x.n_rows, m->h.n_vocab);
    const weight *output = ws->output, *bias = ws->output_bias;
    w->t->matmul(w->b, &logits, hidden, &output, bias == NULL ? NULL : &bias, 1);
    if (w->n_groups > 0)
        adapter_apply_output(w->groups, w->n_groups, logits, hidden);
    if (m->h.logit_soft_cap > 0)
        w->t->soft_cap(w->b, logits, m->h.logit_soft_cap);
    return logits;
}

int model_gives_peaks(const model *m)
{
    return m->backend->table->read_peaks != NULL;
}

int model_gives_tops(const model *m)
{
    return model_gives_peaks(m) && m->backend->table->gives_tops;
}

int model_leaves_rows(const model *m)
{
    return model_gives_tops(m) && m->backend->table->read_row != NULL;
}

void model_read_row(const model *m, int32_t i, float *to)
{
    m->backend->table->read_row(m->backend, to, tensor_rows(m->scratch.logits, i, 1));
}

void model_forward(model *m, const forward_input *input, float *const *results)
{
    int32_t n = input->rows.n_tokens;
    assert(n > 0 && n <= m->max_tokens);
    assert(input->n_outputs >= 0 && input->n_outputs <= (input->hidden ? n : m->max_outputs));
    walk w = {.m = m, .b = m->backend, .t = m->backend->table, .in = input};
    w.x = scratch_front(m->scratch.x, n, m->h.n_embd);
    w.groups = m->scratch.groups;
    w.n_groups = adapter_groups(m->scratch.groups, input, NULL, n);
    w.t->begin(w.b, &input->rows);
    embed(&w);
    layers(&w);
    tensor out = input->n_outputs > 0 ? head(&w) : (tensor){0};
    w.t->end(w.b);
    if (input->peaks && input->n_outputs > 0) {
        assert(!input->hidden && w.t->read_peaks);
        w.t->read_peaks(w.b, results, input->peaks, input->wishes, out);
        return;
    }
    for (int32_t i = 0; i < input->n_outputs; i++)
        w.t->read(w.b, results[i], tensor_rows(out, i, 1));
}
