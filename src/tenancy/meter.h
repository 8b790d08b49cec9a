/* tenancy/meter.h: one tenant's rates while the server runs: buckets, requests at once, budgets.
 *
 * A meter outlives changes of the tenant's settings and is counted: the tenancy holds one for each
 * tenant and hands it to tenant_info. Any thread; a lock is held for some arithmetic and nothing else. Nothing
 * here touches the database: what is used today and this month comes in once, at the start, and is
 * counted on from there.
 *
 * A request is admitted with an estimate of its tokens, which the minute's bucket holds back, and settled with
 * what it took. A budget (a day's, a month's, by UTC) is a hard end and needs no estimate: a request takes its
 * tokens from it while it runs, before they are computed (meter_take), so that requests in flight together never
 * pass it by one, and none is refused while there is something left.
 *
 * What requests in flight have taken counts against whatever day it is, and becomes part of the day on which
 * they end. */
#ifndef REALM_TENANCY_METER_H
#define REALM_TENANCY_METER_H

#include "tenancy/settings.h"

typedef struct tenancy_clock {
    uint64_t (*now_ns)(void *context); /* never goes back */
    int64_t (*wall_ms)(void *context); /* since 1970, UTC: only for what day it is */
    void *context;
} tenancy_clock;

extern const tenancy_clock tenancy_clock_system;

typedef struct meter meter;

/* Why a request was refused. */
typedef enum meter_refusal {
    METER_ADMITTED,
    METER_REQUESTS,   /* requests a minute */
    METER_TOKENS,     /* tokens a minute */
    METER_CONCURRENT, /* requests at once */
    METER_BUDGET, /* requests that run have taken the rest of a day's or month's budget; they may give some
                     back: try again */
    METER_SPENT /* a day's or month's budget is spent: trying again before it turns is useless */
} meter_refusal;

/* "requests", "tokens", "concurrent", "budget", "spent"; "" for METER_ADMITTED. Static: a metric's label. */
const char *meter_refusal_name(meter_refusal refusal);

/* For the headers x-ratelimit-limit-requests and so on. limit 0: there is none, send no header. */
typedef struct meter_rate {
    int64_t limit, remaining;
    uint64_t reset_ns; /* until it is full again */
} meter_rate;

typedef struct meter_rates {
    meter_rate requests, tokens;
} meter_rates;

typedef struct admission {
    meter *meter;     /* NULL: not admitted, or settled */
    int64_t estimate; /* tokens taken from the minute's bucket */
    int64_t taken;    /* by meter_take, less what was given back; guarded by the meter */
    /* Also where it was refused: */
    meter_refusal refusal;
    uint64_t retry_ns; /* until trying again may help; for retry-after, rounded up to a second */
    int should_retry;  /* 0: send x-should-retry: false */
    meter_rates rates; /* after this admission or refusal */
} admission;

realm_status meter_open(meter **out, const tenant_settings *settings, const tenancy_clock *clock,
                        realm_error *error);
meter *meter_retain(meter *m);
void meter_release(meter *m); /* NULL allowed. An admission holds its meter */

/* New settings; what is used and in flight stays. */
void meter_change(meter *m, const tenant_settings *settings);

/* What the store says was used so far in the day and in its month. Once, before the first admission. */
void meter_begin(meter *m, int32_t day, int64_t tokens_of_day, int64_t tokens_of_month);

/* Takes one request from everything or nothing; fills *out in both cases. estimate: the tokens it will
 * likely take, for the minute's bucket, which may end up in debt.
 *   REALM_QUOTA  refused: out->refusal says by what, error says it to the client */
realm_status meter_admit(meter *m, int64_t estimate, admission *out, realm_error *error);

/* Takes tokens from the budgets: 1, or 0 where they leave fewer, and then nothing is taken. Between admission
 * and settlement; any thread. */
int meter_take(admission *a, uint64_t tokens);
/* Of what was taken. Any thread. */
void meter_give(admission *a, uint64_t tokens);

/* The request has ended and took so many tokens, in and out; 0 if it failed before it took any. What it has
 * taken of the budgets is replaced by it. Every admission is settled once; a second time does nothing. */
void meter_settle(admission *a, int64_t tokens);

/* Rates now, for answers that were not admitted by this request (GET /v1/models) and for realm top. */
void meter_rates_get(meter *m, meter_rates *out);

typedef struct meter_stats {
    int32_t in_flight;
    int64_t taken;                               /* by those in flight */
    int64_t tokens_today, tokens_month;          /* of those that have ended */
    uint64_t admitted, refused[METER_SPENT + 1]; /* by meter_refusal, since the start */
} meter_stats;
void meter_stats_get(meter *m, meter_stats *out);

/* A duration as the headers have it: "0s", "120ms", "1.5s", "6m0s". Returns text. */
#define METER_DURATION_SIZE 32
const char *meter_duration(uint64_t ns, char text[METER_DURATION_SIZE]);

/* Days since 1970 of a moment in milliseconds, and a day as "2026-01-31"; and back: -1 if it is none. */
int32_t meter_day_of(int64_t wall_ms);
const char *meter_day_text(int32_t day, char text[11]);
int32_t meter_day_parse(const char *text);

#endif
