/* tests/unit/text/unicode_test.c: facts of the Unicode Character Database and of GPT-2's bytes. */
#include "text/string_table.h"
#include "text/unicode.h"
#include "unit/unit.h"

static void categories_are_those_of_unicode_15_1(void **state)
{
    assert_int_equal(unicode_class_of('A'), UNICODE_LETTER);
    assert_int_equal(unicode_class_of(0x4E2D), UNICODE_LETTER);
    assert_int_equal(unicode_class_of(0x2EBF0), UNICODE_LETTER); /* extension I: 15.1 */
    assert_int_equal(unicode_class_of(0x31EF), UNICODE_SYMBOL);
    assert_int_equal(unicode_class_of(0x0663), UNICODE_NUMBER);
    assert_int_equal(unicode_class_of(0x00BD), UNICODE_NUMBER);
    assert_int_equal(unicode_class_of(0x0301), UNICODE_MARK);
    assert_int_equal(unicode_class_of('_'), UNICODE_PUNCTUATION);
    assert_int_equal(unicode_class_of('$'), UNICODE_SYMBOL);
    assert_int_equal(unicode_class_of(0x00A0), UNICODE_SEPARATOR);
    assert_int_equal(unicode_class_of(0x00AD), UNICODE_CONTROL);
    assert_int_equal(unicode_class_of(0xE000), UNICODE_CONTROL);
    assert_int_equal(unicode_class_of(0x0378), UNICODE_UNASSIGNED);
    assert_int_equal(unicode_class_of(0x110000), UNICODE_UNASSIGNED);
    (void)state;
}

static void letters_have_lower_case_and_a_base(void **state)
{
    assert_int_equal(unicode_lower(0xC9), 0xE9);
    assert_int_equal(unicode_lower('a'), 'a');
    assert_int_equal(unicode_base(0xE9), 'e');
    assert_int_equal(unicode_base(0x1EAD), 'a');    /* with two marks */
    assert_int_equal(unicode_base(0xAC00), 0x1100); /* Hangul */
    assert_int_equal(unicode_base(0xFB01), 0xFB01); /* the ligature only has a compatible one */
    (void)state;
}

static void every_byte_has_a_stand_in_of_its_own(void **state)
{
    uint8_t seen[0x200] = {0};
    for (int byte = 0; byte < 256; byte++) {
        uint32_t code = unicode_of_byte((uint8_t)byte);
        assert_in_range(code, 0, 0x143);
        assert_int_equal(seen[code & 0x1FF]++, 0);
        assert_int_equal(unicode_to_byte(code), byte);
    }
    assert_int_equal(unicode_of_byte(' '), 0x120);
    assert_int_equal(unicode_of_byte('\n'), 0x10A);
    assert_int_equal(unicode_to_byte(0x4E2D), -1);
    assert_int_equal(unicode_to_byte(' '), -1);
    (void)state;
}

static void decoding_forgives(void **state)
{
    static const struct {
        const char *bytes;
        uint32_t code;
        int length;
    } cases[] = {
        {"a", 'a', 1},
        {"\xC3\xA9", 0xE9, 2},
        {"\xF0\x9F\x98\x80", 0x1F600, 4},
        {"\xC1\x81", 'A', 2},
        {"\xED\xA0\x80", 0xD800, 3},
        {"\x80", 0xFFFD, 1},
        {"\xC3", 0xFFFD, 1},
        {"\xE4\xB8", 0xFFFD, 1},
        {"\xE4\xB8z", 0xFFFD, 1},
        {"\xF8\x88\x80\x80\x80", 0xFFFD, 1},
        {"\xF4\x90\x80\x80", 0xFFFD, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint32_t code;
        size_t size = strlen(cases[i].bytes);
        assert_int_equal(unicode_decode((const uint8_t *)cases[i].bytes, size, &code),
                         cases[i].length);
        assert_int_equal(code, cases[i].code);
    }
    (void)state;
}

static void encoding_is_undone_by_decoding(void **state)
{
    for (uint32_t code = 0; code <= 0x10FFFF; code += code < 0x1000 ? 1 : 61) {
        uint8_t bytes[4];
        uint32_t back;
        int length = unicode_encode(code, bytes);
        assert_int_equal(unicode_decode(bytes, (size_t)length, &back), length);
        assert_int_equal(back, code);
        assert_int_equal(unicode_length(bytes[0]), length);
    }
    (void)state;
}

static void a_string_table_finds_what_it_was_given(void **state)
{
    static char texts[5000][8];
    string_table t;
    assert_true(string_table_init(&t, 4)); /* so that it must grow */
    for (int i = 0; i < 5000; i++) {
        int size = snprintf(texts[i], sizeof texts[i], "%d", i * 7);
        assert_int_equal(string_table_add(&t, texts[i], (size_t)size), i);
    }
    assert_int_equal(string_table_add(&t, "7", 1), 1);
    for (int i = 0; i < 5000; i++)
        assert_int_equal(string_table_find(&t, texts[i], strlen(texts[i])), i);
    assert_int_equal(string_table_find(&t, "8", 1), -1);
    assert_int_equal(string_table_find(&t, "", 0), -1);
    uint64_t hash = string_table_hash_byte(STRING_TABLE_HASH_START, '1');
    hash = string_table_hash_byte(hash, '4');
    assert_int_equal(string_table_find_hashed(&t, "14", 2, hash), 2);
    string_table_release(&t);
    (void)state;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(categories_are_those_of_unicode_15_1),
        cmocka_unit_test(letters_have_lower_case_and_a_base),
        cmocka_unit_test(every_byte_has_a_stand_in_of_its_own),
        cmocka_unit_test(decoding_forgives),
        cmocka_unit_test(encoding_is_undone_by_decoding),
        cmocka_unit_test(a_string_table_finds_what_it_was_given),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
