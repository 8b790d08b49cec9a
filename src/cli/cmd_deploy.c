/* cli/cmd_deploy.c: `realm deploy PROGRAM.wasm`: a tenant's next version of a program.
 *
 * The module is compiled as the server will compile it and tried with one request before anything is stored: what a
 * sandbox would refuse, or what traps as soon as it is asked, is never deployed. What is compiled stays in the cache,
 * where a server on this machine finds it. With --server it is the server that does both, with the models that it
 * has; here there are none unless --model loads one for the trial. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "cli/commands.h"
#include "cli/data_folder.h"
#include "cli/place.h"
#include "cli/progress.h"
#include "library/runtime.h"
#include "tenancy/trial.h"

#define MAX_MODULE_BYTES (64u << 20)

typedef struct request {
    place place;
    const char *path, *tenant, *name, *canary, *note, *smoke, *model;
    char own_name[SETTINGS_MAX_IDENTIFIER + 1]; /* the file's, without folder and ending */
    int32_t share;
    int json;
} request;

/* "[NAME=]FILE" */
static realm_status load_model(const request *r, realm_runtime *runtime, realm_error *error)
{
    char name[SETTINGS_MAX_NAME + 1];
    const char *equals = strchr(r->model, '=');
    size_t size = equals ? (size_t)(equals - r->model) : 0;
    if (equals && (!size || size >= sizeof name || !equals[1]))
        return realm_fail(error, REALM_INVALID, "--model: '%.200s' is not NAME=FILE", r->model);
    snprintf(name, sizeof name, "%.*s", (int)size, r->model);
    progress bar;
    progress_begin(&bar, "loading the model");
    realm_status status = realm_runtime_load(
        runtime, equals ? name : NULL, equals ? equals + 1 : r->model, progress_step, &bar, error);
    progress_end(&bar);
    return status;
}

/* A trial without a model may have failed for want of one, which only whoever deploys can tell. */
static realm_status try_program(const request *r, realm_runtime *runtime, program *p,
                                realm_error *error)
{
    sandbox_model loaded = {0};
    int32_t count = runtime_model_count(runtime);
    if (count)
        loaded = runtime_model(runtime, 0);
    realm_status status = trial_run(r->place.store, runtime_sandbox(runtime), &loaded, count,
                                    r->tenant, r->name, p, r->smoke, error);
    if (status != REALM_INVALID || count)
        return status;
    realm_error why = *error;
    return realm_fail(error, status,
                      "%s (it was tried without a model: --model FILE gives it one, --smoke none "
                      "leaves the test out)",
                      why.message);
}

static realm_status check_here(const request *r, const void *bytes, size_t size, realm_error *error)
{
    realm_runtime *runtime;
    realm_program *p = NULL;
    /* A device's memory may be a running server's, down to the last byte. */
    const realm_runtime_options options = {.device = "cpu", .n_sandboxes = 1};
    realm_status status = realm_runtime_open(&runtime, &options, error);
    if (status)
        return status;
    status = realm_program_open(&p, runtime, r->name, bytes, size, error);
    if (!status && r->model)
        status = load_model(r, runtime, error);
    if (!status && trial_is_wanted(r->smoke))
        status = try_program(r, runtime, runtime_program(p), error);
    realm_program_close(p);
    realm_runtime_close(runtime);
    return status;
}

static realm_status deploy_there(const request *r, const void *bytes, size_t size, json_t **answer,
                                 realm_error *error)
{
    char percent[32];
    snprintf(percent, sizeof percent, "%.9g", (double)r->share * 100 / ROUTE_WHOLE);
    const place_call call = {
        .method = "POST",
        .parts = {"tenants", r->tenant, "programs", r->name},
        .query = {{"percent", percent}, {"note", r->note}, {"smoke", r->smoke}},
        .bytes = bytes,
        .size = size};
    return place_ask(&r->place, &call, answer, error);
}

static realm_status deploy(const request *r, json_t **answer, realm_error *error)
{
    char *bytes;
    size_t size;
    arena a;
    arena_init(&a, 0);
    realm_status status = file_read(&a, r->path, MAX_MODULE_BYTES, &bytes, &size, error);
    if (!status && r->place.server) {
        status = deploy_there(r, bytes, size, answer, error);
    } else if (!status) {
        status = check_here(r, bytes, size, error);
        if (!status)
            status = manage_program_deploy(r->place.store, r->tenant, r->name, bytes, size,
                                           r->share, r->note, answer, error);
    }
    arena_release(&a);
    return status;
}

/* "10%" or "0.5%"; -1 if it is none. */
static int32_t parse_share(const char *text)
{
    char *end;
    double percent = strtod(text, &end);
    if (end == text || strcmp(end, "%") != 0)
        return -1;
    return manage_share(percent);
}

static void take_own_name(request *r)
{
    const char *base = strrchr(r->path, '/');
    base = base ? base + 1 : r->path;
    snprintf(r->own_name, sizeof r->own_name, "%.*s", (int)strcspn(base, "."), base);
    r->name = r->own_name;
}

/* Takes the answer. */
static int print(const request *r, json_t *answer)
{
    if (r->json)
        return data_folder_print("deploy", answer);
    int version = (int)json_integer_value(json_object_get(answer, "version"));
    printf("deployed version %d of program %s of tenant %s", version, r->name, r->tenant);
    if (version > 1 && r->share < ROUTE_WHOLE)
        printf(" for %g %% of its requests", (double)r->share * 100 / ROUTE_WHOLE);
    putchar('\n');
    json_decref(answer);
    return EXIT_OK;
}

int cmd_deploy(int argc, char **argv)
{
    request r = {.share = ROUTE_WHOLE};
    const option options[] = {
        {.name = "tenant",
         .letter = 't',
         .kind = OPTION_TEXT,
         .out = &r.tenant,
         .value = "NAME",
         .required = 1,
         .help = "whose program it is"},
        {.name = "name",
         .letter = 'n',
         .kind = OPTION_TEXT,
         .out = &r.name,
         .value = "NAME",
         .help = "the program's; else the file's"},
        {.name = "canary",
         .kind = OPTION_TEXT,
         .out = &r.canary,
         .value = "P%",
         .help =
             "only this share of requests gets the new version, the rest stays with the one that "
             "has most; 0% only keeps it"},
        {.name = "note",
         .kind = OPTION_TEXT,
         .out = &r.note,
         .value = "TEXT",
         .help = "kept with the version"},
        {.name = "smoke",
         .kind = OPTION_TEXT,
         .out = &r.smoke,
         .value = "BODY",
         .help =
             "the body that the program is tried with, and must not fail at (default: one that suits "
             "its name, or {}); none: it is not tried"},
        {.name = "model",
         .letter = 'm',
         .kind = OPTION_TEXT,
         .out = &r.model,
         .value = "[NAME=]FILE",
         .help =
             "on a data folder: a GGUF file for the program to be tried with, and what the server calls it "
             "(default: the file's own name); it runs on the processor"},
        PLACE_OPTIONS(r.place),
        {.name = "json", .kind = OPTION_FLAG, .out = &r.json, .help = "print JSON"},
        {0}};
    const options_positional positionals[] = {
        {.name = "FILE", .out = &r.path, .required = 1, .help = "the module, .wasm or .wat"}, {0}};
    const options_command command = {
        .name = "deploy",
        .summary = "give a tenant's program its next version",
        .options = options,
        .positionals = positionals,
        .notes = "Requests that run finish on the version that they started on.\n"
                 "\n"
                 "  realm deploy chat.wasm --tenant acme --canary 10%\n"
                 "  realm deploy chat.wasm --tenant acme --model model.gguf\n"
                 "  realm programs --tenant acme --name chat\n"
                 "  realm rollback chat --tenant acme\n",
    };
    int code = options_parse(&command, argc, argv);
    if (code != OPTIONS_GO_ON)
        return code;
    if (r.canary && (r.share = parse_share(r.canary)) < 0)
        return options_wrong(&command, "--canary wants a share as 10%%, not '%.40s'", r.canary);
    if (r.model && r.place.server)
        return options_wrong(&command, "--model is for a data folder: a server has models");
    if (!r.name)
        take_own_name(&r);
    realm_error error;
    json_t *answer = NULL;
    realm_status status = settings_check_name("program", r.name, strlen(r.name), &error);
    if (!status)
        status = place_open(&r.place, 0, &error);
    if (!status)
        status = deploy(&r, &answer, &error);
    place_close(&r.place);
    return status ? command_failed("deploy", &error) : print(&r, answer);
}
