/* server/api_program.c: POST /v1/programs/NAME: a program of the tenant's answers whatever it was sent.
 *
 * Without streaming the answer is what the program gave: its JSON, its text, both as {"text","json"}, or 204.
 * With ?stream=true, or where the client accepts text/event-stream, text comes as events `text` while it is
 * made, and then one `result` or `error`; over a WebSocket always. Net thread. */
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "server/request_spans.h"

typedef struct program_call {
    server *server;
    exchange *x;
    ticket ticket;
    guest_run *run;
    int stream, began;
} program_call;

static void free_call(program_call *p)
{
    p->x->context = NULL;
    p->x->on_cancel = p->x->on_drained = NULL;
    ticket_close(&p->ticket);
    free(p);
}

static void on_cancel(exchange *x)
{
    program_call *p = x->context;
    if (p && p->run) {
        p->ticket.usage.failed = 1;
        guest_run_cancel(p->run);
    }
}

static void on_drained(exchange *x)
{
    program_call *p = x->context;
    if (p && p->run)
        guest_run_resume(p->run);
}

/* ---- streaming ---- */

/* Memory is out: what the client would get has a hole. */
static void break_off(program_call *p)
{
    p->ticket.usage.failed = 1;
    exchange_abort(p->x);
    if (p->run)
        guest_run_cancel(p->run);
}

static void send_event(program_call *p, const char *name, const char *data, size_t size)
{
    if (!p->began) {
        p->began = 1;
        exchange_set(p->x, "content-type", "text/event-stream; charset=utf-8");
        exchange_set(p->x, "cache-control", "no-cache");
        exchange_set(p->x, "x-accel-buffering", "no");
        exchange_begin(p->x, 200, -1);
    }
    buffer event;
    buffer_init(&event, SIZE_MAX);
    buffer_printf(&event, "event: %s\ndata: ", name);
    buffer_add(&event, data, size);
    buffer_add_text(&event, "\n\n");
    if (event.lost)
        break_off(p);
    else
        exchange_write(p->x, event.data, event.size);
    buffer_release(&event);
}

/* A program's JSON may be laid out over lines, which would end the event. */
static void send_json(program_call *p, const char *name, json_t *value)
{
    char *text = json_text(value, 0);
    if (text)
        send_event(p, name, text, strlen(text));
    else
        break_off(p);
    free(text);
    json_decref(value);
}

static void on_text(guest_run *run, void *context, const char *text, size_t size)
{
    program_call *p = context;
    buffer quoted;
    buffer_init(&quoted, SIZE_MAX);
    buffer_add_text(&quoted, "\"");
    api_add_escaped(&quoted, text, size);
    buffer_add_text(&quoted, "\"");
    if (quoted.lost)
        break_off(p);
    else
        send_event(p, "text", quoted.data, quoted.size);
    buffer_release(&quoted);
    if (exchange_pending(p->x) > EXCHANGE_HIGH)
        guest_run_pause(run);
}

static void end_stream(program_call *p, const guest_result *result, const api_problem *problem)
{
    if (problem->status) {
        send_json(p, "error", api_problem_json(problem));
    } else {
        json_t *value = NULL;
        realm_status status = REALM_INVALID;
        if (result->json)
            status = json_parse(&value, result->json, result->json_size, result->json_size,
                                JSON_USUAL_DEPTH, NULL);
        send_json(p, "result", value || status == REALM_NO_MEMORY ? value : json_null());
    }
    exchange_end(p->x);
}

/* ---- the whole answer ---- */

static void answer(program_call *p, guest_run *run, const guest_result *result)
{
    size_t size;
    const char *text = guest_run_text(run, &size);
    if (result->json && !size) {
        exchange_reply(p->x, 200, "application/json", result->json, result->json_size);
    } else if (result->json) {
        buffer both;
        buffer_init(&both, SIZE_MAX);
        buffer_add_text(&both, "{\"text\":\"");
        api_add_escaped(&both, text, size);
        buffer_add_text(&both, "\",\"json\":");
        buffer_add(&both, result->json, result->json_size);
        buffer_add_text(&both, "}");
        if (both.lost)
            exchange_refuse(p->x, 503, "unavailable", "the host is out of memory");
        else
            exchange_reply(p->x, 200, "application/json", both.data, both.size);
        buffer_release(&both);
    } else if (size) {
        exchange_reply(p->x, 200, "text/plain; charset=utf-8", text, size);
    } else {
        exchange_reply(p->x, 204, NULL, "", 0);
    }
}

static void on_done(guest_run *run, void *context, const guest_result *result)
{
    program_call *p = context;
    api_problem problem = {0};
    p->run = NULL;
    if (result->usage.model)
        snprintf(p->ticket.model, sizeof p->ticket.model, "%s", result->usage.model);
    ticket_add(&p->ticket, result, 0);
    p->ticket.usage.prompt_tokens = result->usage.prompt_tokens;
    p->ticket.usage.cached_tokens = result->usage.cached_tokens;
    if (result->status) {
        p->ticket.usage.failed = 1;
        api_problem_of_run(&problem, result);
    }
    ticket_settle(&p->ticket);
    if (p->stream && (p->began || !problem.status))
        end_stream(p, result, &problem);
    else if (problem.status)
        api_reply_problem(p->x, &problem);
    else
        answer(p, run, result);
    free_call(p);
}

/* ---- starting ---- */

static int wants_stream(exchange *x)
{
    const char *flag = exchange_query_get(x, "stream");
    const char *accept = exchange_header_get(x, "accept");
    return x->streams || (flag && strcmp(flag, "true") == 0) ||
           (accept && strstr(accept, "text/event-stream") != NULL);
}

static realm_status start(program_call *p, program *code, const caller *c, realm_error *error)
{
    exchange *x = p->x;
    uint64_t seed;
    if (getrandom(&seed, sizeof seed, 0) < 0)
        return realm_fail(error, REALM_INTERNAL, "the system gave no random numbers");
    guest_run_options options = {
        .net = p->server->net,
        .sandbox = p->server->sandbox,
        .input = {.program = code,
                  .tenant = c->tenant,
                  .id = x->id,
                  .body = x->body.data ? x->body.data : "",
                  .body_size = x->body.size,
                  .seed = seed,
                  .priority = c->priority,
                  .allowance = ticket_allowance(&p->ticket)},
        .context = p,
        .on_text = p->stream ? on_text : NULL,
        .on_done = on_done,
    };
    return guest_run_start(&p->run, &options, error);
}

static void reply_failure(exchange *x, realm_status status, const realm_error *error)
{
    api_problem problem;
    api_problem_of(&problem, status, error->message);
    if (status == REALM_NOT_FOUND)
        problem.code = "program_not_found";
    api_reply_problem(x, &problem);
}

void api_program(server *s, exchange *x, const caller *c)
{
    const char *name = router_rest(x);
    realm_error error;
    program *code;
    int32_t version;
    realm_status status = s->gate->table->program(s->gate, c, name, x->id, &code, &version, &error);
    if (status) {
        reply_failure(x, status, &error);
        return;
    }
    program_call *p = calloc(1, sizeof *p);
    if (!p) {
        exchange_refuse(x, 503, "unavailable", "the host is out of memory");
    } else if (ticket_open(&p->ticket, s, x, c, (int64_t)x->body.size / 4 + 1)) {
        p->server = s;
        p->x = x;
        p->stream = wants_stream(x);
        snprintf(p->ticket.program, sizeof p->ticket.program, "%s", name);
        p->ticket.usage.version = version;
        request_spans_asked(&p->ticket, "invoke_workflow", p->stream, 1, -1);
        x->context = p;
        x->on_cancel = on_cancel;
        x->on_drained = on_drained;
        status = start(p, code, c, &error);
        buffer_release(&x->body);
        if (status) {
            p->ticket.usage.failed = 1;
            reply_failure(x, status, &error);
            free_call(p);
        }
    } else {
        free(p);
    }
    program_release(code);
}
