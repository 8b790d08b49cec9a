/* text/wpm.c: WordPiece tokenizers ("bert").
 *
 * Text is cleaned as BERT's normalizer does: accents and control characters dropped, lower case,
 * every punctuation mark and Chinese character a word of its own. A word, behind a U+2581 that says it
 * begins there, is then eaten from the left, always the longest token that fits; if nothing fits
 * somewhere, the whole word is unknown. */
#include <string.h>

#include "base/buffer.h"
#include "text/family.h"
#include "text/unicode.h"

#define WORD_START      "\xE2\x96\x81"
#define WORD_START_SIZE 3

typedef struct wpm_run {
    encoding *e;
    const tokenizer *t;
    char *word; /* WORD_START and then the word */
    size_t size;
    uint64_t *hashes; /* [t->longest] of the prefixes that begin at one place */
} wpm_run;

/* The blocks that BERT splits. The gap below U+2B920 is in Hugging Face's code, and so in ids. */
static int is_chinese(uint32_t code)
{
    if (code >= 0x2B820 && code <= 0x2B91F)
        return 0;
    return unicode_is_han(code) && code <= 0x2FA1F && !(code >= 0x2CEB0 && code <= 0x2EBEF);
}

/* The longest token that begins at place, as its size; 0 if there is none. */
static size_t longest_token(const wpm_run *run, size_t place, token_id *id)
{
    size_t limit = run->size - place;
    if (limit > run->t->longest)
        limit = run->t->longest;
    uint64_t hash = STRING_TABLE_HASH_START;
    for (size_t i = 0; i < limit; i++)
        run->hashes[i] = hash = string_table_hash_byte(hash, (uint8_t)run->word[place + i]);
    for (size_t size = limit; size > 0; size--) {
        *id = string_table_find_hashed(&run->t->strings, run->word + place, size,
                                       run->hashes[size - 1]);
        if (*id >= 0)
            return size;
    }
    return 0;
}

/* Ends the word, if there is one. */
static realm_status end_word(wpm_run *run)
{
    if (run->size == WORD_START_SIZE)
        return REALM_OK;
    encoding *e = run->e;
    size_t before = e->out.count, size = 0;
    realm_status status = REALM_OK;
    for (size_t place = 0; place < run->size && status == REALM_OK; place += size) {
        token_id id;
        size = longest_token(run, place, &id);
        if (size == 0) {
            e->out.count = before;
            break;
        }
        status = encoding_add(e, id);
    }
    run->size = WORD_START_SIZE;
    if (status == REALM_OK && e->out.count == before && run->t->unk >= 0)
        status = encoding_add(e, run->t->unk);
    return status;
}

static void add_character(wpm_run *run, uint32_t code)
{
    code = run->t->lower_cases ? unicode_lower(code) : code;
    run->size += (size_t)unicode_encode(code, (uint8_t *)run->word + run->size);
}

static realm_status add_code(wpm_run *run, uint32_t code)
{
    if (run->t->strips_accents)
        code = unicode_base(code);
    unicode_class class = unicode_class_of(code);
    if (unicode_is_space(code))
        return end_word(run);
    if (code == 0 || code == 0xFFFD || class == UNICODE_CONTROL)
        return REALM_OK;
    if (run->t->strips_accents && class == UNICODE_MARK)
        return REALM_OK;
    int alone = class == UNICODE_PUNCTUATION || (code < 0x7F && class == UNICODE_SYMBOL) ||
                is_chinese(code);
    realm_status status = alone ? end_word(run) : REALM_OK;
    add_character(run, code);
    if (status == REALM_OK && alone)
        status = end_word(run);
    return status;
}

static realm_status encode(encoding *e, const char *text, size_t size)
{
    const tokenizer *t = e->tokenizer;
    wpm_run run = {.e = e, .t = t, .size = WORD_START_SIZE};
    /* Lower case may take more bytes than upper case, but never more than four a character, and
     * unicode_encode may write four. */
    run.word = arena_take_array(e->scratch, size + 2, 4);
    run.hashes = arena_take_array(e->scratch, t->longest, sizeof *run.hashes);
    if (!run.word || !run.hashes)
        return realm_fail_memory(e->error, size * 4, "a text");
    memcpy(run.word, WORD_START, WORD_START_SIZE);
    realm_status status = REALM_OK;
    for (size_t i = 0; i < size && status == REALM_OK;) {
        uint32_t code;
        i += (size_t)unicode_decode((const uint8_t *)text + i, size - i, &code);
        status = add_code(&run, code);
    }
    return status == REALM_OK ? end_word(&run) : status;
}

static realm_status normal_piece(const tokenizer *t, const string_entry *token, buffer *out)
{
    (void)t;
    return family_unescape_spaces(token, out);
}

const text_family wpm_family = {
    .model = "bert",
    .bos = 101,
    .eos = -1,
    .unk = 100,
    .sep = 102,
    .pad = 0,
    .adds_bos = 1,
    .encode = encode,
    .normal_piece = normal_piece,
};
