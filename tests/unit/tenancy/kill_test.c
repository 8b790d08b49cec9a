/* tests/unit/tenancy/kill_test.c: a process that writes is killed with SIGKILL at random moments; whatever it had
 * acknowledged must be there.
 *
 * A child creates tenants, keys and programs and records usage through a tenancy, and tells over a pipe what it is
 * about to do and what was acknowledged. The parent kills it, reads the pipe to its end, and looks into the file as a
 * stranger would. All rounds use one folder, so that each begins with what the last kill left. (A kill leaves the page
 * cache alone: that data also survives a power cut rests on synchronous=FULL, which sqlite_file.c sets.) */
#include "unit/unit.h"

#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/rng.h"
#include "tenancy/store_sqlite.h"
#include "tenancy/tenancy.h"
#include "unit/tenancy/folder.h"

#define ROUNDS     50
#define MAX_SEEN   65536
#define LONGEST_US 150000 /* from the first acknowledgement to the kill */

typedef enum what { TENANT, KEY, PROGRAM, SETTING, USAGE_BEGUN, USAGE } what;

/* One write(2) of at most PIPE_BUF: it is in the pipe whole or not at all. */
typedef struct message {
    what what;
    int32_t round, number;
    uint64_t value;
    char id[API_KEY_ID_SIZE + 1];
} message;

static realm_error error;

/* ---- the child ---- */

typedef struct child {
    tenancy *tenancy;
    int pipe, round;
    uint32_t usage_tenant;
    rng random;
} child;

static void tell(const child *c, message m)
{
    m.round = c->round;
    if (write(c->pipe, &m, sizeof m) != sizeof m)
        _exit(1);
}

typedef struct durable {
    const child *child;
    uint64_t tokens;
} durable;

static void usage_durable(void *context)
{
    durable *d = context;
    tell(d->child, (message){.what = USAGE, .value = d->tokens});
    free(d);
}

static void *record_usage(void *context)
{
    child *c = context;
    rng random;
    rng_init(&random, (uint64_t)c->round);
    for (;;) {
        durable *d = malloc(sizeof *d);
        *d = (durable){c, 1 + rng_next(&random) % 1000};
        tell(c, (message){.what = USAGE_BEGUN, .value = d->tokens});
        usage_event e = {.key = {.tenant = c->usage_tenant, .day = 1 + c->round},
                         .prompt_tokens = d->tokens};
        if (tenancy_record(c->tenancy, &e, usage_durable, d, &error))
            _exit(2);
        usleep(rng_next(&random) % 300);
    }
    return NULL;
}

typedef struct step {
    char name[32];
    int64_t limit;
    uint32_t number;
    key_record key;
    int32_t version;
} step;

static realm_status create(void *context, tenant_store *store, realm_error *e)
{
    step *s = context;
    tenant_settings settings = settings_default();
    return store->table->tenant_create(store, s->name, &settings, &s->number, e);
}

static realm_status add_key(void *context, tenant_store *store, realm_error *e)
{
    return store->table->key_add(store, &((step *)context)->key, e);
}

static realm_status deploy(void *context, tenant_store *store, realm_error *e)
{
    step *s = context;
    char module[20000];
    memset(module, 'x', sizeof module);
    memcpy(module, s->name, sizeof s->name);
    deployment d = {.tenant = s->number,
                    .name = "p",
                    .bytes = module,
                    .size = sizeof module,
                    .share = ROUTE_WHOLE,
                    .limit_bytes = 1 << 30};
    return store->table->program_deploy(store, &d, &s->version, e);
}

static realm_status set(void *context, tenant_store *store, realm_error *e)
{
    step *s = context;
    tenant_settings settings = settings_default();
    settings.requests_per_minute = s->limit;
    return store->table->tenant_set(store, s->number, &settings, e);
}

static void must(child *c, realm_status (*run)(void *, tenant_store *, realm_error *), step *s)
{
    if (tenancy_run(c->tenancy, run, s, &error)) {
        fprintf(stderr, "child: %s\n", error.message);
        _exit(3);
    }
}

static void write_without_end(child *c)
{
    for (int32_t i = 0;; i++) {
        step s = {.limit = 1000 + i};
        api_key_secret secret;
        snprintf(s.name, sizeof s.name, "t%d-%d", c->round, i);
        must(c, create, &s);
        tell(c, (message){.what = TENANT, .number = i});
        api_key_make(&secret, &error);
        s.key = (key_record){.tenant = s.number, .scopes = API_SCOPE_INFERENCE};
        memcpy(s.key.id, secret.id, sizeof secret.id);
        memcpy(s.key.hash, secret.hash, sizeof secret.hash);
        memcpy(s.key.salt, secret.salt, sizeof secret.salt);
        must(c, add_key, &s);
        message key = {.what = KEY, .number = i};
        memcpy(key.id, secret.id, sizeof key.id);
        tell(c, key);
        must(c, deploy, &s);
        tell(c, (message){.what = PROGRAM, .number = i, .value = (uint64_t)s.version});
        must(c, set, &s);
        tell(c, (message){.what = SETTING, .number = i, .value = (uint64_t)s.limit});
    }
}

static void run_child(int out, int round)
{
    child c = {.pipe = out, .round = round};
    tenant_store *store;
    pthread_t thread;
    step s = {.number = 0};
    if (store_sqlite_open(&store, g_folder, &error)) {
        fprintf(stderr, "child: %s\n", error.message);
        _exit(4);
    }
    tenancy_options options = {.store = store, .lock_folder = g_folder};
    if (tenancy_open(&c.tenancy, &options, &error)) {
        fprintf(stderr, "child: %s\n", error.message);
        _exit(5);
    }
    snprintf(s.name, sizeof s.name, "usage-%d", round);
    must(&c, create, &s);
    c.usage_tenant = s.number;
    if (pthread_create(&thread, NULL, record_usage, &c))
        _exit(6);
    write_without_end(&c);
}

/* ---- the parent ---- */

static message g_seen[MAX_SEEN];
static size_t g_n_seen;

static int read_message(int in)
{
    message m;
    ssize_t got = read(in, &m, sizeof m);
    if (got == 0)
        return 0;
    assert_int_equal(got, sizeof m);
    assert_true(g_n_seen < MAX_SEEN);
    g_seen[g_n_seen++] = m;
    return 1;
}

static int is_acknowledged(const message *m)
{
    return m->what != USAGE_BEGUN;
}

/* Lets a child write for a random moment, and until it has finished something, and kills it. */
static void one_round(int round, rng *random)
{
    int ends[2], code;
    assert_int_equal(pipe(ends), 0);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        close(ends[0]);
        run_child(ends[1], round);
    }
    close(ends[1]);
    assert_true(read_message(ends[0]));
    uint64_t until = clock_ns() + rng_next(random) % LONGEST_US * 1000;
    int n_acknowledged = 0;
    while ((clock_ns() < until || n_acknowledged < 2) && read_message(ends[0]))
        n_acknowledged += is_acknowledged(&g_seen[g_n_seen - 1]);
    kill(pid, SIGKILL);
    while (read_message(ends[0])) {
    }
    close(ends[0]);
    assert_int_equal(waitpid(pid, &code, 0), pid);
    assert_true(WIFSIGNALED(code) && WTERMSIG(code) == SIGKILL); /* it did not fail before */
}

static uint64_t g_tokens;
static void add_tokens(void *context, const char *tenant, const usage_row *row)
{
    (void)context;
    (void)tenant;
    g_tokens += row->counts.prompt_tokens;
}

static const key_record *find_key(const key_record *keys, size_t count, const char *id)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(keys[i].id, id) == 0)
            return &keys[i];
    return NULL;
}

static void check_message(tenant_store *store, arena *a, const message *m, const key_record *keys,
                          size_t n_keys)
{
    char name[32];
    tenant_record tenant;
    program_record *programs;
    size_t count;
    const void *bytes;
    size_t size;
    snprintf(name, sizeof name, "t%d-%d", m->round, m->number);
    assert_status(store->table->tenant_find(store, a, name, &tenant, &error), REALM_OK, error);
    if (m->what == KEY) {
        const key_record *key = find_key(keys, n_keys, m->id);
        assert_non_null(key);
        assert_int_equal(key->tenant, tenant.number);
    } else if (m->what == PROGRAM) {
        assert_status(store->table->program_list(store, a, tenant.number, NULL, NULL, &programs,
                                                 &count, &error),
                      REALM_OK, error);
        assert_int_equal(count, 1);
        assert_int_equal(programs[0].route[0].version, (int32_t)m->value);
        assert_status(store->table->program_bytes(store, a, programs[0].versions[0].hash, &bytes,
                                                  &size, &error),
                      REALM_OK, error);
    } else if (m->what == SETTING) {
        assert_int_equal(tenant.settings.requests_per_minute, m->value);
    }
}

/* Between what was acknowledged and what was begun: nothing lost, nothing counted twice. */
static void check_usage(tenant_store *store, int round)
{
    uint64_t begun = 0, acknowledged = 0;
    for (size_t i = 0; i < g_n_seen; i++) {
        begun += g_seen[i].what == USAGE_BEGUN ? g_seen[i].value : 0;
        acknowledged += g_seen[i].what == USAGE ? g_seen[i].value : 0;
    }
    usage_filter filter = {.from = 1 + round, .to = 1 + round};
    g_tokens = 0;
    assert_status(store->table->usage_read(store, &filter, 0, NULL, add_tokens, NULL, &error),
                  REALM_OK, error);
    if (g_tokens < acknowledged || g_tokens > begun)
        fail_msg("round %d: %llu tokens in the file, %llu acknowledged, %llu begun", round,
                 (unsigned long long)g_tokens, (unsigned long long)acknowledged,
                 (unsigned long long)begun);
}

static void check_file(int round, int *n_acknowledged)
{
    tenant_store *store;
    arena a;
    key_record *keys;
    size_t n_keys;
    arena_init(&a, 0);
    assert_status(store_sqlite_open(&store, g_folder, &error), REALM_OK, error);
    assert_status(store->table->key_list(store, &a, STORE_ALL, NULL, &keys, &n_keys, &error),
                  REALM_OK, error);
    for (size_t i = 0; i < g_n_seen; i++)
        if (g_seen[i].what < USAGE_BEGUN) {
            check_message(store, &a, &g_seen[i], keys, n_keys);
            ++*n_acknowledged;
        } else {
            *n_acknowledged += g_seen[i].what == USAGE;
        }
    check_usage(store, round);
    store->table->close(store);
    arena_release(&a);
}

static void nothing_acknowledged_is_lost(void **state)
{
    (void)state;
    rng random;
    uint64_t seed = clock_ns();
    int n_acknowledged = 0;
    printf("seed %llu\n", (unsigned long long)seed);
    rng_init(&random, seed);
    for (int round = 0; round < ROUNDS; round++) {
        g_n_seen = 0;
        one_round(round, &random);
        check_file(round, &n_acknowledged);
    }
    printf("%d rows were acknowledged before %d kills\n", n_acknowledged, ROUNDS);
    assert_true(n_acknowledged > ROUNDS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(nothing_acknowledged_is_lost, folder_make, folder_remove),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
