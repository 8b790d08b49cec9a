/* tenancy/jwt_keys.c: keys for jwt.h: JWK (RFC 7517, 7518, 8037), PEM, shared secrets.
 *
 * A key's algorithm follows from its kind here, once: RSA is for RS256, P-256 for ES256, Ed25519 for EdDSA and a
 * secret for HS256. A secret is only taken from a source that was said to be one, so that a set of public keys can
 * never bring one. */
#include "tenancy/jwt_keys.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/param_build.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define MAX_KEYS       64
#define MAX_SET_BYTES  (1u << 20)
#define MAX_KEY_BYTES  2048 /* of one number: RSA with 16384 bits */
#define LEAST_RSA_BITS 2048
#define LEAST_SECRET   32 /* RFC 7518, 3.2: at least as long as the hash */

struct jwt_keys {
    atomic_uint references;
    int count;
    jwt_key keys[MAX_KEYS];
};

unsigned jwt_algorithm_parse(const char *name)
{
#define PARSE(constant, bit, text)                                                                 \
    if (strcmp(name, text) == 0)                                                                   \
        return 1u << bit;
    JWT_ALGORITHM_MAP(PARSE)
#undef PARSE
    return 0;
}

/* ---- base64url ---- */

static int value_of(char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '-' ? 62 : c == '_' ? 63 : -1;
}

int jwt_base64url(buffer *out, const char *text, size_t size)
{
    uint32_t bits = 0;
    int n_bits = 0;
    if (size % 4 == 1 || buffer_reserve(out, size / 4 * 3 + 3))
        return 0;
    for (size_t i = 0; i < size; i++) {
        int value = value_of(text[i]);
        if (value < 0)
            return 0;
        bits = bits << 6 | (uint32_t)value;
        n_bits += 6;
        if (n_bits >= 8) {
            n_bits -= 8;
            unsigned char byte = (unsigned char)(bits >> n_bits);
            if (buffer_add(out, &byte, 1))
                return 0;
        }
    }
    return (bits & ((1u << n_bits) - 1)) == 0;
}

/* ---- keys ---- */

static void release_key(jwt_key *k)
{
    free(k->kid);
    EVP_PKEY_free(k->public);
    if (k->secret)
        OPENSSL_cleanse(k->secret, k->secret_size);
    free(k->secret);
}

jwt_keys *jwt_keys_retain(jwt_keys *k)
{
    atomic_fetch_add(&k->references, 1);
    return k;
}

void jwt_keys_release(jwt_keys *k)
{
    if (!k || atomic_fetch_sub(&k->references, 1) != 1)
        return;
    for (int i = 0; i < k->count; i++)
        release_key(&k->keys[i]);
    free(k);
}

int jwt_keys_count(const jwt_keys *k)
{
    return k->count;
}

const jwt_key *jwt_keys_at(const jwt_keys *k, int index)
{
    return &k->keys[index];
}

static realm_status bad_key(realm_error *error, const char *reason)
{
    ERR_clear_error();
    return realm_fail(error, REALM_INVALID, "a key is refused: %s", reason);
}

/* What the public key is good for. */
static realm_status classify(jwt_key *k, realm_error *error)
{
    char group[64];
    size_t size;
    switch (EVP_PKEY_get_base_id(k->public)) {
    case EVP_PKEY_RSA:
        if (EVP_PKEY_get_bits(k->public) < LEAST_RSA_BITS)
            return bad_key(error, "an RSA key has less than 2048 bits");
        k->algorithm = JWT_RS256;
        return REALM_OK;
    case EVP_PKEY_EC:
        if (!EVP_PKEY_get_group_name(k->public, group, sizeof group, &size) ||
            strcmp(group, SN_X9_62_prime256v1) != 0)
            break;
        k->algorithm = JWT_ES256;
        return REALM_OK;
    case EVP_PKEY_ED25519: k->algorithm = JWT_EDDSA; return REALM_OK;
    default: break;
    }
    return realm_fail(error, REALM_UNSUPPORTED,
                      "a key is of a kind that none of RS256, ES256 and EdDSA uses");
}

/* ---- JWK ---- */

/* The member's bytes, in out from its beginning; 0 if it is absent or broken. */
static int member(const json_t *jwk, const char *name, buffer *out)
{
    const char *text;
    size_t size;
    buffer_clear(out);
    return json_get_text(jwk, name, &text, &size, NULL) == REALM_OK &&
           jwt_base64url(out, text, size) && out->size > 0;
}

static EVP_PKEY *from_parameters(const char *kind, OSSL_PARAM_BLD *builder)
{
    EVP_PKEY *key = NULL;
    OSSL_PARAM *parameters = OSSL_PARAM_BLD_to_param(builder);
    EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_name(NULL, kind, NULL);
    if (!parameters || !context || EVP_PKEY_fromdata_init(context) != 1 ||
        EVP_PKEY_fromdata(context, &key, EVP_PKEY_PUBLIC_KEY, parameters) != 1)
        key = NULL;
    EVP_PKEY_CTX_free(context);
    OSSL_PARAM_free(parameters);
    return key;
}

static EVP_PKEY *read_rsa(const json_t *jwk, buffer *bytes)
{
    EVP_PKEY *key = NULL;
    BIGNUM *n = NULL, *e = NULL;
    OSSL_PARAM_BLD *builder = OSSL_PARAM_BLD_new();
    if (member(jwk, "n", bytes))
        n = BN_bin2bn((unsigned char *)bytes->data, (int)bytes->size, NULL);
    if (member(jwk, "e", bytes))
        e = BN_bin2bn((unsigned char *)bytes->data, (int)bytes->size, NULL);
    if (builder && n && e && OSSL_PARAM_BLD_push_BN(builder, OSSL_PKEY_PARAM_RSA_N, n) &&
        OSSL_PARAM_BLD_push_BN(builder, OSSL_PKEY_PARAM_RSA_E, e))
        key = from_parameters("RSA", builder);
    OSSL_PARAM_BLD_free(builder);
    BN_free(n);
    BN_free(e);
    return key;
}

/* from_parameters checks that the point is on the curve. */
static EVP_PKEY *read_p256(const json_t *jwk, buffer *bytes)
{
    unsigned char point[65] = {4}; /* not compressed */
    const char *const names[] = {"x", "y"};
    for (int i = 0; i < 2; i++) {
        if (!member(jwk, names[i], bytes) || bytes->size != 32)
            return NULL;
        memcpy(point + 1 + 32 * i, bytes->data, 32);
    }
    EVP_PKEY *key = NULL;
    OSSL_PARAM_BLD *builder = OSSL_PARAM_BLD_new();
    if (builder &&
        OSSL_PARAM_BLD_push_utf8_string(builder, OSSL_PKEY_PARAM_GROUP_NAME, "prime256v1", 0) &&
        OSSL_PARAM_BLD_push_octet_string(builder, OSSL_PKEY_PARAM_PUB_KEY, point, sizeof point))
        key = from_parameters("EC", builder);
    OSSL_PARAM_BLD_free(builder);
    return key;
}

static EVP_PKEY *read_ed25519(const json_t *jwk, buffer *bytes)
{
    if (!member(jwk, "x", bytes) || bytes->size != 32)
        return NULL;
    return EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, NULL, (unsigned char *)bytes->data,
                                       bytes->size);
}

static int is(const json_t *object, const char *name, const char *wanted)
{
    const char *text;
    return json_get_text(object, name, &text, NULL, NULL) == REALM_OK && strcmp(text, wanted) == 0;
}

/* 0 for keys that are there for something else than checking signatures. */
static int is_for_signatures(const json_t *jwk)
{
    const json_t *operations = json_object_get(jwk, "key_ops");
    if (json_object_get(jwk, "use") && !is(jwk, "use", "sig"))
        return 0;
    if (!operations)
        return 1;
    for (size_t i = 0; i < json_array_size(operations); i++) {
        const char *text = json_string_value(json_array_get(operations, i));
        if (text && strcmp(text, "verify") == 0)
            return 1;
    }
    return 0;
}

static realm_status set_secret(jwt_key *k, const void *bytes, size_t size, realm_error *error)
{
    if (size < LEAST_SECRET)
        return bad_key(error, "a shared secret has less than 32 bytes");
    k->secret = malloc(size);
    if (!k->secret)
        return realm_fail_memory(error, size, "a shared secret");
    memcpy(k->secret, bytes, size);
    k->secret_size = size;
    k->algorithm = JWT_HS256;
    return REALM_OK;
}

static realm_status read_kind(jwt_key *k, const json_t *jwk, int hmac, buffer *bytes,
                              realm_error *error)
{
    if (is(jwk, "kty", "oct") && hmac)
        return member(jwk, "k", bytes) ? set_secret(k, bytes->data, bytes->size, error)
                                       : bad_key(error, "'k' is no base64url");
    if (hmac)
        return realm_fail(error, REALM_UNSUPPORTED, "a key is no shared secret");
    if (is(jwk, "kty", "RSA"))
        k->public = read_rsa(jwk, bytes);
    else if (is(jwk, "kty", "EC") && is(jwk, "crv", "P-256"))
        k->public = read_p256(jwk, bytes);
    else if (is(jwk, "kty", "OKP") && is(jwk, "crv", "Ed25519"))
        k->public = read_ed25519(jwk, bytes);
    else
        return realm_fail(error, REALM_UNSUPPORTED, "a key is of a kind that is not used here");
    return k->public ? classify(k, error) : bad_key(error, "its numbers are missing or wrong");
}

static realm_status read_jwk(jwt_key *k, const json_t *jwk, int hmac, realm_error *error)
{
    const char *kid = NULL, *alg = NULL;
    buffer bytes;
    if (!json_is_object(jwk))
        return bad_key(error, "it is no object");
    if (!is_for_signatures(jwk))
        return realm_fail(error, REALM_UNSUPPORTED, "a key is not for signatures");
    buffer_init(&bytes, MAX_KEY_BYTES);
    realm_status status = read_kind(k, jwk, hmac, &bytes, error);
    buffer_release(&bytes);
    if (!status)
        status = JSON_OPTIONAL(json_get_text(jwk, "kid", &kid, NULL, error));
    if (!status)
        status = JSON_OPTIONAL(json_get_text(jwk, "alg", &alg, NULL, error));
    if (!status && alg && jwt_algorithm_parse(alg) != k->algorithm)
        status = realm_fail(error, REALM_UNSUPPORTED, "a key is for the algorithm '%.20s'", alg);
    if (!status && kid && !(k->kid = strdup(kid)))
        status = realm_fail_memory(error, strlen(kid), "a key's id");
    return status;
}

static realm_status add_jwk(jwt_keys *k, const json_t *jwk, int hmac, realm_error *error)
{
    if (k->count == MAX_KEYS)
        return realm_fail(error, REALM_TOO_LARGE, "a set has more than %d keys", MAX_KEYS);
    jwt_key *key = &k->keys[k->count];
    realm_status status = read_jwk(key, jwk, hmac, error);
    if (status) {
        release_key(key);
        *key = (jwt_key){0};
        return status;
    }
    k->count++;
    return REALM_OK;
}

/* One key that is of no use must not take the others with it: sets are shared with other services. */
static realm_status read_set(jwt_keys *k, const json_t *set, int hmac, realm_error *error)
{
    realm_status last = REALM_OK;
    for (size_t i = 0; i < json_array_size(set); i++) {
        realm_status status = add_jwk(k, json_array_get(set, i), hmac, error);
        if (status == REALM_TOO_LARGE || status == REALM_NO_MEMORY)
            return status;
        if (status)
            last = status;
    }
    if (k->count)
        return REALM_OK;
    return last ? realm_fail_in(error, last, "no key of the set can be used")
                : realm_fail(error, REALM_UNSUPPORTED, "the set of keys is empty");
}

static realm_status read_json(jwt_keys *k, const json_t *value, int hmac, realm_error *error)
{
    const json_t *set = json_object_get(value, "keys");
    if (json_is_array(set))
        return read_set(k, set, hmac, error);
    return add_jwk(k, value, hmac, error);
}

/* ---- PEM ---- */

static realm_status read_pem(jwt_keys *k, const char *text, size_t size, realm_error *error)
{
    jwt_key *key = &k->keys[0];
    BIO *bio = BIO_new_mem_buf(text, (int)size);
    X509 *certificate = NULL;
    if (bio && strstr(text, "-----BEGIN CERTIFICATE-----")) {
        certificate = PEM_read_bio_X509(bio, NULL, NULL, NULL);
        key->public = certificate ? X509_get_pubkey(certificate) : NULL;
    } else if (bio) {
        key->public = PEM_read_bio_PUBKEY(bio, NULL, NULL, NULL);
    }
    X509_free(certificate);
    BIO_free(bio);
    k->count = key->public != NULL;
    return key->public ? classify(key, error)
                       : bad_key(error, "neither a JWK nor a PEM public key or certificate");
}

/* ---- all of them ---- */

static realm_status read_secret(jwt_keys *k, const char *text, size_t size, realm_error *error)
{
    if (size && text[size - 1] == '\n')
        size--;
    k->count = 1;
    return set_secret(&k->keys[0], text, size, error);
}

static realm_status read_any(jwt_keys *k, const char *text, size_t size, int hmac,
                             realm_error *error)
{
    json_t *value;
    realm_status status = json_parse(&value, text, size, MAX_SET_BYTES, 16, error);
    if (status == REALM_TOO_LARGE)
        return status;
    if (!status && json_is_object(value))
        status = read_json(k, value, hmac, error);
    else if (hmac)
        status = read_secret(k, text, size, error);
    else
        status = read_pem(k, text, size, error);
    /* A secret may happen to be a JSON number or string: value is then set, and not used. */
    json_decref(value);
    return status;
}

realm_status jwt_keys_read(jwt_keys **out, const char *text, size_t size, int hmac,
                           realm_error *error)
{
    jwt_keys *k = calloc(1, sizeof *k);
    char *copy = malloc(size + 1); /* terminated, for strstr */
    realm_status status = k && copy ? REALM_OK : realm_fail_memory(error, size, "keys");
    if (!status) {
        atomic_init(&k->references, 1);
        memcpy(copy, text, size);
        copy[size] = 0;
        status = read_any(k, copy, size, hmac, error);
    }
    if (copy)
        OPENSSL_cleanse(copy, size);
    free(copy);
    if (status)
        jwt_keys_release(k);
    else
        *out = k;
    return status;
}
