/* tests/unit/base/status_test.c: statuses have names, and error sentences are safe to print. */
#include "unit/unit.h"

#include "base/utf8.h"

static void statuses_have_names_and_meanings(void **state)
{
    (void)state;
    assert_string_equal(realm_status_name(REALM_OK), "OK");
    assert_string_equal(realm_status_name(REALM_CORRUPT), "CORRUPT");
    assert_string_equal(realm_status_name((realm_status)-999), "UNKNOWN");
    assert_string_equal(realm_status_meaning(REALM_NO_MEMORY), "the host is out of memory");
    assert_string_equal(realm_status_meaning((realm_status)7), "unknown status");
}

static void sentences_hold_nothing_that_steers_a_terminal(void **state)
{
    (void)state;
    realm_error error;
    assert_int_equal(realm_fail(&error, REALM_IO, "name %s", "a\033[31mb\nc\x7F\xFF."), REALM_IO);
    assert_string_equal(error.message, "name a?[31mb?c??.");
    realm_fail(&error, REALM_IO, "%s",
               "\xC2\x9B"
               "31m \xC2\xA0 \xC3\xA9");
    assert_string_equal(error.message, "??31m \xC2\xA0 \xC3\xA9");
    assert_int_equal(error.status, REALM_IO);
    assert_int_equal(realm_fail(NULL, REALM_IO, "nobody listens"), REALM_IO);
}

static void long_sentences_are_cut_to_whole_characters(void **state)
{
    (void)state;
    realm_error error;
    char text[2000];
    for (size_t i = 0; i + 1 < sizeof text; i++)
        text[i] = "\xE2\x82\xAC"[i % 3];
    text[sizeof text - 1] = 0;
    for (int shift = 0; shift < 3; shift++) {
        realm_fail(&error, REALM_IO, "%.*s%s", shift, "xyz", text);
        assert_int_equal(strlen(error.message), REALM_ERROR_MESSAGE_SIZE - 1);
        assert_true(utf8_valid((const uint8_t *)error.message, strlen(error.message)));
    }
}

static void context_comes_before_what_was_wrong(void **state)
{
    (void)state;
    realm_error error;
    realm_fail(&error, REALM_CORRUPT, "offset %d is odd", 7);
    assert_int_equal(realm_fail_in(&error, error.status, "shard %d", 2), REALM_CORRUPT);
    assert_string_equal(error.message, "shard 2: offset 7 is odd");
    assert_int_equal(error.status, REALM_CORRUPT);
    for (int i = 0; i < 100; i++)
        realm_fail_in(&error, REALM_IO, "deeper and deeper");
    assert_int_equal(strlen(error.message), REALM_ERROR_MESSAGE_SIZE - 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(statuses_have_names_and_meanings),
        cmocka_unit_test(sentences_hold_nothing_that_steers_a_terminal),
        cmocka_unit_test(long_sentences_are_cut_to_whole_characters),
        cmocka_unit_test(context_comes_before_what_was_wrong),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
