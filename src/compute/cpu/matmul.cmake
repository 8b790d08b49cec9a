# Sources of the matrix products (quantized weights x quantized activations) and the flags each needs.
list(APPEND compute_sources cpu/matmul_kernels.c)
