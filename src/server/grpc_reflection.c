/* server/grpc_reflection.c: grpc.reflection.v1 and v1alpha, which are the same but for their name: what the .proto
 * files in the server say, so that clients need none.
 *
 * The descriptors are those that clients are generated from, embedded when the server was built. A stream of
 * requests is answered one by one; while the client has not taken its answers, requests wait, and one that
 * sends more than WAITING of them is broken off. Net thread. */
#include <stdlib.h>
#include <string.h>

#include "grpc/reflection/v1/reflection.pb-c.h"
#include "grpc_descriptor.pb-c.h"
#include "server/grpc.h"
#include "server/grpc_message.h"

#define LARGEST ((size_t)4 << 10)  /* of a request: names */
#define WAITING ((size_t)64 << 10) /* of requests that have no answer yet */

extern const unsigned char grpc_descriptors[];
extern const size_t grpc_descriptors_size;

typedef Grpc__Reflection__V1__ServerReflectionResponse response;

/* ---- looking for names ---- */

typedef struct name {
    const char *text;
    size_t size;
} name;

/* Takes "part." or, at the end, "part" from the front of a name. */
static int take_part(name *n, ProtobufCBinaryData part)
{
    if (n->size < part.len || memcmp(n->text, part.data, part.len) != 0)
        return 0;
    if (n->size == part.len) {
        n->size = 0;
        return 1;
    }
    if (n->text[part.len] != '.')
        return 0;
    n->text += part.len + 1;
    n->size -= part.len + 1;
    return n->size > 0;
}

static int is_named(name n, Realm__Descriptor__Named *const *list, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        name rest = n;
        if (take_part(&rest, list[i]->name) && !rest.size)
            return 1;
    }
    return 0;
}

static int in_enums(name n, Realm__Descriptor__Enum *const *list, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        name rest = n;
        if (is_named(n, list[i]->value, list[i]->n_value)) /* values stand beside their enum */
            return 1;
        if (take_part(&rest, list[i]->name) && !rest.size)
            return 1;
    }
    return 0;
}

static int in_messages(name n, Realm__Descriptor__Message *const *list, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const Realm__Descriptor__Message *m = list[i];
        name rest = n;
        if (!take_part(&rest, m->name))
            continue;
        return !rest.size || is_named(rest, m->field, m->n_field) ||
               is_named(rest, m->oneof_decl, m->n_oneof_decl) ||
               in_enums(rest, m->enum_type, m->n_enum_type) ||
               in_messages(rest, m->nested_type, m->n_nested_type);
    }
    return 0;
}

static int in_services(name n, Realm__Descriptor__Service *const *list, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        name rest = n;
        if (take_part(&rest, list[i]->name))
            return !rest.size || is_named(rest, list[i]->method, list[i]->n_method);
    }
    return 0;
}

static int declares(const Realm__Descriptor__File *file, name symbol)
{
    return take_part(&symbol, file->package) && symbol.size &&
           (in_services(symbol, file->service, file->n_service) ||
            in_messages(symbol, file->message_type, file->n_message_type) ||
            in_enums(symbol, file->enum_type, file->n_enum_type));
}

static int declares_message(const Realm__Descriptor__File *file, name symbol)
{
    return take_part(&symbol, file->package) && symbol.size &&
           in_messages(symbol, file->message_type, file->n_message_type);
}

static int is_called(const Realm__Descriptor__File *file, name path)
{
    return file->name.len == path.size && memcmp(file->name.data, path.text, path.size) == 0;
}

/* ---- the files ---- */

typedef Realm__Descriptor__File file;

static Realm__Descriptor__Set *open_set(void)
{
    return realm__descriptor__set__unpack(NULL, grpc_descriptors_size, grpc_descriptors);
}

/* The first file that matches, for realm__descriptor__file__free_unpacked, and its bytes. */
static file *find_file(const Realm__Descriptor__Set *set, name n,
                       int (*matches)(const file *f, name n), ProtobufCBinaryData *bytes)
{
    for (size_t i = 0; i < set->n_file; i++) {
        *bytes = set->file[i];
        file *f = realm__descriptor__file__unpack(NULL, bytes->len, bytes->data);
        if (f && matches(f, n))
            return f;
        realm__descriptor__file__free_unpacked(f, NULL);
    }
    return NULL;
}

/* ---- answers ---- */

static void send_error(exchange *x, response *r, const char *what)
{
    Grpc__Reflection__V1__ErrorResponse error = GRPC__REFLECTION__V1__ERROR_RESPONSE__INIT;
    error.error_code = GRPC_NOT_FOUND;
    error.error_message = grpc_text(what, strlen(what));
    r->message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_ERROR_RESPONSE;
    r->error_response = &error;
    grpc_send(x, &r->base);
}

static void send_file(exchange *x, response *r, ProtobufCBinaryData bytes)
{
    Grpc__Reflection__V1__FileDescriptorResponse found =
        GRPC__REFLECTION__V1__FILE_DESCRIPTOR_RESPONSE__INIT;
    found.n_file_descriptor_proto = 1;
    found.file_descriptor_proto = &bytes;
    r->message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_FILE_DESCRIPTOR_RESPONSE;
    r->file_descriptor_response = &found;
    grpc_send(x, &r->base);
}

static void send_extensions(exchange *x, response *r, name type)
{
    Grpc__Reflection__V1__ExtensionNumberResponse none =
        GRPC__REFLECTION__V1__EXTENSION_NUMBER_RESPONSE__INIT;
    none.base_type_name = grpc_text(type.text, type.size);
    r->message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_ALL_EXTENSION_NUMBERS_RESPONSE;
    r->all_extension_numbers_response = &none;
    grpc_send(x, &r->base);
}

/* Each service once: its methods stand together in the map. */
static void send_services(exchange *x, response *r)
{
#define SERVICE_NAME(service, method, handler, access, on_body) service,
    static const char *const names[] = {GRPC_METHOD_MAP(SERVICE_NAME)};
#undef SERVICE_NAME
    enum { COUNT = sizeof names / sizeof *names };
    Grpc__Reflection__V1__ServiceResponse services[COUNT], *list[COUNT];
    Grpc__Reflection__V1__ListServiceResponse found =
        GRPC__REFLECTION__V1__LIST_SERVICE_RESPONSE__INIT;
    for (size_t i = 0; i < COUNT; i++) {
        if (i && strcmp(names[i], names[i - 1]) == 0)
            continue;
        Grpc__Reflection__V1__ServiceResponse *one = &services[found.n_service];
        grpc__reflection__v1__service_response__init(one);
        one->name = grpc_text(names[i], strlen(names[i]));
        list[found.n_service++] = one;
    }
    found.service = list;
    r->message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_LIST_SERVICES_RESPONSE;
    r->list_services_response = &found;
    grpc_send(x, &r->base);
}

static void answer_file(exchange *x, response *r, name n, int (*matches)(const file *f, name n),
                        const char *otherwise)
{
    ProtobufCBinaryData bytes;
    Realm__Descriptor__Set *set = open_set();
    file *f = set ? find_file(set, n, matches, &bytes) : NULL;
    if (!f)
        send_error(x, r, otherwise);
    else if (matches == declares_message)
        send_extensions(x, r, n);
    else
        send_file(x, r, bytes);
    realm__descriptor__file__free_unpacked(f, NULL);
    realm__descriptor__set__free_unpacked(set, NULL);
}

static name text_of(const json_t *request, const char *key)
{
    const json_t *value = json_object_get(request, key);
    return (name){json_string_value(value), json_string_length(value)};
}

/* Fills in which question is answered, and answers it; 0: it is none. */
static int answer_question(exchange *x, response *r, const json_t *request)
{
    Grpc__Reflection__V1__ServerReflectionRequest *asked = r->original_request;
    name n;
    if ((n = text_of(request, "file_by_filename")).text) {
        asked->message_request_case =
            GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_BY_FILENAME;
        asked->file_by_filename = grpc_text(n.text, n.size);
        answer_file(x, r, n, is_called, "there is no file of that name");
    } else if ((n = text_of(request, "file_containing_symbol")).text) {
        asked->message_request_case =
            GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_SYMBOL;
        asked->file_containing_symbol = grpc_text(n.text, n.size);
        answer_file(x, r, n, declares, "nothing of that name is declared here");
    } else if ((n = text_of(request, "all_extension_numbers_of_type")).text) {
        asked->message_request_case =
            GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_ALL_EXTENSION_NUMBERS_OF_TYPE;
        asked->all_extension_numbers_of_type = grpc_text(n.text, n.size);
        answer_file(x, r, n, declares_message, "there is no message of that name");
    } else if ((n = text_of(request, "list_services")).text) {
        asked->message_request_case =
            GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_LIST_SERVICES;
        asked->list_services = grpc_text(n.text, n.size);
        send_services(x, r);
    } else if (json_object_get(request, "file_containing_extension")) {
        const json_t *wanted = json_object_get(request, "file_containing_extension");
        Grpc__Reflection__V1__ExtensionRequest extension =
            GRPC__REFLECTION__V1__EXTENSION_REQUEST__INIT;
        n = text_of(wanted, "containing_type");
        extension.containing_type = grpc_text(n.text, n.size);
        extension.extension_number = (int32_t)json_integer_value(
            json_object_get(wanted, "extension_number"));
        asked->message_request_case =
            GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_EXTENSION;
        asked->file_containing_extension = &extension;
        send_error(x, r, "there are no extensions here");
    } else {
        return 0;
    }
    return 1;
}

/* ---- the stream ---- */

static int answer_one(grpc_call *call, const grpc_frame *frame)
{
    exchange *x = call->x;
    api_problem problem = {0};
    json_t *request = grpc_read_frame(
        x, frame, &grpc__reflection__v1__server_reflection_request__descriptor, 0, &problem);
    if (!request) {
        api_reply_problem(x, &problem);
        return 0;
    }
    response r = GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__INIT;
    Grpc__Reflection__V1__ServerReflectionRequest asked =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__INIT;
    name host = text_of(request, "host");
    r.valid_host = asked.host = grpc_text(host.text, host.size);
    r.original_request = &asked;
    int ok = answer_question(x, &r, request);
    json_decref(request);
    if (!ok)
        grpc_fail(x, 400, "missing_required_parameter", "message_request",
                  "the request asks for nothing");
    return ok;
}

/* Answers what has come, as long as the client takes the answers. value: 1 when all has been asked. */
static void go_on(grpc_call *call)
{
    exchange *x = call->x;
    size_t at = 0;
    int ok = 1, is_waiting = 0;
    while (ok && !is_waiting) {
        grpc_frame frame;
        is_waiting = exchange_pending(x) > EXCHANGE_HIGH;
        grpc_frame_state state = is_waiting ? GRPC_FRAME_PART
                                            : grpc_frame_read(call->in.data + at,
                                                              call->in.size - at, LARGEST, &frame);
        if (state == GRPC_FRAME_PART)
            break;
        if (state == GRPC_FRAME_WHOLE) {
            at += frame.used;
            ok = answer_one(call, &frame);
        } else {
            ok = 0;
            grpc_fail(x, state == GRPC_FRAME_BAD ? 400 : 413,
                      state == GRPC_FRAME_BAD ? "malformed_message" : "request_too_large", "",
                      state == GRPC_FRAME_BAD ? "a message begins with a flag that is no flag"
                                              : "a request of reflection is a name, not so much");
        }
    }
    buffer_drop_front(&call->in, at);
    if (ok && !is_waiting && call->value) {
        if (call->in.size)
            grpc_fail(x, 400, "malformed_message", "", "the last message is cut short");
        else
            grpc_end(x);
        ok = 0;
    }
    if (!ok)
        grpc_call_close(call);
}

static void on_drained(exchange *x)
{
    if (x->context)
        go_on(x->context);
}

void grpc_reflect_body(exchange *x, const void *data, size_t size)
{
    grpc_call *call = x->context;
    if (!call)
        return;
    if (!data) {
        call->value = 1;
    } else if (call->in.size + size > WAITING || buffer_add(&call->in, data, size)) {
        exchange_abort(x); /* who does not read answers would not read a status either */
        grpc_call_close(call);
        return;
    }
    go_on(call);
}

void grpc_reflect(server *s, exchange *x, const caller *c)
{
    (void)c;
    if (grpc_call_open(s, x))
        x->on_drained = on_drained;
}
