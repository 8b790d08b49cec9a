/* server/grpc_json.c: see grpc_json.h. The wire format is protobuf's "Encoding" page: a key (number << 3 | type),
 * then a varint, 8 bytes, a length with so many bytes, or 4 bytes. */
#include "server/grpc_json.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define MAX_DEPTH  16 /* no message of ours nests so deep */
#define MAX_NUMBER 536870911u
#define MAX_MEMBERS                                                                                \
    65536 /* of all lists of messages and texts: each may cost 200 times its bytes */

enum { WIRE_VARINT, WIRE_64, WIRE_BYTES, WIRE_OPEN, WIRE_CLOSE, WIRE_32 };

typedef struct reader {
    const uint8_t *at, *end;
    int strict;
    int *n_members;
    char *path;
    realm_error *error;
} reader;

static realm_status wrong(reader *d, const char *what)
{
    return realm_fail(d->error, REALM_INVALID, *d->path ? "'%s' %s" : "%s%s", d->path, what);
}

static realm_status cut_short(reader *d)
{
    return wrong(d, *d->path ? "is cut short" : "the message is cut short");
}

/* ---- the wire ---- */

static realm_status read_varint(reader *d, uint64_t *out)
{
    *out = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        if (d->at == d->end)
            return cut_short(d);
        uint8_t byte = *d->at++;
        *out |= (uint64_t)(byte & 0x7F) << shift;
        if (byte < 0x80)
            return REALM_OK;
    }
    return wrong(d, *d->path ? "holds a number of more than ten bytes"
                             : "the message holds a number of more than ten bytes");
}

static realm_status read_fixed(reader *d, size_t size, uint64_t *out)
{
    *out = 0;
    if ((size_t)(d->end - d->at) < size)
        return cut_short(d);
    for (size_t i = 0; i < size; i++)
        *out |= (uint64_t)*d->at++ << (8 * i);
    return REALM_OK;
}

/* The next length and its bytes, as a reader of their own. */
static realm_status read_part(reader *d, reader *out)
{
    uint64_t size;
    realm_status status = read_varint(d, &size);
    if (status)
        return status;
    if (size > (uint64_t)(d->end - d->at))
        return cut_short(d);
    *out = *d;
    out->end = d->at + size;
    d->at += size;
    return REALM_OK;
}

static realm_status skip(reader *d, unsigned wire)
{
    uint64_t number;
    reader part;
    switch (wire) {
    case WIRE_VARINT: return read_varint(d, &number);
    case WIRE_64: return read_fixed(d, 8, &number);
    case WIRE_BYTES: return read_part(d, &part);
    case WIRE_32: return read_fixed(d, 4, &number);
    default: return wrong(d, "the message holds a group, which proto3 has not");
    }
}

/* ---- values ---- */

static unsigned wire_of(ProtobufCType type)
{
    switch (type) {
    case PROTOBUF_C_TYPE_FIXED32:
    case PROTOBUF_C_TYPE_SFIXED32:
    case PROTOBUF_C_TYPE_FLOAT: return WIRE_32;
    case PROTOBUF_C_TYPE_FIXED64:
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_DOUBLE: return WIRE_64;
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_BYTES:
    case PROTOBUF_C_TYPE_MESSAGE: return WIRE_BYTES;
    default: return WIRE_VARINT;
    }
}

static realm_status real(reader *d, double number, json_t **out)
{
    if (!isfinite(number))
        return wrong(d, "must be a finite number");
    *out = json_real(number);
    return REALM_OK;
}

static realm_status read_number(reader *d, ProtobufCType type, json_t **out)
{
    uint64_t bits;
    unsigned wire = wire_of(type);
    realm_status status = wire == WIRE_VARINT ? read_varint(d, &bits)
                                              : read_fixed(d, wire == WIRE_64 ? 8 : 4, &bits);
    if (status)
        return status;
    float single;
    double wide;
    uint32_t low = (uint32_t)bits;
    switch (type) {
    case PROTOBUF_C_TYPE_FLOAT: memcpy(&single, &low, 4); return real(d, single, out);
    case PROTOBUF_C_TYPE_DOUBLE: memcpy(&wide, &bits, 8); return real(d, wide, out);
    case PROTOBUF_C_TYPE_BOOL: *out = json_boolean(bits != 0); return REALM_OK;
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_SINT64:
        *out = json_integer((json_int_t)(bits >> 1 ^ (0 - (bits & 1))));
        return REALM_OK;
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SFIXED32:
    case PROTOBUF_C_TYPE_ENUM: *out = json_integer((int32_t)low); return REALM_OK;
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32: *out = json_integer(low); return REALM_OK;
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
        if (bits > INT64_MAX)
            return wrong(d, "is too large");
        /* fallthrough */
    default: *out = json_integer((json_int_t)bits); return REALM_OK;
    }
}

static realm_status read_text(reader *d, json_t **out)
{
    reader part = {0};
    realm_status status = read_part(d, &part);
    if (status)
        return status;
    *out = json_stringn((const char *)part.at, (size_t)(part.end - part.at));
    return *out ? REALM_OK : wrong(d, "must be UTF-8");
}

static realm_status read_message(reader *d, const ProtobufCMessageDescriptor *type, json_t *into,
                                 int depth);

static realm_status read_inner(reader *d, const ProtobufCFieldDescriptor *field, json_t *into,
                               int depth)
{
    reader part = {0};
    realm_status status = read_part(d, &part);
    if (!status && depth == MAX_DEPTH)
        status = wrong(d, "nests too deep");
    return status ? status : read_message(&part, field->descriptor, into, depth + 1);
}

/* ---- fields ---- */

/* Another field of the same oneof is given up. */
static void clear_others(const ProtobufCMessageDescriptor *type,
                         const ProtobufCFieldDescriptor *field, json_t *into)
{
    if (!(field->flags & PROTOBUF_C_FIELD_FLAG_ONEOF))
        return;
    for (unsigned i = 0; i < type->n_fields; i++) {
        const ProtobufCFieldDescriptor *other = &type->fields[i];
        if (other != field && (other->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) &&
            other->quantifier_offset == field->quantifier_offset)
            json_object_del(into, other->name);
    }
}

static realm_status read_single(reader *d, const ProtobufCFieldDescriptor *field, json_t *into,
                                int depth)
{
    json_t *value = NULL;
    realm_status status;
    if (field->type == PROTOBUF_C_TYPE_MESSAGE) {
        value = json_object_get(into, field->name);
        if (!value) {
            json_object_set_new(into, field->name, json_object());
            value = json_object_get(into, field->name);
        }
        return value ? read_inner(d, field, value, depth) : REALM_NO_MEMORY;
    }
    if (wire_of(field->type) == WIRE_BYTES)
        status = read_text(d, &value);
    else
        status = read_number(d, field->type, &value);
    if (!status && json_object_set_new(into, field->name, value))
        status = REALM_NO_MEMORY;
    return status;
}

static realm_status read_packed(reader *d, const ProtobufCFieldDescriptor *field, json_t *list)
{
    reader part = {0};
    realm_status status = read_part(d, &part);
    while (!status && part.at < part.end) {
        json_t *value = NULL;
        status = read_number(&part, field->type, &value);
        if (!status && json_array_append_new(list, value))
            status = REALM_NO_MEMORY;
    }
    return status;
}

static realm_status read_member(reader *d, const ProtobufCFieldDescriptor *field, json_t *list,
                                int depth)
{
    json_t *value = NULL;
    realm_status status;
    if (wire_of(field->type) == WIRE_BYTES && ++*d->n_members > MAX_MEMBERS)
        return wrong(d, "is one too many: lists are too long");
    if (field->type == PROTOBUF_C_TYPE_MESSAGE) {
        value = json_object();
        status = value ? read_inner(d, field, value, depth) : REALM_NO_MEMORY;
    } else if (wire_of(field->type) == WIRE_BYTES) {
        status = read_text(d, &value);
    } else {
        status = read_number(d, field->type, &value);
    }
    if (status)
        json_decref(value);
    else if (json_array_append_new(list, value))
        status = REALM_NO_MEMORY;
    return status;
}

static realm_status read_repeated(reader *d, const ProtobufCFieldDescriptor *field, unsigned wire,
                                  json_t *into, int depth)
{
    json_t *list = json_object_get(into, field->name);
    if (!list) {
        json_object_set_new(into, field->name, json_array());
        list = json_object_get(into, field->name);
    }
    if (!list)
        return REALM_NO_MEMORY;
    size_t known = strlen(d->path);
    if (wire == WIRE_BYTES && wire_of(field->type) != WIRE_BYTES)
        return read_packed(d, field, list);
    snprintf(d->path + known, GRPC_JSON_PATH_SIZE - known, "[%zu]", json_array_size(list));
    return read_member(d, field, list, depth);
}

static realm_status read_field(reader *d, const ProtobufCMessageDescriptor *type, json_t *into,
                               int depth)
{
    uint64_t key;
    realm_status status = read_varint(d, &key);
    if (status)
        return status;
    unsigned wire = (unsigned)(key & 7);
    uint64_t number = key >> 3;
    if (number == 0 || number > MAX_NUMBER)
        return wrong(d, *d->path ? "holds a field whose number cannot be"
                                 : "the message holds a field whose number cannot be");
    const ProtobufCFieldDescriptor *field = protobuf_c_message_descriptor_get_field(
        type, (unsigned)number);
    if (!field && d->strict)
        return realm_fail(
            d->error, REALM_INVALID,
            "%s has no field %u that this server knows of: it is older than the client", type->name,
            (unsigned)number);
    if (!field)
        return skip(d, wire);
    size_t known = strlen(d->path);
    snprintf(d->path + known, GRPC_JSON_PATH_SIZE - known, "%s%s", known ? "." : "", field->name);
    int is_list = field->label == PROTOBUF_C_LABEL_REPEATED;
    unsigned wanted = wire_of(field->type);
    if (wire != wanted && !(is_list && wire == WIRE_BYTES))
        return wrong(d, "is of another type");
    clear_others(type, field, into);
    status = is_list ? read_repeated(d, field, wire, into, depth)
                     : read_single(d, field, into, depth);
    if (!status)
        d->path[known] = 0;
    return status;
}

static realm_status read_message(reader *d, const ProtobufCMessageDescriptor *type, json_t *into,
                                 int depth)
{
    realm_status status = REALM_OK;
    while (!status && d->at < d->end)
        status = read_field(d, type, into, depth);
    return status;
}

realm_status grpc_json_read(json_t **out, const ProtobufCMessageDescriptor *type, const void *data,
                            size_t size, int strict, char path[GRPC_JSON_PATH_SIZE],
                            realm_error *error)
{
    int n_members = 0;
    reader d = {.at = data,
                .end = (const uint8_t *)data + size,
                .strict = strict,
                .n_members = &n_members,
                .path = path,
                .error = error};
    *path = 0;
    json_t *value = json_object();
    realm_status status = value ? read_message(&d, type, value, 0) : REALM_NO_MEMORY;
    if (status == REALM_NO_MEMORY)
        realm_fail_memory(error, size, "a message");
    if (status) {
        json_decref(value);
        return status;
    }
    *out = value;
    return REALM_OK;
}
