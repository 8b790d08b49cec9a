/* tests/unit/base/arena_test.c: what base/arena.h promises: alignment, zeroes, caps, no lost
 * room. */
#include "unit/unit.h"

#include "base/arena.h"
#include "base/rng.h"

static void takings_are_aligned_zeroed_and_apart(void **state)
{
    (void)state;
    arena a;
    rng random;
    unsigned char *taken[500];
    size_t sizes[500];
    arena_init(&a, 0);
    rng_init(&random, 1);
    for (size_t i = 0; i < 500; i++) {
        sizes[i] = (size_t)(rng_next(&random) % (i % 50 == 0 ? 200000 : 300));
        taken[i] = arena_take(&a, sizes[i]);
        assert_non_null(taken[i]);
        assert_int_equal((uintptr_t)taken[i] % 16, 0);
        for (size_t j = 0; j < sizes[i]; j++)
            assert_int_equal(taken[i][j], 0);
        memset(taken[i], (int)(i & 0xFF), sizes[i]);
    }
    for (size_t i = 0; i < 500; i++)
        for (size_t j = 0; j < sizes[i]; j++)
            assert_int_equal(taken[i][j], i & 0xFF);
    arena_release(&a);
}

static void nothing_passes_the_cap(void **state)
{
    (void)state;
    arena a;
    arena_init(&a, 1000);
    assert_null(arena_take(&a, 1001));
    assert_non_null(arena_take(&a, 900));
    assert_null(arena_take(&a, 100)); /* 912 are used, with alignment */
    assert_non_null(arena_take(&a, 80));
    assert_null(arena_take(&a, 1));
    assert_true(a.used_bytes <= 1000);
    arena_release(&a);
    assert_non_null(arena_take(&a, 992)); /* empty again */
    arena_release(&a);
}

static void sizes_that_wrap_are_refused(void **state)
{
    (void)state;
    arena a;
    arena_init(&a, 0);
    assert_null(arena_take(&a, SIZE_MAX));
    assert_null(arena_take(&a, SIZE_MAX - 31));
    assert_null(arena_take_array(&a, (size_t)1 << 33, (size_t)1 << 33));
    assert_null(arena_copy(&a, "", SIZE_MAX));
    assert_non_null(arena_take(&a, 0));
    assert_non_null(arena_take_array(&a, 0, 8));
    arena_release(&a);
}

static void a_large_taking_does_not_lose_the_room_that_is_left(void **state)
{
    (void)state;
    arena a;
    arena_init(&a, 0);
    char *before = arena_take(&a, 16);
    assert_non_null(arena_take(&a, (size_t)3 << 20));
    char *after = arena_take(&a, 16);
    assert_ptr_equal(after, before + 16);
    arena_release(&a);
}

static void texts_are_copied_and_terminated(void **state)
{
    (void)state;
    arena a;
    arena_init(&a, 100);
    assert_string_equal(arena_copy(&a, "hello world", 5), "hello");
    assert_string_equal(arena_copy(&a, NULL, 0), "");
    assert_string_equal(arena_printf(&a, "%d-%s", 42, "x"), "42-x");
    assert_null(arena_printf(&a, "%0200d", 1));
    arena_release(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(takings_are_aligned_zeroed_and_apart),
        cmocka_unit_test(nothing_passes_the_cap),
        cmocka_unit_test(sizes_that_wrap_are_refused),
        cmocka_unit_test(a_large_taking_does_not_lose_the_room_that_is_left),
        cmocka_unit_test(texts_are_copied_and_terminated),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
