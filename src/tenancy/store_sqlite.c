/* tenancy/store_sqlite.c: the tenant store in a folder: realm.db. The parts are store_tenants.c,
 * store_keys.c, store_programs.c and store_usage.c; the tables are in store_schema.c. */
#include "tenancy/store_sqlite.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"

realm_status store_sqlite_touch(store_sqlite *s, uint32_t tenant, realm_error *error)
{
    realm_status status = sqlite_file_run(&s->file, error,
                                          "UPDATE changes SET generation = generation + 1", "");
    if (!status && tenant)
        status = sqlite_file_run(&s->file, error,
                                 "UPDATE tenants SET revision = (SELECT generation FROM changes) "
                                 "WHERE number = ?",
                                 "i", (int64_t)tenant);
    return status;
}

realm_status store_sqlite_check_tenant(store_sqlite *s, uint32_t tenant, realm_error *error)
{
    int64_t found;
    realm_status status = sqlite_file_number(
        &s->file, &found, error, "SELECT 1 FROM tenants WHERE number = ? AND deleted_ms = 0", "i",
        (int64_t)tenant);
    return status == REALM_NOT_FOUND ? realm_fail(error, status, "there is no such tenant")
                                     : status;
}

void *store_sqlite_grow(arena *a, void **array, size_t *count, size_t *capacity, size_t size)
{
    if (*count == *capacity) {
        size_t more = *capacity ? *capacity * 2 : 16;
        char *larger = arena_take_array(a, more, size);
        if (!larger)
            return NULL;
        if (*count)
            memcpy(larger, *array, *count * size);
        *array = larger;
        *capacity = more;
    }
    return (char *)*array + size * (*count)++;
}

static realm_status generation(tenant_store *base, int64_t *out, realm_error *error)
{
    store_sqlite *s = store_sqlite_of(base);
    int row;
    realm_status status = sqlite_file_next(&s->file, s->generation, &row, error);
    if (!status && !row)
        status = realm_fail(error, REALM_CORRUPT, "'%s' has lost its generation", s->file.path);
    if (!status)
        *out = sqlite3_column_int64(s->generation, 0);
    sqlite3_reset(s->generation);
    return status;
}

static void close_store(tenant_store *base)
{
    store_sqlite *s = store_sqlite_of(base);
    sqlite3_finalize(s->generation);
    sqlite3_finalize(s->usage);
    sqlite_file_close(&s->file);
    free(s);
}

static const tenant_store_table table = {
    .kind = "sqlite",
    .close = close_store,
    .tenant_create = store_tenant_create,
    .tenant_find = store_tenant_find,
    .tenant_list = store_tenant_list,
    .tenant_number = store_tenant_number,
    .tenant_set = store_tenant_set,
    .tenant_delete = store_tenant_delete,
    .key_add = store_key_add,
    .key_list = store_key_list,
    .key_revoke = store_key_revoke,
    .key_used = store_key_used,
    .program_deploy = store_program_deploy,
    .program_route = store_program_route,
    .program_rollback = store_program_rollback,
    .program_delete = store_program_delete,
    .program_list = store_program_list,
    .program_bytes = store_program_bytes,
    .usage_add = store_usage_add,
    .usage_read = store_usage_read,
    .generation = generation,
};

/* State belongs to tenants' numbers, which would begin anew: a new tenant would find what another has kept. */
static realm_status refuse_state_alone(const char *path, const char *folder, realm_error *error)
{
    char state[4096];
    snprintf(state, sizeof state, "%s/state.db", folder);
    if (access(path, F_OK) == 0 || access(state, F_OK) != 0)
        return REALM_OK;
    return realm_fail(error, REALM_CORRUPT,
                      "'%s' is missing, and '%s' belongs to it: put a backup of it in its place, "
                      "see docs/OPERATIONS.md, or remove the other too if the folder is to begin "
                      "anew",
                      path, state);
}

realm_status store_sqlite_open(tenant_store **out, const char *folder, realm_error *error)
{
    char path[4096];
    int length = snprintf(path, sizeof path, "%s/realm.db", folder);
    if (length < 0 || (size_t)length >= sizeof path)
        return realm_fail(error, REALM_INVALID, "the data folder's path is too long");
    realm_status status = file_make_folders(folder, error);
    if (!status)
        status = refuse_state_alone(path, folder, error);
    if (status)
        return status;
    store_sqlite *s = calloc(1, sizeof *s);
    if (!s)
        return realm_fail_memory(error, sizeof *s, "a store");
    s->base.table = &table;
    status = sqlite_file_open(&s->file, path, &store_sqlite_schema, error);
    if (!status)
        status = sqlite_file_prepare(&s->file, &s->generation, error,
                                     "SELECT generation FROM changes", "");
    if (status) {
        close_store(&s->base);
        return status;
    }
    *out = &s->base;
    return REALM_OK;
}
