/* engine/scheduler_pages.c: pages for the scheduler's rows: who gives them back, who may start, and what of them is
 * kept in the host's memory. See scheduler.h. */
#include <assert.h>
#include <stdlib.h>

#include "engine/scheduler_internal.h"

void sched_cut(scheduler *s, sched_item *item, int32_t n_tokens)
{
    item->computed = least(item->computed, n_tokens);
    item->published = least(item->published, item->computed / KV_PAGE_TOKENS);
    item->paid = least(item->paid, n_tokens);
    item->reserved = 0;
    if (item->first_unknown >= item->computed)
        item->first_unknown = INT32_MAX;
    kv_table_trim(s->pool, &item->table, item->computed);
}

/* ---- who gives pages --------------------------------------------------------------------------- */

int32_t scheduler_page_limit(const scheduler *s, const sched_tenant *t)
{
    int32_t own = atomic_load_explicit(&t->max_pages, memory_order_relaxed);
    int32_t all = kv_pool_count(s->pool);
    return own > 0 && own < all ? own : all;
}

static int can_give(const sched_item *item)
{
    return item->table.count > 0 && !item->reserved && item->first_unknown == INT32_MAX;
}

static int is_worse(const sched_item *a, const sched_item *b)
{
    return a->class != b->class ? a->class < b->class : a->order > b->order;
}

static int has_rested(const scheduler *s, const sched_item *item)
{
    return !item->active && s->round - item->rested_round >= SCHED_GRACE_ROUNDS;
}

static int may_take(const scheduler *s, const sched_item *asker, const sched_item *from,
                    int same_tenant)
{
    return from != asker && can_give(from) && (!same_tenant || from->tenant == asker->tenant) &&
           (has_rested(s, from) || is_worse(from, asker));
}

/* Whether so many pages would be free if everybody gave theirs whom asker may take them from: those with
 * no other reference than theirs. */
static int could_give(scheduler *s, const sched_item *asker, int same_tenant, int32_t wanted)
{
    int32_t count = 0;
    int64_t most = 0;
    for (const sched_item *it = s->first; it; it = it->next)
        most += may_take(s, asker, it, same_tenant) ? it->table.count : 0;
    if (most < wanted) /* as for most that wait: they came last */
        return 0;
    for (int counting = 1; counting >= 0; counting--)
        for (const sched_item *it = s->first; it; it = it->next)
            for (int32_t i = 0; may_take(s, asker, it, same_tenant) && i < it->table.count; i++) {
                int32_t page = it->table.pages[i];
                if (!counting)
                    s->found[page] = 0;
                else if (++s->found[page] == kv_pool_references(s->pool, page))
                    count++;
            }
    return count >= wanted;
}

/* Whose pages go next so that asker gets some; NULL: nobody's. */
static sched_item *find_victim(const scheduler *s, const sched_item *asker, int same_tenant)
{
    sched_item *rested = NULL, *worst = NULL;
    for (sched_item *it = s->first; it; it = it->next) {
        if (!may_take(s, asker, it, same_tenant))
            continue;
        if (has_rested(s, it) && (!rested || it->rested_round < rested->rested_round))
            rested = it;
        if (is_worse(it, asker) && (!worst || is_worse(it, worst)))
            worst = it;
    }
    return rested ? rested : worst;
}

/* Decoding items are planned first, so a better item that waits with a prompt may take back what
 * this very round gave them. Copies that were noted for them hurt nobody: they are made in order,
 * and before any row is written. */
static void unplan(scheduler *s, sched_item *item)
{
    sched_plan *plan = &s->plan;
    int32_t i = 0;
    while (plan->picks[i].item != item)
        i++;
    plan->picks[i] = plan->picks[--plan->n_picks];
    plan->n_rows -= item->planned;
    if (item->prompt) {
        plan->n_prompt_rows -= item->planned;
        plan->prompt_positions -= positions_of(item->computed, item->planned);
    }
    plan->n_outputs -= !item->no_logits && item->computed + item->planned == item->length;
    item->planned = item->prompt = 0;
}

static void preempt(scheduler *s, sched_item *item)
{
    int32_t paid = item->paid;
    if (item->planned)
        unplan(s, item);
    sched_cut(s, item, 0);
    item->paid = paid;
    s->preemptions++;
}

/* Sees to it that asker can take so many pages; 0 if that cannot be had now, and then nobody has given
 * any for it: they would be back a round later, and lose them again, for ever. */
static int make_room(scheduler *s, const sched_item *asker, int32_t count)
{
    int32_t over = asker->tenant->account.n_pages + count - scheduler_page_limit(s, asker->tenant);
    int32_t missing = count - kv_pool_available(s->pool);
    if ((over > 0 && !could_give(s, asker, 1, over)) ||
        (missing > 0 && !could_give(s, asker, 0, missing)))
        return 0;
    while (over > 0 || missing > 0) {
        preempt(s, find_victim(s, asker, over > 0));
        over = asker->tenant->account.n_pages + count - scheduler_page_limit(s, asker->tenant);
        missing = count - kv_pool_available(s->pool);
    }
    return 1;
}

static int32_t count_running(const scheduler *s)
{
    int32_t count = 0;
    for (const sched_item *it = s->first; it; it = it->next)
        count += it->active && it->table.count > 0;
    return count;
}

static void take_known_prefix(scheduler *s, sched_item *item)
{
    kv_root root = {item->tenant->number, item->adapter};
    /* The last row is always computed: its logits are what the work is for. */
    int32_t known = kv_prefix_match(s->prefix, &root, item->tokens, item->length - 1, &item->table,
                                    &item->tenant->account);
    item->computed = known;
    item->published = item->table.count;
    item->spared += known;
    item->paid = item->paid > known ? item->paid : known;
}

/* An item without pages starts only if all of its prompt has room and each running item a page
 * more: otherwise it would be among the first to lose what it had just computed. */
int sched_can_start(scheduler *s, sched_item *item)
{
    int32_t running = count_running(s);
    if (!item->uncached)
        take_known_prefix(s, item);
    int32_t needs = kv_table_needs(s->pool, &item->table, item->computed,
                                   item->length - item->computed);
    int32_t most = scheduler_page_limit(s, item->tenant) - item->table.count;
    if (make_room(s, item, least(needs + running, most > needs ? most : needs)))
        return 1;
    item->spared -= item->computed;
    sched_cut(s, item, 0);
    return 0;
}

int32_t sched_count_loadable(const sched_item *item)
{
    int32_t count = least(item->saved.count, (item->length - 1) / KV_PAGE_TOKENS);
    int32_t there = item->computed / KV_PAGE_TOKENS;
    return count > there ? count - there : 0;
}

int sched_take_pages(scheduler *s, sched_item *item, int32_t n_rows)
{
    sched_plan *plan = &s->plan;
    int32_t first = item->computed + item->planned;
    if (!make_room(s, item, kv_table_needs(s->pool, &item->table, first, n_rows)))
        return 0;
    realm_status status = kv_table_prepare(s->pool, &item->table, &item->tenant->account, first,
                                           n_rows, &plan->copies, NULL);
    if (status == REALM_OK)
        return 1;
    if (item->planned) /* the plan goes on without it */
        unplan(s, item);
    kv_table_trim(s->pool, &item->table, item->computed);
    plan->starved = item;
    return 0;
}

/* ---- host pages -------------------------------------------------------------------------------- */

static void load(scheduler *s, sched_item *item, int32_t count)
{
    kv_copies *copies = &s->plan.copies;
    int32_t first = item->computed / KV_PAGE_TOKENS, n_rows = count * KV_PAGE_TOKENS;
    assert(item->computed % KV_PAGE_TOKENS == 0 && !item->planned); /* S7 */
    if (kv_copies_reserve(copies, count, NULL) != REALM_OK || !sched_take_pages(s, item, n_rows))
        return;
    for (int32_t i = first; i < first + count; i++)
        copies->items[copies->count++] = (kv_copy){KV_COPY_IN, item->table.pages[i],
                                                   item->saved.pages[i]};
    item->computed += n_rows;
    s->plan.n_loaded += count;
}

void sched_plan_loads(scheduler *s, const sched_limits *limits, int decoding)
{
    int32_t most = decoding ? limits->moves : INT32_MAX;
    for (sched_item *it = s->first; it && s->plan.n_loaded < most; it = it->next) {
        if (!it->active || sched_count_loadable(it) == 0 ||
            (it->table.count == 0 && !sched_can_start(s, it)))
            continue;
        int32_t count = least(sched_count_loadable(it), most - s->plan.n_loaded);
        if (count > 0)
            load(s, it, count);
    }
}

static int has_unsaved(const sched_item *item)
{
    return item->saved.count < item->computed / KV_PAGE_TOKENS && item->first_unknown == INT32_MAX;
}

/* Who would give pages back soonest and has some that are not saved; NULL: nobody. */
static sched_item *find_unsaved(const scheduler *s)
{
    sched_item *rested = NULL, *worst = NULL, *best = NULL;
    for (sched_item *it = s->first; it; it = it->next) {
        if (has_rested(s, it)) {
            if (has_unsaved(it) && (!rested || it->rested_round < rested->rested_round))
                rested = it;
            continue;
        }
        if (!best || is_worse(best, it))
            best = it;
        if (has_unsaved(it) && (!worst || is_worse(it, worst)))
            worst = it;
    }
    return rested ? rested : worst == best ? NULL : worst;
}

void sched_plan_saves(scheduler *s, const sched_limits *limits)
{
    sched_plan *plan = &s->plan;
    while (plan->n_saved < limits->moves &&
           kv_pool_available(s->pool) < kv_pool_count(s->pool) / 4) {
        sched_item *item = find_unsaved(s);
        if (!item)
            break;
        realm_status status = kv_host_save(&s->host, &item->saved, &item->table, &plan->copies,
                                           NULL);
        plan->wants_host = status == REALM_QUOTA;
        if (status != REALM_OK)
            break;
        plan->n_saved++;
    }
}

void scheduler_set_host_pages(scheduler *s, int32_t n_pages)
{
    (void)kv_host_grow(&s->host, n_pages, NULL);
}

int32_t scheduler_pages_saved(const scheduler *s)
{
    return s->host.n_pages - s->host.n_free;
}

/* ---- rows that guests write -------------------------------------------------------------------- */

realm_status scheduler_reserve(scheduler *s, sched_item *item, int32_t first, int32_t count,
                               kv_copies *copies, realm_error *error)
{
    assert(!item->active && first == item->computed);
    int32_t needs = kv_table_needs(s->pool, &item->table, first, count);
    item->reserved = 1;
    if (!make_room(s, item, needs)) {
        item->reserved = item->table.count > kv_pages_for(item->computed);
        return realm_fail(error, REALM_QUOTA, "%" PRId32 " pages of keys and values are missing",
                          needs);
    }
    return kv_table_prepare(s->pool, &item->table, &item->tenant->account, first, count, copies,
                            error);
}

void scheduler_written(scheduler *s, sched_item *item, int32_t n_tokens)
{
    assert(item->reserved && kv_pages_for(n_tokens) <= item->table.count);
    charge(item->tenant, COST_INPUT * (n_tokens - item->computed));
    item->first_unknown = least(item->first_unknown, item->computed);
    item->computed = n_tokens;
    item->paid = n_tokens;
    item->reserved = 0;
    kv_table_trim(s->pool, &item->table, n_tokens);
}

int32_t scheduler_pages_held(const scheduler *s)
{
    return kv_pool_held(s->pool);
}
