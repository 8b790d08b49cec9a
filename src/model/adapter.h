/* model/adapter.h: LoRA adapters (arXiv 2106.09685): small additions to a shared model's matrices.
 *
 * An adapter belongs to one tenant and is applied to that tenant's rows of a batch only: out +=
 * scale * B (A x), after the product W x that all rows share. Rows without an adapter are not
 * touched, so they come out as if no adapter were in the batch, to the bit. Files are GGUF as
 * llama.cpp writes and reads them: general.type "adapter", adapter.type "lora", and for a matrix
 * NAME the tensors NAME.lora_a [n_cols, rank] and NAME.lora_b [rank, n_rows].
 *
 * Opened and closed by the loading thread while no step of the model's backend runs; closed before
 * the model. Constant between, except that model_forward uses the model's scratch for it. */
#ifndef REALM_MODEL_ADAPTER_H
#define REALM_MODEL_ADAPTER_H

#include "model/model.h"
#include "model/weights.h"

#define ADAPTER_MAX_RANK 1024

/*   REALM_NOT_FOUND, REALM_IO  as gguf_open
 *   REALM_CORRUPT      a key or tensor is missing, absurd or of the wrong shape; named
 *   REALM_INVALID      the file is no LoRA adapter, or one of another model
 *   REALM_UNSUPPORTED  it changes what Realm does not adapt (norms, expert matrices), by name
 *   REALM_NO_MEMORY    host or device is full */
realm_status adapter_open(adapter **out, model *m, const char *path, realm_error *error);
void adapter_close(adapter *a);

/* ---- for model_forward ------------------------------------------------------------------------ */

/* Neighbouring rows of a tensor that use the same adapter. */
typedef struct adapter_group {
    int32_t first, count;
    const adapter *adapter;
} adapter_group;

/* Writes the groups among the n_rows given step rows (NULL: rows 0 .. n_rows-1) and returns how
 * many; rows without an adapter are in none. groups has room for n_rows. */
int32_t adapter_groups(adapter_group *groups, const forward_input *input, const int32_t *rows,
                       int32_t n_rows);

/* out rows of each group += scale * B (A x rows of it), where the adapter has that matrix. */
void adapter_apply(const adapter_group *groups, int32_t n_groups, int32_t layer, matrix_slot slot,
                   tensor out, tensor x);
/* The same for the head: logits from normed hidden states. */
void adapter_apply_output(const adapter_group *groups, int32_t n_groups, tensor out, tensor x);
/* The same for embeddings, whose x are token ids; scale is the embedding's own. */
void adapter_apply_embedding(const adapter_group *groups, int32_t n_groups, tensor out,
                             const token_id *tokens, float scale);

#endif
