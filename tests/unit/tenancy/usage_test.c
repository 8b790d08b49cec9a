/* tests/unit/tenancy/usage_test.c: sums, quantiles and what is written of them. */
#include "unit/unit.h"

#include "base/rng.h"
#include "tenancy/meter.h"
#include "tenancy/usage.h"

static realm_error error;

static void buckets_end_where_they_say(void **state)
{
    (void)state;
    for (int i = 0; i < USAGE_LATENCIES - 1; i++) {
        uint64_t end = (uint64_t)(usage_latency_ms(i) * 1e6);
        assert_int_equal(usage_latency_bucket(end), i);
        assert_int_equal(usage_latency_bucket(end + 2), i + 1);
    }
    assert_int_equal(usage_latency_bucket(0), 0);
    assert_int_equal(usage_latency_bucket(UINT64_MAX), USAGE_LATENCIES - 1);
}

static int by_size(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Against sorting: the quantile's bucket holds the value that stands at that place. */
static void quantiles_are_those_of_the_sorted_latencies(void **state)
{
    (void)state;
    enum { COUNT = 999 };
    static uint64_t all[COUNT];
    usage_counts c = {0};
    rng random;
    rng_init(&random, 1);
    for (int i = 0; i < COUNT; i++) {
        all[i] = 1 + rng_next(&random) % (1ull << (20 + rng_next(&random) % 14));
        c.latency[usage_latency_bucket(all[i])]++;
    }
    qsort(all, COUNT, sizeof *all, by_size);
    static const double quantiles[] = {0.01, 0.5, 0.95, 0.99, 1};
    for (int i = 0; i < 5; i++) {
        int rank = (int)(quantiles[i] * COUNT + 0.999999) - 1;
        assert_true(usage_quantile_ms(&c, quantiles[i]) ==
                    usage_latency_ms(usage_latency_bucket(all[rank])));
    }
    usage_counts none = {0};
    assert_true(usage_quantile_ms(&none, 0.5) == 0);
}

static usage_event event_of(uint32_t tenant, const char *name)
{
    usage_event e = {.key = {.tenant = tenant, .day = 20000}, .prompt_tokens = 3};
    snprintf(e.key.model, sizeof e.key.model, "%s", name);
    return e;
}

static void events_of_one_key_become_one_row(void **state)
{
    (void)state;
    usage_table t;
    usage_table_init(&t);
    for (int i = 0; i < 50; i++) {
        usage_event e = event_of(1, i % 2 ? "a" : "b");
        /* What stands behind a text's end is no part of the key. */
        memset(e.key.model + 2, i, sizeof e.key.model - 2);
        e.key.model[1] = 0;
        assert_status(usage_table_add(&t, &e, &error), REALM_OK, error);
    }
    assert_int_equal(t.rows.count, 2);
    size_t position = 0;
    for (const map_slot *slot; (slot = map_next(&t.rows, &position));) {
        const usage_row *row = slot->value;
        assert_int_equal(row->counts.requests, 25);
        assert_int_equal(row->counts.prompt_tokens, 75);
    }
    usage_table_release(&t);
}

static char *written(usage_format format, unsigned by, const char *tenant, const usage_row *row)
{
    char *text = NULL;
    size_t size;
    FILE *stream = open_memstream(&text, &size);
    usage_writer w;
    usage_writer_begin(&w, stream, format, by);
    if (row)
        usage_writer_row(&w, tenant, row);
    usage_writer_end(&w);
    fclose(stream);
    return text;
}

static void csv_and_json_say_the_same(void **state)
{
    (void)state;
    usage_row row = {.key = {.tenant = 1, .version = 3, .day = meter_day_parse("2026-02-28")},
                     .counts = {.requests = 2,
                                .errors = 1,
                                .prompt_tokens = 10,
                                .completion_tokens = 20,
                                .cached_tokens = 4,
                                .cpu_ns = 5,
                                .wall_ns = 6,
                                .first_token_ns = 3000000,
                                .first_tokens = 2}};
    row.counts.latency[0] = 2;
    strcpy(row.key.key, "abc");
    strcpy(row.key.model, "a,\"b\"");
    strcpy(row.key.program, "chat");
    char *csv = written(USAGE_CSV, USAGE_BY_ALL, "acme", &row);
    assert_string_equal(csv, "day,tenant,key,model,program,version,requests,errors,prompt_tokens,"
                             "completion_tokens,cached_tokens,cpu_ns,wall_ns,mean_first_token_ms,"
                             "p50_ms,p95_ms\r\n"
                             "2026-02-28,acme,abc,\"a,\"\"b\"\"\",chat,3,2,1,10,20,4,5,6,1.500,1.0,"
                             "1.0\r\n");
    char *json = written(USAGE_JSON, USAGE_BY_TENANT | USAGE_BY_DAY, "acme", &row);
    assert_holds(json,
                 "\"day\": \"2026-02-28\", \"tenant\": \"acme\", \"requests\": 2, \"errors\": 1");
    char *none = written(USAGE_JSON, USAGE_BY_ALL, NULL, NULL);
    assert_string_equal(none, "[]\n");
    free(csv);
    free(json);
    free(none);
}

static void a_spreadsheet_runs_nothing(void **state)
{
    (void)state;
    usage_row row = {0};
    strcpy(row.key.model, "=HYPERLINK(1)");
    char *csv = written(USAGE_CSV, USAGE_BY_MODEL, "", &row);
    assert_holds(csv, "\"'=HYPERLINK(1)\"");
    free(csv);
}

static void groupings_are_words(void **state)
{
    (void)state;
    unsigned by;
    assert_status(usage_by_parse("tenant,day", &by, &error), REALM_OK, error);
    assert_int_equal(by, USAGE_BY_TENANT | USAGE_BY_DAY);
    assert_status(usage_by_parse("", &by, &error), REALM_OK, error);
    assert_int_equal(by, 0);
    assert_int_equal(usage_by_parse("week", &by, &error), REALM_INVALID);
    assert_holds(error.message, "week");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(buckets_end_where_they_say),
        cmocka_unit_test(quantiles_are_those_of_the_sorted_latencies),
        cmocka_unit_test(events_of_one_key_become_one_row),
        cmocka_unit_test(csv_and_json_say_the_same),
        cmocka_unit_test(a_spreadsheet_runs_nothing),
        cmocka_unit_test(groupings_are_words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
