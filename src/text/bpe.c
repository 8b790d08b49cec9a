/* text/bpe.c: byte-level BPE ("gpt2" and its many pre-tokenizers), and two cousins: "gemma4", whose
 * merges run over plain characters as SentencePiece's do, and "whitespace", which drops the spaces.
 *
 * The pre-tokenizer cuts text into words; inside a word neighbours are joined in the order in which the
 * vocabulary lists the merges. A merge is a pair of strings, and symbols are compared with it as
 * strings: all strings that occur in merges have an id in the tokenizer's table, the tokens first, so
 * that a pair is two integers. See merge.h and splitter.h. */
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "text/family.h"
#include "text/merge.h"
#include "text/unicode.h"

typedef struct merge_slot {
    uint64_t pair; /* the two ids, plus one; 0: free */
    uint32_t rank;
} merge_slot;

typedef struct bpe {
    splitter *splitter;
    merge_slot *slots;
    size_t slot_count;        /* a power of two, at least twice the merges */
    int32_t byte_ids[256];    /* of the string that stands for a byte; -1: none */
    token_id byte_texts[256]; /* the token whose text is this one byte, or -1 */
} bpe;

/* ---- merges ---- */

static size_t home_of(const bpe *b, uint64_t pair)
{
    return (size_t)((pair * 0x9E3779B97F4A7C15u) >> 32) & (b->slot_count - 1);
}

static merge_slot *slot_of(const bpe *b, int32_t left, int32_t right)
{
    uint64_t pair = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) + 1;
    size_t at = home_of(b, pair);
    while (b->slots[at].pair && b->slots[at].pair != pair)
        at = (at + 1) & (b->slot_count - 1);
    return &b->slots[at];
}

/* The first of two equal merges counts. */
static realm_status add_merge(tokenizer *t, bpe *b, gguf_string merge, uint32_t rank)
{
    /* From the second byte on: a part may begin with a space. */
    const char *space = merge.size > 1 ? memchr(merge.data + 1, ' ', merge.size - 1) : NULL;
    if (!space)
        return REALM_OK; /* no pair can be equal to it */
    size_t left_size = (size_t)(space - merge.data);
    int32_t left = string_table_add(&t->strings, merge.data, left_size);
    int32_t right = string_table_add(&t->strings, space + 1, merge.size - left_size - 1);
    if (left < 0 || right < 0)
        return REALM_NO_MEMORY;
    merge_slot *slot = slot_of(b, left, right);
    if (!slot->pair) {
        slot->pair = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) + 1;
        slot->rank = rank;
    }
    return REALM_OK;
}

/* Parts that are no tokens were borrowed from the file, which may be closed: copy them. */
static realm_status keep_parts(tokenizer *t)
{
    for (size_t i = t->count; i < t->strings.count; i++) {
        string_entry *part = &t->strings.entries[i];
        part->text = arena_copy(&t->memory, part->text, part->size);
        if (!part->text)
            return REALM_NO_MEMORY;
    }
    return REALM_OK;
}

static realm_status load_merges(tokenizer *t, bpe *b, const gguf *g, realm_error *error)
{
    const char *key = "tokenizer.ggml.merges";
    const gguf_value *merges = NULL;
    realm_status status = gguf_get_array(g, key, GGUF_STRING, &merges, error);
    if (status == REALM_NOT_FOUND && t->pre->habits & PRE_NEEDS_NO_MERGES)
        status = REALM_OK;
    if (status != REALM_OK)
        return status == REALM_NOT_FOUND
                   ? realm_fail(error, REALM_CORRUPT, "there is no %s, which a BPE needs", key)
                   : status;
    uint64_t count = merges ? merges->array.count : 0;
    if (count > INT32_MAX / 4)
        return realm_fail(error, REALM_CORRUPT, "%s has %" PRIu64 " entries", key, count);
    for (b->slot_count = 16; b->slot_count < count * 2;)
        b->slot_count *= 2;
    b->slots = calloc(b->slot_count, sizeof *b->slots);
    if (!b->slots)
        return realm_fail_memory(error, b->slot_count * sizeof *b->slots, "merges");
    for (uint64_t i = 0; i < count && status == REALM_OK; i++)
        status = add_merge(t, b, gguf_array_string(g, merges, i), (uint32_t)i);
    if (status == REALM_OK)
        status = keep_parts(t);
    return status == REALM_OK ? status : realm_fail_memory(error, 0, "merges");
}

static int may_join(const void *context, const char *text, const merge_symbol *left,
                    const merge_symbol *right, uint32_t *order)
{
    const tokenizer *t = context;
    (void)text;
    if (left->id < 0 || right->id < 0)
        return 0;
    const merge_slot *slot = slot_of(t->bpe, left->id, right->id);
    *order = slot->rank;
    return slot->pair != 0;
}

static int32_t joined_id(const void *context, const char *text, const merge_symbol *joined)
{
    const tokenizer *t = context;
    return string_table_find(&t->strings, text + joined->start, joined->size);
}

/* ---- opening ---- */

static void index_bytes(const tokenizer *t, bpe *b)
{
    for (int byte = 0; byte < 256; byte++) {
        uint8_t stand_in[4], raw = (uint8_t)byte;
        int length = unicode_encode(unicode_of_byte(raw), stand_in);
        b->byte_ids[byte] = string_table_find(&t->strings, (char *)stand_in, (size_t)length);
        b->byte_texts[byte] = vocabulary_find(t, (char *)&raw, 1);
    }
}

static realm_status open_bpe(tokenizer *t, const gguf *g, realm_error *error)
{
    bpe *b = calloc(1, sizeof *b);
    if (!b)
        return realm_fail_memory(error, sizeof *b, "a tokenizer");
    t->bpe = b;
    realm_status status = splitter_open(&b->splitter, t->pre->steps, error);
    if (status == REALM_OK)
        status = load_merges(t, b, g, error);
    if (status == REALM_OK)
        index_bytes(t, b);
    return status;
}

static void close_bpe(tokenizer *t)
{
    bpe *b = t->bpe;
    if (!b)
        return;
    splitter_close(b->splitter);
    free(b->slots);
    free(b);
}

/* ---- encoding ---- */

/* One call's scratch. */
typedef struct bpe_run {
    encoding *e;
    const tokenizer *t;
    const bpe *b;
    merge_space space;
    char *word; /* as the vocabulary spells it */
    size_t word_size, word_capacity;
} bpe_run;

static realm_status reserve_word(bpe_run *run, size_t size)
{
    if (size <= run->word_capacity)
        return REALM_OK;
    size_t capacity = size < 256 ? 256 : size * 2;
    char *grown = realloc(run->word, capacity);
    if (!grown)
        return REALM_NO_MEMORY;
    run->word = grown;
    run->word_capacity = capacity;
    return REALM_OK;
}

/* Writes one byte's stand-in and its symbol. */
static realm_status add_byte(bpe_run *run, uint8_t byte)
{
    size_t start = run->word_size;
    int length = unicode_encode(unicode_of_byte(byte), (uint8_t *)run->word + start);
    run->word_size += (size_t)length;
    return merge_add(&run->space, (uint32_t)start, (uint32_t)length, run->b->byte_ids[byte]);
}

static realm_status add_character(bpe_run *run, uint32_t code)
{
    uint8_t bytes[4];
    int length = unicode_encode(code, bytes);
    realm_status status = REALM_OK;
    if (run->t->pre->habits & PRE_RAW_UTF8) {
        size_t start = run->word_size;
        memcpy(run->word + start, bytes, (size_t)length);
        run->word_size += (size_t)length;
        int32_t id = string_table_find(&run->t->strings, (char *)bytes, (size_t)length);
        return merge_add(&run->space, (uint32_t)start, (uint32_t)length, id);
    }
    for (int i = 0; i < length && status == REALM_OK; i++)
        status = add_byte(run, bytes[i]);
    return status;
}

static realm_status spell_word(bpe_run *run, const uint32_t *codes, size_t count)
{
    merge_clear(&run->space);
    run->word_size = 0;
    /* A character has at most four bytes and each at most two in its stand-in; unicode_encode may
     * write four. */
    realm_status status = count > SIZE_MAX / 8 - 4 ? REALM_TOO_LARGE
                                                   : reserve_word(run, count * 8 + 4);
    for (size_t i = 0; i < count && status == REALM_OK; i++)
        status = add_character(run, codes[i]);
    return status;
}

/* The token that a word is without merging, or -1. */
static token_id whole_word(const bpe_run *run, const uint32_t *codes)
{
    unsigned habits = run->t->pre->habits;
    int breaks_only = habits & PRE_WHOLE_BREAKS && codes[0] == '\n'; /* LINES cuts there */
    if (!(habits & PRE_WHOLE_WORDS) && !breaks_only)
        return -1;
    return vocabulary_find(run->t, run->word, run->word_size);
}

static realm_status emit(bpe_run *run, const merge_symbol *symbol)
{
    if (symbol->id >= 0 && (size_t)symbol->id < run->t->count)
        return encoding_add(run->e, symbol->id);
    const token_id *ids = run->t->pre->habits & PRE_RAW_UTF8 ? run->t->byte_tokens
                                                             : run->b->byte_texts;
    realm_status status = REALM_OK;
    for (uint32_t i = 0; i < symbol->size && status == REALM_OK; i++) {
        token_id id = ids[(uint8_t)run->word[symbol->start + i]];
        if (id >= 0)
            status = encoding_add(run->e, id);
    }
    return status;
}

static realm_status encode_word(bpe_run *run, const uint32_t *codes, size_t count)
{
    realm_status status = spell_word(run, codes, count);
    if (status == REALM_OK) {
        token_id whole = whole_word(run, codes);
        if (whole >= 0)
            return encoding_add(run->e, whole);
        merge_rules rules = {run->t, may_join, joined_id};
        status = merge_run(&run->space, run->word, &rules);
    }
    if (status != REALM_OK)
        return realm_fail(run->e->error, status, "a word of %zu characters is too large", count);
    for (int32_t i = 0; i != -1 && status == REALM_OK; i = run->space.symbols[i].next)
        status = emit(run, &run->space.symbols[i]);
    return status;
}

static realm_status encode(encoding *e, const char *text, size_t size)
{
    const tokenizer *t = e->tokenizer;
    bpe_run run = {.e = e, .t = t, .b = t->bpe};
    split_text split;
    if (t->escapes_space && !(text = encoding_escape_spaces(e, text, &size, 0)))
        return realm_fail_memory(e->error, size, "a text");
    realm_status status = splitter_cut(run.b->splitter, e->scratch, text, size, &split, e->error);
    merge_space_init(&run.space);
    uint32_t start = 0;
    for (size_t i = 0; status == REALM_OK && i < split.word_count; start = split.ends[i++])
        status = encode_word(&run, split.codes + start, split.ends[i] - start);
    merge_space_release(&run.space);
    free(run.word);
    return status;
}

/* "whitespace": every run between white space by itself, in lower case if the file asks. */
static realm_status encode_without_spaces(encoding *e, const char *text, size_t size)
{
    const tokenizer *t = e->tokenizer;
    char *run = arena_take_array(e->scratch, size, 4);
    if (!run)
        return realm_fail_memory(e->error, size * 4, "a text");
    realm_status status = REALM_OK;
    size_t run_size = 0;
    for (size_t i = 0; i <= size && status == REALM_OK;) {
        uint32_t code = ' ';
        i += i < size ? (size_t)unicode_decode((const uint8_t *)text + i, size - i, &code) : 1;
        if (!unicode_is_space(code)) {
            code = t->lower_cases ? unicode_lower(code) : code;
            run_size += (size_t)unicode_encode(code, (uint8_t *)run + run_size);
        } else if (run_size > 0) {
            status = encode(e, run, run_size);
            run_size = 0;
        }
    }
    return status;
}

/* ---- pieces ---- */

/* A character that stands for no byte is text by itself: the vocabulary spells it plainly. */
static realm_status normal_piece(const tokenizer *t, const string_entry *token, buffer *out)
{
    if (t->escapes_space)
        return family_unescape_spaces(token, out);
    const uint8_t *text = (const uint8_t *)token->text;
    realm_status status = REALM_OK;
    for (size_t i = 0, length; i < token->size && status == REALM_OK; i += length) {
        uint32_t code;
        length = (size_t)unicode_decode(text + i, token->size - i, &code);
        int value = unicode_to_byte(code);
        char byte = (char)value;
        status = value < 0 ? buffer_add(out, text + i, length) : buffer_add(out, &byte, 1);
    }
    return status;
}

#define BPE_COMMON                                                                                 \
    .unk = -1, .sep = -1, .pad = -1, .open = open_bpe, .close = close_bpe,                         \
    .normal_piece = normal_piece

const text_family bpe_family = {
    .model = "gpt2", .bos = 11, .eos = 11, .encode = encode, BPE_COMMON};
const text_family bpe_gemma4_family = {
    .model = "gemma4", .bos = -1, .eos = -1, .encode = encode, BPE_COMMON};
const text_family bpe_whitespace_family = {
    .model = "whitespace", .bos = 11, .eos = 11, .encode = encode_without_spaces, BPE_COMMON};
