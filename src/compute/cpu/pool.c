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
 * Invariants:
 *   1. job is written only while open is 0 and inside is 0, by the caller.
 *   2. Every item is taken by exactly one fetch_add on its owner's cursor.
 *   3. A helper that finds no open run sleeps only after it has counted itself in sleepers and
 *      looked again; the caller looks at sleepers after it has published. Both are sequentially
 *      consistent, so one of them sees the other and no wake-up is lost. */
#include "compute/cpu/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define OPEN        ((uint64_t)1 << 16)
#define INSIDE_MASK (OPEN - 1)
#define GENERATION  (OPEN << 1)
#define SPIN_NS     200000 /* longer than a guest takes between two steps, far below a time slice */
#define ALONE_NS                                                                                   \
    5000 /* of that, without offering the core to whoever is ready to run; longer than the
                              gap between two operations */
#define PAUSES      32 /* between two looks at the clock: about a microsecond */
#define MAX_THREADS 1024
#define STACK_BYTES ((size_t)1 << 20) /* kernels keep panels of up to 256 KiB on the stack */

typedef struct cursor {
    _Alignas(64) _Atomic int64_t next;
    int64_t end;
} cursor;

typedef struct helper {
    pool *owner;
    pthread_t thread;
    int32_t index;
} helper;

struct pool {
    _Alignas(64) _Atomic uint64_t state;
    _Alignas(64) pool_task task;
    void *context;
    int64_t grain;
    cursor *cursors; /* [n_threads] */
    int32_t n_threads;
    int32_t n_started; /* helpers that exist */
    helper *helpers;   /* [n_threads], the first unused */
    _Atomic int sleepers;
    _Atomic int closing;
    pthread_mutex_t lock; /* of the condition alone */
    pthread_cond_t work;
};

static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Takes items, its own first, until there are none. */
static void work(pool *p, int32_t thread)
{
    for (int32_t i = 0; i < p->n_threads; i++) {
        cursor *c = &p->cursors[(thread + i) % p->n_threads];
        /* A look before the fetch_add keeps finished cursors' lines shared. */
        while (atomic_load_explicit(&c->next, memory_order_relaxed) < c->end) {
            int64_t first = atomic_fetch_add_explicit(&c->next, p->grain, memory_order_relaxed);
            if (first >= c->end)
                break;
            int64_t left = c->end - first;
            p->task(p->context, first, left < p->grain ? left : p->grain, thread);
        }
    }
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
    return atomic_load(&p->closing) || ((state & OPEN) && state / GENERATION != seen);
}

static void sleep_until_work(pool *p, uint64_t seen)
{
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->sleepers, 1);
    while (!has_work(p, seen))
        pthread_cond_wait(&p->work, &p->lock);
    atomic_fetch_sub(&p->sleepers, 1);
    pthread_mutex_unlock(&p->lock);
}

static void *help(void *argument)
{
    helper *self = argument;
    pool *p = self->owner;
    uint64_t seen = 0;
    int64_t idle_since = now_ns();
    while (!atomic_load_explicit(&p->closing, memory_order_acquire)) {
        if (enter(p, &seen)) {
            work(p, self->index);
            atomic_fetch_sub_explicit(&p->state, 1, memory_order_release);
            idle_since = now_ns();
            continue;
        }
        for (int i = 0; i < PAUSES; i++) {
            if (atomic_load_explicit(&p->state, memory_order_relaxed) / GENERATION != seen)
                break;
            relax();
        }
        int64_t idle = now_ns() - idle_since;
        if (idle > SPIN_NS) {
            sleep_until_work(p, seen);
            idle_since = now_ns();
        } else if (idle > ALONE_NS) {
            sched_yield(); /* a sandbox's thread may be waiting for this core */
        }
    }
    return NULL;
}

/* Waits for the helpers that are inside; they only have their last pieces left. */
static void wait_until_empty(pool *p)
{
    int64_t since = 0;
    while (atomic_load_explicit(&p->state, memory_order_acquire) & INSIDE_MASK) {
        for (int i = 0; i < PAUSES; i++) {
            if (!(atomic_load_explicit(&p->state, memory_order_relaxed) & INSIDE_MASK))
                break;
            relax();
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
    if (atomic_load(&p->sleepers)) {
        pthread_mutex_lock(&p->lock);
        pthread_cond_broadcast(&p->work);
        pthread_mutex_unlock(&p->lock);
    }
    work(p, 0);
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
        helper *h = &p->helpers[i];
        *h = (helper){.owner = p, .index = i};
        if (pthread_create(&h->thread, &attributes, help, h) != 0)
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
    p->helpers = calloc((size_t)n_threads, sizeof *p->helpers);
    realm_status status = REALM_OK;
    if (!p->cursors || !p->helpers)
        status = realm_fail_memory(error, sizeof(cursor) * (size_t)n_threads, "the compute pool");
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
        pthread_join(p->helpers[i].thread, NULL);
    pthread_cond_destroy(&p->work);
    pthread_mutex_destroy(&p->lock);
    free(p->cursors);
    free(p->helpers);
    free(p);
}
