/* text/spm.c: SentencePiece-style tokenizers ("llama": Llama 1 and 2, Mistral 7B, Gemma 1 to 3).
 *
 * The text, its spaces turned into U+2581, begins as single characters; neighbours that spell a token
 * are joined, the token with the highest score first. A character that no token spells is written as
 * its bytes' tokens. There are no words: a whole text is one chain. See merge.h. */
#include <string.h>

#include "base/buffer.h"
#include "text/family.h"
#include "text/merge.h"
#include "text/unicode.h"

/* Floats in such an order of integers that the highest score comes first. */
static uint32_t order_of(float score)
{
    uint32_t bits;
    score += 0.0f; /* -0 and 0 are equal scores */
    memcpy(&bits, &score, sizeof bits);
    uint32_t ascending = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return ~ascending;
}

static int may_join(const void *context, const char *text, const merge_symbol *left,
                    const merge_symbol *right, uint32_t *order)
{
    const tokenizer *t = context;
    if (left->size + right->size > t->longest)
        return 0;
    token_id id = vocabulary_find(t, text + left->start, left->size + right->size);
    if (id < 0)
        return 0;
    *order = order_of(t->scores[id]);
    return 1;
}

/* A vocabulary may spell bytes as themselves; where it cannot spell one at all, it is unknown. */
static realm_status open_spm(tokenizer *t, const gguf *g, realm_error *error)
{
    (void)g;
    (void)error;
    for (int byte = 0; byte < 256; byte++) {
        char text = (char)byte;
        if (t->byte_tokens[byte] < 0)
            t->byte_tokens[byte] = vocabulary_find(t, &text, 1);
    }
    return REALM_OK;
}

static realm_status add_characters(merge_space *space, const char *text, size_t size)
{
    realm_status status = REALM_OK;
    for (size_t i = 0, length; i < size && status == REALM_OK; i += length) {
        length = (size_t)unicode_length((uint8_t)text[i]);
        if (length > size - i)
            length = size - i;
        status = merge_add(space, (uint32_t)i, (uint32_t)length, -1);
    }
    return status;
}

static realm_status emit(encoding *e, const char *text, const merge_symbol *symbol)
{
    const tokenizer *t = e->tokenizer;
    token_id id = vocabulary_find(t, text + symbol->start, symbol->size);
    if (id >= 0)
        return encoding_add(e, id);
    realm_status status = REALM_OK;
    for (uint32_t i = 0; i < symbol->size && status == REALM_OK; i++) {
        id = t->byte_tokens[(uint8_t)text[symbol->start + i]];
        if (id < 0)
            id = t->unk;
        if (id >= 0)
            status = encoding_add(e, id);
    }
    return status;
}

static realm_status encode(encoding *e, const char *text, size_t size)
{
    const tokenizer *t = e->tokenizer;
    char *escaped = encoding_escape_spaces(e, text, &size,
                                           t->adds_space_prefix && e->after_special);
    if (!escaped)
        return realm_fail_memory(e->error, size, "a text");
    merge_space space;
    merge_space_init(&space);
    merge_rules rules = {t, may_join, NULL};
    realm_status status = add_characters(&space, escaped, size);
    if (status == REALM_OK)
        status = merge_run(&space, escaped, &rules);
    if (status != REALM_OK)
        realm_fail(e->error, status, "a text of %zu bytes is too large to be merged", size);
    for (int32_t i = 0; i != -1 && status == REALM_OK; i = space.symbols[i].next)
        status = emit(e, escaped, &space.symbols[i]);
    merge_space_release(&space);
    return status;
}

static realm_status normal_piece(const tokenizer *t, const string_entry *token, buffer *out)
{
    (void)t;
    return family_unescape_spaces(token, out);
}

const text_family spm_family = {
    .model = "llama",
    .bos = 1,
    .eos = 2,
    .unk = 0,
    .sep = -1,
    .pad = -1,
    .adds_bos = 1,
    .adds_space_prefix = 1,
    .escapes_space = 1,
    .open = open_spm,
    .encode = encode,
    .normal_piece = normal_piece,
};
