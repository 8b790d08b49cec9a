/* tests/unit/text/tiny.h: vocabularies of a few tokens, made in memory, and what they make of a text. */
#ifndef REALM_TESTS_TEXT_TINY_H
#define REALM_TESTS_TEXT_TINY_H

#include "text/tokenizer.h"
#include "unit/unit.h"

typedef struct tiny_token {
    const char *text;
    token_kind kind;
    float score;
} tiny_token;

#define TINY_MAX_EXTRAS 8

/* A GGUF file's metadata, as far as tokenizers read them. */
typedef struct tiny {
    const char *model, *pre, *name; /* pre and name may be NULL */
    const tiny_token *tokens;
    size_t count;
    const char *const *merges; /* NULL: no such key */
    size_t merge_count;
    struct {
        const char *key; /* without tokenizer.ggml. */
        uint32_t value;
        int is_flag;
    } extras[TINY_MAX_EXTRAS];
} tiny;

/* Opens it; the file is gone when this returns. */
realm_status tiny_open(tokenizer **out, const tiny *v, realm_error *error);

/* The same where it must work. */
tokenizer *tiny_must_open(const tiny *v);

/* The vocabulary texts of what text becomes, with single spaces between: "▁he llo </s>". Valid until
 * the next call. */
const char *tiny_encode(const tokenizer *t, const char *text, size_t size, unsigned flags);
#define TINY_ENCODE(t, text, flags) tiny_encode(t, text, sizeof(text) - 1, flags)

#endif
