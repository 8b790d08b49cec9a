/* sandbox/host_tensor.h: what sessions must know of recorded tensor operations. Sandbox thread. */
#ifndef REALM_SANDBOX_HOST_TENSOR_H
#define REALM_SANDBOX_HOST_TENSOR_H

#include "sandbox/request.h"

/* 1 if operations on s are recorded and have not run. */
int host_tensor_is_pending(const sandbox_request *r, const session_entry *s);

/* If so, sends them off, suspends the guest and returns 1; the same host function is then called
 * again from its beginning. Also 1 after a trap. */
int host_tensor_flush_first(guest_call *c, const session_entry *s);

#endif
