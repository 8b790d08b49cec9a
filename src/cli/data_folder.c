/* cli/data_folder.c: see data_folder.h. */
#include "cli/data_folder.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/commands.h"
#include "cli/terminal.h"

static realm_status find_folder(const char *given, char *path, size_t size, realm_error *error)
{
    const char *own = getenv("REALM_DATA"), *xdg = getenv("XDG_DATA_HOME"), *home = getenv("HOME");
    int length;
    if (given || (own && *own))
        length = snprintf(path, size, "%s", given ? given : own);
    else if (xdg && *xdg)
        length = snprintf(path, size, "%s/realm", xdg);
    else if (home && *home)
        length = snprintf(path, size, "%s/.local/share/realm", home);
    else
        return realm_fail(error, REALM_NOT_FOUND, "no data folder: give --data DIR");
    if (length <= 0 || (size_t)length >= size)
        return realm_fail(error, REALM_INVALID, "the data folder's path is empty or too long");
    return REALM_OK;
}

realm_status data_folder_open(tenant_store **out, const char *given, int make, realm_error *error)
{
    char folder[4000], file[4096];
    realm_status status = find_folder(given, folder, sizeof folder, error);
    if (status)
        return status;
    snprintf(file, sizeof file, "%s/realm.db", folder);
    if (!make && access(file, F_OK) != 0)
        return realm_fail(
            error, REALM_NOT_FOUND,
            "there are no tenants in '%s': make the first with 'realm tenant create', "
            "or give --data DIR",
            folder);
    return store_sqlite_open(out, folder, error);
}

int data_folder_print(const char *command, json_t *value)
{
    realm_error error;
    char *text = value ? json_dumps(value, JSON_INDENT(2)) : NULL;
    json_decref(value);
    if (!text) {
        realm_fail_memory(&error, 0, "the answer");
        return command_failed(command, &error);
    }
    puts(text);
    free(text);
    return EXIT_OK;
}

/* ---- verbs ---- */

static void print_verbs(const char *command, const char *summary, const verb *verbs, size_t count)
{
    const char *bold = terminal_style_text(stdout, STYLE_BOLD);
    const char *plain = terminal_style_text(stdout, STYLE_PLAIN);
    printf("%srealm %s%s: %s\n\n%sUsage%s\n", bold, command, plain, summary, bold, plain);
    for (size_t i = 0; i < count; i++)
        printf("  realm %s %s%-8s%s %s\n", command, bold, verbs[i].name, plain, verbs[i].summary);
    printf("\nrealm %s VERB --help explains each.\n", command);
}

int data_folder_verb(const char *command, const char *summary, const verb *verbs, size_t count,
                     int argc, char **argv)
{
    const char *names[16];
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_verbs(command, summary, verbs, count);
        return argc < 2 ? EXIT_USAGE : EXIT_OK;
    }
    for (size_t i = 0; i < count; i++) {
        names[i] = verbs[i].name;
        if (strcmp(argv[1], verbs[i].name) == 0)
            return verbs[i].run(argc - 1, argv + 1);
    }
    realm_error error;
    const char *nearest = options_nearest(argv[1], names, count);
    if (nearest)
        realm_fail(&error, REALM_INVALID, "there is no '%.40s'; did you mean '%s'?", argv[1],
                   nearest);
    else
        realm_fail(&error, REALM_INVALID, "there is no '%.40s'", argv[1]);
    fprintf(stderr, "realm %s: %s (see realm %s --help)\n", command, error.message, command);
    return EXIT_USAGE;
}
