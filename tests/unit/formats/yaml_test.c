/* tests/unit/formats/yaml_test.c: formats/yaml.h: what settings files mean, and what is refused with its line. */
#include "unit/unit.h"

#include "formats/yaml.h"

static void assert_means(const char *text, const char *json)
{
    json_t *value;
    realm_error error;
    assert_status(yaml_parse(&value, text, strlen(text), &error), REALM_OK, error);
    char *printed = json_dumps(value, JSON_COMPACT);
    assert_string_equal(printed, json);
    free(printed);
    json_decref(value);
}

static void settings_are_read_as_they_look(void **state)
{
    (void)state;
    assert_means("", "{}");
    assert_means("# only a comment\n", "{}");
    assert_means("---\n...\n", "{}");
    assert_means("port: 8080\nhost: 127.0.0.1\n", "{\"port\":8080,\"host\":\"127.0.0.1\"}");
    assert_means("a: true\nb: false\nc: null\nd: ~\ne:\n",
                 "{\"a\":true,\"b\":false,\"c\":null,\"d\":null,\"e\":null}");
    assert_means("a: -3\nb: 0.5\nc: 1e3\n", "{\"a\":-3,\"b\":0.5,\"c\":1000.0}");
    assert_means("model:\n  - a=x.gguf\n  - b=y.gguf\n", "{\"model\":[\"a=x.gguf\",\"b=y.gguf\"]}");
    assert_means("model: [a=x, b]\nwithin: {k: [1, {x: 2}]}\n",
                 "{\"model\":[\"a=x\",\"b\"],\"within\":{\"k\":[1,{\"x\":2}]}}");
}

/* Nothing is guessed: what has no one meaning is text. */
static void what_is_quoted_or_odd_is_text(void **state)
{
    (void)state;
    assert_means("a: \"8080\"\nb: 'true'\nc: ''\n", "{\"a\":\"8080\",\"b\":\"true\",\"c\":\"\"}");
    assert_means("a: yes\nb: No\nc: TRUE\nd: on\n",
                 "{\"a\":\"yes\",\"b\":\"No\",\"c\":\"TRUE\",\"d\":\"on\"}");
    assert_means("a: 512m\nb: 0x10\nc: 1_000\nd: nan\ne: .inf\nf: 1e999\n",
                 "{\"a\":\"512m\",\"b\":\"0x10\",\"c\":\"1_000\",\"d\":\"nan\",\"e\":\".inf\","
                 "\"f\":\"1e999\"}");
    assert_means("a: 2026-01-31\nb: 12:30\n", "{\"a\":\"2026-01-31\",\"b\":\"12:30\"}");
    assert_means("a: |\n  two\n  lines\n", "{\"a\":\"two\\nlines\\n\"}");
    assert_means("a: 99999999999999999999\n", "{\"a\":1e20}");
    assert_means("8080: port\n", "{\"8080\":\"port\"}");
}

static void what_is_dangerous_or_wrong_is_refused_by_line(void **state)
{
    (void)state;
    static const struct {
        const char *text, *said;
    } cases[] = {
        {"a: 1\nb: 2\na: 3\n", "line 3: 'a' is given twice"},
        {"x: 1\na: &here 1\n", "line 2: anchors"},
        {"a: &here [1]\nb: *here\n", "line 1: anchors"},
        {"a:\n  - &here\n    x: 1\n", "anchors"},
        {"a: *nowhere\n", "line 1"},
        {"a: !!python/object 1\n", "line 1: tags"},
        {"a: !mine [1]\n", "line 1: tags"},
        {"[1, 2]: a\n", "line 1: a key must be a text"},
        {"? {x: 1}\n: a\n", "a key must be a text"},
        {"a: 1\n---\nb: 2\n", "second document"},
        {"a: [1, 2\n", "line 2"},
        {"a: 1\n b: 2\n", "line 2"},
        {"a: \"open\n", "line 2"},
        {"\ta: 1\n", "line 1"},
        {"a: \xFF\xFE\n", "line 1"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *value;
        realm_error error;
        assert_status(yaml_parse(&value, cases[i].text, strlen(cases[i].text), &error),
                      REALM_INVALID, error);
        assert_null(value);
        assert_holds(error.message, cases[i].said);
    }
}

static void size_and_depth_have_limits(void **state)
{
    (void)state;
    json_t *value;
    realm_error error;
    char text[128] = "a: ";
    memset(text + 3, '[', YAML_MAX_DEPTH);
    assert_status(yaml_parse(&value, text, strlen(text), &error), REALM_TOO_LARGE, error);
    assert_holds(error.message, "nests deeper");
    memset(text + 3, '[', YAML_MAX_DEPTH - 1);
    memset(text + 3 + YAML_MAX_DEPTH - 1, ']', YAML_MAX_DEPTH - 1);
    text[3 + 2 * (YAML_MAX_DEPTH - 1)] = 0;
    assert_status(yaml_parse(&value, text, strlen(text), &error), REALM_OK, error);
    json_decref(value);
    char *large = calloc(1, YAML_MAX_BYTES + 2);
    memset(large, '#', YAML_MAX_BYTES + 1);
    assert_status(yaml_parse(&value, large, YAML_MAX_BYTES + 1, &error), REALM_TOO_LARGE, error);
    assert_status(yaml_parse(&value, large, YAML_MAX_BYTES, &error), REALM_OK, error);
    json_decref(value);
    free(large);
}

/* Every beginning of a file is a mistake or means something, and nothing is lost (sanitizers look). */
static void every_beginning_ends_well(void **state)
{
    (void)state;
    static const char text[] = "a: [1, {b: \"x\\u00e9\", 'c': ~}]\n# comment\nd: |\n  text\n"
                               "e:\n  - f\n  - g: {h: 1.5}\n";
    for (size_t size = 0; size < sizeof text; size++) {
        json_t *value;
        realm_error error;
        realm_status status = yaml_parse(&value, text, size, &error);
        assert_true((status == REALM_OK) == (value != NULL));
        json_decref(value);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(settings_are_read_as_they_look),
        cmocka_unit_test(what_is_quoted_or_odd_is_text),
        cmocka_unit_test(what_is_dangerous_or_wrong_is_refused_by_line),
        cmocka_unit_test(size_and_depth_have_limits),
        cmocka_unit_test(every_beginning_ends_well),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
