/* cli/bench_limits.c: see bench_limits.h.
 *
 * A loop on registers is written once and made for each instruction set by a macro: enough
 * independent sums that no instruction waits for the one before (latency times instructions a
 * cycle: up to 5 x 2 on x86, 4 x 4 on ARM), and empty asm statements that keep the compiler from
 * computing anything but once a round. Compiled here with function attributes, not flags, so that
 * one file has them all. */
#include "cli/bench_limits.h"

#include <string.h>
#include <sys/mman.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "base/clock.h"
#include "base/cpu.h"

/* ---- instruction sets ----------------------------------------------------------------------------- */

const char *bench_isa_name(bench_isa isa)
{
    static const char *const names[BENCH_ISA_COUNT] = {
        [BENCH_ISA_SCALAR] = "scalar",     [BENCH_ISA_AVX2] = "avx2",
        [BENCH_ISA_AVX_VNNI] = "avx-vnni", [BENCH_ISA_AVX512] = "avx512",
        [BENCH_ISA_AMX] = "amx",           [BENCH_ISA_NEON] = "neon",
        [BENCH_ISA_NEON_DOT] = "neon-dot", [BENCH_ISA_NEON_I8MM] = "neon-i8mm"};
    return names[isa];
}

int bench_isa_works(bench_isa isa)
{
    const cpu_features *f = cpu_features_get();
    switch (isa) {
    case BENCH_ISA_SCALAR: return 1;
    case BENCH_ISA_AVX2: return f->avx2;
    case BENCH_ISA_AVX_VNNI: return f->avx_vnni;
    case BENCH_ISA_AVX512: return f->avx512_vnni;
    case BENCH_ISA_AMX: return f->amx_int8;
    case BENCH_ISA_NEON: return f->neon;
    case BENCH_ISA_NEON_DOT: return f->neon_dot;
    case BENCH_ISA_NEON_I8MM: return f->neon_i8mm;
    case BENCH_ISA_COUNT: break;
    }
    return 0;
}

bench_isa bench_isa_best(void)
{
    for (int isa = BENCH_ISA_COUNT - 1; isa > 0; isa--)
        if (bench_isa_works((bench_isa)isa))
            return (bench_isa)isa;
    return BENCH_ISA_SCALAR;
}

/* ---- arithmetic ----------------------------------------------------------------------------------- */

#define ROUNDS 20000 /* of one item of the pool's work: a fraction of a millisecond */

typedef struct loop {
    pool_task run;
    double ops; /* of a round */
} loop;

/* STEP(sum, a) is what one sum becomes; a is opaque to the compiler in every round. */
#define LOOP(name, with, vector, sum_vector, sums, constraint, START, STEP)                        \
    __attribute__((with)) static void name(void *context, int64_t first, int64_t count,            \
                                           int32_t thread)                                         \
    {                                                                                              \
        vector a = START;                                                                          \
        sum_vector sum[sums];                                                                      \
        memset(sum, 0, sizeof sum);                                                                \
        for (int i = 0; i < sums; i++) /* for all it knows they differ */                          \
            __asm__ volatile("" : "+" constraint(sum[i]));                                         \
        for (int64_t round = 0; round < count * ROUNDS; round++) {                                 \
            _Pragma("GCC unroll 32") for (int i = 0; i < sums; i++)                                \
            {                                                                                      \
                __asm__ volatile("" : "+" constraint(a)); /* nor is a what it was */               \
                sum[i] = STEP(sum[i], a);                                                          \
            }                                                                                      \
        }                                                                                          \
        for (int i = 0; i < sums; i++)                                                             \
            __asm__ volatile("" : : constraint(sum[i]));                                           \
        (void)context, (void)first, (void)thread;                                                  \
    }

#define PLAIN_DOT(s, a) ((s) + (int8_t)(a) * (int8_t)((a) >> 8))
#define PLAIN_FMA(s, a) ((s) + (a) * (a))

#if defined(__x86_64__)

/* The fewest instructions there are for it: sums of pairs stay in 16 bits. */
#define AVX2_DOT(s, a)     _mm256_add_epi16(s, _mm256_maddubs_epi16(a, a))
#define AVX_VNNI_DOT(s, a) _mm256_dpbusd_avx_epi32(s, a, a)
#define AVX2_FMA(s, a)     _mm256_fmadd_ps(a, a, s)
#define AVX512_DOT(s, a)   _mm512_dpbusd_epi32(s, a, a)
#define AVX512_FMA(s, a)   _mm512_fmadd_ps(a, a, s)
// clang-format off
LOOP(dot_scalar, unused, int32_t, int32_t, 8, "r", 0x0102, PLAIN_DOT)
LOOP(fma_scalar, unused, float, float, 8, "x", 1, PLAIN_FMA)
LOOP(dot_avx2, target("avx2"), __m256i, __m256i, 8, "x", _mm256_set1_epi8(1), AVX2_DOT)
LOOP(fma_avx2, target("avx2,fma"), __m256, __m256, 8, "x", _mm256_set1_ps(1), AVX2_FMA)
LOOP(dot_avx_vnni, target("avx2,avxvnni"), __m256i, __m256i, 12, "x", _mm256_set1_epi8(1), AVX_VNNI_DOT)
LOOP(dot_avx512, target("avx512f,avx512vnni"), __m512i, __m512i, 16, "v", _mm512_set1_epi8(1), AVX512_DOT)
LOOP(fma_avx512, target("avx512f"), __m512, __m512, 16, "v", _mm512_set1_ps(1), AVX512_FMA)

/* Tiles are no variables; each thread sets them up, to the largest there are, and gives them back. */
static void dot_amx(void *context, int64_t first, int64_t count, int32_t thread)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } shapes = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        shapes.row_bytes[t] = 64;
        shapes.rows[t] = 16;
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(shapes));
    for (int64_t round = 0; round < count * (ROUNDS / 16); round++)
        __asm__ volatile("tdpbssd %%tmm6, %%tmm4, %%tmm0\n\t"
                         "tdpbssd %%tmm6, %%tmm5, %%tmm1\n\t"
                         "tdpbssd %%tmm7, %%tmm4, %%tmm2\n\t"
                         "tdpbssd %%tmm7, %%tmm5, %%tmm3"
                         :
                         :);
    __asm__ volatile("tilerelease" : :);
    (void)context, (void)first, (void)thread;
}

static const loop dots[BENCH_ISA_COUNT] = {
    [BENCH_ISA_SCALAR] = {dot_scalar, 8 * 2},
    [BENCH_ISA_AVX2] = {dot_avx2, 8 * 32 * 2},
    [BENCH_ISA_AVX_VNNI] = {dot_avx_vnni, 12 * 32 * 2},
    [BENCH_ISA_AVX512] = {dot_avx512, 16 * 64 * 2},
    [BENCH_ISA_AMX] = {dot_amx, 4 * 16 * 16 * 64 * 2 / 16}};
static const loop fmas[BENCH_ISA_COUNT] = {
    [BENCH_ISA_SCALAR] = {fma_scalar, 8 * 2},
    [BENCH_ISA_AVX2] = {fma_avx2, 8 * 8 * 2},
    [BENCH_ISA_AVX_VNNI] = {fma_avx2, 8 * 8 * 2},
    [BENCH_ISA_AVX512] = {fma_avx512, 16 * 16 * 2},
    [BENCH_ISA_AMX] = {fma_avx512, 16 * 16 * 2}};
// clang-format on

#elif defined(__aarch64__)

#define NEON_DOT(s, a)   vmlal_high_s8(vmlal_s8(s, vget_low_s8(a), vget_low_s8(a)), a, a)
#define NEON_SDOT(s, a)  vdotq_s32(s, a, a)
#define NEON_SMMLA(s, a) vmmlaq_s32(s, a, a)
#define NEON_FMA(s, a)   vfmaq_f32(s, a, a)
// clang-format off
LOOP(dot_scalar, unused, int32_t, int32_t, 8, "r", 0x0102, PLAIN_DOT)
LOOP(fma_scalar, unused, float, float, 8, "w", 1, PLAIN_FMA)
LOOP(dot_neon, unused, int8x16_t, int16x8_t, 16, "w", vdupq_n_s8(1), NEON_DOT)
LOOP(dot_neon_dot, target("arch=armv8.2-a+dotprod"), int8x16_t, int32x4_t, 16, "w", vdupq_n_s8(1), NEON_SDOT)
LOOP(dot_neon_i8mm, target("arch=armv8.2-a+dotprod+i8mm"), int8x16_t, int32x4_t, 16, "w", vdupq_n_s8(1), NEON_SMMLA)
LOOP(fma_neon, unused, float32x4_t, float32x4_t, 16, "w", vdupq_n_f32(1), NEON_FMA)

static const loop dots[BENCH_ISA_COUNT] = {
    [BENCH_ISA_SCALAR] = {dot_scalar, 8 * 2},
    [BENCH_ISA_NEON] = {dot_neon, 16 * 16 * 2},
    [BENCH_ISA_NEON_DOT] = {dot_neon_dot, 16 * 16 * 2},
    [BENCH_ISA_NEON_I8MM] = {dot_neon_i8mm, 16 * 32 * 2}};
static const loop fmas[BENCH_ISA_COUNT] = {
    [BENCH_ISA_SCALAR] = {fma_scalar, 8 * 2},
    [BENCH_ISA_NEON] = {fma_neon, 16 * 4 * 2},
    [BENCH_ISA_NEON_DOT] = {fma_neon, 16 * 4 * 2},
    [BENCH_ISA_NEON_I8MM] = {fma_neon, 16 * 4 * 2}};
// clang-format on

#else

LOOP(dot_scalar, unused, int32_t, int32_t, 8, "r", 0x0102, PLAIN_DOT)
LOOP(fma_scalar, unused, float, float, 8, "m", 1, PLAIN_FMA)

static const loop dots[BENCH_ISA_COUNT] = {[BENCH_ISA_SCALAR] = {dot_scalar, 8 * 2}};
static const loop fmas[BENCH_ISA_COUNT] = {[BENCH_ISA_SCALAR] = {fma_scalar, 8 * 2}};

#endif

static double seconds_since(uint64_t ns)
{
    return (double)(clock_ns() - ns) * 1e-9;
}

/* The best of a few runs. */
static double arithmetic(pool *p, const loop *l)
{
    double best = 0;
    int64_t items = 16 * (int64_t)pool_threads(p);
    for (int i = 0; i < 8; i++) {
        uint64_t begin = clock_ns();
        pool_run(p, l->run, NULL, items, 1);
        double rate = (double)items * ROUNDS * l->ops / seconds_since(begin);
        best = rate > best ? rate : best;
    }
    return best;
}

/* ---- memory --------------------------------------------------------------------------------------- */

/* More than caches hold, and than a page table's cache reaches with small pages. */
#define READ_BYTES ((size_t)512 << 20)
#define PAGE_BYTES 4096

typedef struct region {
    uint64_t *words;
} region;

/* By the threads that will read it, so that it lies near them. */
static void touch_some(void *context, int64_t first, int64_t count, int32_t thread)
{
    region *r = context;
    memset(r->words + first * (PAGE_BYTES / 8), 1, (size_t)count * PAGE_BYTES);
    (void)thread;
}

static void read_some(void *context, int64_t first, int64_t count, int32_t thread)
{
    const region *r = context;
    const uint64_t *p = r->words + first * (PAGE_BYTES / 8);
    uint64_t sum[8] = {0};
    for (int64_t i = 0; i < count * (PAGE_BYTES / 8); i += 8)
        for (int j = 0; j < 8; j++)
            sum[j] += p[i + j];
    for (int j = 0; j < 8; j++)
        __asm__ volatile("" : : "r"(sum[j]));
    (void)thread;
}

static realm_status reading(pool *p, double *out, realm_error *error)
{
    void *memory = mmap(NULL, READ_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
                        0);
    if (memory == MAP_FAILED)
        return realm_fail_memory(error, READ_BYTES, "measuring how fast memory is read");
    madvise(memory, READ_BYTES, MADV_HUGEPAGE); /* a wish, as for packed weights */
    region r = {memory};
    pool_run(p, touch_some, &r, READ_BYTES / PAGE_BYTES, 16);
    *out = 0;
    for (int i = 0; i < 5; i++) {
        uint64_t begin = clock_ns();
        pool_run(p, read_some, &r, READ_BYTES / PAGE_BYTES, 16);
        double rate = (double)READ_BYTES / seconds_since(begin);
        *out = rate > *out ? rate : *out;
    }
    munmap(memory, READ_BYTES);
    return REALM_OK;
}

realm_status bench_limits_measure(pool *p, bench_isa isa, bench_limits *out, realm_error *error)
{
    out->int8_ops = arithmetic(p, &dots[isa]);
    out->f32_ops = arithmetic(p, &fmas[isa]);
    return reading(p, &out->read_bytes, error);
}
