/* text/string_table.c: see string_table.h. Open addressing with linear probing, at most half full. */
#include "text/string_table.h"

#include <stdlib.h>
#include <string.h>

static uint64_t finish(uint64_t hash)
{
    hash ^= hash >> 32;
    hash *= 0xD6E8FEB86659FD93u; /* Pelle Evensen's rrmxmx family: spreads FNV's weak low bits */
    return hash ^ hash >> 32;
}

static uint64_t hash_of(const char *text, size_t size)
{
    uint64_t hash = STRING_TABLE_HASH_START;
    for (size_t i = 0; i < size; i++)
        hash = string_table_hash_byte(hash, (uint8_t)text[i]);
    return hash;
}

static void insert_slot(string_table *t, uint32_t tag, uint32_t home, uint32_t entry)
{
    size_t at = home & (t->slot_count - 1);
    while (t->slots[at].entry)
        at = (at + 1) & (t->slot_count - 1);
    t->slots[at] = (string_slot){tag, entry};
}

static int resize(string_table *t, size_t capacity)
{
    size_t slot_count = 16;
    while (slot_count < capacity * 2)
        slot_count *= 2;
    string_slot *slots = calloc(slot_count, sizeof *slots);
    string_entry *entries = realloc(t->entries, capacity * sizeof *entries);
    if (entries)
        t->entries = entries;
    if (!slots || !entries) {
        free(slots);
        return 0;
    }
    free(t->slots);
    t->slots = slots;
    t->slot_count = slot_count;
    t->capacity = capacity;
    for (size_t i = 0; i < t->count; i++)
        insert_slot(t, entries[i].tag, entries[i].home, (uint32_t)i + 1);
    return 1;
}

int string_table_init(string_table *t, size_t capacity)
{
    *t = (string_table){0};
    return capacity <= INT32_MAX / 2 && resize(t, capacity ? capacity : 1);
}

void string_table_release(string_table *t)
{
    free(t->slots);
    free(t->entries);
    *t = (string_table){0};
}

static int32_t find(const string_table *t, const char *text, size_t size, uint64_t finished)
{
    uint32_t tag = (uint32_t)(finished >> 32);
    size_t at = (uint32_t)finished & (t->slot_count - 1);
    for (; t->slots[at].entry; at = (at + 1) & (t->slot_count - 1)) {
        if (t->slots[at].tag != tag)
            continue;
        const string_entry *entry = &t->entries[t->slots[at].entry - 1];
        if (entry->size == size && memcmp(entry->text, text, size) == 0)
            return (int32_t)t->slots[at].entry - 1;
    }
    return -1;
}

int32_t string_table_find_hashed(const string_table *t, const char *text, size_t size,
                                 uint64_t hash)
{
    return find(t, text, size, finish(hash));
}

int32_t string_table_find(const string_table *t, const char *text, size_t size)
{
    return find(t, text, size, finish(hash_of(text, size)));
}

int32_t string_table_add(string_table *t, const char *text, size_t size)
{
    uint64_t finished = finish(hash_of(text, size));
    int32_t known = find(t, text, size, finished);
    if (known >= 0)
        return known;
    if (size > UINT32_MAX || t->count >= INT32_MAX / 2)
        return -1;
    if (t->count == t->capacity && !resize(t, t->capacity * 2))
        return -1;
    string_entry *entry = &t->entries[t->count++];
    *entry = (string_entry){text, (uint32_t)size, (uint32_t)(finished >> 32), (uint32_t)finished};
    insert_slot(t, entry->tag, entry->home, (uint32_t)t->count);
    return (int32_t)t->count - 1;
}
