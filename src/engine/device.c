/* engine/device.c: the device that runs a real model. See device.h. */
#include "engine/device.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/free_memory.h"

/* Of the host's free memory, for saved pages: it stays locked, and others want some too. */
#define SAVED_SHARE 4

static realm_status model_kv_open(device *d, int32_t n_pages, dtype type, realm_error *error)
{
    backend *b = model_backend(d->model);
    kv_shape shape = {0};
    model_kv_shape(d->model, &shape);
    shape.n_pages = n_pages;
    shape.type = type;
    return b->table->kv_open(b, &d->kv, &shape, error);
}

static void *model_host_open(device *d, size_t bytes)
{
    backend *b = model_backend(d->model);
    return b->table->host_open ? b->table->host_open(b, bytes) : malloc(bytes);
}

static void model_host_close(device *d, void *memory)
{
    backend *b = model_backend(d->model);
    if (b->table->host_close)
        b->table->host_close(b, memory);
    else
        free(memory);
}

static void model_kv_close(device *d)
{
    backend *b = model_backend(d->model);
    for (int32_t i = 0; i < d->host.n_pieces; i++)
        model_host_close(d, d->host.pieces[i]);
    free(d->host.pieces);
    d->host = (device_host_pages){0};
    b->table->kv_close(b, d->kv);
    d->kv = NULL;
}

static void model_copy_page(device *d, int32_t to, int32_t from)
{
    backend *b = model_backend(d->model);
    b->table->kv_copy_page(b, d->kv, to, from);
}

static int add_piece(device *d)
{
    device_host_pages *h = &d->host;
    void **pieces = realloc(h->pieces, (size_t)(h->n_pieces + 1) * sizeof *pieces);
    if (!pieces)
        return 0;
    h->pieces = pieces;
    void *piece = model_host_open(d, (size_t)h->piece_pages * h->page_bytes);
    if (piece)
        pieces[h->n_pieces++] = piece;
    return piece != NULL;
}

static int32_t model_host_pages(device *d, int32_t n_pages)
{
    backend *b = model_backend(d->model);
    device_host_pages *h = &d->host;
    if (h->n_pieces == 0) {
        h->page_bytes = b->table->kv_page_bytes(b, d->kv);
        h->piece_pages = n_pages;
    }
    while (h->n_pieces * h->piece_pages < n_pages && add_piece(d))
        ;
    return h->n_pieces * h->piece_pages;
}

static void *host_page_at(const device *d, int32_t page)
{
    const device_host_pages *h = &d->host;
    return (char *)h->pieces[page / h->piece_pages] +
           (size_t)(page % h->piece_pages) * h->page_bytes;
}

static void model_save_page(device *d, int32_t host_page, int32_t from)
{
    backend *b = model_backend(d->model);
    b->table->kv_save_page(b, d->kv, host_page_at(d, host_page), from);
}

static void model_load_page(device *d, int32_t to, int32_t host_page)
{
    backend *b = model_backend(d->model);
    b->table->kv_load_page(b, d->kv, to, host_page_at(d, host_page));
}

static void model_run(device *d, forward_input *input, float *const *results)
{
    input->kv = d->kv;
    model_forward(d->model, input, results);
}

static void read_row(device *d, int32_t output, float *to)
{
    model_read_row(d->model, output, to);
}

static int32_t model_filled(const device *d, int32_t n_rows)
{
    const backend *b = model_backend(d->model);
    return b->table->filled_rows(b, n_rows);
}

static int model_lend(device *d, int (*wanted)(void *context), void *context)
{
    backend *b = model_backend(d->model);
    return b->table->lend && b->table->lend(b, wanted, context);
}

static void decoder_init(device *d, token_decoder *decoder)
{
    token_decoder_init(decoder, model_tokenizer(d->model), 0);
    decoder->at_start = 0; /* what is generated goes on from the prompt: its first space is text */
}

static realm_status decoder_add(device *d, token_decoder *decoder, token_id id, buffer *out)
{
    (void)d;
    return token_decoder_add(decoder, id, out);
}

static realm_status decoder_finish(device *d, token_decoder *decoder, buffer *out)
{
    (void)d;
    return token_decoder_finish(decoder, out);
}

static int ends_generation(device *d, token_id id)
{
    return tokenizer_ends_generation(model_tokenizer(d->model), id);
}

static const device_table model_table = {
    .kv_open = model_kv_open,
    .kv_close = model_kv_close,
    .copy_page = model_copy_page,
    .host_pages = model_host_pages,
    .save_page = model_save_page,
    .load_page = model_load_page,
    .forward = model_run,
    .read_row = read_row,
    .filled = model_filled,
    .host_open = model_host_open,
    .host_close = model_host_close,
    .lend = model_lend,
    .decoder_init = decoder_init,
    .decoder_add = decoder_add,
    .decoder_finish = decoder_finish,
    .ends_generation = ends_generation,
};

void device_init_model(device *d, model *m)
{
    const hyperparameters *h = model_hyperparameters(m);
    backend *b = model_backend(m);
    backend_memory memory = {0};
    b->table->memory(b, &memory);
    free_memory host = {0}; /* asked for only where the device's memory is another */
    if (b->table->host_open)
        free_memory_read(&host, "");
    *d = (device){
        .table = &model_table,
        .n_vocab = h->n_vocab,
        .n_embd = h->n_embd,
        .n_context = h->n_context,
        .gives_peaks = model_gives_peaks(m),
        .gives_tops = model_gives_tops(m),
        .leaves_rows = model_leaves_rows(m),
        .uses_host = b->table->lend != NULL,
        .fills = b->table->filled_rows != NULL,
        .max_rows = model_max_tokens(m),
        .max_outputs = model_max_outputs(m),
        .free_bytes = memory.free_bytes,
        .usual_bytes = memory.page_bytes,
        .usual_host_bytes = host.free_bytes / SAVED_SHARE,
        .page_bytes = {model_kv_page_bytes(m, DTYPE_F16), model_kv_page_bytes(m, DTYPE_Q8_0)},
        .model = m,
    };
    snprintf(d->free_bound, sizeof d->free_bound, "%s", memory.bound);
}
