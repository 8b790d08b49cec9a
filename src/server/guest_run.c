/* server/guest_run.c: see guest_run.h. */
#include "server/guest_run.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

struct guest_run {
    net_task task;
    guest_run_options options;
    sandbox_request *request;
    pthread_mutex_t mutex;
    /* guarded by mutex */
    buffer fresh;
    int posted, ended;
    realm_status lost; /* text did not fit into memory */
    uint64_t first_text_ns, last_text_ns;
    metrics_samples gaps;
    guest_result result; /* constant once ended */
    char message[REALM_ERROR_MESSAGE_SIZE];
    char *json;
    /* net thread */
    buffer taken; /* the other of the pair, or all of the text without on_text */
    int paused;
    int skipped; /* a turn came while it was paused */
    uint64_t started_ns;
};

static void post(guest_run *run)
{
    if (!run->posted) {
        run->posted = 1;
        net_post(run->options.net, &run->task);
    }
}

/* ---- the sandbox's thread ---- */

static void on_text(void *context, const char *text, size_t size)
{
    guest_run *run = context;
    pthread_mutex_lock(&run->mutex);
    uint64_t now = clock_ns();
    if (!run->first_text_ns)
        run->first_text_ns = now - run->started_ns;
    else if (run->options.on_text)
        metrics_samples_add(&run->gaps, (double)(now - run->last_text_ns) / 1e9);
    run->last_text_ns = now;
    if (buffer_add(&run->fresh, text, size))
        run->lost = REALM_NO_MEMORY;
    if (run->options.on_text)
        post(run);
    pthread_mutex_unlock(&run->mutex);
}

static void on_done(void *context, const sandbox_result *result)
{
    guest_run *run = context;
    pthread_mutex_lock(&run->mutex);
    run->result = (guest_result){.status = result->status,
                                 .message = run->message,
                                 .usage = result->usage,
                                 .started_ns = run->started_ns,
                                 .first_text_ns = run->first_text_ns,
                                 .gaps = run->gaps};
    memcpy(run->message, result->message,
           strnlen(result->message, sizeof run->message - 1)); /* the rest is zero */
    if (result->json) {
        run->json = malloc(result->json_size + 1);
        if (run->json) {
            memcpy(run->json, result->json, result->json_size + 1);
            run->result.json = run->json;
            run->result.json_size = result->json_size;
        } else {
            run->lost = REALM_NO_MEMORY;
        }
    }
    if (!run->result.status && run->lost) {
        run->result.status = run->lost;
        strcpy(run->message, "the host is out of memory");
    }
    run->ended = 1;
    post(run);
    pthread_mutex_unlock(&run->mutex);
}

/* ---- the net thread ---- */

static void free_run(guest_run *run)
{
    sandbox_release(run->request);
    buffer_release(&run->fresh);
    buffer_release(&run->taken);
    free(run->json);
    pthread_mutex_destroy(&run->mutex);
    free(run);
}

static void turn(guest_run *run)
{
    pthread_mutex_lock(&run->mutex);
    run->posted = 0;
    if (run->paused) {
        run->skipped = 1;
        pthread_mutex_unlock(&run->mutex);
        return;
    }
    int ended = run->ended;
    if (run->options.on_text || ended) {
        buffer swap = run->fresh;
        run->fresh = run->taken;
        run->taken = swap;
    }
    pthread_mutex_unlock(&run->mutex);
    if (run->options.on_text && run->taken.size) {
        run->options.on_text(run, run->options.context, run->taken.data, run->taken.size);
        buffer_clear(&run->taken);
    }
    if (!ended)
        return;
    run->options.on_done(run, run->options.context, &run->result);
    net_unhold(run->options.net);
    free_run(run);
}

static void on_posted(net_task *task)
{
    turn(QUEUE_OWNER(task, guest_run, task));
}

realm_status guest_run_start(guest_run **out, const guest_run_options *options, realm_error *error)
{
    guest_run *run = calloc(1, sizeof *run);
    if (!run)
        return realm_fail_memory(error, sizeof *run, "a run");
    run->task.run = on_posted;
    run->options = *options;
    pthread_mutex_init(&run->mutex, NULL);
    buffer_init(&run->fresh, SIZE_MAX); /* the tenant's output_bytes bounds both */
    buffer_init(&run->taken, SIZE_MAX);
    run->started_ns = clock_ns();
    sandbox_input *input = &run->options.input;
    input->context = run;
    input->on_text = on_text;
    input->on_done = on_done;
    /* The sandbox may be done before sandbox_start returns, but its news come through the loop, whose
     * thread this is. */
    realm_status status = sandbox_start(&run->request, options->sandbox, input, error);
    if (status) {
        free_run(run);
        return status;
    }
    net_hold(options->net);
    *out = run;
    return REALM_OK;
}

void guest_run_cancel(guest_run *run)
{
    sandbox_cancel(run->request);
    guest_run_resume(run);
}

void guest_run_pause(guest_run *run)
{
    run->paused = 1;
}

/* Not turn() itself: the caller may be inside of on_text. Nothing was missed if no turn was skipped. */
void guest_run_resume(guest_run *run)
{
    if (run->paused && run->skipped) {
        pthread_mutex_lock(&run->mutex);
        post(run);
        pthread_mutex_unlock(&run->mutex);
    }
    run->paused = run->skipped = 0;
}

const char *guest_run_text(guest_run *run, size_t *size)
{
    *size = run->taken.size;
    return run->taken.data ? run->taken.data : "";
}
