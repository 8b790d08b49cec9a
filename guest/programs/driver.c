/* driver.c: what `realm bench --sandbox` measures: a session driven token by token from the guest.
 *
 * Request: {"tokens": N, "prompt": token id, "context": C, "vocabulary": V, "candidates": K, "sampler": options,
 * "generate": options}.
 * Feeds C tokens (at least one, the first is the prompt) and makes a step, which brings guests that began at different
 * times into one batch; streams a byte (the bench's clock starts), then makes N steps, each with a token that it
 * chooses, chooses one more, as the native loop does, and streams a byte again. Without K the host's sampler chooses,
 * with options of the session's; with K (at most 256) the guest does, among the K likeliest. With options for it, it
 * calls `generate` instead of choosing tokens. */
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

/* e^x, x <= 0, to about 1e-6: a power of two times a polynomial. */
static float exp_of(float x)
{
    if (x < -80)
        return 0;
    int32_t n = (int32_t)(x * 1.44269504f - 0.5f);
    float r = x - (float)n * 0.693147181f;
    float v = 1 + r * (1 + r * (1 / 2.0f + r * (1 / 6.0f + r * (1 / 24.0f + r / 120))));
    union {
        uint32_t bits;
        float value;
    } power = {.bits = (uint32_t)(127 + n) << 23};
    return v * power.value;
}

/* A number in 0 .. 1. */
static float draw(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (float)(*state >> 40) / 16777216.0f;
}

#define CANDIDATES_MOST 256
#define TEMPERATURE     0.8f /* as the native sampler's of `realm bench --candidates` */
#define TOP_P           0.95f

/* A token of the count likeliest: of those which have TOP_P of their weight together, by their weights at
 * TEMPERATURE. */
static int32_t choose(int32_t session, int32_t count, uint64_t *state)
{
    static int32_t ids[CANDIDATES_MOST];
    static float values[CANDIDATES_MOST], weights[CANDIDATES_MOST];
    int32_t n = realm_top_logits(session, count, ids, values), kept = 0;
    float total = 0, mass = 0;
    if (n <= 0)
        return n;
    for (int32_t i = 0; i < n; i++)
        total += weights[i] = exp_of(values[i] - values[0]);
    while (kept < n && mass < TOP_P * total)
        mass += weights[kept++];
    total = 0;
    for (int32_t i = 0; i < kept; i++)
        total += weights[i] = exp_of((values[i] - values[0]) / TEMPERATURE);
    float left = draw(state) * total;
    int32_t i = 0;
    while (i + 1 < kept && (left -= weights[i]) >= 0)
        i++;
    return ids[i];
}

REALM_PROGRAM
{
    realm_slice request = realm_request();
    int64_t n_tokens = realm_json_int(realm_json_get(request, "tokens"), 64);
    int64_t prompt = realm_json_int(realm_json_get(request, "prompt"), 0);
    int64_t context = realm_json_int(realm_json_get(request, "context"), 1);
    int64_t vocabulary = realm_json_int(realm_json_get(request, "vocabulary"), 1);
    int64_t candidates = realm_json_int(realm_json_get(request, "candidates"), 0);
    candidates = candidates > CANDIDATES_MOST ? CANDIDATES_MOST : candidates;
    uint64_t state = (uint64_t)prompt;
    int32_t model = realm_model_open("", 0);
    realm_slice sampler = realm_json_get(request, "sampler");
    int32_t session = model < 0 ? model : realm_session_open(model, sampler.data, sampler.size);
    if (session < 0)
        return session;
    int32_t status = feed(session, prompt, context > 1 ? context : 1, vocabulary);
    if (status >= 0)
        status = realm_step(session, -1);
    realm_respond_text(REALM_TEXT("<"));
    realm_slice generate = realm_json_get(request, "generate");
    if (status >= 0 && generate.size > 0) {
        static char result[1024];
        status = realm_generate(session, generate.data, generate.size, result, sizeof result);
        n_tokens = -1;
    }
    for (int64_t i = 0; i <= n_tokens && status >= 0; i++) {
        int32_t token = candidates > 0 ? choose(session, (int32_t)candidates, &state)
                                       : realm_sample(session, 0, 0);
        status = token < 0 || i == n_tokens ? token : realm_step(session, token);
    }
    realm_respond_text(REALM_TEXT(">"));
    return status < 0 ? status : 0;
}
