/* compute/cuda/wgmma.cuh: the matrix instructions of 9.0, which four warps issue together and which read
 * one operand from shared memory; and the barriers and copies that feed them.
 *
 * d += a x b: 64 rows, 16 for each warp of the four, by TOKENS tokens over 16 columns. A warp's operand a and its
 * sums are what mma.m16n8k16 has of them, eight tokens after the other, and so are the bits (found by trial on
 * an H100, with numbers of all sizes). Between wgmma_begin and the wait that covers an instruction its
 * registers are the instruction's. */
#ifndef REALM_COMPUTE_CUDA_WGMMA_CUH
#define REALM_COMPUTE_CUDA_WGMMA_CUH

#include <stdint.h>

/* Where 8 tokens' 16 columns begin in tiles as kernels.h describes (prepared): rows of 128 bytes, swizzled,
 * 1024 bytes from eight tokens to the next. Adding 2 goes on by 16 columns. */
__device__ __forceinline__ uint64_t wgmma_operand(uint32_t at)
{
    return (uint64_t)(at >> 4 & 0x3FFF) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 |
           (uint64_t)1 << 62;
}

__device__ __forceinline__ void wgmma_begin(void)
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit(void)
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* All but the last n groups are done. */
template <int n> __device__ __forceinline__ void wgmma_wait(void)
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(n) : "memory");
}

#define D4(i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define A4    "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)

template <int TOKENS>
__device__ __forceinline__ void wgmma(float d[TOKENS / 2], const uint32_t a[4], uint64_t b)
{
    static_assert(TOKENS == 64 || TOKENS == 128,
                  "shapes that were found to have the bits of mma.sync");
    if constexpr (TOKENS == 64)
        asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
                     "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
                     "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
                     "{%32,%33,%34,%35}, %36, 1, 1, 1, 0;"
                     : D4(0), D4(4), D4(8), D4(12), D4(16), D4(20), D4(24), D4(28)
                     : A4);
    else
        asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
                     "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
                     "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
                     "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
                     "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
                     "{%64,%65,%66,%67}, %68, 1, 1, 1, 0;"
                     : D4(0), D4(4), D4(8), D4(12), D4(16), D4(20), D4(24), D4(28), D4(32), D4(36),
                       D4(40), D4(44), D4(48), D4(52), D4(56), D4(60)
                     : A4);
}

#undef A4
#undef D4

/* ---- barriers in shared memory ------------------------------------------------------------------ */

__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals)
{
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint32_t barrier)
{
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/* Arrives, and so many bytes of copies are to come. */
__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

/* Until the phase of this parity is over. */
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity)
{
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
                 "@!done bra again;\n"
                 "}" ::"r"(barrier),
                 "r"(parity)
                 : "memory");
}

/* ---- copies ------------------------------------------------------------------------------------- */

/* By one thread: whole vectors into shared memory, counted by the barrier. */
__device__ __forceinline__ void copy_bulk(uint32_t to, const void *from, uint32_t bytes,
                                          uint32_t barrier)
{
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(to),
        "l"(from), "r"(bytes), "r"(barrier)
        : "memory");
}

/* The same for what is read once and should not drive other things out of the second-level cache, or may as well
 * stay there. */
__device__ __forceinline__ uint64_t copy_policy(bool once)
{
    uint64_t policy;
    if (once)
        asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    else
        asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

__device__ __forceinline__ void copy_bulk(uint32_t to, const void *from, uint32_t bytes,
                                          uint32_t barrier, uint64_t policy)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier), "l"(policy)
                 : "memory");
}

#endif
