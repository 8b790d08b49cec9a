/* base/cpu.c: see cpu.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "base/cpu.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/control_groups.h"
#include "base/log.h"
#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

static cpu_features g_features;
static char g_name[64] = "unknown processor";
static pthread_once_t g_once = PTHREAD_ONCE_INIT;

#if defined(__x86_64__)
static uint64_t read_xcr0(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

/* 1 if this process may use AMX's tiles. Linux saves no tiles of a process that did not ask, and refuses
 * one that has a signal stack too small for them.
 * Other systems have ways of their own, which are not known here. */
static int may_use_tiles(void)
{
#if defined(__linux__)
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return 0;
#endif
}

static void detect(void)
{
    uint32_t a = 0, b = 0, c = 0, d = 0;
    uint64_t xcr0 = 0;
    if (__get_cpuid(1, &a, &b, &c, &d) && (c & bit_OSXSAVE))
        xcr0 = read_xcr0();
    int has_f16c = (c & bit_F16C) != 0, has_fma = (c & bit_FMA) != 0;
    if ((xcr0 & 0x6) == 0x6 && __get_cpuid_count(7, 0, &a, &b, &c, &d)) {
        g_features.avx2 = (b & bit_AVX2) && has_f16c && has_fma;
        int all = (b & bit_AVX512F) && (b & bit_AVX512BW) && (b & bit_AVX512VL) &&
                  (b & bit_AVX512DQ) && (c & bit_AVX512VNNI);
        g_features.avx512_vnni = g_features.avx2 && (xcr0 & 0xE6) == 0xE6 && all;
        int tiles = (d >> 24 & 1) && (d >> 25 & 1); /* AMX-TILE, AMX-INT8 */
        g_features.amx_int8 = g_features.avx512_vnni && (xcr0 & 0x60000) == 0x60000 && tiles;
        if (g_features.avx2 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) {
            g_features.avx_vnni = (a >> 4 & 1) != 0;
            g_features.avx512_bf16 = g_features.avx512_vnni && (a >> 5 & 1);
        }
    }
    uint32_t words[12];
    int complete = 1;
    for (uint32_t i = 0; i < 3; i++)
        complete &= __get_cpuid(0x80000002u + i, &words[i * 4], &words[i * 4 + 1],
                                &words[i * 4 + 2], &words[i * 4 + 3]);
    if (complete) {
        memcpy(g_name, words, sizeof words);
        g_name[48] = 0;
    }
}
#elif defined(__aarch64__) && defined(__linux__)
static void detect(void)
{
    g_features.neon = 1;
    g_features.neon_dot = (getauxval(AT_HWCAP) >> 20 & 1) != 0; /* HWCAP_ASIMDDP */
    g_features.neon_i8mm = g_features.neon_dot &&
                           (getauxval(AT_HWCAP2) >> 13 & 1) != 0; /* HWCAP2_I8MM */
    snprintf(g_name, sizeof g_name, "ARM64 processor");
}
#elif defined(__aarch64__)
static void detect(void)
{
    g_features.neon = 1;
    g_features.neon_dot = 1; /* every Apple processor of this architecture has it */
    snprintf(g_name, sizeof g_name, "Apple ARM64 processor");
}
#else
static void detect(void) {}
#endif

/* Takes away what REALM_CPU does not name. wish is NULL if it is not set. */
static void lower_to(const char *wish)
{
    if (!wish)
        return;
    if (strcmp(wish, "reference") == 0)
        g_features = (cpu_features){0};
    else if (strcmp(wish, "avx2") == 0)
        g_features.avx_vnni = g_features.avx512_vnni = g_features.avx512_bf16 =
            g_features.amx_int8 = 0;
    else if (strcmp(wish, "avx-vnni") == 0)
        g_features.avx512_vnni = g_features.avx512_bf16 = g_features.amx_int8 = 0;
    else if (strcmp(wish, "avx512") == 0)
        g_features.amx_int8 = 0;
    else if (strcmp(wish, "neon") == 0)
        g_features.neon_dot = g_features.neon_i8mm = 0;
    else if (strcmp(wish, "neon-dot") == 0)
        g_features.neon_i8mm = 0;
    else if (*wish && strcmp(wish, "amx") != 0 && strcmp(wish, "neon-i8mm") != 0)
        LOG_W(
            "cpu",
            "REALM_CPU=%.40s means nothing: reference, avx2, avx-vnni, avx512, amx, neon, neon-dot or "
            "neon-i8mm",
            wish);
}

static void detect_and_lower(void)
{
    detect();
    lower_to(getenv("REALM_CPU"));
#if defined(__x86_64__)
    g_features.amx_int8 = g_features.amx_int8 && may_use_tiles();
#endif
}

const cpu_features *cpu_features_get(void)
{
    pthread_once(&g_once, detect_and_lower);
    return &g_features;
}

const char *cpu_name(void)
{
    pthread_once(&g_once, detect_and_lower);
    return g_name;
}

/* ---- control groups ------------------------------------------------------------------------- */

/* The number in a file of one; 0 if there is none. */
static double number_in(const char *folder, const char *leaf)
{
    double number = 0;
    FILE *file = control_groups_file(folder, leaf);
    if (!file)
        return 0;
    if (fscanf(file, "%lf", &number) != 1)
        number = 0;
    fclose(file);
    return number;
}

/* Lowers *context, cores or 0 for no limit, to what one group's limit is worth. Version 2 has quota, or
 * "max", and period in one file; version 1 a file for each, and -1 for no limit. */
static void lower(void *context, const control_group *group)
{
    double *cores = context, quota = 0, period = 0;
    FILE *file = group->version == 2 ? control_groups_file(group->folder, "cpu.max") : NULL;
    if (group->version == 1) {
        quota = number_in(group->folder, "cpu.cfs_quota_us");
        period = number_in(group->folder, "cpu.cfs_period_us");
    }
    if (file && fscanf(file, "%lf %lf", &quota, &period) != 2)
        quota = 0;
    if (file)
        fclose(file);
    if (quota > 0 && period > 0 && (*cores == 0 || quota / period < *cores))
        *cores = quota / period;
}

int cpu_limit(const char *root)
{
    double cores = 0;
    control_groups_visit(root, "cpu", lower, &cores);
    int whole = (int)cores;
    return cores > whole ? whole + 1 : whole;
}

int cpu_count(void)
{
    int count = 0;
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        count = CPU_COUNT(&set);
#endif
    if (count <= 0)
        count = (int)sysconf(_SC_NPROCESSORS_ONLN);
    int quota = cpu_limit("");
    if (quota > 0 && quota < count)
        count = quota;
    return count > 0 ? count : 1;
}
