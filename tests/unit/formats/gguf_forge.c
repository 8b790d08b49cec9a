/* tests/unit/formats/gguf_forge.c: see gguf_forge.h. */
#include "unit/formats/gguf_forge.h"

#include <stdlib.h>
#include <string.h>

#define LARGEST_FILE_BYTES ((size_t)1 << 30)

static void add(buffer *b, const void *bytes, size_t size)
{
    if (buffer_add(b, bytes, size))
        abort();
}

static void add_u32(buffer *b, uint32_t value)
{
    add(b, &value, sizeof value);
}

static void add_u64(buffer *b, uint64_t value)
{
    add(b, &value, sizeof value);
}

static void add_string(buffer *b, const char *text)
{
    add_u64(b, strlen(text));
    add(b, text, strlen(text));
}

static void pad(buffer *b, size_t alignment)
{
    while (b->size % alignment)
        add(b, "", 1);
}

void gguf_forge_init(gguf_forge *w)
{
    *w = (gguf_forge){.version = 3, .alignment = 32};
    buffer_init(&w->pairs, LARGEST_FILE_BYTES);
    buffer_init(&w->tensors, LARGEST_FILE_BYTES);
    buffer_init(&w->data, LARGEST_FILE_BYTES);
}

void gguf_forge_release(gguf_forge *w)
{
    buffer_release(&w->pairs);
    buffer_release(&w->tensors);
    buffer_release(&w->data);
}

void gguf_forge_pair(gguf_forge *w, const char *key, gguf_type type, const void *bytes, size_t size)
{
    add_string(&w->pairs, key);
    add_u32(&w->pairs, type);
    add(&w->pairs, bytes, size);
    w->pair_count++;
}

void gguf_forge_u32(gguf_forge *w, const char *key, uint32_t value)
{
    gguf_forge_pair(w, key, GGUF_U32, &value, sizeof value);
}

void gguf_forge_f32(gguf_forge *w, const char *key, float value)
{
    gguf_forge_pair(w, key, GGUF_F32, &value, sizeof value);
}

void gguf_forge_string(gguf_forge *w, const char *key, const char *value)
{
    gguf_forge_pair(w, key, GGUF_STRING, NULL, 0);
    add_string(&w->pairs, value);
}

void gguf_forge_array(gguf_forge *w, const char *key, gguf_type element, uint64_t count,
                      const void *bytes, size_t size)
{
    gguf_forge_pair(w, key, GGUF_ARRAY, NULL, 0);
    add_u32(&w->pairs, element);
    add_u64(&w->pairs, count);
    add(&w->pairs, bytes, size);
}

void gguf_forge_strings(gguf_forge *w, const char *key, uint64_t count, const char *const *values)
{
    gguf_forge_array(w, key, GGUF_STRING, count, NULL, 0);
    for (uint64_t i = 0; i < count; i++)
        add_string(&w->pairs, values[i]);
}

void gguf_forge_tensor(gguf_forge *w, const char *name, dtype type, const uint64_t dims[4],
                       const void *bytes)
{
    uint32_t n_dims = 0;
    size_t size = dtype_row_bytes(type, dims[0]);
    while (n_dims < 4 && dims[n_dims])
        n_dims++;
    pad(&w->data, w->alignment);
    add_string(&w->tensors, name);
    add_u32(&w->tensors, n_dims);
    for (uint32_t i = 0; i < n_dims; i++) {
        add_u64(&w->tensors, dims[i]);
        size *= i ? dims[i] : 1;
    }
    add_u32(&w->tensors, type);
    add_u64(&w->tensors, w->data.size);
    if (bytes)
        add(&w->data, bytes, size);
    for (size_t i = 0; !bytes && i < size; i++)
        add(&w->data, "", 1);
    w->tensor_count++;
}

void gguf_forge_finish(const gguf_forge *w, buffer *out)
{
    buffer_init(out, LARGEST_FILE_BYTES);
    add(out, "GGUF", 4);
    add_u32(out, w->version);
    add_u64(out, w->tensor_count);
    add_u64(out, w->pair_count);
    add(out, w->pairs.data, w->pairs.size);
    add(out, w->tensors.data, w->tensors.size);
    if (w->tensor_count)
        pad(out, w->alignment);
    add(out, w->data.data, w->data.size);
}

uint8_t *gguf_forge_find(const buffer *file, const char *name)
{
    uint64_t length = strlen(name);
    for (size_t i = 0; i + 8 + length <= file->size; i++)
        if (memcmp(file->data + i, &length, 8) == 0 &&
            memcmp(file->data + i + 8, name, length) == 0)
            return (uint8_t *)file->data + i + 8 + length;
    abort();
}
