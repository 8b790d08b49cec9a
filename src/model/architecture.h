/* model/architecture.h: what a transformer of a known family looks like.
 *
 * hyperparameters is read from the file's metadata; architecture says which optional parts the
 * family has. Adding a family is adding a row in architectures.c. Constant after loading. */
#ifndef REALM_MODEL_ARCHITECTURE_H
#define REALM_MODEL_ARCHITECTURE_H

#include "compute/backend.h"
#include "formats/gguf.h"

#define MODEL_MAX_LAYERS 512

typedef struct hyperparameters hyperparameters;

typedef struct architecture {
    const char *name; /* general.architecture */
    norm_kind norm;
    rope_kind rope;
    activation_kind activation;
    unsigned gate_up_fused : 1;   /* ffn_up holds gate then up (phi3) */
    unsigned norm_bias : 1;       /* norms have a bias each (stablelm) */
    unsigned qkv_bias : 1;        /* attn_{q,k,v}.bias must exist (qwen2); optional otherwise */
    unsigned qk_norm : 1;         /* norms of each query and key head (qwen3, gemma3) */
    unsigned post_norms : 1;      /* norms after attention and feed-forward (gemma2, gemma3) */
    unsigned scale_embedding : 1; /* embeddings times sqrt(n_embd) (gemma) */
    /* Fills what metadata leave out (window pattern, query scale, local rope base) and refuses
     * variants of the family that the walk does not know. NULL: nothing to do. */
    realm_status (*complete)(hyperparameters *h, const gguf *g, realm_error *error);
} architecture;

struct hyperparameters {
    const architecture *architecture;
    int32_t n_layers, n_embd, n_vocab, n_context; /* n_context: what it was trained for */
    int32_t n_heads;                              /* query heads */
    int32_t n_kv_heads[MODEL_MAX_LAYERS];
    int32_t n_ff[MODEL_MAX_LAYERS];
    int32_t key_dim, value_dim; /* of one head */
    int32_t n_rot;
    float norm_epsilon;
    float attention_scale;    /* default 1/sqrt(key_dim) */
    float attention_soft_cap; /* 0: none */
    float logit_soft_cap;
    float embedding_scale, residual_scale; /* 1 where the family has none */
    int32_t window[MODEL_MAX_LAYERS];      /* 0: full attention */
    float rope_base, rope_base_local;      /* local: layers with a window, where they differ */
    /* What linear scaling multiplies frequencies with (1 / rope.scaling.factor); 1: no scaling. */
    float rope_scale_linear, rope_scale_local;
    /* YaRN, llama3 and longrope factors are read by rope_build in rope.c straight from the file */
};

/* The row for a name, or NULL. */
const architecture *architecture_find(const char *name, size_t size);

/* Names in the table, for messages; NULL past the end. */
const char *architecture_name_at(size_t index);

/*   REALM_UNSUPPORTED  architecture by name, or a feature by key
 *   REALM_CORRUPT      a key is missing, of the wrong kind or absurd; the sentence names it */
realm_status hyperparameters_read(hyperparameters *h, const gguf *g, realm_error *error);

#endif
