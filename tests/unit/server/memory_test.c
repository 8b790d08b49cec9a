/* tests/unit/server/memory_test.c: every allocation of a codec, and of what makes OpenAI's answers, fails in turn. A
 * client is told so, or sees that what it got is not whole: never an answer that has lost something of its middle.
 * Linked with malloc, calloc and realloc wrapped, jansson's too; generations and tokens are made here. */
#include "unit/unit.h"

#include <nghttp2/nghttp2.h>

#include "server/codec_websocket.h"
#include "server/generation.h"
#include "unit/server/echo.h"

static int countdown = -1; /* allocations until one fails; negative: none does */
static int failed;

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);

static int fails(void)
{
    if (countdown < 0 || countdown-- != 0)
        return 0;
    failed = 1;
    return 1;
}

void *__wrap_malloc(size_t size)
{
    return fails() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return fails() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *old, size_t size)
{
    return fails() ? NULL : __real_realloc(old, size);
}

/* What differs from run to run: ids of requests. */
static void mask_ids(buffer *b)
{
    for (char *at = b->data; b->size >= 28 && at <= b->data + b->size - 28; at++)
        if (memcmp(at, "req-", 4) == 0)
            memset(at + 4, '0', 24);
}

static void assert_prefix(const buffer *part, const buffer *whole)
{
    assert_true(part->size <= whole->size);
    if (part->size)
        assert_memory_equal(part->data, whole->data, part->size);
}

/* ---- HTTP/1 ---- */

#define PIECE 5000

/* A head, a body and an answer in chunks, the nth allocation failing (-1: none). Fills out; returns the wait. */
static codec_wait run_http1(int n, buffer *out)
{
    static const char request[] = "POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello";
    static char piece[PIECE];
    echo e;
    echo_init(&e);
    e.holds = 1;
    codec *c = echo_open(&e, &codec_http1);
    memset(piece, 'y', sizeof piece);
    failed = 0;
    countdown = n;
    c->table->feed(c, request, sizeof request - 1);
    exchange *x = e.held;
    if (x) {
        exchange_set(x, "content-type", "text/plain");
        exchange_begin(x, 200, -1);
        for (int i = 0; i < 3; i++)
            exchange_write(x, piece, sizeof piece);
        exchange_write(x, "end", 3);
        exchange_end(x);
    }
    countdown = -1;
    buffer_init(out, SIZE_MAX);
    c->table->pull(c, out, SIZE_MAX);
    codec_wait wait = c->table->wait(c);
    c->table->close(c);
    assert_int_equal(e.overs, e.heads);
    mask_ids(out);
    char *date = out->size ? strstr(buffer_text(out), "date: ") : NULL;
    if (date)
        memset(date + 6, '0', strcspn(date + 6, "\r"));
    return wait;
}

static void what_http1_cannot_send_whole_ends_the_connection(void **state)
{
    (void)state;
    buffer whole, out;
    assert_int_equal(run_http1(-1, &whole), CODEC_IDLE);
    assert_true(whole.size > 3 * PIECE);
    int n_failed = 0, n_begun = 0, n_told = 0;
    for (int n = 0;; n++, n_failed++) {
        codec_wait wait = run_http1(n, &out);
        if (!failed)
            break;
        n_begun += out.size > 0;
        if (out.size && memcmp(buffer_text(&out), "HTTP/1.1 503", 12) == 0)
            n_told++;
        else
            assert_prefix(&out, &whole);
        if (out.size != whole.size)
            assert_int_equal(wait, CODEC_CLOSE);
        buffer_release(&out);
    }
    assert_int_equal(out.size, whole.size);
    assert_true(n_failed > 5 && n_begun > 3);
    assert_int_equal(n_told, 1);
    buffer_release(&out);
    buffer_release(&whole);
}

/* ---- HTTP/2 ---- */

typedef struct client {
    nghttp2_session *session;
    buffer answer;
    int status, closed;
    uint32_t code;
} client;

static int on_data(nghttp2_session *from, uint8_t flags, int32_t id, const uint8_t *data,
                   size_t size, void *user)
{
    (void)from;
    (void)flags;
    (void)id;
    return buffer_add(&((client *)user)->answer, data, size) ? NGHTTP2_ERR_CALLBACK_FAILURE : 0;
}

static int on_header(nghttp2_session *from, const nghttp2_frame *frame, const uint8_t *name,
                     size_t name_size, const uint8_t *value, size_t value_size, uint8_t flags,
                     void *user)
{
    (void)from;
    (void)frame;
    (void)value_size;
    (void)flags;
    if (name_size == 7 && memcmp(name, ":status", 7) == 0)
        ((client *)user)->status = atoi((const char *)value);
    return 0;
}

static int on_close(nghttp2_session *from, int32_t id, uint32_t code, void *user)
{
    (void)from;
    (void)id;
    client *k = user;
    k->closed++;
    k->code = code;
    return 0;
}

static void open_client(client *k)
{
    *k = (client){0};
    buffer_init(&k->answer, SIZE_MAX);
    nghttp2_session_callbacks *callbacks;
    nghttp2_session_callbacks_new(&callbacks);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_close);
    nghttp2_session_client_new(&k->session, callbacks, k);
    nghttp2_session_callbacks_del(callbacks);
    nghttp2_submit_settings(k->session, NGHTTP2_FLAG_NONE, NULL, 0);
    static const char *const pairs[][2] = {
        {":method", "GET"}, {":path", "/x"}, {":scheme", "http"}, {":authority", "x"}};
    nghttp2_nv headers[4];
    for (size_t i = 0; i < 4; i++)
        headers[i] = (nghttp2_nv){(uint8_t *)(uintptr_t)pairs[i][0],
                                  (uint8_t *)(uintptr_t)pairs[i][1], strlen(pairs[i][0]),
                                  strlen(pairs[i][1]), NGHTTP2_NV_FLAG_NONE};
    nghttp2_submit_request(k->session, NULL, headers, 4, NULL, NULL);
}

/* Until neither has anything to say. Only the server's allocations fail. */
static void talk(client *k, codec *c, int *left)
{
    for (int quiet = 0; !quiet;) {
        const uint8_t *data;
        ssize_t size;
        quiet = 1;
        while ((size = nghttp2_session_mem_send(k->session, &data)) > 0) {
            countdown = *left;
            c->table->feed(c, data, (size_t)size);
            *left = countdown;
            countdown = -1;
            quiet = 0;
        }
        buffer out;
        buffer_init(&out, SIZE_MAX);
        countdown = *left;
        c->table->pull(c, &out, 4096);
        *left = countdown;
        countdown = -1;
        if (out.size) {
            quiet = 0;
            assert_int_equal(nghttp2_session_mem_recv(k->session, (uint8_t *)out.data, out.size),
                             out.size);
        }
        buffer_release(&out);
    }
}

static codec_wait run_http2(int n, client *k)
{
    static char piece[PIECE];
    echo e;
    echo_init(&e);
    e.holds = 1;
    codec *c = echo_open(&e, &codec_http2);
    open_client(k);
    memset(piece, 'y', sizeof piece);
    failed = 0;
    int left = n;
    talk(k, c, &left);
    exchange *x = e.held;
    if (x) {
        countdown = left;
        exchange_begin(x, 200, -1);
        for (int i = 0; i < 3; i++)
            exchange_write(x, piece, sizeof piece);
        exchange_write(x, "end", 3);
        exchange_trailer(x, "grpc-status", "0");
        exchange_end(x);
        left = countdown;
        countdown = -1;
    }
    talk(k, c, &left);
    codec_wait wait = c->table->wait(c);
    c->table->close(c);
    assert_int_equal(e.overs, e.heads);
    nghttp2_session_del(k->session);
    return wait;
}

static void what_http2_cannot_send_whole_is_reset(void **state)
{
    (void)state;
    client k;
    int n_failed = 0, n_reset = 0;
    for (int n = 0;; n++, n_failed++) {
        codec_wait wait = run_http2(n, &k);
        int is_whole = k.closed && k.code == NGHTTP2_NO_ERROR;
        n_reset += k.closed && k.code == NGHTTP2_INTERNAL_ERROR;
        if (is_whole)
            assert_int_equal(k.answer.size, 3 * PIECE + 3);
        else
            assert_true(k.closed || wait == CODEC_CLOSE);
        buffer_release(&k.answer);
        if (!failed) {
            assert_true(is_whole);
            break;
        }
    }
    assert_true(n_failed > 5 && n_reset > 2);
}

/* ---- WebSocket ---- */

static void run_websocket(int n, buffer *out, codec_wait *wait)
{
    static const char message[] =
        "{\"type\":\"program\",\"id\":\"a\",\"name\":\"p\",\"body\":{\"prompt\":\"hello\"}}";
    echo e;
    echo_init(&e);
    const codec_websocket_options options = {
        .common = {.sink = &e.sink}, .authority = "x", .is_known = 1};
    codec *c = codec_websocket_open(&options);
    unsigned char frame[256] = {0x81, 0x80 | (sizeof message - 1)}; /* masked with zeros */
    memcpy(frame + 6, message, sizeof message - 1);
    failed = 0;
    countdown = n;
    c->table->feed(c, frame, 6 + sizeof message - 1);
    countdown = -1;
    buffer_init(out, SIZE_MAX);
    c->table->pull(c, out, SIZE_MAX);
    *wait = c->table->wait(c);
    c->table->close(c);
    assert_int_equal(e.overs, e.heads);
    mask_ids(out);
}

static void what_a_socket_cannot_send_whole_closes_it(void **state)
{
    (void)state;
    static const unsigned char internal_error[] = {0x03, 0xf3}; /* 1011 */
    buffer whole, out;
    codec_wait wait;
    run_websocket(-1, &whole, &wait);
    assert_holds(buffer_text(&whole) + 2, "\"type\":\"ready\"");
    assert_non_null(memmem(whole.data, whole.size, "\"type\":\"done\"", 13));
    int n_failed = 0, n_closed = 0;
    for (int n = 0;; n++, n_failed++) {
        run_websocket(n, &out, &wait);
        if (!failed)
            break;
        size_t same = 0;
        while (same < out.size && same < whole.size && out.data[same] == whole.data[same])
            same++;
        if (same < out.size) { /* what comes instead is a close frame, or an error by name */
            if ((unsigned char)out.data[same] == 0x88) {
                assert_memory_equal(out.data + same + 2, internal_error, 2);
                n_closed++;
            } else {
                assert_non_null(memmem(out.data, out.size, "\"type\":\"error\"", 14));
            }
        }
        if (out.size != whole.size || same < whole.size)
            assert_true(wait == CODEC_CLOSE ||
                        memmem(out.data, out.size, "\"type\":\"error\"", 14));
        buffer_release(&out);
    }
    assert_int_equal(out.size, whole.size);
    assert_true(n_failed > 5 && n_closed > 1);
    buffer_release(&out);
    buffer_release(&whole);
}

/* ---- OpenAI's answers ---- */

static const generation_output *made_output; /* by the last api_chat or api_completions */
static void *made_context;

void __wrap_generation_begin(server *s, exchange *x, const caller *c, openai_kind kind,
                             const generation_output *output, void *context);
const char *__wrap_tokenizer_piece(const tokenizer *t, token_id id, int with_special, size_t *size);

void __wrap_generation_begin(server *s, exchange *x, const caller *c, openai_kind kind,
                             const generation_output *output, void *context)
{
    (void)s;
    (void)x;
    (void)c;
    (void)kind;
    made_output = output;
    made_context = context;
}

/* Every fourth is half a character. */
const char *__wrap_tokenizer_piece(const tokenizer *t, token_id id, int with_special, size_t *size)
{
    (void)t;
    (void)with_special;
    *size = 2;
    return id % 4 == 3 ? "a\xC3" : "ab";
}

static json_t *some_tokens(void)
{
    json_t *tokens = json_array();
    for (int i = 0; i < 5; i++)
        json_array_append_new(tokens, json_pack("{s:i, s:f, s:s, s:[{s:i, s:f}, {s:i}]}", "id", i,
                                                "logprob", -0.5, "text", "ab", "top", "id", i + 1,
                                                "logprob", -1.5, "id", i + 2));
    return tokens;
}

/* A generation of one choice, as generation.c would go through it. */
static void go_through(generation *g, const json_t *tokens, json_t *calls, codec *c, buffer *out)
{
    generation_choice *choice = g->choices;
    const generation_output *o = g->output;
    realm_status status = REALM_OK;
    for (int i = 0; g->r.stream && !status && i < 4; i++) {
        o->piece(g, choice, "the \"sea\"\n", 10, NULL);
        o->piece(g, choice, "was calm", 8, tokens);
        if (i == 2 && g->kind == OPENAI_CHAT)
            o->calls(g, choice, calls);
        if (i == 3)
            o->finish(g, choice);
        status = o->flush(g);
        int left = countdown;
        countdown = -1;
        c->table->pull(c, out, SIZE_MAX);
        countdown = left;
    }
    api_problem problem;
    api_problem_of(&problem, REALM_NO_MEMORY, "the host is out of memory");
    if (status)
        (o->fail)(g, &problem); /* not cmocka's macro */
    else
        o->end(g);
}

static int n_waves; /* that make the answer's text longer */

static codec_wait run_answer(int n, openai_kind kind, int stream, buffer *out)
{
    static const char request[] = "POST /x HTTP/1.1\r\nHost: x\r\n\r\n";
    static const served_model served = {.name = "m\"1"};
    echo e;
    echo_init(&e);
    e.holds = 1;
    codec *c = echo_open(&e, &codec_http1);
    buffer_init(out, SIZE_MAX);
    json_t *tokens = some_tokens();
    json_t *calls = json_pack("[{s:s}, {s:s}]", "id", "call_1", "id", "call_2");
    c->table->feed(c, request, sizeof request - 1);
    exchange *x = exchange_retain(e.held);
    generation_choice choice = {.finish = "length", .logprobs = json_incref(tokens)};
    buffer_init(&choice.text, SIZE_MAX);
    buffer_add_text(&choice.text, "the sea \xC3 was calm");
    for (int i = 0; i < n_waves; i++)
        buffer_add_text(&choice.text, ", wave");
    made_output = NULL;
    failed = 0;
    countdown = n;
    if (kind == OPENAI_CHAT)
        api_chat(NULL, x, NULL);
    else
        api_completions(NULL, x, NULL);
    if (made_output) {
        generation g = {.x = x,
                        .kind = kind,
                        .output = made_output,
                        .context = made_context,
                        .r = {.model = &served, .stream = stream, .include_usage = 1},
                        .choices = &choice,
                        .n_choices = 1,
                        .id = "chatcmpl-1"};
        choice.g = &g;
        go_through(&g, tokens, calls, c, out);
        made_output->release(&g);
    }
    countdown = -1;
    c->table->pull(c, out, SIZE_MAX);
    codec_wait wait = c->table->wait(c);
    c->table->close(c);
    exchange_release(x);
    json_decref(tokens);
    json_decref(calls);
    json_decref(choice.logprobs);
    buffer_release(&choice.text);
    assert_int_equal(e.overs, e.heads);
    return wait;
}

/* The body of an answer, in chunks or not; what is whole of it. */
static void read_body(buffer *answer, buffer *body)
{
    const char *at = strstr(buffer_text(answer), "\r\n\r\n");
    buffer_init(body, SIZE_MAX);
    if (!at)
        return;
    at += 4;
    if (!strstr(buffer_text(answer), "chunked")) {
        buffer_add_text(body, at);
        return;
    }
    const char *end = answer->data + answer->size;
    while (at < end) {
        char *rest;
        size_t size = strtoul(at, &rest, 16);
        if (!size || (size_t)(end - rest) < size + 4)
            return;
        buffer_add(body, rest + 2, size);
        at = rest + 2 + size + 2;
    }
}

static void every_answer_is_whole_or_says_that_it_is_not(openai_kind kind, int stream, int least)
{
    buffer whole, out, whole_body, body;
    assert_int_equal(run_answer(-1, kind, stream, &whole), CODEC_IDLE);
    read_body(&whole, &whole_body);
    assert_non_null(
        strstr(buffer_text(&whole_body), stream ? "data: [DONE]\n\n" : "\"choices\":[{"));
    assert_non_null(strstr(buffer_text(&whole_body), "top_logprobs"));
    int n_failed = 0, n_told = 0, n_within = 0;
    for (int n = 0;; n++, n_failed++) {
        codec_wait wait = run_answer(n, kind, stream, &out);
        if (!failed)
            break;
        read_body(&out, &body);
        const char *said = strstr(buffer_text(&body), stream ? "data: {\"error\"" : "{\"error\"");
        if (out.size && memcmp(buffer_text(&out), "HTTP/1.1 503", 12) == 0) {
            n_told++;
        } else if (said) { /* the last event, after whole ones */
            n_within++;
            assert_ptr_equal(strstr(said, "\n\n"), body.data + body.size - 2);
            body.size = (size_t)(said - body.data);
            assert_true(!body.size || memcmp(said - 2, "\n\n", 2) == 0);
            assert_prefix(&body, &whole_body);
        } else {
            assert_prefix(&body, &whole_body);
            if (body.size != whole_body.size)
                assert_int_equal(wait, CODEC_CLOSE);
        }
        buffer_release(&body);
        buffer_release(&out);
    }
    assert_int_equal(out.size, whole.size);
    assert_true(n_failed > least && n_told > 0 && (!stream || n_within > 5));
    buffer_release(&out);
    buffer_release(&whole);
    buffer_release(&whole_body);
}

static void streams_of_chat_have_no_holes(void **state)
{
    (void)state;
    every_answer_is_whole_or_says_that_it_is_not(OPENAI_CHAT, 1, 100);
}

static void streams_of_completions_have_no_holes(void **state)
{
    (void)state;
    every_answer_is_whole_or_says_that_it_is_not(OPENAI_COMPLETION, 1, 100);
}

static void whole_answers_have_no_holes(void **state)
{
    (void)state;
    every_answer_is_whole_or_says_that_it_is_not(OPENAI_CHAT, 0, 100);
    every_answer_is_whole_or_says_that_it_is_not(OPENAI_COMPLETION, 0, 100);
}

static void a_long_answer_is_not_cut(void **state)
{
    (void)state;
    buffer answer, body;
    n_waves = 50000;
    assert_int_equal(run_answer(-1, OPENAI_CHAT, 0, &answer), CODEC_IDLE);
    n_waves = 0;
    read_body(&answer, &body);
    size_t waves = 0;
    for (const char *at = buffer_text(&body); (at = strstr(at, ", wave")); at++)
        waves++;
    assert_int_equal(waves, 50000);
    buffer_release(&answer);
    buffer_release(&body);
}

int main(void)
{
    json_set_alloc_funcs(malloc, free);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_http1_cannot_send_whole_ends_the_connection),
        cmocka_unit_test(what_http2_cannot_send_whole_is_reset),
        cmocka_unit_test(what_a_socket_cannot_send_whole_closes_it),
        cmocka_unit_test(streams_of_chat_have_no_holes),
        cmocka_unit_test(streams_of_completions_have_no_holes),
        cmocka_unit_test(whole_answers_have_no_holes),
        cmocka_unit_test(a_long_answer_is_not_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
