/* sandbox/host_functions.h: the list of what a guest may import.
 *
 * One row a function: everything that is known about it (names and types of arguments, the
 * capability, whether it may suspend) stands there, and from there come both import modules,
 * `realm` and `realm64`, and the checks of a program's imports. A new host function is one row
 * and one function in the host_*.c of its group. */
#ifndef REALM_SANDBOX_HOST_FUNCTIONS_H
#define REALM_SANDBOX_HOST_FUNCTIONS_H

#include "sandbox/request.h"

struct host_function {
    const char *name;
    /* "offset:n out:p cap:n": name and type of each argument. p pointer, n length (both as wide
     * as the memory), i i32, f f32. */
    const char *parameters;
    char result;         /* 'i' i32, 'I' i64 */
    unsigned capability; /* 0: free to all */
    int suspends;        /* may suspend: defined through Wasmtime's async interface */
    int only64;          /* not in module realm */
    int64_t (*run)(guest_call *c);
};

extern const host_function host_functions[];
extern const size_t host_functions_count;

/* The function, or NULL. */
const host_function *host_functions_find(const char *name, size_t size);

/* Defines all of them in the module for that kind of memory. */
realm_status host_functions_define(wasmtime_linker_t *linker, int memory64, realm_error *error);

/* A new type as Wasmtime knows it, for comparing and for defining. */
wasm_functype_t *host_functions_type(const host_function *f, int memory64);

/* "(i32, i32) -> i32" */
void host_functions_describe(const host_function *f, int memory64, char *text, size_t size);

/* Name of argument index, copied to text. */
void host_functions_argument(const host_function *f, int index, char *text, size_t size);

#endif
