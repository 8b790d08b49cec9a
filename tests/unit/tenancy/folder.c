/* tests/unit/tenancy/folder.c: see folder.h. */
#include "unit/unit.h"

#include "unit/tenancy/folder.h"

char g_folder[64];

int folder_make(void **state)
{
    (void)state;
    strcpy(g_folder, "/tmp/realm-tenancy-test-XXXXXX");
    return mkdtemp(g_folder) ? 0 : -1;
}

int folder_remove(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", g_folder);
    return system(command);
}

const char *folder_path(const char *leaf)
{
    static char paths[4][256];
    static int turn;
    char *path = paths[turn++ & 3];
    snprintf(path, sizeof paths[0], "%s/%s", g_folder, leaf);
    return path;
}
