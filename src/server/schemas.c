/* server/schemas.c: see schemas.h. */
#include "server/schemas.h"

#include <string.h>

static int has(const json_t *schema, const char *key)
{
    return json_object_get(schema, key) != NULL;
}

/* 1 if objects are put together of parts somewhere. What only looks like it (a property of that name) is counted too:
 * nothing is lost by leaving a schema as it is. */
static int puts_together(json_t *value)
{
    const char *key;
    size_t i;
    json_t *part;
    if (json_is_object(value)) {
        if (has(value, "properties") &&
            (has(value, "anyOf") || has(value, "oneOf") || has(value, "$ref") || has(value, "if")))
            return 1;
        if (json_array_size(json_object_get(value, "allOf")) > 1 ||
            (has(value, "allOf") && (has(value, "properties") || has(value, "$ref"))))
            return 1;
    }
    json_object_foreach(value, key, part)
    {
        if (puts_together(part))
            return 1;
    }
    json_array_foreach(value, i, part)
    {
        if (puts_together(part))
            return 1;
    }
    return 0;
}

static int is_open(const json_t *schema)
{
    static const char *const others[] = {
        "additionalProperties", "patternProperties", "unevaluatedProperties", "propertyNames",
        "minProperties",        "dependentSchemas",  "dependentRequired",     "not"};
    const json_t *properties = json_object_get(schema, "properties");
    const json_t *required = json_object_get(schema, "required");
    if (!json_is_object(properties))
        return 0;
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (has(schema, others[i]))
            return 0;
    for (size_t i = 0; i < json_array_size(required); i++) {
        const char *name = json_string_value(json_array_get(required, i));
        if (!name || !has(properties, name))
            return 0;
    }
    return 1;
}

static void close_each(json_t *schemas);

static void close_one(json_t *schema)
{
    static const char *const lists[] = {
        "properties", "patternProperties", "$defs", "definitions", "anyOf", "oneOf",
        "allOf",      "prefixItems"};
    if (!json_is_object(schema))
        return;
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
        close_each(json_object_get(schema, lists[i]));
    json_t *items = json_object_get(schema, "items");
    if (json_is_array(items)) /* as drafts before 2020-12 wrote prefixItems */
        close_each(items);
    else
        close_one(items);
    close_one(json_object_get(schema, "additionalProperties"));
    if (is_open(schema))
        json_object_set_new(schema, "additionalProperties", json_false());
}

static void close_each(json_t *schemas)
{
    const char *key;
    size_t i;
    json_t *part;
    json_object_foreach(schemas, key, part)
    {
        close_one(part);
    }
    json_array_foreach(schemas, i, part)
    {
        close_one(part);
    }
}

void schemas_close(json_t *schema)
{
    if (!puts_together(schema))
        close_one(schema);
}
