/* compute/backend_open.h: which device a model runs on, by a word of the user.
 *
 *     cpu         the processor's cores
 *     cuda[:N]    NVIDIA's device N (0 if not said); refused if it cannot be had
 *     auto        a CUDA device if there is one that works, else the processor
 *
 * Backends other than the processor's are plug-ins: shared objects loaded at run time, so that one
 * binary serves machines with and without the device and its driver. librealm_cuda.so is looked for
 * where REALM_CUDA_PLUGIN says, beside the program or librealm, in ../lib of it, and where the system's
 * loader looks. A plug-in is used only if it was built for the same table as this program. */
#ifndef REALM_COMPUTE_BACKEND_OPEN_H
#define REALM_COMPUTE_BACKEND_OPEN_H

#include "compute/backend.h"

typedef struct backend_options {
    const char *device; /* as above; NULL: auto */
    int32_t n_threads;  /* of the processor's backend; 0: cpu_count() */
} backend_options;

/* Opens a backend and logs one line that says which and why. Closed with table->close; the plug-in
 * stays loaded. Any thread.
 *   REALM_INVALID      the word is none of the above
 *   REALM_UNSUPPORTED  a CUDA device was asked for and cannot be had: why
 *   REALM_NO_MEMORY    the host or the device is full */
realm_status backend_open(backend **out, const backend_options *options, realm_error *error);

/* 1 if the word is well formed. */
int backend_device_parse(const char *device, realm_error *error);
/* 1 if the choice is left to Realm. */
int backend_is_auto(const char *device);

/* ---- between program and plug-in ---------------------------------------------------------------- */

/* Raised whenever backend.h changes in a way that the table's size does not show. */
#define BACKEND_PLUGIN_VERSION 1

typedef struct backend_plugin {
    uint32_t version, table_bytes;
    realm_status (*open)(backend **out, int32_t device, realm_error *error);
} backend_plugin;

/* What a plug-in exports, as BACKEND_PLUGIN_SYMBOL. */
typedef const backend_plugin *(*backend_plugin_function)(void);
#define BACKEND_PLUGIN_SYMBOL "realm_backend_plugin"

#endif
