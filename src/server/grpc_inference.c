/* server/grpc_inference.c: realm.v1.Inference. A request becomes the JSON that the same request over HTTP is, and
 * goes the same way: openai_request.c checks it, generation.c or single_run.c runs it; only what is made of the
 * answer is here. Net thread, but for the functions that read requests. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "realm/v1/inference.pb-c.h"
#include "server/generation.h"
#include "server/grpc.h"
#include "server/single_run.h"

/* ---- requests as OpenAI's JSON ---- */

/* Puts a member of from into to under another name. */
static void move(json_t *from, const char *name, json_t *to, const char *new_name)
{
    json_t *value = json_object_get(from, name);
    if (value)
        json_object_set(to, new_name, value);
    json_object_del(from, name);
}

static void take_bias(json_t *sampling, json_t *body)
{
    json_t *list = json_object_get(sampling, "logit_bias");
    if (!list)
        return;
    json_t *biases = json_object();
    for (size_t i = 0; i < json_array_size(list); i++) {
        char key[24];
        json_t *entry = json_array_get(list, i), *value = json_object_get(entry, "value");
        snprintf(key, sizeof key, "%" JSON_INTEGER_FORMAT,
                 json_integer_value(json_object_get(entry, "key")));
        json_object_set_new(biases, key, value ? json_incref(value) : json_real(0));
    }
    json_object_set_new(body, "logit_bias", biases);
    json_object_del(sampling, "logit_bias");
}

/* A field whose text is JSON; NULL and the problem if it is not an object. */
static json_t *object_of(const json_t *text, const char *param, api_problem *problem)
{
    json_t *value = NULL;
    realm_error error;
    realm_status status = json_parse(&value, json_string_value(text), json_string_length(text),
                                     SIZE_MAX, JSON_USUAL_DEPTH, &error);
    if (!status && json_is_object(value))
        return value;
    api_wrong(problem, param, "invalid_json", "'%s' must be the text of a JSON object%s%s", param,
              status ? ": " : "", status ? error.message : "");
    json_decref(value);
    return NULL;
}

static int take_format(json_t *sampling, json_t *body, api_problem *problem)
{
    const json_t *text = json_object_get(sampling, "json_schema");
    if (json_is_true(json_object_get(sampling, "json_object")))
        json_object_set_new(body, "response_format", json_pack("{s:s}", "type", "json_object"));
    if (text) {
        json_t *schema = object_of(text, "sampling.json_schema", problem);
        if (!schema)
            return 0;
        json_object_set_new(body, "response_format",
                            json_pack("{s:s, s:{s:s, s:o}}", "type", "json_schema", "json_schema",
                                      "name", "answer", "schema", schema));
    }
    json_object_del(sampling, "json_object");
    json_object_del(sampling, "json_schema");
    return 1;
}

/* Moves the fields of "sampling" into the request. */
static int take_sampling(json_t *body, openai_kind kind, api_problem *problem)
{
    json_t *sampling = json_incref(json_object_get(body, "sampling"));
    json_object_set_new(body, "stream", json_true());
    json_object_del(body, "sampling");
    take_bias(sampling, body);
    int ok = take_format(sampling, body, problem);
    if (kind == OPENAI_COMPLETION) {
        move(sampling, "top_logprobs", body, "logprobs");
    } else if (json_object_get(sampling, "top_logprobs")) {
        json_object_set_new(body, "logprobs", json_true());
    }
    if (sampling)
        json_object_update(body, sampling);
    json_decref(sampling);
    return ok;
}

static json_t *read_generate(generation *g, api_problem *problem)
{
    json_t *body = grpc_read(g->x, &realm__v1__generate_request__descriptor, 1, problem);
    json_t *tokens = json_object_get(body, "tokens");
    if (tokens) {
        json_t *ids = json_object_get(tokens, "ids");
        json_object_set_new(body, "prompt", ids ? json_incref(ids) : json_array());
        json_object_del(body, "tokens");
    } else {
        move(body, "text", body, "prompt");
    }
    if (body && !take_sampling(body, OPENAI_COMPLETION, problem)) {
        json_decref(body);
        return NULL;
    }
    return body;
}

static void take_calls(json_t *message)
{
    json_t *calls = json_object_get(message, "tool_calls");
    for (size_t i = 0; i < json_array_size(calls); i++) {
        json_t *call = json_array_get(calls, i), *function = json_object();
        move(call, "name", function, "name");
        move(call, "arguments_json", function, "arguments");
        json_object_set_new(call, "type", json_string("function"));
        json_object_set_new(call, "function", function);
    }
}

static int take_tools(json_t *body, api_problem *problem)
{
    json_t *tools = json_object_get(body, "tools");
    for (size_t i = 0; i < json_array_size(tools); i++) {
        json_t *tool = json_array_get(tools, i), *function = json_object();
        const json_t *text = json_object_get(tool, "parameters_json");
        move(tool, "name", function, "name");
        move(tool, "description", function, "description");
        json_object_set_new(tool, "type", json_string("function"));
        json_object_set_new(tool, "function", function);
        if (json_string_length(text)) {
            char param[64];
            snprintf(param, sizeof param, "tools[%zu].parameters_json", i);
            json_t *schema = object_of(text, param, problem);
            if (!schema)
                return 0;
            json_object_set_new(function, "parameters", schema);
        }
        json_object_del(tool, "parameters_json");
    }
    return 1;
}

static void take_choice(json_t *body)
{
    json_t *choice = json_object_get(body, "tool_choice");
    const char *word = json_string_value(choice);
    if (!word)
        return;
    if (!*word)
        json_object_del(body, "tool_choice");
    else if (strcmp(word, "auto") != 0 && strcmp(word, "none") != 0 &&
             strcmp(word, "required") != 0)
        json_object_set_new(
            body, "tool_choice",
            json_pack("{s:s, s:{s:O}}", "type", "function", "function", "name", choice));
}

static json_t *read_chat(generation *g, api_problem *problem)
{
    json_t *body = grpc_read(g->x, &realm__v1__chat_request__descriptor, 1, problem);
    if (!body)
        return NULL;
    json_t *messages = json_object_get(body, "messages");
    for (size_t i = 0; i < json_array_size(messages); i++) {
        json_t *message = json_array_get(messages, i);
        take_calls(message);
        if (!json_object_get(message, "content")) /* an empty text is not on the wire */
            json_object_set_new(message, "content", json_string(""));
    }
    take_choice(body);
    if (take_tools(body, problem) && take_sampling(body, OPENAI_CHAT, problem))
        return body;
    json_decref(body);
    return NULL;
}

/* ---- pieces of an answer ---- */

typedef Realm__V1__Piece piece;

/* Text for the wire: what is no UTF-8 becomes U+FFFD in kept. */
static ProtobufCBinaryData clean(const char *text, size_t size, buffer *kept)
{
    if (utf8_valid((const uint8_t *)text, size))
        return grpc_text(text, size);
    buffer_init(kept, SIZE_MAX);
    for (size_t i = 0; i < size;) {
        uint32_t code;
        uint8_t bytes[4];
        i += (size_t)utf8_decode((const uint8_t *)text + i, size - i, &code);
        buffer_add(kept, bytes, (size_t)utf8_encode(code, bytes));
    }
    return grpc_text(buffer_text(kept), kept->size);
}

static void set_token(Realm__V1__TokenLogprob *out, const generation *g, const json_t *token)
{
    const json_t *logprob = json_object_get(token, "logprob");
    size_t size;
    realm__v1__token_logprob__init(out);
    out->id = (int32_t)json_integer_value(json_object_get(token, "id"));
    const char *text = tokenizer_piece(g->r.model->tokenizer, out->id, 1, &size);
    out->token = grpc_text(text, size);
    out->logprob = json_is_number(logprob) ? json_number_value(logprob) : -(double)INFINITY;
}

/* A token with the likeliest beside it, in a; 0: memory is out. */
static int set_tokens(Realm__V1__TokenLogprobs *out, const generation *g, const json_t *token,
                      arena *a)
{
    const json_t *top = json_object_get(token, "top");
    size_t n = json_array_size(top);
    Realm__V1__TokenLogprob *all = arena_take_array(a, n + 1, sizeof *all);
    out->top = arena_take_array(a, n + 1, sizeof *out->top);
    if (!all || !out->top)
        return 0;
    set_token(&all[n], g, token);
    out->token = &all[n];
    for (size_t i = 0; i < n; i++) {
        set_token(&all[i], g, json_array_get(top, i));
        out->top[i] = &all[i];
    }
    out->n_top = n;
    return 1;
}

static int add_tokens(piece *p, const generation *g, const json_t *tokens, arena *a)
{
    size_t n = json_array_size(tokens);
    Realm__V1__TokenLogprobs *all = arena_take_array(a, n, sizeof *all);
    p->tokens = arena_take_array(a, n, sizeof *p->tokens);
    if (!all || !p->tokens)
        return 0;
    for (size_t i = 0; i < n; i++) {
        realm__v1__token_logprobs__init(&all[i]);
        if (!set_tokens(&all[i], g, json_array_get(tokens, i), a))
            return 0;
        p->tokens[p->n_tokens++] = &all[i];
    }
    return 1;
}

static void send_piece(generation *g, generation_choice *c, const char *text, size_t size,
                       const json_t *tokens)
{
    (void)c;
    piece p = REALM__V1__PIECE__INIT;
    buffer kept = {0};
    arena a;
    arena_init(&a, 0);
    p.text = clean(text, size, &kept);
    if (kept.lost || (tokens && !add_tokens(&p, g, tokens, &a)))
        exchange_abort(g->x);
    else
        grpc_send(g->x, &p.base);
    arena_release(&a);
    buffer_release(&kept);
}

static void set_call(Realm__V1__ToolCall *out, const json_t *call)
{
    const json_t *function = json_object_get(call, "function");
    const json_t *id = json_object_get(call, "id"), *name = json_object_get(function, "name"),
                 *arguments = json_object_get(function, "arguments");
    realm__v1__tool_call__init(out);
    out->id = grpc_text(json_string_value(id), json_string_length(id));
    out->name = grpc_text(json_string_value(name), json_string_length(name));
    out->arguments_json = grpc_text(json_string_value(arguments), json_string_length(arguments));
}

static void send_calls(generation *g, generation_choice *c, json_t *calls)
{
    (void)c;
    piece p = REALM__V1__PIECE__INIT;
    size_t n = json_array_size(calls);
    Realm__V1__ToolCall *all = calloc(n + 1, sizeof *all);
    p.tool_calls = calloc(n + 1, sizeof *p.tool_calls);
    for (size_t i = 0; all && p.tool_calls && i < n; i++) {
        set_call(&all[i], json_array_get(calls, i));
        p.tool_calls[p.n_tool_calls++] = &all[i];
    }
    if (all && p.tool_calls)
        grpc_send(g->x, &p.base);
    else
        exchange_abort(g->x);
    free(p.tool_calls);
    free(all);
}

/* Why it ended goes out with what it took, in end. */
static void note_finish(generation *g, generation_choice *c)
{
    (void)g;
    (void)c;
}

static realm_status flush(generation *g)
{
    /* Pieces have gone as they came, or memory was out for one and the call is broken off. */
    return exchange_is_over(g->x) ? REALM_NO_MEMORY : REALM_OK;
}

static void end(generation *g)
{
    piece p = REALM__V1__PIECE__INIT;
    Realm__V1__Usage usage = REALM__V1__USAGE__INIT;
    const char *why = g->choices[0].finish;
    usage.prompt_tokens = (int64_t)g->prompt_tokens;
    usage.completion_tokens = (int64_t)g->completion_tokens;
    usage.cached_tokens = (int64_t)g->cached_tokens;
    p.usage = &usage;
    p.finish_reason = strcmp(why, "length") == 0 ? REALM__V1__FINISH_REASON__FINISH_REASON_LENGTH
                      : strcmp(why, "tool_calls") == 0
                          ? REALM__V1__FINISH_REASON__FINISH_REASON_TOOL_CALLS
                          : REALM__V1__FINISH_REASON__FINISH_REASON_STOP;
    grpc_send(g->x, &p.base);
    grpc_end(g->x);
}

static void fail(generation *g, const api_problem *problem)
{
    api_reply_problem(g->x, problem);
}

static void release(generation *g)
{
    (void)g; /* nothing is kept */
}

#define OUTPUT(reader)                                                                             \
    {                                                                                              \
        .read = (reader), .piece = send_piece, .calls = send_calls, .finish = note_finish,         \
        .flush = flush, .end = end, .fail = fail, .release = release                               \
    }

void grpc_generate(server *s, exchange *x, const caller *c)
{
    static const generation_output output = OUTPUT(read_generate);
    generation_begin(s, x, c, OPENAI_COMPLETION, &output, NULL);
}

void grpc_chat(server *s, exchange *x, const caller *c)
{
    static const generation_output output = OUTPUT(read_chat);
    generation_begin(s, x, c, OPENAI_CHAT, &output, NULL);
}

/* ---- embeddings ---- */

static json_t *read_embed(exchange *x, api_problem *problem)
{
    json_t *body = grpc_read(x, &realm__v1__embed_request__descriptor, 1, problem);
    json_t *tokens = json_object_get(body, "input_tokens");
    const char *word = json_string_value(json_object_get(body, "pooling"));
    if (word && !*word)
        json_object_del(body, "pooling");
    if (!tokens)
        return body;
    if (json_object_get(body, "input")) {
        api_wrong(problem, "input_tokens", "invalid_value",
                  "'input' and 'input_tokens' exclude each other");
        json_decref(body);
        return NULL;
    }
    json_t *lists = json_array();
    for (size_t i = 0; i < json_array_size(tokens); i++) {
        json_t *ids = json_object_get(json_array_get(tokens, i), "ids");
        json_array_append_new(lists, ids ? json_incref(ids) : json_array());
    }
    json_object_set_new(body, "input", lists);
    json_object_del(body, "input_tokens");
    return body;
}

/* Fills vectors, whose numbers are to be freed, from lines; 0: one is no vector. */
static int set_vectors(Realm__V1__Vector *vectors, Realm__V1__Vector **list, const char *text,
                       size_t size)
{
    const char *line;
    size_t length, i = 0;
    for (size_t at = 0; (line = single_run_line(text, size, &at, &length)); i++) {
        realm__v1__vector__init(&vectors[i]);
        list[i] = &vectors[i];
        if (!single_run_vector(line, length, &vectors[i].values, &vectors[i].n_values))
            return 0;
    }
    return 1;
}

static int answer_embed(single_run *e, const char *text, size_t size, const guest_result *result)
{
    Realm__V1__EmbedResponse response = REALM__V1__EMBED_RESPONSE__INIT;
    Realm__V1__Usage usage = REALM__V1__USAGE__INIT;
    size_t n = (size_t)e->r.n_inputs;
    Realm__V1__Vector *vectors = calloc(n, sizeof *vectors);
    response.vectors = calloc(n, sizeof *response.vectors);
    response.n_vectors = n;
    response.usage = &usage;
    usage.prompt_tokens = (int64_t)result->usage.prompt_tokens;
    int ok = vectors && response.vectors && set_vectors(vectors, response.vectors, text, size);
    if (ok) {
        grpc_send(e->x, &response.base);
        grpc_end(e->x);
    }
    for (size_t i = 0; vectors && i < n; i++)
        free(vectors[i].values);
    free(vectors);
    free(response.vectors);
    return ok;
}

void grpc_embed(server *s, exchange *x, const caller *c)
{
    static const single_output output = {OPENAI_EMBEDDINGS, read_embed, answer_embed};
    single_run_begin(s, x, c, &output);
}

/* ---- tokens ---- */

static json_t *read_tokenize(exchange *x, api_problem *problem)
{
    return grpc_read(x, &realm__v1__tokenize_request__descriptor, 1, problem);
}

/* A line of the program's: "[1,2,3]". 0: it is none. */
static int set_ids(Realm__V1__Tokens *out, const char *line, size_t size)
{
    json_t *list = NULL;
    if (json_parse(&list, line, size, SIZE_MAX, JSON_USUAL_DEPTH, NULL))
        return 0;
    size_t n = json_array_size(list);
    int ok = json_is_array(list);
    out->ids = calloc(n + 1, sizeof *out->ids);
    for (size_t i = 0; ok && out->ids && i < n; i++) {
        ok = json_is_integer(json_array_get(list, i));
        out->ids[out->n_ids++] = (int32_t)json_integer_value(json_array_get(list, i));
    }
    json_decref(list);
    return ok && out->ids;
}

static int answer_tokenize(single_run *e, const char *text, size_t size, const guest_result *result)
{
    (void)result;
    Realm__V1__TokenizeResponse response = REALM__V1__TOKENIZE_RESPONSE__INIT;
    size_t n = (size_t)e->r.n_inputs, length;
    Realm__V1__Tokens *tokens = calloc(n, sizeof *tokens);
    response.tokens = calloc(n, sizeof *response.tokens);
    int ok = tokens && response.tokens;
    const char *line;
    for (size_t at = 0; ok && (line = single_run_line(text, size, &at, &length));) {
        Realm__V1__Tokens *one = &tokens[response.n_tokens];
        realm__v1__tokens__init(one);
        response.tokens[response.n_tokens++] = one;
        ok = set_ids(one, line, length);
    }
    if (ok) {
        grpc_send(e->x, &response.base);
        grpc_end(e->x);
    }
    for (size_t i = 0; i < response.n_tokens; i++)
        free(tokens[i].ids);
    free(tokens);
    free(response.tokens);
    return ok;
}

void grpc_tokenize(server *s, exchange *x, const caller *c)
{
    static const single_output output = {OPENAI_TOKENIZE, read_tokenize, answer_tokenize};
    single_run_begin(s, x, c, &output);
}

/* ---- models ---- */

void grpc_list_models(server *s, exchange *x, const caller *c)
{
    api_problem problem = {0};
    json_t *request = grpc_read(x, &realm__v1__list_models_request__descriptor, 1, &problem);
    json_decref(request);
    if (problem.status) {
        api_reply_problem(x, &problem);
        return;
    }
    Realm__V1__ListModelsResponse response = REALM__V1__LIST_MODELS_RESPONSE__INIT;
    Realm__V1__Model models[SERVER_MAX_MODELS], *list[SERVER_MAX_MODELS];
    response.models = list;
    for (int i = 0; i < s->n_models; i++) {
        const served_model *m = &s->models[i];
        if (!s->gate->table->allows_model(s->gate, c, m->name))
            continue;
        Realm__V1__Model *one = &models[response.n_models];
        realm__v1__model__init(one);
        one->name = grpc_text(m->name, strlen(m->name));
        one->context_length = m->n_context;
        one->embedding_length = m->n_embd;
        one->has_chat_template = m->has_template;
        one->takes_tools = m->tools != TOOLS_NONE;
        list[response.n_models++] = one;
    }
    grpc_send(x, &response.base);
    grpc_end(x);
}
