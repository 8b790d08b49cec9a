/* embeddings.c: the built-in program that turns texts into vectors.
 *
 * Request: {"input": [text or [token ids], ...], "model"?: name, "pooling"?: "mean" (default), "last" or
 * "first"}. Streams a line of base64 a text: the vector's floats, little-endian, of length 1. Answer: {"count"}. */
#include "answer.h"

/* Three bytes are four letters; what is missing of the last three is '='. */
static void add_base64(realm_text *out, const uint8_t *bytes, size_t size)
{
    static const char letters[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < size; i += 3) {
        size_t left = size - i;
        uint32_t three = (uint32_t)bytes[i] << 16 | (left > 1 ? (uint32_t)bytes[i + 1] << 8 : 0) |
                         (left > 2 ? bytes[i + 2] : 0);
        char four[4] = {letters[three >> 18], letters[three >> 12 & 63],
                        left > 1 ? letters[three >> 6 & 63] : '=',
                        left > 2 ? letters[three & 63] : '='};
        realm_text_add(out, four, 4);
    }
    realm_text_add_z(out, "\n");
}

static int32_t embed_one(int32_t model, realm_slice item, const realm_text *options, float *vector,
                         size_t room, realm_text *line)
{
    int32_t *ids = 0, count;
    if (realm_json_is_string(item))
        count = tokens_of(&ids, model, realm_json_string(item),
                          REALM_TOKENIZE_ADD_SPECIAL | REALM_TOKENIZE_PARSE_SPECIAL);
    else
        count = listed_tokens(&ids, item);
    if (count < 0)
        return count;
    if (!count)
        return realm_fail(REALM_E_INVALID, "an input is empty");
    int32_t size = realm_embed(model, ids, (size_t)count, options->data, options->size, vector,
                               room);
    if (size == REALM_E_CONTEXT_FULL)
        return too_long(model, (size_t)count, 0);
    if (size < 0)
        return size;
    if ((size_t)size > room)
        return realm_fail(REALM_E_TOO_LARGE, "the model's vectors are too long for this program");
    line->size = 0;
    add_base64(line, (const uint8_t *)vector, (size_t)size * sizeof *vector);
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
        return realm_fail(REALM_E_INVALID,
                          "input must be a list of texts or of lists of token ids");
    realm_text options = {0}, line = {0};
    realm_text_add_z(&options, "{\"normalize\":true");
    pass(&options, request, "pooling");
    realm_text_add_z(&options, "}");
    size_t room = 16384, at = 0;
    float *vector = realm_alloc(room * sizeof *vector);
    if (!vector || options.failed)
        return realm_fail(REALM_E_NO_MEMORY, "the program is out of memory");
    int64_t count = 0;
    for (realm_slice item; (item = realm_json_next(input, &at)).size; count++) {
        int32_t status = embed_one(model, item, &options, vector, room, &line);
        if (status < 0)
            return status;
    }
    realm_text out = {0};
    realm_text_add_z(&out, "{\"count\":");
    realm_text_add_int(&out, count);
    realm_text_add_z(&out, "}");
    realm_respond_json(out.data, out.size);
    return 0;
}
