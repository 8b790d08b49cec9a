/* tests/fuzz/fuzz_gguf.c: any bytes as a model file.
 *
 * What gguf_open_memory refuses must be refused with a sentence; what it accepts is walked from end
 * to end, every string, element and tensor touched, and held to the promises of formats/gguf.h. A
 * sanitizer sees what is touched outside; abort() says which promise broke. Seeds: corpus/gguf,
 * made by make_gguf_corpus.py. */
#include "fuzz/fuzz.h"

#include <string.h>

#include "formats/gguf.h"

static volatile uint64_t g_sum; /* so that reads are not left out */

static void touch(const void *bytes, size_t size)
{
    const uint8_t *at = bytes;
    for (size_t i = 0; i < size; i++)
        g_sum += at[i];
}

/* The name as C text if it can be one: without a zero byte and not too long. */
static int as_text(gguf_string name, char text[2048])
{
    if (name.size >= 2048 || memchr(name.data, 0, name.size))
        return 0;
    memcpy(text, name.data, name.size);
    text[name.size] = 0;
    return 1;
}

static void walk_array(const gguf *g, const gguf_value *array)
{
    for (uint64_t i = 0; i < array->array.count; i++) {
        if (array->array.type == GGUF_STRING) {
            gguf_string text = gguf_array_string(g, array, i);
            touch(text.data, text.size);
        } else {
            double real = gguf_array_float(array, i);
            touch(&real, sizeof real);
            g_sum += (uint64_t)gguf_array_int(array, i);
        }
    }
}

static void walk_pair(const gguf *g, const gguf_pair *pair)
{
    char key[2048];
    touch(pair->key.data, pair->key.size);
    promise(gguf_type_name(pair->value.type) != NULL, "types have names");
    if (pair->value.type == GGUF_STRING)
        touch(pair->value.string.data, pair->value.string.size);
    else if (pair->value.type == GGUF_ARRAY)
        walk_array(g, &pair->value);
    if (!as_text(pair->key, key))
        return;
    uint32_t u32;
    uint64_t u64;
    int64_t i64;
    float f32;
    int flag;
    gguf_string text;
    const gguf_value *array;
    realm_error error;
    promise(gguf_find(g, key) == &pair->value, "keys lead to their values");
    gguf_get_u32(g, key, &u32, &error);
    gguf_get_u64(g, key, &u64, &error);
    gguf_get_i64(g, key, &i64, &error);
    gguf_get_f32(g, key, &f32, &error);
    gguf_get_bool(g, key, &flag, &error);
    gguf_get_string(g, key, &text, &error);
    gguf_get_array(g, key, GGUF_STRING, &array, &error);
}

static void walk_tensor(const gguf *g, const gguf_tensor *t, const uint8_t *data, size_t size)
{
    char name[2048];
    promise(dtype_name(t->type) != NULL, "types of tensors are known");
    promise(t->size > 0 && t->file_offset <= size && t->size <= size - t->file_offset,
            "tensors lie in the file");
    promise(t->data == data + t->file_offset, "data lie at their offset");
    promise(t->n_dims >= 1 && t->n_dims <= GGUF_MAX_DIMS, "there are 1 to 4 dims");
    promise(t->size == dtype_row_bytes(t->type, t->dims[0]) * t->dims[1] * t->dims[2] * t->dims[3],
            "the size is that of the dims");
    touch(t->data, t->size);
    if (as_text(t->name, name))
        promise(gguf_find_tensor(g, name) == t, "names lead to their tensors");
}

static int by_address(const void *a, const void *b)
{
    const gguf_tensor *x = *(const gguf_tensor *const *)a, *y = *(const gguf_tensor *const *)b;
    return (x->data > y->data) - (x->data < y->data);
}

static void check_overlaps(const gguf *g)
{
    size_t count = gguf_tensor_count(g);
    const gguf_tensor **sorted = malloc((count + 1) * sizeof *sorted);
    promise(sorted != NULL, "the host has memory");
    for (size_t i = 0; i < count; i++)
        sorted[i] = gguf_tensor_at(g, i);
    qsort(sorted, count, sizeof *sorted, by_address);
    for (size_t i = 1; i < count; i++)
        promise(sorted[i - 1]->data + sorted[i - 1]->size <= sorted[i]->data,
                "tensors do not overlap");
    free(sorted);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    gguf *g;
    realm_error error = {0};
    realm_status status = gguf_open_memory(&g, data, size, &error);
    if (status) {
        promise(!g && error.status == status && error.message[0], "refusals come with a sentence");
        promise(status == REALM_CORRUPT || status == REALM_UNSUPPORTED,
                "bytes are corrupt or unsupported");
        return 0;
    }
    promise(gguf_version(g) == 2 || gguf_version(g) == 3, "versions are 2 or 3");
    promise(gguf_file_bytes(g) == size, "the file is as large as it is");
    for (size_t i = 0; i < gguf_pair_count(g); i++)
        walk_pair(g, gguf_pair_at(g, i));
    for (size_t i = 0; i < gguf_tensor_count(g); i++)
        walk_tensor(g, gguf_tensor_at(g, i), data, size);
    check_overlaps(g);
    gguf_close(g);
    return 0;
}
