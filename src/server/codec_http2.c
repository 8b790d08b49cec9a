/* server/codec_http2.c: HTTP/2 (RFC 9113) over nghttp2, which does the framing, HPACK and flow control.
 *
 * A stream's response waits in its `out` until nghttp2 asks for it, so that every stream gets its share
 * and a client that does not read one stream holds up that one alone.
 *
 * What a hostile client can make us do for little work of its own is counted: streams opened and reset
 * at once (CVE-2023-44487), pings, settings, priorities and empty frames draw on one bucket, and an empty
 * bucket ends the connection with ENHANCE_YOUR_CALM. nghttp2 bounds CONTINUATION frames and the
 * acknowledgements that it owes. A body that does not come, and an answer that is not taken, end their stream alone
 * (tick).
 *
 * An extended CONNECT (RFC 8441) makes a stream a tunnel: its bytes are an inner codec's. Net thread. */
#include <nghttp2/nghttp2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "server/codec.h"

#define STREAM_WINDOW     (256 << 10)
#define CONNECTION_WINDOW (1 << 20)

/* Frames that make no progress: so many at once, and so many a second. */
#define IDLE_FRAMES        1000
#define IDLE_FRAMES_SECOND 200

/* nghttp2 limits resets too, more tightly on a slow machine and as an INTERNAL_ERROR: out of the way. */
#define UNLIMITED_RESETS (1u << 30)

#define MAX_GAPS 16

#define DRAIN_MARK    "draining"    /* what the ping behind the first GOAWAY holds: eight bytes */
#define ROUND_TRIP_NS 1000000000ull /* after which a client that answers no ping has seen it */

typedef struct stream {
    struct http2 *owner;
    int32_t id;
    exchange *x; /* NULL once it is over */
    buffer out;  /* what nghttp2 has not got yet begins at out_at */
    size_t out_at;
    int ended, deferred, began;
    int is_cut; /* memory was out for a part of the answer: it is reset, so that nobody takes it for whole */
    int is_whole;       /* the client has said all: else, once it is answered, it is told to stop */
    codec *inner;       /* of a tunnel */
    uint64_t since_ns;  /* nothing has moved since: as of tick; 0: not looked at yet */
    size_t moved_bytes; /* since then: of the body, later of the answer */
    int32_t n_headers;
    size_t head_bytes;
    exchange_header *headers; /* [limit] in the exchange's memory */
    struct stream *previous, *next;
} stream;

typedef struct http2 {
    codec common;
    nghttp2_session *session;
    stream *streams;
    int in_head, failed, draining;
    int is_cut;      /* memory was out for what is sent: nothing may be sent after it */
    int32_t highest; /* id of a stream that the client opened */
    struct {
        int32_t first, last;
    } gaps[MAX_GAPS]; /* ids that it passed over, and may not use any more; the last ones */
    unsigned n_gaps;
    int heard, pinged;   /* bytes came since the last tick; a ping was sent since they last did */
    uint64_t heard_ns;   /* as of tick; 0: not looked at yet */
    uint64_t drained_ns; /* as of the first tick that saw it drain */
    int has_last;        /* the GOAWAY with the last stream is sent */
    double idle_frames;  /* left in the bucket */
    uint64_t idle_at_ns;
} http2;

static http2 *http2_of(codec *c)
{
    return (http2 *)c;
}

/* ---- streams ---- */

static stream *open_stream(http2 *h, int32_t id)
{
    stream *s = calloc(1, sizeof *s);
    exchange *x = s ? exchange_open(&h->common, h->common.sink, "HTTP/2") : NULL;
    if (x)
        s->headers = arena_take_array(&x->memory, (size_t)h->common.limits.headers,
                                      sizeof *s->headers);
    if (!x || !s->headers) {
        exchange_release(x);
        free(s);
        return NULL;
    }
    s->owner = h;
    s->id = id;
    s->x = x;
    x->stream = s;
    x->headers = s->headers;
    x->keeps_open = 1;
    buffer_init(&s->out, SIZE_MAX);
    s->next = h->streams;
    if (s->next)
        s->next->previous = s;
    h->streams = s;
    return s;
}

static void close_stream(http2 *h, stream *s)
{
    if (s->inner)
        s->inner->table->close(s->inner);
    s->inner = NULL;
    if (s->x) {
        exchange *x = s->x;
        s->x = NULL;
        if (s->ended && !s->out.size)
            exchange_finished(x);
        else
            exchange_gone(x);
    }
    if (s->previous)
        s->previous->next = s->next;
    else
        h->streams = s->next;
    if (s->next)
        s->next->previous = s->previous;
    buffer_release(&s->out);
    free(s);
}

/* ---- nghttp2's callbacks ---- */

/* 1 if the client has done too much of what costs it nothing. */
static int is_flooding(http2 *h)
{
    uint64_t now = clock_ns();
    h->idle_frames += (double)(now - h->idle_at_ns) * (IDLE_FRAMES_SECOND / 1e9);
    if (h->idle_frames > IDLE_FRAMES)
        h->idle_frames = IDLE_FRAMES;
    h->idle_at_ns = now;
    return --h->idle_frames < 0;
}

static void note_id(http2 *h, int32_t id)
{
    if (id > h->highest + 2) {
        h->gaps[h->n_gaps % MAX_GAPS].first = h->highest + 1;
        h->gaps[h->n_gaps++ % MAX_GAPS].last = id - 2;
    }
    h->highest = id;
}

/* RFC 9113, 5.1.1: opening a stream closes those below it that were never opened; nghttp2 only ignores what
 * comes on them. */
static int on_begin_frame(nghttp2_session *session, const nghttp2_frame_hd *head, void *user)
{
    const http2 *h = user;
    if (head->type != NGHTTP2_HEADERS)
        return 0;
    for (unsigned i = 0; i < h->n_gaps && i < MAX_GAPS; i++)
        if (head->stream_id >= h->gaps[i].first && head->stream_id <= h->gaps[i].last) {
            nghttp2_session_terminate_session(session, NGHTTP2_PROTOCOL_ERROR);
            break;
        }
    return 0;
}

static int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    http2 *h = user;
    if (frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST)
        return 0;
    h->in_head = 1;
    note_id(h, frame->hd.stream_id);
    stream *s = open_stream(h, frame->hd.stream_id);
    if (!s)
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    nghttp2_session_set_stream_user_data(session, s->id, s);
    return 0;
}

static void take_pseudo_header(exchange *x, const char *name, char *value)
{
    if (strcmp(name, ":method") == 0) {
        x->method = value;
    } else if (strcmp(name, ":authority") == 0) {
        x->authority = value;
    } else if (strcmp(name, ":path") == 0) {
        char *query = strchr(value, '?');
        if (query)
            *query++ = 0;
        x->path = value;
        x->query = query ? query : "";
    } else if (strcmp(name, ":protocol") == 0 && strcmp(value, "websocket") == 0) {
        x->upgrade = "websocket";
    }
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                     size_t name_size, const uint8_t *value, size_t value_size, uint8_t flags,
                     void *user)
{
    (void)flags;
    http2 *h = user;
    stream *s = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    if (frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST || !s ||
        !s->x)
        return 0;                                 /* trailers are of no use here */
    s->head_bytes += name_size + value_size + 32; /* as RFC 9113, 6.5.2 counts */
    if (s->head_bytes > h->common.limits.head_bytes || s->n_headers == h->common.limits.headers) {
        s->head_bytes = SIZE_MAX / 2; /* answered when the head is whole */
        return 0;
    }
    char *n = arena_copy(&s->x->memory, name, name_size);
    char *v = arena_copy(&s->x->memory, value, value_size);
    if (!n || !v)
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    if (*n == ':') {
        take_pseudo_header(s->x, n, v);
        return 0;
    }
    if (strcmp(n, "host") == 0 && !*s->x->authority)
        s->x->authority = v;
    s->headers[s->n_headers++] = (exchange_header){n, v};
    s->x->n_headers = (size_t)s->n_headers;
    return 0;
}

/* RFC 8441: to handlers it is the GET that HTTP/1 upgrades with. What comes after the head is the tunnel's. */
static void take_connect(stream *s)
{
    exchange *x = s->x;
    if (!x->upgrade) {
        exchange_refuse(x, 501, "not_implemented",
                        "this is no proxy: CONNECT is for WebSockets alone");
        return;
    }
    x->method = "GET";
    exchange_head(x);
    exchange_complete(x);
}

static void take_head(http2 *h, stream *s)
{
    if (s->head_bytes > h->common.limits.head_bytes)
        exchange_refuse(s->x, 431, "headers_too_large", "the headers are too large");
    else if (strcmp(s->x->method, "CONNECT") == 0)
        take_connect(s);
    else
        exchange_head(s->x);
    if (s->x->on_body && s->x->state == EXCHANGE_READING)
        exchange_complete(s->x);
}

static void end_tunnel(stream *s);

static void take_end(stream *s)
{
    s->is_whole = 1;
    if (s->inner)
        end_tunnel(s);
    if (s->x && s->x->on_body)
        s->x->on_body(s->x, NULL, 0);
    if (!s->x || s->x->state != EXCHANGE_READING)
        return;
    exchange_complete(s->x);
}

/* RFC 9113, 6.8: first a GOAWAY that refuses nothing yet, and when the client must have seen it, one that names the
 * last stream: no request that was under way is lost. */
static void send_last(http2 *h)
{
    if (h->has_last)
        return;
    h->has_last = 1;
    nghttp2_submit_goaway(h->session, NGHTTP2_FLAG_NONE,
                          nghttp2_session_get_last_proc_stream_id(h->session), NGHTTP2_NO_ERROR,
                          NULL, 0);
}

static int on_frame_recv(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    http2 *h = user;
    stream *s = NULL;
    int idle = 0;
    switch (frame->hd.type) {
    case NGHTTP2_HEADERS:
        s = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
        if (frame->headers.cat == NGHTTP2_HCAT_REQUEST) {
            h->in_head = 0;
            if (s && s->x)
                take_head(h, s);
        }
        break;
    case NGHTTP2_DATA:
        s = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
        idle = frame->hd.length == 0 && !(frame->hd.flags & NGHTTP2_FLAG_END_STREAM);
        break;
    case NGHTTP2_PING:
        if (frame->hd.flags & NGHTTP2_FLAG_ACK && h->draining &&
            memcmp(frame->ping.opaque_data, DRAIN_MARK, sizeof frame->ping.opaque_data) == 0)
            send_last(h);
        idle = 1;
        break;
    case NGHTTP2_SETTINGS:
    case NGHTTP2_PRIORITY:
    case NGHTTP2_RST_STREAM: idle = 1; break;
    default: break;
    }
    if (idle && is_flooding(h)) {
        nghttp2_session_terminate_session(session, NGHTTP2_ENHANCE_YOUR_CALM);
        return 0;
    }
    if (s && (frame->hd.flags & NGHTTP2_FLAG_END_STREAM))
        take_end(s);
    return 0;
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *data,
                   size_t size, void *user)
{
    (void)flags;
    (void)user;
    stream *s = nghttp2_session_get_stream_user_data(session, id);
    if (!s)
        return 0;
    s->moved_bytes += size;
    if (s->inner)
        s->inner->table->feed(s->inner, data, size);
    if (s->x && s->x->on_body)
        s->x->on_body(s->x, data, size);
    if (!s->x || s->x->state != EXCHANGE_READING)
        return 0;
    realm_status status = exchange_take_body(s->x, data, size);
    if (status == REALM_NO_MEMORY)
        exchange_refuse(s->x, 503, "unavailable", "the host is out of memory");
    else if (status)
        exchange_refuse(s->x, 413, "request_too_large",
                        "the body is larger than this endpoint takes");
    return 0;
}

static int on_stream_close(nghttp2_session *session, int32_t id, uint32_t code, void *user)
{
    (void)code;
    http2 *h = user;
    stream *s = nghttp2_session_get_stream_user_data(session, id);
    h->in_head = 0;
    if (s)
        close_stream(h, s);
    return 0;
}

static int on_frame_send(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    const http2 *h = user;
    /* Behind the notice and not beside it, where nghttp2 would send it first. */
    if (frame->hd.type == NGHTTP2_GOAWAY && h->draining && !h->has_last)
        nghttp2_submit_ping(session, NGHTTP2_FLAG_NONE, (const uint8_t *)DRAIN_MARK);
    if ((frame->hd.type != NGHTTP2_DATA && frame->hd.type != NGHTTP2_HEADERS) ||
        !(frame->hd.flags & NGHTTP2_FLAG_END_STREAM))
        return 0;
    stream *s = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    if (s && !s->is_whole) /* RFC 9113, 8.1: the rest of the request is not wanted */
        nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, s->id, NGHTTP2_NO_ERROR);
    return 0;
}

/* ---- the response ---- */

static nghttp2_nv pair(const char *name, const char *value)
{
    return (nghttp2_nv){.name = (uint8_t *)(uintptr_t)name,
                        .value = (uint8_t *)(uintptr_t)value,
                        .namelen = strlen(name),
                        .valuelen = strlen(value)};
}

static void submit_trailers(http2 *h, stream *s)
{
    nghttp2_nv headers[sizeof s->x->trailers / sizeof *s->x->trailers];
    for (size_t i = 0; i < s->x->n_trailers; i++)
        headers[i] = pair(s->x->trailers[i].name, s->x->trailers[i].value);
    nghttp2_submit_trailer(h->session, s->id, headers, s->x->n_trailers);
}

static void pull_inner(stream *s, size_t limit)
{
    s->inner->table->pull(s->inner, &s->out, limit);
    if (!s->out.size && s->inner->table->wait(s->inner) == CODEC_CLOSE)
        s->ended = 1;
}

static ssize_t give_data(nghttp2_session *session, int32_t id, uint8_t *to, size_t room,
                         uint32_t *flags, nghttp2_data_source *source, void *user)
{
    (void)session;
    (void)id;
    http2 *h = user;
    stream *s = source->ptr;
    if (s->inner && !s->out.size)
        pull_inner(s, room);
    size_t left = s->out.size - s->out_at, part = left < room ? left : room;
    if (!part && !s->ended) {
        s->deferred = 1;
        return NGHTTP2_ERR_DEFERRED;
    }
    if (part)
        memcpy(to, s->out.data + s->out_at, part);
    s->out_at += part;
    s->moved_bytes += part;
    if (s->out_at == s->out.size) {
        buffer_clear(&s->out);
        s->out_at = 0;
    }
    if (s->ended && !s->out.size) {
        *flags |= NGHTTP2_DATA_FLAG_EOF;
        if (s->x && s->x->n_trailers) {
            *flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
            submit_trailers(h, s);
        }
    }
    return (ssize_t)part;
}

/* The stream cannot go on; its exchange is gone when nghttp2 closes it. */
static void cut(http2 *h, stream *s)
{
    s->is_cut = 1;
    if (nghttp2_submit_rst_stream(h->session, NGHTTP2_FLAG_NONE, s->id, NGHTTP2_INTERNAL_ERROR))
        h->failed = 1;
}

static void begin(codec *c, exchange *x)
{
    http2 *h = http2_of(c);
    stream *s = x->stream;
    char status[16], length[32];
    nghttp2_nv headers[sizeof x->answer / sizeof *x->answer + 3];
    size_t n = 0;
    snprintf(status, sizeof status, "%d", x->status);
    headers[n++] = pair(":status", status);
    headers[n++] = pair("date", codec_date());
    for (size_t i = 0; i < x->n_answer; i++)
        headers[n++] = pair(x->answer[i].name, x->answer[i].value);
    if (x->content_length >= 0 && x->status != 204) {
        snprintf(length, sizeof length, "%" PRId64, x->content_length);
        headers[n++] = pair("content-length", length);
    }
    nghttp2_data_provider provider = {.source.ptr = s, .read_callback = give_data};
    int no_body = strcmp(x->method, "HEAD") == 0 || x->status == 204 ||
                  (x->content_length == 0 && !x->n_trailers);
    s->began = 1;
    if (nghttp2_submit_response(h->session, s->id, headers, n, no_body ? NULL : &provider))
        cut(h, s);
    codec_output(c);
}

static void resume(http2 *h, stream *s)
{
    if (s->deferred) {
        s->deferred = 0;
        nghttp2_session_resume_data(h->session, s->id);
    }
    codec_output(&h->common);
}

static void on_inner_output(void *owner)
{
    stream *s = owner;
    resume(s->owner, s);
}

static void tunnel(codec *c, exchange *x, codec *inner)
{
    http2 *h = http2_of(c);
    stream *s = x->stream;
    s->inner = inner;
    inner->on_output = on_inner_output;
    inner->connection = s;
    if (h->draining)
        inner->table->drain(inner);
    x->status = 200; /* there is no 101 */
    x->content_length = -1;
    begin(c, x);
}

/* The client's side of a tunnel is shut: it counts as gone, as on a socket of its own. */
static void end_tunnel(stream *s)
{
    pull_inner(s, SIZE_MAX);
    s->inner->table->close(s->inner);
    s->inner = NULL;
    s->ended = 1;
    resume(s->owner, s);
}

static void write_body(codec *c, exchange *x, const void *data, size_t size)
{
    stream *s = x->stream;
    if (strcmp(x->method, "HEAD") == 0 || s->is_cut)
        return;
    if (buffer_add(&s->out, data, size))
        cut(http2_of(c), s);
    resume(http2_of(c), s);
}

static void end(codec *c, exchange *x)
{
    stream *s = x->stream;
    s->ended = !s->is_cut;
    resume(http2_of(c), s);
}

static void abort_exchange(codec *c, exchange *x)
{
    http2 *h = http2_of(c);
    stream *s = x->stream;
    s->x = NULL;
    nghttp2_submit_rst_stream(h->session, NGHTTP2_FLAG_NONE, s->id, NGHTTP2_INTERNAL_ERROR);
    exchange_gone(x);
    codec_output(c);
}

static size_t pending(const codec *c, const exchange *x)
{
    (void)c;
    const stream *s = x->stream;
    return s->out.size - s->out_at;
}

/* ---- bytes ---- */

static void feed(codec *c, const void *data, size_t size)
{
    http2 *h = http2_of(c);
    if (h->failed)
        return;
    h->heard = 1;
    ssize_t used = nghttp2_session_mem_recv(h->session, data, size);
    if (used < 0) {
        h->failed = 1; /* what nghttp2 has to say about it can still be pulled */
        if (used == NGHTTP2_ERR_FLOODED || h->in_head) /* or CONTINUATION frames without end */
            nghttp2_session_terminate_session(h->session, NGHTTP2_ENHANCE_YOUR_CALM);
    }
    codec_output(c);
}

static int wants_input(const codec *c)
{
    return !((const http2 *)c)->failed;
}

static void tell_drained(http2 *h)
{
    for (stream *s = h->streams, *next; s; s = next) {
        next = s->next;
        if (s->x && s->x->state == EXCHANGE_SENDING && s->x->on_drained &&
            s->out.size - s->out_at < EXCHANGE_LOW)
            s->x->on_drained(s->x);
    }
}

static void pull(codec *c, buffer *out, size_t limit)
{
    http2 *h = http2_of(c);
    while (out->size < limit && !h->is_cut) {
        const uint8_t *data;
        ssize_t size = nghttp2_session_mem_send(h->session, &data);
        if (size <= 0) {
            h->failed |= size < 0;
            break;
        }
        if (buffer_add(out, data, (size_t)size))
            h->failed = h->is_cut = 1;
    }
    tell_drained(h);
}

static codec_wait wait_for(const codec *c)
{
    const http2 *h = (const http2 *)c;
    if (h->failed ||
        (!nghttp2_session_want_read(h->session) && !nghttp2_session_want_write(h->session)))
        return CODEC_CLOSE;
    if (h->in_head)
        return CODEC_HEAD;
    return h->streams ? CODEC_BUSY : CODEC_IDLE;
}

static void drain(codec *c)
{
    http2 *h = http2_of(c);
    if (h->draining)
        return;
    h->draining = 1;
    nghttp2_submit_shutdown_notice(h->session);
    for (stream *s = h->streams; s; s = s->next)
        if (s->inner)
            s->inner->table->drain(s->inner);
    codec_output(c);
}

/* A body that does not come, and an answer whose window the client does not open, end their stream. */
static void check_stream(http2 *h, stream *s, uint64_t now_ns)
{
    const codec_limits *limits = &h->common.limits;
    int reads = s->x->state == EXCHANGE_READING ||
                (s->x->state == EXCHANGE_ANSWERING && !s->is_whole);
    int owes = s->ended || s->out.size > s->out_at;
    int asks = s->x->state == EXCHANGE_SENDING && !s->is_whole && !s->inner && !owes;
    if (!s->since_ns || (!reads && !owes && !asks) ||
        s->moved_bytes >= (reads ? CODEC_LEAST_BODY : 1)) {
        s->since_ns = now_ns;
        s->moved_bytes = 0;
        return;
    }
    uint64_t waited_ns = now_ns - s->since_ns;
    if (reads && waited_ns > (uint64_t)limits->body_ms * 1000000u)
        exchange_refuse(s->x, 408, "request_timeout", "the body stood still for too long");
    else if (!reads && waited_ns > (uint64_t)(asks ? limits->quiet_ms : limits->send_ms) * 1000000u)
        nghttp2_submit_rst_stream(h->session, NGHTTP2_FLAG_NONE, s->id, NGHTTP2_CANCEL);
    codec_output(&h->common);
}

/* A client that is gone without a word is found by a ping; one without streams, by the idle timeout. */
static void check_client(http2 *h, uint64_t now_ns)
{
    const codec_limits *limits = &h->common.limits;
    uint64_t ping_ns = (uint64_t)limits->ping_ms * 1000000u;
    if (h->heard || !h->heard_ns || !h->streams) {
        h->heard = h->pinged = 0;
        h->heard_ns = now_ns;
    } else if (!h->pinged && now_ns - h->heard_ns > ping_ns) {
        h->pinged = 1;
        nghttp2_submit_ping(h->session, NGHTTP2_FLAG_NONE, NULL);
        codec_output(&h->common);
    } else if (now_ns - h->heard_ns > ping_ns + (uint64_t)limits->send_ms * 1000000u) {
        h->failed = 1;
        codec_output(&h->common);
    }
}

/* Who answers no ping is not waited for. */
static void check_drain(http2 *h, uint64_t now_ns)
{
    if (!h->drained_ns)
        h->drained_ns = now_ns;
    if (h->has_last || now_ns - h->drained_ns < ROUND_TRIP_NS)
        return;
    send_last(h);
    codec_output(&h->common);
}

static void tick(codec *c, uint64_t now_ns)
{
    http2 *h = http2_of(c);
    check_client(h, now_ns);
    if (h->draining)
        check_drain(h, now_ns);
    for (stream *s = h->streams; s; s = s->next) {
        if (s->inner && s->inner->table->tick)
            s->inner->table->tick(s->inner, now_ns);
        if (s->x)
            check_stream(h, s, now_ns);
    }
}

static void close_codec(codec *c)
{
    http2 *h = http2_of(c);
    while (h->streams)
        close_stream(h, h->streams);
    nghttp2_session_del(h->session);
    free(h);
}

/* ---- opening ---- */

static int open_session(http2 *h)
{
    nghttp2_session_callbacks *callbacks = NULL;
    nghttp2_option *option = NULL;
    int code = nghttp2_session_callbacks_new(&callbacks);
    if (!code)
        code = nghttp2_option_new(&option);
    if (!code) {
        nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin_headers);
        nghttp2_session_callbacks_set_on_begin_frame_callback(callbacks, on_begin_frame);
        nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
        nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame_recv);
        nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
        nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close);
        nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, on_frame_send);
        nghttp2_option_set_max_outbound_ack(option, 200);
        nghttp2_option_set_max_settings(option, 16);
        nghttp2_option_set_stream_reset_rate_limit(option, UNLIMITED_RESETS, UNLIMITED_RESETS);
        code = nghttp2_session_server_new2(&h->session, callbacks, h, option);
    }
    nghttp2_option_del(option);
    nghttp2_session_callbacks_del(callbacks);
    return code;
}

static int submit_settings(http2 *h)
{
    const nghttp2_settings_entry entries[] = {
        {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, (uint32_t)h->common.limits.streams},
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, STREAM_WINDOW},
        {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, (uint32_t)h->common.limits.head_bytes},
        {NGHTTP2_SETTINGS_ENABLE_CONNECT_PROTOCOL, 1},
    };
    int code = nghttp2_submit_settings(h->session, NGHTTP2_FLAG_NONE, entries,
                                       sizeof entries / sizeof *entries);
    if (!code)
        code = nghttp2_session_set_local_window_size(h->session, NGHTTP2_FLAG_NONE, 0,
                                                     CONNECTION_WINDOW);
    return code;
}

static codec *open_codec(const codec_options *options)
{
    http2 *h = calloc(1, sizeof *h);
    if (!h)
        return NULL;
    codec_init(&h->common, &codec_http2, options);
    h->highest = -1;
    h->idle_frames = IDLE_FRAMES;
    h->idle_at_ns = clock_ns();
    if (open_session(h) || submit_settings(h)) {
        nghttp2_session_del(h->session);
        free(h);
        return NULL;
    }
    return &h->common;
}

const codec_table codec_http2 = {
    .name = "h2",
    .open = open_codec,
    .close = close_codec,
    .feed = feed,
    .wants_input = wants_input,
    .pull = pull,
    .wait = wait_for,
    .drain = drain,
    .tick = tick,
    .begin = begin,
    .write = write_body,
    .end = end,
    .abort = abort_exchange,
    .pending = pending,
    .tunnel = tunnel,
};
