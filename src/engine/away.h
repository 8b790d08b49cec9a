/* engine/away.h: rows of logits that stay on the device.
 *
 * Most choices need what the device finds in a row (row_digest), not the row, and with a vocabulary of 128,000 rows
 * take a tenth of a step to send. So the rows of a step whose sampler does not ask for them stay in the device's
 * own tensor. There they are until the next step that gives logits writes over them, and before it does,
 * the engine has those brought that somebody may still want: those of sessions that are idle, because their guests
 * think or are slow, and of works that may be undone. Whoever wants one sooner brings it himself.
 *
 *     step gives logits            a row is asked for (its owner's thread), or a step comes (engine thread)
 *     ----------------> away ---------------------------------------------------------------------> here
 *                         | the session's own next logits, or its end (engine thread)
 *                         '---------------------------------------------------------> nobody's any more
 *
 * Invariants:
 *   A1  session.away is i + 1 exactly if sessions[i] is the session
 *   A2  it becomes other than 0 while the session's work is in flight, by the engine thread; it becomes 0 under the
 *       mutex; who owns the session and finds 0 may read its logits
 *   A3  no row is away while a step runs that gives logits */
#ifndef REALM_ENGINE_AWAY_H
#define REALM_ENGINE_AWAY_H

#include <pthread.h>

#include "engine/engine.h"

typedef struct away_rows {
    pthread_mutex_t mutex; /* also held while a row is brought: one at a time */
    session **sessions;    /* [count] of capacity, by output of the last step; NULL: nobody's */
    int32_t count, capacity;
} away_rows;

realm_status away_init(away_rows *a, int32_t capacity, realm_error *error);
void away_release(away_rows *a);

/* Around a step of e's batch that gives logits. Engine thread. */
void away_before(engine *e);
void away_after(engine *e);

/* The session's logits are here when it returns. Its owner's thread. */
void away_bring(session *s);
/* Nobody wants them. Engine thread, or whoever frees the session. */
void away_drop(session *s);

#endif
