/* sandbox/handles.h: the numbers a guest knows its host objects by.
 *
 * A handle is a slot's index and how often the slot was used: 12 and 19 bits, so it is positive,
 * a stale one is recognized, and none comes twice in a request (a slot that was used 2^19 times
 * is not used again). One table a request; its sandbox thread. */
#ifndef REALM_SANDBOX_HANDLES_H
#define REALM_SANDBOX_HANDLES_H

#include <stdint.h>

typedef enum handle_kind {
    HANDLE_FREE,
    HANDLE_MODEL,
    HANDLE_SESSION,
    HANDLE_LAYER,
    HANDLE_WEIGHT,
    HANDLE_TENSOR,
} handle_kind;

typedef struct handle_slot {
    uint32_t generation; /* of the handle in use, or the last one */
    handle_kind kind;
    int32_t next_free;
    const void *object;
} handle_slot;

#define HANDLE_SLOTS_MAX 4096

typedef struct handle_table {
    handle_slot *slots; /* [capacity] */
    int32_t capacity, used;
    int32_t first_free, last_free; /* -1: none; first in, first out, so that all slots wear alike */
} handle_table;

void handles_init(handle_table *t);
void handles_release(handle_table *t); /* not the objects */

/* A new handle for object, or 0 if there are HANDLE_SLOTS_MAX already or memory is out. */
int32_t handles_take(handle_table *t, handle_kind kind, const void *object);
void handles_give(handle_table *t, int32_t handle);

/* The object, or NULL; *actual (may be NULL) says what the handle is: HANDLE_FREE if nothing. */
void *handles_find(const handle_table *t, int32_t handle, handle_kind kind, handle_kind *actual);

const char *handle_kind_name(handle_kind kind); /* "a session" */

#endif
