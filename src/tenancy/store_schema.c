/* tenancy/store_schema.c: the tables of realm.db, step by step.
 *
 * Never change a step that was released; add one. Settings are one JSON text, so that a new limit needs no
 * step. Modules lie in the database and not in files beside it: a version and its bytes are then one commit,
 * and a backup is one file. A deleted tenant's row stays, because its usage still needs a name, and so that its
 * number is never given to another. */
#include "tenancy/store_sqlite.h"

static const char *const steps[] = {
    /* 1: tenants and keys */
    "CREATE TABLE changes(one INTEGER PRIMARY KEY CHECK(one = 1), generation INTEGER NOT NULL) STRICT;"
    "INSERT INTO changes VALUES(1, 1);"
    "CREATE TABLE tenants("
    "  number INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, created_ms INTEGER NOT NULL,"
    "  deleted_ms INTEGER NOT NULL DEFAULT 0, revision INTEGER NOT NULL, settings TEXT NOT NULL) STRICT;"
    "CREATE UNIQUE INDEX tenants_by_name ON tenants(name) WHERE deleted_ms = 0;"
    "CREATE TABLE keys("
    "  id TEXT PRIMARY KEY, tenant INTEGER NOT NULL, name TEXT NOT NULL, scopes TEXT NOT NULL,"
    "  created_ms INTEGER NOT NULL, expires_ms INTEGER NOT NULL, revoked_ms INTEGER NOT NULL DEFAULT 0,"
    "  last_used_ms INTEGER NOT NULL DEFAULT 0, salt BLOB NOT NULL, hash BLOB NOT NULL)"
    "  STRICT, WITHOUT ROWID;"
    "CREATE INDEX keys_by_tenant ON keys(tenant);",

    /* 2: programs */
    "CREATE TABLE modules(hash TEXT PRIMARY KEY, bytes BLOB NOT NULL) STRICT;"
    "CREATE TABLE versions("
    "  tenant INTEGER NOT NULL REFERENCES tenants(number), name TEXT NOT NULL, version INTEGER NOT NULL,"
    "  hash TEXT NOT NULL REFERENCES modules(hash), size INTEGER NOT NULL, created_ms INTEGER NOT NULL,"
    "  note TEXT NOT NULL, PRIMARY KEY(tenant, name, version)) STRICT, WITHOUT ROWID;"
    "CREATE INDEX versions_by_hash ON versions(hash);"
    /* Which versions served when: the newest row of a program is the one in force; one without shares says
     * that the program was deleted. Only grows, so that a version's number is never used twice. */
    "CREATE TABLE routes("
    "  id INTEGER PRIMARY KEY AUTOINCREMENT, tenant INTEGER NOT NULL REFERENCES tenants(number),"
    "  name TEXT NOT NULL, at_ms INTEGER NOT NULL, most INTEGER NOT NULL, newest INTEGER NOT NULL,"
    "  shares TEXT NOT NULL) STRICT;"
    "CREATE INDEX routes_by_program ON routes(tenant, name, id);",

    /* 3: usage. Sums only; latency_N counts requests that ended in bucket N of usage.h. */
    "CREATE TABLE usage("
    "  day INTEGER NOT NULL, tenant INTEGER NOT NULL, key TEXT NOT NULL, model TEXT NOT NULL,"
    "  program TEXT NOT NULL, version INTEGER NOT NULL,"
    "  requests INTEGER NOT NULL, errors INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,"
    "  completion_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL, cpu_ns INTEGER NOT NULL,"
    "  wall_ns INTEGER NOT NULL, first_token_ns INTEGER NOT NULL, first_tokens INTEGER NOT NULL,"
#define LATENCY(n) "  latency_" #n " INTEGER NOT NULL,"
#define EIGHT(a, b, c, d, e, f, g, h)                                                              \
    LATENCY(a) LATENCY(b) LATENCY(c) LATENCY(d) LATENCY(e) LATENCY(f) LATENCY(g) LATENCY(h)
    EIGHT(0, 1, 2, 3, 4, 5, 6, 7) EIGHT(8, 9, 10, 11, 12, 13, 14, 15)
        EIGHT(16, 17, 18, 19, 20, 21, 22, 23) EIGHT(24, 25, 26, 27, 28, 29, 30, 31)
            EIGHT(32, 33, 34, 35, 36, 37, 38, 39) EIGHT(40, 41, 42, 43, 44, 45, 46, 47)
#undef EIGHT
#undef LATENCY
                "  PRIMARY KEY(day, tenant, key, model, program, version)) STRICT, WITHOUT ROWID;"
                "CREATE INDEX usage_by_tenant ON usage(tenant, day);",
};

_Static_assert(USAGE_LATENCIES == 48, "step 3 has a column for each");

const sqlite_schema store_sqlite_schema = {
    .application_id = 0x524C4D31, /* "RLM1" */
    .steps = steps,
    .count = sizeof steps / sizeof *steps,
};
