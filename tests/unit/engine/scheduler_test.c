/* tests/unit/engine/scheduler_test.c: the scheduler without engine or model. A million random events
 * (open, feed, step, fork, truncate, write, cancel, close, weights and limits that change, adapters,
 * memory that is missing) drive it; its invariants are checked all the while, what each page holds is
 * compared with what its sequence needs, and at the end everything that waits comes to its end and
 * every account is empty. REALM_SIMULATION_EVENTS and REALM_SIMULATION_SEED set how many and which.
 * Compiled with the scheduler's assertions. */
#include "unit/unit.h"

#include <math.h>

#include "base/rng.h"
#include "engine/scheduler.h"

#define N_ITEMS    40
#define N_TENANTS  4
#define N_PAGES    64
#define N_HOST     40 /* host pages, at the most */
#define N_CONTEXT  600
#define N_ADAPTERS 2

static const char adapters[N_ADAPTERS]; /* their addresses count */

typedef struct simulated {
    sched_item item;
    token_id tokens[N_CONTEXT];
    int32_t length;
    int open;
    int32_t answer_left; /* tokens to decode after the prompt */
} simulated;

/* What stands in a slot: enough to tell any mix-up of sequences. */
typedef struct content {
    uint64_t history; /* hash of the tokens up to here */
    uint32_t tenant;
    uint64_t adapter; /* which, and how often its address was used anew */
} content;

typedef struct world {
    scheduler *s;
    sched_tenant tenants[N_TENANTS];
    simulated items[N_ITEMS];
    content (*slots)[KV_PAGE_TOKENS]; /* of each page */
    content host[N_HOST][KV_PAGE_TOKENS];
    int32_t n_host;
    rng random;
    pace pace;
    uint64_t generation[N_ADAPTERS];
    int may_starve;
    uint64_t rows, rounds, idle_rounds, spared, starved, saved, loaded;
} world;

/* Linked with realloc wrapped: what grows in a plan may find no memory. */
static int starving;

void *__real_realloc(void *old, size_t size);
void *__wrap_realloc(void *old, size_t size);

void *__wrap_realloc(void *old, size_t size)
{
    return starving ? NULL : __real_realloc(old, size);
}

static uint64_t below(world *w, uint64_t bound)
{
    return rng_next(&w->random) % bound;
}

static uint64_t history_of(const simulated *it, int32_t position)
{
    uint64_t hash = 1469598103934665603u;
    for (int32_t i = 0; i <= position; i++)
        hash = (hash ^ (uint64_t)(uint32_t)it->tokens[i]) * 1099511628211u;
    return hash;
}

static content *slot_of(world *w, const simulated *it, int32_t position)
{
    int32_t page = it->item.table.pages[position / KV_PAGE_TOKENS];
    return &w->slots[page][position % KV_PAGE_TOKENS];
}

static uint64_t mark_of(const world *w, const simulated *it)
{
    int64_t i = it->item.adapter ? (const char *)it->item.adapter - adapters : -1;
    return i < 0 ? 0 : w->generation[i] * N_ADAPTERS + (uint64_t)i + 1;
}

static void write_rows(world *w, const simulated *it, int32_t first, int32_t count)
{
    uint64_t hash = history_of(it, first - 1);
    for (int32_t i = first; i < first + count; i++) {
        hash = (hash ^ (uint64_t)(uint32_t)it->tokens[i]) * 1099511628211u;
        *slot_of(w, it, i) = (content){hash, it->item.tenant->number, mark_of(w, it)};
    }
}

static void copy_pages(world *w, const kv_copies *copies)
{
    for (const kv_copy *c = copies->items; c < copies->items + copies->count; c++)
        memcpy(c->kind == KV_COPY_OUT ? w->host[c->to] : w->slots[c->to],
               c->kind == KV_COPY_IN ? w->host[c->from] : w->slots[c->from], sizeof *w->slots);
}

/* Every computed row of every sequence still stands where its table says. */
static void check_contents(world *w)
{
    for (simulated *it = w->items; it < w->items + N_ITEMS; it++) {
        uint64_t hash = 1469598103934665603u;
        for (int32_t i = 0; it->open && i < it->item.computed; i++) {
            hash = (hash ^ (uint64_t)(uint32_t)it->tokens[i]) * 1099511628211u;
            assert_int_equal(slot_of(w, it, i)->history, hash);
            assert_int_equal(slot_of(w, it, i)->tenant, it->item.tenant->number);
            assert_int_equal(slot_of(w, it, i)->adapter, mark_of(w, it));
        }
    }
}

static void activate(world *w, simulated *it)
{
    it->item.tokens = it->tokens;
    it->item.length = it->length;
    if (!it->item.active)
        scheduler_activate(w->s, &it->item);
}

static void append(world *w, simulated *it, int32_t count)
{
    for (int32_t i = 0; i < count; i++) /* few different prompts, so that prefixes meet */
        it->tokens[it->length + i] = (token_id)(below(w, 50) == 0 ? below(w, 1000) : (uint64_t)i);
    it->length += count;
}

static void open_item(world *w, simulated *it)
{
    memset(it, 0, sizeof *it);
    it->open = 1;
    if (below(w, 4) == 0)
        it->item.adapter = &adapters[below(w, N_ADAPTERS)];
    scheduler_add(w->s, &it->item, &w->tenants[below(w, N_TENANTS)], (int32_t)below(w, 3));
}

static void fork_item(world *w, simulated *parent)
{
    for (simulated *it = w->items; it < w->items + N_ITEMS; it++)
        if (!it->open) {
            realm_error error;
            memset(it, 0, sizeof *it);
            it->open = 1;
            memcpy(it->tokens, parent->tokens, sizeof it->tokens);
            it->length = parent->length;
            it->item.adapter = parent->item.adapter;
            assert_status(kv_table_reserve(&it->item.table, it->length, &error), REALM_OK, error);
            scheduler_add(w->s, &it->item, parent->item.tenant, parent->item.class);
            scheduler_fork(w->s, &it->item, &parent->item, it->length);
            return;
        }
}

/* A guest writes rows itself, sometimes without coming to an end. */
static void write_as_guest(world *w, simulated *it)
{
    kv_copies copies = {0};
    int32_t count = 1 + (int32_t)below(w, 20), first = it->item.computed;
    if (it->length + count <= N_CONTEXT && first == it->length) {
        scheduler_truncate(w->s, &it->item, first);
        realm_status status = scheduler_reserve(w->s, &it->item, first, count, &copies, NULL);
        assert_true(status == REALM_OK || status == REALM_QUOTA);
        copy_pages(w, &copies);
        if (status == REALM_OK && below(w, 4)) {
            for (int32_t i = 0; i < count; i++)
                it->tokens[it->length++] = -1;
            write_rows(w, it, first, count);
            scheduler_written(w->s, &it->item, it->length);
        }
    }
    free(copies.items);
}

static void change_resting(world *w, simulated *it)
{
    int32_t room = N_CONTEXT - it->length;
    switch (below(w, 8)) {
    case 0: fork_item(w, it); break;
    case 1:
        it->length = (int32_t)below(w, (uint64_t)it->length + 1);
        scheduler_truncate(w->s, &it->item, it->length);
        break;
    case 2:
        if (below(w, 4) == 0)
            write_as_guest(w, it);
        break;
    default: { /* a prompt with an answer, or a step */
        int32_t count = below(w, 2) ? 1 : 1 + (int32_t)below(w, 300);
        it->answer_left = (int32_t)below(w, 30);
        append(w, it, count < room ? count : room);
        if (it->item.computed < it->length)
            activate(w, it);
    }
    }
}

/* A tenant's settings, from any thread at any time. */
static void change_settings(world *w)
{
    sched_tenant *t = &w->tenants[below(w, N_TENANTS)];
    atomic_store(&t->weight, 0.25f * (float)(1 + below(w, 16)));
    /* Not below what one item of full length needs: such an item could never go on. */
    atomic_store(&t->max_pages,
                 below(w, 2) ? 0 : N_CONTEXT / KV_PAGE_TOKENS + 1 + (int)below(w, 20));
}

/* An adapter goes: no open item uses it, and its address is used anew with other contents. */
static void forget_adapter(world *w)
{
    const void *gone = &adapters[below(w, N_ADAPTERS)];
    for (simulated *it = w->items; it < w->items + N_ITEMS; it++)
        if (it->open && it->item.adapter == gone) {
            scheduler_remove(w->s, &it->item);
            it->open = 0;
        }
    scheduler_forget_adapter(w->s, gone);
    w->generation[(const char *)gone - adapters]++;
}

static void change_something(world *w)
{
    simulated *it = &w->items[below(w, N_ITEMS)];
    if (below(w, 500) == 0) {
        change_settings(w);
    } else if (below(w, 2000) == 0) {
        forget_adapter(w);
    } else if (!it->open) {
        open_item(w, it);
    } else if (below(w, 20) == 0) {
        scheduler_remove(w->s, &it->item);
        it->open = 0;
    } else if (!it->item.active) {
        change_resting(w, it);
    } else if (below(w, 50) == 0) { /* cancelled */
        scheduler_rest(w->s, &it->item);
        it->length = it->item.computed;
        scheduler_truncate(w->s, &it->item, it->length);
    }
}

static void finish_round(world *w, const sched_plan *plan)
{
    for (int32_t i = 0; i < plan->n_picks; i++) {
        const sched_pick *pick = &plan->picks[i];
        write_rows(w, (simulated *)(void *)pick->item, pick->item->computed, pick->n_rows);
        w->rows += (uint64_t)pick->n_rows;
    }
    for (int32_t i = 0; i < plan->n_picks; i++) {
        simulated *it = (simulated *)(void *)plan->picks[i].item;
        scheduler_advance(w->s, &plan->picks[i]);
        if (it->item.computed < it->length)
            continue;
        w->spared += (uint64_t)it->item.spared;
        if (it->answer_left-- > 0 && it->length < N_CONTEXT) {
            append(w, it, 1);
            activate(w, it);
        } else {
            scheduler_rest(w->s, &it->item);
        }
    }
}

static void play_round(world *w)
{
    sched_limits limits = {.rows = 1 + (int32_t)below(w, 200),
                           .outputs = 1 + (int32_t)below(w, 20),
                           .prompt_rows = (int32_t)below(w, 200),
                           .pace = below(w, 2) ? &w->pace : NULL,
                           .moves = (int32_t)below(w, 4)};
    starving = w->may_starve && below(w, 50) == 0;
    const sched_plan *plan = scheduler_plan(w->s, &limits);
    starving = 0;
    if (plan->starved) { /* as the engine does: that work fails, the others go on */
        w->starved++;
        scheduler_rest(w->s, plan->starved);
        ((simulated *)(void *)plan->starved)->length = plan->starved->computed;
        scheduler_truncate(w->s, plan->starved, plan->starved->computed);
    }
    if (plan->wants_host && w->n_host < N_HOST && below(w, 20) == 0)
        scheduler_set_host_pages(w->s, w->n_host += 4);
    w->saved += (uint64_t)plan->n_saved;
    w->loaded += (uint64_t)plan->n_loaded;
    pace_note(&w->pace, 1000000 + (uint64_t)plan->n_rows * 50000,
              &(pace_load){plan->n_rows - plan->n_prompt_rows, plan->n_prompt_rows,
                           plan->prompt_positions});
    int32_t rows = 0, outputs = 0;
    for (int32_t i = 0; i < plan->n_picks; i++) {
        const sched_item *it = plan->picks[i].item;
        rows += plan->picks[i].n_rows;
        outputs += it->computed + plan->picks[i].n_rows == it->length;
    }
    assert_int_equal(plan->n_rows, rows);
    assert_int_equal(plan->n_outputs, outputs);
    assert_true(plan->n_prompt_rows >= 0 && plan->n_prompt_rows <= rows);
    assert_true(plan->prompt_positions >= 0);
    assert_true(rows <= limits.rows && outputs <= limits.outputs);
    copy_pages(w, &plan->copies);
    w->rounds++;
    w->idle_rounds += plan->n_picks == 0;
    finish_round(w, plan);
}

static world *open_world(int32_t n_pages, uint64_t seed)
{
    realm_error error;
    world *w = calloc(1, sizeof *w);
    rng_init(&w->random, seed);
    w->slots = calloc((size_t)n_pages, sizeof *w->slots);
    assert_status(scheduler_open(&w->s, n_pages, N_ITEMS, &error), REALM_OK, error);
    for (uint32_t t = 0; t < N_TENANTS; t++)
        scheduler_tenant_init(&w->tenants[t], t);
    return w;
}

static void close_world(world *w)
{
    for (simulated *it = w->items; it < w->items + N_ITEMS; it++)
        if (it->open)
            scheduler_remove(w->s, &it->item);
    assert_int_equal(scheduler_pages_held(w->s), 0);
    assert_int_equal(scheduler_pages_saved(w->s), 0);
    for (int t = 0; t < N_TENANTS; t++) {
        assert_int_equal(w->tenants[t].account.n_pages, 0);
        assert_int_equal(w->tenants[t].n_active, 0);
    }
    scheduler_close(w->s);
    free(w->slots);
    free(w);
}

static uint64_t wanted(const char *variable, uint64_t otherwise)
{
    const char *text = getenv(variable);
    return text ? strtoull(text, NULL, 10) : otherwise;
}

/* Nothing new comes: all that waits ends. But for rows that guests wrote themselves, which nobody can
 * compute again: whoever holds such pages is closed, as its deadline would do. */
static void play_out(world *w)
{
    int32_t left = 1;
    for (simulated *it = w->items; it < w->items + N_ITEMS; it++)
        if (it->open && (it->item.reserved || it->item.first_unknown != INT32_MAX)) {
            scheduler_remove(w->s, &it->item);
            it->open = 0;
        }
    for (int32_t rounds = 0; left > 0; rounds++) {
        play_round(w);
        left = 0;
        for (simulated *it = w->items; it < w->items + N_ITEMS; it++)
            left += it->open && it->item.active;
        assert_true(rounds < 100000);
    }
}

static void random_events_break_no_invariant_and_lose_no_page(void **state)
{
    (void)state;
    uint64_t seed = wanted("REALM_SIMULATION_SEED", 1);
    uint64_t n_events = wanted("REALM_SIMULATION_EVENTS", unit_is_emulated() ? 20000 : 1000000);
    print_message("seed %llu, %llu events\n", (unsigned long long)seed,
                  (unsigned long long)n_events);
    world *w = open_world(N_PAGES, seed);
    w->may_starve = 1;
    atomic_store(&w->tenants[3].max_pages, 25);
    for (uint64_t i = 0; i < n_events; i++) {
        if (below(w, 3))
            change_something(w);
        else
            play_round(w);
        if (i % 16 == 0)
            scheduler_assert(w->s);
        if (i % 256 == 0)
            check_contents(w);
        if (i % 100000 == 99999)
            play_out(w);
    }
    w->may_starve = 0;
    play_out(w);
    scheduler_assert(w->s);
    check_contents(w);
    assert_true(w->rows > n_events);
    assert_true(w->spared > 0 && w->starved > 0);
    assert_true(scheduler_preemptions(w->s) > 0);
    assert_true(w->saved > 0 && w->loaded > 0);
    close_world(w);
}

/* Whatever is waiting gets done when nothing new comes, however few the pages. */
static void everything_that_fits_alone_comes_to_an_end(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 30; seed++) {
        world *w = open_world(N_CONTEXT / KV_PAGE_TOKENS + 1, seed);
        int32_t left = 25, rounds = 0;
        for (int32_t i = 0; i < left; i++) {
            open_item(w, &w->items[i]);
            append(w, &w->items[i], 1 + (int32_t)below(w, 400));
            w->items[i].answer_left = (int32_t)below(w, 150);
            activate(w, &w->items[i]);
        }
        for (; left > 0; rounds++) {
            play_round(w);
            scheduler_assert(w->s);
            left = 0;
            for (int32_t i = 0; i < 25; i++)
                left += w->items[i].item.active;
            assert_true(rounds < 50000);
        }
        check_contents(w);
        close_world(w);
    }
}

/* ---- fairness ---------------------------------------------------------------------------------- */

/* Two tenants that always have n waiting: what each was computed in so many rounds. */
static void share(int32_t n, int32_t prompt, int32_t answer, float heavier, double served[2])
{
    world *w = open_world(N_PAGES * 40, 5);
    atomic_store(&w->tenants[1].weight, heavier);
    sched_limits limits = {.rows = 64, .outputs = 4, .prompt_rows = 60};
    served[0] = served[1] = 0;
    for (int32_t i = 0; i < 2 * n; i++) {
        simulated *it = &w->items[i];
        it->open = 1;
        scheduler_add(w->s, &it->item, &w->tenants[i % 2], 1);
    }
    for (int32_t round = 0; round < 20000; round++) {
        for (int32_t i = 0; i < 2 * n; i++) {
            simulated *it = &w->items[i];
            if (it->item.active)
                continue;
            scheduler_truncate(w->s, &it->item, 0);
            it->length = 0;
            for (int32_t j = 0; j < prompt; j++) /* nobody's prompt repeats */
                it->tokens[it->length++] = (token_id)below(w, 1u << 30);
            it->answer_left = answer;
            activate(w, it);
        }
        const sched_plan *plan = scheduler_plan(w->s, &limits);
        for (int32_t i = 0; i < plan->n_picks; i++)
            served[plan->picks[i].item->tenant->number] += plan->picks[i].n_rows;
        finish_round(w, plan);
    }
    close_world(w);
}

static void always_busy_tenants_get_tokens_by_weight(void **state)
{
    (void)state;
    static const struct {
        int32_t n, prompt, answer;
        float weight;
    } cases[] = {{8, 100, 20, 3}, {8, 1, 50, 3}, {12, 300, 2, 3}, {8, 100, 20, 1}, {8, 40, 40, 7}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double served[2];
        share(cases[i].n, cases[i].prompt, cases[i].answer, cases[i].weight, served);
        double ratio = served[1] / served[0] / (double)cases[i].weight;
        if (fabs(ratio - 1) > 0.03)
            fail_msg("case %zu: %g and %g rows", i, served[0], served[1]);
    }
}

static void a_tenant_with_one_request_does_not_wait_for_another_s_twenty(void **state)
{
    (void)state;
    world *w = open_world(N_PAGES * 40, 5);
    sched_limits limits = {.rows = 128, .outputs = 16, .prompt_rows = 128};
    for (int32_t i = 0; i < 20; i++) {
        open_item(w, &w->items[i]);
        w->items[i].item.tenant = &w->tenants[0];
        append(w, &w->items[i], 500);
        activate(w, &w->items[i]);
    }
    for (int32_t i = 0; i < 10; i++)
        finish_round(w, scheduler_plan(w->s, &limits));
    simulated *late = &w->items[20];
    open_item(w, late);
    late->item.tenant = &w->tenants[1];
    late->length = 256;
    for (int32_t i = 0; i < 256; i++)
        late->tokens[i] = i + 5000;
    activate(w, late);
    int32_t rounds = 0;
    for (; late->item.active; rounds++)
        finish_round(w, scheduler_plan(w->s, &limits));
    assert_int_equal(rounds, 2); /* as alone: who asks for one thing goes first */
    close_world(w);
}

static void returning_tenants_have_saved_up_nothing(void **state)
{
    (void)state;
    world *w = open_world(N_PAGES * 40, 5);
    sched_limits limits = {.rows = 64, .outputs = 4, .prompt_rows = 64};
    for (int32_t i = 0; i < 2; i++) {
        w->items[i].open = 1;
        scheduler_add(w->s, &w->items[i].item, &w->tenants[i], 1);
    }
    double served[2] = {0};
    for (int32_t round = 0; round < 400; round++) {
        for (int32_t i = 0; i < 2; i++) {
            simulated *it = &w->items[i];
            if (it->item.active || (i == 1 && round < 200))
                continue;
            scheduler_truncate(w->s, &it->item, 0);
            it->length = 0;
            for (int32_t j = 0; j < 500; j++)
                it->tokens[it->length++] = (token_id)below(w, 1u << 30);
            activate(w, it);
        }
        const sched_plan *plan = scheduler_plan(w->s, &limits);
        for (int32_t i = 0; round >= 200 && i < plan->n_picks; i++)
            served[plan->picks[i].item->tenant->number] += plan->picks[i].n_rows;
        finish_round(w, plan);
    }
    assert_true(fabs(served[0] / served[1] - 1) < 0.05);
    close_world(w);
}

static void higher_classes_go_first_and_lower_ones_give_pages_back(void **state)
{
    (void)state;
    world *w = open_world(10, 5);
    sched_limits limits = {.rows = 400, .outputs = 16, .prompt_rows = 400};
    simulated *low = &w->items[0], *high = &w->items[1];
    for (int32_t i = 0; i < 2; i++) {
        w->items[i].open = 1;
        scheduler_add(w->s, &w->items[i].item, &w->tenants[0], i * 2);
        append(w, &w->items[i], 200);
        w->items[i].answer_left = 50;
    }
    activate(w, low);
    finish_round(w, scheduler_plan(w->s, &limits));
    assert_int_equal(low->item.computed, 200);
    w->items[1].tokens[0] = 77; /* no common prefix */
    activate(w, high);
    for (int32_t i = 0; i < 3; i++)
        finish_round(w, scheduler_plan(w->s, &limits));
    assert_true(high->item.computed >= 200);
    assert_int_equal(low->item.computed, 0);
    while (high->item.active || low->item.active)
        finish_round(w, scheduler_plan(w->s, &limits));
    assert_int_equal(low->length, 250);
    check_contents(w);
    close_world(w);
}

/* Its pages would not suffice even with all that is worse: so those go on, instead of being computed
 * anew for ever. */
static void who_cannot_start_takes_nobody_s_pages(void **state)
{
    (void)state;
    static const int32_t prompts[] = {150, 290, 40}; /* 5 pages, 10 and 2, of 12 */
    world *w = open_world(12, 5);
    sched_limits limits = {.rows = 64, .outputs = 16, .prompt_rows = 64};
    for (int32_t i = 0; i < 3; i++) {
        simulated *it = &w->items[i];
        it->open = 1;
        scheduler_add(w->s, &it->item, &w->tenants[i], 1);
        append(w, it, prompts[i]);
        it->tokens[0] = 1000 + i; /* no common prefix */
        it->answer_left = i == 0 ? 60 : 20;
    }
    activate(w, &w->items[0]);
    for (int32_t i = 0; i < 4; i++)
        finish_round(w, scheduler_plan(w->s, &limits));
    activate(w, &w->items[1]);
    activate(w, &w->items[2]);
    int32_t rounds = 0;
    for (; w->items[2].item.active; rounds++)
        finish_round(w, scheduler_plan(w->s, &limits));
    assert_int_equal(rounds, 21); /* its prompt and its answer */
    assert_int_equal(scheduler_preemptions(w->s), 0);
    while (w->items[1].item.active)
        finish_round(w, scheduler_plan(w->s, &limits));
    check_contents(w);
    close_world(w);
}

static int32_t play_until_rest(world *w, simulated *it, const sched_limits *limits)
{
    int32_t rows = 0;
    activate(w, it);
    while (it->item.active) {
        const sched_plan *plan = scheduler_plan(w->s, limits);
        copy_pages(w, &plan->copies);
        for (int32_t i = 0; i < plan->n_picks; i++)
            rows += plan->picks[i].item == &it->item ? plan->picks[i].n_rows : 0;
        finish_round(w, plan);
    }
    return rows;
}

static void what_was_saved_of_an_idle_session_is_not_computed_again(void **state)
{
    (void)state;
    for (int32_t n_host = 0; n_host <= 6; n_host += 3) { /* none, half, and all of its full pages */
        world *w = open_world(8, 5);
        sched_limits limits = {.rows = 400, .outputs = 16, .prompt_rows = 400, .moves = 2};
        simulated *idle = &w->items[0], *other = &w->items[1];
        scheduler_set_host_pages(w->s, n_host);
        for (int32_t i = 0; i < 2; i++) {
            w->items[i].open = 1;
            scheduler_add(w->s, &w->items[i].item, &w->tenants[i], 1);
            w->items[i].item.uncached = 1;
            append(w, &w->items[i], 200);
        }
        assert_int_equal(play_until_rest(w, idle, &limits), 200);
        for (int32_t i = 0; i < 10; i++) {
            const sched_plan *plan = scheduler_plan(w->s, &limits);
            copy_pages(w, &plan->copies);
            assert_true(plan->n_saved <= limits.moves);
        }
        assert_int_equal(scheduler_pages_saved(w->s), n_host);
        assert_int_equal(play_until_rest(w, other, &limits), 200);
        assert_int_equal(idle->item.computed, 0);
        append(w, idle, 1);
        assert_int_equal(play_until_rest(w, idle, &limits), 201 - n_host * KV_PAGE_TOKENS);
        check_contents(w);
        scheduler_assert(w->s);
        scheduler_truncate(w->s, &idle->item, 40); /* the first page is still what it was */
        idle->length = 40;
        assert_true(idle->item.saved.count <= 1);
        close_world(w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_events_break_no_invariant_and_lose_no_page),
        cmocka_unit_test(everything_that_fits_alone_comes_to_an_end),
        cmocka_unit_test(always_busy_tenants_get_tokens_by_weight),
        cmocka_unit_test(a_tenant_with_one_request_does_not_wait_for_another_s_twenty),
        cmocka_unit_test(returning_tenants_have_saved_up_nothing),
        cmocka_unit_test(higher_classes_go_first_and_lower_ones_give_pages_back),
        cmocka_unit_test(who_cannot_start_takes_nobody_s_pages),
        cmocka_unit_test(what_was_saved_of_an_idle_session_is_not_computed_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
