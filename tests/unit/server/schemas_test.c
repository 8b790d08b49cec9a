/* tests/unit/server/schemas_test.c: which objects of a client's schema are closed, and which are not. */
#include "unit/unit.h"

#include "server/schemas.h"

#define P "\"properties\":{\"a\":{\"type\":\"string\"}}"

/* after NULL: as it was. */
static void assert_closed(const char *before, const char *after)
{
    json_t *schema = json_loads(before, JSON_DECODE_ANY, NULL);
    json_t *wanted = json_loads(after ? after : before, JSON_DECODE_ANY, NULL);
    assert_non_null(schema);
    assert_non_null(wanted);
    schemas_close(schema);
    if (!json_equal(schema, wanted))
        fail_msg("%s became %s", before, json_dumps(schema, JSON_COMPACT));
    json_decref(schema);
    json_decref(wanted);
}

static void objects_that_list_their_properties_are_closed(void **state)
{
    (void)state;
    assert_closed("{" P "}", "{" P ",\"additionalProperties\":false}");
    assert_closed("{" P ",\"required\":[\"a\"]}",
                  "{" P ",\"required\":[\"a\"],\"additionalProperties\":false}");
    assert_closed("{\"type\":\"array\",\"items\":{" P "}}",
                  "{\"type\":\"array\",\"items\":{" P ",\"additionalProperties\":false}}");
    assert_closed("{\"$ref\":\"#/$defs/x\",\"$defs\":{\"x\":{" P "}}}",
                  "{\"$ref\":\"#/$defs/x\",\"$defs\":{\"x\":{" P
                  ",\"additionalProperties\":false}}}");
    assert_closed("{\"anyOf\":[{" P "},{\"type\":\"null\"}]}",
                  "{\"anyOf\":[{" P ",\"additionalProperties\":false},{\"type\":\"null\"}]}");
    assert_closed("{\"properties\":{\"b\":{" P "}}}",
                  "{\"properties\":{\"b\":{" P
                  ",\"additionalProperties\":false}},\"additionalProperties\":false}");
}

static void what_says_of_others_is_left_as_it_is(void **state)
{
    (void)state;
    assert_closed("{\"type\":\"object\"}", NULL);
    assert_closed("{" P ",\"additionalProperties\":true}", NULL);
    assert_closed("{" P ",\"additionalProperties\":{\"type\":\"integer\"}}", NULL);
    assert_closed("{" P ",\"patternProperties\":{\"^x\":{}}}", NULL);
    assert_closed("{" P ",\"required\":[\"b\"]}", NULL);
    assert_closed("{" P ",\"minProperties\":2}", NULL);
    assert_closed("{\"const\":{" P "}}", NULL);
    assert_closed("true", NULL);
}

/* A closed part would forbid what another part asks for. */
static void objects_that_are_put_together_are_left_as_they_are(void **state)
{
    (void)state;
    assert_closed("{\"allOf\":[{" P "},{\"properties\":{\"b\":{}}}]}", NULL);
    assert_closed("{" P ",\"anyOf\":[{\"properties\":{\"b\":{}}},{\"properties\":{\"c\":{}}}]}",
                  NULL);
    assert_closed("{" P ",\"oneOf\":[{\"required\":[\"a\"]}]}", NULL);
    assert_closed("{\"properties\":{\"b\":{},\"c\":{\"allOf\":[{\"$ref\":\"#/$defs/x\"},{" P
                  "}]}},\"$defs\":{\"x\":{" P "}}}",
                  NULL);
    assert_closed("{\"$ref\":\"#/$defs/x\"," P ",\"$defs\":{\"x\":{\"properties\":{\"b\":{}}}}}",
                  NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(objects_that_list_their_properties_are_closed),
        cmocka_unit_test(what_says_of_others_is_left_as_it_is),
        cmocka_unit_test(objects_that_are_put_together_are_left_as_they_are),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
