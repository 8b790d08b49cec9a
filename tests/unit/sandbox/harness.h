/* tests/unit/sandbox/harness.h: a host, an engine, a tenant and guests written as text.
 *
 * WAT(body) is a whole 32-bit program around what a test is about: all imports, a memory of one
 * page, helpers, realm_abi; the body must hold (func $handle (result i32) ...). */
#ifndef SANDBOX_HARNESS_H
#define SANDBOX_HARNESS_H

#include "../unit.h"

#include "base/clock.h"
#include "fake_engine.h"
#include "sandbox/sandbox.h"

typedef struct harness {
    sandbox_host *host;
    engine *engine;
    state_store *state;
    tenant_grants grants; /* change it, then call harness_tenant */
    sandbox_model model;
    sandbox_tenant *tenant;
    program *programs[8];               /* by name "0" to "7", for call */
    const sandbox_allowance *allowance; /* of those that harness_run runs */
    int prompt_is_paid;
} harness;

/* max_requests 0: 8. The tenant may do everything. */
void harness_open(harness *h, const fake_options *fake, int max_requests);
void harness_close(harness *h);
void harness_tenant(harness *h); /* from grants */

typedef struct outcome {
    realm_status status;
    char message[REALM_ERROR_MESSAGE_SIZE];
    char text[4096]; /* streamed, cut */
    char log[1024];
    char json[4096];
    size_t text_size;
    sandbox_usage usage;
} outcome;

/* Compiles (fails the test if that fails) and runs with input. */
outcome harness_run(harness *h, const char *wat, const char *input);
outcome harness_run_program(harness *h, program *p, const char *input);
program *harness_program(harness *h, const char *wat);
/* The sentence of why wat is refused. Static storage. */
const char *harness_refusal(harness *h, const char *wat, realm_status *status);

/* To be called before guests are started by other means than harness_run. */
void harness_signals(void);

/* Requires nothing left behind: sessions, tensors, instances. */
void harness_assert_clean(harness *h);

#define REALM_IMPORTS(M, P)                                                                        \
    "(import \"" M "\" \"request_read\" (func $request_read (param " P " " P " " P                 \
    ") (result i32)))"                                                                             \
    "(import \"" M "\" \"respond_text\" (func $respond_text (param " P " " P ") (result i32)))"    \
    "(import \"" M "\" \"respond_json\" (func $respond_json (param " P " " P ") (result i32)))"    \
    "(import \"" M "\" \"respond_error\" (func $respond_error (param i32 " P " " P                 \
    ") (result i32)))"                                                                             \
    "(import \"" M "\" \"log\" (func $log (param i32 " P " " P ") (result i32)))"                  \
    "(import \"" M "\" \"now_ms\" (func $now_ms (result i64)))"                                    \
    "(import \"" M "\" \"random\" (func $random (result i64)))"                                    \
    "(import \"" M "\" \"model_open\" (func $model_open (param " P " " P ") (result i32)))"        \
    "(import \"" M "\" \"model_info\" (func $model_info (param i32 " P " " P ") (result i32)))"    \
    "(import \"" M "\" \"tokenize\" (func $tokenize (param i32 " P " " P " i32 " P " " P           \
    ") (result i32)))"                                                                             \
    "(import \"" M "\" \"decode_token\" (func $decode_token (param i32 i32 " P " " P               \
    ") (result i32)))"                                                                             \
    "(import \"" M "\" \"session_open\" (func $session_open (param i32 " P " " P                   \
    ") (result i32)))"                                                                             \
    "(import \"" M "\" \"session_fork\" (func $session_fork (param i32) (result i32)))"            \
    "(import \"" M                                                                                 \
    "\" \"session_truncate\" (func $session_truncate (param i32 i32) (result i32)))"               \
    "(import \"" M "\" \"session_length\" (func $session_length (param i32) (result i32)))"        \
    "(import \"" M "\" \"session_close\" (func $session_close (param i32) (result i32)))"          \
    "(import \"" M "\" \"feed\" (func $feed (param i32 " P " " P ") (result i32)))"                \
    "(import \"" M "\" \"step\" (func $step (param i32 i32) (result i32)))"                        \
    "(import \"" M "\" \"step_begin\" (func $step_begin (param i32 i32) (result i32)))"            \
    "(import \"" M "\" \"step_result\" (func $step_result (param i32) (result i32)))"              \
    "(import \"" M "\" \"wait_any\" (func $wait_any (param " P " " P " i32) (result i32)))"        \
    "(import \"" M "\" \"logits\" (func $logits (param i32 " P " " P ") (result i32)))"            \
    "(import \"" M "\" \"top_logits\" (func $top_logits (param i32 i32 " P " " P                   \
    ") (result i32)))"                                                                             \
    "(import \"" M "\" \"bias\" (func $bias (param i32 " P " " P " " P ") (result i32)))"          \
    "(import \"" M "\" \"sample\" (func $sample (param i32 " P " " P ") (result i32)))"            \
    "(import \"" M "\" \"constrain\" (func $constrain (param i32 i32 " P " " P ") (result i32)))"  \
    "(import \"" M "\" \"adapter_use\" (func $adapter_use (param i32 " P " " P ") (result i32)))"  \
    "(import \"" M "\" \"embed\" (func $embed (param i32 " P " " P " " P " " P " " P " " P         \
    ") (result i32)))"                                                                             \
    "(import \"" M "\" \"generate\" (func $generate (param i32 " P " " P " " P " " P               \
    ") (result i32)))"                                                                             \
    "(import \"" M "\" \"load_layer\" (func $load_layer (param i32 i32) (result i32)))"            \
    "(import \"" M "\" \"weight\" (func $weight (param i32 " P " " P ") (result i32)))"            \
    "(import \"" M "\" \"tensor_new\" (func $tensor_new (param i32 i32) (result i32)))"            \
    "(import \"" M "\" \"tensor_read\" (func $tensor_read (param i32 i32 " P " " P                 \
    ") (result i32)))"                                                                             \
    "(import \"" M "\" \"tensor_write\" (func $tensor_write (param i32 i32 " P " " P               \
    ") (result i32)))"                                                                             \
    "(import \"" M "\" \"tensor_free\" (func $tensor_free (param i32) (result i32)))"              \
    "(import \"" M "\" \"matmul\" (func $matmul (param i32 i32 i32) (result i32)))"                \
    "(import \"" M "\" \"add\" (func $add (param i32 i32 i32) (result i32)))"                      \
    "(import \"" M "\" \"state_get\" (func $state_get (param " P " " P " " P " " P                 \
    ") (result i32)))"                                                                             \
    "(import \"" M "\" \"state_put\" (func $state_put (param " P " " P " " P " " P                 \
    ") (result i32)))"                                                                             \
    "(import \"" M "\" \"state_delete\" (func $state_delete (param " P " " P ") (result i32)))"    \
    "(import \"" M "\" \"call\" (func $call (param " P " " P " " P " " P " " P " " P               \
    ") (result i32)))"

#define ABI "(func (export \"realm_abi\") (result i32) (i32.const 1))"

/* $open: a session on the default model that has read the three bytes "abc". */
#define HELPERS                                                                                    \
    "(data (i32.const 4096) \"a\\00\\00\\00b\\00\\00\\00c\\00\\00\\00\")"                          \
    "(func $open (result i32) (local $s i32)"                                                      \
    "  (local.set $s (call $session_open (call $model_open (i32.const 0) (i32.const 0))"           \
    "                                    (i32.const 0) (i32.const 0)))"                            \
    "  (drop (call $feed (local.get $s) (i32.const 4096) (i32.const 3)))"                          \
    "  (local.get $s))"                                                                            \
    "(func $say (param i32) (i32.store8 (i32.const 8) (local.get 0))"                              \
    "  (drop (call $respond_text (i32.const 8) (i32.const 1))))"

#define STRINGS                                                                                                                                                             \
    "(func $len (param $at i32) (result i32) (local $n i32)"                                                                                                                \
    "  (block $end (loop $l (br_if $end (i32.eqz (i32.load8_u (i32.add (local.get $at) (local.get $n)))))"                                                                  \
    "    (local.set $n (i32.add (local.get $n) (i32.const 1))) (br $l)))"                                                                                                   \
    "  (local.get $n))"                                                                                                                                                     \
    "(func $puts (param i32) (drop (call $respond_text (local.get 0) (call $len (local.get 0)))))" /* generate with the options at $at; the result, as text from 1024 on */ \
    "(func $gen (param $s i32) (param $at i32) (result i32) (local $n i32)"                                                                                                 \
    "  (local.set $n (call $generate (local.get $s) (local.get $at) (call $len (local.get $at))"                                                                            \
    "                                (i32.const 1024) (i32.const 2000)))"                                                                                                   \
    "  (if (i32.gt_s (local.get $n) (i32.const 0)) (then (i32.store8 (i32.add (i32.const 1024) (local.get $n)) (i32.const 0))))"                                            \
    "  (local.get $n))"

#define WAT(body)                                                                                  \
    "(module " REALM_IMPORTS("realm",                                                              \
                             "i32") "(memory (export \"memory\") 1) " ABI HELPERS STRINGS body     \
                                    "(export \"realm_handle\" (func $handle)))"

#define WAT64(body)                                                                                \
    "(module " REALM_IMPORTS("realm64", "i64") "(memory (export \"memory\") i64 1) " ABI body      \
                                               "(export \"realm_handle\" (func $handle)))"

#endif
