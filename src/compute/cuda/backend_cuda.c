/* compute/cuda/backend_cuda.c: the table of the CUDA backend: the device, memory, tensors, pages and
 * steps. See cuda_backend.h for the parts. */
#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "compute/backend_open.h"
#include "compute/cuda/cuda_backend.h"

/* Sums of attention's units on their way to being combined: this part of the pages, within bounds. The most is
 * enough for 64 sequences of 32 heads at 8,000 tokens, the least for 64 at 1,000. Sequences that find no room are
 * walked, with the same result. */
#define PARTIAL_PART        32
#define PARTIAL_BYTES_MOST  ((size_t)192 << 20)
#define PARTIAL_BYTES_LEAST ((size_t)32 << 20)

/* Stack of a thread; the driver keeps room for every thread that can run at once, and takes more by itself for a
 * kernel that needs more (its own choice of 1,024 bytes is 264 MiB of an H100's memory). */
#define STACK_BYTES 128

/* Of what is free when pages are made, this much and a twentieth of the rest are left for graphs,
 * adapters and the driver. */
#define KEEP_BYTES ((uint64_t)512 << 20)

/* The largest head: what a warp's shared memory (99 KiB everywhere) holds of it. */
#define MAX_DIM   512
#define MAX_HEADS 4096

/* ---- failures ------------------------------------------------------------------------------------ */

int cuda_ok(cuda_backend *b, cudaError_t code, const char *what)
{
    if (code == cudaSuccess)
        return !b->failed;
    if (!b->failed)
        LOG_E("compute", "the CUDA device failed (%s): %s", what, cudaGetErrorString(code));
    b->failed = 1;
    return 0;
}

realm_status cuda_refuse(realm_error *error, cudaError_t code, size_t bytes, const char *what)
{
    cudaGetLastError(); /* a refusal is not remembered by the library */
    size_t left = 0, total = 0;
    if (code != cudaErrorMemoryAllocation)
        return realm_fail(error, REALM_UNSUPPORTED, "%s: the CUDA device says: %s", what,
                          cudaGetErrorString(code));
    cudaMemGetInfo(&left, &total);
    return realm_fail(error, REALM_NO_MEMORY,
                      "%s: the CUDA device has no %.1f MiB left (%.1f of %.1f MiB are free)", what,
                      (double)bytes / 1048576, (double)left / 1048576, (double)total / 1048576);
}

realm_status cuda_reserve(void **memory, size_t *size, size_t bytes, const char *what,
                          realm_error *error)
{
    if (bytes <= *size)
        return REALM_OK;
    void *grown = NULL;
    cudaError_t code = cudaMalloc(&grown, bytes);
    if (code != cudaSuccess)
        return cuda_refuse(error, code, bytes, what);
    cudaFree(*memory);
    *memory = grown;
    *size = bytes;
    return REALM_OK;
}

/* ---- memory -------------------------------------------------------------------------------------- */

cudaError_t cuda_take(cuda_backend *b, void **memory, size_t bytes)
{
    return b->has_pool ? cudaMallocAsync(memory, bytes, b->stream) : cudaMalloc(memory, bytes);
}

void cuda_give(cuda_backend *b, void *memory)
{
    if (memory && b->has_pool)
        cudaFreeAsync(memory, b->stream);
    else
        cudaFree(memory);
}

static void memory(const backend *b, backend_memory *out)
{
    size_t left = 0, total = 0;
    cuda_use((const cuda_backend *)b);
    cudaMemGetInfo(&left, &total);
    *out = (backend_memory){.total_bytes = total,
                            .free_bytes = left,
                            .page_bytes = left > KEEP_BYTES ? (left - KEEP_BYTES) / 20 * 19 : 0,
                            .weight_bytes = ((const cuda_backend *)b)->weight_bytes};
    snprintf(out->bound, sizeof out->bound, "the device's memory");
}

/* The prepared input of any product of the tensor fits after this; its scales stand behind it. */
static realm_status tensor_open(backend *backend_, tensor *out, int32_t n_rows, int32_t n_cols,
                                realm_error *error)
{
    cuda_backend *b = cuda_self(backend_);
    if (n_rows < 1 || n_cols < 1)
        return realm_fail(error, REALM_INVALID, "a tensor of %d x %d", n_rows, n_cols);
    tensor t = {NULL, n_rows, n_cols};
    cuda_use(b);
    cudaStreamSynchronize(b->stream);
    realm_status status = inputs_reserve(b, n_rows, n_cols, error);
    if (status != REALM_OK)
        return status;
    inputs_forget(b);
    cudaError_t code = cuda_take(b, (void **)&t.data, tensor_bytes(t));
    if (code == cudaSuccess)
        code = cudaMemsetAsync(t.data, 0, tensor_bytes(t), b->stream);
    if (code != cudaSuccess) {
        cuda_give(b, t.data);
        return cuda_refuse(error, code, tensor_bytes(t), "a tensor");
    }
    *out = t;
    return REALM_OK;
}

static void tensor_close(backend *backend_, tensor *t)
{
    cuda_backend *b = cuda_self(backend_);
    cuda_use(b);
    inputs_forget(b);
    b->landed = b->last = (tensor){0};
    cuda_give(b, t->data); /* after what was asked for before */
    *t = (tensor){0};
}

static void write_tensor(backend *backend_, tensor to, const float *from)
{
    cuda_backend *b = cuda_self(backend_);
    cuda_use(b);
    operations_settle(b);
    step_flush(b);
    inputs_forget(b);
    b->landed = (tensor){0};
    if (b->failed || tensor_bytes(to) == 0)
        return;
    cuda_ok(b, cudaMemcpyAsync(to.data, from, tensor_bytes(to), cudaMemcpyHostToDevice, b->stream),
            "writing a tensor");
    cuda_ok(b, cudaStreamSynchronize(b->stream), "writing a tensor");
}

/* ---- pages --------------------------------------------------------------------------------------- */

static int64_t align128(int64_t n)
{
    return (n + 127) & ~(int64_t)127;
}

static cuda_kv_layer lay_out(const cuda_backend *b, const kv_layer_shape *s, dtype type,
                             int64_t offset)
{
    cuda_kv_layer l = {.offset = offset,
                       .n_kv_heads = s->n_kv_heads,
                       .key_dim = s->key_dim,
                       .value_dim = s->value_dim,
                       .key_stride = (s->key_dim + 31) / 32 * 32,
                       .value_stride = (s->value_dim + 7) / 8 * 8,
                       .q8 = type == DTYPE_Q8_0,
                       .staged = b->wgmma && type == DTYPE_F16 && s->key_dim == 128 &&
                                 s->value_dim == 128};
    if (l.q8) {
        l.key_data = align128((int64_t)l.key_stride / 32 * KV_PAGE_TOKENS * 2);
        l.values = l.key_data + (int64_t)l.key_stride * KV_PAGE_TOKENS;
        l.value_data = l.values + align128((int64_t)l.value_stride / 32 * KV_PAGE_TOKENS * 2);
        l.head_bytes = align128(l.value_data + (int64_t)l.value_stride * KV_PAGE_TOKENS);
    } else {
        l.values = (int64_t)l.key_stride * KV_PAGE_TOKENS * 2;
        l.value_data = l.values;
        l.head_bytes = align128(l.values + (int64_t)l.value_stride * KV_PAGE_TOKENS * 2);
    }
    return l;
}

static realm_status check_layer(const kv_layer_shape *s, dtype type, int32_t i, realm_error *error)
{
    if (s->n_kv_heads < 1 || s->n_kv_heads > MAX_HEADS || s->key_dim < 1 || s->value_dim < 1 ||
        s->key_dim > MAX_DIM || s->value_dim > MAX_DIM)
        return realm_fail(error, REALM_UNSUPPORTED,
                          "layer %d has %d key-value heads of %d and %d dimensions; 1 to %d heads "
                          "of 1 to %d are possible on a CUDA device",
                          i, s->n_kv_heads, s->key_dim, s->value_dim, MAX_HEADS, MAX_DIM);
    if (type == DTYPE_Q8_0 && (s->key_dim % 32 || s->value_dim % 32))
        return realm_fail(error, REALM_UNSUPPORTED,
                          "layer %d has heads of %d and %d dimensions; Q8_0 keys and values need "
                          "multiples of 32: choose F16",
                          i, s->key_dim, s->value_dim);
    return REALM_OK;
}

static realm_status check_shape(const kv_shape *shape, realm_error *error)
{
    if (shape->type != DTYPE_F16 && shape->type != DTYPE_Q8_0)
        return realm_fail(error, REALM_UNSUPPORTED, "keys and values can be F16 or Q8_0, not %s",
                          dtype_name(shape->type) ? dtype_name(shape->type) : "an unknown type");
    if (shape->n_layers < 1 || shape->n_pages < 1)
        return realm_fail(error, REALM_INVALID, "%d layers and %d pages of keys and values",
                          shape->n_layers, shape->n_pages);
    /* A page and a place in it are one number of 32 bits on the device. */
    if (shape->n_pages > INT32_MAX / KV_PAGE_TOKENS)
        return realm_fail(error, REALM_UNSUPPORTED, "%d pages; at most %d are possible",
                          shape->n_pages, INT32_MAX / KV_PAGE_TOKENS);
    for (int32_t i = 0; i < shape->n_layers; i++) {
        realm_status status = check_layer(&shape->layers[i], shape->type, i, error);
        if (status != REALM_OK)
            return status;
    }
    return REALM_OK;
}

static size_t partial_bytes(size_t page_bytes)
{
    size_t bytes = page_bytes / PARTIAL_PART;
    return bytes < PARTIAL_BYTES_LEAST  ? PARTIAL_BYTES_LEAST
           : bytes > PARTIAL_BYTES_MOST ? PARTIAL_BYTES_MOST
                                        : bytes;
}

static realm_status kv_open(backend *backend_, kv_store **out, const kv_shape *shape,
                            realm_error *error)
{
    cuda_backend *b = cuda_self(backend_);
    cuda_use(b);
    realm_status status = check_shape(shape, error);
    if (status != REALM_OK)
        return status;
    cuda_weights_release(b); /* most models are loaded by now */
    size_t size = sizeof(kv_store) + (size_t)shape->n_layers * sizeof(cuda_kv_layer);
    kv_store *kv = calloc(1, size);
    if (!kv)
        return realm_fail_memory(error, size, "the layers of keys and values");
    kv->type = shape->type;
    kv->n_layers = shape->n_layers;
    kv->n_pages = shape->n_pages;
    for (int32_t i = 0; i < shape->n_layers; i++) {
        kv->layers[i] = lay_out(b, &shape->layers[i], shape->type, kv->page_bytes);
        kv->page_bytes += kv->layers[i].head_bytes * kv->layers[i].n_kv_heads;
    }
    size_t bytes = (size_t)kv->page_bytes * (size_t)kv->n_pages;
    status = cuda_reserve((void **)&b->partials, &b->partials_bytes, partial_bytes(bytes),
                          "partial sums of attention", error);
    cudaError_t code = status == REALM_OK ? cudaMalloc((void **)&kv->pages, bytes) : cudaSuccess;
    if (code != cudaSuccess)
        status = cuda_refuse(error, code, bytes, "the pages of keys and values");
    if (status != REALM_OK) {
        free(kv);
        return status;
    }
    *out = kv;
    return REALM_OK;
}

static void kv_close(backend *b, kv_store *kv)
{
    (void)b;
    if (!kv)
        return;
    cudaFree(kv->pages);
    free(kv);
}

static void kv_copy_page(backend *backend_, kv_store *kv, int32_t to, int32_t from)
{
    cuda_backend *b = cuda_self(backend_);
    cuda_use(b);
    operations_settle(b);
    step_flush(b);
    if (to != from && !b->failed)
        cuda_ok(b,
                cudaMemcpyAsync(kv->pages + (size_t)to * (size_t)kv->page_bytes,
                                kv->pages + (size_t)from * (size_t)kv->page_bytes,
                                (size_t)kv->page_bytes, cudaMemcpyDeviceToDevice, b->stream),
                "copying a page");
}

static size_t kv_page_bytes(const backend *b, const kv_store *kv)
{
    (void)b;
    return (size_t)kv->page_bytes;
}

static void move_page(backend *backend_, void *to, const void *from, size_t bytes,
                      enum cudaMemcpyKind kind)
{
    cuda_backend *b = cuda_self(backend_);
    cuda_use(b);
    operations_settle(b);
    step_flush(b);
    if (!b->failed)
        cuda_ok(b, cudaMemcpyAsync(to, from, bytes, kind, b->stream), "moving a page");
}

static void kv_save_page(backend *b, kv_store *kv, void *to, int32_t from)
{
    move_page(b, to, kv->pages + (size_t)from * (size_t)kv->page_bytes, (size_t)kv->page_bytes,
              cudaMemcpyDeviceToHost);
}

static void kv_load_page(backend *b, kv_store *kv, int32_t to, const void *from)
{
    move_page(b, kv->pages + (size_t)to * (size_t)kv->page_bytes, from, (size_t)kv->page_bytes,
              cudaMemcpyHostToDevice);
}

/* A look into the pages for tests and for guests that ask: memory for it is taken and given back. */
static void kv_read(backend *backend_, kv_store *kv, int32_t layer, int values,
                    const int32_t *page_table, int32_t first, int32_t count, float *to)
{
    cuda_backend *b = cuda_self(backend_);
    const cuda_kv_layer *l = &kv->layers[layer];
    size_t n = (size_t)count * (size_t)l->n_kv_heads * (size_t)(values ? l->value_dim : l->key_dim);
    float *found = NULL;
    cuda_use(b);
    operations_settle(b);
    step_flush(b);
    if (count < 1)
        return;
    if (cuda_ok(b, cudaMalloc((void **)&found, n * sizeof *found), "reading keys or values")) {
        size_t pages = (size_t)((first + count - 1) / KV_PAGE_TOKENS + 1);
        kv_read_args a = {.layer = *l,
                          .pages = kv->pages,
                          .page_bytes = kv->page_bytes,
                          .page_table = step_stage(b, page_table, pages * sizeof *page_table),
                          .to = found,
                          .first = first,
                          .values = values};
        step_record(b, cuda_kernel_kv_read(), (uint32_t)count, 1, 1, 256, 0, &a, sizeof a);
        step_flush(b);
        cuda_ok(b, cudaMemcpyAsync(to, found, n * sizeof *found, cudaMemcpyDeviceToHost, b->stream),
                "reading keys or values");
        cuda_ok(b, cudaStreamSynchronize(b->stream), "reading keys or values");
    }
    cudaFree(found);
    if (b->failed)
        cuda_fill_nan(to, n);
}

/* ---- steps --------------------------------------------------------------------------------------- */

static void begin(backend *backend_, const step_rows *rows)
{
    cuda_backend *b = cuda_self(backend_);
    cuda_use(b);
    operations_settle(b);
    step_flush(b);
    b->rows = *rows;
    b->in_step = 1;
    inputs_begin(b);
    b->last = (tensor){0};
}

static void end(backend *backend_)
{
    cuda_backend *b = cuda_self(backend_);
    operations_settle(b);
    step_flush(b);
    b->rows = (step_rows){0};
    b->in_step = 0;
}

/* ---- opening ------------------------------------------------------------------------------------- */

static void close_backend(backend *backend_)
{
    cuda_backend *b = cuda_self(backend_);
    if (!b)
        return;
    if (b->stream)
        cudaStreamSynchronize(b->stream);
    step_release(b);
    cuda_weights_release(b);
    cudaFree(b->prepared[0]);
    cudaFree(b->prepared[1]);
    cudaFree(b->sums);
    cudaFree(b->angles);
    cudaFree(b->partials);
    cudaFree(b->parts);
    cudaFree(b->counters);
    cuda_reading_release(b);
    if (b->stream)
        cudaStreamDestroy(b->stream);
    if (b->row_stream)
        cudaStreamDestroy(b->row_stream);
    free(b);
}

static void describe(const backend *backend_, char *text, size_t size)
{
    const cuda_backend *b = (const cuda_backend *)backend_;
    backend_memory m;
    memory(backend_, &m);
    snprintf(text, size, "cuda:%d: %s, compute capability %d.%d, %.1f of %.1f GiB free", b->device,
             b->name, b->major, b->minor, (double)m.free_bytes / 1073741824.0,
             (double)m.total_bytes / 1073741824.0);
}

static backend_table table = {
    .kind = "cuda",
    .close = close_backend,
    .describe = describe,
    .memory = memory,
    .weight_open = cuda_weight_open,
    .weight_close = cuda_weight_close,
    .tensor_open = tensor_open,
    .tensor_close = tensor_close,
    .write = write_tensor,
    .read = cuda_read,
    .read_peaks = cuda_read_peaks,
    .gives_tops = 1,
    .read_row = cuda_read_row,
    .host_open = cuda_host_open,
    .host_close = cuda_host_close,
    .kv_open = kv_open,
    .kv_close = kv_close,
    .kv_copy_page = kv_copy_page,
    .kv_page_bytes = kv_page_bytes,
    .kv_save_page = kv_save_page,
    .kv_load_page = kv_load_page,
    .kv_read = kv_read,
    .begin = begin,
    .end = end,
};

static realm_status find_device(cuda_backend *b, int32_t index, realm_error *error)
{
    int count = 0;
    struct cudaDeviceProp properties;
    cudaError_t code = cudaGetDeviceCount(&count);
    if (code == cudaErrorInsufficientDriver)
        return realm_fail(
            error, REALM_UNSUPPORTED,
            "there is no NVIDIA driver, or one too old for CUDA 13 (580 or newer is needed)");
    if (code != cudaSuccess || count == 0)
        return realm_fail(error, REALM_UNSUPPORTED, "the driver finds no device (%s)",
                          code == cudaSuccess ? "none" : cudaGetErrorString(code));
    if (index < 0 || index >= count)
        return realm_fail(error, REALM_UNSUPPORTED, "there is no device %d; there are 0 to %d",
                          index, count - 1);
    code = cudaSetDevice(index);
    if (code == cudaSuccess && cudaDeviceSetLimit(cudaLimitStackSize, STACK_BYTES) != cudaSuccess)
        cudaGetLastError(); /* then there is less room */
    if (code == cudaSuccess)
        code = cudaGetDeviceProperties(&properties, index);
    if (code != cudaSuccess)
        return cuda_refuse(error, code, 0, "device");
    if (properties.major < 8)
        return realm_fail(error, REALM_UNSUPPORTED,
                          "%s has compute capability %d.%d; 8.0 or newer is needed",
                          properties.name, properties.major, properties.minor);
    b->device = index;
    b->major = properties.major;
    b->minor = properties.minor;
#ifdef REALM_CUDA_WGMMA
    b->wgmma = b->major == 9 && b->minor == 0;
#endif
    b->n_multiprocessors = properties.multiProcessorCount;
    b->shared_most = (int32_t)properties.sharedMemPerBlockOptin;
    b->has_pool = properties.memoryPoolsSupported;
    snprintf(b->name, sizeof b->name, "%s", properties.name);
    return REALM_OK;
}

/* More shared memory than 48 KiB must be asked for, kernel by kernel. */
static cudaError_t allow_shared(const void *function, int32_t bytes)
{
    return cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

/* part_bytes and most_blocks grow by what the kernel needs. A block has 99 KiB of shared memory on most devices
 * and more on 8.0, 9.0 and 10.0, so some kernels cannot run everywhere: those are left out, but tiles, which can. */
static cudaError_t prepare_product(cuda_backend *b, int32_t kind, int32_t k_scales, int which,
                                   size_t *part_bytes, int *most_blocks)
{
    int32_t *resident = &b->resident[kind][k_scales][which];
    cudaError_t code = cudaSuccess;
    if (!b->wgmma && which == MATMUL_64_WIDE)
        return cudaSuccess;
    for (int epilogue = 0; epilogue < EPILOGUES && code == cudaSuccess; epilogue++) {
        matmul_kernel k = cuda_matmul_kernel(b, kind, k_scales, which, epilogue);
        int blocks = 0;
        if (!k.function || (k.shared_bytes > b->shared_most && which != MATMUL_TILES))
            continue;
        code = allow_shared(k.function, k.shared_bytes);
        if (code == cudaSuccess)
            code = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, k.function, k.threads,
                                                                 (size_t)k.shared_bytes);
        if (code == cudaSuccess && blocks == 0)
            code = cudaErrorLaunchOutOfResources;
        int32_t all = blocks * b->n_multiprocessors;
        *resident = epilogue == 0 || all < *resident ? all : *resident;
        size_t bytes = (size_t)k.part_bytes * (size_t)all;
        *part_bytes = bytes > *part_bytes ? bytes : *part_bytes;
        *most_blocks = blocks > *most_blocks ? blocks : *most_blocks;
    }
    return code;
}

static cudaError_t prepare_kernels(cuda_backend *b)
{
    size_t part_bytes = 0;
    int most_blocks = 0;
    cudaError_t code = allow_shared(cuda_kernel_attention_split(), b->shared_most);
    static const int staged_ways[][3] = {
        {ATTENTION_FEW, 1, 0},  {ATTENTION_FEW, ATTENTION_TOGETHER, 0},
        {ATTENTION_ROWS, 1, 0}, {ATTENTION_FEW, 1, 1},
        {ATTENTION_ROWS, 1, 1}, {ATTENTION_FEW, ATTENTION_TOGETHER, 1},
        {ATTENTION_WIDE, 1, 0}};
    for (size_t i = 0;
         i < sizeof staged_ways / sizeof *staged_ways && code == cudaSuccess && b->wgmma; i++) {
        int32_t threads, bytes;
        const void *staged = cuda_kernel_attention_staged(staged_ways[i][0], staged_ways[i][1],
                                                          staged_ways[i][2], &threads, &bytes);
        code = allow_shared(staged, bytes);
        if (code == cudaSuccess)
            code = cudaFuncSetAttribute(staged, cudaFuncAttributePreferredSharedMemoryCarveout,
                                        cudaSharedmemCarveoutMaxShared);
    }
    if (code == cudaSuccess)
        code = allow_shared(cuda_kernel_attention_walk(), b->shared_most);
    for (int32_t kind = PACKED_F16; kind < PACKED_KINDS; kind++)
        for (int i = 0; i < 2 * MATMUL_KERNELS && code == cudaSuccess; i++)
            code = prepare_product(b, kind, i % 2, i / 2, &part_bytes, &most_blocks);
    if (code == cudaSuccess && part_bytes > 0) {
        size_t counters = (size_t)(most_blocks * b->n_multiprocessors) * 2 * sizeof *b->counters;
        code = cudaMalloc((void **)&b->parts, part_bytes);
        if (code == cudaSuccess)
            code = cudaMalloc((void **)&b->counters, counters);
        if (code == cudaSuccess)
            code = cudaMemset(b->counters, 0, counters);
    }
    return code;
}

static realm_status set_up(cuda_backend *b, int32_t index, realm_error *error)
{
    realm_status status = find_device(b, index, error);
    if (status != REALM_OK)
        return status;
    cudaError_t code = cudaStreamCreateWithFlags(&b->stream, cudaStreamNonBlocking);
    if (code == cudaSuccess)
        code = cudaStreamCreateWithFlags(&b->row_stream, cudaStreamNonBlocking);
    if (code == cudaSuccess)
        code = prepare_kernels(b);
    if (code != cudaSuccess)
        return cuda_refuse(error, code, 0, "starting");
    return step_init(b, error);
}

static realm_status open_backend(backend **out, int32_t index, realm_error *error)
{
    cuda_backend *b = calloc(1, sizeof *b);
    if (!b)
        return realm_fail_memory(error, sizeof *b, "the CUDA backend");
    pthread_mutex_init(&b->host_mutex, NULL);
    operations_fill(&table);
    products_fill(&table);
    attention_fill(&table);
    b->head.table = &table;
    realm_status status = set_up(b, index, error);
    if (status != REALM_OK) {
        close_backend(&b->head);
        return status;
    }
    *out = &b->head;
    return REALM_OK;
}

/* What backend_open.c looks for. */
REALM_API const backend_plugin *realm_backend_plugin(void);
const backend_plugin *realm_backend_plugin(void)
{
    static const backend_plugin plugin = {BACKEND_PLUGIN_VERSION, sizeof(backend_table),
                                          open_backend};
    return &plugin;
}
