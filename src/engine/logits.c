/* engine/logits.c: see logits.h and the helpers in sampler.h.
 *
 * Each pass is written once over lanes and compiled twice on x86: for the
 * baseline and for AVX2. Lanes are summed in the same order in both. */
#include "engine/logits.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "compute/exp_parts.h"

#define LANES EXP_LANES
static_assert(LOGITS_BLOCK % LANES == 0, "a block is whole lanes");

#define INLINE static inline __attribute__((always_inline))

#define VECTOR_BYTES 16 /* the baseline's registers, and NEON's */
#define NAME(name)   name##_16
#define TARGET
#include "engine/logits_passes.inl"
#if defined(__x86_64__) && defined(__GNUC__)
#define VECTOR_BYTES 32
#define NAME(name)   name##_32
#define TARGET       __attribute__((target("avx2")))
#include "engine/logits_passes.inl"
#define IF_AVX2(call)                                                                              \
    if (cpu_features_get()->avx2)                                                                  \
        return call;
#else
#define IF_AVX2(call)
#endif

float logits_max(const float *x, int32_t n, int *has_nan)
{
    *has_nan = 0;
    IF_AVX2(max_32(x, n, has_nan))
    return max_16(x, n, has_nan);
}

void logits_exp(const float *x, int32_t n, float scale, float shift, float *out)
{
    IF_AVX2(exp_32(x, n, scale, shift, out))
    exp_16(x, n, scale, shift, out);
}

double logits_exp_sums(const float *x, int32_t n, float scale, float shift, double *sums)
{
    IF_AVX2(exp_sums_32(x, n, scale, shift, sums))
    return exp_sums_16(x, n, scale, shift, sums);
}

const double *logits_sums_of(const row_digest *digest, float scale)
{
    const double *sums = digest && digest->scale == scale ? digest->sums : NULL;
    return sums && !isnan(sums[0]) ? sums : NULL;
}

double logits_total(const double *sums, int32_t n)
{
    double total = 0;
    for (int32_t i = 0; i < logits_blocks(n); i++)
        total += sums[i];
    return total;
}

float logits_log_sum_exp(const float *logits, int32_t n, const row_digest *digest)
{
    const double *sums = logits_sums_of(digest, 1);
    int has_nan = 0;
    float max = digest && digest->peaks ? logits_max(digest->peaks, logits_blocks(n), &has_nan)
                                        : logits_max(logits, n, &has_nan);
    if (has_nan || !isfinite(max))
        return has_nan ? NAN : max;
    double total = sums ? logits_total(sums, n) : logits_exp_sums(logits, n, 1, -max, NULL);
    return (float)((double)max + log(total));
}

#define BEST_BLOCK 2048 /* looked through one by one in the end; stays in the first-level cache */

/* A row has been written by other cores and is read from afar: one pass, not one for the value and one
 * for its place. */
token_id logits_best(const float *logits, int32_t n, float *best, int *has_nan)
{
    int32_t at = 0, count = 0;
    *best = -INFINITY;
    *has_nan = 0;
    for (int32_t i = 0; i < n; i += count) {
        int odd = 0;
        count = n - i < BEST_BLOCK ? n - i : BEST_BLOCK;
        float max = logits_max(logits + i, count, &odd);
        *has_nan |= odd;
        if (max > *best) {
            *best = max;
            at = i;
        }
    }
    while (at < n && logits[at] != *best)
        at++;
    return at < n ? at : 0;
}

token_id logits_best_by_peaks(const float *x, const float *peaks, int32_t n, float *best,
                              int *has_nan)
{
    int32_t n_peaks = logits_blocks(n), at;
    *best = logits_max(peaks, n_peaks, has_nan);
    for (at = 0; at < n_peaks && peaks[at] != *best; at++)
        ;
    for (at *= LOGITS_BLOCK; at < n && x[at] != *best; at++)
        ;
    return at < n ? at : 0;
}

token_id logits_argmax(const float *logits, int32_t n)
{
    float best;
    int has_nan;
    return logits_best(logits, n, &best, &has_nan);
}

/* ---- the k largest ----------------------------------------------------------------------------- */

/* Past this a heap's depth costs more than three counting passes. */
#define MOST_IN_HEAP 256

/* What comes later in the order: a smaller value, or the same and a larger id. */
static int is_after(token_logit a, token_logit b)
{
    return a.value != b.value ? a.value < b.value : a.id > b.id;
}

int logits_compare(const void *a, const void *b)
{
    return is_after(*(const token_logit *)a, *(const token_logit *)b) ? 1 : -1;
}

static void sink(token_logit *heap, int32_t count, int32_t i)
{
    token_logit moving = heap[i];
    for (int32_t child; (child = 2 * i + 1) < count; i = child) {
        if (child + 1 < count && is_after(heap[child + 1], heap[child]))
            child++;
        if (!is_after(heap[child], moving))
            break;
        heap[i] = heap[child];
    }
    heap[i] = moving;
}

static float number(float x)
{
    return x == x ? x : -INFINITY;
}

static void top_by_heap(const float *x, int32_t n, int32_t k, token_logit *heap)
{
    int has_nan = 0;
    for (int32_t i = 0; i < k; i++)
        heap[i] = (token_logit){i, number(x[i])};
    for (int32_t i = k / 2 - 1; i >= 0; i--)
        sink(heap, k, i);
    int32_t count = 0;
    for (int32_t i = k; i < n; i += count) {
        count = n - i < LOGITS_BLOCK ? n - i : LOGITS_BLOCK;
        if (!(logits_max(x + i, count, &has_nan) > heap[0].value))
            continue;
        for (int32_t j = i; j < i + count; j++)
            if (x[j] > heap[0].value) {
                heap[0] = (token_logit){j, x[j]};
                sink(heap, k, 0);
            }
    }
}

/* Unsigned numbers in the order of the floats; -0 and 0 are the same. */
static uint32_t key_of(float x)
{
    uint32_t bits;
    x = number(x) + 0.0f;
    memcpy(&bits, &x, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* The key of the k-th largest, digit by digit; *above: how many keys are larger. */
static uint32_t kth_key(const float *x, int32_t n, int32_t k, int32_t *above)
{
    static const int shifts[] = {21, 10, 0}, widths[] = {11, 11, 10};
    uint32_t prefix = 0;
    *above = 0;
    for (int level = 0; level < 3; level++) {
        int32_t counts[1 << 11] = {0};
        int top = shifts[level] + widths[level];
        for (int32_t i = 0; i < n; i++) {
            uint32_t key = key_of(x[i]);
            if (top == 32 || key >> top == prefix)
                counts[(key >> shifts[level]) & ((1u << widths[level]) - 1)]++;
        }
        int32_t digit = (1 << widths[level]) - 1;
        while (*above + counts[digit] < k)
            *above += counts[digit--];
        prefix = prefix << widths[level] | (uint32_t)digit;
    }
    return prefix;
}

static void top_by_counting(const float *x, int32_t n, int32_t k, token_logit *out)
{
    int32_t above, count = 0;
    uint32_t threshold = kth_key(x, n, k, &above);
    int32_t equal = k - above;
    for (int32_t i = 0; i < n && count < k; i++) {
        uint32_t key = key_of(x[i]);
        if (key > threshold || (key == threshold && equal-- > 0))
            out[count++] = (token_logit){i, number(x[i])};
    }
}

int32_t logits_top(const float *logits, int32_t n, int32_t k, token_logit *out)
{
    k = k < n ? k : n;
    if (k <= 0)
        return 0;
    if (k <= MOST_IN_HEAP)
        top_by_heap(logits, n, k, out);
    else
        top_by_counting(logits, n, k, out);
    qsort(out, (size_t)k, sizeof *out, logits_compare);
    return k;
}

/* ---- sorting ------------------------------------------------------------------------------------ */

/* Below this clearing the counts costs more than comparing. */
#define LEAST_COUNTED 1024

/* From the last digit to the first, each pass leaving equal ones as they stand: a fifth of the time of comparing
 * for a list that is as long as a vocabulary. */
static void sort_by_counting(token_logit *list, int32_t count, token_logit *scratch)
{
    enum { BITS = 11, DIGITS = 1 << BITS, PASSES = 3 };
    int32_t places[PASSES][DIGITS] = {{0}};
    for (int32_t i = 0; i < count; i++)
        for (int pass = 0; pass < PASSES; pass++)
            places[pass][~key_of(list[i].value) >> pass * BITS & (DIGITS - 1)]++;
    token_logit *from = list, *to = scratch;
    for (int pass = 0; pass < PASSES; pass++) {
        int32_t before = 0;
        for (int digit = 0; digit < DIGITS; digit++) {
            int32_t n = places[pass][digit];
            places[pass][digit] = before;
            before += n;
        }
        for (int32_t i = 0; i < count; i++)
            to[places[pass][~key_of(from[i].value) >> pass * BITS & (DIGITS - 1)]++] = from[i];
        token_logit *swapped = from;
        from = to;
        to = swapped;
    }
    memcpy(list, from, (size_t)count * sizeof *list);
}

void logits_sort(token_logit *list, int32_t count, token_logit *scratch)
{
    if (count < LEAST_COUNTED)
        qsort(list, (size_t)count, sizeof *list, logits_compare);
    else
        sort_by_counting(list, count, scratch);
}
