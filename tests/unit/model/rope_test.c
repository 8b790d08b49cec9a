/* tests/unit/model/rope_test.c: rotary frequencies against the formulas of their papers. */
#include "unit/unit.h"

#include <math.h>

#include "formats/gguf_writer.h"
#include "model/rope.h"

typedef struct fixture {
    gguf_writer w;
    buffer bytes;
    gguf *g;
    arena a;
    hyperparameters h;
} fixture;

/* A model of which only rotary numbers matter: 32 dimensions, base 10000, context 4096. */
static void fixture_init(fixture *f)
{
    memset(f, 0, sizeof *f);
    gguf_writer_init(&f->w);
    buffer_init(&f->bytes, 1 << 20);
    arena_init(&f->a, 0);
    f->h.architecture = architecture_find("llama", 5);
    f->h.n_rot = f->h.key_dim = 32;
    f->h.n_context = 4096;
    f->h.rope_base = f->h.rope_base_local = 10000;
    f->h.rope_scale_linear = f->h.rope_scale_local = 1;
}

static realm_status build(fixture *f, rope *out, rope_layers layers, int32_t context,
                          realm_error *error)
{
    assert_status(gguf_writer_bytes(&f->w, &f->bytes, error), REALM_OK, *error);
    assert_status(gguf_open_memory(&f->g, f->bytes.data, f->bytes.size, error), REALM_OK, *error);
    return rope_build(out, &f->a, &f->h, f->g, layers, context, error);
}

static void fixture_release(fixture *f)
{
    gguf_close(f->g);
    arena_release(&f->a);
    buffer_release(&f->bytes);
    gguf_writer_release(&f->w);
}

static double plain(int i)
{
    return pow(10000, -2.0 * i / 32);
}

static void assert_near(double a, double b)
{
    if (fabs(a - b) > 1e-6 * fabs(b))
        fail_msg("%.9g is not %.9g", a, b);
}

static void frequencies_fall_by_the_base(void **state)
{
    (void)state;
    fixture f;
    rope r;
    realm_error error;
    fixture_init(&f);
    assert_status(build(&f, &r, ROPE_GLOBAL, 4096, &error), REALM_OK, error);
    assert_int_equal(r.n_rot, 32);
    assert_true(r.kind == ROPE_NORMAL && r.magnitude == 1);
    for (int i = 0; i < 16; i++)
        assert_near((double)r.inverse_frequency[i], plain(i));
    fixture_release(&f);
}

static void linear_scaling_slows_all_pairs_alike(void **state)
{
    (void)state;
    fixture f;
    rope r;
    realm_error error;
    fixture_init(&f);
    f.h.rope_scale_linear = 0.25f;
    gguf_writer_string(&f.w, "llama.rope.scaling.type", "linear");
    assert_status(build(&f, &r, ROPE_GLOBAL, 4096, &error), REALM_OK, error);
    for (int i = 0; i < 16; i++)
        assert_near((double)r.inverse_frequency[i], plain(i) / 4);
    assert_true(r.magnitude == 1);
    fixture_release(&f);
}

static void local_layers_have_a_base_of_their_own(void **state)
{
    (void)state;
    fixture f;
    rope r;
    realm_error error;
    fixture_init(&f);
    f.h.rope_base = 1e6f;
    f.h.rope_scale_linear = 0.125f;
    assert_status(build(&f, &r, ROPE_LOCAL, 4096, &error), REALM_OK, error);
    for (int i = 0; i < 16; i++)
        assert_near((double)r.inverse_frequency[i], plain(i));
    fixture_release(&f);
}

/* arXiv 2309.00071, section 3.2: with L = 1024 and s = 8 a pair of wavelength below L/32 keeps its
 * frequency, one above L/1 is divided by s. Equation 22: sqrt(1/t) = 0.1 ln(s) + 1. */
static void yarn_keeps_fast_pairs_and_interpolates_slow_ones(void **state)
{
    (void)state;
    fixture f;
    rope r;
    realm_error error;
    fixture_init(&f);
    f.h.rope_scale_linear = 0.125f;
    gguf_writer_string(&f.w, "llama.rope.scaling.type", "yarn");
    gguf_writer_u32(&f.w, "llama.rope.scaling.original_context_length", 1024);
    assert_status(build(&f, &r, ROPE_GLOBAL, 8192, &error), REALM_OK, error);
    for (int i = 0; i < 16; i++) {
        double wavelength = 2 * M_PI / plain(i), got = (double)r.inverse_frequency[i];
        if (wavelength < 1024.0 / 32 / 2) /* half: bounds are rounded outward to a whole pair */
            assert_near(got, plain(i));
        else if (wavelength > 1024 * 2)
            assert_near(got, plain(i) / 8);
        else
            assert_true(got <= plain(i) * 1.000001 && got >= plain(i) / 8.000001);
    }
    assert_near((double)r.magnitude, 0.1 * log(8) + 1);
    fixture_release(&f);
}

/* The bounds by hand: pair = 32 ln(1024 / (beta 2 pi)) / (2 ln 10000); beta 32 gives 2.827, floor 2;
 * beta 1 gives 8.848, ceiling 9. Pair 5 is then 3/7 of the way to interpolation. */
static void yarn_mixes_between_its_bounds(void **state)
{
    (void)state;
    fixture f;
    rope r;
    realm_error error;
    fixture_init(&f);
    f.h.rope_scale_linear = 0.125f;
    gguf_writer_string(&f.w, "llama.rope.scaling.type", "yarn");
    gguf_writer_u32(&f.w, "llama.rope.scaling.original_context_length", 1024);
    gguf_writer_f32(&f.w, "llama.rope.scaling.attn_factor", 0.5f);
    assert_status(build(&f, &r, ROPE_GLOBAL, 8192, &error), REALM_OK, error);
    assert_near((double)r.inverse_frequency[2], plain(2));
    assert_near((double)r.inverse_frequency[5], plain(5) * (4.0 / 7 + 3.0 / 7 / 8));
    assert_near((double)r.inverse_frequency[9], plain(9) / 8);
    assert_near((double)r.magnitude, 0.5 * (0.1 * log(8) + 1));
    fixture_release(&f);
}

static void llama3_factors_divide_frequencies(void **state)
{
    (void)state;
    fixture f;
    rope r;
    realm_error error;
    float factors[16];
    fixture_init(&f);
    for (int i = 0; i < 16; i++)
        factors[i] = 1 + (float)i / 2;
    gguf_writer_tensor(&f.w, "rope_freqs.weight", DTYPE_F32, 16, 0, factors);
    assert_status(build(&f, &r, ROPE_GLOBAL, 4096, &error), REALM_OK, error);
    for (int i = 0; i < 16; i++)
        assert_near((double)r.inverse_frequency[i], plain(i) / (1 + i / 2.0));
    fixture_release(&f);
}

static void longrope_chooses_by_the_longest_sequence_served(void **state)
{
    (void)state;
    for (int is_long = 0; is_long < 2; is_long++) {
        fixture f;
        rope r;
        realm_error error;
        float longer[16], shorter[16];
        fixture_init(&f);
        for (int i = 0; i < 16; i++) {
            longer[i] = 10;
            shorter[i] = 2;
        }
        gguf_writer_string(&f.w, "llama.rope.scaling.type", "longrope");
        gguf_writer_u32(&f.w, "llama.rope.scaling.original_context_length", 1024);
        gguf_writer_f32(&f.w, "llama.rope.scaling.attn_factor", 1.19f);
        gguf_writer_tensor(&f.w, "rope_factors_long.weight", DTYPE_F32, 16, 0, longer);
        gguf_writer_tensor(&f.w, "rope_factors_short.weight", DTYPE_F32, 16, 0, shorter);
        assert_status(build(&f, &r, ROPE_GLOBAL, is_long ? 1025 : 1024, &error), REALM_OK, error);
        for (int i = 0; i < 16; i++)
            assert_near((double)r.inverse_frequency[i], plain(i) / (is_long ? 10 : 2));
        assert_true(r.magnitude == 1.19f);
        fixture_release(&f);
    }
}

static void refuse(void (*more)(gguf_writer *w), realm_status wanted, const char *part)
{
    fixture f;
    rope r;
    realm_error error = {0};
    fixture_init(&f);
    more(&f.w);
    assert_status(build(&f, &r, ROPE_GLOBAL, 4096, &error), wanted, error);
    assert_holds(error.message, part);
    fixture_release(&f);
}

static void unknown_type(gguf_writer *w)
{
    gguf_writer_string(w, "llama.rope.scaling.type", "ntk");
}
static void no_factors(gguf_writer *w)
{
    gguf_writer_string(w, "llama.rope.scaling.type", "longrope");
}
static void few_factors(gguf_writer *w)
{
    gguf_writer_tensor(w, "rope_freqs.weight", DTYPE_F32, 2, 0, (float[]){1, 1});
}
static void half_factors(gguf_writer *w)
{
    gguf_writer_tensor(w, "rope_freqs.weight", DTYPE_F16, 16, 0, (uint16_t[16]){0});
}
static void zero_factors(gguf_writer *w)
{
    gguf_writer_tensor(w, "rope_freqs.weight", DTYPE_F32, 16, 0, (float[16]){1, 0});
}
static void nan_attn_factor(gguf_writer *w)
{
    gguf_writer_f32(w, "llama.rope.scaling.attn_factor", NAN);
}
static void zero_original(gguf_writer *w)
{
    gguf_writer_u32(w, "llama.rope.scaling.original_context_length", 0);
}
static void zero_beta(gguf_writer *w)
{
    gguf_writer_string(w, "llama.rope.scaling.type", "yarn");
    gguf_writer_f32(w, "llama.rope.scaling.yarn_beta_fast", 0);
}

static void absurd_scaling_is_refused_by_name(void **state)
{
    (void)state;
    refuse(unknown_type, REALM_UNSUPPORTED, "ntk");
    refuse(no_factors, REALM_CORRUPT, "rope_factors_short.weight");
    refuse(few_factors, REALM_CORRUPT, "rope_freqs.weight");
    refuse(half_factors, REALM_CORRUPT, "rope_freqs.weight");
    refuse(zero_factors, REALM_CORRUPT, "factor 1 is 0");
    refuse(nan_attn_factor, REALM_CORRUPT, "llama.rope.scaling.attn_factor");
    refuse(zero_original, REALM_CORRUPT, "llama.rope.scaling.original_context_length");
    refuse(zero_beta, REALM_CORRUPT, "llama.rope.scaling.yarn_beta_fast");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frequencies_fall_by_the_base),
        cmocka_unit_test(linear_scaling_slows_all_pairs_alike),
        cmocka_unit_test(local_layers_have_a_base_of_their_own),
        cmocka_unit_test(yarn_keeps_fast_pairs_and_interpolates_slow_ones),
        cmocka_unit_test(yarn_mixes_between_its_bounds),
        cmocka_unit_test(llama3_factors_divide_frequencies),
        cmocka_unit_test(longrope_chooses_by_the_longest_sequence_served),
        cmocka_unit_test(absurd_scaling_is_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
