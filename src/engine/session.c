/* engine/session.c: what a session's owner does to it. See session.h for who owns what when. */
#include "engine/session.h"

#include <stddef.h>
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/prefetch.h"
#include "engine/engine_internal.h"
#include "engine/logits.h"

/* Counts the session in, or says which limit is reached. */
static realm_status register_session(engine *e, session *s, uint32_t tenant, realm_error *error)
{
    realm_status status = REALM_OK;
    pthread_mutex_lock(&e->registry);
    tenant_entry *t = engine_tenant_entry(e, tenant);
    int32_t total = atomic_load_explicit(&e->n_sessions, memory_order_relaxed);
    if (!t)
        status = realm_fail_memory(error, sizeof *t, "a tenant");
    else if (t->max_sessions > 0 && t->n_sessions >= t->max_sessions)
        status = realm_fail(error, REALM_QUOTA, "the tenant has its %" PRId32 " sessions open",
                            t->max_sessions);
    else if (total >= e->max_sessions)
        status = realm_fail(error, REALM_QUOTA, "the engine has its %" PRId32 " sessions open",
                            e->max_sessions);
    if (status == REALM_OK) {
        t->n_sessions++;
        atomic_store_explicit(&e->n_sessions, total + 1, memory_order_relaxed);
        s->tenant = t;
        s->next = e->sessions;
        if (s->next)
            s->next->previous = s;
        e->sessions = s;
    }
    pthread_mutex_unlock(&e->registry);
    return status;
}

static void uncount(engine *e, tenant_entry *t)
{
    pthread_mutex_lock(&e->registry);
    t->n_sessions--;
    atomic_fetch_sub_explicit(&e->n_sessions, 1, memory_order_relaxed);
    pthread_mutex_unlock(&e->registry);
}

static realm_status new_session(session **out, engine *e, uint32_t tenant, priority class,
                                int32_t n_context, realm_error *error)
{
    session *s = calloc(1, sizeof *s);
    if (!s)
        return realm_fail_memory(error, sizeof *s, "a session");
    s->engine = e;
    s->priority = class;
    s->n_context = n_context;
    atomic_init(&s->state, SESSION_IDLE);
    realm_status status = register_session(e, s, tenant, error);
    if (status == REALM_OK)
        *out = s;
    else
        free(s);
    return status;
}

static int32_t context_of(const engine *e, int32_t wanted)
{
    int64_t room = (int64_t)e->n_pages * KV_PAGE_TOKENS;
    int32_t most = room < e->device.n_context ? (int32_t)room : e->device.n_context;
    return wanted > 0 && wanted < most ? wanted : most;
}

realm_status session_open(session **out, engine *e, const session_options *options,
                          realm_error *error)
{
    sampler *choice = NULL;
    if (options->priority < PRIORITY_BATCH || options->priority > PRIORITY_HIGH)
        return realm_fail(error, REALM_INVALID, "priority is %d", (int)options->priority);
    if (options->n_context < 0)
        return realm_fail(error, REALM_INVALID, "context is %" PRId32, options->n_context);
    realm_status status = sampler_open(&choice, e->device.n_vocab, &options->sampler, error);
    if (status == REALM_OK)
        status = new_session(out, e, options->tenant, options->priority,
                             context_of(e, options->n_context), error);
    if (status == REALM_OK)
        (*out)->sampler = choice;
    else
        sampler_close(choice);
    return status;
}

static void discard(session *s)
{
    uncount(s->engine, s->tenant);
    engine_unlink(s->engine, s);
    session_free(s);
}

_Static_assert(sizeof(token_logit) == sizeof(top_column) &&
                   offsetof(token_logit, value) == offsetof(top_column, value),
               "what a device writes is read as the engine's own");

/* With what the device finds in them behind them, on a line of its own. */
static size_t logits_room(const device *d)
{
    return ((size_t)d->n_vocab + 15) / 16 * 16;
}

static size_t logits_bytes(const device *d)
{
    return logits_room(d) * sizeof(float) +
           (d->gives_peaks ? peaks_bytes(d->n_vocab, d->gives_tops) : 0);
}

static const float *bring_row(void *owner)
{
    session *s = owner;
    away_bring(s);
    return s->logits;
}

row_wish session_wish(session *s)
{
    const work *w = s->work;
    row_wish wish = {.point = -1};
    if (!s->digest.tops)
        return wish;
    wish = sampler_wish(s->sampler);
    if (w && w->kind == WORK_GENERATE && w->generate.want_logprobs) {
        wish.scale = wish.scale != 0 ? wish.scale : 1;
        wish.stays = 0;
    }
    if (s->row_due > 0) {
        s->row_due--;
        wish.stays = 0;
    }
    wish.stays &= s->engine->device.leaves_rows;
    return wish;
}

realm_status session_reserve_logits(session *s, realm_error *error)
{
    device *d = &s->engine->device;
    if (s->logits)
        return REALM_OK;
    s->logits = d->table->host_open(d, logits_bytes(d));
    if (!s->logits)
        return realm_fail_memory(error, logits_bytes(d), "logits");
    if (d->gives_peaks)
        s->digest.peaks = s->peaks = s->logits + logits_room(d);
    if (d->gives_tops) {
        s->digest.tops = (const token_logit *)(const void *)peaks_tops(s->peaks, d->n_vocab);
        s->digest.sums = peaks_sums(s->peaks, d->n_vocab);
        s->digest.block = peaks_block(s->peaks, d->n_vocab);
        s->digest.row = bring_row;
        s->digest.owner = s;
    }
    return REALM_OK;
}

static realm_status copy_logits(session *s, session *from, realm_error *error)
{
    realm_status status = from->has_logits ? session_reserve_logits(s, error) : REALM_OK;
    if (status != REALM_OK || !from->has_logits)
        return status;
    memcpy(s->logits, session_logits(from), logits_bytes(&from->engine->device));
    s->digest.scale = from->digest.scale;
    s->has_logits = 1;
    return REALM_OK;
}

realm_status session_fork(session **out, session *parent, realm_error *error)
{
    engine *e = parent->engine;
    session *s = NULL;
    if (atomic_load_explicit(&parent->state, memory_order_acquire) != SESSION_IDLE)
        return realm_fail(error, REALM_BUSY, "a session with work in flight cannot be forked");
    realm_status status = new_session(&s, e, parent->tenant->scheduled.number, parent->priority,
                                      parent->n_context, error);
    if (status != REALM_OK)
        return status;
    s->adapter = parent->adapter;
    status = session_reserve(s, parent->length, error);
    if (status == REALM_OK)
        status = kv_table_reserve(&s->item.table, parent->length, error);
    if (status == REALM_OK)
        status = sampler_clone(&s->sampler, parent->sampler, error);
    if (status == REALM_OK)
        status = copy_logits(s, parent, error);
    if (status != REALM_OK) {
        discard(s);
        return status;
    }
    if (parent->length > 0)
        memcpy(s->tokens, parent->tokens, (size_t)parent->length * sizeof *s->tokens);
    s->length = parent->length;
    s->fed_submitted_ns = parent->fed_submitted_ns;
    s->fed_started_ns = parent->fed_started_ns;
    s->fork = (command){.kind = COMMAND_FORK, .length = s->length, .session = s, .parent = parent};
    queue_put(&e->queue, &s->fork.node);
    *out = s;
    return REALM_OK;
}

void session_close(session *s)
{
    engine *e = s->engine;
    tenant_entry *t = s->tenant;
    session_cancel(s);
    s->close = (command){.kind = COMMAND_CLOSE, .session = s};
    queue_put(&e->queue, &s->close.node);
    /* After the command: whoever gets the free place comes behind it in the queue, so the engine
     * never knows more sessions than max_sessions. */
    uncount(e, t);
}

realm_status session_truncate(session *s, int32_t length, realm_error *error)
{
    if (atomic_load_explicit(&s->state, memory_order_acquire) != SESSION_IDLE)
        return realm_fail(error, REALM_BUSY, "a session with work in flight cannot be truncated");
    if (length < 0 || length > s->length)
        return realm_fail(error, REALM_INVALID, "%" PRId32 " is not 0 to %" PRId32, length,
                          s->length);
    if (length == s->length)
        return REALM_OK;
    command *c = malloc(sizeof *c);
    if (!c)
        return realm_fail_memory(error, sizeof *c, "a command");
    *c = (command){.kind = COMMAND_TRUNCATE, .session = s, .length = length};
    s->length = length;
    s->has_logits = 0;
    queue_put(&s->engine->queue, &c->node);
    return REALM_OK;
}

int32_t session_length(const session *s)
{
    return s->length;
}

const token_id *session_tokens(const session *s)
{
    return s->tokens;
}

engine *session_engine(const session *s)
{
    return s->engine;
}

sampler *session_sampler(session *s)
{
    return s->sampler;
}

const float *session_logits(session *s)
{
    return s->has_logits ? bring_row(s) : NULL;
}

const float *session_logits_here(const session *s)
{
    int here = atomic_load_explicit(&s->away, memory_order_acquire) == 0;
    return s->has_logits && here ? s->logits : NULL;
}

const row_digest *session_digest(const session *s)
{
    return s->has_logits ? &s->digest : NULL;
}

void session_prefetch(const session *s)
{
    prefetch_to_write(s, sizeof *s);
}

void session_prefetch_logits(const session *s)
{
    const device *d = &s->engine->device;
    if (s->peaks)
        prefetch_to_read(s->peaks, peaks_bytes(d->n_vocab, d->gives_tops && s->digest.scale != 0));
    prefetch_to_write(s->sampler, 2 * PREFETCH_LINE);
    prefetch_to_write(s->tokens + s->length, sizeof *s->tokens);
}

realm_status session_adapter(session *s, adapter *a, realm_error *error)
{
    if (atomic_load_explicit(&s->state, memory_order_acquire) != SESSION_IDLE || s->length > 0)
        return realm_fail(error, REALM_BUSY, "an adapter is chosen before the first token");
    s->adapter = a;
    return REALM_OK;
}

void session_cancel(session *s)
{
    int expected = SESSION_BUSY;
    atomic_compare_exchange_strong_explicit(&s->state, &expected, SESSION_CANCELLED,
                                            memory_order_relaxed, memory_order_relaxed);
}

realm_status session_reserve(session *s, int32_t count, realm_error *error)
{
    int32_t capacity = s->capacity ? s->capacity : 64;
    if (count <= s->capacity)
        return REALM_OK;
    while (capacity < count)
        capacity *= 2;
    size_t bytes = (size_t)capacity * sizeof *s->tokens;
    token_id *tokens = realloc(s->tokens, bytes);
    if (!tokens)
        return realm_fail_memory(error, bytes, "tokens");
    s->tokens = tokens;
    s->capacity = capacity;
    return REALM_OK;
}

void session_append(session *s, const token_id *tokens, int32_t count)
{
    assert(s->length + count <= s->capacity);
    memcpy(s->tokens + s->length, tokens, (size_t)count * sizeof *tokens);
    s->length += count;
    s->has_logits = 0;
}

void session_free(session *s)
{
    away_drop(s);
    sampler_close(s->sampler);
    generate_release(&s->generate);
    free(s->item.table.pages);
    free(s->tokens);
    if (s->logits)
        s->engine->device.table->host_close(&s->engine->device, s->logits);
    free(s->pooled);
    free(s);
}
