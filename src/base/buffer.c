/* base/buffer.c: see buffer.h. */
#include "base/buffer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void buffer_init(buffer *b, size_t cap_bytes)
{
    *b = (buffer){.cap_bytes = cap_bytes};
}

void buffer_release(buffer *b)
{
    free(b->data);
    b->data = NULL;
    b->size = b->capacity = 0;
    b->lost = REALM_OK;
}

void buffer_clear(buffer *b)
{
    b->size = 0;
    b->lost = REALM_OK;
}

static realm_status lose(buffer *b, realm_status status)
{
    if (!b->lost)
        b->lost = status;
    return status;
}

realm_status buffer_reserve(buffer *b, size_t more)
{
    if (more > b->cap_bytes || b->size > b->cap_bytes - more)
        return lose(b, REALM_TOO_LARGE);
    size_t wanted = b->size + more;
    if (wanted <= b->capacity && b->data)
        return REALM_OK;
    size_t capacity = b->capacity ? b->capacity : 64;
    while (capacity < wanted)
        capacity = capacity > b->cap_bytes / 2 ? b->cap_bytes : capacity * 2;
    char *data = capacity < SIZE_MAX ? realloc(b->data, capacity + 1) : NULL;
    if (!data)
        return lose(b, REALM_NO_MEMORY);
    b->data = data;
    b->capacity = capacity;
    return REALM_OK;
}

realm_status buffer_add(buffer *b, const void *bytes, size_t size)
{
    realm_status status = buffer_reserve(b, size);
    if (status)
        return status;
    if (size)
        memcpy(b->data + b->size, bytes, size);
    b->size += size;
    return REALM_OK;
}

realm_status buffer_add_text(buffer *b, const char *text)
{
    return buffer_add(b, text, strlen(text));
}

realm_status buffer_printf(buffer *b, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int size = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (size < 0)
        return lose(b, REALM_INVALID);
    realm_status status = buffer_reserve(b, (size_t)size);
    if (status)
        return status;
    va_start(arguments, format);
    vsnprintf(b->data + b->size, (size_t)size + 1, format, arguments);
    va_end(arguments);
    b->size += (size_t)size;
    return REALM_OK;
}

void buffer_drop_front(buffer *b, size_t count)
{
    if (count > b->size)
        count = b->size;
    if (count && count < b->size)
        memmove(b->data, b->data + count, b->size - count);
    b->size -= count;
}

const char *buffer_text(buffer *b)
{
    if (!b->data)
        return "";
    b->data[b->size] = 0;
    return b->data;
}
