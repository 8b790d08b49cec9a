/* tenancy/manage_programs.c: see manage.h: programs and usage. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tenancy/manage.h"
#include "tenancy/meter.h"

static realm_status give(json_t *value, json_t **answer, realm_error *error)
{
    *answer = value;
    return value ? REALM_OK : realm_fail_memory(error, 0, "the answer");
}

int32_t manage_share(double percent)
{
    if (!(percent >= 0 && percent <= 100))
        return -1;
    return (int32_t)(percent * ROUTE_WHOLE / 100 + 0.5);
}

static double percent_of(int32_t share)
{
    return (double)share * 100 / ROUTE_WHOLE;
}

/* ---- listing ---- */

/* Usage of a program's versions, by version. */
typedef struct version_usage {
    const program_record *program;
    usage_counts *counts; /* [program->n_versions] */
} version_usage;

static void take_usage(void *context, const char *tenant, const usage_row *row)
{
    (void)tenant;
    const version_usage *u = context;
    for (int32_t i = 0; i < u->program->n_versions; i++)
        if (u->program->versions[i].version == row->key.version)
            u->counts[i] = row->counts;
}

static int32_t share_of(const program_record *p, int32_t version)
{
    for (int32_t i = 0; i < p->n_route; i++)
        if (p->route[i].version == version)
            return p->route[i].share;
    return 0;
}

static json_t *version_json(const program_record *p, const program_version *v,
                            const usage_counts *c)
{
    char created[MANAGE_TIME_SIZE];
    return json_pack("{s:i, s:f, s:s, s:I, s:s, s:s, s:I, s:I, s:f, s:f}", "version",
                     (int)v->version, "percent", percent_of(share_of(p, v->version)), "hash",
                     v->hash, "bytes", (json_int_t)v->size, "created",
                     manage_time(v->created_ms, created), "note", v->note, "requests",
                     (json_int_t)c->requests, "errors", (json_int_t)c->errors, "p50_ms",
                     usage_quantile_ms(c, 0.5), "p95_ms", usage_quantile_ms(c, 0.95));
}

static realm_status program_json(tenant_store *s, arena *a, const program_record *p, json_t **out,
                                 realm_error *error)
{
    version_usage u = {p, arena_take_array(a, (size_t)p->n_versions, sizeof *u.counts)};
    usage_filter filter = {.tenant = p->tenant, .program = p->name};
    json_t *versions = json_array();
    realm_status status = u.counts ? s->table->usage_read(s, &filter, USAGE_BY_PROGRAM, NULL,
                                                          take_usage, &u, error)
                                   : realm_fail_memory(error, 0, "a program's usage");
    for (int32_t i = p->n_versions; i-- > 0 && !status;)
        if (json_array_append_new(versions, version_json(p, &p->versions[i], &u.counts[i])))
            status = realm_fail_memory(error, 0, "a program's versions");
    if (!status)
        return give(json_pack("{s:s, s:s, s:o}", "tenant", p->tenant_name, "program", p->name,
                              "versions", versions),
                    out, error);
    json_decref(versions);
    return status;
}

/* A page's program is "tenant/program". In one tenant's list (of; NULL: everybody's) it is that tenant's, or the
 * answer would tell whether another one is there. */
static realm_status find_page(tenant_store *s, const manage_page *page, const char *of, arena *a,
                              store_page *out, realm_error *error)
{
    *out = (store_page){.limit = page->limit + 1};
    if (!page->after)
        return REALM_OK;
    const char *slash = strchr(page->after, '/');
    char *tenant = arena_copy(a, page->after, slash ? (size_t)(slash - page->after) : 0);
    if (!tenant)
        return realm_fail_memory(error, 0, "a page");
    if (!slash || (of && strcmp(tenant, of) != 0))
        return realm_fail(error, REALM_INVALID,
                          "after wants a last_id of this list, as %.64s/program, not '%.80s'",
                          of ? of : "tenant", page->after);
    out->after = slash + 1;
    return s->table->tenant_number(s, tenant, &out->after_tenant, error);
}

static realm_status add_programs(tenant_store *s, arena *a, const char *of, int64_t number,
                                 const char *name, manage_page *page, json_t *list,
                                 realm_error *error)
{
    program_record *programs;
    store_page part;
    size_t count = 0;
    realm_status status = page ? find_page(s, page, of, a, &part, error) : REALM_OK;
    if (!status)
        status = s->table->program_list(s, a, number, name, page ? &part : NULL, &programs, &count,
                                        error);
    count = manage_page_cut(page, count);
    for (size_t i = 0; !status && i < count; i++) {
        json_t *shown = NULL;
        status = program_json(s, a, &programs[i], &shown, error);
        if (!status && json_array_append_new(list, shown))
            status = realm_fail_memory(error, 0, "the list of programs");
    }
    if (!status && page && count)
        snprintf(page->last_id, sizeof page->last_id, "%s/%s", programs[count - 1].tenant_name,
                 programs[count - 1].name);
    if (!status && name && !count && !(page && page->after))
        status = realm_fail(error, REALM_NOT_FOUND, "there is no program '%.80s'", name);
    return status;
}

realm_status manage_program_list(tenant_store *s, const char *tenant, const char *name,
                                 manage_page *page, json_t **answer, realm_error *error)
{
    tenant_record t = {.number = 0};
    json_t *list = json_array();
    arena a;
    arena_init(&a, 0);
    realm_status status = tenant ? s->table->tenant_find(s, &a, tenant, &t, error) : REALM_OK;
    if (!status)
        status = add_programs(s, &a, tenant, tenant ? (int64_t)t.number : STORE_ALL, name, page,
                              list, error);
    arena_release(&a);
    if (!status)
        return give(list, answer, error);
    json_decref(list);
    return status;
}

/* ---- changing ---- */

realm_status manage_program_deploy(tenant_store *s, const char *tenant, const char *name,
                                   const void *bytes, size_t size, int32_t share, const char *note,
                                   json_t **answer, realm_error *error)
{
    tenant_record t;
    int32_t version = 0;
    arena a;
    arena_init(&a, 0);
    realm_status status = s->table->tenant_find(s, &a, tenant, &t, error);
    if (!status) {
        const deployment d = {.tenant = t.number,
                              .name = name,
                              .bytes = bytes,
                              .size = size,
                              .note = note,
                              .share = share,
                              .limit_bytes = (uint64_t)t.settings.program_bytes};
        status = s->table->program_deploy(s, &d, &version, error);
    }
    arena_release(&a);
    return status ? status
                  : give(json_pack("{s:s, s:s, s:i, s:f}", "tenant", tenant, "program", name,
                                   "version", (int)version, "percent", percent_of(share)),
                         answer, error);
}

static realm_status read_route(const json_t *list, route_share *route, int32_t *count,
                               realm_error *error)
{
    *count = 0;
    size_t size = json_array_size(list);
    if (!json_is_array(list) || !size || size > ROUTE_MAX_SHARES)
        return realm_fail(error, REALM_INVALID,
                          "a route is a list of 1 to %d versions with percents", ROUTE_MAX_SHARES);
    for (size_t i = 0; i < size; i++) {
        const json_t *item = json_array_get(list, i);
        const json_t *version = json_object_get(item, "version"),
                     *percent = json_object_get(item, "percent");
        int32_t share = json_is_number(percent) ? manage_share(json_number_value(percent)) : -1;
        json_int_t number = json_integer_value(version);
        if (json_object_size(item) != 2 || number < 1 || number > INT32_MAX || share < 1)
            return realm_fail(
                error, REALM_INVALID,
                "route[%zu] must be {\"version\": a number, \"percent\": above 0, to 100}", i);
        route[(*count)++] = (route_share){(int32_t)number, share};
    }
    return REALM_OK;
}

/* Runs what with the tenant's number. */
typedef realm_status on_program(tenant_store *s, uint32_t tenant, const char *name, void *context,
                                realm_error *error);

static realm_status with_tenant(tenant_store *s, const char *tenant, const char *name,
                                on_program *what, void *context, realm_error *error)
{
    tenant_record t;
    arena a;
    arena_init(&a, 0);
    realm_status status = s->table->tenant_find(s, &a, tenant, &t, error);
    if (!status)
        status = what(s, t.number, name, context, error);
    arena_release(&a);
    return status;
}

typedef struct route {
    route_share shares[ROUTE_MAX_SHARES];
    int32_t count;
} route;

static realm_status set_route(tenant_store *s, uint32_t tenant, const char *name, void *context,
                              realm_error *error)
{
    const route *r = context;
    return s->table->program_route(s, tenant, name, r->shares, r->count, error);
}

realm_status manage_program_route(tenant_store *s, const char *tenant, const char *name,
                                  const json_t *list, json_t **answer, realm_error *error)
{
    route r;
    realm_status status = read_route(list, r.shares, &r.count, error);
    if (!status)
        status = with_tenant(s, tenant, name, set_route, &r, error);
    return status ? status : manage_program_list(s, tenant, name, NULL, answer, error);
}

static realm_status roll_back(tenant_store *s, uint32_t tenant, const char *name, void *context,
                              realm_error *error)
{
    int32_t *version = context;
    return s->table->program_rollback(s, tenant, name, *version, version, error);
}

realm_status manage_program_rollback(tenant_store *s, const char *tenant, const char *name,
                                     int32_t to, json_t **answer, realm_error *error)
{
    realm_status status = with_tenant(s, tenant, name, roll_back, &to, error);
    return status ? status
                  : give(json_pack("{s:s, s:s, s:i}", "tenant", tenant, "program", name, "version",
                                   (int)to),
                         answer, error);
}

static realm_status remove_program(tenant_store *s, uint32_t tenant, const char *name,
                                   void *context, realm_error *error)
{
    (void)context;
    return s->table->program_delete(s, tenant, name, error);
}

realm_status manage_program_delete(tenant_store *s, const char *tenant, const char *name,
                                   json_t **answer, realm_error *error)
{
    realm_status status = with_tenant(s, tenant, name, remove_program, NULL, error);
    return status
               ? status
               : give(json_pack("{s:s, s:s, s:b}", "tenant", tenant, "program", name, "deleted", 1),
                      answer, error);
}

/* ---- usage ---- */

static realm_status parse_day(const char *name, const char *text, int32_t *day, realm_error *error)
{
    *day = text ? meter_day_parse(text) : 0;
    return !text || *day > 0 ? REALM_OK
                             : realm_fail(error, REALM_INVALID,
                                          "%s wants a day as 2026-01-31, not '%.40s'", name, text);
}

static realm_status read_query(const manage_usage_query *q, usage_filter *filter, unsigned *by,
                               realm_error *error)
{
    *filter = (usage_filter){.key = q->key, .model = q->model, .program = q->program};
    if (q->format && strcmp(q->format, "csv") != 0 && strcmp(q->format, "json") != 0)
        return realm_fail(error, REALM_INVALID, "format must be csv or json, not '%.40s'",
                          q->format);
    realm_status status = parse_day("from", q->from, &filter->from, error);
    if (!status)
        status = parse_day("to", q->to, &filter->to, error);
    if (!status)
        status = usage_by_parse(q->by ? q->by : "day,tenant,key,model,program", by, error);
    return status;
}

realm_status manage_usage_check(const manage_usage_query *q, realm_error *error)
{
    usage_filter filter;
    unsigned by;
    return read_query(q, &filter, &by, error);
}

/* A row's place in its listing as text: ["2026-01-31","acme",3,"key","model","program",1]. */
static realm_status read_place(const char *text, usage_key *key, char name[64], realm_error *error)
{
    json_t *list = NULL;
    json_int_t tenant, version;
    const char *day, *tenant_name, *key_id, *model_name, *program_name;
    realm_status status = REALM_INVALID;
    if (json_parse(&list, text, strlen(text), sizeof((manage_page *)0)->last_id, 2, NULL) ==
            REALM_OK &&
        json_unpack(list, "[s, s, I, s, s, s, I!]", &day, &tenant_name, &tenant, &key_id,
                    &model_name, &program_name, &version) == 0 &&
        tenant >= 0 && tenant <= UINT32_MAX && version >= 0 && version <= INT32_MAX &&
        (!*day || meter_day_parse(day) > 0)) {
        *key = (usage_key){.day = *day ? meter_day_parse(day) : 0,
                           .tenant = (uint32_t)tenant,
                           .version = (int32_t)version};
        snprintf(name, 64, "%s", tenant_name);
        snprintf(key->key, sizeof key->key, "%s", key_id);
        snprintf(key->model, sizeof key->model, "%s", model_name);
        snprintf(key->program, sizeof key->program, "%s", program_name);
        status = REALM_OK;
    }
    json_decref(list);
    return status ? realm_fail(error, status, "after wants a last_id, not '%.80s'", text) : status;
}

static void write_place(const usage_key *key, const char *name, char *out, size_t size)
{
    char day[11] = "";
    if (key->day)
        meter_day_text(key->day, day);
    json_t *list = json_pack("[s, s, I, s, s, s, I]", day, name, (json_int_t)key->tenant, key->key,
                             key->model, key->program, (json_int_t)key->version);
    char *text = json_text(list, JSON_ENSURE_ASCII);
    snprintf(out, size, "%s", text ? text : "");
    free(text);
    json_decref(list);
}

typedef struct usage_listing {
    usage_writer writer;
    manage_page *page; /* NULL: all */
    usage_key last;
    char last_name[64];
} usage_listing;

static void write_row(void *context, const char *tenant, const usage_row *row)
{
    usage_listing *l = context;
    if (l->page && l->writer.rows == l->page->limit) {
        l->page->has_more = 1;
        return;
    }
    usage_writer_row(&l->writer, tenant, row);
    l->last = row->key;
    snprintf(l->last_name, sizeof l->last_name, "%s", tenant);
}

static void end_listing(usage_listing *l, FILE *out, int is_json)
{
    usage_writer_end(&l->writer);
    manage_page *page = l->page;
    if (!page)
        return;
    if (l->writer.rows)
        write_place(&l->last, l->last_name, page->last_id, sizeof page->last_id);
    if (!is_json)
        return;
    fprintf(out, ", \"has_more\": %s, \"last_id\": ", page->has_more ? "true" : "false");
    if (*page->last_id)
        json_print_text(out, page->last_id, strlen(page->last_id));
    else
        fputs("null", out);
    fputs("}\n", out);
}

realm_status manage_usage(tenant_store *s, const manage_usage_query *q, manage_page *page,
                          FILE *out, realm_error *error)
{
    usage_listing l = {.page = page};
    usage_filter filter;
    usage_key after;
    char after_name[64];
    unsigned by;
    int is_json = q->format && *q->format == 'j';
    realm_status status = read_query(q, &filter, &by, error);
    if (!status && page && page->after)
        status = read_place(page->after, &after, after_name, error);
    /* Deleted ones too: their bills are still to be paid. */
    if (!status && q->tenant)
        status = s->table->tenant_number(s, q->tenant, &filter.tenant, error);
    if (status)
        return status;
    const usage_page part = {.after = page && page->after ? &after : NULL,
                             .after_name = after_name,
                             .limit = page ? page->limit + 1 : 0};
    if (page && is_json)
        fputs("{\"object\": \"list\", \"data\": ", out);
    usage_writer_begin(&l.writer, out, is_json ? USAGE_JSON : USAGE_CSV, by);
    status = s->table->usage_read(s, &filter, by, page ? &part : NULL, write_row, &l, error);
    if (!status)
        end_listing(&l, out, is_json);
    return status;
}
