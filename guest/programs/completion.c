/* completion.c: the built-in program that goes on with a text.
 *
 * Request: {"prompt": "text" or [token ids], "model"?: name, ...} and the keys of answer.h. */
#include "answer.h"

REALM_PROGRAM
{
    realm_slice request = realm_request();
    int32_t model = model_of(request);
    if (model < 0)
        return model;
    realm_slice prompt = realm_json_get(request, "prompt");
    int32_t *ids = 0, count;
    if (realm_json_is_string(prompt))
        count = tokens_of(&ids, model, realm_json_string(prompt),
                          REALM_TOKENIZE_ADD_SPECIAL | REALM_TOKENIZE_PARSE_SPECIAL);
    else if (prompt.size && prompt.data[0] == '[')
        count = listed_tokens(&ids, prompt);
    else
        return realm_fail(REALM_E_INVALID, "prompt must be a string or a list of token ids");
    return count < 0 ? count : answer(model, request, ids, (size_t)count);
}
