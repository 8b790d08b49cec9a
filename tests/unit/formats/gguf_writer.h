/* tests/unit/formats/gguf_writer.h: makes small GGUF files in memory, for tests that need one of
 * their own.
 *
 * Written from the specification and apart from the reader, so that one does not repeat the other's
 * mistakes. Aborts where memory ends. Tests that need a lie patch the finished bytes:
 * gguf_writer_find gives the place after a name. */
#ifndef REALM_TESTS_GGUF_WRITER_H
#define REALM_TESTS_GGUF_WRITER_H

#include "base/buffer.h"
#include "base/dtype.h"
#include "formats/gguf.h"

typedef struct gguf_writer {
    uint32_t version, alignment; /* alignment is only used here; say it in general.alignment too */
    uint64_t pair_count, tensor_count;
    buffer pairs, tensors, data;
} gguf_writer;

/* Version 3, alignment 32. */
void gguf_writer_init(gguf_writer *w);
void gguf_writer_release(gguf_writer *w);

/* A value of any type, its bytes as the file has them. */
void gguf_writer_pair(gguf_writer *w, const char *key, gguf_type type, const void *bytes,
                      size_t size);
void gguf_writer_u32(gguf_writer *w, const char *key, uint32_t value);
void gguf_writer_f32(gguf_writer *w, const char *key, float value);
void gguf_writer_string(gguf_writer *w, const char *key, const char *value);
void gguf_writer_array(gguf_writer *w, const char *key, gguf_type element, uint64_t count,
                       const void *bytes, size_t size);
void gguf_writer_strings(gguf_writer *w, const char *key, uint64_t count,
                         const char *const *values);

/* bytes NULL: zeroes. Unused dims are 0. */
void gguf_writer_tensor(gguf_writer *w, const char *name, dtype type, const uint64_t dims[4],
                        const void *bytes);

/* The whole file; *out is initialised here and the caller's to release. */
void gguf_writer_finish(const gguf_writer *w, buffer *out);

/* The byte after name (with its length before it) in a finished file. */
uint8_t *gguf_writer_find(const buffer *file, const char *name);

#endif
