/* server/exchange.c: see exchange.h. */
#include "server/exchange.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/rng.h"
#include "base/map.h"
#include "server/codec.h"

/* Headers in and out; bodies have their own caps. */
#define MEMORY_CAP ((size_t)1 << 20)

/* ---- making and ending ---- */

exchange *exchange_open(codec *c, const exchange_sink *sink, const char *protocol)
{
    exchange *x = calloc(1, sizeof *x);
    if (!x)
        return NULL;
    arena_init(&x->memory, MEMORY_CAP);
    buffer_init(&x->body, SIZE_MAX);
    buffer_init(&x->kept, SIZE_MAX); /* one turn of a handler's, or the tenant's output_bytes */
    x->codec = c;
    x->sink = sink;
    x->protocol = protocol;
    x->references = 1;
    x->started_ns = clock_ns();
    x->method = x->path = x->query = x->authority = "";
    x->content_length = -1;
    return x;
}

exchange *exchange_retain(exchange *x)
{
    x->references++;
    return x;
}

void exchange_release(exchange *x)
{
    if (!x || --x->references)
        return;
    if (x->on_free)
        x->on_free(x);
    buffer_release(&x->body);
    buffer_release(&x->kept);
    arena_release(&x->memory);
    free(x);
}

void exchange_assert(const exchange *x)
{
    assert((x->codec == NULL) == exchange_is_over(x));
    assert(x->body.size <= x->body_limit);
    assert(x->references > 0);
    assert(x->held || !x->kept.size);
    (void)x;
}

/* ---- the request ---- */

/* An id that a client gave is passed on into logs and answers, so it must be harmless there. */
static int decent_id(const char *id)
{
    size_t size = strlen(id);
    if (size < 1 || size > EXCHANGE_ID_SIZE)
        return 0;
    for (; *id; id++)
        if (!((*id >= '0' && *id <= '9') || (*id >= 'a' && *id <= 'z') ||
              (*id >= 'A' && *id <= 'Z') || *id == '-' || *id == '_' || *id == '.'))
            return 0;
    return 1;
}

/* Unique, not secret. */
static void make_id(char id[EXCHANGE_ID_SIZE + 1])
{
    static rng random;
    static int seeded;
    if (!seeded) {
        rng_init(&random, map_seed());
        seeded = 1;
    }
    static const char digits[] = "0123456789abcdef";
    uint64_t halves[2] = {rng_next(&random), rng_next(&random)};
    memcpy(id, "req-", 4);
    for (int i = 0; i < 24; i++)
        id[4 + i] = digits[halves[i / 16] >> (i % 16 * 4) & 15];
    id[28] = 0;
}

void exchange_head(exchange *x)
{
    const char *id = exchange_header_get(x, "x-request-id");
    if (id && decent_id(id))
        memcpy(x->id, id, strlen(id) + 1);
    else
        make_id(x->id);
    trace_read(&x->trace, x->headers, x->n_headers);
    x->sink->head(x->sink->context, x);
}

realm_status exchange_take_body(exchange *x, const void *data, size_t size)
{
    if (x->discard) {
        /* Read over, so that the connection can be kept, but not for ever. */
        x->body_limit -= size < x->body_limit ? size : x->body_limit;
        return x->body_limit ? REALM_OK : REALM_TOO_LARGE;
    }
    if (size > x->body_limit - x->body.size)
        return REALM_TOO_LARGE;
    return buffer_add(&x->body, data, size);
}

void exchange_complete(exchange *x)
{
    x->state = EXCHANGE_ANSWERING;
    x->sink->complete(x->sink->context, x);
}

static void over(exchange *x, exchange_state state)
{
    x->state = state;
    x->codec = NULL;
    if (x->sink->over)
        x->sink->over(x->sink->context, x);
    exchange_release(x);
}

void exchange_gone(exchange *x)
{
    int answering = x->state == EXCHANGE_ANSWERING || x->state == EXCHANGE_SENDING;
    exchange_retain(x);
    over(x, EXCHANGE_GONE);
    if (answering && x->on_cancel)
        x->on_cancel(x);
    exchange_release(x);
}

void exchange_finished(exchange *x)
{
    over(x, EXCHANGE_ENDED);
}

const char *exchange_header_get(const exchange *x, const char *name)
{
    for (size_t i = 0; i < x->n_headers; i++)
        if (strcmp(x->headers[i].name, name) == 0)
            return x->headers[i].value;
    return NULL;
}

static int hex(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* In place; a broken escape, and one of NUL, stays as it is. */
static void percent_decode(char *text, int plus_is_blank)
{
    char *to = text;
    for (; *text; text++) {
        if (*text == '%' && hex(text[1]) >= 0 && hex(text[2]) >= 0 &&
            (text[1] != '0' || text[2] != '0')) {
            *to++ = (char)(hex(text[1]) << 4 | hex(text[2]));
            text += 2;
        } else {
            *to++ = *text == '+' && plus_is_blank ? ' ' : *text;
        }
    }
    *to = 0;
}

const char *exchange_query_get(exchange *x, const char *name)
{
    size_t size = strlen(name);
    for (const char *at = x->query; *at;) {
        size_t length = strcspn(at, "&");
        if (length >= size && memcmp(at, name, size) == 0 && (length == size || at[size] == '=')) {
            size_t skip = length == size ? size : size + 1;
            char *value = arena_copy(&x->memory, at + skip, length - skip);
            if (value)
                percent_decode(value, 1);
            return value;
        }
        at += length + (at[length] == '&');
    }
    return NULL;
}

const char *exchange_decode(exchange *x, const char *part)
{
    char *copy = arena_copy(&x->memory, part, strlen(part));
    if (copy)
        percent_decode(copy, 0);
    return copy ? copy : "";
}

/* ---- the response ---- */

void exchange_set(exchange *x, const char *name, const char *value)
{
    if (x->n_answer == sizeof x->answer / sizeof *x->answer)
        return; /* handlers set a dozen at most */
    char *copy = arena_copy(&x->memory, value, strlen(value));
    if (copy)
        x->answer[x->n_answer++] = (exchange_header){name, copy};
    else
        x->is_cut = 1;
}

void exchange_setf(exchange *x, const char *name, const char *format, ...)
{
    char value[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(value, sizeof value, format, arguments);
    va_end(arguments);
    exchange_set(x, name, value);
}

void exchange_trailer(exchange *x, const char *name, const char *value)
{
    if (x->n_trailers == sizeof x->trailers / sizeof *x->trailers)
        return;
    char *copy = arena_copy(&x->memory, value, strlen(value));
    if (copy)
        x->trailers[x->n_trailers++] = (exchange_header){name, copy};
    else
        x->is_cut = 1;
}

void exchange_begin(exchange *x, int status, int64_t content_length)
{
    if (x->state != EXCHANGE_ANSWERING)
        return;
    x->status = status;
    x->content_length = content_length;
    exchange_set(x, "x-request-id", x->id);
    x->state = EXCHANGE_SENDING;
    if (x->is_cut)
        exchange_abort(x);
    else if (x->held)
        x->keeps_head = 1;
    else
        x->codec->table->begin(x->codec, x);
}

void exchange_write(exchange *x, const void *data, size_t size)
{
    if (x->state != EXCHANGE_SENDING || !size)
        return;
    x->sent_bytes += size;
    if (!x->held)
        x->codec->table->write(x->codec, x, data, size);
    else if (buffer_add(&x->kept, data, size))
        exchange_abort(x);
}

void exchange_end(exchange *x)
{
    if (x->state != EXCHANGE_SENDING)
        return;
    x->on_cancel = x->on_drained = NULL; /* the handler has finished; the client may yet go */
    x->on_body = NULL;
    if (x->is_cut)
        exchange_abort(x);
    else if (x->held)
        x->keeps_end = 1;
    else
        x->codec->table->end(x->codec, x);
}

void exchange_abort(exchange *x)
{
    if (x->state == EXCHANGE_ANSWERING || x->state == EXCHANGE_SENDING) {
        x->on_cancel = NULL; /* it is the handler who calls */
        x->held = x->keeps_head = x->keeps_end = 0;
        buffer_release(&x->kept);
        x->codec->table->abort(x->codec, x);
    }
}

void exchange_hold(exchange *x)
{
    x->held = !exchange_is_over(x);
}

void exchange_go(exchange *x)
{
    if (!x->held)
        return;
    buffer kept = x->kept;
    buffer_init(&x->kept, SIZE_MAX);
    x->held = 0;
    if (!exchange_is_over(x) && x->keeps_head)
        x->codec->table->begin(x->codec, x);
    if (!exchange_is_over(x) && kept.size)
        x->codec->table->write(x->codec, x, kept.data, kept.size);
    if (!exchange_is_over(x) && x->keeps_end)
        x->codec->table->end(x->codec, x);
    buffer_release(&kept);
}

void exchange_tunnel(exchange *x, codec *inner)
{
    if (x->state != EXCHANGE_ANSWERING || !x->upgrade) {
        inner->table->close(inner);
        return;
    }
    exchange_set(x, "x-request-id", x->id);
    x->status = 101;
    x->state = EXCHANGE_SENDING;
    x->codec->table->tunnel(x->codec, x, inner);
}

void exchange_reply(exchange *x, int status, const char *type, const void *data, size_t size)
{
    if (type)
        exchange_set(x, "content-type", type);
    exchange_begin(x, status, (int64_t)size);
    exchange_write(x, data, size);
    exchange_end(x);
}

size_t exchange_pending(const exchange *x)
{
    return x->codec ? x->codec->table->pending(x->codec, x) + x->kept.size : 0;
}

void exchange_refuse(exchange *x, int status, const char *code, const char *sentence)
{
    char body[512];
    int size = snprintf(body, sizeof body,
                        "{\"error\":{\"message\":\"%s\",\"type\":\"invalid_request_error\","
                        "\"param\":null,\"code\":\"%s\"}}",
                        sentence, code);
    if (!*x->id)
        make_id(x->id);
    if (x->state == EXCHANGE_READING)
        x->state = EXCHANGE_ANSWERING;
    if (x->fail) {
        x->fail(x, status, code, "", sentence);
        return;
    }
    exchange_reply(x, status, "application/json", body, (size_t)size);
}
