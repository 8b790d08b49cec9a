/* tests/unit/server/metrics_test.c: what Prometheus is told. That promtool takes it is checked against the
 * running server (tests/integration/test_server.py). */
#include "unit/unit.h"

#include "server/metrics.h"

static void counters_and_histograms_add_up(void **state)
{
    (void)state;
    metrics m;
    buffer out;
    metrics_init(&m);
    buffer_init(&out, SIZE_MAX);
    metrics_add(&m, METRIC_PROMPT_TOKENS, 3, METRIC_LABELS("a", "m"));
    metrics_add(&m, METRIC_PROMPT_TOKENS, 4, METRIC_LABELS("a", "m"));
    metrics_observe(&m, METRIC_FIRST_TOKEN, 0.02, METRIC_LABELS("a", "m"));
    metrics_observe(&m, METRIC_FIRST_TOKEN, 1000, METRIC_LABELS("a", ""));
    metrics_write(&m, &out);
    const char *text = buffer_text(&out);
    assert_holds(text, "realm_prompt_tokens_total{tenant=\"a\",model=\"m\"} 7\n");
    assert_holds(text, "first_token_seconds_bucket{tenant=\"a\",model=\"m\",le=\"0.01\"} 0\n");
    assert_holds(text, "first_token_seconds_bucket{tenant=\"a\",model=\"m\",le=\"0.025\"} 1\n");
    assert_holds(text, "first_token_seconds_bucket{tenant=\"a\",model=\"none\",le=\"300\"} 0\n");
    assert_holds(text, "first_token_seconds_bucket{tenant=\"a\",model=\"none\",le=\"+Inf\"} 1\n");
    metrics_release(&m);
    buffer_release(&out);
}

static void labels_are_escaped_and_series_are_bounded(void **state)
{
    (void)state;
    metrics m;
    buffer out;
    metrics_init(&m);
    buffer_init(&out, SIZE_MAX);
    metrics_add(&m, METRIC_CANCELLED, 1, METRIC_LABELS("a\"b\\c\nd"));
    for (int i = 0; i < 3 * METRICS_MAX_SERIES; i++) {
        char name[16];
        snprintf(name, sizeof name, "t%d", i);
        metrics_add(&m, METRIC_CANCELLED, 1, METRIC_LABELS(name));
    }
    assert_in_range(m.series[METRIC_CANCELLED].count, METRICS_MAX_SERIES, METRICS_MAX_SERIES + 1);
    metrics_write(&m, &out);
    assert_holds(buffer_text(&out), "{tenant=\"a\\\"b\\\\c\\nd\"} 1\n");
    char wanted[64];
    snprintf(wanted, sizeof wanted, "{tenant=\"other\"} %d\n", 2 * METRICS_MAX_SERIES + 1);
    assert_holds(buffer_text(&out), wanted);
    metrics_release(&m);
    buffer_release(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counters_and_histograms_add_up),
        cmocka_unit_test(labels_are_escaped_and_series_are_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
