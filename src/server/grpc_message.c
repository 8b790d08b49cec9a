/* server/grpc_message.c: see grpc_message.h. */
#include "server/grpc_message.h"

#include <string.h>
#include <zlib.h>

#define GZIP_WINDOW (15 + 16) /* zlib: the largest window, and gzip's head and tail */

/* ---- frames ---- */

grpc_frame_state grpc_frame_read(const void *data, size_t size, size_t limit, grpc_frame *out)
{
    const uint8_t *bytes = data;
    if (size && bytes[0] > 1)
        return GRPC_FRAME_BAD;
    if (size < GRPC_PREFIX_SIZE)
        return GRPC_FRAME_PART;
    size_t length = (size_t)bytes[1] << 24 | (size_t)bytes[2] << 16 | (size_t)bytes[3] << 8 |
                    bytes[4];
    if (length > limit)
        return GRPC_FRAME_TOO_LARGE;
    if (length > size - GRPC_PREFIX_SIZE)
        return GRPC_FRAME_PART;
    *out = (grpc_frame){.is_compressed = bytes[0],
                        .data = (const char *)bytes + GRPC_PREFIX_SIZE,
                        .size = length,
                        .used = GRPC_PREFIX_SIZE + length};
    return GRPC_FRAME_WHOLE;
}

void *grpc_frame_add(buffer *out, size_t size)
{
    if (size > UINT32_MAX || buffer_reserve(out, GRPC_PREFIX_SIZE + size))
        return NULL;
    const uint8_t prefix[GRPC_PREFIX_SIZE] = {0, (uint8_t)(size >> 24), (uint8_t)(size >> 16),
                                              (uint8_t)(size >> 8), (uint8_t)size};
    buffer_add(out, prefix, sizeof prefix);
    void *room = out->data + out->size;
    out->size += size;
    return room;
}

/* ---- gzip ---- */

/* Inflates one member from z; *ended: it came to its end. */
static realm_status inflate_some(z_stream *z, size_t limit, buffer *out, int *ended)
{
    uint8_t piece[16 << 10];
    z->next_out = piece;
    z->avail_out = sizeof piece;
    int code = inflate(z, Z_NO_FLUSH);
    size_t made = sizeof piece - z->avail_out;
    *ended = code == Z_STREAM_END;
    if (code == Z_MEM_ERROR)
        return REALM_NO_MEMORY;
    if (code != Z_OK && code != Z_STREAM_END)
        return REALM_CORRUPT; /* Z_BUF_ERROR too: all was given, and more is missing */
    if (made > limit - out->size)
        return REALM_TOO_LARGE;
    return buffer_add(out, piece, made);
}

realm_status grpc_gunzip(const void *data, size_t size, size_t limit, buffer *out)
{
    z_stream z = {.next_in = (Bytef *)(uintptr_t)data, .avail_in = (uInt)size};
    if (size > UINT32_MAX)
        return REALM_TOO_LARGE;
    if (inflateInit2(&z, GZIP_WINDOW) != Z_OK)
        return REALM_NO_MEMORY;
    realm_status status = REALM_OK;
    int ended = 0;
    while (!status && (!ended || z.avail_in)) {
        if (ended)
            inflateReset(&z);
        status = inflate_some(&z, limit, out, &ended);
    }
    inflateEnd(&z);
    return status;
}

/* ---- headers and trailers ---- */

int grpc_timeout_parse(const char *text, uint64_t *out_ns)
{
    static const struct {
        char unit;
        uint64_t ns;
    } units[] = {{'H', 3600000000000u}, {'M', 60000000000u}, {'S', 1000000000u},
                 {'m', 1000000u},       {'u', 1000u},        {'n', 1u}};
    uint64_t number = 0;
    size_t digits = 0;
    for (; text[digits] >= '0' && text[digits] <= '9' && digits < 9; digits++)
        number = number * 10 + (uint64_t)(text[digits] - '0');
    if (digits < 1 || digits > 8 || !text[digits] || text[digits + 1])
        return 0;
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (units[i].unit == text[digits]) {
            *out_ns = number * units[i].ns; /* 10^8 hours are 3.6e20 ns, over 2^64 */
            if (number && *out_ns / number != units[i].ns)
                *out_ns = UINT64_MAX;
            return 1;
        }
    return 0;
}

void grpc_add_encoded(buffer *out, const char *text)
{
    for (; *text; text++)
        if (*text >= 0x20 && *text < 0x7F && *text != '%')
            buffer_add(out, text, 1);
        else
            buffer_printf(out, "%%%02X", (unsigned char)*text);
}
