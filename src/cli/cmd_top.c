/* cli/cmd_top.c: `realm top`: what a server does now, from its /metrics: models, tenants, speeds, pages.
 *
 * A sample is two-level JSON, {"models": {NAME: {FIGURE: value}}, "tenants": {...}, "server": {"": {...}}}; what is
 * shown is made of two of them. In a terminal it is drawn anew each time, cut to the window's size; elsewhere one
 * table follows another. Main thread. */
#include <curl/curl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "base/buffer.h"
#include "base/clock.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "cli/terminal.h"
#include "formats/json.h"

#define MAX_PAGE ((size_t)64 << 20)

typedef struct top {
    const char *server;
    double interval_s;
    int once, json;
    char authorization[300]; /* a header, or "" */
    json_t *before, *now;    /* samples */
    double seconds;          /* between them */
} top;

/* Figures of a sample: where they come from, whose they are, what they are called. Series with the same owner
 * are added up. */
static const struct {
    const char *metric, *group, *owner, *figure;
} sources[] = {
    {"realm_requests_total", "tenants", "tenant", "requests"},
    {"realm_requests_refused_total", "tenants", "tenant", "refused"},
    {"realm_prompt_tokens_total", "tenants", "tenant", "prompt_tokens"},
    {"realm_generated_tokens_total", "tenants", "tenant", "generated_tokens"},
    {"realm_prompt_tokens_total", "tenants", "tenant", "tokens"},
    {"realm_generated_tokens_total", "tenants", "tenant", "tokens"},
    {"realm_tenant_tokens_running", "tenants", "tenant", "tokens"},
    {"realm_time_to_first_token_seconds_sum", "tenants", "tenant", "first_token_sum"},
    {"realm_time_to_first_token_seconds_count", "tenants", "tenant", "first_token_count"},
    {"realm_sandbox_cpu_seconds_total", "tenants", "tenant", "cpu"},
    {"realm_tenant_sessions", "tenants", "tenant", "sessions"},
    {"realm_tenant_kv_pages", "tenants", "tenant", "pages"},
    {"realm_engine_sessions", "models", "model", "sessions"},
    {"realm_engine_waiting", "models", "model", "at_work"},
    {"realm_engine_kv_pages", "models", "model", "pages"},
    {"realm_engine_kv_pages_used", "models", "model", "pages_used"},
    {"realm_engine_prefilled_tokens_total", "models", "model", "prompt_tokens"},
    {"realm_engine_decoded_tokens_total", "models", "model", "generated_tokens"},
    {"realm_engine_busy_seconds_total", "models", "model", "busy"},
    {"realm_connections", "server", NULL, "connections"},
    {"realm_sandboxes", "server", NULL, "sandboxes"},
    {"realm_sandboxes_waiting", "server", NULL, "sandboxes_waiting"},
};

static volatile sig_atomic_t interrupted;

static void on_signal(int number)
{
    if (number != SIGWINCH) /* that one only ends a sleep, so that the new size is drawn to */
        interrupted = 1;
}

/* ---- sampling ---- */

static size_t take_bytes(char *bytes, size_t one, size_t count, void *context)
{
    return buffer_add(context, bytes, one * count) ? 0 : one * count;
}

static realm_status fetch(const top *t, buffer *page, realm_error *error)
{
    char url[1024], reason[CURL_ERROR_SIZE] = "";
    size_t size = strlen(t->server);
    snprintf(url, sizeof url, "%s%smetrics", t->server,
             size && t->server[size - 1] == '/' ? "" : "/");
    CURL *c = curl_easy_init();
    if (!c)
        return realm_fail(error, REALM_INTERNAL, "libcurl does not start");
    struct curl_slist *headers = *t->authorization ? curl_slist_append(NULL, t->authorization)
                                                   : NULL;
    long http = 0;
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_TIMEOUT, 10L);
    curl_easy_setopt(c, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, take_bytes);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, page);
    curl_easy_setopt(c, CURLOPT_ERRORBUFFER, reason);
    CURLcode code = curl_easy_perform(c);
    curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &http);
    curl_easy_cleanup(c);
    curl_slist_free_all(headers);
    if (code != CURLE_OK)
        return realm_fail(error, REALM_IO, "%.200s cannot be asked: %s", url,
                          *reason ? reason : curl_easy_strerror(code));
    if (http == 401 || http == 403)
        return realm_fail(
            error, REALM_DENIED,
            "the server wants a key of the node: make one with 'realm key create --admin "
            "--scopes metrics' and put it into $REALM_KEY");
    if (http != 200)
        return realm_fail(error, REALM_IO, "%.200s answered with status %ld", url, http);
    return REALM_OK;
}

/* A label's value, unescaped; "" if the series has none of that name. */
static void read_label(const char *labels, const char *name, char *out, size_t size)
{
    char mark[64];
    size_t used = 0;
    snprintf(mark, sizeof mark, "%s=\"", name);
    const char *at = strstr(labels, mark);
    for (at = at ? at + strlen(mark) : ""; *at && *at != '"' && used + 1 < size; at++) {
        at += *at == '\\' && at[1];
        out[used++] = *at;
    }
    out[used] = 0;
}

static json_t *child(json_t *parent, const char *name)
{
    json_t *value = json_object_get(parent, name);
    if (!value)
        json_object_set_new(parent, name, value = json_object());
    return value;
}

static double figure(const json_t *owner, const char *name)
{
    return json_number_value(json_object_get(owner, name));
}

static void take_line(json_t *sample, char *line)
{
    char *end = line + strcspn(line, "{ "), *value = strrchr(line, ' ');
    if (*line == '#' || !value || value < end)
        return;
    size_t size = (size_t)(end - line);
    for (size_t i = 0; i < sizeof sources / sizeof *sources; i++) {
        if (strlen(sources[i].metric) != size || memcmp(sources[i].metric, line, size) != 0)
            continue;
        char owner[256] = "";
        if (sources[i].owner)
            read_label(end, sources[i].owner, owner, sizeof owner);
        json_t *of = child(child(sample, sources[i].group), owner);
        double sum = figure(of, sources[i].figure) + strtod(value, NULL);
        json_object_set_new(of, sources[i].figure, json_real(sum));
    }
}

static realm_status take_sample(const top *t, json_t **out, realm_error *error)
{
    buffer page;
    buffer_init(&page, MAX_PAGE);
    realm_status status = fetch(t, &page, error);
    if (!status) {
        *out = json_object();
        buffer_add(&page, "", 1);
        char *rest;
        for (char *line = strtok_r(page.data, "\n", &rest); line;
             line = strtok_r(NULL, "\n", &rest))
            take_line(*out, line);
    }
    buffer_release(&page);
    return status;
}

/* ---- what is shown ---- */

/* A figure's growth a second. A server that has begun anew counts from zero. */
static double rate(const top *t, const char *group, const char *owner, const char *name)
{
    const json_t *now = json_object_get(json_object_get(t->now, group), owner);
    const json_t *before = json_object_get(json_object_get(t->before, group), owner);
    double grown = figure(now, name) - figure(before, name);
    return grown > 0 && t->seconds > 0 ? grown / t->seconds : 0;
}

static json_t *tenant_view(const top *t, const char *name, const json_t *of)
{
    double answers = rate(t, "tenants", name, "first_token_count");
    double first = answers > 0 ? rate(t, "tenants", name, "first_token_sum") / answers : 0;
    return json_pack("{s:s, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "tenant", name,
                     "sessions", figure(of, "sessions"), "pages", figure(of, "pages"),
                     "requests_per_second", rate(t, "tenants", name, "requests"),
                     "refused_per_second", rate(t, "tenants", name, "refused"), "tokens_per_second",
                     rate(t, "tenants", name, "tokens"), "prompt_tokens_per_second",
                     rate(t, "tenants", name, "prompt_tokens"), "generated_tokens_per_second",
                     rate(t, "tenants", name, "generated_tokens"), "first_token_seconds", first,
                     "sandbox_cores", rate(t, "tenants", name, "cpu"));
}

static json_t *model_view(const top *t, const char *name, const json_t *of)
{
    return json_pack("{s:s, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "model", name, "sessions",
                     figure(of, "sessions"), "at_work", figure(of, "at_work"), "pages_used",
                     figure(of, "pages_used"), "pages", figure(of, "pages"),
                     "prompt_tokens_per_second", rate(t, "models", name, "prompt_tokens"),
                     "generated_tokens_per_second", rate(t, "models", name, "generated_tokens"),
                     "busy", rate(t, "models", name, "busy"));
}

/* Who has most open, and then who was served most, comes first. */
static int by_use(const void *left, const void *right)
{
    const json_t *a = *(json_t *const *)left, *b = *(json_t *const *)right;
    static const char *const order[] = {"sessions", "tokens_per_second", "requests_per_second"};
    for (size_t i = 0; i < sizeof order / sizeof *order; i++) {
        double x = figure(a, order[i]), y = figure(b, order[i]);
        if (x < y || x > y)
            return x < y ? 1 : -1;
    }
    return strcmp(json_string_value(json_object_get(a, "tenant")),
                  json_string_value(json_object_get(b, "tenant")));
}

static json_t *views_of(const top *t, const char *group,
                        json_t *(*view)(const top *, const char *, const json_t *))
{
    json_t *list = json_array(), *of, *all = json_object_get(t->now, group);
    const char *name;
    json_object_foreach(all, name, of)
    {
        json_array_append_new(list, view(t, name, of));
    }
    return list;
}

static json_t *tenants_of(const top *t)
{
    json_t *list = views_of(t, "tenants", tenant_view), *sorted = json_array();
    size_t count = json_array_size(list);
    json_t **items = calloc(count ? count : 1, sizeof *items);
    for (size_t i = 0; items && i < count; i++)
        items[i] = json_array_get(list, i);
    if (items)
        qsort(items, count, sizeof(json_t *), by_use);
    for (size_t i = 0; items && i < count; i++)
        json_array_append(sorted, items[i]);
    free(items);
    json_decref(list);
    return sorted;
}

static json_t *view_of(const top *t)
{
    const json_t *server = json_object_get(json_object_get(t->now, "server"), "");
    return json_pack("{s:f, s:f, s:f, s:f, s:o, s:o}", "seconds", t->seconds, "connections",
                     figure(server, "connections"), "sandboxes", figure(server, "sandboxes"),
                     "sandboxes_waiting", figure(server, "sandboxes_waiting"), "models",
                     views_of(t, "models", model_view), "tenants", tenants_of(t));
}

/* ---- drawing ---- */

typedef struct column {
    const char *title, *figure;
    int width, digits;
} column;

static const column tenant_columns[] = {
    {"sessions", "sessions", 8, 0},
    {"pages", "pages", 7, 0},
    {"tokens/s", "tokens_per_second", 9, 0},
    {"requests/s", "requests_per_second", 10, 1},
    {"refused/s", "refused_per_second", 9, 1},
    {"out tok/s", "generated_tokens_per_second", 9, 0},
    {"in tok/s", "prompt_tokens_per_second", 9, 0},
    {"first s", "first_token_seconds", 8, 3},
    {"cores", "sandbox_cores", 7, 3},
    {0},
};

static const column model_columns[] = {
    {"sessions", "sessions", 8, 0},
    {"pages", "pages_used", 7, 0},
    {"of", "pages", 10, 0},
    {"at work", "at_work", 9, 0},
    {"out tok/s", "generated_tokens_per_second", 9, 0},
    {"in tok/s", "prompt_tokens_per_second", 9, 0},
    {"busy", "busy", 8, 2},
    {0},
};

/* As many columns as fit beside a name of NAME_LEAST. */
#define NAME_LEAST 12
#define NAME_MOST  32

static int columns_that_fit(const column *columns, int width, int *name)
{
    int count = 0, used = 0;
    while (columns[count].title && used + columns[count].width + 1 + NAME_LEAST <= width)
        used += columns[count++].width + 1;
    *name = width - used < NAME_MOST ? width - used : NAME_MOST;
    return count;
}

/* Returns the lines that it took. */
static int draw(const char *what, const json_t *list, const column *columns, int width, int height)
{
    int name_width, count = columns_that_fit(columns, width, &name_width), lines = 1;
    printf("%s%-*.*s", terminal_style_text(stdout, STYLE_BOLD), name_width, name_width, what);
    for (int i = 0; i < count; i++)
        printf(" %*s", columns[i].width, columns[i].title);
    printf("%s\n", terminal_style_text(stdout, STYLE_PLAIN));
    size_t n = json_array_size(list);
    for (size_t k = 0; k < n; k++, lines++) {
        if (lines + 1 >= height && k + 1 < n) {
            printf("... and %zu more\n", n - k);
            return lines + 1;
        }
        const json_t *of = json_array_get(list, k);
        const char *name = json_string_value(json_object_get(of, what));
        int size = (int)strlen(name) < name_width ? (int)strlen(name) : name_width;
        terminal_print_clean(stdout, name, (size_t)size);
        printf("%*s", name_width - size, "");
        for (int i = 0; i < count; i++)
            printf(" %*.*f", columns[i].width, columns[i].digits, figure(of, columns[i].figure));
        printf("\n");
    }
    return lines;
}

static void show(const top *t, int is_live)
{
    json_t *view = view_of(t);
    struct winsize size;
    int width = terminal_columns(stdout, 100), height = 1000000;
    if (is_live && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 0)
        height = size.ws_row;
    if (t->json) {
        char *text = json_dumps(view, JSON_COMPACT | JSON_REAL_PRECISION(6));
        puts(text ? text : "{}");
        free(text);
    } else {
        if (is_live)
            printf("\033[H\033[2J");
        char head[256];
        snprintf(head, sizeof head, "%.100s   %.0f connections, %.0f sandboxes, %.0f wait",
                 t->server, figure(view, "connections"), figure(view, "sandboxes"),
                 figure(view, "sandboxes_waiting"));
        printf("%.*s\n\n", width, head);
        int used = 4;
        used += draw("model", json_object_get(view, "models"), model_columns, width, height - used);
        printf("\n");
        draw("tenant", json_object_get(view, "tenants"), tenant_columns, width, height - used);
        if (!is_live && !t->once)
            printf("\n");
    }
    fflush(stdout);
    json_decref(view);
}

/* ---- the loop ---- */

static void wait_for_next(const top *t, uint64_t since_ns, int is_live)
{
    for (;;) {
        uint64_t now = clock_ns(), end = since_ns + (uint64_t)(t->interval_s * 1e9);
        if (interrupted || now >= end)
            return;
        struct timespec left = {(time_t)((end - now) / 1000000000u),
                                (long)((end - now) % 1000000000u)};
        if (nanosleep(&left, NULL) && !interrupted && is_live && t->before)
            show(t, 1); /* the window has another size */
    }
}

static realm_status run(top *t, int is_live, realm_error *error)
{
    uint64_t sampled_ns = clock_ns();
    realm_status status = take_sample(t, &t->now, error);
    while (!status) {
        wait_for_next(t, sampled_ns, is_live);
        if (interrupted)
            break;
        json_decref(t->before);
        t->before = t->now;
        t->now = NULL;
        uint64_t now_ns = clock_ns();
        status = take_sample(t, &t->now, error);
        t->seconds = (double)(now_ns - sampled_ns) / 1e9;
        sampled_ns = now_ns;
        if (!status)
            show(t, is_live);
        if (t->once)
            break;
    }
    json_decref(t->before);
    json_decref(t->now);
    return status;
}

/* The key is not for whoever listens between here and another machine. */
static realm_status read_key(top *t, realm_error *error)
{
    const char *key = getenv("REALM_KEY");
    if (!key || !*key)
        return REALM_OK;
    static const char *const here[] = {"https://", "http://127.", "http://localhost",
                                       "http://[::1]"};
    int is_safe = 0;
    for (size_t i = 0; i < sizeof here / sizeof *here; i++)
        is_safe |= strncmp(t->server, here[i], strlen(here[i])) == 0;
    if (!is_safe)
        return realm_fail(error, REALM_INVALID,
                          "the key in $REALM_KEY goes over https or to this machine alone");
    if (strlen(key) > 256 || strpbrk(key, "\r\n"))
        return realm_fail(error, REALM_INVALID, "$REALM_KEY is no key");
    snprintf(t->authorization, sizeof t->authorization, "authorization: Bearer %s", key);
    return REALM_OK;
}

int cmd_top(int argc, char **argv)
{
    top t = {.server = "http://127.0.0.1:8080", .interval_s = 2};
    const option options[] = {
        {.name = "server",
         .letter = 's',
         .kind = OPTION_TEXT,
         .out = &t.server,
         .value = "URL",
         .help = "the server, asked with the key in $REALM_KEY if there is one"},
        {.name = "interval",
         .letter = 'i',
         .kind = OPTION_REAL,
         .out = &t.interval_s,
         .value = "SECONDS",
         .min = 0.1,
         .max = 3600,
         .help = "between two looks"},
        {.name = "once",
         .kind = OPTION_FLAG,
         .out = &t.once,
         .help = "look for one interval and end"},
        {.name = "json", .kind = OPTION_FLAG, .out = &t.json, .help = "print a JSON object a look"},
        {0}};
    const options_command command = {
        .name = "top",
        .summary = "show what a server does now: models, tenants, sessions, speeds, pages",
        .options = options,
        .notes =
            "Of a tenant, tokens/s counts at once, what is read and what is written together; its requests, and\n"
            "its tokens by out and in, count when answers end. Those of models count at once.\n"};
    realm_error error;
    int code = options_parse(&command, argc, argv);
    if (code != OPTIONS_GO_ON)
        return code;
    realm_status status = read_key(&t, &error);
    int is_live = !t.once && !t.json && isatty(STDOUT_FILENO);
    struct sigaction action = {.sa_handler = on_signal}; /* without SA_RESTART: sleeps end */
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGWINCH, &action, NULL);
    if (!status && is_live)
        printf("\033[?1049h\033[?25l"); /* a screen of its own, without a cursor */
    if (!status)
        status = run(&t, is_live, &error);
    if (is_live)
        printf("\033[?25h\033[?1049l");
    memset(t.authorization, 0, sizeof t.authorization);
    return status ? command_failed("top", &error) : EXIT_OK;
}
