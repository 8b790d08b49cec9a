/* tests/unit/engine/virtual_clock.h: time that passes when the fake device says so.
 *
 * For tests linked with clock_gettime and pthread_cond_timedwait wrapped: every clock stands still but
 * for the fake device's steps, a microsecond a look, which ends what waits by spinning, and waits that
 * nobody ends, which pass at once (the kernel would wait until its own clock shows a virtual time,
 * for hours where the machine was started a moment ago). So an engine's iterations
 * take exactly what the test lays down, and a run gives the same figures every time, as long as
 * all that happens happens on the engine's thread (in on_forward, on_token, done). */
#ifndef REALM_TESTS_VIRTUAL_CLOCK_H
#define REALM_TESTS_VIRTUAL_CLOCK_H

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>

static _Atomic uint64_t virtual_ns = 1000000000u;

int __wrap_clock_gettime(clockid_t id, struct timespec *now);

int __wrap_clock_gettime(clockid_t id, struct timespec *now)
{
    uint64_t ns = atomic_fetch_add(&virtual_ns, 1000) + 1000;
    (void)id;
    *now = (struct timespec){(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    return 0;
}

int __wrap_pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex,
                                  const struct timespec *until);

/* Who waits looks again at what it waits for, so nothing that came meanwhile is lost. */
int __wrap_pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex,
                                  const struct timespec *until)
{
    uint64_t end = (uint64_t)until->tv_sec * 1000000000u + (uint64_t)until->tv_nsec;
    uint64_t now = atomic_load(&virtual_ns);
    (void)condition;
    pthread_mutex_unlock(mutex);
    sched_yield();
    while (now < end && !atomic_compare_exchange_weak(&virtual_ns, &now, end))
        ;
    pthread_mutex_lock(mutex);
    return ETIMEDOUT;
}

static inline void virtual_pass(uint64_t ns)
{
    atomic_fetch_add(&virtual_ns, ns);
}

#endif
