/* sandbox/host_tenant.c: what belongs to the tenant rather than to the request: its state, and its
 * other programs, which `call` runs as requests of their own with the same limits.
 *
 * A called program runs on its caller's thread while the caller is suspended. It streams to its
 * caller, not to the client. */
#include <stdlib.h>
#include <string.h>

#include "sandbox/guest_memory.h"
#include "sandbox/host_groups.h"
#include "sandbox/runtime.h"

/* ---- state ------------------------------------------------------------------------------------------ */

static state_store *store_of(guest_call *c)
{
    return c->request->tenant->grants.state;
}

int64_t host_tenant_state_get(guest_call *c)
{
    state_store *s = store_of(c);
    const char *key = guest_bytes(c, 0, 1);
    if (!key || !guest_bytes(c, 2, 3))
        return GUEST_TRAPPED;
    if (!s)
        return REALM_UNSUPPORTED;
    const tenant_grants *g = &c->request->tenant->grants;
    buffer value;
    buffer_init(&value, g->limits.state_bytes);
    realm_error error;
    realm_status status = s->table->get(s, g->number, key, c->arguments[1].u64, &value, &error);
    int64_t result = status == REALM_OK ? guest_give(c, 2, 3, value.data, value.size) : status;
    buffer_release(&value);
    return result;
}

int64_t host_tenant_state_put(guest_call *c)
{
    state_store *s = store_of(c);
    const char *key = guest_bytes(c, 0, 1);
    const char *value = key ? guest_bytes(c, 2, 3) : NULL;
    if (!value)
        return GUEST_TRAPPED;
    if (!s)
        return REALM_UNSUPPORTED;
    const tenant_grants *g = &c->request->tenant->grants;
    realm_error error;
    return s->table->put(s, g->number, key, c->arguments[1].u64, value, c->arguments[3].u64,
                         g->limits.state_bytes, &error);
}

int64_t host_tenant_state_delete(guest_call *c)
{
    state_store *s = store_of(c);
    const char *key = guest_bytes(c, 0, 1);
    if (!key)
        return GUEST_TRAPPED;
    if (!s)
        return REALM_UNSUPPORTED;
    int existed = 0;
    realm_error error;
    realm_status status = s->table->remove(s, c->request->tenant->grants.number, key,
                                           c->arguments[1].u64, &existed, &error);
    return status == REALM_OK ? existed : status;
}

/* ---- call ------------------------------------------------------------------------------------------- */

static void child_text(void *context, const char *text, size_t size)
{
    sandbox_request *parent = context;
    /* The cap is the caller's output limit, and the called program has the same: it fits. */
    buffer_add(&parent->child_output, text, size);
}

static void child_log(void *context, int level, const char *text, size_t size)
{
    request_log(context, level, text, size);
}

static void child_done(void *context, const sandbox_result *result)
{
    sandbox_request *parent = context;
    parent->child_status = result->status;
    parent->usage.prompt_tokens += result->usage.prompt_tokens;
    parent->usage.generated_tokens += result->usage.generated_tokens;
    parent->usage.cached_tokens += result->usage.cached_tokens;
    parent->usage.cpu_ns += result->usage.cpu_ns;
    parent->usage.ran_out |= result->usage.ran_out;
    request_note_model(parent, result->usage.model);
    if (result->status == REALM_CANCELLED) {
        /* Its caller was: nobody is interested. */
    } else if (result->status != REALM_OK) {
        request_log(parent, 2, result->message, strlen(result->message));
    } else if (result->json) {
        buffer_clear(&parent->child_output);
        if (buffer_add(&parent->child_output, result->json, result->json_size) != REALM_OK)
            parent->child_status = REALM_NO_MEMORY;
    }
    parent->child_done = 1;
    request_wake(parent);
}

static int64_t finish_call(guest_call *c)
{
    sandbox_request *r = c->request;
    request_unretain(r->child);
    r->child = NULL;
    if (r->child_status != REALM_OK)
        return r->child_status;
    int64_t result = guest_give(c, 4, 5, r->child_output.data, r->child_output.size);
    return result;
}

static int64_t start_child(guest_call *c, program *p, const void *input, size_t size)
{
    sandbox_request *r = c->request;
    sandbox_input child = {
        .program = p,
        .tenant = r->tenant,
        .id = r->input.id,
        .body = input,
        .body_size = size,
        .seed = rng_next(&r->random),
        .now_ms = r->input.now_ms,
        .deadline_ns = r->deadline_ns,
        .priority = r->input.priority,
        .allowance = r->input.allowance,
        .prompt_is_paid = r->input.prompt_is_paid,
        .context = r,
        .on_text = child_text,
        .on_log = child_log,
        .on_done = child_done,
    };
    buffer_clear(&r->child_output);
    r->child_done = 0;
    realm_error error;
    realm_status status = sandbox_start_child(&r->child, r, &child, &error);
    if (status != REALM_OK)
        return guest_note(c, &error);
    return guest_suspend(c, WAIT_CHILD, NULL, finish_call);
}

int64_t host_tenant_call(guest_call *c)
{
    sandbox_request *r = c->request;
    const tenant_grants *g = &r->tenant->grants;
    const char *name = guest_bytes(c, 0, 1);
    const char *input = name ? guest_bytes(c, 2, 3) : NULL;
    if (!input || !guest_bytes(c, 4, 5))
        return GUEST_TRAPPED;
    size_t name_size = c->arguments[1].u64;
    if (name_size == 0) /* the last result again, with more room */
        return guest_give(c, 4, 5, r->child_output.data, r->child_output.size);
    if (r->depth >= g->limits.call_depth)
        return guest_trap(c, REALM_QUOTA, "programs call each other more than %d deep",
                          g->limits.call_depth);
    if (!g->resolve)
        return REALM_NOT_FOUND;
    program *p;
    realm_error error;
    if (g->resolve(g->resolve_context, name, name_size, &p, &error) != REALM_OK)
        return guest_note(c, &error);
    int64_t result = start_child(c, p, input, c->arguments[3].u64);
    program_release(p);
    return result;
}

void host_tenant_cancel_child(sandbox_request *r)
{
    if (r->child && !r->child_done)
        sandbox_cancel(r->child);
}
