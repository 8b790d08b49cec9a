/* engine/compute.h: runs a guest's list of tensor operations. Engine thread. */
#ifndef REALM_ENGINE_COMPUTE_H
#define REALM_ENGINE_COMPUTE_H

#include "engine/compute_list.h"

/* s is NULL where the work names no session; otherwise all its tokens are computed.
 *   REALM_INVALID      an operation does not fit the model or the session; its index is named
 *   REALM_UNSUPPORTED  the device has no tensors
 *   REALM_QUOTA        no pages are left for attention */
realm_status compute_run(engine *e, session *s, work *w);

#endif
