/* tests/unit/server/http1_test.c: HTTP/1 fed whole, byte by byte and in random pieces; what is smuggled. */
#include "unit/unit.h"

#include "base/rng.h"
#include "unit/server/echo.h"

typedef struct run {
    echo e;
    codec *c;
    buffer out;
} run;

static void begin(run *r)
{
    echo_init(&r->e);
    r->c = echo_open(&r->e, &codec_http1);
    buffer_init(&r->out, SIZE_MAX);
}

static void end(run *r)
{
    r->c->table->close(r->c);
    buffer_release(&r->out);
}

static void feed(run *r, const char *data, size_t size)
{
    r->c->table->feed(r->c, data, size);
    r->c->table->pull(r->c, &r->out, 65536);
}

/* Feeds text in pieces of at most `most` bytes (0: whole). */
static void feed_pieces(run *r, const char *text, size_t size, size_t most, rng *random)
{
    for (size_t at = 0; at < size;) {
        size_t part = most ? 1 + rng_next(random) % most : size;
        if (part > size - at)
            part = size - at;
        feed(r, text + at, part);
        at += part;
    }
}

static int count_of(const char *text, const char *part)
{
    int count = 0;
    for (; (text = strstr(text, part)); text++)
        count++;
    return count;
}

static const char *answer_to(run *r, const char *text)
{
    begin(r);
    feed(r, text, strlen(text));
    return buffer_text(&r->out);
}

/* Fed in any pieces, the answer is the same but for its ids and dates. */
static void any_pieces_give_the_same(void **state)
{
    (void)state;
    static const char text[] =
        "\r\nGET /a?b=c HTTP/1.1\r\nHost: x\r\nX-One:  two \r\nEmpty:\r\n\r\n"
        "POST /p HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello"
        "POST /q HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        "5;ext=1\r\nhello\r\n6\r\n world\r\n0\r\nTrailer: x\r\n\r\n"
        "GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    rng random;
    rng_init(&random, 1);
    for (size_t most = 0; most < 40; most++) {
        run r;
        begin(&r);
        feed_pieces(&r, text, sizeof text - 1, most, &random);
        const char *out = buffer_text(&r.out);
        if (r.e.completes != 4)
            fail_msg("pieces of %zu: %s", most, out);
        assert_int_equal(r.e.overs, 4);
        assert_int_equal(count_of(out, "HTTP/1.1 200 OK\r\n"), 4);
        assert_holds(out, "\r\n\r\nGET /a 0");
        assert_holds(out, "\r\n\r\nPOST /p 5");
        assert_holds(out, "\r\n\r\nPOST /q 11");
        assert_holds(out, "connection: close\r\n\r\nGET /last 0");
        assert_int_equal(r.c->table->wait(r.c), CODEC_CLOSE);
        end(&r);
    }
}

/* What proxies are sent (RFC 9112, 3.2.2); no path is the root. */
static void absolute_targets_are_taken(void **state)
{
    (void)state;
    static const struct {
        const char *target, *authority, *last;
    } cases[] = {
        {"http://name:80/a?b", "name:80", "GET /a?b 1 0"},
        {"HTTP://name/", "name", "GET /? 1 0"},
        {"http://name", "name", "GET /? 1 0"},
        {"https://name?b=/c", "name", "GET /?b=/c 1 0"},
        {"http://", NULL, NULL},
        {"http:///a", NULL, NULL},
        {"http://name#a", NULL, NULL},
        {"ftp://name/", NULL, NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        run r;
        char text[128];
        begin(&r);
        r.e.holds = 1;
        int size = snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n",
                            cases[i].target);
        feed(&r, text, (size_t)size);
        assert_int_equal(r.e.held != NULL, cases[i].last != NULL);
        if (r.e.held) {
            assert_string_equal(r.e.held->authority, cases[i].authority);
            assert_string_equal(r.e.last, cases[i].last);
            echo_answer(r.e.held);
        } else {
            assert_holds(buffer_text(&r.out), "HTTP/1.1 400");
        }
        end(&r);
    }
}

static void headers_are_lower_case_and_trimmed(void **state)
{
    (void)state;
    run r;
    begin(&r);
    r.e.holds = 1;
    static const char text[] =
        "GET /x?y HTTP/1.1\r\nHOST: example:80\r\nX-Long-Name: \t a b \t\r\n\r\n";
    feed(&r, text, sizeof text - 1);
    assert_non_null(r.e.held);
    assert_string_equal(exchange_header_get(r.e.held, "x-long-name"), "a b");
    assert_string_equal(r.e.held->authority, "example:80");
    assert_string_equal(r.e.held->query, "y");
    echo_answer(r.e.held);
    end(&r);
}

/* What two servers could read in two ways is refused, and the connection ends with it. */
static void what_could_be_smuggled_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *status;
    } cases[] = {
        {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
         "400"},
        {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
         "400"},
        {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", "400"},
        {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", "400"},
        {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5, 5\r\n\r\n", "400"},
        {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\n", "400"},
        {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", "400"},
        {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x5\r\n\r\n", "400"},
        {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n", "400"},
        {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n", "400"},
        {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n", "40"},
        {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "501"},
        {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
         "40"},
        {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n", "400"},
        {"POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", "400"},
        {"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n folded\r\n\r\n", "400"},
        {"GET / HTTP/1.1\nHost: x\n\n", "400"},
        {"GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", "400"},
        {"GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n", "400"},
        {"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", "400"},
        {"GET / HTTP/1.1\r\n\r\n", "400"},
        {"GET / HTTP/1.1\r\nHost: x\r\nBad Name: b\r\n\r\n", "400"},
        {"GET / HTTP/1.1\r\nHost: x\r\n: b\r\n\r\n", "400"},
        {"GET / HTTP/1.1\r\nHost: x\r\nA: \x01\r\n\r\n", "400"},
        {"GET  / HTTP/1.1\r\nHost: x\r\n\r\n", "400"},
        {"GET relative HTTP/1.1\r\nHost: x\r\n\r\n", "400"},
        {"GET / HTTP/2.0\r\nHost: x\r\n\r\n", "50"},
        {"GET / HTTP/1.2\r\nHost: x\r\n\r\n", ""},
        {"BREW / HTTP/1.1\r\nHost: x\r\n\r\n", "400"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        run r;
        char wanted[32];
        const char *out = answer_to(&r, cases[i].text);
        snprintf(wanted, sizeof wanted, "HTTP/1.1 %s", cases[i].status);
        if (strncmp(out, wanted, strlen(wanted)) != 0 || strncmp(out, "HTTP/1.1 2", 10) == 0)
            fail_msg("case %zu got: %s", i, out);
        assert_int_equal(r.e.completes, 0);
        assert_int_equal(r.c->table->wait(r.c), CODEC_CLOSE);
        end(&r);
    }
}

static void malformed_chunks_are_refused(void **state)
{
    (void)state;
    static const char *const bodies[] = {
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "g\r\n",
        "-5\r\nhello\r\n",
        "0x5\r\nhello\r\n",
        "fffffffffffffffff\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "\r\n",
    };
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        run r;
        begin(&r);
        static const char head[] =
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
        feed(&r, head, sizeof head - 1);
        feed(&r, bodies[i], strlen(bodies[i]));
        if (strncmp(buffer_text(&r.out), "HTTP/1.1 400", 12) != 0)
            fail_msg("body %zu got: %s", i, buffer_text(&r.out));
        assert_int_equal(r.e.completes, 0);
        end(&r);
    }
}

static void sizes_are_limited(void **state)
{
    (void)state;
    run r;
    buffer text;
    buffer_init(&text, SIZE_MAX);
    buffer_add_text(&text, "GET / HTTP/1.1\r\nHost: x\r\n");
    for (int i = 0; i < 200; i++)
        buffer_printf(&text, "h%d: x\r\n", i);
    buffer_add_text(&text, "\r\n");
    assert_holds(answer_to(&r, buffer_text(&text)), "HTTP/1.1 431");
    end(&r);
    buffer_clear(&text);
    buffer_add_text(&text, "GET /");
    for (int i = 0; i < 40000; i++)
        buffer_add(&text, "x", 1);
    assert_holds(answer_to(&r, buffer_text(&text)), "HTTP/1.1 431"); /* before its end is there */
    end(&r);
    assert_holds(answer_to(&r, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n"),
                 "HTTP/1.1 413");
    end(&r);
    buffer_clear(&text);
    buffer_add_text(&text,
                    "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n");
    for (int i = 0; i < 1001; i++)
        buffer_add(&text, "x", 1);
    assert_holds(answer_to(&r, buffer_text(&text)), "HTTP/1.1 413");
    end(&r);
    buffer_clear(&text);
    buffer_add_text(&text, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;");
    for (int i = 0; i < 20000; i++)
        buffer_add(&text, "e", 1);
    buffer_add_text(&text, "\r\nx\r\n");
    assert_holds(answer_to(&r, buffer_text(&text)), "more framing than content");
    end(&r);
    buffer_release(&text);
}

static void other_protocols_get_no_answer(void **state)
{
    (void)state;
    run r;
    assert_string_equal(answer_to(&r, "INVALID CONNECTION PREFACE\r\n\r\n"), "");
    assert_int_equal(r.c->table->wait(r.c), CODEC_CLOSE);
    end(&r);
    answer_to(&r, "\x16\x03\x01\x02\x00\x01");
    assert_int_equal(r.c->table->wait(r.c), CODEC_CLOSE);
    end(&r);
}

static void continue_is_said_when_it_is_expected(void **state)
{
    (void)state;
    run r;
    const char *out = answer_to(
        &r, "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    assert_string_equal(out, "HTTP/1.1 100 Continue\r\n\r\n");
    feed(&r, "hi", 2);
    assert_holds(buffer_text(&r.out), "POST / 2");
    end(&r);
    assert_holds(
        answer_to(&r, "POST / HTTP/1.1\r\nHost: x\r\nExpect: a-pony\r\nContent-Length: 2\r\n\r\n"),
        "HTTP/1.1 417");
    end(&r);
}

static void head_has_no_body_and_old_clients_are_told_by_the_end(void **state)
{
    (void)state;
    run r;
    const char *out = answer_to(&r, "HEAD /h HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_holds(out, "content-length: ");
    assert_null(strstr(out, "HEAD /h"));
    end(&r);
    assert_holds(answer_to(&r, "GET / HTTP/1.0\r\n\r\n"), "connection: close");
    end(&r);
    begin(&r);
    r.e.holds = 1;
    feed(&r, "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 43);
    exchange *x = r.e.held;
    exchange_begin(x, 200, -1);
    exchange_write(x, "abc", 3);
    exchange_end(x);
    r.c->table->pull(r.c, &r.out, 65536);
    assert_null(strstr(buffer_text(&r.out), "chunked"));
    assert_holds(buffer_text(&r.out), "\r\n\r\nabc");
    assert_int_equal(r.c->table->wait(r.c), CODEC_CLOSE);
    end(&r);
}

static void a_stream_is_sent_in_chunks_and_waiting_requests_wait(void **state)
{
    (void)state;
    run r;
    begin(&r);
    r.e.holds = 1;
    static const char two[] =
        "GET /1 HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\n";
    feed(&r, two, sizeof two - 1);
    exchange *x = r.e.held;
    assert_string_equal(x->path, "/1");
    assert_int_equal(r.e.completes, 1);
    assert_int_equal(r.c->table->wait(r.c), CODEC_BUSY);
    exchange_begin(x, 200, -1);
    exchange_write(x, "one", 3);
    exchange_write(x, "three", 5);
    exchange_end(x);
    assert_int_equal(r.e.completes, 2);
    assert_string_equal(r.e.held->path, "/2");
    echo_answer(r.e.held);
    r.c->table->pull(r.c, &r.out, 65536);
    assert_holds(buffer_text(&r.out), "\r\n\r\n3\r\none\r\n5\r\nthree\r\n0\r\n\r\nHTTP/1.1 200");
    end(&r);
}

static void a_client_that_sends_faster_than_it_is_answered_is_held_back(void **state)
{
    (void)state;
    run r;
    begin(&r);
    r.e.holds = 1;
    char block[4096];
    memset(block, 'x', sizeof block);
    feed(&r, "GET /1 HTTP/1.1\r\nHost: x\r\n\r\n", 28);
    int blocks = 0;
    while (r.c->table->wants_input(r.c) && blocks < 1000) {
        feed(&r, block, sizeof block);
        blocks++;
    }
    assert_in_range(blocks, 1, 20);
    end(&r);
}

static void who_closes_cancels(void **state)
{
    (void)state;
    run r;
    begin(&r);
    r.e.holds = 1;
    feed(&r, "GET /1 HTTP/1.1\r\nHost: x\r\n\r\n", 28);
    exchange *x = exchange_retain(r.e.held);
    end(&r);
    assert_int_equal(r.e.cancels, 1);
    assert_int_equal(r.e.overs, 1);
    exchange_reply(x, 200, "text/plain", "late", 4); /* dropped */
    assert_true(exchange_is_over(x));
    exchange_release(x);
}

static void draining_closes_after_the_answer(void **state)
{
    (void)state;
    run r;
    begin(&r);
    r.e.holds = 1;
    feed(&r, "GET /1 HTTP/1.1\r\nHost: x\r\n\r\n", 28);
    r.c->table->drain(r.c);
    assert_int_equal(r.c->table->wait(r.c), CODEC_BUSY);
    echo_answer(r.e.held);
    r.c->table->pull(r.c, &r.out, 65536);
    assert_holds(buffer_text(&r.out), "connection: close");
    assert_int_equal(r.c->table->wait(r.c), CODEC_CLOSE);
    end(&r);
    begin(&r);
    r.c->table->drain(r.c);
    assert_int_equal(r.c->table->wait(r.c), CODEC_CLOSE);
    end(&r);
}

/* Small requests with larger answers that nobody reads must not gather. */
static void requests_wait_while_answers_are_not_read(void **state)
{
    (void)state;
    static const char text[] = "GET /x HTTP/1.1\r\nHost: x\r\n\r\n";
    run r;
    begin(&r);
    int asked = 0;
    for (; asked < 100000 && r.c->table->wants_input(r.c); asked++)
        r.c->table->feed(r.c, text, sizeof text - 1);
    assert_true(asked < 10000 && r.e.completes < asked);
    for (size_t before = SIZE_MAX; before != r.out.size;) {
        before = r.out.size;
        r.c->table->pull(r.c, &r.out, 65536);
        assert_true(before == SIZE_MAX || r.out.size - before < 2 * EXCHANGE_HIGH);
    }
    assert_int_equal(r.e.completes, asked);
    assert_true(r.c->table->wants_input(r.c));
    end(&r);
}

static void query_values_are_decoded(void **state)
{
    (void)state;
    run r;
    begin(&r);
    r.e.holds = 1;
    static const char text[] = "GET /x?a=1&bc=x%20y+z&d HTTP/1.1\r\nHost: x\r\n\r\n";
    feed(&r, text, sizeof text - 1);
    assert_string_equal(exchange_query_get(r.e.held, "a"), "1");
    assert_string_equal(exchange_query_get(r.e.held, "bc"), "x y z");
    assert_string_equal(exchange_query_get(r.e.held, "d"), "");
    assert_null(exchange_query_get(r.e.held, "b"));
    assert_string_equal(exchange_decode(r.e.held, "a%2Fb+%zz"), "a/b+%zz");
    echo_answer(r.e.held);
    end(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_pieces_give_the_same),
        cmocka_unit_test(absolute_targets_are_taken),
        cmocka_unit_test(headers_are_lower_case_and_trimmed),
        cmocka_unit_test(what_could_be_smuggled_is_refused),
        cmocka_unit_test(malformed_chunks_are_refused),
        cmocka_unit_test(sizes_are_limited),
        cmocka_unit_test(other_protocols_get_no_answer),
        cmocka_unit_test(continue_is_said_when_it_is_expected),
        cmocka_unit_test(head_has_no_body_and_old_clients_are_told_by_the_end),
        cmocka_unit_test(a_stream_is_sent_in_chunks_and_waiting_requests_wait),
        cmocka_unit_test(a_client_that_sends_faster_than_it_is_answered_is_held_back),
        cmocka_unit_test(who_closes_cancels),
        cmocka_unit_test(draining_closes_after_the_answer),
        cmocka_unit_test(requests_wait_while_answers_are_not_read),
        cmocka_unit_test(query_values_are_decoded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
