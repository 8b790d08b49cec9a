/* server/net.h: the loop: sockets, timers, signals, and what other threads ask of it.
 *
 * One thread runs it (net_run) and owns everything inside: connections, their codecs, the exchanges.
 * It never blocks. Other threads reach it with net_post alone. What is written during a turn of the
 * loop leaves at the turn's end, one system call a connection, so that tokens of many sessions that the
 * engine finished together cost one wake-up.
 *
 * A connection that waits too long is ended: between requests (idle), for a head, for a body that does
 * not move, for a reader that does not read. */
#ifndef REALM_SERVER_NET_H
#define REALM_SERVER_NET_H

#include "base/queue.h"
#include "server/codec.h"
#include "server/tls.h"

typedef struct net net;

typedef struct net_options {
    const exchange_sink *sink; /* borrowed */
    codec_limits limits;
    int32_t max_connections; /* more are answered with 503 and closed. 0: 10000 */
    int32_t idle_ms;         /* 0: 75 s */
    int32_t head_ms;         /* from a head's first byte to its last; TLS handshakes too. 0: 20 s */
    int32_t body_ms;         /* without a byte of it. 0: 30 s */
    int32_t send_ms;         /* without a byte taken. 0: 30 s */
} net_options;

realm_status net_open(net **out, const net_options *options, realm_error *error);
/* After net_run, or instead of it. Connections are closed, then everything that is held is waited for. */
void net_close(net *n);

/* "127.0.0.1", "::1", "0.0.0.0"; port 0: any, *bound says which. secure
 * (taken) NULL: in clear.
 *   REALM_IO       the system's reason
 *   REALM_INVALID  host is no address of this machine */
realm_status net_listen(net *n, const char *host, int port, tls_context *secure, int *bound,
                        realm_error *error);
/* Takes another certificate for connections from now on; the old one is closed. */
void net_set_tls(net *n, tls_context *secure);

/* Runs until net_stop. */
void net_run(net *n);
void net_stop(net *n);
/* Takes no new connections; those there are finish what they do and close. done comes when none is left,
 * or after grace_ms, when what is left has been closed. */
void net_drain(net *n, int32_t grace_ms, void (*done)(void *context), void *context);
int net_is_draining(const net *n);

/* Work for the net thread, from any thread; cannot fail. The task is the caller's until run is called. */
typedef struct net_task {
    queue_node node;
    void (*run)(struct net_task *task);
} net_task;
void net_post(net *n, net_task *task);

/* Somebody will still post: net_close waits for so many net_unholds. Net thread. */
void net_hold(net *n);
void net_unhold(net *n);

/* Work that may take milliseconds, on a thread of libuv's; done on the net thread. */
typedef struct net_job {
    void (*work)(struct net_job *job);
    void (*done)(struct net_job *job);
    net *net; /* ours */
} net_job;
realm_status net_submit(net *n, net_job *job);

/* Calls run once, not before at_ns by clock_ns(). NULL: memory is out. Stop it when it is of no use any more,
 * whether it has run or not. Net thread. */
typedef struct net_timer net_timer;
net_timer *net_timer_start(net *n, uint64_t at_ns, void (*run)(void *context), void *context);
void net_timer_stop(net_timer *t); /* NULL allowed */

void net_on_signal(net *n, int number, void (*run)(void *context), void *context);
/* Every second. */
void net_on_tick(net *n, void (*run)(void *context), void *context);

typedef struct net_stats {
    int32_t connections;
    uint64_t accepted, refused, timeouts;
    uint64_t read_bytes, written_bytes;
} net_stats;
const net_stats *net_stats_get(const net *n); /* net thread */

#endif
