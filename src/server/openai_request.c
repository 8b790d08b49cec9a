/* server/openai_request.c: see openai_request.h. */
#include "server/openai_request.h"

#include <math.h>
#include <string.h>
#include <sys/random.h>

#include "server/schemas.h"
#include "server/tool_calls.h"

#define MAX_BODY   ((size_t)64 << 20) /* the route's limit is smaller */
#define MAX_STOPS  16
#define MAX_INPUTS 2048

/* What may stand in a request: F fields are used, I are for accounts and features that are not here and do not
 * change an answer. Any other is refused, so that a misspelt one is noticed. C chat, T text, E embeddings,
 * K tokenize. */
static const struct {
    const char *name, *kinds;
} fields[] = {
    {"model", "CTEK"},
    {"messages", "C"},
    {"prompt", "T"},
    {"input", "EK"},
    {"stream", "CT"},
    {"stream_options", "CT"},
    {"n", "CT"},
    {"max_tokens", "CT"},
    {"max_completion_tokens", "C"},
    {"temperature", "CT"},
    {"top_p", "CT"},
    {"top_k", "CT"},
    {"min_p", "CT"},
    {"typical_p", "CT"},
    {"repetition_penalty", "CT"},
    {"frequency_penalty", "CT"},
    {"presence_penalty", "CT"},
    {"seed", "CT"},
    {"stop", "CT"},
    {"ignore_eos", "CT"},
    {"logit_bias", "CT"},
    {"logprobs", "CT"},
    {"top_logprobs", "C"},
    {"response_format", "CT"},
    {"tools", "C"},
    {"tool_choice", "C"},
    {"parallel_tool_calls", "C"},
    {"enable_thinking", "C"},
    {"reasoning_effort", "C"},
    {"chat_template_kwargs", "C"},
    {"modalities", "C"},
    {"documents", "C"},
    {"echo", "T"},
    {"suffix", "T"},
    {"best_of", "T"},
    {"encoding_format", "E"},
    {"dimensions", "E"},
    {"pooling", "E"},
    {"add_special", "K"},
    {"parse_special", "K"},
    {"user", "CTE"},
    {"metadata", "C"},
    {"store", "C"},
    {"service_tier", "CT"},
    {"safety_identifier", "C"},
    {"prompt_cache_key", "C"},
    {"prompt_cache_retention", "C"},
    {"verbosity", "C"},
    {"prediction", "C"},
};

const char *openai_request_field(openai_kind kind, size_t *at)
{
    while (*at < sizeof fields / sizeof *fields) {
        size_t i = (*at)++;
        if (strchr(fields[i].kinds, "CTEK"[kind]))
            return fields[i].name;
    }
    return NULL;
}

typedef struct reader {
    openai_request *r;
    const openai_models *models;
    json_t *body;
    size_t size;
    api_problem *problem;
} reader;

/* ---- small readers: 1, or 0 and the problem ---- */

static int wrong_type(reader *d, const char *param, const char *wanted, const json_t *value)
{
    return api_wrong(d->problem, param, "invalid_type", "'%s' must be %s, not %s", param, wanted,
                     json_kind(value));
}

/* NULL where it is absent or null. */
static json_t *field(reader *d, const char *name)
{
    json_t *value = json_object_get(d->body, name);
    return json_is_null(value) ? NULL : value;
}

static int read_flag(reader *d, const char *name, int *out)
{
    json_t *value = field(d, name);
    if (value && !json_is_boolean(value))
        return wrong_type(d, name, "a boolean", value);
    if (value)
        *out = json_is_true(value);
    return 1;
}

static int read_int(reader *d, const char *name, int64_t min, int64_t max, int64_t *out)
{
    json_t *value = field(d, name);
    if (!value)
        return 1;
    if (!json_is_integer(value))
        return wrong_type(d, name, "an integer", value);
    int64_t number = json_integer_value(value);
    if (number < min || number > max)
        return api_wrong(d->problem, name, "invalid_value",
                         "'%s' must be from %" PRId64 " to %" PRId64 ", not %" PRId64, name, min,
                         max, number);
    *out = number;
    return 1;
}

/* Hands a number on to the program. */
static int pass_real(reader *d, const char *name, double min, double max)
{
    json_t *value = field(d, name);
    if (!value)
        return 1;
    if (!json_is_number(value))
        return wrong_type(d, name, "a number", value);
    double number = json_number_value(value);
    if (!(number >= min && number <= max))
        return api_wrong(d->problem, name, "invalid_value", "'%s' must be from %g to %g, not %g",
                         name, min, max, number);
    json_object_set(d->r->guest, name, value);
    return 1;
}

static int check_fields(reader *d)
{
    char kind = "CTEK"[d->r->kind];
    const char *name;
    json_t *value;
    json_object_foreach(d->body, name, value)
    {
        size_t i = 0;
        while (i < sizeof fields / sizeof *fields &&
               (strcmp(fields[i].name, name) != 0 || !strchr(fields[i].kinds, kind)))
            i++;
        if (i == sizeof fields / sizeof *fields) {
            char shown[100];
            snprintf(shown, sizeof shown, "%s", name);
            return api_wrong(d->problem, shown, "unknown_parameter", "unknown parameter: '%s'",
                             shown);
        }
    }
    return 1;
}

static int read_model(reader *d)
{
    json_t *value = field(d, "model");
    if (!value)
        return api_wrong(d->problem, "model", "missing_required_parameter",
                         "'model' is missing: GET /v1/models lists them");
    if (!json_is_string(value))
        return wrong_type(d, "model", "a string", value);
    const char *name = json_string_value(value);
    d->r->model = server_find_model(d->models->server, name);
    if (!d->r->model || !d->models->allowed(d->models->context, d->r->model->name)) {
        api_problem_set(d->problem, 404, "invalid_request_error", "model_not_found", "model",
                        "the model '%.100s' does not exist or you may not use it", name);
        return 0;
    }
    json_object_set_new(d->r->guest, "model", json_string(d->r->model->name));
    return 1;
}

/* ---- messages ---- */

static int wrong_message(reader *d, size_t index, const char *path, const char *code,
                         const char *what)
{
    char param[128];
    snprintf(param, sizeof param, "messages[%zu]%s", index, path);
    return api_wrong(d->problem, param, code, "'%s' %s", param, what);
}

/* Text, or a list of parts of text, as one text; NULL after setting the problem. */
static json_t *read_content(reader *d, size_t index, json_t *content)
{
    if (json_is_string(content))
        return json_incref(content);
    if (!content || json_is_null(content))
        return json_string("");
    if (!json_is_array(content)) {
        wrong_message(d, index, ".content", "invalid_type", "must be a string or a list of parts");
        return NULL;
    }
    buffer text;
    buffer_init(&text, MAX_BODY);
    json_t *result = NULL;
    for (size_t i = 0; i < json_array_size(content); i++) {
        char path[64];
        const json_t *part = json_array_get(content, i);
        const char *type = json_string_value(json_object_get(part, "type"));
        const json_t *words = json_object_get(part, "text");
        if (!type || strcmp(type, "text") != 0) {
            snprintf(path, sizeof path, ".content[%zu].type", i);
            wrong_message(d, index, path, "invalid_value",
                          "must be 'text': no model here takes anything else");
            goto out;
        }
        if (!json_is_string(words)) {
            snprintf(path, sizeof path, ".content[%zu].text", i);
            wrong_message(d, index, path, "invalid_type", "must be a string");
            goto out;
        }
        if (buffer_add(&text, json_string_value(words), json_string_length(words)))
            goto out;
    }
    result = json_stringn(text.data ? text.data : "", text.size);
out:
    buffer_release(&text);
    return result;
}

/* Templates want arguments as an object, OpenAI sends them as text. */
static int read_calls(reader *d, size_t index, json_t *message)
{
    json_t *calls = json_object_get(message, "tool_calls");
    if (!calls || json_is_null(calls))
        return 1;
    if (!json_is_array(calls))
        return wrong_message(d, index, ".tool_calls", "invalid_type", "must be a list");
    for (size_t i = 0; i < json_array_size(calls); i++) {
        json_t *function = json_object_get(json_array_get(calls, i), "function");
        json_t *arguments = json_object_get(function, "arguments");
        if (!json_is_string(json_object_get(function, "name")))
            return wrong_message(d, index, ".tool_calls", "invalid_value",
                                 "must be calls of functions with a name and arguments");
        if (!json_is_string(arguments))
            continue;
        json_t *parsed = NULL;
        json_parse(&parsed, json_string_value(arguments), json_string_length(arguments), MAX_BODY,
                   JSON_USUAL_DEPTH, NULL);
        if (json_is_object(parsed))
            json_object_set(function, "arguments", parsed);
        json_decref(parsed);
    }
    return 1;
}

static int read_message(reader *d, size_t index, json_t *message)
{
    static const char *const roles[] = {"system",    "developer", "user",
                                        "assistant", "tool",      "function"};
    if (!json_is_object(message))
        return wrong_message(d, index, "", "invalid_type", "must be an object");
    const char *role = json_string_value(json_object_get(message, "role"));
    size_t i = 0;
    while (i < 6 && (!role || strcmp(role, roles[i]) != 0))
        i++;
    if (i == 6)
        return wrong_message(d, index, ".role", "invalid_value",
                             "must be system, developer, user, assistant or tool");
    if (i == 1)
        json_object_set_new(message, "role", json_string("system"));
    int is_optional = i == 3; /* an assistant that only called tools said nothing */
    json_t *content = json_object_get(message, "content");
    if (!is_optional && (!content || json_is_null(content)))
        return wrong_message(d, index, ".content", "missing_required_parameter", "is missing");
    json_t *text = read_content(d, index, content);
    if (!text)
        return 0;
    json_object_set_new(message, "content", text);
    return read_calls(d, index, message);
}

static int read_messages(reader *d)
{
    json_t *messages = field(d, "messages");
    if (!messages)
        return api_wrong(d->problem, "messages", "missing_required_parameter",
                         "'messages' is missing");
    if (!json_is_array(messages))
        return wrong_type(d, "messages", "a list", messages);
    if (!json_array_size(messages))
        return api_wrong(d->problem, "messages", "invalid_value", "'messages' is empty");
    for (size_t i = 0; i < json_array_size(messages); i++)
        if (!read_message(d, i, json_array_get(messages, i)))
            return 0;
    json_object_set(d->r->guest, "messages", messages);
    return 1;
}

/* ---- tools ---- */

static int read_tool(reader *d, size_t index, json_t *tool)
{
    char param[64];
    snprintf(param, sizeof param, "tools[%zu]", index);
    const char *type = json_string_value(json_object_get(tool, "type"));
    json_t *function = json_object_get(tool, "function");
    if (!type || strcmp(type, "function") != 0)
        return api_wrong(d->problem, param, "invalid_value", "'%s.type' must be 'function'", param);
    const char *name = json_string_value(json_object_get(function, "name"));
    if (!name || !*name)
        return api_wrong(d->problem, param, "missing_required_parameter",
                         "'%s.function.name' must be a string", param);
    json_t *parameters = json_object_get(function, "parameters");
    if (parameters && !json_is_null(parameters) && !json_is_object(parameters))
        return api_wrong(d->problem, param, "invalid_type",
                         "'%s.function.parameters' must be a JSON schema", param);
    return 1;
}

static const char *name_of(const json_t *tool)
{
    return json_string_value(json_object_get(json_object_get(tool, "function"), "name"));
}

/* tools are checked; NULL: there is none of that name, which may be NULL. */
static json_t *find_tool(const json_t *tools, const char *name)
{
    for (size_t i = 0; name && i < json_array_size(tools); i++) {
        json_t *tool = json_array_get(tools, i);
        if (strcmp(name_of(tool), name) == 0)
            return tool;
    }
    return NULL;
}

static int force_tool(reader *d, const json_t *tools, const char *name)
{
    tool_style style = d->r->model->tools;
    json_t *schema = tool_calls_schema(style, tools, name);
    d->r->forced = 1;
    json_object_set_new(d->r->guest, "prompt_suffix", json_string(tool_calls_opening(style)));
    json_object_set_new(
        d->r->guest, "response_format",
        json_pack("{s:s, s:{s:o}}", "type", "json_schema", "json_schema", "schema", schema));
    return 1;
}

/* Those of tools that {"allowed_tools":{"tools":[...]}} names, as a new list; NULL: it names another, or none. */
static json_t *allowed_of(const json_t *allowed, json_t *tools)
{
    const json_t *names = json_object_get(allowed, "tools");
    json_t *some = json_array_size(names) ? json_array() : NULL;
    for (size_t i = 0; some && i < json_array_size(names); i++) {
        json_t *tool = find_tool(tools, name_of(json_array_get(names, i)));
        if (tool)
            json_array_append(some, tool);
    }
    if (json_array_size(some) != json_array_size(names)) {
        json_decref(some);
        some = NULL;
    }
    return some;
}

/* auto or required over some of the tools; the model is shown no others. */
static int read_allowed(reader *d, const json_t *allowed, json_t *tools)
{
    const char *mode = json_string_value(json_object_get(allowed, "mode"));
    json_t *some = allowed_of(allowed, tools);
    int is_required = mode && strcmp(mode, "required") == 0;
    if (!some || (!is_required && (!mode || strcmp(mode, "auto") != 0))) {
        json_decref(some);
        return api_wrong(
            d->problem, "tool_choice", "invalid_value",
            "'tool_choice.allowed_tools' must have a mode, auto or required, and some of "
            "'tools'");
    }
    d->r->has_tools = 1;
    json_object_set(d->r->guest, "tools", some);
    int ok = is_required ? force_tool(d, some, NULL) : 1;
    json_decref(some);
    return ok;
}

static int read_choice(reader *d, json_t *tools)
{
    json_t *choice = field(d, "tool_choice");
    const char *word = choice ? json_string_value(choice) : "auto";
    if (choice && !word && json_is_object(choice))
        word = "named";
    if (tools && json_is_object(json_object_get(choice, "allowed_tools")))
        return read_allowed(d, json_object_get(choice, "allowed_tools"), tools);
    if (choice && !tools && (!word || strcmp(word, "none") != 0))
        return api_wrong(d->problem, "tool_choice", "invalid_value",
                         "'tool_choice' is only allowed with 'tools'");
    if (!tools)
        return 1;
    const char *name = name_of(choice);
    if (word && strcmp(word, "none") == 0)
        return 1;
    d->r->has_tools = 1;
    json_object_set(d->r->guest, "tools", tools);
    if (word && strcmp(word, "auto") == 0)
        return 1;
    if (word && strcmp(word, "required") == 0)
        return force_tool(d, tools, NULL);
    if (word && strcmp(word, "named") == 0 && find_tool(tools, name))
        return force_tool(d, tools, name);
    return api_wrong(d->problem, "tool_choice", "invalid_value",
                     "'tool_choice' must be none, auto, required or the name of one of 'tools'");
}

static int read_tools(reader *d)
{
    json_t *tools = field(d, "tools");
    d->r->parallel = 1;
    if (tools && !json_is_array(tools))
        return wrong_type(d, "tools", "a list", tools);
    if (tools && !json_array_size(tools))
        tools = NULL;
    if (tools && d->r->model->tools == TOOLS_NONE)
        return api_wrong(d->problem, "tools", "unsupported_parameter",
                         "the chat template of '%s' takes no tools", d->r->model->name);
    for (size_t i = 0; i < json_array_size(tools); i++)
        if (!read_tool(d, i, json_array_get(tools, i)))
            return 0;
    return read_flag(d, "parallel_tool_calls", &d->r->parallel) && read_choice(d, tools);
}

/* ---- how to sample ---- */

static int read_stop(reader *d)
{
    json_t *stop = field(d, "stop");
    if (!stop)
        return 1;
    if (json_is_string(stop) && json_string_length(stop)) {
        json_object_set(d->r->guest, "stop", stop);
        return 1;
    }
    if (json_is_string(stop))
        return api_wrong(d->problem, "stop", "invalid_value", "'stop' must not be empty");
    if (!json_is_array(stop))
        return wrong_type(d, "stop", "a string or a list of strings", stop);
    if (json_array_size(stop) > MAX_STOPS)
        return api_wrong(d->problem, "stop", "invalid_value", "'stop' holds more than %d texts",
                         MAX_STOPS);
    for (size_t i = 0; i < json_array_size(stop); i++)
        if (!json_string_length(json_array_get(stop, i)) ||
            json_string_length(json_array_get(stop, i)) > 1024)
            return api_wrong(d->problem, "stop", "invalid_type",
                             "'stop' must hold texts of 1 to 1024 bytes");
    if (json_array_size(stop))
        json_object_set(d->r->guest, "stop", stop);
    return 1;
}

static int read_bias(reader *d)
{
    json_t *biases = field(d, "logit_bias");
    const char *key;
    json_t *value;
    if (!biases)
        return 1;
    if (!json_is_object(biases))
        return wrong_type(d, "logit_bias", "an object", biases);
    int64_t n_vocab = (int64_t)tokenizer_count(d->r->model->tokenizer);
    json_t *plain = json_object(); /* decimals alone: what the program reads */
    json_object_foreach(biases, key, value)
    {
        char *end;
        long id = strtol(key, &end, 10);
        double bias = json_number_value(value);
        if (!*key || *end || id < 0 || id >= n_vocab || !json_is_number(value) || bias < -100 ||
            bias > 100) {
            json_decref(plain);
            return api_wrong(d->problem, "logit_bias", "invalid_value",
                             "'logit_bias' must map ids of tokens to numbers from -100 to 100");
        }
        char number[32];
        snprintf(number, sizeof number, "%.6f", bias);
        json_object_set_new(plain, key, json_string(number));
    }
    json_object_set_new(d->r->guest, "logit_bias", plain);
    return 1;
}

static int read_format(reader *d)
{
    json_t *format = field(d, "response_format");
    if (!format)
        return 1;
    if (!json_is_object(format))
        return wrong_type(d, "response_format", "an object", format);
    const char *type = json_string_value(json_object_get(format, "type"));
    if (!type || (strcmp(type, "text") != 0 && strcmp(type, "json_object") != 0 &&
                  strcmp(type, "json_schema") != 0))
        return api_wrong(d->problem, "response_format.type", "invalid_value",
                         "'response_format.type' must be text, json_object or json_schema");
    if (strcmp(type, "json_schema") == 0 &&
        !json_is_object(json_object_get(json_object_get(format, "json_schema"), "schema")))
        return api_wrong(d->problem, "response_format.json_schema", "missing_required_parameter",
                         "'response_format.json_schema.schema' must be a JSON schema");
    if (d->r->forced && strcmp(type, "text") != 0)
        return api_wrong(d->problem, "response_format", "invalid_value",
                         "'response_format' and a forced 'tool_choice' exclude each other");
    if (d->r->forced)
        return 1;
    schemas_close(json_object_get(json_object_get(format, "json_schema"), "schema"));
    json_object_set(d->r->guest, "response_format", format);
    return 1;
}

static int read_logprobs(reader *d)
{
    int64_t top = 0;
    int wants = 0;
    d->r->logprobs = -1;
    if (d->r->kind == OPENAI_COMPLETION) {
        top = -1;
        if (!read_int(d, "logprobs", 0, 20, &top))
            return 0;
        wants = top >= 0;
    } else {
        if (!read_flag(d, "logprobs", &wants) || !read_int(d, "top_logprobs", 0, 20, &top))
            return 0;
        if (field(d, "top_logprobs") && !wants)
            return api_wrong(d->problem, "top_logprobs", "invalid_value",
                             "'top_logprobs' is only allowed with 'logprobs': true");
    }
    if (!wants)
        return 1;
    d->r->logprobs = (int)top;
    json_object_set_new(d->r->guest, "logprobs", json_integer(top));
    return 1;
}

static int read_stream(reader *d)
{
    json_t *options = field(d, "stream_options");
    d->r->stream = d->models->streams;
    if (!read_flag(d, "stream", &d->r->stream))
        return 0;
    if (!options)
        return 1;
    if (!json_is_object(options))
        return wrong_type(d, "stream_options", "an object", options);
    if (!d->r->stream)
        return api_wrong(d->problem, "stream_options", "invalid_value",
                         "'stream_options' is only allowed with 'stream': true");
    json_t *usage = json_object_get(options, "include_usage");
    if (usage && !json_is_null(usage) && !json_is_boolean(usage))
        return wrong_type(d, "stream_options.include_usage", "a boolean", usage);
    d->r->include_usage = json_is_true(usage);
    return 1;
}

static int read_length(reader *d)
{
    openai_request *r = d->r;
    r->max_tokens = -1;
    if (!read_int(d, "max_tokens", 1, INT32_MAX, &r->max_tokens) ||
        !read_int(d, "max_completion_tokens", 1, INT32_MAX, &r->max_tokens))
        return 0;
    /* OpenAI's defaults: 16 for texts, what the context leaves for conversations. */
    int64_t usual = r->kind == OPENAI_COMPLETION ? 16 : r->model->n_context;
    json_object_set_new(r->guest, "max_tokens",
                        json_integer(r->max_tokens > 0 ? r->max_tokens : usual));
    json_object_set_new(r->guest, "fits", json_boolean(r->max_tokens > 0));
    return 1;
}

static int read_seed(reader *d)
{
    int64_t seed = 0;
    d->r->has_seed = field(d, "seed") != NULL;
    if (!read_int(d, "seed", INT64_MIN, INT64_MAX, &seed))
        return 0;
    d->r->seed = (uint64_t)seed;
    if (!d->r->has_seed && getrandom(&d->r->seed, sizeof d->r->seed, 0) < 0) {
        api_problem_set(d->problem, 500, "server_error", "internal_error", "",
                        "the system gave no random numbers");
        return 0;
    }
    return 1;
}

static int read_sampling(reader *d)
{
    if (!field(d, "temperature")) /* OpenAI's default; the programs' own is greedy */
        json_object_set_new(d->r->guest, "temperature", json_real(1));
    int64_t top_k = 0;
    int ignore_eos = 0;
    if (!pass_real(d, "temperature", 0, 2) || !pass_real(d, "top_p", 0, 1) ||
        !pass_real(d, "min_p", 0, 1) || !pass_real(d, "typical_p", 0, 1) ||
        !pass_real(d, "repetition_penalty", 0.01, 100) ||
        !pass_real(d, "frequency_penalty", -2, 2) || !pass_real(d, "presence_penalty", -2, 2) ||
        !read_int(d, "top_k", 0, INT32_MAX, &top_k) || !read_flag(d, "ignore_eos", &ignore_eos))
        return 0;
    if (top_k)
        json_object_set_new(d->r->guest, "top_k", json_integer(top_k));
    if (ignore_eos)
        json_object_set_new(d->r->guest, "ignore_eos", json_true());
    return read_seed(d) && read_stop(d) && read_bias(d) && read_logprobs(d) && read_format(d) &&
           read_stream(d) && read_length(d);
}

static int read_n(reader *d)
{
    int64_t n = 1;
    if (!read_int(d, "n", 1, OPENAI_MAX_CHOICES, &n))
        return 0;
    d->r->n = (int)n;
    if (d->r->n_prompts * n > OPENAI_MAX_CHOICES)
        return api_wrong(d->problem, "n", "invalid_value",
                         "'n' for each prompt makes more than %d choices", OPENAI_MAX_CHOICES);
    return 1;
}

/* ---- the three kinds ---- */

/* What the template is given beside the messages, under names of their own or among chat_template_kwargs (as other
 * servers call it). */
static int read_template_words(reader *d)
{
    static const char *const ours[] = {"messages", "tools", "documents", "add_generation_prompt"};
    static const char *const named[] = {"enable_thinking", "reasoning_effort"};
    json_t *words = field(d, "chat_template_kwargs"), *documents = field(d, "documents");
    if (words && !json_is_object(words))
        return wrong_type(d, "chat_template_kwargs", "an object", words);
    if (documents && !json_is_array(documents))
        return wrong_type(d, "documents", "a list", documents);
    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
        if (json_object_get(words, ours[i]))
            return api_wrong(d->problem, "chat_template_kwargs", "invalid_value",
                             "'chat_template_kwargs' cannot hold '%s'", ours[i]);
    for (size_t i = 0; i < 2; i++) {
        json_t *value = field(d, named[i]);
        if (!value)
            value = json_object_get(words, named[i]);
        if (value && !(i ? json_is_string(value) : json_is_boolean(value)))
            return wrong_type(d, named[i], i ? "a string" : "a boolean", value);
        if (value)
            json_object_set(d->r->guest, named[i], value);
        json_object_del(words, named[i]);
    }
    if (documents)
        json_object_set(d->r->guest, "documents", documents);
    if (json_object_size(words))
        json_object_set(d->r->guest, "chat_template_kwargs", words);
    return 1;
}

/* Text is all that models here give. */
static int check_modalities(reader *d)
{
    json_t *list = field(d, "modalities");
    if (list && !json_is_array(list))
        return wrong_type(d, "modalities", "a list", list);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *kind = json_string_value(json_array_get(list, i));
        if (!kind || strcmp(kind, "text") != 0)
            return api_wrong(d->problem, "modalities", "unsupported_parameter",
                             "'modalities' can only be [\"text\"]");
    }
    return 1;
}

static int read_chat(reader *d)
{
    if (!d->r->model->has_template)
        return api_wrong(d->problem, "model", "unsupported_model",
                         "'%s' has no chat template; use /v1/completions", d->r->model->name);
    d->r->n_prompts = 1;
    d->r->text_bytes = d->size + 512; /* what the template adds to the body's own words */
    return read_template_words(d) && check_modalities(d) && read_messages(d) && read_tools(d) &&
           read_n(d) && read_sampling(d);
}

static int is_ids(const json_t *value, int64_t n_vocab)
{
    if (!json_is_array(value) || !json_array_size(value))
        return 0;
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *id = json_array_get(value, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= n_vocab)
            return 0;
    }
    return 1;
}

/* A text, a list of ids, or a list of such, as a list of such; NULL after setting the problem. */
static json_t *read_texts(reader *d, const char *name, size_t most)
{
    json_t *value = field(d, name);
    int64_t n_vocab = (int64_t)tokenizer_count(d->r->model->tokenizer);
    if (!value) {
        api_wrong(d->problem, name, "missing_required_parameter", "'%s' is missing", name);
        return NULL;
    }
    if (json_is_string(value) || is_ids(value, n_vocab)) {
        d->r->text_bytes = json_is_string(value) ? json_string_length(value)
                                                 : json_array_size(value);
        return json_pack("[O]", value);
    }
    int ok = json_is_array(value) && json_array_size(value) > 0;
    for (size_t i = 0; ok && i < json_array_size(value); i++) {
        const json_t *text = json_array_get(value, i);
        ok = json_is_string(text) || is_ids(text, n_vocab);
        d->r->text_bytes += json_is_string(text) ? json_string_length(text) : json_array_size(text);
    }
    if (!ok) {
        api_wrong(
            d->problem, name, "invalid_type",
            "'%s' must be a string, a list of strings, a list of ids of tokens, or a list of such "
            "lists",
            name);
        return NULL;
    }
    if (json_array_size(value) > most) {
        api_wrong(d->problem, name, "invalid_value", "'%s' holds more than %zu", name, most);
        return NULL;
    }
    return json_incref(value);
}

static int read_completion(reader *d)
{
    openai_request *r = d->r;
    if (field(d, "suffix"))
        return api_wrong(d->problem, "suffix", "unsupported_parameter",
                         "'suffix' is not supported: no model here fills in the middle");
    r->prompts = read_texts(d, "prompt", OPENAI_MAX_CHOICES);
    if (!r->prompts)
        return 0;
    r->n_prompts = (int)json_array_size(r->prompts);
    int64_t best_of = 0;
    if (!read_n(d) || !read_flag(d, "echo", &r->echo) ||
        !read_int(d, "best_of", 1, OPENAI_MAX_CHOICES, &best_of))
        return 0;
    if (best_of && best_of != r->n)
        return api_wrong(d->problem, "best_of", "unsupported_parameter",
                         "'best_of' other than 'n' is not supported");
    if (!read_sampling(d))
        return 0;
    if (r->echo && r->logprobs >= 0)
        return api_wrong(d->problem, "echo", "unsupported_parameter",
                         "'echo' with 'logprobs' is not supported");
    for (int i = 0; r->echo && i < r->n_prompts; i++)
        if (!json_is_string(json_array_get(r->prompts, (size_t)i)))
            return api_wrong(d->problem, "echo", "unsupported_parameter",
                             "'echo' is only supported for prompts that are texts");
    return 1;
}

static int read_embeddings(reader *d)
{
    json_t *format = field(d, "encoding_format"), *pool = field(d, "pooling");
    const char *word = format ? json_string_value(format) : "float";
    if (!word || (strcmp(word, "float") != 0 && strcmp(word, "base64") != 0))
        return api_wrong(d->problem, "encoding_format", "invalid_value",
                         "'encoding_format' must be float or base64");
    d->r->as_base64 = strcmp(word, "base64") == 0;
    int64_t dimensions = d->r->model->n_embd;
    if (!read_int(d, "dimensions", 1, INT32_MAX, &dimensions))
        return 0;
    if (dimensions != d->r->model->n_embd)
        return api_wrong(d->problem, "dimensions", "unsupported_parameter",
                         "'%s' gives %" PRId64 " dimensions and no other number", d->r->model->name,
                         d->r->model->n_embd);
    word = pool ? json_string_value(pool) : "mean";
    if (!word ||
        (strcmp(word, "mean") != 0 && strcmp(word, "last") != 0 && strcmp(word, "first") != 0))
        return api_wrong(d->problem, "pooling", "invalid_value",
                         "'pooling' must be mean, last or first");
    json_t *input = read_texts(d, "input", MAX_INPUTS);
    if (!input)
        return 0;
    d->r->n_inputs = (int64_t)json_array_size(input);
    d->r->n = d->r->n_prompts = 1;
    json_object_set_new(d->r->guest, "input", input);
    json_object_set_new(d->r->guest, "pooling", json_string(word));
    return 1;
}

static int read_tokenize(reader *d)
{
    json_t *input = field(d, "input");
    int add = 0, parse = 0;
    if (!input)
        return api_wrong(d->problem, "input", "missing_required_parameter", "'input' is missing");
    if (!json_is_array(input) || !json_array_size(input))
        return wrong_type(d, "input", "a list of texts", input);
    if (json_array_size(input) > MAX_INPUTS)
        return api_wrong(d->problem, "input", "invalid_value", "'input' holds more than %d",
                         MAX_INPUTS);
    for (size_t i = 0; i < json_array_size(input); i++)
        if (!json_is_string(json_array_get(input, i)))
            return wrong_type(d, "input", "a list of texts", json_array_get(input, i));
    if (!read_flag(d, "add_special", &add) || !read_flag(d, "parse_special", &parse))
        return 0;
    d->r->n_inputs = (int64_t)json_array_size(input);
    d->r->n = d->r->n_prompts = 1;
    json_object_set(d->r->guest, "input", input);
    json_object_set_new(d->r->guest, "add_special", json_boolean(add));
    json_object_set_new(d->r->guest, "parse_special", json_boolean(parse));
    return 1;
}

json_t *openai_request_json(const char *body, size_t size, api_problem *problem)
{
    json_t *value = NULL;
    realm_error error;
    if (json_parse(&value, body ? body : "", size, MAX_BODY, JSON_USUAL_DEPTH, &error))
        api_wrong(problem, "", "invalid_json", "the body is not JSON that can be read: %s",
                  error.message);
    return value;
}

int openai_request_parse(openai_request *out, openai_kind kind, const openai_models *models,
                         json_t *body, size_t size, api_problem *problem)
{
    *out = (openai_request){.kind = kind, .max_tokens = -1, .logprobs = -1};
    reader d = {.r = out, .models = models, .body = body, .size = size, .problem = problem};
    out->guest = json_object();
    int ok = json_is_object(body)
                 ? check_fields(&d) && read_model(&d)
                 : api_wrong(problem, "", "invalid_json", "the body must be a JSON object");
    if (ok)
        ok = kind == OPENAI_CHAT         ? read_chat(&d)
             : kind == OPENAI_COMPLETION ? read_completion(&d)
             : kind == OPENAI_EMBEDDINGS ? read_embeddings(&d)
                                         : read_tokenize(&d);
    if (!ok)
        openai_request_release(out);
    return ok;
}

void openai_request_release(openai_request *r)
{
    json_decref(r->guest);
    json_decref(r->prompts);
    r->guest = r->prompts = NULL;
}

int64_t openai_request_tokens(const openai_request *r)
{
    if (r->kind == OPENAI_TOKENIZE) /* nothing is computed */
        return 0;
    int64_t choices = (int64_t)r->n * r->n_prompts;
    int64_t context = r->kind == OPENAI_EMBEDDINGS ? 0 : r->model->n_context;
    int64_t bytes = (int64_t)r->text_bytes;
    int64_t longest = r->max_tokens > 0 && r->max_tokens < context ? r->max_tokens : context;
    if (r->kind == OPENAI_COMPLETION && r->max_tokens < 0)
        longest = 16;
    int64_t likely = longest < 256 ? longest : 256;
    return bytes / 4 + 1 + choices * likely;
}
