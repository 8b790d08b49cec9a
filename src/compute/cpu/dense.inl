/* compute/cpu/dense.inl: products in F32 arithmetic of weights of every type, for one instruction
 * set. Included by isa_<name>.c, after dequantize.inl.
 *
 * The kernel of F32, F16 and BF16 weights, of quantized types that have none of their own, and of
 * everything when a backend is opened with options.exact. A lane is a weight row: 2 * VF_LANES rows
 * by 256 columns are unpacked to floats, transposed into a panel [column][row] that fits the
 * first-level cache, and then multiplied with all tokens, TOKEN_TILE at a time, each a broadcast.
 * So the file's bytes are read once whatever the number of tokens, in place: nothing is packed and
 * loading costs nothing. Unpacking costs less than a cycle a weight, under what memory takes to
 * bring it, so the same code serves one token.
 *
 * A result is ((sum of columns 0..255) + (sum of 256..511) + ...) + bias, each sum a chain of fused
 * multiply-adds by ascending column: the same for any number of tokens, any rows. Blocks of 256
 * also keep the rounding error of long rows down. */

#define BLOCK_COLS 256
#define BLOCK_ROWS (2 * VF_LANES)

/* Tokens that two vectors of rows are multiplied with at once: as many sums as registers allow. */
#if VF_LANES == 16
#define TOKEN_TILE 12
#elif VF_LANES == 8
#define TOKEN_TILE 6
#elif defined(__aarch64__)
#define TOKEN_TILE 8
#else
#define TOKEN_TILE 4
#endif

/* ---- weights to panels ----------------------------------------------------------------------- */

/* r[i] lane j -> r[j] lane i */
#if VF_LANES == 16
VF_INLINE void dense_transpose(vf r[VF_LANES])
{
    __m512 a[16];
    for (int i = 0; i < 16; i += 4) {
        __m512 t0 = _mm512_unpacklo_ps(r[i], r[i + 1]), t1 = _mm512_unpackhi_ps(r[i], r[i + 1]);
        __m512 t2 = _mm512_unpacklo_ps(r[i + 2], r[i + 3]);
        __m512 t3 = _mm512_unpackhi_ps(r[i + 2], r[i + 3]);
        a[i] = _mm512_shuffle_ps(t0, t2, 0x44);
        a[i + 1] = _mm512_shuffle_ps(t0, t2, 0xEE);
        a[i + 2] = _mm512_shuffle_ps(t1, t3, 0x44);
        a[i + 3] = _mm512_shuffle_ps(t1, t3, 0xEE);
    }
    /* a[4g + j] holds, in quarter q, column 4q + j of rows 4g .. 4g+3. */
    for (int j = 0; j < 4; j++) {
        __m512 t0 = _mm512_shuffle_f32x4(a[j], a[4 + j], 0x88);
        __m512 t1 = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0x88);
        __m512 t2 = _mm512_shuffle_f32x4(a[j], a[4 + j], 0xDD);
        __m512 t3 = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0xDD);
        r[j] = _mm512_shuffle_f32x4(t0, t1, 0x88);
        r[8 + j] = _mm512_shuffle_f32x4(t0, t1, 0xDD);
        r[4 + j] = _mm512_shuffle_f32x4(t2, t3, 0x88);
        r[12 + j] = _mm512_shuffle_f32x4(t2, t3, 0xDD);
    }
}
#elif VF_LANES == 8
VF_INLINE void dense_transpose(vf r[VF_LANES])
{
    __m256 a[8];
    for (int i = 0; i < 8; i += 4) {
        __m256 t0 = _mm256_unpacklo_ps(r[i], r[i + 1]), t1 = _mm256_unpackhi_ps(r[i], r[i + 1]);
        __m256 t2 = _mm256_unpacklo_ps(r[i + 2], r[i + 3]);
        __m256 t3 = _mm256_unpackhi_ps(r[i + 2], r[i + 3]);
        a[i] = _mm256_shuffle_ps(t0, t2, 0x44);
        a[i + 1] = _mm256_shuffle_ps(t0, t2, 0xEE);
        a[i + 2] = _mm256_shuffle_ps(t1, t3, 0x44);
        a[i + 3] = _mm256_shuffle_ps(t1, t3, 0xEE);
    }
    for (int j = 0; j < 4; j++) {
        r[j] = _mm256_permute2f128_ps(a[j], a[4 + j], 0x20);
        r[4 + j] = _mm256_permute2f128_ps(a[j], a[4 + j], 0x31);
    }
}
#else
VF_INLINE void dense_transpose(vf r[VF_LANES])
{
    vf t0 = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5);
    vf t1 = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
    vf t2 = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5);
    vf t3 = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
    r[0] = __builtin_shufflevector(t0, t2, 0, 1, 4, 5);
    r[1] = __builtin_shufflevector(t0, t2, 2, 3, 6, 7);
    r[2] = __builtin_shufflevector(t1, t3, 0, 1, 4, 5);
    r[3] = __builtin_shufflevector(t1, t3, 2, 3, 6, 7);
}
#endif

/* VF_LANES rows (n of them real, the rest zero), row_bytes apart, count columns -> columns of
 * panel. count is a multiple of VF_LANES. Short pieces of many rows are no pattern for the processor's own
 * prefetcher: ahead is where the next panel begins. */
VF_INLINE void dense_panel_rows(float *panel, const uint8_t *rows, const uint8_t *ahead,
                                size_t row_bytes, int n, int32_t count, uint32_t type)
{
    size_t element = type == DTYPE_F32 ? 4 : 2;
    for (int32_t c = 0; c < count; c += VF_LANES) {
        vf r[VF_LANES];
        for (int i = 0; i < VF_LANES; i++) {
            size_t offset = (size_t)(i < n ? i : 0) * row_bytes + (size_t)c * element;
            const void *at = rows + offset;
            if ((size_t)c * element % 64 == 0)
                __builtin_prefetch(ahead + offset);
            r[i] = type == DTYPE_F32   ? vf_load(at)
                   : type == DTYPE_F16 ? vf_load_f16(at)
                                       : vf_load_bf16(at);
        }
        for (int i = n; i < VF_LANES; i++)
            r[i] = vf_set(0);
        dense_transpose(r);
        for (int i = 0; i < VF_LANES; i++)
            vf_store(panel + (c + i) * BLOCK_ROWS, r[i]);
    }
}

static void dense_panel_any(float *panel, const uint8_t *rows, size_t row_bytes, int n,
                            int32_t count, uint32_t type)
{
    float values[VF_LANES][BLOCK_COLS];
    int32_t padded = (count + VF_LANES - 1) / VF_LANES * VF_LANES;
    for (int i = 0; i < n; i++) {
        dequantize(type, values[i], rows + (size_t)i * row_bytes, count);
        for (int32_t c = count; c < padded; c++)
            values[i][c] = 0;
    }
    const uint8_t *from = (const uint8_t *)values;
    dense_panel_rows(panel, from, from, sizeof values[0], n, padded, DTYPE_F32);
}

/* Rows row .. row+n-1 (n <= BLOCK_ROWS), columns c .. c+count-1 of w. */
static void dense_panel(float *panel, const cpu_weight *w, int32_t row, int32_t n, int32_t c,
                        int32_t count)
{
    uint32_t type = w->head.type;
    for (int32_t half = 0; half < BLOCK_ROWS && half < n; half += VF_LANES) {
        const uint8_t *rows = w->data + (size_t)(row + half) * w->row_bytes +
                              dtype_row_bytes(type, (uint64_t)c);
        int real = n - half < VF_LANES ? n - half : VF_LANES;
        const uint8_t *ahead = c + count < w->head.n_cols
                                   ? rows + dtype_row_bytes(type, (uint64_t)count)
                                   : rows - dtype_row_bytes(type, (uint64_t)c) +
                                         BLOCK_ROWS * w->row_bytes;
        if (count % VF_LANES)
            dense_panel_any(panel + half, rows, w->row_bytes, real, count, type);
        else if (type == DTYPE_F32)
            dense_panel_rows(panel + half, rows, ahead, w->row_bytes, real, count, DTYPE_F32);
        else if (type == DTYPE_F16)
            dense_panel_rows(panel + half, rows, ahead, w->row_bytes, real, count, DTYPE_F16);
        else if (type == DTYPE_BF16)
            dense_panel_rows(panel + half, rows, ahead, w->row_bytes, real, count, DTYPE_BF16);
        else
            dense_panel_any(panel + half, rows, w->row_bytes, real, count, type);
    }
}

/* ---- tokens times panel ---------------------------------------------------------------------- */

typedef struct dense_out {
    float *at; /* first token, first row of the block */
    size_t stride;
    int32_t n_rows;    /* of the block that exist */
    int first;         /* the first columns: at holds nothing yet */
    const float *bias; /* of the block's rows; only with the last columns */
} dense_out;

VF_INLINE void dense_finish(const dense_out *o, int32_t token, int32_t row, vf sum)
{
    float *at = o->at + (size_t)token * o->stride + row;
    int32_t n = o->n_rows - row;
    if (n >= VF_LANES) {
        if (!o->first)
            sum = vf_load(at) + sum;
        if (o->bias)
            sum = sum + vf_load(o->bias + row);
        vf_store(at, sum);
    } else if (n > 0) {
        if (!o->first)
            sum = vf_load_part(at, n) + sum;
        if (o->bias)
            sum = sum + vf_load_part(o->bias + row, n);
        vf_store_part(at, sum, n);
    }
}

/* n tokens, interleaved in x, times both halves of a panel. */
VF_INLINE void dense_tile(const dense_out *o, const float *panel, const float *x, int32_t count,
                          const int n)
{
    vf low[TOKEN_TILE], high[TOKEN_TILE];
    for (int i = 0; i < n; i++)
        low[i] = high[i] = vf_set(0);
    for (int32_t c = 0; c < count; c++) {
        vf a = vf_load(panel + c * BLOCK_ROWS), b = vf_load(panel + c * BLOCK_ROWS + VF_LANES);
        for (int i = 0; i < n; i++) {
            vf value = vf_set(x[c * n + i]);
            low[i] = vf_fma(a, value, low[i]);
            high[i] = vf_fma(b, value, high[i]);
        }
    }
    for (int i = 0; i < n; i++) {
        dense_finish(o, i, 0, low[i]);
        dense_finish(o, i, VF_LANES, high[i]);
    }
}

static void dense_tile_of(const dense_out *o, const float *panel, const float *x, int32_t count,
                          int n)
{
    switch (n) {
    case 1: dense_tile(o, panel, x, count, 1); break;
    case 2: dense_tile(o, panel, x, count, 2); break;
    case 3: dense_tile(o, panel, x, count, 3); break;
    case 4: dense_tile(o, panel, x, count, 4); break;
#if TOKEN_TILE > 4
    case 5: dense_tile(o, panel, x, count, 5); break;
    case 6: dense_tile(o, panel, x, count, 6); break;
#endif
#if TOKEN_TILE > 6
    case 7: dense_tile(o, panel, x, count, 7); break;
    case 8: dense_tile(o, panel, x, count, 8); break;
#endif
#if TOKEN_TILE > 8
    case 9: dense_tile(o, panel, x, count, 9); break;
    case 10: dense_tile(o, panel, x, count, 10); break;
    case 11: dense_tile(o, panel, x, count, 11); break;
    case 12: dense_tile(o, panel, x, count, 12); break;
#endif
    default: break;
    }
}

/* ---- the kernel ------------------------------------------------------------------------------ */

static int dense_accepts(uint32_t type, int32_t n_rows, int32_t n_cols)
{
    (void)n_rows;
    (void)n_cols;
    return quants_is_weight(type);
}

static size_t dense_input_bytes(int32_t n_tokens, int32_t n_cols)
{
    return (size_t)n_tokens * (size_t)n_cols * sizeof(float);
}

static int32_t dense_width(int32_t tile, int32_t n_tokens)
{
    int32_t left = n_tokens - tile * TOKEN_TILE;
    return left < TOKEN_TILE ? left : TOKEN_TILE;
}

/* Tiles of tokens interleaved by column, [tile][n_cols][width]: a panel's column meets neighbours,
 * where rows a power of two apart would push each other out of the cache. */
static void dense_prepare(void *prepared, const float *x, int32_t first_token, int32_t count,
                          int32_t n_tokens, int32_t n_cols)
{
    for (int32_t t = first_token; t < first_token + count; t++) {
        int32_t tile = t / TOKEN_TILE, width = dense_width(tile, n_tokens);
        float *to = (float *)prepared + (size_t)tile * TOKEN_TILE * (size_t)n_cols + t % TOKEN_TILE;
        const float *from = x + (size_t)t * (size_t)n_cols;
        for (int32_t c = 0; c < n_cols; c++)
            to[(size_t)c * (size_t)width] = from[c];
    }
}

static void dense_product(const cpu_weight *w, const void *prepared, int32_t n_tokens, float *out,
                          int32_t out_stride, const float *bias, int32_t first_row,
                          int32_t row_count)
{
    _Alignas(64) float panel[BLOCK_COLS * BLOCK_ROWS];
    const float *x = prepared;
    int32_t n_cols = w->head.n_cols, end = first_row + row_count;
    for (int32_t row = first_row; row < end; row += BLOCK_ROWS) {
        dense_out o = {.stride = (size_t)out_stride,
                       .n_rows = end - row < BLOCK_ROWS ? end - row : BLOCK_ROWS};
        for (int32_t c = 0; c < n_cols; c += BLOCK_COLS) {
            int32_t count = n_cols - c < BLOCK_COLS ? n_cols - c : BLOCK_COLS;
            dense_panel(panel, w, row, o.n_rows, c, count);
            o.first = c == 0;
            o.bias = bias && c + count == n_cols ? bias + row : NULL;
            for (int32_t t = 0; t < n_tokens; t += TOKEN_TILE) {
                int32_t width = dense_width(t / TOKEN_TILE, n_tokens);
                o.at = out + (size_t)t * (size_t)out_stride + row;
                dense_tile_of(&o, panel, x + (size_t)t * (size_t)n_cols + (size_t)c * (size_t)width,
                              count, width);
            }
        }
    }
}
