/* tenancy/manage.c: see manage.h: tenants and keys. manage_programs.c has programs and usage. */
#include "tenancy/manage.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "tenancy/meter.h"

#define DAY_MS 86400000ll

/* ---- times ---- */

const char *manage_time(int64_t ms, char text[MANAGE_TIME_SIZE])
{
    struct tm parts;
    time_t seconds = (time_t)(ms / 1000);
    if (!ms || !gmtime_r(&seconds, &parts) ||
        !strftime(text, MANAGE_TIME_SIZE, "%Y-%m-%dT%H:%M:%SZ", &parts))
        snprintf(text, MANAGE_TIME_SIZE, "never");
    return text;
}

static json_t *time_json(int64_t ms)
{
    char text[MANAGE_TIME_SIZE];
    return ms ? json_string(manage_time(ms, text)) : json_null();
}

/* Milliseconds of "90d"; 0 if it is none. */
static int64_t parse_span(const char *text)
{
    char *end;
    long count = strtol(text, &end, 10);
    int64_t unit = *end == 'd' ? DAY_MS : *end == 'h' ? DAY_MS / 24 : *end == 'm' ? 60000 : 0;
    if (end == text || !unit || end[1] || count < 1 || count > 100000000)
        return 0;
    return count * unit;
}

realm_status manage_parse_time(const char *text, int64_t *ms, realm_error *error)
{
    int64_t now = clock_wall_ms(), span = parse_span(text);
    int32_t day = meter_day_parse(text);
    if (span)
        *ms = now + span;
    else if (day >= 0)
        *ms = ((int64_t)day + 1) * DAY_MS;
    else
        return realm_fail(error, REALM_INVALID,
                          "'%.40s' is no time: give 90d, 12h, 30m or a day as 2026-12-31", text);
    return *ms > now ? REALM_OK : realm_fail(error, REALM_INVALID, "'%.40s' is past", text);
}

/* ---- requests ---- */

/* Every name of the request is among names; the first one that is not is named. */
static realm_status check_names(const json_t *request, const char *const *names, realm_error *error)
{
    if (!json_is_object(request))
        return realm_fail(error, REALM_INVALID, "a JSON object is wanted");
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)request, name, value)
    {
        const char *const *known = names;
        while (*known && strcmp(*known, name) != 0)
            known++;
        if (!*known)
            return realm_fail(error, REALM_INVALID, "there is no field '%.80s'", name);
    }
    return REALM_OK;
}

/* NULL if it is absent or null. */
static realm_status text_of(const json_t *request, const char *name, const char **out,
                            realm_error *error)
{
    const json_t *value = json_object_get(request, name);
    *out = json_string_value(value);
    if (*out || !value || json_is_null(value))
        return REALM_OK;
    return realm_fail(error, REALM_INVALID, "'%s' must be a text", name);
}

static realm_status give(json_t *value, json_t **answer, realm_error *error)
{
    *answer = value;
    return value ? REALM_OK : realm_fail_memory(error, 0, "the answer");
}

/* ---- pages ---- */

realm_status manage_page_read(manage_page *out, const char *after, const char *limit, int32_t usual,
                              realm_error *error)
{
    *out = (manage_page){.after = after, .limit = usual};
    if (!limit)
        return REALM_OK;
    char *end;
    long number = strtol(limit, &end, 10);
    if (!*limit || *end || number < 1 || number > MANAGE_MOST_ROWS)
        return realm_fail(error, REALM_INVALID, "limit wants a number from 1 to %d, not '%.40s'",
                          MANAGE_MOST_ROWS, limit);
    out->limit = (int32_t)number;
    return REALM_OK;
}

/* One more than is wanted is asked for: whether there is one says has_more. */
static const store_page *ask_for(const manage_page *page, store_page *out)
{
    if (!page)
        return NULL;
    *out = (store_page){.after = page->after, .limit = page->limit + 1};
    return out;
}

size_t manage_page_cut(manage_page *page, size_t count)
{
    if (!page)
        return count;
    page->has_more = count > (size_t)page->limit;
    return page->has_more ? (size_t)page->limit : count;
}

static void note_last(manage_page *page, const char *id)
{
    if (page)
        snprintf(page->last_id, sizeof page->last_id, "%s", id);
}

/* ---- tenants ---- */

static json_t *tenant_json(const tenant_record *t)
{
    json_t *settings = settings_json(&t->settings);
    return settings ? json_pack("{s:I, s:s, s:o, s:o}", "number", (json_int_t)t->number, "name",
                                t->name, "created", time_json(t->created_ms), "settings", settings)
                    : NULL;
}

realm_status manage_tenant_list(tenant_store *s, manage_page *page, json_t **answer,
                                realm_error *error)
{
    tenant_record *list;
    store_page part;
    size_t count;
    arena a;
    arena_init(&a, 0);
    json_t *array = json_array();
    realm_status status = s->table->tenant_list(s, &a, 0, ask_for(page, &part), &list, &count,
                                                error);
    size_t shown = status ? 0 : manage_page_cut(page, count);
    for (size_t i = 0; !status && i < shown; i++)
        if (json_array_append_new(array, tenant_json(&list[i])))
            status = realm_fail_memory(error, 0, "the list of tenants");
    if (!status && shown)
        note_last(page, list[shown - 1].name);
    arena_release(&a);
    if (!status)
        return give(array, answer, error);
    json_decref(array);
    return status;
}

realm_status manage_tenant_show(tenant_store *s, const char *name, json_t **answer,
                                realm_error *error)
{
    tenant_record t;
    arena a;
    arena_init(&a, 0);
    realm_status status = s->table->tenant_find(s, &a, name, &t, error);
    if (!status)
        status = give(tenant_json(&t), answer, error);
    arena_release(&a);
    return status;
}

realm_status manage_tenant_create(tenant_store *s, const json_t *request, json_t **answer,
                                  realm_error *error)
{
    static const char *const names[] = {"name", "settings", NULL};
    tenant_settings settings = settings_default();
    const json_t *given = json_object_get(request, "settings");
    const char *name = NULL;
    uint32_t number;
    arena a;
    arena_init(&a, 0);
    realm_status status = check_names(request, names, error);
    if (!status)
        status = text_of(request, "name", &name, error);
    if (!status && !name)
        status = realm_fail(error, REALM_INVALID, "'name' is missing");
    if (!status && given)
        status = settings_read(&settings, &a, given, error);
    if (!status)
        status = s->table->tenant_create(s, name, &settings, &number, error);
    arena_release(&a);
    return status ? status : manage_tenant_show(s, name, answer, error);
}

realm_status manage_tenant_set(tenant_store *s, const char *name, const json_t *settings,
                               json_t **answer, realm_error *error)
{
    tenant_record t;
    arena a;
    arena_init(&a, 0);
    realm_status status = s->table->tenant_find(s, &a, name, &t, error);
    if (!status)
        status = settings_read(&t.settings, &a, settings, error);
    if (!status)
        status = s->table->tenant_set(s, t.number, &t.settings, error);
    if (!status)
        status = give(tenant_json(&t), answer, error);
    arena_release(&a);
    return status;
}

realm_status manage_tenant_delete(tenant_store *s, const char *name, uint32_t *number,
                                  json_t **answer, realm_error *error)
{
    tenant_record t;
    arena a;
    arena_init(&a, 0);
    realm_status status = s->table->tenant_find(s, &a, name, &t, error);
    if (!status)
        status = s->table->tenant_delete(s, t.number, error);
    if (!status && number)
        *number = t.number;
    arena_release(&a);
    return status ? status
                  : give(json_pack("{s:s, s:b}", "name", name, "deleted", 1), answer, error);
}

/* ---- keys ---- */

static json_t *scopes_json(unsigned scopes)
{
    json_t *list = json_array();
#define SCOPE(constant, bit, text)                                                                 \
    if (scopes & 1u << bit)                                                                        \
        json_array_append_new(list, json_string(text));
    API_SCOPE_MAP(SCOPE)
#undef SCOPE
    return list;
}

static json_t *key_json(const key_record *k, const char *tenant)
{
    return json_pack("{s:s, s:s?, s:s, s:o, s:o, s:o, s:o, s:o}", "id", k->id, "tenant", tenant,
                     "name", k->name ? k->name : "", "scopes", scopes_json(k->scopes), "created",
                     time_json(k->created_ms), "expires", time_json(k->expires_ms), "revoked",
                     time_json(k->revoked_ms), "last_used", time_json(k->last_used_ms));
}

/* STORE_ALL if none is named. */
static realm_status number_of(tenant_store *s, arena *a, const char *name, int64_t *number,
                              realm_error *error)
{
    tenant_record t;
    *number = STORE_ALL;
    if (!name)
        return REALM_OK;
    realm_status status = s->table->tenant_find(s, a, name, &t, error);
    if (!status)
        *number = t.number;
    return status;
}

realm_status manage_key_list(tenant_store *s, const char *tenant, manage_page *page,
                             json_t **answer, realm_error *error)
{
    key_record *keys;
    store_page part;
    size_t count;
    int64_t number;
    arena a;
    arena_init(&a, 0);
    json_t *list = json_array();
    realm_status status = number_of(s, &a, tenant, &number, error);
    if (!status)
        status = s->table->key_list(s, &a, number, ask_for(page, &part), &keys, &count, error);
    size_t shown = status ? 0 : manage_page_cut(page, count);
    for (size_t i = 0; !status && i < shown; i++)
        if (json_array_append_new(list, key_json(&keys[i], keys[i].tenant_name)))
            status = realm_fail_memory(error, 0, "the list of keys");
    if (!status && shown)
        note_last(page, keys[shown - 1].id);
    arena_release(&a);
    if (!status)
        return give(list, answer, error);
    json_decref(list);
    return status;
}

/* What a request says of a key, but for its tenant. */
static realm_status read_key(const json_t *request, key_record *key, realm_error *error)
{
    static const char *const names[] = {"tenant", "admin", "scopes", "name", "expires", NULL};
    const json_t *scopes = json_object_get(request, "scopes"),
                 *admin = json_object_get(request, "admin");
    const char *expires = NULL, *text = NULL;
    realm_status status = check_names(request, names, error);
    if (!status && admin && !json_is_boolean(admin))
        status = realm_fail(error, REALM_INVALID, "'admin' must be true or false");
    if (!status)
        status = text_of(request, "name", &key->name, error);
    if (!status)
        status = text_of(request, "expires", &expires, error);
    if (!status && !json_is_array(scopes) && !json_is_null(scopes) && scopes)
        status = text_of(request, "scopes", &text, error);
    if (status)
        return status;
    char joined[API_SCOPES_TEXT_SIZE] = "";
    for (size_t i = 0; json_is_array(scopes) && i < json_array_size(scopes); i++) {
        const char *scope = json_string_value(json_array_get(scopes, i));
        size_t used = strlen(joined);
        if (!scope || used + strlen(scope) + 2 > sizeof joined)
            return realm_fail(error, REALM_INVALID, "'scopes' must be a list of scopes' names");
        snprintf(joined + used, sizeof joined - used, "%s%s", used ? "," : "", scope);
    }
    if (json_is_array(scopes))
        text = joined;
    if (!text)
        text = json_is_true(admin) ? "admin" : "inference";
    status = api_scopes_parse(text, &key->scopes, error);
    if (!status && expires)
        status = manage_parse_time(expires, &key->expires_ms, error);
    return status;
}

realm_status manage_key_create(tenant_store *s, const json_t *request, json_t **answer,
                               realm_error *error)
{
    key_record key = {.created_ms = clock_wall_ms()};
    api_key_secret secret;
    const char *tenant = NULL;
    int64_t number;
    arena a;
    arena_init(&a, 0);
    realm_status status = read_key(request, &key, error);
    if (!status)
        status = text_of(request, "tenant", &tenant, error);
    if (!status && json_is_true(json_object_get(request, "admin")) == (tenant != NULL))
        status = realm_fail(error, REALM_INVALID, "give a tenant or admin, and not both");
    if (!status)
        status = number_of(s, &a, tenant, &number, error);
    if (!status)
        status = api_key_make(&secret, error);
    arena_release(&a);
    if (status)
        return status;
    key.tenant = tenant ? (uint32_t)number : 0;
    memcpy(key.id, secret.id, sizeof key.id);
    memcpy(key.salt, secret.salt, sizeof key.salt);
    memcpy(key.hash, secret.hash, sizeof key.hash);
    status = s->table->key_add(s, &key, error);
    json_t *object = status ? NULL : key_json(&key, tenant);
    if (object && json_object_set_new(object, "key", json_string(secret.text))) {
        json_decref(object);
        object = NULL;
    }
    memset(&secret, 0, sizeof secret);
    return status ? status : give(object, answer, error);
}

realm_status manage_key_revoke(tenant_store *s, const char *tenant, const char *id, json_t **answer,
                               realm_error *error)
{
    int64_t number;
    arena a;
    arena_init(&a, 0);
    realm_status status = number_of(s, &a, tenant, &number, error);
    if (!status)
        status = s->table->key_revoke(s, number, id, error);
    arena_release(&a);
    return status ? status : give(json_pack("{s:s, s:b}", "id", id, "revoked", 1), answer, error);
}
