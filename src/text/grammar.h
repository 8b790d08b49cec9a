/* text/grammar.h: what a sequence may say next, from a JSON schema, a regular expression or a Lark
 * grammar.
 *
 * A grammar follows one sequence of tokens. Before each sampling it fills a bit per token of the
 * vocabulary; after it, it is told which token was taken. The work is llguidance's. What llguidance
 * must know of a vocabulary is gathered once a tokenizer, at the first grammar_open (about 100 ms for
 * 150 000 tokens), and kept with the tokenizer; several threads may meet there. A grammar itself
 * belongs to one thread at a time and must be closed before its tokenizer is.
 *
 * The text of a grammar comes from a tenant and is hostile: compiling has limits, and so has each
 * step. */
#ifndef REALM_TEXT_GRAMMAR_H
#define REALM_TEXT_GRAMMAR_H

#include "text/tokenizer.h"

typedef struct grammar grammar;

typedef enum grammar_kind {
    GRAMMAR_JSON_SCHEMA, /* text is a JSON schema */
    GRAMMAR_JSON_OBJECT, /* any JSON object; text is not read */
    GRAMMAR_REGEX,       /* text is a regular expression that the whole output matches */
    GRAMMAR_LARK,        /* text is a grammar in llguidance's dialect of Lark, from `start` */
} grammar_kind;

/* Compiles text, which takes 1 to 50 ms, so not on the engine's or the net's thread. Borrows t.
 *   REALM_INVALID      text does not parse, or asks for what is not supported; the sentence says which
 *   REALM_TOO_LARGE    text is over 1 MiB, or the grammar over llguidance's limits
 *   REALM_UNSUPPORTED  the vocabulary has no token that ends a sequence
 *   REALM_NO_MEMORY    the host is out of memory */
realm_status grammar_open(grammar **out, const tokenizer *t, grammar_kind kind, const char *text,
                          size_t size, realm_error *error);
void grammar_close(grammar *g); /* NULL is allowed */

/* A second grammar in the same state, for a forked session. Cheap. */
realm_status grammar_clone(grammar **out, const grammar *g, realm_error *error);

/* Words of 32 bits that a mask over t's vocabulary has. */
size_t grammar_mask_words(const tokenizer *t);

/* Sets bit id % 32 of mask[id / 32] for every token that may come next, and clears the others. The
 * tokens that end a sequence are set where the grammar may end, and alone once it has.
 *   mask [grammar_mask_words(t)]
 *   REALM_TOO_LARGE  the grammar is too ambiguous to be followed any further; close it */
realm_status grammar_mask(grammar *g, uint32_t *mask, realm_error *error);

/* Goes on by one token.
 *   REALM_INVALID  the grammar does not allow id here; nothing has changed */
realm_status grammar_accept(grammar *g, token_id id, realm_error *error);

/* Takes the last count accepted tokens back, when speculation was wrong.
 *   REALM_INVALID  so many were not accepted */
realm_status grammar_rollback(grammar *g, size_t count, realm_error *error);

/* 1 where the sequence so far satisfies the grammar. */
int grammar_is_complete(const grammar *g);

/* 1 where nothing but an end may follow. */
int grammar_is_stopped(const grammar *g);

#endif
