/* sandbox/host_functions.c: the rows, and what turns a row into an import.
 *
 * Every call of a guest comes through plain_call or async_call, which check the capability and
 * bring the arguments into one shape for both kinds of memory, so that a host function is written
 * once. Plain calls use Wasmtime's unchecked definition (no boxing of values); that is sound
 * because program.c has compared the types of all imports with these rows. */
#include "sandbox/host_functions.h"

#include <stdio.h>
#include <string.h>

#include "sandbox/guest_memory.h"
#include "sandbox/host_groups.h"
#include "sandbox/runtime.h"

#define FREE     0
#define PLAIN    0
#define SUSPENDS 1
#define BOTH     0
#define ONLY64   1

// clang-format off
const host_function host_functions[] = {
    /* request */
    {"request_read",   "offset:n out:p cap:n",                    'i', FREE, PLAIN, BOTH, host_request_read},
    {"respond_text",   "text:p size:n",                           'i', FREE, PLAIN, BOTH, host_request_respond_text},
    {"respond_json",   "json:p size:n",                           'i', FREE, PLAIN, BOTH, host_request_respond_json},
    {"respond_error",  "status:i text:p size:n",                  'i', FREE, PLAIN, BOTH, host_request_respond_error},
    {"log",            "level:i text:p size:n",                   'i', FREE, PLAIN, BOTH, host_request_log},
    {"now_ms",         "",                                        'I', FREE, PLAIN, BOTH, host_request_now_ms},
    {"random",         "",                                        'I', FREE, PLAIN, BOTH, host_request_random},
    /* text */
    {"model_open",     "name:p size:n",                           'i', FREE, PLAIN, BOTH, host_text_model_open},
    {"model_info",     "model:i out:p cap:n",                     'i', FREE, PLAIN, BOTH, host_text_model_info},
    {"tokenize",       "model:i text:p size:n flags:i out:p cap:n", 'i', FREE, SUSPENDS, BOTH, host_text_tokenize},
    {"decode_token",   "model:i token:i out:p cap:n",             'i', FREE, PLAIN, BOTH, host_text_decode_token},
    {"chat_template",  "model:i json:p size:n out:p cap:n",       'i', FREE, SUSPENDS, BOTH, host_text_chat_template},
    /* session */
    {"session_open",   "model:i options:p size:n",                'i', FREE, PLAIN, BOTH, host_session_open},
    {"session_fork",   "session:i",                               'i', FREE, SUSPENDS, BOTH, host_session_fork},
    {"session_truncate", "session:i length:i",                    'i', FREE, SUSPENDS, BOTH, host_session_truncate},
    {"session_length", "session:i",                               'i', FREE, PLAIN, BOTH, host_session_length},
    {"session_close",  "session:i",                               'i', FREE, SUSPENDS, BOTH, host_session_close},
    {"feed",           "session:i ids:p count:n",                 'i', FREE, SUSPENDS, BOTH, host_session_feed},
    {"step",           "session:i token:i",                       'i', FREE, SUSPENDS, BOTH, host_session_step},
    {"step_begin",     "session:i token:i",                       'i', FREE, PLAIN, BOTH, host_session_step_begin},
    {"step_result",    "session:i",                               'i', FREE, PLAIN, BOTH, host_session_step_result},
    {"wait_any",       "sessions:p count:n timeout_ms:i",         'i', FREE, SUSPENDS, BOTH, host_session_wait_any},
    {"logits",         "session:i out:p cap:n",                   'i', CAPABILITY_LOGITS, PLAIN, BOTH, host_session_logits},
    {"top_logits",     "session:i k:i ids:p values:p",            'i', CAPABILITY_LOGITS, PLAIN, BOTH, host_session_top_logits},
    {"bias",           "session:i ids:p values:p count:n",        'i', FREE, PLAIN, BOTH, host_session_bias},
    {"sample",         "session:i options:p size:n",              'i', FREE, PLAIN, BOTH, host_session_sample},
    {"constrain",      "session:i kind:i text:p size:n",          'i', FREE, SUSPENDS, BOTH, host_session_constrain},
    {"adapter_use",    "session:i name:p size:n",                 'i', CAPABILITY_ADAPTERS, PLAIN, BOTH, host_session_adapter_use},
    {"embed",          "model:i ids:p count:n options:p size:n out:p cap:n", 'i', FREE, SUSPENDS, BOTH, host_session_embed},
    /* fused */
    {"generate",       "session:i options:p size:n out:p cap:n",  'i', FREE, SUSPENDS, BOTH, host_generate},
    /* layer by layer */
    {"load_layer",     "model:i layer:i",                         'i', CAPABILITY_TENSORS, PLAIN, BOTH, host_tensor_load_layer},
    {"memory64_load_layer", "model:i layer:i address:p room:n out:p cap:n", 'i', CAPABILITY_TENSORS, PLAIN, ONLY64, host_map_load_layer},
    {"weight",         "owner:i name:p size:n",                   'i', CAPABILITY_TENSORS, PLAIN, BOTH, host_tensor_weight},
    {"tensor_new",     "rows:i cols:i",                           'i', CAPABILITY_TENSORS, PLAIN, BOTH, host_tensor_new},
    {"tensor_read",    "tensor:i first:i out:p count:n",          'i', CAPABILITY_TENSORS, SUSPENDS, BOTH, host_tensor_read},
    {"tensor_write",   "tensor:i first:i from:p count:n",         'i', CAPABILITY_TENSORS, SUSPENDS, BOTH, host_tensor_write},
    {"tensor_free",    "tensor:i",                                'i', CAPABILITY_TENSORS, PLAIN, BOTH, host_tensor_free},
    {"embed_tokens",   "out:i model:i ids:p count:n",             'i', CAPABILITY_TENSORS, SUSPENDS, BOTH, host_tensor_embed_tokens},
    {"matmul",         "out:i weight:i x:i",                      'i', CAPABILITY_TENSORS, SUSPENDS, BOTH, host_tensor_matmul},
    {"rms_norm",       "out:i x:i weight:i epsilon:f",            'i', CAPABILITY_TENSORS, SUSPENDS, BOTH, host_tensor_rms_norm},
    {"layer_norm",     "out:i x:i weight:i bias:i epsilon:f",     'i', CAPABILITY_TENSORS, SUSPENDS, BOTH, host_tensor_layer_norm},
    {"apply_rope",     "x:i model:i layer:i positions:p count:n", 'i', CAPABILITY_TENSORS, SUSPENDS, BOTH, host_tensor_apply_rope},
    {"attention_forward", "session:i layer:i position:i q:i k:i v:i out:i", 'i', CAPABILITY_TENSORS, SUSPENDS, BOTH, host_tensor_attention},
    {"kv_cache_get",   "session:i layer:i values:i first:i count:i out:p cap:n", 'i', CAPABILITY_TENSORS, SUSPENDS, BOTH, host_tensor_kv_cache_get},
    {"silu_mul",       "out:i gate:i up:i",                       'i', CAPABILITY_TENSORS, SUSPENDS, BOTH, host_tensor_silu_mul},
    {"gelu_mul",       "out:i gate:i up:i",                       'i', CAPABILITY_TENSORS, SUSPENDS, BOTH, host_tensor_gelu_mul},
    {"add",            "out:i x:i y:i",                           'i', CAPABILITY_TENSORS, SUSPENDS, BOTH, host_tensor_add},
    /* tenant */
    {"state_get",      "key:p size:n out:p cap:n",                'i', CAPABILITY_STATE, PLAIN, BOTH, host_tenant_state_get},
    {"state_put",      "key:p size:n value:p value_size:n",       'i', CAPABILITY_STATE, PLAIN, BOTH, host_tenant_state_put},
    {"state_delete",   "key:p size:n",                            'i', CAPABILITY_STATE, PLAIN, BOTH, host_tenant_state_delete},
    {"call",           "name:p size:n input:p input_size:n out:p cap:n", 'i', CAPABILITY_CALLS, SUSPENDS, BOTH, host_tenant_call},
};
// clang-format on

#define COUNT (sizeof host_functions / sizeof *host_functions)
const size_t host_functions_count = COUNT;

const host_function *host_functions_find(const char *name, size_t size)
{
    for (size_t i = 0; i < COUNT; i++)
        if (strlen(host_functions[i].name) == size &&
            memcmp(host_functions[i].name, name, size) == 0)
            return &host_functions[i];
    return NULL;
}

/* ---- types ---------------------------------------------------------------------------------------- */

/* The letters of a row's types in order; returns how many. */
static int letters(const host_function *f, char out[GUEST_MAX_ARGUMENTS + 1])
{
    int n = 0;
    for (const char *p = strchr(f->parameters, ':'); p; p = strchr(p + 1, ':'))
        out[n++] = p[1];
    return n;
}

static wasm_valkind_t kind_of(char letter, int memory64)
{
    switch (letter) {
    case 'p':
    case 'n': return memory64 ? WASM_I64 : WASM_I32;
    case 'f': return WASM_F32;
    case 'I': return WASM_I64;
    default: return WASM_I32;
    }
}

wasm_functype_t *host_functions_type(const host_function *f, int memory64)
{
    char types[GUEST_MAX_ARGUMENTS + 1];
    int n = letters(f, types);
    wasm_valtype_t *values[GUEST_MAX_ARGUMENTS];
    for (int i = 0; i < n; i++)
        values[i] = wasm_valtype_new(kind_of(types[i], memory64));
    wasm_valtype_t *result = wasm_valtype_new(kind_of(f->result, memory64));
    wasm_valtype_vec_t parameters, results;
    wasm_valtype_vec_new(&parameters, (size_t)n, values);
    wasm_valtype_vec_new(&results, 1, &result);
    return wasm_functype_new(&parameters, &results);
}

static const char *type_name(char letter, int memory64)
{
    switch (kind_of(letter, memory64)) {
    case WASM_I64: return "i64";
    case WASM_F32: return "f32";
    default: return "i32";
    }
}

void host_functions_describe(const host_function *f, int memory64, char *text, size_t size)
{
    char types[GUEST_MAX_ARGUMENTS + 1];
    int n = letters(f, types);
    size_t at = (size_t)snprintf(text, size, "(");
    for (int i = 0; i < n && at < size; i++)
        at += (size_t)snprintf(text + at, size - at, "%s%s", i ? ", " : "",
                               type_name(types[i], memory64));
    if (at < size)
        snprintf(text + at, size - at, ") -> %s", type_name(f->result, memory64));
}

void host_functions_argument(const host_function *f, int index, char *text, size_t size)
{
    const char *p = f->parameters;
    for (int i = 0; i < index && p; i++)
        p = strchr(p, ' ') ? strchr(p, ' ') + 1 : NULL;
    int length = p ? (int)strcspn(p, ":") : 0;
    snprintf(text, size, "%.*s", length, p ? p : "");
}

/* ---- calls ---------------------------------------------------------------------------------------- */

/* A row as one of the two modules has it: which arguments are 32 bits wide. */
typedef struct bound_function {
    const host_function *function;
    int n_arguments;
    int wide[GUEST_MAX_ARGUMENTS]; /* -1: all 64 bits count, 0: the lower half */
} bound_function;

static bound_function bound[2][COUNT];

static void bind(bound_function *b, const host_function *f, int memory64)
{
    char types[GUEST_MAX_ARGUMENTS + 1];
    b->function = f;
    b->n_arguments = letters(f, types);
    for (int i = 0; i < b->n_arguments; i++)
        b->wide[i] = kind_of(types[i], memory64) == WASM_I64 ? -1 : 0;
}

static int64_t refuse(guest_call *c)
{
    return guest_trap(c, REALM_DENIED, "the tenant '%s' was not granted the capability '%s'",
                      c->request->tenant->grants.name, capability_name(c->function->capability));
}

static inline int64_t run(guest_call *c)
{
    unsigned needed = c->function->capability;
    if (needed & ~c->request->tenant->grants.capabilities)
        return refuse(c);
    return c->function->run(c);
}

/* The sentence is in request->failure; what goes through Wasmtime only has to unwind. */
static wasm_trap_t *unwind(void)
{
    return wasmtime_trap_new("host", 4);
}

/* What the guest is about to be told, in words, should it hand the status on. */
static void remember_failure(guest_call *c, int64_t result)
{
    if (result < 0 && c->function->result == 'i' && !c->noted)
        guest_note_status(c, result);
}

static wasm_trap_t *plain_call(void *env, wasmtime_caller_t *caller, wasmtime_val_raw_t *values,
                               size_t count)
{
    (void)count;
    const bound_function *b = env;
    guest_call c;
    c.request = wasmtime_context_get_data(wasmtime_caller_context(caller));
    c.function = b->function;
    c.caller = caller;
    c.trapped = c.suspended = c.noted = 0;
    for (int i = 0; i < b->n_arguments; i++)
        c.arguments[i].u64 = (uint64_t)values[i].i64 & (UINT32_MAX | (uint64_t)(int64_t)b->wide[i]);
    int64_t result = run(&c);
    if (__builtin_expect(c.trapped, 0))
        return unwind();
    if (__builtin_expect(result < 0, 0))
        remember_failure(&c, result);
    values[0].i64 = result; /* an i32 is the lower half, little-endian */
    return NULL;
}

static void set_result(wasmtime_val_t *result, const host_function *f, int64_t value)
{
    result->kind = f->result == 'I' ? WASMTIME_I64 : WASMTIME_I32;
    if (f->result == 'I')
        result->of.i64 = value;
    else
        result->of.i32 = (int32_t)value;
}

static bool at_once(void *env)
{
    (void)env;
    return true;
}

/* Called by Wasmtime on the guest's own stack each time the request is polled. */
static bool go_on(void *env)
{
    sandbox_request *r = env;
    if (r->wait.fresh || !request_wait_is_over(r))
        return false;
    guest_call c = r->wait.call;
    c.caller = NULL;
    c.trapped = c.suspended = c.noted = 0;
    r->wait.kind = WAIT_NONE;
    int64_t result = r->wait.finish(&c);
    if (c.suspended)
        return false;
    if (c.trapped) {
        *r->wait.trap = unwind();
    } else {
        remember_failure(&c, result);
        set_result(r->wait.result, c.function, result);
    }
    return true;
}

static void async_call(void *env, wasmtime_caller_t *caller, const wasmtime_val_t *values,
                       size_t count, wasmtime_val_t *results, size_t n_results, wasm_trap_t **trap,
                       wasmtime_async_continuation_t *continuation)
{
    (void)count;
    (void)n_results;
    const bound_function *b = env;
    guest_call c;
    c.request = wasmtime_context_get_data(wasmtime_caller_context(caller));
    c.function = b->function;
    c.caller = caller;
    c.trapped = c.suspended = c.noted = 0;
    for (int i = 0; i < b->n_arguments; i++)
        c.arguments[i].u64 = (uint64_t)values[i].of.i64 &
                             (UINT32_MAX | (uint64_t)(int64_t)b->wide[i]);
    int64_t result = run(&c);
    continuation->callback = at_once;
    if (c.trapped) {
        *trap = unwind();
    } else if (c.suspended) {
        c.request->wait.frame = __builtin_frame_address(0);
        c.request->wait.result = results;
        c.request->wait.trap = trap;
        continuation->callback = go_on;
        continuation->env = c.request;
    } else {
        remember_failure(&c, result);
        set_result(results, b->function, result);
    }
}

static wasmtime_error_t *define(wasmtime_linker_t *linker, bound_function *b, int memory64)
{
    const host_function *f = b->function;
    const char *module = memory64 ? "realm64" : "realm";
    wasm_functype_t *type = host_functions_type(f, memory64);
    wasmtime_error_t *e =
        f->suspends
            ? wasmtime_linker_define_async_func(linker, module, strlen(module), f->name,
                                                strlen(f->name), type, async_call, b, NULL)
            : wasmtime_linker_define_func_unchecked(linker, module, strlen(module), f->name,
                                                    strlen(f->name), type, plain_call, b, NULL);
    wasm_functype_delete(type);
    return e;
}

realm_status host_functions_define(wasmtime_linker_t *linker, int memory64, realm_error *error)
{
    for (size_t i = 0; i < COUNT; i++) {
        if (host_functions[i].only64 && !memory64)
            continue;
        bind(&bound[memory64][i], &host_functions[i], memory64);
        wasmtime_error_t *e = define(linker, &bound[memory64][i], memory64);
        if (e)
            return wasm_engines_fail(error, REALM_INTERNAL, e, host_functions[i].name);
    }
    return REALM_OK;
}
