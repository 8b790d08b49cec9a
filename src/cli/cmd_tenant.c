/* cli/cmd_tenant.c: `realm tenant create|list|show|set|delete`: customers and what each was given.
 *
 * Options of settings are made from the one list of them (tenancy/settings.h) and go through the reader that the
 * admin API uses, so both know the same names, bounds and sentences. */
#include <stdio.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/data_folder.h"
#include "cli/place.h"
#include "cli/terminal.h"

#define UNSET     INT64_MIN
#define N_TEXTS   4
#define N_OPTIONS (N_NUMBERS + N_TEXTS + PLACE_N_OPTIONS + 3)

static const struct {
    const char *name, *help;
    double least, most;
} numbers[] = {
#define ROW(name, usual, least, most, help) {#name, help " (default " #usual ")", least, most},
    SETTINGS_NUMBER_MAP(ROW)
#undef ROW
};

#define N_NUMBERS (sizeof numbers / sizeof *numbers)

static const struct {
    const char *name, *value, *help;
    int is_list;
} texts[N_TEXTS] = {
    {"priority", "batch|normal|high", "the highest that its requests may ask for (default normal)",
     0},
    {"capabilities", "LIST",
     "what its programs may do: models, adapters, logits, tensors, state, calls, with commas "
     "(default models,logits,state,calls)",
     1},
    {"models", "LIST", "the models it may use, the first is its default; or all (default all)", 1},
    {"programs", "LIST", "the programs it may call, built-in ones included; or all (default all)",
     1},
};

/* What the command line says of settings. */
typedef struct flags {
    int64_t numbers[N_NUMBERS];
    double weight; /* 0: not given */
    const char *texts[N_TEXTS];
    char names[N_NUMBERS][32]; /* with dashes */
} flags;

/* Adds their rows to the table and returns where it goes on. */
static option *add_rows(flags *f, option *row)
{
    for (size_t i = 0; i < N_NUMBERS; i++) {
        snprintf(f->names[i], sizeof f->names[i], "%s", numbers[i].name);
        for (char *at = f->names[i]; (at = strchr(at, '_'));)
            *at = '-';
        f->numbers[i] = UNSET; /* outside of the bounds, so that help does not show it */
        *row++ = (option){.name = f->names[i],
                          .kind = OPTION_INT,
                          .out = &f->numbers[i],
                          .value = "N",
                          .min = numbers[i].least,
                          .max = numbers[i].most,
                          .help = numbers[i].help};
    }
    *row++ = (option){.name = "weight",
                      .kind = OPTION_REAL,
                      .out = &f->weight,
                      .value = "X",
                      .min = 0.001,
                      .max = 1000,
                      .help = "share of the engines against other tenants' (default 1)"};
    for (int i = 0; i < N_TEXTS; i++)
        *row++ = (option){.name = texts[i].name,
                          .kind = OPTION_TEXT,
                          .out = &f->texts[i],
                          .value = texts[i].value,
                          .help = texts[i].help};
    return row;
}

/* "a,b" as a list; "all" as null, which is everything; "none" as no name at all. */
static json_t *list_of(const char *text)
{
    if (strcmp(text, "all") == 0)
        return json_null();
    json_t *list = json_array();
    for (const char *at = strcmp(text, "none") == 0 ? "" : text; list && *at;) {
        size_t size = strcspn(at, ",");
        if (json_array_append_new(list, json_stringn(at, size)) != 0) {
            json_decref(list);
            return NULL;
        }
        at += size + (at[size] == ',');
    }
    return list;
}

static int set(json_t *object, const char *name, json_t *value)
{
    return json_object_set_new(object, name, value) == 0;
}

/* The settings that were given, as JSON. */
static realm_status settings_of(const flags *f, json_t **out, realm_error *error)
{
    json_t *object = json_object();
    int good = object != NULL;
    for (size_t i = 0; good && i < N_NUMBERS; i++)
        if (f->numbers[i] != UNSET)
            good = set(object, numbers[i].name, json_integer(f->numbers[i]));
    if (good && f->weight != 0)
        good = set(object, "weight", json_real(f->weight));
    for (int i = 0; good && i < N_TEXTS; i++)
        if (f->texts[i])
            good = set(object, texts[i].name,
                       texts[i].is_list ? list_of(f->texts[i]) : json_string(f->texts[i]));
    *out = object;
    if (good)
        return REALM_OK;
    json_decref(object);
    return realm_fail(error, REALM_INVALID, "a setting is not UTF-8, or memory is out");
}

/* ---- showing ---- */

static void print_value(const json_t *value)
{
    if (json_is_null(value)) {
        printf("all");
    } else if (json_is_array(value)) {
        for (size_t i = 0; i < json_array_size(value); i++)
            printf("%s%s", i ? "," : "", json_string_value(json_array_get(value, i)));
        if (!json_array_size(value))
            printf("none");
    } else if (json_is_string(value)) {
        printf("%s", json_string_value(value));
    } else {
        char text[64];
        size_t size = json_dumpb(value, text, sizeof text, JSON_ENCODE_ANY);
        printf("%.*s", (int)(size < sizeof text ? size : 0), text);
    }
    putchar('\n');
}

static const char *text_of(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text ? text : "never";
}

/* Takes the tenant. */
static int show(json_t *tenant, int json)
{
    json_t *value;
    const char *key;
    if (json)
        return data_folder_print("tenant", tenant);
    printf("%-20s %s\n%-20s %" JSON_INTEGER_FORMAT "\n%-20s %s\n", "name", text_of(tenant, "name"),
           "number", json_integer_value(json_object_get(tenant, "number")), "created",
           text_of(tenant, "created"));
    json_object_foreach(json_object_get(tenant, "settings"), key, value)
    {
        printf("%-20s ", key);
        print_value(value);
    }
    json_decref(tenant);
    return EXIT_OK;
}

/* ---- the verbs ---- */

/* What create, set, show and delete do with the one tenant that they name. */
typedef enum action { CREATE, SET, SHOW, DELETE } action;

static realm_status act_here(action what, tenant_store *store, const char *name, json_t *settings,
                             json_t **answer, realm_error *error)
{
    if (what == SHOW)
        return manage_tenant_show(store, name, answer, error);
    if (what == DELETE)
        return manage_tenant_delete(store, name, NULL, answer, error);
    if (what == SET)
        return manage_tenant_set(store, name, settings, answer, error);
    json_t *request = json_pack("{s:s, s:O}", "name", name, "settings", settings);
    realm_status status = request ? manage_tenant_create(store, request, answer, error)
                                  : realm_fail(error, REALM_INVALID, "the name is not UTF-8");
    json_decref(request);
    return status;
}

static realm_status act_there(action what, const place *p, const char *name, json_t *settings,
                              json_t **answer, realm_error *error)
{
    static const char *const methods[] = {"POST", "PATCH", "GET", "DELETE"};
    json_t *request = what == CREATE ? json_pack("{s:s, s:O}", "name", name, "settings", settings)
                      : what == SET  ? json_incref(settings)
                                     : NULL;
    const place_call call = {.method = methods[what],
                             .parts = {"tenants", what == CREATE ? NULL : name},
                             .json = request};
    realm_status status = place_ask(p, &call, answer, error);
    json_decref(request);
    return status;
}

static int run_one(action what, place *p, const char *name, const flags *f, int json)
{
    realm_error error;
    json_t *settings = NULL, *answer = NULL;
    realm_status status = place_open(p, what == CREATE, &error);
    if (!status && (what == CREATE || what == SET))
        status = settings_of(f, &settings, &error);
    if (!status && p->server)
        status = act_there(what, p, name, settings, &answer, &error);
    else if (!status)
        status = act_here(what, p->store, name, settings, &answer, &error);
    json_decref(settings);
    place_close(p);
    if (status)
        return command_failed("tenant", &error);
    if (what != DELETE && (json || what == SHOW))
        return show(answer, json);
    json_decref(answer);
    if (what == DELETE)
        printf(
            "deleted tenant %s: its keys are revoked, its programs are gone, its usage is kept\n",
            name);
    else
        printf("%s tenant %s\n", what == CREATE ? "created" : "changed", name);
    return EXIT_OK;
}

static int parse_one(action what, const char *verb_name, const char *summary, const char *notes,
                     int argc, char **argv)
{
    flags f = {.weight = 0};
    const char *name = NULL;
    place p = {.store = NULL};
    int json = 0;
    option options[N_OPTIONS] = {PLACE_OPTIONS(p)}, *row = options + PLACE_N_OPTIONS;
    if (what == CREATE || what == SET)
        row = add_rows(&f, row);
    if (what != DELETE)
        *row++ = (option){
            .name = "json", .kind = OPTION_FLAG, .out = &json, .help = "print the tenant as JSON"};
    const options_positional positionals[] = {
        {.name = "NAME", .out = &name, .required = 1, .help = "the tenant"}, {0}};
    const options_command command = {.name = verb_name,
                                     .summary = summary,
                                     .options = options,
                                     .positionals = positionals,
                                     .notes = notes};
    int code = options_parse(&command, argc, argv);
    return code != OPTIONS_GO_ON ? code : run_one(what, &p, name, &f, json);
}

static int run_create(int argc, char **argv)
{
    return parse_one(
        CREATE, "tenant create", "make a tenant",
        "  realm tenant create acme --requests-per-minute 500 --tokens-per-day 2000000\n"
        "  realm key create --tenant acme\n",
        argc, argv);
}

static int run_set(int argc, char **argv)
{
    return parse_one(
        SET, "tenant set", "change some of a tenant's settings; the others stay",
        "A running server holds to them within a quarter of a second. What was used of a\n"
        "minute, a day or a month stays used.\n",
        argc, argv);
}

static int run_show(int argc, char **argv)
{
    return parse_one(SHOW, "tenant show", "show a tenant's settings", NULL, argc, argv);
}

static int run_delete(int argc, char **argv)
{
    return parse_one(DELETE, "tenant delete",
                     "delete a tenant, revoke its keys and remove its programs; its usage is kept",
                     NULL, argc, argv);
}

static int64_t number_of(const json_t *settings, const char *name)
{
    return json_integer_value(json_object_get(settings, name));
}

/* Takes the list. */
static int print_list(json_t *list, int json)
{
    if (json)
        return data_folder_print("tenant", list);
    if (json_array_size(list))
        printf("%-24s %14s %14s %14s %8s\n", "NAME", "REQUESTS/MIN", "TOKENS/MIN", "TOKENS/DAY",
               "WEIGHT");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *tenant = json_array_get(list, i), *s = json_object_get(tenant, "settings");
        printf("%-24s %14" PRId64 " %14" PRId64 " %14" PRId64 " %8g\n", text_of(tenant, "name"),
               number_of(s, "requests_per_minute"), number_of(s, "tokens_per_minute"),
               number_of(s, "tokens_per_day"), json_number_value(json_object_get(s, "weight")));
    }
    json_decref(list);
    return EXIT_OK;
}

static int run_list(int argc, char **argv)
{
    place p = {.store = NULL};
    int json = 0;
    const option options[] = {
        PLACE_OPTIONS(p),
        {.name = "json", .kind = OPTION_FLAG, .out = &json, .help = "print a list as JSON"},
        {0}};
    const options_command command = {
        .name = "tenant list", .summary = "list the tenants; 0 is no limit", .options = options};
    int code = options_parse(&command, argc, argv);
    if (code != OPTIONS_GO_ON)
        return code;
    realm_error error;
    json_t *list = NULL;
    const place_call call = {.method = "GET", .parts = {"tenants"}};
    realm_status status = place_open(&p, 0, &error);
    if (!status)
        status = p.server ? place_ask_list(&p, &call, &list, &error)
                          : manage_tenant_list(p.store, NULL, &list, &error);
    place_close(&p);
    return status ? command_failed("tenant", &error) : print_list(list, json);
}

int cmd_tenant(int argc, char **argv)
{
    static const verb verbs[] = {{"create", "make a tenant", run_create},
                                 {"list", "list all", run_list},
                                 {"show", "show one's settings", run_show},
                                 {"set", "change some of one's settings", run_set},
                                 {"delete", "delete one; its usage is kept", run_delete}};
    return data_folder_verb("tenant", "customers: limits, shares and grants", verbs,
                            sizeof verbs / sizeof *verbs, argc, argv);
}
