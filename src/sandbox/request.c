/* sandbox/request.c: the life of a request, a turn at a time; see request.h for the states.
 *
 * A turn is short: it looks at what happened since (text to stream, cancelling, deadlines), polls
 * the guest once, and notes what the guest now waits for. Wasmtime's futures have no waker, so a
 * request is polled only when its own wait is over. A guest that must end while it is suspended is
 * ended by deleting its future: Wasmtime unwinds the stack. */
#include "sandbox/request.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/prefetch.h"
#include "sandbox/runtime.h"

#define EPOCHS_A_LOOK 1 /* at every tick a running guest is looked at */

#define SHORT_TURN_NS 200000u /* turns so short are timed by the wall clock alone */
#define SHORT_SUM_NS  1000000u

/* ---- references and waking ------------------------------------------------------------------------ */

void request_retain(sandbox_request *r)
{
    atomic_fetch_add_explicit(&r->references, 1, memory_order_relaxed);
}

void request_unretain(sandbox_request *r)
{
    if (atomic_fetch_sub_explicit(&r->references, 1, memory_order_acq_rel) != 1)
        return;
    sandbox_tenant_release(r->tenant);
    program_release(r->program);
    arena_release(&r->arena);
    free(r);
}

void request_wake_give(sandbox_request *r, const engine *e)
{
    if (atomic_exchange(&r->scheduled, 1) == 0)
        queue_put_for(&r->thread->ready, &r->node, e); /* the reference goes along */
    else
        request_unretain(r);
}

void request_wake(sandbox_request *r)
{
    request_retain(r);
    request_wake_give(r, NULL);
}

/* ---- failing -------------------------------------------------------------------------------------- */

void request_fail(sandbox_request *r, realm_status status, const char *format, ...)
{
    if (r->failure.status != REALM_OK)
        return;
    va_list arguments;
    va_start(arguments, format);
    realm_fail_v(&r->failure, status, format, arguments);
    va_end(arguments);
    r->failure.status = status;
}

static const char *trap_sentence(wasmtime_trap_code_t code)
{
    switch (code) {
    case WASMTIME_TRAP_CODE_STACK_OVERFLOW: return "its call stack is exhausted (512 KiB)";
    case WASMTIME_TRAP_CODE_MEMORY_OUT_OF_BOUNDS: return "it accessed memory out of bounds";
    case WASMTIME_TRAP_CODE_TABLE_OUT_OF_BOUNDS: return "it accessed a table out of bounds";
    case WASMTIME_TRAP_CODE_INDIRECT_CALL_TO_NULL: return "it called a null function pointer";
    case WASMTIME_TRAP_CODE_BAD_SIGNATURE: return "it called a function pointer of another type";
    case WASMTIME_TRAP_CODE_INTEGER_OVERFLOW: return "an integer overflowed";
    case WASMTIME_TRAP_CODE_INTEGER_DIVISION_BY_ZERO: return "it divided by zero";
    case WASMTIME_TRAP_CODE_BAD_CONVERSION_TO_INTEGER: return "a float does not fit an integer";
    case WASMTIME_TRAP_CODE_UNREACHABLE_CODE_REACHED:
        return "it reached 'unreachable' (a panic or abort)";
    default: return NULL;
    }
}

/* The innermost function that has a name, in quotes, or "". */
static void frame_name(const wasm_frame_vec_t *frames, char *text, size_t size)
{
    text[0] = '\0';
    for (size_t i = 0; i < frames->size; i++) {
        const wasm_name_t *name = wasmtime_frame_func_name(frames->data[i]);
        if (name && name->size) {
            snprintf(text, size, " in function '%.*s'", (int)(name->size < 80 ? name->size : 80),
                     name->data);
            return;
        }
    }
}

static void fail_with_trap(sandbox_request *r, wasm_trap_t *trap)
{
    wasm_frame_vec_t frames;
    wasm_trap_trace(trap, &frames);
    char where[112];
    frame_name(&frames, where, sizeof where);
    wasm_frame_vec_delete(&frames);
    wasmtime_trap_code_t code;
    const char *sentence = wasmtime_trap_code(trap, &code) ? trap_sentence(code) : NULL;
    if (sentence) {
        request_fail(r, REALM_TRAPPED, "the program trapped%s: %s", where, sentence);
    } else {
        wasm_message_t message;
        wasm_trap_message(trap, &message);
        request_fail(r, REALM_TRAPPED, "the program trapped%s: %.*s", where, (int)message.size,
                     message.data);
        wasm_byte_vec_delete(&message);
    }
}

/* Deletes the future and what it left; 1 if the guest got through. */
static int close_future(sandbox_request *r)
{
    wasmtime_call_future_delete(r->future);
    r->future = NULL;
    int ok = !r->trap && !r->error;
    if (r->trap) {
        fail_with_trap(r, r->trap);
        wasm_trap_delete(r->trap);
        r->trap = NULL;
    }
    if (r->error) {
        realm_error sentence;
        wasm_engines_fail(&sentence, REALM_TRAPPED, r->error, "the program was stopped");
        request_fail(r, REALM_TRAPPED, "%s", sentence.message);
        r->error = NULL;
    }
    return ok;
}

/* ---- limits --------------------------------------------------------------------------------------- */

/* Whoever waits takes the thread; a guest alone only comes up to be looked at. Runs on the guest's
 * stack, inside a poll. Nothing is ended here: a guest that must end yields, and its turn ends it. */
static wasmtime_error_t *on_epoch(wasmtime_context_t *context, void *data, uint64_t *delta,
                                  wasmtime_update_deadline_kind_t *kind)
{
    (void)context;
    sandbox_request *r = data;
    const sandbox_limits *limits = &r->tenant->grants.limits;
    uint64_t now = clock_ns(), slice = now - r->slice_started_ns;
    *delta = EPOCHS_A_LOOK;
    *kind = WASMTIME_UPDATE_DEADLINE_CONTINUE;
    if (r->shared || slice >= limits->slice_ns || r->usage.cpu_ns + slice > limits->cpu_ns ||
        now >= r->deadline_ns || atomic_load_explicit(&r->cancelled, memory_order_relaxed)) {
        atomic_fetch_add_explicit(&r->host->preemptions, 1, memory_order_relaxed);
        *kind = WASMTIME_UPDATE_DEADLINE_YIELD;
    }
    return NULL;
}

static void check_limits(sandbox_request *r)
{
    const sandbox_limits *limits = &r->tenant->grants.limits;
    if (atomic_load_explicit(&r->cancelled, memory_order_relaxed))
        request_fail(r, REALM_CANCELLED, "the request was cancelled");
    else if (r->usage.cpu_ns > limits->cpu_ns)
        request_fail(r, REALM_QUOTA, "the program used its %" PRIu64 " ms of CPU time",
                     limits->cpu_ns / 1000000);
    else if (r->clock->now_ns >= r->deadline_ns)
        request_fail(r, REALM_DEADLINE, "the request took longer than its %" PRIu64 " ms",
                     (r->deadline_ns - r->submitted_ns) / 1000000);
}

uint64_t request_next_time(const sandbox_request *r)
{
    int timed = r->state == REQUEST_RUNNING && r->wait.kind == WAIT_ANY;
    return timed && r->wait.until_ns < r->deadline_ns ? r->wait.until_ns : r->deadline_ns;
}

int request_take_output(sandbox_request *r, uint64_t bytes)
{
    uint64_t limit = r->tenant->grants.limits.output_bytes;
    if (bytes > limit - r->usage.output_bytes)
        return 0;
    r->usage.output_bytes += bytes;
    return 1;
}

void request_note_model(sandbox_request *r, const char *name)
{
    const char *known = r->usage.model;
    if (name)
        r->usage.model = known && strcmp(known, name) != 0 ? "" : name;
}

/* ---- what it says ---------------------------------------------------------------------------------
 *
 * In a shared turn it is held: whoever listens may do what must not be done on the engine's thread. */

#define HELD_TEXT (-1)

static void hold(sandbox_request *r, int level, const char *text, size_t size)
{
    request_held piece = {.size = size, .level = level};
    realm_status status = buffer_reserve(&r->held, sizeof piece + size);
    if (status != REALM_OK) {
        request_fail(r, status, "%zu bytes that the program wrote do not fit in memory", size);
        return;
    }
    buffer_add(&r->held, &piece, sizeof piece);
    buffer_add(&r->held, text, size);
}

static void tell_text(sandbox_request *r, const char *text, size_t size)
{
    if (r->input.on_text)
        r->input.on_text(r->input.context, text, size);
}

static void tell_log(sandbox_request *r, int level, const char *text, size_t size)
{
    if (r->input.on_log)
        r->input.on_log(r->input.context, level, text, size);
    else
        log_write((log_level)level, r->program->name, r->input.id, "%.*s",
                  (int)(size < 4096 ? size : 4096), text);
}

static void release_held(sandbox_request *r)
{
    for (size_t at = 0; at < r->held.size;) {
        request_held piece;
        memcpy(&piece, r->held.data + at, sizeof piece);
        const char *text = r->held.data + at + sizeof piece;
        if (piece.level == HELD_TEXT)
            tell_text(r, text, piece.size);
        else
            tell_log(r, piece.level, text, piece.size);
        at += sizeof piece + piece.size;
    }
    buffer_clear(&r->held);
}

void request_emit_text(sandbox_request *r, const char *text, size_t size)
{
    if (size && r->shared)
        hold(r, HELD_TEXT, text, size);
    else if (size)
        tell_text(r, text, size);
}

static void write_log(sandbox_request *r, int level, const char *text, size_t size)
{
    if (r->shared)
        hold(r, level, text, size);
    else
        tell_log(r, level, text, size);
}

int request_log(sandbox_request *r, int level, const char *text, size_t size)
{
    static const char cut[] = "the request's log is full; what follows is dropped";
    if (!r->log_cut && size < r->tenant->grants.limits.log_bytes - r->log_bytes) {
        r->log_bytes += size + 1; /* a line is never for nothing */
        write_log(r, level, text, size);
        return 1;
    }
    if (!r->log_cut)
        write_log(r, LOG_WARN, cut, sizeof cut - 1);
    r->log_cut = 1;
    return 0;
}

/* ---- stages --------------------------------------------------------------------------------------- */

static void call_guest(sandbox_request *r, const wasmtime_func_t *function)
{
    r->future = wasmtime_func_call_async(r->context, function, NULL, 0, &r->returned, 1, &r->trap,
                                         &r->error);
}

/* The large limit is for mapped weights; whoever cannot map any gets none of it to fill. */
static uint64_t memory_limit(const sandbox_request *r)
{
    const tenant_grants *g = &r->tenant->grants;
    int maps = r->program->info.memory64 && (g->capabilities & CAPABILITY_TENSORS);
    return maps ? g->limits.memory64_bytes : g->limits.memory_bytes;
}

static int fits(sandbox_request *r)
{
    const program *p = r->program;
    uint64_t limit = memory_limit(r);
    if (p->memory_bytes <= limit)
        return 1;
    request_fail(r, REALM_QUOTA,
                 "the program's memory begins with %" PRIu64 " KiB, its tenant's limit is %" PRIu64
                 " KiB",
                 p->memory_bytes >> 10, limit >> 10);
    return 0;
}

static void start_instance(sandbox_request *r)
{
    const sandbox_limits *limits = &r->tenant->grants.limits;
    int memory64 = r->program->info.memory64;
    r->store = wasmtime_store_new(r->host->engines[memory64], r, NULL);
    r->context = wasmtime_store_context(r->store);
    uint64_t memory = memory_limit(r);
    wasmtime_store_limiter(r->store, memory > INT64_MAX ? INT64_MAX : (int64_t)memory,
                           limits->table_elements, 1, -1, 1);
    wasmtime_store_epoch_deadline_callback(r->store, on_epoch, r, NULL);
    wasmtime_context_set_epoch_deadline(r->context, EPOCHS_A_LOOK);
    r->state = REQUEST_STARTING;
    r->future = wasmtime_instance_pre_instantiate_async(r->program->pre, r->context, &r->instance,
                                                        &r->trap, &r->error);
}

/* From the line to an instance. 0: still waiting, or ended. */
static int begin(sandbox_request *r)
{
    if (atomic_load(&r->admitted))
        r->has_instance = 1;
    if (!r->has_instance && !r->in_line_since) {
        int admitted = sandbox_host_admit(r->host, r);
        r->has_instance = admitted > 0;
        r->in_line_since = 1;
        if (admitted < 0)
            request_fail(r, REALM_QUOTA, "all instances for called programs are in use");
    }
    if (!r->has_instance || !fits(r))
        return 0;
    start_instance(r);
    return 1;
}

static wasmtime_func_t find_function(sandbox_request *r, const char *name)
{
    wasmtime_extern_t item;
    wasmtime_instance_export_get(r->context, &r->instance, name, strlen(name), &item);
    return item.of.func; /* program.c has seen that it is there */
}

static void run_handle(sandbox_request *r)
{
    wasmtime_func_t handle = find_function(r, "realm_handle");
    r->handle_function = handle;
    r->state = REQUEST_RUNNING;
    r->usage.start_ns = clock_ns() - r->submitted_ns;
    call_guest(r, &r->handle_function);
}

static void instance_is_made(sandbox_request *r)
{
    wasmtime_extern_t item;
    wasmtime_instance_export_get(r->context, &r->instance, "memory", 6, &item);
    r->memory = item.of.memory;
    r->memory_base = wasmtime_memory_data(r->context, &r->memory);
    r->memory_size = wasmtime_memory_data_size(r->context, &r->memory);
    if (atomic_load_explicit(&r->program->abi_checked, memory_order_relaxed)) {
        run_handle(r);
        return;
    }
    r->handle_function = find_function(r, "realm_abi");
    r->state = REQUEST_CHECKING;
    call_guest(r, &r->handle_function);
}

static void abi_is_known(sandbox_request *r)
{
    if (r->returned.of.i32 != 1) {
        request_fail(r, REALM_UNSUPPORTED,
                     "the program speaks version %" PRId32
                     " of the host functions; this host speaks 1",
                     r->returned.of.i32);
        return;
    }
    atomic_store(&r->program->abi_checked, 1);
    run_handle(r);
}

static void guest_has_returned(sandbox_request *r)
{
    int32_t status = r->returned.of.i32;
    if (r->responded.status != REALM_OK)
        request_fail(r, r->responded.status, "%s", r->responded.message);
    else if (status < 0 && r->last_failure.status == (realm_status)status)
        request_fail(r, (realm_status)status, "%s", r->last_failure.message);
    else if (status < 0)
        request_fail(r, status < REALM_INTERNAL ? REALM_INVALID : (realm_status)status,
                     "the program returned %s (%" PRId32 ")", realm_status_name(status), status);
    r->state = REQUEST_ENDING;
}

/* ---- running the guest ----------------------------------------------------------------------------- */

static int any_step_is_over(sandbox_request *r)
{
    int over = 0;
    for (int32_t i = 0; i < r->wait.n_sessions; i++) {
        session_entry *s = r->wait.sessions[i];
        over |= s->stepping && engine_op_collect(r, &s->op);
    }
    return over || r->clock->now_ns >= r->wait.until_ns;
}

int request_wait_is_over(sandbox_request *r)
{
    switch (r->wait.kind) {
    case WAIT_OP: return engine_op_collect(r, r->wait.op);
    case WAIT_ANY: return any_step_is_over(r);
    case WAIT_CHILD: return r->child_done;
    case WAIT_JOB: return helper_collect(r);
    default: return 1;
    }
}

engine *request_awaited_engine(const sandbox_request *r)
{
    const guest_wait *w = &r->wait;
    if (r->state != REQUEST_RUNNING)
        return NULL;
    if (w->kind == WAIT_OP)
        return w->op->in_flight ? w->op->engine : NULL;
    for (int32_t i = 0; w->kind == WAIT_ANY && i < w->n_sessions; i++)
        if (w->sessions[i]->stepping && w->sessions[i]->op.in_flight)
            return w->sessions[i]->op.engine;
    return NULL;
}

/* A guest that is polled again comes back through Wasmtime's frames, which lie above the one where it
 * called the host: measured, they are within so many bytes. */
#define FRAME_BYTES 1536

static void prefetch_wait(const sandbox_request *r)
{
    prefetch_to_write(r->wait.frame, FRAME_BYTES);
    prefetch_to_write(r->wait.result, sizeof *r->wait.result);
    prefetch_to_write(r->wait.op, sizeof *r->wait.op);
    prefetch_to_write(r->context, 4 * PREFETCH_LINE);
    prefetch_to_write(r->future, 2 * PREFETCH_LINE);
    prefetch_to_read(r->memory_base, PREFETCH_LINE);
}

void request_prefetch(const sandbox_request *r, int stage)
{
    if (stage == 0) {
        prefetch_to_write(r, offsetof(sandbox_request, submitted_ns));
        prefetch_to_write(&r->store,
                          (size_t)((const char *)(&r->handles + 1) - (const char *)&r->store));
        prefetch_to_write(&r->usage, offsetof(sandbox_usage, answers));
    } else if (r->state == REQUEST_RUNNING && r->wait.kind == WAIT_OP) {
        const work *w = &r->wait.op->work;
        int done = stage > 1 && atomic_load_explicit(&r->wait.op->done, memory_order_acquire);
        if (stage == 1)
            prefetch_wait(r);
        else if (done && w->session && stage == 2)
            session_prefetch(w->session);
        else if (done && w->session)
            session_prefetch_logits(w->session);
    }
}

/* CLOCK_THREAD_CPUTIME_ID costs a system call, four times a whole suspending host call. A short
 * turn's wall time is its CPU time unless the kernel took the core away in just that moment, and
 * then it is no longer short. A longer turn is held against the CPU clock since it was last read. */
static uint64_t cpu_time(turn_clock *c, uint64_t wall_ns)
{
    if (wall_ns < SHORT_TURN_NS && c->cpu_short_ns < SHORT_SUM_NS) {
        c->cpu_short_ns += wall_ns;
        return wall_ns;
    }
    uint64_t now = clock_thread_cpu_ns(), since = now - c->cpu_read_ns;
    uint64_t mine = since > c->cpu_short_ns ? since - c->cpu_short_ns : 0;
    c->cpu_read_ns = now;
    c->cpu_short_ns = 0;
    return mine < wall_ns ? mine : wall_ns;
}

/* Runs the guest until it waits, yields or is through with this stage; 1 if it is through. */
static int poll_guest(sandbox_request *r)
{
    uint64_t began = r->clock->now_ns;
    r->slice_started_ns = began;
    r->wait.fresh = 0;
    ticker_enter(&r->host->ticker);
    int through = wasmtime_call_future_poll(r->future);
    ticker_leave(&r->host->ticker);
    r->clock->now_ns = clock_ns();
    uint64_t cpu_ns = cpu_time(r->clock, r->clock->now_ns - began);
    r->usage.cpu_ns += cpu_ns;
    r->stretch_ns = !through && r->wait.kind == WAIT_NONE ? r->stretch_ns + cpu_ns : 0;
    return through;
}

static void next_stage(sandbox_request *r)
{
    if (!close_future(r) || r->failure.status != REALM_OK)
        return;
    if (r->state == REQUEST_STARTING)
        instance_is_made(r);
    else if (r->state == REQUEST_CHECKING)
        abi_is_known(r);
    else
        guest_has_returned(r);
}

static void run_guest(sandbox_request *r)
{
    while (r->future && r->failure.status == REALM_OK) {
        if (!request_wait_is_over(r))
            return;
        if (poll_guest(r)) {
            next_stage(r);
            continue;
        }
        check_limits(r);
        if (r->wait.kind == WAIT_NONE)
            request_wake(r); /* it yielded: to the end of the queue */
        else if (request_wait_is_over(r))
            request_wake(r); /* what it waits for came before it waited */
        else if (!r->shared)
            sandbox_thread_mind(r->thread, request_next_time(r));
        return;
    }
}

/* ---- the end --------------------------------------------------------------------------------------- */

static void drop_instance(sandbox_request *r)
{
    if (r->future)
        close_future(r);
    if (r->store) {
        if (r->memory_base)
            r->usage.memory_bytes = wasmtime_memory_data_size(r->context, &r->memory);
        host_map_release_all(r);
        wasmtime_store_delete(r->store);
        r->store = NULL;
    }
    if (!r->has_instance)
        sandbox_host_leave_line(r->host, r);
    if (r->has_instance || atomic_load(&r->admitted))
        sandbox_host_give_back(r->host, r);
    r->has_instance = 0;
    atomic_store(&r->admitted, 0);
}

static void collect_all(sandbox_request *r)
{
    for (session_entry *s = r->sessions; s; s = s->next)
        engine_op_collect(r, &s->op);
    engine_op_collect(r, &r->tensors.op);
    engine_op_collect(r, &r->embed_op);
    helper_collect(r);
}

static void tell(sandbox_request *r)
{
    r->usage.wall_ns = clock_ns() - r->submitted_ns;
    sandbox_result result = {.status = r->failure.status,
                             .message = r->failure.message,
                             .json = r->json,
                             .json_size = r->json_size,
                             .usage = r->usage};
    atomic_fetch_add(&r->host->finished, 1);
    if (result.status != REALM_OK)
        atomic_fetch_add(&r->host->failed, 1);
    if (r->input.on_done)
        r->input.on_done(r->input.context, &result);
}

static void release_all(sandbox_request *r)
{
    helper_clear(r);
    handles_release(&r->handles);
    buffer_release(&r->child_output);
    buffer_release(&r->held);
    buffer_release(&r->kept);
    buffer_release(&r->piece);
    free(r->child_json);
    free(r->wait.sessions);
    free(r->json);
    r->json = NULL;
}

/* A step at a time, since each may wait for the engine: the guest goes, what is in flight is
 * cancelled, device memory is given back, sessions are closed, the caller is told. */
static void end(sandbox_request *r)
{
    if (r->state != REQUEST_ENDING || !r->ending) {
        r->state = REQUEST_ENDING;
        r->ending = 1;
        drop_instance(r);
        host_session_cancel_all(r);
        host_tenant_cancel_child(r);
    }
    collect_all(r);
    if (r->n_in_flight > 0 || (r->child && !r->child_done))
        return;
    host_tensor_release_all(r);
    if (r->n_in_flight > 0)
        return;
    host_generate_drain(r);
    sandbox_tenant *tenant = r->tenant;
    if (r->depth == 0)
        atomic_fetch_sub(&tenant->requests, 1);
    r->state = REQUEST_DONE;
    atomic_store(&r->finished, 1);
    host_session_close_all(r);
    tell(r);
    release_all(r);
    sandbox_host_leave(r->host, r);
}

void request_turn(sandbox_request *r, turn_clock *clock)
{
    request_assert(r);
    r->clock = clock;
    if (r->state != REQUEST_ENDING) {
        host_generate_drain(r);
        check_limits(r);
        if (r->state == REQUEST_QUEUED && r->failure.status == REALM_OK)
            begin(r);
        run_guest(r);
    }
    if (r->state == REQUEST_ENDING || r->failure.status != REALM_OK)
        end(r);
    request_assert(r);
}

void request_turn_shared(sandbox_request *r, turn_clock *clock, int visits)
{
    uint64_t began = clock->now_ns;
    r->clock = clock;
    r->shared = 1;
    check_limits(r);
    run_guest(r);
    r->shared = 0;
    r->turn_ns = clock->now_ns - began;
    if (visits && r->turn_ns > SLOW_TURN_NS)
        r->slow_turns = SLOW_FOR_TURNS_SHARED;
}

void request_settle(sandbox_request *r, turn_clock *clock)
{
    r->unsettled = 0;
    release_held(r);
    if (r->state == REQUEST_ENDING || r->failure.status != REALM_OK)
        request_turn(r, clock);
    else
        sandbox_thread_mind(r->thread, request_next_time(r));
}

void request_assert(const sandbox_request *r)
{
#ifndef NDEBUG
    int guest = r->state == REQUEST_STARTING || r->state == REQUEST_CHECKING ||
                r->state == REQUEST_RUNNING;
    assert(!r->future || guest); /* 1 */
    assert(!guest || r->store);
    assert(r->wait.kind == WAIT_NONE || r->state == REQUEST_RUNNING || r->state >= REQUEST_ENDING ||
           r->state == REQUEST_STARTING);
    assert(r->n_in_flight >= 0 && r->n_sessions >= 0);
    assert(r->state != REQUEST_DONE || (r->n_in_flight == 0 && !r->store && !r->mapped)); /* 4, 7 */
    assert(r->state == REQUEST_QUEUED || r->state >= REQUEST_ENDING || r->has_instance);
#else
    (void)r;
#endif
}
