/* tenancy/settings.c: see settings.h. */
#include "tenancy/settings.h"

#include <string.h>

#define USUAL_CAPABILITIES                                                                         \
    (CAPABILITY_MODELS | CAPABILITY_LOGITS | CAPABILITY_STATE | CAPABILITY_CALLS)
#define LEAST_WEIGHT 0.001
#define MOST_WEIGHT  1000.0

static const char *const priority_names[] = {"batch", "normal", "high"};

#define N_PRIORITIES (sizeof priority_names / sizeof *priority_names)

typedef struct number_row {
    const char *name, *help;
    size_t offset;
    int64_t usual, least, most;
} number_row;

static const number_row number_rows[] = {
#define ROW(name, usual, least, most, help)                                                        \
    {#name, help, offsetof(tenant_settings, name), usual, least, most},
    SETTINGS_NUMBER_MAP(ROW)
#undef ROW
};

#define N_NUMBERS (sizeof number_rows / sizeof *number_rows)

static int64_t *field_of(tenant_settings *s, const number_row *row)
{
    return (int64_t *)(void *)((char *)s + row->offset);
}

tenant_settings settings_default(void)
{
    tenant_settings s = {.weight = 1,
                         .priority = PRIORITY_NORMAL,
                         .capabilities = USUAL_CAPABILITIES,
                         .models = {.all = 1},
                         .programs = {.all = 1}};
    for (size_t i = 0; i < N_NUMBERS; i++)
        *field_of(&s, &number_rows[i]) = number_rows[i].usual;
    return s;
}

/* ---- reading ---- */

static realm_status read_priority(tenant_settings *s, const json_t *object, const char *key,
                                  realm_error *error)
{
    const char *text;
    realm_status status = json_get_text(object, key, &text, NULL, error);
    for (size_t i = 0; !status && i < N_PRIORITIES; i++)
        if (strcmp(text, priority_names[i]) == 0) {
            s->priority = (priority)i;
            return REALM_OK;
        }
    return status ? status
                  : realm_fail(error, REALM_INVALID,
                               "'priority' must be batch, normal or high, not '%.40s'", text);
}

/* The text at index, which must be one without a NUL byte. */
static realm_status text_at(const json_t *list, size_t index, const char *key, const char **text,
                            realm_error *error)
{
    const json_t *value = json_array_get(list, index);
    if (!json_is_string(value))
        return realm_fail(error, REALM_INVALID, "'%s' must be a list of strings; it holds %s", key,
                          json_kind(value));
    *text = json_string_value(value);
    size_t size = json_string_length(value);
    if (!size || size > SETTINGS_MAX_NAME || strlen(*text) != size)
        return realm_fail(error, REALM_INVALID,
                          "'%s' holds a name that is empty, over %d bytes or broken", key,
                          SETTINGS_MAX_NAME);
    return REALM_OK;
}

static realm_status read_capabilities(tenant_settings *s, const json_t *object, const char *key,
                                      realm_error *error)
{
    const json_t *list;
    unsigned capabilities = 0;
    realm_status status = json_get_list(object, key, &list, error);
    for (size_t i = 0; !status && i < json_array_size(list); i++) {
        const char *name = NULL;
        status = text_at(list, i, key, &name, error);
        unsigned bit = status ? 0 : capability_parse(name);
        if (!status && !bit)
            status = realm_fail(error, REALM_INVALID, "there is no capability '%.40s'", name);
        capabilities |= bit;
    }
    if (!status)
        s->capabilities = capabilities;
    return status;
}

static realm_status read_names(settings_names *names, arena *a, const json_t *object,
                               const char *key, realm_error *error)
{
    const json_t *list;
    realm_status status = json_get_list(object, key, &list, error);
    if (status)
        return status;
    size_t count = json_array_size(list);
    if (count > SETTINGS_MAX_NAMES)
        return realm_fail(error, REALM_INVALID, "'%s' holds %zu names; at most %d are allowed", key,
                          count, SETTINGS_MAX_NAMES);
    const char **copies = arena_take_array(a, count, sizeof *copies);
    if (!copies)
        return realm_fail_memory(error, count, key);
    for (size_t i = 0; i < count; i++) {
        const char *text = NULL;
        status = text_at(list, i, key, &text, error);
        if (status)
            return status;
        if (!(copies[i] = arena_copy(a, text, strlen(text))))
            return realm_fail_memory(error, strlen(text), key);
    }
    *names = (settings_names){.names = copies, .count = (int32_t)count};
    return REALM_OK;
}

static realm_status read_number(tenant_settings *s, const json_t *object, const char *key,
                                realm_error *error)
{
    for (size_t i = 0; i < N_NUMBERS; i++)
        if (strcmp(key, number_rows[i].name) == 0)
            return json_get_int(object, key, number_rows[i].least, number_rows[i].most,
                                field_of(s, &number_rows[i]), error);
    return realm_fail(error, REALM_INVALID, "there is no setting '%.80s'", key);
}

static realm_status read_one(tenant_settings *s, arena *a, const json_t *object, const char *key,
                             realm_error *error)
{
    if (strcmp(key, "weight") == 0)
        return json_get_real(object, key, LEAST_WEIGHT, MOST_WEIGHT, &s->weight, error);
    if (strcmp(key, "priority") == 0)
        return read_priority(s, object, key, error);
    if (strcmp(key, "capabilities") == 0)
        return read_capabilities(s, object, key, error);
    if (strcmp(key, "models") == 0)
        return read_names(&s->models, a, object, key, error);
    if (strcmp(key, "programs") == 0)
        return read_names(&s->programs, a, object, key, error);
    return read_number(s, object, key, error);
}

static realm_status reset_one(tenant_settings *s, const char *key, realm_error *error)
{
    tenant_settings usual = settings_default();
    if (strcmp(key, "weight") == 0)
        s->weight = usual.weight;
    else if (strcmp(key, "priority") == 0)
        s->priority = usual.priority;
    else if (strcmp(key, "capabilities") == 0)
        s->capabilities = usual.capabilities;
    else if (strcmp(key, "models") == 0)
        s->models = usual.models;
    else if (strcmp(key, "programs") == 0)
        s->programs = usual.programs;
    else {
        for (size_t i = 0; i < N_NUMBERS; i++)
            if (strcmp(key, number_rows[i].name) == 0) {
                *field_of(s, &number_rows[i]) = number_rows[i].usual;
                return REALM_OK;
            }
        return realm_fail(error, REALM_INVALID, "there is no setting '%.80s'", key);
    }
    return REALM_OK;
}

realm_status settings_read(tenant_settings *settings, arena *a, const json_t *object,
                           realm_error *error)
{
    if (!json_is_object(object))
        return realm_fail(error, REALM_INVALID, "settings must be an object, not %s",
                          json_kind(object));
    const char *key;
    json_t *value;
    /* jansson's iteration macro wants a pointer that is not const; nothing is changed. */
    json_object_foreach((json_t *)object, key, value)
    {
        realm_status status = json_is_null(value) ? reset_one(settings, key, error)
                                                  : read_one(settings, a, object, key, error);
        if (status)
            return status;
    }
    return REALM_OK;
}

/* ---- writing ---- */

static json_t *names_json(const settings_names *names)
{
    if (names->all)
        return json_null();
    json_t *list = json_array();
    for (int32_t i = 0; list && i < names->count; i++)
        if (json_array_append_new(list, json_string(names->names[i])) != 0) {
            json_decref(list);
            return NULL;
        }
    return list;
}

static json_t *capabilities_json(unsigned capabilities)
{
    json_t *list = json_array();
    for (unsigned bit = 1; list && bit <= CAPABILITY_ALL; bit <<= 1)
        if (capabilities & bit && json_array_append_new(list, json_string(capability_name(bit)))) {
            json_decref(list);
            return NULL;
        }
    return list;
}

json_t *settings_json(const tenant_settings *settings)
{
    tenant_settings copy = *settings;
    json_t *object = json_object();
    int failed = !object;
    for (size_t i = 0; !failed && i < N_NUMBERS; i++)
        failed = json_object_set_new(object, number_rows[i].name,
                                     json_integer(*field_of(&copy, &number_rows[i])));
    failed =
        failed || json_object_set_new(object, "weight", json_real(settings->weight)) ||
        json_object_set_new(object, "priority", json_string(priority_names[settings->priority])) ||
        json_object_set_new(object, "capabilities", capabilities_json(settings->capabilities)) ||
        json_object_set_new(object, "models", names_json(&settings->models)) ||
        json_object_set_new(object, "programs", names_json(&settings->programs));
    if (failed) {
        json_decref(object);
        return NULL;
    }
    return object;
}

/* ---- describing ---- */

/* {"type": kind} or, of a change, {"type": [kind, "null"]}, and what it means. */
static json_t *described(const char *kind, int nullable, const char *help)
{
    return nullable ? json_pack("{s:[s, s], s:s}", "type", kind, "null", "description", help)
                    : json_pack("{s:s, s:s}", "type", kind, "description", help);
}

static json_t *described_number(const number_row *row, int change)
{
    json_t *about = described("integer", change, row->help);
    json_object_set_new(about, "minimum", json_integer(row->least));
    json_object_set_new(about, "maximum", json_integer(row->most));
    json_object_set_new(about, "default", json_integer(row->usual));
    return about;
}

static json_t *described_list(json_t *items, int nullable, const char *help)
{
    json_t *about = described("array", nullable, help);
    json_object_set_new(about, "items", items);
    return about;
}

static json_t *words_json(int change)
{
    json_t *list = json_array();
    for (size_t i = 0; i < N_PRIORITIES; i++)
        json_array_append_new(list, json_string(priority_names[i]));
    if (change)
        json_array_append_new(list, json_null());
    return json_pack("{s:o, s:s, s:s}", "enum", list, "default", "normal", "description",
                     "the highest that its requests may ask for");
}

json_t *settings_schema(int change)
{
    json_t *properties = json_object(), *required = json_array();
    for (size_t i = 0; i < N_NUMBERS; i++)
        json_object_set_new(properties, number_rows[i].name,
                            described_number(&number_rows[i], change));
    json_t *share = described("number", change, "share of the engines against other tenants");
    json_object_set_new(share, "minimum", json_real(LEAST_WEIGHT));
    json_object_set_new(share, "maximum", json_real(MOST_WEIGHT));
    json_object_set_new(share, "default", json_integer(1));
    json_object_set_new(properties, "weight", share);
    json_object_set_new(properties, "priority", words_json(change));
    json_object_set_new(
        properties, "capabilities",
        described_list(json_pack("{s:o}", "enum", capabilities_json(CAPABILITY_ALL)), change,
                       "what its programs may do"));
    json_object_set_new(properties, "models",
                        described_list(json_pack("{s:s}", "type", "string"), 1,
                                       "which it may use, the first by default; null: all"));
    json_object_set_new(properties, "programs",
                        described_list(json_pack("{s:s}", "type", "string"), 1,
                                       "which it may call by name; null: all"));
    const char *name;
    json_t *value;
    json_object_foreach(properties, name, value) json_array_append_new(required, json_string(name));
    json_t *schema = json_pack("{s:s, s:o, s:b}", "type", "object", "properties", properties,
                               "additionalProperties", 0);
    if (change)
        json_decref(required);
    else
        json_object_set_new(schema, "required", required);
    return schema;
}

/* ---- asking ---- */

int settings_allow(const settings_names *names, const char *name, size_t size)
{
    if (names->all)
        return 1;
    for (int32_t i = 0; i < names->count; i++)
        if (strlen(names->names[i]) == size && memcmp(names->names[i], name, size) == 0)
            return 1;
    return 0;
}

sandbox_limits settings_limits(const tenant_settings *settings)
{
    sandbox_limits limits = SANDBOX_LIMITS_DEFAULT;
    limits.memory_bytes = (uint64_t)settings->memory_bytes;
    limits.memory64_bytes = (uint64_t)settings->memory64_bytes;
    limits.cpu_ns = (uint64_t)settings->cpu_ms * 1000000u;
    limits.wall_ns = (uint64_t)settings->wall_ms * 1000000u;
    limits.sessions = (int32_t)settings->sessions;
    limits.kv_pages = (int32_t)settings->kv_pages;
    limits.engine_sessions = (int32_t)settings->engine_sessions;
    limits.state_bytes = (uint64_t)settings->state_bytes;
    limits.input_bytes = (uint64_t)settings->input_bytes;
    limits.output_bytes = (uint64_t)settings->output_bytes;
    limits.log_bytes = (uint64_t)settings->log_bytes;
    limits.tensor_bytes = (uint64_t)settings->tensor_bytes;
    limits.requests = (int32_t)settings->concurrent_requests;
    limits.call_depth = (int32_t)settings->call_depth;
    return limits;
}

static int is_alphanumeric(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

realm_status settings_check_name(const char *what, const char *name, size_t size,
                                 realm_error *error)
{
    int good = size >= 1 && size <= SETTINGS_MAX_IDENTIFIER && is_alphanumeric(name[0]);
    for (size_t i = 1; good && i < size; i++)
        good = is_alphanumeric(name[i]) || (name[i] && strchr("-_.", name[i]));
    return good ? REALM_OK
                : realm_fail(
                      error, REALM_INVALID,
                      "a %s's name is 1 to %d of a-z, 0-9, '-', '_' and '.', beginning with a "
                      "letter or digit; '%.*s' is none",
                      what, SETTINGS_MAX_IDENTIFIER, (int)(size < 80 ? size : 80), name);
}
