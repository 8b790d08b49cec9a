/* compute/weight_file.h: the file in which a weight_cache keeps packed weights.
 *
 *     header     one page: magic, version, the model's identity, sizes, checksums of the table and of
 *                itself
 *     table      entries; a checksum for each WEIGHT_FILE_CHUNK of data; names; the model's origin
 *     data       from a multiple of WEIGHT_FILE_ALIGN on: packed weights one after another, each at a
 *                multiple of 64, zeros between
 *
 * Numbers are the machine's (a file of the other byte order is refused like any stranger's). Written
 * to a temporary neighbour, flushed and renamed, so a reader sees a whole file or none; two who write
 * at once both succeed, and the last one's stays. Never written in place.
 *
 * Trust. The file must be a plain one of our own user that nobody else may write. The header and the
 * table are checked before anything in them is used, every offset against the file's size. Data are
 * checked by the chunk when they are brought to memory, all of them: a model's first token reads
 * every weight anyway, so to have read them in order before it costs little more than the arithmetic
 * (BENCHMARKS.md). A bit that flips on the disk is found at the next start and the weights are packed
 * anew. Any thread; no state but the handles. */
#ifndef REALM_COMPUTE_WEIGHT_FILE_H
#define REALM_COMPUTE_WEIGHT_FILE_H

#include "base/checksum.h"
#include "compute/weight_cache.h"

#define WEIGHT_FILE_VERSION 1
#define WEIGHT_FILE_ALIGN   ((size_t)2 << 20) /* of data: huge pages of x86-64 and ARM64 */
#define WEIGHT_FILE_CHUNK   ((size_t)1 << 20) /* bytes under one checksum */

typedef struct weight_file_entry {
    uint64_t offset, size; /* in data */
    uint32_t name, name_size;
    uint32_t type, layout;
    int32_t n_rows, n_cols, first_row, unused;
} weight_file_entry;

/* A file that has been read. */
typedef struct weight_file {
    const uint8_t *data; /* [data_bytes], aligned to WEIGHT_FILE_ALIGN; owned */
    uint64_t data_bytes, file_bytes;
    uint8_t identity[WEIGHT_IDENTITY_SIZE];
    const weight_file_entry *entries; /* [n_entries] */
    uint32_t n_entries;
    const char *names;  /* not terminated; entries say where theirs is */
    const char *origin; /* terminated */
    void *table;        /* owned: where entries, names and origin are */
    uint64_t inode;     /* tells whether the path still leads to it */
} weight_file;

/* Header and table alone, for those who look after the folder and to see whose file it is.
 *   REALM_NOT_FOUND    there is none
 *   REALM_CORRUPT      it is not whole, not such a file or of another version
 *   REALM_UNSUPPORTED  it belongs to someone else, or others may write it
 *   REALM_IO, REALM_NO_MEMORY */
realm_status weight_file_open_table(weight_file *f, const char *path, realm_error *error);

/* All of it, if it is of that identity.
 *   REALM_NOT_FOUND  there is none, or it is of another model
 *   else as weight_file_open_table */
realm_status weight_file_open(weight_file *f, const weight_cache_options *options,
                              realm_error *error);
void weight_file_close(weight_file *f);

/* One packed weight to be written. */
typedef struct weight_file_part {
    weight_key key;
    const void *data; /* [key.size] */
} weight_file_part;

/*   REALM_IO  the disk is full or would be nearly, the folder cannot be written, ... */
realm_status weight_file_write(const weight_cache_options *options, const weight_file_part *parts,
                               uint32_t n_parts, realm_error *error);

#endif
