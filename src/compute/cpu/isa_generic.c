/* compute/cpu/isa_generic.c: the kernels for any processor (SSE2 on x86).
 * The .inl files say what is computed and who calls; CMakeLists.txt gives the compiler's flags. */
#include <math.h>

#include "compute/cpu/cpu_backend.h"
#include "compute/cpu/vec.h"

#include "compute/cpu/dequantize.inl"

#include "compute/cpu/ops.inl"

#include "compute/cpu/attention.inl"

#include "compute/cpu/dense.inl"

static const cpu_matmul dense = {.name = "f32 generic",
                                 .accepts = dense_accepts,
                                 .input_bytes = dense_input_bytes,
                                 .prepare = dense_prepare,
                                 .token_step = 1,
                                 .product = dense_product};

const cpu_kernels cpu_kernels_generic = {.name = "generic",
                                         .scale = ops_scale,
                                         .norm = ops_norm,
                                         .gated = ops_gated,
                                         .add = ops_add,
                                         .soft_cap = ops_soft_cap,
                                         .copy_peaks = ops_copy_peaks,
                                         .rotate = ops_rotate,
                                         .kv_put = ops_kv_put,
                                         .attention_scratch = attention_scratch,
                                         .attention = attention_run_piece,
                                         .attention_combine = attention_combine,
                                         .dense = &dense};
