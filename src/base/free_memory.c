/* base/free_memory.c: see free_memory.h. */
#include "base/free_memory.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/control_groups.h"

/* A version's files. Its limits are named in order: hard ones first, so that of two that leave the
 * same the hard one is told. */
typedef struct group_version {
    const char *limits[2];
    const char *usage;
    const char *cache[2], *mapped; /* rows of memory.stat */
} group_version;

static const group_version versions[] = {
    {{"memory.max", "memory.high"},
     "memory.current",
     {"inactive_file", "active_file"},
     "file_mapped"},
    {{"memory.limit_in_bytes", NULL},
     "memory.usage_in_bytes",
     {"total_inactive_file", "total_active_file"},
     "total_mapped_file"},
};

/* More than any machine has: "no limit", which version 1 spells as a number near 2^63. */
#define NO_LIMIT ((uint64_t)1 << 62)

/* The number in a file of one; NO_LIMIT for "max" and for no such file. */
static uint64_t number_in(const char *folder, const char *leaf)
{
    char text[64] = "";
    FILE *file = control_groups_file(folder, leaf);
    if (!file)
        return NO_LIMIT;
    char *got = fgets(text, sizeof text, file), *end = text;
    fclose(file);
    errno = 0;
    uint64_t number = got ? strtoull(text, &end, 10) : 0;
    return end == text || errno || number > NO_LIMIT ? NO_LIMIT : number;
}

/* The row of a file of "name number" lines; 0 if it has none. */
static uint64_t row_of(FILE *file, const char *name)
{
    char line[256];
    size_t size = strlen(name);
    rewind(file);
    while (fgets(line, sizeof line, file))
        if (strncmp(line, name, size) == 0 && (line[size] == ' ' || line[size] == ':'))
            return strtoull(line + size + 1, NULL, 10);
    return 0;
}

/* Page cache that the group would give back: but for what is mapped, which is models in use. */
static uint64_t cache_of(const group_version *v, const char *folder)
{
    FILE *file = control_groups_file(folder, "memory.stat");
    if (!file)
        return 0;
    uint64_t cache = row_of(file, v->cache[0]) + row_of(file, v->cache[1]);
    uint64_t mapped = row_of(file, v->mapped);
    fclose(file);
    return cache > mapped ? cache - mapped : 0;
}

/* Lowers *context, a free_memory, to what a group leaves. */
static void take_group(void *context, const control_group *group)
{
    free_memory *out = context;
    const group_version *v = &versions[group->version == 2 ? 0 : 1];
    for (int i = 0; i < 2 && v->limits[i]; i++) {
        uint64_t limit = number_in(group->folder, v->limits[i]);
        if (limit >= NO_LIMIT)
            continue;
        uint64_t used = number_in(group->folder, v->usage), cache = cache_of(v, group->folder);
        used = used >= NO_LIMIT ? 0 : used > cache ? used - cache : 0;
        uint64_t left = limit > used ? limit - used : 0;
        out->total_bytes = limit < out->total_bytes ? limit : out->total_bytes;
        if (left < out->free_bytes) {
            out->free_bytes = left;
            snprintf(out->bound, sizeof out->bound, "cgroup %.140s %s", group->name, v->limits[i]);
        }
    }
}

void free_memory_read(free_memory *out, const char *root)
{
    *out = (free_memory){.bound = "the machine"};
    FILE *file = control_groups_file(root, "proc/meminfo");
    if (file) {
        out->total_bytes = row_of(file, "MemTotal") * 1024;
        out->free_bytes = row_of(file, "MemAvailable") * 1024;
        fclose(file);
    } else {
        out->total_bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
        out->free_bytes = out->total_bytes / 2;
    }
    control_groups_visit(root, "memory", take_group, out);
}
