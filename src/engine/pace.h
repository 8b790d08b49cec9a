/* engine/pace.h: how many rows of prompts an iteration takes beside sessions that stream.
 *
 * What a stream's reader sees is the gap between two tokens, which is the iteration's time. The
 * rows of a prompt make it longer; with as many as take 0.8 of the time of an iteration without
 * any, no gap is over 1.8 times the usual one. Both times are measured as the engine runs, so the
 * same rule holds on any machine and model. Results do not depend on it: rows are computed to the
 * same bits however a prompt is cut. Engine thread. */
#ifndef REALM_ENGINE_PACE_H
#define REALM_ENGINE_PACE_H

#include <stdint.h>

typedef struct pace {
    double step_ns; /* of an iteration without prompts, smoothed; 0: not seen yet */
    double row_ns;  /* what a prompt's row adds, smoothed; 0: not seen yet */
} pace;

void pace_note(pace *p, uint64_t ns, int32_t n_rows, int32_t n_prompt_rows);
/* At least a few rows, or a prompt would never end; at most rows. */
int32_t pace_prompt_rows(const pace *p, int32_t rows);

#endif
