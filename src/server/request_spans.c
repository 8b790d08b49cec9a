/* server/request_spans.c: see request_spans.h. */
#include "server/request_spans.h"

#include <string.h>

#include "base/clock.h"
#include "server/grpc.h"
#include "server/tracer.h"

/* ---- the gateway ---- */

void request_spans_begin(server *s, exchange *x, int is_probe)
{
    int is_wanted = x->trace.parent && (x->trace.flags & TRACE_SAMPLED);
    if (!s->tracer || (is_probe && !is_wanted) || !tracer_samples(s->tracer, &x->trace))
        return;
    x->spans = spans_open(&x->trace);
    if (!x->spans)
        return;
    if (x->trace.parent)
        x->spans->state = trace_read_state(x->headers, x->n_headers, &x->spans->memory);
    span *root = spans_add(x->spans, NULL, "HTTP", x->started_ns);
    if (root)
        root->kind = SPAN_SERVER;
    if (strcmp(x->protocol, "websocket") != 0)
        spans_text(x->spans, root, "url.scheme", x->codec->secure ? "https" : "http");
}

/* Of the methods that HTTP knows; others are any text. */
static const char *method_of(const exchange *x)
{
    static const char *const known[] = {"GET",     "HEAD",    "POST",  "PUT",  "DELETE",
                                        "CONNECT", "OPTIONS", "TRACE", "PATCH"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(known[i], x->method) == 0)
            return known[i];
    return NULL;
}

static void fail_with(spans *s, span *of, const char *type)
{
    of->failed = 1;
    spans_text(s, of, "error.type", type);
}

static void describe_http(exchange *x, span *root, const route *by, int outcome)
{
    spans *s = x->spans;
    const char *method = method_of(x);
    char name[128];
    snprintf(name, sizeof name, "%s%s%s", method ? method : "HTTP", by ? " " : "",
             by ? by->path : "");
    spans_name(s, root, name);
    spans_text(s, root, "http.request.method", method ? method : "_OTHER");
    if (by) {
        spans_text(s, root, "http.route", by->path);
        spans_text(s, root, "url.path", x->path);
    }
    if (!outcome) /* nothing was answered */
        return;
    spans_int(s, root, "http.response.status_code", outcome);
    char text[16];
    snprintf(text, sizeof text, "%d", outcome);
    if (outcome >= 500)
        fail_with(s, root, text);
}

static void describe_grpc(exchange *x, span *root, const route *by)
{
    static const char *const names[] = {"OK",
                                        "CANCELLED",
                                        "UNKNOWN",
                                        "INVALID_ARGUMENT",
                                        "DEADLINE_EXCEEDED",
                                        "NOT_FOUND",
                                        "ALREADY_EXISTS",
                                        "PERMISSION_DENIED",
                                        "RESOURCE_EXHAUSTED",
                                        "FAILED_PRECONDITION",
                                        "ABORTED",
                                        "OUT_OF_RANGE",
                                        "UNIMPLEMENTED",
                                        "INTERNAL",
                                        "UNAVAILABLE",
                                        "DATA_LOSS",
                                        "UNAUTHENTICATED"};
    /* Those that are the server's fault, by the conventions. */
    const unsigned faults = 1u << GRPC_UNKNOWN | 1u << GRPC_DEADLINE_EXCEEDED |
                            1u << GRPC_UNIMPLEMENTED | 1u << GRPC_INTERNAL |
                            1u << GRPC_UNAVAILABLE | 1u << GRPC_DATA_LOSS;
    spans *s = x->spans;
    int is_known = *by->path == '/';
    spans_name(s, root, is_known ? by->path + 1 : "grpc");
    spans_text(s, root, "rpc.system.name", "grpc");
    spans_text(s, root, "rpc.method", is_known ? by->path + 1 : "_OTHER");
    for (size_t i = 0; i < x->n_trailers; i++) {
        if (strcmp(x->trailers[i].name, "grpc-status") != 0)
            continue;
        unsigned code = (unsigned)strtoul(x->trailers[i].value, NULL, 10);
        if (code >= sizeof names / sizeof *names)
            continue;
        spans_text(s, root, "rpc.status_code", names[code]);
        if (faults >> code & 1)
            fail_with(s, root, names[code]);
    }
}

void request_spans_over(exchange *x, const route *by, int outcome)
{
    spans *s = x->spans;
    span *root = s ? s->first : NULL;
    if (!root)
        return;
    root->end_ns = clock_ns();
    if (by && x->fail == grpc_fail)
        describe_grpc(x, root, by);
    else
        describe_http(x, root, by, outcome);
    int is_socket = strcmp(x->protocol, "websocket") == 0;
    spans_text(s, root, "network.protocol.name", is_socket ? "websocket" : "http");
    if (!is_socket)
        spans_text(s, root, "network.protocol.version", x->protocol + strlen("HTTP/"));
    spans_text(s, root, "realm.request_id", x->id);
    if (*x->tenant)
        spans_text(s, root, "realm.tenant", x->tenant);
    if (x->state == EXCHANGE_GONE && !x->upgrade && !root->failed)
        fail_with(s, root, "cancelled");
}

void request_spans_send(server *s, exchange *x)
{
    if (x->spans && s->tracer)
        tracer_take(s->tracer, x->spans);
    else if (x->spans) /* traces were switched off meanwhile */
        spans_close(x->spans);
    x->spans = NULL;
}

/* ---- the operation ---- */

static const char *status_type(realm_status status)
{
    return status == REALM_CANCELLED ? "cancelled" : realm_status_name(status);
}

void request_spans_admitted(ticket *t)
{
    spans *s = t->x->spans;
    if (s && s->first)
        t->span = spans_add(s, s->first, "request", clock_ns());
}

void request_spans_asked(ticket *t, const char *operation, int stream, int n_choices,
                         int64_t max_tokens)
{
    spans *s = t->x->spans;
    if (!t->span)
        return;
    char name[256];
    snprintf(name, sizeof name, "%s %s", operation, *t->model ? t->model : t->program);
    spans_name(s, t->span, name);
    spans_text(s, t->span, "gen_ai.operation.name", operation);
    spans_text(s, t->span, "gen_ai.provider.name", "realm");
    if (*t->model) {
        spans_text(s, t->span, "gen_ai.request.model", t->model);
        spans_text(s, t->span, "gen_ai.response.model", t->model);
    }
    spans_text(s, t->span, "realm.tenant", t->caller.name);
    spans_text(s, t->span, "realm.program", t->program);
    if (stream)
        spans_flag(s, t->span, "gen_ai.request.stream", 1);
    if (n_choices > 1)
        spans_int(s, t->span, "gen_ai.request.choice.count", n_choices);
    if (max_tokens >= 0)
        spans_int(s, t->span, "gen_ai.request.max_tokens", max_tokens);
    t->streams = stream;
}

static void add_phase(spans *s, const span *parent, const char *name, uint64_t start_ns,
                      uint64_t end_ns, const sandbox_answer *of, int is_last)
{
    span *phase = spans_add(s, parent, name, start_ns);
    if (!phase)
        return;
    phase->end_ns = end_ns;
    spans_int(s, phase, "realm.session", of->session);
    if (strcmp(name, "prefill") == 0) {
        spans_int(s, phase, "gen_ai.usage.input_tokens", of->prompt_tokens);
        spans_int(s, phase, "gen_ai.usage.cache_read.input_tokens", of->cached_tokens);
    } else if (strcmp(name, "decode") == 0) {
        spans_int(s, phase, "gen_ai.usage.output_tokens", of->generated_tokens);
    }
    if (is_last && of->status)
        fail_with(s, phase, status_type(of->status));
}

/* What has not begun has no span: a run cancelled in the queue has nothing behind it. */
static void add_answer(spans *s, const span *parent, const sandbox_answer *of)
{
    const sandbox_times *at = &of->times;
    if (!at->submitted_ns || !at->started_ns || !at->done_ns)
        return;
    int has_token = at->first_token_ns != 0, began = has_token || at->done_ns > at->started_ns;
    add_phase(s, parent, "queue", at->submitted_ns, at->started_ns, of, !began);
    if (began)
        add_phase(s, parent, "prefill", at->started_ns,
                  has_token ? at->first_token_ns : at->done_ns, of, !has_token);
    if (has_token)
        add_phase(s, parent, "decode", at->first_token_ns, at->done_ns, of, 1);
}

void request_spans_run(ticket *t, const guest_result *result, int choice)
{
    spans *s = t->x->spans;
    const sandbox_usage *usage = &result->usage;
    if (!t->span)
        return;
    t->n_runs++;
    uint64_t text_ns = result->first_text_ns ? result->started_ns + result->first_text_ns : 0;
    if (text_ns && (!t->first_text_ns || text_ns < t->first_text_ns))
        t->first_text_ns = text_ns;
    if (result->status && !t->failure)
        t->failure = result->status;
    span *run = spans_add(s, t->span, "sandbox", result->started_ns);
    if (!run)
        return;
    run->end_ns = result->started_ns + usage->wall_ns;
    spans_text(s, run, "realm.program", t->program);
    spans_int(s, run, "realm.program.version", t->usage.version);
    spans_int(s, run, "realm.choice", choice);
    spans_real(s, run, "realm.sandbox.cpu_seconds", (double)usage->cpu_ns / 1e9);
    spans_real(s, run, "realm.sandbox.start_seconds", (double)usage->start_ns / 1e9);
    if (result->status)
        fail_with(s, run, status_type(result->status));
    for (int32_t i = 0; i < usage->n_answers && i < SANDBOX_MAX_ANSWERS; i++)
        add_answer(s, run, &usage->answers[i]);
    if (usage->n_answers > SANDBOX_MAX_ANSWERS)
        spans_int(s, run, "realm.answers", usage->n_answers);
}

void request_spans_settled(ticket *t)
{
    spans *s = t->x->spans;
    span *of = t->span;
    if (!of || of->end_ns != of->start_ns)
        return;
    /* What never ran has been answered already, and is no longer than its answer. */
    uint64_t over_ns = s->first->end_ns, now = clock_ns();
    of->end_ns = over_ns > of->start_ns && !t->n_runs ? over_ns : now;
    spans_int(s, of, "gen_ai.usage.input_tokens", (int64_t)t->usage.prompt_tokens);
    spans_int(s, of, "gen_ai.usage.cache_read.input_tokens", (int64_t)t->usage.cached_tokens);
    spans_int(s, of, "gen_ai.usage.output_tokens", (int64_t)t->usage.completion_tokens);
    if (t->streams && t->first_text_ns > of->start_ns)
        spans_real(s, of, "gen_ai.response.time_to_first_chunk",
                   (double)(t->first_text_ns - of->start_ns) / 1e9);
    if (t->failure)
        fail_with(s, of, status_type(t->failure));
    else if (t->usage.failed)
        fail_with(s, of, "_OTHER");
}

void request_spans_finished(ticket *t, const char *const *reasons, size_t count)
{
    if (t->span)
        spans_texts(t->x->spans, t->span, "gen_ai.response.finish_reasons", reasons, count);
}
