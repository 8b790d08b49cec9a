/* base/map.c: see map.h. The hash is the 64-bit multiply-and-fold kind of wyhash: two lanes of
 * 8 bytes are multiplied to 128 bits and folded. Removal shifts the following run back, so there
 * are no tombstones. */
#include "base/map.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#if defined(__APPLE__)
#include <unistd.h>
#endif

uint64_t map_seed(void)
{
    uint64_t seed;
    if (getentropy(&seed, sizeof seed) != 0)
        seed = (uint64_t)time(NULL) ^ (uint64_t)(uintptr_t)&seed;
    return seed;
}

void map_init(map *m)
{
    *m = (map){.seed = map_seed()};
}

void map_release(map *m)
{
    for (size_t i = 0; i < m->capacity; i++)
        free(m->slots[i].key);
    free(m->slots);
    m->slots = NULL;
    m->capacity = m->count = 0;
}

#define K0 0xA0761D6478BD642Fu
#define K1 0xE7037ED1A0B428DBu

static uint64_t fold(uint64_t a, uint64_t b)
{
    __uint128_t product = (__uint128_t)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* The state, which depends on the seed, goes into both factors. In only one, a key could make the
 * other zero and with it the product, whatever the seed: all such keys would collide. */
static uint64_t mix(uint64_t h, uint64_t a, uint64_t b)
{
    return fold(a ^ h ^ K0, b ^ (h << 32 | h >> 32) ^ K1);
}

uint64_t map_hash(uint64_t seed, const void *bytes, size_t size)
{
    const unsigned char *at = bytes;
    uint64_t h = fold(seed ^ K0, (uint64_t)size ^ K1), a, b;
    for (; size >= 16; size -= 16, at += 16) {
        memcpy(&a, at, 8);
        memcpy(&b, at + 8, 8);
        h = mix(h, a, b);
    }
    a = b = 0;
    if (size)
        memcpy(&a, at, size < 8 ? size : 8);
    if (size > 8)
        memcpy(&b, at + 8, size - 8);
    return fold(mix(h, a, b) ^ K1, K0);
}

/* The slot that holds key, or the free one where it would go. */
static map_slot *find(const map *m, const void *key, size_t key_size, uint64_t hash)
{
    for (size_t i = hash & (m->capacity - 1);; i = (i + 1) & (m->capacity - 1)) {
        map_slot *slot = &m->slots[i];
        if (!slot->key || (slot->hash == hash && slot->key_size == key_size &&
                           (key_size == 0 || memcmp(slot->key, key, key_size) == 0)))
            return slot;
    }
}

void *map_get(const map *m, const void *key, size_t key_size)
{
    if (!m->count)
        return NULL;
    return find(m, key, key_size, map_hash(m->seed, key, key_size))->value;
}

static realm_status grow(map *m)
{
    map larger = *m;
    larger.capacity = m->capacity ? m->capacity * 2 : 16;
    larger.slots = calloc(larger.capacity, sizeof *larger.slots);
    if (!larger.slots)
        return REALM_NO_MEMORY;
    for (size_t i = 0; i < m->capacity; i++)
        if (m->slots[i].key)
            *find(&larger, m->slots[i].key, m->slots[i].key_size, m->slots[i].hash) = m->slots[i];
    free(m->slots);
    *m = larger;
    return REALM_OK;
}

realm_status map_put(map *m, const void *key, size_t key_size, void *value, void **old)
{
    if (old)
        *old = NULL;
    if ((m->count + 1) * 4 > m->capacity * 3) {
        realm_status status = grow(m);
        if (status)
            return status;
    }
    uint64_t hash = map_hash(m->seed, key, key_size);
    map_slot *slot = find(m, key, key_size, hash);
    if (slot->key) {
        if (old)
            *old = slot->value;
        slot->value = value;
        return REALM_OK;
    }
    char *copy = malloc(key_size + 1);
    if (!copy)
        return REALM_NO_MEMORY;
    if (key_size)
        memcpy(copy, key, key_size);
    copy[key_size] = 0;
    *slot = (map_slot){copy, key_size, hash, value};
    m->count++;
    return REALM_OK;
}

void *map_remove(map *m, const void *key, size_t key_size)
{
    if (!m->count)
        return NULL;
    map_slot *slot = find(m, key, key_size, map_hash(m->seed, key, key_size));
    if (!slot->key)
        return NULL;
    void *value = slot->value;
    free(slot->key);
    size_t mask = m->capacity - 1, hole = (size_t)(slot - m->slots);
    for (size_t i = (hole + 1) & mask; m->slots[i].key; i = (i + 1) & mask) {
        size_t home = m->slots[i].hash & mask;
        if (((i - home) & mask) >= ((i - hole) & mask)) {
            m->slots[hole] = m->slots[i];
            hole = i;
        }
    }
    m->slots[hole] = (map_slot){0};
    m->count--;
    return value;
}

const map_slot *map_next(const map *m, size_t *position)
{
    while (*position < m->capacity) {
        const map_slot *slot = &m->slots[(*position)++];
        if (slot->key)
            return slot;
    }
    return NULL;
}
