/* compute/weight_cache.h: a model's packed weights in a file, so that a machine packs them once.
 *
 * A backend that lays weights out its own way asks here before it does: weight_cache_find gives the
 * bytes that an earlier process made, or NULL. What it then makes itself it adds, and weight_cache_
 * save writes everything to one file for those who come after. The bytes are the backend's affair: a
 * layout number says what they are, so that other devices can keep theirs in the same kind of file.
 *
 * Nothing that is found is damaged, cut short, of another model, another layout or another user:
 * whatever is not whole is as if it were not there (weight_file.h says how that is known), and one
 * line in the log tells. Nothing here is needed: a backend without a cache packs, as ever.
 *
 * One cache serves one model on one backend; the loading thread opens it, lends it to weight_open
 * through weight_source and saves it. Bytes that were found stay until weight_cache_close, any
 * thread may read them. */
#ifndef REALM_COMPUTE_WEIGHT_CACHE_H
#define REALM_COMPUTE_WEIGHT_CACHE_H

#include <stddef.h>
#include <stdint.h>

#include "base/fail.h"

typedef struct weight_cache weight_cache;

#define WEIGHT_IDENTITY_SIZE 16

/* How found bytes come to memory. */
typedef enum weight_cache_mode {
    WEIGHT_CACHE_READ, /* copied into huge pages of our own: the fastest to compute with */
    WEIGHT_CACHE_MAP,  /* the file's own pages, one copy for all processes that map it */
} weight_cache_mode;

typedef struct weight_cache_options {
    const char *path;                       /* of the file, there or not; copied */
    uint8_t identity[WEIGHT_IDENTITY_SIZE]; /* of the model's content */
    const char *origin;                     /* where the model came from, kept in the file for
                                               whoever tidies up; copied; NULL: "" */
    weight_cache_mode mode;
    int32_t n_threads; /* that read and check the file; 0: cpu_count() */
} weight_cache_options;

/* What a packed weight is found by. All of it must agree. */
typedef struct weight_key {
    const char *name;       /* of the tensor; with first_row unique in its model */
    uint32_t type;          /* dtype in the model's file */
    int32_t n_rows, n_cols; /* of what was packed */
    int32_t first_row;      /* of a part, in its tensor */
    uint32_t layout;        /* the backend's number for what the bytes are; not 0 */
    size_t size;            /* bytes of the packed form; not 0 */
} weight_key;

/* Opens a cache, empty if there is no whole file of this model at the path.
 *   REALM_NO_MEMORY */
realm_status weight_cache_open(weight_cache **out, const weight_cache_options *options,
                               realm_error *error);
void weight_cache_close(weight_cache *c); /* NULL allowed */

/* The packed form, read-only and aligned to 64 bytes, or NULL. */
const void *weight_cache_find(weight_cache *c, const weight_key *key);

/* Remembers a packed form for weight_cache_save, unless one of that name has been found or added
 * before. data is borrowed until then (or until close).
 *   REALM_NO_MEMORY */
realm_status weight_cache_add(weight_cache *c, const weight_key *key, const void *data,
                              realm_error *error);

typedef struct weight_cache_facts {
    uint64_t found_bytes, added_bytes; /* packed, by weight_cache_find and _add */
    int32_t found, added;
} weight_cache_facts;
weight_cache_facts weight_cache_facts_get(const weight_cache *c);
const weight_cache_options *weight_cache_options_get(const weight_cache *c); /* its own copy */

/* Writes what was found and added as one file, in place of what is at the path; nothing to do if
 * nothing was added. The data that was added is no longer borrowed after.
 *   REALM_IO         the folder cannot be written; the disk is full (with what is there kept) */
realm_status weight_cache_save(weight_cache *c, realm_error *error);

#endif
