/* base/buffer.h: bytes that grow up to a cap.
 *
 * Every growable buffer in Realm is one of these, so that each has a cap somebody chose. Adding
 * fails with REALM_TOO_LARGE at the cap and REALM_NO_MEMORY past the host; either way what is
 * already in stays as it was. What is made of many additions need not look at each: `lost` says
 * whether one of them failed. One thread at a time. */
#ifndef REALM_BASE_BUFFER_H
#define REALM_BASE_BUFFER_H

#include "base/fail.h"

typedef struct buffer {
    char *data; /* NULL or capacity bytes, of which size are used; one more is kept for a NUL */
    size_t size;
    size_t capacity;
    size_t cap_bytes;
    realm_status lost; /* of the first addition that failed since it was empty; REALM_OK: none */
} buffer;

void buffer_init(buffer *b, size_t cap_bytes);
void buffer_release(buffer *b);

/* Empties it and keeps its memory. */
void buffer_clear(buffer *b);

/* Makes room for more bytes after size; does not change size. Counts as an addition. */
realm_status buffer_reserve(buffer *b, size_t more);

/* What is added is copied and must not be part of b itself, which may move. */
realm_status buffer_add(buffer *b, const void *bytes, size_t size);
realm_status buffer_add_text(buffer *b, const char *text);
realm_status buffer_printf(buffer *b, const char *format, ...) REALM_PRINTF(2, 3);

/* Removes the first count bytes (at most all). */
void buffer_drop_front(buffer *b, size_t count);

/* The bytes as a terminated string, "" when empty; valid until the next change. */
const char *buffer_text(buffer *b);

#endif
