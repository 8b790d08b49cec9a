/* compute/cpu/matmul_packed.c: the part of the packed products that no instruction set changes:
 * which token meets which panel when, and where results go.
 *
 * The loops: a span of tokens whose prepared form fits the second-level cache; in it every panel
 * of the range; for a panel every tile of the span. So a panel comes from memory once a span and
 * from the first-level cache for all tiles but the first. Where the instruction set has kernels for
 * it (matmul_many), the first tile leaves the panel unpacked for the others: products gain little, but
 * corrections, which take single quads from all over a panel, take half of the time. */
#include "compute/cpu/matmul_packed.h"

#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "base/numa.h"
#include "compute/cpu/matmul_amx.h"

/* Prepared bytes of a span's tokens: half of a usual second-level cache of 1 MB. But of wide matrices
 * so many tiles at the least, though they come from the third level then: each span reads all weights
 * and unpacks them anew (11,008 columns: a sixth to a quarter faster than with one tile). */
#define SPAN_BYTES (512 * 1024)
#define SPAN_TILES 3
/* From so many tiles in a span on a panel is unpacked once for all of them; not of matrices with more
 * columns than this, whose unpacked panels (640 bytes a block, on the stack) no second-level cache
 * would hold beside a span. */
#define UNPACKED_TILES  2
#define UNPACKED_BLOCKS 512
/* From this size on packed weights ask for huge pages. */
#define HUGE_BYTES ((size_t)2 << 20)

static const uint8_t kinds[] = {
#define KIND(type, super, scale_bytes, value_bytes) [DTYPE_##type] = PACK_##type,
    PACK_MAP(KIND)
#undef KIND
};

static int accepts(uint32_t type, int32_t n_rows, int32_t n_cols)
{
    (void)n_rows;
    return pack_supports(type, n_cols);
}

static size_t packed_size(const cpu_weight *w)
{
    return pack_bytes(w->head.type, w->head.n_rows, w->head.n_cols);
}

static realm_status pack(cpu_weight *w, realm_error *error)
{
    size_t size = packed_size(w);
    size_t alignment = size < HUGE_BYTES ? 64 : HUGE_BYTES;
    void *packed = aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
    if (!packed)
        return realm_fail_memory(error, size, "packed weights");
#if defined(__linux__)
    if (alignment == HUGE_BYTES)
        madvise(packed, size, MADV_HUGEPAGE); /* a wish: small pages do as well, slower */
#endif
    if (alignment == HUGE_BYTES)
        numa_interleave(packed, size);
    w->packed = packed;
    w->packed_bytes = size;
    return REALM_OK;
}

static void pack_rows(const cpu_weight *w, int32_t first_row, int32_t row_count)
{
    pack_panels(w->packed, w->head.type, w->data, w->head.n_rows, w->head.n_cols,
                first_row / PACK_ROWS, (row_count + PACK_ROWS - 1) / PACK_ROWS);
}

static void row(float *out, const cpu_weight *w, int32_t index)
{
    pack_row(out, w->packed, w->head.type, w->head.n_cols, index);
}

/* ---- the product ---------------------------------------------------------------------------- */

/* A product of some tokens with one panel at a time. */
typedef struct panel_job {
    const matmul_isa *isa;
    pack_kind kind;
    const uint8_t *panel;
    size_t panel_bytes;
    int32_t n_blocks;
    float *out; /* of the first token, at the panel's first row */
    size_t out_stride;
    const float *bias; /* at the panel's first row, or NULL */
    int32_t n_rows;    /* of the panel that there are */
} panel_job;

/* Each token's sixteen results are one line far from the others': they come, to be written, while
 * the tile is computed. */
static void fetch_results(const panel_job *j, const float *out, int32_t tile_count)
{
    for (int32_t t = 0; t < tile_count; t++)
        __builtin_prefetch(out + (size_t)t * j->out_stride, 1);
}

static void write_results(const panel_job *j, float *out, float (*sums)[PACK_ROWS],
                          int32_t tile_count)
{
    for (int32_t t = 0; t < tile_count; t++) {
        float *to = out + (size_t)t * j->out_stride;
        if (j->bias)
            for (int32_t r = 0; r < j->n_rows; r++)
                to[r] = sums[t][r] + j->bias[r];
        else
            memcpy(to, sums[t], (size_t)j->n_rows * sizeof *to);
    }
}

/* One panel with one tile of tile_count tokens, whose results go to out. */
static void multiply(const panel_job *j, const uint8_t *tile, int32_t tile_count, float *out)
{
    _Alignas(64) float sums[MATMUL_TILE][PACK_ROWS];
    const matmul_input *in = (const matmul_input *)(const void *)tile;
    fetch_results(j, out, tile_count);
    for (int32_t t = 0; t < tile_count;) {
        int32_t width = tile_count - t;
        while (!j->isa->tiles[j->kind][width])
            width--;
        j->isa->tiles[j->kind][width](sums + t, j->panel, j->panel_bytes, j->n_blocks, in + t,
                                      (size_t)tile_count);
        t += width;
    }
    for (int32_t t = 0; t < tile_count; t++) {
        const matmul_list *list = matmul_list_of(tile, tile_count, t, j->n_blocks);
        if (list->count)
            j->isa->corrects[j->kind](sums[t], j->panel, j->n_blocks, list);
    }
    write_results(j, out, sums, tile_count);
}

/* One panel with n_tiles tiles of MATMUL_TILE tokens, tile_bytes apart. */
static void multiply_many(const panel_job *j, const uint8_t *tile, size_t tile_bytes,
                          int32_t n_tiles)
{
    matmul_unpacked unpacked[UNPACKED_BLOCKS];
    _Alignas(64) float sums[MATMUL_TILE][PACK_ROWS];
    const matmul_many *many = &j->isa->many[j->kind];
    float *out = j->out;
    for (int32_t i = 0; i < n_tiles; i++, tile += tile_bytes, out += MATMUL_TILE * j->out_stride) {
        fetch_results(j, out, MATMUL_TILE);
        (i == 0 ? many->unpacking : many->unpacked)(sums, j->panel, j->panel_bytes, j->n_blocks,
                                                    (const matmul_input *)(const void *)tile,
                                                    unpacked);
        for (int32_t t = 0; t < MATMUL_TILE; t += 2)
            many->correct_two(sums + t, unpacked, matmul_list_of(tile, MATMUL_TILE, t, j->n_blocks),
                              matmul_list_of(tile, MATMUL_TILE, t + 1, j->n_blocks));
        write_results(j, out, sums, MATMUL_TILE);
    }
}

static void product(const matmul_isa *isa, const cpu_weight *w, const void *prepared,
                    int32_t n_tokens, float *out, int32_t out_stride, const float *bias,
                    int32_t first_row, int32_t row_count)
{
    panel_job j = {.isa = isa,
                   .kind = kinds[w->head.type],
                   .panel_bytes = pack_panel_bytes(w->head.type, w->head.n_cols),
                   .n_blocks = w->head.n_cols / PACK_BLOCK,
                   .out_stride = (size_t)out_stride};
    int32_t end_row = first_row + row_count;
    size_t tile_bytes = matmul_tile_bytes(MATMUL_TILE, j.n_blocks);
    int32_t span = (int32_t)(SPAN_BYTES / (tile_bytes / 2)) * MATMUL_TILE;
    if (span < SPAN_TILES * MATMUL_TILE)
        span = SPAN_TILES * MATMUL_TILE;
    for (int32_t first = 0; first < n_tokens; first += span) {
        int32_t count = n_tokens - first < span ? n_tokens - first : span;
        int32_t many = isa->many && j.n_blocks <= UNPACKED_BLOCKS ? count / MATMUL_TILE : 0;
        if (many < UNPACKED_TILES)
            many = 0;
        const uint8_t *tiles = (const uint8_t *)prepared +
                               (size_t)(first / MATMUL_TILE) * tile_bytes;
        for (int32_t row = first_row; row < end_row; row += PACK_ROWS) {
            j.panel = (const uint8_t *)w->packed + (size_t)(row / PACK_ROWS) * j.panel_bytes;
            j.n_rows = end_row - row < PACK_ROWS ? end_row - row : PACK_ROWS;
            j.out = out + (size_t)first * j.out_stride + row;
            j.bias = bias ? bias + row : NULL;
            if (many)
                multiply_many(&j, tiles, tile_bytes, many);
            for (int32_t t = many * MATMUL_TILE; t < count; t += MATMUL_TILE)
                multiply(&j, tiles + (size_t)(t / MATMUL_TILE) * tile_bytes,
                         count - t < MATMUL_TILE ? count - t : MATMUL_TILE,
                         j.out + (size_t)t * j.out_stride);
        }
    }
}

/* ---- the contract --------------------------------------------------------------------------- */

#define CONTRACT(isa, takes, step, bytes, ...)                                                     \
    const cpu_matmul matmul_packed_##isa = {.name = "packed " #isa,                                \
                                            .accepts = takes,                                      \
                                            .pack = pack,                                          \
                                            .pack_rows = pack_rows,                                \
                                            .layout = PACK_LAYOUT,                                 \
                                            .packed_size = packed_size,                            \
                                            .row = row,                                            \
                                            .input_bytes = bytes,                                  \
                                            .prepare = prepare_##isa,                              \
                                            .token_step = step,                                    \
                                            .product = product_##isa,                              \
                                            __VA_ARGS__};

#define KERNEL(isa, step)                                                                          \
    static void product_##isa(const cpu_weight *w, const void *prepared, int32_t n_tokens,         \
                              float *out, int32_t out_stride, const float *bias,                   \
                              int32_t first_row, int32_t row_count)                                \
    {                                                                                              \
        product(&matmul_isa_##isa, w, prepared, n_tokens, out, out_stride, bias, first_row,        \
                row_count);                                                                        \
    }                                                                                              \
    static void prepare_##isa(void *prepared, const float *x, int32_t first_token, int32_t count,  \
                              int32_t n_tokens, int32_t n_cols)                                    \
    {                                                                                              \
        matmul_isa_##isa.prepare(prepared, x, first_token, count, n_tokens, n_cols);               \
    }                                                                                              \
    CONTRACT(isa, accepts, step, matmul_prepared_bytes, )

KERNEL(scalar, 1)
#if defined(__x86_64__)
KERNEL(avx2, 1)
KERNEL(avx_vnni, 1)
KERNEL(avx512, 1)

/* AMX where there are tokens enough, AVX-512 where not; types of 256 values. */
static int accepts_amx(uint32_t type, int32_t n_rows, int32_t n_cols)
{
    return accepts(type, n_rows, n_cols) && matmul_super(kinds[type]) > 1;
}

static size_t bytes_amx(int32_t n_tokens, int32_t n_cols)
{
    return matmul_amx_takes(n_tokens) ? matmul_amx_bytes(n_tokens, n_cols)
                                      : matmul_prepared_bytes(n_tokens, n_cols);
}

static void prepare_amx(void *prepared, const float *x, int32_t first_token, int32_t count,
                        int32_t n_tokens, int32_t n_cols)
{
    if (matmul_amx_takes(n_tokens))
        matmul_amx_prepare(prepared, x, first_token, count, n_tokens, n_cols);
    else
        prepare_avx512(prepared, x, first_token, count, n_tokens, n_cols);
}

static void product_amx(const cpu_weight *w, const void *prepared, int32_t n_tokens, float *out,
                        int32_t out_stride, const float *bias, int32_t first_row, int32_t row_count)
{
    if (matmul_amx_takes(n_tokens))
        matmul_amx_product(kinds[w->head.type], w, prepared, n_tokens, out, out_stride, bias,
                           first_row, row_count);
    else
        product_avx512(w, prepared, n_tokens, out, out_stride, bias, first_row, row_count);
}

CONTRACT(amx, accepts_amx, 1, bytes_amx, .many_tokens = MATMUL_AMX_TOKENS,
         .many_step = MATMUL_AMX_STRIP)
#elif defined(__aarch64__)
KERNEL(neon, 1)
KERNEL(neon_dot, 1)
KERNEL(neon_i8mm, 2)
#endif
