/* cli/data_folder.h: what the commands about tenants share: the store in a data folder, printing, verbs.
 *
 * Main thread. See place.h for those that a server can be asked for too. */
#ifndef REALM_CLI_DATA_FOLDER_H
#define REALM_CLI_DATA_FOLDER_H

#include "cli/options.h"
#include "tenancy/store.h"

/* Opens the store. given NULL: as the option's help says. With make it is made if it is not there; else
 * REALM_NOT_FOUND says how to make it. */
realm_status data_folder_open(tenant_store **out, const char *given, int make, realm_error *error);

/* Prints a value as JSON, indented, with a new line; takes it. NULL: says that memory is out. Returns the exit code. */
int data_folder_print(const char *command, json_t *value);

/* ---- commands with verbs ("realm tenant create") ---- */

typedef struct verb {
    const char *name, *summary;
    int (*run)(int argc, char **argv); /* argv[0] is the verb */
} verb;

/* Runs the one that argv[1] names; help and mistakes as options_parse. */
int data_folder_verb(const char *command, const char *summary, const verb *verbs, size_t count,
                     int argc, char **argv);

#endif
