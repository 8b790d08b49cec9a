/* base/cpu.h: what this machine's processor can do and how much of it is ours.
 * Read once, then constant; any thread. */
#ifndef REALM_BASE_CPU_H
#define REALM_BASE_CPU_H

#include <stdint.h>

typedef struct cpu_features {
    int avx2;        /* AVX2, FMA and F16C */
    int avx_vnni;    /* VNNI for vectors of 256 bits, of processors without AVX-512 too; never
                        without avx2 */
    int avx512_vnni; /* AVX-512 F, BW, VL, DQ and VNNI */
    int avx512_bf16;
    int amx_int8;  /* AMX's tiles of bytes, and the system's leave to use them; never without
                      avx512_vnni */
    int neon;      /* every 64-bit ARM */
    int neon_dot;  /* SDOT, ARMv8.2's option */
    int neon_i8mm; /* SMMLA, ARMv8.6; never without neon_dot */
} cpu_features;

/* The features the processor and the system both allow. REALM_CPU in the environment lowers them
 * (never raises), so that tests can run each kind: reference (none), avx2, avx-vnni, avx512, amx
 * (all), neon, neon-dot or neon-i8mm (all). AMX's tiles need the system's leave, which the first call asks for on
 * behalf of the process: all its threads have it, those that run already too. */
const cpu_features *cpu_features_get(void);

/* The cores this process may use: affinity mask and control groups, at least 1. */
int cpu_count(void);

/* The whole cores that the CPU limits of this process's control group and of every one above it, of
 * version 2 or 1, leave it, rounded up; 0: no limit. root stands before every path that is read: "" but
 * in tests. Reads anew at every call. */
int cpu_limit(const char *root);

/* The processor's name for people ("AMD EPYC ..."); static storage. */
const char *cpu_name(void);

#endif
