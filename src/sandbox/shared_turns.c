/* sandbox/shared_turns.c: see shared_turns.h. */
#include "sandbox/shared_turns.h"

#include <assert.h>

#include "base/clock.h"

#define CLAIM_SHARE                                                                                \
    3 /* a thread claims so large a part of what is left: few claims, and an even end */
#define CLAIM_MOST 4

static uint32_t front_of(uint64_t ends)
{
    return (uint32_t)ends;
}

static uint32_t back_of(uint64_t ends)
{
    return (uint32_t)(ends >> 32);
}

/* Only the sandbox's thread moves the front forward and the back, only the engine's thread the
 * back backward, so what either reads in between cannot have been replaced when its exchange succeeds. */
static int claim(shared_turns *s, int from_back, sandbox_request **claimed)
{
    uint64_t ends = atomic_load_explicit(&s->ends, memory_order_acquire), next;
    uint32_t n, from;
    do {
        uint32_t front = front_of(ends), left = back_of(ends) - front;
        if (left == 0)
            return 0;
        n = (left + CLAIM_SHARE - 1) / CLAIM_SHARE;
        n = n < CLAIM_MOST ? n : CLAIM_MOST;
        from = from_back ? back_of(ends) - n : front;
        for (uint32_t i = 0; i < n; i++)
            claimed[i] = s->line[from + i];
        next = from_back ? ends - ((uint64_t)n << 32) : ends + n;
    } while (!atomic_compare_exchange_weak_explicit(&s->ends, &ends, next, memory_order_acq_rel,
                                                    memory_order_acquire));
    return (int)n;
}

static void run_claimed(sandbox_request **claimed, int n, turn_clock *clock, int visits)
{
    for (int i = 0; i < n; i++) {
        int stage = REQUEST_PREFETCH_STAGES;
        for (int k = i + 1; k < n && stage-- > 0; k++)
            request_prefetch(claimed[k], stage);
        request_turn_shared(claimed[i], clock, visits);
    }
}

static int run_as_visitor(void *context)
{
    shared_turns *s = context;
    sandbox_request *claimed[CLAIM_MOST];
    int n = claim(s, 1, claimed);
    if (n) {
        s->visitor = (turn_clock){.now_ns = clock_ns()};
        run_claimed(claimed, n, &s->visitor, 1);
    }
    return n > 0;
}

void shared_turns_start(shared_turns *s, engine *e)
{
    s->engine = e;
    s->errand = (engine_errand){run_as_visitor, s};
    s->n_all = s->offered = 0;
    atomic_store_explicit(&s->ends, 0, memory_order_relaxed);
}

int shared_turns_room(const shared_turns *s)
{
    return SHARED_TURNS_MOST - s->n_all;
}

void shared_turns_add(shared_turns *s, sandbox_request *r)
{
    assert(shared_turns_room(s) > 0);
    s->all[s->n_all++] = r;
    uint64_t ends = atomic_load_explicit(&s->ends, memory_order_acquire);
    do {
        s->line[back_of(ends)] = r;
    } while (!atomic_compare_exchange_weak_explicit(&s->ends, &ends, ends + (UINT64_C(1) << 32),
                                                    memory_order_acq_rel, memory_order_acquire));
}

int shared_turns_run(shared_turns *s, turn_clock *clock)
{
    sandbox_request *claimed[CLAIM_MOST];
    int n = claim(s, 0, claimed);
    if (n && !s->offered) /* now, so that a single one is not the engine's thread's to run */
        s->offered = engine_offer(s->engine, &s->errand);
    run_claimed(claimed, n, clock, 0);
    return n > 0;
}

void shared_turns_end(shared_turns *s)
{
    assert(front_of(atomic_load(&s->ends)) == back_of(atomic_load(&s->ends)));
    if (s->offered)
        engine_recall(s->engine);
}
