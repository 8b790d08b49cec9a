/* compute/cpu/matmul_neon_dot.c: packed products for ARM processors with the dot product.
 * matmul_neon.inl is the code; matmul.cmake gives the compiler's flags. */
#include "compute/cpu/matmul_neon.inl"

MATMUL_ISA(neon_dot)
