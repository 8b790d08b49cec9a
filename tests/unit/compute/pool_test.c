/* tests/unit/compute/pool_test.c: every item once, whatever the threads; also under
 * ThreadSanitizer, and with more threads than cores. */
#include "unit/unit.h"

#include <pthread.h>
#include <sched.h>
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

/* ---- lending ------------------------------------------------------------------------------------ */

/* A thread that lends itself, again and again until told to stop, leaving every `patience` questions. */
typedef struct lender {
    pool *pool;
    pthread_t thread;
    int patience, asked;
    atomic_int stop, stays, refusals;
} lender;

static int is_wanted(void *context)
{
    lender *l = context;
    return ++l->asked % l->patience == 0 || atomic_load(&l->stop);
}

static void *lend_until_told(void *context)
{
    lender *l = context;
    while (!atomic_load(&l->stop)) {
        atomic_fetch_add(pool_lend(l->pool, is_wanted, l) ? &l->stays : &l->refusals, 1);
        sched_yield();
    }
    return NULL;
}

static void start_lenders(lender *l, int count, pool *p, int patience)
{
    for (int i = 0; i < count; i++) {
        l[i] = (lender){.pool = p, .patience = patience + i};
        assert_int_equal(pthread_create(&l[i].thread, NULL, lend_until_told, &l[i]), 0);
    }
}

static int stop_lenders(lender *l, int count)
{
    int stays = 0;
    for (int i = 0; i < count; i++) {
        atomic_store(&l[i].stop, 1);
        pthread_join(l[i].thread, NULL);
        stays += atomic_load(&l[i].stays);
    }
    return stays;
}

/* Helpers fall asleep meanwhile, so that seats can be had even where a helper has no core to hand its
 * own over from. */
static void rest(void)
{
    struct timespec moment = {.tv_nsec = 1000000};
    nanosleep(&moment, NULL);
}

static int have_stayed(lender *l, int count)
{
    int stays = 0;
    for (int i = 0; i < count; i++)
        stays += atomic_load(&l[i].stays);
    return stays >= 20;
}

/* More lenders than seats, which come and go in the middle of runs: every item still runs once, and no
 * two threads sit in one seat (count_items looks). */
static void items_run_once_while_threads_are_lent(void **state)
{
    (void)state;
    for (int32_t threads = 2; threads <= 4; threads++) {
        for (int patience = 4; patience <= 100; patience += 32) {
            realm_error error;
            pool *p;
            lender lenders[4];
            assert_status(pool_open(&p, threads, &error), REALM_OK, error);
            tally *t = calloc(1, sizeof *t);
            t->grain = 1;
            start_lenders(lenders, 4, p, patience);
            int32_t runs = 0;
            for (; runs < 200 || !have_stayed(lenders, 4); runs++) {
                pool_run(p, count_items, t, N_ITEMS, 1);
                if (runs % 50 == 0)
                    rest();
            }
            stop_lenders(lenders, 4);
            for (int i = 0; i < N_ITEMS; i++)
                assert_int_equal(t->plain[i], runs);
            assert_false(t->overlapped);
            free(t);
            pool_close(p);
        }
    }
}

typedef struct crew {
    atomic_int now, most;
    _Atomic uint64_t lenders_items, others_items;
    pthread_t lender;
} crew;

/* Long enough that the seats fill. */
static void count_the_crew(void *context, int64_t first, int64_t count, int32_t thread)
{
    crew *c = context;
    (void)first, (void)thread;
    int now = atomic_fetch_add(&c->now, 1) + 1;
    for (int most = atomic_load(&c->most);
         now > most && !atomic_compare_exchange_weak(&c->most, &most, now);)
        ;
    struct timespec moment = {.tv_nsec = 20000};
    nanosleep(&moment, NULL);
    atomic_fetch_add(pthread_equal(pthread_self(), c->lender) ? &c->lenders_items
                                                              : &c->others_items,
                     (uint64_t)count);
    atomic_fetch_sub(&c->now, 1);
}

/* A lent thread works, and takes a helper's place instead of coming on top. */
static void no_more_than_its_threads_compute(void **state)
{
    (void)state;
    realm_error error;
    pool *p;
    lender l;
    crew c = {0};
    assert_status(pool_open(&p, 2, &error), REALM_OK, error);
    start_lenders(&l, 1, p, 1 << 30);
    c.lender = l.thread;
    while (atomic_load(&c.lenders_items) == 0) {
        pool_run(p, count_the_crew, &c, 100, 1);
        rest();
    }
    stop_lenders(&l, 1);
    assert_true(atomic_load(&c.most) <= 2);
    pool_close(p);
}

/* Two compute again after the lent thread has gone for good. */
static void the_helper_takes_the_seat_of_who_stays_away(void **state)
{
    (void)state;
    realm_error error;
    pool *p;
    lender l;
    crew c = {0};
    assert_status(pool_open(&p, 2, &error), REALM_OK, error);
    start_lenders(&l, 1, p, 1 << 30);
    c.lender = l.thread;
    while (atomic_load(&c.lenders_items) == 0) {
        pool_run(p, count_the_crew, &c, 100, 1);
        rest();
    }
    assert_true(stop_lenders(&l, 1) > 0); /* in the middle of its stay, and not to come back */
    atomic_store(&c.most, 0);
    for (int run = 0; run < 1000 && atomic_load(&c.most) < 2; run++)
        pool_run(p, count_the_crew, &c, 100, 1);
    assert_int_equal(atomic_load(&c.most), 2);
    pool_close(p);
}

static int is_never_wanted(void *context)
{
    atomic_store((atomic_int *)context, 1);
    return 0;
}

static void a_lent_thread_leaves_when_nothing_comes(void **state)
{
    (void)state;
    realm_error error;
    pool *p;
    atomic_int asked = 0;
    assert_status(pool_open(&p, 2, &error), REALM_OK, error);
    /* Not every time: a helper that has lost its core does not hand over, and is not waited for. */
    for (int stays = 0; stays < 20;)
        stays += pool_lend(p, is_never_wanted, &asked);
    assert_int_equal(asked, 1);
    pool_close(p);
}

static void a_pool_of_one_takes_nobody(void **state)
{
    (void)state;
    realm_error error;
    pool *p;
    atomic_int asked = 0;
    assert_status(pool_open(&p, 1, &error), REALM_OK, error);
    assert_int_equal(pool_lend(p, is_never_wanted, &asked), 0);
    pool_close(p);
}

typedef struct last_stay {
    pool *pool;
    atomic_int asked;
} last_stay;

static void *lend_once(void *context)
{
    last_stay *l = context;
    pool_lend(l->pool, is_never_wanted, &l->asked);
    return NULL;
}

static void closing_sends_lent_threads_out(void **state)
{
    (void)state;
    for (int i = 0; i < 50; i++) {
        realm_error error;
        last_stay l = {0};
        pthread_t thread;
        assert_status(pool_open(&l.pool, 3, &error), REALM_OK, error);
        assert_int_equal(pthread_create(&thread, NULL, lend_once, &l), 0);
        while (!atomic_load(&l.asked))
            sched_yield();
        pool_close(l.pool);
        pthread_join(thread, NULL);
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
        cmocka_unit_test(items_run_once_while_threads_are_lent),
        cmocka_unit_test(no_more_than_its_threads_compute),
        cmocka_unit_test(the_helper_takes_the_seat_of_who_stays_away),
        cmocka_unit_test(a_lent_thread_leaves_when_nothing_comes),
        cmocka_unit_test(a_pool_of_one_takes_nobody),
        cmocka_unit_test(closing_sends_lent_threads_out),
        cmocka_unit_test(a_silly_number_of_threads_is_refused),
    };
    return cmocka_run_group_tests_name("pool", tests, NULL, NULL);
}
