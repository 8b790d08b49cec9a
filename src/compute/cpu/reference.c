/* compute/cpu/reference.c: every operation written as its definition reads, in double.
 *
 * This is the truth that the other kernels of every device are tested against, and what a backend
 * opened with options.reference computes with. It shares nothing with them but the meaning of the
 * bytes (quants.c, kv_pages.c). Not fast and not meant to be. */
#include <math.h>
#include <stdlib.h>

#include "compute/cpu/cpu_backend.h"
#include "compute/cpu/quants.h"

/* ---- elements ------------------------------------------------------------------------------- */

static void scale(float *x, int64_t n, float factor)
{
    for (int64_t i = 0; i < n; i++)
        x[i] *= factor;
}

static void norm(float *out, const float *x, int32_t n, norm_kind kind, const float *gain,
                 const float *bias, float epsilon)
{
    double sum = 0, squares = 0;
    for (int32_t i = 0; i < n; i++)
        sum += (double)x[i];
    double mean = kind == NORM_LAYER ? sum / n : 0;
    for (int32_t i = 0; i < n; i++)
        squares += ((double)x[i] - mean) * ((double)x[i] - mean);
    double inverse = 1 / sqrt(squares / n + (double)epsilon);
    for (int32_t i = 0; i < n; i++) {
        double y = ((double)x[i] - mean) * inverse;
        out[i] = (float)(y * (gain ? (double)gain[i] : 1) + (bias ? (double)bias[i] : 0));
    }
}

static double activate(double x, activation_kind kind)
{
    const double root_2_over_pi = 0.79788456080286535588;
    switch (kind) {
    case ACTIVATION_SILU: return x / (1 + exp(-x));
    case ACTIVATION_GELU_TANH:
        return 0.5 * x * (1 + tanh(root_2_over_pi * (x + 0.044715 * x * x * x)));
    case ACTIVATION_GELU: return 0.5 * x * erfc(-x * M_SQRT1_2);
    }
    return x;
}

static void gated(float *out, const float *gate, const float *up, int64_t n, activation_kind kind)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = (float)(activate((double)gate[i], kind) * (double)up[i]);
}

static void add(float *out, const float *x, const float *y, int64_t n, float factor)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = (float)((double)x[i] + (double)factor * (double)y[i]);
}

static void soft_cap(float *x, int64_t n, float cap)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)((double)cap * tanh((double)x[i] / (double)cap));
}

static void copy_peaks(float *to, float *peaks, const float *from, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        float *peak = &peaks[i / PEAK_COLS];
        if (i % PEAK_COLS == 0 || from[i] > *peak || isnan(from[i]))
            *peak = from[i];
        to[i] = from[i];
    }
}

static void rotate(float *x, int32_t n_heads, int32_t head_dim, const rope *r, const float *cosines,
                   const float *sines)
{
    int32_t n_pairs = r->n_rot / 2;
    for (int32_t h = 0; h < n_heads; h++, x += head_dim) {
        for (int32_t i = 0; i < n_pairs; i++) {
            float *a = r->kind == ROPE_NORMAL ? x + 2 * i : x + i;
            float *b = r->kind == ROPE_NORMAL ? a + 1 : a + n_pairs;
            double c = (double)cosines[i], s = (double)sines[i], p = (double)*a, q = (double)*b;
            *a = (float)(p * c - q * s);
            *b = (float)(p * s + q * c);
        }
    }
}

/* ---- attention ------------------------------------------------------------------------------ */

static size_t attention_scratch(const kv_layer *l)
{
    size_t dim = (size_t)(l->key_dim > l->value_dim ? l->key_dim : l->value_dim);
    return dim * (sizeof(float) + sizeof(double));
}

/* The score of query q [key_dim] at a position; key is memory for the key. */
static double score(const attention_piece *p, const float *q, int32_t position, float *key)
{
    int32_t page = p->page_table[position / KV_PAGE_TOKENS];
    kv_pages_get(p->kv, p->layer, kv_pages_head(p->kv, p->layer, page, p->kv_head),
                 position % KV_PAGE_TOKENS, 0, key);
    double sum = 0;
    for (int32_t d = 0; d < p->layer->key_dim; d++)
        sum += (double)q[d] * (double)key[d];
    sum *= (double)p->options->scale;
    double cap = (double)p->options->soft_cap;
    return cap > 0 ? cap * tanh(sum / cap) : sum;
}

static void attend(const attention_piece *p, const float *q, float *out, int32_t position,
                   double *sums, float *row)
{
    int32_t window = p->options->window, n = p->layer->value_dim;
    int32_t first = window > 0 && position >= window ? position - window + 1 : 0;
    double largest = -INFINITY, total = 0;
    for (int32_t i = first; i <= position; i++)
        largest = fmax(largest, score(p, q, i, row));
    for (int32_t d = 0; d < n; d++)
        sums[d] = 0;
    for (int32_t i = first; i <= position; i++) {
        double weight_of = exp(score(p, q, i, row) - largest);
        int32_t page = p->page_table[i / KV_PAGE_TOKENS];
        kv_pages_get(p->kv, p->layer, kv_pages_head(p->kv, p->layer, page, p->kv_head),
                     i % KV_PAGE_TOKENS, 1, row);
        total += weight_of;
        for (int32_t d = 0; d < n; d++)
            sums[d] += weight_of * (double)row[d];
    }
    for (int32_t d = 0; d < n; d++)
        out[d] = (float)(sums[d] / total);
}

/* All positions in one go: the splits are an arrangement of the fast kernels. */
static void attention(const attention_piece *p, void *scratch)
{
    double *sums = scratch;
    size_t dim = attention_scratch(p->layer) / (sizeof(float) + sizeof(double));
    float *row = (float *)(void *)(sums + dim);
    for (int32_t t = 0; t < p->n_tokens; t++)
        for (int32_t h = 0; h < p->n_heads; h++)
            attend(p, p->q + (size_t)t * p->q_stride + (size_t)h * (size_t)p->layer->key_dim,
                   p->out + (size_t)t * p->out_stride + (size_t)h * (size_t)p->layer->value_dim,
                   p->first_position + t, sums, row);
}

/* ---- products ------------------------------------------------------------------------------- */

static int accepts(uint32_t type, int32_t n_rows, int32_t n_cols)
{
    (void)n_rows;
    (void)n_cols;
    return quants_is_weight(type);
}

static size_t input_bytes(int32_t n_tokens, int32_t n_cols)
{
    return (size_t)n_tokens * (size_t)n_cols * sizeof(float);
}

static void prepare(void *prepared, const float *x, int32_t first_token, int32_t count,
                    int32_t n_tokens, int32_t n_cols)
{
    (void)n_tokens;
    size_t at = (size_t)first_token * (size_t)n_cols;
    memcpy((float *)prepared + at, x + at, (size_t)count * (size_t)n_cols * sizeof *x);
}

/* One block of the row at a time, so that no row is too long for the stack. */
static double dot(const cpu_weight *w, int32_t row, const float *x)
{
    float values[256];
    int32_t n = w->head.n_cols, step = 256;
    const uint8_t *data = w->data + (size_t)row * w->row_bytes;
    double sum = 0;
    for (int32_t c = 0; c < n; c += step) {
        int32_t count = n - c < step ? n - c : step;
        quants_dequantize(w->head.type, values, data + dtype_row_bytes(w->head.type, (uint64_t)c),
                          count);
        for (int32_t i = 0; i < count; i++)
            sum += (double)values[i] * (double)x[c + i];
    }
    return sum;
}

static void product(const cpu_weight *w, const void *prepared, int32_t n_tokens, float *out,
                    int32_t out_stride, const float *bias, int32_t first_row, int32_t row_count)
{
    const float *x = prepared;
    for (int32_t r = first_row; r < first_row + row_count; r++)
        for (int32_t t = 0; t < n_tokens; t++)
            out[(size_t)t * (size_t)out_stride + (size_t)r] =
                (float)(dot(w, r, x + (size_t)t * (size_t)w->head.n_cols) +
                        (bias ? (double)bias[r] : 0));
}

const cpu_matmul reference_matmul = {.name = "reference",
                                     .accepts = accepts,
                                     .input_bytes = input_bytes,
                                     .prepare = prepare,
                                     .token_step = 1,
                                     .product = product};

const cpu_kernels cpu_kernels_reference = {.name = "reference",
                                           .scale = scale,
                                           .norm = norm,
                                           .gated = gated,
                                           .add = add,
                                           .soft_cap = soft_cap,
                                           .copy_peaks = copy_peaks,
                                           .rotate = rotate,
                                           .kv_put = kv_pages_put,
                                           .attention_scratch = attention_scratch,
                                           .attention = attention,
                                           .dense = &reference_matmul};
