/* compute/cpu/attention.inl: softmax attention of some queries over pages, for one instruction set.
 *
 * Included by isa_<name>.c; called by attention.c on pool threads, each with its own scratch.
 *
 * The online softmax of FlashAttention (Dao et al., arXiv 2205.14135) with a page of 32 tokens as
 * its block: per query a running maximum, a sum of weights and the weighted sum of values, rescaled
 * when a page raises the maximum. Keys lie dimension-major and values token-major, so scores and
 * sums are both "broadcast one number, multiply a vector, add": no sum over lanes inside.
 *
 * What a query's result depends on, in order: pages by position, in a page dimensions ascending
 * for scores and tokens ascending for sums, splits by position (cpu_backend.h). Which queries
 * share the work is not among them: a query's chain of additions is its own, and a page where it
 * is masked adds exact zeros to it. */

/* A tile of products is QUERY_TILE queries by VECTOR_TILE vectors: enough independent chains to
 * hide the latency of an addition, few enough for the registers. */
#if VF_LANES == 16
#define QUERY_TILE  12
#define VECTOR_TILE 2
#elif VF_LANES == 8
#define QUERY_TILE  6
#define VECTOR_TILE 2
#elif defined(__aarch64__)
#define QUERY_TILE  4
#define VECTOR_TILE 4
#else
#define QUERY_TILE  4
#define VECTOR_TILE 2
#endif

#define N_TILES ((ATTENTION_QUERIES + QUERY_TILE - 1) / QUERY_TILE)

/* One piece's state. Arrays lie in the thread's scratch. */
typedef struct attention_state {
    const attention_piece *piece;
    int32_t n_queries, key_dim, stride; /* stride: value_dim up to a multiple of 16 */
    float *queries;                     /* [N_TILES][key_dim][QUERY_TILE] */
    float *keys;                        /* [key_dim][32] of the page, when converted */
    float *values;                      /* [32][stride] of the page, when converted */
    float *scores;                      /* [ATTENTION_QUERIES][32], then weights */
    float *sums;                        /* [ATTENTION_QUERIES][stride] of the split */
    float *weights; /* [ATTENTION_QUERIES][16] sums of weights of the split, token t in sum t % 16 */
    float *total;   /* [ATTENTION_QUERIES][stride + 16] of the splits so far */
    int32_t positions[ATTENTION_QUERIES];
    /* Whole vectors from any query on are loaded and stored. */
    float largest[N_TILES * QUERY_TILE + VF_LANES];
    float rescale[N_TILES * QUERY_TILE + VF_LANES]; /* of the sums, for the page at hand */
} attention_state;

static size_t attention_scratch(const kv_layer *l)
{
    size_t stride = attention_row_floats(l) - 16, key = (size_t)l->key_dim;
    size_t floats = N_TILES * QUERY_TILE * key + KV_PAGE_TOKENS * key + KV_PAGE_TOKENS * stride +
                    ATTENTION_QUERIES * (size_t)(KV_PAGE_TOKENS + 16) +
                    ATTENTION_QUERIES * (stride + stride + 16);
    return floats * sizeof(float) + 64;
}

static void attention_init(attention_state *s, const attention_piece *p, float *scratch)
{
    const kv_layer *l = p->layer;
    size_t stride = attention_row_floats(l) - 16, key = (size_t)l->key_dim;
    s->piece = p;
    s->n_queries = p->n_tokens * p->n_heads;
    s->key_dim = l->key_dim;
    s->stride = (int32_t)stride;
    s->queries = scratch;
    s->keys = s->queries + N_TILES * QUERY_TILE * key;
    s->values = s->keys + KV_PAGE_TOKENS * key;
    s->scores = s->values + KV_PAGE_TOKENS * stride;
    s->sums = s->scores + ATTENTION_QUERIES * KV_PAGE_TOKENS;
    s->weights = s->sums + ATTENTION_QUERIES * stride;
    s->total = s->weights + ATTENTION_QUERIES * 16;
    for (int32_t i = 0; i < s->n_queries; i++) {
        const float *q = p->q + (size_t)(i / p->n_heads) * p->q_stride +
                         (size_t)(i % p->n_heads) * key;
        float *to = s->queries + (size_t)(i / QUERY_TILE) * key * QUERY_TILE + i % QUERY_TILE;
        for (size_t d = 0; d < key; d++)
            to[d * QUERY_TILE] = q[d];
        s->positions[i] = p->first_position + i / p->n_heads;
    }
}

/* ---- a page of keys and values as floats ----------------------------------------------------- */

static void attention_keys_f16(float *out, const uint8_t *head, int32_t key_dim)
{
    const uint16_t *k = (const uint16_t *)(const void *)head;
    for (int32_t i = 0; i < key_dim * KV_PAGE_TOKENS; i += VF_LANES)
        vf_store(out + i, vf_load_f16(k + i));
}

static void attention_keys_q8_0(float *out, const uint8_t *head, const kv_layer *l)
{
    const uint16_t *scales = (const uint16_t *)(const void *)head;
    const int8_t *k = (const int8_t *)(head + l->key_values);
    for (int32_t d = 0; d < l->key_dim; d++)
        for (int32_t t = 0; t < KV_PAGE_TOKENS; t += VF_LANES)
            vf_store(out + d * KV_PAGE_TOKENS + t,
                     vf_load_i8(k + d * KV_PAGE_TOKENS + t) *
                         vf_load_f16(scales + d / 32 * KV_PAGE_TOKENS + t));
}

static void attention_values_f16(float *out, const uint8_t *head, const kv_layer *l,
                                 int32_t n_tokens)
{
    const uint16_t *v = (const uint16_t *)(const void *)(head + l->values);
    for (int32_t i = 0; i < n_tokens * l->value_stride; i += VF_LANES)
        vf_store(out + i, vf_load_f16(v + i));
}

static void attention_values_q8_0(float *out, const uint8_t *head, const kv_layer *l,
                                  int32_t n_tokens)
{
    const uint16_t *scales = (const uint16_t *)(const void *)(head + l->values);
    const int8_t *v = (const int8_t *)(head + l->value_values);
    for (int32_t i = 0; i < n_tokens * l->value_dim; i += 32) {
        vf scale = vf_set(quants_f16_float(scales[i / 32]));
        for (int32_t j = 0; j < 32; j += VF_LANES)
            vf_store(out + i + j, vf_load_i8(v + i + j) * scale);
    }
}

/* ---- scores ---------------------------------------------------------------------------------- */

/* n queries of a tile against VECTOR_TILE vectors of tokens; half says what keys points at. */
VF_INLINE void attention_score_tile(float *scores, const float *queries, const void *keys,
                                    int32_t key_dim, int half, const int n)
{
    for (int32_t t = 0; t < KV_PAGE_TOKENS; t += VECTOR_TILE * VF_LANES) {
        vf sums[QUERY_TILE][VECTOR_TILE];
        for (int i = 0; i < n; i++)
            for (int j = 0; j < VECTOR_TILE; j++)
                sums[i][j] = vf_set(0);
        for (int32_t d = 0; d < key_dim; d++) {
            vf k[VECTOR_TILE];
            for (int j = 0; j < VECTOR_TILE; j++) {
                int32_t at = d * KV_PAGE_TOKENS + t + j * VF_LANES;
                k[j] = half ? vf_load_f16((const uint16_t *)keys + at)
                            : vf_load((const float *)keys + at);
            }
            for (int i = 0; i < n; i++) {
                vf q = vf_set(queries[d * QUERY_TILE + i]);
                for (int j = 0; j < VECTOR_TILE; j++)
                    sums[i][j] = vf_fma(q, k[j], sums[i][j]);
            }
        }
        for (int i = 0; i < n; i++)
            for (int j = 0; j < VECTOR_TILE; j++)
                vf_store(scores + i * KV_PAGE_TOKENS + t + j * VF_LANES, sums[i][j]);
    }
}

/* n values of a tile's weights times a page's values, added to sums that are first rescaled. */
VF_INLINE void attention_value_tile(float *sums, const float *rescale, const float *weights,
                                    const void *values, int32_t stride, int32_t n_tokens, int half,
                                    const int n)
{
    for (int32_t d = 0; d < stride; d += VECTOR_TILE * VF_LANES) {
        vf tile[QUERY_TILE][VECTOR_TILE];
        /* stride is a multiple of 16: only the widest vectors can leave one over. */
        int last = VECTOR_TILE * VF_LANES > 16 && d + VECTOR_TILE * VF_LANES > stride;
        int32_t step = last ? 0 : VF_LANES;
        for (int i = 0; i < n; i++)
            for (int j = 0; j < VECTOR_TILE; j++)
                tile[i][j] = vf_load(sums + i * stride + d + j * step) * vf_set(rescale[i]);
        for (int32_t t = 0; t < n_tokens; t++) {
            vf v[VECTOR_TILE];
            for (int j = 0; j < VECTOR_TILE; j++) {
                int32_t at = t * stride + d + j * step;
                v[j] = half ? vf_load_f16((const uint16_t *)values + at)
                            : vf_load((const float *)values + at);
            }
            for (int i = 0; i < n; i++) {
                vf w = vf_set(weights[i * KV_PAGE_TOKENS + t]);
                for (int j = 0; j < VECTOR_TILE; j++)
                    tile[i][j] = vf_fma(w, v[j], tile[i][j]);
            }
        }
        for (int i = 0; i < n; i++)
            for (int j = 0; j < VECTOR_TILE; j++)
                vf_store(sums + i * stride + d + j * step, tile[i][j]);
    }
}

/* Calls a tile function with its last argument, 1 to QUERY_TILE, a constant, so that the tile is registers. */
#define TILE_CASE(n, call)                                                                         \
    case n: call(n); break;
#define TILE_CASES_4(call)                                                                         \
    TILE_CASE(1, call) TILE_CASE(2, call) TILE_CASE(3, call) TILE_CASE(4, call)
#define TILE_CASES_6(call) TILE_CASES_4(call) TILE_CASE(5, call) TILE_CASE(6, call)
#define TILE_CASES_12(call)                                                                        \
    TILE_CASES_6(call)                                                                             \
    TILE_CASE(7, call)                                                                             \
    TILE_CASE(8, call)                                                                             \
    TILE_CASE(9, call) TILE_CASE(10, call) TILE_CASE(11, call) TILE_CASE(12, call)
#if QUERY_TILE == 12
#define TILE_CASES TILE_CASES_12
#elif QUERY_TILE == 6
#define TILE_CASES TILE_CASES_6
#else
#define TILE_CASES TILE_CASES_4
#endif
#define TILE_SWITCH(n, call)                                                                       \
    switch (n) {                                                                                   \
        TILE_CASES(call)                                                                           \
    }

static void attention_score_halves(float *scores, const float *queries, const void *keys,
                                   int32_t key_dim, int n)
{
#define CALL(count) attention_score_tile(scores, queries, keys, key_dim, 1, count)
    TILE_SWITCH(n, CALL)
#undef CALL
}

static void attention_score_floats(float *scores, const float *queries, const void *keys,
                                   int32_t key_dim, int n)
{
#define CALL(count) attention_score_tile(scores, queries, keys, key_dim, 0, count)
    TILE_SWITCH(n, CALL)
#undef CALL
}

static void attention_value_halves(float *sums, const float *rescale, const float *weights,
                                   const void *values, int32_t stride, int32_t n_tokens, int n)
{
#define CALL(count) attention_value_tile(sums, rescale, weights, values, stride, n_tokens, 1, count)
    TILE_SWITCH(n, CALL)
#undef CALL
}

static void attention_value_floats(float *sums, const float *rescale, const float *weights,
                                   const void *values, int32_t stride, int32_t n_tokens, int n){
#define CALL(count) attention_value_tile(sums, rescale, weights, values, stride, n_tokens, 0, count)
    TILE_SWITCH(n, CALL)
#undef CALL
}

/* ---- softmax --------------------------------------------------------------------------------- */

/* Scales, caps and masks a page's scores of a query that sees positions first .. position; returns
 * the largest. whole: it sees all of the page, which is then not looked at token by token. */
VF_INLINE float attention_scores_seen(float *scores, const attention_options *o, int32_t base,
                                      int32_t first, int32_t position, int whole)
{
    const vf minus_infinity = vf_set(-__builtin_inff());
    vf most = minus_infinity, scale = vf_set(o->scale), cap = vf_set(o->soft_cap);
    vi lane = {0};
    for (int j = 0; j < VF_LANES; j++)
        lane[j] = base + j;
    for (int32_t t = 0; t < KV_PAGE_TOKENS; t += VF_LANES) {
        vf x = vf_load(scores + t) * scale;
        if (o->soft_cap > 0)
            x = cap * vf_tanh(x / cap);
        if (!whole)
            x = vf_select(((lane + t) <= position) & ((lane + t) >= first), x, minus_infinity);
        vf_store(scores + t, x);
        most = vf_max(x, most);
    }
    return vf_largest(most);
}

VF_INLINE float attention_largest_seen(attention_state *s, int32_t i, int32_t base)
{
    const attention_options *o = s->piece->options;
    float *scores = s->scores + i * KV_PAGE_TOKENS;
    int32_t position = s->positions[i];
    int32_t first = o->window > 0 ? position - o->window + 1 : 0;
    if (first <= base && base + KV_PAGE_TOKENS - 1 <= position)
        return attention_scores_seen(scores, o, base, first, position, 1);
    return attention_scores_seen(scores, o, base, first, position, 0);
}

/* Scores of queries first .. first+n-1 on the page that begins at base become weights; maximum and sum
 * move along. Step by step for all of them: a query alone is a chain of operations that wait for each
 * other, and whether its maximum moves cannot be guessed. */
static void attention_weigh(attention_state *s, int32_t first, int32_t n, int32_t base)
{
    float now[QUERY_TILE + VF_LANES], shift[QUERY_TILE + VF_LANES];
    memcpy(now, s->largest + first, sizeof now);
    for (int32_t i = 0; i < n; i++) {
        float seen = attention_largest_seen(s, first + i, base);
        now[i] = seen > now[i] ? seen : now[i];
    }
    for (int32_t i = 0; i < n; i += VF_LANES) {
        vf before = vf_load(s->largest + first + i), most = vf_load(now + i);
        /* Nothing seen yet: any finite number keeps the weights zero and not NaN. */
        vf finite = vf_select(most == vf_set(-__builtin_inff()), vf_set(0), most);
        vf factor = vf_exp_negative(before - finite);
        vf_store(shift + i, finite);
        vf_store(s->rescale + first + i, vf_select(before == most, vf_set(1), factor));
    }
    memcpy(s->largest + first, now, (size_t)n * sizeof *now);
    for (int32_t i = first; i < first + n; i++) {
        float *scores = s->scores + i * KV_PAGE_TOKENS;
        vf sums[VF_PARTS];
        for (int p = 0; p < VF_PARTS; p++)
            sums[p] = vf_load(s->weights + i * 16 + p * VF_LANES) * vf_set(s->rescale[i]);
        for (int32_t t = 0; t < KV_PAGE_TOKENS; t += VF_LANES) {
            vf w = vf_exp_negative(vf_load(scores + t) - vf_set(shift[i - first]));
            vf_store(scores + t, w);
            sums[t / VF_LANES % VF_PARTS] += w;
        }
        for (int p = 0; p < VF_PARTS; p++)
            vf_store(s->weights + i * 16 + p * VF_LANES, sums[p]);
    }
}

static int attention_tile_count(const attention_state *s, int32_t tile)
{
    int32_t left = s->n_queries - tile * QUERY_TILE;
    return left < QUERY_TILE ? left : QUERY_TILE;
}

/* One page for all queries. A single tile converts halves on the way; several share a converted
 * page. */
static void attention_page(attention_state *s, int32_t page_index)
{
    const attention_piece *p = s->piece;
    const kv_layer *l = p->layer;
    const uint8_t *head = kv_pages_head(p->kv, l, p->page_table[page_index], p->kv_head);
    int32_t base = page_index * KV_PAGE_TOKENS;
    /* Beyond the last query's own token the page may hold another sequence's leavings. */
    int32_t n_seen = p->first_position + p->n_tokens - base;
    n_seen = n_seen < KV_PAGE_TOKENS ? n_seen : KV_PAGE_TOKENS;
    int halves = p->kv->type == DTYPE_F16 && s->n_queries <= QUERY_TILE;
    if (!halves && p->kv->type == DTYPE_F16) {
        attention_keys_f16(s->keys, head, s->key_dim);
        attention_values_f16(s->values, head, l, n_seen);
    } else if (!halves) {
        attention_keys_q8_0(s->keys, head, l);
        attention_values_q8_0(s->values, head, l, n_seen);
    }
    /* Q8_0 dims are multiples of 32, so value_stride is the stride of converted values as well. */
    for (int32_t first = 0; first < s->n_queries; first += QUERY_TILE) {
        int32_t tile = first / QUERY_TILE;
        int n = attention_tile_count(s, tile);
        const float *queries = s->queries + (size_t)tile * (size_t)s->key_dim * QUERY_TILE;
        float *scores = s->scores + first * KV_PAGE_TOKENS;
        float *sums = s->sums + (size_t)first * (size_t)s->stride;
        if (halves)
            attention_score_halves(scores, queries, head, s->key_dim, n);
        else
            attention_score_floats(scores, queries, s->keys, s->key_dim, n);
        attention_weigh(s, first, n, base);
        if (halves)
            attention_value_halves(sums, s->rescale + first, scores, head + l->values, s->stride,
                                   n_seen, n);
        else
            attention_value_floats(sums, s->rescale + first, scores, s->values, s->stride, n_seen,
                                   n);
    }
}

/* ---- splits ---------------------------------------------------------------------------------- */

/* Adds a split to a row of totals: [stride] sums, the largest score, the sum of weights. */
static void attention_merge(float *total, const float *sums, float largest, float weights,
                            int32_t stride, int first)
{
    if (first) {
        memcpy(total, sums, (size_t)stride * sizeof *total);
        total[stride] = largest;
        total[stride + 1] = weights;
        return;
    }
    float before = total[stride], now = before > largest ? before : largest;
    vf shift = vf_set(now == -__builtin_inff() ? 0 : now);
    vf old = vf_exp_negative(vf_set(before) - shift);
    vf new = vf_exp_negative(vf_set(largest) - shift);
    for (int32_t d = 0; d < stride; d += VF_LANES)
        vf_store(total + d, vf_fma(vf_load(sums + d), new, vf_load(total + d) * old));
    total[stride] = now;
    total[stride + 1] = total[stride + 1] * old[0] + weights * new[0];
}

static void attention_write(const attention_piece *p, const float *total, int32_t i)
{
    int32_t n = p->layer->value_dim, stride = (int32_t)attention_row_floats(p->layer) - 16;
    float *out = p->out + (size_t)(i / p->n_heads) * p->out_stride +
                 (size_t)(i % p->n_heads) * (size_t)n;
    vf inverse = vf_set(1.0f / total[stride + 1]);
    int32_t d = 0;
    for (; d + VF_LANES <= n; d += VF_LANES)
        vf_store(out + d, vf_load(total + d) * inverse);
    if (d < n)
        vf_store_part(out + d, vf_load(total + d) * inverse, n - d);
}

/* Walks the pages of one split that some query of the piece sees; there may be none. */
static void attention_split(attention_state *s, int32_t split)
{
    const attention_piece *p = s->piece;
    int32_t window = p->options->window, last_position = p->first_position + p->n_tokens - 1;
    int32_t first = split * ATTENTION_SPLIT_PAGES, end = first + ATTENTION_SPLIT_PAGES;
    int32_t seen_from = window > 0 ? p->first_position - window + 1 : 0;
    if (seen_from > 0 && first < seen_from / KV_PAGE_TOKENS)
        first = seen_from / KV_PAGE_TOKENS;
    if (end > last_position / KV_PAGE_TOKENS + 1)
        end = last_position / KV_PAGE_TOKENS + 1;
    memset(s->sums, 0, (size_t)s->n_queries * (size_t)s->stride * sizeof *s->sums);
    memset(s->weights, 0, (size_t)s->n_queries * 16 * sizeof *s->weights);
    for (size_t i = 0; i < sizeof s->largest / sizeof *s->largest; i++)
        s->largest[i] = -__builtin_inff();
    for (int32_t page = first; page < end; page++)
        attention_page(s, page);
}

/* Room for partials and totals is the same: rows of attention_row_floats. */
static void attention_add_split(const attention_state *s, float *totals, int first)
{
    for (int32_t i = 0; i < s->n_queries; i++) {
        vf weights[VF_PARTS];
        for (int p = 0; p < VF_PARTS; p++)
            weights[p] = vf_load(s->weights + i * 16 + p * VF_LANES);
        attention_merge(totals + (size_t)i * ((size_t)s->stride + 16),
                        s->sums + (size_t)i * (size_t)s->stride, s->largest[i], vf_sum16(weights),
                        s->stride, first);
    }
}

static void attention_run_piece(const attention_piece *p, void *scratch)
{
    attention_state s;
    attention_init(&s, p, scratch);
    if (p->partial) {
        attention_split(&s, p->first_split);
        attention_add_split(&s, p->partial, 1);
        return;
    }
    for (int32_t k = 0; k < p->n_splits; k++) {
        attention_split(&s, p->first_split + k);
        attention_add_split(&s, s.total, k == 0);
    }
    for (int32_t i = 0; i < s.n_queries; i++)
        attention_write(p, s.total + (size_t)i * ((size_t)s.stride + 16), i);
}

/* The first partial becomes the total. */
static void attention_combine(const attention_piece *p, float *partials, size_t partial_floats,
                              int32_t n_splits)
{
    int32_t stride = (int32_t)attention_row_floats(p->layer) - 16;
    for (int32_t i = 0; i < p->n_tokens * p->n_heads; i++) {
        float *total = partials + (size_t)i * ((size_t)stride + 16);
        for (int32_t k = 1; k < n_splits; k++) {
            const float *part = total + (size_t)k * partial_floats;
            attention_merge(total, part, part[stride], part[stride + 1], stride, 0);
        }
        attention_write(p, total, i);
    }
}
