/* formats/gguf.h: GGUF model files, versions 2 and 3, one file or shards.
 *
 * A gguf is opened once, then constant: any thread may read it. The files stay mapped until it is
 * closed and everything it gives out points into the mapping or into its arena: nothing is
 * copied. The file is hostile until gguf_open returns: every count, length, type, offset and
 * alignment has been checked against the file's real size by then, no tensor overlaps another,
 * no name occurs twice, and the messages name the field and the byte offset.
 * Source: the GGUF specification (ggml/docs/gguf.md). */
#ifndef REALM_FORMATS_GGUF_H
#define REALM_FORMATS_GGUF_H

#include "base/dtype.h"
#include "base/fail.h"

typedef struct gguf gguf;

/* Value types as the file numbers them. */
typedef enum gguf_type {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
} gguf_type;

/* Borrowed bytes inside the mapping; not terminated, may hold any byte. */
typedef struct gguf_string {
    const char *data;
    size_t size;
} gguf_string;

typedef struct gguf_value {
    gguf_type type;
    union {
        uint64_t u;         /* U8 U16 U32 U64 BOOL */
        int64_t i;          /* I8 I16 I32 I64 */
        double f;           /* F32 F64 */
        gguf_string string; /* STRING */
        struct {
            gguf_type type; /* of the elements; arrays of arrays are UNSUPPORTED */
            uint64_t count;
            const void *data; /* scalars: packed little-endian, maybe unaligned: read with
                                   gguf_array_*; strings: use gguf_array_string */
            uint32_t index;   /* private: which pair this is, for gguf_array_string */
        } array;
    };
} gguf_value;

typedef struct gguf_pair {
    gguf_string key;
    gguf_value value;
    uint64_t offset; /* of the key, in the first file */
} gguf_pair;

#define GGUF_MAX_DIMS 4

typedef struct gguf_tensor {
    gguf_string name;
    uint32_t type;                /* a dtype */
    uint32_t n_dims;              /* 1 to 4 */
    uint64_t dims[GGUF_MAX_DIMS]; /* dims[0] is the length of a row (fastest); unused ones are 1 */
    const uint8_t *data;          /* in the mapping */
    size_t size;                  /* bytes */
    uint32_t shard;               /* which file holds it */
    uint64_t file_offset;         /* of data, in that file */
} gguf_tensor;

/* Opens path and, if its metadata say split.count > 1, its sibling shards
 * (NAME-00001-of-0000N.gguf; path must be the first). A file may have metadata and no tensors
 * (a vocabulary). At most 65,536 pairs, 1,048,576 tensors, 1,024 shards.
 * Metadata of the first file only are kept: the others repeat what says which shard they are.
 * Tensors come in the order of the shards, then in the order of their file.
 *   REALM_NOT_FOUND, REALM_IO  the file or a shard cannot be opened
 *   REALM_INVALID              not a regular file, or a shard that is not the first
 *   REALM_CORRUPT              the sentence names file, offset and field
 *   REALM_UNSUPPORTED          version 1 or past 3, big endian, an array of arrays, or a tensor
 *                              type that is not in dtype.h
 *   REALM_NO_MEMORY            for the index, which is a few times the metadata at most */
realm_status gguf_open(gguf **out, const char *path, realm_error *error);
void gguf_close(gguf *g);

/* The same from bytes in memory, which must stay: for tests and fuzzing. One file; a shard is
 * REALM_UNSUPPORTED. */
realm_status gguf_open_memory(gguf **out, const void *data, size_t size, realm_error *error);

uint32_t gguf_version(const gguf *g);
uint32_t gguf_alignment(const gguf *g);
uint32_t gguf_shard_count(const gguf *g);
/* Descriptor and path of a shard, borrowed: the sandbox maps weights from it. -1 from memory. */
int gguf_shard_descriptor(const gguf *g, uint32_t shard);
const char *gguf_shard_path(const gguf *g, uint32_t shard);
uint64_t gguf_file_bytes(const gguf *g); /* all shards together */

/* Sixteen bytes that tell this content from any other, wherever it lies; gguf_identity.c says what
 * goes in. Reads a few pages of the files.
 *   REALM_UNSUPPORTED  the model is in memory, not in a file
 *   REALM_IO, REALM_CORRUPT, REALM_NO_MEMORY */
#define GGUF_IDENTITY_SIZE 16
realm_status gguf_identity(const gguf *g, uint8_t identity[GGUF_IDENTITY_SIZE], realm_error *error);

size_t gguf_pair_count(const gguf *g);
const gguf_pair *gguf_pair_at(const gguf *g, size_t index);
size_t gguf_tensor_count(const gguf *g);
const gguf_tensor *gguf_tensor_at(const gguf *g, size_t index);
/* Bytes of weights: the sizes of all tensors together, without what is between them. */
uint64_t gguf_tensor_bytes(const gguf *g);
const gguf_tensor *gguf_find_tensor(const gguf *g, const char *name); /* NULL if absent */

/* Metadata by key; NULL if absent. */
const gguf_value *gguf_find(const gguf *g, const char *key);

/* Typed reading. If the key is absent *out is left alone and REALM_NOT_FOUND returned; if it is
 * of another kind or does not fit, REALM_CORRUPT. Integers of any width and sign are accepted for
 * u32/u64/i64; floats and integers for f32. error may be NULL. */
realm_status gguf_get_u32(const gguf *g, const char *key, uint32_t *out, realm_error *error);
realm_status gguf_get_u64(const gguf *g, const char *key, uint64_t *out, realm_error *error);
realm_status gguf_get_i64(const gguf *g, const char *key, int64_t *out, realm_error *error);
realm_status gguf_get_f32(const gguf *g, const char *key, float *out, realm_error *error);
realm_status gguf_get_bool(const gguf *g, const char *key, int *out, realm_error *error);
realm_status gguf_get_string(const gguf *g, const char *key, gguf_string *out, realm_error *error);
/* The array under key if its elements are of the wanted type. */
realm_status gguf_get_array(const gguf *g, const char *key, gguf_type element,
                            const gguf_value **out, realm_error *error);

/* Elements of an array value; index must be below count. */
gguf_string gguf_array_string(const gguf *g, const gguf_value *array, uint64_t index);
/* Any integer or bool; U64 from 2^63 on comes out negative: cast it back. 0 if it is neither. */
int64_t gguf_array_int(const gguf_value *array, uint64_t index);
double gguf_array_float(const gguf_value *array, uint64_t index); /* F32 F64 or any integer */

const char *gguf_type_name(gguf_type type); /* "u32", "string", ... */

#endif
