/* sandbox/sandbox_host.c: opens and closes what all sandboxes share, and hands out instances.
 *
 * The number of instances is bounded by the pool. Requests past it stand in a line and get an
 * instance in their order; called programs have a share of their own and are refused when it is
 * used up, since a line of them could wait for itself. */
#include "sandbox/runtime.h"

#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "sandbox/host_functions.h"
#include "sandbox/program_cache.h"

#define DEFAULT_THREADS  2
#define DEFAULT_REQUESTS 256
#define MAX_REQUESTS     8192
#define DEFAULT_MEMORY   ((uint64_t)4 << 30)
#define DEFAULT_MEMORY64 ((uint64_t)16 << 30)
#define DEFAULT_MODULE   ((uint64_t)64 << 20)

static realm_status complete(sandbox_host_options *o, const sandbox_host_options *given,
                             realm_error *error)
{
    *o = given ? *given : (sandbox_host_options){0};
    o->n_threads = o->n_threads ? o->n_threads : DEFAULT_THREADS;
    o->n_cores = o->n_cores > 0 ? o->n_cores : cpu_count();
    o->max_requests = o->max_requests ? o->max_requests : DEFAULT_REQUESTS;
    o->max_memory_bytes = o->max_memory_bytes ? o->max_memory_bytes : DEFAULT_MEMORY;
    o->max_memory64_bytes = o->max_memory64_bytes ? o->max_memory64_bytes : DEFAULT_MEMORY64;
    o->max_module_bytes = o->max_module_bytes ? o->max_module_bytes : DEFAULT_MODULE;
    if (o->n_threads < 1 || o->n_threads > RUNTIME_MAX_THREADS)
        return realm_fail(error, REALM_INVALID, "sandbox threads: %d is not between 1 and %d",
                          o->n_threads, RUNTIME_MAX_THREADS);
    if (o->max_requests < 1 || o->max_requests > MAX_REQUESTS)
        return realm_fail(error, REALM_INVALID, "sandboxes at once: %d is not between 1 and %d",
                          o->max_requests, MAX_REQUESTS);
    if (o->max_memory_bytes > DEFAULT_MEMORY)
        return realm_fail(error, REALM_INVALID, "a 32-bit guest's memory: at most 4 GiB");
    return REALM_OK;
}

static realm_status open_linkers(sandbox_host *h, realm_error *error)
{
    for (int i = 0; i < 2; i++) {
        h->linkers[i] = wasmtime_linker_new(h->engines[i]);
        realm_status status = host_functions_define(h->linkers[i], i, error);
        if (status != REALM_OK)
            return status;
    }
    return REALM_OK;
}

static realm_status open_threads(sandbox_host *h, realm_error *error)
{
    h->threads = calloc((size_t)h->options.n_threads, sizeof *h->threads);
    if (!h->threads)
        return realm_fail_memory(error, (size_t)h->options.n_threads * sizeof *h->threads,
                                 "sandbox threads");
    while (h->n_threads_open < h->options.n_threads) {
        realm_status status = sandbox_thread_open(&h->threads[h->n_threads_open], h, error);
        if (status != REALM_OK)
            return status;
        h->n_threads_open++;
    }
    realm_status status = sandbox_thread_open(&h->background, h, error);
    h->has_background = status == REALM_OK;
    return status;
}

realm_status sandbox_host_open(sandbox_host **out, const sandbox_host_options *options,
                               realm_error *error)
{
    sandbox_host *h = calloc(1, sizeof *h);
    if (!h)
        return realm_fail_memory(error, sizeof *h, "the sandbox host");
    pthread_mutex_init(&h->mutex, NULL);
    pthread_cond_init(&h->emptied, NULL);

    realm_status status = complete(&h->options, options, error);
    if (status == REALM_OK)
        status = program_cache_open(h, h->options.cache_folder, error);
    if (status == REALM_OK)
        status = wasm_engines_open(h->engines, &h->options, error);
    if (status == REALM_OK)
        status = open_linkers(h, error);
    if (status == REALM_OK)
        status = ticker_open(&h->ticker, h->engines[0], h->engines[1], error);
    if (status == REALM_OK)
        status = helper_open(&h->helper, error);
    if (status == REALM_OK)
        status = open_threads(h, error);
    if (status != REALM_OK) {
        sandbox_host_close(h);
        return status;
    }
    h->options.cache_folder = h->cache_folder;
    *out = h;
    return REALM_OK;
}

realm_status sandbox_host_enter(sandbox_host *h, sandbox_request *r, realm_error *error)
{
    pthread_mutex_lock(&h->mutex);
    int closing = h->closing;
    if (!closing) {
        r->next_of_host = h->all;
        if (h->all)
            h->all->previous_of_host = r;
        h->all = r;
    }
    pthread_mutex_unlock(&h->mutex);
    return closing ? realm_fail(error, REALM_CLOSED, "the node is shutting down") : REALM_OK;
}

void sandbox_host_leave(sandbox_host *h, sandbox_request *r)
{
    pthread_mutex_lock(&h->mutex);
    if (r->previous_of_host)
        r->previous_of_host->next_of_host = r->next_of_host;
    else
        h->all = r->next_of_host;
    if (r->next_of_host)
        r->next_of_host->previous_of_host = r->previous_of_host;
    if (!h->all)
        pthread_cond_broadcast(&h->emptied);
    pthread_mutex_unlock(&h->mutex);
}

static void end_all(sandbox_host *h)
{
    pthread_mutex_lock(&h->mutex);
    h->closing = 1;
    for (sandbox_request *r = h->all; r; r = r->next_of_host)
        sandbox_cancel(r);
    while (h->all)
        pthread_cond_wait(&h->emptied, &h->mutex);
    pthread_mutex_unlock(&h->mutex);
}

void sandbox_host_close(sandbox_host *h)
{
    if (!h)
        return;
    end_all(h);
    for (int i = 0; i < h->n_threads_open; i++)
        sandbox_thread_close(&h->threads[i]);
    if (h->has_background)
        sandbox_thread_close(&h->background);
    free(h->threads);
    helper_close(&h->helper);
    ticker_close(&h->ticker);
    for (int i = 0; i < 2; i++) {
        if (h->linkers[i])
            wasmtime_linker_delete(h->linkers[i]);
        if (h->engines[i])
            wasm_engine_delete(h->engines[i]);
    }
    pthread_cond_destroy(&h->emptied);
    pthread_mutex_destroy(&h->mutex);
    free(h);
}

int sandbox_host_admit(sandbox_host *h, sandbox_request *r)
{
    pthread_mutex_lock(&h->mutex);
    int admitted = 0;
    if (r->depth > 0) {
        admitted = h->children < sandbox_host_child_instances(&h->options) ? 1 : -1;
        h->children += admitted == 1;
    } else if (h->active < h->options.max_requests) {
        h->active++;
        admitted = 1;
    } else {
        r->admission.next = NULL;
        if (h->line_last)
            h->line_last->next = &r->admission;
        else
            h->line_first = &r->admission;
        h->line_last = &r->admission;
        h->waiting++;
        r->in_line = 1;
    }
    pthread_mutex_unlock(&h->mutex);
    return admitted;
}

void sandbox_host_give_back(sandbox_host *h, sandbox_request *r)
{
    sandbox_request *next = NULL;
    pthread_mutex_lock(&h->mutex);
    if (r->depth > 0) {
        h->children--;
    } else if (h->line_first) {
        next = QUEUE_OWNER(h->line_first, sandbox_request, admission);
        h->line_first = next->admission.next;
        if (!h->line_first)
            h->line_last = NULL;
        h->waiting--;
        next->in_line = 0;
        atomic_store(&next->admitted, 1);
        request_retain(next);
    } else {
        h->active--;
    }
    pthread_mutex_unlock(&h->mutex);
    if (next)
        request_wake_give(next, NULL);
}

void sandbox_host_leave_line(sandbox_host *h, sandbox_request *r)
{
    pthread_mutex_lock(&h->mutex);
    queue_node *before = NULL;
    for (queue_node *n = h->line_first; r->in_line && n; before = n, n = n->next) {
        if (n != &r->admission)
            continue;
        if (before)
            before->next = n->next;
        else
            h->line_first = n->next;
        if (h->line_last == n)
            h->line_last = before;
        h->waiting--;
        r->in_line = 0;
        break;
    }
    pthread_mutex_unlock(&h->mutex);
}

void sandbox_host_stats_get(sandbox_host *h, sandbox_host_stats *out)
{
    *out = (sandbox_host_stats){0};
    pthread_mutex_lock(&h->mutex);
    out->active = h->active + h->children;
    out->waiting = h->waiting;
    pthread_mutex_unlock(&h->mutex);
    out->started = atomic_load(&h->started);
    out->finished = atomic_load(&h->finished);
    out->failed = atomic_load(&h->failed);
    out->preemptions = atomic_load(&h->preemptions);
    out->cache_hits = atomic_load(&h->cache_hits);
    out->cache_misses = atomic_load(&h->cache_misses);
}
