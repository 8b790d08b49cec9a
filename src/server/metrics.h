/* server/metrics.h: counters and histograms for Prometheus, in its text format.
 *
 * One list says every family. A series is a family with its labels' values; a family has at most
 * METRICS_MAX_SERIES of them (histograms, of twenty lines each, METRICS_MAX_HISTOGRAMS), and what comes after is
 * counted under "other", so that neither tenants nor clients can grow the page without end. Owned by the net thread. */
#ifndef REALM_SERVER_METRICS_H
#define REALM_SERVER_METRICS_H

#include "base/buffer.h"
#include "base/map.h"

#define METRICS_MAX_SERIES     1000
#define METRICS_MAX_HISTOGRAMS 200

/* constant, kind, name, labels, help */
#define METRIC_MAP(X)                                                                              \
    X(REQUESTS, COUNTER, "realm_requests_total", "tenant,route,status",                            \
      "Requests answered, by status class.")                                                       \
    X(REFUSED, COUNTER, "realm_requests_refused_total", "tenant,reason",                           \
      "Requests refused before they ran.")                                                         \
    X(PROMPT_TOKENS, COUNTER, "realm_prompt_tokens_total", "tenant,model", "Tokens of prompts.")   \
    X(CACHED_TOKENS, COUNTER, "realm_cached_prompt_tokens_total", "tenant,model",                  \
      "Tokens of prompts that the prefix cache spared.")                                           \
    X(OUTPUT_TOKENS, COUNTER, "realm_generated_tokens_total", "tenant,model", "Tokens generated.") \
    X(SANDBOX_SECONDS, COUNTER, "realm_sandbox_cpu_seconds_total", "tenant",                       \
      "CPU time of guests and their host calls.")                                                  \
    X(SANDBOX_FAILURES, COUNTER, "realm_sandbox_failures_total", "tenant,reason",                  \
      "Runs of programs that ended with an error.")                                                \
    X(SANDBOX_STARTS, COUNTER, "realm_sandbox_starts_total", "tenant", "Sandboxes started.")       \
    X(SANDBOX_TRAPS, COUNTER, "realm_sandbox_traps_total", "tenant", "Guests that trapped.")       \
    X(PREFIXES, COUNTER, "realm_prefix_lookups_total", "tenant,model,result",                      \
      "Prompts that the prefix cache knew a part of (hit), or not (miss).")                        \
    X(CANCELLED, COUNTER, "realm_requests_cancelled_total", "tenant",                              \
      "Requests whose client went before the answer was whole.")                                   \
    X(DURATION, HISTOGRAM, "realm_request_duration_seconds", "tenant,route",                       \
      "From a request's head to the end of its answer.")                                           \
    X(FIRST_TOKEN, HISTOGRAM, "realm_time_to_first_token_seconds", "tenant,model",                 \
      "From the start of a run to its first token.")                                               \
    X(TOKEN_INTERVAL, HISTOGRAM, "realm_time_per_output_token_seconds", "tenant,model",            \
      "Mean time between the tokens of one answer.")                                               \
    X(TOKEN_GAP, HISTOGRAM, "realm_time_between_tokens_seconds", "tenant,model",                   \
      "Between two texts of one streamed answer.")                                                 \
    X(QUEUE, HISTOGRAM, "realm_queue_seconds", "tenant,model",                                     \
      "From a run's first work for the engine to its place in a batch.")                           \
    X(PREFILL, HISTOGRAM, "realm_prefill_seconds", "tenant,model",                                 \
      "From a run's place in a batch to its first token.")                                         \
    X(SANDBOX_START, HISTOGRAM, "realm_sandbox_start_seconds", "tenant",                           \
      "From the start of a run to its program's first instruction.")

typedef enum metric {
#define METRIC_ENUM(constant, kind, name, labels, help) METRIC_##constant,
    METRIC_MAP(METRIC_ENUM)
#undef METRIC_ENUM
        METRIC_COUNT
} metric;

/* Observations that are made elsewhere, one thread at a time, and handed over together. */
#define METRICS_N_BOUNDS 17
typedef struct metrics_samples {
    uint64_t count[METRICS_N_BOUNDS + 1]; /* up to each bound, and of more */
    double sum;
} metrics_samples;
void metrics_samples_add(metrics_samples *s, double seconds);

typedef struct metrics {
    map series[METRIC_COUNT]; /* label values -> series, owned */
} metrics;

void metrics_init(metrics *m);
void metrics_release(metrics *m);

/* values: one for each label of the family, in its order; NULL or "" is "none". */
void metrics_add(metrics *m, metric family, double amount, const char *const *values);
/* For histograms: one observation. */
void metrics_observe(metrics *m, metric family, double seconds, const char *const *values);
void metrics_merge(metrics *m, metric family, const metrics_samples *s, const char *const *values);
#define METRIC_LABELS(...) ((const char *const[]){__VA_ARGS__})

/* Appends all families. */
void metrics_write(const metrics *m, buffer *out);
/* For what is read somewhere else when it is asked for: a family's head, and one line of it. kind is
 * "gauge" or "counter"; labels is "" or "model=\"x\"". */
void metrics_write_head(buffer *out, const char *name, const char *kind, const char *help);
void metrics_write_value(buffer *out, const char *name, const char *labels, double value);
/* A label's value, escaped for the text format. */
void metrics_write_escaped(buffer *out, const char *text);

#endif
