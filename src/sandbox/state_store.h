/* sandbox/state_store.h: what a tenant's programs remember between requests.
 *
 * A store is one struct behind one table, so that memory, SQLite or a cluster are one file each.
 * It is called on sandbox threads and engines', several at once, and may neither block for long nor call back:
 * a store that writes to disk does so behind the caller's back. Tenants are numbers; a store
 * never shows one tenant's keys to another. */
#ifndef REALM_SANDBOX_STATE_STORE_H
#define REALM_SANDBOX_STATE_STORE_H

#include "base/buffer.h"

typedef struct state_store state_store;

typedef struct state_store_table {
    const char *kind; /* "memory" */
    void (*close)(state_store *s);

    /* Appends the value to out (which has a cap).
     *   REALM_NOT_FOUND  no such key
     *   REALM_TOO_LARGE  past out's cap */
    realm_status (*get)(state_store *s, uint32_t tenant, const void *key, size_t key_size,
                        buffer *out, realm_error *error);

    /* Adds or replaces; key and value are copied.
     *   REALM_QUOTA      keys and values of the tenant would take more than limit_bytes together;
     *                    what was there stays */
    realm_status (*put)(state_store *s, uint32_t tenant, const void *key, size_t key_size,
                        const void *value, size_t value_size, uint64_t limit_bytes,
                        realm_error *error);

    /* *existed: 1 if there was such a key. */
    realm_status (*remove)(state_store *s, uint32_t tenant, const void *key, size_t key_size,
                           int *existed, realm_error *error);

    /* Bytes of keys and values the tenant has stored. */
    uint64_t (*used_bytes)(state_store *s, uint32_t tenant);
} state_store_table;

struct state_store {
    const state_store_table *table;
};

/* In memory, gone with the process. Closed with table->close when no tenant uses it. */
realm_status state_memory_open(state_store **out, realm_error *error);

#endif
