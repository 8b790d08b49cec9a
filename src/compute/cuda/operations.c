/* compute/cuda/operations.c: operations of backend.h on rows and elements as launches of kernels, and what waits.
 *
 * Three things are done beside that, here and in products.c and attention.c. What several launches of a step need of its rows is staged once.
 * A product's input, made halves, is kept while its source is unchanged, and operations whose results
 * products read (norm, gated) make it on their way (inputs.c). And four kinds of operation wait for the next one:
 * a product that adds to the stream, which then also makes the norm that follows; an addition, which a norm of its
 * result takes along; rotations, which the writing of keys takes along; and that, which attention over them takes along.
 * Anything else that comes settles them first, so the order of effects is as called. */
#include <assert.h>
#include <string.h>

#include "compute/cuda/cuda_backend.h"

/* out is the last result, of which the host has nothing yet. */
static void is_last(cuda_backend *b, tensor out)
{
    b->landed = (tensor){0};
    b->last = out;
}

void operations_wrote(cuda_backend *b, tensor out)
{
    inputs_wrote(b, out);
    is_last(b, out);
}

void operations_grew(cuda_backend *b, tensor x)
{
    row_sums *sums = inputs_sums_of(b, x);
    operations_wrote(b, x);
    if (sums)
        b->stream_of = x;
}

void operations_finish(cuda_backend *b)
{
    if (b->in_step)
        return;
    operations_settle(b);
    step_flush(b);
}

/* ---- what waits -------------------------------------------------------------------------------------- */

void operations_settle_addition(cuda_backend *b)
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
    step_record_rows(b, cuda_kernel_add(), blocks, 1, 256, &a, sizeof a);
}

/* The product alone; then an addition waits. */
void operations_settle_product(cuda_backend *b)
{
    if (!b->product.waiting)
        return;
    b->product.waiting = 0;
    matmul_args a = {.n_tokens = b->product.x.n_rows, .out = {b->product.room.data}};
    products_record(b, &a, b->product.w, b->product.in);
    b->addition.waiting = 1;
    b->addition.out = b->addition.x = b->product.x;
    b->addition.y = b->product.room;
    b->addition.scale = b->product.scale;
}

void operations_settle(cuda_backend *b)
{
    operations_settle_product(b);
    operations_settle_addition(b);
    attention_settle_turns(b);
    attention_settle_writing(b);
}

/* ---- rows and elements ------------------------------------------------------------------------------- */

static void embed(backend *backend_, tensor out, const weight *w, const int32_t *ids, float scale)
{
    cuda_backend *b = cuda_self(backend_);
    assert(out.n_cols == w->n_cols);
    operations_settle(b);
    embed_args a = {.w = *cuda_packed_of(w),
                    .out = out.data,
                    .ids = step_stage(b, ids, (size_t)out.n_rows * sizeof *ids),
                    .scale = scale};
    operations_wrote(b, out);
    step_record_rows(b, cuda_kernel_embed(), (uint32_t)out.n_rows, 1, 256, &a, sizeof a);
    operations_finish(b);
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
    products_record(b, &a, b->product.w, b->product.in);
    is_last(b, out);
}

static void norm(backend *backend_, tensor out, tensor x, norm_kind kind, const weight *gain,
                 const weight *bias, float epsilon)
{
    cuda_backend *b = cuda_self(backend_);
    assert(out.n_rows == x.n_rows && out.n_cols == x.n_cols);
    norm_args a = {.out = out.data,
                   .x = x.data,
                   .gain = cuda_vector_of(gain, x.n_cols),
                   .bias = cuda_vector_of(bias, x.n_cols),
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
    operations_settle_product(b);
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
        is_last(b, out);
    } else {
        operations_wrote(b, out);
        a.p = is_input ? inputs_along(b, out) : (prepared){0};
        step_record_rows(b, cuda_kernel_norm(&a), (uint32_t)x.n_rows, 1, cuda_row_threads(x.n_cols),
                         &a, sizeof a);
    }
    operations_finish(b);
}

static void gated(backend *backend_, tensor out, tensor gate, tensor up, activation_kind kind)
{
    cuda_backend *b = cuda_self(backend_);
    assert(tensor_elements(out) == tensor_elements(gate) &&
           tensor_elements(gate) == tensor_elements(up));
    operations_settle(b);
    inputs_need_floats(b, gate);
    inputs_need_floats(b, up);
    operations_wrote(b, out);
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
    operations_finish(b);
}

static void add(backend *backend_, tensor out, tensor x, tensor y, float scale)
{
    cuda_backend *b = cuda_self(backend_);
    assert(tensor_elements(out) == tensor_elements(x) && tensor_elements(x) == tensor_elements(y));
    operations_settle(b);
    inputs_need_floats(b, x);
    inputs_need_floats(b, y);
    if (out.data == x.data)
        operations_grew(b, out);
    else
        operations_wrote(b, out);
    b->addition.waiting = tensor_elements(out) > 0;
    b->addition.out = out;
    b->addition.x = x;
    b->addition.y = y;
    b->addition.scale = scale;
    operations_finish(b);
}

static void soft_cap(backend *backend_, tensor x, float cap)
{
    cuda_backend *b = cuda_self(backend_);
    operations_settle(b);
    inputs_need_floats(b, x);
    operations_wrote(b, x);
    rows_args a = {
        .out = x.data, .x = x.data, .n_elements = (int64_t)tensor_elements(x), .factor = cap};
    step_record_rows(b, cuda_kernel_soft_cap(), (uint32_t)((tensor_elements(x) + 1023) / 1024), 1,
                     256, &a, sizeof a);
    operations_finish(b);
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
        step_record_rows(b, cuda_kernel_gather(), 1, 1, 256, &a, sizeof a);
    }
}

static void gather(backend *backend_, tensor out, tensor x, const int32_t *rows)
{
    cuda_backend *b = cuda_self(backend_);
    assert(out.n_cols == x.n_cols);
    operations_settle(b);
    inputs_need_floats(b, x);
    if (tensors_overlap(out, x)) {
        operations_wrote(b, out);
        gather_in_order(b, out, x, rows);
    } else {
        rows_args a = {.out = out.data,
                       .x = x.data,
                       .rows = step_stage(b, rows, (size_t)out.n_rows * sizeof *rows),
                       .n_cols = x.n_cols};
        inputs_gathered(b, out, &a, x);
        is_last(b, out);
        step_record_rows(b, cuda_kernel_gather(), (uint32_t)out.n_rows, 1, 256, &a, sizeof a);
    }
    operations_finish(b);
}

void operations_fill(backend_table *table)
{
    table->embed = embed;
    table->norm = norm;
    table->gated = gated;
    table->add = add;
    table->soft_cap = soft_cap;
    table->gather = gather;
}
