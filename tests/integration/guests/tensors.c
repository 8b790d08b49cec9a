/* tensors.c: the layer-by-layer group, each operation against its definition in plain C. Needs a model of
 * llama's kind. */
#include "check.h"

#define ROWS    3
#define MAX_ROW 4096

static float x[ROWS * MAX_ROW], y[ROWS * MAX_ROW], z[ROWS * MAX_ROW];

static float root(float v)
{
    return __builtin_sqrtf(v);
}

/* exp by halving: the test must not share code with what it tests. */
static float exponential(float v)
{
    double part = (double)v / 4096, power = 1 + part + part * part / 2 + part * part * part / 6;
    for (int i = 0; i < 12; i++)
        power *= power;
    return (float)power;
}

static int32_t new_tensor(int32_t cols, const float *values)
{
    int32_t t = realm_tensor_new(ROWS, cols);
    if (t > 0)
        realm_tensor_write(t, 0, values, (size_t)(ROWS * cols));
    return t;
}

static int32_t check_elementwise(int32_t cols)
{
    for (int32_t i = 0; i < ROWS * cols; i++) {
        x[i] = (float)(i % 17 - 8) / 4;
        y[i] = (float)(i % 5 - 2);
    }
    int32_t a = new_tensor(cols, x), b = new_tensor(cols, y), out = realm_tensor_new(ROWS, cols);
    CHECK(a > 0 && b > 0 && out > 0);
    CHECK_EQUAL(realm_add(out, a, b), 0);
    CHECK_EQUAL(realm_tensor_read(out, 0, z, (size_t)(ROWS * cols)), ROWS * cols);
    for (int32_t i = 0; i < ROWS * cols; i++)
        CHECK(z[i] == x[i] + y[i]);
    CHECK_EQUAL(realm_tensor_read(out, 1, z, 2), 2); /* a piece */
    CHECK(z[0] == x[1] + y[1] && z[1] == x[2] + y[2]);

    CHECK_EQUAL(realm_silu_mul(out, a, b), 0);
    CHECK_EQUAL(realm_tensor_read(out, 0, z, (size_t)(ROWS * cols)), ROWS * cols);
    for (int32_t i = 0; i < ROWS * cols; i++)
        CHECK(check_distance(z[i], x[i] / (1 + exponential(-x[i])) * y[i]) < 1e-4f);
    CHECK_EQUAL(realm_gelu_mul(out, a, b), 0);
    CHECK_EQUAL(realm_tensor_read(out, 0, z, (size_t)(ROWS * cols)), ROWS * cols);
    for (int32_t i = 0; i < ROWS * cols; i++) {
        float inner = 0.7978845608f * (x[i] + 0.044715f * x[i] * x[i] * x[i]);
        float tanh = 1 - 2 / (exponential(2 * inner) + 1);
        CHECK(check_distance(z[i], x[i] * (1 + tanh) / 2 * y[i]) < 1e-4f);
    }

    CHECK_EQUAL(realm_rms_norm(out, a, 0, 0.5f), 0);
    CHECK_EQUAL(realm_tensor_read(out, 0, z, (size_t)(ROWS * cols)), ROWS * cols);
    for (int32_t row = 0; row < ROWS; row++) {
        float squares = 0;
        for (int32_t i = 0; i < cols; i++)
            squares += x[row * cols + i] * x[row * cols + i];
        float scale = 1 / root(squares / (float)cols + 0.5f);
        for (int32_t i = row * cols; i < (row + 1) * cols; i++)
            CHECK(check_distance(z[i], x[i] * scale) < 1e-4f);
    }
    CHECK_EQUAL(realm_layer_norm(out, a, 0, 0, 0.5f), 0);
    CHECK_EQUAL(realm_tensor_read(out, 0, z, (size_t)(ROWS * cols)), ROWS * cols);
    for (int32_t row = 0; row < ROWS; row++) {
        float mean = 0, variance = 0;
        for (int32_t i = 0; i < cols; i++)
            mean += x[row * cols + i] / (float)cols;
        for (int32_t i = 0; i < cols; i++)
            variance += (x[row * cols + i] - mean) * (x[row * cols + i] - mean) / (float)cols;
        for (int32_t i = row * cols; i < (row + 1) * cols; i++)
            CHECK(check_distance(z[i], (x[i] - mean) / root(variance + 0.5f)) < 1e-4f);
    }
    CHECK_EQUAL(realm_tensor_free(a), 0);
    CHECK_EQUAL(realm_tensor_free(b), 0);
    CHECK_EQUAL(realm_tensor_free(out), 0);
    return PASS;
}

static int32_t check(void)
{
    static int32_t ids[64];
    int32_t model = realm_model_open("", 0), positions[ROWS] = {0, 1, 2};
    int32_t n_embd = check_info_int(model, "n_embd"), n_heads = check_info_int(model, "n_heads");
    int32_t n_kv = check_info_int(model, "n_kv_heads"), dim = check_info_int(model, "key_dim");
    int32_t n_layers = check_info_int(model, "n_layers");
    CHECK(n_embd > 0 && n_embd <= MAX_ROW && n_heads * dim <= MAX_ROW);
    CHECK(check_prompt(model, ids) >= ROWS);
    int32_t status = check_elementwise(32);
    if (status)
        return status;

    int32_t layer = realm_load_layer(model, 0);
    CHECK(layer > 0);
    CHECK_EQUAL(realm_load_layer(model, 0), layer);
    CHECK_EQUAL(realm_load_layer(model, n_layers), REALM_E_NOT_FOUND);
    CHECK_EQUAL(realm_load_layer(model, -1), REALM_E_NOT_FOUND);
    int32_t norm = realm_weight(layer, REALM_TEXT("attn_norm.weight"));
    int32_t wq = realm_weight(layer, REALM_TEXT("attn_q.weight"));
    int32_t wk = realm_weight(layer, REALM_TEXT("attn_k.weight"));
    int32_t wv = realm_weight(layer, REALM_TEXT("attn_v.weight"));
    CHECK(norm > 0 && wq > 0 && wk > 0 && wv > 0);
    CHECK_EQUAL(realm_weight(layer, REALM_TEXT("attn_q.weight")), wq);
    CHECK_EQUAL(realm_weight(layer, REALM_TEXT("no.weight")), REALM_E_NOT_FOUND);
    CHECK(realm_weight(model, REALM_TEXT("token_embd.weight")) > 0);

    int32_t e = realm_tensor_new(ROWS, n_embd), h = realm_tensor_new(ROWS, n_embd);
    int32_t q = realm_tensor_new(ROWS, n_heads * dim), a = realm_tensor_new(ROWS, n_heads * dim);
    int32_t k = realm_tensor_new(ROWS, n_kv * dim), v = realm_tensor_new(ROWS, n_kv * dim);
    CHECK_EQUAL(realm_tensor_read(e, 0, x, (size_t)n_embd), n_embd);
    for (int32_t i = 0; i < n_embd; i++)
        CHECK(x[i] == 0); /* new ones are zero */
    CHECK_EQUAL(realm_embed_tokens(e, model, ids, ROWS), 0);
    CHECK_EQUAL(realm_rms_norm(h, e, norm, 1e-5f), 0);
    CHECK_EQUAL(realm_matmul(q, wq, h), 0);
    CHECK_EQUAL(realm_matmul(k, wk, h), 0);
    CHECK_EQUAL(realm_matmul(v, wv, h), 0);
    CHECK_EQUAL(realm_tensor_read(k, 0, x, (size_t)(ROWS * n_kv * dim)), ROWS * n_kv * dim);
    CHECK_EQUAL(realm_apply_rope(q, model, 0, positions, ROWS), 0);
    CHECK_EQUAL(realm_apply_rope(k, model, 0, positions, ROWS), 0);
    CHECK_EQUAL(realm_tensor_read(k, 0, y, (size_t)(ROWS * n_kv * dim)), ROWS * n_kv * dim);
    /* Turning keeps lengths, and leaves position 0 as it was. */
    for (int32_t row = 0; row < ROWS; row++) {
        float before = 0, after = 0;
        for (int32_t i = row * n_kv * dim; i < (row + 1) * n_kv * dim; i++) {
            before += x[i] * x[i];
            after += y[i] * y[i];
            CHECK(row > 0 || check_distance(x[i], y[i]) < 1e-5f);
        }
        CHECK(check_distance(before, after) < 1e-3f * before);
    }

    int32_t session = realm_session_open(model, "", 0);
    CHECK_EQUAL(realm_attention_forward(session, 0, 0, q, k, v, a), 0);
    /* The first row sees itself alone: its values, once a query head. */
    CHECK_EQUAL(realm_tensor_read(a, 0, z, (size_t)(n_heads * dim)), n_heads * dim);
    CHECK_EQUAL(realm_tensor_read(v, 0, x, (size_t)(n_kv * dim)), n_kv * dim);
    for (int32_t i = 0; i < n_heads * dim; i++)
        CHECK(check_distance(z[i], x[i / dim / (n_heads / n_kv) * dim + i % dim]) < 1e-2f);
    /* The tokens are in once the last layer has been walked. Then keys and values are where they were put
     * (F16 pages). */
    CHECK_EQUAL(realm_kv_cache_get(session, 0, 0, 0, 1, x, 2), REALM_E_INVALID);
    for (int32_t i = 1; i < n_layers; i++)
        CHECK_EQUAL(realm_attention_forward(session, i, 0, q, k, v, a), 0);
    CHECK_EQUAL(realm_kv_cache_get(session, 0, 0, 0, ROWS, x, ROWS * MAX_ROW), ROWS * n_kv * dim);
    for (int32_t i = 0; i < ROWS * n_kv * dim; i++)
        CHECK(check_distance(x[i], y[i]) <= 1e-3f * (y[i] < 0 ? -y[i] : y[i]) + 1e-3f);
    CHECK_EQUAL(realm_session_length(session), ROWS);
    CHECK_EQUAL(realm_kv_cache_get(session, 0, 1, 0, 1, x, 2), n_kv * dim);
    CHECK_EQUAL(realm_kv_cache_get(session, 0, 0, 0, 1000, x, 2), REALM_E_INVALID);

    CHECK_EQUAL(realm_tensor_new(1 << 20, 1 << 20), REALM_E_QUOTA);
    return PASS;
}
