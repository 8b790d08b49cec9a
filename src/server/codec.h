/* server/codec.h: what a protocol is to a connection: bytes in, bytes out.
 *
 * A codec owns no socket, reads no clock but the one it is told, and calls nobody but its sink. The
 * connection feeds it what the client sent and pulls what shall be sent back, so that a test can do
 * the same a byte at a time. One file a kind; a new protocol is one new table.
 *
 * All calls come on the net thread. A sink may answer from inside of feed. */
#ifndef REALM_SERVER_CODEC_H
#define REALM_SERVER_CODEC_H

#include "server/exchange.h"

typedef struct codec_limits {
    size_t head_bytes;    /* request line and headers. 0: 32 KiB */
    int32_t headers;      /* 0: 100 */
    int32_t streams;      /* of HTTP/2 at once. 0: 128 */
    size_t message_bytes; /* of a WebSocket. 0: 16 MiB */
    int32_t body_ms;      /* without progress of a body or message. 0: 30 s */
    int32_t send_ms;      /* without anything taken of an answer. 0: 30 s */
    int32_t
        ping_ms; /* of a WebSocket, or an HTTP/2 client with streams, that says nothing. 0: 30 s */
    int32_t quiet_ms; /* of a stream that was answered and may be asked more, but is not. 0: 75 s */
} codec_limits;

typedef struct codec_table codec_table;

/* What a connection has to do next. */
typedef enum codec_wait {
    CODEC_IDLE,  /* between requests: the idle timeout */
    CODEC_HEAD,  /* a head has begun and must be whole soon */
    CODEC_BODY,  /* a body is coming */
    CODEC_BUSY,  /* it is our turn: no timeout but for what is sent */
    CODEC_CLOSE, /* send what is pulled, then close */
} codec_wait;

struct codec {
    const codec_table *table;
    const exchange_sink *sink;
    codec_limits limits;
    /* Something can be pulled, or wait has changed: the connection's own, to be called by the codec. May be
     * NULL in tests. */
    void (*on_output)(void *connection);
    void *connection;
    int secure; /* the connection is encrypted */
};

typedef struct codec_options {
    const exchange_sink *sink;
    codec_limits limits; /* zeros: the usual */
    void (*on_output)(void *connection);
    void *connection;
    int secure;
} codec_options;

struct codec_table {
    const char *name; /* "http/1.1", "h2", "websocket" */
    /* NULL: memory is out. The table's own is NULL where a connection cannot begin with the protocol. */
    codec *(*open)(const codec_options *options);
    /* Exchanges that are not over become GONE. */
    void (*close)(codec *c);

    /* Takes bytes that the client sent; all of them. What is wrong with them is answered in the
     * protocol and makes wait CODEC_CLOSE. */
    void (*feed)(codec *c, const void *data, size_t size);
    /* 0: feed no more for now, a client sends faster than it is answered. */
    int (*wants_input)(const codec *c);
    /* Appends up to about limit bytes of output. */
    void (*pull)(codec *c, buffer *out, size_t limit);
    codec_wait (*wait)(const codec *c);
    /* The server drains: finish what runs, take nothing new. */
    void (*drain)(codec *c);
    /* About once a second, for what takes too long inside of the protocol. May be NULL. */
    void (*tick)(codec *c, uint64_t now_ns);

    /* What exchange_begin, _write, _end, _abort and _pending come to. */
    void (*begin)(codec *c, exchange *x);
    void (*write)(codec *c, exchange *x, const void *data, size_t size);
    void (*end)(codec *c, exchange *x);
    void (*abort)(codec *c, exchange *x);
    size_t (*pending)(const codec *c, const exchange *x);
    /* What exchange_tunnel comes to: sends the head, and feeds and pulls inner (taken) from now on. NULL: no
     * exchange of this protocol has `upgrade`. */
    void (*tunnel)(codec *c, exchange *x, codec *inner);
};

extern const codec_table codec_http1;
extern const codec_table codec_http2;

/* Of a body in limits.body_ms, so that a trickle is no progress. */
#define CODEC_LEAST_BODY 1024u

/* Fills in the common part. */
void codec_init(codec *c, const codec_table *table, const codec_options *options);
static inline void codec_output(codec *c)
{
    if (c->on_output)
        c->on_output(c->connection);
}

/* "OK" for 200; "" if it has no usual words. Static. */
const char *codec_reason(int status);
/* "Wed, 25 Nov 2026 20:27:57 GMT", made anew once a second. Net thread. */
const char *codec_date(void);

#endif
