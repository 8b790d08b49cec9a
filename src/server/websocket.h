/* server/websocket.h: the server's end of one WebSocket (RFC 6455, with permessage-deflate): bytes in, messages out,
 * and back. What messages mean is the codec's (codec_websocket.c); the handshake is api_websocket.c's.
 *
 * wslay reads and writes frames. Messages, control frames and closing are done here: wslay's own layer for them reads a
 * reason for closing wrongly when it comes in two pieces, and takes a close of one byte for a good one.
 *
 *             a close frame comes, or is sent (websocket_shut, or the client broke a rule)
 *     OPEN --------------------------------------------------------------------------------> OVER
 *
 * In OVER the last frame in `out` is our close, what is fed is dropped and what is sent too: nothing is left to do but
 * to write `out` and close the socket. Owns no socket and reads no clock but websocket_tick's. Net thread.
 *
 * Invariants (websocket_assert):
 *   W1  message is empty unless a message has begun, and never over message_bytes
 *   W2  of a text, message[0..checked) is whole characters of UTF-8
 *   W3  n_control is 0 outside of a control frame */
#ifndef REALM_SERVER_WEBSOCKET_H
#define REALM_SERVER_WEBSOCKET_H

#include "server/websocket_deflate.h"

typedef struct websocket websocket;

typedef enum websocket_code {
    WEBSOCKET_NORMAL = 1000,
    WEBSOCKET_GOING_AWAY = 1001,
    WEBSOCKET_PROTOCOL = 1002,
    WEBSOCKET_UNSUPPORTED = 1003,
    WEBSOCKET_NO_CODE = 1005,
    WEBSOCKET_NOT_UTF8 = 1007,
    WEBSOCKET_POLICY = 1008,
    WEBSOCKET_TOO_BIG = 1009,
    WEBSOCKET_INTERNAL = 1011,
} websocket_code;

typedef struct websocket_options {
    websocket_deflate_terms deflate;
    size_t message_bytes; /* the largest message, inflated */
    int32_t message_ms;   /* without CODEC_LEAST_BODY of one that has begun */
    int32_t
        ping_ms; /* after so long without a byte it is pinged; after three times that it is over */
    /* A whole message; texts are UTF-8. Borrowed for the call, which may send and shut, but not feed or close. */
    void (*on_message)(void *context, int is_text, const char *data, size_t size);
    void *context;
} websocket_options;

/* NULL: memory is out. */
websocket *websocket_open(const websocket_options *options);
void websocket_close(websocket *w);

void websocket_feed(websocket *w, const void *data, size_t size);
/* Appends a message to what is to be written. */
void websocket_send(websocket *w, int is_text, const void *data, size_t size);
/* Sends a close frame; reason: at most 123 bytes of UTF-8. */
void websocket_shut(websocket *w, websocket_code code, const char *reason);
/* About once a second: pings, gives up, refills what control frames draw on. */
void websocket_tick(websocket *w, uint64_t now_ns);

int websocket_is_over(const websocket *w);
/* Why it is over: the code of whoever closed first. 0 while it is not. */
int websocket_over_code(const websocket *w);
/* What is to be written; the caller takes from it as it likes. */
buffer *websocket_out(websocket *w);
/* Of messages that begin from now on. */
void websocket_set_limit(websocket *w, size_t message_bytes);
/* Nothing will be sent for a while: gives memory back. */
void websocket_rest(websocket *w);

void websocket_assert(const websocket *w);

#endif
