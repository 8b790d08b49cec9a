/* tests/unit/text/splitter_test.c: how the pre-tokenizers cut. The expected words follow from the
 * published regular expressions of each model's tokenizer.json. */
#include "text/pretokenizers.h"
#include "text/unicode.h"
#include "unit/unit.h"

/* The words of text with | between, as pre cuts it. Valid until the next call. */
static const char *cut(const char *pre, const char *text)
{
    static char line[4096];
    const pretokenizer *row = pretokenizers_find(pre, strlen(pre));
    splitter *s = NULL;
    split_text split;
    realm_error error;
    arena a;
    assert_non_null(row);
    arena_init(&a, 0);
    assert_status(splitter_open(&s, row->steps, &error), REALM_OK, error);
    assert_status(splitter_cut(s, &a, text, strlen(text), &split, &error), REALM_OK, error);
    size_t used = 0, at = 0;
    for (size_t i = 0; i < split.word_count; i++) {
        if (i)
            line[used++] = '|';
        for (; at < split.ends[i]; at++)
            used += (size_t)unicode_encode(split.codes[at], (uint8_t *)line + used);
    }
    assert_int_equal(at, split.count);
    line[used] = '\0';
    splitter_close(s);
    arena_release(&a);
    return line;
}

static void every_row_compiles_and_no_name_stands_twice(void **state)
{
    for (size_t i = 0; pretokenizers_at(i); i++) {
        const pretokenizer *row = pretokenizers_at(i);
        assert_ptr_equal(pretokenizers_find(row->name, strlen(row->name)), row);
        cut(row->name, "a");
    }
    assert_null(pretokenizers_find("gpt-3", 5));
    assert_string_equal(pretokenizers_find("", 0)->name, "default");
    (void)state;
}

static void gpt2_keeps_a_space_with_the_word_behind_it(void **state)
{
    assert_string_equal(cut("gpt-2", "Hello  world, it's 1234!"),
                        "Hello| | world|,| it|'s| 1234|!");
    assert_string_equal(cut("gpt-2", "a \n b  "), "a| \n| b|  ");
    assert_string_equal(cut("gpt-2", "IT'S"), "IT|'|S");
    (void)state;
}

static void llama3_takes_three_digits_and_qwen2_one(void **state)
{
    assert_string_equal(cut("llama-bpe", "x12345 IT'S\r\n\n y"), "x|123|45| IT|'S|\r\n\n| y");
    assert_string_equal(cut("qwen2", "x123"), "x|1|2|3");
    assert_string_equal(cut("llama-bpe", "(foo) ...\n"), "(foo|)| ...\n");
    (void)state;
}

static void categories_are_unicodes(void **state)
{
    assert_string_equal(cut("llama-bpe", "\u0661\u0662\u0663\u0664 \u4e2d\u6587\u00bd"),
                        "\u0661\u0662\u0663|\u0664| \u4e2d\u6587|\u00bd");
    assert_string_equal(cut("qwen2", "e\u0301"), "e|\u0301");
    assert_string_equal(cut("qwen35", "e\u0301"), "e\u0301");
    assert_string_equal(cut("gpt-2", "a\u3000b"), "a|\u3000|b");
    (void)state;
}

static void gpt4o_cuts_before_capitals(void **state)
{
    assert_string_equal(cut("gpt-4o", "camelCase HTTPServer's"), "camel|Case| HTTPServer's");
    assert_string_equal(cut("tekken", "12 aB"), "1|2| a|B");
    (void)state;
}

static void digits_group_from_the_right_where_the_model_was_taught_so(void **state)
{
    assert_string_equal(cut("tiny_aya", "1234567"), "1|234|567");
    assert_string_equal(cut("superbpe", "1234567"), "1|234|567");
    assert_string_equal(cut("superbpe", "123456"), "123|456");
    (void)state;
}

static void kimi_keeps_chinese_apart_from_other_letters(void **state)
{
    assert_string_equal(cut("kimi-k2", "abc\u4e2d\u6587def"), "abc|\u4e2d\u6587|def");
    (void)state;
}

static void jais2_cuts_spaces_into_powers_of_two(void **state)
{
    assert_string_equal(cut("jais-2", "             x"), "        |    | x"); /* 13: 8, 4 and 1 */
    assert_string_equal(cut("jais-2", "   \n x"), "   \n| x");
    (void)state;
}

static void broken_text_becomes_replacement_characters(void **state)
{
    assert_string_equal(cut("gpt-2", "a\xFF\xE4\xB8z"), "a|\uFFFD\uFFFD\uFFFD|z");
    (void)state;
}

/* Much of what could be read over and over; hours, if it were. */
static void hostile_text_takes_linear_time(void **state)
{
    static const char *const units[] = {" ", "\n", " \r",     "'",  "1",
                                        "A", "aA", "\u00c9A", " a", "!\n"};
    const size_t size = unit_is_emulated() ? 15000 : 300000;
    char *text = malloc(size);
    for (size_t i = 0; pretokenizers_at(i); i++) {
        splitter *s = NULL;
        realm_error error;
        assert_status(splitter_open(&s, pretokenizers_at(i)->steps, &error), REALM_OK, error);
        for (size_t unit = 0; unit < sizeof units / sizeof *units; unit++) {
            arena a;
            split_text split;
            arena_init(&a, 0);
            for (size_t at = 0; at < size; at++)
                text[at] = units[unit][at % strlen(units[unit])];
            assert_status(splitter_cut(s, &a, text, size, &split, &error), REALM_OK, error);
            arena_release(&a);
        }
        splitter_close(s);
    }
    free(text);
    (void)state;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_row_compiles_and_no_name_stands_twice),
        cmocka_unit_test(gpt2_keeps_a_space_with_the_word_behind_it),
        cmocka_unit_test(llama3_takes_three_digits_and_qwen2_one),
        cmocka_unit_test(categories_are_unicodes),
        cmocka_unit_test(gpt4o_cuts_before_capitals),
        cmocka_unit_test(digits_group_from_the_right_where_the_model_was_taught_so),
        cmocka_unit_test(kimi_keeps_chinese_apart_from_other_letters),
        cmocka_unit_test(jais2_cuts_spaces_into_powers_of_two),
        cmocka_unit_test(broken_text_becomes_replacement_characters),
        cmocka_unit_test(hostile_text_takes_linear_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
