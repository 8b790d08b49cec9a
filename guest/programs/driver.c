/* driver.c: what `realm bench --sandbox` measures: a session driven token by token from the guest.
 *
 * Request: {"tokens": N, "prompt": token id}. Feeds one token, streams a byte (the bench's clock
 * starts), then N times chooses a token and steps, and streams a byte again. */
#include "realm_json.h"

REALM_PROGRAM
{
    realm_slice request = realm_request();
    int64_t n_tokens = realm_json_int(realm_json_get(request, "tokens"), 64);
    int32_t prompt = (int32_t)realm_json_int(realm_json_get(request, "prompt"), 0);
    int32_t model = realm_model_open("", 0);
    int32_t session = model < 0 ? model : realm_session_open(model, REALM_TEXT("{}"));
    if (session < 0)
        return session;
    int32_t status = realm_feed(session, &prompt, 1);
    realm_respond_text(REALM_TEXT("<"));
    for (int64_t i = 0; i < n_tokens && status >= 0; i++) {
        int32_t token = realm_sample(session, 0, 0);
        status = token < 0 ? token : realm_step(session, token);
    }
    realm_respond_text(REALM_TEXT(">"));
    return status < 0 ? status : 0;
}
