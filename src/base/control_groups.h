/* base/control_groups.h: the control groups that bound this process, of version 2 and 1.
 *
 * /proc/self/cgroup names our group in each hierarchy; its folder and every one above it may hold a
 * limit, so whoever looks for one visits them all. In a container the name may be one that only the
 * machine outside knows; then its folders do not exist, and the walk still ends at the mount's root,
 * where the container finds its own limit. Mounts are looked for where every distribution has them.
 * Stateless; any thread. */
#ifndef REALM_BASE_CONTROL_GROUPS_H
#define REALM_BASE_CONTROL_GROUPS_H

#include <stdio.h>

typedef struct control_group {
    int version;        /* 2 or 1: its files' names differ */
    const char *folder; /* with what stands before every path; may not exist */
    const char *name;   /* "/a/b"; "/" for the mount's root */
} control_group;

/* *group and its strings are lent for the call. */
typedef void (*control_group_visitor)(void *context, const control_group *group);

/* Visits our group and all above it, from the innermost out, in every hierarchy that a controller
 * ("cpu", "memory") may be in; the mounts' roots alone where /proc names no group. root stands before
 * every path that is read: "" but in tests. */
void control_groups_visit(const char *root, const char *controller, control_group_visitor visit,
                          void *context);

/* Opens a file of a folder for reading. NULL: it is not there, or its path is too long. */
FILE *control_groups_file(const char *folder, const char *leaf);

#endif
