/* base/map.h: from byte strings to pointers; keys are copied, values are the caller's.
 *
 * Open addressing with linear probing, at most three quarters full; the hash is seeded per map
 * from the operating system, so that keys a tenant chooses cannot be made to collide. One thread
 * at a time. */
#ifndef REALM_BASE_MAP_H
#define REALM_BASE_MAP_H

#include "base/fail.h"

typedef struct map_slot {
    char *key; /* NULL: free */
    size_t key_size;
    uint64_t hash;
    void *value;
} map_slot;

typedef struct map {
    map_slot *slots;
    size_t capacity; /* a power of two, or 0 */
    size_t count;
    uint64_t seed;
} map;

void map_init(map *m);
void map_release(map *m);

/* The value, or NULL. */
void *map_get(const map *m, const void *key, size_t key_size);

/* Adds or replaces; *old (may be NULL) gets the value replaced or NULL. value must not be NULL.
 * REALM_NO_MEMORY leaves the map as it was. */
realm_status map_put(map *m, const void *key, size_t key_size, void *value, void **old);

/* Removes and returns the value, or NULL. */
void *map_remove(map *m, const void *key, size_t key_size);

/* Walks every slot: start with *position 0; returns NULL at the end. Do not change the map. */
const map_slot *map_next(const map *m, size_t *position);

/* A 64-bit seeded hash of bytes, for tables (not for secrets). */
uint64_t map_hash(uint64_t seed, const void *bytes, size_t size);

/* A seed from the operating system, for tables that call map_hash themselves. */
uint64_t map_seed(void);

#endif
