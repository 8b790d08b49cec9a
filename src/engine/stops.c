/* engine/stops.c: see stops.h. Held text is as short as the longest stop string and a token, so the
 * plain search is the fast one. */
#include "engine/stops.h"

#include <string.h>

/* Bytes at the end of text that a stop string could still begin with. */
static size_t open_end(const char *stop, const char *text, size_t size)
{
    size_t stop_size = strlen(stop);
    size_t length = size < stop_size - 1 ? size : stop_size - 1;
    while (length > 0 && memcmp(text + size - length, stop, length) != 0)
        length--;
    return length;
}

stops_result stops_scan(const char *const *stops, int32_t n_stops, const char *text, size_t size)
{
    stops_result result = {.emit = size};
    size_t held = 0;
    if (!size) /* a first token that is no text yet: text may be NULL, which memmem must not get */
        return result;
    for (int32_t i = 0; i < n_stops; i++) {
        const char *at = memmem(text, size, stops[i], strlen(stops[i]));
        if (at && (size_t)(at - text) < result.emit) {
            result.emit = (size_t)(at - text);
            result.found = 1;
        }
        size_t end = open_end(stops[i], text, size);
        held = end > held ? end : held;
    }
    if (!result.found)
        result.emit = size - held;
    return result;
}
