/* server/tracer.c: see tracer.h. */
#include "server/tracer.h"

#include <curl/curl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <zlib.h>

#include "base/condition.h"
#include "base/log.h"
#include "base/map.h"
#include "base/rng.h"
#include "base/utf8.h"
#include "realm/realm.h"

#define MILLISECOND_NS 1000000u
#define MAX_BODY       ((size_t)64 << 20)
#define MAX_ANSWER     ((size_t)64 << 10) /* a refusal is a sentence */
#define FIRST_RETRY_MS 1000
#define MAX_RETRY_MS   300000       /* no collector makes us wait longer */
#define QUIET_NS       60000000000u /* between two lines of the log on failures */

struct tracer {
    /* constant */
    tracer_options options;
    arena memory;   /* of what options point to */
    uint64_t below; /* of SAMPLER_RATIO: ids under it are sampled */
    struct curl_slist *headers;
    pthread_t thread;
    int running;

    /* the tracer's thread */
    CURLM *multi; /* curl_multi_wakeup: any */
    CURL *easy;
    rng random;
    uint64_t not_before_ns; /* the collector's retry-after */
    uint64_t told_ns;       /* of a failure, in the log; 0: all is well */

    pthread_mutex_t mutex; /* guards what follows */
    pthread_cond_t changed;
    spans *first, *last;
    int32_t waiting;   /* spans in the list */
    uint64_t since_ns; /* when the list began to fill */
    int closing;
    uint64_t close_by_ns;
    tracer_stats stats;

    tracer_stats *sum; /* of whoever let it leave; NULL: nobody's */
};

/* ---- sampling ---- */

int tracer_sampler(const char *name, tracer_options *out)
{
    static const struct {
        const char *name;
        trace_sampler sampler;
        int parent_based;
    } known[] = {
        {"always_on", SAMPLER_ALWAYS_ON, 0},
        {"always_off", SAMPLER_ALWAYS_OFF, 0},
        {"traceidratio", SAMPLER_RATIO, 0},
        {"parentbased_always_on", SAMPLER_ALWAYS_ON, 1},
        {"parentbased_always_off", SAMPLER_ALWAYS_OFF, 1},
        {"parentbased_traceidratio", SAMPLER_RATIO, 1},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(known[i].name, name) == 0) {
            out->sampler = known[i].sampler;
            out->parent_based = known[i].parent_based;
            return 1;
        }
    return 0;
}

/* By the id's last 64 bits without the lowest, as OpenTelemetry's SDKs do, so that all services on a trace's way agree. */
int tracer_samples(const tracer *t, const trace_context *context)
{
    if (context->parent && t->options.parent_based)
        return (context->flags & TRACE_SAMPLED) != 0;
    switch (t->options.sampler) {
    case SAMPLER_ALWAYS_ON: return 1;
    case SAMPLER_ALWAYS_OFF: return 0;
    case SAMPLER_RATIO: break;
    }
    return trace_number(context->id + 16) >> 1 < t->below;
}

/* ---- the list ---- */

void tracer_take(tracer *t, spans *s)
{
    s->next = NULL;
    pthread_mutex_lock(&t->mutex);
    t->stats.dropped_oversize += (uint64_t)s->lost;
    if (t->closing || t->waiting + s->count > t->options.queue_spans) {
        t->stats.dropped_full += (uint64_t)s->count;
        pthread_mutex_unlock(&t->mutex);
        spans_close(s);
        return;
    }
    int is_first = !t->first, was_short = t->waiting < t->options.batch_spans;
    if (is_first) {
        t->first = s;
        t->since_ns = clock_ns();
    } else {
        t->last->next = s;
    }
    t->last = s;
    t->waiting += s->count;
    if (is_first || (was_short && t->waiting >= t->options.batch_spans))
        pthread_cond_signal(&t->changed);
    pthread_mutex_unlock(&t->mutex);
}

void tracer_stats_get(tracer *t, tracer_stats *out)
{
    pthread_mutex_lock(&t->mutex);
    *out = t->stats;
    pthread_mutex_unlock(&t->mutex);
}

static void close_list(spans *list)
{
    for (spans *next; list; list = next) {
        next = list->next;
        spans_close(list);
    }
}

/* Up to batch_spans, or one request's that has more. Under the mutex. */
static spans *take_batch(tracer *t, int32_t *count)
{
    spans *batch = t->first, *end = NULL;
    *count = 0;
    for (spans *at = t->first; at && (!end || *count + at->count <= t->options.batch_spans);
         at = at->next) {
        *count += at->count;
        end = at;
    }
    t->first = end->next;
    end->next = NULL;
    t->waiting -= *count;
    return batch;
}

/* ---- one post ---- */

typedef enum post_result { POSTED, TRY_AGAIN, REFUSED } post_result;

typedef struct post {
    buffer answer;
    int64_t rejected;
    uint64_t retry_ns; /* what the collector asked for; 0: nothing */
    char reason[CURL_ERROR_SIZE + 64];
} post;

/* What is over MAX_ANSWER is read and forgotten. */
static size_t take_answer(char *bytes, size_t size, size_t count, void *context)
{
    buffer_add(context, bytes, size * count);
    return count;
}

static uint64_t closing_by(tracer *t)
{
    pthread_mutex_lock(&t->mutex);
    uint64_t by = t->closing ? t->close_by_ns : UINT64_MAX;
    pthread_mutex_unlock(&t->mutex);
    return by;
}

/* Until it is done, or the tracer must be closed. */
static CURLcode perform(tracer *t, char *reason, size_t size)
{
    int running = 1;
    while (1) {
        if (curl_multi_perform(t->multi, &running) != CURLM_OK)
            return CURLE_OUT_OF_MEMORY;
        if (!running)
            break;
        uint64_t by = closing_by(t), now = clock_ns();
        if (now >= by) {
            snprintf(reason, size, "the server stops");
            return CURLE_ABORTED_BY_CALLBACK;
        }
        uint64_t left_ms = by == UINT64_MAX ? 1000 : (by - now) / MILLISECOND_NS + 1;
        curl_multi_poll(t->multi, NULL, 0, left_ms < 1000 ? (int)left_ms : 1000, NULL);
    }
    int left;
    const CURLMsg *message = curl_multi_info_read(t->multi, &left);
    return message ? message->data.result : CURLE_RECV_ERROR;
}

/* What an answer of that status comes to, by OTLP's specification; and as OpenTelemetry's SDKs do, any success is
 * one: gateways before a collector answer 202. */
static post_result judge(tracer *t, long status, post *p)
{
    curl_off_t wait_s = 0;
    if (status / 100 == 2) {
        p->rejected = status == 200 ? otlp_rejected(p->answer.data, p->answer.size) : 0;
        return POSTED;
    }
    snprintf(p->reason, sizeof p->reason, "the collector answered %ld", status);
    if (status != 429 && status != 502 && status != 503 && status != 504)
        return REFUSED;
    curl_easy_getinfo(t->easy, CURLINFO_RETRY_AFTER, &wait_s);
    uint64_t wait_ms = wait_s > MAX_RETRY_MS / 1000 ? MAX_RETRY_MS : (uint64_t)wait_s * 1000;
    p->retry_ns = wait_ms * MILLISECOND_NS;
    return TRY_AGAIN;
}

static post_result send_body(tracer *t, const buffer *body, post *p)
{
    char reason[CURL_ERROR_SIZE] = "";
    long status = 0;
    *p = (post){0};
    buffer_init(&p->answer, MAX_ANSWER);
    curl_easy_setopt(t->easy, CURLOPT_POSTFIELDS, body->data);
    curl_easy_setopt(t->easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)body->size);
    curl_easy_setopt(t->easy, CURLOPT_WRITEDATA, &p->answer);
    curl_easy_setopt(t->easy, CURLOPT_ERRORBUFFER, reason);
    curl_multi_add_handle(t->multi, t->easy);
    CURLcode code = perform(t, reason, sizeof reason);
    curl_easy_getinfo(t->easy, CURLINFO_RESPONSE_CODE, &status);
    post_result result = code == CURLE_OK ? judge(t, status, p) : TRY_AGAIN;
    if (code != CURLE_OK)
        snprintf(p->reason, sizeof p->reason, "%s", *reason ? reason : curl_easy_strerror(code));
    curl_multi_remove_handle(t->multi, t->easy);
    curl_easy_setopt(t->easy, CURLOPT_ERRORBUFFER, NULL);
    buffer_release(&p->answer);
    return result;
}

/* ---- a batch ---- */

/* Sleeps; 0: the tracer closes, at once or meanwhile. */
static int wait_until(tracer *t, uint64_t until_ns)
{
    pthread_mutex_lock(&t->mutex);
    while (!t->closing && clock_ns() < until_ns)
        condition_wait(&t->changed, &t->mutex, until_ns);
    int goes_on = !t->closing;
    pthread_mutex_unlock(&t->mutex);
    return goes_on;
}

/* Doubling, and anywhere in its second half, so that many servers do not come back together. */
static uint64_t backoff_ns(tracer *t, int attempt)
{
    uint64_t longest = (uint64_t)FIRST_RETRY_MS * MILLISECOND_NS << (attempt < 8 ? attempt : 8);
    return longest / 2 + rng_next(&t->random) % (longest / 2);
}

static void tell(tracer *t, int failed, int32_t count, const char *reason)
{
    uint64_t now = clock_ns();
    if (!failed) {
        if (t->told_ns)
            LOG_I("server", "spans are exported again");
        t->told_ns = 0;
    } else if (!t->told_ns || now - t->told_ns > QUIET_NS) {
        LOG_W("server",
              "%d spans were not exported: %s (not told again for a minute; see "
              "realm_traces_dropped_total)",
              (int)count, reason);
        t->told_ns = now;
    }
}

static void count_batch(tracer *t, int32_t count, int64_t lost)
{
    if (lost > count)
        lost = count;
    pthread_mutex_lock(&t->mutex);
    t->stats.exported += (uint64_t)(count - lost);
    t->stats.dropped_failed += (uint64_t)lost;
    pthread_mutex_unlock(&t->mutex);
}

static realm_status squeeze(buffer *body)
{
    buffer small;
    z_stream z = {0};
    buffer_init(&small, MAX_BODY);
    if (deflateInit2(&z, Z_BEST_SPEED, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) != Z_OK)
        return REALM_NO_MEMORY;
    realm_status status = buffer_reserve(&small, deflateBound(&z, body->size));
    if (!status) {
        z.next_in = (Bytef *)body->data;
        z.avail_in = (uInt)body->size;
        z.next_out = (Bytef *)small.data;
        z.avail_out = (uInt)small.capacity;
        status = deflate(&z, Z_FINISH) == Z_STREAM_END ? REALM_OK : REALM_INTERNAL;
        small.size = small.capacity - z.avail_out;
    }
    deflateEnd(&z);
    if (status) {
        buffer_release(&small);
        return status;
    }
    buffer_release(body);
    *body = small;
    return REALM_OK;
}

/* Frees batch; how many of its spans did not arrive. */
static int64_t send_batch(tracer *t, spans *batch, int32_t count)
{
    buffer body;
    buffer_init(&body, MAX_BODY);
    realm_status status = otlp_encode(batch, t->options.resource, t->options.n_resource, &body);
    close_list(batch);
    if (!status && t->options.gzip)
        status = squeeze(&body);
    uint64_t give_up_ns = clock_ns() + (uint64_t)t->options.retry_ms * MILLISECOND_NS;
    int64_t lost = count;
    post p = {0};
    if (status)
        snprintf(p.reason, sizeof p.reason, "the host is out of memory");
    int goes_on = !status && (clock_ns() >= t->not_before_ns || wait_until(t, t->not_before_ns));
    if (!status && !goes_on)
        snprintf(p.reason, sizeof p.reason, "the server stops before the collector wants more");
    for (int attempt = 0; goes_on; attempt++) {
        post_result result = send_body(t, &body, &p);
        lost = result == POSTED ? p.rejected : count;
        if (result == POSTED && lost)
            snprintf(p.reason, sizeof p.reason, "the collector rejected them");
        if (result != TRY_AGAIN)
            break;
        uint64_t again_ns = clock_ns() + (p.retry_ns ? p.retry_ns : backoff_ns(t, attempt));
        if (p.retry_ns)
            t->not_before_ns = again_ns;
        goes_on = again_ns < give_up_ns && wait_until(t, again_ns);
    }
    tell(t, lost > 0, (int32_t)lost, p.reason);
    buffer_release(&body);
    return lost;
}

/* ---- the thread ---- */

/* 1: there is a batch to be sent. 0: wait until *until_ns. Under the mutex. */
static int is_due(const tracer *t, uint64_t *until_ns)
{
    *until_ns = UINT64_MAX;
    if (!t->first)
        return 0;
    *until_ns = t->since_ns + (uint64_t)t->options.delay_ms * MILLISECOND_NS;
    return t->closing || t->waiting >= t->options.batch_spans || clock_ns() >= *until_ns;
}

static void *run(void *context)
{
    tracer *t = context;
    int is_lost = 0; /* the tracer closes and the collector takes nothing */
    pthread_mutex_lock(&t->mutex);
    while (t->first || !t->closing) {
        uint64_t until_ns;
        if (!is_due(t, &until_ns)) {
            condition_wait(&t->changed, &t->mutex, until_ns);
            continue;
        }
        int32_t count;
        spans *batch = take_batch(t, &count);
        t->since_ns = clock_ns();
        pthread_mutex_unlock(&t->mutex);
        int64_t lost = count;
        if (is_lost)
            close_list(batch);
        else
            lost = send_batch(t, batch, count);
        count_batch(t, count, lost);
        pthread_mutex_lock(&t->mutex);
        is_lost = t->closing && lost == count;
    }
    pthread_mutex_unlock(&t->mutex);
    return NULL;
}

/* ---- opening ---- */

static int is_token(const char *name)
{
    static const char others[] = "!#$%&'*+-.^_`|~";
    for (const char *c = name; *c; c++)
        if (!((*c >= '0' && *c <= '9') || (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') ||
              strchr(others, *c)))
            return 0;
    return *name != 0;
}

static int is_header_value(const char *value)
{
    for (const unsigned char *c = (const unsigned char *)value; *c; c++)
        if ((*c < 0x20 && *c != '\t') || *c == 0x7f)
            return 0;
    return 1;
}

static int add_header(tracer *t, const char *line)
{
    struct curl_slist *longer = line ? curl_slist_append(t->headers, line) : NULL;
    if (longer)
        t->headers = longer;
    return longer != NULL;
}

/* Values are not shown: they are keys of the collector's. */
static realm_status set_headers(tracer *t, const tracer_options *o, realm_error *error)
{
    int fits = add_header(t, "content-type: application/x-protobuf") && add_header(t, "expect:");
    if (fits && o->gzip)
        fits = add_header(t, "content-encoding: gzip");
    for (size_t i = 0; fits && i < o->n_headers; i++) {
        const otlp_pair *h = &o->headers[i];
        if (!is_token(h->name) || !is_header_value(h->value))
            return realm_fail(error, REALM_INVALID,
                              "header %zu for the collector is none that HTTP allows", i + 1);
        fits = add_header(t, arena_printf(&t->memory, "%s: %s", h->name, h->value));
    }
    return fits ? REALM_OK : realm_fail_memory(error, 1, "the tracer's headers");
}

/* The same for all spans of this process. */
static realm_status set_resource(tracer *t, const tracer_options *o, realm_error *error)
{
    uint8_t r[16];
    otlp_pair *list = arena_take_array(&t->memory, o->n_resource + 3, sizeof *list);
    if (!list || getrandom(r, sizeof r, 0) != sizeof r)
        return realm_fail_memory(error, 1, "the tracer's resource");
    r[6] = (uint8_t)((r[6] & 15) | 64); /* a UUID of version 4 */
    r[8] = (uint8_t)((r[8] & 63) | 128);
    const char *instance = arena_printf(
        &t->memory, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", r[0],
        r[1], r[2], r[3], r[4], r[5], r[6], r[7], r[8], r[9], r[10], r[11], r[12], r[13], r[14],
        r[15]);
    const otlp_pair ours[] = {{"service.name", "realm"},
                              {"service.version", realm_version()},
                              {"service.instance.id", instance ? instance : ""}};
    size_t count = 0;
    for (size_t i = 0; i < o->n_resource; i++) {
        const char *name = o->resource[i].name, *value = o->resource[i].value;
        /* Collectors refuse a whole batch for one bad byte, and these are in every batch. */
        if (!utf8_valid((const uint8_t *)name, strlen(name)) ||
            !utf8_valid((const uint8_t *)value, strlen(value)))
            return realm_fail(error, REALM_INVALID, "resource attribute %zu is no UTF-8", i + 1);
        list[count].name = arena_copy(&t->memory, o->resource[i].name, strlen(o->resource[i].name));
        list[count].value = arena_copy(&t->memory, o->resource[i].value,
                                       strlen(o->resource[i].value));
        if (!list[count].name || !list[count].value)
            return realm_fail_memory(error, 1, "the tracer's resource");
        count++;
    }
    for (size_t k = 0; k < sizeof ours / sizeof *ours; k++) {
        int is_theirs = 0;
        for (size_t i = 0; i < o->n_resource; i++)
            is_theirs |= strcmp(o->resource[i].name, ours[k].name) == 0;
        if (!is_theirs)
            list[count++] = ours[k];
    }
    t->options.resource = list;
    t->options.n_resource = count;
    return REALM_OK;
}

static realm_status set_endpoint(tracer *t, const tracer_options *o, realm_error *error)
{
    const char *text = o->endpoint ? o->endpoint : "", *rest = strstr(text, "://");
    CURLU *url = curl_url();
    char *scheme = NULL, *host = NULL;
    int fits = rest && url && curl_url_set(url, CURLUPART_URL, text, 0) == CURLUE_OK &&
               curl_url_get(url, CURLUPART_SCHEME, &scheme, 0) == CURLUE_OK &&
               curl_url_get(url, CURLUPART_HOST, &host, 0) == CURLUE_OK &&
               (strcmp(scheme, "http") == 0 || strcmp(scheme, "https") == 0);
    curl_free(scheme);
    curl_free(host);
    curl_url_cleanup(url);
    if (!fits) /* not shown: it may hold a password */
        return realm_fail(error, REALM_INVALID,
                          "the collector's address must be http:// or https:// with a host");
    const char *path = strpbrk(rest + 3, "/?#") ? "" : "/v1/traces";
    t->options.endpoint = arena_printf(&t->memory, "%s%s", text, path);
    return t->options.endpoint ? REALM_OK : realm_fail_memory(error, 1, "the collector's address");
}

static realm_status open_curl(tracer *t, const tracer_options *o, realm_error *error)
{
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != 0)
        return realm_fail(error, REALM_INTERNAL, "libcurl does not start");
    t->multi = curl_multi_init();
    t->easy = curl_easy_init();
    if (!t->multi || !t->easy)
        return realm_fail_memory(error, 1, "the tracer");
    realm_status status = set_endpoint(t, o, error);
    if (!status)
        status = set_headers(t, o, error);
    if (status)
        return status;
    const char *agent = arena_printf(&t->memory, "realm/%s", realm_version());
    curl_easy_setopt(t->easy, CURLOPT_URL, t->options.endpoint);
    curl_easy_setopt(t->easy, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(t->easy, CURLOPT_POST, 1L);
    curl_easy_setopt(t->easy, CURLOPT_HTTPHEADER, t->headers);
    curl_easy_setopt(t->easy, CURLOPT_USERAGENT, agent ? agent : "realm");
    curl_easy_setopt(t->easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(t->easy, CURLOPT_TIMEOUT_MS, (long)t->options.timeout_ms);
    curl_easy_setopt(t->easy, CURLOPT_WRITEFUNCTION, take_answer);
    if (o->ca_file)
        curl_easy_setopt(t->easy, CURLOPT_CAINFO, o->ca_file); /* copied */
    return REALM_OK;
}

static int32_t or_usual(int32_t value, int32_t usual)
{
    return value > 0 ? value : usual;
}

static realm_status start(tracer *t, const tracer_options *o, realm_error *error)
{
    if (!(o->ratio >= 0 && o->ratio <= 1))
        return realm_fail(error, REALM_INVALID, "a part of all traces is a number from 0 to 1");
    t->below = o->ratio >= 1 ? UINT64_MAX : (uint64_t)(o->ratio * 0x1p63);
    realm_status status = open_curl(t, o, error);
    if (!status)
        status = set_resource(t, o, error);
    if (status)
        return status;
    if (pthread_create(&t->thread, NULL, run, t) != 0)
        return realm_fail(error, REALM_NO_MEMORY, "no thread for the tracer");
    t->running = 1;
    return REALM_OK;
}

realm_status tracer_open(tracer **out, const tracer_options *options, realm_error *error)
{
    tracer *t = calloc(1, sizeof *t);
    if (!t)
        return realm_fail_memory(error, sizeof *t, "the tracer");
    t->options = *options;
    t->options.timeout_ms = or_usual(options->timeout_ms, 10000);
    t->options.retry_ms = or_usual(options->retry_ms, 30000);
    t->options.delay_ms = or_usual(options->delay_ms, 5000);
    t->options.queue_spans = or_usual(options->queue_spans, 2048);
    t->options.batch_spans = or_usual(options->batch_spans, 512);
    arena_init(&t->memory, 0);
    rng_init(&t->random, map_seed());
    condition_init(&t->changed);
    pthread_mutex_init(&t->mutex, NULL);
    realm_status status = start(t, options, error);
    if (status)
        tracer_close(t, 0);
    else
        *out = t;
    return status;
}

static void begin_to_close(tracer *t, int32_t wait_ms)
{
    uint64_t by_ns = clock_ns() + (uint64_t)wait_ms * MILLISECOND_NS;
    pthread_mutex_lock(&t->mutex);
    if (!t->closing || by_ns < t->close_by_ns)
        t->close_by_ns = by_ns;
    t->closing = 1;
    pthread_cond_signal(&t->changed);
    pthread_mutex_unlock(&t->mutex);
    if (t->running)
        curl_multi_wakeup(t->multi);
}

void tracer_leave(tracer *t, int32_t wait_ms, tracer_stats *sum)
{
    t->sum = sum;
    begin_to_close(t, wait_ms);
}

void tracer_stats_add(tracer_stats *sum, const tracer_stats *more)
{
    sum->exported += more->exported;
    sum->dropped_full += more->dropped_full;
    sum->dropped_failed += more->dropped_failed;
    sum->dropped_oversize += more->dropped_oversize;
}

void tracer_close(tracer *t, int32_t wait_ms)
{
    if (!t)
        return;
    begin_to_close(t, wait_ms);
    if (t->running)
        pthread_join(t->thread, NULL);
    if (t->sum)
        tracer_stats_add(t->sum, &t->stats);
    curl_easy_cleanup(t->easy);
    curl_multi_cleanup(t->multi);
    curl_slist_free_all(t->headers);
    pthread_cond_destroy(&t->changed);
    pthread_mutex_destroy(&t->mutex);
    arena_release(&t->memory);
    free(t);
}
