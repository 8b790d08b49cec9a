/* engine/scheduler_internal.h: what scheduler.c, which chooses rows, and scheduler_pages.c, which sees to their pages,
 * share. Nobody else includes it. */
#ifndef REALM_ENGINE_SCHEDULER_INTERNAL_H
#define REALM_ENGINE_SCHEDULER_INTERNAL_H

#include "engine/scheduler.h"

#define COST_INPUT  1.0
#define COST_OUTPUT 2.0

/* One tenant's candidates in the current round, best first. */
typedef struct lane {
    sched_tenant *tenant;
    double weight;
    int32_t first, next, end; /* in scheduler.queue */
} lane;

struct scheduler {
    kv_pool *pool;
    kv_prefix *prefix;
    kv_host host;
    sched_item *first, *last; /* all items by order */
    int32_t n_items, max_items;
    sched_tenant *present;
    double left_counter; /* of the tenant that left last */
    uint64_t round, next_order, preemptions;
    int32_t *found;     /* [pages], zeros between calls: see could_give */
    sched_item **queue; /* [max_items] */
    lane *lanes;        /* [max_items] */
    sched_plan plan;    /* picks [max_items] */
};

static inline int32_t least(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

static inline double weight_of(const sched_tenant *t)
{
    return (double)atomic_load_explicit(&t->weight, memory_order_relaxed);
}

static inline void charge(sched_tenant *t, double cost)
{
    t->counter += cost / weight_of(t);
}

static inline int is_decoding(const sched_item *item)
{
    return item->length - item->computed == 1;
}

/* Sum of count positions from first on. */
static inline double positions_of(int32_t first, int32_t count)
{
    return (double)count * (first + 0.5 * (count - 1));
}

/* ---- scheduler_pages.c --------------------------------------------------------------------------- */

/* Forgets what lies behind n_tokens computed rows, but not what was saved of it. */
void sched_cut(scheduler *s, sched_item *item, int32_t n_tokens);

/* Whether an item without pages may start; takes what is known of its prompt. */
int sched_can_start(scheduler *s, sched_item *item);

/* Sees to pages for n_rows that come behind what is computed and planned; 0 if they cannot be had now. */
int sched_take_pages(scheduler *s, sched_item *item, int32_t n_rows);

/* Saved pages that the item's table lacks. Not the last row's: it is always computed. */
int32_t sched_count_loadable(const sched_item *item);

/* Sessions that gave pages back get on with what was saved of them. */
void sched_plan_loads(scheduler *s, const sched_limits *limits, int decoding);
/* Once three quarters of the pages are held. After all else: what gave its pages back has none to save. */
void sched_plan_saves(scheduler *s, const sched_limits *limits);

#endif
