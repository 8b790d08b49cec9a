/* sandbox/host_generate.c: the fused loop. The guest sleeps while the engine samples, appends and
 * looks for stops; what it makes is streamed to the client and gathered for the guest.
 *
 * Two threads meet in a generate_run. on_token runs on the engine's thread and must not wait long: it
 * appends text to `fresh` under a mutex that the sandbox's thread holds only to swap the buffer, and
 * wakes the request, whose next turn passes the text on. Everything else of a run belongs to the
 * engine's thread while the work is in flight and to the sandbox's before and after. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sandbox/guest_memory.h"
#include "sandbox/guest_options.h"
#include "sandbox/host_groups.h"
#include "sandbox/tensor_list.h"

#define MAX_STOPS 64

typedef struct generate_run {
    pthread_mutex_t mutex;
    buffer fresh;     /* text to be streamed; guarded by mutex */
    buffer streaming; /* the other one of the pair; sandbox thread */

    int stream, return_text, return_tokens;
    uint64_t room;       /* bytes the client may still get */
    int full;            /* something did not fit */
    buffer text, tokens; /* since the guest was last woken; tokens is JSON without the brackets */
    int token_open;      /* the last token's text may still get longer */

    generate_options options; /* stops points into stops */
    const char *stops[MAX_STOPS];
    json_t *parsed;      /* holds the stops' text */
    buffer options_text; /* as the guest gave them, to recognize going on */
    buffer result;       /* the last result, for a guest that had too little room */
} generate_run;

/* ---- JSON ------------------------------------------------------------------------------------------- */

/* The inside of a JSON string. */
static void add_escaped(buffer *b, const char *text, size_t size)
{
    size_t plain = 0; /* where what needs no escape began */
    for (size_t i = 0; i < size; i++) {
        unsigned char byte = (unsigned char)text[i];
        if (byte >= 0x20 && byte != '"' && byte != '\\')
            continue;
        buffer_add(b, text + plain, i - plain);
        if (byte == '\n')
            buffer_add(b, "\\n", 2);
        else
            buffer_printf(b, "\\u%04x", byte);
        plain = i + 1;
    }
    if (size > plain)
        buffer_add(b, text + plain, size - plain);
}

static void add_json_number(buffer *b, float number)
{
    if (isfinite(number))
        buffer_printf(b, "%.9g", (double)number);
    else
        buffer_add_text(b, "null");
}

/* ---- on the engine's thread -------------------------------------------------------------------------- */

static void close_token(generate_run *run)
{
    if (run->token_open)
        buffer_add_text(&run->tokens, "\"}");
    run->token_open = 0;
    run->full |= run->tokens.lost != REALM_OK;
}

/* Text that was held back until the end comes with the id -1 and belongs to the last token. So the
 * text stands last in a token's object, and the object stays open until the next token comes. */
static void add_token(generate_run *run, const generated_token *t)
{
    buffer *b = &run->tokens;
    if (t->id >= 0) {
        close_token(run);
        buffer_printf(b, "%s{\"id\":%d,", b->size ? "," : "", t->id);
        if (run->options.want_logprobs) {
            buffer_add_text(b, "\"logprob\":");
            add_json_number(b, t->logprob);
            buffer_add_text(b, ",\"top\":[");
            for (int32_t i = 0; i < t->n_top; i++) {
                buffer_printf(b, "%s{\"id\":%d,\"logprob\":", i ? "," : "", t->top[i].id);
                add_json_number(b, t->top[i].value);
                buffer_add_text(b, "}");
            }
            buffer_add_text(b, "],");
        }
        buffer_add_text(b, "\"text\":\"");
        run->token_open = 1;
    }
    if (run->token_open)
        add_escaped(b, t->text, t->text_size);
    run->full |= b->lost != REALM_OK;
}

static void stream_text(generate_run *run, sandbox_request *r, const generated_token *t)
{
    if (t->text_size > run->room) {
        run->full = 1;
        return;
    }
    run->room -= t->text_size;
    pthread_mutex_lock(&run->mutex);
    if (buffer_add(&run->fresh, t->text, t->text_size) != REALM_OK)
        run->full = 1;
    pthread_mutex_unlock(&run->mutex);
    request_wake(r);
}

static int on_token(work *w, const generated_token *t)
{
    engine_op *op = w->context;
    session_entry *s = QUEUE_OWNER(op, session_entry, op);
    generate_run *run = s->run;
    if (run->return_tokens)
        add_token(run, t);
    if (run->return_text && buffer_add(&run->text, t->text, t->text_size) != REALM_OK)
        run->full = 1;
    if (run->stream && t->text_size)
        stream_text(run, op->request, t);
    return run->full;
}

/* ---- streaming, on the sandbox's thread --------------------------------------------------------------- */

static void drain(sandbox_request *r, generate_run *run)
{
    pthread_mutex_lock(&run->mutex);
    buffer swap = run->fresh;
    run->fresh = run->streaming;
    run->streaming = swap;
    pthread_mutex_unlock(&run->mutex);
    if (!run->streaming.size)
        return;
    request_take_output(r, run->streaming.size); /* room was kept for it */
    request_emit_text(r, run->streaming.data, run->streaming.size);
    buffer_clear(&run->streaming);
}

void host_generate_drain(sandbox_request *r)
{
    for (session_entry *s = r->sessions; s; s = s->next)
        if (s->run && s->run->stream)
            drain(r, s->run);
}

/* ---- options ------------------------------------------------------------------------------------------ */

static const char *const keys[] = {"max_tokens",  "stop",          "ignore_eos",
                                   "stream",      "logprobs",      "wake_every",
                                   "return_text", "return_tokens", NULL};

static realm_status add_stop(generate_run *run, const json_t *value, realm_error *error)
{
    const char *text = json_string_value(value);
    size_t size = json_string_length(value);
    if (!text || size == 0 || strlen(text) != size)
        return realm_fail(error, REALM_INVALID,
                          "options: a stop must be a string that is not empty");
    if (run->options.n_stops == MAX_STOPS)
        return realm_fail(error, REALM_INVALID, "options: more than %d stops", MAX_STOPS);
    run->stops[run->options.n_stops++] = text;
    return REALM_OK;
}

static realm_status read_stops(generate_run *run, const json_t *value, realm_error *error)
{
    run->options.n_stops = 0;
    run->options.stops = run->stops;
    if (!value || json_is_null(value))
        return REALM_OK;
    if (!json_is_array(value))
        return add_stop(run, value, error);
    realm_status status = REALM_OK;
    for (size_t i = 0; status == REALM_OK && i < json_array_size(value); i++)
        status = add_stop(run, json_array_get(value, i), error);
    return status;
}

static realm_status read_logprobs(generate_run *run, const json_t *o, realm_error *error)
{
    int64_t n = 0;
    realm_status status = json_get_int(o, "logprobs", 0, 20, &n, error);
    run->options.want_logprobs = status == REALM_OK;
    run->options.n_top_logprobs = (int32_t)n;
    return JSON_OPTIONAL(status);
}

static realm_status read_flags(generate_run *run, const json_t *o, realm_error *error)
{
    run->stream = run->options.ignore_eos = 0;
    run->return_tokens = run->options.want_logprobs;
    realm_status status = JSON_OPTIONAL(json_get_flag(o, "stream", &run->stream, error));
    run->return_text = !run->stream;
    if (status == REALM_OK)
        status = JSON_OPTIONAL(json_get_flag(o, "ignore_eos", &run->options.ignore_eos, error));
    if (status == REALM_OK)
        status = JSON_OPTIONAL(json_get_flag(o, "return_text", &run->return_text, error));
    if (status == REALM_OK)
        status = JSON_OPTIONAL(json_get_flag(o, "return_tokens", &run->return_tokens, error));
    return status;
}

static realm_status read_options(generate_run *run, const json_t *o, realm_error *error)
{
    int64_t max_tokens = 0;
    realm_status status = json_get_int(o, "max_tokens", 1, INT32_MAX, &max_tokens, error);
    if (status != REALM_OK)
        return realm_fail_in(error, REALM_INVALID, "options");
    run->options.max_tokens = (int32_t)max_tokens;
    run->options.wake_every = 0;
    status = guest_options_int(o, "wake_every", 0, INT32_MAX, &run->options.wake_every, error);
    if (status == REALM_OK)
        status = read_stops(run, json_object_get(o, "stop"), error);
    if (status == REALM_OK)
        status = read_logprobs(run, o, error);
    if (status == REALM_OK)
        status = read_flags(run, o, error);
    return status;
}

/* ---- runs --------------------------------------------------------------------------------------------- */

static generate_run *run_of(guest_call *c, session_entry *s)
{
    if (s->run)
        return s->run;
    size_t cap = c->request->tenant->grants.limits.output_bytes;
    generate_run *run = calloc(1, sizeof *run);
    if (!run)
        return NULL;
    pthread_mutex_init(&run->mutex, NULL);
    buffer_init(&run->fresh, cap);
    buffer_init(&run->streaming, cap);
    buffer_init(&run->text, cap);
    buffer_init(&run->tokens, cap);
    buffer_init(&run->options_text, (size_t)1 << 20);
    buffer_init(&run->result, cap * 7 + 4096); /* a byte may become six in JSON */
    s->run = run;
    return run;
}

void host_generate_release(session_entry *s)
{
    generate_run *run = s->run;
    if (!run)
        return;
    buffer_release(&run->fresh);
    buffer_release(&run->streaming);
    buffer_release(&run->text);
    buffer_release(&run->tokens);
    buffer_release(&run->options_text);
    buffer_release(&run->result);
    json_decref(run->parsed);
    pthread_mutex_destroy(&run->mutex);
    free(run);
    s->run = NULL;
}

/* ---- results ------------------------------------------------------------------------------------------ */

static double ms_between(uint64_t from_ns, uint64_t to_ns)
{
    return to_ns > from_ns ? (double)(to_ns - from_ns) / 1e6 : 0;
}

/* REALM_NO_MEMORY, or REALM_TOO_LARGE past its cap: something of it is missing. */
static realm_status write_result(generate_run *run, const work *w)
{
    static const char *const reasons[] = {"stop", "stop", "length", "wake"};
    buffer *b = &run->result;
    buffer_clear(b);
    buffer_printf(b, "{\"finish_reason\":\"%s\",\"n_tokens\":%d", reasons[w->finish],
                  w->n_generated);
    if (run->return_text) {
        buffer_add_text(b, ",\"text\":\"");
        add_escaped(b, run->text.data, run->text.size);
        buffer_add_text(b, "\"");
    }
    if (run->return_tokens) {
        close_token(run);
        buffer_add_text(b, ",\"tokens\":[");
        buffer_add(b, run->tokens.data, run->tokens.size);
        buffer_add_text(b, "]");
        if (run->tokens.lost)
            b->lost = run->tokens.lost;
    }
    buffer_printf(
        b,
        ",\"n_cached\":%d,\"timings\":{\"queue_ms\":%.3f,\"first_token_ms\":%.3f,\"total_ms\":%.3f}}",
        w->n_cached, ms_between(w->prompt_submitted_ns, w->prompt_started_ns),
        ms_between(w->prompt_submitted_ns, w->first_token_ns),
        ms_between(w->prompt_submitted_ns, w->done_ns));
    return b->lost;
}

static int64_t give_result(guest_call *c, const generate_run *run)
{
    return guest_give(c, 3, 4, run->result.data, run->result.size);
}

static int64_t finish(guest_call *c)
{
    session_entry *s = guest_handle(c, 0, HANDLE_SESSION);
    generate_run *run = s->run;
    const work *w = &s->op.work;
    if (run->stream)
        drain(c->request, run);
    if (run->full)
        return guest_trap(c, REALM_QUOTA,
                          "the output is larger than the tenant's limit of %" PRIu64 " bytes",
                          c->request->tenant->grants.limits.output_bytes);
    if (w->status != REALM_OK)
        return guest_note(c, &w->error);
    if (s->op.ran_out && !w->n_generated) { /* "length" would have it ask for more, and ask again */
        realm_error error;
        engine_op_used_up(&error);
        return guest_note(c, &error);
    }
    if (write_result(run, w) != REALM_OK)
        return REALM_NO_MEMORY;
    return give_result(c, run);
}

static int64_t submit(guest_call *c, session_entry *s)
{
    sandbox_request *r = c->request;
    generate_run *run = s->run;
    buffer_clear(&run->text);
    buffer_clear(&run->tokens);
    buffer_clear(&run->result);
    run->full = run->token_open = 0;
    run->room = r->tenant->grants.limits.output_bytes - r->usage.output_bytes;
    s->sampled = 1;
    s->stepping = 0;
    engine_op_submit(r, &s->op, s->engine);
    return guest_suspend(c, WAIT_OP, &s->op, finish);
}

/* 1 if the last generate only woke the guest and nothing came in between. */
static int may_go_on(const session_entry *s)
{
    const work *w = &s->op.work;
    return s->run && w->kind == WORK_GENERATE && w->session && w->status == REALM_OK &&
           w->finish == FINISH_WAKE;
}

static int64_t start(guest_call *c, session_entry *s, const char *text, size_t size)
{
    generate_run *run = run_of(c, s);
    if (!run)
        return REALM_NO_MEMORY;
    json_t *parsed;
    realm_error error;
    if (guest_options_parse(&parsed, text, size, keys, 1, &error) != REALM_OK)
        return guest_trap_error(c, &error);
    json_decref(run->parsed);
    run->parsed = parsed;
    if (read_options(run, parsed, &error) != REALM_OK ||
        host_session_set_sampler(c, s, parsed, &error) != REALM_OK)
        return guest_trap_error(c, &error);
    buffer_clear(&run->options_text);
    if (buffer_add(&run->options_text, text, size) != REALM_OK)
        return REALM_NO_MEMORY;
    if (session_length(s->session) == 0)
        return REALM_INVALID;
    s->op.work = (work){.kind = WORK_GENERATE,
                        .session = s->session,
                        .generate = run->options,
                        .on_token = on_token};
    return submit(c, s);
}

int64_t host_generate(guest_call *c)
{
    session_entry *s = guest_handle(c, 0, HANDLE_SESSION);
    const char *text = s ? guest_bytes(c, 1, 2) : NULL;
    if (!text || !guest_bytes(c, 3, 4))
        return GUEST_TRAPPED;
    if (!engine_op_collect(c->request, &s->op))
        return REALM_BUSY;
    if (tensor_list_flush_first(c, s))
        return 0;
    size_t size = c->arguments[2].u64;
    if (size == 0 && s->run && s->run->result.size)
        return give_result(c, s->run);
    int same = s->run && size == s->run->options_text.size &&
               memcmp(text, s->run->options_text.data ? s->run->options_text.data : "", size) == 0;
    if (may_go_on(s) && same)
        return submit(c, s);
    return start(c, s, text, size);
}
