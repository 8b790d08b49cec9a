/* answer.h: what the built-in programs share: from a prompt's tokens to the finished answer.
 *
 * Request keys that both programs understand: max_tokens (default 256), fits (true: prompt and max_tokens
 * must fit the context together), the sampler keys of docs/HOST_ABI.md, stop, ignore_eos, logprobs (0..20),
 * stream (default true; "tokens": a line of JSON a token, as generate returns it, instead of text),
 * return_tokens (default true: ids of the prompt and of the answer are in the answer), logit_bias ({"id":
 * value}), response_format ({"type":"json_object"} or {"type":"json_schema","json_schema":{"schema":{...}}}).
 * Answer: {"prompt_tokens":[ids],"tokens":[...],"text","finish_reason","n_cached","timings":{...}}
 * as generate returns them; with stream the text goes out as it comes as well. */
#ifndef REALM_ANSWER_H
#define REALM_ANSWER_H

#include "realm_json.h"

/* The model that the request names, or the default one; below 0 it has been refused. */
static inline int32_t model_of(realm_slice request)
{
    realm_slice name = realm_json_string(realm_json_get(request, "model"));
    return realm_model_open(name.data, name.size);
}

/* Copies the request's value under key into options, if it is there and not null. */
static inline void pass(realm_text *options, realm_slice request, const char *key)
{
    realm_slice value = realm_json_get(request, key);
    if (!value.size || realm_equal(value, "null"))
        return;
    realm_text_add_z(options, ",\"");
    realm_text_add_z(options, key);
    realm_text_add_z(options, "\":");
    realm_text_add(options, value.data, value.size);
}

static inline int32_t apply_bias(int32_t session, realm_slice biases)
{
    size_t count = 0, at = 1;
    int32_t *ids = realm_alloc(biases.size * sizeof *ids);
    float *values = realm_alloc(biases.size * sizeof *values);
    if (!ids || !values)
        return REALM_E_NO_MEMORY;
    for (at = realm_json_blank(biases, at); at < biases.size && biases.data[at] == '"';) {
        size_t end = realm_json_string_end(biases, at);
        if (!end)
            return REALM_E_INVALID;
        realm_slice name = {biases.data + at + 1, end - at - 2};
        at = realm_json_blank(biases, end);
        if (at >= biases.size || biases.data[at] != ':')
            return REALM_E_INVALID;
        at = realm_json_blank(biases, at + 1);
        end = realm_json_value_end(biases, at);
        if (!end)
            return REALM_E_INVALID;
        int64_t id = realm_json_int(name, -1);
        if (id < 0 || id > INT32_MAX)
            return REALM_E_INVALID;
        ids[count] = (int32_t)id;
        /* Biases are decimals: read whole and fraction. */
        realm_slice number = {biases.data + at, end - at};
        if (realm_json_is_string(number)) /* decimals that a writer of JSON would spell 1e-05 */
            number = (realm_slice){number.data + 1, number.size - 2};
        bool negative = number.data[0] == '-';
        float value = 0, place = 0;
        for (size_t i = negative; i < number.size; i++) {
            if (number.data[i] == '.' && place == 0) {
                place = 1;
            } else if (number.data[i] >= '0' && number.data[i] <= '9') {
                if (place > 0)
                    value += (float)(number.data[i] - '0') * (place *= 0.1f);
                else
                    value = value * 10 + (float)(number.data[i] - '0');
            } else {
                return REALM_E_INVALID;
            }
        }
        values[count++] = negative ? -value : value;
        at = realm_json_blank(biases, end);
        if (at < biases.size && biases.data[at] == ',')
            at = realm_json_blank(biases, at + 1);
    }
    return realm_bias(session, ids, values, count);
}

static inline int32_t apply_format(int32_t session, realm_slice format)
{
    realm_slice kind = realm_json_string(realm_json_get(format, "type"));
    if (realm_equal(kind, "json_object"))
        return realm_constrain(session, REALM_CONSTRAIN_JSON_OBJECT, "", 0);
    if (realm_equal(kind, "json_schema")) {
        realm_slice schema = realm_json_get(realm_json_get(format, "json_schema"), "schema");
        return realm_constrain(session, REALM_CONSTRAIN_JSON_SCHEMA, schema.data, schema.size);
    }
    if (realm_equal(kind, "text"))
        return 0;
    return realm_fail(REALM_E_INVALID,
                      "response_format.type must be text, json_object or json_schema");
}

/* Tokens of the model's context; 0 if it does not say. */
static inline int64_t context_of(int32_t model)
{
    static char info[65536];
    int32_t size = realm_model_info(model, info, sizeof info);
    if (size <= 0 || (size_t)size > sizeof info)
        return 0;
    return realm_json_int(realm_json_get((realm_slice){info, (size_t)size}, "n_context"), 0);
}

/* Says by how much the prompt is too long, so that whoever wrote it knows what to cut. more: the tokens that
 * were asked for, or 0. */
static inline int32_t too_long(int32_t model, size_t n_prompt, int64_t more)
{
    int64_t context = context_of(model);
    if (!context)
        return REALM_E_CONTEXT_FULL; /* the host's sentence must do */
    realm_text sentence = {0};
    realm_text_add_z(&sentence, "the prompt has ");
    realm_text_add_int(&sentence, (int64_t)n_prompt);
    realm_text_add_z(&sentence, " tokens");
    if (more) {
        realm_text_add_z(&sentence, " and ");
        realm_text_add_int(&sentence, more);
        realm_text_add_z(&sentence, " are asked for");
    }
    realm_text_add_z(&sentence, ", more than the ");
    realm_text_add_int(&sentence, context);
    realm_text_add_z(&sentence, " of the model's context");
    if (!sentence.failed)
        realm_respond_error(REALM_E_CONTEXT_FULL, sentence.data, sentence.size);
    return REALM_E_CONTEXT_FULL;
}

/* generate, with room for any result: what has no room at first is kept by the host until the next generate, so
 * asking again with more only copies. *result is size bytes. */
static inline int32_t generate(int32_t session, const realm_text *options, char **result,
                               size_t *room)
{
    int32_t size = realm_generate(session, options->data, options->size, *result, *room);
    if (size < 0 || (size_t)size <= *room)
        return size;
    *room = (size_t)size;
    *result = realm_alloc(*room);
    if (!*result)
        return realm_fail(REALM_E_NO_MEMORY, "the program is out of memory");
    return realm_generate(session, 0, 0, *result, *room);
}

/* A line a token, until the last, whose result is left in *result. */
static inline int32_t stream_tokens(int32_t session, const realm_text *options, char **result,
                                    size_t *room)
{
    for (;;) {
        int32_t size = generate(session, options, result, room);
        if (size < 0)
            return size;
        realm_respond_text(*result, (size_t)size);
        realm_respond_text(REALM_TEXT("\n"));
        realm_slice reason = realm_json_get((realm_slice){*result, (size_t)size}, "finish_reason");
        if (!realm_equal(reason, "\"wake\""))
            return size;
    }
}

/* Runs the prompt and answers the request. */
static inline int32_t answer(int32_t model, realm_slice request, const int32_t *prompt,
                             size_t n_prompt)
{
    if (!n_prompt)
        return realm_fail(REALM_E_INVALID, "the prompt is empty");
    int32_t session = realm_session_open(model, REALM_TEXT("{}"));
    if (session < 0)
        return session; /* here and below the host's own sentence is the request's error */
    realm_slice part = realm_json_get(request, "logit_bias");
    if (part.size && part.data[0] == '{') {
        int32_t status = apply_bias(session, part);
        if (status < 0)
            return realm_fail(status, "logit_bias must be {\"token id\": number, ...}");
    }
    part = realm_json_get(request, "response_format");
    if (part.size && part.data[0] == '{') {
        int32_t status = apply_format(session, part);
        if (status < 0)
            return status;
    }
    int64_t max_tokens = realm_json_int(realm_json_get(request, "max_tokens"), 256);
    if (realm_json_true(realm_json_get(request, "fits"))) {
        int64_t context = context_of(model);
        if (context && (int64_t)n_prompt + max_tokens > context)
            return too_long(model, n_prompt, max_tokens);
    }
    int32_t length = realm_feed(session, prompt, n_prompt);
    if (length == REALM_E_CONTEXT_FULL)
        return too_long(model, n_prompt, 0);
    if (length < 0)
        return length;

    realm_text options = {0};
    realm_slice stream = realm_json_get(request, "stream");
    bool by_token = realm_equal(stream, "\"tokens\"");
    bool returns_tokens = !realm_equal(realm_json_get(request, "return_tokens"), "false");
    bool returns_text = by_token || returns_tokens || realm_equal(stream, "false");
    realm_text_add_z(&options, by_token || returns_tokens ? "{\"return_tokens\":true"
                                                          : "{\"return_tokens\":false");
    realm_text_add_z(&options, returns_text ? ",\"return_text\":true,\"max_tokens\":"
                                            : ",\"return_text\":false,\"max_tokens\":");
    realm_text_add_int(&options, max_tokens);
    if (by_token)
        realm_text_add_z(&options, ",\"wake_every\":1");
    realm_text_add_z(&options, by_token || realm_equal(stream, "false") ? ",\"stream\":false"
                                                                        : ",\"stream\":true");
    static const char *const passed[] = {"temperature",
                                         "top_k",
                                         "top_p",
                                         "min_p",
                                         "typical_p",
                                         "repetition_penalty",
                                         "frequency_penalty",
                                         "presence_penalty",
                                         "penalty_tokens",
                                         "seed",
                                         "stop",
                                         "ignore_eos",
                                         "logprobs"};
    for (size_t i = 0; i < sizeof passed / sizeof *passed; i++)
        pass(&options, request, passed[i]);
    realm_text_add_z(&options, "}");

    size_t room = 65536;
    char *result = realm_alloc(room);
    if (options.failed || !result)
        return realm_fail(REALM_E_NO_MEMORY, "the program is out of memory");
    int32_t size = by_token ? stream_tokens(session, &options, &result, &room)
                            : generate(session, &options, &result, &room);
    if (size < 0)
        return size;
    if (!returns_tokens) {
        realm_respond_json(result, (size_t)size);
        return 0;
    }

    realm_text out = {0};
    realm_text_add_z(&out, "{\"prompt_tokens\":[");
    for (size_t i = 0; i < n_prompt; i++) {
        if (i)
            realm_text_add_z(&out, ",");
        realm_text_add_int(&out, prompt[i]);
    }
    realm_text_add_z(&out, "],");
    realm_text_add(&out, result + 1, (size_t)size - 1);
    if (out.failed)
        return realm_fail(REALM_E_NO_MEMORY, "the program is out of memory");
    realm_respond_json(out.data, out.size);
    return 0;
}

/* Token ids of text into *ids; how many, or a status, whose sentence is the host's or told. */
static inline int32_t tokens_of(int32_t **ids, int32_t model, realm_slice text, int32_t flags)
{
    size_t room = text.size + 8; /* a token a byte, BOS and EOS: nearly always enough */
    for (;;) {
        *ids = realm_alloc(room * sizeof **ids);
        if (!*ids)
            return realm_fail(REALM_E_NO_MEMORY, "the prompt is too long for the program's memory");
        int32_t count = realm_tokenize(model, text.data, text.size, flags, *ids, room);
        if (count < 0 || (size_t)count <= room)
            return count;
        room = (size_t)count;
    }
}

/* The ids in a JSON list, as tokens_of. */
static inline int32_t listed_tokens(int32_t **ids, realm_slice list)
{
    *ids = realm_alloc((list.size / 2 + 1) * sizeof **ids);
    if (!*ids)
        return realm_fail(REALM_E_NO_MEMORY, "the prompt is too long for the program's memory");
    int32_t count = 0;
    size_t at = 0;
    for (realm_slice item; (item = realm_json_next(list, &at)).size;) {
        int64_t id = realm_json_int(item, -1);
        if (id < 0 || id > INT32_MAX)
            return realm_fail(REALM_E_INVALID, "a list of token ids holds something else");
        (*ids)[count++] = (int32_t)id;
    }
    return count;
}

#endif
