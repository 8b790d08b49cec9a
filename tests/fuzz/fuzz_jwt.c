/* tests/fuzz/fuzz_jwt.c: hostile bytes as credentials: a bearer token against keys that are there, the same bytes as
 * keys, and as an API key. None may pass: no input holds a secret. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "tenancy/api_key.h"
#include "tenancy/jwt.h"

static const char secret[] = "a secret that no input of this program holds";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static jwt_keys *keys;
    jwt_keys *read;
    jwt_claims claims;
    char id[API_KEY_ID_SIZE + 1];
    const char *text = (const char *)data;
    jwt_rules rules = {.algorithms = JWT_HS256 | JWT_RS256 | JWT_ES256 | JWT_EDDSA};
    if (!keys && jwt_keys_read(&keys, secret, sizeof secret - 1, 1, NULL))
        abort();
    if (jwt_check(keys, &rules, text, size, 1800000000, &claims, NULL) == REALM_OK)
        abort();
    if (jwt_keys_read(&read, text, size, 0, NULL) == REALM_OK)
        jwt_keys_release(read);
    if (jwt_keys_read(&read, text, size, 1, NULL) == REALM_OK)
        jwt_keys_release(read);
    (void)api_key_parse(text, size, id);
    (void)jwt_looks_like(text, size);
    return 0;
}
