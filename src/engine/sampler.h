/* engine/sampler.h: from a row of logits to a token.
 *
 * A sampler is one session's: its settings, its random state, the recent tokens that penalties
 * look at, its biases and its grammar. Used by whoever owns the session at that moment (the engine
 * inside generate and step, the sandbox's thread inside sample), never by two at once.
 *
 * Order of the stages: bias, grammar mask, penalties, then either the greedy choice
 * (temperature 0) or top-k, typical, top-p, min-p, temperature, draw. Ties go to the smaller id.
 * The same seed, settings and logits give the same tokens on every machine. */
#ifndef REALM_ENGINE_SAMPLER_H
#define REALM_ENGINE_SAMPLER_H

#include "base/fail.h"
#include "base/rng.h"
#include "compute/backend.h"
#include "text/grammar.h"
#include "text/tokenizer.h"

typedef struct sampler_options {
    float temperature; /* 0: greedy. Default 0 */
    int32_t top_k;     /* 0: all */
    float top_p;       /* 1: off; 0: only the likeliest */
    float min_p;       /* 0: off */
    float typical_p;   /* 1: off; 0: only the most typical; Meister et al., arXiv 2202.00666 */
    float repetition_penalty;                  /* 1: off; Keskar et al., arXiv 1909.05858 */
    float frequency_penalty, presence_penalty; /* 0: off; as OpenAI's API defines them */
    int32_t penalty_tokens; /* how many recent tokens count; -1: all. Default 64 */
    uint64_t seed;
} sampler_options;

#define SAMPLER_OPTIONS_DEFAULT                                                                    \
    ((sampler_options){.top_p = 1, .typical_p = 1, .repetition_penalty = 1, .penalty_tokens = 64})

typedef struct sampler sampler;

/* REALM_INVALID names the setting that is out of range. */
realm_status sampler_options_check(const sampler_options *o, realm_error *error);

realm_status sampler_open(sampler **out, int32_t n_vocab, const sampler_options *o,
                          realm_error *error);
void sampler_close(sampler *s);
/* A copy with the same random state, history and grammar state: forks stay reproducible. */
realm_status sampler_clone(sampler **out, const sampler *s, realm_error *error);
/* New settings; keeps history, bias and grammar; restarts the random state from the new seed. */
realm_status sampler_set(sampler *s, const sampler_options *o, realm_error *error);

/* Replaces the biases: ids[i] gets values[i] added; -INFINITY forbids it. Copied. */
realm_status sampler_bias(sampler *s, const token_id *ids, const float *values, int32_t count,
                          realm_error *error);
/* Takes the grammar (closes the one before); NULL: none. */
void sampler_constrain(sampler *s, grammar *g);
const grammar *sampler_grammar(const sampler *s);

typedef struct token_logit {
    token_id id;
    float value;
} token_logit;

/* What a device has found in a row of logits [n_vocab] (compute/backend.h), so that nobody need go through it. It
 * changes no choice. Each is NULL where it has not. */
typedef struct row_digest {
    const float *peaks; /* the largest of every PEAK_COLS, NaN where one of them is */
    /* The TOP_COLUMNS largest, as logits_top gives them; with peaks alone. */
    const token_logit *tops;
    /* As logits_exp_sums makes them with scale and -largest * scale; none if scale is 0 or the first is NaN. */
    const double *sums;
    float scale;
    const row_block *block; /* where a draw by these sums is likely to end */
    /* Where the row may be elsewhere: brings it here and returns it, [n_vocab]. */
    const float *(*row)(void *owner);
    void *owner;
} row_digest;

/* Chooses a token from logits [n_vocab], which are not changed. Does not record it. digest: of the logits, or
 * NULL. logits NULL: they are elsewhere, and asked for with digest->row where peaks, tops and sums do not do.
 *   REALM_INVALID  nothing is left to choose: all forbidden, or the grammar is complete */
realm_status sampler_choose(sampler *s, const float *logits, const row_digest *digest,
                            token_id *out, realm_error *error);
/* What sampler_choose would use of a row's digest as its settings are now; the row stays if it would be asked for
 * seldom. */
row_wish sampler_wish(const sampler *s);
/* Records a token that joined the sequence: penalties and the grammar see it. Prompt tokens go
 * through sampler_see (penalties only). */
realm_status sampler_accept(sampler *s, token_id token, realm_error *error);
void sampler_see(sampler *s, const token_id *tokens, int32_t count);

/* ---- pure helpers over a row of logits ---------------------------------------------------------- */

/* The k largest of logits [n], descending, ties by id; returns how many (k or n). */
int32_t logits_top(const float *logits, int32_t n, int32_t k, token_logit *out);
/* log(sum(exp(logits))), in double inside: log-probability of i is logits[i] - this. digest: of the logits, or
 * NULL. */
float logits_log_sum_exp(const float *logits, int32_t n, const row_digest *digest);
token_id logits_argmax(const float *logits, int32_t n);

#endif
