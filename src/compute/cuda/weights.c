/* compute/cuda/weights.c: from a file's bytes to packed tiles (packed.h) on the device.
 *
 * Rows travel as they are, in pieces through pinned memory, two in flight, and are packed by the
 * device. A row of floats (a gain, a bias) becomes F32. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "compute/cpu/quants.h"
#include "compute/cuda/cuda_backend.h"

#define UPLOAD_BYTES ((size_t)16 << 20)

static int is_float(uint32_t type)
{
    return type == DTYPE_F32 || type == DTYPE_F16 || type == DTYPE_BF16;
}

static int32_t kind_of(uint32_t type)
{
    switch (type) {
    case DTYPE_F16:
    case DTYPE_BF16: return PACKED_F16;
    case DTYPE_Q8_0:
    case DTYPE_Q8_1:
    case DTYPE_Q8_K: return PACKED_Q8;
    case DTYPE_Q4_0:
    case DTYPE_Q4_1:
    case DTYPE_Q4_K: return PACKED_Q4;
    case DTYPE_Q5_0:
    case DTYPE_Q5_1:
    case DTYPE_Q5_K: return PACKED_Q5;
    case DTYPE_Q6_K: return PACKED_Q6;
    case DTYPE_Q3_K: return PACKED_Q3;
    case DTYPE_Q2_K: return PACKED_Q2;
    case DTYPE_IQ4_NL:
    case DTYPE_IQ4_XS:
    case DTYPE_MXFP4: return PACKED_T4;
    default: return PACKED_F32;
    }
}

static int has_row_scales(uint32_t type)
{
    return type == DTYPE_BF16 || type == DTYPE_MXFP4 || type == DTYPE_Q8_K;
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
    return REALM_OK;
}

/* ---- uploads ------------------------------------------------------------------------------------ */

static realm_status open_uploads(cuda_backend *b, size_t bytes, realm_error *error)
{
    if (bytes <= b->upload_bytes)
        return REALM_OK;
    cuda_weights_release(b);
    for (int i = 0; i < 2; i++) {
        cudaError_t code = cudaMallocHost((void **)&b->upload_host[i], bytes);
        if (code == cudaSuccess)
            code = cudaMalloc((void **)&b->upload_device[i], bytes);
        if (code == cudaSuccess)
            code = cudaEventCreateWithFlags(&b->upload_done[i], cudaEventDisableTiming);
        if (code != cudaSuccess)
            return cuda_refuse(error, code, bytes, "uploading weights");
    }
    b->upload_bytes = bytes;
    return REALM_OK;
}

void cuda_weights_release(cuda_backend *b)
{
    cudaStreamSynchronize(b->stream);
    for (int i = 0; i < 2; i++) {
        cudaFreeHost(b->upload_host[i]);
        cudaFree(b->upload_device[i]);
        if (b->upload_done[i])
            cudaEventDestroy(b->upload_done[i]);
        b->upload_host[i] = b->upload_device[i] = NULL;
        b->upload_done[i] = NULL;
    }
    b->upload_bytes = 0;
}

static cudaError_t pack_piece(cuda_backend *b, const pack_args *a)
{
    void *arguments[1] = {(void *)a};
    dim3 rows = {(unsigned)a->n_rows, 1, 1}, warp = {32, 1, 1}, block = {256, 1, 1};
    dim3 tiles = {(unsigned)((a->n_rows + PACKED_ROWS - 1) / PACKED_ROWS), 1, 1};
    if (a->w.row_scales) {
        cudaError_t code = cudaLaunchKernel(cuda_kernel_row_scales(), rows, warp, arguments, 0,
                                            b->stream);
        if (code != cudaSuccess)
            return code;
    }
    return cudaLaunchKernel(cuda_kernel_pack(), tiles, block, arguments, 0, b->stream);
}

static realm_status upload(cuda_backend *b, cuda_weight *w, const weight_source *source,
                           realm_error *error)
{
    size_t row_bytes = dtype_row_bytes(source->type, (uint64_t)source->n_cols);
    size_t least = row_bytes * PACKED_ROWS;
    realm_status status = open_uploads(b, least > UPLOAD_BYTES ? least : UPLOAD_BYTES, error);
    if (status != REALM_OK)
        return status;
    int32_t rows = (int32_t)(b->upload_bytes / least) * PACKED_ROWS;
    for (int32_t row = 0, i = 0; row < source->n_rows; row += rows, i = !i) {
        int32_t n = source->n_rows - row < rows ? source->n_rows - row : rows;
        size_t bytes = (size_t)n * row_bytes;
        cudaError_t code = cudaEventSynchronize(b->upload_done[i]);
        memcpy(b->upload_host[i], (const uint8_t *)source->data + (size_t)row * row_bytes, bytes);
        uint8_t *to = w->p.kind == PACKED_F32 ? w->memory + (size_t)row * row_bytes
                                              : b->upload_device[i];
        if (code == cudaSuccess)
            code = cudaMemcpyAsync(to, b->upload_host[i], bytes, cudaMemcpyHostToDevice, b->stream);
        pack_args a = {.w = w->p,
                       .rows = to,
                       .row_bytes = (int64_t)row_bytes,
                       .first_row = row,
                       .n_rows = n,
                       .which = source->first != NULL};
        if (code == cudaSuccess && w->p.kind != PACKED_F32)
            code = pack_piece(b, &a);
        if (code == cudaSuccess)
            code = cudaEventRecord(b->upload_done[i], b->stream);
        if (code != cudaSuccess)
            return cuda_refuse(error, code, 0, "uploading weights");
    }
    return REALM_OK;
}

/* ---- one weight --------------------------------------------------------------------------------- */

/* Lays out *w's parts and allocates them, zeroed. */
static realm_status allocate(cuda_backend *b, cuda_weight *w, realm_error *error)
{
    packed *p = &w->p;
    uint64_t slabs = (uint64_t)((p->row_tiles + PACKED_SLAB_TILES - 1) / PACKED_SLAB_TILES), at = 0;
    uint64_t supers = slabs * PACKED_SLAB_TILES * (uint64_t)((p->k_tiles + 3) / 4), parts[3];
    parts[0] = p->kind == PACKED_F32
                   ? (uint64_t)p->n_rows * (uint64_t)p->n_cols * 4
                   : slabs * (uint64_t)p->k_tiles * packed_slab_bytes(p->kind, p->k_scales);
    parts[1] = supers * packed_super_bytes(p->kind, p->k_scales);
    parts[2] = has_row_scales((uint32_t)p->type)
                   ? (uint64_t)p->row_tiles * PACKED_ROWS * sizeof(float)
                   : 0;
    for (int i = 0; i < 3; i++)
        w->bytes += (parts[i] + 255) & ~(uint64_t)255;
    cudaError_t code = cuda_take(b, (void **)&w->memory, w->bytes);
    if (code == cudaSuccess)
        code = cudaMemsetAsync(w->memory, 0, w->bytes, b->stream);
    if (code != cudaSuccess)
        return cuda_refuse(error, code, w->bytes, "weights");
    const uint8_t *places[3];
    for (int i = 0; i < 3; i++) {
        places[i] = parts[i] ? w->memory + at : NULL;
        at += (parts[i] + 255) & ~(uint64_t)255;
    }
    p->planes = places[0];
    p->scales = p->planes + PACKED_SLAB_TILES * packed_plane_bytes(p->kind);
    p->supers = places[1];
    p->row_scales = (const float *)(const void *)places[2];
    return REALM_OK;
}

/* The second of a pair has its rows among the first's. */
static realm_status open_matrix(cuda_backend *b, cuda_weight *w, const weight_source *source,
                                realm_error *error)
{
    realm_status status = REALM_OK;
    if (source->first && w->p.pair)
        w->p = ((const cuda_weight *)source->first)->p;
    else
        status = allocate(b, w, error);
    if (status == REALM_OK)
        status = upload(b, w, source, error);
    return status;
}

/* Gains and biases are read as plain floats. */
static realm_status open_row(cuda_backend *b, cuda_weight *w, const weight_source *source,
                             realm_error *error)
{
    size_t bytes = (size_t)source->n_cols * sizeof(float);
    float *row = malloc(bytes);
    if (!row)
        return realm_fail_memory(error, bytes, "a row of weights");
    quants_dequantize(source->type, row, source->data, source->n_cols);
    weight_source floats = *source;
    floats.type = DTYPE_F32;
    floats.data = row;
    w->head.type = DTYPE_F32;
    w->p.type = DTYPE_F32;
    w->p.kind = PACKED_F32;
    realm_status status = open_matrix(b, w, &floats, error);
    cudaStreamSynchronize(b->stream);
    free(row);
    return status;
}

/* The device has its copy: the file's pages need not stay in memory. */
static void drop_file_pages(const weight_source *source)
{
    size_t bytes = dtype_row_bytes(source->type, (uint64_t)source->n_cols) * (size_t)source->n_rows;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), at = (uintptr_t)source->data;
    uintptr_t first = (at + page - 1) / page * page, end = (at + bytes) / page * page;
    if (source->from_file && first < end)
        madvise((void *)first, end - first, MADV_DONTNEED);
}

realm_status cuda_weight_open(backend *backend_, weight **out, const weight_source *source,
                              realm_error *error)
{
    cuda_backend *b = cuda_self(backend_);
    cuda_use(b);
    realm_status status = check_source(source, error);
    if (status != REALM_OK)
        return status;
    /* Products need room for the input of at least eight tokens. */
    status = inputs_reserve(b, 8, source->n_cols, error);
    if (status != REALM_OK)
        return status;
    cuda_weight *w = calloc(1, sizeof *w);
    if (!w)
        return realm_fail_memory(error, sizeof *w, "a weight");
    w->head = (weight){source->type, source->n_rows, source->n_cols};
    w->p = (packed){
        .n_rows = source->n_rows,
        .n_cols = source->n_cols,
        .row_tiles = (int32_t)(((int64_t)source->n_rows + PACKED_ROWS - 1) / PACKED_ROWS),
        .k_tiles = (int32_t)(((int64_t)source->n_cols + PACKED_COLS - 1) / PACKED_COLS),
        .kind = kind_of(source->type),
        .k_scales = source->type == DTYPE_Q4_K || source->type == DTYPE_Q5_K,
        .table = source->type == DTYPE_MXFP4,
        .type = (int32_t)source->type};
    if ((source->begins_pair || source->first) && w->p.kind != PACKED_F32) {
        w->p.pair = source->n_rows;
        w->p.row_tiles = (source->n_rows + 7) / 8;
        w->p.n_rows = w->p.row_tiles * PACKED_ROWS;
    }
    status = source->n_rows == 1 && is_float(source->type) ? open_row(b, w, source, error)
                                                           : open_matrix(b, w, source, error);
    b->weight_bytes += w->bytes;
    if (status != REALM_OK) {
        cuda_weight_close(backend_, &w->head);
        return realm_fail_in(error, status, "tensor '%s'", source->name);
    }
    drop_file_pages(source);
    *out = &w->head;
    return REALM_OK;
}

void cuda_weight_close(backend *backend_, weight *w_)
{
    cuda_weight *w = (cuda_weight *)w_;
    if (!w)
        return;
    cuda_use(cuda_self(backend_));
    cuda_give(cuda_self(backend_), w->memory);
    cuda_self(backend_)->weight_bytes -= w->bytes;
    free(w);
}
