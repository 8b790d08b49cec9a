/* text/merge.h: the one algorithm under SentencePiece-style and byte-level BPE tokenizers.
 *
 * A piece of text starts as a chain of symbols. The best of all neighbouring pairs is joined, then
 * the best of what is left, until no pair may be joined: best by the family's own order, leftmost
 * first among equals. A heap of candidate pairs makes that O(n log n); a candidate whose symbols have
 * changed since is known by its size and dropped when it comes up.
 *
 * A merge_space is scratch memory that one encoding uses for all its words. One thread. */
#ifndef REALM_TEXT_MERGE_H
#define REALM_TEXT_MERGE_H

#include "base/fail.h"

typedef struct merge_symbol {
    uint32_t start, size; /* in the text; size 0: joined to its left neighbour */
    int32_t previous, next;
    int32_t id; /* the family's own name for it, -1 if it has none */
} merge_symbol;

typedef struct merge_candidate {
    uint64_t order; /* the family's order in the upper half, the left symbol in the lower */
    uint32_t right;
    uint32_t size; /* of both together when this was pushed */
} merge_candidate;

typedef struct merge_space {
    merge_symbol *symbols;
    size_t symbol_count, symbol_capacity;
    merge_candidate *heap;
    size_t heap_count, heap_capacity;
} merge_space;

/* What a family knows about pairs. context is its own. */
typedef struct merge_rules {
    const void *context;
    /* 1 if the neighbours may be joined; the lower *order goes first. */
    int (*may_join)(const void *context, const char *text, const merge_symbol *left,
                    const merge_symbol *right, uint32_t *order);
    /* The id of the symbol that came of joining; NULL if the family needs none. */
    int32_t (*joined_id)(const void *context, const char *text, const merge_symbol *joined);
} merge_rules;

void merge_space_init(merge_space *s);
void merge_space_release(merge_space *s);

/* Begins a new piece of text: no symbols. */
void merge_clear(merge_space *s);

/* Appends a symbol. REALM_NO_MEMORY, or REALM_TOO_LARGE past 2^31 - 1 symbols. */
realm_status merge_add(merge_space *s, uint32_t start, uint32_t size, int32_t id);

/* Joins until nothing may be joined. Then walk from symbols[0] along next, -1 ends. */
realm_status merge_run(merge_space *s, const char *text, const merge_rules *rules);

#endif
