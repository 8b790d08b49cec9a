/* base/queue.c: see queue.h. */
#include "base/queue.h"

#include <assert.h>

#include "base/condition.h"
#include "base/spin.h"

void queue_init(queue *q)
{
    pthread_mutex_init(&q->mutex, NULL);
    condition_init(&q->filled);
    q->head = q->tail = NULL;
    atomic_init(&q->count, 0);
    q->sleepers = 0;
    q->closed = 0;
    q->deputy = NULL;
}

void queue_release(queue *q)
{
    assert(!q->head && !q->sleepers);
    pthread_cond_destroy(&q->filled);
    pthread_mutex_destroy(&q->mutex);
}

void queue_put(queue *q, queue_node *node)
{
    queue_put_for(q, node, NULL);
}

void queue_put_for(queue *q, queue_node *node, const void *deputy)
{
    node->next = NULL;
    pthread_mutex_lock(&q->mutex);
    if (q->tail)
        q->tail->next = node;
    else
        q->head = node;
    q->tail = node;
    atomic_fetch_add_explicit(&q->count, 1, memory_order_release);
    /* Under the mutex: once it is free the taker may have what it waited for and release the
     * queue. */
    if (q->sleepers > 0 && (!deputy || q->deputy != deputy))
        pthread_cond_signal(&q->filled);
    pthread_mutex_unlock(&q->mutex);
}

void queue_set_deputy(queue *q, const void *deputy)
{
    pthread_mutex_lock(&q->mutex);
    q->deputy = deputy;
    pthread_mutex_unlock(&q->mutex);
}

static queue_node *take_locked(queue *q)
{
    queue_node *node = q->head;
    if (node) {
        q->head = node->next;
        if (!q->head)
            q->tail = NULL;
        node->next = NULL;
        atomic_fetch_sub_explicit(&q->count, 1, memory_order_release);
    }
    return node;
}

queue_node *queue_take(queue *q, uint64_t spin_ns, uint64_t wait_ns)
{
    if (spin_ns) {
        uint64_t end = clock_ns() + spin_ns;
        while (queue_count(q) == 0 && clock_ns() < end)
            spin_pause();
    }
    uint64_t until_ns = CONDITION_FOREVER;
    if (wait_ns && wait_ns != UINT64_MAX) {
        uint64_t now = clock_ns();
        until_ns = wait_ns < UINT64_MAX - now ? now + wait_ns : CONDITION_FOREVER;
    }
    pthread_mutex_lock(&q->mutex);
    queue_node *node = take_locked(q);
    int timed_out = wait_ns == 0;
    while (!node && !q->closed && !timed_out) {
        q->sleepers++;
        timed_out = !condition_wait(&q->filled, &q->mutex, until_ns);
        q->sleepers--;
        node = take_locked(q);
    }
    pthread_mutex_unlock(&q->mutex);
    return node;
}

queue_node *queue_take_all(queue *q)
{
    if (queue_count(q) == 0)
        return NULL;
    pthread_mutex_lock(&q->mutex);
    queue_node *first = q->head;
    q->head = q->tail = NULL;
    atomic_store_explicit(&q->count, 0, memory_order_release);
    pthread_mutex_unlock(&q->mutex);
    return first;
}

void queue_close(queue *q)
{
    pthread_mutex_lock(&q->mutex);
    q->closed = 1;
    pthread_cond_broadcast(&q->filled); /* under the mutex, as in queue_put */
    pthread_mutex_unlock(&q->mutex);
}
