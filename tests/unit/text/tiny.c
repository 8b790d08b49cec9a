/* tests/unit/text/tiny.c: see tiny.h. */
#include "unit/text/tiny.h"

/* A GGUF file of metadata alone, version 3. */
typedef struct metadata {
    buffer pairs;
    uint64_t count;
} metadata;

static void put(buffer *b, const void *bytes, size_t size)
{
    if (buffer_add(b, bytes, size) != REALM_OK)
        abort();
}

static void put_u32(buffer *b, uint32_t value)
{
    put(b, &value, sizeof value);
}

static void put_u64(buffer *b, uint64_t value)
{
    put(b, &value, sizeof value);
}

static void put_text(buffer *b, const char *text)
{
    put_u64(b, strlen(text));
    put(b, text, strlen(text));
}

static void begin(metadata *m, const char *key, gguf_type type)
{
    put_text(&m->pairs, key);
    put_u32(&m->pairs, type);
    m->count++;
}

static void begin_array(metadata *m, const char *key, gguf_type element, size_t count)
{
    begin(m, key, GGUF_ARRAY);
    put_u32(&m->pairs, element);
    put_u64(&m->pairs, count);
}

static void put_string(metadata *m, const char *key, const char *value)
{
    if (!value)
        return;
    begin(m, key, GGUF_STRING);
    put_text(&m->pairs, value);
}

static void put_tokens(metadata *m, const tiny *v)
{
    begin_array(m, "tokenizer.ggml.tokens", GGUF_STRING, v->count);
    for (size_t i = 0; i < v->count; i++)
        put_text(&m->pairs, v->tokens[i].text);
    begin_array(m, "tokenizer.ggml.scores", GGUF_F32, v->count);
    for (size_t i = 0; i < v->count; i++)
        put(&m->pairs, &v->tokens[i].score, 4);
    begin_array(m, "tokenizer.ggml.token_type", GGUF_I32, v->count);
    for (size_t i = 0; i < v->count; i++)
        put_u32(&m->pairs, (uint32_t)v->tokens[i].kind);
}

static void put_merges(metadata *m, const tiny *v)
{
    begin_array(m, "tokenizer.ggml.merges", GGUF_STRING, v->merge_count);
    for (size_t i = 0; i < v->merge_count; i++)
        put_text(&m->pairs, v->merges[i]);
}

static void put_extras(metadata *m, const tiny *v)
{
    for (size_t i = 0; i < TINY_MAX_EXTRAS && v->extras[i].key; i++) {
        char key[128];
        uint8_t flag = (uint8_t)v->extras[i].value;
        snprintf(key, sizeof key, "tokenizer.ggml.%s", v->extras[i].key);
        begin(m, key, v->extras[i].is_flag ? GGUF_BOOL : GGUF_U32);
        if (v->extras[i].is_flag)
            put(&m->pairs, &flag, 1);
        else
            put_u32(&m->pairs, v->extras[i].value);
    }
}

static void write_file(const tiny *v, buffer *file)
{
    metadata m = {.count = 0};
    buffer_init(&m.pairs, 1 << 24);
    put_string(&m, "general.name", v->name);
    put_string(&m, "tokenizer.ggml.model", v->model);
    put_string(&m, "tokenizer.ggml.pre", v->pre);
    if (v->tokens)
        put_tokens(&m, v);
    if (v->merges)
        put_merges(&m, v);
    put_extras(&m, v);
    buffer_init(file, 1 << 24);
    put(file, "GGUF", 4);
    put_u32(file, 3);
    put_u64(file, 0); /* tensors */
    put_u64(file, m.count);
    if (m.pairs.size)
        put(file, m.pairs.data, m.pairs.size);
    buffer_release(&m.pairs);
}

realm_status tiny_open(tokenizer **out, const tiny *v, realm_error *error)
{
    buffer file;
    write_file(v, &file);
    gguf *g = NULL;
    realm_status status = gguf_open_memory(&g, file.data, file.size, error);
    if (status == REALM_OK)
        status = tokenizer_open(out, g, error);
    if (g)
        gguf_close(g);
    buffer_release(&file);
    return status;
}

tokenizer *tiny_must_open(const tiny *v)
{
    tokenizer *t = NULL;
    realm_error error;
    assert_status(tiny_open(&t, v, &error), REALM_OK, error);
    return t;
}

const char *tiny_encode(const tokenizer *t, const char *text, size_t size, unsigned flags)
{
    static char line[4096];
    arena a;
    realm_error error;
    token_id *ids;
    size_t count, used = 0;
    arena_init(&a, 0);
    assert_status(tokenizer_encode(t, &a, text, size, flags, &ids, &count, &error), REALM_OK,
                  error);
    line[0] = '\0';
    for (size_t i = 0; i < count; i++) {
        size_t length;
        const char *token = tokenizer_text(t, ids[i], &length);
        used += (size_t)snprintf(line + used, sizeof line - used, "%s%.*s", i ? " " : "",
                                 (int)length, token);
        assert_true(used < sizeof line);
    }
    arena_release(&a);
    return line;
}
