/* model/metadata.c: see metadata.h. Nothing here knows what a key means. */
#include "model/metadata.h"

#include <math.h>
#include <stdio.h>

const char *metadata_key(const metadata *m, const char *suffix, char key[METADATA_KEY_SIZE])
{
    snprintf(key, METADATA_KEY_SIZE, "%s.%s", m->prefix, suffix);
    return key;
}

/* Absence is a failure only where the caller did not ask to be told. */
static realm_status absent(const char *key, int *found, realm_error *error)
{
    if (found == NULL)
        return realm_fail(error, REALM_CORRUPT, "the model file has no '%s'", key);
    *found = 0;
    return REALM_OK;
}

static int is_integer(gguf_type type)
{
    return type != GGUF_F32 && type != GGUF_F64 && type != GGUF_STRING && type != GGUF_ARRAY &&
           type != GGUF_BOOL;
}

/* The value as a signed number; what does not fit becomes INT64_MAX, which is out of range. */
static int64_t integer_of(const gguf_value *v)
{
    switch (v->type) {
    case GGUF_I8:
    case GGUF_I16:
    case GGUF_I32:
    case GGUF_I64: return v->i;
    default: return v->u > INT64_MAX ? INT64_MAX : (int64_t)v->u;
    }
}

static realm_status out_of_range(const char *key, int64_t value, int32_t low, int32_t high,
                                 realm_error *error)
{
    return realm_fail(error, REALM_CORRUPT,
                      "'%s' is %" PRId64 ", which is not in %" PRId32 " to %" PRId32, key, value,
                      low, high);
}

realm_status metadata_int(const metadata *m, const char *suffix, int32_t low, int32_t high,
                          int32_t *out, int *found, realm_error *error)
{
    char key[METADATA_KEY_SIZE];
    const gguf_value *v = gguf_find(m->gguf, metadata_key(m, suffix, key));
    if (v == NULL)
        return absent(key, found, error);
    if (!is_integer(v->type))
        return realm_fail(error, REALM_CORRUPT, "'%s' is of type %s, not a whole number", key,
                          gguf_type_name(v->type));
    int64_t value = integer_of(v);
    if (value < low || value > high)
        return out_of_range(key, value, low, high, error);
    *out = (int32_t)value;
    if (found != NULL)
        *found = 1;
    return REALM_OK;
}

realm_status metadata_float(const metadata *m, const char *suffix, double low, double high,
                            float *out, int *found, realm_error *error)
{
    char key[METADATA_KEY_SIZE];
    float value = 0;
    realm_status status = gguf_get_f32(m->gguf, metadata_key(m, suffix, key), &value, error);
    if (status == REALM_NOT_FOUND)
        return absent(key, found, error);
    if (status != REALM_OK)
        return status;
    if (!isfinite(value) || (double)value < low || (double)value > high)
        return realm_fail(error, REALM_CORRUPT, "'%s' is %g, which is not in %g to %g", key,
                          (double)value, low, high);
    *out = value;
    if (found != NULL)
        *found = 1;
    return REALM_OK;
}

static realm_status read_array(const char *key, const gguf_value *v, int32_t low, int32_t high,
                               int32_t *out, int32_t count, realm_error *error)
{
    if (!is_integer(v->array.type) && v->array.type != GGUF_BOOL)
        return realm_fail(error, REALM_CORRUPT, "'%s' is an array of type %s, not of whole numbers",
                          key, gguf_type_name(v->array.type));
    if (v->array.count < (uint64_t)count)
        return realm_fail(error, REALM_CORRUPT,
                          "'%s' has %" PRIu64 " elements for %" PRId32 " layers", key,
                          v->array.count, count);
    for (int32_t i = 0; i < count; i++) {
        int64_t value = gguf_array_int(v, (uint64_t)i);
        if (value < low || value > high)
            return out_of_range(key, value, low, high, error);
        out[i] = (int32_t)value;
    }
    return REALM_OK;
}

realm_status metadata_ints(const metadata *m, const char *suffix, int32_t low, int32_t high,
                           int32_t *out, int32_t count, int *found, realm_error *error)
{
    char key[METADATA_KEY_SIZE];
    const gguf_value *v = gguf_find(m->gguf, metadata_key(m, suffix, key));
    if (v != NULL && v->type == GGUF_ARRAY) {
        if (found != NULL)
            *found = 1;
        return read_array(key, v, low, high, out, count, error);
    }
    int32_t one = 0;
    int one_found = 0;
    realm_status status = metadata_int(m, suffix, low, high, &one,
                                       found == NULL ? NULL : &one_found, error);
    if (status != REALM_OK)
        return status;
    if (found != NULL) {
        *found = one_found;
        if (!one_found)
            return REALM_OK;
    }
    for (int32_t i = 0; i < count; i++)
        out[i] = one;
    return REALM_OK;
}
