/* tests/unit/base/made_up_machine.h: a folder with the files of /proc and /sys that a machine or a
 * container would show, for what takes a root to read them under. */
#ifndef REALM_TESTS_BASE_MADE_UP_MACHINE_H
#define REALM_TESTS_BASE_MADE_UP_MACHINE_H

#include "unit/unit.h"

#include <sys/stat.h>

#include "base/file.h"

static char g_root[64];

static inline int make_machine(void **state)
{
    (void)state;
    strcpy(g_root, "/tmp/realm-machine-test-XXXXXX");
    return mkdtemp(g_root) ? 0 : -1;
}

static inline int remove_machine(void **state)
{
    char command[128];
    (void)state;
    snprintf(command, sizeof command, "rm -rf '%s'", g_root);
    return system(command);
}

/* Writes a file of the machine's, with the folders above it. */
static inline void put(const char *path, const char *text)
{
    char whole[512], folder[512];
    realm_error error;
    snprintf(whole, sizeof whole, "%s/%s", g_root, path);
    snprintf(folder, sizeof folder, "%.*s", (int)(strrchr(whole, '/') - whole), whole);
    assert_status(file_make_folders(folder, &error), REALM_OK, error);
    assert_status(file_write(whole, text, strlen(text), &error), REALM_OK, error);
}

#define ON_A_MACHINE(test) cmocka_unit_test_setup_teardown(test, make_machine, remove_machine)

#endif
