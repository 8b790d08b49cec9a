/* text/pretokenizers.h: what tokenizer.ggml.pre names: how text is cut into words before merging,
 * and the habits of the vocabularies that carry the name. Constant tables; any thread. */
#ifndef REALM_TEXT_PRETOKENIZERS_H
#define REALM_TEXT_PRETOKENIZERS_H

#include "text/splitter.h"

/* Habits. Metadata of the file override those about BOS. */
#define PRE_ADDS_BOS        1 /* BOS goes in front unless the file says otherwise */
#define PRE_FORCES_BOS      2 /* and even if it does (Gemma 4 files were published with it false) */
#define PRE_NO_BOS          4 /* there is no BOS unless the file names one */
#define PRE_WHOLE_WORDS     8 /* a word that is a token is that token: merges are not asked */
#define PRE_RAW_UTF8        16  /* symbols are characters, not GPT-2's stand-ins for bytes */
#define PRE_ESCAPES_SPACE   32  /* spaces become U+2581 */
#define PRE_WHOLE_BREAKS    64  /* like PRE_WHOLE_WORDS, for words of newlines only */
#define PRE_KEEPS_CASE      128 /* for the "whitespace" model: text is not lower-cased by default */
#define PRE_NEEDS_NO_MERGES 256 /* a file without merges is complete */

typedef struct pretokenizer {
    const char *name;
    unsigned habits;
    split_step steps[SPLITTER_MAX_STEPS];
} pretokenizer;

/* The row of that name; an empty name gives "default". NULL if there is none. */
const pretokenizer *pretokenizers_find(const char *name, size_t size);

/* The rows, for tests: NULL past the last. */
const pretokenizer *pretokenizers_at(size_t index);

#endif
