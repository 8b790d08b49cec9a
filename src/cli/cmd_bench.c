/* cli/cmd_bench.c: `realm bench`: how fast prompts are read and tokens written on this machine.
 *
 * pp N: one session is fed N tokens (per session of the batch); tg N: every session of the batch writes N tokens at
 * once, from one token of context. With --sandbox each tg is measured a second time with every
 * session in a tenant and sandbox of its own, driven token by token by a guest (guest/programs/
 * driver.c), alternating with the native runs, so that the machine's drift falls on both alike.
 * Rates are medians over the repetitions. outside_us is the time of a step that is not the model's: from
 * the end of one forward pass to the start of the next. It shows what a guest costs more steadily
 * than a ratio of rates, which each repetition's forward passes shake. Main thread; the engine and sandboxes run on theirs. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/cpu.h"
#include "base/rng.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "cli/progress.h"
#include "cli/terminal.h"
#include "engine/engine.h"
#include "formats/json.h"
#include "sandbox/sandbox.h"

#define MAX_BATCH   256
#define MAX_BATCHES 16
#define MAX_REPEAT  100

extern const unsigned char bench_driver[];
extern const size_t bench_driver_size;

typedef struct bench_options {
    const char *model, *batches;
    int sandbox, json;
    int64_t n_threads, n_prompt, n_generate, repeat;
} bench_options;

typedef struct bench {
    bench_options options;
    backend *device;
    model *model;
    engine *engine;
    sandbox_host *host;
    program *driver;
    sandbox_tenant *tenants[MAX_BATCH];
    json_t *rows;
} bench;

/* Seconds of each repetition; the median counts. */
typedef struct timings {
    double seconds[MAX_REPEAT];
    double outside_us[MAX_REPEAT]; /* a step */
    uint64_t most_steps;           /* of a repetition: over n, batches fell apart */
    int count;
} timings;

/* A moment of a run: the clock, and what the engine had done by then. */
typedef struct moment {
    uint64_t ns, busy_ns, iterations;
} moment;

static moment moment_now(engine *e)
{
    engine_stats stats;
    engine_stats_get(e, &stats);
    return (moment){clock_ns(), stats.busy_ns, stats.iterations};
}

static void add_timing(timings *t, moment from, moment to)
{
    double wall_ns = (double)(to.ns - from.ns), busy_ns = (double)(to.busy_ns - from.busy_ns);
    uint64_t steps = to.iterations > from.iterations ? to.iterations - from.iterations : 1;
    if (steps > t->most_steps)
        t->most_steps = steps;
    t->seconds[t->count] = wall_ns / 1e9;
    t->outside_us[t->count++] = (wall_ns - busy_ns) / 1e3 / (double)steps;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void add_row(bench *b, const char *kind, int64_t n, int64_t batch, int sandboxed, timings *t,
                    double native_rate)
{
    qsort(t->seconds, (size_t)t->count, sizeof *t->seconds, compare_doubles);
    double tokens = (double)n * (double)batch;
    double median = t->count % 2 ? t->seconds[t->count / 2]
                                 : (t->seconds[t->count / 2 - 1] + t->seconds[t->count / 2]) / 2;
    double rate = tokens / median;
    char test[32];
    snprintf(test, sizeof test, "%s%lld", kind, (long long)n);
    qsort(t->outside_us, (size_t)t->count, sizeof *t->outside_us, compare_doubles);
    double outside_us = t->outside_us[t->count / 2];
    json_t *row = json_pack("{s:s,s:I,s:b,s:f,s:f,s:f,s:f,s:I,s:i,s:I}", "test", test, "batch",
                            (json_int_t)batch, "sandbox", sandboxed, "tokens_per_second", rate,
                            "slowest", tokens / t->seconds[t->count - 1], "fastest",
                            tokens / t->seconds[0], "outside_us", outside_us, "steps",
                            (json_int_t)t->most_steps, "repetitions", t->count, "threads",
                            (json_int_t)b->options.n_threads);
    if (sandboxed && native_rate > 0)
        json_object_set_new(row, "of_native", json_real(rate / native_rate));
    json_array_append_new(b->rows, row);
    if (b->options.json)
        return;
    printf("%-8s %6lld  %-8s %10.1f tokens/s   (%.1f to %.1f)", test, (long long)batch,
           sandboxed ? "sandbox" : "native", rate, tokens / t->seconds[t->count - 1],
           tokens / t->seconds[0]);
    printf("   %5.0f us a step outside", outside_us);
    if (sandboxed && native_rate > 0)
        printf("   %.2f %% of native", 100 * rate / native_rate);
    printf("\n");
    fflush(stdout);
}

static double rate_of_last(const bench *b)
{
    const json_t *row = json_array_get(b->rows, json_array_size(b->rows) - 1);
    return json_real_value(json_object_get(row, "tokens_per_second"));
}

/* ---- native --------------------------------------------------------------------------------------- */

/* Works in flight; done comes on the engine thread. */
typedef struct gate {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int open; /* how many are still under way; guarded by mutex */
} gate;

static void gate_init(gate *g, int count)
{
    pthread_mutex_init(&g->mutex, NULL);
    pthread_cond_init(&g->changed, NULL);
    g->open = count;
}

static void gate_pass(gate *g)
{
    pthread_mutex_lock(&g->mutex);
    if (--g->open == 0)
        pthread_cond_signal(&g->changed);
    pthread_mutex_unlock(&g->mutex);
}

static void gate_wait(gate *g)
{
    pthread_mutex_lock(&g->mutex);
    while (g->open)
        pthread_cond_wait(&g->changed, &g->mutex);
    pthread_mutex_unlock(&g->mutex);
    pthread_cond_destroy(&g->changed);
    pthread_mutex_destroy(&g->mutex);
}

static void work_done(work *w)
{
    gate_pass(w->context);
}

/* Submits count works at once and waits for all; the first failure is the result. */
static realm_status run_works(engine *e, work *works, int count, realm_error *error)
{
    gate g;
    gate_init(&g, count);
    for (int i = 0; i < count; i++) {
        works[i].done = work_done;
        works[i].context = &g;
        engine_submit(e, &works[i]);
    }
    gate_wait(&g);
    for (int i = 0; i < count; i++)
        if (works[i].status)
            return realm_fail(error, works[i].status, "%s", works[i].error.message);
    return REALM_OK;
}

/* count sessions, each of a tenant of its own. On failure those that were opened are closed. */
static realm_status open_sessions(bench *b, session **sessions, int count, realm_error *error)
{
    for (int i = 0; i < count; i++) {
        session_options options = {.tenant = (uint32_t)i + 1,
                                   .priority = PRIORITY_NORMAL,
                                   .sampler = SAMPLER_OPTIONS_DEFAULT};
        realm_status status = session_open(&sessions[i], b->engine, &options, error);
        if (status) {
            while (i--)
                session_close(sessions[i]);
            return status;
        }
    }
    return REALM_OK;
}

/* Random tokens, different in each session and repetition, so that no cache can spare the work. */
static void fill_tokens(const bench *b, token_id *tokens, int64_t count, uint64_t seed)
{
    rng r;
    rng_init(&r, seed);
    uint64_t n_vocab = (uint64_t)model_hyperparameters(b->model)->n_vocab;
    for (int64_t i = 0; i < count; i++)
        tokens[i] = (token_id)(rng_next(&r) % n_vocab);
}

static realm_status time_prompt(bench *b, int batch, int repetition, timings *t, realm_error *error)
{
    session *sessions[MAX_BATCH];
    work works[MAX_BATCH];
    memset(works, 0, sizeof works);
    int64_t n = b->options.n_prompt;
    token_id *tokens = malloc((size_t)(n * batch) * sizeof *tokens);
    if (!tokens)
        return realm_fail_memory(error, (size_t)(n * batch) * sizeof *tokens, "prompts");
    fill_tokens(b, tokens, n * batch, (uint64_t)repetition * 7919 + (uint64_t)batch);
    realm_status status = open_sessions(b, sessions, batch, error);
    if (status) {
        free(tokens);
        return status;
    }
    for (int i = 0; i < batch; i++)
        works[i] = (work){.kind = WORK_FEED,
                          .session = sessions[i],
                          .tokens = tokens + i * n,
                          .n_tokens = (int32_t)n};
    moment start = moment_now(b->engine);
    status = run_works(b->engine, works, batch, error);
    add_timing(t, start, moment_now(b->engine));
    for (int i = 0; i < batch; i++)
        session_close(sessions[i]);
    free(tokens);
    return status;
}

static realm_status time_native(bench *b, int batch, int repetition, timings *t, realm_error *error)
{
    session *sessions[MAX_BATCH];
    work works[MAX_BATCH];
    token_id firsts[MAX_BATCH];
    memset(works, 0, sizeof works);
    fill_tokens(b, firsts, batch, (uint64_t)repetition);
    realm_status status = open_sessions(b, sessions, batch, error);
    if (status)
        return status;
    for (int i = 0; i < batch; i++)
        works[i] = (work){
            .kind = WORK_FEED, .session = sessions[i], .tokens = &firsts[i], .n_tokens = 1};
    status = run_works(b->engine, works, batch, error);
    moment start = moment_now(b->engine);
    if (!status) {
        for (int i = 0; i < batch; i++)
            works[i] = (work){
                .kind = WORK_GENERATE,
                .session = sessions[i],
                .generate = {.max_tokens = (int32_t)b->options.n_generate, .ignore_eos = 1}};
        status = run_works(b->engine, works, batch, error);
    }
    add_timing(t, start, moment_now(b->engine));
    for (int i = 0; i < batch; i++)
        session_close(sessions[i]);
    return status;
}

/* ---- sandboxed ------------------------------------------------------------------------------------ */

typedef struct guest_run {
    gate *gate;
    engine *engine;
    moment fed, ended; /* when the driver said "<" and ">"; on its sandbox thread */
    realm_status status;
    char message[REALM_ERROR_MESSAGE_SIZE];
} guest_run;

static void guest_text(void *context, const char *text, size_t size)
{
    guest_run *g = context;
    for (size_t i = 0; i < size; i++)
        *(text[i] == '<' ? &g->fed : &g->ended) = moment_now(g->engine);
}

static void guest_done(void *context, const sandbox_result *result)
{
    guest_run *g = context;
    g->status = result->status;
    snprintf(g->message, sizeof g->message, "%s", result->message);
    gate_pass(g->gate);
}

/* From the first guest that had fed its token to the last that ended. */
static realm_status time_sandboxed(bench *b, int batch, int repetition, timings *t,
                                   realm_error *error)
{
    guest_run runs[MAX_BATCH];
    gate g;
    gate_init(&g, batch);
    realm_status status = REALM_OK;
    token_id firsts[MAX_BATCH];
    fill_tokens(b, firsts, batch, (uint64_t)repetition);
    for (int i = 0; i < batch; i++) {
        char body[96];
        int size = snprintf(body, sizeof body, "{\"tokens\":%lld,\"prompt\":%d}",
                            (long long)b->options.n_generate, (int)firsts[i]);
        runs[i] = (guest_run){.gate = &g, .engine = b->engine};
        sandbox_input input = {.program = b->driver,
                               .tenant = b->tenants[i],
                               .body = body,
                               .body_size = (size_t)size,
                               .priority = PRIORITY_NORMAL,
                               .context = &runs[i],
                               .on_text = guest_text,
                               .on_done = guest_done};
        realm_error why = {0};
        realm_status started = sandbox_start(NULL, b->host, &input, &why);
        if (started) {
            status = realm_fail(error, started, "%s", why.message);
            gate_pass(&g);
        }
    }
    gate_wait(&g);
    moment start = {.ns = UINT64_MAX}, end = {0};
    for (int i = 0; i < batch && !status; i++) {
        if (runs[i].status)
            status = realm_fail(error, runs[i].status, "%s", runs[i].message);
        if (runs[i].fed.ns < start.ns)
            start = runs[i].fed;
        if (runs[i].ended.ns > end.ns)
            end = runs[i].ended;
    }
    if (!status)
        add_timing(t, start, end);
    return status;
}

/* ---- the runs ------------------------------------------------------------------------------------- */

static realm_status bench_prompt(bench *b, int batch, realm_error *error)
{
    timings warm_up = {0}, t = {0};
    realm_status status = time_prompt(b, batch, 1000, &warm_up, error);
    for (int i = 0; i < b->options.repeat && !status; i++)
        status = time_prompt(b, batch, i, &t, error);
    if (!status)
        add_row(b, "pp", b->options.n_prompt, batch, 0, &t, 0);
    return status;
}

static realm_status bench_generation(bench *b, int batch, realm_error *error)
{
    timings warm_up = {0}, native = {0}, sandboxed = {0};
    realm_status status = time_native(b, batch, 1000, &warm_up, error);
    if (!status && b->options.sandbox)
        status = time_sandboxed(b, batch, 1000, &warm_up, error);
    for (int i = 0; i < b->options.repeat && !status; i++) {
        status = time_native(b, batch, i, &native, error);
        if (!status && b->options.sandbox)
            status = time_sandboxed(b, batch, i, &sandboxed, error);
    }
    if (status)
        return status;
    add_row(b, "tg", b->options.n_generate, batch, 0, &native, 0);
    if (b->options.sandbox)
        add_row(b, "tg", b->options.n_generate, batch, 1, &sandboxed, rate_of_last(b));
    return REALM_OK;
}

static realm_status open_tenants(bench *b, int64_t largest, realm_error *error)
{
    sandbox_model granted = {model_name(b->model), b->engine};
    for (int64_t i = 0; i < largest; i++) {
        tenant_grants grants = {.number = (uint32_t)i + 1,
                                .name = "bench",
                                .weight = 1,
                                .limits = SANDBOX_LIMITS_DEFAULT,
                                .models = &granted,
                                .n_models = 1};
        grants.limits.cpu_ns = UINT64_MAX / 4;
        realm_status status = sandbox_tenant_open(&b->tenants[i], &grants, error);
        if (status)
            return status;
    }
    return REALM_OK;
}

static realm_status set_up(bench *b, int64_t largest, realm_error *error)
{
    backend_cpu_options device = {.n_threads = (int32_t)b->options.n_threads};
    realm_status status = backend_cpu_open(&b->device, &device, error);
    if (status)
        return status;
    progress bar;
    progress_begin(&bar, "loading the model");
    model_options options = {.progress = progress_step, .progress_context = &bar};
    if (largest > 64)
        options.max_batch_outputs = (int32_t)largest;
    status = model_open(&b->model, b->device, b->options.model, &options, error);
    progress_end(&bar);
    engine_options settings = {.gather_us = -1, .max_sessions = (int32_t)largest + 8};
    if (!status)
        status = engine_open(&b->engine, b->model, &settings, error);
    if (status || !b->options.sandbox)
        return status;
    sandbox_host_options host = {0};
    status = sandbox_host_open(&b->host, &host, error);
    if (!status)
        status = program_open(&b->driver, b->host, "driver", bench_driver, bench_driver_size,
                              error);
    return status ? status : open_tenants(b, largest, error);
}

static void tear_down(bench *b)
{
    for (int i = 0; i < MAX_BATCH; i++)
        sandbox_tenant_release(b->tenants[i]);
    program_release(b->driver);
    if (b->host)
        sandbox_host_close(b->host);
    if (b->engine)
        engine_close(b->engine);
    if (b->model)
        model_close(b->model);
    if (b->device)
        b->device->table->close(b->device);
}

static realm_status run_all(bench *b, const int64_t *batches, size_t n_batches, realm_error *error)
{
    int64_t largest = 1;
    for (size_t i = 0; i < n_batches; i++)
        if (batches[i] > largest)
            largest = batches[i];
    realm_status status = set_up(b, largest, error);
    if (!status && !b->options.json) {
        char device[256];
        b->device->table->describe(b->device, device, sizeof device);
        printf("%s\n%s\n\n", model_name(b->model), device);
    }
    if (!status && b->options.n_prompt)
        status = bench_prompt(b, 1, error);
    for (size_t i = 0; i < n_batches && !status && b->options.n_generate; i++)
        status = bench_generation(b, (int)batches[i], error);
    return status;
}

int cmd_bench(int argc, char **argv)
{
    bench b = {.options = {.batches = "1", .n_prompt = 512, .n_generate = 64, .repeat = 3}};
    bench_options *o = &b.options;
    const option options[] = {
        {.name = "model",
         .letter = 'm',
         .kind = OPTION_TEXT,
         .out = &o->model,
         .value = "FILE",
         .required = 1,
         .help = "the GGUF file of the model"},
        {.name = "threads",
         .letter = 't',
         .kind = OPTION_INT,
         .out = &o->n_threads,
         .value = "N",
         .min = 1,
         .max = 1024,
         .help = "threads that compute (default: the cores there are)"},
        {.name = "pp",
         .kind = OPTION_INT,
         .out = &o->n_prompt,
         .value = "N",
         .min = 0,
         .max = 1 << 20,
         .help = "tokens of the prompt (0: do not measure prompts)"},
        {.name = "tg",
         .kind = OPTION_INT,
         .out = &o->n_generate,
         .value = "N",
         .min = 0,
         .max = 1 << 20,
         .help = "tokens that each session writes (0: do not measure generation)"},
        {.name = "batch",
         .kind = OPTION_TEXT,
         .out = &o->batches,
         .value = "LIST",
         .help = "numbers of sessions at once, such as 1,8"},
        {.name = "sandbox",
         .kind = OPTION_FLAG,
         .out = &o->sandbox,
         .help = "measure generation also with each session driven token by token by a guest"},
        {.name = "repeat",
         .letter = 'r',
         .kind = OPTION_INT,
         .out = &o->repeat,
         .value = "N",
         .min = 1,
         .max = MAX_REPEAT,
         .help = "repetitions, of which the median counts"},
        {.name = "json", .kind = OPTION_FLAG, .out = &o->json, .help = "print a JSON list"},
        {0}};
    const options_command command = {
        .name = "bench",
        .summary = "measure the speed of prompts and generation",
        .options = options,
        .notes = "Example\n  realm bench --model model.gguf --batch 1,8 --sandbox\n",
    };
    int code = options_parse(&command, argc, argv);
    if (code != OPTIONS_GO_ON)
        return code;
    int64_t batches[MAX_BATCHES];
    size_t n_batches;
    realm_error error = {0};
    if (options_int_list(o->batches, 1, MAX_BATCH, batches, MAX_BATCHES, &n_batches, &error))
        return options_wrong(&command, "--batch: %s", error.message);
    if (!o->n_threads)
        o->n_threads = cpu_count();
    b.rows = json_array();
    realm_status status = run_all(&b, batches, n_batches, &error);
    tear_down(&b);
    if (!status && o->json) {
        char *text = json_dumps(b.rows, JSON_INDENT(1) | JSON_REAL_PRECISION(7));
        if (text)
            puts(text);
        free(text);
    }
    json_decref(b.rows);
    return status ? command_failed("bench", &error) : EXIT_OK;
}
