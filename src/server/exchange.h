/* server/exchange.h: one request and its response, whatever protocol carried it.
 *
 * A codec makes an exchange of the bytes it reads, hands it to the exchange_sink (the router), and
 * turns what handlers answer back into bytes. Handlers know methods, paths, headers and bodies, and
 * never which protocol they talk; codecs never what a path means.
 *
 *        head is read           body is read            exchange_begin           exchange_end
 *     -------------> READING ----------------> ANSWERING --------------> SENDING -------------> ENDED
 *                       |                          |                        |
 *                       |   the client goes, or the codec cannot go on      |
 *                       '------------> GONE <------'------------------------'
 *
 * An answer that must not end before something else has happened (usage is on the disk) is held: what is
 * written meanwhile waits in the exchange.
 *
 * Owned by the net thread alone. Counted: the codec holds it until it is ENDED or GONE, a handler
 * that answers later holds it as long as it needs. What is written to one that is GONE is dropped.
 *
 * Invariants (exchange_assert):
 *   X1  on_cancel comes at most once, only from ANSWERING or SENDING, and nothing comes after it
 *   X2  body never holds more than body_limit bytes
 *   X3  codec is NULL exactly in ENDED and GONE
 *   X4  kept is empty unless it is held */
#ifndef REALM_SERVER_EXCHANGE_H
#define REALM_SERVER_EXCHANGE_H

#include "base/arena.h"
#include "base/buffer.h"
#include "server/trace.h"

typedef struct exchange exchange;
typedef struct codec codec;

/* All texts are terminated and live in the exchange's memory. Names are lower case. */
typedef struct exchange_header {
    const char *name, *value;
} exchange_header;

/* What a codec calls. The same for all exchanges of a server. */
typedef struct exchange_sink {
    void *context;
    /* The head is there: choose body_limit. May set discard (the body is read over: the answer is
     * an error whatever it says). */
    void (*head)(void *context, exchange *x);
    /* The body is there, or discarded: answer, now or later. */
    void (*complete)(void *context, exchange *x);
    /* It is ENDED or GONE; for logs and counts. */
    void (*over)(void *context, exchange *x);
} exchange_sink;

typedef enum exchange_state {
    EXCHANGE_READING,
    EXCHANGE_ANSWERING,
    EXCHANGE_SENDING,
    EXCHANGE_ENDED,
    EXCHANGE_GONE,
} exchange_state;

#define EXCHANGE_MAX_HEADERS 128
#define EXCHANGE_ID_SIZE     64

struct exchange {
    arena memory;
    const exchange_sink *sink;
    codec *codec;
    void *stream; /* the codec's own */
    int references;
    exchange_state state;

    /* the request */
    const char *method;             /* "GET" */
    const char *path, *query;       /* as sent, without '?'; query "" if there is none */
    const char *authority;          /* host[:port], "" if HTTP/1.0 has none */
    const char *protocol;           /* "HTTP/1.1", "HTTP/2"; static */
    const exchange_header *headers; /* [n_headers] */
    size_t n_headers;
    buffer body;
    size_t body_limit;
    int discard;
    /* Chosen with the head, for calls that are answered while they are still being asked: the exchange is
     * complete with its head, and the body's bytes come here as they come; data NULL: that was all.
     * HTTP/2 alone; other codecs gather the body. */
    void (*on_body)(exchange *x, const void *data, size_t size);
    uint64_t deadline_ns; /* the client waits no longer, by clock_ns(); 0: it did not say */
    int keeps_open;       /* the codec could take another request after this one */
    const char *upgrade; /* "websocket": a tunnel is asked for (exchange_tunnel); static, or NULL */
    int streams; /* the protocol's answers come in pieces unless the request says otherwise */
    char id[EXCHANGE_ID_SIZE + 1]; /* x-request-id: the client's if it is a decent one, or ours */
    trace_context trace;
    struct spans *spans; /* of the router; NULL: not traced */
    uint64_t started_ns;

    /* the response */
    int status;
    int64_t content_length; /* -1: told by its end */
    exchange_header answer[32];
    size_t n_answer;
    exchange_header trailers[16];
    size_t n_trailers;
    uint64_t sent_bytes; /* of the body */
    buffer kept;         /* of the body, while it is held */
    int held, keeps_head, keeps_end;
    int is_cut;    /* memory was out for a header or a trailer: it is broken off */
    int counts_as; /* for logs and counts, where the status does not say how it went; else 0 */
    /* Tells a failure where it is not to be OpenAI's JSON (gRPC); chosen with the head. status as HTTP's;
     * param "": none. */
    void (*fail)(exchange *x, int status, const char *code, const char *param,
                 const char *sentence);

    /* the router's, for as long as the exchange is there */
    void *route;
    void (*on_free)(exchange *x);

    /* the handler's */
    void *context;
    void (*on_cancel)(exchange *x);  /* the client is gone; may be NULL */
    void (*on_drained)(exchange *x); /* exchange_pending fell below EXCHANGE_LOW; may be NULL */
    char tenant[64];                 /* for the log; "" before it is known */
};

/* A stream stops reading what it sends from above HIGH and goes on below LOW. */
#define EXCHANGE_HIGH ((size_t)256 << 10)
#define EXCHANGE_LOW  ((size_t)64 << 10)

/* ---- for handlers --------------------------------------------------------------------------------- */

/* The value of a header by its lower-case name, or NULL. */
const char *exchange_header_get(const exchange *x, const char *name);
/* A parameter of the query, percent-decoded, in the exchange's memory; NULL if it is not there. */
const char *exchange_query_get(exchange *x, const char *name);
/* A part of the path, percent-decoded, in the exchange's memory. */
const char *exchange_decode(exchange *x, const char *part);

exchange *exchange_retain(exchange *x);
void exchange_release(exchange *x); /* NULL allowed */

/* A header of the response; value is copied, name a literal in lower case. Before exchange_begin. */
void exchange_set(exchange *x, const char *name, const char *value);
void exchange_setf(exchange *x, const char *name, const char *format, ...) REALM_PRINTF(3, 4);
/* After the body (gRPC's status); before exchange_end. Dropped where the protocol has none. */
void exchange_trailer(exchange *x, const char *name, const char *value);

/* Sends the head. content_length -1: the body ends with exchange_end. */
void exchange_begin(exchange *x, int status, int64_t content_length);
/* Copies. Leaves at the end of the loop's turn, with everything else of that turn. */
void exchange_write(exchange *x, const void *data, size_t size);
void exchange_end(exchange *x);
/* Breaks off a response that cannot be finished, so that the client sees that it is not whole. */
void exchange_abort(exchange *x);

/* Keeps back what is answered from now on, head and end too, until exchange_go. Once. The client may go
 * meanwhile. */
void exchange_hold(exchange *x);
void exchange_go(exchange *x);

/* Instead of an answer: the bytes of both directions are inner's from now on (taken, whatever comes), until one
 * side ends it. Headers that were set go with the head. Only where `upgrade` is not NULL. */
void exchange_tunnel(exchange *x, codec *inner);

/* begin, write, end. */
void exchange_reply(exchange *x, int status, const char *type, const void *data, size_t size);

/* Bytes of the response that the client has not taken yet. */
size_t exchange_pending(const exchange *x);
static inline int exchange_is_over(const exchange *x)
{
    return x->state >= EXCHANGE_ENDED;
}

/* ---- for codecs ----------------------------------------------------------------------------------- */

/* One reference, the codec's. NULL: memory is out. */
exchange *exchange_open(codec *c, const exchange_sink *sink, const char *protocol);
/* The head is filled in. */
void exchange_head(exchange *x);
/* More of the body. REALM_TOO_LARGE past body_limit: the codec refuses the rest. */
realm_status exchange_take_body(exchange *x, const void *data, size_t size);
void exchange_complete(exchange *x);
/* The client or the connection is gone: the codec forgets it with this call. */
void exchange_gone(exchange *x);
/* The response is handed over to the last byte: likewise. */
void exchange_finished(exchange *x);
/* Answers in the handlers' place, whatever has been read: what is wrong is the request itself. code and
 * sentence are literals without quotes. */
void exchange_refuse(exchange *x, int status, const char *code, const char *sentence);

void exchange_assert(const exchange *x);

#endif
