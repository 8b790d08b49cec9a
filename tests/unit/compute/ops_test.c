/* tests/unit/compute/ops_test.c: the row and element kernels of every instruction set here against
 * the scalar reference, on odd sizes, and what they do with numbers that are none. */
#include "unit/compute/cpu_fixture.h"

#include <float.h>

static const int32_t sizes[] = {1,  2,  3,  4,  5,  7,  8,   15,  16,
                                17, 31, 33, 63, 64, 65, 100, 576, 1023};
#define N_SIZES ((int)(sizeof sizes / sizeof *sizes))

#define FOR_EACH_KERNEL(k)                                                                         \
    const cpu_kernels *list_[4];                                                                   \
    int n_ = cpu_kernels_here(list_);                                                              \
    for (int i_ = 0; i_ < n_; i_++)                                                                \
        for (const cpu_kernels *k = list_[i_]; k; k = NULL)

static void norms_are_those_of_the_reference(void **state)
{
    (void)state;
    rng r;
    rng_init(&r, 1);
    FOR_EACH_KERNEL(k)
    {
        for (int s = 0; s < N_SIZES; s++) {
            int32_t n = sizes[s];
            for (int variant = 0; variant < 8; variant++) {
                norm_kind kind = variant & 1 ? NORM_LAYER : NORM_RMS;
                float *x = random_floats(&r, n, variant & 2 ? 1000 : 1);
                float *gain = random_floats(&r, n, 2), *bias = random_floats(&r, n, 1);
                float *out = calloc(n, 4), *wanted = calloc(n, 4);
                for (int32_t i = 0; i < n; i++)
                    x[i] += kind == NORM_LAYER ? 3 : 0;
                const float *g = variant & 4 ? gain : NULL, *b = variant & 2 ? bias : NULL;
                k->norm(out, x, n, kind, g, b, 1e-5f);
                cpu_kernels_reference.norm(wanted, x, n, kind, g, b, 1e-5f);
                assert_near(out, wanted, n, 2e-6, 4e-6, k->name);
                k->norm(x, x, n, kind, g, b, 1e-5f);
                assert_same_bits(x, out, n, "norm in place");
                free(x), free(gain), free(bias), free(out), free(wanted);
            }
        }
    }
}

/* Every float exponent and some mantissas of each; silu of -x with up = 1 + e^x shows e^x. */
static void activations_are_those_of_the_reference(void **state)
{
    (void)state;
    rng r;
    rng_init(&r, 2);
    enum { N = 200003 };
    float *x = malloc(N * 4), *up = malloc(N * 4), *out = malloc(N * 4), *wanted = malloc(N * 4);
    for (int i = 0; i < N; i++) {
        x[i] = i < N / 2 ? random_unit(&r) * 20
                         : ldexpf(random_unit(&r), (int)(rng_next(&r) % 40) - 33);
        up[i] = random_unit(&r) * 3;
    }
    FOR_EACH_KERNEL(k)
    {
        const activation_kind kinds[] = {ACTIVATION_SILU, ACTIVATION_GELU_TANH, ACTIVATION_GELU};
        for (int a = 0; a < 3; a++) {
            k->gated(out, x, up, N, kinds[a]);
            cpu_kernels_reference.gated(wanted, x, up, N, kinds[a]);
            /* GELU by tanh, far left: the reference itself cancels, 1 + tanh. */
            double relative = kinds[a] == ACTIVATION_GELU_TANH ? 2e-6 : 6e-7;
            assert_near(out, wanted, N, relative, kinds[a] == ACTIVATION_GELU_TANH ? 1e-7 : 1e-37,
                        k->name);
            k->gated(x + 7, x + 7, up + 7, 0, kinds[a]);
        }
    }
    free(x), free(up), free(out), free(wanted);
}

static void soft_caps_are_those_of_the_reference(void **state)
{
    (void)state;
    rng r;
    rng_init(&r, 3);
    enum { N = 100003 };
    float *x = malloc(N * 4), *out = malloc(N * 4), *wanted = malloc(N * 4);
    for (int i = 0; i < N; i++)
        x[i] = i % 2 ? random_unit(&r) * 200
                     : ldexpf(random_unit(&r), (int)(rng_next(&r) % 30) - 20);
    FOR_EACH_KERNEL(k)
    {
        memcpy(out, x, N * 4);
        memcpy(wanted, x, N * 4);
        k->soft_cap(out, N, 30);
        cpu_kernels_reference.soft_cap(wanted, N, 30);
        assert_near(out, wanted, N, 5e-7, 1e-37, k->name);
    }
    free(x), free(out), free(wanted);
}

/* The plainest way of saying it: sorted out here, not with the reference. */
static void copies_have_the_largest_of_every_stretch_beside_them(void **state)
{
    (void)state;
    enum { MOST = 3 * PEAK_COLS + 17 };
    float x[MOST], out[MOST], peaks[4], wanted[4];
    rng r;
    rng_init(&r, 9);
    for (int32_t n = 1; n <= MOST; n += n < 40 ? 1 : 61) {
        for (int32_t i = 0; i < n; i++)
            x[i] = rng_next(&r) % 9 ? random_unit(&r) * 50 : -INFINITY;
        if (rng_next(&r) % 3 == 0)
            x[rng_next(&r) % (uint64_t)n] = rng_next(&r) % 2 ? NAN : INFINITY;
        for (int32_t i = 0; i < peaks_count(n); i++) {
            int is_odd = 0;
            wanted[i] = -INFINITY;
            for (int32_t j = i * PEAK_COLS; j < n && j < (i + 1) * PEAK_COLS; j++) {
                is_odd |= isnan(x[j]);
                wanted[i] = fmaxf(wanted[i], x[j]);
            }
            wanted[i] = is_odd ? NAN : wanted[i];
        }
        const cpu_kernels *list[5] = {&cpu_kernels_reference};
        int count = 1 + cpu_kernels_here(list + 1);
        for (int k = 0; k < count; k++) {
            list[k]->copy_peaks(out, peaks, x, n);
            assert_memory_equal(out, x, (size_t)n * sizeof *x);
            for (int32_t i = 0; i < peaks_count(n); i++)
                assert_true(isnan(wanted[i]) ? isnan(peaks[i]) : peaks[i] == wanted[i]);
        }
    }
}

static void sums_scales_and_rotations_are_those_of_the_reference(void **state)
{
    (void)state;
    rng r;
    rng_init(&r, 4);
    FOR_EACH_KERNEL(k)
    {
        for (int s = 0; s < N_SIZES; s++) {
            int32_t n = sizes[s];
            float *x = random_floats(&r, n, 1), *y = random_floats(&r, n, 1);
            float *out = calloc(n, 4), *wanted = calloc(n, 4);
            k->add(out, x, y, n, 0.37f);
            cpu_kernels_reference.add(wanted, x, y, n, 0.37f);
            assert_near(out, wanted, n, 2e-7, 1e-7, k->name);
            k->scale(out, n, 3.7f);
            cpu_kernels_reference.scale(wanted, n, 3.7f);
            assert_near(out, wanted, n, 2e-7, 1e-6, k->name);
            free(x), free(y), free(out), free(wanted);
        }
        for (int32_t dim = 2; dim <= 128; dim += 6) {
            for (int kind = 0; kind < 2; kind++) {
                rope turn = {.kind = kind ? ROPE_NEOX : ROPE_NORMAL,
                             .n_rot = dim > 20 ? dim / 4 * 2 : dim};
                float *c = random_floats(&r, dim, 1), *sine = random_floats(&r, dim, 1);
                float *x = random_floats(&r, dim * 3, 1), *wanted = malloc(dim * 12);
                memcpy(wanted, x, dim * 12);
                k->rotate(x, 3, dim, &turn, c, sine);
                cpu_kernels_reference.rotate(wanted, 3, dim, &turn, c, sine);
                assert_near(x, wanted, dim * 3, 1e-6, 1e-7, k->name);
                free(c), free(sine), free(x), free(wanted);
            }
        }
    }
}

/* Where an element stands in a vector, and how many follow it, changes none of its bits. */
static void elements_do_not_depend_on_their_neighbours(void **state)
{
    (void)state;
    rng r;
    rng_init(&r, 5);
    enum { N = 199 };
    float *x = random_floats(&r, N, 8), *y = random_floats(&r, N, 2);
    FOR_EACH_KERNEL(k)
    {
        float all[3][N], one[3];
        k->gated(all[0], x, y, N, ACTIVATION_SILU);
        k->gated(all[1], x, y, N, ACTIVATION_GELU_TANH);
        memcpy(all[2], x, sizeof all[2]);
        k->soft_cap(all[2], N, 5);
        for (int i = 0; i < N; i++) {
            k->gated(one, x + i, y + i, 1, ACTIVATION_SILU);
            k->gated(one + 1, x + i, y + i, 1, ACTIVATION_GELU_TANH);
            one[2] = x[i];
            k->soft_cap(one + 2, 1, 5);
            for (int j = 0; j < 3; j++)
                assert_same_bits(&all[j][i], &one[j], 1, k->name);
        }
    }
    free(x), free(y);
}

static void what_is_no_number_stays_none_and_infinity_has_its_limit(void **state)
{
    (void)state;
    FOR_EACH_KERNEL(k)
    {
        const float up[4] = {1, 1, 1, 1};
        float x[4] = {NAN, INFINITY, -INFINITY, -1000}, out[4];
        for (int kind = ACTIVATION_SILU; kind <= ACTIVATION_GELU; kind++) {
            k->gated(out, x, up, 4, (activation_kind)kind);
            assert_true(isnan(out[0]));
            assert_true(out[1] == INFINITY);
            assert_true(out[2] == 0);
            assert_true(fabsf(out[3]) < 1e-30f);
        }
        memcpy(out, x, sizeof out);
        k->soft_cap(out, 4, 30);
        assert_true(isnan(out[0]) && out[1] == 30 && out[2] == -30 && out[3] == -30);
        k->norm(out, x, 4, NORM_RMS, NULL, NULL, 1e-6f);
        assert_true(isnan(out[0]) && isnan(out[3]));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norms_are_those_of_the_reference),
        cmocka_unit_test(activations_are_those_of_the_reference),
        cmocka_unit_test(soft_caps_are_those_of_the_reference),
        cmocka_unit_test(copies_have_the_largest_of_every_stretch_beside_them),
        cmocka_unit_test(sums_scales_and_rotations_are_those_of_the_reference),
        cmocka_unit_test(elements_do_not_depend_on_their_neighbours),
        cmocka_unit_test(what_is_no_number_stays_none_and_infinity_has_its_limit),
    };
    return cmocka_run_group_tests_name("ops", tests, NULL, NULL);
}
