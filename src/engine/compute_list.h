/* engine/compute_list.h: tensor operations that a guest recorded, run in one go.
 *
 * A guest that walks the network itself calls an operation at a time; each is checked and recorded
 * by the sandbox's thread at once (shapes, handles, quotas) and the list goes to the engine when
 * something must be read, so a layer costs one thread hand-over instead of fifteen. The list and
 * its tensors are owned by the sandbox; the engine thread allocates, computes and frees device
 * memory. */
#ifndef REALM_ENGINE_COMPUTE_LIST_H
#define REALM_ENGINE_COMPUTE_LIST_H

#include "engine/engine.h"

/* A device tensor of a guest. Shape is fixed when the sandbox makes it; memory comes with the
 * COMPUTE_NEW operation on the engine thread and goes with COMPUTE_FREE. */
typedef struct compute_tensor {
    tensor device; /* device.data NULL until COMPUTE_NEW ran */
    int32_t n_rows, n_cols;
} compute_tensor;

typedef enum compute_kind {
    COMPUTE_NEW,
    COMPUTE_FREE,
    COMPUTE_WRITE,
    COMPUTE_READ,
    COMPUTE_EMBED,
    COMPUTE_MATMUL,
    COMPUTE_RMS_NORM,
    COMPUTE_LAYER_NORM,
    COMPUTE_ROPE,
    COMPUTE_ATTENTION,
    COMPUTE_KV_READ,
    COMPUTE_GATED,
    COMPUTE_ADD,
    COMPUTE_SOFT_CAP,
} compute_kind;

typedef struct compute_op {
    compute_kind kind;
    compute_tensor *out, *x, *y, *z; /* ATTENTION: out, q, k, v; GATED: out, gate, up */
    const weight *gain, *bias;       /* MATMUL: gain is the matrix */
    float *host;                     /* WRITE (borrowed, copied by then), READ, KV_READ */
    int32_t first, count;            /* WRITE, READ: elements; KV_READ: tokens */
    const int32_t *ids;              /* EMBED ids, ROPE positions; [count] */
    int32_t layer, values;           /* ATTENTION, ROPE, KV_READ */
    int32_t position;                /* ATTENTION: of the first row; pages are made on demand, and
                                        the session's length becomes position + rows when the last
                                        layer has run */
    activation_kind activation;
    float number; /* epsilon, scale or cap */
} compute_op;

typedef struct compute_list {
    compute_op *ops; /* [count] */
    int32_t count;
} compute_list;

#endif
