/* server/single_run.c: see single_run.h. */
#include "server/single_run.h"

#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#include "server/request_spans.h"

#define INLINE_BODY ((size_t)64 << 10) /* larger ones are read by a worker */

const char *single_run_line(const char *text, size_t size, size_t *at, size_t *length)
{
    if (*at >= size)
        return NULL;
    const char *line = text + *at, *end = memchr(line, '\n', size - *at);
    *length = end ? (size_t)(end - line) : size - *at;
    *at += *length + 1;
    return line;
}

int single_run_vector(const char *line, size_t size, float **out, size_t *count)
{
    size_t room = size / 4 * 3 + 4, padding = 0;
    *out = malloc(room);
    int decoded = *out && size && size % 4 == 0
                      ? EVP_DecodeBlock((unsigned char *)*out, (const unsigned char *)line,
                                        (int)size)
                      : -1;
    while (padding < 2 && size > padding && line[size - 1 - padding] == '=')
        padding++;
    size_t bytes = decoded < 0 ? 0 : (size_t)decoded - padding;
    *count = bytes / sizeof(float);
    return bytes && bytes % sizeof(float) == 0;
}

/* ---- a request's life ---- */

static void free_run(single_run *e)
{
    exchange *x = e->x;
    x->context = NULL;
    x->on_cancel = NULL;
    openai_request_release(&e->r);
    if (e->is_open)
        ticket_close(&e->ticket);
    free(e);
    exchange_release(x);
}

static void on_cancel(exchange *x)
{
    single_run *e = x->context;
    if (e && e->run) {
        e->ticket.usage.failed = 1;
        guest_run_cancel(e->run);
    }
}

static int64_t count_lines(const char *text, size_t size)
{
    int64_t count = 0;
    size_t length;
    for (size_t at = 0; single_run_line(text, size, &at, &length);)
        count++;
    return count;
}

static void answer(single_run *e, const char *text, size_t size, const guest_result *result)
{
    int64_t count = count_lines(text, size);
    if (count == e->r.n_inputs && e->output->answer(e, text, size, result))
        return;
    api_problem_set(&e->problem, 500, "program_error", "program_answer", "",
                    "the program gave %" PRId64 " answers that can be read for %" PRId64 " texts",
                    count, e->r.n_inputs);
    api_reply_problem(e->x, &e->problem);
}

static void on_done(guest_run *run, void *context, const guest_result *result)
{
    single_run *e = context;
    size_t size;
    const char *text = guest_run_text(run, &size);
    e->run = NULL;
    ticket_add(&e->ticket, result, 0);
    e->ticket.usage.prompt_tokens = result->usage.prompt_tokens;
    e->ticket.usage.first_token_ns = 0;
    e->ticket.usage.failed = result->status || count_lines(text, size) != e->r.n_inputs;
    ticket_settle(&e->ticket);
    if (result->status) {
        api_problem_of_run(&e->problem, result);
        api_reply_problem(e->x, &e->problem);
    } else {
        answer(e, text, size, result);
    }
    free_run(e);
}

static realm_status start(single_run *e, realm_error *error)
{
    server *s = e->server;
    program *p;
    realm_status status = server_program(s, e->caller, e->x, (builtin_kind)e->output->kind, &p,
                                         &e->ticket.usage.version, error);
    if (status)
        return status;
    char *body = json_text(e->r.guest, 0);
    if (!body) {
        program_release(p);
        return realm_fail_memory(error, 1, "the program's request");
    }
    guest_run_options options = {
        .net = s->net,
        .sandbox = s->sandbox,
        .input = {.program = p,
                  .tenant = e->caller->tenant,
                  .id = e->x->id,
                  .body = body,
                  .body_size = strlen(body),
                  .deadline_ns = e->x->deadline_ns,
                  .priority = e->caller->priority,
                  .allowance = ticket_allowance(&e->ticket)},
        .context = e,
        .on_done = on_done,
    };
    status = guest_run_start(&e->run, &options, error);
    free(body);
    program_release(p);
    return status;
}

static void run(single_run *e)
{
    realm_error error;
    e->is_open = ticket_open(&e->ticket, e->server, e->x, e->caller, openai_request_tokens(&e->r));
    if (!e->is_open) {
        free_run(e);
        return;
    }
    snprintf(e->ticket.model, sizeof e->ticket.model, "%s", e->r.model->name);
    snprintf(e->ticket.program, sizeof e->ticket.program, "%s", builtin_names[e->output->kind]);
    request_spans_asked(&e->ticket, builtin_names[e->output->kind], 0, 1, -1);
    e->x->context = e;
    e->x->on_cancel = on_cancel;
    realm_status status = start(e, &error);
    if (!status)
        return;
    e->ticket.usage.failed = 1;
    api_problem_of(&e->problem, status, error.message);
    api_reply_problem(e->x, &e->problem);
    free_run(e);
}

static int may_use(void *context, const char *name)
{
    const single_run *e = context;
    return e->server->gate->table->allows_model(e->server->gate, e->caller, name);
}

static void plan(net_job *job)
{
    single_run *e = (single_run *)job;
    const openai_models models = {.server = e->server, .allowed = may_use, .context = e};
    json_t *body = e->output->read(e->x, &e->problem);
    if (body)
        openai_request_parse(&e->r, e->output->kind, &models, body, e->x->body.size, &e->problem);
    json_decref(body);
}

static void planned(net_job *job)
{
    single_run *e = (single_run *)job;
    buffer_release(&e->x->body);
    if (!exchange_is_over(e->x) && !e->problem.status) {
        run(e);
        return;
    }
    api_reply_problem(e->x, &e->problem); /* dropped if there is nobody left */
    free_run(e);
}

void single_run_begin(server *s, exchange *x, const caller *c, const single_output *output)
{
    single_run *e = calloc(1, sizeof *e);
    if (!e) {
        exchange_refuse(x, 503, "unavailable", "the host is out of memory");
        return;
    }
    *e = (single_run){.job = {.work = plan, .done = planned},
                      .server = s,
                      .x = exchange_retain(x),
                      .caller = c,
                      .output = output};
    if (x->body.size > INLINE_BODY && net_submit(s->net, &e->job) == REALM_OK)
        return;
    plan(&e->job);
    planned(&e->job);
}
