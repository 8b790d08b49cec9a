/* model/placement.c: see placement.h. */
#include "model/placement.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "compute/backend_open.h"
#include "compute/backend_split.h"
#include "model/model_internal.h"

/* What a device's run time, its graphs and its prepared inputs take beside what is counted. */
#define RESERVE_BYTES ((uint64_t)256 << 20)

/* Packed weights are up to a sixteenth larger than the file's: a byte a scale where it has six bits. */
static uint64_t packed_bytes(uint64_t file_bytes)
{
    return file_bytes + file_bytes / 16;
}

/* What the file's tensors whose names begin so take on a device. */
static uint64_t weights_bytes(const gguf *g, const char *prefix)
{
    uint64_t bytes = 0;
    size_t length = strlen(prefix);
    for (size_t i = 0; i < gguf_tensor_count(g); i++) {
        const gguf_tensor *t = gguf_tensor_at(g, i);
        if (t->name.size >= length && memcmp(t->name.data, prefix, length) == 0)
            bytes += packed_bytes(t->size);
    }
    return bytes;
}

/* Keys and values of PLACEMENT_KV_TOKENS tokens, or of as many as the model can have. */
static uint64_t layer_kv_bytes(const hyperparameters *h, int32_t layer)
{
    uint64_t tokens = (uint64_t)(h->n_context < PLACEMENT_KV_TOKENS ? h->n_context
                                                                    : PLACEMENT_KV_TOKENS);
    return tokens * (uint64_t)h->n_kv_heads[layer] *
           (dtype_row_bytes(DTYPE_F16, (uint64_t)h->key_dim) +
            dtype_row_bytes(DTYPE_F16, (uint64_t)h->value_dim));
}

int32_t placement_layers_that_fit(const gguf *g, const hyperparameters *h, uint64_t free_bytes,
                                  const model_options *options)
{
    uint64_t layers = weights_bytes(g, "blk."), all = weights_bytes(g, "");
    uint64_t taken = RESERVE_BYTES + model_scratch_bytes(h, options);
    for (int32_t i = 0; i < h->n_layers; i++) {
        char prefix[32];
        snprintf(prefix, sizeof prefix, "blk.%" PRId32 ".", i);
        taken += weights_bytes(g, prefix) + layer_kv_bytes(h, i);
        if (taken > free_bytes)
            return i;
    }
    return taken + (all - layers) > free_bytes ? h->n_layers - 1 : h->n_layers;
}

realm_status placement_parse_layers(const char *text, int32_t *gpu_layers, realm_error *error)
{
    *gpu_layers = 0;
    if (!text || strcmp(text, "auto") == 0)
        return REALM_OK;
    char *end;
    long n = strtol(text, &end, 10);
    if (*text < '0' || *text > '9' || *end != '\0' || n > INT32_MAX)
        return realm_fail(error, REALM_INVALID, "gpu-layers is '%s', neither auto nor a number",
                          text);
    if (n == 0)
        return realm_fail(error, REALM_INVALID,
                          "gpu-layers is 0: say --device cpu to run on the processor");
    *gpu_layers = (int32_t)n;
    return REALM_OK;
}

/* ---- opening ----------------------------------------------------------------------------------------- */

typedef struct attempt {
    model **out;
    backend **on;
    const char *path;
    const placement *p;
    const model_options *options;
    int32_t n_layers; /* of the model */
    int32_t n_fit;    /* what the device has room for */
} attempt;

/* How many layers the model has and how many of them fit. Nothing is loaded. */
static realm_status look(attempt *a, realm_error *error)
{
    gguf *g;
    hyperparameters *h = malloc(sizeof *h);
    backend_memory memory = {0};
    if (!h)
        return realm_fail_memory(error, sizeof *h, "a model's numbers");
    (*a->on)->table->memory(*a->on, &memory);
    realm_status status = gguf_open(&g, a->path, error);
    if (status == REALM_OK) {
        status = hyperparameters_read(h, g, error);
        if (status == REALM_OK) {
            a->n_layers = h->n_layers;
            a->n_fit = placement_layers_that_fit(g, h, memory.free_bytes, a->options);
        } else {
            realm_fail_in(error, status, "%s", a->path);
        }
        gguf_close(g);
    }
    free(h);
    return status;
}

/* Puts the processor behind the device, for all layers but the first. */
static realm_status divide(attempt *a, int32_t n_front, realm_error *error)
{
    backend *processor, *both;
    realm_status status = backend_cpu_open(
        &processor, &(backend_cpu_options){.n_threads = a->p->n_threads}, error);
    if (status != REALM_OK)
        return status;
    status = backend_split_open(&both, *a->on, processor, n_front, error);
    if (status != REALM_OK) {
        processor->table->close(processor);
        return status;
    }
    *a->on = both;
    LOG_I("model", "%" PRId32 " of %" PRId32 " layers on the device, the rest on the processor",
          n_front, a->n_layers);
    return REALM_OK;
}

static realm_status on_processor(attempt *a, const char *why, realm_error *error)
{
    LOG_W("model", "on the processor instead: %s", why);
    (*a->on)->table->close(*a->on);
    *a->on = NULL;
    realm_status status = backend_open(
        a->on, &(backend_options){.device = "cpu", .n_threads = a->p->n_threads}, error);
    return status == REALM_OK ? model_open(a->out, *a->on, a->path, a->options, error) : status;
}

/* gpu_layers is what the user wants, and nothing else will do. */
static realm_status open_as_asked(attempt *a, realm_error *error)
{
    realm_status status = REALM_OK;
    if (a->p->gpu_layers < a->n_layers)
        status = divide(a, a->p->gpu_layers, error);
    return status == REALM_OK ? model_open(a->out, *a->on, a->path, a->options, error) : status;
}

static realm_status open_where_it_fits(attempt *a, realm_error *error)
{
    realm_error why = {0};
    realm_status status = REALM_NO_MEMORY;
    int32_t n = a->n_fit;
    if (n == a->n_layers) {
        status = model_open(a->out, *a->on, a->path, a->options, &why);
        n = a->n_layers - (a->n_layers + 7) / 8;
    }
    if (status == REALM_NO_MEMORY && n > 0) {
        realm_status divided = divide(a, n, error);
        if (divided != REALM_OK)
            return divided;
        status = model_open(a->out, *a->on, a->path, a->options, &why);
    }
    if (status != REALM_NO_MEMORY) {
        if (status != REALM_OK && error)
            *error = why;
        return status;
    }
    if (why.message[0] == '\0')
        realm_fail(&why, REALM_NO_MEMORY, "%s: the device has no room for a layer", a->path);
    if (backend_is_auto(a->p->device))
        return on_processor(a, why.message, error);
    if (error)
        *error = why;
    return REALM_NO_MEMORY;
}

static realm_status open_on_kind(attempt *a, realm_error *error)
{
    if (strcmp((*a->on)->table->kind, "cpu") == 0) {
        if (a->p->gpu_layers > 0 && !backend_is_auto(a->p->device))
            return realm_fail(error, REALM_INVALID,
                              "gpu-layers is %" PRId32 ", but the device is the processor",
                              a->p->gpu_layers);
        return model_open(a->out, *a->on, a->path, a->options, error);
    }
    realm_status status = look(a, error);
    if (status != REALM_OK)
        return status;
    return a->p->gpu_layers > 0 ? open_as_asked(a, error) : open_where_it_fits(a, error);
}

realm_status placement_open_on(model **out, backend **on, const char *path, const placement *p,
                               const model_options *options, realm_error *error)
{
    static const model_options defaults = {0};
    attempt a = {
        .out = out, .on = on, .path = path, .p = p, .options = options ? options : &defaults};
    *out = NULL;
    realm_status status = open_on_kind(&a, error);
    if (status != REALM_OK && *on) {
        (*on)->table->close(*on);
        *on = NULL;
    }
    return status;
}

realm_status placement_open(model **out, backend **on, const char *path, const placement *p,
                            const model_options *options, realm_error *error)
{
    *out = NULL;
    *on = NULL;
    const backend_options device = {.device = p->device, .n_threads = p->n_threads};
    realm_status status = backend_open(on, &device, error);
    if (status != REALM_OK) {
        *on = NULL;
        return status;
    }
    return placement_open_on(out, on, path, p, options, error);
}
