/* tenancy/bucket.h: a token bucket that is exact.
 *
 * "500 a minute" refills 500/60e9 a nanosecond, which no binary fraction holds. So the level is kept in
 * units of 1/60e9 of what is counted: a nanosecond then adds exactly `per_minute` units, and a minute
 * of any number of small steps adds as much as one step of a minute. 128 bits hold every rate and debt.
 *
 * The bucket holds a minute's worth and starts full. It may be overdrawn by bucket_settle (a request
 * that took more than it had reserved): then it owes, and refuses until it has refilled. Plain value;
 * one thread at a time (meter.h locks). Times are nanoseconds of one clock that never goes back. */
#ifndef REALM_TENANCY_BUCKET_H
#define REALM_TENANCY_BUCKET_H

#include <stdint.h>

typedef struct bucket {
    int64_t per_minute; /* also the most it holds; 0: no limit, everything passes */
    __int128 level;     /* in 1/60e9; below 0 when it owes */
    uint64_t at_ns;     /* up to when it has been refilled */
} bucket;

void bucket_init(bucket *b, int64_t per_minute, uint64_t now_ns);

/* Another rate: what had been used stays used (level - capacity is kept), so that changing a limit
 * gives nobody a fresh minute. */
void bucket_change(bucket *b, int64_t per_minute, uint64_t now_ns);

/* 1 and takes count if so much is there, else 0 and nothing changes. More than it can ever hold is
 * taken when it is full, and leaves a debt. */
int bucket_take(bucket *b, int64_t count, uint64_t now_ns);

/* Gives back (count > 0, at most up to full) or takes without asking (count < 0). */
void bucket_settle(bucket *b, int64_t count, uint64_t now_ns);

/* What could be taken now; 0 if it owes. INT64_MAX without a limit. */
int64_t bucket_remaining(bucket *b, uint64_t now_ns);

/* Nanoseconds until bucket_take(count) would succeed, if nobody else takes; until it is full. */
uint64_t bucket_wait_ns(bucket *b, int64_t count, uint64_t now_ns);
uint64_t bucket_full_ns(bucket *b, uint64_t now_ns);

#endif
