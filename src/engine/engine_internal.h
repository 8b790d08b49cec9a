/* engine/engine_internal.h: the inside of an engine, for the files of this folder and its tests.
 *
 * Everything below "the engine thread's" belongs to that thread; what other threads may touch has a
 * mutex or is atomic and says so. */
#ifndef REALM_ENGINE_ENGINE_INTERNAL_H
#define REALM_ENGINE_ENGINE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/map.h"
#include "engine/away.h"
#include "engine/batch.h"
#include "engine/device.h"
#include "engine/engine.h"
#include "engine/pace.h"
#include "engine/scheduler.h"
#include "engine/session.h"

struct engine {
    device device;
    int32_t max_sessions, n_pages, batch_tokens, gather_us;
    int32_t n_host_pages, most_host_pages; /* there are, and may be; the engine thread's */
    uint64_t page_bytes;
    queue queue;
    pthread_t thread;
    command stop;

    errand_slot errands; /* any thread */

    /* any thread, under registry */
    pthread_mutex_t registry;
    map tenants; /* number -> tenant_entry */
    session *sessions;
    atomic_int n_sessions;

    away_rows away; /* any thread */

    /* any thread reads */
    struct {
        _Atomic uint64_t iterations, tokens_prefilled, tokens_decoded, preemptions, busy_ns;
        _Atomic uint64_t by_rows[ENGINE_ROW_CLASSES];
        _Atomic uint64_t pages_saved_total, pages_loaded_total;
        atomic_int waiting, pages_used, pages_saved;
    } stats;

    /* the engine thread's */
    scheduler *scheduler;
    batch batch;
    pace pace;
    kv_copies copies; /* of compute lists */
    session **active; /* [n_active] sessions with a work in flight */
    int32_t n_active;
    int32_t n_awaited;  /* sessions whose next step is waited for after this iteration */
    uint64_t iteration; /* from 1 */
    int stopping;
};

/* engine_open on any device. */
realm_status engine_open_device(engine **out, const device *d, const engine_options *options,
                                realm_error *error);

/* Has the device make them, in order. Engine thread. */
void engine_make_copies(engine *e, const kv_copies *copies);

/* The entry of a tenant, made where it is missing. Under registry. */
tenant_entry *engine_tenant_entry(engine *e, uint32_t tenant);
/* Takes the session out of the list of all. Any thread. */
void engine_unlink(engine *e, session *s);

/* What a kind of work does; a row each in works.c. Engine thread. */
typedef struct work_table {
    /* Checks and appends what is known at the start. After a failure session->mark is restored. */
    realm_status (*begin)(engine *e, session *s, work *w);
    /* All tokens are computed, and the logits are there if needs_logits. Sets *finished, or has
     * appended tokens and is called again when they are computed. */
    realm_status (*next)(engine *e, session *s, work *w, int *finished);
    int needs_logits;
} work_table;

/* NULL: no such kind. */
const work_table *work_table_of(work_kind kind);
realm_status work_check_tokens(const engine *e, const session *s, work *w);
/* Appends w->tokens; the work may be undone up to here. */
realm_status work_append(engine *e, session *s, work *w, const token_id *tokens, int32_t count);

#endif
