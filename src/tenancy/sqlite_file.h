/* tenancy/sqlite_file.h: one SQLite database of ours: opened, brought up to date, asked.
 *
 * What all our databases share: write-ahead log with synchronous=FULL (a commit that has returned is on
 * the disk, a process that dies in the middle leaves the commit before), an application id (a file of
 * somebody else's is refused), a schema that grows by numbered steps, and errors as one sentence. One
 * thread at a time; other processes may use the file at the same time. */
#ifndef REALM_TENANCY_SQLITE_FILE_H
#define REALM_TENANCY_SQLITE_FILE_H

#include <sqlite3.h>

#include "base/arena.h"

typedef struct sqlite_file {
    sqlite3 *db;
    char *path;
} sqlite_file;

/* steps[i] brings a file of version i to i + 1; all that are missing run in one transaction. Steps that
 * were released are never changed: files out there have run them. */
typedef struct sqlite_schema {
    int32_t application_id;
    const char *const *steps;
    int count;
} sqlite_schema;

/* Opens or makes the file, readable by its owner alone, and brings it up to date.
 *   REALM_CORRUPT      damaged, empty, or no database, or somebody else's
 *   REALM_UNSUPPORTED  of a newer Realm
 *   REALM_BUSY         locked by another process for longer than we wait (5 s)
 *   REALM_IO           everything else about the disk */
realm_status sqlite_file_open(sqlite_file *f, const char *path, const sqlite_schema *schema,
                              realm_error *error);
void sqlite_file_close(sqlite_file *f);

/* The status and sentence of an SQLite result code. */
realm_status sqlite_file_fail(sqlite_file *f, int code, realm_error *error);

/* Prepares and binds. types has a letter for each ? in sql: i (int64_t), t (const char *, terminated; NULL
 * binds NULL), b (const void *, size_t). Texts and blobs are borrowed until the statement is finalized. */
realm_status sqlite_file_prepare(sqlite_file *f, sqlite3_stmt **out, realm_error *error,
                                 const char *sql, const char *types, ...);

/* One step: *row 1 if there is a row, 0 at the end. */
realm_status sqlite_file_next(sqlite_file *f, sqlite3_stmt *statement, int *row,
                              realm_error *error);

/* Prepares, binds and runs to the end. */
realm_status sqlite_file_run(sqlite_file *f, realm_error *error, const char *sql, const char *types,
                             ...);

/* The first column of the first row; REALM_NOT_FOUND without a row. */
realm_status sqlite_file_number(sqlite_file *f, int64_t *out, realm_error *error, const char *sql,
                                const char *types, ...);

/* How many rows the last change touched. */
int64_t sqlite_file_changed(sqlite_file *f);

/* A transaction that may write. sqlite_file_end commits if status is REALM_OK, and otherwise undoes
 * everything and returns status. */
realm_status sqlite_file_begin(sqlite_file *f, realm_error *error);
realm_status sqlite_file_end(sqlite_file *f, realm_status status, realm_error *error);

/* A column's text, copied and terminated; NULL if memory is out. Never NULL for SQL's NULL: "". */
const char *sqlite_file_text(sqlite3_stmt *statement, int column, arena *a);

#endif
