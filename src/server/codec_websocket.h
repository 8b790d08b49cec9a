/* server/codec_websocket.h: the subprotocol realm.v1: several requests at once over one WebSocket, as JSON messages.
 *
 *     client                                                     server
 *                                                                {"type":"ready",...}
 *     {"type":"chat","id":"a","body":{...}}                      {"type":"delta","id":"a","data":{...}} ...
 *                                                                {"type":"done","id":"a","headers":{...}}
 *     {"type":"cancel","id":"b"}                                 {"type":"cancelled","id":"b"}
 *                                                                {"type":"error","id":"c","status":429,"error":{...}}
 *
 * docs/API.md says what they mean. To the router each request is one like any other, a POST to the path that its type
 * stands for with the socket's credential, so whatever holds for HTTP (who may, how much, what is checked) holds here
 * without a second path. An answer that is an event stream becomes deltas, any other becomes `done` or `error`.
 *
 * The codec has no open of its own in its table: a WebSocket begins with a handshake (api_websocket.c), whose exchange
 * it then tunnels through. */
#ifndef REALM_SERVER_CODEC_WEBSOCKET_H
#define REALM_SERVER_CODEC_WEBSOCKET_H

#include "server/codec.h"
#include "server/websocket.h"

#define CODEC_WEBSOCKET_PROTOCOL "realm.v1"
/* Requests of one socket at once. */
#define CODEC_WEBSOCKET_REQUESTS 32

typedef struct codec_websocket_options {
    codec_options common; /* on_output and connection: set by whoever tunnels */
    websocket_deflate_terms deflate;
    const char *authority;     /* of the handshake; copied */
    const char *authorization; /* for the router; copied. NULL: none */
    const char *traceparent;   /* of requests whose message has none; copied. NULL: none */
    int is_known; /* the credential, or its absence, is good: else the first message must be `auth` */
} codec_websocket_options;

/* NULL: memory is out. */
codec *codec_websocket_open(const codec_websocket_options *options);

extern const codec_table codec_websocket;

#endif
