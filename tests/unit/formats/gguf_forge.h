/* tests/unit/formats/gguf_forge.h: GGUF files field by field, for tests of the reader itself.
 *
 * Any type of value, any dims, version and alignment, and places in the finished bytes to change:
 * what no good writer makes. Written from the specification and apart from the reader, so that one
 * does not repeat the other's mistakes. Tests of what stands on the reader make their models with
 * formats/gguf_writer.h. Aborts where memory ends. */
#ifndef REALM_TESTS_GGUF_FORGE_H
#define REALM_TESTS_GGUF_FORGE_H

#include "base/buffer.h"
#include "base/dtype.h"
#include "formats/gguf.h"

typedef struct gguf_forge {
    uint32_t version, alignment; /* alignment is only used here; say it in general.alignment too */
    uint64_t pair_count, tensor_count;
    buffer pairs, tensors, data;
} gguf_forge;

/* Version 3, alignment 32. */
void gguf_forge_init(gguf_forge *w);
void gguf_forge_release(gguf_forge *w);

/* A value of any type, its bytes as the file has them. */
void gguf_forge_pair(gguf_forge *w, const char *key, gguf_type type, const void *bytes,
                     size_t size);
void gguf_forge_u32(gguf_forge *w, const char *key, uint32_t value);
void gguf_forge_f32(gguf_forge *w, const char *key, float value);
void gguf_forge_string(gguf_forge *w, const char *key, const char *value);
void gguf_forge_array(gguf_forge *w, const char *key, gguf_type element, uint64_t count,
                      const void *bytes, size_t size);
void gguf_forge_strings(gguf_forge *w, const char *key, uint64_t count, const char *const *values);

/* bytes NULL: zeroes. Unused dims are 0. */
void gguf_forge_tensor(gguf_forge *w, const char *name, dtype type, const uint64_t dims[4],
                       const void *bytes);

/* The whole file; *out is initialised here and the caller's to release. */
void gguf_forge_finish(const gguf_forge *w, buffer *out);

/* The byte after name (with its length before it) in a finished file. */
uint8_t *gguf_forge_find(const buffer *file, const char *name);

#endif
