/* tests/unit/tenancy/state_test.c: tenants' state in a file: the same as in memory, and there after a kill. */
#include "unit/unit.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/rng.h"
#include "tenancy/state_sqlite.h"
#include "unit/tenancy/folder.h"

#define LIMIT 100000

static realm_error error;
static state_store *g_state;

static int begin(void **state)
{
    return folder_make(state) ? -1 : (int)state_sqlite_open(&g_state, g_folder, &error);
}

static int end(void **state)
{
    if (g_state)
        g_state->table->close(g_state);
    g_state = NULL;
    return folder_remove(state);
}

static void reopen(void)
{
    g_state->table->close(g_state);
    g_state = NULL;
    assert_status(state_sqlite_open(&g_state, g_folder, &error), REALM_OK, error);
}

static realm_status put(state_store *s, uint32_t tenant, const char *key, const char *value,
                        uint64_t limit)
{
    return s->table->put(s, tenant, key, strlen(key), value, strlen(value), limit, &error);
}

/* The value as a text, or NULL. */
static const char *value_of(state_store *s, uint32_t tenant, const char *key)
{
    static char text[4096];
    buffer out;
    buffer_init(&out, sizeof text - 1);
    realm_status status = s->table->get(s, tenant, key, strlen(key), &out, &error);
    if (!status)
        snprintf(text, sizeof text, "%s", buffer_text(&out));
    buffer_release(&out);
    assert_true(status == REALM_OK || status == REALM_NOT_FOUND);
    return status ? NULL : text;
}

/* A random history in both kinds, with reopening in between: the memory's answers are the truth. */
static void it_is_as_the_one_in_memory(void **state)
{
    (void)state;
    state_store *truth;
    rng random;
    rng_init(&random, 4);
    assert_status(state_memory_open(&truth, &error), REALM_OK, error);
    for (int i = 0; i < 6000; i++) {
        uint32_t tenant = 1 + rng_next(&random) % 3;
        char key[16], value[200];
        int size = (int)(rng_next(&random) % sizeof value);
        snprintf(key, sizeof key, "k%d", (int)(rng_next(&random) % 40));
        memset(value, 'a' + i % 26, sizeof value);
        value[size ? size - 1 : 0] = 0;
        switch (rng_next(&random) % 4) {
        case 0:
        case 1: {
            uint64_t limit = rng_next(&random) % 8 ? 2500 : 1000;
            assert_int_equal(put(g_state, tenant, key, value, limit),
                             put(truth, tenant, key, value, limit));
            break;
        }
        case 2: {
            int here, there;
            assert_status(g_state->table->remove(g_state, tenant, key, strlen(key), &here, &error),
                          REALM_OK, error);
            assert_status(truth->table->remove(truth, tenant, key, strlen(key), &there, &error),
                          REALM_OK, error);
            assert_int_equal(here, there);
            break;
        }
        default: {
            const char *theirs = value_of(truth, tenant, key);
            char *wanted = theirs ? strdup(theirs) : NULL;
            const char *ours = value_of(g_state, tenant, key);
            assert_true(!ours == !wanted);
            if (wanted)
                assert_string_equal(ours, wanted);
            free(wanted);
        }
        }
        assert_int_equal(g_state->table->used_bytes(g_state, tenant),
                         truth->table->used_bytes(truth, tenant));
        if (i % 1500 == 1499)
            reopen();
    }
    truth->table->close(truth);
}

static void keys_and_values_are_any_bytes(void **state)
{
    (void)state;
    buffer out;
    buffer_init(&out, LIMIT);
    assert_status(g_state->table->put(g_state, 1, "a\0b", 3, "x\0y", 3, LIMIT, &error), REALM_OK,
                  error);
    assert_status(g_state->table->put(g_state, 1, "", 0, "", 0, LIMIT, &error), REALM_OK, error);
    reopen();
    assert_status(g_state->table->get(g_state, 1, "a\0b", 3, &out, &error), REALM_OK, error);
    assert_int_equal(out.size, 3);
    assert_memory_equal(out.data, "x\0y", 3);
    buffer_clear(&out);
    assert_status(g_state->table->get(g_state, 1, "", 0, &out, &error), REALM_OK, error);
    assert_int_equal(out.size, 0);
    assert_int_equal(g_state->table->get(g_state, 1, "a", 1, &out, &error), REALM_NOT_FOUND);
    assert_int_equal(g_state->table->get(g_state, 2, "a\0b", 3, &out, &error), REALM_NOT_FOUND);
    static char long_key[65537];
    assert_int_equal(g_state->table->get(g_state, 1, long_key, sizeof long_key, &out, &error),
                     REALM_TOO_LARGE);
    buffer_release(&out);
    buffer_init(&out, 2);
    assert_int_equal(g_state->table->get(g_state, 1, "a\0b", 3, &out, &error), REALM_TOO_LARGE);
    buffer_release(&out);
}

static void a_forgotten_tenants_state_is_gone(void **state)
{
    (void)state;
    assert_status(put(g_state, 1, "old", "x", LIMIT), REALM_OK, error);
    assert_status(put(g_state, 2, "other", "y", LIMIT), REALM_OK, error);
    reopen();
    assert_status(put(g_state, 1, "new", "z", LIMIT), REALM_OK, error);
    assert_status(state_sqlite_forget(g_state, 1, &error), REALM_OK, error);
    assert_null(value_of(g_state, 1, "old"));
    assert_null(value_of(g_state, 1, "new"));
    assert_int_equal(g_state->table->used_bytes(g_state, 1), 0);
    assert_int_equal(put(g_state, 1, "late", "z", LIMIT), REALM_NOT_FOUND);
    reopen();
    assert_null(value_of(g_state, 1, "old"));
    assert_null(value_of(g_state, 1, "new"));
    assert_string_equal(value_of(g_state, 2, "other"), "y");
}

/* ---- threads ---- */

static atomic_int g_durable;

static void count_durable(void *context)
{
    (void)context;
    atomic_fetch_add(&g_durable, 1);
}

static void *count_up(void *context)
{
    uint32_t tenant = *(uint32_t *)context;
    realm_error mine;
    for (int i = 0; i < 400; i++) {
        char key[16], value[16];
        buffer out;
        snprintf(key, sizeof key, "k%d", i % 7);
        snprintf(value, sizeof value, "%d", i);
        assert_status(g_state->table->put(g_state, tenant, key, strlen(key), value, strlen(value),
                                          LIMIT, &mine),
                      REALM_OK, mine);
        /* What was put is seen at once, wherever it is on its way to the file. */
        buffer_init(&out, 64);
        assert_status(g_state->table->get(g_state, tenant, key, strlen(key), &out, &mine), REALM_OK,
                      mine);
        assert_string_equal(buffer_text(&out), value);
        buffer_release(&out);
        assert_status(state_sqlite_when_durable(g_state, count_durable, NULL, &mine), REALM_OK,
                      mine);
    }
    return NULL;
}

static void threads_see_what_they_put(void **state)
{
    (void)state;
    pthread_t threads[3];
    uint32_t tenants[3] = {1, 2, 3};
    atomic_store(&g_durable, 0);
    for (int i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, count_up, &tenants[i]), 0);
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    for (uint64_t until = clock_ns() + A_MINUTE_NS;
         atomic_load(&g_durable) < 1200 && clock_ns() < until;)
        usleep(10000);
    assert_int_equal(atomic_load(&g_durable), 1200);
    reopen();
    assert_string_equal(value_of(g_state, 2, "k0"), "399");
}

/* ---- a kill ---- */

static void tell_number(void *context)
{
    int *told = context;
    if (write(told[0], &told[1], sizeof told[1]) != sizeof told[1])
        _exit(1);
    free(told);
}

static void count_without_end(int out)
{
    if (state_sqlite_open(&g_state, g_folder, &error))
        _exit(2);
    for (int i = 1;; i++) {
        char number[16];
        int *told = malloc(2 * sizeof *told);
        told[0] = out;
        told[1] = i;
        snprintf(number, sizeof number, "%d", i);
        /* Two keys that are always put together, first a, then b. */
        if (put(g_state, 1, "a", number, LIMIT) || put(g_state, 1, "b", number, LIMIT) ||
            state_sqlite_when_durable(g_state, tell_number, told, &error))
            _exit(3);
        usleep(50);
    }
}

static void what_was_told_durable_survives_a_kill(void **state)
{
    (void)state;
    g_state->table->close(g_state);
    g_state = NULL;
    for (int round = 0; round < 10; round++) {
        int ends[2], last = 0, got;
        assert_int_equal(pipe(ends), 0);
        pid_t pid = fork();
        if (pid == 0) {
            close(ends[0]);
            count_without_end(ends[1]);
        }
        close(ends[1]);
        for (int i = 0; i < 20 + round * 30 && read(ends[0], &got, sizeof got) == sizeof got; i++)
            last = got > last ? got : last;
        kill(pid, SIGKILL);
        while (read(ends[0], &got, sizeof got) == sizeof got)
            last = got > last ? got : last;
        close(ends[0]);
        int code;
        assert_int_equal(waitpid(pid, &code, 0), pid);
        assert_true(WIFSIGNALED(code));
        assert_true(last > 0);
        assert_status(state_sqlite_open(&g_state, g_folder, &error), REALM_OK, error);
        int a = atoi(value_of(g_state, 1, "a")), b = atoi(value_of(g_state, 1, "b"));
        assert_true(a >= last && b >= last);
        assert_true(a - b == 0 || a - b == 1); /* a prefix of what was put */
        g_state->table->close(g_state);
        g_state = NULL;
    }
}

static void a_damaged_file_is_an_error(void **state)
{
    (void)state;
    g_state->table->close(g_state);
    g_state = NULL;
    FILE *file = fopen(folder_path("state.db"), "w");
    fputs("this is no database, whatever its name says; it is longer than a header of one, so that "
          "there is something to read for whoever looks for one",
          file);
    fclose(file);
    assert_int_equal(state_sqlite_open(&g_state, g_folder, &error), REALM_CORRUPT);
    assert_holds(error.message, "state.db");
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, begin, end)
    const struct CMUnitTest tests[] = {
        TEST(it_is_as_the_one_in_memory),
        TEST(keys_and_values_are_any_bytes),
        TEST(a_forgotten_tenants_state_is_gone),
        TEST(threads_see_what_they_put),
        TEST(what_was_told_durable_survives_a_kill),
        TEST(a_damaged_file_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
