/* library/runtime.h: what the server, which stands on the same rooms, sees of a realm_runtime.
 *
 * Everything is borrowed until realm_runtime_close. Models are added by one thread at a time, before
 * others look at them. */
#ifndef REALM_LIBRARY_RUNTIME_H
#define REALM_LIBRARY_RUNTIME_H

#include "realm/realm.h"
#include "sandbox/sandbox.h"

sandbox_host *runtime_sandbox(realm_runtime *r);
state_store *runtime_state(realm_runtime *r);

int32_t runtime_model_count(const realm_runtime *r);
/* index below the count, in the order in which they were loaded. */
sandbox_model runtime_model(const realm_runtime *r, int32_t index);

/* The compiled module; retained as long as p is open. */
program *runtime_program(realm_program *p);

#endif
