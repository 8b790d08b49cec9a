/* model/model.h: weights, tokenizer and hyperparameters of one GGUF model on one backend, and the
 * walk through its layers.
 *
 * A model is opened once and then constant but for its scratch tensors, which the engine thread
 * alone uses through model_forward. It owns its gguf, tokenizer and weights; it borrows the
 * backend. What differs between architectures is a row of a table in architectures.c; the walk is
 * one function in transformer.c. */
#ifndef REALM_MODEL_MODEL_H
#define REALM_MODEL_MODEL_H

#include "compute/backend.h"
#include "formats/gguf.h"
#include "model/architecture.h"
#include "text/tokenizer.h"

typedef struct model model;
typedef struct adapter adapter; /* a LoRA adapter, see adapter.h */

typedef struct model_options {
    const char *name;          /* what tenants call it; copied; NULL: from general.name or path */
    int32_t max_batch_tokens;  /* rows of scratch: the most tokens one forward may have; 0: 512 */
    int32_t max_batch_outputs; /* the most rows whose logits one forward may give; 0: 64 */
    void (*progress)(void *context, double fraction); /* may be NULL; called while loading */
    void *progress_context;
    const char *weight_folder; /* where packed weights are kept (weight_folder.h), made if it is not
                                  there; NULL: nowhere */
    int map_weights;        /* 1: kept weights are mapped, not read: one copy for all processes */
    int32_t context_tokens; /* the longest sequence that will be served; longrope files (phi3) have
                               other rotary factors past their original context. 0: n_context */
} model_options;

realm_status model_open(model **out, backend *b, const char *path, const model_options *options,
                        realm_error *error);
void model_close(model *m);

const char *model_name(const model *m);
const gguf *model_gguf(const model *m);
const tokenizer *model_tokenizer(const model *m);
const hyperparameters *model_hyperparameters(const model *m);
backend *model_backend(const model *m);
/* The most rows one forward may have, and the most whose logits it may give. */
int32_t model_max_tokens(const model *m);
int32_t model_max_outputs(const model *m);

/* The shape of this model's pages, for backend kv_open (n_pages and type are the caller's). */
void model_kv_shape(const model *m, kv_shape *shape);
/* Bytes one page takes over all layers with keys and values of that type. */
uint64_t model_kv_page_bytes(const model *m, dtype type);

typedef struct forward_input {
    step_rows rows;
    const token_id *tokens;   /* [rows.n_tokens] */
    adapter *const *adapters; /* [rows.n_sequences], NULLs for none; or NULL: none at all */
    kv_store *kv;
    const int32_t *output_rows; /* [n_outputs] rows whose logits (or hidden states) are wanted,
                                   ascending */
    int32_t n_outputs;
    int hidden;          /* 1: final normed hidden states [n_embd] instead of logits */
    float *const *peaks; /* [n_outputs], each [peaks_count(n_vocab)]: where the peaks of logits go
                            (compute/backend.h), and behind them what else is found if
                            model_gives_tops says so. NULL: not wanted, or model_gives_peaks says no */
    const row_wish *wishes; /* [n_outputs] what else is wanted of them; NULL: nothing */
} forward_input;

/* Whether the backend finds peaks of logits on the way. */
int model_gives_peaks(const model *m);
/* And the largest of a row, and sums over it (backend.h, gives_tops), with them. */
int model_gives_tops(const model *m);
/* And leaves rows where they are, if that is wished, for model_read_row. */
int model_leaves_rows(const model *m);

/* One step over all layers. On return results[i] (host memory) holds the logits [n_vocab] or the
 * hidden state [n_embd] of output_rows[i]. Engine thread. Cannot fail: sizes were checked when
 * the model was opened; larger ones assert. */
void model_forward(model *m, const forward_input *input, float *const *results);
/* Logits of output i of the last step that had outputs and gave logits, which stayed. Any thread, one at a time, but
 * not while such a step runs. */
void model_read_row(const model *m, int32_t i, float *to);

/* ---- for guests that walk the network themselves ---------------------------------------------- */

/* The weight by its GGUF name ("blk.3.attn_q.weight"), or NULL. Parts of a fused tensor have the
 * names they would have alone (phi3: attn_q, attn_k, attn_v, ffn_gate, ffn_up); where embeddings
 * are tied there is no "output.weight". Borrowed. */
const weight *model_weight(const model *m, const char *name);
/* The rope of a layer (gemma3 has two kinds). Borrowed. */
const rope *model_rope(const model *m, int32_t layer);

#endif
