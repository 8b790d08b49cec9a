/* tenancy/view.h: the store as requests see it: made as a whole by the worker, then constant.
 *
 * Private to the room. A view is counted; readers hold one for a look-up. A tenant_info is counted by itself,
 * since requests keep it for as long as they run; one whose revision has not changed is taken over by the next
 * view, and with it its compiled programs. */
#ifndef REALM_TENANCY_VIEW_H
#define REALM_TENANCY_VIEW_H

#include <stdatomic.h>

#include "tenancy/tenancy.h"

/* A version that serves. program NULL with status REALM_OK: nobody asked for compiled ones. */
typedef struct served_version {
    int32_t version;
    char hash[PROGRAM_HASH_SIZE + 1];
    program *program;    /* retained */
    realm_status status; /* of compiling it */
    const char *reason;  /* if it failed */
} served_version;

typedef struct served_program {
    const char *name;
    route_share route[ROUTE_MAX_SHARES];
    served_version versions[ROUTE_MAX_SHARES]; /* beside route */
    int32_t count;
} served_program;

struct tenant_info {
    atomic_uint references;
    arena memory;
    tenant_view view;
    tenant_settings settings;
    served_program *programs; /* [n_programs] */
    int32_t n_programs;
};

/* When a key was last used: outlives views, owned by view_context. */
typedef struct key_slot {
    char id[API_KEY_ID_SIZE + 1];
    _Atomic int64_t used_ms;
    int64_t written_ms; /* the worker's */
} key_slot;

typedef struct view_key {
    key_record record;   /* name is not kept */
    tenant_info *tenant; /* borrowed from the view; NULL: the node's */
    key_slot *slot;
} view_key;

typedef struct view {
    atomic_uint references;
    int64_t generation;
    map by_name;   /* name -> tenant_info, retained */
    map by_number; /* uint32_t -> the same, borrowed */
    map keys;      /* id -> view_key, owned */
    int32_t n_programs;
} view;

/* What views are made with; the worker's, and the opener's before there is one. */
typedef struct view_context {
    tenant_store *store;
    sandbox_host *sandbox; /* NULL: do not compile */
    const tenancy_clock *clock;
    map meters;   /* uint32_t -> meter, retained */
    map slots;    /* id -> key_slot, owned */
    map compiled; /* hash -> program, retained: what the newest view or a check made */
} view_context;

void view_context_init(view_context *c);
void view_context_release(view_context *c);

/* Reads the store. before (may be NULL) gives what has not changed. Not for a thread with deadlines: it may
 * compile. */
realm_status view_make(view **out, view_context *c, const view *before, realm_error *error);
/* One tenant by itself, without a view around it: its programs compiled, *out retained; to be released before c.
 *   REALM_NOT_FOUND  there is no such tenant */
realm_status view_tenant(tenant_info **out, view_context *c, const char *name, realm_error *error);
view *view_retain(view *v);
void view_release(view *v); /* NULL allowed */

/* Compiles a module, or finds it compiled; *out is retained. */
realm_status view_compile(view_context *c, const char *name, const char *hash, const void *bytes,
                          size_t size, program **out, realm_error *error);

#endif
