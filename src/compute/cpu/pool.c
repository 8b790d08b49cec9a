/* compute/cpu/pool.c: see pool.h.
 *
 * One 64-bit word says everything about the current run:
 *
 *     bits 63..17  generation, one more each run
 *     bit  16      open: threads may still enter
 *     bits 15..0   inside: how many helpers are in it
 *
 * The caller writes the job, then publishes the word with `open`. A helper enters by adding one to
 * `inside` in a compare-and-swap that fails if the run was closed meanwhile, so it never reads a
 * job that the caller is rewriting. The caller works until no items are left, clears `open`, and
 * waits for `inside` to reach zero. A helper that never came is not missed.
 *
 * Who sits in a seat is a word of its own, which only compare-and-swaps change:
 *
 *                  idle for long            wanted elsewhere
 *         OWN ───────────────► ASLEEP   LEFT ◄─────────────── LENT
 *        │ ▲ ◄─────────────────┘ │       │ │                  ▲ ▲ ▲
 *        │ │  a run begins       └───────│─│──────────────────┘ │ │
 *        │ └─────────────────────────────┘ └────────────────────┘ │
 *        ▼     empty for FILL_NS of work         comes back       │
 *       ASKED ────────────────────────────────────────────────────┘
 *               the helper hands over between two pieces
 *
 *     OWN     its helper sits in it        ASLEEP  nobody, the helper wakes for the next run
 *     ASKED   so, and shall make room      LEFT    nobody, a lent thread is probably back in a moment
 *     LENT    a lent thread sits in it
 *
 * A lent thread that is wanted leaves for a guest's turn, some microseconds as a rule, and the next run
 * mostly begins after it is back. Waking the helper costs the caller about as much; so a LEFT seat is
 * filled only once the caller has worked beside it for FILL_NS. A guest that computes for long therefore
 * costs the others FILL_NS and no more.
 *
 * Invariants:
 *   1. job is written only while open is 0 and inside is 0, by the caller.
 *   2. Every item is taken by exactly one fetch_add on its owner's cursor.
 *   3. A helper that finds no open run sleeps only after it has counted its seat as vacant and
 *      looked again; the caller looks at vacant after it has published. Both are sequentially
 *      consistent, so one of them sees the other and no wake-up is lost.
 *   4. Only the thread that sits in a seat enters runs with its number, and it has left the run
 *      before it leaves the seat.
 *   5. vacant is the number of seats that are ASLEEP or LEFT, but for changes under way. */
#include "compute/cpu/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/spin.h"

#define OPEN        ((uint64_t)1 << 16)
#define INSIDE_MASK (OPEN - 1)
#define GENERATION  (OPEN << 1)
#define SPIN_NS     200000 /* longer than a guest takes between two steps, far below a time slice */
#define ALONE_NS                                                                                   \
    5000 /* of that, without offering the core to whoever is ready to run; longer than the
                              gap between two operations */
#define FILL_NS     30000 /* about what waking a thread takes */
#define LOOK_NS     10000 /* between two looks at the clock, with a core of its own: at most */
#define PAUSES      32    /* between two looks at the clock: about a microsecond */
#define MAX_THREADS 1024
#define STACK_BYTES ((size_t)1 << 20) /* kernels keep panels of up to 320 KiB on the stack */

typedef struct cursor {
    _Alignas(64) _Atomic int64_t next;
    int64_t end;
} cursor;

typedef enum seat_state { SEAT_OWN, SEAT_ASKED, SEAT_LENT, SEAT_ASLEEP, SEAT_LEFT } seat_state;

typedef struct seat {
    _Alignas(64) _Atomic int state; /* seat_state */
    atomic_int recalled; /* its helper shall fill it though it was LEFT; set under lock */
    pool *owner;
    pthread_t helper;
    int32_t index;
} seat;

struct pool {
    _Alignas(64) _Atomic uint64_t state;
    _Alignas(64) pool_task task;
    void *context;
    int64_t grain;
    cursor *cursors; /* [n_threads] */
    int32_t n_threads;
    int32_t n_started;    /* helpers that exist */
    seat *seats;          /* [n_threads], the first unused */
    int64_t beside_empty; /* the caller's: when it first met a LEFT seat; 0: there is none */
    atomic_int vacant;
    atomic_int n_lent; /* threads inside pool_lend */
    _Atomic int closing;
    pthread_mutex_t lock; /* of the condition alone */
    pthread_cond_t work;
};

/* A thread that works in a seat. */
typedef struct sitter {
    pool *owner;
    seat *seat;
    uint64_t seen;         /* the last run it was in, until there was no work left */
    int (*wanted)(void *); /* NULL: the seat's own helper */
    void *context;
} sitter;

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* ---- seats -------------------------------------------------------------------------------------- */

static int is_vacant(int state)
{
    return state == SEAT_ASLEEP || state == SEAT_LEFT;
}

/* From one state to another, unless it is not in that one. */
static int change(seat *s, int from, int to)
{
    if (!atomic_compare_exchange_strong(&s->state, &from, to))
        return 0;
    if (is_vacant(from) != is_vacant(to))
        atomic_fetch_add(&s->owner->vacant, is_vacant(to) ? 1 : -1);
    return 1;
}

static int must_leave(const sitter *w)
{
    if (atomic_load_explicit(&w->owner->closing, memory_order_relaxed))
        return 1;
    return w->wanted ? w->wanted(w->context)
                     : atomic_load_explicit(&w->seat->state, memory_order_relaxed) == SEAT_ASKED;
}

/* Calls helpers to seats that are empty and are not about to be filled. The caller's, before its every
 * piece. A seat that is ASLEEP is looked at only where a run begins. */
static void fill_seats(pool *p, int beginning)
{
    if (atomic_load(&p->vacant) <= 0) {
        p->beside_empty = 0;
        return;
    }
    int64_t now = now_ns();
    int call = 0, left = 0;
    for (int32_t i = 1; i < p->n_threads; i++) {
        seat *s = &p->seats[i];
        int state = atomic_load(&s->state);
        call |= beginning && state == SEAT_ASLEEP;
        left |= state == SEAT_LEFT && !atomic_load(&s->recalled);
    }
    if (!left)
        p->beside_empty = 0;
    else if (p->beside_empty == 0)
        p->beside_empty = now;
    left &= now - p->beside_empty > FILL_NS;
    if (!call && !left)
        return;
    pthread_mutex_lock(&p->lock);
    for (int32_t i = 1; left && i < p->n_threads; i++)
        if (atomic_load(&p->seats[i].state) == SEAT_LEFT)
            atomic_store(&p->seats[i].recalled, 1);
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
}

/* ---- working ------------------------------------------------------------------------------------ */

/* Takes items, those of seat `index` first, until there are none, or until w (NULL: the caller) must
 * leave: then 0. */
static int work(pool *p, int32_t index, const sitter *w)
{
    for (int32_t i = 0; i < p->n_threads; i++) {
        cursor *c = &p->cursors[(index + i) % p->n_threads];
        /* A look before the fetch_add keeps finished cursors' lines shared. */
        while (atomic_load_explicit(&c->next, memory_order_relaxed) < c->end) {
            if (w && must_leave(w))
                return 0;
            int64_t first = atomic_fetch_add_explicit(&c->next, p->grain, memory_order_relaxed);
            if (first >= c->end)
                break;
            int64_t left = c->end - first;
            p->task(p->context, first, left < p->grain ? left : p->grain, index);
            if (!w)
                fill_seats(p, 0);
        }
    }
    return 1;
}

/* Enters the open run, if there is one newer than *seen. */
static int enter(pool *p, uint64_t *seen)
{
    uint64_t state = atomic_load_explicit(&p->state, memory_order_acquire);
    while ((state & OPEN) && state / GENERATION != *seen) {
        if (atomic_compare_exchange_weak_explicit(&p->state, &state, state + 1,
                                                  memory_order_acq_rel, memory_order_acquire)) {
            *seen = state / GENERATION;
            return 1;
        }
    }
    return 0;
}

static int has_work(pool *p, uint64_t seen)
{
    uint64_t state = atomic_load(&p->state);
    return (state & OPEN) && state / GENERATION != seen;
}

/* Works in every run that comes. 1: it must leave. 0: nothing came for long. Of a look that took long
 * only LOOK_NS count: somebody else had the core, and there may have been runs meanwhile. */
static int sit(pool *p, sitter *w)
{
    int64_t idle = 0, last = now_ns();
    while (!must_leave(w)) {
        if (enter(p, &w->seen)) {
            if (!work(p, w->seat->index, w))
                w->seen = 0; /* there is work left, to which it may come back */
            atomic_fetch_sub_explicit(&p->state, 1, memory_order_release);
            idle = 0;
            last = now_ns();
            continue;
        }
        for (int i = 0; i < PAUSES; i++) {
            if (atomic_load_explicit(&p->state, memory_order_relaxed) / GENERATION != w->seen)
                break;
            spin_pause();
        }
        int64_t now = now_ns();
        idle += now - last < LOOK_NS ? now - last : LOOK_NS;
        last = now;
        if (idle > SPIN_NS)
            return 0;
        if (idle > ALONE_NS)
            sched_yield(); /* a sandbox's thread may be waiting for this core */
    }
    return 1;
}

/* ---- helpers ------------------------------------------------------------------------------------ */

/* Until the seat is the helper's again: 1. 0: the pool closes. */
static int sleep_until_needed(pool *p, seat *s, uint64_t seen)
{
    int mine = 0;
    pthread_mutex_lock(&p->lock);
    while (!mine && !atomic_load(&p->closing)) {
        int state = atomic_load(&s->state), recalled = atomic_exchange(&s->recalled, 0);
        int needed = state == SEAT_ASLEEP ? has_work(p, seen) : state == SEAT_LEFT && recalled;
        if (!needed)
            pthread_cond_wait(&p->work, &p->lock);
        else
            mine = change(s, state, SEAT_OWN);
    }
    pthread_mutex_unlock(&p->lock);
    return mine;
}

static void *help(void *argument)
{
    seat *s = argument;
    pool *p = s->owner;
    sitter self = {.owner = p, .seat = s};
    do {
        sit(p, &self);
        while (!change(s, SEAT_OWN, SEAT_ASLEEP) && !change(s, SEAT_ASKED, SEAT_LENT))
            ; /* somebody is asking, or has just changed his mind */
    } while (sleep_until_needed(p, s, self.seen));
    return NULL;
}

/* ---- lending ------------------------------------------------------------------------------------ */

/* The helper looks before every piece; one that has lost its core is not waited for. */
static int wait_for_hand_over(seat *s, sitter *w)
{
    int64_t since = now_ns();
    while (atomic_load_explicit(&s->state, memory_order_acquire) == SEAT_ASKED) {
        for (int i = 0;
             i < PAUSES && atomic_load_explicit(&s->state, memory_order_relaxed) == SEAT_ASKED; i++)
            spin_pause();
        int64_t waited = now_ns() - since;
        if ((must_leave(w) || waited > SPIN_NS) && change(s, SEAT_ASKED, SEAT_OWN))
            return 0;
        if (waited > ALONE_NS)
            sched_yield(); /* it may be this core that the helper waits for */
    }
    return 1;
}

static int take_seat(pool *p, sitter *w)
{
    for (int32_t i = 1; i < p->n_threads; i++) {
        w->seat = &p->seats[i];
        if (change(w->seat, SEAT_LEFT, SEAT_LENT) || change(w->seat, SEAT_ASLEEP, SEAT_LENT))
            return 1;
    }
    for (int32_t i = 1; i < p->n_threads; i++) {
        w->seat = &p->seats[i];
        if (change(w->seat, SEAT_OWN, SEAT_ASKED))
            return wait_for_hand_over(w->seat, w);
    }
    return 0;
}

int pool_lend(pool *p, int (*wanted)(void *context), void *context)
{
    sitter w = {.owner = p, .wanted = wanted, .context = context};
    atomic_fetch_add(&p->n_lent, 1);
    int seated = take_seat(p, &w);
    if (seated)
        change(w.seat, SEAT_LENT, sit(p, &w) ? SEAT_LEFT : SEAT_ASLEEP);
    atomic_fetch_sub(&p->n_lent, 1); /* the pool may be gone after this */
    return seated;
}

/* ---- running ------------------------------------------------------------------------------------ */

/* Waits for the helpers that are inside; they only have their last pieces left. */
static void wait_until_empty(pool *p)
{
    int64_t since = 0;
    while (atomic_load_explicit(&p->state, memory_order_acquire) & INSIDE_MASK) {
        for (int i = 0; i < PAUSES; i++) {
            if (!(atomic_load_explicit(&p->state, memory_order_relaxed) & INSIDE_MASK))
                break;
            spin_pause();
        }
        /* A helper may have lost its core in the middle of a piece: give it ours. */
        if (!since)
            since = now_ns();
        else if (now_ns() - since > SPIN_NS)
            sched_yield();
    }
}

static void share_out(pool *p, int64_t n_items, int64_t grain)
{
    int64_t n_pieces = (n_items + grain - 1) / grain, first = 0;
    for (int32_t i = 0; i < p->n_threads; i++) {
        int64_t end = n_pieces * (i + 1) / p->n_threads * grain;
        end = end < n_items ? end : n_items;
        atomic_store_explicit(&p->cursors[i].next, first, memory_order_relaxed);
        p->cursors[i].end = end;
        first = end;
    }
}

void pool_run(pool *p, pool_task task, void *context, int64_t n_items, int64_t grain)
{
    if (n_items <= 0)
        return;
    if (p->n_threads == 1 || n_items <= grain) {
        task(context, 0, n_items, 0);
        return;
    }
    p->task = task;
    p->context = context;
    p->grain = grain;
    share_out(p, n_items, grain);
    uint64_t generation = atomic_load_explicit(&p->state, memory_order_relaxed) / GENERATION + 1;
    atomic_store(&p->state, generation * GENERATION | OPEN);
    fill_seats(p, 1);
    work(p, 0, NULL);
    atomic_fetch_and(&p->state, ~OPEN);
    wait_until_empty(p);
}

int32_t pool_threads(const pool *p)
{
    return p->n_threads;
}

static realm_status start_helpers(pool *p, realm_error *error)
{
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    realm_status status = REALM_OK;
    for (int32_t i = 1; i < p->n_threads && status == REALM_OK; i++) {
        seat *s = &p->seats[i];
        *s = (seat){.state = SEAT_OWN, .owner = p, .index = i};
        if (pthread_create(&s->helper, &attributes, help, s) != 0)
            status = realm_fail(error, REALM_NO_MEMORY,
                                "the system refused compute thread %d of %d", i + 1, p->n_threads);
        else
            p->n_started++;
    }
    pthread_attr_destroy(&attributes);
    return status;
}

realm_status pool_open(pool **out, int32_t n_threads, realm_error *error)
{
    if (n_threads < 1 || n_threads > MAX_THREADS)
        return realm_fail(error, REALM_INVALID, "%d compute threads: give 1 to %d", n_threads,
                          MAX_THREADS);
    pool *p = aligned_alloc(64, (sizeof *p + 63) / 64 * 64);
    if (!p)
        return realm_fail_memory(error, sizeof *p, "the compute pool");
    memset(p, 0, sizeof *p);
    p->n_threads = n_threads;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    p->cursors = aligned_alloc(64, sizeof *p->cursors * (size_t)n_threads);
    p->seats = aligned_alloc(64, sizeof *p->seats * (size_t)n_threads);
    realm_status status = REALM_OK;
    if (!p->cursors || !p->seats)
        status = realm_fail_memory(error, (sizeof(cursor) + sizeof(seat)) * (size_t)n_threads,
                                   "the compute pool");
    else
        status = start_helpers(p, error);
    if (status != REALM_OK) {
        pool_close(p);
        return status;
    }
    *out = p;
    return REALM_OK;
}

void pool_close(pool *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->closing, 1);
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    for (int32_t i = 1; i <= p->n_started; i++)
        pthread_join(p->seats[i].helper, NULL);
    while (atomic_load(&p->n_lent) > 0)
        sched_yield();
    pthread_cond_destroy(&p->work);
    pthread_mutex_destroy(&p->lock);
    free(p->cursors);
    free(p->seats);
    free(p);
}
