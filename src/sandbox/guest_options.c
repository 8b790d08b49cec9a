/* sandbox/guest_options.c: see guest_options.h. */
#include "sandbox/guest_options.h"

#include <string.h>

#define OPTIONS_MAX_BYTES ((size_t)1 << 20)

static const char *const sampler_keys[] = {
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "penalty_tokens",
    "seed",
    NULL,
};

static int is_in(const char *key, const char *const *keys)
{
    for (; keys && *keys; keys++)
        if (strcmp(key, *keys) == 0)
            return 1;
    return 0;
}

realm_status guest_options_parse(json_t **out, const char *text, size_t size,
                                 const char *const *keys, int with_sampler, realm_error *error)
{
    if (size == 0) {
        *out = json_object();
        return *out ? REALM_OK : realm_fail_memory(error, 64, "options");
    }
    json_t *object;
    realm_status status = json_parse(&object, text, size, OPTIONS_MAX_BYTES, JSON_USUAL_DEPTH,
                                     error);
    if (status != REALM_OK)
        return realm_fail_in(error, status, "options");
    if (!json_is_object(object))
        status = realm_fail(error, REALM_INVALID, "options: an object is expected, not %s",
                            json_kind(object));
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value)
    {
        if (status == REALM_OK && !is_in(key, keys) && !(with_sampler && is_in(key, sampler_keys)))
            status = realm_fail(error, REALM_INVALID, "options: there is no option '%s'", key);
    }
    if (status != REALM_OK) {
        json_decref(object);
        return status;
    }
    *out = object;
    return REALM_OK;
}

realm_status guest_options_int(const json_t *object, const char *key, int64_t min, int64_t max,
                               int32_t *out, realm_error *error)
{
    int64_t value = *out;
    realm_status status = JSON_OPTIONAL(json_get_int(object, key, min, max, &value, error));
    *out = (int32_t)value;
    return status;
}

/* Ranges are sampler_options_check's business; here only that it is a number a float can hold. */
static realm_status read_float(const json_t *object, const char *key, float *out,
                               realm_error *error)
{
    double value = (double)*out;
    realm_status status = JSON_OPTIONAL(json_get_real(object, key, -1e30, 1e30, &value, error));
    *out = (float)value;
    return status;
}

realm_status guest_options_sampler(const json_t *object, sampler_options *o, int *has_seed,
                                   realm_error *error)
{
    struct {
        const char *key;
        float *out;
    } const floats[] = {
        {"temperature", &o->temperature},
        {"top_p", &o->top_p},
        {"min_p", &o->min_p},
        {"typical_p", &o->typical_p},
        {"repetition_penalty", &o->repetition_penalty},
        {"frequency_penalty", &o->frequency_penalty},
        {"presence_penalty", &o->presence_penalty},
    };
    realm_status status = REALM_OK;
    for (size_t i = 0; status == REALM_OK && i < sizeof floats / sizeof *floats; i++)
        status = read_float(object, floats[i].key, floats[i].out, error);
    if (status == REALM_OK)
        status = guest_options_int(object, "top_k", 0, INT32_MAX, &o->top_k, error);
    if (status == REALM_OK)
        status = guest_options_int(object, "penalty_tokens", -1, INT32_MAX, &o->penalty_tokens,
                                   error);
    int64_t seed = (int64_t)o->seed;
    realm_status found = REALM_NOT_FOUND;
    if (status == REALM_OK) {
        found = json_get_int(object, "seed", INT64_MIN, INT64_MAX, &seed, error);
        status = JSON_OPTIONAL(found);
    }
    o->seed = (uint64_t)seed;
    if (has_seed)
        *has_seed = found == REALM_OK;
    return status == REALM_OK ? sampler_options_check(o, error) : status;
}
