/* tenancy/store_usage.c: usage in the SQLite store. Rows are added to what is there, by one statement that is
 * prepared once. The database's integers are signed; 2^63 nanoseconds of CPU time are 292 years. */
#include <string.h>

#include "base/buffer.h"
#include "tenancy/store_sqlite.h"

#define KEY_COLUMNS "day, tenant, key, model, program, version"
#define N_KEYS      6
#define MAX_SQL     65536

#define SUM_NAME_SIZE 24

/* In the order of the columns; the latencies follow. */
static const char *const sums[] = {"requests",          "errors",         "prompt_tokens",
                                   "completion_tokens", "cached_tokens",  "cpu_ns",
                                   "wall_ns",           "first_token_ns", "first_tokens"};

#define N_SUMS (int)(sizeof sums / sizeof *sums)

static uint64_t *sum_of(usage_counts *c, int i)
{
    uint64_t *const at[] = {&c->requests,          &c->errors,         &c->prompt_tokens,
                            &c->completion_tokens, &c->cached_tokens,  &c->cpu_ns,
                            &c->wall_ns,           &c->first_token_ns, &c->first_tokens};
    return at[i];
}

/* The name of sum i, in text if it must be made. */
static const char *sum_name(int i, char text[SUM_NAME_SIZE])
{
    if (i < N_SUMS)
        return sums[i];
    snprintf(text, SUM_NAME_SIZE, "latency_%d", i - N_SUMS);
    return text;
}

#define N_ALL (N_SUMS + USAGE_LATENCIES)

static realm_status make_upsert(buffer *sql)
{
    char text[SUM_NAME_SIZE];
    realm_status status = buffer_add_text(sql, "INSERT INTO usage(" KEY_COLUMNS);
    for (int i = 0; i < N_ALL && !status; i++)
        status = buffer_printf(sql, ", %s", sum_name(i, text));
    for (int i = 0; i < N_KEYS + N_ALL && !status; i++)
        status = buffer_add_text(sql, i ? ", ?" : ") VALUES(?");
    for (int i = 0; i < N_ALL && !status; i++) {
        const char *name = sum_name(i, text);
        status = buffer_printf(sql, "%s%s = usage.%s + excluded.%s",
                               i ? ", " : ") ON CONFLICT DO UPDATE SET ", name, name, name);
    }
    return status;
}

static realm_status prepare_upsert(store_sqlite *s, realm_error *error)
{
    buffer sql;
    buffer_init(&sql, MAX_SQL);
    realm_status status = make_upsert(&sql);
    if (status)
        realm_fail_memory(error, sql.size, "a statement");
    else
        status = sqlite_file_prepare(&s->file, &s->usage, error, buffer_text(&sql), "");
    buffer_release(&sql);
    return status;
}

static realm_status add_row(store_sqlite *s, const usage_row *row, realm_error *error)
{
    sqlite3_stmt *u = s->usage;
    usage_counts counts = row->counts;
    int at = 0, more;
    sqlite3_bind_int64(u, ++at, row->key.day);
    sqlite3_bind_int64(u, ++at, row->key.tenant);
    int code = sqlite3_bind_text(u, ++at, row->key.key, -1, SQLITE_STATIC);
    if (code == SQLITE_OK)
        code = sqlite3_bind_text(u, ++at, row->key.model, -1, SQLITE_STATIC);
    if (code == SQLITE_OK)
        code = sqlite3_bind_text(u, ++at, row->key.program, -1, SQLITE_STATIC);
    sqlite3_bind_int64(u, ++at, row->key.version);
    for (int i = 0; i < N_SUMS; i++)
        sqlite3_bind_int64(u, ++at, (int64_t)*sum_of(&counts, i));
    for (int i = 0; i < USAGE_LATENCIES; i++)
        sqlite3_bind_int64(u, ++at, (int64_t)counts.latency[i]);
    realm_status status = code == SQLITE_OK ? sqlite_file_next(&s->file, u, &more, error)
                                            : sqlite_file_fail(&s->file, code, error);
    sqlite3_reset(u);
    return status;
}

realm_status store_usage_add(tenant_store *base, const usage_row *const *rows, size_t count,
                             realm_error *error)
{
    store_sqlite *s = store_sqlite_of(base);
    realm_status status = s->usage ? REALM_OK : prepare_upsert(s, error);
    if (!status)
        status = sqlite_file_begin(&s->file, error);
    if (status)
        return status;
    for (size_t i = 0; i < count && !status; i++)
        status = add_row(s, rows[i], error);
    return sqlite_file_end(&s->file, status, error);
}

/* ---- reading ---- */

static realm_status make_query(buffer *sql, unsigned by)
{
    char text[SUM_NAME_SIZE];
    realm_status status = buffer_printf(
        sql, "SELECT * FROM (SELECT %s AS d, %s AS t, %s AS k, %s AS m, %s AS p, %s AS v, %s AS n",
        by & USAGE_BY_DAY ? "day" : "0", by & USAGE_BY_TENANT ? "usage.tenant" : "0",
        by & USAGE_BY_KEY ? "key" : "''", by & USAGE_BY_MODEL ? "model" : "''",
        by & USAGE_BY_PROGRAM ? "program" : "''", by & USAGE_BY_PROGRAM ? "version" : "0",
        by & USAGE_BY_TENANT ? "coalesce(tenants.name, '')" : "''");
    for (int i = 0; i < N_ALL && !status; i++)
        status = buffer_printf(sql, ", sum(%s)", sum_name(i, text));
    if (!status)
        /* A page by days begins at its day: the days before are not read again. */
        status = buffer_printf(sql,
                               " FROM usage LEFT JOIN tenants ON tenants.number = usage.tenant "
                               "WHERE (?1 = 0 OR usage.tenant = ?1) AND (?2 = 0 OR day >= ?2) "
                               "AND (?3 = 0 OR day <= ?3) AND (?4 IS NULL OR key = ?4) "
                               "AND (?5 IS NULL OR model = ?5) AND (?6 IS NULL OR program = ?6) "
                               "%sGROUP BY d, t, k, m, p, v) "
                               "WHERE (d, n, t, k, m, p, v) > (?7, ?8, ?9, ?10, ?11, ?12, ?13) "
                               "ORDER BY d, n, t, k, m, p, v LIMIT ?14",
                               by & USAGE_BY_DAY ? "AND day >= ?7 " : "");
    return status;
}

static void copy_column(sqlite3_stmt *row, int column, char *out, size_t size)
{
    const char *text = (const char *)sqlite3_column_text(row, column);
    snprintf(out, size, "%s", text ? text : "");
}

static void read_row(sqlite3_stmt *row, usage_row *out)
{
    memset(out, 0, sizeof *out);
    out->key.day = (int32_t)sqlite3_column_int64(row, 0);
    out->key.tenant = (uint32_t)sqlite3_column_int64(row, 1);
    copy_column(row, 2, out->key.key, sizeof out->key.key);
    copy_column(row, 3, out->key.model, sizeof out->key.model);
    copy_column(row, 4, out->key.program, sizeof out->key.program);
    out->key.version = (int32_t)sqlite3_column_int64(row, 5);
    for (int i = 0; i < N_SUMS; i++)
        *sum_of(&out->counts, i) = (uint64_t)sqlite3_column_int64(row, N_KEYS + 1 + i);
    for (int i = 0; i < USAGE_LATENCIES; i++)
        out->counts.latency[i] = (uint64_t)sqlite3_column_int64(row, N_KEYS + 1 + N_SUMS + i);
}

realm_status store_usage_read(tenant_store *base, const usage_filter *filter, unsigned by,
                              const usage_page *page,
                              void (*each)(void *context, const char *tenant, const usage_row *row),
                              void *context, realm_error *error)
{
    store_sqlite *s = store_sqlite_of(base);
    sqlite3_stmt *statement = NULL;
    buffer sql;
    buffer_init(&sql, MAX_SQL);
    static const usage_key before = {.day = -1}; /* anything */
    const usage_key *after = page && page->after ? page->after : &before;
    realm_status status = make_query(&sql, by);
    if (status)
        realm_fail_memory(error, sql.size, "a query");
    else
        status = sqlite_file_prepare(
            &s->file, &statement, error, buffer_text(&sql), "iiitttititttii",
            (int64_t)filter->tenant, (int64_t)filter->from, (int64_t)filter->to, filter->key,
            filter->model, filter->program, (int64_t)after->day,
            page && page->after ? page->after_name : "", (int64_t)after->tenant, after->key,
            after->model, after->program, (int64_t)after->version,
            page ? (int64_t)page->limit : -1);
    for (int row = 1; !status;) {
        status = sqlite_file_next(&s->file, statement, &row, error);
        if (status || !row)
            break;
        usage_row one;
        read_row(statement, &one);
        each(context, (const char *)sqlite3_column_text(statement, 6), &one);
    }
    sqlite3_finalize(statement);
    buffer_release(&sql);
    return status;
}
