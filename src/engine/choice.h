/* engine/choice.h: what is left of a row to draw from, and the stages that narrow it.
 *
 * A choice is either "dense", over the whole row, or over a short list of candidates; the first stage that is on turns
 * the one into the other by selecting, never by sorting the vocabulary:
 *
 *   top-k    heap or counting           typical  windows of growing distance from the entropy
 *   top-p    thresholds of falling value  min-p    one threshold
 *
 * Each stage looks at the probabilities of what the stage before left, normalized anew and before
 * temperature, as llama.cpp and Hugging Face do. exp is taken of candidates alone where there is a
 * list.
 *
 * Where a device has made a row's digest and nothing changes the row, no stage but typical goes through it: top-k,
 * min-p and nearly every top-p end within the largest. The sampler's thread. */
#ifndef REALM_ENGINE_CHOICE_H
#define REALM_ENGINE_CHOICE_H

#include "engine/logits.h"

/* What is left to choose from. */
typedef struct choice {
    const float *row; /* [n]; NULL: elsewhere, choice_row brings it */
    int32_t n;
    float max;                /* of what is left */
    double total;             /* of exp(row - max) over the row; 0: not known yet. Dense only */
    const row_digest *digest; /* of row; empty: nobody made one */
    token_logit *list;        /* [count] scratch for candidates; from n on more, for sorting */
    int32_t count;            /* -1: dense */
} choice;

const float *choice_row(choice *c);

/* exp((value - max) * scale) of at most LOGITS_BLOCK candidates from first on; returns how many. */
int32_t choice_weigh(const choice *c, int32_t first, float scale, float *weights);
/* The same of the whole list, added up. */
double choice_mass(const choice *c, float scale);

/* At least one candidate stays. k: 1 to n. p, of top-p and typical: 0 keeps one; of min-p: over 0. */
void choice_keep_top_k(choice *c, int32_t k);
void choice_keep_top_p(choice *c, double p);
void choice_keep_min_p(choice *c, float p);
void choice_keep_typical(choice *c, double p);

#endif
