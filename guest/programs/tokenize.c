/* tokenize.c: the built-in program that shows texts as a model's tokens.
 *
 * Request: {"input": [texts], "model"?: name, "add_special"?: true, "parse_special"?: true}. Streams a line a
 * text: a JSON list of ids. Answer: {"count"}. */
#include "answer.h"

static int32_t show(int32_t model, realm_slice item, int32_t flags, realm_text *line)
{
    if (!realm_json_is_string(item))
        return realm_fail(REALM_E_INVALID, "an input is not a text");
    int32_t *ids, count = tokens_of(&ids, model, realm_json_string(item), flags);
    if (count < 0)
        return count;
    line->size = 0;
    realm_text_add_z(line, "[");
    for (int32_t i = 0; i < count; i++) {
        if (i)
            realm_text_add_z(line, ",");
        realm_text_add_int(line, ids[i]);
    }
    realm_text_add_z(line, "]\n");
    if (line->failed)
        return realm_fail(REALM_E_NO_MEMORY, "the program is out of memory");
    realm_respond_text(line->data, line->size);
    return 0;
}

REALM_PROGRAM
{
    realm_slice request = realm_request();
    int32_t model = model_of(request);
    if (model < 0)
        return model;
    realm_slice input = realm_json_get(request, "input");
    if (!input.size || input.data[0] != '[')
        return realm_fail(REALM_E_INVALID, "input must be a list of texts");
    int32_t flags = 0;
    if (realm_json_true(realm_json_get(request, "add_special")))
        flags |= REALM_TOKENIZE_ADD_SPECIAL;
    if (realm_json_true(realm_json_get(request, "parse_special")))
        flags |= REALM_TOKENIZE_PARSE_SPECIAL;
    realm_text line = {0}, out = {0};
    size_t at = 0;
    int64_t count = 0;
    for (realm_slice item; (item = realm_json_next(input, &at)).size; count++) {
        int32_t status = show(model, item, flags, &line);
        if (status < 0)
            return status;
    }
    realm_text_add_z(&out, "{\"count\":");
    realm_text_add_int(&out, count);
    realm_text_add_z(&out, "}");
    realm_respond_json(out.data, out.size);
    return 0;
}
