/* server/gate_local.c: one tenant without a key: what `realm serve --model FILE` starts with.
 *
 * Nothing is limited; tokens are counted while requests run, for whoever looks. Net thread; programs, constant once
 * the server runs, are looked up on sandbox threads too (`call`), and tokens taken on any. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "server/gate.h"

#define MAX_PROGRAMS 64

typedef struct local {
    gate common;
    sandbox_tenant *tenant;
    uint64_t input_bytes;
    atomic_llong taken; /* by requests that run */
    struct {
        char *name;
        program *program;
    } programs[MAX_PROGRAMS];
    int n_programs;
} local;

/* One request's share of local.taken. */
typedef struct admitted {
    local *of;
    atomic_llong taken;
} admitted;

static realm_status identify(gate *a, const char *authorization, caller *out, realm_error *error)
{
    (void)authorization; /* clients that insist on sending a key may */
    (void)error;
    local *l = (local *)a;
    *out = (caller){.tenant = sandbox_tenant_retain(l->tenant),
                    .name = "default",
                    .scopes = API_SCOPE_INFERENCE,
                    .priority = PRIORITY_HIGH,
                    .input_bytes = l->input_bytes};
    return REALM_OK;
}

static void forget(gate *a, caller *c)
{
    (void)a;
    sandbox_tenant_release(c->tenant);
    *c = (caller){0};
}

static int allows_model(gate *a, const caller *c, const char *name)
{
    (void)a;
    (void)c;
    (void)name;
    return 1;
}

static int allows_builtin(gate *a, const caller *c, const char *name)
{
    (void)a;
    (void)c;
    (void)name;
    return 1;
}

static realm_status resolve(void *context, const char *name, size_t size, program **out,
                            realm_error *error)
{
    local *l = context;
    for (int i = 0; i < l->n_programs; i++)
        if (strlen(l->programs[i].name) == size && memcmp(l->programs[i].name, name, size) == 0) {
            *out = program_retain(l->programs[i].program);
            return REALM_OK;
        }
    return realm_fail(error, REALM_NOT_FOUND, "there is no program '%.*s'",
                      size < 100 ? (int)size : 100, name);
}

static realm_status find_program(gate *a, const caller *c, const char *name, const char *request_id,
                                 program **out, int32_t *version, realm_error *error)
{
    (void)c;
    (void)request_id;
    *version = 1;
    return resolve(a, name, strlen(name), out, error);
}

static int take(void *held, uint64_t tokens)
{
    admitted *r = held;
    atomic_fetch_add(&r->taken, (long long)tokens);
    atomic_fetch_add(&r->of->taken, (long long)tokens);
    return 1;
}

static void give(void *held, uint64_t tokens)
{
    admitted *r = held;
    atomic_fetch_sub(&r->taken, (long long)tokens);
    atomic_fetch_sub(&r->of->taken, (long long)tokens);
}

static realm_status admit(gate *a, const caller *c, int64_t estimate, gate_grant *out,
                          realm_error *error)
{
    (void)c;
    (void)estimate;
    admitted *r = malloc(sizeof *r);
    if (!r)
        return realm_fail_memory(error, sizeof *r, "an admission");
    r->of = (local *)a;
    atomic_init(&r->taken, 0);
    *out = (gate_grant){.held = r, .should_retry = 1, .allowance = {take, give, r}};
    return REALM_OK;
}

static int settle(gate *a, const caller *c, gate_grant *grant, const gate_usage *usage,
                  void (*durable)(void *context), void *context)
{
    (void)c;
    (void)usage;
    (void)durable;
    (void)context;
    admitted *r = grant->held;
    atomic_fetch_sub(&((local *)a)->taken, atomic_load(&r->taken));
    free(r);
    *grant = (gate_grant){0};
    return 0;
}

static int64_t taken_by(gate *a, const char *tenant, size_t size)
{
    (void)tenant;
    (void)size;
    return atomic_load(&((local *)a)->taken);
}

static int has_credentials(gate *a)
{
    (void)a;
    return 0;
}

static void close_local(gate *a)
{
    local *l = (local *)a;
    sandbox_tenant_release(l->tenant);
    for (int i = 0; i < l->n_programs; i++) {
        program_release(l->programs[i].program);
        free(l->programs[i].name);
    }
    free(l);
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
    .close = close_local,
};

realm_status gate_local_open(gate **out, const tenant_grants *grants, realm_error *error)
{
    local *l = calloc(1, sizeof *l);
    if (!l)
        return realm_fail_memory(error, sizeof *l, "the tenant");
    l->common.table = &table;
    atomic_init(&l->taken, 0);
    l->input_bytes = grants->limits.input_bytes;
    tenant_grants with_programs = *grants;
    with_programs.resolve = resolve;
    with_programs.resolve_context = l;
    realm_status status = sandbox_tenant_open(&l->tenant, &with_programs, error);
    if (status)
        free(l);
    else
        *out = &l->common;
    return status;
}

realm_status gate_local_program(gate *a, const char *name, program *p, realm_error *error)
{
    local *l = (local *)a;
    if (l->n_programs == MAX_PROGRAMS)
        return realm_fail(error, REALM_TOO_LARGE, "more than %d programs", MAX_PROGRAMS);
    char *copy = strdup(name);
    if (!copy)
        return realm_fail_memory(error, strlen(name) + 1, "a program's name");
    l->programs[l->n_programs].name = copy;
    l->programs[l->n_programs++].program = program_retain(p);
    return REALM_OK;
}
