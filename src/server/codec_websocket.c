/* server/codec_websocket.c: see codec_websocket.h.
 *
 * A message is read in two steps, so that a body of megabytes is parsed once, by the handler: its extent is found by
 * counting brackets, and what is around it is parsed as JSON with null in its place.
 *
 *         message            exchange_complete          begin             end: done or error
 *     ------------> call: ASKED ---------------> ANSWERED (events or whole) -----------------> freed
 *                             '-------------- cancel: exchange_gone, cancelled --------------'
 *
 * Invariants: C1 a call has an exchange until it is freed. C2 ids of calls differ. C3 once the socket is over there are
 * no calls. Net thread. */
#include "server/codec_websocket.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "formats/json.h"

#define ID_BYTES       64
#define ENVELOPE_BYTES ((size_t)8 << 10)  /* a message but for its body */
#define UNKNOWN_BYTES  ((size_t)16 << 10) /* of a message before the credential is known */
/* A client that has so much to read and goes on asking is ended. */
#define MOST_PENDING ((size_t)8 << 20)

typedef struct call {
    struct call *previous, *next;
    exchange *x;
    char *id;      /* as JSON; NULL for one that asks whether a credential is good */
    char *secret;  /* the Authorization that this one tries */
    int is_events; /* the answer is an event stream */
    int failed;    /* `error` has been sent */
    buffer answer; /* a whole answer, or the event that is not whole yet */
} call;

typedef struct socket_codec {
    codec common;
    websocket *w;
    char *authority, *authorization, *traceparent;
    int is_known, draining;
    uint64_t opened_ns; /* as of the first tick */
    call *calls;
    int n_calls;
    buffer line; /* scratch: a message to be sent */
    int is_cut;  /* something did not fit into line */
} socket_codec;

static socket_codec *socket_of(codec *c)
{
    return (socket_codec *)c;
}

/* ---- messages to the client ---- */

static void out_of_memory(socket_codec *s)
{
    websocket_shut(s->w, WEBSOCKET_INTERNAL, "the host is out of memory");
}

static void put_bytes(socket_codec *s, const void *data, size_t size)
{
    s->is_cut |= buffer_add(&s->line, data, size) != REALM_OK;
}

static void put(socket_codec *s, const char *text)
{
    put_bytes(s, text, strlen(text));
}

static void put_status(socket_codec *s, int status)
{
    s->is_cut |= buffer_printf(&s->line, ",\"status\":%d", status) != REALM_OK;
}

static void send_line(socket_codec *s)
{
    if (s->is_cut)
        out_of_memory(s);
    else
        websocket_send(s->w, 1, s->line.data, s->line.size);
    if (s->line.capacity > EXCHANGE_LOW)
        buffer_release(&s->line);
    codec_output(&s->common);
}

static void open_line(socket_codec *s, const char *type, const char *id)
{
    buffer_clear(&s->line);
    s->is_cut = 0;
    put(s, "{\"type\":\"");
    put(s, type);
    put(s, "\"");
    if (id) {
        put(s, ",\"id\":");
        put(s, id);
    }
}

static void add_field(socket_codec *s, const char *name, const void *json, size_t size)
{
    put(s, ",\"");
    put(s, name);
    put(s, "\":");
    put_bytes(s, json, size);
}

/* What a client of HTTP reads from the head: these values are ours and need no escapes. */
static void add_headers(socket_codec *s, const exchange *x)
{
    const char *comma = "";
    put(s, ",\"headers\":{");
    for (size_t i = 0; i < x->n_answer; i++) {
        const exchange_header *h = &x->answer[i];
        if (strncmp(h->name, "x-ratelimit-", 12) != 0 && strcmp(h->name, "retry-after") != 0 &&
            strcmp(h->name, "x-should-retry") != 0 && strcmp(h->name, "x-request-id") != 0)
            continue;
        put(s, comma);
        put(s, "\"");
        put(s, h->name);
        put(s, "\":\"");
        put(s, h->value);
        put(s, "\"");
        comma = ",";
    }
    put(s, "}");
}

static void close_line(socket_codec *s)
{
    put(s, "}");
    send_line(s);
}

/* What is wrong with a message itself; id NULL: it has none that can be told. */
static void send_problem(socket_codec *s, const char *id, int status, const char *param,
                         const char *code, const char *message)
{
    json_t *error = json_pack("{s:s, s:s, s:s?, s:s}", "message", message, "type",
                              "invalid_request_error", "param", param, "code", code);
    char *text = json_text(error, 0);
    open_line(s, "error", id ? id : "null");
    put_status(s, status);
    add_field(s, "error", text ? text : "null", text ? strlen(text) : 4);
    close_line(s);
    free(text);
    json_decref(error);
}

static void send_ready(socket_codec *s)
{
    open_line(s, "ready", NULL);
    char text[160];
    snprintf(text, sizeof text,
             ",\"protocol\":\"" CODEC_WEBSOCKET_PROTOCOL
             "\",\"limits\":{\"requests\":%d,\"message_bytes\":%zu}",
             CODEC_WEBSOCKET_REQUESTS, s->common.limits.message_bytes);
    put(s, text);
    close_line(s);
}

/* ---- calls ---- */

static void free_call(socket_codec *s, call *c)
{
    if (c->previous)
        c->previous->next = c->next;
    else
        s->calls = c->next;
    if (c->next)
        c->next->previous = c->previous;
    s->n_calls--;
    buffer_release(&c->answer);
    free(c->id);
    free(c->secret);
    free(c);
}

static void drop_call(socket_codec *s, call *c)
{
    exchange *x = c->x;
    free_call(s, c);
    exchange_gone(x);
}

static void after_call(socket_codec *s)
{
    if (s->n_calls)
        return;
    if (s->draining)
        websocket_shut(s->w, WEBSOCKET_GOING_AWAY, "the server is shutting down");
    codec_output(&s->common);
}

static call *find_call(const socket_codec *s, const char *id)
{
    for (call *c = s->calls; c; c = c->next)
        if (c->id && strcmp(c->id, id) == 0)
            return c;
    return NULL;
}

static call *open_call(socket_codec *s, char *id, char *secret)
{
    call *c = calloc(1, sizeof *c);
    if (c)
        c->x = exchange_open(&s->common, s->common.sink, "websocket");
    if (!c || !c->x) {
        free(c);
        free(id);
        free(secret);
        return NULL;
    }
    c->id = id;
    c->secret = secret;
    buffer_init(&c->answer, SIZE_MAX); /* the tenant's output_bytes bounds it */
    c->x->stream = c;
    c->x->authority = arena_copy(&c->x->memory, s->authority, strlen(s->authority));
    if (!c->x->authority)
        c->x->authority = "";
    c->x->keeps_open = 1;
    c->x->streams = 1;
    c->next = s->calls;
    if (c->next)
        c->next->previous = c;
    s->calls = c;
    s->n_calls++;
    return c;
}

static int set_header(exchange *x, exchange_header *headers, const char *name, const char *value)
{
    const char *copy = value ? arena_copy(&x->memory, value, strlen(value)) : NULL;
    if (copy)
        headers[x->n_headers++] = (exchange_header){name, copy};
    return copy || !value;
}

/* Values may be NULL. */
static int set_headers(exchange *x, const char *authorization, const char *traceparent,
                       const char *type)
{
    exchange_header *headers = arena_take_array(&x->memory, 3, sizeof *headers);
    x->headers = headers;
    return headers && set_header(x, headers, "authorization", authorization) &&
           set_header(x, headers, "traceparent", traceparent) &&
           set_header(x, headers, "content-type", type);
}

/* Hands a request to the router. It may be answered, and the call be gone, when this returns. */
static void ask(call *c, const char *method, const char *path, const char *body, size_t size)
{
    exchange *x = c->x;
    x->method = method;
    x->path = path;
    exchange_head(x);
    if (!x->discard && exchange_take_body(x, body, size))
        exchange_refuse(x, 413, "request_too_large", "the body is larger than this endpoint takes");
    else
        exchange_complete(x);
}

/* ---- messages from the client ---- */

typedef struct request_type {
    const char *name, *path;
} request_type;

static const request_type types[] = {
    {"chat", "/v1/chat/completions"},
    {"completion", "/v1/completions"},
    {"embeddings", "/v1/embeddings"},
    {"program", "/v1/programs/"},
};

typedef struct message {
    json_t *envelope; /* with null for the body */
    const char *type;
    char *id;         /* as JSON; taken by the call */
    const char *body; /* NULL: it has none */
    size_t body_size;
} message;

static size_t skip_blanks(const char *text, size_t size, size_t at)
{
    while (at < size &&
           (text[at] == ' ' || text[at] == '\t' || text[at] == '\n' || text[at] == '\r'))
        at++;
    return at;
}

/* Behind the string that begins at text[at]; size if it does not end. */
static size_t skip_string(const char *text, size_t size, size_t at)
{
    for (at++; at < size; at++) {
        if (text[at] == '\\')
            at++;
        else if (text[at] == '"')
            return at + 1;
    }
    return size;
}

/* Behind a value of any kind. Brackets are only counted: whether they fit is for whoever parses the value. */
static size_t skip_value(const char *text, size_t size, size_t at)
{
    size_t depth = 0;
    while (at < size) {
        char c = text[at];
        if (c == '"') {
            at = skip_string(text, size, at);
            if (!depth)
                return at;
            continue;
        }
        if (c == '{' || c == '[')
            depth++;
        else if ((c == '}' || c == ']') && depth && !--depth)
            return at + 1;
        else if (!depth && (c == ',' || c == '}' || c == ']'))
            return at;
        at++;
    }
    return size;
}

/* The extent of the first member "body" of the object; *to 0: there is none, or this is no object. */
static void find_body(const char *text, size_t size, size_t *from, size_t *to)
{
    size_t at = skip_blanks(text, size, 0);
    *from = *to = 0;
    if (at == size || text[at] != '{')
        return;
    while (at < size && text[at] != '}') { /* at { or , */
        size_t key = skip_blanks(text, size, at + 1);
        if (key >= size || text[key] != '"')
            return;
        size_t colon = skip_blanks(text, size, skip_string(text, size, key));
        if (colon >= size || text[colon] != ':')
            return;
        size_t value = skip_blanks(text, size, colon + 1);
        size_t end = skip_value(text, size, value);
        if (end - value && size - key >= 6 && memcmp(text + key, "\"body\"", 6) == 0) {
            *from = value;
            *to = end;
            return;
        }
        at = skip_blanks(text, size, end);
        if (at < size && text[at] != ',' && text[at] != '}')
            return;
    }
}

static int read_envelope(socket_codec *s, const char *text, size_t size, message *m)
{
    size_t from, to;
    realm_error error;
    buffer envelope;
    find_body(text, size, &from, &to);
    buffer_init(&envelope, ENVELOPE_BYTES + 8);
    realm_status status = REALM_OK;
    if (to) {
        m->body = text + from;
        m->body_size = to - from;
        status = buffer_add(&envelope, text, from);
        if (!status)
            status = buffer_add_text(&envelope, "null");
    }
    if (!status)
        status = buffer_add(&envelope, text + to, size - to);
    if (status)
        realm_fail(&error, status, "it is larger than %zu bytes without its body", ENVELOPE_BYTES);
    else
        status = json_parse(&m->envelope, buffer_text(&envelope), envelope.size, envelope.size,
                            JSON_USUAL_DEPTH, &error);
    buffer_release(&envelope);
    if (!status && !json_is_object(m->envelope))
        status = realm_fail(&error, REALM_INVALID, "it is %s, not an object",
                            json_kind(m->envelope));
    if (!status)
        return 1;
    char sentence[REALM_ERROR_MESSAGE_SIZE + 64];
    snprintf(sentence, sizeof sentence, "the message is no JSON object that can be read: %s",
             error.message);
    send_problem(s, NULL, 400, NULL, "invalid_json", sentence);
    return 0;
}

/* How much of a text of the client's is quoted to it. */
static int quoted_size(const char *text)
{
    size_t size = strlen(text);
    return (int)utf8_complete_prefix((const uint8_t *)text, size < 60 ? size : 60);
}

/* A text without \u0000 that is not empty, or NULL. */
static const char *text_field(const message *m, const char *name)
{
    const json_t *value = json_object_get(m->envelope, name);
    const char *text = json_string_value(value);
    return text && *text && strlen(text) == json_string_length(value) ? text : NULL;
}

/* Reads `type` and `id`. */
static int read_names(socket_codec *s, message *m)
{
    static const char *const known[] = {"type", "id", "body", "name", "key", "traceparent"};
    const json_t *id = json_object_get(m->envelope, "id"), *value;
    const char *name;
    if (json_is_string(id) && json_string_length(id) >= 1 && json_string_length(id) <= ID_BYTES)
        m->id = json_text(id, 0);
    else if (id) {
        send_problem(s, NULL, 400, "id", "invalid_value", "'id' must be a string of 1 to 64 bytes");
        return 0;
    }
    json_object_foreach(m->envelope, name, value)
    {
        int found = 0;
        for (size_t i = 0; i < sizeof known / sizeof *known; i++)
            found |= strcmp(name, known[i]) == 0;
        if (found)
            continue;
        char sentence[160];
        snprintf(sentence, sizeof sentence, "'%.*s' is no field of a message", quoted_size(name),
                 name);
        send_problem(s, m->id, 400, NULL, "unknown_parameter", sentence);
        return 0;
    }
    m->type = text_field(m, "type");
    if (!m->type)
        send_problem(s, m->id, 400, "type", "missing_required_parameter",
                     "a message needs its 'type' as a string");
    return m->type != NULL;
}

/* Whether a key is good is asked like anything else: by a request that needs one. */
static void take_auth(socket_codec *s, message *m)
{
    const char *key = text_field(m, "key");
    if (!key || strpbrk(key, "\r\n")) {
        send_problem(s, m->id, 400, "key", "missing_required_parameter",
                     "'auth' needs a 'key' as a string");
        return;
    }
    char *secret = malloc(strlen(key) + 8);
    call *c = NULL;
    if (secret) {
        snprintf(secret, strlen(key) + 8, "Bearer %s", key);
        c = open_call(s, NULL, secret);
    }
    if (c && set_headers(c->x, secret, NULL, NULL)) {
        ask(c, "GET", "/v1/models", "", 0);
    } else {
        if (c)
            drop_call(s, c);
        out_of_memory(s);
    }
}

static void take_cancel(socket_codec *s, message *m)
{
    call *c = m->id ? find_call(s, m->id) : NULL;
    if (!c) /* its end is on the way already, or it never was */
        return;
    drop_call(s, c);
    open_line(s, "cancelled", m->id);
    close_line(s);
    after_call(s);
}

/* The name of a program as a part of a path; NULL: memory is out. */
static char *program_path(exchange *x, const char *prefix, const char *name)
{
    static const char digits[] = "0123456789ABCDEF";
    size_t size = strlen(prefix);
    char *path = arena_take(&x->memory, size + 3 * strlen(name) + 1);
    if (!path)
        return NULL;
    memcpy(path, prefix, size);
    for (; *name; name++) {
        unsigned char c = (unsigned char)*name;
        int plain = (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') ||
                    c == '-' || c == '_' || c == '.';
        if (plain) {
            path[size++] = (char)c;
        } else {
            path[size++] = '%';
            path[size++] = digits[c >> 4];
            path[size++] = digits[c & 15];
        }
    }
    return path;
}

static int check_request(socket_codec *s, const message *m, const request_type *t)
{
    int is_program = t->path[strlen(t->path) - 1] == '/';
    const char *name = text_field(m, "name");
    if (!m->id)
        send_problem(s, NULL, 400, "id", "missing_required_parameter", "a request needs an 'id'");
    else if (find_call(s, m->id))
        send_problem(s, m->id, 400, "id", "invalid_value",
                     "a request of this 'id' is running on this socket");
    else if (!m->body)
        send_problem(s, m->id, 400, "body", "missing_required_parameter",
                     "a request needs a 'body'");
    else if (is_program && !name)
        send_problem(s, m->id, 400, "name", "missing_required_parameter",
                     "'program' needs the program's 'name'");
    else if (!is_program && json_object_get(m->envelope, "name"))
        send_problem(s, m->id, 400, "name", "unknown_parameter", "'name' is for 'program' alone");
    else if (s->n_calls >= CODEC_WEBSOCKET_REQUESTS)
        send_problem(s, m->id, 429, NULL, "limit_exceeded",
                     "too many requests run on this socket: wait for one to end");
    else
        return 1;
    return 0;
}

static void take_request(socket_codec *s, message *m, const request_type *t)
{
    if (!check_request(s, m, t))
        return;
    const char *name = text_field(m, "name"), *parent = text_field(m, "traceparent");
    call *c = open_call(s, m->id, NULL);
    m->id = NULL;
    const char *path = c && name ? program_path(c->x, t->path, name) : t->path;
    if (c && path &&
        set_headers(c->x, s->authorization, parent ? parent : s->traceparent, "application/json")) {
        ask(c, "POST", path, m->body, m->body_size);
        return;
    }
    if (c)
        drop_call(s, c);
    out_of_memory(s);
}

static void take_message(socket_codec *s, message *m)
{
    const request_type *type = NULL;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (strcmp(m->type, types[i].name) == 0)
            type = &types[i];
    if (strcmp(m->type, "auth") == 0) {
        take_auth(s, m);
    } else if (!s->is_known) {
        send_problem(s, m->id, 401, NULL, "invalid_api_key",
                     "the first message must be of type 'auth' with a 'key'");
        websocket_shut(s->w, WEBSOCKET_POLICY, "no credential");
    } else if (strcmp(m->type, "cancel") == 0) {
        take_cancel(s, m);
    } else if (type) {
        take_request(s, m, type);
    } else {
        char sentence[160];
        snprintf(sentence, sizeof sentence,
                 "'%.*s' is no type of message: chat, completion, embeddings, program, cancel and "
                 "auth are",
                 quoted_size(m->type), m->type);
        send_problem(s, m->id, 400, "type", "invalid_value", sentence);
    }
}

static void on_message(void *context, int is_text, const char *text, size_t size)
{
    socket_codec *s = context;
    message m = {0};
    if (!is_text)
        websocket_shut(s->w, WEBSOCKET_UNSUPPORTED, "messages are texts here");
    else if (websocket_out(s->w)->size > MOST_PENDING)
        websocket_shut(s->w, WEBSOCKET_POLICY, "too much is waiting to be read");
    else if (read_envelope(s, text, size, &m) && read_names(s, &m))
        take_message(s, &m);
    free(m.id);
    json_decref(m.envelope);
}

/* ---- answers ---- */

static void send_error(socket_codec *s, call *c, const char *json, size_t size)
{
    static const char head[] = "{\"error\":";
    open_line(s, "error", c->id ? c->id : "null");
    if (c->x->status >= 400) /* else the answer had begun */
        put_status(s, c->x->status);
    if (size > sizeof head && memcmp(json, head, sizeof head - 1) == 0) {
        json += sizeof head - 1;
        size -= sizeof head;
    }
    add_field(s, "error", size ? json : "null", size ? size : 4);
    add_headers(s, c->x);
    close_line(s);
    c->failed = 1;
}

static void send_done(socket_codec *s, call *c, const char *data, size_t size)
{
    open_line(s, "done", c->id);
    if (size)
        add_field(s, "data", data, size);
    add_headers(s, c->x);
    close_line(s);
    c->failed = 1; /* nothing comes after it */
}

static void send_delta(socket_codec *s, const call *c, const char *data, size_t size)
{
    open_line(s, "delta", c->id);
    add_field(s, "data", data, size);
    close_line(s);
}

/* One event of our own streams: "event: NAME\ndata: JSON" or "data: JSON"; the JSON is of one line. */
static void take_event(socket_codec *s, call *c, const char *event, size_t size)
{
    const char *name = "";
    const char *line_end = memchr(event, '\n', size);
    if (size > 7 && memcmp(event, "event: ", 7) == 0 && line_end) {
        name = event + 7;
        size -= (size_t)(line_end + 1 - event);
        event = line_end + 1;
    }
    if (c->failed || size < 6 || memcmp(event, "data: ", 6) != 0)
        return;
    const char *data = event + 6;
    size -= 6;
    if (strncmp(name, "error\n", 6) == 0 || (size > 9 && memcmp(data, "{\"error\":", 9) == 0))
        send_error(s, c, data, size);
    else if (strncmp(name, "result\n", 7) == 0)
        send_done(s, c, data, size);
    else if (size != 6 || memcmp(data, "[DONE]", 6) != 0)
        send_delta(s, c, data, size);
}

static void begin(codec *k, exchange *x)
{
    (void)k;
    call *c = x->stream;
    for (size_t i = 0; i < x->n_answer; i++)
        if (strcmp(x->answer[i].name, "content-type") == 0)
            c->is_events = strncmp(x->answer[i].value, "text/event-stream", 17) == 0;
}

static void write_body(codec *k, exchange *x, const void *data, size_t size)
{
    socket_codec *s = socket_of(k);
    call *c = x->stream;
    if (buffer_add(&c->answer, data, size)) {
        out_of_memory(s);
        codec_output(k);
        return;
    }
    if (!c->is_events)
        return;
    size_t at = 0;
    for (;;) {
        const char *from = c->answer.data + at;
        const char *end = memmem(from, c->answer.size - at, "\n\n", 2);
        if (!end)
            break;
        take_event(s, c, from, (size_t)(end - from));
        at = (size_t)(end + 2 - c->answer.data);
    }
    buffer_drop_front(&c->answer, at);
}

/* The answer to whether a key is good. */
static void end_auth(socket_codec *s, call *c)
{
    if (c->x->status >= 300) {
        send_error(s, c, c->answer.data, c->answer.size);
        if (!s->is_known)
            websocket_shut(s->w, WEBSOCKET_POLICY, "the credential is not good");
        return;
    }
    free(s->authorization);
    s->authorization = c->secret;
    c->secret = NULL;
    s->is_known = 1;
    websocket_set_limit(s->w, s->common.limits.message_bytes);
    send_ready(s);
}

static void end(codec *k, exchange *x)
{
    socket_codec *s = socket_of(k);
    call *c = x->stream;
    if (!c->id)
        end_auth(s, c);
    else if (!c->is_events && x->status >= 300)
        send_error(s, c, c->answer.data, c->answer.size);
    else if (!c->failed)
        send_done(s, c, c->answer.data, c->is_events ? 0 : c->answer.size);
    free_call(s, c);
    exchange_finished(x);
    after_call(s);
}

static void abort_exchange(codec *k, exchange *x)
{
    socket_codec *s = socket_of(k);
    call *c = x->stream;
    send_problem(s, c->id, 500, NULL, "internal_error", "the answer was broken off");
    drop_call(s, c);
    after_call(s);
}

static size_t pending(const codec *k, const exchange *x)
{
    (void)x;
    return websocket_out(((const socket_codec *)k)->w)->size;
}

/* ---- bytes ---- */

static void end_calls(socket_codec *s)
{
    while (s->calls)
        drop_call(s, s->calls);
}

static void feed(codec *k, const void *data, size_t size)
{
    socket_codec *s = socket_of(k);
    websocket_feed(s->w, data, size);
    if (websocket_is_over(s->w))
        end_calls(s);
    codec_output(k);
}

static int wants_input(const codec *k)
{
    const socket_codec *s = (const socket_codec *)k;
    return websocket_is_over(s->w) || websocket_out(s->w)->size <= EXCHANGE_HIGH;
}

static void tell_drained(socket_codec *s)
{
    for (call *c = s->calls, *next; c; c = next) {
        next = c->next;
        if (c->x->state == EXCHANGE_SENDING && c->x->on_drained)
            c->x->on_drained(c->x);
    }
}

static void pull(codec *k, buffer *out, size_t limit)
{
    socket_codec *s = socket_of(k);
    buffer *own = websocket_out(s->w);
    (void)limit; /* what is here was let in by whoever wrote it */
    if (websocket_is_over(s->w))
        end_calls(s); /* it may have come to that outside of feed */
    if (own->size && !out->size) {
        buffer swap = *out;
        *out = *own;
        *own = swap;
    } else if (own->size && buffer_add(out, own->data, own->size) == REALM_OK) {
        buffer_clear(own);
    }
    tell_drained(s);
    if (!s->n_calls)
        websocket_rest(s->w);
}

static codec_wait wait_for(const codec *k)
{
    const socket_codec *s = (const socket_codec *)k;
    return websocket_is_over(s->w) ? CODEC_CLOSE : CODEC_BUSY; /* tick has the limits of time */
}

static void drain(codec *k)
{
    socket_codec *s = socket_of(k);
    s->draining = 1;
    after_call(s);
}

static void tick(codec *k, uint64_t now_ns)
{
    socket_codec *s = socket_of(k);
    websocket_tick(s->w, now_ns);
    if (!s->opened_ns)
        s->opened_ns = now_ns;
    if (!s->is_known && now_ns - s->opened_ns > (uint64_t)k->limits.body_ms * 1000000u)
        websocket_shut(s->w, WEBSOCKET_POLICY, "no credential came in time");
    if (websocket_is_over(s->w))
        end_calls(s);
    codec_output(k);
}

static void close_codec(codec *k)
{
    socket_codec *s = socket_of(k);
    end_calls(s);
    websocket_close(s->w);
    buffer_release(&s->line);
    free(s->authority);
    free(s->authorization);
    free(s->traceparent);
    free(s);
}

codec *codec_websocket_open(const codec_websocket_options *options)
{
    socket_codec *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    codec_init(&s->common, &codec_websocket, &options->common);
    const codec_limits *limits = &s->common.limits;
    const websocket_options socket = {
        .deflate = options->deflate,
        .message_bytes = options->is_known ? limits->message_bytes : UNKNOWN_BYTES,
        .message_ms = limits->body_ms,
        .ping_ms = limits->ping_ms,
        .on_message = on_message,
        .context = s,
    };
    s->w = websocket_open(&socket);
    s->authority = strdup(options->authority ? options->authority : "");
    s->authorization = options->authorization ? strdup(options->authorization) : NULL;
    s->traceparent = options->traceparent ? strdup(options->traceparent) : NULL;
    s->is_known = options->is_known;
    buffer_init(&s->line, SIZE_MAX);
    if (!s->w || !s->authority || (options->authorization && !s->authorization) ||
        (options->traceparent && !s->traceparent)) {
        close_codec(&s->common);
        return NULL;
    }
    if (s->is_known)
        send_ready(s);
    return &s->common;
}

const codec_table codec_websocket = {
    .name = "websocket",
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
};
