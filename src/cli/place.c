/* cli/place.c: see place.h. */
#include "cli/place.h"

#include <curl/curl.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/arena.h"
#include "base/file.h"
#include "cli/data_folder.h"

#define MAX_ANSWER ((size_t)1 << 30)
#define PAGE_TEXT  "1000" /* MANAGE_MOST_ROWS */

/* ---- opening ---- */

/* 1 if nobody else hears what is said in clear. */
static int is_this_machine(const char *url)
{
    static const char *const hosts[] = {"http://127.0.0.1", "http://localhost", "http://[::1]"};
    for (size_t i = 0; i < sizeof hosts / sizeof *hosts; i++) {
        size_t size = strlen(hosts[i]);
        if (strncasecmp(url, hosts[i], size) == 0 && (!url[size] || strchr(":/", url[size])))
            return 1;
    }
    return 0;
}

static realm_status read_key(place *p, realm_error *error)
{
    const char *own = getenv("REALM_KEY");
    char *text = NULL;
    size_t size = 0;
    arena a;
    arena_init(&a, 0);
    realm_status status = REALM_OK;
    if (p->key_file)
        status = file_read(&a, p->key_file, sizeof p->key - 1, &text, &size, error);
    else if (own)
        snprintf(p->key, sizeof p->key, "%s", own);
    if (!status && text)
        memcpy(p->key, text, size);
    arena_release(&a);
    p->key[strcspn(p->key, "\r\n")] = 0;
    if (!status && !*p->key)
        status = realm_fail(error, REALM_INVALID,
                            "--server needs a key: put it into $REALM_KEY or give --key-file FILE");
    return status;
}

realm_status place_open(place *p, int make, realm_error *error)
{
    if (!p->server)
        return data_folder_open(&p->store, p->data, make, error);
    if (p->data)
        return realm_fail(error, REALM_INVALID, "--data and --server exclude each other");
    if (strncasecmp(p->server, "https://", 8) != 0 && !is_this_machine(p->server))
        return realm_fail(error, REALM_INVALID,
                          "--server must be an https:// URL: over http:// the key could be read on "
                          "the way (but for this machine)");
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != 0)
        return realm_fail(error, REALM_INTERNAL, "libcurl does not start");
    return read_key(p, error);
}

void place_close(place *p)
{
    if (p->store)
        p->store->table->close(p->store);
    memset(p->key, 0, sizeof p->key);
}

/* ---- asking ---- */

static void add_escaped(buffer *out, CURL *c, const char *text)
{
    char *escaped = curl_easy_escape(c, text, 0);
    buffer_add_text(out, escaped ? escaped : "");
    curl_free(escaped);
}

static void make_url(buffer *out, CURL *c, const place *p, const place_call *call)
{
    size_t size = strlen(p->server);
    while (size && p->server[size - 1] == '/')
        size--;
    buffer_add(out, p->server, size);
    buffer_add_text(out, "/admin/v1");
    for (int i = 0; call->parts[i]; i++) {
        buffer_add_text(out, "/");
        add_escaped(out, c, call->parts[i]);
    }
    char mark = '?';
    for (int i = 0; call->query[i][0]; i++) {
        if (!call->query[i][1])
            continue;
        buffer_printf(out, "%c%s=", mark, call->query[i][0]);
        add_escaped(out, c, call->query[i][1]);
        mark = '&';
    }
}

/* The body, and where the next page of a table begins. */
typedef struct answered {
    buffer text;
    int has_more;
    char last_id[1024];
} answered;

static size_t take_bytes(char *bytes, size_t one, size_t count, void *context)
{
    return buffer_add(context, bytes, one * count) ? 0 : one * count;
}

/* The server's own sentence, and the status that comes nearest. */
static realm_status failure_of(long http, buffer *answer, realm_error *error)
{
    json_t *value = NULL;
    json_parse(&value, buffer_text(answer), answer->size, MAX_ANSWER, JSON_USUAL_DEPTH, NULL);
    const char *message = json_string_value(
        json_object_get(json_object_get(value, "error"), "message"));
    realm_status status = http == 404                  ? REALM_NOT_FOUND
                          : http == 401 || http == 403 ? REALM_DENIED
                          : http == 429                ? REALM_QUOTA
                          : http < 500                 ? REALM_INVALID
                                                       : REALM_INTERNAL;
    if (message)
        realm_fail(error, status, "%s", message);
    else
        realm_fail(error, status, "the server answered with status %ld", http);
    json_decref(value);
    return status;
}

static realm_status perform(CURL *c, const place *p, const place_call *call, const char *url,
                            const char *json, answered *out, realm_error *error)
{
    char reason[CURL_ERROR_SIZE] = "", authorization[sizeof p->key + 32];
    snprintf(authorization, sizeof authorization, "authorization: Bearer %s", p->key);
    struct curl_slist *headers = curl_slist_append(NULL, authorization);
    headers = curl_slist_append(headers, json ? "content-type: application/json"
                                              : "content-type: application/wasm");
    headers = curl_slist_append(headers,
                                "expect:"); /* the key is checked before the body is kept */
    const void *body = json ? json : call->bytes;
    size_t size = json ? strlen(json) : call->size;
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT, 10L);
    curl_easy_setopt(c, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, take_bytes);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, &out->text);
    curl_easy_setopt(c, CURLOPT_ERRORBUFFER, reason);
    if (p->ca_file)
        curl_easy_setopt(c, CURLOPT_CAINFO, p->ca_file);
    if (body) {
        curl_easy_setopt(c, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)size);
        curl_easy_setopt(c, CURLOPT_POSTFIELDS, body);
    }
    curl_easy_setopt(c, CURLOPT_CUSTOMREQUEST, call->method);
    long http = 0;
    CURLcode code = curl_easy_perform(c);
    curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &http);
    struct curl_header *header;
    if (curl_easy_header(c, "x-has-more", 0, CURLH_HEADER, -1, &header) == CURLHE_OK)
        out->has_more = strcmp(header->value, "true") == 0;
    if (curl_easy_header(c, "x-last-id", 0, CURLH_HEADER, -1, &header) == CURLHE_OK)
        snprintf(out->last_id, sizeof out->last_id, "%s", header->value);
    curl_slist_free_all(headers);
    memset(authorization, 0, sizeof authorization);
    if (code)
        return realm_fail(error, REALM_IO, "'%.200s': %s", p->server,
                          *reason ? reason : curl_easy_strerror(code));
    return http >= 200 && http < 300 ? REALM_OK : failure_of(http, &out->text, error);
}

static realm_status ask(const place *p, const place_call *call, answered *out, realm_error *error)
{
    CURL *c = curl_easy_init();
    char *json = call->json ? json_dumps(call->json, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
    buffer url;
    buffer_init(&url, (size_t)1 << 20);
    realm_status status;
    if (c)
        make_url(&url, c, p, call);
    if (!c || (call->json && !json) || !url.size)
        status = realm_fail_memory(error, 0, "a request");
    else
        status = perform(c, p, call, buffer_text(&url), json, out, error);
    curl_easy_cleanup(c);
    free(json);
    buffer_release(&url);
    return status;
}

realm_status place_ask(const place *p, const place_call *call, json_t **answer, realm_error *error)
{
    answered got = {.has_more = 0};
    buffer_init(&got.text, MAX_ANSWER);
    realm_status status = ask(p, call, &got, error);
    if (!status)
        status = json_parse(answer, buffer_text(&got.text), got.text.size, MAX_ANSWER,
                            JSON_USUAL_DEPTH, error);
    buffer_release(&got.text);
    return status;
}

/* ---- lists ---- */

/* Adds "limit" and "after" behind the query's rows. */
static void want_page(place_call *call, const char *after)
{
    int n = 0;
    while (call->query[n][0])
        n++;
    call->query[n][0] = "limit", call->query[n][1] = PAGE_TEXT;
    call->query[n + 1][0] = "after", call->query[n + 1][1] = after;
}

/* A page's items go to the array, its last_id to after; 1 if there is more, -1 if it is no page. */
static int take_page(json_t *array, const json_t *page, char *after, size_t size)
{
    const json_t *data = json_object_get(page, "data");
    const char *last = json_string_value(json_object_get(page, "last_id"));
    if (!json_is_array(data) || json_array_extend(array, (json_t *)(uintptr_t)data))
        return -1;
    int more = json_is_true(json_object_get(page, "has_more"));
    if (more && (!last || snprintf(after, size, "%s", last) >= (int)size))
        return -1;
    return more;
}

realm_status place_ask_list(const place *p, const place_call *call, json_t **answer,
                            realm_error *error)
{
    char after[sizeof((answered *)0)->last_id];
    json_t *array = json_array();
    realm_status status = REALM_OK;
    for (int more = 1, first = 1; more > 0 && !status; first = 0) {
        place_call part = *call;
        json_t *page = NULL;
        want_page(&part, first ? NULL : after);
        status = place_ask(p, &part, &page, error);
        more = status ? 0 : take_page(array, page, after, sizeof after);
        json_decref(page);
        if (more < 0)
            status = realm_fail(error, REALM_INTERNAL, "the server's answer is no list");
    }
    if (status)
        json_decref(array);
    else
        *answer = array;
    return status;
}

/* Rows as usage_writer lays them out; the first page of a table has its header line, the others not. */
static realm_status print_rows(const answered *got, int first, FILE *out, realm_error *error)
{
    const char *text = got->text.data ? got->text.data : "", *end = text + got->text.size;
    const char *line = first ? NULL : memchr(text, '\n', got->text.size);
    if (line)
        text = line + 1;
    if (fwrite(text, 1, (size_t)(end - text), out) != (size_t)(end - text))
        return realm_fail(error, REALM_IO, "standard output cannot be written");
    return REALM_OK;
}

static realm_status print_table(const place *p, const place_call *call, FILE *out,
                                realm_error *error)
{
    answered got = {.has_more = 1};
    realm_status status = REALM_OK;
    for (int first = 1; got.has_more && !status; first = 0) {
        char after[sizeof got.last_id];
        place_call part = *call;
        snprintf(after, sizeof after, "%s", got.last_id);
        want_page(&part, first ? NULL : after);
        got.has_more = 0;
        buffer_init(&got.text, MAX_ANSWER);
        status = ask(p, &part, &got, error);
        if (!status)
            status = print_rows(&got, first, out, error);
        buffer_release(&got.text);
    }
    return status;
}

static realm_status print_list(const place *p, const place_call *call, FILE *out,
                               realm_error *error)
{
    json_t *rows = NULL;
    realm_status status = place_ask_list(p, call, &rows, error);
    if (status)
        return status;
    fputs("[", out);
    for (size_t i = 0; i < json_array_size(rows); i++) {
        fputs(i ? ",\n " : "\n ", out);
        json_dumpf(json_array_get(rows, i), out, JSON_REAL_PRECISION(12));
    }
    fputs(json_array_size(rows) ? "\n]\n" : "]\n", out);
    json_decref(rows);
    return REALM_OK;
}

realm_status place_usage(const place *p, const manage_usage_query *q, FILE *out, realm_error *error)
{
    const place_call call = {.method = "GET",
                             .parts = {"usage"},
                             .query = {{"tenant", q->tenant},
                                       {"from", q->from},
                                       {"to", q->to},
                                       {"key", q->key},
                                       {"model", q->model},
                                       {"program", q->program},
                                       {"by", q->by},
                                       {"format", q->format}}};
    return q->format && *q->format == 'j' ? print_list(p, &call, out, error)
                                          : print_table(p, &call, out, error);
}
