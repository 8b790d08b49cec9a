/* base/condition.h: condition variables whose waits end by the monotonic clock (clock.h), so that setting
 * the machine's time neither cuts a wait short nor draws it out. */
#ifndef REALM_BASE_CONDITION_H
#define REALM_BASE_CONDITION_H

#include <errno.h>
#include <pthread.h>

#include "base/clock.h"

#define CONDITION_FOREVER UINT64_MAX

/* For condition_wait; undone by pthread_cond_destroy. */
static inline void condition_init(pthread_cond_t *c)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
#if !defined(__APPLE__) /* which has a wait by duration instead */
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
#endif
    pthread_cond_init(c, &attributes);
    pthread_condattr_destroy(&attributes);
}

/* Waits until the condition is signalled, or something else wakes the thread, or clock_ns() is until_ns. 0:
 * the time was over. Under the mutex. */
static inline int condition_wait(pthread_cond_t *c, pthread_mutex_t *mutex, uint64_t until_ns)
{
    if (until_ns == CONDITION_FOREVER)
        return pthread_cond_wait(c, mutex) == 0;
#if defined(__APPLE__)
    uint64_t now = clock_ns();
    until_ns = until_ns > now ? until_ns - now : 0;
#endif
    struct timespec until = {.tv_sec = (time_t)(until_ns / 1000000000u),
                             .tv_nsec = (long)(until_ns % 1000000000u)};
#if defined(__APPLE__)
    return pthread_cond_timedwait_relative_np(c, mutex, &until) != ETIMEDOUT;
#else
    return pthread_cond_timedwait(c, mutex, &until) != ETIMEDOUT;
#endif
}

#endif
