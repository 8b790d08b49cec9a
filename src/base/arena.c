/* base/arena.c: see arena.h. */
#include "base/arena.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ALIGNMENT                  16
#define FIRST_BLOCK_BYTES          4096
#define LARGEST_SHARED_BLOCK_BYTES ((size_t)1 << 20)

struct arena_block {
    arena_block *older;
    size_t size; /* payload bytes */
    size_t used;
    size_t pad; /* keeps the payload 16-byte aligned */
};
_Static_assert(sizeof(arena_block) % ALIGNMENT == 0, "what follows a block's head must be aligned");

void arena_init(arena *a, size_t cap_bytes)
{
    *a = (arena){.cap_bytes = cap_bytes};
}

void arena_release(arena *a)
{
    for (arena_block *block = a->newest, *older; block; block = older) {
        older = block->older;
        free(block);
    }
    a->newest = NULL;
    a->used_bytes = 0;
}

/* A block with room for size. One made for a single large taking goes behind the newest, whose free
 * room would otherwise be lost. */
static arena_block *add_block(arena *a, size_t size)
{
    size_t room = FIRST_BLOCK_BYTES;
    if (a->newest && a->newest->size < LARGEST_SHARED_BLOCK_BYTES)
        room = a->newest->size * 2;
    else if (a->newest)
        room = LARGEST_SHARED_BLOCK_BYTES;
    if (room > LARGEST_SHARED_BLOCK_BYTES)
        room = LARGEST_SHARED_BLOCK_BYTES;
    int single = size > room;
    arena_block *block = calloc(1, sizeof *block + (single ? size : room));
    if (!block)
        return NULL;
    block->size = single ? size : room;
    arena_block **link = single && a->newest ? &a->newest->older : &a->newest;
    block->older = *link;
    *link = block;
    return block;
}

void *arena_take(arena *a, size_t size)
{
    if (size > SIZE_MAX - sizeof(arena_block) - ALIGNMENT)
        return NULL;
    size = (size + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1);
    if (size == 0)
        size = ALIGNMENT;
    if (a->cap_bytes && (size > a->cap_bytes || a->used_bytes > a->cap_bytes - size))
        return NULL;
    arena_block *block = a->newest;
    if (!block || block->size - block->used < size) {
        block = add_block(a, size);
        if (!block)
            return NULL;
    }
    void *memory = (char *)(block + 1) + block->used;
    block->used += size;
    a->used_bytes += size;
    return memory;
}

void *arena_take_array(arena *a, size_t count, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes))
        return NULL;
    return arena_take(a, bytes);
}

char *arena_copy(arena *a, const void *text, size_t size)
{
    if (size == SIZE_MAX)
        return NULL;
    char *copy = arena_take(a, size + 1);
    if (copy && size)
        memcpy(copy, text, size);
    return copy;
}

char *arena_printf(arena *a, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int size = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (size < 0)
        return NULL;
    char *text = arena_take(a, (size_t)size + 1);
    if (!text)
        return NULL;
    va_start(arguments, format);
    vsnprintf(text, (size_t)size + 1, format, arguments);
    va_end(arguments);
    return text;
}
