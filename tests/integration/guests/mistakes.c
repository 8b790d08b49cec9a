/* mistakes.c: makes the one mistake that the request names as its prompt. Answers if it came through, so the
 * test sees that it did not. */
#include "realm_json.h"

REALM_PROGRAM
{
    static int32_t ids[8] = {1, 2, 3};
    static float floats[8];
    static char out[64];
    realm_slice name = realm_json_string(realm_json_get(realm_request(), "prompt"));
    int32_t model = realm_model_open("", 0), session = realm_session_open(model, "", 0);
    realm_feed(session, ids, 3);
    if (realm_equal(name, "unknown option"))
        realm_session_open(model, REALM_TEXT("{\"colour\":1}"));
    else if (realm_equal(name, "option out of range"))
        realm_sample(session, REALM_TEXT("{\"temperature\":-1}"));
    else if (realm_equal(name, "no max_tokens"))
        realm_generate(session, REALM_TEXT("{}"), out, sizeof out);
    else if (realm_equal(name, "too many logprobs"))
        realm_generate(session, REALM_TEXT("{\"max_tokens\":4,\"logprobs\":21}"), out, sizeof out);
    else if (realm_equal(name, "answer that is not JSON"))
        realm_respond_json(REALM_TEXT("{\"a\":"));
    else if (realm_equal(name, "two answers"))
        realm_respond_json(REALM_TEXT("{}")), realm_respond_json(REALM_TEXT("{}"));
    else if (realm_equal(name, "closed session"))
        realm_session_close(session), realm_session_length(session);
    else if (realm_equal(name, "model as session"))
        realm_session_length(model);
    else if (realm_equal(name, "unaligned ids"))
        realm_feed(session, (const int32_t *)((const char *)ids + 1), 1);
    else if (realm_equal(name, "wild floats"))
        realm_logits(session, (float *)((size_t)0x7ffffff0), 49152);
    else if (realm_equal(name, "shapes that do not fit"))
        realm_add(realm_tensor_new(1, 8), realm_tensor_new(1, 8), realm_tensor_new(2, 8));
    else if (realm_equal(name, "freed tensor")) {
        int32_t tensor = realm_tensor_new(1, 8);
        realm_tensor_free(tensor);
        realm_tensor_read(tensor, 0, floats, 8);
    } else if (realm_equal(name, "read past a tensor"))
        realm_tensor_read(realm_tensor_new(1, 4), 0, floats, 5);
    else if (realm_equal(name, "layers out of order")) { /* known when it runs: at the read */
        int32_t result = realm_tensor_new(1, 576);
        realm_attention_forward(session, 1, 3, realm_tensor_new(1, 576), realm_tensor_new(1, 192),
                                realm_tensor_new(1, 192), result);
        realm_tensor_read(result, 0, floats, 8);
    } else if (realm_equal(name, "kind of grammar"))
        realm_constrain(session, 5, "", 0);
    realm_respond_text("came through", 12);
    return 0;
}
