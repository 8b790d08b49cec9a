/* sandbox/program.h: a tenant's WebAssembly module, compiled and linked, ready to be instantiated.
 *
 * A program is constant once made and counted: whoever keeps a pointer retains it. It borrows its
 * sandbox_host, which must outlive it. Making one compiles (milliseconds to seconds, on all cores)
 * or loads the compiled code from the cache; not for a thread with deadlines. Everything else is
 * for any thread. */
#ifndef REALM_SANDBOX_PROGRAM_H
#define REALM_SANDBOX_PROGRAM_H

#include "base/fail.h"

typedef struct sandbox_host sandbox_host;
typedef struct program program;

/* Compiles wasm or, if the bytes do not begin with "\0asm", WebAssembly text. name is for messages
 * and logs; name and bytes are copied or not needed after.
 *   REALM_TOO_LARGE    the module is larger than the host accepts
 *   REALM_INVALID      not a module, or not one of ours: an import or export that is unknown,
 *                      missing or of another type is named with the type it should have
 *   REALM_UNSUPPORTED  a WebAssembly feature that is switched off, or a memory or table larger
 *                      than any tenant may have
 *   REALM_NO_MEMORY    */
realm_status program_open(program **out, sandbox_host *host, const char *name, const void *bytes,
                          size_t size, realm_error *error);
program *program_retain(program *p);
void program_release(program *p); /* NULL allowed */

typedef struct program_info {
    const char *name;
    int memory64;          /* imports from realm64 */
    int from_cache;        /* compiled code came from disk */
    uint64_t prepare_ns;   /* what program_open took */
    uint64_t memory_bytes; /* linear memory at the start */
    uint32_t n_imports;
    unsigned capabilities; /* those (CAPABILITY_*) that its imports may ask for */
    char hash[65];         /* SHA-256 of the bytes given, hexadecimal */
} program_info;

/* Strings are borrowed from the program. */
void program_describe(const program *p, program_info *out);

#endif
