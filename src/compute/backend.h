/* compute/backend.h: what a device must be able to do for a transformer, and nothing more.
 *
 * A backend is one device (the processor's cores, one GPU) behind one table of functions. It
 * knows shapes and number types; it does not know models, sessions or tenants. Activations are
 * F32 and row-major on the device: a tensor of n_rows x n_cols holds one token (or one head of
 * one token) a row. Weights stay in the type the file has them in, in whatever layout the device
 * likes. Keys and values live in pages (see kv_shape).
 *
 * Calling: every function is called by the backend's owner thread (the engine's) unless its
 * comment says otherwise. Work between begin and end is one step; a backend may run operations
 * at once or record them and run them in end, so a result is readable by the host only after end
 * (or read, which waits). Operations cannot fail: whatever can (memory, unknown types, shapes)
 * is checked where weights, tensors and pages are made. Shape errors here are bugs of the caller
 * and assert.
 *
 * Reproducible: row i of every result depends on row i of the inputs (and on its own sequence's
 * pages) alone and is bit-identical whatever the number of rows, their order, the number of
 * threads, and however a prompt was cut into steps. So each reduction's order is fixed by
 * n_cols or by absolute token positions, never by the batch. */
#ifndef REALM_COMPUTE_BACKEND_H
#define REALM_COMPUTE_BACKEND_H

#include "base/dtype.h"
#include "base/fail.h"

typedef struct backend backend;

/* A matrix [n_rows, n_cols] on the device: n_rows outputs, n_cols inputs. Opaque, read-only and
 * shared once made; each backend's own struct begins with this. */
typedef struct weight {
    uint32_t type; /* dtype in the file */
    int32_t n_rows, n_cols;
} weight;

/* F32 activations on the device, row-major, rows n_cols apart. A plain value: a view of some
 * rows is made by tensor_rows. data is a device address; the host may not read it. */
typedef struct tensor {
    float *data; /* [n_rows, n_cols] */
    int32_t n_rows, n_cols;
} tensor;

static inline tensor tensor_rows(tensor t, int32_t first, int32_t count)
{
    return (tensor){t.data + (size_t)first * (size_t)t.n_cols, count, t.n_cols};
}

/* Columns that have a peak together (read_peaks). */
#define PEAK_COLS 256

static inline int32_t peaks_count(int32_t n_cols)
{
    return (n_cols + PEAK_COLS - 1) / PEAK_COLS;
}

/* One of a row's largest columns, where a backend finds them (gives_tops). */
#define TOP_COLUMNS 64

typedef struct top_column {
    int32_t column;
    float value;
} top_column;

/* What read_peaks is asked for of a row beside that, where a backend gives it. */
typedef struct row_wish {
    float scale;  /* of its sums; 0: none */
    int stays;    /* 1: the row itself is not wanted yet: it stays where it is */
    double point; /* 0 to 1: the block that is so far in the running sum of its sums; else: none */
} row_wish;

/* PEAK_COLS columns of a row, as many as there are. */
typedef struct row_block {
    int32_t first; /* column; -1: there is none */
    float values[PEAK_COLS];
} row_block;

/* Behind a row's peaks, where a backend gives more (gives_tops): its largest columns, its sums and a block, in
 * peaks_bytes altogether. */
static inline top_column *peaks_tops(float *peaks, int32_t n_cols)
{
    return (top_column *)(void *)(peaks + (peaks_count(n_cols) + 1) / 2 * 2);
}

static inline double *peaks_sums(float *peaks, int32_t n_cols)
{
    return (double *)(void *)(peaks_tops(peaks, n_cols) + TOP_COLUMNS);
}

static inline row_block *peaks_block(float *peaks, int32_t n_cols)
{
    return (row_block *)(void *)(peaks_sums(peaks, n_cols) + peaks_count(n_cols));
}

static inline size_t peaks_bytes(int32_t n_cols, int gives_tops)
{
    size_t n = (size_t)peaks_count(n_cols);
    return gives_tops ? (n + 1) / 2 * 8 + TOP_COLUMNS * sizeof(top_column) + n * sizeof(double) +
                            sizeof(row_block)
                      : n * sizeof(float);
}

/* The same memory seen with rows of another length; n_rows * n_cols stays. */
static inline tensor tensor_reshape(tensor t, int32_t n_cols)
{
    return (tensor){t.data, (int32_t)((int64_t)t.n_rows * t.n_cols / n_cols), n_cols};
}

/* ---- keys and values ---------------------------------------------------------------------- */

#define KV_PAGE_TOKENS 32 /* tokens a page; a page id names that page in every layer */

typedef struct kv_layer_shape {
    int32_t n_kv_heads, key_dim, value_dim; /* key_dim: elements of one head's key */
} kv_layer_shape;

typedef struct kv_shape {
    int32_t n_layers;
    const kv_layer_shape *layers; /* [n_layers], copied */
    int32_t n_pages;              /* page ids are 0 .. n_pages-1 */
    dtype type;                   /* DTYPE_F16 or DTYPE_Q8_0 (then dims are multiples of 32) */
} kv_shape;

typedef struct kv_store kv_store; /* opaque: the pages of all layers */

/* Which sequences the rows of a step belong to. Host memory, borrowed from begin to end. */
typedef struct step_rows {
    int32_t n_tokens;
    const int32_t *positions; /* [n_tokens] place of each token in its sequence, from 0 */
    const int32_t *sequences; /* [n_tokens] index into page_tables; rows of one sequence are
                                    neighbours and ascend by one in position */
    int32_t n_sequences;
    const int32_t *const *page_tables; /* [n_sequences] -> page ids, in order of position */
} step_rows;

/* ---- parameters of operations --------------------------------------------------------------- */

typedef enum norm_kind { NORM_RMS, NORM_LAYER } norm_kind;

typedef enum rope_kind {
    ROPE_NORMAL, /* rotates (x[2i], x[2i+1]) */
    ROPE_NEOX,   /* rotates (x[i], x[i + n_rot/2]) */
} rope_kind;

/* Rotary embedding, reduced to what a device needs: angle of pair i at position p is
 * p * inverse_frequency[i]; cos and sin are multiplied by magnitude (YaRN's attention factor).
 * Scaling kinds (linear, YaRN, llama3 factors) are folded into inverse_frequency by the model.
 * Host memory, must stay as long as the backend is used with it. */
typedef struct rope {
    rope_kind kind;
    int32_t n_rot;                  /* dimensions rotated, from the start of each head; even */
    const float *inverse_frequency; /* [n_rot / 2] */
    float magnitude;
} rope;

typedef enum activation_kind {
    ACTIVATION_SILU,
    ACTIVATION_GELU_TANH,
    ACTIVATION_GELU
} activation_kind;

typedef struct attention_options {
    int32_t layer;
    int32_t n_heads; /* query heads; a multiple of the layer's n_kv_heads */
    float scale;     /* scores are scale * q.k */
    float soft_cap;  /* 0, or scores become soft_cap * tanh(score / soft_cap) */
    int32_t window;  /* 0, or a token sees itself and the window-1 tokens before it */
} attention_options;

typedef struct weight_source {
    uint32_t type; /* dtype in the file */
    int32_t n_rows, n_cols;
    const void *data;  /* the file's bytes, mapped; borrowed until weight_close */
    const char *name;  /* for messages; borrowed for the call */
    int32_t first_row; /* where the rows stand in the tensor of that name: 0 unless a part */
    struct weight_cache *cache; /* asked for the packed form and told of it (weight_cache.h); NULL:
                                   none. Stays until weight_close */
    /* Two matrices of one shape and type that only gated_matmul and, both together and without biases, matmul read may be
     * opened as a pair: a backend may lay them out as one. */
    int begins_pair;     /* 1: this is the first */
    const weight *first; /* this is the second, of that; NULL: it is not */
    int from_file;       /* 1: data is a clean mapping of a file, so that a backend which made its
                              own copy may drop the pages (madvise); 0: leave them */
} weight_source;

typedef struct backend_memory {
    uint64_t total_bytes, free_bytes; /* of the device, as far as this process may use it */
    char bound[192];                  /* what sets free_bytes, for the log: "the machine" */
    uint64_t page_bytes;              /* of the free ones, what keys and values may take unless the
                                         user says otherwise */
    uint64_t weight_bytes;            /* what the weights made so far take beside the mapping; of
                                         a weight_cache's bytes too */
} backend_memory;

/* ---- the table ------------------------------------------------------------------------------ */

typedef struct backend_table {
    const char *kind; /* "cpu", "cuda" */

    void (*close)(backend *b);
    void (*describe)(const backend *b, char *text, size_t size); /* one line for the log */
    void (*memory)(const backend *b, backend_memory *out);

    /* Weights. Made and closed by the loading thread while no step runs.
     *   REALM_UNSUPPORTED  the type has no kernel here
     *   REALM_NO_MEMORY    the device is full */
    realm_status (*weight_open)(backend *b, weight **out, const weight_source *source,
                                realm_error *error);
    void (*weight_close)(backend *b, weight *w);

    /* Scratch tensors, zeroed. */
    realm_status (*tensor_open)(backend *b, tensor *out, int32_t n_rows, int32_t n_cols,
                                realm_error *error);
    void (*tensor_close)(backend *b, tensor *t);
    /* Between host and device; both wait until earlier work is done. */
    void (*write)(backend *b, tensor to, const float *from);
    void (*read)(backend *b, float *to, tensor from);
    /* Row i to to[i] [n_cols], and to peaks[i] [peaks_count(n_cols)] the largest of every PEAK_COLS
     * columns, NaN where one of them is NaN; what host threads there are share the work. Waits. NULL:
     * read is all there is. wishes, which may be NULL, are for gives_tops; others take no notice of them. */
    void (*read_peaks)(backend *b, float *const *to, float *const *peaks, const row_wish *wishes,
                       tensor from);
    /* 1: read_peaks writes more behind a row's peaks, which are aligned to 8 bytes then. To peaks_tops its
     * TOP_COLUMNS largest columns (all, if it has fewer): largest first, of equal ones the first one first, a
     * NaN as -INFINITY. To peaks_sums, if a scale is wished, for every PEAK_COLS columns the sum of
     * exp(x * scale - most * scale), most being the row's largest, in the bits of exp_parts.h; anything where
     * most is no finite number; NaN in the first one where it could not make them. To peaks_block, if they
     * are made, the block at the wished point, if rounding lets it be found. */
    int gives_tops;
    /* A row that stayed, out of what read_peaks read from last, which nothing may write to meanwhile. Any
     * thread, one at a time. NULL: rows do not stay, whatever is wished. */
    void (*read_row)(backend *b, float *to, tensor row);
    /* Host memory that read_peaks fills fastest, for to and peaks alike; other memory is right as
     * well, and slower. Uninitialized, aligned to 64 bytes. NULL: there is none left. Any thread. Both
     * NULL where memory is all the same. */
    void *(*host_open)(backend *b, size_t bytes);
    void (*host_close)(backend *b, void *memory); /* NULL allowed */

    /* Pages. Contents of a new page are undefined. */
    realm_status (*kv_open)(backend *b, kv_store **out, const kv_shape *shape, realm_error *error);
    void (*kv_close)(backend *b, kv_store *kv);
    void (*kv_copy_page)(backend *b, kv_store *kv, int32_t to, int32_t from);
    /* A page of all layers to host memory and back, kv_page_bytes of them, as it lies on this device. In
     * order with other work, and maybe not done when they return: only these two may read or change
     * that memory until host_close. It is host_open's where there is one. */
    size_t (*kv_page_bytes)(const backend *b, const kv_store *kv);
    void (*kv_save_page)(backend *b, kv_store *kv, void *to, int32_t from);
    void (*kv_load_page)(backend *b, kv_store *kv, int32_t to, const void *from);
    /* Keys or values of tokens [first, first+count) of one sequence as F32, [count, n_kv_heads *
     * dim], for the host. Waits. */
    void (*kv_read)(backend *b, kv_store *kv, int32_t layer, int values, const int32_t *page_table,
                    int32_t first, int32_t count, float *to);

    /* NULL for devices without host threads. The calling thread works along in the owner's
     * operations until wanted(context) says 1 or nothing was to be done for a while. 0: there was no
     * room for it, it did nothing. Any thread but the owner, of ordinary priority; wanted is asked
     * about every few microseconds. See compute/cpu/pool.h. */
    int (*lend)(backend *b, int (*wanted)(void *context), void *context);

    /* The most rows, at least n_rows, that a step takes hardly longer with than with n_rows: the end of the tile
     * that the last of them is in. NULL for devices whose time grows row by row. */
    int32_t (*filled_rows)(const backend *b, int32_t n_rows);

    void (*begin)(backend *b, const step_rows *rows);
    void (*end)(backend *b);

    /* What follows belongs to this layer, or after the last to the head (layer = n_layers), and reads
     * of earlier results x [rows in flight, n_embd] alone. NULL where it makes no difference; for
     * devices that divide the layers between them (backend_split.h). */
    void (*enter_layer)(backend *b, int32_t layer, tensor x);

    /* out[i, :] = scale * w[ids[i], :].  ids is host memory, [out.n_rows], each < w.n_rows. */
    void (*embed)(backend *b, tensor out, const weight *w, const int32_t *ids, float scale);

    /* out[i, :] = norm(x[i, :]) * gain + bias.  gain, bias: F32 weights of one row, or NULL.
     * RMS: x / sqrt(mean(x^2) + epsilon).  LAYER: (x - mean) / sqrt(variance + epsilon).
     * out may be x. */
    void (*norm)(backend *b, tensor out, tensor x, norm_kind kind, const weight *gain,
                 const weight *bias, float epsilon);

    /* outs[j][i, r] = sum_c ws[j][r, c] * x[i, c]  (+ biases[j][r] where biases and biases[j] are
     * not NULL) for the count products that share the input x, which is prepared once. Products of
     * x are exact in F32 for F32 weights; for others the backend may round or quantize x (documented
     * in its file, with the error measured; the processor's does so for quantized weights alone). */
    void (*matmul)(backend *b, const tensor *outs, tensor x, const weight *const *ws,
                   const weight *const *biases, int32_t count);

    /* Rotates every head of x [n_tokens, n_heads * head_dim] in place; positions [n_tokens] is
     * host memory. Queries and keys that kv_write and attention are given next in a step may be
     * rotated on the way there alone: behind attention nobody may ask what they are. */
    void (*apply_rope)(backend *b, tensor x, int32_t head_dim, const rope *r,
                       const int32_t *positions);

    /* Writes k [n_tokens, n_kv_heads * key_dim] and v of the step's rows into their pages, which no
     * other sequence of the step has. */
    void (*kv_write)(backend *b, kv_store *kv, int32_t layer, tensor k, tensor v);

    /* out [n_tokens, n_heads * value_dim]: softmax attention of each of the step's rows over the
     * tokens 0 .. its position of its sequence, read from pages (its own row included, so
     * kv_write comes first). */
    void (*attention)(backend *b, tensor out, tensor q, kv_store *kv,
                      const attention_options *options);

    /* out = act(gate) * up, elementwise; out may be gate. */
    void (*gated)(backend *b, tensor out, tensor gate, tensor up, activation_kind kind);

    /* out = act(ws[0] x) * (ws[1] x), for two weights of one shape: bit for bit what matmul of both
     * and gated give, but what a thread has multiplied it activates at once, while it is in its
     * cache. up [as out] is written over. NULL: matmul and gated are all there is. */
    void (*gated_matmul)(backend *b, tensor out, tensor up, tensor x, const weight *const ws[2],
                         activation_kind kind);

    /* x += scale * (w in): bit for bit what matmul and add give. room [as x] is written over. A norm of x that
     * follows may be made along with it as products read it; other operations get its floats as long as x stays what it is
     * then. NULL: matmul and add are all there is. */
    void (*matmul_add)(backend *b, tensor x, tensor room, tensor in, const weight *w, float scale);

    /* out = x + scale * y, elementwise; out may be x. */
    void (*add)(backend *b, tensor out, tensor x, tensor y, float scale);

    /* x = cap * tanh(x / cap) in place: the soft cap of logits. */
    void (*soft_cap)(backend *b, tensor x, float cap);

    /* out[i, :] = x[rows[i], :]; rows is host memory, [out.n_rows]. */
    void (*gather)(backend *b, tensor out, tensor x, const int32_t *rows);
} backend_table;

struct backend {
    const backend_table *table;
};

/* As the table's entries of these names, on any device. */
static inline void backend_gated_matmul(backend *b, tensor out, tensor up, tensor x,
                                        const weight *const ws[2], activation_kind kind)
{
    if (b->table->gated_matmul) {
        b->table->gated_matmul(b, out, up, x, ws, kind);
        return;
    }
    const tensor outs[] = {out, up};
    b->table->matmul(b, outs, x, ws, NULL, 2);
    b->table->gated(b, out, out, up, kind);
}

static inline void backend_matmul_add(backend *b, tensor x, tensor room, tensor in, const weight *w,
                                      float scale)
{
    if (b->table->matmul_add) {
        b->table->matmul_add(b, x, room, in, w, scale);
        return;
    }
    b->table->matmul(b, &room, in, &w, NULL, 1);
    b->table->add(b, x, x, room, scale);
}

/* ---- devices -------------------------------------------------------------------------------- */

typedef struct backend_cpu_options {
    int32_t n_threads; /* 0: cpu_count() */
    int reference;     /* only the scalar reference kernels: the truth that tests compare with */
    int exact;         /* quantized weights are multiplied with F32 activations: slower, for
                             measuring what quantizing activations costs */
} backend_cpu_options;

/* The processor's cores. options may be NULL. Closed with table->close. Any thread, once each. By a word
 * of the user's, this or another device: backend_open.h. */
realm_status backend_cpu_open(backend **out, const backend_cpu_options *options,
                              realm_error *error);

#endif
