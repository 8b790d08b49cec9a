/* tests/unit/engine/fake_device.h: a device whose "model" is arithmetic on token ids.
 *
 * What a real model keeps as keys and values of a token is here one number in the token's slot of
 * its page: a hash of the number before it (read back through the page table, as attention would)
 * and of the token and adapter. Logits are drawn from the last number. So a page that is wrong,
 * stale, shared when it should not be or lost changes every logit after it, and what a sequence
 * must give can be told from its tokens alone (fake_state, fake_logit). */
#ifndef REALM_TESTS_FAKE_DEVICE_H
#define REALM_TESTS_FAKE_DEVICE_H

#include <math.h>

#include "base/clock.h"
#include "engine/engine_internal.h"
#include "engine/logits.h"
#include "unit/unit.h"

#define FAKE_VOCAB 300
#define FAKE_EMBD  4
#define FAKE_EOS   299

#define FAKE_OUTPUTS 16 /* of a step, at most */

typedef struct fake {
    uint64_t (*pages)[KV_PAGE_TOKENS]; /* what stands in each slot */
    uint64_t (*host_pages)[KV_PAGE_TOKENS];
    int32_t n_pages, most_host_pages; /* 0: as many as are asked for */
    uint64_t step_ns, row_ns;         /* how long a forward takes, and each of its rows */
    double position_ns;               /* and each position of each row */
    int in_tiles; /* rows take as long as all of their tile: 8, 16, 32, 64, or as many 128s */
    uint64_t (*tile_ns)(
        int32_t end);          /* how long a step of tiles up to there takes; NULL: as above */
    void (*pass)(uint64_t ns); /* lets so much time pass; NULL: the processor's spins */
    void (*on_forward)(struct fake *); /* on the engine's thread, before the rows; may be NULL */
    void *context;                     /* on_forward's */
    int32_t max_rows_seen;
    int gives_digests; /* finds in rows of logits whatever a device may */
    int leaves_rows;   /* and leaves them where that is wished, until its next step with some */
    float rows[FAKE_OUTPUTS][FAKE_VOCAB];
    uint64_t n_forwards, n_rows;
    uint64_t n_sums; /* rows whose sums were wanted */
    uint64_t n_stayed, n_read;
    const char *pieces[FAKE_VOCAB]; /* text of tokens; NULL: the byte, or "<id>" from 256 on */
} fake;

static inline uint64_t fake_mix(uint64_t a, uint64_t b)
{
    uint64_t z = (a ^ (b + 0x9E3779B97F4A7C15u)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static inline uint64_t fake_next(uint64_t state, token_id token, const void *lora)
{
    return fake_mix(fake_mix(state, (uint64_t)token + 1), (uint64_t)(uintptr_t)lora);
}

/* The number after all of tokens. */
static inline uint64_t fake_state(const token_id *tokens, int32_t count, const void *lora)
{
    uint64_t state = 7;
    for (int32_t i = 0; i < count; i++)
        state = fake_next(state, tokens[i], lora);
    return state;
}

static inline float fake_logit(uint64_t state, int32_t v)
{
    return (float)(fake_mix(state, (uint64_t)v) >> 40) * 0x1p-24f * 12.0f - 6.0f;
}

static uint64_t *fake_slot(const fake *f, const int32_t *table, int32_t position)
{
    return &f->pages[table[position / KV_PAGE_TOKENS]][position % KV_PAGE_TOKENS];
}

static fake *fake_of(device *d)
{
    return (fake *)(void *)d->kv;
}

static realm_status fake_kv_open(device *d, int32_t n_pages, dtype type, realm_error *error)
{
    fake *f = fake_of(d);
    (void)type, (void)error;
    f->n_pages = n_pages;
    f->pages = calloc((size_t)n_pages, sizeof *f->pages);
    return f->pages ? REALM_OK : REALM_NO_MEMORY;
}

static void fake_kv_close(device *d)
{
    free(fake_of(d)->pages);
    free(fake_of(d)->host_pages);
}

static void fake_copy_page(device *d, int32_t to, int32_t from)
{
    memcpy(fake_of(d)->pages[to], fake_of(d)->pages[from], sizeof *fake_of(d)->pages);
}

static int32_t fake_host_pages(device *d, int32_t n_pages)
{
    fake *f = fake_of(d);
    if (f->most_host_pages > 0 && n_pages > f->most_host_pages)
        n_pages = f->most_host_pages;
    void *grown = realloc(f->host_pages, (size_t)n_pages * sizeof *f->host_pages);
    assert_non_null(grown);
    f->host_pages = grown;
    return n_pages;
}

static void fake_save_page(device *d, int32_t host_page, int32_t from)
{
    memcpy(fake_of(d)->host_pages[host_page], fake_of(d)->pages[from], sizeof *fake_of(d)->pages);
}

static void fake_load_page(device *d, int32_t to, int32_t host_page)
{
    memcpy(fake_of(d)->pages[to], fake_of(d)->host_pages[host_page], sizeof *fake_of(d)->pages);
}

static void fake_output(const forward_input *input, uint64_t state, float *out)
{
    for (int32_t v = 0; v < (input->hidden ? FAKE_EMBD : FAKE_VOCAB); v++)
        out[v] = fake_logit(state, v);
}

/* The block that the wished point is in; now and then, as rounding may, none or another. */
static void fake_block(fake *f, const float *row, float *peaks, double point)
{
    const double *sums = peaks_sums(peaks, FAKE_VOCAB);
    row_block *block = peaks_block(peaks, FAKE_VOCAB);
    double wanted = point * logits_total(sums, FAKE_VOCAB);
    int32_t at = wanted < sums[0] ? 0 : PEAK_COLS;
    if (f->n_sums % 8 == 0)
        at = f->n_sums % 16 ? -1 : PEAK_COLS - at;
    block->first = at;
    for (int32_t i = 0; at >= 0 && i < PEAK_COLS && at + i < FAKE_VOCAB; i++)
        block->values[i] = row[at + i];
}

/* What a device finds in a row, by the engine's own passes. */
static void fake_digest(fake *f, const float *row, float *peaks, const row_wish *wish)
{
    int has_nan;
    for (int32_t i = 0; i < FAKE_VOCAB; i += PEAK_COLS) {
        int32_t count = FAKE_VOCAB - i < PEAK_COLS ? FAKE_VOCAB - i : PEAK_COLS;
        peaks[i / PEAK_COLS] = logits_max(row + i, count, &has_nan);
    }
    logits_top(row, FAKE_VOCAB, TOP_COLUMNS, (token_logit *)(void *)peaks_tops(peaks, FAKE_VOCAB));
    if (wish->scale == 0)
        return;
    f->n_sums++;
    logits_exp_sums(row, FAKE_VOCAB, wish->scale,
                    -logits_max(row, FAKE_VOCAB, &has_nan) * wish->scale,
                    peaks_sums(peaks, FAKE_VOCAB));
    fake_block(f, row, peaks, wish->point);
}

static void fake_logits(fake *f, const forward_input *input, uint64_t state, int32_t output,
                        float *out)
{
    static const row_wish none = {0};
    const row_wish *wish = input->wishes ? &input->wishes[output] : &none;
    fake_output(input, state, out);
    if (!f->gives_digests || input->hidden)
        return;
    fake_digest(f, out, input->peaks[output], wish);
    memcpy(f->rows[output], out, sizeof f->rows[output]);
    if (!f->leaves_rows || !wish->stays)
        return;
    f->n_stayed++;
    for (int32_t v = 0; v < FAKE_VOCAB; v++) /* nobody reads what is not there */
        out[v] = NAN;
}

static void fake_read_row(device *d, int32_t output, float *to)
{
    fake *f = fake_of(d);
    f->n_read++;
    memcpy(to, f->rows[output], sizeof f->rows[output]);
}

static void fake_pass(const fake *f, uint64_t ns)
{
    uint64_t end = clock_ns() + ns;
    if (f->pass)
        f->pass(ns);
    while (!f->pass && clock_ns() < end)
        ;
}

static int32_t fake_filled(const device *d, int32_t n_rows)
{
    (void)d;
    for (int32_t rows = 8; rows <= 64; rows *= 2)
        if (n_rows <= rows)
            return rows;
    return (n_rows + 127) / 128 * 128;
}

static void fake_forward(device *d, forward_input *input, float *const *results)
{
    fake *f = fake_of(d);
    const step_rows *rows = &input->rows;
    int32_t timed = f->in_tiles ? fake_filled(d, rows->n_tokens) : rows->n_tokens;
    double time = f->tile_ns ? (double)f->tile_ns(timed)
                             : (double)f->step_ns + (double)f->row_ns * timed;
    int32_t output = 0;
    if (f->on_forward)
        f->on_forward(f);
    if (input->n_outputs > 0 &&
        !input->hidden) /* what is there is written over from the first product on */
        memset(f->rows, 0xff, sizeof f->rows);
    f->n_forwards++;
    f->n_rows += (uint64_t)rows->n_tokens;
    if (rows->n_tokens > f->max_rows_seen)
        f->max_rows_seen = rows->n_tokens;
    for (int32_t i = 0; i < rows->n_tokens; i++) {
        const int32_t *table = rows->page_tables[rows->sequences[i]];
        int32_t position = rows->positions[i];
        const adapter *a = input->adapters ? input->adapters[rows->sequences[i]] : NULL;
        if (i > 0 && rows->sequences[i] == rows->sequences[i - 1])
            assert_int_equal(position, rows->positions[i - 1] + 1);
        time += f->position_ns * position;
        uint64_t before = position ? *fake_slot(f, table, position - 1) : 7;
        uint64_t state = fake_next(before, input->tokens[i], a);
        *fake_slot(f, table, position) = state;
        if (output < input->n_outputs && input->output_rows[output] == i) {
            fake_logits(f, input, state, output, results[output]);
            output++;
        }
    }
    assert_int_equal(output, input->n_outputs);
    fake_pass(f, (uint64_t)time);
}

static void fake_decoder_init(device *d, token_decoder *decoder)
{
    (void)d;
    memset(decoder, 0, sizeof *decoder);
}

static realm_status fake_decoder_add(device *d, token_decoder *decoder, token_id id, buffer *out)
{
    const fake *f = fake_of(d);
    char byte = (char)id;
    (void)decoder;
    if (f->pieces[id])
        return buffer_add_text(out, f->pieces[id]);
    return id < 256 ? buffer_add(out, &byte, 1) : buffer_printf(out, "<%d>", id);
}

static realm_status fake_decoder_finish(device *d, token_decoder *decoder, buffer *out)
{
    (void)d, (void)decoder, (void)out;
    return REALM_OK;
}

static int fake_ends_generation(device *d, token_id id)
{
    (void)d;
    return id == FAKE_EOS;
}

static void *fake_host_open(device *d, size_t bytes)
{
    (void)d;
    return malloc(bytes);
}

static void fake_host_close(device *d, void *memory)
{
    (void)d;
    free(memory);
}

static const device_table fake_table = {
    .kv_open = fake_kv_open,
    .kv_close = fake_kv_close,
    .copy_page = fake_copy_page,
    .host_pages = fake_host_pages,
    .save_page = fake_save_page,
    .load_page = fake_load_page,
    .read_row = fake_read_row,
    .filled = fake_filled,
    .forward = fake_forward,
    .host_open = fake_host_open,
    .host_close = fake_host_close,
    .decoder_init = fake_decoder_init,
    .decoder_add = fake_decoder_add,
    .decoder_finish = fake_decoder_finish,
    .ends_generation = fake_ends_generation,
};

/* A device over f. Pages take one byte, so kv_bytes is a number of pages. */
static inline device fake_device(fake *f)
{
    return (device){
        .table = &fake_table,
        .n_vocab = FAKE_VOCAB,
        .n_embd = FAKE_EMBD,
        .n_context = 4096,
        .max_rows = 128,
        .max_outputs = FAKE_OUTPUTS,
        .fills = f->in_tiles,
        .gives_peaks = f->gives_digests,
        .gives_tops = f->gives_digests,
        .leaves_rows = f->leaves_rows,
        .free_bytes = 3000,
        .usual_bytes = 1000,
        .page_bytes = {1, 1},
        .kv = (kv_store *)(void *)f,
    };
}

static inline engine *fake_engine(fake *f, const engine_options *options)
{
    engine *e = NULL;
    realm_error error;
    device d = fake_device(f);
    assert_status(engine_open_device(&e, &d, options, &error), REALM_OK, error);
    return e;
}

#endif
