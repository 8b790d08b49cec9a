/* tests/tools/soak_tool.c: random load on a real model for as long as asked; nothing may be lost.
 *
 *     soak_tool MODEL SECONDS [SEED]
 *
 * Native clients feed prompts with common beginnings, generate, fork, truncate, cancel, set deadlines
 * and go away in the middle; beside them guests drive sessions token by token in sandboxes, some of
 * which are cancelled. Pages are few, so that sessions are preempted all the while. At the end no
 * session, page or sandbox may be left, only expected statuses may have been seen, and what is
 * resident may not have grown: the slope of a line through the samples of the last two thirds is
 * held to MOST_GROWTH. Prints one JSON object; exits with 1 where something is wrong. */
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/rng.h"
#include "engine/engine.h"
#include "sandbox/sandbox.h"

#define N_NATIVE    6
#define N_GUESTS    3
#define N_PAGES     48
#define N_PROMPT    600
#define MAX_SAMPLES 100000
#define STATUSES    64

/* KiB a second. Runs of minutes are meant; in a run of seconds memory that is first touched late looks
 * like growth, so there the whole growth is held to MOST_NEW instead. */
#define MOST_GROWTH 64.0
#define MOST_NEW    32768.0
#define LONG_RUN    120.0

extern const unsigned char soak_driver[];
extern const size_t soak_driver_size;

static model *g_model;
static engine *g_engine;
static sandbox_host *g_host;
static program *g_driver;
static atomic_int g_stop;
static token_id g_prompts[4][N_PROMPT];
static atomic_long g_statuses[STATUSES];
static uint64_t g_seed = 1;

static void die(const char *what, const char *why)
{
    fprintf(stderr, "soak_tool: %s: %s\n", what, why);
    exit(2);
}

static void count(realm_status status)
{
    atomic_fetch_add(&g_statuses[-(int)status & (STATUSES - 1)], 1);
}

static uint64_t below(rng *r, uint64_t bound)
{
    return rng_next(r) % bound;
}

/* ---- native clients ---------------------------------------------------------------------------- */

typedef struct pending {
    work work;
    atomic_int done;
} pending;

static void mark_done(work *w)
{
    count(w->status);
    atomic_store(&((pending *)w->context)->done, 1);
}

static void open_session(rng *r, session **out)
{
    realm_error error;
    session_options o = {.tenant = (uint32_t)below(r, 5),
                         .priority = (priority)below(r, 3),
                         .sampler = SAMPLER_OPTIONS_DEFAULT};
    o.sampler.temperature = below(r, 2) ? 0 : 0.8f;
    if (session_open(out, g_engine, &o, &error) != REALM_OK)
        die("session", error.message);
}

/* Waits for it, or cancels it on the way, or closes the session under it. */
static void run(rng *r, session **s, work w)
{
    pending p = {.work = w};
    int fate = (int)below(r, 8);
    p.work.session = *s;
    p.work.done = mark_done;
    p.work.context = &p;
    if (below(r, 8) == 0)
        p.work.deadline_ns = clock_ns() + below(r, 400000000);
    engine_submit(g_engine, &p.work);
    for (uint64_t i = 0; !atomic_load(&p.done); i++) {
        usleep(1000);
        if (fate == 0 && i == below(r, 50))
            session_cancel(*s);
        if (fate == 1 && i == 20) {
            session_close(*s);
            fate = 2;
            *s = NULL;
        }
    }
    if (!*s)
        open_session(r, s);
}

static void act(rng *r, session **s)
{
    realm_error error;
    session *fork;
    int32_t length = session_length(*s), n = (int32_t)below(r, 200);
    switch (below(r, 8)) {
    case 0:
        session_close(*s);
        open_session(r, s);
        break;
    case 1:
        if (session_fork(&fork, *s, &error) == REALM_OK) {
            session_close(*s);
            *s = fork;
        }
        break;
    case 2: session_truncate(*s, length / 2, &error); break;
    case 3:
    case 4:
        run(r, s,
            (work){.kind = WORK_FEED,
                   .tokens = g_prompts[below(r, 4)] + (length ? n : 0),
                   .n_tokens = length ? n : 1 + 2 * n});
        break;
    case 5:
        run(r, s, (work){.kind = WORK_STEP, .token = below(r, 2) ? -1 : g_prompts[0][n]});
        break;
    default:
        run(r, s,
            (work){.kind = WORK_GENERATE, .generate = {.max_tokens = 1 + n / 2, .ignore_eos = 1}});
    }
}

static void *native(void *context)
{
    rng r;
    session *s;
    rng_init(&r, g_seed * 1000 + (uint64_t)(uintptr_t)context);
    open_session(&r, &s);
    while (!atomic_load(&g_stop))
        act(&r, &s);
    session_close(s);
    return NULL;
}

/* ---- guests ------------------------------------------------------------------------------------ */

typedef struct guest {
    atomic_int done;
} guest;

static void guest_done(void *context, const sandbox_result *result)
{
    count(result->status);
    atomic_store(&((guest *)context)->done, 1);
}

static void *guests(void *context)
{
    sandbox_tenant *tenant;
    realm_error error;
    rng r;
    sandbox_model granted = {model_name(g_model), g_engine};
    tenant_grants grants = {.number = 100 + (uint32_t)(uintptr_t)context,
                            .name = "soak",
                            .weight = 1,
                            .limits = SANDBOX_LIMITS_DEFAULT,
                            .models = &granted,
                            .n_models = 1};
    rng_init(&r, g_seed * 2000 + (uint64_t)(uintptr_t)context);
    if (sandbox_tenant_open(&tenant, &grants, &error) != REALM_OK)
        die("tenant", error.message);
    while (!atomic_load(&g_stop)) {
        char body[64];
        guest g = {0};
        sandbox_request *request;
        int size = snprintf(body, sizeof body, "{\"tokens\":%d,\"prompt\":%d}",
                            1 + (int)below(&r, 80), (int)below(&r, 1000));
        sandbox_input input = {.program = g_driver,
                               .tenant = tenant,
                               .body = body,
                               .body_size = (size_t)size,
                               .priority = PRIORITY_NORMAL,
                               .context = &g,
                               .on_done = guest_done};
        if (sandbox_start(&request, g_host, &input, &error) != REALM_OK)
            die("request", error.message);
        int cancel_at = below(&r, 4) ? -1 : (int)below(&r, 200);
        for (int i = 0; !atomic_load(&g.done); i++) {
            usleep(1000);
            if (i == cancel_at)
                sandbox_cancel(request);
        }
        sandbox_release(request);
    }
    sandbox_tenant_release(tenant);
    return NULL;
}

/* ---- what is resident -------------------------------------------------------------------------- */

static double resident_kib(void)
{
    long pages = 0, ignored;
    FILE *file = fopen("/proc/self/statm", "r");
    if (!file || fscanf(file, "%ld %ld", &ignored, &pages) != 2)
        die("/proc/self/statm", "cannot be read");
    fclose(file);
    return (double)pages * (double)sysconf(_SC_PAGESIZE) / 1024;
}

/* KiB a second, of samples a second apart. */
static double slope_of(const double *samples, int n)
{
    double sx = 0, sy = 0, sxx = 0, sxy = 0;
    for (int i = 0; i < n; i++) {
        sx += i;
        sy += samples[i];
        sxx += (double)i * i;
        sxy += i * samples[i];
    }
    double spread = sxx * n - sx * sx;
    return spread > 0 ? (sxy * n - sx * sy) / spread : 0;
}

/* Everything was closed; commands may still be in the queue. */
static int is_empty(engine_stats *stats)
{
    for (int i = 0; i < 5000; i++) {
        engine_stats_get(g_engine, stats);
        if (stats->pages_used == 0 && stats->sessions == 0 && stats->waiting == 0)
            return 1;
        usleep(1000);
    }
    return 0;
}

static int is_expected(realm_status status)
{
    return status == REALM_OK || status == REALM_CANCELLED || status == REALM_DEADLINE ||
           status == REALM_QUOTA || status == REALM_CONTEXT_FULL || status == REALM_INVALID;
}

static void set_up(const char *path)
{
    realm_error error = {0};
    backend *device;
    sandbox_host_options host = {0};
    rng r;
    if (backend_cpu_open(&device, NULL, &error) != REALM_OK ||
        model_open(&g_model, device, path, NULL, &error) != REALM_OK)
        die(path, error.message);
    engine_options options = {.gather_us = -1,
                              .kv_bytes = N_PAGES * model_kv_page_bytes(g_model, DTYPE_F16)};
    if (engine_open(&g_engine, g_model, &options, &error) != REALM_OK ||
        sandbox_host_open(&g_host, &host, &error) != REALM_OK ||
        program_open(&g_driver, g_host, "driver", soak_driver, soak_driver_size, &error) !=
            REALM_OK)
        die("setting up", error.message);
    rng_init(&r, 7);
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < N_PROMPT; j++)
            g_prompts[i][j] = i > 0 && j < 200 ? g_prompts[0][j] : (token_id)below(&r, 30000);
}

int main(int argc, char **argv)
{
    static double samples[MAX_SAMPLES];
    pthread_t threads[N_NATIVE + N_GUESTS];
    engine_stats stats;
    if (argc < 3) {
        fprintf(stderr, "usage: soak_tool MODEL SECONDS [SEED]\n");
        return 2;
    }
    int seconds = atoi(argv[2]), n = 0, wrong = 0;
    if (argc > 3)
        g_seed = strtoull(argv[3], NULL, 10);
    set_up(argv[1]);
    for (int i = 0; i < N_NATIVE + N_GUESTS; i++)
        pthread_create(&threads[i], NULL, i < N_NATIVE ? native : guests, (void *)(uintptr_t)i);
    for (; n < seconds && n < MAX_SAMPLES; n++) {
        sleep(1);
        samples[n] = resident_kib();
    }
    atomic_store(&g_stop, 1);
    for (int i = 0; i < N_NATIVE + N_GUESTS; i++)
        pthread_join(threads[i], NULL);
    int empty = is_empty(&stats);
    double slope = slope_of(samples + n / 3, n - n / 3), fresh = samples[n - 1] - samples[n / 3];
    long works = 0;
    for (int i = 0; i < STATUSES; i++) {
        long seen = atomic_load(&g_statuses[i]);
        works += seen;
        if (seen && !is_expected((realm_status)-i)) {
            fprintf(stderr, "soak_tool: %ld ended with %s\n", seen,
                    realm_status_name((realm_status)-i));
            wrong = 1;
        }
    }
    wrong |= !empty || (seconds >= LONG_RUN ? slope > MOST_GROWTH : fresh > MOST_NEW);
    printf("{\"seed\":%llu,\"seconds\":%d,\"works\":%ld,\"ok\":%ld,\"cancelled\":%ld,\"late\":%ld,"
           "\"iterations\":%llu,\"preemptions\":%llu,\"pages_left\":%d,\"sessions_left\":%d,"
           "\"resident_kib\":[%.0f,%.0f],\"growth_kib_per_second\":%.2f,\"wrong\":%s}\n",
           (unsigned long long)g_seed, seconds, works, atomic_load(&g_statuses[0]),
           atomic_load(&g_statuses[-REALM_CANCELLED]), atomic_load(&g_statuses[-REALM_DEADLINE]),
           (unsigned long long)stats.iterations, (unsigned long long)stats.preemptions,
           stats.pages_used, stats.sessions, samples[n / 3], samples[n - 1], slope,
           wrong ? "true" : "false");
    program_release(g_driver);
    sandbox_host_close(g_host);
    engine_close(g_engine);
    backend *device = model_backend(g_model);
    model_close(g_model);
    device->table->close(device);
    return wrong;
}
