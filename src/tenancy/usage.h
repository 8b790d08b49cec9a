/* tenancy/usage.h: what was used, by tenant, key, model, program, version and day.
 *
 * An event is one request that ended; a row is the sum of the events of one such key. Sums of integers:
 * adding events to rows, rows to rows and rows to what the database holds gives the same totals in any
 * order, so usage is exact to the token. Latencies are counted in buckets (two an octave), which add up
 * too and give quantiles by version. Plain data; one thread at a time. */
#ifndef REALM_TENANCY_USAGE_H
#define REALM_TENANCY_USAGE_H

#include <stdio.h>

#include "base/map.h"
#include "tenancy/api_key.h"

#define USAGE_LATENCIES 48 /* bucket i ends at 2^(i/2) ms; the last takes all that is over */

typedef struct usage_key {
    uint32_t tenant;
    char key[API_KEY_ID_SIZE + 1]; /* the key's id; "" for none, "jwt" for bearer tokens */
    char model[129];               /* "" where none was used */
    char program[64];
    int32_t version; /* 0: built in */
    int32_t day;     /* since 1970, UTC, of the request's end */
} usage_key;

typedef struct usage_counts {
    uint64_t requests, errors;                                /* errors are among requests */
    uint64_t prompt_tokens, completion_tokens, cached_tokens; /* cached are among prompt */
    uint64_t cpu_ns;                                          /* of sandboxes */
    uint64_t wall_ns;                                         /* start to end, summed */
    uint64_t first_token_ns;           /* start to first token, summed over first_tokens */
    uint64_t first_tokens;             /* requests that had one */
    uint64_t latency[USAGE_LATENCIES]; /* requests by wall_ns */
} usage_counts;

typedef struct usage_row {
    usage_key key;
    usage_counts counts;
} usage_row;

/* One request that ended. */
typedef struct usage_event {
    usage_key key; /* day 0: today, filled in by tenancy_record */
    int failed;
    uint64_t prompt_tokens, completion_tokens, cached_tokens;
    uint64_t cpu_ns, wall_ns, first_token_ns; /* first_token_ns 0: there was none */
} usage_event;

int usage_latency_bucket(uint64_t wall_ns);
double usage_latency_ms(int bucket); /* where it ends */
/* The upper end of the bucket that holds the quantile (0 to 1), in ms; 0 without requests. */
double usage_quantile_ms(const usage_counts *counts, double quantile);

void usage_counts_add(usage_counts *sum, const usage_counts *more);

/* Rows by key, in memory. */
typedef struct usage_table {
    map rows; /* usage_key -> usage_row, owned */
} usage_table;
void usage_table_init(usage_table *t);
void usage_table_release(usage_table *t);
void usage_table_clear(usage_table *t);
realm_status usage_table_add(usage_table *t, const usage_event *event, realm_error *error);

/* ---- reading ---- */

typedef struct usage_filter {
    uint32_t tenant;                   /* 0: all */
    int32_t from, to;                  /* days, both included; 0: open */
    const char *key, *model, *program; /* NULL: all */
} usage_filter;

/* A part of a listing: the rows behind that one, at most limit of them. What the listing is not by is 0 or "". */
typedef struct usage_page {
    const usage_key *after; /* NULL: from the beginning */
    const char *after_name; /* its tenant's */
    int32_t limit;
} usage_page;

/* What a listing is by; the rest is summed. Bits. */
typedef enum usage_by {
    USAGE_BY_TENANT = 1,
    USAGE_BY_KEY = 2,
    USAGE_BY_MODEL = 4,
    USAGE_BY_PROGRAM = 8, /* and version */
    USAGE_BY_DAY = 16
} usage_by;
#define USAGE_BY_ALL 31u
/* "tenant,day"; REALM_INVALID names the wrong word. */
realm_status usage_by_parse(const char *text, unsigned *by, realm_error *error);

/* Writes rows one at a time; tenant is its name. CSV has a header line (RFC 4180; a field that a
 * spreadsheet would take for a formula is quoted with ' first), JSON is one list. */
typedef enum usage_format { USAGE_CSV, USAGE_JSON } usage_format;
typedef struct usage_writer {
    FILE *stream;
    usage_format format;
    unsigned by;
    int rows;
} usage_writer;
void usage_writer_begin(usage_writer *w, FILE *stream, usage_format format, unsigned by);
void usage_writer_row(usage_writer *w, const char *tenant, const usage_row *row);
void usage_writer_end(usage_writer *w);

#endif
