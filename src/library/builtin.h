/* library/builtin.h: the programs that Realm brings: guests like any other (guest/programs), built
 * against the public header and embedded. Constant; any thread. */
#ifndef REALM_LIBRARY_BUILTIN_H
#define REALM_LIBRARY_BUILTIN_H

#include <stddef.h>

typedef struct builtin_program {
    const char *name; /* "chat"; NULL ends the list */
    const void *bytes;
    const size_t *size;
} builtin_program;

extern const builtin_program builtin_programs[];

/* NULL if there is none of that name. */
const builtin_program *builtin_find(const char *name);

#endif
