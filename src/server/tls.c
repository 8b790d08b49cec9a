/* server/tls.c: see tls.h. */
#include "server/tls.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <stdlib.h>
#include <string.h>

struct tls {
    SSL *ssl;
    BIO *in, *out; /* owned by ssl */
};

/* A tls_context is OpenSSL's own, under our name. */
static SSL_CTX *ctx_of(tls_context *c)
{
    return (SSL_CTX *)(void *)c;
}

static int choose_protocol(SSL *ssl, const unsigned char **out, unsigned char *out_size,
                           const unsigned char *in, unsigned in_size, void *context)
{
    (void)ssl;
    (void)context;
    static const unsigned char ours[] = "\x02h2\x08http/1.1";
    unsigned char *chosen;
    if (SSL_select_next_proto(&chosen, out_size, ours, sizeof ours - 1, in, in_size) !=
        OPENSSL_NPN_NEGOTIATED)
        return SSL_TLSEXT_ERR_ALERT_FATAL; /* RFC 7301, 3.2: no_application_protocol */
    *out = chosen;
    return SSL_TLSEXT_ERR_OK;
}

/* The first error is the cause; those after it say who could not go on. */
static realm_status fail(realm_error *error, const char *what, const char *path, int asked)
{
    unsigned long code = ERR_get_error();
    const char *reason = ERR_SYSTEM_ERROR(code) ? strerror(ERR_GET_REASON(code))
                                                : ERR_reason_error_string(code);
    int of_pem = ERR_GET_LIB(code) == ERR_LIB_PEM,
        of_decoder = ERR_GET_LIB(code) == ERR_LIB_OSSL_DECODER;
    int number = ERR_GET_REASON(code);
    if ((of_pem && number == PEM_R_NO_START_LINE) || (of_decoder && number == ERR_R_UNSUPPORTED))
        reason = "there is none in it in PEM format";
    if (asked)
        reason = "it needs a password; give one that does not";
    ERR_clear_error();
    return realm_fail(error, REALM_INVALID, "%s '%.200s': %s", what, path,
                      reason ? reason : "OpenSSL does not say why");
}

/* OpenSSL would ask whoever sits at the terminal. context: an int that is 1 from then on. */
static int give_no_password(char *out, int size, int writes, void *context)
{
    (void)out;
    (void)size;
    (void)writes;
    *(int *)context = 1;
    return -1;
}

realm_status tls_context_open(tls_context **out, const char *certificate, const char *key,
                              realm_error *error)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
    if (!ctx)
        return realm_fail_memory(error, 1, "a TLS context");
    realm_status status = REALM_OK;
    SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION);
    /* HTTP/2 forbids renegotiation and the older ciphers (RFC 9113, 9.2). */
    SSL_CTX_set_options(ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
                                 SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_IGNORE_UNEXPECTED_EOF);
    SSL_CTX_set_cipher_list(ctx, "ECDHE+AESGCM:ECDHE+CHACHA20");
    SSL_CTX_set_mode(ctx, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE |
                              SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF); /* tickets do without */
    SSL_CTX_set_alpn_select_cb(ctx, choose_protocol, NULL);
    int asked = 0;
    SSL_CTX_set_default_passwd_cb(ctx, give_no_password);
    SSL_CTX_set_default_passwd_cb_userdata(ctx, &asked);
    ERR_clear_error();
    if (SSL_CTX_use_certificate_chain_file(ctx, certificate) != 1)
        status = fail(error, "cannot use the certificate", certificate, asked);
    else if (SSL_CTX_use_PrivateKey_file(ctx, key, SSL_FILETYPE_PEM) != 1)
        status = fail(error, "cannot use the key", key, asked);
    else if (SSL_CTX_check_private_key(ctx) != 1)
        status = fail(error, "the certificate does not belong to the key", key, asked);
    SSL_CTX_set_default_passwd_cb(ctx, NULL);
    SSL_CTX_set_default_passwd_cb_userdata(ctx, NULL);
    if (status)
        SSL_CTX_free(ctx);
    else
        *out = (tls_context *)(void *)ctx;
    return status;
}

void tls_context_close(tls_context *c)
{
    SSL_CTX_free(ctx_of(c));
}

tls *tls_open(tls_context *c)
{
    tls *t = calloc(1, sizeof *t);
    if (!t)
        return NULL;
    t->ssl = SSL_new(ctx_of(c));
    t->in = BIO_new(BIO_s_mem());
    t->out = BIO_new(BIO_s_mem());
    if (!t->ssl || !t->in || !t->out) {
        SSL_free(t->ssl);
        BIO_free(t->in);
        BIO_free(t->out);
        free(t);
        return NULL;
    }
    BIO_set_mem_eof_return(t->in, -1);
    SSL_set_bio(t->ssl, t->in, t->out);
    SSL_set_accept_state(t->ssl);
    return t;
}

void tls_close(tls *t)
{
    if (!t)
        return;
    SSL_free(t->ssl);
    free(t);
}

/* What OpenSSL's result means here. */
static realm_status status_of(tls *t, int result)
{
    realm_status status = REALM_OK;
    switch (SSL_get_error(t->ssl, result)) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
    case SSL_ERROR_NONE: break;
    case SSL_ERROR_ZERO_RETURN: status = REALM_CLOSED; break;
    default: status = REALM_CORRUPT;
    }
    ERR_clear_error();
    return status;
}

realm_status tls_feed(tls *t, const void *data, size_t size, buffer *out)
{
    if (BIO_write(t->in, data, (int)size) != (int)size)
        return REALM_NO_MEMORY;
    if (!SSL_is_init_finished(t->ssl)) {
        int result = SSL_do_handshake(t->ssl);
        realm_status status = result == 1 ? REALM_OK : status_of(t, result);
        if (status)
            return status;
    }
    while (SSL_is_init_finished(t->ssl)) {
        if (buffer_reserve(out, 16384))
            return REALM_NO_MEMORY;
        int result = SSL_read(t->ssl, out->data + out->size, 16384);
        if (result <= 0)
            return status_of(t, result);
        out->size += (size_t)result;
    }
    return REALM_OK;
}

int tls_is_ready(const tls *t, int *h2)
{
    const unsigned char *name;
    unsigned size;
    SSL_get0_alpn_selected(t->ssl, &name, &size);
    *h2 = size == 2 && memcmp(name, "h2", 2) == 0;
    return SSL_is_init_finished(t->ssl);
}

realm_status tls_write(tls *t, const void *data, size_t size)
{
    for (size_t at = 0; at < size;) {
        int part = size - at > 1 << 20 ? 1 << 20 : (int)(size - at);
        int result = SSL_write(t->ssl, (const char *)data + at, part);
        if (result <= 0) {
            ERR_clear_error();
            return REALM_CORRUPT; /* memory BIOs always take it */
        }
        at += (size_t)result;
    }
    return REALM_OK;
}

realm_status tls_pull(tls *t, buffer *out)
{
    size_t size = BIO_ctrl_pending(t->out);
    if (!size)
        return REALM_OK;
    if (buffer_reserve(out, size))
        return REALM_NO_MEMORY;
    int taken = BIO_read(t->out, out->data + out->size, (int)size);
    if (taken > 0)
        out->size += (size_t)taken;
    return REALM_OK;
}

void tls_shutdown(tls *t)
{
    if (SSL_is_init_finished(t->ssl))
        SSL_shutdown(t->ssl);
    ERR_clear_error();
}
