/* compute/cpu/matmul.h: what a matrix product on the processor's cores must be able to do.
 *
 * A kernel is one row of function pointers: which weights it takes, how it lays them out, how it
 * prepares activations and how it multiplies. weight_open asks the kernels in order and the first
 * that accepts gets the weight for good; dense.inl (every type, F32 arithmetic) is asked last but
 * one and reference.c (scalar, every type) last, so every weight finds one. A new kernel is one
 * file and one row in matmul_kernels.c.
 *
 * All functions but pack and unpack are called by several pool threads at once, on ranges that do
 * not overlap; they keep no state outside their arguments and cannot fail. The promise of
 * backend.h binds here: the bits of out[t, r] depend on row r and token t alone, never on
 * n_tokens, on the ranges or on the thread. */
#ifndef REALM_COMPUTE_CPU_MATMUL_H
#define REALM_COMPUTE_CPU_MATMUL_H

#include "base/cpu.h"
#include "compute/backend.h"

/* Rows are split over threads at multiples of this (and at n_rows). */
#define MATMUL_ROW_STEP 16

typedef struct cpu_matmul cpu_matmul;

typedef struct cpu_weight {
    weight head;         /* first, so that a weight * is a cpu_weight * */
    const uint8_t *data; /* [n_rows] rows of row_bytes, the file's blocks, mapped; borrowed. May
                            be dropped from memory after pack and faulted in again when read */
    size_t row_bytes;
    void *packed;        /* the kernel's own layout, or NULL: it reads data. Owned */
    size_t packed_bytes; /* counted in backend_memory */
    int is_kept;         /* 1: packed is the weight_cache's, read-only, not owned */
    const cpu_matmul *kernel;
} cpu_weight;

struct cpu_matmul {
    const char *name; /* "q4_k avx512-vnni" */

    /* 1 if this kernel takes such a weight. n_cols is already known to be whole blocks. */
    int (*accepts)(uint32_t type, int32_t n_rows, int32_t n_cols);

    /* Sets w->packed and w->packed_bytes; fills them from w->data unless there is a pack_rows. Loading
     * thread. NULL: nothing to pack.
     *   REALM_NO_MEMORY  *w is as before */
    realm_status (*pack)(cpu_weight *w, realm_error *error);

    /* Fills what is first_row .. first_row+row_count-1's of the packed form, from w->data. Ranges as
     * product's, each row once, on several pool threads. NULL: pack did it. */
    void (*pack_rows)(const cpu_weight *w, int32_t first_row, int32_t row_count);

    /* What packing makes, so that it can be kept in a file: the layout's number (weight_cache.h) and
     * the bytes it will take. 0: it is not to be kept; needs pack_rows. */
    uint32_t layout;
    size_t (*packed_size)(const cpu_weight *w);

    /* out[0 .. n_cols) = one row as F32 from the packed form, with the bits that dequantizing the
     * file's row gives; so that embedding tokens needs no pages of the file. Pool threads. NULL: read
     * w->data. */
    void (*row)(float *out, const cpu_weight *w, int32_t row);

    /* Frees w->packed. NULL: it is from malloc or aligned_alloc and free does it. */
    void (*unpack)(cpu_weight *w);

    /* Bytes of the prepared form of [n_tokens, n_cols] activations; the memory given is aligned to
     * 64 bytes. At most 8 * n_tokens * n_cols + 4096 (what the backend's scratch is sized for). */
    size_t (*input_bytes)(int32_t n_tokens, int32_t n_cols);

    /* Prepares tokens first_token .. first_token+count-1 of x [n_tokens, n_cols], contiguous. x is
     * the first of all n_tokens rows, not of the range. Kernels that have the same prepare share
     * what it prepared when several products share an input. */
    void (*prepare)(void *prepared, const float *x, int32_t first_token, int32_t count,
                    int32_t n_tokens, int32_t n_cols);

    /* prepare's ranges begin at multiples of token_step (1 if tokens are independent); of many_tokens
     * or more, at multiples of many_step, unless that is 0. See matmul_token_step. */
    int32_t token_step, many_tokens, many_step;

    /* out[t * out_stride + r] = sum_c w[r, c] * x[t, c] (+ bias[r] unless bias is NULL) for
     * t < n_tokens and first_row <= r < first_row + row_count. out is row 0 of token 0. first_row
     * is a multiple of MATMUL_ROW_STEP; row_count is too, or the range ends at n_rows. */
    void (*product)(const cpu_weight *w, const void *prepared, int32_t n_tokens, float *out,
                    int32_t out_stride, const float *bias, int32_t first_row, int32_t row_count);
};

static inline int32_t matmul_token_step(const cpu_matmul *kernel, int32_t n_tokens)
{
    return kernel->many_step && n_tokens >= kernel->many_tokens ? kernel->many_step
                                                                : kernel->token_step;
}

/* The kernels that multiply quantized weights with quantized activations on a processor with
 * these features, best first, NULL-terminated; static storage. */
const cpu_matmul *const *matmul_kernels(const cpu_features *features);

#endif
