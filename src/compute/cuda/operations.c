/* compute/cuda/operations.c: each operation of backend.h as launches of kernels.
 *
 * Three things are done beside that. What several launches of a step need of its rows is staged once.
 * A product's input, made halves, is kept while its source is unchanged, and operations whose results
 * products read (norm, gated) make it on their way. And three kinds of operation wait for the next one:
 * an addition, which a norm of its result takes along; rotations, which the writing of keys takes along; and
 * that, which attention over them takes along. Anything else that comes settles them first, so the order of
 * effects is as called. */
#include <assert.h>
#include <string.h>

#include "compute/cuda/cuda_backend.h"

static size_t elements(tensor t)
{
    return (size_t)t.n_rows * (size_t)t.n_cols;
}

/* Threads of a block that has one row, four columns each: a function of the row's length alone, as sums
 * depend on it. */
static uint32_t row_threads(int32_t n_cols)
{
    return n_cols >= 4096 ? 1024 : ((uint32_t)n_cols + 127) / 128 * 32;
}

static const packed *packed_of(const weight *w)
{
    return &((const cuda_weight *)w)->p;
}

/* A gain or bias of n elements, or NULL. */
static const float *vector_of(const weight *w, int32_t n)
{
    if (!w)
        return NULL;
    assert(w->type == DTYPE_F32 && (int64_t)w->n_rows * w->n_cols == n);
    (void)n;
    return (const float *)(const void *)packed_of(w)->planes;
}

static int overlap(tensor a, tensor b)
{
    return a.data < b.data + elements(b) && b.data < a.data + elements(a);
}

/* out has a new content. */
static void wrote(cuda_backend *b, tensor out)
{
    if (b->prepared_of.data && overlap(out, b->prepared_of))
        b->prepared_of = (tensor){0};
    b->landed = (tensor){0};
    b->last = out;
}

/* Outside of a step an operation runs when it is called. */
static void finish(cuda_backend *b)
{
    if (b->in_step)
        return;
    operations_settle(b);
    step_flush(b);
}

static void record(cuda_backend *b, const void *function, uint32_t grid_x, uint32_t grid_y,
                   uint32_t threads, const void *arguments, size_t size)
{
    step_record(b, function, grid_x, grid_y, 1, threads, 0, arguments, size);
}

/* ---- the step's rows on the device ---------------------------------------------------------------- */

static const int32_t *staged_positions(cuda_backend *b, const int32_t *positions, int32_t n)
{
    if (positions != b->rows.positions || n != b->rows.n_tokens)
        return step_stage(b, positions, (size_t)n * sizeof *positions);
    if (!b->staged.positions)
        b->staged.positions = step_stage(b, positions, (size_t)n * sizeof *positions);
    return b->staged.positions;
}

static const int32_t *staged_slots(cuda_backend *b)
{
    if (b->staged.slots)
        return b->staged.slots;
    const step_rows *r = &b->rows;
    void *host;
    const int32_t *device = step_stage_room(b, (size_t)r->n_tokens * sizeof(int32_t), &host);
    int32_t *slots = host;
    for (int32_t i = 0; i < r->n_tokens && slots; i++)
        slots[i] = r->page_tables[r->sequences[i]][r->positions[i] / KV_PAGE_TOKENS] *
                       KV_PAGE_TOKENS +
                   r->positions[i] % KV_PAGE_TOKENS;
    return b->staged.slots = device;
}

/* Page tables of equal room, so that a graph's addresses stay while sequences grow. */
static int32_t page_stride(const step_rows *r)
{
    int32_t most = 1;
    for (int32_t i = 0; i < r->n_tokens; i++)
        if (r->positions[i] / KV_PAGE_TOKENS + 1 > most)
            most = r->positions[i] / KV_PAGE_TOKENS + 1;
    return cuda_power_of_two(most, 16);
}

static const int32_t *staged_page_ids(cuda_backend *b)
{
    if (b->staged.page_ids)
        return b->staged.page_ids;
    const step_rows *r = &b->rows;
    int32_t stride = page_stride(r);
    void *host;
    const int32_t *device = step_stage_room(
        b, (size_t)r->n_sequences * (size_t)stride * sizeof(int32_t), &host);
    int32_t *ids = host;
    for (int32_t i = 0; i < r->n_tokens && ids; i++) {
        int32_t s = r->sequences[i], last = i + 1 == r->n_tokens || r->sequences[i + 1] != s;
        if (last)
            memcpy(ids + (size_t)s * (size_t)stride, r->page_tables[s],
                   (size_t)(r->positions[i] / KV_PAGE_TOKENS + 1) * sizeof *ids);
    }
    b->staged.pages_stride = stride;
    return b->staged.page_ids = device;
}

/* ---- input of products ------------------------------------------------------------------------------ */

/* The most tokens of the kernels that read activations as they lie (matmul.cu): with more, on 9.0, tiles are wanted. */
static int32_t few_tokens_most(const cuda_backend *b)
{
    return b->wgmma ? 32 : 64;
}

static prepared prepared_at(const cuda_backend *b, int32_t n_rows)
{
    return (prepared){.halves = (uint16_t *)(void *)(b->prepared + prepared_scale_bytes(n_rows)),
                      .scales = (float *)(void *)b->prepared,
                      .n_stride = (n_rows + 7) / 8 * 8,
                      .tiles = b->wgmma && n_rows > few_tokens_most(b)};
}

/* Where an operation that writes out also puts it as a product's input; none if it does not fit. */
static prepared prepare_along(cuda_backend *b, tensor out)
{
    wrote(b, out);
    if (prepared_size(out.n_rows, out.n_cols) > b->prepared_bytes)
        return (prepared){0};
    b->prepared_of = out;
    return prepared_at(b, out.n_rows);
}

/* x as halves: rows of what is prepared, or made now. */
static prepared prepare(cuda_backend *b, tensor x)
{
    tensor of = b->prepared_of;
    if (of.data && of.n_cols == x.n_cols && x.data >= of.data &&
        x.data + elements(x) <= of.data + elements(of) &&
        (size_t)(x.data - of.data) % (size_t)x.n_cols == 0) {
        prepared p = prepared_at(b, of.n_rows);
        size_t first = (size_t)(x.data - of.data) / (size_t)x.n_cols;
        p.halves += first * (p.tiles ? PACKED_COLS : 32);
        p.scales += first;
        /* Tiles are for products of many tokens, and eight tokens are one piece of them. */
        if (!p.tiles || (x.n_rows > few_tokens_most(b) && first % 8 == 0))
            return p;
    }
    assert(prepared_size(x.n_rows, x.n_cols) <= b->prepared_bytes);
    b->prepared_of = x;
    rows_args a = {.x = x.data, .p = prepared_at(b, x.n_rows), .n_cols = x.n_cols};
    record(b, cuda_kernel_prepare(), (uint32_t)x.n_rows, 1, row_threads(x.n_cols), &a, sizeof a);
    return a.p;
}

/* ---- what waits -------------------------------------------------------------------------------------- */

static void settle_addition(cuda_backend *b)
{
    if (!b->addition.waiting)
        return;
    b->addition.waiting = 0;
    tensor out = b->addition.out;
    rows_args a = {.out = out.data,
                   .x = b->addition.x.data,
                   .y = b->addition.y.data,
                   .n_elements = (int64_t)elements(out),
                   .factor = b->addition.scale};
    uint32_t blocks = (uint32_t)((elements(out) + 1023) / 1024);
    record(b, cuda_kernel_add(), blocks, 1, 256, &a, sizeof a);
}

static const staged_rope *staged_angles(cuda_backend *b, const rope *r, const int32_t *positions,
                                        int32_t n);

static rope_args turns_as_arguments(cuda_backend *b)
{
    const staged_rope *s = staged_angles(b, b->turns.rope, b->turns.positions,
                                         b->turns.x[0].n_rows);
    rope_args a = {.cosines = s->cosines,
                   .sines = s->sines,
                   .n_pairs = b->turns.rope->n_rot / 2,
                   .kind = (int32_t)b->turns.rope->kind};
    for (int32_t i = 0; i < b->turns.n; i++) {
        a.x[i] = b->turns.x[i].data;
        a.head_dim[i] = b->turns.head_dim[i];
        a.n_heads[i] = b->turns.x[i].n_cols / b->turns.head_dim[i];
    }
    return a;
}

static void settle_turns(cuda_backend *b)
{
    int32_t n = b->turns.n;
    if (n == 0)
        return;
    rope_args a = turns_as_arguments(b);
    b->turns.n = 0;
    record(b, cuda_kernel_rope(), (uint32_t)b->turns.x[0].n_rows, (uint32_t)n, 256, &a, sizeof a);
}

static void settle_writing(cuda_backend *b)
{
    if (!b->writing.waiting)
        return;
    b->writing.waiting = 0;
    kv_write_args a = b->writing.args;
    a.slots = staged_slots(b);
    int32_t heads, threads;
    const void *kernel = cuda_kernel_kv_write(&a, &heads, &threads);
    record(b, kernel, (uint32_t)b->writing.k.n_rows,
           (uint32_t)((a.layer.n_kv_heads + heads - 1) / heads), (uint32_t)threads, &a, sizeof a);
}

void operations_settle(cuda_backend *b)
{
    settle_addition(b);
    settle_turns(b);
    settle_writing(b);
}

/* ---- rows and elements ------------------------------------------------------------------------------- */

static void embed(backend *backend_, tensor out, const weight *w, const int32_t *ids, float scale)
{
    cuda_backend *b = cuda_self(backend_);
    assert(out.n_cols == w->n_cols);
    operations_settle(b);
    embed_args a = {.w = *packed_of(w),
                    .out = out.data,
                    .ids = step_stage(b, ids, (size_t)out.n_rows * sizeof *ids),
                    .scale = scale};
    wrote(b, out);
    record(b, cuda_kernel_embed(), (uint32_t)out.n_rows, 1, 256, &a, sizeof a);
    finish(b);
}

static void norm(backend *backend_, tensor out, tensor x, norm_kind kind, const weight *gain,
                 const weight *bias, float epsilon)
{
    cuda_backend *b = cuda_self(backend_);
    assert(out.n_rows == x.n_rows && out.n_cols == x.n_cols);
    int along = b->addition.waiting && b->addition.out.data == x.data && b->turns.n == 0 &&
                b->addition.out.n_cols == x.n_cols && b->addition.out.n_rows == x.n_rows &&
                !overlap(out, x);
    norm_args a = {.out = out.data,
                   .x = x.data,
                   .gain = vector_of(gain, x.n_cols),
                   .bias = vector_of(bias, x.n_cols),
                   .n_cols = x.n_cols,
                   .kind = (int32_t)kind,
                   .epsilon = epsilon};
    if (along) {
        b->addition.waiting = 0;
        a.sum = x.data;
        a.x = b->addition.x.data;
        a.y = b->addition.y.data;
        a.factor = b->addition.scale;
    }
    operations_settle(b);
    /* Norms of heads are rotated next, not multiplied. */
    if (b->in_step && out.n_rows > b->rows.n_tokens)
        wrote(b, out);
    else
        a.p = prepare_along(b, out);
    record(b, cuda_kernel_norm(&a), (uint32_t)x.n_rows, 1, row_threads(x.n_cols), &a, sizeof a);
    finish(b);
}

static void gated(backend *backend_, tensor out, tensor gate, tensor up, activation_kind kind)
{
    cuda_backend *b = cuda_self(backend_);
    assert(elements(out) == elements(gate) && elements(gate) == elements(up));
    operations_settle(b);
    rows_args a = {.out = out.data,
                   .x = gate.data,
                   .y = up.data,
                   .p = prepare_along(b, out),
                   .n_cols = out.n_cols,
                   .kind = (int32_t)kind};
    /* Parts are whole tiles of columns (rows.cu). A cluster's blocks agree on the largest element, so
     * how many there are changes no bit. */
    uint32_t parts = b->major >= 9 && out.n_cols >= 2048 ? 8 : 1;
    int32_t tiles = (out.n_cols + PACKED_COLS - 1) / PACKED_COLS;
    int32_t part = (tiles + (int32_t)parts - 1) / (int32_t)parts * PACKED_COLS;
    step_record_cluster(b, cuda_kernel_gated(), parts, (uint32_t)out.n_rows, row_threads(part), &a,
                        sizeof a);
    finish(b);
}

static void add(backend *backend_, tensor out, tensor x, tensor y, float scale)
{
    cuda_backend *b = cuda_self(backend_);
    assert(elements(out) == elements(x) && elements(x) == elements(y));
    operations_settle(b);
    wrote(b, out);
    b->addition.waiting = elements(out) > 0;
    b->addition.out = out;
    b->addition.x = x;
    b->addition.y = y;
    b->addition.scale = scale;
    finish(b);
}

static void soft_cap(backend *backend_, tensor x, float cap)
{
    cuda_backend *b = cuda_self(backend_);
    operations_settle(b);
    wrote(b, x);
    rows_args a = {.out = x.data, .x = x.data, .n_elements = (int64_t)elements(x), .factor = cap};
    record(b, cuda_kernel_soft_cap(), (uint32_t)((elements(x) + 1023) / 1024), 1, 256, &a,
           sizeof a);
    finish(b);
}

/* Rows may move up within one tensor, which blocks that run side by side would spoil: then in a copy
 * each, in order. */
static void gather_in_order(cuda_backend *b, tensor out, tensor x, const int32_t *rows)
{
    int32_t zero = 0;
    for (int32_t i = 0; i < out.n_rows; i++) {
        rows_args a = {.out = out.data + (size_t)i * (size_t)out.n_cols,
                       .x = x.data + (size_t)rows[i] * (size_t)x.n_cols,
                       .rows = step_stage(b, &zero, sizeof zero),
                       .n_cols = x.n_cols};
        record(b, cuda_kernel_gather(), 1, 1, 256, &a, sizeof a);
    }
}

static void gather(backend *backend_, tensor out, tensor x, const int32_t *rows)
{
    cuda_backend *b = cuda_self(backend_);
    assert(out.n_cols == x.n_cols);
    operations_settle(b);
    wrote(b, out);
    if (overlap(out, x)) {
        gather_in_order(b, out, x, rows);
    } else {
        rows_args a = {.out = out.data,
                       .x = x.data,
                       .rows = step_stage(b, rows, (size_t)out.n_rows * sizeof *rows),
                       .n_cols = x.n_cols};
        record(b, cuda_kernel_gather(), (uint32_t)out.n_rows, 1, 256, &a, sizeof a);
    }
    finish(b);
}

/* ---- rope -------------------------------------------------------------------------------------------- */

/* Room for the angles; what runs already may use the old ones, so it runs first. */
static float *angles_room(cuda_backend *b, size_t n)
{
    size_t bytes = n * sizeof(float);
    if (b->angles_used + bytes > b->angles_bytes) {
        step_flush(b);
        if (bytes > b->angles_bytes) {
            realm_error error;
            cudaStreamSynchronize(b->stream);
            if (cuda_reserve((void **)&b->angles, &b->angles_bytes, bytes * 4, "angles", &error) !=
                REALM_OK)
                cuda_ok(b, cudaErrorMemoryAllocation, error.message);
        }
    }
    float *at = b->angles + b->angles_used / sizeof(float);
    b->angles_used += bytes;
    return at;
}

static const staged_rope *staged_angles(cuda_backend *b, const rope *r, const int32_t *positions,
                                        int32_t n)
{
    for (int32_t i = 0; i < b->staged.n_ropes; i++) {
        const staged_rope *s = &b->staged.ropes[i];
        if (s->of == r && s->positions == positions && s->n_tokens == n)
            return s;
    }
    int32_t n_pairs = r->n_rot / 2;
    size_t count = (size_t)n * (size_t)n_pairs;
    angles_args a = {.n_tokens = n, .n_pairs = n_pairs, .magnitude = r->magnitude};
    step_need(b, (size_t)n * sizeof *positions + (size_t)n_pairs * sizeof(float));
    a.cosines = angles_room(b, count * 2);
    a.sines = a.cosines + count;
    a.positions = staged_positions(b, positions, n);
    a.frequencies = step_stage(b, r->inverse_frequency, (size_t)n_pairs * sizeof(float));
    record(b, cuda_kernel_angles(), (uint32_t)((count + 127) / 128), 1, 128, &a, sizeof a);
    staged_rope *s =
        &b->staged.ropes[b->staged.n_ropes < ROPES_MAX ? b->staged.n_ropes : ROPES_MAX - 1];
    if (b->staged.n_ropes < ROPES_MAX)
        b->staged.n_ropes++;
    *s = (staged_rope){r, positions, n, a.cosines, a.sines};
    return s;
}

static void apply_rope(backend *backend_, tensor x, int32_t head_dim, const rope *r,
                       const int32_t *positions)
{
    cuda_backend *b = cuda_self(backend_);
    assert(x.n_cols % head_dim == 0 && r->n_rot <= head_dim && r->n_rot % 2 == 0);
    settle_addition(b);
    settle_writing(b);
    if (b->turns.n == 2 ||
        (b->turns.n == 1 && (b->turns.rope != r || b->turns.positions != positions ||
                             b->turns.x[0].n_rows != x.n_rows || overlap(b->turns.x[0], x))))
        settle_turns(b);
    wrote(b, x);
    if (x.n_rows > 0 && r->n_rot > 0) {
        b->turns.rope = r;
        b->turns.positions = positions;
        b->turns.x[b->turns.n] = x;
        b->turns.head_dim[b->turns.n] = head_dim;
        b->turns.n++;
    }
    finish(b);
}

/* ---- attention --------------------------------------------------------------------------------------- */

/* Rotations that wait for this: of the keys, and of other rows that were turned alike. */
static rope_args turns_taken_along(cuda_backend *b, tensor k, int32_t n_kv_heads)
{
    int32_t n = b->turns.n, n_heads = n_kv_heads;
    if (n == 2)
        n_heads = b->turns.x[0].n_cols / b->turns.head_dim[0];
    if (n == 0 || n_heads % n_kv_heads != 0 || b->turns.head_dim[n - 1] * n_kv_heads != k.n_cols ||
        b->turns.x[n - 1].data != k.data || b->turns.x[n - 1].n_cols != k.n_cols ||
        b->turns.x[n - 1].n_rows != k.n_rows || b->turns.positions != b->rows.positions)
        return (rope_args){0};
    rope_args a = turns_as_arguments(b);
    b->turns.n = 0;
    return a;
}

static void kv_write(backend *backend_, kv_store *kv, int32_t layer, tensor k, tensor v)
{
    cuda_backend *b = cuda_self(backend_);
    const cuda_kv_layer *l = &kv->layers[layer];
    assert(k.n_rows == b->rows.n_tokens && v.n_rows == k.n_rows);
    assert(k.n_cols == l->n_kv_heads * l->key_dim && v.n_cols == l->n_kv_heads * l->value_dim);
    settle_addition(b);
    settle_writing(b);
    step_need(b, (size_t)k.n_rows * 2 * sizeof(int32_t) + 4096);
    rope_args turns = turns_taken_along(b, k, l->n_kv_heads);
    operations_settle(b);
    b->writing.args = (kv_write_args){.layer = *l,
                                      .pages = kv->pages,
                                      .page_bytes = kv->page_bytes,
                                      .k = k.data,
                                      .v = v.data,
                                      .rope = turns};
    b->writing.waiting = 1;
    b->writing.k = k;
    b->writing.v = v;
    b->last = (tensor){0};
    finish(b);
}

/* The rows whose keys wait to be written, if attention with these arguments can do that; nobody reads turned queries
 * and keys behind attention (backend.h). */
static fresh_rows writing_taken_along(cuda_backend *b, const attention_plan *p,
                                      const attention_args *a, tensor out)
{
    const kv_write_args *w = &b->writing.args;
    const rope_args *r = &w->rope;
    if (!b->writing.waiting || !p->staged || p->most_queries > ATTENTION_ROWS ||
        p->most_rows > ATTENTION_FRESH || w->pages != a->pages ||
        w->layer.offset != a->layer.offset || r->x[0] != a->q || !r->x[1] ||
        r->n_heads[0] != a->n_heads || r->head_dim[0] != a->layer.key_dim ||
        r->n_pairs * 2 != a->layer.key_dim || overlap(out, b->writing.k) ||
        overlap(out, b->writing.v))
        return (fresh_rows){0};
    b->writing.waiting = 0;
    return (fresh_rows){
        .k = w->k, .v = w->v, .cosines = r->cosines, .sines = r->sines, .kind = r->kind};
}

static int32_t warp_bytes(const cuda_kv_layer *l, int walk)
{
    return l->key_stride / 32 * 2 * 32 * 16 + (walk ? l->value_stride / 8 * 32 * 16 : 0);
}

static void record_staged(cuda_backend *b, const attention_plan *p, attention_args *a)
{
    int32_t threads, shared_bytes;
    const void *kernel = cuda_kernel_attention_staged(p->most_queries, p->together,
                                                      a->fresh.k != NULL, &threads, &shared_bytes);
    a->tiles = p->split;
    a->n_tiles = p->n_split + p->n_walk;
    a->n_split = p->n_split;
    step_record(b, kernel, (uint32_t)(a->layer.n_kv_heads * (p->n_walk + p->n_split * p->units)), 1,
                1, (uint32_t)threads, (uint32_t)shared_bytes, a, sizeof *a);
}

static void attention(backend *backend_, tensor out, tensor q, kv_store *kv,
                      const attention_options *o)
{
    cuda_backend *b = cuda_self(backend_);
    const cuda_kv_layer *l = &kv->layers[o->layer];
    assert(o->n_heads % l->n_kv_heads == 0 && q.n_cols == o->n_heads * l->key_dim);
    assert(out.n_cols == o->n_heads * l->value_dim && q.n_rows == b->rows.n_tokens);
    settle_addition(b);
    settle_turns(b);
    int32_t group = o->n_heads / l->n_kv_heads;
    step_need(b, (size_t)b->rows.n_tokens * 2 * sizeof(int32_t) +
                     (size_t)b->rows.n_sequences * (size_t)page_stride(&b->rows) * sizeof(int32_t) +
                     ((size_t)b->rows.n_tokens * (size_t)group / ATTENTION_ROWS +
                      (size_t)b->rows.n_sequences) *
                         sizeof(attention_tile));
    attention_args a = {.layer = *l,
                        .pages = kv->pages,
                        .page_bytes = kv->page_bytes,
                        .page_ids = staged_page_ids(b),
                        .q = q.data,
                        .out = out.data,
                        .partials = b->partials,
                        .n_heads = o->n_heads,
                        .group = group,
                        .window = o->window,
                        .scale = o->scale,
                        .soft_cap = o->soft_cap};
    const attention_plan *p = attention_find_plan(b, l, group);
    a.units = p->units;
    a.fresh = writing_taken_along(b, p, &a, out);
    settle_writing(b);
    wrote(b, out);
    uint32_t heads = (uint32_t)l->n_kv_heads;
    if (p->staged) {
        record_staged(b, p, &a);
    } else if (p->n_walk > 0) {
        a.tiles = p->walk;
        a.n_tiles = p->n_walk;
        a.warp_bytes = warp_bytes(l, 1);
        int32_t warps = b->shared_most / a.warp_bytes;
        warps = warps < 1 ? 1 : warps > 4 ? 4 : warps;
        step_record(b, cuda_kernel_attention_walk(), (uint32_t)((p->n_walk + warps - 1) / warps),
                    heads, 1, (uint32_t)warps * 32, (uint32_t)(warps * a.warp_bytes), &a, sizeof a);
    }
    if (p->n_split > 0) {
        a.tiles = p->split;
        a.n_tiles = p->n_split;
        a.warp_bytes = warp_bytes(l, 0);
        if (!p->staged)
            step_record(b, cuda_kernel_attention_split(), (uint32_t)a.units / 4, heads,
                        (uint32_t)p->n_split, 128, (uint32_t)a.warp_bytes, &a, sizeof a);
        if (p->n_walk == 0 && l->value_dim % 8 == 0) {
            a.positions = staged_positions(b, b->rows.positions, b->rows.n_tokens);
            a.p = prepare_along(b, out);
            record(b, cuda_kernel_attention_combine_row(), (uint32_t)out.n_rows, 1,
                   row_threads(out.n_cols), &a, sizeof a);
        } else {
            step_record(b, cuda_kernel_attention_combine(), (uint32_t)p->most_queries, heads,
                        (uint32_t)p->n_split, 64, 0, &a, sizeof a);
        }
    }
    finish(b);
}

/* ---- products ---------------------------------------------------------------------------------------- */

static void multiply_floats(cuda_backend *b, tensor out, tensor x, const weight *w,
                            const weight *bias)
{
    matmul_args a = {.x_floats = x.data, .count = 1, .n_tokens = x.n_rows};
    a.w[0] = *packed_of(w);
    a.out[0] = out.data;
    a.bias[0] = vector_of(bias, w->n_rows);
    record(b, cuda_kernel_matmul_f32(), (uint32_t)(w->n_rows + 3) / 4, (uint32_t)(x.n_rows + 3) / 4,
           128, &a, sizeof a);
}

/* One launch can have both. */
static int alike(const packed *a, const packed *b)
{
    return a->kind == b->kind && a->k_scales == b->k_scales && a->table == b->table;
}

/* Weights from .. on that are of one kind, at most MATMUL_WEIGHTS; returns the next. */
static int32_t multiply_alike(cuda_backend *b, const tensor *outs, tensor x,
                              const weight *const *ws, const weight *const *biases, int32_t from,
                              int32_t count, prepared p)
{
    matmul_args a = {.x = p, .n_tokens = x.n_rows, .parts = b->parts, .counters = b->counters};
    int32_t kind = packed_of(ws[from])->kind, k_scales = packed_of(ws[from])->k_scales, i = from;
    int64_t tiles = 0;
    for (int32_t j = from; j < count && alike(packed_of(ws[j]), packed_of(ws[from])); j++)
        tiles += packed_of(ws[j])->row_tiles;
    int which = p.tiles ? products_choose_wide(x.n_rows)
                        : products_choose(b, b->resident[kind][k_scales], x.n_rows, tiles);
    matmul_kernel k = cuda_matmul_kernel(b, kind, k_scales, which);
    for (; i < count && a.count < MATMUL_WEIGHTS && alike(packed_of(ws[i]), packed_of(ws[from]));
         i++) {
        int32_t j = a.count++;
        a.w[j] = *packed_of(ws[i]);
        a.out[j] = outs[i].data;
        a.bias[j] = biases ? vector_of(biases[i], ws[i]->n_rows) : NULL;
        a.first_block[j + 1] = a.first_block[j] + (ws[i]->n_rows + k.tile_rows - 1) / k.tile_rows;
    }
    int32_t blocks = a.first_block[a.count], resident = b->resident[kind][k_scales][which];
    int32_t token_blocks = (x.n_rows + k.tile_tokens - 1) / k.tile_tokens;
    if (k.persistent == 2) {
        blocks = products_divide(&a, blocks * token_blocks, resident);
        token_blocks = 1;
    } else if (k.persistent && blocks > resident) {
        blocks = resident;
    }
    step_record(b, k.function, (uint32_t)blocks, (uint32_t)token_blocks, 1, (uint32_t)k.threads,
                (uint32_t)k.shared_bytes, &a, sizeof a);
    return i;
}

static void multiply_rows(cuda_backend *b, const tensor *outs, tensor x, const weight *const *ws,
                          const weight *const *biases, int32_t count)
{
    for (int32_t i = 0; i < count;) {
        if (packed_of(ws[i])->kind == PACKED_F32) {
            multiply_floats(b, outs[i], x, ws[i], biases ? biases[i] : NULL);
            i++;
        } else {
            i = multiply_alike(b, outs, x, ws, biases, i, count, prepare(b, x));
        }
    }
}

static void matmul(backend *backend_, const tensor *outs, tensor x, const weight *const *ws,
                   const weight *const *biases, int32_t count)
{
    cuda_backend *b = cuda_self(backend_);
    assert(count <= 8);
    operations_settle(b);
    for (int32_t i = 0; i < count; i++)
        assert(ws[i]->n_cols == x.n_cols && outs[i].n_cols == ws[i]->n_rows &&
               outs[i].n_rows == x.n_rows);
    int32_t chunk = x.n_rows;
    while (chunk > 8 && prepared_size(chunk, x.n_cols) > b->prepared_bytes)
        chunk = (chunk / 2 + 7) / 8 * 8;
    for (int32_t t = 0; t < x.n_rows; t += chunk) {
        int32_t n = x.n_rows - t < chunk ? x.n_rows - t : chunk;
        tensor parts[8];
        for (int32_t i = 0; i < count; i++)
            parts[i] = tensor_rows(outs[i], t, n);
        multiply_rows(b, parts, tensor_rows(x, t, n), ws, biases, count);
    }
    for (int32_t i = 0; i < count; i++)
        wrote(b, outs[i]);
    finish(b);
}

/* The products' kernels: 8, 16, 32 or 64 tokens, then tiles. */
static int32_t filled_rows(const backend *b, int32_t n_rows)
{
    (void)b;
    for (int32_t rows = 8; rows <= 64; rows *= 2)
        if (n_rows <= rows)
            return rows;
    return (n_rows + 127) / 128 * 128;
}

void operations_fill(backend_table *table)
{
    table->embed = embed;
    table->norm = norm;
    table->matmul = matmul;
    table->apply_rope = apply_rope;
    table->kv_write = kv_write;
    table->attention = attention;
    table->gated = gated;
    table->add = add;
    table->soft_cap = soft_cap;
    table->gather = gather;
    table->filled_rows = filled_rows;
}
