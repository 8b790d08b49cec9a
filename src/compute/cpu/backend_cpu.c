/* compute/cpu/backend_cpu.c: the table of the processor's backend, and how each operation's work is
 * divided over the pool. See cpu_backend.h for the parts.
 *
 * Every operation is done when it returns, so read and end have nothing to wait for. Work is
 * divided by rows (or by elements, weight rows, pieces of attention): what a row's result is does
 * not depend on how. Operations too small to be worth waking anyone run on the caller alone.
 *
 * Quantized weights are multiplied with activations that the kernel at hand quantizes (see the
 * files of matmul_kernels.c for how, and for the error); with options.exact, and for types and
 * processors without such a kernel, activations stay F32 (dense.inl). */
#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/free_memory.h"
#include "compute/cpu/cpu_backend.h"
#include "compute/cpu/quants.h"
#include "compute/weight_cache.h"

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

/* Elements below which an operation runs on the caller alone: a few microseconds of work, where
 * sharing costs one or two. */
#define SMALL 16384

/* Rows of weights handed out as one piece: a multiple of MATMUL_ROW_STEP and of dense.inl's
 * block. */
#define PIECE_ROWS 32

/* Pieces a thread gets a product in, at least, so that a thread that lost its core for a while can
 * be helped. */
#define PIECES_A_THREAD 8

/* Prepared inputs of up to three kernels (cpu_matmul.input_bytes) for each element of a tensor. */
#define SCRATCH_BYTES_AN_ELEMENT 24
#define SCRATCH_BYTES_MORE       ((size_t)1 << 20)

#define MAX_INPUTS 3 /* different prepare functions in one call of matmul */

static cpu_backend *self(backend *b)
{
    return (cpu_backend *)b;
}

static void run_small_or_shared(cpu_backend *b, pool_task task, void *context, int64_t n_items,
                                int64_t elements_an_item)
{
    if (n_items * elements_an_item < SMALL) {
        if (n_items > 0)
            task(context, 0, n_items, 0);
        return;
    }
    int64_t grain = n_items / ((int64_t)pool_threads(b->pool) * 4);
    int64_t least = SMALL / 4 / (elements_an_item > 0 ? elements_an_item : 1);
    grain = grain > least ? grain : least;
    pool_run(b->pool, task, context, n_items, grain > 0 ? grain : 1);
}

/* ---- memory --------------------------------------------------------------------------------- */

static void *map_memory(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

/* Grows a mapping; what was in it is lost. Pages never touched cost nothing. */
static realm_status reserve(uint8_t **memory, size_t *size, size_t bytes, const char *what,
                            realm_error *error)
{
    if (bytes <= *size)
        return REALM_OK;
    uint8_t *grown = map_memory(bytes);
    if (!grown)
        return realm_fail_memory(error, bytes, what);
    if (*memory)
        munmap(*memory, *size);
    *memory = grown;
    *size = bytes;
    return REALM_OK;
}

static void memory(const backend *b, backend_memory *out)
{
    free_memory now;
    free_memory_read(&now, "");
    *out = (backend_memory){.total_bytes = now.total_bytes,
                            .page_bytes = now.free_bytes /
                                          3, /* weights, activations and others need room too */
                            .free_bytes = now.free_bytes,
                            .weight_bytes = ((const cpu_backend *)b)->weight_bytes};
    snprintf(out->bound, sizeof out->bound, "%s", now.bound);
}

static realm_status tensor_open(backend *backend_, tensor *out, int32_t n_rows, int32_t n_cols,
                                realm_error *error)
{
    cpu_backend *b = self(backend_);
    if (n_rows < 1 || n_cols < 1)
        return realm_fail(error, REALM_INVALID, "a tensor of %d x %d", n_rows, n_cols);
    size_t elements = (size_t)n_rows * (size_t)n_cols;
    if (elements > SIZE_MAX / SCRATCH_BYTES_AN_ELEMENT / 2)
        return realm_fail_memory(error, SIZE_MAX, "a tensor");
    realm_status status = reserve(&b->scratch, &b->scratch_bytes,
                                  elements * SCRATCH_BYTES_AN_ELEMENT + SCRATCH_BYTES_MORE,
                                  "scratch memory", error);
    if (status != REALM_OK)
        return status;
    float *data = map_memory(elements * sizeof *data);
    if (!data)
        return realm_fail_memory(error, elements * sizeof *data, "a tensor");
    *out = (tensor){data, n_rows, n_cols};
    return REALM_OK;
}

static void tensor_close(backend *b, tensor *t)
{
    (void)b;
    if (t->data)
        munmap(t->data, (size_t)t->n_rows * (size_t)t->n_cols * sizeof *t->data);
    *t = (tensor){0};
}

static size_t tensor_bytes(tensor t)
{
    return (size_t)t.n_rows * (size_t)t.n_cols * sizeof *t.data;
}

static void write_tensor(backend *b, tensor to, const float *from)
{
    (void)b;
    memcpy(to.data, from, tensor_bytes(to));
}

static void read_tensor(backend *b, float *to, tensor from)
{
    (void)b;
    memcpy(to, from.data, tensor_bytes(from));
}

typedef struct read_job {
    const cpu_kernels *kernels;
    float *const *to, *const *peaks;
    tensor from;
} read_job;

#define READ_COLS 2048 /* an item: these columns of every row */

/* Items go by columns as the product's pieces did, so a thread mostly copies what it computed. */
static void read_items(void *context, int64_t first, int64_t count, int32_t thread)
{
    const read_job *j = context;
    int32_t n = j->from.n_cols, at = (int32_t)first * READ_COLS,
            end = at + (int32_t)count * READ_COLS;
    (void)thread;
    end = end < n ? end : n;
    for (int32_t i = 0; i < j->from.n_rows; i++)
        j->kernels->copy_peaks(j->to[i] + at, j->peaks[i] + at / PEAK_COLS,
                               j->from.data + (size_t)i * (size_t)n + at, end - at);
}

static void read_peaks(backend *b, float *const *to, float *const *peaks, tensor from)
{
    read_job j = {self(b)->kernels, to, peaks, from};
    static_assert(READ_COLS % PEAK_COLS == 0, "an item ends with a peak");
    pool_run(self(b)->pool, read_items, &j, (from.n_cols + READ_COLS - 1) / READ_COLS, 1);
}

/* ---- weights -------------------------------------------------------------------------------- */

static void weight_close(backend *backend_, weight *w_)
{
    cpu_weight *w = (cpu_weight *)w_;
    if (!w)
        return;
    self(backend_)->weight_bytes -= w->packed_bytes;
    if (w->packed && w->kernel && w->kernel->unpack)
        w->kernel->unpack(w);
    else if (!w->is_kept)
        free(w->packed);
    free(w);
}

/* Keeps one copy: the file's pages come back from the file if the rows are read again (embed, of
 * weights whose kernel has no row). */
static void drop_file_pages(const weight_source *source, size_t bytes)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), at = (uintptr_t)source->data;
    uintptr_t first = (at + page - 1) / page * page, end = (at + bytes) / page * page;
    if (source->from_file && first < end)
        madvise((void *)first, end - first, MADV_DONTNEED);
}

/* Gains and biases are read as plain floats: one row of a float type is kept as aligned F32. */
static realm_status copy_row(cpu_weight *w, realm_error *error)
{
    size_t bytes = (size_t)w->head.n_cols * sizeof(float);
    float *row = malloc(bytes);
    if (!row)
        return realm_fail_memory(error, bytes, "a row of weights");
    quants_dequantize(w->head.type, row, w->data, w->head.n_cols);
    w->head.type = DTYPE_F32;
    w->data = (const uint8_t *)row;
    w->row_bytes = bytes;
    w->packed = row;
    w->packed_bytes = bytes;
    return REALM_OK;
}

static int is_float(uint32_t type)
{
    return type == DTYPE_F32 || type == DTYPE_F16 || type == DTYPE_BF16;
}

static void pack_pieces(void *context, int64_t first, int64_t count, int32_t thread)
{
    const cpu_weight *w = context;
    int64_t row = first * PIECE_ROWS, end = row + count * PIECE_ROWS;
    (void)thread;
    end = end < w->head.n_rows ? end : w->head.n_rows;
    w->kernel->pack_rows(w, (int32_t)row, (int32_t)(end - row));
}

static weight_key key_of(const cpu_weight *w, const weight_source *source)
{
    return (weight_key){.name = source->name,
                        .type = w->head.type,
                        .n_rows = w->head.n_rows,
                        .n_cols = w->head.n_cols,
                        .first_row = source->first_row,
                        .layout = w->kernel->layout,
                        .size = w->kernel->packed_size(w)};
}

/* Packs, or takes what was packed before. */
static realm_status pack_or_find(const cpu_backend *b, cpu_weight *w, const weight_source *source,
                                 realm_error *error)
{
    int keeps = source->cache && w->kernel->layout;
    weight_key key = keeps ? key_of(w, source) : (weight_key){0};
    const void *found = keeps ? weight_cache_find(source->cache, &key) : NULL;
    if (found) {
        w->packed = (void *)(uintptr_t)found;
        w->packed_bytes = key.size;
        w->is_kept = 1;
        return REALM_OK;
    }
    realm_status status = w->kernel->pack(w, error);
    if (status != REALM_OK)
        return status;
    if (w->kernel->pack_rows)
        pool_run(b->pool, pack_pieces, w, ((int64_t)w->head.n_rows + PIECE_ROWS - 1) / PIECE_ROWS,
                 1);
    return keeps ? weight_cache_add(source->cache, &key, w->packed, error) : REALM_OK;
}

static realm_status choose_kernel(const cpu_backend *b, cpu_weight *w, const weight_source *source,
                                  realm_error *error)
{
    for (int i = 0; b->matmuls[i] && !w->kernel; i++)
        if (b->matmuls[i]->accepts(w->head.type, w->head.n_rows, w->head.n_cols))
            w->kernel = b->matmuls[i];
    if (!w->kernel)
        return realm_fail(error, REALM_UNSUPPORTED, "tensor '%s': no product for type %s",
                          source->name, dtype_name(w->head.type));
    if (!w->kernel->pack)
        return REALM_OK;
    realm_status status = pack_or_find(b, w, source, error);
    if (status != REALM_OK)
        return realm_fail_in(error, status, "tensor '%s'", source->name);
    if (w->packed)
        drop_file_pages(source, w->row_bytes * (size_t)w->head.n_rows);
    return REALM_OK;
}

static realm_status check_source(const weight_source *s, realm_error *error)
{
    if (!quants_is_weight(s->type))
        return realm_fail(error, REALM_UNSUPPORTED, "tensor '%s' is of type %s (%u)", s->name,
                          dtype_name(s->type) ? dtype_name(s->type) : "unknown", s->type);
    if (s->n_rows < 1 || s->n_cols < 1 || dtype_row_bytes(s->type, (uint64_t)s->n_cols) == 0)
        return realm_fail(error, REALM_CORRUPT,
                          "tensor '%s': %d rows of %d are not whole blocks of %s", s->name,
                          s->n_rows, s->n_cols, dtype_name(s->type));
    if (is_float(s->type) && (uintptr_t)s->data % (s->type == DTYPE_F32 ? 4 : 2))
        return realm_fail(error, REALM_UNSUPPORTED, "tensor '%s' of %s is not aligned in its file",
                          s->name, dtype_name(s->type));
    return REALM_OK;
}

static realm_status weight_open(backend *backend_, weight **out, const weight_source *source,
                                realm_error *error)
{
    cpu_backend *b = self(backend_);
    realm_status status = check_source(source, error);
    if (status != REALM_OK)
        return status;
    cpu_weight *w = calloc(1, sizeof *w);
    if (!w)
        return realm_fail_memory(error, sizeof *w, "a weight");
    w->head = (weight){source->type, source->n_rows, source->n_cols};
    w->data = source->data;
    w->row_bytes = dtype_row_bytes(source->type, (uint64_t)source->n_cols);
    if (w->head.n_rows == 1 && is_float(w->head.type))
        status = copy_row(w, error);
    if (status == REALM_OK)
        status = choose_kernel(b, w, source, error);
    b->weight_bytes += w->packed_bytes;
    if (status != REALM_OK) {
        weight_close(backend_, &w->head);
        return status;
    }
    *out = &w->head;
    return REALM_OK;
}

/* A gain or bias of n elements, or NULL. */
static const float *vector_of(const weight *w, int32_t n)
{
    if (!w)
        return NULL;
    assert(w->type == DTYPE_F32 && (int64_t)w->n_rows * w->n_cols == n);
    (void)n;
    return (const float *)(const void *)((const cpu_weight *)w)->data;
}

/* ---- pages ---------------------------------------------------------------------------------- */

static realm_status kv_open(backend *backend_, kv_store **out, const kv_shape *shape,
                            realm_error *error)
{
    cpu_backend *b = self(backend_);
    kv_store *kv = NULL;
    realm_status status = kv_pages_open(&kv, shape, error);
    if (status != REALM_OK)
        return status;
    size_t most = 0;
    for (int32_t i = 0; i < kv->n_layers; i++) {
        size_t bytes = b->kernels->attention_scratch(&kv->layers[i]);
        most = bytes > most ? bytes : most;
    }
    most = (most + 127) & ~(size_t)127; /* threads share no pair of cache lines */
    size_t total = b->thread_scratch_bytes * (size_t)pool_threads(b->pool);
    if (most > b->thread_scratch_bytes) {
        status = reserve(&b->thread_scratch, &total, most * (size_t)pool_threads(b->pool),
                         "scratch memory for attention", error);
        if (status != REALM_OK) {
            kv_pages_close(kv);
            return status;
        }
        b->thread_scratch_bytes = most;
    }
    *out = kv;
    return REALM_OK;
}

static void kv_close(backend *b, kv_store *kv)
{
    (void)b;
    kv_pages_close(kv);
}

static void kv_copy_page(backend *b, kv_store *kv, int32_t to, int32_t from)
{
    (void)b;
    if (to != from)
        memcpy(kv->pages + (size_t)to * kv->page_bytes, kv->pages + (size_t)from * kv->page_bytes,
               kv->page_bytes);
}

static void kv_read(backend *b, kv_store *kv, int32_t layer, int values, const int32_t *page_table,
                    int32_t first, int32_t count, float *to)
{
    const kv_layer *l = &kv->layers[layer];
    int32_t dim = values ? l->value_dim : l->key_dim;
    (void)b;
    for (int32_t i = first; i < first + count; i++) {
        for (int32_t h = 0; h < l->n_kv_heads; h++, to += dim)
            kv_pages_get(kv, l, kv_pages_head(kv, l, page_table[i / KV_PAGE_TOKENS], h),
                         i % KV_PAGE_TOKENS, values, to);
    }
}

typedef struct kv_write_job {
    cpu_backend *b;
    kv_store *kv;
    const kv_layer *layer;
    tensor k, v;
} kv_write_job;

static void kv_write_rows(void *context, int64_t first, int64_t count, int32_t thread)
{
    const kv_write_job *j = context;
    const step_rows *rows = &j->b->rows;
    (void)thread;
    for (int64_t i = first; i < first + count; i++) {
        int32_t position = rows->positions[i];
        int32_t page = rows->page_tables[rows->sequences[i]][position / KV_PAGE_TOKENS];
        for (int32_t h = 0; h < j->layer->n_kv_heads; h++)
            j->b->kernels->kv_put(
                j->kv, j->layer, kv_pages_head(j->kv, j->layer, page, h), position % KV_PAGE_TOKENS,
                j->k.data + (size_t)i * (size_t)j->k.n_cols + (size_t)h * (size_t)j->layer->key_dim,
                j->v.data + (size_t)i * (size_t)j->v.n_cols +
                    (size_t)h * (size_t)j->layer->value_dim);
    }
}

static void kv_write(backend *b, kv_store *kv, int32_t layer, tensor k, tensor v)
{
    kv_write_job j = {self(b), kv, &kv->layers[layer], k, v};
    assert(k.n_rows == j.b->rows.n_tokens && v.n_rows == k.n_rows);
    assert(k.n_cols == j.layer->n_kv_heads * j.layer->key_dim);
    assert(v.n_cols == j.layer->n_kv_heads * j.layer->value_dim);
    run_small_or_shared(j.b, kv_write_rows, &j, k.n_rows, k.n_cols + v.n_cols);
}

/* ---- lending --------------------------------------------------------------------------------- */

static int lend(backend *b, int (*wanted)(void *context), void *context)
{
    return pool_lend(self(b)->pool, wanted, context);
}

/* ---- steps ---------------------------------------------------------------------------------- */

static void begin(backend *backend_, const step_rows *rows)
{
    cpu_backend *b = self(backend_);
    b->rows = *rows;
    b->n_angles = 0; /* a rope may have been freed and another be at its address */
}

static void end(backend *backend_)
{
    cpu_backend *b = self(backend_);
    b->rows = (step_rows){0};
    b->n_angles = 0;
}

/* ---- operations on rows --------------------------------------------------------------------- */

typedef struct embed_job {
    cpu_backend *b;
    tensor out;
    const cpu_weight *w;
    const int32_t *ids;
    float scale;
} embed_job;

static void embed_rows(void *context, int64_t first, int64_t count, int32_t thread)
{
    const embed_job *j = context;
    int32_t n = j->out.n_cols;
    (void)thread;
    for (int64_t i = first; i < first + count; i++) {
        float *out = j->out.data + (size_t)i * (size_t)n;
        assert(j->ids[i] >= 0 && j->ids[i] < j->w->head.n_rows);
        if (j->w->kernel && j->w->kernel->row)
            j->w->kernel->row(out, j->w, j->ids[i]);
        else
            quants_dequantize(j->w->head.type, out,
                              j->w->data + (size_t)j->ids[i] * j->w->row_bytes, n);
        if (j->scale != 1.0f)
            j->b->kernels->scale(out, n, j->scale);
    }
}

static void embed(backend *b, tensor out, const weight *w, const int32_t *ids, float scale)
{
    embed_job j = {self(b), out, (const cpu_weight *)w, ids, scale};
    assert(out.n_cols == w->n_cols);
    run_small_or_shared(j.b, embed_rows, &j, out.n_rows, out.n_cols);
}

typedef struct norm_job {
    cpu_backend *b;
    tensor out, x;
    norm_kind kind;
    const float *gain, *bias;
    float epsilon;
} norm_job;

static void norm_rows(void *context, int64_t first, int64_t count, int32_t thread)
{
    const norm_job *j = context;
    (void)thread;
    for (int64_t i = first; i < first + count; i++) {
        size_t at = (size_t)i * (size_t)j->x.n_cols;
        j->b->kernels->norm(j->out.data + at, j->x.data + at, j->x.n_cols, j->kind, j->gain,
                            j->bias, j->epsilon);
    }
}

static void norm(backend *b, tensor out, tensor x, norm_kind kind, const weight *gain,
                 const weight *bias, float epsilon)
{
    norm_job j = {self(b), out, x, kind, vector_of(gain, x.n_cols), vector_of(bias, x.n_cols),
                  epsilon};
    assert(out.n_rows == x.n_rows && out.n_cols == x.n_cols);
    run_small_or_shared(j.b, norm_rows, &j, x.n_rows, x.n_cols);
}

/* Elementwise operations are divided by elements: what a lane computes is the same in any place. */
typedef struct element_job {
    const cpu_kernels *kernels;
    float *out;
    const float *x, *y;
    float factor;
    activation_kind kind;
} element_job;

static void gated_elements(void *context, int64_t first, int64_t count, int32_t thread)
{
    const element_job *j = context;
    (void)thread;
    j->kernels->gated(j->out + first, j->x + first, j->y + first, count, j->kind);
}

static void gated(backend *b, tensor out, tensor gate, tensor up, activation_kind kind)
{
    element_job j = {self(b)->kernels, out.data, gate.data, up.data, 0, kind};
    assert(tensor_bytes(out) == tensor_bytes(gate) && tensor_bytes(gate) == tensor_bytes(up));
    run_small_or_shared(self(b), gated_elements, &j, (int64_t)gate.n_rows * gate.n_cols, 4);
}

static void add_elements(void *context, int64_t first, int64_t count, int32_t thread)
{
    const element_job *j = context;
    (void)thread;
    j->kernels->add(j->out + first, j->x + first, j->y + first, count, j->factor);
}

static void add(backend *b, tensor out, tensor x, tensor y, float scale)
{
    element_job j = {self(b)->kernels, out.data, x.data, y.data, scale, ACTIVATION_SILU};
    assert(tensor_bytes(out) == tensor_bytes(x) && tensor_bytes(x) == tensor_bytes(y));
    run_small_or_shared(self(b), add_elements, &j, (int64_t)x.n_rows * x.n_cols, 1);
}

static void soft_cap_elements(void *context, int64_t first, int64_t count, int32_t thread)
{
    const element_job *j = context;
    (void)thread;
    j->kernels->soft_cap(j->out + first, count, j->factor);
}

static void soft_cap(backend *b, tensor x, float cap)
{
    element_job j = {self(b)->kernels, x.data, NULL, NULL, cap, ACTIVATION_SILU};
    run_small_or_shared(self(b), soft_cap_elements, &j, (int64_t)x.n_rows * x.n_cols, 4);
}

/* In order, so that rows may also be moved up within one tensor. */
static void gather(backend *b, tensor out, tensor x, const int32_t *rows)
{
    size_t n = (size_t)x.n_cols;
    (void)b;
    assert(out.n_cols == x.n_cols);
    for (int32_t i = 0; i < out.n_rows; i++) {
        assert(rows[i] >= 0 && rows[i] < x.n_rows);
        memmove(out.data + (size_t)i * n, x.data + (size_t)rows[i] * n, n * sizeof *x.data);
    }
}

/* ---- rope ----------------------------------------------------------------------------------- */

/* Angles are taken in double: at position 100,000 a float is wrong by a hundredth of a radian. */
static void angles_at(const rope *r, int32_t position, float *cosines, float *sines)
{
    for (int32_t i = 0; i < r->n_rot / 2; i++) {
        double angle = (double)position * (double)r->inverse_frequency[i];
        cosines[i] = (float)(cos(angle) * (double)r->magnitude);
        sines[i] = (float)(sin(angle) * (double)r->magnitude);
    }
}

typedef struct angles_job {
    rope_angles *a;
} angles_job;

static void angles_rows(void *context, int64_t first, int64_t count, int32_t thread)
{
    const angles_job *j = context;
    (void)thread;
    for (int64_t i = first; i < first + count; i++) {
        size_t at = (size_t)i * (size_t)j->a->n_pairs;
        angles_at(j->a->of, j->a->positions[i], j->a->cosines + at, j->a->sines + at);
    }
}

static int angles_fit(rope_angles *a, int32_t n_tokens, int32_t n_pairs)
{
    if (n_tokens <= a->n_tokens_room && n_pairs <= a->n_pairs_room)
        return 1;
    size_t n = (size_t)n_tokens, pairs = n * (size_t)n_pairs;
    free(a->positions);
    free(a->cosines);
    free(a->sines);
    a->positions = malloc(n * sizeof *a->positions);
    a->cosines = malloc(pairs * sizeof *a->cosines);
    a->sines = malloc(pairs * sizeof *a->sines);
    int have = a->positions && a->cosines && a->sines;
    a->n_tokens_room = have ? n_tokens : 0;
    a->n_pairs_room = have ? n_pairs : 0;
    return have;
}

/* The step's angles of a rope, or NULL if there is no memory to keep them. */
static const rope_angles *find_angles(cpu_backend *b, const rope *r, const int32_t *positions,
                                      int32_t n_tokens)
{
    for (int32_t i = 0; i < b->n_angles; i++) {
        const rope_angles *a = &b->angles[i];
        if (a->of == r && a->n_tokens == n_tokens &&
            memcmp(a->positions, positions, (size_t)n_tokens * sizeof *positions) == 0)
            return a;
    }
    int32_t slot = b->n_angles < ROPE_ANGLES_MAX ? b->n_angles : 0;
    rope_angles *a = &b->angles[slot];
    if (!angles_fit(a, n_tokens, r->n_rot / 2)) {
        b->n_angles = slot; /* the slot holds nothing now, nor may those after it be found */
        return NULL;
    }
    b->n_angles = slot == b->n_angles ? slot + 1 : b->n_angles;
    a->of = r;
    a->n_tokens = n_tokens;
    a->n_pairs = r->n_rot / 2;
    memcpy(a->positions, positions, (size_t)n_tokens * sizeof *positions);
    angles_job j = {a};
    run_small_or_shared(b, angles_rows, &j, n_tokens, (int64_t)a->n_pairs * 32);
    return a;
}

typedef struct rope_job {
    cpu_backend *b;
    tensor x;
    int32_t head_dim;
    const rope *rope;
    const int32_t *positions;
    const rope_angles *angles;
} rope_job;

#define STACK_PAIRS 512

/* With no memory for a table: heads are turned STACK_PAIRS pairs' worth of angles at a time. */
static void rotate_without_table(const rope_job *j, float *x, int32_t position)
{
    float cosines[STACK_PAIRS], sines[STACK_PAIRS];
    assert(j->rope->n_rot / 2 <= STACK_PAIRS);
    angles_at(j->rope, position, cosines, sines);
    j->b->kernels->rotate(x, j->x.n_cols / j->head_dim, j->head_dim, j->rope, cosines, sines);
}

static void rope_rows(void *context, int64_t first, int64_t count, int32_t thread)
{
    const rope_job *j = context;
    (void)thread;
    for (int64_t i = first; i < first + count; i++) {
        float *x = j->x.data + (size_t)i * (size_t)j->x.n_cols;
        if (!j->angles) {
            rotate_without_table(j, x, j->positions[i]);
            continue;
        }
        size_t at = (size_t)i * (size_t)j->angles->n_pairs;
        j->b->kernels->rotate(x, j->x.n_cols / j->head_dim, j->head_dim, j->rope,
                              j->angles->cosines + at, j->angles->sines + at);
    }
}

static void apply_rope(backend *b, tensor x, int32_t head_dim, const rope *r,
                       const int32_t *positions)
{
    assert(x.n_cols % head_dim == 0 && r->n_rot <= head_dim && r->n_rot % 2 == 0);
    assert(r->n_rot / 2 <= STACK_PAIRS);
    rope_job j = {self(b), x, head_dim, r, positions, NULL};
    j.angles = find_angles(j.b, r, positions, x.n_rows);
    run_small_or_shared(j.b, rope_rows, &j, x.n_rows, x.n_cols);
}

/* ---- products ------------------------------------------------------------------------------- */

typedef struct matmul_job {
    const tensor *outs;
    const weight *const *ws;
    const weight *const *biases;
    int32_t count;
    const float *x;
    int32_t first_token, n_tokens, n_cols;
    const cpu_matmul *inputs[MAX_INPUTS]; /* a kernel for each different prepare */
    void *prepared[MAX_INPUTS];
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
    return ((int64_t)w->n_rows + PIECE_ROWS - 1) / PIECE_ROWS;
}

static void multiply_rows(const matmul_job *j, int32_t i, int64_t first, int64_t count)
{
    const cpu_weight *w = (const cpu_weight *)j->ws[i];
    int32_t row = (int32_t)first * PIECE_ROWS, n_rows = (int32_t)count * PIECE_ROWS;
    n_rows = n_rows < w->head.n_rows - row ? n_rows : w->head.n_rows - row;
    const weight *bias = j->biases ? j->biases[i] : NULL;
    tensor out = tensor_rows(j->outs[i], j->first_token, j->n_tokens);
    w->kernel->product(w, j->prepared[input_of(j, w->kernel)], j->n_tokens, out.data, out.n_cols,
                       vector_of(bias, w->head.n_rows), row, n_rows);
}

/* The same pieces of both weights, then what is made of them. */
static void multiply_gated(void *context, int64_t first, int64_t count, int32_t thread)
{
    const matmul_job *j = context;
    (void)thread;
    multiply_rows(j, 0, first, count);
    multiply_rows(j, 1, first, count);
    int64_t row = first * PIECE_ROWS, n_rows = count * PIECE_ROWS, n = j->ws[0]->n_rows;
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
    run_small_or_shared(b, prepare_tokens, j, j->token_groups * j->n_inputs,
                        (int64_t)j->token_step * j->n_cols);
    int64_t pieces = 0;
    for (int32_t i = 0; i < (j->gated ? 1 : j->count); i++)
        pieces += pieces_of(j->ws[i]);
    int64_t grain = pieces / ((int64_t)pool_threads(b->pool) * PIECES_A_THREAD);
    pool_task task = j->gated ? multiply_gated : multiply_pieces;
    if (pieces * PIECE_ROWS * j->n_cols < SMALL * 4)
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
        if (input == MAX_INPUTS)
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

static void matmul(backend *backend_, const tensor *outs, tensor x, const weight *const *ws,
                   const weight *const *biases, int32_t count)
{
    cpu_backend *b = self(backend_);
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

static void gated_matmul(backend *backend_, tensor out, tensor up, tensor x,
                         const weight *const ws[2], activation_kind kind)
{
    cpu_backend *b = self(backend_);
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

/* ---- opening -------------------------------------------------------------------------------- */

static void close_backend(backend *backend_)
{
    cpu_backend *b = self(backend_);
    if (!b)
        return;
    if (b->scratch)
        munmap(b->scratch, b->scratch_bytes);
    if (b->thread_scratch)
        munmap(b->thread_scratch, b->thread_scratch_bytes * (size_t)pool_threads(b->pool));
    pool_close(b->pool);
    for (int i = 0; i < ROPE_ANGLES_MAX; i++) {
        free(b->angles[i].positions);
        free(b->angles[i].cosines);
        free(b->angles[i].sines);
    }
    free(b);
}

static void describe(const backend *backend_, char *text, size_t size)
{
    const cpu_backend *b = (const cpu_backend *)backend_;
    size_t used = (size_t)snprintf(text, size, "cpu: %s, %d threads, %s kernels", cpu_name(),
                                   pool_threads(b->pool), b->kernels->name);
    for (int i = 0; used < size && b->matmuls[i] && b->matmuls[i] != b->kernels->dense &&
                    b->matmuls[i] != &reference_matmul;
         i++)
        used += (size_t)snprintf(text + used, size - used, ", %s", b->matmuls[i]->name);
}

static const backend_table table = {
    .kind = "cpu",
    .close = close_backend,
    .describe = describe,
    .memory = memory,
    .weight_open = weight_open,
    .weight_close = weight_close,
    .tensor_open = tensor_open,
    .tensor_close = tensor_close,
    .write = write_tensor,
    .read = read_tensor,
    .read_peaks = read_peaks,
    .kv_open = kv_open,
    .kv_close = kv_close,
    .kv_copy_page = kv_copy_page,
    .kv_read = kv_read,
    .lend = lend,
    .begin = begin,
    .end = end,
    .embed = embed,
    .norm = norm,
    .matmul = matmul,
    .apply_rope = apply_rope,
    .kv_write = kv_write,
    .attention = attention_run,
    .gated = gated,
    .gated_matmul = gated_matmul,
    .add = add,
    .soft_cap = soft_cap,
    .gather = gather,
};

static const cpu_kernels *best_kernels(const cpu_features *f)
{
#if defined(__x86_64__)
    return f->avx512_vnni ? &cpu_kernels_avx512
           : f->avx2      ? &cpu_kernels_avx2
                          : &cpu_kernels_generic;
#elif defined(__aarch64__)
    (void)f;
    return &cpu_kernels_neon;
#else
    (void)f;
    return &cpu_kernels_generic;
#endif
}

static void choose_kernels(cpu_backend *b, const backend_cpu_options *o)
{
    const cpu_features *f = cpu_features_get();
    const cpu_matmul *const *list = matmul_kernels(f);
    const size_t room = sizeof b->matmuls / sizeof *b->matmuls - 3; /* dense, reference, NULL */
    size_t n = 0;
    b->kernels = o->reference ? &cpu_kernels_reference : best_kernels(f);
    while (!o->reference && !o->exact && n < room && list[n]) {
        b->matmuls[n] = list[n];
        n++;
    }
    if (b->kernels->dense != &reference_matmul)
        b->matmuls[n++] = b->kernels->dense;
    b->matmuls[n] = &reference_matmul;
}

realm_status backend_cpu_open(backend **out, const backend_cpu_options *options, realm_error *error)
{
    static const backend_cpu_options usual = {0};
    const backend_cpu_options *o = options ? options : &usual;
    cpu_backend *b = calloc(1, sizeof *b);
    if (!b)
        return realm_fail_memory(error, sizeof *b, "the CPU backend");
    b->head.table = &table;
    choose_kernels(b, o);
    realm_status status = pool_open(&b->pool, o->n_threads > 0 ? o->n_threads : cpu_count(), error);
    if (status == REALM_OK)
        status = reserve(&b->scratch, &b->scratch_bytes, SCRATCH_BYTES_MORE, "scratch memory",
                         error);
    if (status != REALM_OK) {
        close_backend(&b->head);
        return status;
    }
    *out = &b->head;
    return REALM_OK;
}
