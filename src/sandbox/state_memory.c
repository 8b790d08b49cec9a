/* sandbox/state_memory.c: a state store in memory. One map for all tenants, whose keys begin with
 * the tenant's number, under one lock: values are small and calls take a microsecond. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/map.h"
#include "sandbox/state_store.h"

typedef struct value {
    size_t size;
    char bytes[];
} value;

typedef struct usage {
    uint64_t bytes;
} usage;

typedef struct state_memory {
    state_store base;
    pthread_mutex_t mutex;
    map values; /* [tenant number, key] -> value */
    map usages; /* [tenant number] -> usage */
} state_memory;

#define PREFIX sizeof(uint32_t)

/* Keys longer than this would be values; also keeps full_key on the heap small. */
#define MAX_KEY_BYTES 65536

static char *full_key(uint32_t tenant, const void *key, size_t size)
{
    char *full = malloc(PREFIX + size);
    if (full) {
        memcpy(full, &tenant, PREFIX);
        memcpy(full + PREFIX, size ? key : "", size);
    }
    return full;
}

static realm_status check_key(size_t size, realm_error *error)
{
    return size <= MAX_KEY_BYTES ? REALM_OK
                                 : realm_fail(error, REALM_TOO_LARGE,
                                              "a state key has %zu bytes, at most %d are allowed",
                                              size, MAX_KEY_BYTES);
}

static realm_status get(state_store *store, uint32_t tenant, const void *key, size_t key_size,
                        buffer *out, realm_error *error)
{
    state_memory *s = (state_memory *)store;
    realm_status status = check_key(key_size, error);
    char *full = status == REALM_OK ? full_key(tenant, key, key_size) : NULL;
    if (!full)
        return status != REALM_OK ? status : realm_fail_memory(error, key_size, "a state key");
    pthread_mutex_lock(&s->mutex);
    const value *v = map_get(&s->values, full, PREFIX + key_size);
    status = v ? buffer_add(out, v->bytes, v->size)
               : realm_fail(error, REALM_NOT_FOUND, "there is no such key");
    pthread_mutex_unlock(&s->mutex);
    free(full);
    return status;
}

/* The tenant's usage, made when it is first needed; NULL if memory is out. */
static usage *usage_of(state_memory *s, uint32_t tenant)
{
    usage *u = map_get(&s->usages, &tenant, sizeof tenant);
    if (!u && (u = calloc(1, sizeof *u)) &&
        map_put(&s->usages, &tenant, sizeof tenant, u, NULL) != REALM_OK) {
        free(u);
        u = NULL;
    }
    return u;
}

static realm_status put_locked(state_memory *s, uint32_t tenant, const char *full, size_t key_size,
                               value *v, uint64_t limit_bytes, realm_error *error)
{
    usage *u = usage_of(s, tenant);
    if (!u)
        return realm_fail_memory(error, sizeof *u, "a tenant's state");
    const value *before = map_get(&s->values, full, PREFIX + key_size);
    uint64_t without = u->bytes - (before ? key_size + before->size : 0);
    uint64_t more = key_size + v->size;
    if (without > limit_bytes || more > limit_bytes - without)
        return realm_fail(error, REALM_QUOTA,
                          "the tenant's state would take more than %" PRIu64 " bytes", limit_bytes);
    void *old = NULL;
    if (map_put(&s->values, full, PREFIX + key_size, v, &old) != REALM_OK)
        return realm_fail_memory(error, v->size, "a state value");
    free(old);
    u->bytes = without + more;
    return REALM_OK;
}

static realm_status put(state_store *store, uint32_t tenant, const void *key, size_t key_size,
                        const void *bytes, size_t size, uint64_t limit_bytes, realm_error *error)
{
    state_memory *s = (state_memory *)store;
    realm_status status = check_key(key_size, error);
    if (status != REALM_OK)
        return status;
    if (size > limit_bytes)
        return realm_fail(error, REALM_QUOTA,
                          "a state value has %zu bytes, the tenant's limit is %" PRIu64, size,
                          limit_bytes);
    char *full = full_key(tenant, key, key_size);
    value *v = malloc(sizeof *v + size);
    if (!full || !v) {
        free(full);
        free(v);
        return realm_fail_memory(error, size, "a state value");
    }
    v->size = size;
    memcpy(v->bytes, size ? bytes : "", size);
    pthread_mutex_lock(&s->mutex);
    status = put_locked(s, tenant, full, key_size, v, limit_bytes, error);
    pthread_mutex_unlock(&s->mutex);
    if (status != REALM_OK)
        free(v);
    free(full);
    return status;
}

static realm_status remove_key(state_store *store, uint32_t tenant, const void *key,
                               size_t key_size, int *existed, realm_error *error)
{
    state_memory *s = (state_memory *)store;
    *existed = 0;
    realm_status status = check_key(key_size, error);
    char *full = status == REALM_OK ? full_key(tenant, key, key_size) : NULL;
    if (!full)
        return status != REALM_OK ? status : realm_fail_memory(error, key_size, "a state key");
    pthread_mutex_lock(&s->mutex);
    value *v = map_remove(&s->values, full, PREFIX + key_size);
    if (v) {
        usage_of(s, tenant)->bytes -= key_size + v->size; /* it exists: put made it */
        *existed = 1;
    }
    pthread_mutex_unlock(&s->mutex);
    free(v);
    free(full);
    return REALM_OK;
}

static uint64_t used_bytes(state_store *store, uint32_t tenant)
{
    state_memory *s = (state_memory *)store;
    pthread_mutex_lock(&s->mutex);
    const usage *u = map_get(&s->usages, &tenant, sizeof tenant);
    uint64_t bytes = u ? u->bytes : 0;
    pthread_mutex_unlock(&s->mutex);
    return bytes;
}

static void free_values(map *m)
{
    size_t position = 0;
    for (const map_slot *slot; (slot = map_next(m, &position));)
        free(slot->value);
    map_release(m);
}

static void close_store(state_store *store)
{
    state_memory *s = (state_memory *)store;
    free_values(&s->values);
    free_values(&s->usages);
    pthread_mutex_destroy(&s->mutex);
    free(s);
}

static const state_store_table table = {
    .kind = "memory",
    .close = close_store,
    .get = get,
    .put = put,
    .remove = remove_key,
    .used_bytes = used_bytes,
};

realm_status state_memory_open(state_store **out, realm_error *error)
{
    state_memory *s = calloc(1, sizeof *s);
    if (!s)
        return realm_fail_memory(error, sizeof *s, "a state store");
    s->base.table = &table;
    pthread_mutex_init(&s->mutex, NULL);
    map_init(&s->values);
    map_init(&s->usages);
    *out = &s->base;
    return REALM_OK;
}
