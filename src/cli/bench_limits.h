/* cli/bench_limits.h: what this machine can do at most, measured: the yardstick of `realm bench
 * kernels`.
 *
 * Each limit is taken with the instructions that the kernels beside it use, over all threads of
 * their pool: reading memory that no cache holds, int8 dot products and F32 multiply-adds on
 * registers. A kernel can come near a limit and not pass it, but for noise. */
#ifndef REALM_CLI_BENCH_LIMITS_H
#define REALM_CLI_BENCH_LIMITS_H

#include "compute/cpu/pool.h"

typedef enum bench_isa {
    BENCH_ISA_SCALAR,
    BENCH_ISA_AVX2,
    BENCH_ISA_AVX_VNNI,
    BENCH_ISA_AVX512,
    BENCH_ISA_AMX,
    BENCH_ISA_NEON,
    BENCH_ISA_NEON_DOT,
    BENCH_ISA_NEON_I8MM,
    BENCH_ISA_COUNT
} bench_isa;

/* A second; a multiplication and its addition are two operations. */
typedef struct bench_limits {
    double read_bytes, int8_ops, f32_ops;
} bench_limits;

/* The words that --isa takes: "scalar", "avx2", ..., "neon-i8mm". */
const char *bench_isa_name(bench_isa isa);
/* 1 if this processor has it (and REALM_CPU allows it). */
int bench_isa_works(bench_isa isa);
/* The best that works. */
bench_isa bench_isa_best(void);

/* Half a second or so. isa must work.
 *   REALM_NO_MEMORY  the memory that is read could not be had */
realm_status bench_limits_measure(pool *p, bench_isa isa, bench_limits *out, realm_error *error);

#endif
