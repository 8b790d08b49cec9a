/* tenancy/store_tenants.c: the tenants' part of the SQLite store. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "tenancy/store_sqlite.h"

#define MAX_SETTINGS_BYTES (1u << 20)

/* The caller's to free. */
static realm_status settings_text(const tenant_settings *settings, char **out, realm_error *error)
{
    json_t *object = settings_json(settings);
    *out = json_text(object, 0);
    json_decref(object);
    return *out ? REALM_OK : realm_fail_memory(error, 0, "a tenant's settings");
}

realm_status store_tenant_create(tenant_store *base, const char *name,
                                 const tenant_settings *settings, uint32_t *number,
                                 realm_error *error)
{
    store_sqlite *s = store_sqlite_of(base);
    char *text = NULL;
    int64_t found;
    realm_status status = settings_check_name("tenant", name, strlen(name), error);
    if (!status)
        status = settings_text(settings, &text, error);
    if (!status)
        status = sqlite_file_begin(&s->file, error);
    if (status) {
        free(text);
        return status;
    }
    status = sqlite_file_number(&s->file, &found, error,
                                "SELECT 1 FROM tenants WHERE name = ? AND deleted_ms = 0", "t",
                                name);
    if (!status)
        status = realm_fail(error, REALM_INVALID, "there is a tenant '%s' already", name);
    else if (status == REALM_NOT_FOUND)
        status = sqlite_file_run(
            &s->file, error,
            "INSERT INTO tenants(name, created_ms, revision, settings) VALUES(?, ?, 0, ?)", "tit",
            name, clock_wall_ms(), text);
    if (!status) {
        *number = (uint32_t)sqlite3_last_insert_rowid(s->file.db);
        status = store_sqlite_touch(s, *number, error);
    }
    free(text);
    return sqlite_file_end(&s->file, status, error);
}

#define COLUMNS "number, name, created_ms, deleted_ms, revision, settings"

static realm_status read_settings(store_sqlite *s, sqlite3_stmt *row, arena *a, tenant_record *out,
                                  realm_error *error)
{
    json_t *object;
    const char *text = (const char *)sqlite3_column_text(row, 5);
    realm_status status = json_parse(&object, text ? text : "",
                                     (size_t)sqlite3_column_bytes(row, 5), MAX_SETTINGS_BYTES, 8,
                                     error);
    if (!status) {
        status = settings_read(&out->settings, a, object, error);
        json_decref(object);
    }
    if (status == REALM_INVALID || status == REALM_TOO_LARGE)
        status = realm_fail_in(error, REALM_CORRUPT, "'%s': settings of tenant '%s'", s->file.path,
                               out->name);
    out->has_settings = status == REALM_OK;
    return status;
}

static realm_status read_record(store_sqlite *s, sqlite3_stmt *row, arena *a,
                                int64_t known_revision, tenant_record *out, realm_error *error)
{
    *out = (tenant_record){
        .number = (uint32_t)sqlite3_column_int64(row, 0),
        .name = sqlite_file_text(row, 1, a),
        .created_ms = sqlite3_column_int64(row, 2),
        .deleted_ms = sqlite3_column_int64(row, 3),
        .revision = sqlite3_column_int64(row, 4),
        .settings = settings_default(),
    };
    if (!out->name)
        return realm_fail_memory(error, 0, "a tenant's name");
    int known = known_revision > 0 && out->revision <= known_revision;
    return known ? REALM_OK : read_settings(s, row, a, out, error);
}

realm_status store_tenant_find(tenant_store *base, arena *a, const char *name, tenant_record *out,
                               realm_error *error)
{
    store_sqlite *s = store_sqlite_of(base);
    sqlite3_stmt *statement;
    int row;
    realm_status status = sqlite_file_prepare(
        &s->file, &statement, error,
        "SELECT " COLUMNS " FROM tenants WHERE name = ? AND deleted_ms = 0", "t", name);
    if (status)
        return status;
    status = sqlite_file_next(&s->file, statement, &row, error);
    if (!status)
        status = row ? read_record(s, statement, a, 0, out, error)
                     : realm_fail(error, REALM_NOT_FOUND, "there is no tenant '%.80s'", name);
    sqlite3_finalize(statement);
    return status;
}

realm_status store_tenant_list(tenant_store *base, arena *a, int deleted, const store_page *page,
                               tenant_record **out, size_t *count, realm_error *error)
{
    store_sqlite *s = store_sqlite_of(base);
    sqlite3_stmt *statement;
    size_t capacity = 0;
    *out = NULL;
    *count = 0;
    realm_status status = sqlite_file_prepare(
        &s->file, &statement, error,
        "SELECT " COLUMNS " FROM tenants WHERE (deleted_ms = 0 OR ?) AND name > ? "
        "ORDER BY name, number LIMIT ?",
        "iti", (int64_t)deleted, page && page->after ? page->after : "",
        page ? (int64_t)page->limit : -1);
    for (int row = 1; !status;) {
        status = sqlite_file_next(&s->file, statement, &row, error);
        if (status || !row)
            break;
        tenant_record *record = store_sqlite_grow(a, (void **)out, count, &capacity,
                                                  sizeof *record);
        status = record
                     ? read_record(s, statement, a, page ? page->known_revision : 0, record, error)
                     : realm_fail_memory(error, 0, "the list of tenants");
    }
    sqlite3_finalize(statement);
    return status;
}

realm_status store_tenant_number(tenant_store *base, const char *name, uint32_t *number,
                                 realm_error *error)
{
    store_sqlite *s = store_sqlite_of(base);
    int64_t found;
    realm_status status = sqlite_file_number(
        &s->file, &found, error,
        "SELECT number FROM tenants WHERE name = ? ORDER BY number DESC LIMIT 1", "t", name);
    if (!status)
        *number = (uint32_t)found;
    return status == REALM_NOT_FOUND ? realm_fail(error, status, "there is no tenant '%.80s'", name)
                                     : status;
}

realm_status store_tenant_set(tenant_store *base, uint32_t number, const tenant_settings *settings,
                              realm_error *error)
{
    store_sqlite *s = store_sqlite_of(base);
    char *text;
    realm_status status = settings_text(settings, &text, error);
    if (status)
        return status;
    status = sqlite_file_begin(&s->file, error);
    if (!status) {
        status = store_sqlite_check_tenant(s, number, error);
        if (!status)
            status = sqlite_file_run(&s->file, error,
                                     "UPDATE tenants SET settings = ? WHERE number = ?", "ti", text,
                                     (int64_t)number);
        if (!status)
            status = store_sqlite_touch(s, number, error);
        status = sqlite_file_end(&s->file, status, error);
    }
    free(text);
    return status;
}

static realm_status delete_all_of(store_sqlite *s, uint32_t number, realm_error *error)
{
    int64_t now = clock_wall_ms(), tenant = number;
    realm_status status = sqlite_file_run(
        &s->file, error, "UPDATE keys SET revoked_ms = ? WHERE tenant = ? AND revoked_ms = 0", "ii",
        now, tenant);
    if (!status)
        status = sqlite_file_run(&s->file, error, "DELETE FROM versions WHERE tenant = ?", "i",
                                 tenant);
    if (!status)
        status = sqlite_file_run(&s->file, error, "DELETE FROM routes WHERE tenant = ?", "i",
                                 tenant);
    if (!status)
        status = store_program_sweep(s, error);
    if (!status)
        status = sqlite_file_run(&s->file, error,
                                 "UPDATE tenants SET deleted_ms = ? WHERE number = ?", "ii", now,
                                 tenant);
    return status;
}

realm_status store_tenant_delete(tenant_store *base, uint32_t number, realm_error *error)
{
    store_sqlite *s = store_sqlite_of(base);
    realm_status status = sqlite_file_begin(&s->file, error);
    if (status)
        return status;
    status = store_sqlite_check_tenant(s, number, error);
    if (!status)
        status = delete_all_of(s, number, error);
    if (!status)
        status = store_sqlite_touch(s, number, error);
    return sqlite_file_end(&s->file, status, error);
}
