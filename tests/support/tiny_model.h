/* tests/support/tiny_model.h: small random models of every family for unit tests.
 *
 * Two layers (gemma3: seven), 64 wide, with a SentencePiece vocabulary of 264 tokens: bytes and a
 * few letters. A file is made to order, whole or broken in one place. tests/golden/logits has
 * their likes for comparison with llama.cpp; these are for comparing Realm with itself. */
#ifndef REALM_TESTS_TINY_MODEL_H
#define REALM_TESTS_TINY_MODEL_H

#include "formats/gguf_writer.h"

#define TINY_EMBD     64
#define TINY_HEADS    4
#define TINY_KV_HEADS 2
#define TINY_HEAD_DIM 32
#define TINY_FF       96
#define TINY_VOCAB    264
#define TINY_CONTEXT  512

typedef struct tiny_model {
    const char *architecture;
    uint32_t type; /* of the matrices: DTYPE_F32 or DTYPE_Q8_0 */
    uint64_t seed;
    int untied;          /* 1: an output.weight of its own */
    const char *omit;    /* tensor or key that is left out, or NULL */
    const char *reshape; /* tensor that gets one row (of a vector: element) more */
    const char *retype;  /* F32 tensor that says it is F16 */
    /* Keys to write beside or instead of the usual ones; called last but before tensors. Keys it
     * writes must be named in omit or be new. */
    void (*more)(gguf_writer *w);
} tiny_model;

/* Metadata alone, as hyperparameters_read needs them. */
void tiny_model_metadata(const tiny_model *t, gguf_writer *w);
/* The whole file at path. */
void tiny_model_save(const tiny_model *t, const char *path);

/* A LoRA adapter for path's families: low-rank changes of matrices in layer 0, and of more, as
 * `matrices` names them ("attn_q", "ffn_down", ...; NULL at the end). */
typedef struct tiny_adapter {
    const tiny_model *model;
    const char *const *matrices;
    int32_t rank;
    float alpha;
    uint64_t seed;
    const char *omit, *reshape; /* as above, of "blk.0.attn_q.weight.lora_a" and the like */
    void (*more)(gguf_writer *w);
} tiny_adapter;

void tiny_adapter_save(const tiny_adapter *t, const char *path);

#endif
