/* sandbox/sandbox_tenant.c: grants, copied once and then constant; the names of capabilities.
 *
 * Counted, because requests outlive the change of a tenant's settings. */
#include "sandbox/request.h"

#include <stdlib.h>
#include <string.h>

unsigned capability_parse(const char *name)
{
#define PARSE(constant, bit, text)                                                                 \
    if (strcmp(name, text) == 0)                                                                   \
        return 1u << bit;
    CAPABILITY_MAP(PARSE)
#undef PARSE
    return 0;
}

const char *capability_name(unsigned bit_mask)
{
#define NAME(constant, bit, text)                                                                  \
    if (bit_mask == 1u << bit)                                                                     \
        return text;
    CAPABILITY_MAP(NAME)
#undef NAME
    return "unknown";
}

static const char *copy_text(arena *a, const char *text)
{
    return arena_copy(a, text ? text : "", text ? strlen(text) : 0);
}

/* NULL where the host is out of memory. */
static const sandbox_model *copy_models(arena *a, const tenant_grants *g)
{
    sandbox_model *models = arena_take_array(a, (size_t)g->n_models, sizeof *models);
    for (int32_t i = 0; models && i < g->n_models; i++) {
        models[i] = g->models[i];
        if (!(models[i].name = copy_text(a, g->models[i].name)))
            return NULL;
    }
    return models;
}

static const sandbox_adapter *copy_adapters(arena *a, const tenant_grants *g)
{
    sandbox_adapter *adapters = arena_take_array(a, (size_t)g->n_adapters, sizeof *adapters);
    for (int32_t i = 0; adapters && i < g->n_adapters; i++) {
        adapters[i] = g->adapters[i];
        if (!(adapters[i].name = copy_text(a, g->adapters[i].name)))
            return NULL;
    }
    return adapters;
}

static realm_status tell_engines(const tenant_grants *g, realm_error *error)
{
    engine_tenant settings = {.weight = g->weight > 0 ? g->weight : 1,
                              .max_sessions = g->limits.engine_sessions,
                              .max_pages = g->limits.kv_pages};
    for (int32_t i = 0; i < g->n_models; i++) {
        realm_status status = engine_tenant_set(g->models[i].engine, g->number, &settings, error);
        if (status != REALM_OK)
            return status;
    }
    return REALM_OK;
}

realm_status sandbox_tenant_open(sandbox_tenant **out, const tenant_grants *grants,
                                 realm_error *error)
{
    if (grants->n_models < 0 || grants->n_adapters < 0)
        return realm_fail(error, REALM_INVALID, "a tenant's number of models is negative");
    sandbox_tenant *t = calloc(1, sizeof *t);
    if (!t)
        return realm_fail_memory(error, sizeof *t, "a tenant");
    atomic_init(&t->references, 1);
    arena_init(&t->arena, 0);
    t->grants = *grants;
    t->grants.name = copy_text(&t->arena, grants->name);
    t->grants.models = copy_models(&t->arena, grants);
    t->grants.adapters = copy_adapters(&t->arena, grants);
    realm_status status = REALM_OK;
    if (!t->grants.name || !t->grants.models || !t->grants.adapters)
        status = realm_fail_memory(error, 0, "a tenant's grants");
    if (status == REALM_OK)
        status = tell_engines(&t->grants, error);
    if (status != REALM_OK) {
        t->grants.forget = NULL;
        sandbox_tenant_release(t);
        return status;
    }
    *out = t;
    return REALM_OK;
}

sandbox_tenant *sandbox_tenant_retain(sandbox_tenant *t)
{
    atomic_fetch_add(&t->references, 1);
    return t;
}

uint32_t sandbox_tenant_number(const sandbox_tenant *t)
{
    return t->grants.number;
}

void sandbox_tenant_release(sandbox_tenant *t)
{
    if (!t || atomic_fetch_sub(&t->references, 1) != 1)
        return;
    if (t->grants.forget)
        t->grants.forget(t->grants.resolve_context);
    arena_release(&t->arena);
    free(t);
}
