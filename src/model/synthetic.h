/* model/synthetic.h: model files of real shapes with random weights, for measuring.
 *
 * How fast a model runs depends on its shape and on how its weights are stored, not on what they
 * say: a random model does the work of the real one, and is there without a download. What it
 * writes means nothing. A model is named "llama-2-7b:q4_k_m": a row of the shapes, which are
 * published configurations (synthetic_shapes.c), and a row of the quantizations
 * (synthetic_types.c). The same name and seed give the same file on every machine. Weights are
 * spread as trained ones are at their start, so that activations stay finite. Tables are constant;
 * any thread. */
#ifndef REALM_MODEL_SYNTHETIC_H
#define REALM_MODEL_SYNTHETIC_H

#include <stddef.h>
#include <stdint.h>

#include "base/fail.h"

typedef struct synthetic_shape {
    const char *name;
    const char *architecture; /* as architecture.h knows it */
    int32_t n_layers, n_embd, n_heads, n_kv_heads, head_dim, n_ff, n_vocab, n_context;
    float rope_base, norm_epsilon;
    int32_t window; /* of local attention; 0: none */
    int tied;       /* the embedding is the output matrix too */
} synthetic_shape;

/* What a matrix is for: mixes give some more bits than others. */
typedef enum synthetic_role {
    SYNTHETIC_EMBEDDING,
    SYNTHETIC_OUTPUT,
    SYNTHETIC_Q,
    SYNTHETIC_K,
    SYNTHETIC_V,
    SYNTHETIC_QKV,
    SYNTHETIC_O,
    SYNTHETIC_GATE,
    SYNTHETIC_UP,
    SYNTHETIC_DOWN,
} synthetic_role;

typedef struct synthetic_quantization {
    const char *name;
    uint32_t type; /* of most matrices, a dtype */
    int mixed;     /* 0: of all. 1: others get more bits, by llama.cpp's rules for that name */
} synthetic_quantization;

typedef struct synthetic_model {
    const synthetic_shape *shape;
    const synthetic_quantization *quantization;
    uint64_t seed;
} synthetic_model;

/* The rows in order; NULL past the last. */
const synthetic_shape *synthetic_shape_at(size_t index);
const synthetic_quantization *synthetic_quantization_at(size_t index);

/* Reads "SHAPE:QUANTIZATION", or "SHAPE" for q4_k_m, with seed 1.
 *   REALM_INVALID  there is no such shape or quantization; the sentence lists what there is */
realm_status synthetic_find(synthetic_model *out, const char *name, realm_error *error);

/* The type of a matrix with rows of n_cols in a layer (0 for the ends). Where the type's blocks do
 * not fit n_cols it is the one that llama.cpp falls back to. */
uint32_t synthetic_type_of(const synthetic_model *m, synthetic_role role, int32_t layer,
                           int32_t n_cols);

typedef struct synthetic_size {
    uint64_t file_bytes, parameters;
} synthetic_size;

/* How large the file of synthetic_write becomes. REALM_NO_MEMORY as there. */
realm_status synthetic_measure(const synthetic_model *m, synthetic_size *out, realm_error *error);

/* Writes the GGUF file to descriptor from where that stands. progress, if not NULL, is called now
 * and then with the fraction that is done.
 *   REALM_IO         a write failed: the system's reason
 *   REALM_NO_MEMORY  for the vocabulary, a few dozen bytes a token */
realm_status synthetic_write(const synthetic_model *m, int descriptor,
                             void (*progress)(void *context, double fraction), void *context,
                             realm_error *error);

/* ---- between the two files ---------------------------------------------------------------------- */

struct rng;

/* Bytes of blocks that synthetic_fill is given at most at once: whole blocks of every type. */
#define SYNTHETIC_CHUNK_BYTES ((size_t)1 << 20)

/* Fills bytes of out, whole blocks of the type, with random weights; 8 bytes more are overwritten.
 * out is aligned to 8. */
void synthetic_fill(uint32_t type, uint8_t *out, size_t bytes, struct rng *random);

#endif
