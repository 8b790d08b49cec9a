/* tests/unit/tenancy/tenancy_test.c: what requests ask, while the worker and other processes change things. */
#include "unit/unit.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "tenancy/tenancy.h"
#include "unit/tenancy/folder.h"

static realm_error error;
static tenancy *g_tenancy;
static int64_t g_wall_ms; /* 0: the system's */

static uint64_t now(void *context)
{
    (void)context;
    return clock_ns();
}

static int64_t wall(void *context)
{
    (void)context;
    return g_wall_ms ? g_wall_ms : clock_wall_ms();
}

static void open_tenancy(void)
{
    tenant_store *store, *reader;
    assert_status(store_sqlite_open(&store, g_folder, &error), REALM_OK, error);
    assert_status(store_sqlite_open(&reader, g_folder, &error), REALM_OK, error);
    tenancy_options options = {.store = store,
                               .reader = reader,
                               .lock_folder = g_folder,
                               .clock = {now, wall, NULL},
                               .poll_ms = 20};
    assert_status(tenancy_open(&g_tenancy, &options, &error), REALM_OK, error);
}

static int begin(void **state)
{
    if (folder_make(state))
        return -1;
    g_wall_ms = 0;
    open_tenancy();
    return 0;
}

static int end(void **state)
{
    realm_status status = tenancy_close(g_tenancy, &error);
    g_tenancy = NULL;
    return status ? (int)status : folder_remove(state);
}

/* ---- jobs ---- */

typedef struct new_tenant {
    const char *name;
    tenant_settings settings;
    uint32_t number;
} new_tenant;

static realm_status create(void *context, tenant_store *store, realm_error *e)
{
    new_tenant *n = context;
    return store->table->tenant_create(store, n->name, &n->settings, &n->number, e);
}

static uint32_t make_tenant(const char *name, int64_t tokens_per_day)
{
    new_tenant n = {.name = name, .settings = settings_default()};
    n.settings.tokens_per_day = tokens_per_day;
    assert_status(tenancy_run(g_tenancy, create, &n, &error), REALM_OK, error);
    return n.number;
}

typedef struct new_key {
    api_key_secret secret;
    key_record record;
} new_key;

static new_key key_for(uint32_t tenant, int64_t expires_ms)
{
    new_key k = {.record = {.tenant = tenant,
                            .expires_ms = expires_ms,
                            .scopes = tenant ? API_SCOPE_INFERENCE : API_SCOPE_ADMIN}};
    assert_status(api_key_make(&k.secret, &error), REALM_OK, error);
    memcpy(k.record.id, k.secret.id, sizeof k.record.id);
    memcpy(k.record.salt, k.secret.salt, sizeof k.record.salt);
    memcpy(k.record.hash, k.secret.hash, sizeof k.record.hash);
    return k;
}

static realm_status add_key(void *context, tenant_store *store, realm_error *e)
{
    return store->table->key_add(store, &((new_key *)context)->record, e);
}

static new_key make_key(uint32_t tenant, int64_t expires_ms)
{
    new_key k = key_for(tenant, expires_ms);
    assert_status(tenancy_run(g_tenancy, add_key, &k, &error), REALM_OK, error);
    return k;
}

static realm_status revoke_key(void *context, tenant_store *store, realm_error *e)
{
    return store->table->key_revoke(store, STORE_ALL, context, e);
}

static realm_status try_key(const new_key *k, identity *who)
{
    return tenancy_authenticate(g_tenancy, k->secret.text, strlen(k->secret.text), who, &error);
}

/* ---- who ---- */

static void a_key_is_its_tenants(void **state)
{
    (void)state;
    identity who;
    assert_false(tenancy_has_credentials(g_tenancy));
    uint32_t a = make_tenant("a", 0), b = make_tenant("b", 0);
    new_key of_a = make_key(a, 0), of_b = make_key(b, 0), of_node = make_key(0, 0);
    assert_true(tenancy_has_credentials(g_tenancy));
    assert_status(try_key(&of_a, &who), REALM_OK, error);
    assert_int_equal(tenant_info_get(who.tenant)->number, a);
    assert_string_equal(tenant_info_get(who.tenant)->name, "a");
    assert_string_equal(who.key, of_a.secret.id);
    assert_int_equal(who.scopes, API_SCOPE_INFERENCE);
    identity_release(&who);
    assert_status(try_key(&of_b, &who), REALM_OK, error);
    assert_int_equal(tenant_info_get(who.tenant)->number, b);
    identity_release(&who);
    assert_status(try_key(&of_node, &who), REALM_OK, error);
    assert_null(who.tenant);
    assert_int_equal(who.scopes, API_SCOPE_ADMIN);
    identity_release(&who);
}

/* The id of one key with the secret of another, and everything else that is not a key of ours. */
static void other_credentials_are_told_the_same(void **state)
{
    (void)state;
    identity who;
    new_key known = make_key(make_tenant("a", 0), 0), unknown = key_for(1, 0),
            revoked = make_key(1, 0);
    new_key forged = unknown;
    memcpy(forged.secret.text + 3, known.secret.id, API_KEY_ID_SIZE);
    assert_status(tenancy_run(g_tenancy, revoke_key, revoked.secret.id, &error), REALM_OK, error);
    const char *const texts[] = {
        unknown.secret.text, forged.secret.text, revoked.secret.text, "", "x", "rk_", "a.b.c"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        assert_int_equal(tenancy_authenticate(g_tenancy, texts[i], strlen(texts[i]), &who, &error),
                         REALM_DENIED);
        assert_string_equal(error.message, "the API key is not valid");
        assert_null(who.tenant);
    }
    tenancy_stats stats;
    tenancy_stats_get(g_tenancy, &stats);
    assert_int_equal(stats.denied, sizeof texts / sizeof *texts);
}

static void an_expired_key_is_told_so(void **state)
{
    (void)state;
    identity who;
    g_wall_ms = 1000000;
    new_key k = make_key(make_tenant("a", 0), 2000000);
    assert_status(try_key(&k, &who), REALM_OK, error);
    identity_release(&who);
    g_wall_ms = 2000000;
    assert_int_equal(try_key(&k, &who), REALM_DENIED);
    assert_holds(error.message, "expired");
}

/* ---- changes ---- */

static realm_status erase(void *context, tenant_store *store, realm_error *e)
{
    return store->table->tenant_delete(store, *(uint32_t *)context, e);
}

static void requests_keep_the_tenant_that_they_started_with(void **state)
{
    (void)state;
    identity who, again;
    uint32_t a = make_tenant("a", 0);
    new_key k = make_key(a, 0);
    assert_status(try_key(&k, &who), REALM_OK, error);
    assert_status(tenancy_run(g_tenancy, erase, &a, &error), REALM_OK, error);
    assert_int_equal(try_key(&k, &again), REALM_DENIED);
    assert_string_equal(tenant_info_get(who.tenant)->name, "a");
    admission at;
    assert_status(meter_admit(tenant_info_get(who.tenant)->meter, 1, &at, &error), REALM_OK, error);
    meter_settle(&at, 1);
    identity_release(&who);
    assert_null(tenancy_find(g_tenancy, "a", 1));
}

static void what_another_process_changes_is_seen(void **state)
{
    (void)state;
    tenant_store *other;
    uint32_t number;
    tenant_settings s = settings_default();
    assert_status(store_sqlite_open(&other, g_folder, &error), REALM_OK, error);
    assert_status(other->table->tenant_create(other, "late", &s, &number, &error), REALM_OK, error);
    tenant_info *found = NULL;
    for (uint64_t until = clock_ns() + A_MINUTE_NS;
         !(found = tenancy_find(g_tenancy, "late", 4)) && clock_ns() < until;)
        usleep(10000);
    assert_non_null(found);
    tenant_info_release(found);
    other->table->close(other);
}

static void a_failed_job_says_why_and_changes_nothing(void **state)
{
    (void)state;
    make_tenant("a", 0);
    new_tenant again = {.name = "a", .settings = settings_default()};
    assert_int_equal(tenancy_run(g_tenancy, create, &again, &error), REALM_INVALID);
    assert_holds(error.message, "already");
}

static void one_server_uses_a_folder(void **state)
{
    (void)state;
    tenancy *second;
    tenant_store *store;
    assert_status(store_sqlite_open(&store, g_folder, &error), REALM_OK, error);
    tenancy_options options = {.store = store, .lock_folder = g_folder};
    assert_int_equal(tenancy_open(&second, &options, &error), REALM_BUSY);
    assert_holds(error.message, "another server");
}

/* ---- usage ---- */

static atomic_int g_durable;

static void count_durable(void *context)
{
    (void)context;
    atomic_fetch_add(&g_durable, 1);
}

static void wait_for_durable(int count)
{
    for (uint64_t until = clock_ns() + A_MINUTE_NS;
         atomic_load(&g_durable) < count && clock_ns() < until;)
        usleep(10000);
}

static uint64_t g_tokens;
static void add_tokens(void *context, const char *tenant, const usage_row *row)
{
    (void)context;
    (void)tenant;
    g_tokens += row->counts.prompt_tokens + row->counts.completion_tokens;
}

/* What a reader that trusts nothing but the file finds. */
static uint64_t tokens_in_file(uint32_t tenant)
{
    tenant_store *other;
    usage_filter filter = {.tenant = tenant};
    g_tokens = 0;
    assert_status(store_sqlite_open(&other, g_folder, &error), REALM_OK, error);
    assert_status(
        other->table->usage_read(other, &filter, USAGE_BY_ALL, NULL, add_tokens, NULL, &error),
        REALM_OK, error);
    other->table->close(other);
    return g_tokens;
}

static void *record_many(void *context)
{
    for (int i = 1; i <= 500; i++) {
        usage_event e = {.key = {.tenant = *(uint32_t *)context},
                         .prompt_tokens = (uint64_t)i,
                         .completion_tokens = 1};
        assert_status(tenancy_record(g_tenancy, &e, count_durable, NULL, &error), REALM_OK, error);
    }
    return NULL;
}

static void usage_is_durable_when_it_says_so(void **state)
{
    (void)state;
    uint32_t a = make_tenant("a", 0);
    pthread_t threads[4];
    atomic_store(&g_durable, 0);
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, record_many, &a), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    wait_for_durable(2000);
    assert_int_equal(atomic_load(&g_durable), 2000);
    assert_int_equal(tokens_in_file(a), 4 * (500 * 501 / 2 + 500));
    tenancy_stats stats;
    tenancy_stats_get(g_tenancy, &stats);
    assert_int_equal(stats.pending, 0);
    assert_int_equal(stats.events, 2000);
    assert_true(stats.commits < 2000); /* groups */
}

static void closing_writes_what_is_left(void **state)
{
    (void)state;
    uint32_t a = make_tenant("a", 0);
    for (int i = 0; i < 100; i++) {
        usage_event e = {.key = {.tenant = a}, .completion_tokens = 7};
        assert_status(tenancy_record(g_tenancy, &e, NULL, NULL, &error), REALM_OK, error);
    }
    assert_status(tenancy_close(g_tenancy, &error), REALM_OK, error);
    assert_int_equal(tokens_in_file(a), 700);
    open_tenancy();
}

static void budgets_go_on_after_a_restart(void **state)
{
    (void)state;
    uint32_t a = make_tenant("a", 1000);
    usage_event e = {.key = {.tenant = a}, .prompt_tokens = 300, .completion_tokens = 100};
    assert_status(tenancy_record(g_tenancy, &e, NULL, NULL, &error), REALM_OK, error);
    assert_status(tenancy_close(g_tenancy, &error), REALM_OK, error);
    open_tenancy();
    tenant_info *i = tenancy_find(g_tenancy, "a", 1);
    admission at;
    assert_status(meter_admit(tenant_info_get(i)->meter, 1, &at, &error), REALM_OK, error);
    assert_false(meter_take(&at, 601));
    assert_true(meter_take(&at, 600));
    meter_settle(&at, 0);
    tenant_info_release(i);
}

static void when_a_key_was_last_used_is_kept(void **state)
{
    (void)state;
    identity who;
    new_key k = make_key(make_tenant("a", 0), 0);
    g_wall_ms = 777000;
    assert_status(try_key(&k, &who), REALM_OK, error);
    identity_release(&who);
    assert_status(tenancy_close(g_tenancy, &error), REALM_OK, error);
    open_tenancy();
    tenant_store *other;
    key_record *keys;
    size_t count;
    arena a;
    arena_init(&a, 0);
    assert_status(store_sqlite_open(&other, g_folder, &error), REALM_OK, error);
    assert_status(other->table->key_list(other, &a, STORE_ALL, NULL, &keys, &count, &error),
                  REALM_OK, error);
    assert_int_equal(keys[0].last_used_ms, 777000);
    other->table->close(other);
    arena_release(&a);
}

/* ---- a store that fails ---- */

typedef struct failing_store {
    tenant_store base;
    tenant_store *real;
    tenant_store_table table;
    atomic_int broken;
} failing_store;

static realm_status fail_usage(tenant_store *s, const usage_row *const *rows, size_t count,
                               realm_error *e)
{
    failing_store *f = (failing_store *)s;
    if (atomic_load(&f->broken))
        return realm_fail(e, REALM_IO, "the disk is full");
    return f->real->table->usage_add(f->real, rows, count, e);
}

#define FORWARD(name, arguments, values)                                                           \
    static realm_status forward_##name arguments                                                   \
    {                                                                                              \
        failing_store *f = (failing_store *)s;                                                     \
        return f->real->table->name values;                                                        \
    }
FORWARD(tenant_list,
        (tenant_store * s, arena *a, int d, const store_page *p, tenant_record **o, size_t *c,
         realm_error *e),
        (f->real, a, d, p, o, c, e))
FORWARD(key_list,
        (tenant_store * s, arena *a, int64_t t, const store_page *p, key_record **o, size_t *c,
         realm_error *e),
        (f->real, a, t, p, o, c, e))
FORWARD(program_list,
        (tenant_store * s, arena *a, int64_t t, const char *n, const store_page *p,
         program_record **o, size_t *c, realm_error *e),
        (f->real, a, t, n, p, o, c, e))
FORWARD(usage_read,
        (tenant_store * s, const usage_filter *w, unsigned b, const usage_page *p,
         void (*each)(void *, const char *, const usage_row *), void *x, realm_error *e),
        (f->real, w, b, p, each, x, e))
FORWARD(generation, (tenant_store * s, int64_t *o, realm_error *e), (f->real, o, e))

static void close_failing(tenant_store *s)
{
    failing_store *f = (failing_store *)s;
    f->real->table->close(f->real);
}

static void usage_waits_for_a_disk_that_is_full(void **state)
{
    (void)state;
    static failing_store f;
    f = (failing_store){.table = {.close = close_failing,
                                  .tenant_list = forward_tenant_list,
                                  .key_list = forward_key_list,
                                  .program_list = forward_program_list,
                                  .usage_add = fail_usage,
                                  .usage_read = forward_usage_read,
                                  .generation = forward_generation}};
    f.base.table = &f.table;
    atomic_store(&f.broken, 1);
    assert_status(store_sqlite_open(&f.real, g_folder, &error), REALM_OK, error);
    tenancy *t;
    tenancy_options options = {.store = &f.base, .poll_ms = 10};
    assert_status(tenancy_open(&t, &options, &error), REALM_OK, error);
    atomic_store(&g_durable, 0);
    usage_event e = {.key = {.tenant = 42}, .prompt_tokens = 5};
    for (int i = 0; i < 10; i++)
        assert_status(tenancy_record(t, &e, count_durable, NULL, &error), REALM_OK, error);
    tenancy_stats stats = {0};
    for (uint64_t until = clock_ns() + A_MINUTE_NS; !stats.failed_commits && clock_ns() < until;) {
        usleep(10000);
        tenancy_stats_get(t, &stats);
    }
    assert_true(stats.failed_commits > 0);
    assert_int_equal(atomic_load(&g_durable), 0);
    assert_int_equal(tokens_in_file(42), 0);
    atomic_store(&f.broken, 0);
    wait_for_durable(10);
    assert_int_equal(atomic_load(&g_durable), 10);
    assert_int_equal(tokens_in_file(42), 50);
    /* At the end there is no later: the loss is told, with its size. */
    atomic_store(&f.broken, 1);
    assert_status(tenancy_record(t, &e, NULL, NULL, &error), REALM_OK, error);
    assert_int_equal(tenancy_close(t, &error), REALM_IO);
    assert_holds(error.message, "1 requests");
}

/* ---- reads ---- */

typedef struct long_read {
    tenancy_job job;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int begun, let_go, done;
    size_t n_tenants;
} long_read;

static realm_status read_long(tenancy_job *job, tenant_store *store, realm_error *e)
{
    long_read *r = (long_read *)job;
    tenant_record *list;
    arena a;
    arena_init(&a, 0);
    pthread_mutex_lock(&r->mutex);
    r->begun = 1;
    pthread_cond_broadcast(&r->changed);
    while (!r->let_go)
        pthread_cond_wait(&r->changed, &r->mutex);
    pthread_mutex_unlock(&r->mutex);
    realm_status status = store->table->tenant_list(store, &a, 0, NULL, &list, &r->n_tenants, e);
    arena_release(&a);
    return status;
}

static void long_read_done(tenancy_job *job, realm_status status, const realm_error *e)
{
    long_read *r = (long_read *)job;
    (void)e;
    pthread_mutex_lock(&r->mutex);
    r->done = status ? -1 : 1;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->mutex);
}

/* A change and a request's usage come through while a read is under way, and the read sees the change. */
static void a_long_read_holds_nobody_up(void **state)
{
    (void)state;
    long_read r = {.job = {.run = read_long, .done = long_read_done}};
    pthread_mutex_init(&r.mutex, NULL);
    pthread_cond_init(&r.changed, NULL);
    tenancy_submit_read(g_tenancy, &r.job);
    pthread_mutex_lock(&r.mutex);
    while (!r.begun)
        pthread_cond_wait(&r.changed, &r.mutex);
    pthread_mutex_unlock(&r.mutex);
    new_tenant n = {.name = "meanwhile", .settings = settings_default()};
    assert_status(tenancy_run(g_tenancy, create, &n, &error), REALM_OK, error);
    usage_event e = {.key = {.tenant = n.number}, .prompt_tokens = 5};
    atomic_store(&g_durable, 0);
    assert_status(tenancy_record(g_tenancy, &e, count_durable, NULL, &error), REALM_OK, error);
    for (int ms = 0; !atomic_load(&g_durable) && ms < 60000; ms++)
        usleep(1000);
    assert_int_equal(atomic_load(&g_durable), 1);
    pthread_mutex_lock(&r.mutex);
    assert_int_equal(r.done, 0);
    r.let_go = 1;
    pthread_cond_broadcast(&r.changed);
    while (!r.done)
        pthread_cond_wait(&r.changed, &r.mutex);
    pthread_mutex_unlock(&r.mutex);
    assert_int_equal(r.done, 1);
    assert_int_equal(r.n_tenants, 1);
    pthread_cond_destroy(&r.changed);
    pthread_mutex_destroy(&r.mutex);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, begin, end)
    const struct CMUnitTest tests[] = {
        TEST(a_long_read_holds_nobody_up),
        TEST(a_key_is_its_tenants),
        TEST(other_credentials_are_told_the_same),
        TEST(an_expired_key_is_told_so),
        TEST(requests_keep_the_tenant_that_they_started_with),
        TEST(what_another_process_changes_is_seen),
        TEST(a_failed_job_says_why_and_changes_nothing),
        TEST(one_server_uses_a_folder),
        TEST(usage_is_durable_when_it_says_so),
        TEST(closing_writes_what_is_left),
        TEST(budgets_go_on_after_a_restart),
        TEST(when_a_key_was_last_used_is_kept),
        TEST(usage_waits_for_a_disk_that_is_full),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
