/* formats/gguf_internal.h: what the gguf_*.c files share and nobody else includes.
 *
 * gguf_parse.c makes a gguf_file of the bytes of one file; gguf_shards.c opens the files and joins
 * them; gguf.c is what the public header gives out; gguf_table.c finds rows by name. All memory
 * comes from the gguf's one arena, which has no cap: every taking is bounded by the bytes of the
 * file that asked for it (see gguf_parse.c). */
#ifndef REALM_FORMATS_GGUF_INTERNAL_H
#define REALM_FORMATS_GGUF_INTERNAL_H

#include "base/arena.h"
#include "base/file.h"
#include "formats/gguf.h"

#define GGUF_MAX_PAIRS   65536u
#define GGUF_MAX_TENSORS 1048576u
#define GGUF_MAX_SHARDS  1024u

/* Finds rows of an array by the gguf_string each begins with. Open addressing, at most half
 * full. */
typedef struct gguf_table {
    const void *rows;
    size_t stride;
    uint32_t *slots; /* row + 1, or 0 where free */
    size_t mask;
    uint64_t seed;
} gguf_table;

/* REALM_CORRUPT if two rows have the same name; they are *first and *second. REALM_NO_MEMORY. */
realm_status gguf_table_build(gguf_table *table, arena *memory, const void *rows, size_t stride,
                              size_t count, size_t *first, size_t *second);

/* The row, or NULL. */
const void *gguf_table_find(const gguf_table *table, const char *name, size_t size);

/* One file. Pairs, tensors and tables are in the arena; everything they point to is in the
 * mapping. */
typedef struct gguf_file {
    const char *path; /* for messages; in the arena */
    file_map map;     /* descriptor -1 if the bytes are somebody's memory */
    uint32_t version;
    uint32_t alignment;
    gguf_pair *pairs;
    size_t pair_count;
    gguf_table pair_table;
    uint64_t *
        *string_starts; /* [pair_count]: of an array of strings, where each one's length stands,
                                 from the start of the file; else NULL */
    gguf_tensor *tensors;
    uint64_t *tensor_entries; /* [tensor_count]: where each is described, for messages */
    size_t tensor_count;
} gguf_file;

struct gguf {
    arena memory;
    gguf_file *files;
    uint32_t file_count;
    gguf_tensor *tensors; /* of all files */
    size_t tensor_count;
    uint64_t tensor_bytes;
    gguf_table tensor_table;
};

/* Reads and checks everything about one file but what needs other files. file->path and file->map
 * are set; shard is what its tensors are marked with. */
realm_status gguf_parse(gguf_file *file, uint32_t shard, arena *memory, realm_error *error);

/* Opens path and its siblings into g->files, each parsed, and checks that they belong together. */
realm_status gguf_shards_open(gguf *g, const char *path, realm_error *error);

/* REALM_UNSUPPORTED if the only file says that it is one of several. */
realm_status gguf_shards_refuse(const gguf_file *file, realm_error *error);

/* The integer under key in one file; see gguf_get_u64. */
realm_status gguf_file_get_u64(const gguf_file *file, const char *key, uint64_t max, uint64_t *out,
                               realm_error *error);

/* Bytes of one scalar; 0 for STRING, ARRAY and what is no type. */
size_t gguf_type_size(uint32_t type);

/* The end of a path that is too long for a sentence. */
const char *gguf_path_tail(const char *path);

#endif
