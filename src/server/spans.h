/* server/spans.h: what was done for one request, as spans: named stretches of time, each inside of another.
 *
 *     spans_open (head) --> spans_add ... --> tracer_take (the request's last reference) --> encoded, spans_close
 *
 * Filled by the net thread, read and freed by the tracer's. All of it lies in an arena with a cap, so that a request
 * of a hundred choices costs no more than SPANS_BYTES: spans that do not fit are counted as lost, and the request
 * goes on. Texts become valid UTF-8 and are cut at SPANS_TEXT_SIZE, because collectors refuse a whole batch for one
 * bad byte.
 *
 * What spans say of requests is request_spans.h's: never a key, a prompt or an answer. */
#ifndef REALM_SERVER_SPANS_H
#define REALM_SERVER_SPANS_H

#include "server/trace.h"

#define SPANS_MAX       256 /* of a request */
#define SPANS_BYTES     ((size_t)128 << 10)
#define SPANS_TEXT_SIZE 256

/* OTLP's numbers. */
typedef enum span_kind { SPAN_INTERNAL = 1, SPAN_SERVER = 2 } span_kind;

typedef enum attribute_kind {
    ATTRIBUTE_TEXT,
    ATTRIBUTE_INT,
    ATTRIBUTE_REAL,
    ATTRIBUTE_FLAG,
    ATTRIBUTE_TEXTS,
} attribute_kind;

typedef struct span_attribute {
    struct span_attribute *next;
    const char *name; /* a literal */
    attribute_kind kind;
    union {
        const char *text;
        int64_t integer; /* and flags */
        double real;
    };
    const char *const *texts; /* [integer] */
} span_attribute;

typedef struct span {
    struct span *next;
    uint64_t id, parent; /* parent 0: none */
    const char *name;
    span_kind kind;
    int failed;
    uint64_t start_ns, end_ns; /* clock_ns() */
    span_attribute *attributes, **last_attribute;
} span;

typedef struct spans {
    struct spans *next; /* the tracer's */
    arena memory;
    trace_context trace;
    const char *state; /* tracestate */
    span *first, *last;
    int count, lost;
    uint64_t
        wall_ns; /* what to add to clock_ns() for nanoseconds since 1970; one for all of them */
} spans;

/* NULL: memory is out. */
spans *spans_open(const trace_context *trace);
void spans_close(spans *s); /* NULL allowed */

/* A span that begins at start_ns and ends when end_ns is set (until then where it began); NULL, which everything
 * here takes, if there is no room. parent NULL: the caller's span. name is copied. */
span *spans_add(spans *s, const span *parent, const char *name, uint64_t start_ns);

/* Another name; copied. */
void spans_name(spans *s, span *of, const char *name);
/* Attributes; name is a literal, values are copied. */
void spans_text(spans *s, span *of, const char *name, const char *value);
void spans_int(spans *s, span *of, const char *name, int64_t value);
void spans_real(spans *s, span *of, const char *name, double value);
void spans_flag(spans *s, span *of, const char *name, int value);
void spans_texts(spans *s, span *of, const char *name, const char *const *values, size_t count);

#endif
