/* server/api_admin_programs.c: /admin/v1/tenants/{tenant}/programs: a tenant's programs.
 *
 * A deploy goes through three hands before anything changes for anybody:
 *
 *     a worker of libuv's   compiles the module: what no sandbox takes is an error here
 *     a sandbox             tries it with one request (the smoke test), as the tenant but with an empty state
 *     the tenancy's worker  finds it compiled, stores it and switches, in one step
 *
 * so that the tenancy's worker, for which ends of answers wait, never compiles anything large. Net thread, but for
 * the first and the last. */
#include <stdlib.h>
#include <string.h>

#include "server/admin.h"

/* ---- small calls ---- */

static realm_status list_programs(admin_call *a, tenant_store *store, realm_error *error)
{
    return manage_program_list(store, a->tenant, a->program, &a->page, &a->answer, error);
}

void api_admin_programs(server *s, exchange *x, const caller *c)
{
    admin_read(s, x, c, API_SCOPE_DEPLOY, list_programs);
}

static realm_status delete_program(admin_call *a, tenant_store *store, realm_error *error)
{
    return manage_program_delete(store, a->tenant, a->program, &a->answer, error);
}

void api_admin_program_delete(server *s, exchange *x, const caller *c)
{
    admin_run(s, x, c, API_SCOPE_DEPLOY, 0, delete_program);
}

static realm_status set_route(admin_call *a, tenant_store *store, realm_error *error)
{
    return manage_program_route(store, a->tenant, a->program, a->request, &a->answer, error);
}

void api_admin_route(server *s, exchange *x, const caller *c)
{
    admin_run(s, x, c, API_SCOPE_DEPLOY, 1, set_route);
}

static realm_status roll_back(admin_call *a, tenant_store *store, realm_error *error)
{
    int64_t to = 0;
    if (json_object_size(a->request) > (json_object_get(a->request, "to") != NULL))
        return realm_fail(error, REALM_INVALID, "a rollback has the field 'to' and no other");
    realm_status status = JSON_OPTIONAL(json_get_int(a->request, "to", 1, INT32_MAX, &to, error));
    return status ? status
                  : manage_program_rollback(store, a->tenant, a->program, (int32_t)to, &a->answer,
                                            error);
}

void api_admin_rollback(server *s, exchange *x, const caller *c)
{
    admin_run(s, x, c, API_SCOPE_DEPLOY, 1, roll_back);
}

/* ---- deploying ---- */

typedef struct deploy {
    net_job compile; /* first */
    admin_call *call;
    const char *note, *smoke; /* smoke: NULL: our own */
    int32_t share;
    program *program;
    trial trial;
    guest_run *run;
    realm_status status;
    realm_error error;
} deploy;

static void release_deploy(admin_call *a)
{
    deploy *d = a->context;
    program_release(d->program);
    trial_release(&d->trial);
    free(d);
}

static realm_status store_it(admin_call *a, tenant_store *store, realm_error *error)
{
    const deploy *d = a->context;
    const buffer *module = &a->x->body;
    tenancy *t = gate_tenancy_of(a->server->gate);
    realm_status status = tenancy_check_program(t, a->program, module->data, module->size, NULL,
                                                error);
    if (!status)
        status = manage_program_deploy(store, a->tenant, a->program, module->data, module->size,
                                       d->share, d->note, &a->answer, error);
    return status;
}

static void on_tried(guest_run *run, void *context, const guest_result *result)
{
    (void)run;
    deploy *d = context;
    d->run = NULL;
    realm_error error;
    if (trial_judge(&d->trial, result->status, result->message, &result->usage, &error)) {
        admin_fail(d->call, error.status, &error);
        return;
    }
    d->call->run = store_it;
    admin_submit(d->call);
}

static realm_status try_it(deploy *d, realm_error *error)
{
    admin_call *a = d->call;
    realm_status status = gate_tenancy_trial(a->server->gate, a->tenant, a->program, d->smoke,
                                             &d->trial, error);
    if (status)
        return status;
    const guest_run_options options = {.net = a->server->net,
                                       .sandbox = a->server->sandbox,
                                       .input = {.program = d->program,
                                                 .tenant = d->trial.tenant,
                                                 .id = a->x->id,
                                                 .body = d->trial.body,
                                                 .body_size = strlen(d->trial.body),
                                                 .priority = PRIORITY_NORMAL},
                                       .context = d,
                                       .on_done = on_tried};
    return guest_run_start(&d->run, &options, error);
}

static void compile(net_job *job)
{
    deploy *d = (deploy *)job;
    const buffer *module = &d->call->x->body;
    d->status = program_open(&d->program, d->call->server->sandbox, d->call->program,
                             module->data ? module->data : "", module->size, &d->error);
}

static void compiled(net_job *job)
{
    deploy *d = (deploy *)job;
    if (!d->status && trial_is_wanted(d->smoke)) {
        d->status = try_it(d, &d->error);
        if (!d->status)
            return;
    }
    if (d->status) {
        admin_fail(d->call, d->status, &d->error);
        return;
    }
    d->call->run = store_it;
    admin_submit(d->call);
}

static realm_status read_query(deploy *d, exchange *x, realm_error *error)
{
    const char *percent = exchange_query_get(x, "percent");
    char *end = NULL;
    d->note = exchange_query_get(x, "note");
    d->smoke = exchange_query_get(x, "smoke");
    d->share = percent ? manage_share(strtod(percent, &end)) : ROUTE_WHOLE;
    if (percent && (end == percent || *end || d->share < 0))
        return realm_fail(error, REALM_INVALID, "percent wants a number from 0 to 100, not '%.40s'",
                          percent);
    return settings_check_name("program", d->call->program, strlen(d->call->program), error);
}

void api_admin_deploy(server *s, exchange *x, const caller *c)
{
    if (!admin_may(x, c, API_SCOPE_DEPLOY, router_part(x, "tenant")))
        return;
    admin_call *a = admin_open(s, x, 0);
    if (!a)
        return;
    realm_error error;
    deploy *d = calloc(1, sizeof *d);
    if (!d) {
        realm_fail_memory(&error, sizeof *d, "a deploy");
        admin_fail(a, error.status, &error);
        return;
    }
    *d = (deploy){.compile = {.work = compile, .done = compiled}, .call = a};
    a->context = d;
    a->release = release_deploy;
    a->created = 1;
    realm_status status = read_query(d, x, &error);
    if (!status) {
        status = net_submit(s->net, &d->compile);
        if (status)
            realm_fail_memory(&error, 0, "a worker");
    }
    if (status)
        admin_fail(a, status, &error);
}
