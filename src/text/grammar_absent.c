/* text/grammar_absent.c: grammar.h in a build without deps/ (REALM_WITHOUT_DEPS), in place of grammar.c.
 *
 * The sampler follows a grammar where it is given one, so the engine needs these names. Here none can be
 * opened, and so nothing but grammar_close(NULL) is ever called. No state; any thread. */
#include "text/grammar.h"

#include "base/fail.h"

static realm_status fail_absent(realm_error *error)
{
    return realm_fail(error, REALM_UNSUPPORTED, "this build has no grammars (REALM_WITHOUT_DEPS)");
}

realm_status grammar_open(grammar **out, const tokenizer *t, grammar_kind kind, const char *text,
                          size_t size, realm_error *error)
{
    (void)out, (void)t, (void)kind, (void)text, (void)size;
    return fail_absent(error);
}

void grammar_close(grammar *g)
{
    (void)g;
}

realm_status grammar_clone(grammar **out, const grammar *g, realm_error *error)
{
    (void)out, (void)g;
    return fail_absent(error);
}

size_t grammar_mask_words(const tokenizer *t)
{
    return (tokenizer_count(t) + 31) / 32;
}

realm_status grammar_mask(grammar *g, uint32_t *mask, realm_error *error)
{
    (void)g, (void)mask;
    return fail_absent(error);
}

realm_status grammar_accept(grammar *g, token_id id, realm_error *error)
{
    (void)g, (void)id;
    return fail_absent(error);
}

realm_status grammar_rollback(grammar *g, size_t count, realm_error *error)
{
    (void)g, (void)count;
    return fail_absent(error);
}

int grammar_is_complete(const grammar *g)
{
    (void)g;
    return 0;
}

int grammar_is_stopped(const grammar *g)
{
    (void)g;
    return 0;
}
