/* engine/device.h: the model and its backend as the engine uses them, behind one small table.
 *
 * The real one calls model_forward, the backend's pages and the tokenizer. Tests bring another
 * whose "model" is arithmetic on token ids, so that scheduling, sharing and stopping are tested
 * without weights, in microseconds. Engine thread, but for what engine_open calls. */
#ifndef REALM_ENGINE_DEVICE_H
#define REALM_ENGINE_DEVICE_H

#include "model/model.h"

typedef struct device device;

typedef struct device_table {
    /* Pages 0 .. n_pages-1. Called once, by engine_open, before the thread starts. */
    realm_status (*kv_open)(device *d, int32_t n_pages, dtype type, realm_error *error);
    void (*kv_close)(device *d);
    void (*copy_page)(device *d, int32_t to, int32_t from);
    /* Sees to memory for host pages 0 .. n_pages-1; how many there are now. They stay until kv_close. */
    int32_t (*host_pages)(device *d, int32_t n_pages);
    void (*save_page)(device *d, int32_t host_page, int32_t from);
    void (*load_page)(device *d, int32_t to, int32_t host_page);
    /* As model_forward; input->kv is filled in here. */
    void (*forward)(device *d, forward_input *input, float *const *results);
    /* As model_read_row, only where rows stay. Any thread. */
    void (*read_row)(device *d, int32_t output, float *to);
    /* As the backend's filled_rows; only where the device fills. */
    int32_t (*filled)(const device *d, int32_t n_rows);
    /* As the backend's, or malloc and free: memory for what forward gives. Any thread. */
    void *(*host_open)(device *d, size_t bytes);
    void (*host_close)(device *d, void *memory);
    /* As the backend's lend; NULL where it is. Any thread. */
    int (*lend)(device *d, int (*wanted)(void *context), void *context);

    /* As token_decoder_*, tokenizer_ends_generation. */
    void (*decoder_init)(device *d, token_decoder *decoder);
    realm_status (*decoder_add)(device *d, token_decoder *decoder, token_id id, buffer *out);
    realm_status (*decoder_finish)(device *d, token_decoder *decoder, buffer *out);
    int (*ends_generation)(device *d, token_id id);
} device_table;

/* Where a model's host pages are: pieces of so many pages each. */
typedef struct device_host_pages {
    void **pieces; /* [n_pieces] */
    int32_t n_pieces, piece_pages;
    size_t page_bytes;
} device_host_pages;

struct device {
    const device_table *table;
    int32_t n_vocab, n_embd, n_context;
    int gives_peaks, gives_tops;   /* forward fills in input->peaks; also what is behind them */
    int leaves_rows;               /* and does not fill in results where input->wishes say so */
    int uses_host;                 /* the host's threads compute */
    int fills;                     /* a step's time grows by jumps */
    int32_t max_rows, max_outputs; /* of one forward; hidden states count only as rows */
    uint64_t free_bytes;           /* for pages, as of device_init_model */
    uint64_t usual_bytes;          /* of those, what pages take if nobody says otherwise */
    char free_bound[192];          /* what sets it, for the log */
    uint64_t page_bytes[2];        /* F16, Q8_0 */
    uint64_t usual_host_bytes;     /* of the host's memory, for pages that are saved there; 0: the
                                      device's memory is the host's */
    model *model;                  /* NULL in tests: no guest walks the network then */
    kv_store *kv;                  /* of the model's backend */
    device_host_pages host;
};

/* Borrows m. */
void device_init_model(device *d, model *m);

#endif
