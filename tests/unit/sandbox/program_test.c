/* Compiled programs on disk: used when whole, compiled again when not, refused when others may have
 * written them. */
#include "harness.h"

#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"

static char folder[64];
static const char guest[] = WAT(
    "(func $handle (result i32) (call $say (i32.const 111)) (i32.const 0))");

static int setup(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/realm-programs-XXXXXX");
    assert_non_null(mkdtemp(folder));
    log_set_level(LOG_ERROR); /* it warns of the damage done here */
    return 0;
}

/* The only entry's path, or "". */
static const char *entry(void)
{
    static char path[400];
    path[0] = '\0';
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d));)
        if (strstr(e->d_name, ".compiled"))
            snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
    if (d)
        closedir(d);
    return path;
}

static int teardown(void **state)
{
    (void)state;
    if (*entry())
        unlink(entry());
    rmdir(folder);
    return 0;
}

/* Opens a host on the folder, compiles, runs; whether the code came from the cache. */
static int from_cache(const char *expected_text)
{
    harness h;
    harness_open(&h, &(fake_options){.inline_works = 1}, 0);
    sandbox_host *own = h.host;
    realm_error error;
    assert_status(
        sandbox_host_open(
            &h.host, &(sandbox_host_options){.cache_folder = folder, .max_requests = 4}, &error),
        REALM_OK, error);
    program *p = harness_program(&h, guest);
    program_info info;
    program_describe(p, &info);
    outcome o = harness_run_program(&h, p, "");
    assert_string_equal(o.text, expected_text);
    program_release(p);
    harness_close(&h);
    sandbox_host_close(own);
    return info.from_cache;
}

static void a_program_is_compiled_once(void **state)
{
    (void)state;
    assert_int_equal(from_cache("o"), 0);
    struct stat info;
    assert_int_equal(stat(folder, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0700);
    assert_int_equal(from_cache("o"), 1);
    assert_int_equal(from_cache("o"), 1);
}

static void damage_anywhere_is_found_and_mended(void **state)
{
    (void)state;
    struct stat info;
    from_cache("o");
    assert_int_equal(stat(entry(), &info), 0);
    for (int i = 0; i < 12; i++) {
        FILE *f = fopen(entry(), "r+b");
        assert_non_null(f);
        long at = info.st_size * i / 12;
        fseek(f, at, SEEK_SET);
        int byte = fgetc(f);
        fseek(f, at, SEEK_SET);
        fputc(byte ^ 1, f);
        fclose(f);
        assert_int_equal(from_cache("o"), 0);
        assert_int_equal(from_cache("o"), 1);
    }
    for (long size = info.st_size - 1; size > 0; size /= 3) {
        assert_int_equal(truncate(entry(), size), 0);
        assert_int_equal(from_cache("o"), 0);
    }
}

static void a_folder_that_others_may_write_is_not_used(void **state)
{
    (void)state;
    from_cache("o");
    assert_int_equal(chmod(folder, 0777), 0);
    assert_int_equal(from_cache("o"), 0);
    assert_int_equal(chmod(folder, 0700), 0);
    assert_int_equal(from_cache("o"), 1);
}

static void the_description_tells_what_a_program_needs(void **state)
{
    (void)state;
    harness h;
    harness_open(&h, &(fake_options){.inline_works = 1}, 0);
    program *p = harness_program(&h, guest);
    program_info info;
    program_describe(p, &info);
    assert_string_equal(info.name, "test");
    assert_int_equal(info.memory_bytes, 65536);
    assert_int_equal(info.memory64, 0);
    assert_true(info.capabilities & CAPABILITY_TENSORS);
    assert_int_equal(strlen(info.hash), 64);
    program_release(p);
    harness_close(&h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_program_is_compiled_once),
        cmocka_unit_test(damage_anywhere_is_found_and_mended),
        cmocka_unit_test(a_folder_that_others_may_write_is_not_used),
        cmocka_unit_test(the_description_tells_what_a_program_needs),
    };
    return cmocka_run_group_tests_name("programs", tests, setup, teardown);
}
