/* tests/unit/tenancy/settings_test.c: settings as JSON, there and back. */
#include "unit/unit.h"

#include "tenancy/settings.h"

static realm_error error;
static arena memory;

static int make_arena(void **state)
{
    (void)state;
    arena_init(&memory, 0);
    return 0;
}

static int free_arena(void **state)
{
    (void)state;
    arena_release(&memory);
    return 0;
}

static realm_status read_text(tenant_settings *s, const char *text)
{
    json_t *object;
    assert_status(json_parse(&object, text, strlen(text), 65536, 8, &error), REALM_OK, error);
    realm_status status = settings_read(s, &memory, object, &error);
    json_decref(object);
    return status;
}

static void defaults_are_those_of_the_sandbox(void **state)
{
    (void)state;
    tenant_settings s = settings_default();
    sandbox_limits ours = settings_limits(&s), theirs = SANDBOX_LIMITS_DEFAULT;
    assert_int_equal(ours.memory_bytes, theirs.memory_bytes);
    assert_int_equal(ours.memory64_bytes, theirs.memory64_bytes);
    assert_int_equal(ours.cpu_ns, theirs.cpu_ns);
    assert_int_equal(ours.wall_ns, theirs.wall_ns);
    assert_int_equal(ours.slice_ns, theirs.slice_ns);
    assert_int_equal(ours.sessions, theirs.sessions);
    assert_int_equal(ours.kv_pages, theirs.kv_pages);
    assert_int_equal(ours.state_bytes, theirs.state_bytes);
    assert_int_equal(ours.input_bytes, theirs.input_bytes);
    assert_int_equal(ours.output_bytes, theirs.output_bytes);
    assert_int_equal(ours.log_bytes, theirs.log_bytes);
    assert_int_equal(ours.tensor_bytes, theirs.tensor_bytes);
    assert_int_equal(ours.requests, theirs.requests);
    assert_int_equal(ours.call_depth, theirs.call_depth);
    assert_false(s.capabilities & (CAPABILITY_TENSORS | CAPABILITY_ADAPTERS));
}

static void what_is_written_is_read_back(void **state)
{
    (void)state;
    tenant_settings s = settings_default(), again = settings_default();
    assert_status(read_text(&s, "{\"requests_per_minute\": 500, \"tokens_per_month\": 1000000,"
                                " \"weight\": 2.5, \"priority\": \"high\","
                                " \"capabilities\": [\"models\", \"tensors\"],"
                                " \"models\": [\"b\", \"a\"], \"programs\": []}"),
                  REALM_OK, error);
    json_t *object = settings_json(&s);
    char *text = json_dumps(object, 0);
    assert_status(read_text(&again, text), REALM_OK, error);
    assert_int_equal(again.requests_per_minute, 500);
    assert_int_equal(again.tokens_per_month, 1000000);
    assert_true(again.weight == 2.5);
    assert_int_equal(again.priority, PRIORITY_HIGH);
    assert_int_equal(again.capabilities, CAPABILITY_MODELS | CAPABILITY_TENSORS);
    assert_int_equal(again.models.count, 2);
    assert_string_equal(again.models.names[0], "b");
    assert_false(again.models.all);
    assert_true(settings_allow(&again.models, "a", 1));
    assert_false(settings_allow(&again.models, "ab", 2));
    assert_false(settings_allow(&again.programs, "chat", 4));
    free(text);
    json_decref(object);
}

static void null_sets_back(void **state)
{
    (void)state;
    tenant_settings s = settings_default();
    assert_status(read_text(&s, "{\"requests_per_minute\": 5, \"models\": [\"a\"]}"), REALM_OK,
                  error);
    assert_status(read_text(&s, "{\"requests_per_minute\": null, \"models\": null}"), REALM_OK,
                  error);
    assert_int_equal(s.requests_per_minute, 0);
    assert_true(settings_allow(&s.models, "anything", 8));
}

static void mistakes_are_named(void **state)
{
    (void)state;
    static const struct {
        const char *text, *word;
    } mistakes[] = {
        {"{\"requests_per_hour\": 1}", "requests_per_hour"},
        {"{\"unknown\": null}", "unknown"},
        {"{\"requests_per_minute\": -1}", "requests_per_minute"},
        {"{\"requests_per_minute\": \"many\"}", "requests_per_minute"},
        {"{\"concurrent_requests\": 0}", "concurrent_requests"},
        {"{\"weight\": 0}", "weight"},
        {"{\"weight\": 1e300}", "weight"},
        {"{\"priority\": \"urgent\"}", "urgent"},
        {"{\"capabilities\": [\"root\"]}", "root"},
        {"{\"capabilities\": \"models\"}", "capabilities"},
        {"{\"models\": [1]}", "models"},
        {"{\"models\": [\"\"]}", "models"},
        {"{\"models\": [\"a\\u0000b\"]}", "models"},
        {"[]", "object"},
    };
    for (size_t i = 0; i < sizeof mistakes / sizeof *mistakes; i++) {
        tenant_settings s = settings_default();
        assert_int_equal(read_text(&s, mistakes[i].text), REALM_INVALID);
        assert_holds(error.message, mistakes[i].word);
    }
}

static void names_may_stand_anywhere(void **state)
{
    (void)state;
    static const char *const good[] = {"a", "0", "acme", "a-b_c.d", "7up"};
    static const char *const bad[] = {"",    ".",   "..",  "-a",   "_a",       "A",  "a b",
                                      "a/b", "a\n", "a'b", "a\"b", "\xc3\xa4", "a:b"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_status(settings_check_name("tenant", good[i], strlen(good[i]), &error), REALM_OK,
                      error);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(settings_check_name("tenant", bad[i], strlen(bad[i]), &error),
                         REALM_INVALID);
    assert_int_equal(settings_check_name("tenant", "a\0b", 3, &error), REALM_INVALID);
    char longest[65];
    memset(longest, 'a', sizeof longest);
    assert_status(settings_check_name("tenant", longest, 63, &error), REALM_OK, error);
    assert_int_equal(settings_check_name("tenant", longest, 64, &error), REALM_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(defaults_are_those_of_the_sandbox, make_arena, free_arena),
        cmocka_unit_test_setup_teardown(what_is_written_is_read_back, make_arena, free_arena),
        cmocka_unit_test_setup_teardown(null_sets_back, make_arena, free_arena),
        cmocka_unit_test_setup_teardown(mistakes_are_named, make_arena, free_arena),
        cmocka_unit_test_setup_teardown(names_may_stand_anywhere, make_arena, free_arena),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
