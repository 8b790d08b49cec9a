/* tests/unit/text/wpm_test.c: BERT's cleaning and its longest match first. */
#include "unit/text/tiny.h"

static const tiny_token tokens[] = {
    {"[PAD]", TOKEN_CONTROL, 0},      {"[UNK]", TOKEN_UNKNOWN, 0},
    {"[CLS]", TOKEN_CONTROL, 0},      {"[SEP]", TOKEN_CONTROL, 0},
    {"\u2581un", TOKEN_NORMAL, 0},    {"aff", TOKEN_NORMAL, 0},
    {"able", TOKEN_NORMAL, 0},        {"\u2581,", TOKEN_NORMAL, 0},
    {"\u2581eleve", TOKEN_NORMAL, 0}, {"\u2581\u4e2d", TOKEN_NORMAL, 0},
    {"affa", TOKEN_NORMAL, 0},
};
static const tiny vocabulary = {
    .model = "bert",
    .tokens = tokens,
    .count = sizeof tokens / sizeof *tokens,
    .extras = {{"bos_token_id", 2, 0}, {"seperator_token_id", 3, 0}, {"unknown_token_id", 1, 0}},
};

static void the_longest_token_is_taken_and_a_word_is_known_whole_or_not_at_all(void **state)
{
    tokenizer *t = tiny_must_open(&vocabulary);
    /* "affa" is longer than "aff", and then nothing spells "ble". */
    assert_string_equal(TINY_ENCODE(t, "unaffable", 0), "[UNK]");
    assert_string_equal(TINY_ENCODE(t, "unaff able", 0), "\u2581un aff [UNK]");
    assert_string_equal(TINY_ENCODE(t, "unable", 0), "\u2581un able");
    tokenizer_close(t);
    (void)state;
}

static void accents_case_and_control_characters_go(void **state)
{
    tokenizer *t = tiny_must_open(&vocabulary);
    assert_string_equal(TINY_ENCODE(t, "\u00c9l\u00e8ve", 0), "\u2581eleve");
    assert_string_equal(TINY_ENCODE(t,
                                    "E\u0301le\u0300\u00adv\x01"
                                    "e",
                                    0),
                        "\u2581eleve");
    tokenizer_close(t);
    (void)state;
}

static void marks_and_chinese_characters_stand_alone(void **state)
{
    tokenizer *t = tiny_must_open(&vocabulary);
    assert_string_equal(TINY_ENCODE(t, "un,\u4e2d\u4e2d un", 0),
                        "\u2581un \u2581, \u2581\u4e2d \u2581\u4e2d \u2581un");
    tokenizer_close(t);
    (void)state;
}

static void cls_and_sep_surround_a_text(void **state)
{
    tokenizer *t = tiny_must_open(&vocabulary);
    unsigned both = TOKENIZE_ADD_SPECIAL | TOKENIZE_PARSE_SPECIAL;
    assert_string_equal(TINY_ENCODE(t, "un [SEP]", both), "[CLS] \u2581un [SEP] [SEP]");
    assert_string_equal(TINY_ENCODE(t, "", both), "[CLS] [SEP]");
    tokenizer_close(t);
    (void)state;
}

static void a_file_may_keep_case_and_accents(void **state)
{
    tiny v = vocabulary;
    v.extras[3].key = "normalizer.lowercase";
    v.extras[3].is_flag = 1;
    tokenizer *t = tiny_must_open(&v);
    assert_string_equal(TINY_ENCODE(t, "UN un \u00e9leve", 0), "[UNK] \u2581un [UNK]");
    tokenizer_close(t);
    (void)state;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_longest_token_is_taken_and_a_word_is_known_whole_or_not_at_all),
        cmocka_unit_test(accents_case_and_control_characters_go),
        cmocka_unit_test(marks_and_chinese_characters_stand_alone),
        cmocka_unit_test(cls_and_sep_surround_a_text),
        cmocka_unit_test(a_file_may_keep_case_and_accents),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
