/* sandbox/host_session.c: sequences of tokens that the guest drives itself.
 *
 * A session belongs to this thread while it is idle and to the engine while a work is in flight
 * (engine.h); what the guest asks of it meanwhile answers BUSY. The engine's own refusals (a full
 * context, no pages) come back as statuses: a correct program may meet them. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "sandbox/guest_memory.h"
#include "sandbox/guest_options.h"
#include "sandbox/host_groups.h"
#include "sandbox/tensor_list.h"

#define GRAMMAR_MAX_BYTES ((uint64_t)1 << 20)

/* The session of argument 0 if it is idle; else NULL, and *result says what to return. */
static session_entry *idle_session(guest_call *c, int64_t *result)
{
    session_entry *s = guest_handle(c, 0, HANDLE_SESSION);
    *result = GUEST_TRAPPED;
    if (!s)
        return NULL;
    *result = REALM_BUSY;
    return engine_op_collect(c->request, &s->op) ? s : NULL;
}

static int32_t vocabulary(const session_entry *s)
{
    return model_hyperparameters(engine_model(s->engine))->n_vocab;
}

/* ---- opening and closing --------------------------------------------------------------------------- */

static const char *const open_keys[] = {"context", "priority", NULL};

static realm_status read_priority(const json_t *options, priority *out, realm_error *error)
{
    static const char *const names[] = {"batch", "normal", "high"};
    const char *text = NULL;
    realm_status status = json_get_text(options, "priority", &text, NULL, error);
    if (status != REALM_OK)
        return JSON_OPTIONAL(status);
    for (int i = 0; i < 3; i++) {
        if (strcmp(text, names[i]) == 0) {
            if ((priority)i < *out) /* a guest may step back, not forward */
                *out = (priority)i;
            return REALM_OK;
        }
    }
    return realm_fail(error, REALM_INVALID, "options: priority '%s' is not batch, normal or high",
                      text);
}

/* Samplers that name no seed differ from each other and are the same in a replay; the first has the
 * request's own seed, so that a simple program does what a native run with that seed does. */
static uint64_t next_seed(sandbox_request *r)
{
    return r->input.seed + (uint64_t)r->n_samplers++ * 0x9E3779B97F4A7C15u;
}

static realm_status read_open_options(guest_call *c, const char *text, session_options *o,
                                      realm_error *error)
{
    json_t *options;
    realm_status status = guest_options_parse(&options, text, c->arguments[2].u64, open_keys, 1,
                                              error);
    if (status != REALM_OK)
        return status;
    o->sampler = SAMPLER_OPTIONS_DEFAULT;
    int has_seed = 0;
    status = guest_options_sampler(options, &o->sampler, &has_seed, error);
    if (status == REALM_OK)
        status = guest_options_int(options, "context", 0, INT32_MAX, &o->n_context, error);
    if (status == REALM_OK)
        status = read_priority(options, &o->priority, error);
    if (status == REALM_OK && !has_seed)
        o->sampler.seed = next_seed(c->request);
    json_decref(options);
    return status;
}

/* Links an opened session into the request and gives it a handle; takes s. */
static int64_t adopt(guest_call *c, session *opened, engine *e, const sampler_options *settings)
{
    sandbox_request *r = c->request;
    session_entry *s = calloc(1, sizeof *s);
    int64_t handle = s ? guest_new_handle(c, HANDLE_SESSION, s) : REALM_NO_MEMORY;
    if (handle <= 0) {
        free(s);
        session_close(opened);
        return handle;
    }
    s->session = opened;
    s->engine = e;
    s->handle = (int32_t)handle;
    s->sampler = *settings;
    s->next = r->sessions;
    r->sessions = s;
    r->n_sessions++;
    return handle;
}

int64_t host_session_open(guest_call *c)
{
    sandbox_request *r = c->request;
    const sandbox_model *m = guest_handle(c, 0, HANDLE_MODEL);
    const char *text = m ? guest_bytes(c, 1, 2) : NULL;
    if (!text)
        return GUEST_TRAPPED;
    session_options o = {.tenant = r->tenant->grants.number, .priority = r->input.priority};
    realm_error error;
    if (read_open_options(c, text, &o, &error) != REALM_OK)
        return guest_trap_error(c, &error);
    if (r->n_sessions >= r->tenant->grants.limits.sessions)
        return REALM_QUOTA;
    session *opened;
    realm_status status = session_open(&opened, m->engine, &o, &error);
    return status == REALM_OK ? adopt(c, opened, m->engine, &o.sampler) : guest_note(c, &error);
}

int64_t host_session_fork(guest_call *c)
{
    int64_t result;
    session_entry *s = idle_session(c, &result);
    if (!s || tensor_list_flush_first(c, s))
        return s ? 0 : result;
    if (c->request->n_sessions >= c->request->tenant->grants.limits.sessions)
        return REALM_QUOTA;
    session *forked;
    realm_error error;
    realm_status status = session_fork(&forked, s->session, &error);
    return status == REALM_OK ? adopt(c, forked, s->engine, &s->sampler) : guest_note(c, &error);
}

int64_t host_session_truncate(guest_call *c)
{
    int64_t result;
    session_entry *s = idle_session(c, &result);
    if (!s || tensor_list_flush_first(c, s))
        return s ? 0 : result;
    int32_t length = c->arguments[1].i32;
    if (length < 0 || length > session_length(s->session))
        return REALM_INVALID;
    realm_error error;
    realm_status status = session_truncate(s->session, length, &error);
    return status == REALM_OK ? 0 : guest_note(c, &error);
}

int64_t host_session_length(guest_call *c)
{
    int64_t result;
    session_entry *s = idle_session(c, &result);
    return s ? session_length(s->session) : result;
}

static void free_entry(session_entry *s)
{
    host_generate_release(s);
    free(s->tokens);
    free(s);
}

/* Frees what was closed while a work was in flight and is idle now. */
static void sweep(sandbox_request *r)
{
    for (session_entry **link = &r->sessions; *link;) {
        session_entry *s = *link;
        if (!s->closed || !engine_op_collect(r, &s->op)) {
            link = &s->next;
            continue;
        }
        *link = s->next;
        session_close(s->session);
        free_entry(s);
    }
}

int64_t host_session_close(guest_call *c)
{
    sandbox_request *r = c->request;
    session_entry *s = guest_handle(c, 0, HANDLE_SESSION);
    if (!s)
        return GUEST_TRAPPED;
    if (tensor_list_flush_first(c, s))
        return 0;
    handles_give(&r->handles, s->handle);
    r->n_sessions--;
    s->closed = 1;
    s->stepping = 0;
    if (!engine_op_collect(r, &s->op))
        session_cancel(s->session);
    sweep(r);
    return 0;
}

void host_session_cancel_all(sandbox_request *r)
{
    for (session_entry *s = r->sessions; s; s = s->next)
        if (!engine_op_collect(r, &s->op) || (r->tensors.session == s && r->tensors.op.in_flight))
            session_cancel(s->session);
    if (!engine_op_collect(r, &r->embed_op))
        session_cancel(r->embed_session);
}

static void drop_embed(sandbox_request *r)
{
    if (r->embed_session)
        session_close(r->embed_session);
    r->embed_session = NULL;
    free(r->embed_floats);
    r->embed_floats = NULL;
}

void host_session_close_all(sandbox_request *r)
{
    while (r->sessions) {
        session_entry *s = r->sessions;
        r->sessions = s->next;
        session_close(s->session);
        free_entry(s);
    }
    r->n_sessions = 0;
    drop_embed(r);
}

/* ---- tokens in ------------------------------------------------------------------------------------- */

/* The engine must not look into guest memory (invariant 5). */
static int copy_tokens(session_entry *s, const token_id *ids, size_t count)
{
    if (count > s->tokens_room) {
        token_id *more = realloc(s->tokens, count * sizeof *more);
        if (!more)
            return 0;
        s->tokens = more;
        s->tokens_room = count;
    }
    memcpy(s->tokens, ids, count * sizeof *ids);
    return 1;
}

static int64_t finish_feed(guest_call *c)
{
    session_entry *s = guest_handle(c, 0, HANDLE_SESSION);
    const work *w = &s->op.work;
    return w->status == REALM_OK ? session_length(s->session) : guest_note(c, &w->error);
}

int64_t host_session_feed(guest_call *c)
{
    int64_t result;
    session_entry *s = idle_session(c, &result);
    const token_id *ids = s ? guest_words(c, 1, 2) : NULL;
    if (!ids)
        return s ? GUEST_TRAPPED : result;
    uint64_t count = c->arguments[2].u64;
    if (count == 0)
        return session_length(s->session);
    if (tensor_list_flush_first(c, s))
        return 0;
    if (count > (uint64_t)model_hyperparameters(engine_model(s->engine))->n_context)
        return REALM_CONTEXT_FULL;
    if (!copy_tokens(s, ids, (size_t)count))
        return REALM_NO_MEMORY;
    s->stepping = 0;
    s->op.work = (work){
        .kind = WORK_FEED, .session = s->session, .tokens = s->tokens, .n_tokens = (int32_t)count};
    realm_error error;
    if (engine_op_afford(c->request, &s->op, count, &error) != REALM_OK)
        return guest_note(c, &error);
    engine_op_submit(c->request, &s->op, s->engine);
    return guest_suspend(c, WAIT_OP, &s->op, finish_feed);
}

/* ---- steps ------------------------------------------------------------------------------------------ */

static realm_status begin_step(sandbox_request *r, session_entry *s, token_id token,
                               realm_error *error)
{
    s->op.work = (work){.kind = WORK_STEP, .session = s->session, .token = token};
    realm_status status = engine_op_afford(r, &s->op, 1, error);
    if (status == REALM_OK)
        engine_op_submit(r, &s->op, s->engine);
    else
        s->op.work.session = NULL; /* step_result must not find one that never began */
    return status;
}

static int64_t step_outcome(guest_call *c, const session_entry *s)
{
    const work *w = &s->op.work;
    return w->status == REALM_OK ? w->token : guest_note(c, &w->error);
}

static int64_t finish_step(guest_call *c)
{
    return step_outcome(c, guest_handle(c, 0, HANDLE_SESSION));
}

int64_t host_session_step(guest_call *c)
{
    int64_t result;
    session_entry *s = idle_session(c, &result);
    if (!s || tensor_list_flush_first(c, s))
        return s ? 0 : result;
    s->stepping = 0;
    realm_error error;
    if (begin_step(c->request, s, c->arguments[1].i32, &error) != REALM_OK)
        return guest_note(c, &error);
    return guest_suspend(c, WAIT_OP, &s->op, finish_step);
}

int64_t host_session_step_begin(guest_call *c)
{
    int64_t result;
    session_entry *s = idle_session(c, &result);
    if (!s)
        return result;
    if (tensor_list_is_pending(c->request, s))
        return REALM_BUSY;
    realm_error error;
    if (begin_step(c->request, s, c->arguments[1].i32, &error) != REALM_OK)
        return guest_note(c, &error);
    s->stepping = 1;
    return 0;
}

int64_t host_session_step_result(guest_call *c)
{
    int64_t result;
    session_entry *s = idle_session(c, &result);
    if (!s)
        return result;
    return s->op.work.kind == WORK_STEP && s->op.work.session ? step_outcome(c, s)
                                                              : REALM_NOT_FOUND;
}

/* Index of a session whose step is over, which is thereby reported, or NOT_FOUND. */
static int64_t take_finished(sandbox_request *r, session_entry *const *sessions, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        if (sessions[i]->stepping && engine_op_collect(r, &sessions[i]->op)) {
            sessions[i]->stepping = 0;
            return i;
        }
    }
    return REALM_NOT_FOUND;
}

static int64_t finish_wait(guest_call *c)
{
    guest_wait *w = &c->request->wait;
    int64_t index = take_finished(c->request, w->sessions, w->n_sessions);
    return index >= 0 ? index : REALM_DEADLINE;
}

static session_entry **entries_of(guest_call *c, const int32_t *handles, size_t count)
{
    guest_wait *w = &c->request->wait;
    session_entry **entries = realloc(w->sessions, (count ? count : 1) * sizeof *entries);
    if (!entries)
        return NULL;
    w->sessions = entries;
    w->n_sessions = (int32_t)count;
    for (size_t i = 0; i < count; i++) {
        entries[i] = handles_find(&c->request->handles, handles[i], HANDLE_SESSION, NULL);
        if (!entries[i]) {
            guest_trap(c, REALM_TRAPPED,
                       "argument 'sessions': item %zu, %" PRId32 ", is no open session", i,
                       handles[i]);
            return NULL;
        }
    }
    return entries;
}

int64_t host_session_wait_any(guest_call *c)
{
    sandbox_request *r = c->request;
    const int32_t *handles = guest_words(c, 0, 1);
    if (!handles)
        return GUEST_TRAPPED;
    uint64_t count = c->arguments[1].u64;
    if (count > HANDLE_SLOTS_MAX)
        return guest_trap(c, REALM_INVALID, "argument 'count': more than %d", HANDLE_SLOTS_MAX);
    session_entry **entries = entries_of(c, handles, (size_t)count);
    if (!entries)
        return c->trapped ? GUEST_TRAPPED : REALM_NO_MEMORY;
    int stepping = 0;
    for (size_t i = 0; i < count; i++)
        stepping |= entries[i]->stepping;
    if (!stepping)
        return REALM_NOT_FOUND; /* it would wait for ever */
    int64_t index = take_finished(r, entries, (int32_t)count);
    int32_t timeout_ms = c->arguments[2].i32;
    if (index >= 0 || timeout_ms == 0)
        return index >= 0 ? index : REALM_DEADLINE;
    r->wait.until_ns = timeout_ms < 0 ? UINT64_MAX : clock_ns() + (uint64_t)timeout_ms * 1000000u;
    return guest_suspend(c, WAIT_ANY, NULL, finish_wait);
}

/* ---- logits and sampling --------------------------------------------------------------------------- */

int64_t host_session_logits(guest_call *c)
{
    int64_t result;
    session_entry *s = idle_session(c, &result);
    float *out = s ? guest_words(c, 1, 2) : NULL;
    if (!out)
        return s ? GUEST_TRAPPED : result;
    const float *logits = session_logits(s->session);
    if (!logits)
        return REALM_NOT_FOUND;
    uint64_t n = (uint64_t)vocabulary(s), cap = c->arguments[2].u64;
    memcpy(out, logits, (n < cap ? n : cap) * sizeof *out);
    return (int64_t)n;
}

/* tops: the TOP_COLUMNS largest, if the device found them. */
static int64_t give_top(guest_call *c, session *from, const token_logit *tops, int32_t n, int32_t k)
{
    token_id *ids = guest_words_at(c, 2, (uint64_t)k);
    float *values = ids ? guest_words_at(c, 3, (uint64_t)k) : NULL;
    if (!values)
        return GUEST_TRAPPED;
    token_logit *made = NULL;
    int32_t found = k;
    if (!tops || k > TOP_COLUMNS) {
        made = malloc((size_t)k * sizeof *made);
        if (!made)
            return REALM_NO_MEMORY;
        found = logits_top(session_logits(from), n, k, made);
        tops = made;
    }
    for (int32_t i = 0; i < found; i++) {
        ids[i] = tops[i].id;
        values[i] = tops[i].value;
    }
    free(made);
    return found;
}

int64_t host_session_top_logits(guest_call *c)
{
    int64_t result;
    session_entry *s = idle_session(c, &result);
    if (!s)
        return result;
    int32_t k = c->arguments[1].i32, n = vocabulary(s);
    if (k <= 0)
        return guest_trap(c, REALM_INVALID, "argument 'k': %" PRId32 " is not positive", k);
    const row_digest *digest = session_digest(s->session);
    return digest ? give_top(c, s->session, digest->tops, n, k < n ? k : n) : REALM_NOT_FOUND;
}

int64_t host_session_bias(guest_call *c)
{
    int64_t result;
    session_entry *s = idle_session(c, &result);
    const token_id *ids = s ? guest_words(c, 1, 3) : NULL;
    const float *values = ids ? guest_words(c, 2, 3) : NULL;
    if (!values)
        return s ? GUEST_TRAPPED : result;
    uint64_t count = c->arguments[3].u64;
    if (count > (uint64_t)vocabulary(s))
        return REALM_TOO_LARGE;
    realm_error error;
    realm_status status = sampler_bias(session_sampler(s->session), ids, values, (int32_t)count,
                                       &error);
    return status == REALM_OK ? 0 : guest_note(c, &error);
}

realm_status host_session_set_sampler(guest_call *c, session_entry *s, const json_t *options,
                                      realm_error *error)
{
    sampler_options o = s->sampler;
    int has_seed;
    realm_status status = guest_options_sampler(options, &o, &has_seed, error);
    /* Setting restarts the random numbers: not where nothing changes, and never from a number that
     * was used before, or a guest that sets the temperature at each token would draw the same. */
    if (status != REALM_OK || (memcmp(&o, &s->sampler, sizeof o) == 0))
        return status;
    if (!has_seed && s->sampled)
        o.seed = rng_next(&c->request->random);
    status = sampler_set(session_sampler(s->session), &o, error);
    if (status == REALM_OK)
        s->sampler = o;
    return status;
}

int64_t host_session_sample(guest_call *c)
{
    int64_t result;
    session_entry *s = idle_session(c, &result);
    const char *text = s ? guest_bytes(c, 1, 2) : NULL;
    if (!text)
        return s ? GUEST_TRAPPED : result;
    realm_error error;
    if (c->arguments[2].u64 > 0) {
        json_t *options;
        realm_status status = guest_options_parse(&options, text, c->arguments[2].u64, NULL, 1,
                                                  &error);
        if (status == REALM_OK) {
            status = host_session_set_sampler(c, s, options, &error);
            json_decref(options);
        }
        if (status != REALM_OK)
            return guest_trap_error(c, &error);
    }
    const row_digest *digest = session_digest(s->session);
    if (!digest)
        return REALM_NOT_FOUND;
    token_id token;
    s->sampled = 1;
    realm_status status = sampler_choose(session_sampler(s->session),
                                         session_logits_here(s->session), digest, &token, &error);
    return status == REALM_OK ? token : guest_note(c, &error);
}

static void compile_grammar(helper_job *job)
{
    static const grammar_kind kinds[] = {GRAMMAR_JSON_OBJECT, GRAMMAR_JSON_SCHEMA, GRAMMAR_REGEX,
                                         GRAMMAR_LARK};
    job->status = grammar_open(&job->grammar, model_tokenizer(job->model), kinds[job->number - 1],
                               buffer_text(&job->text), job->text.size, &job->error);
}

static int64_t finish_constrain(guest_call *c)
{
    session_entry *s = guest_handle(c, 0, HANDLE_SESSION);
    helper_job *job = &c->request->job;
    if (job->status != REALM_OK)
        return guest_note(c, &job->error);
    sampler_constrain(session_sampler(s->session), job->grammar);
    job->grammar = NULL; /* the sampler's now */
    helper_clear(c->request);
    return 0;
}

int64_t host_session_constrain(guest_call *c)
{
    int64_t result;
    sandbox_request *r = c->request;
    session_entry *s = idle_session(c, &result);
    const char *text = s ? guest_bytes(c, 2, 3) : NULL;
    if (!text)
        return s ? GUEST_TRAPPED : result;
    int32_t kind = c->arguments[1].i32;
    if (kind < 0 || kind > 4)
        return guest_trap(c, REALM_INVALID, "argument 'kind': %" PRId32 " is not 0 to 4", kind);
    if (kind == 0) {
        sampler_constrain(session_sampler(s->session), NULL);
        return 0;
    }
    uint64_t size = c->arguments[3].u64;
    if (size > GRAMMAR_MAX_BYTES)
        return REALM_TOO_LARGE;
    if (helper_prepare(r, engine_model(s->engine), text, (size_t)size, kind, 0) != REALM_OK)
        return REALM_NO_MEMORY;
    helper_submit(r, compile_grammar);
    return guest_suspend(c, WAIT_JOB, NULL, finish_constrain);
}

int64_t host_session_adapter_use(guest_call *c)
{
    int64_t result;
    session_entry *s = idle_session(c, &result);
    const char *name = s ? guest_bytes(c, 1, 2) : NULL;
    if (!name)
        return s ? GUEST_TRAPPED : result;
    const tenant_grants *g = &c->request->tenant->grants;
    size_t size = c->arguments[2].u64;
    adapter *found = NULL;
    for (int32_t i = 0; size && !found && i < g->n_adapters; i++) {
        const sandbox_adapter *a = &g->adapters[i];
        if (a->engine == s->engine && strlen(a->name) == size && memcmp(a->name, name, size) == 0)
            found = a->adapter;
    }
    if (size && !found)
        return REALM_NOT_FOUND;
    realm_error error;
    return session_adapter(s->session, found, &error);
}

/* ---- embed ------------------------------------------------------------------------------------------ */

static const char *const embed_keys[] = {"pooling", "normalize", NULL};

static realm_status read_embed_options(guest_call *c, const char *text, work *w, realm_error *error)
{
    static const char *const names[] = {"mean", "last", "first"};
    json_t *options;
    realm_status status = guest_options_parse(&options, text, c->arguments[4].u64, embed_keys, 0,
                                              error);
    if (status != REALM_OK)
        return status;
    const char *name = "mean";
    status = JSON_OPTIONAL(json_get_text(options, "pooling", &name, NULL, error));
    int found = 0;
    for (int i = 0; status == REALM_OK && i < 3; i++) {
        if (strcmp(name, names[i]) == 0) {
            w->pooling = (pooling)i;
            found = 1;
        }
    }
    if (status == REALM_OK && !found)
        status = realm_fail(error, REALM_INVALID,
                            "options: pooling '%s' is not mean, last or first", name);
    if (status == REALM_OK)
        status = JSON_OPTIONAL(json_get_flag(options, "normalize", &w->normalize, error));
    json_decref(options);
    return status;
}

static int64_t finish_embed(guest_call *c)
{
    sandbox_request *r = c->request;
    const work *w = &r->embed_op.work;
    int64_t result = w->status == REALM_OK ? 0 : guest_note(c, &w->error);
    if (w->status == REALM_OK) {
        const sandbox_model *m = guest_handle(c, 0, HANDLE_MODEL);
        uint64_t n = (uint64_t)model_hyperparameters(engine_model(m->engine))->n_embd;
        uint64_t cap = c->arguments[6].u64;
        float *out = guest_words(c, 5, 6);
        if (!out)
            return GUEST_TRAPPED;
        memcpy(out, r->embed_floats, (n < cap ? n : cap) * sizeof *out);
        result = (int64_t)n;
    }
    drop_embed(r);
    return result;
}

/* Memory for the floats and, behind them, the copied ids. */
static realm_status prepare_embed(sandbox_request *r, engine *e, const token_id *ids, size_t count,
                                  realm_error *error)
{
    size_t n = (size_t)model_hyperparameters(engine_model(e))->n_embd;
    size_t size = n * sizeof(float) + count * sizeof *ids;
    float *floats = malloc(size);
    if (!floats)
        return realm_fail_memory(error, size, "an embedding");
    session_options o = {.tenant = r->tenant->grants.number,
                         .priority = r->input.priority,
                         .sampler = SAMPLER_OPTIONS_DEFAULT};
    realm_status status = session_open(&r->embed_session, e, &o, error);
    if (status != REALM_OK) {
        free(floats);
        return status;
    }
    memcpy(floats + n, ids, count * sizeof *ids);
    r->embed_floats = floats;
    r->embed_op.work.tokens = (const token_id *)(const void *)(floats + n);
    return REALM_OK;
}

int64_t host_session_embed(guest_call *c)
{
    sandbox_request *r = c->request;
    const sandbox_model *m = guest_handle(c, 0, HANDLE_MODEL);
    const token_id *ids = m ? guest_words(c, 1, 2) : NULL;
    const char *text = ids ? guest_bytes(c, 3, 4) : NULL;
    if (!text || !guest_words(c, 5, 6))
        return GUEST_TRAPPED;
    uint64_t count = c->arguments[2].u64;
    if (count == 0)
        return REALM_INVALID;
    if (count > (uint64_t)model_hyperparameters(engine_model(m->engine))->n_context)
        return REALM_CONTEXT_FULL;
    realm_error error;
    work w = {.kind = WORK_EMBED};
    if (read_embed_options(c, text, &w, &error) != REALM_OK)
        return guest_trap_error(c, &error);
    if (r->n_sessions >= r->tenant->grants.limits.sessions)
        return REALM_QUOTA;
    if (prepare_embed(r, m->engine, ids, (size_t)count, &error) != REALM_OK)
        return guest_note(c, &error);
    w.session = r->embed_session;
    w.tokens = r->embed_op.work.tokens;
    w.n_tokens = (int32_t)count;
    w.embedding = r->embed_floats;
    r->embed_op.work = w;
    if (engine_op_afford(r, &r->embed_op, count, &error) != REALM_OK) {
        drop_embed(r);
        return guest_note(c, &error);
    }
    engine_op_submit(r, &r->embed_op, m->engine);
    return guest_suspend(c, WAIT_OP, &r->embed_op, finish_embed);
}
