/* tests/unit/formats/gguf_refused_test.c: every lie a file can tell is refused, with its field and
 * its offset.
 *
 * One good file is written and one place in it changed at a time. The bytes are copied to memory of
 * exactly their size, so that AddressSanitizer sees one byte too far. */
#include "unit/unit.h"

#include "unit/formats/gguf_forge.h"

static buffer g_good;

static int write_good(void **state)
{
    (void)state;
    gguf_forge w;
    gguf_forge_init(&w);
    gguf_forge_string(&w, "general.architecture", "llama");
    gguf_forge_u32(&w, "general.alignment", 32);
    gguf_forge_strings(&w, "words", 3, (const char *const[]){"one", "", "three"});
    gguf_forge_array(&w, "ints", GGUF_I32, 3, (int32_t[]){1, 2, 3}, 12);
    gguf_forge_array(&w, "bools", GGUF_BOOL, 2, (uint8_t[]){0, 1}, 2);
    gguf_forge_pair(&w, "flag", GGUF_BOOL, &(uint8_t){1}, 1);
    gguf_forge_tensor(&w, "tensor.a", DTYPE_F32, (uint64_t[4]){8, 2}, NULL);   /* bytes 0 to 64 */
    gguf_forge_tensor(&w, "tensor.b", DTYPE_Q4_0, (uint64_t[4]){32, 2}, NULL); /* 64 to 100 */
    gguf_forge_tensor(&w, "tensor.c", DTYPE_F16, (uint64_t[4]){16, 1}, NULL);  /* 128 to 160 */
    gguf_forge_finish(&w, &g_good);
    gguf_forge_release(&w);
    return 0;
}

static int release_good(void **state)
{
    (void)state;
    buffer_release(&g_good);
    return 0;
}

static realm_status open_copy(const void *bytes, size_t size, realm_error *error)
{
    gguf *g = NULL;
    void *exact = malloc(size ? size : 1);
    memcpy(exact, bytes, size);
    realm_status status = gguf_open_memory(&g, exact, size, error);
    assert_int_equal(status == REALM_OK, g != NULL);
    gguf_close(g);
    free(exact);
    return status;
}

typedef struct lie {
    const char
        *name; /* what is changed stands at `at` bytes after it; NULL: from the file's start */
    int at;
    int width;
    uint64_t value;
    realm_status status;
    const char *said;
} lie;

static const lie lies[] = {
    {NULL, 0, 4, 0x46474755, REALM_CORRUPT, "offset 0, header: magic"},
    {NULL, 4, 4, 1, REALM_UNSUPPORTED, "offset 4, header: version: is 1"},
    {NULL, 4, 4, 4, REALM_UNSUPPORTED, "version: is 4"},
    {NULL, 4, 4, 0, REALM_CORRUPT, "version: is 0"},
    {NULL, 4, 4, 0x03000000, REALM_UNSUPPORTED, "big-endian"},
    {NULL, 8, 8, (uint64_t)1 << 60, REALM_CORRUPT, "offset 8, header: tensor_count"},
    {NULL, 8, 8, UINT64_MAX, REALM_CORRUPT, "tensor_count"},
    {NULL, 8, 8, 4, REALM_CORRUPT, "tensor 3"},
    {NULL, 16, 8, (uint64_t)1 << 60, REALM_CORRUPT, "offset 16, header: metadata_kv_count"},
    {NULL, 16, 8, 65537, REALM_CORRUPT, "metadata_kv_count"},
    {NULL, 24, 8, (uint64_t)1 << 60, REALM_CORRUPT, "offset 24, metadata 0: key: claims"},
    {NULL, 24, 8, UINT64_MAX - 31, REALM_CORRUPT, "metadata 0: key: claims"},
    {NULL, 24, 8, 0, REALM_CORRUPT, "metadata 0: key: has 0 bytes"},
    {"general.architecture", 0, 4, 13, REALM_CORRUPT,
     "'general.architecture': type of the value: there is no type 13"},
    {"general.architecture", 0, 4, UINT32_MAX, REALM_CORRUPT, "there is no type"},
    {"general.architecture", 4, 8, UINT64_MAX, REALM_CORRUPT,
     "'general.architecture': value: claims"},
    {"general.architecture", 4, 8, (uint64_t)1 << 60, REALM_CORRUPT,
     "value: claims 1152921504606846976 bytes"},
    {"general.alignment", 4, 4, 0, REALM_CORRUPT,
     "'general.alignment': value: 0 is not a power of two"},
    {"general.alignment", 4, 4, 4, REALM_CORRUPT, "4 is not a power of two from 8 on"},
    {"general.alignment", 4, 4, 48, REALM_CORRUPT, "48 is not a power of two"},
    {"general.alignment", 4, 4, UINT32_MAX, REALM_CORRUPT, "is not a power of two"},
    {"general.alignment", 4, 4, 0x80000000u, REALM_CORRUPT, "pass the file's end"},
    {"general.alignment", 0, 4, GGUF_F32, REALM_CORRUPT, "general.alignment"},
    {"words", 4, 4, GGUF_ARRAY, REALM_UNSUPPORTED, "'words': type: arrays of arrays"},
    {"words", 4, 4, 13, REALM_CORRUPT, "type of the array's elements: there is no type 13"},
    {"words", 8, 8, (uint64_t)1 << 60, REALM_CORRUPT, "count of the array: 1152921504606846976"},
    {"words", 8, 8, (uint64_t)1 << 61, REALM_CORRUPT, "count of the array"},
    {"words", 8, 8, UINT64_MAX, REALM_CORRUPT, "count of the array"},
    {"words", 16, 8, UINT64_MAX, REALM_CORRUPT, "length of a string in the array: claims"},
    {"words", 16, 8, UINT64_MAX - 7, REALM_CORRUPT, "length of a string in the array: claims"},
    {"ints", 8, 8, (uint64_t)1 << 62, REALM_CORRUPT, "'ints': count of the array"},
    {"ints", 8, 8, (uint64_t)1 << 60, REALM_CORRUPT, "'ints': count of the array"},
    {"bools", 17, 1, 2, REALM_CORRUPT, "'bools': value: a bool is 2"},
    {"flag", 4, 1, 255, REALM_CORRUPT, "'flag': value: a bool is 255"},
    {"flag", -4, 4, 0x73746E69, REALM_CORRUPT, "'ints': key: stands at offset"}, /* "ints" again */
    {"tensor.a", -16, 8, 0, REALM_CORRUPT, "tensor 0: name: has 0 bytes"},
    {"tensor.a", -16, 8, 1025, REALM_CORRUPT, "tensor 0: name"},
    {"tensor.a", -16, 8, UINT64_MAX, REALM_CORRUPT, "tensor 0: name: claims"},
    {"tensor.a", 0, 4, 0, REALM_CORRUPT, "tensor 0 'tensor.a': n_dims: 0"},
    {"tensor.a", 0, 4, 5, REALM_CORRUPT, "n_dims: 5"},
    {"tensor.a", 0, 4, UINT32_MAX, REALM_CORRUPT, "n_dims"},
    {"tensor.a", 4, 8, 0, REALM_CORRUPT, "dims[0]: is 0"},
    {"tensor.a", 12, 8, 0, REALM_CORRUPT, "dims[1]: is 0"},
    {"tensor.a", 4, 8, (uint64_t)1 << 63, REALM_CORRUPT, "dims[0]: with"},
    {"tensor.a", 12, 8, (uint64_t)1 << 61, REALM_CORRUPT, "dims[1]: with"}, /* 8 x 2^61 is 0 */
    {"tensor.a", 4, 8, (uint64_t)1 << 61, REALM_CORRUPT, "bytes pass 2^64"},
    {"tensor.a", 4, 8, (uint64_t)1 << 40, REALM_CORRUPT, "pass the file's end"},
    {"tensor.a", 4, 8, 16, REALM_CORRUPT,
     "tensor 1 'tensor.b': offset: its data overlap those of tensor 0 'tensor.a'"},
    {"tensor.a", 20, 4, 4, REALM_UNSUPPORTED, "type: 4 is none that Realm reads"},
    {"tensor.a", 20, 4, 16, REALM_UNSUPPORTED, "type: 16"},
    {"tensor.a", 20, 4, UINT32_MAX, REALM_UNSUPPORTED, "type: 4294967295"},
    {"tensor.a", 20, 4, DTYPE_Q4_0, REALM_CORRUPT,
     "dims[0]: a row of 8 is no whole number of Q4_0's blocks of 32"},
    {"tensor.b", 4, 8, 33, REALM_CORRUPT, "'tensor.b': dims[0]: a row of 33"},
    {"tensor.b", 24, 8, 65, REALM_CORRUPT,
     "'tensor.b': offset: 65 is not a multiple of the alignment 32"},
    {"tensor.b", 24, 8, 0, REALM_CORRUPT, "'tensor.b': offset: its data overlap"},
    {"tensor.b", 24, 8, 32, REALM_CORRUPT, "overlap"},
    {"tensor.c", 24, 8, 96, REALM_CORRUPT,
     "'tensor.c': offset: its data overlap those of tensor 1"},
    {"tensor.c", 24, 8, 160, REALM_CORRUPT, "pass the file's end"},
    {"tensor.c", 24, 8, (uint64_t)1 << 40, REALM_CORRUPT, "pass the file's end"},
    {"tensor.c", 24, 8, UINT64_MAX - 31, REALM_CORRUPT, "pass the file's end"},
    {"tensor.c", 24, 8, INT64_MAX - 31, REALM_CORRUPT, "pass the file's end"},
    {"tensor.c", -1, 1, 'a', REALM_CORRUPT, "tensor 2 'tensor.a': name: is tensor 0's"},
};

static void every_lie_is_refused_by_name(void **state)
{
    (void)state;
    realm_error error;
    char *bytes = malloc(g_good.size);
    assert_status(open_copy(g_good.data, g_good.size, &error), REALM_OK, error);
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        const lie *l = &lies[i];
        memcpy(bytes, g_good.data, g_good.size);
        const uint8_t *place = l->name ? gguf_forge_find(&g_good, l->name) : (uint8_t *)g_good.data;
        memcpy(bytes + (place - (uint8_t *)g_good.data) + l->at, &l->value, (size_t)l->width);
        realm_status status = open_copy(bytes, g_good.size, &error);
        if (status != l->status)
            fail_msg("lie %zu (%s): %s: %s", i, l->said, realm_status_name(status),
                     status ? error.message : "accepted");
        assert_holds(error.message, l->said);
        assert_holds(error.message, "'(memory)', offset ");
    }
    free(bytes);
}

static void every_truncation_is_refused(void **state)
{
    (void)state;
    for (size_t size = 0; size < g_good.size; size++) {
        realm_error error;
        assert_status(open_copy(g_good.data, size, &error), REALM_CORRUPT, error);
        assert_holds(error.message, "offset ");
    }
}

/* A claim of 65,536 pairs or a million tensors costs memory only if the bytes for them are
 * there. */
static void a_claim_takes_no_memory_before_it_is_believed(void **state)
{
    (void)state;
    realm_error error;
    const size_t size = 14 * 65536;
    uint8_t *bytes = calloc(1, size);
    memcpy(bytes, "GGUF\3\0\0\0", 8);
    memcpy(bytes + 16, &(uint64_t){65536}, 8);
    assert_status(open_copy(bytes, size, &error), REALM_CORRUPT, error);
    assert_holds(error.message, "metadata_kv_count"); /* 24 bytes too few for that many */
    free(bytes);
}

static void a_shard_in_memory_is_refused(void **state)
{
    (void)state;
    realm_error error;
    gguf_forge w;
    buffer file;
    gguf_forge_init(&w);
    gguf_forge_u32(&w, "split.count", 2);
    gguf_forge_u32(&w, "split.no", 0);
    gguf_forge_finish(&w, &file);
    assert_status(open_copy(file.data, file.size, &error), REALM_UNSUPPORTED, error);
    buffer_release(&file);
    gguf_forge_release(&w);
}

static void what_is_on_disk_is_named_in_the_sentence(void **state)
{
    (void)state;
    gguf *g;
    realm_error error;
    assert_status(gguf_open(&g, "/no/such/model.gguf", &error), REALM_NOT_FOUND, error);
    assert_holds(error.message, "/no/such/model.gguf");
    assert_null(g);
    assert_status(gguf_open(&g, "/tmp", &error), REALM_INVALID, error);
    assert_status(gguf_open(&g, REALM_SOURCE_DIR "/tests/unit/unit.h", &error), REALM_CORRUPT,
                  error);
    assert_holds(error.message, "tests/unit/unit.h', offset 0, header: magic");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_lie_is_refused_by_name),
        cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(a_claim_takes_no_memory_before_it_is_believed),
        cmocka_unit_test(a_shard_in_memory_is_refused),
        cmocka_unit_test(what_is_on_disk_is_named_in_the_sentence),
    };
    return cmocka_run_group_tests(tests, write_good, release_good);
}
