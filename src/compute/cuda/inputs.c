/* compute/cuda/inputs.c: the input of products: whose halves they are, who makes them, and what is known of their rows
 * (input.cuh). */
#include <assert.h>

#include "compute/cuda/cuda_backend.h"

/* Rows of sums of a half of b->sums; they are cleared when an input is the first of its half, so those of the inputs
 * before it, which norms are guessed from, are still there. */
#define HALF_INPUTS 256

/* Of halves whose rows nobody has whole: gated activations and others reach from hundredths to thousands, averages of values
 * from thousandths to tens. */
#define ATTENDED_SCALE 64

/* ---- whose content is what ------------------------------------------------------------------------- */

int tensors_overlap(tensor a, tensor b)
{
    return a.data < b.data + tensor_elements(b) && b.data < a.data + tensor_elements(a);
}

static int is_within(tensor rows, tensor of)
{
    return of.data && rows.n_cols == of.n_cols && rows.data >= of.data &&
           rows.data + tensor_elements(rows) <= of.data + tensor_elements(of) &&
           (size_t)(rows.data - of.data) % (size_t)of.n_cols == 0;
}

void inputs_forget(cuda_backend *b)
{
    b->prepared_of = b->normed.out = b->stream_of = b->attended = (tensor){0};
}

void inputs_wrote(cuda_backend *b, tensor out)
{
    if (b->prepared_of.data && tensors_overlap(out, b->prepared_of))
        b->prepared_of = (tensor){0};
    if (b->normed.out.data &&
        (tensors_overlap(out, b->normed.out) || tensors_overlap(out, b->normed.x)))
        b->normed.out = (tensor){0};
    if (b->stream_of.data && tensors_overlap(out, b->stream_of))
        b->stream_of = (tensor){0};
    if (b->attended.data && tensors_overlap(out, b->attended))
        b->attended = (tensor){0};
}

/* ---- sums ---------------------------------------------------------------------------------------------- */

realm_status inputs_reserve(cuda_backend *b, int64_t n_rows, int64_t n_cols, realm_error *error)
{
    realm_status status = REALM_OK;
    size_t bytes = prepared_size(n_rows, n_cols);
    for (int i = 0; i < 2 && status == REALM_OK; i++) {
        size_t had = b->prepared_bytes;
        status = cuda_reserve((void **)&b->prepared[i], &had, bytes, "the input of products",
                              error);
        if (i == 1 && status == REALM_OK)
            b->prepared_bytes = had;
    }
    if (status == REALM_OK)
        status = cuda_reserve((void **)&b->sums, &b->sums_bytes,
                              2 * HALF_INPUTS * (size_t)n_rows * sizeof *b->sums,
                              "sums of the input of products", error);
    return status;
}

/* Of an input of so many rows, zeros. */
static row_sums *take_sums(cuda_backend *b, int32_t n_rows)
{
    size_t rows = b->sums_bytes / (2 * HALF_INPUTS * sizeof *b->sums);
    int32_t stride = b->in_step && b->rows.n_tokens >= n_rows ? b->rows.n_tokens : (int32_t)rows;
    assert((size_t)n_rows <= rows);
    if (stride != b->sums_stride) /* what was cleared lies otherwise */
        b->next_sums = (b->next_sums + HALF_INPUTS - 1) / HALF_INPUTS * HALF_INPUTS;
    b->sums_stride = stride;
    if (b->next_sums == 2 * HALF_INPUTS)
        b->next_sums = 0;
    /* Halves keep their places whatever the stride. */
    row_sums *half = b->sums + (size_t)(b->next_sums / HALF_INPUTS * HALF_INPUTS) * rows;
    int32_t i = b->next_sums++ % HALF_INPUTS;
    if (i == 0) {
        rows_args a = {.out = (float *)(void *)half, .n_elements = (int64_t)HALF_INPUTS * stride};
        step_record(b, cuda_kernel_clear(), (uint32_t)((a.n_elements + 255) / 256), 1, 1, 256, 0,
                    &a, sizeof a);
    }
    return half + (size_t)i * (size_t)stride;
}

void inputs_begin(cuda_backend *b)
{
    inputs_forget(b);
    b->next_sums = 0; /* the same places in every step, as graphs have them */
    b->prepared_now = 0;
}

/* ---- halves ---------------------------------------------------------------------------------------------- */

int inputs_are_tiles(const cuda_backend *b, int32_t n_rows)
{
    return b->wgmma && n_rows > 32;
}

int inputs_fit(const cuda_backend *b, tensor x)
{
    return prepared_size(x.n_rows, x.n_cols) <= b->prepared_bytes;
}

/* The place of the input to come: not that of the last one, which may be read while this is made. */
static prepared next_place(cuda_backend *b, tensor x)
{
    uint8_t *at = b->prepared[b->prepared_now ^= 1];
    return (prepared){.halves = (uint16_t *)(void *)(at + prepared_scale_bytes(x.n_rows)),
                      .scales = (float *)(void *)at,
                      .from = x.data,
                      .n_stride = (x.n_rows + 7) / 8 * 8,
                      .tiles = inputs_are_tiles(b, x.n_rows),
                      .n_cols = x.n_cols,
                      .state = PREPARED_FINAL,
                      .scale = is_within(x, b->attended) ? ATTENDED_SCALE : 1};
}

prepared inputs_along(cuda_backend *b, tensor out)
{
    if (!inputs_fit(b, out))
        return (prepared){0};
    b->prepared_of = out;
    return b->input = next_place(b, out);
}

prepared inputs_in_parts(cuda_backend *b, tensor out)
{
    assert(inputs_fit(b, out));
    b->prepared_of = out;
    b->input = next_place(b, out);
    b->input.state = PREPARED_PLAIN;
    b->input.sums = take_sums(b, out.n_rows);
    return b->input;
}

/* Of rows of the norm that b->normed says. */
static prepared normed_place(cuda_backend *b, tensor out)
{
    size_t first = (size_t)(out.data - b->normed.out.data) / (size_t)out.n_cols;
    prepared p = next_place(b, out);
    p.state = PREPARED_NORMED;
    p.from = b->normed.x.data + first * (size_t)out.n_cols;
    p.gain = b->normed.gain;
    p.before = b->normed.before ? b->normed.before + first : NULL;
    p.epsilon = b->normed.epsilon;
    p.sums = take_sums(b, out.n_rows);
    b->prepared_of = out;
    b->input = p;
    return p;
}

/* By a kernel that has whole rows, floats and halves. */
static void record_norm(cuda_backend *b, tensor out, norm_args *a)
{
    a->out = out.data;
    a->gain = b->normed.gain;
    a->n_cols = out.n_cols;
    a->kind = NORM_RMS;
    a->epsilon = b->normed.epsilon;
    a->p = normed_place(b, out);
    step_record(b, cuda_kernel_norm(a), (uint32_t)out.n_rows, 1, 1, cuda_row_threads(out.n_cols), 0,
                a, sizeof *a);
    b->input.state = PREPARED_FINAL;
}

static void remember_norm(cuda_backend *b, tensor out, tensor x, const float *gain, float epsilon)
{
    const row_sums *before = inputs_sums_of(b, x);
    tensor stream = b->stream_of;
    inputs_wrote(b, out);
    b->stream_of = stream;
    b->normed.out = out;
    b->normed.x = x;
    b->normed.gain = gain;
    b->normed.epsilon = epsilon;
    b->normed.before = before;
}

void inputs_norm(cuda_backend *b, tensor out, tensor x, norm_args *a)
{
    remember_norm(b, out, x, a->gain, a->epsilon);
    record_norm(b, out, a);
    b->normed.lacks_floats = 0;
    b->stream_of = x;
    b->stream_sums = b->input.sums;
    if (tensors_overlap(out, x)) /* there is nothing left to make it of again */
        b->normed.out = b->stream_of = (tensor){0};
}

prepared inputs_norm_in_parts(cuda_backend *b, tensor out, tensor x, const float *gain,
                              float epsilon)
{
    remember_norm(b, out, x, gain, epsilon);
    assert(b->normed.before);
    b->normed.lacks_floats = 1;
    b->stream_of = x;
    normed_place(b, out);
    b->stream_sums = b->input.sums;
    return b->input;
}

/* Rows of the norm, once more. */
static void norm_again(cuda_backend *b, tensor out)
{
    norm_args a = {.x = b->normed.x.data + (out.data - b->normed.out.data)};
    record_norm(b, out, &a);
}

void inputs_need_floats(cuda_backend *b, tensor x)
{
    if (b->normed.out.data && b->normed.lacks_floats && tensors_overlap(x, b->normed.out)) {
        norm_again(b, b->normed.out);
        b->normed.lacks_floats = 0;
    }
}

void inputs_attended(cuda_backend *b, tensor out)
{
    b->attended = out;
}

row_sums *inputs_sums_of(const cuda_backend *b, tensor x)
{
    tensor of = b->stream_of;
    return of.data == x.data && of.n_rows == x.n_rows && of.n_cols == x.n_cols ? b->stream_sums
                                                                               : NULL;
}

void inputs_gathered(cuda_backend *b, tensor out, rows_args *a, tensor x)
{
    const row_sums *before = inputs_sums_of(b, x);
    int attended = is_within(x, b->attended);
    inputs_wrote(b, out);
    if (attended)
        b->attended = out;
    if (!before)
        return;
    a->p.before = before;
    a->p.sums = take_sums(b, out.n_rows);
    b->stream_of = out;
    b->stream_sums = a->p.sums;
}

/* x is rows of what is prepared. */
static prepared part_of_input(const cuda_backend *b, tensor x)
{
    prepared p = b->input;
    size_t first = (size_t)(x.data - b->prepared_of.data) / (size_t)x.n_cols;
    p.halves += first * (p.tiles ? PACKED_COLS : 32);
    p.scales += first;
    p.from += first * (size_t)x.n_cols;
    p.sums = p.sums ? p.sums + first : NULL;
    p.before = p.before ? p.before + first : NULL;
    return p;
}

static int has_input(const cuda_backend *b, tensor x)
{
    if (!is_within(x, b->prepared_of))
        return 0;
    /* Tiles are for products of many tokens, and eight tokens are one piece of them. */
    size_t first = (size_t)(x.data - b->prepared_of.data) / (size_t)x.n_cols;
    return !b->input.tiles || (inputs_are_tiles(b, x.n_rows) && first % 8 == 0);
}

prepared inputs_settle(cuda_backend *b, prepared p)
{
    if (p.state == PREPARED_FINAL)
        return p;
    assert(p.scales >= b->input.scales && p.state == b->input.state);
    rows_args a = {.p = b->input, .n_elements = b->prepared_of.n_rows};
    step_record(b, cuda_kernel_settle(),
                (uint32_t)(b->prepared_of.n_rows + SETTLE_ROWS - 1) / SETTLE_ROWS, 1, 1,
                SETTLE_ROWS, 0, &a, sizeof a);
    b->input.state = PREPARED_FINAL;
    p.state = PREPARED_FINAL;
    return p;
}

prepared inputs_prepare(cuda_backend *b, tensor x)
{
    if (!has_input(b, x) && is_within(x, b->normed.out))
        norm_again(b, x);
    if (has_input(b, x))
        return part_of_input(b, x);
    assert(inputs_fit(b, x));
    b->prepared_of = x;
    rows_args a = {.x = x.data, .p = next_place(b, x), .n_cols = x.n_cols};
    step_record(b, cuda_kernel_prepare(), (uint32_t)x.n_rows, 1, 1, cuda_row_threads(x.n_cols), 0,
                &a, sizeof a);
    return b->input = a.p;
}
