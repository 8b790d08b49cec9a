/* paris.c: a tenant's program that asks the model one question and streams its answer.
 *
 * Shows the shortest useful path: request, template, tokens, session, native generation. The
 * question comes from the request ({"prompt": "..."}), so the sandbox decides how to ask and the
 * client what. */
#include "realm_json.h"

REALM_PROGRAM
{
    realm_slice question = realm_json_get(realm_request(), "prompt");
    int32_t model = realm_model_open("", 0);
    if (model < 0)
        return model;

    /* The system message is more than manners: without it the likeliest first word of a model this
     * small is a near tie, which rounding decides; with it the answer leads by a factor of three. */
    realm_text conversation = {0};
    realm_text_add_z(&conversation, "{\"add_generation_prompt\":true,"
                                    "\"messages\":[{\"role\":\"system\",\"content\":\""
                                    "Answer in one short sentence.\"},"
                                    "{\"role\":\"user\",\"content\":");
    realm_text_add(&conversation, question.data, question.size);
    realm_text_add_z(&conversation, "}]}");

    static char text[16384];
    static int32_t ids[4096];
    int32_t size = realm_chat_template(model, conversation.data, conversation.size, text,
                                       sizeof text);
    if (size < 0)
        return size;
    if ((size_t)size > sizeof text)
        return realm_fail(REALM_E_TOO_LARGE, "the question is too long for this program");
    int32_t count = realm_tokenize(model, text, (size_t)size, REALM_TOKENIZE_PARSE_SPECIAL, ids,
                                   4096);
    if (count < 0)
        return count;
    if (count > 4096)
        return realm_fail(REALM_E_TOO_LARGE, "the question is too long for this program");

    int32_t session = realm_session_open(model, REALM_TEXT("{\"temperature\":0}"));
    if (session < 0)
        return session;
    int32_t status = realm_feed(session, ids, (size_t)count);
    if (status < 0)
        return status;
    status = realm_generate(session, REALM_TEXT("{\"max_tokens\":48,\"stream\":true}"), 0, 0);
    return status < 0 ? status : 0;
}
