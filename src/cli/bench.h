/* cli/bench.h: what the files of `realm bench` share.
 *
 * cmd_bench.c reads the arguments, opens model and engine and says in which order things are
 * measured; bench_native.c and bench_sandbox.c measure them; bench_report.c turns timings into rows.
 * bench_synthetic.c makes the model where none is given. `realm bench kernels` is apart from all
 * that: bench_kernels.c, beside the machine's limits of bench_limits.c. Main thread; the engine and
 * sandboxes run on theirs. */
#ifndef REALM_CLI_BENCH_H
#define REALM_CLI_BENCH_H

#include <pthread.h>

#include "engine/engine.h"
#include "formats/json.h"
#include "sandbox/sandbox.h"

#define BENCH_MAX_BATCH  256
#define BENCH_MAX_REPEAT 100

typedef struct bench_options {
    const char *model, *device, *batches, *contexts;
    const char *synthetic, *synthetic_out, *cache_folder, *gpu_layers;
    int sandbox, json, no_weight_cache, map_weights;
    int generate; /* guests call `generate` instead of choosing each token */
    int64_t n_threads, n_prompt, n_generate, repeat, kv_bytes, seed;
    int64_t candidates; /* 0: none, the host samples by the next two */
    double temperature, top_p;
} bench_options;

typedef struct bench {
    bench_options options;
    backend *device;
    model *model;
    engine *engine;
    sandbox_host *host; /* this and the next two: with --sandbox alone */
    program *driver;
    sandbox_tenant *tenants[BENCH_MAX_BATCH];
    json_t *rows;
} bench;

/* ---- timings, bench_report.c ---------------------------------------------------------------------- */

/* Of each repetition, in order; the median counts. */
typedef struct bench_timings {
    double seconds[BENCH_MAX_REPEAT];
    double forward_us[BENCH_MAX_REPEAT], outside_us[BENCH_MAX_REPEAT]; /* a step */
    uint64_t most_steps; /* of a repetition: over n, batches fell apart */
    int count;
} bench_timings;

/* A moment of a run: the clock, and what the engine had done by then. */
typedef struct bench_moment {
    uint64_t ns, busy_ns, iterations;
    uint64_t decoded; /* tokens of generation */
} bench_moment;

/* Any thread. */
bench_moment bench_moment_now(engine *e);
/* of: the tokens that the subject is about, if only a part of them was computed in that time (generation
 * from the moment on when all sessions were at it): the time is put in proportion. 0: it was all. */
void bench_timings_add(bench_timings *t, bench_moment from, bench_moment to, int64_t of);

/* What a row is about: n tokens for each of batch sessions that have context tokens already. */
typedef struct bench_subject {
    const char *kind; /* "pp", "tg" */
    int64_t n, batch, context;
} bench_subject;

/* Adds a row to b->rows and prints it unless JSON is wanted. native: the runs that alternated with
 * these of guests; NULL: these are native. */
void bench_report(bench *b, bench_subject subject, const bench_timings *t,
                  const bench_timings *native);
/* Prints b->rows as JSON. */
void bench_report_json(const bench *b);

/* ---- what is measured ----------------------------------------------------------------------------- */

/* How many works or requests are still under way; whoever ends one passes, on any thread. */
typedef struct bench_gate {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int open; /* guarded by mutex */
} bench_gate;

void bench_gate_init(bench_gate *g, int count);
void bench_gate_pass(bench_gate *g);
void bench_gate_wait(bench_gate *g); /* and releases it */

/* count random tokens: different in each session and repetition, so that no cache can spare work. */
void bench_fill_tokens(const bench *b, token_id *tokens, int64_t count, uint64_t seed);

/* The sessions of native runs. */
typedef struct bench_lanes {
    session *sessions[BENCH_MAX_BATCH];
    int count;
    int64_t context;
} bench_lanes;

/* Opens count sessions, each of a tenant of its own, and feeds each of them context tokens.
 * Failure leaves none open. */
realm_status bench_lanes_open(bench *b, bench_lanes *l, int count, int64_t context,
                              realm_error *error);
void bench_lanes_close(bench_lanes *l);

/* What the host's sampler is told, and what guests that choose among candidates do for themselves. */
sampler_options bench_native_sampler(const bench *b, uint64_t seed);

/* One repetition: all lanes read n_prompt tokens, or write n_generate. Lanes are then as before. t
 * NULL: a warm-up. */
realm_status bench_native_prompt(bench *b, bench_lanes *l, int repetition, bench_timings *t,
                                 realm_error *error);
realm_status bench_native_generation(bench *b, bench_lanes *l, int repetition, bench_timings *t,
                                     realm_error *error);

/* A host and tenants 1 .. count for the guests; released by bench_sandbox_close, also after a
 * failure. */
realm_status bench_sandbox_open(bench *b, int64_t count, realm_error *error);
void bench_sandbox_close(bench *b);
/* One repetition: batch guests, each with a new session of context tokens, write n_generate. */
realm_status bench_sandbox_generation(bench *b, int batch, int64_t context, int repetition,
                                      bench_timings *t, realm_error *error);

/* ---- a model made on the spot, bench_synthetic.c -------------------------------------------------- */

#define BENCH_PATH_SIZE 4096

/* Makes the model that b->options.synthetic names and leaves in path where it can be opened while
 * *descriptor is. Without --synthetic-out the file has no name any more by then, and the disk's
 * space comes back when the last mapping of it goes, however the process ends. */
realm_status bench_synthetic_make(const bench_options *o, char path[BENCH_PATH_SIZE],
                                  int *descriptor, realm_error *error);
/* Prints what --synthetic takes. */
realm_status bench_synthetic_list(realm_error *error);

/* ---- `realm bench kernels` ------------------------------------------------------------------------ */

/* argv[0] is "kernels". Returns the exit code. */
int bench_kernels(int argc, char **argv);

#endif
