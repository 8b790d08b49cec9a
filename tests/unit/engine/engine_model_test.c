/* tests/unit/engine/engine_model_test.c: the engine on a real backend with a tiny random model: what
 * a session gets does not depend, to the bit, on who runs beside it, on how its prompt was cut, on
 * lost pages or on the prefix cache; and what lists of operations may do to a session. */
#include "unit/unit.h"

#include <sched.h>
#include <stdatomic.h>
#include <unistd.h>

#include "engine/compute_list.h"
#include "engine/engine.h"
#include "support/test_device.h"
#include "support/tiny_model.h"

#define N_SESSIONS 8
#define N_PROMPT   90
#define N_ANSWER   60

typedef struct fixture {
    char path[64];
    backend *b;
    model *m;
} fixture;

static int open_fixture(void **state)
{
    static fixture f;
    realm_error error;
    const tiny_model tiny = {.architecture = "llama", .type = DTYPE_Q8_0, .seed = 3};
    const backend_cpu_options cpu = {.n_threads = 2};
    snprintf(f.path, sizeof f.path, "/tmp/realm_engine_test_XXXXXX");
    close(mkstemp(f.path));
    tiny_model_save(&tiny, f.path);
    assert_status(test_device_open(&f.b, &cpu, &error), REALM_OK, error);
    assert_status(model_open(&f.m, f.b, f.path, &(model_options){0}, &error), REALM_OK, error);
    *state = &f;
    return 0;
}

static int close_fixture(void **state)
{
    fixture *f = *state;
    model_close(f->m);
    f->b->table->close(f->b);
    return unlink(f->path);
}

static engine *open_engine(fixture *f, const engine_options *options)
{
    engine *e = NULL;
    realm_error error;
    assert_status(engine_open(&e, f->m, options, &error), REALM_OK, error);
    return e;
}

static session *open_session(engine *e, uint32_t tenant, uint64_t seed)
{
    session *s = NULL;
    realm_error error;
    session_options o = {
        .tenant = tenant, .priority = PRIORITY_NORMAL, .sampler = SAMPLER_OPTIONS_DEFAULT};
    o.sampler.temperature = 1;
    o.sampler.seed = seed;
    assert_status(session_open(&s, e, &o, &error), REALM_OK, error);
    return s;
}

static void fill_prompt(token_id *tokens, int32_t n)
{
    for (int32_t i = 0; i < N_PROMPT; i++)
        tokens[i] = (i * i * 7 + i * 13 + (i > 40 ? n * 29 : 0)) % 256;
}

typedef struct request {
    work work;
    session *session;
    token_id prompt[N_PROMPT];
    atomic_int done;
} request;

static void mark_done(work *w)
{
    atomic_store(&((request *)w->context)->done, 1);
}

static void submit(engine *e, request *r, work w)
{
    r->work = w;
    r->work.session = r->session;
    r->work.context = r;
    r->work.done = mark_done;
    atomic_store(&r->done, 0);
    engine_submit(e, &r->work);
}

static void wait_for(request *r)
{
    while (!atomic_load(&r->done))
        sched_yield();
    assert_status(r->work.status, REALM_OK, r->work.error);
}

typedef struct answer {
    token_id tokens[N_PROMPT + N_ANSWER];
    float logits[TINY_VOCAB];
} answer;

static void take_answer(request *r, answer *out)
{
    work flush = {.kind = WORK_FEED, .session = r->session};
    assert_status(engine_run(session_engine(r->session), &flush), REALM_OK, flush.error);
    assert_int_equal(session_length(r->session), N_PROMPT + N_ANSWER);
    memcpy(out->tokens, session_tokens(r->session), sizeof out->tokens);
    memcpy(out->logits, session_logits(r->session), sizeof out->logits);
    const float *peaks = session_digest(r->session)->peaks;
    assert_int_equal(peaks != NULL, model_gives_peaks(engine_model(session_engine(r->session))));
    for (int32_t i = 0; peaks && i < TINY_VOCAB; i++)
        assert_true(out->logits[i] <= peaks[i / PEAK_COLS]);
    session_close(r->session);
}

/* together: all at once; otherwise one after the other. */
static void answer_all(fixture *f, const engine_options *options, int together, answer *answers,
                       engine_stats *stats)
{
    static request requests[N_SESSIONS];
    engine *e = open_engine(f, options);
    for (int32_t i = 0; i < N_SESSIONS; i++) {
        request *r = &requests[i];
        fill_prompt(r->prompt, i);
        r->session = open_session(e, (uint32_t)i % 3, (uint64_t)i);
        submit(e, r, (work){.kind = WORK_FEED, .tokens = r->prompt, .n_tokens = N_PROMPT});
        if (!together)
            wait_for(r);
    }
    for (int32_t i = 0; i < N_SESSIONS; i++) {
        request *r = &requests[i];
        if (together)
            wait_for(r);
        submit(
            e, r,
            (work){.kind = WORK_GENERATE, .generate = {.max_tokens = N_ANSWER, .ignore_eos = 1}});
        if (!together)
            wait_for(r);
    }
    for (int32_t i = 0; i < N_SESSIONS; i++) {
        if (together)
            wait_for(&requests[i]);
        take_answer(&requests[i], &answers[i]);
    }
    engine_stats_get(e, stats);
    engine_close(e);
}

static void alone_in_a_batch_and_after_lost_pages_the_bits_are_the_same(void **state)
{
    fixture *f = *state;
    static answer alone[N_SESSIONS], other[N_SESSIONS];
    engine_stats stats;
    uint64_t page = model_kv_page_bytes(f->m, DTYPE_F16);
    const engine_options one = {.kv_bytes = 100 * page, .gather_us = -1};
    const engine_options many[] = {
        {.kv_bytes = 100 * page, .gather_us = -1},
        {.kv_bytes = 100 * page, .batch_tokens = 37, .gather_us = 0},
        {.kv_bytes = 14 * page, .batch_tokens = 64, .gather_us = -1, .kv_host_bytes = -1},
        {.kv_bytes = 14 * page, .batch_tokens = 64, .gather_us = -1, .kv_host_bytes = 100 * page},
    };
    answer_all(f, &one, 0, alone, &stats);
    for (size_t i = 0; i < 4; i++) {
        answer_all(f, &many[i], 1, other, &stats);
        assert_memory_equal(alone, other, sizeof alone);
        assert_int_equal(stats.preemptions > 0, i >= 2);
        assert_int_equal(stats.pages_loaded_total > 0, i == 3);
    }
}

static void steps_give_what_generate_gives(void **state)
{
    fixture *f = *state;
    static answer alone[N_SESSIONS];
    engine_stats stats;
    engine_options o = {.gather_us = -1, .kv_bytes = 100 * model_kv_page_bytes(f->m, DTYPE_F16)};
    answer_all(f, &o, 0, alone, &stats);
    engine *e = open_engine(f, &o);
    request r;
    fill_prompt(r.prompt, 2);
    r.session = open_session(e, 1, 2);
    submit(e, &r, (work){.kind = WORK_FEED, .tokens = r.prompt, .n_tokens = N_PROMPT});
    wait_for(&r);
    for (int32_t i = 0; i < N_ANSWER; i++) {
        submit(e, &r, (work){.kind = WORK_STEP, .token = -1});
        wait_for(&r);
        assert_int_equal(r.work.token, alone[2].tokens[N_PROMPT + i]);
    }
    assert_memory_equal(session_logits(r.session), alone[2].logits, sizeof alone[2].logits);
    session_close(r.session);
    engine_close(e);
}

/* ---- lists of operations ----------------------------------------------------------------------- */

typedef struct attention_list {
    compute_tensor q, k, v, out;
    compute_op ops[5];
    compute_list list;
} attention_list;

static realm_status attend(engine *e, session *s, attention_list *a, int32_t layer,
                           int32_t position)
{
    compute_op op = {.kind = COMPUTE_ATTENTION,
                     .out = &a->out,
                     .x = &a->q,
                     .y = &a->k,
                     .z = &a->v,
                     .layer = layer,
                     .position = position};
    a->ops[0] = op;
    a->list = (compute_list){a->ops, 1};
    work w = {.kind = WORK_COMPUTE, .session = s, .list = &a->list};
    return engine_run(e, &w);
}

static void make_tensors(engine *e, attention_list *a, int32_t rows, compute_kind kind)
{
    compute_tensor *all[4] = {&a->q, &a->k, &a->v, &a->out};
    int32_t q = TINY_HEADS * TINY_HEAD_DIM, kv = TINY_KV_HEADS * TINY_HEAD_DIM;
    int32_t cols[4] = {q, kv, kv, q};
    for (int i = 0; i < 4; i++) {
        if (kind == COMPUTE_NEW)
            *all[i] = (compute_tensor){.n_rows = rows, .n_cols = cols[i]};
        a->ops[i] = (compute_op){.kind = kind, .out = all[i]};
    }
    a->list = (compute_list){a->ops, 4};
    work w = {.kind = WORK_COMPUTE, .list = &a->list};
    assert_status(engine_run(e, &w), REALM_OK, w.error);
}

static realm_status read_keys(engine *e, session *s, attention_list *a, int32_t layer,
                              int32_t count, float *to)
{
    a->ops[0] = (compute_op){.kind = COMPUTE_KV_READ, .layer = layer, .count = count, .host = to};
    a->list = (compute_list){a->ops, 1};
    work w = {.kind = WORK_COMPUTE, .session = s, .list = &a->list};
    return engine_run(e, &w);
}

/* A page that another tenant has used must not be read where the guest wrote nothing. */
static void guests_walk_the_layers_in_order_and_read_only_what_they_wrote(void **state)
{
    fixture *f = *state;
    static attention_list a;
    static float keys[64 * TINY_KV_HEADS * TINY_HEAD_DIM];
    engine_options o = {.gather_us = -1, .kv_bytes = 8 * model_kv_page_bytes(f->m, DTYPE_F16)};
    engine *e = open_engine(f, &o);
    realm_error error;
    session *s = open_session(e, 1, 1), *copy = NULL;
    make_tensors(e, &a, 5, COMPUTE_NEW);
    assert_int_equal(attend(e, s, &a, 1, 0), REALM_INVALID); /* layer 0 is missing */
    assert_int_equal(attend(e, s, &a, 0, 3), REALM_INVALID); /* so are rows 0 to 2 */
    assert_int_equal(attend(e, s, &a, 7, 0), REALM_INVALID);
    assert_int_equal(attend(e, NULL, &a, 0, 0), REALM_INVALID);
    assert_int_equal(attend(e, s, &a, 0, 0), REALM_OK);
    assert_int_equal(session_length(s), 0);
    assert_int_equal(read_keys(e, s, &a, 0, 5, keys), REALM_OK);
    assert_int_equal(read_keys(e, s, &a, 1, 5, keys), REALM_INVALID); /* not written yet */
    assert_int_equal(attend(e, s, &a, 1, 0), REALM_OK);
    assert_int_equal(session_length(s), 5);
    assert_int_equal(session_tokens(s)[4], -1);
    assert_null(session_logits(s));
    assert_int_equal(read_keys(e, s, &a, 1, 5, keys), REALM_OK);
    assert_int_equal(read_keys(e, s, &a, 1, 6, keys), REALM_INVALID);
    work flush = {.kind = WORK_FEED, .session = s};
    assert_int_equal(engine_run(e, &flush), REALM_INVALID); /* nobody knows the last token */
    token_id more[40] = {1, 2, 3};
    work feed = {.kind = WORK_FEED, .session = s, .tokens = more, .n_tokens = 40};
    assert_status(engine_run(e, &feed), REALM_OK, feed.error);
    assert_int_equal(session_length(s), 45);
    assert_status(session_fork(&copy, s, &error), REALM_OK, error);
    session_close(s);
    assert_int_equal(attend(e, copy, &a, 0, 45), REALM_OK);
    assert_int_equal(attend(e, copy, &a, 1, 45), REALM_OK);
    assert_int_equal(session_length(copy), 50);
    assert_int_equal(attend(e, copy, &a, 0, 2), REALM_OK); /* goes back: the rest is forgotten */
    assert_int_equal(session_length(copy), 2);
    session_close(copy);
    make_tensors(e, &a, 5, COMPUTE_FREE);
    engine_close(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(alone_in_a_batch_and_after_lost_pages_the_bits_are_the_same),
        cmocka_unit_test(steps_give_what_generate_gives),
        cmocka_unit_test(guests_walk_the_layers_in_order_and_read_only_what_they_wrote),
    };
    if (test_device_missing())
        return TEST_SKIPPED;
    return cmocka_run_group_tests(tests, open_fixture, close_fixture);
}
