/* engine/stops.h: finds stop strings in text that comes in pieces. Pure functions. */
#ifndef REALM_ENGINE_STOPS_H
#define REALM_ENGINE_STOPS_H

#include <stddef.h>
#include <stdint.h>

typedef struct stops_result {
    size_t emit; /* bytes at the front that can be emitted now */
    int found;   /* 1: a stop string begins there; what follows is never emitted */
} stops_result;

/* text: everything that is not emitted yet; NULL if size is 0. Where several stop strings are in it, the one that
 * begins first counts. */
stops_result stops_scan(const char *const *stops, int32_t n_stops, const char *text, size_t size);

#endif
