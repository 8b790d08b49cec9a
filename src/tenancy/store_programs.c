/* tenancy/store_programs.c: the programs' part of the SQLite store.
 *
 * A route is kept as text, "4:9000 5:1000". The version that has most comes first in records, and is what a
 * canary's rest stays with and what a rollback leaves. */
#include <stdio.h>
#include <string.h>

#include <openssl/evp.h>

#include "base/clock.h"
#include "tenancy/store_sqlite.h"

#define ROUTE_TEXT_SIZE 200

/* ---- routes as text ---- */

static realm_status check_route(const route_share *route, int32_t count, realm_error *error)
{
    int64_t sum = 0;
    if (count < 1 || count > ROUTE_MAX_SHARES)
        return realm_fail(error, REALM_INVALID, "a route has 1 to %d versions, not %d",
                          ROUTE_MAX_SHARES, (int)count);
    for (int32_t i = 0; i < count; i++) {
        if (route[i].share < 1)
            return realm_fail(error, REALM_INVALID, "the share of version %d is not positive",
                              (int)route[i].version);
        sum += route[i].share;
        for (int32_t j = 0; j < i; j++)
            if (route[j].version == route[i].version)
                return realm_fail(error, REALM_INVALID, "version %d is there twice",
                                  (int)route[i].version);
    }
    return sum == ROUTE_WHOLE
               ? REALM_OK
               : realm_fail(error, REALM_INVALID, "the shares are %.2f %% together, not 100 %%",
                            (double)sum * 100 / ROUTE_WHOLE);
}

static const route_share *largest(const route_share *route, int32_t count)
{
    const route_share *most = route;
    for (int32_t i = 1; i < count; i++)
        if (route[i].share > most->share)
            most = &route[i];
    return most;
}

static void route_text(const route_share *route, int32_t count, char text[ROUTE_TEXT_SIZE])
{
    size_t at = 0;
    text[0] = 0;
    for (int32_t i = 0; i < count; i++)
        at += (size_t)snprintf(text + at, ROUTE_TEXT_SIZE - at, "%s%d:%d", i ? " " : "",
                               (int)route[i].version, (int)route[i].share);
}

/* 0 unless text is a route (an empty one is that of a deleted program). */
static int parse_route(const char *text, route_share *route, int32_t *count)
{
    *count = 0;
    for (int used = 0; *text; text += used) {
        int version, share;
        if (*count == ROUTE_MAX_SHARES || sscanf(text, "%d:%d%n", &version, &share, &used) != 2)
            return 0;
        used += text[used] == ' ';
        route[(*count)++] = (route_share){version, share};
    }
    if (*count) { /* the largest first */
        route_share *most = (route_share *)largest(route, *count), first = route[0];
        route[0] = *most;
        *most = first;
    }
    return 1;
}

/* The one in force. count 0: there is no such program (any more). */
static realm_status read_route(store_sqlite *s, int64_t tenant, const char *name,
                               route_share *route, int32_t *count, int64_t *at_ms,
                               realm_error *error)
{
    sqlite3_stmt *statement;
    int row;
    *count = 0;
    realm_status status = sqlite_file_prepare(&s->file, &statement, error,
                                              "SELECT shares, at_ms FROM routes WHERE tenant = ? "
                                              "AND name = ? ORDER BY id DESC LIMIT 1",
                                              "it", tenant, name);
    if (status)
        return status;
    status = sqlite_file_next(&s->file, statement, &row, error);
    if (!status && row) {
        const char *text = (const char *)sqlite3_column_text(statement, 0);
        *at_ms = sqlite3_column_int64(statement, 1);
        if (!text || !parse_route(text, route, count))
            status = realm_fail(error, REALM_CORRUPT, "'%s': the route of program '%s' is damaged",
                                s->file.path, name);
    }
    sqlite3_finalize(statement);
    return status;
}

static realm_status newest_version(store_sqlite *s, int64_t tenant, const char *name,
                                   int64_t *newest, realm_error *error)
{
    return sqlite_file_number(
        &s->file, newest, error,
        "SELECT max(coalesce((SELECT max(version) FROM versions WHERE tenant = ?1 AND name = ?2), 0), "
        "coalesce((SELECT max(newest) FROM routes WHERE tenant = ?1 AND name = ?2), 0))",
        "it", tenant, name);
}

static realm_status add_route(store_sqlite *s, int64_t tenant, const char *name,
                              const route_share *route, int32_t count, realm_error *error)
{
    char text[ROUTE_TEXT_SIZE];
    int64_t newest = 0;
    route_text(route, count, text);
    realm_status status = newest_version(s, tenant, name, &newest, error);
    if (status)
        return status;
    return sqlite_file_run(
        &s->file, error,
        "INSERT INTO routes(tenant, name, at_ms, most, newest, shares) VALUES(?, ?, ?, ?, ?, ?)",
        "itiiit", tenant, name, clock_wall_ms(),
        (int64_t)(count ? largest(route, count)->version : 0), newest, text);
}

/* ---- deploying ---- */

static realm_status hash_module(const void *bytes, size_t size, char hex[PROGRAM_HASH_SIZE + 1],
                                realm_error *error)
{
    unsigned char digest[32];
    if (!EVP_Digest(bytes, size, digest, NULL, EVP_sha256(), NULL))
        return realm_fail(error, REALM_INTERNAL, "OpenSSL has no SHA-256");
    for (size_t i = 0; i < sizeof digest; i++)
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    return REALM_OK;
}

static realm_status check_room(store_sqlite *s, const deployment *d, realm_error *error)
{
    int64_t used = 0;
    realm_status status = sqlite_file_number(
        &s->file, &used, error, "SELECT coalesce(sum(size), 0) FROM versions WHERE tenant = ?", "i",
        (int64_t)d->tenant);
    if (!status && (d->size > d->limit_bytes || (uint64_t)used > d->limit_bytes - d->size))
        status = realm_fail(error, REALM_QUOTA,
                            "the tenant's programs would take %" PRIu64
                            " bytes; its limit is %" PRIu64
                            ": delete a program, or raise program_bytes",
                            (uint64_t)used + d->size, d->limit_bytes);
    return status;
}

static realm_status add_version(store_sqlite *s, const deployment *d, int64_t version,
                                realm_error *error)
{
    char hash[PROGRAM_HASH_SIZE + 1];
    realm_status status = hash_module(d->bytes, d->size, hash, error);
    if (!status)
        status = sqlite_file_run(&s->file, error,
                                 "INSERT INTO modules(hash, bytes) VALUES(?, ?) "
                                 "ON CONFLICT(hash) DO NOTHING",
                                 "tb", hash, d->bytes, d->size);
    if (!status)
        status = sqlite_file_run(&s->file, error,
                                 "INSERT INTO versions(tenant, name, version, hash, size, "
                                 "created_ms, note) VALUES(?, ?, ?, ?, ?, ?, ?)",
                                 "ititiit", (int64_t)d->tenant, d->name, version, hash,
                                 (int64_t)d->size, clock_wall_ms(), d->note ? d->note : "");
    return status;
}

/* Canaries' rest stays with the version that has most; the first version of a program serves everybody. */
static realm_status switch_to(store_sqlite *s, const deployment *d, int64_t version,
                              realm_error *error)
{
    route_share before[ROUTE_MAX_SHARES];
    int32_t count;
    int64_t at_ms;
    realm_status status = read_route(s, d->tenant, d->name, before, &count, &at_ms, error);
    if (status)
        return status;
    if (count && d->share == 0) /* kept, and nobody gets it yet */
        return add_route(s, d->tenant, d->name, before, count, error);
    route_share after[2] = {{(int32_t)version, ROUTE_WHOLE}};
    int32_t parts = 1;
    if (count && d->share < ROUTE_WHOLE) {
        after[0].share = d->share;
        after[parts++] = (route_share){before[0].version, ROUTE_WHOLE - d->share};
    }
    return add_route(s, d->tenant, d->name, after, parts, error);
}

static realm_status prune(store_sqlite *s, const deployment *d, int64_t newest, realm_error *error)
{
    route_share route[ROUTE_MAX_SHARES];
    int32_t count;
    int64_t at_ms, oldest = newest - PROGRAM_KEPT_VERSIONS;
    realm_status status = read_route(s, d->tenant, d->name, route, &count, &at_ms, error);
    int64_t serving[ROUTE_MAX_SHARES] = {0};
    for (int32_t i = 0; i < count; i++)
        serving[i] = route[i].version;
    if (!status)
        status = sqlite_file_run(
            &s->file, error,
            "DELETE FROM versions WHERE tenant = ? AND name = ? AND version <= ? AND version NOT IN "
            "(?, ?, ?, ?, ?, ?, ?, ?)",
            "itiiiiiiiii", (int64_t)d->tenant, d->name, oldest, serving[0], serving[1], serving[2],
            serving[3], serving[4], serving[5], serving[6], serving[7]);
    if (!status && sqlite_file_changed(&s->file))
        status = store_program_sweep(s, error);
    return status;
}

realm_status store_program_sweep(store_sqlite *s, realm_error *error)
{
    return sqlite_file_run(&s->file, error,
                           "DELETE FROM modules WHERE NOT EXISTS "
                           "(SELECT 1 FROM versions WHERE versions.hash = modules.hash)",
                           "");
}

static realm_status deploy(store_sqlite *s, const deployment *d, int64_t *version,
                           realm_error *error)
{
    int64_t newest = 0;
    realm_status status = store_sqlite_check_tenant(s, d->tenant, error);
    if (!status)
        status = check_room(s, d, error);
    if (!status)
        status = newest_version(s, d->tenant, d->name, &newest, error);
    *version = newest + 1;
    if (!status)
        status = add_version(s, d, *version, error);
    if (!status)
        status = switch_to(s, d, *version, error);
    if (!status)
        status = prune(s, d, *version, error);
    if (!status)
        status = store_sqlite_touch(s, d->tenant, error);
    return status;
}

realm_status store_program_deploy(tenant_store *base, const deployment *d, int32_t *version,
                                  realm_error *error)
{
    store_sqlite *s = store_sqlite_of(base);
    int64_t made = 0;
    realm_status status = settings_check_name("program", d->name, strlen(d->name), error);
    if (!status && (d->share < 0 || d->share > ROUTE_WHOLE))
        status = realm_fail(error, REALM_INVALID, "a share is from 0 to 100 %%");
    if (!status)
        status = sqlite_file_begin(&s->file, error);
    if (status)
        return status;
    status = sqlite_file_end(&s->file, deploy(s, d, &made, error), error);
    if (!status && version)
        *version = (int32_t)made;
    return status;
}

/* ---- switching ---- */

static realm_status no_program(const char *name, realm_error *error)
{
    return realm_fail(error, REALM_NOT_FOUND, "the tenant has no program '%.80s'", name);
}

static realm_status check_version(store_sqlite *s, int64_t tenant, const char *name,
                                  int64_t version, realm_error *error)
{
    int64_t found;
    realm_status status = sqlite_file_number(
        &s->file, &found, error,
        "SELECT 1 FROM versions WHERE tenant = ? AND name = ? AND version = ?", "iti", tenant, name,
        version);
    return status == REALM_NOT_FOUND
               ? realm_fail(error, status, "program '%.80s' has no version %" PRId64, name, version)
               : status;
}

static realm_status set_route(store_sqlite *s, uint32_t tenant, const char *name,
                              const route_share *route, int32_t count, realm_error *error)
{
    realm_status status = REALM_OK;
    for (int32_t i = 0; i < count && !status; i++)
        status = check_version(s, tenant, name, route[i].version, error);
    if (!status)
        status = add_route(s, tenant, name, route, count, error);
    if (!status)
        status = store_sqlite_touch(s, tenant, error);
    return status;
}

realm_status store_program_route(tenant_store *base, uint32_t tenant, const char *name,
                                 const route_share *route, int32_t count, realm_error *error)
{
    store_sqlite *s = store_sqlite_of(base);
    realm_status status = check_route(route, count, error);
    if (!status)
        status = sqlite_file_begin(&s->file, error);
    if (status)
        return status;
    status = set_route(s, tenant, name, route, count, error);
    return sqlite_file_end(&s->file, status, error);
}

static realm_status roll_back(store_sqlite *s, uint32_t tenant, const char *name, int64_t *to,
                              realm_error *error)
{
    route_share route[ROUTE_MAX_SHARES];
    int32_t count;
    int64_t at_ms;
    realm_status status = read_route(s, tenant, name, route, &count, &at_ms, error);
    if (!status && !count)
        status = no_program(name, error);
    if (!status && *to == 0) {
        status = sqlite_file_number(&s->file, to, error,
                                    "SELECT most FROM routes JOIN versions USING(tenant, name) "
                                    "WHERE tenant = ? AND name = ? AND version = most AND most < ? "
                                    "ORDER BY most DESC LIMIT 1",
                                    "iti", (int64_t)tenant, name, (int64_t)route[0].version);
        if (status == REALM_NOT_FOUND)
            realm_fail(error, status,
                       "program '%.80s' has no version before %d that has served: name one", name,
                       (int)route[0].version);
    }
    route_share back = {(int32_t)*to, ROUTE_WHOLE};
    return status ? status : set_route(s, tenant, name, &back, 1, error);
}

realm_status store_program_rollback(tenant_store *base, uint32_t tenant, const char *name,
                                    int32_t to, int32_t *version, realm_error *error)
{
    store_sqlite *s = store_sqlite_of(base);
    int64_t back = to;
    realm_status status = sqlite_file_begin(&s->file, error);
    if (status)
        return status;
    status = sqlite_file_end(&s->file, roll_back(s, tenant, name, &back, error), error);
    if (!status && version)
        *version = (int32_t)back;
    return status;
}

static realm_status delete_program(store_sqlite *s, uint32_t tenant, const char *name,
                                   realm_error *error)
{
    /* First, while the versions still say which is the newest. */
    realm_status status = add_route(s, tenant, name, NULL, 0, error);
    if (!status)
        status = sqlite_file_run(&s->file, error,
                                 "DELETE FROM versions WHERE tenant = ? AND name = ?", "it",
                                 (int64_t)tenant, name);
    if (!status && sqlite_file_changed(&s->file) == 0)
        status = no_program(name, error);
    if (!status)
        status = store_program_sweep(s, error);
    if (!status)
        status = store_sqlite_touch(s, tenant, error);
    return status;
}

realm_status store_program_delete(tenant_store *base, uint32_t tenant, const char *name,
                                  realm_error *error)
{
    store_sqlite *s = store_sqlite_of(base);
    realm_status status = sqlite_file_begin(&s->file, error);
    if (status)
        return status;
    return sqlite_file_end(&s->file, delete_program(s, tenant, name, error), error);
}

/* ---- reading ---- */

static program_version *read_version(sqlite3_stmt *row, arena *a, program_version *v)
{
    const char *hash = sqlite_file_text(row, 3, a);
    *v = (program_version){.version = (int32_t)sqlite3_column_int64(row, 2),
                           .size = (uint64_t)sqlite3_column_int64(row, 4),
                           .created_ms = sqlite3_column_int64(row, 5),
                           .note = sqlite_file_text(row, 6, a)};
    if (!hash || !v->note)
        return NULL;
    snprintf(v->hash, sizeof v->hash, "%s", hash);
    return v;
}

typedef struct listing {
    arena *a;
    program_record *records;
    size_t n_records, records_capacity;
    program_version
        *versions; /* of the last record; never moved by its neighbours: each record has its own */
    size_t n_versions, versions_capacity;
} listing;

/* Takes one row; a row of another program than the last begins a new record. */
static int take_row(listing *l, sqlite3_stmt *row)
{
    uint32_t tenant = (uint32_t)sqlite3_column_int64(row, 0);
    const char *name = (const char *)sqlite3_column_text(row, 1);
    program_record *last = l->n_records ? &l->records[l->n_records - 1] : NULL;
    if (!name)
        return 0;
    if (!last || last->tenant != tenant || strcmp(last->name, name) != 0) {
        last = store_sqlite_grow(l->a, (void **)&l->records, &l->n_records, &l->records_capacity,
                                 sizeof *last);
        if (!last)
            return 0;
        *last = (program_record){.tenant = tenant,
                                 .name = sqlite_file_text(row, 1, l->a),
                                 .tenant_name = sqlite_file_text(row, 7, l->a)};
        l->versions = NULL;
        l->n_versions = l->versions_capacity = 0;
        if (!last->name || !last->tenant_name)
            return 0;
    }
    program_version *v = store_sqlite_grow(l->a, (void **)&l->versions, &l->n_versions,
                                           &l->versions_capacity, sizeof *v);
    if (!v || !read_version(row, l->a, v))
        return 0;
    last->versions = l->versions;
    last->n_versions = (int32_t)l->n_versions;
    return 1;
}

/* A page is of programs, whose versions all come along. */
static realm_status list_versions(store_sqlite *s, listing *l, int64_t tenant, const char *name,
                                  const store_page *page, realm_error *error)
{
    sqlite3_stmt *statement;
    int64_t after = page && page->after ? (int64_t)page->after_tenant : -1;
    realm_status status = sqlite_file_prepare(
        &s->file, &statement, error,
        "WITH page AS (SELECT DISTINCT tenant AS t, name AS n FROM versions "
        "  WHERE (?1 < 0 OR tenant = ?1) AND (?2 IS NULL OR name = ?2) AND (tenant, name) > (?3, ?4) "
        "  ORDER BY tenant, name LIMIT ?5) "
        "SELECT tenant, versions.name, version, hash, size, versions.created_ms, note, tenants.name "
        "FROM page JOIN versions ON tenant = t AND versions.name = n "
        "LEFT JOIN tenants ON number = tenant ORDER BY tenant, versions.name, version",
        "ititi", tenant, name, after, page && page->after ? page->after : "",
        page ? (int64_t)page->limit : -1);
    for (int row = 1; !status;) {
        status = sqlite_file_next(&s->file, statement, &row, error);
        if (status || !row)
            break;
        if (!take_row(l, statement))
            status = realm_fail_memory(error, 0, "the list of programs");
    }
    sqlite3_finalize(statement);
    return status;
}

realm_status store_program_list(tenant_store *base, arena *a, int64_t tenant, const char *name,
                                const store_page *page, program_record **out, size_t *count,
                                realm_error *error)
{
    store_sqlite *s = store_sqlite_of(base);
    listing l = {.a = a};
    /* One snapshot for versions and routes. */
    realm_status status = sqlite_file_run(&s->file, error, "BEGIN", "");
    if (status)
        return status;
    status = list_versions(s, &l, tenant, name, page, error);
    for (size_t i = 0; i < l.n_records && !status; i++) {
        program_record *p = &l.records[i];
        status = read_route(s, p->tenant, p->name, p->route, &p->n_route, &p->routed_ms, error);
    }
    status = sqlite_file_end(&s->file, status, error);
    *out = l.records;
    *count = status ? 0 : l.n_records;
    return status;
}

realm_status store_program_bytes(tenant_store *base, arena *a, const char *hash, const void **bytes,
                                 size_t *size, realm_error *error)
{
    store_sqlite *s = store_sqlite_of(base);
    sqlite3_stmt *statement;
    int row;
    char found[PROGRAM_HASH_SIZE + 1];
    realm_status status = sqlite_file_prepare(
        &s->file, &statement, error, "SELECT bytes FROM modules WHERE hash = ?", "t", hash);
    if (status)
        return status;
    status = sqlite_file_next(&s->file, statement, &row, error);
    if (!status && !row)
        status = realm_fail(error, REALM_NOT_FOUND, "there is no module %.64s", hash);
    if (!status) {
        *size = (size_t)sqlite3_column_bytes(statement, 0);
        const void *data = sqlite3_column_blob(statement, 0);
        *bytes = arena_copy(a, data ? data : "", *size);
        if (!*bytes)
            status = realm_fail_memory(error, *size, "a module");
    }
    sqlite3_finalize(statement);
    if (!status)
        status = hash_module(*bytes, *size, found, error);
    if (!status && strcmp(found, hash) != 0)
        status = realm_fail(error, REALM_CORRUPT, "'%s': module %.64s is damaged", s->file.path,
                            hash);
    return status;
}
