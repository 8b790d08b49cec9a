/* server/net.c: see net.h. The loop's own objects; connections are in connection.c. */
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/clock.h"
#include "base/log.h"
#include "server/connection.h"

#define MAX_SIGNALS 8
#define OTHER_FILES 256 /* that are no connections: models, databases, the loop's own */

typedef struct listener {
    uv_tcp_t socket;
    net *net;
    int is_tls;
    struct listener *next;
} listener;

typedef struct signal_watch {
    uv_signal_t handle;
    void (*run)(void *context);
    void *context;
} signal_watch;

static int32_t or_usual(int32_t value, int32_t usual)
{
    return value ? value : usual;
}

static void on_posted(uv_async_t *handle)
{
    net *n = handle->data;
    queue_node *node = queue_take_all(&n->posted);
    while (node) {
        queue_node *next = node->next; /* the task may be gone when run returns */
        net_task *task = QUEUE_OWNER(node, net_task, node);
        task->run(task);
        node = next;
    }
}

static void on_turn_end(uv_prepare_t *handle)
{
    connection_flush_all(handle->data);
}

static void finish_drain(net *n)
{
    void (*done)(void *context) = n->drained;
    n->drained = NULL;
    if (done)
        done(n->drained_context);
}

static void on_second(uv_timer_t *handle)
{
    net *n = handle->data;
    uint64_t now = clock_ns();
    connection_check_times(n, now);
    if (n->tick)
        n->tick(n->tick_context);
    if (n->draining && now >= n->drain_until_ns)
        connection_close_all(n);
}

void net_connection_gone(net *n)
{
    if (n->draining && n->stats.connections == 0)
        finish_drain(n);
}

/* A connection is a file: raises the process's limit to what was asked for, as far as it may, and takes fewer
 * connections if that is not enough, so that there is always a file left to say 503 with. */
static void reserve_files(net *n)
{
    struct rlimit files;
    rlim_t wanted = (rlim_t)n->options.max_connections + OTHER_FILES;
    if (getrlimit(RLIMIT_NOFILE, &files) || files.rlim_cur >= wanted)
        return;
    files.rlim_cur = files.rlim_max < wanted ? files.rlim_max : wanted;
    setrlimit(RLIMIT_NOFILE, &files);
    getrlimit(RLIMIT_NOFILE, &files);
    if (files.rlim_cur >= wanted)
        return;
    n->options.max_connections = files.rlim_cur > 2 * OTHER_FILES
                                     ? (int32_t)(files.rlim_cur - OTHER_FILES)
                                     : (int32_t)(files.rlim_cur / 2);
    LOG_W("server",
          "at most %d connections at once: the system allows this process %llu open files",
          (int)n->options.max_connections, (unsigned long long)files.rlim_cur);
}

realm_status net_open(net **out, const net_options *options, realm_error *error)
{
    net *n = calloc(1, sizeof *n);
    if (!n)
        return realm_fail_memory(error, sizeof *n, "the loop");
    n->options = *options;
    n->options.max_connections = or_usual(options->max_connections, 10000);
    n->options.idle_ms = or_usual(options->idle_ms, 75000);
    n->options.head_ms = or_usual(options->head_ms, 20000);
    n->options.body_ms = or_usual(options->body_ms, 30000);
    n->options.send_ms = or_usual(options->send_ms, 30000);
    n->options.limits.body_ms = n->options.body_ms;
    n->options.limits.send_ms = n->options.send_ms;
    int code = uv_loop_init(&n->loop);
    if (code) {
        free(n);
        return realm_fail(error, REALM_IO, "the event loop: %s", uv_strerror(code));
    }
    reserve_files(n);
    queue_init(&n->posted);
    buffer_init(&n->plain, SIZE_MAX);
    uv_async_init(&n->loop, &n->wake, on_posted);
    uv_prepare_init(&n->loop, &n->turn);
    uv_timer_init(&n->loop, &n->second);
    n->wake.data = n->turn.data = n->second.data = n;
    uv_prepare_start(&n->turn, on_turn_end);
    uv_timer_start(&n->second, on_second, 1000, 1000);
    *out = n;
    return REALM_OK;
}

static void free_handle(uv_handle_t *handle)
{
    free(handle); /* the handle lies first in what was allocated */
}

static void close_listeners(net *n)
{
    for (listener *l = n->listeners, *next; l; l = next) {
        next = l->next;
        uv_close((uv_handle_t *)&l->socket, free_handle);
    }
    n->listeners = NULL;
}

void net_close(net *n)
{
    if (!n)
        return;
    n->drained = NULL;
    close_listeners(n);
    connection_close_all(n);
    while (n->held)
        uv_run(&n->loop, UV_RUN_ONCE);
    for (int i = 0; i < n->n_signals; i++)
        uv_close((uv_handle_t *)n->signals[i], free_handle);
    uv_close((uv_handle_t *)&n->wake, NULL);
    uv_close((uv_handle_t *)&n->turn, NULL);
    uv_close((uv_handle_t *)&n->second, NULL);
    uv_run(&n->loop, UV_RUN_DEFAULT);
    uv_loop_close(&n->loop);
    tls_context_close(n->tls);
    buffer_release(&n->plain);
    queue_release(&n->posted);
    free(n);
}

static void on_connection(uv_stream_t *stream, int status)
{
    listener *l = stream->data;
    if (status == 0)
        connection_accept(l->net, stream, l->is_tls);
}

static int bind_to(listener *l, const char *host, int port, int *bound)
{
    struct sockaddr_storage address;
    int size = sizeof address;
    if (strcmp(host, "localhost") == 0) /* RFC 6761, 6.3: no resolver need be asked */
        host = "127.0.0.1";
    int code = uv_ip4_addr(host, port, (struct sockaddr_in *)&address);
    if (code)
        code = uv_ip6_addr(host, port, (struct sockaddr_in6 *)&address);
    if (!code)
        code = uv_tcp_bind(&l->socket, (struct sockaddr *)&address, 0);
    if (!code)
        code = uv_listen((uv_stream_t *)&l->socket, 1024, on_connection);
    if (!code)
        code = uv_tcp_getsockname(&l->socket, (struct sockaddr *)&address, &size);
    if (!code)
        *bound = ntohs(address.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&address)->sin6_port
                                                     : ((struct sockaddr_in *)&address)->sin_port);
    return code;
}

realm_status net_listen(net *n, const char *host, int port, tls_context *secure, int *bound,
                        realm_error *error)
{
    listener *l = calloc(1, sizeof *l);
    if (!l)
        return realm_fail_memory(error, sizeof *l, "a listener");
    uv_tcp_init(&n->loop, &l->socket);
    l->socket.data = l;
    l->net = n;
    l->is_tls = secure != NULL;
    if (secure)
        net_set_tls(n, secure);
    int code = bind_to(l, host, port, bound);
    if (code) {
        uv_close((uv_handle_t *)&l->socket, free_handle);
        return code == UV_EINVAL
                   ? realm_fail(error, REALM_INVALID,
                                "cannot listen on '%.80s': give an address in numbers, such as "
                                "0.0.0.0 or ::1",
                                host)
                   : realm_fail(error, REALM_IO, "cannot listen on %.80s port %d: %s", host, port,
                                uv_strerror(code));
    }
    l->next = n->listeners;
    n->listeners = l;
    return REALM_OK;
}

void net_set_tls(net *n, tls_context *secure)
{
    if (n->tls)
        tls_context_close(n->tls);
    n->tls = secure;
}

void net_run(net *n)
{
    uv_run(&n->loop, UV_RUN_DEFAULT);
}

void net_stop(net *n)
{
    uv_stop(&n->loop);
}

void net_drain(net *n, int32_t grace_ms, void (*done)(void *context), void *context)
{
    n->draining = 1;
    n->drained = done;
    n->drained_context = context;
    n->drain_until_ns = clock_ns() + (uint64_t)grace_ms * 1000000u;
    close_listeners(n);
    connection_drain_all(n);
    net_connection_gone(n);
}

int net_is_draining(const net *n)
{
    return n->draining;
}

void net_post(net *n, net_task *task)
{
    queue_put(&n->posted, &task->node);
    uv_async_send(&n->wake);
}

void net_hold(net *n)
{
    n->held++;
}

void net_unhold(net *n)
{
    n->held--;
}

static void on_work(uv_work_t *work)
{
    net_job *job = work->data;
    job->work(job);
}

static void on_work_done(uv_work_t *work, int status)
{
    (void)status; /* nobody cancels these */
    net_job *job = work->data;
    free(work);
    net_unhold(job->net);
    job->done(job);
}

realm_status net_submit(net *n, net_job *job)
{
    uv_work_t *work = malloc(sizeof *work);
    if (!work)
        return REALM_NO_MEMORY;
    work->data = job;
    job->net = n;
    if (uv_queue_work(&n->loop, work, on_work, on_work_done)) {
        free(work);
        return REALM_NO_MEMORY;
    }
    net_hold(n);
    return REALM_OK;
}

struct net_timer {
    uv_timer_t handle; /* first: see free_handle */
    void (*run)(void *context);
    void *context;
};

static void on_time(uv_timer_t *handle)
{
    net_timer *t = (net_timer *)handle;
    t->run(t->context);
}

net_timer *net_timer_start(net *n, uint64_t at_ns, void (*run)(void *context), void *context)
{
    net_timer *t = calloc(1, sizeof *t);
    if (!t)
        return NULL;
    t->run = run;
    t->context = context;
    uint64_t now_ns = clock_ns();
    uint64_t wait_ms = at_ns > now_ns ? (at_ns - now_ns + 999999) / 1000000 : 0;
    uv_timer_init(&n->loop, &t->handle);
    uv_update_time(&n->loop); /* a timer counts from the loop's own idea of now */
    uv_timer_start(&t->handle, on_time, wait_ms, 0);
    return t;
}

void net_timer_stop(net_timer *t)
{
    if (t)
        uv_close((uv_handle_t *)&t->handle, free_handle);
}

static void on_signal(uv_signal_t *handle, int number)
{
    (void)number;
    signal_watch *watch = handle->data;
    watch->run(watch->context);
}

void net_on_signal(net *n, int number, void (*run)(void *context), void *context)
{
    signal_watch *watch = calloc(1, sizeof *watch);
    if (!watch || n->n_signals == MAX_SIGNALS) {
        free(watch);
        return;
    }
    watch->run = run;
    watch->context = context;
    watch->handle.data = watch;
    uv_signal_init(&n->loop, &watch->handle);
    uv_signal_start(&watch->handle, on_signal, number);
    n->signals[n->n_signals++] = &watch->handle;
}

void net_on_tick(net *n, void (*run)(void *context), void *context)
{
    n->tick = run;
    n->tick_context = context;
}

const net_stats *net_stats_get(const net *n)
{
    return &n->stats;
}
