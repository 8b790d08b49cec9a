/* tests/unit/model/synthetic_test.c: random models have the published models' sizes, load, and
 * compute finite numbers. (tests/golden/test_synthetic.py has llama.cpp's logits of the tiny ones.) */
#include "unit/unit.h"

#include <math.h>
#include <unistd.h>

#include "base/rng.h"
#include "compute/cpu/quants.h"
#include "model/synthetic.h"
#include "support/model_run.h"

static synthetic_model find(const char *name)
{
    synthetic_model m;
    realm_error error;
    assert_status(synthetic_find(&m, name, &error), REALM_OK, error);
    return m;
}

/* Numbers of parameters as Hugging Face counts them in the models' own files. */
static void shapes_have_the_published_numbers_of_parameters(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint64_t parameters;
    } published[] = {
        {"smol-135m", 134515008},     {"gemma-3-270m", 268098176},  {"qwen2.5-0.5b", 494032768},
        {"qwen3-0.6b", 596049920},    {"gemma-3-1b", 999885952},    {"tinyllama-1b", 1100048384},
        {"llama-3.2-1b", 1235814400}, {"qwen2.5-1.5b", 1543714304}, {"llama-3.2-3b", 3212749824},
        {"phi-3-mini", 3821079552},   {"qwen3-4b", 4022468096},     {"llama-2-7b", 6738415616},
        {"qwen2.5-7b", 7615616512},   {"llama-3-8b", 8030261248},   {"qwen3-8b", 8190735360},
        {"llama-2-13b", 13015864320}, {"llama-2-70b", 68976648192},
    };
    size_t found = 0;
    realm_error error;
    for (size_t i = 0; synthetic_shape_at(i) != NULL; i++) {
        synthetic_model m = find(synthetic_shape_at(i)->name);
        synthetic_size size;
        assert_status(synthetic_measure(&m, &size, &error), REALM_OK, error);
        for (size_t j = 0; j < sizeof published / sizeof *published; j++)
            if (strcmp(published[j].name, m.shape->name) == 0) {
                found++;
                if (size.parameters != published[j].parameters)
                    fail_msg("%s has %llu parameters, not %llu", m.shape->name,
                             (unsigned long long)size.parameters,
                             (unsigned long long)published[j].parameters);
            }
    }
    assert_int_equal(found, sizeof published / sizeof *published);
}

/* Bytes of the files that are published under these names; the vocabularies' texts differ. */
static void mixes_have_the_published_files_sizes(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        double bytes;
    } published[] = {
        {"llama-2-7b:q3_k_m", 3298004672.0}, {"llama-2-7b:q4_k_m", 4081004224.0},
        {"llama-2-7b:q5_k_m", 4783156928.0}, {"llama-2-70b:q4_k_m", 41423091392.0},
        {"llama-2-7b:q8_0", 7161089728.0},
    };
    for (size_t i = 0; i < sizeof published / sizeof *published; i++) {
        synthetic_model m = find(published[i].name);
        synthetic_size size;
        realm_error error;
        assert_status(synthetic_measure(&m, &size, &error), REALM_OK, error);
        if (fabs((double)size.file_bytes / published[i].bytes - 1) > 0.001)
            fail_msg("%s has %llu bytes, not %.0f", published[i].name,
                     (unsigned long long)size.file_bytes, published[i].bytes);
    }
}

static void names_that_are_none_list_what_there_is(void **state)
{
    (void)state;
    synthetic_model m;
    realm_error error;
    assert_status(synthetic_find(&m, "llama-2", &error), REALM_INVALID, error);
    assert_holds(error.message, "there is no shape 'llama-2'");
    assert_holds(error.message, "llama-2-70b");
    assert_status(synthetic_find(&m, "tiny:q4", &error), REALM_INVALID, error);
    assert_holds(error.message, "there is no quantization 'q4'");
    assert_holds(error.message, "q5_k_m");
    assert_status(synthetic_find(&m, "tiny:", &error), REALM_INVALID, error);
    assert_status(synthetic_find(&m, "", &error), REALM_INVALID, error);
    assert_string_equal(find("tiny").quantization->name, "q4_k_m");
}

/* Each type's random blocks are spread about as wide as is said, around zero. */
static void random_weights_have_the_wanted_spread(void **state)
{
    (void)state;
    static uint8_t blocks[292 * 256 + 8] __attribute__((aligned(8)));
    static float values[256 * 256];
    const synthetic_quantization *q;
    for (size_t i = 0; (q = synthetic_quantization_at(i)) != NULL; i++) {
        size_t n = 256 * 256,
               bytes = n / dtype_block_elements(q->type) * dtype_block_bytes(q->type);
        if (bytes > sizeof blocks - 8) {
            bytes = sizeof blocks / 4 / 32 * 32;
            n = bytes / dtype_block_bytes(q->type);
        }
        rng random;
        rng_init(&random, i);
        synthetic_fill(q->type, blocks, bytes, &random);
        assert_true(quants_dequantize(q->type, values, blocks, (int64_t)n));
        double sum = 0, squares = 0;
        for (size_t j = 0; j < n; j++) {
            assert_true(isfinite(values[j]));
            sum += (double)values[j];
            squares += (double)values[j] * (double)values[j];
        }
        double spread = sqrt(squares / (double)n), mean = sum / (double)n;
        if (spread < 0.015 || spread > 0.03 || fabs(mean) > 0.15 * spread)
            fail_msg("%s: mean %g, spread %g", q->name, mean, spread);
    }
}

static int write_to(const char *name, uint64_t seed, char *path)
{
    synthetic_model m = find(name);
    realm_error error;
    m.seed = seed;
    strcpy(path, "/tmp/realm-synthetic-XXXXXX");
    int descriptor = mkstemp(path);
    assert_status(synthetic_write(&m, descriptor, NULL, NULL, &error), REALM_OK, error);
    return descriptor;
}

static void expect_finite_logits(const char *name, const char *path)
{
    enum { N_TOKENS = 5 };
    static const token_id prompt[N_TOKENS] = {1, 300, 301, 40, 511};
    static float logits[N_TOKENS * 512];
    model_run run;
    model *m;
    backend *b;
    realm_error error;
    backend_cpu_options options = {.n_threads = 1};
    model_options loading = {0};
    assert_status(backend_cpu_open(&b, &options, &error), REALM_OK, error);
    assert_status(model_open(&m, b, path, &loading, &error), REALM_OK, error);
    model_run_open(&run, m, 32);
    model_run_prompt(&run, prompt, N_TOKENS, N_TOKENS, NULL, logits);
    double least = INFINITY, most = -INFINITY;
    for (size_t i = 0; i < N_TOKENS * 512; i++) {
        assert_true(isfinite(logits[i]));
        least = fmin(least, (double)logits[i]);
        most = fmax(most, (double)logits[i]);
    }
    if (most - least < 0.1 || most - least > 100)
        fail_msg("%s: logits from %g to %g", name, least, most);
    model_run_close(&run);
    model_close(m);
    b->table->close(b);
}

static void tiny_models_of_every_family_and_quantization_load_and_compute(void **state)
{
    (void)state;
    const synthetic_quantization *q;
    const synthetic_shape *s;
    for (size_t i = 0; (q = synthetic_quantization_at(i)) != NULL; i++)
        for (size_t j = 0; (s = synthetic_shape_at(j)) != NULL; j++) {
            if (strncmp(s->name, "tiny", 4) != 0 || strcmp(s->name, "tinyllama-1b") == 0)
                continue;
            if (unit_is_emulated() && i % 5 != j % 5)
                continue;
            char name[64], path[64];
            synthetic_size size;
            realm_error error;
            snprintf(name, sizeof name, "%s:%s", s->name, q->name);
            int descriptor = write_to(name, 1, path);
            synthetic_model m = find(name);
            assert_status(synthetic_measure(&m, &size, &error), REALM_OK, error);
            assert_int_equal(lseek(descriptor, 0, SEEK_END), size.file_bytes);
            expect_finite_logits(name, path);
            close(descriptor);
            unlink(path);
        }
}

static uint64_t sum_of(const char *name, uint64_t seed)
{
    char path[64];
    uint64_t sum = 0, word;
    int descriptor = write_to(name, seed, path);
    lseek(descriptor, 0, SEEK_SET);
    while (read(descriptor, &word, sizeof word) == sizeof word)
        sum = (sum ^ word) * 0x9E3779B97F4A7C15u;
    close(descriptor);
    unlink(path);
    return sum;
}

static void the_seed_alone_decides_the_weights(void **state)
{
    (void)state;
    assert_int_equal(sum_of("tiny:q4_k_m", 1), sum_of("tiny:q4_k_m", 1));
    assert_int_not_equal(sum_of("tiny:q4_k_m", 1), sum_of("tiny:q4_k_m", 2));
}

static void a_disk_that_is_full_says_so(void **state)
{
    (void)state;
    synthetic_model m = find("tiny");
    realm_error error;
    FILE *full = fopen("/dev/full", "w");
    assert_non_null(full);
    assert_status(synthetic_write(&m, fileno(full), NULL, NULL, &error), REALM_IO, error);
    assert_holds(error.message, "No space left");
    fclose(full);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shapes_have_the_published_numbers_of_parameters),
        cmocka_unit_test(mixes_have_the_published_files_sizes),
        cmocka_unit_test(names_that_are_none_list_what_there_is),
        cmocka_unit_test(random_weights_have_the_wanted_spread),
        cmocka_unit_test(tiny_models_of_every_family_and_quantization_load_and_compute),
        cmocka_unit_test(the_seed_alone_decides_the_weights),
        cmocka_unit_test(a_disk_that_is_full_says_so),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
