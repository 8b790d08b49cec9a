/* sandbox/request.h: the inside of a request, for the files of this folder alone.
 *
 * One request is one instance of a program with everything that hangs on it. Its sandbox thread
 * owns it, and lends it for a turn to the engine's (shared_turns.h); other threads meet it in what is marked shared, in the `done` flags of its engine
 * operations, and in request_wake, which puts it into its thread's ready queue.
 *
 * States (request_state), each left by request.c alone:
 *
 *     QUEUED ──► STARTING ──► CHECKING ──► RUNNING ──► ENDING ──► DONE
 *       │           │ start      │ realm_abi   │ realm_handle  ▲
 *       └───────────┴────────────┴─────────────┴───────────────┘  a failure, a limit, cancelling
 *
 *     QUEUED    waits for a free instance; has no store
 *     STARTING  the instance is being made; a start function may run and yield
 *     CHECKING  realm_abi runs (once a program, then skipped)
 *     RUNNING   realm_handle runs, is suspended in a host function (wait.kind) or has yielded
 *     ENDING    the guest will not run again; operations in flight are being cancelled
 *     DONE      on_done was called; only memory is left, until the last reference goes
 *
 * Invariants (request_assert checks what can be checked):
 *
 *  1. future is not NULL exactly in STARTING, CHECKING and RUNNING between two polls; while it
 *     lives nobody touches the store's context but host functions that the guest itself called.
 *  2. A request is in its thread's ready queue at most once: whoever turns `scheduled` from 0 to 1
 *     puts it there. The thread clears it before it looks at anything, so no wake is lost.
 *  3. Every engine operation in flight and the ready queue hold a reference each, so a waker never
 *     touches freed memory.
 *  4. What engine operations point at (tokens, floats, lists, runs) goes only when n_in_flight is 0.
 *     The store may go before: the engine has no pointer into it (5).
 *  5. The engine never sees guest memory. What it reads was copied before engine_submit; what it
 *     wrote is copied to the guest by the continuation, on the sandbox thread.
 *  6. Linear memory does not move while an instance lives (reserved address space), so memory_base
 *     is constant; memory_size only grows and is a lower bound until asked for again.
 *  7. Pages of a model file mapped into guest memory (host_map.c) are replaced by anonymous ones
 *     before the store goes.
 *  8. failure is set once; the first reason stays.
 *  9. A request moves to another thread only at the end of a turn (sandbox_thread.c), together with
 *     those that wait for it. Whoever finds it in the queue of a thread that it has left sends it
 *     on and touches nothing else. */
#ifndef REALM_SANDBOX_REQUEST_H
#define REALM_SANDBOX_REQUEST_H

#include <stdatomic.h>
#include <wasmtime.h>

#include "base/arena.h"
#include "base/buffer.h"
#include "base/map.h"
#include "base/rng.h"
#include "engine/compute_list.h"
#include "formats/json.h"
#include "sandbox/handles.h"
#include "sandbox/helper.h"
#include "sandbox/sandbox.h"

typedef struct sandbox_thread sandbox_thread;
typedef struct host_function host_function;

/* The time of a thread that runs turns. */
typedef struct turn_clock {
    uint64_t
        now_ns; /* when it last looked: after every wait and every poll. Looking costs as much as
                              a plain host call */
    uint64_t
        cpu_read_ns; /* the thread's CPU clock when it was last read; 0: never, then wall time counts */
    uint64_t cpu_short_ns; /* wall time of short turns since */
} turn_clock;

/* ---- tenants, as opened ------------------------------------------------------------------------ */

struct sandbox_tenant {
    atomic_int references;
    atomic_int requests;     /* running or queued, called programs not counted */
    atomic_ullong window_ns; /* when the present window began; see runtime.h on the background */
    atomic_ullong window_cpu_ns; /* what the tenant's requests have used of sandbox threads in it */
    tenant_grants grants;        /* every pointer but the borrowed ones is in arena */
    arena arena;
};

/* ---- operations of the engine ------------------------------------------------------------------- */

/* A work and whose it is. in_flight is the sandbox thread's; done is set by the engine thread and
 * is all that it touches here after the work itself. */
typedef struct engine_op {
    work work;
    engine *engine; /* where it was submitted last */
    sandbox_request *request;
    atomic_int done;
    int in_flight;
    uint64_t taken;  /* of the request's allowance; the engine's thread counts while it generates */
    int ran_out;     /* it generated until the allowance had no more */
    int32_t session; /* sandbox_answer's; 0: it has not computed yet */
    int32_t answer;  /* which of usage.answers its works belong to, from 1 on; 0: none yet */
} engine_op;

/* Takes what a feed, an embedding or a step will use from the request's allowance; engine_op_collect gives back
 * what it did not. Before engine_op_submit. A generation takes by itself, a token at a time.
 *   REALM_QUOTA  there are not so many tokens left */
realm_status engine_op_afford(sandbox_request *r, engine_op *op, uint64_t count,
                              realm_error *error);
/* REALM_QUOTA, in words. */
realm_status engine_op_used_up(realm_error *error);
/* Hands op->work to the engine; kind, session and inputs are filled in. Sandbox thread. */
void engine_op_submit(sandbox_request *r, engine_op *op, engine *e);
/* 1 if the operation is over (or never began), and then the engine no longer knows it. */
int engine_op_collect(sandbox_request *r, engine_op *op);

/* ---- a host function that is being called ------------------------------------------------------- */

typedef union guest_value {
    uint64_t u64; /* pointers and lengths of either width */
    int64_t i64;
    int32_t i32;
    float f32;
} guest_value;

#define GUEST_MAX_ARGUMENTS 8

typedef struct guest_call {
    sandbox_request *request;
    const host_function *function;
    wasmtime_caller_t *caller; /* NULL once the guest is suspended */
    int trapped;               /* set by guest_trap: the result does not matter */
    int suspended;             /* set by guest_suspend */
    int noted;                 /* set by guest_note: last_failure tells of this call */
    guest_value arguments[GUEST_MAX_ARGUMENTS];
} guest_call;

typedef enum wait_kind {
    WAIT_NONE,  /* the guest runs, or yielded */
    WAIT_OP,    /* for wait.op */
    WAIT_ANY,   /* for one of wait.sessions or wait.until_ns */
    WAIT_CHILD, /* for a called program */
    WAIT_JOB,   /* for the helper's thread */
} wait_kind;

typedef struct guest_wait {
    wait_kind kind;
    int fresh; /* not yet seen by the thread: a guest that suspends always takes
                                       its turn behind the others that are ready */
    engine_op *op;
    uint64_t until_ns;               /* WAIT_ANY: gives up then; UINT64_MAX: never */
    struct session_entry **sessions; /* [n_sessions] in scratch */
    int32_t n_sessions;
    guest_call call;                     /* as the guest made it */
    const void *frame;                   /* where on its own stack the guest waits */
    int64_t (*finish)(guest_call *call); /* its result, once the wait is over; may trap, or suspend
                                            again */
    wasmtime_val_t *result; /* in Wasmtime's frame, valid while the guest is suspended */
    wasm_trap_t **trap;
} guest_wait;

/* ---- what handles stand for ---------------------------------------------------------------------- */

typedef struct session_entry {
    session *session;
    engine *engine;
    int32_t handle;
    int closed;   /* session_close was called while a work was in flight */
    int stepping; /* a step_begin that wait_any has not reported yet */
    int sampled;  /* its sampler has drawn: see host_session_set_sampler */
    sampler_options sampler;
    engine_op op;
    token_id *tokens; /* copy of what is being fed; [tokens_room] */
    size_t tokens_room;
    struct generate_run *run; /* of the last generate; NULL: none yet (host_generate.c) */
    struct session_entry *next;
} session_entry;

typedef struct tensor_entry {
    compute_tensor tensor;
    engine *engine;            /* NULL until the first operation that uses it */
    int freed;                 /* by the guest; goes when the list that frees it has run */
    struct tensor_entry *next; /* all of the request's */
} tensor_entry;

/* What a guest recorded and the engine has not run yet (host_tensor.c). */
typedef struct tensor_state {
    tensor_entry *tensors; /* newest first */
    uint64_t used_bytes;   /* of living tensors: counts against tensor_bytes */
    compute_op *ops;       /* [ops_room] */
    int32_t n_ops, ops_room;
    compute_list list;
    arena inputs;           /* ids and floats that recorded operations point at */
    session_entry *session; /* the one that attention in the list belongs to, or NULL */
    engine *engine;         /* the one all recorded operations are for, or NULL */
    engine_op op;
    float *result;    /* of a read, copied to the guest afterwards */
    int64_t kv_whole; /* floats that kv_cache_get would give with room for all */
    int closing;      /* only memory is still given back */
    map parts;        /* layers and weights by engine and name -> part_entry */
} tensor_state;

/* A stretch of guest memory that shows a model file's pages (host_map.c). */
typedef struct mapped_range {
    struct mapped_range *next;
    void *address;
    size_t size;
} mapped_range;

/* What a guest said in a shared turn lies in `held`: this, then the text. */
typedef struct request_held {
    size_t size;
    int level; /* of the log; below 0: it is text */
} request_held;

/* ---- the request --------------------------------------------------------------------------------- */

typedef enum request_state {
    REQUEST_QUEUED,
    REQUEST_STARTING,
    REQUEST_CHECKING,
    REQUEST_RUNNING,
    REQUEST_ENDING,
    REQUEST_DONE,
} request_state;

struct sandbox_request {
    /* shared with other threads */
    queue_node node;      /* in the ready queue while scheduled */
    queue_node admission; /* in the host's line for a free instance */
    atomic_int references;
    atomic_int scheduled;
    atomic_int cancelled;
    atomic_int finished; /* DONE, for sandbox_cancel */
    atomic_int admitted; /* an instance was given to it while it stood in line */
    int in_line;         /* guarded by the host's mutex, as are the three links */
    sandbox_request *previous_of_host, *next_of_host;

    /* constant */
    sandbox_host *host;
    sandbox_thread *_Atomic thread; /* NULL for the moment between being made and being queued */
    program *program;
    sandbox_tenant *tenant;
    sandbox_input input; /* body and id are in arena */
    uint64_t submitted_ns;
    uint64_t deadline_ns;    /* of the wall: the tenant's or the input's, whichever is earlier */
    int depth;               /* 0, or how many programs called each other to get here */
    sandbox_request *parent; /* who called; it is there until it has been told. NULL: nobody */
    sandbox_thread *home;    /* the thread it was given to; see runtime.h on the background */
    int slow_turns;          /* turns until it counts as quick again; see runtime.h */
    uint64_t stretch_ns;     /* CPU time since the guest last waited for something */

    /* the sandbox thread's; in a shared turn, that of the thread that runs it */
    request_state state;
    turn_clock *clock; /* of the thread that runs its turn, or ran the last */
    int shared;        /* this turn is a shared one */
    int lined_up;      /* for shared turns that are not settled yet: not a second time */
    int unsettled;     /* a deputy has run a turn; see request_settle */
    uint64_t turn_ns;  /* how long its last turn took */
    int has_instance;  /* counts among the host's active ones */
    int in_line_since; /* it has asked for an instance */
    int ending;        /* end() has begun */
    sandbox_request *previous_live, *next_live; /* the thread's list */
    arena arena;
    rng random;
    realm_error failure;      /* status REALM_OK: none */
    realm_error last_failure; /* of a host function, as the guest got it; REALM_OK: none */

    wasmtime_store_t *store;
    wasmtime_context_t *context;
    wasmtime_call_future_t *future;
    wasmtime_instance_t instance;
    wasmtime_func_t handle_function;
    wasmtime_val_t returned;
    wasm_trap_t *trap;
    wasmtime_error_t *error;
    wasmtime_memory_t memory;
    uint8_t *memory_base;
    size_t memory_size;
    mapped_range *mapped;

    guest_wait wait;
    engine *used; /* the engine that it asked last, for usage.model */
    handle_table handles;
    int32_t *model_handles;  /* [grants.n_models], 0: not opened; in arena */
    int32_t n_samplers;      /* seeded so far */
    session_entry *sessions; /* all, closed ones with a work in flight too */
    int32_t n_sessions;      /* open ones */
    int32_t n_computed;      /* sessions that have had a work */
    int32_t n_in_flight;
    tensor_state tensors;
    helper_job job;
    engine_op embed_op;
    session *embed_session;
    float *embed_floats;
    sandbox_request *child; /* the program it called last; a reference */
    buffer child_output;    /* its text */
    char *child_json;
    realm_status child_status;
    int child_done;
    buffer held;  /* text and log lines of a shared turn, for request_release_held */
    buffer kept;  /* a result that did not fit and will be asked for again */
    buffer piece; /* scratch of decode_token and others */

    char *json; /* respond_json's; malloc */
    size_t json_size;
    realm_error responded; /* respond_error's; status REALM_OK: none */
    uint64_t log_bytes;
    int log_cut;
    uint64_t slice_started_ns;
    sandbox_usage usage;
};

/* request.c. Sandbox thread unless noted. */

/* One turn: starts it, runs its guest until it waits, yields or ends, or finishes it. clock is the calling
 * thread's and has just been read; it is read again at the end. */
void request_turn(sandbox_request *r, turn_clock *clock);
/* The same where another thread than its own may run it (shared_turns.h): what the guest says is held until
 * its own thread lets it out, a guest that computes for long yields at once, and nothing is finished.
 * r->wait.op is a step that is over. visits: the thread is not its own. */
void request_turn_shared(sandbox_request *r, turn_clock *clock, int visits);
/* Its own thread, after a shared turn: lets out what is held, and finishes what ended. */
void request_settle(sandbox_request *r, turn_clock *clock);
/* Hints that its turn comes soon, the later the stage the sooner (base/prefetch.h): each stage follows
 * pointers that the one before has asked for. */
void request_prefetch(const sandbox_request *r, int stage);
#define REQUEST_PREFETCH_STAGES 4
/* The guest will not run again. The first failure stays. */
void request_fail(sandbox_request *r, realm_status status, const char *format, ...)
    REALM_PRINTF(3, 4);
/* Any thread: its thread will look at it soon. */
void request_wake(sandbox_request *r);
/* The same with a reference that the caller gives away. e: the calling thread is this engine's, and its thread
 * sleeps on if that one is its deputy (sandbox_thread.c). NULL: it is not. */
void request_wake_give(sandbox_request *r, const engine *e);
void request_retain(sandbox_request *r);
void request_unretain(sandbox_request *r); /* any thread; frees memory with the last one */
/* What wait is for has happened. Collects finished operations. */
int request_wait_is_over(sandbox_request *r);
/* The engine that works for it while its guest waits, or NULL. It stays open until this thread has
 * given the request another turn: no request of its tenant has ended with works in flight. */
engine *request_awaited_engine(const sandbox_request *r);
/* When it must be looked at even if nothing wakes it; UINT64_MAX: never. */
uint64_t request_next_time(const sandbox_request *r);
void request_assert(const sandbox_request *r);
/* Takes bytes of the output limit; 0 if they are not left. */
int request_take_output(sandbox_request *r, uint64_t bytes);
/* It used this model, or this is what a program that it called used: for usage.model. NULL: nothing. */
void request_note_model(sandbox_request *r, const char *name);
/* A line to the tenant's log, within its limit; 0 if it was dropped. */
int request_log(sandbox_request *r, int level, const char *text, size_t size);
void request_emit_text(sandbox_request *r, const char *text, size_t size);

/* host_session.c: sampler keys of options replace the session's. */
realm_status host_session_set_sampler(guest_call *c, session_entry *s, const json_t *options,
                                      realm_error *error);

/* sandbox.c */
realm_status sandbox_start_child(sandbox_request **out, sandbox_request *parent,
                                 const sandbox_input *input, realm_error *error);

/* What each group of host functions undoes when a request ends, all after n_in_flight is 0 but
 * the first two. */
void host_session_cancel_all(sandbox_request *r);
void host_tenant_cancel_child(sandbox_request *r);
void host_tensor_release_all(sandbox_request *r); /* submits its last list: n_in_flight may rise */
void host_session_close_all(sandbox_request *r);
void host_generate_release(session_entry *s);
void host_generate_drain(sandbox_request *r); /* streams what the engine has made meanwhile */
void host_map_release_all(sandbox_request *r);

#endif
