/* bench/scheduling.c: what the scheduler promises, measured on a real model.
 *
 *     bench_scheduling MODEL [--device WHICH] [--threads N] [--slack F] [--only NAME] [--long TOKENS]
 *
 * Prints a table of figures, each beside its bound, and exits with 1 when one is broken. Bounds are
 * ratios of times of one run. --slack F widens each bound's distance from the ideal by F, for machines that
 * others share: what is measured against a bound there is also the median of gaps instead of the
 * longest. Each scenario has an engine of its own, so that each begins without measurements. Main
 * thread; stamps are taken on the engine's. The scenario "crowd" runs only where it is asked for (--only): its bound
 * is for devices that compute a prompt in a few steps' time. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/rng.h"
#include "engine/engine.h"
#include "model/placement.h"

#define MAX_STREAMS 32
#define MAX_STAMPS  20000
#define REPEAT      3

/* One request: a prompt, then an answer. */
typedef struct request {
    work work;
    session *session;
    token_id *prompt; /* [n_prompt] */
    int32_t n_prompt, n_answer;
    uint64_t submitted_ns;
    uint64_t *stamps; /* [n_stamps] of each token */
    atomic_int n_stamps;
    atomic_int done;
} request;

static model *g_model;
static engine *g_engine;
static double g_slack = 1;
static const char *g_only;
static int32_t g_long = 4000;
static int g_broken;
static uint64_t g_seed = 1;

static void die(const char *what, const realm_error *error)
{
    fprintf(stderr, "bench_scheduling: %s: %s\n", what, error->message);
    exit(2);
}

static void open_engine(uint64_t kv_pages)
{
    realm_error error = {0};
    engine_options options = {.gather_us = -1,
                              .kv_bytes = kv_pages * model_kv_page_bytes(g_model, DTYPE_F16)};
    if (engine_open(&g_engine, g_model, &options, &error) != REALM_OK)
        die("engine", &error);
}

/* ---- requests ---------------------------------------------------------------------------------- */

static int stamp(work *w, const generated_token *token)
{
    request *r = w->context;
    int n = atomic_load(&r->n_stamps);
    if (token->id >= 0 && n < MAX_STAMPS) {
        r->stamps[n] = clock_ns();
        atomic_store(&r->n_stamps, n + 1);
    }
    return 0;
}

static void all_done(work *w)
{
    request *r = w->context;
    atomic_store(&r->done, 1);
}

static void answer(work *w)
{
    request *r = w->context;
    if (w->status != REALM_OK || r->n_answer == 0) {
        all_done(w);
        return;
    }
    *w = (work){.kind = WORK_GENERATE,
                .session = r->session,
                .generate = {.max_tokens = r->n_answer, .ignore_eos = 1},
                .on_token = stamp,
                .done = all_done,
                .context = r};
    engine_submit(g_engine, w);
}

static request *new_request(uint32_t tenant, int32_t n_prompt, int32_t n_answer)
{
    realm_error error = {0};
    request *r = calloc(1, sizeof *r);
    session_options options = {
        .tenant = tenant, .priority = PRIORITY_NORMAL, .sampler = SAMPLER_OPTIONS_DEFAULT};
    rng random;
    rng_init(&random, g_seed++);
    r->prompt = malloc((size_t)n_prompt * sizeof *r->prompt);
    r->stamps = malloc(MAX_STAMPS * sizeof *r->stamps);
    for (int32_t i = 0; i < n_prompt; i++)
        r->prompt[i] = (token_id)(rng_next(&random) %
                                  (uint64_t)model_hyperparameters(g_model)->n_vocab);
    r->n_prompt = n_prompt;
    r->n_answer = n_answer;
    if (session_open(&r->session, g_engine, &options, &error) != REALM_OK)
        die("session", &error);
    return r;
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
    engine_submit(g_engine, &r->work);
}

static void wait_tokens(request *r, int n)
{
    while (atomic_load(&r->n_stamps) < n && !atomic_load(&r->done))
        usleep(500);
}

static void wait_done(request *r)
{
    while (!atomic_load(&r->done))
        usleep(200);
    if (r->work.status != REALM_OK)
        die("request", &r->work.error);
}

/* Ends it where it stands. */
static void drop(request *r)
{
    while (!atomic_load(&r->done)) { /* between two works there is nothing to cancel */
        session_cancel(r->session);
        usleep(200);
    }
    session_close(r->session);
    free(r->prompt);
    free(r->stamps);
    free(r);
}

static double first_token_ms(const request *r)
{
    return (double)(r->stamps[0] - r->submitted_ns) / 1e6;
}

/* ---- figures ----------------------------------------------------------------------------------- */

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double quantile(double *values, int count, double q)
{
    qsort(values, (size_t)count, sizeof *values, by_size);
    int i = (int)(q * (count - 1) + 0.5);
    return count > 0 ? values[i] : 0;
}

static void print_row(const char *what, double value, const char *unit, double low, double high)
{
    int broken = !(value >= low && value <= high);
    g_broken |= broken;
    printf("%-62s %9.3f %-3s", what, value, unit);
    if (low > -1e9)
        printf("  >= %.3f", low);
    if (high < 1e9)
        printf("  <= %.3f", high);
    printf("%s\n", broken ? "   BROKEN" : "");
    fflush(stdout);
}

static void print_figure(const char *what, double value, const char *unit)
{
    print_row(what, value, unit, -1e10, 1e10);
}

static double above(double ideal, double bound)
{
    return ideal + (bound - ideal) * g_slack;
}

static int is_wanted(const char *name)
{
    if (g_only && strcmp(g_only, name) != 0)
        return 0;
    printf("%s\n", name);
    return 1;
}

/* ---- first token beside twenty requests --------------------------------------------------------- */

static double first_token_alone(int32_t n_prompt)
{
    request *r = new_request(2, n_prompt, 1);
    submit(r);
    wait_done(r);
    double ms = first_token_ms(r);
    drop(r);
    return ms;
}

static double first_token_beside(int32_t n_prompt, int n_others)
{
    request *others[MAX_STREAMS];
    for (int i = 0; i < n_others; i++)
        submit(others[i] = new_request(1, n_prompt, 16));
    usleep(5000);
    request *r = new_request(2, n_prompt, 1);
    submit(r);
    wait_done(r);
    double ms = first_token_ms(r);
    drop(r);
    for (int i = 0; i < n_others; i++)
        drop(others[i]);
    return ms;
}

static void measure_first_token(void)
{
    static const int32_t prompts[] = {100, 500};
    if (!is_wanted("first-token"))
        return;
    for (int p = 0; p < 2; p++) {
        double alone[REPEAT], beside[REPEAT], iteration[REPEAT];
        char what[96];
        open_engine(0);
        first_token_alone(64);
        for (int i = 0; i < REPEAT; i++) {
            iteration[i] = first_token_alone(512);
            alone[i] = first_token_alone(prompts[p]);
            beside[i] = first_token_beside(prompts[p], 20);
        }
        engine_close(g_engine);
        double a = quantile(alone, REPEAT, 0.5), one = quantile(iteration, REPEAT, 0.5);
        snprintf(what, sizeof what, "prompt of %d alone", (int)prompts[p]);
        print_figure(what, a, "ms");
        snprintf(what, sizeof what, "  beside another tenant's 20, less one iteration of 512");
        print_row(what, (quantile(beside, REPEAT, 0.5) - one) / a, "x", -1e10, above(1, 1.5));
    }
}

/* ---- shares ------------------------------------------------------------------------------------ */

/* Tokens of n_tenants with n sessions each, in so many seconds. */
static void count_tokens(int n_tenants, int n, const float *shares, double seconds, double *tokens)
{
    request *all[MAX_STREAMS];
    realm_error error = {0};
    open_engine(0);
    for (int t = 0; t < n_tenants; t++) {
        engine_tenant settings = {.weight = shares ? shares[t] : 1};
        if (engine_tenant_set(g_engine, (uint32_t)t + 1, &settings, &error) != REALM_OK)
            die("tenant", &error);
    }
    for (int i = 0; i < n_tenants * n; i++)
        submit(all[i] = new_request((uint32_t)(i % n_tenants) + 1, 8, 100000));
    for (int i = 0; i < n_tenants * n; i++)
        wait_tokens(all[i], 1);
    for (int t = 0; t < n_tenants; t++)
        tokens[t] = 0;
    for (int i = 0; i < n_tenants * n; i++)
        tokens[i % n_tenants] -= atomic_load(&all[i]->n_stamps);
    usleep((useconds_t)(seconds * 1e6));
    for (int i = 0; i < n_tenants * n; i++)
        tokens[i % n_tenants] += atomic_load(&all[i]->n_stamps);
    for (int i = 0; i < n_tenants * n; i++)
        drop(all[i]);
    engine_close(g_engine);
}

static void measure_shares(void)
{
    static const float one_to_three[2] = {1, 3};
    double two[2], all[16];
    if (!is_wanted("shares"))
        return;
    count_tokens(2, 4, one_to_three, 3, two);
    print_figure("two tenants, weights 1:3, 4 sessions each: tokens of the first", two[0], "");
    print_row("  the second's for each of them, over 3", two[1] / two[0] / 3, "x",
              1 - 0.03 * g_slack, 1 + 0.03 * g_slack);
    count_tokens(16, 1, NULL, 3, all);
    double least = quantile(all, 16, 0), most = quantile(all, 16, 1);
    print_figure("16 tenants of one weight: tokens of the least served", least, "");
    print_row("  of the most served over it", most / least, "x", -1e10, 1 + 0.03 * g_slack);
}

/* ---- gaps between tokens ------------------------------------------------------------------------ */

typedef struct gap {
    double ms;
    uint64_t at; /* when the later of the two tokens came */
} gap;

/* The gaps of streams whose later token came in [from, to); returns how many. */
static int gaps_between(request **streams, int n, uint64_t from, uint64_t to, gap *gaps)
{
    int count = 0;
    for (int i = 0; i < n; i++)
        for (int j = 1; j < atomic_load(&streams[i]->n_stamps) && count < MAX_STAMPS; j++) {
            uint64_t at = streams[i]->stamps[j];
            if (at >= from && at < to)
                gaps[count++] = (gap){(double)(at - streams[i]->stamps[j - 1]) / 1e6, at};
        }
    return count;
}

static double usual_gap(request **streams, int n, uint64_t from, uint64_t to, double q)
{
    static gap gaps[MAX_STAMPS];
    static double values[MAX_STAMPS];
    int count = gaps_between(streams, n, from, to, gaps);
    for (int i = 0; i < count; i++)
        values[i] = gaps[i].ms;
    return quantile(values, count, q);
}

typedef struct gap_case {
    const char *what;
    int n_streams, n_prompts;
    int newcomer; /* a stream begins half a second after the prompts */
    int at_once;  /* prompts come when the engine has measured nothing but one iteration */
} gap_case;

static void measure_gap_case(const gap_case *c, int32_t n_prompt)
{
    static gap gaps[MAX_STAMPS];
    static double ratios[MAX_STAMPS];
    request *streams[MAX_STREAMS], *prompts[4];
    int n = c->n_streams;
    open_engine(0);
    for (int i = 0; i < n; i++)
        submit(streams[i] = new_request((uint32_t)i + 1, 16, 100000));
    for (int i = 0; i < n; i++)
        wait_tokens(streams[i], 1);
    if (!c->at_once)
        usleep(1500000);
    uint64_t began = clock_ns();
    for (int i = 0; i < c->n_prompts; i++)
        submit(prompts[i] = new_request(100 + (uint32_t)i, n_prompt, 0));
    if (c->newcomer) {
        usleep(500000);
        submit(streams[n] = new_request(200, 16, 100000));
        n++;
    }
    for (int i = 0; i < c->n_prompts; i++)
        wait_done(prompts[i]);
    uint64_t ended = clock_ns();
    for (int i = 0; i < c->n_prompts; i++)
        drop(prompts[i]);
    usleep(1000000);
    /* The usual gap grows with what the streams have written: from that of just before to that of
     * just after. */
    double after = usual_gap(streams, n, ended + 50000000, UINT64_MAX, 0.5);
    double before = c->at_once ? after : usual_gap(streams, n, began - 1000000000, began, 0.5);
    int count = gaps_between(streams, n, began, ended, gaps);
    for (int i = 0; i < count; i++) {
        double part = (double)(gaps[i].at - began) / (double)(ended - began);
        ratios[i] = gaps[i].ms / (before + part * (after - before));
    }
    double middle = quantile(ratios, count, 0.5), high = quantile(ratios, count, 0.95);
    double most = quantile(ratios, count, 1);
    char what[96];
    snprintf(what, sizeof what, "%s: usual gap before", c->what);
    print_figure(what, before, "ms");
    print_figure("  and after, when the streams are longer", after, "ms");
    /* How restless the machine is: without any prompt. */
    print_figure("  the longest of these, over their median",
                 usual_gap(streams, n, ended + 50000000, UINT64_MAX, 1) / after, "x");
    print_figure("  the prompt took", (double)(ended - began) / 1e9, "s");
    if (g_slack > 1) { /* without pacing there are few gaps meanwhile, and all of them are long */
        print_row("  median gap meanwhile, over the usual", middle, "x", -1e10, 2 * above(1, 1.1));
        print_figure("  95th percentile", high, "x");
        print_figure("  longest", most, "x");
    } else {
        print_figure("  median gap meanwhile, over the usual", middle, "x");
        print_row("  95th percentile", high, "x", -1e10, 2);
        print_row("  longest", most, "x", -1e10, 2);
    }
    for (int i = 0; i < n; i++)
        drop(streams[i]);
    engine_close(g_engine);
}

static void measure_gaps(void)
{
    static const gap_case cases[] = {
        {"8 streams, one long prompt", 8, 1, 0, 0},
        {"8 streams, three long prompts of three tenants", 8, 3, 0, 0},
        {"one stream, one long prompt", 1, 1, 0, 0},
        {"8 streams that have just begun", 8, 1, 0, 1},
        {"8 streams, a ninth begins on the way", 8, 1, 1, 0},
    };
    if (!is_wanted("gaps"))
        return;
    int32_t context = model_hyperparameters(g_model)->n_context;
    int32_t n_prompt = context < g_long + 100 ? context - 100 : g_long;
    print_figure("a long prompt is", n_prompt, "tok");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        measure_gap_case(&cases[i], n_prompt);
}

/* ---- one prompt in a crowd --------------------------------------------------------------------------- */

/* A prompt of 512 tokens beside 15 streams: its first token, and what the streams notice. */
static void measure_crowd(void)
{
    enum { STREAMS = 15, PROMPT = 512 };
    static gap gaps[MAX_STAMPS];
    static double values[MAX_STAMPS];
    double alone[REPEAT], beside[REPEAT], usual[REPEAT], most[REPEAT], steps[REPEAT];
    engine_stats before, after;
    request *streams[STREAMS];
    if (!g_only || !is_wanted("crowd"))
        return;
    open_engine(0);
    for (int32_t n = 64; n <= PROMPT; n *= 2) /* the engine learns what tiles take */
        first_token_alone(n);
    for (int i = 0; i < REPEAT; i++)
        alone[i] = first_token_alone(PROMPT);
    for (int i = 0; i < STREAMS; i++)
        submit(streams[i] = new_request((uint32_t)i + 1, 16, 100000));
    for (int i = 0; i < STREAMS; i++)
        wait_tokens(streams[i], 20);
    usleep(1000000);
    for (int i = 0; i < REPEAT; i++) {
        uint64_t began = clock_ns();
        /* Of just before, as it grows with what the streams have written. */
        usual[i] = usual_gap(streams, STREAMS, began - 100000000, began, 0.5);
        engine_stats_get(g_engine, &before);
        beside[i] = first_token_alone(PROMPT);
        engine_stats_get(g_engine, &after);
        steps[i] = (double)(after.iterations - before.iterations);
        int count = gaps_between(streams, STREAMS, began, clock_ns(), gaps);
        for (int j = 0; j < count; j++)
            values[j] = gaps[j].ms;
        most[i] = quantile(values, count, 1) / usual[i];
        usleep(150000);
    }
    for (int i = 0; i < STREAMS; i++)
        drop(streams[i]);
    engine_close(g_engine);
    print_figure("prompt of 512 alone", quantile(alone, REPEAT, 0.5), "ms");
    print_figure("  beside 15 streams", quantile(beside, REPEAT, 0.5), "ms");
    print_row("  beside, over alone", quantile(beside, REPEAT, 0.5) / quantile(alone, REPEAT, 0.5),
              "x", -1e10, above(1, 2));
    print_figure("  iterations meanwhile", quantile(steps, REPEAT, 0.5), "");
    print_figure("usual gap of the streams", quantile(usual, REPEAT, 0.5), "ms");
    print_row("  longest meanwhile, over the usual", quantile(most, REPEAT, 0.5), "x", -1e10,
              above(1, 2));
}

/* ---- the prefix cache --------------------------------------------------------------------------- */

/* Feeds the same prompt and a question of its own to a new session; seconds until its logits. */
static double feed_again(uint32_t tenant, const token_id *prompt, int32_t n_prompt, session **kept)
{
    realm_error error = {0};
    session *s;
    session_options options = {
        .tenant = tenant, .priority = PRIORITY_NORMAL, .sampler = SAMPLER_OPTIONS_DEFAULT};
    work w = {.kind = WORK_FEED, .tokens = prompt, .n_tokens = n_prompt};
    if (session_open(&s, g_engine, &options, &error) != REALM_OK)
        die("session", &error);
    w.session = s;
    uint64_t began = clock_ns();
    if (engine_run(g_engine, &w) != REALM_OK)
        die("feed", &w.error);
    double seconds = (double)(clock_ns() - began) / 1e9;
    if (kept)
        *kept = s;
    else
        session_close(s);
    return seconds;
}

static void measure_prefix(void)
{
    if (!is_wanted("prefix"))
        return;
    double first[REPEAT], open[REPEAT], closed[REPEAT], other[REPEAT], forked[REPEAT], gone[REPEAT];
    realm_error error = {0};
    open_engine(96); /* two prompts of a thousand, and half of a third */
    for (int i = 0; i < REPEAT; i++) {
        session *s, *fork;
        request *r = new_request(3, 1000, 0), *pressure = new_request(4, 2000, 0);
        first[i] = feed_again(1, r->prompt, 1000, &s);
        open[i] = feed_again(1, r->prompt, 1000, NULL);
        if (session_fork(&fork, s, &error) != REALM_OK)
            die("fork", &error);
        session_close(s);
        forked[i] = feed_again(1, r->prompt, 1000, NULL);
        session_close(fork);
        closed[i] = feed_again(1, r->prompt, 1000, NULL);
        other[i] = feed_again(2, r->prompt, 1000, NULL);
        feed_again(4, pressure->prompt, 2000, NULL);
        feed_again(4, pressure->prompt + 1, 1999, NULL);
        gone[i] = feed_again(1, r->prompt, 1000, NULL);
        atomic_store(&r->done, 1);
        atomic_store(&pressure->done, 1);
        drop(r);
        drop(pressure);
    }
    engine_close(g_engine);
    double full = quantile(first, REPEAT, 0.5);
    print_figure("a prompt of 1,000 tokens, the first time", full * 1e3, "ms");
    print_row("  again, the first session open", quantile(open, REPEAT, 0.5) / full, "x", -1e10,
              0.05 * g_slack);
    print_row("  again, a fork of it open", quantile(forked, REPEAT, 0.5) / full, "x", -1e10,
              0.05 * g_slack);
    print_row("  again, all sessions closed", quantile(closed, REPEAT, 0.5) / full, "x", -1e10,
              0.05 * g_slack);
    print_row("  by another tenant", quantile(other, REPEAT, 0.5) / full, "x", 1 - 0.2 * g_slack,
              1e10);
    print_row("  after other prompts took its pages", quantile(gone, REPEAT, 0.5) / full, "x",
              1 - 0.2 * g_slack, 1e10);
}

int main(int argc, char **argv)
{
    realm_error error = {0};
    placement where = {.device = "cpu"};
    backend *device;
    if (argc < 2 || argc % 2 != 0) {
        fprintf(
            stderr,
            "usage: bench_scheduling MODEL [--device WHICH] [--threads N] [--slack F] [--only NAME] [--long N]\n");
        return 2;
    }
    for (int i = 2; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--threads") == 0)
            where.n_threads = atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--device") == 0)
            where.device = argv[i + 1];
        else if (strcmp(argv[i], "--slack") == 0)
            g_slack = atof(argv[i + 1]);
        else if (strcmp(argv[i], "--only") == 0)
            g_only = argv[i + 1];
        else if (strcmp(argv[i], "--long") == 0)
            g_long = atoi(argv[i + 1]);
    }
    if (placement_open(&g_model, &device, argv[1], &where, NULL, &error) != REALM_OK)
        die(argv[1], &error);
    measure_first_token();
    measure_shares();
    measure_gaps();
    measure_crowd();
    measure_prefix();
    model_close(g_model);
    device->table->close(device);
    return g_broken;
}
