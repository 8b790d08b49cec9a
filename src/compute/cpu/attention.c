/* compute/cpu/attention.c: divides one attention over the pool's threads.
 *
 * Called by the engine thread. A step's rows are cut into blocks of neighbouring tokens of one
 * sequence; a piece is a block and the heads of one kv head (or some of them, if very many share
 * it). When there are too few pieces to keep the threads busy, as when one long sequence decodes, or
 * some are too long for the others to make up for, as a few rows far into a prompt beside young
 * streams, each piece is cut into its splits of positions as well, whose sums go to scratch memory and
 * are combined in order of position. A piece that is not cut combines the same splits in the same
 * order, so cutting changes no bit. */
#include <assert.h>

#include "compute/cpu/cpu_backend.h"

/* Multiplications below which the caller does it alone: sharing costs a microsecond or two. */
#define SMALL 65536

/* Below this many pieces a thread, or above the work that so many would have each, splits of positions
 * even out the load. */
#define PIECES_A_THREAD 4

typedef struct block {
    int32_t first_row, n_tokens, sequence;
} block;

typedef struct division {
    cpu_backend *b;
    tensor out, q;
    kv_store *kv;
    const kv_layer *layer;
    const attention_options *options;
    block *blocks;
    int32_t n_blocks;
    int32_t group;           /* query heads of one kv head */
    int32_t heads, n_groups; /* heads of a piece; pieces a kv head */
    int32_t n_splits;        /* of the longest piece, when cut into splits */
    float *partials;         /* [n_pieces][n_splits] of partial_floats */
    size_t partial_floats;
} division;

static int32_t min32(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

/* The splits that some token of a block sees. */
static void split_range(const division *v, const block *k, int32_t *first, int32_t *count)
{
    const int32_t tokens = ATTENTION_SPLIT_PAGES * KV_PAGE_TOKENS;
    int32_t position = v->b->rows.positions[k->first_row], window = v->options->window;
    int32_t from = window > 0 && position >= window ? position - window + 1 : 0;
    *first = from / tokens;
    *count = (position + k->n_tokens - 1) / tokens - *first + 1;
}

static attention_piece piece_at(const division *v, int64_t index)
{
    int64_t per_block = (int64_t)v->layer->n_kv_heads * v->n_groups;
    const block *k = &v->blocks[index / per_block];
    int32_t kv_head = (int32_t)(index % per_block) / v->n_groups;
    int32_t first_head = (int32_t)(index % per_block) % v->n_groups * v->heads;
    int32_t head = kv_head * v->group + first_head;
    attention_piece p = {
        .kv = v->kv,
        .layer = v->layer,
        .page_table = v->b->rows.page_tables[k->sequence],
        .options = v->options,
        .q_stride = (size_t)v->q.n_cols,
        .out_stride = (size_t)v->out.n_cols,
        .n_tokens = k->n_tokens,
        .n_heads = min32(v->heads, v->group - first_head),
        .kv_head = kv_head,
        .first_position = v->b->rows.positions[k->first_row],
    };
    p.q = v->q.data + (size_t)k->first_row * p.q_stride + (size_t)head * (size_t)v->layer->key_dim;
    p.out = v->out.data + (size_t)k->first_row * p.out_stride +
            (size_t)head * (size_t)v->layer->value_dim;
    split_range(v, k, &p.first_split, &p.n_splits);
    return p;
}

static void *thread_scratch(const division *v, int32_t thread)
{
    return v->b->thread_scratch + (size_t)thread * v->b->thread_scratch_bytes;
}

static void run_pieces(void *context, int64_t first, int64_t count, int32_t thread)
{
    const division *v = context;
    for (int64_t i = first; i < first + count; i++) {
        attention_piece p = piece_at(v, i);
        v->b->kernels->attention(&p, thread_scratch(v, thread));
    }
}

static void run_splits(void *context, int64_t first, int64_t count, int32_t thread)
{
    const division *v = context;
    for (int64_t i = first; i < first + count; i++) {
        attention_piece p = piece_at(v, i / v->n_splits);
        int32_t split = (int32_t)(i % v->n_splits);
        if (split >= p.n_splits)
            continue;
        p.first_split += split;
        p.partial = v->partials + (size_t)i * v->partial_floats;
        v->b->kernels->attention(&p, thread_scratch(v, thread));
    }
}

static void combine_splits(void *context, int64_t first, int64_t count, int32_t thread)
{
    const division *v = context;
    (void)thread;
    for (int64_t i = first; i < first + count; i++) {
        attention_piece p = piece_at(v, i);
        v->b->kernels->attention_combine(
            &p, v->partials + (size_t)i * (size_t)v->n_splits * v->partial_floats,
            v->partial_floats, p.n_splits);
    }
}

/* Fills blocks; returns how many. */
static int32_t cut_blocks(block *blocks, const step_rows *rows, int32_t most_tokens)
{
    int32_t count = 0;
    for (int32_t i = 0; i < rows->n_tokens;) {
        int32_t n = 1;
        while (n < most_tokens && i + n < rows->n_tokens &&
               rows->sequences[i + n] == rows->sequences[i])
            n++;
        blocks[count++] = (block){i, n, rows->sequences[i]};
        i += n;
    }
    return count;
}

/* Whether so many pieces as they are keep all threads busy to the end. All pieces of a block are alike. */
static int are_even(const division *v, int64_t n_pieces)
{
    int64_t fair = (int64_t)PIECES_A_THREAD * pool_threads(v->b->pool), all = 0, most = 0;
    if (n_pieces < fair)
        return 0;
    for (int32_t i = 0; i < v->n_blocks; i++) {
        int32_t first, count;
        split_range(v, &v->blocks[i], &first, &count);
        int64_t work = (int64_t)count * v->blocks[i].n_tokens;
        all += work;
        most = work > most ? work : most;
    }
    return most * fair <= all * (n_pieces / v->n_blocks);
}

/* Whether the work is to be cut into splits, and if so lays out their sums. */
static int plan_splits(division *v, int64_t n_pieces)
{
    if (!v->b->kernels->attention_combine || pool_threads(v->b->pool) == 1 || are_even(v, n_pieces))
        return 0;
    int32_t most_tokens = 0;
    for (int32_t i = 0; i < v->n_blocks; i++) {
        int32_t first, count;
        split_range(v, &v->blocks[i], &first, &count);
        v->n_splits = count > v->n_splits ? count : v->n_splits;
        most_tokens = v->blocks[i].n_tokens > most_tokens ? v->blocks[i].n_tokens : most_tokens;
    }
    v->partial_floats = (size_t)most_tokens * (size_t)v->heads * attention_row_floats(v->layer);
    size_t used = ((size_t)v->b->rows.n_tokens * sizeof(block) + 63) & ~(size_t)63;
    size_t need = (size_t)n_pieces * (size_t)v->n_splits * v->partial_floats * sizeof(float);
    v->partials = (float *)(void *)(v->b->scratch + used);
    return v->n_splits > 1 && used <= v->b->scratch_bytes && need <= v->b->scratch_bytes - used;
}

/* Multiplications in all, about. */
static int64_t work_of(const division *v)
{
    int64_t keys = 0;
    for (int32_t i = 0; i < v->b->rows.n_tokens; i++)
        keys += v->b->rows.positions[i] + 1;
    return keys * v->options->n_heads * (v->layer->key_dim + v->layer->value_dim);
}

void attention_run(backend *backend_, tensor out, tensor q, kv_store *kv,
                   const attention_options *options)
{
    cpu_backend *b = (cpu_backend *)backend_;
    const kv_layer *l = &kv->layers[options->layer];
    division v = {.b = b,
                  .out = out,
                  .q = q,
                  .kv = kv,
                  .layer = l,
                  .options = options,
                  .group = options->n_heads / l->n_kv_heads};
    assert(q.n_rows == b->rows.n_tokens && out.n_rows == q.n_rows);
    assert(options->n_heads % l->n_kv_heads == 0);
    assert(q.n_cols == options->n_heads * l->key_dim &&
           out.n_cols == options->n_heads * l->value_dim);
    assert((size_t)b->rows.n_tokens * sizeof(block) <= b->scratch_bytes);
    v.heads = min32(v.group, ATTENTION_QUERIES);
    v.n_groups = (v.group + v.heads - 1) / v.heads;
    v.blocks = (block *)(void *)b->scratch;
    v.n_blocks = cut_blocks(v.blocks, &b->rows, ATTENTION_QUERIES / v.heads);
    int64_t n_pieces = (int64_t)v.n_blocks * l->n_kv_heads * v.n_groups;
    if (work_of(&v) < SMALL) {
        run_pieces(&v, 0, n_pieces, 0);
        return;
    }
    if (!plan_splits(&v, n_pieces)) {
        pool_run(b->pool, run_pieces, &v, n_pieces, 1);
        return;
    }
    pool_run(b->pool, run_splits, &v, n_pieces * v.n_splits, 1);
    pool_run(b->pool, combine_splits, &v, n_pieces, 1);
}
