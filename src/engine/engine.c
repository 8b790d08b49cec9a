/* engine/engine.c: the engine's thread, its queue and its iteration. See engine.h.
 *
 * An iteration in full:
 *   1  take what is in the queue: works begin, commands of idle owners are carried out
 *   2  end works whose session was cancelled or whose deadline has passed
 *   3  plan rows (scheduler.h), copy the pages that forks part over
 *   4  one model_forward for rows with logits, one for rows with hidden states
 *   5  go on with every work whose tokens are all computed: sample, emit, finish
 *   6  wait a moment for the next steps of sessions that are driven from outside
 *
 * A guest's answer takes about 10 us where threads are awake, so an idle engine spins a little
 * before it sleeps; it yields while it spins, since the guest may need this core. */
#include <assert.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/prefetch.h"
#include "base/spin.h"
#include "engine/compute.h"
#include "engine/embed.h"
#include "engine/engine_internal.h"

#define DEFAULT_MAX_SESSIONS 256
#define MOST_SESSIONS        65536
#define ASSERT_EVERY         16       /* iterations, in debug builds */
#define SPIN_NS              100000u  /* before an idle engine with open sessions sleeps */
#define SPIN_ALONE_NS        20000u   /* of that, without offering the core to others */
#define STUCK_WAIT_NS        1000000u /* between attempts while pages are missing */
#define GATHER_MOST_NS       1000000u
#define GATHER_SHARE         20u /* of an iteration: 5 % at most are waited for guests */
/* Saved or loaded in one iteration: about a millisecond of a device's connection. */
#define MOVED_BYTES_MOST   ((uint64_t)24 << 20)
#define HOST_BYTES_AT_ONCE ((uint64_t)64 << 20) /* that host pages grow by */

static_assert(offsetof(command, kind) == offsetof(work, kind),
              "one look tells works from commands");

/* ---- the end of a work ------------------------------------------------------------------------- */

static void undo(engine *e, session *s)
{
    if (s->length > s->mark) {
        s->length = s->mark;
        s->has_logits = s->mark_logits;
    }
    scheduler_truncate(e->scheduler, &s->item, s->length);
}

static void leave_active(engine *e, session *s)
{
    session *last = e->active[--e->n_active];
    e->active[s->active_index] = last;
    last->active_index = s->active_index;
    if (s->item.active)
        scheduler_rest(e->scheduler, &s->item);
    s->item.no_logits = s->item.uncached = 0;
}

static void complete(work *w, realm_status status)
{
    w->status = status;
    if (status != REALM_OK && w->error.status != status)
        realm_fail(&w->error, status, "%s", realm_status_meaning(status));
    w->done_ns = clock_ns();
    if (w->started_ns == 0)
        w->started_ns = w->done_ns;
    w->done(w);
}

static void note_times(session *s, work *w)
{
    if (w->kind == WORK_FEED) {
        if (s->fed_submitted_ns == 0) {
            s->fed_submitted_ns = w->submitted_ns;
            s->fed_started_ns = w->started_ns ? w->started_ns : clock_ns();
        }
        return;
    }
    w->prompt_submitted_ns = s->fed_submitted_ns ? s->fed_submitted_ns : w->submitted_ns;
    w->prompt_started_ns = s->fed_submitted_ns ? s->fed_started_ns : w->started_ns;
    s->fed_submitted_ns = 0;
}

/* After this the session may be used, and the work be gone, at any moment. */
static void finish(engine *e, session *s, realm_status status)
{
    work *w = s->work;
    leave_active(e, s);
    if (status != REALM_OK)
        undo(e, s);
    s->work = NULL;
    note_times(s, w);
    int driven = w->kind == WORK_STEP || w->finish == FINISH_WAKE;
    if (status == REALM_OK && driven) {
        s->awaited = e->iteration;
        e->n_awaited++;
    }
    atomic_store_explicit(&s->state, SESSION_IDLE, memory_order_release);
    complete(w, status);
}

/* ---- going on with a work ---------------------------------------------------------------------- */

/* Logits are wanted of a token that was computed before: it is computed once more. */
static realm_status prepare_logits(engine *e, session *s)
{
    if (s->length == 0)
        return realm_fail(&s->work->error, REALM_INVALID, "the session is empty");
    if (s->tokens[s->length - 1] < 0)
        return realm_fail(&s->work->error, REALM_INVALID,
                          "the last token was written by the guest itself: it has no logits");
    if (s->item.computed == s->length)
        scheduler_truncate(e->scheduler, &s->item, s->length - 1);
    return REALM_OK;
}

/* Calls the work's next until it is finished or waits for rows to be computed. */
static void go_on(engine *e, session *s)
{
    const work_table *table = work_table_of(s->work->kind);
    realm_status status = REALM_OK;
    int finished = 0;
    while (status == REALM_OK && !finished) {
        if (!(table->needs_logits ? s->has_logits : s->item.computed == s->length)) {
            status = table->needs_logits ? prepare_logits(e, s) : REALM_OK;
            if (status != REALM_OK)
                break;
            s->item.tokens = s->tokens;
            s->item.length = s->length;
            if (!s->item.active)
                scheduler_activate(e->scheduler, &s->item);
            return;
        }
        if (s->work->first_token_ns == 0)
            s->work->first_token_ns = clock_ns();
        status = table->next(e, s, s->work, &finished);
    }
    finish(e, s, status);
}

static void learn(engine *e, session *s)
{
    if (!s->known)
        scheduler_add(e->scheduler, &s->item, &s->tenant->scheduled, (int32_t)s->priority);
    s->known = 1;
}

static int has_passed(uint64_t deadline_ns)
{
    return deadline_ns != 0 && clock_ns() >= deadline_ns;
}

static realm_status begin(engine *e, session *s, work *w)
{
    const work_table *table = work_table_of(w->kind);
    if (atomic_load_explicit(&s->state, memory_order_relaxed) == SESSION_CANCELLED)
        return REALM_CANCELLED;
    if (has_passed(w->deadline_ns))
        return REALM_DEADLINE;
    if (w->kind != WORK_COMPUTE)
        s->walk = (layer_walk){0};
    if (w->kind != WORK_GENERATE)
        s->generate.woken = 0;
    realm_status status = table->needs_logits ? session_reserve_logits(s, &w->error) : REALM_OK;
    return status == REALM_OK ? table->begin(e, s, w) : status;
}

static void start_work(engine *e, work *w)
{
    session *s = w->session;
    learn(e, s);
    if (s->awaited == e->iteration && e->n_awaited > 0)
        e->n_awaited--;
    s->awaited = 0;
    if (w->kind != WORK_GENERATE)
        w->finish = FINISH_NONE;
    s->work = w;
    s->mark = s->length;
    s->mark_logits = s->has_logits;
    s->item.adapter = s->adapter;
    s->active_index = e->n_active;
    e->active[e->n_active++] = s;
    realm_status status = begin(e, s, w);
    if (status == REALM_OK)
        go_on(e, s);
    else
        finish(e, s, status);
}

/* Works that do not get as far as a session's begin. */
static void reject(work *w, realm_status status)
{
    if (w->session && w->progress >= 0)
        atomic_store_explicit(&w->session->state, SESSION_IDLE, memory_order_release);
    complete(w, status);
}

static void take_work(engine *e, work *w)
{
    if (w->progress < 0)
        reject(w, REALM_BUSY);
    else if (!work_table_of(w->kind))
        reject(w,
               realm_fail(&w->error, REALM_INVALID, "there is no work of kind %d", (int)w->kind));
    else if (w->session)
        start_work(e, w);
    else if (w->kind == WORK_COMPUTE)
        complete(w, compute_run(e, NULL, w));
    else
        reject(w, realm_fail(&w->error, REALM_INVALID, "the work has no session"));
}

/* ---- commands ---------------------------------------------------------------------------------- */

static void close_session(engine *e, session *s)
{
    if (s->work)
        finish(e, s, REALM_CANCELLED);
    if (s->awaited == e->iteration && e->n_awaited > 0)
        e->n_awaited--;
    if (s->known)
        scheduler_remove(e->scheduler, &s->item);
    engine_unlink(e, s);
    session_free(s);
}

static void obey(engine *e, command *c)
{
    session *s = c->session;
    switch (c->kind) {
    case COMMAND_FORK:
        learn(e, s);
        if (c->parent->known)
            scheduler_fork(e->scheduler, &s->item, &c->parent->item, c->length);
        break;
    case COMMAND_TRUNCATE:
        if (s->known)
            scheduler_truncate(e->scheduler, &s->item, c->length);
        s->walk = (layer_walk){0};
        s->generate.woken = 0;
        free(c);
        break;
    case COMMAND_CLOSE: close_session(e, s); break;
    case COMMAND_FORGET:
        scheduler_forget_adapter(e->scheduler, c->adapter);
        atomic_store_explicit(c->finished, 1, memory_order_release);
        break;
    case COMMAND_STOP: e->stopping = 1; break;
    }
}

static void take_message(engine *e, queue_node *node)
{
    int kind = QUEUE_OWNER(node, command, node)->kind;
    if (kind >= COMMAND_FORK)
        obey(e, QUEUE_OWNER(node, command, node));
    else
        take_work(e, QUEUE_OWNER(node, work, node));
}

static void drain(engine *e)
{
    queue_node *node = queue_take_all(&e->queue);
    while (node) {
        queue_node *next = node->next; /* the message may be gone when it has been taken */
        take_message(e, node);
        node = next;
    }
}

/* ---- waiting ----------------------------------------------------------------------------------- */

/* Until something is in the queue or the time is over, with whatever errands there are. At first without
 * yielding: on a busy machine the core comes back milliseconds later, when the guest has long answered.
 * Then with it, as it may be this very core that the guest waits for. */
static void spin_until(engine *e, uint64_t end_ns)
{
    uint64_t patient = clock_ns() + SPIN_ALONE_NS;
    for (uint64_t now = 0; now < end_ns; now = clock_ns()) {
        if (errand_run(&e->errands))
            continue;
        if (queue_count(&e->queue) > 0)
            return;
        for (int i = 0; i < 8; i++)
            spin_pause();
        if (now > patient)
            sched_yield();
    }
}

static void wait_for_message(engine *e, uint64_t wait_ns)
{
    if (atomic_load_explicit(&e->n_sessions, memory_order_relaxed) > 0 && wait_ns > SPIN_NS)
        spin_until(e, clock_ns() + SPIN_NS);
    queue_node *node = queue_take(&e->queue, 0, wait_ns);
    if (node)
        take_message(e, node);
}

/* Sessions whose step has just ended answer within microseconds as a rule: with them the next
 * iteration is one batch, without them it falls apart. Who is late joins a later one. */
static void gather(engine *e, uint64_t iteration_ns)
{
    uint64_t most = iteration_ns / GATHER_SHARE;
    if (most > GATHER_MOST_NS)
        most = GATHER_MOST_NS;
    if (e->gather_us >= 0)
        most = (uint64_t)e->gather_us * 1000;
    uint64_t end = clock_ns() + most;
    while (e->n_awaited > 0 && !e->stopping && clock_ns() < end) {
        spin_until(e, end);
        drain(e);
    }
    e->n_awaited = 0;
}

/* ---- an iteration ------------------------------------------------------------------------------ */

static void end_overdue(engine *e)
{
    for (int32_t i = e->n_active - 1; i >= 0; i--) {
        session *s = e->active[i];
        if (atomic_load_explicit(&s->state, memory_order_relaxed) == SESSION_CANCELLED)
            finish(e, s, REALM_CANCELLED);
        else if (has_passed(s->work->deadline_ns))
            finish(e, s, REALM_DEADLINE);
    }
}

static void note_start(const sched_plan *plan, uint64_t now)
{
    for (int32_t i = 0; i < plan->n_picks; i++) {
        work *w = QUEUE_OWNER(plan->picks[i].item, session, item)->work;
        if (w->started_ns == 0)
            w->started_ns = now;
    }
}

static void pool_hidden(engine *e)
{
    const forward_input *input = &e->batch.input;
    for (int32_t i = 0; i < input->n_outputs; i++) {
        int32_t row = input->output_rows[i];
        session *s = e->batch.sessions[input->rows.sequences[row]];
        embed_add(s, input->rows.positions[row], e->batch.results[i], e->device.n_embd);
    }
}

void engine_make_copies(engine *e, const kv_copies *copies)
{
    device *d = &e->device;
    for (const kv_copy *c = copies->items; c < copies->items + copies->count; c++) {
        switch (c->kind) {
        case KV_COPY: d->table->copy_page(d, c->to, c->from); break;
        case KV_COPY_OUT: d->table->save_page(d, c->to, c->from); break;
        case KV_COPY_IN: d->table->load_page(d, c->to, c->from); break;
        }
    }
}

static void compute_logits(engine *e)
{
    device *d = &e->device;
    int gives = d->leaves_rows && e->batch.input.n_outputs > 0;
    if (gives)
        away_before(e);
    d->table->forward(d, &e->batch.input, e->batch.results);
    if (gives)
        away_after(e);
}

static void compute_rows(engine *e, const sched_plan *plan)
{
    device *d = &e->device;
    if (batch_build(&e->batch, plan, 0, d->n_embd))
        compute_logits(e);
    if (batch_build(&e->batch, plan, 1, d->n_embd)) {
        d->table->forward(d, &e->batch.input, e->batch.results);
        pool_hidden(e);
    }
}

static void add_stat(_Atomic uint64_t *counter, uint64_t value)
{
    atomic_fetch_add_explicit(counter, value, memory_order_relaxed);
}

static int row_class(int32_t rows)
{
    int class = 0;
    while (class < ENGINE_ROW_CLASSES - 1 && rows > 1 << class)
        class ++;
    return class;
}

static void note_stats(engine *e, const sched_plan *plan, uint64_t ns)
{
    add_stat(&e->stats.iterations, 1);
    add_stat(&e->stats.tokens_prefilled, (uint64_t)plan->n_prompt_rows);
    add_stat(&e->stats.tokens_decoded, (uint64_t)(plan->n_rows - plan->n_prompt_rows));
    add_stat(&e->stats.busy_ns, ns);
    add_stat(&e->stats.by_rows[row_class(plan->n_rows)], 1);
    const device *d = &e->device;
    pace_load load = {plan->n_rows - plan->n_prompt_rows, plan->n_prompt_rows,
                      plan->prompt_positions, d->fills ? d->table->filled(d, plan->n_rows) : 0};
    if (plan->n_saved + plan->n_loaded == 0) /* else it says nothing of rows */
        pace_note(&e->pace, ns, &load);
}

static void note_gauges(engine *e)
{
    atomic_store_explicit(&e->stats.preemptions, scheduler_preemptions(e->scheduler),
                          memory_order_relaxed);
    atomic_store_explicit(&e->stats.pages_used, scheduler_pages_held(e->scheduler),
                          memory_order_relaxed);
    atomic_store_explicit(&e->stats.pages_saved, scheduler_pages_saved(e->scheduler),
                          memory_order_relaxed);
    atomic_store_explicit(&e->stats.waiting, e->n_active, memory_order_relaxed);
}

/* In two passes, because the second follows what the first asks for. */
static void prefetch_picks(const sched_plan *plan)
{
    for (int32_t i = 0; i < plan->n_picks; i++)
        session_prefetch(QUEUE_OWNER(plan->picks[i].item, session, item));
    for (int32_t i = 0; i < plan->n_picks; i++) {
        const work *w = QUEUE_OWNER(plan->picks[i].item, session, item)->work;
        prefetch_to_write(w, offsetof(work, error));
        prefetch_to_write(&w->finish, sizeof *w - offsetof(work, finish));
    }
}

static void go_on_after(engine *e, const sched_plan *plan)
{
    prefetch_picks(plan);
    for (int32_t i = 0; i < plan->n_picks; i++)
        scheduler_advance(e->scheduler, &plan->picks[i]);
    for (int32_t i = 0; i < plan->n_picks; i++) {
        session *s = QUEUE_OWNER(plan->picks[i].item, session, item);
        if (s->item.computed < s->length)
            continue;
        s->has_logits = !s->item.no_logits;
        go_on(e, s);
    }
}

static int32_t filled_rows(const void *context, int32_t n_rows)
{
    const device *d = context;
    return d->table->filled(d, n_rows);
}

/* Some more of the host's memory, as far as it may be had. */
static void add_host_pages(engine *e)
{
    if (e->n_host_pages >= e->most_host_pages)
        return;
    int32_t wanted = e->most_host_pages - e->n_host_pages;
    int32_t some = (int32_t)(HOST_BYTES_AT_ONCE / e->page_bytes) + 1;
    wanted = e->n_host_pages + (wanted < some ? wanted : some);
    e->n_host_pages = e->device.table->host_pages(&e->device, wanted);
    if (e->n_host_pages < wanted) { /* there is no more */
        LOG_W("engine", "the host has memory for %" PRId32 " saved pages, not for %" PRId32,
              e->n_host_pages, e->most_host_pages);
        e->most_host_pages = e->n_host_pages;
    }
    scheduler_set_host_pages(e->scheduler, e->n_host_pages);
}

static void iterate(engine *e)
{
    uint64_t begun = clock_ns();
    int32_t moves = (int32_t)(MOVED_BYTES_MOST / e->page_bytes) + 1;
    sched_limits limits = {.rows = e->batch_tokens,
                           .outputs = e->device.max_outputs,
                           .prompt_rows = e->batch_tokens,
                           .pace = &e->pace,
                           .filled = e->device.fills ? filled_rows : NULL,
                           .filled_context = &e->device,
                           .moves = e->most_host_pages > 0 ? moves : 0};
    const sched_plan *plan = scheduler_plan(e->scheduler, &limits);
    note_gauges(e);
    if (plan->starved)
        finish(e, QUEUE_OWNER(plan->starved, session, item), REALM_NO_MEMORY);
    engine_make_copies(e, &plan->copies);
    add_stat(&e->stats.pages_saved_total, (uint64_t)plan->n_saved);
    add_stat(&e->stats.pages_loaded_total, (uint64_t)plan->n_loaded);
    if (plan->wants_host)
        add_host_pages(e);
    if (plan->n_picks == 0) {
        if (plan->n_loaded == 0)
            wait_for_message(e, STUCK_WAIT_NS);
        return;
    }
    e->iteration++;
    note_start(plan, begun);
    compute_rows(e, plan);
    note_stats(e, plan, clock_ns() - begun);
    go_on_after(e, plan);
    gather(e, clock_ns() - begun);
}

static void end_all(engine *e)
{
    while (e->n_active > 0)
        finish(e, e->active[e->n_active - 1], REALM_CANCELLED);
    drain(e);
    while (e->n_active > 0)
        finish(e, e->active[e->n_active - 1], REALM_CLOSED);
}

static void *run(void *context)
{
    engine *e = context;
    while (!e->stopping) {
        drain(e);
        end_overdue(e);
        while (errand_run(&e->errands))
            ; /* whose works have ended in whatever way finds its answer looked after (queue_set_deputy) */
        if (e->n_active > 0)
            iterate(e);
        else if (!e->stopping) {
            note_gauges(e);
            wait_for_message(e, UINT64_MAX);
        }
#ifndef NDEBUG
        if (e->iteration % ASSERT_EVERY == 0)
            scheduler_assert(e->scheduler);
#endif
    }
    end_all(e);
    return NULL;
}

/* ---- opening and closing ----------------------------------------------------------------------- */

static realm_status check_options(const engine_options *o, realm_error *error)
{
    if (o->kv_type != 0 && o->kv_type != DTYPE_F16 && o->kv_type != DTYPE_Q8_0)
        return realm_fail(error, REALM_UNSUPPORTED, "keys and values are F16 or Q8_0, not type %d",
                          (int)o->kv_type);
    if (o->batch_tokens < 0 || o->max_sessions < 0 || o->max_sessions > MOST_SESSIONS ||
        o->gather_us < -1)
        return realm_fail(error, REALM_INVALID,
                          "a batch of %" PRId32 " tokens, %" PRId32 " sessions, a wait of %" PRId32
                          " us",
                          o->batch_tokens, o->max_sessions, o->gather_us);
    return REALM_OK;
}

/* Bytes as people say them. */
static double mebibytes(uint64_t bytes)
{
    return (double)bytes / (1 << 20);
}

/* What was chosen and why, for whoever wonders later where the memory went. */
static void tell_pages(const engine *e, const engine_options *o, uint64_t bytes, uint64_t most)
{
    uint64_t chosen = (uint64_t)e->n_pages * e->page_bytes, free_bytes = e->device.free_bytes;
    LOG_I("engine", "keys and values: %" PRId32 " tokens in %.0f MiB, %s; %.0f MiB are free (%s)",
          e->n_pages * KV_PAGE_TOKENS, mebibytes(chosen),
          (uint64_t)e->n_pages == most ? "all that full sessions can use"
          : o->kv_bytes                ? "as asked for"
                                       : "the device's usual share of what is free",
          mebibytes(free_bytes), e->device.free_bound);
    if (o->kv_bytes && chosen > free_bytes)
        LOG_W("engine", "%.0f MiB for keys and values are more than the %.0f MiB free (%s)",
              mebibytes(bytes), mebibytes(free_bytes), e->device.free_bound);
}

/* As many pages as asked for; by default the share of what is free that the device leaves them, and no
 * more than all sessions at full length could use. */
static realm_status choose_pages(engine *e, const engine_options *o, realm_error *error)
{
    uint64_t bytes = o->kv_bytes ? o->kv_bytes : e->device.usual_bytes;
    uint64_t most = (uint64_t)e->max_sessions * (uint64_t)kv_pages_for(e->device.n_context);
    uint64_t count = bytes / e->page_bytes;
    count = count < most ? count : most;
    if (count > INT32_MAX / KV_PAGE_TOKENS)
        count = INT32_MAX / KV_PAGE_TOKENS;
    if (count == 0)
        return realm_fail(error, REALM_NO_MEMORY,
                          "%" PRIu64 " bytes hold no page of keys and values, one takes %" PRIu64
                          " (%.0f MiB are free: %s)",
                          bytes, e->page_bytes, mebibytes(e->device.free_bytes),
                          e->device.free_bound);
    e->n_pages = (int32_t)count;
    tell_pages(e, o, bytes, most);
    return REALM_OK;
}

/* How many pages the host's memory may hold beside the device's. */
static void choose_host_pages(engine *e, const engine_options *o)
{
    uint64_t bytes = o->kv_host_bytes < 0   ? 0
                     : o->kv_host_bytes > 0 ? (uint64_t)o->kv_host_bytes
                                            : e->device.usual_host_bytes;
    uint64_t count = bytes / e->page_bytes;
    if (o->kv_host_bytes == 0 && count > (uint64_t)e->n_pages)
        count = (uint64_t)e->n_pages;
    e->most_host_pages = count < INT32_MAX / KV_PAGE_TOKENS ? (int32_t)count
                                                            : INT32_MAX / KV_PAGE_TOKENS;
    if (e->most_host_pages > 0)
        LOG_I("engine", "and up to %.0f MiB of the host's memory where those do not suffice",
              mebibytes((uint64_t)e->most_host_pages * e->page_bytes));
}

static realm_status open_parts(engine *e, const engine_options *o, realm_error *error)
{
    e->page_bytes = e->device.page_bytes[o->kv_type == DTYPE_Q8_0];
    realm_status status = choose_pages(e, o, error);
    choose_host_pages(e, o);
    if (status == REALM_OK)
        status = scheduler_open(&e->scheduler, e->n_pages, e->max_sessions, error);
    if (status == REALM_OK)
        status = batch_open(&e->batch, e->batch_tokens, error);
    e->active = calloc((size_t)e->max_sessions, sizeof(session *));
    if (status == REALM_OK && !e->active)
        status = realm_fail_memory(error, (size_t)e->max_sessions * sizeof(session *),
                                   "a list of sessions");
    return status;
}

static void release(engine *e)
{
    scheduler_close(e->scheduler);
    batch_close(&e->batch);
    free(e->active);
    away_release(&e->away);
    free(e->copies.items);
    size_t position = 0;
    for (const map_slot *slot; (slot = map_next(&e->tenants, &position)) != NULL;)
        free(slot->value);
    map_release(&e->tenants);
    queue_release(&e->queue);
    pthread_mutex_destroy(&e->registry);
    free(e);
}

realm_status engine_open_device(engine **out, const device *d, const engine_options *options,
                                realm_error *error)
{
    engine_options o = options ? *options : (engine_options){.gather_us = -1};
    realm_status status = check_options(&o, error);
    if (status != REALM_OK)
        return status;
    engine *e = calloc(1, sizeof *e);
    if (!e)
        return realm_fail_memory(error, sizeof *e, "an engine");
    e->device = *d;
    e->max_sessions = o.max_sessions ? o.max_sessions : DEFAULT_MAX_SESSIONS;
    e->batch_tokens = o.batch_tokens && o.batch_tokens < d->max_rows ? o.batch_tokens : d->max_rows;
    e->gather_us = o.gather_us;
    e->iteration = 1;
    queue_init(&e->queue);
    pthread_mutex_init(&e->registry, NULL);
    map_init(&e->tenants);
    status = away_init(&e->away, d->max_outputs, error);
    if (status == REALM_OK)
        status = open_parts(e, &o, error);
    if (status == REALM_OK)
        status = d->table->kv_open(&e->device, e->n_pages,
                                   o.kv_type == DTYPE_Q8_0 ? DTYPE_Q8_0 : DTYPE_F16, error);
    if (status != REALM_OK) {
        release(e);
        return status;
    }
    if (pthread_create(&e->thread, NULL, run, e) != 0) {
        e->device.table->kv_close(&e->device);
        release(e);
        return realm_fail(error, REALM_NO_MEMORY, "the engine's thread could not be started");
    }
    *out = e;
    return REALM_OK;
}

realm_status engine_open(engine **out, model *m, const engine_options *options, realm_error *error)
{
    device d;
    device_init_model(&d, m);
    return engine_open_device(out, &d, options, error);
}

void engine_close(engine *e)
{
    if (!e)
        return;
    e->stop = (command){.kind = COMMAND_STOP};
    queue_put(&e->queue, &e->stop.node);
    pthread_join(e->thread, NULL);
    drain(e); /* closes that came while the thread ended */
    while (e->sessions)
        close_session(e, e->sessions);
    e->device.table->kv_close(&e->device);
    release(e);
}

model *engine_model(engine *e)
{
    return e->device.model;
}

/* ---- any thread -------------------------------------------------------------------------------- */

tenant_entry *engine_tenant_entry(engine *e, uint32_t tenant)
{
    tenant_entry *t = map_get(&e->tenants, &tenant, sizeof tenant);
    if (t)
        return t;
    t = calloc(1, sizeof *t);
    if (!t)
        return NULL;
    scheduler_tenant_init(&t->scheduled, tenant);
    if (map_put(&e->tenants, &tenant, sizeof tenant, t, NULL) == REALM_OK)
        return t;
    free(t);
    return NULL;
}

void engine_unlink(engine *e, session *s)
{
    pthread_mutex_lock(&e->registry);
    *(s->previous ? &s->previous->next : &e->sessions) = s->next;
    if (s->next)
        s->next->previous = s->previous;
    pthread_mutex_unlock(&e->registry);
}

realm_status engine_tenant_set(engine *e, uint32_t tenant, const engine_tenant *settings,
                               realm_error *error)
{
    if (!(settings->weight > 0 && settings->weight <= 1e6f) || settings->max_sessions < 0 ||
        settings->max_pages < 0)
        return realm_fail(error, REALM_INVALID,
                          "weight %g, %" PRId32 " sessions, %" PRId32
                          " pages: weights are above 0, limits not below",
                          (double)settings->weight, settings->max_sessions, settings->max_pages);
    pthread_mutex_lock(&e->registry);
    tenant_entry *t = engine_tenant_entry(e, tenant);
    if (t) {
        t->max_sessions = settings->max_sessions;
        atomic_store_explicit(&t->scheduled.weight, settings->weight, memory_order_relaxed);
        atomic_store_explicit(&t->scheduled.max_pages, settings->max_pages, memory_order_relaxed);
    }
    pthread_mutex_unlock(&e->registry);
    return t ? REALM_OK : realm_fail_memory(error, sizeof *t, "a tenant");
}

void engine_forget_adapter(engine *e, const adapter *a)
{
    atomic_int finished = 0;
    command c = {.kind = COMMAND_FORGET, .adapter = a, .finished = &finished};
    const struct timespec moment = {.tv_nsec = 50000};
    queue_put(&e->queue, &c.node);
    while (!atomic_load_explicit(&finished, memory_order_acquire))
        nanosleep(&moment, NULL); /* rare and off every hot path: not worth a condition variable */
}

void engine_stats_get(engine *e, engine_stats *out)
{
    *out = (engine_stats){
        .iterations = atomic_load_explicit(&e->stats.iterations, memory_order_relaxed),
        .tokens_prefilled = atomic_load_explicit(&e->stats.tokens_prefilled, memory_order_relaxed),
        .tokens_decoded = atomic_load_explicit(&e->stats.tokens_decoded, memory_order_relaxed),
        .preemptions = atomic_load_explicit(&e->stats.preemptions, memory_order_relaxed),
        .busy_ns = atomic_load_explicit(&e->stats.busy_ns, memory_order_relaxed),
        .waiting = atomic_load_explicit(&e->stats.waiting, memory_order_relaxed),
        .pages_used = atomic_load_explicit(&e->stats.pages_used, memory_order_relaxed),
        .pages_saved = atomic_load_explicit(&e->stats.pages_saved, memory_order_relaxed),
        .pages_saved_total = atomic_load_explicit(&e->stats.pages_saved_total,
                                                  memory_order_relaxed),
        .pages_loaded_total = atomic_load_explicit(&e->stats.pages_loaded_total,
                                                   memory_order_relaxed),
        .sessions = atomic_load_explicit(&e->n_sessions, memory_order_relaxed),
        .pages_total = e->n_pages,
        .kv_bytes = (uint64_t)e->n_pages * e->page_bytes,
    };
    for (int i = 0; i < ENGINE_ROW_CLASSES; i++)
        out->by_rows[i] = atomic_load_explicit(&e->stats.by_rows[i], memory_order_relaxed);
}

void engine_tenant_stats_get(engine *e, uint32_t tenant, engine_tenant_stats *out)
{
    *out = (engine_tenant_stats){0};
    pthread_mutex_lock(&e->registry);
    const tenant_entry *t = map_get(&e->tenants, &tenant, sizeof tenant);
    if (t) {
        out->sessions = t->n_sessions;
        out->pages = atomic_load_explicit(&t->scheduled.account.n_pages, memory_order_relaxed);
    }
    pthread_mutex_unlock(&e->registry);
}

void engine_submit(engine *e, work *w)
{
    int idle = SESSION_IDLE;
    w->submitted_ns = clock_ns();
    w->started_ns = w->first_token_ns = w->done_ns = 0;
    w->status = REALM_OK;
    w->error.status = REALM_OK;
    w->n_generated = w->n_cached = w->progress = 0;
    if (w->session &&
        !atomic_compare_exchange_strong_explicit(&w->session->state, &idle, SESSION_BUSY,
                                                 memory_order_acquire, memory_order_relaxed))
        w->progress = -1; /* the engine says REALM_BUSY through done */
    queue_put(&e->queue, &w->node);
}

int engine_lend(engine *e, int (*wanted)(void *context), void *context)
{
    return e->device.table->lend && e->device.table->lend(&e->device, wanted, context);
}

int engine_offer(engine *e, const engine_errand *errand)
{
    return errand_offer(&e->errands, errand);
}

void engine_recall(engine *e)
{
    errand_recall(&e->errands);
}

int engine_uses_host(const engine *e)
{
    return e->device.uses_host;
}

typedef struct waiter {
    pthread_mutex_t mutex;
    pthread_cond_t finished;
    int is_finished;
} waiter;

static void wake(work *w)
{
    waiter *waiting = w->context;
    pthread_mutex_lock(&waiting->mutex);
    waiting->is_finished = 1;
    pthread_cond_signal(&waiting->finished);
    pthread_mutex_unlock(&waiting->mutex);
}

realm_status engine_run(engine *e, work *w)
{
    waiter waiting = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0};
    w->done = wake;
    w->context = &waiting;
    engine_submit(e, w);
    pthread_mutex_lock(&waiting.mutex);
    while (!waiting.is_finished)
        pthread_cond_wait(&waiting.finished, &waiting.mutex);
    pthread_mutex_unlock(&waiting.mutex);
    pthread_cond_destroy(&waiting.finished);
    pthread_mutex_destroy(&waiting.mutex);
    return w->status;
}
