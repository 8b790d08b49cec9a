/* library/builtin.c: see builtin.h. */
#include "library/builtin.h"

#include <string.h>

extern const unsigned char builtin_chat[], builtin_completion[];
extern const size_t builtin_chat_size, builtin_completion_size;

const builtin_program builtin_programs[] = {
    {"chat", builtin_chat, &builtin_chat_size},
    {"completion", builtin_completion, &builtin_completion_size},
    {NULL, NULL, NULL},
};

const builtin_program *builtin_find(const char *name)
{
    for (const builtin_program *p = builtin_programs; p->name; p++)
        if (strcmp(p->name, name) == 0)
            return p;
    return NULL;
}
