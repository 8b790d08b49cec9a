/* tests/unit/server/spans_test.c: what spans hold, which requests get them, and what settings say. How they read to
 * a collector is tests/integration/test_traces.py's, which decodes them with OpenTelemetry's own package. */
#include "unit/unit.h"

#include "base/utf8.h"
#include "server/tracer.h"

#define TRACE "4bf92f3577b34da6a3ce929d0e0e4736"

static trace_context context_of(const char *id, uint64_t parent, uint8_t flags)
{
    trace_context c = {.parent = parent, .flags = flags};
    strcpy(c.id, id);
    return c;
}

/* ---- spans ---- */

static spans *open_spans(void)
{
    const trace_context c = context_of(TRACE, 7, TRACE_SAMPLED);
    spans *s = spans_open(&c);
    assert_non_null(s);
    return s;
}

static void spans_know_their_parents(void **state)
{
    (void)state;
    spans *s = open_spans();
    span *root = spans_add(s, NULL, "root", 10), *child = spans_add(s, root, "child", 20);
    assert_true(root->parent == 7 && child->parent == root->id && child->id != root->id);
    assert_true(child->start_ns == 20 && child->end_ns == 20);
    spans_name(s, child, "another");
    assert_string_equal(child->name, "another");
    assert_ptr_equal(s->first, root);
    assert_ptr_equal(root->next, child);
    spans_close(s);
    spans_close(NULL);
}

static void attributes_are_copied_clean_and_short(void **state)
{
    (void)state;
    spans *s = open_spans();
    span *root = spans_add(s, NULL, "root", 1);
    char text[600];
    memset(text, 'a', sizeof text);
    text[599] = 0;
    memcpy(text + SPANS_TEXT_SIZE - 1, "\xc3\xa4", 2); /* is not cut in two */
    spans_text(s, root, "long", text);
    memset(text, 'b', 10);
    spans_text(s, root, "broken", "a\xff\xc3(\xed\xa0\x80z");
    spans_texts(s, root, "list", (const char *const[]){"stop", "\xfe"}, 2);
    spans_int(s, root, "int", -5);
    spans_flag(s, root, "flag", 7);
    spans_real(s, root, "real", 0.5);
    const span_attribute *a = root->attributes;
    assert_int_equal(strlen(a->text), SPANS_TEXT_SIZE - 1);
    assert_int_equal(strspn(a->text, "a"), SPANS_TEXT_SIZE - 1);
    a = a->next;
    assert_string_equal(a->text, "a\xef\xbf\xbd\xef\xbf\xbd(\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbdz");
    a = a->next;
    assert_true(a->kind == ATTRIBUTE_TEXTS && a->integer == 2);
    assert_string_equal(a->texts[0], "stop");
    assert_string_equal(a->texts[1], "\xef\xbf\xbd");
    a = a->next;
    assert_true(a->kind == ATTRIBUTE_INT && a->integer == -5);
    a = a->next;
    assert_true(a->kind == ATTRIBUTE_FLAG && a->integer == 1);
    a = a->next;
    assert_true(a->kind == ATTRIBUTE_REAL && a->real == 0.5 && !a->next);
    spans_close(s);
}

static void a_request_has_a_bounded_number_of_spans(void **state)
{
    (void)state;
    spans *s = open_spans();
    for (int i = 0; i < SPANS_MAX; i++)
        assert_non_null(spans_add(s, s->first, "span", 1));
    span *none = spans_add(s, s->first, "span", 1);
    assert_null(none);
    spans_text(s, none, "name", "value");
    spans_int(s, none, "name", 1);
    spans_name(s, none, "name");
    spans_texts(s, none, "name", (const char *const[]){"value"}, 1);
    assert_true(s->count == SPANS_MAX && s->lost == 1);
    spans_close(s);
}

static void a_request_takes_a_bounded_number_of_bytes(void **state)
{
    (void)state;
    spans *s = open_spans();
    span *root = spans_add(s, NULL, "root", 1);
    char text[SPANS_TEXT_SIZE + 1];
    memset(text, 'a', SPANS_TEXT_SIZE);
    text[SPANS_TEXT_SIZE] = 0;
    for (int i = 0; i < 1000; i++)
        spans_text(s, root, "name", text);
    assert_true(s->memory.used_bytes <= SPANS_BYTES);
    int more = 0;
    while (spans_add(s, root, text, 1))
        more++;
    assert_true(more < 4 && s->lost == 1);
    buffer out;
    buffer_init(&out, SIZE_MAX);
    assert_int_equal(otlp_encode(s, NULL, 0, &out), REALM_OK); /* what fitted goes */
    assert_true(out.size > SPANS_BYTES / 2 && out.size < 2 * SPANS_BYTES);
    buffer_release(&out);
    spans_close(s);
}

/* ---- samplers ---- */

static tracer *open_tracer(const char *sampler, double ratio)
{
    tracer *t = NULL;
    realm_error error;
    tracer_options options = {.endpoint = "http://127.0.0.1:1", .ratio = ratio};
    assert_int_equal(tracer_sampler(sampler, &options), 1);
    assert_status(tracer_open(&t, &options, &error), REALM_OK, error);
    return t;
}

/* The bound of OpenTelemetry's SDK for Go: half of the number that the id's last 64 bits are, below the ratio times
 * 2^63. */
static void ratios_are_of_the_ids_last_bits(void **state)
{
    (void)state;
    static const struct {
        const char *id;
        double ratio;
        int wanted;
    } cases[] = {
        {"00000000000000010000000000000000", 0, 0},
        {"00000000000000010000000000000000", 1e-18, 1},
        {"ffffffffffffffff7fffffffffffffff", 0.5, 1},
        {"00000000000000008000000000000000", 0.5, 0},
        {"000000000000000033333333333333fe", 0.2, 1},
        {"00000000000000003333333333333400", 0.2, 0},
        {"ffffffffffffffffffffffffffffffff", 0.999999, 0},
        {"ffffffffffffffffffffffffffffffff", 1, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tracer *t = open_tracer("traceidratio", cases[i].ratio);
        const trace_context c = context_of(cases[i].id, 0, TRACE_RANDOM);
        assert_int_equal(tracer_samples(t, &c), cases[i].wanted);
        tracer_close(t, 0);
    }
}

static void parents_decide_where_they_are_asked(void **state)
{
    (void)state;
    static const struct {
        const char *sampler;
        int alone, sampled, unsampled;
    } cases[] = {
        {"always_on", 1, 1, 1},
        {"always_off", 0, 0, 0},
        {"parentbased_always_on", 1, 1, 0},
        {"parentbased_always_off", 0, 1, 0},
        {"traceidratio", 0, 0, 0},
        {"parentbased_traceidratio", 0, 1, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tracer *t = open_tracer(cases[i].sampler, 0);
        const trace_context alone = context_of(TRACE, 0, TRACE_RANDOM),
                            sampled = context_of(TRACE, 7, TRACE_SAMPLED),
                            unsampled = context_of(TRACE, 7, TRACE_RANDOM);
        assert_int_equal(tracer_samples(t, &alone), cases[i].alone);
        assert_int_equal(tracer_samples(t, &sampled), cases[i].sampled);
        assert_int_equal(tracer_samples(t, &unsampled), cases[i].unsampled);
        tracer_close(t, 0);
    }
    tracer_options options;
    assert_int_equal(tracer_sampler("jaeger_remote", &options), 0);
}

/* ---- the list ---- */

static void spans_are_counted_however_they_end(void **state)
{
    (void)state;
    tracer *t = NULL;
    realm_error error;
    tracer_stats stats;
    const tracer_options options = {.endpoint = "http://127.0.0.1:1", /* nobody listens */
                                    .ratio = 1,
                                    .queue_spans = 5,
                                    .batch_spans = 100,
                                    .delay_ms = 3600000};
    assert_status(tracer_open(&t, &options, &error), REALM_OK, error);
    for (int i = 0; i < 4; i++) {
        spans *s = open_spans();
        spans_add(s, NULL, "one", 1);
        spans_add(s, s->first, "two", 1);
        s->lost = i == 3 ? 9 : 0;
        tracer_take(t, s);
    }
    tracer_stats_get(t, &stats);
    assert_true(stats.dropped_full == 4 && stats.dropped_oversize == 9 && stats.exported == 0);
    tracer_close(t, 60000); /* four are left: they are tried once, and nobody is there */
}

/* ---- settings ---- */

static void addresses_and_headers_are_checked(void **state)
{
    (void)state;
    static const char *const addresses[] = {
        NULL,           "",           "127.0.0.1:4318", "http://",
        "ftp://host/x", "http:/host", "http://ho st/",  "file:///x"};
    static const otlp_pair wrong[] = {{"", "x"}, {"a b", "x"}, {"a:", "x"}, {"a", "x\r\ny: z"}};
    realm_error error;
    tracer *t;
    for (size_t i = 0; i < sizeof addresses / sizeof *addresses; i++) {
        const tracer_options options = {.endpoint = addresses[i], .ratio = 1};
        assert_status(tracer_open(&t, &options, &error), REALM_INVALID, error);
        assert_holds(error.message, "address");
    }
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        const tracer_options options = {
            .endpoint = "http://[::1]:4318", .ratio = 1, .headers = &wrong[i], .n_headers = 1};
        assert_status(tracer_open(&t, &options, &error), REALM_INVALID, error);
        assert_holds(error.message, "header 1");
    }
    const tracer_options options = {.endpoint = "http://host", .ratio = 1.5};
    assert_status(tracer_open(&t, &options, &error), REALM_INVALID, error);
}

static void pairs_are_read_as_baggage(void **state)
{
    (void)state;
    arena memory;
    otlp_pair *list;
    size_t count;
    realm_error error;
    arena_init(&memory, 0);
    assert_status(otlp_read_pairs(" a = b ,c=d%20e%2C=f%C3%A4,,g=", &memory, &list, &count, &error),
                  REALM_OK, error);
    assert_int_equal(count, 3);
    assert_string_equal(list[0].name, "a");
    assert_string_equal(list[0].value, "b");
    assert_string_equal(list[1].name, "c");
    assert_string_equal(list[1].value, "d e,=f\xc3\xa4");
    assert_string_equal(list[2].name, "g");
    assert_string_equal(list[2].value, "");
    assert_status(otlp_read_pairs("", &memory, &list, &count, &error), REALM_OK, error);
    assert_int_equal(count, 0);
    static const char *const wrong[] = {"a", "=b", "a=b,c", "a=%", "a=%2", "a=%zz", "a=%00"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_status(otlp_read_pairs(wrong[i], &memory, &list, &count, &error), REALM_INVALID,
                      error);
    arena_release(&memory);
}

static void any_answer_of_a_collector_can_be_read(void **state)
{
    (void)state;
    assert_true(otlp_rejected("\x0a\x02\x08\x07", 4) == 7);
    assert_true(otlp_rejected("", 0) == 0);
    assert_true(otlp_rejected("\x0a\x00", 2) == 0);
    assert_true(otlp_rejected("{\"partialSuccess\":{}}", 21) == 0);
    assert_true(otlp_rejected("\x0a\xff", 2) == 0);
    assert_true(otlp_rejected("\x0a\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 13) ==
                0); /* -1 */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(spans_know_their_parents),
        cmocka_unit_test(attributes_are_copied_clean_and_short),
        cmocka_unit_test(a_request_has_a_bounded_number_of_spans),
        cmocka_unit_test(a_request_takes_a_bounded_number_of_bytes),
        cmocka_unit_test(ratios_are_of_the_ids_last_bits),
        cmocka_unit_test(parents_decide_where_they_are_asked),
        cmocka_unit_test(spans_are_counted_however_they_end),
        cmocka_unit_test(addresses_and_headers_are_checked),
        cmocka_unit_test(pairs_are_read_as_baggage),
        cmocka_unit_test(any_answer_of_a_collector_can_be_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
