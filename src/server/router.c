/* server/router.c: from an exchange to the handler of its route, and the log line when it is over.
 *
 * The caller is identified when the head is there, before any of the body is kept: who has no key cannot make
 * the server hold megabytes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/clock.h"
#include "base/log.h"
#include "server/cors.h"
#include "server/grpc.h"
#include "server/request_spans.h"

const route routes[] = {
#define ROUTE_ROW(method, path, handler, needs_caller, summary)                                    \
    {#method, path, handler, needs_caller, summary},
    ROUTE_MAP(ROUTE_ROW) ADMIN_ROUTE_MAP(ROUTE_ROW)
#undef ROUTE_ROW
};
const size_t n_routes = sizeof routes / sizeof *routes;

/* Of a body that no route wants or whose route takes none. */
#define USUAL_BODY ((size_t)64 << 10)
/* Of the admin API: the largest module that a sandbox takes. */
#define ADMIN_BODY ((size_t)64 << 20)

/* What the router keeps about an exchange, in its memory. */
typedef struct routing {
    server *server;
    const route *route; /* NULL: none */
    caller caller;
    api_problem problem; /* found with the head; told when the body is over */
    int asks_methods;    /* OPTIONS */
    char allowed[64];    /* methods of the path, where the request's is none */
} routing;

/* A star takes any rest, {name} one part that is not empty. part (may be NULL): a name whose part goes to
 * *found and *size. */
static int matches(const char *pattern, const char *path, const char *part, const char **found,
                   size_t *size)
{
    while (*pattern) {
        if (*pattern == '*')
            return *path != 0;
        if (*pattern != '{') {
            if (*pattern++ != *path++)
                return 0;
            continue;
        }
        size_t length = strcspn(path, "/"), name = strcspn(pattern, "}") - 1;
        if (part && strlen(part) == name && memcmp(part, pattern + 1, name) == 0) {
            *found = path;
            *size = length;
        }
        if (!length)
            return 0;
        path += length;
        pattern += name + 2;
    }
    return *path == 0;
}

static void find_route(routing *g, exchange *x)
{
    const char *method = strcmp(x->method, "HEAD") == 0 ? "GET" : x->method;
    if (grpc_find(x, &g->route, &g->problem))
        return;
    for (size_t i = 0; i < n_routes; i++) {
        if (!matches(routes[i].path, x->path, NULL, NULL, NULL))
            continue;
        if (strcmp(routes[i].method, method) == 0) {
            g->route = &routes[i];
            return;
        }
        size_t used = strlen(g->allowed);
        snprintf(g->allowed + used, sizeof g->allowed - used, "%s%s", used ? ", " : "",
                 routes[i].method);
    }
    g->asks_methods = strcmp(method, "OPTIONS") == 0 && (*g->allowed || strcmp(x->path, "*") == 0);
    if (g->asks_methods)
        return;
    if (*g->allowed)
        api_problem_set(&g->problem, 405, "invalid_request_error", "method_not_allowed", "",
                        "'%.100s' wants %s", x->path, g->allowed);
    else
        api_problem_set(&g->problem, 404, "invalid_request_error", "not_found", "",
                        "there is nothing at '%.100s'", x->path);
}

void router_identify(server *s, exchange *x, const char *authorization, int access, caller *out,
                     api_problem *problem)
{
    realm_error error;
    realm_status status = s->gate->table->identify(s->gate, authorization, out, &error);
    if (status == REALM_DENIED) {
        metrics_add(&s->metrics, METRIC_REFUSED, 1, METRIC_LABELS("none", "credential"));
        api_problem_set(problem, 401, "invalid_request_error", "invalid_api_key", "", "%s",
                        error.message);
        return;
    }
    if (status) {
        api_problem_of(problem, status, error.message);
        return;
    }
    memcpy(x->tenant, out->name, sizeof x->tenant);
    static const unsigned scopes[] = {
        [ACCESS_CALLER] = API_SCOPE_INFERENCE,
        [ACCESS_ADMIN] = API_SCOPE_ADMIN | API_SCOPE_DEPLOY | API_SCOPE_USAGE,
        [ACCESS_METRICS] = API_SCOPES_OF_NODE,
    };
    if (out->scopes & scopes[access])
        return;
    metrics_add(&s->metrics, METRIC_REFUSED, 1, METRIC_LABELS(out->name, "scope"));
    api_problem_set(
        problem, 403, "invalid_request_error", "permission_denied", "",
        access == ACCESS_ADMIN
            ? "the admin API needs a key of the node, or a tenant's with the scope 'deploy' or "
              "'usage'"
        : access == ACCESS_METRICS ? "the metrics need a key of the node"
        : out->tenant              ? "the key has not the scope 'inference'"
                                   : "the node's keys are for the admin API alone");
}

/* No coding is undone here but gRPC's own: what a client compressed would read as broken JSON. */
static void check_coding(routing *g, const exchange *x)
{
    const char *coding = exchange_header_get(x, "content-encoding");
    if (coding && *coding && strcasecmp(coding, "identity") != 0 && g->route && !g->route->on_body)
        api_problem_set(&g->problem, 415, "invalid_request_error", "unsupported_content_encoding",
                        "content-encoding", "a body must come as it is, not as '%.40s'", coding);
}

static int needs_caller(const routing *g)
{
    gate *a = g->server->gate;
    if (!g->route)
        return 0;
    return g->route->needs_caller == ACCESS_METRICS ? a->table->has_credentials(a)
                                                    : g->route->needs_caller;
}

/* They come every second and say nothing. */
static int is_probe(const routing *g, const exchange *x)
{
    return g->route && !x->upgrade &&
           (!g->route->needs_caller || g->route->needs_caller == ACCESS_METRICS);
}

static void on_free(exchange *x)
{
    routing *g = x->route;
    request_spans_send(g->server, x);
    if (g->caller.scopes)
        g->server->gate->table->forget(g->server->gate, &g->caller);
}

static void on_head(void *context, exchange *x)
{
    server *s = context;
    routing *g = arena_take(&x->memory, sizeof *g);
    x->body_limit = USUAL_BODY;
    x->route = g;
    if (!g) {
        x->discard = 1;
        return;
    }
    g->server = s;
    x->on_free = on_free;
    find_route(g, x);
    check_coding(g, x);
    if (!x->upgrade)
        cors_allow(x, s->gate->table->has_credentials(s->gate));
    request_spans_begin(s, x, is_probe(g, x));
    if (needs_caller(g))
        router_identify(s, x, exchange_header_get(x, "authorization"), g->route->needs_caller,
                        &g->caller, &g->problem);
    if (g->problem.status || g->asks_methods) {
        x->discard = 1;
        return;
    }
    x->on_body = g->route->on_body;
    if (g->route->needs_caller == ACCESS_ADMIN) {
        x->body_limit = ADMIN_BODY;
    } else if (g->route->needs_caller && strcmp(g->route->method, "POST") == 0) {
        uint64_t most = g->caller.input_bytes;
        if (most > s->options.max_body_bytes)
            most = s->options.max_body_bytes;
        x->body_limit = most;
    }
}

/* HEAD is answered where GET is. */
static const char *with_head(exchange *x, const char *methods)
{
    const char *get = strstr(methods, "GET");
    const char *all = get ? arena_printf(&x->memory, "%.*sGET, HEAD%s", (int)(get - methods),
                                         methods, get + 3)
                          : methods;
    return all ? all : methods;
}

static void on_complete(void *context, exchange *x)
{
    server *s = context;
    const routing *g = x->route;
    if (!g) {
        exchange_refuse(x, 503, "unavailable", "the host is out of memory");
    } else if (g->asks_methods) {
        const char *methods = with_head(x, g->allowed);
        exchange_set(x, "allow", methods);
        if (exchange_header_get(x, "access-control-request-method"))
            cors_preflight(x, methods);
        exchange_reply(x, 204, NULL, "", 0);
    } else if (g->problem.status) {
        if (*g->allowed && g->problem.status == 405)
            exchange_set(x, "allow", with_head(x, g->allowed));
        if (strcmp(g->problem.param, "content-encoding") == 0)
            exchange_set(x, "accept-encoding", "identity");
        api_reply_problem(x, &g->problem);
    } else {
        g->route->run(s, x, &g->caller);
    }
}

static void on_over(void *context, exchange *x)
{
    server *s = context;
    const routing *g = x->route;
    if (!g) /* refused by the codec */
        return;
    const char *path = g->route ? g->route->path : "none";
    const char *tenant = *x->tenant ? x->tenant : "none";
    char status[16];
    int outcome = x->counts_as ? x->counts_as : x->status;
    snprintf(status, sizeof status, "%dxx", outcome / 100);
    double seconds = (double)(clock_ns() - x->started_ns) / 1e9;
    metrics_add(&s->metrics, METRIC_REQUESTS, 1, METRIC_LABELS(tenant, path, status));
    metrics_observe(&s->metrics, METRIC_DURATION, seconds, METRIC_LABELS(tenant, path));
    if (x->state == EXCHANGE_GONE)
        metrics_add(&s->metrics, METRIC_CANCELLED, 1, METRIC_LABELS(tenant));
    request_spans_over(x, g->route, outcome);
    int is_silent = is_probe(g, x) && (!g->route->needs_caller || x->status < 400);
    const log_subject subject = {.request = x->id, .tenant = x->tenant, .trace = x->trace.id};
    log_write_for(is_silent ? LOG_DEBUG : LOG_INFO, "server", &subject,
                  "%s %s %d, %.1f ms, %" PRIu64 " bytes%s", x->method, path, outcome, seconds * 1e3,
                  x->sent_bytes, x->state == EXCHANGE_GONE ? ", the client went" : "");
}

const exchange_sink router_sink = {.head = on_head, .complete = on_complete, .over = on_over};

const char *router_rest(exchange *x)
{
    const routing *g = x->route;
    size_t size = strlen(g->route->path);
    return g->route->path[size - 1] == '*' ? exchange_decode(x, x->path + size - 1) : "";
}

const char *router_part(exchange *x, const char *name)
{
    const routing *g = x->route;
    const char *found = NULL;
    size_t size = 0;
    matches(g->route->path, x->path, name, &found, &size);
    char *part = found ? arena_copy(&x->memory, found, size) : NULL;
    return part ? exchange_decode(x, part) : NULL;
}
