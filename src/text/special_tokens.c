/* text/special_tokens.c: see special_tokens.h.
 *
 * Each place where a token may begin is first tried with the longest token there. If that one is
 * blocked by a token taken earlier, the place is tried again with the next shorter, in its turn: so
 * the heap holds one entry a place, not one a match (a run of n newlines has 30 n matches in Gemma's
 * vocabulary). */
#include "text/special_tokens.h"

#include <stdlib.h>
#include <string.h>

/* ---- the trie ---- */

static size_t edge_home(const special_tokens *s, uint32_t from, uint8_t byte)
{
    uint64_t key = ((uint64_t)from << 8 | byte) * 0x9E3779B97F4A7C15u;
    return (size_t)(key >> 32) & (s->edge_slots - 1);
}

static uint32_t child_of(const special_tokens *s, uint32_t from, uint8_t byte)
{
    if (from == 0)
        return s->first[byte];
    size_t at = edge_home(s, from, byte);
    for (; s->edges[at].to; at = (at + 1) & (s->edge_slots - 1))
        if (s->edges[at].from == from && s->edges[at].byte == byte)
            return s->edges[at].to;
    return 0;
}

static uint32_t add_child(special_tokens *s, uint32_t from, uint8_t byte)
{
    uint32_t to = (uint32_t)s->node_count++;
    if (from == 0) {
        s->first[byte] = to;
        return to;
    }
    size_t at = edge_home(s, from, byte);
    while (s->edges[at].to)
        at = (at + 1) & (s->edge_slots - 1);
    s->edges[at] = (special_edge){from, to, byte};
    return to;
}

static void add_token(special_tokens *s, uint32_t index)
{
    const special_token *token = &s->tokens[index];
    uint32_t node = 0;
    for (uint32_t i = 0; i < token->size; i++) {
        uint8_t byte = (uint8_t)token->text[i];
        uint32_t next = child_of(s, node, byte);
        node = next ? next : add_child(s, node, byte);
    }
    s->token_of[node] = index + 1;
}

static int longest_first(const void *left, const void *right)
{
    const special_token *l = left, *r = right;
    if (l->size != r->size)
        return l->size > r->size ? -1 : 1;
    return l->id < r->id ? -1 : l->id > r->id;
}

realm_status special_tokens_build(special_tokens *s, arena *a, special_token *tokens, size_t count,
                                  realm_error *error)
{
    *s = (special_tokens){.tokens = tokens, .count = count, .node_count = 1, .edge_slots = 16};
    if (count == 0)
        return REALM_OK;
    qsort(tokens, count, sizeof *tokens, longest_first);
    size_t nodes = 1;
    for (size_t i = 0; i < count; i++)
        nodes += tokens[i].size;
    while (s->edge_slots < nodes * 2)
        s->edge_slots *= 2;
    s->token_of = arena_take_array(a, nodes, sizeof *s->token_of);
    s->edges = arena_take_array(a, s->edge_slots, sizeof *s->edges);
    if (!s->token_of || !s->edges || nodes > UINT32_MAX)
        return realm_fail_memory(error, nodes * sizeof *s->edges, "the special tokens");
    for (size_t i = 0; i < count; i++)
        add_token(s, (uint32_t)i);
    return REALM_OK;
}

/* ---- cutting ---- */

#define FREE   (-1) /* what stands in taken[] where no token was matched */
#define INSIDE (-2) /* and inside one, or in the white space it swallowed */

typedef struct cutter {
    const special_tokens *s;
    const uint8_t *text;
    size_t size;
    int parsing;
    uint64_t *heap; /* index of the token in the upper half, place in the lower */
    size_t heap_count, heap_capacity;
    token_id *taken; /* [size] */
} cutter;

/* The index + 1 of the longest token shorter than limit that begins at place; 0 if there is none. */
static uint32_t longest_at(const cutter *c, size_t place, size_t limit)
{
    const special_tokens *s = c->s;
    uint32_t node = s->first[c->text[place]], found = 0;
    for (size_t length = 1; node && length < limit; length++) {
        uint32_t token = s->token_of[node];
        if (token && (c->parsing || !s->tokens[token - 1].only_if_parsing))
            found = token;
        if (place + length == c->size)
            break;
        node = child_of(s, node, c->text[place + length]);
    }
    return found;
}

static int heap_push(cutter *c, uint64_t entry)
{
    if (c->heap_count == c->heap_capacity) {
        size_t capacity = c->heap_capacity ? c->heap_capacity * 2 : 256;
        uint64_t *grown = realloc(c->heap, capacity * sizeof *grown);
        if (!grown)
            return 0;
        c->heap = grown;
        c->heap_capacity = capacity;
    }
    size_t at = c->heap_count++;
    for (; at > 0 && c->heap[(at - 1) / 2] > entry; at = (at - 1) / 2)
        c->heap[at] = c->heap[(at - 1) / 2];
    c->heap[at] = entry;
    return 1;
}

static uint64_t heap_pop(cutter *c)
{
    uint64_t best = c->heap[0], last = c->heap[--c->heap_count];
    size_t at = 0;
    for (size_t child; (child = 2 * at + 1) < c->heap_count; at = child) {
        if (child + 1 < c->heap_count && c->heap[child + 1] < c->heap[child])
            child++;
        if (c->heap[child] >= last)
            break;
        c->heap[at] = c->heap[child];
    }
    c->heap[at] = last;
    return best;
}

static int push_longest(cutter *c, size_t place, size_t limit)
{
    uint32_t token = longest_at(c, place, limit);
    return token == 0 || heap_push(c, (uint64_t)(token - 1) << 32 | place);
}

static int is_free(const cutter *c, size_t place, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (c->taken[place + i] != FREE)
            return 0;
    return 1;
}

/* As isspace() in the C locale. */
static int is_blank(uint8_t byte)
{
    return byte == ' ' || (byte >= '\t' && byte <= '\r');
}

static void take(cutter *c, const special_token *token, size_t place)
{
    size_t end = place + token->size;
    c->taken[place] = token->id;
    for (size_t i = place + 1; i < end; i++)
        c->taken[i] = INSIDE;
    if (token->strips_left)
        for (size_t i = place; i > 0 && c->taken[i - 1] == FREE && is_blank(c->text[i - 1]); i--)
            c->taken[i - 1] = INSIDE;
    if (token->strips_right)
        for (size_t i = end; i < c->size && c->taken[i] == FREE && is_blank(c->text[i]); i++)
            c->taken[i] = INSIDE;
}

static realm_status take_all(cutter *c)
{
    while (c->heap_count > 0) {
        uint64_t best = heap_pop(c);
        const special_token *token = &c->s->tokens[best >> 32];
        size_t place = (uint32_t)best;
        if (is_free(c, place, token->size))
            take(c, token, place);
        else if (c->taken[place] == FREE && !push_longest(c, place, token->size))
            return REALM_NO_MEMORY;
    }
    return REALM_OK;
}

static size_t fragment_end(const cutter *c, size_t start)
{
    size_t end = start + 1;
    while (end < c->size && c->taken[end] == FREE)
        end++;
    return end;
}

/* Writes the fragments, or only counts them if out is NULL. */
static size_t list_fragments(const cutter *c, special_fragment *out)
{
    size_t count = 0;
    for (size_t at = 0, end; at < c->size; at = end) {
        end = at + 1;
        if (c->taken[at] == INSIDE)
            continue;
        if (c->taken[at] == FREE)
            end = fragment_end(c, at);
        if (out)
            out[count] = (special_fragment){c->taken[at], (uint32_t)at, (uint32_t)(end - at)};
        count++;
    }
    return count;
}

static realm_status one_fragment(arena *a, size_t size, special_fragment **fragments, size_t *count)
{
    *fragments = arena_take(a, sizeof **fragments);
    if (!*fragments)
        return REALM_NO_MEMORY;
    **fragments = (special_fragment){FREE, 0, (uint32_t)size};
    *count = size > 0;
    return REALM_OK;
}

static realm_status cut(cutter *c, arena *a, special_fragment **fragments, size_t *count)
{
    for (size_t i = 0; i < c->size; i++)
        if (c->s->first[c->text[i]] && !push_longest(c, i, SIZE_MAX))
            return REALM_NO_MEMORY;
    if (c->heap_count == 0)
        return one_fragment(a, c->size, fragments, count);
    c->taken = arena_take_array(a, c->size, sizeof *c->taken);
    if (!c->taken)
        return REALM_NO_MEMORY;
    memset(c->taken, 0xFF, c->size * sizeof *c->taken); /* FREE everywhere */
    realm_status status = take_all(c);
    if (status != REALM_OK)
        return status;
    *count = list_fragments(c, NULL);
    *fragments = arena_take_array(a, *count, sizeof **fragments);
    if (!*fragments)
        return REALM_NO_MEMORY;
    list_fragments(c, *fragments);
    return REALM_OK;
}

realm_status special_tokens_cut(const special_tokens *s, arena *a, const char *text, size_t size,
                                int parsing, special_fragment **fragments, size_t *count,
                                realm_error *error)
{
    cutter c = {.s = s, .text = (const uint8_t *)text, .size = size, .parsing = parsing};
    realm_status status = cut(&c, a, fragments, count);
    free(c.heap);
    return status == REALM_OK ? status : realm_fail_memory(error, size * 4, "a text's tokens");
}
