/* base/queue.h: how threads meet: an unbounded first-in-first-out queue of intrusive nodes.
 *
 * Any thread puts; one or more threads take. A taker that finds nothing spins for a moment (a
 * step of a model ends within microseconds of the next work) and then sleeps on a condition
 * variable. Nodes are the caller's and live in what is queued; the queue allocates nothing, so
 * putting cannot fail. */
#ifndef REALM_BASE_QUEUE_H
#define REALM_BASE_QUEUE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

typedef struct queue_node {
    struct queue_node *next;
} queue_node;

typedef struct queue {
    pthread_mutex_t mutex;
    pthread_cond_t filled;
    queue_node *head, *tail; /* guarded by mutex */
    atomic_int count;        /* written under mutex, read anywhere */
    int sleepers;            /* guarded by mutex */
    int closed;              /* guarded by mutex */
    const void *deputy;      /* guarded by mutex; see queue_set_deputy */
} queue;

void queue_init(queue *q);

/* The queue must be empty and nobody may be waiting. */
void queue_release(queue *q);

void queue_put(queue *q, queue_node *node);

/* Waking a sleeping taker costs both sides some microseconds. A taker who knows that whoever puts will soon look
 * after the queue in its stead says so before it sleeps, with any address that stands for that deputy (NULL:
 * nobody): then queue_put_for that deputy wakes nobody. What is put by others wakes as ever, and a taker that
 * is awake takes whatever is there. */
void queue_set_deputy(queue *q, const void *deputy);
void queue_put_for(queue *q, queue_node *node, const void *deputy);

/* The oldest node. Spins for at most spin_ns, then sleeps for at most wait_ns (UINT64_MAX: for
 * ever). NULL when the time is over, or the queue is closed and empty. */
queue_node *queue_take(queue *q, uint64_t spin_ns, uint64_t wait_ns);

/* Everything that is in, oldest first, in one go; NULL if nothing is. */
queue_node *queue_take_all(queue *q);

/* Takers get what is left and then NULL. */
void queue_close(queue *q);

/* How many are in, as of a moment ago. */
static inline int queue_count(queue *q)
{
    return atomic_load_explicit(&q->count, memory_order_acquire);
}

/* From a node back to the thing it lives in. */
#define QUEUE_OWNER(node, type, member)                                                            \
    ((type *)(void *)((char *)(node) - __builtin_offsetof(type, member)))

#endif
