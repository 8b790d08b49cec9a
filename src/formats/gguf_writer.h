/* formats/gguf_writer.h: writes GGUF files, version 3, alignment 32.
 *
 * Metadata and the list of tensors are collected in memory. Tensors' bytes either are too, and then
 * gguf_writer_bytes or _save gives the whole file, or they are only announced: gguf_writer_head
 * gives what comes before them, and the caller, whose file may be larger than memory, writes each
 * one's bytes after it, in the order they were announced. The first failure is kept, what comes
 * after it does nothing, and whatever ends the writing reports it: no single call needs a check.
 * Bad files can be made as well (a key twice, a tensor's type that is none): tests do. One thread. */
#ifndef REALM_FORMATS_GGUF_WRITER_H
#define REALM_FORMATS_GGUF_WRITER_H

#include "base/buffer.h"
#include "formats/gguf.h"

#define GGUF_WRITER_ALIGNMENT 32

typedef struct gguf_writer {
    buffer pairs, infos, data;
    uint64_t pair_count, tensor_count;
    uint64_t data_bytes; /* of all tensors so far, each with its padding */
    int announced;       /* some tensor's bytes are not in data */
    realm_status status; /* the first failure: TOO_LARGE past 1 GiB in memory, or NO_MEMORY */
} gguf_writer;

void gguf_writer_init(gguf_writer *w);
void gguf_writer_release(gguf_writer *w);

/* Metadata, copied; a key written twice stands in the file twice. */
void gguf_writer_u32(gguf_writer *w, const char *key, uint32_t value);
void gguf_writer_f32(gguf_writer *w, const char *key, float value);
void gguf_writer_bool(gguf_writer *w, const char *key, int value);
void gguf_writer_string(gguf_writer *w, const char *key, const char *value);
void gguf_writer_u32s(gguf_writer *w, const char *key, const uint32_t *values, size_t count);
void gguf_writer_i32s(gguf_writer *w, const char *key, const int32_t *values, size_t count);
void gguf_writer_f32s(gguf_writer *w, const char *key, const float *values, size_t count);
void gguf_writer_strings(gguf_writer *w, const char *key, const char *const *values, size_t count);

/* A tensor of n_rows rows of n_cols (n_rows 0: a vector); data has the bytes the type says and is
 * copied. */
void gguf_writer_tensor(gguf_writer *w, const char *name, uint32_t type, uint64_t n_cols,
                        uint64_t n_rows, const void *data);
/* The same without its bytes. Returns how many the caller is to write for it; they are followed by
 * zeros up to a multiple of GGUF_WRITER_ALIGNMENT. */
size_t gguf_writer_announce(gguf_writer *w, const char *name, uint32_t type, uint64_t n_cols,
                            uint64_t n_rows);

/* Appends everything before the tensors' bytes to out, whose size is a multiple of the alignment,
 * and so it is afterwards.
 *   as w->status     something before failed
 *   REALM_TOO_LARGE  out has a cap that is too small */
realm_status gguf_writer_head(const gguf_writer *w, buffer *out, realm_error *error);

/* The whole file: appended to out, or written to path as a whole or not at all. As gguf_writer_head,
 * and REALM_INVALID if a tensor was only announced; _save also as file_write. */
realm_status gguf_writer_bytes(const gguf_writer *w, buffer *out, realm_error *error);
realm_status gguf_writer_save(const gguf_writer *w, const char *path, realm_error *error);

#endif
