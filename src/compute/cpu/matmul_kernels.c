/* compute/cpu/matmul_kernels.c: which product kernels a processor gets, in which order.
 * One row a kernel; read once when a backend is opened, any thread.
 *
 * A processor without vectors gets none: F32 arithmetic is faster there than taking packed weights
 * apart one by one, which matmul_scalar.c is for tests to compare with. */
#include "compute/cpu/matmul_packed.h"

const cpu_matmul *const *matmul_kernels(const cpu_features *features)
{
    static const cpu_matmul *const none[] = {NULL};
#if defined(__x86_64__)
    static const cpu_matmul *const amx[] = {&matmul_packed_amx, &matmul_packed_avx512, NULL};
    static const cpu_matmul *const avx512[] = {&matmul_packed_avx512, NULL};
    static const cpu_matmul *const avx_vnni[] = {&matmul_packed_avx_vnni, NULL};
    static const cpu_matmul *const avx2[] = {&matmul_packed_avx2, NULL};
    if (features->amx_int8)
        return amx;
    if (features->avx512_vnni)
        return avx512;
    if (features->avx_vnni)
        return avx_vnni;
    if (features->avx2)
        return avx2;
#elif defined(__aarch64__)
    static const cpu_matmul *const neon[] = {&matmul_packed_neon, NULL};
    static const cpu_matmul *const neon_dot[] = {&matmul_packed_neon_dot, NULL};
    static const cpu_matmul *const neon_i8mm[] = {&matmul_packed_neon_i8mm, NULL};
    if (features->neon_i8mm)
        return neon_i8mm;
    if (features->neon_dot)
        return neon_dot;
    if (features->neon)
        return neon;
#endif
    (void)features;
    return none;
}
