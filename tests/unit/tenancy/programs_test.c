/* tests/unit/tenancy/programs_test.c: deployed programs in real sandboxes: switched under load, split, damaged. */
#include "unit/unit.h"

#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "tenancy/store_sqlite.h"
#include "tenancy/tenancy.h"
#include "unit/tenancy/folder.h"

static realm_error error;
static sandbox_host *g_host;
static tenancy *g_tenancy;

/* A program that answers with a word of four letters. */
static const char program_text[] =
    "(module (import \"realm\" \"respond_text\" (func $say (param i32 i32) (result i32)))"
    " (memory (export \"memory\") 1) (data (i32.const 0) \"%s\")"
    " (func (export \"realm_abi\") (result i32) (i32.const 1))"
    " (func (export \"realm_handle\") (result i32) (call $say (i32.const 0) (i32.const 4))))";

static void open_tenancy(void)
{
    tenant_store *store;
    assert_status(store_sqlite_open(&store, g_folder, &error), REALM_OK, error);
    tenancy_options options = {
        .store = store, .lock_folder = g_folder, .sandbox = g_host, .poll_ms = 20};
    assert_status(tenancy_open(&g_tenancy, &options, &error), REALM_OK, error);
}

static int begin(void **state)
{
    if (folder_make(state))
        return -1;
    sandbox_host_options options = {.max_requests = 8, .cache_folder = folder_path("programs")};
    if (sandbox_host_open(&g_host, &options, &error))
        return -1;
    open_tenancy();
    return 0;
}

static int end(void **state)
{
    realm_status status = tenancy_close(g_tenancy, &error);
    sandbox_host_close(g_host);
    return status ? (int)status : folder_remove(state);
}

/* ---- jobs ---- */

static realm_status create(void *context, tenant_store *store, realm_error *e)
{
    uint32_t number;
    tenant_settings s = settings_default();
    return store->table->tenant_create(store, context, &s, &number, e);
}

typedef struct deploying {
    uint32_t tenant;
    const char *name; /* NULL: "p" */
    const char *text; /* NULL: program_text with word */
    const char *word;
    int32_t share, version;
} deploying;

/* As a server's deploy job: checked where it will run, then stored and switched. */
static realm_status deploy(void *context, tenant_store *store, realm_error *e)
{
    deploying *d = context;
    char text[1024];
    snprintf(text, sizeof text, program_text, d->word ? d->word : "");
    const char *module = d->text ? d->text : text;
    realm_status status = tenancy_check_program(g_tenancy, "p", module, strlen(module), NULL, e);
    deployment whole = {.tenant = d->tenant,
                        .name = d->name ? d->name : "p",
                        .bytes = module,
                        .size = strlen(module),
                        .share = d->share,
                        .limit_bytes = 1 << 30};
    return status ? status : store->table->program_deploy(store, &whole, &d->version, e);
}

static int32_t deploy_word(uint32_t tenant, const char *word, int32_t share)
{
    deploying d = {.tenant = tenant, .word = word, .share = share};
    assert_status(tenancy_run(g_tenancy, deploy, &d, &error), REALM_OK, error);
    return d.version;
}

static tenant_info *tenant_of(const char *name)
{
    tenant_info *i = tenancy_find(g_tenancy, name, strlen(name));
    assert_non_null(i);
    return i;
}

/* ---- requests ---- */

typedef struct answer {
    char text[16];
    size_t size;
} answer;

static void take_text(void *context, const char *text, size_t size)
{
    answer *a = context;
    if (a->size + size < sizeof a->text) {
        memcpy(a->text + a->size, text, size);
        a->size += size;
    }
}

static void run_program(tenant_info *i, program *p, answer *out)
{
    tenant_grants grants;
    sandbox_tenant *tenant;
    sandbox_result result;
    buffer kept;
    tenant_info_grants(i, &grants);
    assert_status(sandbox_tenant_open(&tenant, &grants, &error), REALM_OK, error);
    *out = (answer){.size = 0};
    sandbox_input input = {.program = p,
                           .tenant = tenant,
                           .body = "{}",
                           .body_size = 2,
                           .context = out,
                           .on_text = take_text};
    buffer_init(&kept, 65536);
    realm_status status = sandbox_run(g_host, &input, &result, &kept);
    if (status)
        fail_msg("%s", result.message);
    buffer_release(&kept);
    sandbox_tenant_release(tenant);
}

static program_choice choose(tenant_info *i, const char *id)
{
    program_choice choice;
    assert_status(tenant_info_program(i, "p", 1, id, id ? strlen(id) : 0, &choice, &error),
                  REALM_OK, error);
    assert_non_null(choice.program);
    return choice;
}

static void a_request_finishes_on_the_version_it_started_on(void **state)
{
    (void)state;
    answer a;
    assert_status(tenancy_run(g_tenancy, create, "acme", &error), REALM_OK, error);
    assert_int_equal(deploy_word(1, "one.", ROUTE_WHOLE), 1);
    tenant_info *before = tenant_of("acme");
    program_choice old = choose(before, "x");
    assert_int_equal(deploy_word(1, "two.", ROUTE_WHOLE), 2);
    tenant_info *after = tenant_of("acme");
    program_choice new = choose(after, "x");
    assert_int_equal(old.version, 1);
    assert_int_equal(new.version, 2);
    assert_true(tenant_info_get(after)->revision > tenant_info_get(before)->revision);
    run_program(before, old.program, &a);
    assert_string_equal(a.text, "one.");
    run_program(after, new.program, &a);
    assert_string_equal(a.text, "two.");
    /* `call` within the old request still finds the old version. */
    program *called;
    assert_status(tenant_info_resolve(before, "p", 1, &called, &error), REALM_OK, error);
    assert_ptr_equal(called, old.program);
    program_release(called);
    program_release(old.program);
    program_release(new.program);
    tenant_info_release(before);
    tenant_info_release(after);
}

/* ---- under load ---- */

static atomic_int g_stop, g_answers;

static void *ask_all_the_time(void *context)
{
    int last = 0;
    (void)context;
    while (!atomic_load(&g_stop)) {
        answer a;
        tenant_info *i = tenant_of("acme");
        program_choice c = choose(i, NULL);
        run_program(i, c.program, &a);
        /* Every answer is one version's, and versions only go up. */
        assert_int_equal(a.size, 4);
        int said = atoi(a.text);
        assert_int_equal(said, c.version);
        assert_true(said >= last);
        last = said;
        program_release(c.program);
        tenant_info_release(i);
        atomic_fetch_add(&g_answers, 1);
    }
    return NULL;
}

static void deploys_under_load_fail_no_request(void **state)
{
    (void)state;
    pthread_t threads[2];
    assert_status(tenancy_run(g_tenancy, create, "acme", &error), REALM_OK, error);
    deploy_word(1, "0001", ROUTE_WHOLE);
    atomic_store(&g_stop, 0);
    atomic_store(&g_answers, 0);
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, ask_all_the_time, NULL), 0);
    for (int version = 2; version <= 60; version++) {
        char word[16];
        snprintf(word, sizeof word, "%04d", version);
        assert_int_equal(deploy_word(1, word, ROUTE_WHOLE), version);
        /* T2: whoever asks after a deploy returned gets it. */
        tenant_info *i = tenant_of("acme");
        program_choice c = choose(i, NULL);
        assert_int_equal(c.version, version);
        program_release(c.program);
        tenant_info_release(i);
    }
    atomic_store(&g_stop, 1);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    assert_true(atomic_load(&g_answers) > 50);
}

static void a_canary_gets_its_share_and_keeps_its_ids(void **state)
{
    (void)state;
    assert_status(tenancy_run(g_tenancy, create, "acme", &error), REALM_OK, error);
    deploy_word(1, "one.", ROUTE_WHOLE);
    deploy_word(1, "two.", 2000);
    tenant_info *i = tenant_of("acme");
    int canaries = 0;
    for (int n = 0; n < 2000; n++) {
        char id[16];
        snprintf(id, sizeof id, "r%d", n);
        program_choice first = choose(i, id), again = choose(i, id);
        assert_int_equal(first.version, again.version);
        canaries += first.version == 2;
        program_release(first.program);
        program_release(again.program);
    }
    assert_in_range(canaries, 320, 480);
    tenant_info_release(i);
}

/* ---- what must not work ---- */

static realm_status forbid(void *context, tenant_store *store, realm_error *e)
{
    tenant_settings s = settings_default();
    const char *const names[] = {"q"};
    (void)context;
    s.programs = (settings_names){.names = names, .count = 1};
    return store->table->tenant_set(store, 1, &s, e);
}

static void programs_of_others_do_not_exist(void **state)
{
    (void)state;
    program_choice c;
    char missing[REALM_ERROR_MESSAGE_SIZE];
    assert_status(tenancy_run(g_tenancy, create, "acme", &error), REALM_OK, error);
    assert_status(tenancy_run(g_tenancy, create, "globex", &error), REALM_OK, error);
    tenant_info *globex = tenant_of("globex");
    assert_int_equal(tenant_info_program(globex, "p", 1, NULL, 0, &c, &error), REALM_NOT_FOUND);
    memcpy(missing, error.message, sizeof missing);
    deploy_word(1, "one.", ROUTE_WHOLE);
    tenant_info_release(globex);
    globex = tenant_of("globex");
    assert_int_equal(tenant_info_program(globex, "p", 1, NULL, 0, &c, &error), REALM_NOT_FOUND);
    assert_string_equal(error.message, missing);
    tenant_info_release(globex);
    /* And one that its tenant may not call is told the same. */
    assert_status(tenancy_run(g_tenancy, forbid, NULL, &error), REALM_OK, error);
    tenant_info *acme = tenant_of("acme");
    assert_int_equal(tenant_info_program(acme, "p", 1, NULL, 0, &c, &error), REALM_NOT_FOUND);
    assert_string_equal(error.message, missing);
    tenant_info_release(acme);
}

static void what_does_not_compile_is_not_deployed(void **state)
{
    (void)state;
    assert_status(tenancy_run(g_tenancy, create, "acme", &error), REALM_OK, error);
    deploy_word(1, "one.", ROUTE_WHOLE);
    deploying d = {.tenant = 1, .text = "(module)", .share = ROUTE_WHOLE};
    assert_int_equal(tenancy_run(g_tenancy, deploy, &d, &error), REALM_INVALID);
    tenant_info *i = tenant_of("acme");
    program_choice c = choose(i, NULL);
    assert_int_equal(c.version, 1);
    program_release(c.program);
    tenant_info_release(i);
}

static realm_status damage(void *context, tenant_store *store, realm_error *e)
{
    return sqlite_file_run(&store_sqlite_of(store)->file, e,
                           "UPDATE modules SET bytes = x'00' WHERE hash = "
                           "(SELECT hash FROM versions WHERE tenant = ?)",
                           "i", *(int64_t *)context);
}

/* One tenant's damaged module is that tenant's error; the node starts and serves the others. */
static void a_damaged_module_is_its_tenants_error_alone(void **state)
{
    (void)state;
    int64_t first = 1;
    program_choice c;
    assert_status(tenancy_run(g_tenancy, create, "acme", &error), REALM_OK, error);
    assert_status(tenancy_run(g_tenancy, create, "globex", &error), REALM_OK, error);
    deploy_word(1, "one.", ROUTE_WHOLE);
    deploy_word(2, "two.", ROUTE_WHOLE);
    assert_status(tenancy_run(g_tenancy, damage, &first, &error), REALM_OK, error);
    assert_status(tenancy_close(g_tenancy, &error), REALM_OK, error);
    open_tenancy();
    tenant_info *acme = tenant_of("acme"), *globex = tenant_of("globex");
    assert_int_equal(tenant_info_program(acme, "p", 1, NULL, 0, &c, &error), REALM_CORRUPT);
    assert_holds(error.message, "version 1 of program 'p' cannot run");
    answer a;
    program_choice good = choose(globex, NULL);
    run_program(globex, good.program, &a);
    assert_string_equal(a.text, "two.");
    program_release(good.program);
    tenant_info_release(acme);
    tenant_info_release(globex);
}

/* ---- many ---- */

#define MANY 60

/* The errors that the log tells, a line each. */
static void read_failures(FILE *log, char *out, size_t size)
{
    char line[1024];
    size_t used = 0;
    rewind(log);
    while (fgets(line, sizeof line, log))
        if (strstr(line, "cannot be loaded"))
            used += (size_t)snprintf(out + used, size - used, "%s", strstr(line, "tenant '"));
    out[used] = 0;
}

static realm_status damage_some(void *context, tenant_store *store, realm_error *e)
{
    (void)context;
    return sqlite_file_run(&store_sqlite_of(store)->file, e,
                           "UPDATE modules SET bytes = CAST(hash AS BLOB) WHERE hash IN "
                           "(SELECT hash FROM versions WHERE name IN ('p03', 'p17', 'p58'))",
                           "");
}

/* All are compiled beside each other; what does not compile is told in the programs' order. */
static void many_programs_are_all_there_and_failures_come_in_order(void **state)
{
    (void)state;
    char name[16], word[8], said[4096];
    assert_status(tenancy_run(g_tenancy, create, "acme", &error), REALM_OK, error);
    for (int i = 0; i < MANY; i++) {
        snprintf(name, sizeof name, "p%02d", i);
        snprintf(word, sizeof word, "w%02d.", i % (MANY - 10)); /* the last ten share a module */
        deploying d = {.tenant = 1, .name = name, .word = word, .share = ROUTE_WHOLE};
        assert_status(tenancy_run(g_tenancy, deploy, &d, &error), REALM_OK, error);
    }
    assert_status(tenancy_run(g_tenancy, damage_some, NULL, &error), REALM_OK, error);
    assert_status(tenancy_close(g_tenancy, &error), REALM_OK, error);
    sandbox_host_close(g_host);
    sandbox_host_options options = {.max_requests = 8, .cache_folder = ""};
    assert_status(sandbox_host_open(&g_host, &options, &error), REALM_OK, error);
    FILE *log = tmpfile();
    int old = dup(2);
    dup2(fileno(log), 2);
    open_tenancy();
    dup2(old, 2);
    close(old);
    read_failures(log, said, sizeof said);
    fclose(log);
    sandbox_host_stats stats;
    sandbox_host_stats_get(g_host, &stats);
    tenant_info *acme = tenant_of("acme");
    for (int i = 0; i < MANY; i++) {
        program_choice c;
        answer a;
        snprintf(name, sizeof name, "p%02d", i);
        snprintf(word, sizeof word, "w%02d.", i % (MANY - 10));
        realm_status status = tenant_info_program(acme, name, 3, NULL, 0, &c, &error);
        int of_damaged = i % (MANY - 10) == 3 || i == 17 || i % (MANY - 10) == 8;
        if (of_damaged) {
            assert_int_not_equal(status, REALM_OK);
            continue;
        }
        assert_status(status, REALM_OK, error);
        run_program(acme, c.program, &a);
        assert_string_equal(a.text, word);
        program_release(c.program);
    }
    tenant_info_release(acme);
    const char *at = said;
    static const char *const failing[] = {"p03", "p08", "p17", "p53", "p58"};
    for (size_t i = 0; i < sizeof failing / sizeof *failing; i++) {
        char wanted[64];
        snprintf(wanted, sizeof wanted, "tenant 'acme', program '%s', version 1 cannot",
                 failing[i]);
        at = strstr(at, wanted);
        assert_non_null(at);
    }
    assert_int_equal(stats.cache_misses, MANY - 10 - 3); /* each module once */
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, begin, end)
    const struct CMUnitTest tests[] = {
        TEST(a_request_finishes_on_the_version_it_started_on),
        TEST(deploys_under_load_fail_no_request),
        TEST(a_canary_gets_its_share_and_keeps_its_ids),
        TEST(programs_of_others_do_not_exist),
        TEST(what_does_not_compile_is_not_deployed),
        TEST(a_damaged_module_is_its_tenants_error_alone),
        TEST(many_programs_are_all_there_and_failures_come_in_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
