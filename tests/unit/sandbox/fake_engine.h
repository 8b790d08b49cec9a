/* tests/unit/sandbox/fake_engine.h: an engine that needs no model, for testing the sandbox alone.
 *
 * It defines the functions of engine.h, model.h, tokenizer.h and the others that the sandbox calls,
 * so a program that links it uses none of the real ones. Its vocabulary is the 256 bytes; the token
 * after a sequence depends on nothing but the sequence. Works run on a thread of its own, in order,
 * each session's in turn, and take as long as the test says. */
#ifndef FAKE_ENGINE_H
#define FAKE_ENGINE_H

#include "engine/compute_list.h"

typedef struct fake_options {
    int inline_works; /* engine_submit does the work at once, on the caller's thread; and as little of
                           it as possible */
    int computes_elsewhere; /* as a GPU, with cores to spare: no thread may lend itself */
    uint64_t token_ns;      /* each token of a work takes so long */
    const atomic_int *held; /* and until this is 0; may be NULL */
    int gathers;            /* shares in errands until so many works are there, or for a moment */
} fake_options;

engine *fake_engine_open(const fake_options *options);
void fake_engine_close(engine *e);

/* Sessions open and device tensors alive now: both must be 0 when all requests are done. */
int fake_engine_sessions(engine *e);
int fake_engine_tensors(engine *e);
/* Works submitted so far. */
int fake_engine_works(engine *e);
/* How often a thread has lent itself and left again. */
int fake_engine_lent(engine *e);

/* How many pieces of errands its thread has run. */
int fake_engine_errands(engine *e);
/* 1 on its thread. */
int fake_engine_is_here(engine *e);

/* The token that follows a sequence. */
token_id fake_next_token(const token_id *tokens, int32_t length);

#endif
