/* compute/cuda/attention_plan.c: into which tiles a step's queries are cut, and which of them are split over their
 * context (attention.cuh). */
#include "compute/cuda/cuda_backend.h"

/* Sequences with at most this many tokens in a step are split if there is room for their sums, and so are all
 * where the tiles of the others would not keep the device busy: a warp goes through a tile's units one after
 * the other, so a short piece of a prompt far into it takes as long as a whole prompt. */
#define SPLIT_TOKENS_MOST 4
#define WALKS_AT_ONCE     8 /* warps a multiprocessor */
#define WALK_LONGEST      3 /* times what each of these had to walk if all walked alike */

/* The staged kernel splits tiles of more units than these, if they are more than so many times of what each of the
 * warps that run at once has to do: there, a warp's units take as long as memory takes for all. */
#define STAGED_AT_ONCE      6
#define STAGED_LONGEST      4
#define STAGED_UNITS_LEAST  4
#define STAGED_ROUNDS_LEAST 2 /* of several warps together */

typedef struct sequence_rows {
    int32_t first, count, position;
    int32_t sequence;
} sequence_rows;

static sequence_rows next_sequence(const step_rows *r, int32_t first)
{
    sequence_rows s = {first, 0, r->positions[first], r->sequences[first]};
    while (first + s.count < r->n_tokens && r->sequences[first + s.count] == s.sequence)
        s.count++;
    return s;
}

static int32_t tiles_of(const sequence_rows *s, int32_t group)
{
    return (s->count * group + ATTENTION_ROWS - 1) / ATTENTION_ROWS;
}

/* The most tokens of a sequence that is split. */
static int32_t split_most(const cuda_backend *b, const attention_plan *p)
{
    const step_rows *r = &b->rows;
    int64_t longest = 0, units = 0; /* of the tiles that would be walked; all of them together */
    for (int32_t i = 0; i < r->n_tokens;) {
        sequence_rows s = next_sequence(r, i);
        int64_t first = s.position / ATTENTION_UNIT_TOKENS + 1;
        int64_t last = (s.position + s.count - 1) / ATTENTION_UNIT_TOKENS + 1;
        if (s.count > SPLIT_TOKENS_MOST) {
            units += tiles_of(&s, p->group) * (first + last) / 2;
            longest = last > longest ? last : longest;
        }
        i += s.count;
    }
    int64_t at_once = (int64_t)b->n_multiprocessors * WALKS_AT_ONCE;
    return longest * at_once <= WALK_LONGEST * units * p->n_kv_heads ? SPLIT_TOKENS_MOST
                                                                     : INT32_MAX;
}

/* How the staged kernels go about the step: the warps of a tile, and the most units of a tile that is walked, in steps,
 * so that a graph lives a while. */
static void plan_staged(const cuda_backend *b, attention_plan *p)
{
    const step_rows *r = &b->rows;
    int64_t units = 0, at_once = (int64_t)b->n_multiprocessors * STAGED_AT_ONCE;
    int32_t tasks = 0, longest = 0, queries = 0;
    for (int32_t i = 0; i < r->n_tokens;) {
        sequence_rows s = next_sequence(r, i);
        int32_t first = s.position / ATTENTION_UNIT_TOKENS + 1;
        int32_t last = (s.position + s.count - 1) / ATTENTION_UNIT_TOKENS + 1;
        int32_t tiles = tiles_of(&s, p->group);
        tasks += tiles * p->n_kv_heads;
        units += (int64_t)tiles * (first + last) / 2 * p->n_kv_heads;
        longest = last > longest ? last : longest;
        queries = s.count * p->group > queries ? s.count * p->group : queries;
        i += s.count;
    }
    /* A multiprocessor has room for one block of four warps, two of three or three of two. */
    int32_t each = (tasks + b->n_multiprocessors - 1) / b->n_multiprocessors;
    int32_t warps = each < ATTENTION_TOGETHER ? ATTENTION_TOGETHER + 1 - each : 1;
    warps = warps < longest ? warps : longest;
    if (queries > ATTENTION_FEW)
        warps = 1;
    int32_t share = (int32_t)(STAGED_LONGEST * units / at_once);
    p->most = share > warps * STAGED_ROUNDS_LEAST ? share : warps * STAGED_ROUNDS_LEAST;
    p->together = longest <= p->most ? warps : 1;
    if (p->together == 1) {
        p->most = STAGED_UNITS_LEAST;
        while ((p->most + (p->most + 1) / 2) * at_once <= STAGED_LONGEST * units)
            p->most += (p->most + 1) / 2;
    }
    /* Where most rows are of long pieces of prompts. */
    int wide = (int64_t)r->n_tokens * p->group >= (int64_t)r->n_sequences * ATTENTION_WIDE;
    p->tile_queries = wide ? ATTENTION_WIDE : ATTENTION_ROWS;
}

/* Units up to the one that the last of so many queries of the sequence sees. */
static int32_t units_to(const attention_plan *p, const sequence_rows *s, int32_t n_queries)
{
    return (s->position + (n_queries - 1) / p->group) / ATTENTION_UNIT_TOKENS + 1;
}

static int is_split(const attention_plan *p, const sequence_rows *s, int32_t n_queries)
{
    return p->staged ? units_to(p, s, n_queries) > p->most : s->count <= p->most;
}

/* Goes through the step's tiles: those that are split from the front of tiles, those that are walked from its
 * end, so that of one sequence the long ones come first. Without tiles: counts them alone. */
static void place_tiles(const cuda_backend *b, attention_plan *p, attention_tile *tiles)
{
    const step_rows *r = &b->rows;
    size_t query_bytes = (size_t)p->n_kv_heads * (size_t)p->units * (size_t)(p->value_stride + 4) *
                         sizeof(float);
    size_t room = b->partials_bytes / query_bytes;
    int32_t queries = 0, end = p->n_split + p->n_walk;
    p->n_split = p->n_walk = 0;
    for (int32_t i = 0; i < r->n_tokens;) {
        sequence_rows s = next_sequence(r, i);
        int32_t total = s.count * p->group;
        for (int32_t query = 0; query < total; query += p->tile_queries) {
            int32_t n = total - query < p->tile_queries ? total - query : p->tile_queries;
            /* All tiles of a sequence or none, unless they are staged. */
            int split = is_split(p, &s, query + n) &&
                        (size_t)(queries + (p->staged ? n : total - query)) <= room;
            int32_t at = split ? p->n_split++ : end - ++p->n_walk;
            if (tiles)
                tiles[at] = (attention_tile){.first_row = s.first,
                                             .first_query = query,
                                             .n_queries = n,
                                             .position = s.position,
                                             .pages = s.sequence * b->staged.pages_stride,
                                             .partial = queries};
            queries += split ? n : 0;
            p->most_queries = n > p->most_queries ? n : p->most_queries;
        }
        i += s.count;
    }
}

static void fill_plan(cuda_backend *b, attention_plan *p)
{
    const step_rows *r = &b->rows;
    int32_t units = 0; /* of the longest sequence that is split */
    p->tile_queries = ATTENTION_ROWS;
    if (p->staged)
        plan_staged(b, p);
    else
        p->most = split_most(b, p);
    for (int32_t i = 0; i < r->n_tokens;) {
        sequence_rows s = next_sequence(r, i);
        int32_t n_queries = s.count * p->group;
        if (is_split(p, &s, n_queries) && units_to(p, &s, n_queries) > units)
            units = units_to(p, &s, n_queries);
        p->most_rows = s.count > p->most_rows ? s.count : p->most_rows;
        i += s.count;
    }
    p->units = cuda_power_of_two(units, 4); /* so that a graph lives a while */
    place_tiles(b, p, NULL);
    void *host;
    p->split = step_stage_room(b, (size_t)(p->n_split + p->n_walk) * sizeof(attention_tile), &host);
    place_tiles(b, p, host);
    p->walk = p->split + p->n_split;
}

const attention_plan *attention_find_plan(cuda_backend *b, const cuda_kv_layer *l, int32_t group)
{
    staged_rows *s = &b->staged;
    for (int32_t i = 0; i < s->n_plans; i++)
        if (s->plans[i].group == group && s->plans[i].n_kv_heads == l->n_kv_heads &&
            s->plans[i].value_stride == l->value_stride && s->plans[i].staged == l->staged)
            return &s->plans[i];
    attention_plan p = {.group = group,
                        .n_kv_heads = l->n_kv_heads,
                        .value_stride = l->value_stride,
                        .staged = l->staged};
    fill_plan(b, &p);
    attention_plan *to = &s->plans[s->n_plans < PLANS_MAX ? s->n_plans : PLANS_MAX - 1];
    if (s->n_plans < PLANS_MAX)
        s->n_plans++;
    *to = p;
    return to;
}
