/* generate.c: the native loop: results that are kept, waking, stops, log-probabilities, ends. */
#include "check.h"

static char result[65536], again[65536];

static realm_slice generate(int32_t session, const char *options, size_t size)
{
    int32_t count = realm_generate(session, options, size, result, sizeof result);
    return (realm_slice){result, count > 0 ? (size_t)count : 0};
}

static int32_t check(void)
{
    static int32_t ids[64];
    int32_t model = realm_model_open("", 0);
    int32_t count = check_prompt(model, ids);
    int32_t session = realm_session_open(model, "", 0);
    CHECK_EQUAL(realm_generate(session, REALM_TEXT("{\"max_tokens\":4}"), result, sizeof result),
                REALM_E_INVALID);
    CHECK_EQUAL(realm_feed(session, ids, (size_t)count), count);
    int32_t fork = realm_session_fork(session);

    realm_slice whole = generate(session,
                                 REALM_TEXT("{\"max_tokens\":8,\"ignore_eos\":true,\"logprobs\":2,"
                                            "\"return_tokens\":true,\"return_text\":true}"));
    CHECK(whole.size > 0);
    CHECK(realm_equal(realm_json_string(realm_json_get(whole, "finish_reason")), "length"));
    CHECK_EQUAL(realm_json_int(realm_json_get(whole, "n_tokens"), -1), 8);
    CHECK_EQUAL(realm_session_length(session), count + 8);
    realm_slice tokens = realm_json_get(whole, "tokens");
    int32_t expected[8];
    size_t at = 0, n = 0;
    for (realm_slice token; (token = realm_json_next(tokens, &at)).size; n++) {
        CHECK(n < 8);
        expected[n] = (int32_t)realm_json_int(realm_json_get(token, "id"), -1);
        CHECK(realm_json_get(token, "logprob").data[0] == '-');
        size_t place = 0, n_top = 0;
        while (realm_json_next(realm_json_get(token, "top"), &place).size)
            n_top++;
        CHECK_EQUAL((int64_t)n_top, 2);
    }
    CHECK_EQUAL((int64_t)n, 8);

    /* The result is kept. */
    CHECK_EQUAL(realm_generate(session, "", 0, again, 16), (int32_t)whole.size);
    CHECK_EQUAL(realm_generate(session, "", 0, again, sizeof again), (int32_t)whole.size);
    for (size_t i = 0; i < whole.size; i++)
        CHECK(again[i] == whole.data[i]);
    CHECK_EQUAL(realm_session_length(session), count + 8);

    /* In parts: the same tokens. */
    n = 0;
    for (int32_t part = 0; part < 3; part++) {
        realm_slice some = generate(
            fork, REALM_TEXT("{\"max_tokens\":8,\"ignore_eos\":true,\"wake_every\":3,"
                             "\"return_tokens\":true}"));
        CHECK(some.size > 0);
        CHECK(realm_equal(realm_json_string(realm_json_get(some, "finish_reason")),
                          part < 2 ? "wake" : "length"));
        CHECK_EQUAL(realm_json_int(realm_json_get(some, "n_tokens"), -1), part < 2 ? 3 : 2);
        at = 0;
        for (realm_slice token; (token = realm_json_next(realm_json_get(some, "tokens"), &at)).size;
             n++)
            CHECK_EQUAL(realm_json_int(realm_json_get(token, "id"), -1), expected[n]);
    }
    CHECK_EQUAL((int64_t)n, 8);

    /* A stop text ends it and is not part of the answer. */
    CHECK_EQUAL(realm_session_truncate(fork, count - 1), 0);
    CHECK_EQUAL(realm_feed(fork, ids + count - 1, 1), count);
    realm_slice held = generate(fork,
                                REALM_TEXT("{\"max_tokens\":8,\"stop\":[\"Paris\",\"zzz\"]}"));
    CHECK(realm_equal(realm_json_string(realm_json_get(held, "finish_reason")), "stop"));
    realm_slice text = realm_json_string(realm_json_get(held, "text"));
    CHECK(text.size <= 1);
    return PASS;
}
