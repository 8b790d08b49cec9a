/* bench/kernels.c: how fast the quantized products of the CPU backend are, beside what this
 * machine can do at most.
 *
 *   kernels [--type Q4_K,...] [--shape ROWSxCOLS] [--tokens 1,8,...] [--threads N,...]
 *           [--isa avx512|avx2|scalar] [--outliers PERCENT] [--ms TIME]
 *
 * For each type, thread and token count: Gop/s (2 * rows * cols * tokens), GB/s of packed weights,
 * and both as a share of the limits measured first: reading memory, and integer dot products on
 * registers. Enough copies of the weights are used in turn that they come from memory, as a
 * model's do. A figure is the median of passes over all copies. Activations are noise, of which
 * --outliers percent of the blocks have one value that needs a correction. */
#include <getopt.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "base/clock.h"
#include "compute/cpu/matmul_packed.h"
#include "compute/cpu/pool.h"

#define WORKING_SET ((size_t)256 << 20)
#define MAX_LIST    32
#define MAX_PASSES  64

typedef struct job {
    const cpu_matmul *kernel;
    const cpu_weight *weight;
    const float *x;
    void *prepared;
    float *out;
    int32_t n_tokens;
} job;

typedef struct limits {
    double read_bytes, dot_ops; /* a second */
} limits;

static double seconds(void)
{
    return (double)clock_ns() * 1e-9;
}

static uint32_t random_bits(void)
{
    static uint64_t state = 1;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}

static int compare_doubles(const void *a, const void *b)
{
    double d = *(const double *)a - *(const double *)b;
    return (d > 0) - (d < 0);
}

/* ---- limits --------------------------------------------------------------------------------- */

typedef struct region {
    const uint64_t *words;
    volatile uint64_t sink;
} region;

static void read_some(void *context, int64_t first, int64_t count, int32_t thread)
{
    region *r = context;
    const uint64_t *p = r->words + first * 512;
    uint64_t sum[8] = {0};
    for (int64_t i = 0; i < count * 512; i += 8)
        for (int j = 0; j < 8; j++)
            sum[j] += p[i + j];
    r->sink = sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
    (void)thread;
}

#if defined(__x86_64__)
#define DOT_ROUNDS 100000

__attribute__((target("avx512f,avx512vnni"))) static void dot_some(void *context, int64_t first,
                                                                   int64_t count, int32_t thread)
{
    __m512i a = _mm512_set1_epi32((int)random_bits()), sum[12];
    for (int i = 0; i < 12; i++)
        sum[i] = _mm512_setzero_si512();
    for (int64_t r = 0; r < count * DOT_ROUNDS; r++) {
        __asm__ volatile("" : "+v"(a));
        for (int i = 0; i < 12; i++)
            sum[i] = _mm512_dpbusd_epi32(sum[i], a, a);
    }
    int total = 0;
    for (int i = 0; i < 12; i++)
        total += _mm512_reduce_add_epi32(sum[i]);
    *(volatile int *)context = total;
    (void)first;
    (void)thread;
}
#endif

static limits measure_limits(pool *p)
{
    limits best = {0, 0};
    uint8_t *memory = malloc(WORKING_SET);
    if (!memory)
        exit(1);
    memset(memory, 1, WORKING_SET);
    region r = {(const uint64_t *)(void *)memory, 0};
    for (int i = 0; i < 5; i++) {
        double begin = seconds();
        pool_run(p, read_some, &r, (int64_t)(WORKING_SET / 4096), 16);
        double rate = (double)WORKING_SET / (seconds() - begin);
        best.read_bytes = rate > best.read_bytes ? rate : best.read_bytes;
    }
    free(memory);
#if defined(__x86_64__)
    for (int i = 0; i < 5 && cpu_features_get()->avx512_vnni; i++) {
        volatile int sink;
        int64_t items = 8 * pool_threads(p);
        double begin = seconds();
        pool_run(p, dot_some, (void *)&sink, items, 1);
        double rate = (double)items * DOT_ROUNDS * 12 * 128 / (seconds() - begin);
        best.dot_ops = rate > best.dot_ops ? rate : best.dot_ops;
    }
#endif
    return best;
}

/* ---- products ------------------------------------------------------------------------------- */

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

/* Values whose scales are small numbers: what a file with random bytes would not have. */
static cpu_weight *make_weights(const cpu_matmul *kernel, uint32_t type, int32_t n_rows,
                                int32_t n_cols, size_t *count)
{
    size_t row_bytes = dtype_row_bytes(type, (uint64_t)n_cols), size = row_bytes * (size_t)n_rows;
    uint8_t *data = malloc(size);
    *count = WORKING_SET / pack_bytes(type, n_rows, n_cols) + 1;
    cpu_weight *weights = calloc(*count, sizeof *weights);
    if (!data || !weights)
        exit(1);
    for (size_t i = 0; i < size; i++)
        data[i] = (uint8_t)(random_bits() & 0x3F);
    for (size_t i = 0; i < *count; i++) {
        realm_error error;
        weights[i] = (cpu_weight){
            .head = {type, n_rows, n_cols}, .data = data, .row_bytes = row_bytes};
        double begin = seconds();
        if (kernel->pack(&weights[i], &error) != REALM_OK) {
            fprintf(stderr, "kernels: %s\n", error.message);
            exit(1);
        }
        if (kernel->pack_rows)
            kernel->pack_rows(&weights[i], 0, n_rows);
        if (i == 1)
            printf("%-7s packing: %.2f GB/s\n", dtype_name(type),
                   (double)size / (seconds() - begin) * 1e-9);
    }
    free(data);
    return weights;
}

static void free_weights(const cpu_matmul *kernel, cpu_weight *weights, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (kernel->unpack)
            kernel->unpack(&weights[i]);
        else
            free(weights[i].packed);
    free(weights);
}

static void measure(pool *p, const limits *l, const cpu_matmul *kernel, const cpu_weight *weights,
                    size_t n_weights, int32_t n_tokens, double outliers, double time)
{
    int32_t n_rows = weights[0].head.n_rows, n_cols = weights[0].head.n_cols;
    size_t n = (size_t)n_tokens * (size_t)n_cols, prepared = kernel->input_bytes(n_tokens, n_cols);
    float *x = malloc(n * sizeof *x);
    job j = {kernel,
             weights,
             x,
             aligned_alloc(64, (prepared + 63) / 64 * 64),
             malloc((size_t)n_tokens * (size_t)n_rows * sizeof(float)),
             n_tokens};
    if (!x || !j.prepared || !j.out)
        exit(1);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(random_bits() & 0xFFFF) * 0x1p-16f - 0.5f;
    for (size_t i = 0; i < n; i += 32)
        if (random_bits() % 10000 < outliers * 100)
            x[i] = 20;
    double rates[MAX_PASSES], prepare_time = 0, begin_all = seconds();
    int passes = 0;
    while (passes < 3 || (passes < MAX_PASSES && seconds() - begin_all < time)) {
        double begin = seconds();
        pool_run(p, prepare_some, &j, n_tokens, kernel->token_step);
        prepare_time = seconds() - begin;
        size_t done = 0;
        begin = seconds();
        /* A pass of a long prompt takes seconds: some of the copies do. */
        for (; done < n_weights && (done == 0 || seconds() - begin < 0.3); done++) {
            j.weight = &weights[done];
            pool_run(p, product_some, &j, (n_rows + MATMUL_ROW_STEP - 1) / MATMUL_ROW_STEP, 1);
        }
        rates[passes++] = (double)done / (seconds() - begin);
    }
    qsort(rates, (size_t)passes, sizeof *rates, compare_doubles);
    double rate = rates[passes / 2];
    double ops = rate * 2 * n_rows * (double)n_cols * n_tokens;
    double bytes = rate * (double)weights[0].packed_bytes;
    printf("%-7s %5dx%-5d %2d threads %4d tokens %8.1f Gop/s", dtype_name(weights[0].head.type),
           n_rows, n_cols, pool_threads(p), n_tokens, ops * 1e-9);
    if (l->dot_ops > 0)
        printf(" (%3.0f %%)", 100 * ops / l->dot_ops);
    printf(" %6.2f GB/s (%3.0f %%)  best %8.1f Gop/s  prepare %5.1f %%\n", bytes * 1e-9,
           100 * bytes / l->read_bytes, ops * 1e-9 * rates[passes - 1] / rate,
           100 * prepare_time / (prepare_time + 1 / rate));
    fflush(stdout);
    free(j.out);
    free(j.prepared);
    free(x);
}

/* ---- options -------------------------------------------------------------------------------- */

static int parse_numbers(const char *text, int32_t *list)
{
    int count = 0;
    for (char *end; count < MAX_LIST && *text; text = *end ? end + 1 : end) {
        list[count++] = (int32_t)strtol(text, &end, 10);
        if (end == text || list[count - 1] <= 0)
            return 0;
    }
    return count;
}

static int parse_types(char *text, uint32_t *list)
{
    int count = 0;
    for (char *name = strtok(text, ","); name && count < MAX_LIST; name = strtok(NULL, ",")) {
        uint32_t type = 0;
        while (type < 64 && !(dtype_name(type) && strcmp(dtype_name(type), name) == 0))
            type++;
        if (type == 64)
            return 0;
        list[count++] = type;
    }
    return count;
}

static int usage(void)
{
    fputs(
        "usage: kernels [--type Q4_K,...] [--shape ROWSxCOLS] [--tokens 1,8,...] [--threads N,...]\n"
        "               [--isa avx512|avx2|scalar] [--outliers PERCENT] [--ms TIME]\n",
        stderr);
    return 2;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"type", 1, 0, 't'}, {"shape", 1, 0, 's'},    {"tokens", 1, 0, 'n'}, {"threads", 1, 0, 'j'},
        {"isa", 1, 0, 'i'},  {"outliers", 1, 0, 'o'}, {"ms", 1, 0, 'm'},     {0, 0, 0, 0}};
    uint32_t types[MAX_LIST] = {DTYPE_Q4_0, DTYPE_Q4_1, DTYPE_Q4_K, DTYPE_Q6_K, DTYPE_Q8_0};
    int32_t tokens[MAX_LIST] = {1, 2, 4, 8, 16, 64, 512}, threads[MAX_LIST] = {1, cpu_count()};
    int n_types = 5, n_tokens = 7, n_threads = threads[1] > 1 ? 2 : 1, n_rows = 2048, n_cols = 2048;
    double outliers = 0, ms = 300;
    const cpu_matmul *kernel = matmul_kernels(cpu_features_get())[0];
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (o) {
        case 't': n_types = parse_types(optarg, types); break;
        case 's':
            if (sscanf(optarg, "%dx%d", &n_rows, &n_cols) != 2 || n_rows < 1 || n_cols < 1)
                return usage();
            break;
        case 'n': n_tokens = parse_numbers(optarg, tokens); break;
        case 'j': n_threads = parse_numbers(optarg, threads); break;
        case 'i': kernel = strcmp(optarg, "scalar") == 0 ? &matmul_packed_scalar : NULL;
#if defined(__x86_64__)
            if (strcmp(optarg, "avx2") == 0)
                kernel = &matmul_packed_avx2;
            if (strcmp(optarg, "avx512") == 0)
                kernel = &matmul_packed_avx512;
#endif
            break;
        case 'o': outliers = atof(optarg); break;
        case 'm': ms = atof(optarg); break;
        default: return usage();
        }
    }
    if (!n_types || !n_tokens || !n_threads || !kernel)
        return usage();
    printf("%s; kernel: %s\n", cpu_name(), kernel->name);
    pool *pools[MAX_LIST];
    limits bounds[MAX_LIST];
    for (int j = 0; j < n_threads; j++) {
        realm_error error;
        if (pool_open(&pools[j], threads[j], &error) != REALM_OK) {
            fprintf(stderr, "kernels: %s\n", error.message);
            return 1;
        }
        bounds[j] = measure_limits(pools[j]);
        printf("limits with %d threads: %.1f GB/s, %.0f Gop/s\n", threads[j],
               bounds[j].read_bytes * 1e-9, bounds[j].dot_ops * 1e-9);
    }
    for (int t = 0; t < n_types; t++) {
        if (!kernel->accepts(types[t], n_rows, n_cols)) {
            printf("%-7s has no packed form with %d columns\n", dtype_name(types[t]), n_cols);
            continue;
        }
        size_t n_weights;
        cpu_weight *weights = make_weights(kernel, types[t], n_rows, n_cols, &n_weights);
        for (int j = 0; j < n_threads; j++)
            for (int n = 0; n < n_tokens; n++)
                measure(pools[j], &bounds[j], kernel, weights, n_weights, tokens[n], outliers,
                        ms * 1e-3);
        free_weights(kernel, weights, n_weights);
    }
    for (int j = 0; j < n_threads; j++)
        pool_close(pools[j]);
    return 0;
}
