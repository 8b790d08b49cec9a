/* sandbox/host_text.c: models by name, their facts, their tokenizer and their chat template.
 *
 * Everything here works on a model's constant parts, so it runs on the sandbox's thread at once. The
 * input is bounded, since a host function cannot be preempted. */
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "formats/json.h"
#include "sandbox/guest_memory.h"
#include "sandbox/host_groups.h"
#include "text/chat_template.h"

/* More text at once than any context holds; about a third of a second to tokenize. */
#define TEXT_MAX_BYTES ((uint64_t)4 << 20)
/* What a tokenizer needs beside its text while it works on it, for each byte. */
#define TOKENIZE_WORK_BYTES 128

static model *the_model(guest_call *c)
{
    const sandbox_model *m = guest_handle(c, 0, HANDLE_MODEL);
    return m ? engine_model(m->engine) : NULL;
}

static int32_t find_model(const tenant_grants *g, const char *name, size_t size)
{
    if (size == 0)
        return g->n_models > 0 ? 0 : -1;
    for (int32_t i = 0; i < g->n_models; i++)
        if (strlen(g->models[i].name) == size && memcmp(g->models[i].name, name, size) == 0)
            return i;
    return -1;
}

int64_t host_text_model_open(guest_call *c)
{
    sandbox_request *r = c->request;
    const tenant_grants *g = &r->tenant->grants;
    const char *name = guest_bytes(c, 0, 1);
    if (!name)
        return GUEST_TRAPPED;
    size_t size = c->arguments[1].u64;
    if (size > 0 && !(g->capabilities & CAPABILITY_MODELS))
        return guest_trap(c, REALM_DENIED,
                          "the tenant '%s' was not granted the capability 'models', only the model \"\"",
                          g->name);
    int32_t index = find_model(g, name, size);
    if (index < 0)
        return REALM_NOT_FOUND;
    if (!r->model_handles[index]) {
        int64_t handle = guest_new_handle(c, HANDLE_MODEL, &g->models[index]);
        if (handle <= 0)
            return handle;
        r->model_handles[index] = (int32_t)handle;
    }
    return r->model_handles[index];
}

/* ---- model_info ----------------------------------------------------------------------------------- */

static json_t *list_of(const int32_t *numbers, int32_t count)
{
    json_t *list = json_array();
    for (int32_t i = 0; i < count; i++)
        json_array_append_new(list, json_integer(numbers[i]));
    return list;
}

static json_t *ends_of(const tokenizer *t)
{
    json_t *list = json_array();
    size_t count = tokenizer_count(t);
    for (size_t i = 0; i < count; i++)
        if (tokenizer_ends_generation(t, (token_id)i))
            json_array_append_new(list, json_integer((json_int_t)i));
    return list;
}

static json_t *describe(const model *m)
{
    const hyperparameters *h = model_hyperparameters(m);
    const tokenizer *t = model_tokenizer(m);
    gguf_string template_text;
    int has_template =
        chat_template_find(model_gguf(m), NULL, &template_text, NULL) == REALM_OK;
    return json_pack(
        "{s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:o, s:o, s:i, s:i, s:f, s:i, s:i, s:i, s:b, s:o, s:b}",
        "name", model_name(m), "architecture", h->architecture->name, "n_vocab", h->n_vocab,
        "n_context", h->n_context, "n_embd", h->n_embd, "n_layers", h->n_layers, "n_heads",
        h->n_heads, "n_kv_heads", list_of(h->n_kv_heads, h->n_layers), "n_ff",
        list_of(h->n_ff, h->n_layers), "key_dim", h->key_dim, "value_dim", h->value_dim,
        "norm_epsilon", (double)h->norm_epsilon, "bos", tokenizer_bos(t), "eos", tokenizer_eos(t),
        "eot", tokenizer_eot(t), "adds_bos", tokenizer_adds_bos(t), "ends", ends_of(t),
        "has_chat_template", has_template);
}

int64_t host_text_model_info(guest_call *c)
{
    const model *m = the_model(c);
    if (!m)
        return GUEST_TRAPPED;
    json_t *info = describe(m);
    char *text = info ? json_dumps(info, JSON_COMPACT) : NULL;
    json_decref(info);
    if (!text)
        return REALM_NO_MEMORY;
    int64_t result = guest_give(c, 1, 2, text, strlen(text));
    free(text);
    return result;
}

/* ---- tokens --------------------------------------------------------------------------------------- */

int64_t host_text_tokenize(guest_call *c)
{
    const model *m = the_model(c);
    const char *text = m ? guest_bytes(c, 1, 2) : NULL;
    token_id *out = text ? guest_words(c, 4, 5) : NULL;
    if (!out)
        return GUEST_TRAPPED;
    uint64_t size = c->arguments[2].u64, cap = c->arguments[5].u64;
    int32_t flags = c->arguments[3].i32;
    if (flags & ~(TOKENIZE_ADD_SPECIAL | TOKENIZE_PARSE_SPECIAL))
        return guest_trap(c, REALM_INVALID, "argument 'flags': %" PRId32 " has bits that mean nothing",
                          flags);
    if (size > TEXT_MAX_BYTES)
        return REALM_TOO_LARGE;
    arena a;
    arena_init(&a, (size_t)size * TOKENIZE_WORK_BYTES + ((size_t)1 << 20));
    token_id *ids;
    size_t count;
    realm_error error;
    realm_status status = tokenizer_encode(model_tokenizer(m), &a, text, (size_t)size,
                                           (unsigned)flags, &ids, &count, &error);
    if (status == REALM_OK && count)
        memcpy(out, ids, (count < cap ? count : (size_t)cap) * sizeof *ids);
    arena_release(&a);
    return status == REALM_OK ? (int64_t)count : guest_note(c, &error);
}

int64_t host_text_decode_token(guest_call *c)
{
    const model *m = the_model(c);
    if (!m)
        return GUEST_TRAPPED;
    token_id id = c->arguments[1].i32;
    const tokenizer *t = model_tokenizer(m);
    if (id < 0 || (size_t)id >= tokenizer_count(t))
        return REALM_INVALID;
    size_t size;
    const char *piece = tokenizer_piece(t, id, 0, &size);
    return guest_give(c, 2, 3, piece, size);
}

int64_t host_text_chat_template(guest_call *c)
{
    const model *m = the_model(c);
    const char *json = m ? guest_bytes(c, 1, 2) : NULL;
    if (!json)
        return GUEST_TRAPPED;
    uint64_t size = c->arguments[2].u64;
    if (size > TEXT_MAX_BYTES)
        return REALM_TOO_LARGE;
    gguf_string template_text;
    realm_error error;
    if (chat_template_find(model_gguf(m), NULL, &template_text, &error) != REALM_OK)
        return guest_note(c, &error);
    buffer out;
    buffer_init(&out, c->request->tenant->grants.limits.output_bytes);
    realm_status status = chat_template_render(template_text, model_tokenizer(m), json,
                                               (size_t)size, &out, &error);
    int64_t result;
    if (status == REALM_OK)
        result = guest_give(c, 3, 4, out.data, out.size);
    else
        result = guest_note(c, &error);
    buffer_release(&out);
    return result;
}
