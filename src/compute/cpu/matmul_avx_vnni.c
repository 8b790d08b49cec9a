/* compute/cpu/matmul_avx_vnni.c: packed products with AVX2, FMA and AVX-VNNI.
 * matmul_avx2.inl is the code; matmul.cmake gives the compiler's flags. */
#include "compute/cpu/matmul_avx2.inl"

MATMUL_ISA(avx_vnni)
