/* server/grpc.h: gRPC: what its calls share. A call is an exchange of HTTP/2 whose bodies are length-prefixed
 * protobuf messages and whose outcome is in trailers.
 *
 *     router     asks grpc_find for a route                 grpc.c
 *     methods    one file a service                         grpc_inference.c, grpc_health.c, grpc_reflection.c
 *     messages   frames, gzip; protobuf to JSON             grpc_message.h, grpc_json.h
 *
 * Methods with one request are answered when it is whole, like any other route; a request becomes the JSON that
 * the same request over HTTP is, and is checked and run by the same code. Failures come through exchange.fail,
 * so nothing that refuses a request needs to know of gRPC. Net thread, but for grpc_read. */
#ifndef REALM_SERVER_GRPC_H
#define REALM_SERVER_GRPC_H

#include <protobuf-c/protobuf-c.h>

#include "server/grpc_message.h"
#include "server/router.h"

/* The canonical codes. */
typedef enum grpc_code {
    GRPC_OK,
    GRPC_CANCELLED,
    GRPC_UNKNOWN,
    GRPC_INVALID_ARGUMENT,
    GRPC_DEADLINE_EXCEEDED,
    GRPC_NOT_FOUND,
    GRPC_ALREADY_EXISTS,
    GRPC_PERMISSION_DENIED,
    GRPC_RESOURCE_EXHAUSTED,
    GRPC_FAILED_PRECONDITION,
    GRPC_ABORTED,
    GRPC_OUT_OF_RANGE,
    GRPC_UNIMPLEMENTED,
    GRPC_INTERNAL,
    GRPC_UNAVAILABLE,
    GRPC_DATA_LOSS,
    GRPC_UNAUTHENTICATED,
} grpc_code;

/* 1 if the exchange, whose head is there, is gRPC's: then *out is its route and its failures go to trailers, or
 * problem says what is wrong with it as HTTP. */
int grpc_find(exchange *x, const route **out, api_problem *problem);

/* The one message of a call's request, or a frame of it, as JSON, the caller's to json_decref; NULL and the
 * problem. strict as grpc_json_read. May be called on a worker. */
json_t *grpc_read(exchange *x, const ProtobufCMessageDescriptor *type, int strict,
                  api_problem *problem);
json_t *grpc_read_frame(exchange *x, const grpc_frame *frame,
                        const ProtobufCMessageDescriptor *type, int strict, api_problem *problem);
/* Sends a message, and the head if it is the first. */
void grpc_send(exchange *x, const ProtobufCMessage *message);
/* Ends a call that went well. */
void grpc_end(exchange *x);
/* exchange.fail of every call. */
void grpc_fail(exchange *x, int status, const char *code, const char *param, const char *sentence);
/* The code for an api_problem's status and code. */
grpc_code grpc_code_of(int status, const char *code);

/* A text as protobuf-c takes it; borrowed. */
static inline ProtobufCBinaryData grpc_text(const char *text, size_t size)
{
    return (ProtobufCBinaryData){size, (uint8_t *)(uintptr_t)text};
}

/* ---- calls that stay open ------------------------------------------------------------------------------- */

/* A call that runs no program and ends when its client or the server likes: it keeps its deadline and ends when
 * the server drains. */
typedef struct grpc_call {
    server *server;
    exchange *x;
    struct grpc_call *previous, *next;
    net_timer *timer;
    buffer in;                                /* of its requests, what has not been read yet */
    void (*on_drain)(struct grpc_call *call); /* before it ends; may be NULL */
    int64_t value;                            /* the method's own */
} grpc_call;

#define GRPC_MAX_CALLS 10000 /* of a server: as many as connections, usually */

/* NULL: it has been answered. x->context is the call; when x is over, it is gone. */
grpc_call *grpc_call_open(server *s, exchange *x);
/* After grpc_end or grpc_fail. */
void grpc_call_close(grpc_call *call);
/* The server drains: all of them end. */
void grpc_drain(server *s);

/* ---- methods -------------------------------------------------------------------------------------------- */

/* service, method, handler, how it is reached (ACCESS: 0 open, 1 with a credential), what takes a body that
 * is a stream of requests, or NULL */
#define GRPC_METHOD_MAP(X)                                                                         \
    X("realm.v1.Inference", "Generate", grpc_generate, 1, NULL)                                    \
    X("realm.v1.Inference", "Chat", grpc_chat, 1, NULL)                                            \
    X("realm.v1.Inference", "Embed", grpc_embed, 1, NULL)                                          \
    X("realm.v1.Inference", "Tokenize", grpc_tokenize, 1, NULL)                                    \
    X("realm.v1.Inference", "ListModels", grpc_list_models, 1, NULL)                               \
    X("grpc.health.v1.Health", "Check", grpc_health_check, 0, NULL)                                \
    X("grpc.health.v1.Health", "Watch", grpc_health_watch, 0, NULL)                                \
    X("grpc.reflection.v1.ServerReflection", "ServerReflectionInfo", grpc_reflect, 0,              \
      grpc_reflect_body)                                                                           \
    X("grpc.reflection.v1alpha.ServerReflection", "ServerReflectionInfo", grpc_reflect, 0,         \
      grpc_reflect_body)

#define GRPC_DECLARE(service, method, handler, access, on_body)                                    \
    void handler(server *s, exchange *x, const caller *c);
GRPC_METHOD_MAP(GRPC_DECLARE)
#undef GRPC_DECLARE
void grpc_reflect_body(exchange *x, const void *data, size_t size);

#endif
