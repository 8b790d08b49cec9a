/* tenancy/jwt.h: bearer tokens that somebody else signed (RFC 7519, RFC 7515, RFC 8725).
 *
 * A small strict reader over OpenSSL: compact form only, one header, one signature. An algorithm is
 * taken only if the configuration names it and the key is of its kind: the token's header chooses among
 * keys, never how a key is used, which is what confusing RS256 with HS256 lives from. `none`, unknown
 * critical headers, keys inside of the token (jwk, x5u, jku, x5c are ignored), duplicate names and wrong
 * base64 are refused. Everything here is a pure function over constant keys: any thread, no I/O.
 * jwks.h gets keys from files and URLs. */
#ifndef REALM_TENANCY_JWT_H
#define REALM_TENANCY_JWT_H

#include "base/fail.h"
#include "formats/json.h"

/* bit, name in "alg" */
#define JWT_ALGORITHM_MAP(X)                                                                       \
    X(HS256, 0, "HS256")                                                                           \
    X(RS256, 1, "RS256")                                                                           \
    X(ES256, 2, "ES256")                                                                           \
    X(EDDSA, 3, "EdDSA")

typedef enum jwt_algorithm {
#define JWT_ALGORITHM_ENUM(constant, bit, text) JWT_##constant = 1 << bit,
    JWT_ALGORITHM_MAP(JWT_ALGORITHM_ENUM)
#undef JWT_ALGORITHM_ENUM
} jwt_algorithm;

/* 0 if name is none of them. */
unsigned jwt_algorithm_parse(const char *name);

/* ---- keys ---- */

typedef struct jwt_keys jwt_keys; /* constant and counted */

/* From a JWK set ({"keys":[...]}), a single JWK, a PEM public key or certificate, or, with hmac, the bytes
 * of a shared secret (at least 32; a final newline is not part of it). A set's keys that are of no use here
 * (encryption, other curves, private ones' secret parts) are passed over; a set without any usable key is an
 * error. RSA keys below 2048 bits are refused.
 *   REALM_INVALID      not in any of these forms, with the reason
 *   REALM_UNSUPPORTED  no key of a kind that an algorithm above can use */
realm_status jwt_keys_read(jwt_keys **out, const char *text, size_t size, int hmac,
                           realm_error *error);
jwt_keys *jwt_keys_retain(jwt_keys *k);
void jwt_keys_release(jwt_keys *k); /* NULL allowed */
int jwt_keys_count(const jwt_keys *k);

/* ---- tokens ---- */

typedef struct jwt_rules {
    unsigned algorithms; /* JWT_*; at least one */
    const char *issuer;  /* iss must be this; NULL: not looked at */
    const char
        *audience;    /* aud must be or hold this; NULL: a token with an aud is refused, since it
                                 was made for somebody (RFC 7519, 4.1.3) */
    int32_t leeway_s; /* clocks may differ by so much; at most 300 */
    const char *tenant_claim; /* NULL: "tenant". "a.b" looks into objects */
    const char *scope_claim;  /* NULL: "scope" */
} jwt_rules;

#define JWT_MAX_BYTES 16384

typedef struct jwt_claims {
    char tenant[64]; /* checked as a tenant's name */
    unsigned
        scopes; /* API_SCOPE_*: those named, never API_SCOPES_OF_NODE; INFERENCE if there is no such claim */
    int64_t expires_s;
} jwt_claims;

/* Checks token[0..size) at now_s (seconds since 1970). exp is required.
 *   REALM_DENIED     the reason is in error; it is for the log and for the token's owner alike, since it
 *                    tells nothing that is not in the token
 *   REALM_NOT_FOUND  the header's kid names a key that is not there: keys may have been rotated */
realm_status jwt_check(const jwt_keys *keys, const jwt_rules *rules, const char *token, size_t size,
                       int64_t now_s, jwt_claims *out, realm_error *error);

/* 1 if it looks like a token rather than a key: three parts between dots. */
int jwt_looks_like(const char *text, size_t size);

#endif
