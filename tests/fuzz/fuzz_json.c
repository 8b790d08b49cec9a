/* tests/fuzz/fuzz_json.c: any bytes as JSON, and any bytes as text to be printed in it.
 *
 * What json_parse takes is printed by jansson and must parse to the same value; what it refuses
 * comes with a sentence. json_print_text must make a JSON string of anything. */
#include "fuzz/fuzz.h"

#include <string.h>

#include "formats/json.h"

#define MAX_BYTES ((size_t)1 << 20)
#define MAX_DEPTH 32

static void parse_again(const json_t *value)
{
    json_t *again;
    realm_error error;
    char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
    promise(text != NULL, "what was parsed can be printed");
    promise(json_parse(&again, text, strlen(text), SIZE_MAX, MAX_DEPTH, &error) == REALM_OK,
            "what was printed can be parsed");
    promise(json_equal(value, again), "it is the same value");
    json_decref(again);
    free(text);
}

static void print_and_parse(const char *bytes, size_t size)
{
    char *text = NULL;
    size_t text_size;
    FILE *stream = open_memstream(&text, &text_size);
    json_t *value;
    realm_error error;
    json_print_text(stream, bytes, size);
    fclose(stream);
    promise(json_parse(&value, text, text_size, SIZE_MAX, 1, &error) == REALM_OK,
            "any bytes are printed as a JSON string");
    promise(json_is_string(value), "and as nothing else");
    json_decref(value);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    json_t *value;
    realm_error error = {0};
    realm_status status = json_parse(&value, (const char *)data, size, MAX_BYTES, MAX_DEPTH,
                                     &error);
    if (status)
        promise(!value && error.message[0], "refusals come with a sentence");
    else
        parse_again(value);
    json_decref(value);
    print_and_parse((const char *)data, size);
    return 0;
}
