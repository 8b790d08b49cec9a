/* model/rope.c: see rope.h.
 *
 * Pair i of a head turns by p * base^(-2i/n_rot) at position p. What the kinds change:
 *   linear    all frequencies times 1/factor
 *   llama3, longrope  frequency i divided by factor i, which the file has as a tensor
 *   YaRN      (arXiv 2309.00071, section 3.2) pairs that turn more than beta_fast times within the
 *             original context stay as they are, those that turn less than beta_slow times are
 *             scaled linearly, between them both are mixed; queries and keys grow by
 *             0.1 ln(factor) + 1 (equation 22)
 * Where the paper leaves a choice, the values are llama.cpp's: bounds of the mix are rounded
 * outward to whole pairs, and the magnitude is multiplied by rope.scaling.attn_factor. */
#include "model/rope.h"

#include <math.h>
#include <string.h>

#include "model/metadata.h"

typedef struct scaling {
    double scale;                /* of frequencies that are interpolated */
    double mix;                  /* how much of YaRN's mix is used: 0 for the other kinds */
    double beta_fast, beta_slow; /* turns within the original context */
    double attn_factor;
    int32_t original_context;
    int longrope;
} scaling;

static int is_text(gguf_string s, const char *text)
{
    return s.size == strlen(text) && memcmp(s.data, text, s.size) == 0;
}

static realm_status read_kind(scaling *s, const metadata *m, realm_error *error)
{
    char key[METADATA_KEY_SIZE];
    gguf_string type = {"none", 4};
    realm_status status = gguf_get_string(m->gguf, metadata_key(m, "rope.scaling.type", key), &type,
                                          error);
    if (status != REALM_OK && status != REALM_NOT_FOUND)
        return status;
    s->mix = is_text(type, "yarn") ? 1 : 0;
    s->longrope = is_text(type, "longrope");
    if (s->mix != 0 || s->longrope || is_text(type, "none") || is_text(type, "linear"))
        return REALM_OK;
    return realm_fail(error, REALM_UNSUPPORTED,
                      "'%s' is '%.*s'; this build knows none, linear, yarn and longrope", key,
                      (int)(type.size < 64 ? type.size : 64), type.data);
}

static realm_status read_number(const metadata *m, const char *suffix, double low, double high,
                                double *out, realm_error *error)
{
    float value = (float)*out;
    int found = 0;
    realm_status status = metadata_float(m, suffix, low, high, &value, &found, error);
    *out = (double)value;
    return status;
}

static realm_status read_scaling(scaling *s, const hyperparameters *h, const gguf *g,
                                 realm_error *error)
{
    metadata m = {g, h->architecture->name};
    int found = 0;
    *s = (scaling){.scale = 1, .beta_fast = 32, .beta_slow = 1, .attn_factor = 1};
    s->original_context = h->n_context;
    realm_status status = read_kind(s, &m, error);
    if (status != REALM_OK)
        return status;
    if ((status = metadata_int(&m, "rope.scaling.original_context_length", 1, 1 << 28,
                               &s->original_context, &found, error)) != REALM_OK ||
        (status = read_number(&m, "rope.scaling.attn_factor", 1e-3, 1e3, &s->attn_factor, error)) !=
            REALM_OK ||
        s->mix == 0)
        return status;
    if ((status = read_number(&m, "rope.scaling.yarn_beta_fast", 1e-3, 1e6, &s->beta_fast,
                              error)) != REALM_OK ||
        (status = read_number(&m, "rope.scaling.yarn_beta_slow", 1e-3, 1e6, &s->beta_slow,
                              error)) != REALM_OK)
        return status;
    return read_number(&m, "rope.scaling.yarn_ext_factor", 0, 1, &s->mix, error);
}

/* Checks a tensor of n_rot/2 divisors. A zero or a NaN among them would poison every key. */
static realm_status check_factors(const gguf_tensor *t, const char *name, int32_t n_rot,
                                  realm_error *error)
{
    if (t->type != DTYPE_F32)
        return realm_fail(error, REALM_CORRUPT, "tensor '%s' is not of type F32", name);
    if (t->n_dims != 1 || t->dims[0] != (uint64_t)n_rot / 2)
        return realm_fail(error, REALM_CORRUPT,
                          "tensor '%s' has %" PRIu64 " elements, expected %" PRId32, name,
                          t->dims[0], n_rot / 2);
    for (int32_t i = 0; i < n_rot / 2; i++) {
        float value;
        memcpy(&value, t->data + (size_t)i * sizeof value, sizeof value);
        if (!isfinite(value) || value < 1e-6f || value > 1e9f)
            return realm_fail(error, REALM_CORRUPT, "tensor '%s': factor %" PRId32 " is %g", name,
                              i, (double)value);
    }
    return REALM_OK;
}

/* *out is the tensor of divisors that applies, or NULL where the file has none. */
static realm_status find_factors(const gguf_tensor **out, const scaling *s, const gguf *g,
                                 int32_t n_rot, int32_t context_tokens, realm_error *error)
{
    int is_long = context_tokens > s->original_context;
    const char *names[] = {"rope_freqs.weight",
                           is_long ? "rope_factors_long.weight" : "rope_factors_short.weight"};
    for (int i = 0; i < 2; i++) {
        *out = gguf_find_tensor(g, names[i]);
        if (*out != NULL)
            return check_factors(*out, names[i], n_rot, error);
    }
    if (s->longrope)
        return realm_fail(error, REALM_CORRUPT,
                          "rope scaling is longrope but tensor '%s' is missing", names[1]);
    return REALM_OK;
}

/* Which pairs YaRN mixes: from *low, which is not scaled, to *high, which is. */
static void mixed_pairs(const scaling *s, int32_t n_rot, double base, double *low, double *high)
{
    double turns = s->original_context / (2 * M_PI);
    double pairs = n_rot / (2 * log(base));
    *low = fmax(0, floor(pairs * log(turns / s->beta_fast)));
    *high = fmin(n_rot - 1, ceil(pairs * log(turns / s->beta_slow)));
}

/* 1 for pairs that keep their frequency, 0 for those that are interpolated. */
static double kept(double low, double high, int32_t pair)
{
    double y = (pair - low) / fmax(0.001, high - low);
    return 1 - fmin(1, fmax(0, y));
}

/* How much queries and keys grow; a factor below 1, which shrinks the context, leaves them. */
static double magnitude(const scaling *s)
{
    double factor = 1 / s->scale;
    double yarn = s->mix > 0 && factor > 1 ? 0.1 * log(factor) + 1 : 1;
    return yarn * s->attn_factor;
}

static void fill_frequencies(float *out, const scaling *s, int32_t n_rot, double base,
                             const gguf_tensor *factors)
{
    double low, high;
    mixed_pairs(s, n_rot, base, &low, &high);
    for (int32_t i = 0; i < n_rot / 2; i++) {
        float divisor = 1;
        if (factors != NULL)
            memcpy(&divisor, factors->data + (size_t)i * sizeof divisor, sizeof divisor);
        double frequency = pow(base, -2.0 * i / n_rot) / (double)divisor;
        double mix = s->mix * kept(low, high, i);
        out[i] = (float)(frequency * (s->scale * (1 - mix) + mix));
    }
}

realm_status rope_build(rope *out, arena *a, const hyperparameters *h, const gguf *g,
                        rope_layers layers, int32_t context_tokens, realm_error *error)
{
    scaling s;
    const gguf_tensor *factors = NULL;
    realm_status status = read_scaling(&s, h, g, error);
    if (status == REALM_OK)
        status = find_factors(&factors, &s, g, h->n_rot, context_tokens, error);
    if (status != REALM_OK)
        return status;
    s.scale = (double)(layers == ROPE_LOCAL ? h->rope_scale_local : h->rope_scale_linear);
    double base = (double)(layers == ROPE_LOCAL ? h->rope_base_local : h->rope_base);
    size_t count = (size_t)h->n_rot / 2;
    float *frequencies = arena_take_array(a, count, sizeof *frequencies);
    if (frequencies == NULL)
        return realm_fail_memory(error, count * sizeof *frequencies, "rope frequencies");
    fill_frequencies(frequencies, &s, h->n_rot, base, factors);
    *out = (rope){.kind = h->architecture->rope,
                  .n_rot = h->n_rot,
                  .inverse_frequency = frequencies,
                  .magnitude = (float)magnitude(&s)};
    return REALM_OK;
}
