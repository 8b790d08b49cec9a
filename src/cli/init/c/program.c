/* program.c: your program. It answers one request in a fresh sandbox; realm_guest.h says what it may
 * call. This one asks the model the request's "prompt" and streams the answer. */
#include "realm_json.h"

REALM_PROGRAM
{
    static int32_t ids[4096];
    realm_slice request = realm_request();
    realm_slice prompt = realm_json_string(realm_json_get(request, "prompt"));
    int64_t max_tokens = realm_json_int(realm_json_get(request, "max_tokens"), 64);

    int32_t model = realm_model_open("", 0); /* the tenant's default model */
    if (model < 0)
        return model; /* the host has said why, and tells the client */
    int32_t count = realm_tokenize(model, prompt.data, prompt.size, REALM_TOKENIZE_ADD_SPECIAL, ids,
                                   4096);
    if (count <= 0 || count > 4096)
        return realm_fail(REALM_E_INVALID, "the prompt must have 1 to 4096 tokens");

    int32_t session = realm_session_open(model, REALM_TEXT("{\"temperature\":0}"));
    if (session < 0)
        return session;
    int32_t status = realm_feed(session, ids, (size_t)count);
    if (status < 0)
        return status;

    realm_text options = {0};
    realm_text_add_z(&options, "{\"stream\":true,\"max_tokens\":");
    realm_text_add_int(&options, max_tokens);
    realm_text_add_z(&options, "}");
    status = realm_generate(session, options.data, options.size, 0, 0);
    return status < 0 ? status : 0;
}
