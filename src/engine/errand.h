/* engine/errand.h: work of other threads that the next batch waits for, and the engine's thread shares in.
 *
 * When an iteration ends, guests choose the next tokens on the sandbox's thread while the engine's waits for
 * them with a core of its own. Whoever has such turns to run offers them for as long as it runs them; the
 * engine's thread takes some while it gathers its next batch (engine.c).
 *
 * Between errand_offer and the end of errand_recall the engine's thread may be inside of errand->run; outside of
 * that it never is, so what run works on is the offering thread's again when errand_recall returns. */
#ifndef REALM_ENGINE_ERRAND_H
#define REALM_ENGINE_ERRAND_H

#include <stdatomic.h>
#include <stddef.h>

typedef struct engine_errand {
    /* Does one piece of microseconds and returns 1, or 0 if none is left. Must not wait. */
    int (*run)(void *context);
    void *context;
} engine_errand;

typedef struct errand_slot {
    _Atomic(const engine_errand *) offered; /* NULL: none */
    atomic_int running; /* the engine's thread looks at what is offered, or runs it */
} errand_slot;

/* 0 if another thread's errand is there. Any thread. */
static inline int errand_offer(errand_slot *s, const engine_errand *errand)
{
    const engine_errand *none = NULL;
    return atomic_compare_exchange_strong(&s->offered, &none, errand);
}

/* Takes it back and waits until the piece that is being run has ended. The thread that offered. */
void errand_recall(errand_slot *s);

/* 1 if a piece was run. The engine's thread. */
static inline int errand_run(errand_slot *s)
{
    if (!atomic_load_explicit(&s->offered, memory_order_relaxed))
        return 0;
    atomic_store(&s->running,
                 1); /* before the look that counts: errand_recall does it the other way round */
    const engine_errand *errand = atomic_load(&s->offered);
    int ran = errand && errand->run(errand->context);
    atomic_store_explicit(&s->running, 0, memory_order_release);
    return ran;
}

#endif
