/* engine/engine.h: what runs the sessions of one model on one device.
 *
 * One engine thread owns everything inside: the KV pages, the scheduler, the batch and the
 * backend. Others meet it through its queue: they fill in a work, submit it, and the engine calls
 * work->done on its own thread when it is finished (done must only hand the work on; it may not
 * block). A tenant is a number and a weight here; nothing of HTTP, keys or WASM reaches the engine.
 *
 * An iteration: drain the queue; let the scheduler choose rows (every decoding session first, then
 * chunks of waiting prompts until the token budget is full); make pages; model_forward; sample;
 * wake what waited. After an iteration whose sessions are driven from outside (step works), the
 * engine waits a moment (gather_us) for their next steps, so that guests that answer within
 * microseconds stay one batch instead of falling apart into many small ones. */
#ifndef REALM_ENGINE_ENGINE_H
#define REALM_ENGINE_ENGINE_H

#include "base/queue.h"
#include "engine/errand.h"
#include "engine/sampler.h"
#include "model/adapter.h"
#include "model/model.h"

typedef struct engine engine;
typedef struct session session;

typedef struct engine_options {
    uint64_t
        kv_bytes; /* memory for pages; 0: a third of what is free (of a graphics device's memory
                               nearly all), at most what max_sessions full contexts can use */
    int64_t kv_host_bytes; /* of the host's memory, for pages of sessions that must give theirs back
                            (kv_host.h); 0: where the device has memory of its own, as much again, at
                            most a quarter of what the host has free, else none; -1: none */
    dtype kv_type;         /* DTYPE_F16 (default when 0) or DTYPE_Q8_0 */
    int32_t batch_tokens;  /* token budget of an iteration; 0: the model's max_batch_tokens */
    int32_t max_sessions;  /* 0: 256 */
    int32_t gather_us;     /* longest wait for outside-driven sessions; -1: default */
} engine_options;

/* Borrows the model (and its backend) until engine_close; starts the engine thread. */
realm_status engine_open(engine **out, model *m, const engine_options *options, realm_error *error);
/* Cancels what is in flight, joins the thread. Sessions must be closed or have no owner left. */
void engine_close(engine *e);
model *engine_model(engine *e);

/* Before adapter_close: the prefix cache forgets what was computed with it, since another adapter may
 * get its address. Waits for the engine thread; no session may use the adapter any longer. */
void engine_forget_adapter(engine *e, const adapter *a);

/* A tenant's share. Unknown tenants have weight 1 and no limits of their own. Any thread. */
typedef struct engine_tenant {
    float weight;         /* of its virtual token counter; > 0 */
    int32_t max_sessions; /* 0: the engine's */
    int32_t max_pages;    /* 0: the engine's */
} engine_tenant;
realm_status engine_tenant_set(engine *e, uint32_t tenant, const engine_tenant *settings,
                               realm_error *error);

/* Batches of 1 row, of 2, up to 4, up to 8, ... up to 2048, and of more. */
#define ENGINE_ROW_CLASSES 13

typedef struct engine_stats {
    uint64_t iterations, tokens_prefilled, tokens_decoded, preemptions;
    uint64_t by_rows[ENGINE_ROW_CLASSES];
    uint64_t pages_saved_total, pages_loaded_total; /* copied to host pages, and back */
    int32_t sessions, waiting, pages_total, pages_used;
    int32_t pages_saved; /* host pages in use (kv_host.h) */
    uint64_t kv_bytes, busy_ns;
} engine_stats;
void engine_stats_get(engine *e, engine_stats *out); /* any thread; a consistent-enough copy */

typedef struct engine_tenant_stats {
    int32_t sessions, pages;
} engine_tenant_stats;
/* Zeros for a tenant that has never been here. Any thread. */
void engine_tenant_stats_get(engine *e, uint32_t tenant, engine_tenant_stats *out);

/* ---- sessions ------------------------------------------------------------------------------------
 *
 * A session has one owner at a time: the thread that holds it (idle), or the engine (a work is in
 * flight: between engine_submit and done). All functions below are for the owner while idle;
 * session_cancel alone is for any thread. */

typedef enum priority { PRIORITY_BATCH, PRIORITY_NORMAL, PRIORITY_HIGH } priority;

typedef struct session_options {
    uint32_t tenant;
    priority priority;
    int32_t n_context; /* longest sequence; 0: the model's */
    sampler_options sampler;
} session_options;

/*   REALM_QUOTA  the tenant's or the engine's number of sessions is reached */
realm_status session_open(session **out, engine *e, const session_options *options,
                          realm_error *error);
/* If a work is in flight it is cancelled first and its done still comes. Pages are free within
 * one iteration. */
void session_close(session *s);
/* A new session with the same tokens, pages shared until written, logits and sampler copied. */
realm_status session_fork(session **out, session *parent, realm_error *error);
/* Forgets all tokens from length on. The logits are gone unless length is unchanged. */
realm_status session_truncate(session *s, int32_t length, realm_error *error);
int32_t session_length(const session *s);
const token_id *session_tokens(const session *s); /* [length]; -1 where a guest wrote KV itself */
engine *session_engine(const session *s);
sampler *session_sampler(session *s);
/* Logits [n_vocab] after the last token, brought here if they stayed on the device, or NULL if there are none. Valid until
 * the next work. */
const float *session_logits(session *s);
/* The same if they are here, or else NULL: the digest may do. */
const float *session_logits_here(const session *s);
/* What the device has found in them, for sampler_choose; NULL if there are none. */
const row_digest *session_digest(const session *s);
/* Hints that the session will be used soon (base/prefetch.h), and then that its logits will be looked
 * at, which is for after the first has had its time. Owner, or with a work in flight the engine. */
void session_prefetch(const session *s);
void session_prefetch_logits(const session *s);
/* NULL: none. The adapter must outlive its use. REALM_BUSY once tokens are in (keys and values
 * of two adapters do not mix). */
realm_status session_adapter(session *s, adapter *a, realm_error *error);
/* The work in flight ends with REALM_CANCELLED within an iteration; without one it means nothing. Any
 * thread. A work that fails leaves the tokens as they were before it, but for those that GENERATE
 * had handed out already; the sampler keeps what it has seen. */
void session_cancel(session *s);

/* ---- work ---------------------------------------------------------------------------------------- */

typedef struct work work;

typedef enum work_kind {
    WORK_FEED,     /* append tokens (none: only see to the logits); logits of the last one. The
                      sampler sees them */
    WORK_STEP,     /* append one token (or sample it first: token -1); logits after it. The sampler
                      accepts it either way */
    WORK_GENERATE, /* sample and append until a stop. Logits are there again after FINISH_WAKE; after
                      another end, when they are next needed */
    WORK_EMBED,    /* append tokens; pooled hidden state */
    WORK_COMPUTE,  /* a list of tensor operations, see compute_list.h */
} work_kind;

typedef enum finish_reason { FINISH_NONE, FINISH_STOP, FINISH_LENGTH, FINISH_WAKE } finish_reason;

typedef struct generate_options {
    int32_t max_tokens;       /* > 0; FINISH_LENGTH. Counted over a work and its continuations */
    const char *const *stops; /* [n_stops] FINISH_STOP before the text of one would be emitted */
    int32_t n_stops;
    int ignore_eos;
    int32_t wake_every;     /* > 0: FINISH_WAKE after so many tokens, to be continued by the same
                                work submitted again, its finish still FINISH_WAKE */
    int32_t n_top_logprobs; /* 0..20 with each token */
    int want_logprobs;
} generate_options;

/* A token as generate hands it out. Log-probabilities are of the untempered, unbiased model. */
typedef struct generated_token {
    token_id id;   /* -1: no token, only text that was held back until the end. The
                                    token that ends generation is never handed out or appended */
    float logprob; /* valid if want_logprobs */
    int32_t n_top;
    const token_logit *top; /* [n_top] value: log-probability; borrowed for the call */
    const char *text;       /* whole UTF-8 characters that this token released; may be "" */
    size_t text_size;
} generated_token;

typedef enum pooling { POOLING_MEAN, POOLING_LAST, POOLING_FIRST } pooling;

struct work {
    queue_node node; /* the engine's */
    work_kind kind;
    session *session; /* NULL only for WORK_COMPUTE without attention */

    /* input; borrowed until done */
    const token_id *tokens; /* FEED, EMBED [n_tokens] */
    int32_t n_tokens;
    token_id token; /* STEP: in, -1 to sample; out, the token appended */
    generate_options generate;
    pooling pooling;
    float *embedding;          /* EMBED: out [n_embd] */
    int normalize;             /* EMBED: to length 1 */
    struct compute_list *list; /* COMPUTE */
    uint64_t deadline_ns; /* clock_ns() time, 0: none. REALM_DEADLINE within an iteration of it */

    /* GENERATE: called on the engine thread for each token; must not block. May be NULL.
     * Return 0 to go on, 1 to stop (FINISH_STOP). */
    int (*on_token)(work *w, const generated_token *token);
    /* GENERATE: asked on the engine thread before a token joins the sequence; must not block. 0: it does
     * not, and generation ends with FINISH_LENGTH. May be NULL: always. The model's own end is no token. */
    int (*may_append)(work *w);
    /* Called once, on the engine thread, after which the engine does not touch the work. */
    void (*done)(work *w);
    void *context; /* the submitter's */

    /* output */
    realm_status status;
    realm_error error;
    finish_reason finish;
    int32_t n_generated; /* GENERATE: since this submission */
    int32_t n_cached;    /* tokens that the prefix cache spared */
    uint64_t submitted_ns, started_ns, first_token_ns, done_ns; /* clock_ns() */
    /* GENERATE: the same of the first of the feeds since the session's last other work, which is
     * when whoever waits for the answer began to; its own where there was none */
    uint64_t prompt_submitted_ns, prompt_started_ns;

    /* the engine's own between submit and done */
    struct work *next_waiting;
    int32_t progress;
};

/* Any thread. Errors that can be seen at once (REALM_BUSY, REALM_INVALID token, REALM_CONTEXT_FULL)
 * come through done as well, never by return. */
void engine_submit(engine *e, work *w);

/* The calling thread, which waits for works of this engine and has nothing else to do, helps to compute
 * until wanted(context) says 1, or until nothing was to be done for a fraction of a millisecond. So it
 * is awake when what it waits for is there. 0: there was no room for it (other threads help, or the
 * device computes without the host's threads), and it should sleep. The engine must stay open
 * meanwhile. Any thread of ordinary priority; wanted is asked every few microseconds on it and must
 * answer within less than one. */
int engine_lend(engine *e, int (*wanted)(void *context), void *context);
/* What the works of the next batch wait for: the engine's thread shares in it while it gathers them
 * (errand.h), or does not if it has better to do. 0: it has another thread's. Recalled before the engine
 * closes. Whatever works have ended, what is offered is run before the engine's thread does anything long
 * or sleeps. Any thread, and engine_recall the same one. */
int engine_offer(engine *e, const engine_errand *errand);
void engine_recall(engine *e);
/* 1 if the host's threads compute for it: who waits leaves the cores to them. Any thread. */
int engine_uses_host(const engine *e);

/* For tests and the command line: submits and waits. Replaces w->done and w->context. */
realm_status engine_run(engine *e, work *w);

#endif
