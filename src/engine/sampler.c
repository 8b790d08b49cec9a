/* engine/sampler.c: see sampler.h.
 *
 * A row is read, never written. Bias, mask and penalties need a changed row and work on a copy,
 * which is made only when one of them is in use. From there on it is choice.h's, and where it is still the whole
 * row, a draw needs the sums of blocks, which a device may have made, and one block. */
#include "engine/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/choice.h"
#include "engine/logits.h"

#define MAX_PENALTY_TOKENS (1 << 20)
#define LISTED             0x80000000u

struct sampler {
    int32_t n_vocab;
    sampler_options options;
    rng random;
    grammar *grammar;

    token_logit *bias; /* [n_bias] */
    int32_t n_bias;

    /* what penalties look at */
    token_id *recent; /* ring of the last capacity tokens; none where all count */
    int32_t n_recent, recent_next, recent_capacity;
    uint32_t *counts; /* [n_vocab] how often within the window; LISTED: is in seen. NULL: off */
    token_id *seen;   /* [n_seen] ids that have or had a count */
    int32_t n_seen;

    /* scratch, made when first needed */
    float *row;              /* [n_vocab] */
    uint32_t *mask;          /* a bit a token */
    token_logit *candidates; /* [n_vocab], then as many to sort them with */
    double *sums;            /* [logits_blocks(n_vocab)] */
};

/* ---- settings ---------------------------------------------------------------------------------- */

static realm_status refuse(realm_error *error, const char *name, double value, const char *range)
{
    return realm_fail(error, REALM_INVALID, "%s is %g, it must be %s", name, value, range);
}

/* Comparisons are written so that NaN fails them. */
realm_status sampler_options_check(const sampler_options *o, realm_error *error)
{
    if (!(o->temperature >= 0 && o->temperature <= 100))
        return refuse(error, "temperature", (double)o->temperature, "between 0 and 100");
    if (o->top_k < 0)
        return refuse(error, "top_k", o->top_k, "0 (all) or more");
    if (!(o->top_p >= 0 && o->top_p <= 1))
        return refuse(error, "top_p", (double)o->top_p, "between 0 and 1");
    if (!(o->min_p >= 0 && o->min_p <= 1))
        return refuse(error, "min_p", (double)o->min_p, "between 0 and 1");
    if (!(o->typical_p >= 0 && o->typical_p <= 1))
        return refuse(error, "typical_p", (double)o->typical_p, "between 0 and 1");
    if (!(o->repetition_penalty > 0 && o->repetition_penalty <= 100))
        return refuse(error, "repetition_penalty", (double)o->repetition_penalty,
                      "above 0 and at most 100");
    if (!(fabsf(o->frequency_penalty) <= 100))
        return refuse(error, "frequency_penalty", (double)o->frequency_penalty,
                      "between -100 and 100");
    if (!(fabsf(o->presence_penalty) <= 100))
        return refuse(error, "presence_penalty", (double)o->presence_penalty,
                      "between -100 and 100");
    if (o->penalty_tokens < -1 || o->penalty_tokens > MAX_PENALTY_TOKENS)
        return refuse(error, "penalty_tokens", o->penalty_tokens, "-1 (all) to 1048576");
    return REALM_OK;
}

static int has_penalties(const sampler_options *o)
{
    return o->penalty_tokens != 0 &&
           (o->repetition_penalty != 1 || o->frequency_penalty != 0 || o->presence_penalty != 0);
}

/* ---- history ----------------------------------------------------------------------------------- */

static void count_in(sampler *s, token_id id)
{
    if (!(s->counts[id] & LISTED))
        s->seen[s->n_seen++] = id;
    s->counts[id] = (s->counts[id] + 1) | LISTED;
}

static void remember(sampler *s, token_id id)
{
    if (id < 0 || id >= s->n_vocab)
        return;
    if (s->counts)
        count_in(s, id);
    if (s->recent_capacity == 0)
        return;
    if (s->n_recent == s->recent_capacity) {
        if (s->counts)
            s->counts[s->recent[s->recent_next]]--;
    } else {
        s->n_recent++;
    }
    s->recent[s->recent_next] = id;
    s->recent_next = (s->recent_next + 1) % s->recent_capacity;
}

static token_id recent_at(const sampler *s, int32_t i)
{
    return s->recent[(s->recent_next - s->n_recent + i + s->recent_capacity) % s->recent_capacity];
}

/* Counts are kept while penalties are on, or where all tokens count: then nothing else remembers. */
static realm_status open_counts(uint32_t **counts, token_id **seen, const sampler *s,
                                const sampler_options *o, realm_error *error)
{
    size_t n = (size_t)s->n_vocab;
    if (!has_penalties(o) && o->penalty_tokens != -1)
        return REALM_OK;
    *counts = calloc(n, sizeof **counts);
    *seen = calloc(n, sizeof **seen);
    return *counts && *seen ? REALM_OK
                            : realm_fail_memory(error, n * sizeof **counts, "counts of tokens");
}

static void move_history(sampler *to, const sampler *from)
{
    if (from->counts && from->recent_capacity == 0) {
        for (int32_t i = 0; i < from->n_seen; i++)
            for (uint32_t n = from->counts[from->seen[i]] & ~LISTED; n > 0; n--)
                remember(to, from->seen[i]);
        return;
    }
    for (int32_t i = 0; i < from->n_recent; i++)
        remember(to, recent_at(from, i));
}

/* Makes the history that o asks for and fills it with what is known. */
static realm_status set_history(sampler *s, const sampler_options *o, realm_error *error)
{
    sampler fresh = {.n_vocab = s->n_vocab};
    fresh.recent_capacity = o->penalty_tokens > 0 ? o->penalty_tokens : 0;
    size_t bytes = (size_t)fresh.recent_capacity * sizeof *fresh.recent;
    realm_status status = open_counts(&fresh.counts, &fresh.seen, s, o, error);
    if (status == REALM_OK && bytes && !(fresh.recent = malloc(bytes)))
        status = realm_fail_memory(error, bytes, "recent tokens");
    if (status != REALM_OK) {
        free(fresh.counts);
        free(fresh.seen);
        return status;
    }
    move_history(&fresh, s);
    free(s->recent);
    free(s->counts);
    free(s->seen);
    s->recent = fresh.recent;
    s->n_recent = fresh.n_recent;
    s->recent_next = fresh.recent_next;
    s->recent_capacity = fresh.recent_capacity;
    s->counts = fresh.counts;
    s->seen = fresh.seen;
    s->n_seen = fresh.n_seen;
    return REALM_OK;
}

/* ---- opening and closing ----------------------------------------------------------------------- */

realm_status sampler_open(sampler **out, int32_t n_vocab, const sampler_options *o,
                          realm_error *error)
{
    realm_status status = sampler_options_check(o, error);
    if (status != REALM_OK)
        return status;
    sampler *s = calloc(1, sizeof *s);
    if (!s)
        return realm_fail_memory(error, sizeof *s, "a sampler");
    s->n_vocab = n_vocab;
    status = sampler_set(s, o, error);
    if (status != REALM_OK) {
        sampler_close(s);
        return status;
    }
    *out = s;
    return REALM_OK;
}

void sampler_close(sampler *s)
{
    if (!s)
        return;
    grammar_close(s->grammar);
    free(s->bias);
    free(s->recent);
    free(s->counts);
    free(s->seen);
    free(s->row);
    free(s->mask);
    free(s->candidates);
    free(s->sums);
    free(s);
}

realm_status sampler_set(sampler *s, const sampler_options *o, realm_error *error)
{
    realm_status status = sampler_options_check(o, error);
    if (status == REALM_OK)
        status = set_history(s, o, error);
    if (status != REALM_OK)
        return status;
    s->options = *o;
    rng_init(&s->random, o->seed);
    return REALM_OK;
}

realm_status sampler_clone(sampler **out, const sampler *s, realm_error *error)
{
    sampler *copy = NULL;
    realm_status status = sampler_open(&copy, s->n_vocab, &s->options, error);
    if (status != REALM_OK)
        return status;
    copy->random = s->random;
    move_history(copy, s);
    size_t bytes = (size_t)s->n_bias * sizeof *s->bias;
    if (s->n_bias > 0 && !(copy->bias = malloc(bytes)))
        status = realm_fail_memory(error, bytes, "biases");
    if (status == REALM_OK && s->n_bias > 0) {
        memcpy(copy->bias, s->bias, bytes);
        copy->n_bias = s->n_bias;
    }
    if (status == REALM_OK && s->grammar)
        status = grammar_clone(&copy->grammar, s->grammar, error);
    if (status == REALM_OK)
        *out = copy;
    else
        sampler_close(copy);
    return status;
}

realm_status sampler_bias(sampler *s, const token_id *ids, const float *values, int32_t count,
                          realm_error *error)
{
    token_logit *bias = NULL;
    if (count < 0 || count > s->n_vocab)
        return realm_fail(error, REALM_INVALID, "%" PRId32 " biases for a vocabulary of %" PRId32,
                          count, s->n_vocab);
    for (int32_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= s->n_vocab || isnan(values[i]) || values[i] == INFINITY)
            return realm_fail(error, REALM_INVALID, "bias %" PRId32 ": token %" PRId32 ", value %g",
                              i, ids[i], (double)values[i]);
    size_t bytes = (size_t)count * sizeof *bias;
    if (count > 0 && !(bias = malloc(bytes)))
        return realm_fail_memory(error, bytes, "biases");
    for (int32_t i = 0; i < count; i++)
        bias[i] = (token_logit){ids[i], values[i]};
    free(s->bias);
    s->bias = bias;
    s->n_bias = count;
    return REALM_OK;
}

void sampler_constrain(sampler *s, grammar *g)
{
    grammar_close(s->grammar);
    s->grammar = g;
}

const grammar *sampler_grammar(const sampler *s)
{
    return s->grammar;
}

realm_status sampler_accept(sampler *s, token_id token, realm_error *error)
{
    realm_status status = s->grammar ? grammar_accept(s->grammar, token, error) : REALM_OK;
    if (status == REALM_OK)
        remember(s, token);
    return status;
}

void sampler_see(sampler *s, const token_id *tokens, int32_t count)
{
    for (int32_t i = 0; i < count; i++)
        remember(s, tokens[i]);
}

/* ---- stages that change the row ---------------------------------------------------------------- */

static realm_status reserve(void **scratch, size_t bytes, realm_error *error)
{
    if (*scratch)
        return REALM_OK;
    *scratch = calloc(1, bytes);
    return *scratch ? REALM_OK : realm_fail_memory(error, bytes, "sampling");
}

static void apply_mask(float *row, const uint32_t *mask, int32_t n)
{
    for (int32_t i = 0; i < n; i++)
        row[i] = mask[i / 32] >> (i % 32) & 1 ? row[i] : -INFINITY;
}

static float penalize(const sampler_options *o, float logit, uint32_t count)
{
    if (logit > 0)
        logit /= o->repetition_penalty;
    else
        logit *= o->repetition_penalty;
    return logit - (float)count * o->frequency_penalty - o->presence_penalty;
}

/* Ids whose count fell to zero leave the list on the way. */
static void apply_penalties(sampler *s, float *row)
{
    for (int32_t i = 0; i < s->n_seen;) {
        token_id id = s->seen[i];
        uint32_t count = s->counts[id] & ~LISTED;
        if (count == 0) {
            s->counts[id] = 0;
            s->seen[i] = s->seen[--s->n_seen];
            continue;
        }
        row[id] = penalize(&s->options, row[id], count);
        i++;
    }
}

/* The row that is chosen from: logits themselves where nothing changes them. */
static realm_status change_row(sampler *s, const float *logits, const row_digest *digest,
                               int masked, const float **row, realm_error *error)
{
    size_t n = (size_t)s->n_vocab;
    int penalized = has_penalties(&s->options) && s->n_seen > 0;
    *row = logits;
    if (s->n_bias == 0 && !masked && !penalized)
        return REALM_OK;
    realm_status status = reserve((void **)&s->row, n * sizeof *s->row, error);
    if (status == REALM_OK && masked)
        status = reserve((void **)&s->mask, (n + 31) / 32 * sizeof *s->mask, error);
    if (status == REALM_OK && masked)
        status = grammar_mask(s->grammar, s->mask, error);
    if (status != REALM_OK)
        return status;
    memcpy(s->row, logits ? logits : digest->row(digest->owner), n * sizeof *s->row);
    for (int32_t i = 0; i < s->n_bias; i++)
        s->row[s->bias[i].id] += s->bias[i].value;
    if (masked)
        apply_mask(s->row, s->mask, s->n_vocab);
    if (penalized)
        apply_penalties(s, s->row);
    *row = s->row;
    return REALM_OK;
}

/* ---- the choice -------------------------------------------------------------------------------- */

/* Where the running sum passes u * total. The last one with any weight catches rounding. */
static token_id draw_from_list(sampler *s, const choice *c)
{
    float weights[LOGITS_BLOCK], scale = 1 / s->options.temperature;
    double wanted = rng_double(&s->random) * choice_mass(c, scale), sum = 0;
    token_id last = c->list[0].id;
    for (int32_t i = 0, count; i < c->count; i += count) {
        count = choice_weigh(c, i, scale, weights);
        for (int32_t j = 0; j < count; j++) {
            sum += (double)weights[j];
            if (weights[j] > 0)
                last = c->list[i + j].id;
            if (sum > wanted)
                return last;
        }
    }
    return last;
}

static token_id draw_in_block(choice *c, int32_t first, float scale, double wanted)
{
    float weights[LOGITS_BLOCK];
    const row_block *block = c->digest->scale == scale ? c->digest->block : NULL;
    const float *values = block && block->first == first ? block->values : choice_row(c) + first;
    int32_t count = c->n - first < LOGITS_BLOCK ? c->n - first : LOGITS_BLOCK, last = 0;
    double sum = 0;
    logits_exp(values, count, scale, -c->max * scale, weights);
    for (int32_t i = 0; i < count; i++) {
        if (weights[i] > 0)
            last = i;
        sum += (double)weights[i];
        if (sum > wanted)
            break;
    }
    return first + last;
}

/* Two passes: sums of blocks, then the block in which the sum passes u * total. */
static token_id draw_dense(sampler *s, choice *c)
{
    float scale = 1 / s->options.temperature;
    const double *sums = logits_sums_of(c->digest, scale);
    double total = sums ? logits_total(sums, c->n)
                        : logits_exp_sums(choice_row(c), c->n, scale, -c->max * scale, s->sums);
    double wanted = rng_double(&s->random) * total;
    int32_t last = 0, n_blocks = logits_blocks(c->n);
    double before = 0, sum = 0;
    if (!sums)
        sums = s->sums;
    for (int32_t i = 0; i < n_blocks; i++) {
        if (sums[i] > 0) {
            last = i;
            before = sum;
        }
        sum += sums[i];
        if (sum > wanted)
            break;
    }
    return draw_in_block(c, last * LOGITS_BLOCK, scale, wanted - before);
}

static int is_top_k_on(const sampler *s)
{
    return s->options.top_k > 0 && s->options.top_k < s->n_vocab;
}

static int is_truncating(const sampler *s)
{
    const sampler_options *o = &s->options;
    return is_top_k_on(s) || o->typical_p < 1 || o->top_p < 1 || o->min_p > 0;
}

/* Where the next draw will be: 0 to 1 of the weights. */
static double next_point(const sampler *s)
{
    rng random = s->random;
    return rng_double(&random);
}

row_wish sampler_wish(const sampler *s)
{
    const sampler_options *o = &s->options;
    row_wish wish = {.point = -1};
    if (s->n_bias > 0 || has_penalties(o) || (s->grammar && is_truncating(s)))
        return wish;
    wish.stays = s->grammar == NULL; /* else there may be a second choice, by its mask */
    if (o->temperature == 0)
        return wish;
    if (is_top_k_on(s)) {
        wish.stays &= o->top_k <= TOP_COLUMNS;
        return wish;
    }
    wish.stays &= o->typical_p == 1;
    if (!is_truncating(s))
        wish.point = next_point(s);
    wish.scale = o->typical_p < 1 || o->top_p < 1 ? 1 : o->min_p > 0 ? 0 : 1 / o->temperature;
    return wish;
}

static void truncate_choice(const sampler *s, choice *c)
{
    const sampler_options *o = &s->options;
    if (is_top_k_on(s))
        choice_keep_top_k(c, o->top_k);
    if (o->typical_p < 1)
        choice_keep_typical(c, (double)o->typical_p);
    if (o->top_p < 1)
        choice_keep_top_p(c, (double)o->top_p);
    if (o->min_p > 0)
        choice_keep_min_p(c, o->min_p);
}

static realm_status draw(sampler *s, const float *row, const row_digest *digest, float max,
                         token_id *out, realm_error *error)
{
    size_t n = (size_t)s->n_vocab;
    choice c = {.row = row, .n = s->n_vocab, .max = max, .digest = digest, .count = -1};
    realm_status status;
    if (is_truncating(s))
        status = reserve((void **)&s->candidates, 2 * n * sizeof *s->candidates, error);
    else
        status = reserve((void **)&s->sums, (size_t)logits_blocks(s->n_vocab) * sizeof *s->sums,
                         error);
    if (status != REALM_OK)
        return status;
    c.list = s->candidates;
    truncate_choice(s, &c);
    *out = c.count < 0 ? draw_dense(s, &c) : draw_from_list(s, &c);
    return REALM_OK;
}

static realm_status choose_from(sampler *s, const float *row, const row_digest *digest,
                                token_id *out, realm_error *error)
{
    int has_nan;
    float max;
    token_id best;
    if (digest->tops) {
        max = logits_max(digest->peaks, logits_blocks(s->n_vocab), &has_nan);
        best = digest->tops[0].id;
    } else if (digest->peaks) {
        best = logits_best_by_peaks(row, digest->peaks, s->n_vocab, &max, &has_nan);
    } else {
        best = logits_best(row, s->n_vocab, &max, &has_nan);
    }
    if (has_nan || max == INFINITY)
        return realm_fail(error, REALM_INVALID, "logits hold a value that is %s",
                          has_nan ? "no number" : "infinite");
    if (max == -INFINITY)
        return realm_fail(error, REALM_INVALID, "no token is left to choose: all are forbidden");
    if (s->options.temperature > 0)
        return draw(s, row, digest, max, out, error);
    *out = best;
    return REALM_OK;
}

/* A grammar's mask costs far more than asking it about one token. So where nothing truncates, the
 * free choice is tried first: keeping it if the grammar allows it (probability a), or else choosing
 * under the mask, gives an allowed token t the probability p(t) + (1 - a) p(t) / a = p(t) / a,
 * which is what choosing under the mask gives. With truncation it would not. */
static int is_allowed(sampler *s, token_id token)
{
    if (grammar_accept(s->grammar, token, NULL) != REALM_OK)
        return 0;
    return grammar_rollback(s->grammar, 1, NULL) == REALM_OK;
}

/* choose_from the logits as the model gave them, whose digest that is, or changed ones. */
static realm_status choose_from_row(sampler *s, const float *row, const float *logits,
                                    const row_digest *digest, token_id *out, realm_error *error)
{
    static const row_digest none = {0};
    return choose_from(s, row, digest && row == logits ? digest : &none, out, error);
}

realm_status sampler_choose(sampler *s, const float *logits, const row_digest *digest,
                            token_id *out, realm_error *error)
{
    const float *row = NULL;
    int masked = s->grammar != NULL;
    int try_free = masked && (s->options.temperature == 0 || !is_truncating(s));
    if (try_free) {
        realm_status status = change_row(s, logits, digest, 0, &row, error);
        if (status == REALM_OK)
            status = choose_from_row(s, row, logits, digest, out, error);
        if (status != REALM_OK || is_allowed(s, *out))
            return status;
    }
    realm_status status = change_row(s, logits, digest, masked, &row, error);
    if (status != REALM_OK)
        return status;
    return choose_from_row(s, row, logits, digest, out, error);
}
