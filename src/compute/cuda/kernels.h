/* compute/cuda/kernels.h: what host code launches, and with what. Shared by host and device code.
 *
 * Each kernel takes one struct of arguments by value, kept free of padding so that two recorded steps
 * can be compared byte for byte. cuda_kernel_* return the address that a launch needs. Pointers are
 * device addresses. */
#ifndef REALM_COMPUTE_CUDA_KERNELS_H
#define REALM_COMPUTE_CUDA_KERNELS_H

#include "compute/backend.h"
#include "compute/cuda/packed.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- activations as halves ------------------------------------------------------------------ */

/* What is known of a row of a product's input, for those who only add to it: all blocks of a launch do, in whatever
 * order, without a bit of difference. Zeros before the first one. */
typedef struct row_sums {
    unsigned long long squares; /* normed: the sum of squares, in fixed point (input.cuh) */
    uint32_t largest;           /* bits of the largest magnitude */
    float inverse; /* normed: 1 / RMS, once a product, or its norm, has worked it out */
} row_sums;

/* How the halves of a prepared input came to be, and what results are multiplied by (input.cuh). */
enum {
    PREPARED_FINAL, /* by somebody who had whole rows: scales say by what */
    PREPARED_PLAIN, /* with `scale`, which may turn out not to fit */
    PREPARED_NORMED /* of rows before they were divided by their RMS, with a scale guessed, which may not fit */
};

/* The input of products: rows as halves, multiplied by a power of two each. Halves lie as
 * [ceil(n_cols / 32), n_stride tokens, 32]; for
 * stream.cu in tiles that shared memory takes and wgmma reads as they are: [ceil(n_cols / 64), n_stride / 8]
 * of 8 tokens by 8 chunks of 8 halves. Chunk 4c + 2m + h holds columns 32c + 8t + 4m + 2h and the next, for
 * t = 0 .. 3: instruction m of half tile c multiplies columns in packed.h's order. Token i's chunk j
 * stands at place j ^ i. */
typedef struct prepared {
    uint16_t *halves;       /* NULL: do not prepare */
    float *scales;          /* [n_tokens] what results are multiplied by, if FINAL */
    row_sums *sums;         /* [n_tokens]; FINAL: NULL unless normed */
    const row_sums *before; /* normed: of the same rows when last normed; NULL: never */
    const float *from;      /* [n_tokens, n_cols] what halves were made of */
    const float *gain;      /* normed: [n_cols], or NULL */
    int64_t n_stride;       /* tokens, whole groups of 8 */
    int32_t tiles, n_cols;  /* tiles: 1: in tiles */
    int32_t state;          /* PREPARED_* */
    float epsilon;          /* normed */
    float scale;            /* otherwise: what nearly always fits rows of this kind */
    int32_t zero;
} prepared;

/* ---- rows ----------------------------------------------------------------------------------- */

typedef struct rows_args { /* prepare, gated, add, soft_cap, gather */
    float *out;
    const float *x, *y;
    const int32_t *rows; /* gather */
    prepared p;
    int64_t n_elements;
    int32_t n_cols, kind; /* gated: activation_kind */
    float factor;         /* add: scale; soft_cap: cap */
    int32_t zero;
} rows_args;

/* rows: [2 * n_rows] where each row goes, then where its peaks and what is behind them go: pinned host memory. */
typedef struct peaks_args {
    const float *x; /* [n_rows, n_cols] */
    float *const *rows;
    const row_wish *wishes; /* [n_rows] */
    int32_t n_rows, n_cols;
    int32_t tops, sums, block; /* bytes that they come behind the peaks */
} peaks_args;

typedef struct norm_args {
    float *out;
    const float *x;
    float *sum;               /* with add: x + factor * y goes here and is what is normed */
    const float *y;           /* or NULL */
    const float *gain, *bias; /* or NULL */
    prepared p;
    int32_t n_cols, kind; /* norm_kind */
    float epsilon, factor;
} norm_args;

typedef struct embed_args {
    packed w;
    float *out;
    const int32_t *ids;
    float scale;
    int32_t zero;
} embed_args;

typedef struct angles_args {
    float *cosines, *sines; /* [n_tokens, n_pairs] */
    const int32_t *positions;
    const float *frequencies; /* [n_pairs] */
    int32_t n_tokens, n_pairs;
    float magnitude;
    int32_t zero;
} angles_args;

typedef struct rope_args {
    float *x[2];
    const float *cosines, *sines;
    int32_t n_heads[2], head_dim[2];
    int32_t n_pairs, kind; /* rope_kind */
} rope_args;

/* ---- pages ---------------------------------------------------------------------------------- */

/* One layer in a page: heads of key_bytes + value_bytes.
 *     F16   keys [32 tokens][key_stride] half, values [value_stride][32 tokens] half
 *     Q8_0  keys [key_stride/32][32 tokens] half scales, [32 tokens][key_stride] int8;
 *           values [value_stride/32][32 tokens] half scales, [value_stride][32 tokens] int8
 * Keys lie as the matrix units read queries times keys, values turned as they read weights times
 * values. Staged layers (F16, heads of 128 dimensions, on 9.0) have values as [32 tokens][128] too, since
 * those are turned on their way out of shared memory; chunks of 8 halves stand where key_place and
 * value_place (device.cuh) say. Numbers are stored saturated; a NaN stays one as F16 and becomes zero as
 * Q8_0. */
typedef struct cuda_kv_layer {
    int64_t offset, head_bytes; /* of the layer in a page; of a head */
    int64_t key_data, values, value_data;
    int32_t n_kv_heads, key_dim, value_dim, key_stride, value_stride, q8, staged, zero;
} cuda_kv_layer;

typedef struct kv_write_args {
    cuda_kv_layer layer;
    uint8_t *pages;
    int64_t page_bytes;
    const float *k, *v;
    const int32_t *slots; /* [n_tokens] page * 32 + place in the page */
    rope_args rope;       /* n_pairs > 0: of k, and of q, done on the way */
} kv_write_args;

typedef struct kv_read_args {
    cuda_kv_layer layer;
    const uint8_t *pages;
    int64_t page_bytes;
    const int32_t *page_table;
    float *to;
    int32_t first, values;
} kv_read_args;

/* ---- attention ------------------------------------------------------------------------------ */

#define ATTENTION_ROWS        16 /* queries of a tile: (token, head) pairs that share a kv head */
#define ATTENTION_WIDE        64 /* queries of a tile of four warps that share what they read */
#define ATTENTION_FEW         8  /* queries of tiles that several warps go through together */
#define ATTENTION_TOGETHER    4  /* such warps */
#define ATTENTION_UNIT_TOKENS 64 /* softmax sums begin anew each; units are combined in order */

typedef struct attention_tile {
    int32_t first_row;   /* the sequence's first row in the step */
    int32_t first_query; /* of the tile, counted token by token, group by group */
    int32_t n_queries;   /* 1 .. ATTENTION_ROWS or ATTENTION_WIDE */
    int32_t position;    /* of the sequence's first row */
    int32_t pages;       /* where its page ids begin */
    int32_t partial;     /* split tiles: its first query among the queries that are split */
} attention_tile;

/* Keys and values of the step's rows that attention writes itself, where no sequence has more than ATTENTION_FRESH of
 * them: rope's turning, of all dimensions, is done on the way, and so it is of q. */
#define ATTENTION_FRESH 2

typedef struct fresh_rows {
    const float *k, *v;           /* k NULL: they are in the pages, and q is turned */
    const float *cosines, *sines; /* [n_tokens, 64] */
    int64_t kind;                 /* rope_kind */
} fresh_rows;

typedef struct attention_args {
    cuda_kv_layer layer;
    uint8_t *pages;
    int64_t page_bytes;
    const attention_tile *tiles;
    const int32_t *page_ids, *positions; /* positions: combine_row, of the step's rows */
    const float *q;
    float *out;
    float *partials; /* [split queries][kv heads][units] of value_stride + 4 floats */
    int32_t n_tiles, n_heads, group, window; /* group: n_heads / n_kv_heads */
    float scale, soft_cap;
    int32_t units, warp_bytes; /* grid's units; shared memory of one warp */
    int32_t n_split, zero; /* staged: so many of tiles, the first, are split, the others walked */
    prepared p;            /* combine_row */
    fresh_rows fresh;      /* staged, but for tiles of more than ATTENTION_ROWS */
} attention_args;

/* ---- products ------------------------------------------------------------------------------- */

/* What becomes of results. */
enum {
    EPILOGUE_STORE,
    EPILOGUE_NORM, /* out[0] += factor * result, which is made the normed input of the next product (NORMED) */
    EPILOGUE_GATED, /* of a pair: out[0] = activation(gate) * up, which is made the next input (PLAIN) */
    EPILOGUES
};

#define MATMUL_WEIGHTS 3 /* of one kind that share the input, in one launch */

typedef struct matmul_args {
    packed w[MATMUL_WEIGHTS];
    float *out[MATMUL_WEIGHTS];
    const float *bias[MATMUL_WEIGHTS];
    prepared x;
    prepared next;         /* EPILOGUE_NORM, EPILOGUE_GATED: the input of what comes next */
    const float *x_floats; /* F32 weights */
    float *parts;          /* stream.cu: sums of places that several blocks share */
    int32_t *counters;     /* and two counts of each (stream.cu); zeros between launches */
    int32_t first_block[MATMUL_WEIGHTS + 1];
    int32_t count, n_tokens;
    int32_t whole, share; /* stream.cu: a block's whole places, its segments of a shared one */
    int32_t epilogue, activation; /* activation: GATED, an activation_kind */
    float factor;                 /* NORM: of what is added */
    int32_t zero;
} matmul_args;

/* Kernels by the most tokens they take at once: 8 (LONG: of so many rows that blocks may be twice as tall),
 * 16 and 32 (SHORT: of so few rows that no multiprocessor has more than one block), 64 (WIDE: on 9.0, by wgmma) and
 * tiles of 128 (on 9.0 by wgmma too). */
enum {
    MATMUL_8,
    MATMUL_8_LONG,
    MATMUL_16,
    MATMUL_16_SHORT,
    MATMUL_32,
    MATMUL_32_SHORT,
    MATMUL_64,
    MATMUL_64_WIDE,
    MATMUL_TILES,
    MATMUL_KERNELS
};

typedef struct matmul_kernel {
    const void *function;
    int32_t tile_rows, tile_tokens; /* of a block; tokens beyond are more blocks in y */
    int32_t threads, shared_bytes;
    int32_t persistent; /* 1: blocks go from rows to rows; no more than can run at once are wanted.
                         * 2: blocks share all rows and segments of all tokens; likewise */
    int32_t part_bytes; /* of matmul_args.parts, a block */
} matmul_kernel;

matmul_kernel cuda_kernel_matmul_f16(int which, int epilogue);
matmul_kernel cuda_kernel_matmul_q8(int which, int epilogue);
matmul_kernel cuda_kernel_matmul_q4(int which, int epilogue);
matmul_kernel cuda_kernel_matmul_q4k(int which, int epilogue);
matmul_kernel cuda_kernel_matmul_q5(int which, int epilogue);
matmul_kernel cuda_kernel_matmul_q5k(int which, int epilogue);
matmul_kernel cuda_kernel_matmul_q6(int which, int epilogue);
matmul_kernel cuda_kernel_matmul_q3(int which, int epilogue);
matmul_kernel cuda_kernel_matmul_q2(int which, int epilogue);
matmul_kernel cuda_kernel_matmul_t4(int which, int epilogue);
/* Those by wgmma, where compiled for it (compute_90a): stream.cu. */
matmul_kernel cuda_kernel_stream_f16(int which, int epilogue);
matmul_kernel cuda_kernel_stream_q8(int which, int epilogue);
matmul_kernel cuda_kernel_stream_q4(int which, int epilogue);
matmul_kernel cuda_kernel_stream_q4k(int which, int epilogue);
matmul_kernel cuda_kernel_stream_q5(int which, int epilogue);
matmul_kernel cuda_kernel_stream_q5k(int which, int epilogue);
matmul_kernel cuda_kernel_stream_q6(int which, int epilogue);
matmul_kernel cuda_kernel_stream_q3(int which, int epilogue);
matmul_kernel cuda_kernel_stream_q2(int which, int epilogue);
matmul_kernel cuda_kernel_stream_t4(int which, int epilogue);

/* ---- making weights ------------------------------------------------------------------------- */

typedef struct pack_args {
    packed w;            /* pointers to the matrix's begin; written despite their const */
    const uint8_t *rows; /* raw rows of the file, row_bytes apart, from first_row on */
    int64_t row_bytes;
    int32_t first_row, n_rows; /* first_row is a multiple of PACKED_ROWS */
    int32_t which, zero;       /* which: of a pair */
} pack_args;

const void *cuda_kernel_pack(void);       /* grid: row tiles, block: 256 */
const void *cuda_kernel_row_scales(void); /* grid: rows, block: 32 */

const void *cuda_kernel_prepare(void); /* grid: rows */
/* Makes an input (rows_args.p) of n_elements rows FINAL; grid: rows / SETTLE_ROWS, block: SETTLE_ROWS. */
#define SETTLE_ROWS 128
const void *cuda_kernel_settle(void);
const void *
cuda_kernel_clear(void); /* out .. out + n_elements, words of 16 bytes; grid: elements / 256 */
const void *cuda_kernel_gated(void); /* grid: parts of a row, a cluster; rows */
const void *cuda_kernel_add(void);   /* grid: elements / 1024, block: 256 */
const void *cuda_kernel_soft_cap(void);
const void *cuda_kernel_gather(void);             /* grid: rows */
const void *cuda_kernel_results(void);            /* grid: 1 + peaks / 32, rows; block: 1024 */
const void *cuda_kernel_norm(const norm_args *a); /* which depends on them; grid: rows */
const void *cuda_kernel_embed(void);              /* grid: rows */
const void *cuda_kernel_angles(void);
const void *cuda_kernel_rope(void); /* grid: rows, tensors */
/* Depends on what is to be written; grid: rows, kv heads by so many a block; block: so many threads. */
const void *cuda_kernel_kv_write(const kv_write_args *a, int32_t *heads, int32_t *threads);
const void *cuda_kernel_kv_read(void); /* grid: tokens */
const void *cuda_kernel_matmul_f32(void);
const void *cuda_kernel_attention_split(void); /* grid: units / 4, kv heads, tiles */
/* On 9.0 (compute_90a), staged layers, by the most queries of a tile, at most ATTENTION_WIDE; together: warps that go
 * through a tile of at most ATTENTION_FEW, or 1; fresh: 1 if there are fresh_rows; grid: kv heads by walked tiles, then,
 * if not together, by split tiles by units. */
const void *cuda_kernel_attention_staged(int queries, int together, int fresh, int32_t *threads,
                                         int32_t *shared_bytes);
const void *cuda_kernel_attention_combine(void);     /* grid: queries of a tile, kv heads, tiles */
const void *cuda_kernel_attention_combine_row(void); /* grid: rows */
const void *cuda_kernel_attention_walk(void);        /* grid: tiles, kv heads */

#ifdef __cplusplus
}
#endif
#endif
