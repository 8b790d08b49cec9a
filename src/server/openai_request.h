/* server/openai_request.h: the body of an OpenAI request, checked field by field, and what the program in the
 * sandbox is asked for it.
 *
 * Parsing a large body takes milliseconds, so nothing here needs the net thread: the models that it looks at
 * are constant. What the built-in programs understand is in guest/programs/answer.h and docs/API.md. */
#ifndef REALM_SERVER_OPENAI_REQUEST_H
#define REALM_SERVER_OPENAI_REQUEST_H

#include "server/router.h"

/* As builtin_kind; OPENAI_TOKENIZE is a request of ours in the same manner. */
typedef enum openai_kind {
    OPENAI_CHAT,
    OPENAI_COMPLETION,
    OPENAI_EMBEDDINGS,
    OPENAI_TOKENIZE
} openai_kind;

#define OPENAI_MAX_CHOICES 128

typedef struct openai_request {
    openai_kind kind;
    const served_model *model;
    json_t *guest;   /* the program's request, without "prompt" */
    json_t *prompts; /* COMPLETION: [n_prompts] texts or lists of ids */
    int n_prompts, n;
    int stream, include_usage, echo;
    int logprobs;       /* -1: none; else so many alternatives */
    int64_t max_tokens; /* as asked for, or -1 */
    uint64_t seed;
    int has_seed;
    int has_tools, parallel;
    int forced;        /* the answer is one call of a tool */
    int as_base64;     /* EMBEDDINGS */
    int64_t n_inputs;  /* EMBEDDINGS, TOKENIZE */
    size_t text_bytes; /* of prompts and messages: no more tokens than bytes, and some */
} openai_request;

/* The fields that a request of a kind may have, one a call from *at = 0 on; NULL after the last. */
const char *openai_request_field(openai_kind kind, size_t *at);

/* A body's JSON, the caller's to json_decref, or NULL and the problem. */
json_t *openai_request_json(const char *body, size_t size, api_problem *problem);

/* allowed says whether the caller may use a model. */
typedef struct openai_models {
    server *server;
    int (*allowed)(void *context, const char *model);
    void *context;
    int streams; /* what `stream` is where the body does not say */
} openai_models;
/* 1, or 0 and the problem. Keeps parts of body, and may change it; size: of what was sent. */
int openai_request_parse(openai_request *out, openai_kind kind, const openai_models *models,
                         json_t *body, size_t size, api_problem *problem);
void openai_request_release(openai_request *r);

/* The tokens that it will likely take. */
int64_t openai_request_tokens(const openai_request *r);

#endif
