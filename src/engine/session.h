/* engine/session.h: the inside of a session; its outside is in engine.h.
 *
 * A session is one tenant's sequence of tokens: the tokens, the pages of their keys and values,
 * the logits after the last one and the sampler. It has one owner at a time:
 *
 *      session_open, session_fork
 *               |
 *               v      engine_submit                      a work comes back
 *             IDLE ------------------> BUSY  ----------------------------------> IDLE
 *               |                        | session_cancel (any thread)            ^
 *               |                        v                                        |
 *               |                   CANCELLED ------------------------------------'
 *               |  session_close          |  session_close
 *               v                         v
 *             a close command is in the queue; the engine ends the work, frees everything
 *
 * IDLE: the owner's thread reads and writes the fields marked owner. BUSY, CANCELLED: the engine
 * thread does. The scheduler's item is the engine thread's at all times, so what an idle owner
 * changes there (fork, truncate, close) travels through the engine's queue as a command, in order
 * with the works; the queue's mutex makes the owner's writes visible to the engine, and state
 * (released by the engine, acquired by engine_submit) makes the engine's visible to the owner.
 *
 * Invariants:
 *   E1  state is IDLE exactly if work is NULL, as seen by the engine thread between iterations
 *   E2  tokens [0, length) are final; item.computed <= length whenever no command is queued
 *   E3  has_logits: logits are those after token length-1, or will be when session_logits has brought them
 *   E4  a session is freed by the engine thread alone, after its close command */
#ifndef REALM_ENGINE_SESSION_H
#define REALM_ENGINE_SESSION_H

#include "engine/engine.h"
#include "engine/generate.h"
#include "engine/scheduler.h"

enum session_state { SESSION_IDLE, SESSION_BUSY, SESSION_CANCELLED };

/* What travels in the engine's queue beside works. The first two fields lie as a work's do. */
typedef enum command_kind {
    COMMAND_FORK = 1000, /* session reads parent's first length tokens */
    COMMAND_TRUNCATE,    /* to length; frees the command */
    COMMAND_CLOSE,
    COMMAND_FORGET, /* an adapter */
    COMMAND_STOP,
} command_kind;

typedef struct command {
    queue_node node;
    command_kind kind;
    int32_t length;
    session *session, *parent;
    const void *adapter;
    atomic_int *finished; /* FORGET: set when done */
} command;

/* A tenant that has had a session or settings here; lives as long as the engine. */
typedef struct tenant_entry {
    sched_tenant scheduled;
    int32_t n_sessions, max_sessions; /* under the registry's mutex */
} tenant_entry;

/* A guest's own way through the layers: it writes rows [first, first+count) layer by layer. In
 * order, so that no layer of a row that counts as computed is left as the page's last user, maybe
 * another tenant, had it. */
typedef struct layer_walk {
    int32_t first, count;
    int32_t n_layers; /* written so far; 0: no walk */
} layer_walk;

struct session {
    engine *engine;
    tenant_entry *tenant;
    priority priority;
    int32_t n_context;
    atomic_int state;
    command fork, close;
    session *previous, *next; /* all sessions; under the registry's mutex */

    /* owner */
    token_id *tokens; /* [length] of capacity */
    int32_t length, capacity;
    float *logits;     /* [n_vocab], NULL until first needed */
    float *peaks;      /* behind logits: what the device finds in them; NULL: it finds nothing */
    row_digest digest; /* of logits: into peaks */
    int has_logits;
    sampler *sampler;
    adapter *adapter;

    atomic_int away; /* away.h; 0: logits are here */
    int32_t row_due; /* so many rows more do not stay; whoever brings one, the engine thread */

    /* the engine thread */
    sched_item item;
    int known;            /* the scheduler has the item */
    work *work;           /* in flight */
    int32_t active_index; /* in the engine's list of sessions with work */
    int32_t mark;         /* length to go back to if the work fails */
    int mark_logits;      /* whether logits were there then */
    uint64_t awaited;     /* iteration after which its next step was waited for */
    layer_walk walk;
    generate_state generate;
    uint64_t fed_submitted_ns, fed_started_ns; /* of the first feed since another work; 0: none */
    double *pooled; /* [n_embd] sum of hidden states, EMBED with POOLING_MEAN */
    int32_t n_pooled;
};

/* Room for so many tokens. Owner. */
realm_status session_reserve(session *s, int32_t count, realm_error *error);
/* Room for logits. The engine, or who makes the session. */
realm_status session_reserve_logits(session *s, realm_error *error);
/* What is wanted of the logits to come. The engine. */
row_wish session_wish(session *s);
/* Appends tokens that were reserved for; logits are gone. Owner. */
void session_append(session *s, const token_id *tokens, int32_t count);
/* Frees memory; pages and registry are done with. Engine thread, or engine_close. */
void session_free(session *s);

#endif
