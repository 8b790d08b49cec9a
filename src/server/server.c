/* server/server.c: see server.h: putting it together, signals, and its end. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "server/grpc.h"
#include "server/tool_calls.h"
#include "text/chat_template.h"

/* ---- systemd, by hand: one datagram (sd_notify(3)) ---- */

static void notify(const char *message)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (!path || (*path != '/' && *path != '@') || strlen(path) >= sizeof address.sun_path)
        return;
    memcpy(address.sun_path, path, strlen(path));
    if (*path == '@')
        address.sun_path[0] = 0;
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path));
    if (fd < 0 ||
        sendto(fd, message, strlen(message), MSG_NOSIGNAL, (struct sockaddr *)&address, size) < 0)
        LOG_W("server", "systemd could not be told '%s'", message);
    if (fd >= 0)
        close(fd);
}

/* ---- opening ---- */

/* At the end, for spans that have not been exported yet: less than systemd and Kubernetes wait after a drain. */
#define TRACES_WAIT_MS 5000

int server_is_local(const char *host)
{
    return strncmp(host, "127.", 4) == 0 || strcmp(host, "::1") == 0 ||
           strcmp(host, "localhost") == 0;
}

static void describe_model(served_model *m, sandbox_model loaded)
{
    const model *of = engine_model(loaded.engine);
    gguf_string text;
    *m = (served_model){.name = loaded.name,
                        .engine = loaded.engine,
                        .tokenizer = model_tokenizer(of),
                        .n_context = model_hyperparameters(of)->n_context,
                        .n_embd = model_hyperparameters(of)->n_embd};
    m->has_template = chat_template_find(model_gguf(of), NULL, &text, NULL) == REALM_OK;
    if (m->has_template)
        m->tools = tool_calls_style(text.data, text.size);
}

static realm_status open_models(server *s, realm_error *error)
{
    s->n_models = runtime_model_count(s->runtime);
    if (s->n_models < 1 || s->n_models > SERVER_MAX_MODELS)
        return realm_fail(error, REALM_INVALID, "a server needs 1 to %d models", SERVER_MAX_MODELS);
    for (int i = 0; i < s->n_models; i++)
        describe_model(&s->models[i], runtime_model(s->runtime, i));
    realm_status status = REALM_OK;
    for (int i = 0; i < BUILTIN_COUNT && !status; i++)
        status = realm_program_builtin(&s->builtin[i], s->runtime, builtin_names[i], error);
    return status;
}

/* ---- aliases ---- */

static void free_aliases(model_alias *list, int count)
{
    for (int i = 0; i < count; i++)
        free(list[i].name);
}

static served_model *model_named(server *s, const char *name)
{
    for (int i = 0; i < s->n_models; i++)
        if (strcmp(s->models[i].name, name) == 0)
            return &s->models[i];
    return NULL;
}

/* Into list [SERVER_MAX_ALIASES]; *count says how many are the caller's to free, also after a failure. */
static realm_status read_aliases(server *s, const server_options *o, model_alias *list, int *count,
                                 realm_error *error)
{
    for (int i = 0; i < o->n_aliases; i++) {
        const char *text = o->aliases[i], *equals = strchr(text, '=');
        served_model *m = equals ? model_named(s, equals + 1) : NULL;
        if (!equals || equals == text || *count == SERVER_MAX_ALIASES)
            return realm_fail(error, REALM_INVALID,
                              "alias '%.100s' is not NAME=MODEL, or one too many", text);
        if (!m)
            return realm_fail(error, REALM_NOT_FOUND, "alias '%.100s': there is no such model",
                              text);
        char *name = strndup(text, (size_t)(equals - text));
        if (!name)
            return realm_fail_memory(error, strlen(text), "an alias");
        list[(*count)++] = (model_alias){name, m};
        if (model_named(s, name))
            return realm_fail(error, REALM_INVALID, "alias '%.100s': a model has this name", text);
    }
    return REALM_OK;
}

static void set_aliases(server *s, const model_alias *list, int count)
{
    pthread_mutex_lock(&s->alias_mutex);
    free_aliases(s->aliases, s->n_aliases);
    memcpy(s->aliases, list, (size_t)count * sizeof *list);
    s->n_aliases = count;
    pthread_mutex_unlock(&s->alias_mutex);
}

static realm_status listen_on(server *s, realm_error *error)
{
    const server_options *o = &s->options;
    tls_context *secure = NULL;
    realm_status status = REALM_OK;
    if (!server_is_local(o->host) && !s->gate->table->has_credentials(s->gate))
        return realm_fail(
            error, REALM_DENIED,
            "without keys only this machine may be served: make a key first (realm key "
            "create), or listen on 127.0.0.1 instead of %.80s",
            o->host);
    if (!o->tls_certificate != !o->tls_key)
        return realm_fail(error, REALM_INVALID, "TLS needs both a certificate and its key");
    if (o->tls_certificate)
        status = tls_context_open(&secure, o->tls_certificate, o->tls_key, error);
    int port = 0;
    if (!status)
        status = net_listen(s->net, o->host, o->port, secure, &port, error);
    if (status)
        return status;
    char url[128];
    int is_ipv6 = strchr(o->host, ':') != NULL;
    snprintf(url, sizeof url, "%s://%s%s%s:%d", secure ? "https" : "http", is_ipv6 ? "[" : "",
             o->host, is_ipv6 ? "]" : "", port);
    LOG_I("server", "listening on %s", url);
    if (o->ready)
        o->ready(o->context, url);
    return REALM_OK;
}

static void watch_signals(server *s);

realm_status server_open(server **out, realm_runtime *runtime, gate *a,
                         const server_options *options, realm_error *error)
{
    server *s = calloc(1, sizeof *s);
    if (!s)
        return realm_fail_memory(error, sizeof *s, "the server");
    s->options = *options;
    if (!s->options.max_body_bytes)
        s->options.max_body_bytes = (uint64_t)16 << 20;
    if (!s->options.drain_s)
        s->options.drain_s = 30;
    s->runtime = runtime;
    s->gate = a;
    s->sandbox = runtime_sandbox(runtime);
    s->started_ms = clock_wall_ms();
    s->sink = router_sink;
    s->sink.context = s;
    metrics_init(&s->metrics);
    pthread_mutex_init(&s->alias_mutex, NULL);
    map_init(&s->tenants);
    const net_options sockets = {.sink = &s->sink, .max_connections = options->max_connections};
    realm_status status = open_models(s, error);
    if (!status)
        status = read_aliases(s, options, s->aliases, &s->n_aliases, error);
    if (!status && options->traces)
        status = tracer_open(&s->tracer, options->traces, error);
    if (!status)
        status = net_open(&s->net, &sockets, error);
    if (!status) {
        watch_signals(s);
        status = listen_on(s, error);
    }
    if (status)
        server_close(s);
    else
        *out = s;
    return status;
}

void server_close(server *s)
{
    if (!s)
        return;
    if (s->gate->table->stop)
        s->gate->table->stop(s->gate);
    net_close(s->net);
    int32_t wait_ms = s->interrupted > 1 ? 0 : TRACES_WAIT_MS;
    if (s->tracer)
        tracer_leave(s->tracer, wait_ms, &s->traces_before); /* both at once */
    tracer_close(s->leaving, wait_ms);
    tracer_close(s->tracer, wait_ms);
    for (int i = 0; i < BUILTIN_COUNT; i++)
        realm_program_close(s->builtin[i]);
    metrics_release(&s->metrics);
    free_aliases(s->aliases, s->n_aliases);
    pthread_mutex_destroy(&s->alias_mutex);
    map_release(&s->tenants);
    free(s);
}

/* ---- running ---- */

static void on_drained(void *context)
{
    server *s = context;
    net_stop(s->net);
}

static void on_stop(void *context)
{
    server *s = context;
    if (s->interrupted++) {
        LOG_W("server", "stopping at once");
        net_stop(s->net);
        return;
    }
    LOG_I("server", "draining: what runs may finish for %d s", (int)s->options.drain_s);
    notify("STOPPING=1");
    grpc_drain(s);
    net_drain(s->net, s->options.drain_s * 1000, on_drained, s);
}

/* Whether it speaks TLS at all is decided when it begins to listen. */
static realm_status reload_tls(server *s, const server_options *changed, realm_error *error)
{
    tls_context *secure;
    if (!s->options.tls_certificate)
        return REALM_OK;
    if (!changed->tls_certificate || !changed->tls_key)
        return realm_fail(error, REALM_INVALID, "TLS needs both a certificate and its key");
    realm_status status = tls_context_open(&secure, changed->tls_certificate, changed->tls_key,
                                           error);
    if (!status)
        net_set_tls(s->net, secure);
    return status;
}

/* Requests on their way hand their spans to the new one. fresh NULL: from now on there are none. */
static void set_tracer(server *s, tracer *fresh)
{
    /* Where settings change twice in some seconds, the first collector had its time. */
    tracer_close(s->leaving, 0);
    s->leaving = s->tracer;
    if (s->leaving)
        tracer_leave(s->leaving, TRACES_WAIT_MS, &s->traces_before);
    s->tracer = fresh;
}

static realm_status reload(server *s, realm_error *error)
{
    server_options changed = s->options;
    tracer *fresh = NULL;
    model_alias aliases[SERVER_MAX_ALIASES];
    int n_aliases = 0;
    realm_status status = REALM_OK;
    if (s->options.reload)
        status = s->options.reload(s->options.context, &changed, error);
    if (!status)
        status = read_aliases(s, &changed, aliases, &n_aliases, error);
    int traces_change = changed.traces != s->options.traces;
    if (!status && traces_change && changed.traces)
        status = tracer_open(&fresh, changed.traces, error);
    if (!status)
        status = reload_tls(s, &changed, error); /* the last that can fail */
    if (status) {
        tracer_close(fresh, 0);
        free_aliases(aliases, n_aliases);
        return status;
    }
    if (traces_change)
        set_tracer(s, fresh);
    s->options.traces = changed.traces;
    set_aliases(s, aliases, n_aliases);
    if (s->options.tls_certificate) {
        s->options.tls_certificate = changed.tls_certificate;
        s->options.tls_key = changed.tls_key;
    }
    s->options.max_body_bytes = changed.max_body_bytes;
    s->options.drain_s = changed.drain_s;
    return REALM_OK;
}

static void on_reload(void *context)
{
    server *s = context;
    realm_error error;
    notify("RELOADING=1");
    realm_status status = reload(s, &error);
    if (status)
        LOG_E("server", "reload failed, nothing was changed: %s", error.message);
    else
        LOG_I("server", "reloaded");
    notify("READY=1");
}

/* Before anybody is told that the server is ready: from then on signals mean what they should. */
static void watch_signals(server *s)
{
    signal(SIGPIPE, SIG_IGN);
    net_on_signal(s->net, SIGTERM, on_stop, s);
    net_on_signal(s->net, SIGINT, on_stop, s);
    net_on_signal(s->net, SIGHUP, on_reload, s);
}

void server_run(server *s)
{
    notify("READY=1");
    net_run(s->net);
}
