/* formats/gguf.c: see gguf.h. Opening and closing a set of parsed files, and what is asked of it
 * then. */
#include "formats/gguf.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/gguf_internal.h"

/* ---- opening ---- */

/* What a tensor's name may not be twice is known only when all files are in. */
static realm_status index_tensors(gguf *g, realm_error *error)
{
    size_t first = 0, second = 0;
    realm_status status = gguf_table_build(&g->tensor_table, &g->memory, g->tensors,
                                           sizeof *g->tensors, g->tensor_count, &first, &second);
    if (status == REALM_CORRUPT) {
        const gguf_tensor *t = &g->tensors[second];
        const gguf_file *file = &g->files[t->shard];
        size_t before = 0; /* tensors of earlier shards: entries are numbered by file */
        for (uint32_t i = 0; i < t->shard; i++)
            before += g->files[i].tensor_count;
        return realm_fail(
            error, status,
            "'%s', offset %" PRIu64 ", tensor %zu '%.*s': name: is tensor %zu's of '%s' already",
            gguf_path_tail(file->path), file->tensor_entries[second - before], second - before,
            t->name.size < 100 ? (int)t->name.size : 100, t->name.data, first,
            gguf_path_tail(g->files[g->tensors[first].shard].path));
    }
    if (status)
        return realm_fail_memory(error, g->tensor_count * sizeof(uint32_t), "tensors' names");
    for (size_t i = 0; i < g->tensor_count; i++)
        g->tensor_bytes += g->tensors[i].size; /* disjoint parts of files: cannot wrap */
    return REALM_OK;
}

/* Takes the outcome so far; gives out g or closes it. */
static realm_status finish(gguf **out, gguf *g, realm_status status, realm_error *error)
{
    if (!status)
        status = index_tensors(g, error);
    if (status)
        gguf_close(g);
    else
        *out = g;
    return status;
}

realm_status gguf_open(gguf **out, const char *path, realm_error *error)
{
    *out = NULL;
    gguf *g = calloc(1, sizeof *g);
    if (!g)
        return realm_fail_memory(error, sizeof *g, "a model file");
    arena_init(&g->memory, 0);
    return finish(out, g, gguf_shards_open(g, path, error), error);
}

static realm_status parse_memory(gguf *g, const void *data, size_t size, realm_error *error)
{
    g->files = arena_take(&g->memory, sizeof *g->files);
    if (!g->files)
        return realm_fail_memory(error, sizeof *g->files, "a model file");
    g->file_count = 1;
    gguf_file *file = &g->files[0];
    file->path = "(memory)";
    file->map = (file_map){.data = data, .size = size, .descriptor = -1};
    realm_status status = gguf_parse(file, 0, &g->memory, error);
    if (!status)
        status = gguf_shards_refuse(file, error);
    g->tensors = file->tensors;
    g->tensor_count = file->tensor_count;
    return status;
}

realm_status gguf_open_memory(gguf **out, const void *data, size_t size, realm_error *error)
{
    *out = NULL;
    gguf *g = calloc(1, sizeof *g);
    if (!g)
        return realm_fail_memory(error, sizeof *g, "a model file");
    arena_init(&g->memory, 0);
    return finish(out, g, parse_memory(g, data, size, error), error);
}

void gguf_close(gguf *g)
{
    if (!g)
        return;
    for (uint32_t i = 0; i < g->file_count; i++)
        if (g->files[i].map.descriptor >= 0) /* memory is its owner's */
            file_map_close(&g->files[i].map);
    arena_release(&g->memory);
    free(g);
}

/* ---- what is in it ---- */

uint32_t gguf_version(const gguf *g)
{
    return g->files[0].version;
}

uint32_t gguf_alignment(const gguf *g)
{
    return g->files[0].alignment;
}

uint32_t gguf_shard_count(const gguf *g)
{
    return g->file_count;
}

int gguf_shard_descriptor(const gguf *g, uint32_t shard)
{
    return g->files[shard].map.descriptor;
}

const char *gguf_shard_path(const gguf *g, uint32_t shard)
{
    return g->files[shard].path;
}

uint64_t gguf_file_bytes(const gguf *g)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < g->file_count; i++)
        bytes += g->files[i].map.size;
    return bytes;
}

size_t gguf_pair_count(const gguf *g)
{
    return g->files[0].pair_count;
}

const gguf_pair *gguf_pair_at(const gguf *g, size_t index)
{
    return &g->files[0].pairs[index];
}

size_t gguf_tensor_count(const gguf *g)
{
    return g->tensor_count;
}

const gguf_tensor *gguf_tensor_at(const gguf *g, size_t index)
{
    return &g->tensors[index];
}

uint64_t gguf_tensor_bytes(const gguf *g)
{
    return g->tensor_bytes;
}

const gguf_tensor *gguf_find_tensor(const gguf *g, const char *name)
{
    return gguf_table_find(&g->tensor_table, name, strlen(name));
}

const gguf_value *gguf_find(const gguf *g, const char *key)
{
    const gguf_pair *pair = gguf_table_find(&g->files[0].pair_table, key, strlen(key));
    return pair ? &pair->value : NULL;
}

const char *gguf_type_name(gguf_type type)
{
    static const char *const names[] = {
        [GGUF_U8] = "u8",         [GGUF_I8] = "i8",       [GGUF_U16] = "u16", [GGUF_I16] = "i16",
        [GGUF_U32] = "u32",       [GGUF_I32] = "i32",     [GGUF_F32] = "f32", [GGUF_BOOL] = "bool",
        [GGUF_STRING] = "string", [GGUF_ARRAY] = "array", [GGUF_U64] = "u64", [GGUF_I64] = "i64",
        [GGUF_F64] = "f64",
    };
    return (size_t)type < sizeof names / sizeof *names ? names[type] : "unknown";
}

/* ---- typed reading ---- */

static int is_signed(gguf_type type)
{
    return type == GGUF_I8 || type == GGUF_I16 || type == GGUF_I32 || type == GGUF_I64;
}

static int is_unsigned(gguf_type type)
{
    return type == GGUF_U8 || type == GGUF_U16 || type == GGUF_U32 || type == GGUF_U64;
}

static realm_status wrong(const gguf_file *file, const gguf_pair *pair, realm_error *error,
                          const char *wanted)
{
    return realm_fail(error, REALM_CORRUPT,
                      "'%s', offset %" PRIu64 ", metadata '%.*s': a value of type %s is not %s",
                      gguf_path_tail(file->path), pair->offset,
                      pair->key.size < 100 ? (int)pair->key.size : 100, pair->key.data,
                      gguf_type_name(pair->value.type), wanted);
}

static realm_status find_pair(const gguf_file *file, const char *key, const gguf_pair **pair,
                              realm_error *error)
{
    *pair = gguf_table_find(&file->pair_table, key, strlen(key));
    if (*pair)
        return REALM_OK;
    return realm_fail(error, REALM_NOT_FOUND, "'%s' has no metadata '%s'",
                      gguf_path_tail(file->path), key);
}

realm_status gguf_file_get_u64(const gguf_file *file, const char *key, uint64_t max, uint64_t *out,
                               realm_error *error)
{
    const gguf_pair *pair;
    realm_status status = find_pair(file, key, &pair, error);
    if (status)
        return status;
    const gguf_value *v = &pair->value;
    uint64_t number = is_signed(v->type) ? (uint64_t)v->i : v->u;
    int fits = is_unsigned(v->type) || (is_signed(v->type) && v->i >= 0);
    if (!fits || number > max)
        return wrong(file, pair, error,
                     max == UINT32_MAX ? "a number from 0 to 2^32 - 1"
                                       : "a whole number from 0 on");
    *out = number;
    return REALM_OK;
}

realm_status gguf_get_u32(const gguf *g, const char *key, uint32_t *out, realm_error *error)
{
    uint64_t number = 0;
    realm_status status = gguf_file_get_u64(&g->files[0], key, UINT32_MAX, &number, error);
    if (!status)
        *out = (uint32_t)number;
    return status;
}

realm_status gguf_get_u64(const gguf *g, const char *key, uint64_t *out, realm_error *error)
{
    return gguf_file_get_u64(&g->files[0], key, UINT64_MAX, out, error);
}

realm_status gguf_get_i64(const gguf *g, const char *key, int64_t *out, realm_error *error)
{
    const gguf_pair *pair;
    realm_status status = find_pair(&g->files[0], key, &pair, error);
    if (status)
        return status;
    const gguf_value *v = &pair->value;
    if (!is_signed(v->type) && !(is_unsigned(v->type) && v->u <= INT64_MAX))
        return wrong(&g->files[0], pair, error, "a whole number below 2^63");
    *out = is_signed(v->type) ? v->i : (int64_t)v->u;
    return REALM_OK;
}

realm_status gguf_get_f32(const gguf *g, const char *key, float *out, realm_error *error)
{
    const gguf_pair *pair;
    realm_status status = find_pair(&g->files[0], key, &pair, error);
    if (status)
        return status;
    const gguf_value *v = &pair->value;
    double number;
    if (v->type == GGUF_F32 || v->type == GGUF_F64)
        number = v->f;
    else if (is_signed(v->type))
        number = (double)v->i;
    else if (is_unsigned(v->type))
        number = (double)v->u;
    else
        return wrong(&g->files[0], pair, error, "a number");
    if (isfinite(number) && fabs(number) > FLT_MAX)
        return wrong(&g->files[0], pair, error, "within the range of f32");
    *out = (float)number;
    return REALM_OK;
}

realm_status gguf_get_bool(const gguf *g, const char *key, int *out, realm_error *error)
{
    const gguf_pair *pair;
    realm_status status = find_pair(&g->files[0], key, &pair, error);
    if (status)
        return status;
    if (pair->value.type != GGUF_BOOL)
        return wrong(&g->files[0], pair, error, "a bool");
    *out = pair->value.u != 0;
    return REALM_OK;
}

realm_status gguf_get_string(const gguf *g, const char *key, gguf_string *out, realm_error *error)
{
    const gguf_pair *pair;
    realm_status status = find_pair(&g->files[0], key, &pair, error);
    if (status)
        return status;
    if (pair->value.type != GGUF_STRING)
        return wrong(&g->files[0], pair, error, "a string");
    *out = pair->value.string;
    return REALM_OK;
}

realm_status gguf_get_array(const gguf *g, const char *key, gguf_type element,
                            const gguf_value **out, realm_error *error)
{
    const gguf_pair *pair;
    realm_status status = find_pair(&g->files[0], key, &pair, error);
    if (status)
        return status;
    if (pair->value.type != GGUF_ARRAY || pair->value.array.type != element) {
        char wanted[40];
        snprintf(wanted, sizeof wanted, "an array of %s", gguf_type_name(element));
        return wrong(&g->files[0], pair, error, wanted);
    }
    *out = &pair->value;
    return REALM_OK;
}

/* ---- elements of arrays ---- */

gguf_string gguf_array_string(const gguf *g, const gguf_value *array, uint64_t index)
{
    const uint8_t *at = g->files[0].map.data + g->files[0].string_starts[array->array.index][index];
    uint64_t size;
    memcpy(&size, at, sizeof size);
    return (gguf_string){(const char *)at + sizeof size, (size_t)size};
}

#define ELEMENT(type)                                                                              \
    {                                                                                              \
        type number;                                                                               \
        memcpy(&number, (const char *)array->array.data + index * sizeof number, sizeof number);   \
        return number;                                                                             \
    }

int64_t gguf_array_int(const gguf_value *array, uint64_t index)
{
    switch (array->array.type) {
    case GGUF_BOOL:
    case GGUF_U8: ELEMENT(uint8_t)
    case GGUF_I8: ELEMENT(int8_t)
    case GGUF_U16: ELEMENT(uint16_t)
    case GGUF_I16: ELEMENT(int16_t)
    case GGUF_U32: ELEMENT(uint32_t)
    case GGUF_I32: ELEMENT(int32_t)
    case GGUF_U64: /* the same bits; what passes 2^63 comes out negative */
    case GGUF_I64: ELEMENT(int64_t)
    case GGUF_F32:
    case GGUF_F64:
    case GGUF_STRING:
    case GGUF_ARRAY: break;
    }
    return 0;
}

double gguf_array_float(const gguf_value *array, uint64_t index)
{
    switch (array->array.type) {
    case GGUF_F32: ELEMENT(float)
    case GGUF_F64: ELEMENT(double)
    case GGUF_U64: return (double)(uint64_t)gguf_array_int(array, index);
    default: return (double)gguf_array_int(array, index);
    }
}
