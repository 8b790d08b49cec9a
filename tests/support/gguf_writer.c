/* tests/support/gguf_writer.c: see gguf_writer.h. The layout is the GGUF specification's:
 * header, pairs, tensor infos, padding, data. */
#include "support/gguf_writer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 32
#define CAP_BYTES ((size_t)1 << 30)

static void must(int ok, const char *what)
{
    if (ok)
        return;
    fprintf(stderr, "gguf_writer: %s\n", what);
    abort();
}

static void add(buffer *b, const void *bytes, size_t size)
{
    must(buffer_add(b, bytes, size) == REALM_OK, "out of memory");
}

static void add_u32(buffer *b, uint32_t v)
{
    add(b, &v, sizeof v);
}
static void add_u64(buffer *b, uint64_t v)
{
    add(b, &v, sizeof v);
}

static void add_string(buffer *b, const char *text)
{
    add_u64(b, strlen(text));
    add(b, text, strlen(text));
}

static void pad(buffer *b)
{
    static const char zeros[ALIGNMENT];
    add(b, zeros, (ALIGNMENT - b->size % ALIGNMENT) % ALIGNMENT);
}

void gguf_writer_init(gguf_writer *w)
{
    memset(w, 0, sizeof *w);
    buffer_init(&w->pairs, CAP_BYTES);
    buffer_init(&w->infos, CAP_BYTES);
    buffer_init(&w->data, CAP_BYTES);
}

void gguf_writer_release(gguf_writer *w)
{
    buffer_release(&w->pairs);
    buffer_release(&w->infos);
    buffer_release(&w->data);
}

static void begin_pair(gguf_writer *w, const char *key, gguf_type type)
{
    add_string(&w->pairs, key);
    add_u32(&w->pairs, type);
    w->pair_count++;
}

static void begin_array(gguf_writer *w, const char *key, gguf_type type, size_t count)
{
    begin_pair(w, key, GGUF_ARRAY);
    add_u32(&w->pairs, type);
    add_u64(&w->pairs, count);
}

void gguf_writer_u32(gguf_writer *w, const char *key, uint32_t value)
{
    begin_pair(w, key, GGUF_U32);
    add_u32(&w->pairs, value);
}

void gguf_writer_f32(gguf_writer *w, const char *key, float value)
{
    begin_pair(w, key, GGUF_F32);
    add(&w->pairs, &value, sizeof value);
}

void gguf_writer_bool(gguf_writer *w, const char *key, int value)
{
    uint8_t byte = value != 0;
    begin_pair(w, key, GGUF_BOOL);
    add(&w->pairs, &byte, 1);
}

void gguf_writer_string(gguf_writer *w, const char *key, const char *value)
{
    begin_pair(w, key, GGUF_STRING);
    add_string(&w->pairs, value);
}

void gguf_writer_u32s(gguf_writer *w, const char *key, const uint32_t *values, size_t count)
{
    begin_array(w, key, GGUF_U32, count);
    add(&w->pairs, values, count * sizeof *values);
}

void gguf_writer_i32s(gguf_writer *w, const char *key, const int32_t *values, size_t count)
{
    begin_array(w, key, GGUF_I32, count);
    add(&w->pairs, values, count * sizeof *values);
}

void gguf_writer_f32s(gguf_writer *w, const char *key, const float *values, size_t count)
{
    begin_array(w, key, GGUF_F32, count);
    add(&w->pairs, values, count * sizeof *values);
}

void gguf_writer_strings(gguf_writer *w, const char *key, const char *const *values, size_t count)
{
    begin_array(w, key, GGUF_STRING, count);
    for (size_t i = 0; i < count; i++)
        add_string(&w->pairs, values[i]);
}

void gguf_writer_tensor(gguf_writer *w, const char *name, uint32_t type, uint64_t n_cols,
                        uint64_t n_rows, const void *data)
{
    size_t bytes = dtype_row_bytes(type, n_cols) * (n_rows == 0 ? 1 : n_rows);
    add_string(&w->infos, name);
    add_u32(&w->infos, n_rows == 0 ? 1 : 2);
    add_u64(&w->infos, n_cols);
    if (n_rows > 0)
        add_u64(&w->infos, n_rows);
    add_u32(&w->infos, type);
    add_u64(&w->infos, w->data.size);
    add(&w->data, data, bytes);
    pad(&w->data);
    w->tensor_count++;
}

void gguf_writer_bytes(const gguf_writer *w, buffer *out)
{
    size_t start = out->size;
    must(start % ALIGNMENT == 0, "output does not begin at a multiple of the alignment");
    add(out, "GGUF", 4);
    add_u32(out, 3);
    add_u64(out, w->tensor_count);
    add_u64(out, w->pair_count);
    add(out, w->pairs.data, w->pairs.size);
    add(out, w->infos.data, w->infos.size);
    pad(out);
    add(out, w->data.data, w->data.size);
}

void gguf_writer_save(const gguf_writer *w, const char *path)
{
    buffer bytes;
    buffer_init(&bytes, CAP_BYTES);
    gguf_writer_bytes(w, &bytes);
    FILE *f = fopen(path, "wb");
    must(f != NULL, "cannot open the file");
    must(fwrite(bytes.data, 1, bytes.size, f) == bytes.size, "cannot write the file");
    must(fclose(f) == 0, "cannot close the file");
    buffer_release(&bytes);
}
