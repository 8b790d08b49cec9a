/* tests/unit/tenancy/route_test.c: how requests are split over versions. */
#include "unit/unit.h"

#include "tenancy/store.h"

static void shares_are_kept_within_what_chance_allows(void **state)
{
    (void)state;
    const route_share route[] = {{7, 6500}, {8, 2500}, {9, 1000}};
    enum { COUNT = 40000 };
    double seen[3] = {0}, chi = 0;
    for (int i = 0; i < COUNT; i++) {
        char id[32];
        int size = snprintf(id, sizeof id, "req-%d", i);
        seen[store_route_choose(route, 3, "chat", id, (size_t)size) - 7]++;
    }
    for (int i = 0; i < 3; i++) {
        double expected = COUNT * (double)route[i].share / ROUTE_WHOLE;
        chi += (seen[i] - expected) * (seen[i] - expected) / expected;
    }
    assert_true(chi < 13.8); /* two degrees of freedom, one in a thousand */
}

static void the_same_id_gets_the_same_version(void **state)
{
    (void)state;
    const route_share route[] = {{1, 9000}, {2, 1000}};
    for (int i = 0; i < 1000; i++)
        assert_int_equal(store_route_choose(route, 2, "p", &i, sizeof i),
                         store_route_choose(route, 2, "p", &i, sizeof i));
}

/* A canary that grows keeps those that it has: nobody goes back and forth. */
static void a_larger_canary_keeps_its_users(void **state)
{
    (void)state;
    for (int i = 0; i < 5000; i++) {
        const route_share small[] = {{2, 1000}, {1, 9000}}, large[] = {{2, 3000}, {1, 7000}};
        if (store_route_choose(small, 2, "p", &i, sizeof i) == 2)
            assert_int_equal(store_route_choose(large, 2, "p", &i, sizeof i), 2);
    }
}

static void two_programs_are_split_independently(void **state)
{
    (void)state;
    const route_share route[] = {{1, 5000}, {2, 5000}};
    int same = 0;
    for (int i = 0; i < 10000; i++)
        same += store_route_choose(route, 2, "one", &i, sizeof i) ==
                store_route_choose(route, 2, "two", &i, sizeof i);
    assert_in_range(same, 4800, 5200);
}

static void without_an_id_the_first_serves(void **state)
{
    (void)state;
    const route_share route[] = {{4, 5000}, {5, 5000}};
    assert_int_equal(store_route_choose(route, 2, "p", NULL, 0), 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shares_are_kept_within_what_chance_allows),
        cmocka_unit_test(the_same_id_gets_the_same_version),
        cmocka_unit_test(a_larger_canary_keeps_its_users),
        cmocka_unit_test(two_programs_are_split_independently),
        cmocka_unit_test(without_an_id_the_first_serves),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
