/* What a program can do: each host function as a correct program uses it, against an engine whose
 * answers are known. */
#include "harness.h"

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
    outcome o = harness_run(&h, WAT(
        "(func $handle (result i32) (local $n i32)"
        "  (local.set $n (call $request_read (i32.const 0) (i32.const 100) (i32.const 1000)))"
        "  (call $respond_text (i32.const 100) (local.get $n)))"), "hello");
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
    outcome o = harness_run(&h, WAT(
        "(func $handle (result i32) (local $s i32) (local $i i32)"
        "  (local.set $s (call $open))"
        "  (loop $l"
        "    (call $say (call $step (local.get $s) (i32.const -1)))"
        "    (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 5))))"
        "  (i32.sub (call $session_length (local.get $s)) (i32.const 8)))"), "");
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
    outcome o = harness_run(&h, WAT(
        "(data (i32.const 200) \"{\\\"max_tokens\\\":5,\\\"stream\\\":true,\\\"return_text\\\":true}\")"
        "(func $handle (result i32) (local $n i32)"
        "  (local.set $n (call $generate (call $open) (i32.const 200) (i32.const 48) (i32.const 1000) (i32.const 2000)))"
        "  (call $respond_json (i32.const 1000) (local.get $n)))"), "");
    assert_string_equal(o.message, "");
    assert_string_equal(o.text, expected);
    assert_holds(o.json, "\"finish_reason\":\"length\",\"n_tokens\":5");
    assert_holds(o.json, expected);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_program_answers_with_what_it_read),
        cmocka_unit_test(a_program_steps_a_session_token_by_token),
        cmocka_unit_test(generate_streams_what_stepping_would_give),
    };
    return cmocka_run_group_tests_name("sandbox", tests, setup, teardown);
}
