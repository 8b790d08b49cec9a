/* cli/cmd_bench.c: `realm bench`: how fast prompts are read and tokens written on this machine.
 *
 * pp N: one session is fed N tokens; tg N: every session of the batch writes N tokens at once. Both
 * are measured for each length of context that the sessions have by then (0: tg begins after one
 * token), and tg for each number of sessions. With --sandbox each tg is measured a second time with
 * guests in the sessions' place, alternating with the native runs, each first in its turn, so that the
 * machine's drift falls on both alike. A guest costs less than one pair of runs can tell from noise, so
 * without --repeat there are as many pairs as fit into some seconds. This file reads the arguments and says what comes after what; cli/bench.h
 * says where the rest is. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/cpu.h"
#include "base/file.h"
#include "cli/bench.h"
#include "cli/commands.h"
#include "cli/model_options.h"
#include "cli/options.h"
#include "cli/progress.h"
#include "model/placement.h"

#define MAX_LIST    16
#define MAX_CONTEXT (1 << 20)

/* Without --repeat: of prompts and of native generation; of pairs, at least and for how long. */
#define USUAL_REPEAT 3
#define USUAL_PAIRS  5
#define PAIRS_NS     UINT64_C(12000000000)

/* What to measure, in numbers. */
typedef struct sweep {
    int64_t batches[MAX_LIST], contexts[MAX_LIST];
    size_t n_batches, n_contexts;
} sweep;

/* ---- the runs ------------------------------------------------------------------------------------- */

/* Whether the repetition i shall be, of runs that began then. */
static int goes_on(const bench *b, int i, int paired, uint64_t began_ns)
{
    if (b->options.repeat > 0)
        return i < b->options.repeat;
    if (!paired)
        return i < USUAL_REPEAT;
    return i < USUAL_PAIRS || (i < BENCH_MAX_REPEAT && clock_ns() - began_ns < PAIRS_NS);
}

static realm_status run_prompt(bench *b, int64_t context, realm_error *error)
{
    bench_timings t = {0};
    bench_lanes lanes;
    realm_status status = bench_lanes_open(b, &lanes, 1, context, error);
    if (status)
        return status;
    status = bench_native_prompt(b, &lanes, 1000, NULL, error);
    for (int i = 0; !status && goes_on(b, i, 0, 0); i++)
        status = bench_native_prompt(b, &lanes, i, &t, error);
    bench_lanes_close(&lanes);
    if (!status)
        bench_report(b, (bench_subject){"pp", b->options.n_prompt, 1, context}, &t, NULL);
    return status;
}

/* repetition 1000 warms up and is not counted. */
static realm_status run_repetition(bench *b, bench_lanes *lanes, int repetition,
                                   bench_timings *native, bench_timings *sandboxed,
                                   realm_error *error)
{
    int guests_first = b->options.sandbox && repetition % 2;
    realm_status status = REALM_OK;
    for (int half = 0; half < 1 + b->options.sandbox && !status; half++)
        status = half == guests_first ? bench_native_generation(b, lanes, repetition, native, error)
                                      : bench_sandbox_generation(b, lanes->count, lanes->context,
                                                                 repetition, sandboxed, error);
    return status;
}

static realm_status run_generation(bench *b, int batch, int64_t context, realm_error *error)
{
    bench_timings native = {0}, sandboxed = {0};
    bench_lanes lanes;
    realm_status status = bench_lanes_open(b, &lanes, batch, context, error);
    if (status)
        return status;
    status = run_repetition(b, &lanes, 1000, NULL, NULL, error);
    uint64_t began = clock_ns();
    for (int i = 0; !status && goes_on(b, i, b->options.sandbox, began); i++)
        status = run_repetition(b, &lanes, i, &native, &sandboxed, error);
    bench_lanes_close(&lanes);
    if (status)
        return status;
    bench_subject subject = {"tg", b->options.n_generate, batch, context};
    bench_report(b, subject, &native, NULL);
    if (b->options.sandbox)
        bench_report(b, subject, &sandboxed, &native);
    return REALM_OK;
}

static int64_t largest(const int64_t *list, size_t count)
{
    int64_t most = 0;
    for (size_t i = 0; i < count; i++)
        most = list[i] > most ? list[i] : most;
    return most;
}

/* Said before anything is measured, not after minutes. */
static realm_status check_context(const bench *b, const sweep *s, realm_error *error)
{
    int64_t n = b->options.n_prompt > b->options.n_generate + 2 ? b->options.n_prompt
                                                                : b->options.n_generate + 2;
    int64_t wanted = largest(s->contexts, s->n_contexts) + n;
    int32_t most = model_hyperparameters(b->model)->n_context;
    if (wanted <= most)
        return REALM_OK;
    return realm_fail(
        error, REALM_INVALID,
        "the model's context is %d tokens, and the tests want up to %lld; choose less "
        "with --context, --pp or --tg",
        (int)most, (long long)wanted);
}

/* ---- model and engine ----------------------------------------------------------------------------- */

/* As librealm chooses it; NULL: nowhere. A model that will be gone is not worth keeping packed. */
static const char *weight_folder(const bench_options *o, char *path, size_t size)
{
    if (o->no_weight_cache || (o->synthetic && !o->synthetic_out))
        return NULL;
    if (!o->cache_folder)
        return file_cache_path(path, size, "weights", NULL) == REALM_OK ? path : NULL;
    snprintf(path, size, "%s/weights", o->cache_folder);
    return path;
}

static realm_status open_model(bench *b, int64_t largest_batch, realm_error *error)
{
    char made[BENCH_PATH_SIZE], kept[BENCH_PATH_SIZE];
    const char *path = b->options.model;
    int descriptor = -1;
    realm_status status = REALM_OK;
    if (b->options.synthetic) {
        status = bench_synthetic_make(&b->options, made, &descriptor, error);
        path = made;
    }
    if (!status) {
        progress bar;
        progress_begin(&bar, "loading the model");
        model_options options = {.progress = progress_step,
                                 .progress_context = &bar,
                                 .weight_folder = weight_folder(&b->options, kept, sizeof kept),
                                 .map_weights = b->options.map_weights};
        if (largest_batch > 64)
            options.max_batch_outputs = (int32_t)largest_batch;
        placement where = {.device = b->options.device, .n_threads = (int32_t)b->options.n_threads};
        status = placement_parse_layers(b->options.gpu_layers, &where.gpu_layers, error);
        if (!status)
            status = placement_open(&b->model, &b->device, path, &where, &options, error);
        progress_end(&bar);
    }
    if (descriptor >= 0)
        close(descriptor);
    return status;
}

static realm_status set_up(bench *b, int64_t largest_batch, realm_error *error)
{
    realm_status status = open_model(b, largest_batch, error);
    engine_options settings = {.kv_bytes = (uint64_t)b->options.kv_bytes,
                               .gather_us = -1,
                               .max_sessions = 2 * (int32_t)largest_batch + 8};
    if (!status)
        status = engine_open(&b->engine, b->model, &settings, error);
    if (!status && b->options.sandbox)
        status = bench_sandbox_open(b, largest_batch, error);
    return status;
}

static void tear_down(bench *b)
{
    bench_sandbox_close(b);
    if (b->engine)
        engine_close(b->engine);
    if (b->model)
        model_close(b->model);
    if (b->device)
        b->device->table->close(b->device);
}

static realm_status run_all(bench *b, const sweep *s, realm_error *error)
{
    realm_status status = set_up(b, largest(s->batches, s->n_batches), error);
    if (!status)
        status = check_context(b, s, error);
    if (!status && !b->options.json) {
        char device[256];
        b->device->table->describe(b->device, device, sizeof device);
        printf("%s\n%s\n\n", model_name(b->model), device);
    }
    for (size_t c = 0; c < s->n_contexts && !status; c++) {
        if (b->options.n_prompt)
            status = run_prompt(b, s->contexts[c], error);
        for (size_t i = 0; i < s->n_batches && !status && b->options.n_generate; i++)
            status = run_generation(b, (int)s->batches[i], s->contexts[c], error);
    }
    return status;
}

/* ---- the command ---------------------------------------------------------------------------------- */

/* What the table of options cannot say; OPTIONS_GO_ON or an exit code. */
static int check_options(const options_command *command, bench_options *o, sweep *s)
{
    realm_error error = {0};
    if (!o->model == !o->synthetic)
        return options_wrong(command, o->model ? "--model and --synthetic exclude each other"
                                               : "--model is missing, or --synthetic");
    if (o->synthetic_out && !o->synthetic)
        return options_wrong(command, "--synthetic-out needs --synthetic");
    if (o->generate && !o->sandbox)
        return options_wrong(command, "--generate needs --sandbox");
    if (options_int_list(o->batches, 1, BENCH_MAX_BATCH, s->batches, MAX_LIST, &s->n_batches,
                         &error))
        return options_wrong(command, "--batch: %s", error.message);
    if (options_int_list(o->contexts, 0, MAX_CONTEXT, s->contexts, MAX_LIST, &s->n_contexts,
                         &error))
        return options_wrong(command, "--context: %s", error.message);
    if (!o->n_threads)
        o->n_threads = cpu_count();
    return OPTIONS_GO_ON;
}

static int run_bench(const options_command *command, bench_options *o)
{
    bench b = {0};
    sweep s;
    realm_error error = {0};
    realm_status status;
    if (o->synthetic && strcmp(o->synthetic, "list") == 0) {
        status = bench_synthetic_list(&error);
        return status ? command_failed("bench", &error) : EXIT_OK;
    }
    int code = check_options(command, o, &s);
    if (code != OPTIONS_GO_ON)
        return code;
    b.options = *o;
    b.rows = json_array();
    status = run_all(&b, &s, &error);
    tear_down(&b);
    if (!status && o->json)
        bench_report_json(&b);
    json_decref(b.rows);
    return status ? command_failed("bench", &error) : EXIT_OK;
}

int cmd_bench(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "kernels") == 0)
        return bench_kernels(argc - 1, argv + 1);
    bench_options given = {
        .batches = "1", .contexts = "0", .n_prompt = 512, .n_generate = 64, .seed = 1, .top_p = 1};
    bench_options *o = &given;
    const option options[] = {
        {.name = "model",
         .letter = 'm',
         .kind = OPTION_TEXT,
         .out = &o->model,
         .value = "FILE",
         .help = "the GGUF file of the model"},
        {.name = "synthetic",
         .kind = OPTION_TEXT,
         .out = &o->synthetic,
         .value = "MODEL",
         .help = "instead: make a model of that shape with random weights, such as "
                 "llama-2-7b:q4_k_m; 'list' prints what there is"},
        {.name = "synthetic-out",
         .kind = OPTION_TEXT,
         .out = &o->synthetic_out,
         .value = "FILE",
         .help = "keep that model here (default: a temporary file in Realm's cache)"},
        {.name = "seed",
         .kind = OPTION_INT,
         .out = &o->seed,
         .value = "N",
         .min = 0,
         .max = 0x1p52,
         .help = "of the random weights"},
        MODEL_OPTIONS(o),
        {.name = "pp",
         .kind = OPTION_INT,
         .out = &o->n_prompt,
         .value = "N",
         .min = 0,
         .max = 1 << 20,
         .help = "tokens of the prompt (0: do not measure prompts)"},
        {.name = "tg",
         .kind = OPTION_INT,
         .out = &o->n_generate,
         .value = "N",
         .min = 0,
         .max = 1 << 20,
         .help = "tokens that each session writes (0: do not measure generation)"},
        {.name = "batch",
         .kind = OPTION_TEXT,
         .out = &o->batches,
         .value = "LIST",
         .help = "numbers of sessions at once, such as 1,8"},
        {.name = "context",
         .kind = OPTION_TEXT,
         .out = &o->contexts,
         .value = "LIST",
         .help = "tokens that the sessions have already, such as 0,1k,4k"},
        {.name = "sandbox",
         .kind = OPTION_FLAG,
         .out = &o->sandbox,
         .help = "measure generation also with each session driven token by token by a guest"},
        {.name = "generate",
         .kind = OPTION_FLAG,
         .out = &o->generate,
         .help =
             "with --sandbox: guests call generate, and its text is streamed, instead of choosing each token"},
        {.name = "candidates",
         .kind = OPTION_INT,
         .out = &o->candidates,
         .value = "K",
         .min = 0,
         .max = 256,
         .help = "sample with temperature 0.8 and top-p 0.95 among the K likeliest, guests for "
                 "themselves (default 0: by the host's sampler, with the next two)"},
        {.name = "temperature",
         .kind = OPTION_REAL,
         .out = &o->temperature,
         .value = "T",
         .min = 0,
         .max = 100,
         .help = "of the host's sampler (default 0: greedily)"},
        {.name = "top-p",
         .kind = OPTION_REAL,
         .out = &o->top_p,
         .value = "P",
         .min = 0,
         .max = 1,
         .help = "of the host's sampler (default 1: off)"},
        {.name = "repeat",
         .letter = 'r',
         .kind = OPTION_INT,
         .out = &o->repeat,
         .value = "N",
         .min = 1,
         .max = BENCH_MAX_REPEAT,
         .help =
             "repetitions, of which the median counts (default 3; with --sandbox pairs for 12 seconds)"},
        {.name = "json", .kind = OPTION_FLAG, .out = &o->json, .help = "print a JSON list"},
        {0}};
    const options_command command = {
        .name = "bench",
        .summary = "measure the speed of prompts and generation",
        .options = options,
        .notes = "Examples\n"
                 "  realm bench --model model.gguf --batch 1,8 --context 0,4096 --sandbox\n"
                 "  realm bench --synthetic llama-2-7b:q4_k_m\n"
                 "  realm bench kernels --help\n",
    };
    int code = options_parse(&command, argc, argv);
    return code == OPTIONS_GO_ON ? run_bench(&command, o) : code;
}
