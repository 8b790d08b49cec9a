/* tenancy/state_sqlite.h: tenants' state (sandbox/state_store.h) in a file, state.db beside realm.db.
 *
 * put and remove change memory and are seen by every later get at once; one writer thread brings them to the file in
 * batches, each one transaction, usually within a few milliseconds. A get of what is not waiting to be written is a
 * look-up in the file by a prepared statement. So what a request has put is durable a moment after put returned, not
 * when it returns: a process that is killed may lose the last milliseconds of state, never a part of a batch, and
 * never something older than what it kept. Who needs to know calls state_sqlite_when_durable. It is a file of its own
 * because guests write it at their own pace: their commits neither wait for usage's nor have tenants read again.
 *
 * A tenant that puts faster than the disk takes it is told so: above STATE_SQLITE_MAX_PENDING_BYTES of unwritten
 * values put answers REALM_BUSY.
 *
 * Invariants:
 *   S1  what get sees is the newest put: in active, else in writing, else in the file
 *   S2  writing is constant while the writer works on it without the lock
 *   S3  a usage's bytes are those of all keys and values that get would find */
#ifndef REALM_TENANCY_STATE_SQLITE_H
#define REALM_TENANCY_STATE_SQLITE_H

#include "sandbox/state_store.h"

#define STATE_SQLITE_MAX_PENDING_BYTES (64u << 20)

/* Opens or makes DIR/state.db and starts the writer. table->close writes what waits, and logs it if it cannot.
 *   REALM_CORRUPT, REALM_UNSUPPORTED, REALM_IO as store_sqlite_open */
realm_status state_sqlite_open(state_store **out, const char *folder, realm_error *error);

/* Calls done on the writer thread when everything put before is durable. Any thread. If the disk refuses for ever, it
 * is not called before close, and not then. REALM_NO_MEMORY: it will not be called. */
realm_status state_sqlite_when_durable(state_store *s, void (*done)(void *context), void *context,
                                       realm_error *error);

/* The tenant is deleted and its number never used again: its state goes, now for gets and soon from the file, and
 * later puts answer REALM_NOT_FOUND. Any thread. */
realm_status state_sqlite_forget(state_store *s, uint32_t tenant, realm_error *error);

#endif
