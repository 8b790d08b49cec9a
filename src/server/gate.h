/* server/gate.h: whose request is this, may it run, what did it take.
 *
 * Three calls a request, each a few hundred nanoseconds and never a wait, so that the net thread may
 * make them: gate_identify when the head is there, gate_admit before a sandbox starts, gate_settle
 * when all is over. What kind of keeping stands behind them (one tenant without keys, or a store of many)
 * is a table. */
#ifndef REALM_SERVER_GATE_H
#define REALM_SERVER_GATE_H

#include "sandbox/sandbox.h"
#include "tenancy/tenancy.h"
#include "tenancy/trial.h"

typedef struct gate gate;

/* Who asks. Owned by whoever called gate_identify, until gate_forget. */
typedef struct caller {
    sandbox_tenant *tenant; /* retained; NULL: the node's administrator */
    char name[64];          /* the tenant's, for logs, metrics and rate-limit answers; else "" */
    char key[API_KEY_ID_SIZE + 1]; /* the id of the key that it came with, "jwt" or "" */
    unsigned scopes;               /* API_SCOPE_*: 0 exactly where nobody has been identified */
    priority priority;             /* the highest it may ask for */
    uint64_t input_bytes;          /* the largest body that it may send */
    void *info;                    /* the table's own */
} caller;

/* For the headers x-ratelimit-*; limit 0: there is none. */
typedef struct gate_rate {
    int64_t limit, remaining;
    uint64_t reset_ns;
} gate_rate;

typedef struct gate_grant {
    void *held; /* the table's own, until it is settled */
    gate_rate requests, tokens;
    uint64_t retry_ns;           /* of a refusal: when trying again may help */
    int should_retry;            /* 0: it will not */
    const char *reason;          /* of a refusal, static: "requests", "tokens", "concurrent", ... */
    sandbox_allowance allowance; /* of what budgets leave, until it is settled */
} gate_grant;

/* What one request took. */
typedef struct gate_usage {
    const char *model, *program; /* "" where there was none */
    int32_t version;             /* of the program; 0: built in */
    int failed;
    uint64_t prompt_tokens, completion_tokens, cached_tokens;
    uint64_t cpu_ns, wall_ns, first_token_ns; /* first_token_ns 0: there was none */
} gate_usage;

typedef struct gate_table {
    /* authorization: the header's value, or NULL.
     *   REALM_DENIED  with a sentence for the client; others: the host's trouble */
    realm_status (*identify)(gate *a, const char *authorization, caller *out, realm_error *error);
    void (*forget)(gate *a, caller *c);
    /* 1 if the caller may use the model; what it may not, it is told that it is not there. */
    int (*allows_model)(gate *a, const caller *c, const char *name);
    /* 1 if the caller may use the built-in program of that name where it has none of its own. */
    int (*allows_builtin)(gate *a, const caller *c, const char *name);
    /* The program of that name that serves this request, retained, and its version.
     *   REALM_NOT_FOUND  the tenant has none, or may not call it */
    realm_status (*program)(gate *a, const caller *c, const char *name, const char *request_id,
                            program **out, int32_t *version, realm_error *error);
    /* estimate: the tokens that it will likely take. The request's runs take theirs from out's allowance.
     *   REALM_QUOTA  refused; out says until when, error why
     *   REALM_BUSY   usage cannot be written at the moment, so nothing that costs may begin */
    realm_status (*admit)(gate *a, const caller *c, int64_t estimate, gate_grant *out,
                          realm_error *error);
    /* 1: durable(context) comes, on any thread and perhaps at once, when no kill can lose the usage any
     * more. 0: it does not come, there is nothing to wait for. -1: the usage could not be kept.
     * durable may be NULL: nobody waits. */
    int (*settle)(gate *a, const caller *c, gate_grant *grant, const gate_usage *usage,
                  void (*durable)(void *context), void *context);
    /* The tokens that a tenant's running requests have taken so far; 0 for one that is not there. */
    int64_t (*taken)(gate *a, const char *tenant, size_t size);
    /* 1 if requests need a credential: only then may the server listen on other addresses. */
    int (*has_credentials)(gate *a);
    /* No client is left: every durable that is owed comes soon, even where the disk refuses. May be NULL. */
    void (*stop)(gate *a);
    void (*close)(gate *a);
} gate_table;

struct gate {
    const gate_table *table;
};

/* One tenant, "default", that may do everything a tenant can, and needs no key. grants: its models,
 * state and limits; copied. Programs are added before the server runs. */
realm_status gate_local_open(gate **out, const tenant_grants *grants, realm_error *error);
realm_status gate_local_program(gate *a, const char *name, program *p, realm_error *error);

typedef struct gate_tenancy_options {
    const char *folder;          /* the data folder; made if it is not there */
    sandbox_host *sandbox;       /* borrowed */
    const sandbox_model *models; /* [n_models]; copied, the engines borrowed */
    int32_t n_models;
    int is_local; /* only this machine can reach the server: while there is no credential at all, requests
                     without one are the tenant "default"'s */
    const jwks_options *jwks; /* NULL: no bearer tokens */
    const jwt_rules *jwt_rules;
} gate_tenancy_options;

/* The tenants of a data folder. A folder without any tenant or key gets the tenant "default".
 *   REALM_BUSY  another server uses the folder; else as store_sqlite_open and tenancy_open */
realm_status gate_tenancy_open(gate **out, const gate_tenancy_options *options, realm_error *error);

/* trial_open for a tenant of such a gate. Net thread.
 *   REALM_NOT_FOUND  there is no such tenant */
realm_status gate_tenancy_trial(gate *a, const char *tenant, const char *name, const char *smoke,
                                trial *out, realm_error *error);

/* The tenancy and the state store of such a gate, for the admin API; NULL for another kind. */
tenancy *gate_tenancy_of(gate *a);
state_store *gate_tenancy_state(gate *a);

#endif
