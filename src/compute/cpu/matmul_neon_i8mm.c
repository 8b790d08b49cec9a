/* compute/cpu/matmul_neon_i8mm.c: packed products for ARM processors with the dot and the matrix product of bytes.
 * matmul_neon.inl is the code; matmul.cmake gives the compiler's flags. */
#include "compute/cpu/matmul_neon.inl"

MATMUL_ISA(neon_i8mm)
