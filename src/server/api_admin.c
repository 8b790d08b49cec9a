/* server/api_admin.c: /admin/v1: tenants, keys and usage. api_admin_programs.c has programs. */
#include <stdlib.h>
#include <string.h>

#include "server/admin.h"
#include "tenancy/state_sqlite.h"

#define MAX_REQUEST ((size_t)1 << 20)
#define USUAL_ROWS  100 /* of a list whose limit is not given; of usage all that a page may have */

/* ---- calls ---- */

static void free_call(admin_call *a)
{
    if (a->release)
        a->release(a);
    json_decref(a->request);
    json_decref(a->answer);
    free(a->text);
    exchange_release(a->x);
    free(a);
}

/* OpenAI's shape of a list. */
static json_t *list_of(const admin_call *a)
{
    return json_pack("{s:s, s:O, s:b, s:s?}", "object", "list", "data", a->answer, "has_more",
                     a->page.has_more, "last_id", *a->page.last_id ? a->page.last_id : NULL);
}

static void answer(admin_call *a)
{
    if (a->status) {
        api_problem problem;
        api_problem_of(&problem, a->status, a->error.message);
        api_reply_problem(a->x, &problem);
    } else if (a->text) {
        if (a->page.limit) {
            exchange_set(a->x, "x-has-more", a->page.has_more ? "true" : "false");
            exchange_set(a->x, "x-last-id", a->page.last_id);
        }
        exchange_reply(a->x, 200, a->text_type, a->text, a->text_size);
    } else if (json_is_array(a->answer)) {
        api_reply_json(a->x, 200, list_of(a));
    } else {
        api_reply_json(a->x, a->created ? 201 : 200, json_incref(a->answer));
    }
    free_call(a);
}

static void on_answer(net_task *task)
{
    admin_call *a = QUEUE_OWNER(task, admin_call, task);
    net_unhold(a->server->net);
    answer(a);
}

static realm_status run_job(tenancy_job *job, tenant_store *store, realm_error *error)
{
    admin_call *a = (admin_call *)job;
    return a->run(a, store, error);
}

static void on_job_done(tenancy_job *job, realm_status status, const realm_error *error)
{
    admin_call *a = (admin_call *)job;
    a->status = status;
    if (status)
        a->error = *error;
    net_post(a->server->net, &a->task);
}

void admin_submit(admin_call *a)
{
    net_hold(a->server->net);
    tenancy_submit(gate_tenancy_of(a->server->gate), &a->job);
}

void admin_submit_read(admin_call *a)
{
    net_hold(a->server->net);
    tenancy_submit_read(gate_tenancy_of(a->server->gate), &a->job);
}

void admin_fail(admin_call *a, realm_status status, const realm_error *error)
{
    a->status = status;
    a->error = *error;
    answer(a);
}

static void refuse(exchange *x, int status, const char *code, const char *message)
{
    api_problem problem;
    api_problem_set(&problem, status, "invalid_request_error", code, "", "%s", message);
    api_reply_problem(x, &problem);
}

int admin_may(exchange *x, const caller *c, unsigned scope, const char *tenant)
{
    if (c->scopes & API_SCOPE_ADMIN)
        return 1;
    if (tenant && (!c->tenant || strcmp(c->name, tenant) != 0)) {
        realm_error error;
        realm_fail(&error, REALM_NOT_FOUND, "there is no tenant '%.80s'", tenant);
        refuse(x, 404, "not_found", error.message);
        return 0;
    }
    if (tenant && (c->scopes & scope))
        return 1;
    refuse(x, 403, "permission_denied",
           tenant && scope ? "the key has not the scope for this" : "this needs a key of the node");
    return 0;
}

admin_call *admin_open(server *s, exchange *x, int wants_body)
{
    if (!gate_tenancy_of(s->gate)) {
        refuse(x, 404, "not_found", "this server has no data folder, and so no tenants");
        return NULL;
    }
    admin_call *a = calloc(1, sizeof *a);
    if (!a) {
        exchange_refuse(x, 503, "unavailable", "the host is out of memory");
        return NULL;
    }
    a->job.run = run_job;
    a->job.done = on_job_done;
    a->task.run = on_answer;
    a->server = s;
    a->x = exchange_retain(x);
    a->tenant = router_part(x, "tenant");
    if (!a->tenant)
        a->tenant = exchange_query_get(x, "tenant");
    a->program = router_part(x, "program");
    if (!a->program)
        a->program = exchange_query_get(x, "program");
    a->key = router_part(x, "key");
    realm_error error;
    realm_status status = wants_body
                              ? json_parse(&a->request, x->body.data ? x->body.data : "",
                                           x->body.size, MAX_REQUEST, JSON_USUAL_DEPTH, &error)
                              : REALM_OK;
    if (!status)
        return a;
    admin_fail(a, status, &error);
    return NULL;
}

void admin_run(server *s, exchange *x, const caller *c, unsigned scope, int wants_body,
               realm_status (*run)(admin_call *a, tenant_store *store, realm_error *error))
{
    if (!admin_may(x, c, scope, router_part(x, "tenant")))
        return;
    admin_call *a = admin_open(s, x, wants_body);
    if (!a)
        return;
    a->run = run;
    admin_submit(a);
}

void admin_read(server *s, exchange *x, const caller *c, unsigned scope,
                realm_status (*run)(admin_call *a, tenant_store *store, realm_error *error))
{
    if (!admin_may(x, c, scope, router_part(x, "tenant")))
        return;
    admin_call *a = admin_open(s, x, 0);
    if (!a)
        return;
    realm_error error;
    realm_status status = manage_page_read(&a->page, exchange_query_get(x, "after"),
                                           exchange_query_get(x, "limit"), USUAL_ROWS, &error);
    if (status) {
        admin_fail(a, status, &error);
        return;
    }
    a->run = run;
    admin_submit_read(a);
}

/* ---- tenants ---- */

static realm_status list_tenants(admin_call *a, tenant_store *store, realm_error *error)
{
    return manage_tenant_list(store, &a->page, &a->answer, error);
}

void api_admin_tenants(server *s, exchange *x, const caller *c)
{
    admin_read(s, x, c, 0, list_tenants);
}

static realm_status create_tenant(admin_call *a, tenant_store *store, realm_error *error)
{
    a->created = 1;
    return manage_tenant_create(store, a->request, &a->answer, error);
}

void api_admin_tenant_create(server *s, exchange *x, const caller *c)
{
    admin_run(s, x, c, 0, 1, create_tenant);
}

static realm_status show_tenant(admin_call *a, tenant_store *store, realm_error *error)
{
    return manage_tenant_show(store, a->tenant, &a->answer, error);
}

void api_admin_tenant(server *s, exchange *x, const caller *c)
{
    admin_read(s, x, c, API_SCOPE_USAGE, show_tenant);
}

static realm_status set_tenant(admin_call *a, tenant_store *store, realm_error *error)
{
    return manage_tenant_set(store, a->tenant, a->request, &a->answer, error);
}

void api_admin_tenant_set(server *s, exchange *x, const caller *c)
{
    admin_run(s, x, c, 0, 1, set_tenant);
}

static realm_status delete_tenant(admin_call *a, tenant_store *store, realm_error *error)
{
    uint32_t number;
    realm_status status = manage_tenant_delete(store, a->tenant, &number, &a->answer, error);
    return status ? status
                  : state_sqlite_forget(gate_tenancy_state(a->server->gate), number, error);
}

void api_admin_tenant_delete(server *s, exchange *x, const caller *c)
{
    admin_run(s, x, c, 0, 0, delete_tenant);
}

/* ---- keys ---- */

static realm_status list_keys(admin_call *a, tenant_store *store, realm_error *error)
{
    return manage_key_list(store, a->tenant, &a->page, &a->answer, error);
}

void api_admin_keys(server *s, exchange *x, const caller *c)
{
    admin_read(s, x, c, 0, list_keys);
}

static realm_status create_key(admin_call *a, tenant_store *store, realm_error *error)
{
    a->created = 1;
    return manage_key_create(store, a->request, &a->answer, error);
}

void api_admin_key_create(server *s, exchange *x, const caller *c)
{
    admin_run(s, x, c, 0, 1, create_key);
}

static realm_status revoke_key(admin_call *a, tenant_store *store, realm_error *error)
{
    return manage_key_revoke(store, a->tenant, a->key, &a->answer, error);
}

void api_admin_key_revoke(server *s, exchange *x, const caller *c)
{
    admin_run(s, x, c, 0, 0, revoke_key);
}

/* ---- usage ---- */

static realm_status export_usage(admin_call *a, tenant_store *store, realm_error *error)
{
    const manage_usage_query *q = a->context;
    FILE *out = open_memstream(&a->text, &a->text_size);
    if (!out)
        return realm_fail_memory(error, 0, "the usage");
    realm_status status = manage_usage(store, q, a->page.limit ? &a->page : NULL, out, error);
    int lost = ferror(out) | fclose(out);
    if (!status && lost)
        status = realm_fail_memory(error, a->text_size, "the usage");
    a->text_type = q->format && *q->format == 'j' ? "application/json" : "text/csv; charset=utf-8";
    return status;
}

void api_admin_usage(server *s, exchange *x, const caller *c)
{
    const char *tenant = exchange_query_get(x, "tenant");
    if (!tenant && c->tenant)
        tenant = c->name;
    if (!admin_may(x, c, API_SCOPE_USAGE, tenant))
        return;
    manage_usage_query *q = arena_take(&x->memory, sizeof *q);
    admin_call *a = admin_open(s, x, 0);
    if (!a)
        return;
    realm_error error;
    realm_status status = q ? REALM_OK : realm_fail_memory(&error, sizeof *q, "the query");
    if (!status) {
        *q = (manage_usage_query){.tenant = tenant,
                                  .from = exchange_query_get(x, "from"),
                                  .to = exchange_query_get(x, "to"),
                                  .key = exchange_query_get(x, "key"),
                                  .model = exchange_query_get(x, "model"),
                                  .program = exchange_query_get(x, "program"),
                                  .by = exchange_query_get(x, "by"),
                                  .format = exchange_query_get(x, "format")};
        /* A table says nowhere that it was cut: it is whole unless a part is asked for. */
        const char *limit = exchange_query_get(x, "limit"), *after = exchange_query_get(x, "after");
        int is_json = q->format && strcmp(q->format, "json") == 0;
        status = manage_usage_check(q, &error);
        if (!status && (is_json || limit || after))
            status = manage_page_read(&a->page, after, limit, MANAGE_MOST_ROWS, &error);
    }
    if (status) {
        admin_fail(a, status, &error);
        return;
    }
    a->context = q;
    a->run = export_usage;
    admin_submit_read(a);
}
