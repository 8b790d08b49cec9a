/* tests/unit/formats/gguf_writer_test.c: what the writer writes is what the reader, which was written
 * apart from it, reads. (tests/golden/test_synthetic.py has the reference's reader read its files.) */
#include "unit/unit.h"

#include <unistd.h>

#include "formats/gguf_writer.h"

static const float numbers[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
static const float more_numbers[8] = {-1, -2, -3, -4, -5, -6, -7, -8};

static void put_pairs(gguf_writer *w)
{
    const char *texts[] = {"one", "", "three"};
    gguf_writer_string(w, "general.architecture", "llama");
    gguf_writer_u32(w, "number", 4000000000u);
    gguf_writer_f32(w, "real", 0.5f);
    gguf_writer_bool(w, "yes", 7);
    gguf_writer_strings(w, "texts", texts, 3);
    gguf_writer_u32s(w, "unsigned", (uint32_t[]){1, 4000000000u}, 2);
    gguf_writer_i32s(w, "signed", (int32_t[]){-1, 1}, 2);
    gguf_writer_f32s(w, "reals", (float[]){0.25f, -8}, 2);
}

static void expect_pairs(const gguf *g)
{
    uint32_t u = 0;
    float f = 0;
    int b = 0;
    realm_error error;
    const gguf_value *a;
    assert_int_equal(gguf_pair_count(g), 8);
    assert_status(gguf_get_u32(g, "number", &u, &error), REALM_OK, error);
    assert_status(gguf_get_f32(g, "real", &f, &error), REALM_OK, error);
    assert_status(gguf_get_bool(g, "yes", &b, &error), REALM_OK, error);
    assert_true(u == 4000000000u && f == 0.5f && b == 1);
    assert_status(gguf_get_array(g, "texts", GGUF_STRING, &a, &error), REALM_OK, error);
    assert_int_equal(a->array.count, 3);
    assert_int_equal(gguf_array_string(g, a, 1).size, 0);
    assert_memory_equal(gguf_array_string(g, a, 2).data, "three", 5);
    assert_status(gguf_get_array(g, "unsigned", GGUF_U32, &a, &error), REALM_OK, error);
    assert_int_equal(gguf_array_int(a, 1), 4000000000);
    assert_status(gguf_get_array(g, "signed", GGUF_I32, &a, &error), REALM_OK, error);
    assert_int_equal(gguf_array_int(a, 0), -1);
    assert_status(gguf_get_array(g, "reals", GGUF_F32, &a, &error), REALM_OK, error);
    assert_true(gguf_array_float(a, 1) == -8);
}

static void expect_tensors(const gguf *g)
{
    const gguf_tensor *t = gguf_find_tensor(g, "matrix"), *v = gguf_find_tensor(g, "vector");
    assert_non_null(t);
    assert_non_null(v);
    assert_true(t->n_dims == 2 && t->dims[0] == 4 && t->dims[1] == 3);
    assert_memory_equal(t->data, numbers, sizeof numbers);
    assert_true(v->n_dims == 1 && v->dims[0] == 8);
    assert_memory_equal(v->data, more_numbers, sizeof more_numbers);
}

static void a_file_reads_back_as_it_was_written(void **state)
{
    (void)state;
    gguf_writer w;
    gguf *g;
    realm_error error;
    char path[] = "/tmp/realm-writer-XXXXXX";
    close(mkstemp(path));
    gguf_writer_init(&w);
    put_pairs(&w);
    gguf_writer_tensor(&w, "matrix", DTYPE_F32, 4, 3, numbers);
    gguf_writer_tensor(&w, "vector", DTYPE_F32, 8, 0, more_numbers);
    assert_status(gguf_writer_save(&w, path, &error), REALM_OK, error);
    assert_status(gguf_open(&g, path, &error), REALM_OK, error);
    expect_pairs(g);
    expect_tensors(g);
    gguf_close(g);
    gguf_writer_release(&w);
    unlink(path);
}

static void announced_tensors_follow_the_head_in_their_order(void **state)
{
    (void)state;
    static const char zeros[GGUF_WRITER_ALIGNMENT];
    gguf_writer w;
    gguf *g;
    buffer file;
    realm_error error;
    gguf_writer_init(&w);
    buffer_init(&file, 1 << 20);
    put_pairs(&w);
    assert_int_equal(gguf_writer_announce(&w, "matrix", DTYPE_F32, 4, 3), sizeof numbers);
    assert_int_equal(gguf_writer_announce(&w, "vector", DTYPE_F32, 8, 0), sizeof more_numbers);
    assert_status(gguf_writer_bytes(&w, &file, &error), REALM_INVALID, error);
    assert_status(gguf_writer_head(&w, &file, &error), REALM_OK, error);
    assert_int_equal(file.size % GGUF_WRITER_ALIGNMENT, 0);
    size_t head = file.size;
    buffer_add(&file, numbers, sizeof numbers);
    buffer_add(&file, zeros, 16);
    buffer_add(&file, more_numbers, sizeof more_numbers);
    assert_int_equal(file.size, head + w.data_bytes);
    assert_status(gguf_open_memory(&g, file.data, file.size, &error), REALM_OK, error);
    expect_pairs(g);
    expect_tensors(g);
    gguf_close(g);
    buffer_release(&file);
    gguf_writer_release(&w);
}

static void the_first_failure_comes_out_at_the_end(void **state)
{
    (void)state;
    gguf_writer w;
    buffer file;
    realm_error error;
    gguf_writer_init(&w);
    buffer_init(&file, 1 << 20);
    w.pairs.cap_bytes = 64;
    put_pairs(&w);
    gguf_writer_tensor(&w, "vector", DTYPE_F32, 8, 0, more_numbers);
    assert_status(gguf_writer_bytes(&w, &file, &error), REALM_TOO_LARGE, error);
    assert_status(gguf_writer_save(&w, "/tmp/never", &error), REALM_TOO_LARGE, error);
    assert_int_not_equal(access("/tmp/never", F_OK), 0);
    gguf_writer_release(&w);

    gguf_writer_init(&w);
    put_pairs(&w);
    file.size = 0;
    file.cap_bytes = 80;
    assert_status(gguf_writer_head(&w, &file, &error), REALM_TOO_LARGE, error);
    buffer_release(&file);
    gguf_writer_release(&w);
}

static void a_path_that_cannot_be_written_is_named(void **state)
{
    (void)state;
    gguf_writer w;
    realm_error error;
    gguf_writer_init(&w);
    put_pairs(&w);
    assert_int_not_equal(gguf_writer_save(&w, "/nowhere/model.gguf", &error), REALM_OK);
    assert_holds(error.message, "/nowhere/model.gguf");
    gguf_writer_release(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_reads_back_as_it_was_written),
        cmocka_unit_test(announced_tensors_follow_the_head_in_their_order),
        cmocka_unit_test(the_first_failure_comes_out_at_the_end),
        cmocka_unit_test(a_path_that_cannot_be_written_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
