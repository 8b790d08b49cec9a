/* text/family.h: the inside of a tokenizer, and what a family of tokenizers must provide.
 *
 * For the files of src/text alone. A tokenizer is a vocabulary (vocabulary.c fills it from the file's
 * metadata) and a family, which is a constant table of functions: spm.c, bpe.c, wpm.c. Another family
 * is another file and a row in vocabulary.c. */
#ifndef REALM_TEXT_FAMILY_H
#define REALM_TEXT_FAMILY_H

#include <pthread.h>

#include "text/pretokenizers.h"
#include "text/special_tokens.h"
#include "text/string_table.h"
#include "text/tokenizer.h"

/* Token attributes: one bit a token_kind, since a file may call a token normal and its text control. */
enum {
    TOKEN_IS_UNKNOWN = 1 << TOKEN_UNKNOWN,
    TOKEN_IS_UNUSED = 1 << TOKEN_UNUSED,
    TOKEN_IS_NORMAL = 1 << TOKEN_NORMAL,
    TOKEN_IS_CONTROL = 1 << TOKEN_CONTROL,
    TOKEN_IS_USER_DEFINED = 1 << TOKEN_USER_DEFINED,
    TOKEN_IS_BYTE = 1 << TOKEN_BYTE,
    TOKEN_STRIPS_LEFT = 1 << 8,
    TOKEN_STRIPS_RIGHT = 1 << 9,
    TOKEN_ENDS = 1 << 10, /* a generation */
};

/* Ids that grow; encoding writes here before it knows how many there are. */
typedef struct id_list {
    token_id *ids;
    size_t count, capacity;
} id_list;

int id_list_grow(id_list *list); /* 0 if memory is out */

static inline int id_list_add(id_list *list, token_id id)
{
    if (list->count == list->capacity && !id_list_grow(list))
        return 0;
    list->ids[list->count++] = id;
    return 1;
}

/* One call of tokenizer_encode. */
typedef struct encoding {
    const tokenizer *tokenizer;
    arena *scratch;
    id_list out;
    int after_special; /* at the start, or the last fragment was a special token */
    realm_error *error;
} encoding;

typedef struct text_family {
    const char *model; /* tokenizer.ggml.model */
    /* The defaults that the file's metadata then override. */
    token_id bos, eos, unk, sep, pad;
    uint8_t adds_bos, adds_space_prefix, escapes_space;
    /* Reads what only this family has (merges); the tokens are already there. May be NULL. */
    realm_status (*open)(tokenizer *t, const gguf *g, realm_error *error);
    void (*close)(tokenizer *t); /* may be NULL; also after an open that failed half-way */
    /* Appends the ids of raw text, size > 0, to e->out. */
    realm_status (*encode)(encoding *e, const char *text, size_t size);
    /* Writes the bytes of a token of kind normal to out; 0 where out's cap or memory ends. */
    realm_status (*normal_piece)(const tokenizer *t, const string_entry *token, buffer *out);
} text_family;

extern const text_family spm_family, bpe_family, bpe_gemma4_family, bpe_whitespace_family,
    wpm_family;

typedef struct piece_span {
    uint32_t offset, size; /* in tokenizer.pieces_text */
} piece_span;

struct tokenizer {
    const text_family *family;
    const pretokenizer *pre; /* bpe */
    arena memory;            /* texts, scores, attributes, special tokens */
    string_table strings;    /* ids below count are tokens; a bpe's other merge parts follow */
    size_t count;
    float *scores;        /* [count] */
    uint16_t *attributes; /* [count] */
    piece_span *pieces;   /* [count] */
    char *pieces_text;    /* malloc'ed */
    uint32_t longest;     /* token, in bytes */
    token_id bos, eos, eot, eom, unk, sep, pad;
    token_id fim_prefix, fim_suffix, fim_middle, fim_pad, fim_repository, fim_separator;
    uint8_t adds_bos, adds_eos, adds_space_prefix, escapes_space;
    uint8_t lower_cases, strips_accents;
    token_id byte_tokens[256]; /* "<0x00>" and so on; -1 where there is none */
    special_tokens specials;
    void *bpe; /* bpe.c's */

    /* What grammar.c keeps here: built at most once, under the lock, and constant from then on. */
    pthread_mutex_t extension_lock;
    void *extension;
    void (*extension_close)(void *);
};

/* Fills t from the file. On failure t must still be closed. */
realm_status vocabulary_load(tokenizer *t, const gguf *g, realm_error *error);

/* The token with exactly this text, or -1. */
static inline token_id vocabulary_find(const tokenizer *t, const char *text, size_t size)
{
    int32_t id = string_table_find(&t->strings, text, size);
    return id < (int32_t)t->count ? id : -1;
}

static inline realm_status encoding_add(encoding *e, token_id id)
{
    if (id_list_add(&e->out, id))
        return REALM_OK;
    return realm_fail_memory(e->error, e->out.count * sizeof id, "a text's tokens");
}

/* Text with every space replaced by U+2581, behind one more if prefix; in e->scratch, *size bytes. */
char *encoding_escape_spaces(encoding *e, const char *text, size_t *size, int prefix);

/* The other way round, for pieces. */
realm_status family_unescape_spaces(const string_entry *token, buffer *out);

#endif
