/* server/cors.c: see cors.h. */
#include "server/cors.h"

#include <string.h>
#include <strings.h>

/* What a page may read of an answer's head, beyond what it always may. */
#define EXPOSED                                                                                    \
    "x-request-id, retry-after, x-should-retry, x-ratelimit-limit-requests, "                      \
    "x-ratelimit-remaining-requests, x-ratelimit-reset-requests, x-ratelimit-limit-tokens, "       \
    "x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens, x-has-more, x-last-id"
/* Seconds that a browser need not ask again; none keeps it for longer than two hours. */
#define KEPT_SECONDS "7200"

int cors_is_of_this_machine(const char *origin)
{
    const char *host = strstr(origin, "://");
    if (!host)
        return 0; /* "null" is what any site's sandboxed frame says */
    host += 3;
    size_t size = *host == '[' ? strcspn(host, "]") + 1 : strcspn(host, ":/");
    if (size == 5 && strncmp(host, "[::1]", 5) == 0)
        return 1;
    if (size == 9 && strncasecmp(host, "localhost", 9) == 0)
        return 1;
    return size > 4 && strncmp(host, "127.", 4) == 0 && strspn(host, "0123456789.") == size;
}

void cors_allow(exchange *x, int needs_key)
{
    const char *origin = exchange_header_get(x, "origin");
    if (!origin || (!needs_key && !cors_is_of_this_machine(origin)))
        return;
    exchange_set(x, "access-control-allow-origin", needs_key ? "*" : origin);
    if (!needs_key) /* a cache must not give one page what another asked for */
        exchange_set(x, "vary", "origin");
    exchange_set(x, "access-control-expose-headers", EXPOSED);
}

void cors_preflight(exchange *x, const char *methods)
{
    const char *headers = exchange_header_get(x, "access-control-request-headers");
    exchange_set(x, "access-control-allow-methods", methods);
    if (headers)
        exchange_set(x, "access-control-allow-headers", headers);
    exchange_set(x, "access-control-max-age", KEPT_SECONDS);
}
