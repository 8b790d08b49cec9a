/* engine/scheduler.c: see scheduler.h. Items are few (hundreds), so a round walks lists; what is
 * done for each row is constant. */
#include <assert.h>
#include <math.h>
#include <stdlib.h>

#include "engine/scheduler_internal.h"

realm_status scheduler_open(scheduler **out, int32_t n_pages, int32_t max_items, realm_error *error)
{
    size_t n = (size_t)max_items;
    size_t each = sizeof(sched_item *) + sizeof(lane) + sizeof(sched_pick);
    scheduler *s = calloc(1, sizeof *s);
    if (!s)
        return realm_fail_memory(error, sizeof *s, "the scheduler");
    s->max_items = max_items;
    s->queue = calloc(n, sizeof *s->queue);
    s->lanes = calloc(n, sizeof *s->lanes);
    s->plan.picks = calloc(n, sizeof *s->plan.picks);
    s->found = calloc((size_t)n_pages, sizeof *s->found);
    realm_status status = REALM_OK;
    if (!s->queue || !s->lanes || !s->plan.picks || !s->found)
        status = realm_fail_memory(error, n * each + (size_t)n_pages * sizeof *s->found,
                                   "the scheduler's lists");
    if (status == REALM_OK)
        status = kv_pool_open(&s->pool, n_pages, error);
    if (status == REALM_OK)
        status = kv_prefix_open(&s->prefix, s->pool, error);
    if (status != REALM_OK) {
        scheduler_close(s);
        return status;
    }
    *out = s;
    return REALM_OK;
}

void scheduler_close(scheduler *s)
{
    if (!s)
        return;
    assert(!s->first);
    kv_host_release(&s->host);
    kv_prefix_close(s->prefix);
    kv_pool_close(s->pool);
    free(s->plan.copies.items);
    free(s->plan.picks);
    free(s->found);
    free(s->lanes);
    free(s->queue);
    free(s);
}

void scheduler_tenant_init(sched_tenant *t, uint32_t number)
{
    *t = (sched_tenant){.number = number};
    atomic_init(&t->weight, 1.0f);
    atomic_init(&t->max_pages, 0);
}

/* ---- items ------------------------------------------------------------------------------------- */

void scheduler_add(scheduler *s, sched_item *item, sched_tenant *tenant, int32_t class)
{
    assert(s->n_items < s->max_items);
    item->tenant = tenant;
    item->class = class;
    item->first_unknown = INT32_MAX;
    item->order = s->next_order++;
    item->rested_round = s->round;
    item->previous = s->last;
    item->next = NULL;
    *(s->last ? &s->last->next : &s->first) = item;
    s->last = item;
    s->n_items++;
}

void scheduler_remove(scheduler *s, sched_item *item)
{
    if (item->active)
        scheduler_rest(s, item);
    kv_table_release(s->pool, &item->table);
    kv_host_forget(&s->host, &item->saved);
    *(item->previous ? &item->previous->next : &s->first) = item->next;
    *(item->next ? &item->next->previous : &s->last) = item->previous;
    s->n_items--;
}

void scheduler_truncate(scheduler *s, sched_item *item, int32_t n_tokens)
{
    sched_cut(s, item, n_tokens);
    kv_host_trim(&s->host, &item->saved, least(item->saved.count, n_tokens / KV_PAGE_TOKENS));
}

void scheduler_fork(scheduler *s, sched_item *item, const sched_item *parent, int32_t n_tokens)
{
    assert(!item->active && item->tenant == parent->tenant);
    int32_t computed = least(n_tokens, parent->computed);
    kv_table_share(s->pool, &item->table, &parent->table, &item->tenant->account, computed);
    item->computed = computed;
    item->paid = least(parent->paid, computed);
    item->published = least(parent->published, computed / KV_PAGE_TOKENS);
    if (parent->first_unknown < computed)
        item->first_unknown = parent->first_unknown;
}

/* ---- tenants come and go ----------------------------------------------------------------------- */

/* Algorithm 2 of the paper, lines 7 to 13: who comes back starts level with the least served of
 * those who stayed, or with who left last where nobody did. */
static void enter(scheduler *s, sched_tenant *t)
{
    double level = s->left_counter;
    if (s->present) {
        level = INFINITY;
        for (const sched_tenant *it = s->present; it; it = it->next_present)
            level = it->counter < level ? it->counter : level;
    }
    t->counter = t->counter > level ? t->counter : level;
    t->present = 1;
    t->next_present = s->present;
    s->present = t;
}

static void let_leave(scheduler *s)
{
    sched_tenant **link = &s->present;
    while (*link) {
        sched_tenant *t = *link;
        if (t->n_active == 0 && s->round - t->left_round >= SCHED_GRACE_ROUNDS) {
            *link = t->next_present;
            t->present = 0;
            s->left_counter = t->counter;
        } else {
            link = &t->next_present;
        }
    }
}

void scheduler_activate(scheduler *s, sched_item *item)
{
    assert(!item->active && item->computed < item->length);
    if (item->reserved)
        sched_cut(s, item, item->computed);
    item->active = 1;
    item->spared = 0;
    item->served_round = s->round;
    if (!item->tenant->present)
        enter(s, item->tenant);
    item->tenant->n_active++;
}

void scheduler_rest(scheduler *s, sched_item *item)
{
    assert(item->active && item->tenant->n_active > 0);
    item->active = 0;
    if (item->planned) { /* its work ended between plan and step */
        item->planned = item->prompt = 0;
        kv_table_trim(s->pool, &item->table, item->computed);
    }
    item->rested_round = s->round;
    if (--item->tenant->n_active == 0)
        item->tenant->left_round = s->round;
}

/* ---- a round ----------------------------------------------------------------------------------- */

static int by_lane(const sched_item *x, const sched_item *y)
{
    if (x->tenant != y->tenant)
        return x->tenant->number < y->tenant->number ? -1 : 1;
    return x->class != y->class ? (x->class > y->class ? -1 : 1) : 0;
}

static int by_order(const sched_item *x, const sched_item *y)
{
    return (x->order > y->order) - (x->order < y->order);
}

static int compare_decoding(const void *a, const void *b)
{
    const sched_item *x = *(sched_item *const *)a, *y = *(sched_item *const *)b;
    int result = by_lane(x, y);
    if (result == 0)
        result = (x->served_round > y->served_round) - (x->served_round < y->served_round);
    return result ? result : by_order(x, y);
}

static int compare_prompts(const void *a, const void *b)
{
    const sched_item *x = *(sched_item *const *)a, *y = *(sched_item *const *)b;
    int result = by_lane(x, y);
    return result ? result : by_order(x, y);
}

/* Sorts this round's candidates into lanes; returns how many lanes. */
static int32_t make_lanes(scheduler *s, int decoding)
{
    int32_t count = 0, n_lanes = 0;
    for (sched_item *it = s->first; it; it = it->next)
        if (it->active && !it->planned && is_decoding(it) == decoding)
            s->queue[count++] = it;
    qsort(s->queue, (size_t)count, sizeof *s->queue, decoding ? compare_decoding : compare_prompts);
    for (int32_t i = 0; i < count; i++) {
        sched_tenant *tenant = s->queue[i]->tenant;
        if (n_lanes == 0 || s->lanes[n_lanes - 1].tenant != tenant)
            s->lanes[n_lanes++] = (lane){tenant, weight_of(tenant), i, i, i};
        s->lanes[n_lanes - 1].end = i + 1;
    }
    return n_lanes;
}

/* Who is next: of those that are at most head_start rows ahead of the least served, the tenant
 * with the fewest candidates, then the least served. */
static lane *next_lane(scheduler *s, int32_t n_lanes, double head_start)
{
    lane *best = NULL;
    double least = INFINITY;
    for (lane *it = s->lanes; it < s->lanes + n_lanes; it++)
        if (it->next < it->end && it->tenant->counter < least)
            least = it->tenant->counter;
    for (lane *it = s->lanes; it < s->lanes + n_lanes; it++) {
        double counter = it->tenant->counter;
        if (it->next == it->end || (counter - least) * it->weight > head_start)
            continue;
        int32_t fewer = best ? (best->end - best->first) - (it->end - it->first) : 1;
        if (head_start <= 0)
            fewer = best ? 0 : 1;
        if (fewer > 0 || (fewer == 0 && counter < best->tenant->counter))
            best = it;
    }
    return best;
}

static int wants_output(const sched_item *item, int32_t n_rows)
{
    return !item->no_logits && item->computed + item->planned + n_rows == item->length;
}

/* Adds rows of item to the plan; 0 if pages for them cannot be had now. */
static int pick(scheduler *s, sched_item *item, int32_t n_rows, double cost)
{
    sched_plan *plan = &s->plan;
    if (!sched_take_pages(s, item, n_rows))
        return 0;
    plan->n_outputs += wants_output(item, n_rows);
    plan->n_rows += n_rows;
    if (!item->planned)
        plan->picks[plan->n_picks++] = (sched_pick){item, 0};
    item->planned += n_rows;
    item->served_round = s->round;
    int32_t unpaid = least(n_rows, item->computed + item->planned - item->paid);
    if (unpaid > 0) {
        charge(item->tenant, unpaid * cost);
        item->paid = item->computed + item->planned;
    }
    return 1;
}

/* The heaviest weight of those that have work; 0 if all have the same. */
static double heaviest_weight(const scheduler *s)
{
    double least = INFINITY, most = 0;
    for (const sched_tenant *t = s->present; t; t = t->next_present) {
        if (t->n_active == 0)
            continue;
        least = fmin(least, weight_of(t));
        most = fmax(most, weight_of(t));
    }
    return most > least ? most : 0;
}

/* Whether an item of this tenant is to let the round pass so that shares come out by weight. */
static int must_wait(const scheduler *s, const lane *l, const sched_item *item, double heaviest)
{
    double least = INFINITY, ratio = heaviest / l->weight;
    if (ratio <= 1 || (double)(s->round - item->served_round) >= ratio * ratio)
        return 0;
    for (const sched_tenant *t = s->present; t; t = t->next_present)
        if (t->n_active > 0)
            least = fmin(least, t->counter);
    return (l->tenant->counter - least) * l->weight > COST_OUTPUT;
}

/* Returns whether there was anybody, served or not. */
static int plan_decoding(scheduler *s, const sched_limits *limits)
{
    int32_t n_lanes = make_lanes(s, 1);
    double heaviest = heaviest_weight(s);
    while (s->plan.n_rows < limits->rows) {
        lane *next = next_lane(s, n_lanes, 0);
        if (!next)
            break;
        sched_item *item = s->queue[next->next++];
        if (!is_decoding(item)) /* it gave its pages back in this very round */
            continue;
        if (wants_output(item, 1) && s->plan.n_outputs == limits->outputs)
            continue;
        if (heaviest > 0 && must_wait(s, next, item, heaviest))
            continue;
        if (item->table.count > 0 || sched_can_start(s, item))
            pick(s, item, 1, COST_OUTPUT);
    }
    return n_lanes > 0;
}

/* What is left for prompts in the plan that is being made. */
typedef struct prompt_room {
    int32_t rows;
    pace_room paced;
    int is_paced;
    const sched_tenant *served; /* whose prompt comes to its end in this plan; NULL: nobody's */
} prompt_room;

/* Somebody's first token comes after this step: what others add to it, they add to his wait. */
static void keep_short(const scheduler *s, prompt_room *room, const sched_tenant *next)
{
    if (!room->served || room->served == next)
        return;
    room->rows = least(room->rows, s->plan.n_prompt_rows / 3);
    room->served = NULL;
}

/* How many sessions wait with prompts as a stream sees it: those of its own tenant that are not of a
 * lower class, and one of each other tenant. So nobody's streams give way to another's many. */
static int32_t waiting_beside(const scheduler *s, const sched_item *stream, int32_t n_lanes,
                              int32_t most)
{
    int32_t count = 0;
    for (int32_t i = 0; i < n_lanes && count < most; i++) {
        const lane *l = &s->lanes[i];
        if (l->tenant != stream->tenant)
            count++;
        for (int32_t j = l->first; l->tenant == stream->tenant && j < l->end; j++)
            count += s->queue[j]->class >= stream->class;
    }
    return least(count, most);
}

/* As the stream sees it that sees the fewest. Before prompts are picked. */
static int32_t count_waiting(const scheduler *s, int32_t n_lanes)
{
    int32_t count = s->plan.n_picks > 0 ? s->n_items : 0;
    for (int32_t i = 0; i < s->plan.n_picks; i++)
        count = waiting_beside(s, s->plan.picks[i].item, n_lanes, count);
    return count;
}

static prompt_room open_room(const scheduler *s, const sched_limits *limits, int32_t n_lanes,
                             int decoding)
{
    prompt_room room = {.rows = limits->rows - s->plan.n_rows};
    if (!decoding)
        return room;
    room.rows = least(room.rows, limits->prompt_rows);
    room.is_paced = limits->pace != NULL;
    if (room.is_paced)
        room.paced = pace_plan(limits->pace, s->plan.n_rows > 0 ? s->plan.n_rows : 1,
                               count_waiting(s, n_lanes));
    if (room.is_paced && limits->filled)
        pace_fill(limits->pace, &room.paced, s->plan.n_rows, limits->filled,
                  limits->filled_context);
    return room;
}

static int has_room(const prompt_room *room)
{
    return room->rows > 0 && (!room->is_paced || (room->paced.rows >= 1 && room->paced.most > 0) ||
                              room->paced.least > 0);
}

static void take_room(prompt_room *room, int32_t first, int32_t n_rows)
{
    room->rows -= n_rows;
    room->paced.rows -= pace_cost(&room->paced, first, n_rows);
    room->paced.least -= n_rows;
    room->paced.most -= n_rows;
}

/* The next slice of a prompt; the last row waits where no output is left. */
static int32_t slice_of(const scheduler *s, const sched_item *item, const prompt_room *room,
                        int32_t outputs)
{
    int32_t first = item->computed + item->planned, left = item->length - first;
    int32_t n_rows = least(least(left, room->rows), SCHED_SLICE_ROWS);
    if (room->is_paced) {
        int32_t fit = pace_fit(&room->paced, first, n_rows);
        n_rows = least(n_rows, fit > room->paced.least ? fit : room->paced.least);
    }
    if (n_rows > 0 && wants_output(item, n_rows) && s->plan.n_outputs == outputs)
        n_rows--;
    return n_rows;
}

static void plan_prompts(scheduler *s, const sched_limits *limits, int decoding)
{
    int32_t n_lanes = make_lanes(s, 0);
    prompt_room room = {0};
    if (n_lanes > 0)
        room = open_room(s, limits, n_lanes, decoding);
    while (has_room(&room)) {
        lane *next = next_lane(s, n_lanes, SCHED_HEAD_START);
        if (!next)
            break;
        sched_item *item = s->queue[next->next];
        keep_short(s, &room, next->tenant);
        if (!has_room(&room))
            break;
        int can_go = item->table.count > 0 || sched_can_start(s, item);
        int32_t first = item->computed + item->planned;
        int32_t n_rows = can_go && sched_count_loadable(item) == 0
                             ? slice_of(s, item, &room, limits->outputs)
                             : 0;
        if (n_rows > 0 && pick(s, item, n_rows, COST_INPUT)) {
            item->prompt = 1;
            s->plan.n_prompt_rows += n_rows;
            s->plan.prompt_positions += positions_of(first, n_rows);
            take_room(&room, first, n_rows);
            if (first + n_rows == item->length)
                room.served = next->tenant;
        } else {
            next->next++;
        }
    }
    if (room.is_paced)
        pace_keep(limits->pace, &room.paced);
}

const sched_plan *scheduler_plan(scheduler *s, const sched_limits *limits)
{
    sched_plan *plan = &s->plan;
    s->round++;
    let_leave(s);
    plan->n_picks = plan->n_rows = plan->n_prompt_rows = plan->n_outputs = 0;
    plan->prompt_positions = 0;
    plan->copies.count = 0;
    plan->n_saved = plan->n_loaded = plan->wants_host = 0;
    plan->starved = NULL;
    int decoding = plan_decoding(s, limits);
    if (scheduler_pages_saved(s) > 0)
        sched_plan_loads(s, limits, decoding);
    plan_prompts(s, limits, decoding);
    if (limits->moves > 0)
        sched_plan_saves(s, limits);
    for (int32_t i = 0; i < plan->n_picks; i++)
        plan->picks[i].n_rows = plan->picks[i].item->planned;
    return plan;
}

static void publish(scheduler *s, sched_item *item)
{
    int32_t known = least(item->computed, item->first_unknown);
    kv_root root = {item->tenant->number, item->adapter};
    for (; (item->published + 1) * KV_PAGE_TOKENS <= known; item->published++)
        kv_prefix_publish(s->prefix, &root, item->tokens, &item->table, item->published,
                          &item->tenant->account);
}

void scheduler_advance(scheduler *s, const sched_pick *done)
{
    sched_item *item = done->item;
    item->computed += done->n_rows;
    item->planned = item->prompt = 0;
    assert(item->computed <= item->length);
    publish(s, item);
}

void scheduler_forget_adapter(scheduler *s, const void *adapter)
{
    kv_prefix_forget_adapter(s->prefix, adapter);
}

uint64_t scheduler_preemptions(const scheduler *s)
{
    return s->preemptions;
}

/* ---- invariants -------------------------------------------------------------------------------- */

#ifndef NDEBUG
static void assert_item(const scheduler *s, const sched_item *it)
{
    assert(it->computed >= 0);
    assert(!it->active || it->computed < it->length); /* S1 */
    int32_t covered = kv_pages_for(it->computed + it->planned);
    assert(it->reserved ? it->table.count >= covered : it->table.count == covered); /* S2 */
    assert(it->published * KV_PAGE_TOKENS <= it->computed);                         /* S3 */
    for (int32_t i = 0; i < it->published; i++)
        assert(kv_pool_is_published(s->pool, it->table.pages[i])); /* S3 */
    assert(it->first_unknown == INT32_MAX || it->first_unknown < it->computed);
    assert(!it->active || it->saved.count * KV_PAGE_TOKENS <= it->length); /* S7 */
    assert(!it->active || sched_count_loadable(it) == 0 || it->computed % KV_PAGE_TOKENS == 0);
}

static void assert_host(const scheduler *s)
{
    size_t n_pages = (size_t)s->host.n_pages;
    int32_t *holders = calloc(n_pages + 1, sizeof *holders);
    for (int32_t i = 0; holders && i < s->host.n_free; i++)
        holders[s->host.free[i]]++;
    for (const sched_item *it = s->first; holders && it; it = it->next)
        for (int32_t i = 0; i < it->saved.count; i++)
            holders[it->saved.pages[i]]++;
    for (size_t page = 0; holders && page < n_pages; page++)
        assert(holders[page] == 1); /* S7 */
    free(holders);
}

/* S4 to S6: every page of every table, counted once for its tenant. */
static void assert_tenants(const scheduler *s)
{
    size_t n_pages = (size_t)kv_pool_count(s->pool);
    int32_t *references = calloc(n_pages, sizeof *references);
    const sched_tenant **owner = calloc(n_pages, sizeof *owner);
    for (const sched_item *it = s->first; references && owner && it; it = it->next) {
        int32_t active = 0, pages = 0;
        for (int32_t i = 0; i < it->table.count; i++) {
            int32_t page = it->table.pages[i];
            assert(!owner[page] || owner[page] == it->tenant); /* S6 */
            owner[page] = it->tenant;
            references[page]++;
        }
        for (const sched_item *other = s->first; other; other = other->next)
            active += other->tenant == it->tenant && other->active;
        assert(active == it->tenant->n_active); /* S4 */
        assert(active == 0 || it->tenant->present);
        for (size_t page = 0; it->next == NULL && page < n_pages; page++)
            pages += owner[page] == it->tenant;
        assert(it->next || pages == it->tenant->account.n_pages); /* S5, of the last one's */
    }
    for (size_t page = 0; references && owner && page < n_pages; page++)
        assert(references[page] == kv_pool_references(s->pool, (int32_t)page));
    free(references);
    free(owner);
}

void scheduler_assert(const scheduler *s)
{
    for (const sched_item *it = s->first; it; it = it->next)
        assert_item(s, it);
    assert_tenants(s);
    assert_host(s);
    kv_pool_assert(s->pool);
    kv_prefix_assert(s->prefix);
}
#else
void scheduler_assert(const scheduler *s)
{
    (void)s;
}
#endif
