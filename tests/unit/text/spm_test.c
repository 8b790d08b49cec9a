/* tests/unit/text/spm_test.c: SentencePiece-style merging, on a vocabulary small enough to do by hand. */
#include "unit/text/tiny.h"

#define BOTH (TOKENIZE_ADD_SPECIAL | TOKENIZE_PARSE_SPECIAL)

static const tiny_token tokens[] = {
    {"<unk>", TOKEN_UNKNOWN, 0},       {"<s>", TOKEN_CONTROL, 0},   {"</s>", TOKEN_CONTROL, 0},
    {"<0xC3>", TOKEN_BYTE, 0},         {"<0xA9>", TOKEN_BYTE, 0},   {"<0x0A>", TOKEN_BYTE, 0},
    {"a", TOKEN_NORMAL, -1},           {"b", TOKEN_NORMAL, -2},     {"c", TOKEN_NORMAL, -3},
    {"\u2581", TOKEN_NORMAL, -4},      {"ab", TOKEN_NORMAL, -6},    {"bc", TOKEN_NORMAL, -5},
    {"\u2581a", TOKEN_NORMAL, -7},     {"aa", TOKEN_NORMAL, -1.5f}, {"abc", TOKEN_NORMAL, -9},
    {"<user>", TOKEN_USER_DEFINED, 0},
};
static const tiny vocabulary = {
    .model = "llama", .tokens = tokens, .count = sizeof tokens / sizeof *tokens};

static void the_pair_with_the_highest_score_is_joined_first(void **state)
{
    tokenizer *t = tiny_must_open(&vocabulary);
    /* bc (-5) goes before ab (-6) and ▁a (-7), which then goes before abc (-9). */
    assert_string_equal(TINY_ENCODE(t, "abc", 0), "\u2581a bc");
    assert_string_equal(TINY_ENCODE(t, "ab", 0), "\u2581 ab");
    assert_string_equal(TINY_ENCODE(t, "a", 0), "\u2581a");
    tokenizer_close(t);
    (void)state;
}

static void among_equal_scores_the_leftmost_pair_is_joined_first(void **state)
{
    tokenizer *t = tiny_must_open(&vocabulary);
    assert_string_equal(TINY_ENCODE(t, "aaa", 0), "\u2581 aa a");
    (void)state;
    tokenizer_close(t);
}

static void what_no_token_spells_is_written_in_bytes_or_as_unknown(void **state)
{
    tokenizer *t = tiny_must_open(&vocabulary);
    assert_string_equal(TINY_ENCODE(t, "\u00e9\n", 0), "\u2581 <0xC3> <0xA9> <0x0A>");
    assert_string_equal(TINY_ENCODE(t, "\xA9", 0), "\u2581 <0xA9>");
    assert_string_equal(TINY_ENCODE(t, "\xFF", 0), "\u2581 <unk>");
    (void)state;
    tokenizer_close(t);
}

static void a_space_is_put_before_text_that_follows_a_special_token(void **state)
{
    tokenizer *t = tiny_must_open(&vocabulary);
    assert_string_equal(TINY_ENCODE(t, "a<user>a", BOTH), "<s> \u2581a <user> \u2581a");
    assert_string_equal(TINY_ENCODE(t, "", BOTH), "<s>");
    assert_string_equal(TINY_ENCODE(t, "", 0), "");
    (void)state;
    tokenizer_close(t);
}

static void the_file_says_whether_a_space_and_bos_and_eos_are_added(void **state)
{
    tiny v = vocabulary;
    v.extras[0].key = "add_space_prefix";
    v.extras[0].is_flag = 1;
    v.extras[1].key = "add_bos_token";
    v.extras[1].is_flag = 1;
    v.extras[2].key = "add_eos_token";
    v.extras[2].value = v.extras[2].is_flag = 1;
    tokenizer *t = tiny_must_open(&v);
    assert_string_equal(TINY_ENCODE(t, "a", BOTH), "a </s>");
    assert_int_equal(tokenizer_adds_bos(t), 0);
    assert_int_equal(tokenizer_adds_eos(t), 1);
    assert_int_equal(tokenizer_drops_first_space(t), 0);
    (void)state;
    tokenizer_close(t);
}

static void plain_text_may_spell_control_tokens_but_not_user_defined_ones(void **state)
{
    tokenizer *t = tiny_must_open(&vocabulary);
    assert_string_equal(TINY_ENCODE(t, "</s>a", BOTH), "<s> </s> \u2581a");
    /* "<", "/" and the like are unknown to this vocabulary. */
    assert_string_equal(TINY_ENCODE(t, "</s>", 0), "\u2581 <unk> <unk> <unk> <unk>");
    assert_string_equal(TINY_ENCODE(t, "<user>", 0), "<user>");
    (void)state;
    tokenizer_close(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_pair_with_the_highest_score_is_joined_first),
        cmocka_unit_test(among_equal_scores_the_leftmost_pair_is_joined_first),
        cmocka_unit_test(what_no_token_spells_is_written_in_bytes_or_as_unknown),
        cmocka_unit_test(a_space_is_put_before_text_that_follows_a_special_token),
        cmocka_unit_test(the_file_says_whether_a_space_and_bos_and_eos_are_added),
        cmocka_unit_test(plain_text_may_spell_control_tokens_but_not_user_defined_ones),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
