/* engine/generate.c: see generate.h. */
#include "engine/generate.h"

#include <string.h>

#include "base/utf8.h"
#include "engine/engine_internal.h"
#include "engine/stops.h"

#define MAX_STOPS        64
#define MAX_STOP_BYTES   1024
#define MAX_TOP_LOGPROBS 20
_Static_assert(MAX_TOP_LOGPROBS <= TOP_COLUMNS, "a digest has all of them");
/* What can be held back: a stop string, a token's text and half a character. */
#define MAX_HELD_BYTES (1u << 20)

static realm_status check_stops(const generate_options *o, realm_error *error)
{
    if (o->n_stops < 0 || o->n_stops > MAX_STOPS)
        return realm_fail(error, REALM_INVALID, "%" PRId32 " stop strings, not 0 to %d", o->n_stops,
                          MAX_STOPS);
    for (int32_t i = 0; i < o->n_stops; i++) {
        size_t size = strnlen(o->stops[i], MAX_STOP_BYTES + 1);
        if (size < 1 || size > MAX_STOP_BYTES)
            return realm_fail(error, REALM_INVALID,
                              "stop string %" PRId32 " must have 1 to %d bytes", i, MAX_STOP_BYTES);
        if (!utf8_valid((const uint8_t *)o->stops[i], size))
            return realm_fail(error, REALM_INVALID, "stop string %" PRId32 " is not UTF-8", i);
    }
    return REALM_OK;
}

realm_status generate_check(const generate_options *o, realm_error *error)
{
    if (o->max_tokens < 1)
        return realm_fail(error, REALM_INVALID, "max_tokens is %" PRId32 ", it must be positive",
                          o->max_tokens);
    if (o->wake_every < 0)
        return realm_fail(error, REALM_INVALID,
                          "wake_every is %" PRId32 ", it must not be negative", o->wake_every);
    if (o->n_top_logprobs < 0 || o->n_top_logprobs > MAX_TOP_LOGPROBS)
        return realm_fail(error, REALM_INVALID, "%" PRId32 " alternatives, not 0 to %d",
                          o->n_top_logprobs, MAX_TOP_LOGPROBS);
    return check_stops(o, error);
}

void generate_begin(engine *e, session *s, work *w)
{
    generate_state *g = &s->generate;
    if (!g->woken) {
        buffer_release(&g->held);
        buffer_init(&g->held, MAX_HELD_BYTES);
        e->device.table->decoder_init(&e->device, &g->decoder);
    }
    if (!g->woken || w->finish != FINISH_WAKE)
        g->n_tokens = 0;
    g->woken = g->wake_due = 0;
    w->finish = FINISH_NONE;
}

void generate_release(generate_state *g)
{
    buffer_release(&g->held);
    *g = (generate_state){0};
}

/* Hands out the first size bytes of what is held; returns 1 if the receiver wants no more. */
static int emit(session *s, work *w, generated_token *token, size_t size)
{
    buffer *held = &s->generate.held;
    int stop = 0;
    token->text = size ? held->data : "";
    token->text_size = size;
    if (w->on_token && (token->id >= 0 || size > 0))
        stop = w->on_token(w, token);
    buffer_drop_front(held, size);
    return stop;
}

static int32_t top_of(const session *s, int32_t n_vocab, int32_t k, token_logit *top)
{
    k = k < n_vocab ? k : n_vocab;
    if (!s->digest.tops)
        return logits_top(s->logits, n_vocab, k, top);
    memcpy(top, s->digest.tops, (size_t)k * sizeof *top); /* k <= MAX_TOP_LOGPROBS */
    return k;
}

/* Log-probabilities of the model itself: before temperature, penalties, bias and grammar. */
static void fill_logprobs(session *s, const work *w, int32_t n_vocab, generated_token *token,
                          token_logit *top)
{
    if (!w->generate.want_logprobs)
        return;
    const float *logits = session_logits(s);
    float sum = logits_log_sum_exp(logits, n_vocab, &s->digest);
    token->logprob = logits[token->id] - sum;
    token->n_top = top_of(s, n_vocab, w->generate.n_top_logprobs, top);
    token->top = top;
    for (int32_t i = 0; i < token->n_top; i++)
        top[i].value -= sum;
}

/* The token that was chosen joins neither the sequence nor the text: it is the model's word that it is done, or
 * one more than the submitter has. */
static realm_status end_before(engine *e, session *s, work *w, finish_reason finish)
{
    generated_token none = {.id = -1};
    realm_status status = e->device.table->decoder_finish(&e->device, &s->generate.decoder,
                                                          &s->generate.held);
    if (status != REALM_OK)
        return realm_fail(&w->error, status, "the text that is held back could not be kept");
    emit(s, w, &none, s->generate.held.size);
    w->finish = finish;
    return REALM_OK;
}

/* Takes the token's text in and decides what may go out; *size is how much. */
static realm_status take_text(engine *e, session *s, work *w, token_id id, size_t *size)
{
    generate_state *g = &s->generate;
    realm_status status = e->device.table->decoder_add(&e->device, &g->decoder, id, &g->held);
    if (status == REALM_OK && w->finish != FINISH_NONE)
        status = e->device.table->decoder_finish(&e->device, &g->decoder, &g->held);
    if (status != REALM_OK)
        return realm_fail(&w->error, status, "the text that is held back could not be kept");
    stops_result found = stops_scan(w->generate.stops, w->generate.n_stops, g->held.data,
                                    g->held.size);
    if (found.found)
        w->finish = FINISH_STOP;
    *size = found.found || w->finish == FINISH_NONE ? found.emit : g->held.size;
    return REALM_OK;
}

/* The token is in the sequence: is it the last one? */
static void decide_finish(const session *s, work *w)
{
    const grammar *g = sampler_grammar(s->sampler);
    if (g && grammar_is_stopped(g))
        w->finish = FINISH_STOP;
    else if (s->generate.n_tokens >= w->generate.max_tokens || s->length >= s->n_context)
        w->finish = FINISH_LENGTH;
}

static realm_status append(session *s, work *w, token_id id)
{
    realm_status status = session_reserve(s, s->length + 1, &w->error);
    if (status == REALM_OK)
        status = sampler_accept(s->sampler, id, &w->error);
    if (status != REALM_OK)
        return status;
    session_append(s, &id, 1);
    s->mark = s->length;
    s->mark_logits = 0;
    s->generate.n_tokens++;
    w->n_generated++;
    return REALM_OK;
}

realm_status generate_next(engine *e, session *s, work *w, int *finished)
{
    generate_state *g = &s->generate;
    token_logit top[MAX_TOP_LOGPROBS];
    generated_token token = {0};
    size_t size = 0;
    if (g->wake_due) {
        g->woken = *finished = 1;
        w->finish = FINISH_WAKE;
        return REALM_OK;
    }
    realm_status status = sampler_choose(s->sampler, session_logits_here(s), &s->digest, &token.id,
                                         &w->error);
    if (status != REALM_OK)
        return status;
    if (!w->generate.ignore_eos && e->device.table->ends_generation(&e->device, token.id)) {
        *finished = 1;
        return end_before(e, s, w, FINISH_STOP);
    }
    if (w->may_append && !w->may_append(w)) {
        *finished = 1;
        return end_before(e, s, w, FINISH_LENGTH);
    }
    fill_logprobs(s, w, e->device.n_vocab, &token, top);
    status = append(s, w, token.id);
    if (status != REALM_OK)
        return status;
    decide_finish(s, w);
    status = take_text(e, s, w, token.id, &size);
    if (status != REALM_OK)
        return status;
    if (emit(s, w, &token, size))
        w->finish = FINISH_STOP;
    *finished = w->finish != FINISH_NONE;
    g->wake_due = w->generate.wake_every > 0 && w->n_generated >= w->generate.wake_every;
    return REALM_OK;
}
