/* sandbox/program_cache.h: compiled programs on disk; see program_cache.c. Any thread. */
#ifndef REALM_SANDBOX_PROGRAM_CACHE_H
#define REALM_SANDBOX_PROGRAM_CACHE_H

#include "sandbox/runtime.h"

/* Makes the folder (NULL: the usual one; "": no cache) and checks that it is ours alone; if not,
 * there is no cache and a line in the log. */
realm_status program_cache_open(sandbox_host *h, const char *folder, realm_error *error);

/* SHA-256 of the parts one after another, hexadecimal; "" if OpenSSL has none to give. */
void program_cache_hash(char hex[65], const void *const *parts, const size_t *sizes, int count);

/* The path for a module of that hash; "" if there is no cache. */
void program_cache_path(const sandbox_host *h, const char *hash, int memory64, char *path,
                        size_t size);

/* Loads what program_cache_save wrote.
 *   REALM_NOT_FOUND  there is none
 *   REALM_CORRUPT    it is damaged, or Wasmtime refuses it; it has been removed */
realm_status program_cache_load(sandbox_host *h, const char *path, int memory64,
                                wasmtime_module_t **out, realm_error *error);
realm_status program_cache_save(const char *path, const wasmtime_module_t *module,
                                realm_error *error);

#endif
