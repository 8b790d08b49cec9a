/* model/model_internal.h: the inside of a model, for the files of this room alone.
 *
 * model.c opens and closes it, transformer.c walks it, adapter.c adds to its scratch. After
 * model_open only the scratch changes, and only by the engine's thread. */
#ifndef REALM_MODEL_MODEL_INTERNAL_H
#define REALM_MODEL_MODEL_INTERNAL_H

#include "model/adapter.h"
#include "model/model.h"
#include "model/rope.h"
#include "model/weights.h"

/* Activations of one step. Rows: R = max_batch_tokens, O = max_batch_outputs. Layers may differ in
 * width; a tensor is as wide as the widest and the walk uses its front. */
typedef struct scratch {
    tensor x;                     /* [R, n_embd] the residual stream */
    tensor kept;                  /* [R, n_embd] its rows that go on after the last attention */
    tensor normed;                /* [R, n_embd] */
    tensor projected;             /* [R, n_embd] what a sublayer adds to the stream */
    tensor q;                     /* [R, n_heads * max(key_dim, value_dim)] */
    tensor k, v;                  /* [R, n_kv_heads * dim] */
    tensor attention;             /* [R, n_heads * value_dim] */
    tensor gate, up;              /* [R, n_ff] */
    tensor logits;                /* [O, n_vocab] */
    tensor low, delta;            /* an adapter's A x and B A x; opened when the first adapter is */
    adapter_group *groups;        /* [R] of all rows */
    adapter_group *output_groups; /* [R] of the rows that are wanted */
} scratch;

struct model {
    backend *backend; /* borrowed */
    gguf *gguf;
    tokenizer *tokenizer;
    arena arena; /* name, tables of weights, rope frequencies, groups */
    const char *name;
    hyperparameters h;
    rope ropes[2]; /* by rope_layers */
    kv_layer_shape *kv_layers;
    weight_cache *cache; /* where packed weights are; NULL: they are the backend's */
    weights weights;
    int32_t max_tokens, max_outputs;
    scratch scratch;
};

/* Bytes of the tensors of struct scratch that model_open makes. */
uint64_t model_scratch_bytes(const hyperparameters *h, const model_options *options);

/* The first n_rows rows of n_cols of a scratch tensor that has at least as many elements. */
static inline tensor scratch_front(tensor t, int32_t n_rows, int32_t n_cols)
{
    return (tensor){t.data, n_rows, n_cols};
}

#endif
