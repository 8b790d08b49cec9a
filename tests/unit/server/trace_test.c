/* tests/unit/server/trace_test.c: which traceparent and tracestate are taken; the cases are those of the W3C's own
 * test suite. */
#include "unit/unit.h"

#include "server/exchange.h"

#define TRACE  "12345678901234567890123456789012"
#define PARENT "1234567890123456"

/* What headers of one name and these values make. values ends with NULL. */
static trace_context read_parents(const char *const *values)
{
    exchange_header headers[4];
    size_t count = 0;
    trace_context out;
    for (; values[count]; count++)
        headers[count] = (exchange_header){"traceparent", values[count]};
    trace_read(&out, headers, count);
    return out;
}

static trace_context read_parent(const char *value)
{
    return read_parents((const char *const[]){value, NULL});
}

static void a_proper_traceparent_gives_its_trace(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int flags;
    } proper[] = {
        {"00-" TRACE "-" PARENT "-01", TRACE_SAMPLED},
        {"00-" TRACE "-" PARENT "-00", 0},
        {"00-" TRACE "-" PARENT "-02", TRACE_RANDOM},
        {"00-" TRACE "-" PARENT "-ff", TRACE_SAMPLED | TRACE_RANDOM},
        {"cc-" TRACE "-" PARENT "-01", TRACE_SAMPLED},
        {"cc-" TRACE "-" PARENT "-01-what-the-future-will-be-like", TRACE_SAMPLED},
    };
    for (size_t i = 0; i < sizeof proper / sizeof *proper; i++) {
        trace_context read = read_parent(proper[i].text);
        assert_string_equal(read.id, TRACE);
        assert_true(read.parent == 0x1234567890123456u);
        assert_int_equal(read.flags, proper[i].flags);
    }
}

static void anything_else_begins_a_new_trace(void **state)
{
    (void)state;
    static const char *const wrong[] = {
        "",
        "00",
        "00-" TRACE,
        "00-" TRACE "-" PARENT "-01.",
        "00-" TRACE "-" PARENT "-01-what-the-future-will-be-like",
        "cc-" TRACE "-" PARENT "-01.what-the-future-will-be-like",
        "ff-" TRACE "-" PARENT "-01",
        ".0-" TRACE "-" PARENT "-01",
        "0.-" TRACE "-" PARENT "-01",
        "000-" TRACE "-" PARENT "-01",
        "0000-" TRACE "-" PARENT "-01",
        "0-" TRACE "-" PARENT "-01",
        "00-00000000000000000000000000000000-" PARENT "-01",
        "00-.2345678901234567890123456789012-" PARENT "-01",
        "00-1234567890123456789012345678901.-" PARENT "-01",
        "00-123456789012345678901234567890123-" PARENT "-01",
        "00-1234567890123456789012345678901-" PARENT "-01",
        "00-1234567890123456789012345678901A-" PARENT "-01",
        "00-" TRACE "-0000000000000000-01",
        "00-" TRACE "-.234567890123456-01",
        "00-" TRACE "-123456789012345.-01",
        "00-" TRACE "-12345678901234567-01",
        "00-" TRACE "-123456789012345-01",
        "00-" TRACE "-" PARENT "-.0",
        "00-" TRACE "-" PARENT "-0.",
        "00-" TRACE "-" PARENT "-001",
        "00-" TRACE "-" PARENT "-1",
        "00_" TRACE "_" PARENT "_01",
    };
    char last[TRACE_ID_SIZE + 1] = "";
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        trace_context read = read_parent(wrong[i]);
        assert_int_equal(strspn(read.id, "0123456789abcdef"), TRACE_ID_SIZE);
        assert_int_equal(strlen(read.id), TRACE_ID_SIZE);
        assert_string_not_equal(read.id, TRACE);
        assert_string_not_equal(read.id, last);
        assert_true(read.parent == 0);
        assert_int_equal(read.flags, TRACE_RANDOM);
        memcpy(last, read.id, sizeof last);
    }
    assert_true(read_parents((const char *const[]){NULL}).parent == 0);
}

static void of_two_traceparents_none_counts(void **state)
{
    (void)state;
    const char *const both[] = {"00-" TRACE "-" PARENT "-01", "00-" TRACE "-" PARENT "-01", NULL};
    trace_context read = read_parents(both);
    assert_string_not_equal(read.id, TRACE);
    assert_true(read.parent == 0);
}

static void span_ids_differ_and_are_not_zero(void **state)
{
    (void)state;
    uint64_t last = 0;
    for (int i = 0; i < 1000; i++) {
        uint64_t id = trace_make_span();
        assert_true(id != 0 && id != last);
        last = id;
    }
}

/* What headers tracestate of these values become. values ends with NULL. */
static void assert_states(const char *wanted, const char *const *values)
{
    exchange_header headers[8];
    size_t count = 0;
    arena memory;
    arena_init(&memory, 0);
    for (; values[count]; count++)
        headers[count] = (exchange_header){"tracestate", values[count]};
    assert_string_equal(trace_read_state(headers, count, &memory), wanted);
    arena_release(&memory);
}

static void assert_state(const char *wanted, const char *value)
{
    assert_states(wanted, (const char *const[]){value, NULL});
}

static void tracestate_is_joined_and_trimmed(void **state)
{
    (void)state;
    assert_states("", (const char *const[]){NULL});
    assert_state("", "");
    assert_state("foo=1,bar=2", "foo=1,bar=2");
    assert_state("foo=1,bar=2,baz=3", "foo=1 \t , \t bar=2, \t baz=3");
    assert_state("foo=1", "\t foo=1 \t");
    assert_states("foo=1", (const char *const[]){"foo=1", "", NULL});
    assert_states("foo=1", (const char *const[]){"", "foo=1", NULL});
    assert_states("foo=1,bar=2,rojo=1,congo=2,baz=3",
                  (const char *const[]){"foo=1,bar=2", "rojo=1,congo=2", "baz=3", NULL});
    assert_state("foo=1,foo=2", "foo=1,foo=2"); /* may be passed on as it is */
    assert_state("foo@=1,bar=2", "foo@=1,bar=2");
    assert_state("foo@bar@baz=1,bar=2", "foo@bar@baz=1,bar=2");
#define KEY   "abcdefghijklmnopqrstuvwxyz0123456789_-*/@a-z0-9_-*/"
#define VALUE " !\"#$%&'()*+-./0123456789:;<>?@ABCXYZ[\\]^_`abcxyz{|}~"
    assert_state(KEY "=" VALUE, KEY "=" VALUE);
}

static void a_wrong_member_discards_all_of_tracestate(void **state)
{
    (void)state;
    static const char *const wrong[] = {"foo =1",      "FOO=1",        "foo.bar=1", "@foo=1,bar=2",
                                        "foo=bar=baz", "foo=,bar=3",   "=1",        "foo",
                                        "foo=a\tb",    "foo=\xc3\xa4", "ok=1,_a=2"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_state("", wrong[i]);
}

static void tracestate_has_at_most_32_members(void **state)
{
    (void)state;
    char text[33 * 10] = "";
    for (int i = 1; i <= 33; i++) {
        if (i == 33)
            assert_state(text, text);
        sprintf(text + strlen(text), "%sbar%02d=%02d", i > 1 ? "," : "", i, i);
    }
    assert_state("", text);
}

static void what_is_too_long_loses_long_members_first_and_then_the_last(void **state)
{
    (void)state;
    char longest[256 + 3], too_long[257 + 3], value[1024], wanted[1024];
    memset(longest, 'z', 256);
    strcpy(longest + 256, "=1");
    memset(too_long, 'z', 257);
    strcpy(too_long + 257, "=1");
    sprintf(wanted, "foo=1,%s", longest);
    assert_states(wanted, (const char *const[]){"foo=1", longest, NULL});
    assert_states("", (const char *const[]){"foo=1", too_long, NULL});
    sprintf(value, "a=1,%s,b=2,%s,c=3", longest, longest);
    sprintf(wanted, "a=1,%s,b=2,c=3", longest);
    assert_state(wanted, value);
    /* Six of 100 bytes: the last goes. */
    *value = 0;
    for (int i = 0; i < 6; i++) {
        if (i == 5)
            strcpy(wanted, value);
        sprintf(value + strlen(value), "%sk%d=%096d", i ? "," : "", i, i);
    }
    assert_state(wanted, value);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_proper_traceparent_gives_its_trace),
        cmocka_unit_test(anything_else_begins_a_new_trace),
        cmocka_unit_test(of_two_traceparents_none_counts),
        cmocka_unit_test(span_ids_differ_and_are_not_zero),
        cmocka_unit_test(tracestate_is_joined_and_trimmed),
        cmocka_unit_test(a_wrong_member_discards_all_of_tracestate),
        cmocka_unit_test(tracestate_has_at_most_32_members),
        cmocka_unit_test(what_is_too_long_loses_long_members_first_and_then_the_last),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
