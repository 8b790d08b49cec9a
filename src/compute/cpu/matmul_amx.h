/* compute/cpu/matmul_amx.h: packed products of many tokens with AMX's int8 tiles, of the types of 256
 * values.
 *
 * A tile instruction multiplies sixteen tokens by sixteen rows, 64 columns each: in sixteen cycles what
 * takes two AVX-512 units 128. It pays from MATMUL_AMX_TOKENS on; products of fewer are AVX-512's, so
 * activations are prepared in one of two forms, told apart by the number of tokens alone.
 * matmul_packed.c makes the kernel of the backend's contract of both. Pool threads; no state. */
#ifndef REALM_COMPUTE_CPU_MATMUL_AMX_H
#define REALM_COMPUTE_CPU_MATMUL_AMX_H

#include "compute/cpu/matmul_packed.h"

#define MATMUL_AMX_TOKENS 48
#define MATMUL_AMX_STRIP  16 /* tokens that are prepared together */

static inline int matmul_amx_takes(int32_t n_tokens)
{
    return n_tokens >= MATMUL_AMX_TOKENS;
}

/* As cpu_matmul's, of what matmul_amx_takes; columns are whole groups. kind is w's type. */
size_t matmul_amx_bytes(int32_t n_tokens, int32_t n_cols);
void matmul_amx_prepare(void *prepared, const float *x, int32_t first_token, int32_t count,
                        int32_t n_tokens, int32_t n_cols);
void matmul_amx_product(pack_kind kind, const cpu_weight *w, const void *prepared, int32_t n_tokens,
                        float *out, int32_t out_stride, const float *bias, int32_t first_row,
                        int32_t row_count);

#endif
