/* server/router.h: the inside of a server: what the endpoints share. Net thread, but for what is constant
 * once the server is open (models, built-in programs) or has a lock, which api_plan functions read on workers. */
#ifndef REALM_SERVER_ROUTER_H
#define REALM_SERVER_ROUTER_H

#include <pthread.h>

#include "formats/json.h"
#include "library/runtime.h"
#include "server/guest_run.h"
#include "server/metrics.h"
#include "server/server.h"
#include "server/tracer.h"
#include "text/tokenizer.h"

/* How a model's template writes the calls of tools: see tool_calls.h. */
typedef enum tool_style { TOOLS_NONE, TOOLS_HERMES, TOOLS_LLAMA3, TOOLS_MISTRAL } tool_style;

typedef struct served_model {
    const char *name;
    engine *engine;
    const tokenizer *tokenizer;
    int64_t n_context;
    int64_t n_embd;
    int has_template;
    tool_style tools;
} served_model;

#define SERVER_MAX_MODELS  64
#define SERVER_MAX_ALIASES 64

typedef struct model_alias {
    char *name; /* owned */
    served_model *model;
} model_alias;

typedef enum builtin_kind {
    BUILTIN_CHAT,
    BUILTIN_COMPLETION,
    BUILTIN_EMBEDDINGS,
    BUILTIN_TOKENIZE,
    BUILTIN_COUNT
} builtin_kind;

/* [BUILTIN_COUNT]: what they are called; a tenant's program of that name takes a built-in one's place. */
extern const char *const builtin_names[];

struct server {
    server_options options;
    realm_runtime *runtime;
    gate *gate;
    exchange_sink sink;
    net *net;
    tracer *tracer;             /* NULL: no spans */
    tracer *leaving;            /* the one before, while it posts what it has; NULL: none */
    tracer_stats traces_before; /* of those that are gone */
    sandbox_host *sandbox;
    served_model models[SERVER_MAX_MODELS];
    int n_models;
    pthread_mutex_t alias_mutex; /* guards those below: a reload changes them while workers look */
    model_alias aliases[SERVER_MAX_ALIASES];
    int n_aliases;
    realm_program *builtin[BUILTIN_COUNT];
    metrics metrics;
    map tenants; /* name -> engines' number of tenants that were let in; at most METRICS_MAX_HISTOGRAMS */
    int64_t started_ms;
    int interrupted;
    struct grpc_call *calls; /* those that stay open: grpc.h */
    int n_calls;
};

/* What a route asks of its caller. */
enum {
    ACCESS_OPEN,   /* nothing */
    ACCESS_CALLER, /* a tenant's credential with the scope "inference" */
    ACCESS_ADMIN,  /* a credential with another scope; which one the handler says */
    ACCESS_METRICS /* the node's, with the scope "metrics" or "admin"; nothing while nobody needs a credential */
};

/* method, path ('*' at its end: any rest; {name}: one part), handler, needs a caller (ACCESS_*), summary for /openapi.json */
#define ROUTE_MAP(X)                                                                               \
    X(GET, "/health", api_health, 0, "Whether the process lives")                                  \
    X(GET, "/ready", api_ready, 0, "Whether it takes requests; 503 while it drains")               \
    X(GET, "/version", api_version, 0, "The version of the server")                                \
    X(GET, "/metrics", api_metrics, ACCESS_METRICS, "Counters and histograms for Prometheus")      \
    X(GET, "/openapi.json", api_openapi, 0, "This description")                                    \
    X(GET, "/v1/models", api_models, 1, "The models that the caller may use")                      \
    X(GET, "/v1/models/*", api_model, 1, "One model")                                              \
    X(POST, "/v1/chat/completions", api_chat, 1, "Answer a conversation")                          \
    X(POST, "/v1/completions", api_completions, 1, "Go on with a text")                            \
    X(POST, "/v1/embeddings", api_embeddings, 1, "Vectors of texts")                               \
    X(POST, "/v1/programs/*", api_program, 1, "Call a program of the tenant with any JSON")        \
    X(GET, "/v1/ws", api_websocket, 0,                                                             \
      "A WebSocket (realm.v1): requests of all these kinds at once, with cancel")

/* The same for administrators (api_admin*.c). */
#define ADMIN_ROUTE_MAP(X)                                                                         \
    X(GET, "/admin/v1/tenants", api_admin_tenants, ACCESS_ADMIN, "All tenants")                    \
    X(POST, "/admin/v1/tenants", api_admin_tenant_create, ACCESS_ADMIN, "Make a tenant")           \
    X(GET, "/admin/v1/tenants/{tenant}", api_admin_tenant, ACCESS_ADMIN, "A tenant's settings")    \
    X(PATCH, "/admin/v1/tenants/{tenant}", api_admin_tenant_set, ACCESS_ADMIN,                     \
      "Change some of a tenant's settings")                                                        \
    X(DELETE, "/admin/v1/tenants/{tenant}", api_admin_tenant_delete, ACCESS_ADMIN,                 \
      "Delete a tenant; its usage is kept")                                                        \
    X(GET, "/admin/v1/keys", api_admin_keys, ACCESS_ADMIN, "Keys, without their secrets")          \
    X(POST, "/admin/v1/keys", api_admin_key_create, ACCESS_ADMIN, "Make a key and show it, once")  \
    X(DELETE, "/admin/v1/keys/{key}", api_admin_key_revoke, ACCESS_ADMIN, "Make a key worthless")  \
    X(GET, "/admin/v1/programs", api_admin_programs, ACCESS_ADMIN, "Programs of all tenants")      \
    X(GET, "/admin/v1/tenants/{tenant}/programs", api_admin_programs, ACCESS_ADMIN,                \
      "A tenant's programs, their versions and how they do")                                       \
    X(GET, "/admin/v1/tenants/{tenant}/programs/{program}", api_admin_programs, ACCESS_ADMIN,      \
      "One program")                                                                               \
    X(POST, "/admin/v1/tenants/{tenant}/programs/{program}", api_admin_deploy, ACCESS_ADMIN,       \
      "Check, try and deploy a program's next version: the body is the module")                    \
    X(DELETE, "/admin/v1/tenants/{tenant}/programs/{program}", api_admin_program_delete,           \
      ACCESS_ADMIN, "Remove a program and all its versions")                                       \
    X(PUT, "/admin/v1/tenants/{tenant}/programs/{program}/route", api_admin_route, ACCESS_ADMIN,   \
      "Split requests over versions")                                                              \
    X(POST, "/admin/v1/tenants/{tenant}/programs/{program}/rollback", api_admin_rollback,          \
      ACCESS_ADMIN, "Let an older version serve again")                                            \
    X(GET, "/admin/v1/usage", api_admin_usage, ACCESS_ADMIN, "Export usage as CSV or JSON")

typedef struct route {
    const char *method, *path;
    void (*run)(server *s, exchange *x, const caller *c);
    int needs_caller;
    const char *summary;
    /* What takes the body as it comes: then run is called with the head. NULL: it is gathered. */
    void (*on_body)(exchange *x, const void *data, size_t size);
} route;

extern const route routes[];
extern const size_t n_routes;

#define ROUTE_DECLARE(method, path, handler, needs_caller, summary)                                \
    void handler(server *s, exchange *x, const caller *c);
ROUTE_MAP(ROUTE_DECLARE)
ADMIN_ROUTE_MAP(ROUTE_DECLARE)
#undef ROUTE_DECLARE

extern const exchange_sink router_sink; /* its context is the server: copied by server.c */

/* What follows the '*' of the exchange's route, decoded, or "". */
const char *router_rest(exchange *x);
/* What stands where the route's path has {name}, decoded, or NULL. In the exchange's memory. */
const char *router_part(exchange *x, const char *name);

/* ---- answers (api_answer.c) ------------------------------------------------------------------------ */

/* What is wrong with a request, in OpenAI's words. */
typedef struct api_problem {
    int status; /* 0: nothing is */
    const char *type, *code;
    char param[128]; /* "" is null */
    char message[REALM_ERROR_MESSAGE_SIZE];
} api_problem;

/* A 400 that names a field; returns 0, for `return api_wrong(...)`. */
int api_wrong(api_problem *p, const char *param, const char *code, const char *format, ...)
    REALM_PRINTF(4, 5);
void api_problem_set(api_problem *p, int status, const char *type, const char *code,
                     const char *param, const char *format, ...) REALM_PRINTF(6, 7);
/* How a program's end reads over HTTP. */
void api_problem_of(api_problem *p, realm_status status, const char *message);
/* The same of a run that has failed; one that ran out of a budget's tokens is told as such. */
void api_problem_of_run(api_problem *p, const guest_result *result);
json_t *api_problem_json(const api_problem *p);
void api_reply_problem(exchange *x, const api_problem *p);
/* The same, where headers already say when trying again helps. */
void api_reply_refusal(exchange *x, const api_problem *p);
/* Takes value. */
void api_reply_json(exchange *x, int status, json_t *value);
/* The inside of a JSON string; what is no UTF-8 becomes U+FFFD. */
void api_add_escaped(buffer *out, const char *text, size_t size);

/* Whose the credential is (ACCESS_*, not OPEN), or the problem. out->scopes is 0 unless it is to be forgotten. */
void router_identify(server *s, exchange *x, const char *authorization, int access, caller *out,
                     api_problem *problem);

/* ---- requests (api_request.c) ---------------------------------------------------------------------- */

/* One request that has been let in, with its grant and what it used. */
typedef struct ticket {
    server *server;
    caller caller; /* a copy of the router's; the exchange is retained */
    exchange *x;
    gate_grant grant;
    gate_usage usage;
    int is_settled;
    char model[129], program[64];
    /* request_spans.h's */
    span *span; /* NULL: not traced */
    int n_runs, streams;
    uint64_t first_text_ns; /* of any run; 0: none yet */
    realm_status failure;   /* of the first run that failed */
} ticket;

/* Asks the gate for admission; 0: it has been answered with 429 or the like. Retains the exchange. */
int ticket_open(ticket *t, server *s, exchange *x, const caller *c, int64_t estimate);
/* Where the runs of an open ticket take their tokens from; NULL: nowhere. */
const sandbox_allowance *ticket_allowance(const ticket *t);
/* Adds what one run took; choice: which of the answers it was. */
void ticket_add(ticket *t, const guest_result *result, int choice);
/* All runs are over and usage is complete: settles. What the exchange is answered from now on leaves when the
 * usage is durable, so that no client has the end of an answer that a kill makes free of charge. */
void ticket_settle(ticket *t);
/* Settles if that has not been done, and then nobody waits for it; counts; lets the exchange go. */
void ticket_close(ticket *t);

/* The tenant's own program of that name or, if it has none, the built-in one. Retained.
 *   REALM_NOT_FOUND  it may not use the built-in one
 *   the failure of a program that is there but cannot be used */
realm_status server_program(server *s, const caller *c, const exchange *x, builtin_kind kind,
                            program **out, int32_t *version, realm_error *error);
/* By name or alias; NULL: there is none. Any thread. */
served_model *server_find_model(server *s, const char *name);

#endif
