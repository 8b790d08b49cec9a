/* tests/unit/engine/engine_test.c: the engine on a fake device: every logit and token is compared
 * with what the sequence's tokens alone say it must be. */
#include "unit/engine/fake_device.h"

#include <math.h>
#include <sched.h>
#include <unistd.h>

#include "base/rng.h"
#include "engine/stops.h"

typedef struct collected {
    char text[4096];
    size_t size;
    token_id ids[1024];
    float logprobs[1024];
    token_logit top[1024][4];
    int32_t count, stop_after;
} collected;

static int collect(work *w, const generated_token *token)
{
    collected *c =
        (collected *)(void *)w->embedding; /* generations have none: the test's pointer */
    memcpy(c->text + c->size, token->text, token->text_size);
    c->size += token->text_size;
    c->text[c->size] = 0;
    if (token->id < 0)
        return 0;
    c->logprobs[c->count] = token->logprob;
    for (int32_t i = 0; i < token->n_top && i < 4; i++)
        c->top[c->count][i] = token->top[i];
    c->ids[c->count++] = token->id;
    return c->stop_after > 0 && c->count >= c->stop_after;
}

static session *open_session(engine *e, uint32_t tenant)
{
    session *s = NULL;
    realm_error error;
    session_options o = {
        .tenant = tenant, .priority = PRIORITY_NORMAL, .sampler = SAMPLER_OPTIONS_DEFAULT};
    assert_status(session_open(&s, e, &o, &error), REALM_OK, error);
    return s;
}

static realm_status feed(session *s, const token_id *tokens, int32_t count)
{
    work w = {.kind = WORK_FEED, .session = s, .tokens = tokens, .n_tokens = count};
    return engine_run(session_engine(s), &w);
}

static int32_t feed_cached(session *s, const token_id *tokens, int32_t count)
{
    work w = {.kind = WORK_FEED, .session = s, .tokens = tokens, .n_tokens = count};
    assert_status(engine_run(session_engine(s), &w), REALM_OK, w.error);
    return w.n_cached;
}

static token_id step(session *s, token_id token)
{
    work w = {.kind = WORK_STEP, .session = s, .token = token};
    assert_status(engine_run(session_engine(s), &w), REALM_OK, w.error);
    return w.token;
}

static work generation(session *s, int32_t max_tokens, collected *c)
{
    memset(c, 0, sizeof *c);
    return (work){.kind = WORK_GENERATE,
                  .session = s,
                  .on_token = collect,
                  .embedding = (float *)(void *)c,
                  .generate = {.max_tokens = max_tokens, .ignore_eos = 1}};
}

static void fill_tokens(token_id *tokens, int32_t count, uint64_t seed)
{
    rng r;
    rng_init(&r, seed);
    for (int32_t i = 0; i < count; i++)
        tokens[i] = (token_id)(rng_next(&r) % 256);
}

static token_id greedy(const token_id *tokens, int32_t count)
{
    uint64_t state = fake_state(tokens, count, NULL);
    token_id best = 0;
    for (token_id v = 1; v < FAKE_VOCAB; v++)
        if (fake_logit(state, v) > fake_logit(state, best))
            best = v;
    return best;
}

static void assert_logits(session *s)
{
    const float *logits = session_logits(s);
    uint64_t state = fake_state(session_tokens(s), session_length(s), NULL);
    assert_non_null(logits);
    for (int32_t v = 0; v < FAKE_VOCAB; v++)
        if (logits[v] != fake_logit(state, v))
            fail_msg("logit %d is %g, not %g", v, (double)logits[v], (double)fake_logit(state, v));
}

/* Generated tokens are those that the sequence's own arithmetic gives. */
static void assert_greedy(session *s, int32_t from)
{
    for (int32_t i = from; i < session_length(s); i++)
        assert_int_equal(session_tokens(s)[i], greedy(session_tokens(s), i));
}

static void prompts_are_cut_into_chunks_and_end_with_the_logits_of_the_last_token(void **state)
{
    (void)state;
    fake f = {0};
    engine *e = fake_engine(&f, NULL);
    token_id tokens[1000];
    fill_tokens(tokens, 1000, 1);
    for (int32_t count = 1; count <= 1000; count = count * 3 + 1) {
        session *s = open_session(e, 1);
        assert_int_equal(feed(s, tokens + 1000 - count, count), REALM_OK);
        assert_int_equal(session_length(s), count);
        assert_logits(s);
        assert_int_equal(feed(s, tokens, 5), REALM_OK);
        assert_logits(s);
        session_close(s);
    }
    assert_true(f.max_rows_seen <= 128);
    engine_close(e);
}

static void steps_append_given_or_sampled_tokens(void **state)
{
    (void)state;
    fake f = {0};
    engine *e = fake_engine(&f, NULL);
    session *s = open_session(e, 1);
    token_id tokens[40];
    fill_tokens(tokens, 40, 2);
    assert_int_equal(feed(s, tokens, 40), REALM_OK);
    for (int i = 0; i < 70; i++) {
        token_id expected = i % 2 ? greedy(session_tokens(s), session_length(s)) : i;
        assert_int_equal(step(s, i % 2 ? -1 : i), expected);
        assert_logits(s);
    }
    assert_int_equal(session_length(s), 110);
    session_close(s);
    engine_close(e);
}

static void generation_gives_the_model_s_tokens_and_goes_on_after_waking(void **state)
{
    (void)state;
    fake f = {0};
    engine *e = fake_engine(&f, NULL);
    session *s = open_session(e, 1);
    token_id prompt[3] = {5, 6, 7};
    collected c;
    feed(s, prompt, 3);
    work w = generation(s, 50, &c);
    w.generate.wake_every = 20;
    assert_status(engine_run(e, &w), REALM_OK, w.error);
    assert_int_equal(w.finish, FINISH_WAKE);
    assert_int_equal(w.n_generated, 20);
    assert_logits(s);
    assert_status(engine_run(e, &w), REALM_OK, w.error);
    assert_int_equal(w.finish, FINISH_WAKE);
    assert_status(engine_run(e, &w), REALM_OK, w.error);
    assert_int_equal(w.finish, FINISH_LENGTH);
    assert_int_equal(w.n_generated, 10);
    assert_int_equal(c.count, 50);
    assert_int_equal(session_length(s), 53);
    assert_greedy(s, 3);
    assert_null(session_logits(s)); /* nobody has asked for what comes after the last token */
    assert_int_equal(feed(s, NULL, 0), REALM_OK);
    assert_logits(s);
    session_close(s);
    engine_close(e);
}

static void generation_ends_at_eos_and_on_request(void **state)
{
    (void)state;
    fake f = {0};
    engine *e = fake_engine(&f, NULL);
    session *s = open_session(e, 1);
    token_id prompt[1] = {9}, eos = FAKE_EOS;
    float bias = 100;
    collected c;
    realm_error error;
    feed(s, prompt, 1);
    work w = generation(s, 50, &c);
    c.stop_after = 7;
    w.generate.ignore_eos = 0;
    assert_status(engine_run(e, &w), REALM_OK, w.error);
    assert_int_equal(w.finish, FINISH_STOP);
    assert_int_equal(c.count, 7);
    assert_status(sampler_bias(session_sampler(s), &eos, &bias, 1, &error), REALM_OK, error);
    w = generation(s, 50, &c);
    w.generate.ignore_eos = 0;
    assert_status(engine_run(e, &w), REALM_OK, w.error);
    assert_int_equal(w.finish, FINISH_STOP);
    assert_int_equal(c.count, 0);
    assert_int_equal(w.n_generated, 0);
    assert_int_equal(session_length(s), 8);
    session_close(s);
    engine_close(e);
}

static int afford(work *w)
{
    return ((collected *)(void *)w->embedding)->count < 12;
}

/* A token that may not be appended is not handed out either, and the model's own end needs no leave. */
static void generation_ends_where_no_token_may_be_appended(void **state)
{
    (void)state;
    fake f = {0};
    engine *e = fake_engine(&f, NULL);
    session *s = open_session(e, 1);
    token_id prompt[1] = {9}, eos = FAKE_EOS;
    float bias = 100;
    collected c;
    realm_error error;
    feed(s, prompt, 1);
    work w = generation(s, 50, &c);
    w.may_append = afford;
    assert_status(engine_run(e, &w), REALM_OK, w.error);
    assert_int_equal(w.finish, FINISH_LENGTH);
    assert_int_equal(w.n_generated, 12);
    assert_int_equal(c.count, 12);
    assert_int_equal(session_length(s), 13);
    assert_greedy(s, 1);
    assert_status(sampler_bias(session_sampler(s), &eos, &bias, 1, &error), REALM_OK, error);
    w = generation(s, 50, &c);
    c.count = 12;
    w.may_append = afford;
    w.generate.ignore_eos = 0;
    assert_status(engine_run(e, &w), REALM_OK, w.error);
    assert_int_equal(w.finish, FINISH_STOP);
    assert_int_equal(w.n_generated, 0);
    session_close(s);
    engine_close(e);
}

/* The first token may be a control token, or the beginning of a character. */
static void no_text_holds_no_stop_string(void **state)
{
    (void)state;
    const char *stops[] = {"a"};
    stops_result none = stops_scan(stops, 1, NULL, 0);
    assert_int_equal(none.found, 0);
    assert_int_equal(none.emit, 0);
}

/* The text that generation emits is checked for every stop string cut out of what it would be. */
static void no_part_of_a_stop_string_is_ever_emitted(void **state)
{
    (void)state;
    fake f = {0};
    static char pieces[FAKE_VOCAB][5];
    for (int v = 0; v < FAKE_VOCAB; v++) { /* few letters, so that beginnings of stops abound */
        for (int i = 0; i < 1 + v % 4; i++)
            pieces[v][i] = (char)('a' + (v >> i & 1));
        f.pieces[v] = pieces[v];
    }
    engine *e = fake_engine(&f, NULL);
    token_id prompt[1] = {9};
    static collected all, cut;
    session *s = open_session(e, 1);
    feed(s, prompt, 1);
    work w = generation(s, 100, &all);
    engine_run(e, &w);
    session_close(s);
    for (size_t size = 1; size < 12; size++) {
        for (size_t at = 0; at + size < all.size; at += 5) {
            char stop[16] = {0};
            memcpy(stop, all.text + at, size);
            const char *stops[2] = {"xyz", stop};
            s = open_session(e, 1);
            feed(s, prompt, 1);
            w = generation(s, 100, &cut);
            w.generate.stops = stops;
            w.generate.n_stops = 2;
            assert_status(engine_run(e, &w), REALM_OK, w.error);
            assert_int_equal(w.finish, FINISH_STOP);
            assert_int_equal(cut.size, strstr(all.text, stop) - all.text);
            assert_memory_equal(cut.text, all.text, cut.size);
            session_close(s);
        }
    }
    engine_close(e);
}

static void held_text_comes_out_when_the_length_ends_generation(void **state)
{
    (void)state;
    fake f = {0};
    engine *e = fake_engine(&f, NULL);
    session *s = open_session(e, 1);
    const char *stops[1];
    static collected c;
    token_id prompt[1] = {9};
    for (int v = 0; v < FAKE_VOCAB; v++)
        f.pieces[v] = "ab";
    feed(s, prompt, 1);
    work w = generation(s, 6, &c);
    stops[0] = "babababababababababac";
    w.generate.stops = stops;
    w.generate.n_stops = 1;
    assert_status(engine_run(e, &w), REALM_OK, w.error);
    assert_int_equal(w.finish, FINISH_LENGTH);
    assert_string_equal(c.text, "abababababab");
    session_close(s);
    engine_close(e);
}

static void logprobs_are_those_of_the_untempered_model(void **state)
{
    (void)state;
    fake f = {0};
    engine *e = fake_engine(&f, NULL);
    session *s = NULL;
    realm_error error;
    session_options o = {
        .tenant = 1, .priority = PRIORITY_NORMAL, .sampler = SAMPLER_OPTIONS_DEFAULT};
    o.sampler.temperature = 3;
    o.sampler.seed = 5;
    assert_status(session_open(&s, e, &o, &error), REALM_OK, error);
    token_id prompt[2] = {1, 2};
    static collected c;
    feed(s, prompt, 2);
    work w = generation(s, 20, &c);
    w.generate.want_logprobs = 1;
    w.generate.n_top_logprobs = 4;
    assert_status(engine_run(e, &w), REALM_OK, w.error);
    for (int32_t i = 0; i < 20; i++) {
        uint64_t at = fake_state(session_tokens(s), 2 + i, NULL);
        double sum = 0;
        for (int32_t v = 0; v < FAKE_VOCAB; v++)
            sum += exp((double)fake_logit(at, v));
        assert_float_equal(c.logprobs[i], (double)fake_logit(at, c.ids[i]) - log(sum), 1e-5);
        assert_int_equal(c.top[i][0].id, greedy(session_tokens(s), 2 + i));
        for (int j = 0; j < 4; j++)
            assert_float_equal(c.top[i][j].value, (double)fake_logit(at, c.top[i][j].id) - log(sum),
                               1e-5);
        assert_true(c.top[i][0].value >= c.top[i][1].value);
    }
    session_close(s);
    engine_close(e);
}

static void forks_share_pages_until_one_writes(void **state)
{
    (void)state;
    fake f = {0};
    engine *e = fake_engine(&f, NULL);
    realm_error error;
    engine_stats stats;
    token_id tokens[200];
    fill_tokens(tokens, 200, 3);
    session *s = open_session(e, 1), *a, *b, *c;
    feed(s, tokens, 70);
    assert_status(session_fork(&a, s, &error), REALM_OK, error);
    assert_status(session_fork(&b, a, &error), REALM_OK, error);
    assert_int_equal(session_length(b), 70);
    assert_logits(b);
    step(s, 1);
    step(a, 2);
    engine_stats_get(e, &stats);
    step(b, 3);
    assert_logits(s);
    assert_logits(a);
    assert_logits(b);
    assert_true(stats.pages_used <=
                5); /* two full pages in common, the third twice or three times */
    assert_status(session_truncate(b, 40, &error), REALM_OK, error);
    assert_null(session_logits(b));
    assert_status(session_fork(&c, b, &error), REALM_OK, error);
    session_close(b);
    feed(c, tokens + 100, 90);
    assert_logits(c);
    session_close(s);
    step(a, 4);
    assert_logits(a);
    session_close(a);
    session_close(c);
    engine_close(e);
}

static void truncated_sessions_go_on_as_if_the_rest_had_never_been(void **state)
{
    (void)state;
    fake f = {0};
    engine *e = fake_engine(&f, NULL);
    realm_error error;
    token_id tokens[100];
    fill_tokens(tokens, 100, 4);
    session *s = open_session(e, 1);
    feed(s, tokens, 100);
    assert_status(session_truncate(s, 100, &error), REALM_OK, error);
    assert_logits(s);
    for (int32_t length = 99; length > 0; length -= 7) {
        assert_status(session_truncate(s, length, &error), REALM_OK, error);
        if (length % 2)
            feed(s, NULL, 0);
        else
            step(s, length);
        assert_logits(s);
    }
    assert_int_equal(session_truncate(s, 1000, &error), REALM_INVALID);
    session_close(s);
    engine_close(e);
}

/* ---- what goes wrong --------------------------------------------------------------------------- */

static void bad_works_come_back_with_a_sentence_and_change_nothing(void **state)
{
    (void)state;
    fake f = {0};
    engine *e = fake_engine(&f, NULL);
    session *s = open_session(e, 1);
    token_id good[3] = {1, 2, 3}, bad[2] = {1, FAKE_VOCAB};
    static token_id many[5000];
    assert_int_equal(feed(s, NULL, 0), REALM_INVALID);
    work empty = {.kind = WORK_STEP, .session = s, .token = -1};
    assert_int_equal(engine_run(e, &empty), REALM_INVALID);
    assert_holds(empty.error.message, "empty");
    feed(s, good, 3);
    assert_int_equal(feed(s, bad, 2), REALM_INVALID);
    assert_int_equal(feed(s, many, 5000), REALM_CONTEXT_FULL);
    work unknown = {.kind = (work_kind)77, .session = s};
    assert_int_equal(engine_run(e, &unknown), REALM_INVALID);
    static collected c;
    work w = generation(s, 0, &c);
    assert_int_equal(engine_run(e, &w), REALM_INVALID);
    const char *empty_stop[1] = {""};
    w = generation(s, 5, &c);
    w.generate.stops = empty_stop;
    w.generate.n_stops = 1;
    assert_int_equal(engine_run(e, &w), REALM_INVALID);
    assert_int_equal(session_length(s), 3);
    assert_logits(s);
    session_close(s);
    engine_close(e);
}

static void a_full_context_ends_generation(void **state)
{
    (void)state;
    fake f = {0};
    engine *e = fake_engine(&f, NULL);
    session *s = NULL;
    realm_error error;
    session_options o = {.tenant = 1, .n_context = 40, .sampler = SAMPLER_OPTIONS_DEFAULT};
    assert_status(session_open(&s, e, &o, &error), REALM_OK, error);
    token_id tokens[41] = {0};
    static collected c;
    assert_int_equal(feed(s, tokens, 41), REALM_CONTEXT_FULL);
    feed(s, tokens, 30);
    work w = generation(s, 100, &c);
    assert_status(engine_run(e, &w), REALM_OK, w.error);
    assert_int_equal(w.finish, FINISH_LENGTH);
    assert_int_equal(session_length(s), 40);
    assert_greedy(s, 30);
    w = generation(s, 100, &c);
    assert_int_equal(engine_run(e, &w), REALM_CONTEXT_FULL);
    session_close(s);
    engine_close(e);
}

static void tenants_cannot_pass_their_sessions_and_pages(void **state)
{
    (void)state;
    fake f = {0};
    engine_options options = {.max_sessions = 4, .gather_us = -1};
    engine *e = fake_engine(&f, &options);
    realm_error error;
    engine_tenant limits = {.weight = 1, .max_sessions = 2, .max_pages = 3};
    assert_status(engine_tenant_set(e, 7, &limits, &error), REALM_OK, error);
    limits.weight = 0;
    assert_int_equal(engine_tenant_set(e, 7, &limits, &error), REALM_INVALID);
    session_options o = {.tenant = 7, .sampler = SAMPLER_OPTIONS_DEFAULT};
    session *a, *b, *c, *others[2];
    assert_status(session_open(&a, e, &o, &error), REALM_OK, error);
    assert_status(session_open(&b, e, &o, &error), REALM_OK, error);
    assert_int_equal(session_open(&c, e, &o, &error), REALM_QUOTA);
    assert_int_equal(session_fork(&c, a, &error), REALM_QUOTA);
    o.tenant = 8;
    assert_status(session_open(&others[0], e, &o, &error), REALM_OK, error);
    assert_status(session_open(&others[1], e, &o, &error), REALM_OK, error);
    assert_int_equal(session_open(&c, e, &o, &error), REALM_QUOTA);
    static token_id tokens[97];
    assert_int_equal(feed(a, tokens, 97), REALM_QUOTA);
    assert_int_equal(feed(a, tokens, 96), REALM_OK);
    assert_int_equal(feed(a, tokens, 1), REALM_QUOTA);
    assert_logits(a);
    fill_tokens(tokens, 97, 8);
    assert_int_equal(feed(b, tokens, 60), REALM_OK); /* a's pages go: the tenant has only three */
    assert_logits(b);
    assert_int_equal(session_truncate(a, 90, &error), REALM_OK);
    assert_int_equal(feed(a, tokens, 2), REALM_OK);
    assert_logits(a);
    assert_int_equal(feed(others[0], tokens, 97), REALM_OK);
    session_close(a);
    session_close(b);
    session_close(others[0]);
    session_close(others[1]);
    engine_close(e);
}

typedef struct pending {
    work work;
    atomic_int done;
} pending;

static void mark_done(work *w)
{
    atomic_store(&((pending *)w->context)->done, 1);
}

static void submit(engine *e, pending *p)
{
    atomic_store(&p->done, 0);
    p->work.done = mark_done;
    p->work.context = p;
    engine_submit(e, &p->work);
}

static void wait_for(pending *p)
{
    while (!atomic_load(&p->done))
        sched_yield();
}

static void cancelling_ends_a_work_within_an_iteration(void **state)
{
    (void)state;
    fake f = {.step_ns = 10000000}; /* forty seconds would be needed until the context is full */
    engine *e = fake_engine(&f, NULL);
    session *s = open_session(e, 1);
    static token_id tokens[4000];
    static collected c;
    fill_tokens(tokens, 4000, 5);
    feed(s, tokens, 10);
    pending p = {.work = generation(s, 100000, &c)};
    p.work.on_token = NULL;
    submit(e, &p);
    pending busy = {.work = {.kind = WORK_FEED, .session = s, .tokens = tokens, .n_tokens = 1}};
    submit(e, &busy);
    wait_for(&busy);
    assert_int_equal(busy.work.status, REALM_BUSY);
    session_cancel(s);
    wait_for(&p);
    assert_int_equal(p.work.status, REALM_CANCELLED);
    session_cancel(s); /* nothing in flight: means nothing */
    assert_int_equal(feed(s, tokens, 3), REALM_OK);
    int32_t length = session_length(s);
    f.row_ns = 2000000; /* and six for this */
    pending q = {.work = {.kind = WORK_FEED, .session = s, .tokens = tokens, .n_tokens = 3000}};
    submit(e, &q);
    session_cancel(s);
    wait_for(&q);
    f.row_ns = 0;
    assert_int_equal(q.work.status, REALM_CANCELLED);
    assert_int_equal(session_length(s), length); /* a feed is whole or not at all */
    assert_logits(s);
    assert_int_equal(feed(s, tokens + 50, 500), REALM_OK);
    assert_logits(s);
    session_close(s);
    engine_close(e);
}

static void deadlines_end_works(void **state)
{
    (void)state;
    fake f = {.step_ns = 100000};
    engine *e = fake_engine(&f, NULL);
    session *s = open_session(e, 1);
    token_id tokens[3] = {1, 2, 3};
    static collected c;
    feed(s, tokens, 3);
    work w = generation(s, 100000, &c);
    w.on_token = NULL;
    w.deadline_ns = clock_ns() + 60000000;
    assert_int_equal(engine_run(e, &w), REALM_DEADLINE);
    assert_true(w.done_ns >= w.deadline_ns && w.done_ns < w.deadline_ns + A_MINUTE_NS);
    assert_true(w.started_ns >= w.submitted_ns && w.first_token_ns >= w.submitted_ns);
    w = (work){.kind = WORK_FEED, .session = s, .tokens = tokens, .n_tokens = 3, .deadline_ns = 1};
    assert_int_equal(engine_run(e, &w), REALM_DEADLINE);
    session_close(s);
    engine_close(e);
}

static void the_first_token_s_time_begins_with_the_prompt(void **state)
{
    (void)state;
    fake f = {.step_ns = 2000000};
    engine *e = fake_engine(&f, NULL);
    session *s = open_session(e, 1);
    token_id tokens[3] = {1, 2, 3};
    static collected c;
    work feed = {.kind = WORK_FEED, .session = s, .tokens = tokens, .n_tokens = 3};
    work more = feed;
    assert_int_equal(engine_run(e, &feed), REALM_OK);
    assert_int_equal(engine_run(e, &more), REALM_OK);
    work w = generation(s, 2, &c);
    assert_int_equal(engine_run(e, &w), REALM_OK);
    assert_int_equal(w.prompt_submitted_ns, feed.submitted_ns);
    assert_int_equal(w.prompt_started_ns, feed.started_ns);
    assert_true(w.first_token_ns - w.prompt_submitted_ns >= 2 * f.step_ns);
    w = generation(s, 2, &c); /* no prompt of its own */
    assert_int_equal(engine_run(e, &w), REALM_OK);
    assert_int_equal(w.prompt_submitted_ns, w.submitted_ns);
    session_close(s);
    engine_close(e);
}

static void closing_a_session_or_the_engine_ends_what_is_in_flight(void **state)
{
    (void)state;
    fake f = {.step_ns = 10000000}; /* none comes to its end within half a minute */
    engine *e = fake_engine(&f, NULL);
    token_id tokens[3] = {1, 2, 3};
    static collected c;
    pending p[3];
    session *s[3];
    engine_stats stats;
    for (int i = 0; i < 3; i++) {
        s[i] = open_session(e, 1);
        feed(s[i], tokens, 3);
        p[i].work = generation(s[i], 100000, &c);
        p[i].work.on_token = NULL;
        submit(e, &p[i]);
    }
    session_close(s[0]);
    wait_for(&p[0]);
    assert_int_equal(p[0].work.status, REALM_CANCELLED);
    session_close(s[1]);
    engine_stats_get(e, &stats);
    assert_int_equal(stats.sessions, 1);
    engine_close(e);
    wait_for(&p[1]);
    wait_for(&p[2]);
    assert_int_equal(p[2].work.status, REALM_CANCELLED);
}

/* ---- pages run out ----------------------------------------------------------------------------- */

static void preempted_sessions_give_the_same_tokens(void **state)
{
    (void)state;
    fake f = {0};
    engine_options options = {.kv_bytes = 12, .gather_us = -1}; /* twelve pages: 384 tokens */
    engine *e = fake_engine(&f, &options);
    static collected c[6];
    pending p[6];
    session *s[6];
    engine_stats stats;
    token_id tokens[6][50];
    for (int i = 0; i < 6; i++) {
        fill_tokens(tokens[i], 50, 10 + (uint64_t)i);
        s[i] = open_session(e, (uint32_t)i % 2);
        p[i].work = (work){.kind = WORK_FEED, .session = s[i], .tokens = tokens[i], .n_tokens = 50};
        submit(e, &p[i]);
    }
    for (int i = 0; i < 6; i++) {
        wait_for(&p[i]);
        assert_int_equal(p[i].work.status, REALM_OK);
        assert_logits(s[i]);
    }
    for (int i = 0; i < 6; i++) {
        p[i].work = generation(s[i], 150, &c[i]);
        submit(e, &p[i]);
    }
    for (int i = 0; i < 6; i++) {
        wait_for(&p[i]);
        assert_int_equal(p[i].work.status, REALM_OK);
        assert_int_equal(session_length(s[i]), 200);
        assert_greedy(s[i], 50);
        session_close(s[i]);
    }
    engine_stats_get(e, &stats);
    assert_true(stats.preemptions > 0);
    engine_close(e);
}

enum { DIGESTED = 8, DIGESTED_PROMPT = 30, DIGESTED_TOKENS = 120 };

static sampler_options digested_settings(int i)
{
    sampler_options o = SAMPLER_OPTIONS_DEFAULT;
    o.temperature = i % 4 == 0 ? 0 : i % 4 == 1 ? 1 : i % 4 == 2 ? 0.7f : 1.3f;
    o.top_p = i % 3 == 1 ? 0.9f : 1;
    o.min_p = i == 6 ? 0.05f : 0;
    o.top_k = i == 7 ? 20 : 0;
    o.frequency_penalty = i == 5 ? 0.5f : 0;
    o.seed = (uint64_t)i;
    return o;
}

/* Sessions that differ in how they choose, preempted, forked and changed on the way. */
static fake choose_in_crowd(int gives_digests, int leaves_rows, collected *c)
{
    fake f = {.gives_digests = gives_digests, .leaves_rows = leaves_rows};
    engine_options options = {.kv_bytes = 18, .gather_us = -1};
    engine *e = fake_engine(&f, &options);
    pending p[DIGESTED];
    session *s[DIGESTED];
    engine_stats stats;
    realm_error error;
    token_id tokens[DIGESTED_PROMPT];
    fill_tokens(tokens, DIGESTED_PROMPT, 12);
    for (int i = 0; i < DIGESTED; i++) {
        session_options o = {.tenant = (uint32_t)i % 2, .priority = PRIORITY_NORMAL};
        o.sampler = digested_settings(i);
        assert_status(session_open(&s[i], e, &o, &error), REALM_OK, error);
        assert_int_equal(feed(s[i], tokens, DIGESTED_PROMPT - i), REALM_OK);
        if (i == 3) { /* the logits of one are another's */
            session *fork;
            assert_status(session_fork(&fork, s[i], &error), REALM_OK, error);
            session_close(s[i]);
            s[i] = fork;
        }
        if (i == 2) { /* and their sums are of the temperature before */
            o.sampler.temperature = 1;
            assert_status(sampler_set(session_sampler(s[i]), &o.sampler, &error), REALM_OK, error);
        }
        p[i].work = generation(s[i], DIGESTED_TOKENS, &c[i]);
        p[i].work.generate.want_logprobs = i < 4;
        p[i].work.generate.n_top_logprobs = 4;
    }
    for (int i = 0; i < DIGESTED; i++)
        submit(e, &p[i]);
    for (int i = 0; i < DIGESTED; i++) {
        wait_for(&p[i]);
        assert_status(p[i].work.status, REALM_OK, p[i].work.error);
        session_close(s[i]);
    }
    engine_stats_get(e, &stats);
    assert_true(stats.preemptions > 0);
    engine_close(e);
    return f;
}

static void what_a_device_finds_in_rows_changes_no_choice(void **state)
{
    (void)state;
    static collected without[DIGESTED], with[DIGESTED];
    assert_int_equal(choose_in_crowd(0, 0, without).n_sums, 0);
    for (int leaves_rows = 0; leaves_rows < 2; leaves_rows++) {
        fake f = choose_in_crowd(1, leaves_rows, with);
        assert_true(f.n_sums >= 4 * (DIGESTED_TOKENS - 1)); /* the first four want some */
        /* And of the last four two never look at one. */
        assert_true(leaves_rows ? f.n_stayed >= 2 * (DIGESTED_TOKENS - 1) : f.n_stayed == 0);
        assert_true(leaves_rows ? f.n_read > 0 : f.n_read == 0);
        for (int i = 0; i < DIGESTED; i++) {
            assert_int_equal(with[i].count, DIGESTED_TOKENS);
            assert_memory_equal(with[i].ids, without[i].ids, sizeof with[i].ids);
            assert_memory_equal(with[i].logprobs, without[i].logprobs, sizeof with[i].logprobs);
            assert_memory_equal(with[i].top, without[i].top, sizeof with[i].top);
        }
    }
}

/* Each session is asked for its logits at another time: at once, when others have gone on, through a fork, after a
 * step that could not be. */
static void rows_that_stayed_are_brought_when_they_are_asked_for(void **state)
{
    (void)state;
    fake f = {.gives_digests = 1, .leaves_rows = 1};
    engine_options options = {.gather_us = -1};
    engine *e = fake_engine(&f, &options);
    realm_error error;
    session *s[6], *fork;
    token_id tokens[40];
    fill_tokens(tokens, 40, 5);
    for (int i = 0; i < 6; i++) {
        s[i] = open_session(e, 1);
        assert_int_equal(feed(s[i], tokens, 30 + i), REALM_OK);
        assert_true(i == 0 || session_logits_here(s[i - 1]) != NULL); /* the feed wrote over it */
        assert_null(session_logits_here(s[i]));
    }
    assert_int_equal(step(s[5], 3), 3);
    assert_null(session_logits_here(s[5]));
    uint64_t n_read = f.n_read;
    assert_status(session_fork(&fork, s[5], &error), REALM_OK, error);
    assert_logits(fork);
    assert_logits(s[5]);
    assert_int_equal(f.n_read, n_read + 1);
    step(s[5], 4);
    assert_non_null(session_logits_here(s[5])); /* who asked for one will ask for the next */
    for (int i = 0; i < 6; i++) {
        work wrong = {.kind = WORK_STEP, .session = s[i], .token = FAKE_VOCAB};
        assert_int_equal(engine_run(e, &wrong), REALM_INVALID);
        assert_logits(s[i]);
        token_id chosen = step(s[i], -1);
        assert_int_equal(chosen, greedy(session_tokens(s[i]), session_length(s[i]) - 1));
        assert_logits(s[i]);
        session_close(s[i]);
    }
    assert_logits(fork);
    session_close(fork);
    engine_close(e);
}

/* ---- the prefix cache -------------------------------------------------------------------------- */

static void a_prompt_s_second_use_is_spared_for_its_tenant_alone(void **state)
{
    (void)state;
    fake f = {0};
    engine *e = fake_engine(&f, NULL);
    static token_id tokens[1000];
    fill_tokens(tokens, 1000, 6);
    session *s = open_session(e, 1);
    assert_int_equal(feed_cached(s, tokens, 1000), 0);
    session *running = open_session(e, 1); /* while the first is still there */
    assert_int_equal(feed_cached(running, tokens, 1000), 992);
    assert_logits(running);
    session_close(s);
    session_close(running);
    s = open_session(e, 1); /* and when nobody is */
    uint64_t rows = f.n_rows;
    assert_int_equal(feed_cached(s, tokens, 960), 928); /* the last token is always computed */
    assert_int_equal(f.n_rows - rows, 32);
    assert_logits(s);
    assert_int_equal(feed_cached(s, tokens, 10), 0);
    assert_logits(s);
    session_close(s);
    s = open_session(e, 2);
    assert_int_equal(feed_cached(s, tokens, 1000), 0);
    assert_logits(s);
    session_close(s);
    s = open_session(e, 1);
    realm_error error;
    assert_status(session_adapter(s, (adapter *)(void *)&f, &error), REALM_OK, error);
    assert_int_equal(feed_cached(s, tokens, 1000), 0);
    assert_int_equal(session_adapter(s, NULL, &error), REALM_BUSY);
    session_close(s);
    for (int32_t spared = 992; spared >= 0; spared -= 992) {
        s = open_session(e, 1);
        session_adapter(s, (adapter *)(void *)&f, &error);
        assert_int_equal(feed_cached(s, tokens, 1000), spared);
        session_close(s);
        engine_forget_adapter(e, (adapter *)(void *)&f);
    }
    engine_close(e);
}

static void embeddings_are_pooled_and_never_taken_from_the_cache(void **state)
{
    (void)state;
    fake f = {0};
    engine *e = fake_engine(&f, NULL);
    static token_id tokens[300];
    fill_tokens(tokens, 300, 7);
    for (int way = POOLING_MEAN; way <= POOLING_FIRST; way++) {
        float got[FAKE_EMBD];
        double expected[FAKE_EMBD] = {0};
        session *s = open_session(e, 1);
        work w = {.kind = WORK_EMBED,
                  .session = s,
                  .tokens = tokens,
                  .n_tokens = 300,
                  .pooling = (enum pooling)way,
                  .embedding = got};
        assert_status(engine_run(e, &w), REALM_OK, w.error);
        for (int32_t i = 0; i < 300; i++)
            for (int j = 0; j < FAKE_EMBD; j++)
                if (way == POOLING_MEAN || i == (way == POOLING_FIRST ? 0 : 299))
                    expected[j] += (double)fake_logit(fake_state(tokens, i + 1, NULL), j) /
                                   (way == POOLING_MEAN ? 300 : 1);
        for (int j = 0; j < FAKE_EMBD; j++)
            assert_float_equal(got[j], expected[j], 1e-6);
        assert_null(session_logits(s));
        feed(s, NULL, 0);
        assert_logits(s);
        session_close(s);
    }
    engine_close(e);
}

/* ---- everything at once ------------------------------------------------------------------------ */

typedef struct client {
    engine *engine;
    uint64_t seed;
    int rounds;
} client;

static int32_t pages_of(const device *d, const engine_options *options)
{
    realm_error error;
    engine *e;
    engine_stats stats;
    assert_status(engine_open_device(&e, d, options, &error), REALM_OK, error);
    engine_stats_get(e, &stats);
    engine_close(e);
    return stats.pages_total;
}

static void pages_take_a_third_of_what_is_free_or_what_was_asked_for(void **state)
{
    (void)state;
    fake f = {0};
    device d = fake_device(&f);
    d.n_context = 64 * KV_PAGE_TOKENS;
    d.free_bytes = 300 * d.page_bytes[0];
    d.usual_bytes = 100 * d.page_bytes[0];
    assert_int_equal(pages_of(&d, NULL), 100);
    assert_int_equal(pages_of(&d, &(engine_options){.kv_bytes = 7 * d.page_bytes[0]}), 7);
    /* one full session can use no more */
    assert_int_equal(pages_of(&d, &(engine_options){.max_sessions = 1}), 64);
    /* nothing free: a sentence that says what binds */
    realm_error error;
    engine *e;
    d.free_bytes = 2;
    d.usual_bytes = 0;
    strcpy(d.free_bound, "cgroup /box memory.max");
    assert_int_equal(engine_open_device(&e, &d, NULL, &error), REALM_NO_MEMORY);
    assert_holds(error.message, "cgroup /box memory.max");
}

static void random_work(client *c, rng *r, session **s, const token_id *tokens)
{
    realm_error error;
    static _Thread_local collected got;
    session *fork = NULL;
    int32_t count = (int32_t)(rng_next(r) % 150);
    pending p;
    switch (rng_next(r) % 6) {
    case 0:
        p.work = generation(*s, 1 + count % 20, &got);
        submit(c->engine, &p);
        if (count % 3 == 0)
            session_cancel(*s);
        wait_for(&p);
        break;
    case 1:
        if (session_length(*s) > 0)
            assert_int_equal(session_truncate(*s, count % session_length(*s), &error), REALM_OK);
        break;
    case 2:
        if (session_fork(&fork, *s, &error) == REALM_OK) {
            session_close(*s);
            *s = fork;
        }
        break;
    case 3:
        session_close(*s);
        *s = open_session(c->engine, (uint32_t)(rng_next(r) % 3));
        break;
    default:
        p.work = (work){
            .kind = WORK_FEED, .session = *s, .tokens = tokens + count % 7 * 3, .n_tokens = count};
        submit(c->engine, &p);
        if (count % 5 == 0)
            session_cancel(*s);
        wait_for(&p);
        if (p.work.status == REALM_OK)
            assert_non_null(session_digest(*s));
    }
    if (count % 4 && session_digest(*s)) /* else they stay where they are for a while */
        assert_logits(*s);
}

static void *run_client(void *context)
{
    client *c = context;
    token_id tokens[200];
    rng r;
    rng_init(&r, c->seed);
    fill_tokens(tokens, 200, 99);
    session *s = open_session(c->engine, (uint32_t)c->seed % 3);
    for (int i = 0; i < c->rounds; i++)
        random_work(c, &r, &s, tokens);
    session_close(s);
    return NULL;
}

static void many_threads_at_once_disturb_nobody_s_tokens(void **state)
{
    (void)state;
    fake f = {.gives_digests = 1, .leaves_rows = 1};
    engine_options options = {.kv_bytes = 40, .max_sessions = 64, .gather_us = -1};
    engine *e = fake_engine(&f, &options);
    pthread_t threads[6];
    client clients[6];
    for (int i = 0; i < 6; i++) {
        clients[i] = (client){e, 100 + (uint64_t)i, 300};
        pthread_create(&threads[i], NULL, run_client, &clients[i]);
    }
    for (int i = 0; i < 6; i++)
        pthread_join(threads[i], NULL);
    engine_stats stats;
    uint64_t until = clock_ns() + A_MINUTE_NS;
    for (engine_stats_get(e, &stats); stats.pages_used && clock_ns() < until;
         engine_stats_get(e, &stats))
        usleep(1000);
    assert_int_equal(stats.pages_used, 0);
    assert_int_equal(stats.sessions, 0);
    assert_true(f.n_read > 0 && f.n_read < f.n_stayed);
    engine_close(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prompts_are_cut_into_chunks_and_end_with_the_logits_of_the_last_token),
        cmocka_unit_test(steps_append_given_or_sampled_tokens),
        cmocka_unit_test(generation_gives_the_model_s_tokens_and_goes_on_after_waking),
        cmocka_unit_test(generation_ends_at_eos_and_on_request),
        cmocka_unit_test(generation_ends_where_no_token_may_be_appended),
        cmocka_unit_test(no_text_holds_no_stop_string),
        cmocka_unit_test(no_part_of_a_stop_string_is_ever_emitted),
        cmocka_unit_test(held_text_comes_out_when_the_length_ends_generation),
        cmocka_unit_test(logprobs_are_those_of_the_untempered_model),
        cmocka_unit_test(forks_share_pages_until_one_writes),
        cmocka_unit_test(truncated_sessions_go_on_as_if_the_rest_had_never_been),
        cmocka_unit_test(bad_works_come_back_with_a_sentence_and_change_nothing),
        cmocka_unit_test(a_full_context_ends_generation),
        cmocka_unit_test(tenants_cannot_pass_their_sessions_and_pages),
        cmocka_unit_test(cancelling_ends_a_work_within_an_iteration),
        cmocka_unit_test(deadlines_end_works),
        cmocka_unit_test(the_first_token_s_time_begins_with_the_prompt),
        cmocka_unit_test(closing_a_session_or_the_engine_ends_what_is_in_flight),
        cmocka_unit_test(preempted_sessions_give_the_same_tokens),
        cmocka_unit_test(what_a_device_finds_in_rows_changes_no_choice),
        cmocka_unit_test(rows_that_stayed_are_brought_when_they_are_asked_for),
        cmocka_unit_test(a_prompt_s_second_use_is_spared_for_its_tenant_alone),
        cmocka_unit_test(embeddings_are_pooled_and_never_taken_from_the_cache),
        cmocka_unit_test(pages_take_a_third_of_what_is_free_or_what_was_asked_for),
        cmocka_unit_test(many_threads_at_once_disturb_nobody_s_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
