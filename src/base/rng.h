/* base/rng.h: a small seeded generator of random numbers, the same on every machine.
 *
 * xoshiro256++ 1.0 seeded through SplitMix64 (Blackman and Vigna, "Scrambled linear
 * pseudorandom number generators", ACM TOMS 47, 2021). Not for secrets: keys and salts come from
 * the operating system. Plain value; one thread at a time. */
#ifndef REALM_BASE_RNG_H
#define REALM_BASE_RNG_H

#include <stdint.h>

typedef struct rng {
    uint64_t state[4];
} rng;

static inline void rng_init(rng *r, uint64_t seed)
{
    for (int i = 0; i < 4; i++) {
        uint64_t z = (seed += 0x9E3779B97F4A7C15u);
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        r->state[i] = z ^ (z >> 31);
    }
}

static inline uint64_t rng_next(rng *r)
{
    uint64_t *s = r->state;
    uint64_t sum = s[0] + s[3];
    uint64_t result = (sum << 23 | sum >> 41) + s[0];
    uint64_t t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = s[3] << 45 | s[3] >> 19;
    return result;
}

/* Uniform in [0, 1), 53 bits. */
static inline double rng_double(rng *r)
{
    return (double)(rng_next(r) >> 11) * 0x1p-53;
}

#endif
