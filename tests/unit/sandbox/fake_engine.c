/* tests/unit/sandbox/fake_engine.c: see fake_engine.h. */
#include "fake_engine.h"

#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "engine/errand.h"
#include "text/chat_template.h"

#define N_VOCAB   256
#define N_CONTEXT 4096
#define N_EMBD    8

struct sampler {
    sampler_options options;
    rng random;
    grammar *constraint;
};

struct session {
    engine *engine;
    token_id *tokens;
    int32_t length;
    int has_logits;
    float logits[N_VOCAB];
    sampler sampler;
    atomic_int cancelled, works, closed;
    int woken, since_wake;
};

struct engine {
    fake_options options;
    pthread_t thread;
    queue works;
    errand_slot slot;
    atomic_int sessions, tensors, submitted, lent, errands;
};

static char the_model, the_tokenizer, the_gguf; /* only their addresses matter */
static architecture fake_architecture = {.name = "fake"};
static hyperparameters fake_hyperparameters = {
    .architecture = &fake_architecture,
    .n_layers = 2,
    .n_embd = N_EMBD,
    .n_vocab = N_VOCAB,
    .n_context = N_CONTEXT,
    .n_heads = 2,
    .n_kv_heads = {1, 1},
    .n_ff = {16, 16},
    .key_dim = 4,
    .value_dim = 4,
    .n_rot = 4,
    .norm_epsilon = 1e-5f,
    .embedding_scale = 1,
};

/* ---- model, tokenizer, text ------------------------------------------------------------------------ */

model *engine_model(engine *e)
{
    (void)e;
    return (model *)(void *)&the_model;
}
const char *model_name(const model *m)
{
    (void)m;
    return "fake";
}
const gguf *model_gguf(const model *m)
{
    (void)m;
    return (const gguf *)(const void *)&the_gguf;
}
const tokenizer *model_tokenizer(const model *m)
{
    (void)m;
    return (const tokenizer *)(const void *)&the_tokenizer;
}
const hyperparameters *model_hyperparameters(const model *m)
{
    (void)m;
    return &fake_hyperparameters;
}
const weight *model_weight(const model *m, const char *name)
{
    static const weight matrix = {.type = DTYPE_F32, .n_rows = N_EMBD, .n_cols = N_EMBD};
    static const weight row = {.type = DTYPE_F32, .n_rows = 1, .n_cols = N_EMBD};
    (void)m;
    if (strcmp(name, "blk.0.attn_q.weight") == 0 || strcmp(name, "token_embd.weight") == 0)
        return &matrix;
    return strcmp(name, "blk.0.attn_norm.weight") == 0 ? &row : NULL;
}
size_t gguf_tensor_count(const gguf *g)
{
    (void)g;
    return 0;
}
const gguf_tensor *gguf_tensor_at(const gguf *g, size_t i)
{
    (void)g;
    (void)i;
    return NULL;
}
int gguf_shard_descriptor(const gguf *g, uint32_t shard)
{
    (void)g;
    (void)shard;
    return -1;
}
realm_status chat_template_find(const gguf *g, const char *name, gguf_string *text,
                                realm_error *error)
{
    (void)g;
    (void)name;
    (void)text;
    return realm_fail(error, REALM_NOT_FOUND, "no template");
}
realm_status chat_template_render(gguf_string template_text, const tokenizer *t, const char *json,
                                  size_t size, buffer *out, realm_error *error)
{
    (void)template_text;
    (void)t;
    (void)json;
    (void)size;
    (void)out;
    return realm_fail(error, REALM_NOT_FOUND, "no template");
}
void grammar_close(grammar *g)
{
    (void)g;
}
realm_status grammar_open(grammar **out, const tokenizer *t, grammar_kind kind, const char *text,
                          size_t size, realm_error *error)
{
    (void)out;
    (void)t;
    (void)kind;
    (void)text;
    (void)size;
    return realm_fail(error, REALM_INVALID, "no grammars here");
}
size_t tokenizer_count(const tokenizer *t)
{
    (void)t;
    return N_VOCAB;
}
token_id tokenizer_bos(const tokenizer *t)
{
    (void)t;
    return -1;
}
token_id tokenizer_eos(const tokenizer *t)
{
    (void)t;
    return 0;
}
token_id tokenizer_eot(const tokenizer *t)
{
    (void)t;
    return -1;
}
int tokenizer_adds_bos(const tokenizer *t)
{
    (void)t;
    return 0;
}
int tokenizer_ends_generation(const tokenizer *t, token_id id)
{
    (void)t;
    return id == 0;
}
const char *tokenizer_piece(const tokenizer *t, token_id id, int with_special, size_t *size)
{
    static char bytes[N_VOCAB];
    (void)t;
    (void)with_special;
    bytes[id] = (char)id;
    *size = 1;
    return &bytes[id];
}
realm_status tokenizer_encode(const tokenizer *t, arena *a, const char *text, size_t size,
                              unsigned flags, token_id **ids, size_t *count, realm_error *error)
{
    (void)t;
    (void)flags;
    *ids = arena_take_array(a, size, sizeof **ids);
    if (!*ids)
        return realm_fail_memory(error, size, "tokens");
    for (size_t i = 0; i < size; i++)
        (*ids)[i] = (unsigned char)text[i];
    *count = size;
    return REALM_OK;
}

/* ---- sampling ---------------------------------------------------------------------------------------- */

realm_status sampler_options_check(const sampler_options *o, realm_error *error)
{
    return o->temperature >= 0 ? REALM_OK
                               : realm_fail(error, REALM_INVALID, "temperature is negative");
}
realm_status sampler_set(sampler *s, const sampler_options *o, realm_error *error)
{
    (void)error;
    s->options = *o;
    rng_init(&s->random, o->seed);
    return REALM_OK;
}
realm_status sampler_bias(sampler *s, const token_id *ids, const float *values, int32_t count,
                          realm_error *error)
{
    (void)s;
    (void)values;
    for (int32_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= N_VOCAB)
            return realm_fail(error, REALM_INVALID, "token %d is not in the vocabulary", ids[i]);
    return REALM_OK;
}
void sampler_constrain(sampler *s, grammar *g)
{
    s->constraint = g;
}
realm_status sampler_choose(sampler *s, const float *logits, const row_digest *digest,
                            token_id *out, realm_error *error)
{
    (void)error, (void)digest;
    token_id best = 1;
    for (token_id i = 1; i < N_VOCAB; i++)
        if (logits[i] > logits[best])
            best = i;
    *out = s->options.temperature > 0 ? (token_id)('a' + rng_next(&s->random) % 26) : best;
    return REALM_OK;
}
int32_t logits_top(const float *logits, int32_t n, int32_t k, token_logit *out)
{
    int32_t count = 0;
    for (; count < k && count < n; count++) {
        token_id best = -1;
        for (token_id i = 0; i < n; i++) {
            int taken = 0;
            for (int32_t j = 0; j < count; j++)
                taken |= out[j].id == i;
            if (!taken && (best < 0 || logits[i] > logits[best]))
                best = i;
        }
        out[count] = (token_logit){best, logits[best]};
    }
    return count;
}

token_id fake_next_token(const token_id *tokens, int32_t length)
{
    uint32_t h = 2166136261u;
    for (int32_t i = 0; i < length; i++)
        h = (h ^ (uint32_t)tokens[i]) * 16777619u;
    return (token_id)('a' + h % 26);
}

static void compute_logits(session *s)
{
    memset(s->logits, 0, sizeof s->logits);
    s->logits[fake_next_token(s->tokens, s->length)] = 10;
    s->has_logits = 1;
}

/* ---- sessions ---------------------------------------------------------------------------------------- */

realm_status session_open(session **out, engine *e, const session_options *o, realm_error *error)
{
    session *s = calloc(1, sizeof *s);
    if (!s || !(s->tokens = calloc(N_CONTEXT, sizeof *s->tokens)))
        return realm_fail_memory(error, sizeof *s, "a session");
    s->engine = e;
    sampler_set(&s->sampler, &o->sampler, NULL);
    atomic_fetch_add(&e->sessions, 1);
    *out = s;
    return REALM_OK;
}
static void free_session(session *s)
{
    atomic_fetch_sub(&s->engine->sessions, 1);
    free(s->tokens);
    free(s);
}
void session_close(session *s)
{
    atomic_store(&s->cancelled, 1);
    atomic_store(&s->closed, 1);
    if (atomic_load(&s->works) == 0)
        free_session(s);
}
realm_status session_fork(session **out, session *parent, realm_error *error)
{
    session_options o = {.sampler = parent->sampler.options};
    realm_status status = session_open(out, parent->engine, &o, error);
    if (status != REALM_OK)
        return status;
    memcpy((*out)->tokens, parent->tokens, N_CONTEXT * sizeof *parent->tokens);
    memcpy((*out)->logits, parent->logits, sizeof parent->logits);
    (*out)->length = parent->length;
    (*out)->has_logits = parent->has_logits;
    return REALM_OK;
}
realm_status session_truncate(session *s, int32_t length, realm_error *error)
{
    (void)error;
    s->has_logits &= length == s->length;
    s->length = length;
    return REALM_OK;
}
int32_t session_length(const session *s)
{
    return s->length;
}
const float *session_logits(session *s)
{
    return s->has_logits ? s->logits : NULL;
}
const float *session_logits_here(const session *s)
{
    return s->has_logits ? s->logits : NULL;
}
const row_digest *session_digest(const session *s)
{
    static const row_digest none = {0};
    return s->has_logits ? &none : NULL;
}

void session_prefetch(const session *s)
{
    (void)s;
}

void session_prefetch_logits(const session *s)
{
    (void)s;
}
sampler *session_sampler(session *s)
{
    return &s->sampler;
}
realm_status session_adapter(session *s, adapter *a, realm_error *error)
{
    (void)a;
    return s->length ? realm_fail(error, REALM_BUSY, "tokens are in") : REALM_OK;
}
void session_cancel(session *s)
{
    atomic_store(&s->cancelled, 1);
}

/* ---- works ------------------------------------------------------------------------------------------- */

/* One token's time, or the reason not to go on. */
static realm_status pass_time(work *w)
{
    uint64_t end = clock_ns() + w->session->engine->options.token_ns;
    const atomic_int *held = w->session->engine->options.held;
    do {
        if (atomic_load(&w->session->cancelled))
            return REALM_CANCELLED;
        if (w->deadline_ns && clock_ns() >= w->deadline_ns)
            return REALM_DEADLINE;
        if (w->session->engine->options.token_ns > 100000 || held)
            nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
    } while (clock_ns() < end || (held && atomic_load(held)));
    return REALM_OK;
}

static realm_status append(work *w, token_id token)
{
    session *s = w->session;
    if (token < 0 || token >= N_VOCAB)
        return realm_fail(&w->error, REALM_INVALID, "token %d", token);
    if (s->length == N_CONTEXT)
        return REALM_CONTEXT_FULL;
    s->tokens[s->length++] = token;
    return REALM_OK;
}

static realm_status feed(work *w)
{
    if (w->session->engine->options.inline_works)
        return append(w, w->tokens[0]);
    realm_status status = pass_time(w);
    for (int32_t i = 0; status == REALM_OK && i < w->n_tokens; i++)
        status = append(w, w->tokens[i]);
    compute_logits(w->session);
    for (int i = 0; w->kind == WORK_EMBED && i < N_EMBD; i++)
        w->embedding[i] = (float)(w->session->length + i);
    return status;
}

static realm_status step(work *w)
{
    session *s = w->session;
    if (w->token < 0 && !s->has_logits)
        return REALM_INVALID;
    if (w->token < 0)
        sampler_choose(&s->sampler, s->logits, NULL, &w->token, NULL);
    realm_status status = pass_time(w);
    if (status == REALM_OK)
        status = append(w, w->token);
    compute_logits(s);
    return status;
}

static realm_status generate(work *w)
{
    session *s = w->session;
    if (!s->woken)
        s->since_wake = 0;
    s->woken = 0;
    for (w->n_generated = 0;;) {
        if (s->since_wake >= w->generate.max_tokens) {
            w->finish = FINISH_LENGTH;
            return REALM_OK;
        }
        if (w->generate.wake_every && w->n_generated == w->generate.wake_every) {
            w->finish = FINISH_WAKE;
            s->woken = 1;
            return REALM_OK;
        }
        token_id token;
        sampler_choose(&s->sampler, s->logits, NULL, &token, NULL);
        if (w->may_append && !w->may_append(w)) {
            w->finish = FINISH_LENGTH;
            return REALM_OK;
        }
        realm_status status = pass_time(w);
        if (status == REALM_OK)
            status = append(w, token);
        if (status != REALM_OK)
            return status;
        compute_logits(s);
        w->n_generated++;
        s->since_wake++;
        char text[2] = {(char)token, 0};
        token_logit top = {token, -0.5f};
        generated_token t = {.id = token,
                             .logprob = -0.5f,
                             .n_top = w->generate.n_top_logprobs > 0,
                             .top = &top,
                             .text = text,
                             .text_size = 1};
        if (w->on_token && w->on_token(w, &t)) {
            w->finish = FINISH_STOP;
            return REALM_OK;
        }
    }
}

static void compute(engine *e, const compute_op *op)
{
    switch (op->kind) {
    case COMPUTE_NEW:
        op->out->device = (tensor){calloc((size_t)op->out->n_rows * (size_t)op->out->n_cols, 4),
                                   op->out->n_rows, op->out->n_cols};
        atomic_fetch_add(&e->tensors, 1);
        break;
    case COMPUTE_FREE:
        free(op->out->device.data);
        op->out->device.data = NULL;
        atomic_fetch_sub(&e->tensors, 1);
        break;
    case COMPUTE_WRITE:
        memcpy(op->out->device.data + op->first, op->host, (size_t)op->count * 4);
        break;
    case COMPUTE_READ:
        memcpy(op->host, op->x->device.data + op->first, (size_t)op->count * 4);
        break;
    case COMPUTE_ADD:
        for (int i = 0; i < op->out->n_rows * op->out->n_cols; i++)
            op->out->device.data[i] = op->x->device.data[i] + op->number * op->y->device.data[i];
        break;
    default: break;
    }
}

static realm_status run_work(engine *e, work *w)
{
    if (!e->options.inline_works)
        w->started_ns = w->first_token_ns = clock_ns();
    switch (w->kind) {
    case WORK_FEED:
    case WORK_EMBED: return feed(w);
    case WORK_STEP: return step(w);
    case WORK_GENERATE: return generate(w);
    default:
        for (int32_t i = 0; i < w->list->count; i++)
            compute(e, &w->list->ops[i]);
        return REALM_OK;
    }
}

static void do_work(engine *e, work *w)
{
    session *s = w->session;
    w->status = run_work(e, w);
    w->done_ns = w->started_ns;
    if (s) {
        if (!atomic_load(&s->closed))
            atomic_store(&s->cancelled, 0);
        if (atomic_fetch_sub(&s->works, 1) == 1 && atomic_load(&s->closed))
            free_session(s);
    }
    w->done(w);
}

void engine_submit(engine *e, work *w)
{
    atomic_fetch_add(&e->submitted, 1);
    if (w->session)
        atomic_fetch_add(&w->session->works, 1);
    if (e->options.inline_works)
        do_work(e, w);
    else
        queue_put(&e->works, &w->node);
}

/* Computes nothing, but leaves when it is wanted or after a moment without work, as the real one. */
int engine_lend(engine *e, int (*wanted)(void *context), void *context)
{
    if (e->options.inline_works || e->options.computes_elsewhere)
        return 0;
    uint64_t end = clock_ns() + 1000000;
    int is_wanted = 0;
    while (!is_wanted && clock_ns() < end) {
        is_wanted = wanted(context);
        sched_yield();
    }
    atomic_fetch_add(&e->lent, 1);
    return 1;
}

int engine_uses_host(const engine *e)
{
    return !e->options.computes_elsewhere;
}

int fake_engine_lent(engine *e)
{
    return atomic_load(&e->lent);
}

realm_status engine_tenant_set(engine *e, uint32_t tenant, const engine_tenant *settings,
                               realm_error *error)
{
    (void)e;
    (void)tenant;
    (void)settings;
    (void)error;
    return REALM_OK;
}

int engine_offer(engine *e, const engine_errand *errand)
{
    return errand_offer(&e->slot, errand);
}

void engine_recall(engine *e)
{
    errand_recall(&e->slot);
}

int fake_engine_errands(engine *e)
{
    return atomic_load(&e->errands);
}

int fake_engine_is_here(engine *e)
{
    return pthread_equal(pthread_self(), e->thread);
}

static void gather(engine *e)
{
    uint64_t end = clock_ns() + 1000000;
    while (errand_run(&e->slot))
        atomic_fetch_add(&e->errands, 1);
    while (queue_count(&e->works) < e->options.gathers && clock_ns() < end) {
        if (errand_run(&e->slot))
            atomic_fetch_add(&e->errands, 1);
        else
            sched_yield();
    }
}

static void *run(void *argument)
{
    engine *e = argument;
    for (queue_node *n; (n = queue_take(&e->works, 20000, UINT64_MAX));) {
        do_work(e, QUEUE_OWNER(n, work, node));
        queue_node *others = e->options.gathers ? queue_take_all(&e->works) : NULL;
        for (queue_node *next; others; others = next) {
            next = others->next;
            do_work(e, QUEUE_OWNER(others, work, node));
        }
        gather(e);
    }
    return NULL;
}

engine *fake_engine_open(const fake_options *options)
{
    engine *e = calloc(1, sizeof *e);
    if (!e)
        abort();
    e->options = *options;
    queue_init(&e->works);
    if (pthread_create(&e->thread, NULL, run, e) != 0)
        abort();
    return e;
}

void fake_engine_close(engine *e)
{
    queue_close(&e->works);
    pthread_join(e->thread, NULL);
    queue_release(&e->works);
    free(e);
}

int fake_engine_sessions(engine *e)
{
    return atomic_load(&e->sessions);
}
int fake_engine_tensors(engine *e)
{
    return atomic_load(&e->tensors);
}
int fake_engine_works(engine *e)
{
    return atomic_load(&e->submitted);
}
