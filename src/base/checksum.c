/* base/checksum.c: see checksum.h. The library's header brings its code along, so that there is
 * nothing to link. */
#include "base/checksum.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

checksum checksum_of(const void *bytes, size_t size)
{
    XXH128_hash_t hash = XXH3_128bits(bytes, size);
    return (checksum){hash.low64, hash.high64};
}
