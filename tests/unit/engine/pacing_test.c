/* tests/unit/engine/pacing_test.c: what the engine promises about time, in virtual time: gaps between
 * tokens beside long prompts, the first token beside a busy tenant, shares by weight. The fake
 * device's iterations take what a processor's do: a part for the weights, one for each row, one for
 * each position that a row looks back at. */
#include "unit/engine/fake_device.h"

#include <math.h>
#include <unistd.h>

#include "base/rng.h"
#include "unit/engine/virtual_clock.h"

#define STEP_NS     4000000u
#define ROW_NS      500000u
#define POSITION_NS 200.0 /* at 2,500 a row costs twice as much */
#define MAX_CLIENTS 100

/* A request: a prompt, then an answer. What happens to it is seen on the engine's thread. */
typedef struct request {
    work work;
    session *session;
    token_id prompt[4000];
    int32_t n_prompt, n_answer, n_tokens;
    uint64_t submitted_ns, first_ns, last_ns;
    uint64_t longest_gap; /* since the prompts came */
    struct request *then; /* submitted when this one has ended; NULL: none */
    atomic_int done;
} request;

typedef struct scene {
    atomic_int
        all_submitted; /* the device waits for it: virtual time does not wait for this thread */
    fake fake;
    engine *engine;
    request *requests[MAX_CLIENTS];
    int n_requests;
} scene;

static void open_scene(scene *c)
{
    *c = (scene){.fake = {.step_ns = STEP_NS,
                          .row_ns = ROW_NS,
                          .position_ns = POSITION_NS,
                          .pass = virtual_pass}};
    c->engine = fake_engine(&c->fake, NULL);
}

static void close_scene(scene *c)
{
    for (int i = 0; i < c->n_requests; i++) {
        while (!atomic_load(&c->requests[i]->done)) {
            session_cancel(c->requests[i]->session);
            usleep(50);
        }
        session_close(c->requests[i]->session);
    }
    engine_close(c->engine);
    for (int i = 0; i < c->n_requests; i++)
        free(c->requests[i]);
}

static request *new_request(scene *c, uint32_t tenant, int32_t n_prompt, int32_t n_answer)
{
    request *r = calloc(1, sizeof *r);
    realm_error error;
    rng random;
    session_options o = {
        .tenant = tenant, .priority = PRIORITY_NORMAL, .sampler = SAMPLER_OPTIONS_DEFAULT};
    rng_init(&random, (uint64_t)c->n_requests + 1);
    for (int32_t i = 0; i < n_prompt; i++)
        r->prompt[i] = (token_id)(rng_next(&random) % 256);
    r->n_prompt = n_prompt;
    r->n_answer = n_answer;
    assert_status(session_open(&r->session, c->engine, &o, &error), REALM_OK, error);
    c->requests[c->n_requests++] = r;
    return r;
}

static int on_token(work *w, const generated_token *token)
{
    request *r = w->context;
    uint64_t now = clock_ns(), gap = now - r->last_ns;
    if (token->id < 0)
        return 0;
    if (r->n_tokens++ == 0)
        r->first_ns = now;
    else if (gap > r->longest_gap)
        r->longest_gap = gap;
    r->last_ns = now;
    return 0;
}

static void submit(request *r);

static void end(work *w)
{
    request *r = w->context;
    if (w->status == REALM_OK && r->then)
        submit(r->then);
    atomic_store(&r->done, 1);
}

static void answer(work *w)
{
    request *r = w->context;
    if (w->status != REALM_OK || r->n_answer == 0) {
        if (r->n_answer == 0)
            r->first_ns = clock_ns();
        end(w);
        return;
    }
    *w = (work){.kind = WORK_GENERATE,
                .session = r->session,
                .generate = {.max_tokens = r->n_answer, .ignore_eos = 1},
                .on_token = on_token,
                .done = end,
                .context = r};
    engine_submit(session_engine(r->session), w);
}

static void submit(request *r)
{
    r->work = (work){.kind = WORK_FEED,
                     .session = r->session,
                     .tokens = r->prompt,
                     .n_tokens = r->n_prompt,
                     .done = answer,
                     .context = r};
    r->submitted_ns = clock_ns();
    engine_submit(session_engine(r->session), &r->work);
}

/* The engine's thread, before an iteration. */
static void wait_for_all(scene *c)
{
    while (!atomic_load(&c->all_submitted))
        usleep(50);
}

static void wait_for(request *r)
{
    while (!atomic_load(&r->done))
        usleep(50);
}

/* Called before each iteration: what is to happen then. */
typedef struct script {
    scene *scene;
    request *streams[10], *prompts[20], *newcomer;
    int n_streams, n_prompts;
    uint64_t begin, join, at; /* iterations, from when all streams have begun */
    rng *stealing;            /* others take the cores now and then; NULL: nobody does */
    uint64_t stolen_ns;       /* since the prompts came */
} script;

/* Three iterations of five take 2 to 62 ms longer, whatever is in them. */
static void steal(script *s)
{
    if (!s->stealing || s->at == 0 || rng_next(s->stealing) % 5 >= 3)
        return;
    uint64_t ns = 2000000 + rng_next(s->stealing) % 60000000;
    virtual_pass(ns);
    if (s->at > s->begin)
        s->stolen_ns += ns;
}

static int have_begun(const script *s)
{
    int count = 0;
    while (count < s->n_streams && s->streams[count]->n_tokens > 0)
        count++;
    return count == s->n_streams;
}

static void play(fake *f)
{
    script *s = f->context;
    wait_for_all(s->scene);
    s->at += (uint64_t)have_begun(s);
    steal(s);
    if (s->at == s->begin)
        for (int i = 0; i < s->n_streams; i++)
            s->streams[i]->longest_gap = 0;
    for (int i = 0; s->at == s->begin && i < s->n_prompts; i++)
        submit(s->prompts[i]);
    if (s->newcomer && s->at == s->join)
        submit(s->newcomer);
}

/* Streams of tenants of their own; after begin iterations prompts of others come. */
static void assert_gaps(int n_streams, int n_prompts, uint64_t begin, int newcomer)
{
    scene c;
    script s = {.scene = &c, .n_streams = n_streams, .n_prompts = n_prompts, .begin = begin};
    open_scene(&c);
    for (int i = 0; i < n_streams; i++)
        s.streams[i] = new_request(&c, (uint32_t)i + 1, 20, 3900);
    for (int i = 0; i < n_prompts; i++)
        s.prompts[i] = new_request(&c, (uint32_t)i + 100, 4000, 0);
    if (newcomer) {
        s.newcomer = new_request(&c, 200, 20, 3900);
        s.join = begin + 40;
    }
    c.fake.context = &s;
    c.fake.on_forward = play;
    for (int i = 0; i < n_streams; i++)
        submit(s.streams[i]);
    atomic_store(&c.all_submitted, 1);
    for (int i = 0; i < n_prompts; i++)
        wait_for(s.prompts[i]);
    uint64_t rows = (uint64_t)n_streams;
    /* The usual gap: what an iteration of these streams alone takes, at their present lengths. */
    for (int i = 0; i < n_streams; i++) {
        double length = s.streams[i]->n_tokens;
        double usual = STEP_NS + (double)rows * (ROW_NS + POSITION_NS * length);
        if ((double)s.streams[i]->longest_gap > 2 * usual)
            fail_msg("%d streams, %d prompts: a gap of %.3f ms, usual are %.3f", n_streams,
                     n_prompts, (double)s.streams[i]->longest_gap / 1e6, usual / 1e6);
        assert_true(s.streams[i]->n_tokens > 50);
    }
    if (newcomer)
        assert_true(s.newcomer->n_tokens > 50);
    close_scene(&c);
}

static void no_gap_beside_long_prompts_is_twice_the_usual(void **state)
{
    (void)state;
    assert_gaps(8, 1, 100, 0);
    assert_gaps(1, 1, 100, 0);
    assert_gaps(8, 3, 100, 0); /* of three tenants */
    assert_gaps(8, 1, 100, 1); /* a stream begins on the way */
    assert_gaps(8, 1, 3, 0);   /* the engine has measured next to nothing */
}

/* How many wait is no concern of a stream where they are another tenant's. */
static void another_tenant_s_many_prompts_stretch_no_gap(void **state)
{
    scene c;
    script s = {.scene = &c, .n_streams = 8, .n_prompts = 20, .begin = 100};
    (void)state;
    open_scene(&c);
    for (int i = 0; i < 8; i++)
        s.streams[i] = new_request(&c, 1, 20, 3900);
    for (int i = 0; i < 20; i++)
        s.prompts[i] = new_request(&c, 2, 300, 0);
    c.fake.context = &s;
    c.fake.on_forward = play;
    for (int i = 0; i < 8; i++)
        submit(s.streams[i]);
    atomic_store(&c.all_submitted, 1);
    for (int i = 0; i < 20; i++)
        wait_for(s.prompts[i]);
    for (int i = 0; i < 8; i++) {
        double usual = STEP_NS + 8 * (ROW_NS + POSITION_NS * s.streams[i]->n_tokens);
        if ((double)s.streams[i]->longest_gap > 2 * usual)
            fail_msg("a gap of %.3f ms, usual are %.3f", (double)s.streams[i]->longest_gap / 1e6,
                     usual / 1e6);
    }
    close_scene(&c);
}

/* How long three prompts of three tenants take beside eight streams, without what is stolen. */
static double prompts_take_ns(double position_ns, rng *stealing)
{
    scene c;
    script s = {.scene = &c, .n_streams = 8, .n_prompts = 3, .begin = 100, .stealing = stealing};
    open_scene(&c);
    c.fake.position_ns = position_ns;
    for (int i = 0; i < 8; i++)
        s.streams[i] = new_request(&c, (uint32_t)i + 1, 20, 3900);
    for (int i = 0; i < 3; i++)
        s.prompts[i] = new_request(&c, (uint32_t)i + 100, 700, 0);
    c.fake.context = &s;
    c.fake.on_forward = play;
    for (int i = 0; i < 8; i++)
        submit(s.streams[i]);
    atomic_store(&c.all_submitted, 1);
    uint64_t last = 0;
    for (int i = 0; i < 3; i++) {
        wait_for(s.prompts[i]);
        last = s.prompts[i]->first_ns > last ? s.prompts[i]->first_ns : last;
    }
    double ns = (double)(last - s.prompts[0]->submitted_ns) - (double)s.stolen_ns;
    close_scene(&c);
    return ns;
}

/* Of the time a third is meant for prompts. It stays theirs where attention is dear, so that each token
 * of the streams makes an iteration longer while the prompts are read. */
static void prompts_are_not_charged_for_what_streams_grow(void **state)
{
    static const double position_ns[] = {0, POSITION_NS, 2000};
    (void)state;
    for (int i = 0; i < 3; i++) {
        double rows_ns = 3 * 700 * (ROW_NS + position_ns[i] * 699 / 2);
        double share = rows_ns / prompts_take_ns(position_ns[i], NULL);
        if (share < 0.22 || share > 0.5)
            fail_msg("%g ns a position: prompts get %.3f of the time", position_ns[i], share);
    }
}

/* What others take from the cores comes on top of a prompt's time, and does not shrink its rows. */
static void prompts_get_their_rows_where_others_take_the_cores(void **state)
{
    double quiet = prompts_take_ns(POSITION_NS, NULL);
    (void)state;
    for (uint64_t seed = 1; seed <= 5; seed++) {
        rng random;
        rng_init(&random, seed);
        double restless = prompts_take_ns(POSITION_NS, &random);
        if (restless > 1.3 * quiet)
            fail_msg("seed %d: %.0f ms, %.0f in quiet", (int)seed, restless / 1e6, quiet / 1e6);
    }
}

/* On a device that computes rows in tiles: a prompt of 512 rows comes after begin iterations of 8 streams. Of these none
 * has a gap of twice the usual, and the prompt takes no more than most_ns and the iteration that it comes in. */
static void assert_tiles_are_filled(scene *c, uint64_t begin, double usual, double most_ns)
{
    script s = {.scene = c, .n_streams = 8, .n_prompts = 1, .begin = begin};
    for (int i = 0; i < 8; i++)
        s.streams[i] = new_request(c, (uint32_t)i + 1, 20, 3900);
    s.prompts[0] = new_request(c, 100, 512, 0);
    c->fake.context = &s;
    c->fake.on_forward = play;
    for (int i = 0; i < 8; i++)
        submit(s.streams[i]);
    atomic_store(&c->all_submitted, 1);
    wait_for(s.prompts[0]);
    double took = (double)(s.prompts[0]->first_ns - s.prompts[0]->submitted_ns), longest = 0;
    for (int i = 0; i < 8; i++)
        longest = fmax(longest, (double)s.streams[i]->longest_gap);
    close_scene(c);
    if (took > most_ns + usual)
        fail_msg("the prompt took %.1f ms, not %.1f", took / 1e6, most_ns / 1e6);
    if (longest > 2 * usual)
        fail_msg("a gap of %.3f ms, usual are %.3f", longest / 1e6, usual / 1e6);
}

/* 8 streams take 4.3 ms, with up to 24 rows of a prompt 6.7, and with one more 9.9, which is more than twice. */
static void prompts_fill_the_tiles_of_a_device_that_has_some(void **state)
{
    (void)state;
    for (int pass = 0; pass < 2; pass++) {
        scene c = {
            .fake = {.step_ns = 3500000, .row_ns = 100000, .in_tiles = 1, .pass = virtual_pass}};
        c.engine = fake_engine(&c.fake, NULL);
        assert_tiles_are_filled(&c, pass ? 100 : 3, 3500000 + 8 * 100000,
                                2.6 * 4 * (3500000 + 128 * 100000.0));
    }
}

/* Nearly an H100's with 7B, where twice the rows take little longer up to 128. */
static uint64_t gpu_step_ns(int32_t end)
{
    static const struct {
        int32_t end;
        uint64_t ns;
    } steps[] = {{8, 3300000},   {16, 3400000},  {32, 4400000},  {64, 5800000},
                 {128, 5900000}, {256, 9900000}, {384, 13000000}};
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++)
        if (end <= steps[i].end)
            return steps[i].ns;
    return 15600000;
}

/* Short prompts were there before the streams, so that the device is known: the prompt gets more rows than half of
 * them would seem to allow. */
static void a_prompt_fills_the_largest_tile_that_stretches_no_gap_too_far(void **state)
{
    (void)state;
    for (int known = 0; known < 2; known++) {
        scene c = {.fake = {.tile_ns = gpu_step_ns, .in_tiles = 1, .pass = virtual_pass}};
        c.engine = fake_engine(&c.fake, NULL);
        for (int32_t n_prompt = 100; known && n_prompt <= 200; n_prompt += 100) {
            request *first = new_request(&c, 50, n_prompt, 0);
            submit(first);
            wait_for(first);
        }
        assert_tiles_are_filled(&c, 100, 3300000, (known ? 2 : 7) * 15600000.0);
    }
}

/* So many clients of one tenant, who come at once and ask again when they are answered. */
static void assert_crowd(int n_clients)
{
    enum { ROUNDS = 3, PROMPT = 330, ANSWER = 64 };
    scene c;
    script s = {.scene = &c};
    open_scene(&c);
    for (int i = 0; i < ROUNDS * n_clients; i++) {
        request *r = new_request(&c, 1, PROMPT, ANSWER);
        if (i >= n_clients)
            c.requests[i - n_clients]->then = r;
    }
    c.fake.context = &s;
    c.fake.on_forward = play;
    for (int i = 0; i < n_clients; i++)
        submit(c.requests[i]);
    atomic_store(&c.all_submitted, 1);
    double end_ns = 0, wait_ns = 0;
    for (int i = 0; i < c.n_requests; i++)
        wait_for(c.requests[i]);
    /* The usual gap of all: what an iteration of so many takes at their greatest length. */
    double row = ROW_NS + POSITION_NS * (PROMPT + ANSWER);
    double usual = STEP_NS + n_clients * row;
    for (int i = 0; i < c.n_requests; i++) {
        const request *r = c.requests[i];
        end_ns = fmax(end_ns, (double)r->last_ns);
        wait_ns += (double)(r->first_ns - r->submitted_ns) / c.n_requests;
        if ((double)r->longest_gap > PACE_CROWD * usual)
            fail_msg("%d clients: a gap of %.3f ms, all have %.3f", n_clients,
                     (double)r->longest_gap / 1e6, usual / 1e6);
    }
    /* The least that this can take: prompts in whole iterations of 128 rows, answers with all. */
    double prompts = PROMPT * (STEP_NS / 128.0 + ROW_NS + POSITION_NS * PROMPT / 2);
    double answers = ANSWER * (STEP_NS / (double)n_clients + row - POSITION_NS * ANSWER / 2);
    double all_ns = end_ns - (double)c.requests[0]->submitted_ns;
    double least = c.n_requests * (prompts + answers), cycle = least * n_clients / c.n_requests;
    if (all_ns > 1.2 * least)
        fail_msg("%d clients: %.0f ms, the least is %.0f", n_clients, all_ns / 1e6, least / 1e6);
    if (wait_ns > 0.6 * cycle)
        fail_msg("%d clients: %.0f ms to the first token, all take %.0f", n_clients, wait_ns / 1e6,
                 cycle / 1e6);
    close_scene(&c);
}

static void a_crowd_s_prompts_do_not_wait_for_few_streams(void **state)
{
    (void)state;
    assert_crowd(8);
    assert_crowd(16); /* as many as the device has outputs */
}

/* Of a prompt that comes in the second iteration of another tenant's twenty. */
static double first_token_ns(int32_t n_prompt)
{
    scene c;
    open_scene(&c);
    script s = {.scene = &c, .begin = 2, .n_prompts = 1};
    for (int i = 0; i < 20; i++)
        new_request(&c, 1, 500, 20);
    s.prompts[0] = new_request(&c, 2, n_prompt, 0);
    c.fake.context = &s;
    c.fake.on_forward = play;
    for (int i = 0; i < 20; i++)
        submit(c.requests[i]);
    atomic_store(&c.all_submitted, 1);
    wait_for(s.prompts[0]);
    double ns = (double)(s.prompts[0]->first_ns - s.prompts[0]->submitted_ns);
    close_scene(&c);
    return ns;
}

static void one_request_does_not_wait_for_another_tenant_s_twenty(void **state)
{
    (void)state;
    static const int32_t prompts[] = {50, 300, 1000, 3000};
    for (int i = 0; i < 4; i++) {
        int32_t n = prompts[i];
        double iteration = STEP_NS + 128.0 * ROW_NS;
        double iterations = (n + 127) / 128;
        double alone = iterations * STEP_NS + (double)n * ROW_NS +
                       POSITION_NS * 0.5 * (double)n * (n - 1);
        double beside = first_token_ns(n);
        if (beside > 1.5 * alone + iteration + 1e6)
            fail_msg("prompt of %d: %g ms, alone %g", n, beside / 1e6, alone / 1e6);
    }
}

/* After a start, counts each tenant's tokens over so many iterations. */
typedef struct count {
    scene *scene;
    int n_tenants;
    uint64_t at, from, to;
    int32_t tokens[16];
    atomic_int done;
} count;

static void count_tokens(fake *f)
{
    count *k = f->context;
    wait_for_all(k->scene);
    k->at++;
    if (k->at != k->from && k->at != k->to)
        return;
    for (int i = 0; i < k->scene->n_requests; i++) {
        int32_t n = k->scene->requests[i]->n_tokens;
        k->tokens[i % k->n_tenants] += k->at == k->from ? -n : n;
    }
    if (k->at == k->to)
        atomic_store(&k->done, 1);
}

static void share(count *k, int n_each, const float *by)
{
    scene c;
    realm_error error;
    open_scene(&c);
    k->scene = &c;
    k->from = 50;
    k->to = 1250;
    c.fake.context = k;
    for (int t = 0; t < k->n_tenants; t++) {
        engine_tenant settings = {.weight = by ? by[t] : 1};
        assert_status(engine_tenant_set(c.engine, (uint32_t)t, &settings, &error), REALM_OK, error);
    }
    for (int i = 0; i < k->n_tenants * n_each; i++)
        new_request(&c, (uint32_t)(i % k->n_tenants), 5, 3000);
    c.fake.on_forward = count_tokens;
    for (int i = 0; i < c.n_requests; i++)
        submit(c.requests[i]);
    atomic_store(&c.all_submitted, 1);
    while (!atomic_load(&k->done))
        usleep(50);
    close_scene(&c);
}

static void busy_tenants_get_tokens_by_weight(void **state)
{
    (void)state;
    static const float pairs[][2] = {{1, 3}, {1, 3}, {1, 1.5f}, {2, 1}};
    static const int sessions[] = {4, 8, 8, 3}; /* 16 rows are wanted of at most 16, or fewer */
    for (int i = 0; i < 4; i++) {
        count k = {.n_tenants = 2};
        share(&k, sessions[i], pairs[i]);
        double ratio = (double)k.tokens[1] / k.tokens[0] * (double)pairs[i][0] /
                       (double)pairs[i][1];
        if (ratio < 0.97 || ratio > 1.03)
            fail_msg("case %d: %d and %d tokens", i, k.tokens[0], k.tokens[1]);
    }
}

static void sixteen_equal_tenants_get_equally_many_tokens(void **state)
{
    (void)state;
    for (int n = 1; n <= 2;
         n++) { /* with two sessions each there are more than one iteration takes */
        count k = {.n_tenants = 16};
        share(&k, n, NULL);
        int32_t least = k.tokens[0], most = k.tokens[0];
        for (int i = 1; i < 16; i++) {
            least = k.tokens[i] < least ? k.tokens[i] : least;
            most = k.tokens[i] > most ? k.tokens[i] : most;
        }
        assert_true(least > 500 && most <= least * 1.03);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_gap_beside_long_prompts_is_twice_the_usual),
        cmocka_unit_test(another_tenant_s_many_prompts_stretch_no_gap),
        cmocka_unit_test(prompts_are_not_charged_for_what_streams_grow),
        cmocka_unit_test(prompts_get_their_rows_where_others_take_the_cores),
        cmocka_unit_test(prompts_fill_the_tiles_of_a_device_that_has_some),
        cmocka_unit_test(a_prompt_fills_the_largest_tile_that_stretches_no_gap_too_far),
        cmocka_unit_test(a_crowd_s_prompts_do_not_wait_for_few_streams),
        cmocka_unit_test(one_request_does_not_wait_for_another_tenant_s_twenty),
        cmocka_unit_test(busy_tenants_get_tokens_by_weight),
        cmocka_unit_test(sixteen_equal_tenants_get_equally_many_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
