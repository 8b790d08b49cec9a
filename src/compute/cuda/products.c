/* compute/cuda/products.c: products as launches of kernels: which kernel multiplies, what its blocks do, and what becomes
 * of results. */
#include <assert.h>

#include "compute/cuda/cuda_backend.h"

/* ---- which kernel --------------------------------------------------------------------------------- */

#ifdef REALM_CUDA_WGMMA
static matmul_kernel stream_kernel(int32_t kind, int32_t k_scales, int which, int epilogue)
{
    switch (kind) {
    case PACKED_F16: return cuda_kernel_stream_f16(which, epilogue);
    case PACKED_Q8: return cuda_kernel_stream_q8(which, epilogue);
    case PACKED_Q4:
        return k_scales ? cuda_kernel_stream_q4k(which, epilogue)
                        : cuda_kernel_stream_q4(which, epilogue);
    case PACKED_Q5:
        return k_scales ? cuda_kernel_stream_q5k(which, epilogue)
                        : cuda_kernel_stream_q5(which, epilogue);
    case PACKED_Q6: return cuda_kernel_stream_q6(which, epilogue);
    case PACKED_Q3: return cuda_kernel_stream_q3(which, epilogue);
    case PACKED_Q2: return cuda_kernel_stream_q2(which, epilogue);
    default: return cuda_kernel_stream_t4(which, epilogue);
    }
}
#endif

matmul_kernel cuda_matmul_kernel(const cuda_backend *b, int32_t kind, int32_t k_scales, int which,
                                 int epilogue)
{
#ifdef REALM_CUDA_WGMMA
    if (b->wgmma && which >= MATMUL_64_WIDE)
        return stream_kernel(kind, k_scales, which, epilogue);
#else
    (void)b;
#endif
    switch (kind) {
    case PACKED_F16: return cuda_kernel_matmul_f16(which, epilogue);
    case PACKED_Q8: return cuda_kernel_matmul_q8(which, epilogue);
    case PACKED_Q4:
        return k_scales ? cuda_kernel_matmul_q4k(which, epilogue)
                        : cuda_kernel_matmul_q4(which, epilogue);
    case PACKED_Q5:
        return k_scales ? cuda_kernel_matmul_q5k(which, epilogue)
                        : cuda_kernel_matmul_q5(which, epilogue);
    case PACKED_Q6: return cuda_kernel_matmul_q6(which, epilogue);
    case PACKED_Q3: return cuda_kernel_matmul_q3(which, epilogue);
    case PACKED_Q2: return cuda_kernel_matmul_q2(which, epilogue);
    default: return cuda_kernel_matmul_t4(which, epilogue);
    }
}

/* Shares of so many segments are not worth what adding up their sums costs: another two or so. */
#define SHARE_MOST 5

/* Divides so many places among blocks (stream.cu), at most as many as can run at once, and says how many blocks. */
static int32_t divide(matmul_args *a, int32_t places, int32_t resident)
{
    int32_t rounds = (places + resident - 1) / resident, blocks;
    a->whole = places / resident;
    int32_t left = places % resident;
    /* If next to nothing is lost by it all are whole. */
    int all_whole = places * 10 >= rounds * resident * 9;
    for (a->share = all_whole ? PACKED_SEGMENTS : 1;; a->share++) {
        if (a->share > SHARE_MOST)
            a->share = PACKED_SEGMENTS;
        int32_t rest = PACKED_SEGMENTS % a->share;
        blocks = PACKED_SEGMENTS / a->share * left + (left * rest + a->share - 1) / a->share;
        if (blocks <= resident)
            return a->whole > 0 ? resident : blocks;
    }
}

/* Whether blocks of twice as many rows are done sooner with so many tiles of rows: they take about 1.7 times as long
 * for them, but both kinds of blocks go over the rows in whole rounds. */
static int is_long(int64_t resident, int64_t resident_long, int64_t tiles)
{
    if (resident == 0 || resident_long == 0)
        return resident == 0;
    int64_t rounds = (tiles + resident - 1) / resident,
            rounds_long = ((tiles + 1) / 2 + resident_long - 1) / resident_long;
    return rounds_long * 17 < rounds * 10;
}

/* Of the kernels that can run here, for so many tokens and tiles of rows like w's; is_wide: of those whose activations are
 * tiles. */
static int choose(const cuda_backend *b, const packed *w, int32_t n_tokens, int64_t tiles,
                  int is_wide)
{
    const int32_t *resident = b->resident[w->kind][w->k_scales];
    if (is_wide)
        return n_tokens <= 64 ? MATMUL_64_WIDE : MATMUL_TILES;
    /* No multiprocessor would have two blocks of two tiles. */
    int is_short = tiles <= 2 * b->n_multiprocessors;
    if (n_tokens <= 8 && (resident[MATMUL_8] > 0 || resident[MATMUL_8_LONG] > 0))
        return is_long(resident[MATMUL_8], resident[MATMUL_8_LONG], tiles) ? MATMUL_8_LONG
                                                                           : MATMUL_8;
    if (n_tokens <= 16 && is_short && resident[MATMUL_16_SHORT] > 0)
        return MATMUL_16_SHORT;
    if (n_tokens <= 16 && resident[MATMUL_16] > 0)
        return MATMUL_16;
    if (n_tokens <= 32 && is_short && resident[MATMUL_32_SHORT] > 0)
        return MATMUL_32_SHORT;
    if (n_tokens <= 32 && resident[MATMUL_32] > 0)
        return MATMUL_32;
    return n_tokens <= 64 && resident[MATMUL_64] > 0 ? MATMUL_64 : MATMUL_TILES;
}

/* ---- launches ------------------------------------------------------------------------------------------ */

static void multiply_floats(cuda_backend *b, tensor out, tensor x, const weight *w,
                            const weight *bias)
{
    matmul_args a = {.x_floats = x.data, .count = 1, .n_tokens = x.n_rows};
    a.w[0] = *cuda_packed_of(w);
    a.out[0] = out.data;
    a.bias[0] = cuda_vector_of(bias, w->n_rows);
    step_record_rows(b, cuda_kernel_matmul_f32(), (uint32_t)(w->n_rows + 3) / 4,
                     (uint32_t)(x.n_rows + 3) / 4, 128, &a, sizeof a);
}

/* One launch can have both. */
static int alike(const packed *a, const packed *b)
{
    return a->kind == b->kind && a->k_scales == b->k_scales && a->table == b->table && !a->pair &&
           !b->pair;
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
        blocks = divide(a, blocks * token_blocks, resident);
        token_blocks = 1;
    } else if (k.persistent && blocks > resident) {
        blocks = resident;
    }
    step_record(b, k.function, (uint32_t)blocks, (uint32_t)token_blocks, 1, (uint32_t)k.threads,
                (uint32_t)k.shared_bytes, a, sizeof *a);
}

/* A product of one weight, or of a pair, with what a says beside. */
void products_record(cuda_backend *b, matmul_args *a, const packed *w, prepared x)
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
    if (cuda_packed_of(ws[i])->pair) {
        assert(i + 1 < count && cuda_packed_of(ws[i])->planes == cuda_packed_of(ws[i + 1])->planes);
        assert(!biases || (!biases[i] && !biases[i + 1]));
        a.out[0] = outs[i].data;
        a.out[1] = outs[i + 1].data;
        products_record(b, &a, cuda_packed_of(ws[i]), p);
        return i + 2;
    }
    int64_t tiles = 0;
    for (int32_t j = from; j < count && alike(cuda_packed_of(ws[j]), cuda_packed_of(ws[from])); j++)
        tiles += cuda_packed_of(ws[j])->row_tiles;
    for (; i < count && a.count < MATMUL_WEIGHTS &&
           alike(cuda_packed_of(ws[i]), cuda_packed_of(ws[from]));
         i++) {
        int32_t j = a.count++;
        a.w[j] = *cuda_packed_of(ws[i]);
        a.out[j] = outs[i].data;
        a.bias[j] = biases ? cuda_vector_of(biases[i], ws[i]->n_rows) : NULL;
    }
    record_alike(b, &a, p, tiles);
    return i;
}

static void multiply_rows(cuda_backend *b, const tensor *outs, tensor x, const weight *const *ws,
                          const weight *const *biases, int32_t count)
{
    for (int32_t i = 0; i < count;) {
        if (cuda_packed_of(ws[i])->kind == PACKED_F32) {
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
        operations_wrote(b, outs[i]);
    operations_finish(b);
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
    const packed *w = cuda_packed_of(ws[0]);
    if (!w->pair || out.n_cols % PACKED_COLS != 0 || !inputs_fit(b, out) ||
        !has_epilogue(b, w, x, EPILOGUE_GATED)) {
        const tensor outs[] = {out, up};
        matmul(backend_, outs, x, ws, NULL, 2);
        backend_->table->gated(backend_, out, out, up, kind);
        return;
    }
    operations_settle(b);
    prepared in = prepare_for(b, x);
    operations_wrote(b, up);
    operations_wrote(b, out);
    matmul_args a = {.n_tokens = x.n_rows,
                     .out = {out.data},
                     .epilogue = EPILOGUE_GATED,
                     .activation = (int32_t)kind};
    a.next = inputs_in_parts(b, out);
    assert(a.next.tiles == in.tiles);
    products_record(b, &a, w, in);
    operations_finish(b);
}

static void matmul_add(backend *backend_, tensor x, tensor room, tensor in, const weight *w_,
                       float scale)
{
    cuda_backend *b = cuda_self(backend_);
    const packed *w = cuda_packed_of(w_);
    operations_settle(b);
    if (!b->in_step || x.n_cols % PACKED_COLS != 0 || !inputs_sums_of(b, x) ||
        !has_epilogue(b, w, in, EPILOGUE_NORM)) {
        matmul(backend_, &room, in, &w_, NULL, 1);
        backend_->table->add(backend_, x, x, room, scale);
        return;
    }
    b->product.in = prepare_for(b, in);
    operations_grew(b, x);
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

void products_fill(backend_table *table)
{
    table->matmul = matmul;
    table->gated_matmul = gated_matmul;
    table->matmul_add = matmul_add;
    table->filled_rows = filled_rows;
}
