/* base/checksum.h: 128-bit checksums of bytes, at about the speed of memory: for finding damage and
 * telling contents apart. Not a secret-keeping hash: who may choose the bytes can make two agree.
 * XXH3, whose values are the same on every machine and for all versions. Stateless; any thread. */
#ifndef REALM_BASE_CHECKSUM_H
#define REALM_BASE_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

typedef struct checksum {
    uint64_t low, high;
} checksum;

checksum checksum_of(const void *bytes, size_t size);

static inline int checksum_equal(checksum a, checksum b)
{
    return a.low == b.low && a.high == b.high;
}

#endif
