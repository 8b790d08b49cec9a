/* tests/unit/compute/backend_open_test.c: a device is found by a word, and what cannot be had is refused
 * with a reason or, where the choice was left open, replaced by the processor. Holds on machines with and
 * without a device. */
#include "unit/unit.h"

#include "base/log.h"
#include "compute/backend_open.h"

static void words_that_name_no_device_are_refused(void **state)
{
    (void)state;
    static const char *const words[] = {"gpu",     "cuda:", "cuda:x",    "cuda:-1",
                                        "cuda:0x", "cudax", "cuda:9999", ""};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        realm_error error = {0};
        backend *b = NULL;
        assert_status(backend_open(&b, &(backend_options){.device = words[i]}, &error),
                      REALM_INVALID, error);
        assert_holds(error.message, "none of auto, cpu, cuda");
        assert_null(b);
    }
}

static void the_processor_is_had_by_its_name(void **state)
{
    (void)state;
    realm_error error;
    backend *b = NULL;
    assert_status(backend_open(&b, &(backend_options){.device = "cpu", .n_threads = 1}, &error),
                  REALM_OK, error);
    assert_string_equal(b->table->kind, "cpu");
    b->table->close(b);
}

static void auto_always_gives_a_device(void **state)
{
    (void)state;
    realm_error error;
    backend *b = NULL;
    assert_status(backend_open(&b, NULL, &error), REALM_OK, error);
    char text[256];
    b->table->describe(b, text, sizeof text);
    assert_holds(text, b->table->kind);
    b->table->close(b);
}

/* A plug-in that is not there: auto takes the processor, cuda says which file. */
static void a_missing_plug_in_is_named(void **state)
{
    (void)state;
    realm_error error;
    backend *b = NULL;
    setenv("REALM_CUDA_PLUGIN", "/nowhere/librealm_cuda.so", 1);
    assert_status(backend_open(&b, &(backend_options){.device = "cuda"}, &error), REALM_UNSUPPORTED,
                  error);
    assert_holds(error.message, "/nowhere/librealm_cuda.so");
    assert_status(backend_open(&b, &(backend_options){.device = "auto"}, &error), REALM_OK, error);
    assert_string_equal(b->table->kind, "cpu");
    b->table->close(b);
}

static void a_library_that_is_no_plug_in_is_refused(void **state)
{
    (void)state;
    realm_error error;
    backend *b = NULL;
    setenv("REALM_CUDA_PLUGIN", "libc.so.6", 1);
    assert_status(backend_open(&b, &(backend_options){.device = "cuda:0"}, &error),
                  REALM_UNSUPPORTED, error);
    assert_holds(error.message, "another Realm");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(words_that_name_no_device_are_refused),
        cmocka_unit_test(the_processor_is_had_by_its_name),
        cmocka_unit_test(auto_always_gives_a_device),
        cmocka_unit_test(a_missing_plug_in_is_named),
        cmocka_unit_test(a_library_that_is_no_plug_in_is_refused),
    };
    log_set_level(LOG_OFF);
    return cmocka_run_group_tests_name("backend_open", tests, NULL, NULL);
}
