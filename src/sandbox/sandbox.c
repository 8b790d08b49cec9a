/* sandbox/sandbox.c: starting, cancelling and waiting for requests, from any thread. */
#include "sandbox/sandbox.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "sandbox/runtime.h"

/* Beside the body: the id, options and what host functions put there. */
#define ARENA_ROOM_BYTES ((size_t)1 << 20)

static sandbox_thread *choose_thread(sandbox_host *h, const sandbox_request *r)
{
    if (sandbox_thread_tenant_is_heavy(r->tenant, r->submitted_ns))
        return &h->background;
    sandbox_thread *best = &h->threads[0];
    for (int i = 1; i < h->n_threads_open; i++)
        if (atomic_load(&h->threads[i].n_requests) < atomic_load(&best->n_requests))
            best = &h->threads[i];
    return best;
}

static uint64_t earliest_deadline(const sandbox_request *r, const sandbox_input *input)
{
    uint64_t wall_ns = r->tenant->grants.limits.wall_ns;
    uint64_t own = wall_ns < UINT64_MAX - r->submitted_ns ? r->submitted_ns + wall_ns : UINT64_MAX;
    return input->deadline_ns && input->deadline_ns < own ? input->deadline_ns : own;
}

static realm_status copy_input(sandbox_request *r, realm_error *error)
{
    r->input.body = arena_copy(&r->arena, r->input.body_size ? r->input.body : "",
                               r->input.body_size);
    if (r->input.id)
        r->input.id = arena_copy(&r->arena, r->input.id, strlen(r->input.id));
    size_t n_models = (size_t)r->tenant->grants.n_models;
    r->model_handles = arena_take_array(&r->arena, n_models, sizeof *r->model_handles);
    return r->input.body && r->model_handles
               ? REALM_OK
               : realm_fail_memory(error, r->input.body_size, "a request's body");
}

static realm_status make(sandbox_request **out, sandbox_host *h, const sandbox_input *input,
                         int depth, realm_error *error)
{
    const sandbox_limits *limits = &input->tenant->grants.limits;
    if (input->body_size > limits->input_bytes)
        return realm_fail(error, REALM_TOO_LARGE,
                          "the request's body has %zu bytes; its tenant's limit is %" PRIu64,
                          input->body_size, limits->input_bytes);
    sandbox_request *r = calloc(1, sizeof *r);
    if (!r)
        return realm_fail_memory(error, sizeof *r, "a request");
    atomic_init(&r->references, 1);
    r->host = h;
    r->program = program_retain(input->program);
    r->tenant = sandbox_tenant_retain(input->tenant);
    r->input = *input;
    r->depth = depth;
    r->submitted_ns = clock_ns();
    r->deadline_ns = earliest_deadline(r, input);
    arena_init(&r->arena, input->body_size + ARENA_ROOM_BYTES);
    rng_init(&r->random, input->seed);
    handles_init(&r->handles);
    map_init(&r->tensors.parts);
    arena_init(&r->tensors.inputs, 0); /* host_tensor.c bounds it */
    buffer_init(&r->child_output, limits->output_bytes);
    buffer_init(&r->held, (limits->output_bytes + limits->log_bytes) *
                              (sizeof(request_held) + 1)); /* of one byte each */
    buffer_init(&r->kept, limits->output_bytes + ((size_t)1 << 20));
    buffer_init(&r->piece, (size_t)1 << 16);
    realm_status status = copy_input(r, error);
    if (status == REALM_OK)
        status = sandbox_host_enter(h, r, error);
    if (status != REALM_OK) {
        request_unretain(r);
        return status;
    }
    atomic_fetch_add(&h->started, 1);
    *out = r;
    return REALM_OK;
}

realm_status sandbox_start(sandbox_request **out, sandbox_host *h, const sandbox_input *input,
                           realm_error *error)
{
    sandbox_tenant *t = input->tenant;
    if (atomic_fetch_add(&t->requests, 1) >= t->grants.limits.requests) {
        atomic_fetch_sub(&t->requests, 1);
        return realm_fail(error, REALM_QUOTA, "the tenant '%s' has %d requests running, its limit",
                          t->grants.name, t->grants.limits.requests);
    }
    sandbox_request *r;
    realm_status status = make(&r, h, input, 0, error);
    if (status != REALM_OK) {
        atomic_fetch_sub(&t->requests, 1);
        return status;
    }
    sandbox_thread_add(choose_thread(h, r), r);
    if (out)
        *out = r;
    else
        request_unretain(r);
    return REALM_OK;
}

realm_status sandbox_start_child(sandbox_request **out, sandbox_request *parent,
                                 const sandbox_input *input, realm_error *error)
{
    realm_status status = make(out, parent->host, input, parent->depth + 1, error);
    if (status != REALM_OK)
        return status;
    (*out)->parent = parent;
    sandbox_thread_add(parent->thread, *out); /* ours: it cannot run before this turn is over */
    (*out)->home = parent->home;
    return REALM_OK;
}

void sandbox_cancel(sandbox_request *r)
{
    if (atomic_load(&r->finished) || atomic_exchange(&r->cancelled, 1))
        return;
    if (r->thread)
        request_wake(r);
}

void sandbox_release(sandbox_request *r)
{
    if (r)
        request_unretain(r);
}

/* ---- waiting -------------------------------------------------------------------------------------- */

typedef struct waiter {
    const sandbox_input *input;
    sandbox_result *result;
    buffer *kept;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int done;
} waiter;

static void pass_text(void *context, const char *text, size_t size)
{
    const sandbox_input *input = ((waiter *)context)->input;
    input->on_text(input->context, text, size);
}

static void pass_log(void *context, int level, const char *text, size_t size)
{
    const sandbox_input *input = ((waiter *)context)->input;
    input->on_log(input->context, level, text, size);
}

/* Message and JSON lie one after the other in kept, each terminated. */
static void keep(sandbox_result *to, const sandbox_result *from, buffer *kept)
{
    *to = *from;
    to->message = "";
    to->json = NULL;
    buffer_clear(kept);
    size_t message_size = strlen(from->message) + 1;
    size_t json_size = from->json ? from->json_size + 1 : 0;
    if (buffer_reserve(kept, message_size + json_size) != REALM_OK)
        return;
    buffer_add(kept, from->message, message_size);
    to->message = kept->data;
    if (from->json) {
        buffer_add(kept, from->json, json_size);
        to->json = kept->data + message_size;
    }
}

static void pass_done(void *context, const sandbox_result *result)
{
    waiter *w = context;
    if (w->input->on_done)
        w->input->on_done(w->input->context, result);
    keep(w->result, result, w->kept);
    pthread_mutex_lock(&w->mutex);
    w->done = 1;
    pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->mutex);
}

realm_status sandbox_run(sandbox_host *h, const sandbox_input *input, sandbox_result *result,
                         buffer *kept)
{
    waiter w = {.input = input, .result = result, .kept = kept};
    pthread_mutex_init(&w.mutex, NULL);
    pthread_cond_init(&w.changed, NULL);
    buffer_init(kept, input->tenant->grants.limits.output_bytes + 4096);
    sandbox_input own = *input;
    own.context = &w;
    own.on_text = input->on_text ? pass_text : NULL;
    own.on_log = input->on_log ? pass_log : NULL;
    own.on_done = pass_done;
    realm_error error = {0};
    if (sandbox_start(NULL, h, &own, &error) != REALM_OK) {
        keep(result, &(sandbox_result){.status = error.status, .message = error.message}, kept);
    } else {
        pthread_mutex_lock(&w.mutex);
        while (!w.done)
            pthread_cond_wait(&w.changed, &w.mutex);
        pthread_mutex_unlock(&w.mutex);
    }
    pthread_cond_destroy(&w.changed);
    pthread_mutex_destroy(&w.mutex);
    return result->status;
}
