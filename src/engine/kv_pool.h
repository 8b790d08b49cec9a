/* engine/kv_pool.h: who holds which page of keys and values.
 *
 * The backend owns the memory; this is the book that is kept over it: reference counts, what each
 * tenant holds, which pages are free and which are kept for the prefix cache. Pure bookkeeping
 * without device or model, so that tests and the scheduler's simulation run it alone. Owned by
 * the engine thread; no other thread ever touches it.
 *
 *            take                      give, last reference
 *     FREE ---------> HELD ------------------------------------> FREE     not published
 *       ^              ^ `---------------------------------> KEPT         published
 *       |              |  share                                |  |
 *       |              `---------------------------------------'  |
 *       `---------------------------------------------------------'  evicted, the longest kept first
 *
 * A page is published when it is full and the prefix cache (kv_prefix.h) can find it by the
 * tokens in it. Published pages are never written: what would write one unpublishes it first.
 *
 * Invariants, checked by kv_pool_assert:
 *   K1  a page is FREE, HELD or KEPT and on that state's list alone (HELD pages are on none)
 *   K2  free + held + kept = all pages
 *   K3  HELD pages have at least one reference, others none
 *   K4  an account's n_pages is the number of HELD pages that it pays for
 *   K5  KEPT pages are published; FREE ones are not
 *   K6  a page is referenced by sequences of one account only */
#ifndef REALM_ENGINE_KV_POOL_H
#define REALM_ENGINE_KV_POOL_H

#include <stdatomic.h>

#include "base/fail.h"
#include "compute/backend.h"

/* What one tenant holds. Lives in the scheduler's tenant; a shared page counts once. Other threads read
 * it for statistics. */
typedef struct kv_account {
    _Atomic int32_t n_pages;
} kv_account;

typedef struct kv_pool kv_pool;

realm_status kv_pool_open(kv_pool **out, int32_t n_pages, realm_error *error);
void kv_pool_close(kv_pool *p); /* NULL is allowed */

/* A page with one reference, or -1 if every page is held. Free pages first, the smallest id of
 * those given back last; then the page that was kept longest, which is unpublished. */
int32_t kv_pool_take(kv_pool *p, kv_account *account);
/* One more reference to a HELD page of the same account, or the first to a KEPT one. */
void kv_pool_share(kv_pool *p, int32_t page, kv_account *account);
void kv_pool_give(kv_pool *p, int32_t page);

int32_t kv_pool_references(const kv_pool *p, int32_t page);
int32_t kv_pool_available(const kv_pool *p); /* free or kept: what take can hand out */
int32_t kv_pool_held(const kv_pool *p);
int32_t kv_pool_count(const kv_pool *p);

/* The prefix cache's side. forget is called when a published page is evicted or unpublished. */
void kv_pool_on_forget(kv_pool *p, void (*forget)(void *context, int32_t page), void *context);
void kv_pool_publish(kv_pool *p, int32_t page);
void kv_pool_unpublish(kv_pool *p, int32_t page); /* a HELD page; no-op if it is not published */
int kv_pool_is_published(const kv_pool *p, int32_t page);

/* Walks everything; nothing in release builds. */
void kv_pool_assert(const kv_pool *p);

/* ---- tables: the pages of one sequence, in order of position ----------------------------------- */

typedef struct kv_table {
    int32_t *pages; /* [count] */
    int32_t count, capacity;
} kv_table;

/* Copies that the device must make, in this order, before the step that was prepared. */
typedef enum kv_copy_kind {
    KV_COPY,     /* page from to page to */
    KV_COPY_OUT, /* page from to host page to (kv_host.h) */
    KV_COPY_IN,  /* host page from to page to */
} kv_copy_kind;
typedef struct kv_copy {
    kv_copy_kind kind;
    int32_t to, from;
} kv_copy;
typedef struct kv_copies {
    kv_copy *items;
    int32_t count, capacity;
} kv_copies;

/* Room for so many more copies. */
realm_status kv_copies_reserve(kv_copies *c, int32_t more, realm_error *error);

static inline int32_t kv_pages_for(int32_t n_tokens)
{
    return (n_tokens + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
}

/* Room in the table itself for so many tokens, so that what fills it cannot fail. */
realm_status kv_table_reserve(kv_table *t, int32_t n_tokens, realm_error *error);
/* Pages that writing rows [first, first+count) would take: those that are missing and copies of
 * those that others read too. */
int32_t kv_table_needs(const kv_pool *p, const kv_table *t, int32_t first, int32_t count);
/* Makes those rows writable. The caller has seen to it that so many pages are available.
 *   REALM_NO_MEMORY  the host's; the table stays usable */
realm_status kv_table_prepare(kv_pool *p, kv_table *t, kv_account *account, int32_t first,
                              int32_t count, kv_copies *copies, realm_error *error);
/* Keeps what n_tokens need and gives the rest back, the last page first. */
void kv_table_trim(kv_pool *p, kv_table *t, int32_t n_tokens);
/* Makes an empty table with room for them read the first n_tokens of another of the same account. */
void kv_table_share(kv_pool *p, kv_table *to, const kv_table *from, kv_account *account,
                    int32_t n_tokens);
/* Appends a page whose reference the table takes over. */
realm_status kv_table_push(kv_table *t, int32_t page, realm_error *error);
void kv_table_release(kv_pool *p, kv_table *t);

#endif
