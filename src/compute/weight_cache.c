/* compute/weight_cache.c: see weight_cache.h. A table of what a file holds by name, and a list of
 * what is new. */
#include "compute/weight_cache.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/log.h"
#include "base/map.h"
#include "compute/weight_file.h"

/* A packed weight of the file or of this process. */
typedef struct kept {
    weight_key key; /* name copied */
    const void *data;
    int wanted; /* found, or added: goes into the next file */
    struct kept *next;
} kept;

struct weight_cache {
    weight_cache_options options;
    arena memory; /* path, origin, kept weights */
    weight_file file;
    map by_name; /* map_name -> kept */
    kept *first, **last;
    weight_cache_facts facts;
};

/* Parts of one tensor share its name: the row they begin at tells them apart. Names longer than any
 * that a loader makes up are cut; two that are the same then are found wrong by same(). */
typedef struct map_name {
    char text[240];
    size_t size;
} map_name;

static map_name name_of(const char *name, size_t size, int32_t first_row)
{
    map_name m;
    int length = snprintf(m.text, sizeof m.text, "%" PRId32 " %.*s", first_row,
                          size < 200 ? (int)size : 200, name);
    m.size = length > 0 ? (size_t)length : 0;
    return m;
}

static kept *insert(weight_cache *c, const weight_key *key, size_t name_size, const void *data)
{
    kept *k = arena_take(&c->memory, sizeof *k);
    char *name = arena_copy(&c->memory, key->name, name_size);
    map_name m = name_of(key->name, name_size, key->first_row);
    if (!k || !name || map_put(&c->by_name, m.text, m.size, k, NULL) != REALM_OK)
        return NULL;
    *k = (kept){.key = *key, .data = data};
    k->key.name = name;
    *c->last = k;
    c->last = &k->next;
    return k;
}

static realm_status insert_file(weight_cache *c, realm_error *error)
{
    for (uint32_t i = 0; i < c->file.n_entries; i++) {
        const weight_file_entry *e = &c->file.entries[i];
        weight_key key = {.name = c->file.names + e->name,
                          .type = e->type,
                          .n_rows = e->n_rows,
                          .n_cols = e->n_cols,
                          .first_row = e->first_row,
                          .layout = e->layout,
                          .size = (size_t)e->size};
        map_name m = name_of(key.name, e->name_size, e->first_row);
        if (!map_get(&c->by_name, m.text, m.size) &&
            !insert(c, &key, e->name_size, c->file.data + e->offset))
            return realm_fail_memory(error, sizeof(kept), "a packed weight");
    }
    return REALM_OK;
}

realm_status weight_cache_open(weight_cache **out, const weight_cache_options *options,
                               realm_error *error)
{
    weight_cache *c = calloc(1, sizeof *c);
    if (!c)
        return realm_fail_memory(error, sizeof *c, "a cache of packed weights");
    arena_init(&c->memory, 0);
    map_init(&c->by_name);
    c->last = &c->first;
    c->options = *options;
    const char *origin = options->origin ? options->origin : "";
    c->options.path = arena_copy(&c->memory, options->path, strlen(options->path));
    c->options.origin = arena_copy(&c->memory, origin, strlen(origin));
    realm_status status = REALM_OK;
    if (!c->options.path || !c->options.origin)
        status = realm_fail_memory(error, strlen(options->path), "a path");
    realm_error why;
    realm_status opened = status ? status : weight_file_open(&c->file, &c->options, &why);
    if (status == REALM_OK && opened == REALM_OK)
        status = insert_file(c, error);
    else if (status == REALM_OK && opened != REALM_NOT_FOUND)
        LOG_W("weights", "packed weights are made anew: %s", why.message);
    if (status != REALM_OK) {
        weight_cache_close(c);
        return status;
    }
    *out = c;
    return REALM_OK;
}

void weight_cache_close(weight_cache *c)
{
    if (!c)
        return;
    weight_file_close(&c->file);
    map_release(&c->by_name);
    arena_release(&c->memory);
    free(c);
}

static int same(const weight_key *a, const weight_key *b)
{
    return strcmp(a->name, b->name) == 0 && a->type == b->type && a->n_rows == b->n_rows &&
           a->n_cols == b->n_cols && a->first_row == b->first_row && a->layout == b->layout &&
           a->size == b->size;
}

const void *weight_cache_find(weight_cache *c, const weight_key *key)
{
    map_name m = name_of(key->name, strlen(key->name), key->first_row);
    kept *k = map_get(&c->by_name, m.text, m.size);
    if (!k || !same(&k->key, key))
        return NULL;
    if (!k->wanted) {
        k->wanted = 1;
        c->facts.found++;
        c->facts.found_bytes += key->size;
    }
    return k->data;
}

realm_status weight_cache_add(weight_cache *c, const weight_key *key, const void *data,
                              realm_error *error)
{
    size_t name_size = strlen(key->name);
    map_name m = name_of(key->name, name_size, key->first_row);
    kept *before = map_get(&c->by_name, m.text, m.size);
    if (before && before->wanted)
        return REALM_OK;
    /* One of the file that no longer fits stays in the list, unwanted, and is not written again. */
    kept *k = insert(c, key, name_size, data);
    if (!k)
        return realm_fail_memory(error, sizeof *k, "a packed weight");
    k->wanted = 1;
    c->facts.added++;
    c->facts.added_bytes += key->size;
    return REALM_OK;
}

weight_cache_facts weight_cache_facts_get(const weight_cache *c)
{
    return c->facts;
}

const weight_cache_options *weight_cache_options_get(const weight_cache *c)
{
    return &c->options;
}

/* 1 if another process has written what we would, since we looked: then it has won. */
static int is_there(const weight_cache *c)
{
    weight_file now;
    if (weight_file_open_table(&now, c->options.path, NULL) != REALM_OK)
        return 0;
    int there = now.inode != c->file.inode && now.n_entries >= (uint32_t)c->facts.added &&
                memcmp(now.identity, c->options.identity, sizeof now.identity) == 0;
    for (const kept *k = c->first; k && there; k = k->next) {
        int found = !k->wanted;
        for (uint32_t i = 0; i < now.n_entries && !found; i++) {
            const weight_file_entry *e = &now.entries[i];
            found = e->name_size == strlen(k->key.name) &&
                    memcmp(now.names + e->name, k->key.name, e->name_size) == 0 &&
                    e->first_row == k->key.first_row && e->layout == k->key.layout &&
                    e->size == k->key.size;
        }
        there = found;
    }
    weight_file_close(&now);
    return there;
}

realm_status weight_cache_save(weight_cache *c, realm_error *error)
{
    if (c->facts.added == 0 || is_there(c))
        return REALM_OK;
    size_t most = (size_t)(c->facts.found + c->facts.added);
    weight_file_part *parts = calloc(most, sizeof *parts);
    if (!parts)
        return realm_fail_memory(error, most * sizeof *parts, "a list of packed weights");
    uint32_t count = 0;
    for (const kept *k = c->first; k; k = k->next)
        if (k->wanted)
            parts[count++] = (weight_file_part){k->key, k->data};
    realm_status status = weight_file_write(&c->options, parts, count, error);
    free(parts);
    return status;
}
