/* server/api_request.c: what a request goes through on its way to a sandbox and back: admission, the choice of
 * a program, what it used. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "server/request_spans.h"
#include "tenancy/meter.h"

/* ---- models and programs ---- */

const char *const builtin_names[] = {"chat", "completion", "embeddings", "tokenize"};

served_model *server_find_model(server *s, const char *name)
{
    for (int i = 0; i < s->n_models; i++)
        if (strcmp(s->models[i].name, name) == 0)
            return &s->models[i];
    served_model *found = NULL;
    pthread_mutex_lock(&s->alias_mutex);
    for (int i = 0; i < s->n_aliases && !found; i++)
        if (strcmp(s->aliases[i].name, name) == 0)
            found = s->aliases[i].model;
    pthread_mutex_unlock(&s->alias_mutex);
    return found;
}

realm_status server_program(server *s, const caller *c, const exchange *x, builtin_kind kind,
                            program **out, int32_t *version, realm_error *error)
{
    realm_status status = s->gate->table->program(s->gate, c, builtin_names[kind], x->id, out,
                                                  version, error);
    if (status != REALM_NOT_FOUND ||
        !s->gate->table->allows_builtin(s->gate, c, builtin_names[kind]))
        return status;
    *out = program_retain(runtime_program(s->builtin[kind]));
    *version = 0;
    return REALM_OK;
}

/* ---- tickets ---- */

static void set_rate(exchange *x, const char *const names[3], const gate_rate *rate)
{
    if (!rate->limit)
        return;
    exchange_setf(x, names[0], "%" PRId64, rate->limit);
    exchange_setf(x, names[1], "%" PRId64, rate->remaining);
    char text[METER_DURATION_SIZE];
    exchange_set(x, names[2], meter_duration(rate->reset_ns, text));
}

static void set_rates(exchange *x, const gate_grant *grant)
{
    static const char *const requests[] = {"x-ratelimit-limit-requests",
                                           "x-ratelimit-remaining-requests",
                                           "x-ratelimit-reset-requests"};
    static const char *const tokens[] = {"x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens",
                                         "x-ratelimit-reset-tokens"};
    set_rate(x, requests, &grant->requests);
    set_rate(x, tokens, &grant->tokens);
}

static void refuse(server *s, exchange *x, const caller *c, const gate_grant *grant,
                   const realm_error *error)
{
    metrics_add(&s->metrics, METRIC_REFUSED, 1, METRIC_LABELS(c->name, grant->reason));
    set_rates(x, grant);
    if (grant->should_retry)
        exchange_setf(x, "retry-after", "%" PRIu64, (grant->retry_ns + 999999999u) / 1000000000u);
    else
        exchange_set(x, "x-should-retry", "false");
    api_problem problem;
    api_problem_set(&problem, 429, grant->should_retry ? "rate_limit_error" : "insufficient_quota",
                    grant->should_retry ? "rate_limit_exceeded" : "insufficient_quota", "", "%s",
                    error->message);
    api_reply_refusal(x, &problem);
}

static void remember_tenant(server *s, const caller *c)
{
    size_t size = strlen(c->name);
    if (s->tenants.count < METRICS_MAX_HISTOGRAMS && !map_get(&s->tenants, c->name, size))
        map_put(&s->tenants, c->name, size, (void *)(uintptr_t)sandbox_tenant_number(c->tenant),
                NULL);
}

int ticket_open(ticket *t, server *s, exchange *x, const caller *c, int64_t estimate)
{
    realm_error error;
    *t = (ticket){.server = s, .x = x, .caller = *c};
    if (net_is_draining(s->net)) {
        api_problem problem;
        api_problem_set(&problem, 503, "server_error", "draining", "",
                        "the server is shutting down; try again");
        api_reply_problem(x, &problem);
        return 0;
    }
    realm_status status = s->gate->table->admit(s->gate, c, estimate, &t->grant, &error);
    if (status == REALM_QUOTA) {
        refuse(s, x, c, &t->grant, &error);
        return 0;
    }
    if (status) {
        api_problem problem;
        metrics_add(&s->metrics, METRIC_REFUSED, 1, METRIC_LABELS(c->name, "unavailable"));
        api_problem_of(&problem, status, error.message);
        api_reply_problem(x, &problem);
        return 0;
    }
    set_rates(x, &t->grant);
    remember_tenant(s, c);
    exchange_retain(x);
    t->usage.model = t->model;
    t->usage.program = t->program;
    request_spans_admitted(t);
    return 1;
}

const sandbox_allowance *ticket_allowance(const ticket *t)
{
    return &t->grant.allowance;
}

static double seconds_between(uint64_t from_ns, uint64_t to_ns)
{
    return to_ns > from_ns ? (double)(to_ns - from_ns) / 1e9 : 0;
}

/* What the run waited for and how fast it went. */
static void observe_times(ticket *t, const guest_result *result)
{
    metrics *m = &t->server->metrics;
    const sandbox_usage *usage = &result->usage;
    const sandbox_times *at = &usage->times;
    const char *const *labels = METRIC_LABELS(t->caller.name, t->model);
    if (usage->prompt_tokens)
        metrics_add(m, METRIC_PREFIXES, 1,
                    METRIC_LABELS(t->caller.name, t->model, usage->cached_tokens ? "hit" : "miss"));
    if (at->started_ns)
        metrics_observe(m, METRIC_QUEUE, seconds_between(at->submitted_ns, at->started_ns), labels);
    if (at->first_token_ns) {
        metrics_observe(m, METRIC_PREFILL, seconds_between(at->started_ns, at->first_token_ns),
                        labels);
        metrics_observe(m, METRIC_FIRST_TOKEN,
                        seconds_between(result->started_ns, at->first_token_ns), labels);
    }
    if (at->first_token_ns && usage->generated_tokens > 1)
        metrics_observe(m, METRIC_TOKEN_INTERVAL,
                        seconds_between(at->first_token_ns, at->done_ns) /
                            (double)(usage->generated_tokens - 1),
                        labels);
    if (result->gaps.sum > 0)
        metrics_merge(m, METRIC_TOKEN_GAP, &result->gaps, labels);
}

void ticket_add(ticket *t, const guest_result *result, int choice)
{
    metrics *m = &t->server->metrics;
    const sandbox_usage *usage = &result->usage;
    t->usage.completion_tokens += usage->generated_tokens;
    t->usage.cpu_ns += usage->cpu_ns;
    if (!t->usage.first_token_ns)
        t->usage.first_token_ns = result->first_text_ns;
    const char *const *tenant = METRIC_LABELS(t->caller.name);
    if (result->status && result->status != REALM_CANCELLED)
        metrics_add(m, METRIC_SANDBOX_FAILURES, 1,
                    METRIC_LABELS(t->caller.name, realm_status_name(result->status)));
    if (result->status == REALM_QUOTA && usage->ran_out) /* it began, with too little left for it */
        metrics_add(m, METRIC_REFUSED, 1, METRIC_LABELS(t->caller.name, "budget"));
    if (result->status == REALM_TRAPPED)
        metrics_add(m, METRIC_SANDBOX_TRAPS, 1, tenant);
    metrics_add(m, METRIC_SANDBOX_STARTS, 1, tenant);
    metrics_observe(m, METRIC_SANDBOX_START, (double)usage->start_ns / 1e9, tenant);
    observe_times(t, result);
    request_spans_run(t, result, choice);
}

/* An answer that waits for its usage to be on the disk; in the exchange's memory. */
typedef struct held_answer {
    net_task task;
    server *server;
    exchange *x;
} held_answer;

static void let_go(held_answer *h)
{
    exchange *x = h->x;
    net_unhold(h->server->net);
    exchange_go(x);
    exchange_release(x);
}

static void on_durable_here(net_task *task)
{
    let_go(QUEUE_OWNER(task, held_answer, task));
}

static void on_durable(void *context)
{
    held_answer *h = context;
    net_post(h->server->net, &h->task);
}

static int settle(ticket *t, held_answer *h)
{
    gate *a = t->server->gate;
    t->is_settled = 1;
    t->usage.wall_ns = clock_ns() - t->x->started_ns;
    request_spans_settled(t);
    return a->table->settle(a, &t->caller, &t->grant, &t->usage, h ? on_durable : NULL, h);
}

/* The answer must not be had without its usage. */
static void withhold(exchange *x)
{
    if (x->state == EXCHANGE_SENDING)
        exchange_abort(x);
    else
        exchange_refuse(x, 503, "unavailable", "the host is out of memory");
}

void ticket_settle(ticket *t)
{
    exchange *x = t->x;
    held_answer *h = arena_take(&x->memory, sizeof *h);
    if (t->is_settled)
        return;
    int waits = 0;
    if (h) {
        *h = (held_answer){
            .task.run = on_durable_here, .server = t->server, .x = exchange_retain(x)};
        net_hold(t->server->net);
        exchange_hold(x);
        waits = settle(t, h);
        if (waits != 1)
            let_go(h);
    } else {
        settle(t, NULL);
    }
    if (waits < 0 || !h)
        withhold(x);
}

void ticket_close(ticket *t)
{
    server *s = t->server;
    const gate_usage *usage = &t->usage;
    if (!t->is_settled)
        settle(t, NULL);
    const char *const *labels = METRIC_LABELS(t->caller.name, t->model);
    metrics_add(&s->metrics, METRIC_PROMPT_TOKENS, (double)usage->prompt_tokens, labels);
    metrics_add(&s->metrics, METRIC_CACHED_TOKENS, (double)usage->cached_tokens, labels);
    metrics_add(&s->metrics, METRIC_OUTPUT_TOKENS, (double)usage->completion_tokens, labels);
    metrics_add(&s->metrics, METRIC_SANDBOX_SECONDS, (double)usage->cpu_ns / 1e9,
                METRIC_LABELS(t->caller.name));
    exchange_release(t->x);
}
