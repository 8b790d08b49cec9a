/* engine/logits.h: the passes over a whole row of logits that sampling is made of.
 *
 * A vocabulary may have 262 144 entries and a token milliseconds, so a pass must run at the speed
 * of memory: blocks with sixteen sums side by side, compiled for the instruction set at hand. The
 * order of every sum is fixed by the blocks alone and exp is our own, so the bits are the same on
 * every machine. Pure functions, any thread; logits_top, logits_argmax and logits_log_sum_exp are
 * declared in sampler.h. */
#ifndef REALM_ENGINE_LOGITS_H
#define REALM_ENGINE_LOGITS_H

#include "compute/backend.h"
#include "engine/sampler.h"

#define LOGITS_BLOCK PEAK_COLS

static inline int32_t logits_blocks(int32_t n)
{
    return (n + LOGITS_BLOCK - 1) / LOGITS_BLOCK;
}

/* The largest value, -INFINITY if n is 0; *has_nan is set to 1 where any is NaN. */
float logits_max(const float *x, int32_t n, int *has_nan);
/* The same, and which: the first of the largest; 0 where all are -INFINITY or no numbers. */
token_id logits_best(const float *x, int32_t n, float *best, int *has_nan);
/* The same by the peaks of every LOGITS_BLOCK. */
token_id logits_best_by_peaks(const float *x, const float *peaks, int32_t n, float *best,
                              int *has_nan);
/* The order of logits_top, for qsort: the larger first, of equal ones the first one first; no two are the same. */
int logits_compare(const void *a, const void *b);
/* Sorts a list that is in order of ids as logits_top's are: the largest first, of equal ones the first one first.
 * scratch [count]. */
void logits_sort(token_logit *list, int32_t count, token_logit *scratch);
/* exp(x[i] * scale + shift), which must not be over 0, to out [n], n <= LOGITS_BLOCK. */
void logits_exp(const float *x, int32_t n, float scale, float shift, float *out);
/* The same summed by blocks into sums [logits_blocks(n)], NULL: not wanted; returns their total. */
double logits_exp_sums(const float *x, int32_t n, float scale, float shift, double *sums);
/* The digest's sums of that scale [logits_blocks(n)], or NULL; digest may be NULL. */
const double *logits_sums_of(const row_digest *digest, float scale);
/* Their total, in the bits of logits_exp_sums. */
double logits_total(const double *sums, int32_t n);

#endif
