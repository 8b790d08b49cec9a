/* tenancy/store.h: where tenants, keys, programs and usage are kept, behind one table.
 *
 * SQLite in a folder is the first kind (store_sqlite.c); a cluster's database would be another file.
 * Functions block and may take milliseconds: they are for one thread at a time, a worker (tenancy.h runs
 * jobs on its own) or a command. Each that changes something is one transaction: when it returns REALM_OK
 * it is durable, and when the process dies before, nothing of it is there. Results live in the arena given.
 * Other processes may change the same store meanwhile; `generation` tells.
 *
 * Common errors of all: REALM_IO (the disk), REALM_CORRUPT (the file), REALM_BUSY (another process holds
 * the store for longer than we wait), REALM_NO_MEMORY. */
#ifndef REALM_TENANCY_STORE_H
#define REALM_TENANCY_STORE_H

#include "tenancy/api_key.h"
#include "tenancy/settings.h"
#include "tenancy/usage.h"

typedef struct tenant_store tenant_store;

/* A part of a list: what comes behind one of its items, and how much of it. Lists do not move while they are read:
 * an item that is made or goes meanwhile hides none of the others. */
typedef struct store_page {
    const char *after; /* a tenant's name, a key's id, a program's name; NULL: from the beginning */
    uint32_t after_tenant; /* of programs: whose */
    int32_t limit;         /* at most so many; -1: all */
    int64_t
        known_revision; /* of tenants: one with no later revision comes without its settings, whose reading
                               costs more than all else; 0: all have them */
} store_page;

typedef struct tenant_record {
    uint32_t number; /* from 1, never used twice */
    const char *name;
    int64_t created_ms;
    int64_t deleted_ms; /* 0: it is there */
    int64_t revision;   /* grows with every change of it or of its programs */
    int has_settings;   /* 0: left out, see store_page */
    tenant_settings settings;
} tenant_record;

typedef struct key_record {
    char id[API_KEY_ID_SIZE + 1];
    uint32_t tenant; /* 0: the node's */
    const char *name;
    const char *tenant_name; /* of lists: also a deleted one's; NULL: the node's */
    unsigned scopes;
    int64_t created_ms, expires_ms, revoked_ms, last_used_ms; /* 0: never */
    uint8_t salt[API_KEY_SALT_SIZE];
    uint8_t hash[API_KEY_HASH_SIZE];
} key_record;

typedef struct key_use {
    char id[API_KEY_ID_SIZE + 1];
    int64_t at_ms;
} key_use;

#define PROGRAM_HASH_SIZE 64    /* SHA-256, hexadecimal */
#define ROUTE_WHOLE       10000 /* shares are in hundredths of a percent */
#define ROUTE_MAX_SHARES  8

#define PROGRAM_KEPT_VERSIONS 64

typedef struct program_version {
    int32_t version; /* from 1, within tenant and name */
    char hash[PROGRAM_HASH_SIZE + 1];
    uint64_t size;
    int64_t created_ms;
    const char *note;
} program_version;

typedef struct route_share {
    int32_t version;
    int32_t share; /* of ROUTE_WHOLE */
} route_share;

typedef struct program_record {
    uint32_t tenant;
    const char *name, *tenant_name;
    const program_version *versions; /* [n_versions], oldest first */
    int32_t n_versions;
    route_share
        route[ROUTE_MAX_SHARES]; /* who serves; shares sum to ROUTE_WHOLE. The largest first */
    int32_t n_route;
    int64_t routed_ms;
} program_record;

typedef struct deployment {
    uint32_t tenant;
    const char *name;
    const void *bytes; /* the module */
    size_t size;
    const char *note; /* NULL: "" */
    int32_t share; /* of requests for the new version; ROUTE_WHOLE: all. Less: the version that had
                             most keeps the rest */
    uint64_t limit_bytes; /* all versions of the tenant together */
} deployment;

typedef struct tenant_store_table {
    const char *kind; /* "sqlite" */
    void (*close)(tenant_store *s);

    /* ---- tenants ---- */
    /*   REALM_INVALID  the name is no name, or there is a tenant with it */
    realm_status (*tenant_create)(tenant_store *s, const char *name,
                                  const tenant_settings *settings, uint32_t *number,
                                  realm_error *error);
    /*   REALM_NOT_FOUND  also if it is deleted */
    realm_status (*tenant_find)(tenant_store *s, arena *a, const char *name, tenant_record *out,
                                realm_error *error);
    /* With deleted: those too. Ordered by name. page NULL, here and below: all. */
    realm_status (*tenant_list)(tenant_store *s, arena *a, int deleted, const store_page *page,
                                tenant_record **out, size_t *count, realm_error *error);
    /* Of the tenant that has the name or had it last.
     *   REALM_NOT_FOUND */
    realm_status (*tenant_number)(tenant_store *s, const char *name, uint32_t *number,
                                  realm_error *error);
    realm_status (*tenant_set)(tenant_store *s, uint32_t number, const tenant_settings *settings,
                               realm_error *error);
    /* Its keys are revoked and its programs gone with it; its usage stays. */
    realm_status (*tenant_delete)(tenant_store *s, uint32_t number, realm_error *error);

    /* ---- keys ---- */
    /* Times and hash as in the record. REALM_NOT_FOUND: no such tenant. REALM_INVALID: a scope of the
     * node's in a tenant's key, or another one in the node's. */
    realm_status (*key_add)(tenant_store *s, const key_record *key, realm_error *error);
    /* tenant STORE_ALL: everybody's, revoked ones included. Ordered by creation.
     *   REALM_NOT_FOUND  the page's key */
    realm_status (*key_list)(tenant_store *s, arena *a, int64_t tenant, const store_page *page,
                             key_record **out, size_t *count, realm_error *error);
    /*   REALM_NOT_FOUND  no such key, or not this tenant's (STORE_ALL: any). Again is no error. */
    realm_status (*key_revoke)(tenant_store *s, int64_t tenant, const char *id, realm_error *error);
    realm_status (*key_used)(tenant_store *s, const key_use *uses, size_t count,
                             realm_error *error);

    /* ---- programs ---- */
    /* Keeps the module, gives it the next version and switches, in one step. *version may be NULL. The bytes
     * of equal modules are kept once. Versions that are neither among the newest PROGRAM_KEPT_VERSIONS nor
     * serving are removed.
     *   REALM_QUOTA    limit_bytes
     *   REALM_INVALID  the name, or the share */
    realm_status (*program_deploy)(tenant_store *s, const deployment *d, int32_t *version,
                                   realm_error *error);
    /* Who serves from now on. REALM_INVALID: shares do not sum up, or a version twice; REALM_NOT_FOUND. */
    realm_status (*program_route)(tenant_store *s, uint32_t tenant, const char *name,
                                  const route_share *route, int32_t count, realm_error *error);
    /* Back to `to` for everybody; 0: to the newest version before the one that has most, among those that
     * once had most. *version (may be NULL): which it is.
     *   REALM_NOT_FOUND  there is none */
    realm_status (*program_rollback)(tenant_store *s, uint32_t tenant, const char *name, int32_t to,
                                     int32_t *version, realm_error *error);
    /*   REALM_NOT_FOUND */
    realm_status (*program_delete)(tenant_store *s, uint32_t tenant, const char *name,
                                   realm_error *error);
    /* Ordered by tenant and name. name: only this one; NULL: all. */
    realm_status (*program_list)(tenant_store *s, arena *a, int64_t tenant, const char *name,
                                 const store_page *page, program_record **out, size_t *count,
                                 realm_error *error);
    /* The module's bytes, checked against the hash: REALM_CORRUPT if they changed on disk. */
    realm_status (*program_bytes)(tenant_store *s, arena *a, const char *hash, const void **bytes,
                                  size_t *size, realm_error *error);

    /* ---- usage ---- */
    /* Adds all rows in one transaction. */
    realm_status (*usage_add)(tenant_store *s, const usage_row *const *rows, size_t count,
                              realm_error *error);
    /* Calls each for every row of the filter, summed over what `by` leaves out, ordered by day, tenant, key,
     * model, program, version. tenant: its name, or a deleted one's last. page NULL: all. */
    realm_status (*usage_read)(tenant_store *s, const usage_filter *filter, unsigned by,
                               const usage_page *page,
                               void (*each)(void *context, const char *tenant,
                                            const usage_row *row),
                               void *context, realm_error *error);

    /* ---- changes ---- */
    /* A number that grows whenever anything but usage or last use changed, whoever changed it. Cheap:
     * asked several times a second. */
    realm_status (*generation)(tenant_store *s, int64_t *generation, realm_error *error);
} tenant_store_table;

#define STORE_ALL (-1)

struct tenant_store {
    const tenant_store_table *table;
};

/* The store in a folder (realm.db, blobs/), which is made for the owner alone if it is not there.
 *   REALM_CORRUPT      realm.db is damaged, empty or no database of ours, or it is missing beside tenants' state; the
 *                      sentence says what to do
 *   REALM_UNSUPPORTED  it is of a newer Realm
 *   REALM_IO           the folder cannot be made or written */
realm_status store_sqlite_open(tenant_store **out, const char *folder, realm_error *error);

/* Which version serves a request: by the shares, from a hash of the program's name and of id, which may be
 * the request's, or a user's to keep users where they are. The same for the same id, on every node. */
int32_t store_route_choose(const route_share *route, int32_t count, const char *name,
                           const void *id, size_t id_size);

#endif
