/* tenancy/jwt.c: see jwt.h. In this order: form, header, key, signature, and only then claims: nothing that is not
 * signed decides anything but which key is tried. */
#include "tenancy/jwt.h"

#include <math.h>
#include <openssl/crypto.h>
#include <openssl/ecdsa.h>
#include <openssl/err.h>
#include <openssl/hmac.h>
#include <string.h>
#include <strings.h>

#include "tenancy/api_key.h"
#include "tenancy/jwt_keys.h"
#include "tenancy/settings.h"

#define MAX_LEEWAY_S   300
#define MAX_SIGNATURE  2048
#define MAX_TRIES      8 /* keys tried for a token that names none: each costs a signature's check */
#define MAX_JSON_DEPTH 16

typedef struct token {
    const char *parts[3];
    size_t sizes[3];
    buffer bytes; /* of the part that is looked at */
} token;

static realm_status denied(realm_error *error, const char *reason)
{
    return realm_fail(error, REALM_DENIED, "the bearer token is refused: %s", reason);
}

/* ---- form ---- */

static int split(const char *text, size_t size, token *t)
{
    for (int i = 0; i < 3; i++) {
        const char *dot = memchr(text, '.', size);
        if ((i < 2) != (dot != NULL))
            return 0;
        t->parts[i] = text;
        t->sizes[i] = dot ? (size_t)(dot - text) : size;
        if (dot) {
            text += t->sizes[i] + 1;
            size -= t->sizes[i] + 1;
        }
    }
    return 1;
}

int jwt_looks_like(const char *text, size_t size)
{
    token t;
    return split(text, size, &t);
}

/* The part as a JSON object, to json_decref; NULL if it is none. */
static json_t *part_json(token *t, int i)
{
    json_t *value = NULL;
    buffer_clear(&t->bytes);
    if (!jwt_base64url(&t->bytes, t->parts[i], t->sizes[i]) ||
        json_parse(&value, t->bytes.data ? t->bytes.data : "", t->bytes.size, JWT_MAX_BYTES,
                   MAX_JSON_DEPTH, NULL))
        return NULL;
    if (!json_is_object(value)) {
        json_decref(value);
        return NULL;
    }
    return value;
}

/* ---- signatures ---- */

static int verify_hmac(const jwt_key *k, const char *signed_part, size_t size, const buffer *mac)
{
    unsigned char ours[EVP_MAX_MD_SIZE];
    unsigned length = 0;
    return HMAC(EVP_sha256(), k->secret, (int)k->secret_size, (const unsigned char *)signed_part,
                size, ours, &length) &&
           mac->size == length && CRYPTO_memcmp(ours, mac->data, length) == 0;
}

/* JWS has r and s one after the other, OpenSSL wants them as DER. */
static int es256_to_der(const buffer *signature, unsigned char **der)
{
    int size = -1;
    if (signature->size != 64)
        return -1;
    const unsigned char *bytes = (const unsigned char *)signature->data;
    ECDSA_SIG *pair = ECDSA_SIG_new();
    BIGNUM *r = BN_bin2bn(bytes, 32, NULL), *s = BN_bin2bn(bytes + 32, 32, NULL);
    if (pair && r && s && ECDSA_SIG_set0(pair, r, s)) {
        size = i2d_ECDSA_SIG(pair, der);
    } else {
        BN_free(r);
        BN_free(s);
    }
    ECDSA_SIG_free(pair);
    return size;
}

static int verify_public(const jwt_key *k, const char *signed_part, size_t size,
                         const buffer *signature)
{
    unsigned char *der = NULL;
    const unsigned char *bytes = (const unsigned char *)signature->data;
    size_t length = signature->size;
    if (k->algorithm == JWT_ES256) {
        int der_size = es256_to_der(signature, &der);
        if (der_size <= 0)
            return 0;
        bytes = der;
        length = (size_t)der_size;
    }
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    /* Ed25519 hashes for itself. RSA's padding is PKCS #1 v1.5 unless told otherwise: RS256. */
    const EVP_MD *hash = k->algorithm == JWT_EDDSA ? NULL : EVP_sha256();
    int good = context && EVP_DigestVerifyInit(context, NULL, hash, NULL, k->public) == 1 &&
               EVP_DigestVerify(context, bytes, length, (const unsigned char *)signed_part, size) ==
                   1;
    EVP_MD_CTX_free(context);
    OPENSSL_free(der);
    ERR_clear_error();
    return good;
}

static int verify(const jwt_key *k, const token *t)
{
    size_t size = (size_t)(t->parts[2] - t->parts[0]) - 1;
    return k->algorithm == JWT_HS256 ? verify_hmac(k, t->parts[0], size, &t->bytes)
                                     : verify_public(k, t->parts[0], size, &t->bytes);
}

/* ---- the header ---- */

typedef struct jwt_header {
    unsigned algorithm;
    char kid[256]; /* "": none */
} jwt_header;

static realm_status read_header(token *t, const jwt_rules *rules, jwt_header *out,
                                realm_error *error)
{
    const char *alg = NULL, *typ = NULL, *kid = NULL;
    json_t *object = part_json(t, 0);
    if (!object)
        return denied(error, "its header cannot be read");
    realm_status status = REALM_OK;
    if (json_get_text(object, "alg", &alg, NULL, NULL) ||
        !(out->algorithm = jwt_algorithm_parse(alg) & rules->algorithms))
        status = denied(error, "its algorithm is not accepted here");
    else if (json_object_get(object, "crit"))
        status = denied(error, "it demands an extension that is not known here");
    else if (JSON_OPTIONAL(json_get_text(object, "typ", &typ, NULL, NULL)) ||
             (typ && strcasecmp(typ, "JWT") != 0 && strcasecmp(typ, "at+jwt") != 0))
        status = denied(error, "it is a token of another type");
    else if (JSON_OPTIONAL(json_get_text(object, "kid", &kid, NULL, NULL)) ||
             (kid && strlen(kid) >= sizeof out->kid))
        status = denied(error, "its key id cannot be read");
    snprintf(out->kid, sizeof out->kid, "%s", !status && kid ? kid : "");
    json_decref(object);
    return status;
}

/* The keys that the header allows: those with its kid, and those without any (a PEM file has none). */
static realm_status check_signature(const jwt_keys *keys, const jwt_header *header, token *t,
                                    realm_error *error)
{
    int tried = 0, named = 0;
    buffer_clear(&t->bytes);
    if (!jwt_base64url(&t->bytes, t->parts[2], t->sizes[2]) || !t->bytes.size ||
        t->bytes.size > MAX_SIGNATURE)
        return denied(error, "its signature cannot be read");
    for (int i = 0; i < jwt_keys_count(keys) && tried < MAX_TRIES; i++) {
        const jwt_key *k = jwt_keys_at(keys, i);
        int same = !header->kid[0] || !k->kid || strcmp(k->kid, header->kid) == 0;
        named |= same;
        if (!same || k->algorithm != header->algorithm)
            continue;
        tried++;
        if (verify(k, t))
            return REALM_OK;
    }
    if (!named)
        return realm_fail(error, REALM_NOT_FOUND,
                          "the bearer token is refused: it is signed with a key that is not known");
    return denied(error, tried ? "its signature is wrong" : "no key is for its algorithm");
}

/* ---- claims ---- */

/* *out stays as it is if the claim is absent. 0 if it is no number of seconds. */
static int read_time(const json_t *claims, const char *name, double *out)
{
    return !JSON_OPTIONAL(json_get_real(claims, name, 0, 1e13, out, NULL));
}

static realm_status check_times(const json_t *claims, const jwt_rules *rules, int64_t now_s,
                                int64_t *expires_s, realm_error *error)
{
    double exp = -1, nbf = 0, iat = 0;
    double leeway = rules->leeway_s < 0              ? 0
                    : rules->leeway_s > MAX_LEEWAY_S ? MAX_LEEWAY_S
                                                     : rules->leeway_s;
    double now = (double)now_s;
    if (!read_time(claims, "exp", &exp) || !read_time(claims, "nbf", &nbf) ||
        !read_time(claims, "iat", &iat))
        return denied(error, "exp, nbf or iat is no number of seconds");
    if (exp < 0)
        return denied(error, "it never expires (exp is missing)");
    if (now - leeway >= exp)
        return denied(error, "it has expired");
    if (now + leeway < nbf || now + leeway < iat)
        return denied(error, "it is not valid yet");
    *expires_s = (int64_t)floor(exp);
    return REALM_OK;
}

static int holds(const json_t *value, const char *wanted)
{
    if (json_is_string(value))
        return strlen(wanted) == json_string_length(value) &&
               strcmp(json_string_value(value), wanted) == 0;
    for (size_t i = 0; i < json_array_size(value); i++)
        if (json_is_string(json_array_get(value, i)) && holds(json_array_get(value, i), wanted))
            return 1;
    return 0;
}

static realm_status check_parties(const json_t *claims, const jwt_rules *rules, realm_error *error)
{
    const json_t *audience = json_object_get(claims, "aud");
    const json_t *issuer = json_object_get(claims, "iss");
    if (rules->issuer && (!json_is_string(issuer) || !holds(issuer, rules->issuer)))
        return denied(error, "it is of another issuer");
    if (rules->audience ? !holds(audience, rules->audience) : audience != NULL)
        return denied(error, "it is for another audience");
    return REALM_OK;
}

/* A claim by its name; else, where the name has dots, the one inside of objects. */
static const json_t *find_claim(const json_t *claims, const char *path)
{
    const json_t *found = json_object_get(claims, path);
    char part[128];
    if (found)
        return found;
    for (found = claims; found && *path;) {
        size_t size = strcspn(path, ".");
        if (size >= sizeof part)
            return NULL;
        memcpy(part, path, size);
        part[size] = 0;
        found = json_object_get(found, part);
        path += size + (path[size] == '.');
    }
    return found;
}

static unsigned scope_of(const char *text, size_t size)
{
    char word[32];
    unsigned scope = 0;
    if (size >= sizeof word)
        return 0;
    memcpy(word, text, size);
    word[size] = 0;
    return api_scopes_parse(word, &scope, NULL) ? 0 : scope;
}

/* "a b" (RFC 8693) or a list. Words of other services are passed over. */
static unsigned scopes_of(const json_t *claim)
{
    unsigned scopes = 0;
    const char *text = json_string_value(claim);
    while (text && *text) {
        size_t size = strcspn(text, " ");
        scopes |= scope_of(text, size);
        text += size + strspn(text + size, " ");
    }
    for (size_t i = 0; i < json_array_size(claim); i++) {
        const char *word = json_string_value(json_array_get(claim, i));
        scopes |= word ? scope_of(word, strlen(word)) : 0;
    }
    return scopes & ~API_SCOPES_OF_NODE;
}

static realm_status read_claims(const json_t *claims, const jwt_rules *rules, int64_t now_s,
                                jwt_claims *out, realm_error *error)
{
    *out = (jwt_claims){.scopes = API_SCOPE_INFERENCE};
    realm_status status = check_times(claims, rules, now_s, &out->expires_s, error);
    if (!status)
        status = check_parties(claims, rules, error);
    if (status)
        return status;
    const json_t *tenant = find_claim(claims, rules->tenant_claim ? rules->tenant_claim : "tenant");
    if (!json_is_string(tenant) ||
        settings_check_name("tenant", json_string_value(tenant), json_string_length(tenant), NULL))
        return denied(error, "it names no tenant");
    memcpy(out->tenant, json_string_value(tenant), json_string_length(tenant) + 1);
    const json_t *scope = find_claim(claims, rules->scope_claim ? rules->scope_claim : "scope");
    if (scope)
        out->scopes = scopes_of(scope);
    return REALM_OK;
}

/* ---- the token ---- */

static realm_status check(token *t, const jwt_keys *keys, const jwt_rules *rules, int64_t now_s,
                          jwt_claims *out, realm_error *error)
{
    jwt_header header;
    realm_status status = read_header(t, rules, &header, error);
    if (!status)
        status = check_signature(keys, &header, t, error);
    if (status)
        return status;
    json_t *claims = part_json(t, 1);
    if (!claims)
        return denied(error, "its claims cannot be read");
    status = read_claims(claims, rules, now_s, out, error);
    json_decref(claims);
    return status;
}

realm_status jwt_check(const jwt_keys *keys, const jwt_rules *rules, const char *text, size_t size,
                       int64_t now_s, jwt_claims *out, realm_error *error)
{
    token t;
    if (size > JWT_MAX_BYTES)
        return denied(error, "it is too long");
    if (!split(text, size, &t))
        return denied(error, "it has not three parts");
    buffer_init(&t.bytes, JWT_MAX_BYTES);
    realm_status status = check(&t, keys, rules, now_s, out, error);
    buffer_release(&t.bytes);
    return status;
}
