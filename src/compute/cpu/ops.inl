/* compute/cpu/ops.inl: the operations on rows and elements, for one instruction set.
 *
 * Included by isa_<name>.c. What a lane computes is the same wherever its element stands in a
 * vector, and the last, partial vector goes through the same instructions, so an element's result
 * does not depend on its neighbours. Sums over a row are 16 * ROW_SUMS sums, element i always in
 * sum i % (16 * ROW_SUMS). */

static void ops_scale(float *x, int64_t n, float factor)
{
    vf f = vf_set(factor);
    int64_t i = 0;
    for (; i + VF_LANES <= n; i += VF_LANES)
        vf_store(x + i, vf_load(x + i) * f);
    if (i < n)
        vf_store_part(x + i, vf_load_part(x + i, n - i) * f, n - i);
}

/* Four times sixteen sums keep the rounding error of long rows small. */
#define ROW_SUMS    4
#define ROW_VECTORS (ROW_SUMS * VF_PARTS)

/* sum (x - shift), or of its square */
static float ops_row_sum(const float *x, int32_t n, float shift, int squared)
{
    vf sums[ROW_VECTORS] = {{0}}, total[VF_PARTS], s = vf_set(shift);
    int32_t i = 0;
    for (; i + ROW_VECTORS * VF_LANES <= n; i += ROW_VECTORS * VF_LANES) {
        for (int j = 0; j < ROW_VECTORS; j++) {
            vf v = vf_load(x + i + j * VF_LANES) - s;
            sums[j] = squared ? vf_fma(v, v, sums[j]) : sums[j] + v;
        }
    }
    for (int j = 0; i < n; i += VF_LANES, j++) {
        int32_t left = n - i < VF_LANES ? n - i : VF_LANES;
        vf v = vf_load_part(x + i, left) - s;
        /* The lanes beyond the row hold zeros, not shifts. */
        for (int lane = left; lane < VF_LANES; lane++)
            v[lane] = 0;
        sums[j] = squared ? vf_fma(v, v, sums[j]) : sums[j] + v;
    }
    for (int p = 0; p < VF_PARTS; p++)
        total[p] = (sums[p] + sums[2 * VF_PARTS + p]) +
                   (sums[VF_PARTS + p] + sums[3 * VF_PARTS + p]);
    return vf_sum16(total);
}

static void ops_norm(float *out, const float *x, int32_t n, norm_kind kind, const float *gain,
                     const float *bias, float epsilon)
{
    float mean = kind == NORM_LAYER ? ops_row_sum(x, n, 0, 0) / (float)n : 0;
    float squares = ops_row_sum(x, n, mean, 1);
    float inverse = 1.0f / __builtin_sqrtf(squares / (float)n + epsilon);
    vf m = vf_set(mean), f = vf_set(inverse);
    int32_t i = 0;
    for (; i + VF_LANES <= n; i += VF_LANES) {
        vf v = (vf_load(x + i) - m) * f;
        if (gain)
            v = v * vf_load(gain + i);
        if (bias)
            v = v + vf_load(bias + i);
        vf_store(out + i, v);
    }
    for (; i < n; i++) {
        float v = (x[i] - mean) * inverse;
        if (gain)
            v = v * gain[i];
        if (bias)
            v = v + bias[i];
        out[i] = v;
    }
}

/* x / (1 + e^-x) */
VF_INLINE vf ops_silu(vf x)
{
    return x / (vf_set(1.0f) + vf_exp(-x));
}

/* 0.5 x (1 + tanh u) = x / (1 + e^-2u): no tanh, and no cancellation for negative x. */
VF_INLINE vf ops_gelu_tanh(vf x)
{
    vf cube = x * x * x;
    vf u = vf_set(0.79788456080286536f) * vf_fma(vf_set(0.044715f), cube, x);
    return x / (vf_set(1.0f) + vf_exp(vf_set(-2.0f) * u));
}

/* The exact GELU is rare (no architecture of ours has it gated): the C library's erfc a lane. */
VF_INLINE vf ops_gelu(vf x)
{
    for (int i = 0; i < VF_LANES; i++)
        x[i] = (float)(0.5 * (double)x[i] * erfc(-(double)x[i] * M_SQRT1_2));
    return x;
}

VF_INLINE vf ops_activate(vf x, activation_kind kind)
{
    /* x / (1 + inf) is -0, but -inf / inf would be NaN where the function's limit is 0. */
    vf y = kind == ACTIVATION_SILU        ? ops_silu(x)
           : kind == ACTIVATION_GELU_TANH ? ops_gelu_tanh(x)
                                          : ops_gelu(x);
    return vf_select(x == vf_set(-__builtin_inff()), vf_set(-0.0f), y);
}

VF_INLINE void ops_gated_kind(float *out, const float *gate, const float *up, int64_t n,
                              activation_kind kind)
{
    int64_t i = 0;
    for (; i + VF_LANES <= n; i += VF_LANES)
        vf_store(out + i, ops_activate(vf_load(gate + i), kind) * vf_load(up + i));
    if (i < n)
        vf_store_part(
            out + i,
            ops_activate(vf_load_part(gate + i, n - i), kind) * vf_load_part(up + i, n - i), n - i);
}

static void ops_gated(float *out, const float *gate, const float *up, int64_t n,
                      activation_kind kind)
{
    switch (kind) {
    case ACTIVATION_SILU: ops_gated_kind(out, gate, up, n, ACTIVATION_SILU); break;
    case ACTIVATION_GELU_TANH: ops_gated_kind(out, gate, up, n, ACTIVATION_GELU_TANH); break;
    case ACTIVATION_GELU: ops_gated_kind(out, gate, up, n, ACTIVATION_GELU); break;
    }
}

static void ops_add(float *out, const float *x, const float *y, int64_t n, float factor)
{
    vf f = vf_set(factor);
    int64_t i = 0;
    for (; i + VF_LANES <= n; i += VF_LANES)
        vf_store(out + i, vf_fma(f, vf_load(y + i), vf_load(x + i)));
    if (i < n)
        vf_store_part(out + i, vf_fma(f, vf_load_part(y + i, n - i), vf_load_part(x + i, n - i)),
                      n - i);
}

static void ops_soft_cap(float *x, int64_t n, float cap)
{
    vf c = vf_set(cap);
    int64_t i = 0;
    for (; i + VF_LANES <= n; i += VF_LANES)
        vf_store(x + i, c * vf_tanh(vf_load(x + i) / c));
    if (i < n)
        vf_store_part(x + i, c * vf_tanh(vf_load_part(x + i, n - i) / c), n - i);
}

/* A largest value does not depend on the order, and vf_max's way with NaN does not matter here: who finds
 * one says so. */
static void ops_copy_peaks(float *to, float *peaks, const float *from, int32_t n)
{
    const vf least = vf_set(-__builtin_inff());
    int32_t i = 0;
    for (; i + PEAK_COLS <= n; i += PEAK_COLS) {
        vf most[4] = {least, least, least, least};
        vi odd = {0};
        for (int32_t j = i; j < i + PEAK_COLS; j += 4 * VF_LANES) {
            for (int k = 0; k < 4; k++) {
                vf x = vf_load(from + j + k * VF_LANES);
                vf_store(to + j + k * VF_LANES, x);
                most[k] = vf_max(most[k], x);
                odd |= x != x;
            }
        }
        vf largest = vf_max(vf_max(most[0], most[1]), vf_max(most[2], most[3]));
        int is_odd = vf_largest(vf_select(odd, vf_set(1), vf_set(0))) > 0;
        peaks[i / PEAK_COLS] = is_odd ? __builtin_nanf("") : vf_largest(largest);
    }
    if (i < n)
        peaks[i / PEAK_COLS] = -__builtin_inff();
    for (; i < n; i++) {
        float *peak = &peaks[i / PEAK_COLS];
        to[i] = from[i];
        *peak = from[i] > *peak || from[i] != from[i] ? from[i] : *peak;
    }
}

static void ops_rotate_neox(float *x, int32_t n_pairs, const float *cosines, const float *sines)
{
    int32_t i = 0;
    for (; i + VF_LANES <= n_pairs; i += VF_LANES) {
        vf a = vf_load(x + i), b = vf_load(x + n_pairs + i);
        vf c = vf_load(cosines + i), s = vf_load(sines + i);
        vf_store(x + i, a * c - b * s);
        vf_store(x + n_pairs + i, a * s + b * c);
    }
    for (; i < n_pairs; i++) {
        float a = x[i], b = x[n_pairs + i];
        x[i] = a * cosines[i] - b * sines[i];
        x[n_pairs + i] = a * sines[i] + b * cosines[i];
    }
}

static void ops_rotate(float *x, int32_t n_heads, int32_t head_dim, const rope *r,
                       const float *cosines, const float *sines)
{
    int32_t n_pairs = r->n_rot / 2;
    for (int32_t h = 0; h < n_heads; h++, x += head_dim) {
        if (r->kind == ROPE_NEOX) {
            ops_rotate_neox(x, n_pairs, cosines, sines);
            continue;
        }
        for (int32_t i = 0; i < n_pairs; i++) {
            float a = x[2 * i], b = x[2 * i + 1];
            x[2 * i] = a * cosines[i] - b * sines[i];
            x[2 * i + 1] = a * sines[i] + b * cosines[i];
        }
    }
}

/* Saturated as kv_pages.h says; a NaN stays. */
VF_INLINE vf ops_half_range(vf x)
{
    return vf_max(vf_set(-65504.0f), vf_min(vf_set(65504.0f), x));
}

/* 32 values as int8 with one scale, largest / 127, to nearest; returns the scale as a half. */
static uint16_t ops_quantize_block(int8_t *to, const float *x)
{
    vf values[32 / VF_LANES], largest = vf_set(0);
    const vf limit = vf_set(65504.0f * 127.0f);
    for (int i = 0; i < 32 / VF_LANES; i++) {
        vf v = vf_load(x + i * VF_LANES);
        v = vf_select(v == v, v, vf_set(0)); /* a NaN has no integer */
        values[i] = vf_max(-limit, vf_min(limit, v));
        largest = vf_max(largest, vf_max(values[i], -values[i]));
    }
    float d = vf_largest(largest) / 127.0f;
    /* Where 1/d would overflow the block is zero as halves go. */
    vf inverse = vf_set(d > 1e-30f ? 1.0f / d : 0.0f);
    for (int i = 0; i < 32 / VF_LANES; i++) {
        vi whole = vf_int(vf_round(values[i] * inverse));
        for (int j = 0; j < VF_LANES; j++)
            to[i * VF_LANES + j] = (int8_t)whole[j];
    }
    return quants_float_f16(d);
}

static void ops_kv_put_q8_0(const kv_layer *l, uint8_t *head, int32_t slot, const float *key,
                            const float *value)
{
    uint16_t *key_scales = (uint16_t *)(void *)head;
    int8_t *keys = (int8_t *)(head + l->key_values) + slot, block[32];
    for (int32_t i = 0; i < l->key_dim / 32; i++) {
        key_scales[i * KV_PAGE_TOKENS + slot] = ops_quantize_block(block, key + i * 32);
        for (int32_t j = 0; j < 32; j++)
            keys[(i * 32 + j) * KV_PAGE_TOKENS] = block[j];
    }
    int32_t n = l->value_dim / 32;
    uint16_t *value_scales = (uint16_t *)(void *)(head + l->values) + slot * n;
    int8_t *values = (int8_t *)(head + l->value_values) + (size_t)slot * (size_t)l->value_dim;
    for (int32_t i = 0; i < n; i++)
        value_scales[i] = ops_quantize_block(values + i * 32, value + i * 32);
}

static void ops_kv_put(const kv_store *kv, const kv_layer *l, uint8_t *head, int32_t slot,
                       const float *key, const float *value)
{
    if (kv->type != DTYPE_F16) {
        ops_kv_put_q8_0(l, head, slot, key, value);
        return;
    }
    uint16_t *k = (uint16_t *)(void *)head + slot, halves[VF_LANES];
    uint16_t *v = (uint16_t *)(void *)(head + l->values) + (size_t)slot * (size_t)l->value_stride;
    int32_t d = 0;
    for (; d < l->key_dim; d += VF_LANES) {
        int32_t left = l->key_dim - d < VF_LANES ? l->key_dim - d : VF_LANES;
        vf_store_f16(halves, ops_half_range(left == VF_LANES ? vf_load(key + d)
                                                             : vf_load_part(key + d, left)));
        for (int32_t i = 0; i < left; i++)
            k[(size_t)(d + i) * KV_PAGE_TOKENS] = halves[i];
    }
    for (d = 0; d + VF_LANES <= l->value_dim; d += VF_LANES)
        vf_store_f16(v + d, ops_half_range(vf_load(value + d)));
    /* value_stride is a multiple of every VF_LANES: the padding becomes zero. */
    for (; d < l->value_stride; d += VF_LANES)
        vf_store_f16(v + d, ops_half_range(
                                vf_load_part(value + d, d < l->value_dim ? l->value_dim - d : 0)));
}
