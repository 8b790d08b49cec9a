/* text.c: models, tokens, templates. Needs a model with a chat template. */
#include "check.h"

static int32_t check(void)
{
    static int32_t ids[64], again[64];
    static char text[4096];
    int32_t model = realm_model_open("", 0);
    CHECK(model > 0);
    CHECK_EQUAL(realm_model_open("", 0), model);
    CHECK_EQUAL(realm_model_open(REALM_TEXT("no such model")), REALM_E_NOT_FOUND);

    realm_slice info = check_info(model);
    static const char *const keys[] = {
        "name",    "architecture", "n_vocab", "n_context", "n_embd",    "n_layers",
        "n_heads", "n_kv_heads",   "n_ff",    "key_dim",   "value_dim", "norm_epsilon",
        "bos",     "eos",          "eot",     "adds_bos",  "ends",      "has_chat_template"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (!realm_json_get(info, keys[i]).size)
            return check_failed(keys[i], __LINE__);
    CHECK(realm_model_info(model, text, 1) == (int32_t)info.size && text[0] == '{' && text[1] == 0);
    int32_t n_vocab = check_info_int(model, "n_vocab");
    realm_slice name = realm_json_string(realm_json_get(info, "name"));
    CHECK_EQUAL(realm_model_open(name.data, name.size), model);

    int32_t count = check_prompt(model, ids);
    CHECK(count > 3);
    CHECK_EQUAL(realm_tokenize(model, REALM_TEXT("The capital of France is"),
                               REALM_TOKENIZE_ADD_SPECIAL, again, 2),
                count);
    CHECK(again[0] == ids[0] && again[1] == ids[1] && again[2] == 0);
    CHECK_EQUAL(realm_tokenize(model, "", 0, 0, ids, 64), 0);
    CHECK_EQUAL(
        realm_tokenize(model, REALM_TEXT("<|im_start|>"), REALM_TOKENIZE_PARSE_SPECIAL, again, 64),
        1);
    CHECK(realm_tokenize(model, REALM_TEXT("<|im_start|>"), 0, ids, 64) > 1);

    /* Tokens say their bytes back, also of halves of characters; control tokens say nothing. */
    static const char hard[] = "a \xF0\x9F\xA6\x99\n";
    count = realm_tokenize(model, hard, sizeof hard - 1, 0, ids, 64);
    size_t at = 0;
    for (int32_t i = 0; i < count; i++) {
        int32_t size = realm_decode_token(model, ids[i], text + at, sizeof text - at);
        CHECK(size >= 0);
        at += (size_t)size;
    }
    CHECK_EQUAL((int64_t)at, (int64_t)sizeof hard - 1);
    for (size_t i = 0; i < at; i++)
        CHECK(text[i] == hard[i]);
    CHECK_EQUAL(realm_decode_token(model, again[0], text, sizeof text), 0);
    CHECK_EQUAL(realm_decode_token(model, n_vocab, text, sizeof text), REALM_E_INVALID);
    CHECK_EQUAL(realm_decode_token(model, -1, text, sizeof text), REALM_E_INVALID);

    static const char chat[] =
        "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"add_generation_prompt\":true}";
    int32_t size = realm_chat_template(model, chat, sizeof chat - 1, text, sizeof text);
    CHECK(size > 10 && size < (int32_t)sizeof text && text[0] == '<');
    CHECK_EQUAL(realm_chat_template(model, chat, sizeof chat - 1, 0, 0), size);
    CHECK_EQUAL(realm_chat_template(model, REALM_TEXT("{\"messages\":7}"), text, sizeof text),
                REALM_E_INVALID);
    CHECK_EQUAL(realm_chat_template(model, REALM_TEXT("not json"), text, sizeof text),
                REALM_E_INVALID);
    return PASS;
}
