/* server/api_status.c: how the server is: health, readiness, version, metrics, and what it serves. */
#include <stdio.h>
#include <string.h>

#include "server/router.h"

void api_health(server *s, exchange *x, const caller *c)
{
    (void)s;
    (void)c;
    static const char ok[] = "{\"status\":\"ok\"}";
    exchange_reply(x, 200, "application/json", ok, sizeof ok - 1);
}

void api_ready(server *s, exchange *x, const caller *c)
{
    (void)c;
    if (!net_is_draining(s->net)) {
        static const char ready[] = "{\"status\":\"ready\"}";
        exchange_reply(x, 200, "application/json", ready, sizeof ready - 1);
        return;
    }
    api_problem problem;
    api_problem_set(&problem, 503, "server_error", "draining", "", "the server is shutting down");
    api_reply_problem(x, &problem);
}

void api_version(server *s, exchange *x, const caller *c)
{
    (void)s;
    (void)c;
    api_reply_json(x, 200, json_pack("{s:s, s:s}", "name", "realm", "version", realm_version()));
}

/* ---- metrics ---- */

/* name, kind, help, value of an engine */
#define ENGINE_MAP(X)                                                                              \
    X("realm_engine_iterations_total", "counter", "Batches computed.", iterations)                 \
    X("realm_engine_prefilled_tokens_total", "counter", "Rows of prompts computed.",               \
      tokens_prefilled)                                                                            \
    X("realm_engine_decoded_tokens_total", "counter", "Rows of generation computed.",              \
      tokens_decoded)                                                                              \
    X("realm_engine_preemptions_total", "counter", "Sessions that gave their pages back.",         \
      preemptions)                                                                                 \
    X("realm_engine_sessions", "gauge", "Open sessions.", sessions)                                \
    X("realm_engine_waiting", "gauge", "Sessions that wait for the engine.", waiting)              \
    X("realm_engine_kv_pages", "gauge", "Pages of keys and values there are.", pages_total)        \
    X("realm_engine_kv_pages_used", "gauge", "Pages of keys and values in use.", pages_used)       \
    X("realm_engine_kv_host_pages_used", "gauge", "Copies of pages in the host's memory.",         \
      pages_saved)                                                                                 \
    X("realm_engine_kv_pages_saved_total", "counter", "Pages copied to the host's memory.",        \
      pages_saved_total)                                                                           \
    X("realm_engine_kv_pages_loaded_total", "counter", "Pages copied back from there.",            \
      pages_loaded_total)

#define ENGINE_LABEL_SIZE 320

/* A histogram in the text format, of how many rows batches had. */
static void write_rows(server *s, buffer *out, const engine_stats *stats,
                       const char (*labels)[ENGINE_LABEL_SIZE])
{
    static const char name[] = "realm_engine_batch_rows";
    metrics_write_head(out, name, "histogram", "Rows of a batch: tokens computed in one walk.");
    for (int i = 0; i < s->n_models; i++) {
        uint64_t count = 0;
        for (int k = 0; k < ENGINE_ROW_CLASSES; k++) {
            char bound[16];
            snprintf(bound, sizeof bound, k < ENGINE_ROW_CLASSES - 1 ? "%d" : "+Inf", 1 << k);
            count += stats[i].by_rows[k];
            buffer_printf(out, "%s_bucket{%s,le=\"%s\"} %" PRIu64 "\n", name, labels[i], bound,
                          count);
        }
        buffer_printf(out, "%s_sum{%s} %" PRIu64 "\n%s_count{%s} %" PRIu64 "\n", name, labels[i],
                      stats[i].tokens_prefilled + stats[i].tokens_decoded, name, labels[i], count);
    }
}

static void write_engines(server *s, buffer *out)
{
    engine_stats stats[SERVER_MAX_MODELS];
    char labels[SERVER_MAX_MODELS][ENGINE_LABEL_SIZE];
    for (int i = 0; i < s->n_models; i++) {
        engine_stats_get(s->models[i].engine, &stats[i]);
        buffer label;
        buffer_init(&label, sizeof labels[i] - 1);
        buffer_add_text(&label, "model=\"");
        metrics_write_escaped(&label, s->models[i].name);
        buffer_add_text(&label, "\"");
        snprintf(labels[i], sizeof labels[i], "%s", buffer_text(&label));
        buffer_release(&label);
    }
#define ENGINE_FAMILY(name, kind, help, field)                                                     \
    metrics_write_head(out, name, kind, help);                                                     \
    for (int i = 0; i < s->n_models; i++)                                                          \
        metrics_write_value(out, name, labels[i], (double)stats[i].field);
    ENGINE_MAP(ENGINE_FAMILY)
#undef ENGINE_FAMILY
    metrics_write_head(out, "realm_engine_busy_seconds_total", "counter",
                       "Time in which batches were computed.");
    for (int i = 0; i < s->n_models; i++)
        metrics_write_value(out, "realm_engine_busy_seconds_total", labels[i],
                            (double)stats[i].busy_ns / 1e9);
    write_rows(s, out, stats, labels);
}

/* What each tenant has and holds, of those that were here since the server started. */
static void write_tenants(server *s, buffer *out)
{
    buffer tokens, sessions, pages;
    buffer_init(&tokens, out->cap_bytes);
    buffer_init(&sessions, out->cap_bytes);
    buffer_init(&pages, out->cap_bytes);
    size_t position = 0;
    for (const map_slot *slot; (slot = map_next(&s->tenants, &position));) {
        char tenant[128];
        snprintf(tenant, sizeof tenant, "tenant=\"%.*s\"", (int)slot->key_size, slot->key);
        metrics_write_value(&tokens, "realm_tenant_tokens_running", tenant,
                            (double)s->gate->table->taken(s->gate, slot->key, slot->key_size));
        for (int i = 0; i < s->n_models; i++) {
            engine_tenant_stats held;
            engine_tenant_stats_get(s->models[i].engine, (uint32_t)(uintptr_t)slot->value, &held);
            if (!held.sessions && !held.pages)
                continue;
            buffer label;
            buffer_init(&label, 4096);
            buffer_printf(&label, "tenant=\"%.*s\",model=\"", (int)slot->key_size, slot->key);
            metrics_write_escaped(&label, s->models[i].name);
            buffer_add_text(&label, "\"");
            metrics_write_value(&sessions, "realm_tenant_sessions", buffer_text(&label),
                                held.sessions);
            metrics_write_value(&pages, "realm_tenant_kv_pages", buffer_text(&label), held.pages);
            buffer_release(&label);
        }
    }
    metrics_write_head(out, "realm_tenant_tokens_running", "gauge",
                       "Tokens that a tenant's running requests have taken so far, in and out.");
    buffer_add(out, tokens.data, tokens.size);
    metrics_write_head(out, "realm_tenant_sessions", "gauge", "Sessions that a tenant has open.");
    buffer_add(out, sessions.data, sessions.size);
    metrics_write_head(out, "realm_tenant_kv_pages", "gauge",
                       "Pages of keys and values that a tenant holds.");
    buffer_add(out, pages.data, pages.size);
    if (tokens.lost || sessions.lost || pages.lost)
        out->lost = REALM_NO_MEMORY;
    buffer_release(&tokens);
    buffer_release(&sessions);
    buffer_release(&pages);
}

static void write_one(buffer *out, const char *name, const char *kind, const char *help,
                      double value)
{
    metrics_write_head(out, name, kind, help);
    metrics_write_value(out, name, "", value);
}

static void write_traces(server *s, buffer *out)
{
    static const char exported[] = "realm_traces_exported_total",
                      dropped[] = "realm_traces_dropped_total";
    tracer *tracers[] = {s->tracer, s->leaving};
    tracer_stats stats = s->traces_before, its;
    for (size_t i = 0; i < 2; i++) {
        if (!tracers[i])
            continue;
        tracer_stats_get(tracers[i], &its);
        tracer_stats_add(&stats, &its);
    }
    metrics_write_head(out, exported, "counter", "Spans that a collector has taken.");
    metrics_write_value(out, exported, "", (double)stats.exported);
    metrics_write_head(out, dropped, "counter", "Spans that were given up.");
    metrics_write_value(out, dropped, "reason=\"full\"", (double)stats.dropped_full);
    metrics_write_value(out, dropped, "reason=\"failed\"", (double)stats.dropped_failed);
    metrics_write_value(out, dropped, "reason=\"oversize\"", (double)stats.dropped_oversize);
}

void api_metrics(server *s, exchange *x, const caller *c)
{
    (void)c;
    buffer out;
    buffer_init(&out, (size_t)64 << 20);
    metrics_write(&s->metrics, &out);
    write_engines(s, &out);
    write_tenants(s, &out);
    sandbox_host_stats sandboxes;
    sandbox_host_stats_get(s->sandbox, &sandboxes);
    write_one(&out, "realm_sandboxes", "gauge", "Running sandboxes.", sandboxes.active);
    write_one(&out, "realm_sandboxes_waiting", "gauge", "Requests that wait for a sandbox.",
              sandboxes.waiting);
    write_one(&out, "realm_sandboxes_started_total", "counter", "Sandboxes started.",
              (double)sandboxes.started);
    write_one(&out, "realm_sandbox_preemptions_total", "counter",
              "Times a guest gave its thread to others.", (double)sandboxes.preemptions);
    const net_stats *sockets = net_stats_get(s->net);
    write_one(&out, "realm_connections", "gauge", "Open connections.", sockets->connections);
    write_one(&out, "realm_connections_accepted_total", "counter", "Connections accepted.",
              (double)sockets->accepted);
    write_one(&out, "realm_connections_refused_total", "counter",
              "Connections over the limit, closed at once.", (double)sockets->refused);
    write_one(&out, "realm_connections_timed_out_total", "counter",
              "Connections closed because their client was too slow.", (double)sockets->timeouts);
    write_one(&out, "realm_received_bytes_total", "counter", "Bytes read from clients.",
              (double)sockets->read_bytes);
    write_one(&out, "realm_sent_bytes_total", "counter", "Bytes written to clients.",
              (double)sockets->written_bytes);
    write_traces(s, &out);
    if (out.lost)
        exchange_refuse(x, 503, "unavailable", "the host is out of memory");
    else
        exchange_reply(x, 200, "text/plain; version=0.0.4; charset=utf-8", buffer_text(&out),
                       out.size);
    buffer_release(&out);
}
