/* tests/unit/model/weight_folder_test.c: model/weight_folder.h: which files of a folder stay and which
 * go; and formats' gguf_identity, which names them. */
#include "unit/unit.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "compute/weight_file.h"
#include "model/weight_folder.h"
#include "support/tiny_model.h"

static char g_folder[64];

static const char *in_folder(const char *leaf)
{
    static char paths[4][160];
    static int turn;
    char *path = paths[turn++ & 3];
    snprintf(path, sizeof paths[0], "%s/%s", g_folder, leaf);
    return path;
}

static int make_folder(void **state)
{
    (void)state;
    strcpy(g_folder, "/tmp/realm-folder-test-XXXXXX");
    return mkdtemp(g_folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", g_folder);
    return system(command);
}

/* A whole file of packed weights that was used so many hours ago. */
static void put(const char *leaf, const char *origin, int hours_ago)
{
    static uint8_t data[100000];
    realm_error error;
    const char *path = in_folder(leaf);
    weight_cache_options o = {.path = path, .origin = origin};
    weight_file_part part = {{"w", 2, 16, 32, 0, 7, sizeof data}, data};
    assert_status(weight_file_write(&o, &part, 1, &error), REALM_OK, error);
    struct timespec used = {time(NULL) - hours_ago * 3600, 0}, times[2] = {used, used};
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

static void put_text(const char *leaf, int hours_ago)
{
    const char *path = in_folder(leaf);
    FILE *file = fopen(path, "w");
    fputs("not weights", file);
    fclose(file);
    struct timespec used = {time(NULL) - hours_ago * 3600, 0}, times[2] = {used, used};
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

static int is_there(const char *leaf)
{
    return access(in_folder(leaf), F_OK) == 0;
}

static void weights_of_what_the_model_was_before_go(void **state)
{
    (void)state;
    put("now-cpu.weights", "/models/a.gguf", 0);
    put("before-cpu.weights", "/models/a.gguf", 1);
    put("other-cpu.weights", "/models/b.gguf", 1);
    put("before-cuda.weights", "/models/a.gguf", 1); /* another device's are its own affair */
    put_text("broken-cpu.weights", 1);
    put_text("notes.txt", 1000);
    put_text("now-cpu.weights.tmp-1", 2); /* its writer has died */
    put_text("now-cpu.weights.tmp-2", 0); /* its writer may be writing */
    weight_folder_tidy(in_folder("now-cpu.weights"), "/models/a.gguf", UINT64_MAX);
    assert_true(is_there("now-cpu.weights") && is_there("other-cpu.weights"));
    assert_true(is_there("before-cuda.weights") && is_there("notes.txt"));
    assert_true(is_there("now-cpu.weights.tmp-2"));
    assert_false(is_there("before-cpu.weights") || is_there("broken-cpu.weights"));
    assert_false(is_there("now-cpu.weights.tmp-1"));
}

static void what_was_used_longest_ago_goes_when_there_is_too_much(void **state)
{
    (void)state;
    put("a-cpu.weights", "/models/a", 3);
    put("b-cpu.weights", "/models/b", 9);
    put("c-cpu.weights", "/models/c", 1);
    put("now-cpu.weights", "/models/now", 50); /* stays in any case: it is in use */
    struct stat one;
    assert_int_equal(stat(in_folder("a-cpu.weights"), &one), 0);
    uint64_t bytes = (uint64_t)one.st_blocks * 512;
    weight_folder_tidy(in_folder("now-cpu.weights"), "/models/now", 4 * bytes);
    assert_true(is_there("b-cpu.weights"));
    weight_folder_tidy(in_folder("now-cpu.weights"), "/models/now", 4 * bytes - 1);
    assert_false(is_there("b-cpu.weights"));
    assert_true(is_there("a-cpu.weights") && is_there("c-cpu.weights"));
    weight_folder_tidy(in_folder("now-cpu.weights"), "/models/now", 1);
    assert_false(is_there("a-cpu.weights") || is_there("c-cpu.weights"));
    assert_true(is_there("now-cpu.weights"));
}

/* ---- identity ------------------------------------------------------------------------------- */

static void identity_of(const char *path, uint8_t identity[GGUF_IDENTITY_SIZE])
{
    gguf *g;
    realm_error error;
    assert_status(gguf_open(&g, path, &error), REALM_OK, error);
    assert_status(gguf_identity(g, identity, &error), REALM_OK, error);
    gguf_close(g);
}

static void set_time(const char *path, long nanoseconds)
{
    struct timespec times[2] = {{1000000, nanoseconds}, {1000000, nanoseconds}};
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

static void a_model_is_itself_wherever_it_lies_and_another_when_it_changes(void **state)
{
    (void)state;
    const tiny_model t = {.architecture = "llama", .type = DTYPE_Q8_0, .seed = 5};
    uint8_t first[GGUF_IDENTITY_SIZE], second[GGUF_IDENTITY_SIZE];
    char path[160], moved[160];
    snprintf(path, sizeof path, "%s", in_folder("m.gguf"));
    snprintf(moved, sizeof moved, "%s", in_folder("moved.gguf"));
    tiny_model_save(&t, path);
    set_time(path, 5);
    identity_of(path, first);
    identity_of(path, second);
    assert_memory_equal(first, second, sizeof first);
    assert_int_equal(rename(path, moved), 0);
    identity_of(moved, second);
    assert_memory_equal(first, second, sizeof first);
    set_time(moved, 6); /* a nanosecond */
    identity_of(moved, second);
    assert_memory_not_equal(first, second, sizeof first);

    /* Other weights of the same shapes under the same time: samples tell, in every tensor. */
    gguf *g;
    realm_error error;
    assert_status(gguf_open(&g, moved, &error), REALM_OK, error);
    size_t n = gguf_tensor_count(g);
    int file = open(moved, O_RDWR);
    for (size_t i = 0; i < n; i++) {
        const gguf_tensor *of = gguf_tensor_at(g, i);
        off_t at = (off_t)(of->file_offset + of->size / 2);
        uint8_t byte, other;
        assert_int_equal(pread(file, &byte, 1, at), 1);
        other = byte ^ 1;
        assert_int_equal(pwrite(file, &other, 1, at), 1);
        set_time(moved, 5);
        identity_of(moved, second);
        assert_memory_not_equal(first, second, sizeof first);
        assert_int_equal(pwrite(file, &byte, 1, at), 1);
    }
    set_time(moved, 5);
    identity_of(moved, second);
    assert_memory_equal(first, second, sizeof first);
    close(file);
    gguf_close(g);

    gguf_writer w;
    gguf_writer_init(&w);
    tiny_model_metadata(&t, &w);
    buffer bytes;
    buffer_init(&bytes, 1 << 26);
    assert_status(gguf_writer_bytes(&w, &bytes, &error), REALM_OK, error);
    assert_status(gguf_open_memory(&g, bytes.data, bytes.size, &error), REALM_OK, error);
    assert_int_equal(gguf_identity(g, second, &error), REALM_UNSUPPORTED);
    gguf_close(g);
    buffer_release(&bytes);
    gguf_writer_release(&w);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make_folder, remove_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(weights_of_what_the_model_was_before_go),
        TEST(what_was_used_longest_ago_goes_when_there_is_too_much),
        TEST(a_model_is_itself_wherever_it_lies_and_another_when_it_changes),
    };
    log_set_level(LOG_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
