/* compute/cpu/matmul_avx2.c: packed products with AVX2 and FMA.
 * matmul_avx2.inl is the code; matmul.cmake gives the compiler's flags. */
#include "compute/cpu/matmul_avx2.inl"

MATMUL_ISA(avx2)
