/* server/request_spans.h: what the spans of a request say: where its time went, by OpenTelemetry's conventions for
 * HTTP, RPC and generative models.
 *
 *     POST /v1/chat/completions      the gateway: from the head to the last byte of the answer
 *       chat small                   from its admission to the end of its last run; gen_ai.*
 *         sandbox                    a run of a program: a choice is one
 *           queue, prefill, decode   of each prompt that the run gave the engine, and what was generated after it
 *
 * This file alone decides what leaves the machine in spans: names of routes, tenants, models and programs, numbers,
 * times and ends. Never a header, a query, a key, a prompt, an answer, an address of a client, or a path that is no
 * route's, in whose place anything may stand. Net thread. */
#ifndef REALM_SERVER_REQUEST_SPANS_H
#define REALM_SERVER_REQUEST_SPANS_H

#include "server/router.h"

/* The head is there: x->spans begins if the request is sampled. is_probe: only its caller can want it traced. */
void request_spans_begin(server *s, exchange *x, int is_probe);
/* The exchange is over. by: its route, or NULL; outcome: as counted. */
void request_spans_over(exchange *x, const route *by, int outcome);
/* Nobody holds the exchange any more: what there is goes to the tracer. */
void request_spans_send(server *s, exchange *x);

/* Of the request's ticket: it has been admitted; a run is over; all are, and usage is complete. */
void request_spans_admitted(ticket *t);
void request_spans_run(ticket *t, const guest_result *result, int choice);
void request_spans_settled(ticket *t);

/* What was asked for, when that is known. operation is gen_ai.operation.name, a literal. */
void request_spans_asked(ticket *t, const char *operation, int stream, int n_choices,
                         int64_t max_tokens);
/* Why the choices ended. */
void request_spans_finished(ticket *t, const char *const *reasons, size_t count);

#endif
