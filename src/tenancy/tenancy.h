/* tenancy/tenancy.h: whose request is this, may it run, and what did it use.
 *
 *     tenancy        process-wide: a store, one worker thread, the view of it in memory; for large reads a second
 *                    connection with a thread of its own, the reader
 *     tenant_info    a tenant as of one moment: settings, programs, meter. Constant and counted
 *     identity       who a credential belongs to
 *     tenancy_job    anything that needs the store: runs on the worker
 *
 * What a request needs (tenancy_authenticate, tenancy_find, meter_admit, tenant_info_program,
 * tenancy_record) is answered from memory on any thread, the net thread included: a lock is held for as
 * long as it takes to copy a pointer. The store is touched by the worker alone. After each job that
 * changed something, and when another process changed the store (looked for every poll_ms), the worker
 * makes a new view and puts it in the old one's place; requests keep the tenant_info that they started
 * with. Programs are compiled before their view is shown, so a switch of versions costs a request nothing.
 *
 * Invariants:
 *   T1  a view is constant once it is shown; what changes (meters, last use) is reached from it and has
 *       its own lock
 *   T2  a job's done comes after the view that holds its change is shown (if the store cannot be read just
 *       then, the old view stays, the log says so, and it is tried again at the next poll)
 *   T3  a usage event is either in the queue, in the table of the batch being written, or in the store;
 *       a batch that could not be written stays and is tried again
 *   T4  an event's done comes after its batch is durable, never before */
#ifndef REALM_TENANCY_TENANCY_H
#define REALM_TENANCY_TENANCY_H

#include "base/queue.h"
#include "tenancy/jwks.h"
#include "tenancy/meter.h"
#include "tenancy/store.h"

typedef struct tenancy tenancy;

typedef struct tenancy_options {
    tenant_store *store; /* taken, also if opening fails: closed with the tenancy */
    tenant_store
        *reader; /* the same again, taken too: for tenancy_submit_read. NULL: the worker reads */
    const char *lock_folder; /* the data folder, if this is its one server; NULL: no lock */
    sandbox_host
        *sandbox; /* compiles programs; borrowed. NULL: programs are known but not compiled */
    const jwks_options *jwks;   /* NULL: no bearer tokens */
    const jwt_rules *jwt_rules; /* with jwks; copied */
    tenancy_clock clock;        /* zero: the system's */
    int32_t poll_ms;            /* between looks for changes by other processes; 0: 250 */
} tenancy_options;

/* Reads everything and starts the worker.
 *   REALM_BUSY  another server uses lock_folder; else as the store's functions */
realm_status tenancy_open(tenancy **out, const tenancy_options *options, realm_error *error);

/* Runs the jobs that wait, writes all usage, joins the worker. tenant_infos and admissions may be released
 * later. NULL allowed.
 *   REALM_IO and so on  usage could not be written; the number of lost events is in error */
realm_status tenancy_close(tenancy *t, realm_error *error);

/* ---- who ---------------------------------------------------------------------------------------- */

typedef struct tenant_info tenant_info;

typedef struct tenant_view { /* what a tenant_info shows */
    uint32_t number;         /* the engine's and the state store's */
    const char *name;
    int64_t revision; /* the same: nothing changed */
    const tenant_settings *settings;
    meter *meter;
} tenant_view;

const tenant_view *tenant_info_get(const tenant_info *i);
tenant_info *tenant_info_retain(tenant_info *i);
void tenant_info_release(tenant_info *i); /* NULL allowed */

typedef struct identity {
    tenant_info *tenant;           /* retained; NULL: the node (scope admin) */
    char key[API_KEY_ID_SIZE + 1]; /* for usage and logs: a key's id, or "jwt" */
    unsigned scopes;               /* API_SCOPE_* */
} identity;

/* Whose credential (without "Bearer ") this is: a key or, if configured, a JWT. Fill *out, to be given to
 * identity_release.
 *   REALM_DENIED  with a sentence for the client. Unknown, mistyped, revoked and deleted keys are told the
 *                 same; an expired one is told so, as its owner alone can present it */
realm_status tenancy_authenticate(tenancy *t, const char *credential, size_t size, identity *out,
                                  realm_error *error);
void identity_release(identity *i);

/* A tenant by name, retained, or NULL: for the server's default tenant and the admin API. */
tenant_info *tenancy_find(tenancy *t, const char *name, size_t size);

/* Every tenant now; each for a moment. For metrics and realm top. */
void tenancy_each(tenancy *t, void (*each)(void *context, const tenant_view *tenant),
                  void *context);

/* 1 if there is any key or bearer tokens are configured: only then may the server leave loopback. */
int tenancy_has_credentials(tenancy *t);

/* ---- programs ----------------------------------------------------------------------------------- */

typedef struct program_choice {
    program *program; /* retained; NULL where tenancy_options had no sandbox */
    int32_t version;
    char hash[PROGRAM_HASH_SIZE + 1];
} program_choice;

/* The version that serves this request; see store_route_choose about id (NULL: the one with the largest
 * share). Give the program back with program_release.
 *   REALM_NOT_FOUND  the tenant has no such program, or may not call it: the same sentence
 *   REALM_CORRUPT    it could not be compiled when it was loaded; error says why */
realm_status tenant_info_program(const tenant_info *i, const char *name, size_t size,
                                 const void *id, size_t id_size, program_choice *out,
                                 realm_error *error);

/* tenant_grants.resolve with the tenant_info as its context, for `call`. */
realm_status tenant_info_resolve(void *info, const char *name, size_t size, program **out,
                                 realm_error *error);

/* Number, name, weight, capabilities, limits and resolve; models, adapters and state are the caller's. The
 * info must outlive the sandbox_tenant. */
void tenant_info_grants(tenant_info *i, tenant_grants *out);

/* Those of all [n_all] that it may use, into out [n_all]; its list's first is its default. Returns how many. */
int32_t tenant_info_models(const tenant_info *i, const sandbox_model *all, int32_t n_all,
                           sandbox_model *out);

/* ---- usage -------------------------------------------------------------------------------------- */

/* One request has ended. Copies the event. done (may be NULL) comes on the worker when it is durable, at
 * the latest with the next commit: usually within a few milliseconds; if the disk refuses, when it no
 * longer does. Never fails but for memory. */
realm_status tenancy_record(tenancy *t, const usage_event *event, void (*done)(void *context),
                            void *context, realm_error *error);

/* 1 while usage cannot be written: what costs should not begin. Any thread. */
int tenancy_is_behind(tenancy *t);

/* The server ends and has told its clients nothing that is not durable: from now on done comes after the next
 * try to write, whether it succeeds or not, so that nobody waits for a disk that refuses. Any thread. */
void tenancy_hurry(tenancy *t);

typedef struct tenancy_stats {
    uint64_t events, commits; /* usage: recorded; transactions for them */
    uint64_t pending;         /* not durable yet */
    uint64_t failed_commits;
    uint64_t denied; /* credentials refused */
    uint64_t reloads;
    int32_t tenants, keys, programs;
} tenancy_stats;
void tenancy_stats_get(tenancy *t, tenancy_stats *out);

/* ---- the store ---------------------------------------------------------------------------------- */

/* Work for the worker. The caller owns it until done. */
typedef struct tenancy_job {
    queue_node node; /* ours while it is queued */
    /* On the worker; may take as long as it needs, others wait. */
    realm_status (*run)(struct tenancy_job *job, tenant_store *store, realm_error *error);
    /* On the worker, after the view that holds the change is shown. error is NULL if status is REALM_OK. */
    void (*done)(struct tenancy_job *job, realm_status status, const realm_error *error);
    void *context;
} tenancy_job;

/* Never waits. */
void tenancy_submit(tenancy *t, tenancy_job *job);
/* The same for a job that changes nothing: run and done come on the reader's thread, so that neither usage nor a
 * change waits for it, however much it reads. It sees every change whose done has come. */
void tenancy_submit_read(tenancy *t, tenancy_job *job);

/* The same, and waits; for tests and commands. Not on the worker. job->done is not called. */
realm_status
tenancy_run(tenancy *t, realm_status (*run)(void *context, tenant_store *store, realm_error *error),
            void *context, realm_error *error);

/* For a deploy job's run, on the worker alone: compiles the module as the sandbox will, so that what cannot run
 * is never stored, and so that the switch finds it compiled. *out (may be NULL) is retained, for a smoke test.
 * REALM_INVALID and so on as program_open; without a sandbox REALM_OK, and *out is NULL. */
realm_status tenancy_check_program(tenancy *t, const char *name, const void *bytes, size_t size,
                                   program **out, realm_error *error);

#endif
