/* engine/embed.c: see embed.h. Sums are double and in order of position, so a vector does not
 * depend on how its tokens were cut into steps. */
#include "engine/embed.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/engine_internal.h"

realm_status embed_begin(engine *e, session *s, work *w)
{
    size_t bytes = (size_t)e->device.n_embd * sizeof *s->pooled;
    if (w->n_tokens < 1 || !w->embedding)
        return realm_fail(&w->error, REALM_INVALID, "an embedding needs tokens and a place");
    realm_status status = batch_reserve_hidden(&e->batch, e->device.n_embd, &w->error);
    if (status == REALM_OK && !s->pooled && !(s->pooled = malloc(bytes)))
        status = realm_fail_memory(&w->error, bytes, "an embedding");
    if (status == REALM_OK)
        status = work_append(e, s, w, w->tokens, w->n_tokens);
    s->n_pooled = 0;
    s->item.no_logits = s->item.uncached = 1;
    return status;
}

int embed_wants(const session *s, int32_t position)
{
    switch (s->work->pooling) {
    case POOLING_FIRST: return position == s->mark;
    case POOLING_LAST: return position == s->length - 1;
    case POOLING_MEAN: break;
    }
    return position >= s->mark;
}

void embed_add(session *s, int32_t position, const float *state, int32_t n_embd)
{
    int32_t first = s->work->pooling == POOLING_LAST ? s->length - 1 : s->mark;
    if (position == first) { /* also when all is computed again after a preemption */
        memset(s->pooled, 0, (size_t)n_embd * sizeof *s->pooled);
        s->n_pooled = 0;
    }
    for (int32_t i = 0; i < n_embd; i++)
        s->pooled[i] += (double)state[i];
    s->n_pooled++;
}

realm_status embed_next(engine *e, session *s, work *w, int *finished)
{
    int32_t n_embd = e->device.n_embd;
    double scale = 1.0 / s->n_pooled, square = 0;
    for (int32_t i = 0; i < n_embd; i++)
        square += s->pooled[i] * s->pooled[i];
    if (w->normalize)
        scale = square > 0 ? 1.0 / sqrt(square) : 0;
    for (int32_t i = 0; i < n_embd; i++)
        w->embedding[i] = (float)(s->pooled[i] * scale);
    *finished = 1;
    return REALM_OK;
}
