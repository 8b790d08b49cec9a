/* tests/unit/tenancy/jwt_test.c: bearer tokens that PyJWT signed and that were forged by hand; see
 * tests/golden/jwt/make.py, which says what each is. */
#include "unit/unit.h"

#include "base/file.h"
#include "base/rng.h"
#include "tenancy/api_key.h"
#include "tenancy/jwt.h"

static realm_error error;
static json_t *g_golden;

static int load(void **state)
{
    (void)state;
    arena a;
    char *text;
    size_t size;
    arena_init(&a, 0);
    realm_status status = file_read(&a, REALM_SOURCE_DIR "/tests/golden/jwt/golden.json", 4 << 20,
                                    &text, &size, &error);
    if (!status)
        status = json_parse(&g_golden, text, size, 4 << 20, 16, &error);
    arena_release(&a);
    return status;
}

static int unload(void **state)
{
    (void)state;
    json_decref(g_golden);
    return 0;
}

static const char *text_of(const json_t *object, const char *name)
{
    return json_string_value(json_object_get(object, name));
}

static jwt_rules rules_of(const json_t *rules)
{
    jwt_rules r = {.issuer = text_of(rules, "issuer"),
                   .audience = text_of(rules, "audience"),
                   .tenant_claim = text_of(rules, "tenant_claim"),
                   .scope_claim = text_of(rules, "scope_claim"),
                   .leeway_s = (int32_t)json_integer_value(json_object_get(rules, "leeway"))};
    char names[128], *rest = names;
    snprintf(names, sizeof names, "%s", text_of(rules, "algorithms"));
    for (char *name; (name = strsep(&rest, " "));)
        r.algorithms |= jwt_algorithm_parse(name);
    return r;
}

static jwt_keys *keys_of(const json_t *one)
{
    jwt_keys *keys;
    const json_t *text = json_array_get(json_object_get(g_golden, "keys"),
                                        (size_t)json_integer_value(json_object_get(one, "keys")));
    assert_status(jwt_keys_read(&keys, json_string_value(text), json_string_length(text),
                                json_is_true(json_object_get(one, "hmac")), &error),
                  REALM_OK, error);
    return keys;
}

static int64_t now_of_golden(void)
{
    return json_integer_value(json_object_get(g_golden, "now"));
}

static void check_case(const json_t *one)
{
    jwt_keys *keys = keys_of(one);
    jwt_rules rules = rules_of(json_object_get(one, "rules"));
    jwt_claims claims;
    const char *token = text_of(one, "token"), *name = text_of(one, "name");
    const char *wanted = text_of(one, "status"), *says = text_of(one, "says");
    realm_status status = jwt_check(keys, &rules, token, strlen(token), now_of_golden(), &claims,
                                    &error);
    if (strcmp(realm_status_name(status), wanted) != 0)
        fail_msg("%s: %s, not %s: %s", name, realm_status_name(status), wanted,
                 status ? error.message : "");
    if (!status) {
        char scopes[API_SCOPES_TEXT_SIZE];
        assert_string_equal(claims.tenant, text_of(one, "tenant"));
        assert_string_equal(api_scopes_text(claims.scopes, scopes), text_of(one, "scopes"));
    } else if (!strstr(error.message, says)) {
        fail_msg("%s: \"%s\" does not say \"%s\"", name, error.message, says);
    }
    jwt_keys_release(keys);
}

static void every_token_comes_to_what_it_must(void **state)
{
    (void)state;
    const json_t *cases = json_object_get(g_golden, "cases");
    assert_true(json_array_size(cases) > 100);
    for (size_t i = 0; i < json_array_size(cases); i++)
        check_case(json_array_get(cases, i));
}

static void weak_and_wrong_keys_are_refused(void **state)
{
    (void)state;
    const json_t *cases = json_object_get(g_golden, "refused_keys");
    assert_true(json_array_size(cases) > 10);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *one = json_array_get(cases, i);
        jwt_keys *keys;
        const char *text = text_of(one, "keys"), *says = text_of(one, "says");
        realm_status status = jwt_keys_read(&keys, text, strlen(text),
                                            json_is_true(json_object_get(one, "hmac")), &error);
        if (status == REALM_OK)
            fail_msg("%s is taken", text_of(one, "name"));
        if (!strstr(error.message, says))
            fail_msg("%s: \"%s\" does not say \"%s\"", text_of(one, "name"), error.message, says);
    }
}

/* Whatever byte of a good token changes, it is good no more. */
static void every_byte_of_a_token_counts(void **state)
{
    (void)state;
    const json_t *cases = json_object_get(g_golden, "cases");
    for (size_t i = 0; i < json_array_size(cases) && i < 8; i++) {
        const json_t *one = json_array_get(cases, i);
        jwt_keys *keys = keys_of(one);
        jwt_rules rules = rules_of(json_object_get(one, "rules"));
        jwt_claims claims;
        const char *token = text_of(one, "token");
        size_t size = strlen(token);
        char *changed = strdup(token);
        for (size_t at = 0; at < size; at += unit_is_emulated() ? 7 : 1) {
            changed[at] = token[at] == 'A' ? 'B' : 'A';
            if (jwt_check(keys, &rules, changed, size, now_of_golden(), &claims, NULL) == REALM_OK)
                fail_msg("case %zu is good with byte %zu changed", i, at);
            changed[at] = token[at];
        }
        for (size_t shorter = 0; shorter < size; shorter += 3)
            assert_true(jwt_check(keys, &rules, token, shorter, now_of_golden(), &claims, NULL) !=
                        REALM_OK);
        free(changed);
        jwt_keys_release(keys);
    }
}

static void a_token_is_told_from_a_key(void **state)
{
    (void)state;
    api_key_secret key;
    assert_status(api_key_make(&key, &error), REALM_OK, error);
    assert_true(jwt_looks_like("a.b.c", 5));
    assert_false(jwt_looks_like(key.text, strlen(key.text)));
    assert_false(jwt_looks_like("a.b", 3));
    assert_false(jwt_looks_like("a.b.c.d", 7));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_token_comes_to_what_it_must),
        cmocka_unit_test(weak_and_wrong_keys_are_refused),
        cmocka_unit_test(every_byte_of_a_token_counts),
        cmocka_unit_test(a_token_is_told_from_a_key),
    };
    return cmocka_run_group_tests(tests, load, unload);
}
