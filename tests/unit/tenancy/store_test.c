/* tests/unit/tenancy/store_test.c: the SQLite store: what it keeps, and what it says of files it cannot keep. */
#include "unit/unit.h"

#include <fcntl.h>
#include <pthread.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/rng.h"
#include "tenancy/store_sqlite.h"
#include "unit/tenancy/folder.h"

static realm_error error;
static arena memory;
static tenant_store *g_store;

static int begin(void **state)
{
    arena_init(&memory, 0);
    if (folder_make(state))
        return -1;
    return store_sqlite_open(&g_store, g_folder, &error);
}

static int end(void **state)
{
    if (g_store)
        g_store->table->close(g_store);
    g_store = NULL;
    arena_release(&memory);
    return folder_remove(state);
}

static void reopen(void)
{
    g_store->table->close(g_store);
    g_store = NULL;
    assert_status(store_sqlite_open(&g_store, g_folder, &error), REALM_OK, error);
}

static uint32_t make_tenant(const char *name)
{
    tenant_settings s = settings_default();
    uint32_t number;
    assert_status(g_store->table->tenant_create(g_store, name, &s, &number, &error), REALM_OK,
                  error);
    return number;
}

/* ---- tenants ---- */

static void a_tenant_is_there_after_reopening(void **state)
{
    (void)state;
    tenant_settings s = settings_default();
    const char *const models[] = {"gemma", "smollm2"};
    uint32_t number;
    tenant_record found;
    s.requests_per_minute = 500;
    s.models = (settings_names){.names = models, .count = 2};
    assert_status(g_store->table->tenant_create(g_store, "acme", &s, &number, &error), REALM_OK,
                  error);
    reopen();
    assert_status(g_store->table->tenant_find(g_store, &memory, "acme", &found, &error), REALM_OK,
                  error);
    assert_int_equal(found.number, number);
    assert_int_equal(found.settings.requests_per_minute, 500);
    assert_int_equal(found.settings.models.count, 2);
    assert_string_equal(found.settings.models.names[1], "smollm2");
    s.requests_per_minute = 7;
    assert_status(g_store->table->tenant_set(g_store, number, &s, &error), REALM_OK, error);
    int64_t before = found.revision;
    assert_status(g_store->table->tenant_find(g_store, &memory, "acme", &found, &error), REALM_OK,
                  error);
    assert_int_equal(found.settings.requests_per_minute, 7);
    assert_true(found.revision > before);
}

static void names_are_one_each_and_numbers_never_come_back(void **state)
{
    (void)state;
    tenant_settings s = settings_default();
    tenant_record *list, found;
    size_t count;
    uint32_t number, first = make_tenant("acme");
    assert_int_equal(g_store->table->tenant_create(g_store, "acme", &s, &number, &error),
                     REALM_INVALID);
    assert_holds(error.message, "acme");
    assert_int_equal(g_store->table->tenant_create(g_store, "../x", &s, &number, &error),
                     REALM_INVALID);
    assert_status(g_store->table->tenant_delete(g_store, first, &error), REALM_OK, error);
    assert_int_equal(g_store->table->tenant_delete(g_store, first, &error), REALM_NOT_FOUND);
    assert_int_equal(g_store->table->tenant_set(g_store, first, &s, &error), REALM_NOT_FOUND);
    assert_int_equal(g_store->table->tenant_find(g_store, &memory, "acme", &found, &error),
                     REALM_NOT_FOUND);
    assert_true(make_tenant("acme") > first);
    assert_status(g_store->table->tenant_list(g_store, &memory, 0, NULL, &list, &count, &error),
                  REALM_OK, error);
    assert_int_equal(count, 1);
    assert_status(g_store->table->tenant_list(g_store, &memory, 1, NULL, &list, &count, &error),
                  REALM_OK, error);
    assert_int_equal(count, 2);
    assert_true(list[0].deleted_ms > 0);
}

static void settings_of_known_tenants_are_left_out(void **state)
{
    (void)state;
    tenant_record *list;
    size_t count;
    store_page known = {.limit = -1};
    make_tenant("old");
    assert_status(g_store->table->generation(g_store, &known.known_revision, &error), REALM_OK,
                  error);
    make_tenant("young");
    assert_status(g_store->table->tenant_list(g_store, &memory, 0, &known, &list, &count, &error),
                  REALM_OK, error);
    assert_int_equal(count, 2);
    assert_string_equal(list[0].name, "old");
    assert_false(list[0].has_settings);
    assert_true(list[1].has_settings);
}

/* ---- keys ---- */

static key_record new_key(uint32_t tenant, unsigned scopes)
{
    api_key_secret secret;
    key_record key = {
        .tenant = tenant, .name = "ci", .scopes = scopes, .created_ms = 5, .expires_ms = 99};
    assert_status(api_key_make(&secret, &error), REALM_OK, error);
    memcpy(key.id, secret.id, sizeof key.id);
    memcpy(key.salt, secret.salt, sizeof key.salt);
    memcpy(key.hash, secret.hash, sizeof key.hash);
    return key;
}

static void keys_are_kept_as_hashes_and_revoked_by_their_owner(void **state)
{
    (void)state;
    uint32_t a = make_tenant("a"), b = make_tenant("b");
    key_record key = new_key(a, API_SCOPE_INFERENCE | API_SCOPE_DEPLOY), *list;
    size_t count;
    assert_status(g_store->table->key_add(g_store, &key, &error), REALM_OK, error);
    key_use use = {.at_ms = 1234};
    memcpy(use.id, key.id, sizeof use.id);
    assert_status(g_store->table->key_used(g_store, &use, 1, &error), REALM_OK, error);
    assert_int_equal(g_store->table->key_revoke(g_store, b, key.id, &error), REALM_NOT_FOUND);
    reopen();
    assert_status(g_store->table->key_list(g_store, &memory, a, NULL, &list, &count, &error),
                  REALM_OK, error);
    assert_int_equal(count, 1);
    assert_string_equal(list[0].id, key.id);
    assert_string_equal(list[0].name, "ci");
    assert_int_equal(list[0].scopes, key.scopes);
    assert_int_equal(list[0].expires_ms, 99);
    assert_int_equal(list[0].last_used_ms, 1234);
    assert_int_equal(list[0].revoked_ms, 0);
    assert_memory_equal(list[0].hash, key.hash, sizeof key.hash);
    assert_memory_equal(list[0].salt, key.salt, sizeof key.salt);
    assert_status(g_store->table->key_list(g_store, &memory, b, NULL, &list, &count, &error),
                  REALM_OK, error);
    assert_int_equal(count, 0);
    assert_status(g_store->table->key_revoke(g_store, a, key.id, &error), REALM_OK, error);
    assert_status(g_store->table->key_revoke(g_store, STORE_ALL, key.id, &error), REALM_OK, error);
    assert_status(
        g_store->table->key_list(g_store, &memory, STORE_ALL, NULL, &list, &count, &error),
        REALM_OK, error);
    assert_true(count == 1 && list[0].revoked_ms > 0);
    assert_int_equal(g_store->table->key_revoke(g_store, STORE_ALL, "nobody", &error),
                     REALM_NOT_FOUND);
}

static void admin_is_for_keys_of_the_node_alone(void **state)
{
    (void)state;
    uint32_t a = make_tenant("a");
    key_record key = new_key(a, API_SCOPE_ADMIN);
    assert_int_equal(g_store->table->key_add(g_store, &key, &error), REALM_INVALID);
    key = new_key(0, API_SCOPE_INFERENCE);
    assert_int_equal(g_store->table->key_add(g_store, &key, &error), REALM_INVALID);
    key = new_key(0, API_SCOPE_ADMIN);
    assert_status(g_store->table->key_add(g_store, &key, &error), REALM_OK, error);
    key = new_key(99, API_SCOPE_INFERENCE);
    assert_int_equal(g_store->table->key_add(g_store, &key, &error), REALM_NOT_FOUND);
}

/* ---- programs ---- */

static realm_status deploy(uint32_t tenant, const char *name, const char *bytes, int32_t share,
                           int32_t *version)
{
    deployment d = {.tenant = tenant,
                    .name = name,
                    .bytes = bytes,
                    .size = strlen(bytes),
                    .share = share,
                    .limit_bytes = 1 << 20};
    return g_store->table->program_deploy(g_store, &d, version, &error);
}

static int32_t deployed(uint32_t tenant, const char *name, const char *bytes, int32_t share)
{
    int32_t version;
    assert_status(deploy(tenant, name, bytes, share, &version), REALM_OK, error);
    return version;
}

static program_record program_of(uint32_t tenant, const char *name)
{
    program_record *list;
    size_t count;
    assert_status(
        g_store->table->program_list(g_store, &memory, tenant, NULL, NULL, &list, &count, &error),
        REALM_OK, error);
    for (size_t i = 0; i < count; i++)
        if (strcmp(list[i].name, name) == 0)
            return list[i];
    return (program_record){0};
}

static void versions_switch_split_and_go_back(void **state)
{
    (void)state;
    uint32_t a = make_tenant("a");
    int32_t back;
    assert_int_equal(deployed(a, "p", "one", 100),
                     1); /* the first serves all, whatever its share */
    assert_int_equal(deployed(a, "p", "two", ROUTE_WHOLE), 2);
    assert_int_equal(deployed(a, "p", "three", 1000), 3);
    reopen();
    program_record p = program_of(a, "p");
    assert_int_equal(p.n_versions, 3);
    assert_int_equal(p.n_route, 2);
    assert_int_equal(p.route[0].version, 2); /* the one with most comes first */
    assert_int_equal(p.route[0].share, 9000);
    assert_int_equal(p.route[1].version, 3);
    assert_int_equal(deployed(a, "p", "four", 0), 4); /* kept, not routed */
    p = program_of(a, "p");
    assert_int_equal(p.n_route, 2);
    const route_share all[] = {{4, ROUTE_WHOLE}};
    assert_status(g_store->table->program_route(g_store, a, "p", all, 1, &error), REALM_OK, error);
    /* 3 was a canary and never had most: back goes to 2, and then to 1. */
    assert_status(g_store->table->program_rollback(g_store, a, "p", 0, &back, &error), REALM_OK,
                  error);
    assert_int_equal(back, 2);
    assert_status(g_store->table->program_rollback(g_store, a, "p", 0, &back, &error), REALM_OK,
                  error);
    assert_int_equal(back, 1);
    assert_int_equal(g_store->table->program_rollback(g_store, a, "p", 0, &back, &error),
                     REALM_NOT_FOUND);
    assert_status(g_store->table->program_rollback(g_store, a, "p", 3, &back, &error), REALM_OK,
                  error);
    p = program_of(a, "p");
    assert_true(p.n_route == 1 && p.route[0].version == 3 && p.route[0].share == ROUTE_WHOLE);
}

static void wrong_routes_change_nothing(void **state)
{
    (void)state;
    uint32_t a = make_tenant("a");
    deployed(a, "p", "one", ROUTE_WHOLE);
    deployed(a, "p", "two", ROUTE_WHOLE);
    const route_share short_sum[] = {{1, 5000}, {2, 4000}}, twice[] = {{1, 5000}, {1, 5000}},
                      unknown[] = {{1, 5000}, {9, 5000}}, negative[] = {{1, 20000}, {2, -10000}};
    assert_int_equal(g_store->table->program_route(g_store, a, "p", short_sum, 2, &error),
                     REALM_INVALID);
    assert_int_equal(g_store->table->program_route(g_store, a, "p", twice, 2, &error),
                     REALM_INVALID);
    assert_int_equal(g_store->table->program_route(g_store, a, "p", negative, 2, &error),
                     REALM_INVALID);
    assert_int_equal(g_store->table->program_route(g_store, a, "p", unknown, 2, &error),
                     REALM_NOT_FOUND);
    assert_int_equal(g_store->table->program_route(g_store, a, "q", unknown, 1, &error),
                     REALM_INVALID);
    assert_int_equal(deploy(a, "p", "x", ROUTE_WHOLE + 1, NULL), REALM_INVALID);
    assert_int_equal(deploy(a, "P!", "x", ROUTE_WHOLE, NULL), REALM_INVALID);
    assert_int_equal(deploy(77, "p", "x", ROUTE_WHOLE, NULL), REALM_NOT_FOUND);
    program_record p = program_of(a, "p");
    assert_true(p.n_versions == 2 && p.n_route == 1 && p.route[0].version == 2);
}

static void modules_are_kept_once_and_checked(void **state)
{
    (void)state;
    uint32_t a = make_tenant("a"), b = make_tenant("b");
    const void *bytes;
    size_t size;
    deployed(a, "p", "same bytes", ROUTE_WHOLE);
    deployed(b, "q", "same bytes", ROUTE_WHOLE);
    program_record p = program_of(a, "p");
    assert_string_equal(p.versions[0].hash, program_of(b, "q").versions[0].hash);
    store_sqlite *s = store_sqlite_of(g_store);
    int64_t count;
    assert_status(sqlite_file_number(&s->file, &count, &error, "SELECT count(*) FROM modules", ""),
                  REALM_OK, error);
    assert_int_equal(count, 1);
    /* b's goes with b; the bytes stay for a. */
    assert_status(g_store->table->tenant_delete(g_store, b, &error), REALM_OK, error);
    assert_status(
        g_store->table->program_bytes(g_store, &memory, p.versions[0].hash, &bytes, &size, &error),
        REALM_OK, error);
    assert_int_equal(size, 10);
    assert_memory_equal(bytes, "same bytes", 10);
    assert_status(sqlite_file_run(&s->file, &error, "UPDATE modules SET bytes = x'00'", ""),
                  REALM_OK, error);
    assert_int_equal(
        g_store->table->program_bytes(g_store, &memory, p.versions[0].hash, &bytes, &size, &error),
        REALM_CORRUPT);
    assert_status(g_store->table->program_delete(g_store, a, "p", &error), REALM_OK, error);
    assert_int_equal(g_store->table->program_delete(g_store, a, "p", &error), REALM_NOT_FOUND);
    assert_status(sqlite_file_number(&s->file, &count, &error, "SELECT count(*) FROM modules", ""),
                  REALM_OK, error);
    assert_int_equal(count, 0);
    /* A version's number means one module for ever, also for the usage that was counted under it. */
    assert_int_equal(deployed(a, "p", "new", ROUTE_WHOLE), 2);
}

static void a_tenants_modules_have_a_limit(void **state)
{
    (void)state;
    uint32_t a = make_tenant("a");
    deployment d = {.tenant = a,
                    .name = "p",
                    .bytes = "12345678",
                    .size = 8,
                    .share = ROUTE_WHOLE,
                    .limit_bytes = 16};
    assert_status(g_store->table->program_deploy(g_store, &d, NULL, &error), REALM_OK, error);
    assert_status(g_store->table->program_deploy(g_store, &d, NULL, &error), REALM_OK, error);
    assert_int_equal(g_store->table->program_deploy(g_store, &d, NULL, &error), REALM_QUOTA);
    assert_holds(error.message, "program_bytes");
    assert_int_equal(program_of(a, "p").n_versions, 2);
}

static void old_versions_go_unless_they_serve(void **state)
{
    (void)state;
    uint32_t a = make_tenant("a");
    char bytes[16];
    deployed(a, "p", "first", ROUTE_WHOLE);
    for (int i = 0; i < PROGRAM_KEPT_VERSIONS + 20; i++) {
        snprintf(bytes, sizeof bytes, "m%d", i);
        deployed(a, "p", bytes, 100); /* a canary after the other: 1 keeps the rest */
    }
    program_record p = program_of(a, "p");
    assert_int_equal(p.n_versions, PROGRAM_KEPT_VERSIONS + 1);
    assert_int_equal(p.versions[0].version, 1);
    assert_int_equal(p.versions[1].version, 22);
    assert_int_equal(p.route[0].version, 1);
}

/* ---- usage ---- */

static uint64_t g_seen_tokens, g_seen_requests;
static int g_seen_rows;

static void see(void *context, const char *tenant, const usage_row *row)
{
    g_seen_tokens += row->counts.prompt_tokens + row->counts.completion_tokens;
    g_seen_requests += row->counts.requests;
    g_seen_rows++;
    if (context)
        assert_string_equal(tenant, context);
}

static int read_usage(usage_filter filter, unsigned by, const char *tenant)
{
    g_seen_tokens = g_seen_requests = 0;
    g_seen_rows = 0;
    assert_status(
        g_store->table->usage_read(g_store, &filter, by, NULL, see, (void *)tenant, &error),
        REALM_OK, error);
    return g_seen_rows;
}

/* Against plain sums, over many batches. */
static void usage_is_exact_to_the_token(void **state)
{
    (void)state;
    uint32_t tenants[3] = {make_tenant("a"), make_tenant("b"), make_tenant("c")};
    uint64_t tokens[3] = {0}, of_day[4] = {0}, of_model[2] = {0}, requests = 0;
    rng random;
    rng_init(&random, 5);
    for (int batch = 0; batch < 40; batch++) {
        usage_table t;
        usage_table_init(&t);
        for (int i = 0; i < 30; i++) {
            unsigned who = rng_next(&random) % 3, day = rng_next(&random) % 4,
                     gemma = rng_next(&random) % 2;
            usage_event e = {.key = {.tenant = tenants[who], .day = 20000 + (int32_t)day},
                             .prompt_tokens = rng_next(&random) % 5000,
                             .completion_tokens = rng_next(&random) % 5000,
                             .wall_ns = rng_next(&random) % 1000000000};
            strcpy(e.key.model, gemma ? "gemma" : "smollm2");
            assert_status(usage_table_add(&t, &e, &error), REALM_OK, error);
            uint64_t sum = e.prompt_tokens + e.completion_tokens;
            tokens[who] += sum;
            of_day[day] += sum;
            of_model[gemma] += sum;
            requests++;
        }
        const usage_row *rows[64];
        size_t count = 0, position = 0;
        for (const map_slot *slot; (slot = map_next(&t.rows, &position));)
            rows[count++] = slot->value;
        assert_status(g_store->table->usage_add(g_store, rows, count, &error), REALM_OK, error);
        usage_table_release(&t);
    }
    reopen();
    static const char *const names[] = {"a", "b", "c"};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(
            read_usage((usage_filter){.tenant = tenants[i]}, USAGE_BY_TENANT, names[i]), 1);
        assert_int_equal(g_seen_tokens, tokens[i]);
    }
    for (int day = 0; day < 4; day++) {
        read_usage((usage_filter){.from = 20000 + day, .to = 20000 + day}, 0, NULL);
        assert_int_equal(g_seen_tokens, of_day[day]);
    }
    read_usage((usage_filter){.model = "gemma"}, USAGE_BY_DAY, NULL);
    assert_int_equal(g_seen_tokens, of_model[1]);
    assert_int_equal(g_seen_rows, 4);
    assert_int_equal(read_usage((usage_filter){0}, USAGE_BY_ALL, NULL), 3 * 4 * 2);
    assert_int_equal(g_seen_requests, requests);
    assert_int_equal(read_usage((usage_filter){.key = "nobody"}, USAGE_BY_ALL, NULL), 0);
    /* A deleted tenant's bill is still to be paid, under its name. */
    assert_status(g_store->table->tenant_delete(g_store, tenants[0], &error), REALM_OK, error);
    read_usage((usage_filter){.tenant = tenants[0]}, USAGE_BY_TENANT, "a");
    assert_int_equal(g_seen_tokens, tokens[0]);
}

/* ---- changes ---- */

static void every_change_but_usage_is_seen_by_other_processes(void **state)
{
    (void)state;
    tenant_store *other;
    int64_t before, after;
    assert_status(store_sqlite_open(&other, g_folder, &error), REALM_OK, error);
    assert_status(other->table->generation(other, &before, &error), REALM_OK, error);
    uint32_t a = make_tenant("a");
    assert_status(other->table->generation(other, &after, &error), REALM_OK, error);
    assert_true(after > before);
    before = after;
    deployed(a, "p", "x", ROUTE_WHOLE);
    assert_status(other->table->generation(other, &after, &error), REALM_OK, error);
    assert_true(after > before);
    before = after;
    usage_row row = {.key = {.tenant = a, .day = 1}};
    const usage_row *rows[] = {&row};
    assert_status(g_store->table->usage_add(g_store, rows, 1, &error), REALM_OK, error);
    assert_status(other->table->generation(other, &after, &error), REALM_OK, error);
    assert_int_equal(after, before);
    /* Both write in turn. */
    uint32_t number;
    tenant_settings s = settings_default();
    assert_status(other->table->tenant_create(other, "b", &s, &number, &error), REALM_OK, error);
    assert_int_equal(number, a + 1);
    make_tenant("c");
    other->table->close(other);
}

/* ---- files ---- */

static void files_are_for_their_owner_alone(void **state)
{
    (void)state;
    struct stat info;
    static const char *const leaves[] = {"realm.db", "realm.db-wal"};
    make_tenant("a");
    for (int i = 0; i < 2; i++) {
        assert_int_equal(stat(folder_path(leaves[i]), &info), 0);
        assert_int_equal(info.st_mode & 077, 0);
    }
}

/* Files as Realms before this one left them: every step of the schema is one. */
static void older_files_are_brought_up_to_date(void **state)
{
    (void)state;
    for (int version = 1; version <= store_sqlite_schema.count; version++) {
        char folder[128], path[160], sql[256];
        snprintf(folder, sizeof folder, "%s/v%d", g_folder, version);
        snprintf(path, sizeof path, "%s/realm.db", folder);
        assert_int_equal(mkdir(folder, 0700), 0);
        sqlite3 *db;
        assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
        for (int i = 0; i < version; i++)
            assert_int_equal(sqlite3_exec(db, store_sqlite_schema.steps[i], 0, 0, 0), SQLITE_OK);
        snprintf(sql, sizeof sql,
                 "PRAGMA application_id = %d; PRAGMA user_version = %d;"
                 "INSERT INTO tenants(name, created_ms, revision, settings)"
                 " VALUES('old', 1, 1, '{\"weight\": 3}')",
                 store_sqlite_schema.application_id, version);
        assert_int_equal(sqlite3_exec(db, sql, 0, 0, 0), SQLITE_OK);
        sqlite3_close(db);

        tenant_store *s;
        tenant_record found;
        program_record *programs;
        size_t count;
        assert_status(store_sqlite_open(&s, folder, &error), REALM_OK, error);
        assert_status(s->table->tenant_find(s, &memory, "old", &found, &error), REALM_OK, error);
        assert_true(found.settings.weight == 3);
        /* What the old file had no tables for. */
        assert_status(
            s->table->program_list(s, &memory, STORE_ALL, NULL, NULL, &programs, &count, &error),
            REALM_OK, error);
        usage_row row = {.key = {.tenant = found.number, .day = 1}};
        const usage_row *rows[] = {&row};
        assert_status(s->table->usage_add(s, rows, 1, &error), REALM_OK, error);
        s->table->close(s);
    }
}

static void execute(const char *path, const char *sql)
{
    sqlite3 *db;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, sql, 0, 0, 0), SQLITE_OK);
    sqlite3_close(db);
}

static void a_newer_file_is_left_alone(void **state)
{
    (void)state;
    tenant_store *s;
    g_store->table->close(g_store);
    g_store = NULL;
    execute(folder_path("realm.db"), "PRAGMA user_version = 999");
    assert_int_equal(store_sqlite_open(&s, g_folder, &error), REALM_UNSUPPORTED);
    assert_holds(error.message, "999");
    execute(folder_path("realm.db"), "SELECT count(*) FROM tenants");
}

static void somebody_elses_database_is_left_alone(void **state)
{
    (void)state;
    tenant_store *s;
    char folder[128], path[160];
    snprintf(folder, sizeof folder, "%s/other", g_folder);
    snprintf(path, sizeof path, "%s/realm.db", folder);
    assert_int_equal(mkdir(folder, 0700), 0);
    execute(path, "CREATE TABLE precious(x)");
    assert_int_equal(store_sqlite_open(&s, folder, &error), REALM_CORRUPT);
    assert_holds(error.message, "not one of Realm's");
    execute(path, "SELECT * FROM precious");
}

static void overwrite(const char *path, off_t at, size_t size)
{
    int descriptor = open(path, O_RDWR | O_CREAT, 0600);
    char *noise = malloc(size);
    memset(noise, 0xA5, size);
    assert_int_equal(pwrite(descriptor, noise, size, at), size);
    free(noise);
    close(descriptor);
}

static void a_damaged_file_says_so_and_what_to_do(void **state)
{
    (void)state;
    tenant_store *s;
    char name[16];
    for (int i = 0; i < 200; i++) {
        snprintf(name, sizeof name, "t%d", i);
        make_tenant(name);
    }
    g_store->table->close(g_store);
    g_store = NULL;
    struct stat info;
    assert_int_equal(stat(folder_path("realm.db"), &info), 0);
    assert_true(info.st_size > 40000);
    overwrite(folder_path("realm.db"), info.st_size / 2, 8192);
    assert_int_equal(store_sqlite_open(&s, g_folder, &error), REALM_CORRUPT);
    assert_holds(error.message, "realm.db");
    assert_holds(error.message, "backup");
    overwrite(folder_path("realm.db"), 0, 100);
    assert_int_equal(store_sqlite_open(&s, g_folder, &error), REALM_CORRUPT);
    assert_holds(error.message, "backup");
}

static void an_empty_file_is_not_a_new_folder(void **state)
{
    (void)state;
    tenant_store *s;
    struct stat info;
    const char *path = folder_path("realm.db");
    make_tenant("acme");
    g_store->table->close(g_store);
    g_store = NULL;
    const struct timespec long_ago[2] = {{.tv_sec = 1}, {.tv_sec = 1}};
    assert_int_equal(truncate(path, 0), 0);
    assert_int_equal(utimensat(AT_FDCWD, path, long_ago, 0), 0);
    assert_int_equal(store_sqlite_open(&s, g_folder, &error), REALM_CORRUPT);
    assert_holds(error.message, "realm.db' is empty");
    assert_holds(error.message, "backup");
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_size, 0);
    assert_int_equal(unlink(path), 0); /* as the sentence says */
    assert_status(store_sqlite_open(&s, g_folder, &error), REALM_OK, error);
    s->table->close(s);
}

static void *finish_it(void *context)
{
    const struct timespec moment = {.tv_nsec = 100 * 1000000};
    nanosleep(&moment, NULL);
    assert_int_equal(rename(context, folder_path("realm.db")), 0);
    return NULL;
}

static void a_file_that_is_being_made_is_waited_for(void **state)
{
    (void)state;
    tenant_record record;
    pthread_t maker;
    char made[160];
    make_tenant("acme");
    g_store->table->close(g_store);
    g_store = NULL;
    snprintf(made, sizeof made, "%s/made", g_folder);
    assert_int_equal(rename(folder_path("realm.db"), made), 0);
    int descriptor = open(folder_path("realm.db"), O_RDWR | O_CREAT | O_EXCL, 0600);
    assert_true(descriptor >= 0);
    close(descriptor);
    assert_int_equal(pthread_create(&maker, NULL, finish_it, made), 0);
    assert_status(store_sqlite_open(&g_store, g_folder, &error), REALM_OK, error);
    pthread_join(maker, NULL);
    assert_status(g_store->table->tenant_find(g_store, &memory, "acme", &record, &error), REALM_OK,
                  error);
}

static void state_without_its_tenants_is_not_a_new_folder(void **state)
{
    (void)state;
    tenant_store *s;
    g_store->table->close(g_store);
    g_store = NULL;
    assert_int_equal(rename(folder_path("realm.db"), folder_path("state.db")), 0);
    assert_int_equal(store_sqlite_open(&s, g_folder, &error), REALM_CORRUPT);
    assert_holds(error.message, "realm.db' is missing");
    assert_holds(error.message, "state.db");
    assert_int_not_equal(access(folder_path("realm.db"), F_OK), 0);
}

static void a_folder_that_cannot_be_is_an_error(void **state)
{
    (void)state;
    tenant_store *s;
    overwrite(folder_path("file"), 0, 1);
    assert_int_equal(store_sqlite_open(&s, folder_path("file"), &error), REALM_INVALID);
    assert_true(store_sqlite_open(&s, "/proc/none", &error) != REALM_OK);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, begin, end)
    const struct CMUnitTest tests[] = {
        TEST(a_tenant_is_there_after_reopening),
        TEST(names_are_one_each_and_numbers_never_come_back),
        TEST(settings_of_known_tenants_are_left_out),
        TEST(keys_are_kept_as_hashes_and_revoked_by_their_owner),
        TEST(admin_is_for_keys_of_the_node_alone),
        TEST(versions_switch_split_and_go_back),
        TEST(wrong_routes_change_nothing),
        TEST(modules_are_kept_once_and_checked),
        TEST(a_tenants_modules_have_a_limit),
        TEST(old_versions_go_unless_they_serve),
        TEST(usage_is_exact_to_the_token),
        TEST(every_change_but_usage_is_seen_by_other_processes),
        TEST(files_are_for_their_owner_alone),
        TEST(older_files_are_brought_up_to_date),
        TEST(a_newer_file_is_left_alone),
        TEST(somebody_elses_database_is_left_alone),
        TEST(a_damaged_file_says_so_and_what_to_do),
        TEST(an_empty_file_is_not_a_new_folder),
        TEST(a_file_that_is_being_made_is_waited_for),
        TEST(state_without_its_tenants_is_not_a_new_folder),
        TEST(a_folder_that_cannot_be_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
