/* tenancy/route.c: which version of a program serves a request; see store_route_choose in store.h. */
#include <string.h>

#include "tenancy/store.h"

/* Part of what a route means: another number would move users between versions at an upgrade. */
#define ROUTE_SEED 0x5245414C4D524F55u

int32_t store_route_choose(const route_share *route, int32_t count, const char *name,
                           const void *id, size_t id_size)
{
    if (count < 1)
        return 0;
    if (!id || count == 1)
        return route[0].version;
    /* The program's name seeds the hash, so that two programs' splits are independent of each other. */
    uint64_t seed = map_hash(ROUTE_SEED, name, strlen(name));
    int32_t point = (int32_t)(map_hash(seed, id, id_size) % ROUTE_WHOLE);
    for (int32_t i = 0; i < count; i++) {
        if (point < route[i].share)
            return route[i].version;
        point -= route[i].share;
    }
    return route[0].version;
}
