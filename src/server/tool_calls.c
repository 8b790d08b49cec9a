/* server/tool_calls.c: see tool_calls.h.
 *
 *     Hermes, Qwen   <tool_call>\n{"name": f, "arguments": {...}}\n</tool_call>, as often as wanted
 *     Llama 3        {"name": f, "parameters": {...}}, perhaps after <|python_tag|>
 *     Mistral        [TOOL_CALLS] [{"name": f, "arguments": {...}}, ...] */
#include "server/tool_calls.h"

#include <string.h>

#include "server/schemas.h"

#define MARK_HERMES  "<tool_call>"
#define CLOSE_HERMES "</tool_call>"
#define MARK_LLAMA   "<|python_tag|>"
#define MARK_MISTRAL "[TOOL_CALLS]"
#define MAX_CALLS    64
#define MAX_CALL     ((size_t)1 << 20)

static int holds(const char *text, size_t size, const char *word)
{
    return memmem(text, size, word, strlen(word)) != NULL;
}

tool_style tool_calls_style(const char *text, size_t size)
{
    if (!holds(text, size, "tools"))
        return TOOLS_NONE;
    if (holds(text, size, MARK_HERMES))
        return TOOLS_HERMES;
    if (holds(text, size, MARK_MISTRAL))
        return TOOLS_MISTRAL;
    if (holds(text, size, "python_tag") || holds(text, size, "ipython"))
        return TOOLS_LLAMA3;
    return TOOLS_NONE;
}

static size_t skip_blank(const char *text, size_t size)
{
    size_t at = 0;
    while (at < size &&
           (text[at] == ' ' || text[at] == '\n' || text[at] == '\r' || text[at] == '\t'))
        at++;
    return at;
}

/* Where mark begins, or where a beginning of it ends the text; size if neither. */
static size_t find_mark(const char *text, size_t size, const char *mark)
{
    size_t mark_size = strlen(mark);
    const char *found = memmem(text, size, mark, mark_size);
    if (found)
        return (size_t)(found - text);
    for (size_t part = mark_size - 1 < size ? mark_size - 1 : size; part; part--)
        if (memcmp(text + size - part, mark, part) == 0)
            return size - part;
    return size;
}

size_t tool_calls_plain(tool_style style, const char *text, size_t size)
{
    size_t blank = skip_blank(text, size);
    switch (style) {
    case TOOLS_NONE: return size;
    case TOOLS_HERMES: return find_mark(text, size, MARK_HERMES);
    case TOOLS_LLAMA3:
        if (blank == size || text[blank] == '{')
            return 0;
        return find_mark(text, size, MARK_LLAMA);
    case TOOLS_MISTRAL: /* where the mark is a control token, its text is not there */
        if (blank == size || text[blank] == '[')
            return 0;
        return find_mark(text, size, MARK_MISTRAL);
    }
    return size;
}

/* ---- parsing ---- */

/* {"name": f, "arguments" or "parameters": {...}} as OpenAI's; NULL if it is no call. */
static json_t *make_call(const json_t *value, const char *seed, size_t index)
{
    const char *name = json_string_value(json_object_get(value, "name"));
    const json_t *arguments = json_object_get(value, "arguments");
    if (!arguments)
        arguments = json_object_get(value, "parameters");
    if (!name || !json_is_object(arguments))
        return NULL;
    char *text = json_text(arguments, JSON_ENSURE_ASCII);
    json_t *call = text ? json_pack("{s:o, s:s, s:{s:s, s:s}}", "id",
                                    json_sprintf("call_%s%02zu", seed, index), "type", "function",
                                    "function", "name", name, "arguments", text)
                        : NULL;
    free(text);
    return call;
}

static json_t *parse(const char *text, size_t size)
{
    size_t blank = skip_blank(text, size);
    json_t *value = NULL;
    json_parse(&value, text + blank, size - blank, MAX_CALL, JSON_USUAL_DEPTH, NULL);
    return value;
}

/* Adds the call, or each of a list, that the text is; 0 if it is none. */
static int add_calls(json_t *calls, const char *text, size_t size, const char *seed)
{
    json_t *value = parse(text, size);
    int ok = value != NULL;
    size_t count = json_is_array(value) ? json_array_size(value) : 1;
    for (size_t i = 0; ok && i < count; i++) {
        json_t *call = make_call(json_is_array(value) ? json_array_get(value, i) : value, seed,
                                 json_array_size(calls));
        ok = call && json_array_size(calls) < MAX_CALLS && json_array_append_new(calls, call) == 0;
    }
    json_decref(value);
    return ok && count;
}

static int add_hermes(json_t *calls, const char *text, size_t size, const char *seed)
{
    const char *end = text + size;
    for (;;) {
        const char *mark = memmem(text, (size_t)(end - text), MARK_HERMES, sizeof MARK_HERMES - 1);
        if (!mark)
            return json_array_size(calls) > 0;
        mark += sizeof MARK_HERMES - 1;
        const char *close = memmem(mark, (size_t)(end - mark), CLOSE_HERMES,
                                   sizeof CLOSE_HERMES - 1);
        if (!add_calls(calls, mark, (size_t)((close ? close : end) - mark), seed))
            return 0;
        if (!close)
            return 1;
        text = close;
    }
}

json_t *tool_calls_parse(tool_style style, const char *text, size_t size, int forced,
                         const char *seed, size_t *plain)
{
    json_t *calls = json_array();
    *plain = forced ? 0 : tool_calls_plain(style, text, size);
    const char *rest = text + *plain;
    size_t left = size - *plain;
    const char *mark = style == TOOLS_LLAMA3 ? MARK_LLAMA : MARK_MISTRAL;
    if (left >= strlen(mark) && memcmp(rest, mark, strlen(mark)) == 0) {
        rest += strlen(mark);
        left -= strlen(mark);
    }
    int found = 0;
    if (calls && left)
        found = style == TOOLS_HERMES && !forced ? add_hermes(calls, rest, left, seed)
                                                 : add_calls(calls, rest, left, seed);
    if (found)
        return calls;
    json_decref(calls);
    *plain = size;
    return NULL;
}

/* ---- forcing ---- */

static json_t *schema_of(tool_style style, const json_t *tool)
{
    const json_t *function = json_object_get(tool, "function");
    json_t *parameters = json_object_get(function, "parameters");
    /* OpenAI: without parameters it takes none. */
    parameters = json_is_object(parameters)
                     ? json_deep_copy(parameters)
                     : json_pack("{s:s, s:{}}", "type", "object", "properties");
    schemas_close(parameters);
    const char *key = style == TOOLS_LLAMA3 ? "parameters" : "arguments";
    return json_pack("{s:s, s:{s:{s:O}, s:o}, s:[s, s], s:b}", "type", "object", "properties",
                     "name", "const", json_object_get(function, "name"), key, parameters,
                     "required", "name", key, "additionalProperties", 0);
}

json_t *tool_calls_schema(tool_style style, const json_t *tools, const char *name)
{
    json_t *any = json_array();
    for (size_t i = 0; i < json_array_size(tools); i++) {
        const json_t *tool = json_array_get(tools, i);
        const char *its = json_string_value(
            json_object_get(json_object_get(tool, "function"), "name"));
        if (its && (!name || strcmp(name, its) == 0))
            json_array_append_new(any, schema_of(style, tool));
    }
    json_t *schema = json_array_size(any) == 1 ? json_incref(json_array_get(any, 0))
                                               : json_pack("{s:O}", "anyOf", any);
    json_decref(any);
    if (style == TOOLS_MISTRAL)
        schema = json_pack("{s:s, s:o, s:i, s:i}", "type", "array", "items", schema, "minItems", 1,
                           "maxItems", 1);
    return schema;
}

const char *tool_calls_opening(tool_style style)
{
    switch (style) {
    case TOOLS_HERMES: return MARK_HERMES "\n";
    case TOOLS_MISTRAL: return MARK_MISTRAL;
    default: return "";
    }
}
