/* formats/gguf_shards.c: a model in several files, as gguf-split writes them.
 *
 * NAME-00001-of-0000N.gguf holds the metadata; it and its siblings each say split.no (from 0),
 * split.count and split.tensors.count (of all together). The name leads to the siblings, and what
 * each says of itself must agree: a link back to the first, a copy under a wrong number or a file
 * of another model is found by that, not by reading tensors twice. */
#include <stdio.h>
#include <string.h>

#include "formats/gguf_internal.h"

/* What a file says about the set it belongs to; count 1 if it says nothing. */
typedef struct split {
    uint64_t no, count, tensor_count;
} split;

static realm_status refuse(const gguf_file *file, const char *key, realm_error *error,
                           const char *format, ...) REALM_PRINTF(4, 5);

/* "'x.gguf', offset 24, metadata 'split.no': " and then the format. */
static realm_status refuse(const gguf_file *file, const char *key, realm_error *error,
                           const char *format, ...)
{
    realm_error why;
    va_list arguments;
    va_start(arguments, format);
    realm_fail_v(&why, REALM_CORRUPT, format, arguments);
    va_end(arguments);
    const gguf_pair *pair = gguf_table_find(&file->pair_table, key, strlen(key));
    return realm_fail(error, REALM_CORRUPT, "'%s', offset %" PRIu64 ", metadata '%s': %s",
                      gguf_path_tail(file->path), pair ? pair->offset : 0, key, why.message);
}

/* REALM_OK with *out left alone if the key is absent and may be. */
static realm_status read_number(const gguf_file *file, const char *key, int required, uint64_t *out,
                                realm_error *error)
{
    realm_status status = gguf_file_get_u64(file, key, UINT32_MAX, out, error);
    if (status == REALM_NOT_FOUND)
        return required ? refuse(file, key, error, "is missing from a shard") : REALM_OK;
    return status;
}

static realm_status read_split(const gguf_file *file, split *s, realm_error *error)
{
    *s = (split){.count = 1, .tensor_count = UINT64_MAX};
    realm_status status = read_number(file, "split.count", 0, &s->count, error);
    if (status || s->count <= 1) {
        s->count = 1;
        return status;
    }
    if (s->count > GGUF_MAX_SHARDS)
        return refuse(file, "split.count", error, "%" PRIu64 " is more than %u", s->count,
                      GGUF_MAX_SHARDS);
    status = read_number(file, "split.no", 1, &s->no, error);
    if (!status)
        status = read_number(file, "split.tensors.count", 0, &s->tensor_count, error);
    return status;
}

realm_status gguf_shards_refuse(const gguf_file *file, realm_error *error)
{
    split s;
    realm_status status = read_split(file, &s, error);
    if (status || s.count == 1)
        return status;
    return realm_fail(error, REALM_UNSUPPORTED,
                      "'%s' is one of %" PRIu64 " shards; open them from disk",
                      gguf_path_tail(file->path), s.count);
}

static realm_status open_file(gguf *g, uint32_t shard, const char *path, realm_error *error)
{
    gguf_file *file = &g->files[shard];
    file->path = arena_copy(&g->memory, path, strlen(path));
    if (!file->path)
        return realm_fail_memory(error, strlen(path), "a path");
    realm_status status = file_map_open(&file->map, path, error);
    if (status)
        return status;
    g->file_count = shard + 1; /* from here on gguf_close closes it */
    return gguf_parse(file, shard, &g->memory, error);
}

static realm_status check_first(const gguf_file *first, const split *s, realm_error *error)
{
    if (s->no != 0)
        return realm_fail(error, REALM_INVALID,
                          "'%s' is shard %" PRIu64 " of %" PRIu64
                          "; open the first one, -00001-of-%05" PRIu64 ".gguf",
                          gguf_path_tail(first->path), s->no + 1, s->count, s->count);
    char ending[40];
    int size = snprintf(ending, sizeof ending, "-00001-of-%05" PRIu64 ".gguf", s->count);
    size_t length = strlen(first->path);
    if (length < (size_t)size || strcmp(first->path + length - (size_t)size, ending) != 0)
        return refuse(first, "split.count", error,
                      "is %" PRIu64
                      ", so the file's name must end in %s for the others to be found",
                      s->count, ending);
    return REALM_OK;
}

static realm_status check_sibling(const gguf_file *file, uint32_t shard, const split *first,
                                  realm_error *error)
{
    split s;
    realm_status status = read_split(file, &s, error);
    if (status)
        return status;
    if (s.count != first->count)
        return refuse(file, "split.count", error, "is %" PRIu64 " and the first shard's %" PRIu64,
                      s.count, first->count);
    if (s.no != shard)
        return refuse(file, "split.no", error,
                      "is %" PRIu64 " in shard %" PRIu32 ", counted from 0", s.no, shard);
    if (s.tensor_count != UINT64_MAX && first->tensor_count != UINT64_MAX &&
        s.tensor_count != first->tensor_count)
        return refuse(file, "split.tensors.count", error,
                      "is %" PRIu64 " and the first shard's %" PRIu64, s.tensor_count,
                      first->tensor_count);
    return REALM_OK;
}

static realm_status open_siblings(gguf *g, const split *first, realm_error *error)
{
    const char *path = g->files[0].path;
    int stem = (int)(strlen(path) - strlen("-00001-of-00001.gguf"));
    for (uint32_t shard = 1; shard < first->count; shard++) {
        const char *sibling = arena_printf(&g->memory, "%.*s-%05" PRIu32 "-of-%05" PRIu64 ".gguf",
                                           stem, path, shard + 1, first->count);
        if (!sibling)
            return realm_fail_memory(error, strlen(path), "a path");
        realm_status status = open_file(g, shard, sibling, error);
        if (status)
            return realm_fail_in(error, status, "shard %" PRIu32 " of %" PRIu64, shard + 1,
                                 first->count);
        status = check_sibling(&g->files[shard], shard, first, error);
        if (status)
            return status;
    }
    return REALM_OK;
}

/* One list of all tensors; a single file's own will do. */
static realm_status join_tensors(gguf *g, const split *first, realm_error *error)
{
    size_t total = 0;
    for (uint32_t i = 0; i < g->file_count; i++)
        total += g->files[i].tensor_count;
    if (total > GGUF_MAX_TENSORS)
        return refuse(&g->files[0], "split.count", error,
                      "the shards hold %zu tensors; %u are allowed", total, GGUF_MAX_TENSORS);
    if (first->tensor_count != UINT64_MAX && first->tensor_count != total)
        return refuse(&g->files[0], "split.tensors.count", error,
                      "is %" PRIu64 " and the shards hold %zu", first->tensor_count, total);
    g->tensors = arena_take_array(&g->memory, total, sizeof *g->tensors);
    if (!g->tensors)
        return realm_fail_memory(error, total * sizeof *g->tensors, "tensors");
    for (uint32_t i = 0; i < g->file_count; i++) {
        const gguf_file *file = &g->files[i];
        memcpy(g->tensors + g->tensor_count, file->tensors,
               file->tensor_count * sizeof *g->tensors);
        g->tensor_count += file->tensor_count;
    }
    return REALM_OK;
}

realm_status gguf_shards_open(gguf *g, const char *path, realm_error *error)
{
    split s;
    g->files = arena_take(&g->memory, sizeof *g->files);
    if (!g->files)
        return realm_fail_memory(error, sizeof *g->files, "a model file");
    realm_status status = open_file(g, 0, path, error);
    if (!status)
        status = read_split(&g->files[0], &s, error);
    if (status)
        return status;
    if (s.count == 1) {
        g->tensors = g->files[0].tensors;
        g->tensor_count = g->files[0].tensor_count;
        return REALM_OK;
    }
    status = check_first(&g->files[0], &s, error);
    if (status)
        return status;
    gguf_file *files = arena_take_array(&g->memory, (size_t)s.count, sizeof *files);
    if (!files)
        return realm_fail_memory(error, (size_t)s.count * sizeof *files, "shards");
    files[0] = g->files[0];
    g->files = files;
    status = open_siblings(g, &s, error);
    return status ? status : join_tensors(g, &s, error);
}
