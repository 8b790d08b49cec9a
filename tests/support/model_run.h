/* tests/support/model_run.h: runs token lists through a model without an engine.
 *
 * Owns KV pages for a few sequences of one model and cuts prompts into steps as a test asks. Each
 * failure aborts the program with its sentence. One thread: it is the engine's. */
#ifndef REALM_TESTS_MODEL_RUN_H
#define REALM_TESTS_MODEL_RUN_H

#include "model/model.h"

#define MODEL_RUN_SEQUENCES 8

typedef struct model_run {
    model *model;
    kv_store *kv;
    int32_t context;                     /* tokens a sequence may have */
    int32_t *pages[MODEL_RUN_SEQUENCES]; /* page tables */
    int32_t length[MODEL_RUN_SEQUENCES]; /* tokens each has */
} model_run;

/* Pages of F16 for sequences of up to context tokens. Borrows m. */
void model_run_open(model_run *r, model *m, int32_t context);
void model_run_close(model_run *r);

/* One sequence's part in a step. */
typedef struct model_run_part {
    int32_t sequence;
    const token_id *tokens; /* [count] what is appended to it */
    int32_t count;
    adapter *adapter;  /* or NULL */
    int32_t n_outputs; /* results of its last n_outputs tokens are wanted */
} model_run_part;

/* One model_forward over all parts; logits (or, with hidden, hidden states) of the wanted rows
 * follow each other in out, part after part. */
void model_run_step(model_run *r, const model_run_part *parts, int32_t n_parts, int hidden,
                    float *out);

/* Feeds a whole prompt to sequence 0, which is emptied first, in steps of chunk tokens. Logits of
 * all its tokens go to out [n, n_vocab]. */
void model_run_prompt(model_run *r, const token_id *tokens, int32_t n, int32_t chunk, adapter *with,
                      float *out);

#endif
