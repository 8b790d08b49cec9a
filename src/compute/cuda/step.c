/* compute/cuda/step.c: the recorded step: a block of host data, a list of launches, and graphs of lists
 * that come again.
 *
 * A decoding step is hundreds of launches of a few microseconds each; as one graph the device goes
 * through them without the host. A graph's arguments are fixed when it is made, so whatever changes
 * from step to step stands in the block, whose address does not change, at places that depend on the
 * batch's shape alone. Two lists are the same if every byte of them is.
 *
 * A step is two lists: its first launches run while the host still records the others, which takes a tenth of a
 * millisecond, and sends them. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "compute/cuda/cuda_backend.h"

#define STEP_BLOCK_BYTES ((size_t)1 << 20)
/* A list shorter than this is not worth a graph, nor is a step of more rows: it takes longer than the host takes to launch
 * it, and the step in which its graph is made would be late for the streams in it. */
#define GRAPH_LAUNCHES_MIN 16
#define GRAPH_ROWS_MOST    64
/* Of a step's first part: two layers, which take longer than to record the others. */
#define FIRST_LAUNCHES  24
#define GRAPH_TIMES_MIN 3

static void release_graph(step_graph *g)
{
    if (g->graph)
        cudaGraphExecDestroy(g->graph);
    free(g->launches);
    free(g->arguments);
    *g = (step_graph){0};
}

static realm_status open_block(step *s, size_t bytes, realm_error *error)
{
    uint8_t *host = NULL, *device = NULL;
    cudaError_t code = cudaMallocHost((void **)&host, bytes);
    if (code == cudaSuccess)
        code = cudaMalloc((void **)&device, bytes);
    if (code != cudaSuccess) {
        cudaFreeHost(host);
        return cuda_refuse(error, code, bytes, "a step's block");
    }
    cudaFreeHost(s->host);
    cudaFree(s->device);
    s->host = host;
    s->device = device;
    s->room = bytes;
    return REALM_OK;
}

realm_status step_init(cuda_backend *b, realm_error *error)
{
    cudaError_t code = cudaEventCreateWithFlags(&b->step.sent, cudaEventDisableTiming);
    if (code != cudaSuccess)
        return cuda_refuse(error, code, 0, "an event");
    return open_block(&b->step, STEP_BLOCK_BYTES, error);
}

void step_release(cuda_backend *b)
{
    step *s = &b->step;
    for (int i = 0; i < STEP_GRAPHS_MAX; i++)
        release_graph(&s->graphs[i]);
    free(s->launches);
    free(s->arguments);
    cudaFreeHost(s->host);
    cudaFree(s->device);
    if (s->sent)
        cudaEventDestroy(s->sent);
}

/* ---- the block ---------------------------------------------------------------------------------- */

void step_need(cuda_backend *b, size_t bytes)
{
    step *s = &b->step;
    bytes += 256; /* each piece is rounded up */
    if (s->used + bytes <= s->room)
        return;
    step_flush(b);
    if (bytes <= s->room)
        return;
    realm_error error;
    cudaStreamSynchronize(b->stream);
    if (open_block(s, bytes * 2, &error) != REALM_OK)
        cuda_ok(b, cudaErrorMemoryAllocation, error.message);
}

void *step_stage_room(cuda_backend *b, size_t n, void **host)
{
    step *s = &b->step;
    n = (n + 15) & ~(size_t)15;
    step_need(b, n);
    if (s->sending && s->used == 0) {
        cuda_ok(b, cudaEventSynchronize(s->sent), "waiting for a copy");
        s->sending = 0;
    }
    size_t at = s->used;
    *host = s->host + at;
    if (at + n > s->room) { /* no memory: the backend has failed and nothing will run */
        assert(b->failed);
        *host = NULL;
        return s->device;
    }
    s->used += n;
    return s->device + at;
}

void *step_stage(cuda_backend *b, const void *bytes, size_t n)
{
    void *host, *device = step_stage_room(b, n, &host);
    if (host)
        memcpy(host, bytes, n);
    return device;
}

/* ---- the list ----------------------------------------------------------------------------------- */

static int grow(void **array, uint32_t *room, uint32_t needed, size_t element)
{
    if (needed <= *room)
        return 1;
    uint32_t more = needed * 2 < 1024 ? 1024 : needed * 2;
    void *grown = realloc(*array, (size_t)more * element);
    if (grown == NULL)
        return 0;
    *array = grown;
    *room = more;
    return 1;
}

static void run_part(cuda_backend *b);

static void record(cuda_backend *b, const launch *wanted, const void *arguments, size_t size)
{
    step *s = &b->step;
    if (wanted->grid[0] == 0 || wanted->grid[1] == 0 || wanted->grid[2] == 0)
        return;
    uint32_t padded = ((uint32_t)size + 15) & ~15u;
    if (!grow((void **)&s->launches, &s->launches_room, s->n_launches + 1, sizeof *s->launches) ||
        !grow((void **)&s->arguments, &s->arguments_room, s->n_arguments + padded, 1)) {
        cuda_ok(b, cudaErrorMemoryAllocation, "recording a step");
        return;
    }
    memset(s->arguments + s->n_arguments, 0, padded);
    memcpy(s->arguments + s->n_arguments, arguments, size);
    launch *l = &s->launches[s->n_launches++];
    *l = *wanted;
    l->arguments = s->n_arguments;
    l->size = padded;
    s->n_arguments += padded;
    if (b->in_step && s->part == 0 && s->n_launches == FIRST_LAUNCHES) {
        run_part(b);
        s->part = 1;
    }
}

void step_record(cuda_backend *b, const void *function, uint32_t grid_x, uint32_t grid_y,
                 uint32_t grid_z, uint32_t threads, uint32_t shared_bytes, const void *arguments,
                 size_t size)
{
    const launch l = {.function = function,
                      .grid = {grid_x, grid_y, grid_z},
                      .threads = threads,
                      .shared_bytes = shared_bytes,
                      .cluster = 1};
    record(b, &l, arguments, size);
}

void step_record_cluster(cuda_backend *b, const void *function, uint32_t grid_x, uint32_t grid_y,
                         uint32_t threads, const void *arguments, size_t size)
{
    const launch l = {
        .function = function, .grid = {grid_x, grid_y, 1}, .threads = threads, .cluster = grid_x};
    record(b, &l, arguments, size);
}

static uint64_t hash_bytes(uint64_t hash, const void *bytes, size_t n)
{
    const uint64_t *words = bytes; /* both arrays are whole words */
    for (size_t i = 0; i < n / 8; i++)
        hash = (hash ^ words[i]) * 0x9E3779B97F4A7C15u, hash ^= hash >> 29;
    return hash;
}

/* Kernels may come onto the device while the one before them ends (device.cuh, await_inputs). */
static int launch_all(cuda_backend *b)
{
    step *s = &b->step;
    for (uint32_t i = 0; i < s->n_launches; i++) {
        const launch *l = &s->launches[i];
        cudaLaunchAttribute attributes[2];
        unsigned n = 0;
        if (b->major >= 9 && i > 0) {
            attributes[n].id = cudaLaunchAttributeProgrammaticStreamSerialization;
            attributes[n++].val.programmaticStreamSerializationAllowed = 1;
        }
        if (l->cluster > 1) {
            attributes[n].id = cudaLaunchAttributeClusterDimension;
            attributes[n].val.clusterDim.x = l->cluster;
            attributes[n].val.clusterDim.y = attributes[n].val.clusterDim.z = 1;
            n++;
        }
        cudaLaunchConfig_t config = {.gridDim = {l->grid[0], l->grid[1], l->grid[2]},
                                     .blockDim = {l->threads, 1, 1},
                                     .dynamicSmemBytes = l->shared_bytes,
                                     .stream = b->stream,
                                     .attrs = attributes,
                                     .numAttrs = n};
        void *arguments[1] = {s->arguments + l->arguments};
        if (!cuda_ok(b, cudaLaunchKernelExC(&config, l->function, arguments), "launching a kernel"))
            return 0;
    }
    return 1;
}

static int same_list(const step_graph *g, const step *s, uint64_t hash)
{
    return g->launches != NULL && g->hash == hash && g->n_launches == s->n_launches &&
           g->n_arguments == s->n_arguments &&
           memcmp(g->launches, s->launches, s->n_launches * sizeof *s->launches) == 0 &&
           memcmp(g->arguments, s->arguments, s->n_arguments) == 0;
}

/* The list's slot; a new one takes the place of the one unused for longest. NULL: no memory. */
static step_graph *find_graph(step *s)
{
    step_graph **recent = &s->recent[s->part];
    if (*recent && same_list(*recent, s, (*recent)->hash))
        return *recent; /* as most steps of generation are: not even hashed */
    uint64_t hash = hash_bytes(1, s->launches, s->n_launches * sizeof *s->launches);
    hash = hash_bytes(hash, s->arguments, s->n_arguments);
    step_graph *oldest = &s->graphs[0];
    for (int i = 0; i < STEP_GRAPHS_MAX; i++) {
        step_graph *g = &s->graphs[i];
        if (same_list(g, s, hash))
            return *recent = g;
        oldest = g->used < oldest->used ? g : oldest;
    }
    release_graph(oldest);
    oldest->launches = malloc(s->n_launches * sizeof *s->launches);
    oldest->arguments = malloc(s->n_arguments);
    if (oldest->launches == NULL || oldest->arguments == NULL) {
        release_graph(oldest);
        return NULL;
    }
    memcpy(oldest->launches, s->launches, s->n_launches * sizeof *s->launches);
    memcpy(oldest->arguments, s->arguments, s->n_arguments);
    oldest->n_launches = s->n_launches;
    oldest->n_arguments = s->n_arguments;
    oldest->hash = hash;
    return *recent = oldest;
}

static int make_graph(cuda_backend *b, step_graph *g)
{
    cudaGraph_t graph = NULL;
    if (!cuda_ok(b, cudaStreamBeginCapture(b->stream, cudaStreamCaptureModeThreadLocal),
                 "recording a graph"))
        return 0;
    int launched = launch_all(b);
    if (!cuda_ok(b, cudaStreamEndCapture(b->stream, &graph), "recording a graph") || !launched)
        return 0;
    int made = cuda_ok(b, cudaGraphInstantiate(&g->graph, graph, 0), "making a graph");
    cudaGraphDestroy(graph);
    return made;
}

/* Making a graph takes as long as a step, so a list is launched as it is until it comes twice in a row, as those
 * of generation do, or for the fourth time. */
static void run_list(cuda_backend *b)
{
    step *s = &b->step;
    int is_worth_it = s->n_launches >= GRAPH_LAUNCHES_MIN && b->rows.n_tokens <= GRAPH_ROWS_MOST;
    step_graph *g = is_worth_it ? find_graph(s) : NULL;
    int lasts = g != NULL && (g->graph || (g->times > 0 && g->used + STEP_PARTS > s->tick) ||
                              g->times >= GRAPH_TIMES_MIN);
    if (g != NULL) {
        g->used = ++s->tick;
        g->times++;
    }
    if (!lasts) {
        launch_all(b);
        return;
    }
    if (g->graph == NULL && !make_graph(b, g))
        return;
    cuda_ok(b, cudaGraphLaunch(g->graph, b->stream), "launching a graph");
}

/* What was recorded, after what of the block the device does not have yet. */
static void run_part(cuda_backend *b)
{
    step *s = &b->step;
    if (s->used > s->copied && !b->failed) {
        cuda_ok(b,
                cudaMemcpyAsync(s->device + s->copied, s->host + s->copied, s->used - s->copied,
                                cudaMemcpyHostToDevice, b->stream),
                "sending a step's block");
        cuda_ok(b, cudaEventRecord(s->sent, b->stream), "sending a step's block");
        s->sending = 1;
        s->copied = s->used;
    }
    if (s->n_launches > 0 && !b->failed)
        run_list(b);
    s->n_launches = 0;
    s->n_arguments = 0;
}

void step_flush(cuda_backend *b)
{
    step *s = &b->step;
    run_part(b);
    s->part = 0;
    s->used = 0;
    s->copied = 0;
    b->staged = (staged_rows){0};
    b->angles_used = 0;
}
