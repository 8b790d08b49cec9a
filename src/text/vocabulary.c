/* text/vocabulary.c: a tokenizer's tokens and what is special about them, from a file's metadata.
 *
 * Files say less than tokenizers need, and sometimes the wrong thing: which token ends a turn, what is
 * a control token, which swallows spaces beside it. What is filled in here from names is what
 * llama.cpp fills in, because ids and stops depend on it. Runs once, inside tokenizer_open. */
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/buffer.h"
#include "text/family.h"

#define KEY(name) "tokenizer.ggml." name

static const text_family *const families[] = {
    &spm_family, &bpe_family, &bpe_gemma4_family, &bpe_whitespace_family, &wpm_family,
};

/* ---- family and pre-tokenizer ---- */

static int same(gguf_string s, const char *text)
{
    return s.size == strlen(text) && memcmp(s.data, text, s.size) == 0;
}

static realm_status find_family(tokenizer *t, const gguf *g, realm_error *error)
{
    gguf_string model = {0};
    realm_status status = gguf_get_string(g, KEY("model"), &model, error);
    if (status == REALM_NOT_FOUND)
        return realm_fail(error, REALM_CORRUPT, "there is no %s: the file has no tokenizer",
                          KEY("model"));
    if (status != REALM_OK)
        return status;
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        if (same(model, families[i]->model))
            t->family = families[i];
    if (t->family)
        return REALM_OK;
    return realm_fail(error, REALM_UNSUPPORTED,
                      "%s '%.*s' is not implemented; llama, gpt2, gemma4, whitespace and bert are",
                      KEY("model"), (int)(model.size < 64 ? model.size : 64), model.data);
}

static realm_status find_pre(tokenizer *t, const gguf *g, realm_error *error)
{
    gguf_string name = {"", 0};
    realm_status status = gguf_get_string(g, KEY("pre"), &name, error);
    if (status != REALM_OK && status != REALM_NOT_FOUND)
        return status;
    if (t->family == &bpe_gemma4_family)
        name = (gguf_string){"gemma4", 6};
    t->pre = pretokenizers_find(name.data, name.size);
    if (t->pre)
        return REALM_OK;
    return realm_fail(error, REALM_UNSUPPORTED, "%s '%.*s' is not a pre-tokenizer that is known",
                      KEY("pre"), (int)(name.size < 64 ? name.size : 64), name.data);
}

static int is_bpe(const tokenizer *t)
{
    return t->family->encode != spm_family.encode && t->family->encode != wpm_family.encode;
}

static void set_defaults(tokenizer *t)
{
    const text_family *f = t->family;
    t->bos = f->bos;
    t->eos = f->eos;
    t->unk = f->unk;
    t->sep = f->sep;
    t->pad = f->pad;
    t->adds_bos = f->adds_bos;
    t->adds_space_prefix = f->adds_space_prefix;
    t->escapes_space = f->escapes_space;
    t->lower_cases = 1;
    if (!t->pre)
        return;
    t->adds_bos = (t->pre->habits & PRE_ADDS_BOS) != 0;
    t->escapes_space = (t->pre->habits & PRE_ESCAPES_SPACE) != 0;
    t->lower_cases = !(t->pre->habits & PRE_KEEPS_CASE);
    if (t->pre->habits & PRE_NO_BOS)
        t->bos = -1;
}

/* ---- tokens ---- */

/* Copies every text into one block, so that the file may be closed. */
static realm_status load_texts(tokenizer *t, const gguf *g, const gguf_value *tokens,
                               realm_error *error)
{
    size_t bytes = 0;
    for (size_t i = 0; i < t->count; i++)
        bytes += gguf_array_string(g, tokens, i).size;
    char *block = arena_take(&t->memory, bytes);
    if (!block)
        return realm_fail_memory(error, bytes, "the texts of tokens");
    for (size_t i = 0; i < t->count; i++) {
        gguf_string text = gguf_array_string(g, tokens, i);
        char *copy = block;
        if (text.size == 0) { /* a hole in the list still needs a name of its own */
            copy = arena_printf(&t->memory, "[EMPTY_%zu]", i);
            text.size = copy ? strlen(copy) : 0;
        } else {
            memcpy(block, text.data, text.size);
            block += text.size;
        }
        int32_t id = copy ? string_table_add(&t->strings, copy, text.size) : -1;
        if (id < 0)
            return realm_fail_memory(error, text.size, "the texts of tokens");
        if ((size_t)id != i)
            return realm_fail(error, REALM_CORRUPT, "%s: tokens %d and %zu have the same text",
                              KEY("tokens"), id, i);
        if (text.size > t->longest)
            t->longest = (uint32_t)text.size;
    }
    return REALM_OK;
}

/* An array that has an element for each token, or NULL if the file has none. */
static realm_status array_per_token(const tokenizer *t, const gguf *g, const char *key,
                                    const gguf_value **out, realm_error *error)
{
    const gguf_value *value = gguf_find(g, key);
    *out = value;
    if (!value)
        return REALM_OK;
    if (value->type != GGUF_ARRAY ||
        (value->array.type != GGUF_F32 && value->array.type != GGUF_I32))
        return realm_fail(error, REALM_CORRUPT, "%s is not an array of f32 or i32", key);
    if (value->array.count < t->count)
        return realm_fail(error, REALM_CORRUPT, "%s has %" PRIu64 " entries for %zu tokens", key,
                          value->array.count, t->count);
    return REALM_OK;
}

static uint16_t attribute_of(int64_t kind)
{
    return (uint16_t)(kind > TOKEN_UNDEFINED && kind <= TOKEN_BYTE ? 1 << kind : 0);
}

static realm_status load_numbers(tokenizer *t, const gguf *g, realm_error *error)
{
    const gguf_value *scores, *kinds;
    realm_status status = array_per_token(t, g, KEY("scores"), &scores, error);
    if (status == REALM_OK)
        status = array_per_token(t, g, KEY("token_type"), &kinds, error);
    if (status != REALM_OK)
        return status;
    t->scores = arena_take_array(&t->memory, t->count, sizeof *t->scores);
    t->attributes = arena_take_array(&t->memory, t->count, sizeof *t->attributes);
    if (!t->scores || !t->attributes)
        return realm_fail_memory(error, t->count * sizeof *t->scores, "scores");
    if (kinds && kinds->array.type != GGUF_I32)
        return realm_fail(error, REALM_CORRUPT, "%s is not an array of i32", KEY("token_type"));
    for (size_t i = 0; i < t->count; i++) {
        t->scores[i] = scores ? (float)gguf_array_float(scores, i) : 0;
        t->attributes[i] = kinds ? attribute_of(gguf_array_int(kinds, i)) : TOKEN_IS_NORMAL;
    }
    return REALM_OK;
}

static void index_byte_tokens(tokenizer *t)
{
    static const char digits[] = "0123456789ABCDEF";
    for (int byte = 0; byte < 256; byte++) {
        char text[6] = {'<', '0', 'x', digits[byte >> 4], digits[byte & 15], '>'};
        t->byte_tokens[byte] = vocabulary_find(t, text, sizeof text);
    }
}

static realm_status load_tokens(tokenizer *t, const gguf *g, realm_error *error)
{
    const gguf_value *tokens;
    realm_status status = gguf_get_array(g, KEY("tokens"), GGUF_STRING, &tokens, error);
    if (status == REALM_NOT_FOUND)
        return realm_fail(error, REALM_CORRUPT, "there is no %s", KEY("tokens"));
    if (status != REALM_OK)
        return status;
    if (tokens->array.count == 0 || tokens->array.count > INT32_MAX / 4)
        return realm_fail(error, REALM_CORRUPT, "%s has %" PRIu64 " entries", KEY("tokens"),
                          tokens->array.count);
    t->count = (size_t)tokens->array.count;
    if (!string_table_init(&t->strings, t->count))
        return realm_fail_memory(error, t->count * sizeof(string_entry), "a vocabulary");
    status = load_texts(t, g, tokens, error);
    if (status == REALM_OK)
        status = load_numbers(t, g, error);
    if (status == REALM_OK)
        index_byte_tokens(t);
    return status;
}

/* ---- special tokens, by id ---- */

/* A default outside the vocabulary is none; an id outside it in the file is ignored. */
static realm_status load_id(const tokenizer *t, const gguf *g, const char *key, token_id *id,
                            realm_error *error)
{
    if (*id >= 0 && (size_t)*id >= t->count)
        *id = -1;
    uint32_t value = UINT32_MAX;
    realm_status status = gguf_get_u32(g, key, &value, error);
    if (status == REALM_OK && value < t->count)
        *id = (token_id)value;
    return status == REALM_NOT_FOUND ? REALM_OK : status;
}

static realm_status load_ids(tokenizer *t, const gguf *g, realm_error *error)
{
    const struct {
        const char *key;
        token_id *id;
    } ids[] = {
        {KEY("bos_token_id"), &t->bos},
        {KEY("eos_token_id"), &t->eos},
        {KEY("eot_token_id"), &t->eot},
        {KEY("eom_token_id"), &t->eom},
        {KEY("unknown_token_id"), &t->unk},
        {KEY("seperator_token_id"), &t->sep}, /* the format's spelling */
        {KEY("padding_token_id"), &t->pad},
        {KEY("fim_pre_token_id"), &t->fim_prefix},
        {KEY("fim_suf_token_id"), &t->fim_suffix},
        {KEY("fim_mid_token_id"), &t->fim_middle},
        {KEY("fim_pad_token_id"), &t->fim_pad},
        {KEY("fim_rep_token_id"), &t->fim_repository},
        {KEY("fim_sep_token_id"), &t->fim_separator},
        {KEY("prefix_token_id"), &t->fim_prefix}, /* older names */
        {KEY("suffix_token_id"), &t->fim_suffix},
        {KEY("middle_token_id"), &t->fim_middle},
    };
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++) {
        realm_status status = load_id(t, g, ids[i].key, ids[i].id, error);
        if (status != REALM_OK)
            return status;
    }
    return REALM_OK;
}

static realm_status load_flag(const gguf *g, const char *key, uint8_t *flag, realm_error *error)
{
    int value = *flag;
    realm_status status = gguf_get_bool(g, key, &value, error);
    *flag = (uint8_t)value;
    return status == REALM_NOT_FOUND ? REALM_OK : status;
}

static realm_status load_flags(tokenizer *t, const gguf *g, realm_error *error)
{
    realm_status status = load_flag(g, KEY("add_space_prefix"), &t->adds_space_prefix, error);
    if (status == REALM_OK)
        status = load_flag(g, KEY("add_bos_token"), &t->adds_bos, error);
    if (status == REALM_OK)
        status = load_flag(g, KEY("add_eos_token"), &t->adds_eos, error);
    if (status == REALM_OK)
        status = load_flag(g, KEY("normalizer.lowercase"), &t->lower_cases, error);
    t->strips_accents = t->lower_cases;
    if (status == REALM_OK)
        status = load_flag(g, KEY("normalizer.strip_accents"), &t->strips_accents, error);
    if (t->pre && t->pre->habits & PRE_FORCES_BOS)
        t->adds_bos = 1;
    return status;
}

/* ---- special tokens, by name ---- */

static token_id find_text(const tokenizer *t, const char *text)
{
    return vocabulary_find(t, text, strlen(text));
}

/* Where the file names no such token, the first of names (NULL ends them) that the vocabulary has is
 * it, and a control token whatever the file says. */
static void detect(tokenizer *t, token_id *id, const char *const *names)
{
    for (; *id < 0 && *names; names++) {
        *id = find_text(t, *names);
        if (*id >= 0)
            t->attributes[*id] |= TOKEN_IS_CONTROL;
    }
}

#define DETECT(t, id, ...) detect(t, &(t)->id, (const char *const[]){__VA_ARGS__, NULL})

static void detect_special(tokenizer *t)
{
    DETECT(t, eot, "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>",
           "<|end_of_text|>", "<EOT>", "_<EOT>", "[EOT]", "<｜end▁of▁sentence｜>",
           "<end_of_utterance>");
    DETECT(t, eom, "<|eom_id|>");
    DETECT(t, fim_prefix, "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>",
           "<PRE>", "▁<PRE>", "<|code_prefix|>", "<|prefix|>");
    DETECT(t, fim_suffix, "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>",
           "<SUF>", "▁<SUF>", "<|code_suffix|>", "<|suffix|>");
    DETECT(t, fim_middle, "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>",
           "<MID>", "▁<MID>", "<|code_middle|>", "<|middle|>");
    DETECT(t, fim_pad, "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]");
    DETECT(t, fim_repository, "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>",
           "<reponame>");
    DETECT(t, fim_separator, "<|file_sep|>");
}

static void set_end(tokenizer *t, token_id id)
{
    if (id >= 0)
        t->attributes[id] |= TOKEN_ENDS;
}

static int ends(const tokenizer *t, const char *text)
{
    token_id id = find_text(t, text);
    return id >= 0 && t->attributes[id] & TOKEN_ENDS;
}

/* The tokens that end a generation by their names. */
static const char *const end_names[] = {
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
};

/* Names that mean something else beside certain others. */
static void correct_ends(tokenizer *t)
{
    /* Harmony and Solar: <|end|> closes a message, and others end the turn. */
    int calls = ends(t, "<|call|>") || ends(t, "<|calls|>");
    if (ends(t, "<|end|>") && calls && (ends(t, "<|return|>") || ends(t, "<|flush|>")))
        t->attributes[find_text(t, "<|end|>")] = TOKEN_IS_USER_DEFINED;
    /* Gemma 4 and PLaMo: </s> is an ordinary token. */
    if (ends(t, "</s>") && (ends(t, "<|tool_response>") || ends(t, "<|plamo:eos|>")))
        t->attributes[find_text(t, "</s>")] = TOKEN_IS_NORMAL;
}

static void detect_ends(tokenizer *t)
{
    set_end(t, t->fim_pad);
    set_end(t, t->fim_repository);
    set_end(t, t->fim_separator);
    for (size_t i = 0; i < sizeof end_names / sizeof *end_names; i++) {
        token_id id = find_text(t, end_names[i]);
        set_end(t, id);
        if (id >= 0)
            t->attributes[id] |= TOKEN_IS_CONTROL;
    }
    /* Harmony's markers must be seen in the output. */
    static const char *const shown[] = {"<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"};
    for (size_t i = 0; i < sizeof shown / sizeof *shown; i++) {
        token_id id = find_text(t, shown[i]);
        if (id >= 0)
            t->attributes[id] = (uint16_t)(TOKEN_IS_USER_DEFINED |
                                           (t->attributes[id] & TOKEN_ENDS));
    }
    set_end(t, t->eos);
    set_end(t, t->eot);
    set_end(t, t->eom);
    correct_ends(t);
}

/* ---- white space beside special tokens ---- */

static int is_special(const tokenizer *t, size_t id)
{
    return (t->attributes[id] & (TOKEN_IS_CONTROL | TOKEN_IS_USER_DEFINED | TOKEN_IS_UNKNOWN)) != 0;
}

/* Whether the text under key contains one of words (NULL ends them), in any case of ASCII letters. */
static int mentions(const gguf *g, const char *key, const char *const *words)
{
    gguf_string text;
    if (gguf_get_string(g, key, &text, NULL) != REALM_OK)
        return 0;
    for (; *words; words++)
        for (size_t size = strlen(*words), i = 0; i + size <= text.size; i++)
            if (strncasecmp(text.data + i, *words, size) == 0)
                return 1;
    return 0;
}

#define MENTIONS(g, key, ...) mentions(g, key, (const char *const[]){__VA_ARGS__, NULL})

static void set_strip(tokenizer *t, const char *text, unsigned bit, int value)
{
    token_id id = find_text(t, text);
    if (id >= 0)
        t->attributes[id] = (uint16_t)(value ? t->attributes[id] | bit : t->attributes[id] & ~bit);
}

/* GGUF has no field for it, so it goes by the model's name. */
static void set_strips(tokenizer *t, const gguf *g)
{
    if (MENTIONS(g, KEY("pre"), "jina-v2-de", "jina-v2-es", "jina-v2-code") ||
        MENTIONS(g, "general.architecture", "nomic-bert-moe", "jina-bert-v3")) {
        set_strip(t, "<mask>", TOKEN_STRIPS_LEFT, 1);
    } else if (MENTIONS(g, "general.name", "phi-3", "phi3")) {
        for (size_t i = 0; i < t->count; i++)
            if (is_special(t, i))
                t->attributes[i] |= TOKEN_STRIPS_RIGHT;
        set_strip(t, "</s>", TOKEN_STRIPS_RIGHT, 1);
        set_strip(t, "<unk>", TOKEN_STRIPS_RIGHT, 0);
        set_strip(t, "<s>", TOKEN_STRIPS_RIGHT, 0);
        set_strip(t, "<|endoftext|>", TOKEN_STRIPS_RIGHT, 0);
    } else if (MENTIONS(g, "general.name", "modern-bert")) {
        set_strip(t, "[MASK]", TOKEN_STRIPS_LEFT, 1);
    }
}

static realm_status index_special(tokenizer *t, realm_error *error)
{
    size_t count = 0;
    for (size_t i = 0; i < t->count; i++)
        count += (size_t)is_special(t, i);
    special_token *list = arena_take_array(&t->memory, count, sizeof *list);
    if (!list)
        return realm_fail_memory(error, count * sizeof *list, "the special tokens");
    count = 0;
    for (size_t i = 0; i < t->count; i++) {
        if (!is_special(t, i))
            continue;
        const string_entry *entry = &t->strings.entries[i];
        unsigned bits = t->attributes[i];
        list[count++] = (special_token){
            .id = (token_id)i,
            .text = entry->text,
            .size = entry->size,
            .only_if_parsing = (bits & (TOKEN_IS_CONTROL | TOKEN_IS_UNKNOWN)) != 0,
            .strips_left = (bits & TOKEN_STRIPS_LEFT) != 0,
            .strips_right = (bits & TOKEN_STRIPS_RIGHT) != 0,
        };
    }
    return special_tokens_build(&t->specials, &t->memory, list, count, error);
}

/* ---- pieces ---- */

static int hex_value(char digit)
{
    if (digit >= '0' && digit <= '9')
        return digit - '0';
    digit |= 0x20;
    return digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : -1;
}

/* "<0xE2>" is the byte 0xE2; one that is spelt otherwise says nothing. */
static realm_status byte_piece(const string_entry *token, buffer *out)
{
    if (token->size < 5)
        return REALM_OK;
    int high = hex_value(token->text[3]), low = hex_value(token->text[4]);
    if (high < 0 || low < 0)
        return REALM_OK;
    char byte = (char)(high << 4 | low);
    return buffer_add(out, &byte, 1);
}

static realm_status add_piece(const tokenizer *t, size_t id, buffer *out)
{
    const string_entry *token = &t->strings.entries[id];
    unsigned bits = t->attributes[id];
    if (bits & (TOKEN_IS_UNKNOWN | TOKEN_IS_CONTROL | TOKEN_IS_USER_DEFINED))
        return buffer_add(out, token->text, token->size);
    if (bits & TOKEN_IS_NORMAL)
        return t->family->normal_piece(t, token, out);
    return bits & TOKEN_IS_BYTE ? byte_piece(token, out) : REALM_OK;
}

static realm_status make_pieces(tokenizer *t, realm_error *error)
{
    buffer out;
    buffer_init(&out, UINT32_MAX);
    t->pieces = arena_take_array(&t->memory, t->count, sizeof *t->pieces);
    realm_status status = t->pieces ? REALM_OK : REALM_NO_MEMORY;
    for (size_t i = 0; i < t->count && status == REALM_OK; i++) {
        size_t offset = out.size;
        status = add_piece(t, i, &out);
        t->pieces[i] = (piece_span){(uint32_t)offset, (uint32_t)(out.size - offset)};
    }
    if (status == REALM_OK)
        status = buffer_reserve(&out, 1); /* so that an empty one has an address too */
    t->pieces_text = out.data;            /* taken from the buffer, freed with the tokenizer */
    return status == REALM_OK ? status : realm_fail_memory(error, out.size, "pieces");
}

realm_status family_unescape_spaces(const string_entry *token, buffer *out)
{
    realm_status status = REALM_OK;
    for (uint32_t i = 0, from; i < token->size && status == REALM_OK;) {
        for (from = i; i < token->size; i++)
            if (token->size - i >= 3 && memcmp(token->text + i, "\xE2\x96\x81", 3) == 0)
                break;
        status = buffer_add(out, token->text + from, i - from);
        if (i < token->size && status == REALM_OK) {
            status = buffer_add(out, " ", 1);
            i += 3;
        }
    }
    return status;
}

realm_status vocabulary_load(tokenizer *t, const gguf *g, realm_error *error)
{
    realm_status status = find_family(t, g, error);
    if (status == REALM_OK && is_bpe(t))
        status = find_pre(t, g, error);
    if (status != REALM_OK)
        return status;
    set_defaults(t);
    status = load_tokens(t, g, error);
    if (status == REALM_OK && t->family->open)
        status = t->family->open(t, g, error);
    if (status == REALM_OK)
        status = load_ids(t, g, error);
    if (status == REALM_OK)
        status = load_flags(t, g, error);
    if (status != REALM_OK)
        return status;
    detect_special(t);
    detect_ends(t);
    set_strips(t, g);
    status = index_special(t, error);
    return status == REALM_OK ? make_pieces(t, error) : status;
}
