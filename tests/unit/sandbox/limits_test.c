/* What a program cannot do: every limit, and every wrong argument, ends that request with a sentence
 * that says why, leaves nothing behind, and does not touch a neighbour that generates meanwhile. */
#include "harness.h"

#include <unistd.h>

static harness h;

#define TOKEN_NS 300000

/* ---- the neighbour: runs all the time, its tokens must be the known ones ------------------------------ */

static program *neighbour_program;
static sandbox_tenant *neighbour_tenant;
static atomic_int neighbour_rounds, neighbour_failures, neighbours_alive, stopping;
#define NEIGHBOUR_TOKENS 20
static char expected[NEIGHBOUR_TOKENS + 1];

typedef struct round_state {
    char text[64];
    size_t size;
} round_state;

static void start_neighbour(void);

static void neighbour_text(void *context, const char *text, size_t size)
{
    round_state *r = context;
    for (size_t i = 0; i < size && r->size < sizeof r->text - 1; i++)
        r->text[r->size++] = text[i];
}

static void neighbour_done(void *context, const sandbox_result *result)
{
    round_state *r = context;
    if (result->status != REALM_OK || strcmp(r->text, expected) != 0) {
        fprintf(stderr, "neighbour: %s, '%s' for '%s'\n", result->message, r->text, expected);
        atomic_fetch_add(&neighbour_failures, 1);
    }
    atomic_fetch_add(&neighbour_rounds, 1);
    free(r);
    if (!atomic_load(&stopping))
        start_neighbour();
    atomic_fetch_sub(&neighbours_alive, 1);
}

static void start_neighbour(void)
{
    round_state *r = calloc(1, sizeof *r);
    sandbox_input in = {.program = neighbour_program,
                        .tenant = neighbour_tenant,
                        .context = r,
                        .on_text = neighbour_text,
                        .on_done = neighbour_done};
    atomic_fetch_add(&neighbours_alive, 1);
    if (!r || sandbox_start(NULL, h.host, &in, NULL) != REALM_OK)
        abort();
}

static int setup(void **state)
{
    (void)state;
    harness_open(&h, &(fake_options){.token_ns = TOKEN_NS}, 0);
    h.grants.limits.cpu_ns = 2 *
                             A_MINUTE_NS; /* what another limit ends, no machine is too slow for */
    h.grants.limits.slice_ns = 2000000;
    h.grants.limits.output_bytes = 100000;
    h.grants.limits.log_bytes = 200;
    h.grants.limits.sessions = 4;
    h.grants.limits.tensor_bytes = 1000;
    h.grants.limits.state_bytes = 64;
    h.grants.limits.memory_bytes = 1 << 20;
    h.grants.limits.memory64_bytes = 1 << 20;
    h.grants.limits.table_elements = 100;
    neighbour_tenant = h.tenant;
    h.tenant = NULL;
    harness_tenant(&h);

    token_id tokens[NEIGHBOUR_TOKENS + 3] = {'a', 'b', 'c'};
    for (int i = 0; i < NEIGHBOUR_TOKENS; i++)
        expected[i] = (char)(tokens[3 + i] = fake_next_token(tokens, 3 + i));
    neighbour_program = harness_program(
        &h,
        WAT("(data (i32.const 200) \"{\\\"max_tokens\\\":10,\\\"stream\\\":true}\\00\")"
            "(func $handle (result i32) (local $s i32) (local $i i32)"
            "  (local.set $s (call $open))"
            "  (drop (call $gen (local.get $s) (i32.const 200)))"
            "  (loop $l (call $say (call $step (local.get $s) (i32.const -1)))"
            "    (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 10))))"
            "  (i32.const 0))"));
    start_neighbour();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    int before = atomic_load(&neighbour_rounds);
    while (atomic_load(&neighbour_rounds) < before + 2) /* it still runs */
        usleep(1000);
    atomic_store(&stopping, 1);
    while (atomic_load(&neighbours_alive))
        usleep(1000);
    assert_int_equal(atomic_load(&neighbour_failures), 0);
    harness_assert_clean(&h);
    program_release(neighbour_program);
    sandbox_tenant_release(neighbour_tenant);
    harness_close(&h);
    return 0;
}

/* The request ends so, and the neighbour got on with its work meanwhile. */
static outcome fails(const char *wat, realm_status status, const char *part)
{
    outcome o = harness_run(&h, wat, "");
    if (o.status != status || !strstr(o.message, part))
        fail_msg("%s: \"%s\"; expected %s and \"%s\"", realm_status_name(o.status), o.message,
                 realm_status_name(status), part);
    return o;
}

#define HANDLE(body)            WAT("(func $handle (result i32) " body ")")
#define TRY(body, status, part) fails(HANDLE(body " (i32.const 0)"), status, part)

/* ---- time ---------------------------------------------------------------------------------------------- */

static int limit_cpu(void **state)
{
    *state = h.tenant;
    h.tenant = NULL;
    h.grants.limits.cpu_ns = 60000000;
    harness_tenant(&h);
    return 0;
}

static int limit_cpu_no_more(void **state)
{
    sandbox_tenant_release(h.tenant);
    h.tenant = *state;
    h.grants.limits.cpu_ns = 2 * A_MINUTE_NS;
    return 0;
}

static void a_guest_that_spins_is_ended_at_its_cpu_limit(void **state)
{
    (void)state;
    int is_close = 0, neighbour_went_on = 0;
    uint64_t end = clock_ns() + A_MINUTE_NS;
    while (!(is_close && neighbour_went_on) && clock_ns() < end) {
        int before = atomic_load(&neighbour_rounds);
        outcome o = TRY("(loop $l (br $l))", REALM_QUOTA, "used its 60 ms of CPU time");
        assert_true(o.usage.cpu_ns >= 60000000);
        is_close |= o.usage.cpu_ns < 90000000; /* more where the ticker has no core */
        neighbour_went_on |= atomic_load(&neighbour_rounds) > before;
    }
    assert_true(is_close && neighbour_went_on);
}

static void a_start_function_that_spins_is_ended_too(void **state)
{
    (void)state;
    fails(WAT("(func $s (loop $l (br $l))) (start $s) (func $handle (result i32) (i32.const 0))"),
          REALM_QUOTA, "CPU time");
    fails("(module (memory (export \"memory\") 1)"
          "(func (export \"realm_abi\") (result i32) (loop $l (br $l)) (i32.const 1))"
          "(func (export \"realm_handle\") (result i32) (i32.const 0)))",
          REALM_QUOTA, "CPU time");
}

static void host_calls_in_a_loop_count_as_cpu_time(void **state)
{
    (void)state;
    TRY("(loop $l (drop (call $now_ms)) (br $l))", REALM_QUOTA, "CPU time");
    TRY("(loop $l (drop (call $session_close (call $session_open (call $model_open (i32.const 0) (i32.const 0)) (i32.const 0) (i32.const 0)))) (br $l))",
        REALM_QUOTA, "CPU time");
}

static void a_request_ends_at_its_deadline_wherever_it_is(void **state)
{
    (void)state;
    sandbox_tenant *kept = sandbox_tenant_retain(h.tenant);
    h.grants.limits.wall_ns = 30000000;
    h.grants.limits.cpu_ns = 10000000000ull;
    harness_tenant(&h);
    TRY("(loop $l (br $l))", REALM_DEADLINE, "longer than its 30 ms");
    fails(WAT("(data (i32.const 200) \"{\\\"max_tokens\\\":4000,\\\"stream\\\":true}\\00\")"
              "(func $handle (result i32) (call $gen (call $open) (i32.const 200)))"),
          REALM_DEADLINE, "30 ms");
    TRY("(loop $l (drop (call $session_close (call $open))) (br $l))", REALM_DEADLINE, "30 ms");
    sandbox_tenant_release(h.tenant);
    h.tenant = kept;
    h.grants.limits = (sandbox_limits){0};
}

/* ---- memory -------------------------------------------------------------------------------------------- */

static void recursion_ends_with_the_stack(void **state)
{
    (void)state;
    fails(
        WAT("(func $f (param i32) (result i32) (i32.add (call $f (i32.add (local.get 0) (i32.const 1))) (i32.const 1)))"
            "(func $handle (result i32) (call $f (i32.const 0)))"),
        REALM_TRAPPED, "call stack is exhausted");
    outcome o = fails(
        WAT("(func $deep (call $deep)) (func $handle (result i32) (call $deep) (i32.const 0))"),
        REALM_TRAPPED, "in function 'deep'");
    (void)o;
}

static void memory_grows_to_its_limit_and_not_past_it(void **state)
{
    (void)state;
    outcome o = harness_run(
        &h,
        HANDLE("(if (i32.ne (memory.grow (i32.const 15)) (i32.const 1)) (then unreachable))"
               "(if (i32.ne (memory.grow (i32.const 1)) (i32.const -1)) (then unreachable))"
               "(i32.store (i32.const 1048572) (i32.const 1))"
               "(call $request_read (i32.const 0) (i32.const 1000000) (i32.const 48576))"),
        "");
    assert_string_equal(o.message, "");
    assert_int_equal(o.usage.memory_bytes, 1 << 20);
    fails("(module (memory (export \"memory\") 17)" ABI
          "(func (export \"realm_handle\") (result i32) (i32.const 0)))",
          REALM_QUOTA, "memory begins with 1088 KiB, its tenant's limit is 1024 KiB");
    fails("(module (memory (export \"memory\") i64 17)" ABI
          "(func (export \"realm_handle\") (result i32) (i32.const 0)))",
          REALM_QUOTA, "memory begins with 1088 KiB");
}

static void tables_grow_to_their_limit(void **state)
{
    (void)state;
    realm_status status;
    const char *why = harness_refusal(
        &h,
        "(module (memory (export \"memory\") 1) (table 10000000 funcref)" ABI
        "(func (export \"realm_handle\") (result i32) (i32.const 0)))",
        &status);
    assert_true(status == REALM_INVALID || status == REALM_UNSUPPORTED);
    assert_holds(why, "table");
    fails("(module (memory (export \"memory\") 1) (table 200 funcref)" ABI
          "(func (export \"realm_handle\") (result i32) (i32.const 0)))",
          REALM_TRAPPED, "table");
}

static void wild_pointers_trap_with_the_arguments_name(void **state)
{
    (void)state;
    TRY("(drop (i32.load (i32.const -4)))", REALM_TRAPPED, "memory out of bounds");
    TRY("(drop (call $respond_text (i32.const 65530) (i32.const 7)))", REALM_TRAPPED,
        "respond_text: argument 'text': 7 bytes at 65530");
    TRY("(drop (call $respond_text (i32.const -1) (i32.const 1)))", REALM_TRAPPED, "at 4294967295");
    TRY("(drop (call $respond_text (i32.const 1) (i32.const -1)))", REALM_TRAPPED,
        "4294967295 bytes");
    TRY("(drop (call $request_read (i32.const 0) (i32.const 65536) (i32.const 1)))", REALM_TRAPPED,
        "'out'");
    TRY("(drop (call $log (i32.const 0) (i32.const -16) (i32.const 32)))", REALM_TRAPPED,
        "log: argument 'text'");
    TRY("(drop (call $feed (call $open) (i32.const 65532) (i32.const 2)))", REALM_TRAPPED,
        "feed: argument 'ids'");
    TRY("(drop (call $feed (call $open) (i32.const 4) (i32.const 0x40000000)))", REALM_TRAPPED,
        "'ids'");
    TRY("(drop (call $feed (call $open) (i32.const 4097) (i32.const 1)))", REALM_TRAPPED,
        "not a multiple of 4");
    TRY("(drop (call $logits (call $open) (i32.const 65000) (i32.const 256)))", REALM_TRAPPED,
        "logits: argument 'out'");
    TRY("(drop (call $top_logits (call $open) (i32.const 256) (i32.const 0) (i32.const 65000)))",
        REALM_TRAPPED, "'values'");
    TRY("(drop (call $wait_any (i32.const 65536) (i32.const 1) (i32.const 0)))", REALM_TRAPPED,
        "'sessions'");
    TRY("(drop (call $generate (call $open) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 99999)))",
        REALM_TRAPPED, "'out'");
    TRY("(drop (call $session_open (call $model_open (i32.const 0) (i32.const 0)) (i32.const 70000) (i32.const 0)))",
        REALM_TRAPPED, "'options'");
    TRY("(drop (call $state_put (i32.const 0) (i32.const 1) (i32.const 65535) (i32.const 2)))",
        REALM_TRAPPED, "'value'");
    TRY("(drop (call $tensor_write (call $tensor_new (i32.const 1) (i32.const 8)) (i32.const 0) (i32.const 65520) (i32.const 8)))",
        REALM_TRAPPED, "'from'");
}

static void lengths_that_wrap_64_bits_trap(void **state)
{
    (void)state;
    fails(WAT64("(func $handle (result i32) (call $respond_text (i64.const 16) (i64.const -8)))"),
          REALM_TRAPPED, "18446744073709551608 bytes at 16");
    fails(WAT64("(func $handle (result i32) (call $respond_text (i64.const -8) (i64.const 16)))"),
          REALM_TRAPPED, "16 bytes at 18446744073709551608");
    fails(
        WAT64(
            "(func $handle (result i32) (call $respond_text (i64.const 0x100000000) (i64.const 1)))"),
        REALM_TRAPPED, "1 bytes at 4294967296");
    /* 2^62 + 1 items of 4 bytes are 4 bytes if the product wraps */
    fails(WAT64("(func $handle (result i32)"
                "  (call $wait_any (i64.const 0) (i64.const 0x4000000000000001) (i32.const 0)))"),
          REALM_TRAPPED, "do not fit any memory");
}

static void text_floods_end_at_the_output_limit(void **state)
{
    (void)state;
    outcome o = TRY("(loop $l (drop (call $respond_text (i32.const 0) (i32.const 1000))) (br $l))",
                    REALM_QUOTA,
                    "respond_text: the output is larger than the tenant's limit of 100000 bytes");
    assert_int_equal(o.text_size, 100000);
    fails(WAT("(data (i32.const 200) \"{\\\"max_tokens\\\":4000,\\\"stream\\\":true}\\00\")"
              "(func $handle (result i32) (local $s i32) (local.set $s (call $open))"
              "  (drop (call $respond_text (i32.const 0) (i32.const 50000)))"
              "  (drop (call $respond_text (i32.const 0) (i32.const 49980)))"
              "  (call $gen (local.get $s) (i32.const 200)))"),
          REALM_QUOTA, "generate: the output is larger");
}

static void log_floods_are_cut_and_say_so(void **state)
{
    (void)state;
    outcome o = harness_run(
        &h,
        HANDLE(
            "(local $i i32) (loop $l (drop (call $log (i32.const 1) (i32.const 4096) (i32.const 1)))"
            "  (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 1000))))"
            "(i32.const 0)"),
        "");
    assert_int_equal(o.status, REALM_OK);
    assert_holds(o.log, "the request's log is full");
}

/* ---- handles ------------------------------------------------------------------------------------------- */

static void handles_that_are_stale_foreign_or_negative_trap(void **state)
{
    (void)state;
    TRY("(drop (call $session_length (i32.const -1)))", REALM_TRAPPED, "no open handle -1");
    TRY("(drop (call $session_length (i32.const 0)))", REALM_TRAPPED, "no open handle 0");
    TRY("(drop (call $session_length (i32.const 0x7fffffff)))", REALM_TRAPPED, "no open handle");
    TRY("(drop (call $session_length (i32.const 4096)))", REALM_TRAPPED, "no open handle 4096");
    TRY("(drop (call $session_length (call $model_open (i32.const 0) (i32.const 0))))",
        REALM_TRAPPED, "session_length: argument 'session': handle 4096 is a model, not a session");
    TRY("(local $s i32) (local.set $s (call $open)) (drop (call $session_close (local.get $s)))"
        "(drop (call $open)) (drop (call $step (local.get $s) (i32.const 97)))",
        REALM_TRAPPED, "step: argument 'session': there is no open handle");
    TRY("(local $t i32) (local.set $t (call $tensor_new (i32.const 1) (i32.const 1)))"
        "(drop (call $tensor_free (local.get $t))) (drop (call $tensor_free (local.get $t)))",
        REALM_TRAPPED, "tensor_free");
    TRY("(drop (call $matmul (call $open) (i32.const 1) (i32.const 1)))", REALM_TRAPPED,
        "is a session, not a tensor");
    TRY("(i32.store (i32.const 0) (call $open)) (i32.store (i32.const 4) (i32.const 77))"
        "(drop (call $wait_any (i32.const 0) (i32.const 2) (i32.const -1)))",
        REALM_TRAPPED, "item 1, 77, is no open session");
}

static void a_handle_is_never_given_twice(void **state)
{
    (void)state;
    outcome o = harness_run(
        &h,
        HANDLE(
            "(local $i i32) (local $t i32) (local $first i32)"
            "(local.set $first (call $tensor_new (i32.const 1) (i32.const 1)))"
            "(drop (call $tensor_free (local.get $first)))"
            "(loop $l"
            "  (local.set $t (call $tensor_new (i32.const 1) (i32.const 1)))"
            "  (if (i32.le_s (local.get $t) (i32.const 0)) (then unreachable))"
            "  (if (i32.eq (local.get $t) (local.get $first)) (then unreachable))"
            "  (drop (call $tensor_free (local.get $t)))"
            "  (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 20000))))"
            "(i32.const 0)"),
        "");
    assert_string_equal(o.message, "");
}

static void open_handles_are_counted(void **state)
{
    (void)state;
    sandbox_tenant *kept = sandbox_tenant_retain(h.tenant);
    h.grants.limits.tensor_bytes = 1 << 20;
    harness_tenant(&h);
    TRY("(loop $l (drop (call $tensor_new (i32.const 1) (i32.const 1))) (br $l))", REALM_QUOTA,
        "more than 4096 handles are open");
    sandbox_tenant_release(h.tenant);
    h.tenant = kept;
}

/* ---- capabilities ---------------------------------------------------------------------------------------- */

static void each_missing_capability_is_named(void **state)
{
    (void)state;
    static const struct {
        unsigned bit;
        const char *name, *guest;
    } cases[] = {
        {CAPABILITY_LOGITS, "logits",
         HANDLE("(call $logits (i32.const 1) (i32.const 0) (i32.const 0))")},
        {CAPABILITY_LOGITS, "logits",
         HANDLE("(call $top_logits (i32.const 1) (i32.const 1) (i32.const 0) (i32.const 0))")},
        {CAPABILITY_TENSORS, "tensors", HANDLE("(call $tensor_new (i32.const 1) (i32.const 1))")},
        {CAPABILITY_TENSORS, "tensors",
         HANDLE("(call $tensor_read (i32.const 1) (i32.const 1) (i32.const 0) (i32.const 1))")},
        {CAPABILITY_STATE, "state",
         HANDLE("(call $state_get (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))")},
        {CAPABILITY_STATE, "state",
         HANDLE("(call $state_put (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))")},
        {CAPABILITY_CALLS, "calls",
         HANDLE(
             "(call $call (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))")},
        {CAPABILITY_ADAPTERS, "adapters",
         HANDLE("(call $adapter_use (i32.const 1) (i32.const 0) (i32.const 0))")},
        {CAPABILITY_MODELS, "models", HANDLE("(call $model_open (i32.const 0) (i32.const 3))")},
    };
    sandbox_tenant *kept = h.tenant;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        h.tenant = NULL;
        h.grants.capabilities = CAPABILITY_ALL & ~cases[i].bit;
        harness_tenant(&h);
        char part[64];
        snprintf(part, sizeof part, "not granted the capability '%s'", cases[i].name);
        fails(cases[i].guest, REALM_DENIED, part);
        sandbox_tenant_release(h.tenant);
    }
    h.grants.capabilities = CAPABILITY_ALL;
    h.tenant = kept;
}

/* ---- quotas that a correct program may meet ---------------------------------------------------------------- */

static void quotas_come_back_as_statuses(void **state)
{
    (void)state;
    outcome o = harness_run(
        &h,
        HANDLE(
            "(local $i i32)"
            "(loop $l (drop (call $open)) (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 4))))"
            "(if (i32.ne (call $session_open (call $model_open (i32.const 0) (i32.const 0)) (i32.const 0) (i32.const 0)) (i32.const -5)) (then unreachable))"
            "(if (i32.ne (call $tensor_new (i32.const 10) (i32.const 26)) (i32.const -5)) (then unreachable))"
            "(if (i32.ne (call $tensor_new (i32.const 0x7fffffff) (i32.const 0x7fffffff)) (i32.const -5)) (then unreachable))"
            "(if (i32.ne (call $state_put (i32.const 0) (i32.const 10) (i32.const 0) (i32.const 60)) (i32.const -5)) (then unreachable))"
            "(if (i32.ne (call $state_put (i32.const 0) (i32.const 10) (i32.const 0) (i32.const 20)) (i32.const 0)) (then unreachable))"
            "(if (i32.ne (call $state_put (i32.const 1) (i32.const 9) (i32.const 0) (i32.const 54)) (i32.const -5)) (then unreachable))"
            "(drop (call $state_delete (i32.const 0) (i32.const 10)))"
            "(i32.const 0)"),
        "");
    assert_string_equal(o.message, "");
}

static void options_are_read_strictly(void **state)
{
    (void)state;
#define OPTIONS(text)                                                                              \
    WAT("(data (i32.const 200) \"" text "\\00\")"                                                  \
        "(func $handle (result i32) (call $gen (call $open) (i32.const 200)))")
    fails(OPTIONS("{\\\"max_tokens\\\":3,\\\"temprature\\\":1}"), REALM_INVALID,
          "there is no option 'temprature'");
    fails(OPTIONS("{}"), REALM_INVALID, "max_tokens");
    fails(OPTIONS("{\\\"max_tokens\\\":-3}"), REALM_INVALID, "max_tokens");
    fails(OPTIONS("{\\\"max_tokens\\\":3,\\\"logprobs\\\":21}"), REALM_INVALID, "logprobs");
    fails(OPTIONS("{\\\"max_tokens\\\":3,\\\"stop\\\":[\\\"\\\"]}"), REALM_INVALID, "stop");
    fails(OPTIONS("{\\\"max_tokens\\\":3,\\\"temperature\\\":-1}"), REALM_INVALID, "temperature");
    fails(OPTIONS("[1]"), REALM_INVALID, "an object is expected");
    fails(OPTIONS("{\\\"max_tokens\\\":3"), REALM_INVALID, "JSON");
}

static void programs_that_call_each_other_have_a_depth(void **state)
{
    (void)state;
    h.programs[0] = harness_program(
        &h,
        WAT("(data (i32.const 200) \"0\")"
            "(func $handle (result i32) (call $call (i32.const 200) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)))"));
    outcome o = harness_run_program(&h, h.programs[0], "");
    assert_int_equal(o.status, REALM_QUOTA);
    assert_holds(o.log, "more than 4 deep");
    program_release(h.programs[0]);
    h.programs[0] = NULL;
}

static void requests_at_once_are_counted(void **state)
{
    (void)state;
    sandbox_tenant *kept = h.tenant;
    h.tenant = NULL;
    h.grants.limits.requests = 2;
    harness_tenant(&h);
    program *p = harness_program(
        &h,
        HANDLE(
            "(drop (call $open)) (loop $l (drop (call $session_length (i32.const 8192))) (br $l)) (i32.const 0)"));
    sandbox_request *r[3] = {0};
    realm_error error;
    sandbox_input in = {.program = p, .tenant = h.tenant};
    assert_status(sandbox_start(&r[0], h.host, &in, &error), REALM_OK, error);
    assert_status(sandbox_start(&r[1], h.host, &in, &error), REALM_OK, error);
    assert_int_equal(sandbox_start(&r[2], h.host, &in, &error), REALM_QUOTA);
    assert_holds(error.message, "'acme' has 2 requests running");
    for (int i = 0; i < 2; i++) {
        sandbox_cancel(r[i]);
        sandbox_release(r[i]);
    }
    program_release(p);
    sandbox_tenant_release(h.tenant);
    h.tenant = kept;
    h.grants.limits.requests = 64;
}

/* ---- modules ------------------------------------------------------------------------------------------------ */

#define EXPORTS                                                                                    \
    "(memory (export \"memory\") 1)" ABI                                                           \
    "(func (export \"realm_handle\") (result i32) (i32.const 0))"

static void modules_that_do_not_fit_are_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *wat, *why;
    } cases[] = {
        {"(module (import \"wasi_snapshot_preview1\" \"fd_write\" (func (param i32))) " EXPORTS ")",
         "import 'wasi_snapshot_preview1.fd_write'"},
        {"(module (import \"realm\" \"format_disk\" (func)) " EXPORTS ")",
         "import 'realm.format_disk': there is no such host function"},
        {"(module (import \"realm\" \"feed\" (func (param i32) (result i32))) " EXPORTS ")",
         "import 'realm.feed' must be a function (i32, i32, i32) -> i32"},
        {"(module (import \"realm\" \"feed\" (global i32)) " EXPORTS ")", "must be a function"},
        {"(module (import \"realm64\" \"now_ms\" (func (result i64))) " EXPORTS ")",
         "32-bit memory can import from 'realm' only"},
        {"(module (import \"realm\" \"memory64_load_layer\" (func)) " EXPORTS ")",
         "no such host function"},
        {"(module (import \"realm\" \"memory\" (memory 1)) " ABI ")", "import 'realm.memory'"},
        {"(module " ABI ")", "export 'memory' is missing"},
        {"(module (memory (export \"memory\") 1))", "export 'realm_abi' is missing"},
        {"(module (memory (export \"memory\") 1) " ABI ")", "export 'realm_handle' is missing"},
        {"(module (memory (export \"memory\") 1) " ABI
         "(func (export \"realm_handle\") (result i64) (i64.const 0)))",
         "export 'realm_handle' is something else; it must be a function () -> i32"},
        {"(module (memory (export \"memory\") 1) " ABI
         "(global (export \"realm_handle\") i32 (i32.const 0)))",
         "something else"},
        {"(module (global (export \"memory\") i32 (i32.const 0)) " ABI ")",
         "export 'memory' is something else"},
        {"(module (memory 1) (memory 1))", "not a valid program"},
        {"(module (memory (export \"memory\") 1 1 shared) " ABI ")", "not a valid program"},
        {"(module (func (result i32) (i64.const 1)))", "not a valid program"},
        {"(modul", "WebAssembly text"},
        {"", "WebAssembly"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        realm_status status;
        const char *why = harness_refusal(&h, cases[i].wat, &status);
        assert_int_not_equal(status, REALM_OK);
        assert_holds(why, cases[i].why);
    }
    realm_error error;
    program *p;
    assert_int_not_equal(program_open(&p, h.host, "cut", "\0asm\1\0\0\0\5\200", 10, &error),
                         REALM_OK);
    assert_int_not_equal(program_open(&p, h.host, "cut", "\0asm", 4, &error), REALM_OK);
}

static void another_abi_version_is_refused(void **state)
{
    (void)state;
    fails(
        "(module (memory (export \"memory\") 1) (func (export \"realm_abi\") (result i32) (i32.const 2))"
        "(func (export \"realm_handle\") (result i32) (i32.const 0)))",
        REALM_UNSUPPORTED, "speaks version 2");
}

static void traps_say_what_and_where(void **state)
{
    (void)state;
    fails(WAT("(func $inner unreachable) (func $handle (result i32) (call $inner) (i32.const 0))"),
          REALM_TRAPPED, "trapped in function 'inner': it reached 'unreachable'");
    TRY("(drop (i32.div_u (i32.const 1) (i32.const 0)))", REALM_TRAPPED, "divided by zero");
    fails(HANDLE("(i32.const -2)"), REALM_NOT_FOUND, "the program returned NOT_FOUND (-2)");
    TRY("(drop (call $respond_json (i32.const 0) (i32.const 3)))", REALM_INVALID,
        "respond_json: JSON");
    TRY("(drop (call $respond_error (i32.const 5) (i32.const 0) (i32.const 3)))", REALM_INVALID,
        "is no error");
}

static void start_functions_may_use_the_host_within_their_memory(void **state)
{
    (void)state;
    outcome o = harness_run(
        &h,
        WAT("(data (i32.const 300) \"early\") (start $s)"
            "(func $s (drop (call $respond_text (i32.const 300) (i32.const 5))) (drop (call $step (call $open) (i32.const 97))))"
            "(func $handle (result i32) (i32.const 0))"),
        "");
    assert_string_equal(o.message, "");
    assert_string_equal(o.text, "early");
    fails(WAT("(start $s) (func $s (drop (call $respond_text (i32.const 65536) (i32.const 5))))"
              "(func $handle (result i32) (i32.const 0))"),
          REALM_TRAPPED, "respond_text: argument 'text'");
}

/* ---- tokens ------------------------------------------------------------------------------------------------- */

static atomic_llong tokens_left;

static int take_tokens(void *context, uint64_t count)
{
    (void)context;
    long long left = atomic_load(&tokens_left);
    while (left >= (long long)count)
        if (atomic_compare_exchange_weak(&tokens_left, &left, left - (long long)count))
            return 1;
    return 0;
}

static void give_tokens(void *context, uint64_t count)
{
    (void)context;
    atomic_fetch_add(&tokens_left, (long long)count);
}

static const sandbox_allowance tokens_of_test = {take_tokens, give_tokens, NULL};

/* Runs with so many tokens; what is left afterwards is what was not used, whatever happened. */
static outcome run_with_tokens(const char *wat, long long tokens)
{
    atomic_store(&tokens_left, tokens);
    h.allowance = &tokens_of_test;
    outcome o = harness_run(&h, wat, "");
    h.allowance = NULL;
    uint64_t paid = h.prompt_is_paid ? 0 : o.usage.prompt_tokens;
    assert_int_equal(tokens - atomic_load(&tokens_left), paid + o.usage.generated_tokens);
    return o;
}

static void tokens_are_taken_as_they_are_used_and_not_past_what_there_is(void **state)
{
    (void)state;
    static const char generates[] = WAT(
        "(data (i32.const 200) \"{\\\"max_tokens\\\":10,\\\"stream\\\":true}\\00\")"
        "(func $handle (result i32) (local $n i32) (local.set $n (call $gen (call $open) (i32.const 200)))"
        "  (if (i32.lt_s (local.get $n) (i32.const 0)) (then (return (local.get $n))))"
        "  (call $respond_json (i32.const 1024) (local.get $n)))");
    outcome o = run_with_tokens(generates, 3 + 10);
    assert_status(o.status, REALM_OK, o);
    assert_int_equal(o.usage.generated_tokens, 10);
    assert_string_equal(o.usage.model, h.model.name);
    assert_false(o.usage.ran_out); /* what it wanted was all that there was */
    o = run_with_tokens(generates, 3 + 7);
    assert_status(o.status, REALM_OK, o);
    assert_int_equal(o.text_size, 7);
    assert_memory_equal(o.text, expected, 7);
    assert_holds(o.json, "\"finish_reason\":\"length\",\"n_tokens\":7");
    assert_true(o.usage.ran_out);
    o = run_with_tokens(generates, 3);
    assert_int_equal(o.status, REALM_QUOTA);
    assert_holds(o.message, "generate: the budget of tokens is used up");
    assert_true(o.usage.ran_out);
    h.prompt_is_paid = 1;
    o = run_with_tokens(generates, 4);
    h.prompt_is_paid = 0;
    assert_int_equal(o.usage.generated_tokens, 4);
}

static void every_way_of_using_tokens_ends_with_them(void **state)
{
    (void)state;
    static const struct {
        const char *wat, *sentence;
        long long enough;
    } cases[] = {
        {HANDLE(
             "(local $s i32) (local $n i32)"
             "(local.set $s (call $session_open (call $model_open (i32.const 0) (i32.const 0)) (i32.const 0) (i32.const 0)))"
             "(call $feed (local.get $s) (i32.const 4096) (i32.const 3))"),
         "feed: the budget has fewer tokens left than the 3 of the prompt", 3},
        {HANDLE(
             "(call $embed (call $model_open (i32.const 0) (i32.const 0)) (i32.const 4096) (i32.const 3)"
             " (i32.const 0) (i32.const 0) (i32.const 2048) (i32.const 4))"),
         "embed: the budget has fewer tokens left than the 3 of the prompt", 3},
        {HANDLE("(call $step (call $open) (i32.const -1))"),
         "step: the budget of tokens is used up", 4},
        {HANDLE(
             "(i32.store (i32.const 0) (call $open)) (call $step_begin (i32.load (i32.const 0)) (i32.const 97))"),
         "step_begin: the budget of tokens is used up", 4},
        {WAT("(data (i32.const 200) \"1\") (func $handle (result i32)"
             " (call $call (i32.const 200) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)))"),
         "call: ", 4},
    };
    h.programs[1] = harness_program(&h, HANDLE("(call $step (call $open) (i32.const -1))"));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        outcome o = run_with_tokens(cases[i].wat, cases[i].enough);
        assert_status(o.status, REALM_OK, o);
        assert_string_equal(o.usage.model, h.model.name); /* a called program's too */
        assert_false(o.usage.ran_out);
        o = run_with_tokens(cases[i].wat, cases[i].enough - 1);
        assert_int_equal(o.status, REALM_QUOTA);
        assert_holds(o.message, cases[i].sentence);
        assert_true(o.usage.ran_out);
    }
    program_release(h.programs[1]);
    h.programs[1] = NULL;
}

/* A step that was not paid for has not begun. */
static void a_session_whose_step_was_refused_is_as_it_was(void **state)
{
    (void)state;
    outcome o = run_with_tokens(
        HANDLE(
            "(local $s i32) (local.set $s (call $open)) (i32.store (i32.const 0) (local.get $s))"
            "(if (i32.ne (call $step (local.get $s) (i32.const 97)) (i32.const 97)) (then unreachable))"
            "(if (i32.ne (call $step (local.get $s) (i32.const 97)) (i32.const -5)) (then unreachable))"
            "(if (i32.ne (call $step_begin (local.get $s) (i32.const 97)) (i32.const -5)) (then unreachable))"
            "(if (i32.ne (call $step_result (local.get $s)) (i32.const -2)) (then unreachable))"
            "(if (i32.ne (call $wait_any (i32.const 0) (i32.const 1) (i32.const -1)) (i32.const -2)) (then unreachable))"
            "(i32.sub (call $session_length (local.get $s)) (i32.const 4))"),
        4);
    assert_string_equal(o.message, "");
    assert_int_equal(o.usage.generated_tokens, 1);
}

/* ---- cancelling ---------------------------------------------------------------------------------------------- */

static atomic_llong cancelled_used;

static void cancelled_done(void *context, const sandbox_result *result)
{
    atomic_fetch_add(&cancelled_used,
                     (long long)(result->usage.prompt_tokens + result->usage.generated_tokens));
    atomic_store((atomic_int *)context, result->status == REALM_OK ? 1 : result->status);
}

static void a_request_can_be_cancelled_at_any_moment(void **state)
{
    (void)state;
    static const char *const guests[] = {
        HANDLE("(loop $l (br $l)) (i32.const 0)"),
        HANDLE(
            "(local $s i32) (local.set $s (call $open)) (loop $l (drop (call $step (local.get $s) (i32.const -1))) (br $l)) (i32.const 0)"),
        WAT("(data (i32.const 200) \"{\\\"max_tokens\\\":4000,\\\"stream\\\":true}\\00\")"
            "(func $handle (result i32) (call $gen (call $open) (i32.const 200)))"),
        HANDLE(
            "(local $t i32) (local.set $t (call $tensor_new (i32.const 4) (i32.const 4)))"
            "(loop $l (drop (call $tensor_read (local.get $t) (i32.const 0) (i32.const 0) (i32.const 4))) (br $l)) (i32.const 0)"),
        HANDLE(
            "(i32.store (i32.const 0) (call $open)) (loop $l (drop (call $step_begin (i32.load (i32.const 0)) (i32.const 97)))"
            "(drop (call $wait_any (i32.const 0) (i32.const 1) (i32.const -1))) (br $l)) (i32.const 0)"),
        WAT("(data (i32.const 200) \"1\") (func $handle (result i32)"
            " (call $call (i32.const 200) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)))"),
    };
    h.programs[1] = harness_program(&h, guests[1]);
    atomic_store(&tokens_left, 1000000000);
    harness_signals();
    for (size_t g = 0; g < sizeof guests / sizeof *guests; g++) {
        program *p = harness_program(&h, guests[g]);
        for (unsigned delay_us = 0; delay_us < 6000; delay_us = delay_us * 3 / 2 + 7) {
            atomic_int done = 0;
            sandbox_input in = {.program = p,
                                .tenant = h.tenant,
                                .allowance = &tokens_of_test,
                                .context = &done,
                                .on_done = cancelled_done};
            sandbox_request *r;
            realm_error error;
            assert_status(sandbox_start(&r, h.host, &in, &error), REALM_OK, error);
            usleep(delay_us);
            sandbox_cancel(r);
            sandbox_cancel(r);
            for (uint64_t end = clock_ns() + A_MINUTE_NS; !atomic_load(&done) && clock_ns() < end;)
                usleep(1000);
            assert_int_equal(atomic_load(&done), REALM_CANCELLED);
            sandbox_release(r);
        }
        program_release(p);
    }
    program_release(h.programs[1]);
    h.programs[1] = NULL;
    assert_int_equal(1000000000 - atomic_load(&tokens_left), atomic_load(&cancelled_used));
}

int main(void)
{
#define LIMITED(test) cmocka_unit_test_setup_teardown(test, limit_cpu, limit_cpu_no_more)
    const struct CMUnitTest tests[] = {
        LIMITED(a_guest_that_spins_is_ended_at_its_cpu_limit),
        LIMITED(a_start_function_that_spins_is_ended_too),
        LIMITED(host_calls_in_a_loop_count_as_cpu_time),
        cmocka_unit_test(recursion_ends_with_the_stack),
        cmocka_unit_test(memory_grows_to_its_limit_and_not_past_it),
        cmocka_unit_test(tables_grow_to_their_limit),
        cmocka_unit_test(wild_pointers_trap_with_the_arguments_name),
        cmocka_unit_test(lengths_that_wrap_64_bits_trap),
        cmocka_unit_test(text_floods_end_at_the_output_limit),
        cmocka_unit_test(log_floods_are_cut_and_say_so),
        cmocka_unit_test(handles_that_are_stale_foreign_or_negative_trap),
        cmocka_unit_test(a_handle_is_never_given_twice),
        cmocka_unit_test(open_handles_are_counted),
        cmocka_unit_test(each_missing_capability_is_named),
        cmocka_unit_test(quotas_come_back_as_statuses),
        cmocka_unit_test(options_are_read_strictly),
        cmocka_unit_test(programs_that_call_each_other_have_a_depth),
        cmocka_unit_test(requests_at_once_are_counted),
        cmocka_unit_test(modules_that_do_not_fit_are_refused_by_name),
        cmocka_unit_test(another_abi_version_is_refused),
        cmocka_unit_test(traps_say_what_and_where),
        cmocka_unit_test(start_functions_may_use_the_host_within_their_memory),
        cmocka_unit_test(tokens_are_taken_as_they_are_used_and_not_past_what_there_is),
        cmocka_unit_test(every_way_of_using_tokens_ends_with_them),
        cmocka_unit_test(a_session_whose_step_was_refused_is_as_it_was),
        cmocka_unit_test(a_request_can_be_cancelled_at_any_moment),
        cmocka_unit_test(a_request_ends_at_its_deadline_wherever_it_is),
    };
    return cmocka_run_group_tests_name("sandbox limits", tests, setup, teardown);
}
