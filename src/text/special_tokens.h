/* text/special_tokens.h: finds the tokens that are matched in the raw text, before any merging.
 *
 * Control, unknown and user-defined tokens are looked for as they are written. The longest tokens are
 * found first, wherever they stand, then shorter ones in what is left: order matters to ids, and it is
 * llama.cpp's. A token may swallow the white space on its left or right (Hugging Face's lstrip and
 * rstrip). A trie finds at each place the longest token that begins there; a heap keeps the order.
 * The time is O(n log n) in the text, times the length of the longest such token at worst.
 *
 * Built once, then constant; any thread. */
#ifndef REALM_TEXT_SPECIAL_TOKENS_H
#define REALM_TEXT_SPECIAL_TOKENS_H

#include "base/arena.h"
#include "text/tokenizer.h"

typedef struct special_token {
    token_id id;
    const char *text; /* borrowed; the tokenizer's arena */
    uint32_t size;
    uint8_t only_if_parsing; /* control and unknown tokens: not matched in plain text */
    uint8_t strips_left, strips_right;
} special_token;

typedef struct special_edge { /* of the trie; node 0 is the root, 0 as target: free slot */
    uint32_t from, to;
    uint8_t byte;
} special_edge;

typedef struct special_tokens {
    special_token *tokens; /* [count] longest first */
    size_t count;
    uint32_t *token_of;  /* [node_count] index in tokens + 1, or 0 */
    special_edge *edges; /* hash table of [edge_slots] */
    size_t node_count, edge_slots;
    uint32_t first[256]; /* the root's children, 0: none */
} special_tokens;

/* Takes tokens[0..count) (the arena's) in any order and sorts them. REALM_NO_MEMORY. */
realm_status special_tokens_build(special_tokens *s, arena *a, special_token *tokens, size_t count,
                                  realm_error *error);

/* A piece of the text: a token, or raw text where id is -1. */
typedef struct special_fragment {
    token_id id;
    uint32_t start, size;
} special_fragment;

/* Cuts text[0..size), size below 2^31, into fragments in a's memory. parsing 0 leaves control and
 * unknown tokens alone. */
realm_status special_tokens_cut(const special_tokens *s, arena *a, const char *text, size_t size,
                                int parsing, special_fragment **fragments, size_t *count,
                                realm_error *error);

#endif
