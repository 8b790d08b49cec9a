/* compute/cuda/products.c: which kernel multiplies, and what its blocks do. */
#include "compute/cuda/cuda_backend.h"

#ifdef REALM_CUDA_WGMMA
static matmul_kernel stream_kernel(int32_t kind, int32_t k_scales, int which, int epilogue)
{
    switch (kind) {
    case PACKED_F16: return cuda_kernel_stream_f16(which, epilogue);
    case PACKED_Q8: return cuda_kernel_stream_q8(which, epilogue);
    case PACKED_Q4:
        return k_scales ? cuda_kernel_stream_q4k(which, epilogue)
                        : cuda_kernel_stream_q4(which, epilogue);
    case PACKED_Q5:
        return k_scales ? cuda_kernel_stream_q5k(which, epilogue)
                        : cuda_kernel_stream_q5(which, epilogue);
    case PACKED_Q6: return cuda_kernel_stream_q6(which, epilogue);
    case PACKED_Q3: return cuda_kernel_stream_q3(which, epilogue);
    case PACKED_Q2: return cuda_kernel_stream_q2(which, epilogue);
    default: return cuda_kernel_stream_t4(which, epilogue);
    }
}
#endif

matmul_kernel cuda_matmul_kernel(const cuda_backend *b, int32_t kind, int32_t k_scales, int which,
                                 int epilogue)
{
#ifdef REALM_CUDA_WGMMA
    if (b->wgmma && which >= MATMUL_64_WIDE)
        return stream_kernel(kind, k_scales, which, epilogue);
#else
    (void)b;
#endif
    switch (kind) {
    case PACKED_F16: return cuda_kernel_matmul_f16(which, epilogue);
    case PACKED_Q8: return cuda_kernel_matmul_q8(which, epilogue);
    case PACKED_Q4:
        return k_scales ? cuda_kernel_matmul_q4k(which, epilogue)
                        : cuda_kernel_matmul_q4(which, epilogue);
    case PACKED_Q5:
        return k_scales ? cuda_kernel_matmul_q5k(which, epilogue)
                        : cuda_kernel_matmul_q5(which, epilogue);
    case PACKED_Q6: return cuda_kernel_matmul_q6(which, epilogue);
    case PACKED_Q3: return cuda_kernel_matmul_q3(which, epilogue);
    case PACKED_Q2: return cuda_kernel_matmul_q2(which, epilogue);
    default: return cuda_kernel_matmul_t4(which, epilogue);
    }
}

/* Shares of so many segments are not worth what adding up their sums costs: another two or so. */
#define SHARE_MOST 5

int32_t products_divide(matmul_args *a, int32_t places, int32_t resident)
{
    int32_t rounds = (places + resident - 1) / resident, blocks;
    a->whole = places / resident;
    int32_t left = places % resident;
    /* If next to nothing is lost by it all are whole. */
    int all_whole = places * 10 >= rounds * resident * 9;
    for (a->share = all_whole ? PACKED_SEGMENTS : 1;; a->share++) {
        if (a->share > SHARE_MOST)
            a->share = PACKED_SEGMENTS;
        int32_t rest = PACKED_SEGMENTS % a->share;
        blocks = PACKED_SEGMENTS / a->share * left + (left * rest + a->share - 1) / a->share;
        if (blocks <= resident)
            return a->whole > 0 ? resident : blocks;
    }
}

/* Whether blocks of twice as many rows are done sooner with so many tiles of rows: they take about 1.7 times as long
 * for them, but both kinds of blocks go over the rows in whole rounds. */
static int is_long(int64_t resident, int64_t resident_long, int64_t tiles)
{
    if (resident == 0 || resident_long == 0)
        return resident == 0;
    int64_t rounds = (tiles + resident - 1) / resident,
            rounds_long = ((tiles + 1) / 2 + resident_long - 1) / resident_long;
    return rounds_long * 17 < rounds * 10;
}

int products_choose(const cuda_backend *b, const int32_t resident[MATMUL_KERNELS], int32_t n_tokens,
                    int64_t tiles)
{
    /* No multiprocessor would have two blocks of two tiles. */
    int is_short = tiles <= 2 * b->n_multiprocessors;
    if (n_tokens <= 8 && (resident[MATMUL_8] > 0 || resident[MATMUL_8_LONG] > 0))
        return is_long(resident[MATMUL_8], resident[MATMUL_8_LONG], tiles) ? MATMUL_8_LONG
                                                                           : MATMUL_8;
    if (n_tokens <= 16 && is_short && resident[MATMUL_16_SHORT] > 0)
        return MATMUL_16_SHORT;
    if (n_tokens <= 16 && resident[MATMUL_16] > 0)
        return MATMUL_16;
    if (n_tokens <= 32 && is_short && resident[MATMUL_32_SHORT] > 0)
        return MATMUL_32_SHORT;
    if (n_tokens <= 32 && resident[MATMUL_32] > 0)
        return MATMUL_32;
    return n_tokens <= 64 && resident[MATMUL_64] > 0 ? MATMUL_64 : MATMUL_TILES;
}

int products_choose_wide(int32_t n_tokens)
{
    return n_tokens <= 64 ? MATMUL_64_WIDE : MATMUL_TILES;
}
