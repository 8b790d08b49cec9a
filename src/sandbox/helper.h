/* sandbox/helper.h: a thread for host functions that compute for long.
 *
 * A host function cannot be preempted, so what may take milliseconds (compiling a grammar,
 * tokenizing a book) would hold up every other guest of its thread. Such work is copied into a job,
 * the guest is suspended, and the helper thread does it, one job after the other. A request has at
 * most one. The helper touches the job alone, never the request's other parts or guest memory. */
#ifndef REALM_SANDBOX_HELPER_H
#define REALM_SANDBOX_HELPER_H

#include "base/buffer.h"
#include "base/queue.h"
#include "text/grammar.h"

/* Texts up to this are worked on at once: less than a millisecond. */
#define HELPER_MIN_BYTES 16384u

typedef struct sandbox_request sandbox_request;

typedef struct helper_job {
    queue_node node;
    sandbox_request *request;
    void (*work)(struct helper_job *job); /* on the helper's thread */
    int in_flight;                        /* the sandbox thread's */
    atomic_int done;

    const void *model; /* borrowed; a model */
    buffer text;       /* a copy of the guest's */
    int32_t number;    /* flags or kind */

    realm_status status;
    realm_error error;
    buffer out;
    grammar *grammar;
    uint64_t cpu_ns;
} helper_job;

typedef struct helper {
    pthread_t thread;
    int started;
    queue jobs;
} helper;

realm_status helper_open(helper *h, realm_error *error);
void helper_close(helper *h); /* when no job is left */

/* Fills in r's job with a copy of text. Sandbox thread. REALM_NO_MEMORY. */
realm_status helper_prepare(sandbox_request *r, const void *of_model, const char *text, size_t size,
                            int32_t number, size_t out_cap_bytes);
void helper_submit(sandbox_request *r, void (*job_work)(helper_job *job));
/* 1 if r has no job in flight (any more). Sandbox thread. */
int helper_collect(sandbox_request *r);
/* Frees what the job holds; it is not in flight. */
void helper_clear(sandbox_request *r);

#endif
