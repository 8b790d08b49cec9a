/* base/prefetch.h: asks the processor for memory that will be used soon.
 *
 * A model's step reads all weights, so whatever belongs to one sequence has left the caches, and its
 * pages the TLB, when it is needed again. Asked for some hundred nanoseconds early it arrives while
 * other work is done. A hint: memory that is asked for in vain costs a little and changes nothing. */
#ifndef REALM_BASE_PREFETCH_H
#define REALM_BASE_PREFETCH_H

#include <stddef.h>

#define PREFETCH_LINE 64

/* A function that does nothing but prefetch has no effect in the eyes of GCC, which then drops calls of
 * it. This is one. */
#define PREFETCH_KEEP() __asm__ volatile("")

/* A line every PREFETCH_LINE bytes of [from, from + size), to be written or only to be read. The address may
 * be anything. */
static inline void prefetch_to_write(const void *from, size_t size)
{
    PREFETCH_KEEP();
    for (size_t i = 0; i < size; i += PREFETCH_LINE)
        __builtin_prefetch((const char *)from + i, 1, 3);
}

static inline void prefetch_to_read(const void *from, size_t size)
{
    PREFETCH_KEEP();
    for (size_t i = 0; i < size; i += PREFETCH_LINE)
        __builtin_prefetch((const char *)from + i, 0, 3);
}

#endif
