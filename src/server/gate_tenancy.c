/* server/gate_tenancy.c: the tenants of a data folder behind gate.h.
 *
 * Everything that a request asks is answered from the tenancy's view in memory. What is added here is the
 * sandbox's side of a tenant: grants, made once for each revision of its settings and programs and kept by its
 * number, because making them copies lists and tells every engine the tenant's share. A tenant's grants keep the
 * tenant_info that they were made of, which `call` asks, until the last request on them has ended.
 *
 * Net thread, but for allows_model (workers plan large requests) and what sandboxes do with grants. */
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/log.h"
#include "server/gate.h"
#include "tenancy/state_sqlite.h"

#define LEAST_SWEEP 64 /* tenants with grants before those of deleted ones are looked for */

/* A tenant's grants as of one revision. */
typedef struct granted {
    int64_t revision;
    sandbox_tenant *tenant;
} granted;

typedef struct tenants {
    gate common;
    tenancy *tenancy;
    state_store *state;
    sandbox_model *models; /* [n_models] */
    int32_t n_models;
    int is_local;
    int needs_credential; /* one has been seen: it stays so, or revoking the last key would open the node */
    map granted;          /* uint32_t -> granted, owned */
    size_t sweep_at;
} tenants;

static tenants *tenants_of(gate *a)
{
    return (tenants *)a;
}

/* ---- grants ----------------------------------------------------------------------------------------- */

static void release_info(void *info)
{
    tenant_info_release(info);
}

static realm_status make_grants(tenants *t, tenant_info *info, sandbox_tenant **out,
                                realm_error *error)
{
    tenant_grants grants;
    sandbox_model *models = calloc((size_t)t->n_models, sizeof *models);
    if (!models)
        return realm_fail_memory(error, (size_t)t->n_models * sizeof *models, "a tenant's models");
    tenant_info_grants(info, &grants);
    grants.models = models;
    grants.n_models = tenant_info_models(info, t->models, t->n_models, models);
    grants.state = t->state;
    grants.forget = release_info;
    tenant_info_retain(info);
    realm_status status = sandbox_tenant_open(out, &grants, error);
    if (status)
        tenant_info_release(info);
    free(models);
    return status;
}

realm_status gate_tenancy_trial(gate *a, const char *tenant, const char *name, const char *smoke,
                                trial *out, realm_error *error)
{
    tenants *t = tenants_of(a);
    tenant_info *info = tenancy_find(t->tenancy, tenant, strlen(tenant));
    if (!info)
        return realm_fail(error, REALM_NOT_FOUND, "there is no tenant '%.80s'", tenant);
    realm_status status = trial_open(out, info, name, smoke, t->models, t->n_models, error);
    tenant_info_release(info);
    return status;
}

static void free_granted(granted *g)
{
    sandbox_tenant_release(g->tenant);
    free(g);
}

static void keep_if_there(void *context, const tenant_view *tenant)
{
    map *kept = context;
    map_put(kept, &tenant->number, sizeof tenant->number, (void *)(uintptr_t)1, NULL);
}

/* Deleted tenants' grants go when the number of grants has doubled, so that a look at all tenants is rare. */
static void sweep(tenants *t)
{
    map there, kept;
    map_init(&there);
    map_init(&kept);
    tenancy_each(t->tenancy, keep_if_there, &there);
    size_t position = 0;
    for (const map_slot *slot; (slot = map_next(&t->granted, &position));) {
        granted *g = slot->value;
        if (!map_get(&there, slot->key, slot->key_size) ||
            map_put(&kept, slot->key, slot->key_size, g, NULL))
            free_granted(g); /* made again if it is asked for */
    }
    map_release(&t->granted);
    map_release(&there);
    t->granted = kept;
    t->sweep_at = kept.count * 2 + LEAST_SWEEP;
}

static realm_status add_granted(tenants *t, uint32_t number, granted **out, realm_error *error)
{
    if (t->granted.count >= t->sweep_at)
        sweep(t);
    *out = calloc(1, sizeof **out);
    if (*out && map_put(&t->granted, &number, sizeof number, *out, NULL) == REALM_OK)
        return REALM_OK;
    free(*out);
    return realm_fail_memory(error, sizeof **out, "a tenant's grants");
}

/* The tenant's grants, retained. */
static realm_status grants_of(tenants *t, tenant_info *info, sandbox_tenant **out,
                              realm_error *error)
{
    const tenant_view *v = tenant_info_get(info);
    granted *g = map_get(&t->granted, &v->number, sizeof v->number);
    realm_status status = g ? REALM_OK : add_granted(t, v->number, &g, error);
    if (!status && (!g->tenant || g->revision != v->revision)) {
        sandbox_tenant *made;
        status = make_grants(t, info, &made, error);
        if (!status) {
            sandbox_tenant_release(g->tenant);
            *g = (granted){.revision = v->revision, .tenant = made};
        }
    }
    if (!status)
        *out = sandbox_tenant_retain(g->tenant);
    return status;
}

/* ---- who ---------------------------------------------------------------------------------------------- */

static int has_credentials(gate *a)
{
    tenants *t = tenants_of(a);
    t->needs_credential = t->needs_credential || tenancy_has_credentials(t->tenancy);
    return t->needs_credential;
}

/* Takes the reference to info; NULL is the node's administrator. */
static realm_status become(tenants *t, tenant_info *info, caller *out, realm_error *error)
{
    out->info = info;
    if (!info)
        return REALM_OK;
    const tenant_view *v = tenant_info_get(info);
    realm_status status = grants_of(t, info, &out->tenant, error);
    if (status) {
        tenant_info_release(info);
        *out = (caller){0};
        return status;
    }
    snprintf(out->name, sizeof out->name, "%s", v->name);
    out->priority = v->settings->priority;
    out->input_bytes = (uint64_t)v->settings->input_bytes;
    return REALM_OK;
}

/* What follows "Bearer "; NULL if it is no such header. */
static const char *credential_of(const char *authorization, size_t *size)
{
    if (strncasecmp(authorization, "bearer ", 7) != 0)
        return NULL;
    authorization += 7;
    authorization += strspn(authorization, " ");
    *size = strlen(authorization);
    while (*size && authorization[*size - 1] == ' ')
        --*size;
    return authorization;
}

static realm_status identify(gate *a, const char *authorization, caller *out, realm_error *error)
{
    tenants *t = tenants_of(a);
    *out = (caller){0};
    if (!has_credentials(a) && t->is_local) {
        tenant_info *info = tenancy_find(t->tenancy, "default", 7);
        out->scopes = API_SCOPE_INFERENCE;
        if (info)
            return become(t, info, out, error);
    }
    size_t size = 0;
    const char *credential = authorization ? credential_of(authorization, &size) : NULL;
    identity who;
    *out = (caller){0};
    if (!credential)
        return realm_fail(error, REALM_DENIED,
                          "an API key is needed: send it as 'authorization: Bearer KEY'");
    realm_status status = tenancy_authenticate(t->tenancy, credential, size, &who, error);
    if (status)
        return status;
    out->scopes = who.scopes;
    memcpy(out->key, who.key, sizeof out->key);
    return become(t, who.tenant, out, error);
}

static void forget(gate *a, caller *c)
{
    (void)a;
    sandbox_tenant_release(c->tenant);
    tenant_info_release(c->info);
    *c = (caller){0};
}

/* ---- what it may use ------------------------------------------------------------------------------------ */

static int allows_model(gate *a, const caller *c, const char *name)
{
    (void)a;
    return c->info &&
           settings_allow(&tenant_info_get(c->info)->settings->models, name, strlen(name));
}

static int allows_builtin(gate *a, const caller *c, const char *name)
{
    (void)a;
    return c->info &&
           settings_allow(&tenant_info_get(c->info)->settings->programs, name, strlen(name));
}

static realm_status find_program(gate *a, const caller *c, const char *name, const char *request_id,
                                 program **out, int32_t *version, realm_error *error)
{
    (void)a;
    program_choice choice;
    realm_status status = tenant_info_program(c->info, name, strlen(name), request_id,
                                              strlen(request_id), &choice, error);
    if (status)
        return status;
    *out = choice.program;
    *version = choice.version;
    return REALM_OK;
}

/* ---- what it takes -------------------------------------------------------------------------------------- */

static gate_rate rate_of(const meter_rate *rate)
{
    return (gate_rate){rate->limit, rate->remaining, rate->reset_ns};
}

static int take(void *held, uint64_t tokens)
{
    return meter_take(held, tokens);
}

static void give(void *held, uint64_t tokens)
{
    meter_give(held, tokens);
}

static realm_status admit(gate *a, const caller *c, int64_t estimate, gate_grant *out,
                          realm_error *error)
{
    tenants *t = tenants_of(a);
    *out = (gate_grant){.should_retry = 1, .reason = ""};
    if (tenancy_is_behind(t->tenancy))
        return realm_fail(error, REALM_BUSY,
                          "usage cannot be written to the disk at the moment; try again");
    admission *held = malloc(sizeof *held);
    if (!held)
        return realm_fail_memory(error, sizeof *held, "an admission");
    realm_status status = meter_admit(tenant_info_get(c->info)->meter, estimate, held, error);
    *out = (gate_grant){.held = held,
                        .requests = rate_of(&held->rates.requests),
                        .tokens = rate_of(&held->rates.tokens),
                        .retry_ns = held->retry_ns,
                        .should_retry = held->should_retry,
                        .reason = meter_refusal_name(held->refusal),
                        .allowance = {take, give, held}};
    if (status) {
        free(held);
        out->held = NULL;
    }
    return status;
}

static int settle(gate *a, const caller *c, gate_grant *grant, const gate_usage *usage,
                  void (*durable)(void *context), void *context)
{
    tenants *t = tenants_of(a);
    usage_event event = {
        .key = {.tenant = tenant_info_get(c->info)->number, .version = usage->version},
        .failed = usage->failed,
        .prompt_tokens = usage->prompt_tokens,
        .completion_tokens = usage->completion_tokens,
        .cached_tokens = usage->cached_tokens,
        .cpu_ns = usage->cpu_ns,
        .wall_ns = usage->wall_ns,
        .first_token_ns = usage->first_token_ns};
    memcpy(event.key.key, c->key, sizeof event.key.key);
    snprintf(event.key.model, sizeof event.key.model, "%s", usage->model);
    snprintf(event.key.program, sizeof event.key.program, "%s", usage->program);
    meter_settle(grant->held, (int64_t)(usage->prompt_tokens + usage->completion_tokens));
    free(grant->held);
    *grant = (gate_grant){0};
    realm_error error;
    if (tenancy_record(t->tenancy, &event, durable, context, &error) == REALM_OK)
        return durable != NULL;
    LOG_E("server", "the usage of a request of tenant '%s' is lost: %s", c->name, error.message);
    return -1;
}

static int64_t taken_by(gate *a, const char *tenant, size_t size)
{
    tenant_info *info = tenancy_find(tenants_of(a)->tenancy, tenant, size);
    if (!info)
        return 0;
    meter_stats stats;
    meter_stats_get(tenant_info_get(info)->meter, &stats);
    tenant_info_release(info);
    return stats.taken;
}

/* ---- opening and closing -------------------------------------------------------------------------------- */

static void stop(gate *a)
{
    tenancy_hurry(tenants_of(a)->tenancy);
}

static void close_tenants(gate *a)
{
    tenants *t = tenants_of(a);
    realm_error error;
    size_t position = 0;
    for (const map_slot *slot; (slot = map_next(&t->granted, &position));)
        free_granted(slot->value);
    map_release(&t->granted);
    if (tenancy_close(t->tenancy, &error))
        LOG_E("server", "%s", error.message);
    if (t->state)
        t->state->table->close(t->state);
    free(t->models);
    free(t);
}

static const gate_table table = {
    .identify = identify,
    .forget = forget,
    .allows_model = allows_model,
    .allows_builtin = allows_builtin,
    .program = find_program,
    .admit = admit,
    .settle = settle,
    .taken = taken_by,
    .has_credentials = has_credentials,
    .stop = stop,
    .close = close_tenants,
};

/* A new folder serves at once, as a server without one does. What deleted tenants' programs kept goes, also
 * that of tenants which were deleted while no server ran. */
static realm_status look_through(tenants *t, tenant_store *store, realm_error *error)
{
    tenant_record *all;
    key_record *keys;
    size_t n_tenants, n_keys;
    arena a;
    arena_init(&a, 0);
    realm_status status = store->table->tenant_list(store, &a, 1, NULL, &all, &n_tenants, error);
    if (!status)
        status = store->table->key_list(store, &a, STORE_ALL, NULL, &keys, &n_keys, error);
    for (size_t i = 0; !status && i < n_tenants; i++)
        if (all[i].deleted_ms && t->state->table->used_bytes(t->state, all[i].number))
            status = state_sqlite_forget(t->state, all[i].number, error);
    if (!status && !n_tenants && !n_keys) {
        tenant_settings settings = settings_default();
        uint32_t number;
        status = store->table->tenant_create(store, "default", &settings, &number, error);
    }
    arena_release(&a);
    return status;
}

static realm_status open_all(tenants *t, const gate_tenancy_options *options, realm_error *error)
{
    tenant_store *store;
    t->models = calloc((size_t)options->n_models + 1, sizeof *t->models);
    if (!t->models)
        return realm_fail_memory(error, 1, "the list of models");
    if (options->n_models)
        memcpy(t->models, options->models, (size_t)options->n_models * sizeof *t->models);
    t->n_models = options->n_models;
    realm_status status = store_sqlite_open(&store, options->folder, error);
    if (status)
        return status;
    status = state_sqlite_open(&t->state, options->folder, error);
    if (!status)
        status = look_through(t, store, error);
    if (status) {
        store->table->close(store);
        return status;
    }
    tenant_store *reader = NULL;
    status = store_sqlite_open(&reader, options->folder, error);
    if (status) {
        store->table->close(store);
        return status;
    }
    const tenancy_options keeping = {.store = store,
                                     .reader = reader,
                                     .lock_folder = options->folder,
                                     .sandbox = options->sandbox,
                                     .jwks = options->jwks,
                                     .jwt_rules = options->jwt_rules};
    return tenancy_open(&t->tenancy, &keeping, error);
}

realm_status gate_tenancy_open(gate **out, const gate_tenancy_options *options, realm_error *error)
{
    tenants *t = calloc(1, sizeof *t);
    if (!t)
        return realm_fail_memory(error, sizeof *t, "the tenants");
    t->common.table = &table;
    t->is_local = options->is_local;
    t->sweep_at = LEAST_SWEEP;
    map_init(&t->granted);
    realm_status status = open_all(t, options, error);
    if (status)
        close_tenants(&t->common);
    else
        *out = &t->common;
    return status;
}

tenancy *gate_tenancy_of(gate *a)
{
    return a->table == &table ? tenants_of(a)->tenancy : NULL;
}

state_store *gate_tenancy_state(gate *a)
{
    return a->table == &table ? tenants_of(a)->state : NULL;
}
