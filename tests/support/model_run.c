/* tests/support/model_run.c: see model_run.h. Page tables are made so that the pages of the
 * sequences interleave and none begins at 0: a page id taken for a position shows. */
#include "support/model_run.h"

#include <stdio.h>
#include <stdlib.h>

static void must(realm_status status, const realm_error *error)
{
    if (status == REALM_OK)
        return;
    fprintf(stderr, "model_run: %s\n", error->message);
    abort();
}

static void *take(size_t count, size_t size)
{
    void *p = calloc(count == 0 ? 1 : count, size);
    if (p == NULL)
        abort();
    return p;
}

void model_run_open(model_run *r, model *m, int32_t context)
{
    realm_error error;
    kv_shape shape = {.type = DTYPE_F16};
    int32_t n_pages = (context + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
    *r = (model_run){.model = m, .context = n_pages * KV_PAGE_TOKENS};
    model_kv_shape(m, &shape);
    shape.n_pages = n_pages * MODEL_RUN_SEQUENCES;
    backend *b = model_backend(m);
    must(b->table->kv_open(b, &r->kv, &shape, &error), &error);
    for (int32_t s = 0; s < MODEL_RUN_SEQUENCES; s++) {
        r->pages[s] = take((size_t)n_pages, sizeof *r->pages[s]);
        for (int32_t i = 0; i < n_pages; i++)
            r->pages[s][i] = shape.n_pages - 1 - (i * MODEL_RUN_SEQUENCES + s);
    }
}

void model_run_close(model_run *r)
{
    backend *b = model_backend(r->model);
    b->table->kv_close(b, r->kv);
    for (int32_t s = 0; s < MODEL_RUN_SEQUENCES; s++)
        free(r->pages[s]);
}

/* Arrays of one step, as forward_input wants them. */
typedef struct step {
    int32_t n_tokens, n_outputs;
    int32_t *positions, *sequences, *output_rows;
    token_id *tokens;
    float **results;
} step;

static void add_part(step *s, model_run *r, const model_run_part *part, int32_t index)
{
    for (int32_t i = 0; i < part->count; i++) {
        int32_t row = s->n_tokens++;
        s->tokens[row] = part->tokens[i];
        s->positions[row] = r->length[part->sequence]++;
        s->sequences[row] = index;
        if (i >= part->count - part->n_outputs)
            s->output_rows[s->n_outputs++] = row;
    }
    if (r->length[part->sequence] > r->context)
        abort();
}

void model_run_step(model_run *r, const model_run_part *parts, int32_t n_parts, int hidden,
                    float *out)
{
    const hyperparameters *h = model_hyperparameters(r->model);
    const int32_t *tables[MODEL_RUN_SEQUENCES];
    adapter *adapters[MODEL_RUN_SEQUENCES];
    size_t n = 0;
    for (int32_t i = 0; i < n_parts; i++)
        n += (size_t)parts[i].count;
    step s = {.positions = take(n, sizeof(int32_t)),
              .sequences = take(n, sizeof(int32_t)),
              .output_rows = take(n, sizeof(int32_t)),
              .tokens = take(n, sizeof(token_id)),
              .results = take(n, sizeof(float *))};
    int any_adapter = 0;
    for (int32_t i = 0; i < n_parts; i++) {
        add_part(&s, r, &parts[i], i);
        tables[i] = r->pages[parts[i].sequence];
        adapters[i] = parts[i].adapter;
        any_adapter |= parts[i].adapter != NULL;
    }
    for (int32_t i = 0; i < s.n_outputs; i++)
        s.results[i] = out + (size_t)i * (size_t)(hidden ? h->n_embd : h->n_vocab);
    const forward_input input = {.rows = {.n_tokens = s.n_tokens,
                                          .positions = s.positions,
                                          .sequences = s.sequences,
                                          .n_sequences = n_parts,
                                          .page_tables = tables},
                                 .tokens = s.tokens,
                                 .adapters = any_adapter ? adapters : NULL,
                                 .kv = r->kv,
                                 .output_rows = s.output_rows,
                                 .n_outputs = s.n_outputs,
                                 .hidden = hidden};
    model_forward(r->model, &input, s.results);
    free(s.positions);
    free(s.sequences);
    free(s.output_rows);
    free(s.tokens);
    free(s.results);
}

void model_run_prompt(model_run *r, const token_id *tokens, int32_t n, int32_t chunk, adapter *with,
                      float *out)
{
    size_t n_vocab = (size_t)model_hyperparameters(r->model)->n_vocab;
    r->length[0] = 0;
    for (int32_t first = 0; first < n; first += chunk) {
        int32_t count = n - first < chunk ? n - first : chunk;
        const model_run_part part = {0, tokens + first, count, with, count};
        model_run_step(r, &part, 1, 0, out + (size_t)first * n_vocab);
    }
}
