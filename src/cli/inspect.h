/* cli/inspect.h: what `realm inspect` found out about a model file, between finding (cmd_inspect.c)
 * and printing (inspect_print.c for people, inspect_json.c for programs). Main thread. */
#ifndef REALM_CLI_INSPECT_H
#define REALM_CLI_INSPECT_H

#include "formats/gguf.h"

#define INSPECT_TYPES 64 /* numbers of dtypes are below this */

typedef struct inspect_type {
    uint64_t tensors, parameters, bytes;
} inspect_type;

typedef struct inspect_report {
    const char *path;                  /* as the user wrote it */
    const gguf *g;                     /* borrowed */
    gguf_string architecture;          /* size 0 if the file does not say */
    uint64_t parameters;               /* elements of all tensors */
    inspect_type types[INSPECT_TYPES]; /* by dtype */
    uint64_t context_tokens;           /* that memory is told for */
    int kv_known;                      /* 0: kv_why says what is missing */
    realm_error kv_why;
    uint64_t kv_bytes_per_token; /* keys and values of one token in all layers, as F16 */
    uint64_t kv_bytes;           /* of the context */
    uint64_t total_bytes;        /* weights and KV; activations come on top and are small */
} inspect_report;

void inspect_print(const inspect_report *report);
void inspect_json(const inspect_report *report);

#endif
