/* tenancy/jwt_keys.h: what jwt.c needs to know of the keys that jwt_keys.c reads. Private to both. */
#ifndef REALM_TENANCY_JWT_KEYS_H
#define REALM_TENANCY_JWT_KEYS_H

#include <openssl/evp.h>

#include "base/buffer.h"
#include "tenancy/jwt.h"

typedef struct jwt_key {
    char *kid;          /* NULL: it has none */
    unsigned algorithm; /* the one JWT_* that it is for: a key is never used with another */
    EVP_PKEY *public;   /* NULL for HS256 */
    unsigned char *secret;
    size_t secret_size;
} jwt_key;

const jwt_key *jwt_keys_at(const jwt_keys *k, int index);

/* Unpadded base64url into out (which has a cap), strictly: no other characters, no bits left over
 * (RFC 4648, 3.5). 0 if it is none or does not fit. */
int jwt_base64url(buffer *out, const char *text, size_t size);

#endif
