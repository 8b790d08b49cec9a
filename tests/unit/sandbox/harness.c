/* tests/unit/sandbox/harness.c: see harness.h. */
#include "harness.h"

#include <signal.h>

static realm_status resolve(void *context, const char *name, size_t size, program **out,
                            realm_error *error)
{
    harness *h = context;
    if (size != 1 || name[0] < '0' || name[0] > '7' || !h->programs[name[0] - '0'])
        return realm_fail(error, REALM_NOT_FOUND, "there is no program '%.*s'", (int)size, name);
    *out = program_retain(h->programs[name[0] - '0']);
    return REALM_OK;
}

/* Wasmtime turns SIGSEGV, SIGILL and SIGFPE of guests into traps with handlers that it installs once a
 * process. cmocka puts its own there for the length of each test and each fixture, so they are saved
 * when a host has been opened and put back whenever guests are about to run. */
static const int signals[] = {SIGSEGV, SIGILL, SIGFPE, SIGBUS};
static struct sigaction handlers[4];
static int saved;

static void save_handlers(void)
{
    for (int i = 0; i < 4 && !saved; i++)
        sigaction(signals[i], NULL, &handlers[i]);
    saved = 1;
}

void harness_signals(void)
{
    for (int i = 0; i < 4; i++)
        sigaction(signals[i], &handlers[i], NULL);
}

void harness_tenant(harness *h)
{
    realm_error error;
    sandbox_tenant_release(h->tenant);
    assert_status(sandbox_tenant_open(&h->tenant, &h->grants, &error), REALM_OK, error);
}

void harness_open(harness *h, const fake_options *fake, int max_requests)
{
    memset(h, 0, sizeof *h);
    realm_error error;
    const sandbox_host_options options = {.cache_folder = "",
                                          .n_cores = fake && fake->computes_elsewhere ? 64 : 0,
                                          .max_requests = max_requests ? max_requests : 8};
    assert_status(sandbox_host_open(&h->host, &options, &error), REALM_OK, error);
    save_handlers();
    assert_status(state_memory_open(&h->state, &error), REALM_OK, error);
    h->engine = fake_engine_open(fake);
    h->model = (sandbox_model){"fake", h->engine};
    h->grants = (tenant_grants){.number = 7,
                                .name = "acme",
                                .capabilities = CAPABILITY_ALL,
                                .limits = SANDBOX_LIMITS_DEFAULT,
                                .models = &h->model,
                                .n_models = 1,
                                .state = h->state,
                                .resolve = resolve,
                                .resolve_context = h};
    h->grants.limits.wall_ns = 2 * A_MINUTE_NS;
    h->grants.limits.memory64_bytes = 16ull << 30;
    harness_tenant(h);
}

void harness_close(harness *h)
{
    for (int i = 0; i < 8; i++)
        program_release(h->programs[i]);
    sandbox_tenant_release(h->tenant);
    sandbox_host_close(h->host);
    fake_engine_close(h->engine);
    h->state->table->close(h->state);
}

program *harness_program(harness *h, const char *wat)
{
    realm_error error;
    program *p = NULL;
    assert_status(program_open(&p, h->host, "test", wat, strlen(wat), &error), REALM_OK, error);
    return p;
}

const char *harness_refusal(harness *h, const char *wat, realm_status *status)
{
    static realm_error error;
    program *p = NULL;
    memset(&error, 0, sizeof error);
    *status = program_open(&p, h->host, "test", wat, strlen(wat), &error);
    program_release(p);
    return error.message;
}

static void on_text(void *context, const char *text, size_t size)
{
    outcome *o = context;
    size_t room = o->text_size < sizeof o->text - 1 ? sizeof o->text - 1 - o->text_size : 0;
    memcpy(o->text + o->text_size, text, size < room ? size : room);
    o->text_size += size;
}

static void on_log(void *context, int level, const char *text, size_t size)
{
    outcome *o = context;
    size_t used = strlen(o->log);
    snprintf(o->log + used, sizeof o->log - used, "%d %.*s\n", level, (int)size, text);
}

outcome harness_run_program(harness *h, program *p, const char *input)
{
    outcome o = {0};
    harness_signals();
    sandbox_input in = {.program = p,
                        .tenant = h->tenant,
                        .id = "t",
                        .body = input,
                        .body_size = strlen(input),
                        .seed = 42,
                        .priority = PRIORITY_NORMAL,
                        .allowance = h->allowance,
                        .prompt_is_paid = h->prompt_is_paid,
                        .context = &o,
                        .on_text = on_text,
                        .on_log = on_log};
    sandbox_result result;
    buffer kept;
    o.status = sandbox_run(h->host, &in, &result, &kept);
    snprintf(o.message, sizeof o.message, "%s", result.message);
    snprintf(o.json, sizeof o.json, "%s", result.json ? result.json : "");
    o.usage = result.usage;
    buffer_release(&kept);
    return o;
}

outcome harness_run(harness *h, const char *wat, const char *input)
{
    program *p = harness_program(h, wat);
    outcome o = harness_run_program(h, p, input);
    program_release(p);
    return o;
}

void harness_assert_clean(harness *h)
{
    sandbox_host_stats stats;
    sandbox_host_stats_get(h->host, &stats);
    assert_int_equal(stats.active, 0);
    assert_int_equal(stats.waiting, 0);
    assert_int_equal(fake_engine_sessions(h->engine), 0);
    assert_int_equal(fake_engine_tensors(h->engine), 0);
}
