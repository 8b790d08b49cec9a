/* sandbox/sandbox_thread.c: one thread that runs guests, a turn at a time, in the order in which
 * they became ready.
 *
 * Owns its ready queue and the list of its requests. A request belongs to one thread at a time and
 * changes it only between turns, so nothing of it needs a lock. Waking takes a kernel call and some microseconds, so the thread
 * looks a little longer before it sleeps, but only where waits have been that short lately: a
 * model's step takes milliseconds, and spinning through it would take a core from the model. */
#include "sandbox/runtime.h"

#include <sys/resource.h>

#include "base/clock.h"

#define SPIN_NS        50000u
#define SPIN_IF_NS     100000u  /* usual waits up to this */
#define LOST_NS        1000000u /* of one wait: less than any time slice, more than an interrupt */
#define AWAY_LEAST_NS  4000000u
#define AWAY_MOST_NS   256000000u
#define LOOKS_AT_CLOCK 64

#define LENDS_MOST_NS  10000000u /* at once, so that a lost core is noticed */
#define DEPUTY_LATE_NS 20000u    /* then the thread does itself what a deputy has not begun */

/* More turns than so many take longer than waking a thread to share them. */
#define DEPUTY_MOST 16

/* Cores that the engine's thread and whoever serves the clients have for themselves. */
#define CORES_OF_OTHERS 2
/* Waits of a device's steps count as at most so long. */
#define WATCHED_STEP_NS 20000000u

void sandbox_thread_mind(sandbox_thread *t, uint64_t time_ns)
{
    if (time_ns < t->next_time_ns)
        t->next_time_ns = time_ns;
}

/* Wakes what has waited long enough and finds out when to look again. */
static void look_at_clock(sandbox_thread *t)
{
    if (t->next_time_ns == UINT64_MAX)
        return;
    uint64_t now = t->clock.now_ns;
    if (now < t->next_time_ns)
        return;
    t->next_time_ns = UINT64_MAX;
    for (sandbox_request *r = t->live; r; r = r->next_live) {
        uint64_t time = request_next_time(r);
        if (time <= now)
            request_wake(r);
        else
            sandbox_thread_mind(t, time);
    }
}

/* All that are ready are taken at once, so that it is known who comes next. */
static queue_node *first_ready(sandbox_thread *t)
{
    *t->taken_end = queue_take_all(&t->ready);
    while (*t->taken_end)
        t->taken_end = &(*t->taken_end)->next;
    return t->taken;
}

/* The oldest that is ready, or NULL. */
static queue_node *next_ready(sandbox_thread *t)
{
    queue_node *node = first_ready(t);
    if (node)
        t->taken = node->next;
    if (!t->taken)
        t->taken_end = &t->taken;
    return node;
}

/* A turn takes a microsecond or two, and as long again where what it needs comes from memory. */
static void prefetch_after(const sandbox_thread *t, const queue_node *node)
{
    for (int stage = REQUEST_PREFETCH_STAGES; node && stage-- > 0; node = node->next) {
        const sandbox_request *r = QUEUE_OWNER(node, sandbox_request, node);
        if (atomic_load_explicit(&r->thread, memory_order_acquire) == t) /* invariant 9 */
            request_prefetch(r, stage);
    }
}

static void take_in(sandbox_thread *t, sandbox_request *r)
{
    r->next_live = t->live;
    if (t->live)
        t->live->previous_live = r;
    t->live = r;
    request_retain(r);
    sandbox_thread_mind(t, request_next_time(r));
}

static void let_go(sandbox_thread *t, sandbox_request *r)
{
    if (r->previous_live)
        r->previous_live->next_live = r->next_live;
    else
        t->live = r->next_live;
    if (r->next_live)
        r->next_live->previous_live = r->previous_live;
    r->previous_live = r->next_live = NULL;
    atomic_fetch_sub(&t->n_requests, 1);
    request_unretain(r);
}

static int is_live(const sandbox_thread *t, const sandbox_request *r)
{
    return r == t->live || r->previous_live;
}

/* ---- moving ---------------------------------------------------------------------------------------- */

/* Another thread that computes along (or, seated = 0, one that does not); t if there is none. */
static sandbox_thread *other_thread(sandbox_thread *t, int seated)
{
    for (int i = 0; i < t->host->n_threads_open; i++) {
        sandbox_thread *other = &t->host->threads[i];
        if (other != t && atomic_load_explicit(&other->seated, memory_order_relaxed) == seated)
            return other;
    }
    return t;
}

/* See runtime.h: quick guests go to a thread that computes along, slow ones away from it. */
static sandbox_thread *place_by_pace(sandbox_thread *t, sandbox_request *r, uint64_t turn_ns)
{
    int seated = atomic_load_explicit(&t->seated, memory_order_relaxed);
    if (turn_ns > SLOW_TURN_NS)
        r->slow_turns = r->slow_turns > SLOW_FOR_TURNS ? r->slow_turns : SLOW_FOR_TURNS;
    else if (r->slow_turns > 0)
        r->slow_turns--;
    if (seated && r->slow_turns > 0)
        return other_thread(t, 0);
    return !seated && r->slow_turns == 0 && request_awaited_engine(r) ? other_thread(t, 1) : t;
}

static sandbox_thread *place_for(sandbox_thread *t, sandbox_request *r, uint64_t turn_ns)
{
    sandbox_thread *background = &t->host->background;
    if (t != background)
        return r->stretch_ns > BACKGROUND_AFTER_NS ? background : place_by_pace(t, r, turn_ns);
    return r->stretch_ns == 0 && r->wait.kind != WAIT_NONE ? r->home : t;
}

/* r and those that wait for it. All are unlinked before the first is let go, because the other thread
 * may run it at once; and all are woken, so that the other thread takes them in. */
static void move(sandbox_thread *t, sandbox_thread *to, sandbox_request *first)
{
    for (sandbox_request *r = first; r; r = r->parent) {
        request_retain(r);
        atomic_fetch_add(&to->n_requests, 1);
        let_go(t, r);
    }
    for (sandbox_request *r = first; r; r = r->parent)
        atomic_store(&r->thread, to);
    for (sandbox_request *r = first, *parent; r; r = parent) {
        parent = r->parent;
        request_wake_give(r, NULL);
    }
}

/* Windows follow each other without overlap; two threads that begin one at once lose a turn's time,
 * which does not matter. */
static void count_for_tenant(sandbox_tenant *tenant, uint64_t began_ns, uint64_t now_ns)
{
    uint64_t used = now_ns > began_ns ? now_ns - began_ns : 0;
    if (now_ns - atomic_load_explicit(&tenant->window_ns, memory_order_relaxed) >= WINDOW_NS) {
        uint64_t left = atomic_load_explicit(&tenant->window_cpu_ns, memory_order_relaxed) / 2;
        atomic_store_explicit(&tenant->window_ns, now_ns, memory_order_relaxed);
        atomic_store_explicit(&tenant->window_cpu_ns, left + used, memory_order_relaxed);
    } else {
        atomic_fetch_add_explicit(&tenant->window_cpu_ns, used, memory_order_relaxed);
    }
}

int sandbox_thread_tenant_is_heavy(sandbox_tenant *t, uint64_t now_ns)
{
    return now_ns - atomic_load_explicit(&t->window_ns, memory_order_relaxed) < 2 * WINDOW_NS &&
           atomic_load_explicit(&t->window_cpu_ns, memory_order_relaxed) > WINDOW_SHARE_NS;
}

/* What follows from a turn that took r->turn_ns; lets go of the queue's reference. */
static void after_turn(sandbox_thread *t, sandbox_request *r)
{
    count_for_tenant(r->tenant, r->clock->now_ns - r->turn_ns, r->clock->now_ns);
    sandbox_thread *to = r->state == REQUEST_DONE ? t : place_for(t, r, r->turn_ns);
    if (r->state == REQUEST_DONE)
        let_go(t, r);
    else if (to != t)
        move(t, to, r);
    request_unretain(r);
}

static void turn(sandbox_thread *t, sandbox_request *r)
{
    sandbox_thread *now = atomic_load(&r->thread);
    if (now != t) { /* it moved while it was in this queue; it still is scheduled */
        queue_put(&now->ready, &r->node);
        return;
    }
    /* Before anything of the request is looked at (invariant 2). */
    atomic_store(&r->scheduled, 0);
    if (r->state == REQUEST_DONE) {
        request_unretain(r);
        return;
    }
    if (!is_live(t, r))
        take_in(t, r);
    uint64_t began = t->clock.now_ns = clock_ns();
    prefetch_after(t, t->taken);
    if (r->unsettled) {
        request_settle(r, &t->clock);
        began -= r->turn_ns; /* the deputy's turn, and what is left of it */
    }
    if (r->state != REQUEST_DONE)
        request_turn(r, &t->clock);
    t->clock.now_ns = clock_ns();
    r->turn_ns = t->clock.now_ns - began;
    after_turn(t, r);
}

/* ---- shared turns ------------------------------------------------------------------------------------ */

/* The engine whose step has ended for it, or NULL if the turn is one for its own thread alone. Programs that
 * call each other share buffers, so they keep to one thread. */
static engine *shares_with(sandbox_thread *t, sandbox_request *r)
{
    if (atomic_load(&r->thread) != t || !is_live(t, r) || r->state != REQUEST_RUNNING ||
        r->lined_up || r->unsettled || r->slow_turns > 0 || r->parent || r->child ||
        r->wait.kind != WAIT_OP)
        return NULL;
    const engine_op *op = r->wait.op;
    return op->work.kind == WORK_STEP && op->in_flight && atomic_load(&op->done) ? op->engine
                                                                                 : NULL;
}

static void line_up(sandbox_thread *t, engine *e)
{
    queue_node *node;
    while ((node = first_ready(t)) != NULL && shared_turns_room(&t->shared) > 0) {
        sandbox_request *r = QUEUE_OWNER(node, sandbox_request, node);
        if (shares_with(t, r) != e)
            return;
        next_ready(t);
        r->lined_up = 1;
        /* Invariant 2: what was looked at up to here decides who runs its turn, no more. */
        atomic_store(&r->scheduled, 0);
        shared_turns_add(&t->shared, r);
    }
}

/* The turns of all whose steps end now, together with the engine's thread. */
static void share_turns(sandbox_thread *t, engine *e)
{
    shared_turns *s = &t->shared;
    shared_turns_start(s, e);
    t->clock.now_ns = clock_ns();
    do
        line_up(t, e);
    while (shared_turns_run(s, &t->clock));
    shared_turns_end(s);
    for (int i = 0; i < s->n_all; i++) {
        s->all[i]->lined_up = 0;
        request_settle(s->all[i], &t->clock);
        after_turn(t, s->all[i]);
    }
}

/* ---- a deputy -----------------------------------------------------------------------------------------
 *
 * Where nobody is awake for a guest whose step has ended, or it is the only one, the engine's thread serves it
 * best: handing it over takes as long as its turn, there and back, and waking somebody five times as
 * long. So a thread that computes for an engine with a single guest, or sleeps, leaves its ready queue to the
 * engine's thread (errand.h), which runs the turns in it that are shared ones. What is not comes back to the
 * queue and wakes the thread, as does a guest of which something is left to do (request_settle). */

/* Nothing of the turn is left to do but to let go of the queue's reference. */
static int is_through(const sandbox_thread *t, const sandbox_request *r)
{
    return r->state == REQUEST_RUNNING && r->failure.status == REALM_OK && r->held.size == 0 &&
           r->wait.kind == WAIT_OP && request_awaited_engine(r) == t->deputy_of &&
           r->turn_ns <= SLOW_TURN_NS;
}

/* It is scheduled still, or again. */
static void call(sandbox_thread *t, sandbox_request *r)
{
    atomic_store_explicit(&t->called, 1, memory_order_relaxed);
    queue_put(&t->ready, &r->node);
}

static void turn_as_deputy(sandbox_thread *t, sandbox_request *r, turn_clock *clock)
{
    atomic_store(&r->scheduled, 0); /* invariant 2 */
    request_turn_shared(r, clock, 1);
    if (is_through(t, r)) {
        count_for_tenant(r->tenant, clock->now_ns - r->turn_ns, clock->now_ns);
        request_unretain(r);
        return;
    }
    r->unsettled = 1;
    if (atomic_exchange(&r->scheduled, 1) == 0)
        call(t, r);
    else
        request_unretain(r); /* it woke itself: it is in the queue */
}

/* The engine's thread; t's own changes nothing until engine_recall has returned. */
static int run_as_deputy(void *context)
{
    sandbox_thread *t = context;
    if (atomic_load_explicit(&t->called, memory_order_relaxed))
        return 0;
    queue_node *node = queue_take_all(&t->ready), *next;
    if (!node)
        return 0;
    t->shared.visitor = (turn_clock){.now_ns = clock_ns()};
    for (int n = 0; node; n++, node = next) {
        sandbox_request *r = QUEUE_OWNER(node, sandbox_request, node);
        next = node->next;
        prefetch_after(t, next);
        if (n < DEPUTY_MOST && shares_with(t, r) == t->deputy_of)
            turn_as_deputy(t, r, &t->shared.visitor);
        else
            call(t, r);
    }
    return 1;
}

static void appoint_deputy(sandbox_thread *t, engine *e)
{
    t->deputy_of = e;
    t->deputy = (engine_errand){run_as_deputy, t};
    t->seen_ns = 0;
    atomic_store_explicit(&t->called, 0, memory_order_relaxed);
    t->has_deputy = e && engine_uses_host(e) && engine_offer(e, &t->deputy);
}

static void dismiss_deputy(sandbox_thread *t)
{
    if (t->has_deputy)
        engine_recall(t->deputy_of);
    t->has_deputy = 0;
}

/* ---- waiting ----------------------------------------------------------------------------------------- */

/* Asked before every piece that is computed, so the clock is looked at seldom: limits on time are
 * milliseconds. With a deputy, what is ready is the deputy's for a moment. */
static int is_wanted(void *context)
{
    sandbox_thread *t = context;
    int is_ready = queue_count(&t->ready) > 0;
    if (!is_ready)
        t->seen_ns = 0;
    if (atomic_load_explicit(&t->called, memory_order_relaxed) || (is_ready && !t->has_deputy))
        return 1;
    if (!is_ready && ++t->n_looks % LOOKS_AT_CLOCK != 0)
        return 0;
    uint64_t now = clock_ns();
    if (is_ready && !t->seen_ns)
        t->seen_ns = now;
    return now >= t->next_time_ns || now >= t->lends_until_ns ||
           (is_ready && now - t->seen_ns > DEPUTY_LATE_NS);
}

/* Who computes uses up what the system grants a thread, so where other processes want the cores it is
 * made to wait, and its guests with it; who has slept is let in at once. So a thread that lost its core
 * while it computed sleeps in its waits for some time: a step's for the one loss that every machine has
 * now and then (and the beginning of a run, when the helper whose seat it takes is still at work), twice
 * as long for each that follows, an eighth less for each time that none did. So it keeps away where more
 * than about one time in six is lost. */
static void note_lending(sandbox_thread *t, uint64_t now, int lost)
{
    uint64_t away = t->away_ns;
    away = lost ? away * 2 : away - away / 8;
    away = away < AWAY_LEAST_NS ? AWAY_LEAST_NS : away;
    t->away_ns = away < AWAY_MOST_NS ? away : AWAY_MOST_NS;
    if (lost)
        t->lends_after_ns = now + t->away_ns;
}

static int runs_nothing_else(const sandbox_thread *t)
{
    int n = 0;
    for (int i = 0; i < t->host->n_threads_open; i++)
        n += atomic_load_explicit(&t->host->threads[i].n_requests, memory_order_relaxed);
    return n == 1 && t->live;
}

/* engine_lend. A guest that is alone is the deputy's; with several, two threads are better than one. */
static int lend(sandbox_thread *t, engine *e, uint64_t now)
{
    t->lends_until_ns = now + LENDS_MOST_NS;
    appoint_deputy(t, runs_nothing_else(t) ? e : NULL);
    int seated = engine_lend(e, is_wanted, t);
    dismiss_deputy(t);
    return seated;
}

/* Works for e until one of its guests is ready or nothing is left to do. */
static void lend_to_engine(sandbox_thread *t, engine *e)
{
    uint64_t began = clock_ns(), cpu_began = clock_thread_cpu_ns();
    int seated = e && began >= t->lends_after_ns && lend(t, e, began);
    atomic_store_explicit(&t->seated, seated, memory_order_relaxed);
    if (!seated)
        return;
    t->clock.cpu_read_ns = clock_thread_cpu_ns(); /* what was computed is no guest's time */
    t->clock.cpu_short_ns = 0;
    uint64_t now = clock_ns();
    note_lending(t, now, now - began > t->clock.cpu_read_ns - cpu_began + LOST_NS);
}

/* The engine that one of its guests waits for. */
static engine *awaited_engine(const sandbox_thread *t, int *has_slow)
{
    engine *e = NULL;
    *has_slow = 0;
    for (sandbox_request *r = t->live; r && !*has_slow; r = r->next_live) {
        e = e ? e : request_awaited_engine(r);
        *has_slow = r->slow_turns > 0;
    }
    return e;
}

/* A moving average, in which one long pause is soon forgotten. */
static void average(uint64_t *usual_ns, uint64_t waited_ns, uint64_t most_ns)
{
    *usual_ns = (*usual_ns * 7 + (waited_ns < most_ns ? waited_ns : most_ns)) / 8;
}

static queue_node *sleep_at_most(sandbox_thread *t, uint64_t spin_ns, uint64_t most_ns)
{
    uint64_t now = clock_ns(), wait = UINT64_MAX;
    if (t->next_time_ns != UINT64_MAX)
        wait = t->next_time_ns > now ? t->next_time_ns - now : 0;
    return queue_take(&t->ready, spin_ns < wait ? spin_ns : wait, wait < most_ns ? wait : most_ns);
}

/* A device's step ends when it is due, or nearly, and being woken takes a fiftieth of it: so the thread sleeps
 * for most of the step and is awake for the rest, for as long again at most. */
static queue_node *watch_for_work(sandbox_thread *t)
{
    queue_node *node = NULL;
    if (t->usual_step_ns / 4 > SPIN_NS)
        node = sleep_at_most(t, 0, t->usual_step_ns / 4 * 3);
    if (!node && clock_ns() < t->next_time_ns)
        node = sleep_at_most(t, t->usual_step_ns / 2 + SPIN_NS, UINT64_MAX);
    return node;
}

static queue_node *sleep_for_work(sandbox_thread *t)
{
    uint64_t began = clock_ns();
    int spin = t->live && t->usual_wait_ns < SPIN_IF_NS;
    queue_node *node = t->watches ? watch_for_work(t)
                                  : sleep_at_most(t, spin ? SPIN_NS : 0, UINT64_MAX);
    t->clock.now_ns = clock_ns();
    if (t->watches)
        average(&t->usual_step_ns, t->clock.now_ns - began, WATCHED_STEP_NS);
    else if (t->live)
        average(&t->usual_wait_ns, t->clock.now_ns - began, SPIN_IF_NS * 8);
    return node;
}

/* What came is in taken. */
static void wait_for_work(sandbox_thread *t)
{
    int has_slow = 0, is_background = t == &t->host->background;
    engine *e = is_background ? NULL : awaited_engine(t, &has_slow);
    t->watches = e && !engine_uses_host(e) &&
                 t->host->options.n_cores >= t->host->options.n_threads + CORES_OF_OTHERS;
    if (!is_background) { /* whose pieces the engine would wait for */
        lend_to_engine(t, has_slow ? NULL : e);
        t->clock.now_ns = clock_ns();
        if (first_ready(t) || t->clock.now_ns >= t->next_time_ns)
            return;
    }
    appoint_deputy(t, has_slow ? NULL : e);
    queue_set_deputy(&t->ready, t->has_deputy ? e : NULL);
    queue_node *node = sleep_for_work(t);
    dismiss_deputy(t);
    if (node) {
        node->next = NULL;
        t->taken = node;
        t->taken_end = &node->next;
    }
}

/* ---- the thread -------------------------------------------------------------------------------------- */

/* The turn of the first that is ready, with those of all that are for the same reason. A device's engine has
 * cores left over for threads that watch (sleep_for_work): there sharing took longer than it saved. */
static void take_turns(sandbox_thread *t)
{
    sandbox_request *r = QUEUE_OWNER(t->taken, sandbox_request, node);
    engine *e = t->live && t->live->next_live ? shares_with(t, r) : NULL;
    if (e && engine_uses_host(e)) {
        share_turns(t, e);
    } else {
        next_ready(t);
        turn(t, r);
    }
}

static void *run(void *argument)
{
    sandbox_thread *t = argument;
#if defined(__linux__) /* where it means the calling thread alone */
    if (t == &t->host->background)
        setpriority(PRIO_PROCESS, 0, 19);
#endif
    t->clock.cpu_read_ns = clock_thread_cpu_ns();
    t->clock.now_ns = clock_ns();
    for (;;) {
        look_at_clock(t);
        if (!first_ready(t))
            wait_for_work(t);
        if (t->taken)
            take_turns(t);
        else if (atomic_load(&t->n_requests) < 0)
            return NULL;
    }
}

realm_status sandbox_thread_open(sandbox_thread *t, sandbox_host *h, realm_error *error)
{
    *t = (sandbox_thread){.host = h, .next_time_ns = UINT64_MAX, .taken_end = &t->taken};
    queue_init(&t->ready);
    if (pthread_create(&t->thread, NULL, run, t) == 0)
        return REALM_OK;
    queue_release(&t->ready);
    return realm_fail(error, REALM_NO_MEMORY, "a sandbox thread cannot be started");
}

void sandbox_thread_close(sandbox_thread *t)
{
    atomic_store(&t->n_requests, -1);
    queue_close(&t->ready);
    pthread_join(t->thread, NULL);
    queue_release(&t->ready);
}

void sandbox_thread_add(sandbox_thread *t, sandbox_request *r)
{
    atomic_fetch_add(&t->n_requests, 1);
    r->thread = r->home = t;
    request_wake(r);
}
