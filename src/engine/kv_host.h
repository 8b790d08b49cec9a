/* engine/kv_host.h: copies of pages in the host's memory, for devices whose own runs out.
 *
 * A full page of computed rows changes no more. So the scheduler has such pages of sessions that may
 * have to give theirs back copied to the host while the device has a moment (saved), and when they
 * want to go on after that, the copies are read (loaded) and only what is left is computed again.
 *
 * As kv_pool.h this is a book alone: host pages have numbers from 0, and the engine's device has
 * the memory behind them. A sequence's saved pages are the first ones of its table, in order, in a
 * kv_table of host pages. A host page belongs to one sequence. Engine thread only. */
#ifndef REALM_ENGINE_KV_HOST_H
#define REALM_ENGINE_KV_HOST_H

#include "engine/kv_pool.h"

typedef struct kv_host {
    int32_t *free; /* [n_free] of n_pages */
    int32_t n_free, n_pages;
} kv_host;

/* From now on there are n_pages, not fewer than before. */
realm_status kv_host_grow(kv_host *h, int32_t n_pages, realm_error *error);
void kv_host_release(kv_host *h);

/* Saves the page that stands at t's end in saved: appends a host page to saved and the copy to copies.
 *   REALM_QUOTA      no host page is free
 *   REALM_NO_MEMORY  for the lists
 * and nothing has changed. */
realm_status kv_host_save(kv_host *h, kv_table *saved, const kv_table *t, kv_copies *copies,
                          realm_error *error);
/* Keeps the first count and gives the rest back. */
void kv_host_trim(kv_host *h, kv_table *saved, int32_t count);
/* Gives all back and frees the table. */
void kv_host_forget(kv_host *h, kv_table *saved);

#endif
