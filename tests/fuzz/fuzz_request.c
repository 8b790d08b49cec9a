/* tests/fuzz/fuzz_request.c: any bytes as the body of a request, of each kind and for models of each style of tools, and
 * as a model's answer that may hold calls of tools.
 *
 * The first byte chooses. What is refused is refused with a status of the client's and a sentence that is text; what is
 * taken is within its bounds and can be printed for the program. Calls that are found are OpenAI's. */
#include "fuzz/fuzz.h"

#include <string.h>

#include "base/utf8.h"
#include "server/openai_request.h"
#include "server/schemas.h"
#include "server/tool_calls.h"
#include "text/family.h"

#define MAX_BYTES ((size_t)1 << 20)

static int may_use(void *context, const char *name)
{
    (void)context;
    (void)name;
    return 1;
}

/* A server as far as requests look at it: one model, by the shortest of names. */
static server *one_model(tool_style style)
{
    static tokenizer words = {.count = 1000};
    static server s = {.alias_mutex = PTHREAD_MUTEX_INITIALIZER, .n_models = 1};
    s.models[0] = (served_model){.name = "m",
                                 .tokenizer = &words,
                                 .n_context = 100,
                                 .n_embd = 8,
                                 .has_template = 1,
                                 .tools = style};
    return &s;
}

static void check_problem(const api_problem *p)
{
    promise(p->status >= 400 && p->status < 500, "it is the client's mistake");
    promise(p->message[0] && p->code && p->type, "refusals come with a sentence");
    json_t *shown = api_problem_json(p);
    promise(shown != NULL, "which is text");
    json_decref(shown);
}

static void check_request(const openai_request *r)
{
    promise(json_is_object(r->guest), "the program is asked something");
    char *text = json_dumps(r->guest, JSON_COMPACT);
    promise(text != NULL, "that can be printed");
    free(text);
    promise(r->n >= 1 && r->n_prompts >= 1 && (int64_t)r->n * r->n_prompts <= OPENAI_MAX_CHOICES,
            "choices are bounded");
    promise(openai_request_tokens(r) >= 0, "so are tokens");
    json_t *format = json_object_get(r->guest, "response_format");
    json_t *schema = json_object_get(json_object_get(format, "json_schema"), "schema");
    json_t *again = json_deep_copy(schema);
    if (r->kind == OPENAI_CHAT && !r->forced)
        schemas_close(again);
    promise(!schema || json_equal(schema, again), "a schema that is closed stays as it is");
    json_decref(again);
}

static void ask(openai_kind kind, tool_style style, const char *body, size_t size)
{
    api_problem problem = {0};
    openai_request r;
    const openai_models models = {.server = one_model(style), .allowed = may_use};
    json_t *json = openai_request_json(body, size, &problem);
    if (json && openai_request_parse(&r, kind, &models, json, size, &problem)) {
        check_request(&r);
        openai_request_release(&r);
    } else {
        check_problem(&problem);
    }
    json_decref(json);
}

static void answer(tool_style style, int forced, const char *text, size_t size)
{
    size_t plain = tool_calls_plain(style, text, size), from;
    promise(plain <= size, "no more is shown than there is");
    json_t *calls = tool_calls_parse(style, text, size, forced, "seed", &from);
    promise(from <= size && (calls || from == size), "what is no call is text");
    for (size_t i = 0; i < json_array_size(calls); i++) {
        const json_t *call = json_array_get(calls, i), *f = json_object_get(call, "function");
        promise(json_is_string(json_object_get(call, "id")) &&
                    json_is_string(json_object_get(f, "name")) &&
                    json_is_string(json_object_get(f, "arguments")),
                "a call is OpenAI's");
    }
    json_decref(calls);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1 || size > MAX_BYTES)
        return 0;
    tool_style style = (tool_style)(data[0] / 8 % 4);
    const char *text = (const char *)data + 1;
    if (data[0] % 8 < 4)
        ask((openai_kind)(data[0] % 4), style, text, size - 1);
    else
        answer(style, data[0] % 2, text, size - 1);
    return 0;
}
