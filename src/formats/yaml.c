/* formats/yaml.c: see yaml.h. */
#include "formats/yaml.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

typedef struct reader {
    yaml_parser_t parser;
    yaml_event_t event;
    int has_event;
    realm_error *error;
} reader;

static size_t line_of(const reader *r)
{
    return r->event.start_mark.line + 1;
}

static realm_status next(reader *r)
{
    if (r->has_event)
        yaml_event_delete(&r->event);
    r->has_event = yaml_parser_parse(&r->parser, &r->event);
    if (r->has_event)
        return REALM_OK;
    return realm_fail(r->error, REALM_INVALID, "line %zu: %s", r->parser.problem_mark.line + 1,
                      r->parser.problem ? r->parser.problem : "this is not YAML");
}

static json_t *plain_scalar(const char *text, size_t size)
{
    if (!size || strcmp(text, "~") == 0 || strcmp(text, "null") == 0)
        return json_null();
    if (strcmp(text, "true") == 0 || strcmp(text, "false") == 0)
        return json_boolean(*text == 't');
    char *end;
    errno = 0;
    long long whole = strtoll(text, &end, 10);
    if (!*end && errno == 0)
        return json_integer(whole);
    double real = strtod(text, &end);
    if (!*end && isfinite(real) && strspn(text, "+-.0123456789eE") == size)
        return json_real(real);
    return json_stringn(text, size);
}

static realm_status read_value(reader *r, int depth, json_t **out);

static realm_status read_scalar(reader *r, json_t **out)
{
    const char *text = (const char *)r->event.data.scalar.value;
    size_t size = r->event.data.scalar.length;
    if (r->event.data.scalar.style == YAML_PLAIN_SCALAR_STYLE)
        *out = plain_scalar(text, size);
    else
        *out = json_stringn(text, size);
    if (!*out)
        return realm_fail(r->error, REALM_INVALID, "line %zu: the text is not UTF-8", line_of(r));
    return REALM_OK;
}

static realm_status read_list(reader *r, int depth, json_t *list)
{
    for (;;) {
        realm_status status = next(r);
        if (status || r->event.type == YAML_SEQUENCE_END_EVENT)
            return status;
        json_t *item = NULL;
        status = read_value(r, depth, &item);
        if (status)
            return status;
        json_array_append_new(list, item);
    }
}

static realm_status read_map(reader *r, int depth, json_t *map)
{
    for (;;) {
        realm_status status = next(r);
        if (status || r->event.type == YAML_MAPPING_END_EVENT)
            return status;
        if (r->event.type != YAML_SCALAR_EVENT)
            return realm_fail(r->error, REALM_INVALID, "line %zu: a key must be a text",
                              line_of(r));
        char *key = strdup((const char *)r->event.data.scalar.value);
        size_t line = line_of(r);
        json_t *value = NULL;
        if (!key)
            return realm_fail_memory(r->error, 1, "a key");
        if (json_object_get(map, key))
            status = realm_fail(r->error, REALM_INVALID, "line %zu: '%.80s' is given twice", line,
                                key);
        if (!status)
            status = next(r);
        if (!status)
            status = read_value(r, depth, &value);
        if (!status && json_object_set_new(map, key, value))
            status = realm_fail(r->error, REALM_INVALID, "line %zu: the key is not UTF-8", line);
        free(key);
        if (status)
            return status;
    }
}

/* The value that begins with the event at hand. */
static realm_status read_value(reader *r, int depth, json_t **out)
{
    const yaml_event_t *e = &r->event;
    int is_list = e->type == YAML_SEQUENCE_START_EVENT;
    int is_map = e->type == YAML_MAPPING_START_EVENT;
    if (e->type == YAML_ALIAS_EVENT || (e->type == YAML_SCALAR_EVENT && e->data.scalar.anchor) ||
        (is_list && e->data.sequence_start.anchor) || (is_map && e->data.mapping_start.anchor))
        return realm_fail(r->error, REALM_INVALID,
                          "line %zu: anchors and aliases are not understood", line_of(r));
    if ((e->type == YAML_SCALAR_EVENT && e->data.scalar.tag) ||
        (is_list && e->data.sequence_start.tag) || (is_map && e->data.mapping_start.tag))
        return realm_fail(r->error, REALM_INVALID, "line %zu: tags are not understood", line_of(r));
    if (e->type == YAML_SCALAR_EVENT)
        return read_scalar(r, out);
    if (depth == YAML_MAX_DEPTH)
        return realm_fail(r->error, REALM_TOO_LARGE, "line %zu: it nests deeper than %d",
                          line_of(r), YAML_MAX_DEPTH);
    json_t *made = is_list ? json_array() : json_object();
    realm_status status = is_list ? read_list(r, depth + 1, made) : read_map(r, depth + 1, made);
    if (status)
        json_decref(made);
    else
        *out = made;
    return status;
}

static realm_status read_document(reader *r, json_t **out)
{
    realm_status status = next(r); /* the stream begins */
    if (!status)
        status = next(r);
    if (!status && r->event.type == YAML_STREAM_END_EVENT) {
        *out = json_object();
        return REALM_OK;
    }
    if (!status)
        status = next(r); /* the document has begun */
    if (!status)
        status = read_value(r, 0, out);
    if (!status)
        status = next(r); /* it ends */
    if (!status)
        status = next(r);
    if (!status && r->event.type != YAML_STREAM_END_EVENT)
        status = realm_fail(r->error, REALM_INVALID, "line %zu: there is a second document",
                            line_of(r));
    if (status) {
        json_decref(*out);
        *out = NULL;
    } else if (json_is_null(*out)) {
        *out = json_object();
    }
    return status;
}

realm_status yaml_parse(json_t **out, const char *text, size_t size, realm_error *error)
{
    *out = NULL;
    if (size > YAML_MAX_BYTES)
        return realm_fail(error, REALM_TOO_LARGE, "the file has %zu bytes, more than %zu", size,
                          YAML_MAX_BYTES);
    reader r = {.error = error};
    if (!yaml_parser_initialize(&r.parser))
        return realm_fail_memory(error, 1, "a YAML parser");
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, size);
    realm_status status = read_document(&r, out);
    if (r.has_event)
        yaml_event_delete(&r.event);
    yaml_parser_delete(&r.parser);
    return status;
}
