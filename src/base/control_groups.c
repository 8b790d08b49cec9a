/* base/control_groups.c: see control_groups.h. */
#include "base/control_groups.h"

#include <string.h>

#define PATH_SIZE 4608

FILE *control_groups_file(const char *folder, const char *leaf)
{
    char path[PATH_SIZE];
    int length = snprintf(path, sizeof path, "%s/%s", folder, leaf);
    return length > 0 && (size_t)length < sizeof path ? fopen(path, "re") : NULL;
}

/* A hierarchy's mount and who is to be told of its groups. */
typedef struct walk {
    char mount[PATH_SIZE];
    int version;
    control_group_visitor visit;
    void *context;
} walk;

/* A group and all above it. One outside of our namespace ("/../x"), or whose folder's name would be
 * too long to open, leaves the root. */
static void walk_up(const walk *w, const char *group)
{
    char folder[PATH_SIZE];
    size_t base = strlen(w->mount);
    int length = snprintf(folder, sizeof folder, "%s%s", w->mount, group);
    size_t end = length < 0 || (size_t)length >= sizeof folder || strstr(group, "/..")
                     ? base
                     : (size_t)length;
    for (;;) {
        while (end > base && folder[end - 1] == '/')
            end--;
        folder[end] = '\0';
        control_group found = {w->version, folder, end > base ? folder + base : "/"};
        w->visit(w->context, &found);
        if (end == base)
            return;
        while (end > base && folder[end - 1] != '/')
            end--;
    }
}

/* The version that a line of /proc/self/cgroup, "hierarchy:controllers:/group", is of; 0 if the
 * controller is not in that hierarchy. */
static int version_of(char *line, const char *controller, const char **group)
{
    size_t size = strlen(controller);
    line[strcspn(line, "\n")] = '\0';
    const char *first = strchr(line, ':'), *second = first ? strchr(first + 1, ':') : NULL;
    if (!second)
        return 0;
    *group = second + 1;
    if (second == first + 1)
        return strncmp(line, "0:", 2) == 0 ? 2 : 0;
    for (const char *at = first + 1; at < second; at += strcspn(at, ",:") + 1)
        if (strncmp(at, controller, size) == 0 && (at[size] == ',' || at[size] == ':'))
            return 1;
    return 0;
}

void control_groups_visit(const char *root, const char *controller, control_group_visitor visit,
                          void *context)
{
    /* The second is version 2's where both are mounted. */
    walk walks[] = {{.version = 2}, {.version = 2}, {.version = 1}};
    enum { N_WALKS = sizeof walks / sizeof *walks };
    char line[PATH_SIZE];
    int found = 0;
    snprintf(walks[0].mount, PATH_SIZE, "%s/sys/fs/cgroup", root);
    snprintf(walks[1].mount, PATH_SIZE, "%s/sys/fs/cgroup/unified", root);
    snprintf(walks[2].mount, PATH_SIZE, "%s/sys/fs/cgroup/%s", root, controller);
    FILE *file = control_groups_file(root, "proc/self/cgroup");
    for (int i = 0; i < N_WALKS; i++) {
        walks[i].visit = visit;
        walks[i].context = context;
    }
    while (file && fgets(line, sizeof line, file)) {
        const char *group = "";
        int version = version_of(line, controller, &group);
        for (int i = 0; i < N_WALKS; i++)
            if (walks[i].version == version)
                walk_up(&walks[i], group);
        found |= version;
    }
    if (file)
        fclose(file);
    for (int i = 0; i < N_WALKS && !found; i++)
        walk_up(&walks[i], "");
}
