/* tests/fuzz/fuzz_codec.c: any bytes as what a client sends, to the codec that FUZZ_CODEC names.
 *
 * Whole and in pieces they make the same requests; every exchange that was begun is over when the connection is; what
 * a client can have us keep for it is bounded by what it sent and by limits. The first byte of a WebSocket's input says
 * whether compression was agreed on and the credential is known; HTTP/1's and HTTP/2's is part of the bytes. */
#include "fuzz/fuzz.h"

#include <string.h>

#include "server/codec_websocket.h"
#include "unit/server/echo.h"

enum { HTTP1, HTTP2, WEBSOCKET };

/* An answer is a line and a head; refusals close. */
#define MOST_OUTPUT(size) (((size_t)64 << 10) + 2048 * (size))

static codec *open_codec(echo *e, int options)
{
    if (FUZZ_CODEC == HTTP1)
        return echo_open(e, &codec_http1);
    if (FUZZ_CODEC == HTTP2)
        return echo_open(e, &codec_http2);
    codec_websocket_options socket = {
        .common = {.sink = &e->sink, .limits = {.message_bytes = (size_t)256 << 10}},
        .is_known = options & 1};
    char answer[160];
    if (options & 2)
        websocket_deflate_agree(&socket.deflate, "permessage-deflate; client_max_window_bits",
                                answer, sizeof answer);
    return codec_websocket_open(&socket);
}

/* Feeds in pieces of at most step bytes (0: whole), as a connection would. */
static int run(echo *e, const uint8_t *data, size_t size, size_t step, int options)
{
    echo_init(e);
    codec *c = open_codec(e, options);
    promise(c != NULL, "a codec opens");
    buffer out;
    buffer_init(&out, SIZE_MAX);
    size_t total = 0;
    for (size_t at = 0; at < size;) {
        size_t part = step && step < size - at ? step : size - at;
        c->table->feed(c, data + at, part);
        at += part;
        c->table->pull(c, &out, 1 << 16);
        total += out.size;
        buffer_clear(&out);
        promise(total <= MOST_OUTPUT(size), "output is bounded by input");
    }
    int wait = c->table->wait(c);
    for (uint64_t second = 1; c->table->tick && second < 100; second += 31)
        c->table->tick(c, second * 1000000000u);
    c->table->pull(c, &out, 1 << 16);
    c->table->close(c);
    buffer_release(&out);
    promise(e->completes <= e->heads && e->overs >= e->heads, "every exchange is over");
    return wait;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static echo whole, pieces;
    int options = 0;
    if (FUZZ_CODEC == WEBSOCKET && size) {
        options = *data++;
        size--;
    }
    int wait = run(&whole, data, size, 0, options);
    for (size_t step = 1; step < size && step < 5000; step = step * 7 + 1) {
        int other = run(&pieces, data, size, step, options);
        if (FUZZ_CODEC == HTTP2) /* it counts frames by the clock */
            continue;
        promise(wait == other && whole.completes == pieces.completes &&
                    strcmp(whole.last, pieces.last) == 0,
                "pieces make the same requests");
    }
    return 0;
}
