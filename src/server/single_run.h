/* server/single_run.h: a request that is one run of a program and is answered when that is over: embeddings,
 * tokenizing.
 *
 * What the answer looks like is a single_output's, one a protocol. Net thread, but for single_output.read. */
#ifndef REALM_SERVER_SINGLE_RUN_H
#define REALM_SERVER_SINGLE_RUN_H

#include "server/openai_request.h"

typedef struct single_run single_run;

typedef struct single_output {
    openai_kind kind;
    /* The request as JSON, the caller's to json_decref, or NULL and the problem. May come on a worker: the
     * exchange is read and nothing else touched. */
    json_t *(*read)(exchange *x, api_problem *problem);
    /* Answers with what the program said, or returns 0: it was nothing of the kind that it should be. */
    int (*answer)(single_run *e, const char *text, size_t size, const guest_result *result);
} single_output;

struct single_run {
    net_job job;
    server *server;
    exchange *x;
    const caller *caller;
    const single_output *output;
    int is_open; /* the ticket is */
    ticket ticket;
    openai_request r;
    api_problem problem;
    guest_run *run;
};

/* Reads the request, runs it and answers x, now or later. */
void single_run_begin(server *s, exchange *x, const caller *c, const single_output *output);

/* The next line of what a program said, from *at on, which moves behind it; NULL at the end. */
const char *single_run_line(const char *text, size_t size, size_t *at, size_t *length);

/* A vector as the program `embeddings` writes it: a line of base64 of its floats, little-endian. *out is the
 * caller's to free. 0: it is none. */
int single_run_vector(const char *line, size_t size, float **out, size_t *count);

#endif
