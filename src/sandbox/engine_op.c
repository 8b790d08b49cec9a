/* sandbox/engine_op.c: hands works to the engine and learns of their end.
 *
 * done runs on the engine's thread and does two things: a flag and a wake. The reference taken here
 * is what keeps the request's memory until that wake has happened (invariant 3). */
#include "sandbox/request.h"

static void on_done(work *w)
{
    engine_op *op = w->context;
    sandbox_request *r = op->request; /* op may be gone once done is set */
    atomic_store_explicit(&op->done, 1, memory_order_release);
    request_wake_give(r);
}

void engine_op_submit(sandbox_request *r, engine_op *op, engine *e)
{
    op->request = r;
    op->in_flight = 1;
    atomic_store_explicit(&op->done, 0, memory_order_relaxed);
    op->work.done = on_done;
    op->work.context = op;
    op->work.deadline_ns = r->deadline_ns;
    op->work.status = REALM_OK;
    r->n_in_flight++;
    request_retain(r);
    engine_submit(e, &op->work);
}

int engine_op_collect(sandbox_request *r, engine_op *op)
{
    if (!op->in_flight)
        return 1;
    if (!atomic_load_explicit(&op->done, memory_order_acquire))
        return 0;
    op->in_flight = 0;
    r->n_in_flight--;
    work *w = &op->work;
    if (w->status != REALM_OK && w->error.status != w->status) /* a status that speaks for itself */
        realm_fail(&w->error, w->status, "%s", realm_status_meaning(w->status));
    if (w->kind == WORK_FEED || w->kind == WORK_EMBED) {
        if (w->status == REALM_OK)
            r->usage.prompt_tokens += (uint64_t)w->n_tokens;
        r->usage.cached_tokens += (uint64_t)w->n_cached;
    } else if (w->kind == WORK_STEP && w->status == REALM_OK) {
        r->usage.generated_tokens++;
    } else if (w->kind == WORK_GENERATE) {
        r->usage.generated_tokens += (uint64_t)w->n_generated;
        r->usage.cached_tokens += (uint64_t)w->n_cached;
    }
    return 1;
}
