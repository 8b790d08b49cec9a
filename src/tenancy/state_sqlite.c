/* tenancy/state_sqlite.c: see state_sqlite.h. */
#include "tenancy/state_sqlite.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/condition.h"
#include "base/file.h"
#include "base/log.h"
#include "base/map.h"
#include "tenancy/sqlite_file.h"

#define MAX_KEY_BYTES 65536 /* as in memory */
#define RETRY_MS      500
#define PREFIX        sizeof(uint32_t)

static const char *const steps[] = {
    "CREATE TABLE state(tenant INTEGER NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL,"
    " PRIMARY KEY(tenant, key)) STRICT, WITHOUT ROWID",
};

static const sqlite_schema schema = {
    .application_id = 0x524C5331, /* "RLS1" */
    .steps = steps,
    .count = sizeof steps / sizeof *steps,
};

/* What is to be written: a value, or that there is none. */
typedef struct pending {
    int removed;
    size_t size;
    char bytes[];
} pending;

typedef struct usage {
    uint64_t bytes;
    int gone;   /* the tenant is forgotten */
    int erased; /* and its rows are no longer in the file */
} usage;

typedef struct waiter {
    struct waiter *next;
    uint64_t sequence; /* durable up to here, and done is called */
    void (*done)(void *context);
    void *context;
} waiter;

typedef struct state_sqlite {
    state_store base;
    pthread_t thread;
    int running;
    sqlite_file writer;    /* the thread's */
    pthread_mutex_t mutex; /* guards all that follows; not what writing holds (S2) */
    pthread_cond_t changed;
    sqlite_file reader;
    sqlite3_stmt *get, *sum;
    map active, writing; /* [tenant, key] -> pending */
    map usages;          /* [tenant] -> usage */
    uint64_t pending_bytes;
    uint64_t sequence, durable; /* of changes: made so far, in the file */
    uint64_t writing_sequence;  /* durable once writing is in the file */
    waiter *waiters;
    int closing, forgotten; /* forgotten: some usage is gone and not erased */
} state_sqlite;

/* ---- keys ---- */

static char *full_key(uint32_t tenant, const void *key, size_t size)
{
    char *full = malloc(PREFIX + size);
    if (full) {
        memcpy(full, &tenant, PREFIX);
        memcpy(full + PREFIX, size ? key : "", size);
    }
    return full;
}

static realm_status make_key(uint32_t tenant, const void *key, size_t size, char **full,
                             realm_error *error)
{
    *full = NULL;
    if (size > MAX_KEY_BYTES)
        return realm_fail(error, REALM_TOO_LARGE,
                          "a state key has %zu bytes, at most %d are allowed", size, MAX_KEY_BYTES);
    *full = full_key(tenant, key, size);
    return *full ? REALM_OK : realm_fail_memory(error, size, "a state key");
}

/* ---- looking, with the lock ---- */

/* The tenant's usage, counted in the file when it is first asked for; NULL and the reason if that fails. */
static usage *usage_of(state_sqlite *s, uint32_t tenant, realm_error *error)
{
    usage *u = map_get(&s->usages, &tenant, sizeof tenant);
    if (u)
        return u;
    int row;
    sqlite3_bind_int64(s->sum, 1, tenant);
    realm_status status = sqlite_file_next(&s->reader, s->sum, &row, error);
    uint64_t bytes = !status && row ? (uint64_t)sqlite3_column_int64(s->sum, 0) : 0;
    sqlite3_reset(s->sum);
    if (status)
        return NULL;
    u = calloc(1, sizeof *u);
    if (!u || map_put(&s->usages, &tenant, sizeof tenant, u, NULL)) {
        free(u);
        realm_fail_memory(error, sizeof *u, "a tenant's state");
        return NULL;
    }
    u->bytes = bytes;
    return u;
}

/* What a key has: S1. data is borrowed until the lock is let go or the reader is asked again. */
typedef struct found {
    int exists;
    const void *data;
    size_t size;
} found;

/* sqlite3_reset(s->get) when data is no longer needed. */
static realm_status look(state_sqlite *s, const char *full, size_t key_size, found *out,
                         realm_error *error)
{
    *out = (found){0};
    const pending *p = map_get(&s->active, full, PREFIX + key_size);
    if (!p)
        p = map_get(&s->writing, full, PREFIX + key_size);
    if (p) {
        if (!p->removed)
            *out = (found){1, p->bytes, p->size};
        return REALM_OK;
    }
    uint32_t tenant;
    int row;
    memcpy(&tenant, full, PREFIX);
    sqlite3_bind_int64(s->get, 1, tenant);
    int code = sqlite3_bind_blob64(s->get, 2, full + PREFIX, key_size, SQLITE_STATIC);
    if (code != SQLITE_OK)
        return sqlite_file_fail(&s->reader, code, error);
    realm_status status = sqlite_file_next(&s->reader, s->get, &row, error);
    if (!status && row)
        *out = (found){1, sqlite3_column_blob(s->get, 0), (size_t)sqlite3_column_bytes(s->get, 0)};
    return status;
}

/* ---- the table ---- */

static realm_status get_locked(state_sqlite *s, uint32_t tenant, const char *full, size_t key_size,
                               buffer *out, realm_error *error)
{
    found value;
    const usage *u = usage_of(s, tenant, error);
    if (!u)
        return error->status;
    if (u->gone)
        return realm_fail(error, REALM_NOT_FOUND, "there is no such key");
    realm_status status = look(s, full, key_size, &value, error);
    if (!status)
        status = value.exists ? buffer_add(out, value.size ? value.data : "", value.size)
                              : realm_fail(error, REALM_NOT_FOUND, "there is no such key");
    sqlite3_reset(s->get);
    return status;
}

static realm_status get(state_store *store, uint32_t tenant, const void *key, size_t key_size,
                        buffer *out, realm_error *error)
{
    state_sqlite *s = (state_sqlite *)store;
    char *full;
    realm_error own;
    error = error ? error : &own;
    realm_status status = make_key(tenant, key, key_size, &full, error);
    if (status)
        return status;
    pthread_mutex_lock(&s->mutex);
    status = get_locked(s, tenant, full, key_size, out, error);
    pthread_mutex_unlock(&s->mutex);
    free(full);
    return status;
}

/* Puts p, which is taken, in the place of what the key had. */
static realm_status change(state_sqlite *s, const char *full, size_t key_size, pending *p,
                           realm_error *error)
{
    void *old = NULL;
    if (map_put(&s->active, full, PREFIX + key_size, p, &old)) {
        free(p);
        return realm_fail_memory(error, key_size, "a state value");
    }
    if (old)
        s->pending_bytes -= ((pending *)old)->size + key_size;
    s->pending_bytes += p->size + key_size;
    s->sequence++;
    free(old);
    pthread_cond_signal(&s->changed);
    return REALM_OK;
}

static realm_status put_locked(state_sqlite *s, uint32_t tenant, const char *full, size_t key_size,
                               const void *value, size_t size, uint64_t limit_bytes,
                               realm_error *error)
{
    found before;
    usage *u = usage_of(s, tenant, error);
    if (!u)
        return error->status;
    if (u->gone)
        return realm_fail(error, REALM_NOT_FOUND, "the tenant is gone");
    realm_status status = look(s, full, key_size, &before, error);
    sqlite3_reset(s->get);
    if (status)
        return status;
    uint64_t without = u->bytes - (before.exists ? key_size + before.size : 0);
    uint64_t more = key_size + size;
    if (without > limit_bytes || more > limit_bytes - without)
        return realm_fail(error, REALM_QUOTA,
                          "the tenant's state would take more than %" PRIu64 " bytes", limit_bytes);
    if (s->pending_bytes + more > STATE_SQLITE_MAX_PENDING_BYTES)
        return realm_fail(error, REALM_BUSY, "state is put faster than the disk takes it");
    pending *p = malloc(sizeof *p + size);
    if (!p)
        return realm_fail_memory(error, size, "a state value");
    p->removed = 0;
    p->size = size;
    memcpy(p->bytes, size ? value : "", size);
    status = change(s, full, key_size, p, error);
    if (!status)
        u->bytes = without + more;
    return status;
}

static realm_status put(state_store *store, uint32_t tenant, const void *key, size_t key_size,
                        const void *value, size_t size, uint64_t limit_bytes, realm_error *error)
{
    state_sqlite *s = (state_sqlite *)store;
    char *full;
    realm_error own;
    error = error ? error : &own;
    realm_status status = make_key(tenant, key, key_size, &full, error);
    if (status)
        return status;
    pthread_mutex_lock(&s->mutex);
    status = put_locked(s, tenant, full, key_size, value, size, limit_bytes, error);
    pthread_mutex_unlock(&s->mutex);
    free(full);
    return status;
}

static realm_status remove_locked(state_sqlite *s, uint32_t tenant, const char *full,
                                  size_t key_size, int *existed, realm_error *error)
{
    found before;
    usage *u = usage_of(s, tenant, error);
    if (!u)
        return error->status;
    if (u->gone)
        return REALM_OK;
    realm_status status = look(s, full, key_size, &before, error);
    sqlite3_reset(s->get);
    if (status || !before.exists)
        return status;
    pending *p = calloc(1, sizeof *p);
    if (!p)
        return realm_fail_memory(error, sizeof *p, "the removal of a key");
    p->removed = 1;
    status = change(s, full, key_size, p, error);
    if (!status) {
        u->bytes -= key_size + before.size;
        *existed = 1;
    }
    return status;
}

static realm_status remove_key(state_store *store, uint32_t tenant, const void *key,
                               size_t key_size, int *existed, realm_error *error)
{
    state_sqlite *s = (state_sqlite *)store;
    char *full;
    realm_error own;
    error = error ? error : &own;
    *existed = 0;
    realm_status status = make_key(tenant, key, key_size, &full, error);
    if (status)
        return status;
    pthread_mutex_lock(&s->mutex);
    status = remove_locked(s, tenant, full, key_size, existed, error);
    pthread_mutex_unlock(&s->mutex);
    free(full);
    return status;
}

static uint64_t used_bytes(state_store *store, uint32_t tenant)
{
    state_sqlite *s = (state_sqlite *)store;
    pthread_mutex_lock(&s->mutex);
    const usage *u = usage_of(s, tenant, NULL);
    uint64_t bytes = u ? u->bytes : 0;
    pthread_mutex_unlock(&s->mutex);
    return bytes;
}

realm_status state_sqlite_forget(state_store *store, uint32_t tenant, realm_error *error)
{
    state_sqlite *s = (state_sqlite *)store;
    realm_error own;
    error = error ? error : &own;
    pthread_mutex_lock(&s->mutex);
    usage *u = usage_of(s, tenant, error);
    realm_status status = u ? REALM_OK : error->status;
    if (u && !u->gone) {
        /* What is in active is written and then erased with the rest. */
        u->gone = 1;
        u->bytes = 0;
        s->forgotten = 1;
        s->sequence++;
        pthread_cond_signal(&s->changed);
    }
    pthread_mutex_unlock(&s->mutex);
    return status;
}

realm_status state_sqlite_when_durable(state_store *store, void (*done)(void *context),
                                       void *context, realm_error *error)
{
    state_sqlite *s = (state_sqlite *)store;
    waiter *w = malloc(sizeof *w);
    if (!w)
        return realm_fail_memory(error, sizeof *w, "a wait for the disk");
    pthread_mutex_lock(&s->mutex);
    *w = (waiter){.next = s->waiters, .sequence = s->sequence, .done = done, .context = context};
    s->waiters = w;
    pthread_cond_signal(&s->changed);
    pthread_mutex_unlock(&s->mutex);
    return REALM_OK;
}

/* ---- the writer ---- */

static realm_status write_pending(state_sqlite *s, realm_error *error)
{
    size_t position = 0;
    realm_status status = REALM_OK;
    for (const map_slot *slot; !status && (slot = map_next(&s->writing, &position));) {
        const pending *p = slot->value;
        const void *key = slot->key + PREFIX;
        size_t key_size = slot->key_size - PREFIX;
        uint32_t tenant;
        memcpy(&tenant, slot->key, PREFIX);
        if (p->removed)
            status = sqlite_file_run(&s->writer, error,
                                     "DELETE FROM state WHERE tenant = ? AND key = ?", "ib",
                                     (int64_t)tenant, key, key_size);
        else
            status = sqlite_file_run(&s->writer, error,
                                     "INSERT INTO state(tenant, key, value) VALUES(?, ?, ?) "
                                     "ON CONFLICT DO UPDATE SET value = excluded.value",
                                     "ibb", (int64_t)tenant, key, key_size, (const void *)p->bytes,
                                     p->size);
    }
    return status;
}

static realm_status erase(state_sqlite *s, const uint32_t *tenants, size_t count,
                          realm_error *error)
{
    realm_status status = REALM_OK;
    for (size_t i = 0; i < count && !status; i++)
        status = sqlite_file_run(&s->writer, error, "DELETE FROM state WHERE tenant = ?", "i",
                                 (int64_t)tenants[i]);
    return status;
}

/* Those that are gone and still in the file; the caller's to free. With the lock. */
static uint32_t *list_forgotten(state_sqlite *s, size_t *count)
{
    *count = 0;
    if (!s->forgotten)
        return NULL;
    uint32_t *tenants = malloc(s->usages.count * sizeof *tenants);
    size_t position = 0;
    for (const map_slot *slot; tenants && (slot = map_next(&s->usages, &position));) {
        const usage *u = slot->value;
        if (u->gone && !u->erased)
            memcpy(&tenants[(*count)++], slot->key, sizeof *tenants);
    }
    return tenants;
}

static void free_values(map *m)
{
    size_t position = 0;
    for (const map_slot *slot; (slot = map_next(m, &position));)
        free(slot->value);
    map_release(m);
}

/* After a commit, with the lock. */
static void settle(state_sqlite *s, const uint32_t *erased, size_t count)
{
    size_t position = 0;
    for (const map_slot *slot; (slot = map_next(&s->writing, &position));)
        s->pending_bytes -= ((pending *)slot->value)->size + slot->key_size - PREFIX;
    free_values(&s->writing);
    map_init(&s->writing);
    for (size_t i = 0; i < count; i++)
        ((usage *)map_get(&s->usages, &erased[i], sizeof erased[i]))->erased = 1;
    s->durable = s->writing_sequence;
    position = 0;
    int left = 0; /* forgotten meanwhile */
    for (const map_slot *slot; s->forgotten && (slot = map_next(&s->usages, &position));) {
        const usage *u = slot->value;
        left |= u->gone && !u->erased;
    }
    s->forgotten = left;
}

/* One batch. Called and returns with the lock, lets go of it in between. What could not be written stays in writing
 * and is tried again before anything newer. Who is forgotten is only erased together with all that was put before, or
 * it would be written after. */
static realm_status write_batch(state_sqlite *s, realm_error *error)
{
    size_t count = 0;
    uint32_t *forgotten = NULL;
    if (!s->writing.count) {
        map swap = s->writing;
        s->writing = s->active;
        s->active = swap;
        s->writing_sequence = s->sequence;
        forgotten = list_forgotten(s, &count);
    }
    pthread_mutex_unlock(&s->mutex);
    realm_status status = sqlite_file_begin(&s->writer, error);
    if (!status) {
        status = write_pending(s, error);
        if (!status)
            status = erase(s, forgotten, count, error);
        status = sqlite_file_end(&s->writer, status, error);
    }
    pthread_mutex_lock(&s->mutex);
    if (!status)
        settle(s, forgotten, count);
    free(forgotten);
    return status;
}

/* With the lock, which it lets go of for each. */
static void tell_waiters(state_sqlite *s)
{
    for (waiter **at = &s->waiters; *at;) {
        waiter *w = *at;
        if (w->sequence > s->durable) {
            at = &w->next;
            continue;
        }
        *at = w->next;
        pthread_mutex_unlock(&s->mutex);
        w->done(w->context);
        free(w);
        pthread_mutex_lock(&s->mutex);
        at = &s->waiters; /* it may have changed */
    }
}

static void wait_ms(state_sqlite *s, int ms)
{
    uint64_t until_ns = clock_ns() + (uint64_t)ms * 1000000u;
    while (!s->closing && condition_wait(&s->changed, &s->mutex, until_ns)) {
    }
}

static void *run_writer(void *context)
{
    state_sqlite *s = context;
    realm_error error;
    pthread_mutex_lock(&s->mutex);
    for (;;) {
        tell_waiters(s);
        int dirty = s->durable < s->sequence || s->forgotten;
        if (!dirty && s->closing)
            break;
        if (!dirty) {
            /* A waiter that came while the lock was let go is told in the next turn. */
            if (!s->waiters)
                pthread_cond_wait(&s->changed, &s->mutex);
            continue;
        }
        if (write_batch(s, &error)) {
            LOG_E("state", "%s", error.message);
            if (s->closing)
                break;
            wait_ms(s, RETRY_MS);
        }
    }
    pthread_mutex_unlock(&s->mutex);
    return NULL;
}

/* ---- opening and closing ---- */

static void close_store(state_store *store)
{
    state_sqlite *s = (state_sqlite *)store;
    pthread_mutex_lock(&s->mutex);
    s->closing = 1;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mutex);
    if (s->running)
        pthread_join(s->thread, NULL);
    sqlite3_finalize(s->get);
    sqlite3_finalize(s->sum);
    sqlite_file_close(&s->reader);
    sqlite_file_close(&s->writer);
    free_values(&s->active);
    free_values(&s->writing);
    free_values(&s->usages);
    for (waiter *w; (w = s->waiters);) {
        s->waiters = w->next;
        free(w);
    }
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->mutex);
    free(s);
}

static const state_store_table table = {
    .kind = "sqlite",
    .close = close_store,
    .get = get,
    .put = put,
    .remove = remove_key,
    .used_bytes = used_bytes,
};

static realm_status open_files(state_sqlite *s, const char *path, realm_error *error)
{
    realm_status status = sqlite_file_open(&s->writer, path, &schema, error);
    if (!status)
        status = sqlite_file_open(&s->reader, path, &schema, error);
    if (!status)
        status = sqlite_file_prepare(&s->reader, &s->get, error,
                                     "SELECT value FROM state WHERE tenant = ? AND key = ?", "");
    if (!status)
        status = sqlite_file_prepare(
            &s->reader, &s->sum, error,
            "SELECT coalesce(sum(length(key) + length(value)), 0) FROM state WHERE tenant = ?", "");
    if (!status && pthread_create(&s->thread, NULL, run_writer, s) != 0)
        status = realm_fail(error, REALM_NO_MEMORY, "no thread for tenants' state");
    s->running = !status;
    return status;
}

realm_status state_sqlite_open(state_store **out, const char *folder, realm_error *error)
{
    char path[4096];
    int length = snprintf(path, sizeof path, "%s/state.db", folder);
    if (length < 0 || (size_t)length >= sizeof path)
        return realm_fail(error, REALM_INVALID, "the data folder's path is too long");
    realm_status status = file_make_folders(folder, error);
    if (status)
        return status;
    state_sqlite *s = calloc(1, sizeof *s);
    if (!s)
        return realm_fail_memory(error, sizeof *s, "a state store");
    s->base.table = &table;
    condition_init(&s->changed);
    pthread_mutex_init(&s->mutex, NULL);
    map_init(&s->active);
    map_init(&s->writing);
    map_init(&s->usages);
    status = open_files(s, path, error);
    if (status)
        close_store(&s->base);
    else
        *out = &s->base;
    return status;
}
