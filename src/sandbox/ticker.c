/* sandbox/ticker.c: see runtime.h. Owns one thread and the pace of the epochs. */
#include "sandbox/runtime.h"

#include <string.h>

#include "base/condition.h"

/* Sleeps until somebody calls ticker_enter. Order matters: awake is cleared before turns is looked
 * at for the last time, and ticker_enter counts its turn before it looks at awake. */
static void rest(ticker *t, unsigned turns)
{
    atomic_store(&t->awake, 0);
    while (!t->stop && atomic_load(&t->turns) == turns && atomic_load(&t->running) == 0)
        pthread_cond_wait(&t->changed, &t->mutex);
    atomic_store(&t->awake, 1);
}

static void *run(void *argument)
{
    ticker *t = argument;
    uint64_t pace = TICKER_FAST_NS, quiet_since = clock_ns();
    unsigned turns = atomic_load(&t->turns);
    pthread_mutex_lock(&t->mutex);
    while (!t->stop) {
        condition_wait(&t->changed, &t->mutex, clock_ns() + pace);
        unsigned now_turns = atomic_load(&t->turns);
        if (atomic_load(&t->running) > 0) {
            wasmtime_engine_increment_epoch(t->engines[0]);
            wasmtime_engine_increment_epoch(t->engines[1]);
            pace = TICKER_FAST_NS;
        } else {
            pace = pace * 2 < TICKER_SLOW_NS ? pace * 2 : TICKER_SLOW_NS;
        }
        if (now_turns != turns || atomic_load(&t->running) > 0) {
            turns = now_turns;
            quiet_since = clock_ns();
        } else if (clock_ns() - quiet_since > TICKER_SLEEPS_AFTER_NS) {
            rest(t, turns);
            pace = TICKER_FAST_NS;
        }
    }
    pthread_mutex_unlock(&t->mutex);
    return NULL;
}

realm_status ticker_open(ticker *t, wasm_engine_t *engine32, wasm_engine_t *engine64,
                         realm_error *error)
{
    memset(t, 0, sizeof *t);
    t->engines[0] = engine32;
    t->engines[1] = engine64;
    atomic_init(&t->awake, 1);
    pthread_mutex_init(&t->mutex, NULL);
    condition_init(&t->changed);
    if (pthread_create(&t->thread, NULL, run, t) != 0)
        return realm_fail(error, REALM_NO_MEMORY, "the sandbox's ticker thread cannot be started");
    t->started = 1;
    return REALM_OK;
}

void ticker_close(ticker *t)
{
    if (!t->started)
        return;
    pthread_mutex_lock(&t->mutex);
    t->stop = 1;
    pthread_cond_signal(&t->changed);
    pthread_mutex_unlock(&t->mutex);
    pthread_join(t->thread, NULL);
    pthread_cond_destroy(&t->changed);
    pthread_mutex_destroy(&t->mutex);
    t->started = 0;
}

void ticker_enter(ticker *t)
{
    atomic_fetch_add(&t->running, 1);
    atomic_fetch_add(&t->turns, 1);
    if (atomic_load(&t->awake))
        return;
    pthread_mutex_lock(&t->mutex);
    pthread_cond_signal(&t->changed);
    pthread_mutex_unlock(&t->mutex);
}

void ticker_leave(ticker *t)
{
    atomic_fetch_sub(&t->running, 1);
}
