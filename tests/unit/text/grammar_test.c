/* tests/unit/text/grammar_test.c: a grammar over a vocabulary of single letters: its mask is what may be
 * written next and nothing else. */
#include <pthread.h>

#include "text/grammar.h"
#include "unit/text/tiny.h"

/* Tokens 0 to 94 are the printable ASCII characters from the space on; 95 ends. */
enum { END = 95, COUNT = 96, WORDS = 3 };

static tokenizer *open_letters(void)
{
    static tiny_token tokens[COUNT];
    static char texts[COUNT][8];
    for (int i = 0; i < END; i++) {
        snprintf(texts[i], sizeof texts[i], i ? "%c" : "\u2581", ' ' + i);
        tokens[i] = (tiny_token){texts[i], TOKEN_NORMAL, 0};
    }
    tokens[END] = (tiny_token){"<|im_end|>", TOKEN_CONTROL, 0};
    return tiny_must_open(&(tiny){.model = "llama",
                                  .tokens = tokens,
                                  .count = COUNT,
                                  .extras = {{"bos_token_id", END, 0}, {"eos_token_id", END, 0}}});
}

static grammar *open_grammar(const tokenizer *t, grammar_kind kind, const char *text)
{
    grammar *g = NULL;
    realm_error error;
    assert_status(grammar_open(&g, t, kind, text, strlen(text), &error), REALM_OK, error);
    return g;
}

/* The characters that may come next, and $ for the end. */
static const char *next(grammar *g)
{
    static char line[COUNT + 1];
    uint32_t mask[WORDS];
    realm_error error;
    size_t used = 0;
    assert_status(grammar_mask(g, mask, &error), REALM_OK, error);
    for (int i = 0; i < COUNT; i++)
        if (mask[i / 32] >> i % 32 & 1)
            line[used++] = (char)(i == END ? '$' : ' ' + i);
    line[used] = '\0';
    return line;
}

static void accept(grammar *g, const char *text)
{
    realm_error error;
    for (; *text; text++)
        assert_status(grammar_accept(g, *text - ' ', &error), REALM_OK, error);
}

static void a_regular_expression_masks_what_cannot_follow(void **state)
{
    tokenizer *t = open_letters();
    assert_int_equal(grammar_mask_words(t), WORDS);
    grammar *g = open_grammar(t, GRAMMAR_REGEX, "a(b|cd)e?");
    assert_string_equal(next(g), "a");
    accept(g, "a");
    assert_string_equal(next(g), "bc");
    assert_false(grammar_is_complete(g));
    accept(g, "b");
    assert_string_equal(next(g), "e$");
    assert_true(grammar_is_complete(g));
    accept(g, "e");
    assert_string_equal(next(g), "$");
    grammar_close(g);
    tokenizer_close(t);
    (void)state;
}

static void a_token_that_is_not_allowed_changes_nothing(void **state)
{
    tokenizer *t = open_letters();
    grammar *g = open_grammar(t, GRAMMAR_REGEX, "ab");
    realm_error error;
    assert_status(grammar_accept(g, 'b' - ' ', &error), REALM_INVALID, error);
    assert_string_equal(next(g), "a");
    accept(g, "a");
    assert_status(grammar_rollback(g, 1, &error), REALM_OK, error);
    assert_string_equal(next(g), "a");
    grammar_close(g);
    tokenizer_close(t);
    (void)state;
}

static void a_clone_goes_its_own_way(void **state)
{
    tokenizer *t = open_letters();
    grammar *g = open_grammar(t, GRAMMAR_LARK, "start: \"a\" (\"b\" | \"c\") \"d\""), *fork = NULL;
    realm_error error;
    accept(g, "a");
    assert_status(grammar_clone(&fork, g, &error), REALM_OK, error);
    accept(fork, "b");
    assert_string_equal(next(fork), "d");
    assert_string_equal(next(g), "bc");
    grammar_close(fork);
    grammar_close(g);
    tokenizer_close(t);
    (void)state;
}

static void a_schema_leads_to_json_that_fits_it(void **state)
{
    tokenizer *t = open_letters();
    grammar *g = open_grammar(t, GRAMMAR_JSON_SCHEMA,
                              "{\"type\":\"object\",\"properties\":{\"n\":{\"enum\":[1,25]}},"
                              "\"required\":[\"n\"],\"additionalProperties\":false}");
    accept(g, "{\"n\":");
    assert_non_null(strchr(next(g), '1'));
    assert_non_null(strchr(next(g), '2'));
    assert_null(strchr(next(g), '3'));
    accept(g, "25}");
    assert_true(grammar_is_complete(g));
    grammar_close(g);
    g = open_grammar(t, GRAMMAR_JSON_OBJECT, "");
    assert_null(strchr(next(g), '['));
    accept(g, "{}");
    assert_true(grammar_is_complete(g));
    grammar_close(g);
    tokenizer_close(t);
    (void)state;
}

static void nonsense_is_refused_with_a_sentence(void **state)
{
    tokenizer *t = open_letters();
    grammar *g = NULL;
    realm_error error;
    assert_status(grammar_open(&g, t, GRAMMAR_REGEX, "a(", 2, &error), REALM_INVALID, error);
    assert_true(strlen(error.message) > 0);
    assert_status(grammar_open(&g, t, GRAMMAR_JSON_SCHEMA, "{", 1, &error), REALM_INVALID, error);
    tokenizer_close(t);
    (void)state;
}

static void *open_on_a_thread(void *t)
{
    grammar *g = open_grammar(t, GRAMMAR_REGEX, "a");
    grammar_close(g);
    return NULL;
}

static void threads_share_one_vocabulary(void **state)
{
    tokenizer *t = open_letters();
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, open_on_a_thread, t), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    tokenizer_close(t);
    (void)state;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_regular_expression_masks_what_cannot_follow),
        cmocka_unit_test(a_token_that_is_not_allowed_changes_nothing),
        cmocka_unit_test(a_clone_goes_its_own_way),
        cmocka_unit_test(a_schema_leads_to_json_that_fits_it),
        cmocka_unit_test(nonsense_is_refused_with_a_sentence),
        cmocka_unit_test(threads_share_one_vocabulary),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
