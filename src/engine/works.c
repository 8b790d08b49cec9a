/* engine/works.c: what each kind of work does, a row of the table each. Engine thread. */
#include "engine/compute.h"
#include "engine/embed.h"
#include "engine/engine_internal.h"

realm_status work_check_tokens(const engine *e, const session *s, work *w)
{
    if (w->n_tokens < 0 || (w->n_tokens > 0 && !w->tokens))
        return realm_fail(&w->error, REALM_INVALID, "%" PRId32 " tokens", w->n_tokens);
    if (w->n_tokens > s->n_context - s->length)
        return realm_fail(&w->error, REALM_CONTEXT_FULL,
                          "%" PRId32 " tokens after %" PRId32 " pass the context of %" PRId32,
                          w->n_tokens, s->length, s->n_context);
    for (int32_t i = 0; i < w->n_tokens; i++)
        if (w->tokens[i] < 0 || w->tokens[i] >= e->device.n_vocab)
            return realm_fail(&w->error, REALM_INVALID,
                              "token %" PRId32 " at %" PRId32
                              " is not in the vocabulary of %" PRId32,
                              w->tokens[i], i, e->device.n_vocab);
    return REALM_OK;
}

realm_status work_append(engine *e, session *s, work *w, const token_id *tokens, int32_t count)
{
    int32_t limit = scheduler_page_limit(e->scheduler, s->item.tenant);
    if (kv_pages_for(s->length + count) > limit)
        return realm_fail(&w->error, REALM_QUOTA,
                          "%" PRId32 " tokens need more than the %" PRId32 " pages allowed",
                          s->length + count, limit);
    realm_status status = session_reserve(s, s->length + count, &w->error);
    if (status == REALM_OK)
        session_append(s, tokens, count);
    return status;
}

/* ---- feed -------------------------------------------------------------------------------------- */

static realm_status feed_begin(engine *e, session *s, work *w)
{
    realm_status status = work_check_tokens(e, s, w);
    return status == REALM_OK && w->n_tokens > 0 ? work_append(e, s, w, w->tokens, w->n_tokens)
                                                 : status;
}

static realm_status feed_next(engine *e, session *s, work *w, int *finished)
{
    (void)e;
    sampler_see(s->sampler, w->tokens, w->n_tokens);
    w->n_cached = s->item.spared < w->n_tokens ? s->item.spared : w->n_tokens;
    *finished = 1;
    return REALM_OK;
}

/* ---- step -------------------------------------------------------------------------------------- */

enum { STEP_SAMPLE, STEP_COMPUTED };

static realm_status step_append(engine *e, session *s, work *w)
{
    work one = {.tokens = &w->token, .n_tokens = 1};
    realm_status status = work_check_tokens(e, s, &one);
    if (status == REALM_OK)
        status = work_append(e, s, &one, one.tokens, 1);
    if (status != REALM_OK) {
        w->error = one.error;
        return status;
    }
    w->progress = STEP_COMPUTED;
    return sampler_accept(s->sampler, w->token, &w->error);
}

static realm_status step_begin(engine *e, session *s, work *w)
{
    w->progress = STEP_SAMPLE;
    return w->token == -1 ? REALM_OK : step_append(e, s, w);
}

static realm_status step_next(engine *e, session *s, work *w, int *finished)
{
    *finished = w->progress == STEP_COMPUTED;
    if (*finished)
        return REALM_OK;
    realm_status status = sampler_choose(s->sampler, session_logits_here(s), &s->digest, &w->token,
                                         &w->error);
    return status == REALM_OK ? step_append(e, s, w) : status;
}

/* ---- generate ---------------------------------------------------------------------------------- */

static realm_status begin_generate(engine *e, session *s, work *w)
{
    realm_status status = generate_check(&w->generate, &w->error);
    if (status != REALM_OK)
        return status;
    if (s->length >= s->n_context)
        return realm_fail(&w->error, REALM_CONTEXT_FULL, "the context of %" PRId32 " is full",
                          s->n_context);
    generate_begin(e, s, w);
    return REALM_OK;
}

static realm_status next_of_generate(engine *e, session *s, work *w, int *finished)
{
    int32_t limit = scheduler_page_limit(e->scheduler, s->item.tenant);
    if (!s->generate.wake_due && kv_pages_for(s->length + 1) > limit)
        return realm_fail(&w->error, REALM_QUOTA, "the tenant's %" PRId32 " pages are full", limit);
    return generate_next(e, s, w, finished);
}

/* ---- embed ------------------------------------------------------------------------------------- */

static realm_status begin_embed(engine *e, session *s, work *w)
{
    realm_status status = work_check_tokens(e, s, w);
    return status == REALM_OK ? embed_begin(e, s, w) : status;
}

/* ---- compute ----------------------------------------------------------------------------------- */

static realm_status begin_compute(engine *e, session *s, work *w)
{
    (void)e, (void)s, (void)w;
    return REALM_OK;
}

static realm_status next_of_compute(engine *e, session *s, work *w, int *finished)
{
    if (s->item.active) /* earlier tokens had to be computed first */
        scheduler_rest(e->scheduler, &s->item);
    *finished = 1;
    return compute_run(e, s, w);
}

const work_table *work_table_of(work_kind kind)
{
    static const work_table tables[] = {
        [WORK_FEED] = {feed_begin, feed_next, 1},
        [WORK_STEP] = {step_begin, step_next, 1},
        [WORK_GENERATE] = {begin_generate, next_of_generate, 1},
        [WORK_EMBED] = {begin_embed, embed_next, 0},
        [WORK_COMPUTE] = {begin_compute, next_of_compute, 0},
    };
    return (size_t)kind < sizeof tables / sizeof *tables ? &tables[kind] : NULL;
}
