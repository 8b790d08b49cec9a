/* tests/unit/engine/memory_test.c: every allocation fails in turn. What ran out of memory says so,
 * and everything else goes on: nothing is lost, nothing is half done. Linked with malloc, calloc
 * and realloc wrapped. */
#include "unit/engine/fake_device.h"

static atomic_int countdown; /* allocations until one fails; negative: none does */
static atomic_int failed;

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);

static int fails(void)
{
    if (atomic_load(&countdown) < 0 || atomic_fetch_sub(&countdown, 1) != 0)
        return 0;
    atomic_store(&failed, 1);
    return 1;
}

void *__wrap_malloc(size_t size)
{
    return fails() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return fails() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *old, size_t size)
{
    return fails() ? NULL : __real_realloc(old, size);
}

static token_id tokens[300];

static realm_status run_works(engine *e, session *s)
{
    float vector[FAKE_EMBD];
    work feed = {.kind = WORK_FEED, .session = s, .tokens = tokens, .n_tokens = 300};
    work step = {.kind = WORK_STEP, .session = s, .token = 5};
    work generate = {
        .kind = WORK_GENERATE, .session = s, .generate = {.max_tokens = 30, .ignore_eos = 1}};
    work embed = {
        .kind = WORK_EMBED, .session = s, .tokens = tokens, .n_tokens = 40, .embedding = vector};
    work *works[] = {&feed, &step, &generate, &embed};
    for (int i = 0; i < 4; i++) {
        realm_status status = engine_run(e, works[i]);
        if (status != REALM_OK) {
            assert_int_equal(works[i]->error.status, status);
            return status;
        }
    }
    return REALM_OK;
}

static realm_status run_session(engine *e)
{
    realm_error error;
    session *s = NULL, *fork = NULL;
    session_options o = {.tenant = 3, .sampler = SAMPLER_OPTIONS_DEFAULT};
    o.sampler.presence_penalty = 0.5f;
    o.sampler.temperature = 1;
    o.sampler.top_p = 0.9f;
    realm_status status = session_open(&s, e, &o, &error);
    if (status != REALM_OK)
        return status;
    status = run_works(e, s);
    if (status == REALM_OK)
        status = session_fork(&fork, s, &error);
    if (status == REALM_OK)
        status = session_truncate(s, 100, &error);
    if (status == REALM_OK)
        status = run_works(e, fork);
    session_close(s);
    if (fork)
        session_close(fork);
    return status;
}

static void an_engine_that_cannot_open_says_so(void **state)
{
    (void)state;
    for (int n = 0;; n++) {
        fake f = {0};
        realm_error error;
        engine *e = NULL;
        device d = fake_device(&f);
        atomic_store(&failed, 0);
        atomic_store(&countdown, n);
        realm_status status = engine_open_device(&e, &d, NULL, &error);
        atomic_store(&countdown, -1);
        if (status == REALM_OK) {
            engine_close(e);
            assert_true(n > 5);
            return;
        }
        assert_int_equal(status, REALM_NO_MEMORY);
    }
}

static void a_failed_allocation_ends_one_work_and_nothing_else(void **state)
{
    (void)state;
    fake f = {0};
    engine *e = fake_engine(&f, NULL);
    int n_failed = 0;
    for (int n = 0; n < 500; n++) {
        atomic_store(&failed, 0);
        atomic_store(&countdown, n);
        realm_status status = run_session(e);
        atomic_store(&countdown, -1);
        if (!atomic_load(&failed))
            break;
        n_failed++;
        assert_true(status == REALM_NO_MEMORY || status == REALM_OK); /* a cache may do without */
        assert_int_equal(run_session(e), REALM_OK);
    }
    assert_true(n_failed > 15);
    engine_close(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_engine_that_cannot_open_says_so),
        cmocka_unit_test(a_failed_allocation_ends_one_work_and_nothing_else),
    };
    atomic_store(&countdown, -1);
    for (int32_t i = 0; i < 300; i++)
        tokens[i] = i % 256;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
