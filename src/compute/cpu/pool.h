/* compute/cpu/pool.h: the threads that share one operation's work, and nothing else.
 *
 * A pool has n seats. The caller of pool_run sits in the first; in each of the others sits one thread
 * at most, so that never more than n compute. A seat has a helper of its own, made once, which waits for
 * work: spinning for about 200 us after the last run (after 5 us with an open hand: it yields), asleep
 * after that. A run costs about a microsecond while they spin.
 *
 * Other threads may sit in for a helper (pool_lend): one that waits for what the pool computes, and
 * would sleep meanwhile, works along instead, and when the result is there it is awake already. It
 * leaves between two pieces, whenever it is wanted elsewhere; if it does not come back soon, the helper
 * takes the seat again.
 *
 * Work is n_items numbered pieces. Each seat owns a contiguous range of them (so that it streams
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

/* Runs items first .. first+count-1. thread is the seat, 0 .. n_threads-1, the caller's 0; no two
 * calls with the same one overlap, so it may index scratch memory. */
typedef void (*pool_task)(void *context, int64_t first, int64_t count, int32_t thread);

/* n_threads >= 1.  REALM_NO_MEMORY: threads or memory could not be had. */
realm_status pool_open(pool **out, int32_t n_threads, realm_error *error);
/* Sends lent threads out and waits until they have left. pool_lend may not be called any more. */
void pool_close(pool *p);

int32_t pool_threads(const pool *p);

/* Calls task for every item once and returns when all are done; their writes are then visible to
 * the caller. Ranges begin at multiples of grain (>= 1). n_items of 0 does nothing. */
void pool_run(pool *p, pool_task task, void *context, int64_t n_items, int64_t grain);

/* Sits in for a helper until wanted(context) says 1, which is asked before every piece and about
 * every microsecond between runs, or until nothing was to be done for as long as a helper would spin.
 * The calling thread needs the stack of a helper (1 MiB will do) and an ordinary priority: a piece
 * that it has begun is waited for. Any thread but one that is inside pool_run; several at a time.
 *   0  every seat is taken by lent threads, or the pool has but one: it did nothing */
int pool_lend(pool *p, int (*wanted)(void *context), void *context);

#endif
