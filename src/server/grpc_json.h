/* server/grpc_json.h: a protobuf message's bytes as JSON, by its descriptor.
 *
 * What comes in is hostile. Names are the .proto's; what is absent stays absent; a map is a list of {"key",
 * "value"}. Texts must be UTF-8 (our descriptors call them bytes, see RealmProto.cmake) and may hold U+0000.
 * The last of several values of a field holds, messages given twice are merged, and packed numbers are taken
 * packed or not, as protobuf wants it. Any thread. */
#ifndef REALM_SERVER_GRPC_JSON_H
#define REALM_SERVER_GRPC_JSON_H

#include <protobuf-c/protobuf-c.h>

#include "formats/json.h"

/* The field that is wrong, "messages[2].content"; "" if it is none. */
#define GRPC_JSON_PATH_SIZE 128

/* *out is the caller's, to json_decref. strict: fields that the descriptor does not have are an error, else
 * they are passed over.
 *   REALM_INVALID    the sentence says what is wrong, path where
 *   REALM_NO_MEMORY */
realm_status grpc_json_read(json_t **out, const ProtobufCMessageDescriptor *type, const void *data,
                            size_t size, int strict, char path[GRPC_JSON_PATH_SIZE],
                            realm_error *error);

#endif
