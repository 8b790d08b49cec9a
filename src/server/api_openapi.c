/* server/api_openapi.c: GET /openapi.json: made from the routes that are served and from the fields that requests
 * may have, so that it cannot name one that is not. What they look like is in openapi_schemas.json, and
 * tests/integration/test_openapi.py holds the server to it. docs/API.md's tables are made from it too
 * (scripts/api_docs.py). */
#include <stdlib.h>
#include <string.h>

#include "server/openai_request.h"
#include "tenancy/settings.h"

extern const unsigned char openapi_schemas[];
extern const size_t openapi_schemas_size;

/* Requests whose fields are known. */
static const struct {
    void (*run)(server *s, exchange *x, const caller *c);
    openai_kind kind;
    const char *name, *required;
} requests[] = {
    {api_chat, OPENAI_CHAT, "ChatRequest", "messages"},
    {api_completions, OPENAI_COMPLETION, "CompletionRequest", "prompt"},
    {api_embeddings, OPENAI_EMBEDDINGS, "EmbeddingsRequest", "input"},
};
#define N_REQUESTS (sizeof requests / sizeof *requests)

/* A path with a star at its end ends with {name} there. */
static void path_of(const route *r, char *path, size_t size)
{
    snprintf(path, size, "%s", r->path);
    char *star = strchr(path, '*');
    if (star)
        snprintf(star, size - (size_t)(star - path), "{name}");
}

static json_t *reference(const char *schema)
{
    return json_pack("{s:s+}", "$ref", "#/components/schemas/", schema);
}

/* Of an operation of the admin API. A listing of usage may be a table too. */
static json_t *admin_answers(const json_t *about)
{
    const char *name = json_string_value(json_object_get(about, "answer"));
    json_t *content = json_pack("{s:{s:o}}", "application/json", "schema", reference(name));
    if (strcmp(name, "UsageList") == 0)
        json_object_set_new(content, "text/csv",
                            json_pack("{s:{s:s}}", "schema", "type", "string"));
    return json_pack("{s:{s:s, s:o}}", json_string_value(json_object_get(about, "status")),
                     "description", name, "content", content);
}

static json_t *answers_of(const char *path, const json_t *about, const json_t *known)
{
    json_t *answers = about ? admin_answers(about) : json_deep_copy(json_object_get(known, path));
    json_object_set_new(answers, "default",
                        json_pack("{s:s, s:{s:{s:{s:s}}}}", "description",
                                  "OpenAI's shape of errors", "content", "application/json",
                                  "schema", "$ref", "#/components/schemas/Error"));
    return answers;
}

/* A request as a schema, field by field. */
static json_t *request_schema(size_t request, const json_t *fields)
{
    json_t *properties = json_object();
    const char *name;
    for (size_t at = 0; (name = openai_request_field(requests[request].kind, &at));) {
        char own[64]; /* where a field is another one in this request */
        snprintf(own, sizeof own, "%s.%s", requests[request].name, name);
        json_t *about = json_object_get(fields, own);
        if (!about)
            about = json_object_get(fields, name);
        json_object_set_new(properties, name, about ? json_incref(about) : json_object());
    }
    return json_pack("{s:s, s:[s, s], s:o, s:b}", "type", "object", "required", "model",
                     requests[request].required, "properties", properties, "additionalProperties",
                     0);
}

static json_t *body_of(const route *r, const json_t *about)
{
    const char *known = json_string_value(json_object_get(about, "body"));
    if (known)
        return json_pack("{s:b, s:{s:{s:o}}}", "required", 1, "content", "application/json",
                         "schema", reference(known));
    for (size_t i = 0; i < N_REQUESTS; i++)
        if (requests[i].run == r->run)
            return json_pack("{s:b, s:{s:{s:{s:s+}}}}", "required", 1, "content",
                             "application/json", "schema", "$ref", "#/components/schemas/",
                             requests[i].name);
    if (r->run == api_admin_deploy)
        return json_pack("{s:b, s:{s:{s:{s:s, s:s}}}}", "required", 1, "content",
                         "application/wasm", "schema", "type", "string", "format", "binary");
    return json_pack("{s:b, s:{s:{s:{}}}}", "required", 0, "content", "application/json", "schema");
}

/* One for each part of the path that is in braces, and those of the query. */
static json_t *parameters_of(const char *path, const json_t *about, const json_t *known)
{
    json_t *list = json_array();
    for (const char *at = path; (at = strchr(at, '{')); at++)
        json_array_append_new(list, json_pack("{s:s%, s:s, s:b, s:{s:s}}", "name", at + 1,
                                              strcspn(at, "}") - 1, "in", "path", "required", 1,
                                              "schema", "type", "string"));
    const json_t *query = json_object_get(about, "query");
    for (size_t i = 0; i < json_array_size(query); i++) {
        const char *name = json_string_value(json_array_get(query, i));
        json_t *one = json_pack("{s:s, s:s}", "name", name, "in", "query");
        json_object_update(one, json_object_get(known, name));
        json_array_append_new(list, one);
    }
    return list;
}

static json_t *operation_of(const route *r, const char *path, const json_t *known)
{
    char name[160];
    snprintf(name, sizeof name, "%s %s", r->method, path);
    const json_t *about = json_object_get(json_object_get(known, "operations"), name);
    json_t *operation = json_pack("{s:s, s:o}", "summary", r->summary, "responses",
                                  answers_of(path, about, json_object_get(known, "answers")));
    json_t *parameters = parameters_of(path, about, json_object_get(known, "parameters"));
    if (json_array_size(parameters))
        json_object_set(operation, "parameters", parameters);
    json_decref(parameters);
    if (about)
        json_object_set(operation, "x-scope", json_object_get(about, "scope"));
    if (*r->method == 'P') /* POST, PUT, PATCH */
        json_object_set_new(operation, "requestBody", body_of(r, about));
    if (r->needs_caller == ACCESS_ADMIN)
        json_object_set_new(operation, "security", json_pack("[{s:[]}]", "bearer"));
    else if (r->needs_caller)
        json_object_set_new(operation, "security", json_pack("[{s:[]}, {}]", "bearer"));
    return operation;
}

void api_openapi(server *s, exchange *x, const caller *c)
{
    (void)s;
    (void)c;
    json_t *paths = json_object();
    json_t *known = json_loadb((const char *)openapi_schemas, openapi_schemas_size, 0, NULL);
    for (size_t i = 0; i < n_routes; i++) {
        char path[128];
        path_of(&routes[i], path, sizeof path);
        json_t *item = json_object_get(paths, path);
        if (!item) {
            json_object_set_new(paths, path, json_object());
            item = json_object_get(paths, path);
        }
        char method[16];
        size_t length = 0;
        for (const char *m = routes[i].method; *m && length + 1 < sizeof method; m++)
            method[length++] = (char)(*m | 0x20);
        method[length] = 0;
        json_object_set_new(item, method, operation_of(&routes[i], path, known));
    }
    json_t *schemas = json_object();
    json_object_update(schemas, json_object_get(known, "schemas"));
    for (size_t i = 0; i < N_REQUESTS; i++)
        json_object_set_new(schemas, requests[i].name,
                            request_schema(i, json_object_get(known, "fields")));
    json_object_set_new(schemas, "Settings", settings_schema(0));
    json_object_set_new(schemas, "SettingsChange", settings_schema(1));
    json_decref(known);
    api_reply_json(x, 200,
                   json_pack("{s:s, s:{s:s, s:s}, s:o, s:{s:o, s:{s:{s:s, s:s}}}}", "openapi",
                             "3.1.0", "info", "title", "Realm", "version", realm_version(), "paths",
                             paths, "components", "schemas", schemas, "securitySchemes", "bearer",
                             "type", "http", "scheme", "bearer"));
}
