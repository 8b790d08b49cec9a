/* tenancy/meter.c: see meter.h.
 *
 * What a day's or month's budget has left is budget - used - taken, where taken is by requests in flight. A
 * request that ends after midnight is paid from the day it ended on, as its usage row says, so both agree. */
#include "tenancy/meter.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "tenancy/bucket.h"

#define SECOND_NS 1000000000ull
#define DAY_MS    86400000ll

/* Where only the end of another request helps, nobody knows when that is. */
#define SOON_NS SECOND_NS

static uint64_t system_now(void *context)
{
    (void)context;
    return clock_ns();
}

static int64_t system_wall(void *context)
{
    (void)context;
    return clock_wall_ms();
}

const tenancy_clock tenancy_clock_system = {system_now, system_wall, NULL};

struct meter {
    atomic_uint references;
    tenancy_clock clock;
    pthread_mutex_t mutex; /* guards all below */
    bucket requests, tokens;
    int64_t most_at_once, budget_day, budget_month; /* budgets 0: none */
    int32_t in_flight;
    int64_t taken; /* of the budgets, by those in flight */
    int32_t day;   /* which day used_day is of, and used_month of its month */
    int64_t used_day, used_month;
    uint64_t admitted, refused[METER_SPENT + 1];
};

const char *meter_refusal_name(meter_refusal refusal)
{
    static const char *const names[] = {"", "requests", "tokens", "concurrent", "budget", "spent"};
    return names[refusal];
}

/* ---- days ---- */

typedef struct date {
    int year;
    int month, day; /* from 1 */
} date;

/* The proleptic Gregorian calendar by eras of 400 years that begin on the first of March, so that the
 * leap day is a year's last ("Euclidean affine functions and their application to calendar algorithms",
 * Neri and Schneider, 2023, describes the family). Days from 1970 on. */
static date date_of(int32_t day)
{
    int64_t z = (int64_t)day + 719468; /* 0000-03-01 */
    int64_t era = z / 146097, of_era = z % 146097;
    int64_t year = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    int64_t of_year = of_era - (365 * year + year / 4 - year / 100);
    int month = (int)((5 * of_year + 2) / 153); /* 0: March */
    date d = {.year = (int)(year + era * 400),
              .month = month < 10 ? month + 3 : month - 9,
              .day = (int)(of_year - (153 * month + 2) / 5 + 1)};
    d.year += d.month <= 2;
    return d;
}

static int32_t day_of_date(date d)
{
    int64_t year = d.year - (d.month <= 2);
    int64_t era = year / 400, of_era = year % 400;
    int64_t month = d.month > 2 ? d.month - 3 : d.month + 9;
    int64_t of_year = (153 * month + 2) / 5 + d.day - 1;
    return (int32_t)(era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468);
}

int32_t meter_day_of(int64_t wall_ms)
{
    return wall_ms < 0 ? 0 : (int32_t)(wall_ms / DAY_MS);
}

const char *meter_day_text(int32_t day, char text[11])
{
    date d = date_of(day);
    snprintf(text, 11, "%04u-%02u-%02u", (unsigned)d.year % 10000u, (unsigned)d.month % 100u,
             (unsigned)d.day % 100u);
    return text;
}

int32_t meter_day_parse(const char *text)
{
    date d;
    int end = 0;
    char again[11];
    if (strlen(text) != 10 || strspn(text, "0123456789-") != 10 ||
        sscanf(text, "%4d-%2d-%2d%n", &d.year, &d.month, &d.day, &end) != 3 || end != 10 ||
        d.year < 1970 || d.month < 1 || d.month > 12 || d.day < 1)
        return -1;
    int32_t day = day_of_date(d);
    /* The 31st of April comes back as the first of May. */
    return strcmp(meter_day_text(day, again), text) == 0 ? day : -1;
}

static int32_t first_of_next_month(int32_t day)
{
    date d = date_of(day);
    d.day = 1;
    d.year += d.month == 12;
    d.month = d.month == 12 ? 1 : d.month + 1;
    return day_of_date(d);
}

const char *meter_duration(uint64_t ns, char text[METER_DURATION_SIZE])
{
    uint64_t ms = ns / 1000000 + (ns % 1000000 != 0);
    uint64_t minutes = ms / 60000, rest = ms % 60000;
    if (ms && ms < 1000) {
        snprintf(text, METER_DURATION_SIZE, "%" PRIu64 "ms", ms);
        return text;
    }
    int at = minutes >= 60 ? snprintf(text, METER_DURATION_SIZE, "%" PRIu64 "h", minutes / 60) : 0;
    if (minutes)
        at += snprintf(text + at, METER_DURATION_SIZE - (size_t)at, "%um",
                       (unsigned)(minutes % 60));
    at += snprintf(text + at, METER_DURATION_SIZE - (size_t)at, "%u", (unsigned)(rest / 1000));
    unsigned thousandths = (unsigned)(rest % 1000);
    if (thousandths) {
        at += snprintf(text + at, METER_DURATION_SIZE - (size_t)at, ".%03u", thousandths);
        while (text[at - 1] == '0')
            at--;
    }
    snprintf(text + at, METER_DURATION_SIZE - (size_t)at, "s");
    return text;
}

/* ---- one meter ---- */

static void read_settings(meter *m, const tenant_settings *settings)
{
    m->most_at_once = settings->concurrent_requests;
    m->budget_day = settings->tokens_per_day;
    m->budget_month = settings->tokens_per_month;
}

realm_status meter_open(meter **out, const tenant_settings *settings, const tenancy_clock *clock,
                        realm_error *error)
{
    meter *m = calloc(1, sizeof *m);
    if (!m)
        return realm_fail_memory(error, sizeof *m, "a tenant's meter");
    atomic_init(&m->references, 1);
    m->clock = *clock;
    pthread_mutex_init(&m->mutex, NULL);
    uint64_t now = clock->now_ns(clock->context);
    bucket_init(&m->requests, settings->requests_per_minute, now);
    bucket_init(&m->tokens, settings->tokens_per_minute, now);
    read_settings(m, settings);
    m->day = meter_day_of(clock->wall_ms(clock->context));
    *out = m;
    return REALM_OK;
}

meter *meter_retain(meter *m)
{
    atomic_fetch_add(&m->references, 1);
    return m;
}

void meter_release(meter *m)
{
    if (!m || atomic_fetch_sub(&m->references, 1) != 1)
        return;
    pthread_mutex_destroy(&m->mutex);
    free(m);
}

void meter_change(meter *m, const tenant_settings *settings)
{
    uint64_t now = m->clock.now_ns(m->clock.context);
    pthread_mutex_lock(&m->mutex);
    if (m->requests.per_minute != settings->requests_per_minute)
        bucket_change(&m->requests, settings->requests_per_minute, now);
    if (m->tokens.per_minute != settings->tokens_per_minute)
        bucket_change(&m->tokens, settings->tokens_per_minute, now);
    read_settings(m, settings);
    pthread_mutex_unlock(&m->mutex);
}

/* A clock that was set back stays on the later day: what is used must not come back. */
static void turn_day(meter *m)
{
    int32_t today = meter_day_of(m->clock.wall_ms(m->clock.context));
    if (today <= m->day)
        return;
    if (today >= first_of_next_month(m->day))
        m->used_month = 0;
    m->used_day = 0;
    m->day = today;
}

void meter_begin(meter *m, int32_t day, int64_t tokens_of_day, int64_t tokens_of_month)
{
    pthread_mutex_lock(&m->mutex);
    m->day = day;
    m->used_day += tokens_of_day;
    m->used_month += tokens_of_month;
    pthread_mutex_unlock(&m->mutex);
}

static meter_rate rate_of(bucket *b, uint64_t now)
{
    if (!b->per_minute)
        return (meter_rate){0};
    return (meter_rate){.limit = b->per_minute,
                        .remaining = bucket_remaining(b, now),
                        .reset_ns = bucket_full_ns(b, now)};
}

static meter_rates rates_of(meter *m, uint64_t now)
{
    return (meter_rates){rate_of(&m->requests, now), rate_of(&m->tokens, now)};
}

/* What is left of the nearer budget, with what is in flight still in it; INT64_MAX without any. */
static int64_t left_of_budgets(const meter *m)
{
    int64_t left = INT64_MAX;
    if (m->budget_day)
        left = m->budget_day - m->used_day;
    if (m->budget_month && m->budget_month - m->used_month < left)
        left = m->budget_month - m->used_month;
    return left;
}

static uint64_t until_day(const meter *m, int32_t day)
{
    int64_t ms = (int64_t)day * DAY_MS - m->clock.wall_ms(m->clock.context);
    return ms > 0 ? (uint64_t)ms * 1000000u : 0;
}

static realm_status refuse(meter *m, admission *out, meter_refusal refusal, uint64_t retry_ns,
                           realm_error *error, const char *reason)
{
    m->refused[refusal]++;
    out->refusal = refusal;
    out->retry_ns = retry_ns;
    out->should_retry = refusal != METER_SPENT;
    char text[METER_DURATION_SIZE];
    return realm_fail(error, REALM_QUOTA, "%s; try again in %s", reason,
                      meter_duration((retry_ns + SECOND_NS - 1) / SECOND_NS * SECOND_NS, text));
}

static realm_status refuse_spent(meter *m, admission *out, realm_error *error)
{
    if (m->budget_month && m->used_month >= m->budget_month)
        return refuse(m, out, METER_SPENT, until_day(m, first_of_next_month(m->day)), error,
                      "the month's budget of tokens is spent");
    return refuse(m, out, METER_SPENT, until_day(m, m->day + 1), error,
                  "the day's budget of tokens is spent");
}

/* Everything is looked at before anything is taken. */
static realm_status admit(meter *m, int64_t estimate, uint64_t now, admission *out,
                          realm_error *error)
{
    turn_day(m);
    int64_t left = left_of_budgets(m);
    if (left <= 0)
        return refuse_spent(m, out, error);
    if (m->in_flight >= m->most_at_once)
        return refuse(m, out, METER_CONCURRENT, SOON_NS, error,
                      "as many requests as the tenant may have at once are running");
    if (left <= m->taken)
        return refuse(m, out, METER_BUDGET, SOON_NS, error,
                      "requests that are running have taken what is left of the budget of tokens");
    if (estimate > left - m->taken)
        estimate = left - m->taken;
    uint64_t wait = bucket_wait_ns(&m->requests, 1, now);
    if (wait)
        return refuse(m, out, METER_REQUESTS, wait, error, "too many requests a minute");
    wait = bucket_wait_ns(&m->tokens, estimate, now);
    if (wait)
        return refuse(m, out, METER_TOKENS, wait, error, "too many tokens a minute");
    bucket_take(&m->requests, 1, now);
    bucket_take(&m->tokens, estimate, now);
    *out = (admission){.meter = meter_retain(m), .estimate = estimate, .should_retry = 1};
    m->in_flight++;
    m->admitted++;
    return REALM_OK;
}

realm_status meter_admit(meter *m, int64_t estimate, admission *out, realm_error *error)
{
    *out = (admission){0};
    if (estimate < 0)
        estimate = 0;
    uint64_t now = m->clock.now_ns(m->clock.context);
    pthread_mutex_lock(&m->mutex);
    realm_status status = admit(m, estimate, now, out, error);
    out->rates = rates_of(m, now);
    pthread_mutex_unlock(&m->mutex);
    return status;
}

int meter_take(admission *a, uint64_t tokens)
{
    meter *m = a->meter;
    pthread_mutex_lock(&m->mutex);
    turn_day(m);
    int64_t left = left_of_budgets(m) - m->taken;
    int enough = left > 0 && (uint64_t)left >= tokens;
    if (enough) {
        a->taken += (int64_t)tokens;
        m->taken += (int64_t)tokens;
    }
    pthread_mutex_unlock(&m->mutex);
    return enough;
}

void meter_give(admission *a, uint64_t tokens)
{
    meter *m = a->meter;
    pthread_mutex_lock(&m->mutex);
    a->taken -= (int64_t)tokens;
    m->taken -= (int64_t)tokens;
    pthread_mutex_unlock(&m->mutex);
}

void meter_settle(admission *a, int64_t tokens)
{
    meter *m = a->meter;
    if (!m)
        return;
    a->meter = NULL;
    uint64_t now = m->clock.now_ns(m->clock.context);
    pthread_mutex_lock(&m->mutex);
    turn_day(m);
    bucket_settle(&m->tokens, a->estimate - tokens, now);
    m->taken -= a->taken;
    m->in_flight--;
    m->used_day += tokens;
    m->used_month += tokens;
    a->rates = rates_of(m, now);
    pthread_mutex_unlock(&m->mutex);
    meter_release(m);
}

void meter_rates_get(meter *m, meter_rates *out)
{
    uint64_t now = m->clock.now_ns(m->clock.context);
    pthread_mutex_lock(&m->mutex);
    *out = rates_of(m, now);
    pthread_mutex_unlock(&m->mutex);
}

void meter_stats_get(meter *m, meter_stats *out)
{
    pthread_mutex_lock(&m->mutex);
    turn_day(m);
    *out = (meter_stats){.in_flight = m->in_flight,
                         .taken = m->taken,
                         .tokens_today = m->used_day,
                         .tokens_month = m->used_month,
                         .admitted = m->admitted};
    memcpy(out->refused, m->refused, sizeof out->refused);
    pthread_mutex_unlock(&m->mutex);
}
