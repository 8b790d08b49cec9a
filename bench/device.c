/* bench/device.c: how fast a backend is at the work of a transformer, with random weights of a model's
 * shape made on the spot: no file, no tokenizer, no engine.
 *
 *     bench_device [--device cuda] [--model llama-2-7b:q4_k_m]... [--products] [--batch 1,8,16,64]
 *                  [--tokens 64] [--prompt 128,512] [--piece 113] [--beside 15]
 *
 * For each model: tokens a second of a prompt, then of generation with so many sequences after 128
 * tokens each; every step's logits are read by the host, as an engine does. --piece times steps that
 * have so many rows of a prompt and a row of each of --beside sequences. --products times the single
 * products of each type. Times are of a wall clock over whole runs; the first run of each is not counted. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/rng.h"
#include "compute/backend_open.h"

typedef struct shape {
    const char *name;
    int32_t n_layers, n_embd, n_heads, n_kv_heads, n_ff, n_vocab;
} shape;

static const shape shapes[] = {
    {"tinyllama-1b", 22, 2048, 32, 4, 5632, 32000},
    {"llama-3.2-1b", 16, 2048, 32, 8, 8192, 128256},
    {"llama-2-7b", 32, 4096, 32, 32, 11008, 32000},
    {"llama-3-8b", 32, 4096, 32, 8, 14336, 128256},
    {"llama-2-13b", 40, 5120, 40, 40, 13824, 32000},
    {"llama-2-70b", 80, 8192, 64, 8, 28672, 32000},
};
#define N_SHAPES (sizeof shapes / sizeof *shapes)

#define HEAD_DIM(s) ((s)->n_embd / (s)->n_heads)
#define MAX_BATCH   256
#define STEP_ROWS   512
#define LIST_MOST   16 /* of an option's numbers */
/* A row of logits, behind it what a device finds in it, as the engine keeps them. */
#define ROW_FLOATS(s)    (((size_t)(s)->n_vocab + 15) / 16 * 16)
#define RESULT_FLOATS(s) (ROW_FLOATS(s) + (peaks_bytes((s)->n_vocab, 1) + 63) / 64 * 16)

static void die(const char *what, const char *why)
{
    fprintf(stderr, "bench_device: %s: %s\n", what, why);
    exit(1);
}

static void check(realm_status status, const realm_error *error)
{
    if (status != REALM_OK)
        die(realm_status_name(status), error->message);
}

/* ---- random weights ------------------------------------------------------------------------------ */

/* Without a mean, as weights are: minimums are the scales times half of the largest code. */
static void center_block(uint8_t *block, uint32_t type)
{
    const uint16_t minimum = type == DTYPE_Q4_K ? 0x1218
                                                : 0x124C; /* 7.5 and 15.5 times the scale */
    memcpy(block + 2, &minimum, 2);
    for (int i = 0; i < 4; i++) {
        block[8 + i] = block[4 + i];
        block[12 + i] = (uint8_t)((block[12 + i] & 15) * 17);
    }
}

/* Bytes that are a matrix of a type with small numbers: the same for all matrices, whose copies on the
 * device are different memory. */
static uint8_t *random_blocks(uint32_t type, size_t bytes)
{
    static const struct {
        uint32_t type;
        int at[2]; /* of halves that are scales; -1: none */
        uint16_t value;
    } scales[] = {{DTYPE_Q4_0, {0, -1}, 0x1C00},   {DTYPE_Q8_0, {0, -1}, 0x0C00},
                  {DTYPE_Q2_K, {80, 82}, 0x1600},  {DTYPE_Q3_K, {108, -1}, 0x1000},
                  {DTYPE_Q4_K, {0, 2}, 0x0680},    {DTYPE_Q5_K, {0, 2}, 0x0340},
                  {DTYPE_Q6_K, {208, -1}, 0x00F5}, {DTYPE_IQ4_XS, {0, -1}, 0x0100}};
    uint8_t *data = malloc(bytes);
    rng r;
    if (!data)
        die("weights", "out of memory");
    rng_init(&r, 1);
    for (size_t i = 0; i + 8 <= bytes; i += 8) {
        uint64_t bits = rng_next(&r);
        if (type == DTYPE_F16 || type == DTYPE_BF16) /* exponents of about 2^-6 */
            bits = (bits & 0x83FF83FF83FF83FF) |
                   (type == DTYPE_F16 ? 0x2400240024002400 : 0x3C003C003C003C00);
        memcpy(data + i, &bits, 8);
    }
    size_t block = dtype_block_bytes(type);
    for (size_t i = 0; i < sizeof scales / sizeof *scales; i++)
        for (size_t at = 0; scales[i].type == type && at < bytes; at += block)
            for (int j = 0; j < 2; j++)
                if (scales[i].at[j] >= 0)
                    memcpy(data + at + scales[i].at[j], &scales[i].value, 2);
    if (type == DTYPE_Q4_K || type == DTYPE_Q5_K)
        for (size_t at = 0; at < bytes; at += block)
            center_block(data + at, type);
    return data;
}

typedef struct source {
    uint32_t type;
    size_t bytes;
    uint8_t *data;
} source;

/* pair: what the source says of one. */
static weight *make_weight(backend *b, uint32_t type, int32_t n_rows, int32_t n_cols,
                           weight_source pair)
{
    static source sources[32];
    static int n_sources;
    size_t bytes = dtype_row_bytes(type, (uint64_t)n_cols) * (size_t)n_rows;
    int i = 0;
    while (i < n_sources && sources[i].type != type)
        i++;
    n_sources = i == n_sources ? i + 1 : n_sources;
    if (sources[i].bytes < bytes) {
        free(sources[i].data);
        sources[i] = (source){type, bytes, random_blocks(type, bytes)};
    }
    weight_source s = {.type = type,
                       .n_rows = n_rows,
                       .n_cols = n_cols,
                       .data = sources[i].data,
                       .name = "random",
                       .begins_pair = pair.begins_pair,
                       .first = pair.first};
    weight *w = NULL;
    realm_error error;
    check(b->table->weight_open(b, &w, &s, &error), &error);
    return w;
}

/* ---- a model ------------------------------------------------------------------------------------- */

typedef struct layer {
    weight *q, *k, *v, *o, *gate, *up, *down;
} layer;

typedef struct network {
    backend *b;
    const shape *s;
    layer *layers;
    weight *embedding, *output, *gain;
    tensor x, kept, normed, projected, q, k, v, attention, gate, up, logits;
    rope rope;
    float frequencies[128];
    kv_store *kv;
    int32_t max_rows, max_outputs, pages_each;
    int32_t *tables[MAX_BATCH];
    float *results;
    double weight_bytes;
} network;

/* As llama.cpp's q4_k_m spreads Q6_K. */
static uint32_t type_of(const char *quantization, const char *name, int32_t i, int32_t n_layers)
{
    if (strcmp(quantization, "f16") == 0)
        return DTYPE_F16;
    if (strcmp(quantization, "bf16") == 0)
        return DTYPE_BF16;
    if (strcmp(quantization, "q8_0") == 0)
        return DTYPE_Q8_0;
    if (strcmp(quantization, "q4_0") == 0)
        return DTYPE_Q4_0;
    int more = i < n_layers / 8 || i >= 7 * n_layers / 8 || (i - n_layers / 8) % 3 == 2;
    if (strcmp(name, "output") == 0 ||
        (more && (strcmp(name, "v") == 0 || strcmp(name, "down") == 0)))
        return DTYPE_Q6_K;
    return DTYPE_Q4_K;
}

static weight *matrix_of(network *n, const char *quantization, const char *name, int32_t i,
                         int32_t rows, int32_t cols, weight_source pair)
{
    uint32_t type = type_of(quantization, name, i, n->s->n_layers);
    if (strcmp(name, "embedding") != 0)
        n->weight_bytes += (double)dtype_row_bytes(type, (uint64_t)cols) * rows;
    return make_weight(n->b, type, rows, cols, pair);
}

static weight *matrix(network *n, const char *quantization, const char *name, int32_t i,
                      int32_t rows, int32_t cols)
{
    return matrix_of(n, quantization, name, i, rows, cols, (weight_source){0});
}

static void open_tensor(network *n, tensor *t, int32_t rows, int32_t cols)
{
    realm_error error;
    check(n->b->table->tensor_open(n->b, t, rows, cols, &error), &error);
}

static void open_network(network *n, backend *b, const shape *s, const char *quantization,
                         int32_t rows, int32_t outputs, int32_t sequences, int32_t context)
{
    realm_error error;
    *n = (network){.b = b, .s = s, .max_rows = rows, .max_outputs = outputs};
    int32_t e = s->n_embd, kv = s->n_kv_heads * HEAD_DIM(s);
    n->layers = calloc((size_t)s->n_layers, sizeof *n->layers);
    n->embedding = matrix(n, quantization, "embedding", 0, s->n_vocab, e);
    n->output = matrix(n, quantization, "output", 0, s->n_vocab, e);
    float *ones = malloc((size_t)e * sizeof *ones);
    for (int32_t i = 0; i < e; i++)
        ones[i] = 1;
    weight_source gain = {DTYPE_F32, 1, e, ones, "gain", 0};
    check(b->table->weight_open(b, &n->gain, &gain, &error), &error);
    for (int32_t i = 0; i < s->n_layers; i++) {
        n->layers[i] = (layer){.q = matrix(n, quantization, "q", i, e, e),
                               .k = matrix(n, quantization, "k", i, kv, e),
                               .v = matrix(n, quantization, "v", i, kv, e),
                               .o = matrix(n, quantization, "o", i, e, e),
                               .down = matrix(n, quantization, "down", i, e, s->n_ff)};
        layer *l = &n->layers[i];
        l->gate = matrix_of(n, quantization, "gate", i, s->n_ff, e,
                            (weight_source){.begins_pair = 1});
        l->up = matrix_of(n, quantization, "up", i, s->n_ff, e, (weight_source){.first = l->gate});
    }
    tensor *wide[] = {&n->x, &n->kept, &n->normed, &n->projected, &n->q, &n->attention};
    for (size_t i = 0; i < sizeof wide / sizeof *wide; i++)
        open_tensor(n, wide[i], rows, e);
    open_tensor(n, &n->k, rows, kv);
    open_tensor(n, &n->v, rows, kv);
    open_tensor(n, &n->gate, rows, s->n_ff);
    open_tensor(n, &n->up, rows, s->n_ff);
    open_tensor(n, &n->logits, outputs, s->n_vocab);
    size_t bytes = (size_t)outputs * RESULT_FLOATS(s) * sizeof *n->results;
    n->results = b->table->host_open ? b->table->host_open(b, bytes) : malloc(bytes);
    if (!n->results)
        die("results", "no memory");
    n->rope = (rope){ROPE_NORMAL, HEAD_DIM(s), n->frequencies, 1};
    for (int32_t i = 0; i < HEAD_DIM(s) / 2; i++)
        n->frequencies[i] = powf(10000.0f, -2.0f * (float)i / (float)HEAD_DIM(s));
    n->pages_each = (context + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
    kv_layer_shape *layers = malloc((size_t)s->n_layers * sizeof *layers);
    for (int32_t i = 0; i < s->n_layers; i++)
        layers[i] = (kv_layer_shape){s->n_kv_heads, HEAD_DIM(s), HEAD_DIM(s)};
    kv_shape pages = {s->n_layers, layers, n->pages_each * sequences, DTYPE_F16};
    check(b->table->kv_open(b, &n->kv, &pages, &error), &error);
    for (int32_t i = 0; i < sequences; i++) {
        n->tables[i] = malloc((size_t)n->pages_each * sizeof **n->tables);
        for (int32_t j = 0; j < n->pages_each; j++)
            n->tables[i][j] = j * sequences + i;
    }
    free(layers);
    free(ones);
}

static void close_network(network *n)
{
    const backend_table *t = n->b->table;
    for (int32_t i = 0; i < n->s->n_layers; i++) {
        layer *l = &n->layers[i];
        weight *all[] = {l->q, l->k, l->v, l->o, l->gate, l->up, l->down};
        for (size_t j = 0; j < sizeof all / sizeof *all; j++)
            t->weight_close(n->b, all[j]);
    }
    t->weight_close(n->b, n->embedding), t->weight_close(n->b, n->output),
        t->weight_close(n->b, n->gain);
    tensor *all[] = {&n->x, &n->kept, &n->normed, &n->projected, &n->q,        &n->k,
                     &n->v, &n->gate, &n->up,     &n->logits,    &n->attention};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        t->tensor_close(n->b, all[i]);
    t->kv_close(n->b, n->kv);
    for (int i = 0; i < MAX_BATCH; i++)
        free(n->tables[i]);
    free(n->layers);
    if (t->host_close)
        t->host_close(n->b, n->results);
    else
        free(n->results);
}

static tensor front(tensor t, int32_t rows)
{
    return (tensor){t.data, rows, t.n_cols};
}

static void multiply(network *n, tensor out, tensor x, const weight *w)
{
    n->b->table->matmul(n->b, &out, x, &w, NULL, 1);
}

/* One step as src/model/transformer.c makes it; outputs are the given rows. */
static void walk(network *n, const step_rows *rows, const int32_t *tokens, const int32_t *outputs,
                 int32_t n_outputs)
{
    const backend_table *t = n->b->table;
    const shape *s = n->s;
    int32_t r = rows->n_tokens, d = HEAD_DIM(s);
    tensor x = front(n->x, r);
    t->begin(n->b, rows);
    t->embed(n->b, x, n->embedding, tokens, 1);
    for (int32_t i = 0; i < s->n_layers; i++) {
        const layer *l = &n->layers[i];
        tensor normed = front(n->normed, x.n_rows), attention = front(n->attention, x.n_rows);
        tensor qkv[] = {front(n->q, r), front(n->k, r), front(n->v, r)};
        const weight *in[] = {l->q, l->k, l->v};
        attention_options o = {i, s->n_heads, 1 / sqrtf((float)d), 0, 0};
        t->norm(n->b, normed, x, NORM_RMS, n->gain, NULL, 1e-5f);
        t->matmul(n->b, qkv, normed, in, NULL, 3);
        t->apply_rope(n->b, qkv[0], d, &n->rope, rows->positions);
        t->apply_rope(n->b, qkv[1], d, &n->rope, rows->positions);
        t->kv_write(n->b, n->kv, i, qkv[1], qkv[2]);
        t->attention(n->b, attention, qkv[0], n->kv, &o);
        if (i == s->n_layers - 1 && n_outputs < r) {
            tensor kept = front(n->kept, n_outputs), some = front(n->q, n_outputs);
            t->gather(n->b, some, attention, outputs);
            t->gather(n->b, kept, x, outputs);
            attention = some, x = kept;
        }
        tensor projected = front(n->projected, x.n_rows), normed2 = front(n->normed, x.n_rows);
        backend_matmul_add(n->b, x, projected, attention, l->o, 1);
        tensor both[] = {front(n->gate, x.n_rows), front(n->up, x.n_rows)};
        const weight *gated[] = {l->gate, l->up};
        t->norm(n->b, normed2, x, NORM_RMS, n->gain, NULL, 1e-5f);
        backend_gated_matmul(n->b, both[0], both[1], normed2, gated, ACTIVATION_SILU);
        backend_matmul_add(n->b, x, projected, both[0], l->down, 1);
    }
    tensor hidden = front(n->normed, n_outputs), logits = front(n->logits, n_outputs);
    t->norm(n->b, hidden, x, NORM_RMS, n->gain, NULL, 1e-5f);
    multiply(n, logits, hidden, n->output);
    t->end(n->b);
    float *to[MAX_BATCH], *peaks[MAX_BATCH];
    for (int32_t i = 0; i < n_outputs; i++) {
        to[i] = n->results + (size_t)i * RESULT_FLOATS(s);
        peaks[i] = to[i] + ROW_FLOATS(s);
    }
    if (t->read_peaks)
        t->read_peaks(n->b, to, peaks, NULL, logits);
    for (int32_t i = 0; i < n_outputs && !t->read_peaks; i++)
        t->read(n->b, to[i], tensor_rows(logits, i, 1));
}

/* Milliseconds of a prompt of n tokens of sequence 0, at most max_rows a step. */
static double time_prompt(network *n, int32_t count)
{
    int32_t *positions = malloc((size_t)count * 4), *sequences = calloc((size_t)count, 4);
    int32_t *tokens = malloc((size_t)count * 4);
    uint64_t start = clock_ns();
    for (int32_t first = 0; first < count; first += n->max_rows) {
        int32_t rows = count - first < n->max_rows ? count - first : n->max_rows, last = rows - 1;
        for (int32_t i = 0; i < rows; i++) {
            positions[i] = first + i;
            tokens[i] = (first + i) * 31 % n->s->n_vocab;
        }
        const int32_t *const *tables = (const int32_t *const *)n->tables;
        step_rows step = {rows, positions, sequences, 1, tables};
        walk(n, &step, tokens, &last, 1);
    }
    double ms = (double)(clock_ns() - start) / 1e6;
    free(positions), free(sequences), free(tokens);
    return ms;
}

/* Milliseconds of steps tokens of each of batch sequences, from position `from` on. */
static double time_generation(network *n, int32_t batch, int32_t from, int32_t steps)
{
    int32_t positions[MAX_BATCH], sequences[MAX_BATCH], tokens[MAX_BATCH], outputs[MAX_BATCH];
    uint64_t start = clock_ns();
    for (int32_t i = 0; i < steps; i++) {
        for (int32_t j = 0; j < batch; j++) {
            positions[j] = from + i;
            sequences[j] = outputs[j] = j;
            tokens[j] = (i * 7 + j * 31) % n->s->n_vocab;
        }
        step_rows step = {batch, positions, sequences, batch, (const int32_t *const *)n->tables};
        walk(n, &step, tokens, outputs, batch);
    }
    return (double)(clock_ns() - start) / 1e6;
}

/* Milliseconds of a step that has `piece` rows of a prompt and one of each of `streams` sequences after 128 tokens: the
 * mean over a prompt of STEP_ROWS. */
static double time_mixed(network *n, int32_t piece, int32_t streams)
{
    int32_t positions[STEP_ROWS], sequences[STEP_ROWS], tokens[STEP_ROWS], outputs[STEP_ROWS];
    int32_t steps = STEP_ROWS / piece;
    uint64_t start = clock_ns();
    for (int32_t i = 0; i < steps; i++) {
        for (int32_t j = 0; j < streams + piece; j++) {
            positions[j] = j < streams ? 128 + i : i * piece + j - streams;
            sequences[j] = j < streams ? j : streams;
            tokens[j] = (i * 7 + j * 31) % n->s->n_vocab;
            outputs[j] = j;
        }
        step_rows step = {streams + piece, positions, sequences, streams + 1,
                          (const int32_t *const *)n->tables};
        walk(n, &step, tokens, outputs, streams);
    }
    return (double)(clock_ns() - start) / 1e6 / steps;
}

static void check_finite(const network *n, int32_t rows)
{
    for (size_t i = 0; i < (size_t)rows; i++)
        for (size_t k = 0; k < (size_t)n->s->n_vocab; k++)
            if (!isfinite(n->results[i * RESULT_FLOATS(n->s) + k]))
                die("logits", "not finite");
}

/* What is timed of each model. */
typedef struct plan {
    int32_t batches[LIST_MOST], prompts[LIST_MOST], pieces[LIST_MOST];
    int n_batches, n_prompts, n_pieces;
    int32_t tokens, beside;
} plan;

static int32_t largest_of(const int32_t *list, int n, int32_t least)
{
    for (int i = 0; i < n; i++)
        least = list[i] > least ? list[i] : least;
    return least;
}

static void bench_prompts(network *n, const plan *p)
{
    for (int i = 0; i < p->n_prompts; i++) {
        double ms = 1e9;
        time_prompt(n, p->prompts[i]);
        for (int j = 0; j < 4; j++)
            ms = fmin(ms, time_prompt(n, p->prompts[i]));
        check_finite(n, 1);
        printf("  pp%-5d %9.1f tokens/s  %8.3f ms\n", p->prompts[i], p->prompts[i] / ms * 1000, ms);
    }
}

static void bench_mixed(network *n, const plan *p)
{
    for (int i = 0; i < p->n_pieces; i++) {
        double ms = 1e9;
        time_generation(n, p->beside, 0, 128);
        time_mixed(n, p->pieces[i], p->beside);
        for (int j = 0; j < 4; j++)
            ms = fmin(ms, time_mixed(n, p->pieces[i], p->beside));
        check_finite(n, p->beside);
        printf("  %d of a prompt beside %d %8.3f ms a step\n", p->pieces[i], p->beside, ms);
    }
}

static void bench_model(backend *b, const char *name, const plan *p)
{
    const char *colon = strchr(name, ':'), *quantization = colon ? colon + 1 : "q4_k_m";
    size_t length = colon ? (size_t)(colon - name) : strlen(name);
    const shape *s = NULL;
    for (size_t i = 0; i < N_SHAPES; i++)
        if (strlen(shapes[i].name) == length && strncmp(name, shapes[i].name, length) == 0)
            s = &shapes[i];
    if (!s)
        die(name, "no such shape");
    int32_t most = largest_of(p->batches, p->n_batches, p->beside + 1);
    int32_t longest = largest_of(p->prompts, p->n_prompts, 128 + p->tokens);
    network n;
    uint64_t start = clock_ns();
    open_network(&n, b, s, quantization, STEP_ROWS, most, most,
                 longest < STEP_ROWS ? STEP_ROWS : longest);
    printf("%s %s: %.2f GB of weights read a step, made in %.1f s\n", s->name, quantization,
           n.weight_bytes / 1e9, (double)(clock_ns() - start) / 1e9);
    bench_prompts(&n, p);
    bench_mixed(&n, p);
    for (int i = 0; i < p->n_batches; i++) {
        int32_t batch = p->batches[i];
        time_generation(&n, batch, 0, 128);
        double ms = time_generation(&n, batch, 128, p->tokens);
        check_finite(&n, batch);
        printf("  tg x %-3d %9.1f tokens/s  %8.3f ms a step  %7.1f GB/s of weights\n", batch,
               batch * p->tokens / ms * 1000, ms / p->tokens,
               n.weight_bytes * p->tokens / ms / 1e6);
        fflush(stdout);
    }
    close_network(&n);
}

/* ---- single products ------------------------------------------------------------------------------ */

static void bench_products(backend *b)
{
    static const uint32_t types[] = {DTYPE_Q4_K, DTYPE_Q6_K, DTYPE_Q8_0,   DTYPE_F16, DTYPE_Q5_K,
                                     DTYPE_Q3_K, DTYPE_Q2_K, DTYPE_IQ4_XS, DTYPE_Q4_0};
    static const int32_t tokens[] = {1, 4, 8, 16, 32, 64, 128, 512, 2048};
    enum { ROWS = 11008, COLS = 4096, COPIES = 6, ROUNDS = 4 };
    realm_error error;
    tensor x, out;
    check(b->table->tensor_open(b, &x, 2048, COLS, &error), &error);
    check(b->table->tensor_open(b, &out, 2048, ROWS, &error), &error);
    float *values = malloc(sizeof *values * 2048 * COLS);
    rng r;
    rng_init(&r, 1);
    for (size_t i = 0; i < (size_t)2048 * COLS; i++)
        values[i] = (float)rng_double(&r) - 0.5f;
    b->table->write(b, x, values);
    free(values);
    printf("products of %d x %d, microseconds (GB/s up to 64 tokens, then TFLOP/s):\n%-8s", ROWS,
           COLS, "");
    for (size_t t = 0; t < sizeof tokens / sizeof *tokens; t++)
        printf("%16d", tokens[t]);
    printf("\n");
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        weight *ws[COPIES];
        for (int c = 0; c < COPIES; c++)
            ws[c] = make_weight(b, types[i], ROWS, COLS, (weight_source){0});
        printf("%-8s", dtype_name(types[i]));
        for (size_t t = 0; t < sizeof tokens / sizeof *tokens; t++) {
            double best = 1e9;
            static const int32_t zero;
            const int32_t *tables[1] = {&zero};
            step_rows rows = {1, &zero, &zero, 1, tables};
            for (int round = 0; round < ROUNDS; round++) {
                tensor in = front(x, tokens[t]), to = front(out, tokens[t]);
                float one;
                uint64_t start = clock_ns();
                b->table->begin(b, &rows);
                for (int c = 0; c < COPIES * 4; c++)
                    b->table->matmul(b, &to, in, (const weight *const *)&ws[c % COPIES], NULL, 1);
                b->table->soft_cap(b, (tensor){out.data, 1, 1}, 1);
                b->table->end(b);
                b->table->read(b, &one, (tensor){out.data, 1, 1});
                best = fmin(best, (double)(clock_ns() - start) / 1e3 / (COPIES * 4));
            }
            double rate = tokens[t] <= 64
                              ? (double)dtype_row_bytes(types[i], COLS) * ROWS / best / 1e3
                              : 2.0 * ROWS * COLS * tokens[t] / best / 1e6;
            printf("%9.1f %6.0f", best, rate);
        }
        printf("\n");
        fflush(stdout);
        for (int c = 0; c < COPIES; c++)
            b->table->weight_close(b, ws[c]);
    }
    b->table->tensor_close(b, &x);
    b->table->tensor_close(b, &out);
}

/* ---- the command line ------------------------------------------------------------------------------ */

static int parse_list(char *text, int32_t *out, int32_t most)
{
    int n = 0;
    for (char *rest = NULL, *word = strtok_r(text, ",", &rest); word && n < LIST_MOST;
         word = strtok_r(NULL, ",", &rest)) {
        out[n] = atoi(word);
        if (out[n] < 1 || out[n] > most)
            die(word, "too few or too many");
        n++;
    }
    return n;
}

int main(int argc, char **argv)
{
    const char *models[16];
    int n_models = 0, products = 0;
    plan p = {.batches = {1, 8, 16, 32, 64},
              .n_batches = 5,
              .prompts = {512},
              .n_prompts = 1,
              .tokens = 64,
              .beside = 15};
    backend_options options = {.device = "auto"};
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--products") == 0) {
            products = 1;
            continue;
        }
        if (i + 1 >= argc)
            die(argv[i], "unknown option, or it needs a value");
        char *value = argv[++i];
        if (strcmp(argv[i - 1], "--device") == 0)
            options.device = value;
        else if (strcmp(argv[i - 1], "--model") == 0 && n_models < 16)
            models[n_models++] = value;
        else if (strcmp(argv[i - 1], "--batch") == 0)
            p.n_batches = parse_list(value, p.batches, MAX_BATCH);
        else if (strcmp(argv[i - 1], "--prompt") == 0)
            p.n_prompts = parse_list(value, p.prompts, 1 << 20);
        else if (strcmp(argv[i - 1], "--piece") == 0)
            p.n_pieces = parse_list(value, p.pieces, STEP_ROWS - MAX_BATCH);
        else if (strcmp(argv[i - 1], "--beside") == 0)
            p.beside = atoi(value) < MAX_BATCH ? atoi(value) : MAX_BATCH - 1;
        else if (strcmp(argv[i - 1], "--tokens") == 0)
            p.tokens = atoi(value);
        else
            die(argv[i - 1], "unknown option");
    }
    backend *b = NULL;
    realm_error error;
    log_set_level(LOG_INFO);
    check(backend_open(&b, &options, &error), &error);
    char text[256];
    b->table->describe(b, text, sizeof text);
    printf("%s\n", text);
    if (products)
        bench_products(b);
    for (int i = 0; i < n_models; i++)
        bench_model(b, models[i], &p);
    b->table->close(b);
    return 0;
}
