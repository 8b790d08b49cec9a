/* compute/cpu/dense.inl: products in F32 arithmetic of weights of every type, for one instruction
 * set. Included by isa_<name>.c, after dequantize.inl.
 *
 * The kernel of F32, F16 and BF16 weights, of quantized types that have none of their own, and of
 * everything when a backend is opened with options.exact. Lanes are columns: weights are used where
 * and as the file has them, a row beside a row, so nothing is packed and loading costs nothing.
 * ROW_TILE rows meet TOKEN_TILE tokens in registers; sixteen columns of each are loaded once for
 * all of their products. F16 and BF16 are converted on the way, each time anew: that costs less than going
 * through memory once more. Quantized types are unpacked to floats first, PANEL_ROWS rows of
 * BLOCK_COLS columns at a time, which stay in the second-level cache.
 *
 * A result is ((sum of the first BLOCK_COLS columns) + (sum of the next) + ...) + bias. Each sum is
 * sixteen chains of fused multiply-adds by ascending column, column c in chain c % 16, then the
 * upper half of the chains onto the lower until one is left: the same bits for any number of
 * tokens, any rows, and on every set that has fused multiply-adds. */

#define BLOCK_COLS 1024
#define PANEL_ROWS 32
/* Tokens whose BLOCK_COLS columns take half of a usual second-level cache of 1 MB. */
#define MANY_TOKENS 128
/* Rows of a panel lie a line further apart than they are long: at powers of two they would push
 * each other out of the cache. */
#define PANEL_STRIDE (BLOCK_COLS + 16)

/* ROW_TILE * TOKEN_TILE vectors of sums, a tile's columns and a row's fit the 32 or 16 registers.
 * Narrow vectors walk a block once for each part of the sixteen lanes. */
#define ROW_TILE 4
#if defined(__AVX512F__) || defined(__aarch64__)
#define TOKEN_TILE 6
#else
#define TOKEN_TILE 3
#endif

#define UNROLL _Pragma("GCC unroll 8")

/* ---- one tile -------------------------------------------------------------------------------- */

typedef struct dense_tile {
    const uint8_t *rows; /* the first row's first column of the block */
    size_t row_bytes;
    /* The columns to be needed next, which the prefetcher is told of: as rows, in the file's
     * elements. NULL: none. */
    const uint8_t *ahead;
    size_t ahead_row_bytes, ahead_element;
    int32_t n_rows;       /* that exist, up to ROW_TILE */
    int32_t count;        /* columns */
    const float *x;       /* [count / 16][width][16], then [width][count % 16] */
    float *out;           /* the first token's first row */
    size_t out_stride;
    int first;         /* the first columns: out holds nothing yet */
    const float *bias; /* of the rows; only with the last columns */
} dense_tile;

/* Bytes of an element of a float type. */
VF_INLINE size_t dense_element(uint32_t type)
{
    return type == DTYPE_F32 ? 4 : 2;
}

VF_INLINE vf dense_load(const uint8_t *row, int32_t c, uint32_t type)
{
    const void *at = row + (size_t)c * dense_element(type);
    return type == DTYPE_F32   ? vf_load(at)
           : type == DTYPE_F16 ? vf_load_f16(at)
                               : vf_load_bf16(at);
}

/* The first n columns (0 to VF_LANES, or beyond) from c on, the rest zero. */
VF_INLINE vf dense_load_part(const uint8_t *row, int32_t c, int32_t n, uint32_t type)
{
    float columns[VF_LANES] = {0};
    size_t element = dense_element(type);
    n = n < 0 ? 0 : n < VF_LANES ? n : VF_LANES;
    memcpy(columns, row + (size_t)c * element, (size_t)n * element);
    return dense_load((const uint8_t *)columns, 0, type);
}

/* sums[i] = the sixteen lanes of row i. */
VF_INLINE void dense_sums(float sums[ROW_TILE], const vf lanes[ROW_TILE][VF_PARTS])
{
#if VF_LANES == 16
    /* Four at once, each step as vf_sum's. */
    __m512 a = lanes[0][0], b = lanes[1][0], c = lanes[2][0], d = lanes[3][0];
    a = _mm512_shuffle_f32x4(a, b, 0x44) + _mm512_shuffle_f32x4(a, b, 0xEE);
    c = _mm512_shuffle_f32x4(c, d, 0x44) + _mm512_shuffle_f32x4(c, d, 0xEE);
    a = _mm512_shuffle_f32x4(a, c, 0x88) + _mm512_shuffle_f32x4(a, c, 0xDD);
    a = a + _mm512_permute_ps(a, 0x4E);
    a = a + _mm512_permute_ps(a, 0xB1);
    _mm_storeu_ps(sums, _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, a)));
#elif VF_LANES == 8
    for (int i = 0; i < ROW_TILE; i += 2) { /* two at once */
        __m256 a = lanes[i][0] + lanes[i][1], b = lanes[i + 1][0] + lanes[i + 1][1];
        a = _mm256_permute2f128_ps(a, b, 0x20) + _mm256_permute2f128_ps(a, b, 0x31);
        a = a + _mm256_permute_ps(a, 0x4E);
        a = a + _mm256_permute_ps(a, 0xB1);
        sums[i] = a[0];
        sums[i + 1] = a[4];
    }
#else
    for (int i = 0; i < ROW_TILE; i++)
        sums[i] = vf_sum16(lanes[i]);
#endif
}

typedef float row_sums __attribute__((vector_size(ROW_TILE * 4), aligned(4), may_alias));

VF_INLINE void dense_finish(const dense_tile *d, int token, const vf lanes[ROW_TILE][VF_PARTS])
{
    _Alignas(16) float sums[ROW_TILE];
    float *out = d->out + (size_t)token * d->out_stride;
    dense_sums(sums, lanes);
    if (d->n_rows == ROW_TILE) {
        row_sums all = *(row_sums *)sums;
        if (!d->first)
            all = *(row_sums *)out + all;
        if (d->bias)
            all = all + *(const row_sums *)d->bias;
        *(row_sums *)out = all;
        return;
    }
    for (int i = 0; i < d->n_rows; i++) {
        float sum = d->first ? sums[i] : out[i] + sums[i];
        out[i] = d->bias ? sum + d->bias[i] : sum;
    }
}

/* One part of the lanes of n tokens times ROW_TILE rows; type, part and n are constants. */
VF_INLINE void dense_part(vf all[TOKEN_TILE][ROW_TILE][VF_PARTS], const dense_tile *d,
                          const uint8_t *const rows[ROW_TILE], uint32_t type, const int part,
                          const int n)
{
    vf sums[TOKEN_TILE][ROW_TILE];
    UNROLL
    for (int t = 0; t < n; t++) {
        UNROLL
        for (int i = 0; i < ROW_TILE; i++)
            sums[t][i] = vf_set(0);
    }
    const float *x = d->x + part * VF_LANES;
    for (int32_t c = 0; c + 16 <= d->count; c += 16, x += 16 * n) {
        size_t offset = (size_t)c * d->ahead_element;
        if (part == 0 && d->ahead && offset % 64 == 0) {
            UNROLL
            for (int i = 0; i < ROW_TILE; i++)
                __builtin_prefetch(d->ahead + (size_t)i * d->ahead_row_bytes + offset, 0, 2);
        }
        vf columns[TOKEN_TILE];
        UNROLL
        for (int t = 0; t < n; t++)
            columns[t] = vf_load(x + 16 * t);
        UNROLL
        for (int i = 0; i < ROW_TILE; i++) {
            vf w = dense_load(rows[i], c + part * VF_LANES, type);
            UNROLL
            for (int t = 0; t < n; t++)
                sums[t][i] = vf_fma(w, columns[t], sums[t][i]);
        }
    }
    UNROLL
    for (int t = 0; t < n; t++) {
        UNROLL
        for (int i = 0; i < ROW_TILE; i++)
            all[t][i][part] = sums[t][i];
    }
}

/* The columns after the last whole sixteen: of rows that are not a multiple of that. */
static void dense_rest(vf sums[TOKEN_TILE][ROW_TILE][VF_PARTS], const dense_tile *d,
                       const uint8_t *const rows[ROW_TILE], uint32_t type, int n)
{
    int32_t c = d->count / 16 * 16, rest = d->count - c;
    const float *x = d->x + (size_t)c * (size_t)n;
    for (int p = 0; p < VF_PARTS; p++) {
        int32_t left = rest - p * VF_LANES;
        for (int t = 0; t < n; t++) {
            vf column = dense_load_part((const uint8_t *)(x + t * rest), p * VF_LANES, left,
                                        DTYPE_F32);
            for (int i = 0; i < ROW_TILE; i++)
                sums[t][i][p] = vf_fma(dense_load_part(rows[i], c + p * VF_LANES, left, type),
                                       column, sums[t][i][p]);
        }
    }
}

/* n tokens times ROW_TILE rows; type and n are constants. */
VF_INLINE void dense_multiply(const dense_tile *d, uint32_t type, const int n)
{
    const uint8_t *rows[ROW_TILE];
    vf sums[TOKEN_TILE][ROW_TILE][VF_PARTS];
    UNROLL
    for (int i = 0; i < ROW_TILE; i++)
        rows[i] = d->rows + (size_t)(i < d->n_rows ? i : 0) * d->row_bytes;
    UNROLL
    for (int p = 0; p < VF_PARTS; p++)
        dense_part(sums, d, rows, type, p, n);
    if (d->count % 16) { /* a copy, so that without a rest the sums never leave the registers */
        vf more[TOKEN_TILE][ROW_TILE][VF_PARTS];
        memcpy(more, sums, sizeof more);
        dense_rest(more, d, rows, type, n);
        for (int t = 0; t < n; t++)
            dense_finish(d, t, more[t]);
        return;
    }
    UNROLL
    for (int t = 0; t < n; t++)
        dense_finish(d, t, sums[t]);
}

VF_INLINE void dense_multiply_type(const dense_tile *d, uint32_t type, int n)
{
    switch (n) {
    case 1: dense_multiply(d, type, 1); break;
    case 2: dense_multiply(d, type, 2); break;
    case 3: dense_multiply(d, type, 3); break;
#if TOKEN_TILE > 3
    case 4: dense_multiply(d, type, 4); break;
    case 5: dense_multiply(d, type, 5); break;
    case 6: dense_multiply(d, type, 6); break;
#endif
    default: break;
    }
}

static void dense_multiply_f32(const dense_tile *d, int n)
{
    dense_multiply_type(d, DTYPE_F32, n);
}

static void dense_multiply_f16(const dense_tile *d, int n)
{
    dense_multiply_type(d, DTYPE_F16, n);
}

static void dense_multiply_bf16(const dense_tile *d, int n)
{
    dense_multiply_type(d, DTYPE_BF16, n);
}

/* ---- tokens ---------------------------------------------------------------------------------- */

/* Tokens in as few tiles as hold them, as even as can be: the first ones have one more. */
typedef struct dense_tiles {
    int32_t count, width, wider; /* the first `wider` tiles have width + 1 */
} dense_tiles;

static dense_tiles dense_tiles_of(int32_t n_tokens)
{
    int32_t count = (n_tokens + TOKEN_TILE - 1) / TOKEN_TILE;
    return (dense_tiles){count, n_tokens / count, n_tokens % count};
}

static int32_t dense_tile_first(dense_tiles s, int32_t tile)
{
    return tile * s.width + (tile < s.wider ? tile : s.wider);
}

static int32_t dense_tile_width(dense_tiles s, int32_t tile)
{
    return s.width + (tile < s.wider);
}

static int32_t dense_tile_holding(dense_tiles s, int32_t token)
{
    int32_t in_wider = s.wider * (s.width + 1);
    return token < in_wider ? token / (s.width + 1) : s.wider + (token - in_wider) / s.width;
}

static size_t dense_input_bytes(int32_t n_tokens, int32_t n_cols)
{
    return (size_t)n_tokens * (size_t)n_cols * sizeof(float);
}

/* Tiles one after the other, sixteen columns of each of a tile's tokens side by side: what a tile
 * needs next is always next in memory. */
static void dense_prepare(void *prepared, const float *x, int32_t first_token, int32_t count,
                          int32_t n_tokens, int32_t n_cols)
{
    dense_tiles tiles = dense_tiles_of(n_tokens);
    for (int32_t t = first_token; t < first_token + count; t++) {
        int32_t tile = dense_tile_holding(tiles, t), first = dense_tile_first(tiles, tile);
        size_t width = (size_t)dense_tile_width(tiles, tile), in_tile = (size_t)(t - first);
        float *to = (float *)prepared + (size_t)first * (size_t)n_cols;
        const float *from = x + (size_t)t * (size_t)n_cols;
        int32_t c = 0;
        for (; c + 16 <= n_cols; c += 16)
            memcpy(to + (size_t)c * width + 16 * in_tile, from + c, 16 * sizeof *to);
        size_t rest = (size_t)(n_cols - c);
        memcpy(to + (size_t)c * width + rest * in_tile, from + c, rest * sizeof *to);
    }
}

/* ---- the kernel ------------------------------------------------------------------------------ */

static int dense_is_float(uint32_t type)
{
    return type == DTYPE_F32 || type == DTYPE_F16 || type == DTYPE_BF16;
}

static int dense_accepts(uint32_t type, int32_t n_rows, int32_t n_cols)
{
    (void)n_rows;
    (void)n_cols;
    return quants_is_weight(type);
}

/* What product is called with, for the functions below. */
typedef struct dense_job {
    const cpu_weight *w;
    const float *x;
    dense_tiles tiles;
    float *out;
    size_t out_stride;
    const float *bias;
} dense_job;

/* What all tiles of a row's columns c .. c+count-1 share. */
static dense_tile dense_tile_at(const dense_job *j, int32_t row, int32_t n_rows, int32_t c,
                                int32_t count)
{
    return (dense_tile){.n_rows = n_rows < ROW_TILE ? n_rows : ROW_TILE,
                        .count = count,
                        .out_stride = j->out_stride,
                        .first = c == 0,
                        .bias = j->bias && c + count == j->w->head.n_cols ? j->bias + row : NULL};
}

/* Points d at tile number t of the tokens; returns how many they are. */
static int32_t dense_take_tokens(const dense_job *j, dense_tile *d, int32_t row, int32_t c,
                                 int32_t t)
{
    int32_t first = dense_tile_first(j->tiles, t), width = dense_tile_width(j->tiles, t);
    d->x = j->x + (size_t)first * (size_t)j->w->head.n_cols + (size_t)c * (size_t)width;
    d->out = j->out + (size_t)first * j->out_stride + row;
    return width;
}

/* What comes after row's columns before c when n_rows rows are walked block by block. */
static void dense_look_ahead(dense_tile *d, const cpu_weight *w, int32_t row, int32_t n_rows,
                             int32_t c)
{
    d->ahead_element = dense_element(w->head.type);
    d->ahead_row_bytes = w->row_bytes;
    d->ahead = w->data + (size_t)row * w->row_bytes;
    d->ahead += c < w->head.n_cols ? (size_t)c * d->ahead_element : (size_t)n_rows * w->row_bytes;
}

/* Tile t of the tokens times up to ROW_TILE rows of a float type, columns c .. c+count-1. */
static void dense_in_place(const dense_job *j, int32_t row, int32_t n_rows, int32_t c,
                           int32_t count, int32_t t, int32_t rows_ahead)
{
    const cpu_weight *w = j->w;
    dense_tile d = dense_tile_at(j, row, n_rows, c, count);
    int32_t n = dense_take_tokens(j, &d, row, c, t);
    d.rows = w->data + (size_t)row * w->row_bytes + (size_t)c * dense_element(w->head.type);
    d.row_bytes = w->row_bytes;
    if (t == 0)
        dense_look_ahead(&d, w, row, rows_ahead, c + count);
    if (w->head.type == DTYPE_F32)
        dense_multiply_f32(&d, n);
    else if (w->head.type == DTYPE_F16)
        dense_multiply_f16(&d, n);
    else
        dense_multiply_bf16(&d, n);
}

/* Rows first .. end-1 of a float type. With few tokens, whose columns all fit the second-level
 * cache, rows are walked from end to end, as memory likes it; with many a tile of tokens stays in
 * the first-level cache while some rows' block comes from the second. */
static void dense_floats(const dense_job *j, int32_t first, int32_t end)
{
    int32_t n_cols = j->w->head.n_cols, tiles = j->tiles.count;
    int many = tiles * TOKEN_TILE > MANY_TOKENS;
    int32_t step = many ? PANEL_ROWS : ROW_TILE;
    for (int32_t top = first; top < end; top += step)
        for (int32_t c = 0; c < n_cols; c += BLOCK_COLS) {
            int32_t count = n_cols - c < BLOCK_COLS ? n_cols - c : BLOCK_COLS;
            int32_t bottom = end - top < step ? end : top + step;
            for (int32_t t = 0; t < tiles; t++)
                for (int32_t row = top; row < bottom; row += ROW_TILE)
                    dense_in_place(j, row, bottom - row, c, count, t, step);
        }
}

/* Rows first .. end-1 of a quantized type, unpacked panel by panel into the second-level cache. */
static void dense_quantized(const dense_job *j, int32_t first, int32_t end)
{
    _Alignas(64) float panel[PANEL_ROWS * PANEL_STRIDE];
    const cpu_weight *w = j->w;
    int32_t n_cols = w->head.n_cols;
    for (int32_t top = first; top < end; top += PANEL_ROWS) {
        int32_t n_rows = end - top < PANEL_ROWS ? end - top : PANEL_ROWS;
        for (int32_t c = 0; c < n_cols; c += BLOCK_COLS) {
            int32_t count = n_cols - c < BLOCK_COLS ? n_cols - c : BLOCK_COLS;
            const uint8_t *from = w->data + (size_t)top * w->row_bytes +
                                  dtype_row_bytes(w->head.type, (uint64_t)c);
            for (int32_t r = 0; r < n_rows; r++)
                dequantize(w->head.type, panel + r * PANEL_STRIDE,
                           from + (size_t)r * w->row_bytes, count);
            for (int32_t t = 0; t < j->tiles.count; t++)
                for (int32_t r = 0; r < n_rows; r += ROW_TILE) {
                    dense_tile d = dense_tile_at(j, top + r, n_rows - r, c, count);
                    d.rows = (const uint8_t *)(panel + (size_t)r * PANEL_STRIDE);
                    d.row_bytes = PANEL_STRIDE * sizeof *panel;
                    dense_multiply_f32(&d, dense_take_tokens(j, &d, top + r, c, t));
                }
        }
    }
}

static void dense_product(const cpu_weight *w, const void *prepared, int32_t n_tokens, float *out,
                          int32_t out_stride, const float *bias, int32_t first_row,
                          int32_t row_count)
{
    dense_job j = {w, prepared, dense_tiles_of(n_tokens), out, (size_t)out_stride, bias};
    if (dense_is_float(w->head.type))
        dense_floats(&j, first_row, first_row + row_count);
    else
        dense_quantized(&j, first_row, first_row + row_count);
}
