/* session.c: sessions step by step: feeding, stepping, forks, logits, samplers, grammars, embeddings. */
#include "check.h"

static float logits[1 << 19], other[1 << 19];

static int32_t check_sampling(int32_t model, int32_t session, int32_t n_vocab, int32_t best)
{
    static int32_t top[20];
    static float values[20];
    CHECK_EQUAL(realm_logits(session, logits, 1 << 19), n_vocab);
    CHECK_EQUAL(check_best(logits, n_vocab), best);
    CHECK_EQUAL(realm_logits(session, other, 2), n_vocab);
    CHECK(other[0] == logits[0] && other[1] == logits[1] && other[2] == 0);
    CHECK_EQUAL(realm_top_logits(session, 20, top, values), 20);
    for (int32_t i = 0; i < 20; i++)
        CHECK(values[i] == logits[top[i]] && (i == 0 || values[i] <= values[i - 1]));
    CHECK_EQUAL(top[0], best);

    CHECK_EQUAL(realm_sample(session, "", 0), best);
    float minus_infinity = -__builtin_inff(), plus = 1000;
    CHECK_EQUAL(realm_bias(session, top, &minus_infinity, 1), 0);
    CHECK_EQUAL(realm_sample(session, "", 0), top[1]);
    CHECK_EQUAL(realm_bias(session, &top[7], &plus, 1), 0); /* replaces the one before */
    CHECK_EQUAL(realm_sample(session, "", 0), top[7]);
    CHECK_EQUAL(realm_bias(session, &n_vocab, &plus, 1), REALM_E_INVALID);
    CHECK_EQUAL(realm_bias(session, 0, 0, 0), 0);
    CHECK_EQUAL(realm_sample(session, REALM_TEXT("{\"temperature\":5,\"top_k\":1,\"seed\":3}")),
                best);
    CHECK_EQUAL(realm_sample(session, REALM_TEXT("{\"temperature\":5,\"top_k\":0,\"top_p\":0}")),
                best);
    CHECK_EQUAL(realm_sample(session, REALM_TEXT("{\"temperature\":0}")), best);
    /* Neither logits nor bias change what the model said. */
    CHECK_EQUAL(realm_logits(session, other, 1 << 19), n_vocab);
    for (int32_t i = 0; i < n_vocab; i++)
        CHECK(other[i] == logits[i]);
    (void)model;
    return PASS;
}

static int32_t check_grammars(int32_t model, const int32_t *ids, int32_t count)
{
    static char text[256];
    int32_t session = realm_session_open(model, REALM_TEXT("{\"temperature\":0}"));
    CHECK(session > 0);
    CHECK_EQUAL(realm_constrain(session, REALM_CONSTRAIN_REGEX, REALM_TEXT("[0-9]{3}")), 0);
    CHECK_EQUAL(realm_feed(session, ids, (size_t)count), count);
    size_t at = 0;
    for (int32_t i = 0; i < 3 && at < 3; i++) {
        int32_t token = realm_step(session, -1);
        CHECK(token >= 0);
        at += (size_t)realm_decode_token(model, token, text + at, sizeof text - at);
    }
    CHECK_EQUAL((int64_t)at, 3);
    for (size_t i = 0; i < 3; i++)
        CHECK(text[i] >= '0' && text[i] <= '9');
    CHECK_EQUAL(realm_constrain(session, REALM_CONSTRAIN_REGEX, REALM_TEXT("(")), REALM_E_INVALID);
    CHECK_EQUAL(realm_constrain(session, REALM_CONSTRAIN_JSON_SCHEMA, REALM_TEXT("{\"type\":")),
                REALM_E_INVALID);
    CHECK_EQUAL(
        realm_constrain(session, REALM_CONSTRAIN_LARK, REALM_TEXT("start: \"yes\" | \"no\"")), 0);
    CHECK_EQUAL(
        realm_constrain(session, REALM_CONSTRAIN_JSON_SCHEMA, REALM_TEXT("{\"type\":\"integer\"}")),
        0);
    CHECK_EQUAL(realm_constrain(session, REALM_CONSTRAIN_JSON_OBJECT, "", 0), 0);
    int32_t token = realm_sample(session, "", 0);
    CHECK(token >= 0);
    CHECK(realm_decode_token(model, token, text, sizeof text) > 0 &&
          (text[0] == '{' || text[0] <= ' '));
    CHECK_EQUAL(realm_constrain(session, REALM_CONSTRAIN_NONE, "", 0), 0);
    CHECK_EQUAL(realm_session_close(session), 0);
    return PASS;
}

static int32_t check_embeddings(int32_t model, const int32_t *ids, int32_t count)
{
    int32_t n_embd = check_info_int(model, "n_embd");
    CHECK_EQUAL(realm_embed(model, ids, (size_t)count,
                            REALM_TEXT("{\"pooling\":\"mean\",\"normalize\":true}"), logits,
                            1 << 19),
                n_embd);
    float sum = 0;
    for (int32_t i = 0; i < n_embd; i++)
        sum += logits[i] * logits[i];
    CHECK(check_distance(sum, 1) < 1e-3f);
    CHECK_EQUAL(realm_embed(model, ids, (size_t)count, REALM_TEXT("{\"pooling\":\"first\"}"),
                            logits, 1 << 19),
                n_embd);
    CHECK_EQUAL(realm_embed(model, ids, 1, REALM_TEXT("{\"pooling\":\"last\"}"), other, 1 << 19),
                n_embd);
    for (int32_t i = 0; i < n_embd; i++)
        CHECK(logits[i] == other[i]); /* the first of many sees itself alone */
    CHECK_EQUAL(realm_embed(model, ids, 0, "", 0, logits, 1 << 19), REALM_E_INVALID);
    return PASS;
}

static int32_t check(void)
{
    static int32_t ids[64];
    int32_t model = realm_model_open("", 0);
    int32_t n_vocab = check_info_int(model, "n_vocab");
    int32_t count = check_prompt(model, ids);
    int32_t session = realm_session_open(model, "", 0);
    CHECK(session > 0 && session != model);
    CHECK_EQUAL(realm_session_length(session), 0);
    CHECK_EQUAL(realm_logits(session, logits, 1 << 19), REALM_E_NOT_FOUND);
    CHECK_EQUAL(realm_sample(session, "", 0), REALM_E_NOT_FOUND);
    CHECK_EQUAL(realm_feed(session, &n_vocab, 1), REALM_E_INVALID);
    CHECK_EQUAL(realm_feed(session, ids, (size_t)count), count);
    CHECK_EQUAL(realm_session_length(session), count);
    int32_t best = realm_sample(session, "", 0);
    CHECK(best >= 0);
    int32_t status = check_sampling(model, session, n_vocab, best);
    if (status)
        return status;

    /* A fork goes on as the first does, on its own. */
    int32_t fork = realm_session_fork(session);
    CHECK(fork > 0 && fork != session);
    CHECK_EQUAL(realm_session_length(fork), count);
    CHECK_EQUAL(realm_step(fork, -1), best);
    CHECK_EQUAL(realm_session_length(fork), count + 1);
    CHECK_EQUAL(realm_session_length(session), count);
    int32_t second = realm_sample(fork, "", 0);
    CHECK_EQUAL(realm_step(session, best), best);
    CHECK_EQUAL(realm_sample(session, "", 0), second);
    CHECK_EQUAL(realm_step(session, n_vocab), REALM_E_INVALID);

    /* Truncating takes it back, and the same again is the same. */
    CHECK_EQUAL(realm_session_truncate(session, count + 2), REALM_E_INVALID);
    CHECK_EQUAL(realm_session_truncate(session, count - 1), 0);
    CHECK_EQUAL(realm_session_length(session), count - 1);
    CHECK_EQUAL(realm_logits(session, other, 1 << 19), REALM_E_NOT_FOUND);
    CHECK_EQUAL(realm_feed(session, ids + count - 1, 1), count);
    CHECK_EQUAL(realm_logits(session, other, 1 << 19), n_vocab);
    for (int32_t i = 0; i < n_vocab; i++)
        CHECK(other[i] == logits[i]);

    /* Two steps at once. */
    int32_t both[2] = {session, fork};
    CHECK_EQUAL(realm_wait_any(both, 2, 0), REALM_E_NOT_FOUND);
    CHECK_EQUAL(realm_step_begin(session, -1), 0);
    CHECK_EQUAL(realm_step_begin(fork, -1), 0);
    CHECK_EQUAL(realm_session_length(session), REALM_E_BUSY);
    CHECK_EQUAL(realm_step(session, -1), REALM_E_BUSY);
    int32_t first = realm_wait_any(both, 2, -1), last = realm_wait_any(both, 2, 60000);
    CHECK(first + last == 1 && (first == 0 || first == 1));
    CHECK_EQUAL(realm_wait_any(both, 2, -1), REALM_E_NOT_FOUND);
    CHECK_EQUAL(realm_step_result(session), best);
    CHECK_EQUAL(realm_step_result(fork), second);
    CHECK_EQUAL(realm_session_length(session), count + 1);

    CHECK_EQUAL(realm_adapter_use(session, "", 0), REALM_E_BUSY);
    CHECK_EQUAL(realm_session_close(session), 0);
    CHECK_EQUAL(realm_session_close(fork), 0);

    int32_t small = realm_session_open(
        model, REALM_TEXT("{\"context\":4,\"priority\":\"batch\",\"temperature\":0}"));
    CHECK(small > 0);
    CHECK_EQUAL(realm_adapter_use(small, REALM_TEXT("no such adapter")), REALM_E_NOT_FOUND);
    CHECK_EQUAL(realm_adapter_use(small, "", 0), 0);
    CHECK_EQUAL(realm_feed(small, ids, 5), REALM_E_CONTEXT_FULL);
    CHECK_EQUAL(realm_feed(small, ids, 4), 4);
    CHECK_EQUAL(realm_step(small, -1), REALM_E_CONTEXT_FULL);
    CHECK_EQUAL(realm_session_close(small), 0);

    status = check_grammars(model, ids, count);
    return status ? status : check_embeddings(model, ids, count);
}
