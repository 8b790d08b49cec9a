/* compute/cpu/rope_angles.c: rotary embedding: the angles of a step, computed once for all its layers, and
 * how rows are divided over the pool. Engine thread. */
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "compute/cpu/cpu_backend.h"

/* Angles are taken in double: at position 100,000 a float is wrong by a hundredth of a radian. */
static void angles_at(const rope *r, int32_t position, float *cosines, float *sines)
{
    for (int32_t i = 0; i < r->n_rot / 2; i++) {
        double angle = (double)position * (double)r->inverse_frequency[i];
        cosines[i] = (float)(cos(angle) * (double)r->magnitude);
        sines[i] = (float)(sin(angle) * (double)r->magnitude);
    }
}

typedef struct angles_job {
    rope_angles *a;
} angles_job;

static void angles_rows(void *context, int64_t first, int64_t count, int32_t thread)
{
    const angles_job *j = context;
    (void)thread;
    for (int64_t i = first; i < first + count; i++) {
        size_t at = (size_t)i * (size_t)j->a->n_pairs;
        angles_at(j->a->of, j->a->positions[i], j->a->cosines + at, j->a->sines + at);
    }
}

static int angles_fit(rope_angles *a, int32_t n_tokens, int32_t n_pairs)
{
    if (n_tokens <= a->n_tokens_room && n_pairs <= a->n_pairs_room)
        return 1;
    size_t n = (size_t)n_tokens, pairs = n * (size_t)n_pairs;
    free(a->positions);
    free(a->cosines);
    free(a->sines);
    a->positions = malloc(n * sizeof *a->positions);
    a->cosines = malloc(pairs * sizeof *a->cosines);
    a->sines = malloc(pairs * sizeof *a->sines);
    int have = a->positions && a->cosines && a->sines;
    a->n_tokens_room = have ? n_tokens : 0;
    a->n_pairs_room = have ? n_pairs : 0;
    return have;
}

/* The step's angles of a rope, or NULL if there is no memory to keep them. */
static const rope_angles *find_angles(cpu_backend *b, const rope *r, const int32_t *positions,
                                      int32_t n_tokens)
{
    for (int32_t i = 0; i < b->n_angles; i++) {
        const rope_angles *a = &b->angles[i];
        if (a->of == r && a->n_tokens == n_tokens &&
            memcmp(a->positions, positions, (size_t)n_tokens * sizeof *positions) == 0)
            return a;
    }
    int32_t slot = b->n_angles < ROPE_ANGLES_MAX ? b->n_angles : 0;
    rope_angles *a = &b->angles[slot];
    if (!angles_fit(a, n_tokens, r->n_rot / 2)) {
        b->n_angles = slot; /* the slot holds nothing now, nor may those after it be found */
        return NULL;
    }
    b->n_angles = slot == b->n_angles ? slot + 1 : b->n_angles;
    a->of = r;
    a->n_tokens = n_tokens;
    a->n_pairs = r->n_rot / 2;
    memcpy(a->positions, positions, (size_t)n_tokens * sizeof *positions);
    angles_job j = {a};
    cpu_backend_share(b, angles_rows, &j, n_tokens, (int64_t)a->n_pairs * 32);
    return a;
}

typedef struct rope_job {
    cpu_backend *b;
    tensor x;
    int32_t head_dim;
    const rope *rope;
    const int32_t *positions;
    const rope_angles *angles;
} rope_job;

#define STACK_PAIRS 512

/* With no memory for a table: heads are turned STACK_PAIRS pairs' worth of angles at a time. */
static void rotate_without_table(const rope_job *j, float *x, int32_t position)
{
    float cosines[STACK_PAIRS], sines[STACK_PAIRS];
    assert(j->rope->n_rot / 2 <= STACK_PAIRS);
    angles_at(j->rope, position, cosines, sines);
    j->b->kernels->rotate(x, j->x.n_cols / j->head_dim, j->head_dim, j->rope, cosines, sines);
}

static void rope_rows(void *context, int64_t first, int64_t count, int32_t thread)
{
    const rope_job *j = context;
    (void)thread;
    for (int64_t i = first; i < first + count; i++) {
        float *x = j->x.data + (size_t)i * (size_t)j->x.n_cols;
        if (!j->angles) {
            rotate_without_table(j, x, j->positions[i]);
            continue;
        }
        size_t at = (size_t)i * (size_t)j->angles->n_pairs;
        j->b->kernels->rotate(x, j->x.n_cols / j->head_dim, j->head_dim, j->rope,
                              j->angles->cosines + at, j->angles->sines + at);
    }
}

void rope_angles_apply(backend *b, tensor x, int32_t head_dim, const rope *r,
                       const int32_t *positions)
{
    assert(x.n_cols % head_dim == 0 && r->n_rot <= head_dim && r->n_rot % 2 == 0);
    assert(r->n_rot / 2 <= STACK_PAIRS);
    rope_job j = {(cpu_backend *)b, x, head_dim, r, positions, NULL};
    j.angles = find_angles(j.b, r, positions, x.n_rows);
    cpu_backend_share(j.b, rope_rows, &j, x.n_rows, x.n_cols);
}

void rope_angles_release(cpu_backend *b)
{
    for (int i = 0; i < ROPE_ANGLES_MAX; i++) {
        free(b->angles[i].positions);
        free(b->angles[i].cosines);
        free(b->angles[i].sines);
    }
}
