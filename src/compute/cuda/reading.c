/* compute/cuda/reading.c: results on their way to the host.
 *
 * A step's logits are megabytes, and the host's own copies of them would cost as much as a layer: so
 * read_peaks lets the device write each row, its peaks, its largest columns and its sums to where the host wants them,
 * if that is pinned memory (host_open). What is read row by row comes through one pinned copy of the last
 * operation's whole result, the landing. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "compute/cuda/cuda_backend.h"

/* Results above this are read as they are asked for. */
#define LANDING_MOST ((size_t)256 << 20)

void cuda_fill_nan(float *to, size_t n)
{
    for (size_t i = 0; i < n; i++)
        to[i] = NAN;
}

/* ---- the landing ---------------------------------------------------------------------------------- */

static int is_part(tensor part, tensor whole)
{
    return whole.data && part.data >= whole.data &&
           part.data + (size_t)part.n_rows * (size_t)part.n_cols <=
               whole.data + (size_t)whole.n_rows * (size_t)whole.n_cols;
}

static int land(cuda_backend *b, tensor t)
{
    size_t bytes = tensor_bytes(t);
    if (bytes > LANDING_MOST)
        return 0;
    if (bytes > b->landing_bytes) {
        cudaFreeHost(b->landing);
        b->landing = NULL;
        b->landing_bytes = 0;
        if (cudaMallocHost((void **)&b->landing, bytes) != cudaSuccess) {
            cudaGetLastError(); /* then it goes without */
            return 0;
        }
        b->landing_bytes = bytes;
    }
    if (!cuda_ok(b, cudaMemcpyAsync(b->landing, t.data, bytes, cudaMemcpyDeviceToHost, b->stream),
                 "reading a step's results") ||
        !cuda_ok(b, cudaStreamSynchronize(b->stream), "reading a step's results"))
        return 0;
    b->landed = t;
    return 1;
}

/* 0 if the tensor is no part of what was made last. */
static int read_landed(cuda_backend *b, float *to, tensor from)
{
    if (!is_part(from, b->landed) && (!is_part(from, b->last) || !land(b, b->last)))
        return 0;
    memcpy(to, b->landing + ((const uint8_t *)from.data - (const uint8_t *)b->landed.data),
           tensor_bytes(from));
    return 1;
}

void cuda_read(backend *backend_, float *to, tensor from)
{
    cuda_backend *b = cuda_self(backend_);
    cuda_use(b);
    operations_settle(b);
    inputs_need_floats(b, from);
    step_flush(b);
    if (!b->failed && tensor_bytes(from) > 0 && !read_landed(b, to, from)) {
        cuda_ok(
            b,
            cudaMemcpyAsync(to, from.data, tensor_bytes(from), cudaMemcpyDeviceToHost, b->stream),
            "reading a tensor");
        cuda_ok(b, cudaStreamSynchronize(b->stream), "reading a tensor");
    }
    if (b->failed)
        cuda_fill_nan(to, (size_t)from.n_rows * (size_t)from.n_cols);
}

/* ---- rows with their peaks ------------------------------------------------------------------------ */

static int is_pinned(const void *p)
{
    struct cudaPointerAttributes a;
    if (cudaPointerGetAttributes(&a, p) != cudaSuccess) {
        cudaGetLastError();
        return 0;
    }
    return a.type == cudaMemoryTypeHost;
}

static int all_pinned(float *const *to, float *const *peaks, int32_t n)
{
    for (int32_t i = 0; i < n; i++)
        if (!is_pinned(to[i]) || !is_pinned(peaks[i]))
            return 0;
    return 1;
}

static float peak_of(const float *x, int32_t n)
{
    float most = -INFINITY;
    for (int32_t i = 0; i < n; i++) {
        if (isnan(x[i]))
            return NAN;
        most = x[i] > most ? x[i] : most;
    }
    return most;
}

/* x's largest columns to out: each new one goes up to its place. */
static void find_tops(const float *x, int32_t n, top_column *out)
{
    int32_t count = 0;
    for (int32_t i = 0; i < n; i++) {
        float v = isnan(x[i]) ? -INFINITY : x[i];
        if (count == TOP_COLUMNS && !(v > out[count - 1].value))
            continue;
        int32_t at = count < TOP_COLUMNS ? count++ : count - 1;
        for (; at > 0 && out[at - 1].value < v; at--)
            out[at] = out[at - 1];
        out[at] = (top_column){i, v};
    }
}

static void read_by_rows(backend *b, float *const *to, float *const *peaks, const row_wish *wishes,
                         tensor from)
{
    for (int32_t i = 0; i < from.n_rows; i++) {
        cuda_read(b, to[i], tensor_rows(from, i, 1));
        for (int32_t p = 0; p < peaks_count(from.n_cols); p++) {
            int32_t first = p * PEAK_COLS, left = from.n_cols - first;
            peaks[i][p] = peak_of(to[i] + first, left < PEAK_COLS ? left : PEAK_COLS);
        }
        find_tops(to[i], from.n_cols, peaks_tops(peaks[i], from.n_cols));
        if (wishes && wishes[i].scale != 0)
            *peaks_sums(peaks[i], from.n_cols) = (double)NAN; /* the host's own are as good */
        peaks_block(peaks[i], from.n_cols)->first = -1;
    }
}

/* Where the rows go, where what is found in them goes, and what is wished of them: to the device. */
static void stage_places(cuda_backend *b, peaks_args *a, float *const *to, float *const *peaks,
                         const row_wish *wishes)
{
    size_t n = (size_t)a->n_rows, pointers = n * sizeof *to;
    const uint8_t *first = (const uint8_t *)peaks[0];
    void *host;
    a->tops = (int32_t)((const uint8_t *)peaks_tops(peaks[0], a->n_cols) - first);
    a->sums = (int32_t)((const uint8_t *)peaks_sums(peaks[0], a->n_cols) - first);
    a->block = (int32_t)((const uint8_t *)peaks_block(peaks[0], a->n_cols) - first);
    uint8_t *at = step_stage_room(b, 2 * pointers + n * sizeof *wishes, &host);
    a->rows = (float *const *)at;
    a->wishes = (const row_wish *)(at + 2 * pointers);
    if (!host)
        return;
    memcpy(host, to, pointers);
    memcpy((uint8_t *)host + pointers, peaks, pointers);
    if (wishes)
        memcpy((uint8_t *)host + 2 * pointers, wishes, n * sizeof *wishes);
    else
        memset((uint8_t *)host + 2 * pointers, 0, n * sizeof *wishes);
}

void cuda_read_peaks(backend *backend_, float *const *to, float *const *peaks,
                     const row_wish *wishes, tensor from)
{
    cuda_backend *b = cuda_self(backend_);
    size_t n = (size_t)from.n_rows;
    cuda_use(b);
    operations_settle(b);
    inputs_need_floats(b, from);
    if (!b->failed && !all_pinned(to, peaks, from.n_rows)) {
        read_by_rows(backend_, to, peaks, wishes, from);
        return;
    }
    if (!b->failed && n > 0) {
        peaks_args a = {.x = from.data, .n_rows = from.n_rows, .n_cols = from.n_cols};
        stage_places(b, &a, to, peaks, wishes);
        /* A row's blocks agree on its largest number, as gated's do. */
        step_record_cluster(b, cuda_kernel_results(), b->major >= 9 && from.n_cols >= 2048 ? 8 : 1,
                            2 * (uint32_t)n, 1024, &a, sizeof a);
        step_flush(b);
        cuda_ok(b, cudaStreamSynchronize(b->stream), "reading a step's results");
    }
    for (size_t i = 0; i < n && b->failed; i++) {
        cuda_fill_nan(to[i], (size_t)from.n_cols);
        cuda_fill_nan(peaks[i], (size_t)peaks_count(from.n_cols));
        find_tops(to[i], from.n_cols, peaks_tops(peaks[i], from.n_cols));
    }
}

/* The step that made it has ended, for read_peaks waits: so nothing need be waited for. */
void cuda_read_row(backend *backend_, float *to, tensor row)
{
    cuda_backend *b = cuda_self(backend_);
    cuda_use(b);
    if (b->failed ||
        cudaMemcpyAsync(to, row.data, tensor_bytes(row), cudaMemcpyDeviceToHost, b->row_stream) !=
            cudaSuccess ||
        cudaStreamSynchronize(b->row_stream) != cudaSuccess)
        cuda_fill_nan(to, (size_t)row.n_cols); /* the engine's thread will say why */
}

/* ---- pinned memory --------------------------------------------------------------------------------- */

/* Pinning takes as long as a step and giving back waits for the device, so pieces are kept. */
struct host_piece {
    host_piece *next;
    void *memory;
    size_t bytes;
    int taken;
};

void *cuda_host_open(backend *backend_, size_t bytes)
{
    cuda_backend *b = cuda_self(backend_);
    host_piece *p;
    pthread_mutex_lock(&b->host_mutex);
    for (p = b->host_pieces; p && (p->taken || p->bytes != bytes); p = p->next) {
    }
    if (!p && (p = calloc(1, sizeof *p))) {
        cuda_use(b);
        if (cudaMallocHost(&p->memory, bytes) == cudaSuccess) {
            p->bytes = bytes;
            p->next = b->host_pieces;
            b->host_pieces = p;
        } else {
            cudaGetLastError();
            free(p);
            p = NULL;
        }
    }
    if (p)
        p->taken = 1;
    pthread_mutex_unlock(&b->host_mutex);
    return p ? p->memory : NULL;
}

void cuda_host_close(backend *backend_, void *memory)
{
    cuda_backend *b = cuda_self(backend_);
    pthread_mutex_lock(&b->host_mutex);
    for (host_piece *p = b->host_pieces; p; p = p->next)
        if (p->memory == memory)
            p->taken = 0;
    pthread_mutex_unlock(&b->host_mutex);
}

void cuda_reading_release(cuda_backend *b)
{
    while (b->host_pieces) {
        host_piece *p = b->host_pieces;
        b->host_pieces = p->next;
        cudaFreeHost(p->memory);
        free(p);
    }
    cudaFreeHost(b->landing);
    pthread_mutex_destroy(&b->host_mutex);
}
