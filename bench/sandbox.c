/* bench/sandbox.c: what the sandbox costs by itself, against an engine that does nothing.
 *
 *     bench_sandbox [--json]
 *
 * Four numbers, each the median of many runs: from sandbox_start to the guest's first instruction; a
 * whole empty request; a plain host call; a host call that suspends. The fake engine does its works
 * at once on the sandbox's own thread, so the last is what suspending, queueing and resuming cost
 * without the hop to another core, which is the engine's and the kernel's. Calls are measured in CPU
 * time, so that other work on the machine disturbs little. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "fake_engine.h"
#include "sandbox/sandbox.h"

#define STARTS           2000
#define ROUNDS           15
#define PLAIN_CALLS      2000000
#define SUSPENDING_CALLS 200000

#define HEAD                                                                                            \
    "(module (import \"realm\" \"request_read\" (func $request_read (param i32 i32 i32) (result i32)))" \
    "(import \"realm\" \"random\" (func $random (result i64)))"                                         \
    "(import \"realm\" \"model_open\" (func $model_open (param i32 i32) (result i32)))"                 \
    "(import \"realm\" \"session_open\" (func $session_open (param i32 i32 i32) (result i32)))"         \
    "(import \"realm\" \"session_length\" (func $session_length (param i32) (result i32)))"             \
    "(import \"realm\" \"feed\" (func $feed (param i32 i32 i32) (result i32)))"                         \
    "(import \"realm\" \"session_truncate\" (func $truncate (param i32 i32) (result i32)))"             \
    "(memory (export \"memory\") 16)"                                                                   \
    "(func (export \"realm_abi\") (result i32) (i32.const 1))"                                          \
    "(func $open (result i32) (call $session_open (call $model_open (i32.const 0) (i32.const 0))"       \
    "  (i32.const 0) (i32.const 0)))"                                                                   \
    "(func (export \"realm_handle\") (result i32) (local $i i32) (local $s i32) "

#define LOOP(count, body)                                                                          \
    "(loop $l " body                                                                               \
    " (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const " count \
    "))))"

#define TEXT_OF(number) #number
#define TEXT(number)    TEXT_OF(number)

static sandbox_host *host;
static sandbox_tenant *tenant;

static void die(const char *what, const char *why)
{
    fprintf(stderr, "bench_sandbox: %s: %s\n", what, why);
    exit(1);
}

static program *compile(const char *wat)
{
    program *p;
    realm_error error;
    if (program_open(&p, host, "bench", wat, strlen(wat), &error) != REALM_OK)
        die("program", error.message);
    return p;
}

static sandbox_usage run(program *p, uint64_t *whole_ns)
{
    sandbox_result result;
    buffer kept;
    uint64_t began = clock_ns();
    if (sandbox_run(host, &(sandbox_input){.program = p, .tenant = tenant}, &result, &kept) !=
        REALM_OK)
        die("request", result.message);
    if (whole_ns)
        *whole_ns = clock_ns() - began;
    buffer_release(&kept);
    return result.usage;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double at(double *values, int count, double share)
{
    qsort(values, (size_t)count, sizeof *values, by_size);
    return values[(int)((double)(count - 1) * share)];
}

static double run_cpu(program *p)
{
    struct timespec before, after;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
    run(p, NULL);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
    return (double)(after.tv_sec - before.tv_sec) * 1e9 + (double)(after.tv_nsec - before.tv_nsec);
}

/* Nanoseconds of CPU time, of all threads, that the loop of with takes more than that of without, for
 * each call. */
static double cost(program *with, program *without, double calls)
{
    double values[ROUNDS];
    for (int i = 0; i < ROUNDS; i++)
        values[i] = (run_cpu(with) - run_cpu(without)) / calls;
    return at(values, ROUNDS, 0.5);
}

int main(int argc, char **argv)
{
    int json = argc > 1 && strcmp(argv[1], "--json") == 0;
    realm_error error;
    if (sandbox_host_open(&host, &(sandbox_host_options){.cache_folder = ""}, &error) != REALM_OK)
        die("host", error.message);
    engine *e = fake_engine_open(&(fake_options){.inline_works = 1});
    sandbox_model m = {"fake", e};
    tenant_grants grants = {.number = 1,
                            .name = "bench",
                            .capabilities = CAPABILITY_ALL,
                            .limits = SANDBOX_LIMITS_DEFAULT,
                            .models = &m,
                            .n_models = 1};
    if (sandbox_tenant_open(&tenant, &grants, &error) != REALM_OK)
        die("tenant", error.message);

    program *empty = compile(HEAD "(i32.const 0)))");
    program *loop = compile(HEAD LOOP(TEXT(PLAIN_CALLS), "") "(i32.const 0)))");
    program *nothing = compile(
        HEAD LOOP(TEXT(PLAIN_CALLS), "(drop (call $random))") "(i32.const 0)))");
    program *memory = compile(HEAD LOOP(
        TEXT(PLAIN_CALLS),
        "(drop (call $request_read (i32.const 0) (i32.const 64) (i32.const 64)))") "(i32.const 0)))");
    program *length = compile(HEAD "(local.set $s (call $open))" LOOP(
        TEXT(PLAIN_CALLS), "(drop (call $session_length (local.get $s)))") "(i32.const 0)))");
    program *feed = compile(HEAD "(local.set $s (call $open))" LOOP(
        TEXT(SUSPENDING_CALLS),
        "(drop (call $feed (local.get $s) (i32.const 64) (i32.const 1)))"
        "(drop (call $truncate (local.get $s) (i32.const 0)))") "(i32.const 0)))");
    program *truncate = compile(HEAD "(local.set $s (call $open))" LOOP(
        TEXT(SUSPENDING_CALLS),
        "(drop (call $truncate (local.get $s) (i32.const 0)))") "(i32.const 0)))");

    static double start[STARTS], whole[STARTS];
    for (int i = 0; i < STARTS; i++) {
        uint64_t ns;
        start[i] = (double)run(empty, &ns).start_ns / 1000;
        whole[i] = (double)ns / 1000;
    }
    struct {
        const char *name, *unit;
        double value, goal;
    } rows[] = {
        {"start, median", "us", at(start, STARTS, 0.5), 100},
        {"start, 99th percentile", "us", at(start, STARTS, 0.99), 0},
        {"empty request, median", "us", at(whole, STARTS, 0.5), 0},
        {"plain call, no argument", "ns", cost(nothing, loop, PLAIN_CALLS), 20},
        {"plain call, range of memory", "ns", cost(memory, loop, PLAIN_CALLS), 20},
        {"plain call, handle", "ns", cost(length, loop, PLAIN_CALLS), 20},
        {"suspending call that need not", "ns", cost(truncate, empty, SUSPENDING_CALLS), 500},
        {"suspending call that does", "ns", cost(feed, truncate, SUSPENDING_CALLS), 500},
    };
    int n = (int)(sizeof rows / sizeof *rows);
    fputs(json ? "[" : "", stdout);
    for (int i = 0; i < n; i++) {
        if (json)
            printf("%s{\"test\":\"%s\",\"unit\":\"%s\",\"value\":%.2f}", i ? "," : "", rows[i].name,
                   rows[i].unit, rows[i].value);
        else
            printf("%-32s %7.1f %s   %s%.0f\n", rows[i].name, rows[i].value, rows[i].unit,
                   rows[i].goal > 0 ? "< " : "", rows[i].goal);
    }
    fputs(json ? "]\n" : "", stdout);

    program *all[] = {empty, loop, nothing, memory, length, feed, truncate};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        program_release(all[i]);
    sandbox_tenant_release(tenant);
    sandbox_host_close(host);
    fake_engine_close(e);
    return 0;
}
