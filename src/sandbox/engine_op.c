/* sandbox/engine_op.c: hands works to the engine, learns of their end, and keeps the account of their tokens.
 *
 * done runs on the engine's thread and does two things: a flag and a wake. The reference taken here
 * is what keeps the request's memory until that wake has happened (invariant 3). */
#include "sandbox/request.h"

static void on_done(work *w)
{
    engine_op *op = w->context;
    sandbox_request *r = op->request; /* op may be gone once done is set */
    const engine *e = op->engine;
    atomic_store_explicit(&op->done, 1, memory_order_release);
    request_wake_give(r, e);
}

static int take(const sandbox_request *r, uint64_t count)
{
    const sandbox_allowance *a = r->input.allowance;
    return !a || a->take(a->context, count);
}

/* The engine's thread, before each token. */
static int may_append(work *w)
{
    engine_op *op = w->context;
    if (!take(op->request, 1)) {
        op->ran_out = 1;
        return 0;
    }
    op->taken++;
    return 1;
}

realm_status engine_op_used_up(realm_error *error)
{
    return realm_fail(error, REALM_QUOTA, "the budget of tokens is used up");
}

realm_status engine_op_afford(sandbox_request *r, engine_op *op, uint64_t count, realm_error *error)
{
    op->taken = 0;
    if (op->work.kind != WORK_STEP && r->input.prompt_is_paid)
        return REALM_OK;
    if (!take(r, count)) {
        r->usage.ran_out = 1;
        return op->work.kind == WORK_STEP
                   ? engine_op_used_up(error)
                   : realm_fail(error, REALM_QUOTA,
                                "the budget has fewer tokens left than the %" PRIu64
                                " of the prompt",
                                count);
    }
    op->taken = count;
    return REALM_OK;
}

static void give_back(const sandbox_request *r, engine_op *op, uint64_t used)
{
    const sandbox_allowance *a = r->input.allowance;
    if (a && op->taken > used)
        a->give(a->context, op->taken - used);
    op->taken = 0;
}

static void note_engine(sandbox_request *r, engine *e)
{
    const tenant_grants *g = &r->tenant->grants;
    r->used = e;
    for (int32_t i = 0; i < g->n_models; i++)
        if (g->models[i].engine == e) {
            request_note_model(r, g->models[i].name);
            return;
        }
}

void engine_op_submit(sandbox_request *r, engine_op *op, engine *e)
{
    if (e != r->used)
        note_engine(r, e);
    op->request = r;
    op->engine = e;
    op->in_flight = 1;
    atomic_store_explicit(&op->done, 0, memory_order_relaxed);
    op->work.done = on_done;
    op->work.context = op;
    op->work.deadline_ns = r->deadline_ns;
    op->work.status = REALM_OK;
    op->work.may_append = op->work.kind == WORK_GENERATE ? may_append : NULL;
    op->ran_out = 0;
    r->n_in_flight++;
    request_retain(r);
    engine_submit(e, &op->work);
}

static void note_times(sandbox_times *t, const work *w)
{
    if (!t->submitted_ns)
        t->submitted_ns = w->submitted_ns;
    if (!t->started_ns)
        t->started_ns = w->started_ns;
    if (!t->first_token_ns && w->kind == WORK_GENERATE)
        t->first_token_ns = w->first_token_ns;
    else if (!t->first_token_ns && w->kind == WORK_STEP && w->status == REALM_OK)
        t->first_token_ns = w->done_ns;
    t->done_ns = w->done_ns;
}

/* A prompt after what was generated begins another answer. NULL: there were too many to keep. */
static sandbox_answer *answer_of(sandbox_request *r, engine_op *op)
{
    sandbox_usage *u = &r->usage;
    if (!op->session)
        op->session = ++r->n_computed;
    sandbox_answer *a = op->answer && op->answer <= SANDBOX_MAX_ANSWERS
                            ? &u->answers[op->answer - 1]
                            : NULL;
    if (!op->answer || (a && a->times.first_token_ns && op->work.kind == WORK_FEED)) {
        op->answer = ++u->n_answers;
        a = op->answer <= SANDBOX_MAX_ANSWERS ? &u->answers[op->answer - 1] : NULL;
        if (a)
            a->session = op->session;
    }
    return a;
}

/* How many tokens a work that is over has used, of the prompt or else generated. */
static uint64_t used_by(const work *w, int *of_prompt)
{
    *of_prompt = w->kind == WORK_FEED || w->kind == WORK_EMBED;
    if (*of_prompt)
        return w->status == REALM_OK ? (uint64_t)w->n_tokens : 0;
    if (w->kind == WORK_STEP)
        return w->status == REALM_OK;
    return w->kind == WORK_GENERATE ? (uint64_t)w->n_generated : 0;
}

/* Adds the tokens to the account of the request and of the answer; returns how many. */
static uint64_t account(sandbox_request *r, engine_op *op)
{
    const work *w = &op->work;
    sandbox_usage *u = &r->usage;
    sandbox_answer *a = answer_of(r, op);
    int of_prompt;
    uint64_t used = used_by(w, &of_prompt);
    note_times(&u->times, w);
    *(of_prompt ? &u->prompt_tokens : &u->generated_tokens) += used;
    u->cached_tokens += (uint64_t)w->n_cached;
    u->ran_out |= op->ran_out;
    if (a) {
        note_times(&a->times, w);
        a->status = w->status;
        *(of_prompt ? &a->prompt_tokens : &a->generated_tokens) += (uint32_t)used;
        a->cached_tokens += (uint32_t)w->n_cached;
    }
    return used;
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
    give_back(r, op, w->kind == WORK_COMPUTE ? 0 : account(r, op));
    if (w->status != REALM_OK && w->error.status != w->status) /* a status that speaks for itself */
        realm_fail(&w->error, w->status, "%s", realm_status_meaning(w->status));
    return 1;
}
