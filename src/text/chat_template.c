/* text/chat_template.c: see chat_template.h. MiniJinja, in deps/, renders; this file makes the
 * template's variables from a request as Hugging Face's tokenizers do. */
#include "text/chat_template.h"

#include <realm_deps.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/json.h"

#define MAX_REQUEST_BYTES (16u << 20)

realm_status chat_template_find(const gguf *g, const char *name, gguf_string *text,
                                realm_error *error)
{
    char key[256] = "tokenizer.chat_template";
    if (name && *name &&
        snprintf(key, sizeof key, "tokenizer.chat_template.%s", name) >= (int)sizeof key)
        return realm_fail(error, REALM_NOT_FOUND, "no chat template has so long a name");
    realm_status status = gguf_get_string(g, key, text, error);
    if (status == REALM_NOT_FOUND)
        return realm_fail(error, status, "the model has no chat template (%s)", key);
    return status;
}

/* The text of a token as JSON; "" for none. */
static json_t *token_text(const tokenizer *t, token_id id)
{
    size_t size = 0;
    const char *text = t ? tokenizer_text(t, id, &size) : "";
    json_t *value = json_stringn(text, size);
    return value ? value : json_string(""); /* a vocabulary may hold what is not UTF-8 */
}

static int set_default(json_t *variables, const char *key, json_t *value)
{
    if (!json_object_get(variables, key))
        return json_object_set_new(variables, key, value) == 0;
    json_decref(value);
    return 1;
}

/* Takes request. The variables of the template, or NULL if memory is out. */
static json_t *make_variables(json_t *request, const tokenizer *t)
{
    json_t *variables = request;
    if (json_is_array(request)) {
        variables = json_object();
        if (json_object_set_new(variables, "messages", request) != 0) {
            json_decref(variables);
            return NULL;
        }
    }
    if (set_default(variables, "tools", json_null()) &&
        set_default(variables, "documents", json_null()) &&
        set_default(variables, "add_generation_prompt", json_false()) &&
        set_default(variables, "bos_token", token_text(t, t ? tokenizer_bos(t) : -1)) &&
        set_default(variables, "eos_token", token_text(t, t ? tokenizer_eos(t) : -1)))
        return variables;
    json_decref(variables);
    return NULL;
}

static realm_status check_shape(const json_t *request, realm_error *error)
{
    if (json_is_array(request))
        return REALM_OK;
    if (!json_is_object(request))
        return realm_fail(error, REALM_INVALID,
                          "messages must be a list, or an object with a list 'messages', not %s",
                          json_kind(request));
    const json_t *messages;
    return json_get_list(request, "messages", &messages, error) == REALM_OK
               ? REALM_OK
               : realm_fail(error, REALM_INVALID, "'messages' must be a list of messages");
}

static realm_status render(gguf_string text, const char *variables, buffer *out, realm_error *error)
{
    char *rendered = NULL, *reason = NULL;
    size_t size = 0;
    int result = realm_deps_template_render(text.data, text.size, variables, strlen(variables),
                                            &rendered, &size, &reason);
    realm_status status = (realm_status)result;
    if (status != REALM_OK)
        realm_fail(error, status, "%s", reason ? reason : "the chat template failed");
    else if ((status = buffer_add(out, rendered, size)) != REALM_OK)
        realm_fail(error, status, "the rendered chat of %zu bytes is too large", size);
    realm_deps_string_free(rendered);
    realm_deps_string_free(reason);
    return status;
}

realm_status chat_template_render(gguf_string template_text, const tokenizer *t,
                                  const char *request_json, size_t request_size, buffer *out,
                                  realm_error *error)
{
    json_t *request = NULL;
    realm_status status = json_parse(&request, request_json, request_size, MAX_REQUEST_BYTES,
                                     JSON_USUAL_DEPTH, error);
    if (status != REALM_OK)
        return status;
    status = check_shape(request, error);
    if (status != REALM_OK) {
        json_decref(request);
        return status;
    }
    json_t *variables = make_variables(request, t);
    char *text = json_text(variables, 0);
    status = text ? render(template_text, text, out, error)
                  : realm_fail_memory(error, request_size, "a chat");
    free(text);
    json_decref(variables);
    return status;
}
