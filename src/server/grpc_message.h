/* server/grpc_message.h: gRPC's messages as bytes: length-prefixed frames, gzip, and the forms that headers and
 * trailers have. Bytes in, bytes out; any thread. */
#ifndef REALM_SERVER_GRPC_MESSAGE_H
#define REALM_SERVER_GRPC_MESSAGE_H

#include "base/buffer.h"

#define GRPC_PREFIX_SIZE 5 /* a flag and the size, big-endian */

typedef struct grpc_frame {
    int is_compressed;
    const char *data; /* borrowed from what was read */
    size_t size;
    size_t used; /* with its prefix */
} grpc_frame;

typedef enum grpc_frame_state {
    GRPC_FRAME_WHOLE,
    GRPC_FRAME_PART,      /* more bytes are needed */
    GRPC_FRAME_TOO_LARGE, /* told from the prefix alone */
    GRPC_FRAME_BAD,       /* a flag that is neither 0 nor 1 */
} grpc_frame_state;

/* The frame at the beginning of data. limit: of a message's bytes as they are sent. */
grpc_frame_state grpc_frame_read(const void *data, size_t size, size_t limit, grpc_frame *out);
/* Appends a prefix and room for size bytes, to which the result points; NULL: as buffer_reserve. */
void *grpc_frame_add(buffer *out, size_t size);

/* Appends what gzip made of it (one member or several).
 *   REALM_CORRUPT    it is no gzip, or cut short
 *   REALM_TOO_LARGE  it becomes more than limit bytes
 *   REALM_NO_MEMORY */
realm_status grpc_gunzip(const void *data, size_t size, size_t limit, buffer *out);

/* "250m": one to eight digits and a unit (H M S m u n). 0: it is no such thing. */
int grpc_timeout_parse(const char *text, uint64_t *out_ns);

/* Appends text as grpc-message wants it: what is not printable ASCII, and '%', as %XX. */
void grpc_add_encoded(buffer *out, const char *text);

#endif
