/* tenancy/bucket.c: see bucket.h. All arithmetic is on whole numbers: nothing drifts. */
#include "tenancy/bucket.h"

#define MINUTE_NS 60000000000ll

typedef __int128 wide;

static wide capacity(const bucket *b)
{
    return (wide)b->per_minute * MINUTE_NS;
}

static void refill(bucket *b, uint64_t now_ns)
{
    if (now_ns <= b->at_ns)
        return;
    uint64_t passed = now_ns - b->at_ns;
    b->at_ns = now_ns;
    b->level += (wide)b->per_minute * (wide)passed;
    if (b->level > capacity(b))
        b->level = capacity(b);
}

void bucket_init(bucket *b, int64_t per_minute, uint64_t now_ns)
{
    *b = (bucket){.per_minute = per_minute, .at_ns = now_ns};
    b->level = capacity(b);
}

void bucket_change(bucket *b, int64_t per_minute, uint64_t now_ns)
{
    if (b->per_minute == 0) { /* nothing was counted so far */
        bucket_init(b, per_minute, now_ns);
        return;
    }
    refill(b, now_ns);
    wide used = capacity(b) - b->level;
    b->per_minute = per_minute;
    b->level = per_minute ? capacity(b) - used : 0;
}

/* What must be there for count to pass. */
static wide needed(const bucket *b, int64_t count)
{
    wide units = (wide)count * MINUTE_NS;
    return units < capacity(b) ? units : capacity(b);
}

int bucket_take(bucket *b, int64_t count, uint64_t now_ns)
{
    if (b->per_minute == 0)
        return 1;
    refill(b, now_ns);
    if (b->level < needed(b, count))
        return 0;
    b->level -= (wide)count * MINUTE_NS;
    return 1;
}

void bucket_settle(bucket *b, int64_t count, uint64_t now_ns)
{
    if (b->per_minute == 0)
        return;
    refill(b, now_ns);
    b->level += (wide)count * MINUTE_NS;
    if (b->level > capacity(b))
        b->level = capacity(b);
}

int64_t bucket_remaining(bucket *b, uint64_t now_ns)
{
    if (b->per_minute == 0)
        return INT64_MAX;
    refill(b, now_ns);
    return b->level > 0 ? (int64_t)(b->level / MINUTE_NS) : 0;
}

/* Rounded up: a nanosecond earlier it would not be there yet. */
static uint64_t wait_for(const bucket *b, wide level)
{
    wide missing = level - b->level;
    if (missing <= 0)
        return 0;
    wide ns = (missing + b->per_minute - 1) / b->per_minute;
    return ns > (wide)INT64_MAX ? (uint64_t)INT64_MAX : (uint64_t)ns;
}

uint64_t bucket_wait_ns(bucket *b, int64_t count, uint64_t now_ns)
{
    if (b->per_minute == 0)
        return 0;
    refill(b, now_ns);
    return wait_for(b, needed(b, count));
}

uint64_t bucket_full_ns(bucket *b, uint64_t now_ns)
{
    if (b->per_minute == 0)
        return 0;
    refill(b, now_ns);
    return wait_for(b, capacity(b));
}
