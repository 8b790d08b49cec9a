/* tests/unit/base/log_test.c: log lines are whole and cannot be forged from inside a value. */
#include "unit/unit.h"

#include <unistd.h>

#include "base/log.h"

/* Runs one log_write with standard error in a file and returns what was written. */
static const char *logged(int json, const char *request, const char *value)
{
    static char text[4096];
    FILE *file = tmpfile();
    int saved = dup(STDERR_FILENO);
    dup2(fileno(file), STDERR_FILENO);
    log_set_json(json);
    log_write(LOG_WARN, "test", request, "value '%s'", value);
    dup2(saved, STDERR_FILENO);
    close(saved);
    rewind(file);
    size_t size = fread(text, 1, sizeof text - 1, file);
    text[size] = 0;
    fclose(file);
    return text;
}

static size_t lines(const char *text)
{
    size_t count = 0;
    for (; *text; text++)
        count += *text == '\n';
    return count;
}

static void a_line_is_one_line_whatever_is_in_it(void **state)
{
    (void)state;
    const char *text = logged(0, "id\n2026 error: forged", "a\nb\033[2Jc");
    assert_int_equal(lines(text), 1);
    assert_holds(text, "warn  test: value 'a?b?[2Jc' [id?2026 error: forged]");
    text = logged(1, "id\"\n,\"level\":\"forged", "quote \" and \\");
    assert_int_equal(lines(text), 1);
    assert_holds(text, "\"request\":\"id\\\"?,\\\"level\\\":\\\"forged\"");
    assert_holds(text, "\"message\":\"value 'quote \\\" and \\\\'\"}");
}

static void long_values_are_cut_and_the_line_still_ends(void **state)
{
    (void)state;
    char value[3000];
    memset(value, '"', sizeof value - 1);
    value[sizeof value - 1] = 0;
    for (int json = 0; json < 2; json++) {
        const char *text = logged(json, value, value);
        assert_int_equal(lines(text), 1);
        assert_true(strlen(text) < 2048);
        assert_holds(text, json ? "\"}\n" : "]\n");
    }
}

static void levels_have_names_and_order(void **state)
{
    (void)state;
    log_level level;
    assert_true(log_level_parse("info", &level));
    assert_int_equal(level, LOG_INFO);
    assert_false(log_level_parse("loud", &level));
    log_set_level(LOG_ERROR);
    assert_string_equal(logged(0, NULL, "x"), "");
    log_set_level(LOG_WARN);
    assert_holds(logged(0, NULL, "x"), "test: value 'x'\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_line_is_one_line_whatever_is_in_it),
        cmocka_unit_test(long_values_are_cut_and_the_line_still_ends),
        cmocka_unit_test(levels_have_names_and_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
