/* tests/unit/base/cpu_test.c: base/cpu.h: the environment lowers what the processor can, and the
 * count of cores is one that the system would grant. */
#include "unit/unit.h"

#include <unistd.h>

#include "base/cpu.h"

/* Features are detected once, after main has set the environment. */
static void the_environment_lowers_the_features(void **state)
{
    (void)state;
    const cpu_features *f = cpu_features_get();
    assert_int_equal(f->avx2 | f->avx512_vnni | f->avx512_bf16 | f->neon_dot | f->neon_i8mm, 0);
    assert_ptr_equal(cpu_features_get(), f);
}

static void cores_and_name_are_told(void **state)
{
    (void)state;
    assert_true(cpu_count() >= 1);
    assert_true(cpu_count() <= sysconf(_SC_NPROCESSORS_ONLN));
    assert_true(strlen(cpu_name()) > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_environment_lowers_the_features),
        cmocka_unit_test(cores_and_name_are_told),
    };
    setenv("REALM_CPU", "reference", 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
