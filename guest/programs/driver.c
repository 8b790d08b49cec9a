/* driver.c: what `realm bench --sandbox` measures: a session driven token by token from the guest.
 *
 * Request: {"tokens": N, "prompt": token id, "context": C, "vocabulary": V}. Feeds C tokens (at least
 * one, the first is the prompt), streams a byte (the bench's clock starts), then makes N steps, each with a
 * token that it chooses, chooses one more, as the native loop does, and streams a byte again. */
#include "realm_json.h"

/* C tokens, in pieces; no two neighbours are the same. */
static int32_t feed(int32_t session, int64_t first, int64_t count, int64_t vocabulary)
{
    static int32_t ids[1024];
    int32_t status = 0;
    for (int64_t fed = 0; fed < count && status >= 0;) {
        int32_t piece = 0;
        for (; piece < 1024 && fed < count; piece++, fed++)
            ids[piece] = (int32_t)((first + fed * 7919) % vocabulary);
        status = realm_feed(session, ids, piece);
    }
    return status;
}

REALM_PROGRAM
{
    realm_slice request = realm_request();
    int64_t n_tokens = realm_json_int(realm_json_get(request, "tokens"), 64);
    int64_t prompt = realm_json_int(realm_json_get(request, "prompt"), 0);
    int64_t context = realm_json_int(realm_json_get(request, "context"), 1);
    int64_t vocabulary = realm_json_int(realm_json_get(request, "vocabulary"), 1);
    int32_t model = realm_model_open("", 0);
    int32_t session = model < 0 ? model : realm_session_open(model, REALM_TEXT("{}"));
    if (session < 0)
        return session;
    int32_t status = feed(session, prompt, context > 1 ? context : 1, vocabulary);
    realm_respond_text(REALM_TEXT("<"));
    for (int64_t i = 0; i <= n_tokens && status >= 0; i++) {
        int32_t token = realm_sample(session, 0, 0);
        status = token < 0 || i == n_tokens ? token : realm_step(session, token);
    }
    realm_respond_text(REALM_TEXT(">"));
    return status < 0 ? status : 0;
}
