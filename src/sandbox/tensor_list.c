/* sandbox/tensor_list.c: see tensor_list.h. */
#include "sandbox/tensor_list.h"

#include <stdlib.h>
#include <string.h>

#include "sandbox/guest_memory.h"
#include "sandbox/host_functions.h"

#define MAX_OPS         4096
#define MAX_INPUT_BYTES ((size_t)16 << 20) /* copied ids, positions and floats of one list */

/* ---- running the list -------------------------------------------------------------------------------- */

void tensor_list_sweep(tensor_state *t)
{
    for (tensor_entry **link = &t->tensors; *link;) {
        tensor_entry *e = *link;
        if (e->freed) {
            *link = e->next;
            free(e);
        } else {
            link = &e->next;
        }
    }
}

void tensor_list_submit(sandbox_request *r)
{
    tensor_state *t = &r->tensors;
    t->list = (compute_list){.ops = t->ops, .count = t->n_ops};
    t->op.work = (work){
        .kind = WORK_COMPUTE, .session = t->session ? t->session->session : NULL, .list = &t->list};
    engine_op_submit(r, &t->op, t->engine);
}

/* The list has run, well or not. */
static void forget(tensor_state *t)
{
    t->n_ops = 0;
    t->session = NULL;
    t->engine = NULL;
    arena_release(&t->inputs);
    tensor_list_sweep(t);
}

/* 1 if the list ran; else the request has failed. */
int tensor_list_went_well(guest_call *c)
{
    tensor_state *t = &c->request->tensors;
    realm_error error = t->op.work.error;
    realm_status status = t->op.work.status;
    forget(t);
    if (status == REALM_OK)
        return 1;
    guest_trap(c, status, "%s", error.message[0] ? error.message : realm_status_meaning(status));
    return 0;
}

static int64_t run_again(guest_call *c)
{
    return tensor_list_went_well(c) ? c->function->run(c) : GUEST_TRAPPED;
}

int tensor_list_is_pending(const sandbox_request *r, const session_entry *s)
{
    return r->tensors.n_ops > 0 && r->tensors.session == s;
}

int tensor_list_flush_first(guest_call *c, const session_entry *s)
{
    if (!tensor_list_is_pending(c->request, s))
        return 0;
    tensor_list_submit(c->request);
    guest_suspend(c, WAIT_OP, &c->request->tensors.op, run_again);
    return 1;
}

/* ---- recording ----------------------------------------------------------------------------------------- */

int tensor_list_grow(tensor_state *t)
{
    if (t->n_ops < t->ops_room)
        return 1;
    int32_t room = t->ops_room ? t->ops_room * 2 : 64;
    compute_op *ops = realloc(t->ops, (size_t)room * sizeof *ops);
    if (!ops)
        return 0;
    t->ops = ops;
    t->ops_room = room;
    return 1;
}

compute_op *tensor_list_add(guest_call *c, compute_kind kind)
{
    tensor_state *t = &c->request->tensors;
    if (!tensor_list_grow(t)) {
        guest_trap(c, REALM_NO_MEMORY, "the host is out of memory");
        return NULL;
    }
    compute_op *op = &t->ops[t->n_ops++];
    *op = (compute_op){.kind = kind};
    return op;
}

/* 1 if an operation on that engine and session (or NULL) can be recorded now. 0: the guest is
 * suspended and the function will be called again, or it has trapped. */
int tensor_list_make_room(guest_call *c, engine *e, session_entry *s)
{
    sandbox_request *r = c->request;
    tensor_state *t = &r->tensors;
    if (s && !engine_op_collect(r, &s->op)) {
        guest_trap(c, REALM_BUSY, "the session has a step in flight");
        return 0;
    }
    int other = t->n_ops > 0 &&
                ((t->engine && t->engine != e) || (s && t->session && t->session != s));
    if (other || t->n_ops >= MAX_OPS || t->inputs.used_bytes >= MAX_INPUT_BYTES) {
        tensor_list_submit(r);
        guest_suspend(c, WAIT_OP, &t->op, run_again);
        return 0;
    }
    t->engine = e;
    if (s)
        t->session = s;
    return 1;
}

/* The tensor's memory is asked for by the first operation that uses it. */
int tensor_list_bind(guest_call *c, tensor_entry *x, engine *e)
{
    if (x->engine == e)
        return 1;
    if (x->engine) {
        guest_trap(c, REALM_INVALID, "a tensor belongs to another model");
        return 0;
    }
    compute_op *op = tensor_list_add(c, COMPUTE_NEW);
    if (!op)
        return 0;
    op->out = &x->tensor;
    x->engine = e;
    return 1;
}

/* Copies what the engine will read (invariant 5). */
void *tensor_list_copy(guest_call *c, const void *bytes, size_t size)
{
    tensor_state *t = &c->request->tensors;
    void *copy = arena_take(&t->inputs, size);
    if (!copy) {
        guest_trap(c, REALM_NO_MEMORY, "the host is out of memory");
        return NULL;
    }
    memcpy(copy, bytes, size);
    return copy;
}
