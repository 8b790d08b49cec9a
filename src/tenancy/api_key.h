/* tenancy/api_key.h: keys of tenants and of the node: made, taken apart, checked.
 *
 *     rk_7Kq2mZ0aWx4b_<43 letters and digits><6 of checksum>
 *        public id    secret: 256 random bits    CRC-32 of all before it
 *
 * The prefix and the checksum let people, logs' scrubbers and secret scanners recognize a key, and let a
 * mistyped one be refused before anything is looked up. The id finds the one record to compare with, so
 * nothing scans all keys. What is stored is SHA-256 of a random salt and the key: the secret has 256
 * random bits, so there is nothing to guess and a slow hash (bcrypt, argon2) would buy nothing but a way
 * to exhaust the server; the salt makes equal hashes impossible to spot and tables made in advance
 * useless. Hashes are compared in constant time. Pure functions, any thread. */
#ifndef REALM_TENANCY_API_KEY_H
#define REALM_TENANCY_API_KEY_H

#include "base/fail.h"

#define API_KEY_ID_SIZE   12
#define API_KEY_SIZE      (3 + API_KEY_ID_SIZE + 1 + 43 + 6)
#define API_KEY_SALT_SIZE 16
#define API_KEY_HASH_SIZE 32

typedef struct api_key_secret {
    char text[API_KEY_SIZE + 1]; /* shown once, never stored */
    char id[API_KEY_ID_SIZE + 1];
    uint8_t salt[API_KEY_SALT_SIZE];
    uint8_t hash[API_KEY_HASH_SIZE];
} api_key_secret;

/* A new key from the operating system's randomness.
 *   REALM_INTERNAL  it has none to give */
realm_status api_key_make(api_key_secret *out, realm_error *error);

/* 1 and the id if the text has a key's form and its checksum is right; else 0. */
int api_key_parse(const char *text, size_t size, char id[API_KEY_ID_SIZE + 1]);

/* 1 if the key belongs to salt and hash. Takes as long whether it does or not. */
int api_key_matches(const char *text, size_t size, const uint8_t salt[API_KEY_SALT_SIZE],
                    const uint8_t hash[API_KEY_HASH_SIZE]);

/* bit, name */
#define API_SCOPE_MAP(X)                                                                           \
    X(INFERENCE, 0, "inference") /* models and programs of the tenant */                           \
    X(DEPLOY, 1, "deploy")       /* the tenant's programs: deploy, list, roll back */              \
    X(USAGE, 2, "usage")         /* the tenant's usage and limits, read-only */                    \
    X(ADMIN, 3, "admin")         /* the node: every tenant. Only keys that belong to no tenant */  \
    X(METRICS, 4, "metrics")     /* the node's counters, with all tenants' names. Likewise */

typedef enum api_scope {
#define API_SCOPE_ENUM(constant, bit, text) API_SCOPE_##constant = 1 << bit,
    API_SCOPE_MAP(API_SCOPE_ENUM)
#undef API_SCOPE_ENUM
} api_scope;

/* Those that a key of the node may have, and no other. */
#define API_SCOPES_OF_NODE ((unsigned)(API_SCOPE_ADMIN | API_SCOPE_METRICS))

/* "inference,deploy", with commas or spaces between; REALM_INVALID names the wrong word. */
realm_status api_scopes_parse(const char *text, unsigned *scopes, realm_error *error);
/* The other way, with commas; returns text. */
#define API_SCOPES_TEXT_SIZE 64
const char *api_scopes_text(unsigned scopes, char text[API_SCOPES_TEXT_SIZE]);

#endif
