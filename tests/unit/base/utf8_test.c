/* tests/unit/base/utf8_test.c: base/utf8.h over all code points and against Unicode 15, table 3-7,
 * row by row as the table has it. */
#include "unit/unit.h"

#include "base/utf8.h"

static void every_code_point_goes_out_and_back(void **state)
{
    (void)state;
    for (uint32_t code = 0; code <= 0x110010; code++) {
        uint8_t bytes[4];
        uint32_t back;
        int length = utf8_encode(code, bytes);
        if ((code >= 0xD800 && code <= 0xDFFF) || code > 0x10FFFF) {
            assert_int_equal(length, 0);
            continue;
        }
        assert_int_equal(length, code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4);
        assert_int_equal(utf8_length(bytes, (size_t)length), length);
        assert_int_equal(utf8_decode(bytes, (size_t)length, &back), length);
        assert_int_equal(back, code);
        for (int cut = 1; cut < length; cut++) {
            assert_int_equal(utf8_length(bytes, (size_t)cut), -2);
            assert_int_equal(utf8_complete_prefix(bytes, (size_t)cut), 0);
        }
    }
}

/* Table 3-7: the bytes a well-formed character may have, first to fourth. */
static const uint8_t table[9][4][2] = {
    {{0x00, 0x7F}},
    {{0xC2, 0xDF}, {0x80, 0xBF}},
    {{0xE0, 0xE0}, {0xA0, 0xBF}, {0x80, 0xBF}},
    {{0xE1, 0xEC}, {0x80, 0xBF}, {0x80, 0xBF}},
    {{0xED, 0xED}, {0x80, 0x9F}, {0x80, 0xBF}},
    {{0xEE, 0xEF}, {0x80, 0xBF}, {0x80, 0xBF}},
    {{0xF0, 0xF0}, {0x90, 0xBF}, {0x80, 0xBF}, {0x80, 0xBF}},
    {{0xF1, 0xF3}, {0x80, 0xBF}, {0x80, 0xBF}, {0x80, 0xBF}},
    {{0xF4, 0xF4}, {0x80, 0x8F}, {0x80, 0xBF}, {0x80, 0xBF}},
};

static int in_range(const uint8_t range[2], uint8_t byte)
{
    return byte >= range[0] && byte <= range[1];
}

static int expected_length(const uint8_t *text, size_t size)
{
    for (int row = 0; row < 9; row++) {
        if (!in_range(table[row][0], text[0]))
            continue;
        int length = 1;
        while (length < 4 && table[row][length][1])
            length++;
        for (int i = 1; i < length; i++) {
            if ((size_t)i == size)
                return -2;
            if (!in_range(table[row][i], text[i]))
                return -1;
        }
        return length;
    }
    return -1;
}

static void the_first_three_bytes_obey_the_table(void **state)
{
    (void)state;
    for (uint32_t bytes = 0; bytes < 1u << 24; bytes += bytes < 0xC20000 ? 0x10000 : 1) {
        const uint8_t text[4] = {(uint8_t)(bytes >> 16), (uint8_t)(bytes >> 8), (uint8_t)bytes,
                                 0x80};
        if (utf8_length(text, 4) != expected_length(text, 4) ||
            utf8_length(text, 3) != expected_length(text, 3))
            fail_msg("%06x", bytes);
    }
}

static void ill_formed_bytes_decode_one_by_one(void **state)
{
    (void)state;
    static const char *const bad[] = {"\x80",
                                      "\xBF",
                                      "\xC0\x80",
                                      "\xC1\xBF",
                                      "\xE0\x9F\xBF",
                                      "\xED\xA0\x80",
                                      "\xF0\x8F\xBF\xBF",
                                      "\xF4\x90\x80\x80",
                                      "\xF5\x80\x80\x80",
                                      "\xFF",
                                      "\xC2"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        uint32_t code;
        assert_int_equal(utf8_decode((const uint8_t *)bad[i], strlen(bad[i]), &code), 1);
        assert_int_equal(code, UTF8_REPLACEMENT);
        assert_false(utf8_valid((const uint8_t *)bad[i], strlen(bad[i])));
    }
    uint32_t code;
    assert_int_equal(utf8_decode((const uint8_t *)"", 0, &code), 0);
    assert_int_equal(utf8_length((const uint8_t *)"", 0), 0);
    assert_true(utf8_valid((const uint8_t *)"a\xC3\xA9\xF0\x9F\x98\x80", 7));
}

static void streams_hold_back_only_a_character_that_may_still_come(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t complete;
    } cases[] = {
        {"", 0},
        {"abc", 3},
        {"a\xC3", 1},
        {"a\xE2\x82", 1},
        {"a\xF0\x9F\x98", 1},
        {"a\xF0\x9F\x98\x80", 5},
        {"a\xE2\x82\xAC", 4},
        {"a\x80", 2},
        {"a\x80\x80\x80", 4},
        {"a\xED\xA0", 3} /* never a character */,
        {"a\xFF", 2},
        {"\xC3\xC3", 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(
            utf8_complete_prefix((const uint8_t *)cases[i].text, strlen(cases[i].text)),
            cases[i].complete);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_code_point_goes_out_and_back),
        cmocka_unit_test(the_first_three_bytes_obey_the_table),
        cmocka_unit_test(ill_formed_bytes_decode_one_by_one),
        cmocka_unit_test(streams_hold_back_only_a_character_that_may_still_come),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
