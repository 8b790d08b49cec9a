/* tenancy/trial.c: see trial.h. */
#include "tenancy/trial.h"

#include <stdlib.h>
#include <string.h>

#include "tenancy/view.h"

#define TRIAL_CPU_NS  5000000000ull
#define TRIAL_WALL_NS 10000000000ull

int trial_is_wanted(const char *smoke)
{
    return !smoke || strcmp(smoke, "none") != 0;
}

/* Those in a built-in program's place get what the built-in one would. */
static const char *body_for(const char *name)
{
    static const struct {
        const char *program, *body;
    } known[] = {
        {"chat",
         "{\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}],\"max_tokens\":1,\"stream\":true}"},
        {"completion", "{\"prompt\":\"Hello\",\"max_tokens\":1,\"stream\":true}"},
        {"embeddings", "{\"input\":[\"Hello\"]}"},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(known[i].program, name) == 0)
            return known[i].body;
    return "{}";
}

/* ---- grants: the tenant's, with a state that nobody else sees ---- */

typedef struct trial_context {
    tenant_info *info; /* retained */
    state_store *state;
} trial_context;

static realm_status resolve(void *context, const char *name, size_t size, program **out,
                            realm_error *error)
{
    return tenant_info_resolve(((trial_context *)context)->info, name, size, out, error);
}

static void forget(void *context)
{
    trial_context *c = context;
    if (c->state)
        c->state->table->close(c->state);
    tenant_info_release(c->info);
    free(c);
}

static realm_status open_grants(trial *out, trial_context *c, const sandbox_model *models,
                                int32_t n_models, realm_error *error)
{
    tenant_grants grants;
    sandbox_model *chosen = calloc((size_t)n_models + 1, sizeof *chosen);
    if (!chosen)
        return realm_fail_memory(error, (size_t)n_models * sizeof *chosen, "a tenant's models");
    tenant_info_grants(c->info, &grants);
    grants.models = chosen;
    grants.n_models = tenant_info_models(c->info, models, n_models, chosen);
    grants.state = c->state;
    grants.resolve = resolve;
    grants.resolve_context = c;
    grants.forget = forget;
    if (grants.limits.cpu_ns > TRIAL_CPU_NS)
        grants.limits.cpu_ns = TRIAL_CPU_NS;
    if (grants.limits.wall_ns > TRIAL_WALL_NS)
        grants.limits.wall_ns = TRIAL_WALL_NS;
    out->cpu_ns = grants.limits.cpu_ns;
    realm_status status = sandbox_tenant_open(&out->tenant, &grants, error);
    free(chosen);
    return status;
}

realm_status trial_open(trial *out, tenant_info *info, const char *name, const char *smoke,
                        const sandbox_model *models, int32_t n_models, realm_error *error)
{
    *out = (trial){.body = smoke ? smoke : body_for(name), .is_own_body = !smoke};
    trial_context *c = calloc(1, sizeof *c);
    if (!c)
        return realm_fail_memory(error, sizeof *c, "a trial");
    c->info = tenant_info_retain(info);
    realm_status status = state_memory_open(&c->state, error);
    if (!status)
        status = open_grants(out, c, models, n_models, error);
    if (status)
        forget(c);
    return status;
}

void trial_release(trial *t)
{
    sandbox_tenant_release(t->tenant);
    t->tenant = NULL;
}

/* ---- judging ---- */

/* A program that does not like a body that it was not made for may say so. What it may not is trap, ask for what
 * its tenant has not, or spin; and with a body that came with it, fail at all. A model or a server that is busy is no
 * fault of the program's; but one that has begun and asked no model for anything has spun, even where others left it
 * too little of a core to use up its CPU time. */
static int has_failed(const trial *t, realm_status status, const sandbox_usage *usage)
{
    switch (status) {
    case REALM_OK:
    case REALM_CANCELLED:
    case REALM_BUSY: return 0;
    case REALM_DEADLINE: return usage->start_ns && !usage->model;
    case REALM_TRAPPED:
    case REALM_DENIED: return 1;
    default: return !t->is_own_body || usage->cpu_ns >= t->cpu_ns;
    }
}

realm_status trial_judge(const trial *t, realm_status status, const char *message,
                         const sandbox_usage *usage, realm_error *error)
{
    return has_failed(t, status, usage)
               ? realm_fail(error, REALM_INVALID, "the smoke test failed, nothing was deployed: %s",
                            message)
               : REALM_OK;
}

/* ---- where no server runs ---- */

static realm_status run_it(const trial *t, sandbox_host *host, program *p, realm_error *error)
{
    sandbox_result result;
    buffer kept;
    const sandbox_input input = {.program = p,
                                 .tenant = t->tenant,
                                 .id = "trial",
                                 .body = t->body,
                                 .body_size = strlen(t->body),
                                 .priority = PRIORITY_NORMAL};
    realm_status status = sandbox_run(host, &input, &result, &kept);
    status = trial_judge(t, status, result.message, &result.usage, error);
    buffer_release(&kept);
    return status;
}

realm_status trial_run(tenant_store *s, sandbox_host *host, const sandbox_model *models,
                       int32_t n_models, const char *tenant, const char *name, program *p,
                       const char *smoke, realm_error *error)
{
    view_context c = {.store = s, .sandbox = host, .clock = &tenancy_clock_system};
    tenant_info *info = NULL;
    trial t = {0};
    view_context_init(&c);
    realm_status status = view_tenant(&info, &c, tenant, error);
    if (!status)
        status = trial_open(&t, info, name, smoke, models, n_models, error);
    if (!status)
        status = run_it(&t, host, p, error);
    trial_release(&t);
    tenant_info_release(info);
    view_context_release(&c);
    return status;
}
