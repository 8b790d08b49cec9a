/* sharing_test.c: guests' turns that the engine's thread shares in (sandbox/shared_turns.h). Whether it comes
 * to share in any is up to the machine, so rounds repeat until it did. */
#include <pthread.h>
#include <unistd.h>

#include "engine/errand.h"
#include "harness.h"

#define N_GUESTS 12
#define STEPS    "40"

static harness h;

typedef struct guest {
    sandbox_request *request;
    outcome o;
    int on_engine; /* callbacks that came on the engine's thread */
    int cancel_at; /* cancels itself when it has said so many pieces; 0: never */
    int n_pieces;
    atomic_int started, done;
} guest;

static void on_text(void *context, const char *text, size_t size)
{
    guest *g = context;
    g->on_engine += fake_engine_is_here(h.engine);
    if (g->o.text_size + size < sizeof g->o.text)
        memcpy(g->o.text + g->o.text_size, text, size);
    g->o.text_size += size;
    if (++g->n_pieces != g->cancel_at)
        return;
    while (!atomic_load(&g->started))
        ; /* sandbox_start has not yet returned, and request with it */
    sandbox_cancel(g->request);
}

static void on_log(void *context, int level, const char *text, size_t size)
{
    guest *g = context;
    g->on_engine += fake_engine_is_here(h.engine);
    (void)level;
    on_text(g, "[", 1);
    on_text(g, text, size);
    on_text(g, "]", 1);
}

static void on_done(void *context, const sandbox_result *result)
{
    guest *g = context;
    g->on_engine += fake_engine_is_here(h.engine);
    g->o.status = result->status;
    snprintf(g->o.message, sizeof g->o.message, "%s", result->message);
    g->o.usage = result->usage;
    atomic_store(&g->done, 1);
}

static void start(guest *g, program *p)
{
    sandbox_input in = {.program = p,
                        .tenant = h.tenant,
                        .id = "t",
                        .context = g,
                        .on_text = on_text,
                        .on_log = on_log,
                        .on_done = on_done};
    realm_error error;
    assert_status(sandbox_start(&g->request, h.host, &in, &error), REALM_OK, error);
    atomic_store(&g->started, 1);
}

static void finish(guest *guests, int count)
{
    for (int i = 0; i < count; i++) {
        while (!atomic_load(&guests[i].done))
            usleep(200);
        sandbox_release(guests[i].request);
        assert_int_equal(guests[i].on_engine, 0);
    }
}

/* Until the engine's thread has run some of their turns. */
static void rounds(program *const *programs, guest *guests, int cancel_at,
                   void (*check)(const guest *))
{
    harness_signals();
    uint64_t end = clock_ns() + A_MINUTE_NS;
    do {
        memset(guests, 0, N_GUESTS * sizeof *guests);
        for (int i = 0; i < N_GUESTS; i++) {
            guests[i].cancel_at = i % 3 == 1 ? cancel_at : 0;
            start(&guests[i], programs[i % 3]);
        }
        finish(guests, N_GUESTS);
        check(guests);
    } while (fake_engine_errands(h.engine) < 4 && clock_ns() < end);
    assert_true(fake_engine_errands(h.engine) >= 4);
}

/* Chooses a token, says its number modulo 10 and logs a star at every eighth step. AT_EACH is done before. */
#define STEPPER(AT_EACH)                                                                           \
    WAT("(data (i32.const 300) \"0123456789*\")"                                                   \
        "(func $handle (result i32) (local $s i32) (local $i i32) (local $n i64)"                  \
        "  (local.set $s (call $open))"                                                            \
        "  (loop $l"                                                                               \
        "    (drop (call $step (local.get $s) (i32.const -1)))" AT_EACH                            \
        "    (if (i32.eqz (i32.and (local.get $i) (i32.const 7))) (then"                           \
        "      (drop (call $log (i32.const 1) (i32.const 310) (i32.const 1)))))"                   \
        "    (drop (call $respond_text (i32.add (i32.const 300)"                                   \
        "      (i32.rem_u (local.get $i) (i32.const 10))) (i32.const 1)))"                         \
        "    (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1)))"            \
        "      (i32.const " STEPS "))))"                                                           \
        "  (i32.const 0))")

static const char all_said[] = "[*]01234567[*]89012345[*]67890123[*]45678901[*]23456789";

static void all_say_all(const guest *guests)
{
    for (int i = 0; i < N_GUESTS; i++) {
        assert_string_equal(guests[i].o.message, "");
        assert_string_equal(guests[i].o.text, all_said);
        assert_int_equal(guests[i].o.usage.generated_tokens, 40);
    }
}

static void what_guests_say_comes_whole_and_in_order_on_a_thread_of_the_sandbox(void **state)
{
    (void)state;
    program *p = harness_program(&h, STEPPER(""));
    guest guests[N_GUESTS];
    rounds((program *[]){p, p, p}, guests, 0, all_say_all);
    program_release(p);
}

static void some_trap(const guest *guests)
{
    for (int i = 0; i < N_GUESTS; i++) {
        if (i % 3 == 0) {
            assert_string_equal(guests[i].o.message, "");
            assert_string_equal(guests[i].o.text, all_said);
        } else if (i % 3 == 1) {
            assert_int_equal(guests[i].o.status, REALM_TRAPPED);
            assert_non_null(strstr(guests[i].o.message, "unreachable"));
            assert_string_equal(guests[i].o.text, "[*]01234567[*]8901");
        } else {
            assert_int_equal(guests[i].o.status, REALM_TRAPPED);
            assert_non_null(strstr(guests[i].o.message, "out of bounds"));
            assert_string_equal(guests[i].o.text, "[*]01234567[*]89012345[*]6789");
        }
    }
}

static void a_guest_that_traps_in_a_shared_turn_ends_alone(void **state)
{
    (void)state;
    program *good = harness_program(&h, STEPPER(""));
    program *stops = harness_program(
        &h, STEPPER("(if (i32.eq (local.get $i) (i32.const 12)) (then unreachable))"));
    program *wild = harness_program(&h, STEPPER("(if (i32.eq (local.get $i) (i32.const 20)) (then"
                                                "  (drop (i32.load (i32.const -4)))))"));
    guest guests[N_GUESTS];
    rounds((program *[]){good, stops, wild}, guests, 0, some_trap);
    program_release(good);
    program_release(stops);
    program_release(wild);
}

static void some_are_cancelled(const guest *guests)
{
    for (int i = 0; i < N_GUESTS; i++) {
        assert_int_equal(guests[i].o.status, i % 3 == 1 ? REALM_CANCELLED : REALM_OK);
        assert_memory_equal(guests[i].o.text, all_said, guests[i].o.text_size);
        if (i % 3 != 1)
            assert_string_equal(guests[i].o.text, all_said);
    }
}

static void a_guest_may_be_cancelled_by_who_listens_to_it(void **state)
{
    (void)state;
    program *p = harness_program(&h, STEPPER(""));
    guest guests[N_GUESTS];
    rounds((program *[]){p, p, p}, guests, 9, some_are_cancelled);
    program_release(p);
}

static void slow_ones_are_stopped(const guest *guests)
{
    for (int i = 0; i < N_GUESTS; i++) {
        assert_string_equal(guests[i].o.message, "");
        assert_string_equal(guests[i].o.text, all_said);
    }
}

/* A few milliseconds at one of its steps: longer than a tick, so that it yields on whichever thread it runs, and goes
 * on on its own. */
static void a_guest_that_computes_for_long_goes_on_elsewhere(void **state)
{
    (void)state;
    program *good = harness_program(&h, STEPPER(""));
    program *slow = harness_program(
        &h, STEPPER("(if (i32.eq (local.get $i) (i32.const 14)) (then"
                    "  (loop $spin (br_if $spin (i64.lt_u (local.tee $n (i64.add (local.get $n)"
                    "    (i64.const 1))) (i64.const 30000000))))))"));
    guest guests[N_GUESTS];
    rounds((program *[]){good, slow, good}, guests, 0, slow_ones_are_stopped);
    program_release(good);
    program_release(slow);
}

/* A guest that is alone: its turns are the engine's thread's while its own computes for the engine. */
static void alone(const char *wat, int cancel_at, void (*check)(const guest *))
{
    program *p = harness_program(&h, wat);
    uint64_t end = clock_ns() + A_MINUTE_NS;
    harness_signals();
    do {
        guest g = {.cancel_at = cancel_at};
        start(&g, p);
        finish(&g, 1);
        check(&g);
    } while (fake_engine_errands(h.engine) < 4 && clock_ns() < end);
    assert_true(fake_engine_errands(h.engine) >= 4);
    program_release(p);
}

static void says_all(const guest *g)
{
    assert_string_equal(g->o.message, "");
    assert_string_equal(g->o.text, all_said);
}

static void is_cancelled(const guest *g)
{
    assert_int_equal(g->o.status, REALM_CANCELLED);
    assert_memory_equal(g->o.text, all_said, g->o.text_size);
}

static void traps(const guest *g)
{
    assert_int_equal(g->o.status, REALM_TRAPPED);
    assert_string_equal(g->o.text, "[*]01234567[*]8901");
}

static void says_nothing(const guest *g)
{
    assert_string_equal(g->o.message, "");
    assert_int_equal(g->o.text_size, 0);
    assert_int_equal(g->o.usage.generated_tokens, 80);
}

static void a_guest_alone_is_run_by_the_engines_thread(void **state)
{
    (void)state;
    alone(STEPPER(""), 0, says_all);
}

static void a_guest_alone_may_say_nothing_to_the_end(void **state)
{
    (void)state;
    alone(WAT("(func $handle (result i32) (local $s i32) (local $i i32)"
              "  (local.set $s (call $open))"
              "  (loop $l (drop (call $step (local.get $s) (i32.const -1)))"
              "    (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1)))"
              "      (i32.const 80))))"
              "  (i32.const 0))"),
          0, says_nothing);
}

static void a_guest_alone_may_trap_on_the_engines_thread(void **state)
{
    (void)state;
    alone(STEPPER("(if (i32.eq (local.get $i) (i32.const 12)) (then unreachable))"), 0, traps);
}

static void a_guest_alone_may_be_cancelled(void **state)
{
    (void)state;
    alone(STEPPER(""), 9, is_cancelled);
}

static void a_guest_alone_may_compute_for_long(void **state)
{
    (void)state;
    alone(STEPPER("(if (i32.eq (local.get $i) (i32.const 14)) (then"
                  "  (loop $spin (br_if $spin (i64.lt_u (local.tee $n (i64.add (local.get $n)"
                  "    (i64.const 1))) (i64.const 30000000))))))"),
          0, says_all);
}

/* ---- the slot alone ------------------------------------------------------------------------------------ */

typedef struct pieces {
    errand_slot slot;
    int left; /* guarded by the slot's rules alone: TSan watches */
    atomic_int stop;
    atomic_int taken;
} pieces;

static int take_piece(void *context)
{
    pieces *p = context;
    if (p->left == 0)
        return 0;
    p->left--;
    return 1;
}

static void *take_pieces(void *context)
{
    pieces *p = context;
    while (!atomic_load(&p->stop))
        if (errand_run(&p->slot))
            atomic_fetch_add(&p->taken, 1);
    return NULL;
}

static void a_recalled_errand_is_the_callers_again(void **state)
{
    (void)state;
    pieces p = {0};
    engine_errand errand = {take_piece, &p}, other = {take_piece, &p};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, take_pieces, &p), 0);
    int given = 0, left = 0;
    for (int i = 0; i < 20000; i++) {
        p.left = 3;
        given += 3;
        assert_true(errand_offer(&p.slot, &errand));
        assert_false(errand_offer(&p.slot, &other));
        if (i % 64 == 0)
            usleep(100);
        errand_recall(&p.slot);
        left += p.left;
        p.left = 0;
    }
    atomic_store(&p.stop, 1);
    pthread_join(thread, NULL);
    assert_int_equal(atomic_load(&p.taken), given - left);
}

/* Guests' next steps end while others' turns are still being shared. */
static int set_up_impatient(void **state)
{
    (void)state;
    harness_open(&h, &(fake_options){.gathers = 1}, N_GUESTS);
    return 0;
}

static int set_up(void **state)
{
    (void)state;
    harness_open(&h, &(fake_options){.gathers = N_GUESTS}, N_GUESTS);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    harness_assert_clean(&h);
    harness_close(&h);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(
            what_guests_say_comes_whole_and_in_order_on_a_thread_of_the_sandbox, set_up, tear_down),
        {"what_guests_say_comes_whole_and_in_order_on_a_thread_of_the_sandbox, impatiently",
         what_guests_say_comes_whole_and_in_order_on_a_thread_of_the_sandbox, set_up_impatient,
         tear_down, NULL},
        {"a_guest_that_traps_in_a_shared_turn_ends_alone, impatiently",
         a_guest_that_traps_in_a_shared_turn_ends_alone, set_up_impatient, tear_down, NULL},
        {"a_guest_may_be_cancelled_by_who_listens_to_it, impatiently",
         a_guest_may_be_cancelled_by_who_listens_to_it, set_up_impatient, tear_down, NULL},
        cmocka_unit_test_setup_teardown(a_guest_that_traps_in_a_shared_turn_ends_alone, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_guest_may_be_cancelled_by_who_listens_to_it, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_guest_that_computes_for_long_goes_on_elsewhere, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_guest_alone_is_run_by_the_engines_thread, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_guest_alone_may_say_nothing_to_the_end, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_guest_alone_may_trap_on_the_engines_thread, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_guest_alone_may_be_cancelled, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_guest_alone_may_compute_for_long, set_up, tear_down),
        cmocka_unit_test(a_recalled_errand_is_the_callers_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
