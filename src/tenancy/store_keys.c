/* tenancy/store_keys.c: the keys' part of the SQLite store. Scopes are kept as words, so that the table reads
 * without us. */
#include <string.h>

#include "base/clock.h"
#include "tenancy/store_sqlite.h"

/* A tenant's key may never reach other tenants, and the node's key has no tenant to work for. */
static realm_status check_scopes(const key_record *key, realm_error *error)
{
    if (key->tenant && key->scopes & API_SCOPES_OF_NODE)
        return realm_fail(
            error, REALM_INVALID,
            "the scopes admin and metrics are for keys of the node, which belong to no "
            "tenant");
    if (!key->tenant && (!key->scopes || key->scopes & ~API_SCOPES_OF_NODE))
        return realm_fail(
            error, REALM_INVALID,
            "a key that belongs to no tenant has the scopes admin or metrics and no other");
    return REALM_OK;
}

realm_status store_key_add(tenant_store *base, const key_record *key, realm_error *error)
{
    store_sqlite *s = store_sqlite_of(base);
    char scopes[API_SCOPES_TEXT_SIZE];
    realm_status status = check_scopes(key, error);
    if (!status)
        status = sqlite_file_begin(&s->file, error);
    if (status)
        return status;
    if (key->tenant)
        status = store_sqlite_check_tenant(s, key->tenant, error);
    if (!status)
        status = sqlite_file_run(
            &s->file, error,
            "INSERT INTO keys(id, tenant, name, scopes, created_ms, expires_ms, salt, hash) "
            "VALUES(?, ?, ?, ?, ?, ?, ?, ?)",
            "tittiibb", key->id, (int64_t)key->tenant, key->name ? key->name : "",
            api_scopes_text(key->scopes, scopes), key->created_ms, key->expires_ms,
            (const void *)key->salt, sizeof key->salt, (const void *)key->hash, sizeof key->hash);
    if (!status)
        status = store_sqlite_touch(s, key->tenant, error);
    return sqlite_file_end(&s->file, status, error);
}

static int copy_blob(sqlite3_stmt *row, int column, uint8_t *out, size_t size)
{
    if ((size_t)sqlite3_column_bytes(row, column) != size)
        return 0;
    memcpy(out, sqlite3_column_blob(row, column), size);
    return 1;
}

static realm_status read_key(store_sqlite *s, sqlite3_stmt *row, arena *a, key_record *out,
                             realm_error *error)
{
    const char *id = sqlite_file_text(row, 0, a), *scopes = sqlite_file_text(row, 3, a);
    *out = (key_record){
        .tenant = (uint32_t)sqlite3_column_int64(row, 1),
        .name = sqlite_file_text(row, 2, a),
        .created_ms = sqlite3_column_int64(row, 4),
        .expires_ms = sqlite3_column_int64(row, 5),
        .revoked_ms = sqlite3_column_int64(row, 6),
        .last_used_ms = sqlite3_column_int64(row, 7),
        .tenant_name = sqlite3_column_type(row, 10) == SQLITE_NULL ? NULL
                                                                   : sqlite_file_text(row, 10, a),
    };
    if (!id || !scopes || !out->name)
        return realm_fail_memory(error, 0, "a key's record");
    if (strlen(id) != API_KEY_ID_SIZE || api_scopes_parse(scopes, &out->scopes, NULL) ||
        !copy_blob(row, 8, out->salt, sizeof out->salt) ||
        !copy_blob(row, 9, out->hash, sizeof out->hash))
        return realm_fail(error, REALM_CORRUPT, "'%s': the record of key '%.20s' is damaged",
                          s->file.path, id);
    memcpy(out->id, id, API_KEY_ID_SIZE + 1);
    return REALM_OK;
}

/* When the key before the page was made: lists are ordered by that. One of another tenant's is none. */
static realm_status find_page(store_sqlite *s, int64_t tenant, const store_page *page,
                              int64_t *created_ms, realm_error *error)
{
    *created_ms = -1;
    if (!page || !page->after)
        return REALM_OK;
    realm_status status = sqlite_file_number(
        &s->file, created_ms, error,
        "SELECT created_ms FROM keys WHERE id = ?1 AND (?2 < 0 OR tenant = ?2)", "ti", page->after,
        tenant);
    return status == REALM_NOT_FOUND
               ? realm_fail(error, status, "there is no key '%.40s'", page->after)
               : status;
}

realm_status store_key_list(tenant_store *base, arena *a, int64_t tenant, const store_page *page,
                            key_record **out, size_t *count, realm_error *error)
{
    store_sqlite *s = store_sqlite_of(base);
    sqlite3_stmt *statement = NULL;
    size_t capacity = 0;
    int64_t created_ms;
    *out = NULL;
    *count = 0;
    realm_status status = find_page(s, tenant, page, &created_ms, error);
    if (!status)
        status = sqlite_file_prepare(
            &s->file, &statement, error,
            "SELECT id, tenant, keys.name, scopes, keys.created_ms, expires_ms, revoked_ms, "
            "last_used_ms, salt, hash, tenants.name FROM keys LEFT JOIN tenants ON number = tenant "
            "WHERE (?1 < 0 OR tenant = ?1) AND (keys.created_ms, id) > (?2, ?3) "
            "ORDER BY keys.created_ms, id LIMIT ?4",
            "iiti", tenant, created_ms, page && page->after ? page->after : "",
            page ? (int64_t)page->limit : -1);
    for (int row = 1; !status;) {
        status = sqlite_file_next(&s->file, statement, &row, error);
        if (status || !row)
            break;
        key_record *record = store_sqlite_grow(a, (void **)out, count, &capacity, sizeof *record);
        status = record ? read_key(s, statement, a, record, error)
                        : realm_fail_memory(error, 0, "the list of keys");
    }
    sqlite3_finalize(statement);
    return status;
}

realm_status store_key_revoke(tenant_store *base, int64_t tenant, const char *id,
                              realm_error *error)
{
    store_sqlite *s = store_sqlite_of(base);
    int64_t owner = 0;
    realm_status status = sqlite_file_begin(&s->file, error);
    if (status)
        return status;
    status = sqlite_file_number(&s->file, &owner, error,
                                "SELECT tenant FROM keys WHERE id = ?1 AND (?2 < 0 OR tenant = ?2)",
                                "ti", id, tenant);
    if (status == REALM_NOT_FOUND)
        realm_fail(error, status, "there is no key '%.40s'", id);
    if (!status)
        status = sqlite_file_run(&s->file, error,
                                 "UPDATE keys SET revoked_ms = ? WHERE id = ? AND revoked_ms = 0",
                                 "it", clock_wall_ms(), id);
    if (!status)
        status = store_sqlite_touch(s, (uint32_t)owner, error);
    return sqlite_file_end(&s->file, status, error);
}

realm_status store_key_used(tenant_store *base, const key_use *uses, size_t count,
                            realm_error *error)
{
    store_sqlite *s = store_sqlite_of(base);
    realm_status status = sqlite_file_begin(&s->file, error);
    if (status)
        return status;
    for (size_t i = 0; i < count && !status; i++)
        status = sqlite_file_run(&s->file, error,
                                 "UPDATE keys SET last_used_ms = max(last_used_ms, ?) WHERE id = ?",
                                 "it", uses[i].at_ms, uses[i].id);
    return sqlite_file_end(&s->file, status, error);
}
