/* tests/support/gguf_writer.h: writes GGUF files for tests, good ones and bad ones.
 *
 * Collects pairs and tensors in memory and writes them once. Any failure aborts the test program:
 * there is nothing a test could do about it. One thread. */
#ifndef REALM_TESTS_GGUF_WRITER_H
#define REALM_TESTS_GGUF_WRITER_H

#include "base/buffer.h"
#include "formats/gguf.h"

typedef struct gguf_writer {
    buffer pairs, infos, data;
    uint64_t pair_count, tensor_count;
} gguf_writer;

void gguf_writer_init(gguf_writer *w);
void gguf_writer_release(gguf_writer *w);

/* Metadata; a key written twice stands in the file twice. */
void gguf_writer_u32(gguf_writer *w, const char *key, uint32_t value);
void gguf_writer_f32(gguf_writer *w, const char *key, float value);
void gguf_writer_bool(gguf_writer *w, const char *key, int value);
void gguf_writer_string(gguf_writer *w, const char *key, const char *value);
void gguf_writer_u32s(gguf_writer *w, const char *key, const uint32_t *values, size_t count);
void gguf_writer_i32s(gguf_writer *w, const char *key, const int32_t *values, size_t count);
void gguf_writer_f32s(gguf_writer *w, const char *key, const float *values, size_t count);
void gguf_writer_strings(gguf_writer *w, const char *key, const char *const *values, size_t count);

/* A tensor of n_rows rows of n_cols (n_rows 0: a vector); data has the bytes the type says. */
void gguf_writer_tensor(gguf_writer *w, const char *name, uint32_t type, uint64_t n_cols,
                        uint64_t n_rows, const void *data);

/* The whole file, version 3, alignment 32: appended to out, or written to path. */
void gguf_writer_bytes(const gguf_writer *w, buffer *out);
void gguf_writer_save(const gguf_writer *w, const char *path);

#endif
