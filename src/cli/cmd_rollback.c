/* cli/cmd_rollback.c: `realm rollback PROGRAM`: an older version serves again. */
#include <stdio.h>

#include "cli/commands.h"
#include "cli/data_folder.h"
#include "cli/place.h"

static realm_status roll_back(place *p, const char *tenant, const char *name, int64_t to,
                              json_t **answer, realm_error *error)
{
    if (!p->server)
        return manage_program_rollback(p->store, tenant, name, (int32_t)to, answer, error);
    json_t *body = to ? json_pack("{s:I}", "to", (json_int_t)to) : json_object();
    const place_call call = {
        .method = "POST", .parts = {"tenants", tenant, "programs", name, "rollback"}, .json = body};
    realm_status status = place_ask(p, &call, answer, error);
    json_decref(body);
    return status;
}

int cmd_rollback(int argc, char **argv)
{
    place p = {.store = NULL};
    const char *tenant = NULL, *name = NULL;
    int64_t to = 0;
    int json = 0;
    const option options[] = {
        {.name = "tenant",
         .letter = 't',
         .kind = OPTION_TEXT,
         .out = &tenant,
         .value = "NAME",
         .required = 1,
         .help = "whose program it is"},
        {.name = "to",
         .kind = OPTION_INT,
         .out = &to,
         .value = "VERSION",
         .min = 1,
         .max = INT32_MAX,
         .help = "which version; else the newest before the present one that once served most"},
        PLACE_OPTIONS(p),
        {.name = "json", .kind = OPTION_FLAG, .out = &json, .help = "print JSON"},
        {0}};
    const options_positional positionals[] = {
        {.name = "PROGRAM", .out = &name, .required = 1, .help = "its name"}, {0}};
    const options_command command = {.name = "rollback",
                                     .summary = "let an older version of a program serve again",
                                     .options = options,
                                     .positionals = positionals};
    int code = options_parse(&command, argc, argv);
    if (code != OPTIONS_GO_ON)
        return code;
    realm_error error;
    json_t *answer = NULL;
    realm_status status = place_open(&p, 0, &error);
    if (!status)
        status = roll_back(&p, tenant, name, to, &answer, &error);
    place_close(&p);
    if (status)
        return command_failed("rollback", &error);
    if (json)
        return data_folder_print("rollback", answer);
    code = printf("version %" JSON_INTEGER_FORMAT " of program %s serves again\n",
                  json_integer_value(json_object_get(answer, "version")), name) > 0
               ? EXIT_OK
               : EXIT_FAILED;
    json_decref(answer);
    return code;
}
