/* answer.h: what the built-in programs share: from a prompt's tokens to the finished answer.
 *
 * Request keys that both programs understand: max_tokens (default 256), the sampler keys of
 * docs/HOST_ABI.md, stop, ignore_eos, logprobs (0..20), stream (default true), logit_bias
 * ({"id": value}), response_format ({"type":"json_object"} or {"type":"json_schema",
 * "json_schema":{"schema":{...}}}).
 * Answer: {"prompt_tokens":[ids],"tokens":[...],"text","finish_reason","n_cached","timings":{...}}
 * as generate returns them; with stream the text goes out as it comes as well. */
#ifndef REALM_ANSWER_H
#define REALM_ANSWER_H

#include "realm_json.h"

/* Copies the request's value under key into options, if it is there and not null. */
static void pass(realm_text *options, realm_slice request, const char *key)
{
    realm_slice value = realm_json_get(request, key);
    if (!value.size || realm_equal(value, "null"))
        return;
    realm_text_add_z(options, ",\"");
    realm_text_add_z(options, key);
    realm_text_add_z(options, "\":");
    realm_text_add(options, value.data, value.size);
}

static int32_t apply_bias(int32_t session, realm_slice biases)
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

static int32_t apply_format(int32_t session, realm_slice format)
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

/* Says by how much the prompt is too long, so that whoever wrote it knows what to cut. */
static int32_t too_long(int32_t model, size_t n_prompt)
{
    static char info[65536];
    int32_t size = realm_model_info(model, info, sizeof info);
    if (size <= 0 || (size_t)size > sizeof info)
        return REALM_E_CONTEXT_FULL; /* the host's sentence must do */
    realm_text sentence = {0};
    realm_text_add_z(&sentence, "the prompt has ");
    realm_text_add_int(&sentence, (int64_t)n_prompt);
    realm_text_add_z(&sentence, " tokens, more than the ");
    realm_text_add_int(
        &sentence,
        realm_json_int(realm_json_get((realm_slice){info, (size_t)size}, "n_context"), 0));
    realm_text_add_z(&sentence, " of the model's context");
    if (!sentence.failed)
        realm_respond_error(REALM_E_CONTEXT_FULL, sentence.data, sentence.size);
    return REALM_E_CONTEXT_FULL;
}

/* Runs the prompt and answers the request. */
static int32_t answer(int32_t model, realm_slice request, const int32_t *prompt, size_t n_prompt)
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
    int32_t length = realm_feed(session, prompt, n_prompt);
    if (length == REALM_E_CONTEXT_FULL)
        return too_long(model, n_prompt);
    if (length < 0)
        return length;

    realm_text options = {0};
    realm_slice limit = realm_json_get(request, "max_tokens");
    realm_text_add_z(&options, "{\"return_tokens\":true,\"return_text\":true,\"max_tokens\":");
    realm_text_add_int(&options, realm_json_int(limit, 256));
    realm_slice stream = realm_json_get(request, "stream");
    realm_text_add_z(&options,
                     realm_equal(stream, "false") ? ",\"stream\":false" : ",\"stream\":true");
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

    /* The result is asked for once with room for any usual answer; a larger one is kept by the host
     * until the next generate, so asking again with more room only copies. */
    size_t room = 65536;
    char *result = realm_alloc(room);
    if (options.failed || !result)
        return realm_fail(REALM_E_NO_MEMORY, "the program is out of memory");
    int32_t size = realm_generate(session, options.data, options.size, result, room);
    if (size < 0)
        return size;
    if ((size_t)size > room) {
        room = (size_t)size;
        result = realm_alloc(room);
        if (!result)
            return realm_fail(REALM_E_NO_MEMORY, "the program is out of memory");
        size = realm_generate(session, 0, 0, result, room);
        if (size < 0)
            return size;
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
static int32_t tokens_of(int32_t **ids, int32_t model, realm_slice text, int32_t flags)
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

#endif
