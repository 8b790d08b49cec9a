/* tests/unit/server/websocket_test.c: RFC 6455 and 7692 against an end that sends back every message, by the groups of
 * the well-known list of conformance cases. Every script of frames is fed whole, by the byte and in random pieces, and
 * has to give the same answer each time; compression is checked with zlib as the client. */
#include "unit/unit.h"

#include "base/rng.h"
#include "server/codec.h"
#include "server/websocket.h"

enum { CONTINUATION = 0, TEXT = 1, BINARY = 2, CLOSE = 8, PING = 9, PONG = 10 };

#define FIN  0x80
#define RSV1 0x40

typedef struct run {
    websocket *w;
    size_t limit;
    websocket_deflate_terms terms;
    buffer in;  /* the client's frames */
    buffer log; /* what came back, a word a frame: "text:5:hello", "close:1000" */
    int messages;
} run;

static void on_message(void *context, int is_text, const char *data, size_t size)
{
    run *r = context;
    r->messages++;
    websocket_send(r->w, is_text, data, size);
}

static void begin(run *r)
{
    *r = (run){.limit = (size_t)16 << 20};
    buffer_init(&r->in, SIZE_MAX);
    buffer_init(&r->log, SIZE_MAX);
}

static void open_end(run *r)
{
    const websocket_options options = {.deflate = r->terms,
                                       .message_bytes = r->limit,
                                       .message_ms = 30000,
                                       .ping_ms = 30000,
                                       .on_message = on_message,
                                       .context = r};
    r->messages = 0;
    r->w = websocket_open(&options);
    assert_non_null(r->w);
}

static void end(run *r)
{
    buffer_release(&r->in);
    buffer_release(&r->log);
}

/* ---- the client ---- */

static void add_byte(buffer *to, int byte)
{
    char c = (char)byte;
    buffer_add(to, &c, 1);
}

/* A frame with its length in the form of so many bytes (1, 3 or 9), masked. */
static void add_frame_as(run *r, int first, int form, const void *data, size_t size)
{
    static const uint8_t mask[4] = {0x37, 0xfa, 0x21, 0x3d};
    const uint8_t *bytes = data;
    add_byte(&r->in, first);
    add_byte(&r->in, 0x80 | (form == 1 ? (int)size : form == 3 ? 126 : 127));
    for (int i = form - 2; i >= 0; i--)
        add_byte(&r->in, (int)((uint64_t)size >> (8 * i)));
    buffer_add(&r->in, mask, 4);
    buffer_reserve(&r->in, size);
    for (size_t i = 0; i < size; i++)
        r->in.data[r->in.size++] = (char)(bytes[i] ^ mask[i % 4]);
}

static void add_frame(run *r, int first, const void *data, size_t size)
{
    add_frame_as(r, first, size < 126 ? 1 : size < 65536 ? 3 : 9, data, size);
}

static void add_text(run *r, int first, const char *text)
{
    add_frame(r, first, text, strlen(text));
}

/* Appends words for what the server wrote. */
static void read_frames(run *r)
{
    static const char *const names[16] = {"more", "text", "binary", 0,      0,     0,
                                          0,      0,      "close",  "ping", "pong"};
    buffer *out = websocket_out(r->w);
    const uint8_t *at = (const uint8_t *)out->data, *stop = at + out->size;
    while (at < stop) {
        int first = at[0];
        uint64_t size = at[1];
        int form = size == 126 ? 2 : size == 127 ? 8 : 0;
        assert_true(size < 128); /* a server does not mask */
        for (int i = 0; form && i < form; i++)
            size = (i ? size << 8 : 0) | at[2 + i];
        at += 2 + form;
        assert_true((uint64_t)(stop - at) >= size);
        assert_true(first & FIN);
        buffer_printf(&r->log, "%s%s%s", r->log.size ? " " : "", first & RSV1 ? "packed-" : "",
                      names[first & 15]);
        if ((first & 15) == CLOSE && size)
            buffer_printf(&r->log, ":%d", at[0] << 8 | at[1]);
        else if ((first & 15) != CLOSE)
            buffer_printf(&r->log, ":%d:%.*s", (int)size, (int)(size < 40 ? size : 40), at);
        at += size;
    }
    buffer_clear(out);
}

static void feed_pieces(run *r, size_t most, rng *random)
{
    for (size_t at = 0; at < r->in.size;) {
        size_t part = most == 1 ? 1 : most ? 1 + rng_next(random) % most : r->in.size;
        if (part > r->in.size - at)
            part = r->in.size - at;
        websocket_feed(r->w, r->in.data + at, part);
        at += part;
    }
    read_frames(r);
    websocket_close(r->w);
}

/* Feeds what was added in all ways and compares the answer's words. */
static void check(run *r, const char *wanted)
{
    static const size_t ways[] = {0, 1, 2, 7, 4000};
    rng random;
    rng_init(&random, 7);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        buffer_clear(&r->log);
        open_end(r);
        feed_pieces(r, ways[i], &random);
        if (strcmp(buffer_text(&r->log), wanted) != 0)
            fail_msg("in pieces of %zu: \"%s\", not \"%s\"", ways[i], buffer_text(&r->log), wanted);
    }
    end(r);
}

/* ---- framing ---- */

static void lengths_of_all_forms_come_back(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, 1, 125, 126, 127, 128, 65535, 65536, 70000};
    char *text = malloc(70000);
    memset(text, '*', 70000);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int opcode = TEXT; opcode <= BINARY; opcode++) {
            run r;
            char wanted[100];
            begin(&r);
            add_frame(&r, FIN | opcode, text, sizes[i]);
            snprintf(wanted, sizeof wanted, "%s:%zu:%.*s", opcode == TEXT ? "text" : "binary",
                     sizes[i], (int)(sizes[i] < 40 ? sizes[i] : 40), text);
            check(&r, wanted);
        }
    free(text);
}

static void lengths_in_too_long_a_form_are_refused(void **state)
{
    (void)state;
    static const struct {
        int form;
        size_t size;
    } cases[] = {{3, 125}, {3, 0}, {9, 125}, {9, 126}, {9, 65535}};
    char text[65536] = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        run r;
        begin(&r);
        add_frame_as(&r, FIN | BINARY, cases[i].form, text, cases[i].size);
        check(&r, "close:1002");
    }
    run r;
    begin(&r);
    static const char negative[] = "\x82\xff\x80\0\0\0\0\0\0\x01....x";
    buffer_add(&r.in, negative, sizeof negative - 1);
    check(&r, "close:1002");
}

static void frames_must_be_masked(void **state)
{
    (void)state;
    run r;
    begin(&r);
    buffer_add(&r.in, "\x81\x05hello", 7);
    check(&r, "close:1002");
}

static void pings_are_answered_and_pongs_are_not(void **state)
{
    (void)state;
    char long_one[126];
    memset(long_one, 'p', sizeof long_one);
    run r;
    begin(&r);
    add_text(&r, FIN | PING, "");
    add_text(&r, FIN | PING, "hello");
    add_frame(&r, FIN | PING, "\0\xff\xfe", 3);
    add_text(&r, FIN | PONG, "nobody asked");
    add_frame(&r, FIN | PING, long_one, 125);
    add_text(&r, FIN | TEXT, "x");
    check(&r, "pong:0: pong:5:hello pong:3: pong:125:pppppppppppppppppppppppppppppppppppppppp "
              "text:1:x");
    begin(&r);
    add_frame(&r, FIN | PING, long_one, 126);
    check(&r, "close:1002");
    begin(&r);
    add_text(&r, PING, "not final");
    check(&r, "close:1002");
}

static void reserved_bits_and_opcodes_are_refused(void **state)
{
    (void)state;
    static const int opcodes[] = {TEXT, BINARY, PING, PONG, CLOSE};
    run r;
    for (int bits = 1; bits < 8; bits++)
        for (size_t i = 0; i < sizeof opcodes / sizeof *opcodes; i++) {
            begin(&r);
            add_text(&r, FIN | TEXT, "before");
            add_text(&r, FIN | bits << 4 | opcodes[i], "x");
            add_text(&r, FIN | PING, "after");
            check(&r, "text:6:before close:1002");
        }
    for (int opcode = 3; opcode < 16; opcode++) {
        if (opcode >= CLOSE && opcode <= PONG)
            continue;
        for (int size = 0; size < 2; size++) {
            begin(&r);
            add_frame(&r, FIN | opcode, "x", (size_t)size);
            check(&r, "close:1002");
            begin(&r);
            add_text(&r, TEXT, "first ");
            add_frame(&r, FIN | opcode, "x", (size_t)size);
            check(&r, "close:1002");
        }
    }
}

/* ---- fragments ---- */

static void fragments_make_one_message(void **state)
{
    (void)state;
    run r;
    begin(&r);
    add_text(&r, TEXT, "fragment1 ");
    add_text(&r, FIN | CONTINUATION, "fragment2");
    add_text(&r, BINARY, "");
    add_text(&r, CONTINUATION, "");
    add_text(&r, FIN | CONTINUATION, "");
    add_text(&r, TEXT, "");
    add_text(&r, CONTINUATION, "middle");
    add_text(&r, FIN | CONTINUATION, "");
    check(&r, "text:19:fragment1 fragment2 binary:0: text:6:middle");
}

static void control_frames_may_come_between_fragments(void **state)
{
    (void)state;
    run r;
    begin(&r);
    add_text(&r, TEXT, "a");
    add_text(&r, FIN | PING, "one");
    add_text(&r, CONTINUATION, "b");
    add_text(&r, FIN | PONG, "two");
    add_text(&r, CONTINUATION, "c");
    add_text(&r, FIN | PING, "");
    add_text(&r, FIN | CONTINUATION, "d");
    add_text(&r, FIN | TEXT, "next");
    check(&r, "pong:3:one pong:0: text:4:abcd text:4:next");
    begin(&r);
    add_text(&r, TEXT, "a");
    add_frame(&r, FIN | CLOSE, "\x03\xe8", 2);
    add_text(&r, FIN | CONTINUATION, "b");
    check(&r, "close:1000");
}

static void fragments_out_of_place_are_refused(void **state)
{
    (void)state;
    run r;
    for (int final = 0; final <= FIN; final += FIN) {
        begin(&r);
        add_text(&r, final | CONTINUATION, "nothing began");
        add_text(&r, FIN | TEXT, "x");
        check(&r, "close:1002");
        begin(&r);
        add_text(&r, FIN | TEXT, "whole");
        add_text(&r, final | CONTINUATION, "x");
        check(&r, "text:5:whole close:1002");
        begin(&r);
        add_text(&r, TEXT, "a");
        add_text(&r, final | TEXT, "b");
        check(&r, "close:1002");
    }
}

/* ---- UTF-8 ---- */

static const char *const good_texts[] = {
    "Hello-\xc2\xb5@\xc3\x9f\xc3\xb6\xc3\xa4\xc3\xbc\xc3\xa0\xc3\xa1-UTF-8!!",
    "\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5",
    "\x7f",
    "\xc2\x80",
    "\xdf\xbf",
    "\xe0\xa0\x80",
    "\xef\xbf\xbf",
    "\xed\x9f\xbf",
    "\xee\x80\x80",
    "\xef\xbf\xbd",
    "\xf0\x90\x80\x80",
    "\xf4\x8f\xbf\xbf",
};

static const char *const bad_texts[] = {
    "\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80"
    "edited",
    "\xf8\x88\x80\x80\x80",
    "\xfc\x84\x80\x80\x80\x80",
    "\xf7\xbf\xbf\xbf",
    "\xfb\xbf\xbf\xbf\xbf",
    "\xf4\x90\x80\x80",
    "\x80",
    "\xbf",
    "\x80\xbf\x80\xbf",
    "\xc0 \xc1 ",
    "\xe0 ",
    "\xf0 ",
    "\xc0\xaf",
    "\xe0\x80\xaf",
    "\xf0\x80\x80\xaf",
    "\xc1\xbf",
    "\xe0\x9f\xbf",
    "\xf0\x8f\xbf\xbf",
    "\xed\xa0\x80",
    "\xed\xad\xbf",
    "\xed\xbf\xbf",
    "\xed\xa0\x80\xed\xb0\x80",
    "\xfe",
    "\xff",
    /* proper so far, but not at an end */
    "\xce",
    "\xe1\xbd",
    "\xf0\x90\x80",
    "12345678\xf0\x90\x80",
};

/* As one frame, and a fragment a byte. */
static void add_both(run *r, const char *text, int by_byte)
{
    size_t size = strlen(text);
    if (!by_byte) {
        add_text(r, FIN | TEXT, text);
        return;
    }
    for (size_t i = 0; i < size; i++)
        add_frame(r, (i + 1 == size ? FIN : 0) | (i ? CONTINUATION : TEXT), text + i, 1);
}

static void texts_are_utf8_however_they_are_cut(void **state)
{
    (void)state;
    run r;
    for (int by_byte = 0; by_byte < 2; by_byte++) {
        for (size_t i = 0; i < sizeof good_texts / sizeof *good_texts; i++) {
            char wanted[100];
            begin(&r);
            add_both(&r, good_texts[i], by_byte);
            snprintf(wanted, sizeof wanted, "text:%zu:%s", strlen(good_texts[i]), good_texts[i]);
            check(&r, wanted);
        }
        for (size_t i = 0; i < sizeof bad_texts / sizeof *bad_texts; i++) {
            begin(&r);
            add_both(&r, bad_texts[i], by_byte);
            check(&r, "close:1007");
            begin(&r);
            add_frame(&r, FIN | BINARY, bad_texts[i], strlen(bad_texts[i]));
            add_text(&r, FIN | TEXT, "x");
            char wanted[100];
            snprintf(wanted, sizeof wanted, "binary:%zu:%s text:1:x", strlen(bad_texts[i]),
                     bad_texts[i]);
            check(&r, wanted);
        }
    }
}

/* The rest of the message, even of the frame, never comes. */
static void a_wrong_byte_ends_it_at_once(void **state)
{
    (void)state;
    run r;
    begin(&r);
    add_text(&r, TEXT, "\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5");
    add_text(&r, CONTINUATION, "\xf4\x90");
    check(&r, "close:1007");
    begin(&r);
    add_text(&r, FIN | TEXT,
             "0123456789\xed\xa0"
             "01234567890123456789");
    r.in.size -= 20;
    check(&r, "close:1007");
    begin(&r); /* a character may go on in the next fragment */
    add_text(&r, TEXT, "\xf4\x8f");
    add_text(&r, FIN | PING, "");
    add_text(&r, FIN | CONTINUATION, "\xbf\xbf");
    check(&r, "pong:0: text:4:\xf4\x8f\xbf\xbf");
}

/* ---- closing ---- */

static void add_close(run *r, int code, const char *reason)
{
    char payload[200] = {(char)(code >> 8), (char)code};
    memcpy(payload + 2, reason, strlen(reason));
    add_frame(r, FIN | CLOSE, payload, strlen(reason) + 2);
}

static void closes_are_answered_with_their_code(void **state)
{
    (void)state;
    static const int good[] = {1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010,
                               1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999};
    static const int bad[] = {0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535};
    run r;
    char wanted[40];
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        begin(&r);
        add_close(&r, good[i], "goodbye \xe2\x82\xac");
        add_text(&r, FIN | TEXT, "nobody reads this");
        add_text(&r, FIN | PING, "nor this");
        snprintf(wanted, sizeof wanted, "close:%d", good[i]);
        check(&r, wanted);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        begin(&r);
        add_close(&r, bad[i], "");
        check(&r, "close:1002");
    }
    begin(&r);
    add_text(&r, FIN | CLOSE, "");
    add_text(&r, FIN | CLOSE, "");
    check(&r, "close");
    begin(&r);
    add_text(&r, FIN | CLOSE, "x");
    check(&r, "close:1002");
}

static void reasons_are_utf8_of_at_most_123_bytes(void **state)
{
    (void)state;
    char reason[125];
    memset(reason, 'r', sizeof reason - 1);
    run r;
    begin(&r);
    reason[123] = 0;
    add_close(&r, 1000, reason);
    check(&r, "close:1000");
    begin(&r);
    reason[123] = 'r';
    reason[124] = 0;
    add_close(&r, 1000, reason);
    check(&r, "close:1002");
    begin(&r);
    add_close(&r, 1000, "\xce\xba\xed\xa0\x80");
    check(&r, "close:1007");
}

static void our_own_close_says_why_and_is_the_last_frame(void **state)
{
    (void)state;
    run r;
    begin(&r);
    open_end(&r);
    websocket_shut(r.w, WEBSOCKET_GOING_AWAY, "home");
    websocket_send(r.w, 1, "too late", 8);
    websocket_shut(r.w, WEBSOCKET_NORMAL, "again");
    assert_int_equal(websocket_over_code(r.w), 1001);
    add_text(&r, FIN | TEXT, "x");
    websocket_feed(r.w, r.in.data, r.in.size);
    assert_memory_equal(websocket_out(r.w)->data, "\x88\x06\x03\xe9home", 8);
    assert_int_equal(websocket_out(r.w)->size, 8);
    assert_int_equal(r.messages, 0);
    websocket_close(r.w);
    end(&r);
}

/* ---- limits ---- */

static void sixteen_mebibytes_pass_and_a_byte_more_does_not(void **state)
{
    (void)state;
    size_t most = (size_t)16 << 20;
    char *text = malloc(most + 1);
    memset(text, 'm', most + 1);
    rng random;
    rng_init(&random, 3);
    for (size_t pieces = 0; pieces <= 65536; pieces += 65536)
        for (int over = 0; over < 2; over++)
            for (int fragments = 0; fragments < 2; fragments++) {
                run r;
                begin(&r);
                size_t size = most + (size_t)over, first = fragments ? size / 3 : size;
                add_frame(&r, (fragments ? 0 : FIN) | TEXT, text, first);
                if (fragments)
                    add_frame(&r, FIN | CONTINUATION, text + first, size - first);
                open_end(&r);
                feed_pieces(&r, pieces, &random);
                assert_string_equal(
                    buffer_text(&r.log),
                    over ? "close:1009" : "text:16777216:mmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmm");
                end(&r);
            }
    free(text);
}

static void a_length_over_the_limit_is_refused_before_its_bytes_come(void **state)
{
    (void)state;
    run r;
    begin(&r);
    static const char head[] = "\x82\xff\0\0\x7f\xff\xff\xff\xff\xff....x";
    buffer_add(&r.in, head, sizeof head - 1);
    check(&r, "close:1009");
}

static void frames_that_say_nothing_end_it_when_there_are_too_many(void **state)
{
    (void)state;
    run r;
    begin(&r);
    for (int i = 0; i < 1001; i++)
        add_text(&r, FIN | PING, "");
    open_end(&r);
    websocket_feed(r.w, r.in.data, r.in.size);
    assert_int_equal(websocket_over_code(r.w), WEBSOCKET_POLICY);
    websocket_close(r.w);
    end(&r);
    begin(&r);
    add_text(&r, TEXT, "a");
    for (int i = 0; i < 1001; i++)
        add_text(&r, CONTINUATION, "");
    check(&r, "close:1008");
}

static void time_refills_what_pings_draw_on(void **state)
{
    (void)state;
    run r;
    begin(&r);
    for (int i = 0; i < 200; i++)
        add_text(&r, FIN | PING, "");
    open_end(&r);
    for (uint64_t second = 1; second < 100; second++) {
        websocket_feed(r.w, r.in.data, r.in.size);
        websocket_tick(r.w, second * 1000000000u);
        buffer_clear(websocket_out(r.w));
    }
    assert_false(websocket_is_over(r.w));
    websocket_close(r.w);
    end(&r);
}

/* ---- time ---- */

static void who_says_nothing_is_pinged_and_then_given_up(void **state)
{
    (void)state;
    run r;
    begin(&r);
    open_end(&r);
    int pings = 0, second = 1;
    for (; second < 1000 && !websocket_is_over(r.w); second++) {
        websocket_tick(r.w, (uint64_t)second * 1000000000u);
        if (!websocket_is_over(r.w))
            pings += websocket_out(r.w)->size != 0;
        else
            read_frames(&r);
        buffer_clear(websocket_out(r.w));
        if (second == 60) { /* a pong is a word */
            add_text(&r, FIN | PONG, "");
            websocket_feed(r.w, r.in.data, r.in.size);
        }
    }
    assert_int_equal(pings, 2);
    assert_int_equal(second, 61 + 90 + 2);
    assert_string_equal(buffer_text(&r.log), "close:1001");
    websocket_close(r.w);
    end(&r);
}

static void a_message_that_trickles_is_ended(void **state)
{
    (void)state;
    char text[4000];
    memset(text, 't', sizeof text);
    run r;
    begin(&r);
    add_frame(&r, FIN | TEXT, text, sizeof text);
    for (size_t speed = 10; speed <= 1000; speed *= 10) { /* bytes a second */
        open_end(&r);
        size_t at = 0;
        for (uint64_t second = 1; at < r.in.size && !websocket_is_over(r.w); second++) {
            size_t part = speed < r.in.size - at ? speed : r.in.size - at;
            websocket_feed(r.w, r.in.data + at, part);
            websocket_tick(r.w, second * 1000000000u);
            at += part;
        }
        assert_int_equal(websocket_over_code(r.w), speed == 10 ? WEBSOCKET_POLICY : 0);
        websocket_close(r.w);
    }
    end(&r);
}

/* ---- compression ---- */

static const struct {
    const char *offer, *answer; /* NULL: none */
} offers[] = {
    {"permessage-deflate", "permessage-deflate; client_no_context_takeover"},
    {"permessage-deflate; client_max_window_bits", "permessage-deflate; client_max_window_bits=11"},
    {"permessage-deflate; client_max_window_bits=9",
     "permessage-deflate; client_max_window_bits=9"},
    {"permessage-deflate; client_max_window_bits=15; server_max_window_bits=9",
     "permessage-deflate; server_max_window_bits=9; client_max_window_bits=11"},
    {"permessage-deflate;server_no_context_takeover;client_no_context_takeover",
     "permessage-deflate; server_no_context_takeover; client_no_context_takeover"},
    {"permessage-deflate; server_max_window_bits=\"10\"; client_max_window_bits",
     "permessage-deflate; server_max_window_bits=10; client_max_window_bits=11"},
    {"permessage-deflate; server_max_window_bits=15; client_max_window_bits=8",
     "permessage-deflate; server_max_window_bits=12; client_max_window_bits=8"},
    /* the first that can be kept */
    {"permessage-deflate; server_max_window_bits=8, permessage-deflate; client_max_window_bits",
     "permessage-deflate; client_max_window_bits=11"},
    {"x-webkit-deflate-frame, permessage-deflate",
     "permessage-deflate; client_no_context_takeover"},
    {"permessage-deflate; server_max_window_bits=8", NULL},
    {"permessage-deflate; server_max_window_bits=16", NULL},
    {"permessage-deflate; server_max_window_bits=09", NULL},
    {"permessage-deflate; server_max_window_bits", NULL},
    {"permessage-deflate; client_max_window_bits=7", NULL},
    {"permessage-deflate; client_max_window_bits; client_max_window_bits", NULL},
    {"permessage-deflate; server_no_context_takeover=1", NULL},
    {"permessage-deflate; server_no_context_takeover; server_no_context_takeover", NULL},
    {"permessage-deflate; something", NULL},
    {"permessage-deflate; client_max_window_bits=\"10", NULL},
    {"permessage-deflate client_max_window_bits", NULL},
    {"permessage-bzip2", NULL},
    {"=", NULL},
    {",", NULL},
    {"", NULL},
};

static void offers_are_taken_as_rfc_7692_says(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof offers / sizeof *offers; i++) {
        websocket_deflate_terms terms;
        char answer[160] = "";
        int agreed = websocket_deflate_agree(&terms, offers[i].offer, answer, sizeof answer);
        assert_int_equal(agreed, terms.agreed);
        if (agreed != (offers[i].answer != NULL) ||
            (agreed && strcmp(answer, offers[i].answer) != 0))
            fail_msg("'%s': '%s'", offers[i].offer, answer);
    }
    websocket_deflate_terms terms;
    assert_int_equal(websocket_deflate_agree(&terms, NULL, NULL, 0), 0);
}

/* zlib as the client of what was agreed. */
typedef struct packer {
    z_stream out, in;
    websocket_deflate_terms terms;
} packer;

static void open_packer(packer *p, const websocket_deflate_terms *terms)
{
    *p = (packer){.terms = *terms};
    assert_int_equal(deflateInit2(&p->out, 6, Z_DEFLATED, -terms->client_bits, 8, 0), Z_OK);
    assert_int_equal(inflateInit2(&p->in, -terms->server_bits), Z_OK);
}

static void close_packer(packer *p)
{
    deflateEnd(&p->out);
    inflateEnd(&p->in);
}

static void pack(packer *p, const char *text, size_t size, buffer *to)
{
    buffer_clear(to);
    if (!size) { /* RFC 7692, 7.2.3.6 */
        add_byte(to, 0);
        return;
    }
    buffer_reserve(to, size + size / 8 + 1000);
    p->out.next_in = (Bytef *)(uintptr_t)text;
    p->out.avail_in = (uInt)size;
    p->out.next_out = (Bytef *)to->data;
    p->out.avail_out = (uInt)to->capacity;
    assert_int_equal(deflate(&p->out, Z_SYNC_FLUSH), Z_OK);
    to->size = to->capacity - p->out.avail_out - 4;
    if (p->terms.client_forgets)
        deflateReset(&p->out);
}

/* The one frame that the server wrote, unpacked. */
static void unpack(packer *p, buffer *frame, buffer *to)
{
    const uint8_t *at = (const uint8_t *)frame->data;
    size_t head = (at[1] & 127) == 126 ? 4 : (at[1] & 127) == 127 ? 10 : 2;
    buffer_clear(to);
    if (!(at[0] & RSV1)) {
        buffer_add(to, at + head, frame->size - head);
        return;
    }
    buffer_add(frame, "\0\0\xff\xff", 4);
    buffer_reserve(to, 1 << 20);
    if (p->terms.server_forgets)
        inflateReset(&p->in);
    p->in.next_in = (Bytef *)frame->data + head;
    p->in.avail_in = (uInt)(frame->size - head);
    p->in.next_out = (Bytef *)to->data;
    p->in.avail_out = (uInt)to->capacity;
    assert_int_equal(inflate(&p->in, Z_SYNC_FLUSH), Z_OK);
    to->size = to->capacity - p->in.avail_out;
}

/* JSON-like, so that it compresses, with words of earlier messages. */
static void make_text(rng *random, char *text, size_t size)
{
    static const char *const words[] = {"{\"type\":\"delta\",", "\"id\":\"a\",", "Paris ", "is ",
                                        "\xe2\x82\xac ",        "0123456789 "};
    size_t at = 0;
    while (at < size) {
        const char *word = words[rng_next(random) % 6];
        size_t length = strlen(word);
        if (length > size - at || rng_next(random) % 8 == 0)
            text[at++] = (char)('a' + rng_next(random) % 26);
        else
            memcpy(text + at, word, length), at += length;
    }
}

static void compressed_messages_come_back(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, 16, 64, 256, 1024, 4096, 8192, 16384, 32768, 65536, 131072};
    char *text = malloc(131072);
    rng random;
    rng_init(&random, 11);
    for (size_t k = 0; k < sizeof offers / sizeof *offers; k++) {
        run r;
        begin(&r);
        char answer[160];
        if (!websocket_deflate_agree(&r.terms, offers[k].offer, answer, sizeof answer) ||
            strstr(offers[k].offer, "client_max_window_bits=8"))
            continue; /* our zlib cannot send by the latter */
        packer p;
        buffer packed, back;
        buffer_init(&packed, SIZE_MAX);
        buffer_init(&back, SIZE_MAX);
        open_packer(&p, &r.terms);
        open_end(&r);
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
            for (int pass = 0; pass < 6; pass++) {
                make_text(&random, text, sizes[i]);
                pack(&p, text, sizes[i], &packed);
                buffer_clear(&r.in);
                size_t cut = pass % 2 ? packed.size / 2 : packed.size;
                add_frame(&r, (cut == packed.size ? FIN : 0) | RSV1 | TEXT, packed.data, cut);
                if (cut != packed.size)
                    add_frame(&r, FIN | CONTINUATION, packed.data + cut, packed.size - cut);
                size_t step = pass == 2 ? 1 : r.in.size;
                for (size_t at = 0; at < r.in.size; at += step)
                    websocket_feed(r.w, r.in.data + at, step);
                assert_int_equal(websocket_over_code(r.w), 0);
                unpack(&p, websocket_out(r.w), &back);
                assert_int_equal(back.size, sizes[i]);
                assert_memory_equal(back.data, text, sizes[i]);
                buffer_clear(websocket_out(r.w));
                if (pass == 4)
                    websocket_rest(r.w); /* the server may begin anew at any time */
            }
        websocket_close(r.w);
        close_packer(&p);
        buffer_release(&packed);
        buffer_release(&back);
        end(&r);
    }
    free(text);
}

static void agree(run *r, const char *offer)
{
    char answer[160];
    assert_true(websocket_deflate_agree(&r->terms, offer, answer, sizeof answer));
}

static void short_deltas_shrink_when_the_context_is_kept(void **state)
{
    (void)state;
    static const char delta[] =
        "{\"type\":\"delta\",\"id\":\"a\",\"data\":{\"id\":\"chatcmpl-8f4e7cc87f6149fa8312ba64\"}}";
    run r;
    begin(&r);
    agree(&r, "permessage-deflate");
    open_end(&r);
    websocket_send(r.w, 1, delta, sizeof delta - 1);
    size_t first = websocket_out(r.w)->size;
    buffer_clear(websocket_out(r.w));
    websocket_send(r.w, 1, delta, sizeof delta - 1);
    assert_true(websocket_out(r.w)->size < first / 3);
    websocket_close(r.w);
    end(&r);
}

static void a_block_that_says_it_is_the_last_may_be_followed(void **state)
{
    (void)state;
    run r;
    begin(&r);
    agree(&r, "permessage-deflate; client_max_window_bits");
    /* RFC 7692, 7.2.3.4: "Hello" in a final block, and a byte of zero behind it; then with the context of the first
     * (7.2.3.2) */
    add_frame(&r, FIN | RSV1 | TEXT, "\xf3\x48\xcd\xc9\xc9\x07\x00\x00", 8);
    add_frame(&r, FIN | RSV1 | TEXT, "\xf2\x00\x11\x00\x00", 5);
    check(&r, "text:5:Hello text:5:Hello");
    begin(&r); /* 7.2.3.3: a block without compression; 7.2.3.5: two blocks in one message */
    agree(&r, "permessage-deflate; client_max_window_bits");
    add_frame(&r, FIN | RSV1 | TEXT, "\x00\x05\x00\xfa\xff\x48\x65\x6c\x6c\x6f\x00", 11);
    add_frame(&r, FIN | RSV1 | TEXT, "\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00", 13);
    check(&r, "text:5:Hello text:5:Hello");
}

static void what_is_not_deflate_is_refused(void **state)
{
    (void)state;
    run r;
    begin(&r);
    agree(&r, "permessage-deflate");
    add_text(&r, FIN | RSV1 | TEXT, "this is no deflate");
    check(&r, "close:1007");
    begin(&r); /* distance behind what this window holds */
    agree(&r, "permessage-deflate");
    add_frame(&r, FIN | RSV1 | TEXT, "\xf2\x00\x11\x00\x00", 5);
    check(&r, "close:1007");
    begin(&r); /* inflates to what is no UTF-8 */
    agree(&r, "permessage-deflate");
    add_frame(&r, FIN | RSV1 | TEXT, "\x00\x02\x00\xfd\xff\xed\xa0\x00", 8);
    check(&r, "close:1007");
    begin(&r);
    agree(&r, "permessage-deflate");
    add_text(&r, TEXT, "plain ");
    add_text(&r, FIN | RSV1 | CONTINUATION, "x");
    check(&r, "close:1002");
    begin(&r);
    agree(&r, "permessage-deflate");
    add_text(&r, FIN | RSV1 | PING, "x");
    check(&r, "close:1002");
    begin(&r);
    agree(&r, "permessage-deflate");
    add_text(&r, FIN | TEXT, "plain is fine");
    check(&r, "text:13:plain is fine");
}

/* A quarter of a gigabyte of zeros in a quarter of a megabyte, and 16 MiB in 16 KiB. */
static void a_bomb_ends_before_it_bursts(void **state)
{
    (void)state;
    for (size_t megabytes = 16; megabytes <= 256; megabytes *= 16) {
        z_stream z = {0};
        char *zeros = calloc(1, 1 << 20);
        run r;
        begin(&r);
        agree(&r, "permessage-deflate");
        assert_int_equal(deflateInit2(&z, 9, Z_DEFLATED, -15, 9, 0), Z_OK);
        buffer packed;
        buffer_init(&packed, SIZE_MAX);
        buffer_reserve(&packed, 1 << 20);
        z.next_out = (Bytef *)packed.data;
        z.avail_out = 1 << 20;
        for (size_t i = 0; i < megabytes; i++) {
            z.next_in = (Bytef *)zeros;
            z.avail_in = 1 << 20;
            assert_int_equal(deflate(&z, i + 1 == megabytes ? Z_SYNC_FLUSH : Z_NO_FLUSH), Z_OK);
        }
        packed.size = (1 << 20) - z.avail_out - 4;
        assert_true(packed.size < megabytes << 11);
        add_frame(&r, FIN | RSV1 | BINARY, packed.data, packed.size);
        check(&r, "close:1009");
        deflateEnd(&z);
        buffer_release(&packed);
        free(zeros);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lengths_of_all_forms_come_back),
        cmocka_unit_test(lengths_in_too_long_a_form_are_refused),
        cmocka_unit_test(frames_must_be_masked),
        cmocka_unit_test(pings_are_answered_and_pongs_are_not),
        cmocka_unit_test(reserved_bits_and_opcodes_are_refused),
        cmocka_unit_test(fragments_make_one_message),
        cmocka_unit_test(control_frames_may_come_between_fragments),
        cmocka_unit_test(fragments_out_of_place_are_refused),
        cmocka_unit_test(texts_are_utf8_however_they_are_cut),
        cmocka_unit_test(a_wrong_byte_ends_it_at_once),
        cmocka_unit_test(closes_are_answered_with_their_code),
        cmocka_unit_test(reasons_are_utf8_of_at_most_123_bytes),
        cmocka_unit_test(our_own_close_says_why_and_is_the_last_frame),
        cmocka_unit_test(sixteen_mebibytes_pass_and_a_byte_more_does_not),
        cmocka_unit_test(a_length_over_the_limit_is_refused_before_its_bytes_come),
        cmocka_unit_test(frames_that_say_nothing_end_it_when_there_are_too_many),
        cmocka_unit_test(time_refills_what_pings_draw_on),
        cmocka_unit_test(who_says_nothing_is_pinged_and_then_given_up),
        cmocka_unit_test(a_message_that_trickles_is_ended),
        cmocka_unit_test(offers_are_taken_as_rfc_7692_says),
        cmocka_unit_test(compressed_messages_come_back),
        cmocka_unit_test(short_deltas_shrink_when_the_context_is_kept),
        cmocka_unit_test(a_block_that_says_it_is_the_last_may_be_followed),
        cmocka_unit_test(what_is_not_deflate_is_refused),
        cmocka_unit_test(a_bomb_ends_before_it_bursts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
