/* tests/unit/compute/pool_test.c: every item once, whatever the threads; also under
 * ThreadSanitizer, and with more threads than cores. */
#include "unit/unit.h"

#include <stdatomic.h>
#include <time.h>

#include "compute/cpu/pool.h"

#define N_ITEMS 1000

typedef struct tally {
    int32_t plain[N_ITEMS]; /* not atomic: ThreadSanitizer must find no race */
    _Atomic int busy[64];   /* by thread */
    int64_t grain;
    int overlapped, misaligned;
} tally;

static void count_items(void *context, int64_t first, int64_t count, int32_t thread)
{
    tally *t = context;
    if (atomic_fetch_add(&t->busy[thread], 1) != 0)
        t->overlapped = 1;
    if (first % t->grain)
        t->misaligned = 1;
    for (int64_t i = first; i < first + count; i++)
        t->plain[i]++;
    atomic_fetch_sub(&t->busy[thread], 1);
}

static void every_item_runs_exactly_once(void **state)
{
    (void)state;
    for (int32_t threads = 1; threads <= 9; threads += 2) {
        realm_error error;
        pool *p;
        assert_status(pool_open(&p, threads, &error), REALM_OK, error);
        assert_int_equal(pool_threads(p), threads);
        tally *t = calloc(1, sizeof *t);
        int32_t runs = 0;
        for (int64_t n = 1; n <= N_ITEMS; n = n * 3 + 1) {
            for (int64_t grain = 1; grain <= 40; grain += 13) {
                memset(t, 0, sizeof *t);
                t->grain = grain;
                pool_run(p, count_items, t, n, grain);
                for (int64_t i = 0; i < N_ITEMS; i++)
                    assert_int_equal(t->plain[i], i < n);
                assert_false(t->overlapped || t->misaligned);
                runs++;
            }
        }
        assert_true(runs > 20);
        free(t);
        pool_close(p);
    }
}

static void no_items_is_no_work(void **state)
{
    (void)state;
    realm_error error;
    pool *p;
    assert_status(pool_open(&p, 3, &error), REALM_OK, error);
    pool_run(p, NULL, NULL, 0, 1);
    pool_close(p);
}

static void writes_of_one_run_are_seen_by_the_next(void **state)
{
    (void)state;
    realm_error error;
    pool *p;
    assert_status(pool_open(&p, 4, &error), REALM_OK, error);
    tally *t = calloc(1, sizeof *t);
    t->grain = 1;
    for (int run = 0; run < 3000; run++)
        pool_run(p, count_items, t, 1 + run % N_ITEMS, 1);
    int64_t sum = 0, wanted = 0;
    for (int i = 0; i < N_ITEMS; i++)
        sum += t->plain[i];
    for (int run = 0; run < 3000; run++)
        wanted += 1 + run % N_ITEMS;
    assert_int_equal(sum, wanted);
    free(t);
    pool_close(p);
}

static void sleepers_wake_for_work(void **state)
{
    (void)state;
    realm_error error;
    pool *p;
    assert_status(pool_open(&p, 3, &error), REALM_OK, error);
    tally *t = calloc(1, sizeof *t);
    t->grain = 1;
    for (int run = 0; run < 50; run++) {
        struct timespec pause = {0,
                                 20000 * (run % 10)}; /* around the time after which they sleep */
        nanosleep(&pause, NULL);
        pool_run(p, count_items, t, N_ITEMS, 1);
    }
    for (int i = 0; i < N_ITEMS; i++)
        assert_int_equal(t->plain[i], 50);
    free(t);
    pool_close(p);
}

static void opening_and_closing_at_once_is_safe(void **state)
{
    (void)state;
    for (int i = 0; i < 50; i++) {
        realm_error error;
        pool *p;
        assert_status(pool_open(&p, 1 + i % 6, &error), REALM_OK, error);
        pool_close(p);
    }
}

static void a_silly_number_of_threads_is_refused(void **state)
{
    (void)state;
    realm_error error;
    pool *p = NULL;
    assert_status(pool_open(&p, 0, &error), REALM_INVALID, error);
    assert_status(pool_open(&p, 1 << 20, &error), REALM_INVALID, error);
    assert_null(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_item_runs_exactly_once),
        cmocka_unit_test(no_items_is_no_work),
        cmocka_unit_test(writes_of_one_run_are_seen_by_the_next),
        cmocka_unit_test(sleepers_wake_for_work),
        cmocka_unit_test(opening_and_closing_at_once_is_safe),
        cmocka_unit_test(a_silly_number_of_threads_is_refused),
    };
    return cmocka_run_group_tests_name("pool", tests, NULL, NULL);
}
