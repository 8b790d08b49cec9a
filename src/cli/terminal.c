/* cli/terminal.c: see terminal.h. */
#include "cli/terminal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/utf8.h"

int terminal_has_colours(FILE *stream)
{
    const char *no = getenv("NO_COLOR"), *kind = getenv("TERM");
    if ((no && *no) || !kind || strcmp(kind, "dumb") == 0)
        return 0;
    return isatty(fileno(stream));
}

int terminal_columns(FILE *stream, int fallback)
{
    struct winsize size;
    if (ioctl(fileno(stream), TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
        return size.ws_col;
    return fallback;
}

const char *terminal_style_text(FILE *stream, terminal_style style)
{
    static const char *const texts[] = {
        [STYLE_PLAIN] = "\033[0m", [STYLE_BOLD] = "\033[1m",   [STYLE_DIM] = "\033[2m",
        [STYLE_RED] = "\033[31m",  [STYLE_GREEN] = "\033[32m", [STYLE_YELLOW] = "\033[33m",
        [STYLE_BLUE] = "\033[34m", [STYLE_CYAN] = "\033[36m",
    };
    return terminal_has_colours(stream) ? texts[style] : "";
}

void terminal_print_clean(FILE *stream, const char *text, size_t size)
{
    for (size_t i = 0; i < size;) {
        uint32_t code;
        int length = utf8_decode((const uint8_t *)text + i, size - i, &code);
        int broken = code == UTF8_REPLACEMENT && length == 1;
        int control = code < 0x20 || (code >= 0x7F && code < 0xA0);
        if (broken || control)
            fputc('?', stream);
        else
            fwrite(text + i, 1, (size_t)length, stream);
        i += (size_t)length;
    }
}

void terminal_print_stream(FILE *stream, const char *text, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)text[i];
        int steers = (c < 0x20 && c != '\n' && c != '\t') || c == 0x7f;
        fputc(steers ? '?' : c, stream);
    }
}
