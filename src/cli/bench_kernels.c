/* cli/bench_kernels.c: `realm bench kernels`: how fast the matrix products of the processor's
 * backend are, beside what this machine can do at most.
 *
 * For each weight type, thread and token count: Gop/s (2 * rows * columns * tokens), GB/s of
 * weights as the kernel reads them, and both as a share of the limits, which are measured first
 * (bench_limits.h). Enough copies of the weights are used in turn that they come from memory, as a
 * model's do. A figure is the median of passes over the copies. Activations are noise, of which
 * --outliers percent of the blocks have one value that needs a correction. Quantized types are
 * multiplied by the packed kernels unless --dense asks for F32 arithmetic; F32, F16 and BF16 always
 * are. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/clock.h"
#include "base/rng.h"
#include "cli/bench.h"
#include "cli/bench_limits.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "compute/cpu/cpu_backend.h"
#include "compute/cpu/matmul_packed.h"

#define WORKING_SET ((size_t)256 << 20)
#define MAX_LIST    32
#define MAX_PASSES  64

typedef struct kernel_options {
    const char *types, *shape, *tokens, *threads, *isa;
    int dense, json;
    double outliers;
    int64_t time_ms;
} kernel_options;

typedef struct kernel_bench {
    kernel_options options;
    bench_isa isa;
    uint32_t types[MAX_LIST];
    int64_t tokens[MAX_LIST], threads[MAX_LIST];
    size_t n_types, n_tokens, n_threads;
    int32_t n_rows, n_cols;
    pool *pools[MAX_LIST];         /* [n_threads] */
    bench_limits limits[MAX_LIST]; /* [n_threads] */
    json_t *rows;
} kernel_bench;

/* ---- kernels of an instruction set ---------------------------------------------------------------- */

static const cpu_matmul *packed_kernel(bench_isa isa)
{
    switch (isa) {
#if defined(__x86_64__)
    case BENCH_ISA_AVX2: return &matmul_packed_avx2;
    case BENCH_ISA_AVX_VNNI: return &matmul_packed_avx_vnni;
    case BENCH_ISA_AVX512: return &matmul_packed_avx512;
    case BENCH_ISA_AMX: return &matmul_packed_amx;
#elif defined(__aarch64__)
    case BENCH_ISA_NEON: return &matmul_packed_neon;
    case BENCH_ISA_NEON_DOT: return &matmul_packed_neon_dot;
    case BENCH_ISA_NEON_I8MM: return &matmul_packed_neon_i8mm;
#endif
    default: return &matmul_packed_scalar;
    }
}

static const cpu_matmul *dense_kernel(bench_isa isa)
{
#if defined(__aarch64__)
    (void)isa;
    return cpu_kernels_neon.dense;
#else
#if defined(__x86_64__)
    if (isa == BENCH_ISA_AVX512 || isa == BENCH_ISA_AMX)
        return cpu_kernels_avx512.dense;
    if (isa == BENCH_ISA_AVX2 || isa == BENCH_ISA_AVX_VNNI)
        return cpu_kernels_avx2.dense;
#endif
    (void)isa;
    return cpu_kernels_generic.dense;
#endif
}

static const cpu_matmul *kernel_for(const kernel_bench *k, uint32_t type)
{
    const cpu_matmul *packed = packed_kernel(k->isa);
#if defined(__x86_64__)
    if (k->isa == BENCH_ISA_AMX && !packed->accepts(type, k->n_rows, k->n_cols))
        packed = &matmul_packed_avx512; /* as a backend chooses */
#endif
    int plain = type == DTYPE_F32 || type == DTYPE_F16 || type == DTYPE_BF16;
    if (plain || k->options.dense || !packed->accepts(type, k->n_rows, k->n_cols))
        return dense_kernel(k->isa);
    return packed;
}

/* ---- weights -------------------------------------------------------------------------------------- */

/* Copies of one matrix, in turn. */
typedef struct copies {
    const cpu_matmul *kernel;
    cpu_weight *weights; /* [count] */
    size_t count;
    size_t bytes;  /* that a product reads, of one copy */
    uint8_t *data; /* the file's form: of one copy, or of all where the kernel reads it */
} copies;

static void release_copies(copies *c)
{
    for (size_t i = 0; i < c->count && c->weights; i++)
        if (c->kernel->unpack && c->weights[i].packed)
            c->kernel->unpack(&c->weights[i]);
        else
            free(c->weights[i].packed);
    free(c->weights);
    free(c->data);
}

/* Bytes below 64 are small numbers in every type: no scale is infinite. */
static void fill_data(uint8_t *data, size_t size)
{
    rng random;
    rng_init(&random, 1);
    for (size_t i = 0; i < size; i += 8) {
        uint64_t bits = rng_next(&random) & 0x3F3F3F3F3F3F3F3F;
        memcpy(data + i, &bits, size - i < 8 ? size - i : 8);
    }
}

static realm_status pack_copies(const kernel_bench *k, copies *c, realm_error *error)
{
    realm_status status = REALM_OK;
    for (size_t i = 0; i < c->count && !status; i++) {
        status = c->kernel->pack(&c->weights[i], error);
        if (!status && c->kernel->pack_rows)
            c->kernel->pack_rows(&c->weights[i], 0, k->n_rows);
    }
    c->bytes = c->weights[0].packed_bytes;
    return status;
}

static realm_status make_copies(const kernel_bench *k, uint32_t type, copies *c, realm_error *error)
{
    size_t row_bytes = dtype_row_bytes(type, (uint64_t)k->n_cols);
    *c = (copies){.kernel = kernel_for(k, type), .bytes = row_bytes * (size_t)k->n_rows};
    c->count = WORKING_SET / c->bytes + 1;
    size_t stride = c->kernel->pack ? 0 : c->bytes, size = stride * (c->count - 1) + c->bytes;
    c->data = malloc(size);
    c->weights = calloc(c->count, sizeof *c->weights);
    if (!c->data || !c->weights)
        return realm_fail_memory(error, size, "weights");
    fill_data(c->data, size);
    for (size_t i = 0; i < c->count; i++)
        c->weights[i] = (cpu_weight){.head = {type, k->n_rows, k->n_cols},
                                     .data = c->data + i * stride,
                                     .row_bytes = row_bytes};
    return c->kernel->pack ? pack_copies(k, c, error) : REALM_OK;
}

/* ---- products ------------------------------------------------------------------------------------- */

typedef struct job {
    const cpu_matmul *kernel;
    const cpu_weight *weight;
    float *x;       /* [n_tokens, n_cols] */
    void *prepared; /* x as the kernel wants it */
    float *out;     /* [n_tokens, n_rows] */
    int32_t n_tokens;
} job;

static void prepare_some(void *context, int64_t first, int64_t count, int32_t thread)
{
    const job *j = context;
    (void)thread;
    if (first + count > j->n_tokens)
        count = j->n_tokens - first;
    j->kernel->prepare(j->prepared, j->x, (int32_t)first, (int32_t)count, j->n_tokens,
                       j->weight->head.n_cols);
}

static void product_some(void *context, int64_t first, int64_t count, int32_t thread)
{
    const job *j = context;
    int32_t n_rows = j->weight->head.n_rows, row = (int32_t)first * MATMUL_ROW_STEP;
    int32_t end = row + (int32_t)count * MATMUL_ROW_STEP;
    (void)thread;
    j->kernel->product(j->weight, j->prepared, j->n_tokens, j->out, n_rows, NULL, row,
                       (end < n_rows ? end : n_rows) - row);
}

static void fill_activations(const kernel_bench *k, job *j)
{
    rng random;
    rng_init(&random, 2);
    int64_t n = (int64_t)j->n_tokens * k->n_cols;
    for (int64_t i = 0; i < n; i++)
        j->x[i] = (float)rng_double(&random) - 0.5f;
    for (int64_t i = 0; i < n; i += 32)
        if (rng_double(&random) * 100 < k->options.outliers)
            j->x[i] = 20;
}

static realm_status open_job(const kernel_bench *k, const copies *c, int64_t n_tokens, job *j,
                             realm_error *error)
{
    size_t prepared = c->kernel->input_bytes((int32_t)n_tokens, k->n_cols);
    size_t x = (size_t)n_tokens * (size_t)k->n_cols * sizeof(float);
    size_t out = (size_t)n_tokens * (size_t)k->n_rows * sizeof(float);
    *j = (job){.kernel = c->kernel,
               .weight = c->weights,
               .x = malloc(x),
               .prepared = aligned_alloc(64, (prepared + 63) / 64 * 64),
               .out = malloc(out),
               .n_tokens = (int32_t)n_tokens};
    if (!j->x || !j->prepared || !j->out)
        return realm_fail_memory(error, x + prepared + out, "activations");
    fill_activations(k, j);
    return REALM_OK;
}

static void close_job(job *j)
{
    free(j->out);
    free(j->prepared);
    free(j->x);
}

static double seconds_since(uint64_t ns)
{
    return (double)(clock_ns() - ns) * 1e-9;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Products a second; *prepare_us gets what preparing the activations took. */
static double time_products(const kernel_bench *k, pool *p, const copies *c, job *j,
                            double *prepare_us)
{
    double rates[MAX_PASSES], limit = (double)k->options.time_ms * 1e-3;
    uint64_t begin_all = clock_ns();
    int passes = 0;
    while (passes < 3 || (passes < MAX_PASSES && seconds_since(begin_all) < limit)) {
        uint64_t begin = clock_ns();
        pool_run(p, prepare_some, j, j->n_tokens, matmul_token_step(c->kernel, j->n_tokens));
        *prepare_us = seconds_since(begin) * 1e6;
        size_t done = 0;
        begin = clock_ns();
        /* A pass of a long prompt takes seconds: some of the copies do. */
        for (; done < c->count && (done == 0 || seconds_since(begin) < limit); done++) {
            j->weight = &c->weights[done];
            pool_run(p, product_some, j, (k->n_rows + MATMUL_ROW_STEP - 1) / MATMUL_ROW_STEP, 1);
        }
        rates[passes++] = (double)done / seconds_since(begin);
    }
    qsort(rates, (size_t)passes, sizeof *rates, compare_doubles);
    return rates[passes / 2];
}

static void report(kernel_bench *k, size_t threads, const copies *c, const job *j, double rate,
                   double prepare_us)
{
    const bench_limits *l = &k->limits[threads];
    uint32_t type = c->weights[0].head.type;
    double ops = rate * 2 * k->n_rows * (double)k->n_cols * j->n_tokens;
    double bytes = rate * (double)c->bytes;
    int dense = c->kernel == dense_kernel(k->isa);
    double of_ops = ops / (dense ? l->f32_ops : l->int8_ops), of_read = bytes / l->read_bytes;
    json_array_append_new(k->rows, json_pack("{s:s,s:s,s:i,s:i,s:I,s:i,s:f,s:f,s:f,s:f,s:f}",
                                             "type", dtype_name(type), "kernel", c->kernel->name,
                                             "rows", (int)k->n_rows, "columns", (int)k->n_cols,
                                             "threads", (json_int_t)k->threads[threads], "tokens",
                                             (int)j->n_tokens, "gop_per_second", ops * 1e-9,
                                             "of_arithmetic", of_ops, "gb_per_second", bytes * 1e-9,
                                             "of_memory", of_read, "prepare_us", prepare_us));
    if (k->options.json)
        return;
    printf("%-7s %-16s %2lld threads %5d tokens %8.1f Gop/s (%3.0f %%) %7.2f GB/s (%3.0f %%)   "
           "preparing %.0f us\n",
           dtype_name(type), c->kernel->name, (long long)k->threads[threads], (int)j->n_tokens,
           ops * 1e-9, 100 * of_ops, bytes * 1e-9, 100 * of_read, prepare_us);
    fflush(stdout);
}

static realm_status measure_type(kernel_bench *k, uint32_t type, realm_error *error)
{
    copies c;
    realm_status status = make_copies(k, type, &c, error);
    for (size_t t = 0; t < k->n_threads && !status; t++)
        for (size_t n = 0; n < k->n_tokens && !status; n++) {
            job j;
            double prepare_us = 0;
            status = open_job(k, &c, k->tokens[n], &j, error);
            if (!status) {
                double rate = time_products(k, k->pools[t], &c, &j, &prepare_us);
                report(k, t, &c, &j, rate, prepare_us);
            }
            close_job(&j);
        }
    release_copies(&c);
    return status;
}

/* ---- the command ---------------------------------------------------------------------------------- */

static realm_status measure_limits(kernel_bench *k, json_t *list, realm_error *error)
{
    realm_status status = REALM_OK;
    for (size_t t = 0; t < k->n_threads && !status; t++) {
        bench_limits *l = &k->limits[t];
        status = pool_open(&k->pools[t], (int32_t)k->threads[t], error);
        if (!status)
            status = bench_limits_measure(k->pools[t], k->isa, l, error);
        if (status)
            return status;
        json_array_append_new(
            list, json_pack("{s:I,s:f,s:f,s:f}", "threads", (json_int_t)k->threads[t],
                            "read_gb_per_second", l->read_bytes * 1e-9, "int8_gop_per_second",
                            l->int8_ops * 1e-9, "f32_gop_per_second", l->f32_ops * 1e-9));
        if (!k->options.json)
            printf("limits, %lld threads: reads %.1f GB/s, int8 %.0f Gop/s, F32 %.0f Gop/s\n",
                   (long long)k->threads[t], l->read_bytes * 1e-9, l->int8_ops * 1e-9,
                   l->f32_ops * 1e-9);
    }
    return status;
}

static realm_status measure_all(kernel_bench *k, realm_error *error)
{
    json_t *limits = json_array();
    if (!k->options.json)
        printf("%s, %s, matrices of %d x %d\n", cpu_name(), bench_isa_name(k->isa), (int)k->n_rows,
               (int)k->n_cols);
    k->rows = json_array();
    realm_status status = measure_limits(k, limits, error);
    for (size_t i = 0; i < k->n_types && !status; i++)
        status = measure_type(k, k->types[i], error);
    json_t *all = json_pack("{s:s,s:s,s:o,s:o}", "cpu", cpu_name(), "isa", bench_isa_name(k->isa),
                            "limits", limits, "products", k->rows);
    if (!status && k->options.json) {
        char *text = json_dumps(all, JSON_INDENT(1) | JSON_REAL_PRECISION(6));
        if (text)
            puts(text);
        free(text);
    }
    json_decref(all);
    for (size_t t = 0; t < k->n_threads; t++)
        if (k->pools[t])
            pool_close(k->pools[t]);
    return status;
}

static realm_status read_type(const char *word, size_t size, uint32_t *out, realm_error *error)
{
    for (uint32_t type = 0; type < 64; type++) {
        const char *name = dtype_name(type);
        if (name && strlen(name) == size && strncasecmp(name, word, size) == 0 &&
            dense_kernel(BENCH_ISA_SCALAR)->accepts(type, 16, 256)) {
            *out = type;
            return REALM_OK;
        }
    }
    return realm_fail(error, REALM_INVALID, "'%.*s' is not a type of weights", (int)size, word);
}

static realm_status read_types(kernel_bench *k, realm_error *error)
{
    realm_status status = REALM_OK;
    for (const char *at = k->options.types; !status;) {
        size_t size = strcspn(at, ",");
        if (k->n_types == MAX_LIST)
            return realm_fail(error, REALM_INVALID, "there are more than %d types", MAX_LIST);
        status = read_type(at, size, &k->types[k->n_types++], error);
        if (!status && dtype_row_bytes(k->types[k->n_types - 1], (uint64_t)k->n_cols) == 0)
            status = realm_fail(error, REALM_INVALID, "%d columns are no whole blocks of %.*s",
                                (int)k->n_cols, (int)size, at);
        if (at[size] == 0)
            break;
        at += size + 1;
    }
    return status;
}

static realm_status read_isa(kernel_bench *k, realm_error *error)
{
    char works[128] = "";
    k->isa = bench_isa_best();
    if (!k->options.isa)
        return REALM_OK;
    for (int i = 0; i < BENCH_ISA_COUNT; i++) {
        if (!bench_isa_works((bench_isa)i))
            continue;
        size_t used = strlen(works);
        snprintf(works + used, sizeof works - used, "%s%s", used ? ", " : "",
                 bench_isa_name((bench_isa)i));
        if (strcmp(k->options.isa, bench_isa_name((bench_isa)i)) == 0) {
            k->isa = (bench_isa)i;
            return REALM_OK;
        }
    }
    return realm_fail(error, REALM_INVALID, "'%.40s' is not among what this processor has: %s",
                      k->options.isa, works);
}

/* What the table of options cannot say; OPTIONS_GO_ON or an exit code. */
static int check_options(const options_command *command, kernel_bench *k)
{
    realm_error error = {0};
    char cores[32], rest;
    int rows = 0, cols = 0;
    if (sscanf(k->options.shape, "%dx%d%c", &rows, &cols, &rest) != 2 || rows < 1 || cols < 1 ||
        rows > 1 << 20 || cols > 1 << 20)
        return options_wrong(command, "--shape wants ROWSxCOLUMNS, such as 4096x4096");
    k->n_rows = rows;
    k->n_cols = cols;
    snprintf(cores, sizeof cores, cpu_count() > 1 ? "1,%d" : "%d", cpu_count());
    const char *threads = k->options.threads ? k->options.threads : cores;
    if (options_int_list(threads, 1, 1024, k->threads, MAX_LIST, &k->n_threads, &error))
        return options_wrong(command, "--threads: %s", error.message);
    if (options_int_list(k->options.tokens, 1, 8192, k->tokens, MAX_LIST, &k->n_tokens, &error))
        return options_wrong(command, "--tokens: %s", error.message);
    if (read_types(k, &error))
        return options_wrong(command, "--type: %s", error.message);
    if (read_isa(k, &error))
        return options_wrong(command, "--isa: %s", error.message);
    return OPTIONS_GO_ON;
}

int bench_kernels(int argc, char **argv)
{
    kernel_bench k = {.options = {.types = "Q4_0,Q4_1,Q4_K,Q6_K,Q8_0",
                                  .shape = "2048x2048",
                                  .tokens = "1,2,4,8,16,64,512",
                                  .time_ms = 300}};
    kernel_options *o = &k.options;
    const option options[] = {
        {.name = "type",
         .kind = OPTION_TEXT,
         .out = &o->types,
         .value = "LIST",
         .help = "types of weights, as `realm inspect` names them"},
        {.name = "shape",
         .kind = OPTION_TEXT,
         .out = &o->shape,
         .value = "ROWSxCOLUMNS",
         .help = "of the matrix"},
        {.name = "tokens",
         .kind = OPTION_TEXT,
         .out = &o->tokens,
         .value = "LIST",
         .help = "numbers of tokens at once"},
        {.name = "threads",
         .letter = 't',
         .kind = OPTION_TEXT,
         .out = &o->threads,
         .value = "LIST",
         .help = "numbers of threads (default: one, and the cores there are)"},
        {.name = "isa",
         .kind = OPTION_TEXT,
         .out = &o->isa,
         .value = "WHICH",
         .help =
             "kernels of these instructions: amx, avx512, avx2, neon-i8mm, neon-dot, neon or scalar "
             "(default: the best that this processor has)"},
        {.name = "dense",
         .kind = OPTION_FLAG,
         .out = &o->dense,
         .help = "multiply in F32 arithmetic, as F32, F16 and BF16 weights always are"},
        {.name = "outliers",
         .kind = OPTION_REAL,
         .out = &o->outliers,
         .value = "PERCENT",
         .min = 0,
         .max = 100,
         .help = "blocks of activations with a value that needs a correction"},
        {.name = "ms",
         .kind = OPTION_INT,
         .out = &o->time_ms,
         .value = "TIME",
         .min = 1,
         .max = 60000,
         .help = "least time for each figure"},
        {.name = "json", .kind = OPTION_FLAG, .out = &o->json, .help = "print a JSON object"},
        {0}};
    const options_command command = {
        .name = "bench kernels",
        .summary = "measure matrix products beside what this machine can do at most",
        .options = options,
        .notes = "Example\n  realm bench kernels --type Q4_K,Q6_K --tokens 1,8,512 --json\n",
    };
    int code = options_parse(&command, argc, argv);
    if (code == OPTIONS_GO_ON)
        code = check_options(&command, &k);
    if (code != OPTIONS_GO_ON)
        return code;
    realm_error error = {0};
    return measure_all(&k, &error) ? command_failed("bench kernels", &error) : EXIT_OK;
}
