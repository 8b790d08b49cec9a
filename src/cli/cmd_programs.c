/* cli/cmd_programs.c: `realm programs`: deployed programs, their versions, who serves, how they do; and how requests
 * are split over versions. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/data_folder.h"
#include "cli/place.h"
#include "cli/terminal.h"

typedef struct request {
    place place;
    const char *tenant, *name, *route;
    int remove, json;
} request;

/* ---- printing ---- */

static const char *text_of(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text ? text : "";
}

static json_int_t integer_of(const json_t *object, const char *name)
{
    return json_integer_value(json_object_get(object, name));
}

static double real_of(const json_t *object, const char *name)
{
    return json_number_value(json_object_get(object, name));
}

static void print_program(const json_t *p)
{
    const json_t *versions = json_object_get(p, "versions");
    printf("%s of tenant %s\n", text_of(p, "program"), text_of(p, "tenant"));
    printf("%7s %8s %9s %8s %9s %9s %10s  %-12s  %-20s  %s\n", "VERSION", "SHARE", "REQUESTS",
           "ERRORS", "P50 MS", "P95 MS", "BYTES", "SHA-256", "DEPLOYED", "NOTE");
    for (size_t i = 0; i < json_array_size(versions); i++) {
        const json_t *v = json_array_get(versions, i);
        const char *note = text_of(v, "note");
        printf("%7" JSON_INTEGER_FORMAT " %7g%% %9" JSON_INTEGER_FORMAT " %8" JSON_INTEGER_FORMAT
               " %9.1f %9.1f %10" JSON_INTEGER_FORMAT "  %.12s  %s  ",
               integer_of(v, "version"), real_of(v, "percent"), integer_of(v, "requests"),
               integer_of(v, "errors"), real_of(v, "p50_ms"), real_of(v, "p95_ms"),
               integer_of(v, "bytes"), text_of(v, "hash"), text_of(v, "created"));
        terminal_print_clean(stdout, note, strlen(note));
        putchar('\n');
    }
}

/* Who serves, the largest share first. */
static void print_serving(const json_t *versions)
{
    const json_t *serving[ROUTE_MAX_SHARES];
    size_t count = 0;
    for (size_t i = 0; i < json_array_size(versions) && count < ROUTE_MAX_SHARES; i++) {
        const json_t *v = json_array_get(versions, i);
        if (real_of(v, "percent") <= 0)
            continue;
        size_t at = count++;
        for (; at && real_of(serving[at - 1], "percent") < real_of(v, "percent"); at--)
            serving[at] = serving[at - 1];
        serving[at] = v;
    }
    for (size_t i = 0; i < count; i++)
        printf("%s%" JSON_INTEGER_FORMAT, i ? ", " : "", integer_of(serving[i], "version"));
    for (size_t i = 0; count > 1 && i < count; i++)
        printf("%s%g", i ? "/" : " at ", real_of(serving[i], "percent"));
    printf(count > 1 ? " %%\n" : "\n");
}

/* Takes the list. */
static int print_all(const request *r, json_t *list)
{
    if (r->json)
        return data_folder_print("programs", list);
    if (!r->name && json_array_size(list))
        printf("%-24s %-24s %8s  %s\n", "TENANT", "PROGRAM", "VERSIONS", "SERVING");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *p = json_array_get(list, i), *versions = json_object_get(p, "versions");
        if (r->name) {
            print_program(p);
            continue;
        }
        printf("%-24s %-24s %8d  ", text_of(p, "tenant"), text_of(p, "program"),
               (int)json_array_size(versions));
        print_serving(versions);
    }
    json_decref(list);
    return EXIT_OK;
}

/* ---- changing ---- */

/* "3=90,4=10" as the admin API's list; NULL if it is none. */
static json_t *parse_route(const char *text)
{
    json_t *list = json_array();
    for (const char *at = text; *at;) {
        char *end;
        long version = strtol(at, &end, 10);
        double percent = *end == '=' ? strtod(end + 1, &end) : -1;
        if (version < 1 || version > INT32_MAX || !(percent > 0 && percent <= 100) ||
            json_array_size(list) == ROUTE_MAX_SHARES || (*end && *end != ',')) {
            json_decref(list);
            return NULL;
        }
        json_array_append_new(
            list, json_pack("{s:I, s:f}", "version", (json_int_t)version, "percent", percent));
        at = end + (*end == ',');
    }
    return list;
}

static realm_status ask_there(const request *r, const json_t *route, json_t **answer,
                              realm_error *error)
{
    place_call call = {.method = r->remove ? "DELETE"
                                 : route   ? "PUT"
                                           : "GET",
                       .parts = {"tenants", r->tenant, "programs", r->name, route ? "route" : NULL},
                       .json = route};
    if (!r->tenant)
        call.parts[0] = "programs", call.parts[1] = NULL, call.query[0][0] = "program",
        call.query[0][1] = r->name;
    else if (!r->name)
        call.parts[3] = NULL;
    if (!r->remove && !route)
        return place_ask_list(&r->place, &call, answer, error);
    json_t *said = NULL;
    realm_status status = place_ask(&r->place, &call, &said, error);
    if (!status)
        *answer = json_incref(route ? json_object_get(said, "data") : said);
    json_decref(said);
    return status;
}

static realm_status ask_here(const request *r, const json_t *route, json_t **answer,
                             realm_error *error)
{
    if (r->remove)
        return manage_program_delete(r->place.store, r->tenant, r->name, answer, error);
    if (route)
        return manage_program_route(r->place.store, r->tenant, r->name, route, answer, error);
    return manage_program_list(r->place.store, r->tenant, r->name, NULL, answer, error);
}

int cmd_programs(int argc, char **argv)
{
    request r = {.json = 0};
    const option options[] = {
        {.name = "tenant",
         .letter = 't',
         .kind = OPTION_TEXT,
         .out = &r.tenant,
         .value = "NAME",
         .help = "only this one's"},
        {.name = "name",
         .letter = 'n',
         .kind = OPTION_TEXT,
         .out = &r.name,
         .value = "NAME",
         .help = "only this program, with all its versions and how they do"},
        {.name = "route",
         .kind = OPTION_TEXT,
         .out = &r.route,
         .value = "V=P,...",
         .help =
             "with --tenant and --name: split requests over versions, in percents, as 3=90,4=10"},
        {.name = "delete",
         .kind = OPTION_FLAG,
         .out = &r.remove,
         .help = "with --tenant and --name: remove the program and all its versions"},
        PLACE_OPTIONS(r.place),
        {.name = "json", .kind = OPTION_FLAG, .out = &r.json, .help = "print a list as JSON"},
        {0}};
    const options_command command = {
        .name = "programs",
        .summary =
            "list deployed programs, their versions and who serves; split requests over versions",
        .options = options,
        .notes =
            "Which version a request gets depends on its id alone, so the same id gets the same one.\n"};
    int code = options_parse(&command, argc, argv);
    if (code != OPTIONS_GO_ON)
        return code;
    json_t *route = NULL, *answer = NULL;
    if ((r.route || r.remove) && (!r.tenant || !r.name))
        return options_wrong(&command, "--route and --delete need --tenant and --name");
    if (r.route && r.remove)
        return options_wrong(&command, "--route and --delete exclude each other");
    if (r.route && !(route = parse_route(r.route)))
        return options_wrong(&command,
                             "--route wants up to %d versions with percents, as 3=90,4=10, not "
                             "'%.80s'",
                             ROUTE_MAX_SHARES, r.route);
    realm_error error;
    realm_status status = place_open(&r.place, 0, &error);
    if (!status)
        status = r.place.server ? ask_there(&r, route, &answer, &error)
                                : ask_here(&r, route, &answer, &error);
    place_close(&r.place);
    json_decref(route);
    if (status)
        return command_failed("programs", &error);
    if (!r.remove)
        return print_all(&r, answer);
    json_decref(answer);
    printf("deleted program %s of tenant %s\n", r.name, r.tenant);
    return EXIT_OK;
}
