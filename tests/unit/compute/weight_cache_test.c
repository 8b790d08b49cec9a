/* tests/unit/compute/weight_cache_test.c: compute/weight_cache.h: what is kept comes back bit for bit,
 * and a file that is not whole, not ours or not of this model is as if it were not there. */
#include "unit/unit.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/log.h"
#include "compute/weight_file.h"

#define N_WEIGHTS 5

static char g_folder[64], g_path[96];
static weight_key g_keys[N_WEIGHTS];
static uint8_t *g_data[N_WEIGHTS];

/* Five weights of odd sizes: one that spans chunks, two parts of one tensor. */
static int make_folder(void **state)
{
    (void)state;
    static const size_t sizes[N_WEIGHTS] = {64, 3 * WEIGHT_FILE_CHUNK + 77, 1, 640, 5000};
    static const char *const names[N_WEIGHTS] = {"token_embd.weight", "blk.0.ffn_up.weight",
                                                 "blk.0.attn_qkv.weight", "blk.0.attn_qkv.weight",
                                                 "output.weight"};
    for (int i = 0; i < N_WEIGHTS; i++) {
        g_keys[i] = (weight_key){names[i], (uint32_t)(i % 3), i + 1, 64, i == 3, 7, sizes[i]};
        g_data[i] = malloc(sizes[i]);
        for (size_t k = 0; k < sizes[i]; k++)
            g_data[i][k] = (uint8_t)(k * 31 + (k >> 8) + (size_t)i);
    }
    strcpy(g_folder, "/tmp/realm-weights-test-XXXXXX");
    if (!mkdtemp(g_folder))
        return -1;
    snprintf(g_path, sizeof g_path, "%s/model.weights", g_folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    char command[192];
    for (int i = 0; i < N_WEIGHTS; i++)
        free(g_data[i]);
    snprintf(command, sizeof command, "chmod 700 '%s'; rm -rf '%s'", g_folder, g_folder);
    return system(command);
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

static weight_cache *open_as(weight_cache_mode mode, uint8_t identity)
{
    realm_error error;
    weight_cache *c;
    weight_cache_options o = {
        .path = g_path, .origin = "/models/a.gguf", .mode = mode, .n_threads = 2};
    memset(o.identity, identity, sizeof o.identity);
    assert_status(weight_cache_open(&c, &o, &error), REALM_OK, error);
    return c;
}

static void add_all(weight_cache *c, int count)
{
    realm_error error;
    for (int i = 0; i < count; i++)
        assert_status(weight_cache_add(c, &g_keys[i], g_data[i], &error), REALM_OK, error);
}

/* A whole file of the model with identity 1. */
static void make_file(void)
{
    realm_error error;
    weight_cache *c = open_as(WEIGHT_CACHE_READ, 1);
    add_all(c, N_WEIGHTS);
    assert_status(weight_cache_save(c, &error), REALM_OK, error);
    weight_cache_close(c);
}

/* How many of the weights are found, each with its bits. */
static int found_in(weight_cache *c)
{
    int found = 0;
    for (int i = 0; i < N_WEIGHTS; i++) {
        const void *data = weight_cache_find(c, &g_keys[i]);
        if (!data)
            continue;
        found++;
        assert_int_equal((uintptr_t)data % 64, 0);
        assert_memory_equal(data, g_data[i], g_keys[i].size);
    }
    assert_int_equal(weight_cache_facts_get(c).found, found);
    return found;
}

static int found_after_opening(weight_cache_mode mode, uint8_t identity)
{
    weight_cache *c = open_as(mode, identity);
    int found = found_in(c);
    weight_cache_close(c);
    return found;
}

static void what_is_saved_is_found_bit_for_bit(void **state)
{
    (void)state;
    assert_int_equal(found_after_opening(WEIGHT_CACHE_READ, 1), 0);
    make_file();
    assert_int_equal(found_after_opening(WEIGHT_CACHE_READ, 1), N_WEIGHTS);
    assert_int_equal(found_after_opening(WEIGHT_CACHE_MAP, 1), N_WEIGHTS);
    assert_int_equal(entries_of_folder(), 1); /* no temporary file stays */
    struct stat info;
    assert_int_equal(stat(g_path, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0600);
}

static void every_part_of_the_key_counts(void **state)
{
    (void)state;
    make_file();
    weight_cache *c = open_as(WEIGHT_CACHE_READ, 1);
    for (int i = 0; i < 7; i++) {
        weight_key k = g_keys[0];
        k.name = i == 0 ? "token_embd.weights" : k.name;
        k.type += i == 1;
        k.n_rows += i == 2;
        k.n_cols += i == 3;
        k.first_row += i == 4;
        k.layout += i == 5;
        k.size += i == 6;
        assert_null(weight_cache_find(c, &k));
    }
    assert_non_null(weight_cache_find(c, &g_keys[0]));
    weight_cache_close(c);
}

static void another_model_finds_nothing_and_takes_the_place(void **state)
{
    (void)state;
    make_file();
    realm_error error;
    weight_cache *c = open_as(WEIGHT_CACHE_MAP, 2);
    assert_int_equal(found_in(c), 0);
    add_all(c, 1);
    assert_status(weight_cache_save(c, &error), REALM_OK, error);
    weight_cache_close(c);
    assert_int_equal(found_after_opening(WEIGHT_CACHE_READ, 2), 1);
    assert_int_equal(found_after_opening(WEIGHT_CACHE_READ, 1), 0);
}

/* A kernel with another layout: what still fits is kept, what is new joins it, the rest goes. */
static void a_file_is_completed_and_loses_what_nobody_asks_for(void **state)
{
    (void)state;
    realm_error error;
    make_file();
    weight_cache *c = open_as(WEIGHT_CACHE_MAP, 1);
    for (int i = 0; i < 3; i++)
        assert_non_null(weight_cache_find(c, &g_keys[i]));
    weight_key other = g_keys[4];
    other.layout = 8;
    assert_null(weight_cache_find(c, &other));
    assert_status(weight_cache_add(c, &other, g_data[4], &error), REALM_OK, error);
    assert_status(weight_cache_save(c, &error), REALM_OK, error);
    assert_memory_equal(weight_cache_find(c, &g_keys[1]), g_data[1], g_keys[1].size);
    weight_cache_close(c);
    c = open_as(WEIGHT_CACHE_READ, 1);
    assert_int_equal(found_in(c), 3);
    assert_memory_equal(weight_cache_find(c, &other), g_data[4], other.size);
    weight_cache_close(c);
}

/* ---- damage --------------------------------------------------------------------------------- */

static uint8_t *read_whole(size_t *size)
{
    realm_error error;
    file_map map;
    assert_status(file_map_open(&map, g_path, &error), REALM_OK, error);
    uint8_t *bytes = malloc(map.size);
    memcpy(bytes, map.data, map.size);
    *size = map.size;
    file_map_close(&map);
    return bytes;
}

static void write_bytes(size_t offset, const void *bytes, size_t size)
{
    int file = open(g_path, O_WRONLY);
    assert_int_equal(pwrite(file, bytes, size, (off_t)offset), size);
    close(file);
}

static void expect_nothing(const char *what, size_t offset)
{
    for (int mode = 0; mode < 2; mode++)
        if (found_after_opening(mode ? WEIGHT_CACHE_MAP : WEIGHT_CACHE_READ, 1) != 0)
            fail_msg("%s at %zu: weights were found", what, offset);
}

static void a_file_that_is_cut_short_anywhere_is_not_used(void **state)
{
    (void)state;
    make_file();
    size_t size;
    uint8_t *whole = read_whole(&size);
    const size_t cuts[] = {0,
                           1,
                           16,
                           100,
                           200,
                           4095,
                           4096,
                           4097,
                           4300,
                           4500,
                           5000,
                           WEIGHT_FILE_ALIGN - 1,
                           WEIGHT_FILE_ALIGN,
                           WEIGHT_FILE_ALIGN + 64,
                           size / 2,
                           size - 64,
                           size - 1};
    for (size_t i = sizeof cuts / sizeof *cuts; i-- > 0;) {
        assert_int_equal(truncate(g_path, (off_t)cuts[i]), 0);
        expect_nothing("cut", cuts[i]);
    }
    write_bytes(0, whole, size);
    assert_int_equal(found_after_opening(WEIGHT_CACHE_READ, 1), N_WEIGHTS);
    assert_int_equal(truncate(g_path, (off_t)size + 1), 0); /* nor one that is longer */
    expect_nothing("grown", size + 1);
    free(whole);
}

static void a_flipped_bit_anywhere_is_found(void **state)
{
    (void)state;
    make_file();
    size_t size;
    uint8_t *whole = read_whole(&size);
    weight_file f;
    realm_error error;
    assert_status(weight_file_open_table(&f, g_path, &error), REALM_OK, error);
    size_t table = N_WEIGHTS * sizeof(weight_file_entry) + 4 * sizeof(checksum) + strlen(f.origin) +
                   17 + 19 + 21 + 21 + 13;
    weight_file_close(&f);
    log_set_level(LOG_OFF);
    for (size_t at = 0; at < size; at++) {
        if (at == 120) /* past the header: padding up to the table, and from there to the data */
            at = 4096;
        if (at == 4096 + table)
            at = WEIGHT_FILE_ALIGN;
        if (at > WEIGHT_FILE_ALIGN)
            at += size / 40;
        if (at >= size)
            break;
        uint8_t flipped = whole[at] ^ (uint8_t)(1 << at % 8);
        write_bytes(at, &flipped, 1);
        if (at < 4096 + table && at % 16) {
            realm_status status = weight_file_open_table(&f, g_path, NULL);
            weight_file_close(&f);
            if (status != REALM_CORRUPT)
                fail_msg("offset %zu: %s", at, realm_status_name(status));
        } else {
            expect_nothing("flipped", at);
        }
        write_bytes(at, &whole[at], 1);
    }
    log_set_level(LOG_WARN);
    assert_int_equal(found_after_opening(WEIGHT_CACHE_READ, 1), N_WEIGHTS);
    free(whole);
}

/* A header that is whole in itself, of a version to come. */
static void another_version_is_not_read(void **state)
{
    (void)state;
    make_file();
    size_t size;
    uint8_t *whole = read_whole(&size);
    const size_t version = 20, header_sum = 16 + 8 + 16 + 4 * 8 + 4 * 4 + 16;
    whole[version]++;
    checksum sum = checksum_of(whole, header_sum);
    memcpy(whole + header_sum, &sum, sizeof sum);
    write_bytes(0, whole, 4096);
    expect_nothing("version", version);
    whole[version]--; /* the same way back: it was the version alone */
    sum = checksum_of(whole, header_sum);
    memcpy(whole + header_sum, &sum, sizeof sum);
    write_bytes(0, whole, 4096);
    assert_int_equal(found_after_opening(WEIGHT_CACHE_READ, 1), N_WEIGHTS);
    free(whole);
}

/* A table whose checksums agree with what it says, which is nonsense. */
static void offsets_that_lead_out_of_the_file_are_refused(void **state)
{
    (void)state;
    make_file();
    size_t size;
    uint8_t *whole = read_whole(&size);
    const size_t table_sum = 16 + 8 + 16 + 4 * 8 + 4 * 4, header_sum = table_sum + 16;
    uint64_t table_bytes;
    memcpy(&table_bytes, whole + 48, sizeof table_bytes);
    weight_file_entry *e = (weight_file_entry *)(void *)(whole + 4096), good = *e;
    for (int i = 0; i < 7; i++) {
        *e = good;
        switch (i) {
        case 0: e->offset = UINT64_MAX - 63; break;
        case 1: e->size = UINT64_MAX; break;
        case 2: e->offset = 1; break;
        case 3: e->name = UINT32_MAX; break;
        case 4: e->name_size = UINT32_MAX; break;
        case 5: e->size = 0; break;
        case 6: break; /* the good one: the rest of this test is right */
        }
        checksum sum = checksum_of(whole + 4096, (size_t)table_bytes);
        memcpy(whole + table_sum, &sum, sizeof sum);
        sum = checksum_of(whole, header_sum);
        memcpy(whole + header_sum, &sum, sizeof sum);
        write_bytes(0, whole, 8192);
        assert_int_equal(found_after_opening(WEIGHT_CACHE_READ, 1), i < 6 ? 0 : N_WEIGHTS);
    }
    free(whole);
}

static void a_file_that_others_may_write_is_not_trusted(void **state)
{
    (void)state;
    make_file();
    assert_int_equal(chmod(g_path, 0620), 0);
    expect_nothing("group may write", 0);
    assert_int_equal(chmod(g_path, 0600), 0);
    assert_int_equal(found_after_opening(WEIGHT_CACHE_READ, 1), N_WEIGHTS);
    if (geteuid() == 0) {
        assert_int_equal(chown(g_path, 12345, 12345), 0);
        expect_nothing("another owner", 0);
        assert_int_equal(chown(g_path, 0, 0), 0);
    }
    char elsewhere[128];
    snprintf(elsewhere, sizeof elsewhere, "%s/elsewhere", g_folder);
    assert_int_equal(rename(g_path, elsewhere), 0);
    assert_int_equal(symlink(elsewhere, g_path), 0);
    expect_nothing("a link", 0);
}

/* ---- places that cannot be written ----------------------------------------------------------- */

static void expect_no_save(weight_cache *c)
{
    realm_error error;
    assert_int_equal(weight_cache_save(c, &error), REALM_IO);
    assert_holds(error.message, g_folder);
}

static void a_folder_that_cannot_be_written_is_told(void **state)
{
    (void)state;
    uid_t user = geteuid();
    weight_cache *c = open_as(WEIGHT_CACHE_READ, 1);
    add_all(c, N_WEIGHTS);
    assert_int_equal(chmod(g_folder, 0555), 0);
    if (user == 0)
        assert_int_equal(seteuid(65534), 0); /* root may write everywhere */
    expect_no_save(c);
    if (user == 0)
        assert_int_equal(seteuid(0), 0);
    weight_cache_close(c);
    assert_int_equal(chmod(g_folder, 0700), 0);
    assert_int_equal(entries_of_folder(), 0);
}

static void a_full_disk_leaves_the_file_that_was_there(void **state)
{
    (void)state;
    realm_error error;
    weight_cache *c = open_as(WEIGHT_CACHE_READ, 1);
    add_all(c, 1);
    assert_status(weight_cache_save(c, &error), REALM_OK, error);
    weight_cache_close(c);
    struct rlimit before, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = before;
    small.rlim_cur = WEIGHT_FILE_ALIGN + WEIGHT_FILE_CHUNK; /* ends within the second weight */
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    c = open_as(WEIGHT_CACHE_READ, 1);
    assert_int_equal(found_in(c), 1);
    add_all(c, N_WEIGHTS);
    assert_int_equal(weight_cache_facts_get(c).added, N_WEIGHTS - 1);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    expect_no_save(c);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, handler);
    assert_int_equal(entries_of_folder(), 1);
    assert_int_equal(found_after_opening(WEIGHT_CACHE_READ, 1), 1);
    assert_status(weight_cache_save(c, &error), REALM_OK, error); /* there is room again */
    weight_cache_close(c);
    assert_int_equal(found_after_opening(WEIGHT_CACHE_READ, 1), N_WEIGHTS);
}

/* ---- several at once ------------------------------------------------------------------------- */

static void *start_like_a_process(void *context)
{
    realm_error error;
    weight_cache *c = open_as(WEIGHT_CACHE_READ, 1);
    *(int *)context = found_in(c);
    add_all(c, N_WEIGHTS);
    realm_status status = weight_cache_save(c, &error);
    if (status != REALM_OK)
        *(int *)context = -1;
    weight_cache_close(c);
    return NULL;
}

static void starting_at_once_harms_nobody(void **state)
{
    (void)state;
    for (int round = 0; round < 5; round++) {
        pthread_t threads[4];
        int found[4];
        unlink(g_path);
        for (int i = 0; i < 4; i++)
            assert_int_equal(pthread_create(&threads[i], NULL, start_like_a_process, &found[i]), 0);
        for (int i = 0; i < 4; i++) {
            pthread_join(threads[i], NULL);
            assert_true(found[i] == 0 || found[i] == N_WEIGHTS); /* all or nothing */
        }
        assert_int_equal(entries_of_folder(), 1);
        assert_int_equal(found_after_opening(WEIGHT_CACHE_MAP, 1), N_WEIGHTS);
    }
}

/* The second to save sees that the first has won and leaves its file. */
static void one_of_two_writers_wins(void **state)
{
    (void)state;
    realm_error error;
    weight_cache *a = open_as(WEIGHT_CACHE_READ, 1), *b = open_as(WEIGHT_CACHE_READ, 1);
    struct stat first, second;
    add_all(a, N_WEIGHTS);
    add_all(b, N_WEIGHTS);
    assert_status(weight_cache_save(a, &error), REALM_OK, error);
    assert_int_equal(stat(g_path, &first), 0);
    assert_status(weight_cache_save(b, &error), REALM_OK, error);
    assert_int_equal(stat(g_path, &second), 0);
    assert_int_equal(first.st_ino, second.st_ino);
    weight_cache_close(a);
    weight_cache_close(b);
}

/* What was mapped stays though the file is replaced and removed. */
static void a_mapped_file_outlives_its_name(void **state)
{
    (void)state;
    make_file();
    weight_cache *c = open_as(WEIGHT_CACHE_MAP, 1);
    unlink(g_path);
    assert_int_equal(found_in(c), N_WEIGHTS);
    weight_cache_close(c);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make_folder, remove_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(what_is_saved_is_found_bit_for_bit),
        TEST(every_part_of_the_key_counts),
        TEST(another_model_finds_nothing_and_takes_the_place),
        TEST(a_file_is_completed_and_loses_what_nobody_asks_for),
        TEST(a_file_that_is_cut_short_anywhere_is_not_used),
        TEST(a_flipped_bit_anywhere_is_found),
        TEST(another_version_is_not_read),
        TEST(offsets_that_lead_out_of_the_file_are_refused),
        TEST(a_file_that_others_may_write_is_not_trusted),
        TEST(a_folder_that_cannot_be_written_is_told),
        TEST(a_full_disk_leaves_the_file_that_was_there),
        TEST(starting_at_once_harms_nobody),
        TEST(one_of_two_writers_wins),
        TEST(a_mapped_file_outlives_its_name),
    };
    log_set_level(LOG_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
