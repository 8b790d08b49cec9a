/* sandbox/shared_turns.h: turns of guests whose steps have ended, run by two threads at once.
 *
 * The next batch waits for all of them, so what they take one after the other is lost time for everybody.
 * Meanwhile the engine's thread has nothing to do but wait for them. So the sandbox's thread lines them up
 * and offers them to it (engine/errand.h); it takes from the front, the engine's thread from the back, a few
 * at a time, so that each may fetch ahead what its next guest will touch.
 *
 * The requests stay the sandbox thread's. It does nothing else with them, nor with any other, between
 * shared_turns_start and shared_turns_end; so lists, moves and ends need no locks. A turn by the engine's
 * thread must be short and must not call back into what waits for the engine: text and log are held
 * until the end, ends are the own thread's, and only guests whose turns have lately been short are lined
 * up (request_turn_shared). */
#ifndef REALM_SANDBOX_SHARED_TURNS_H
#define REALM_SANDBOX_SHARED_TURNS_H

#include "sandbox/request.h"

#define SHARED_TURNS_MOST 64

typedef struct shared_turns {
    engine *engine; /* whose steps have ended, and to which they are offered */
    engine_errand errand;
    int offered;
    sandbox_request *all[SHARED_TURNS_MOST]; /* since the start */
    int n_all;
    sandbox_request *line[SHARED_TURNS_MOST]; /* [front to back): whose turns have not begun */
    _Atomic uint64_t ends;                    /* front, and back << 32 */
    turn_clock visitor;                       /* the engine's thread's */
} shared_turns;

/* Sandbox thread, like all below. */
void shared_turns_start(shared_turns *s, engine *e);
/* For how many more there is room until the end. */
int shared_turns_room(const shared_turns *s);
void shared_turns_add(shared_turns *s, sandbox_request *r);
/* Runs some of those that are left, while the engine's thread may run others; 0 if none are. */
int shared_turns_run(shared_turns *s, turn_clock *clock);
/* After shared_turns_run gave 0. All have had their turns when this returns; they are in s->all. */
void shared_turns_end(shared_turns *s);

#endif
