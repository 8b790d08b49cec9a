/* base/free_memory.h: how much memory this process may still take before something has to give.
 *
 * The machine's own answer is wrong inside a container: what kills a process there is its control
 * group, or one above it. So the answer is the least of what the machine has and what every group
 * on the way up leaves, each with the page cache that it would give back counted as free. Stateless;
 * any thread. */
#ifndef REALM_BASE_FREE_MEMORY_H
#define REALM_BASE_FREE_MEMORY_H

#include <stdint.h>

typedef struct free_memory {
    uint64_t total_bytes; /* of the machine, or the lowest limit of a group */
    uint64_t free_bytes;  /* 0 if a limit has been reached already */
    char bound[192];      /* what sets free_bytes: "the machine", "cgroup /a/b memory.max" */
} free_memory;

/* root stands before every path that is read: "" but in tests. Where there is no /proc (macOS) half
 * of the physical memory counts as free. */
void free_memory_read(free_memory *out, const char *root);

#endif
