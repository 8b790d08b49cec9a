/* compute/cpu/matmul_neon.c: packed products for any 64-bit ARM processor.
 * matmul_neon.inl is the code; matmul.cmake gives the compiler's flags. */
#include "compute/cpu/matmul_neon.inl"

MATMUL_ISA(neon)
