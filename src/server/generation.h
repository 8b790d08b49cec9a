/* server/generation.h: an answer while it is being made, whatever the protocol and the shape it is sent in.
 *
 * Each choice is one run of the tenant's program in a sandbox of its own. The first choice of a prompt starts
 * alone and the others once it has said something, because by then the prompt's pages are in the tenant's prefix
 * cache: it is computed once, however many choices there are.
 *
 *     PLANNING --> RUNNING --> all choices done --> answered
 *                     |  a choice fails before anything was sent: the rest is cancelled, its error is the answer
 *                     '  the client goes: all are cancelled
 *
 * Whatever ends it, the generation lives until the last run has come back. What its text becomes on the way to
 * the client is a generation_output: one file a kind (api_generate.c, grpc_generate.c). Net thread, but for
 * generation_output.read. */
#ifndef REALM_SERVER_GENERATION_H
#define REALM_SERVER_GENERATION_H

#include "server/openai_request.h"

typedef struct generation generation;

typedef struct generation_choice {
    generation *g;
    int index;
    guest_run *run; /* NULL: not started, or done */
    int started, warm, done;
    int opened; /* the output's own */
    buffer
        text; /* of the answer so far; a stream keeps what is not sent, or all if there are tools */
    size_t sent;        /* of text, with tools */
    json_t *logprobs;   /* of the whole answer: the program's list of tokens */
    size_t offset;      /* of the next token in the text: the output's own */
    const char *finish; /* "stop", "length", "tool_calls" */
} generation_choice;

typedef struct generation_output {
    /* The request as OpenAI's JSON, the caller's to json_decref, or NULL and the problem. May come on a
     * worker: g's exchange is read and nothing else touched. */
    json_t *(*read)(generation *g, api_problem *problem);

    /* Of streams alone (g->r.stream): more text of a choice and, with logprobs, the program's list of
     * tokens that it is, else NULL; calls of tools as OpenAI's list; a choice is over, see finish. All
     * borrowed. */
    void (*piece)(generation *g, generation_choice *c, const char *text, size_t size,
                  const json_t *tokens);
    void (*calls)(generation *g, generation_choice *c, json_t *calls);
    void (*finish)(generation *g, generation_choice *c);
    /* What was gathered can go to the exchange. REALM_NO_MEMORY: some of it could not be kept, and none of it
     * has gone; fail comes next. */
    realm_status (*flush)(generation *g);

    /* All choices are done: the whole answer, or the end of a stream. */
    void (*end)(generation *g);
    /* It has failed, and nothing else comes. */
    void (*fail)(generation *g, const api_problem *problem);
    /* g goes, and with it what the output keeps. */
    void (*release)(generation *g);
} generation_output;

struct generation {
    net_job job;
    server *server;
    exchange *x;
    const caller *caller;
    const generation_output *output;
    void *context; /* the output's own */
    int is_open;   /* the ticket is */
    ticket ticket;
    openai_kind kind;
    openai_request r;
    api_problem problem;
    char *guest_text; /* the program's request, dumped once for chat */
    program *program;
    generation_choice *choices;
    int n_choices, n_running, n_done;
    int failed;
    char id[EXCHANGE_ID_SIZE + 16]; /* "chatcmpl-..." */
    int64_t created;                /* seconds */
    uint64_t prompt_tokens, cached_tokens, completion_tokens;
};

/* Reads the request, runs it and answers x, now or later. context is the output's, which releases it in
 * every case. */
void generation_begin(server *s, exchange *x, const caller *c, openai_kind kind,
                      const generation_output *output, void *context);
/* Ends it from outside: a deadline. Nothing happens if it has failed already. */
void generation_fail(generation *g, const api_problem *problem);
/* The calls of tools in the whole text of a choice, as tool_calls_parse; NULL if there are none, or it has no
 * tools. Sets c->finish if there are. */
json_t *generation_calls(generation *g, generation_choice *c, size_t *plain);

#endif
