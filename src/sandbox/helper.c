/* sandbox/helper.c: see helper.h. */
#include "sandbox/helper.h"

#include "base/clock.h"
#include "sandbox/runtime.h"

static void *run(void *argument)
{
    helper *h = argument;
    for (queue_node *n; (n = queue_take(&h->jobs, 0, UINT64_MAX));) {
        helper_job *job = QUEUE_OWNER(n, helper_job, node);
        sandbox_request *r = job->request;
        uint64_t began = clock_thread_cpu_ns();
        job->work(job);
        job->cpu_ns = clock_thread_cpu_ns() - began;
        atomic_store_explicit(&job->done, 1, memory_order_release);
        request_wake_give(r, NULL);
    }
    return NULL;
}

realm_status helper_open(helper *h, realm_error *error)
{
    queue_init(&h->jobs);
    if (pthread_create(&h->thread, NULL, run, h) != 0) {
        queue_release(&h->jobs);
        return realm_fail(error, REALM_NO_MEMORY, "the sandbox's helper thread cannot be started");
    }
    h->started = 1;
    return REALM_OK;
}

void helper_close(helper *h)
{
    if (!h->started)
        return;
    queue_close(&h->jobs);
    pthread_join(h->thread, NULL);
    queue_release(&h->jobs);
    h->started = 0;
}

realm_status helper_prepare(sandbox_request *r, const void *of_model, const char *text, size_t size,
                            int32_t number, size_t out_cap_bytes)
{
    helper_job *job = &r->job;
    helper_clear(r);
    buffer_init(&job->text, size);
    buffer_init(&job->out, out_cap_bytes);
    job->model = of_model;
    job->number = number;
    return buffer_add(&job->text, text, size);
}

void helper_submit(sandbox_request *r, void (*job_work)(helper_job *job))
{
    helper_job *job = &r->job;
    job->request = r;
    job->work = job_work;
    job->in_flight = 1;
    atomic_store_explicit(&job->done, 0, memory_order_relaxed);
    r->n_in_flight++;
    request_retain(r);
    queue_put(&r->host->helper.jobs, &job->node);
}

int helper_collect(sandbox_request *r)
{
    helper_job *job = &r->job;
    if (!job->in_flight)
        return 1;
    if (!atomic_load_explicit(&job->done, memory_order_acquire))
        return 0;
    job->in_flight = 0;
    r->n_in_flight--;
    r->usage.cpu_ns += job->cpu_ns;
    return 1;
}

void helper_clear(sandbox_request *r)
{
    helper_job *job = &r->job;
    buffer_release(&job->text);
    buffer_release(&job->out);
    if (job->grammar)
        grammar_close(job->grammar);
    job->grammar = NULL;
}
