/* server/websocket_deflate.h: permessage-deflate (RFC 7692) over zlib: what is agreed on, and a message through it.
 *
 * Memory is why the terms are as they are. An idle socket must cost little, so we compress with a window of
 * 4 KiB, which holds the last dozen deltas of an answer, and drop the compressor whenever nothing runs: a sender may
 * begin anew at any time. A client that can be told is told to do with a window of 2 KiB; one that cannot has to
 * begin anew with every message, so that its 32 KiB are not kept between them.
 *
 * What inflates is counted while it does: websocket_deflate_inflate stops at the limit, not after it. One thread. */
#ifndef REALM_SERVER_WEBSOCKET_DEFLATE_H
#define REALM_SERVER_WEBSOCKET_DEFLATE_H

#include <zlib.h>

#include "base/buffer.h"

typedef struct websocket_deflate_terms {
    int agreed;                         /* 0: nothing is compressed */
    int server_bits, client_bits;       /* of the windows */
    int server_forgets, client_forgets; /* begin anew with each message: "no context takeover" */
} websocket_deflate_terms;

/* Reads the value of Sec-WebSocket-Extensions and takes the first offer that can be kept. Writes the answer's value;
 * 0: there is none, the header is left out. */
int websocket_deflate_agree(websocket_deflate_terms *out, const char *offers, char *answer,
                            size_t answer_size);

/* Both directions of one socket. */
typedef struct websocket_deflate {
    websocket_deflate_terms terms;
    z_stream *in, *out; /* NULL while they are not needed */
} websocket_deflate;

void websocket_deflate_init(websocket_deflate *d, const websocket_deflate_terms *terms);
void websocket_deflate_release(websocket_deflate *d);

/* Appends what a part of a compressed message holds; at_end: it was the last.
 *   REALM_TOO_LARGE  out would pass most bytes
 *   REALM_CORRUPT    it is not deflated data */
realm_status websocket_deflate_inflate(websocket_deflate *d, const void *data, size_t size,
                                       int at_end, buffer *out, size_t most);
/* Appends a whole message, compressed. */
realm_status websocket_deflate_deflate(websocket_deflate *d, const void *data, size_t size,
                                       buffer *out);
/* Nothing will be sent for a while: drops the compressor. */
void websocket_deflate_rest(websocket_deflate *d);

#endif
