/* server/tls.h: TLS as a filter between a socket's bytes and a codec's: OpenSSL over memory BIOs.
 *
 * tls_context: certificate and key, TLS 1.2 and newer, ALPN h2 and http/1.1; made by any thread, then
 * constant and counted by OpenSSL. tls: one connection; net thread. Neither owns a socket. */
#ifndef REALM_SERVER_TLS_H
#define REALM_SERVER_TLS_H

#include "base/buffer.h"

typedef struct tls_context tls_context;
typedef struct tls tls;

/* PEM files: the certificate with its chain, and its key.
 *   REALM_INVALID  one cannot be read, or they do not belong together; OpenSSL's reason is in error */
realm_status tls_context_open(tls_context **out, const char *certificate, const char *key,
                              realm_error *error);
void tls_context_close(tls_context *c); /* NULL allowed; connections keep what they need of it */

/* NULL: memory is out. */
tls *tls_open(tls_context *c);
void tls_close(tls *t);

/* Takes what came from the socket and appends the plain text in it to out.
 *   REALM_CLOSED   the client said goodbye
 *   REALM_CORRUPT  the handshake or a record is wrong; an alert may be there to be pulled */
realm_status tls_feed(tls *t, const void *data, size_t size, buffer *out);
/* 1 once the handshake is done; *h2 says what ALPN chose. */
int tls_is_ready(const tls *t, int *h2);
/* Encrypts; only when ready. REALM_CORRUPT or REALM_NO_MEMORY end the connection. */
realm_status tls_write(tls *t, const void *data, size_t size);
/* Appends what is to be sent to the socket. */
realm_status tls_pull(tls *t, buffer *out);
/* Says goodbye; to be pulled. */
void tls_shutdown(tls *t);

#endif
