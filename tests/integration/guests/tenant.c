/* tenant.c: state and calls of other programs. */
#include "check.h"

static int32_t check(void)
{
    static char value[64], large[1];
    CHECK_EQUAL(realm_state_get(REALM_TEXT("key"), value, sizeof value), REALM_E_NOT_FOUND);
    CHECK_EQUAL(realm_state_put(REALM_TEXT("key"), "one\0two", 7), 0);
    CHECK_EQUAL(realm_state_get(REALM_TEXT("key"), value, 2), 7);
    CHECK(value[0] == 'o' && value[1] == 'n' && value[2] == 0);
    CHECK_EQUAL(realm_state_get(REALM_TEXT("key"), value, sizeof value), 7);
    CHECK(value[3] == 0 && value[6] == 'o');
    CHECK_EQUAL(realm_state_put(REALM_TEXT("key"), "", 0), 0);
    CHECK_EQUAL(realm_state_get(REALM_TEXT("key"), value, sizeof value), 0);
    CHECK_EQUAL(realm_state_delete(REALM_TEXT("key")), 1);
    CHECK_EQUAL(realm_state_delete(REALM_TEXT("key")), 0);
    char *key = realm_alloc(65537);
    CHECK(key);
    CHECK_EQUAL(realm_state_put(key, 65537, "x", 1), REALM_E_TOO_LARGE);
    CHECK_EQUAL(realm_call(REALM_TEXT("no such program"), "", 0, large, sizeof large),
                REALM_E_NOT_FOUND);
    return PASS;
}
