/* tenancy/usage.c: see usage.h. */
#include "tenancy/usage.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "formats/json.h"
#include "tenancy/meter.h"

/* Bucket i ends at 2^(i/2) ms, so i = ceil(2 log2(ms)). */
int usage_latency_bucket(uint64_t wall_ns)
{
    double ms = (double)wall_ns / 1e6;
    if (ms <= 1)
        return 0;
    int bucket = (int)ceil(2 * log2(ms));
    return bucket < USAGE_LATENCIES ? bucket : USAGE_LATENCIES - 1;
}

double usage_latency_ms(int bucket)
{
    return exp2(bucket / 2.0);
}

double usage_quantile_ms(const usage_counts *counts, double quantile)
{
    uint64_t total = 0, seen = 0;
    for (int i = 0; i < USAGE_LATENCIES; i++)
        total += counts->latency[i];
    for (int i = 0; i < USAGE_LATENCIES; i++) {
        seen += counts->latency[i];
        if (total && (double)seen >= quantile * (double)total && seen)
            return usage_latency_ms(i);
    }
    return 0;
}

void usage_counts_add(usage_counts *sum, const usage_counts *more)
{
    sum->requests += more->requests;
    sum->errors += more->errors;
    sum->prompt_tokens += more->prompt_tokens;
    sum->completion_tokens += more->completion_tokens;
    sum->cached_tokens += more->cached_tokens;
    sum->cpu_ns += more->cpu_ns;
    sum->wall_ns += more->wall_ns;
    sum->first_token_ns += more->first_token_ns;
    sum->first_tokens += more->first_tokens;
    for (int i = 0; i < USAGE_LATENCIES; i++)
        sum->latency[i] += more->latency[i];
}

/* ---- a table of rows ---- */

void usage_table_init(usage_table *t)
{
    map_init(&t->rows);
}

void usage_table_release(usage_table *t)
{
    size_t position = 0;
    for (const map_slot *slot; (slot = map_next(&t->rows, &position));)
        free(slot->value);
    map_release(&t->rows);
}

void usage_table_clear(usage_table *t)
{
    usage_table_release(t);
    usage_table_init(t);
}

/* The same key as bytes, whatever was in the unused parts of the caller's. */
static usage_key clean_key(const usage_key *key)
{
    usage_key clean;
    memset(&clean, 0, sizeof clean);
    clean.tenant = key->tenant;
    clean.version = key->version;
    clean.day = key->day;
    memcpy(clean.key, key->key, strnlen(key->key, sizeof key->key - 1));
    memcpy(clean.model, key->model, strnlen(key->model, sizeof key->model - 1));
    memcpy(clean.program, key->program, strnlen(key->program, sizeof key->program - 1));
    return clean;
}

static usage_row *row_of(usage_table *t, const usage_key *key)
{
    usage_key clean = clean_key(key);
    usage_row *row = map_get(&t->rows, &clean, sizeof clean);
    if (row)
        return row;
    row = calloc(1, sizeof *row);
    if (!row || map_put(&t->rows, &clean, sizeof clean, row, NULL) != REALM_OK) {
        free(row);
        return NULL;
    }
    row->key = clean;
    return row;
}

realm_status usage_table_add(usage_table *t, const usage_event *event, realm_error *error)
{
    usage_row *row = row_of(t, &event->key);
    if (!row)
        return realm_fail_memory(error, sizeof *row, "a usage row");
    usage_counts *c = &row->counts;
    c->requests++;
    c->errors += event->failed != 0;
    c->prompt_tokens += event->prompt_tokens;
    c->completion_tokens += event->completion_tokens;
    c->cached_tokens += event->cached_tokens;
    c->cpu_ns += event->cpu_ns;
    c->wall_ns += event->wall_ns;
    c->first_token_ns += event->first_token_ns;
    c->first_tokens += event->first_token_ns != 0;
    c->latency[usage_latency_bucket(event->wall_ns)]++;
    return REALM_OK;
}

/* ---- what a listing is by ---- */

static const struct {
    const char *name;
    unsigned bit;
} by_names[] = {{"tenant", USAGE_BY_TENANT},
                {"key", USAGE_BY_KEY},
                {"model", USAGE_BY_MODEL},
                {"program", USAGE_BY_PROGRAM},
                {"day", USAGE_BY_DAY}};

#define N_BY (sizeof by_names / sizeof *by_names)

realm_status usage_by_parse(const char *text, unsigned *by, realm_error *error)
{
    unsigned found = 0;
    for (const char *at = text; *at;) {
        size_t size = strcspn(at, ",");
        unsigned bit = 0;
        for (size_t i = 0; i < N_BY; i++)
            if (strlen(by_names[i].name) == size && memcmp(by_names[i].name, at, size) == 0)
                bit = by_names[i].bit;
        if (!bit)
            return realm_fail(error, REALM_INVALID,
                              "'%.*s' is none of tenant, key, model, program and day",
                              (int)(size < 40 ? size : 40), at);
        found |= bit;
        at += size + (at[size] == ',');
    }
    *by = found;
    return REALM_OK;
}

/* ---- writing ---- */

/* The columns that are sums, in order. */
#define COUNT_COLUMNS(X)                                                                           \
    X(requests)                                                                                    \
    X(errors) X(prompt_tokens) X(completion_tokens) X(cached_tokens) X(cpu_ns) X(wall_ns)

typedef struct column {
    const char *name;
    unsigned by;
} column;

static const column key_columns[] = {{"day", USAGE_BY_DAY},         {"tenant", USAGE_BY_TENANT},
                                     {"key", USAGE_BY_KEY},         {"model", USAGE_BY_MODEL},
                                     {"program", USAGE_BY_PROGRAM}, {"version", USAGE_BY_PROGRAM}};

#define N_KEY_COLUMNS (sizeof key_columns / sizeof *key_columns)

static const char *const count_columns[] = {
#define NAME(field) #field,
    COUNT_COLUMNS(NAME)
#undef NAME
};

#define N_COUNTS (sizeof count_columns / sizeof *count_columns)

/* RFC 4180, and nothing that a spreadsheet would run: a text that begins like a formula gets a '. */
static void print_csv(FILE *stream, const char *text)
{
    int formula = *text && strchr("=+-@\t\r", *text);
    if (!formula && !strpbrk(text, ",\"\r\n")) {
        fputs(text, stream);
        return;
    }
    fputs(formula ? "\"'" : "\"", stream);
    for (; *text; text++) {
        if (*text == '"')
            fputc('"', stream);
        fputc(*text, stream);
    }
    fputc('"', stream);
}

void usage_writer_begin(usage_writer *w, FILE *stream, usage_format format, unsigned by)
{
    *w = (usage_writer){.stream = stream, .format = format, .by = by};
    if (format == USAGE_JSON) {
        fputc('[', stream);
        return;
    }
    for (size_t i = 0; i < N_KEY_COLUMNS; i++)
        if (by & key_columns[i].by)
            fprintf(stream, "%s,", key_columns[i].name);
    for (size_t i = 0; i < N_COUNTS; i++)
        fprintf(stream, "%s,", count_columns[i]);
    fputs("mean_first_token_ms,p50_ms,p95_ms\r\n", stream);
}

static void begin_field(usage_writer *w, const char *name, int *first)
{
    if (w->format == USAGE_CSV)
        fputs(*first ? "" : ",", w->stream);
    else
        fprintf(w->stream, "%s\"%s\": ", *first ? "" : ", ", name);
    *first = 0;
}

static void print_text(usage_writer *w, const char *text)
{
    if (w->format == USAGE_CSV)
        print_csv(w->stream, text);
    else
        json_print_text(w->stream, text, strlen(text));
}

void usage_writer_row(usage_writer *w, const char *tenant, const usage_row *row)
{
    char day[11], version[16];
    snprintf(version, sizeof version, "%" PRId32, row->key.version);
    const char *const texts[N_KEY_COLUMNS] = {meter_day_text(row->key.day, day),
                                              tenant,
                                              row->key.key,
                                              row->key.model,
                                              row->key.program,
                                              version};
    int first = 1;
    if (w->format == USAGE_JSON)
        fputs(w->rows ? ",\n {" : "\n {", w->stream);
    for (size_t i = 0; i < N_KEY_COLUMNS; i++) {
        if (!(w->by & key_columns[i].by))
            continue;
        begin_field(w, key_columns[i].name, &first);
        if (i == N_KEY_COLUMNS - 1)
            fputs(version, w->stream);
        else
            print_text(w, texts[i]);
    }
    const usage_counts *c = &row->counts;
#define COUNT(field)                                                                               \
    begin_field(w, #field, &first);                                                                \
    fprintf(w->stream, "%" PRIu64, c->field);
    COUNT_COLUMNS(COUNT)
#undef COUNT
    double mean = c->first_tokens ? (double)c->first_token_ns / (double)c->first_tokens / 1e6 : 0;
    begin_field(w, "mean_first_token_ms", &first);
    fprintf(w->stream, "%.3f", mean);
    begin_field(w, "p50_ms", &first);
    fprintf(w->stream, "%.1f", usage_quantile_ms(c, 0.5));
    begin_field(w, "p95_ms", &first);
    fprintf(w->stream, "%.1f", usage_quantile_ms(c, 0.95));
    fputs(w->format == USAGE_CSV ? "\r\n" : "}", w->stream);
    w->rows++;
}

void usage_writer_end(usage_writer *w)
{
    if (w->format == USAGE_JSON)
        fputs(w->rows ? "\n]\n" : "]\n", w->stream);
}
