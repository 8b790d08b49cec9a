/* model/synthetic_shapes.c: the shapes there are, and what a user's name for a model means.
 *
 * A row a shape, from the model's published configuration (config.json of its repository on
 * Hugging Face); "tiny" is for tests. A new shape is a new row. Rotary scaling is left out: it
 * changes angles, not work. */
#include <stdio.h>
#include <string.h>

#include "model/synthetic.h"

// clang-format off
static const synthetic_shape shapes[] = {
    /*                                 layers width heads  kv  head     ffn   vocab context       rope epsilon window tied */
    {"tiny",           "llama",             2,  256,    4,  2,   64,    768,    512,    512,    10000, 1e-5f,   0, 0},
    {"tiny-qwen2",     "qwen2",             2,  256,    4,  2,   64,    768,    512,    512,    10000, 1e-6f,   0, 1},
    {"tiny-qwen3",     "qwen3",             2,  256,    4,  2,  128,    768,    512,    512,    10000, 1e-6f,   0, 1},
    {"tiny-gemma3",    "gemma3",            6,  320,    4,  1,  128,    768,    512,    512,  1000000, 1e-6f, 128, 1},
    {"tiny-phi3",      "phi3",              2,  256,    4,  4,   64,    768,    512,    512,    10000, 1e-5f,   0, 0},
    {"smol-135m",      "llama",            30,  576,    9,  3,   64,   1536,  49152,   8192,   100000, 1e-5f,   0, 1},
    {"gemma-3-270m",   "gemma3",           18,  640,    4,  1,  256,   2048, 262144,  32768,  1000000, 1e-6f, 512, 1},
    {"qwen2.5-0.5b",   "qwen2",            24,  896,   14,  2,   64,   4864, 151936,  32768,  1000000, 1e-6f,   0, 1},
    {"qwen3-0.6b",     "qwen3",            28, 1024,   16,  8,  128,   3072, 151936,  40960,  1000000, 1e-6f,   0, 1},
    {"gemma-3-1b",     "gemma3",           26, 1152,    4,  1,  256,   6912, 262144,  32768,  1000000, 1e-6f, 512, 1},
    {"tinyllama-1b",   "llama",            22, 2048,   32,  4,   64,   5632,  32000,   2048,    10000, 1e-5f,   0, 0},
    {"llama-3.2-1b",   "llama",            16, 2048,   32,  8,   64,   8192, 128256, 131072,   500000, 1e-5f,   0, 1},
    {"qwen2.5-1.5b",   "qwen2",            28, 1536,   12,  2,  128,   8960, 151936,  32768,  1000000, 1e-6f,   0, 1},
    {"llama-3.2-3b",   "llama",            28, 3072,   24,  8,  128,   8192, 128256, 131072,   500000, 1e-5f,   0, 1},
    {"phi-3-mini",     "phi3",             32, 3072,   32, 32,   96,   8192,  32064,   4096,    10000, 1e-5f,   0, 0},
    {"qwen3-4b",       "qwen3",            36, 2560,   32,  8,  128,   9728, 151936,  40960,  1000000, 1e-6f,   0, 1},
    {"llama-2-7b",     "llama",            32, 4096,   32, 32,  128,  11008,  32000,   4096,    10000, 1e-5f,   0, 0},
    {"qwen2.5-7b",     "qwen2",            28, 3584,   28,  4,  128,  18944, 152064,  32768,  1000000, 1e-6f,   0, 0},
    {"llama-3-8b",     "llama",            32, 4096,   32,  8,  128,  14336, 128256,   8192,   500000, 1e-5f,   0, 0},
    {"qwen3-8b",       "qwen3",            36, 4096,   32,  8,  128,  12288, 151936,  40960,  1000000, 1e-6f,   0, 0},
    {"llama-2-13b",    "llama",            40, 5120,   40, 40,  128,  13824,  32000,   4096,    10000, 1e-5f,   0, 0},
    {"llama-2-70b",    "llama",            80, 8192,   64,  8,  128,  28672,  32000,   4096,    10000, 1e-5f,   0, 0},
};
// clang-format on

#define SHAPE_COUNT (sizeof shapes / sizeof *shapes)

const synthetic_shape *synthetic_shape_at(size_t index)
{
    return index < SHAPE_COUNT ? &shapes[index] : NULL;
}

static void list(char *out, size_t size, const char *name)
{
    size_t used = strlen(out);
    snprintf(out + used, size - used, "%s%s", used ? ", " : "", name);
}

static realm_status find_shape(synthetic_model *out, const char *name, size_t size,
                               realm_error *error)
{
    char known[REALM_ERROR_MESSAGE_SIZE] = "";
    for (size_t i = 0; i < SHAPE_COUNT; i++) {
        if (strlen(shapes[i].name) == size && memcmp(shapes[i].name, name, size) == 0) {
            out->shape = &shapes[i];
            return REALM_OK;
        }
        list(known, sizeof known, shapes[i].name);
    }
    return realm_fail(error, REALM_INVALID, "there is no shape '%.*s'; there are %s",
                      (int)(size < 40 ? size : 40), name, known);
}

static realm_status find_quantization(synthetic_model *out, const char *name, realm_error *error)
{
    char known[REALM_ERROR_MESSAGE_SIZE] = "";
    const synthetic_quantization *q;
    for (size_t i = 0; (q = synthetic_quantization_at(i)) != NULL; i++) {
        if (strcmp(q->name, name) == 0) {
            out->quantization = q;
            return REALM_OK;
        }
        list(known, sizeof known, q->name);
    }
    return realm_fail(error, REALM_INVALID, "there is no quantization '%.40s'; there are %s", name,
                      known);
}

realm_status synthetic_find(synthetic_model *out, const char *name, realm_error *error)
{
    const char *colon = strchr(name, ':');
    out->seed = 1;
    realm_status status = find_shape(out, name, colon ? (size_t)(colon - name) : strlen(name),
                                     error);
    return status == REALM_OK ? find_quantization(out, colon ? colon + 1 : "q4_k_m", error)
                              : status;
}
