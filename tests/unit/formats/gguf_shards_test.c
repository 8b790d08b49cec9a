/* tests/unit/formats/gguf_shards_test.c: a model in three files is one model; files that do not
 * belong together are refused. */
#include "unit/unit.h"

#include <dirent.h>
#include <unistd.h>

#include "base/file.h"
#include "unit/formats/gguf_forge.h"

static char g_folder[64];

static const char *shard_path(int shard, int count)
{
    static char paths[2][256];
    static int turn;
    char *path = paths[turn++ & 1];
    snprintf(path, sizeof paths[0], "%s/m-%05d-of-%05d.gguf", g_folder, shard + 1, count);
    return path;
}

static int open_descriptors(void)
{
    int count = 0;
    DIR *folder = opendir("/proc/self/fd");
    while (readdir(folder))
        count++;
    closedir(folder);
    return count;
}

static void write_file(const gguf_forge *w, const char *path)
{
    realm_error error;
    buffer file;
    gguf_forge_finish(w, &file);
    unlink(path);
    assert_status(file_write(path, file.data, file.size, &error), REALM_OK, error);
    buffer_release(&file);
}

/* A shard that says of itself what it is told to; its two tensors are named after name. */
static void write_shard(const char *path, const char *name, uint32_t no, uint32_t count,
                        uint32_t tensors)
{
    gguf_forge w;
    char leaf[64];
    gguf_forge_init(&w);
    if (no == 0)
        gguf_forge_string(&w, "general.architecture", "llama");
    gguf_forge_pair(&w, "split.no", GGUF_U16, &(uint16_t){(uint16_t)no}, 2);
    gguf_forge_pair(&w, "split.count", GGUF_U16, &(uint16_t){(uint16_t)count}, 2);
    gguf_forge_pair(&w, "split.tensors.count", GGUF_I32, &tensors, 4);
    for (int i = 0; i < 2; i++) {
        float numbers[8] = {(float)no, (float)i};
        snprintf(leaf, sizeof leaf, "%s.%d", name, i);
        gguf_forge_tensor(&w, leaf, DTYPE_F32, (uint64_t[4]){8}, numbers);
    }
    write_file(&w, path);
    gguf_forge_release(&w);
}

static int make_folder(void **state)
{
    (void)state;
    strcpy(g_folder, "/tmp/realm-shards-XXXXXX");
    return mkdtemp(g_folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", g_folder);
    return system(command);
}

/* Each test starts from three good shards. */
static int write_good(void **state)
{
    (void)state;
    static const char *const names[] = {"first", "second", "third"};
    for (int i = 0; i < 3; i++)
        write_shard(shard_path(i, 3), names[i], (uint32_t)i, 3, 6);
    return 0;
}

static void refused(const char *path, realm_status status, const char *said)
{
    realm_error error;
    gguf *g;
    int before = open_descriptors();
    assert_status(gguf_open(&g, path, &error), status, error);
    assert_holds(error.message, said);
    assert_null(g);
    assert_int_equal(open_descriptors(), before);
}

static void three_files_are_one_model(void **state)
{
    (void)state;
    realm_error error;
    gguf *g;
    int before = open_descriptors();
    assert_status(gguf_open(&g, shard_path(0, 3), &error), REALM_OK, error);
    assert_int_equal(gguf_shard_count(g), 3);
    assert_int_equal(gguf_tensor_count(g), 6);
    assert_int_equal(gguf_pair_count(g), 4);
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < 3; i++) {
        assert_string_equal(gguf_shard_path(g, i), shard_path((int)i, 3));
        bytes += (uint64_t)lseek(gguf_shard_descriptor(g, i), 0, SEEK_END);
    }
    assert_int_equal(gguf_file_bytes(g), bytes);
    const gguf_tensor *t = gguf_find_tensor(g, "third.1");
    assert_int_equal(t->shard, 2);
    float numbers[8];
    memcpy(numbers, t->data, sizeof numbers);
    assert_true(numbers[0] == 2 && numbers[1] == 1);
    assert_int_equal(pread(gguf_shard_descriptor(g, 2), numbers, 32, (off_t)t->file_offset), 32);
    assert_memory_equal(numbers, t->data, 32);
    gguf_close(g);
    assert_int_equal(open_descriptors(), before);
}

static void a_missing_shard_is_named(void **state)
{
    (void)state;
    unlink(shard_path(1, 3));
    refused(shard_path(0, 3), REALM_NOT_FOUND, "shard 2 of 3: cannot open");
}

static void only_the_first_shard_opens(void **state)
{
    (void)state;
    refused(shard_path(1, 3), REALM_INVALID, "is shard 2 of 3; open the first one");
}

static void a_shard_that_leads_back_to_the_first_is_refused(void **state)
{
    (void)state;
    unlink(shard_path(2, 3));
    assert_int_equal(symlink(shard_path(0, 3), shard_path(2, 3)), 0);
    refused(shard_path(0, 3), REALM_CORRUPT, "metadata 'split.no': is 0 in shard 2");
}

static void wrong_numbers_and_counts_are_refused(void **state)
{
    (void)state;
    write_shard(shard_path(1, 3), "second", 2, 3, 6);
    refused(shard_path(0, 3), REALM_CORRUPT, "'split.no': is 2 in shard 1");
    write_shard(shard_path(1, 3), "second", 1, 4, 6);
    refused(shard_path(0, 3), REALM_CORRUPT, "'split.count': is 4 and the first shard's 3");
    write_shard(shard_path(1, 3), "second", 1, 1, 6); /* says that it is alone */
    refused(shard_path(0, 3), REALM_CORRUPT, "'split.count': is 1 and");
    write_shard(shard_path(1, 3), "second", 1, 3, 7);
    refused(shard_path(0, 3), REALM_CORRUPT, "'split.tensors.count': is 7 and the first shard's 6");
    for (int i = 0; i < 3; i++)
        write_shard(shard_path(i, 3), (const char *const[]){"a", "b", "c"}[i], (uint32_t)i, 3, 7);
    refused(shard_path(0, 3), REALM_CORRUPT, "'split.tensors.count': is 7 and the shards hold 6");
}

static void a_tensor_in_two_shards_is_refused(void **state)
{
    (void)state;
    write_shard(shard_path(2, 3), "first", 2, 3, 6);
    refused(shard_path(0, 3), REALM_CORRUPT, "tensor 0 'first.0': name: is tensor 0's of");
}

static void a_damaged_shard_is_named(void **state)
{
    (void)state;
    realm_error error;
    assert_status(file_write(shard_path(1, 3), "GGUF", 4, &error), REALM_OK, error);
    refused(shard_path(0, 3), REALM_CORRUPT, "m-00002-of-00003.gguf', offset 4, header: version");
}

static void a_first_shard_must_be_named_as_one(void **state)
{
    (void)state;
    char path[128];
    snprintf(path, sizeof path, "%s/renamed.gguf", g_folder);
    write_shard(path, "first", 0, 3, 6);
    refused(path, REALM_CORRUPT, "must end in -00001-of-00003.gguf");
    snprintf(path, sizeof path, "%s/m.gguf", g_folder);
    write_shard(path, "first", 0, 60000, 6);
    refused(path, REALM_CORRUPT, "'split.count': 60000 is more than 1024");
}

static void a_shard_without_a_number_is_refused(void **state)
{
    (void)state;
    gguf_forge w;
    gguf_forge_init(&w);
    gguf_forge_u32(&w, "split.count", 3);
    write_file(&w, shard_path(0, 3));
    refused(shard_path(0, 3), REALM_CORRUPT, "'split.no': is missing");
    gguf_forge_string(&w, "split.no", "zero");
    write_file(&w, shard_path(0, 3));
    refused(shard_path(0, 3), REALM_CORRUPT, "'split.no'");
    gguf_forge_release(&w);
}

static void a_split_of_one_is_a_plain_file(void **state)
{
    (void)state;
    realm_error error;
    gguf *g;
    char path[128];
    snprintf(path, sizeof path, "%s/plain.gguf", g_folder);
    write_shard(path, "only", 0, 1, 2);
    assert_status(gguf_open(&g, path, &error), REALM_OK, error);
    assert_int_equal(gguf_shard_count(g), 1);
    gguf_close(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(three_files_are_one_model, write_good),
        cmocka_unit_test_setup(a_missing_shard_is_named, write_good),
        cmocka_unit_test_setup(only_the_first_shard_opens, write_good),
        cmocka_unit_test_setup(a_shard_that_leads_back_to_the_first_is_refused, write_good),
        cmocka_unit_test_setup(wrong_numbers_and_counts_are_refused, write_good),
        cmocka_unit_test_setup(a_tensor_in_two_shards_is_refused, write_good),
        cmocka_unit_test_setup(a_damaged_shard_is_named, write_good),
        cmocka_unit_test_setup(a_first_shard_must_be_named_as_one, write_good),
        cmocka_unit_test_setup(a_shard_without_a_number_is_refused, write_good),
        cmocka_unit_test_setup(a_split_of_one_is_a_plain_file, write_good),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
