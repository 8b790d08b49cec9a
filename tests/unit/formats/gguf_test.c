/* tests/unit/formats/gguf_test.c: what a good file says comes out: every type of value, tensors,
 * lookups. That outside writers are understood too is tests/golden/test_gguf.py's part. */
#include "unit/unit.h"

#include <math.h>

#include "base/clock.h"
#include "unit/formats/gguf_forge.h"

/* Opens what w holds. The bytes are in *file and must outlive the result. */
static gguf *open_written(const gguf_forge *w, buffer *file)
{
    gguf *g;
    realm_error error;
    gguf_forge_finish(w, file);
    assert_status(gguf_open_memory(&g, file->data, file->size, &error), REALM_OK, error);
    return g;
}

#define PAIR(key, type, c_type, number)                                                            \
    gguf_forge_pair(&w, key, type, &(c_type){number}, sizeof(c_type))

static void write_numbers(gguf_forge *out)
{
    gguf_forge w = *out;
    PAIR("u8", GGUF_U8, uint8_t, 200);
    PAIR("i8", GGUF_I8, int8_t, -100);
    PAIR("u16", GGUF_U16, uint16_t, 60000);
    PAIR("i16", GGUF_I16, int16_t, -30000);
    PAIR("u32", GGUF_U32, uint32_t, 4000000000u);
    PAIR("i32", GGUF_I32, int32_t, -2000000000);
    PAIR("u64", GGUF_U64, uint64_t, UINT64_MAX);
    PAIR("i64", GGUF_I64, int64_t, INT64_MIN);
    PAIR("positive i64", GGUF_I64, int64_t, 77);
    PAIR("f32", GGUF_F32, float, 1.5f);
    PAIR("f64", GGUF_F64, double, 1e300);
    PAIR("infinity", GGUF_F64, double, INFINITY);
    PAIR("true", GGUF_BOOL, uint8_t, 1);
    PAIR("false", GGUF_BOOL, uint8_t, 0);
    *out = w;
}

static void every_scalar_comes_out(void **state)
{
    (void)state;
    gguf_forge w;
    buffer file;
    gguf_forge_init(&w);
    write_numbers(&w);
    gguf_forge_string(&w, "string", "text");
    gguf *g = open_written(&w, &file);
    assert_int_equal(gguf_pair_count(g), 15);
    assert_true(gguf_find(g, "u8")->u == 200);
    assert_true(gguf_find(g, "i8")->i == -100);
    assert_true(gguf_find(g, "u16")->u == 60000);
    assert_true(gguf_find(g, "i16")->i == -30000);
    assert_true(gguf_find(g, "u32")->u == 4000000000u);
    assert_true(gguf_find(g, "i32")->i == -2000000000);
    assert_true(gguf_find(g, "u64")->u == UINT64_MAX);
    assert_true(gguf_find(g, "i64")->i == INT64_MIN);
    assert_true(gguf_find(g, "f32")->f == 1.5);
    assert_true(gguf_find(g, "f64")->f == 1e300);
    assert_true(gguf_find(g, "true")->u == 1);
    assert_int_equal(gguf_find(g, "string")->string.size, 4);
    assert_null(gguf_find(g, "strin"));
    assert_null(gguf_find(g, ""));
    for (size_t i = 0; i < gguf_pair_count(g); i++) {
        const gguf_pair *pair = gguf_pair_at(g, i);
        uint64_t length;
        memcpy(&length, file.data + pair->offset, 8);
        assert_int_equal(length, pair->key.size);
    }
    gguf_close(g);
    buffer_release(&file);
    gguf_forge_release(&w);
}

static void typed_reading_converts_what_fits_and_refuses_the_rest(void **state)
{
    (void)state;
    gguf_forge w;
    buffer file;
    realm_error error;
    uint32_t u32 = 5;
    uint64_t u64 = 5;
    int64_t i64;
    float f32;
    int flag;
    gguf_string text;
    gguf_forge_init(&w);
    write_numbers(&w);
    gguf_forge_string(&w, "string", "text");
    gguf *g = open_written(&w, &file);

    assert_status(gguf_get_u32(g, "u8", &u32, &error), REALM_OK, error);
    assert_int_equal(u32, 200);
    assert_status(gguf_get_u32(g, "positive i64", &u32, &error), REALM_OK, error);
    assert_int_equal(u32, 77);
    assert_status(gguf_get_u32(g, "absent", &u32, &error), REALM_NOT_FOUND, error);
    assert_holds(error.message, "absent");
    assert_int_equal(u32, 77);
    assert_status(gguf_get_u32(g, "u64", &u32, &error), REALM_CORRUPT, error);
    assert_status(gguf_get_u32(g, "i8", &u32, &error), REALM_CORRUPT, error);
    assert_holds(error.message, "i8");
    assert_holds(error.message, "offset");
    assert_status(gguf_get_u32(g, "true", &u32, &error), REALM_CORRUPT, error);
    assert_status(gguf_get_u32(g, "f32", &u32, &error), REALM_CORRUPT, error);
    assert_status(gguf_get_u32(g, "string", &u32, NULL), REALM_CORRUPT, error);
    assert_int_equal(u32, 77);
    assert_status(gguf_get_u64(g, "u64", &u64, &error), REALM_OK, error);
    assert_true(u64 == UINT64_MAX);
    assert_status(gguf_get_i64(g, "i64", &i64, &error), REALM_OK, error);
    assert_true(i64 == INT64_MIN);
    assert_status(gguf_get_i64(g, "u64", &i64, &error), REALM_CORRUPT, error);
    assert_status(gguf_get_f32(g, "f32", &f32, &error), REALM_OK, error);
    assert_true(f32 == 1.5f);
    assert_status(gguf_get_f32(g, "i16", &f32, &error), REALM_OK, error);
    assert_true(f32 == -30000);
    assert_status(gguf_get_f32(g, "f64", &f32, &error), REALM_CORRUPT, error);
    assert_status(gguf_get_f32(g, "infinity", &f32, &error), REALM_OK, error);
    assert_true(isinf(f32));
    assert_status(gguf_get_f32(g, "string", &f32, &error), REALM_CORRUPT, error);
    assert_status(gguf_get_bool(g, "true", &flag, &error), REALM_OK, error);
    assert_int_equal(flag, 1);
    assert_status(gguf_get_bool(g, "u8", &flag, &error), REALM_CORRUPT, error);
    assert_status(gguf_get_string(g, "string", &text, &error), REALM_OK, error);
    assert_memory_equal(text.data, "text", 4);
    assert_status(gguf_get_string(g, "u8", &text, &error), REALM_CORRUPT, error);
    gguf_close(g);
    buffer_release(&file);
    gguf_forge_release(&w);
}

#define NUMBERS(name, type, c_type, ...)                                                           \
    do {                                                                                           \
        const c_type numbers[] = {__VA_ARGS__};                                                    \
        gguf_forge_array(&w, name, type, sizeof numbers / sizeof *numbers, numbers,                \
                         sizeof numbers);                                                          \
    } while (0)

static void arrays_of_every_type_come_out(void **state)
{
    (void)state;
    static const char *const words[] = {"", "a", "\xFF\xFE", "a longer one"};
    gguf_forge w;
    buffer file;
    realm_error error;
    const gguf_value *a;
    gguf_forge_init(&w);
    NUMBERS("u8", GGUF_U8, uint8_t, 0, 1, 255);
    NUMBERS("i8", GGUF_I8, int8_t, -128, 127);
    NUMBERS("u16", GGUF_U16, uint16_t, 65535);
    NUMBERS("i16", GGUF_I16, int16_t, -32768);
    NUMBERS("u32", GGUF_U32, uint32_t, UINT32_MAX);
    NUMBERS("i32", GGUF_I32, int32_t, INT32_MIN);
    NUMBERS("u64", GGUF_U64, uint64_t, UINT64_MAX);
    NUMBERS("i64", GGUF_I64, int64_t, INT64_MIN, 5);
    NUMBERS("f32", GGUF_F32, float, 0.5f, -2);
    NUMBERS("f64", GGUF_F64, double, 1e300);
    NUMBERS("bool", GGUF_BOOL, uint8_t, 1, 0, 1);
    gguf_forge_strings(&w, "words", 4, words);
    gguf_forge_array(&w, "empty", GGUF_I32, 0, NULL, 0);
    gguf_forge_array(&w, "no words", GGUF_STRING, 0, NULL, 0);
    gguf *g = open_written(&w, &file);
    assert_int_equal(gguf_array_int(gguf_find(g, "u8"), 2), 255);
    assert_int_equal(gguf_array_int(gguf_find(g, "i8"), 0), -128);
    assert_int_equal(gguf_array_int(gguf_find(g, "u16"), 0), 65535);
    assert_int_equal(gguf_array_int(gguf_find(g, "i16"), 0), -32768);
    assert_true(gguf_array_int(gguf_find(g, "u32"), 0) == UINT32_MAX);
    assert_true(gguf_array_int(gguf_find(g, "i32"), 0) == INT32_MIN);
    assert_true((uint64_t)gguf_array_int(gguf_find(g, "u64"), 0) == UINT64_MAX);
    assert_true(gguf_array_float(gguf_find(g, "u64"), 0) == 0x1p64);
    assert_true(gguf_array_int(gguf_find(g, "i64"), 0) == INT64_MIN);
    assert_true(gguf_array_float(gguf_find(g, "f32"), 1) == -2);
    assert_true(gguf_array_float(gguf_find(g, "f64"), 0) == 1e300);
    assert_int_equal(gguf_array_int(gguf_find(g, "bool"), 2), 1);
    assert_status(gguf_get_array(g, "words", GGUF_STRING, &a, &error), REALM_OK, error);
    assert_int_equal(a->array.count, 4);
    for (uint64_t i = 0; i < 4; i++) {
        gguf_string word = gguf_array_string(g, a, i);
        assert_int_equal(word.size, strlen(words[i]));
        assert_memory_equal(word.data, words[i], word.size);
    }
    assert_status(gguf_get_array(g, "empty", GGUF_I32, &a, &error), REALM_OK, error);
    assert_int_equal(a->array.count, 0);
    assert_status(gguf_get_array(g, "words", GGUF_I32, &a, &error), REALM_CORRUPT, error);
    assert_holds(error.message, "array of i32");
    gguf_close(g);
    buffer_release(&file);
    gguf_forge_release(&w);
}

static void tensors_lie_where_the_file_says(void **state)
{
    (void)state;
    float numbers[6] = {1, 2, 3, 4, 5, 6};
    for (uint32_t version = 2; version <= 3; version++) {
        gguf_forge w;
        buffer file;
        gguf_forge_init(&w);
        w.version = version;
        w.alignment = 64;
        gguf_forge_u32(&w, "general.alignment", 64);
        gguf_forge_tensor(&w, "one", DTYPE_Q8_0, (uint64_t[4]){64, 3}, NULL);
        gguf_forge_tensor(&w, "two", DTYPE_F32, (uint64_t[4]){3, 2}, numbers);
        gguf_forge_tensor(&w, "four dims", DTYPE_I8, (uint64_t[4]){2, 3, 4, 5}, NULL);
        gguf *g = open_written(&w, &file);
        assert_int_equal(gguf_version(g), version);
        assert_int_equal(gguf_alignment(g), 64);
        assert_int_equal(gguf_shard_count(g), 1);
        assert_int_equal(gguf_shard_descriptor(g, 0), -1);
        assert_int_equal(gguf_file_bytes(g), file.size);
        assert_int_equal(gguf_tensor_count(g), 3);
        const gguf_tensor *two = gguf_find_tensor(g, "two");
        assert_ptr_equal(two, gguf_tensor_at(g, 1));
        assert_int_equal(two->type, DTYPE_F32);
        assert_int_equal(two->n_dims, 2);
        assert_true(two->dims[0] == 3 && two->dims[1] == 2 && two->dims[2] == 1 &&
                    two->dims[3] == 1);
        assert_int_equal(two->size, sizeof numbers);
        assert_memory_equal(two->data, numbers, sizeof numbers);
        assert_ptr_equal(two->data, file.data + two->file_offset);
        assert_int_equal(two->file_offset % 64, 0);
        assert_int_equal(gguf_find_tensor(g, "one")->size, 6 * 34);
        assert_int_equal(gguf_find_tensor(g, "four dims")->size, 120);
        assert_int_equal(gguf_tensor_bytes(g), 6 * 34 + 24 + 120);
        assert_null(gguf_find_tensor(g, "three"));
        gguf_close(g);
        buffer_release(&file);
        gguf_forge_release(&w);
    }
}

static void tensors_may_stand_in_any_order(void **state)
{
    (void)state;
    gguf_forge w;
    buffer file;
    gguf *g;
    realm_error error;
    uint64_t first = 0, second = 32;
    gguf_forge_init(&w);
    gguf_forge_tensor(&w, "tensor a", DTYPE_F32, (uint64_t[4]){8}, NULL);
    gguf_forge_tensor(&w, "tensor b", DTYPE_F32, (uint64_t[4]){8}, NULL);
    gguf_forge_finish(&w, &file);
    memcpy(gguf_forge_find(&file, "tensor a") + 16, &second, 8);
    memcpy(gguf_forge_find(&file, "tensor b") + 16, &first, 8);
    assert_status(gguf_open_memory(&g, file.data, file.size, &error), REALM_OK, error);
    gguf_close(g);
    buffer_release(&file);
    gguf_forge_release(&w);
}

static void a_file_may_have_nothing_in_it(void **state)
{
    (void)state;
    gguf_forge w;
    buffer file;
    gguf_forge_init(&w);
    gguf *g = open_written(&w, &file);
    assert_int_equal(gguf_pair_count(g), 0);
    assert_int_equal(gguf_tensor_count(g), 0);
    assert_null(gguf_find(g, "x"));
    assert_null(gguf_find_tensor(g, "x"));
    gguf_close(g);
    buffer_release(&file);
    gguf_forge_release(&w);
}

/* Gemma's vocabulary. A millisecond or two where nothing watches; the limit is what a sanitizer on
 * a busy machine needs, and a reader that looked for each string from the front would need
 * hours. */
static void a_vocabulary_of_262144_opens_at_once(void **state)
{
    (void)state;
    enum { COUNT = 262144 };
    gguf_forge w;
    buffer file;
    char *letters = malloc(COUNT * 8);
    const char **words = malloc(COUNT * sizeof *words);
    for (int i = 0; i < COUNT; i++) {
        snprintf(letters + i * 8, 8, "t%06x", i);
        words[i] = letters + i * 8;
    }
    gguf_forge_init(&w);
    gguf_forge_strings(&w, "tokenizer.ggml.tokens", COUNT, words);
    uint64_t start = clock_thread_cpu_ns();
    gguf *g = open_written(&w, &file);
    const gguf_value *a = gguf_find(g, "tokenizer.ggml.tokens");
    for (uint64_t i = 0; i < COUNT; i++)
        assert_memory_equal(gguf_array_string(g, a, i).data, words[i], 7);
    uint64_t took = clock_thread_cpu_ns() - start;
    print_message("opened and read in %.1f ms\n", (double)took / 1e6);
    assert_true(took < 20000000000u); /* each found from the first on would be minutes */
    gguf_close(g);
    buffer_release(&file);
    gguf_forge_release(&w);
    free(letters);
    free(words);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_scalar_comes_out),
        cmocka_unit_test(typed_reading_converts_what_fits_and_refuses_the_rest),
        cmocka_unit_test(arrays_of_every_type_come_out),
        cmocka_unit_test(tensors_lie_where_the_file_says),
        cmocka_unit_test(tensors_may_stand_in_any_order),
        cmocka_unit_test(a_file_may_have_nothing_in_it),
        cmocka_unit_test(a_vocabulary_of_262144_opens_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
