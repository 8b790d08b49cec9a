/* tests/unit/base/free_memory_test.c: base/free_memory.h against made-up machines. */
#include "unit/base/made_up_machine.h"

#include "base/free_memory.h"

#define MIB ((uint64_t)1 << 20)

/* 8 GiB, 6 of them available. */
static void put_meminfo(void)
{
    put("proc/meminfo", "MemTotal:        8388608 kB\nMemFree:         1048576 kB\n"
                        "MemAvailable:    6291456 kB\nBuffers:           10000 kB\n");
}

static void expect(uint64_t total_mib, uint64_t free_mib, const char *bound)
{
    free_memory memory;
    free_memory_read(&memory, g_root);
    assert_int_equal(memory.total_bytes, total_mib * MIB);
    assert_int_equal(memory.free_bytes, free_mib * MIB);
    assert_string_equal(memory.bound, bound);
}

static void without_groups_the_machine_decides(void **state)
{
    (void)state;
    put_meminfo();
    expect(8192, 6144, "the machine");
}

static void a_group_without_limits_changes_nothing(void **state)
{
    (void)state;
    put_meminfo();
    put("proc/self/cgroup", "0::/user/app\n");
    put("sys/fs/cgroup/user/app/memory.max", "max\n");
    put("sys/fs/cgroup/user/app/memory.high", "max\n");
    put("sys/fs/cgroup/user/app/memory.current", "1048576\n");
    expect(8192, 6144, "the machine");
}

/* 1 GiB, 700 MiB used, of which 300 are cache and 100 of those mapped: 500 used for good. */
static void a_limit_leaves_what_is_not_used_and_the_cache(void **state)
{
    (void)state;
    put_meminfo();
    put("proc/self/cgroup", "0::/user/app\n");
    put("sys/fs/cgroup/user/app/memory.max", "1073741824\n");
    put("sys/fs/cgroup/user/app/memory.current", "734003200\n");
    put("sys/fs/cgroup/user/app/memory.stat", "anon 1\nfile 1\nfile_mapped 104857600\n"
                                              "inactive_file 209715200\nactive_file 104857600\n");
    expect(1024, 524, "cgroup /user/app memory.max");
}

static void the_tightest_group_on_the_way_up_decides(void **state)
{
    (void)state;
    put_meminfo();
    put("proc/self/cgroup", "0::/a/b/c\n");
    put("sys/fs/cgroup/a/b/c/memory.max", "4294967296\n");
    put("sys/fs/cgroup/a/b/c/memory.current", "1048576\n");
    put("sys/fs/cgroup/a/b/memory.high", "2147483648\n"); /* c has no file of it */
    put("sys/fs/cgroup/a/b/memory.current", "2040109466\n");
    put("sys/fs/cgroup/a/memory.max", "3221225472\n");
    put("sys/fs/cgroup/a/memory.current", "2040109466\n");
    free_memory memory;
    free_memory_read(&memory, g_root);
    assert_int_equal(memory.free_bytes, 2147483648u - 2040109466u);
    assert_string_equal(memory.bound, "cgroup /a/b memory.high");
}

static void a_name_that_only_the_outside_knows_ends_at_the_root(void **state)
{
    (void)state;
    put_meminfo();
    put("proc/self/cgroup", "0::/system.slice/docker-0123.scope\n");
    put("sys/fs/cgroup/memory.max", "536870912\n");
    put("sys/fs/cgroup/memory.current", "0\n");
    expect(512, 512, "cgroup / memory.max");
    put("proc/self/cgroup", "0::/../../outside\n");
    expect(512, 512, "cgroup / memory.max");
}

static void a_group_past_its_limit_leaves_nothing(void **state)
{
    (void)state;
    put_meminfo();
    put("proc/self/cgroup", "0::/\n");
    put("sys/fs/cgroup/memory.max", "536870912\n");
    put("sys/fs/cgroup/memory.current", "536870913\n");
    expect(512, 0, "cgroup / memory.max");
}

static void version_1_is_read_too(void **state)
{
    (void)state;
    put_meminfo();
    put("proc/self/cgroup", "5:cpuset:/x\n4:cpu,memory:/box/one\n1:name=systemd:/\n0::/\n");
    put("sys/fs/cgroup/memory/box/one/memory.limit_in_bytes", "9223372036854771712\n");
    put("sys/fs/cgroup/memory/box/one/memory.usage_in_bytes", "104857600\n");
    expect(8192, 6144, "the machine");
    put("sys/fs/cgroup/memory/box/memory.limit_in_bytes", "1073741824\n");
    put("sys/fs/cgroup/memory/box/memory.usage_in_bytes", "209715200\n");
    put("sys/fs/cgroup/memory/box/memory.stat",
        "inactive_file 1\ntotal_inactive_file 104857600\ntotal_active_file 52428800\n"
        "total_mapped_file 52428800\n");
    expect(1024, 924, "cgroup /box memory.limit_in_bytes");
}

static void files_of_nonsense_are_no_limit(void **state)
{
    (void)state;
    put_meminfo();
    put("proc/self/cgroup", "0\n:::\n0::\n0:memory\nmemory:/x:\n");
    put("sys/fs/cgroup/memory.max", "a lot\n");
    put("sys/fs/cgroup/memory/memory.limit_in_bytes", "");
    expect(8192, 6144, "the machine");
    put("sys/fs/cgroup/memory.max", "99999999999999999999999999\n");
    expect(8192, 6144, "the machine");
}

static void this_machine_has_memory(void **state)
{
    (void)state;
    free_memory memory;
    free_memory_read(&memory, "");
    assert_true(memory.free_bytes > 0 && memory.free_bytes <= memory.total_bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        ON_A_MACHINE(without_groups_the_machine_decides),
        ON_A_MACHINE(a_group_without_limits_changes_nothing),
        ON_A_MACHINE(a_limit_leaves_what_is_not_used_and_the_cache),
        ON_A_MACHINE(the_tightest_group_on_the_way_up_decides),
        ON_A_MACHINE(a_name_that_only_the_outside_knows_ends_at_the_root),
        ON_A_MACHINE(a_group_past_its_limit_leaves_nothing),
        ON_A_MACHINE(version_1_is_read_too),
        ON_A_MACHINE(files_of_nonsense_are_no_limit),
        ON_A_MACHINE(this_machine_has_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
