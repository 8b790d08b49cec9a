/* chat.c: the built-in program that answers a conversation with the model's own chat template.
 *
 * Request: {"messages": [{"role","content"}, ...], "tools"?, "model"?: name, "prompt_suffix"?: text that
 * follows the template's, so that the model goes on from there, ...} and the keys of answer.h. documents, enable_thinking,
 * reasoning_effort and the members of chat_template_kwargs reach the template. */
#include "answer.h"

/* The members of an object as members of what is being written. */
static void pass_members(realm_text *out, realm_slice object)
{
    size_t begin = object.size ? realm_json_blank(object, 1) : 0;
    if (!object.size || object.data[0] != '{' || object.data[begin] == '}')
        return;
    realm_text_add_z(out, ",");
    realm_text_add(out, object.data + 1, object.size - 2);
}

REALM_PROGRAM
{
    realm_slice request = realm_request();
    int32_t model = model_of(request);
    if (model < 0)
        return model;
    realm_slice messages = realm_json_get(request, "messages");
    if (!messages.size || messages.data[0] != '[')
        return realm_fail(REALM_E_INVALID, "messages must be a list of {\"role\",\"content\"}");

    realm_text conversation = {0};
    realm_text_add_z(&conversation, "{\"add_generation_prompt\":true");
    pass(&conversation, request, "messages");
    pass(&conversation, request, "tools");
    pass(&conversation, request, "documents");
    pass(&conversation, request, "enable_thinking");
    pass(&conversation, request, "reasoning_effort");
    pass_members(&conversation, realm_json_get(request, "chat_template_kwargs"));
    realm_text_add_z(&conversation, "}");
    size_t room = messages.size * 2 + 16384;
    char *text = realm_alloc(room);
    if (conversation.failed || !text)
        return realm_fail(REALM_E_NO_MEMORY, "the program is out of memory");
    int32_t size = realm_chat_template(model, conversation.data, conversation.size, text, room);
    if (size == REALM_E_NOT_FOUND)
        return realm_fail(size, "the model has no chat template; send a prompt instead");
    if (size < 0)
        return size; /* the host has said why: the template's own words */
    if ((size_t)size > room) {
        room = (size_t)size;
        text = realm_alloc(room);
        if (!text)
            return realm_fail(REALM_E_NO_MEMORY, "the program is out of memory");
        size = realm_chat_template(model, conversation.data, conversation.size, text, room);
    }

    realm_slice suffix = realm_json_string(realm_json_get(request, "prompt_suffix"));
    realm_text prompt = {.data = text, .size = (size_t)size, .room = room};
    realm_text_add(&prompt, suffix.data, suffix.size);
    if (prompt.failed)
        return realm_fail(REALM_E_NO_MEMORY, "the program is out of memory");

    /* The template writes BOS itself where its family wants one, as in apply_chat_template. */
    int32_t *ids;
    int32_t count = tokens_of(&ids, model, (realm_slice){prompt.data, prompt.size},
                              REALM_TOKENIZE_PARSE_SPECIAL);
    return count < 0 ? count : answer(model, request, ids, (size_t)count);
}
