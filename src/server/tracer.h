/* server/tracer.h: which requests are traced, and how their spans reach a collector: OTLP over HTTP.
 *
 *     net thread     tracer_samples, then tracer_take with a request's spans when it is all over
 *     tracer's own   gathers a batch, encodes it, posts it, tries again
 *
 * The threads meet in a list under a mutex, which holds at most queue_spans spans: where a collector is slow or gone,
 * what comes then is dropped and counted, and nothing waits. One batch at a time is on its way; while it waits to be
 * tried again the list fills. What a collector says with retry-after holds for the batches after it too.
 *
 * Settings, sampling, batching and trying again follow OpenTelemetry's specification of its SDKs. */
#ifndef REALM_SERVER_TRACER_H
#define REALM_SERVER_TRACER_H

#include "server/otlp.h"

typedef struct tracer tracer;

typedef enum trace_sampler {
    SAMPLER_ALWAYS_ON,
    SAMPLER_ALWAYS_OFF,
    SAMPLER_RATIO, /* of traces, by their id, whatever the caller says */
} trace_sampler;

typedef struct tracer_options tracer_options;
struct tracer_options {
    const char *endpoint;     /* http:// or https://; without a path it gets /v1/traces */
    const otlp_pair *headers; /* [n_headers] */
    size_t n_headers;
    const otlp_pair *resource; /* [n_resource]; what has no service.name gets "realm" */
    size_t n_resource;
    trace_sampler sampler; /* of traces that begin here, or of all */
    int parent_based;      /* a caller's sampled flag decides where there is a caller */
    double ratio;          /* of SAMPLER_RATIO: 0 to 1 */
    const char *ca_file;   /* NULL: the system's */
    int gzip;
    int32_t timeout_ms;               /* of a post. 0: 10,000 */
    int32_t retry_ms;                 /* a batch is tried for so long. 0: 30,000 */
    int32_t delay_ms;                 /* a batch is gathered for so long. 0: 5,000 */
    int32_t queue_spans, batch_spans; /* at most. 0: 2,048, 512 */
};

typedef struct tracer_stats {
    uint64_t exported;
    uint64_t dropped_full;     /* no room in the list */
    uint64_t dropped_failed;   /* the collector could not be had, or did not want them */
    uint64_t dropped_oversize; /* of requests with more spans than SPANS_MAX or SPANS_BYTES */
} tracer_stats;

/* Copies what options point to.
 *   REALM_INVALID  the endpoint, a header, the ratio */
realm_status tracer_open(tracer **out, const tracer_options *options, realm_error *error);
/* For one whose place another takes: takes nothing more and posts what is left as tracer_close does, but does not wait
 * for it. What it came to is added to *sum (may be NULL) when it is closed. */
void tracer_leave(tracer *t, int32_t wait_ms, tracer_stats *sum);
/* What is left is posted, once and for at most wait_ms, or what is left of that since tracer_leave; NULL allowed. */
void tracer_close(tracer *t, int32_t wait_ms);

/* "parentbased_traceidratio" and the like, as OTEL_TRACES_SAMPLER has them; 0: there is no such sampler. */
int tracer_sampler(const char *name, tracer_options *out);

/* 1 if a request of that context is traced. Any thread. */
int tracer_samples(const tracer *t, const trace_context *context);
/* Takes s, whatever comes. Never waits. */
void tracer_take(tracer *t, spans *s);
/* Any thread. */
void tracer_stats_get(tracer *t, tracer_stats *out);
void tracer_stats_add(tracer_stats *sum, const tracer_stats *more);

#endif
