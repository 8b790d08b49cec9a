/* tenancy/settings.h: what a tenant was given: limits, shares and grants, as one plain struct.
 *
 * One list below says every number with its bounds, its default and how help and errors speak of it;
 * JSON (the store, the admin API), the command line and the documents are made from it, so a new limit
 * is one new row. Lists live in the arena that was given to settings_read. Pure functions; constant
 * once made, and then for any thread. */
#ifndef REALM_TENANCY_SETTINGS_H
#define REALM_TENANCY_SETTINGS_H

#include "base/arena.h"
#include "formats/json.h"
#include "sandbox/sandbox.h"

/* name, default, least, most, help. Where 0 is allowed and special, help says what it means. */
#define SETTINGS_NUMBER_MAP(X)                                                                     \
    X(requests_per_minute, 0, 0, 1000000000, "requests a minute; 0: no limit")                     \
    X(tokens_per_minute, 0, 0, 1000000000000, "tokens a minute, in and out; 0: no limit")          \
    X(tokens_per_day, 0, 0, 1000000000000000, "tokens a day (UTC), in and out; 0: no limit")       \
    X(tokens_per_month, 0, 0, 1000000000000000, "tokens a month (UTC), in and out; 0: no limit")   \
    X(concurrent_requests, 64, 1, 1000000, "requests at once")                                     \
    X(kv_pages, 0, 0, 2147483647,                                                                  \
      "pages of keys and values in each engine; 0: no share of its own")                           \
    X(engine_sessions, 0, 0, 1000000, "sessions at once in each engine; 0: no share of its own")   \
    X(memory_bytes, 67108864, 65536, 4294967296, "memory of one sandbox")                          \
    X(memory64_bytes, 17179869184, 65536, 1099511627776, "memory of one 64-bit sandbox")           \
    X(cpu_ms, 10000, 1, 86400000, "CPU time of one request in its sandbox")                        \
    X(wall_ms, 600000, 1, 86400000, "time of one request from start to end")                       \
    X(sessions, 16, 0, 65536, "sessions open at once in one request")                              \
    X(state_bytes, 16777216, 0, 1099511627776, "state of all its programs together")               \
    X(input_bytes, 16777216, 0, 1073741824, "body of one request")                                 \
    X(output_bytes, 16777216, 0, 1073741824, "text and JSON of one answer")                        \
    X(log_bytes, 65536, 0, 1073741824, "log of one request")                                       \
    X(tensor_bytes, 268435456, 0, 1099511627776, "tensors of one request")                         \
    X(call_depth, 4, 0, 64, "programs calling programs")                                           \
    X(program_bytes, 268435456, 0, 1099511627776, "modules of all versions it has deployed")

/* A list of names, or everything. */
typedef struct settings_names {
    int all; /* 1: whatever there is; names is empty */
    const char *const
        *names; /* [count] sorted as given, for what has a first (models: the default) */
    int32_t count;
} settings_names;

typedef struct tenant_settings {
#define SETTINGS_FIELD(name, usual, least, most, help) int64_t name;
    SETTINGS_NUMBER_MAP(SETTINGS_FIELD)
#undef SETTINGS_FIELD
    double weight;         /* share of the engines against others', 0.001 to 1000 */
    priority priority;     /* the highest that its requests may ask for */
    unsigned capabilities; /* CAPABILITY_* of sandbox.h */
    settings_names models;
    settings_names programs; /* what may be called by name, built-in ones included */
} tenant_settings;

#define SETTINGS_MAX_NAMES 256
#define SETTINGS_MAX_NAME  128 /* bytes of a model's or program's name */

/* No rate limits, all models and programs, the capabilities "models", "logits", "state" and "calls",
 * sandboxes as SANDBOX_LIMITS_DEFAULT has them. */
tenant_settings settings_default(void);

/* Changes those settings that object names: numbers by name, "weight", "priority" ("batch", "normal",
 * "high"), "capabilities" (a list), "models" and "programs" (a list, or null for all).
 * null sets a number, the weight, the priority and the capabilities back to their defaults.
 *   REALM_INVALID    an unknown name, a wrong kind, a number out of bounds
 *   REALM_NO_MEMORY  *settings may be half changed then, as after REALM_INVALID: work on a copy */
realm_status settings_read(tenant_settings *settings, arena *a, const json_t *object,
                           realm_error *error);

/* All of them, as settings_read reads them; the caller's to json_decref. NULL: memory is out. */
json_t *settings_json(const tenant_settings *settings);

/* What settings_json gives as a JSON schema or, with change, what settings_read takes. NULL: memory is out. */
json_t *settings_schema(int change);

/* 1 if the list allows the name. */
int settings_allow(const settings_names *names, const char *name, size_t size);

sandbox_limits settings_limits(const tenant_settings *settings);

/* A name of a tenant or of a program: 1 to 63 of a-z, 0-9, '-', '_' and '.', beginning with a letter
 * or digit, so that it may stand in paths, URLs, labels and logs as it is.
 *   REALM_INVALID  what ("tenant", "program") is named in the sentence */
realm_status settings_check_name(const char *what, const char *name, size_t size,
                                 realm_error *error);
#define SETTINGS_MAX_IDENTIFIER 63

#endif
