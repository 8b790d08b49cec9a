/* sandbox/sandbox.h: runs tenants' programs, one fresh instance a request.
 *
 *     sandbox_host     process-wide: Wasmtime, the sandbox threads, the cache of compiled programs
 *     program          a compiled module, shared and counted (program.h)
 *     sandbox_tenant   what one tenant was granted and where its limits are, shared and counted
 *     sandbox_request  one run of a program: an instance, its stack, its sessions and handles
 *
 * A request lives on one sandbox thread from sandbox_start to on_done; in between, the engine's
 * thread may run short turns of its guest (shared_turns.h). While the engine works for it, it costs
 * no thread. Its failures (traps, limits, cancelling) end it and nothing else. All callbacks come on the sandbox
 * thread and must neither block nor throw work back at the sandbox that waits; text is complete and in
 * order when on_done comes, and nothing comes after on_done.
 *
 * Every pointer in an options struct is copied unless its comment says that it is borrowed. */
#ifndef REALM_SANDBOX_SANDBOX_H
#define REALM_SANDBOX_SANDBOX_H

#include "engine/engine.h"
#include "sandbox/program.h"
#include "sandbox/state_store.h"

typedef struct sandbox_tenant sandbox_tenant;
typedef struct sandbox_request sandbox_request;

/* ---- the host --------------------------------------------------------------------------------- */

typedef struct sandbox_host_options {
    int32_t n_threads;           /* 0: 2 */
    int32_t max_requests;        /* with an instance at once; later ones wait. 0: 256 */
    uint64_t max_memory_bytes;   /* of any 32-bit guest, whatever its tenant's limit. 0: 4 GiB */
    uint64_t max_memory64_bytes; /* of any 64-bit guest. 0: 16 GiB; address space only */
    uint64_t max_module_bytes;   /* 0: 64 MiB */
    int32_t n_cores;          /* that this process may use; 0: cpu_count(). Where threads are left
                                    over they stay awake for the end of a device's step */
    const char *cache_folder; /* of compiled programs; made with mode 0700. NULL: "programs" in
                                  Realm's cache; "": none */
} sandbox_host_options;

/* options may be NULL. Starts the threads. */
realm_status sandbox_host_open(sandbox_host **out, const sandbox_host_options *options,
                               realm_error *error);
/* Cancels every request, waits for their on_done, joins the threads. Programs must be released
 * and engines still be open. */
void sandbox_host_close(sandbox_host *h);

typedef struct sandbox_host_stats {
    int32_t active, waiting; /* requests with an instance; requests that wait for one */
    uint64_t started, finished, failed, preemptions, cache_hits, cache_misses;
} sandbox_host_stats;
void sandbox_host_stats_get(sandbox_host *h, sandbox_host_stats *out); /* any thread */

/* ---- tenants ---------------------------------------------------------------------------------- */

/* bit, name as grants and messages spell it */
#define CAPABILITY_MAP(X)                                                                          \
    X(MODELS, 0, "models")                                                                         \
    X(ADAPTERS, 1, "adapters")                                                                     \
    X(LOGITS, 2, "logits")                                                                         \
    X(TENSORS, 3, "tensors")                                                                       \
    X(STATE, 4, "state")                                                                           \
    X(CALLS, 5, "calls")

typedef enum capability {
#define CAPABILITY_ENUM(name, bit, text) CAPABILITY_##name = 1 << bit,
    CAPABILITY_MAP(CAPABILITY_ENUM)
#undef CAPABILITY_ENUM
} capability;

#define CAPABILITY_ALL 0x3fu

/* 0 if name is none of them. */
unsigned capability_parse(const char *name);
const char *capability_name(unsigned bit);

/* Taken literally: a limit of 0 allows nothing. Start from SANDBOX_LIMITS_DEFAULT. */
typedef struct sandbox_limits {
    uint64_t memory_bytes;   /* linear memory of one guest; memory.grow fails past it */
    uint64_t memory64_bytes; /* of a 64-bit guest whose tenant has the capability `tensors`, since
                                 weights that it maps count too; without it memory_bytes holds */
    uint32_t table_elements;
    uint64_t slice_ns;       /* CPU time at a stretch before others get their turn */
    uint64_t cpu_ns;         /* CPU time of one request, all slices together */
    uint64_t wall_ns;        /* from sandbox_start to the end */
    int32_t sessions;        /* open at once in one request */
    int32_t kv_pages;        /* of the tenant, in each engine; 0: the engine's. See below */
    int32_t engine_sessions; /* open at once of the tenant, in each engine; 0: the engine's */
    uint64_t state_bytes;    /* of the tenant */
    uint64_t input_bytes;    /* of one request's body */
    uint64_t output_bytes;   /* text and JSON of one request */
    uint64_t log_bytes; /* of one request, one more for each line; the rest is dropped, and told */
    uint64_t tensor_bytes; /* device memory of one request's tensors */
    int32_t requests;      /* of the tenant at once, called programs not counted */
    int32_t call_depth;    /* programs calling programs */
} sandbox_limits;

#define SANDBOX_LIMITS_DEFAULT                                                                     \
    ((sandbox_limits){.memory_bytes = 64u << 20,                                                   \
                      .memory64_bytes = 16ull << 30,                                               \
                      .table_elements = 20000,                                                     \
                      .slice_ns = 5000000,                                                         \
                      .cpu_ns = 10000000000ull,                                                    \
                      .wall_ns = 600000000000ull,                                                  \
                      .sessions = 16,                                                              \
                      .kv_pages = 0,                                                               \
                      .engine_sessions = 0,                                                        \
                      .state_bytes = 16u << 20,                                                    \
                      .input_bytes = 16u << 20,                                                    \
                      .output_bytes = 16u << 20,                                                   \
                      .log_bytes = 64u << 10,                                                      \
                      .tensor_bytes = 256u << 20,                                                  \
                      .requests = 64,                                                              \
                      .call_depth = 4})

typedef struct sandbox_model {
    const char *name;
    engine *engine; /* borrowed until the tenant's last request is done */
} sandbox_model;

typedef struct sandbox_adapter {
    const char *name;
    engine *engine;   /* whose model it fits; borrowed */
    adapter *adapter; /* borrowed */
} sandbox_adapter;

typedef struct tenant_grants {
    uint32_t number;  /* the engine's and the state store's name for the tenant */
    const char *name; /* for messages */
    float weight;     /* share of the engine; 0: 1 */
    unsigned capabilities;
    sandbox_limits limits;
    const sandbox_model *models; /* [n_models]; the first is the default "" */
    int32_t n_models;
    const sandbox_adapter *adapters; /* [n_adapters] */
    int32_t n_adapters;
    state_store *state; /* borrowed; NULL: state_* answer UNSUPPORTED */
    /* For `call`: the tenant's program of that name, retained, or REALM_NOT_FOUND. On a sandbox
     * thread; must not compile. NULL: there is none. */
    realm_status (*resolve)(void *context, const char *name, size_t size, program **out,
                            realm_error *error);
    void *resolve_context;
    /* The tenant's last reference is gone, and with it the last use of resolve_context. Any thread; may
     * be NULL. Not called where sandbox_tenant_open fails. */
    void (*forget)(void *resolve_context);
} tenant_grants;

/* Copies the grants and tells each engine the tenant's weight, sessions and pages. New grants
 * are a new sandbox_tenant; requests that run keep the old one. Concurrent requests are counted
 * per sandbox_tenant. */
realm_status sandbox_tenant_open(sandbox_tenant **out, const tenant_grants *grants,
                                 realm_error *error);
sandbox_tenant *sandbox_tenant_retain(sandbox_tenant *t);
void sandbox_tenant_release(sandbox_tenant *t); /* NULL allowed */
uint32_t sandbox_tenant_number(const sandbox_tenant *t);

/* ---- requests --------------------------------------------------------------------------------- */

/* Where a request's tokens come from: those that it feeds, embeds, samples and appends, its called programs'
 * too. They are taken before they are computed, and what was taken and not used is given back, so that between
 * on_done and the start exactly prompt_tokens (unless prompt_is_paid) and generated_tokens have been taken. */
typedef struct sandbox_allowance {
    /* 1, or 0 where there are not so many: then nothing is taken. Any thread, the engine's too, several at
     * once; must not block. */
    int (*take)(void *context, uint64_t count);
    void (*give)(void *context, uint64_t count); /* any thread */
    void *context;
} sandbox_allowance;

/* clock_ns() of moments in the engine; 0: it has not come to that. */
typedef struct sandbox_times {
    uint64_t submitted_ns;   /* the first work was handed over */
    uint64_t started_ns;     /* and taken into a batch */
    uint64_t first_token_ns; /* the first token was there */
    uint64_t done_ns;        /* the last work was done */
} sandbox_times;

/* A prompt and what was generated after it, in one session. */
typedef struct sandbox_answer {
    sandbox_times times;
    int32_t
        session; /* which of the request's, from 1 on, in the order in which they first computed */
    realm_status status; /* of the last work */
    uint32_t prompt_tokens, cached_tokens, generated_tokens;
} sandbox_answer;

#define SANDBOX_MAX_ANSWERS 8

typedef struct sandbox_usage {
    uint64_t prompt_tokens;    /* fed by the guest or its generate */
    uint64_t generated_tokens; /* sampled and appended */
    uint64_t cached_tokens;    /* prompt tokens that the prefix cache spared */
    uint64_t cpu_ns;           /* of guest code and host functions */
    uint64_t wall_ns;          /* sandbox_start to the end */
    uint64_t start_ns;         /* sandbox_start to realm_handle's first instruction */
    uint64_t output_bytes;
    uint64_t memory_bytes; /* linear memory at the end */
    const char *
        model; /* which it used, as the tenant's grants name it (borrowed from them); "": several; NULL: none */
    int ran_out; /* its allowance had no more: `generate` ended with "length", others with QUOTA */
    sandbox_times times;                         /* of all of it */
    sandbox_answer answers[SANDBOX_MAX_ANSWERS]; /* [the first of n_answers] */
    int32_t n_answers;
} sandbox_usage;

typedef struct sandbox_result {
    realm_status status; /* REALM_OK, the guest's own (respond_error or what realm_handle
                             returned), or why the sandbox ended it */
    const char *message; /* one sentence; "" when OK. Borrowed for the call */
    const char *json;    /* what respond_json gave, terminated; NULL: nothing. Borrowed */
    size_t json_size;
    sandbox_usage usage;
} sandbox_result;

typedef struct sandbox_input {
    program *program;       /* retained */
    sandbox_tenant *tenant; /* retained */
    const char *id;         /* for the log; may be NULL */
    const void *body;       /* what request_read reads; copied */
    size_t body_size;
    uint64_t seed;        /* of random and of samplers that name none */
    int64_t now_ms;       /* 0: now_ms tells the time. Else it always says this (replay) */
    uint64_t deadline_ns; /* clock_ns(); 0: only the tenant's wall_ns */
    priority priority;    /* the highest that its sessions may ask for */
    const sandbox_allowance *allowance; /* borrowed until on_done; NULL: any number of tokens */
    int prompt_is_paid; /* by another run with the same prompt: only what is generated is taken */

    void *context; /* of the callbacks, each of which may be NULL */
    void (*on_text)(void *context, const char *text, size_t size);
    void (*on_log)(void *context, int level, const char *text, size_t size); /* NULL: the log */
    void (*on_done)(void *context, const sandbox_result *result);
} sandbox_input;

/* Queues the request; it starts within microseconds if an instance is free. Any thread. *out (out
 * may be NULL) is for sandbox_cancel and must be given back with sandbox_release, before or after
 * on_done.
 *   REALM_QUOTA      the tenant's requests at once; on_done does not come
 *   REALM_TOO_LARGE  the body; on_done does not come
 *   REALM_CLOSED     the host is closing; on_done does not come
 *   REALM_NO_MEMORY  on_done does not come */
realm_status sandbox_start(sandbox_request **out, sandbox_host *h, const sandbox_input *input,
                           realm_error *error);

/* Ends the request with REALM_CANCELLED within an iteration of the engine, unless it has ended.
 * Any thread, any number of times, until sandbox_release. */
void sandbox_cancel(sandbox_request *r);
void sandbox_release(sandbox_request *r); /* NULL allowed. Does not cancel */

/* For tests, the command line and benchmarks: starts, waits, and leaves what on_done was told in
 * *result, whose pointers live in *kept until buffer_release. input's on_done is called first.
 * Returns result->status, or sandbox_start's failure (then *result says it too). Not on a
 * sandbox thread. */
realm_status sandbox_run(sandbox_host *h, const sandbox_input *input, sandbox_result *result,
                         buffer *kept);

#endif
