/* server/otlp.h: spans as OTLP's protobuf, and what a collector answers: bytes out, bytes in. Any thread. */
#ifndef REALM_SERVER_OTLP_H
#define REALM_SERVER_OTLP_H

#include "base/buffer.h"
#include "server/spans.h"

/* An attribute of the resource: who sends. */
typedef struct otlp_pair {
    const char *name, *value;
} otlp_pair;

/* Appends an ExportTraceServiceRequest with the spans of all requests of the list.
 *   REALM_NO_MEMORY, REALM_TOO_LARGE  as buffer_reserve */
realm_status otlp_encode(const spans *list, const otlp_pair *resource, size_t n_resource,
                         buffer *out);

/* How many spans a body that came with 200 says were refused; 0 also where it is no such body. */
int64_t otlp_rejected(const void *body, size_t size);

/* Reads "name=value,other=value" (OTEL_RESOURCE_ATTRIBUTES and _HEADERS: W3C's baggage, values percent-encoded) into
 * memory: *out is [*count] pairs.
 *   REALM_INVALID  a part has no '=' or no name, or a broken escape */
realm_status otlp_read_pairs(const char *text, arena *memory, otlp_pair **out, size_t *count,
                             realm_error *error);

#endif
