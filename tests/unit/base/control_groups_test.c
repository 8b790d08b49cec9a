/* tests/unit/base/control_groups_test.c: base/control_groups.h on made-up machines: which folders are
 * visited, in which order. What is read in them is tested with those who read it. */
#include "unit/base/made_up_machine.h"

#include "base/control_groups.h"

static char g_seen[32768];

/* "2 /a/b sys/fs/cgroup/a/b;" for each group. */
static void note(void *context, const control_group *g)
{
    size_t used = strlen(g_seen), root = strlen(g_root);
    assert_ptr_equal(context, g_seen);
    assert_memory_equal(g->folder, g_root, root);
    snprintf(g_seen + used, sizeof g_seen - used, "%d %s %s;", g->version, g->name,
             g->folder + root + 1);
}

static void expect(const char *controller, const char *seen)
{
    g_seen[0] = '\0';
    control_groups_visit(g_root, controller, note, g_seen);
    assert_string_equal(g_seen, seen);
}

#define ROOTS_2 "2 / sys/fs/cgroup;2 / sys/fs/cgroup/unified;"

static void groups_are_visited_from_the_innermost_to_the_mounts_root(void **state)
{
    (void)state;
    put("proc/self/cgroup", "0::/a/b\n");
    expect("cpu", "2 /a/b sys/fs/cgroup/a/b;2 /a sys/fs/cgroup/a;2 / sys/fs/cgroup;"
                  "2 /a/b sys/fs/cgroup/unified/a/b;2 /a sys/fs/cgroup/unified/a;"
                  "2 / sys/fs/cgroup/unified;");
    put("proc/self/cgroup", "0::/\n");
    expect("cpu", ROOTS_2);
    put("proc/self/cgroup", "0::/a//\n");
    expect("cpu", "2 /a sys/fs/cgroup/a;2 / sys/fs/cgroup;2 /a sys/fs/cgroup/unified/a;"
                  "2 / sys/fs/cgroup/unified;");
}

static void of_version_1_the_hierarchy_that_has_the_controller_counts(void **state)
{
    (void)state;
    put("proc/self/cgroup", "5:cpuset:/x\n4:cpuacct,cpu:/one\n3:memory:/two\n1:name=cpu:/y\n");
    expect("cpu", "1 /one sys/fs/cgroup/cpu/one;1 / sys/fs/cgroup/cpu;");
    expect("memory", "1 /two sys/fs/cgroup/memory/two;1 / sys/fs/cgroup/memory;");
}

static void a_group_outside_of_the_namespace_leaves_the_root(void **state)
{
    (void)state;
    put("proc/self/cgroup", "0::/../../outside\n");
    expect("cpu", ROOTS_2);
}

static void a_name_too_long_for_a_path_leaves_the_root(void **state)
{
    (void)state;
    char line[4600] = "0::/";
    memset(line + 4, 'n', sizeof line - 6);
    strcpy(line + sizeof line - 2, "\n");
    put("proc/self/cgroup", line);
    expect("cpu", ROOTS_2);
}

static void where_no_group_is_named_the_roots_are_visited(void **state)
{
    (void)state;
    expect("memory", ROOTS_2 "1 / sys/fs/cgroup/memory;");
    put("proc/self/cgroup", "nonsense\n\n:::\n0\n0:memory\nmemory:/x:\n");
    expect("memory", ROOTS_2 "1 / sys/fs/cgroup/memory;");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        ON_A_MACHINE(groups_are_visited_from_the_innermost_to_the_mounts_root),
        ON_A_MACHINE(of_version_1_the_hierarchy_that_has_the_controller_counts),
        ON_A_MACHINE(a_group_outside_of_the_namespace_leaves_the_root),
        ON_A_MACHINE(a_name_too_long_for_a_path_leaves_the_root),
        ON_A_MACHINE(where_no_group_is_named_the_roots_are_visited),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
