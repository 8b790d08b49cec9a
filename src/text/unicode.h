/* text/unicode.h: the properties of characters that tokenizers ask for, and a UTF-8 that forgives.
 *
 * Token ids depend on these answers, so they are those of the tokenizers' reference, llama.cpp: the
 * general categories of Unicode 15.1, and a decoder that takes over-long forms and surrogates as they
 * come and every other broken byte as one U+FFFD. Code that checks UTF-8 uses base/utf8.h instead.
 * Pure functions, any thread. */
#ifndef REALM_TEXT_UNICODE_H
#define REALM_TEXT_UNICODE_H

#include <stddef.h>
#include <stdint.h>

typedef enum unicode_class {
    UNICODE_UNASSIGNED,
    UNICODE_NUMBER,      /* \p{N} */
    UNICODE_LETTER,      /* \p{L} */
    UNICODE_SEPARATOR,   /* \p{Z} */
    UNICODE_MARK,        /* \p{M} */
    UNICODE_PUNCTUATION, /* \p{P} */
    UNICODE_SYMBOL,      /* \p{S} */
    UNICODE_CONTROL,     /* \p{C} but for unassigned ones */
} unicode_class;

unicode_class unicode_class_of(uint32_t code);
int unicode_is_space(uint32_t code); /* the property White_Space */
int unicode_is_han(uint32_t code);   /* the blocks of Chinese characters, assigned or not */
uint32_t unicode_lower(uint32_t code);

/* The first character of code's canonical decomposition: the letter without its accents. */
uint32_t unicode_base(uint32_t code);

/* Decodes one character of text[0..size), size > 0, forgivingly; returns its bytes, 1 to 4. */
int unicode_decode(const uint8_t *text, size_t size, uint32_t *code);

/* Writes code, which may be a surrogate but is at most U+10FFFF; returns 1 to 4. */
int unicode_encode(uint32_t code, uint8_t out[4]);

/* Bytes that a character beginning with lead takes, going by lead alone: 1 to 4. */
int unicode_length(uint8_t lead);

/* The character that stands for a byte in the vocabularies of byte-level BPE: printable Latin-1
 * characters stand for themselves, the others for U+0100 and up in order (GPT-2's encoder.py). */
uint32_t unicode_of_byte(uint8_t byte);

/* The byte that code stands for, or -1. */
int unicode_to_byte(uint32_t code);

#endif
