/* tenancy/manage.h: what administrators do, as JSON in and JSON out: the command line on a data folder and the
 * admin API over HTTP are the same functions, so both know the same names, bounds and sentences.
 *
 * Each is a few calls of the store, so it may take milliseconds: on the thread that owns the store (a command's
 * main thread; in a server the tenancy's worker). *answer is the caller's, to json_decref. Errors are the store's,
 * and REALM_INVALID names what of a request is wrong. A tenant, key or program that is not there is
 * REALM_NOT_FOUND with a sentence that says no more than the name that was asked for. */
#ifndef REALM_TENANCY_MANAGE_H
#define REALM_TENANCY_MANAGE_H

#include "tenancy/store.h"

/* ---- pages ---- */

/* A part of a list: in, what is wanted; out, where the next one begins. */
#define MANAGE_MOST_ROWS 1000
typedef struct manage_page {
    const char *after; /* last_id of the page before; NULL: from the beginning */
    int32_t limit;     /* 1 to MANAGE_MOST_ROWS */
    int has_more;
    char last_id
        [1024]; /* of the last item: a tenant's name, a key's id, "tenant/program", of usage a row's, as JSON of at
                   most 960 bytes; "" */
} manage_page;

/* after and limit as a person writes them; either may be NULL. usual: where no limit is given.
 *   REALM_INVALID  limit is no number, or out of bounds */
realm_status manage_page_read(manage_page *out, const char *after, const char *limit, int32_t usual,
                              realm_error *error);

/* Of count items that came where one more than the limit was asked for: sets has_more, returns how many of them
 * are shown. page NULL: all. */
size_t manage_page_cut(manage_page *page, size_t count);

/* ---- tenants: {"number","name","created","settings":{...}} ---- */

/* page NULL, here and below: the whole list. */
realm_status manage_tenant_list(tenant_store *s, manage_page *page, json_t **answer,
                                realm_error *error);
realm_status manage_tenant_show(tenant_store *s, const char *name, json_t **answer,
                                realm_error *error);
/* request: {"name", "settings"?: as settings_read takes them} */
realm_status manage_tenant_create(tenant_store *s, const json_t *request, json_t **answer,
                                  realm_error *error);
/* settings: those to change; the others stay. */
realm_status manage_tenant_set(tenant_store *s, const char *name, const json_t *settings,
                               json_t **answer, realm_error *error);
/* *number (may be NULL): whose state is to be forgotten. */
realm_status manage_tenant_delete(tenant_store *s, const char *name, uint32_t *number,
                                  json_t **answer, realm_error *error);

/* ---- keys: {"id","tenant" (null: the node's),"name","scopes":[],"created","expires","revoked","last_used"} ---- */

/* tenant NULL: everybody's. */
realm_status manage_key_list(tenant_store *s, const char *tenant, manage_page *page,
                             json_t **answer, realm_error *error);
/* request: {"tenant" or "admin": true, "scopes"?: "a,b" or a list, "name"?, "expires"?: as manage_parse_time}. The
 * answer has the key itself as "key", this once. */
realm_status manage_key_create(tenant_store *s, const json_t *request, json_t **answer,
                               realm_error *error);
/* tenant (may be NULL): only if it is this one's. */
realm_status manage_key_revoke(tenant_store *s, const char *tenant, const char *id, json_t **answer,
                               realm_error *error);

/* ---- programs: {"tenant","program","versions":[{"version","percent","hash",...}]}, newest first ---- */

/* NULL: all of them. With program: REALM_NOT_FOUND if there is none. */
realm_status manage_program_list(tenant_store *s, const char *tenant, const char *program,
                                 manage_page *page, json_t **answer, realm_error *error);
/* The module has been checked by the caller. share as in deployment. */
realm_status manage_program_deploy(tenant_store *s, const char *tenant, const char *program,
                                   const void *bytes, size_t size, int32_t share, const char *note,
                                   json_t **answer, realm_error *error);
/* route: [{"version","percent"}], which sum to 100. */
realm_status manage_program_route(tenant_store *s, const char *tenant, const char *program,
                                  const json_t *route, json_t **answer, realm_error *error);
/* to 0: as program_rollback of the store. */
realm_status manage_program_rollback(tenant_store *s, const char *tenant, const char *program,
                                     int32_t to, json_t **answer, realm_error *error);
realm_status manage_program_delete(tenant_store *s, const char *tenant, const char *program,
                                   json_t **answer, realm_error *error);

/* ---- usage ---- */

/* All texts as a person writes them; NULL: not given. tenant may be a deleted one. */
typedef struct manage_usage_query {
    const char *tenant, *from, *to, *key, *model, *program;
    const char *by;     /* NULL: day,tenant,key,model,program */
    const char *format; /* "csv" (NULL too) or "json" */
} manage_usage_query;
/* Checks the query alone, for an answer before the store is asked. */
realm_status manage_usage_check(const manage_usage_query *q, realm_error *error);
/* page NULL: all rows. Else as JSON {"object":"list","data":[...],"has_more","last_id"}, as CSV the rows alone. */
realm_status manage_usage(tenant_store *s, const manage_usage_query *q, manage_page *page,
                          FILE *out, realm_error *error);

/* ---- times and shares ---- */

/* "2026-01-31T12:00:00Z", or "never" for 0. Returns text. */
#define MANAGE_TIME_SIZE 32
const char *manage_time(int64_t ms, char text[MANAGE_TIME_SIZE]);
/* "90d", "12h", "30m" from now on, or the end of a day, "2026-12-31".
 *   REALM_INVALID  none of these, or past */
realm_status manage_parse_time(const char *text, int64_t *ms, realm_error *error);
/* Of a percentage between 0 and 100; -1 if it is none. */
int32_t manage_share(double percent);

#endif
