/* tests/unit/base/file_test.c: what base/file.h promises, in a folder of its own under the
 * system's. */
#include "unit/unit.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"

static char g_folder[64];

static const char *in_folder(const char *leaf)
{
    static char paths[4][512];
    static int turn;
    char *path = paths[turn++ & 3];
    snprintf(path, sizeof paths[0], "%s/%s", g_folder, leaf);
    return path;
}

static int entries_of_folder(void)
{
    int count = 0;
    DIR *folder = opendir(g_folder);
    while (readdir(folder))
        count++;
    closedir(folder);
    return count - 2;
}

static int make_folder(void **state)
{
    (void)state;
    strcpy(g_folder, "/tmp/realm-file-test-XXXXXX");
    return mkdtemp(g_folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", g_folder);
    return system(command);
}

static void what_is_written_is_mapped_and_read(void **state)
{
    (void)state;
    realm_error error;
    file_map map;
    arena a;
    char *data;
    size_t size;
    arena_init(&a, 1 << 20);
    assert_status(file_write(in_folder("a"), "hello\0you", 9, &error), REALM_OK, error);
    assert_status(file_map_open(&map, in_folder("a"), &error), REALM_OK, error);
    assert_int_equal(map.size, 9);
    assert_memory_equal(map.data, "hello\0you", 9);
    /* The mapping keeps the old content when the file is replaced. */
    assert_status(file_write(in_folder("a"), "new", 3, &error), REALM_OK, error);
    assert_memory_equal(map.data, "hello\0you", 9);
    file_map_close(&map);
    assert_status(file_read(&a, in_folder("a"), 3, &data, &size, &error), REALM_OK, error);
    assert_int_equal(size, 3);
    assert_string_equal(data, "new");
    assert_status(file_read(&a, in_folder("a"), 2, &data, &size, &error), REALM_TOO_LARGE, error);
    arena_release(&a);
}

static void new_files_obey_the_umask(void **state)
{
    (void)state;
    realm_error error;
    struct stat info;
    mode_t before = umask(0027);
    assert_status(file_write(in_folder("mode"), "", 0, &error), REALM_OK, error);
    umask(before);
    assert_int_equal(stat(in_folder("mode"), &info), 0);
    assert_int_equal(info.st_mode & 0777, 0640);
}

static void an_empty_file_maps_to_nothing(void **state)
{
    (void)state;
    realm_error error;
    file_map map;
    assert_status(file_write(in_folder("empty"), NULL, 0, &error), REALM_OK, error);
    assert_status(file_map_open(&map, in_folder("empty"), &error), REALM_OK, error);
    assert_int_equal(map.size, 0);
    assert_null(map.data);
    file_map_close(&map);
}

static void what_is_no_file_is_said_to_be_none(void **state)
{
    (void)state;
    realm_error error;
    file_map map;
    assert_int_equal(mkfifo(in_folder("pipe"), 0600), 0);
    assert_status(file_map_open(&map, in_folder("pipe"), &error), REALM_INVALID, error);
    assert_status(file_map_open(&map, g_folder, &error), REALM_INVALID, error);
    assert_status(file_map_open(&map, in_folder("none"), &error), REALM_NOT_FOUND, error);
    assert_holds(error.message, "none");
    assert_int_equal(map.descriptor, -1);
}

static void a_failed_write_leaves_the_old_file_and_no_rest(void **state)
{
    (void)state;
    realm_error error;
    int before = entries_of_folder();
    assert_int_equal(mkdir(in_folder("is-a-folder"), 0700), 0);
    assert_int_not_equal(file_write(in_folder("is-a-folder"), "x", 1, &error), REALM_OK);
    assert_status(file_write(in_folder("no/such/folder"), "x", 1, &error), REALM_NOT_FOUND, error);
    assert_int_equal(entries_of_folder(), before + 1);
}

/* Readers of a file that is rewritten all the time see one whole content or the other. */
static void *rewrite(void *argument)
{
    static char ones[100000], twos[100000];
    memset(ones, '1', sizeof ones);
    memset(twos, '2', sizeof twos);
    for (int i = 0; i < 60; i++)
        file_write(argument, i % 2 ? twos : ones, sizeof ones, NULL);
    return NULL;
}

static void readers_never_see_half_a_write(void **state)
{
    (void)state;
    realm_error error;
    pthread_t thread;
    char path[256];
    snprintf(path, sizeof path, "%s/whole", g_folder);
    rewrite(path);
    assert_int_equal(pthread_create(&thread, NULL, rewrite, path), 0);
    for (int i = 0; i < 200; i++) {
        file_map map;
        assert_status(file_map_open(&map, path, &error), REALM_OK, error);
        assert_int_equal(map.size, 100000);
        for (size_t j = 0; j < map.size; j += 999)
            assert_int_equal(map.data[j], map.data[0]);
        file_map_close(&map);
    }
    pthread_join(thread, NULL);
}

static void folders_are_made_with_their_parents(void **state)
{
    (void)state;
    realm_error error;
    struct stat info;
    assert_status(file_make_folders(in_folder("x/y/z"), &error), REALM_OK, error);
    assert_status(file_make_folders(in_folder("x/y/z"), &error), REALM_OK, error);
    assert_int_equal(stat(in_folder("x/y/z"), &info), 0);
    assert_int_equal(info.st_mode & 0777, 0700);
    assert_status(file_write(in_folder("x/file"), "", 0, &error), REALM_OK, error);
    assert_status(file_make_folders(in_folder("x/file"), &error), REALM_INVALID, error);
}

static void the_cache_follows_the_environment(void **state)
{
    (void)state;
    realm_error error;
    char path[512];
    setenv("REALM_CACHE", in_folder("cache"), 1);
    assert_status(file_cache_path(path, sizeof path, "modules/one", &error), REALM_OK, error);
    assert_string_equal(path, in_folder("cache/modules/one"));
    assert_int_equal(access(in_folder("cache/modules"), W_OK), 0);
    unsetenv("REALM_CACHE");
    setenv("XDG_CACHE_HOME", in_folder("xdg"), 1);
    assert_status(file_cache_path(path, sizeof path, "one", &error), REALM_OK, error);
    assert_string_equal(path, in_folder("xdg/realm/one"));
    assert_status(file_cache_path(path, 10, "one", &error), REALM_INVALID, error);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_mapped_and_read),
        cmocka_unit_test(new_files_obey_the_umask),
        cmocka_unit_test(an_empty_file_maps_to_nothing),
        cmocka_unit_test(what_is_no_file_is_said_to_be_none),
        cmocka_unit_test(a_failed_write_leaves_the_old_file_and_no_rest),
        cmocka_unit_test(readers_never_see_half_a_write),
        cmocka_unit_test(folders_are_made_with_their_parents),
        cmocka_unit_test(the_cache_follows_the_environment),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
