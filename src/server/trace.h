/* server/trace.h: which distributed trace a request belongs to: W3C Trace Context
 * (https://www.w3.org/TR/trace-context/).
 *
 * A request that carries one proper `traceparent` belongs to that trace, and what its caller decided about
 * sampling comes with it; any other begins a trace of its own, so that every log line can name one. Net thread. */
#ifndef REALM_SERVER_TRACE_H
#define REALM_SERVER_TRACE_H

#include "base/arena.h"

#define TRACE_ID_SIZE    32
#define TRACE_STATE_SIZE 512 /* of tracestate: as much as everybody has to pass on */

enum {
    TRACE_SAMPLED = 1, /* the caller records it */
    TRACE_RANDOM = 2,  /* the id's last 56 bits are random */
};

struct exchange_header;

typedef struct trace_context {
    char id[TRACE_ID_SIZE + 1]; /* hexadecimal, lower case */
    uint8_t flags;              /* TRACE_*; the caller's, or of a trace that begins here */
    uint64_t parent;            /* the caller's span; 0: the trace begins here */
} trace_context;

/* Of a request's headers. */
void trace_read(trace_context *out, const struct exchange_header *headers, size_t count);

/* What the headers `tracestate` say, joined, without what is over TRACE_STATE_SIZE, in memory; "" where it is
 * missing or wrong (then all of it is: half a list says nothing). */
const char *trace_read_state(const struct exchange_header *headers, size_t count, arena *memory);

/* The number that 16 hexadecimal digits are. */
uint64_t trace_number(const char *digits);

/* A span's id: random, not secret, not 0. */
uint64_t trace_make_span(void);

#endif
