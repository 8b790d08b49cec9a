/* tests/unit/server/tool_calls_test.c: calls of tools as models write them. */
#include "unit/unit.h"

#include "server/tool_calls.h"

static void templates_show_their_style(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        tool_style style;
    } cases[] = {
        {"{% for m in messages %}{{ m.content }}{% endfor %}", TOOLS_NONE},
        {"{% if tools %}<tools></tools> <tool_call>{% endif %}", TOOLS_HERMES},
        {"{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]", TOOLS_MISTRAL},
        {"{% if tools %}Environment: ipython{% endif %}", TOOLS_LLAMA3},
        {"{% if tools %}in some way of its own{% endif %}", TOOLS_NONE},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(tool_calls_style(cases[i].text, strlen(cases[i].text)), cases[i].style);
}

static size_t plain(tool_style style, const char *text)
{
    return tool_calls_plain(style, text, strlen(text));
}

static void what_may_become_a_call_is_held_back(void **state)
{
    (void)state;
    assert_int_equal(plain(TOOLS_HERMES, "Hello"), 5);
    assert_int_equal(plain(TOOLS_HERMES, "Hello <tool"), 6);
    assert_int_equal(plain(TOOLS_HERMES, "Hello <toolbox"), 14);
    assert_int_equal(plain(TOOLS_HERMES, "a <tool_call>\n{"), 2);
    assert_int_equal(plain(TOOLS_LLAMA3, " \n"), 0);
    assert_int_equal(plain(TOOLS_LLAMA3, "{\"name\""), 0);
    assert_int_equal(plain(TOOLS_LLAMA3, "No {"), 4);
    assert_int_equal(plain(TOOLS_MISTRAL, "[TOOL_CALLS] ["), 0);
    assert_int_equal(plain(TOOLS_NONE, "<tool_call>"), 11);
}

static const char *field(const json_t *calls, size_t index, const char *key)
{
    return json_string_value(
        json_object_get(json_object_get(json_array_get(calls, index), "function"), key));
}

static void each_style_is_read(void **state)
{
    (void)state;
    static const struct {
        tool_style style;
        const char *text;
        size_t plain, count;
    } cases[] = {
        {TOOLS_HERMES, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>", 0,
         1},
        {TOOLS_HERMES,
         "Well. <tool_call>{\"name\":\"f\",\"arguments\":{\"a\": 1}}</tool_call>\n"
         "<tool_call>{\"name\":\"g\",\"arguments\":{}}</tool_call>",
         6, 2},
        {TOOLS_HERMES, "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\": 1}}", 0, 1},
        {TOOLS_LLAMA3, "{\"name\": \"f\", \"parameters\": {\"a\": 1}}", 0, 1},
        {TOOLS_LLAMA3, "<|python_tag|>{\"name\": \"f\", \"parameters\": {\"a\": 1}}", 0, 1},
        {TOOLS_MISTRAL, "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"a\": 1}}]", 0, 1},
        {TOOLS_MISTRAL, " [{\"name\": \"f\", \"arguments\": {\"a\": 1}}]", 0, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t at;
        json_t *calls = tool_calls_parse(cases[i].style, cases[i].text, strlen(cases[i].text), 0,
                                         "seed", &at);
        assert_non_null(calls);
        assert_int_equal(json_array_size(calls), cases[i].count);
        assert_int_equal(at, cases[i].plain);
        assert_string_equal(field(calls, 0, "name"), "f");
        assert_string_equal(field(calls, 0, "arguments"), "{\"a\":1}");
        json_decref(calls);
    }
}

static void what_is_no_call_stays_text(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "Hello",
        "<tool_call>{\"name\": 5, \"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": \"f\"}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"argum",
        "<tool_call>",
        "",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        size_t at;
        assert_null(tool_calls_parse(TOOLS_HERMES, texts[i], strlen(texts[i]), 0, "s", &at));
        assert_int_equal(at, strlen(texts[i]));
    }
}

static void a_forced_call_has_a_schema_and_is_read_whole(void **state)
{
    (void)state;
    json_t *tools = json_pack("[{s:{s:s, s:{s:s}}}, {s:{s:s}}]", "function", "name", "f",
                              "parameters", "type", "object", "function", "name", "g");
    json_t *one = tool_calls_schema(TOOLS_HERMES, tools, "g");
    assert_string_equal(json_string_value(json_object_get(
                            json_object_get(json_object_get(one, "properties"), "name"), "const")),
                        "g");
    json_t *any = tool_calls_schema(TOOLS_HERMES, tools, NULL);
    assert_int_equal(json_array_size(json_object_get(any, "anyOf")), 2);
    json_decref(one);
    json_decref(any);
    json_decref(tools);
    size_t at;
    static const char text[] = "{\"name\":\"f\",\"arguments\":{\"a\":1}}";
    json_t *calls = tool_calls_parse(TOOLS_HERMES, text, sizeof text - 1, 1, "s", &at);
    assert_int_equal(json_array_size(calls), 1);
    json_decref(calls);
}

/* OpenAI: "omitting parameters defines a function with an empty parameter list". */
static void a_function_without_parameters_is_called_with_none(void **state)
{
    (void)state;
    static const char *const functions[] = {
        "[{\"function\":{\"name\":\"f\"}}]",
        "[{\"function\":{\"name\":\"f\",\"parameters\":null}}]",
        "[{\"function\":{\"name\":\"f\",\"parameters\":{\"type\":\"object\",\"properties\":{}}}}]"};
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        json_t *tools = json_loads(functions[i], 0, NULL), *before = json_deep_copy(tools);
        json_t *schema = tool_calls_schema(TOOLS_HERMES, tools, "f");
        const json_t *arguments = json_object_get(json_object_get(schema, "properties"),
                                                  "arguments");
        assert_int_equal(json_object_size(json_object_get(arguments, "properties")), 0);
        assert_true(json_is_false(json_object_get(arguments, "additionalProperties")));
        assert_true(json_equal(tools, before)); /* the template shows them as they came */
        json_decref(schema);
        json_decref(before);
        json_decref(tools);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(templates_show_their_style),
        cmocka_unit_test(what_may_become_a_call_is_held_back),
        cmocka_unit_test(each_style_is_read),
        cmocka_unit_test(what_is_no_call_stays_text),
        cmocka_unit_test(a_forced_call_has_a_schema_and_is_read_whole),
        cmocka_unit_test(a_function_without_parameters_is_called_with_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
