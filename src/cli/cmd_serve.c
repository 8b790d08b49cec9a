/* cli/cmd_serve.c: `realm serve`: models behind HTTP.
 *
 * Settings come from the file realm.yaml, the environment and the command line, in rising order; all three are
 * read through the one table of options, so that a new setting is one new row. Main thread, which then runs the
 * server's loop. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "cli/progress.h"
#include "cli/trace_settings.h"
#include "formats/json.h"
#include "formats/yaml.h"
#include "library/runtime.h"
#include "model/placement.h"
#include "server/server.h"

#define MAX_PROGRAM_BYTES ((size_t)64 << 20)

enum { FROM_COMMAND_LINE, FROM_FILE, FROM_OTEL, FROM_ENVIRONMENT };

typedef struct serve serve;
struct serve {
    const char *config, *host, *device, *gpu_layers, *certificate, *key, *log_format, *data;
    const char *jwt_keys, *jwt_secret, *jwt_algorithms, *jwt_issuer, *jwt_audience,
        *jwt_tenant_claim, *jwt_scope_claim;
    option_list models, programs, aliases;
    int64_t port, n_threads, n_sandboxes, kv_bytes, kv_host_bytes, connections, body_mb, drain_s,
        jwt_leeway_s;
    int kv_q8_0, quiet;
    trace_settings traces;
    tracer_options tracer; /* what they come to */
    int is_traced;
    arena memory;     /* what settings of the file point to */
    json_t *settings; /* the file */
    realm_runtime *runtime;
    struct gate *gate;
    server *server;
    int argc; /* to be read again on SIGHUP */
    char **argv;
    serve *reread; /* what SIGHUPs have read; texts in it may be in use. Owned */
};

/* ---- settings --------------------------------------------------------------------------------- */

/* A scalar of the file as options_set wants it; NULL: memory is out. */
static const char *text_of(serve *s, const json_t *value)
{
    if (json_is_string(value))
        return json_string_value(value);
    char *text = json_dumps(value, JSON_ENCODE_ANY);
    const char *copy = text ? arena_copy(&s->memory, text, strlen(text)) : NULL;
    free(text);
    return copy;
}

static const option *option_named(const options_command *command, const char *name)
{
    for (const option *o = command->options; o->name; o++)
        if (strcmp(o->name, name) == 0)
            return o;
    return NULL;
}

static realm_status set_one(serve *s, const options_command *command, const char *name,
                            const json_t *value, realm_error *error)
{
    char shown[128];
    snprintf(shown, sizeof shown, "'%.60s'", name);
    if (option_named(command, name) && (json_is_object(value) || json_is_array(value)))
        return realm_fail(error, REALM_INVALID, "%s wants one value", shown);
    const char *text = text_of(s, value);
    if (!text)
        return realm_fail_memory(error, 1, "a setting");
    return options_set(command, name, text, shown, FROM_FILE, error);
}

static realm_status read_settings(serve *s, const options_command *command, realm_error *error)
{
    const char *name;
    json_t *value;
    realm_status status = REALM_OK;
    if (!json_is_object(s->settings))
        return realm_fail(error, REALM_INVALID, "it must hold lines 'NAME: VALUE', not %s",
                          json_kind(s->settings));
    json_object_foreach(s->settings, name, value)
    {
        const option *o = option_named(command, name);
        if (strcmp(name, "config") == 0)
            return realm_fail(error, REALM_INVALID, "'config' has no place in a settings file");
        if (json_is_null(value))
            continue;
        size_t count = json_is_array(value) && o && o->kind == OPTION_LIST ? json_array_size(value)
                                                                           : 0;
        if (!count)
            status = set_one(s, command, name, value, error);
        for (size_t i = 0; i < count && !status; i++)
            status = set_one(s, command, name, json_array_get(value, i), error);
        if (status)
            return status;
    }
    return REALM_OK;
}

/* realm.yaml of this folder if nothing else is said; that one need not be there. */
static realm_status read_file(serve *s, const options_command *command, const char *path,
                              realm_error *error)
{
    char *text;
    size_t size;
    if (!path && access("realm.yaml", F_OK) != 0)
        return REALM_OK;
    path = path ? path : "realm.yaml";
    realm_status status = file_read(&s->memory, path, YAML_MAX_BYTES, &text, &size, error);
    if (!status)
        status = yaml_parse(&s->settings, text, size, error);
    if (!status)
        status = read_settings(s, command, error);
    return status ? realm_fail_in(error, error->status, "%s", path) : REALM_OK;
}

/* "max-body" is REALM_MAX_BODY. Lists are separated by commas. */
static realm_status read_environment(serve *s, const options_command *command, realm_error *error)
{
    for (const option *o = command->options; o->name; o++) {
        char name[64] = "REALM_";
        size_t size = strlen(name);
        for (const char *c = o->name; *c && size + 1 < sizeof name; c++)
            name[size++] = *c == '-' ? '_' : (char)toupper((unsigned char)*c);
        name[size] = 0;
        const char *value = getenv(name);
        if (!value || !*value)
            continue;
        realm_status status = REALM_OK;
        if (o->kind != OPTION_LIST) {
            status = options_set(command, o->name, value, name, FROM_ENVIRONMENT, error);
        } else {
            char *copy = arena_copy(&s->memory, value, strlen(value));
            for (char *rest, *item = copy ? strtok_r(copy, ",", &rest) : NULL; item && !status;
                 item = strtok_r(NULL, ",", &rest))
                status = options_set(command, o->name, item, name, FROM_ENVIRONMENT, error);
        }
        if (status)
            return status;
    }
    return REALM_OK;
}

/* ---- setting up --------------------------------------------------------------------------------- */

/* "NAME=FILE" or "FILE"; *name is NULL then. An = of a path needs a NAME= before it. */
static realm_status split(serve *s, const char *text, const char **name, const char **path,
                          realm_error *error)
{
    const char *equals = strchr(text, '=');
    *name = NULL;
    *path = text;
    if (!equals)
        return REALM_OK;
    *name = arena_copy(&s->memory, text, (size_t)(equals - text));
    *path = equals + 1;
    if (!*name)
        return realm_fail_memory(error, 1, "a name");
    if (!**name || !**path)
        return realm_fail(error, REALM_INVALID, "'%.200s' is not NAME=FILE", text);
    return REALM_OK;
}

static realm_status load_models(serve *s, realm_error *error)
{
    for (int i = 0; i < s->models.count; i++) {
        const char *name, *path;
        realm_status status = split(s, s->models.items[i], &name, &path, error);
        if (status)
            return status;
        progress bar;
        progress_begin(&bar, "loading the model");
        status = realm_runtime_load(s->runtime, name, path, progress_step, &bar, error);
        progress_end(&bar);
        if (status)
            return status;
        sandbox_model loaded = runtime_model(s->runtime, i);
        LOG_I("server", "serving '%s' from %s", loaded.name, path);
    }
    return REALM_OK;
}

static realm_status parse_algorithms(const char *text, unsigned *algorithms, realm_error *error)
{
    *algorithms = 0;
    while (*text) {
        char name[16];
        size_t size = strcspn(text, ", ");
        snprintf(name, sizeof name, "%.*s", (int)(size < sizeof name ? size : 0), text);
        unsigned found = jwt_algorithm_parse(name);
        if (!found)
            return realm_fail(error, REALM_INVALID,
                              "jwt-algorithms: '%.*s' is none of HS256, RS256, ES256, EdDSA",
                              size < 40 ? (int)size : 40, text);
        *algorithms |= found;
        text += size + strspn(text + size, ", ");
    }
    return REALM_OK;
}

static realm_status open_tenants(serve *s, const sandbox_model *models, int32_t count,
                                 realm_error *error)
{
    const char *source = s->jwt_secret ? s->jwt_secret : s->jwt_keys;
    const jwks_options keys = {.source = source, .hmac = s->jwt_secret != NULL};
    jwt_rules rules = {.issuer = s->jwt_issuer,
                       .audience = s->jwt_audience,
                       .leeway_s = (int32_t)s->jwt_leeway_s,
                       .tenant_claim = s->jwt_tenant_claim,
                       .scope_claim = s->jwt_scope_claim};
    const gate_tenancy_options options = {.folder = s->data,
                                          .sandbox = runtime_sandbox(s->runtime),
                                          .models = models,
                                          .n_models = count,
                                          .is_local = server_is_local(s->host),
                                          .jwks = source ? &keys : NULL,
                                          .jwt_rules = &rules};
    const char *algorithms = s->jwt_algorithms;
    if (!algorithms)
        algorithms = s->jwt_secret ? "HS256" : "RS256,ES256,EdDSA";
    realm_status status = parse_algorithms(algorithms, &rules.algorithms, error);
    return status ? status : gate_tenancy_open(&s->gate, &options, error);
}

static realm_status open_gate(serve *s, realm_error *error)
{
    sandbox_model models[OPTION_MAX_LIST];
    int32_t count = runtime_model_count(s->runtime);
    for (int32_t i = 0; i < count; i++)
        models[i] = runtime_model(s->runtime, i);
    if (s->data)
        return open_tenants(s, models, count, error);
    const tenant_grants grants = {.number = 1,
                                  .name = "default",
                                  .capabilities = CAPABILITY_ALL & ~(unsigned)CAPABILITY_TENSORS,
                                  .limits = SANDBOX_LIMITS_DEFAULT,
                                  .models = models,
                                  .n_models = count,
                                  .state = runtime_state(s->runtime)};
    return gate_local_open(&s->gate, &grants, error);
}

static realm_status load_programs(serve *s, realm_error *error)
{
    for (int i = 0; i < s->programs.count; i++) {
        const char *name, *path;
        char *bytes;
        size_t size;
        realm_program *p;
        realm_status status = split(s, s->programs.items[i], &name, &path, error);
        if (!status && !name)
            status = realm_fail(error, REALM_INVALID, "'%.200s' is not NAME=FILE", path);
        if (!status)
            status = file_read(&s->memory, path, MAX_PROGRAM_BYTES, &bytes, &size, error);
        if (!status)
            status = realm_program_open(&p, s->runtime, name, bytes, size, error);
        if (status)
            return realm_fail_in(error, status, "program %s", s->programs.items[i]);
        status = gate_local_program(s->gate, name, runtime_program(p), error);
        realm_program_close(p);
        if (status)
            return status;
    }
    return REALM_OK;
}

static void on_ready(void *context, const char *url)
{
    const serve *s = context;
    if (s->quiet)
        return;
    sandbox_model first = runtime_model(s->runtime, 0);
    printf(
        "Realm serves at %s\n\n  curl %s/v1/chat/completions -H 'content-type: application/json' \\\n"
        "    -d '{\"model\":\"%s\",\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}]}'\n\n",
        url, url, first.name);
    fflush(stdout);
}

static realm_status on_reload(void *context, server_options *changed, realm_error *error);

static realm_status set_up(serve *s, realm_error *error)
{
    realm_runtime_options runtime = {.device = s->device,
                                     .n_threads = (int32_t)s->n_threads,
                                     .n_sandboxes = (int32_t)s->n_sandboxes,
                                     .kv_bytes = (uint64_t)s->kv_bytes,
                                     .kv_host_bytes = s->kv_host_bytes == 0  ? -1
                                                      : s->kv_host_bytes < 0 ? 0
                                                                             : s->kv_host_bytes,
                                     .kv_q8_0 = s->kv_q8_0};
    realm_status status = placement_parse_layers(s->gpu_layers, &runtime.gpu_layers, error);
    if (!status)
        status = trace_settings_read(&s->traces, &s->memory, &s->tracer, &s->is_traced, error);
    if (status)
        return status;
    const server_options options = {.host = s->host,
                                    .port = (int)s->port,
                                    .tls_certificate = s->certificate,
                                    .tls_key = s->key,
                                    .max_connections = (int32_t)s->connections,
                                    .max_body_bytes = (uint64_t)s->body_mb << 20,
                                    .drain_s = (int32_t)s->drain_s,
                                    .traces = s->is_traced ? &s->tracer : NULL,
                                    .aliases = s->aliases.items,
                                    .n_aliases = s->aliases.count,
                                    .reload = on_reload,
                                    .ready = on_ready,
                                    .context = s};
    status = realm_runtime_open(&s->runtime, &runtime, error);
    if (!status)
        status = load_models(s, error);
    if (!status)
        status = open_gate(s, error);
    if (!status)
        status = load_programs(s, error);
    if (!status)
        status = server_open(&s->server, s->runtime, s->gate, &options, error);
    return status;
}

/* --config must be known before the file is read, and the file before the other options. */
static const char *find_config(int argc, char **argv)
{
    const char *config = getenv("REALM_CONFIG");
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        int is_alone = strcmp(argv[i], "--config") == 0 || strcmp(argv[i], "-c") == 0;
        if (is_alone && i + 1 < argc)
            config = argv[i + 1];
        else if (strncmp(argv[i], "--config=", 9) == 0)
            config = argv[i] + 9;
    }
    return config && *config ? config : NULL;
}

static int set_log(const serve *s, const options_command *command)
{
    if (strcmp(s->log_format, "json") != 0 && strcmp(s->log_format, "text") != 0)
        return options_wrong(command, "--log-format must be json or text, not '%.40s'",
                             s->log_format);
    log_set_json(strcmp(s->log_format, "json") == 0);
    const char *level = getenv("REALM_LOG");
    if (!level || !*level)
        log_set_level(LOG_INFO);
    return OPTIONS_GO_ON;
}

static int read_everything(serve *s, const options_command *command, int argc, char **argv)
{
    realm_error error;
    int asks_help = 0;
    for (int i = 1; i < argc; i++)
        asks_help |= strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0;
    if (!asks_help && (read_file(s, command, find_config(argc, argv), &error) ||
                       trace_settings_environment(command, FROM_OTEL, &s->memory, &error) ||
                       read_environment(s, command, &error)))
        return command_failed("serve", &error);
    int code = options_parse(command, argc, argv);
    if (code == OPTIONS_GO_ON && !s->models.count)
        code = options_wrong(command, "there is no model: give --model FILE");
    if (code == OPTIONS_GO_ON && s->data && s->programs.count)
        code = options_wrong(command,
                             "with --data programs are tenants': give them with 'realm deploy', "
                             "not with --program");
    if (code == OPTIONS_GO_ON && (s->jwt_keys || s->jwt_secret) && !s->data)
        code = options_wrong(command, "bearer tokens are for tenants, who need --data DIR");
    if (code == OPTIONS_GO_ON && s->jwt_keys && s->jwt_secret)
        code = options_wrong(command, "--jwt-keys and --jwt-secret exclude each other");
    return code == OPTIONS_GO_ON ? set_log(s, command) : code;
}

#define MAX_OPTIONS 40

static const char notes[] =
    "Every option is also a key of the settings file (port: 8080) and a variable of the environment\n"
    "(REALM_PORT=8080); the command line wins over the environment, and that over the file.\n"
    "\nExamples\n"
    "  realm serve --model model.gguf\n"
    "  realm serve --model small=a.gguf --model large=b.gguf --port 9000\n";

static serve usual(int argc, char **argv)
{
    serve s = {.host = "127.0.0.1",
               .port = 8080,
               .n_sandboxes = 256,
               .kv_host_bytes = -1,
               .connections = 10000,
               .body_mb = 16,
               .drain_s = 30,
               .log_format = "json",
               .traces = {.sampler = "parentbased_traceidratio", .sample = 1},
               .argc = argc,
               .argv = argv};
    arena_init(&s.memory, 0);
    return s;
}

static void fill_options(serve *s, option out[MAX_OPTIONS])
{
    const option options[] = {
        {.name = "config",
         .letter = 'c',
         .kind = OPTION_TEXT,
         .out = &s->config,
         .value = "FILE",
         .help = "settings (default: realm.yaml of this folder, if it is there)"},
        {.name = "model",
         .letter = 'm',
         .kind = OPTION_LIST,
         .out = &s->models,
         .value = "[NAME=]FILE",
         .help =
             "a GGUF file, and what clients call it (default: the file's own name); may be given "
             "several times"},
        {.name = "alias",
         .kind = OPTION_LIST,
         .out = &s->aliases,
         .value = "NAME=MODEL",
         .help = "another name that clients may use for a model"},
        {.name = "program",
         .kind = OPTION_LIST,
         .out = &s->programs,
         .value = "NAME=P.wasm",
         .help =
             "a program behind /v1/programs/NAME; one called chat, completion or embeddings takes the "
             "built-in one's place"},
        {.name = "data",
         .letter = 'd',
         .kind = OPTION_TEXT,
         .out = &s->data,
         .value = "DIR",
         .help =
             "tenants, keys, deployed programs and usage are in this folder (made if it is not there); "
             "without it there is one tenant and no key"},
        {.name = "jwt-keys",
         .kind = OPTION_TEXT,
         .out = &s->jwt_keys,
         .value = "FILE|URL",
         .help = "also take bearer tokens (JWT) signed by the keys of this JWK set or PEM file"},
        {.name = "jwt-secret",
         .kind = OPTION_TEXT,
         .out = &s->jwt_secret,
         .value = "FILE",
         .help = "the same, signed with the shared secret in this file (HS256)"},
        {.name = "jwt-algorithms",
         .kind = OPTION_TEXT,
         .out = &s->jwt_algorithms,
         .value = "LIST",
         .help = "of HS256, RS256, ES256, EdDSA (default: all that fit the keys)"},
        {.name = "jwt-issuer",
         .kind = OPTION_TEXT,
         .out = &s->jwt_issuer,
         .value = "TEXT",
         .help = "what a token's iss must be"},
        {.name = "jwt-audience",
         .kind = OPTION_TEXT,
         .out = &s->jwt_audience,
         .value = "TEXT",
         .help = "what a token's aud must be or hold; without it tokens with an aud are refused"},
        {.name = "jwt-tenant-claim",
         .kind = OPTION_TEXT,
         .out = &s->jwt_tenant_claim,
         .value = "NAME",
         .help = "the claim that names the tenant (default: tenant); a.b looks into objects"},
        {.name = "jwt-scope-claim",
         .kind = OPTION_TEXT,
         .out = &s->jwt_scope_claim,
         .value = "NAME",
         .help = "the claim that names scopes (default: scope)"},
        {.name = "jwt-leeway",
         .kind = OPTION_INT,
         .out = &s->jwt_leeway_s,
         .value = "S",
         .min = 0,
         .max = 300,
         .help = "seconds by which clocks may differ"},
        {.name = "host",
         .kind = OPTION_TEXT,
         .out = &s->host,
         .value = "ADDRESS",
         .help = "the address to listen on; others than this machine's own need keys"},
        {.name = "port",
         .letter = 'p',
         .kind = OPTION_INT,
         .out = &s->port,
         .value = "N",
         .min = 0,
         .max = 65535,
         .help = "the port, 0 for any free one"},
        {.name = "tls-cert",
         .kind = OPTION_TEXT,
         .out = &s->certificate,
         .value = "FILE",
         .help = "the certificate and its chain (PEM): speak TLS; read again on SIGHUP"},
        {.name = "tls-key",
         .kind = OPTION_TEXT,
         .out = &s->key,
         .value = "FILE",
         .help = "the certificate's key (PEM)"},
        {.name = "device",
         .kind = OPTION_TEXT,
         .out = &s->device,
         .value = "NAME",
         .help = "auto, cpu, cuda or cuda:N (default: auto, a CUDA device if one works)"},
        {.name = "gpu-layers",
         .kind = OPTION_TEXT,
         .out = &s->gpu_layers,
         .value = "N",
         .help = "layers that the CUDA device computes, from the first; the processor computes the "
                 "rest (default: auto, as many as it has room for)"},
        {.name = "threads",
         .letter = 't',
         .kind = OPTION_INT,
         .out = &s->n_threads,
         .value = "N",
         .min = 1,
         .max = 1024,
         .help = "threads that compute, of each model (default: the cores there are)"},
        {.name = "sandboxes",
         .kind = OPTION_INT,
         .out = &s->n_sandboxes,
         .value = "N",
         .min = 1,
         .max = 8192,
         .help =
             "requests whose programs run at once; more wait. Each reserves 4 GiB of addresses (not of "
             "memory), so fewer fit under ulimit -v"},
        {.name = "kv-memory",
         .kind = OPTION_INT,
         .out = &s->kv_bytes,
         .value = "BYTES",
         .min = 1 << 20,
         .max = 0x1p50,
         .help =
             "memory for keys and values of each model, such as 512m or 2g (default: a third of what the "
             "machine or container has free)"},
        {.name = "kv-host-memory",
         .kind = OPTION_INT,
         .out = &s->kv_host_bytes,
         .value = "BYTES",
         .max = 0x1p50,
         .help =
             "with a CUDA device: memory of the host for keys and values of idle sessions that the device has "
             "no room for, 0 for none (default: as much as on the device, at most a quarter of what is free)"},
        {.name = "kv-q8",
         .kind = OPTION_FLAG,
         .out = &s->kv_q8_0,
         .help = "keep keys and values in 8 bits: half the memory"},
        {.name = "max-connections",
         .kind = OPTION_INT,
         .out = &s->connections,
         .value = "N",
         .min = 1,
         .max = 1000000,
         .help = "connections at once; more are refused"},
        {.name = "max-body",
         .kind = OPTION_INT,
         .out = &s->body_mb,
         .value = "MIB",
         .min = 1,
         .max = 1024,
         .help = "the largest body of a request"},
        {.name = "drain",
         .kind = OPTION_INT,
         .out = &s->drain_s,
         .value = "S",
         .min = 1,
         .max = 86400,
         .help = "seconds that running requests have after SIGTERM"},
        {.name = "traces-endpoint",
         .kind = OPTION_TEXT,
         .out = &s->traces.endpoint,
         .value = "URL",
         .help =
             "send traces of requests to this collector (OTLP over HTTP; without a path: /v1/traces). "
             "OpenTelemetry's own variables (OTEL_...) hold too"},
        {.name = "traces-header",
         .kind = OPTION_LIST,
         .out = &s->traces.headers,
         .value = "NAME=VALUE",
         .help =
             "a header for the collector, its value percent-encoded; a key is better in the file or the "
             "environment, where others do not see it"},
        {.name = "traces-sampler",
         .kind = OPTION_TEXT,
         .out = &s->traces.sampler,
         .value = "NAME",
         .help =
             "which requests are traced: always_on, always_off, traceidratio, or these with parentbased_ "
             "before, which do as a caller that traces does"},
        {.name = "traces-sample",
         .kind = OPTION_REAL,
         .out = &s->traces.sample,
         .value = "PART",
         .min = 0,
         .max = 1,
         .help = "the part of all traces that traceidratio keeps"},
        {.name = "log-format",
         .kind = OPTION_TEXT,
         .out = &s->log_format,
         .value = "json|text",
         .help = "how the log is written to standard error; REALM_LOG sets its level (here: info)"},
        {.name = "quiet",
         .letter = 'q',
         .kind = OPTION_FLAG,
         .out = &s->quiet,
         .help = "print nothing to standard output"},
        {0}};
    _Static_assert(sizeof options <= MAX_OPTIONS * sizeof *out, "MAX_OPTIONS");
    memcpy(out, options, sizeof options);
}

static options_command command_of(const option *options)
{
    return (options_command){.name = "serve",
                             .summary = "serve models over HTTP, with OpenAI's API",
                             .options = options,
                             .notes = notes};
}

/* ---- SIGHUP ---------------------------------------------------------------------------------------- */

static int same_value(const option *a, const option *b)
{
    const char *const *texts[] = {a->out, b->out};
    const option_list *lists[] = {a->out, b->out};
    switch (a->kind) {
    case OPTION_FLAG: return *(int *)a->out == *(int *)b->out;
    case OPTION_INT: return *(int64_t *)a->out == *(int64_t *)b->out;
    case OPTION_REAL: return memcmp(a->out, b->out, sizeof(double)) == 0;
    case OPTION_TEXT:
        return *texts[0] && *texts[1] ? strcmp(*texts[0], *texts[1]) == 0 : *texts[0] == *texts[1];
    case OPTION_LIST: break;
    }
    int same = lists[0]->count == lists[1]->count;
    for (int i = 0; same && i < lists[0]->count; i++)
        same = strcmp(lists[0]->items[i], lists[1]->items[i]) == 0;
    return same;
}

static int is_of_traces(const option *o)
{
    return strncmp(o->name, "traces-", 7) == 0;
}

/* What the server exports by from now on: the same as so far (of s, or of a SIGHUP's) unless a row of theirs differs. */
static const tracer_options *traces_of(serve *s, serve *fresh, const tracer_options *so_far)
{
    option old[MAX_OPTIONS], new[MAX_OPTIONS];
    serve *of = so_far == &s->tracer ? s : s->reread;
    while (of && so_far != &of->tracer)
        of = of->reread;
    if (!fresh->is_traced || !of)
        return fresh->is_traced ? &fresh->tracer : NULL;
    fill_options(of, old);
    fill_options(fresh, new);
    for (int i = 0; old[i].name; i++)
        if (is_of_traces(&old[i]) && !same_value(&old[i], &new[i]))
            return &fresh->tracer;
    return so_far;
}

/* Says which settings have changed that hold only from the next start on. */
static void tell_what_waits(const option *running, const option *fresh)
{
    static const char *const applied[] = {"config",   "alias", "tls-cert",   "tls-key",
                                          "max-body", "drain", "log-format", "quiet"};
    for (int i = 0; running[i].name; i++) {
        int is_applied = is_of_traces(&running[i]);
        for (size_t k = 0; k < sizeof applied / sizeof *applied; k++)
            is_applied |= strcmp(running[i].name, applied[k]) == 0;
        if (!is_applied && !same_value(&running[i], &fresh[i]))
            LOG_W("server", "'%s' has changed and needs a restart", running[i].name);
    }
}

static realm_status reread(serve *fresh, const options_command *command, realm_error *error)
{
    realm_status status = read_file(fresh, command, find_config(fresh->argc, fresh->argv), error);
    if (!status)
        status = trace_settings_environment(command, FROM_OTEL, &fresh->memory, error);
    if (!status)
        status = read_environment(fresh, command, error);
    if (!status && options_parse(command, fresh->argc, fresh->argv) != OPTIONS_GO_ON)
        status = realm_fail(error, REALM_INVALID, "the command line cannot be read again");
    if (!status && set_log(fresh, command) != OPTIONS_GO_ON)
        status = realm_fail(error, REALM_INVALID, "log-format must be json or text");
    return status;
}

static realm_status on_reload(void *context, server_options *changed, realm_error *error)
{
    serve *s = context, *fresh = malloc(sizeof *fresh);
    if (!fresh)
        return realm_fail_memory(error, sizeof *fresh, "the settings");
    *fresh = usual(s->argc, s->argv);
    fresh->reread = s->reread; /* kept: one is small, and comes with a person's doing */
    s->reread = fresh;
    option running[MAX_OPTIONS], options[MAX_OPTIONS];
    fill_options(s, running);
    fill_options(fresh, options);
    const options_command command = command_of(options);
    realm_status status = reread(fresh, &command, error);
    if (!status)
        status = trace_settings_read(&fresh->traces, &fresh->memory, &fresh->tracer,
                                     &fresh->is_traced, error);
    if (status)
        return status;
    changed->traces = traces_of(s, fresh, changed->traces);
    tell_what_waits(running, options);
    changed->tls_certificate = fresh->certificate;
    changed->tls_key = fresh->key;
    changed->max_body_bytes = (uint64_t)fresh->body_mb << 20;
    changed->drain_s = (int32_t)fresh->drain_s;
    changed->aliases = fresh->aliases.items;
    changed->n_aliases = fresh->aliases.count;
    return REALM_OK;
}

/* ---- running --------------------------------------------------------------------------------------- */

static void release(serve *s)
{
    for (serve *r = s->reread, *next; r; r = next) {
        next = r->reread;
        json_decref(r->settings);
        arena_release(&r->memory);
        free(r);
    }
    json_decref(s->settings);
    arena_release(&s->memory);
}

static int run_all(serve *s)
{
    realm_error error;
    if (set_up(s, &error))
        return command_failed("serve", &error);
    server_run(s->server);
    return EXIT_OK;
}

int cmd_serve(int argc, char **argv)
{
    serve s = usual(argc, argv);
    option options[MAX_OPTIONS];
    fill_options(&s, options);
    const options_command command = command_of(options);
    int code = read_everything(&s, &command, argc, argv);
    if (code == OPTIONS_GO_ON)
        code = run_all(&s);
    server_close(s.server);
    if (s.gate)
        s.gate->table->close(s.gate);
    realm_runtime_close(s.runtime);
    release(&s);
    return code;
}
