/* cli/cmd_inspect.c: `realm inspect FILE`: what a model file holds and the memory it will need.
 *
 * Reads metadata only: the weights are mapped and not touched, so a file of any size is told in
 * milliseconds. */
#include <stdio.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/inspect.h"
#include "cli/options.h"

#define USUAL_CONTEXT_TOKENS 4096  /* when the file does not say what its model was trained for */
#define MOST_LAYERS          65536 /* so that a lie about layers costs no time */

/* "llama.block_count" from "block_count", as a key of this model's architecture. */
typedef struct model_key {
    char text[256];
} model_key;

static model_key key_of(const inspect_report *report, const char *leaf)
{
    model_key key;
    int size = report->architecture.size < 100 ? (int)report->architecture.size : 100;
    snprintf(key.text, sizeof key.text, "%.*s.%s", size, report->architecture.data, leaf);
    return key;
}

static realm_status get(const inspect_report *report, const char *leaf, uint64_t *out,
                        realm_error *error)
{
    model_key key = key_of(report, leaf);
    uint32_t number;
    realm_status status = gguf_get_u32(report->g, key.text, &number, error);
    if (!status)
        *out = number;
    return status;
}

/* A number that may be given once for all layers or as an array, one for each. */
static realm_status get_of_layer(const inspect_report *report, const char *leaf, uint64_t layer,
                                 uint64_t *out, realm_error *error)
{
    model_key key = key_of(report, leaf);
    const gguf_value *value = gguf_find(report->g, key.text);
    if (!value || value->type != GGUF_ARRAY)
        return get(report, leaf, out, error);
    gguf_type type = value->array.type;
    if (type == GGUF_STRING || type == GGUF_F32 || type == GGUF_F64 || layer >= value->array.count)
        return realm_fail(error, REALM_CORRUPT, "metadata '%s' has no number for layer %" PRIu64,
                          key.text, layer);
    int64_t number = gguf_array_int(value, layer);
    if (number < 0 || number > UINT32_MAX)
        return realm_fail(error, REALM_CORRUPT, "metadata '%s' is %" PRId64 " for layer %" PRIu64,
                          key.text, number, layer);
    *out = (uint64_t)number;
    return REALM_OK;
}

/* F16 bytes of one token's key and value in one layer. */
static realm_status layer_bytes(const inspect_report *report, uint64_t layer, uint64_t *bytes,
                                realm_error *error)
{
    uint64_t heads = 0, kv_heads, width = 0, key_size, value_size;
    realm_status status = get_of_layer(report, "attention.head_count", layer, &heads, error);
    if (status)
        return status;
    kv_heads = heads;
    status = get_of_layer(report, "attention.head_count_kv", layer, &kv_heads, error);
    if (status && status != REALM_NOT_FOUND)
        return status;
    get(report, "embedding_length", &width, NULL);
    key_size = value_size = heads ? width / heads : 0;
    status = get(report, "attention.key_length", &key_size, error);
    if (status && (status != REALM_NOT_FOUND || !key_size))
        return status;
    status = get(report, "attention.value_length", &value_size, error);
    if (status && (status != REALM_NOT_FOUND || !value_size))
        return status;
    if (__builtin_mul_overflow(kv_heads, 2 * (key_size + value_size), bytes))
        return realm_fail(error, REALM_CORRUPT,
                          "the keys and values of layer %" PRIu64 " pass 2^64 bytes", layer);
    return REALM_OK;
}

static realm_status measure_kv(inspect_report *report, realm_error *error)
{
    uint64_t layers = 0;
    if (!report->architecture.size)
        return realm_fail(error, REALM_NOT_FOUND, "the file does not name an architecture");
    realm_status status = get(report, "block_count", &layers, error);
    if (status)
        return status;
    if (layers > MOST_LAYERS)
        return realm_fail(error, REALM_CORRUPT, "%" PRIu64 " layers are more than %d", layers,
                          MOST_LAYERS);
    for (uint64_t layer = 0; layer < layers; layer++) {
        uint64_t bytes;
        status = layer_bytes(report, layer, &bytes, error);
        if (status)
            return status;
        if (__builtin_add_overflow(report->kv_bytes_per_token, bytes, &report->kv_bytes_per_token))
            return realm_fail(error, REALM_CORRUPT, "keys and values pass 2^64 bytes a token");
    }
    if (__builtin_mul_overflow(report->kv_bytes_per_token, report->context_tokens,
                               &report->kv_bytes))
        return realm_fail(error, REALM_CORRUPT, "keys and values pass 2^64 bytes");
    return REALM_OK;
}

static void count_types(inspect_report *report)
{
    for (size_t i = 0; i < gguf_tensor_count(report->g); i++) {
        const gguf_tensor *t = gguf_tensor_at(report->g, i);
        uint64_t parameters = t->dims[0] * t->dims[1] * t->dims[2] * t->dims[3];
        report->parameters += parameters;
        inspect_type *type = &report->types[t->type];
        type->tensors++;
        type->parameters += parameters;
        type->bytes += t->size;
    }
}

/* context 0: as long as the model can. */
static void make_report(inspect_report *report, const char *path, const gguf *g, int64_t context)
{
    *report = (inspect_report){.path = path, .g = g};
    gguf_get_string(g, "general.architecture", &report->architecture, NULL);
    count_types(report);
    report->context_tokens = USUAL_CONTEXT_TOKENS;
    if (context)
        report->context_tokens = (uint64_t)context;
    else
        get(report, "context_length", &report->context_tokens, NULL);
    report->kv_known = measure_kv(report, &report->kv_why) == REALM_OK;
    report->total_bytes = gguf_tensor_bytes(g);
    if (report->kv_known &&
        __builtin_add_overflow(report->total_bytes, report->kv_bytes, &report->total_bytes)) {
        report->kv_known = 0;
        realm_fail(&report->kv_why, REALM_CORRUPT, "weights, keys and values pass 2^64 bytes");
    }
}

int cmd_inspect(int argc, char **argv)
{
    const char *path = NULL;
    int json = 0;
    int64_t context = 0;
    const option options[] = {
        {.name = "json",
         .kind = OPTION_FLAG,
         .out = &json,
         .help = "print one JSON object with everything"},
        {.name = "context",
         .letter = 'c',
         .kind = OPTION_INT,
         .out = &context,
         .value = "N",
         .min = 1,
         .max = 1e9,
         .help = "tell the memory of a context of N tokens (default: the model's own length)"},
        {0}};
    const options_positional positionals[] = {
        {.name = "FILE",
         .out = &path,
         .required = 1,
         .help = "a GGUF file; of a model in shards the first (NAME-00001-of-0000N.gguf)"},
        {0}};
    const options_command command = {
        .name = "inspect",
        .summary = "show what a GGUF file holds and the memory it will need",
        .options = options,
        .positionals = positionals,
        .notes =
            "The memory is that of the weights as in the file, and of keys and values as F16.\n",
    };
    int code = options_parse(&command, argc, argv);
    if (code != OPTIONS_GO_ON)
        return code;

    gguf *g;
    realm_error error;
    if (gguf_open(&g, path, &error))
        return command_failed("inspect", &error);
    inspect_report report;
    make_report(&report, path, g, context);
    if (json)
        inspect_json(&report);
    else
        inspect_print(&report);
    gguf_close(g);
    return EXIT_OK;
}
