/* engine/away.c: see away.h. */
#include "engine/away.h"

#include <assert.h>
#include <stdlib.h>

#include "engine/engine_internal.h"

realm_status away_init(away_rows *a, int32_t capacity, realm_error *error)
{
    size_t bytes = (size_t)capacity * sizeof *a->sessions;
    pthread_mutex_init(&a->mutex, NULL);
    a->sessions = malloc(bytes);
    a->capacity = capacity;
    return a->sessions ? REALM_OK : realm_fail_memory(error, bytes, "rows of logits");
}

void away_release(away_rows *a)
{
    free(a->sessions);
    pthread_mutex_destroy(&a->mutex);
}

/* Under the mutex. */
static void forget(away_rows *a, session *s)
{
    int away = atomic_load_explicit(&s->away, memory_order_relaxed);
    assert(a->sessions[away - 1] == s);
    a->sessions[away - 1] = NULL;
    atomic_store_explicit(&s->away, 0, memory_order_release);
}

/* A copy of its own costs more than a row that comes with its step, so the next ones do: who looks at rows does so again
 * as a rule, and who was late for a step may be late again. */
#define DUE_WHEN_ASKED 32
#define DUE_WHEN_LATE  4

/* Under the mutex. */
static void bring(engine *e, session *s, int32_t due)
{
    int away = atomic_load_explicit(&s->away, memory_order_relaxed);
    e->device.table->read_row(&e->device, away - 1, s->logits);
    s->row_due = due;
    forget(&e->away, s);
}

void away_bring(session *s)
{
    engine *e = s->engine;
    if (atomic_load_explicit(&s->away, memory_order_acquire) == 0)
        return;
    pthread_mutex_lock(&e->away.mutex);
    if (atomic_load_explicit(&s->away, memory_order_relaxed) != 0) /* else it just came */
        bring(e, s, DUE_WHEN_ASKED);
    pthread_mutex_unlock(&e->away.mutex);
}

void away_drop(session *s)
{
    away_rows *a = &s->engine->away;
    if (atomic_load_explicit(&s->away, memory_order_relaxed) == 0)
        return;
    pthread_mutex_lock(&a->mutex);
    if (atomic_load_explicit(&s->away, memory_order_relaxed) != 0)
        forget(a, s);
    pthread_mutex_unlock(&a->mutex);
}

static session *session_of(const batch *b, int32_t output)
{
    return b->sessions[b->input.rows.sequences[b->input.output_rows[output]]];
}

/* A work's session is the engine's, so that its fields may be read. If it has no logits and would have none were it undone,
 * it has gone on from them. */
static int is_done_with(const session *s)
{
    return s->work && !s->has_logits && !s->mark_logits;
}

void away_before(engine *e)
{
    away_rows *a = &e->away;
    for (int32_t i = 0; i < e->batch.input.n_outputs; i++)
        away_drop(
            session_of(&e->batch, i)); /* gets its next ones: its work is not undone any more */
    pthread_mutex_lock(&a->mutex);
    for (int32_t i = 0; i < a->count; i++) {
        session *s = a->sessions[i];
        if (s && is_done_with(s))
            forget(a, s);
        else if (s)
            bring(e, s, DUE_WHEN_LATE);
    }
    a->count = 0;
    pthread_mutex_unlock(&a->mutex);
}

void away_after(engine *e)
{
    away_rows *a = &e->away;
    const batch *b = &e->batch;
    pthread_mutex_lock(&a->mutex);
    assert(b->input.n_outputs <= a->capacity);
    for (int32_t i = 0; i < b->input.n_outputs; i++) {
        session *s = session_of(b, i);
        a->sessions[i] = b->wishes[i].stays ? s : NULL;
        atomic_store_explicit(&s->away, a->sessions[i] ? i + 1 : 0, memory_order_release);
    }
    a->count = b->input.n_outputs;
    pthread_mutex_unlock(&a->mutex);
}
