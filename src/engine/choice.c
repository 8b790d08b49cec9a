/* engine/choice.c: see choice.h. */
#include "engine/choice.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const float *choice_row(choice *c)
{
    if (!c->row)
        c->row = c->digest->row(c->digest->owner);
    return c->row;
}

int32_t choice_weigh(const choice *c, int32_t first, float scale, float *weights)
{
    int32_t count = c->count - first < LOGITS_BLOCK ? c->count - first : LOGITS_BLOCK;
    float values[LOGITS_BLOCK];
    for (int32_t i = 0; i < count; i++)
        values[i] = c->list[first + i].value - c->max;
    logits_exp(values, count, scale, 0, weights);
    return count;
}

static void know_total(choice *c)
{
    const double *sums = logits_sums_of(c->digest, 1);
    if (c->total == 0)
        c->total = sums ? logits_total(sums, c->n)
                        : logits_exp_sums(choice_row(c), c->n, 1, -c->max, NULL);
}

static void collect_above(choice *c, float threshold)
{
    const float *row = choice_row(c);
    c->count = 0;
    for (int32_t i = 0; i < c->n; i++)
        if (row[i] >= threshold && row[i] > -INFINITY)
            c->list[c->count++] = (token_logit){i, row[i]};
}

double choice_mass(const choice *c, float scale)
{
    float weights[LOGITS_BLOCK];
    double sum = 0;
    for (int32_t i = 0, count; i < c->count; i += count) {
        count = choice_weigh(c, i, scale, weights);
        for (int32_t j = 0; j < count; j++)
            sum += (double)weights[j];
    }
    return sum;
}

static int by_id(const void *a, const void *b)
{
    const token_logit *x = a, *y = b;
    return (x->id > y->id) - (x->id < y->id);
}

static void sort_by_value(choice *c)
{
    int32_t i = 1;
    while (i < c->count && logits_compare(&c->list[i - 1], &c->list[i]) < 0)
        i++;
    if (i < c->count) /* top-k's come in order */
        qsort(c->list, (size_t)c->count, sizeof *c->list, logits_compare);
}

/* Keeps the shortest beginning of the list whose mass reaches wanted; at least one. 0: it does not, all is kept. */
static int cut_at_mass(choice *c, double wanted)
{
    float weights[LOGITS_BLOCK];
    double mass = 0;
    for (int32_t i = 0, count; i < c->count; i += count) {
        count = choice_weigh(c, i, 1, weights);
        for (int32_t j = 0; j < count; j++) {
            mass += (double)weights[j];
            if (mass >= wanted) {
                c->count = i + j + 1;
                return 1;
            }
        }
    }
    return 0;
}

static int32_t n_tops(const choice *c)
{
    if (!c->digest->tops)
        return 0;
    return c->n < TOP_COLUMNS ? c->n : TOP_COLUMNS;
}

static void list_tops(choice *c, int32_t count)
{
    if (count > 0)
        memcpy(c->list, c->digest->tops, (size_t)count * sizeof *c->list);
    c->count = count;
}

void choice_keep_top_k(choice *c, int32_t k)
{
    if (k <= n_tops(c))
        list_tops(c, k);
    else
        c->count = logits_top(choice_row(c), c->n, k, c->list);
    while (c->list[c->count - 1].value == -INFINITY)
        c->count--;
}

/* The nucleus lies within the largest, or above some threshold; most rows need only the first. It is the shortest
 * beginning of all tokens in order: how far was looked changes nothing. */
static void find_nucleus(choice *c, double wanted)
{
    list_tops(c, n_tops(c));
    int found = cut_at_mass(c, wanted);
    for (float depth = 4; !found && depth < 500;
         depth *= 2) { /* in the end all that has any weight */
        collect_above(c, c->max - depth);
        if (depth < 200 && choice_mass(c, 1) < wanted)
            continue;
        logits_sort(c->list, c->count, c->list + c->n);
        found = cut_at_mass(c, wanted);
    }
}

/* Nucleus sampling, arXiv 1904.09751. */
void choice_keep_top_p(choice *c, double p)
{
    if (c->count < 0) {
        know_total(c);
        find_nucleus(c, p * c->total);
        return;
    }
    sort_by_value(c);
    cut_at_mass(c, p * choice_mass(c, 1));
}

void choice_keep_min_p(choice *c, float p)
{
    float threshold = c->max + logf(p);
    int32_t kept = 0, most = n_tops(c), all = c->count < 0;
    if (all && (most < TOP_COLUMNS || c->digest->tops[most - 1].value >= threshold)) {
        collect_above(c, threshold);
        return;
    }
    if (all)
        list_tops(c, most);
    for (int32_t i = 0; i < c->count; i++)
        if (c->list[i].value >= threshold)
            c->list[kept++] = c->list[i];
    c->count = kept;
    if (all) /* as collect_above lists them */
        qsort(c->list, (size_t)kept, sizeof *c->list, by_id);
}

/* ---- typical ----------------------------------------------------------------------------------- */

/* Sorting by |-log p - H| is sorting by distance of the logit from one value. */
typedef struct typical_order {
    float centre; /* the logit whose surprise is the entropy: log(total) + max - H */
} typical_order;

static int by_distance(const void *a, const void *b, void *context)
{
    const token_logit *x = a, *y = b;
    float centre = ((const typical_order *)context)->centre;
    float dx = fabsf(x->value - centre), dy = fabsf(y->value - centre);
    if (dx != dy)
        return dx < dy ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

#if defined(__APPLE__)
/* BSD's qsort_r has its context first, in the call and in the comparison. */
static int by_distance_bsd(void *context, const void *a, const void *b)
{
    return by_distance(a, b, context);
}
#endif

static void sort_by_distance(choice *c, typical_order *order)
{
#if defined(__APPLE__)
    qsort_r(c->list, (size_t)c->count, sizeof *c->list, order, by_distance_bsd);
#else
    qsort_r(c->list, (size_t)c->count, sizeof *c->list, by_distance, order);
#endif
}

/* Sum of weight * value of count values. */
static double weighted_sum(const float *weights, const float *values, int32_t count)
{
    double sum = 0;
    for (int32_t i = 0; i < count; i++)
        if (weights[i] > 0) /* a forbidden token's value is -INFINITY */
            sum += (double)weights[i] * (double)values[i];
    return sum;
}

/* The mean logit under the distribution: log(total) + max - H is exactly that. */
static float mean_logit(choice *c, double total)
{
    float weights[LOGITS_BLOCK], values[LOGITS_BLOCK];
    const float *row = c->count < 0 ? choice_row(c) : NULL;
    int32_t n = row ? c->n : c->count;
    double sum = 0;
    for (int32_t i = 0, count; i < n; i += count) {
        count = n - i < LOGITS_BLOCK ? n - i : LOGITS_BLOCK;
        for (int32_t j = 0; j < count; j++)
            values[j] = row ? row[i + j] : c->list[i + j].value;
        logits_exp(values, count, 1, -c->max, weights);
        sum += weighted_sum(weights, values, count);
    }
    return (float)(sum / total);
}

/* Nearer ones are counted into this many rings; what is left of one is sorted. */
#define RINGS       256
#define MOST_SORTED 512

typedef struct rings {
    float centre, low, scale;
} rings;

static int32_t ring_of(const rings *r, float value)
{
    float ring = (fabsf(value - r->centre) - r->low) * r->scale;
    if (!(ring > 0))
        return 0;
    return ring < RINGS - 1 ? (int32_t)ring : RINGS - 1;
}

static void weigh_rings(const choice *c, const rings *r, int32_t first, double *masses)
{
    float weights[LOGITS_BLOCK];
    memset(masses, 0, RINGS * sizeof *masses);
    for (int32_t i = first, count; i < c->count; i += count) {
        count = choice_weigh(c, i, 1, weights);
        for (int32_t j = 0; j < count; j++)
            masses[ring_of(r, c->list[i + j].value)] += (double)weights[j];
    }
}

/* Drops what lies outside of a ring and puts what lies inside of it first; returns where the ring's
 * own begin. */
static int32_t part_at_ring(choice *c, const rings *r, int32_t first, int32_t ring)
{
    int32_t count = first, inner = first;
    for (int32_t i = first; i < c->count; i++) {
        int32_t at = ring_of(r, c->list[i].value);
        if (at > ring)
            continue;
        token_logit it = c->list[i];
        c->list[count] = it;
        if (at < ring) {
            c->list[count] = c->list[inner];
            c->list[inner++] = it;
        }
        count++;
    }
    c->count = count;
    return inner;
}

/* Keeps the candidates nearest to the centre whose mass reaches wanted: selects the ring in which it
 * does, again and again, and sorts only there. */
static void keep_nearest(choice *c, typical_order *order, double wanted)
{
    double masses[RINGS], before = 0;
    float high = 0, low = 0;
    int32_t kept = 0;
    for (int32_t i = 0; i < c->count; i++)
        high = fmaxf(high, fabsf(c->list[i].value - order->centre));
    while (c->count - kept > MOST_SORTED && high > low) {
        rings r = {order->centre, low, RINGS / (high - low)};
        int32_t ring = 0, count = c->count - kept;
        weigh_rings(c, &r, kept, masses);
        while (ring < RINGS - 1 && before + masses[ring] < wanted)
            before += masses[ring++];
        kept = part_at_ring(c, &r, kept, ring);
        if (c->count - kept == count) /* all at one distance, as far as floats tell */
            break;
        high = low + (float)(ring + 1) / r.scale;
        low += (float)ring / r.scale;
    }
    choice rest = *c;
    rest.list += kept;
    rest.count -= kept;
    sort_by_distance(&rest, order);
    cut_at_mass(&rest, wanted - before);
    c->count = kept + rest.count;
}

static void collect_near(choice *c, float centre, float distance)
{
    const float *row = choice_row(c);
    c->count = 0;
    for (int32_t i = 0; i < c->n; i++)
        if (fabsf(row[i] - centre) <= distance && row[i] > -INFINITY)
            c->list[c->count++] = (token_logit){i, row[i]};
}

static void find_max(choice *c)
{
    c->max = -INFINITY;
    for (int32_t i = 0; i < c->count; i++)
        c->max = c->list[i].value > c->max ? c->list[i].value : c->max;
}

/* Locally typical sampling, arXiv 2202.00666: what is about as surprising as expected. */
void choice_keep_typical(choice *c, double p)
{
    double total;
    typical_order order;
    if (c->count < 0) {
        know_total(c);
        total = c->total;
        order.centre = mean_logit(c, total);
        for (float distance = 0.5f; c->count < 1 || choice_mass(c, 1) < p * total; distance *= 2) {
            collect_near(c, order.centre, distance);
            if (distance > 200)
                break;
        }
    } else {
        total = choice_mass(c, 1);
        order.centre = mean_logit(c, total);
    }
    keep_nearest(c, &order, p * total);
    find_max(c);
}
