/* library/runtime.c: librealm's public functions over the rooms below.
 *
 * Owns nothing that the rooms do not: a runtime is a sandbox host, a list of models with an engine
 * each, and a state store; a tenant is its grants and the programs it may call; a call is a
 * sandbox request and what it said. Any thread; models are added by one thread at a time. */
#include "realm/realm.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/buffer.h"
#include "base/condition.h"
#include "base/file.h"
#include "base/log.h"
#include "compute/backend_open.h"
#include "engine/engine.h"
#include "library/builtin.h"
#include "library/runtime.h"
#include "model/placement.h"
#include "sandbox/sandbox.h"

#define MAX_MODELS          64
#define MAX_TENANT_PROGRAMS 256

typedef struct loaded_model {
    char *name;
    backend *device;
    model *model;
    engine *engine;
} loaded_model;

struct realm_runtime {
    realm_runtime_options options;
    char *device; /* options.device's copy, or NULL */
    sandbox_host *host;
    state_store *state;
    char cache_folder[4096]; /* "": none; with has_folder 0: the usual one */
    int has_folder;
    loaded_model models[MAX_MODELS];
    int32_t n_models;
    atomic_uint next_tenant;
};

struct realm_program {
    program *program;
};

typedef struct tenant_program {
    char *name;
    program *program;
} tenant_program;

struct realm_tenant {
    sandbox_tenant *tenant;
    pthread_mutex_t mutex; /* guards programs */
    tenant_program programs[MAX_TENANT_PROGRAMS];
    int32_t n_programs;
};

struct realm_call {
    sandbox_request *request;
    realm_call_options options;
    pthread_mutex_t mutex;
    pthread_cond_t ended;
    int done; /* guarded by mutex; what follows is constant once it is set */
    realm_call_result result;
    char message[REALM_ERROR_MESSAGE_SIZE];
    char *json;
};

const char *realm_version(void)
{
    return REALM_VERSION;
}

/* ---- the runtime -------------------------------------------------------------------------------- */

static realm_status copy_device(realm_runtime *r, realm_error *error)
{
    if (!backend_device_parse(r->options.device, error))
        return REALM_INVALID;
    if (r->options.gpu_layers < 0)
        return realm_fail(error, REALM_INVALID, "gpu_layers is %" PRId32, r->options.gpu_layers);
    if (r->options.device && !(r->device = strdup(r->options.device)))
        return realm_fail_memory(error, strlen(r->options.device), "the device's name");
    r->options.device = r->device;
    return REALM_OK;
}

/* Copies where things are kept. */
static realm_status keep_cache_folder(realm_runtime *r, realm_error *error)
{
    const char *folder = r->options.cache_folder;
    r->has_folder = folder != NULL;
    r->options.cache_folder = NULL;
    if (folder && snprintf(r->cache_folder, sizeof r->cache_folder, "%s", folder) >=
                      (int)sizeof r->cache_folder)
        return realm_fail(error, REALM_INVALID, "the cache folder's path is too long");
    return REALM_OK;
}

/* A folder of the cache as the rooms below want it: NULL for the usual, "" for none. */
static const char *cache_leaf(const realm_runtime *r, const char *leaf, char *path, size_t size)
{
    if (!r->has_folder)
        return NULL;
    if (!r->cache_folder[0])
        return "";
    snprintf(path, size, "%s/%s", r->cache_folder, leaf);
    return path;
}

realm_status realm_runtime_open(realm_runtime **out, const realm_runtime_options *options,
                                realm_error *error)
{
    realm_runtime *r = calloc(1, sizeof *r);
    if (!r)
        return realm_fail_memory(error, sizeof *r, "the runtime");
    if (options)
        r->options = *options;
    realm_status status = keep_cache_folder(r, error);
    atomic_init(&r->next_tenant, 1);
    char programs[4096 + 16];
    sandbox_host_options host = {
        .n_threads = r->options.n_sandbox_threads,
        .max_requests = r->options.n_sandboxes,
        .cache_folder = cache_leaf(r, "programs", programs, sizeof programs)};
    if (!status)
        status = copy_device(r, error);
    if (!status)
        status = state_memory_open(&r->state, error);
    if (!status)
        status = sandbox_host_open(&r->host, &host, error);
    if (status) {
        realm_runtime_close(r);
        return status;
    }
    *out = r;
    return REALM_OK;
}

static void close_model(loaded_model *m)
{
    if (m->engine)
        engine_close(m->engine);
    if (m->model)
        model_close(m->model);
    if (m->device)
        m->device->table->close(m->device);
    free(m->name);
}

void realm_runtime_close(realm_runtime *r)
{
    if (!r)
        return;
    if (r->host)
        sandbox_host_close(r->host);
    while (r->n_models)
        close_model(&r->models[--r->n_models]);
    if (r->state)
        r->state->table->close(r->state);
    free(r->device);
    free(r);
}

static loaded_model *find_model(realm_runtime *r, const char *name)
{
    for (int32_t i = 0; i < r->n_models; i++)
        if (strcmp(r->models[i].name, name) == 0)
            return &r->models[i];
    return NULL;
}

static realm_status load(realm_runtime *r, loaded_model *m, const char *path,
                         const model_options *options, realm_error *error)
{
    const placement where = {.device = r->options.device,
                             .n_threads = r->options.n_threads,
                             .gpu_layers = r->options.gpu_layers};
    realm_status status = placement_open(&m->model, &m->device, path, &where, options, error);
    if (status)
        return status;
    m->name = strdup(model_name(m->model));
    if (!m->name)
        return realm_fail_memory(error, 1, "a model's name");
    if (find_model(r, m->name))
        return realm_fail(error, REALM_INVALID, "a model named '%s' is loaded already", m->name);
    engine_options settings = {
        .kv_bytes = r->options.kv_bytes,
        .kv_host_bytes = r->options.kv_host_bytes,
        .kv_type = r->options.kv_q8_0 ? DTYPE_Q8_0 : DTYPE_F16,
        .gather_us = -1,
    };
    return engine_open(&m->engine, m->model, &settings, error);
}

/* Where packed weights are kept; NULL for nowhere. */
static const char *weight_folder(const realm_runtime *r, char *path, size_t size)
{
    if (r->options.no_weight_cache)
        return NULL;
    const char *folder = cache_leaf(r, "weights", path, size);
    if (folder)
        return folder;
    realm_error why;
    if (file_cache_path(path, size, "weights", &why) == REALM_OK)
        return path;
    LOG_W("library", "packed weights are not kept: %s", why.message);
    return NULL;
}

realm_status realm_runtime_load(realm_runtime *r, const char *name, const char *path,
                                void (*progress)(void *context, double fraction), void *context,
                                realm_error *error)
{
    if (r->n_models == MAX_MODELS)
        return realm_fail(error, REALM_TOO_LARGE, "more than %d models", MAX_MODELS);
    loaded_model m = {0};
    char folder[4096 + 16];
    model_options options = {.name = name,
                             .progress = progress,
                             .progress_context = context,
                             .weight_folder = weight_folder(r, folder, sizeof folder),
                             .map_weights = r->options.map_weights};
    realm_status status = load(r, &m, path, &options, error);
    if (status)
        close_model(&m);
    else
        r->models[r->n_models++] = m;
    return status;
}

sandbox_host *runtime_sandbox(realm_runtime *r)
{
    return r->host;
}

state_store *runtime_state(realm_runtime *r)
{
    return r->state;
}

int32_t runtime_model_count(const realm_runtime *r)
{
    return r->n_models;
}

sandbox_model runtime_model(const realm_runtime *r, int32_t index)
{
    return (sandbox_model){r->models[index].name, r->models[index].engine};
}

program *runtime_program(realm_program *p)
{
    return p->program;
}

/* ---- programs ----------------------------------------------------------------------------------- */

realm_status realm_program_open(realm_program **out, realm_runtime *r, const char *name,
                                const void *bytes, size_t size, realm_error *error)
{
    realm_program *p = calloc(1, sizeof *p);
    if (!p)
        return realm_fail_memory(error, sizeof *p, "a program");
    realm_status status = program_open(&p->program, r->host, name, bytes, size, error);
    if (status) {
        free(p);
        return status;
    }
    *out = p;
    return REALM_OK;
}

realm_status realm_program_builtin(realm_program **out, realm_runtime *r, const char *name,
                                   realm_error *error)
{
    const builtin_program *b = builtin_find(name);
    if (!b)
        return realm_fail(error, REALM_NOT_FOUND, "there is no built-in program '%s'", name);
    return realm_program_open(out, r, name, b->bytes, *b->size, error);
}

void realm_program_close(realm_program *p)
{
    if (!p)
        return;
    program_release(p->program);
    free(p);
}

/* ---- tenants ------------------------------------------------------------------------------------ */

/* For `call`: on a sandbox thread. */
static realm_status resolve_program(void *context, const char *name, size_t size, program **out,
                                    realm_error *error)
{
    realm_tenant *t = context;
    realm_status status = REALM_NOT_FOUND;
    pthread_mutex_lock(&t->mutex);
    for (int32_t i = 0; i < t->n_programs && status; i++)
        if (strlen(t->programs[i].name) == size && memcmp(t->programs[i].name, name, size) == 0) {
            *out = program_retain(t->programs[i].program);
            status = REALM_OK;
        }
    pthread_mutex_unlock(&t->mutex);
    if (status)
        realm_fail(error, status, "the tenant has no program '%.*s'", (int)size, name);
    return status;
}

static realm_status parse_capabilities(const realm_tenant_options *options, unsigned *out,
                                       realm_error *error)
{
    *out = 0;
    for (int32_t i = 0; i < options->n_capabilities; i++) {
        unsigned bit = capability_parse(options->capabilities[i]);
        if (!bit)
            return realm_fail(error, REALM_INVALID, "there is no capability '%s'",
                              options->capabilities[i]);
        *out |= bit;
    }
    return REALM_OK;
}

static realm_status list_models(realm_runtime *r, const realm_tenant_options *options,
                                sandbox_model *models, int32_t *count, realm_error *error)
{
    *count = options->models ? options->n_models : r->n_models;
    if (*count < 1 || *count > MAX_MODELS)
        return realm_fail(error, REALM_INVALID, "a tenant needs 1 to %d models; %d are given",
                          MAX_MODELS, (int)*count);
    for (int32_t i = 0; i < *count; i++) {
        loaded_model *m = options->models ? find_model(r, options->models[i]) : &r->models[i];
        if (!m)
            return realm_fail(error, REALM_NOT_FOUND, "no model '%s' is loaded",
                              options->models[i]);
        models[i] = (sandbox_model){m->name, m->engine};
    }
    return REALM_OK;
}

static sandbox_limits limits_of(const realm_tenant_options *options)
{
    sandbox_limits limits = SANDBOX_LIMITS_DEFAULT;
    if (options->memory_bytes)
        limits.memory_bytes = limits.memory64_bytes = options->memory_bytes;
    if (options->cpu_ms)
        limits.cpu_ns = options->cpu_ms * 1000000u;
    if (options->wall_ms)
        limits.wall_ns = options->wall_ms * 1000000u;
    if (options->requests)
        limits.requests = options->requests;
    return limits;
}

realm_status realm_tenant_open(realm_tenant **out, realm_runtime *r,
                               const realm_tenant_options *options, realm_error *error)
{
    sandbox_model models[MAX_MODELS];
    tenant_grants grants = {.name = options->name,
                            .weight = (float)options->weight,
                            .limits = limits_of(options),
                            .models = models,
                            .state = r->state,
                            .resolve = resolve_program};
    if (!options->name)
        return realm_fail(error, REALM_INVALID, "a tenant needs a name");
    realm_status status = parse_capabilities(options, &grants.capabilities, error);
    if (!status)
        status = list_models(r, options, models, &grants.n_models, error);
    if (status)
        return status;
    realm_tenant *t = calloc(1, sizeof *t);
    if (!t)
        return realm_fail_memory(error, sizeof *t, "a tenant");
    grants.number = atomic_fetch_add(&r->next_tenant, 1);
    grants.resolve_context = t;
    status = sandbox_tenant_open(&t->tenant, &grants, error);
    if (status) {
        free(t);
        return status;
    }
    pthread_mutex_init(&t->mutex, NULL);
    *out = t;
    return REALM_OK;
}

void realm_tenant_close(realm_tenant *t)
{
    if (!t)
        return;
    sandbox_tenant_release(t->tenant);
    for (int32_t i = 0; i < t->n_programs; i++) {
        program_release(t->programs[i].program);
        free(t->programs[i].name);
    }
    pthread_mutex_destroy(&t->mutex);
    free(t);
}

realm_status realm_tenant_add_program(realm_tenant *t, const char *name, realm_program *p,
                                      realm_error *error)
{
    char *copy = strdup(name);
    if (!copy)
        return realm_fail_memory(error, strlen(name) + 1, "a program's name");
    program *old = NULL;
    realm_status status = REALM_OK;
    pthread_mutex_lock(&t->mutex);
    int32_t at = 0;
    while (at < t->n_programs && strcmp(t->programs[at].name, name) != 0)
        at++;
    if (at == MAX_TENANT_PROGRAMS) {
        status = realm_fail(error, REALM_QUOTA, "a tenant has at most %d programs",
                            MAX_TENANT_PROGRAMS);
    } else if (at < t->n_programs) {
        old = t->programs[at].program;
        t->programs[at].program = program_retain(p->program);
    } else {
        t->programs[t->n_programs++] = (tenant_program){copy, program_retain(p->program)};
        copy = NULL;
    }
    pthread_mutex_unlock(&t->mutex);
    program_release(old);
    free(copy);
    return status;
}

/* ---- calls -------------------------------------------------------------------------------------- */

static void call_text(void *context, const char *text, size_t size)
{
    realm_call *c = context;
    if (c->options.on_text)
        c->options.on_text(c->options.context, text, size);
}

static void call_done(void *context, const sandbox_result *result)
{
    realm_call *c = context;
    pthread_mutex_lock(&c->mutex);
    c->result = (realm_call_result){
        .status = result->status,
        .message = c->message,
        .prompt_tokens = result->usage.prompt_tokens,
        .generated_tokens = result->usage.generated_tokens,
        .cpu_ns = result->usage.cpu_ns,
        .wall_ns = result->usage.wall_ns,
        .start_ns = result->usage.start_ns,
    };
    size_t length = strlen(result->message);
    if (length >= sizeof c->message)
        length = sizeof c->message - 1;
    memcpy(c->message, result->message, length);
    if (result->json) {
        c->json = malloc(result->json_size + 1);
        if (c->json) {
            memcpy(c->json, result->json, result->json_size);
            c->json[result->json_size] = 0;
            c->result.json = c->json;
            c->result.json_size = result->json_size;
        } else if (!c->result.status) {
            c->result.status = REALM_NO_MEMORY;
        }
    }
    c->done = 1;
    pthread_cond_broadcast(&c->ended);
    pthread_mutex_unlock(&c->mutex);
}

realm_status realm_call_start(realm_call **out, realm_runtime *r, const realm_call_options *options,
                              realm_error *error)
{
    realm_call *c = calloc(1, sizeof *c);
    if (!c)
        return realm_fail_memory(error, sizeof *c, "a call");
    c->options = *options;
    pthread_mutex_init(&c->mutex, NULL);
    condition_init(&c->ended);
    sandbox_input input = {
        .program = options->program->program,
        .tenant = options->tenant->tenant,
        .body = options->input,
        .body_size = options->input_size,
        .seed = options->seed,
        .priority = PRIORITY_NORMAL,
        .context = c,
        .on_text = call_text,
        .on_done = call_done,
    };
    realm_status status = sandbox_start(&c->request, r->host, &input, error);
    if (status) {
        pthread_cond_destroy(&c->ended);
        pthread_mutex_destroy(&c->mutex);
        free(c);
        return status;
    }
    *out = c;
    return REALM_OK;
}

const realm_call_result *realm_call_wait(realm_call *c)
{
    pthread_mutex_lock(&c->mutex);
    while (!c->done)
        pthread_cond_wait(&c->ended, &c->mutex);
    pthread_mutex_unlock(&c->mutex);
    return &c->result;
}

const realm_call_result *realm_call_poll(realm_call *c, uint64_t timeout_ms)
{
    uint64_t now = clock_ns(), until_ns = CONDITION_FOREVER;
    if (timeout_ms < (UINT64_MAX - now) / 1000000)
        until_ns = now + timeout_ms * 1000000;
    pthread_mutex_lock(&c->mutex);
    while (!c->done && condition_wait(&c->ended, &c->mutex, until_ns)) {
    }
    int done = c->done;
    pthread_mutex_unlock(&c->mutex);
    return done ? &c->result : NULL;
}

void realm_call_cancel(realm_call *c)
{
    sandbox_cancel(c->request);
}

void realm_call_close(realm_call *c)
{
    if (!c)
        return;
    sandbox_cancel(c->request);
    realm_call_wait(c);
    sandbox_release(c->request);
    pthread_cond_destroy(&c->ended);
    pthread_mutex_destroy(&c->mutex);
    free(c->json);
    free(c);
}
