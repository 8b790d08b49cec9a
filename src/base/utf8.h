/* base/utf8.h: the smallest tools for UTF-8, per Unicode 15 table 3-7 (no surrogates, nothing
 * over U+10FFFF, no over-long forms). Pure functions, any thread. Properties of characters
 * (letters, case, normal forms) are text/unicode.h's. */
#ifndef REALM_BASE_UTF8_H
#define REALM_BASE_UTF8_H

#include <stddef.h>
#include <stdint.h>

#define UTF8_REPLACEMENT 0xFFFDu

/* Bytes of the well-formed character at text[0..size): 1 to 4; 0 if size is 0;
 * -1 if the bytes can never be well formed; -2 if they are a proper prefix of a character. */
int utf8_length(const uint8_t *text, size_t size);

/* Decodes one character to *code and returns its bytes; an ill-formed byte gives
 * UTF8_REPLACEMENT and 1. Returns 0 only if size is 0. */
int utf8_decode(const uint8_t *text, size_t size, uint32_t *code);

/* Writes code's 1 to 4 bytes to out and returns their number; 0 if code is no character. */
int utf8_encode(uint32_t code, uint8_t out[4]);

/* The longest prefix of text that ends on a character's boundary, in bytes: what may be sent on
 * while a stream is still going. An ill-formed byte counts as complete; only a proper prefix of
 * a character at the very end is held back (at most 3 bytes). */
size_t utf8_complete_prefix(const uint8_t *text, size_t size);

/* 1 if all of text is well formed. */
int utf8_valid(const uint8_t *text, size_t size);

#endif
