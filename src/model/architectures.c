/* model/architectures.c: the families of transformers that Realm knows, one row each.
 *
 * A row says which optional parts a family has; hyperparameters_read turns a file's metadata into
 * numbers that the rest of the room can trust. All of it runs once, while a model is opened, on
 * the loading thread. The file is hostile: every number has a limit, and the sentence of a refusal
 * names its key. Facts that no metadata carry (window patterns, the query scale of one size of
 * gemma, default soft caps) stand in the family's `complete` function with their source. */
#include "model/architecture.h"

#include <math.h>
#include <string.h>

#include "model/metadata.h"

/* Limits: an order of magnitude above the largest published models, far below where products of
 * two of them would leave int32_t. */
#define MAX_EMBEDDING       (1 << 17)
#define MAX_HEADS           4096
#define MAX_HEAD_DIM        1024
#define MAX_FEED_FORWARD    (1 << 20)
#define MAX_ATTENTION_WIDTH (1 << 20)
#define MAX_VOCABULARY      (1 << 22)
#define MAX_CONTEXT         (1 << 28)

static metadata metadata_of(const hyperparameters *h, const gguf *g)
{
    return (metadata){g, h->architecture->name};
}

/* ---- families ------------------------------------------------------------------------------- */

/* Sets window on the layers the pattern makes local: all but each pattern-th one, unless the file
 * lists them itself (1: local). A pattern of 0 makes all local. */
static realm_status read_windows(hyperparameters *h, const gguf *g, int32_t window, int32_t pattern,
                                 realm_error *error)
{
    metadata m = metadata_of(h, g);
    char key[METADATA_KEY_SIZE];
    const gguf_value *v = gguf_find(g, metadata_key(&m, "attention.sliding_window_pattern", key));
    int32_t local[MODEL_MAX_LAYERS];
    int found = 0;
    realm_status status = REALM_OK;
    if (v != NULL && v->type == GGUF_ARRAY)
        status = metadata_ints(&m, "attention.sliding_window_pattern", 0, 1, local, h->n_layers,
                               &found, error);
    else
        status = metadata_int(&m, "attention.sliding_window_pattern", 0, MODEL_MAX_LAYERS, &pattern,
                              &(int){0}, error);
    for (int32_t i = 0; i < h->n_layers && status == REALM_OK; i++) {
        int is_local = found ? local[i] : pattern == 0 || i % pattern < pattern - 1;
        h->window[i] = is_local ? window : 0;
    }
    return status;
}

/* Queries are scaled by 1/sqrt(head) except in the 27B sizes of gemma 2 and 3, which use
 * 1/sqrt(n_embd / n_heads): `query_pre_attn_scalar` of google/gemma_pytorch, gemma/config.py. No
 * metadata say so, the number of layers is what tells that size. */
static void gemma_attention_scale(hyperparameters *h, int32_t layers_of_27b)
{
    if (h->n_layers == layers_of_27b)
        h->attention_scale = (float)(1.0 / sqrt((double)(h->n_embd / h->n_heads)));
}

/* Gemma 2 (arXiv 2408.00118, section 2): local and global layers alternate, the first is local. */
static realm_status complete_gemma2(hyperparameters *h, const gguf *g, realm_error *error)
{
    metadata m = metadata_of(h, g);
    int32_t window = 4096;
    int found = 0;
    h->attention_soft_cap = 50; /* table 2 of the report, for files that do not say */
    h->logit_soft_cap = 30;
    h->rope_base_local = h->rope_base;
    h->rope_scale_local = h->rope_scale_linear;
    gemma_attention_scale(h, 46);
    realm_status status;
    if ((status = metadata_float(&m, "attn_logit_softcapping", 0, 1e6, &h->attention_soft_cap,
                                 &found, error)) != REALM_OK ||
        (status = metadata_float(&m, "final_logit_softcapping", 0, 1e6, &h->logit_soft_cap, &found,
                                 error)) != REALM_OK ||
        (status = metadata_float(&m, "rope.freq_base_swa", 2, 1e12, &h->rope_base_local, &found,
                                 error)) != REALM_OK ||
        (status = metadata_int(&m, "attention.sliding_window", 1, MAX_CONTEXT, &window, &found,
                               error)) != REALM_OK)
        return status;
    return read_windows(h, g, window, 2, error);
}

/* Gemma 3 (arXiv 2503.19786, section 2): five local layers, whose rope keeps base 10000 and is not
 * scaled, to one global. Files without a window have global layers only. */
static realm_status complete_gemma3(hyperparameters *h, const gguf *g, realm_error *error)
{
    metadata m = metadata_of(h, g);
    int32_t window = 0;
    int found = 0;
    h->rope_base_local = 10000;
    h->rope_scale_local = 1;
    gemma_attention_scale(h, 62);
    realm_status status;
    if ((status = metadata_float(&m, "final_logit_softcapping", 0, 1e6, &h->logit_soft_cap, &found,
                                 error)) != REALM_OK ||
        (status = metadata_float(&m, "rope.freq_base_swa", 2, 1e12, &h->rope_base_local, &found,
                                 error)) != REALM_OK ||
        (status = metadata_int(&m, "attention.sliding_window", 0, MAX_CONTEXT, &window, &found,
                               error)) != REALM_OK)
        return status;
    return window > 0 ? read_windows(h, g, window, 6, error) : REALM_OK;
}

/* Mixture-of-experts files carry the same architecture name as dense ones. */
static realm_status refuse_experts(hyperparameters *h, const gguf *g, realm_error *error)
{
    metadata m = metadata_of(h, g);
    int32_t n_experts = 0;
    int found = 0;
    realm_status status = metadata_int(&m, "expert_count", 0, INT32_MAX, &n_experts, &found, error);
    if (status == REALM_OK && n_experts > 0)
        return realm_fail(error, REALM_UNSUPPORTED,
                          "'%s.expert_count' is %" PRId32 ": mixtures of experts are not supported",
                          m.prefix, n_experts);
    return status;
}

/* The 12B size of StableLM 2 adds the feed-forward to the attention's input. */
static realm_status refuse_parallel(hyperparameters *h, const gguf *g, realm_error *error)
{
    (void)h;
    int parallel = 0;
    realm_status status = gguf_get_bool(g, "stablelm.use_parallel_residual", &parallel, error);
    if (status == REALM_NOT_FOUND)
        status = REALM_OK;
    if (status == REALM_OK && parallel)
        return realm_fail(error, REALM_UNSUPPORTED,
                          "'stablelm.use_parallel_residual' is true, which is not supported");
    return status;
}

/* Sliding windows that `llama` (early Mistral) and `phi3` files may name are not applied: their
 * converters write them for models trained without them too, and llama.cpp ignores them for that
 * reason (its pull request 13676). */
// clang-format off
static const architecture architectures[] = {
    {.name = "llama", .norm = NORM_RMS, .rope = ROPE_NORMAL, .activation = ACTIVATION_SILU,
     .complete = refuse_experts},
    {.name = "qwen2", .norm = NORM_RMS, .rope = ROPE_NEOX, .activation = ACTIVATION_SILU,
     .qkv_bias = 1},
    {.name = "qwen3", .norm = NORM_RMS, .rope = ROPE_NEOX, .activation = ACTIVATION_SILU,
     .qk_norm = 1},
    {.name = "gemma", .norm = NORM_RMS, .rope = ROPE_NEOX, .activation = ACTIVATION_GELU_TANH,
     .scale_embedding = 1},
    {.name = "gemma2", .norm = NORM_RMS, .rope = ROPE_NEOX, .activation = ACTIVATION_GELU_TANH,
     .post_norms = 1, .scale_embedding = 1, .complete = complete_gemma2},
    {.name = "gemma3", .norm = NORM_RMS, .rope = ROPE_NEOX, .activation = ACTIVATION_GELU_TANH,
     .qk_norm = 1, .post_norms = 1, .scale_embedding = 1, .complete = complete_gemma3},
    {.name = "phi3", .norm = NORM_RMS, .rope = ROPE_NEOX, .activation = ACTIVATION_SILU,
     .gate_up_fused = 1, .complete = refuse_experts},
    {.name = "stablelm", .norm = NORM_LAYER, .rope = ROPE_NEOX, .activation = ACTIVATION_SILU,
     .norm_bias = 1, .complete = refuse_parallel},
};
// clang-format on

#define ARCHITECTURE_COUNT (sizeof architectures / sizeof architectures[0])

const architecture *architecture_find(const char *name, size_t size)
{
    for (size_t i = 0; i < ARCHITECTURE_COUNT; i++)
        if (strlen(architectures[i].name) == size && memcmp(architectures[i].name, name, size) == 0)
            return &architectures[i];
    return NULL;
}

const char *architecture_name_at(size_t index)
{
    return index < ARCHITECTURE_COUNT ? architectures[index].name : NULL;
}

/* ---- numbers all families share --------------------------------------------------------------- */

static realm_status find_architecture(hyperparameters *h, const gguf *g, realm_error *error)
{
    gguf_string name = {0};
    realm_status status = gguf_get_string(g, "general.architecture", &name, error);
    if (status == REALM_NOT_FOUND)
        return realm_fail(error, REALM_CORRUPT, "the model file has no 'general.architecture'");
    if (status != REALM_OK)
        return status;
    h->architecture = architecture_find(name.data, name.size);
    if (h->architecture != NULL)
        return REALM_OK;
    char known[256] = "";
    for (size_t i = 0; i < ARCHITECTURE_COUNT; i++) {
        strncat(known, i == 0 ? "" : ", ", sizeof known - strlen(known) - 1);
        strncat(known, architectures[i].name, sizeof known - strlen(known) - 1);
    }
    return realm_fail(error, REALM_UNSUPPORTED,
                      "'general.architecture' is '%.*s'; this build knows %s",
                      (int)(name.size < 64 ? name.size : 64), name.data, known);
}

/* The vocabulary is what the tokenizer lists; files without one have the embedding's rows. */
static realm_status read_vocabulary(hyperparameters *h, const gguf *g, realm_error *error)
{
    const gguf_value *tokens = gguf_find(g, "tokenizer.ggml.tokens");
    const gguf_tensor *embedding = gguf_find_tensor(g, "token_embd.weight");
    uint64_t count = 0;
    if (tokens != NULL && tokens->type == GGUF_ARRAY)
        count = tokens->array.count;
    else if (embedding != NULL)
        count = embedding->dims[1];
    if (count == 0 || count > MAX_VOCABULARY)
        return realm_fail(error, REALM_CORRUPT,
                          "'tokenizer.ggml.tokens' gives a vocabulary of %" PRIu64
                          " tokens, which is not in 1 to %d",
                          count, MAX_VOCABULARY);
    h->n_vocab = (int32_t)count;
    return REALM_OK;
}

static realm_status read_sizes(hyperparameters *h, const metadata *m, realm_error *error)
{
    realm_status status;
    if ((status = metadata_int(m, "block_count", 1, MODEL_MAX_LAYERS, &h->n_layers, NULL, error)) !=
            REALM_OK ||
        (status = metadata_int(m, "context_length", 1, MAX_CONTEXT, &h->n_context, NULL, error)) !=
            REALM_OK ||
        (status = metadata_int(m, "embedding_length", 1, MAX_EMBEDDING, &h->n_embd, NULL, error)) !=
            REALM_OK)
        return status;
    return metadata_ints(m, "feed_forward_length", 1, MAX_FEED_FORWARD, h->n_ff, h->n_layers, NULL,
                         error);
}

static realm_status read_head_counts(hyperparameters *h, const metadata *m, realm_error *error)
{
    int32_t heads[MODEL_MAX_LAYERS];
    int found = 0;
    realm_status status = metadata_ints(m, "attention.head_count", 1, MAX_HEADS, heads, h->n_layers,
                                        NULL, error);
    if (status != REALM_OK)
        return status;
    h->n_heads = heads[0];
    for (int32_t i = 0; i < h->n_layers; i++) {
        if (heads[i] != h->n_heads)
            return realm_fail(error, REALM_UNSUPPORTED,
                              "'%s.attention.head_count' differs between layers 0 and %" PRId32,
                              m->prefix, i);
        h->n_kv_heads[i] = heads[i];
    }
    status = metadata_ints(m, "attention.head_count_kv", 1, MAX_HEADS, h->n_kv_heads, h->n_layers,
                           &found, error);
    for (int32_t i = 0; i < h->n_layers && status == REALM_OK; i++)
        if (h->n_heads % h->n_kv_heads[i] != 0)
            status = realm_fail(error, REALM_CORRUPT,
                                "'%s.attention.head_count' (%" PRId32
                                ") is not a multiple of '%s.attention.head_count_kv' (%" PRId32
                                ") in layer %" PRId32,
                                m->prefix, h->n_heads, m->prefix, h->n_kv_heads[i], i);
    return status;
}

/* Heads share the embedding evenly unless the file gives their length itself. */
static realm_status read_head_dims(hyperparameters *h, const metadata *m, realm_error *error)
{
    int key_found = 0, value_found = 0, rot_found = 0;
    h->key_dim = h->value_dim = h->n_embd / h->n_heads;
    realm_status status;
    if ((status = metadata_int(m, "attention.key_length", 1, MAX_HEAD_DIM, &h->key_dim, &key_found,
                               error)) != REALM_OK ||
        (status = metadata_int(m, "attention.value_length", 1, MAX_HEAD_DIM, &h->value_dim,
                               &value_found, error)) != REALM_OK)
        return status;
    if ((!key_found || !value_found) && h->n_embd % h->n_heads != 0)
        return realm_fail(error, REALM_CORRUPT,
                          "'%s.embedding_length' (%" PRId32
                          ") is not a multiple of '%s.attention.head_count' (%" PRId32 ")",
                          m->prefix, h->n_embd, m->prefix, h->n_heads);
    int32_t dim = h->key_dim > h->value_dim ? h->key_dim : h->value_dim;
    if (dim > MAX_HEAD_DIM || dim > MAX_ATTENTION_WIDTH / h->n_heads)
        return realm_fail(error, REALM_CORRUPT,
                          "'%s.attention.head_count' (%" PRId32 ") makes heads of %" PRId32
                          " elements, more than this build's limits",
                          m->prefix, h->n_heads, dim);
    h->n_rot = h->key_dim;
    status = metadata_int(m, "rope.dimension_count", 2, h->key_dim, &h->n_rot, &rot_found, error);
    if (status == REALM_OK && h->n_rot % 2 != 0)
        return realm_fail(error, REALM_CORRUPT,
                          "'%s.rope.dimension_count' is %" PRId32 ", which is not even", m->prefix,
                          h->n_rot);
    return status;
}

static realm_status read_epsilon(hyperparameters *h, const metadata *m, realm_error *error)
{
    const char *suffix = h->architecture->norm == NORM_RMS ? "attention.layer_norm_rms_epsilon"
                                                           : "attention.layer_norm_epsilon";
    return metadata_float(m, suffix, 1e-20, 1, &h->norm_epsilon, NULL, error);
}

/* The scaling factor stands under its new key or, in files of 2023, under its old one; 0 means 1.
 * Whatever the scaling type is it multiplies frequencies, except for the type "none". */
static realm_status read_rope(hyperparameters *h, const metadata *m, realm_error *error)
{
    float factor = 0;
    int found = 0;
    char key[METADATA_KEY_SIZE];
    gguf_string type = {0};
    h->rope_base = 10000;
    realm_status status = metadata_float(m, "rope.freq_base", 2, 1e12, &h->rope_base, &found,
                                         error);
    if (status == REALM_OK)
        status = metadata_float(m, "rope.scaling.factor", 0, 1e6, &factor, &found, error);
    if (status == REALM_OK && !found)
        status = metadata_float(m, "rope.scale_linear", 0, 1e6, &factor, &found, error);
    if (status != REALM_OK)
        return status;
    if (factor > 0 && factor < 1e-3f)
        return realm_fail(error, REALM_CORRUPT, "'%s.rope.scaling.factor' is %g, below 0.001",
                          m->prefix, (double)factor);
    status = gguf_get_string(m->gguf, metadata_key(m, "rope.scaling.type", key), &type, error);
    if (status != REALM_OK && status != REALM_NOT_FOUND)
        return status;
    int none = type.size == 4 && memcmp(type.data, "none", 4) == 0;
    h->rope_scale_linear = factor == 0 || none ? 1.0f : 1.0f / factor;
    h->rope_base_local = h->rope_base;
    h->rope_scale_local = h->rope_scale_linear;
    return REALM_OK;
}

realm_status hyperparameters_read(hyperparameters *h, const gguf *g, realm_error *error)
{
    memset(h, 0, sizeof *h);
    realm_status status = find_architecture(h, g, error);
    if (status != REALM_OK)
        return status;
    metadata m = metadata_of(h, g);
    if ((status = read_sizes(h, &m, error)) != REALM_OK ||
        (status = read_vocabulary(h, g, error)) != REALM_OK ||
        (status = read_head_counts(h, &m, error)) != REALM_OK ||
        (status = read_head_dims(h, &m, error)) != REALM_OK ||
        (status = read_epsilon(h, &m, error)) != REALM_OK ||
        (status = read_rope(h, &m, error)) != REALM_OK)
        return status;
    h->attention_scale = (float)(1.0 / sqrt((double)h->key_dim));
    h->embedding_scale = h->architecture->scale_embedding ? sqrtf((float)h->n_embd) : 1.0f;
    h->residual_scale = 1;
    return h->architecture->complete == NULL ? REALM_OK : h->architecture->complete(h, g, error);
}
