/* tests/unit/base/checksum_test.c: base/checksum.h gives XXH3's published 128-bit values, so files keep
 * their meaning over versions and machines. */
#include "unit/unit.h"

#include "base/checksum.h"

/* From the algorithm's own sanity checks: no bytes, seed 0. */
static void the_value_of_nothing_is_the_published_one(void **state)
{
    (void)state;
    checksum sum = checksum_of("", 0);
    assert_true(sum.low == 0x6001C324468D497Fu && sum.high == 0x99AA06D3014798D8u);
}

static void every_bit_and_the_length_count(void **state)
{
    (void)state;
    uint8_t bytes[4096] = {0};
    checksum whole = checksum_of(bytes, sizeof bytes);
    assert_false(checksum_equal(whole, checksum_of(bytes, sizeof bytes - 1)));
    for (size_t i = 0; i < sizeof bytes * 8; i++) {
        bytes[i / 8] ^= (uint8_t)(1 << i % 8);
        assert_false(checksum_equal(whole, checksum_of(bytes, sizeof bytes)));
        bytes[i / 8] = 0;
    }
    assert_true(checksum_equal(whole, checksum_of(bytes, sizeof bytes)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_value_of_nothing_is_the_published_one),
        cmocka_unit_test(every_bit_and_the_length_count),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
