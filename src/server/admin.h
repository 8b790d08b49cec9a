/* server/admin.h: a call of the admin API on its way to the store and back.
 *
 *     net thread: the handler checks who asks and what, fills in an admin_call
 *        --> the tenancy's worker: run, with the store; what changes is shown to requests before it goes on
 *            (or its reader: admin_read, for what changes nothing)
 *        --> net thread: the answer
 *
 * Who may: a key of the node (scope admin) everything; a tenant's key what concerns that tenant and its scope
 * allows. To a tenant's key another tenant is not there, whether it is or not. */
#ifndef REALM_SERVER_ADMIN_H
#define REALM_SERVER_ADMIN_H

#include "server/router.h"
#include "tenancy/manage.h"

typedef struct admin_call admin_call;

struct admin_call {
    tenancy_job job; /* first */
    net_task task;
    server *server;
    exchange *x;                        /* retained; run may read the body */
    json_t *request;                    /* the body, if there was one */
    const char *tenant, *program, *key; /* of the path or the query, or NULL */
    /* On the worker: fills in answer or text. */
    realm_status (*run)(admin_call *a, tenant_store *store, realm_error *error);
    void (*release)(admin_call *a); /* what context holds; may be NULL */
    void *context;
    int created;      /* 201 in the place of 200 */
    manage_page page; /* of a list; limit 0: all of it */

    json_t *answer;
    char *text; /* [text_size], instead of answer; the C library's */
    size_t text_size;
    const char *text_type;
    realm_status status;
    realm_error error;
};

/* 1 if the caller may do what the scope allows to the tenant (NULL: to the node); else 0, and it has been
 * answered. */
int admin_may(exchange *x, const caller *c, unsigned scope, const char *tenant);
/* A new call, with the path's parts in it; NULL: it has been answered. wants_body: the request must be JSON. */
admin_call *admin_open(server *s, exchange *x, int wants_body);
/* Answers later, and frees it. */
void admin_submit(admin_call *a);
/* The same for a run that only reads. */
void admin_submit_read(admin_call *a);
/* Answers now, and frees it. */
void admin_fail(admin_call *a, realm_status status, const realm_error *error);
/* What most handlers are: may the caller do it to the path's tenant, then run on the tenancy's worker. */
void admin_run(server *s, exchange *x, const caller *c, unsigned scope, int wants_body,
               realm_status (*run)(admin_call *a, tenant_store *store, realm_error *error));
/* What reads are: the same on the tenancy's reader, with the query's page. A list is answered in OpenAI's shape. */
void admin_read(server *s, exchange *x, const caller *c, unsigned scope,
                realm_status (*run)(admin_call *a, tenant_store *store, realm_error *error));

#endif
