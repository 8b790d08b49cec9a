/* formats/gguf_parse.c: the bytes of one GGUF file to pairs and tensors, believing nothing.
 *
 * One pass over the metadata with a cursor that cannot leave the file, then a second look at the
 * tensors once it is known where their data begin. The rules that keep memory in proportion to the
 * file, whatever it claims:
 *   1. a count is believed only if the bytes that are left could hold that many of the smallest
 *      thing counted, and only then is memory taken for it;
 *   2. a length is compared with what is left, never added to a position first;
 *   3. sizes of tensors are multiplied with overflow checks and must end inside the file.
 * Every refusal says file, offset, which pair or tensor, and which field. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/gguf_internal.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "fields are read as they lie in the file, which is little-endian");

#define DEFAULT_ALIGNMENT  32u
#define SMALLEST_ALIGNMENT 8u     /* the specification's; what makes F64 data aligned */
#define LARGEST_KEY_BYTES  65535u /* the specification's */
#define LARGEST_NAME_BYTES                                                                         \
    1024u /* the specification says 64, and converters pass it now and then */
#define SMALLEST_PAIR_BYTES (8 + 1 + 4 + 1) /* length, a letter, type, a byte */
#define SMALLEST_TENSOR_BYTES                                                                      \
    (8 + 1 + 4 + 8 + 4 + 8) /* length, a letter, n_dims, a dim, type, offset */

typedef struct reader {
    const gguf_file *file;
    size_t at;
    /* Where we are, for messages. */
    const char *part; /* "header", "metadata", "tensor" */
    uint64_t ordinal;
    gguf_string name; /* empty until it is known */
    realm_error *error;
} reader;

size_t gguf_type_size(uint32_t type)
{
    static const uint8_t sizes[] = {
        [GGUF_U8] = 1,  [GGUF_I8] = 1,  [GGUF_U16] = 2,  [GGUF_I16] = 2,    [GGUF_U32] = 4,
        [GGUF_I32] = 4, [GGUF_F32] = 4, [GGUF_BOOL] = 1, [GGUF_STRING] = 0, [GGUF_ARRAY] = 0,
        [GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F64] = 8,
    };
    return type < sizeof sizes ? sizes[type] : 0;
}

const char *gguf_path_tail(const char *path)
{
    const size_t longest = 150;
    size_t size = strlen(path);
    return size > longest ? path + size - longest : path;
}

/* ---- refusing ---- */

static realm_status refuse(const reader *r, realm_status status, uint64_t offset,
                           const char *format, ...) REALM_PRINTF(4, 5);

/* "'tiny.gguf', offset 96, metadata 3 'general.name': " and then the format. */
static realm_status refuse(const reader *r, realm_status status, uint64_t offset,
                           const char *format, ...)
{
    realm_error why;
    va_list arguments;
    va_start(arguments, format);
    realm_fail_v(&why, status, format, arguments);
    va_end(arguments);
    char where[40] = "";
    if (r->ordinal != UINT64_MAX)
        snprintf(where, sizeof where, " %" PRIu64, r->ordinal);
    int shown = r->name.size < 100 ? (int)r->name.size : 100;
    return realm_fail(r->error, status, "'%s', offset %" PRIu64 ", %s%s%s%.*s%s: %s",
                      gguf_path_tail(r->file->path), offset, r->part, where, shown ? " '" : "",
                      shown, shown ? r->name.data : "", shown ? "'" : "", why.message);
}

static realm_status refuse_memory(const reader *r, size_t bytes)
{
    return realm_fail(r->error, REALM_NO_MEMORY, "'%s': out of memory: %zu bytes for its %s",
                      gguf_path_tail(r->file->path), bytes, r->part);
}

/* ---- the cursor ---- */

static size_t left(const reader *r)
{
    return r->file->map.size - r->at;
}

static realm_status need(const reader *r, uint64_t size, const char *field)
{
    if (size <= left(r))
        return REALM_OK;
    return refuse(r, REALM_CORRUPT, r->at, "%s: needs %" PRIu64 " bytes and the file has %zu left",
                  field, size, left(r));
}

static realm_status read_u32(reader *r, uint32_t *out, const char *field)
{
    realm_status status = need(r, sizeof *out, field);
    if (status)
        return status;
    memcpy(out, r->file->map.data + r->at, sizeof *out);
    r->at += sizeof *out;
    return REALM_OK;
}

static realm_status read_u64(reader *r, uint64_t *out, const char *field)
{
    realm_status status = need(r, sizeof *out, field);
    if (status)
        return status;
    memcpy(out, r->file->map.data + r->at, sizeof *out);
    r->at += sizeof *out;
    return REALM_OK;
}

static realm_status read_string(reader *r, gguf_string *out, const char *field)
{
    uint64_t size, start = r->at;
    realm_status status = read_u64(r, &size, field);
    if (status)
        return status;
    if (size > left(r))
        return refuse(r, REALM_CORRUPT, start,
                      "%s: claims %" PRIu64 " bytes and the file has %zu left", field, size,
                      left(r));
    *out = (gguf_string){(const char *)r->file->map.data + r->at, (size_t)size};
    r->at += (size_t)size;
    return REALM_OK;
}

/* A key or a tensor's name, which becomes the place that messages name. */
static realm_status read_name(reader *r, gguf_string *out, size_t longest, const char *field)
{
    uint64_t start = r->at;
    r->name = (gguf_string){0};
    realm_status status = read_string(r, out, field);
    if (status)
        return status;
    if (out->size == 0 || out->size > longest)
        return refuse(r, REALM_CORRUPT, start, "%s: has %zu bytes; 1 to %zu are allowed", field,
                      out->size, longest);
    r->name = *out;
    return REALM_OK;
}

/* ---- header ---- */

typedef struct header {
    uint64_t tensor_count, pair_count;
} header;

static realm_status check_version(const reader *r, uint32_t version)
{
    if (version == 2 || version == 3)
        return REALM_OK;
    if ((version & 0xFFFF) == 0 && version != 0)
        return refuse(r, REALM_UNSUPPORTED, 4,
                      "version: 0x%08" PRIx32 " means a big-endian file, which Realm does not read",
                      version);
    if (version == 0)
        return refuse(r, REALM_CORRUPT, 4, "version: is 0");
    return refuse(r, REALM_UNSUPPORTED, 4, "version: is %" PRIu32 "; Realm reads 2 and 3", version);
}

static realm_status parse_header(reader *r, header *h, uint32_t *version)
{
    uint32_t magic;
    realm_status status = read_u32(r, &magic, "magic");
    if (!status && memcmp(r->file->map.data, "GGUF", 4) != 0)
        return refuse(r, REALM_CORRUPT, 0, "magic: the file does not begin with 'GGUF'");
    if (!status)
        status = read_u32(r, version, "version");
    if (!status)
        status = check_version(r, *version);
    if (!status)
        status = read_u64(r, &h->tensor_count, "tensor_count");
    if (!status)
        status = read_u64(r, &h->pair_count, "metadata_kv_count");
    if (status)
        return status;
    if (h->tensor_count > GGUF_MAX_TENSORS || h->tensor_count > left(r) / SMALLEST_TENSOR_BYTES)
        return refuse(r, REALM_CORRUPT, 8,
                      "tensor_count: %" PRIu64 " is more than %u or than %zu bytes can describe",
                      h->tensor_count, GGUF_MAX_TENSORS, left(r));
    if (h->pair_count > GGUF_MAX_PAIRS || h->pair_count > left(r) / SMALLEST_PAIR_BYTES)
        return refuse(r, REALM_CORRUPT, 16,
                      "metadata_kv_count: %" PRIu64 " is more than %u or than %zu bytes can hold",
                      h->pair_count, GGUF_MAX_PAIRS, left(r));
    return REALM_OK;
}

/* ---- metadata ---- */

static realm_status check_bools(const reader *r, const uint8_t *bytes, size_t count,
                                uint64_t offset)
{
    for (size_t i = 0; i < count; i++)
        if (bytes[i] > 1)
            return refuse(r, REALM_CORRUPT, offset + i, "value: a bool is %u", bytes[i]);
    return REALM_OK;
}

static void load_scalar(const uint8_t *at, gguf_value *value)
{
#define LOAD(type, member)                                                                         \
    {                                                                                              \
        type number;                                                                               \
        memcpy(&number, at, sizeof number);                                                        \
        value->member = number;                                                                    \
        break;                                                                                     \
    }
    switch (value->type) {
    case GGUF_BOOL:
    case GGUF_U8: LOAD(uint8_t, u)
    case GGUF_I8: LOAD(int8_t, i)
    case GGUF_U16: LOAD(uint16_t, u)
    case GGUF_I16: LOAD(int16_t, i)
    case GGUF_U32: LOAD(uint32_t, u)
    case GGUF_I32: LOAD(int32_t, i)
    case GGUF_U64: LOAD(uint64_t, u)
    case GGUF_I64: LOAD(int64_t, i)
    case GGUF_F32: LOAD(float, f)
    case GGUF_F64: LOAD(double, f)
    case GGUF_STRING:
    case GGUF_ARRAY: break; /* not scalars */
    }
#undef LOAD
}

static realm_status parse_scalar(reader *r, gguf_value *value)
{
    size_t size = gguf_type_size(value->type), start = r->at;
    realm_status status = need(r, size, "value");
    if (status)
        return status;
    const uint8_t *at = r->file->map.data + r->at;
    load_scalar(at, value);
    r->at += size;
    return value->type == GGUF_BOOL ? check_bools(r, at, 1, start) : REALM_OK;
}

/* Remembers where each string begins: they have different lengths, and the vocabulary of a quarter
 * of a million is read by number. Eight bytes a string, which took at least as many in the file. */
static realm_status parse_strings(reader *r, uint64_t count, uint64_t **starts, arena *memory)
{
    *starts = arena_take_array(memory, (size_t)count, sizeof **starts);
    if (!*starts)
        return refuse_memory(r, (size_t)count * sizeof **starts);
    for (uint64_t i = 0; i < count; i++) {
        gguf_string text;
        (*starts)[i] = r->at;
        realm_status status = read_string(r, &text, "length of a string in the array");
        if (status)
            return status;
    }
    return REALM_OK;
}

static realm_status parse_array(reader *r, gguf_value *value, uint64_t **starts, arena *memory)
{
    uint32_t type;
    uint64_t count, start = r->at;
    realm_status status = read_u32(r, &type, "type of the array's elements");
    if (!status && type == GGUF_ARRAY)
        return refuse(r, REALM_UNSUPPORTED, start, "type: arrays of arrays are not read");
    if (!status && type > GGUF_F64)
        return refuse(r, REALM_CORRUPT, start,
                      "type of the array's elements: there is no type %" PRIu32, type);
    if (!status)
        status = read_u64(r, &count, "count of the array");
    if (status)
        return status;
    size_t smallest = type == GGUF_STRING ? 8 : gguf_type_size(type);
    if (count > left(r) / smallest)
        return refuse(r, REALM_CORRUPT, start + 4,
                      "count of the array: %" PRIu64 " elements do not fit in the %zu bytes left",
                      count, left(r));
    value->array.type = (gguf_type)type;
    value->array.count = count;
    value->array.data = r->file->map.data + r->at;
    value->array.index = (uint32_t)r->ordinal;
    if (type == GGUF_STRING)
        return parse_strings(r, count, starts, memory);
    uint64_t offset = r->at;
    r->at += (size_t)count * smallest;
    return type == GGUF_BOOL ? check_bools(r, value->array.data, (size_t)count, offset) : REALM_OK;
}

static realm_status parse_pair(reader *r, gguf_pair *pair, uint64_t **starts, arena *memory)
{
    uint32_t type;
    pair->offset = r->at;
    realm_status status = read_name(r, &pair->key, LARGEST_KEY_BYTES, "key");
    if (!status)
        status = read_u32(r, &type, "type of the value");
    if (status)
        return status;
    if (type > GGUF_F64)
        return refuse(r, REALM_CORRUPT, r->at - 4, "type of the value: there is no type %" PRIu32,
                      type);
    pair->value.type = (gguf_type)type;
    if (type == GGUF_ARRAY)
        return parse_array(r, &pair->value, starts, memory);
    if (type == GGUF_STRING)
        return read_string(r, &pair->value.string, "value");
    return parse_scalar(r, &pair->value);
}

static realm_status parse_pairs(reader *r, gguf_file *file, size_t count, arena *memory)
{
    r->part = "metadata";
    file->pairs = arena_take_array(memory, count, sizeof *file->pairs);
    file->string_starts = arena_take_array(memory, count, sizeof *file->string_starts);
    if (!file->pairs || !file->string_starts)
        return refuse_memory(r, count * sizeof *file->pairs);
    for (size_t i = 0; i < count; i++) {
        r->ordinal = i;
        realm_status status = parse_pair(r, &file->pairs[i], &file->string_starts[i], memory);
        if (status)
            return status;
    }
    file->pair_count = count;
    size_t first = 0, second = 0;
    realm_status status = gguf_table_build(&file->pair_table, memory, file->pairs,
                                           sizeof *file->pairs, count, &first, &second);
    r->ordinal = second;
    if (status == REALM_CORRUPT) {
        r->name = file->pairs[second].key;
        return refuse(r, status, file->pairs[second].offset,
                      "key: stands at offset %" PRIu64 " already", file->pairs[first].offset);
    }
    return status ? refuse_memory(r, count) : REALM_OK;
}

static realm_status read_alignment(reader *r, gguf_file *file)
{
    const gguf_pair *pair = gguf_table_find(&file->pair_table, "general.alignment", 17);
    file->alignment = DEFAULT_ALIGNMENT;
    if (!pair)
        return REALM_OK;
    uint64_t alignment = 0;
    realm_status status = gguf_file_get_u64(file, "general.alignment", UINT32_MAX, &alignment,
                                            r->error);
    if (status)
        return status;
    if (alignment < SMALLEST_ALIGNMENT || (alignment & (alignment - 1)) != 0) {
        r->name = pair->key;
        r->ordinal = (uint64_t)(pair - file->pairs);
        return refuse(r, REALM_CORRUPT, pair->offset,
                      "value: %" PRIu64 " is not a power of two from %u on", alignment,
                      SMALLEST_ALIGNMENT);
    }
    file->alignment = (uint32_t)alignment;
    return REALM_OK;
}

/* ---- tensors ---- */

static realm_status parse_dims(reader *r, gguf_tensor *t)
{
    uint64_t elements = 1;
    realm_status status = read_u32(r, &t->n_dims, "n_dims");
    if (status)
        return status;
    if (t->n_dims < 1 || t->n_dims > GGUF_MAX_DIMS)
        return refuse(r, REALM_CORRUPT, r->at - 4, "n_dims: %" PRIu32 " is not from 1 to %d",
                      t->n_dims, GGUF_MAX_DIMS);
    for (uint32_t i = 0; i < GGUF_MAX_DIMS; i++)
        t->dims[i] = 1;
    for (uint32_t i = 0; i < t->n_dims; i++) {
        status = read_u64(r, &t->dims[i], "dims");
        if (status)
            return status;
        if (t->dims[i] == 0)
            return refuse(r, REALM_CORRUPT, r->at - 8, "dims[%" PRIu32 "]: is 0", i);
        if (__builtin_mul_overflow(elements, t->dims[i], &elements) || elements > INT64_MAX)
            return refuse(r, REALM_CORRUPT, r->at - 8,
                          "dims[%" PRIu32 "]: with %" PRIu64 " the elements pass 2^63", i,
                          t->dims[i]);
    }
    return REALM_OK;
}

static realm_status parse_tensor_type(reader *r, gguf_tensor *t)
{
    realm_status status = read_u32(r, &t->type, "type");
    if (status)
        return status;
    uint64_t offset = r->at - 4;
    uint32_t block = dtype_block_elements(t->type);
    if (!block)
        return refuse(r, REALM_UNSUPPORTED, offset, "type: %" PRIu32 " is none that Realm reads",
                      t->type);
    if (t->dims[0] % block)
        return refuse(r, REALM_CORRUPT, offset,
                      "dims[0]: a row of %" PRIu64 " is no whole number of %s's blocks of %" PRIu32,
                      t->dims[0], dtype_name(t->type), block);
    size_t row = dtype_row_bytes(t->type, t->dims[0]);
    uint64_t rows = t->dims[1] * t->dims[2] * t->dims[3]; /* cannot wrap: see parse_dims */
    if (!row || __builtin_mul_overflow(row, rows, &t->size))
        return refuse(r, REALM_CORRUPT, offset, "dims: the tensor's bytes pass 2^64");
    return REALM_OK;
}

/* All but where the data are, which depends on where the last description ends: file_offset is the
 * file's own number until place_tensor. */
static realm_status parse_tensor(reader *r, gguf_tensor *t)
{
    realm_status status = read_name(r, &t->name, LARGEST_NAME_BYTES, "name");
    if (!status)
        status = parse_dims(r, t);
    if (!status)
        status = parse_tensor_type(r, t);
    if (!status)
        status = read_u64(r, &t->file_offset, "offset");
    return status;
}

static realm_status parse_tensors(reader *r, gguf_file *file, size_t count, uint32_t shard,
                                  arena *memory)
{
    r->part = "tensor";
    file->tensors = arena_take_array(memory, count, sizeof *file->tensors);
    file->tensor_entries = arena_take_array(memory, count, sizeof *file->tensor_entries);
    if (!file->tensors || !file->tensor_entries)
        return refuse_memory(r, count * sizeof *file->tensors);
    for (size_t i = 0; i < count; i++) {
        r->ordinal = i;
        file->tensor_entries[i] = r->at;
        realm_status status = parse_tensor(r, &file->tensors[i]);
        if (status)
            return status;
        file->tensors[i].shard = shard;
    }
    file->tensor_count = count;
    return REALM_OK;
}

/* The same place in messages for what is found only after the last description was read. */
static void return_to(reader *r, const gguf_file *file, size_t i)
{
    r->ordinal = i;
    r->name = file->tensors[i].name;
}

static realm_status place_tensor(reader *r, gguf_file *file, size_t i, uint64_t data_start)
{
    gguf_tensor *t = &file->tensors[i];
    uint64_t size = file->map.size, entry = file->tensor_entries[i], begin;
    return_to(r, file, i);
    if (t->file_offset % file->alignment)
        return refuse(r, REALM_CORRUPT, entry,
                      "offset: %" PRIu64 " is not a multiple of the alignment %" PRIu32,
                      t->file_offset, file->alignment);
    if (__builtin_add_overflow(data_start, t->file_offset, &begin) || begin > size ||
        t->size > size - begin)
        return refuse(r, REALM_CORRUPT, entry,
                      "offset: %zu bytes at %" PRIu64
                      " of the data pass the file's end; it has %" PRIu64 " bytes of data",
                      t->size, t->file_offset, size > data_start ? size - data_start : 0);
    t->file_offset = begin;
    t->data = file->map.data + begin;
    return REALM_OK;
}

typedef struct extent {
    uint64_t begin, end;
    size_t tensor;
} extent;

static int by_begin(const void *a, const void *b)
{
    uint64_t x = ((const extent *)a)->begin, y = ((const extent *)b)->begin;
    return (x > y) - (x < y);
}

static realm_status refuse_overlap(reader *r, const gguf_file *file, size_t one, size_t other)
{
    size_t first = one < other ? one : other, second = one < other ? other : one;
    const gguf_tensor *t = &file->tensors[first];
    return_to(r, file, second);
    return refuse(r, REALM_CORRUPT, file->tensor_entries[second],
                  "offset: its data overlap those of tensor %zu '%.*s'", first,
                  t->name.size < 100 ? (int)t->name.size : 100, t->name.data);
}

/* Files are written in order nearly always, which one look shows; the others are sorted. */
static realm_status check_overlaps(reader *r, const gguf_file *file)
{
    const gguf_tensor *t = file->tensors;
    size_t count = file->tensor_count, in_order = 1;
    while (in_order < count &&
           t[in_order - 1].file_offset + t[in_order - 1].size <= t[in_order].file_offset)
        in_order++;
    if (in_order >= count)
        return REALM_OK;
    extent *extents = malloc(count * sizeof *extents);
    if (!extents)
        return refuse_memory(r, count * sizeof *extents);
    for (size_t i = 0; i < count; i++)
        extents[i] = (extent){t[i].file_offset, t[i].file_offset + t[i].size, i};
    qsort(extents, count, sizeof *extents, by_begin);
    realm_status status = REALM_OK;
    for (size_t i = 1; i < count && !status; i++)
        if (extents[i - 1].end > extents[i].begin)
            status = refuse_overlap(r, file, extents[i - 1].tensor, extents[i].tensor);
    free(extents);
    return status;
}

static realm_status place_tensors(reader *r, gguf_file *file)
{
    uint64_t mask = (uint64_t)file->alignment - 1;
    uint64_t data_start = ((uint64_t)r->at + mask) & ~mask; /* a vocabulary may end before it */
    for (size_t i = 0; i < file->tensor_count; i++) {
        realm_status status = place_tensor(r, file, i, data_start);
        if (status)
            return status;
    }
    return check_overlaps(r, file);
}

realm_status gguf_parse(gguf_file *file, uint32_t shard, arena *memory, realm_error *error)
{
    reader r = {.file = file, .part = "header", .ordinal = UINT64_MAX, .error = error};
    header h = {0};
    realm_status status = parse_header(&r, &h, &file->version);
    if (!status)
        status = parse_pairs(&r, file, (size_t)h.pair_count, memory);
    if (!status)
        status = read_alignment(&r, file);
    if (!status)
        status = parse_tensors(&r, file, (size_t)h.tensor_count, shard, memory);
    if (!status)
        status = place_tensors(&r, file);
    return status;
}
