/* What a program can do: each host function as a correct program uses it, against an engine whose
 * answers are known. */
#include "harness.h"

#include <time.h>
#include <unistd.h>

static harness h;

static int setup(void **state)
{
    (void)state;
    harness_open(&h, &(fake_options){0}, 0);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    harness_assert_clean(&h);
    harness_close(&h);
    return 0;
}

static void a_program_answers_with_what_it_read(void **state)
{
    (void)state;
    outcome o = harness_run(
        &h,
        WAT("(func $handle (result i32) (local $n i32)"
            "  (local.set $n (call $request_read (i32.const 0) (i32.const 100) (i32.const 1000)))"
            "  (call $respond_text (i32.const 100) (local.get $n)))"),
        "hello");
    assert_string_equal(o.message, "");
    assert_int_equal(o.status, REALM_OK);
    assert_string_equal(o.text, "hello");
    assert_true(o.usage.start_ns > 0);
}

static void a_program_steps_a_session_token_by_token(void **state)
{
    (void)state;
    token_id tokens[8] = {'a', 'b', 'c'};
    char expected[6] = {0};
    for (int i = 0; i < 5; i++) {
        tokens[3 + i] = fake_next_token(tokens, 3 + i);
        expected[i] = (char)tokens[3 + i];
    }
    outcome o = harness_run(
        &h,
        WAT("(func $handle (result i32) (local $s i32) (local $i i32)"
            "  (local.set $s (call $open))"
            "  (loop $l"
            "    (call $say (call $step (local.get $s) (i32.const -1)))"
            "    (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 5))))"
            "  (i32.sub (call $session_length (local.get $s)) (i32.const 8)))"),
        "");
    assert_string_equal(o.message, "");
    assert_string_equal(o.text, expected);
    assert_int_equal(o.usage.prompt_tokens, 3);
    assert_int_equal(o.usage.generated_tokens, 5);
}

static void generate_streams_what_stepping_would_give(void **state)
{
    (void)state;
    token_id tokens[8] = {'a', 'b', 'c'};
    char expected[6] = {0};
    for (int i = 0; i < 5; i++) {
        tokens[3 + i] = fake_next_token(tokens, 3 + i);
        expected[i] = (char)tokens[3 + i];
    }
    outcome o = harness_run(
        &h,
        WAT("(data (i32.const 200) \"{\\\"max_tokens\\\":5,\\\"stream\\\":true,\\\"return_text\\\":true}\\00\")"
            "(func $handle (result i32)"
            "  (call $respond_json (i32.const 1024) (call $gen (call $open) (i32.const 200))))"),
        "");
    assert_string_equal(o.message, "");
    assert_string_equal(o.text, expected);
    assert_holds(o.json, "\"finish_reason\":\"length\",\"n_tokens\":5");
    assert_holds(o.json, expected);
}

static void generate_gives_tokens_with_their_log_probabilities(void **state)
{
    (void)state;
    outcome o = harness_run(
        &h,
        WAT("(data (i32.const 200) \"{\\\"max_tokens\\\":2,\\\"logprobs\\\":1}\\00\")"
            "(func $handle (result i32)"
            "  (call $respond_json (i32.const 1024) (call $gen (call $open) (i32.const 200))))"),
        "");
    assert_string_equal(o.message, "");
    assert_holds(o.json, "\"logprob\":-0.5,\"top\":[{\"id\":");
    assert_holds(o.json, "\"logprob\":-0.5}],\"text\":\"");
    assert_string_equal(o.text, "");
}

static void generate_wakes_the_guest_and_goes_on(void **state)
{
    (void)state;
    outcome o = harness_run(
        &h,
        WAT("(data (i32.const 200) \"{\\\"max_tokens\\\":7,\\\"wake_every\\\":3}\\00\")"
            "(func $handle (result i32) (local $s i32)"
            "  (local.set $s (call $open))"
            "  (drop (call $gen (local.get $s) (i32.const 200))) (call $puts (i32.const 1024))"
            "  (drop (call $gen (local.get $s) (i32.const 200))) (call $puts (i32.const 1024))"
            "  (drop (call $generate (local.get $s) (i32.const 0) (i32.const 0) (i32.const 1024) (i32.const 2000)))" /* the last again */
            "  (drop (call $gen (local.get $s) (i32.const 200))) (call $puts (i32.const 1024))"
            "  (i32.sub (call $session_length (local.get $s)) (i32.const 10)))"),
        "");
    assert_string_equal(o.message, "");
    const char *second = strstr(strstr(o.text, "wake") + 1, "wake");
    assert_non_null(second);
    assert_holds(second, "\"finish_reason\":\"length\",\"n_tokens\":1");
}

static void a_result_that_did_not_fit_is_given_again(void **state)
{
    (void)state;
    outcome o = harness_run(
        &h,
        WAT("(data (i32.const 200) \"{\\\"max_tokens\\\":7}\\00\")"
            "(func $handle (result i32) (local $s i32) (local $n i32)"
            "  (local.set $s (call $open))"
            "  (local.set $n (call $generate (local.get $s) (i32.const 200) (call $len (i32.const 200)) (i32.const 1024) (i32.const 4)))"
            "  (if (i32.ne (local.get $n) (call $generate (local.get $s) (i32.const 0) (i32.const 0) (i32.const 1024) (local.get $n)))"
            "    (then (unreachable)))"
            "  (call $respond_json (i32.const 1024) (local.get $n)))"),
        "");
    assert_string_equal(o.message, "");
    assert_holds(o.json, "\"n_tokens\":7");
}

static void steps_of_several_sessions_are_waited_for_together(void **state)
{
    (void)state;
    int before = fake_engine_works(h.engine);
    outcome o = harness_run(
        &h,
        WAT("(func $handle (result i32) (local $i i32) (local $k i32)"
            "  (i32.store (i32.const 300) (call $open))"
            "  (i32.store (i32.const 304) (call $session_fork (i32.load (i32.const 300))))"
            "  (drop (call $step (i32.load (i32.const 304)) (i32.const 120)))"
            "  (loop $l"
            "    (drop (call $step_begin (i32.load (i32.const 300)) (i32.const -1)))"
            "    (drop (call $step_begin (i32.load (i32.const 304)) (i32.const -1)))"
            "    (local.set $k (call $wait_any (i32.const 300) (i32.const 2) (i32.const -1)))"
            "    (local.set $k (i32.add (local.get $k) (call $wait_any (i32.const 300) (i32.const 2) (i32.const 10000))))"
            "    (if (i32.ne (local.get $k) (i32.const 1)) (then unreachable))" /* 0 and 1, in any order */
            "    (if (i32.ne (call $wait_any (i32.const 300) (i32.const 2) (i32.const -1)) (i32.const -2)) (then unreachable))"
            "    (call $say (call $step_result (i32.load (i32.const 300))))"
            "    (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 4))))"
            "  (i32.const 0))"),
        "");
    assert_string_equal(o.message, "");
    token_id tokens[8] = {'a', 'b', 'c'};
    for (int i = 3; i < 7; i++) {
        tokens[i] = fake_next_token(tokens, i);
        assert_int_equal(o.text[i - 3], tokens[i]);
    }
    assert_int_equal(fake_engine_works(h.engine) - before, 10);
}

static void release(void *context, const char *text, size_t size)
{
    (void)text, (void)size;
    atomic_store((atomic_int *)context, 0);
}

/* The step ends when the guest says that its waiting has. */
static void waiting_ends_at_its_timeout(void **state)
{
    (void)state;
    harness slow;
    atomic_int held = 1;
    harness_open(&slow, &(fake_options){.held = &held}, 0);
    program *p = harness_program(
        &slow,
        WAT("(func $handle (result i32)"
            "  (i32.store (i32.const 300) (call $session_open (call $model_open (i32.const 0) (i32.const 0)) (i32.const 0) (i32.const 0)))"
            "  (drop (call $step_begin (i32.load (i32.const 300)) (i32.const 97)))"
            "  (if (i32.ne (call $session_length (i32.load (i32.const 300))) (i32.const -13)) (then unreachable))" /* BUSY */
            "  (if (i32.ne (call $wait_any (i32.const 300) (i32.const 1) (i32.const 0)) (i32.const -10)) (then unreachable))"
            "  (if (i32.ne (call $wait_any (i32.const 300) (i32.const 1) (i32.const 20)) (i32.const -10)) (then unreachable))"
            "  (call $say (i32.const 97))"
            "  (call $wait_any (i32.const 300) (i32.const 1) (i32.const -1)))"));
    sandbox_result result;
    buffer kept;
    sandbox_input in = {.program = p, .tenant = slow.tenant, .context = &held, .on_text = release};
    harness_signals();
    sandbox_run(slow.host, &in, &result, &kept);
    assert_string_equal(result.message, "");
    assert_false(atomic_load(&held));
    buffer_release(&kept);
    program_release(p);
    harness_assert_clean(&slow);
    harness_close(&slow);
}

static void logits_are_read_whole_or_the_largest(void **state)
{
    (void)state;
    outcome o = harness_run(
        &h,
        WAT("(func $handle (result i32) (local $s i32)"
            "  (local.set $s (call $open))"
            "  (if (i32.ne (call $logits (local.get $s) (i32.const 8192) (i32.const 256)) (i32.const 256)) (then unreachable))"
            "  (if (i32.ne (call $logits (local.get $s) (i32.const 8192) (i32.const 3)) (i32.const 256)) (then unreachable))"
            "  (if (i32.ne (call $top_logits (local.get $s) (i32.const 2) (i32.const 300) (i32.const 400)) (i32.const 2)) (then unreachable))"
            "  (if (f32.ne (f32.load (i32.const 400)) (f32.const 10)) (then unreachable))"
            "  (call $say (i32.load (i32.const 300)))"
            "  (call $say (call $sample (local.get $s) (i32.const 0) (i32.const 0)))"
            "  (if (i32.ne (call $session_truncate (local.get $s) (i32.const 2)) (i32.const 0)) (then unreachable))"
            "  (if (i32.ne (call $logits (local.get $s) (i32.const 8192) (i32.const 3)) (i32.const -2)) (then unreachable))"
            "  (i32.const 0))"),
        "");
    assert_string_equal(o.message, "");
    const token_id tokens[] = {'a', 'b', 'c'};
    assert_int_equal(o.text[0], fake_next_token(tokens, 3));
    assert_int_equal(o.text[1], fake_next_token(tokens, 3));
}

static void an_embedding_comes_as_floats(void **state)
{
    (void)state;
    outcome o = harness_run(
        &h,
        WAT("(data (i32.const 200) \"{\\\"pooling\\\":\\\"last\\\"}\\00\")"
            "(func $handle (result i32)"
            "  (if (i32.ne (call $embed (call $model_open (i32.const 0) (i32.const 0)) (i32.const 4096) (i32.const 3)"
            "                           (i32.const 200) (call $len (i32.const 200)) (i32.const 512) (i32.const 8)) (i32.const 8)) (then unreachable))"
            "  (if (f32.ne (f32.load (i32.const 516)) (f32.const 4)) (then unreachable))"
            "  (i32.const 0))"),
        "");
    assert_string_equal(o.message, "");
}

static void tensors_are_computed_when_they_are_read(void **state)
{
    (void)state;
    int before = fake_engine_works(h.engine);
    outcome o = harness_run(
        &h,
        WAT("(data (i32.const 200) \"attn_q.weight\\00\")"
            "(func $handle (result i32) (local $a i32) (local $b i32) (local $i i32) (local $w i32)"
            "  (local.set $a (call $tensor_new (i32.const 2) (i32.const 8)))"
            "  (local.set $b (call $tensor_new (i32.const 2) (i32.const 8)))"
            "  (local.set $w (call $weight (call $load_layer (call $model_open (i32.const 0) (i32.const 0)) (i32.const 0)) (i32.const 200) (i32.const 13)))"
            "  (f32.store (i32.const 400) (f32.const 1.5))"
            "  (drop (call $tensor_write (local.get $a) (i32.const 3) (i32.const 400) (i32.const 1)))"
            "  (loop $l"
            "    (drop (call $add (local.get $b) (local.get $a) (local.get $b)))"
            "    (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 5000))))" /* more than one list holds */
            "  (drop (call $matmul (call $tensor_new (i32.const 2) (i32.const 8)) (local.get $w) (local.get $a)))"
            "  (if (i32.ne (call $tensor_read (local.get $b) (i32.const 2) (i32.const 500) (i32.const 3)) (i32.const 3)) (then unreachable))"
            "  (if (f32.ne (f32.load (i32.const 504)) (f32.const 7500)) (then unreachable))"
            "  (call $tensor_free (local.get $b)))"),
        "");
    assert_string_equal(o.message, "");
    /* two lists, then one that gives the memory back */
    assert_int_equal(fake_engine_works(h.engine) - before, 3);
}

static void state_outlives_the_request(void **state)
{
    (void)state;
    static const char put[] = WAT(
        "(data (i32.const 200) \"key\") (data (i32.const 300) \"value\")"
        "(func $handle (result i32) (call $state_put (i32.const 200) (i32.const 3) (i32.const 300) (i32.const 5)))");
    static const char get[] = WAT(
        "(data (i32.const 200) \"key\")"
        "(func $handle (result i32)"
        "  (drop (call $respond_text (i32.const 500) (call $state_get (i32.const 200) (i32.const 3) (i32.const 500) (i32.const 100))))"
        "  (if (i32.ne (call $state_delete (i32.const 200) (i32.const 3)) (i32.const 1)) (then unreachable))"
        "  (i32.add (call $state_get (i32.const 200) (i32.const 3) (i32.const 500) (i32.const 100)) (i32.const 2)))");
    assert_string_equal(harness_run(&h, put, "").message, "");
    outcome o = harness_run(&h, get, "");
    assert_string_equal(o.message, "");
    assert_string_equal(o.text, "value");
    assert_int_equal(h.state->table->used_bytes(h.state, 7), 0);
}

static void a_program_calls_another_and_reads_its_answer(void **state)
{
    (void)state;
    h.programs[0] = harness_program(
        &h,
        WAT("(func $handle (result i32) (call $say (i32.const 62))"
            "  (call $respond_text (i32.const 500) (call $request_read (i32.const 0) (i32.const 500) (i32.const 100))))"));
    outcome o = harness_run(
        &h,
        WAT("(data (i32.const 200) \"0\") (data (i32.const 300) \"ping\")"
            "(func $handle (result i32) (local $n i32)"
            "  (local.set $n (call $call (i32.const 200) (i32.const 1) (i32.const 300) (i32.const 4) (i32.const 700) (i32.const 100)))"
            "  (drop (call $respond_text (i32.const 700) (local.get $n)))"
            "  (if (i32.ne (call $call (i32.const 300) (i32.const 1) (i32.const 300) (i32.const 4) (i32.const 700) (i32.const 100)) (i32.const -2)) (then unreachable))"
            "  (i32.const 0))"),
        "");
    program_release(h.programs[0]);
    h.programs[0] = NULL;
    assert_string_equal(o.message, "");
    assert_string_equal(o.text, ">ping");
}

static void a_64_bit_program_does_the_same(void **state)
{
    (void)state;
    outcome o = harness_run(
        &h,
        WAT64(
            "(func $handle (result i32) (local $n i32)"
            "  (if (i64.lt_s (memory.grow (i64.const 80000)) (i64.const 0)) (then unreachable))" /* past 4 GiB */
            "  (local.set $n (call $request_read (i64.const 0) (i64.const 5000000000) (i64.const 1000)))"
            "  (call $respond_text (i64.const 5000000000) (i64.extend_i32_u (local.get $n))))"),
        "far away");
    assert_string_equal(o.message, "");
    assert_string_equal(o.text, "far away");
}

static void a_64_bit_program_that_cannot_map_has_the_usual_limit(void **state)
{
    (void)state;
    sandbox_tenant *kept = h.tenant;
    h.tenant = NULL;
    h.grants.capabilities &= ~(unsigned)CAPABILITY_TENSORS;
    harness_tenant(&h);
    outcome o = harness_run(
        &h,
        WAT64(
            "(func $handle (result i32)"
            "  (if (i64.ge_s (memory.grow (i64.const 1024)) (i64.const 0)) (then unreachable))" /* 64 MiB and one page */
            "  (if (i64.lt_s (memory.grow (i64.const 1023)) (i64.const 0)) (then unreachable))"
            "  (i32.const 0))"),
        "");
    sandbox_tenant_release(h.tenant);
    h.grants.capabilities = CAPABILITY_ALL;
    h.tenant = kept;
    assert_string_equal(o.message, "");
}

/* 20 000 bytes: more than are tokenized at once. */
static void long_texts_are_tokenized_beside(void **state)
{
    (void)state;
    outcome o = harness_run(
        &h,
        WAT("(func $handle (result i32) (local $n i32)"
            "  (drop (memory.grow (i32.const 3)))"
            "  (memory.fill (i32.const 70000) (i32.const 98) (i32.const 20000))"
            "  (local.set $n (call $tokenize (call $model_open (i32.const 0) (i32.const 0)) (i32.const 70000) (i32.const 20000) (i32.const 1) (i32.const 100000) (i32.const 20000)))"
            "  (if (i32.ne (local.get $n) (i32.const 20000)) (then unreachable))"
            "  (if (i32.ne (i32.load (i32.const 179996)) (i32.const 98)) (then unreachable))"
            "  (if (i32.ne (call $constrain (call $open) (i32.const 3) (i32.const 70000) (i32.const 20)) (i32.const -1)) (then unreachable))"
            "  (i32.const 0))"),
        "");
    assert_string_equal(o.message, "");
    assert_holds(o.log, "no grammars here");
}

static void the_same_seed_gives_the_same_bytes(void **state)
{
    (void)state;
    static const char guest[] = WAT(
        "(data (i32.const 200) \"{\\\"max_tokens\\\":9,\\\"temperature\\\":1}\\00\")"
        "(func $handle (result i32) (local $i i32)"
        "  (loop $l (i64.store (i32.const 600) (call $random))"
        "    (drop (call $respond_text (i32.const 600) (i32.const 8)))"
        "    (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 4))))"
        "  (drop (call $gen (call $open) (i32.const 200)))"
        "  (drop (call $respond_text (i32.const 1070) (i32.const 20)))"
        "  (i32.const 0))");
    outcome first = harness_run(&h, guest, ""), second = harness_run(&h, guest, "");
    assert_string_equal(first.message, "");
    assert_int_equal(first.text_size, second.text_size);
    assert_memory_equal(first.text, second.text, 48);
}

static void an_answer_may_be_json_or_an_error(void **state)
{
    (void)state;
    outcome o = harness_run(
        &h,
        WAT("(data (i32.const 200) \"{\\\"a\\\": [1, 2]}\\00no such city\")"
            "(func $handle (result i32)"
            "  (drop (call $log (i32.const 1) (i32.const 214) (i32.const 2)))"
            "  (drop (call $respond_json (i32.const 200) (call $len (i32.const 200))))"
            "  (call $respond_error (i32.const -2) (i32.const 214) (i32.const 12)))"),
        "");
    assert_int_equal(o.status, REALM_NOT_FOUND);
    assert_string_equal(o.message, "no such city");
    assert_string_equal(o.json, "{\"a\": [1, 2]}");
    assert_holds(o.log, "1 no");
}

#define STEPS(N)                                                                                   \
    "  (local.set $s (call $open))"                                                                \
    "  (loop $l (drop (call $step (local.get $s) (i32.const -1)))"                                 \
    "    (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const " N  \
    "))))"                                                                                         \
    "  (i32.const 0))"

/* A thread that lost its core sleeps for a while, and one whose guest's turn was interrupted keeps away for 64
 * turns; so requests with more turns than that come until one was lucky. */
static void a_thread_whose_guest_waits_computes_for_the_engine(void **state)
{
    (void)state;
    harness slow;
    harness_open(&slow, &(fake_options){.token_ns = 500000}, 0);
    program *p = harness_program(
        &slow, WAT("(func $handle (result i32) (local $s i32) (local $i i32)" STEPS("80")));
    uint64_t end = clock_ns() + A_MINUTE_NS;
    do
        assert_string_equal(harness_run_program(&slow, p, "").message, "");
    while (fake_engine_lent(slow.engine) == 0 && clock_ns() < end);
    program_release(p);
    assert_true(fake_engine_lent(slow.engine) >= 1);
    harness_assert_clean(&slow);
    harness_close(&slow);
}

/* It would lose its seat at every turn, and the engine's other guests a thread that is awake. The guest counts
 * so far that no core does it in the millisecond that a quick turn may take. */
static void a_thread_with_a_slow_guest_does_not(void **state)
{
    (void)state;
    harness slow;
    harness_open(&slow, &(fake_options){.token_ns = 2000000}, 0);
    outcome o = harness_run(
        &slow,
        WAT("(func $handle (result i32) (local $s i32) (local $i i32) (local $n i64)"
            "  (loop $spin (br_if $spin (i64.lt_u (local.tee $n (i64.add (local.get $n) (i64.const 1)))"
            "    (i64.const 30000000))))" STEPS("10")),
        "");
    assert_string_equal(o.message, "");
    assert_int_equal(fake_engine_lent(slow.engine), 0);
    harness_assert_clean(&slow);
    harness_close(&slow);
}

typedef struct rest {
    atomic_int held, done;
} rest;

static void note_done(void *context, const sandbox_result *result)
{
    rest *r = context;
    assert_string_equal(result->message, "");
    atomic_store(&r->done, 1);
}

static void hold_for_a_second(void *context, const char *text, size_t size)
{
    (void)text;
    (void)size;
    atomic_store(&((rest *)context)->held, 1);
}

/* Steps of two milliseconds, and then one of a second: the thread is awake for the ends of the first, and asleep
 * in the last. */
static void a_thread_whose_guest_waits_for_a_device_watches_for_the_end_of_the_step(void **state)
{
    (void)state;
    rest r = {0};
    harness far;
    harness_open(&far,
                 &(fake_options){.token_ns = 2000000, .computes_elsewhere = 1, .held = &r.held}, 0);
    program *p = harness_program(
        &far, WAT("(data (i32.const 300) \"x\")"
                  "(func $handle (result i32) (local $s i32) (local $i i32)"
                  "  (local.set $s (call $open))"
                  "  (loop $l (drop (call $step (local.get $s) (i32.const -1)))"
                  "    (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1)))"
                  "      (i32.const 30))))"
                  "  (drop (call $respond_text (i32.const 300) (i32.const 1)))"
                  "  (drop (call $step (local.get $s) (i32.const -1)))"
                  "  (call $respond_text (i32.const 300) (i32.const 1)))"));
    sandbox_request *started;
    sandbox_input in = {.program = p,
                        .tenant = far.tenant,
                        .context = &r,
                        .on_text = hold_for_a_second,
                        .on_done = note_done};
    realm_error error;
    assert_status(sandbox_start(&started, far.host, &in, &error), REALM_OK, error);
    while (!atomic_load(&r.held))
        usleep(1000);
    clock_t cpu = clock();
    uint64_t began = clock_ns();
    usleep(1000000);
    double used_s = (double)(clock() - cpu) / CLOCKS_PER_SEC;
    double waited_s = (double)(clock_ns() - began) / 1e9;
    atomic_store(&r.held, 0);
    assert_int_equal(fake_engine_lent(far.engine), 0);
    if (used_s > waited_s / 2)
        fail_msg("%g s of CPU time in a wait of %g s", used_s, waited_s);
    while (!atomic_load(&r.done))
        usleep(1000);
    sandbox_release(started);
    program_release(p);
    harness_assert_clean(&far);
    harness_close(&far);
}

static void many_requests_take_turns(void **state)
{
    (void)state;
    program *p = harness_program(
        &h,
        WAT("(func $handle (result i32) (local $s i32) (local $i i32)"
            "  (local.set $s (call $open))"
            "  (loop $l (drop (call $step (local.get $s) (i32.const -1)))"
            "    (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 20))))"
            "  (i32.const 0))"));
    for (int i = 0; i < 60; i++) { /* many more than there are instances */
        sandbox_input in = {.program = p, .tenant = h.tenant};
        realm_error error;
        assert_status(sandbox_start(NULL, h.host, &in, &error), REALM_OK, error);
    }
    assert_string_equal(harness_run_program(&h, p, "").message, "");
    sandbox_host_stats stats;
    do
        sandbox_host_stats_get(h.host, &stats);
    while (stats.started != stats.finished);
    assert_int_equal(stats.failed, 1); /* the one that answered with an error on purpose */
    program_release(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_program_answers_with_what_it_read),
        cmocka_unit_test(a_program_steps_a_session_token_by_token),
        cmocka_unit_test(generate_streams_what_stepping_would_give),
        cmocka_unit_test(generate_gives_tokens_with_their_log_probabilities),
        cmocka_unit_test(generate_wakes_the_guest_and_goes_on),
        cmocka_unit_test(a_result_that_did_not_fit_is_given_again),
        cmocka_unit_test(steps_of_several_sessions_are_waited_for_together),
        cmocka_unit_test(waiting_ends_at_its_timeout),
        cmocka_unit_test(logits_are_read_whole_or_the_largest),
        cmocka_unit_test(an_embedding_comes_as_floats),
        cmocka_unit_test(tensors_are_computed_when_they_are_read),
        cmocka_unit_test(state_outlives_the_request),
        cmocka_unit_test(a_program_calls_another_and_reads_its_answer),
        cmocka_unit_test(a_64_bit_program_does_the_same),
        cmocka_unit_test(a_64_bit_program_that_cannot_map_has_the_usual_limit),
        cmocka_unit_test(long_texts_are_tokenized_beside),
        cmocka_unit_test(the_same_seed_gives_the_same_bytes),
        cmocka_unit_test(an_answer_may_be_json_or_an_error),
        cmocka_unit_test(a_thread_whose_guest_waits_computes_for_the_engine),
        cmocka_unit_test(a_thread_with_a_slow_guest_does_not),
        cmocka_unit_test(a_thread_whose_guest_waits_for_a_device_watches_for_the_end_of_the_step),
        cmocka_unit_test(many_requests_take_turns),
    };
    return cmocka_run_group_tests_name("sandbox", tests, setup, teardown);
}
