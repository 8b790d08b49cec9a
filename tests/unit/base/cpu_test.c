/* tests/unit/base/cpu_test.c: base/cpu.h: the environment lowers what the processor can, and the
 * count of cores is one that the system would grant. */
#include "unit/base/made_up_machine.h"

#include <unistd.h>

#include "base/cpu.h"

/* Features are detected once, after main has set the environment. */
static void the_environment_lowers_the_features(void **state)
{
    (void)state;
    const cpu_features *f = cpu_features_get();
    assert_int_equal(f->avx2 | f->avx_vnni | f->avx512_vnni | f->avx512_bf16 | f->amx_int8, 0);
    assert_int_equal(f->neon | f->neon_dot | f->neon_i8mm, 0);
    assert_ptr_equal(cpu_features_get(), f);
}

static void cores_and_name_are_told(void **state)
{
    (void)state;
    assert_true(cpu_count() >= 1);
    assert_true(cpu_count() <= sysconf(_SC_NPROCESSORS_ONLN));
    assert_true(strlen(cpu_name()) > 0);
}

/* ---- control groups, in a folder with the files that a machine would show ---------------------- */

static void without_groups_there_is_no_limit(void **state)
{
    (void)state;
    assert_int_equal(cpu_limit(g_root), 0);
}

static void the_lowest_limit_on_the_way_up_counts(void **state)
{
    (void)state;
    put("proc/self/cgroup", "0::/system/realm.service/inner\n");
    put("sys/fs/cgroup/system/cpu.max", "250000 100000\n");
    assert_int_equal(cpu_limit(g_root), 3); /* a parent's, two and a half cores */
    put("sys/fs/cgroup/system/realm.service/cpu.max", "max 100000\n");
    assert_int_equal(cpu_limit(g_root), 3);
    put("sys/fs/cgroup/system/realm.service/inner/cpu.max", "400000 100000\n");
    assert_int_equal(cpu_limit(g_root), 3);
    put("sys/fs/cgroup/system/realm.service/inner/cpu.max", "50000 100000\n");
    assert_int_equal(cpu_limit(g_root), 1);
}

static void a_group_known_outside_alone_leaves_the_roots_limit(void **state)
{
    (void)state;
    put("sys/fs/cgroup/cpu.max", "200000 100000\n");
    put("proc/self/cgroup", "0::/kubepods/pod1/container1\n");
    assert_int_equal(cpu_limit(g_root), 2);
    put("proc/self/cgroup", "0::/../../other\n");
    assert_int_equal(cpu_limit(g_root), 2);
}

static void version_1_has_a_hierarchy_for_processors(void **state)
{
    (void)state;
    put("proc/self/cgroup", "9:cpuset:/a\n4:cpu,cpuacct:/docker/b\n2:memory:/c\n");
    put("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
    put("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
    assert_int_equal(cpu_limit(g_root), 0);
    put("sys/fs/cgroup/cpu/docker/cpu.cfs_quota_us", "600000\n");
    put("sys/fs/cgroup/cpu/docker/cpu.cfs_period_us", "100000\n");
    assert_int_equal(cpu_limit(g_root), 6);
    put("sys/fs/cgroup/cpu/docker/b/cpu.cfs_quota_us", "150000\n");
    put("sys/fs/cgroup/cpu/docker/b/cpu.cfs_period_us", "50000\n");
    assert_int_equal(cpu_limit(g_root), 3);
}

static void files_that_make_no_sense_limit_nothing(void **state)
{
    (void)state;
    put("proc/self/cgroup", "nonsense\n\n::\n0::/a\n");
    put("sys/fs/cgroup/a/cpu.max", "many cores\n");
    put("sys/fs/cgroup/cpu.max", "100000 0\n");
    assert_int_equal(cpu_limit(g_root), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_environment_lowers_the_features),
        cmocka_unit_test(cores_and_name_are_told),
        ON_A_MACHINE(without_groups_there_is_no_limit),
        ON_A_MACHINE(the_lowest_limit_on_the_way_up_counts),
        ON_A_MACHINE(a_group_known_outside_alone_leaves_the_roots_limit),
        ON_A_MACHINE(version_1_has_a_hierarchy_for_processors),
        ON_A_MACHINE(files_that_make_no_sense_limit_nothing),
    };
    setenv("REALM_CPU", "reference", 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
