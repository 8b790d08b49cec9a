/* tests/unit/model/placement_test.c: where a model goes when the device has room for all of it, for some
 * layers, for none, or for less than it said. The device is the processor, made to look like one with
 * little memory. */
#include "unit/unit.h"

#include <unistd.h>

#include "model/placement.h"
#include "support/tiny_model.h"

#define N_LAYERS 7 /* of the tiny gemma3 */

static char path[64];

static int make_model(void **state)
{
    (void)state;
    snprintf(path, sizeof path, "/tmp/realm_placement_test_XXXXXX");
    int descriptor = mkstemp(path);
    if (descriptor < 0 || close(descriptor) != 0)
        return 1;
    tiny_model_save(&(tiny_model){.architecture = "gemma3", .seed = 1}, path);
    return 0;
}

static int drop_model(void **state)
{
    (void)state;
    return unlink(path);
}

/* ---- a small device ---------------------------------------------------------------------------- */

static const backend_table *real;
static backend_table small;
static uint64_t said_bytes; /* what the device says is free */
static int weights_left;    /* weights it takes before it is full; below 0: any number */
static int devices_open;

static void small_memory(const backend *b, backend_memory *out)
{
    real->memory(b, out);
    out->free_bytes = said_bytes;
}

static realm_status small_weight_open(backend *b, weight **out, const weight_source *source,
                                      realm_error *error)
{
    if (weights_left == 0)
        return realm_fail(error, REALM_NO_MEMORY, "the small device is full");
    weights_left -= weights_left > 0;
    return real->weight_open(b, out, source, error);
}

static void small_close(backend *b)
{
    devices_open--;
    real->close(b);
}

static backend *open_small(uint64_t free_bytes, int n_weights)
{
    backend *b;
    realm_error error;
    assert_status(backend_cpu_open(&b, &(backend_cpu_options){.n_threads = 1}, &error), REALM_OK,
                  error);
    real = b->table;
    small = *real;
    small.kind = "small";
    small.memory = small_memory;
    small.weight_open = small_weight_open;
    small.close = small_close;
    said_bytes = free_bytes;
    weights_left = n_weights;
    devices_open = 1;
    b->table = &small;
    return b;
}

/* Bytes with which n layers fit, and not one more. */
static uint64_t room_for(int32_t n)
{
    realm_error error;
    gguf *g;
    hyperparameters h;
    const model_options options = {0};
    uint64_t low = 0, high = (uint64_t)1 << 40;
    assert_status(gguf_open(&g, path, &error), REALM_OK, error);
    assert_status(hyperparameters_read(&h, g, &error), REALM_OK, error);
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (placement_layers_that_fit(g, &h, middle, &options) >= n)
            high = middle;
        else
            low = middle + 1;
    }
    assert_int_equal(placement_layers_that_fit(g, &h, low, &options), n);
    assert_true(n == 0 || placement_layers_that_fit(g, &h, low - 1, &options) == n - 1);
    gguf_close(g);
    return low;
}

typedef struct placed {
    backend *on;
    model *m;
    realm_status status;
    realm_error error;
} placed;

static placed place(uint64_t free_bytes, int n_weights, const placement *p)
{
    placed x = {.on = open_small(free_bytes, n_weights)};
    x.status = placement_open_on(&x.m, &x.on, path, p, NULL, &x.error);
    return x;
}

static void expect(placed *x, const char *kind, const char *words)
{
    char text[256];
    assert_status(x->status, REALM_OK, x->error);
    assert_string_equal(x->on->table->kind, kind);
    x->on->table->describe(x->on, text, sizeof text);
    if (words && !strstr(text, words))
        fail_msg("'%s' says nothing of '%s'", text, words);
    model_close(x->m);
    x->on->table->close(x->on);
    assert_int_equal(devices_open, 0);
}

static void expect_refusal(placed *x, realm_status status, const char *words)
{
    assert_int_equal(x->status, status);
    assert_null(x->m);
    assert_null(x->on);
    assert_int_equal(devices_open, 0);
    if (!strstr(x->error.message, words))
        fail_msg("'%s' says nothing of '%s'", x->error.message, words);
}

/* ---- tests ------------------------------------------------------------------------------------------ */

static void as_many_layers_as_fit(void **state)
{
    (void)state;
    for (int32_t n = 1; n < N_LAYERS; n++) {
        char words[32];
        placed x = place(room_for(n), -1, &(placement){0});
        snprintf(words, sizeof words, "for %d layers", n);
        expect(&x, "small+cpu", words);
    }
    placed x = place(room_for(N_LAYERS), -1, &(placement){0});
    expect(&x, "small", NULL);
    x = place(room_for(1) - 1, -1, &(placement){0});
    expect(&x, "cpu", NULL);
}

static void as_many_as_asked(void **state)
{
    (void)state;
    placed x = place(0, -1, &(placement){.device = "cuda", .gpu_layers = 3});
    expect(&x, "small+cpu", "for 3 layers");
    x = place(0, -1, &(placement){.device = "cuda", .gpu_layers = N_LAYERS + 1});
    expect(&x, "small", NULL);
    x = place(0, 4, &(placement){.device = "auto", .gpu_layers = 3});
    expect_refusal(&x, REALM_NO_MEMORY, "the small device is full");
}

/* The device takes fewer weights than its size promised. */
static void what_does_not_fit_goes_to_the_processor(void **state)
{
    (void)state;
    const uint64_t plenty = (uint64_t)1 << 40;
    placed x = place(plenty, 40, &(placement){0});
    expect(&x, "cpu", NULL);
    x = place(plenty, 40, &(placement){.device = "cuda"});
    expect_refusal(&x, REALM_NO_MEMORY, "the small device is full");
    x = place(0, -1, &(placement){.device = "cuda"});
    expect_refusal(&x, REALM_NO_MEMORY, "no room for a layer");
}

static void other_errors_are_told_as_they_are(void **state)
{
    (void)state;
    realm_error error;
    backend *on = open_small((uint64_t)1 << 40, -1);
    model *m;
    assert_int_equal(
        placement_open_on(&m, &on, "/nowhere/model.gguf", &(placement){0}, NULL, &error),
        REALM_NOT_FOUND);
    assert_null(m);
    assert_null(on);
    assert_int_equal(placement_open(&m, &on, path, &(placement){.device = "tpu"}, NULL, &error),
                     REALM_INVALID);
    assert_int_equal(
        placement_open(&m, &on, path, &(placement){.device = "cpu", .gpu_layers = 2}, NULL, &error),
        REALM_INVALID);
    assert_null(on);
    assert_non_null(strstr(error.message, "gpu-layers"));
}

static void layers_are_read_from_words(void **state)
{
    (void)state;
    realm_error error;
    int32_t n = -1;
    assert_int_equal(placement_parse_layers(NULL, &n, &error), REALM_OK);
    assert_int_equal(n, 0);
    assert_int_equal(placement_parse_layers("auto", &n, &error), REALM_OK);
    assert_int_equal(n, 0);
    assert_int_equal(placement_parse_layers("20", &n, &error), REALM_OK);
    assert_int_equal(n, 20);
    static const char *const wrong[] = {"", "0", "-1", "x", "3x", " 3", "99999999999"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_int_equal(placement_parse_layers(wrong[i], &n, &error), REALM_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_many_layers_as_fit),
        cmocka_unit_test(as_many_as_asked),
        cmocka_unit_test(what_does_not_fit_goes_to_the_processor),
        cmocka_unit_test(other_errors_are_told_as_they_are),
        cmocka_unit_test(layers_are_read_from_words),
    };
    return cmocka_run_group_tests(tests, make_model, drop_model);
}
