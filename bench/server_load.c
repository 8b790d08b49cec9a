/* bench/server_load.c: a client for measuring servers: many streams over HTTP/1.1 that cost it next to nothing.
 *
 *     bench_server_load --port N --path P --bodies FILE --streams N --seconds S [--tick-us N]
 *     bench_server_load --port N --path P --probe --seconds S
 *
 * The first keeps N streams going: each connection POSTs the file's bodies in turn (one JSON text a line), reads
 * the events, and begins the next when one ends, until S seconds are over; then it waits for what still runs.
 * The second sends a GET every ten milliseconds on one connection and tells how long each answer took. Both print
 * one JSON object; bench/server.py makes figures of it.
 *
 * Client and server share the machine's cores, so what the client spends would be missing from the server's speed:
 * one thread, plain sockets, no JSON parser, and it looks at its sockets once a tick at most. Works with any server
 * that streams as OpenAI's API does (data: lines, usage in the last one). */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buffer.h"
#include "base/clock.h"

#define MAX_STREAMS  256
#define MAX_BODIES   4096
#define MAX_REQUESTS 100000
#define PROBE_NS     10000000u

/* A request's course, in nanoseconds since the beginning. */
typedef struct record {
    uint64_t start, first, last;
    int status, events, tokens;
    int window; /* of its events, those while all streams were under way */
} record;

typedef struct stream {
    int fd;
    record *now; /* NULL: between requests */
    int done;    /* [DONE] was read: the chunked body's end follows */
    buffer in, out;
    size_t sent;
} stream;

typedef struct load {
    int port, n_streams, n_bodies, next_body, n_records, is_probe;
    const char *path;
    double seconds;
    uint64_t tick_ns, begin_ns;
    char *bodies[MAX_BODIES];
    stream streams[MAX_STREAMS];
    record *records;
    int n_saying; /* streams that have said something in their present request */
    int all_said; /* once all have: the window in which speed is steady has begun */
    uint64_t window_from, window_to, window_events;
} load;

static void die(const char *what)
{
    fprintf(stderr, "bench_server_load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t since(const load *l)
{
    return clock_ns() - l->begin_ns;
}

static int connect_to(const load *l)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)l->port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address))
        die("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

/* ---- streams ---- */

static void send_more(stream *s)
{
    while (s->sent < s->out.size) {
        ssize_t count = send(s->fd, s->out.data + s->sent, s->out.size - s->sent, MSG_NOSIGNAL);
        if (count < 0 && errno == EAGAIN)
            return;
        if (count < 0)
            die("send");
        s->sent += (size_t)count;
    }
}

static void begin(load *l, stream *s)
{
    if (s->fd < 0) {
        s->fd = connect_to(l);
        fcntl(s->fd, F_SETFL, O_NONBLOCK);
    }
    if (l->n_records == MAX_REQUESTS)
        die("more requests than expected");
    const char *body = l->bodies[l->next_body++ % l->n_bodies];
    s->now = &l->records[l->n_records++];
    *s->now = (record){.start = since(l)};
    s->done = 0;
    s->sent = 0;
    buffer_clear(&s->in);
    buffer_clear(&s->out);
    buffer_printf(&s->out,
                  "POST %s HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                  "content-length: %zu\r\n\r\n%s",
                  l->path, strlen(body), body);
    send_more(s);
}

static void finish(load *l, stream *s)
{
    if (l->all_said && !l->window_to)
        l->window_to =
            s->now->last; /* from here on fewer streams run, or one of them begins anew */
    if (s->now->events)
        l->n_saying--;
    s->now = NULL;
    if (since(l) < (uint64_t)(l->seconds * 1e9))
        begin(l, s);
}

static void on_event(load *l, stream *s, const char *line, size_t size)
{
    record *r = s->now;
    r->last = since(l);
    const char *usage = memmem(line, size, "\"completion_tokens\":", 20);
    if (usage) {
        r->tokens = atoi(usage + 20);
        return;
    }
    if (!r->events++) {
        r->first = r->last;
        l->n_saying++;
    }
    if (!l->all_said && l->n_saying == l->n_streams) {
        l->all_said = 1;
        l->window_from = r->last;
    } else if (l->all_said && !l->window_to) {
        l->window_events++;
    }
}

/* One line, without its end. 1: the answer is whole. */
static int on_line(load *l, stream *s, const char *line, size_t size)
{
    if (!s->now->status && size > 12 && memcmp(line, "HTTP/1.", 7) == 0)
        s->now->status = atoi(line + 9);
    else if (size >= 12 && memcmp(line, "data: [DONE]", 12) == 0)
        s->done = 1;
    else if (size > 6 && memcmp(line, "data: ", 6) == 0)
        on_event(l, s, line, size);
    return s->done && size == 1 && *line == '0';
}

static void read_stream(load *l, stream *s)
{
    char bytes[16384];
    for (;;) {
        ssize_t count = recv(s->fd, bytes, sizeof bytes, 0);
        if (count < 0 && errno == EAGAIN)
            return;
        if (count <= 0) { /* a server that closes after each answer */
            close(s->fd);
            s->fd = -1;
            if (s->now && !s->done)
                die("an answer broke off");
            if (s->now)
                finish(l, s);
            return;
        }
        buffer_add(&s->in, bytes, (size_t)count);
        size_t at = 0;
        for (const char *end; s->now && (end = memchr(s->in.data + at, '\n', s->in.size - at));) {
            const char *line = s->in.data + at;
            size_t size = (size_t)(end - line);
            size -= size && line[size - 1] == '\r';
            at = (size_t)(end - s->in.data) + 1;
            if (on_line(l, s, line, size)) {
                finish(l, s);
                at =
                    0; /* begin has emptied it; the blank line after the last chunk is still to come */
                break;
            }
        }
        buffer_drop_front(&s->in, at);
    }
}

static int any_running(const load *l)
{
    for (int i = 0; i < l->n_streams; i++)
        if (l->streams[i].now)
            return 1;
    return 0;
}

static void sleep_ns(uint64_t ns)
{
    struct timespec time = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    nanosleep(&time, NULL);
}

static void run_streams(load *l)
{
    struct pollfd polled[MAX_STREAMS];
    for (int i = 0; i < l->n_streams; i++) {
        l->streams[i].fd = -1;
        buffer_init(&l->streams[i].in, SIZE_MAX);
        buffer_init(&l->streams[i].out, SIZE_MAX);
        begin(l, &l->streams[i]);
    }
    while (any_running(l)) {
        for (int i = 0; i < l->n_streams; i++) {
            const stream *s = &l->streams[i];
            polled[i] = (struct pollfd){
                .fd = s->now ? s->fd : -1,
                .events = (short)(POLLIN | (s->sent < s->out.size ? POLLOUT : 0))};
        }
        if (poll(polled, (nfds_t)l->n_streams, 60000) == 0)
            die("nothing came for a minute");
        for (int i = 0; i < l->n_streams; i++) {
            if (polled[i].revents & POLLOUT)
                send_more(&l->streams[i]);
            if (polled[i].revents & ~POLLOUT)
                read_stream(l, &l->streams[i]);
        }
        sleep_ns(l->tick_ns);
    }
}

static void print_streams(const load *l)
{
    printf("{\"window_s\":%.6f,\"window_events\":%llu,\"requests\":[",
           (double)(l->window_to - l->window_from) / 1e9, (unsigned long long)l->window_events);
    for (int i = 0; i < l->n_records; i++) {
        const record *r = &l->records[i];
        printf("%s[%d,%d,%d,%.6f,%.6f,%.6f]", i ? "," : "", r->status, r->tokens, r->events,
               (double)r->start / 1e9, (double)r->first / 1e9, (double)r->last / 1e9);
    }
    printf("]}\n");
}

/* ---- probing ---- */

static void run_probe(load *l)
{
    int fd = connect_to(l), count = 0;
    char request[512], answer[65536];
    int size = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nhost: localhost\r\n\r\n",
                        l->path);
    printf("{\"seconds\":[");
    while (since(l) < (uint64_t)(l->seconds * 1e9)) {
        uint64_t start = clock_ns();
        if (send(fd, request, (size_t)size, MSG_NOSIGNAL) != size ||
            recv(fd, answer, sizeof answer, 0) <= 0)
            die("probe");
        uint64_t took = clock_ns() - start;
        printf("%s%.6f", count++ ? "," : "", (double)took / 1e9);
        if (took < PROBE_NS)
            sleep_ns(PROBE_NS - took);
    }
    printf("]}\n");
}

/* ---- arguments ---- */

static void read_bodies(load *l, const char *path)
{
    FILE *file = fopen(path, "r");
    char *line = NULL;
    size_t capacity = 0;
    if (!file)
        die(path);
    for (ssize_t size; l->n_bodies < MAX_BODIES && (size = getline(&line, &capacity, file)) > 1;) {
        line[size - 1] = 0;
        l->bodies[l->n_bodies++] = strdup(line);
    }
    free(line);
    fclose(file);
}

int main(int argc, char **argv)
{
    static load l = {.path = "/", .tick_ns = 1000000};
    l.records = calloc(MAX_REQUESTS, sizeof *l.records);
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(argv[i], "--probe") == 0) {
            l.is_probe = 1;
            continue;
        }
        if (strcmp(argv[i], "--port") == 0)
            l.port = atoi(value);
        else if (strcmp(argv[i], "--path") == 0)
            l.path = value;
        else if (strcmp(argv[i], "--bodies") == 0)
            read_bodies(&l, value);
        else if (strcmp(argv[i], "--streams") == 0)
            l.n_streams = atoi(value);
        else if (strcmp(argv[i], "--seconds") == 0)
            l.seconds = atof(value);
        else if (strcmp(argv[i], "--tick-us") == 0)
            l.tick_ns = strtoull(value, NULL, 10) * 1000;
        i++;
    }
    if (!l.port || !l.records || (!l.is_probe && (!l.n_bodies || l.n_streams < 1)) ||
        l.n_streams > MAX_STREAMS) {
        fprintf(stderr, "see the top of bench/server_load.c\n");
        return 2;
    }
    l.begin_ns = clock_ns();
    if (l.is_probe) {
        run_probe(&l);
    } else {
        run_streams(&l);
        print_streams(&l);
    }
    return 0;
}
