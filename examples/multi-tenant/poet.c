/* poet.c: tenant "poet" samples for itself: temperature and top-p over 64 candidates, in the guest.
 *
 * The host gives the 64 largest logits and takes one token a step; how to choose is this file's
 * business alone. Random numbers come from the request's seed, so a run can be repeated. */
#include "realm_json.h"

#define CANDIDATES 64

/* e^x for x <= 0, to about 1e-6: enough to weigh candidates, and no libm is needed. */
static float exp_negative(float x)
{
    if (x < -80)
        return 0;
    float scaled = x * 1.44269504f;
    int whole = (int)scaled;
    float f = (scaled - (float)whole) * 0.693147181f;
    float power = 1 +
                  f * (1 + f * (0.5f + f * (0.166666667f + f * (0.0416666667f + f * 0.00833333f))));
    while (whole++ < 0)
        power *= 0.5f;
    return power;
}

static int32_t choose(int32_t session, float temperature, float top_p)
{
    int32_t ids[CANDIDATES];
    float values[CANDIDATES];
    int32_t n = realm_top_logits(session, CANDIDATES, ids, values);
    if (n <= 0)
        return n;
    float weights[CANDIDATES], total = 0;
    for (int32_t i = 0; i < n; i++)
        total += weights[i] = exp_negative((values[i] - values[0]) / temperature);
    float kept = 0;
    int32_t count = 0;
    while (count < n && kept < top_p * total)
        kept += weights[count++];
    float draw = (float)((uint64_t)realm_random() >> 40) / 16777216.0f * kept;
    for (int32_t i = 0; i < count; i++)
        if ((draw -= weights[i]) < 0)
            return ids[i];
    return ids[0];
}

REALM_PROGRAM
{
    static int32_t prompt[512];
    realm_slice text = realm_json_string(realm_json_get(realm_request(), "prompt"));
    int32_t model = realm_model_open("", 0);
    if (model < 0)
        return model;
    static char info[8192];
    int32_t info_size = realm_model_info(model, info, sizeof info);
    if (info_size < 0 || (size_t)info_size > sizeof info)
        return REALM_E_TOO_LARGE;
    realm_slice ends = realm_json_get((realm_slice){info, (size_t)info_size}, "ends");

    int32_t count = realm_tokenize(model, text.data, text.size, REALM_TOKENIZE_ADD_SPECIAL, prompt,
                                   512);
    if (count < 0 || count > 512)
        return realm_fail(REALM_E_TOO_LARGE, "the poet reads 512 tokens at most");
    int32_t session = realm_session_open(model, REALM_TEXT("{}"));
    int32_t status = session < 0 ? session : realm_feed(session, prompt, (size_t)count);
    for (int i = 0; i < 24 && status >= 0; i++) {
        int32_t token = choose(session, 0.8f, 0.95f);
        if (token < 0)
            return token;
        size_t at = 0;
        for (realm_slice end; (end = realm_json_next(ends, &at)).size;)
            if (realm_json_int(end, -1) == token)
                return 0;
        char piece[256];
        int32_t size = realm_decode_token(model, token, piece, sizeof piece);
        if (size > 0)
            realm_respond_text(piece, (size_t)size);
        status = realm_step(session, token);
    }
    return status < 0 ? status : 0;
}
