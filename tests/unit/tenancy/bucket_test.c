/* tests/unit/tenancy/bucket_test.c: a token bucket against a model of it in exact fractions. */
#include "unit/unit.h"

#include "base/rng.h"
#include "tenancy/bucket.h"

#define SECOND 1000000000ull

/* The same bucket as a sum over its history: what it holds is what it held plus rate times time, never over
 * a minute's worth. Kept as whole tokens and a rest in 1/60e9, with none of bucket.c's arithmetic. */
typedef struct model {
    int64_t rate, whole;
    uint64_t rest; /* below 60e9 */
    uint64_t at;
} model;

static void model_advance(model *m, uint64_t now)
{
    /* In steps small enough that rate * step fits 64 bits. */
    while (m->at < now) {
        uint64_t step = now - m->at;
        uint64_t most = UINT64_MAX / 2 / (uint64_t)m->rate;
        if (step > most)
            step = most;
        uint64_t units = step * (uint64_t)m->rate + m->rest;
        m->whole += (int64_t)(units / 60000000000ull);
        m->rest = units % 60000000000ull;
        m->at += step;
        if (m->whole >= m->rate) {
            m->whole = m->rate;
            m->rest = 0;
        }
    }
}

static int model_take(model *m, int64_t count, uint64_t now)
{
    model_advance(m, now);
    int64_t needed = count < m->rate ? count : m->rate;
    if (m->whole < needed)
        return 0;
    m->whole -= count;
    return 1;
}

static void a_random_history_is_that_of_the_model(void **state)
{
    (void)state;
    static const int64_t rates[] = {1, 7, 60, 500, 999983, 1000000000000};
    for (size_t r = 0; r < sizeof rates / sizeof *rates; r++) {
        rng random;
        rng_init(&random, r + 1);
        bucket b;
        uint64_t now = 12345;
        bucket_init(&b, rates[r], now);
        model m = {rates[r], rates[r], 0, now};
        int refused = 0;
        for (int i = 0; i < (unit_is_emulated() ? 2000 : 50000); i++) {
            /* Time passes in pieces from a nanosecond to some seconds; takings fit the rate. */
            now += rng_next(&random) % (1ull << (rng_next(&random) % 33));
            int64_t count = 1 + (int64_t)(rng_next(&random) % (uint64_t)(rates[r] / 50 + 1));
            if (rng_next(&random) % 100 == 0)
                count = rates[r] * 2; /* more than it holds: a debt */
            if (rng_next(&random) % 10 == 0) {
                int64_t back = (int64_t)(rng_next(&random) % 5) - 2;
                bucket_settle(&b, back, now);
                model_advance(&m, now);
                m.whole += back;
                if (m.whole >= m.rate) {
                    m.whole = m.rate;
                    m.rest = 0;
                }
            }
            int taken = bucket_take(&b, count, now);
            assert_int_equal(taken, model_take(&m, count, now));
            refused += !taken;
            assert_int_equal(bucket_remaining(&b, now), m.whole > 0 ? m.whole : 0);
        }
        assert_true(refused > 10);
    }
}

static void five_hundred_a_minute_are_five_hundred(void **state)
{
    (void)state;
    bucket b;
    bucket_init(&b, 500, 0);
    int passed = 0;
    /* Asked every 10 ms for ten minutes: the first 500 at once and then 500 a minute. */
    for (uint64_t now = 0; now < 600 * SECOND; now += SECOND / 100)
        passed += bucket_take(&b, 1, now);
    assert_int_equal(passed, 500 + 500 * 10 - 1); /* the last refill comes at 600 s */
}

static void many_small_steps_refill_as_much_as_one(void **state)
{
    (void)state;
    bucket slow, fast;
    bucket_init(&slow, 7, 0);
    bucket_init(&fast, 7, 0);
    assert_true(bucket_take(&slow, 7, 0) && bucket_take(&fast, 7, 0));
    for (uint64_t now = 0; now <= 30 * SECOND; now += 30001)
        bucket_remaining(&slow, now);
    bucket_remaining(&slow, 30 * SECOND);
    bucket_remaining(&fast, 30 * SECOND);
    assert_true(slow.level == fast.level);
}

static void the_wait_is_right_to_the_nanosecond(void **state)
{
    (void)state;
    rng random;
    rng_init(&random, 3);
    for (int i = 0; i < 2000; i++) {
        bucket b;
        int64_t rate = 1 + (int64_t)(rng_next(&random) % 100000);
        bucket_init(&b, rate, 0);
        bucket_settle(&b, -(int64_t)(rng_next(&random) % (uint64_t)(3 * rate)), 0);
        int64_t count = 1 + (int64_t)(rng_next(&random) % (uint64_t)rate);
        uint64_t wait = bucket_wait_ns(&b, count, 0);
        bucket early = b;
        if (wait)
            assert_false(bucket_take(&early, count, wait - 1));
        assert_true(bucket_take(&b, count, wait));
    }
}

static void a_debt_is_paid_before_anything_passes(void **state)
{
    (void)state;
    bucket b;
    bucket_init(&b, 60, 0); /* one a second */
    assert_true(bucket_take(&b, 60, 0));
    bucket_settle(&b, -30, 0);
    assert_int_equal(bucket_remaining(&b, 0), 0);
    assert_false(bucket_take(&b, 1, 30 * SECOND));
    assert_false(bucket_take(&b, 1, 31 * SECOND - 1));
    assert_true(bucket_take(&b, 1, 31 * SECOND));
    assert_true(bucket_full_ns(&b, 31 * SECOND) == 60 * SECOND);
}

static void another_rate_gives_nobody_a_fresh_minute(void **state)
{
    (void)state;
    bucket b;
    bucket_init(&b, 100, 0);
    assert_true(bucket_take(&b, 90, 0));
    bucket_change(&b, 200, 0);
    assert_int_equal(bucket_remaining(&b, 0), 110);
    bucket_change(&b, 50, 0);
    assert_int_equal(bucket_remaining(&b, 0), 0);
    assert_false(bucket_take(&b, 1, 0));
    bucket_change(&b, 0, 0);
    assert_true(bucket_take(&b, INT64_MAX, 0));
}

static void a_clock_that_stands_still_or_goes_back_refills_nothing(void **state)
{
    (void)state;
    bucket b;
    bucket_init(&b, 10, 100 * SECOND);
    assert_true(bucket_take(&b, 10, 100 * SECOND));
    assert_false(bucket_take(&b, 1, 100 * SECOND));
    assert_false(bucket_take(&b, 1, 50 * SECOND));
    assert_int_equal(bucket_remaining(&b, 106 * SECOND), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_random_history_is_that_of_the_model),
        cmocka_unit_test(five_hundred_a_minute_are_five_hundred),
        cmocka_unit_test(many_small_steps_refill_as_much_as_one),
        cmocka_unit_test(the_wait_is_right_to_the_nanosecond),
        cmocka_unit_test(a_debt_is_paid_before_anything_passes),
        cmocka_unit_test(another_rate_gives_nobody_a_fresh_minute),
        cmocka_unit_test(a_clock_that_stands_still_or_goes_back_refills_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
