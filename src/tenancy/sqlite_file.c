/* tenancy/sqlite_file.c: see sqlite_file.h. */
#include "tenancy/sqlite_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define BUSY_MS        5000
#define EMPTY_PAUSE_NS (10 * 1000000)
#define EMPTY_PAUSES   (BUSY_MS / 10)

/* At most so much is read to look for damage before we rely on a file; a larger one would make a restart
 * slow, and what is damaged in it is found when it is read. */
#define CHECK_BYTES (64 << 20)

/* ---- errors ---- */

static realm_status status_of(int code)
{
    switch (code & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED: return REALM_BUSY;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB: return REALM_CORRUPT;
    case SQLITE_NOMEM: return REALM_NO_MEMORY;
    case SQLITE_CONSTRAINT: return REALM_INVALID;
    case SQLITE_TOOBIG: return REALM_TOO_LARGE;
    case SQLITE_FULL:
    case SQLITE_IOERR:
    case SQLITE_READONLY:
    case SQLITE_CANTOPEN:
    case SQLITE_PERM: return REALM_IO;
    default: return REALM_INTERNAL;
    }
}

realm_status sqlite_file_fail(sqlite_file *f, int code, realm_error *error)
{
    realm_status status = status_of(code);
    const char *reason = f->db && sqlite3_errcode(f->db) == (code & 0xff) ? sqlite3_errmsg(f->db)
                                                                          : sqlite3_errstr(code);
    if (status == REALM_CORRUPT)
        return realm_fail(error, status,
                          "'%s' is damaged or no database (%s): put a backup in its place, see "
                          "docs/OPERATIONS.md",
                          f->path, reason);
    if (status == REALM_BUSY)
        return realm_fail(error, status, "'%s' is locked by another process (%s): try again",
                          f->path, reason);
    /* SQLite says "disk I/O error" of a full disk, and "unable to open" of one that is read only. */
    int system = f->db && status == REALM_IO ? sqlite3_system_errno(f->db) : 0;
    if ((code & 0xff) == SQLITE_CANTOPEN)
        system = access(f->path, W_OK) ? errno : 0;
    return system ? realm_fail(error, status, "'%s': %s (%s)", f->path, reason, strerror(system))
                  : realm_fail(error, status, "'%s': %s", f->path, reason);
}

/* ---- asking ---- */

static int bind_all(sqlite3_stmt *statement, const char *types, va_list values)
{
    int code = SQLITE_OK;
    for (int i = 1; code == SQLITE_OK && *types; types++, i++) {
        if (*types == 'i') {
            code = sqlite3_bind_int64(statement, i, va_arg(values, int64_t));
        } else if (*types == 't') {
            code = sqlite3_bind_text(statement, i, va_arg(values, const char *), -1, SQLITE_STATIC);
        } else {
            const void *bytes = va_arg(values, const void *);
            size_t size = va_arg(values, size_t);
            /* Not a NULL pointer, which SQLite takes for SQL's NULL. */
            code = sqlite3_bind_blob64(statement, i, size ? bytes : "", size, SQLITE_STATIC);
        }
    }
    return code;
}

static realm_status prepare(sqlite_file *f, sqlite3_stmt **out, realm_error *error, const char *sql,
                            const char *types, va_list values)
{
    *out = NULL;
    int code = sqlite3_prepare_v2(f->db, sql, -1, out, NULL);
    if (code == SQLITE_OK)
        code = bind_all(*out, types, values);
    if (code == SQLITE_OK)
        return REALM_OK;
    realm_status status = sqlite_file_fail(f, code, error);
    sqlite3_finalize(*out);
    *out = NULL;
    return status;
}

realm_status sqlite_file_prepare(sqlite_file *f, sqlite3_stmt **out, realm_error *error,
                                 const char *sql, const char *types, ...)
{
    va_list values;
    va_start(values, types);
    realm_status status = prepare(f, out, error, sql, types, values);
    va_end(values);
    return status;
}

realm_status sqlite_file_next(sqlite_file *f, sqlite3_stmt *statement, int *row, realm_error *error)
{
    int code = sqlite3_step(statement);
    *row = code == SQLITE_ROW;
    return code == SQLITE_ROW || code == SQLITE_DONE ? REALM_OK : sqlite_file_fail(f, code, error);
}

static realm_status run_to_end(sqlite_file *f, sqlite3_stmt *statement, realm_error *error)
{
    int row = 1;
    realm_status status = REALM_OK;
    while (!status && row)
        status = sqlite_file_next(f, statement, &row, error);
    sqlite3_finalize(statement);
    return status;
}

realm_status sqlite_file_run(sqlite_file *f, realm_error *error, const char *sql, const char *types,
                             ...)
{
    sqlite3_stmt *statement;
    va_list values;
    va_start(values, types);
    realm_status status = prepare(f, &statement, error, sql, types, values);
    va_end(values);
    return status ? status : run_to_end(f, statement, error);
}

realm_status sqlite_file_number(sqlite_file *f, int64_t *out, realm_error *error, const char *sql,
                                const char *types, ...)
{
    sqlite3_stmt *statement;
    int row = 0;
    va_list values;
    va_start(values, types);
    realm_status status = prepare(f, &statement, error, sql, types, values);
    va_end(values);
    if (status)
        return status;
    status = sqlite_file_next(f, statement, &row, error);
    if (!status && row)
        *out = sqlite3_column_int64(statement, 0);
    else if (!status)
        status = realm_fail(error, REALM_NOT_FOUND, "there is no such row");
    sqlite3_finalize(statement);
    return status;
}

int64_t sqlite_file_changed(sqlite_file *f)
{
    return sqlite3_changes64(f->db);
}

realm_status sqlite_file_begin(sqlite_file *f, realm_error *error)
{
    /* IMMEDIATE: waits for the lock here, where waiting is possible, and not in the middle. */
    return sqlite_file_run(f, error, "BEGIN IMMEDIATE", "");
}

realm_status sqlite_file_end(sqlite_file *f, realm_status status, realm_error *error)
{
    if (!status)
        status = sqlite_file_run(f, error, "COMMIT", "");
    if (status && !sqlite3_get_autocommit(f->db))
        sqlite_file_run(f, NULL, "ROLLBACK", "");
    return status;
}

const char *sqlite_file_text(sqlite3_stmt *statement, int column, arena *a)
{
    const unsigned char *text = sqlite3_column_text(statement, column);
    return arena_copy(a, text ? (const char *)text : "",
                      text ? (size_t)sqlite3_column_bytes(statement, column) : 0);
}

/* ---- opening ---- */

/* To SQLite an empty file is a new database: what a full disk or a copy that was cut off has left would begin anew,
 * without tenants and keys. Whoever makes one at this moment has it filled soon. */
static realm_status refuse_empty(const char *path, realm_error *error)
{
    const struct timespec pause = {.tv_nsec = EMPTY_PAUSE_NS};
    struct stat info;
    for (int i = 0; stat(path, &info) == 0 && S_ISREG(info.st_mode) && info.st_size == 0; i++) {
        if (i == EMPTY_PAUSES || time(NULL) - info.st_mtime > BUSY_MS / 1000)
            return realm_fail(error, REALM_CORRUPT,
                              "'%s' is empty, as after a full disk or a copy that was cut off: put "
                              "a backup in its place, see docs/OPERATIONS.md, or remove it if its "
                              "folder is to begin anew",
                              path);
        nanosleep(&pause, NULL);
    }
    return REALM_OK;
}

/* SQLite would make it as the umask says; its log and shared memory then get the same mode. A file that is there is
 * not touched: closing any descriptor of it would take away the locks that another connection of this process
 * holds, and other processes would see an older database. */
static realm_status make_private(const char *path, realm_error *error)
{
    int descriptor = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (descriptor < 0 && errno == EEXIST)
        return refuse_empty(path, error);
    if (descriptor < 0)
        return realm_fail(error, REALM_IO, "cannot open '%s': %s", path, strerror(errno));
    close(descriptor);
    return REALM_OK;
}

static realm_status refuse_foreign(sqlite_file *f, const sqlite_schema *schema, int64_t *version,
                                   realm_error *error)
{
    int64_t id = 0, tables = 0;
    realm_status status = sqlite_file_number(f, &id, error, "PRAGMA application_id", "");
    if (!status)
        status = sqlite_file_number(f, version, error, "PRAGMA user_version", "");
    if (!status)
        status = sqlite_file_number(f, &tables, error, "SELECT count(*) FROM sqlite_schema", "");
    if (status)
        return status;
    if (id != schema->application_id && (id || *version || tables))
        return realm_fail(error, REALM_CORRUPT,
                          "'%s' is a database, but not one of Realm's of this kind", f->path);
    if (*version > schema->count)
        return realm_fail(error, REALM_UNSUPPORTED,
                          "'%s' has version %" PRId64
                          ", this Realm knows up to %d: use a newer Realm",
                          f->path, *version, schema->count);
    return REALM_OK;
}

/* quick_check answers one row "ok", or rows with what is wrong. */
static realm_status look_for_damage(sqlite_file *f, realm_error *error)
{
    struct stat info;
    if (stat(f->path, &info) != 0 || info.st_size > CHECK_BYTES)
        return REALM_OK;
    sqlite3_stmt *statement;
    int row = 0;
    realm_status status = sqlite_file_prepare(f, &statement, error, "PRAGMA quick_check(1)", "");
    if (status)
        return status;
    status = sqlite_file_next(f, statement, &row, error);
    const char *answer = row ? (const char *)sqlite3_column_text(statement, 0) : NULL;
    if (!status && (!answer || strcmp(answer, "ok") != 0))
        status = realm_fail(error, REALM_CORRUPT,
                            "'%s' is damaged (%.200s): put a backup in its place, see "
                            "docs/OPERATIONS.md",
                            f->path, answer ? answer : "no answer");
    sqlite3_finalize(statement);
    return status;
}

static realm_status run_script(sqlite_file *f, const char *sql, realm_error *error)
{
    int code = sqlite3_exec(f->db, sql, NULL, NULL, NULL);
    return code == SQLITE_OK ? REALM_OK : sqlite_file_fail(f, code, error);
}

/* Under the write lock, so that two processes that open a new file at once make it once. */
static realm_status bring_up_to_date(sqlite_file *f, const sqlite_schema *schema,
                                     realm_error *error)
{
    int64_t version = 0;
    char mark[96];
    realm_status status = sqlite_file_begin(f, error);
    if (status)
        return status;
    status = sqlite_file_number(f, &version, error, "PRAGMA user_version", "");
    for (; !status && version < schema->count; version++)
        status = run_script(f, schema->steps[version], error);
    snprintf(mark, sizeof mark, "PRAGMA application_id = %" PRId32 "; PRAGMA user_version = %d",
             schema->application_id, schema->count);
    if (!status)
        status = run_script(f, mark, error);
    return sqlite_file_end(f, status, error);
}

static realm_status set_up(sqlite_file *f, const sqlite_schema *schema, realm_error *error)
{
    int64_t version = 0;
    sqlite3_extended_result_codes(f->db, 1);
    sqlite3_busy_timeout(f->db, BUSY_MS);
    /* A file that was tampered with may not run anything through its schema. */
    sqlite3_db_config(f->db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    sqlite3_db_config(f->db, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
    realm_status status = refuse_foreign(f, schema, &version, error);
    if (!status)
        status = run_script(f,
                            "PRAGMA journal_mode = WAL;"
                            "PRAGMA synchronous = FULL;"
                            "PRAGMA foreign_keys = ON;"
                            "PRAGMA cell_size_check = ON",
                            error);
    if (!status)
        status = look_for_damage(f, error);
    if (!status && version < schema->count)
        status = bring_up_to_date(f, schema, error);
    return status;
}

realm_status sqlite_file_open(sqlite_file *f, const char *path, const sqlite_schema *schema,
                              realm_error *error)
{
    *f = (sqlite_file){.path = strdup(path)};
    if (!f->path)
        return realm_fail_memory(error, strlen(path), "a path");
    realm_status status = make_private(path, error);
    if (!status) {
        int code = sqlite3_open_v2(path, &f->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL);
        status = code == SQLITE_OK ? set_up(f, schema, error) : sqlite_file_fail(f, code, error);
    }
    if (status)
        sqlite_file_close(f);
    return status;
}

void sqlite_file_close(sqlite_file *f)
{
    /* Statements are finalized by whoever prepared them; _v2 would wait for those that are not. */
    sqlite3_close(f->db);
    free(f->path);
    *f = (sqlite_file){0};
}
