/* server/grpc.c: see grpc.h: which call it is, its messages, its status, its deadline. */
#include "server/grpc.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "server/grpc_json.h"

#define CONTENT_TYPE "application/grpc"

/* ---- which call ---- */

static const route methods[] = {
#define METHOD_ROUTE(service, method, handler, access, on_body)                                    \
    {"POST", "/" service "/" method, handler, access, NULL, on_body},
    GRPC_METHOD_MAP(METHOD_ROUTE)
#undef METHOD_ROUTE
};

static void refuse_unknown(server *s, exchange *x, const caller *c)
{
    (void)s;
    (void)c;
    char sentence[256];
    snprintf(sentence, sizeof sentence, "there is no method '%.150s'", x->path);
    grpc_fail(x, 404, "method_not_found", "", sentence);
}

static void pass_over(exchange *x, const void *data, size_t size)
{
    (void)x;
    (void)data;
    (void)size;
}

/* Told with the head: a client may wait for the answer before it says anything. */
static const route unknown = {"POST", "unknown", refuse_unknown, 0, NULL, pass_over};

static const route *find_method(const char *path)
{
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++)
        if (strcmp(methods[i].path, path) == 0)
            return &methods[i];
    return NULL;
}

/* "application/grpc", "application/grpc+proto", parameters or not; neither "+json" nor "-web". */
static int is_grpc(const char *type)
{
    size_t size = strlen(CONTENT_TYPE);
    if (!type || strncmp(type, CONTENT_TYPE, size) != 0)
        return 0;
    type += size;
    if (strncmp(type, "+proto", 6) == 0)
        type += 6;
    return !*type || *type == ';' || *type == ' ';
}

static void read_deadline(exchange *x, api_problem *problem)
{
    const char *text = exchange_header_get(x, "grpc-timeout");
    uint64_t wait_ns, now_ns = clock_ns();
    if (!text)
        return;
    if (!grpc_timeout_parse(text, &wait_ns))
        api_wrong(problem, "grpc-timeout", "invalid_value",
                  "'grpc-timeout' must be one to eight digits and a unit, not '%.40s'", text);
    else if (wait_ns < UINT64_MAX - now_ns)
        x->deadline_ns = now_ns + wait_ns;
}

int grpc_find(exchange *x, const route **out, api_problem *problem)
{
    const route *found = find_method(x->path);
    int speaks = is_grpc(exchange_header_get(x, "content-type"));
    if (!found && !speaks)
        return 0;
    if (!speaks) {
        api_problem_set(problem, 415, "invalid_request_error", "unsupported_media_type",
                        "content-type", "'%.100s' is a method of gRPC: content-type must be %s",
                        x->path, CONTENT_TYPE);
    } else if (strcmp(x->protocol, "HTTP/2") != 0) {
        api_problem_set(problem, 505, "invalid_request_error", "http2_required", "",
                        "gRPC needs HTTP/2");
    } else if (strcmp(x->method, "POST") != 0) {
        api_problem_set(problem, 405, "invalid_request_error", "method_not_allowed", "",
                        "gRPC's calls are POST");
    } else {
        x->fail = grpc_fail;
        read_deadline(x, problem);
        *out = found ? found : &unknown;
    }
    return 1;
}

/* ---- status ---- */

grpc_code grpc_code_of(int status, const char *code)
{
    static const struct {
        const char *code;
        grpc_code means;
    } special[] = {{"method_not_found", GRPC_UNIMPLEMENTED},
                   {"unsupported_encoding", GRPC_UNIMPLEMENTED},
                   {"compressed_without_encoding", GRPC_INTERNAL}};
    for (size_t i = 0; i < sizeof special / sizeof *special; i++)
        if (strcmp(special[i].code, code) == 0)
            return special[i].means;
    switch (status) {
    case 400: return GRPC_INVALID_ARGUMENT;
    case 401: return GRPC_UNAUTHENTICATED;
    case 403: return GRPC_PERMISSION_DENIED;
    case 404: return GRPC_NOT_FOUND;
    case 408:
    case 504: return GRPC_DEADLINE_EXCEEDED;
    case 409: return GRPC_ABORTED;
    case 413:
    case 429:
    case 431: return GRPC_RESOURCE_EXHAUSTED;
    case 501: return GRPC_UNIMPLEMENTED;
    case 503: return GRPC_UNAVAILABLE;
    default: return status >= 500 ? GRPC_INTERNAL : GRPC_INVALID_ARGUMENT;
    }
}

static void begin(exchange *x)
{
    if (x->state != EXCHANGE_ANSWERING)
        return;
    exchange_set(x, "content-type", CONTENT_TYPE);
    exchange_set(x, "grpc-accept-encoding", "identity, gzip");
    exchange_begin(x, 200, -1);
}

/* What a refusal said in headers about trying again: clients of gRPC look for it in the trailers. */
static void add_retry(exchange *x)
{
    for (size_t i = 0; i < x->n_answer; i++) {
        const char *name = x->answer[i].name, *value = x->answer[i].value;
        char wait_ms[32];
        if (strcmp(name, "retry-after") == 0) {
            snprintf(wait_ms, sizeof wait_ms, "%lld", atoll(value) * 1000);
            exchange_trailer(x, "grpc-retry-pushback-ms", wait_ms);
        } else if (strcmp(name, "x-should-retry") == 0 && strcmp(value, "false") == 0) {
            exchange_trailer(x, "grpc-retry-pushback-ms", "-1");
        } else if (strncmp(name, "x-ratelimit-", 12) != 0) {
            continue;
        }
        exchange_trailer(x, name, value);
    }
}

void grpc_fail(exchange *x, int status, const char *code, const char *param, const char *sentence)
{
    char number[16];
    buffer message;
    if (x->state != EXCHANGE_ANSWERING && x->state != EXCHANGE_SENDING)
        return;
    buffer_init(&message, 4 * REALM_ERROR_MESSAGE_SIZE);
    grpc_add_encoded(&message, sentence);
    snprintf(number, sizeof number, "%d", (int)grpc_code_of(status, code));
    x->counts_as = status;
    if (x->state == EXCHANGE_ANSWERING)
        add_retry(x);
    begin(x);
    exchange_trailer(x, "grpc-status", number);
    exchange_trailer(x, "grpc-message", buffer_text(&message));
    exchange_trailer(x, "realm-code", code);
    if (*param)
        exchange_trailer(x, "realm-param", param);
    buffer_release(&message);
    exchange_end(x);
}

void grpc_end(exchange *x)
{
    begin(x);
    exchange_trailer(x, "grpc-status", "0");
    exchange_end(x);
}

/* ---- messages ---- */

/* The frame's bytes, inflated if need be into kept. */
static int unfold(exchange *x, const grpc_frame *frame, buffer *kept, const char **data,
                  size_t *size, api_problem *problem)
{
    const char *encoding = exchange_header_get(x, "grpc-encoding");
    int is_plain = !encoding || strcmp(encoding, "identity") == 0;
    if (!is_plain && strcmp(encoding, "gzip") != 0)
        return api_wrong(problem, "grpc-encoding", "unsupported_encoding",
                         "messages encoded with '%.40s' are not taken: identity and gzip are",
                         encoding);
    *data = frame->data;
    *size = frame->size;
    if (!frame->is_compressed)
        return 1;
    if (is_plain)
        return api_wrong(problem, "grpc-encoding", "compressed_without_encoding",
                         "a message is compressed, and grpc-encoding does not say how");
    realm_status status = grpc_gunzip(frame->data, frame->size, x->body_limit, kept);
    if (status == REALM_CORRUPT)
        return api_wrong(problem, "", "malformed_message", "a message is not gzip, or cut short");
    if (status) {
        api_problem_set(problem, status == REALM_TOO_LARGE ? 413 : 503, "invalid_request_error",
                        status == REALM_TOO_LARGE ? "request_too_large" : "unavailable", "",
                        status == REALM_TOO_LARGE
                            ? "the message is larger than the %zu bytes that this method takes"
                            : "the host has no memory for a message of %zu bytes",
                        x->body_limit);
        return 0;
    }
    *data = buffer_text(kept);
    *size = kept->size;
    return 1;
}

json_t *grpc_read(exchange *x, const ProtobufCMessageDescriptor *type, int strict,
                  api_problem *problem)
{
    grpc_frame frame;
    grpc_frame_state state = grpc_frame_read(x->body.data, x->body.size, SIZE_MAX, &frame);
    if (state == GRPC_FRAME_BAD)
        api_wrong(problem, "", "malformed_message", "a message begins with a flag that is no flag");
    else if (state == GRPC_FRAME_PART)
        api_wrong(problem, "", "malformed_message", "the call's message is missing or cut short");
    else if (frame.used != x->body.size)
        api_wrong(problem, "", "malformed_message", "this method takes one message alone");
    return problem->status ? NULL : grpc_read_frame(x, &frame, type, strict, problem);
}

json_t *grpc_read_frame(exchange *x, const grpc_frame *frame,
                        const ProtobufCMessageDescriptor *type, int strict, api_problem *problem)
{
    const char *data = NULL;
    size_t size = 0;
    buffer kept;
    json_t *value = NULL;
    buffer_init(&kept, SIZE_MAX);
    if (unfold(x, frame, &kept, &data, &size, problem)) {
        char path[GRPC_JSON_PATH_SIZE];
        realm_error error;
        realm_status status = grpc_json_read(&value, type, data, size, strict, path, &error);
        if (status == REALM_INVALID)
            api_wrong(problem, path, "malformed_message", "%s", error.message);
        else if (status)
            api_problem_of(problem, status, error.message);
    }
    buffer_release(&kept);
    return value;
}

void grpc_send(exchange *x, const ProtobufCMessage *message)
{
    buffer frame;
    buffer_init(&frame, SIZE_MAX);
    size_t size = protobuf_c_message_get_packed_size(message);
    uint8_t *room = grpc_frame_add(&frame, size);
    if (room) {
        protobuf_c_message_pack(message, room);
        begin(x);
        exchange_write(x, frame.data, frame.size);
    } else {
        grpc_fail(x, 503, "unavailable", "", "the host is out of memory");
    }
    buffer_release(&frame);
}

/* ---- calls that stay open ---- */

static void on_cancel(exchange *x)
{
    grpc_call_close(x->context);
}

static void on_deadline(void *context)
{
    grpc_call *call = context;
    grpc_fail(call->x, 504, "deadline_exceeded", "", "the call's deadline has passed");
    grpc_call_close(call);
}

grpc_call *grpc_call_open(server *s, exchange *x)
{
    grpc_call *call = s->n_calls < GRPC_MAX_CALLS ? calloc(1, sizeof *call) : NULL;
    if (!call) {
        grpc_fail(x, 503, "unavailable", "", "too many calls are open");
        return NULL;
    }
    call->server = s;
    call->x = exchange_retain(x);
    buffer_init(&call->in, SIZE_MAX);
    call->next = s->calls;
    if (call->next)
        call->next->previous = call;
    s->calls = call;
    s->n_calls++;
    x->context = call;
    x->on_cancel = on_cancel;
    if (x->deadline_ns)
        call->timer = net_timer_start(s->net, x->deadline_ns, on_deadline, call);
    return call;
}

void grpc_call_close(grpc_call *call)
{
    server *s = call->server;
    if (call->previous)
        call->previous->next = call->next;
    else
        s->calls = call->next;
    if (call->next)
        call->next->previous = call->previous;
    s->n_calls--;
    net_timer_stop(call->timer);
    buffer_release(&call->in);
    call->x->context = NULL;
    call->x->on_cancel = call->x->on_drained = NULL;
    exchange_release(call->x);
    free(call);
}

void grpc_drain(server *s)
{
    while (s->calls) {
        grpc_call *call = s->calls;
        if (call->on_drain)
            call->on_drain(call);
        grpc_fail(call->x, 503, "draining", "", "the server is shutting down; try again");
        grpc_call_close(call);
    }
}
