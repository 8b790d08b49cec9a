/* engine/batch.h: turns a plan into what model_forward takes. Engine thread.
 *
 * A plan is run as at most two steps: rows whose logits are wanted, and rows of embeddings, whose
 * hidden states are. Rows of one session are neighbours and ascend. */
#ifndef REALM_ENGINE_BATCH_H
#define REALM_ENGINE_BATCH_H

#include "engine/device.h"
#include "engine/engine.h"
#include "engine/scheduler.h"

typedef struct batch {
    int32_t capacity;                             /* rows */
    int32_t *positions, *sequences, *output_rows; /* [capacity] */
    token_id *tokens;                             /* [capacity] */
    const int32_t **page_tables;                  /* [capacity] */
    adapter **adapters;                           /* [capacity] */
    float **peaks;                                /* [capacity], of results that are logits */
    row_wish *wishes;                             /* [capacity], likewise */
    float **results;                              /* [capacity] */
    session **sessions;                           /* [capacity] by sequence */
    float *hidden; /* [capacity, n_embd], NULL until an embedding was asked for */
    forward_input input;
} batch;

realm_status batch_open(batch *b, int32_t capacity, realm_error *error);
void batch_close(batch *b);
realm_status batch_reserve_hidden(batch *b, int32_t n_embd, realm_error *error);

/* The picks that want hidden states, or the others. 0 if there are none. */
int batch_build(batch *b, const sched_plan *plan, int hidden, int32_t n_embd);

#endif
