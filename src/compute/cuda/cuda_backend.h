/* compute/cuda/cuda_backend.h: the insides of the backend that runs on one CUDA device.
 *
 * Operations are recorded, not run: step.c keeps a list of launches, and what they need of the host
 * (token ids, positions, page tables) is copied beside it into one block. At the end of a step, or of
 * an operation outside of one, the block goes to the device in one copy and the launches follow on one
 * stream; a list seen before is one recorded graph. Between, operations that follow each other may
 * become one launch (operations.c).
 *
 *     backend_cuda.c    the table, memory, tensors, pages
 *     weights.c         from a file's bytes to packed tiles
 *     step.c            the block, the list, graphs
 *     operations.c      operations on rows and elements as launches; what waits
 *     inputs.c          the input of products
 *     products.c        products as launches
 *     attention.c       rotations, the writing of keys, attention as launches
 *     attention_plan.c  how attention's work is cut
 *     reading.c         results on their way to the host
 *     *.cu              the kernels; kernels.h says what each takes
 *
 * One thread, the engine's. A failure of the device after opening (it is lost, or a kernel of ours is
 * wrong) is logged once; from then on nothing runs and every number read is NaN, which the engine
 * reports as the model's failure. */
#ifndef REALM_COMPUTE_CUDA_CUDA_BACKEND_H
#define REALM_COMPUTE_CUDA_CUDA_BACKEND_H

#include <assert.h>
#include <cuda_runtime_api.h>
#include <pthread.h>

#include "compute/backend.h"
#include "compute/cuda/kernels.h"

typedef struct cuda_weight {
    weight head;
    packed p;
    uint8_t *memory; /* what p points into */
    uint64_t bytes;
} cuda_weight;

struct kv_store {
    dtype type;
    int32_t n_layers, n_pages;
    int64_t page_bytes;
    uint8_t *pages;
    cuda_kv_layer layers[];
};

/* ---- the recorded step -------------------------------------------------------------------------- */

typedef struct launch {
    const void *function;
    uint32_t grid[3], threads, shared_bytes;
    uint32_t arguments, size; /* in step.arguments */
    uint32_t cluster;         /* blocks of a cluster along x; 1: none */
} launch;

typedef struct step_graph {
    uint64_t hash;
    uint64_t used;  /* tick of the last use */
    uint64_t times; /* that it was used */
    launch *launches;
    uint8_t *arguments;
    uint32_t n_launches, n_arguments;
    cudaGraphExec_t graph; /* NULL: not recorded yet */
} step_graph;

#define STEP_GRAPHS_MAX 96
#define STEP_PARTS      2

typedef struct step {
    launch *launches;
    uint8_t *arguments;
    uint32_t n_launches, launches_room, n_arguments, arguments_room;
    /* The block: the same bytes in pinned host memory and on the device. */
    uint8_t *host, *device;
    size_t used, room, copied; /* copied: what of used the device has */
    cudaEvent_t sent;          /* the block's last copy has left the host's memory */
    int sending;
    int part;      /* of the step, that is recorded now */
    uint64_t tick; /* lists that were run */
    step_graph graphs[STEP_GRAPHS_MAX];
    step_graph *recent[STEP_PARTS]; /* those of graphs that were asked for last; NULL: none yet */
} step;

/* ---- what a step's rows need on the device, made when first asked for --------------------------- */

#define ROPES_MAX 4
#define PLANS_MAX 8

typedef struct staged_rope {
    const rope *of;
    const int32_t *positions;
    int32_t n_tokens;
    float *cosines, *sines;
} staged_rope;

/* Tiles of attention for layers of one shape. */
typedef struct attention_plan {
    int32_t group, n_kv_heads, value_stride, staged; /* staged: by the kernel of that name */
    int32_t tile_queries, together;                  /* together: staged, warps that share a tile */
    int32_t most; /* tokens of a sequence that is split; staged: units of a tile that is not */
    const attention_tile *split, *walk;           /* on the device, one after the other */
    int32_t n_split, n_walk, units, most_queries; /* most_queries: of a tile */
    int32_t most_rows;                            /* of a sequence */
} attention_plan;

typedef struct staged_rows {
    const int32_t *positions, *slots, *page_ids; /* on the device; NULL: not yet */
    int32_t pages_stride;                        /* page ids a sequence */
    staged_rope ropes[ROPES_MAX];
    attention_plan plans[PLANS_MAX];
    int32_t n_ropes, n_plans;
} staged_rows;

/* ---- the backend -------------------------------------------------------------------------------- */

typedef struct host_piece host_piece;

typedef struct cuda_backend {
    backend head;
    int32_t device, major, minor, n_multiprocessors, shared_most;
    int32_t wgmma;    /* 9.0, and the kernels for it are there */
    int32_t has_pool; /* the device gives memory in small pieces */
    int32_t
        resident[PACKED_KINDS][2]
                [MATMUL_KERNELS]; /* blocks that run at once on the whole device; 0: not here, for
                                         want of shared memory */
    char name[256];
    cudaStream_t stream;
    int failed;
    int in_step;
    step_rows rows; /* of the current step; n_tokens 0 outside */
    step step;
    staged_rows staged;
    uint64_t weight_bytes;

    /* The input of products, and whose it is: rows of prepared_of, or nobody's if data is NULL (inputs.c). */
    uint8_t *
        prepared[2]; /* taken in turn, so that a product can make the next input of what it reads */
    size_t prepared_bytes;
    int prepared_now;
    tensor prepared_of;
    prepared input;
    row_sums *sums;
    size_t sums_bytes;
    int32_t next_sums, sums_stride;
    struct { /* the last norm: out is the norm of x, or nobody's */
        tensor out, x;
        const float *gain;
        const row_sums *before;
        float epsilon;
        int lacks_floats; /* out has not been written */
    } normed;
    tensor attended; /* attention's last results, or rows of them */
    tensor
        stream_of; /* what was normed last, as it was or as it has grown since, and the sums of that norm */
    row_sums *stream_sums;

    float *angles; /* cosines and sines of a step's ropes */
    size_t angles_bytes, angles_used;
    float *partials; /* attention_split's */
    size_t partials_bytes;
    float *parts; /* stream.cu's, and its counters: two for each block that runs at once */
    int32_t *counters;

    /* Recorded later, because what follows may take them along (operations.c). */
    struct { /* x += scale * w in, by way of room */
        int waiting;
        tensor x, room;
        prepared in;
        const packed *w;
        float scale;
    } product;
    struct {
        int waiting;
        tensor out, x, y;
        float scale;
    } addition;
    struct {
        int32_t n;
        const rope *rope;
        const int32_t *positions;
        tensor x[2];
        int32_t head_dim[2];
    } turns;
    struct { /* alone: what comes before it is settled then */
        int waiting;
        kv_write_args args;
        tensor k, v;
    } writing;

    /* The last operation's result, and what of it lies in pinned host memory (reading.c). */
    tensor last, landed;
    uint8_t *landing;
    size_t landing_bytes;
    cudaStream_t row_stream; /* of cuda_read_row, whose thread is any */
    pthread_mutex_t host_mutex;
    host_piece *host_pieces; /* guarded by host_mutex */

    /* Uploads: two pieces in flight. */
    uint8_t *upload_host[2], *upload_device[2];
    size_t upload_bytes;
    cudaEvent_t upload_done[2];
} cuda_backend;

static inline cuda_backend *cuda_self(backend *b)
{
    return (cuda_backend *)b;
}

static inline size_t tensor_bytes(tensor t)
{
    return (size_t)t.n_rows * (size_t)t.n_cols * sizeof *t.data;
}

/* Every call of the library is about the thread's current device; loading and the engine are different
 * threads. */
static inline void cuda_use(const cuda_backend *b)
{
    cudaSetDevice(b->device);
}

/* 1 if all is well; else logs the first time and fails the backend. */
int cuda_ok(cuda_backend *b, cudaError_t code, const char *what);
/* The same as a refusal. */
realm_status cuda_refuse(realm_error *error, cudaError_t code, size_t bytes, const char *what);

/* Memory of weights and tensors, some hundreds of pieces: from the device's pool, as each piece of cudaMalloc's own is
 * rounded up to 2 MiB. In order with the stream. memory: NULL allowed. */
cudaError_t cuda_take(cuda_backend *b, void **memory, size_t bytes);
void cuda_give(cuda_backend *b, void *memory);

/* Grows a piece of device memory whose content may be lost. The device must be idle. */
realm_status cuda_reserve(void **memory, size_t *size, size_t bytes, const char *what,
                          realm_error *error);

/* ---- step.c ------------------------------------------------------------------------------------- */

realm_status step_init(cuda_backend *b, realm_error *error);
void step_release(cuda_backend *b);

/* Sees to it that bytes can be staged without running what was recorded: an operation that stages several
 * things asks for them together first. */
void step_need(cuda_backend *b, size_t bytes);
/* A copy of n bytes of the host's for the launches to come: its device address. Never fails: if
 * there is no memory left the backend has. */
void *step_stage(cuda_backend *b, const void *bytes, size_t n);
/* The same, to be filled by the caller before it records anything else. */
void *step_stage_room(cuda_backend *b, size_t n, void **host);
void step_record(cuda_backend *b, const void *function, uint32_t grid_x, uint32_t grid_y,
                 uint32_t grid_z, uint32_t threads, uint32_t shared_bytes, const void *arguments,
                 size_t size);
/* The usual ones: a grid of two dimensions, no shared memory asked for. */
static inline void step_record_rows(cuda_backend *b, const void *function, uint32_t grid_x,
                                    uint32_t grid_y, uint32_t threads, const void *arguments,
                                    size_t size)
{
    step_record(b, function, grid_x, grid_y, 1, threads, 0, arguments, size);
}
/* The same with clusters of all blocks along x, which is at most 8. */
void step_record_cluster(cuda_backend *b, const void *function, uint32_t grid_x, uint32_t grid_y,
                         uint32_t threads, const void *arguments, size_t size);
/* Runs what was recorded and not yet run; forgets what was staged. */
void step_flush(cuda_backend *b);

/* ---- reading.c: entries of the table ------------------------------------------------------------ */

void cuda_read(backend *b, float *to, tensor from);
void cuda_read_peaks(backend *b, float *const *to, float *const *peaks, const row_wish *wishes,
                     tensor from);
void cuda_read_row(backend *b, float *to, tensor row);
void *cuda_host_open(backend *b, size_t bytes);
void cuda_host_close(backend *b, void *memory);
void cuda_reading_release(cuda_backend *b);
/* What is read from a device that has failed. */
void cuda_fill_nan(float *to, size_t n);

/* ---- weights.c ---------------------------------------------------------------------------------- */

realm_status cuda_weight_open(backend *b, weight **out, const weight_source *source,
                              realm_error *error);
void cuda_weight_close(backend *b, weight *w);
void cuda_weights_release(cuda_backend *b);

/* ---- operations.c -------------------------------------------------------------------------------- */

/* Records what waits, all or one kind of it; every reading of results comes after it. */
void operations_settle(cuda_backend *b);
void operations_settle_product(cuda_backend *b);
void operations_settle_addition(cuda_backend *b);
/* out has a new content. */
void operations_wrote(cuda_backend *b, tensor out);
/* The same of the stream, which was added to: it stays known as what was normed. */
void operations_grew(cuda_backend *b, tensor x);
/* At an operation's end: outside of a step it runs at once. */
void operations_finish(cuda_backend *b);
/* Each fills its operations' rows of the table. */
void operations_fill(backend_table *table);
void products_fill(backend_table *table);
void attention_fill(backend_table *table);

static inline const packed *cuda_packed_of(const weight *w)
{
    return &((const cuda_weight *)w)->p;
}

/* A gain or bias of n elements, or NULL. */
static inline const float *cuda_vector_of(const weight *w, int32_t n)
{
    if (!w)
        return NULL;
    assert(w->type == DTYPE_F32 && (int64_t)w->n_rows * w->n_cols == n);
    (void)n;
    return (const float *)(const void *)cuda_packed_of(w)->planes;
}

static inline size_t tensor_elements(tensor t)
{
    return (size_t)t.n_rows * (size_t)t.n_cols;
}

/* Threads of a block that has one row, four columns each: a function of the row's length alone, as sums
 * of floats depend on it. */
static inline uint32_t cuda_row_threads(int32_t n_cols)
{
    return n_cols >= 4096 ? 1024 : ((uint32_t)n_cols + 127) / 128 * 32;
}

static inline int32_t cuda_power_of_two(int32_t n, int32_t least)
{
    while (least < n)
        least *= 2;
    return least;
}

/* ---- inputs.c ---------------------------------------------------------------------------------------- */

/* Room for an input of so many rows and columns. The device must be idle; what was prepared is lost. */
realm_status inputs_reserve(cuda_backend *b, int64_t n_rows, int64_t n_cols, realm_error *error);
/* Nothing is known of any tensor, and at a step's begin. */
void inputs_forget(cuda_backend *b);
void inputs_begin(cuda_backend *b);
int tensors_overlap(tensor a, tensor b);
/* out has a new content, or will have when what is recorded next has run. */
void inputs_wrote(cuda_backend *b, tensor out);

/* Whether so many rows are prepared in tiles, for stream.cu, or as matmul.cu reads them. */
int inputs_are_tiles(const cuda_backend *b, int32_t n_rows);
int inputs_fit(const cuda_backend *b, tensor x);
/* x as halves: rows of what is prepared, or made now. */
prepared inputs_prepare(cuda_backend *b, tensor x);
/* The same as FINAL; p is what inputs_prepare gave last. */
prepared inputs_settle(cuda_backend *b, prepared p);
/* Where an operation that writes out, by whole rows, also puts it as a product's input, or in parts. Nowhere (halves is
 * NULL) if it does not fit; in parts: it must fit. Both after inputs_wrote. */
prepared inputs_along(cuda_backend *b, tensor out);
prepared inputs_in_parts(cuda_backend *b, tensor out);
/* out, just written, are results of attention, which are smaller than others. */
void inputs_attended(cuda_backend *b, tensor out);
/* Records a norm by RMS of x, whose rows a says: x alone, or what is added to become x. */
void inputs_norm(cuda_backend *b, tensor out, tensor x, norm_args *a);
/* The place of a norm that a product makes as it adds to x, which must have been normed before (inputs_sums_of). Its floats
 * are made when they are asked for, until x changes. */
prepared inputs_norm_in_parts(cuda_backend *b, tensor out, tensor x, const float *gain,
                              float epsilon);
/* x is about to be read as floats. */
void inputs_need_floats(cuda_backend *b, tensor x);
/* The sums of x when it was last normed, before anything was added to it; NULL: it never was. */
row_sums *inputs_sums_of(const cuda_backend *b, tensor x);
/* out becomes rows of x, as a says: with them goes what is known of them. Instead of inputs_wrote. */
void inputs_gathered(cuda_backend *b, tensor out, rows_args *a, tensor x);

/* ---- attention_plan.c ----------------------------------------------------------------------------- */

/* Of the step's rows, for layers of this shape; made when first asked for, and valid until the step is flushed. The step's
 * page ids are staged. */
const attention_plan *attention_find_plan(cuda_backend *b, const cuda_kv_layer *l, int32_t group);

/* ---- attention.c ---------------------------------------------------------------------------------- */

/* Record what waits: rotations, and keys and values that are to be written. */
void attention_settle_turns(cuda_backend *b);
void attention_settle_writing(cuda_backend *b);

/* ---- products.c ----------------------------------------------------------------------------------- */

/* function is NULL if it does not have the epilogue. */
matmul_kernel cuda_matmul_kernel(const cuda_backend *b, int32_t kind, int32_t k_scales, int which,
                                 int epilogue);
/* Records a product of one weight, or of a pair, with what a says beside. */
void products_record(cuda_backend *b, matmul_args *a, const packed *w, prepared x);

/* A prepared input of n_rows tokens: their scales, then halves of whole groups of 8 tokens. */
static inline size_t prepared_scale_bytes(int64_t n_rows)
{
    return (size_t)(((n_rows + 7) / 8 * 8 * 4 + 127) / 128 * 128);
}

static inline size_t prepared_size(int64_t n_rows, int64_t n_cols)
{
    int64_t padded = (n_cols + PACKED_COLS - 1) / PACKED_COLS * PACKED_COLS;
    return prepared_scale_bytes(n_rows) + (size_t)((n_rows + 7) / 8 * 8 * padded * 2);
}

#endif
