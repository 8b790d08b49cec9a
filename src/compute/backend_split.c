/* compute/backend_split.c: see backend_split.h.
 *
 * At any time one side is `at`: it holds the truth of every tensor, and its step is open while a
 * step is. go moves that point: enter_layer for many operations, the others there and back. Addresses
 * given out are the back's; the front's are found by the tensor that an address lies in. */
#include "compute/backend_split.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum side { FRONT, BACK } side;

/* The same tensor on both sides. */
typedef struct twin {
    tensor on[2];
} twin;

typedef struct split {
    backend head;
    backend_table table; /* of this one: its kind and what the back offers */
    char kind[32];
    backend *parts[2];
    int32_t n_front, n_layers; /* n_layers: as far as weights were opened */
    side at;
    int in_step;
    step_rows rows; /* of the step; what it points to is borrowed */
    twin *twins;
    size_t n_twins, room;
    float *carried; /* host memory, as large as the largest tensor */
    size_t carried_bytes;
} split;

typedef struct split_weight {
    weight head;
    side side;
    weight *inner;
} split_weight;

/* What callers know as a kv_store. */
typedef struct split_kv {
    kv_store *of[2]; /* NULL: that side has no layer */
} split_kv;

static split *self(backend *b)
{
    return (split *)b;
}
static const split_weight *weight_of(const weight *w)
{
    return (const split_weight *)w;
}
static split_kv *kv_of(kv_store *kv)
{
    return (split_kv *)kv;
}
static const backend_table *table_of(const split *s, side on)
{
    return s->parts[on]->table;
}
static side side_of_layer(const split *s, int32_t layer)
{
    return layer < s->n_front ? FRONT : BACK;
}
/* How many of the first n layers are the front's. */
static int32_t front_of(const split *s, int32_t n)
{
    return n < s->n_front ? n : s->n_front;
}
/* A layer's number among those of its side. */
static int32_t own_layer(const split *s, int32_t layer)
{
    return layer < s->n_front ? layer : layer - s->n_front;
}

/* ---- tensors on both sides --------------------------------------------------------------------- */

/* The tensor, or the part of one, as it lies on a side. */
static tensor on_side(const split *s, side on, tensor t)
{
    if (on == BACK)
        return t;
    for (size_t i = 0; i < s->n_twins; i++) {
        tensor back = s->twins[i].on[BACK];
        if (t.data >= back.data && t.data < back.data + (size_t)back.n_rows * (size_t)back.n_cols)
            return (tensor){s->twins[i].on[FRONT].data + (t.data - back.data), t.n_rows, t.n_cols};
    }
    assert(0 && "an address of no tensor");
    return t;
}

static void carry(split *s, side to, tensor t)
{
    side from = to == FRONT ? BACK : FRONT;
    if (t.n_rows == 0)
        return;
    assert((size_t)t.n_rows * (size_t)t.n_cols * sizeof(float) <= s->carried_bytes);
    table_of(s, from)->read(s->parts[from], s->carried, on_side(s, from, t));
    table_of(s, to)->write(s->parts[to], on_side(s, to, t), s->carried);
}

/* Goes on at the other side, if it is another, with these tensors. Reading and writing wait for the
 * work before them, so they stand between the steps. */
static void go(split *s, side to, const tensor *with, int32_t count)
{
    if (s->at == to)
        return;
    if (s->in_step)
        table_of(s, s->at)->end(s->parts[s->at]);
    for (int32_t i = 0; i < count; i++)
        carry(s, to, with[i]);
    s->at = to;
    if (s->in_step)
        table_of(s, to)->begin(s->parts[to], &s->rows);
}

static realm_status tensor_open(backend *b, tensor *out, int32_t n_rows, int32_t n_cols,
                                realm_error *error)
{
    split *s = self(b);
    twin t = {0};
    size_t bytes = (size_t)n_rows * (size_t)n_cols * sizeof(float);
    if (s->n_twins == s->room) {
        size_t room = s->room ? 2 * s->room : 16;
        twin *more = realloc(s->twins, room * sizeof *more);
        if (!more)
            return realm_fail_memory(error, room * sizeof *more, "the table of tensors");
        s->twins = more;
        s->room = room;
    }
    if (bytes > s->carried_bytes) {
        float *more = realloc(s->carried, bytes);
        if (!more)
            return realm_fail_memory(error, bytes, "what goes between devices");
        s->carried = more;
        s->carried_bytes = bytes;
    }
    for (int on = FRONT; on <= BACK; on++) {
        realm_status status =
            table_of(s, (side)on)->tensor_open(s->parts[on], &t.on[on], n_rows, n_cols, error);
        if (status != REALM_OK) {
            if (on == BACK)
                table_of(s, FRONT)->tensor_close(s->parts[FRONT], &t.on[FRONT]);
            return status;
        }
    }
    s->twins[s->n_twins++] = t;
    *out = t.on[BACK];
    return REALM_OK;
}

static void tensor_close(backend *b, tensor *t)
{
    split *s = self(b);
    for (size_t i = 0; i < s->n_twins; i++) {
        twin *found = &s->twins[i];
        if (found->on[BACK].data != t->data)
            continue;
        for (int on = FRONT; on <= BACK; on++)
            table_of(s, (side)on)->tensor_close(s->parts[on], &found->on[on]);
        *found = s->twins[--s->n_twins];
        break;
    }
    *t = (tensor){0};
}

static void write_tensor(backend *b, tensor to, const float *from)
{
    split *s = self(b);
    table_of(s, s->at)->write(s->parts[s->at], on_side(s, s->at, to), from);
}

static void read_tensor(backend *b, float *to, tensor from)
{
    split *s = self(b);
    table_of(s, s->at)->read(s->parts[s->at], to, on_side(s, s->at, from));
}

static void read_peaks(backend *b, float *const *to, float *const *peaks, const row_wish *wishes,
                       tensor from)
{
    split *s = self(b);
    assert(s->at == BACK);
    table_of(s, BACK)->read_peaks(s->parts[BACK], to, peaks, wishes, from);
}

/* Any thread: does not ask which side's turn it is. */
static void read_row(backend *b, float *to, tensor row)
{
    split *s = self(b);
    table_of(s, BACK)->read_row(s->parts[BACK], to, row);
}

static void *host_open(backend *b, size_t bytes)
{
    split *s = self(b);
    return table_of(s, BACK)->host_open(s->parts[BACK], bytes);
}

static void host_close(backend *b, void *memory)
{
    split *s = self(b);
    table_of(s, BACK)->host_close(s->parts[BACK], memory);
}

/* ---- weights ------------------------------------------------------------------------------------- */

/* The N of "blk.N.", or -1. */
static int32_t layer_of_name(const char *name)
{
    char *end;
    if (strncmp(name, "blk.", 4) != 0 || name[4] < '0' || name[4] > '9')
        return -1;
    long n = strtol(name + 4, &end, 10);
    return *end == '.' && n <= INT32_MAX ? (int32_t)n : -1;
}

static const weight *inner_of(const weight *w)
{
    return w ? weight_of(w)->inner : NULL;
}

static realm_status weight_open(backend *b, weight **out, const weight_source *source,
                                realm_error *error)
{
    split *s = self(b);
    int32_t layer = layer_of_name(source->name);
    split_weight *w = calloc(1, sizeof *w);
    if (!w)
        return realm_fail_memory(error, sizeof *w, "a weight");
    w->side = layer < 0 ? BACK : side_of_layer(s, layer);
    weight_source there = *source;
    there.first = inner_of(source->first);
    realm_status status =
        table_of(s, w->side)->weight_open(s->parts[w->side], &w->inner, &there, error);
    if (status != REALM_OK) {
        free(w);
        return status;
    }
    w->head = *w->inner;
    s->n_layers = layer >= s->n_layers ? layer + 1 : s->n_layers;
    *out = &w->head;
    return REALM_OK;
}

static void weight_close(backend *b, weight *w)
{
    split *s = self(b);
    if (!w)
        return;
    split_weight *own = (split_weight *)w;
    table_of(s, own->side)->weight_close(s->parts[own->side], own->inner);
    free(own);
}

/* ---- pages --------------------------------------------------------------------------------------- */

static void kv_close(backend *b, kv_store *kv)
{
    split *s = self(b);
    split_kv *own = kv_of(kv);
    if (!own)
        return;
    for (int on = FRONT; on <= BACK; on++)
        if (own->of[on])
            table_of(s, (side)on)->kv_close(s->parts[on], own->of[on]);
    free(own);
}

static realm_status kv_open(backend *b, kv_store **out, const kv_shape *shape, realm_error *error)
{
    split *s = self(b);
    split_kv *kv = calloc(1, sizeof *kv);
    if (!kv)
        return realm_fail_memory(error, sizeof *kv, "pages on two devices");
    int32_t n_front = front_of(s, shape->n_layers);
    kv_shape parts[2] = {*shape, *shape};
    parts[FRONT].n_layers = n_front;
    parts[BACK].n_layers = shape->n_layers - n_front;
    parts[BACK].layers = shape->layers + n_front;
    realm_status status = REALM_OK;
    for (int on = FRONT; on <= BACK && status == REALM_OK; on++)
        if (parts[on].n_layers > 0)
            status = table_of(s, (side)on)->kv_open(s->parts[on], &kv->of[on], &parts[on], error);
    if (status != REALM_OK) {
        kv_close(b, (kv_store *)kv);
        return status;
    }
    *out = (kv_store *)kv;
    return REALM_OK;
}

static void kv_copy_page(backend *b, kv_store *kv, int32_t to, int32_t from)
{
    split *s = self(b);
    for (int on = FRONT; on <= BACK; on++)
        if (kv_of(kv)->of[on])
            table_of(s, (side)on)->kv_copy_page(s->parts[on], kv_of(kv)->of[on], to, from);
}

static size_t part_bytes(const split *s, const kv_store *kv, int on)
{
    const kv_store *part = ((const split_kv *)kv)->of[on];
    return part ? table_of(s, (side)on)->kv_page_bytes(s->parts[on], part) : 0;
}

static size_t kv_page_bytes(const backend *b, const kv_store *kv)
{
    const split *s = (const split *)b;
    return part_bytes(s, kv, FRONT) + part_bytes(s, kv, BACK);
}

static void kv_save_page(backend *b, kv_store *kv, void *to, int32_t from)
{
    split *s = self(b);
    for (int on = FRONT; on <= BACK; to = (char *)to + part_bytes(s, kv, on), on++)
        if (kv_of(kv)->of[on])
            table_of(s, (side)on)->kv_save_page(s->parts[on], kv_of(kv)->of[on], to, from);
}

static void kv_load_page(backend *b, kv_store *kv, int32_t to, const void *from)
{
    split *s = self(b);
    for (int on = FRONT; on <= BACK; from = (const char *)from + part_bytes(s, kv, on), on++)
        if (kv_of(kv)->of[on])
            table_of(s, (side)on)->kv_load_page(s->parts[on], kv_of(kv)->of[on], to, from);
}

static void kv_read(backend *b, kv_store *kv, int32_t layer, int values, const int32_t *page_table,
                    int32_t first, int32_t count, float *to)
{
    split *s = self(b);
    side on = side_of_layer(s, layer);
    table_of(s, on)->kv_read(s->parts[on], kv_of(kv)->of[on], own_layer(s, layer), values,
                             page_table, first, count, to);
}

/* ---- steps and operations ------------------------------------------------------------------------ */

static void begin(backend *b, const step_rows *rows)
{
    split *s = self(b);
    assert(s->at == BACK && !s->in_step);
    s->rows = *rows;
    s->in_step = 1;
    table_of(s, BACK)->begin(s->parts[BACK], &s->rows);
}

/* A walk that wants no result ends in the last layer, wherever that is. */
static void end(backend *b)
{
    split *s = self(b);
    table_of(s, s->at)->end(s->parts[s->at]);
    s->in_step = 0;
    s->at = BACK;
}

static void enter_layer(backend *b, int32_t layer, tensor x)
{
    split *s = self(b);
    go(s, side_of_layer(s, layer), &x, 1);
}

static void embed(backend *b, tensor out, const weight *w, const int32_t *ids, float scale)
{
    split *s = self(b);
    side home = s->at, on = weight_of(w)->side;
    go(s, on, NULL, 0);
    table_of(s, on)->embed(s->parts[on], on_side(s, on, out), inner_of(w), ids, scale);
    go(s, home, &out, 1);
}

static void norm(backend *b, tensor out, tensor x, norm_kind kind, const weight *gain,
                 const weight *bias, float epsilon)
{
    split *s = self(b);
    side home = s->at, on = gain ? weight_of(gain)->side : bias ? weight_of(bias)->side : home;
    go(s, on, &x, 1);
    table_of(s, on)->norm(s->parts[on], on_side(s, on, out), on_side(s, on, x), kind,
                          inner_of(gain), inner_of(bias), epsilon);
    go(s, home, &out, 1);
}

/* Products that are asked for together are of one layer, and never many. */
#define TOGETHER_MAX 8

static void matmul(backend *b, const tensor *outs, tensor x, const weight *const *ws,
                   const weight *const *biases, int32_t count)
{
    split *s = self(b);
    side home = s->at, on = weight_of(ws[0])->side;
    tensor there[TOGETHER_MAX];
    const weight *inner[TOGETHER_MAX], *inner_biases[TOGETHER_MAX];
    assert(count <= TOGETHER_MAX);
    for (int32_t i = 0; i < count; i++) {
        assert(weight_of(ws[i])->side == on);
        there[i] = on_side(s, on, outs[i]);
        inner[i] = inner_of(ws[i]);
        inner_biases[i] = biases ? inner_of(biases[i]) : NULL;
    }
    go(s, on, &x, 1);
    table_of(s, on)->matmul(s->parts[on], there, on_side(s, on, x), inner,
                            biases ? inner_biases : NULL, count);
    go(s, home, outs, count);
}

static void apply_rope(backend *b, tensor x, int32_t head_dim, const rope *r,
                       const int32_t *positions)
{
    split *s = self(b);
    table_of(s, s->at)->apply_rope(s->parts[s->at], on_side(s, s->at, x), head_dim, r, positions);
}

static void kv_write(backend *b, kv_store *kv, int32_t layer, tensor k, tensor v)
{
    split *s = self(b);
    side home = s->at, on = side_of_layer(s, layer);
    const tensor with[] = {k, v};
    go(s, on, with, 2);
    table_of(s, on)->kv_write(s->parts[on], kv_of(kv)->of[on], own_layer(s, layer),
                              on_side(s, on, k), on_side(s, on, v));
    go(s, home, NULL, 0);
}

static void attention(backend *b, tensor out, tensor q, kv_store *kv,
                      const attention_options *options)
{
    split *s = self(b);
    side home = s->at, on = side_of_layer(s, options->layer);
    attention_options own = *options;
    own.layer = own_layer(s, options->layer);
    go(s, on, &q, 1);
    table_of(s, on)->attention(s->parts[on], on_side(s, on, out), on_side(s, on, q),
                               kv_of(kv)->of[on], &own);
    go(s, home, &out, 1);
}

static void gated(backend *b, tensor out, tensor gate, tensor up, activation_kind kind)
{
    split *s = self(b);
    side on = s->at;
    table_of(s, on)->gated(s->parts[on], on_side(s, on, out), on_side(s, on, gate),
                           on_side(s, on, up), kind);
}

static void gated_matmul(backend *b, tensor out, tensor up, tensor x, const weight *const ws[2],
                         activation_kind kind)
{
    split *s = self(b);
    side home = s->at, on = weight_of(ws[0])->side;
    const weight *inner[] = {inner_of(ws[0]), inner_of(ws[1])};
    assert(weight_of(ws[1])->side == on);
    go(s, on, &x, 1);
    backend_gated_matmul(s->parts[on], on_side(s, on, out), on_side(s, on, up), on_side(s, on, x),
                         inner, kind);
    go(s, home, &out, 1);
}

static void matmul_add(backend *b, tensor x, tensor room, tensor in, const weight *w, float scale)
{
    split *s = self(b);
    side on = weight_of(w)->side;
    if (on == s->at) {
        backend_matmul_add(s->parts[on], on_side(s, on, x), on_side(s, on, room),
                           on_side(s, on, in), inner_of(w), scale);
        return;
    }
    b->table->matmul(b, &room, in, &w, NULL, 1);
    b->table->add(b, x, x, room, scale);
}

static void add(backend *b, tensor out, tensor x, tensor y, float scale)
{
    split *s = self(b);
    side on = s->at;
    table_of(s, on)->add(s->parts[on], on_side(s, on, out), on_side(s, on, x), on_side(s, on, y),
                         scale);
}

static void soft_cap(backend *b, tensor x, float cap)
{
    split *s = self(b);
    table_of(s, s->at)->soft_cap(s->parts[s->at], on_side(s, s->at, x), cap);
}

static void gather(backend *b, tensor out, tensor x, const int32_t *rows)
{
    split *s = self(b);
    side on = s->at;
    table_of(s, on)->gather(s->parts[on], on_side(s, on, out), on_side(s, on, x), rows);
}

/* ---- the whole ----------------------------------------------------------------------------------- */

static int lend(backend *b, int (*wanted)(void *context), void *context)
{
    split *s = self(b);
    return table_of(s, BACK)->lend(s->parts[BACK], wanted, context);
}

static void describe(const backend *b, char *text, size_t size)
{
    const split *s = (const split *)b;
    char parts[2][128];
    for (int on = FRONT; on <= BACK; on++)
        table_of(s, (side)on)->describe(s->parts[on], parts[on], sizeof parts[on]);
    snprintf(text, size, "%s for %" PRId32 " layers, %s for the rest", parts[FRONT], s->n_front,
             parts[BACK]);
}

/* Keys and values of a token take a part of every side's memory, as many layers as it has: what is
 * free is what fills the fuller side. */
static void memory(const backend *b, backend_memory *out)
{
    const split *s = (const split *)b;
    const int32_t n_front = front_of(s, s->n_layers);
    const int32_t layers[] = {n_front, s->n_layers - n_front};
    backend_memory parts[2] = {{0}};
    *out = (backend_memory){0};
    for (int on = FRONT; on <= BACK; on++) {
        backend_memory *m = &parts[on];
        table_of(s, (side)on)->memory(s->parts[on], m);
        out->total_bytes += m->total_bytes;
        out->weight_bytes += m->weight_bytes;
        if (s->n_layers > 0 && layers[on] == 0)
            continue;
        double whole = s->n_layers > 0 ? (double)s->n_layers / layers[on] : 1;
        uint64_t free_bytes = (uint64_t)((double)m->free_bytes * whole);
        uint64_t page_bytes = (uint64_t)((double)m->page_bytes * whole);
        if (*out->bound == '\0' || free_bytes < out->free_bytes) {
            out->free_bytes = free_bytes;
            snprintf(out->bound, sizeof out->bound, "%s", m->bound);
        }
        if (out->page_bytes == 0 || page_bytes < out->page_bytes)
            out->page_bytes = page_bytes;
    }
}

static void close_split(backend *b)
{
    split *s = self(b);
    for (int on = FRONT; on <= BACK; on++)
        table_of(s, (side)on)->close(s->parts[on]);
    free(s->twins);
    free(s->carried);
    free(s);
}

static const backend_table split_table = {
    .close = close_split,
    .describe = describe,
    .memory = memory,
    .weight_open = weight_open,
    .weight_close = weight_close,
    .tensor_open = tensor_open,
    .tensor_close = tensor_close,
    .write = write_tensor,
    .read = read_tensor,
    .kv_open = kv_open,
    .kv_close = kv_close,
    .kv_copy_page = kv_copy_page,
    .kv_page_bytes = kv_page_bytes,
    .kv_save_page = kv_save_page,
    .kv_load_page = kv_load_page,
    .kv_read = kv_read,
    .begin = begin,
    .end = end,
    .enter_layer = enter_layer,
    .embed = embed,
    .norm = norm,
    .matmul = matmul,
    .apply_rope = apply_rope,
    .kv_write = kv_write,
    .attention = attention,
    .gated = gated,
    .gated_matmul = gated_matmul,
    .matmul_add = matmul_add,
    .add = add,
    .soft_cap = soft_cap,
    .gather = gather,
};

realm_status backend_split_open(backend **out, backend *front, backend *back, int32_t n_front,
                                realm_error *error)
{
    split *s = calloc(1, sizeof *s);
    if (!s)
        return realm_fail_memory(error, sizeof *s, "a backend of two devices");
    assert(n_front >= 0);
    s->parts[FRONT] = front;
    s->parts[BACK] = back;
    s->n_front = n_front;
    s->at = BACK;
    s->table = split_table;
    snprintf(s->kind, sizeof s->kind, "%s+%s", front->table->kind, back->table->kind);
    s->table.kind = s->kind;
    if (back->table->lend)
        s->table.lend = lend;
    if (back->table->read_peaks)
        s->table.read_peaks = read_peaks;
    s->table.gives_tops = back->table->gives_tops;
    if (back->table->read_row)
        s->table.read_row = read_row;
    if (back->table->host_open) {
        s->table.host_open = host_open;
        s->table.host_close = host_close;
    }
    s->head.table = &s->table;
    *out = &s->head;
    return REALM_OK;
}
