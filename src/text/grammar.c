/* text/grammar.c: see grammar.h. llguidance, in deps/, does the work; this file gives it the
 * vocabulary and turns its answers into ours. */
#include "text/grammar.h"

#include <realm_deps.h>
#include <stdlib.h>
#include <string.h>

#include "text/family.h"

/* llguidance refuses a vocabulary that has a longer token. Nothing is lost without such a token: what
 * it spells can be spelt by shorter ones. */
#define MAX_TOKEN_BYTES 1000

struct grammar {
    realm_deps_matcher *matcher;
    size_t mask_words;
};

/* Takes reason. The numbers of realm_deps_result are realm_status's. */
static realm_status fail_with(realm_error *error, int result, char *reason)
{
    realm_fail(error, (realm_status)result, "%s", reason ? reason : "the grammar failed");
    realm_deps_string_free(reason);
    return (realm_status)result;
}

/* ---- a vocabulary, as llguidance wants it ---- */

typedef struct listing {
    uint8_t *bytes;
    uint32_t *sizes;  /* [count] */
    uint8_t *special; /* [count] */
    uint32_t *ends;   /* [end_count] */
    size_t end_count;
} listing;

static size_t listed_size(const tokenizer *t, token_id id)
{
    size_t size;
    token_kind kind = tokenizer_kind(t, id);
    tokenizer_piece(t, id, 1, &size);
    return kind == TOKEN_UNUSED || kind == TOKEN_UNKNOWN || size > MAX_TOKEN_BYTES ? 0 : size;
}

static int listing_take(listing *l, const tokenizer *t)
{
    size_t total = 1; /* so that no vocabulary asks for nothing */
    for (size_t i = 0; i < t->count; i++)
        total += listed_size(t, (token_id)i);
    l->bytes = malloc(total);
    l->sizes = calloc(t->count, sizeof *l->sizes);
    l->special = calloc(t->count, 1);
    l->ends = calloc(t->count, sizeof *l->ends);
    return l->bytes && l->sizes && l->special && l->ends;
}

static void listing_give(listing *l)
{
    free(l->bytes);
    free(l->sizes);
    free(l->special);
    free(l->ends);
}

static void listing_fill(listing *l, const tokenizer *t)
{
    size_t at = 0;
    for (size_t i = 0; i < t->count; i++) {
        token_id id = (token_id)i;
        size_t piece_size, size = listed_size(t, id);
        const char *piece = tokenizer_piece(t, id, 1, &piece_size);
        memcpy(l->bytes + at, piece, size);
        at += size;
        l->sizes[i] = (uint32_t)size;
        l->special[i] = tokenizer_kind(t, id) == TOKEN_CONTROL;
        if (tokenizer_ends_generation(t, id))
            l->ends[l->end_count++] = (uint32_t)i;
    }
}

static realm_status open_env(realm_deps_grammar_env **out, const tokenizer *t, realm_error *error)
{
    listing l = {0};
    realm_status status;
    if (!listing_take(&l, t)) {
        status = realm_fail_memory(error, t->count * 16, "a grammar's vocabulary");
        goto out;
    }
    listing_fill(&l, t);
    if (l.end_count == 0) {
        status = realm_fail(error, REALM_UNSUPPORTED,
                            "this vocabulary has no token that ends a sequence");
        goto out;
    }
    char *reason = NULL;
    int result = realm_deps_grammar_env_open(out, l.bytes, l.sizes, l.special, (uint32_t)t->count,
                                             l.ends, l.end_count, &reason);
    status = result ? fail_with(error, result, reason) : REALM_OK;
out:
    listing_give(&l);
    return status;
}

static void close_env(void *env)
{
    realm_deps_grammar_env_close(env);
}

/* The tokenizer's env, which the first caller makes while the others wait. */
static realm_status env_of(realm_deps_grammar_env **out, const tokenizer *t, realm_error *error)
{
    tokenizer *owner = (tokenizer *)t; /* constant but for what this lock guards */
    realm_deps_grammar_env *env = NULL;
    realm_status status = REALM_OK;
    pthread_mutex_lock(&owner->extension_lock);
    if (!owner->extension && (status = open_env(&env, t, error)) == REALM_OK) {
        owner->extension = env;
        owner->extension_close = close_env;
    }
    *out = owner->extension;
    pthread_mutex_unlock(&owner->extension_lock);
    return status;
}

/* ---- a grammar ---- */

static realm_deps_grammar_kind kind_of(grammar_kind kind)
{
    switch (kind) {
    case GRAMMAR_JSON_SCHEMA: return REALM_DEPS_JSON_SCHEMA;
    case GRAMMAR_JSON_OBJECT: return REALM_DEPS_JSON_OBJECT;
    case GRAMMAR_REGEX: return REALM_DEPS_REGEX;
    case GRAMMAR_LARK: return REALM_DEPS_LARK;
    }
    return REALM_DEPS_LARK;
}

static realm_status wrap(grammar **out, realm_deps_matcher *matcher, size_t mask_words,
                         realm_error *error)
{
    grammar *g = malloc(sizeof *g);
    if (!g) {
        realm_deps_matcher_close(matcher);
        return realm_fail_memory(error, sizeof *g, "a grammar");
    }
    *g = (grammar){matcher, mask_words};
    *out = g;
    return REALM_OK;
}

realm_status grammar_open(grammar **out, const tokenizer *t, grammar_kind kind, const char *text,
                          size_t size, realm_error *error)
{
    realm_deps_grammar_env *env;
    realm_status status = env_of(&env, t, error);
    if (status != REALM_OK)
        return status;
    realm_deps_matcher *matcher = NULL;
    char *reason = NULL;
    int result = realm_deps_matcher_open(&matcher, env, kind_of(kind), text ? text : "", size,
                                         &reason);
    return result ? fail_with(error, result, reason)
                  : wrap(out, matcher, grammar_mask_words(t), error);
}

void grammar_close(grammar *g)
{
    if (!g)
        return;
    realm_deps_matcher_close(g->matcher);
    free(g);
}

realm_status grammar_clone(grammar **out, const grammar *g, realm_error *error)
{
    realm_deps_matcher *matcher = NULL;
    char *reason = NULL;
    int result = realm_deps_matcher_clone(&matcher, g->matcher, &reason);
    return result ? fail_with(error, result, reason) : wrap(out, matcher, g->mask_words, error);
}

size_t grammar_mask_words(const tokenizer *t)
{
    return (tokenizer_count(t) + 31) / 32;
}

realm_status grammar_mask(grammar *g, uint32_t *mask, realm_error *error)
{
    char *reason = NULL;
    int result = realm_deps_matcher_mask(g->matcher, mask, g->mask_words, &reason);
    return result ? fail_with(error, result, reason) : REALM_OK;
}

realm_status grammar_accept(grammar *g, token_id id, realm_error *error)
{
    char *reason = NULL;
    int result = realm_deps_matcher_consume(g->matcher, (uint32_t)id, &reason);
    return result ? fail_with(error, result, reason) : REALM_OK;
}

realm_status grammar_rollback(grammar *g, size_t count, realm_error *error)
{
    char *reason = NULL;
    int result = realm_deps_matcher_rollback(g->matcher, count, &reason);
    return result ? fail_with(error, result, reason) : REALM_OK;
}

int grammar_is_complete(const grammar *g)
{
    return realm_deps_matcher_is_accepting(g->matcher);
}

int grammar_is_stopped(const grammar *g)
{
    return realm_deps_matcher_is_stopped(g->matcher);
}
