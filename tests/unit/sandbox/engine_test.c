/* The sandbox on the real engine and a tiny random model: what guests make is what the engine makes
 * without them, alone and together, and weights that a guest maps are the file's. */
#include "../unit.h"

#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/clock.h"
#include "formats/json.h"
#include "sandbox/sandbox.h"
#include "support/tiny_model.h"

#define N_TOKENS 24

static char path[64];
static backend *device;
static model *tiny;
static engine *running;
static sandbox_host *host;
static sandbox_tenant *tenant;
static struct sigaction handlers[2];
static char native[N_TOKENS * 8 + 1];

#define HEAD(M, P)                                                                                 \
    "(import \"" M "\" \"respond_text\" (func $respond_text (param " P " " P ") (result i32)))"    \
    "(import \"" M "\" \"respond_json\" (func $respond_json (param " P " " P ") (result i32)))"    \
    "(import \"" M "\" \"model_open\" (func $model_open (param " P " " P ") (result i32)))"        \
    "(import \"" M "\" \"decode_token\" (func $decode_token (param i32 i32 " P " " P               \
    ") (result i32)))"                                                                             \
    "(import \"" M "\" \"session_open\" (func $session_open (param i32 " P " " P                   \
    ") (result i32)))"                                                                             \
    "(import \"" M "\" \"feed\" (func $feed (param i32 " P " " P ") (result i32)))"                \
    "(import \"" M "\" \"step\" (func $step (param i32 i32) (result i32)))"                        \
    "(import \"" M "\" \"sample\" (func $sample (param i32 " P " " P ") (result i32)))"            \
    "(import \"" M "\" \"generate\" (func $generate (param i32 " P " " P " " P " " P               \
    ") (result i32)))"                                                                             \
    "(func (export \"realm_abi\") (result i32) (i32.const 1))"

/* A session that has read the tokens 70 to 77. */
#define OPEN                                                                                                                          \
    "(func $open (result i32) (local $s i32) (local $i i32)"                                                                          \
    "  (local.set $s (call $session_open (call $model_open (i32.const 0) (i32.const 0)) (i32.const 0) (i32.const 0)))"                \
    "  (loop $l (i32.store (i32.add (i32.const 512) (i32.mul (local.get $i) (i32.const 4))) (i32.add (local.get $i) (i32.const 70)))" \
    "    (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 8))))"                                  \
    "  (drop (call $feed (local.get $s) (i32.const 512) (i32.const 8)))"                                                              \
    "  (local.get $s))"

static const char generates[] = "(module " HEAD(
    "realm",
    "i32") "(memory (export \"memory\") 1)"
           "(data (i32.const 100) \"{\\\"max_tokens\\\":24,\\\"ignore_eos\\\":true,\\\"stream\\\":true,\\\"return_text\\\":true}\") " OPEN
           "(func (export \"realm_handle\") (result i32) (local $n i32)"
           "  (local.set $n (call $generate (call $open) (i32.const 100) (i32.const 68) (i32.const 1024) (i32.const 8000)))"
           "  (call $respond_json (i32.const 1024) (local.get $n))))";

/* The same token by token: samples, appends, decodes. */
static const char steps[] = "(module " HEAD(
    "realm",
    "i32") "(memory (export \"memory\") 1) " OPEN
           "(func (export \"realm_handle\") (result i32) (local $s i32) (local $t i32) (local $i i32)"
           "  (local.set $s (call $open))"
           "  (loop $l"
           "    (local.set $t (call $sample (local.get $s) (i32.const 0) (i32.const 0)))"
           "    (if (i32.ne (call $step (local.get $s) (local.get $t)) (local.get $t)) (then unreachable))"
           "    (drop (call $respond_text (i32.const 64) (call $decode_token (call $model_open (i32.const 0) (i32.const 0)) (local.get $t) (i32.const 64) (i32.const 32))))"
           "    (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 24))))"
           "  (i32.const 0)))";

/* In parts of five tokens until the end. */
static const char wakes[] = "(module " HEAD(
    "realm",
    "i32") "(memory (export \"memory\") 1)"
           "(data (i32.const 100) \"{\\\"max_tokens\\\":24,\\\"ignore_eos\\\":true,\\\"stream\\\":true,\\\"wake_every\\\":5}\") " OPEN
           "(func (export \"realm_handle\") (result i32) (local $s i32) (local $n i32) (local $i i32)"
           "  (local.set $s (call $open))"
           "  (loop $l (local.set $n (call $generate (local.get $s) (i32.const 100) (i32.const 64) (i32.const 1024) (i32.const 8000)))"
           "    (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 5))))"
           "  (call $respond_json (i32.const 1024) (local.get $n))))";

typedef struct answer {
    char text[400];
    char json[4000];
    size_t size;
    realm_status status;
    char message[200];
    atomic_int done;
} answer;

static void on_text(void *context, const char *text, size_t size)
{
    answer *a = context;
    for (size_t i = 0; i < size && a->size < sizeof a->text - 1; i++)
        a->text[a->size++] = text[i];
}

static void on_done(void *context, const sandbox_result *result)
{
    answer *a = context;
    a->status = result->status;
    snprintf(a->message, sizeof a->message, "%s", result->message);
    snprintf(a->json, sizeof a->json, "%s", result->json ? result->json : "");
    atomic_store(&a->done, 1);
}

static program *compile(const char *wat)
{
    program *p = NULL;
    realm_error error;
    assert_status(program_open(&p, host, "test", wat, strlen(wat), &error), REALM_OK, error);
    return p;
}

static void start(program *p, answer *a)
{
    realm_error error;
    sandbox_input in = {.program = p,
                        .tenant = tenant,
                        .priority = PRIORITY_NORMAL,
                        .context = a,
                        .on_text = on_text,
                        .on_done = on_done};
    memset(a, 0, sizeof *a);
    sigaction(SIGSEGV, &handlers[0], NULL); /* see harness.c */
    sigaction(SIGILL, &handlers[1], NULL);
    assert_status(sandbox_start(NULL, host, &in, &error), REALM_OK, error);
}

static void await(answer *a)
{
    for (int ms = 0; !atomic_load(&a->done) && ms < 60000; ms++)
        usleep(1000);
    assert_true(atomic_load(&a->done));
    assert_string_equal(a->message, "");
}

/* What the engine gives without any guest. */
static int take_text(work *w, const generated_token *t)
{
    (void)w;
    memcpy(native + strlen(native), t->text, t->text_size);
    return 0;
}

static void run_natively(void)
{
    realm_error error;
    session *s = NULL;
    token_id prompt[8];
    for (int i = 0; i < 8; i++)
        prompt[i] = 70 + i;
    session_options o = {
        .tenant = 99, .priority = PRIORITY_NORMAL, .sampler = SAMPLER_OPTIONS_DEFAULT};
    assert_status(session_open(&s, running, &o, &error), REALM_OK, error);
    work feed = {.kind = WORK_FEED, .session = s, .tokens = prompt, .n_tokens = 8};
    assert_status(engine_run(running, &feed), REALM_OK, feed.error);
    work generate = {.kind = WORK_GENERATE,
                     .session = s,
                     .on_token = take_text,
                     .generate = {.max_tokens = N_TOKENS, .ignore_eos = 1}};
    assert_status(engine_run(running, &generate), REALM_OK, generate.error);
    session_close(s);
    assert_true(strlen(native) > 0);
}

static int setup(void **state)
{
    (void)state;
    realm_error error;
    snprintf(path, sizeof path, "/tmp/realm-sandbox-%d.gguf", (int)getpid());
    tiny_model_save(&(tiny_model){.architecture = "llama", .seed = 3}, path);
    assert_status(backend_cpu_open(&device, &(backend_cpu_options){.n_threads = 1}, &error),
                  REALM_OK, error);
    assert_status(model_open(&tiny, device, path, NULL, &error), REALM_OK, error);
    assert_status(engine_open(&running, tiny,
                              &(engine_options){.kv_bytes = 16 << 20, .gather_us = -1}, &error),
                  REALM_OK, error);
    assert_status(sandbox_host_open(&host,
                                    &(sandbox_host_options){.cache_folder = "", .max_requests = 32},
                                    &error),
                  REALM_OK, error);
    sigaction(SIGSEGV, NULL, &handlers[0]);
    sigaction(SIGILL, NULL, &handlers[1]);
    sandbox_model m = {"tiny", running};
    tenant_grants grants = {.number = 1,
                            .name = "acme",
                            .capabilities = CAPABILITY_ALL,
                            .limits = SANDBOX_LIMITS_DEFAULT,
                            .models = &m,
                            .n_models = 1};
    assert_status(sandbox_tenant_open(&tenant, &grants, &error), REALM_OK, error);
    run_natively();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    engine_stats stats;
    engine_stats_get(running, &stats);
    sandbox_tenant_release(tenant);
    sandbox_host_close(host);
    engine_close(running);
    model_close(tiny);
    device->table->close(device);
    unlink(path);
    assert_int_equal(stats.sessions, 0);
    return 0;
}

static void a_guest_generates_what_the_engine_generates(void **state)
{
    (void)state;
    program *p = compile(generates);
    answer a;
    start(p, &a);
    await(&a);
    assert_string_equal(a.text, native);
    assert_holds(a.json, "\"finish_reason\":\"length\",\"n_tokens\":24");
    program_release(p);
}

static void a_guest_that_is_woken_between_writes_the_same(void **state)
{
    (void)state;
    program *p = compile(wakes);
    answer a;
    start(p, &a);
    await(&a);
    assert_string_equal(a.text, native);
    assert_holds(a.json, "\"finish_reason\":\"length\",\"n_tokens\":4");
    program_release(p);
}

static void a_guest_that_steps_writes_the_same_tokens(void **state)
{
    (void)state;
    program *p = compile(steps);
    answer a;
    start(p, &a);
    await(&a);
    /* Pieces are bytes and the first one keeps its space: compare as the tokenizer joins them. */
    const char *text = a.text[0] == ' ' && native[0] != ' ' ? a.text + 1 : a.text;
    assert_memory_equal(text, native, strlen(native) / 2);
    program_release(p);
}

static void sixteen_guests_at_once_get_what_one_gets(void **state)
{
    (void)state;
    program *p[2] = {compile(generates), compile(steps)};
    static answer a[16];
    answer alone;
    start(p[1], &alone);
    await(&alone);
    for (int i = 0; i < 16; i++)
        start(p[i % 2], &a[i]);
    for (int i = 0; i < 16; i++)
        await(&a[i]);
    for (int i = 0; i < 16; i++)
        assert_string_equal(a[i].text, i % 2 ? alone.text : native);
    program_release(p[0]);
    program_release(p[1]);
}

/* ---- memory64_load_layer -------------------------------------------------------------------------------- */

/* Maps layer 1 at 64 KiB, answers with the directory, streams all mapped bytes, and then writes over
 * them. */
static const char maps[] =
    "(module "
    "(import \"realm64\" \"memory64_load_layer\" (func $load (param i32 i32 i64 i64 i64 i64) (result i32)))" HEAD(
        "realm64",
        "i64") "(memory (export \"memory\") i64 64)"
               "(func (export \"realm_handle\") (result i32) (local $n i32) (local $m i32)"
               "  (local.set $m (call $model_open (i64.const 0) (i64.const 0)))"
               "  (if (i32.ne (call $load (local.get $m) (i32.const 1) (i64.const 65536) (i64.const 4096) (i64.const 1024) (i64.const 8000)) (i32.const -15)) (then unreachable))"
               "  (if (i32.ne (call $load (local.get $m) (i32.const 9) (i64.const 65536) (i64.const 4096) (i64.const 1024) (i64.const 8000)) (i32.const -2)) (then unreachable))"
               "  (local.set $n (call $load (local.get $m) (i32.const 1) (i64.const 65536) (i64.const 2000000) (i64.const 1024) (i64.const 8000)))"
               "  (drop (call $respond_json (i64.const 1024) (i64.extend_i32_u (local.get $n))))"
               "  (drop (call $respond_text (i64.const 65536) (i64.const 400000)))"
               "  (memory.fill (i64.const 65536) (i32.const 255) (i64.const 400000))"
               "  (drop (memory.grow (i64.const 4)))"
               "  (i32.const 0)))";

static char *mapped;
static size_t mapped_size;

static void keep_mapped(void *context, const char *text, size_t size)
{
    (void)context;
    mapped = realloc(mapped, size);
    memcpy(mapped, text, size);
    mapped_size = size;
}

static void check_directory(const char *json)
{
    json_t *directory = json_loads(json, 0, NULL);
    const gguf *g = model_gguf(tiny);
    json_t *list = json_object_get(directory, "tensors");
    assert_true(json_array_size(list) >= 9);
    for (size_t i = 0; i < json_array_size(list); i++) {
        json_t *item = json_array_get(list, i);
        const gguf_tensor *t = gguf_find_tensor(g,
                                                json_string_value(json_object_get(item, "name")));
        assert_non_null(t);
        size_t bytes = (size_t)json_integer_value(json_object_get(item, "bytes"));
        size_t at = (size_t)json_integer_value(json_object_get(item, "address")) - 65536;
        assert_int_equal(bytes, t->size);
        assert_true(at + bytes <= mapped_size);
        assert_memory_equal(mapped + at, t->data, bytes);
    }
    json_decref(directory);
}

static void a_64_bit_guest_maps_a_layer_and_cannot_change_it(void **state)
{
    (void)state;
    program *p = compile(maps);
    for (int round = 0; round < 3; round++) {
        answer a = {0};
        sandbox_input in = {.program = p,
                            .tenant = tenant,
                            .context = &a,
                            .on_text = keep_mapped,
                            .on_done = on_done};
        sandbox_result result;
        buffer kept;
        sigaction(SIGSEGV, &handlers[0], NULL);
        sandbox_run(host, &in, &result, &kept);
        assert_string_equal(result.message, "");
        check_directory(result.json);
        buffer_release(&kept);
    }
    program_release(p);
    free(mapped);
}

/* ---- quiet ------------------------------------------------------------------------------------------------ */

static void a_host_without_guests_does_not_wake_up(void **state)
{
    (void)state;
    struct rusage before, after;
    uint64_t end = clock_ns() + A_MINUTE_NS;
    do { /* the ticker goes to sleep after 100 ms in which it had the processor */
        getrusage(RUSAGE_SELF, &before);
        usleep(500000);
        getrusage(RUSAGE_SELF, &after);
    } while (after.ru_nvcsw - before.ru_nvcsw >= 20 && clock_ns() < end);
    assert_true(after.ru_nvcsw - before.ru_nvcsw < 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_guest_generates_what_the_engine_generates),
        cmocka_unit_test(a_guest_that_is_woken_between_writes_the_same),
        cmocka_unit_test(a_guest_that_steps_writes_the_same_tokens),
        cmocka_unit_test(sixteen_guests_at_once_get_what_one_gets),
        cmocka_unit_test(a_64_bit_guest_maps_a_layer_and_cannot_change_it),
        cmocka_unit_test(a_host_without_guests_does_not_wake_up),
    };
    return cmocka_run_group_tests_name("sandbox on the engine", tests, setup, teardown);
}
