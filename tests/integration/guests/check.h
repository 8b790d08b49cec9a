/* check.h: what the test guests share: a claim that does not hold ends the request and names itself.
 *
 * A guest defines `static int32_t check(void)`, claims with CHECK and returns PASS; the test looks for
 * "ok" on the program's text. */
#ifndef CHECK_H
#define CHECK_H

#include "realm_json.h"

#define PASS 0

static int32_t check_failed(const char *claim, int32_t line)
{
    realm_text sentence = {0};
    realm_text_add_z(&sentence, "line ");
    realm_text_add_int(&sentence, line);
    realm_text_add_z(&sentence, ": ");
    realm_text_add_z(&sentence, claim);
    realm_respond_error(REALM_E_INTERNAL, sentence.data, sentence.size);
    return REALM_E_INTERNAL;
}

#define CHECK(claim)                                                                               \
    do {                                                                                           \
        if (!(claim))                                                                              \
            return check_failed(#claim, __LINE__);                                                 \
    } while (0)

/* Two numbers that must be the same; both are told if not. */
#define CHECK_EQUAL(value, expected)                                                               \
    do {                                                                                           \
        int64_t check_value = (value), check_expected = (expected);                                \
        if (check_value != check_expected) {                                                       \
            realm_text check_text = {0};                                                           \
            realm_text_add_z(&check_text, #value " is ");                                          \
            realm_text_add_int(&check_text, check_value);                                          \
            realm_text_add_z(&check_text, ", not ");                                               \
            realm_text_add_int(&check_text, check_expected);                                       \
            realm_text_add(&check_text, "", 1);                                                    \
            return check_failed(check_text.data, __LINE__);                                        \
        }                                                                                          \
    } while (0)

static int32_t check(void);

REALM_PROGRAM
{
    int32_t status = check();
    if (status == PASS)
        realm_respond_text("ok", 2);
    return status;
}

static inline realm_slice check_info(int32_t model)
{
    static char info[65536];
    int32_t size = realm_model_info(model, info, sizeof info);
    return (realm_slice){info, size > 0 ? (size_t)size : 0};
}

static inline int32_t check_info_int(int32_t model, const char *key)
{
    realm_slice value = realm_json_get(check_info(model), key);
    if (value.size && value.data[0] == '[') {
        size_t at = 0;
        value = realm_json_next(value, &at);
    }
    return (int32_t)realm_json_int(value, -1000);
}

/* "The capital of France is", whose next token any usable model knows well. */
static inline int32_t check_prompt(int32_t model, int32_t ids[64])
{
    return realm_tokenize(model, REALM_TEXT("The capital of France is"), REALM_TOKENIZE_ADD_SPECIAL,
                          ids, 64);
}

static inline int32_t check_best(const float *values, int32_t count)
{
    int32_t best = 0;
    for (int32_t i = 1; i < count; i++)
        if (values[i] > values[best])
            best = i;
    return best;
}

static inline float check_distance(float a, float b)
{
    return a > b ? a - b : b - a;
}

#endif
