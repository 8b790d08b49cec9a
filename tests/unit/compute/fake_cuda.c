/* tests/unit/compute/fake_cuda.c: see fake_cuda.h. */
#include "unit/compute/fake_cuda.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "compute/cuda/kernels.h"

static char launches[8192];

const char *fake_cuda_launches(void)
{
    return launches;
}

void fake_cuda_forget(void)
{
    launches[0] = 0;
}

static void note(const void *kernel)
{
    size_t used = strlen(launches);
    snprintf(launches + used, sizeof launches - used, "%s%s", used ? " " : "",
             (const char *)kernel);
}

/* ---- the run time: one device of 9.0, whose memory is the host's -------------------------------------- */

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = 1;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device)
{
    (void)device;
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "a device that computes nothing");
    p->major = 9;
    p->multiProcessorCount = 132;
    p->sharedMemPerBlockOptin = 232448;
    return cudaSuccess;
}

static cudaError_t take(void **memory, size_t bytes)
{
    *memory = calloc(1, bytes + 1);
    return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaMalloc(void **memory, size_t bytes)
{
    return take(memory, bytes);
}

cudaError_t cudaMallocAsync(void **memory, size_t bytes, cudaStream_t stream)
{
    (void)stream;
    return take(memory, bytes);
}

cudaError_t cudaMallocHost(void **memory, size_t bytes)
{
    return take(memory, bytes);
}

cudaError_t cudaFree(void *memory)
{
    free(memory);
    return cudaSuccess;
}

cudaError_t cudaFreeAsync(void *memory, cudaStream_t stream)
{
    (void)stream;
    return cudaFree(memory);
}

cudaError_t cudaFreeHost(void *memory)
{
    return cudaFree(memory);
}

cudaError_t cudaMemGetInfo(size_t *left, size_t *total)
{
    *left = *total = (size_t)1 << 34;
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    (void)kind, (void)stream;
    memcpy(to, from, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemset(void *to, int value, size_t bytes)
{
    memset(to, value, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream)
{
    (void)stream;
    return cudaMemset(to, value, bytes);
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p)
{
    (void)p;
    memset(a, 0, sizeof *a);
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *kernel,
                                                          int threads, size_t bytes)
{
    (void)kernel;
    *blocks = threads > 256 || bytes > 100000 ? 1 : 2;
    return cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *kernel,
                                void **arguments)
{
    (void)config, (void)arguments;
    note(kernel);
    return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **arguments,
                             size_t bytes, cudaStream_t stream)
{
    (void)grid, (void)block, (void)arguments, (void)bytes, (void)stream;
    note(kernel);
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    (void)stream;
    *graph = NULL;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long flags)
{
    (void)graph, (void)flags;
    static int any;
    *out = (cudaGraphExec_t)(void *)&any;
    return cudaSuccess;
}

const char *cudaGetErrorString(cudaError_t code)
{
    (void)code;
    return "an error";
}

cudaError_t cudaGetLastError(void)
{
    return cudaSuccess;
}

/* What has nothing to do. */
#define NOTHING(name, ...)                                                                         \
    cudaError_t name(__VA_ARGS__)                                                                  \
    {                                                                                              \
        return cudaSuccess;                                                                        \
    }
#pragma GCC diagnostic ignored "-Wunused-parameter"
NOTHING(cudaSetDevice, int device)
NOTHING(cudaDeviceSetLimit, enum cudaLimit limit, size_t value)
NOTHING(cudaEventCreateWithFlags, cudaEvent_t *event, unsigned flags)
NOTHING(cudaEventDestroy, cudaEvent_t event)
NOTHING(cudaEventRecord, cudaEvent_t event, cudaStream_t stream)
NOTHING(cudaEventSynchronize, cudaEvent_t event)
NOTHING(cudaFuncSetAttribute, const void *kernel, enum cudaFuncAttribute which, int value)
NOTHING(cudaGraphDestroy, cudaGraph_t graph)
NOTHING(cudaGraphExecDestroy, cudaGraphExec_t graph)
NOTHING(cudaGraphLaunch, cudaGraphExec_t graph, cudaStream_t stream)
NOTHING(cudaStreamBeginCapture, cudaStream_t stream, enum cudaStreamCaptureMode mode)
NOTHING(cudaStreamCreateWithFlags, cudaStream_t *stream, unsigned flags)
NOTHING(cudaStreamDestroy, cudaStream_t stream)
NOTHING(cudaStreamSynchronize, cudaStream_t stream)

/* ---- the kernels: their names -------------------------------------------------------------------------- */

#define KERNEL(name)                                                                               \
    const void *cuda_kernel_##name(void)                                                           \
    {                                                                                              \
        return #name;                                                                              \
    }
KERNEL(add)
KERNEL(angles)
KERNEL(attention_combine)
KERNEL(attention_combine_row)
KERNEL(attention_split)
KERNEL(attention_walk)
KERNEL(clear)
KERNEL(embed)
KERNEL(gated)
KERNEL(gather)
KERNEL(kv_read)
KERNEL(matmul_f32)
KERNEL(pack)
KERNEL(prepare)
KERNEL(results)
KERNEL(rope)
KERNEL(row_scales)
KERNEL(settle)
KERNEL(soft_cap)

const void *cuda_kernel_norm(const norm_args *a)
{
    return a->p.state == PREPARED_NORMED ? "norm" : "norm_of_heads";
}

const void *cuda_kernel_kv_write(const kv_write_args *a, int32_t *heads, int32_t *threads)
{
    *heads = 1;
    *threads = 32;
    return a->rope.n_pairs > 0 ? "turn_and_write" : "write";
}

const void *cuda_kernel_attention_staged(int queries, int together, int fresh, int32_t *threads,
                                         int32_t *shared_bytes)
{
    (void)together;
    *threads = 32;
    *shared_bytes = 0;
    return queries > ATTENTION_ROWS ? "attention_wide"
           : fresh                  ? "write_and_attention"
                                    : "attention";
}

/* Which of them have an epilogue is matmul.cu's and stream.cu's to say. */
static matmul_kernel product(int which, int epilogue, int wide)
{
    static const char *const names[EPILOGUES] = {"product", "product_norm", "product_gate"},
                             *const wide_names[EPILOGUES] = {"wide", NULL, "wide_gate"};
    const char *name = wide ? wide_names[epilogue] : names[epilogue];
    if (!wide && epilogue == EPILOGUE_GATED && which > MATMUL_16_SHORT)
        name = NULL;
    return (matmul_kernel){.function = name,
                           .tile_rows = wide ? 128 : 16,
                           .tile_tokens = which == MATMUL_64_WIDE ? 64 : 128,
                           .threads = 256,
                           .persistent = wide ? 2 : 1};
}

#define PRODUCT(kind)                                                                              \
    matmul_kernel cuda_kernel_matmul_##kind(int which, int epilogue)                               \
    {                                                                                              \
        return product(which, epilogue, 0);                                                        \
    }                                                                                              \
    matmul_kernel cuda_kernel_stream_##kind(int which, int epilogue)                               \
    {                                                                                              \
        return product(which, epilogue, 1);                                                        \
    }
PRODUCT(f16)
PRODUCT(q8)
PRODUCT(q4)
PRODUCT(q4k)
PRODUCT(q5)
PRODUCT(q5k)
PRODUCT(q6)
PRODUCT(q3)
PRODUCT(q2)
PRODUCT(t4)
