/* model/metadata.h: reading "ARCHITECTURE.some.key" with limits.
 *
 * Every number a model file gives is checked here, once, where it is read: the sentence of a
 * refusal has the whole key, the value and the limits. Used by architectures.c and rope.c while a
 * model is opened; any thread. */
#ifndef REALM_MODEL_METADATA_H
#define REALM_MODEL_METADATA_H

#include "formats/gguf.h"

#define METADATA_KEY_SIZE 160

/* How architectures.c and rope.c name a file's keys: prefix is general.architecture. */
typedef struct metadata {
    const gguf *gguf;
    const char *prefix;
} metadata;

/* "prefix.suffix" in key (terminated). Returns key. */
const char *metadata_key(const metadata *m, const char *suffix, char key[METADATA_KEY_SIZE]);

/* A whole number from low to high. *out is left alone when the key is absent: then *found (may be
 * NULL, which makes the key required) is 0.
 *   REALM_CORRUPT  absent though required, of another kind, or out of range */
realm_status metadata_int(const metadata *m, const char *suffix, int32_t low, int32_t high,
                          int32_t *out, int *found, realm_error *error);

/* The same for a finite number: NaN and infinities are out of every range. */
realm_status metadata_float(const metadata *m, const char *suffix, double low, double high,
                            float *out, int *found, realm_error *error);

/* One number for all of count layers, or an array of at least count numbers. */
realm_status metadata_ints(const metadata *m, const char *suffix, int32_t low, int32_t high,
                           int32_t *out, int32_t count, int *found, realm_error *error);

#endif
