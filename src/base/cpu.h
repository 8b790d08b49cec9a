/* base/cpu.h: what this machine's processor can do and how much of it is ours.
 * Read once, then constant; any thread. */
#ifndef REALM_BASE_CPU_H
#define REALM_BASE_CPU_H

#include <stdint.h>

typedef struct cpu_features {
    int avx2;        /* AVX2, FMA and F16C */
    int avx512_vnni; /* AVX-512 F, BW, VL, DQ and VNNI */
    int avx512_bf16;
    int neon_dot;  /* SDOT/UDOT */
    int neon_i8mm; /* SMMLA */
} cpu_features;

/* The features the processor and the system both allow. REALM_CPU=reference|avx2|avx512|neon in
 * the environment lowers them (never raises), so that tests can run each kind. */
const cpu_features *cpu_features_get(void);

/* The cores this process may use: affinity mask and cgroup v2 or v1 quota, at least 1. */
int cpu_count(void);

/* The processor's name for people ("AMD EPYC ..."); static storage. */
const char *cpu_name(void);

#endif
