/* layers.c: a tenant's program that walks the transformer itself, operation by operation, and
 * checks that it writes the very tokens that the native `generate` writes.
 *
 * What a researcher does here (skip a layer, look inside, change the order) needs no change of the
 * host. For families of llama's kind (llama, Mistral, SmolLM, qwen2 without biases): norm before
 * attention and feed-forward, gated SiLU, rope. Operations are recorded and run together when
 * something is read, so a layer costs one hand-over to the engine, not fifteen. Needs the
 * capability `tensors`. */
#include "realm_json.h"

#define MAX_LAYERS 128
#define MAX_PROMPT 512
#define N_TOKENS   16

typedef struct layer {
    int32_t attn_norm, q, k, v, o, ffn_norm, gate, up, down;
} layer;

static layer layers[MAX_LAYERS];
static int32_t model, session, n_layers, n_embd, n_vocab, n_heads, n_kv_heads, head_dim, n_ff;
static int32_t token_embd, output_norm, output;

static int32_t weight_of(int32_t owner, const char *name)
{
    size_t size = 0;
    while (name[size])
        size++;
    return realm_weight(owner, name, size);
}

static int32_t find_weights(void)
{
    for (int32_t i = 0; i < n_layers; i++) {
        int32_t l = realm_load_layer(model, i);
        if (l < 0)
            return l;
        layers[i] = (layer){weight_of(l, "attn_norm.weight"),   weight_of(l, "attn_q.weight"),
                            weight_of(l, "attn_k.weight"),      weight_of(l, "attn_v.weight"),
                            weight_of(l, "attn_output.weight"), weight_of(l, "ffn_norm.weight"),
                            weight_of(l, "ffn_gate.weight"),    weight_of(l, "ffn_up.weight"),
                            weight_of(l, "ffn_down.weight")};
        const int32_t *handles = (const int32_t *)&layers[i];
        for (size_t j = 0; j < sizeof layers[i] / sizeof *handles; j++)
            if (handles[j] < 0)
                return handles[j];
    }
    token_embd = weight_of(model, "token_embd.weight");
    output_norm = weight_of(model, "output_norm.weight");
    output = weight_of(model, "output.weight");
    if (output < 0) /* tied to the embedding */
        output = token_embd;
    return output_norm < 0 ? output_norm : output;
}

/* The walk: ids [n] at position; the most likely next token. */
static int32_t forward(const int32_t *ids, int32_t n, int32_t position, float epsilon)
{
    static int32_t positions[MAX_PROMPT];
    static float last[16384];
    for (int32_t i = 0; i < n; i++)
        positions[i] = position + i;
    int32_t x = realm_tensor_new(n, n_embd), h = realm_tensor_new(n, n_embd);
    int32_t q = realm_tensor_new(n, n_heads * head_dim),
            a = realm_tensor_new(n, n_heads * head_dim);
    int32_t k = realm_tensor_new(n, n_kv_heads * head_dim),
            v = realm_tensor_new(n, n_kv_heads * head_dim);
    int32_t gate = realm_tensor_new(n, n_ff), up = realm_tensor_new(n, n_ff);
    int32_t row = realm_tensor_new(1, n_embd), logits = realm_tensor_new(1, n_vocab);

    realm_embed_tokens(x, model, ids, (size_t)n);
    for (int32_t i = 0; i < n_layers; i++) {
        const layer *l = &layers[i];
        realm_rms_norm(h, x, l->attn_norm, epsilon);
        realm_matmul(q, l->q, h);
        realm_matmul(k, l->k, h);
        realm_matmul(v, l->v, h);
        realm_apply_rope(q, model, i, positions, (size_t)n);
        realm_apply_rope(k, model, i, positions, (size_t)n);
        int32_t status = realm_attention_forward(session, i, position, q, k, v, a);
        if (status < 0)
            return status;
        realm_matmul(h, l->o, a);
        realm_add(x, x, h);
        realm_rms_norm(h, x, l->ffn_norm, epsilon);
        realm_matmul(gate, l->gate, h);
        realm_matmul(up, l->up, h);
        realm_silu_mul(gate, gate, up);
        realm_matmul(h, l->down, gate);
        realm_add(x, x, h);
    }
    /* Only the last row goes on to the vocabulary. */
    int32_t status = realm_tensor_read(x, (n - 1) * n_embd, last, (size_t)n_embd);
    if (status < 0)
        return status;
    realm_tensor_write(row, 0, last, (size_t)n_embd);
    realm_rms_norm(row, row, output_norm, epsilon);
    realm_matmul(logits, output, row);
    float *values = realm_alloc((size_t)n_vocab * sizeof *values);
    if (!values)
        return REALM_E_NO_MEMORY;
    status = realm_tensor_read(logits, 0, values, (size_t)n_vocab);
    if (status < 0)
        return status;
    int32_t best = 0;
    for (int32_t i = 1; i < n_vocab; i++)
        if (values[i] > values[best])
            best = i;
    const int32_t all[] = {x, h, q, a, k, v, gate, up, row, logits};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        realm_tensor_free(all[i]);
    return best;
}

static int32_t info_int(realm_slice info, const char *key)
{
    realm_slice value = realm_json_get(info, key);
    if (value.size && value.data[0] == '[') { /* the same in every layer: take the first */
        size_t at = 0;
        value = realm_json_next(value, &at);
    }
    return (int32_t)realm_json_int(value, -1);
}

/* The reference: the native loop from the same prompt. */
static int32_t generate_natively(const int32_t *prompt, int32_t count, int32_t *out)
{
    static char json[65536];
    int32_t native = realm_session_open(model, REALM_TEXT("{}"));
    int32_t status = native < 0 ? native : realm_feed(native, prompt, (size_t)count);
    if (status < 0)
        return status;
    int32_t size = realm_generate(
        native, REALM_TEXT("{\"max_tokens\":16,\"ignore_eos\":true,\"return_tokens\":true}"), json,
        sizeof json);
    if (size < 0 || (size_t)size > sizeof json)
        return size < 0 ? size : REALM_E_TOO_LARGE;
    realm_slice tokens = realm_json_get((realm_slice){json, (size_t)size}, "tokens");
    size_t at = 0;
    int32_t n = 0;
    for (realm_slice token; n < N_TOKENS && (token = realm_json_next(tokens, &at)).size;)
        out[n++] = (int32_t)realm_json_int(realm_json_get(token, "id"), -1);
    realm_session_close(native);
    return n;
}

REALM_PROGRAM
{
    static int32_t prompt[MAX_PROMPT], expected[N_TOKENS];
    static char info_text[8192];
    realm_slice text = realm_json_string(realm_json_get(realm_request(), "prompt"));
    model = realm_model_open("", 0);
    if (model < 0)
        return model;
    int32_t size = realm_model_info(model, info_text, sizeof info_text);
    if (size < 0 || (size_t)size > sizeof info_text)
        return realm_fail(REALM_E_TOO_LARGE,
                          "the model's description is too long for this program");
    realm_slice info = {info_text, (size_t)size};
    if (!realm_equal(realm_json_string(realm_json_get(info, "architecture")), "llama"))
        return realm_fail(REALM_E_UNSUPPORTED, "this program walks models of llama's kind only");
    n_layers = info_int(info, "n_layers");
    n_embd = info_int(info, "n_embd");
    n_vocab = info_int(info, "n_vocab");
    n_heads = info_int(info, "n_heads");
    n_kv_heads = info_int(info, "n_kv_heads");
    n_ff = info_int(info, "n_ff");
    head_dim = info_int(info, "key_dim");
    if (n_layers > MAX_LAYERS || n_embd > 16384)
        return realm_fail(REALM_E_UNSUPPORTED, "the model is too large for this program");
    int32_t status = find_weights();
    if (status < 0)
        return realm_fail(status, "a weight is missing");

    int32_t count = realm_tokenize(model, text.data, text.size, REALM_TOKENIZE_ADD_SPECIAL, prompt,
                                   MAX_PROMPT - N_TOKENS);
    if (count <= 0 || count > MAX_PROMPT - N_TOKENS)
        return realm_fail(REALM_E_INVALID, "the prompt is empty or too long");
    status = generate_natively(prompt, count, expected);
    if (status < N_TOKENS)
        return status < 0 ? status : realm_fail(REALM_E_INTERNAL, "generate stopped early");

    session = realm_session_open(model, REALM_TEXT("{}"));
    if (session < 0)
        return session;
    const float epsilon = 1e-5f; /* llama's; model_info tells it too, as a decimal */
    int32_t token = forward(prompt, count, 0, epsilon);
    for (int32_t i = 0; i < N_TOKENS; i++) {
        if (token < 0)
            return token;
        char piece[256];
        int32_t piece_size = realm_decode_token(model, token, piece, sizeof piece);
        if (piece_size > 0)
            realm_respond_text(piece, (size_t)piece_size);
        if (token != expected[i])
            return realm_fail(REALM_E_INTERNAL, "the walk and generate write different tokens");
        if (i + 1 < N_TOKENS)
            token = forward(&expected[i], 1, count + i, epsilon);
    }
    realm_respond_text(REALM_TEXT("\nSAME TOKENS AS GENERATE"));
    return 0;
}
