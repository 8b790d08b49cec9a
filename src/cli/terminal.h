/* cli/terminal.h: what commands may assume of where they print to. Main thread. */
#ifndef REALM_CLI_TERMINAL_H
#define REALM_CLI_TERMINAL_H

#include <stddef.h>
#include <stdio.h>

/* 1 if stream is a terminal that takes colours: NO_COLOR is unset or empty (no-color.org) and TERM
 * is not "dumb". */
int terminal_has_colours(FILE *stream);

/* Columns of the terminal at stream, or fallback if it is none. */
int terminal_columns(FILE *stream, int fallback);

typedef enum terminal_style {
    STYLE_PLAIN,
    STYLE_BOLD,
    STYLE_DIM,
    STYLE_RED,
    STYLE_GREEN,
    STYLE_YELLOW,
    STYLE_BLUE,
    STYLE_CYAN,
} terminal_style;

/* The escape sequence that starts a style (STYLE_PLAIN ends it), or "" if stream takes no
 * colours. */
const char *terminal_style_text(FILE *stream, terminal_style style);

/* Writes bytes of unknown origin: control characters and broken UTF-8 become '?', so that what a
 * file or a tenant says cannot steer the terminal. */
void terminal_print_clean(FILE *stream, const char *text, size_t size);

/* The same for text that a model streams: new lines and tabs stay, and so do the bytes of a
 * character that arrives in parts. */
void terminal_print_stream(FILE *stream, const char *text, size_t size);

#endif
