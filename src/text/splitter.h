/* text/splitter.h: cuts text into the words that a byte-level BPE merges within.
 *
 * A model's pre-tokenizer is a list of steps, each of which cuts the words of the step before into
 * smaller ones: a match is a word, and so is what stands between matches. Most steps are regular
 * expressions, run by PCRE2. The reference, llama.cpp, runs them in a way that shows in token ids, so
 * it is done here too:
 *
 * - An expression that names a category (\p{L}, \p{N}, ...) sees one byte a character: an ASCII
 *   character is itself, any other is its category's byte (white space is a vertical tab), and \p{L}
 *   is that byte and the ASCII letters. Upper and lower case are one category to it, so the tables
 *   never ask; \p{WideL} is the letters that are not ASCII.
 * - Any other expression sees the characters, with non-ASCII white space as a vertical tab.
 * - No match looks past its word: (?!\S), $ and the like end there.
 *
 * One byte a character is also why matching is fast and why no expression here can be hurt by
 * Unicode's corner cases. What would backtrack over and over is written otherwise in the tables of
 * pretokenizers.c, so that every step takes linear time.
 *
 * Built once, then constant; any thread. */
#ifndef REALM_TEXT_SPLITTER_H
#define REALM_TEXT_SPLITTER_H

#include "base/arena.h"

#define SPLITTER_MAX_STEPS 6

/* What is being cut: text as characters, and where the words end. Lives in the caller's arena. */
typedef struct split_text {
    const uint32_t *codes; /* [count] */
    size_t count;
    const uint8_t *classes;  /* [count] one byte a character, or NULL if no step needs them */
    const uint8_t *wide;     /* UTF-8 for the other expressions, or NULL */
    const uint32_t *wide_at; /* [count + 1] offset in wide of each character */
    uint32_t *ends;          /* [word_count] index past each word's last character */
    size_t word_count;
} split_text;

/* A step that is not a regular expression: gives the ends of the words inside [first, last). Writes at
 * most last - first ends to out, in order, the last of them being last, and returns their number. */
typedef size_t split_by_hand(const split_text *text, uint32_t first, uint32_t last, uint32_t *out);

/* Digits (\p{N}) in threes counted from the right end of their run: 1234567 gives 1 234 567. What
 * stands before a run stays with the run's first group. */
split_by_hand splitter_threes_from_right;

/* Cuts before every ASCII digit from which a multiple of three digits is left in its run. */
split_by_hand splitter_before_threes;

/* A word of white space without line breaks, in the largest powers of two up to 512 that fit; other
 * words stay whole. (Jais 2 publishes \s{512}(?!\S)|\s{256}(?!\S)|... behind \s*[\r\n]+, which would
 * read a long run to its end again for every 512 of its spaces.) */
split_by_hand splitter_space_powers;

typedef struct split_step {
    const char *expression; /* NULL: by_hand */
    split_by_hand *by_hand;
} split_step;

typedef struct splitter splitter;

/* Compiles steps, which end at the first empty one or at SPLITTER_MAX_STEPS.
 *   REALM_INTERNAL   an expression does not compile
 *   REALM_NO_MEMORY  the host is out of memory */
realm_status splitter_open(splitter **out, const split_step *steps, realm_error *error);
void splitter_close(splitter *s); /* NULL is allowed */

/* Cuts text[0..size), size > 0, into words. Broken UTF-8 becomes U+FFFD, as unicode_decode says. All
 * memory is a's.
 *   REALM_NO_MEMORY  a is full
 *   REALM_TOO_LARGE  an expression ran over its budget */
realm_status splitter_cut(const splitter *s, arena *a, const char *text, size_t size,
                          split_text *out, realm_error *error);

#endif
