/* base/numa.c: see numa.h. The system's own calls, without libnuma: two of them are all that is needed. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "base/numa.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <linux/mempolicy.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "base/log.h"

#define PATH_SIZE 4608
#define LIST_SIZE 1024

/* The bits of a list like "0-1,3"; what is no list ends it. */
static numa_nodes parse_list(const char *list)
{
    numa_nodes nodes = 0;
    for (const char *at = list;;) {
        char *end;
        unsigned long first = strtoul(at, &end, 10), last = first;
        if (end == at)
            return nodes;
        if (*end == '-') {
            at = end + 1;
            last = strtoul(at, &end, 10);
            if (end == at)
                return nodes;
        }
        for (unsigned long i = first; i <= last && i < NUMA_NODES_MAX; i++)
            nodes |= (numa_nodes)1 << i;
        if (*end != ',')
            return nodes;
        at = end + 1;
    }
}

/* What follows a name at the beginning of a file's line. 1: found. */
static int read_line(const char *root, const char *path, const char *name, char text[LIST_SIZE])
{
    char whole[PATH_SIZE], line[LIST_SIZE];
    size_t size = strlen(name);
    int found = 0, length = snprintf(whole, sizeof whole, "%s/%s", root, path);
    FILE *file = length > 0 && (size_t)length < sizeof whole ? fopen(whole, "re") : NULL;
    while (file && !found && fgets(line, sizeof line, file)) {
        found = strncmp(line, name, size) == 0;
        if (found)
            strcpy(text, line + size);
    }
    if (file)
        fclose(file);
    return found;
}

numa_nodes numa_nodes_read(const char *root)
{
    char text[LIST_SIZE];
    if (!read_line(root, "sys/devices/system/node/has_memory", "", text))
        return 0;
    numa_nodes nodes = parse_list(text);
    if (read_line(root, "proc/self/status", "Mems_allowed_list:\t", text))
        nodes &= parse_list(text);
    return nodes;
}

int numa_interleave_over(numa_nodes nodes, void *memory, size_t size)
{
#if defined(__linux__) && defined(SYS_mbind)
    /* The system reads one bit less than it is told. */
    unsigned long mask[NUMA_NODES_MAX / (8 * sizeof(unsigned long))];
    memcpy(mask, &nodes, sizeof mask);
    return syscall(SYS_mbind, memory, size, MPOL_INTERLEAVE, mask, NUMA_NODES_MAX + 1, 0) == 0
               ? 0
               : errno;
#else
    (void)nodes, (void)memory, (void)size;
    return ENOSYS;
#endif
}

static numa_nodes g_nodes;
static pthread_once_t g_read = PTHREAD_ONCE_INIT, g_told = PTHREAD_ONCE_INIT;

static void read_nodes(void)
{
    g_nodes = numa_nodes_read("");
}

static void tell(void)
{
    LOG_I("numa", "memory of %d nodes: packed weights lie on all of them in turn",
          __builtin_popcountll(g_nodes));
}

static void tell_refused(void)
{
    LOG_W("numa",
          "memory of %d nodes, but the system does not let this process spread weights over them: "
          "most may come to lie on one, far from the other cores",
          __builtin_popcountll(g_nodes));
}

void numa_interleave(void *memory, size_t size)
{
    pthread_once(&g_read, read_nodes);
    if ((g_nodes & (g_nodes - 1)) == 0)
        return;
    pthread_once(&g_told, numa_interleave_over(g_nodes, memory, size) == 0 ? tell : tell_refused);
}
