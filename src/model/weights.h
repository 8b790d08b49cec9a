/* model/weights.h: every tensor of a model by its role, checked, on its backend.
 *
 * Files name tensors and may store several matrices as one (phi3: queries, keys and values); the
 * walk wants q, k, v, o, gate, up and down, always. This is where the one becomes the other:
 * pieces of a fused matrix are views of its rows, so nothing is copied. Opened and closed by the
 * loading thread while no step runs, constant between. */
#ifndef REALM_MODEL_WEIGHTS_H
#define REALM_MODEL_WEIGHTS_H

#include "base/arena.h"
#include "base/map.h"
#include "compute/weight_cache.h"
#include "model/architecture.h"

typedef enum matrix_slot {
    MATRIX_Q,
    MATRIX_K,
    MATRIX_V,
    MATRIX_O,
    MATRIX_GATE,
    MATRIX_UP,
    MATRIX_DOWN,
    MATRIX_COUNT,
} matrix_slot;

typedef enum norm_slot {
    NORM_BEFORE_ATTENTION,
    NORM_QUERY,
    NORM_KEY,
    NORM_AFTER_ATTENTION,
    NORM_BEFORE_FEED_FORWARD,
    NORM_AFTER_FEED_FORWARD,
    NORM_COUNT,
} norm_slot;

typedef struct layer_weights {
    weight *matrix[MATRIX_COUNT];
    weight *bias[MATRIX_COUNT];    /* [1, n_rows of the matrix], or NULL */
    weight *norm[NORM_COUNT];      /* [1, n], or NULL where the family has none */
    weight *norm_bias[NORM_COUNT]; /* or NULL */
} layer_weights;

typedef struct weights {
    backend *backend;                       /* borrowed */
    weight *token_embd;                     /* [n_vocab, n_embd] */
    weight *output_norm, *output_norm_bias; /* [1, n_embd]; the bias may be NULL */
    weight *output;        /* [n_vocab, n_embd]; token_embd itself where embeddings are tied */
    weight *output_bias;   /* [1, n_vocab], or NULL */
    layer_weights *layers; /* [n_layers] */
    map by_name;           /* GGUF name, pieces under the name they would have unfused */
    weight **all;          /* [count], what weights_release closes */
    int32_t count;
} weights;

typedef struct weights_progress {
    void (*call)(void *context, double fraction); /* may be NULL */
    void *context;
} weights_progress;

/* cache keeps packed weights, or is NULL; it must stay until weights_release.
 * Arrays come from a, data stay in g's mapping; both outlive weights_release. On failure
 * weights_release must be called too.
 *   REALM_CORRUPT      a tensor is missing or has the wrong shape or type; named
 *   REALM_UNSUPPORTED, REALM_NO_MEMORY  as backend weight_open */
realm_status weights_open(weights *w, arena *a, backend *b, const hyperparameters *h, const gguf *g,
                          weight_cache *cache, const weights_progress *progress,
                          realm_error *error);
void weights_release(weights *w);

/* Where a layer's matrix stands in files of this family: rows first .. first + n_rows of the
 * tensor `name`, which has n_stored rows in all. Adapters are cut the same way. */
typedef struct weight_piece {
    char name[64]; /* "blk.3.attn_qkv.weight" */
    int32_t first, n_rows, n_stored, n_cols;
} weight_piece;

weight_piece weights_piece(const hyperparameters *h, const gguf *g, int32_t layer,
                           matrix_slot slot);

/* Opens rows piece->first .. of tensor name in g, after checking that it is a matrix of n_stored
 * rows and n_cols columns. The tensor must exist. cache may be NULL. */
realm_status weights_open_piece(backend *b, weight **out, const gguf *g, const weight_piece *piece,
                                weight_cache *cache, realm_error *error);

#endif
