/* compute/cpu/products.c: divides matrix products over the pool's threads, and lets products that
 * share an input share its preparation.
 *
 * Called by the engine thread. A product is two passes: tokens are prepared, once for every kernel
 * among the weights that prepares them differently (matmul.h), into the backend's scratch memory;
 * then the weights' rows, all weights' one after the other, are cut into pieces of PRODUCTS_ROWS and
 * multiplied with all tokens. Where scratch memory is too small for all tokens at once they go in
 * chunks. None of this is seen in a result: it depends on its row of weights and its token alone. */
#include <assert.h>

#include "compute/cpu/cpu_backend.h"

/* Pieces a thread gets a product in, at least, so that a thread that lost its core for a while can
 * be helped. */
#define PIECES_A_THREAD 8

typedef struct matmul_job {
    const tensor *outs;
    const weight *const *ws;
    const weight *const *biases;
    int32_t count;
    const float *x;
    int32_t first_token, n_tokens, n_cols;
    const cpu_matmul *inputs[PRODUCTS_INPUTS]; /* a kernel for each different prepare */
    void *prepared[PRODUCTS_INPUTS];
    int32_t n_inputs;
    int64_t token_groups; /* of the coarsest token_step: pieces of preparation an input */
    int32_t token_step;
    int gated; /* the two weights' pieces go together: outs[0] = act(outs[0]) * outs[1] */
    activation_kind activation;
    const cpu_kernels *kernels;
} matmul_job;

static int32_t input_of(const matmul_job *j, const cpu_matmul *kernel)
{
    int32_t i = 0;
    while (i < j->n_inputs && j->inputs[i]->prepare != kernel->prepare)
        i++;
    return i;
}

static void prepare_tokens(void *context, int64_t first, int64_t count, int32_t thread)
{
    const matmul_job *j = context;
    (void)thread;
    while (count > 0) {
        int64_t input = first / j->token_groups, group = first % j->token_groups;
        int64_t n = count < j->token_groups - group ? count : j->token_groups - group;
        int32_t token = (int32_t)group * j->token_step;
        int32_t n_tokens = (int32_t)n * j->token_step;
        n_tokens = n_tokens < j->n_tokens - token ? n_tokens : j->n_tokens - token;
        j->inputs[input]->prepare(j->prepared[input], j->x, token, n_tokens, j->n_tokens,
                                  j->n_cols);
        first += n;
        count -= n;
    }
}

static int64_t pieces_of(const weight *w)
{
    return ((int64_t)w->n_rows + PRODUCTS_ROWS - 1) / PRODUCTS_ROWS;
}

static void multiply_rows(const matmul_job *j, int32_t i, int64_t first, int64_t count)
{
    const cpu_weight *w = (const cpu_weight *)j->ws[i];
    int32_t row = (int32_t)first * PRODUCTS_ROWS, n_rows = (int32_t)count * PRODUCTS_ROWS;
    n_rows = n_rows < w->head.n_rows - row ? n_rows : w->head.n_rows - row;
    const weight *bias = j->biases ? j->biases[i] : NULL;
    tensor out = tensor_rows(j->outs[i], j->first_token, j->n_tokens);
    w->kernel->product(w, j->prepared[input_of(j, w->kernel)], j->n_tokens, out.data, out.n_cols,
                       cpu_backend_vector(bias, w->head.n_rows), row, n_rows);
}

/* The same pieces of both weights, then what is made of them. */
static void multiply_gated(void *context, int64_t first, int64_t count, int32_t thread)
{
    const matmul_job *j = context;
    (void)thread;
    multiply_rows(j, 0, first, count);
    multiply_rows(j, 1, first, count);
    int64_t row = first * PRODUCTS_ROWS, n_rows = count * PRODUCTS_ROWS, n = j->ws[0]->n_rows;
    n_rows = n_rows < n - row ? n_rows : n - row;
    for (int32_t t = j->first_token; t < j->first_token + j->n_tokens; t++) {
        float *gate = j->outs[0].data + t * n + row;
        j->kernels->gated(gate, gate, j->outs[1].data + t * n + row, n_rows, j->activation);
    }
}

/* The rows of all the weights are one sequence of pieces. */
static void multiply_pieces(void *context, int64_t first, int64_t count, int32_t thread)
{
    const matmul_job *j = context;
    (void)thread;
    for (int32_t i = 0; i < j->count && count > 0; i++) {
        int64_t pieces = pieces_of(j->ws[i]);
        if (first < pieces) {
            int64_t n = count < pieces - first ? count : pieces - first;
            multiply_rows(j, i, first, n);
            first += n;
            count -= n;
        }
        first -= pieces;
    }
}

/* Finds room for the prepared inputs of n_tokens; 0 if scratch is too small. */
static int lay_out_inputs(cpu_backend *b, matmul_job *j, int32_t n_tokens)
{
    size_t used = 0;
    for (int32_t i = 0; i < j->n_inputs; i++) {
        j->prepared[i] = b->scratch + used;
        used += (j->inputs[i]->input_bytes(n_tokens, j->n_cols) + 63) & ~(size_t)63;
    }
    return used <= b->scratch_bytes;
}

static void multiply_tokens(cpu_backend *b, matmul_job *j)
{
    j->token_step = 1;
    for (int32_t i = 0; i < j->n_inputs; i++) {
        int32_t step = matmul_token_step(j->inputs[i], j->n_tokens);
        j->token_step = step > j->token_step ? step : j->token_step;
    }
    j->token_groups = (j->n_tokens + j->token_step - 1) / j->token_step;
    cpu_backend_share(b, prepare_tokens, j, j->token_groups * j->n_inputs,
                      (int64_t)j->token_step * j->n_cols);
    int64_t pieces = 0;
    for (int32_t i = 0; i < (j->gated ? 1 : j->count); i++)
        pieces += pieces_of(j->ws[i]);
    int64_t grain = pieces / ((int64_t)pool_threads(b->pool) * PIECES_A_THREAD);
    pool_task task = j->gated ? multiply_gated : multiply_pieces;
    if (pieces * PRODUCTS_ROWS * j->n_cols < CPU_BACKEND_SMALL * 4)
        task(j, 0, pieces, 0);
    else
        pool_run(b->pool, task, j, pieces, grain > 1 ? grain : 1);
}

/* Products of j->ws[from ..] until there is one whose input would be the fourth kind; returns the
 * next. */
static int32_t collect_inputs(matmul_job *j, int32_t from, int32_t count, const weight *const *ws)
{
    int32_t i = from;
    for (; i < count; i++) {
        const cpu_matmul *kernel = ((const cpu_weight *)ws[i])->kernel;
        int32_t input = input_of(j, kernel);
        if (input == PRODUCTS_INPUTS)
            break;
        j->inputs[input] = kernel;
        j->n_inputs = input == j->n_inputs ? input + 1 : j->n_inputs;
    }
    return i;
}

/* Prepares chunks of x's rows and multiplies them with j's weights. */
static void multiply_chunks(cpu_backend *b, matmul_job *j, tensor x)
{
    int32_t chunk = x.n_rows;
    while (!lay_out_inputs(b, j, chunk) && chunk > 1)
        chunk = (chunk + 1) / 2;
    assert(lay_out_inputs(b, j, chunk));
    for (int32_t t = 0; t < x.n_rows; t += chunk) {
        j->first_token = t;
        j->n_tokens = x.n_rows - t < chunk ? x.n_rows - t : chunk;
        j->x = x.data + (size_t)t * (size_t)x.n_cols;
        multiply_tokens(b, j);
    }
}

void products_run(backend *backend_, const tensor *outs, tensor x, const weight *const *ws,
                  const weight *const *biases, int32_t count)
{
    cpu_backend *b = (cpu_backend *)backend_;
    for (int32_t i = 0; i < count; i++)
        assert(ws[i]->n_cols == x.n_cols && outs[i].n_cols == ws[i]->n_rows &&
               outs[i].n_rows == x.n_rows);
    for (int32_t from = 0, next; from < count && x.n_rows > 0; from = next) {
        matmul_job j = {.n_cols = x.n_cols};
        next = collect_inputs(&j, from, count, ws);
        j.outs = outs + from;
        j.ws = ws + from;
        j.biases = biases ? biases + from : NULL;
        j.count = next - from;
        multiply_chunks(b, &j, x);
    }
}

void products_run_gated(backend *backend_, tensor out, tensor up, tensor x,
                        const weight *const ws[2], activation_kind kind)
{
    cpu_backend *b = (cpu_backend *)backend_;
    tensor outs[] = {out, up};
    matmul_job j = {.outs = outs,
                    .ws = ws,
                    .count = 2,
                    .n_cols = x.n_cols,
                    .gated = 1,
                    .activation = kind,
                    .kernels = b->kernels};
    assert(ws[0]->n_rows == ws[1]->n_rows && out.n_cols == ws[0]->n_rows);
    assert(ws[0]->n_cols == x.n_cols && ws[1]->n_cols == x.n_cols);
    assert(out.n_rows == x.n_rows && up.n_rows == x.n_rows && up.n_cols == out.n_cols);
    collect_inputs(&j, 0, 2, ws); /* two weights, so at most two kinds of input */
    if (x.n_rows > 0)
        multiply_chunks(b, &j, x);
}
