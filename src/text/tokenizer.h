/* text/tokenizer.h: text to token ids and back, from a GGUF file's metadata.
 *
 * A tokenizer is built once, then constant: any thread uses it without a lock. It borrows nothing
 * from the gguf after tokenizer_open returns (names of tokens are copied), so a vocabulary-only
 * file may be closed. Three families: SentencePiece-style merging by score ("llama"), byte-level
 * BPE by ranked merges ("gpt2") with the pre-tokenizer that tokenizer.ggml.pre names, and
 * WordPiece ("bert"). Ids are exactly those of llama.cpp. */
#ifndef REALM_TEXT_TOKENIZER_H
#define REALM_TEXT_TOKENIZER_H

#include "base/arena.h"
#include "base/buffer.h"
#include "base/buffer.h"
#include "formats/gguf.h"

typedef struct tokenizer tokenizer;

typedef int32_t token_id; /* -1: none */

typedef enum token_kind { /* as tokenizer.ggml.token_type numbers them */
                          TOKEN_UNDEFINED,
                          TOKEN_NORMAL,
                          TOKEN_UNKNOWN,
                          TOKEN_CONTROL,
                          TOKEN_USER_DEFINED,
                          TOKEN_UNUSED,
                          TOKEN_BYTE,
} token_kind;

/*   REALM_CORRUPT      the metadata contradict themselves; the sentence names the key
 *   REALM_UNSUPPORTED  a tokenizer model or pre-tokenizer that is not implemented, by name */
realm_status tokenizer_open(tokenizer **out, const gguf *g, realm_error *error);
void tokenizer_close(tokenizer *t);

#define TOKENIZE_ADD_SPECIAL   1 /* BOS, EOS, CLS, SEP as the model's metadata ask */
#define TOKENIZE_PARSE_SPECIAL 2 /* the text of control tokens becomes those tokens */

/* Appends nothing: writes a new array into the arena. text may hold any bytes, valid UTF-8 or
 * not. Time is O(n log n) in size for every input. */
realm_status tokenizer_encode(const tokenizer *t, arena *a, const char *text, size_t size,
                              unsigned flags, token_id **ids, size_t *count, realm_error *error);

/* The bytes that one token adds to the text. Control and unknown tokens give "" unless with_special.
 * Borrowed from the tokenizer; may be half a UTF-8 character. size 0 for ids out of range. */
const char *tokenizer_piece(const tokenizer *t, token_id id, int with_special, size_t *size);

/* The token as the vocabulary spells it ("▁the", "Ġthe", "<0x0A>"). Borrowed; size 0 out of range. */
const char *tokenizer_text(const tokenizer *t, token_id id, size_t *size);

/* Streaming decode: give it tokens one by one, it gives text that is whole characters. Bytes that can
 * never become a character give U+FFFD. One thread at a time. */
typedef struct token_decoder {
    const tokenizer *tokenizer;
    uint8_t held[8]; /* bytes of a character that is not complete yet */
    uint8_t held_size;
    uint8_t at_start; /* set it to drop a space at the very beginning: see tokenizer_decode */
    uint8_t with_special;
} token_decoder;

/* For text that goes on from other text: nothing is dropped. Borrows t. */
void token_decoder_init(token_decoder *d, const tokenizer *t, int with_special);
/* Appends the text that has become complete to out (which has a cap). */
realm_status token_decoder_add(token_decoder *d, token_id id, buffer *out);
/* At the end: an unfinished character becomes U+FFFD. */
realm_status token_decoder_finish(token_decoder *d, buffer *out);

/* Text of a whole sequence from its beginning. Where encoding puts a space before the text (see
 * tokenizer_drops_first_space), the first token loses its leading space. Nothing else is tidied
 * ("clean_up_tokenization_spaces" would take spaces out of what the model said). */
realm_status tokenizer_decode(const tokenizer *t, const token_id *ids, size_t count,
                              int with_special, buffer *out);

size_t tokenizer_count(const tokenizer *t); /* size of the vocabulary */
token_kind tokenizer_kind(const tokenizer *t, token_id id);
token_id tokenizer_bos(const tokenizer *t); /* -1 where the vocabulary has none */
token_id tokenizer_eos(const tokenizer *t);
token_id tokenizer_eot(const tokenizer *t);
token_id tokenizer_unk(const tokenizer *t);
int tokenizer_adds_bos(const tokenizer *t);
int tokenizer_adds_eos(const tokenizer *t); /* or SEP, for WordPiece */
/* 1 if encoding puts a space before a text, so that a whole text decodes to one space too many. */
int tokenizer_drops_first_space(const tokenizer *t);
/* 1 for every token that ends a generation: EOS, EOT, EOM and what the vocabulary names so. */
int tokenizer_ends_generation(const tokenizer *t, token_id id);
/* The id of a token by its exact vocabulary text, or -1. */
token_id tokenizer_find(const tokenizer *t, const char *text, size_t size);
/* "llama", "gpt2", "bert" and the pre-tokenizer's name or "". */
const char *tokenizer_model_name(const tokenizer *t);
const char *tokenizer_pre_name(const tokenizer *t);

#endif
