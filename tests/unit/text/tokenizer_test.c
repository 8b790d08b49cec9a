/* tests/unit/text/tokenizer_test.c: what all families share: refusals, special tokens inside a text,
 * which tokens end a generation, and decoding a stream. */
#include "base/utf8.h"
#include "unit/text/tiny.h"

#define PARSE TOKENIZE_PARSE_SPECIAL

/* ---- refusals ---- */

static void refused(const tiny *v, realm_status wanted, const char *sentence)
{
    tokenizer *t = NULL;
    realm_error error;
    assert_status(tiny_open(&t, v, &error), wanted, error);
    assert_holds(error.message, sentence);
}

static const tiny_token two[] = {{"a", TOKEN_NORMAL, 0}, {"b", TOKEN_NORMAL, 0}};

static void a_file_that_cannot_be_a_tokenizer_is_refused_by_name(void **state)
{
    static const tiny_token twice[] = {{"a", TOKEN_NORMAL, 0}, {"a", TOKEN_NORMAL, 0}};
    refused(&(tiny){.tokens = two, .count = 2}, REALM_CORRUPT, "tokenizer.ggml.model");
    refused(&(tiny){.model = "t5", .tokens = two, .count = 2}, REALM_UNSUPPORTED, "'t5'");
    refused(&(tiny){.model = "rwkv", .tokens = two, .count = 2}, REALM_UNSUPPORTED, "'rwkv'");
    refused(&(tiny){.model = "gpt2", .pre = "soup", .tokens = two, .count = 2}, REALM_UNSUPPORTED,
            "'soup'");
    refused(&(tiny){.model = "llama"}, REALM_CORRUPT, "tokenizer.ggml.tokens");
    refused(&(tiny){.model = "llama", .tokens = two, .count = 0}, REALM_CORRUPT, "0 entries");
    refused(&(tiny){.model = "llama", .tokens = twice, .count = 2}, REALM_CORRUPT,
            "tokens 0 and 1");
    refused(&(tiny){.model = "gpt2", .pre = "gpt-2", .tokens = two, .count = 2}, REALM_CORRUPT,
            "tokenizer.ggml.merges");
    (void)state;
}

static void an_empty_token_gets_a_name_and_an_id_out_of_range_is_ignored(void **state)
{
    static const tiny_token hole[] = {{"a", TOKEN_NORMAL, 0}, {"", TOKEN_UNUSED, 0}};
    tiny v = {.model = "llama",
              .tokens = hole,
              .count = 2,
              .extras = {{"bos_token_id", 99, 0}, {"eos_token_id", 0, 0}}};
    tokenizer *t = tiny_must_open(&v);
    assert_int_equal(tokenizer_find(t, "[EMPTY_1]", 9), 1);
    assert_int_equal(tokenizer_bos(t), 1); /* the family's own, which the file's cannot replace */
    assert_int_equal(tokenizer_eos(t), 0);
    tokenizer_close(t);
    (void)state;
}

/* ---- special tokens ---- */

static const tiny_token special[] = {
    {"<unk>", TOKEN_UNKNOWN, 0},
    {"a", TOKEN_NORMAL, 0},
    {"b", TOKEN_NORMAL, 0},
    {"<x>", TOKEN_CONTROL, 0},
    {"ab<x", TOKEN_USER_DEFINED, 0},
    {"\n\n", TOKEN_USER_DEFINED, 0},
    {"\n\n\n", TOKEN_USER_DEFINED, 0},
    {"<0x0A>", TOKEN_BYTE, 0},
    {"<0x20>", TOKEN_BYTE, 0},
    {"\u2581", TOKEN_NORMAL, 0},
    {"<|end|>", TOKEN_CONTROL, 0},
};

static tiny special_vocabulary(void)
{
    tiny v = {.model = "llama", .tokens = special, .count = sizeof special / sizeof *special};
    v.extras[0].key = "add_space_prefix";
    v.extras[0].is_flag = 1;
    return v;
}

static void longer_special_tokens_are_found_before_shorter_ones(void **state)
{
    tiny v = special_vocabulary();
    tokenizer *t = tiny_must_open(&v);
    assert_string_equal(TINY_ENCODE(t, "ab<x>a", PARSE), "ab<x <unk> a"); /* not <x> */
    assert_string_equal(TINY_ENCODE(t, "b<x>a", PARSE), "b <x> a");
    assert_string_equal(TINY_ENCODE(t, "\n\n\n\n\n\n\n\n", 0), "\n\n\n \n\n\n \n\n");
    assert_string_equal(TINY_ENCODE(t, "\n\n\n\na\n", 0), "\n\n\n <0x0A> a <0x0A>");
    tokenizer_close(t);
    (void)state;
}

static void phi3_swallows_white_space_after_special_tokens(void **state)
{
    tiny v = special_vocabulary();
    v.name = "Phi-3 mini";
    tokenizer *t = tiny_must_open(&v);
    assert_string_equal(TINY_ENCODE(t, "<x> \t a <x>\n<x>", PARSE), "<x> a \u2581 <x> <x>");
    assert_string_equal(TINY_ENCODE(t, "<unk> a", PARSE), "<unk> \u2581 a");
    tokenizer_close(t);
    (void)state;
}

static void tokens_that_end_a_generation_go_by_name(void **state)
{
    static const tiny_token harmony[] = {
        {"<|end|>", TOKEN_CONTROL, 0}, {"<|return|>", TOKEN_CONTROL, 0},
        {"<|call|>", TOKEN_NORMAL, 0}, {"<|start|>", TOKEN_CONTROL, 0},
        {"a", TOKEN_NORMAL, 0},
    };
    tiny v = special_vocabulary();
    tokenizer *t = tiny_must_open(&v);
    assert_true(tokenizer_ends_generation(t, 10));
    assert_false(tokenizer_ends_generation(t, 3));
    assert_false(tokenizer_ends_generation(t, -1));
    tokenizer_close(t);
    /* Beside <|return|> and <|call|>, <|end|> closes a message only. */
    t = tiny_must_open(&(tiny){
        .model = "llama", .tokens = harmony, .count = 5, .extras = {{"eos_token_id", 1, 0}}});
    assert_false(tokenizer_ends_generation(t, 0));
    assert_int_equal(tokenizer_kind(t, 0), TOKEN_USER_DEFINED);
    assert_true(tokenizer_ends_generation(t, 1));
    assert_true(tokenizer_ends_generation(t, 2));
    assert_int_equal(tokenizer_kind(t, 2), TOKEN_CONTROL);
    assert_int_equal(tokenizer_kind(t, 3), TOKEN_USER_DEFINED);
    tokenizer_close(t);
    (void)state;
}

/* ---- decoding ---- */

/* A token for each byte, by the byte's value. */
static tokenizer *open_bytes(void)
{
    static tiny_token tokens[256];
    static char texts[256][8];
    for (int i = 0; i < 256; i++) {
        snprintf(texts[i], sizeof texts[i], "<0x%02X>", (unsigned)i);
        tokens[i] = (tiny_token){texts[i], TOKEN_BYTE, 0};
    }
    return tiny_must_open(&(tiny){.model = "llama", .tokens = tokens, .count = 256});
}

static void decoded(const tokenizer *t, const char *bytes, const char *wanted)
{
    token_decoder d;
    buffer out;
    buffer_init(&out, 1 << 16);
    token_decoder_init(&d, t, 0);
    for (const char *at = bytes; *at; at++) {
        assert_int_equal(token_decoder_add(&d, (uint8_t)*at, &out), REALM_OK);
        assert_true(utf8_valid((uint8_t *)out.data, out.size));
    }
    assert_int_equal(token_decoder_finish(&d, &out), REALM_OK);
    assert_string_equal(buffer_text(&out), wanted);
    buffer_release(&out);
}

static void a_stream_never_shows_half_a_character(void **state)
{
    tokenizer *t = open_bytes();
    decoded(t, "a\u00e9\u4e2d\U0001f600z", "a\u00e9\u4e2d\U0001f600z");
    decoded(t, "\xE4\xB8", "\uFFFD");           /* unfinished */
    decoded(t, "\xE4\xB8x", "\uFFFDx");         /* broken off */
    decoded(t, "\xE4\xC3\xA9", "\uFFFD\u00e9"); /* by the next character */
    decoded(t, "\x80\xFF\xC0\xAF", "\uFFFD\uFFFD\uFFFD\uFFFD");
    decoded(t, "\xF0\x9F\x98\xF0\x9F\x98\x80", "\uFFFD\U0001f600");
    decoded(t, "\xED\xA0\x80", "\uFFFD\uFFFD\uFFFD"); /* a surrogate */
    tokenizer_close(t);
    (void)state;
}

static void a_whole_text_loses_the_space_that_encoding_put_before_it(void **state)
{
    static const tiny_token words[] = {
        {"\u2581a", TOKEN_NORMAL, 0}, {"b", TOKEN_NORMAL, 0}, {"<s>", TOKEN_CONTROL, 0}};
    tokenizer *t = tiny_must_open(&(tiny){.model = "llama", .tokens = words, .count = 3});
    buffer out;
    buffer_init(&out, 64);
    const token_id ids[] = {0, 0, 1};
    assert_int_equal(tokenizer_decode(t, ids, 3, 0, &out), REALM_OK);
    assert_string_equal(buffer_text(&out), "a ab");
    buffer_clear(&out);
    token_decoder d; /* text that goes on keeps it */
    token_decoder_init(&d, t, 0);
    assert_int_equal(token_decoder_add(&d, 0, &out), REALM_OK);
    assert_string_equal(buffer_text(&out), " a");
    buffer_release(&out);
    tokenizer_close(t);
    (void)state;
}

static void output_that_is_full_is_an_error(void **state)
{
    tokenizer *t = open_bytes();
    buffer out;
    buffer_init(&out, 2);
    const token_id ids[] = {'a', 'b', 'c'};
    assert_int_equal(tokenizer_decode(t, ids, 3, 0, &out), REALM_TOO_LARGE);
    buffer_release(&out);
    tokenizer_close(t);
    (void)state;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_that_cannot_be_a_tokenizer_is_refused_by_name),
        cmocka_unit_test(an_empty_token_gets_a_name_and_an_id_out_of_range_is_ignored),
        cmocka_unit_test(longer_special_tokens_are_found_before_shorter_ones),
        cmocka_unit_test(phi3_swallows_white_space_after_special_tokens),
        cmocka_unit_test(tokens_that_end_a_generation_go_by_name),
        cmocka_unit_test(a_stream_never_shows_half_a_character),
        cmocka_unit_test(a_whole_text_loses_the_space_that_encoding_put_before_it),
        cmocka_unit_test(output_that_is_full_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
