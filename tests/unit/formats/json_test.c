/* tests/unit/formats/json_test.c: formats/json.h: limits, sentences, getters and exact printing. */
#include "unit/unit.h"

#include <math.h>

#include "base/rng.h"
#include "base/utf8.h"
#include "formats/json.h"

static realm_status parse(const char *text, json_t **out, realm_error *error)
{
    return json_parse(out, text, strlen(text), 1000, 5, error);
}

static void what_is_not_json_is_refused_with_its_place(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        realm_status status;
        const char *said;
    } cases[] = {
        {"", REALM_INVALID, "line 1"},
        {"{\"a\":\n  tru}", REALM_INVALID, "line 2, column"},
        {"{\"a\":1,\"a\":2}", REALM_INVALID, "duplicate"},
        {"[1,2] 3", REALM_INVALID, "end of file expected"},
        {"\"\xFF\"", REALM_INVALID, "decode byte 0xff"},
        {"[1e999]", REALM_INVALID, "overflow"},
        {"[[[[[[1]]]]]]", REALM_TOO_LARGE,
         "line 1, column 6: lists and objects nest deeper than 5"},
        {"[\n[[[[\n{\"\":1}]]]]]", REALM_TOO_LARGE, "line 3, column 1"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *value;
        realm_error error;
        assert_status(parse(cases[i].text, &value, &error), cases[i].status, error);
        assert_null(value);
        assert_holds(error.message, cases[i].said);
    }
}

static void what_is_json_is_taken(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "null",          "1",
        "\"x\"",         "[[[[[]]]]]",
        "[\"[[[[[[[\"]", "[\"\\\"[[[[[[\"]",
        "\"\\u0000\"",   "{\"a\":{\"a\":{\"a\":{\"a\":{}}}}}",
        " [ ] ",         "[[],[],[],[],[],[],[]]",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        json_t *value;
        realm_error error;
        assert_status(parse(texts[i], &value, &error), REALM_OK, error);
        json_decref(value);
    }
}

static void size_and_depth_have_limits(void **state)
{
    (void)state;
    json_t *value;
    realm_error error;
    char *deep = malloc(2000000);
    memset(deep, '[', 2000000);
    assert_status(json_parse(&value, deep, 2000000, 2000000, JSON_USUAL_DEPTH, &error),
                  REALM_TOO_LARGE, error);
    assert_holds(error.message, "column 129");
    assert_status(json_parse(&value, deep, 2000000, 1999999, JSON_USUAL_DEPTH, &error),
                  REALM_TOO_LARGE, error);
    assert_holds(error.message, "2000000 bytes");
    free(deep);
}

static void fields_are_read_by_kind_and_range(void **state)
{
    (void)state;
    json_t *o;
    realm_error error;
    const char *text = "unset";
    size_t size;
    int64_t number = -1;
    double real = -1;
    int flag = -1;
    const json_t *part;
    assert_status(
        parse("{\"t\":\"x\",\"z\":\"a\\u0000b\",\"i\":7,\"whole\":3.0,\"r\":0.5,\"huge\":1e300,"
              "\"f\":true,\"l\":[1],\"o\":{},\"n\":null}",
              &o, &error),
        REALM_OK, error);
    assert_status(json_get_text(o, "t", &text, NULL, &error), REALM_OK, error);
    assert_string_equal(text, "x");
    assert_status(json_get_text(o, "z", &text, &size, &error), REALM_OK, error);
    assert_int_equal(size, 3);
    assert_status(json_get_text(o, "z", &text, NULL, &error), REALM_INVALID, error);
    assert_status(json_get_text(o, "i", &text, NULL, &error), REALM_INVALID, error);
    assert_string_equal(error.message, "'i' must be a string, not a whole number");
    assert_status(json_get_text(o, "absent", &text, NULL, &error), REALM_NOT_FOUND, error);
    assert_string_equal(error.message, "'absent' is missing");
    assert_status(json_get_text(o, "n", &text, NULL, &error), REALM_NOT_FOUND, error);
    assert_int_equal(JSON_OPTIONAL(json_get_text(o, "absent", &text, NULL, NULL)), REALM_OK);
    assert_int_equal(JSON_OPTIONAL(json_get_text(o, "i", &text, NULL, NULL)), REALM_INVALID);
    assert_status(json_get_int(o, "i", 1, 7, &number, &error), REALM_OK, error);
    assert_int_equal(number, 7);
    assert_status(json_get_int(o, "whole", 1, 7, &number, &error), REALM_OK, error);
    assert_int_equal(number, 3);
    assert_status(json_get_int(o, "i", 1, 6, &number, &error), REALM_INVALID, error);
    assert_string_equal(error.message, "'i' must be from 1 to 6, not 7");
    assert_status(json_get_int(o, "r", 0, 6, &number, &error), REALM_INVALID, error);
    assert_status(json_get_int(o, "huge", INT64_MIN, INT64_MAX, &number, &error), REALM_INVALID,
                  error);
    assert_int_equal(number, 3);
    assert_status(json_get_real(o, "i", 0, 10, &real, &error), REALM_OK, error);
    assert_true(real == 7);
    assert_status(json_get_real(o, "r", 1, 2, &real, &error), REALM_INVALID, error);
    assert_string_equal(error.message, "'r' must be from 1 to 2, not 0.5");
    assert_status(json_get_flag(o, "f", &flag, &error), REALM_OK, error);
    assert_int_equal(flag, 1);
    assert_status(json_get_flag(o, "i", &flag, &error), REALM_INVALID, error);
    assert_status(json_get_list(o, "l", &part, &error), REALM_OK, error);
    assert_status(json_get_list(o, "o", &part, &error), REALM_INVALID, error);
    assert_status(json_get_object(o, "o", &part, &error), REALM_OK, error);
    assert_status(json_get_int(part, "i", 1, 7, &number, &error), REALM_NOT_FOUND, error);
    assert_status(json_get_int(json_object_get(o, "l"), "i", 1, 7, &number, &error), REALM_INVALID,
                  error);
    assert_holds(error.message, "not a list");
    json_decref(o);
}

/* What json_print_* writes, read back by jansson. */
static json_t *printed(const char *text, size_t size, double number)
{
    static char bytes[65536];
    FILE *stream = tmpfile();
    fputc('[', stream);
    if (text)
        json_print_text(stream, text, size);
    else
        json_print_real(stream, number);
    fputc(']', stream);
    rewind(stream);
    size_t got = fread(bytes, 1, sizeof bytes, stream);
    fclose(stream);
    json_t *value;
    realm_error error;
    assert_status(json_parse(&value, bytes, got, sizeof bytes, 1, &error), REALM_OK, error);
    return value;
}

static void numbers_are_printed_exactly(void **state)
{
    (void)state;
    rng random;
    rng_init(&random, 5);
    for (int i = 0; i < 300; i++) {
        uint64_t bits = rng_next(&random);
        double number = i == 0 ? 0.0 : i == 1 ? 1e-6f : i == 2 ? 1e22 : i == 3 ? -5e-324 : 0;
        if (i > 3)
            memcpy(&number, &bits, 8);
        if (!isfinite(number))
            continue;
        json_t *list = printed(NULL, 0, number);
        assert_true(json_is_real(json_array_get(list, 0)));
        assert_true(json_real_value(json_array_get(list, 0)) == number);
        json_decref(list);
    }
    json_t *list = printed(NULL, 0, -INFINITY);
    assert_string_equal(json_string_value(json_array_get(list, 0)), "-Infinity");
    json_decref(list);
}

static void any_bytes_are_printed_as_a_string(void **state)
{
    (void)state;
    char all[256];
    for (int i = 0; i < 256; i++)
        all[i] = (char)i;
    json_t *list = printed(all, sizeof all, 0);
    const char *back = json_string_value(json_array_get(list, 0));
    assert_int_equal(json_string_length(json_array_get(list, 0)), 128 + 128 * 3); /* each U+FFFD */
    assert_memory_equal(back, all, 128);
    assert_memory_equal(back + 128, "\xEF\xBF\xBD", 3);
    json_decref(list);
    list = printed("\xC2\x9B\xC3\xA9", 4, 0);
    assert_string_equal(json_string_value(json_array_get(list, 0)), "\xC2\x9B\xC3\xA9");
    json_decref(list);
}

static int allocations; /* that are left; negative: any number */

static void *take_some(size_t size)
{
    return allocations-- == 0 ? NULL : malloc(size);
}

/* json_dumps would lose "second" of this where the memory for it is not to be had. */
static void a_value_is_one_line_whole_or_none(void **state)
{
    (void)state;
    static const char wanted[] = "{\"first\":1,\"second\":[true,\"\\u00E9\"]}";
    allocations = -1;
    json_set_alloc_funcs(take_some, free);
    json_t *value = json_pack("{s:i, s:[b, s]}", "first", 1, "second", 1, "\xC3\xA9");
    for (int n = 0, whole = 0; !whole; n++) {
        allocations = n;
        char *text = json_text(value, JSON_ENSURE_ASCII);
        if (text)
            assert_string_equal(text, wanted);
        whole = text && allocations >= 0;
        free(text);
    }
    allocations = -1;
    assert_null(json_text(NULL, 0));
    char *text = json_text(json_array_get(json_object_get(value, "second"), 1), 0);
    assert_string_equal(text, "\"\xC3\xA9\"");
    free(text);
    json_decref(value);
    json_set_alloc_funcs(malloc, free);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_not_json_is_refused_with_its_place),
        cmocka_unit_test(what_is_json_is_taken),
        cmocka_unit_test(size_and_depth_have_limits),
        cmocka_unit_test(fields_are_read_by_kind_and_range),
        cmocka_unit_test(numbers_are_printed_exactly),
        cmocka_unit_test(a_value_is_one_line_whole_or_none),
        cmocka_unit_test(any_bytes_are_printed_as_a_string),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
