/* compute/cpu/backend_cpu.c: the table of the processor's backend, and how each operation's work is
 * divided over the pool, but for those that have a file of their own. See cpu_backend.h for the parts.
 *
 * Every operation is done when it returns, so read and end have nothing to wait for. Work is
 * divided by rows (or by elements, weight rows, pieces of attention): what a row's result is does
 * not depend on how. Operations too small to be worth waking anyone run on the caller alone.
 *
 * Quantized weights are multiplied with activations that the kernel at hand quantizes (see the
 * files of matmul_kernels.c for how, and for the error); with options.exact, and for types and
 * processors without such a kernel, activations stay F32 (dense.inl). */
#include <assert.h>
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

/* Prepared inputs of up to PRODUCTS_INPUTS kernels (cpu_matmul.input_bytes) for each element of a
 * tensor. */
#define SCRATCH_BYTES_AN_ELEMENT ((size_t)8 * PRODUCTS_INPUTS)
#define SCRATCH_BYTES_MORE       ((size_t)1 << 20)

static cpu_backend *self(backend *b)
{
    return (cpu_backend *)b;
}

void cpu_backend_share(cpu_backend *b, pool_task task, void *context, int64_t n_items,
                       int64_t elements_an_item)
{
    if (n_items * elements_an_item < CPU_BACKEND_SMALL) {
        if (n_items > 0)
            task(context, 0, n_items, 0);
        return;
    }
    int64_t grain = n_items / ((int64_t)pool_threads(b->pool) * 4);
    int64_t least = CPU_BACKEND_SMALL / 4 / (elements_an_item > 0 ? elements_an_item : 1);
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

static void read_peaks(backend *b, float *const *to, float *const *peaks, const row_wish *wishes,
                       tensor from)
{
    (void)wishes;
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
    int64_t row = first * PRODUCTS_ROWS, end = row + count * PRODUCTS_ROWS;
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
        pool_run(b->pool, pack_pieces, w,
                 ((int64_t)w->head.n_rows + PRODUCTS_ROWS - 1) / PRODUCTS_ROWS, 1);
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

static size_t kv_page_bytes(const backend *b, const kv_store *kv)
{
    (void)b;
    return kv->page_bytes;
}

static void kv_save_page(backend *b, kv_store *kv, void *to, int32_t from)
{
    (void)b;
    memcpy(to, kv->pages + (size_t)from * kv->page_bytes, kv->page_bytes);
}

static void kv_load_page(backend *b, kv_store *kv, int32_t to, const void *from)
{
    (void)b;
    memcpy(kv->pages + (size_t)to * kv->page_bytes, from, kv->page_bytes);
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
    cpu_backend_share(j.b, kv_write_rows, &j, k.n_rows, k.n_cols + v.n_cols);
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
    cpu_backend_share(j.b, embed_rows, &j, out.n_rows, out.n_cols);
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
    norm_job j = {self(b),
                  out,
                  x,
                  kind,
                  cpu_backend_vector(gain, x.n_cols),
                  cpu_backend_vector(bias, x.n_cols),
                  epsilon};
    assert(out.n_rows == x.n_rows && out.n_cols == x.n_cols);
    cpu_backend_share(j.b, norm_rows, &j, x.n_rows, x.n_cols);
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
    cpu_backend_share(self(b), gated_elements, &j, (int64_t)gate.n_rows * gate.n_cols, 4);
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
    cpu_backend_share(self(b), add_elements, &j, (int64_t)x.n_rows * x.n_cols, 1);
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
    cpu_backend_share(self(b), soft_cap_elements, &j, (int64_t)x.n_rows * x.n_cols, 4);
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
    rope_angles_release(b);
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
    .kv_page_bytes = kv_page_bytes,
    .kv_save_page = kv_save_page,
    .kv_load_page = kv_load_page,
    .kv_read = kv_read,
    .lend = lend,
    .begin = begin,
    .end = end,
    .embed = embed,
    .norm = norm,
    .matmul = products_run,
    .apply_rope = rope_angles_apply,
    .kv_write = kv_write,
    .attention = attention_run,
    .gated = gated,
    .gated_matmul = products_run_gated,
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
