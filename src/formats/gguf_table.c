/* formats/gguf_table.c: names to rows, for pairs and tensors. Built once, then read by any thread.
 * Not base/map.h: names are in the mapping already and need no copy each. */
#include <string.h>

#include "base/map.h"
#include "formats/gguf_internal.h"

static const gguf_string *name_of(const gguf_table *table, size_t row)
{
    return (const gguf_string *)(const void *)((const char *)table->rows + row * table->stride);
}

/* The slot that holds the name, or the free one where it would go. */
static uint32_t *slot_of(const gguf_table *table, const char *name, size_t size)
{
    for (size_t i = map_hash(table->seed, name, size);; i++) {
        uint32_t *slot = &table->slots[i & table->mask];
        if (!*slot)
            return slot;
        const gguf_string *other = name_of(table, *slot - 1);
        if (other->size == size && memcmp(other->data, name, size) == 0)
            return slot;
    }
}

realm_status gguf_table_build(gguf_table *table, arena *memory, const void *rows, size_t stride,
                              size_t count, size_t *first, size_t *second)
{
    size_t capacity = 16;
    while (capacity < count * 2)
        capacity *= 2;
    *table = (gguf_table){.rows = rows, .stride = stride, .mask = capacity - 1, .seed = map_seed()};
    table->slots = arena_take_array(memory, capacity, sizeof *table->slots);
    if (!table->slots)
        return REALM_NO_MEMORY;
    for (size_t row = 0; row < count; row++) {
        const gguf_string *name = name_of(table, row);
        uint32_t *slot = slot_of(table, name->data, name->size);
        if (*slot) {
            *first = *slot - 1;
            *second = row;
            return REALM_CORRUPT;
        }
        *slot = (uint32_t)row + 1;
    }
    return REALM_OK;
}

const void *gguf_table_find(const gguf_table *table, const char *name, size_t size)
{
    uint32_t slot = *slot_of(table, name, size);
    return slot ? name_of(table, slot - 1) : NULL;
}
