/* tests/unit/tenancy/api_key_test.c: the form of keys, their checksum and what is stored of them. */
#include "unit/unit.h"

#include <openssl/sha.h>

#include "tenancy/api_key.h"

static realm_error error;

static api_key_secret made(void)
{
    api_key_secret key;
    assert_status(api_key_make(&key, &error), REALM_OK, error);
    return key;
}

static void a_key_has_its_form_and_is_found_by_its_id(void **state)
{
    (void)state;
    for (int i = 0; i < 100; i++) {
        api_key_secret key = made();
        char id[API_KEY_ID_SIZE + 1];
        assert_int_equal(strlen(key.text), API_KEY_SIZE);
        assert_int_equal(strncmp(key.text, "rk_", 3), 0);
        assert_int_equal(key.text[3 + API_KEY_ID_SIZE], '_');
        assert_true(api_key_parse(key.text, strlen(key.text), id));
        assert_string_equal(id, key.id);
        assert_true(api_key_matches(key.text, strlen(key.text), key.salt, key.hash));
    }
}

static void no_two_keys_share_an_id_a_salt_or_a_secret(void **state)
{
    (void)state;
    enum { COUNT = 300 };
    static api_key_secret keys[COUNT];
    for (int i = 0; i < COUNT; i++) {
        keys[i] = made();
        for (int j = 0; j < i; j++) {
            assert_string_not_equal(keys[i].id, keys[j].id);
            assert_memory_not_equal(keys[i].salt, keys[j].salt, API_KEY_SALT_SIZE);
            assert_string_not_equal(keys[i].text + 16, keys[j].text + 16);
        }
    }
}

/* What is stored is SHA-256(salt || key), as OpenSSL's own one-shot function computes it. */
static void the_hash_is_sha_256_of_salt_and_key(void **state)
{
    (void)state;
    api_key_secret key = made();
    unsigned char both[API_KEY_SALT_SIZE + API_KEY_SIZE], digest[32];
    memcpy(both, key.salt, API_KEY_SALT_SIZE);
    memcpy(both + API_KEY_SALT_SIZE, key.text, API_KEY_SIZE);
    SHA256(both, sizeof both, digest);
    assert_memory_equal(digest, key.hash, sizeof digest);
}

static void a_changed_character_anywhere_is_noticed(void **state)
{
    (void)state;
    api_key_secret key = made();
    char id[API_KEY_ID_SIZE + 1];
    for (size_t i = 0; i < API_KEY_SIZE; i++) {
        char text[API_KEY_SIZE + 1];
        memcpy(text, key.text, sizeof text);
        text[i] = text[i] == 'a' ? 'b' : 'a';
        assert_false(api_key_parse(text, API_KEY_SIZE, id));
        assert_false(api_key_matches(text, API_KEY_SIZE, key.salt, key.hash));
    }
}

static void what_is_no_key_is_none(void **state)
{
    (void)state;
    char id[API_KEY_ID_SIZE + 1];
    api_key_secret key = made(), other = made();
    char spaced[API_KEY_SIZE + 2];
    snprintf(spaced, sizeof spaced, "%s ", key.text);
    assert_false(api_key_parse("", 0, id));
    assert_false(api_key_parse("rk_", 3, id));
    assert_false(api_key_parse(key.text, API_KEY_SIZE - 1, id));
    assert_false(api_key_parse(spaced, API_KEY_SIZE + 1, id));
    assert_false(api_key_matches(other.text, API_KEY_SIZE, key.salt, key.hash));
    assert_false(api_key_matches(key.text, API_KEY_SIZE, other.salt, key.hash));
    assert_false(api_key_matches(key.text, 5, key.salt, key.hash));
}

/* CRC-32 of "123456789" is cbf43926; the key's checksum is over another text, so it is checked by a key that
 * was made with Python: zlib.crc32 and base 62. */
static void the_checksum_is_crc_32_in_base_62(void **state)
{
    (void)state;
    static const char key[] = "rk_abcdefghijkl_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefgCHECK_";
    char text[sizeof key], id[API_KEY_ID_SIZE + 1];
    memcpy(text, key, sizeof key);
    memcpy(text + API_KEY_SIZE - 6, "4chGeb", 6);
    assert_true(api_key_parse(text, API_KEY_SIZE, id));
    assert_string_equal(id, "abcdefghijkl");
}

static void scopes_are_words(void **state)
{
    (void)state;
    unsigned scopes;
    char text[API_SCOPES_TEXT_SIZE];
    assert_status(api_scopes_parse("deploy, inference", &scopes, &error), REALM_OK, error);
    assert_int_equal(scopes, API_SCOPE_DEPLOY | API_SCOPE_INFERENCE);
    assert_string_equal(api_scopes_text(scopes, text), "inference,deploy");
    assert_string_equal(api_scopes_text(31, text), "inference,deploy,usage,admin,metrics");
    assert_int_equal(api_scopes_parse("inference,root", &scopes, &error), REALM_INVALID);
    assert_holds(error.message, "root");
    assert_int_equal(api_scopes_parse("", &scopes, &error), REALM_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_key_has_its_form_and_is_found_by_its_id),
        cmocka_unit_test(no_two_keys_share_an_id_a_salt_or_a_secret),
        cmocka_unit_test(the_hash_is_sha_256_of_salt_and_key),
        cmocka_unit_test(a_changed_character_anywhere_is_noticed),
        cmocka_unit_test(what_is_no_key_is_none),
        cmocka_unit_test(the_checksum_is_crc_32_in_base_62),
        cmocka_unit_test(scopes_are_words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
