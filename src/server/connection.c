/* server/connection.c: see connection.h. */
#include "server/connection.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

#define PULL_BYTES   ((size_t)64 << 10) /* at a time from the codec */
#define KEPT_BYTES   ((size_t)8 << 10)  /* an idle connection keeps no larger buffer */
#define LINGER_NS    2000000000u
#define PREFACE      "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
#define PREFACE_SIZE 24

enum { NEW, OPEN, LINGER, CLOSED };

struct connection {
    uv_tcp_t socket; /* first: see on_closed */
    net *net;
    connection *previous, *next, *next_dirty;
    int state, is_dirty;
    codec *codec;
    tls *tls;
    buffer out;    /* for the socket */
    size_t out_at; /* written of it */
    uv_write_t write;
    int writing, reading;
    char first[PREFACE_SIZE]; /* what came before the protocol was known */
    size_t n_first;
    codec_wait waits_for;
    uint64_t since_ns; /* of that wait; while it is a body, of the last CODEC_LEAST_BODY of it */
    size_t body_bytes; /* since then */
    uint64_t sent_ns;  /* the last time that the client took something, or owed nothing */
};

static void make_dirty(connection *c)
{
    if (c->is_dirty || c->state == CLOSED)
        return;
    c->is_dirty = 1;
    c->next_dirty = c->net->dirty;
    c->net->dirty = c;
}

static void on_codec_output(void *owner)
{
    make_dirty(owner);
}

/* ---- closing ---- */

static void on_closed(uv_handle_t *handle)
{
    connection *c = (connection *)handle;
    net *n = c->net;
    if (c->codec)
        c->codec->table->close(c->codec);
    tls_close(c->tls);
    buffer_release(&c->out);
    free(c);
    n->stats.connections--;
    net_connection_gone(n);
}

static void close_connection(connection *c)
{
    if (c->state == CLOSED)
        return;
    c->state = CLOSED;
    if (c->previous)
        c->previous->next = c->next;
    else
        c->net->connections = c->next;
    if (c->next)
        c->next->previous = c->previous;
    if (c->is_dirty) {
        connection **at = &c->net->dirty;
        while (*at != c)
            at = &(*at)->next_dirty;
        *at = c->next_dirty;
        c->is_dirty = 0;
    }
    /* The codec may be on the stack: it goes, and cancels what runs for it, at the end of this turn. */
    uv_close((uv_handle_t *)&c->socket, on_closed);
}

static void on_shutdown(uv_shutdown_t *request, int status)
{
    (void)status;
    free(request);
}

static void linger(connection *c)
{
    if (c->state == LINGER)
        return;
    uv_shutdown_t *request = malloc(sizeof *request);
    if (!request || uv_shutdown(request, (uv_stream_t *)&c->socket, on_shutdown)) {
        free(request);
        close_connection(c);
        return;
    }
    c->state = LINGER;
    c->since_ns = clock_ns();
}

/* ---- writing ---- */

static void flush(connection *c);
static void start_reading(connection *c);

static void on_written(uv_write_t *write, int status)
{
    connection *c = write->data;
    c->writing = 0;
    if (c->state == CLOSED)
        return;
    if (status < 0) {
        close_connection(c);
        return;
    }
    c->sent_ns = clock_ns();
    c->net->stats.written_bytes += c->out.size - c->out_at;
    buffer_clear(&c->out);
    c->out_at = 0;
    make_dirty(c);
}

/* Fills out; REALM_OK with an empty out: there is nothing to send. */
static realm_status collect(connection *c)
{
    if (!c->tls) {
        if (c->codec)
            c->codec->table->pull(c->codec, &c->out, PULL_BYTES);
        return REALM_OK;
    }
    buffer *plain = &c->net->plain;
    realm_status status = REALM_OK;
    if (c->codec) {
        buffer_clear(plain);
        c->codec->table->pull(c->codec, plain, PULL_BYTES);
        status = plain->size ? tls_write(c->tls, plain->data, plain->size) : REALM_OK;
    }
    return status ? status : tls_pull(c->tls, &c->out);
}

static void start_write(connection *c)
{
    uv_buf_t rest = uv_buf_init(c->out.data + c->out_at, (unsigned)(c->out.size - c->out_at));
    c->write.data = c;
    c->writing = 1;
    c->sent_ns = clock_ns();
    if (uv_write(&c->write, (uv_stream_t *)&c->socket, &rest, 1, on_written)) {
        c->writing = 0;
        close_connection(c);
    }
}

/* 1 if all of out went. */
static int write_out(connection *c)
{
    uv_buf_t all = uv_buf_init(c->out.data, (unsigned)c->out.size);
    int sent = uv_try_write((uv_stream_t *)&c->socket, &all, 1);
    if (sent < 0 && sent != UV_EAGAIN) {
        close_connection(c);
        return 0;
    }
    c->out_at = sent > 0 ? (size_t)sent : 0;
    c->net->stats.written_bytes += c->out_at;
    if (c->out_at < c->out.size) {
        start_write(c);
        return 0;
    }
    buffer_clear(&c->out);
    c->out_at = 0;
    return 1;
}

static void after_flush(connection *c)
{
    if (c->out.capacity > KEPT_BYTES)
        buffer_release(&c->out);
    if (!c->codec)
        return;
    codec_wait waits_for = c->codec->table->wait(c->codec);
    if (waits_for != c->waits_for) {
        c->waits_for = waits_for;
        c->since_ns = clock_ns();
    }
    if (waits_for == CODEC_CLOSE) {
        if (c->tls && c->state == OPEN) {
            tls_shutdown(c->tls);
            tls_pull(c->tls, &c->out);
            if (c->out.size && !write_out(c))
                return; /* what is left goes with the socket */
        }
        if (c->state == OPEN)
            linger(c);
        return;
    }
    start_reading(c);
}

static void flush(connection *c)
{
    while (!c->writing && c->state != CLOSED) {
        if (collect(c)) {
            close_connection(c);
            return;
        }
        if (!c->out.size) {
            after_flush(c);
            return;
        }
        if (!write_out(c))
            return;
    }
}

void connection_flush_all(net *n)
{
    while (n->dirty) {
        connection *c = n->dirty;
        n->dirty = c->next_dirty;
        c->is_dirty = 0;
        flush(c);
    }
}

/* ---- reading ---- */

static int open_codec(connection *c, const codec_table *table)
{
    codec_options options = {.sink = c->net->options.sink,
                             .limits = c->net->options.limits,
                             .on_output = on_codec_output,
                             .connection = c,
                             .secure = c->tls != NULL};
    c->codec = table->open(&options);
    if (!c->codec)
        return 0;
    c->state = OPEN;
    if (c->net->draining)
        table->drain(c->codec);
    return 1;
}

static void feed_codec(connection *c, const char *data, size_t size)
{
    if (c->state != OPEN) /* lingering */
        return;
    c->codec->table->feed(c->codec, data, size);
    c->body_bytes += size;
    if (c->waits_for == CODEC_BODY && c->body_bytes >= CODEC_LEAST_BODY) {
        c->body_bytes = 0;
        c->since_ns = clock_ns();
    }
    make_dirty(c);
}

/* The first bytes in clear: HTTP/2's preface, or HTTP/1. */
static void sniff(connection *c, const char *data, size_t size)
{
    size_t part = PREFACE_SIZE - c->n_first < size ? PREFACE_SIZE - c->n_first : size;
    memcpy(c->first + c->n_first, data, part);
    c->n_first += part;
    int is_preface = memcmp(c->first, PREFACE, c->n_first) == 0;
    if (is_preface && c->n_first < PREFACE_SIZE)
        return;
    if (!open_codec(c, is_preface ? &codec_http2 : &codec_http1)) {
        close_connection(c);
        return;
    }
    feed_codec(c, c->first, c->n_first);
    if (size > part && c->state == OPEN)
        feed_codec(c, data + part, size - part);
}

static void take_plain(connection *c, const char *data, size_t size)
{
    if (c->codec)
        feed_codec(c, data, size);
    else if (size)
        sniff(c, data, size);
}

static void take_secret(connection *c, const char *data, size_t size)
{
    buffer *plain = &c->net->plain;
    buffer_clear(plain);
    realm_status status = tls_feed(c->tls, data, size, plain);
    int h2;
    if (!c->codec && tls_is_ready(c->tls, &h2) && !open_codec(c, h2 ? &codec_http2 : &codec_http1))
        status = REALM_NO_MEMORY;
    make_dirty(c);
    if (c->codec && plain->size)
        feed_codec(c, plain->data, plain->size);
    if (status == REALM_OK)
        return;
    tls_pull(c->tls, &c->out); /* the alert, if it can go at once */
    if (c->out.size && !c->writing)
        write_out(c);
    close_connection(c);
}

static void give_bytes(uv_handle_t *handle, size_t suggested, uv_buf_t *out)
{
    (void)suggested;
    net *n = ((connection *)handle)->net;
    *out = uv_buf_init(n->read_bytes, sizeof n->read_bytes);
}

static void on_read(uv_stream_t *stream, ssize_t count, const uv_buf_t *bytes)
{
    connection *c = (connection *)stream;
    if (count == 0)
        return;
    if (count < 0) {
        /* Answers that are ready go out first; what is still being made has lost its reader. */
        if (count == UV_EOF && c->state == OPEN && !c->writing)
            flush(c);
        close_connection(c);
        return;
    }
    c->net->stats.read_bytes += (uint64_t)count;
    if (c->tls)
        take_secret(c, bytes->base, (size_t)count);
    else
        take_plain(c, bytes->base, (size_t)count);
    if (c->state == OPEN && !c->codec->table->wants_input(c->codec)) {
        uv_read_stop(stream);
        c->reading = 0;
    }
}

static void start_reading(connection *c)
{
    if (c->reading || (c->codec && !c->codec->table->wants_input(c->codec)))
        return;
    c->reading = uv_read_start((uv_stream_t *)&c->socket, give_bytes, on_read) == 0;
    if (!c->reading)
        close_connection(c);
}

/* ---- accepting ---- */

static void refuse_connection(connection *c)
{
    static const char answer[] =
        "HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-type: application/json\r\n"
        "content-length: 129\r\nconnection: close\r\n\r\n"
        "{\"error\":{\"message\":\"too many connections are open; try again\",\"type\":\"server_error\","
        "\"param\":null,\"code\":\"too_many_connections\"}}";
    c->net->stats.refused++;
    uv_buf_t bytes = uv_buf_init((char *)(uintptr_t)answer, sizeof answer - 1);
    if (!c->tls)
        uv_try_write((uv_stream_t *)&c->socket, &bytes, 1);
    close_connection(c);
}

void connection_accept(net *n, uv_stream_t *listener, int is_tls)
{
    connection *c = calloc(1, sizeof *c);
    if (!c)
        return;
    c->net = n;
    buffer_init(&c->out, SIZE_MAX);
    uv_tcp_init(&n->loop, &c->socket);
    n->stats.accepted++;
    n->stats.connections++;
    c->next = n->connections;
    if (c->next)
        c->next->previous = c;
    n->connections = c;
    c->since_ns = c->sent_ns = clock_ns();
    c->waits_for = CODEC_HEAD; /* so much time there is for the first byte */
    if (uv_accept(listener, (uv_stream_t *)&c->socket)) {
        close_connection(c);
        return;
    }
    uv_tcp_nodelay(&c->socket, 1);
    if (is_tls && !(c->tls = tls_open(n->tls))) {
        close_connection(c);
        return;
    }
    if (n->stats.connections > n->options.max_connections) {
        refuse_connection(c);
        return;
    }
    start_reading(c);
}

/* ---- all of them ---- */

static int is_too_late(const connection *c, uint64_t now_ns)
{
    const net_options *o = &c->net->options;
    if (c->writing && now_ns - c->sent_ns > (uint64_t)o->send_ms * 1000000u)
        return 1;
    if (c->state == LINGER)
        return now_ns - c->since_ns > LINGER_NS;
    uint64_t waited = now_ns > c->since_ns ? now_ns - c->since_ns : 0;
    switch (c->waits_for) {
    case CODEC_IDLE: return waited > (uint64_t)o->idle_ms * 1000000u;
    case CODEC_HEAD: return waited > (uint64_t)o->head_ms * 1000000u;
    case CODEC_BODY: return waited > (uint64_t)o->body_ms * 1000000u;
    case CODEC_BUSY:
    case CODEC_CLOSE: return 0;
    }
    return 0;
}

void connection_check_times(net *n, uint64_t now_ns)
{
    for (connection *c = n->connections, *next; c; c = next) {
        next = c->next;
        if (c->state == OPEN && c->codec->table->tick)
            c->codec->table->tick(c->codec, now_ns);
        if (!is_too_late(c, now_ns))
            continue;
        n->stats.timeouts += c->state != LINGER;
        close_connection(c);
    }
}

void connection_close_all(net *n)
{
    while (n->connections)
        close_connection(n->connections);
}

void connection_drain_all(net *n)
{
    for (connection *c = n->connections, *next; c; c = next) {
        next = c->next;
        if (c->codec)
            c->codec->table->drain(c->codec);
        else
            close_connection(c);
    }
}
