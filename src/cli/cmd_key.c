/* cli/cmd_key.c: `realm key create|list|revoke`: API keys of tenants and of the node. */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "cli/commands.h"
#include "cli/data_folder.h"
#include "cli/place.h"
#include "cli/terminal.h"

static const char *text_of(const json_t *object, const char *name, const char *otherwise)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text ? text : otherwise;
}

/* ---- create ---- */

typedef struct request {
    place place;
    const char *tenant, *name, *scopes, *expires;
    int admin, json;
} request;

static realm_status create(const request *r, json_t **answer, realm_error *error)
{
    json_t *given = json_pack("{s:b, s:s*, s:s*, s:s*, s:s*}", "admin", r->admin, "tenant",
                              r->tenant, "name", r->name, "scopes", r->scopes, "expires",
                              r->expires);
    const place_call call = {.method = "POST", .parts = {"keys"}, .json = given};
    realm_status status;
    if (!given)
        status = realm_fail(error, REALM_INVALID, "a name is not UTF-8, or memory is out");
    else if (r->place.server)
        status = place_ask(&r->place, &call, answer, error);
    else
        status = manage_key_create(r->place.store, given, answer, error);
    json_decref(given);
    return status;
}

/* Takes the key. */
static int print_new(json_t *key, int json)
{
    if (json)
        return data_folder_print("key", key);
    /* The key alone on standard output, so that a script can take it. */
    printf("%s\n", text_of(key, "key", ""));
    fprintf(stderr, "This is the only time that the key is shown; its id is %s.\n",
            text_of(key, "id", ""));
    json_decref(key);
    return EXIT_OK;
}

static int run_create(int argc, char **argv)
{
    request r = {.admin = 0};
    const option options[] = {
        {.name = "tenant",
         .letter = 't',
         .kind = OPTION_TEXT,
         .out = &r.tenant,
         .value = "NAME",
         .help = "whose key it is"},
        {.name = "admin",
         .kind = OPTION_FLAG,
         .out = &r.admin,
         .help = "instead of --tenant: a key of the node, for the admin API or the metrics"},
        {.name = "scopes",
         .kind = OPTION_TEXT,
         .out = &r.scopes,
         .value = "LIST",
         .help =
             "what it is good for: inference (the default), deploy, usage, with commas; a key of the node's: "
             "admin (the default), metrics"},
        {.name = "name",
         .kind = OPTION_TEXT,
         .out = &r.name,
         .value = "TEXT",
         .help = "to tell it from others in lists"},
        {.name = "expires",
         .kind = OPTION_TEXT,
         .out = &r.expires,
         .value = "WHEN",
         .help = "90d, 12h, 30m from now on, or the end of a day (UTC) as 2026-12-31; else never"},
        PLACE_OPTIONS(r.place),
        {.name = "json", .kind = OPTION_FLAG, .out = &r.json, .help = "print JSON"},
        {0}};
    const options_command command = {
        .name = "key create",
        .summary = "make an API key and show it, once",
        .options = options,
        .notes = "  export OPENAI_API_KEY=$(realm key create --tenant acme --expires 90d)\n",
    };
    int code = options_parse(&command, argc, argv);
    if (code != OPTIONS_GO_ON)
        return code;
    if (r.admin ? r.tenant != NULL : r.tenant == NULL)
        return options_wrong(&command, "give --tenant NAME or --admin, and not both");
    realm_error error;
    json_t *answer = NULL;
    realm_status status = place_open(&r.place, r.admin, &error);
    if (!status)
        status = create(&r, &answer, &error);
    place_close(&r.place);
    return status ? command_failed("key", &error) : print_new(answer, r.json);
}

/* ---- list ---- */

static const char *state_of(const json_t *key)
{
    char now[MANAGE_TIME_SIZE];
    if (json_is_string(json_object_get(key, "revoked")))
        return "revoked";
    /* Times of this form are in order as texts. */
    return strcmp(text_of(key, "expires", "9"), manage_time(clock_wall_ms(), now)) <= 0 ? "expired"
                                                                                        : "valid";
}

static void print_scopes(const json_t *scopes)
{
    char text[API_SCOPES_TEXT_SIZE] = "";
    for (size_t i = 0; i < json_array_size(scopes); i++) {
        size_t used = strlen(text);
        const char *scope = json_string_value(json_array_get(scopes, i));
        snprintf(text + used, sizeof text - used, "%s%s", used ? "," : "", scope ? scope : "");
    }
    printf("%-28s ", text);
}

/* Takes the list. */
static int print_keys(json_t *list, int json)
{
    if (json)
        return data_folder_print("key", list);
    if (json_array_size(list))
        printf("%-12s  %-20s %-8s %-28s %-20s  %-20s %s\n", "ID", "TENANT", "STATE", "SCOPES",
               "EXPIRES", "LAST USED", "NAME");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *k = json_array_get(list, i);
        const char *name = text_of(k, "name", "");
        printf("%-12s  %-20s %-8s ", text_of(k, "id", ""), text_of(k, "tenant", "(node)"),
               state_of(k));
        print_scopes(json_object_get(k, "scopes"));
        printf("%-20s  %-20s ", text_of(k, "expires", "never"), text_of(k, "last_used", "never"));
        terminal_print_clean(stdout, name, strlen(name));
        putchar('\n');
    }
    json_decref(list);
    return EXIT_OK;
}

static int run_list(int argc, char **argv)
{
    place p = {.store = NULL};
    const char *tenant = NULL;
    int json = 0;
    const option options[] = {
        {.name = "tenant",
         .letter = 't',
         .kind = OPTION_TEXT,
         .out = &tenant,
         .value = "NAME",
         .help = "only this one's"},
        PLACE_OPTIONS(p),
        {.name = "json", .kind = OPTION_FLAG, .out = &json, .help = "print a list as JSON"},
        {0}};
    const options_command command = {
        .name = "key list",
        .summary = "list keys, revoked ones included; never the keys themselves",
        .options = options};
    int code = options_parse(&command, argc, argv);
    if (code != OPTIONS_GO_ON)
        return code;
    realm_error error;
    json_t *list = NULL;
    const place_call call = {.method = "GET", .parts = {"keys"}, .query = {{"tenant", tenant}}};
    realm_status status = place_open(&p, 0, &error);
    if (!status)
        status = p.server ? place_ask_list(&p, &call, &list, &error)
                          : manage_key_list(p.store, tenant, NULL, &list, &error);
    place_close(&p);
    return status ? command_failed("key", &error) : print_keys(list, json);
}

/* ---- revoke ---- */

static int run_revoke(int argc, char **argv)
{
    place p = {.store = NULL};
    const char *tenant = NULL, *id = NULL;
    const option options[] = {{.name = "tenant",
                               .letter = 't',
                               .kind = OPTION_TEXT,
                               .out = &tenant,
                               .value = "NAME",
                               .help = "only if it is this one's"},
                              PLACE_OPTIONS(p),
                              {0}};
    const options_positional positionals[] = {
        {.name = "ID", .out = &id, .required = 1, .help = "as realm key list shows it"}, {0}};
    const options_command command = {.name = "key revoke",
                                     .summary = "make a key worthless",
                                     .options = options,
                                     .positionals = positionals};
    int code = options_parse(&command, argc, argv);
    if (code != OPTIONS_GO_ON)
        return code;
    realm_error error;
    json_t *answer = NULL;
    const place_call call = {
        .method = "DELETE", .parts = {"keys", id}, .query = {{"tenant", tenant}}};
    realm_status status = place_open(&p, 0, &error);
    if (!status)
        status = p.server ? place_ask(&p, &call, &answer, &error)
                          : manage_key_revoke(p.store, tenant, id, &answer, &error);
    place_close(&p);
    json_decref(answer);
    if (status)
        return command_failed("key", &error);
    return printf("revoked key %s\n", id) > 0 ? EXIT_OK : EXIT_FAILED;
}

int cmd_key(int argc, char **argv)
{
    static const verb verbs[] = {{"create", "make one and show it, once", run_create},
                                 {"list", "list them", run_list},
                                 {"revoke", "make one worthless", run_revoke}};
    return data_folder_verb("key", "API keys of tenants and of the node", verbs,
                            sizeof verbs / sizeof *verbs, argc, argv);
}
