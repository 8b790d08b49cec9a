/* compute/cpu/pool.h: the threads that share one operation's work, and nothing else.
 *
 * A pool has n threads, of which the caller of pool_run is one; the others are made once and wait
 * for work: spinning for about 50 us after the last run, asleep after that. A run costs about a
 * microsecond while they spin.
 *
 * Work is n_items numbered pieces. Each thread owns a contiguous range of them (so that it streams
 * one stretch of memory) and helps the others when its own is used up, `grain` items at a time. A
 * thread that the system has not given a core yet is not waited for: the others do its share, so a
 * pool with more threads than free cores loses time, never correctness. Which thread runs an item
 * is therefore open; items must not care.
 *
 * One thread at a time calls pool_run (the engine's). Opened and closed on any thread. */
#ifndef REALM_COMPUTE_CPU_POOL_H
#define REALM_COMPUTE_CPU_POOL_H

#include <stdint.h>

#include "base/fail.h"

typedef struct pool pool;

/* Runs items first .. first+count-1. thread is 0 .. n_threads-1, the caller's 0; no two calls with
 * the same thread overlap, so it may index scratch memory. */
typedef void (*pool_task)(void *context, int64_t first, int64_t count, int32_t thread);

/* n_threads >= 1.  REALM_NO_MEMORY: threads or memory could not be had. */
realm_status pool_open(pool **out, int32_t n_threads, realm_error *error);
void pool_close(pool *p);

int32_t pool_threads(const pool *p);

/* Calls task for every item once and returns when all are done; their writes are then visible to
 * the caller. Ranges begin at multiples of grain (>= 1). n_items of 0 does nothing. */
void pool_run(pool *p, pool_task task, void *context, int64_t n_items, int64_t grain);

#endif
