/* tests/unit/tenancy/meter_test.c: admission, settlement and budgets, with a clock of the test's own. */
#include "unit/unit.h"

#include <pthread.h>
#include <time.h>

#include "base/rng.h"
#include "tenancy/meter.h"

#define SECOND 1000000000ull
#define DAY_MS 86400000ll

static realm_error error;
static uint64_t g_now;
static int64_t g_wall_ms;

static uint64_t now(void *context)
{
    (void)context;
    return g_now;
}

static int64_t wall(void *context)
{
    (void)context;
    return g_wall_ms;
}

static const tenancy_clock clock_of_test = {now, wall, NULL};

static meter *open_meter(tenant_settings s)
{
    meter *m;
    assert_status(meter_open(&m, &s, &clock_of_test, &error), REALM_OK, error);
    return m;
}

static void pass(uint64_t seconds)
{
    g_now += seconds * SECOND;
    g_wall_ms += (int64_t)seconds * 1000;
}

static void set_day(const char *day)
{
    g_wall_ms = meter_day_parse(day) * DAY_MS;
}

static void requests_a_minute_are_held_and_said(void **state)
{
    (void)state;
    tenant_settings s = settings_default();
    s.requests_per_minute = 60;
    meter *m = open_meter(s);
    admission a;
    for (int i = 0; i < 60; i++) {
        assert_status(meter_admit(m, 0, &a, &error), REALM_OK, error);
        assert_int_equal(a.rates.requests.limit, 60);
        assert_int_equal(a.rates.requests.remaining, 59 - i);
        assert_true(a.rates.requests.reset_ns == (uint64_t)(i + 1) * SECOND);
        assert_int_equal(a.rates.tokens.limit, 0);
        meter_settle(&a, 0);
    }
    assert_int_equal(meter_admit(m, 0, &a, &error), REALM_QUOTA);
    assert_int_equal(a.refusal, METER_REQUESTS);
    assert_true(a.should_retry && a.retry_ns == SECOND);
    assert_holds(error.message, "requests a minute");
    assert_null(a.meter);
    pass(1);
    assert_status(meter_admit(m, 0, &a, &error), REALM_OK, error);
    meter_settle(&a, 0);
    meter_stats stats;
    meter_stats_get(m, &stats);
    assert_int_equal(stats.admitted, 61);
    assert_int_equal(stats.refused[METER_REQUESTS], 1);
    assert_int_equal(stats.in_flight, 0);
    meter_release(m);
}

static void tokens_are_reserved_and_settled(void **state)
{
    (void)state;
    tenant_settings s = settings_default();
    s.tokens_per_minute = 600;
    meter *m = open_meter(s);
    admission a, b;
    assert_status(meter_admit(m, 400, &a, &error), REALM_OK, error);
    assert_int_equal(a.rates.tokens.remaining, 200);
    assert_true(meter_take(&a, 1000000)); /* no budget: what was asked for */
    meter_give(&a, 1000000);
    assert_int_equal(meter_admit(m, 400, &b, &error), REALM_QUOTA);
    assert_int_equal(b.refusal, METER_TOKENS);
    assert_true(b.retry_ns == 20 * SECOND); /* 200 are missing at ten a second */
    meter_settle(&a, 100);                  /* 300 come back */
    assert_int_equal(a.rates.tokens.remaining, 500);
    meter_settle(&a, 100); /* a second time is nothing */
    assert_status(meter_admit(m, 400, &b, &error), REALM_OK, error);
    meter_settle(&b, 1000); /* took 600 more than it had said: a debt of 500 */
    assert_int_equal(b.rates.tokens.remaining, 0);
    assert_int_equal(meter_admit(m, 1, &a, &error), REALM_QUOTA);
    assert_true(a.retry_ns > 50 * SECOND - 1 && a.retry_ns <= 51 * SECOND);
    meter_release(m);
}

static void requests_at_once_are_counted(void **state)
{
    (void)state;
    tenant_settings s = settings_default();
    s.concurrent_requests = 2;
    s.requests_per_minute = 1000;
    meter *m = open_meter(s);
    admission a, b, c;
    assert_status(meter_admit(m, 1, &a, &error), REALM_OK, error);
    assert_status(meter_admit(m, 1, &b, &error), REALM_OK, error);
    assert_int_equal(meter_admit(m, 1, &c, &error), REALM_QUOTA);
    assert_int_equal(c.refusal, METER_CONCURRENT);
    assert_int_equal(c.rates.requests.remaining, 998); /* a refusal takes nothing */
    meter_settle(&a, 1);
    assert_status(meter_admit(m, 1, &c, &error), REALM_OK, error);
    meter_settle(&b, 1);
    meter_settle(&c, 1);
    meter_release(m);
}

static void a_spent_budget_says_not_to_try_again(void **state)
{
    (void)state;
    set_day("2026-02-27");
    tenant_settings s = settings_default();
    s.tokens_per_day = 100;
    s.tokens_per_month = 150;
    meter *m = open_meter(s);
    admission a;
    assert_status(meter_admit(m, 10, &a, &error), REALM_OK, error);
    assert_false(meter_take(&a, 101)); /* no more than there is, and then nothing */
    assert_true(meter_take(&a, 100));
    assert_false(meter_take(&a, 1));
    admission other;
    assert_int_equal(meter_admit(m, 10, &other, &error), REALM_QUOTA);
    assert_int_equal(other.refusal, METER_BUDGET);
    assert_true(other.should_retry);
    meter_give(&a, 1);
    assert_status(meter_admit(m, 10, &other, &error), REALM_OK, error); /* one token is one */
    assert_true(meter_take(&other, 1));
    assert_false(meter_take(&other, 1));
    meter_settle(&other, 1);
    meter_settle(&a, 99);
    assert_int_equal(meter_admit(m, 1, &a, &error), REALM_QUOTA);
    assert_int_equal(a.refusal, METER_SPENT);
    assert_false(a.should_retry);
    assert_true(a.retry_ns == 86400 * SECOND);
    assert_holds(error.message, "day");
    pass(86400); /* the day turns, the month does not */
    assert_status(meter_admit(m, 1, &a, &error), REALM_OK, error);
    assert_false(meter_take(&a, 51));
    assert_true(meter_take(&a, 50));
    meter_settle(&a, 50);
    assert_int_equal(meter_admit(m, 1, &a, &error), REALM_QUOTA);
    assert_false(a.should_retry);
    assert_holds(error.message, "month");
    pass(86400); /* the first of March */
    assert_status(meter_admit(m, 1, &a, &error), REALM_OK, error);
    assert_true(meter_take(&a, 100));
    meter_settle(&a, 0);
    meter_release(m);
}

/* What is taken before midnight by who ends after it belongs to the new day, as usage's rows say. */
static void a_request_over_midnight_is_the_new_days(void **state)
{
    (void)state;
    set_day("2026-05-05");
    tenant_settings s = settings_default();
    s.tokens_per_day = 100;
    meter *m = open_meter(s);
    admission a, b;
    assert_status(meter_admit(m, 1, &a, &error), REALM_OK, error);
    assert_status(meter_admit(m, 1, &b, &error), REALM_OK, error);
    assert_true(meter_take(&a, 60));
    assert_true(meter_take(&b, 40));
    meter_settle(&b, 40);
    assert_false(meter_take(&a, 1));
    pass(86400);
    assert_true(meter_take(&a, 40));
    assert_false(meter_take(&a, 1));
    meter_settle(&a, 100);
    meter_stats stats;
    meter_stats_get(m, &stats);
    assert_int_equal(stats.tokens_today, 100);
    assert_int_equal(stats.taken, 0);
    meter_release(m);
}

/* Whatever happens in whatever order: a budget is used to the last token and not passed by one. */
static void a_budget_is_used_to_the_last_token_and_never_passed(void **state)
{
    (void)state;
    set_day("2026-05-05");
    rng random;
    rng_init(&random, 9);
    for (int round = 0; round < 50; round++) {
        tenant_settings s = settings_default();
        s.tokens_per_day = 1 + (int64_t)(rng_next(&random) % 5000);
        meter *m = open_meter(s);
        admission running[16] = {{0}};
        int64_t used = 0, took[16] = {0};
        for (int i = 0; i < 20000; i++) {
            uint64_t n = rng_next(&random) % 16;
            admission *a = &running[n];
            uint64_t tokens = rng_next(&random) % 20;
            if (!a->meter) {
                took[n] = 0;
                meter_admit(m, (int64_t)tokens, a, NULL);
            } else if (tokens == 0) {
                used += took[n];
                meter_settle(a, took[n]);
            } else if (meter_take(a, tokens)) {
                uint64_t unused = rng_next(&random) % 4 ? 0 : rng_next(&random) % (tokens + 1);
                meter_give(a, unused);
                took[n] += (int64_t)(tokens - unused);
            }
        }
        for (int i = 0; i < 16; i++) {
            if (!running[i].meter)
                continue;
            while (meter_take(&running[i], 1))
                took[i]++;
            used += took[i];
            meter_settle(&running[i], took[i]);
        }
        admission last;
        while (meter_admit(m, 1, &last, NULL) == REALM_OK) {
            used += meter_take(&last, 1);
            meter_settle(&last, 1);
        }
        assert_int_equal(last.refusal, METER_SPENT);
        assert_int_equal(used, s.tokens_per_day);
        meter_stats stats;
        meter_stats_get(m, &stats);
        assert_int_equal(stats.tokens_today, used);
        meter_release(m);
    }
}

static void *take_all(void *context)
{
    admission *a = context;
    int64_t took = 0;
    while (meter_take(a, 1)) {
        took++;
        if (took % 7 == 0) {
            meter_give(a, 1);
            took--;
            if (!meter_take(a, 1))
                break;
            took++;
        }
    }
    return (void *)(intptr_t)took;
}

static void many_threads_use_a_budget_exactly(void **state)
{
    (void)state;
    set_day("2026-05-05");
    tenant_settings s = settings_default();
    s.tokens_per_day = 20000;
    meter *m = open_meter(s);
    admission running[4];
    pthread_t threads[4];
    int64_t used = 0;
    for (int i = 0; i < 4; i++)
        assert_status(meter_admit(m, 1, &running[i], &error), REALM_OK, error);
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, take_all, &running[i]), 0);
    for (int i = 0; i < 4; i++) {
        void *took;
        pthread_join(threads[i], &took);
        used += (intptr_t)took;
        meter_settle(&running[i], (intptr_t)took);
    }
    while (meter_admit(m, 1, &running[0], NULL) ==
           REALM_OK) { /* given back when nobody looked any more */
        used += meter_take(&running[0], 1);
        meter_settle(&running[0], 1);
    }
    assert_int_equal(used, 20000);
    meter_release(m);
}

static void what_was_used_before_counts(void **state)
{
    (void)state;
    set_day("2026-05-05");
    tenant_settings s = settings_default();
    s.tokens_per_day = 100;
    s.tokens_per_month = 1000;
    meter *m = open_meter(s);
    admission a;
    meter_begin(m, meter_day_parse("2026-05-05"), 90, 0);
    meter_begin(m, meter_day_parse("2026-05-05"), 0, 995);
    assert_status(meter_admit(m, 1, &a, &error), REALM_OK, error);
    assert_false(meter_take(&a, 6));
    assert_true(meter_take(&a, 5));
    meter_settle(&a, 0);
    meter_release(m);
}

static void new_settings_hold_at_once(void **state)
{
    (void)state;
    tenant_settings s = settings_default();
    meter *m = open_meter(s);
    admission a, b;
    assert_status(meter_admit(m, 5, &a, &error), REALM_OK, error);
    s.concurrent_requests = 1;
    s.requests_per_minute = 1;
    meter_change(m, &s);
    assert_int_equal(meter_admit(m, 5, &b, &error), REALM_QUOTA);
    meter_settle(&a, 5);
    assert_status(meter_admit(m, 5, &b, &error), REALM_OK, error);
    meter_settle(&b, 5);
    assert_int_equal(meter_admit(m, 5, &b, &error), REALM_QUOTA);
    assert_int_equal(b.refusal, METER_REQUESTS);
    meter_release(m);
}

/* Against the C library's calendar. */
static void days_are_those_of_the_calendar(void **state)
{
    (void)state;
    char text[11], theirs[32];
    for (int32_t day = 0; day < 80000; day++) {
        time_t seconds = (time_t)day * 86400;
        struct tm parts;
        gmtime_r(&seconds, &parts);
        strftime(theirs, sizeof theirs, "%Y-%m-%d", &parts);
        assert_string_equal(meter_day_text(day, text), theirs);
        assert_int_equal(meter_day_parse(theirs), day);
    }
    static const char *const wrong[] = {"",           "2026-02-30", "2026-13-01",  "2026-00-10",
                                        "2026-1-1",   "1969-12-31", "2026-01-01x", "2026/01/01",
                                        "----------", "2026-01-00"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_int_equal(meter_day_parse(wrong[i]), -1);
}

static void durations_read_as_clients_expect(void **state)
{
    (void)state;
    static const struct {
        uint64_t ns;
        const char *text;
    } cases[] = {{0, "0s"},
                 {1, "1ms"},
                 {120 * 1000000, "120ms"},
                 {SECOND, "1s"},
                 {1500 * 1000000ull, "1.5s"},
                 {59999 * 1000000ull, "59.999s"},
                 {60 * SECOND, "1m0s"},
                 {360 * SECOND, "6m0s"},
                 {3600 * SECOND, "1h0m0s"},
                 {90061 * SECOND, "25h1m1s"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[METER_DURATION_SIZE];
        assert_string_equal(meter_duration(cases[i].ns, text), cases[i].text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_a_minute_are_held_and_said),
        cmocka_unit_test(tokens_are_reserved_and_settled),
        cmocka_unit_test(requests_at_once_are_counted),
        cmocka_unit_test(a_spent_budget_says_not_to_try_again),
        cmocka_unit_test(a_request_over_midnight_is_the_new_days),
        cmocka_unit_test(a_budget_is_used_to_the_last_token_and_never_passed),
        cmocka_unit_test(many_threads_use_a_budget_exactly),
        cmocka_unit_test(what_was_used_before_counts),
        cmocka_unit_test(new_settings_hold_at_once),
        cmocka_unit_test(days_are_those_of_the_calendar),
        cmocka_unit_test(durations_read_as_clients_expect),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
