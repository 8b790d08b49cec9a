/* tests/unit/engine/simulation_test.c: the whole engine under random load, in virtual time.
 *
 * Everything happens on the engine's thread: before each iteration of the fake device a few random
 * events (open, fork, truncate, feed, step, generate, embed, cancel, close, deadlines, priorities,
 * weights and page limits that change, adapters that go, host memory that is missing), and in done
 * the check of what came back. So a seed gives the same run every time, and an hour of load takes
 * seconds. After each work the tokens are compared with a copy that the engine never saw, and the
 * logits with what those tokens alone give. At the end whatever is in flight must finish, no page be
 * held, no account hold anything. REALM_SIMULATION_WORKS and REALM_SIMULATION_SEED set how many and
 * which. Compiled with the engine's assertions; they walk everything every 16 iterations. */
#include "unit/engine/fake_device.h"

#include <unistd.h>

#include "base/rng.h"
#include "unit/engine/virtual_clock.h"

#define N_SLOTS      24
#define N_TENANTS    5
#define N_PAGES      60
#define N_HOST_PAGES 25
#define N_CONTEXT    700
#define N_ADAPTERS   2

typedef struct slot {
    struct simulation *owner;
    session *session; /* NULL: closed */
    work work;
    int in_flight, closing;
    int32_t adapter;                /* -1: none */
    token_id tokens[N_CONTEXT];     /* what the session must hold */
    uint64_t states[N_CONTEXT + 1]; /* of the fake model after so many tokens */
    int32_t length;
    token_id input[N_CONTEXT];
    float embedding[FAKE_EMBD];
} slot;

typedef struct simulation {
    engine *engine;
    rng random;
    slot slots[N_SLOTS];
    token_id prompts[4][N_CONTEXT]; /* that requests begin with: caches hit */
    uint64_t works_left, done, in_flight, embeds;
    uint64_t by_status[64], iterations_since_done;
    uint64_t began_ns,
        digest; /* of what ended, in its order and when: two runs with equal ones are the same */
    int ending;
    command forget;
    atomic_int forgotten;
    char adapters[N_ADAPTERS];
    atomic_int finished;
} simulation;

/* Linked with realloc wrapped. */
static int starving;

void *__real_realloc(void *old, size_t size);
void *__wrap_realloc(void *old, size_t size);

void *__wrap_realloc(void *old, size_t size)
{
    return starving ? NULL : __real_realloc(old, size);
}

static uint64_t below(simulation *m, uint64_t bound)
{
    return rng_next(&m->random) % bound;
}

/* ---- what must come out ------------------------------------------------------------------------ */

static const void *adapter_of(const slot *t)
{
    return t->adapter < 0 ? NULL : &t->owner->adapters[t->adapter];
}

static void note(slot *t, token_id token)
{
    if (t->length == 0)
        t->states[0] = 7;
    t->tokens[t->length] = token;
    t->states[t->length + 1] = fake_next(t->states[t->length], token, adapter_of(t));
    t->length++;
}

static token_id greedy(uint64_t state)
{
    token_id best = 0;
    float most = fake_logit(state, 0);
    for (token_id v = 1; v < FAKE_VOCAB; v++) {
        float logit = fake_logit(state, v);
        if (logit > most) {
            most = logit;
            best = v;
        }
    }
    return best;
}

static void check_generated(slot *t)
{
    const token_id *tokens = session_tokens(t->session);
    for (int32_t i = t->length; i < session_length(t->session); i++) {
        if (below(t->owner, 8) == 0) /* dear: now and then */
            assert_int_equal(tokens[i], greedy(t->states[t->length]));
        note(t, tokens[i]);
    }
}

static void check_session(slot *t, const work *w)
{
    int works = w->status == REALM_OK;
    if (works && (w->kind == WORK_FEED || w->kind == WORK_EMBED))
        for (int32_t i = 0; i < w->n_tokens; i++)
            note(t, t->input[i]);
    if (works && w->kind == WORK_STEP) {
        assert_true(w->token >= 0);
        note(t, w->token);
    }
    if (w->kind == WORK_GENERATE) /* also what was handed out before a failure stays */
        check_generated(t);
    assert_int_equal(session_length(t->session), t->length);
    if (t->length > 0)
        assert_memory_equal(session_tokens(t->session), t->tokens,
                            (size_t)t->length * sizeof *t->tokens);
    const float *logits = session_logits(t->session);
    if (works && (w->kind == WORK_FEED || w->kind == WORK_STEP))
        assert_non_null(logits);
    for (int32_t v = 0; logits && v < FAKE_VOCAB; v += 37)
        assert_true(logits[v] == fake_logit(t->states[t->length], v));
}

static int is_expected(realm_status status)
{
    return status == REALM_OK || status == REALM_CANCELLED || status == REALM_DEADLINE ||
           status == REALM_QUOTA || status == REALM_CONTEXT_FULL || status == REALM_NO_MEMORY ||
           status == REALM_INVALID; /* a step of an empty session */
}

/* ---- events ------------------------------------------------------------------------------------ */

static void act(simulation *m);

static void on_done(work *w)
{
    slot *t = w->context;
    simulation *m = t->owner;
    t->in_flight = 0;
    m->in_flight--;
    m->done++;
    m->iterations_since_done = 0;
    m->by_status[-(int)w->status & 63]++;
    uint64_t parts[] = {(uint64_t)(t - m->slots), (uint64_t)w->kind, (uint64_t)w->status,
                        atomic_load(&virtual_ns) - m->began_ns};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        m->digest = (m->digest ^ parts[i]) * 0x9E3779B97F4A7C15u;
    if (!is_expected(w->status))
        fail_msg("%s: %s", realm_status_name(w->status), w->error.message);
    if (t->closing) {
        t->session = NULL;
        t->closing = 0;
    } else {
        check_session(t, w);
    }
    if (m->in_flight == 0) /* no iteration comes before the next work */
        act(m);
}

static void submit(slot *t, work w)
{
    simulation *m = t->owner;
    w.session = t->session;
    w.done = on_done;
    w.context = t;
    if (below(m, 30) == 0)
        w.deadline_ns = clock_ns() + below(m, 400000000);
    t->work = w;
    t->in_flight = 1;
    m->in_flight++;
    m->works_left -= m->works_left > 0;
    engine_submit(m->engine, &t->work);
}

static void submit_something(slot *t)
{
    simulation *m = t->owner;
    const token_id *prompt = m->prompts[below(m, 4)];
    int32_t count = below(m, 3) ? (int32_t)below(m, 60) : (int32_t)below(m, 400);
    for (int32_t i = 0; i < count; i++)
        t->input[i] = prompt[t->length + i < N_CONTEXT ? t->length + i : i];
    switch (below(m, 8)) {
    case 0:
    case 1:
    case 2: submit(t, (work){.kind = WORK_FEED, .tokens = t->input, .n_tokens = count}); break;
    case 3:
    case 4: submit(t, (work){.kind = WORK_STEP, .token = below(m, 2) ? -1 : t->input[0]}); break;
    case 5:
        if (below(m, 4) == 0) {
            submit(t, (work){.kind = WORK_EMBED,
                             .tokens = t->input,
                             .n_tokens = count,
                             .embedding = t->embedding,
                             .pooling = (pooling)below(m, 3)});
            break;
        }
        /* fall through */
    default:
        submit(t, (work){.kind = WORK_GENERATE,
                         .generate = {.max_tokens = 1 + (int32_t)below(m, 60),
                                      .ignore_eos = 1,
                                      .wake_every = below(m, 4) ? 0 : 7}});
    }
}

static void open_slot(slot *t)
{
    simulation *m = t->owner;
    realm_error error;
    session_options o = {.tenant = (uint32_t)below(m, N_TENANTS),
                         .priority = (priority)below(m, 3),
                         .n_context = N_CONTEXT,
                         .sampler = SAMPLER_OPTIONS_DEFAULT};
    t->length = 0;
    t->states[0] = 7;
    t->adapter = below(m, 4) ? -1 : (int32_t)below(m, N_ADAPTERS);
    if (session_open(&t->session, m->engine, &o, &error) != REALM_OK)
        t->session = NULL;
    else if (t->adapter >= 0)
        assert_int_equal(
            session_adapter(t->session, (adapter *)(void *)(uintptr_t)adapter_of(t), &error),
            REALM_OK);
}

static void fork_slot(const slot *parent)
{
    simulation *m = parent->owner;
    realm_error error;
    for (slot *t = m->slots; t < m->slots + N_SLOTS; t++)
        if (!t->session) {
            session *s;
            if (session_fork(&s, parent->session, &error) != REALM_OK)
                return;
            memcpy(t, parent, sizeof *t);
            t->session = s;
            return;
        }
}

static void close_slot(slot *t)
{
    session_close(t->session);
    if (t->in_flight)
        t->closing = 1; /* done still comes */
    else
        t->session = NULL;
}

static void change_settings(simulation *m)
{
    realm_error error;
    int32_t whole = kv_pages_for(N_CONTEXT);
    engine_tenant settings = {.weight = 0.25f * (float)(1 + below(m, 16)),
                              .max_sessions = below(m, 2) ? 0 : 1 + (int32_t)below(m, 8),
                              .max_pages = below(m, 2) ? 0 : whole + (int32_t)below(m, 20)};
    assert_int_equal(engine_tenant_set(m->engine, (uint32_t)below(m, N_TENANTS), &settings, &error),
                     REALM_OK);
}

/* engine_forget_adapter without its waiting, which would be for this thread. */
static void forget_adapter(simulation *m)
{
    if (!atomic_load(&m->forgotten))
        return;
    atomic_store(&m->forgotten, 0);
    m->forget = (command){.kind = COMMAND_FORGET,
                          .adapter = &m->adapters[below(m, N_ADAPTERS)],
                          .finished = &m->forgotten};
    queue_put(&m->engine->queue, &m->forget.node);
}

static void act_on(slot *t)
{
    simulation *m = t->owner;
    realm_error error;
    if (t->closing)
        return;
    if (!t->session) {
        open_slot(t);
    } else if (below(m, 25) == 0) {
        close_slot(t);
    } else if (t->in_flight) {
        if (below(m, 150) == 0)
            session_cancel(t->session);
    } else if (below(m, 10) == 0) {
        fork_slot(t);
    } else if (below(m, 10) == 0) {
        t->length = (int32_t)below(m, (uint64_t)t->length + 1);
        assert_int_equal(session_truncate(t->session, t->length, &error), REALM_OK);
    } else {
        submit_something(t);
    }
}

static void act(simulation *m)
{
    if (m->works_left == 0 || m->ending) {
        m->ending = 1;
        if (m->in_flight == 0)
            atomic_store(&m->finished, 1);
        return;
    }
    do {
        if (below(m, 300) == 0)
            change_settings(m);
        if (below(m, 1000) == 0)
            forget_adapter(m);
        for (uint64_t n = below(m, 4); n > 0; n--)
            act_on(&m->slots[below(m, N_SLOTS)]);
    } while (m->in_flight == 0);
}

static void on_forward(fake *f)
{
    simulation *m = f->context;
    starving = 0;
    assert_true(m->iterations_since_done++ < 20000); /* something always comes to its end */
    act(m);
    starving = !m->ending && below(m, 100) == 0; /* until the next iteration */
}

static void *start(void *context)
{
    simulation *m = context;
    slot *t = &m->slots[0];
    open_slot(t);
    t->input[0] = 1;
    submit(t, (work){.kind = WORK_FEED, .tokens = t->input, .n_tokens = 1});
    return NULL;
}

static uint64_t wanted(const char *variable, uint64_t otherwise)
{
    const char *text = getenv(variable);
    return text ? strtoull(text, NULL, 10) : otherwise;
}

static void assert_accounts_are_empty(engine *e)
{
    engine_stats stats;
    size_t position = 0;
    for (int i = 0; i < 60000; i++) { /* closes are in the queue */
        engine_stats_get(e, &stats);
        if (stats.pages_used == 0 && stats.sessions == 0 && stats.waiting == 0)
            break;
        usleep(1000);
    }
    assert_int_equal(stats.pages_used, 0);
    assert_int_equal(stats.sessions, 0);
    pthread_mutex_lock(&e->registry);
    for (const map_slot *it; (it = map_next(&e->tenants, &position)) != NULL;) {
        const tenant_entry *t = it->value;
        assert_int_equal(t->scheduled.account.n_pages, 0);
        assert_int_equal(t->scheduled.n_active, 0);
        assert_int_equal(t->n_sessions, 0);
    }
    pthread_mutex_unlock(&e->registry);
}

static void hours_of_random_load_lose_no_page_and_end_every_work(void **state)
{
    (void)state;
    uint64_t seed = wanted("REALM_SIMULATION_SEED", 1);
    uint64_t n_works = wanted("REALM_SIMULATION_WORKS", unit_is_emulated() ? 2000 : 20000);
    simulation *m = calloc(1, sizeof *m);
    fake f = {.most_host_pages = N_HOST_PAGES,
              .gives_digests = 1,
              .leaves_rows = 1,
              .step_ns = 10000000,
              .row_ns = 500000,
              .pass = virtual_pass,
              .on_forward = on_forward,
              .context = m};
    engine_options options = {.kv_bytes = N_PAGES,
                              .kv_host_bytes = N_HOST_PAGES + 10, /* that are not there */
                              .max_sessions = N_SLOTS - 2,
                              .gather_us = 20};
    engine_stats stats;
    m->engine = fake_engine(&f, &options);
    m->works_left = n_works;
    atomic_init(&m->forgotten, 1);
    rng_init(&m->random, seed);
    for (int i = 0; i < 4; i++)
        for (int32_t j = 0; j < N_CONTEXT; j++)
            m->prompts[i][j] = (token_id)(i < 2 && j < 100 ? j % 250 : (int32_t)below(m, 250));
    for (int i = 0; i < N_SLOTS; i++)
        m->slots[i].owner = m;
    m->began_ns = clock_ns();
    start(m);
    while (!atomic_load(&m->finished))
        usleep(1000);
    double hours = (double)(clock_ns() - m->began_ns) / 3.6e12;
    for (slot *t = m->slots; t < m->slots + N_SLOTS; t++)
        if (t->session)
            session_close(t->session);
    assert_accounts_are_empty(m->engine);
    engine_stats_get(m->engine, &stats);
    print_message(
        "seed %llu: %llu works (%llu done, %llu cancelled, %llu late, %llu without pages, "
        "%llu without memory), %llu iterations, %llu preemptions, %llu pages saved and %llu loaded, "
        "%.1f hours, digest %016llx\n",
        (unsigned long long)seed, (unsigned long long)m->done, (unsigned long long)m->by_status[0],
        (unsigned long long)m->by_status[-REALM_CANCELLED & 63],
        (unsigned long long)m->by_status[-REALM_DEADLINE & 63],
        (unsigned long long)m->by_status[-REALM_QUOTA & 63],
        (unsigned long long)m->by_status[-REALM_NO_MEMORY & 63],
        (unsigned long long)stats.iterations, (unsigned long long)stats.preemptions,
        (unsigned long long)stats.pages_saved_total, (unsigned long long)stats.pages_loaded_total,
        hours, (unsigned long long)m->digest);
    assert_true(m->by_status[0] > m->done / 2);
    assert_true(stats.pages_saved_total > 0 && stats.pages_loaded_total > 0);
    assert_int_equal(stats.pages_saved, 0);
    assert_true(stats.preemptions > 0 && m->by_status[-REALM_NO_MEMORY & 63] > 0);
    engine_close(m->engine);
    free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hours_of_random_load_lose_no_page_and_end_every_work),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
