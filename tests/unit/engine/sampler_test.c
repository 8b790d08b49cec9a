/* tests/unit/engine/sampler_test.c: every stage against a plain double-precision version of its
 * definition, alone and together; draws against the exact distribution by chi-square. */
#include "unit/unit.h"

#include <math.h>

#include "base/rng.h"
#include "engine/logits.h"
#include "engine/sampler.h"

#define MAX_VOCAB 70000

static float row[MAX_VOCAB];
static double exact[MAX_VOCAB]; /* the distribution that settings and row define */

static double normal(rng *r)
{
    double sum = -6;
    for (int i = 0; i < 12; i++)
        sum += rng_double(r);
    return sum;
}

static void fill_row(int32_t n, double spread, uint64_t seed)
{
    rng r;
    rng_init(&r, seed);
    for (int32_t i = 0; i < n; i++)
        row[i] = (float)(normal(&r) * spread);
}

/* ---- the definitions, one by one ----------------------------------------------------------------- */

typedef struct naive {
    token_id id;
    double value, p, key;
} naive;

static naive left[MAX_VOCAB];
static int32_t n_left;

static int by_key(const void *a, const void *b)
{
    const naive *x = a, *y = b;
    if (x->key != y->key)
        return x->key > y->key ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

static void soften(double temperature)
{
    double max = -INFINITY, sum = 0;
    for (int32_t i = 0; i < n_left; i++)
        max = left[i].value > max ? left[i].value : max;
    for (int32_t i = 0; i < n_left; i++)
        sum += left[i].p = exp((left[i].value - max) / temperature);
    for (int32_t i = 0; i < n_left; i++)
        left[i].p /= sum;
}

static void sort_by_value(void)
{
    for (int32_t i = 0; i < n_left; i++)
        left[i].key = left[i].value;
    qsort(left, (size_t)n_left, sizeof *left, by_key);
}

static void keep_mass(double p)
{
    double mass = 0;
    int32_t kept = 0;
    while (kept < n_left && (kept == 0 || mass < p))
        mass += left[kept++].p;
    n_left = kept;
}

static void define_typical(double p)
{
    double entropy = 0;
    soften(1);
    for (int32_t i = 0; i < n_left; i++)
        entropy -= left[i].p > 0 ? left[i].p * log(left[i].p) : 0;
    for (int32_t i = 0; i < n_left; i++)
        left[i].key = -fabs(-log(left[i].p) - entropy);
    qsort(left, (size_t)n_left, sizeof *left, by_key);
    keep_mass(p);
}

static void define(const sampler_options *o, int32_t n)
{
    n_left = 0;
    for (int32_t i = 0; i < n; i++)
        if (row[i] > -INFINITY)
            left[n_left++] = (naive){.id = i, .value = (double)row[i]};
    sort_by_value();
    if (o->top_k > 0 && o->top_k < n_left)
        n_left = o->top_k;
    if (o->typical_p < 1)
        define_typical((double)o->typical_p);
    sort_by_value();
    soften(1);
    if (o->top_p < 1)
        keep_mass((double)o->top_p);
    soften(1);
    if (o->min_p > 0) {
        int32_t kept = 0;
        while (kept < n_left && left[kept].p >= (double)o->min_p * left[0].p)
            kept++;
        n_left = kept;
    }
    soften((double)o->temperature);
    memset(exact, 0, sizeof exact);
    for (int32_t i = 0; i < n_left; i++)
        exact[left[i].id] = left[i].p;
}

/* ---- draws ------------------------------------------------------------------------------------- */

static sampler *open_sampler(int32_t n, const sampler_options *o)
{
    sampler *s = NULL;
    realm_error error;
    assert_status(sampler_open(&s, n, o, &error), REALM_OK, error);
    return s;
}

static token_id choose(sampler *s)
{
    token_id id = -1;
    realm_error error;
    assert_status(sampler_choose(s, row, NULL, &id, &error), REALM_OK, error);
    return id;
}

/* Tokens expected less than five times share one class. 3.3 standard deviations above the mean of
 * chi-square, twice as many for few classes: seeds are fixed, so a pass stays a pass. */
static void assert_draws(const sampler_options *o, int32_t n, int32_t n_draws)
{
    static int32_t counts[MAX_VOCAB];
    sampler *s = open_sampler(n, o);
    double chi = 0, rare = 0, rare_seen = 0;
    int classes = -1;
    define(o, n);
    memset(counts, 0, sizeof counts);
    for (int32_t i = 0; i < n_draws; i++)
        counts[choose(s)]++;
    for (int32_t i = 0; i < n; i++) {
        double expected = exact[i] * n_draws;
        if (expected == 0 && counts[i] > 0)
            fail_msg("token %d cannot be drawn but was, %d times", i, counts[i]);
        if (expected < 5) {
            rare += expected;
            rare_seen += counts[i];
            continue;
        }
        chi += (counts[i] - expected) * (counts[i] - expected) / expected;
        classes++;
    }
    if (rare > 1) {
        chi += (rare_seen - rare) * (rare_seen - rare) / rare;
        classes++;
    }
    if (classes > 0 && chi > classes + 5 * sqrt(2.0 * classes) + 6)
        fail_msg("chi-square is %g with %d degrees of freedom", chi, classes);
    sampler_close(s);
}

static sampler_options settings(float temperature)
{
    sampler_options o = SAMPLER_OPTIONS_DEFAULT;
    o.temperature = temperature;
    o.seed = 42;
    return o;
}

static void temperature_alone_gives_the_softmax(void **state)
{
    (void)state;
    static const float temperatures[] = {0.3f, 1, 1.7f};
    static const int32_t sizes[] = {1, 2, 17, 255, 256, 257, 3000};
    for (size_t t = 0; t < 3; t++)
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            sampler_options o = settings(temperatures[t]);
            fill_row(sizes[i], 2, i + 1);
            assert_draws(&o, sizes[i], 2000);
        }
}

static void each_truncation_alone_is_its_definition(void **state)
{
    (void)state;
    static const double spreads[] = {0.5, 3, 8};
    for (uint64_t seed = unit_is_emulated() ? 2 : 0; seed < 3; seed++) {
        fill_row(2000, spreads[seed], seed + 10);
        sampler_options o = settings(1.2f);
        for (o.top_k = 1; o.top_k < 3000; o.top_k = o.top_k * 7 + 1)
            assert_draws(&o, 2000, 800);
        o.top_k = 0;
        for (o.top_p = 0; o.top_p < 1; o.top_p += 0.3f)
            assert_draws(&o, 2000, 800);
        o.top_p = 1;
        for (o.min_p = 0.01f; o.min_p <= 1; o.min_p *= 3)
            assert_draws(&o, 2000, 800);
        o.min_p = 0;
        for (o.typical_p = 0; o.typical_p < 1; o.typical_p += 0.25f)
            assert_draws(&o, 2000, 800);
    }
}

static void truncations_together_are_applied_in_order(void **state)
{
    (void)state;
    rng r;
    rng_init(&r, 5);
    for (uint64_t round = 0; round < (unit_is_emulated() ? 10 : 40); round++) {
        sampler_options o = settings(0.2f + (float)rng_double(&r) * 2);
        fill_row(1500, 0.5 + rng_double(&r) * 6, round);
        if (rng_next(&r) % 2)
            o.top_k = (int32_t)(rng_next(&r) % 400);
        if (rng_next(&r) % 2)
            o.typical_p = 0.2f + (float)rng_double(&r) * 0.7f;
        if (rng_next(&r) % 2)
            o.top_p = 0.2f + (float)rng_double(&r) * 0.7f;
        if (rng_next(&r) % 2)
            o.min_p = (float)rng_double(&r) * 0.2f;
        assert_draws(&o, 1500, 800);
    }
}

static void large_vocabularies_work_the_same(void **state)
{
    (void)state;
    sampler_options o = settings(1);
    fill_row(MAX_VOCAB, 4, 3);
    assert_draws(&o, MAX_VOCAB, 400);
    o.top_p = 0.95f;
    assert_draws(&o, MAX_VOCAB, 60);
    o.typical_p = 0.9f;
    assert_draws(&o, MAX_VOCAB, 20);
}

/* ---- greedy, ties, seeds ----------------------------------------------------------------------- */

static void ties_go_to_the_smaller_id(void **state)
{
    (void)state;
    sampler_options o = settings(0);
    token_logit top[600];
    for (int32_t i = 0; i < 1000; i++)
        row[i] = (float)(i % 3);
    sampler *s = open_sampler(1000, &o);
    assert_int_equal(choose(s), 2);
    assert_int_equal(logits_argmax(row, 1000), 2);
    for (int32_t k = 1; k <= 600; k += 59) { /* both ways of selecting */
        assert_int_equal(logits_top(row, 1000, k, top), k);
        for (int32_t i = 0; i < k; i++) {
            int32_t nth = i < 333 ? 3 * i + 2 : 3 * (i - 333) + 1;
            assert_int_equal(top[i].id, nth);
        }
    }
    sampler_close(s);
    o = settings(1);
    o.top_k = 1;
    s = open_sampler(1000, &o);
    for (int i = 0; i < 10; i++)
        assert_int_equal(choose(s), 2);
    sampler_close(s);
}

static void the_k_largest_are_those_of_a_full_sort(void **state)
{
    (void)state;
    static token_logit top[MAX_VOCAB];
    for (int32_t n = 1; n < 6000; n = n * 5 + 3)
        for (int32_t k = 1; k <= n + 5; k = k * 4 + 1) {
            sampler_options o = settings(1);
            fill_row(n, 3, (uint64_t)n);
            row[n / 2] = -INFINITY;
            define(&o, n);
            sort_by_value();
            assert_int_equal(logits_top(row, n, k, top), k < n ? k : n);
            for (int32_t i = 0; i < k && i < n_left; i++)
                assert_int_equal(top[i].id, left[i].id);
        }
}

static void log_sum_exp_is_accurate(void **state)
{
    (void)state;
    for (int32_t n = 1; n < MAX_VOCAB; n = n * 7 + 5)
        for (double spread = 0.1; spread < 50; spread *= 6) {
            double sum = 0, max = -INFINITY;
            fill_row(n, spread, (uint64_t)n);
            for (int32_t i = 0; i < n; i++)
                max = (double)row[i] > max ? (double)row[i] : max;
            for (int32_t i = 0; i < n; i++)
                sum += exp((double)row[i] - max);
            assert_true(fabs((double)logits_log_sum_exp(row, n, NULL) - (max + log(sum))) <
                        2e-6 * (1 + fabs(max)));
        }
}

static void equal_seeds_give_equal_tokens_and_clones_go_on_alike(void **state)
{
    (void)state;
    sampler_options o = settings(1);
    realm_error error;
    fill_row(500, 1, 1);
    sampler *a = open_sampler(500, &o), *b = open_sampler(500, &o), *c = NULL;
    token_id first[50];
    int different = 0;
    for (int i = 0; i < 50; i++) {
        first[i] = choose(a);
        assert_int_equal(first[i], choose(b));
    }
    assert_status(sampler_clone(&c, a, &error), REALM_OK, error);
    for (int i = 0; i < 50; i++)
        assert_int_equal(choose(a), choose(c));
    assert_status(sampler_set(a, &o, &error), REALM_OK, error); /* the seed starts anew */
    for (int i = 0; i < 50; i++)
        assert_int_equal(choose(a), first[i]);
    o.seed = 43;
    assert_status(sampler_set(a, &o, &error), REALM_OK, error);
    for (int i = 0; i < 50; i++)
        different += choose(a) != first[i];
    assert_true(different > 10);
    sampler_close(a);
    sampler_close(b);
    sampler_close(c);
}

/* The first tokens of seed 1 on fixed logits: another machine or compiler must give them too. */
static void the_same_seed_gives_these_tokens_everywhere(void **state)
{
    (void)state;
    static const token_id expected[8] = {815, 744, 101, 743, 190, 593, 988, 531};
    sampler_options o = settings(0.9f);
    o.seed = 1;
    for (int32_t i = 0; i < 1000; i++)
        row[i] = (float)(i * 7919 % 1000) / 125.0f;
    sampler *s = open_sampler(1000, &o);
    for (int i = 0; i < 8; i++)
        assert_int_equal(choose(s), expected[i]);
    sampler_close(s);
}

/* ---- what changes the row ---------------------------------------------------------------------- */

static void penalties_are_the_formulas_of_their_papers(void **state)
{
    (void)state;
    enum { N = 50 };
    float plain[N], changed[N];
    rng r;
    rng_init(&r, 9);
    for (int round = 0; round < 200; round++) {
        sampler_options o = settings(0);
        token_id history[300];
        int counts[N] = {0};
        realm_error error;
        o.penalty_tokens = round % 3 == 0 ? -1 : 1 + (int32_t)(rng_next(&r) % 100);
        o.repetition_penalty = round % 2 ? 0.5f + (float)rng_double(&r) * 2 : 1;
        o.frequency_penalty = (float)(rng_next(&r) % 3) * 0.4f;
        o.presence_penalty = (float)(rng_next(&r) % 3) * 0.7f;
        sampler *s = open_sampler(N, &o);
        int32_t n = (int32_t)(rng_next(&r) % 300);
        for (int32_t i = 0; i < n; i++)
            history[i] = (token_id)(rng_next(&r) % N);
        sampler_see(s, history, n / 2);
        for (int32_t i = n / 2; i < n; i++)
            assert_status(sampler_accept(s, history[i], &error), REALM_OK, error);
        for (int32_t i = 0; i < n; i++)
            if (o.penalty_tokens < 0 || i >= n - o.penalty_tokens)
                counts[history[i]]++;
        fill_row(N, 2, (uint64_t)round);
        for (int32_t i = 0; i < N; i++) {
            plain[i] = changed[i] = row[i];
            if (counts[i] > 0) {
                changed[i] = plain[i] > 0 ? plain[i] / o.repetition_penalty
                                          : plain[i] * o.repetition_penalty;
                changed[i] -= (float)counts[i] * o.frequency_penalty;
                changed[i] -= o.presence_penalty;
            }
        }
        assert_int_equal(choose(s), logits_argmax(changed, N));
        assert_memory_equal(row, plain, sizeof plain); /* logits are not changed */
        sampler_close(s);
    }
}

static void history_survives_new_settings(void **state)
{
    (void)state;
    sampler_options o = settings(0);
    realm_error error;
    token_id seen[2] = {3, 4};
    for (int32_t i = 0; i < 10; i++)
        row[i] = (float)i;
    sampler *s = open_sampler(10, &o);
    token_id nine = 9;
    sampler_see(s, seen, 2);
    sampler_see(s, &nine, 1);
    assert_int_equal(choose(s), 9);
    o.presence_penalty = 5;
    assert_status(sampler_set(s, &o, &error), REALM_OK, error);
    assert_int_equal(choose(s), 8);
    o.penalty_tokens = -1;
    assert_status(sampler_set(s, &o, &error), REALM_OK, error);
    assert_int_equal(choose(s), 8);
    sampler_close(s);
}

static void biases_add_and_forbid(void **state)
{
    (void)state;
    sampler_options o = settings(0);
    realm_error error;
    token_id id, ids[3] = {7, 9, 8};
    float values[3] = {100, -INFINITY, NAN};
    for (int32_t i = 0; i < 10; i++)
        row[i] = (float)i;
    sampler *s = open_sampler(10, &o);
    assert_status(sampler_bias(s, ids, values, 1, &error), REALM_OK, error);
    assert_int_equal(choose(s), 7);
    assert_status(sampler_bias(s, ids + 1, values + 1, 1, &error), REALM_OK, error);
    assert_int_equal(choose(s), 8);
    assert_int_equal(sampler_bias(s, ids, values, 3, &error), REALM_INVALID);
    assert_int_equal(choose(s), 8); /* a refused bias changes nothing */
    for (int32_t i = 0; i < 10; i++)
        row[i] = -INFINITY;
    row[9] = 1;
    for (o.temperature = 0; o.temperature < 2; o.temperature++) {
        assert_status(sampler_set(s, &o, &error), REALM_OK, error);
        assert_int_equal(sampler_choose(s, row, NULL, &id, &error), REALM_INVALID);
        assert_holds(error.message, "no token is left");
    }
    sampler_close(s);
}

static void logits_that_are_no_numbers_are_refused_by_every_stage(void **state)
{
    (void)state;
    static const float odd[] = {NAN, INFINITY};
    realm_error error;
    token_id id;
    for (int round = 0; round < 24; round++) {
        sampler_options o = settings(round % 3 ? 1 : 0);
        o.top_k = round % 4 == 1 ? 5 : 0;
        o.top_p = round % 4 == 2 ? 0.5f : 1;
        o.typical_p = round % 4 == 3 ? 0.5f : 1;
        fill_row(600, 2, 1);
        row[round * 25] = odd[round % 2];
        sampler *s = open_sampler(600, &o);
        assert_int_equal(sampler_choose(s, row, NULL, &id, &error), REALM_INVALID);
        sampler_close(s);
    }
    for (int32_t i = 0; i < 600; i++)
        row[i] = NAN;
    token_logit top[300];
    assert_int_equal(logits_top(row, 600, 300, top), 300);
    assert_in_range(logits_argmax(row, 600), 0, 599);
    assert_true(isnan(logits_log_sum_exp(row, 600, NULL)));
}

/* ---- with a device's digest ------------------------------------------------------------------------ */

typedef struct made_digest {
    float peaks[MAX_VOCAB / PEAK_COLS + 1];
    double sums[MAX_VOCAB / PEAK_COLS + 1];
    token_logit tops[TOP_COLUMNS];
} made_digest;

/* As a device would make it of row [n]. */
static row_digest make_digest(made_digest *made, int32_t n, float scale)
{
    for (int32_t i = 0; i < n; i++) {
        float *peak = &made->peaks[i / PEAK_COLS];
        *peak = i % PEAK_COLS == 0 || row[i] > *peak || isnan(row[i]) ? row[i] : *peak;
    }
    int has_nan = 0;
    float max = logits_max(row, n, &has_nan);
    logits_top(row, n, TOP_COLUMNS, made->tops);
    if (scale != 0)
        logits_exp_sums(row, n, scale, -max * scale, made->sums);
    return (row_digest){
        .peaks = made->peaks, .tops = made->tops, .sums = made->sums, .scale = scale};
}

/* What reading the row says, its digest must say, ties and refusals included. */
static void digests_of_the_row_choose_the_same(void **state)
{
    (void)state;
    static made_digest made;
    realm_error error;
    for (int round = 0; round < 200; round++) {
        int32_t n = 1 + round * 13;
        sampler_options o = settings(round % 2 ? 0.8f : 0);
        o.seed = (uint64_t)round;
        o.top_k = round % 6 == 1 ? 40 : 0;
        o.repetition_penalty = round % 5 == 2 ? 1.5f : 1; /* then the row's digest does not count */
        fill_row(n, 3, (uint64_t)round);
        for (int32_t i = 0; i < n; i++)
            row[i] = round % 4 ? row[i] : roundf(row[i]);
        if (round % 10 == 9)
            row[n / 2] = round % 20 == 9 ? NAN : round % 40 == 19 ? INFINITY : -INFINITY;
        const row_digest full = make_digest(&made, n, 1 / 0.8f);
        const row_digest digests[] = {{0}, {.peaks = full.peaks}, full};
        token_id ids[3] = {-1, -1, -1};
        realm_status statuses[3];
        for (int with = 0; with < 3; with++) {
            sampler *s = open_sampler(n, &o);
            const token_id seen[] = {logits_argmax(row, n)};
            sampler_see(s, seen, 1);
            statuses[with] = sampler_choose(s, row, &digests[with], &ids[with], &error);
            sampler_close(s);
        }
        for (int with = 1; with < 3; with++) {
            assert_int_equal(statuses[0], statuses[with]);
            assert_int_equal(ids[0], ids[with]);
        }
        float sum = logits_log_sum_exp(row, n, NULL), same;
        made.sums[0] = NAN;
        same = logits_log_sum_exp(row, n, &full);
        assert_memory_equal(&sum, &same, sizeof sum);
        const row_digest plain = make_digest(&made, n, 1);
        same = logits_log_sum_exp(row, n, &plain);
        assert_memory_equal(&sum, &same, sizeof sum);
    }
}

/* Settings from nearly greedy to nearly flat, so that draws end within the largest, just beyond them and far from
 * them; the same samplers go on over many rows. */
static void draws_with_and_without_digests_are_the_same(void **state)
{
    (void)state;
    static made_digest made;
    static const float temperatures[] = {0.2f, 0.7f, 1, 1.5f, 4};
    static const float top_ps[] = {1, 1, 0.999f, 0.95f, 0.5f, 0.1f, 0};
    static const float min_ps[] = {0, 0, 0.001f, 0.05f, 0.5f};
    static const double spreads[] = {0.05, 1, 2, 4, 10, 60};
    static const int32_t sizes[] = {40, 64, 65, 700, 32003, 70000};
    enum { SAMPLERS = 60, ROWS = 40 };
    rng r;
    int with_sums = 0, without_lists = 0;
    rng_init(&r, 2026);
    for (int k = 0; k < SAMPLERS; k++) {
        int32_t n = sizes[k % 6];
        sampler_options o = settings(temperatures[rng_next(&r) % 5]);
        o.top_p = top_ps[rng_next(&r) % 7];
        o.min_p = min_ps[rng_next(&r) % 5];
        o.top_k = rng_next(&r) % 5 ? 0 : 1 + (int32_t)(rng_next(&r) % 100);
        o.typical_p = rng_next(&r) % 8 ? 1 : 0.9f;
        o.frequency_penalty = rng_next(&r) % 8 ? 0 : 0.5f;
        o.seed = (uint64_t)k;
        sampler *without = open_sampler(n, &o), *with = open_sampler(n, &o);
        without_lists += o.top_k == 0;
        for (int i = 0; i < ROWS; i++) {
            token_id ids[2] = {-1, -2};
            realm_error error;
            fill_row(n, spreads[rng_next(&r) % 6], rng_next(&r));
            if (i % 8 == 7) /* ties at every border */
                for (int32_t j = 0; j < n; j++)
                    row[j] = roundf(row[j]);
            if (i % 8 == 5)
                for (int32_t j = 0; j < n; j++)
                    row[j] = j % 3 ? row[j] : -INFINITY;
            /* Now and then the sums are not of the scale that is wanted, or there are none. */
            float scale = sampler_wish(with).scale;
            with_sums += scale != 0;
            row_digest digest = make_digest(&made, n, i % 16 == 11 ? 0.5f : scale);
            if (i % 16 == 3)
                made.sums[0] = NAN;
            assert_status(sampler_choose(without, row, NULL, &ids[0], &error), REALM_OK, error);
            assert_status(sampler_choose(with, row, &digest, &ids[1], &error), REALM_OK, error);
            assert_int_equal(ids[0], ids[1]);
            assert_status(sampler_accept(without, ids[0], &error), REALM_OK, error);
            assert_status(sampler_accept(with, ids[1], &error), REALM_OK, error);
        }
        sampler_close(without);
        sampler_close(with);
    }
    assert_true(with_sums > ROWS * SAMPLERS / 3 && without_lists > SAMPLERS / 2);
}

/* With sums and tops alone a draw must come from them: a row that is no longer what they are of shows what is read. */
static void a_digest_spares_the_row(void **state)
{
    (void)state;
    static made_digest made;
    enum { SIZE = 32003 };
    realm_error error;
    for (int round = 0; round < 300; round++) {
        sampler_options o = settings(1);
        token_id ids[2] = {-1, -1};
        o.top_p = round % 3 == 1 ? 0.9f : 1;
        o.min_p = round % 3 == 2 ? 0.1f : 0;
        o.seed = (uint64_t)round;
        fill_row(SIZE, o.top_p < 1 ? 10 : 4, (uint64_t)round);
        for (int spoilt = 0; spoilt < 2; spoilt++) {
            sampler *s = open_sampler(SIZE, &o);
            row_digest digest = make_digest(&made, SIZE, sampler_wish(s).scale);
            token_id chosen = ids[0];
            for (int32_t i = 0; spoilt && i < SIZE; i++)
                if (i / PEAK_COLS != chosen / PEAK_COLS && i != made.tops[0].id)
                    row[i] = made.tops[0].value;
            assert_status(sampler_choose(s, row, &digest, &ids[spoilt], &error), REALM_OK, error);
            sampler_close(s);
        }
        assert_int_equal(ids[0], ids[1]);
    }
}

static void settings_out_of_range_are_named(void **state)
{
    (void)state;
    static const struct {
        sampler_options o;
        const char *name;
    } cases[] = {
        {{.temperature = -1}, "temperature"},
        {{.temperature = NAN}, "temperature"},
        {{.top_k = -1}, "top_k"},
        {{.top_p = -0.1f}, "top_p"},
        {{.top_p = 1, .min_p = 2}, "min_p"},
        {{.top_p = 1, .typical_p = -0.1f}, "typical_p"},
        {{.top_p = 1, .typical_p = 1, .repetition_penalty = 0}, "repetition_penalty"},
        {{.top_p = 1, .typical_p = 1, .repetition_penalty = 1, .frequency_penalty = NAN},
         "frequency_penalty"},
        {{.top_p = 1, .typical_p = 1, .repetition_penalty = 1, .presence_penalty = 1000},
         "presence_penalty"},
        {{.top_p = 1, .typical_p = 1, .repetition_penalty = 1, .penalty_tokens = -2},
         "penalty_tokens"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        realm_error error;
        sampler *s = NULL;
        assert_int_equal(sampler_open(&s, 10, &cases[i].o, &error), REALM_INVALID);
        assert_holds(error.message, cases[i].name);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(temperature_alone_gives_the_softmax),
        cmocka_unit_test(each_truncation_alone_is_its_definition),
        cmocka_unit_test(truncations_together_are_applied_in_order),
        cmocka_unit_test(large_vocabularies_work_the_same),
        cmocka_unit_test(ties_go_to_the_smaller_id),
        cmocka_unit_test(the_k_largest_are_those_of_a_full_sort),
        cmocka_unit_test(log_sum_exp_is_accurate),
        cmocka_unit_test(equal_seeds_give_equal_tokens_and_clones_go_on_alike),
        cmocka_unit_test(the_same_seed_gives_these_tokens_everywhere),
        cmocka_unit_test(penalties_are_the_formulas_of_their_papers),
        cmocka_unit_test(history_survives_new_settings),
        cmocka_unit_test(biases_add_and_forbid),
        cmocka_unit_test(logits_that_are_no_numbers_are_refused_by_every_stage),
        cmocka_unit_test(digests_of_the_row_choose_the_same),
        cmocka_unit_test(draws_with_and_without_digests_are_the_same),
        cmocka_unit_test(a_digest_spares_the_row),
        cmocka_unit_test(settings_out_of_range_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
