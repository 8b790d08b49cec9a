/* cli/bench_report.c: from the timings of repetitions to rows, printed or as JSON.
 *
 * Rates are medians over the repetitions, of_native is the median of each repetition's own ratio.
 * forward_us is the time of a step's forward pass; outside_us is the rest, from the end of one
 * forward pass to the start of the next. They show what a guest costs more steadily than a ratio of
 * rates, which each repetition's forward passes shake. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/cpu.h"
#include "cli/bench.h"

bench_moment bench_moment_now(engine *e)
{
    engine_stats stats;
    engine_stats_get(e, &stats);
    return (bench_moment){clock_ns(), stats.busy_ns, stats.iterations, stats.tokens_decoded};
}

void bench_timings_add(bench_timings *t, bench_moment from, bench_moment to, int64_t of)
{
    uint64_t decoded = to.decoded > from.decoded ? to.decoded - from.decoded : 1;
    double part = of > 0 ? (double)decoded / (double)of : 1;
    double wall_ns = (double)(to.ns - from.ns), busy_ns = (double)(to.busy_ns - from.busy_ns);
    uint64_t steps = to.iterations > from.iterations ? to.iterations - from.iterations : 1;
    if (steps > t->most_steps)
        t->most_steps = steps;
    t->seconds[t->count] = wall_ns / 1e9 / part;
    t->forward_us[t->count] = busy_ns / 1e3 / (double)steps;
    double outside_ns = wall_ns > busy_ns ? wall_ns - busy_ns : 0; /* read one after the other */
    t->outside_us[t->count++] = outside_ns / 1e3 / (double)steps;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median_of(const double *values, int count)
{
    double sorted[BENCH_MAX_REPEAT];
    memcpy(sorted, values, (size_t)count * sizeof *sorted);
    qsort(sorted, (size_t)count, sizeof *sorted, compare_doubles);
    return count % 2 ? sorted[count / 2] : (sorted[count / 2 - 1] + sorted[count / 2]) / 2;
}

static double least_of(const double *values, int count)
{
    double least = values[0];
    for (int i = 1; i < count; i++)
        least = values[i] < least ? values[i] : least;
    return least;
}

static double of_native(const bench_timings *native, const bench_timings *sandboxed)
{
    double ratios[BENCH_MAX_REPEAT];
    for (int i = 0; i < sandboxed->count; i++)
        ratios[i] = native->seconds[i] / sandboxed->seconds[i];
    return median_of(ratios, sandboxed->count);
}

void bench_report(bench *b, bench_subject subject, const bench_timings *t,
                  const bench_timings *native)
{
    double tokens = (double)subject.n * (double)subject.batch;
    double rate = tokens / median_of(t->seconds, t->count);
    double shortest = t->seconds[0], longest = t->seconds[0];
    for (int i = 1; i < t->count; i++) {
        shortest = t->seconds[i] < shortest ? t->seconds[i] : shortest;
        longest = t->seconds[i] > longest ? t->seconds[i] : longest;
    }
    double forward_us = median_of(t->forward_us, t->count);
    double outside_us = median_of(t->outside_us, t->count);
    char test[32];
    snprintf(test, sizeof test, "%s%lld", subject.kind, (long long)subject.n);
    json_t *row = json_pack(
        "{s:s,s:s,s:I,s:I,s:b,s:f,s:f,s:f,s:f,s:f,s:f,s:I,s:i,s:I,s:s,s:s}", "model",
        model_name(b->model), "test", test, "batch", (json_int_t)subject.batch, "context",
        (json_int_t)subject.context, "sandbox", native != NULL, "tokens_per_second", rate,
        "slowest", tokens / longest, "fastest", tokens / shortest, "forward_us", forward_us,
        "outside_us", outside_us, "outside_least_us", least_of(t->outside_us, t->count), "steps",
        (json_int_t)t->most_steps, "repetitions", t->count, "threads",
        (json_int_t)b->options.n_threads, "device", b->device->table->kind, "cpu", cpu_name());
    if (native)
        json_object_set_new(row, "of_native", json_real(of_native(native, t)));
    json_array_append_new(b->rows, row);
    if (b->options.json)
        return;
    printf("%-8s batch %-3lld  context %-6lld %-8s %10.1f tokens/s   (%.1f to %.1f)", test,
           (long long)subject.batch, (long long)subject.context, native ? "sandbox" : "native",
           rate, tokens / longest, tokens / shortest);
    printf("   a step: %.0f us forward, %.0f outside", forward_us, outside_us);
    if (native)
        printf("   %.2f %% of native", 100 * of_native(native, t));
    printf("\n");
    fflush(stdout);
}

void bench_report_json(const bench *b)
{
    char *text = json_dumps(b->rows, JSON_INDENT(1) | JSON_REAL_PRECISION(7));
    if (text)
        puts(text);
    free(text);
}
