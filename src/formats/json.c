/* formats/json.c: see json.h. */
#include "formats/json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "base/utf8.h"

/* ---- parsing ---- */

/* jansson nests up to 2048 whatever we ask, and recurses. So brackets are counted before: those in
 * strings are not brackets, and a backslash hides the quote after it. Returns the offset of the
 * bracket that is too deep, or size. */
static size_t find_too_deep(const char *text, size_t size, unsigned max_depth)
{
    unsigned depth = 0;
    int in_string = 0;
    for (size_t i = 0; i < size; i++) {
        char c = text[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = 0;
        } else if (c == '"') {
            in_string = 1;
        } else if (c == '[' || c == '{') {
            if (depth++ == max_depth)
                return i;
        } else if ((c == ']' || c == '}') && depth) {
            depth--;
        }
    }
    return size;
}

static realm_status fail_depth(const char *text, size_t at, unsigned max_depth, realm_error *error)
{
    size_t line = 1, start = 0;
    for (size_t i = 0; i < at; i++)
        if (text[i] == '\n') {
            line++;
            start = i + 1;
        }
    return realm_fail(error, REALM_TOO_LARGE,
                      "JSON line %zu, column %zu: lists and objects nest deeper than %u", line,
                      at - start + 1, max_depth);
}

realm_status json_parse(json_t **out, const char *text, size_t size, size_t max_bytes,
                        unsigned max_depth, realm_error *error)
{
    *out = NULL;
    if (size > max_bytes)
        return realm_fail(error, REALM_TOO_LARGE, "JSON of %zu bytes is larger than %zu", size,
                          max_bytes);
    size_t deep = find_too_deep(text, size, max_depth);
    if (deep < size)
        return fail_depth(text, deep, max_depth, error);
    json_error_t said;
    *out = json_loadb(size ? text : "", size,
                      JSON_DECODE_ANY | JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &said);
    if (*out)
        return REALM_OK;
    if (json_error_code(&said) == json_error_out_of_memory)
        return realm_fail_memory(error, size, "JSON");
    return realm_fail(error, REALM_INVALID, "JSON line %d, column %d: %s", said.line, said.column,
                      said.text);
}

/* ---- fields ---- */

const char *json_kind(const json_t *value)
{
    if (!value)
        return "nothing";
    switch (json_typeof(value)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "a list";
    case JSON_STRING: return "a string";
    case JSON_INTEGER: return "a whole number";
    case JSON_REAL: return "a number";
    case JSON_TRUE: return "true";
    case JSON_FALSE: return "false";
    case JSON_NULL: return "null";
    }
    return "nothing";
}

static realm_status find(const json_t *object, const char *key, const json_t **value,
                         realm_error *error)
{
    *value = NULL;
    if (!json_is_object(object))
        return realm_fail(error, REALM_INVALID, "an object with '%s' is wanted, not %s", key,
                          json_kind(object));
    *value = json_object_get(object, key);
    if (!*value || json_is_null(*value))
        return realm_fail(error, REALM_NOT_FOUND, "'%s' is missing", key);
    return REALM_OK;
}

static realm_status wrong_kind(const char *key, const char *wanted, const json_t *value,
                               realm_error *error)
{
    return realm_fail(error, REALM_INVALID, "'%s' must be %s, not %s", key, wanted,
                      json_kind(value));
}

realm_status json_get_text(const json_t *object, const char *key, const char **out, size_t *size,
                           realm_error *error)
{
    const json_t *value;
    realm_status status = find(object, key, &value, error);
    if (status)
        return status;
    if (!json_is_string(value))
        return wrong_kind(key, "a string", value, error);
    const char *text = json_string_value(value);
    if (!size && strlen(text) != json_string_length(value))
        return realm_fail(error, REALM_INVALID, "'%s' must not hold \\u0000", key);
    *out = text;
    if (size)
        *size = json_string_length(value);
    return REALM_OK;
}

/* 2^63 is a double and INT64_MAX is not: a real below it converts without overflow. */
static int whole_number(const json_t *value, int64_t *out)
{
    if (json_is_integer(value)) {
        *out = json_integer_value(value);
        return 1;
    }
    double real = json_is_real(value) ? json_real_value(value) : NAN;
    if (!(real >= -0x1p63 && real < 0x1p63) || real != floor(real))
        return 0;
    *out = (int64_t)real;
    return 1;
}

realm_status json_get_int(const json_t *object, const char *key, int64_t min, int64_t max,
                          int64_t *out, realm_error *error)
{
    const json_t *value;
    int64_t number;
    realm_status status = find(object, key, &value, error);
    if (status)
        return status;
    if (!whole_number(value, &number))
        return wrong_kind(key, "a whole number", value, error);
    if (number < min || number > max)
        return realm_fail(error, REALM_INVALID,
                          "'%s' must be from %" PRId64 " to %" PRId64 ", not %" PRId64, key, min,
                          max, number);
    *out = number;
    return REALM_OK;
}

realm_status json_get_real(const json_t *object, const char *key, double min, double max,
                           double *out, realm_error *error)
{
    const json_t *value;
    realm_status status = find(object, key, &value, error);
    if (status)
        return status;
    if (!json_is_number(value))
        return wrong_kind(key, "a number", value, error);
    double number = json_number_value(value);
    if (!(number >= min && number <= max))
        return realm_fail(error, REALM_INVALID, "'%s' must be from %g to %g, not %g", key, min, max,
                          number);
    *out = number;
    return REALM_OK;
}

realm_status json_get_flag(const json_t *object, const char *key, int *out, realm_error *error)
{
    const json_t *value;
    realm_status status = find(object, key, &value, error);
    if (status)
        return status;
    if (!json_is_boolean(value))
        return wrong_kind(key, "true or false", value, error);
    *out = json_is_true(value);
    return REALM_OK;
}

realm_status json_get_list(const json_t *object, const char *key, const json_t **out,
                           realm_error *error)
{
    const json_t *value;
    realm_status status = find(object, key, &value, error);
    if (status)
        return status;
    if (!json_is_array(value))
        return wrong_kind(key, "a list", value, error);
    *out = value;
    return REALM_OK;
}

realm_status json_get_object(const json_t *object, const char *key, const json_t **out,
                             realm_error *error)
{
    const json_t *value;
    realm_status status = find(object, key, &value, error);
    if (status)
        return status;
    if (!json_is_object(value))
        return wrong_kind(key, "an object", value, error);
    *out = value;
    return REALM_OK;
}

/* ---- printing ---- */

static void print_escaped(FILE *stream, unsigned char c)
{
    switch (c) {
    case '"': fputs("\\\"", stream); break;
    case '\\': fputs("\\\\", stream); break;
    case '\n': fputs("\\n", stream); break;
    case '\r': fputs("\\r", stream); break;
    case '\t': fputs("\\t", stream); break;
    default: fprintf(stream, "\\u%04x", c);
    }
}

static int add_printed(const char *text, size_t size, void *out)
{
    return buffer_add(out, text, size) ? -1 : 0;
}

char *json_text(const json_t *value, size_t flags)
{
    buffer out;
    buffer_init(&out, SIZE_MAX);
    flags |= JSON_COMPACT | JSON_ENCODE_ANY;
    if (value && json_dump_callback(value, add_printed, &out, flags) == 0 && !out.lost)
        return (char *)(uintptr_t)buffer_text(&out);
    buffer_release(&out);
    return NULL;
}

void json_print_text(FILE *stream, const char *text, size_t size)
{
    fputc('"', stream);
    for (size_t i = 0; i < size;) {
        const uint8_t *at = (const uint8_t *)text + i;
        int length = utf8_length(at, size - i);
        if (length < 0) {
            fputs("\xEF\xBF\xBD", stream);
            length = 1;
        } else if (*at < 0x20 || *at == '"' || *at == '\\' || *at == 0x7F) {
            print_escaped(stream, *at);
        } else if (length == 2 && at[0] == 0xC2 && at[1] < 0xA0) {
            print_escaped(stream, at[1]); /* U+0080 to U+009F, which terminals obey too */
        } else {
            fwrite(at, 1, (size_t)length, stream);
        }
        i += (size_t)length;
    }
    fputc('"', stream);
}

void json_print_real(FILE *stream, double number)
{
    if (isnan(number)) {
        fputs("\"NaN\"", stream);
        return;
    }
    if (isinf(number)) {
        fputs(number > 0 ? "\"Infinity\"" : "\"-Infinity\"", stream);
        return;
    }
    char text[40];
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, number);
        if (strtod(text, NULL) == number)
            break;
    }
    /* "1" would read back as an integer. */
    fprintf(stream, strpbrk(text, ".e") ? "%s" : "%s.0", text);
}
