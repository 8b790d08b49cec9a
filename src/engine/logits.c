/* engine/logits.c: see logits.h and the helpers in sampler.h.
 *
 * Each pass is written once as plain loops over sixteen lanes and compiled twice on x86: for the
 * baseline and for AVX2. Lanes are summed in the same order in both. */
#include "engine/logits.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"

#define LANES 16
static_assert(LOGITS_BLOCK % LANES == 0, "a block is whole lanes");

#if defined(__x86_64__) && defined(__GNUC__)
#define FOR_AVX2 __attribute__((target("avx2")))
#endif
#define INLINE static inline __attribute__((always_inline))

/* exp for x <= 0, relative error below 2e-7: 2^n times a polynomial of degree 6 in the rest, the
 * coefficients of Cephes' expf. Below -87 the result is 0 instead of a subnormal. */
INLINE float exp_negative(float x)
{
    float bounded = x > -87.0f ? x : -87.0f;
    float shifted = bounded * 1.44269504088896341f + 12582912.0f; /* 1.5 * 2^23 rounds to whole */
    float n = shifted - 12582912.0f;
    float rest = bounded - n * 0.693359375f;
    rest = rest - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * rest + 1.3981999507e-3f;
    p = p * rest + 8.3334519073e-3f;
    p = p * rest + 4.1665795894e-2f;
    p = p * rest + 1.6666665459e-1f;
    p = p * rest + 5.0000001201e-1f;
    p = p * (rest * rest) + rest + 1.0f;
    int32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (int32_t)((uint32_t)bits << 23) + 0x3f800000; /* the low bits of shifted are n */
    float power;
    memcpy(&power, &bits, sizeof power);
    return x > -87.0f ? p * power : 0.0f;
}

INLINE float max_body(const float *x, int32_t n, int *has_nan)
{
    float best[LANES];
    int32_t odd[LANES] = {0};
    for (int j = 0; j < LANES; j++)
        best[j] = -INFINITY;
    int32_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) {
            best[j] = x[i + j] > best[j] ? x[i + j] : best[j];
            odd[j] |= x[i + j] != x[i + j];
        }
    for (; i < n; i++) {
        best[0] = x[i] > best[0] ? x[i] : best[0];
        odd[0] |= x[i] != x[i];
    }
    for (int j = 0; j < LANES; j++) {
        best[0] = best[j] > best[0] ? best[j] : best[0];
        *has_nan |= odd[j];
    }
    return best[0];
}

INLINE void exp_body(const float *x, int32_t n, float scale, float shift, float *out)
{
    for (int32_t i = 0; i < n; i++)
        out[i] = exp_negative(x[i] * scale + shift);
}

INLINE double sum_lanes(const float *x, int32_t n)
{
    float lanes[LANES] = {0};
    double sum = 0;
    for (int32_t i = 0; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++)
            lanes[j] += x[i + j];
    for (int j = 0; j < LANES; j++)
        sum += (double)lanes[j];
    for (int32_t i = n - n % LANES; i < n; i++)
        sum += (double)x[i];
    return sum;
}

INLINE double exp_sums_body(const float *x, int32_t n, float scale, float shift, double *sums)
{
    float block[LOGITS_BLOCK];
    double total = 0;
    for (int32_t i = 0; i < n; i += LOGITS_BLOCK) {
        int32_t count = n - i < LOGITS_BLOCK ? n - i : LOGITS_BLOCK;
        exp_body(x + i, count, scale, shift, block);
        double sum = sum_lanes(block, count);
        if (sums)
            sums[i / LOGITS_BLOCK] = sum;
        total += sum;
    }
    return total;
}

#ifdef FOR_AVX2
FOR_AVX2 static float max_avx2(const float *x, int32_t n, int *has_nan)
{
    return max_body(x, n, has_nan);
}

FOR_AVX2 static void exp_avx2(const float *x, int32_t n, float scale, float shift, float *out)
{
    exp_body(x, n, scale, shift, out);
}

FOR_AVX2 static double exp_sums_avx2(const float *x, int32_t n, float scale, float shift,
                                     double *sums)
{
    return exp_sums_body(x, n, scale, shift, sums);
}
#define IF_AVX2(call)                                                                              \
    if (cpu_features_get()->avx2)                                                                  \
        return call;
#else
#define IF_AVX2(call)
#endif

float logits_max(const float *x, int32_t n, int *has_nan)
{
    *has_nan = 0;
    IF_AVX2(max_avx2(x, n, has_nan))
    return max_body(x, n, has_nan);
}

void logits_exp(const float *x, int32_t n, float scale, float shift, float *out)
{
    IF_AVX2(exp_avx2(x, n, scale, shift, out))
    exp_body(x, n, scale, shift, out);
}

double logits_exp_sums(const float *x, int32_t n, float scale, float shift, double *sums)
{
    IF_AVX2(exp_sums_avx2(x, n, scale, shift, sums))
    return exp_sums_body(x, n, scale, shift, sums);
}

float logits_log_sum_exp(const float *logits, int32_t n)
{
    int has_nan = 0;
    float max = logits_max(logits, n, &has_nan);
    if (has_nan || !isfinite(max))
        return has_nan ? NAN : max;
    return (float)((double)max + log(logits_exp_sums(logits, n, 1, -max, NULL)));
}

token_id logits_argmax(const float *logits, int32_t n)
{
    int has_nan = 0;
    float best = -INFINITY;
    int32_t at = 0, count = 0;
    for (int32_t i = 0; i < n; i += count) {
        count = n - i < LOGITS_BLOCK ? n - i : LOGITS_BLOCK;
        float max = logits_max(logits + i, count, &has_nan);
        if (max > best) {
            best = max;
            at = i;
        }
    }
    while (at < n && logits[at] != best)
        at++;
    return at < n ? at : 0;
}

/* ---- the k largest ----------------------------------------------------------------------------- */

/* Past this a heap's depth costs more than three counting passes. */
#define MOST_IN_HEAP 256

/* What comes later in the order: a smaller value, or the same and a larger id. */
static int is_after(token_logit a, token_logit b)
{
    return a.value != b.value ? a.value < b.value : a.id > b.id;
}

static int compare_logits(const void *a, const void *b)
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
    qsort(out, (size_t)k, sizeof *out, compare_logits);
    return k;
}
