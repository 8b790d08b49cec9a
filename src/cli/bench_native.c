/* cli/bench_native.c: prompts and generation as the engine's own loop does them.
 *
 * Lanes are sessions that are opened once, given the context that the test asks for, and set back
 * to it after each repetition, so that a long context is computed once. */
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "cli/bench.h"

void bench_gate_init(bench_gate *g, int count)
{
    pthread_mutex_init(&g->mutex, NULL);
    pthread_cond_init(&g->changed, NULL);
    g->open = count;
}

void bench_gate_pass(bench_gate *g)
{
    pthread_mutex_lock(&g->mutex);
    if (--g->open == 0)
        pthread_cond_signal(&g->changed);
    pthread_mutex_unlock(&g->mutex);
}

void bench_gate_wait(bench_gate *g)
{
    pthread_mutex_lock(&g->mutex);
    while (g->open)
        pthread_cond_wait(&g->changed, &g->mutex);
    pthread_mutex_unlock(&g->mutex);
    pthread_cond_destroy(&g->changed);
    pthread_mutex_destroy(&g->mutex);
}

static void work_done(work *w)
{
    bench_gate_pass(w->context);
}

/* Submits count works at once and waits for all; the first failure is the result. */
static realm_status run_works(engine *e, work *works, int count, realm_error *error)
{
    bench_gate g;
    bench_gate_init(&g, count);
    for (int i = 0; i < count; i++) {
        works[i].done = work_done;
        works[i].context = &g;
        engine_submit(e, &works[i]);
    }
    bench_gate_wait(&g);
    for (int i = 0; i < count; i++)
        if (works[i].status)
            return realm_fail(error, works[i].status, "%s", works[i].error.message);
    return REALM_OK;
}

void bench_fill_tokens(const bench *b, token_id *tokens, int64_t count, uint64_t seed)
{
    rng r;
    rng_init(&r, seed);
    uint64_t n_vocab = (uint64_t)model_hyperparameters(b->model)->n_vocab;
    for (int64_t i = 0; i < count; i++)
        tokens[i] = (token_id)(rng_next(&r) % n_vocab);
}

/* Feeds each lane n random tokens of its own; t, if not NULL, gets the time. */
static realm_status feed(bench *b, const bench_lanes *l, int64_t n, uint64_t seed, bench_timings *t,
                         realm_error *error)
{
    work works[BENCH_MAX_BATCH];
    memset(works, 0, sizeof works);
    size_t bytes = (size_t)(n * l->count) * sizeof(token_id);
    token_id *tokens = malloc(bytes);
    if (!tokens)
        return realm_fail_memory(error, bytes, "prompts");
    bench_fill_tokens(b, tokens, n * l->count, seed);
    for (int i = 0; i < l->count; i++)
        works[i] = (work){.kind = WORK_FEED,
                          .session = l->sessions[i],
                          .tokens = tokens + i * n,
                          .n_tokens = (int32_t)n};
    bench_moment start = bench_moment_now(b->engine);
    realm_status status = run_works(b->engine, works, l->count, error);
    if (t && !status)
        bench_timings_add(t, start, bench_moment_now(b->engine), 0);
    free(tokens);
    return status;
}

static realm_status set_back(const bench_lanes *l, int64_t length, realm_error *error)
{
    realm_status status = REALM_OK;
    for (int i = 0; i < l->count && !status; i++)
        status = session_truncate(l->sessions[i], (int32_t)length, error);
    return status;
}

/* With candidates, what the guests do for themselves (guest/programs/driver.c). */
sampler_options bench_native_sampler(const bench *b, uint64_t seed)
{
    sampler_options o = SAMPLER_OPTIONS_DEFAULT;
    o.temperature = (float)b->options.temperature;
    o.top_p = (float)b->options.top_p;
    o.seed = seed;
    if (b->options.candidates > 0) {
        o.temperature = 0.8f;
        o.top_p = 0.95f;
        o.top_k = (int32_t)b->options.candidates;
    }
    return o;
}

realm_status bench_lanes_open(bench *b, bench_lanes *l, int count, int64_t context,
                              realm_error *error)
{
    *l = (bench_lanes){.context = context};
    realm_status status = REALM_OK;
    while (l->count < count && !status) {
        session_options options = {.tenant = (uint32_t)l->count + 1,
                                   .priority = PRIORITY_NORMAL,
                                   .sampler = bench_native_sampler(b, (uint64_t)l->count)};
        status = session_open(&l->sessions[l->count], b->engine, &options, error);
        if (!status)
            l->count++;
    }
    if (!status && context > 0)
        status = feed(b, l, context, (uint64_t)context * 31 + (uint64_t)count, NULL, error);
    if (status)
        bench_lanes_close(l);
    return status;
}

void bench_lanes_close(bench_lanes *l)
{
    while (l->count > 0)
        session_close(l->sessions[--l->count]);
}

realm_status bench_native_prompt(bench *b, bench_lanes *l, int repetition, bench_timings *t,
                                 realm_error *error)
{
    uint64_t seed = ((uint64_t)repetition * 7919 + (uint64_t)l->context) * 257 + (uint64_t)l->count;
    realm_status status = feed(b, l, b->options.n_prompt, seed, t, error);
    return status ? status : set_back(l, l->context, error);
}

/* Generation begins where logits are, after a token that is fed here: the only one where there is no
 * context, the last of it where there is. One token more is chosen than is counted, because nothing is
 * computed after the last: so each that counts is one row through the model. */
realm_status bench_native_generation(bench *b, bench_lanes *l, int repetition, bench_timings *t,
                                     realm_error *error)
{
    work works[BENCH_MAX_BATCH];
    memset(works, 0, sizeof works);
    realm_status status = l->context > 0 ? set_back(l, l->context - 1, error) : REALM_OK;
    if (!status)
        status = feed(b, l, 1, (uint64_t)repetition, NULL, error);
    if (status)
        return status;
    for (int i = 0; i < l->count; i++)
        works[i] = (work){
            .kind = WORK_GENERATE,
            .session = l->sessions[i],
            .generate = {.max_tokens = (int32_t)b->options.n_generate + 1, .ignore_eos = 1}};
    bench_moment start = bench_moment_now(b->engine);
    status = run_works(b->engine, works, l->count, error);
    if (t && !status)
        bench_timings_add(t, start, bench_moment_now(b->engine), 0);
    return status ? status : set_back(l, l->context, error);
}
