/* tests/unit/base/queue_test.c: base/queue.h with one thread and with many. Run under
 * ThreadSanitizer too. */
#include "unit/unit.h"

#include "base/clock.h"
#include "base/queue.h"

#define PRODUCERS 4
#define CONSUMERS 3
#define ITEMS     5000 /* of each producer */

typedef struct item {
    queue_node node;
    int producer, number;
} item;

static item g_items[PRODUCERS][ITEMS];
static queue g_queue;

static void things_come_out_as_they_went_in(void **state)
{
    (void)state;
    queue q;
    item items[10];
    queue_init(&q);
    assert_null(queue_take(&q, 0, 0));
    assert_null(queue_take_all(&q));
    for (int i = 0; i < 10; i++) {
        items[i].number = i;
        queue_put(&q, &items[i].node);
    }
    assert_int_equal(queue_count(&q), 10);
    for (int i = 0; i < 5; i++)
        assert_int_equal(QUEUE_OWNER(queue_take(&q, 0, 0), item, node)->number, i);
    queue_node *rest = queue_take_all(&q);
    for (int i = 5; i < 10; i++, rest = rest->next)
        assert_int_equal(QUEUE_OWNER(rest, item, node)->number, i);
    assert_null(rest);
    assert_int_equal(queue_count(&q), 0);
    queue_release(&q);
}

static void waiting_ends_when_its_time_is_over_or_the_queue_closes(void **state)
{
    (void)state;
    queue q;
    item one;
    queue_init(&q);
    uint64_t start = clock_ns();
    assert_null(queue_take(&q, 0, 0));
    assert_null(queue_take(&q, 1000, 20 * 1000000));
    assert_true(clock_ns() - start >= 20 * 1000000);
    queue_put(&q, &one.node);
    queue_close(&q);
    assert_ptr_equal(queue_take(&q, 0, UINT64_MAX), &one.node); /* what is left comes out first */
    assert_null(queue_take(&q, 0, UINT64_MAX));
    queue_release(&q);
}

static void *produce(void *argument)
{
    item *items = argument;
    for (int i = 0; i < ITEMS; i++)
        queue_put(&g_queue, &items[i].node);
    return NULL;
}

typedef struct consumer {
    pthread_t thread;
    int counts[PRODUCERS];
    int in_order; /* each producer's things came in the order in which it put them */
} consumer;

static void *consume(void *argument)
{
    consumer *c = argument;
    int last[PRODUCERS];
    memset(last, -1, sizeof last);
    c->in_order = 1;
    for (queue_node *node; (node = queue_take(&g_queue, 2000, UINT64_MAX));) {
        item *it = QUEUE_OWNER(node, item, node);
        c->in_order &= it->number > last[it->producer];
        last[it->producer] = it->number;
        c->counts[it->producer]++;
    }
    return NULL;
}

static void many_threads_lose_and_double_nothing(void **state)
{
    (void)state;
    pthread_t producers[PRODUCERS];
    consumer consumers[CONSUMERS] = {0};
    queue_init(&g_queue);
    for (int p = 0; p < PRODUCERS; p++)
        for (int i = 0; i < ITEMS; i++)
            g_items[p][i] = (item){.producer = p, .number = i};
    for (int c = 0; c < CONSUMERS; c++)
        pthread_create(&consumers[c].thread, NULL, consume, &consumers[c]);
    for (int p = 0; p < PRODUCERS; p++)
        pthread_create(&producers[p], NULL, produce, g_items[p]);
    for (int p = 0; p < PRODUCERS; p++)
        pthread_join(producers[p], NULL);
    queue_close(&g_queue);
    int total[PRODUCERS] = {0};
    for (int c = 0; c < CONSUMERS; c++) {
        pthread_join(consumers[c].thread, NULL);
        assert_true(consumers[c].in_order);
        for (int p = 0; p < PRODUCERS; p++)
            total[p] += consumers[c].counts[p];
    }
    for (int p = 0; p < PRODUCERS; p++)
        assert_int_equal(total[p], ITEMS);
    queue_release(&g_queue);
}

/* The one that waits may free the queue as soon as it has what it waited for. */
static void *answer(void *argument)
{
    queue *q = argument;
    queue_put(q, (queue_node *)(q + 1));
    return NULL;
}

static void a_taker_may_free_the_queue_at_once(void **state)
{
    (void)state;
    for (int i = 0; i < 300; i++) {
        pthread_t thread;
        queue *q = malloc(sizeof *q + sizeof(queue_node));
        queue_init(q);
        pthread_create(&thread, NULL, answer, q);
        assert_non_null(queue_take(q, 0, UINT64_MAX));
        queue_release(q);
        free(q);
        pthread_join(thread, NULL);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(things_come_out_as_they_went_in),
        cmocka_unit_test(waiting_ends_when_its_time_is_over_or_the_queue_closes),
        cmocka_unit_test(many_threads_lose_and_double_nothing),
        cmocka_unit_test(a_taker_may_free_the_queue_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
