/* tenancy/tenancy.c: see tenancy.h. The worker's loop, and what requests ask.
 *
 * Usage is committed in groups: while one transaction is on its way to the disk, events gather, and the next
 * one takes them all. So a lone event costs one commit and is durable at once, and a thousand that come together
 * cost one as well. */
#include "tenancy/tenancy.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include <openssl/evp.h>

#include "base/condition.h"
#include "base/log.h"
#include "tenancy/view.h"

#define MS_NS       1000000ull
#define POLL_MS     250
#define RETRY_NS    (500 * MS_NS)   /* after a commit of usage that failed */
#define KEY_USE_NS  (10000 * MS_NS) /* how often "last used" goes to the store */
#define WARN_NS     (30000 * MS_NS) /* how often the log repeats that the store fails */
#define DUMMY_VALUE 0x5A

typedef struct event_node {
    queue_node node;
    usage_event event;
    void (*done)(void *context);
    void *context;
} event_node;

typedef struct node_list {
    queue_node *head, *tail;
} node_list;

/* Jobs that only read, on a connection and a thread of their own. */
typedef struct reader {
    tenant_store *store; /* NULL: there is none */
    pthread_t thread;
    int running;
    queue jobs;
} reader;

struct tenancy {
    reader reader;
    tenant_store *store; /* the worker's */
    view_context making; /* the worker's */
    tenancy_clock clock;
    jwks *jwks;
    jwt_rules rules;
    char *rule_texts[4]; /* what rules points to */
    int lock_descriptor;
    int32_t poll_ms;

    pthread_t worker;
    int running;
    pthread_mutex_t mutex; /* guards jobs, events, closing, hurried */
    pthread_cond_t filled;
    node_list jobs, events;
    int closing, hurried;

    pthread_mutex_t view_mutex; /* guards the pointer, not the view */
    view *view;

    /* The worker's. */
    usage_table batch; /* events that are not durable (T3) */
    node_list waiting; /* events in batch whose done is owed (T4) */
    uint64_t batch_events;
    uint64_t retry_ns, key_use_ns, warned_ns, poll_ns;
    int stale; /* the store has changed and could not be read */
    realm_error last_error;

    atomic_int behind;
    atomic_ullong n_events, n_commits, n_pending, n_failed_commits, n_denied, n_reloads;
};

/* ---- lists --------------------------------------------------------------------------------------- */

static void list_put(node_list *l, queue_node *node)
{
    node->next = NULL;
    if (l->tail)
        l->tail->next = node;
    else
        l->head = node;
    l->tail = node;
}

static queue_node *list_take(node_list *l)
{
    queue_node *node = l->head;
    if (node && !(l->head = node->next))
        l->tail = NULL;
    return node;
}

static node_list list_take_all(node_list *l)
{
    node_list all = *l;
    *l = (node_list){NULL, NULL};
    return all;
}

/* ---- the view ------------------------------------------------------------------------------------ */

static view *view_take(tenancy *t)
{
    pthread_mutex_lock(&t->view_mutex);
    view *v = view_retain(t->view);
    pthread_mutex_unlock(&t->view_mutex);
    return v;
}

/* Says that the store fails, but not without end. */
static void warn(tenancy *t, const char *doing, const realm_error *error)
{
    uint64_t now = clock_ns();
    if (t->warned_ns && now - t->warned_ns < WARN_NS)
        return;
    t->warned_ns = now;
    LOG_E("tenancy", "%s: %s", doing, error->message);
}

static realm_status reload(tenancy *t, realm_error *error)
{
    view *made, *old = t->view;
    realm_status status = view_make(&made, &t->making, old, error);
    if (status)
        return status;
    pthread_mutex_lock(&t->view_mutex);
    t->view = made;
    pthread_mutex_unlock(&t->view_mutex);
    view_release(old);
    atomic_fetch_add(&t->n_reloads, 1);
    return REALM_OK;
}

/* Anybody may have changed the store, this process's jobs among them. */
static void look_for_changes(tenancy *t)
{
    realm_error error;
    int64_t generation;
    realm_status status = t->store->table->generation(t->store, &generation, &error);
    if (!status && (generation != t->view->generation || t->stale))
        status = reload(t, &error);
    t->stale = status != REALM_OK;
    if (status)
        warn(t, "the tenants could not be read again", &error);
}

/* ---- usage --------------------------------------------------------------------------------------- */

/* Into the table. What memory refuses stays queued. */
static void gather(tenancy *t, node_list *events)
{
    node_list left = {NULL, NULL};
    realm_error error;
    for (queue_node *node; (node = list_take(events));) {
        event_node *e = QUEUE_OWNER(node, event_node, node);
        if (usage_table_add(&t->batch, &e->event, &error)) {
            warn(t, "usage could not be counted yet", &error);
            list_put(&left, node);
            continue;
        }
        t->batch_events++;
        if (e->done)
            list_put(&t->waiting, node);
        else
            free(e);
    }
    if (!left.head)
        return;
    pthread_mutex_lock(&t->mutex); /* before those that came meanwhile */
    left.tail->next = t->events.head;
    if (!t->events.tail)
        t->events.tail = left.tail;
    t->events.head = left.head;
    pthread_mutex_unlock(&t->mutex);
}

static realm_status write_rows(tenancy *t, realm_error *error)
{
    const usage_row **rows = malloc(t->batch.rows.count * sizeof *rows);
    if (!rows)
        return realm_fail_memory(error, t->batch.rows.count, "the list of usage rows");
    size_t count = 0, position = 0;
    for (const map_slot *slot; (slot = map_next(&t->batch.rows, &position));)
        rows[count++] = slot->value;
    realm_status status = t->store->table->usage_add(t->store, rows, count, error);
    free(rows);
    return status;
}

static void tell_waiting(tenancy *t)
{
    node_list told = list_take_all(&t->waiting);
    for (queue_node *node; (node = list_take(&told));) {
        event_node *e = QUEUE_OWNER(node, event_node, node);
        e->done(e->context);
        free(e);
    }
}

static void commit_usage(tenancy *t, int hurried)
{
    if (!t->batch_events || (t->retry_ns && clock_ns() < t->retry_ns && !hurried))
        return;
    realm_status status = write_rows(t, &t->last_error);
    if (status) {
        atomic_fetch_add(&t->n_failed_commits, 1);
        atomic_store(&t->behind, 1);
        t->retry_ns = clock_ns() + RETRY_NS;
        warn(t, "usage could not be written and is kept in memory", &t->last_error);
        if (hurried)
            tell_waiting(t);
        return;
    }
    t->retry_ns = 0;
    atomic_store(&t->behind, 0);
    atomic_fetch_add(&t->n_commits, 1);
    atomic_fetch_sub(&t->n_pending, t->batch_events);
    t->batch_events = 0;
    usage_table_clear(&t->batch);
    tell_waiting(t);
}

/* ---- when keys were last used -------------------------------------------------------------------- */

static void write_key_uses(tenancy *t)
{
    size_t count = 0, position = 0;
    realm_error error;
    t->key_use_ns = clock_ns();
    key_use *uses = malloc((t->making.slots.count + 1) * sizeof *uses);
    for (const map_slot *slot; uses && (slot = map_next(&t->making.slots, &position));) {
        key_slot *key = slot->value;
        int64_t used = atomic_load(&key->used_ms);
        if (used == key->written_ms)
            continue;
        key->written_ms = used;
        memcpy(uses[count].id, key->id, sizeof key->id);
        uses[count++].at_ms = used;
    }
    /* Only for people to see: one that is lost comes again with the key's next use. */
    if (count && t->store->table->key_used(t->store, uses, count, &error))
        warn(t, "when keys were last used could not be written", &error);
    free(uses);
}

/* ---- the worker ---------------------------------------------------------------------------------- */

static void run_jobs(tenancy *t, node_list *jobs)
{
    for (queue_node *node; (node = list_take(jobs));) {
        tenancy_job *job = QUEUE_OWNER(node, tenancy_job, node);
        realm_error error = {0};
        realm_status status = job->run(job, t->store, &error);
        look_for_changes(t);
        job->done(job, status, status ? &error : NULL); /* may free it */
    }
}

static void wait_for_work(tenancy *t)
{
    uint64_t until_ns = t->poll_ns;
    if (t->hurried && t->waiting.head)
        return;
    if (t->retry_ns && t->retry_ns < until_ns)
        until_ns = t->retry_ns;
    while (!t->jobs.head && !t->events.head && !t->closing && clock_ns() < until_ns)
        condition_wait(&t->filled, &t->mutex, until_ns);
}

static void *run_worker(void *context)
{
    tenancy *t = context;
    for (int closing = 0; !closing;) {
        pthread_mutex_lock(&t->mutex);
        wait_for_work(t);
        node_list jobs = list_take_all(&t->jobs), events = list_take_all(&t->events);
        int hurried = t->hurried;
        closing = t->closing;
        pthread_mutex_unlock(&t->mutex);
        gather(t, &events);
        if (closing)
            t->retry_ns = 0;
        commit_usage(t, hurried);
        run_jobs(t, &jobs);
        if (closing || clock_ns() - t->key_use_ns >= KEY_USE_NS)
            write_key_uses(t);
        if (!closing && clock_ns() >= t->poll_ns) {
            look_for_changes(t);
            t->poll_ns = clock_ns() + (uint64_t)t->poll_ms * MS_NS;
        }
    }
    return NULL;
}

/* ---- the reader ---------------------------------------------------------------------------------- */

static void *run_reader(void *context)
{
    reader *r = context;
    for (queue_node *node; (node = queue_take(&r->jobs, 0, UINT64_MAX));) {
        tenancy_job *job = QUEUE_OWNER(node, tenancy_job, node);
        realm_error error = {0};
        realm_status status = job->run(job, r->store, &error);
        job->done(job, status, status ? &error : NULL); /* may free it */
    }
    return NULL;
}

static realm_status start_reader(reader *r, realm_error *error)
{
    if (r->store && pthread_create(&r->thread, NULL, run_reader, r) != 0)
        return realm_fail(error, REALM_NO_MEMORY, "no thread for reads of the store");
    r->running = r->store != NULL;
    return REALM_OK;
}

static void close_reader(reader *r)
{
    queue_close(&r->jobs);
    if (r->running)
        pthread_join(r->thread, NULL);
    if (r->store)
        r->store->table->close(r->store);
    queue_release(&r->jobs);
}

/* ---- opening ------------------------------------------------------------------------------------- */

static realm_status take_lock(tenancy *t, const char *folder, realm_error *error)
{
    char path[4096];
    int length = snprintf(path, sizeof path, "%s/lock", folder);
    if (length < 0 || (size_t)length >= sizeof path)
        return realm_fail(error, REALM_INVALID, "the data folder's path is too long");
    t->lock_descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (t->lock_descriptor < 0)
        return realm_fail(error, REALM_IO, "cannot open '%s': %s", path, strerror(errno));
    if (flock(t->lock_descriptor, LOCK_EX | LOCK_NB) == 0)
        return REALM_OK;
    return realm_fail(error, errno == EWOULDBLOCK ? REALM_BUSY : REALM_IO,
                      errno == EWOULDBLOCK ? "another server uses the data folder '%s'"
                                           : "cannot lock the data folder '%s'",
                      folder);
}

static realm_status copy_rules(tenancy *t, const jwt_rules *rules, realm_error *error)
{
    if (!rules || !rules->algorithms)
        return realm_fail(error, REALM_INVALID, "bearer tokens need at least one algorithm");
    const char *texts[] = {rules->issuer, rules->audience, rules->tenant_claim, rules->scope_claim};
    for (int i = 0; i < 4; i++)
        if (texts[i] && !(t->rule_texts[i] = strdup(texts[i])))
            return realm_fail_memory(error, strlen(texts[i]), "the rules for bearer tokens");
    t->rules = *rules;
    t->rules.issuer = t->rule_texts[0];
    t->rules.audience = t->rule_texts[1];
    t->rules.tenant_claim = t->rule_texts[2];
    t->rules.scope_claim = t->rule_texts[3];
    return REALM_OK;
}

typedef struct spent {
    tenancy *tenancy;
    int32_t day;
    int of_day;
} spent;

static void count_spent(void *context, const char *name, const usage_row *row)
{
    (void)name;
    const spent *s = context;
    meter *m = map_get(&s->tenancy->making.meters, &row->key.tenant, sizeof row->key.tenant);
    int64_t tokens = (int64_t)(row->counts.prompt_tokens + row->counts.completion_tokens);
    if (m)
        meter_begin(m, s->day, s->of_day ? tokens : 0, s->of_day ? 0 : tokens);
}

/* What the budgets have left depends on what was used before this process. */
static realm_status begin_meters(tenancy *t, realm_error *error)
{
    int32_t today = meter_day_of(t->clock.wall_ms(t->clock.context));
    char text[11];
    meter_day_text(today, text);
    text[8] = '0';
    text[9] = '1';
    spent s = {.tenancy = t, .day = today, .of_day = 1};
    usage_filter day = {.from = today, .to = today};
    usage_filter month = {.from = meter_day_parse(text), .to = today};
    realm_status status = t->store->table->usage_read(t->store, &day, USAGE_BY_TENANT, NULL,
                                                      count_spent, &s, error);
    s.of_day = 0;
    if (!status)
        status = t->store->table->usage_read(t->store, &month, USAGE_BY_TENANT, NULL, count_spent,
                                             &s, error);
    return status;
}

static realm_status open_all(tenancy *t, const tenancy_options *options, realm_error *error)
{
    realm_status status = REALM_OK;
    if (options->lock_folder)
        status = take_lock(t, options->lock_folder, error);
    if (!status && options->jwks) {
        status = copy_rules(t, options->jwt_rules, error);
        if (!status)
            status = jwks_open(&t->jwks, options->jwks, error);
    }
    if (!status)
        status = reload(t, error);
    if (!status)
        status = begin_meters(t, error);
    t->poll_ns = t->key_use_ns = clock_ns();
    if (!status)
        status = start_reader(&t->reader, error);
    if (!status && pthread_create(&t->worker, NULL, run_worker, t) != 0)
        status = realm_fail(error, REALM_NO_MEMORY, "no thread for the store");
    t->running = !status;
    return status;
}

realm_status tenancy_open(tenancy **out, const tenancy_options *options, realm_error *error)
{
    tenancy *t = calloc(1, sizeof *t);
    if (!t) {
        options->store->table->close(options->store);
        if (options->reader)
            options->reader->table->close(options->reader);
        return realm_fail_memory(error, sizeof *t, "the tenancy");
    }
    condition_init(&t->filled);
    pthread_mutex_init(&t->mutex, NULL);
    pthread_mutex_init(&t->view_mutex, NULL);
    usage_table_init(&t->batch);
    queue_init(&t->reader.jobs);
    t->reader.store = options->reader;
    t->store = options->store;
    t->lock_descriptor = -1;
    t->poll_ms = options->poll_ms > 0 ? options->poll_ms : POLL_MS;
    t->clock = options->clock.now_ns ? options->clock : tenancy_clock_system;
    t->making = (view_context){.store = t->store, .sandbox = options->sandbox, .clock = &t->clock};
    view_context_init(&t->making);
    realm_status status = open_all(t, options, error);
    if (status)
        tenancy_close(t, NULL);
    else
        *out = t;
    return status;
}

realm_status tenancy_close(tenancy *t, realm_error *error)
{
    if (!t)
        return REALM_OK;
    pthread_mutex_lock(&t->mutex);
    t->closing = 1;
    pthread_cond_signal(&t->filled);
    pthread_mutex_unlock(&t->mutex);
    if (t->running)
        pthread_join(t->worker, NULL);
    close_reader(&t->reader);
    realm_status status = REALM_OK;
    uint64_t lost = atomic_load(&t->n_pending);
    if (lost)
        status = realm_fail(error, t->last_error.status ? t->last_error.status : REALM_NO_MEMORY,
                            "usage of %" PRIu64 " requests is lost: %s", lost,
                            t->last_error.message);
    for (queue_node *node; (node = list_take(&t->waiting)) || (node = list_take(&t->events));)
        free(QUEUE_OWNER(node, event_node, node));
    jwks_close(t->jwks);
    view_release(t->view);
    view_context_release(&t->making);
    usage_table_release(&t->batch);
    t->store->table->close(t->store);
    if (t->lock_descriptor >= 0)
        close(t->lock_descriptor);
    for (int i = 0; i < 4; i++)
        free(t->rule_texts[i]);
    pthread_cond_destroy(&t->filled);
    pthread_mutex_destroy(&t->mutex);
    pthread_mutex_destroy(&t->view_mutex);
    free(t);
    return status;
}

/* ---- who ----------------------------------------------------------------------------------------- */

static realm_status deny(realm_error *error)
{
    return realm_fail(error, REALM_DENIED, "the API key is not valid");
}

/* An unknown id costs as much as a known one, so that answers do not tell which ids exist. */
static realm_status check_key(const view *v, const char *text, size_t size, int64_t now_ms,
                              identity *out, realm_error *error)
{
    static const uint8_t nobody[API_KEY_HASH_SIZE] = {DUMMY_VALUE};
    char id[API_KEY_ID_SIZE + 1];
    if (!api_key_parse(text, size, id))
        return deny(error);
    const view_key *key = map_get(&v->keys, id, API_KEY_ID_SIZE);
    int matches = api_key_matches(text, size, key ? key->record.salt : nobody,
                                  key ? key->record.hash : nobody);
    if (!key || !matches)
        return deny(error);
    if (key->record.expires_ms && now_ms >= key->record.expires_ms)
        return realm_fail(error, REALM_DENIED, "the API key has expired");
    *out = (identity){.tenant = key->tenant ? tenant_info_retain(key->tenant) : NULL,
                      .scopes = key->record.scopes};
    memcpy(out->key, key->record.id, sizeof out->key);
    atomic_store(&key->slot->used_ms, now_ms);
    return REALM_OK;
}

static realm_status check_token(tenancy *t, const view *v, const char *text, size_t size,
                                int64_t now_ms, identity *out, realm_error *error)
{
    jwt_claims claims;
    jwt_keys *keys = jwks_keys(t->jwks);
    if (!keys)
        return realm_fail(error, REALM_DENIED,
                          "bearer tokens cannot be checked at the moment: there are no keys");
    realm_status status = jwt_check(keys, &t->rules, text, size, now_ms / 1000, &claims, error);
    jwt_keys_release(keys);
    if (status == REALM_NOT_FOUND) {
        jwks_missed(t->jwks);
        status = REALM_DENIED;
    }
    if (status)
        return status;
    tenant_info *tenant = map_get(&v->by_name, claims.tenant, strlen(claims.tenant));
    if (!tenant)
        return realm_fail(error, REALM_DENIED, "the bearer token is for no tenant of this server");
    *out = (identity){.tenant = tenant_info_retain(tenant), .scopes = claims.scopes, .key = "jwt"};
    return REALM_OK;
}

realm_status tenancy_authenticate(tenancy *t, const char *credential, size_t size, identity *out,
                                  realm_error *error)
{
    *out = (identity){0};
    int64_t now_ms = t->clock.wall_ms(t->clock.context);
    view *v = view_take(t);
    realm_status status = t->jwks && jwt_looks_like(credential, size)
                              ? check_token(t, v, credential, size, now_ms, out, error)
                              : check_key(v, credential, size, now_ms, out, error);
    view_release(v);
    if (status)
        atomic_fetch_add(&t->n_denied, 1);
    return status;
}

void identity_release(identity *i)
{
    tenant_info_release(i->tenant);
    *i = (identity){0};
}

tenant_info *tenancy_find(tenancy *t, const char *name, size_t size)
{
    view *v = view_take(t);
    tenant_info *i = map_get(&v->by_name, name, size);
    if (i)
        tenant_info_retain(i);
    view_release(v);
    return i;
}

void tenancy_each(tenancy *t, void (*each)(void *context, const tenant_view *tenant), void *context)
{
    view *v = view_take(t);
    size_t position = 0;
    for (const map_slot *slot; (slot = map_next(&v->by_name, &position));)
        each(context, tenant_info_get(slot->value));
    view_release(v);
}

int tenancy_has_credentials(tenancy *t)
{
    view *v = view_take(t);
    int has = t->jwks || v->keys.count > 0;
    view_release(v);
    return has;
}

/* ---- usage --------------------------------------------------------------------------------------- */

realm_status tenancy_record(tenancy *t, const usage_event *event, void (*done)(void *context),
                            void *context, realm_error *error)
{
    event_node *e = malloc(sizeof *e);
    if (!e)
        return realm_fail_memory(error, sizeof *e, "a usage event");
    *e = (event_node){.event = *event, .done = done, .context = context};
    if (!e->event.key.day)
        e->event.key.day = meter_day_of(t->clock.wall_ms(t->clock.context));
    atomic_fetch_add(&t->n_events, 1);
    atomic_fetch_add(&t->n_pending, 1);
    pthread_mutex_lock(&t->mutex);
    list_put(&t->events, &e->node);
    pthread_cond_signal(&t->filled);
    pthread_mutex_unlock(&t->mutex);
    return REALM_OK;
}

int tenancy_is_behind(tenancy *t)
{
    return atomic_load(&t->behind);
}

void tenancy_hurry(tenancy *t)
{
    pthread_mutex_lock(&t->mutex);
    t->hurried = 1;
    pthread_cond_signal(&t->filled);
    pthread_mutex_unlock(&t->mutex);
}

void tenancy_stats_get(tenancy *t, tenancy_stats *out)
{
    view *v = view_take(t);
    *out = (tenancy_stats){.events = atomic_load(&t->n_events),
                           .commits = atomic_load(&t->n_commits),
                           .pending = atomic_load(&t->n_pending),
                           .failed_commits = atomic_load(&t->n_failed_commits),
                           .denied = atomic_load(&t->n_denied),
                           .reloads = atomic_load(&t->n_reloads),
                           .tenants = (int32_t)v->by_name.count,
                           .keys = (int32_t)v->keys.count,
                           .programs = v->n_programs};
    view_release(v);
}

/* ---- the store ----------------------------------------------------------------------------------- */

void tenancy_submit(tenancy *t, tenancy_job *job)
{
    pthread_mutex_lock(&t->mutex);
    list_put(&t->jobs, &job->node);
    pthread_cond_signal(&t->filled);
    pthread_mutex_unlock(&t->mutex);
}

void tenancy_submit_read(tenancy *t, tenancy_job *job)
{
    if (t->reader.store)
        queue_put(&t->reader.jobs, &job->node);
    else
        tenancy_submit(t, job);
}

typedef struct waiting_job {
    tenancy_job job;
    realm_status (*run)(void *context, tenant_store *store, realm_error *error);
    void *context;
    pthread_mutex_t mutex;
    pthread_cond_t ended;
    int done; /* guarded by mutex, as what follows */
    realm_status status;
    realm_error error;
} waiting_job;

static realm_status run_waiting(tenancy_job *job, tenant_store *store, realm_error *error)
{
    waiting_job *w = (waiting_job *)job;
    return w->run(w->context, store, error);
}

static void end_waiting(tenancy_job *job, realm_status status, const realm_error *error)
{
    waiting_job *w = (waiting_job *)job;
    pthread_mutex_lock(&w->mutex);
    w->status = status;
    if (error)
        w->error = *error;
    w->done = 1;
    pthread_cond_signal(&w->ended);
    pthread_mutex_unlock(&w->mutex);
}

realm_status
tenancy_run(tenancy *t, realm_status (*run)(void *context, tenant_store *store, realm_error *error),
            void *context, realm_error *error)
{
    waiting_job w = {
        .job = {.run = run_waiting, .done = end_waiting}, .run = run, .context = context};
    pthread_mutex_init(&w.mutex, NULL);
    pthread_cond_init(&w.ended, NULL);
    tenancy_submit(t, &w.job);
    pthread_mutex_lock(&w.mutex);
    while (!w.done)
        pthread_cond_wait(&w.ended, &w.mutex);
    pthread_mutex_unlock(&w.mutex);
    pthread_cond_destroy(&w.ended);
    pthread_mutex_destroy(&w.mutex);
    if (w.status && error)
        *error = w.error;
    return w.status;
}

realm_status tenancy_check_program(tenancy *t, const char *name, const void *bytes, size_t size,
                                   program **out, realm_error *error)
{
    unsigned char digest[32];
    char hash[PROGRAM_HASH_SIZE + 1];
    program *p = NULL;
    if (out)
        *out = NULL;
    if (!t->making.sandbox)
        return REALM_OK;
    if (!EVP_Digest(bytes, size, digest, NULL, EVP_sha256(), NULL))
        return realm_fail(error, REALM_INTERNAL, "OpenSSL has no SHA-256");
    for (size_t i = 0; i < sizeof digest; i++)
        snprintf(hash + 2 * i, 3, "%02x", digest[i]);
    realm_status status = view_compile(&t->making, name, hash, bytes, size, &p, error);
    if (status)
        return status;
    if (out)
        *out = p;
    else
        program_release(p);
    return REALM_OK;
}
