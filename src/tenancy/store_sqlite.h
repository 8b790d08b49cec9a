/* tenancy/store_sqlite.h: what the parts of the SQLite store share. Private to store_*.c and to tests of
 * migration. */
#ifndef REALM_TENANCY_STORE_SQLITE_H
#define REALM_TENANCY_STORE_SQLITE_H

#include "tenancy/sqlite_file.h"
#include "tenancy/store.h"

typedef struct store_sqlite {
    tenant_store base;
    sqlite_file file;
    sqlite3_stmt *generation; /* asked several times a second */
    sqlite3_stmt *usage;      /* asked for every row */
} store_sqlite;

/* store_schema.c */
extern const sqlite_schema store_sqlite_schema;

static inline store_sqlite *store_sqlite_of(tenant_store *s)
{
    return (store_sqlite *)s;
}

/* In a transaction that changed something: the store's generation grows, and with it the tenant's revision
 * (0: no tenant's). */
realm_status store_sqlite_touch(store_sqlite *s, uint32_t tenant, realm_error *error);

/* REALM_NOT_FOUND unless there is such a tenant and it is not deleted. */
realm_status store_sqlite_check_tenant(store_sqlite *s, uint32_t tenant, realm_error *error);

/* A list that grows while rows are read: the array doubles in the arena. Returns the next free place or NULL
 * if memory is out. */
void *store_sqlite_grow(arena *a, void **array, size_t *count, size_t *capacity, size_t size);

/* store_tenants.c, store_keys.c, store_programs.c, store_usage.c: see tenant_store_table. */
realm_status store_tenant_create(tenant_store *s, const char *name, const tenant_settings *settings,
                                 uint32_t *number, realm_error *error);
realm_status store_tenant_find(tenant_store *s, arena *a, const char *name, tenant_record *out,
                               realm_error *error);
realm_status store_tenant_list(tenant_store *s, arena *a, int deleted, const store_page *page,
                               tenant_record **out, size_t *count, realm_error *error);
realm_status store_tenant_number(tenant_store *s, const char *name, uint32_t *number,
                                 realm_error *error);
realm_status store_tenant_set(tenant_store *s, uint32_t number, const tenant_settings *settings,
                              realm_error *error);
realm_status store_tenant_delete(tenant_store *s, uint32_t number, realm_error *error);

realm_status store_key_add(tenant_store *s, const key_record *key, realm_error *error);
realm_status store_key_list(tenant_store *s, arena *a, int64_t tenant, const store_page *page,
                            key_record **out, size_t *count, realm_error *error);
realm_status store_key_revoke(tenant_store *s, int64_t tenant, const char *id, realm_error *error);
realm_status store_key_used(tenant_store *s, const key_use *uses, size_t count, realm_error *error);

realm_status store_program_deploy(tenant_store *s, const deployment *d, int32_t *version,
                                  realm_error *error);
realm_status store_program_route(tenant_store *s, uint32_t tenant, const char *name,
                                 const route_share *route, int32_t count, realm_error *error);
realm_status store_program_rollback(tenant_store *s, uint32_t tenant, const char *name, int32_t to,
                                    int32_t *version, realm_error *error);
realm_status store_program_delete(tenant_store *s, uint32_t tenant, const char *name,
                                  realm_error *error);
realm_status store_program_list(tenant_store *s, arena *a, int64_t tenant, const char *name,
                                const store_page *page, program_record **out, size_t *count,
                                realm_error *error);
realm_status store_program_bytes(tenant_store *s, arena *a, const char *hash, const void **bytes,
                                 size_t *size, realm_error *error);
/* In a transaction: modules that no version names are removed. */
realm_status store_program_sweep(store_sqlite *s, realm_error *error);

realm_status store_usage_add(tenant_store *s, const usage_row *const *rows, size_t count,
                             realm_error *error);
realm_status store_usage_read(tenant_store *s, const usage_filter *filter, unsigned by,
                              const usage_page *page,
                              void (*each)(void *context, const char *tenant, const usage_row *row),
                              void *context, realm_error *error);

#endif
