/* sandbox/handles.c: see handles.h. */
#include "sandbox/handles.h"

#include <stdlib.h>

#define INDEX_BITS     12
#define INDEX_MASK     ((1 << INDEX_BITS) - 1)
#define GENERATION_MAX ((1u << (31 - INDEX_BITS)) - 1)

void handles_init(handle_table *t)
{
    *t = (handle_table){.first_free = -1, .last_free = -1};
}

void handles_release(handle_table *t)
{
    free(t->slots);
    handles_init(t);
}

static int grow(handle_table *t)
{
    int32_t capacity = t->capacity ? t->capacity * 2 : 64;
    if (t->capacity >= HANDLE_SLOTS_MAX)
        return 0;
    handle_slot *slots = realloc(t->slots, (size_t)capacity * sizeof *slots);
    if (!slots)
        return 0;
    t->slots = slots;
    t->capacity = capacity;
    return 1;
}

/* A slot never used comes before one that was, until there are no more. */
static int32_t take_slot(handle_table *t)
{
    if (t->first_free >= 0 && (t->used >= HANDLE_SLOTS_MAX || t->used == t->capacity)) {
        int32_t index = t->first_free;
        t->first_free = t->slots[index].next_free;
        if (t->first_free < 0)
            t->last_free = -1;
        return index;
    }
    if (t->used == t->capacity && !grow(t))
        return -1;
    t->slots[t->used] = (handle_slot){.next_free = -1};
    return t->used++;
}

int32_t handles_take(handle_table *t, handle_kind kind, const void *object)
{
    int32_t index = take_slot(t);
    if (index < 0)
        return 0;
    handle_slot *slot = &t->slots[index];
    slot->generation++;
    slot->kind = kind;
    slot->object = object;
    return (int32_t)(slot->generation << INDEX_BITS | (uint32_t)index);
}

static handle_slot *find_slot(const handle_table *t, int32_t handle)
{
    int32_t index = handle & INDEX_MASK;
    if (handle <= 0 || index >= t->used)
        return NULL;
    handle_slot *slot = &t->slots[index];
    int live = slot->kind != HANDLE_FREE && slot->generation == (uint32_t)handle >> INDEX_BITS;
    return live ? slot : NULL;
}

void handles_give(handle_table *t, int32_t handle)
{
    handle_slot *slot = find_slot(t, handle);
    if (!slot)
        return;
    slot->kind = HANDLE_FREE;
    slot->object = NULL;
    if (slot->generation == GENERATION_MAX)
        return; /* worn out */
    int32_t index = handle & INDEX_MASK;
    slot->next_free = -1;
    if (t->last_free >= 0)
        t->slots[t->last_free].next_free = index;
    else
        t->first_free = index;
    t->last_free = index;
}

void *handles_find(const handle_table *t, int32_t handle, handle_kind kind, handle_kind *actual)
{
    handle_slot *slot = find_slot(t, handle);
    if (actual)
        *actual = slot ? slot->kind : HANDLE_FREE;
    return slot && slot->kind == kind ? (void *)(uintptr_t)slot->object : NULL;
}

const char *handle_kind_name(handle_kind kind)
{
    static const char *const names[] = {"nothing", "a model",  "a session",
                                        "a layer", "a weight", "a tensor"};
    return names[kind];
}
