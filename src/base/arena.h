/* base/arena.h: memory that is freed all at once.
 *
 * A request, a parsed file or a compiled table has one arena; whatever it needs on the way is
 * taken from it and nothing is freed singly. Blocks double up to 1 MiB; larger takings get a
 * block of their own. An arena has a cap, so that what a tenant sends cannot grow it for ever.
 * One thread at a time. */
#ifndef REALM_BASE_ARENA_H
#define REALM_BASE_ARENA_H

#include <stddef.h>
#include <stdint.h>

#include "base/fail.h"

typedef struct arena_block arena_block;

typedef struct arena {
    arena_block *newest;
    size_t used_bytes; /* handed out, with alignment */
    size_t cap_bytes;  /* arena_take fails past this */
} arena;

/* An empty arena. cap_bytes 0 means no cap: only for what Realm itself sizes. */
void arena_init(arena *a, size_t cap_bytes);

/* Frees every block; the arena is empty and may be used again. */
void arena_release(arena *a);

/* Zeroed memory aligned to 16 bytes, or NULL if the cap or the host's memory is reached.
 * size 0 gives a valid pointer. */
void *arena_take(arena *a, size_t size);

/* count zeroed things of size bytes each; NULL if the product overflows or as arena_take. */
void *arena_take_array(arena *a, size_t count, size_t size);

/* A terminated copy of text[0..size); NULL as arena_take. */
char *arena_copy(arena *a, const void *text, size_t size);

/* A terminated formatted string; NULL as arena_take. */
char *arena_printf(arena *a, const char *format, ...) REALM_PRINTF(2, 3);

#endif
