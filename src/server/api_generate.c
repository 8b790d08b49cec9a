/* server/api_generate.c: POST /v1/chat/completions and /v1/completions: a generation in OpenAI's shape, as one
 * JSON or as server-sent events.
 *
 * A stream's head goes out with the first text, so that what fails before still has its status. Net thread, but
 * for read_body. */
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "server/generation.h"

typedef generation_choice choice;

/* What this output keeps of a generation. */
typedef struct events {
    int streaming; /* the head is out */
    buffer out;    /* events of this turn */
    buffer head;   /* what each event begins with, made with the first */
} events;

static events *events_of(const generation *g)
{
    return g->context;
}

/* ---- events of a stream ---- */

/* Whole or not at all: a turn that has lost something is dropped. */
static realm_status flush_events(generation *g)
{
    events *e = events_of(g);
    realm_status status = e->out.lost;
    if (e->out.size && !status)
        exchange_write(g->x, e->out.data, e->out.size);
    buffer_clear(&e->out);
    return status;
}

static void begin_stream(generation *g)
{
    events *e = events_of(g);
    if (e->streaming)
        return;
    e->streaming = 1;
    exchange_set(g->x, "content-type", "text/event-stream; charset=utf-8");
    exchange_set(g->x, "cache-control", "no-cache");
    exchange_set(g->x, "x-accel-buffering", "no"); /* nginx would gather the stream */
    exchange_begin(g->x, 200, -1);
}

static const char *object_name(const generation *g, int is_chunk)
{
    if (g->kind == OPENAI_COMPLETION)
        return "text_completion";
    return is_chunk ? "chat.completion.chunk" : "chat.completion";
}

static void add_text(buffer *out, const char *text)
{
    api_add_escaped(out, text, strlen(text));
}

/* Everything of an event before its choice. */
static void open_event(generation *g)
{
    buffer *head = &events_of(g)->head;
    if (!head->size) {
        buffer_printf(head,
                      "data: {\"id\":\"%s\",\"object\":\"%s\",\"created\":%" PRId64 ",\"model\":\"",
                      g->id, object_name(g, 1), g->created);
        add_text(head, g->r.model->name);
        buffer_printf(head, "\",\"system_fingerprint\":\"realm-%s\",\"choices\":[",
                      realm_version());
    }
    buffer_add(&events_of(g)->out, head->data, head->size);
    if (head->lost)
        events_of(g)->out.lost = head->lost;
}

static void close_event(generation *g)
{
    buffer_add_text(&events_of(g)->out, "]");
    if (g->r.include_usage)
        buffer_add_text(&events_of(g)->out, ",\"usage\":null");
    buffer_add_text(&events_of(g)->out, "}\n\n");
}

/* Adds a value's JSON; takes it. NULL: memory was out when it was made. */
static void add_json(buffer *out, json_t *value)
{
    char *text = json_text(value, 0);
    if (text)
        buffer_add_text(out, text);
    else
        out->lost = REALM_NO_MEMORY;
    free(text);
    json_decref(value);
}

static void open_choice(generation *g, choice *c)
{
    if (c->opened)
        return;
    c->opened = 1;
    begin_stream(g);
    if (g->kind != OPENAI_CHAT)
        return;
    open_event(g);
    buffer_printf(
        &events_of(g)->out,
        "{\"index\":%d,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
        "\"finish_reason\":null}",
        c->index);
    close_event(g);
}

/* An event with text and logprobs (taken; JSON's null for none). */
static void send_piece(generation *g, choice *c, const char *text, size_t size, json_t *logprobs)
{
    open_choice(g, c);
    open_event(g);
    buffer_printf(&events_of(g)->out, "{\"index\":%d,\"%s\":\"", c->index,
                  g->kind == OPENAI_CHAT ? "delta\":{\"content" : "text");
    api_add_escaped(&events_of(g)->out, text, size);
    buffer_add_text(&events_of(g)->out,
                    g->kind == OPENAI_CHAT ? "\"},\"logprobs\":" : "\",\"logprobs\":");
    add_json(&events_of(g)->out, logprobs);
    buffer_add_text(&events_of(g)->out, ",\"finish_reason\":null}");
    close_event(g);
}

static void send_calls(generation *g, choice *c, json_t *calls)
{
    open_choice(g, c);
    for (size_t i = 0; i < json_array_size(calls); i++)
        if (json_object_set_new(json_array_get(calls, i), "index", json_integer((json_int_t)i)))
            events_of(g)->out.lost = REALM_NO_MEMORY;
    open_event(g);
    buffer_printf(&events_of(g)->out, "{\"index\":%d,\"delta\":{\"tool_calls\":", c->index);
    add_json(&events_of(g)->out, json_incref(calls));
    buffer_add_text(&events_of(g)->out, "},\"logprobs\":null,\"finish_reason\":null}");
    close_event(g);
}

static void send_finish(generation *g, choice *c)
{
    open_choice(g, c);
    open_event(g);
    buffer_printf(&events_of(g)->out,
                  "{\"index\":%d,%s,\"logprobs\":null,\"finish_reason\":\"%s\"}", c->index,
                  g->kind == OPENAI_CHAT ? "\"delta\":{}" : "\"text\":\"\"", c->finish);
    close_event(g);
}

static json_t *usage_json(const generation *g)
{
    return json_pack("{s:I, s:I, s:I, s:{s:I}}", "prompt_tokens", (json_int_t)g->prompt_tokens,
                     "completion_tokens", (json_int_t)g->completion_tokens, "total_tokens",
                     (json_int_t)(g->prompt_tokens + g->completion_tokens), "prompt_tokens_details",
                     "cached_tokens", (json_int_t)g->cached_tokens);
}

/* After the events of this turn, if they are whole. Where there is no memory for the error either, the stream is
 * broken off. */
static void fail(generation *g, const api_problem *problem)
{
    events *e = events_of(g);
    if (!e->streaming) {
        api_reply_problem(g->x, problem);
        return;
    }
    flush_events(g);
    buffer_add_text(&e->out, "data: ");
    add_json(&e->out, api_problem_json(problem));
    buffer_add_text(&e->out, "\n\n");
    if (flush_events(g))
        exchange_abort(g->x);
    else
        exchange_end(g->x);
}

static void fail_memory(generation *g)
{
    api_problem problem;
    api_problem_of(&problem, REALM_NO_MEMORY, "the host is out of memory");
    fail(g, &problem);
}

static void end_stream(generation *g)
{
    if (g->r.include_usage) {
        open_event(g);
        buffer_add_text(&events_of(g)->out, "],\"usage\":");
        add_json(&events_of(g)->out, usage_json(g));
        buffer_add_text(&events_of(g)->out, "}\n\n");
    }
    buffer_add_text(&events_of(g)->out, "data: [DONE]\n\n");
    if (flush_events(g))
        fail_memory(g);
    else
        exchange_end(g->x);
}

/* ---- logprobs ---- */

/* Adds value, which is taken. Where memory is out the array is NULL from then on, and so is what json_pack is to
 * make of it: an answer without one of its parts would look whole. */
static void append(json_t **array, json_t *value)
{
    if (json_array_append_new(*array, value) == 0)
        return;
    json_decref(*array);
    *array = NULL;
}

static json_t *bytes_of(const char *text, size_t size)
{
    json_t *bytes = json_array();
    for (size_t i = 0; i < size; i++)
        append(&bytes, json_integer((unsigned char)text[i]));
    return bytes;
}

/* NULL: memory is out. */
static json_t *clean_text(const char *text, size_t size)
{
    if (utf8_valid((const uint8_t *)text, size))
        return json_stringn(text, size);
    buffer clean;
    buffer_init(&clean, SIZE_MAX); /* three times what the tenant's output_bytes let through */
    for (size_t i = 0; i < size;) {
        uint32_t code;
        uint8_t bytes[4];
        i += (size_t)utf8_decode((const uint8_t *)text + i, size - i, &code);
        buffer_add(&clean, bytes, (size_t)utf8_encode(code, bytes));
    }
    json_t *string = clean.lost ? NULL : json_stringn(clean.data, clean.size);
    buffer_release(&clean);
    return string;
}

/* OpenAI's floor, for what a grammar or the arithmetic made impossible. */
static double logprob_of(const json_t *token)
{
    const json_t *value = json_object_get(token, "logprob");
    return json_is_number(value) ? json_number_value(value) : -9999.0;
}

static json_t *chat_logprob(const generation *g, const json_t *token)
{
    size_t size;
    const char *text = tokenizer_piece(g->r.model->tokenizer,
                                       (token_id)json_integer_value(json_object_get(token, "id")),
                                       1, &size);
    return json_pack("{s:o, s:f, s:o}", "token", clean_text(text, size), "logprob",
                     logprob_of(token), "bytes", bytes_of(text, size));
}

/* The program's list of tokens as chat's logprobs. */
static json_t *chat_logprobs(const generation *g, const json_t *tokens)
{
    json_t *content = json_array();
    for (size_t i = 0; i < json_array_size(tokens); i++) {
        const json_t *token = json_array_get(tokens, i), *top = json_object_get(token, "top");
        json_t *entry = chat_logprob(g, token), *others = json_array();
        for (size_t k = 0; k < json_array_size(top); k++)
            append(&others, chat_logprob(g, json_array_get(top, k)));
        if (json_object_set_new(entry, "top_logprobs", others)) {
            json_decref(entry);
            entry = NULL;
        }
        append(&content, entry);
    }
    return json_pack("{s:o, s:n}", "content", content, "refusal");
}

static json_t *text_logprobs(const generation *g, choice *c, const json_t *tokens)
{
    json_t *texts = json_array(), *logprobs = json_array(), *tops = json_array(),
           *offsets = json_array();
    for (size_t i = 0; i < json_array_size(tokens); i++) {
        const json_t *token = json_array_get(tokens, i), *top = json_object_get(token, "top");
        json_t *entry = chat_logprob(g, token), *others = json_object();
        append(&texts, json_incref(json_object_get(entry, "token")));
        append(&logprobs, json_incref(json_object_get(entry, "logprob")));
        append(&offsets, json_integer((json_int_t)c->offset));
        c->offset += json_string_length(json_object_get(token, "text"));
        for (size_t k = 0; k < json_array_size(top); k++) {
            json_t *other = chat_logprob(g, json_array_get(top, k));
            if (json_object_set(others, json_string_value(json_object_get(other, "token")),
                                json_object_get(other, "logprob"))) {
                json_decref(others);
                others = NULL;
            }
            json_decref(other);
        }
        append(&tops, others);
        json_decref(entry);
    }
    return json_pack("{s:o, s:o, s:o, s:o}", "tokens", texts, "token_logprobs", logprobs,
                     "top_logprobs", tops, "text_offset", offsets);
}

static json_t *logprobs_json(const generation *g, choice *c, const json_t *tokens)
{
    return g->kind == OPENAI_CHAT ? chat_logprobs(g, tokens) : text_logprobs(g, c, tokens);
}

static void send_tokens(generation *g, choice *c, const char *text, size_t size,
                        const json_t *tokens)
{
    send_piece(g, c, text, size, tokens ? logprobs_json(g, c, tokens) : json_null());
}

/* ---- the whole answer ---- */

static json_t *choice_json(generation *g, choice *c)
{
    json_t *logprobs = c->logprobs ? logprobs_json(g, c, c->logprobs) : json_null();
    size_t plain;
    json_t *calls = generation_calls(g, c, &plain);
    json_t *text = clean_text(buffer_text(&c->text), plain);
    if (g->kind == OPENAI_COMPLETION)
        return json_pack("{s:i, s:o, s:o, s:s}", "index", c->index, "text", text, "logprobs",
                         logprobs, "finish_reason", c->finish);
    json_t *message = json_pack("{s:s, s:o, s:n}", "role", "assistant", "content",
                                calls && !plain ? json_null() : json_incref(text), "refusal");
    json_decref(text);
    if (calls && json_object_set_new(message, "tool_calls", calls)) {
        json_decref(message);
        message = NULL;
    }
    return json_pack("{s:i, s:o, s:o, s:s}", "index", c->index, "message", message, "logprobs",
                     logprobs, "finish_reason", c->finish);
}

static void answer(generation *g)
{
    json_t *choices = json_array();
    for (int i = 0; i < g->n_choices; i++)
        append(&choices, choice_json(g, &g->choices[i]));
    api_reply_json(g->x, 200,
                   json_pack("{s:s, s:s, s:I, s:s, s:s+, s:o, s:o}", "id", g->id, "object",
                             object_name(g, 0), "created", (json_int_t)g->created, "model",
                             g->r.model->name, "system_fingerprint", "realm-", realm_version(),
                             "choices", choices, "usage", usage_json(g)));
}
/* ---- the output ---- */

static json_t *read_body(generation *g, api_problem *problem)
{
    return openai_request_json(g->x->body.data, g->x->body.size, problem);
}

static void end(generation *g)
{
    if (g->r.stream)
        end_stream(g);
    else
        answer(g);
}

static void release(generation *g)
{
    events *e = events_of(g);
    buffer_release(&e->out);
    buffer_release(&e->head);
    free(e);
}

static const generation_output output = {.read = read_body,
                                         .piece = send_tokens,
                                         .calls = send_calls,
                                         .finish = send_finish,
                                         .flush = flush_events,
                                         .end = end,
                                         .fail = fail,
                                         .release = release};

static void begin(server *s, exchange *x, const caller *c, openai_kind kind)
{
    events *e = calloc(1, sizeof *e);
    if (!e) {
        exchange_refuse(x, 503, "unavailable", "the host is out of memory");
        return;
    }
    buffer_init(&e->out, SIZE_MAX);
    buffer_init(&e->head, SIZE_MAX);
    generation_begin(s, x, c, kind, &output, e);
}

void api_chat(server *s, exchange *x, const caller *c)
{
    begin(s, x, c, OPENAI_CHAT);
}

void api_completions(server *s, exchange *x, const caller *c)
{
    begin(s, x, c, OPENAI_COMPLETION);
}
