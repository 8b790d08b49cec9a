/* compute/cuda/operations.c: each operation of backend.h as launches of kernels.
 *
 * Three things are done beside that. What several launches of a step need of its rows is staged once.
 * A product's input, made halves, is kept while its source is unchanged, and operations whose results
 * products read (norm, gated) make it on their way (inputs.c). And four kinds of operation wait for the next one:
 * a product that adds to the stream, which then also makes the norm that follows; an addition, which a norm of its
 * result takes along; rotations, which the writing of keys takes along; and that, which attention over them takes along.
 * Anything else that comes settles them first, so the order of effects is as called. */
#include <assert.h>
#include <string.h>

#include "compute/cuda/cuda_backend.h"

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

/* out has a new content. */
static void wrote(cuda_backend *b, tensor out)
{
    inputs_wrote(b, out);
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
                   .n_elements = (int64_t)tensor_elements(out),
                   .factor = b->addition.scale};
    uint32_t blocks = (uint32_t)((tensor_elements(out) + 1023) / 1024);
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

static void record_product(cuda_backend *b, matmul_args *a, const packed *w, prepared x);

/* The product alone; then an addition waits. */
static void settle_product(cuda_backend *b)
{
    if (!b->product.waiting)
        return;
    b->product.waiting = 0;
    matmul_args a = {.n_tokens = b->product.x.n_rows, .out = {b->product.room.data}};
    record_product(b, &a, b->product.w, b->product.in);
    b->addition.waiting = 1;
    b->addition.out = b->addition.x = b->product.x;
    b->addition.y = b->product.room;
    b->addition.scale = b->product.scale;
}

void operations_settle(cuda_backend *b)
{
    settle_product(b);
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

/* The product that waits adds to x and makes what products read of its norm. */
static void multiply_and_norm(cuda_backend *b, tensor out, tensor x, const float *gain,
                              float epsilon)
{
    b->product.waiting = 0;
    matmul_args a = {.n_tokens = x.n_rows,
                     .out = {x.data},
                     .epilogue = EPILOGUE_NORM,
                     .factor = b->product.scale,
                     .next = inputs_norm_in_parts(b, out, x, gain, epsilon)};
    record_product(b, &a, b->product.w, b->product.in);
    b->landed = (tensor){0};
    b->last = out;
}

static void norm(backend *backend_, tensor out, tensor x, norm_kind kind, const weight *gain,
                 const weight *bias, float epsilon)
{
    cuda_backend *b = cuda_self(backend_);
    assert(out.n_rows == x.n_rows && out.n_cols == x.n_cols);
    norm_args a = {.out = out.data,
                   .x = x.data,
                   .gain = vector_of(gain, x.n_cols),
                   .bias = vector_of(bias, x.n_cols),
                   .n_cols = x.n_cols,
                   .kind = (int32_t)kind,
                   .epsilon = epsilon};
    /* Norms of heads are rotated next, not multiplied. */
    int is_input = (!b->in_step || out.n_rows <= b->rows.n_tokens) && inputs_fit(b, out);
    int is_rms = is_input && kind == NORM_RMS && !bias;
    if (is_rms && b->product.waiting && b->product.x.data == x.data && b->turns.n == 0 &&
        b->product.x.n_rows == x.n_rows && !tensors_overlap(out, x)) {
        multiply_and_norm(b, out, x, a.gain, epsilon);
        return;
    }
    settle_product(b);
    inputs_need_floats(b, x);
    int along = b->addition.waiting && b->addition.out.data == x.data && b->turns.n == 0 &&
                b->addition.out.n_cols == x.n_cols && b->addition.out.n_rows == x.n_rows &&
                !tensors_overlap(out, x);
    if (along) {
        b->addition.waiting = 0;
        a.sum = x.data;
        a.x = b->addition.x.data;
        a.y = b->addition.y.data;
        a.factor = b->addition.scale;
    }
    operations_settle(b);
    if (is_rms) {
        inputs_norm(b, out, x, &a);
        b->landed = (tensor){0};
        b->last = out;
    } else {
        wrote(b, out);
        a.p = is_input ? inputs_along(b, out) : (prepared){0};
        record(b, cuda_kernel_norm(&a), (uint32_t)x.n_rows, 1, cuda_row_threads(x.n_cols), &a,
               sizeof a);
    }
    finish(b);
}

static void gated(backend *backend_, tensor out, tensor gate, tensor up, activation_kind kind)
{
    cuda_backend *b = cuda_self(backend_);
    assert(tensor_elements(out) == tensor_elements(gate) &&
           tensor_elements(gate) == tensor_elements(up));
    operations_settle(b);
    inputs_need_floats(b, gate);
    inputs_need_floats(b, up);
    wrote(b, out);
    rows_args a = {.out = out.data,
                   .x = gate.data,
                   .y = up.data,
                   .p = inputs_along(b, out),
                   .n_cols = out.n_cols,
                   .kind = (int32_t)kind};
    /* Parts are whole tiles of columns (rows.cu). A cluster's blocks agree on the largest element, so
     * how many there are changes no bit. */
    uint32_t parts = b->major >= 9 && out.n_cols >= 2048 ? 8 : 1;
    int32_t tiles = (out.n_cols + PACKED_COLS - 1) / PACKED_COLS;
    int32_t part = (tiles + (int32_t)parts - 1) / (int32_t)parts * PACKED_COLS;
    step_record_cluster(b, cuda_kernel_gated(), parts, (uint32_t)out.n_rows, cuda_row_threads(part),
                        &a, sizeof a);
    finish(b);
}

/* x stays known as what was normed: it has grown. */
static void grew(cuda_backend *b, tensor x)
{
    row_sums *sums = inputs_sums_of(b, x);
    wrote(b, x);
    if (sums)
        b->stream_of = x;
}

static void add(backend *backend_, tensor out, tensor x, tensor y, float scale)
{
    cuda_backend *b = cuda_self(backend_);
    assert(tensor_elements(out) == tensor_elements(x) && tensor_elements(x) == tensor_elements(y));
    operations_settle(b);
    inputs_need_floats(b, x);
    inputs_need_floats(b, y);
    if (out.data == x.data)
        grew(b, out);
    else
        wrote(b, out);
    b->addition.waiting = tensor_elements(out) > 0;
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
    inputs_need_floats(b, x);
    wrote(b, x);
    rows_args a = {
        .out = x.data, .x = x.data, .n_elements = (int64_t)tensor_elements(x), .factor = cap};
    record(b, cuda_kernel_soft_cap(), (uint32_t)((tensor_elements(x) + 1023) / 1024), 1, 256, &a,
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
    inputs_need_floats(b, x);
    if (tensors_overlap(out, x)) {
        wrote(b, out);
        gather_in_order(b, out, x, rows);
    } else {
        rows_args a = {.out = out.data,
                       .x = x.data,
                       .rows = step_stage(b, rows, (size_t)out.n_rows * sizeof *rows),
                       .n_cols = x.n_cols};
        inputs_gathered(b, out, &a, x);
        b->landed = (tensor){0};
        b->last = out;
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
    settle_product(b);
    settle_addition(b);
    settle_writing(b);
    inputs_need_floats(b, x);
    if (b->turns.n == 2 ||
        (b->turns.n == 1 &&
         (b->turns.rope != r || b->turns.positions != positions ||
          b->turns.x[0].n_rows != x.n_rows || tensors_overlap(b->turns.x[0], x))))
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
    settle_product(b);
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
        r->n_pairs * 2 != a->layer.key_dim || tensors_overlap(out, b->writing.k) ||
        tensors_overlap(out, b->writing.v))
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
    inputs_attended(b, out);
    uint32_t heads = (uint32_t)l->n_kv_heads;
    /* Tiles in pieces cost more than a kernel of their own. */
    if (p->staged && p->n_split == 0 && inputs_fit(b, out) && !inputs_are_tiles(b, out.n_rows))
        a.p = inputs_in_parts(b, out);
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
            a.p = inputs_along(b, out);
            record(b, cuda_kernel_attention_combine_row(), (uint32_t)out.n_rows, 1,
                   cuda_row_threads(out.n_cols), &a, sizeof a);
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
    return a->kind == b->kind && a->k_scales == b->k_scales && a->table == b->table && !a->pair &&
           !b->pair;
}

/* The kernel for a's tokens and weights of so many tiles of rows. */
static int choose(const cuda_backend *b, const packed *w, int32_t n_tokens, int64_t tiles,
                  int is_wide)
{
    return is_wide ? products_choose_wide(n_tokens)
                   : products_choose(b, b->resident[w->kind][w->k_scales], n_tokens, tiles);
}

/* Of a's weights, which are alike; tiles: of all their rows. */
static void record_alike(cuda_backend *b, matmul_args *a, prepared x, int64_t tiles)
{
    const packed *w = &a->w[0];
    int which = choose(b, w, a->n_tokens, tiles, (int)x.tiles);
    matmul_kernel k = cuda_matmul_kernel(b, w->kind, w->k_scales, which, a->epilogue);
    /* Kernels for few tokens look for themselves whether halves fit. */
    a->x = which <= MATMUL_64 ? x : inputs_settle(b, x);
    a->parts = b->parts;
    a->counters = b->counters;
    for (int32_t j = 0; j < a->count; j++)
        a->first_block[j + 1] = a->first_block[j] +
                                (a->w[j].n_rows + k.tile_rows - 1) / k.tile_rows;
    int32_t blocks = a->first_block[a->count], resident = b->resident[w->kind][w->k_scales][which];
    int32_t token_blocks = (a->n_tokens + k.tile_tokens - 1) / k.tile_tokens;
    if (k.persistent == 2) {
        blocks = products_divide(a, blocks * token_blocks, resident);
        token_blocks = 1;
    } else if (k.persistent && blocks > resident) {
        blocks = resident;
    }
    step_record(b, k.function, (uint32_t)blocks, (uint32_t)token_blocks, 1, (uint32_t)k.threads,
                (uint32_t)k.shared_bytes, a, sizeof *a);
}

/* A product of one weight, or of a pair, with what a says beside. */
static void record_product(cuda_backend *b, matmul_args *a, const packed *w, prepared x)
{
    a->count = 1;
    a->w[0] = *w;
    record_alike(b, a, x, w->row_tiles);
}

/* Weights from .. on that are of one kind, at most MATMUL_WEIGHTS; returns the next. */
static int32_t multiply_alike(cuda_backend *b, const tensor *outs, tensor x,
                              const weight *const *ws, const weight *const *biases, int32_t from,
                              int32_t count, prepared p)
{
    matmul_args a = {.n_tokens = x.n_rows};
    int32_t i = from;
    if (packed_of(ws[i])->pair) {
        assert(i + 1 < count && packed_of(ws[i])->planes == packed_of(ws[i + 1])->planes);
        assert(!biases || (!biases[i] && !biases[i + 1]));
        a.out[0] = outs[i].data;
        a.out[1] = outs[i + 1].data;
        record_product(b, &a, packed_of(ws[i]), p);
        return i + 2;
    }
    int64_t tiles = 0;
    for (int32_t j = from; j < count && alike(packed_of(ws[j]), packed_of(ws[from])); j++)
        tiles += packed_of(ws[j])->row_tiles;
    for (; i < count && a.count < MATMUL_WEIGHTS && alike(packed_of(ws[i]), packed_of(ws[from]));
         i++) {
        int32_t j = a.count++;
        a.w[j] = *packed_of(ws[i]);
        a.out[j] = outs[i].data;
        a.bias[j] = biases ? vector_of(biases[i], ws[i]->n_rows) : NULL;
    }
    record_alike(b, &a, p, tiles);
    return i;
}

static void multiply_rows(cuda_backend *b, const tensor *outs, tensor x, const weight *const *ws,
                          const weight *const *biases, int32_t count)
{
    for (int32_t i = 0; i < count;) {
        if (packed_of(ws[i])->kind == PACKED_F32) {
            inputs_need_floats(b, x);
            multiply_floats(b, outs[i], x, ws[i], biases ? biases[i] : NULL);
            i++;
        } else {
            i = multiply_alike(b, outs, x, ws, biases, i, count, inputs_prepare(b, x));
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

/* Whether a product of x has the epilogue. */
static int has_epilogue(const cuda_backend *b, const packed *w, tensor x, int epilogue)
{
    if (w->kind == PACKED_F32 || !inputs_fit(b, x))
        return 0;
    int which = choose(b, w, x.n_rows, w->row_tiles, inputs_are_tiles(b, x.n_rows));
    return cuda_matmul_kernel(b, w->kind, w->k_scales, which, epilogue).function != NULL;
}

/* x as an input that a product takes as it is, whatever is prepared until that is recorded. */
static prepared prepare_for(cuda_backend *b, tensor x)
{
    prepared p = inputs_prepare(b, x);
    return p.tiles ? inputs_settle(b, p) : p;
}

static void gated_matmul(backend *backend_, tensor out, tensor up, tensor x,
                         const weight *const ws[2], activation_kind kind)
{
    cuda_backend *b = cuda_self(backend_);
    const packed *w = packed_of(ws[0]);
    if (!w->pair || out.n_cols % PACKED_COLS != 0 || !inputs_fit(b, out) ||
        !has_epilogue(b, w, x, EPILOGUE_GATED)) {
        const tensor outs[] = {out, up};
        matmul(backend_, outs, x, ws, NULL, 2);
        gated(backend_, out, out, up, kind);
        return;
    }
    operations_settle(b);
    prepared in = prepare_for(b, x);
    wrote(b, up);
    wrote(b, out);
    matmul_args a = {.n_tokens = x.n_rows,
                     .out = {out.data},
                     .epilogue = EPILOGUE_GATED,
                     .activation = (int32_t)kind};
    a.next = inputs_in_parts(b, out);
    assert(a.next.tiles == in.tiles);
    record_product(b, &a, w, in);
    finish(b);
}

static void matmul_add(backend *backend_, tensor x, tensor room, tensor in, const weight *w_,
                       float scale)
{
    cuda_backend *b = cuda_self(backend_);
    const packed *w = packed_of(w_);
    operations_settle(b);
    if (!b->in_step || x.n_cols % PACKED_COLS != 0 || !inputs_sums_of(b, x) ||
        !has_epilogue(b, w, in, EPILOGUE_NORM)) {
        matmul(backend_, &room, in, &w_, NULL, 1);
        add(backend_, x, x, room, scale);
        return;
    }
    b->product.in = prepare_for(b, in);
    grew(b, x);
    b->product.waiting = x.n_rows > 0;
    b->product.x = x;
    b->product.room = room;
    b->product.w = w;
    b->product.scale = scale;
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
    table->gated_matmul = gated_matmul;
    table->matmul_add = matmul_add;
    table->add = add;
    table->soft_cap = soft_cap;
    table->gather = gather;
    table->filled_rows = filled_rows;
}
