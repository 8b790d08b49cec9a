/* sandbox/tensor_list.h: the tensor operations that a guest has recorded and the engine has not run.
 *
 * The list runs when something must be known: at tensor_read and kv_cache_get, when it is long, when
 * another session or model comes into play. So a layer costs one hand-over to the engine instead of
 * fifteen. A host function that must first run the list suspends the guest and is then called again
 * from its beginning. A tensor belongs to the engine of the first operation that uses it; until
 * then it is a promise without memory. Sandbox thread; one list a request (tensor_state). */
#ifndef REALM_SANDBOX_TENSOR_LIST_H
#define REALM_SANDBOX_TENSOR_LIST_H

#include "sandbox/request.h"

/* 1 if operations on s are recorded and have not run. */
int tensor_list_is_pending(const sandbox_request *r, const session_entry *s);

/* If so, sends them off, suspends the guest and returns 1: return 0 to have the function called
 * again. */
int tensor_list_flush_first(guest_call *c, const session_entry *s);

/* 1 if an operation on that engine and session (or NULL) can be recorded now. 0: the guest is
 * suspended and the function will be called again, or it has trapped. */
int tensor_list_make_room(guest_call *c, engine *e, session_entry *s);

/* Asks for the tensor's memory if nothing has yet. 0 after a trap. */
int tensor_list_bind(guest_call *c, tensor_entry *x, engine *e);

/* A new operation at the end, or NULL after a trap. */
compute_op *tensor_list_add(guest_call *c, compute_kind kind);

/* A copy that stays until the list has run, for the engine must not look into guest memory; NULL
 * after a trap. */
void *tensor_list_copy(guest_call *c, const void *bytes, size_t size);

/* Sends the list to its engine; wait for tensors.op. */
void tensor_list_submit(sandbox_request *r);

/* After that: empties the list; 0 and a trap if it went wrong. */
int tensor_list_went_well(guest_call *c);

/* Room for one more operation; 0 if the host is out of memory. */
int tensor_list_grow(tensor_state *t);

/* Frees the entries of tensors whose memory is gone. */
void tensor_list_sweep(tensor_state *t);

#endif
