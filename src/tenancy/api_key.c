/* tenancy/api_key.c: see api_key.h. */
#include "tenancy/api_key.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#if defined(__APPLE__)
#include <sys/random.h>
#endif

#define PREFIX        "rk_"
#define PREFIX_SIZE   3
#define SECRET_BYTES  32
#define SECRET_DIGITS 43 /* 62^43 > 2^256 */
#define CHECK_DIGITS  6  /* 62^6 > 2^32 */
#define BODY_SIZE     (API_KEY_SIZE - CHECK_DIGITS)

/* Letters and digits only: a double click selects the whole key, and no URL or shell changes it. */
static const char digits[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

static int is_digit(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

/* The number in bytes[0..size), which is used up, as count digits. */
static void to_digits(uint8_t *bytes, size_t size, char *out, size_t count)
{
    for (size_t i = count; i-- > 0;) {
        unsigned rest = 0;
        for (size_t j = 0; j < size; j++) {
            unsigned value = rest << 8 | bytes[j];
            bytes[j] = (uint8_t)(value / 62);
            rest = value % 62;
        }
        out[i] = digits[rest];
    }
}

/* CRC-32 (ISO-HDLC, as in zip and gzip), by the bit: a key is 65 bytes. */
static uint32_t crc32_of(const char *text, size_t size)
{
    uint32_t crc = ~0u;
    for (size_t i = 0; i < size; i++) {
        crc ^= (uint8_t)text[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
    }
    return ~crc;
}

static void checksum(const char *text, char out[CHECK_DIGITS])
{
    uint32_t crc = crc32_of(text, BODY_SIZE);
    uint8_t bytes[4] = {(uint8_t)(crc >> 24), (uint8_t)(crc >> 16), (uint8_t)(crc >> 8),
                        (uint8_t)crc};
    to_digits(bytes, sizeof bytes, out, CHECK_DIGITS);
}

static int hash_of(const char *text, size_t size, const uint8_t salt[API_KEY_SALT_SIZE],
                   uint8_t hash[API_KEY_HASH_SIZE])
{
    uint8_t both[API_KEY_SALT_SIZE + API_KEY_SIZE];
    if (size != API_KEY_SIZE)
        return 0;
    memcpy(both, salt, API_KEY_SALT_SIZE);
    memcpy(both + API_KEY_SALT_SIZE, text, size);
    int good = EVP_Digest(both, sizeof both, hash, NULL, EVP_sha256(), NULL);
    OPENSSL_cleanse(both, sizeof both);
    return good;
}

/* Each of 62 digits as likely as another: bytes from 248 on are drawn again. */
static int random_digits(char *out, size_t count)
{
    for (size_t i = 0; i < count;) {
        uint8_t byte;
        if (getentropy(&byte, 1) != 0)
            return 0;
        if (byte < 248)
            out[i++] = digits[byte % 62];
    }
    return 1;
}

realm_status api_key_make(api_key_secret *out, realm_error *error)
{
    uint8_t secret[SECRET_BYTES];
    memset(out, 0, sizeof *out);
    if (!random_digits(out->id, API_KEY_ID_SIZE) || getentropy(secret, sizeof secret) != 0 ||
        getentropy(out->salt, sizeof out->salt) != 0)
        return realm_fail(error, REALM_INTERNAL, "the operating system gives no random numbers");
    char *at = out->text;
    memcpy(at, PREFIX, PREFIX_SIZE);
    memcpy(at + PREFIX_SIZE, out->id, API_KEY_ID_SIZE);
    at[PREFIX_SIZE + API_KEY_ID_SIZE] = '_';
    to_digits(secret, sizeof secret, at + PREFIX_SIZE + API_KEY_ID_SIZE + 1, SECRET_DIGITS);
    OPENSSL_cleanse(secret, sizeof secret);
    checksum(at, at + BODY_SIZE);
    if (!hash_of(at, API_KEY_SIZE, out->salt, out->hash))
        return realm_fail(error, REALM_INTERNAL, "OpenSSL has no SHA-256");
    return REALM_OK;
}

int api_key_parse(const char *text, size_t size, char id[API_KEY_ID_SIZE + 1])
{
    char check[CHECK_DIGITS];
    if (size != API_KEY_SIZE || memcmp(text, PREFIX, PREFIX_SIZE) != 0 ||
        text[PREFIX_SIZE + API_KEY_ID_SIZE] != '_')
        return 0;
    for (size_t i = PREFIX_SIZE; i < size; i++)
        if (i != PREFIX_SIZE + API_KEY_ID_SIZE && !is_digit(text[i]))
            return 0;
    checksum(text, check);
    if (memcmp(check, text + BODY_SIZE, CHECK_DIGITS) != 0)
        return 0;
    memcpy(id, text + PREFIX_SIZE, API_KEY_ID_SIZE);
    id[API_KEY_ID_SIZE] = 0;
    return 1;
}

int api_key_matches(const char *text, size_t size, const uint8_t salt[API_KEY_SALT_SIZE],
                    const uint8_t hash[API_KEY_HASH_SIZE])
{
    uint8_t given[API_KEY_HASH_SIZE];
    return hash_of(text, size, salt, given) && CRYPTO_memcmp(given, hash, sizeof given) == 0;
}

/* ---- scopes ---- */

static unsigned scope_bit(const char *name, size_t size)
{
#define SCOPE_BIT(constant, bit, text)                                                             \
    if (strlen(text) == size && memcmp(text, name, size) == 0)                                     \
        return 1u << bit;
    API_SCOPE_MAP(SCOPE_BIT)
#undef SCOPE_BIT
    return 0;
}

realm_status api_scopes_parse(const char *text, unsigned *scopes, realm_error *error)
{
    unsigned found = 0;
    for (const char *at = text; *at;) {
        size_t size = strcspn(at, ", ");
        unsigned bit = size ? scope_bit(at, size) : 0;
        if (size && !bit)
            return realm_fail(
                error, REALM_INVALID,
                "there is no scope '%.*s'; there are inference, deploy, usage, metrics and admin",
                (int)(size < 40 ? size : 40), at);
        found |= bit;
        at += size;
        at += strspn(at, ", ");
    }
    if (!found)
        return realm_fail(error, REALM_INVALID, "at least one scope is needed");
    *scopes = found;
    return REALM_OK;
}

const char *api_scopes_text(unsigned scopes, char text[API_SCOPES_TEXT_SIZE])
{
    int at = 0;
    text[0] = 0;
#define SCOPE_TEXT(constant, bit, name)                                                            \
    if (scopes & 1u << bit)                                                                        \
        at += snprintf(text + at, (size_t)(API_SCOPES_TEXT_SIZE - at), "%s" name, at ? "," : "");
    API_SCOPE_MAP(SCOPE_TEXT)
#undef SCOPE_TEXT
    return text;
}
