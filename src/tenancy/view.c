/* tenancy/view.c: see view.h. */
#include "tenancy/view.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "base/log.h"

/* Modules that are compiled beside each other have at most so many bytes together, or are one: compiling takes
 * several times a module's size. */
#define COMPILING_BYTES   ((size_t)32 << 20)
#define COMPILING_THREADS 64

/* ---- tenants ---- */

const tenant_view *tenant_info_get(const tenant_info *i)
{
    return &i->view;
}

tenant_info *tenant_info_retain(tenant_info *i)
{
    atomic_fetch_add(&i->references, 1);
    return i;
}

void tenant_info_release(tenant_info *i)
{
    if (!i || atomic_fetch_sub(&i->references, 1) != 1)
        return;
    for (int32_t p = 0; p < i->n_programs; p++)
        for (int32_t v = 0; v < i->programs[p].count; v++)
            program_release(i->programs[p].versions[v].program);
    meter_release(i->view.meter);
    arena_release(&i->memory);
    free(i);
}

static const served_program *find_program(const tenant_info *i, const char *name, size_t size)
{
    for (int32_t p = 0; p < i->n_programs; p++)
        if (strlen(i->programs[p].name) == size && memcmp(i->programs[p].name, name, size) == 0)
            return &i->programs[p];
    return NULL;
}

realm_status tenant_info_program(const tenant_info *i, const char *name, size_t size,
                                 const void *id, size_t id_size, program_choice *out,
                                 realm_error *error)
{
    const served_program *p = settings_allow(&i->settings.programs, name, size)
                                  ? find_program(i, name, size)
                                  : NULL;
    if (!p)
        return realm_fail(error, REALM_NOT_FOUND, "there is no program '%.*s'",
                          (int)(size < 80 ? size : 80), name);
    int32_t version = store_route_choose(p->route, p->count, p->name, id, id_size);
    const served_version *v = p->versions;
    while (v->version != version)
        v++;
    if (v->status)
        return realm_fail(error, v->status, "version %d of program '%s' cannot run: %s",
                          (int)version, p->name, v->reason);
    *out = (program_choice){.program = v->program ? program_retain(v->program) : NULL,
                            .version = version};
    memcpy(out->hash, v->hash, sizeof out->hash);
    return REALM_OK;
}

realm_status tenant_info_resolve(void *info, const char *name, size_t size, program **out,
                                 realm_error *error)
{
    program_choice choice;
    realm_status status = tenant_info_program(info, name, size, NULL, 0, &choice, error);
    if (!status && !choice.program)
        status = realm_fail(error, REALM_UNSUPPORTED, "there is no sandbox to run '%.*s' in",
                            (int)(size < 80 ? size : 80), name);
    if (!status)
        *out = choice.program;
    return status;
}

void tenant_info_grants(tenant_info *i, tenant_grants *out)
{
    *out = (tenant_grants){.number = i->view.number,
                           .name = i->view.name,
                           .weight = (float)i->settings.weight,
                           .capabilities = i->settings.capabilities,
                           .limits = settings_limits(&i->settings),
                           .resolve = tenant_info_resolve,
                           .resolve_context = i};
}

int32_t tenant_info_models(const tenant_info *i, const sandbox_model *all, int32_t n_all,
                           sandbox_model *out)
{
    const settings_names *allowed = &i->settings.models;
    int32_t count = 0;
    for (int32_t m = 0; allowed->all && m < n_all; m++)
        out[count++] = all[m];
    for (int32_t n = 0; n < allowed->count; n++)
        for (int32_t m = 0; m < n_all && count < n_all; m++)
            if (strcmp(all[m].name, allowed->names[n]) == 0)
                out[count++] = all[m];
    return count;
}

/* ---- the context ---- */

void view_context_init(view_context *c)
{
    map_init(&c->meters);
    map_init(&c->slots);
    map_init(&c->compiled);
}

void view_context_release(view_context *c)
{
    size_t position = 0;
    for (const map_slot *slot; (slot = map_next(&c->meters, &position));)
        meter_release(slot->value);
    position = 0;
    for (const map_slot *slot; (slot = map_next(&c->slots, &position));)
        free(slot->value);
    position = 0;
    for (const map_slot *slot; (slot = map_next(&c->compiled, &position));)
        program_release(slot->value);
    map_release(&c->meters);
    map_release(&c->slots);
    map_release(&c->compiled);
}

/* The tenant's meter, borrowed; made when the tenant is first seen. */
static realm_status meter_of(view_context *c, uint32_t tenant, const tenant_settings *settings,
                             meter **out, realm_error *error)
{
    *out = map_get(&c->meters, &tenant, sizeof tenant);
    if (*out)
        return REALM_OK;
    realm_status status = meter_open(out, settings, c->clock, error);
    if (!status && map_put(&c->meters, &tenant, sizeof tenant, *out, NULL)) {
        meter_release(*out);
        status = realm_fail_memory(error, 0, "a tenant's meter");
    }
    return status;
}

static key_slot *slot_of(view_context *c, const key_record *key)
{
    key_slot *slot = map_get(&c->slots, key->id, API_KEY_ID_SIZE);
    if (slot)
        return slot;
    slot = calloc(1, sizeof *slot);
    if (!slot || map_put(&c->slots, key->id, API_KEY_ID_SIZE, slot, NULL)) {
        free(slot);
        return NULL;
    }
    memcpy(slot->id, key->id, sizeof slot->id);
    atomic_init(&slot->used_ms, key->last_used_ms);
    slot->written_ms = key->last_used_ms;
    return slot;
}

realm_status view_compile(view_context *c, const char *name, const char *hash, const void *bytes,
                          size_t size, program **out, realm_error *error)
{
    program *p = map_get(&c->compiled, hash, PROGRAM_HASH_SIZE);
    if (!p) {
        realm_status status = program_open(&p, c->sandbox, name, bytes, size, error);
        if (status)
            return status;
        if (map_put(&c->compiled, hash, PROGRAM_HASH_SIZE, p, NULL)) {
            program_release(p);
            return realm_fail_memory(error, 0, "a compiled program");
        }
    }
    *out = program_retain(p);
    return REALM_OK;
}

/* ---- making a view ---- */

/* What one reading of the store found. */
typedef struct reading {
    view_context *context;
    arena memory; /* of the lists; everything that stays is copied out */
    tenant_record *tenants;
    key_record *keys;
    program_record *programs;
    size_t n_tenants, n_keys, n_programs;
} reading;

/* A tenant that has not changed since before was made is taken over from there: its revision is at most
 * the generation that was read before before's lists. */
static realm_status read_all(reading *r, const view *before, realm_error *error)
{
    tenant_store *s = r->context->store;
    store_page all = {.limit = -1, .known_revision = before ? before->generation : 0};
    realm_status status = s->table->tenant_list(s, &r->memory, 0, &all, &r->tenants, &r->n_tenants,
                                                error);
    if (!status)
        status = s->table->key_list(s, &r->memory, STORE_ALL, NULL, &r->keys, &r->n_keys, error);
    if (!status)
        status = s->table->program_list(s, &r->memory, STORE_ALL, NULL, NULL, &r->programs,
                                        &r->n_programs, error);
    return status;
}

/* ---- compiling beside each other ---- */

static const program_version *version_of(const program_record *p, int32_t version)
{
    for (int32_t i = 0; i < p->n_versions; i++)
        if (p->versions[i].version == version)
            return &p->versions[i];
    return NULL;
}

typedef struct module_work {
    const program_version *version;
    const char *name; /* of the first program that serves it */
    program *program; /* NULL: it has failed */
} module_work;

typedef struct compiling {
    view_context *context; /* its store is read under the mutex */
    module_work *modules;  /* [count] */
    size_t count;
    pthread_mutex_t mutex; /* guards next and bytes */
    pthread_cond_t freed;
    size_t next, bytes;
} compiling;

static void compile_one(compiling *w, module_work *m)
{
    view_context *c = w->context;
    const void *data;
    size_t size;
    arena memory;
    realm_error error;
    arena_init(&memory, 0);
    realm_status status = c->store->table->program_bytes(c->store, &memory, m->version->hash, &data,
                                                         &size, &error);
    pthread_mutex_unlock(&w->mutex);
    if (!status)
        program_open(&m->program, c->sandbox, m->name, data, size, &error);
    arena_release(&memory);
    pthread_mutex_lock(&w->mutex);
}

static void *compile_some(void *context)
{
    compiling *w = context;
    pthread_mutex_lock(&w->mutex);
    while (w->next < w->count) {
        module_work *m = &w->modules[w->next];
        size_t bytes = m->version->size < COMPILING_BYTES ? (size_t)m->version->size
                                                          : COMPILING_BYTES;
        if (bytes > COMPILING_BYTES - w->bytes) {
            pthread_cond_wait(&w->freed, &w->mutex);
            continue;
        }
        w->next++;
        w->bytes += bytes;
        compile_one(w, m);
        w->bytes -= bytes;
        pthread_cond_broadcast(&w->freed);
    }
    pthread_mutex_unlock(&w->mutex);
    return NULL;
}

/* The modules that programs need and that are not compiled, each once, in their order. 0: memory is out. */
static int find_modules(compiling *w, const reading *r, const map *tenants)
{
    map seen;
    size_t most = 0;
    int ok = 1;
    map_init(&seen);
    for (size_t p = 0; p < r->n_programs; p++)
        most += (size_t)r->programs[p].n_route;
    w->modules = calloc(most + 1, sizeof *w->modules);
    for (size_t p = 0; ok && w->modules && p < r->n_programs; p++) {
        const program_record *record = &r->programs[p];
        if (!map_get(tenants, &record->tenant, sizeof record->tenant))
            continue;
        for (int32_t k = 0; ok && k < record->n_route; k++) {
            const program_version *v = version_of(record, record->route[k].version);
            if (!v || map_get(&w->context->compiled, v->hash, PROGRAM_HASH_SIZE) ||
                map_get(&seen, v->hash, PROGRAM_HASH_SIZE))
                continue;
            ok = map_put(&seen, v->hash, PROGRAM_HASH_SIZE, w, NULL) == REALM_OK;
            w->modules[w->count++] = (module_work){.version = v, .name = record->name};
        }
    }
    map_release(&seen);
    return ok && w->modules;
}

static void compile_on_all_cores(compiling *w)
{
    pthread_t threads[COMPILING_THREADS];
    int count = 0, cores = cpu_count() < COMPILING_THREADS ? cpu_count() : COMPILING_THREADS;
    pthread_mutex_init(&w->mutex, NULL);
    pthread_cond_init(&w->freed, NULL);
    while (count < cores - 1 && (size_t)count + 1 < w->count &&
           pthread_create(&threads[count], NULL, compile_some, w) == 0)
        count++;
    compile_some(w);
    for (int i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    pthread_cond_destroy(&w->freed);
    pthread_mutex_destroy(&w->mutex);
}

/* Compiles what tenants need, on all cores, so that load_version finds it. What fails is left to load_version, which
 * says so, in the programs' order. */
static void compile_ahead(reading *r, const tenant_record *tenants, size_t n_tenants)
{
    compiling w = {.context = r->context};
    map changed;
    map_init(&changed);
    int ok = r->context->sandbox != NULL;
    for (size_t i = 0; ok && i < n_tenants; i++)
        if (tenants[i].has_settings)
            ok = map_put(&changed, &tenants[i].number, sizeof tenants[i].number, r, NULL) ==
                 REALM_OK;
    if (ok && find_modules(&w, r, &changed) && w.count > 1)
        compile_on_all_cores(&w);
    for (size_t i = 0; i < w.count; i++)
        if (w.modules[i].program && map_put(&r->context->compiled, w.modules[i].version->hash,
                                            PROGRAM_HASH_SIZE, w.modules[i].program, NULL))
            program_release(w.modules[i].program);
    free(w.modules);
    map_release(&changed);
}

/* A module that cannot be loaded is that version's error and nobody else's: the node starts without it. */
static void load_version(reading *r, const tenant_info *i, const char *name, served_version *v,
                         arena *a)
{
    view_context *c = r->context;
    arena bytes;
    arena_init(&bytes, 0);
    realm_error error;
    program *compiled = map_get(&c->compiled, v->hash, PROGRAM_HASH_SIZE);
    if (compiled) {
        v->program = program_retain(compiled);
    } else {
        const void *data;
        size_t size;
        v->status = c->store->table->program_bytes(c->store, &bytes, v->hash, &data, &size, &error);
        if (!v->status)
            v->status = view_compile(c, name, v->hash, data, size, &v->program, &error);
    }
    if (v->status) {
        v->reason = arena_copy(a, error.message, strlen(error.message));
        if (!v->reason)
            v->reason = "the host is out of memory";
        LOG_E("tenancy", "tenant '%s', program '%s', version %d cannot be loaded: %s", i->view.name,
              name, (int)v->version, v->reason);
    }
    arena_release(&bytes);
}

static realm_status fill_program(reading *r, tenant_info *i, served_program *out,
                                 const program_record *p, realm_error *error)
{
    out->name = arena_copy(&i->memory, p->name, strlen(p->name));
    if (!out->name)
        return realm_fail_memory(error, 0, "a program's name");
    for (int32_t k = 0; k < p->n_route; k++) {
        const program_version *version = version_of(p, p->route[k].version);
        if (!version) /* switched between our two readings; the next one has it */
            continue;
        served_version *v = &out->versions[out->count];
        *v = (served_version){.version = version->version};
        memcpy(v->hash, version->hash, sizeof v->hash);
        out->route[out->count++] = p->route[k];
        if (r->context->sandbox)
            load_version(r, i, out->name, v, &i->memory);
    }
    return REALM_OK;
}

static realm_status fill_programs(reading *r, tenant_info *i, realm_error *error)
{
    size_t count = 0;
    for (size_t p = 0; p < r->n_programs; p++)
        count += r->programs[p].tenant == i->view.number;
    i->programs = arena_take_array(&i->memory, count, sizeof *i->programs);
    if (!i->programs)
        return realm_fail_memory(error, count * sizeof *i->programs, "a tenant's programs");
    for (size_t p = 0; p < r->n_programs; p++) {
        if (r->programs[p].tenant != i->view.number)
            continue;
        served_program *out = &i->programs[i->n_programs];
        realm_status status = fill_program(r, i, out, &r->programs[p], error);
        if (status)
            return status;
        i->n_programs += out->count > 0;
    }
    return REALM_OK;
}

static realm_status copy_names(arena *a, const settings_names *from, settings_names *to,
                               realm_error *error)
{
    const char **names = arena_take_array(a, (size_t)from->count, sizeof *names);
    for (int32_t i = 0; names && i < from->count; i++)
        if (!(names[i] = arena_copy(a, from->names[i], strlen(from->names[i]))))
            names = NULL;
    if (!names)
        return realm_fail_memory(error, 0, "a tenant's lists");
    *to = (settings_names){from->all, names, from->count};
    return REALM_OK;
}

static realm_status fill_tenant(reading *r, tenant_info *i, const tenant_record *record,
                                realm_error *error)
{
    i->settings = record->settings;
    realm_status status = copy_names(&i->memory, &record->settings.models, &i->settings.models,
                                     error);
    if (!status)
        status = copy_names(&i->memory, &record->settings.programs, &i->settings.programs, error);
    meter *m = NULL;
    if (!status)
        status = meter_of(r->context, record->number, &i->settings, &m, error);
    if (status)
        return status;
    meter_change(m, &i->settings);
    i->view = (tenant_view){.number = record->number,
                            .name = arena_copy(&i->memory, record->name, strlen(record->name)),
                            .revision = record->revision,
                            .settings = &i->settings,
                            .meter = meter_retain(m)};
    if (!i->view.name)
        return realm_fail_memory(error, 0, "a tenant's name");
    return fill_programs(r, i, error);
}

static realm_status make_tenant(reading *r, const view *before, const tenant_record *record,
                                tenant_info **out, realm_error *error)
{
    tenant_info *old = before ? map_get(&before->by_number, &record->number, sizeof record->number)
                              : NULL;
    if (old && old->view.revision == record->revision) {
        *out = tenant_info_retain(old);
        return REALM_OK;
    }
    if (!record->has_settings)
        return realm_fail(error, REALM_INTERNAL, "tenant '%s' changed without a new revision",
                          record->name);
    tenant_info *i = calloc(1, sizeof *i);
    if (!i)
        return realm_fail_memory(error, sizeof *i, "a tenant");
    atomic_init(&i->references, 1);
    arena_init(&i->memory, 0);
    realm_status status = fill_tenant(r, i, record, error);
    if (status) {
        tenant_info_release(i);
        return status;
    }
    *out = i;
    return REALM_OK;
}

realm_status view_tenant(tenant_info **out, view_context *c, const char *name, realm_error *error)
{
    reading r = {.context = c};
    tenant_record record;
    arena_init(&r.memory, 0);
    realm_status status = c->store->table->tenant_find(c->store, &r.memory, name, &record, error);
    if (!status)
        status = c->store->table->program_list(c->store, &r.memory, (int64_t)record.number, NULL,
                                               NULL, &r.programs, &r.n_programs, error);
    if (!status) {
        compile_ahead(&r, &record, 1);
        status = make_tenant(&r, NULL, &record, out, error);
    }
    arena_release(&r.memory);
    return status;
}

static realm_status add_tenants(reading *r, view *v, const view *before, realm_error *error)
{
    for (size_t k = 0; k < r->n_tenants; k++) {
        const tenant_record *record = &r->tenants[k];
        tenant_info *i = NULL;
        realm_status status = make_tenant(r, before, record, &i, error);
        if (status)
            return status;
        if (map_put(&v->by_name, i->view.name, strlen(i->view.name), i, NULL)) {
            tenant_info_release(i);
            return realm_fail_memory(error, 0, "the view of tenants");
        }
        if (map_put(&v->by_number, &i->view.number, sizeof i->view.number, i, NULL))
            return realm_fail_memory(error, 0, "the view of tenants");
        v->n_programs += i->n_programs;
    }
    return REALM_OK;
}

/* Revoked keys are left out: they are as unknown as invented ones. */
static realm_status add_keys(reading *r, view *v, realm_error *error)
{
    for (size_t k = 0; k < r->n_keys; k++) {
        const key_record *record = &r->keys[k];
        tenant_info *tenant = map_get(&v->by_number, &record->tenant, sizeof record->tenant);
        if (record->revoked_ms || (record->tenant && !tenant))
            continue;
        key_slot *slot = slot_of(r->context, record);
        view_key *key = slot ? malloc(sizeof *key) : NULL;
        if (!key || map_put(&v->keys, record->id, API_KEY_ID_SIZE, key, NULL)) {
            free(key);
            return realm_fail_memory(error, 0, "the view of keys");
        }
        *key = (view_key){*record, tenant, slot};
        key->record.name = NULL;
    }
    return REALM_OK;
}

/* Compiled programs that no tenant serves any more go when the last request on them has ended. */
static void drop_unserved(view_context *c, const view *v)
{
    map kept;
    map_init(&kept);
    size_t position = 0;
    for (const map_slot *slot; (slot = map_next(&v->by_name, &position));) {
        const tenant_info *i = slot->value;
        for (int32_t p = 0; p < i->n_programs; p++)
            for (int32_t k = 0; k < i->programs[p].count; k++) {
                served_version *s = &i->programs[p].versions[k];
                if (!s->program || map_get(&kept, s->hash, PROGRAM_HASH_SIZE))
                    continue;
                if (map_put(&kept, s->hash, PROGRAM_HASH_SIZE, s->program, NULL) == REALM_OK)
                    program_retain(s->program);
            }
    }
    position = 0;
    for (const map_slot *slot; (slot = map_next(&c->compiled, &position));)
        program_release(slot->value);
    map_release(&c->compiled);
    c->compiled = kept;
}

static realm_status fill_view(view *v, view_context *c, const view *before, realm_error *error)
{
    reading r = {.context = c};
    arena_init(&r.memory, 0);
    /* Before the rest: what changes while we read is then found at the next look. */
    realm_status status = c->store->table->generation(c->store, &v->generation, error);
    if (!status)
        status = read_all(&r, before, error);
    if (!status) {
        compile_ahead(&r, r.tenants, r.n_tenants);
        status = add_tenants(&r, v, before, error);
    }
    if (!status)
        status = add_keys(&r, v, error);
    arena_release(&r.memory);
    return status;
}

realm_status view_make(view **out, view_context *c, const view *before, realm_error *error)
{
    view *v = calloc(1, sizeof *v);
    if (!v)
        return realm_fail_memory(error, sizeof *v, "a view of the tenants");
    atomic_init(&v->references, 1);
    map_init(&v->by_name);
    map_init(&v->by_number);
    map_init(&v->keys);
    realm_status status = fill_view(v, c, before, error);
    if (status) {
        view_release(v);
        return status;
    }
    drop_unserved(c, v);
    *out = v;
    return REALM_OK;
}

view *view_retain(view *v)
{
    atomic_fetch_add(&v->references, 1);
    return v;
}

void view_release(view *v)
{
    if (!v || atomic_fetch_sub(&v->references, 1) != 1)
        return;
    size_t position = 0;
    for (const map_slot *slot; (slot = map_next(&v->by_name, &position));)
        tenant_info_release(slot->value);
    position = 0;
    for (const map_slot *slot; (slot = map_next(&v->keys, &position));)
        free(slot->value);
    map_release(&v->by_name);
    map_release(&v->by_number);
    map_release(&v->keys);
    free(v);
}
