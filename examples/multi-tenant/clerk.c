/* clerk.c: tenant "clerk" wants data, not prose: its answers are JSON of one schema, by force of a
 * grammar on every token, whatever the model would rather say. */
#include "realm_json.h"

REALM_PROGRAM
{
    static int32_t prompt[512];
    realm_slice text = realm_json_string(realm_json_get(realm_request(), "prompt"));
    int32_t model = realm_model_open("", 0);
    if (model < 0)
        return model;
    int32_t count = realm_tokenize(model, text.data, text.size, REALM_TOKENIZE_ADD_SPECIAL, prompt,
                                   512);
    if (count < 0 || count > 512)
        return realm_fail(REALM_E_TOO_LARGE, "the clerk reads 512 tokens at most");
    int32_t session = realm_session_open(model, REALM_TEXT("{}"));
    if (session < 0)
        return session;
    int32_t status = realm_constrain(
        session, REALM_CONSTRAIN_JSON_SCHEMA,
        REALM_TEXT(
            "{\"type\":\"object\",\"properties\":{\"city\":{\"type\":\"string\",\"maxLength\":24},"
            "\"river\":{\"enum\":[\"Seine\",\"Thames\",\"Tiber\"]},\"capital\":{\"type\":\"boolean\"}},"
            "\"required\":[\"city\",\"river\",\"capital\"],\"additionalProperties\":false}"));
    if (status < 0)
        return status;
    status = realm_feed(session, prompt, (size_t)count);
    if (status < 0)
        return status;
    status = realm_generate(session, REALM_TEXT("{\"max_tokens\":64,\"stream\":true}"), 0, 0);
    return status < 0 ? status : 0;
}
