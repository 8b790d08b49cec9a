/* library/builtin.c: see builtin.h. */
#include "library/builtin.h"

#include <string.h>

extern const unsigned char builtin_chat[], builtin_completion[], builtin_embeddings[],
    builtin_tokenize[];
extern const size_t builtin_chat_size, builtin_completion_size, builtin_embeddings_size,
    builtin_tokenize_size;

const builtin_program builtin_programs[] = {
    {"chat", builtin_chat, &builtin_chat_size},
    {"completion", builtin_completion, &builtin_completion_size},
    {"embeddings", builtin_embeddings, &builtin_embeddings_size},
    {"tokenize", builtin_tokenize, &builtin_tokenize_size},
    {NULL, NULL, NULL},
};

const builtin_program *builtin_find(const char *name)
{
    for (const builtin_program *p = builtin_programs; p->name; p++)
        if (strcmp(p->name, name) == 0)
            return p;
    return NULL;
}
