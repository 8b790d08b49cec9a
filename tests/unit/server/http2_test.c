/* tests/unit/server/http2_test.c: HTTP/2 against a client made of nghttp2, whose bytes come in any pieces, and
 * against frames that no client of good will sends. h2spec does the rest (scripts/test.sh). */
#include "unit/unit.h"

#include <nghttp2/nghttp2.h>

#include "base/rng.h"
#include "unit/server/echo.h"

typedef struct client {
    echo e;
    codec *c;
    nghttp2_session *session;
    rng random;
    size_t most; /* bytes of a piece; 0: whole */
    buffer answer;
    int closed, goaway, pings;
    int32_t last_stream; /* of the last GOAWAY */
    uint32_t code;       /* of the last stream that closed, or of the GOAWAY */
} client;

static int on_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *data,
                   size_t size, void *user)
{
    (void)session;
    (void)flags;
    (void)id;
    buffer_add(&((client *)user)->answer, data, size);
    return 0;
}

static int on_close(nghttp2_session *session, int32_t id, uint32_t code, void *user)
{
    (void)session;
    (void)id;
    client *k = user;
    k->closed++;
    k->code = code;
    return 0;
}

static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    (void)session;
    client *k = user;
    if (frame->hd.type == NGHTTP2_PING && !(frame->hd.flags & NGHTTP2_FLAG_ACK))
        k->pings++;
    if (frame->hd.type == NGHTTP2_GOAWAY) {
        k->goaway++;
        k->last_stream = frame->goaway.last_stream_id;
        k->code = frame->goaway.error_code;
    }
    return 0;
}

static void begin(client *k, size_t most)
{
    *k = (client){.most = most};
    echo_init(&k->e);
    k->c = echo_open(&k->e, &codec_http2);
    rng_init(&k->random, most);
    buffer_init(&k->answer, SIZE_MAX);
    nghttp2_session_callbacks *callbacks;
    nghttp2_session_callbacks_new(&callbacks);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_close);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
    nghttp2_session_client_new(&k->session, callbacks, k);
    nghttp2_session_callbacks_del(callbacks);
    nghttp2_submit_settings(k->session, NGHTTP2_FLAG_NONE, NULL, 0);
}

static void end(client *k)
{
    k->c->table->close(k->c);
    nghttp2_session_del(k->session);
    buffer_release(&k->answer);
}

static void give(client *k, const uint8_t *data, size_t size)
{
    for (size_t at = 0; at < size;) {
        size_t part = k->most ? 1 + rng_next(&k->random) % k->most : size;
        if (part > size - at)
            part = size - at;
        k->c->table->feed(k->c, data + at, part);
        at += part;
    }
}

/* Both sides talk until neither has anything to say. */
static void talk(client *k)
{
    for (int quiet = 0; !quiet;) {
        const uint8_t *data;
        ssize_t size;
        quiet = 1;
        while ((size = nghttp2_session_mem_send(k->session, &data)) > 0) {
            give(k, data, (size_t)size);
            quiet = 0;
        }
        buffer out;
        buffer_init(&out, SIZE_MAX);
        k->c->table->pull(k->c, &out, 4096);
        if (out.size) {
            quiet = 0;
            assert_int_equal(nghttp2_session_mem_recv(k->session, (uint8_t *)out.data, out.size),
                             out.size);
        }
        buffer_release(&out);
    }
}

static nghttp2_nv pair(const char *name, const char *value)
{
    return (nghttp2_nv){(uint8_t *)(uintptr_t)name, (uint8_t *)(uintptr_t)value, strlen(name),
                        strlen(value), NGHTTP2_NV_FLAG_NONE};
}

static ssize_t give_body(nghttp2_session *session, int32_t id, uint8_t *to, size_t room,
                         uint32_t *flags, nghttp2_data_source *source, void *user)
{
    (void)session;
    (void)id;
    (void)user;
    size_t *left = source->ptr;
    size_t part = *left < room ? *left : room;
    memset(to, 'x', part);
    *left -= part;
    if (!*left)
        *flags |= NGHTTP2_DATA_FLAG_EOF;
    return (ssize_t)part;
}

static int32_t request(client *k, const char *method, const char *path, size_t *body)
{
    nghttp2_nv headers[] = {pair(":method", method), pair(":path", path), pair(":scheme", "http"),
                            pair(":authority", "x"), pair("x-header", "value")};
    nghttp2_data_provider provider = {.source.ptr = body, .read_callback = give_body};
    return nghttp2_submit_request(k->session, NULL, headers, 5, body ? &provider : NULL, NULL);
}

static void any_pieces_give_the_same(void **state)
{
    (void)state;
    for (size_t most = 0; most < 20; most++) {
        client k;
        size_t body = 900;
        begin(&k, most);
        request(&k, "GET", "/one?two", NULL);
        request(&k, "POST", "/three", &body);
        talk(&k);
        assert_int_equal(k.e.completes, 2);
        assert_int_equal(k.closed, 2);
        assert_int_equal(k.e.overs, 2);
        assert_holds(buffer_text(&k.answer), "GET /one 0");
        assert_holds(buffer_text(&k.answer), "POST /three 900");
        assert_string_equal(k.e.last, "POST /three? 1 900");
        assert_int_equal(k.c->table->wait(k.c), CODEC_IDLE);
        end(&k);
    }
}

static void a_body_over_the_limit_is_answered_and_stopped(void **state)
{
    (void)state;
    client k;
    size_t body = 100000;
    begin(&k, 0);
    request(&k, "POST", "/big", &body);
    talk(&k);
    assert_holds(buffer_text(&k.answer), "request_too_large");
    assert_int_equal(k.e.completes, 0);
    assert_int_equal(k.closed, 1);
    end(&k);
}

static void large_answers_respect_the_window(void **state)
{
    (void)state;
    client k;
    begin(&k, 0);
    k.e.holds = 1;
    request(&k, "GET", "/large", NULL);
    talk(&k);
    exchange *x = k.e.held;
    char *large = calloc(1, 1000000);
    memset(large, 'y', 1000000);
    exchange_begin(x, 200, -1);
    exchange_write(x, large, 1000000);
    assert_int_equal(exchange_pending(x), 1000000);
    exchange_end(x);
    talk(&k);
    assert_int_equal(k.answer.size, 1000000);
    assert_memory_equal(k.answer.data, large, 1000000);
    assert_int_equal(k.e.overs, 1);
    assert_int_equal(k.e.cancels, 0);
    free(large);
    end(&k);
}

static void a_reset_stream_is_cancelled(void **state)
{
    (void)state;
    client k;
    begin(&k, 0);
    k.e.holds = 1;
    int32_t id = request(&k, "GET", "/x", NULL);
    talk(&k);
    exchange *x = exchange_retain(k.e.held);
    nghttp2_submit_rst_stream(k.session, NGHTTP2_FLAG_NONE, id, NGHTTP2_CANCEL);
    talk(&k);
    assert_int_equal(k.e.cancels, 1);
    assert_int_equal(x->state, EXCHANGE_GONE);
    exchange_release(x);
    end(&k);
}

static void trailers_follow_the_body(void **state)
{
    (void)state;
    client k;
    begin(&k, 0);
    k.e.holds = 1;
    request(&k, "GET", "/x", NULL);
    talk(&k);
    exchange *x = k.e.held;
    exchange_begin(x, 200, -1);
    exchange_write(x, "body", 4);
    exchange_trailer(x, "grpc-status", "0");
    exchange_end(x);
    talk(&k);
    assert_string_equal(buffer_text(&k.answer), "body");
    assert_int_equal(k.closed, 1);
    assert_int_equal(k.code, NGHTTP2_NO_ERROR);
    end(&k);
}

/* A body that the test says piece by piece. */
typedef struct spoken {
    const char *piece; /* NULL: none now */
    int last;
} spoken;

static ssize_t give_spoken(nghttp2_session *session, int32_t id, uint8_t *to, size_t room,
                           uint32_t *flags, nghttp2_data_source *source, void *user)
{
    (void)session;
    (void)id;
    (void)user;
    spoken *s = source->ptr;
    if (!s->piece)
        return NGHTTP2_ERR_DEFERRED;
    size_t size = strlen(s->piece);
    assert_true(size <= room);
    memcpy(to, s->piece, size);
    s->piece = NULL;
    if (s->last)
        *flags |= NGHTTP2_DATA_FLAG_EOF;
    return (ssize_t)size;
}

static int32_t speak(client *k, spoken *s)
{
    nghttp2_nv headers[] = {pair(":method", "POST"), pair(":path", "/talk"),
                            pair(":scheme", "http"), pair(":authority", "x")};
    nghttp2_data_provider provider = {.source.ptr = s, .read_callback = give_spoken};
    k->e.early = 1;
    return nghttp2_submit_request(k->session, NULL, headers, 4, &provider, NULL);
}

static void say(client *k, spoken *s, int32_t id, const char *piece, int last)
{
    *s = (spoken){piece, last};
    nghttp2_session_resume_data(k->session, id);
    talk(k);
}

static void an_answer_may_begin_before_the_body_has_ended(void **state)
{
    (void)state;
    client k;
    spoken s = {0};
    begin(&k, 3);
    int32_t id = speak(&k, &s);
    talk(&k);
    assert_int_equal(k.e.completes, 1);
    assert_int_equal(k.answer.size, 0);
    say(&k, &s, id, "one ", 0);
    assert_string_equal(buffer_text(&k.answer), "one ");
    say(&k, &s, id, "two", 1);
    assert_string_equal(buffer_text(&k.answer), "one two");
    assert_int_equal(k.closed, 1);
    assert_int_equal(k.code, NGHTTP2_NO_ERROR);
    assert_int_equal(k.e.cancels, 0);
    assert_int_equal(k.e.overs, 1);
    end(&k);
}

static void a_client_that_still_speaks_after_the_answer_is_told_to_stop(void **state)
{
    (void)state;
    client k;
    spoken s = {0};
    begin(&k, 0);
    int32_t id = speak(&k, &s);
    talk(&k);
    say(&k, &s, id, "enough.", 0);
    assert_string_equal(buffer_text(&k.answer), "enough.");
    assert_int_equal(k.closed, 1);
    assert_int_equal(k.code, NGHTTP2_NO_ERROR);
    assert_int_equal(k.c->table->wait(k.c), CODEC_IDLE);
    end(&k);
}

static ssize_t give_nothing(nghttp2_session *session, int32_t id, uint8_t *to, size_t room,
                            uint32_t *flags, nghttp2_data_source *source, void *user)
{
    (void)session;
    (void)id;
    (void)to;
    (void)room;
    (void)flags;
    (void)source;
    (void)user;
    return NGHTTP2_ERR_DEFERRED;
}

static void a_body_that_stands_still_ends_its_stream_alone(void **state)
{
    (void)state;
    client k;
    begin(&k, 0);
    k.e.holds = 1;
    request(&k, "GET", "/busy", NULL);
    nghttp2_nv headers[] = {pair(":method", "POST"), pair(":path", "/p"), pair(":scheme", "http"),
                            pair(":authority", "x")};
    nghttp2_data_provider provider = {.read_callback = give_nothing};
    nghttp2_submit_request(k.session, NULL, headers, 4, &provider, NULL);
    for (uint64_t second = 1; second <= 31; second++) {
        talk(&k);
        assert_int_equal(k.closed, 0);
        k.c->table->tick(k.c, second * 1000000000u);
    }
    k.c->table->tick(k.c, 32 * 1000000000ull);
    talk(&k);
    assert_int_equal(k.closed, 1);
    assert_holds(buffer_text(&k.answer), "request_timeout");
    echo_answer(k.e.held);
    talk(&k);
    assert_int_equal(k.closed, 2);
    assert_holds(buffer_text(&k.answer), "GET /busy 0");
    end(&k);
}

static void an_answer_whose_window_stays_shut_ends_its_stream_alone(void **state)
{
    (void)state;
    client k;
    begin(&k, 0);
    const nghttp2_settings_entry shut = {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 0};
    nghttp2_submit_settings(k.session, NGHTTP2_FLAG_NONE, &shut, 1);
    request(&k, "GET", "/x", NULL);
    for (uint64_t second = 1; second <= 31; second++) {
        talk(&k);
        assert_int_equal(k.closed, 0);
        k.c->table->tick(k.c, second * 1000000000u);
    }
    k.c->table->tick(k.c, 32 * 1000000000ull);
    talk(&k);
    assert_int_equal(k.closed, 1);
    assert_int_equal(k.code, NGHTTP2_CANCEL);
    assert_int_equal(k.e.overs, 1);
    assert_false(k.goaway);
    end(&k);
}

static void rapid_resets_end_the_connection(void **state)
{
    (void)state;
    client k;
    begin(&k, 0);
    k.e.holds = 1;
    int i = 0;
    for (; i < 20000 && !k.goaway; i++) {
        int32_t id = request(&k, "GET", "/x", NULL);
        const uint8_t *data;
        ssize_t size = nghttp2_session_mem_send(k.session, &data);
        for (; size > 0; size = nghttp2_session_mem_send(k.session, &data))
            give(&k, data, (size_t)size);
        nghttp2_submit_rst_stream(k.session, NGHTTP2_FLAG_NONE, id, NGHTTP2_CANCEL);
        talk(&k);
    }
    assert_true(k.goaway);
    assert_int_equal(k.code, NGHTTP2_ENHANCE_YOUR_CALM);
    assert_in_range(i, 900, 3000);
    assert_int_equal(k.e.overs, k.e.heads);
    end(&k);
}

static void pings_without_end_end_the_connection(void **state)
{
    (void)state;
    client k;
    begin(&k, 0);
    int i = 0;
    for (; i < 20000 && !k.goaway; i++) {
        nghttp2_submit_ping(k.session, NGHTTP2_FLAG_NONE, NULL);
        talk(&k);
    }
    assert_true(k.goaway);
    assert_int_equal(k.code, NGHTTP2_ENHANCE_YOUR_CALM);
    end(&k);
}

static void raw(client *k, const void *data, size_t size)
{
    k->c->table->feed(k->c, data, size);
}

/* CONTINUATION frames that never end a head (CVE-2024-27316 and its kin). */
static void continuations_without_end_end_the_connection(void **state)
{
    (void)state;
    client k;
    begin(&k, 0);
    talk(&k);
    static const uint8_t headers[] = {0, 0, 1, 1, 0, 0, 0, 0, 1, 0x82};
    static const uint8_t more[] = {0, 0, 1, 9, 0, 0, 0, 0, 1, 0x84};
    raw(&k, headers, sizeof headers);
    int i = 0;
    for (; i < 100000 && k.c->table->wait(k.c) != CODEC_CLOSE; i++) {
        raw(&k, more, sizeof more);
        buffer out;
        buffer_init(&out, SIZE_MAX);
        k.c->table->pull(k.c, &out, 4096);
        buffer_release(&out);
    }
    assert_in_range(i, 1, 1000);
    assert_int_equal(k.e.completes, 0);
    end(&k);
}

static void headers_are_limited(void **state)
{
    (void)state;
    client k;
    begin(&k, 0);
    char *value = calloc(1, 8001);
    memset(value, 'v', 8000);
    nghttp2_nv headers[16] = {pair(":method", "GET"), pair(":path", "/"), pair(":scheme", "http"),
                              pair(":authority", "x")};
    for (int i = 4; i < 12; i++)
        headers[i] = pair("x-large", value);
    nghttp2_submit_request(k.session, NULL, headers, 12, NULL, NULL);
    talk(&k);
    assert_int_equal(k.e.completes, 0);
    assert_int_equal(k.closed + k.goaway > 0, 1);
    free(value);
    end(&k);
}

static void draining_finishes_what_runs_and_takes_nothing_new(void **state)
{
    (void)state;
    client k;
    begin(&k, 0);
    k.e.holds = 1;
    request(&k, "GET", "/first", NULL);
    talk(&k);
    k.c->table->drain(k.c);
    talk(&k); /* with the answer to the ping */
    assert_int_equal(k.goaway, 2);
    assert_int_equal(k.last_stream, 1);
    assert_int_equal(k.code, NGHTTP2_NO_ERROR);
    echo_answer(k.e.held);
    talk(&k);
    assert_holds(buffer_text(&k.answer), "GET /first 0");
    assert_int_equal(k.c->table->wait(k.c), CODEC_CLOSE);
    end(&k);
}

/* Takes what the server says, frame by frame, and gives it to the client. Counts GOAWAYs; *last: the last one's. */
static int listen(client *k, uint32_t *last)
{
    buffer out;
    buffer_init(&out, SIZE_MAX);
    k->c->table->pull(k->c, &out, 1 << 20);
    const uint8_t *bytes = (const uint8_t *)out.data;
    int count = 0;
    for (size_t at = 0; at + 9 <= out.size;) {
        const uint8_t *f = bytes + at;
        if (f[3] == NGHTTP2_GOAWAY) {
            count++;
            *last = (uint32_t)f[9] << 24 | (uint32_t)f[10] << 16 | (uint32_t)f[11] << 8 | f[12];
        }
        at += 9 + ((size_t)f[0] << 16 | (size_t)f[1] << 8 | f[2]);
    }
    nghttp2_session_mem_recv(k->session, bytes, out.size);
    buffer_release(&out);
    return count;
}

static void speak_out(client *k)
{
    const uint8_t *data;
    for (ssize_t size; (size = nghttp2_session_mem_send(k->session, &data)) > 0;)
        give(k, data, (size_t)size);
}

static void a_request_on_its_way_when_draining_begins_is_answered(void **state)
{
    (void)state;
    client k;
    uint32_t last = 0;
    begin(&k, 0);
    request(&k, "GET", "/first", NULL);
    talk(&k);
    k.c->table->drain(k.c);
    request(&k, "GET", "/under-way", NULL);
    speak_out(&k);
    assert_int_equal(listen(&k, &last), 1);
    assert_int_equal(last, INT32_MAX);
    assert_holds(buffer_text(&k.answer), "GET /under-way 0");
    assert_int_not_equal(k.c->table->wait(k.c), CODEC_CLOSE);
    speak_out(&k); /* the answer to the ping, which came behind the first GOAWAY */
    assert_int_equal(listen(&k, &last), 1);
    assert_int_equal(last, 3);
    assert_int_equal(k.c->table->wait(k.c), CODEC_CLOSE);
    end(&k);
}

static void who_answers_no_ping_is_not_drained_for_ever(void **state)
{
    (void)state;
    client k;
    uint32_t last = 0;
    begin(&k, 0);
    request(&k, "GET", "/x", NULL);
    talk(&k);
    k.c->table->drain(k.c);
    assert_int_equal(listen(&k, &last), 1);
    k.c->table->tick(k.c, 1000000000u);
    assert_int_equal(listen(&k, &last), 0);
    k.c->table->tick(k.c, 2000000000u);
    assert_int_equal(listen(&k, &last), 1);
    assert_int_equal(last, 1);
    assert_int_equal(k.c->table->wait(k.c), CODEC_CLOSE);
    end(&k);
}

/* Whose line is dead is found while it waits for an answer; who answers pings may wait as long as it likes. */
static void a_client_that_is_gone_without_a_word_is_found(void **state)
{
    (void)state;
    client k;
    begin(&k, 0);
    k.e.holds = 1;
    request(&k, "GET", "/watch", NULL);
    uint64_t second = 1;
    for (; second <= 300; second++) {
        talk(&k);
        k.c->table->tick(k.c, second * 1000000000u);
    }
    assert_true(k.pings >= 8);
    assert_int_equal(k.c->table->wait(k.c), CODEC_BUSY);
    for (; second <= 370 && k.c->table->wait(k.c) == CODEC_BUSY; second++)
        k.c->table->tick(k.c, second * 1000000000u);
    assert_int_equal(k.c->table->wait(k.c), CODEC_CLOSE);
    assert_in_range(second, 331, 365);
    end(&k);
}

static void a_stream_that_was_answered_and_is_asked_no_more_ends_alone(void **state)
{
    (void)state;
    client k;
    begin(&k, 0);
    k.e.holds = 1;
    request(&k, "GET", "/busy", NULL);
    talk(&k);
    exchange *busy = k.e.held;
    spoken talks = {0};
    int32_t id = speak(&k, &talks);
    say(&k, &talks, id, "one ", 0);
    assert_string_equal(buffer_text(&k.answer), "one ");
    for (uint64_t second = 1; second <= 76; second++) {
        talk(&k);
        assert_int_equal(k.closed, 0);
        k.c->table->tick(k.c, second * 1000000000u);
    }
    k.c->table->tick(k.c, 77 * 1000000000ull);
    talk(&k);
    assert_int_equal(k.closed, 1);
    assert_int_equal(k.code, NGHTTP2_CANCEL);
    echo_answer(busy);
    talk(&k);
    assert_int_equal(k.closed, 2);
    end(&k);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_pieces_give_the_same),
        cmocka_unit_test(a_body_over_the_limit_is_answered_and_stopped),
        cmocka_unit_test(large_answers_respect_the_window),
        cmocka_unit_test(a_reset_stream_is_cancelled),
        cmocka_unit_test(trailers_follow_the_body),
        cmocka_unit_test(an_answer_may_begin_before_the_body_has_ended),
        cmocka_unit_test(a_client_that_still_speaks_after_the_answer_is_told_to_stop),
        cmocka_unit_test(a_body_that_stands_still_ends_its_stream_alone),
        cmocka_unit_test(an_answer_whose_window_stays_shut_ends_its_stream_alone),
        cmocka_unit_test(rapid_resets_end_the_connection),
        cmocka_unit_test(pings_without_end_end_the_connection),
        cmocka_unit_test(continuations_without_end_end_the_connection),
        cmocka_unit_test(headers_are_limited),
        cmocka_unit_test(draining_finishes_what_runs_and_takes_nothing_new),
        cmocka_unit_test(a_request_on_its_way_when_draining_begins_is_answered),
        cmocka_unit_test(who_answers_no_ping_is_not_drained_for_ever),
        cmocka_unit_test(a_client_that_is_gone_without_a_word_is_found),
        cmocka_unit_test(a_stream_that_was_answered_and_is_asked_no_more_ends_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
