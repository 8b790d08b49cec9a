/* tests/unit/tenancy/folder.h: a data folder of a test's own, gone with it. */
#ifndef REALM_TESTS_TENANCY_FOLDER_H
#define REALM_TESTS_TENANCY_FOLDER_H

extern char g_folder[64];

/* cmocka's setup and teardown of one test. */
int folder_make(void **state);
int folder_remove(void **state);

/* "FOLDER/leaf"; four may be in use at once. */
const char *folder_path(const char *leaf);

#endif
