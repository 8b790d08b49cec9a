/* engine/batch.c: see batch.h. */
#include <assert.h>
#include <stdlib.h>

#include "engine/embed.h"
#include "engine/engine_internal.h"

realm_status batch_open(batch *b, int32_t capacity, realm_error *error)
{
    size_t n = (size_t)capacity;
    *b = (batch){.capacity = capacity};
    b->positions = calloc(n, sizeof *b->positions);
    b->sequences = calloc(n, sizeof *b->sequences);
    b->output_rows = calloc(n, sizeof *b->output_rows);
    b->tokens = calloc(n, sizeof *b->tokens);
    b->page_tables = calloc(n, sizeof *b->page_tables);
    b->adapters = calloc(n, sizeof *b->adapters);
    b->results = calloc(n, sizeof *b->results);
    b->peaks = calloc(n, sizeof *b->peaks);
    b->wishes = calloc(n, sizeof *b->wishes);
    b->sessions = calloc(n, sizeof *b->sessions);
    if (b->positions && b->sequences && b->output_rows && b->tokens && b->page_tables &&
        b->adapters && b->results && b->peaks && b->wishes && b->sessions)
        return REALM_OK;
    batch_close(b);
    return realm_fail_memory(error, n * 72, "a batch");
}

void batch_close(batch *b)
{
    free(b->positions);
    free(b->sequences);
    free(b->output_rows);
    free(b->tokens);
    free(b->page_tables);
    free(b->adapters);
    free(b->results);
    free(b->peaks);
    free(b->wishes);
    free(b->sessions);
    free(b->hidden);
    *b = (batch){0};
}

realm_status batch_reserve_hidden(batch *b, int32_t n_embd, realm_error *error)
{
    size_t bytes = (size_t)b->capacity * (size_t)n_embd * sizeof(float);
    if (b->hidden)
        return REALM_OK;
    b->hidden = malloc(bytes);
    return b->hidden ? REALM_OK : realm_fail_memory(error, bytes, "hidden states");
}

static int32_t add_output(batch *b, int32_t row, float *result)
{
    int32_t i = b->input.n_outputs++;
    b->output_rows[i] = row;
    b->results[i] = result;
    return i;
}

static void add_logits(batch *b, int32_t row, session *s)
{
    int32_t i = add_output(b, row, s->logits);
    b->peaks[i] = s->peaks;
    if (s->peaks)
        b->input.peaks = b->peaks;
    b->wishes[i] = session_wish(s);
    s->digest.scale = b->wishes[i].scale;
    if (s->digest.tops)
        b->input.wishes = b->wishes;
}

static void add_rows(batch *b, const sched_pick *pick, int hidden, int32_t n_embd)
{
    session *s = QUEUE_OWNER(pick->item, session, item);
    int32_t sequence = b->input.rows.n_sequences++;
    b->page_tables[sequence] = s->item.table.pages;
    b->adapters[sequence] = s->adapter;
    b->sessions[sequence] = s;
    if (s->adapter)
        b->input.adapters = b->adapters;
    for (int32_t i = 0; i < pick->n_rows; i++) {
        int32_t row = b->input.rows.n_tokens++;
        int32_t position = s->item.computed + i;
        b->tokens[row] = s->tokens[position];
        b->positions[row] = position;
        b->sequences[row] = sequence;
        if (hidden && embed_wants(s, position))
            add_output(b, row, b->hidden + (size_t)b->input.n_outputs * (size_t)n_embd);
        else if (!hidden && position == s->length - 1)
            add_logits(b, row, s);
    }
}

int batch_build(batch *b, const sched_plan *plan, int hidden, int32_t n_embd)
{
    b->input = (forward_input){.hidden = hidden};
    for (int32_t i = 0; i < plan->n_picks; i++)
        if (plan->picks[i].item->no_logits == (unsigned)hidden)
            add_rows(b, &plan->picks[i], hidden, n_embd);
    assert(b->input.rows.n_tokens <= b->capacity);
    b->input.rows.positions = b->positions;
    b->input.rows.sequences = b->sequences;
    b->input.rows.page_tables = b->page_tables;
    b->input.tokens = b->tokens;
    b->input.output_rows = b->output_rows;
    return b->input.rows.n_tokens > 0;
}
