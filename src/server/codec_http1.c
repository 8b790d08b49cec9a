/* server/codec_http1.c: HTTP/1.1 and 1.0 (RFC 9112), parsed by llhttp.
 *
 * A head is gathered until its empty line and only then parsed, whole: llhttp's pieces are then whole
 * too, and one pass over the bytes refuses beforehand what different servers read differently, which
 * is what request smuggling lives from: line ends that are not CR LF, stray CRs, NULs, folded lines.
 * Of what is left, a request with both lengths, with two, or with a transfer coding other than plain
 * `chunked` is refused, and after any such error the connection ends.
 *
 * Requests of a pipeline are answered one after the other: while one is being answered the next ones'
 * bytes wait in `in`, and past a limit the connection stops reading. So they do while the client has much to read:
 * a request of 40 bytes may be answered with 20 KiB.
 *
 *            head is whole            body is whole              answered, keeps alive
 *     HEAD ----------------> BODY ------------------> ANSWER ---------------------------> HEAD
 *       |                      |                         |
 *       '----------------------'--- malformed, closes ---'--> CLOSING
 *                                                        '--> TUNNEL  the bytes are an inner codec's
 *
 * Where memory is out for what shall be sent, nothing is sent after it: the connection ends there, and whoever reads
 * sees that the answer is not whole.
 *
 * Net thread. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "server/codec.h"

#include <llhttp.h>

/* Of what waits behind the request that is being answered. */
#define WAITING_BYTES ((size_t)64 << 10)
/* A body that nobody wants is read over so far, so that the connection lives on. */
#define DISCARDED_BYTES ((size_t)1 << 20)

enum { HEAD, BODY, ANSWER, TUNNEL, CLOSING };

typedef struct http1 {
    codec common;
    llhttp_t parser;
    buffer in;  /* a head that is not whole, or what waits */
    buffer out; /* not pulled yet */
    exchange *x;
    int state;
    int feeding; /* inside of feed: whoever ends an exchange leaves going on to it */
    int is_cut;  /* something did not fit into `out`: nothing more goes in */

    /* of the head that is being gathered: see scan_head */
    size_t scanned, line_start;
    int32_t lines;

    /* of the current request */
    exchange_header headers[EXCHANGE_MAX_HEADERS];
    size_t name_size, value_size;
    size_t n_headers;
    char *url;
    size_t url_size;
    int failed; /* a status, once a callback has found something */
    const char *sentence;
    int message_complete;
    int keep_alive, draining;
    int is_head, is_chunked, no_body;
    uint64_t overhead; /* bytes of the body's framing */
    codec *inner;      /* TUNNEL */
} http1;

static http1 *http1_of(codec *c)
{
    return (http1 *)c;
}

/* ---- llhttp's callbacks ---- */

static int fail(http1 *h, int status, const char *sentence)
{
    if (!h->failed) {
        h->failed = status;
        h->sentence = sentence;
    }
    return HPE_USER;
}

static int on_url(llhttp_t *p, const char *at, size_t size)
{
    http1 *h = p->data;
    if (h->url && h->url + h->url_size != at)
        return fail(h, 400, "the request target is malformed");
    if (!h->url)
        h->url = (char *)(uintptr_t)at; /* the exchange's own copy: it may be written */
    h->url_size += size;
    return 0;
}

static int on_header_field(llhttp_t *p, const char *at, size_t size)
{
    http1 *h = p->data;
    if (h->state == BODY) /* a trailer: of no use, but counted (see overhead) */
        return 0;
    exchange_header *header = &h->headers[h->n_headers];
    if (header->name && header->name + h->name_size != at)
        return fail(h, 400, "a header is malformed");
    if (!header->name)
        header->name = at;
    h->name_size += size;
    return 0;
}

static int on_header_value(llhttp_t *p, const char *at, size_t size)
{
    http1 *h = p->data;
    if (h->state == BODY)
        return 0;
    exchange_header *header = &h->headers[h->n_headers];
    if (header->value && header->value + h->value_size != at)
        return fail(h, 400, "a header is malformed");
    if (!header->value)
        header->value = at;
    h->value_size += size;
    return 0;
}

static int is_token(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           (c && strchr("!#$%&'*+-.^_`|~", c));
}

/* Makes terminated, lower-case, trimmed text of the last header, in place. */
static int on_header_value_complete(llhttp_t *p)
{
    http1 *h = p->data;
    if (h->state == BODY)
        return 0;
    exchange_header *header = &h->headers[h->n_headers];
    char *name = (char *)(uintptr_t)header->name, *value = (char *)(uintptr_t)header->value;
    if (!h->name_size)
        return fail(h, 400, "a header has no name");
    for (size_t i = 0; i < h->name_size; i++) {
        if (!is_token(name[i]))
            return fail(h, 400, "a header name is malformed");
        if (name[i] >= 'A' && name[i] <= 'Z')
            name[i] = (char)(name[i] | 0x20);
    }
    name[h->name_size] = 0;
    if (!h->value_size)
        value = name + h->name_size; /* llhttp's place of an empty one is in the next line */
    while (h->value_size && (value[h->value_size - 1] == ' ' || value[h->value_size - 1] == '\t'))
        h->value_size--;
    for (size_t i = 0; i < h->value_size; i++)
        if (((unsigned char)value[i] < 0x20 && value[i] != '\t') || value[i] == 0x7f)
            return fail(h, 400, "a header value holds a control character");
    value[h->value_size] = 0;
    header->value = value;
    h->name_size = h->value_size = 0;
    h->n_headers++;
    if (h->n_headers < EXCHANGE_MAX_HEADERS)
        h->headers[h->n_headers] = (exchange_header){0};
    return 0;
}

static int on_headers_complete(llhttp_t *p)
{
    p->upgrade = 0; /* llhttp's own idea of it; see find_upgrade */
    return 0;
}

static int on_body(llhttp_t *p, const char *at, size_t size)
{
    http1 *h = p->data;
    h->overhead -= size; /* the caller added all bytes that it fed */
    switch (exchange_take_body(h->x, at, size)) {
    case REALM_OK: return 0;
    case REALM_NO_MEMORY: return fail(h, 503, "the host is out of memory");
    default: return fail(h, 413, "the body is larger than this endpoint takes");
    }
}

static int on_message_complete(llhttp_t *p)
{
    http1 *h = p->data;
    h->message_complete = 1;
    return HPE_PAUSED;
}

static const llhttp_settings_t settings = {
    .on_url = on_url,
    .on_header_field = on_header_field,
    .on_header_value = on_header_value,
    .on_header_value_complete = on_header_value_complete,
    .on_headers_complete = on_headers_complete,
    .on_body = on_body,
    .on_message_complete = on_message_complete,
};

/* ---- what is sent ---- */

static void put_bytes(http1 *h, const void *data, size_t size)
{
    if (!h->is_cut && buffer_add(&h->out, data, size))
        h->is_cut = 1;
}

static void put(http1 *h, const char *text)
{
    put_bytes(h, text, strlen(text));
}

static void put_header(http1 *h, const char *name, const char *value)
{
    put(h, name);
    put(h, ": ");
    put(h, value);
    put(h, "\r\n");
}

/* ---- refusing ---- */

static const char *refusal_code(int status)
{
    switch (status) {
    case 413: return "request_too_large";
    case 431: return "headers_too_large";
    case 501: return "not_implemented";
    case 503: return "unavailable";
    case 505: return "http_version_not_supported";
    default: return "malformed_request";
    }
}

/* The connection cannot go on: what follows cannot be told apart. */
static void refuse(http1 *h, int status, const char *sentence)
{
    h->keep_alive = 0;
    if (!h->x) {
        h->x = exchange_open(&h->common, h->common.sink, "HTTP/1.1");
        h->is_head = 0;
    }
    h->state = ANSWER;
    buffer_clear(&h->in);
    if (h->x)
        exchange_refuse(h->x, status, refusal_code(status), sentence);
    h->state = CLOSING;
}

/* ---- a head ---- */

/* Looks through new bytes of a head line by line. Returns the head's size, 0 if it is not whole, or
 * -1 after setting failed. */
static int64_t scan_head(http1 *h, const char *data, size_t size)
{
    for (;;) {
        const char *end = memchr(data + h->scanned, '\n', size - h->scanned);
        size_t upto = end ? (size_t)(end - data) : size;
        if (memchr(data + h->scanned, 0, upto - h->scanned)) {
            fail(h, 400, "the head holds a NUL");
            return -1;
        }
        if (!end) {
            h->scanned = size;
            if (size > h->common.limits.head_bytes) {
                fail(h, 431, "the request line and headers are too large");
                return -1;
            }
            return 0;
        }
        size_t line = h->line_start;
        const char *cr = memchr(data + line, '\r', upto - line);
        if (!cr || cr != end - 1) {
            fail(h, 400, "a line does not end with CR LF");
            return -1;
        }
        h->scanned = h->line_start = upto + 1;
        if (upto - line == 1)
            return (int64_t)upto + 1;
        if (h->lines && (data[line] == ' ' || data[line] == '\t')) {
            fail(h, 400, "a header is folded over lines");
            return -1;
        }
        if (h->lines++ > h->common.limits.headers || upto > h->common.limits.head_bytes) {
            fail(h, 431, "the request line and headers are too large");
            return -1;
        }
    }
}

static int is_list_word(const char *value, const char *word)
{
    size_t size = strlen(word);
    while (*value) {
        value += strspn(value, ", \t");
        size_t length = strcspn(value, ", \t");
        if (length == size && strncasecmp(value, word, size) == 0)
            return 1;
        value += length;
    }
    return 0;
}

/* Everything that a second reader could understand in another way. */
static int check_head(http1 *h)
{
    const llhttp_t *p = &h->parser;
    int hosts = 0, lengths = 0, codings = 0;
    const char *coding = "";
    for (size_t i = 0; i < h->n_headers; i++) {
        const exchange_header *header = &h->headers[i];
        if (strcmp(header->name, "host") == 0) {
            hosts++;
            h->x->authority = header->value;
        } else if (strcmp(header->name, "content-length") == 0) {
            lengths++;
        } else if (strcmp(header->name, "transfer-encoding") == 0) {
            codings++;
            coding = header->value;
        }
    }
    if (p->http_major != 1 || p->http_minor > 1)
        return fail(h, 505, "only HTTP/1.0, HTTP/1.1 and HTTP/2 are spoken here");
    if (hosts > 1 || (p->http_minor == 1 && hosts != 1))
        return fail(h, 400, "there must be exactly one Host header");
    if (lengths > 1 || (lengths && codings))
        return fail(h, 400, "the length of the body is told in two ways");
    if (codings > 1 || (codings && p->http_minor == 0))
        return fail(h, 400, "the transfer coding is malformed");
    if (codings && strcasecmp(coding, "chunked") != 0)
        return fail(h, 501, "no transfer coding but chunked is understood");
    h->is_chunked = codings;
    return 0;
}

/* "http://host/path" is what proxies are sent; servers must take it too. */
static int split_target(http1 *h)
{
    exchange *x = h->x;
    char *url = h->url ? h->url : (char *)(uintptr_t) "";
    char *end = url + h->url_size;
    if (h->url)
        *end = 0;
    if (strncasecmp(url, "http://", 7) == 0 || strncasecmp(url, "https://", 8) == 0) {
        char *host = strstr(url, "//") + 2;
        url = host + strcspn(host, "/?#");
        if (url == host)
            return fail(h, 400, "the request target is malformed");
        x->authority = arena_copy(&x->memory, host, (size_t)(url - host));
        if (!x->authority)
            return fail(h, 431, "the request line and headers are too large");
        if (*url != '/') /* RFC 9110, 4.2.3: no path is the root */
            url = arena_printf(&x->memory, "/%s", url);
        if (!url)
            return fail(h, 431, "the request line and headers are too large");
    }
    if (*url != '/' && strcmp(url, "*") != 0)
        return fail(h, 400, "the request target must be a path");
    char *query = strchr(url, '?');
    if (query)
        *query++ = 0;
    char *fragment = strchr(url, '#');
    if (fragment || (query && strchr(query, '#')))
        return fail(h, 400, "the request target holds a fragment");
    x->path = url;
    x->query = query ? query : "";
    return 0;
}

/* `Upgrade: h2c` and the like may be ignored, and are; so is one with a body. */
static void find_upgrade(http1 *h)
{
    exchange *x = h->x;
    const char *upgrade = exchange_header_get(x, "upgrade");
    const char *connection = exchange_header_get(x, "connection");
    if (upgrade && connection && h->message_complete && h->parser.http_minor == 1 &&
        h->parser.method == HTTP_GET && is_list_word(connection, "upgrade") &&
        is_list_word(upgrade, "websocket"))
        x->upgrade = "websocket";
}

static void keep_headers(http1 *h)
{
    exchange *x = h->x;
    exchange_header *kept = arena_take_array(&x->memory, h->n_headers + 1, sizeof *kept);
    if (!kept) {
        fail(h, 431, "the request line and headers are too large");
        return;
    }
    memcpy(kept, h->headers, h->n_headers * sizeof *kept);
    x->headers = kept;
    x->n_headers = h->n_headers;
}

static void answer_now(http1 *h)
{
    h->state = ANSWER;
    exchange_complete(h->x); /* may have ended it when it returns */
}

static void begin_body(http1 *h)
{
    exchange *x = h->x;
    const char *expect = exchange_header_get(x, "expect");
    if (x->discard)
        x->body_limit = DISCARDED_BYTES;
    uint64_t length = h->is_chunked ? 0 : h->parser.content_length;
    if (length > x->body_limit) {
        refuse(h, 413, "the body is larger than this endpoint takes");
        return;
    }
    if (expect && strcasecmp(expect, "100-continue") != 0) {
        refuse(h, 417, "no expectation but 100-continue is understood");
        return;
    }
    if (expect)
        put(h, "HTTP/1.1 100 Continue\r\n\r\n");
    codec_output(&h->common);
    h->state = BODY;
}

/* What does not even name HTTP in its first line is another protocol, which our answer would only confuse. */
static int names_http(const char *data, size_t size)
{
    const char *end = memchr(data, '\n', size);
    return end && memmem(data, (size_t)(end - data), " HTTP/", 6) != NULL;
}

/* Method, target and version with one blank between: llhttp is more generous. */
static int is_plain_line(const char *data, size_t size)
{
    size_t end = (size_t)((const char *)memchr(data, '\r', size) - data);
    int blanks = 0;
    for (size_t i = 0; i < end; i++) {
        if (data[i] == ' ' && data[i + 1] == ' ')
            return 0;
        blanks += data[i] == ' ';
        if ((unsigned char)data[i] < 0x20 || data[i] == 0x7f)
            return 0;
    }
    return blanks == 2;
}

static void take_head(http1 *h, const char *data, size_t size)
{
    if (!names_http(data, size)) {
        h->state = CLOSING;
        return;
    }
    if (!is_plain_line(data, size)) {
        refuse(h, 400, "the request line is malformed");
        return;
    }
    exchange *x = h->x = exchange_open(&h->common, h->common.sink, "HTTP/1.1");
    char *copy = x ? arena_copy(&x->memory, data, size) : NULL;
    if (!copy) {
        exchange_release(x);
        h->x = NULL;
        h->state = CLOSING;
        return;
    }
    llhttp_init(&h->parser, HTTP_REQUEST, &settings);
    h->parser.data = h;
    h->url = NULL;
    h->url_size = h->n_headers = h->name_size = h->value_size = 0;
    h->headers[0] = (exchange_header){0};
    h->failed = h->message_complete = 0;
    h->overhead = 0;
    h->keep_alive = 0;
    llhttp_errno_t error = llhttp_execute(&h->parser, copy, size);
    if (!h->failed && error != HPE_OK && error != HPE_PAUSED)
        fail(h, 400,
             error == HPE_INVALID_METHOD ? "the method is unknown" : "the request is malformed");
    if (!h->failed)
        check_head(h);
    if (!h->failed)
        split_target(h);
    if (!h->failed)
        keep_headers(h);
    x->method = llhttp_method_name(h->parser.method);
    h->is_head = strcmp(x->method, "HEAD") == 0;
    if (h->failed) {
        refuse(h, h->failed, h->sentence);
        return;
    }
    if (h->parser.http_minor == 0)
        x->protocol = "HTTP/1.0";
    const char *connection = exchange_header_get(x, "connection");
    h->keep_alive = h->parser.http_minor == 1
                        ? !connection || !is_list_word(connection, "close")
                        : connection && is_list_word(connection, "keep-alive");
    x->keeps_open = h->keep_alive;
    find_upgrade(h);
    h->state = BODY; /* llhttp's callbacks are for the body from now on */
    exchange_head(x);
    if (h->message_complete)
        answer_now(h);
    else
        begin_body(h);
}

/* ---- going on ---- */

/* Framing may be some bytes a chunk, but not without end: empty extensions, one byte a chunk. */
static int is_too_much_framing(const http1 *h)
{
    return h->overhead > ((size_t)16 << 10) + 8 * (uint64_t)h->x->body.size;
}

static size_t take_body(http1 *h, const char *data, size_t size)
{
    h->overhead += size;
    llhttp_errno_t error = llhttp_execute(&h->parser, data, size);
    size_t taken = size;
    if (error == HPE_PAUSED) {
        taken = (size_t)(llhttp_get_error_pos(&h->parser) - data);
        h->overhead -= size - taken;
    } else if (error != HPE_OK && !h->failed) {
        fail(h, 400, "the body's chunks are malformed");
    }
    if (!h->failed && !h->x->discard && is_too_much_framing(h))
        fail(h, 400, "the body has more framing than content");
    if (h->failed)
        refuse(h, h->failed, h->sentence);
    else if (h->message_complete)
        answer_now(h);
    return taken;
}

/* Empty lines before a request line are passed over (RFC 9112, 2.2). */
static size_t skip_empty_lines(const http1 *h, const char *data, size_t size)
{
    size_t at = 0;
    while (!h->scanned && size - at >= 2 && data[at] == '\r' && data[at + 1] == '\n')
        at += 2;
    return at;
}

/* One step over data; returns the bytes that were used, 0: more are needed, or an answer is awaited. */
static size_t step(http1 *h, const char *data, size_t size)
{
    if (h->state == CLOSING || h->is_cut)
        return size;
    if (h->state == TUNNEL) {
        h->inner->table->feed(h->inner, data, size);
        return size;
    }
    if (h->state == BODY)
        return take_body(h, data, size);
    if (h->state == ANSWER || h->out.size > EXCHANGE_HIGH)
        return 0;
    size_t skipped = skip_empty_lines(h, data, size);
    if (skipped)
        return skipped;
    if (!h->scanned && size == 1 && data[0] == '\r')
        return 0;
    if (!h->scanned && size && !is_token(data[0])) {
        refuse(h, 400, "this is not HTTP");
        return size;
    }
    h->failed = 0;
    int64_t head = scan_head(h, data, size);
    if (head < 0) {
        refuse(h, h->failed, h->sentence);
        return size;
    }
    if (head == 0)
        return 0;
    h->scanned = h->line_start = 0;
    h->lines = 0;
    take_head(h, data, (size_t)head);
    return (size_t)head;
}

static void go_on(http1 *h)
{
    h->feeding = 1;
    size_t at = 0;
    while (at < h->in.size) {
        size_t used = step(h, h->in.data + at, h->in.size - at);
        if (!used)
            break;
        at += used;
    }
    buffer_drop_front(&h->in, at);
    h->feeding = 0;
}

static void feed(codec *c, const void *bytes, size_t size)
{
    http1 *h = http1_of(c);
    const char *data = bytes;
    size_t at = 0;
    if (!h->in.size) {
        h->feeding = 1;
        while (at < size) {
            size_t used = step(h, data + at, size - at);
            if (!used)
                break;
            at += used;
        }
        h->feeding = 0;
    }
    if (at == size || h->state == CLOSING)
        return;
    int waits = h->in.size == 0;
    if (buffer_add(&h->in, data + at, size - at)) {
        h->keep_alive = 0; /* the host's memory is out; wants_input keeps clients from the cap */
        h->state = CLOSING;
        return;
    }
    if (!waits)
        go_on(h);
}

static int wants_input(const codec *c)
{
    const http1 *h = (const http1 *)c;
    if (h->inner)
        return h->inner->table->wants_input(h->inner);
    int is_answering = h->state == ANSWER || (h->state == HEAD && h->out.size > EXCHANGE_HIGH);
    return !is_answering || h->in.size < WAITING_BYTES;
}

/* ---- the response ---- */

static void begin(codec *c, exchange *x)
{
    http1 *h = http1_of(c);
    char number[32];
    int is_old = strcmp(x->protocol, "HTTP/1.0") == 0;
    if (h->draining)
        h->keep_alive = 0;
    h->no_body = h->is_head || x->status == 204;
    h->is_chunked = x->content_length < 0 && !is_old;
    if (x->content_length < 0 && is_old)
        h->keep_alive = 0; /* only the end tells where it ends */
    snprintf(number, sizeof number, "HTTP/1.1 %d ", x->status);
    put(h, number);
    put(h, codec_reason(x->status));
    put(h, "\r\n");
    put_header(h, "date", codec_date());
    for (size_t i = 0; i < x->n_answer; i++)
        put_header(h, x->answer[i].name, x->answer[i].value);
    snprintf(number, sizeof number, "%" PRId64, x->content_length);
    if (x->content_length >= 0 && x->status != 204)
        put_header(h, "content-length", number);
    else if (h->is_chunked)
        put_header(h, "transfer-encoding", "chunked");
    if (!h->keep_alive)
        put_header(h, "connection", "close");
    else if (is_old)
        put_header(h, "connection", "keep-alive");
    put(h, "\r\n");
    codec_output(c);
}

static void tunnel(codec *c, exchange *x, codec *inner)
{
    http1 *h = http1_of(c);
    inner->on_output = c->on_output;
    inner->connection = c->connection;
    h->inner = inner;
    h->state = TUNNEL;
    if (h->draining)
        inner->table->drain(inner);
    put(h, "HTTP/1.1 101 Switching Protocols\r\n");
    put_header(h, "date", codec_date());
    put_header(h, "connection", "Upgrade");
    put_header(h, "upgrade", x->upgrade);
    for (size_t i = 0; i < x->n_answer; i++)
        put_header(h, x->answer[i].name, x->answer[i].value);
    put(h, "\r\n");
    codec_output(c);
    if (!h->feeding && h->in.size)
        go_on(h);
}

static void write_body(codec *c, exchange *x, const void *data, size_t size)
{
    (void)x;
    http1 *h = http1_of(c);
    char length[32];
    if (h->no_body)
        return;
    snprintf(length, sizeof length, "%zx\r\n", size);
    if (h->is_chunked)
        put(h, length);
    put_bytes(h, data, size);
    if (h->is_chunked)
        put(h, "\r\n");
    codec_output(c);
}

static void end(codec *c, exchange *x)
{
    http1 *h = http1_of(c);
    if (h->is_chunked && !h->no_body)
        put(h, "0\r\n\r\n");
    h->x = NULL;
    h->state = h->keep_alive && !h->is_cut ? HEAD : CLOSING;
    if (h->is_cut)
        exchange_gone(x);
    else
        exchange_finished(x);
    codec_output(c);
    if (!h->feeding && h->in.size)
        go_on(h);
}

static void abort_exchange(codec *c, exchange *x)
{
    http1 *h = http1_of(c);
    h->x = NULL;
    h->keep_alive = 0;
    h->state = CLOSING;
    exchange_gone(x);
    codec_output(c);
}

static size_t pending(const codec *c, const exchange *x)
{
    const http1 *h = (const http1 *)c;
    return x == h->x ? h->out.size : 0;
}

static void pull(codec *c, buffer *out, size_t limit)
{
    http1 *h = http1_of(c);
    if (!h->out.size) {
        if (h->inner)
            h->inner->table->pull(h->inner, out, limit);
        return; /* else what is here was let in by whoever wrote it, and goes whole */
    }
    if (!out->size) {
        buffer swap = *out;
        *out = h->out;
        h->out = swap;
    } else if (buffer_add(out, h->out.data, h->out.size) == REALM_OK) {
        buffer_clear(&h->out);
    }
    if (h->x && h->x->on_drained && h->x->state == EXCHANGE_SENDING)
        h->x->on_drained(h->x);
    if (h->state == HEAD && h->in.size && !h->feeding)
        go_on(h);
}

static codec_wait wait_for(const codec *c)
{
    const http1 *h = (const http1 *)c;
    if (h->is_cut)
        return CODEC_CLOSE;
    switch (h->state) {
    case HEAD:
        if (h->in.size && h->out.size)
            return CODEC_BUSY;
        return h->in.size ? CODEC_HEAD : h->draining ? CODEC_CLOSE : CODEC_IDLE;
    case BODY: return CODEC_BODY;
    case ANSWER: return CODEC_BUSY;
    case TUNNEL: return h->inner->table->wait(h->inner);
    default: return CODEC_CLOSE;
    }
}

static void drain(codec *c)
{
    http1 *h = http1_of(c);
    h->draining = 1;
    if (h->inner)
        h->inner->table->drain(h->inner);
    codec_output(c);
}

static void tick(codec *c, uint64_t now_ns)
{
    http1 *h = http1_of(c);
    if (h->inner && h->inner->table->tick)
        h->inner->table->tick(h->inner, now_ns);
}

static void close_codec(codec *c)
{
    http1 *h = http1_of(c);
    exchange *x = h->x;
    int whole = h->inner && h->inner->table->wait(h->inner) == CODEC_CLOSE;
    h->x = NULL;
    if (h->inner)
        h->inner->table->close(h->inner);
    if (x && whole)
        exchange_finished(x);
    else if (x)
        exchange_gone(x);
    buffer_release(&h->in);
    buffer_release(&h->out);
    free(h);
}

static codec *open_codec(const codec_options *options)
{
    http1 *h = calloc(1, sizeof *h);
    if (!h)
        return NULL;
    codec_init(&h->common, &codec_http1, options);
    if (h->common.limits.headers >= EXCHANGE_MAX_HEADERS)
        h->common.limits.headers = EXCHANGE_MAX_HEADERS - 1;
    buffer_init(&h->in, (size_t)1 << 20);
    buffer_init(&h->out, SIZE_MAX);
    return &h->common;
}

const codec_table codec_http1 = {
    .name = "http/1.1",
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
