/* server/otlp.c: see otlp.h: a tree of protobuf-c's structs in an arena, packed in one go. */
#include "server/otlp.h"

#include <string.h>

#include "otlp.pb-c.h"
#include "realm/realm.h"

#define MAX_TREE ((size_t)64 << 20) /* of a batch, whose requests are bounded by SPANS_BYTES each */

typedef Realm__Otlp__KeyValue pair;

static ProtobufCBinaryData text_of(const char *text)
{
    return (ProtobufCBinaryData){strlen(text), (uint8_t *)(uintptr_t)text};
}

/* ---- a tree of what there is to say ---- */

static Realm__Otlp__Value *add_text(arena *a, const char *text)
{
    Realm__Otlp__Value *v = arena_take(a, sizeof *v);
    if (!v)
        return NULL;
    realm__otlp__value__init(v);
    v->value_case = REALM__OTLP__VALUE__VALUE_STRING_VALUE;
    v->string_value = text_of(text);
    return v;
}

static Realm__Otlp__Values *add_texts(arena *a, const span_attribute *from)
{
    Realm__Otlp__Values *list = arena_take(a, sizeof *list);
    if (!list)
        return NULL;
    realm__otlp__values__init(list);
    list->values = arena_take_array(a, (size_t)from->integer, sizeof *list->values);
    for (int64_t i = 0; list->values && i < from->integer; i++)
        if (!(list->values[list->n_values++] = add_text(a, from->texts[i])))
            return NULL;
    return list->values ? list : NULL;
}

static Realm__Otlp__Value *add_value(arena *a, const span_attribute *from)
{
    if (from->kind == ATTRIBUTE_TEXT)
        return add_text(a, from->text);
    Realm__Otlp__Value *v = arena_take(a, sizeof *v);
    if (!v)
        return NULL;
    realm__otlp__value__init(v);
    switch (from->kind) {
    case ATTRIBUTE_TEXT: break;
    case ATTRIBUTE_INT:
        v->value_case = REALM__OTLP__VALUE__VALUE_INT_VALUE;
        v->int_value = from->integer;
        break;
    case ATTRIBUTE_REAL:
        v->value_case = REALM__OTLP__VALUE__VALUE_DOUBLE_VALUE;
        v->double_value = from->real;
        break;
    case ATTRIBUTE_FLAG:
        v->value_case = REALM__OTLP__VALUE__VALUE_BOOL_VALUE;
        v->bool_value = from->integer != 0;
        break;
    case ATTRIBUTE_TEXTS:
        v->value_case = REALM__OTLP__VALUE__VALUE_ARRAY_VALUE;
        v->array_value = add_texts(a, from);
        return v->array_value ? v : NULL;
    }
    return v;
}

static pair *add_pair(arena *a, const char *name, Realm__Otlp__Value *value)
{
    pair *p = value ? arena_take(a, sizeof *p) : NULL;
    if (!p)
        return NULL;
    realm__otlp__key_value__init(p);
    p->key = text_of(name);
    p->value = value;
    return p;
}

static int add_attributes(arena *a, const span *from, Realm__Otlp__Span *to)
{
    size_t count = 0;
    for (const span_attribute *at = from->attributes; at; at = at->next)
        count++;
    to->attributes = arena_take_array(a, count, sizeof *to->attributes);
    if (!to->attributes)
        return 0;
    for (const span_attribute *at = from->attributes; at; at = at->next)
        if (!(to->attributes[to->n_attributes++] = add_pair(a, at->name, add_value(a, at))))
            return 0;
    return 1;
}

/* Big-endian. */
static ProtobufCBinaryData add_number(arena *a, uint64_t number)
{
    uint8_t *bytes = arena_take(a, 8);
    for (int i = 0; bytes && i < 8; i++)
        bytes[i] = (uint8_t)(number >> (56 - 8 * i));
    return (ProtobufCBinaryData){bytes ? 8 : 0, bytes};
}

static ProtobufCBinaryData add_trace_id(arena *a, const char *id)
{
    uint8_t *bytes = arena_take(a, 16);
    for (int i = 0; bytes && i < 16; i++)
        bytes[i] = (uint8_t)(trace_number(id + i / 8 * 16) >> (56 - i % 8 * 8));
    return (ProtobufCBinaryData){bytes ? 16 : 0, bytes};
}

/* opentelemetry.proto.trace.v1.SpanFlags: whether it is known where the parent is, and that it is elsewhere. */
enum { FLAG_REMOTE_KNOWN = 0x100, FLAG_REMOTE = 0x200 };

static Realm__Otlp__Span *add_span(arena *a, const spans *of, const span *from,
                                   ProtobufCBinaryData trace_id)
{
    Realm__Otlp__Span *s = arena_take(a, sizeof *s);
    if (!s)
        return NULL;
    realm__otlp__span__init(s);
    s->trace_id = trace_id;
    s->span_id = add_number(a, from->id);
    s->trace_state = text_of(of->state);
    if (from->parent)
        s->parent_span_id = add_number(a, from->parent);
    s->name = text_of(from->name);
    s->kind = (int32_t)from->kind;
    s->start_time_unix_nano = from->start_ns + of->wall_ns;
    s->end_time_unix_nano = from->end_ns + of->wall_ns;
    s->flags = of->trace.flags | TRACE_SAMPLED | FLAG_REMOTE_KNOWN;
    if (from->parent && from->parent == of->trace.parent)
        s->flags |= FLAG_REMOTE;
    if (from->failed) {
        s->status = arena_take(a, sizeof *s->status);
        if (!s->status)
            return NULL;
        realm__otlp__status__init(s->status);
        s->status->code = 2;
    }
    return s->span_id.len && add_attributes(a, from, s) ? s : NULL;
}

static int add_spans(arena *a, const spans *list, Realm__Otlp__ScopeSpans *to)
{
    size_t count = 0;
    for (const spans *s = list; s; s = s->next)
        count += (size_t)s->count;
    to->spans = arena_take_array(a, count, sizeof *to->spans);
    for (const spans *s = list; s && to->spans; s = s->next) {
        ProtobufCBinaryData trace_id = add_trace_id(a, s->trace.id);
        for (const span *at = s->first; at; at = at->next)
            if (!trace_id.len || !(to->spans[to->n_spans++] = add_span(a, s, at, trace_id)))
                return 0;
    }
    return to->spans != NULL;
}

static realm_status pack(const Realm__Otlp__ExportRequest *request, buffer *out)
{
    size_t size = realm__otlp__export_request__get_packed_size(request);
    realm_status status = buffer_reserve(out, size);
    if (status)
        return status;
    realm__otlp__export_request__pack(request, (uint8_t *)out->data + out->size);
    out->size += size;
    return REALM_OK;
}

realm_status otlp_encode(const spans *list, const otlp_pair *resource, size_t n_resource,
                         buffer *out)
{
    arena a;
    arena_init(&a, MAX_TREE);
    Realm__Otlp__Scope scope = REALM__OTLP__SCOPE__INIT;
    scope.name = text_of("realm");
    scope.version = text_of(realm_version());
    Realm__Otlp__ScopeSpans scoped = REALM__OTLP__SCOPE_SPANS__INIT, *const scopes[] = {&scoped};
    Realm__Otlp__Resource who = REALM__OTLP__RESOURCE__INIT;
    Realm__Otlp__ResourceSpans all = REALM__OTLP__RESOURCE_SPANS__INIT, *const resources[] = {&all};
    Realm__Otlp__ExportRequest request = REALM__OTLP__EXPORT_REQUEST__INIT;
    scoped.scope = &scope;
    who.attributes = arena_take_array(&a, n_resource, sizeof *who.attributes);
    int fits = who.attributes && add_spans(&a, list, &scoped);
    for (size_t i = 0; fits && i < n_resource; i++) {
        Realm__Otlp__Value *value = add_text(&a, resource[i].value);
        fits = (who.attributes[who.n_attributes++] = add_pair(&a, resource[i].name, value)) != NULL;
    }
    all.resource = &who;
    all.scope_spans = (Realm__Otlp__ScopeSpans **)(uintptr_t)scopes;
    all.n_scope_spans = 1;
    request.resource_spans = (Realm__Otlp__ResourceSpans **)(uintptr_t)resources;
    request.n_resource_spans = 1;
    realm_status status = fits ? pack(&request, out) : REALM_NO_MEMORY;
    arena_release(&a);
    return status;
}

/* ---- what is read ---- */

int64_t otlp_rejected(const void *body, size_t size)
{
    Realm__Otlp__ExportResponse *answer = realm__otlp__export_response__unpack(NULL, size, body);
    int64_t rejected = answer && answer->partial_success ? answer->partial_success->rejected_spans
                                                         : 0;
    if (answer)
        realm__otlp__export_response__free_unpacked(answer, NULL);
    return rejected > 0 ? rejected : 0;
}

static int hex(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* In place; 0: a broken escape, or one of a NUL. */
static int decode(char *text)
{
    char *to = text;
    for (; *text; text++) {
        if (*text == '%') {
            int high = hex(text[1]), low = high < 0 ? -1 : hex(text[2]);
            if (low < 0 || !(high | low))
                return 0;
            *to++ = (char)(high << 4 | low);
            text += 2;
        } else {
            *to++ = *text;
        }
    }
    *to = 0;
    return 1;
}

static char *trimmed(arena *memory, const char *text, size_t size)
{
    for (; size && (*text == ' ' || *text == '\t'); text++)
        size--;
    while (size && (text[size - 1] == ' ' || text[size - 1] == '\t'))
        size--;
    return arena_copy(memory, text, size);
}

realm_status otlp_read_pairs(const char *text, arena *memory, otlp_pair **out, size_t *count,
                             realm_error *error)
{
    size_t most = 1;
    for (const char *c = text; *c; c++)
        most += *c == ',';
    *count = 0;
    *out = arena_take_array(memory, most, sizeof **out);
    if (!*out)
        return realm_fail_memory(error, most, "a list");
    while (*text) {
        size_t size = strcspn(text, ",");
        if (strspn(text, " \t") < size) { /* empty parts are passed over */
            const char *equals = memchr(text, '=', size);
            char *name = equals ? trimmed(memory, text, (size_t)(equals - text)) : NULL;
            char *value = equals ? trimmed(memory, equals + 1, size - (size_t)(equals + 1 - text))
                                 : NULL;
            if (!name || !*name || !value || !decode(value)) /* not shown: it may be a secret */
                return realm_fail(error, REALM_INVALID,
                                  "part %zu is not name=value with its value percent-encoded",
                                  *count + 1);
            (*out)[(*count)++] = (otlp_pair){name, value};
        }
        text += size + (text[size] == ',');
    }
    return REALM_OK;
}
