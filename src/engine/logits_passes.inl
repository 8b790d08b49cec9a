/* engine/logits_passes.inl: the passes of logits.c for vectors of VECTOR_BYTES.
 *
 * Included once for each size; TARGET is the attribute of what is called from outside, NAME makes
 * names apart. Vectors are the compiler's own kind, and handed on by pointer because how they are
 * passed by value differs between instruction sets. Element i of a block is always added to lane
 * i % LANES, so the bits do not depend on the size. */
#define VECTOR NAME(vector)
#define MASK   NAME(mask)
#define WIDTH  (VECTOR_BYTES / 4)
#define COUNT  (LANES / WIDTH) /* vectors side by side */

typedef float VECTOR __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t MASK __attribute__((vector_size(VECTOR_BYTES)));

INLINE void NAME(fill)(VECTOR *to, float value)
{
    *to = (VECTOR){0} + value;
}

INLINE void NAME(load)(VECTOR *to, const float *from)
{
    memcpy(to, from, sizeof *to);
}

/* Where a > b (a NaN never is) a, else b. */
INLINE void NAME(larger)(VECTOR *to, const VECTOR *a, const VECTOR *b)
{
    MASK mask = *a > *b;
    *to = (VECTOR)(((MASK)*a & mask) | ((MASK)*b & ~mask));
}

/* As compute/exp_parts.h says. */
INLINE void NAME(exp_vector)(VECTOR *to, const VECTOR *x)
{
    VECTOR bounded, least;
    NAME(fill)(&least, EXP_LEAST);
    NAME(larger)(&bounded, x, &least);
    VECTOR shifted = bounded * EXP_LOG2E + EXP_ROUNDS;
    VECTOR n = shifted - EXP_ROUNDS;
    VECTOR rest = bounded - n * EXP_LN2_HIGH;
    rest = rest - n * EXP_LN2_LOW;
    VECTOR p = rest * EXP_P0 + EXP_P1;
    p = p * rest + EXP_P2;
    p = p * rest + EXP_P3;
    p = p * rest + EXP_P4;
    p = p * rest + EXP_P5;
    p = p * (rest * rest) + rest + 1.0f;
    /* The exponent's bias, and its place. */
    MASK power = ((MASK)shifted - EXP_ROUNDS_BITS + 127) * (1 << 23);
    *to = (VECTOR)((MASK)(p * (VECTOR)power) & (*x > least));
}

/* Lanes past the end hold -INFINITY, whose exp is 0. */
INLINE void NAME(load_some)(VECTOR *to, const float *from, int32_t count)
{
    NAME(fill)(to, -INFINITY);
    memcpy(to, from, (size_t)count * sizeof *from);
}

TARGET static float NAME(max)(const float *x, int32_t n, int *has_nan)
{
    VECTOR best[COUNT], now;
    MASK odd = {0};
    float max = -INFINITY;
    int32_t i = 0;
    for (int j = 0; j < COUNT; j++)
        NAME(fill)(&best[j], -INFINITY);
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < COUNT; j++) {
            NAME(load)(&now, x + i + WIDTH * j);
            NAME(larger)(&best[j], &now, &best[j]);
            odd |= now != now;
        }
    for (; i < n; i += WIDTH) {
        NAME(load_some)(&now, x + i, n - i < WIDTH ? n - i : WIDTH);
        NAME(larger)(&best[0], &now, &best[0]);
        odd |= now != now;
    }
    for (int j = 0; j < LANES; j++) {
        float lane = best[j / WIDTH][j % WIDTH];
        max = lane > max ? lane : max;
        *has_nan |= odd[j % WIDTH] != 0;
    }
    return max;
}

TARGET static void NAME(exp)(const float *x, int32_t n, float scale, float shift, float *out)
{
    VECTOR now;
    for (int32_t i = 0; i < n; i += WIDTH) {
        int32_t count = n - i < WIDTH ? n - i : WIDTH;
        NAME(load_some)(&now, x + i, count);
        now = now * scale + shift;
        NAME(exp_vector)(&now, &now);
        memcpy(out + i, &now, (size_t)count * sizeof *out);
    }
}

INLINE double NAME(sum_lanes)(const VECTOR *lanes)
{
    double sum = 0;
    for (int j = 0; j < LANES; j++)
        sum += (double)lanes[j / WIDTH][j % WIDTH];
    return sum;
}

INLINE double NAME(sum_block)(const float *x, int32_t n, float scale, float shift)
{
    VECTOR lanes[COUNT] = {{0}}, now;
    for (int32_t i = 0; i < n; i += WIDTH) {
        NAME(load_some)(&now, x + i, n - i < WIDTH ? n - i : WIDTH);
        now = now * scale + shift;
        NAME(exp_vector)(&now, &now);
        lanes[i / WIDTH % COUNT] += now;
    }
    return NAME(sum_lanes)(lanes);
}

/* The same with a length that the compiler knows: nearly every block. */
INLINE double NAME(sum_full_block)(const float *x, float scale, float shift)
{
    VECTOR lanes[COUNT] = {{0}}, now;
    for (int32_t i = 0; i < LOGITS_BLOCK; i += LANES)
        for (int j = 0; j < COUNT; j++) {
            NAME(load)(&now, x + i + WIDTH * j);
            now = now * scale + shift;
            NAME(exp_vector)(&now, &now);
            lanes[j] += now;
        }
    return NAME(sum_lanes)(lanes);
}

TARGET static double NAME(exp_sums)(const float *x, int32_t n, float scale, float shift,
                                    double *sums)
{
    double total = 0;
    for (int32_t i = 0; i < n; i += LOGITS_BLOCK) {
        double sum = n - i >= LOGITS_BLOCK ? NAME(sum_full_block)(x + i, scale, shift)
                                           : NAME(sum_block)(x + i, n - i, scale, shift);
        if (sums)
            sums[i / LOGITS_BLOCK] = sum;
        total += sum;
    }
    return total;
}

#undef COUNT
#undef WIDTH
#undef MASK
#undef VECTOR
#undef TARGET
#undef NAME
#undef VECTOR_BYTES
