/* cli/bench_sandbox.c: generation with each session in a tenant and sandbox of its own, driven token
 * by token by a guest, or by `generate` (guest/programs/driver.c). Guests' texts and ends come on sandbox
 * threads. */
#include <stdio.h>

#include "cli/bench.h"

extern const unsigned char bench_driver[];
extern const size_t bench_driver_size;

static realm_status open_tenants(bench *b, int64_t count, realm_error *error)
{
    sandbox_model granted = {model_name(b->model), b->engine};
    for (int64_t i = 0; i < count; i++) {
        tenant_grants grants = {.number = (uint32_t)i + 1,
                                .name = "bench",
                                .weight = 1,
                                .limits = SANDBOX_LIMITS_DEFAULT,
                                .models = &granted,
                                .n_models = 1};
        grants.limits.cpu_ns = UINT64_MAX / 4;
        grants.capabilities = b->options.candidates > 0 ? CAPABILITY_LOGITS : 0;
        realm_status status = sandbox_tenant_open(&b->tenants[i], &grants, error);
        if (status)
            return status;
    }
    return REALM_OK;
}

realm_status bench_sandbox_open(bench *b, int64_t count, realm_error *error)
{
    char programs[BENCH_PATH_SIZE];
    sandbox_host_options host = {0};
    if (b->options.cache_folder) {
        snprintf(programs, sizeof programs, "%s/programs", b->options.cache_folder);
        host.cache_folder = programs;
    }
    realm_status status = sandbox_host_open(&b->host, &host, error);
    if (!status)
        status = program_open(&b->driver, b->host, "driver", bench_driver, bench_driver_size,
                              error);
    return status ? status : open_tenants(b, count, error);
}

void bench_sandbox_close(bench *b)
{
    for (int i = 0; i < BENCH_MAX_BATCH; i++)
        sandbox_tenant_release(b->tenants[i]);
    program_release(b->driver);
    if (b->host)
        sandbox_host_close(b->host);
}

typedef struct guest_run {
    bench_gate *gate;
    engine *engine;
    bench_moment fed, ended; /* of its first and its last text; on its sandbox thread */
    int said;
    realm_status status;
    char message[REALM_ERROR_MESSAGE_SIZE];
} guest_run;

static void guest_text(void *context, const char *text, size_t size)
{
    guest_run *g = context;
    (void)text;
    (void)size;
    *(g->said++ ? &g->ended : &g->fed) = bench_moment_now(g->engine);
}

static void guest_done(void *context, const sandbox_result *result)
{
    guest_run *g = context;
    g->status = result->status;
    snprintf(g->message, sizeof g->message, "%s", result->message);
    bench_gate_pass(g->gate);
}

static realm_status start_guest(bench *b, int index, int64_t context, token_id first,
                                guest_run *run, realm_error *error)
{
    char body[500], top_k[40] = "", generate[100] = "";
    sampler_options o = bench_native_sampler(b, (uint64_t)index);
    if (o.top_k > 0)
        snprintf(top_k, sizeof top_k, ",\"top_k\":%d", (int)o.top_k);
    if (b->options.generate)
        snprintf(generate, sizeof generate,
                 ",\"generate\":{\"max_tokens\":%lld,\"ignore_eos\":true,\"stream\":true}",
                 (long long)b->options.n_generate + 1);
    int size = snprintf(body, sizeof body,
                        "{\"tokens\":%lld,\"prompt\":%d,\"context\":%lld,\"vocabulary\":%d,"
                        "\"candidates\":%lld,"
                        "\"sampler\":{\"temperature\":%g,\"top_p\":%g,\"seed\":%d%s}%s}",
                        (long long)b->options.n_generate, (int)first, (long long)context,
                        (int)model_hyperparameters(b->model)->n_vocab,
                        (long long)b->options.candidates, (double)o.temperature, (double)o.top_p,
                        index, top_k, generate);
    sandbox_input input = {.program = b->driver,
                           .tenant = b->tenants[index],
                           .body = body,
                           .body_size = (size_t)size,
                           .priority = PRIORITY_NORMAL,
                           .context = run,
                           .on_text = guest_text,
                           .on_done = guest_done};
    return sandbox_start(NULL, b->host, &input, error);
}

/* The time in which all guests generate: from the last that had fed its tokens to the first that ended. They
 * start one after the other, so the first is some steps ahead; where so few tokens are asked for that it
 * ends before the last begins, it is the time from the first to the last. */
static void add_time(const guest_run *runs, int batch, int64_t tokens, bench_timings *t)
{
    bench_moment begun = runs[0].fed, all_fed = begun, first_end = runs[0].ended, end = first_end;
    for (int i = 1; i < batch; i++) {
        begun = runs[i].fed.ns < begun.ns ? runs[i].fed : begun;
        all_fed = runs[i].fed.ns > all_fed.ns ? runs[i].fed : all_fed;
        first_end = runs[i].ended.ns < first_end.ns ? runs[i].ended : first_end;
        end = runs[i].ended.ns > end.ns ? runs[i].ended : end;
    }
    if (first_end.decoded > all_fed.decoded && first_end.ns > all_fed.ns)
        bench_timings_add(t, all_fed, first_end, tokens);
    else
        bench_timings_add(t, begun, end, 0);
}

realm_status bench_sandbox_generation(bench *b, int batch, int64_t context, int repetition,
                                      bench_timings *t, realm_error *error)
{
    guest_run runs[BENCH_MAX_BATCH];
    token_id firsts[BENCH_MAX_BATCH];
    bench_gate g;
    realm_status status = REALM_OK;
    bench_gate_init(&g, batch);
    /* A context is the same each time: from the second on it is in its tenant's prefix cache, and no
     * guest of a batch still reads its prompt while others write. */
    bench_fill_tokens(b, firsts, batch, context > 0 ? (uint64_t)batch : (uint64_t)repetition);
    for (int i = 0; i < batch; i++) {
        realm_error why = {0};
        runs[i] = (guest_run){.gate = &g, .engine = b->engine};
        realm_status started = start_guest(b, i, context, firsts[i], &runs[i], &why);
        if (started) {
            status = realm_fail(error, started, "%s", why.message);
            bench_gate_pass(&g);
        }
    }
    bench_gate_wait(&g);
    for (int i = 0; i < batch && !status; i++)
        if (runs[i].status)
            status = realm_fail(error, runs[i].status, "%s", runs[i].message);
    if (t && !status)
        add_time(runs, batch, b->options.n_generate * batch, t);
    return status;
}
