/* deps_test.c: what C sees of deps/: a module that suspends in Wasmtime, a template, a grammar.
 *
 * Everything goes through the installed headers and the archive, so that a symbol that Rust did not
 * export, or a header that was made for other features, fails here and not in a room that uses it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <realm_deps.h>
#include <wasmtime.h>

/* A host function that is ready at the second poll: the guest's stack is set aside meanwhile. */
typedef struct answer {
    int polls;
    wasmtime_val_t *results;
} answer;

static bool answer_poll(void *env)
{
    answer *a = env;
    if (++a->polls < 2) {
        return false;
    }
    a->results[0].kind = WASMTIME_I32;
    a->results[0].of.i32 = 41;
    return true;
}

static void answer_begin(void *env, wasmtime_caller_t *caller, const wasmtime_val_t *args,
                         size_t n_args, wasmtime_val_t *results, size_t n_results,
                         wasm_trap_t **trap, wasmtime_async_continuation_t *continuation)
{
    (void)caller, (void)args, (void)n_args, (void)n_results, (void)trap;
    answer *a = env;
    a->results = results;
    continuation->callback = answer_poll;
    continuation->env = a;
    continuation->finalizer = NULL;
}

static void a_module_suspends_in_a_host_function_and_goes_on(void **state)
{
    (void)state;
    static const char text[] = "(module (import \"realm\" \"answer\" (func $answer (result i32)))"
                               "  (memory i64 1) (export \"memory\" (memory 0))"
                               "  (func (export \"run\") (result i32)"
                               "    (i32.add (call $answer) (i32.const 1))))";

    wasm_config_t *config = wasm_config_new();
    wasmtime_config_wasm_memory64_set(config, true);
    wasmtime_config_epoch_interruption_set(config, true);
    wasmtime_pooling_allocation_config_t *pool = wasmtime_pooling_allocation_config_new();
    wasmtime_pooling_allocation_config_total_memories_set(pool, 4);
    wasmtime_pooling_allocation_strategy_set(config, pool);
    wasmtime_pooling_allocation_config_delete(pool);
    wasm_engine_t *engine = wasm_engine_new_with_config(config);
    assert_non_null(engine);

    wasm_byte_vec_t wasm;
    assert_null(wasmtime_wat2wasm(text, strlen(text), &wasm));
    wasmtime_module_t *module = NULL;
    assert_null(wasmtime_module_new(engine, (uint8_t *)wasm.data, wasm.size, &module));
    wasm_byte_vec_delete(&wasm);

    answer a = {0};
    wasmtime_store_t *store = wasmtime_store_new(engine, NULL, NULL);
    wasmtime_context_t *context = wasmtime_store_context(store);
    wasmtime_context_set_epoch_deadline(context, 1000);
    wasmtime_linker_t *linker = wasmtime_linker_new(engine);
    wasm_functype_t *type = wasm_functype_new_0_1(wasm_valtype_new_i32());
    assert_null(wasmtime_linker_define_async_func(linker, "realm", 5, "answer", 6, type,
                                                  answer_begin, &a, NULL));
    wasm_functype_delete(type);

    wasmtime_instance_t instance;
    wasm_trap_t *trap = NULL;
    wasmtime_error_t *error = NULL;
    wasmtime_call_future_t *future = wasmtime_linker_instantiate_async(linker, context, module,
                                                                       &instance, &trap, &error);
    while (!wasmtime_call_future_poll(future)) {
    }
    wasmtime_call_future_delete(future);
    assert_null(trap);
    assert_null(error);

    wasmtime_extern_t run;
    assert_true(wasmtime_instance_export_get(context, &instance, "run", 3, &run));
    wasmtime_val_t result;
    future = wasmtime_func_call_async(context, &run.of.func, NULL, 0, &result, 1, &trap, &error);
    int polls = 0;
    while (!wasmtime_call_future_poll(future)) {
        polls++;
    }
    wasmtime_call_future_delete(future);
    assert_null(trap);
    assert_null(error);
    assert_int_equal(polls, 1);
    assert_int_equal(result.of.i32, 42);

    wasmtime_linker_delete(linker);
    wasmtime_store_delete(store);
    wasmtime_module_delete(module);
    wasm_engine_delete(engine);
}

static void a_template_renders(void **state)
{
    (void)state;
    static const char text[] =
        "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}\n{% endfor %}";
    static const char context[] = "{\"messages\":[{\"role\":\"user\",\"content\":\" Hi \"}]}";
    char *out = NULL, *error = NULL;
    size_t size = 0;
    assert_int_equal(realm_deps_template_render(text, strlen(text), context, strlen(context), &out,
                                                &size, &error),
                     REALM_DEPS_OK);
    assert_null(error);
    assert_int_equal(size, strlen("<user>Hi\n"));
    assert_string_equal(out, "<user>Hi\n");
    realm_deps_string_free(out);
}

static void a_template_that_fails_says_why(void **state)
{
    (void)state;
    static const char text[] = "{{ raise_exception('roles must alternate') }}";
    char *out = NULL, *error = NULL;
    size_t size = 0;
    assert_int_equal(realm_deps_template_render(text, strlen(text), "{}", 2, &out, &size, &error),
                     REALM_DEPS_INVALID);
    assert_null(out);
    assert_string_equal(error, "roles must alternate");
    realm_deps_string_free(error);
}

/* One token a byte, and 256 to end. */
static realm_deps_grammar_env *byte_env(void)
{
    uint8_t bytes[260];
    uint32_t sizes[257];
    uint8_t special[257] = {0};
    const uint32_t eos = 256;
    for (int i = 0; i < 256; i++) {
        bytes[i] = (uint8_t)i;
        sizes[i] = 1;
    }
    memcpy(bytes + 256, "<e>", 3);
    sizes[256] = 3;
    special[256] = 1;
    realm_deps_grammar_env *env = NULL;
    assert_int_equal(realm_deps_grammar_env_open(&env, bytes, sizes, special, 257, &eos, 1, NULL),
                     0);
    return env;
}

static void a_matcher_follows_a_schema_to_its_end(void **state)
{
    (void)state;
    static const char schema[] =
        "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"}},"
        "\"required\":[\"a\"],\"additionalProperties\":false}";
    realm_deps_grammar_env *env = byte_env();
    realm_deps_matcher *matcher = NULL, *fork = NULL;
    char *error = NULL;
    uint32_t mask[9];
    assert_int_equal(realm_deps_matcher_open(&matcher, env, REALM_DEPS_JSON_SCHEMA, schema,
                                             strlen(schema), &error),
                     0);
    realm_deps_grammar_env_close(env); /* the matcher holds what it needs */

    assert_int_equal(realm_deps_matcher_mask(matcher, mask, 9, &error), 0);
    assert_true(mask['{' / 32] >> ('{' % 32) & 1);
    assert_false(mask['[' / 32] >> ('[' % 32) & 1);
    assert_false(mask[8] & 1);
    assert_int_equal(realm_deps_matcher_mask(matcher, mask, 8, NULL), REALM_DEPS_INVALID);

    for (const char *c = "{\"a\":1"; *c; c++) {
        assert_int_equal(realm_deps_matcher_consume(matcher, (uint32_t)*c, &error), 0);
    }
    assert_int_equal(realm_deps_matcher_clone(&fork, matcher, &error), 0);
    assert_int_equal(realm_deps_matcher_consume(fork, '2', NULL), 0);
    assert_int_equal(realm_deps_matcher_rollback(fork, 1, NULL), 0);
    realm_deps_matcher_close(fork);

    assert_int_equal(realm_deps_matcher_is_accepting(matcher), 0);
    assert_int_equal(realm_deps_matcher_consume(matcher, 'x', &error), REALM_DEPS_INVALID);
    assert_string_equal(error, "the grammar does not allow token 120 here");
    realm_deps_string_free(error);
    error = NULL;
    assert_int_equal(realm_deps_matcher_consume(matcher, '}', NULL), 0);
    assert_int_equal(realm_deps_matcher_is_accepting(matcher), 1);
    assert_int_equal(realm_deps_matcher_is_stopped(matcher), 1);
    assert_int_equal(realm_deps_matcher_mask(matcher, mask, 9, NULL), 0);
    for (int i = 0; i < 8; i++) {
        assert_int_equal(mask[i], 0);
    }
    assert_int_equal(mask[8], 1);

    assert_int_equal(realm_deps_matcher_reset(matcher, NULL), 0);
    char *forced = NULL;
    size_t forced_size = 0;
    assert_int_equal(realm_deps_matcher_consume(matcher, '{', NULL), 0);
    assert_int_equal(realm_deps_matcher_consume(matcher, '"', NULL), 0);
    assert_int_equal(realm_deps_matcher_forced(matcher, &forced, &forced_size, NULL), 0);
    assert_string_equal(forced, "a\"");
    realm_deps_string_free(forced);
    realm_deps_matcher_close(matcher);
}

static void a_grammar_that_is_wrong_says_so(void **state)
{
    (void)state;
    realm_deps_grammar_env *env = byte_env();
    realm_deps_matcher *matcher = NULL;
    char *error = NULL;
    assert_int_equal(realm_deps_matcher_open(&matcher, env, REALM_DEPS_JSON_SCHEMA, "{", 1, &error),
                     REALM_DEPS_INVALID);
    assert_non_null(strstr(error, "not JSON"));
    realm_deps_string_free(error);
    assert_int_equal(realm_deps_matcher_open(&matcher, env, REALM_DEPS_REGEX, "(", 1, &error),
                     REALM_DEPS_INVALID);
    realm_deps_string_free(error);
    static char large[(1 << 20) + 1];
    memset(large, 'a', sizeof large);
    assert_int_equal(
        realm_deps_matcher_open(&matcher, env, REALM_DEPS_REGEX, large, sizeof large, &error),
        REALM_DEPS_TOO_LARGE);
    assert_string_equal(error, "the grammar has 1048577 bytes; at most 1048576 are allowed");
    realm_deps_string_free(error);
    assert_null(matcher);
    realm_deps_grammar_env_close(env);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_module_suspends_in_a_host_function_and_goes_on),
        cmocka_unit_test(a_template_renders),
        cmocka_unit_test(a_template_that_fails_says_why),
        cmocka_unit_test(a_matcher_follows_a_schema_to_its_end),
        cmocka_unit_test(a_grammar_that_is_wrong_says_so),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
