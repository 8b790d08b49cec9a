/* tests/unit/base/numa_test.c: base/numa.h: nodes of made-up machines, and that the system takes an
 * interleaving for what it is. */
#include "unit/base/made_up_machine.h"

#include <errno.h>
#include <sys/mman.h>
#if defined(__linux__)
#include <linux/mempolicy.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "base/numa.h"

static void expect(numa_nodes nodes)
{
    assert_int_equal(numa_nodes_read(g_root), nodes);
}

static void a_machine_that_says_nothing_has_no_nodes(void **state)
{
    (void)state;
    expect(0);
    put("proc/self/status", "Name:\tx\nMems_allowed_list:\t0-1\n");
    expect(0);
}

static void nodes_with_memory_count(void **state)
{
    (void)state;
    put("sys/devices/system/node/online", "0-3\n");
    put("sys/devices/system/node/has_memory", "0\n");
    expect(1);
    put("sys/devices/system/node/has_memory", "0,2-3\n");
    expect(1 | 4 | 8);
    put("sys/devices/system/node/has_memory", "0-63\n");
    expect(UINT64_MAX);
}

static void nodes_outside_of_the_cpuset_do_not(void **state)
{
    (void)state;
    put("sys/devices/system/node/has_memory", "0-3\n");
    put("proc/self/status",
        "Name:\tx\nMems_allowed:\t00000000,0000000a\nMems_allowed_list:\t1,3\n");
    expect(2 | 8);
    put("proc/self/status", "Name:\tx\nMems_allowed_list:\t1\n");
    expect(2);
}

static void lists_of_nonsense_end_where_it_begins(void **state)
{
    (void)state;
    put("sys/devices/system/node/has_memory", "\n");
    expect(0);
    put("sys/devices/system/node/has_memory", "nodes\n");
    expect(0);
    put("sys/devices/system/node/has_memory", "0,1-,2\n");
    expect(1);
    put("sys/devices/system/node/has_memory", "3-1,64-70,99999999999999999999-5,1\n");
    expect(2);
}

#if defined(__linux__) && defined(SYS_get_mempolicy)
static void interleaved_memory_is_that_to_the_system(void **state)
{
    (void)state;
    enum { SIZE = 1 << 20 };
    numa_nodes nodes = numa_nodes_read("");
    char *p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(p, MAP_FAILED);
    int refused = nodes ? numa_interleave_over(nodes, p, SIZE) : ENOSYS;
    if (refused) { /* an emulator, or a container's filter of system calls */
        assert_true(refused == ENOSYS || refused == EPERM);
        munmap(p, SIZE);
        skip();
    }
    int policy = -1;
    assert_int_equal(syscall(SYS_get_mempolicy, &policy, NULL, 0, p + SIZE - 1, MPOL_F_ADDR), 0);
    assert_int_equal(policy, MPOL_INTERLEAVE);
    memset(p, 1, SIZE);
    munmap(p, SIZE);
}

/* And one with several must not fail. */
static void memory_of_a_machine_with_one_node_is_left_alone(void **state)
{
    (void)state;
    enum { SIZE = 1 << 20 };
    char *p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(p, MAP_FAILED);
    numa_interleave(p, SIZE);
    numa_nodes nodes = numa_nodes_read("");
    int policy = -1;
    if (syscall(SYS_get_mempolicy, &policy, NULL, 0, p, MPOL_F_ADDR) == 0 &&
        (nodes & (nodes - 1)) == 0)
        assert_int_not_equal(policy, MPOL_INTERLEAVE);
    munmap(p, SIZE);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        ON_A_MACHINE(a_machine_that_says_nothing_has_no_nodes),
        ON_A_MACHINE(nodes_with_memory_count),
        ON_A_MACHINE(nodes_outside_of_the_cpuset_do_not),
        ON_A_MACHINE(lists_of_nonsense_end_where_it_begins),
#if defined(__linux__) && defined(SYS_get_mempolicy)
        cmocka_unit_test(interleaved_memory_is_that_to_the_system),
        cmocka_unit_test(memory_of_a_machine_with_one_node_is_left_alone),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
