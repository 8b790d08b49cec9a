/* engine/scheduler.h: which rows an iteration computes, and who gives pages back when they run out.
 *
 * Pure decisions over the book of pages: no device, no model, no clock, no thread. The engine
 * thread alone calls it; the simulation in tests/unit/engine drives it with random events. The
 * embedded sched_item is a session as the scheduler sees it, sched_tenant a tenant.
 *
 *                activate                          rest
 *     RESTING --------------> ACTIVE (rows to compute) ----> RESTING
 *
 *   An ACTIVE item has length > computed. One row left: it decodes. More: it waits with a prompt.
 *   An item may lose its pages (computed becomes 0) and is computed again when it next has work: its
 *   tokens are known, so its client sees a pause, not an error. Only what cannot be computed again
 *   is safe from that: rows that a guest wrote as keys and values itself.
 *
 * A round (scheduler_plan):
 *   1  every decoding item one row, as long as rows, outputs and pages last
 *   2  prompts in slices of SCHED_SLICE_ROWS until their budget is used up
 *   Each time the tenant with the smallest virtual counter goes first ("Fairness in Serving Large
 *   Language Models", arXiv 2401.00588, algorithm 2); a row costs 1 for input and 2 for output,
 *   divided by the tenant's weight. A tenant that returns is lifted to the least counter among
 *   those present, so nobody saves up service. Within a tenant: the higher class, then who waited
 *   longest (decoding) or came first (prompts).
 *   Two rules are added to the paper's:
 *     - of tenants with prompts whose counters differ by less than SCHED_HEAD_START rows, the one
 *       with the fewest waiting goes first. Who asks for one thing does not wait for who asks for
 *       twenty; since the counters never part further, shares in the long run are as they were
 *     - where weights differ, a tenant that is ahead of the least served lets rounds pass though
 *       there is room: else all that decode would go at one pace and weights would mean nothing
 *       until rows run out. The lightest still decodes in one of (heaviest / its weight)^2 rounds
 *       at the least, so that one idle heavy session cannot stop many light ones
 *   When pages are missing, whoever is worse gives its pages back: first items that have been
 *   resting for a while, the longest first; then the newest of the lowest class, but never one of
 *   a better class or an older one of the same class than the item that asks. So the oldest of the
 *   highest class always goes on, and everything ends.
 *   Where there are host pages (kv_host.h), full pages of those who would be next to give theirs back are
 *   saved there as soon as pages run low, a few a round. Who goes on then loads what was saved, in
 *   order, before anything of it is computed again.
 *
 * Invariants, checked by scheduler_assert:
 *   S1  ACTIVE items have length > computed >= 0; RESTING ones computed <= length
 *   S2  an item's table covers its computed rows; where nothing is reserved or planned, no more
 *   S3  published pages of an item are a prefix of its table and lie wholly within computed
 *   S4  n_active of a tenant is the number of its ACTIVE items; it is > 0 only if it is present
 *   S5  a tenant's account is the number of different pages in its items' tables
 *   S6  a page in tables of several items belongs to one tenant
 *   S7  saved pages of an item are copies of the first pages of its sequence; every host page is
 *       free or one item's; where some are still to be loaded, computed ends with a page
 *   and K1 to K6, P1 and P2 */
#ifndef REALM_ENGINE_SCHEDULER_H
#define REALM_ENGINE_SCHEDULER_H

#include <stdatomic.h>

#include "engine/kv_host.h"
#include "engine/kv_prefix.h"
#include "engine/pace.h"

/* Rows of one prompt that are picked at a time before counters are compared again: two pages, small
 * against any budget and large enough that a step's products stay efficient. */
#define SCHED_SLICE_ROWS (2 * KV_PAGE_TOKENS)

/* 1.5 times the time alone is what a prompt of twice this many rows then takes beside any number of
 * another tenant's. */
#define SCHED_HEAD_START 2048

/* A tenant whose items all rest stays present so many rounds: a guest that answers between two
 * steps has not left. An item that has rested so many rounds is thought to be waiting for something
 * outside and gives pages back before active ones do. */
#define SCHED_GRACE_ROUNDS 4

typedef struct sched_tenant sched_tenant;
struct sched_tenant {
    /* any thread writes these; read once a round */
    _Atomic float weight; /* > 0 */
    atomic_int max_pages; /* 0: no limit of its own */

    /* the scheduler's */
    kv_account account;
    uint32_t number;
    double counter; /* virtual: service received / weight */
    int32_t n_active;
    int present;
    uint64_t left_round; /* when its last item went to rest */
    sched_tenant *next_present;
};

typedef struct sched_item sched_item;
struct sched_item {
    /* set by scheduler_add */
    sched_tenant *tenant;
    int32_t class; /* greater is better */

    /* the engine's; valid while ACTIVE */
    const token_id *tokens; /* [length] */
    int32_t length;
    const void *adapter;
    unsigned no_logits : 1; /* its last row counts for no output */
    unsigned uncached : 1;  /* takes nothing from the prefix cache */

    /* the scheduler's */
    sched_item *previous, *next;
    uint64_t order; /* of arrival */
    uint64_t rested_round, served_round;
    kv_table table;
    kv_table saved;        /* host pages with copies of its first pages */
    int32_t computed;      /* rows whose keys and values are in the table */
    int32_t published;     /* pages at the front of the table that the prefix cache knows */
    int32_t spared;        /* rows taken from the prefix cache since activation */
    int32_t paid;          /* rows charged once: computing them again is free */
    int32_t planned;       /* rows in the current plan */
    int32_t first_unknown; /* the first computed row whose token is not known; INT32_MAX: none */
    unsigned active : 1;
    unsigned reserved : 1; /* by scheduler_reserve: rows beyond computed are being written */
    unsigned prompt : 1;   /* what is planned of it counts as rows of a prompt */
};

typedef struct sched_limits {
    int32_t rows;        /* of an iteration */
    int32_t outputs;     /* rows whose logits are wanted */
    int32_t prompt_rows; /* for prompts beside something that decodes; alone they get all rows */
    pace *pace;          /* says how many of these it shall be; NULL: all */
    /* As pace_fill wants it; NULL: a step's time grows row by row. */
    pace_filled filled;
    const void *filled_context;
    int32_t moves; /* pages that may be saved, and as many that may be loaded, beside something that
                      decodes; alone, all are loaded */
} sched_limits;

typedef struct sched_pick {
    sched_item *item;
    int32_t n_rows; /* from item->computed on */
} sched_pick;

typedef struct sched_plan {
    sched_pick *picks; /* [n_picks] */
    int32_t n_picks, n_rows, n_prompt_rows, n_outputs;
    double prompt_positions;   /* sum over the prompts' rows of their positions */
    kv_copies copies;          /* to be made before the step, also where there is none */
    int32_t n_saved, n_loaded; /* of those, to and from host pages */
    int wants_host;            /* no host page was free */
    sched_item *starved; /* an item for which host memory was missing, or NULL; it has no pick,
                            the others' hold */
} sched_plan;

typedef struct scheduler scheduler;

/* max_items bounds scheduler_add; rows bounds any plan's. */
realm_status scheduler_open(scheduler **out, int32_t n_pages, int32_t max_items,
                            realm_error *error);
void scheduler_close(scheduler *s); /* NULL is allowed; every item must have been removed */

void scheduler_tenant_init(sched_tenant *t, uint32_t number);

/* The item is the caller's and begins RESTING and empty. */
void scheduler_add(scheduler *s, sched_item *item, sched_tenant *tenant, int32_t class);
/* Gives its pages back. The item may be ACTIVE. */
void scheduler_remove(scheduler *s, sched_item *item);
/* A RESTING, empty item of the same tenant reads the first n_tokens of parent, as far as they are
 * computed. kv_table_reserve made room in its table, so this cannot fail. */
void scheduler_fork(scheduler *s, sched_item *item, const sched_item *parent, int32_t n_tokens);
/* Rows from n_tokens on are forgotten. RESTING items only, or ACTIVE ones that stay longer. */
void scheduler_truncate(scheduler *s, sched_item *item, int32_t n_tokens);

/* item->length > item->computed; tokens and the other fields are set. */
void scheduler_activate(scheduler *s, sched_item *item);
void scheduler_rest(scheduler *s, sched_item *item);

/* The rows of one iteration; borrowed until the next call. Also in n_picks == 0 a round passes. */
const sched_plan *scheduler_plan(scheduler *s, const sched_limits *limits);
/* After the step: the pick's rows are computed. Publishes pages that became full. */
void scheduler_advance(scheduler *s, const sched_pick *pick);

/* For rows that a guest writes itself, from the end of a RESTING item on (first is computed):
 * makes [first, first+count) writable. copies are to be made at once.
 *   REALM_QUOTA      pages are missing and nobody worse holds any
 *   REALM_NO_MEMORY  the host's */
realm_status scheduler_reserve(scheduler *s, sched_item *item, int32_t first, int32_t count,
                               kv_copies *copies, realm_error *error);
/* Those rows are written in every layer: computed becomes n_tokens, the new ones unknown. */
void scheduler_written(scheduler *s, sched_item *item, int32_t n_tokens);

/* Pages that an item of this tenant can ever have. */
int32_t scheduler_page_limit(const scheduler *s, const sched_tenant *t);
void scheduler_forget_adapter(scheduler *s, const void *adapter);

/* There are so many host pages now, not fewer than before; none at first. Without memory for the book
 * it stays as it was. */
void scheduler_set_host_pages(scheduler *s, int32_t n_pages);

int32_t scheduler_pages_held(const scheduler *s);
int32_t scheduler_pages_saved(const scheduler *s);
uint64_t scheduler_preemptions(const scheduler *s);

void scheduler_assert(const scheduler *s);

#endif
