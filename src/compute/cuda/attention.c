/* compute/cuda/attention.c: rotations, the writing of keys and values, and attention, as launches of kernels, with what these
 * need of a step's rows on the device, which is staged when first asked for. Rotations wait for the writing of keys, and that for
 * attention (cuda_backend.h). */
#include <assert.h>
#include <string.h>

#include "compute/cuda/cuda_backend.h"

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

/* ---- what waits ---------------------------------------------------------------------------------- */

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

void attention_settle_turns(cuda_backend *b)
{
    int32_t n = b->turns.n;
    if (n == 0)
        return;
    rope_args a = turns_as_arguments(b);
    b->turns.n = 0;
    step_record_rows(b, cuda_kernel_rope(), (uint32_t)b->turns.x[0].n_rows, (uint32_t)n, 256, &a,
                     sizeof a);
}

void attention_settle_writing(cuda_backend *b)
{
    if (!b->writing.waiting)
        return;
    b->writing.waiting = 0;
    kv_write_args a = b->writing.args;
    a.slots = staged_slots(b);
    int32_t heads, threads;
    const void *kernel = cuda_kernel_kv_write(&a, &heads, &threads);
    step_record_rows(b, kernel, (uint32_t)b->writing.k.n_rows,
                     (uint32_t)((a.layer.n_kv_heads + heads - 1) / heads), (uint32_t)threads, &a,
                     sizeof a);
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
    step_record_rows(b, cuda_kernel_angles(), (uint32_t)((count + 127) / 128), 1, 128, &a,
                     sizeof a);
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
    operations_settle_product(b);
    operations_settle_addition(b);
    attention_settle_writing(b);
    inputs_need_floats(b, x);
    if (b->turns.n == 2 ||
        (b->turns.n == 1 &&
         (b->turns.rope != r || b->turns.positions != positions ||
          b->turns.x[0].n_rows != x.n_rows || tensors_overlap(b->turns.x[0], x))))
        attention_settle_turns(b);
    operations_wrote(b, x);
    if (x.n_rows > 0 && r->n_rot > 0) {
        b->turns.rope = r;
        b->turns.positions = positions;
        b->turns.x[b->turns.n] = x;
        b->turns.head_dim[b->turns.n] = head_dim;
        b->turns.n++;
    }
    operations_finish(b);
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
    operations_settle_product(b);
    operations_settle_addition(b);
    attention_settle_writing(b);
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
    operations_finish(b);
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
    operations_settle_addition(b);
    attention_settle_turns(b);
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
    attention_settle_writing(b);
    operations_wrote(b, out);
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
            step_record_rows(b, cuda_kernel_attention_combine_row(), (uint32_t)out.n_rows, 1,
                             cuda_row_threads(out.n_cols), &a, sizeof a);
        } else {
            step_record(b, cuda_kernel_attention_combine(), (uint32_t)p->most_queries, heads,
                        (uint32_t)p->n_split, 64, 0, &a, sizeof a);
        }
    }
    operations_finish(b);
}

void attention_fill(backend_table *table)
{
    table->apply_rope = apply_rope;
    table->kv_write = kv_write;
    table->attention = attention;
}
