/* tests/unit/server/codec_websocket_test.c: realm.v1 from the upgrade on, over HTTP/1's codec, against a sink that
 * answers as handlers do: whole, as an event stream, with an error, late or never. Fed whole and by the byte. */
#include "unit/unit.h"

#include "server/codec_websocket.h"
#include "unit/server/echo.h"

typedef struct run {
    exchange_sink sink;
    codec *c;
    buffer in, log;
    exchange *held[64]; /* what waits, by the order of asking */
    int n_held, cancels, overs, is_known;
} run;

#define UPGRADE                                                                                    \
    "GET /v1/ws HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n"
#define READY                                                                                      \
    "{\"type\":\"ready\",\"protocol\":\"realm.v1\",\"limits\":{\"requests\":32,\"message_bytes\":" \
    "100000}}\n"

/* ---- the handlers ---- */

static void on_head(void *context, exchange *x)
{
    (void)context;
    x->body_limit = 1000;
    x->discard = strcmp(x->path, "/v1/embeddings") == 0;
}

static void on_cancel(exchange *x)
{
    ((run *)x->context)->cancels++;
}

static void open_tunnel(run *r, exchange *x)
{
    const codec_websocket_options options = {
        .common = {.sink = &r->sink, .limits = {.message_bytes = 100000}},
        .authority = x->authority,
        .is_known = r->is_known};
    assert_non_null(x->upgrade);
    exchange_tunnel(x, codec_websocket_open(&options));
}

static void stream(exchange *x, const char *type)
{
    exchange_set(x, "content-type", type);
    exchange_set(x, "x-ratelimit-limit-requests", "500");
    exchange_begin(x, 200, -1);
}

static void on_complete(void *context, exchange *x)
{
    run *r = context;
    exchange_assert(x);
    x->context = r;
    const char *body = buffer_text(&x->body), *key = exchange_header_get(x, "authorization");
    if (strcmp(x->path, "/v1/ws") == 0) {
        open_tunnel(r, x);
    } else if (strcmp(x->path, "/v1/models") == 0) {
        int good = key && strcmp(key, "Bearer good") == 0;
        exchange_reply(x, good ? 200 : 401, "application/json",
                       "{\"error\":{\"code\":\"invalid_api_key\"}}", good ? 2 : 36);
    } else if (strcmp(body, "\"hold\"") == 0) {
        x->on_cancel = on_cancel;
        r->held[r->n_held++] = x;
    } else if (strcmp(body, "\"stream\"") == 0) {
        assert_true(x->streams);
        stream(x, "text/event-stream; charset=utf-8");
        exchange_write(x, "data: {\"n\":1}\n\ndata: {\"n\":", 26);
        exchange_write(x, "2}\n\n", 4);
        exchange_write(x, "data: [DONE]\n\n", 14);
        exchange_end(x);
    } else if (strcmp(body, "\"fail\"") == 0) {
        stream(x, "text/event-stream");
        exchange_write(x, "data: {\"n\":1}\n\n", 15);
        exchange_write(x, "data: {\"error\":{\"code\":\"x\"}}\n\n", 30);
        exchange_end(x);
    } else if (strcmp(body, "\"break\"") == 0) {
        stream(x, "text/event-stream");
        exchange_abort(x);
    } else if (x->discard) {
        exchange_reply(x, 401, "application/json", "{\"error\":{\"code\":\"no\"}}", 23);
    } else if (strncmp(x->path, "/v1/programs/", 13) == 0) {
        stream(x, "text/event-stream");
        exchange_write(x, "event: text\ndata: \"hi\"\n\nevent: result\ndata: [1]\n\n", 50);
        exchange_end(x);
    } else {
        buffer answer;
        buffer_init(&answer, SIZE_MAX);
        buffer_printf(&answer, "{\"method\":\"%s\",\"path\":\"%s\",\"key\":\"%s\",\"body\":%s}",
                      x->method, x->path, key ? key : "", body);
        exchange_reply(x, 200, "application/json", answer.data, answer.size);
        buffer_release(&answer);
    }
}

static void on_over(void *context, exchange *x)
{
    (void)x;
    ((run *)context)->overs++;
}

/* ---- the client ---- */

static void begin(run *r, int is_known)
{
    *r = (run){.is_known = is_known};
    r->sink = (exchange_sink){r, on_head, on_complete, on_over};
    const codec_options options = {.sink = &r->sink};
    r->c = codec_http1.open(&options);
    buffer_init(&r->in, SIZE_MAX);
    buffer_init(&r->log, SIZE_MAX);
}

static void end(run *r)
{
    r->c->table->close(r->c);
    buffer_release(&r->in);
    buffer_release(&r->log);
}

/* A text frame under a mask of zeros. */
static void say(run *r, const char *text)
{
    size_t size = strlen(text);
    uint8_t head[14] = {0x81, (uint8_t)(0x80 | (size < 126 ? size : size < 65536 ? 126 : 127))};
    size_t n = 2;
    for (int i = size < 126 ? -1 : size < 65536 ? 1 : 7; i >= 0; i--)
        head[n++] = (uint8_t)((uint64_t)size >> (8 * i));
    buffer_add(&r->in, head, n + 4);
    buffer_add(&r->in, text, size);
}

static void feed(run *r, size_t step)
{
    for (size_t at = 0; at < r->in.size; at += step)
        r->c->table->feed(r->c, r->in.data + at, step < r->in.size - at ? step : r->in.size - at);
    buffer_clear(&r->in);
}

/* Appends the messages that came, a line each; closes as "close:CODE". */
static const char *listen(run *r)
{
    buffer out;
    buffer_init(&out, SIZE_MAX);
    for (size_t before = 1; before != out.size;) {
        before = out.size;
        r->c->table->pull(r->c, &out, 1 << 20);
    }
    const char *head = strstr(buffer_text(&out), "HTTP/1.1 101");
    size_t at = head ? (size_t)(strstr(head, "\r\n\r\n") + 4 - out.data) : 0;
    while (at < out.size) {
        const uint8_t *f = (const uint8_t *)out.data + at;
        size_t size = f[1], skip = 2;
        if (size == 126)
            size = (size_t)f[2] << 8 | f[3], skip = 4;
        assert_true(size < 65536);
        if (f[0] == 0x88)
            buffer_printf(&r->log, "close:%d\n", f[2] << 8 | f[3]);
        else
            buffer_printf(&r->log, "%.*s\n", (int)size, f + skip);
        at += skip + size;
    }
    buffer_release(&out);
    return buffer_text(&r->log);
}

/* One message after the upgrade and the answer to it, whole and by the byte. */
static void check(const char *message, const char *wanted)
{
    for (size_t step = 1; step < 1 << 20; step *= 1000000) {
        run r;
        begin(&r, 1);
        buffer_add_text(&r.in, UPGRADE);
        say(&r, message);
        feed(&r, step == 1 ? 1 : SIZE_MAX / 2);
        const char *got = listen(&r);
        if (strncmp(got, READY, strlen(READY)) != 0)
            fail_msg("\"%s\" does not begin with ready", got);
        /* ids are random */
        char *id = strstr(buffer_text(&r.log), "\"x-request-id\":\"req-");
        if (id)
            memcpy(id + 20, "*", 1), memmove(id + 21, id + 44, strlen(id + 44) + 1);
        if (strcmp(got + strlen(READY), wanted) != 0)
            fail_msg("%s: \"%s\", not \"%s\"", message, got + strlen(READY), wanted);
        end(&r);
        assert_int_equal(r.overs, strstr(wanted, "headers") || strstr(wanted, "broken") ? 2 : 1);
    }
}

#define ERROR(id, status, param, code, text)                                                       \
    "{\"type\":\"error\",\"id\":" id ",\"status\":" #status ",\"error\":{\"message\":\"" text      \
    "\",\"type\":\"invalid_request_error\",\"param\":" param ",\"code\":\"" code "\"}}\n"
#define HEADERS ",\"headers\":{\"x-request-id\":\"req-*\"}}\n"
#define RATES   ",\"headers\":{\"x-ratelimit-limit-requests\":\"500\",\"x-request-id\":\"req-*\"}}\n"

static void requests_reach_the_paths_of_http(void **state)
{
    (void)state;
    check("{\"type\":\"chat\",\"id\":\"a\",\"body\":{\"x\":[1,{\"y\":\"}]\\\"\"}]}}",
          "{\"type\":\"done\",\"id\":\"a\",\"data\":{\"method\":\"POST\",\"path\":\"/v1/chat/"
          "completions\",\"key\":\"\",\"body\":{\"x\":[1,{\"y\":\"}]\\\"\"}]}}" HEADERS);
    check(" { \"body\" : 12.50 , \"id\" : \"\\u0061\\\"\" , \"type\" : \"completion\" } ",
          "{\"type\":\"done\",\"id\":\"a\\\"\",\"data\":{\"method\":\"POST\",\"path\":\"/v1/"
          "completions\",\"key\":\"\",\"body\":12.50 }" HEADERS);
}

static void event_streams_become_deltas(void **state)
{
    (void)state;
    check("{\"type\":\"chat\",\"id\":\"s\",\"body\":\"stream\"}",
          "{\"type\":\"delta\",\"id\":\"s\",\"data\":{\"n\":1}}\n"
          "{\"type\":\"delta\",\"id\":\"s\",\"data\":{\"n\":2}}\n"
          "{\"type\":\"done\",\"id\":\"s\"" RATES);
    check("{\"type\":\"program\",\"id\":\"p\",\"name\":\"a/b \xc3\xa9\",\"body\":null}",
          "{\"type\":\"delta\",\"id\":\"p\",\"data\":\"hi\"}\n"
          "{\"type\":\"done\",\"id\":\"p\",\"data\":[1]" RATES);
}

static void errors_end_a_request_and_nothing_else(void **state)
{
    (void)state;
    check("{\"type\":\"embeddings\",\"id\":\"e\",\"body\":{}}",
          "{\"type\":\"error\",\"id\":\"e\",\"status\":401,\"error\":{\"code\":\"no\"}" HEADERS);
    check("{\"type\":\"chat\",\"id\":\"f\",\"body\":\"fail\"}",
          "{\"type\":\"delta\",\"id\":\"f\",\"data\":{\"n\":1}}\n"
          "{\"type\":\"error\",\"id\":\"f\",\"error\":{\"code\":\"x\"}" RATES);
    check("{\"type\":\"chat\",\"id\":\"b\",\"body\":\"break\"}",
          ERROR("\"b\"", 500, "null", "internal_error", "the answer was broken off"));
    char large[2000];
    snprintf(large, sizeof large, "{\"type\":\"chat\",\"id\":\"l\",\"body\":\"%01200d\"}", 0);
    check(large,
          "{\"type\":\"error\",\"id\":\"l\",\"status\":413,\"error\":{\"message\":\"the body is "
          "larger than this endpoint takes\",\"type\":\"invalid_request_error\",\"param\":"
          "null,\"code\":\"request_too_large\"}" HEADERS);
}

static void messages_are_checked_field_by_field(void **state)
{
    (void)state;
    check("[]",
          ERROR("null", 400, "null", "invalid_json",
                "the message is no JSON object that can be read: it is a list, not an object"));
    check("{\"id\":\"a\"}", ERROR("\"a\"", 400, "\"type\"", "missing_required_parameter",
                                  "a message needs its 'type' as a string"));
    check("{\"type\":\"chat\",\"id\":7,\"body\":1}",
          ERROR("null", 400, "\"id\"", "invalid_value", "'id' must be a string of 1 to 64 bytes"));
    check("{\"type\":\"chat\",\"body\":1}",
          ERROR("null", 400, "\"id\"", "missing_required_parameter", "a request needs an 'id'"));
    check(
        "{\"type\":\"chat\",\"id\":\"a\"}",
        ERROR("\"a\"", 400, "\"body\"", "missing_required_parameter", "a request needs a 'body'"));
    check("{\"type\":\"chat\",\"id\":\"a\",\"model\":\"x\",\"body\":1}",
          ERROR("\"a\"", 400, "null", "unknown_parameter", "'model' is no field of a message"));
    check("{\"type\":\"program\",\"id\":\"a\",\"body\":1}",
          ERROR("\"a\"", 400, "\"name\"", "missing_required_parameter",
                "'program' needs the program's 'name'"));
    check("{\"type\":\"sing\",\"id\":\"a\",\"body\":1}",
          ERROR("\"a\"", 400, "\"type\"", "invalid_value",
                "'sing' is no type of message: chat, completion, embeddings, program, cancel and "
                "auth are"));
}

/* What is no JSON never reaches a handler, wherever the body was thought to be. */
static void broken_messages_are_errors(void **state)
{
    (void)state;
    static const char *const broken[] = {
        "",
        "{",
        "{\"",
        "{\"body\"",
        "{\"body\":",
        "{\"body\":1",
        "{\"type\":\"chat\",\"id\":\"a\",\"body\":1}}",
        "{\"type\":\"chat\",\"id\":\"a\",\"body\":1,\"body\":2}",
        "{\"type\":\"chat\",\"id\":\"a\" \"body\":1}",
        "{\"type\":\"chat\",\"id\":\"a\",\"body\":[}",
        "{\"type\":\"chat\",\"id\":\"a\",\"body\":\"\\",
        "{,\"body\":1}",
        "nonsense",
        "{\"type\":\"chat\",\"id\":\"a\",\"id\":\"b\",\"body\":1}",
    };
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        run r;
        begin(&r, 1);
        buffer_add_text(&r.in, UPGRADE);
        say(&r, broken[i]);
        feed(&r, 1);
        assert_holds(listen(&r), "\"code\":\"invalid_json\"");
        assert_int_equal(r.c->table->wait(r.c), CODEC_BUSY);
        end(&r);
    }
}

static void requests_run_beside_each_other_and_can_be_cancelled(void **state)
{
    (void)state;
    run r;
    begin(&r, 1);
    buffer_add_text(&r.in, UPGRADE);
    say(&r, "{\"type\":\"chat\",\"id\":\"a\",\"body\":\"hold\"}");
    say(&r, "{\"type\":\"chat\",\"id\":\"b\",\"body\":\"hold\"}");
    say(&r, "{\"type\":\"chat\",\"id\":\"a\",\"body\":\"hold\"}");
    say(&r, "{\"type\":\"cancel\",\"id\":\"a\"}");
    say(&r, "{\"type\":\"cancel\",\"id\":\"nobody\"}");
    feed(&r, 1);
    assert_int_equal(r.n_held, 2);
    assert_int_equal(r.cancels, 1);
    exchange_reply(r.held[1], 200, "application/json", "{}", 2);
    assert_holds(listen(&r), "a request of this 'id' is running on this socket");
    assert_holds(listen(&r),
                 "{\"type\":\"cancelled\",\"id\":\"a\"}\n{\"type\":\"done\",\"id\":\"b\"");
    end(&r);
    assert_int_equal(r.overs, 3);
}

static void a_socket_that_goes_cancels_what_it_asked(void **state)
{
    (void)state;
    for (int politely = 0; politely < 2; politely++) {
        run r;
        begin(&r, 1);
        buffer_add_text(&r.in, UPGRADE);
        for (int i = 0; i < 40; i++) {
            char message[100];
            snprintf(message, sizeof message, "{\"type\":\"chat\",\"id\":\"%d\",\"body\":\"hold\"}",
                     i);
            say(&r, message);
        }
        if (politely)
            buffer_add(&r.in, "\x88\x82\0\0\0\0\x03\xe8", 8);
        feed(&r, 1000);
        assert_int_equal(r.n_held, CODEC_WEBSOCKET_REQUESTS);
        assert_holds(listen(&r), "\"status\":429");
        assert_int_equal(r.cancels, politely ? CODEC_WEBSOCKET_REQUESTS : 0);
        assert_int_equal(r.c->table->wait(r.c), politely ? CODEC_CLOSE : CODEC_BUSY);
        end(&r);
        assert_int_equal(r.cancels, CODEC_WEBSOCKET_REQUESTS);
        assert_int_equal(r.overs, CODEC_WEBSOCKET_REQUESTS + 1);
    }
}

static void the_first_message_may_bring_the_key(void **state)
{
    (void)state;
    run r;
    begin(&r, 0);
    buffer_add_text(&r.in, UPGRADE);
    say(&r, "{\"type\":\"auth\",\"key\":\"good\"}");
    say(&r, "{\"type\":\"chat\",\"id\":\"a\",\"body\":1}");
    say(&r, "{\"type\":\"auth\",\"key\":\"bad\"}");
    say(&r, "{\"type\":\"chat\",\"id\":\"b\",\"body\":2}");
    feed(&r, 1);
    assert_holds(listen(&r), READY "{\"type\":\"done\",\"id\":\"a\"");
    assert_holds(listen(&r), "\"key\":\"Bearer good\",\"body\":1}");
    assert_holds(listen(&r), "{\"type\":\"error\",\"id\":null,\"status\":401,\"error\":{\"code\":"
                             "\"invalid_api_key\"}");
    assert_holds(listen(&r), "\"key\":\"Bearer good\",\"body\":2}");
    end(&r);
}

static void without_a_key_nothing_is_asked(void **state)
{
    (void)state;
    static const char *const messages[] = {"{\"type\":\"chat\",\"id\":\"a\",\"body\":1}",
                                           "{\"type\":\"auth\",\"key\":\"bad\"}"};
    for (int i = 0; i < 2; i++) {
        run r;
        begin(&r, 0);
        buffer_add_text(&r.in, UPGRADE);
        say(&r, messages[i]);
        say(&r, "{\"type\":\"chat\",\"id\":\"a\",\"body\":\"hold\"}");
        feed(&r, 1);
        assert_holds(listen(&r), "\"status\":401");
        assert_holds(listen(&r), "close:1008");
        assert_int_equal(r.n_held, 0);
        end(&r);
    }
    run r;
    begin(&r, 0);
    buffer_add_text(&r.in, UPGRADE);
    feed(&r, 1);
    for (uint64_t second = 1; second <= 29; second++)
        r.c->table->tick(r.c, second * 1000000000u);
    assert_int_equal(r.c->table->wait(r.c), CODEC_BUSY);
    for (uint64_t second = 30; second <= 32; second++)
        r.c->table->tick(r.c, second * 1000000000u);
    assert_holds(listen(&r), "close:1008");
    assert_int_equal(r.c->table->wait(r.c), CODEC_CLOSE);
    end(&r);
}

static void draining_waits_for_what_runs(void **state)
{
    (void)state;
    run r;
    begin(&r, 1);
    buffer_add_text(&r.in, UPGRADE);
    say(&r, "{\"type\":\"chat\",\"id\":\"a\",\"body\":\"hold\"}");
    feed(&r, 1);
    r.c->table->drain(r.c);
    assert_int_equal(r.c->table->wait(r.c), CODEC_BUSY);
    exchange_reply(r.held[0], 200, "application/json", "{}", 2);
    assert_holds(listen(&r), "{\"type\":\"done\",\"id\":\"a\"");
    assert_holds(listen(&r), "close:1001");
    assert_int_equal(r.c->table->wait(r.c), CODEC_CLOSE);
    end(&r);
}

/* Bytes that are binary, and an upgrade that is none. */
static void other_bytes_are_refused(void **state)
{
    (void)state;
    run r;
    begin(&r, 1);
    buffer_add_text(&r.in, UPGRADE);
    buffer_add(&r.in, "\x82\x81\0\0\0\0x", 7);
    feed(&r, 1);
    assert_holds(listen(&r), "close:1003");
    end(&r);
    static const char *const heads[] = {
        "GET / HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Content-Length: 0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Content-Length: 1\r\n\r\nx",
    };
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        echo e;
        echo_init(&e);
        e.holds = 1;
        codec *c = echo_open(&e, &codec_http1);
        c->table->feed(c, heads[i], strlen(heads[i]));
        assert_non_null(e.held);
        assert_null(e.held->upgrade);
        c->table->close(c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_reach_the_paths_of_http),
        cmocka_unit_test(event_streams_become_deltas),
        cmocka_unit_test(errors_end_a_request_and_nothing_else),
        cmocka_unit_test(messages_are_checked_field_by_field),
        cmocka_unit_test(broken_messages_are_errors),
        cmocka_unit_test(requests_run_beside_each_other_and_can_be_cancelled),
        cmocka_unit_test(a_socket_that_goes_cancels_what_it_asked),
        cmocka_unit_test(the_first_message_may_bring_the_key),
        cmocka_unit_test(without_a_key_nothing_is_asked),
        cmocka_unit_test(draining_waits_for_what_runs),
        cmocka_unit_test(other_bytes_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
