/* compute/cpu/matmul_packed.c: the part of the packed products that no instruction set changes:
 * which token meets which panel when, and where results go.
 *
 * The loops: a span of tokens whose prepared form fits the second-level cache; in it every panel
 * of the range; for a panel every tile of the span. So a panel comes from memory once a span and
 * from the first-level cache for all tiles but the first. */
#include "compute/cpu/matmul_packed.h"

#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

/* Prepared bytes of a span's tokens: half of a usual second-level cache of 1 MB. */
#define SPAN_BYTES (512 * 1024)
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

static realm_status pack(cpu_weight *w, realm_error *error)
{
    const weight *h = &w->head;
    size_t size = pack_bytes(h->type, h->n_rows, h->n_cols);
    size_t alignment = size < HUGE_BYTES ? 64 : HUGE_BYTES;
    void *packed = aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
    if (!packed)
        return realm_fail_memory(error, size, "packed weights");
#if defined(__linux__)
    if (alignment == HUGE_BYTES)
        madvise(packed, size, MADV_HUGEPAGE); /* a wish: small pages do as well, slower */
#endif
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

/* One panel with one tile. tile_count tokens; out is the tile's first token's. */
static void multiply(const matmul_isa *isa, pack_kind kind, const uint8_t *panel,
                     size_t panel_bytes, int32_t n_blocks, const uint8_t *tile, int32_t tile_count,
                     float *out, size_t out_stride, const float *bias, int32_t n_rows)
{
    _Alignas(64) float sums[MATMUL_TILE][PACK_ROWS];
    const matmul_input *in = (const matmul_input *)(const void *)tile;
    for (int32_t t = 0; t < tile_count;) {
        int32_t width = tile_count - t;
        while (!isa->tiles[kind][width])
            width--;
        isa->tiles[kind][width](sums + t, panel, panel_bytes, n_blocks, in + t, (size_t)tile_count);
        t += width;
    }
    for (int32_t t = 0; t < tile_count; t++) {
        const matmul_list *list = matmul_list_of(tile, tile_count, t, n_blocks);
        if (list->count)
            isa->corrects[kind](sums[t], panel, n_blocks, list);
    }
    for (int32_t t = 0; t < tile_count; t++) {
        float *to = out + (size_t)t * out_stride;
        if (bias)
            for (int32_t r = 0; r < n_rows; r++)
                to[r] = sums[t][r] + bias[r];
        else
            memcpy(to, sums[t], (size_t)n_rows * sizeof *to);
    }
}

static void product(const matmul_isa *isa, const cpu_weight *w, const void *prepared,
                    int32_t n_tokens, float *out, int32_t out_stride, const float *bias,
                    int32_t first_row, int32_t row_count)
{
    pack_kind kind = kinds[w->head.type];
    int32_t n_blocks = w->head.n_cols / PACK_BLOCK, end_row = first_row + row_count;
    size_t panel_bytes = pack_panel_bytes(w->head.type, w->head.n_cols);
    size_t tile_bytes = matmul_tile_bytes(MATMUL_TILE, n_blocks);
    int32_t span = (int32_t)(SPAN_BYTES / (tile_bytes / 2)) * MATMUL_TILE;
    if (span == 0)
        span = MATMUL_TILE;
    for (int32_t first = 0; first < n_tokens; first += span) {
        int32_t end = n_tokens - first < span ? n_tokens : first + span;
        for (int32_t row = first_row; row < end_row; row += PACK_ROWS) {
            const uint8_t *panel = (const uint8_t *)w->packed +
                                   (size_t)(row / PACK_ROWS) * panel_bytes;
            int32_t n_rows = end_row - row < PACK_ROWS ? end_row - row : PACK_ROWS;
            for (int32_t t = first; t < end; t += MATMUL_TILE)
                multiply(isa, kind, panel, panel_bytes, n_blocks,
                         (const uint8_t *)prepared + (size_t)(t / MATMUL_TILE) * tile_bytes,
                         end - t < MATMUL_TILE ? end - t : MATMUL_TILE,
                         out + (size_t)t * (size_t)out_stride + row, (size_t)out_stride,
                         bias ? bias + row : NULL, n_rows);
        }
    }
}

/* ---- the contract --------------------------------------------------------------------------- */

#define KERNEL(isa)                                                                                \
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
    const cpu_matmul matmul_packed_##isa = {                                                       \
        .name = "packed " #isa,                                                                    \
        .accepts = accepts,                                                                        \
        .pack = pack,                                                                              \
        .pack_rows = pack_rows,                                                                    \
        .row = row,                                                                                \
        .input_bytes = matmul_prepared_bytes,                                                      \
        .prepare = prepare_##isa,                                                                  \
        .token_step = 1,                                                                           \
        .product = product_##isa,                                                                  \
    };

KERNEL(scalar)
#if defined(__x86_64__)
KERNEL(avx2)
KERNEL(avx512)
#elif defined(__aarch64__)
KERNEL(neon)
#endif
