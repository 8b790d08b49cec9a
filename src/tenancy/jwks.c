/* tenancy/jwks.c: see jwks.h. */
#include "tenancy/jwks.h"

#include <curl/curl.h>
#include <openssl/crypto.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "base/buffer.h"
#include "base/condition.h"
#include "base/file.h"
#include "base/log.h"

#define MAX_BYTES     (1u << 20)
#define MAX_REDIRECTS 3
#define SECOND_NS     1000000000ull

struct jwks {
    jwks_options options;
    char *source, *ca_file;
    pthread_t thread;
    int running;
    pthread_mutex_t mutex; /* guards what follows */
    pthread_cond_t changed;
    jwt_keys *keys;
    uint64_t loaded_ns, tried_ns; /* keys are of loaded_ns; tried_ns 0: never */
    int missed, closing;
};

static int starts_with(const char *text, const char *prefix)
{
    return strncasecmp(text, prefix, strlen(prefix)) == 0;
}

static int is_url(const char *source)
{
    return starts_with(source, "http://") || starts_with(source, "https://");
}

/* ---- reading ---- */

static size_t take_bytes(char *bytes, size_t size, size_t count, void *context)
{
    return buffer_add(context, bytes, size * count) == REALM_OK ? count : 0;
}

static realm_status download(const jwks *j, buffer *out, realm_error *error)
{
    char reason[CURL_ERROR_SIZE] = "";
    CURL *c = curl_easy_init();
    if (!c)
        return realm_fail_memory(error, 0, "a download");
    const char *schemes = j->options.allow_http ? "http,https" : "https";
    /* This host itself cannot be listened to on the way, and has no certificate as a rule. */
    if (starts_with(j->source, "http://"))
        schemes = "http,https";
    curl_easy_setopt(c, CURLOPT_URL, j->source);
    curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, schemes);
    curl_easy_setopt(c, CURLOPT_REDIR_PROTOCOLS_STR, j->options.allow_http ? schemes : "https");
    curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 1L);
    curl_easy_setopt(c, CURLOPT_MAXREDIRS, (long)MAX_REDIRECTS);
    curl_easy_setopt(c, CURLOPT_FAILONERROR, 1L);
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_TIMEOUT_MS, (long)j->options.timeout_ms);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, take_bytes);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, out);
    curl_easy_setopt(c, CURLOPT_ERRORBUFFER, reason);
    if (j->ca_file)
        curl_easy_setopt(c, CURLOPT_CAINFO, j->ca_file);
    CURLcode code = curl_easy_perform(c);
    curl_easy_cleanup(c);
    if (code == CURLE_OK)
        return REALM_OK;
    return realm_fail(error, REALM_IO, "'%s': %s", j->source,
                      *reason ? reason : curl_easy_strerror(code));
}

static realm_status read_source(const jwks *j, jwt_keys **out, realm_error *error)
{
    arena a;
    buffer bytes;
    char *text = NULL;
    size_t size = 0;
    arena_init(&a, 4 * MAX_BYTES);
    buffer_init(&bytes, MAX_BYTES);
    realm_status status;
    if (is_url(j->source)) {
        status = download(j, &bytes, error);
        text = bytes.data;
        size = bytes.size;
    } else {
        status = file_read(&a, j->source, MAX_BYTES, &text, &size, error);
    }
    if (!status) {
        status = jwt_keys_read(out, text ? text : "", size, j->options.hmac, error);
        if (status)
            realm_fail_in(error, status, "'%s'", j->source);
        if (text)
            OPENSSL_cleanse(text, size);
    }
    buffer_release(&bytes);
    arena_release(&a);
    return status;
}

static realm_status refresh(jwks *j, realm_error *error)
{
    jwt_keys *keys = NULL, *old = NULL;
    realm_status status = read_source(j, &keys, error);
    pthread_mutex_lock(&j->mutex);
    j->tried_ns = clock_ns();
    j->missed = 0;
    if (!status) {
        old = j->keys;
        j->keys = keys;
        j->loaded_ns = j->tried_ns;
    }
    pthread_mutex_unlock(&j->mutex);
    jwt_keys_release(old);
    return status;
}

/* ---- the thread ---- */

static uint64_t next_try_ns(const jwks *j)
{
    int32_t seconds = j->missed || !j->keys ? j->options.min_refresh_s : j->options.refresh_s;
    return j->tried_ns ? j->tried_ns + (uint64_t)seconds * SECOND_NS : 0;
}

static void *run(void *context)
{
    jwks *j = context;
    pthread_mutex_lock(&j->mutex);
    while (!j->closing) {
        uint64_t at = next_try_ns(j);
        if (clock_ns() < at) {
            condition_wait(&j->changed, &j->mutex, at);
            continue;
        }
        pthread_mutex_unlock(&j->mutex);
        realm_error error;
        if (refresh(j, &error))
            LOG_W("tenancy", "keys for bearer tokens could not be read: %s", error.message);
        pthread_mutex_lock(&j->mutex);
    }
    pthread_mutex_unlock(&j->mutex);
    return NULL;
}

/* ---- opening and asking ---- */

static int is_this_host(const char *source)
{
    static const char *const hosts[] = {"127.0.0.1", "localhost", "[::1]"};
    const char *at = source + strlen("http://");
    for (size_t i = 0; i < sizeof hosts / sizeof *hosts; i++) {
        size_t size = strlen(hosts[i]);
        if (strncasecmp(at, hosts[i], size) == 0 && (!at[size] || strchr(":/?", at[size])))
            return 1;
    }
    return 0;
}

static realm_status check_options(const jwks_options *o, realm_error *error)
{
    if (!o->source || !*o->source)
        return realm_fail(error, REALM_INVALID, "bearer tokens need a file or URL with keys");
    if (o->hmac && is_url(o->source))
        return realm_fail(error, REALM_INVALID,
                          "a shared secret must be in a file, not behind '%s'", o->source);
    if (starts_with(o->source, "http://") && !o->allow_http && !is_this_host(o->source))
        return realm_fail(error, REALM_INVALID,
                          "keys from '%s' could be forged on the way: use https", o->source);
    return REALM_OK;
}

static realm_status start(jwks *j, realm_error *error)
{
    realm_status status = refresh(j, error);
    if (status && !is_url(j->source))
        return status;
    if (status) /* it may come up after us */
        LOG_W("tenancy", "keys for bearer tokens could not be read: %s", error->message);
    if (pthread_create(&j->thread, NULL, run, j) != 0)
        return realm_fail(error, REALM_NO_MEMORY, "no thread for the keys of bearer tokens");
    j->running = 1;
    return REALM_OK;
}

realm_status jwks_open(jwks **out, const jwks_options *options, realm_error *error)
{
    realm_error own;
    realm_status status = check_options(options, error);
    if (status)
        return status;
    jwks *j = calloc(1, sizeof *j);
    if (!j)
        return realm_fail_memory(error, sizeof *j, "keys for bearer tokens");
    condition_init(&j->changed);
    pthread_mutex_init(&j->mutex, NULL);
    j->options = *options;
    j->options.refresh_s = options->refresh_s > 0 ? options->refresh_s : 300;
    j->options.min_refresh_s = options->min_refresh_s > 0 ? options->min_refresh_s : 10;
    j->options.max_stale_s = options->max_stale_s > 0 ? options->max_stale_s : 86400;
    j->options.timeout_ms = options->timeout_ms > 0 ? options->timeout_ms : 10000;
    j->source = strdup(options->source);
    j->ca_file = options->ca_file ? strdup(options->ca_file) : NULL;
    if (!j->source || (options->ca_file && !j->ca_file))
        status = realm_fail_memory(error, 0, "keys for bearer tokens");
    else if (curl_global_init(CURL_GLOBAL_DEFAULT) != 0)
        status = realm_fail(error, REALM_INTERNAL, "libcurl does not start");
    if (!status)
        status = start(j, error ? error : &own);
    if (status)
        jwks_close(j);
    else
        *out = j;
    return status;
}

void jwks_close(jwks *j)
{
    if (!j)
        return;
    pthread_mutex_lock(&j->mutex);
    j->closing = 1;
    pthread_cond_signal(&j->changed);
    pthread_mutex_unlock(&j->mutex);
    if (j->running)
        pthread_join(j->thread, NULL);
    jwt_keys_release(j->keys);
    pthread_cond_destroy(&j->changed);
    pthread_mutex_destroy(&j->mutex);
    free(j->source);
    free(j->ca_file);
    free(j);
}

jwt_keys *jwks_keys(jwks *j)
{
    uint64_t now = clock_ns();
    pthread_mutex_lock(&j->mutex);
    int fresh = j->keys && now - j->loaded_ns < (uint64_t)j->options.max_stale_s * SECOND_NS;
    jwt_keys *keys = fresh ? jwt_keys_retain(j->keys) : NULL;
    pthread_mutex_unlock(&j->mutex);
    return keys;
}

void jwks_missed(jwks *j)
{
    pthread_mutex_lock(&j->mutex);
    j->missed = 1;
    pthread_cond_signal(&j->changed);
    pthread_mutex_unlock(&j->mutex);
}
