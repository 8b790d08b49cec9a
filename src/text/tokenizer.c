/* text/tokenizer.c: see tokenizer.h. What all families share: the special tokens around and inside a
 * text, pieces, and what is asked about a vocabulary. */
#include "text/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "text/family.h"

/* Offsets are 32 bits and a space may become three bytes. */
#define MAX_TEXT_BYTES (512u << 20)

/* ---- life ---- */

realm_status tokenizer_open(tokenizer **out, const gguf *g, realm_error *error)
{
    tokenizer *t = calloc(1, sizeof *t);
    if (!t)
        return realm_fail_memory(error, sizeof *t, "a tokenizer");
    arena_init(&t->memory, 0);
    pthread_mutex_init(&t->extension_lock, NULL);
    t->eot = t->eom = -1;
    t->fim_prefix = t->fim_suffix = t->fim_middle = -1;
    t->fim_pad = t->fim_repository = t->fim_separator = -1;
    realm_status status = vocabulary_load(t, g, error);
    if (status != REALM_OK) {
        tokenizer_close(t);
        return status;
    }
    *out = t;
    return REALM_OK;
}

void tokenizer_close(tokenizer *t)
{
    if (!t)
        return;
    if (t->extension)
        t->extension_close(t->extension);
    if (t->family && t->family->close)
        t->family->close(t);
    pthread_mutex_destroy(&t->extension_lock);
    string_table_release(&t->strings);
    free(t->pieces_text);
    arena_release(&t->memory);
    free(t);
}

/* ---- encoding ---- */

int id_list_grow(id_list *list)
{
    size_t capacity = list->capacity ? list->capacity * 2 : 64;
    token_id *grown = realloc(list->ids, capacity * sizeof *grown);
    if (!grown)
        return 0;
    list->ids = grown;
    list->capacity = capacity;
    return 1;
}

char *encoding_escape_spaces(encoding *e, const char *text, size_t *size, int prefix)
{
    static const char escaped[] = "\xE2\x96\x81";
    size_t spaces = (size_t)(prefix != 0);
    for (size_t i = 0; i < *size; i++)
        spaces += text[i] == ' ';
    char *out = arena_take(e->scratch, *size + 2 * spaces + 1);
    if (!out)
        return NULL;
    size_t at = 0;
    if (prefix) {
        memcpy(out, escaped, 3);
        at = 3;
    }
    for (size_t i = 0; i < *size; i++) {
        if (text[i] != ' ') {
            out[at++] = text[i];
            continue;
        }
        memcpy(out + at, escaped, 3);
        at += 3;
    }
    *size = at;
    return out;
}

/* What goes before and after a text. WordPiece's are not a matter of choice. */
static token_id opening_token(const tokenizer *t)
{
    return t->adds_bos || t->family == &wpm_family ? t->bos : -1;
}

static token_id closing_token(const tokenizer *t)
{
    if (t->family == &wpm_family)
        return t->sep;
    return t->adds_eos ? t->eos : -1;
}

static realm_status encode_fragment(encoding *e, const char *text, special_fragment fragment)
{
    if (fragment.id >= 0) {
        e->after_special = 1;
        return encoding_add(e, fragment.id);
    }
    realm_status status = e->tokenizer->family->encode(e, text + fragment.start, fragment.size);
    e->after_special = 0;
    return status;
}

static realm_status encode(encoding *e, const char *text, size_t size, unsigned flags)
{
    const tokenizer *t = e->tokenizer;
    special_fragment *fragments;
    size_t count;
    realm_status status = special_tokens_cut(&t->specials, e->scratch, text, size,
                                             flags & TOKENIZE_PARSE_SPECIAL, &fragments, &count,
                                             e->error);
    token_id opening = flags & TOKENIZE_ADD_SPECIAL ? opening_token(t) : -1;
    token_id closing = flags & TOKENIZE_ADD_SPECIAL ? closing_token(t) : -1;
    if (status == REALM_OK && opening >= 0)
        status = encoding_add(e, opening);
    for (size_t i = 0; status == REALM_OK && i < count; i++)
        status = encode_fragment(e, text, fragments[i]);
    if (status == REALM_OK && closing >= 0)
        status = encoding_add(e, closing);
    return status;
}

realm_status tokenizer_encode(const tokenizer *t, arena *a, const char *text, size_t size,
                              unsigned flags, token_id **ids, size_t *count, realm_error *error)
{
    if (size > MAX_TEXT_BYTES)
        return realm_fail(error, REALM_TOO_LARGE, "a text of %zu bytes is over the limit of %u",
                          size, MAX_TEXT_BYTES);
    arena scratch;
    arena_init(&scratch, 0); /* a small multiple of size, which is limited */
    encoding e = {.tokenizer = t, .scratch = &scratch, .after_special = 1, .error = error};
    realm_status status = encode(&e, text, size, flags);
    if (status == REALM_OK) {
        *ids = arena_take_array(a, e.out.count, sizeof **ids);
        *count = e.out.count;
        if (!*ids)
            status = realm_fail_memory(error, e.out.count * sizeof **ids, "a text's tokens");
        else if (e.out.count)
            memcpy(*ids, e.out.ids, e.out.count * sizeof **ids);
    }
    free(e.out.ids);
    arena_release(&scratch);
    return status;
}

/* ---- questions ---- */

static int is_token(const tokenizer *t, token_id id)
{
    return id >= 0 && (size_t)id < t->count;
}

const char *tokenizer_piece(const tokenizer *t, token_id id, int with_special, size_t *size)
{
    *size = 0;
    if (!is_token(t, id))
        return "";
    if (!with_special && t->attributes[id] & (TOKEN_IS_CONTROL | TOKEN_IS_UNKNOWN))
        return "";
    *size = t->pieces[id].size;
    return t->pieces_text + t->pieces[id].offset;
}

const char *tokenizer_text(const tokenizer *t, token_id id, size_t *size)
{
    *size = 0;
    if (!is_token(t, id))
        return "";
    *size = t->strings.entries[id].size;
    return t->strings.entries[id].text;
}

size_t tokenizer_count(const tokenizer *t)
{
    return t->count;
}

token_kind tokenizer_kind(const tokenizer *t, token_id id)
{
    static const token_kind by_weight[] = {TOKEN_CONTROL, TOKEN_USER_DEFINED, TOKEN_UNKNOWN,
                                           TOKEN_BYTE,    TOKEN_UNUSED,       TOKEN_NORMAL};
    if (is_token(t, id))
        for (size_t i = 0; i < sizeof by_weight / sizeof *by_weight; i++)
            if (t->attributes[id] & 1u << by_weight[i])
                return by_weight[i];
    return TOKEN_UNDEFINED;
}

token_id tokenizer_bos(const tokenizer *t)
{
    return t->bos;
}

token_id tokenizer_eos(const tokenizer *t)
{
    return t->eos;
}

token_id tokenizer_eot(const tokenizer *t)
{
    return t->eot;
}

token_id tokenizer_unk(const tokenizer *t)
{
    return t->unk;
}

int tokenizer_adds_bos(const tokenizer *t)
{
    return opening_token(t) >= 0;
}

int tokenizer_adds_eos(const tokenizer *t)
{
    return closing_token(t) >= 0;
}

int tokenizer_drops_first_space(const tokenizer *t)
{
    return t->adds_space_prefix;
}

int tokenizer_ends_generation(const tokenizer *t, token_id id)
{
    return is_token(t, id) && t->attributes[id] & TOKEN_ENDS;
}

token_id tokenizer_find(const tokenizer *t, const char *text, size_t size)
{
    return vocabulary_find(t, text, size);
}

const char *tokenizer_model_name(const tokenizer *t)
{
    return t->family->model;
}

const char *tokenizer_pre_name(const tokenizer *t)
{
    return t->pre ? t->pre->name : "";
}
