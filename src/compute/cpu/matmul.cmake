# Sources of the matrix products (quantized weights x quantized activations) and the flags each needs.
list(APPEND compute_sources cpu/matmul_kernels.c cpu/matmul_packed.c cpu/matmul_scalar.c cpu/pack.c)

# Kernels are optimized in debug builds too: without, their vectors stay in memory and intrinsics with
# immediate operands do not compile. Sanitizers take a minute for these files at -O3.
if(REALM_SANITIZE AND NOT REALM_PLAIN_KERNELS)
    set(matmul_optimize -O1)
else()
    set(matmul_optimize -O3)
endif()

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    list(APPEND compute_sources cpu/matmul_avx2.c cpu/matmul_avx_vnni.c cpu/matmul_avx512.c
        cpu/matmul_amx.c)
    set_source_files_properties(cpu/matmul_avx2.c PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma;-mf16c;${matmul_optimize}")
    set_source_files_properties(cpu/matmul_avx_vnni.c PROPERTIES COMPILE_OPTIONS
        "-mavx2;-mfma;-mf16c;-mavxvnni;${matmul_optimize}")
    # AMX's own instructions are written as assembly.
    set_source_files_properties(cpu/matmul_avx512.c cpu/matmul_amx.c PROPERTIES COMPILE_OPTIONS
        "-mavx2;-mfma;-mf16c;-mavx512f;-mavx512bw;-mavx512vl;-mavx512dq;-mavx512vnni;-mprefer-vector-width=512;${matmul_optimize}")
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
    list(APPEND compute_sources cpu/matmul_neon.c cpu/matmul_neon_dot.c cpu/matmul_neon_i8mm.c)
    set_source_files_properties(cpu/matmul_neon.c PROPERTIES COMPILE_OPTIONS "${matmul_optimize}")
    set_source_files_properties(cpu/matmul_neon_dot.c PROPERTIES COMPILE_OPTIONS
        "-march=armv8.2-a+dotprod;${matmul_optimize}")
    set_source_files_properties(cpu/matmul_neon_i8mm.c PROPERTIES COMPILE_OPTIONS
        "-march=armv8.2-a+dotprod+i8mm;${matmul_optimize}")
endif()
