/* engine/generate.h: the native loop: sample, append, emit, until something says stop.
 *
 * Engine thread. Each call of generate_next stands where the logits after the last token are
 * known and takes one token. Text that could still become a stop string is held back, so no part
 * of one is ever emitted. */
#ifndef REALM_ENGINE_GENERATE_H
#define REALM_ENGINE_GENERATE_H

#include "base/buffer.h"
#include "engine/engine.h"

/* Between the tokens of one generation; kept over a wake. */
typedef struct generate_state {
    int woken;        /* the last work was a generate that ended with FINISH_WAKE */
    int wake_due;     /* the next call only wakes: logits are there now */
    int32_t n_tokens; /* over all submissions of one work */
    token_decoder decoder;
    buffer held; /* text not emitted yet */
} generate_state;

/* REALM_INVALID names the option that is wrong. */
realm_status generate_check(const generate_options *o, realm_error *error);
/* Starts w, or goes on if w was woken. */
void generate_begin(engine *e, session *s, work *w);
/* Takes one token. *finished: w->finish says why; otherwise a token was appended that must be
 * computed before the next call. */
realm_status generate_next(engine *e, session *s, work *w, int *finished);
void generate_release(generate_state *g);

#endif
