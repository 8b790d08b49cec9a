/* sandbox/host_text.c: models by name, their facts, their tokenizer and their chat template.
 *
 * Everything here works on a model's constant parts, so no engine is asked: short texts are worked on at
 * once, on the sandbox's thread, long ones by the helper. */
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
        return guest_trap(
            c, REALM_DENIED,
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
    int has_template = chat_template_find(model_gguf(m), NULL, &template_text, NULL) == REALM_OK;
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
    char *text = json_text(info, 0);
    json_decref(info);
    if (!text)
        return REALM_NO_MEMORY;
    int64_t result = guest_give(c, 1, 2, text, strlen(text));
    free(text);
    return result;
}

/* ---- tokens --------------------------------------------------------------------------------------- */

/* Does the request's job: short ones at once, long ones on the helper's thread. */
static int64_t do_job(guest_call *c, void (*work_on)(helper_job *job),
                      int64_t (*finish)(guest_call *c))
{
    sandbox_request *r = c->request;
    if (r->job.text.size <= HELPER_MIN_BYTES) {
        work_on(&r->job);
        return finish(c);
    }
    helper_submit(r, work_on);
    return guest_suspend(c, WAIT_JOB, NULL, finish);
}

static void tokenize(helper_job *job)
{
    arena a;
    arena_init(&a, job->text.size * TOKENIZE_WORK_BYTES + ((size_t)1 << 20));
    token_id *ids;
    size_t count;
    job->status = tokenizer_encode(model_tokenizer(job->model), &a, buffer_text(&job->text),
                                   job->text.size, (unsigned)job->number, &ids, &count,
                                   &job->error);
    if (job->status == REALM_OK && buffer_add(&job->out, ids, count * sizeof *ids) != REALM_OK)
        job->status = realm_fail_memory(&job->error, count * sizeof *ids, "tokens");
    arena_release(&a);
}

static int64_t finish_tokenize(guest_call *c)
{
    helper_job *job = &c->request->job;
    token_id *out = guest_words(c, 4, 5);
    if (!out)
        return GUEST_TRAPPED;
    if (job->status != REALM_OK)
        return guest_note(c, &job->error);
    size_t count = job->out.size / sizeof *out;
    uint64_t cap = c->arguments[5].u64;
    memcpy(out, buffer_text(&job->out), (count < cap ? count : (size_t)cap) * sizeof *out);
    helper_clear(c->request);
    return (int64_t)count;
}

int64_t host_text_tokenize(guest_call *c)
{
    const model *m = the_model(c);
    const char *text = m ? guest_bytes(c, 1, 2) : NULL;
    if (!text || !guest_words(c, 4, 5))
        return GUEST_TRAPPED;
    uint64_t size = c->arguments[2].u64;
    int32_t flags = c->arguments[3].i32;
    if (flags & ~(TOKENIZE_ADD_SPECIAL | TOKENIZE_PARSE_SPECIAL))
        return guest_trap(c, REALM_INVALID,
                          "argument 'flags': %" PRId32 " has bits that mean nothing", flags);
    if (size > TEXT_MAX_BYTES)
        return REALM_TOO_LARGE;
    size_t cap = (size_t)size * TOKENIZE_WORK_BYTES + 4096;
    if (helper_prepare(c->request, m, text, (size_t)size, flags, cap) != REALM_OK)
        return REALM_NO_MEMORY;
    return do_job(c, tokenize, finish_tokenize);
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

static void render(helper_job *job)
{
    gguf_string template_text;
    const model *m = job->model;
    job->status = chat_template_find(model_gguf(m), NULL, &template_text, &job->error);
    if (job->status == REALM_OK)
        job->status = chat_template_render(template_text, model_tokenizer(m),
                                           buffer_text(&job->text), job->text.size, &job->out,
                                           &job->error);
}

static int64_t finish_render(guest_call *c)
{
    helper_job *job = &c->request->job;
    if (job->status != REALM_OK)
        return guest_note(c, &job->error);
    int64_t result = guest_give(c, 3, 4, job->out.data, job->out.size);
    helper_clear(c->request);
    return result;
}

int64_t host_text_chat_template(guest_call *c)
{
    const model *m = the_model(c);
    const char *json = m ? guest_bytes(c, 1, 2) : NULL;
    if (!json || !guest_bytes(c, 3, 4))
        return GUEST_TRAPPED;
    uint64_t size = c->arguments[2].u64;
    if (size > TEXT_MAX_BYTES)
        return REALM_TOO_LARGE;
    uint64_t cap = c->request->tenant->grants.limits.output_bytes;
    if (helper_prepare(c->request, m, json, (size_t)size, 0, (size_t)cap) != REALM_OK)
        return REALM_NO_MEMORY;
    return do_job(c, render, finish_render);
}
