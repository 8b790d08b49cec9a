/* server/guest_run.h: one run of a program in a sandbox, as the net thread sees it.
 *
 * The sandbox's thread appends text to a pair of buffers under a mutex and posts the run to the loop; the
 * loop takes everything that has gathered since, so that a client who reads slowly, or a loop that is busy,
 * gets fewer and larger pieces. Nothing is copied more than once on the way.
 *
 * guest_run_start .. on_done on the net thread; the run is freed after on_done. on_done always comes if
 * start succeeded, also after guest_run_cancel. */
#ifndef REALM_SERVER_GUEST_RUN_H
#define REALM_SERVER_GUEST_RUN_H

#include "sandbox/sandbox.h"
#include "server/metrics.h"
#include "server/net.h"

typedef struct guest_run guest_run;

typedef struct guest_result {
    realm_status status;
    const char *message; /* "" when OK */
    const char *json;    /* terminated, or NULL */
    size_t json_size;
    sandbox_usage usage;
    uint64_t started_ns;    /* clock_ns() */
    uint64_t first_text_ns; /* from the start to the first text; 0: there was none */
    metrics_samples gaps;   /* between its texts, if they were streamed */
} guest_result;

typedef struct guest_run_options {
    net *net;
    sandbox_host *sandbox;
    sandbox_input input; /* its callbacks and context are ours */
    void *context;
    /* Net thread. Text in order; borrowed for the call. May be NULL: then it is kept until on_done, see
     * guest_run_text. */
    void (*on_text)(guest_run *run, void *context, const char *text, size_t size);
    void (*on_done)(guest_run *run, void *context, const guest_result *result);
} guest_run_options;

/* As sandbox_start; on_done does not come if it fails. */
realm_status guest_run_start(guest_run **out, const guest_run_options *options, realm_error *error);
/* The run ends within an iteration of the engine. */
void guest_run_cancel(guest_run *run);
/* Neither on_text nor on_done come until it is resumed, but for an on_done that was already due: the
 * client reads too slowly. */
void guest_run_pause(guest_run *run);
void guest_run_resume(guest_run *run);
/* All text of a run without on_text; inside of on_done. */
const char *guest_run_text(guest_run *run, size_t *size);

#endif
