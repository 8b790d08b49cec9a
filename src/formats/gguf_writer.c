/* formats/gguf_writer.c: see gguf_writer.h. The layout is the GGUF specification's: header, pairs,
 * tensor infos, padding, data. */
#include "formats/gguf_writer.h"

#include <string.h>

#include "base/file.h"

#define CAP_BYTES ((size_t)1 << 30)

static void add(gguf_writer *w, buffer *b, const void *bytes, size_t size)
{
    if (w->status == REALM_OK)
        w->status = buffer_add(b, bytes, size);
}

static void add_u32(gguf_writer *w, buffer *b, uint32_t v)
{
    add(w, b, &v, sizeof v);
}

static void add_u64(gguf_writer *w, buffer *b, uint64_t v)
{
    add(w, b, &v, sizeof v);
}

static void add_string(gguf_writer *w, buffer *b, const char *text)
{
    add_u64(w, b, strlen(text));
    add(w, b, text, strlen(text));
}

static size_t padding(uint64_t size)
{
    return (size_t)((GGUF_WRITER_ALIGNMENT - size % GGUF_WRITER_ALIGNMENT) % GGUF_WRITER_ALIGNMENT);
}

static const char zeros[GGUF_WRITER_ALIGNMENT];

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

/* ---- metadata ----------------------------------------------------------------------------------- */

static void begin_pair(gguf_writer *w, const char *key, gguf_type type)
{
    add_string(w, &w->pairs, key);
    add_u32(w, &w->pairs, type);
    w->pair_count++;
}

static void begin_array(gguf_writer *w, const char *key, gguf_type type, size_t count)
{
    begin_pair(w, key, GGUF_ARRAY);
    add_u32(w, &w->pairs, type);
    add_u64(w, &w->pairs, count);
}

void gguf_writer_u32(gguf_writer *w, const char *key, uint32_t value)
{
    begin_pair(w, key, GGUF_U32);
    add_u32(w, &w->pairs, value);
}

void gguf_writer_f32(gguf_writer *w, const char *key, float value)
{
    begin_pair(w, key, GGUF_F32);
    add(w, &w->pairs, &value, sizeof value);
}

void gguf_writer_bool(gguf_writer *w, const char *key, int value)
{
    uint8_t byte = value != 0;
    begin_pair(w, key, GGUF_BOOL);
    add(w, &w->pairs, &byte, 1);
}

void gguf_writer_string(gguf_writer *w, const char *key, const char *value)
{
    begin_pair(w, key, GGUF_STRING);
    add_string(w, &w->pairs, value);
}

void gguf_writer_u32s(gguf_writer *w, const char *key, const uint32_t *values, size_t count)
{
    begin_array(w, key, GGUF_U32, count);
    add(w, &w->pairs, values, count * sizeof *values);
}

void gguf_writer_i32s(gguf_writer *w, const char *key, const int32_t *values, size_t count)
{
    begin_array(w, key, GGUF_I32, count);
    add(w, &w->pairs, values, count * sizeof *values);
}

void gguf_writer_f32s(gguf_writer *w, const char *key, const float *values, size_t count)
{
    begin_array(w, key, GGUF_F32, count);
    add(w, &w->pairs, values, count * sizeof *values);
}

void gguf_writer_strings(gguf_writer *w, const char *key, const char *const *values, size_t count)
{
    begin_array(w, key, GGUF_STRING, count);
    for (size_t i = 0; i < count; i++)
        add_string(w, &w->pairs, values[i]);
}

/* ---- tensors ------------------------------------------------------------------------------------ */

static size_t add_info(gguf_writer *w, const char *name, uint32_t type, uint64_t n_cols,
                       uint64_t n_rows)
{
    size_t bytes = dtype_row_bytes(type, n_cols) * (n_rows == 0 ? 1 : (size_t)n_rows);
    add_string(w, &w->infos, name);
    add_u32(w, &w->infos, n_rows == 0 ? 1 : 2);
    add_u64(w, &w->infos, n_cols);
    if (n_rows > 0)
        add_u64(w, &w->infos, n_rows);
    add_u32(w, &w->infos, type);
    add_u64(w, &w->infos, w->data_bytes);
    w->data_bytes += bytes + padding(bytes);
    w->tensor_count++;
    return bytes;
}

void gguf_writer_tensor(gguf_writer *w, const char *name, uint32_t type, uint64_t n_cols,
                        uint64_t n_rows, const void *data)
{
    size_t bytes = add_info(w, name, type, n_cols, n_rows);
    add(w, &w->data, data, bytes);
    add(w, &w->data, zeros, padding(bytes));
}

size_t gguf_writer_announce(gguf_writer *w, const char *name, uint32_t type, uint64_t n_cols,
                            uint64_t n_rows)
{
    w->announced = 1;
    return add_info(w, name, type, n_cols, n_rows);
}

/* ---- the file ----------------------------------------------------------------------------------- */

static realm_status add_head(const gguf_writer *w, buffer *out)
{
    const uint32_t version = 3;
    realm_status status;
    if ((status = buffer_add(out, "GGUF", 4)) != REALM_OK ||
        (status = buffer_add(out, &version, sizeof version)) != REALM_OK ||
        (status = buffer_add(out, &w->tensor_count, sizeof w->tensor_count)) != REALM_OK ||
        (status = buffer_add(out, &w->pair_count, sizeof w->pair_count)) != REALM_OK ||
        (status = buffer_add(out, w->pairs.data, w->pairs.size)) != REALM_OK ||
        (status = buffer_add(out, w->infos.data, w->infos.size)) != REALM_OK)
        return status;
    return buffer_add(out, zeros, padding(out->size));
}

static realm_status fail(realm_error *error, realm_status status)
{
    return realm_fail(error, status,
                      status == REALM_TOO_LARGE ? "the GGUF file is larger than its writer's memory"
                                                : "not enough memory for writing a GGUF file");
}

realm_status gguf_writer_head(const gguf_writer *w, buffer *out, realm_error *error)
{
    if (out->size % GGUF_WRITER_ALIGNMENT != 0)
        return realm_fail(error, REALM_INVALID,
                          "a GGUF file must begin at a multiple of its alignment");
    realm_status status = w->status != REALM_OK ? w->status : add_head(w, out);
    return status == REALM_OK ? REALM_OK : fail(error, status);
}

realm_status gguf_writer_bytes(const gguf_writer *w, buffer *out, realm_error *error)
{
    if (w->announced)
        return realm_fail(error, REALM_INVALID,
                          "the bytes of some tensors of the GGUF file are not in memory");
    realm_status status = gguf_writer_head(w, out, error);
    if (status != REALM_OK)
        return status;
    status = buffer_add(out, w->data.data, w->data.size);
    return status == REALM_OK ? REALM_OK : fail(error, status);
}

realm_status gguf_writer_save(const gguf_writer *w, const char *path, realm_error *error)
{
    buffer bytes;
    buffer_init(&bytes, 2 * CAP_BYTES);
    realm_status status = gguf_writer_bytes(w, &bytes, error);
    if (status == REALM_OK)
        status = file_write(path, bytes.data, bytes.size, error);
    buffer_release(&bytes);
    return status;
}
