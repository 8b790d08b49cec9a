/* compute/cpu/cpu_backend.h: the insides of the backend that runs on the processor's cores.
 *
 * A cpu_backend is a pool of threads, a set of kernels for the instruction set found at run time,
 * and scratch memory. Every operation runs at once, on the calling (engine) thread and its pool;
 * begin and end only lend the step's rows. backend_cpu.c holds the table and splits work over the
 * pool; products.c, attention.c and rope_angles.c do so for what their names say. What happens
 * within a row, a block of queries or a panel of weights is a cpu_kernels function, compiled once
 * for each instruction set (isa_<name>.c) and written plainly once more in reference.c. */
#ifndef REALM_COMPUTE_CPU_CPU_BACKEND_H
#define REALM_COMPUTE_CPU_CPU_BACKEND_H

#include <assert.h>

#include "base/cpu.h"
#include "compute/backend.h"
#include "compute/cpu/kv_pages.h"
#include "compute/cpu/matmul.h"
#include "compute/cpu/pool.h"

/* ---- attention ------------------------------------------------------------------------------ */

/* Queries (tokens x heads that share a kv head) handled at once: enough that a page of keys,
 * converted once, is used often; few enough that scores and sums stay in the first-level cache. */
#define ATTENTION_QUERIES 32

/* Positions are walked in runs of this many pages, counted from position 0. Each run's softmax
 * sums begin anew and the runs are combined in order, always, so that a long sequence's runs can
 * go to different threads without a bit of the result changing. */
#define ATTENTION_SPLIT_PAGES 8

/* One piece of attention: some neighbouring tokens of one sequence, heads of one kv head, over the
 * runs of pages first_split .. first_split+n_splits-1. */
typedef struct attention_piece {
    const kv_store *kv;
    const kv_layer *layer;
    const int32_t *page_table;
    const attention_options *options;
    const float *q; /* [n_tokens, q_stride], at the first token's first head */
    float *out;     /* [n_tokens, out_stride], likewise */
    size_t q_stride, out_stride;
    int32_t n_tokens, n_heads; /* n_tokens * n_heads <= ATTENTION_QUERIES */
    int32_t kv_head;
    int32_t first_position; /* of the first token */
    int32_t first_split, n_splits;
    float *partial; /* NULL: combine and write out. Else write the one split's sums
                                  here, attention_partial_floats of them, and leave out alone */
} attention_piece;

/* Sums of one split: [n_queries] rows of attention_row_floats, each the value sums, then the
 * largest score, then the sum of weights. */
static inline size_t attention_row_floats(const kv_layer *l)
{
    return (size_t)(l->value_dim + 15) / 16 * 16 + 16;
}

/* ---- kernels -------------------------------------------------------------------------------- */

/* What one instruction set does. Pool threads call these on disjoint rows. Rows need no alignment;
 * NaN and infinity pass through as IEEE arithmetic has them. */
typedef struct cpu_kernels {
    const char *name;

    void (*scale)(float *x, int64_t n, float factor);
    /* As backend.h's operations, on one row (or n elements). gain, bias: F32 or NULL. */
    void (*norm)(float *out, const float *x, int32_t n, norm_kind kind, const float *gain,
                 const float *bias, float epsilon);
    void (*gated)(float *out, const float *gate, const float *up, int64_t n, activation_kind kind);
    void (*add)(float *out, const float *x, const float *y, int64_t n, float scale);
    void (*soft_cap)(float *x, int64_t n, float cap);
    /* Copies, and peaks [peaks_count(n)] as read_peaks has them. */
    void (*copy_peaks)(float *to, float *peaks, const float *from, int32_t n);
    /* One token's heads; cosines and sines [n_rot / 2], magnitude included. */
    void (*rotate)(float *x, int32_t n_heads, int32_t head_dim, const rope *r, const float *cosines,
                   const float *sines);

    /* Stores one token's head; as kv_pages_put. */
    void (*kv_put)(const kv_store *kv, const kv_layer *l, uint8_t *head, int32_t slot,
                   const float *key, const float *value);
    /* Bytes of scratch, 64-byte aligned, that attention needs for heads of this layer. */
    size_t (*attention_scratch)(const kv_layer *l);
    void (*attention)(const attention_piece *piece, void *scratch);
    /* Combines the n_splits partials (partial_floats apart; the first is overwritten) of a piece
     * and writes its out. NULL: this kernel cannot split. */
    void (*attention_combine)(const attention_piece *piece, float *partials, size_t partial_floats,
                              int32_t n_splits);

    const cpu_matmul *dense; /* F32 arithmetic on weights of every type */
} cpu_kernels;

extern const cpu_kernels cpu_kernels_reference;
#if defined(__aarch64__)
extern const cpu_kernels cpu_kernels_neon; /* every 64-bit ARM has it */
#else
extern const cpu_kernels cpu_kernels_generic;
#endif
#if defined(__x86_64__)
extern const cpu_kernels cpu_kernels_avx2, cpu_kernels_avx512;
#endif

/* The scalar product of any weight type, in double: what every other kernel is tested against. */
extern const cpu_matmul reference_matmul;

/* ---- the backend ---------------------------------------------------------------------------- */

/* Angles of one rope at one step's positions, computed once a step and used by every layer. */
typedef struct rope_angles {
    const rope *of;
    int32_t n_tokens, n_tokens_room, n_pairs, n_pairs_room;
    int32_t *positions; /* [n_tokens] they were computed for */
    float *cosines;     /* [n_tokens, n_pairs] */
    float *sines;       /* [n_tokens, n_pairs] */
} rope_angles;

#define ROPE_ANGLES_MAX 4 /* kinds of rope in one model: gemma3 has two */

typedef struct cpu_backend {
    backend head;
    const cpu_kernels *kernels;
    const cpu_matmul *matmuls[24]; /* asked in this order; NULL-terminated */
    pool *pool;
    step_rows rows; /* of the current step; n_tokens 0 outside */
    uint64_t weight_bytes;

    /* Prepared activations and partial sums of one operation. Sized by tensor_open, so that no
     * operation has to allocate: for any input that fits a tensor made here it is large enough. */
    uint8_t *scratch;
    size_t scratch_bytes;
    /* What each pool thread uses alone while inside attention; sized by kv_open. */
    uint8_t *thread_scratch;
    size_t thread_scratch_bytes; /* of one thread */

    rope_angles angles[ROPE_ANGLES_MAX];
    int32_t n_angles;
} cpu_backend;

/* Elements below which an operation runs on the caller alone: a few microseconds of work, where
 * sharing costs one or two. */
#define CPU_BACKEND_SMALL 16384

/* Runs task for n_items items, shared among the threads if that is worth waking them. */
void cpu_backend_share(cpu_backend *b, pool_task task, void *context, int64_t n_items,
                       int64_t elements_an_item);

/* A gain or bias of n elements, or NULL. */
static inline const float *cpu_backend_vector(const weight *w, int32_t n)
{
    if (!w)
        return NULL;
    assert(w->type == DTYPE_F32 && (int64_t)w->n_rows * w->n_cols == n);
    (void)n;
    return (const float *)(const void *)((const cpu_weight *)w)->data;
}

/* ---- operations of the table that have a file of their own ----------------------------------- */

/* products.c */

/* Rows of weights handed out as one piece: a multiple of MATMUL_ROW_STEP and of dense.inl's
 * block. */
#define PRODUCTS_ROWS   32
#define PRODUCTS_INPUTS 3 /* different prepare functions in one walk over the weights */

void products_run(backend *b, const tensor *outs, tensor x, const weight *const *ws,
                  const weight *const *biases, int32_t count);
void products_run_gated(backend *b, tensor out, tensor up, tensor x, const weight *const ws[2],
                        activation_kind kind);

/* attention.c */

void attention_run(backend *b, tensor out, tensor q, kv_store *kv,
                   const attention_options *options);

/* rope_angles.c */

void rope_angles_apply(backend *b, tensor x, int32_t head_dim, const rope *r,
                       const int32_t *positions);
void rope_angles_release(cpu_backend *b); /* frees the angles */

#endif
