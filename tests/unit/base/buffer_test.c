/* tests/unit/base/buffer_test.c: what base/buffer.h promises: growth up to the cap, and nothing
 * lost there. */
#include "unit/unit.h"

#include "base/buffer.h"

static void what_is_added_comes_back(void **state)
{
    (void)state;
    buffer b;
    buffer_init(&b, 100000);
    assert_string_equal(buffer_text(&b), "");
    for (int i = 0; i < 10000; i++)
        assert_int_equal(buffer_printf(&b, "%d,", i % 10), REALM_OK);
    assert_int_equal(b.size, 20000);
    assert_int_equal(strlen(buffer_text(&b)), 20000);
    assert_memory_equal(b.data + 19996, "8,9,", 4);
    buffer_clear(&b);
    assert_string_equal(buffer_text(&b), "");
    assert_int_equal(buffer_add_text(&b, "x"), REALM_OK);
    assert_string_equal(buffer_text(&b), "x");
    buffer_release(&b);
}

static void the_cap_refuses_and_keeps_what_is_in(void **state)
{
    (void)state;
    buffer b;
    buffer_init(&b, 10);
    assert_int_equal(buffer_add(&b, "123456", 6), REALM_OK);
    assert_int_equal(buffer_add(&b, "78901", 5), REALM_TOO_LARGE);
    assert_int_equal(buffer_printf(&b, "%s", "78901"), REALM_TOO_LARGE);
    assert_int_equal(buffer_reserve(&b, SIZE_MAX), REALM_TOO_LARGE);
    assert_string_equal(buffer_text(&b), "123456");
    assert_int_equal(buffer_add(&b, "7890", 4), REALM_OK);
    assert_string_equal(buffer_text(&b), "1234567890");
    assert_int_equal(buffer_add(&b, "", 0), REALM_OK);
    buffer_release(&b);
}

static void a_buffer_without_a_limit_fails_where_memory_ends(void **state)
{
    (void)state;
    buffer b;
    buffer_init(&b, SIZE_MAX);
    assert_int_equal(buffer_add_text(&b, "kept"), REALM_OK);
    assert_int_equal(buffer_reserve(&b, SIZE_MAX - 4), REALM_NO_MEMORY);
    assert_string_equal(buffer_text(&b), "kept");
    buffer_release(&b);
}

static void a_failed_addition_is_remembered_until_it_is_empty(void **state)
{
    (void)state;
    buffer b;
    buffer_init(&b, 4);
    buffer_add_text(&b, "abc");
    assert_int_equal(b.lost, REALM_OK);
    buffer_printf(&b, "%s", "de");
    buffer_add_text(&b, "f");
    assert_int_equal(b.lost, REALM_TOO_LARGE);
    assert_string_equal(buffer_text(&b), "abcf");
    buffer_clear(&b);
    assert_int_equal(b.lost, REALM_OK);
    buffer_reserve(&b, 5);
    assert_int_equal(b.lost, REALM_TOO_LARGE);
    buffer_release(&b);
    assert_int_equal(b.lost, REALM_OK);
}

static void the_front_is_dropped(void **state)
{
    (void)state;
    buffer b;
    buffer_init(&b, 100);
    buffer_add_text(&b, "abcdef");
    buffer_drop_front(&b, 2);
    assert_string_equal(buffer_text(&b), "cdef");
    buffer_drop_front(&b, 0);
    assert_string_equal(buffer_text(&b), "cdef");
    buffer_drop_front(&b, 99);
    assert_string_equal(buffer_text(&b), "");
    buffer_release(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_added_comes_back),
        cmocka_unit_test(the_cap_refuses_and_keeps_what_is_in),
        cmocka_unit_test(a_buffer_without_a_limit_fails_where_memory_ends),
        cmocka_unit_test(a_failed_addition_is_remembered_until_it_is_empty),
        cmocka_unit_test(the_front_is_dropped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
