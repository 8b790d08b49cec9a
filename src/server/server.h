/* server/server.h: `realm serve`: models and tenants behind one port.
 *
 *     net       sockets and codecs make exchanges of bytes          net.h, codec.h
 *     router    finds the route, identifies the caller              router.c
 *     api_*     one file a group of endpoints                       api_*.c
 *     run       a program in a sandbox answers                      guest_run.h
 *
 * One thread, which calls server_run, owns all of it; sandboxes and engines have theirs. */
#ifndef REALM_SERVER_SERVER_H
#define REALM_SERVER_SERVER_H

#include "realm/realm.h"
#include "server/gate.h"

typedef struct server server;

typedef struct server_options server_options;
struct server_options {
    const char *host;                      /* "127.0.0.1" */
    int port;                              /* 0: any */
    const char *tls_certificate, *tls_key; /* PEM files; NULL: in clear */
    int32_t max_connections;               /* 0: 10000 */
    uint64_t max_body_bytes;               /* of any request. 0: 16 MiB */
    int32_t drain_s;                       /* 0: 30 */
    const struct tracer_options *traces;   /* NULL: no spans are exported */
    const char *const *aliases; /* [n_aliases] "NAME=MODEL": other names that clients may use */
    int n_aliases;
    /* Rereads the settings (SIGHUP); may be NULL. *changed begins as these options; what it makes of tls_*,
     * max_body_bytes, drain_s, the aliases and traces (if it points to others than before) holds from then on, the rest
     * of it is not looked at. A failure leaves everything as it was. */
    realm_status (*reload)(void *context, server_options *changed, realm_error *error);
    void *context;
    /* It listens: the address as a URL. May be NULL. */
    void (*ready)(void *context, const char *url);
};

/* 1 if only this machine can reach the address. */
int server_is_local(const char *host);

/* Texts are borrowed until server_close; the runtime, whose models are loaded, and the gate too.
 *   REALM_DENIED   another address than loopback, and nobody needs a key
 *   REALM_IO       the address cannot be had
 *   REALM_INVALID  certificate or key, or a model that no program can serve */
realm_status server_open(server **out, realm_runtime *runtime, gate *a,
                         const server_options *options, realm_error *error);
/* Until SIGTERM or SIGINT: then what runs finishes, for at most drain_s. A second one ends it at once. */
void server_run(server *s);
void server_close(server *s); /* NULL allowed */

#endif
