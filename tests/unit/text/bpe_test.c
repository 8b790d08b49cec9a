/* tests/unit/text/bpe_test.c: ranked merges inside words, on vocabularies small enough to do by hand. */
#include "unit/text/tiny.h"

static const tiny_token tokens[] = {
    {"a", TOKEN_NORMAL, 0},        {"b", TOKEN_NORMAL, 0},
    {"c", TOKEN_NORMAL, 0},        {"\u0120", TOKEN_NORMAL, 0} /* a space */,
    {"ab", TOKEN_NORMAL, 0},       {"bc", TOKEN_NORMAL, 0},
    {"abc", TOKEN_NORMAL, 0},      {"\u0120a", TOKEN_NORMAL, 0},
    {"abcabc", TOKEN_NORMAL, 0},   {"\u00c3", TOKEN_NORMAL, 0},
    {"\u00a9", TOKEN_NORMAL, 0},   {"\u010a", TOKEN_NORMAL, 0},
    {"<|end|>", TOKEN_CONTROL, 0},
};
/* "c c" joins to a string that is no token; "a b" comes again, later, and the first counts. */
static const char *const merges[] = {"b c", "a b", "a bc", "\u0120 a", "a b", "c c"};
static const tiny vocabulary = {.model = "gpt2",
                                .pre = "gpt-2",
                                .tokens = tokens,
                                .count = sizeof tokens / sizeof *tokens,
                                .merges = merges,
                                .merge_count = 6};

static void merges_go_in_the_order_of_the_list(void **state)
{
    tokenizer *t = tiny_must_open(&vocabulary);
    assert_string_equal(TINY_ENCODE(t, "abc", 0), "abc"); /* b c, then a bc */
    assert_string_equal(TINY_ENCODE(t, "ab", 0), "ab");
    assert_string_equal(TINY_ENCODE(t, "abcabc", 0),
                        "abc abc"); /* no merge makes the longer token */
    (void)state;
    tokenizer_close(t);
}

static void words_are_cut_before_merging(void **state)
{
    tokenizer *t = tiny_must_open(&vocabulary);
    assert_string_equal(TINY_ENCODE(t, "ab ab", 0), "ab \u0120 ab"); /* a b before \u0120 a */
    (void)state;
    tokenizer_close(t);
}

static void a_joined_string_that_is_no_token_falls_apart_into_bytes(void **state)
{
    tokenizer *t = tiny_must_open(&vocabulary);
    assert_string_equal(TINY_ENCODE(t, "cc", 0), "c c");
    assert_string_equal(TINY_ENCODE(t, "\u00e9\n", 0), "\u00c3 \u00a9 \u010a");
    assert_string_equal(TINY_ENCODE(t, "axa", 0), "a a"); /* x is spelt by nothing */
    (void)state;
    tokenizer_close(t);
}

static void some_pre_tokenizers_take_whole_words_that_are_tokens(void **state)
{
    tiny v = vocabulary;
    v.pre = "llama-bpe";
    tokenizer *t = tiny_must_open(&v);
    assert_string_equal(TINY_ENCODE(t, "abcabc", 0), "abcabc");
    (void)state;
    tokenizer_close(t);
}

static void gemma4_merges_characters_and_escapes_spaces(void **state)
{
    static const tiny_token raw[] = {
        {"<bos>", TOKEN_CONTROL, 0},       {"\u2581", TOKEN_NORMAL, 0}, {"\u00e9", TOKEN_NORMAL, 0},
        {"\u2581\u00e9", TOKEN_NORMAL, 0}, {"<0xC3>", TOKEN_BYTE, 0},   {"<0xA0>", TOKEN_BYTE, 0},
        {"\n\n", TOKEN_NORMAL, 0},
    };
    static const char *const raw_merges[] = {"\u2581 \u00e9"};
    tiny v = {.model = "gemma4",
              .tokens = raw,
              .count = 7,
              .merges = raw_merges,
              .merge_count = 1,
              .extras = {{"bos_token_id", 0, 0}, {"add_bos_token", 0, 1}}};
    tokenizer *t = tiny_must_open(&v);
    assert_string_equal(TINY_ENCODE(t, " \u00e9\u00e0\n\n", TOKENIZE_ADD_SPECIAL),
                        "<bos> \u2581\u00e9 <0xC3> <0xA0> \n\n");
    size_t size;
    assert_memory_equal(tokenizer_piece(t, 3, 0, &size), " \u00e9", 3);
    (void)state;
    tokenizer_close(t);
}

static void the_whitespace_model_drops_spaces(void **state)
{
    tiny v = vocabulary;
    v.model = v.pre = "whitespace";
    tokenizer *t = tiny_must_open(&v);
    assert_string_equal(TINY_ENCODE(t, " abc\u3000\tab ", 0), "abc ab");
    (void)state;
    tokenizer_close(t);
}

static void pieces_are_bytes_again(void **state)
{
    tokenizer *t = tiny_must_open(&vocabulary);
    size_t size;
    assert_memory_equal(tokenizer_piece(t, 7, 0, &size), " a", 2);
    assert_int_equal(size, 2);
    assert_memory_equal(tokenizer_piece(t, 9, 0, &size), "\xC3", 1);
    tokenizer_piece(t, 12, 0, &size);
    assert_int_equal(size, 0);
    assert_memory_equal(tokenizer_piece(t, 12, 1, &size), "<|end|>", 7);
    tokenizer_piece(t, 99, 1, &size);
    assert_int_equal(size, 0);
    assert_true(tokenizer_ends_generation(t, 12));
    assert_int_equal(tokenizer_eot(t), 12);
    (void)state;
    tokenizer_close(t);
}

static void a_million_of_one_letter_is_no_square(void **state)
{
    tokenizer *t = tiny_must_open(&vocabulary);
    size_t size = 1000000, count;
    char *text = malloc(size);
    arena a;
    token_id *ids;
    realm_error error;
    arena_init(&a, 0);
    for (int letter = 0; letter < 3; letter++) {
        memset(text, "ab "[letter], size);
        for (size_t i = 0; letter == 1 && i < size; i += 2)
            text[i] = 'a';
        assert_status(tokenizer_encode(t, &a, text, size, 0, &ids, &count, &error), REALM_OK,
                      error);
        assert_int_equal(count, letter == 1 ? size / 2 : size);
    }
    free(text);
    arena_release(&a);
    tokenizer_close(t);
    (void)state;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(merges_go_in_the_order_of_the_list),
        cmocka_unit_test(words_are_cut_before_merging),
        cmocka_unit_test(a_joined_string_that_is_no_token_falls_apart_into_bytes),
        cmocka_unit_test(some_pre_tokenizers_take_whole_words_that_are_tokens),
        cmocka_unit_test(gemma4_merges_characters_and_escapes_spaces),
        cmocka_unit_test(the_whitespace_model_drops_spaces),
        cmocka_unit_test(pieces_are_bytes_again),
        cmocka_unit_test(a_million_of_one_letter_is_no_square),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
