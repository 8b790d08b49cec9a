/* server/generation.c: see generation.h. */
#include "server/generation.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/utf8.h"
#include "server/request_spans.h"
#include "server/tool_calls.h"

#define INLINE_BODY ((size_t)64 << 10) /* larger ones are read by a worker */
#define MAX_RUNNING 16                 /* choices of one request at once */
#define MAX_JSON    ((size_t)8 << 20)  /* what the sandbox lets through is smaller */

typedef generation_choice choice;

/* ---- ending ---- */

static void free_generation(generation *g)
{
    for (int i = 0; i < g->n_choices; i++) {
        buffer_release(&g->choices[i].text);
        json_decref(g->choices[i].logprobs);
    }
    free(g->choices);
    free(g->guest_text);
    program_release(g->program);
    openai_request_release(&g->r);
    g->output->release(g);
    exchange *x = g->x;
    x->context = NULL;
    x->on_cancel = x->on_drained = NULL;
    if (g->is_open)
        ticket_close(&g->ticket);
    free(g);
    exchange_release(x);
}

static void cancel_all(generation *g)
{
    g->failed = 1;
    for (int i = 0; i < g->n_choices; i++)
        if (g->choices[i].run)
            guest_run_cancel(g->choices[i].run);
}

static void on_cancel(exchange *x)
{
    generation *g = x->context;
    if (!g)
        return;
    g->ticket.usage.failed = 1;
    cancel_all(g);
}

void generation_fail(generation *g, const api_problem *problem)
{
    if (g->failed)
        return;
    g->ticket.usage.failed = 1;
    cancel_all(g);
    g->output->fail(g, problem);
}

static void fail_memory(generation *g)
{
    api_problem problem;
    api_problem_of(&problem, REALM_NO_MEMORY, "the host is out of memory");
    generation_fail(g, &problem);
}

/* ---- what programs say ---- */

static void flush(generation *g)
{
    if (g->output->flush(g))
        fail_memory(g);
    if (exchange_pending(g->x) > EXCHANGE_HIGH)
        for (int i = 0; i < g->n_choices; i++)
            if (g->choices[i].run)
                guest_run_pause(g->choices[i].run);
}

static void on_drained(exchange *x)
{
    generation *g = x->context;
    for (int i = 0; g && i < g->n_choices; i++)
        if (g->choices[i].run)
            guest_run_resume(g->choices[i].run);
}

static void start_more(generation *g);

/* One line of a stream with logprobs: {"text","tokens":[...]} of one token. */
static void take_line(generation *g, choice *c, const char *line, size_t size)
{
    json_t *value = NULL;
    realm_status status = json_parse(&value, line, size, MAX_JSON, JSON_USUAL_DEPTH, NULL);
    if (status == REALM_NO_MEMORY)
        fail_memory(g);
    if (status)
        return; /* a program of the tenant that does not do as ours: its text is not for us to guess */
    const json_t *text = json_object_get(value, "text"), *tokens = json_object_get(value, "tokens");
    if (json_array_size(tokens))
        g->output->piece(g, c, json_string_value(text) ? json_string_value(text) : "",
                         json_string_length(text), tokens);
    json_decref(value);
}

static void on_tokens(generation *g, choice *c)
{
    size_t at = 0;
    while (!g->failed) {
        const char *start = c->text.data + at;
        const char *end = memchr(start, '\n', c->text.size - at);
        if (!end)
            break;
        take_line(g, c, start, (size_t)(end - start));
        at = (size_t)(end - c->text.data) + 1;
    }
    buffer_drop_front(&c->text, at);
}

/* With tools, what may be a call is kept; without, only half a character is, of a program that cuts one. */
static void send_text(generation *g, choice *c)
{
    size_t upto = c->text.size;
    if (g->r.has_tools) {
        upto = g->r.forced ? 0 : tool_calls_plain(g->r.model->tools, c->text.data, c->text.size);
    } else {
        upto = utf8_complete_prefix((const uint8_t *)c->text.data, c->text.size);
    }
    if (upto > c->sent)
        g->output->piece(g, c, c->text.data + c->sent, upto - c->sent, NULL);
    c->sent = upto > c->sent ? upto : c->sent;
    if (!g->r.has_tools) {
        buffer_drop_front(&c->text, c->sent);
        c->sent = 0;
    }
}

static void on_text(guest_run *run, void *context, const char *text, size_t size)
{
    (void)run;
    choice *c = context;
    generation *g = c->g;
    if (g->failed)
        return;
    c->warm = 1;
    if (g->r.stream && !c->text.size && !g->r.has_tools && g->r.logprobs < 0 &&
        utf8_complete_prefix((const uint8_t *)text, size) == size) {
        g->output->piece(g, c, text, size, NULL); /* the usual case: nothing is kept */
    } else {
        if (buffer_add(&c->text, text, size)) {
            fail_memory(g);
            return;
        }
        if (g->r.stream && g->r.logprobs >= 0)
            on_tokens(g, c);
        else if (g->r.stream && c->text.size)
            send_text(g, c);
    }
    if (!g->failed)
        flush(g);
    start_more(g);
}

json_t *generation_calls(generation *g, choice *c, size_t *plain)
{
    *plain = c->text.size;
    if (!g->r.has_tools)
        return NULL;
    json_t *calls = tool_calls_parse(g->r.model->tools, buffer_text(&c->text), c->text.size,
                                     g->r.forced, g->id + 9, plain);
    if (calls)
        c->finish = "tool_calls";
    while (calls && !g->r.parallel && json_array_size(calls) > 1)
        json_array_remove(calls, json_array_size(calls) - 1);
    return calls;
}

/* What a stream still owes of a choice. */
static void finish_stream(generation *g, choice *c)
{
    size_t plain;
    json_t *calls = generation_calls(g, c, &plain);
    if (calls)
        g->output->calls(g, c, calls);
    else if (c->text.size > c->sent && g->r.logprobs < 0)
        g->output->piece(g, c, c->text.data + c->sent, c->text.size - c->sent, NULL);
    json_decref(calls);
    g->output->finish(g, c);
    flush(g);
}

/* The program's last word: {"finish_reason","text"?,"tokens"?}, or nothing of the kind. */
static realm_status take_result(generation *g, choice *c, const guest_result *result)
{
    json_t *value = NULL;
    realm_status status = REALM_OK;
    c->finish = "stop";
    if (result->json)
        status = json_parse(&value, result->json, result->json_size, MAX_JSON, JSON_USUAL_DEPTH,
                            NULL);
    if (status == REALM_NO_MEMORY)
        return status;
    status = REALM_OK;
    const char *finish = json_string_value(json_object_get(value, "finish_reason"));
    if (finish && strcmp(finish, "length") == 0)
        c->finish = "length";
    const json_t *text = json_object_get(value, "text"), *tokens = json_object_get(value, "tokens");
    if (!c->warm && json_is_string(text)) /* it did not stream */
        status = buffer_add(&c->text, json_string_value(text), json_string_length(text));
    if (!g->r.stream && g->r.logprobs >= 0 && json_is_array(tokens))
        c->logprobs = json_incref((json_t *)(uintptr_t)tokens);
    json_decref(value);
    return status;
}

/* A prompt is one prompt, whatever is made of it, for the built-in programs (version 0), which feed it and
 * nothing else; of a tenant's own whatever it feeds is counted. */
static int pays_prompt(const generation *g, const choice *c)
{
    return c->index % g->r.n == 0 || g->ticket.usage.version != 0;
}

static void count(generation *g, choice *c, const guest_result *result)
{
    ticket *t = &g->ticket;
    ticket_add(t, result, c->index);
    g->completion_tokens += result->usage.generated_tokens;
    if (pays_prompt(g, c)) {
        g->prompt_tokens += result->usage.prompt_tokens;
        g->cached_tokens += result->usage.cached_tokens;
    }
    t->usage.prompt_tokens = g->prompt_tokens;
    t->usage.cached_tokens = g->cached_tokens;
}

/* What the client has had of a stream until now it has whatever happens; its end comes with its bill. */
static void end(generation *g)
{
    ticket_settle(&g->ticket);
    g->output->end(g);
    const char *reasons[OPENAI_MAX_CHOICES];
    size_t count = 0;
    for (int i = 0; i < g->n_choices && count < OPENAI_MAX_CHOICES; i++)
        reasons[count++] = g->choices[i].finish;
    request_spans_finished(&g->ticket, reasons, count);
}

static void on_done(guest_run *run, void *context, const guest_result *result)
{
    (void)run;
    choice *c = context;
    generation *g = c->g;
    c->run = NULL;
    c->done = 1;
    g->n_running--;
    g->n_done++;
    count(g, c, result);
    if (result->status && !g->n_running) {
        g->ticket.usage.failed = 1;
        ticket_settle(&g->ticket);
    }
    if (!g->failed && result->status) {
        api_problem problem;
        api_problem_of_run(&problem, result);
        generation_fail(g, &problem);
    }
    if (!g->failed && take_result(g, c, result))
        fail_memory(g);
    c->warm = 1;
    if (!g->failed && g->r.stream)
        finish_stream(g, c);
    if (!g->failed && g->n_done == g->n_choices)
        end(g);
    start_more(g);
    if (g->n_running == 0 && (g->failed || g->n_done == g->n_choices))
        free_generation(g);
}

/* ---- starting ---- */

static char *request_text(generation *g, int index)
{
    if (g->kind == OPENAI_CHAT)
        return g->guest_text;
    json_object_set(g->r.guest, "prompt", json_array_get(g->r.prompts, (size_t)(index / g->r.n)));
    return json_text(g->r.guest, 0);
}

static realm_status start(generation *g, choice *c, realm_error *error)
{
    char *body = request_text(g, c->index);
    if (!body)
        return realm_fail_memory(error, 1, "the program's request");
    guest_run_options options = {
        .net = g->server->net,
        .sandbox = g->server->sandbox,
        .input = {.program = g->program,
                  .tenant = g->caller->tenant,
                  .id = g->x->id,
                  .body = body,
                  .body_size = strlen(body),
                  .seed = g->r.seed + (uint64_t)(c->index % g->r.n),
                  .deadline_ns = g->x->deadline_ns,
                  .priority = g->caller->priority,
                  .allowance = ticket_allowance(&g->ticket),
                  .prompt_is_paid = !pays_prompt(g, c)},
        .context = c,
        .on_text = on_text,
        .on_done = on_done,
    };
    realm_status status = guest_run_start(&c->run, &options, error);
    if (body != g->guest_text)
        free(body);
    if (status)
        return status;
    c->started = 1;
    g->n_running++;
    return REALM_OK;
}

/* A choice waits for the first of its prompt to have computed the prompt. */
static int may_start(const generation *g, const choice *c)
{
    const choice *first = &g->choices[c->index - c->index % g->r.n];
    return !c->started && (c == first || first->warm);
}

static void start_more(generation *g)
{
    for (int i = 0; i < g->n_choices && g->n_running < MAX_RUNNING && !g->failed; i++) {
        if (!may_start(g, &g->choices[i]))
            continue;
        realm_error error;
        realm_status status = start(g, &g->choices[i], &error);
        if (status == REALM_QUOTA && g->n_running)
            return; /* the tenant has no room now; the next choice that ends makes some */
        if (status) {
            api_problem problem;
            api_problem_of(&problem, status, error.message);
            generation_fail(g, &problem);
        }
    }
}

static int make_choices(generation *g)
{
    json_t *mode = json_boolean(g->r.stream || g->r.n > 1);
    if (g->r.stream && g->r.logprobs >= 0)
        mode = json_string("tokens");
    json_object_set_new(g->r.guest, "stream", mode);
    json_object_set_new(g->r.guest, "return_tokens", json_boolean(g->r.logprobs >= 0));
    if (g->kind == OPENAI_CHAT && !(g->guest_text = json_text(g->r.guest, 0)))
        return 0;
    int n = g->r.n * g->r.n_prompts;
    g->choices = calloc((size_t)n, sizeof *g->choices);
    if (!g->choices)
        return 0;
    g->n_choices = n;
    for (int i = 0; i < n; i++) {
        choice *c = &g->choices[i];
        *c = (choice){.g = g, .index = i};
        buffer_init(&c->text, SIZE_MAX); /* the tenant's output_bytes bounds it */
        if (!g->r.echo)
            continue;
        const json_t *prompt = json_array_get(g->r.prompts, (size_t)(i / g->r.n));
        if (buffer_add(&c->text, json_string_value(prompt), json_string_length(prompt)))
            return 0;
    }
    return 1;
}

static void run(generation *g)
{
    server *s = g->server;
    realm_error error;
    g->is_open = ticket_open(&g->ticket, s, g->x, g->caller, openai_request_tokens(&g->r));
    if (!g->is_open) {
        free_generation(g);
        return;
    }
    snprintf(g->ticket.model, sizeof g->ticket.model, "%s", g->r.model->name);
    builtin_kind kind = g->kind == OPENAI_CHAT ? BUILTIN_CHAT : BUILTIN_COMPLETION;
    snprintf(g->ticket.program, sizeof g->ticket.program, "%s",
             kind == BUILTIN_CHAT ? "chat" : "completion");
    request_spans_asked(&g->ticket, kind == BUILTIN_CHAT ? "chat" : "text_completion", g->r.stream,
                        g->r.n, g->r.max_tokens);
    snprintf(g->id, sizeof g->id, "%s-%s", kind == BUILTIN_CHAT ? "chatcmpl" : "cmpl",
             g->x->id + (strncmp(g->x->id, "req-", 4) == 0 ? 4 : 0));
    g->created = clock_wall_ms() / 1000;
    g->x->context = g;
    g->x->on_cancel = on_cancel;
    g->x->on_drained = on_drained;
    realm_status status = server_program(s, g->caller, g->x, kind, &g->program,
                                         &g->ticket.usage.version, &error);
    if (!status && !make_choices(g))
        status = realm_fail_memory(&error, 1, "the request");
    if (status) {
        api_problem problem;
        api_problem_of(&problem, status, error.message);
        generation_fail(g, &problem);
    } else {
        start_more(g);
    }
    if (g->failed && !g->n_running)
        free_generation(g);
}

/* ---- planning ---- */

static int may_use(void *context, const char *name)
{
    const generation *g = context;
    return g->server->gate->table->allows_model(g->server->gate, g->caller, name);
}
static void plan(net_job *job)
{
    generation *g = (generation *)job;
    const openai_models models = {
        .server = g->server, .allowed = may_use, .context = g, .streams = g->x->streams};
    json_t *body = g->output->read(g, &g->problem);
    if (body)
        openai_request_parse(&g->r, g->kind, &models, body, g->x->body.size, &g->problem);
    json_decref(body);
}

static void planned(net_job *job)
{
    generation *g = (generation *)job;
    buffer_release(&g->x->body);
    if (!exchange_is_over(g->x) && g->problem.status)
        generation_fail(g, &g->problem);
    if (exchange_is_over(g->x) || g->failed)
        free_generation(g);
    else
        run(g);
}

void generation_begin(server *s, exchange *x, const caller *c, openai_kind kind,
                      const generation_output *output, void *context)
{
    generation *g = calloc(1, sizeof *g);
    if (!g) {
        generation nothing = {.context = context};
        output->release(&nothing);
        exchange_refuse(x, 503, "unavailable", "the host is out of memory");
        return;
    }
    *g = (generation){.job = {.work = plan, .done = planned},
                      .server = s,
                      .x = exchange_retain(x),
                      .caller = c,
                      .output = output,
                      .context = context,
                      .kind = kind};
    if (x->body.size > INLINE_BODY && net_submit(s->net, &g->job) == REALM_OK)
        return;
    plan(&g->job);
    planned(&g->job);
}
