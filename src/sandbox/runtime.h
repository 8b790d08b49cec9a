/* sandbox/runtime.h: the inside of a sandbox_host, for the files of this folder alone.
 *
 * Two Wasmtime engines, because one setting must differ: a 32-bit guest takes a slot of a pool
 * (4 GiB of address space, reset by Wasmtime, started within microseconds); a 64-bit guest gets
 * 16 GiB of address space of its own, which the kernel takes back whole with everything that was
 * mapped into it. */
#ifndef REALM_SANDBOX_RUNTIME_H
#define REALM_SANDBOX_RUNTIME_H

#include "sandbox/request.h"
#include "sandbox/shared_turns.h"

/* ---- the ticker: makes spinning guests come up for air ------------------------------------------
 *
 * Advances the epoch of both engines while some guest runs. A guest that notices is asked whether
 * its slice is over (request.c). Guests mostly wait for the engine, so ticks would mostly be
 * wasted: while none is running they come more and more seldom, and after a while not at all,
 * until a thread that is about to run a guest finds the ticker asleep and wakes it. */
#define TICKER_FAST_NS         2000000u
#define TICKER_SLOW_NS         8000000u
#define TICKER_SLEEPS_AFTER_NS 100000000u

typedef struct ticker {
    pthread_t thread;
    int started;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    atomic_int awake;   /* 0: somebody must wake it. Changed under mutex */
    int stop;           /* guarded by mutex */
    atomic_uint turns;  /* guests' turns begun, so that it sees that there were some */
    atomic_int running; /* guests running now */
    wasm_engine_t *engines[2];
} ticker;

realm_status ticker_open(ticker *t, wasm_engine_t *engine32, wasm_engine_t *engine64,
                         realm_error *error);
void ticker_close(ticker *t);
/* Around every poll of a guest. Any thread. */
void ticker_enter(ticker *t);
void ticker_leave(ticker *t);

/* ---- threads that run guests --------------------------------------------------------------------
 *
 * A guest that computes for long without waiting for anything goes to the background: one more thread,
 * of the lowest priority that the system has, where it gets what cores have left over and takes next
 * to nothing from the model and from guests that answer quickly. Once it waits for something it comes
 * home. (A thread may lower its own priority; raising it again needs rights we do not have. Hence two
 * kinds of threads and guests that move.) */
#define BACKGROUND_AFTER_NS 20000000u

/* A thread that waits for an engine computes along meanwhile (engine_lend) and is awake when a step ends.
 * Where there are more threads than the engine has seats, one is left out and has to be woken, on a core
 * that the others use. So a guest that waits for an engine moves to a thread that computes along, unless
 * one of its last turns was long: those keep to threads that do not, where they are in the way of nobody
 * who answers quickly. */
#define SLOW_TURN_NS          1000000u
#define SLOW_FOR_TURNS        64
#define SLOW_FOR_TURNS_SHARED 1024 /* after one on an engine's thread, which held up everybody */

/* The same holds for a tenant whose many short requests add up: while they have used more than
 * WINDOW_SHARE of WINDOW of sandbox threads, new ones start in the background. */
#define WINDOW_NS       100000000u
#define WINDOW_SHARE_NS 40000000u

/* ---- a sandbox thread ----------------------------------------------------------------------------- */

struct sandbox_thread {
    sandbox_host *host;
    pthread_t thread;
    queue ready;            /* sandbox_requests by node */
    queue_node *taken;      /* taken out of ready and not run yet, oldest first */
    queue_node **taken_end; /* where the next ones are linked in */
    sandbox_request *live;  /* all its requests */
    atomic_int n_requests;  /* for choosing the least busy */
    turn_clock clock;
    shared_turns shared; /* its ready guests' turns while it runs them */
    /* While it computes for an engine (sandbox_thread.c). */
    engine *deputy_of;
    engine_errand deputy;
    int has_deputy; /* the engine's thread may run turns for it: all but what is atomic is its */
    sandbox_request *left; /* whose turn the deputy ran and did not finish; NULL: none's */
    atomic_int called;     /* the deputy wants it back */
    uint64_t
        seen_ns; /* since when something is ready that the deputy has not taken; 0: nothing is */
    uint64_t lends_until_ns;

    uint64_t next_time_ns; /* the earliest request_next_time, or earlier */
    atomic_int seated; /* its last wait was spent computing for an engine. Written by the thread */
    uint64_t lends_after_ns; /* until then it sleeps while its guests wait */
    uint64_t away_ns;        /* for how long it slept last */
    unsigned n_looks;        /* while it computes for an engine */
    uint64_t usual_wait_ns;  /* moving average of how long nothing was ready */
    int watches;             /* a guest waits for a device, and cores are left over */
    uint64_t usual_step_ns;  /* moving average of the waits while it did */
};

realm_status sandbox_thread_open(sandbox_thread *t, sandbox_host *h, realm_error *error);
void sandbox_thread_close(sandbox_thread *t); /* when no request is left */
/* Any thread. */
void sandbox_thread_add(sandbox_thread *t, sandbox_request *r);
/* Its own thread: a request's next time may have become earlier. */
void sandbox_thread_mind(sandbox_thread *t, uint64_t time_ns);
/* 1 if the tenant's requests have lately used more than their share of sandbox threads. Any thread. */
int sandbox_thread_tenant_is_heavy(sandbox_tenant *t, uint64_t now_ns);

/* ---- the host ------------------------------------------------------------------------------------- */

#define RUNTIME_MAX_THREADS 64

struct sandbox_host {
    sandbox_host_options options;
    char cache_folder[4096];   /* "": none */
    wasm_engine_t *engines[2]; /* [0] 32-bit, [1] 64-bit memories */
    wasmtime_linker_t *linkers[2];
    ticker ticker;
    helper helper;
    sandbox_thread *threads; /* [options.n_threads] */
    int n_threads_open;
    sandbox_thread background;
    int has_background;

    pthread_mutex_t mutex; /* for all that follows up to closing */
    pthread_cond_t emptied;
    queue_node *line_first, *line_last; /* requests that wait for an instance, by admission */
    int32_t active, waiting, children;  /* instances of requests; of called programs */
    sandbox_request *all;               /* from sandbox_start to DONE */
    int closing;
    atomic_ullong started, finished, failed, preemptions, cache_hits, cache_misses;
};

/* Around a request's life. REALM_CLOSED once the host closes. Any thread. */
realm_status sandbox_host_enter(sandbox_host *h, sandbox_request *r, realm_error *error);
void sandbox_host_leave(sandbox_host *h, sandbox_request *r);

/* Instances that called programs have beside those of requests: a quarter, at least 16. Few requests have
 * fewer, since each takes 4 GiB of addresses: four a request, which is how deep calls go by default. */
static inline int32_t sandbox_host_child_instances(const sandbox_host_options *o)
{
    int32_t least = o->max_requests < 4 ? o->max_requests * 4 : 16;
    return o->max_requests / 4 > least ? o->max_requests / 4 : least;
}

/* An instance for r, or 0: then r is in line and will be woken with `admitted` set. A called
 * program never waits, or programs that call each other could wait for ever; it gets -1. */
int sandbox_host_admit(sandbox_host *h, sandbox_request *r);
void sandbox_host_give_back(sandbox_host *h, sandbox_request *r);
/* Leaves the line, if it is in it. */
void sandbox_host_leave_line(sandbox_host *h, sandbox_request *r);

/* ---- programs ------------------------------------------------------------------------------------- */

struct program {
    atomic_int references;
    sandbox_host *host;
    wasmtime_module_t *module;
    wasmtime_instance_pre_t *pre;
    atomic_int abi_checked;
    uint64_t memory_bytes;   /* minimum */
    uint64_t table_elements; /* minimum, of the largest table */
    char *name;
    program_info info;
};

/* ---- Wasmtime, set up (wasm_engines.c) ------------------------------------------------------------ */

/* What compiled code depends on beside the module and Wasmtime's version; part of a cached
 * program's name. Change it with every change of wasm_engines_open's settings. */
#define WASM_ENGINES_SETTINGS "epochs 1, stack 512 KiB, guards default, simd, memory64, cow"

realm_status wasm_engines_open(wasm_engine_t *engines[2], const sandbox_host_options *options,
                               realm_error *error);
/* Wasmtime's sentence after "what: ", on one line; deletes e. Returns status. */
realm_status wasm_engines_fail(realm_error *error, realm_status status, wasmtime_error_t *e,
                               const char *what);

#endif
