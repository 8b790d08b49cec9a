/* engine/kv_prefix.h: finds pages whose tokens were computed before.
 *
 * Full pages form chains: a page is known by the page before it and by its own tokens; the first
 * of a chain by its tenant and adapter, so no tenant can hit, or time, another's prompt. What is
 * compared is the whole key, not its hash alone, so a collision can never hand out wrong keys and
 * values. The pages themselves are the pool's: this index neither holds references nor decides
 * what is evicted. Engine thread only.
 *
 * Invariants, checked by kv_prefix_assert:
 *   P1  a page is in the index exactly if the pool says that it is published
 *   P2  every indexed page is found by its own key */
#ifndef REALM_ENGINE_KV_PREFIX_H
#define REALM_ENGINE_KV_PREFIX_H

#include "engine/kv_pool.h"
#include "text/tokenizer.h"

typedef struct kv_prefix kv_prefix;

/* Whose chain it is. adapter is compared as a number and never followed. */
typedef struct kv_root {
    uint32_t tenant;
    const void *adapter;
} kv_root;

/* Borrows the pool and sets its forget function. */
realm_status kv_prefix_open(kv_prefix **out, kv_pool *pool, realm_error *error);
void kv_prefix_close(kv_prefix *x); /* NULL is allowed; before the pool's */

/* Appends to an empty table the longest known chain of full pages that tokens [n_tokens] begin
 * with, and returns how many tokens they hold. 0 where host memory is missing: a cache may. */
int32_t kv_prefix_match(kv_prefix *x, const kv_root *root, const token_id *tokens, int32_t n_tokens,
                        kv_table *t, kv_account *account);

/* Makes page index of a table known; it is full, computed, and all pages before it are published.
 * If an equal page is known already, the table reads that one from now on and gives its own back:
 * the backend computes equal bits for equal tokens. */
void kv_prefix_publish(kv_prefix *x, const kv_root *root, const token_id *tokens, kv_table *t,
                       int32_t index, kv_account *account);

/* Forgets every chain of an adapter that is going away: its address may come again. Pages in use
 * stay with their sequences. */
void kv_prefix_forget_adapter(kv_prefix *x, const void *adapter);

void kv_prefix_assert(const kv_prefix *x);

#endif
