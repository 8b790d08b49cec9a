/* server/connection.h: one socket: its bytes through TLS, if any, to its codec and back.
 *
 *                    TLS: ALPN says          codec: CODEC_CLOSE,
 *                    clear: the first bytes  all is sent              the client closes, or 2 s
 *     accepted: NEW ------------------> OPEN ----------------> LINGER -------------------> closed
 *                  |                     |  error, timeout, client gone                      ^
 *                  '---------------------'---------------------------------------------------'
 *
 * LINGER: our side is shut down and what still comes is read and dropped, since closing a socket with
 * unread bytes resets it and the client might lose the answer. Net thread.
 *
 * Invariants: C1 codec is NULL exactly in NEW. C2 a connection in the dirty list is flushed before the
 * loop sleeps. C3 while a write is in flight `out` is not touched. */
#ifndef REALM_SERVER_CONNECTION_H
#define REALM_SERVER_CONNECTION_H

#include <uv.h>

#include "server/net.h"

typedef struct connection connection;

struct net {
    uv_loop_t loop;
    net_options options;
    uv_async_t wake;
    uv_prepare_t turn;
    uv_timer_t second;
    queue posted;
    struct listener *listeners;
    connection *connections, *dirty;
    tls_context *tls;
    buffer plain;              /* scratch: plain text on its way through TLS */
    char read_bytes[64 << 10]; /* shared: what is read is used before the next read */
    uv_signal_t *signals[8];
    int n_signals;
    void (*tick)(void *context);
    void *tick_context;
    int held; /* see net_hold */
    int draining;
    uint64_t drain_until_ns;
    void (*drained)(void *context);
    void *drained_context;
    net_stats stats;
};

void connection_accept(net *n, uv_stream_t *listener, int is_tls);
void connection_flush_all(net *n);
void connection_check_times(net *n, uint64_t now_ns);
void connection_close_all(net *n);
void connection_drain_all(net *n);

/* A connection has been closed. net.c. */
void net_connection_gone(net *n);

#endif
