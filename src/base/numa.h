/* base/numa.h: which of the machine's nodes have memory for this process, and large memory spread over
 * them.
 *
 * On a machine with several nodes a page lies on the node of the thread that touches it first. Weights
 * are written once, by whichever threads load them, and read by all: pages in turn on all nodes give
 * every core the same mean distance and all memory channels the same load. Compute threads are not
 * pinned, so nothing closer could be kept. On a machine with one node nothing here does anything. */
#ifndef REALM_BASE_NUMA_H
#define REALM_BASE_NUMA_H

#include <stddef.h>
#include <stdint.h>

#define NUMA_NODES_MAX 64 /* nodes with higher numbers are left alone */

/* Bit i: node i has memory, and this process may use it. */
typedef uint64_t numa_nodes;

/* Reads them, from /sys and from what /proc/self/status says of our cpuset. 0 where there are no such
 * files. root stands before every path that is read: "" but in tests. Any thread. */
numa_nodes numa_nodes_read(const char *root);

/* Has the pages of memory that are not there yet come from these nodes in turn. memory begins at a
 * page's start; at the end whole pages are meant. Any thread.
 *   0, or an errno: ENOSYS and EPERM where a system or a container has no such call; the memory is as
 *   good as before */
int numa_interleave_over(numa_nodes nodes, void *memory, size_t size);

/* The same over all nodes there are, read once. Does nothing where there is one. The first call says in
 * a log line what is done, or that it cannot be. Any thread. */
void numa_interleave(void *memory, size_t size);

#endif
