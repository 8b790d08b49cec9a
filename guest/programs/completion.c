/* completion.c: the built-in program that goes on with a text.
 *
 * Request: {"prompt": "text" or [token ids], "model"?: name, ...} and the keys of answer.h. */
#include "answer.h"

static int32_t listed_tokens(int32_t **ids, realm_slice list)
{
    *ids = realm_alloc((list.size / 2 + 1) * sizeof **ids);
    if (!*ids)
        return realm_fail(REALM_E_NO_MEMORY, "the prompt is too long for the program's memory");
    int32_t count = 0;
    size_t at = 0;
    for (realm_slice item; (item = realm_json_next(list, &at)).size;) {
        int64_t id = realm_json_int(item, -1);
        if (id < 0 || id > INT32_MAX)
            return realm_fail(REALM_E_INVALID, "prompt must be a string or a list of token ids");
        (*ids)[count++] = (int32_t)id;
    }
    return count;
}

REALM_PROGRAM
{
    realm_slice request = realm_request();
    realm_slice name = realm_json_string(realm_json_get(request, "model"));
    int32_t model = realm_model_open(name.data, name.size);
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
