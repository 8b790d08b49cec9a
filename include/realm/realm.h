/* realm/realm.h: librealm, for programs in C that want models and sandboxes without a server.
 *
 *     realm_runtime   one a process: the sandboxes' threads, the models, an engine for each
 *     realm_program   a WebAssembly module, compiled; three are built in, see realm_program_builtin
 *     realm_tenant    who may use which models, how much, and what its programs may do
 *     realm_call      one request of a tenant, answered by a program in a fresh sandbox
 *
 * Objects are opened and closed by the caller; close in the reverse order. Functions may be called
 * from any thread unless they say otherwise; those that fail return a realm_status and, if given a
 * realm_error, one sentence. Texts are UTF-8. Zero in an option means its default. */
#ifndef REALM_REALM_H
#define REALM_REALM_H

#include "realm/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct realm_runtime realm_runtime;
typedef struct realm_program realm_program;
typedef struct realm_tenant realm_tenant;
typedef struct realm_call realm_call;

/* "0.1.0" */
REALM_API const char *realm_version(void);

/* ---- the runtime -------------------------------------------------------------------------------- */

typedef struct realm_runtime_options {
    const char *device; /* "auto" (NULL: this one), "cpu", "cuda" or "cuda:N"; copied. auto is
                                  a CUDA device if one works and has room for a layer */
    int32_t n_threads;  /* of each model's engine; 0: the cores this process may use */
    int32_t n_sandbox_threads; /* 0: 2 */
    int32_t n_sandboxes;   /* calls that run at once, others wait; 0: 256. Each reserves 4 GiB of
                                  addresses (not of memory), programs that they call some more */
    uint64_t kv_bytes;     /* keys and values of each model; 0: a third of what the machine, or
                                  the container's limit, has free, at most what full sessions use */
    int64_t kv_host_bytes; /* host memory for pages of idle sessions that a device has no room for;
                              0: as much as on the device, at most a quarter of what the host has
                              free; -1: none. The processor has no use for it */
    int kv_q8_0;           /* 1: keys and values as Q8_0 instead of F16 */
    const char *cache_folder; /* for compiled programs and packed weights, ours alone; NULL:
                                  $REALM_CACHE or the usual one; "": keep nothing. Copied */
    int no_weight_cache;      /* 1: pack weights at every start, keep none */
    int map_weights;          /* 1: map kept weights instead of reading them: at times slower,
                                  and all processes with a model share one copy */
    int32_t gpu_layers;       /* layers of each model that the device computes, from the first; the
                                  processor computes the rest. 0: as many as there is room for */
} realm_runtime_options;

/* options may be NULL. */
REALM_API realm_status realm_runtime_open(realm_runtime **out, const realm_runtime_options *options,
                                          realm_error *error);
/* Calls, tenants and programs must be closed. NULL allowed. */
REALM_API void realm_runtime_close(realm_runtime *r);

/* Loads a GGUF file under a name (NULL: the file's own). The weights are mapped and shared by all
 * tenants. progress may be NULL; it gets 0 to 1 on the calling thread. One thread at a time.
 *   REALM_NOT_FOUND, REALM_CORRUPT, REALM_UNSUPPORTED, REALM_NO_MEMORY  about the file
 *   REALM_INVALID  the name is taken */
REALM_API realm_status realm_runtime_load(realm_runtime *r, const char *name, const char *path,
                                          void (*progress)(void *context, double fraction),
                                          void *context, realm_error *error);

/* ---- programs ----------------------------------------------------------------------------------- */

/* Compiles a module, WebAssembly binary or text; the bytes are not needed after. */
REALM_API realm_status realm_program_open(realm_program **out, realm_runtime *r, const char *name,
                                          const void *bytes, size_t size, realm_error *error);
/* A built-in one: "chat", "completion" or "embeddings". */
REALM_API realm_status realm_program_builtin(realm_program **out, realm_runtime *r,
                                             const char *name, realm_error *error);
REALM_API void realm_program_close(realm_program *p); /* NULL allowed */

/* ---- tenants ------------------------------------------------------------------------------------ */

typedef struct realm_tenant_options {
    const char *name;          /* for messages; required */
    double weight;             /* share of the engines against other tenants'; 0: 1 */
    const char *const *models; /* [n_models] names; the first is the default. NULL: all loaded */
    int32_t n_models;
    const char *const
        *capabilities; /* [n_capabilities] "models", "logits", "tensors", "state", ...;
                                        see docs/HOST_ABI.md */
    int32_t n_capabilities;
    uint64_t memory_bytes; /* of one sandbox; 0: 64 MiB (64-bit programs: 16 GiB) */
    uint64_t cpu_ms;       /* of one request; 0: 10 s */
    uint64_t wall_ms;      /* of one request; 0: 10 minutes */
    int32_t requests;      /* at once; 0: 64 */
} realm_tenant_options;

/* Models must be loaded before. Everything is copied. */
REALM_API realm_status realm_tenant_open(realm_tenant **out, realm_runtime *r,
                                         const realm_tenant_options *options, realm_error *error);
REALM_API void realm_tenant_close(realm_tenant *t); /* NULL allowed; its calls must be closed */

/* What the tenant's programs may `call` by that name; replaces an older one. */
REALM_API realm_status realm_tenant_add_program(realm_tenant *t, const char *name, realm_program *p,
                                                realm_error *error);

/* ---- calls -------------------------------------------------------------------------------------- */

typedef struct realm_call_options {
    realm_tenant *tenant;
    realm_program *program;
    const void *input; /* the request, usually JSON; copied */
    size_t input_size;
    uint64_t seed; /* the same seed, program and input give the same answer */
    /* Text as it is generated, in order; on a sandbox thread: must not block. May be NULL. */
    void (*on_text)(void *context, const char *text, size_t size);
    void *context;
} realm_call_options;

typedef struct realm_call_result {
    realm_status status; /* REALM_OK, what the program answered, or why the sandbox ended it */
    const char *message; /* one sentence; "" when OK */
    const char *json;    /* the program's structured answer, terminated, or NULL */
    size_t json_size;
    uint64_t prompt_tokens, generated_tokens;
    uint64_t cpu_ns, wall_ns, start_ns; /* of the sandbox: its own work, all, until its first
                                           instruction */
} realm_call_result;

REALM_API realm_status realm_call_start(realm_call **out, realm_runtime *r,
                                        const realm_call_options *options, realm_error *error);
/* Waits until the call has ended; the result lives until realm_call_close. */
REALM_API const realm_call_result *realm_call_wait(realm_call *c);
/* The same for at most timeout_ms; NULL if it has not ended by then. */
REALM_API const realm_call_result *realm_call_poll(realm_call *c, uint64_t timeout_ms);
/* Ends it soon, with REALM_CANCELLED. */
REALM_API void realm_call_cancel(realm_call *c);
/* Cancels and waits if it has not ended. NULL allowed. */
REALM_API void realm_call_close(realm_call *c);

#ifdef __cplusplus
}
#endif
#endif
