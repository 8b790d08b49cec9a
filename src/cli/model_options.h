/* cli/model_options.h: the options that commands which load one model share: where it runs, on how
 * many threads, and where its weights, keys and values are kept. */
#ifndef REALM_CLI_MODEL_OPTIONS_H
#define REALM_CLI_MODEL_OPTIONS_H

#include "cli/options.h"

/* Rows of an option table. o_ points to a struct with device, gpu_layers and cache_folder (texts), n_threads
 * and kv_bytes (int64_t, 0 unless given), no_weight_cache and map_weights (flags). */
#define MODEL_OPTIONS(o_)                                                                          \
    {.name = "device",                                                                             \
     .kind = OPTION_TEXT,                                                                          \
     .out = &(o_)->device,                                                                         \
     .value = "WHICH",                                                                             \
     .help = "auto, cpu, cuda or cuda:N (default: auto, a CUDA device if one works)"},             \
        {.name = "gpu-layers",                                                                     \
         .kind = OPTION_TEXT,                                                                      \
         .out = &(o_)->gpu_layers,                                                                 \
         .value = "N",                                                                             \
         .help = "layers that the CUDA device computes, from the first; the processor computes "   \
                 "the rest (default: auto, as many as it has room for)"},                          \
        {.name = "threads",                                                                        \
         .letter = 't',                                                                            \
         .kind = OPTION_INT,                                                                       \
         .out = &(o_)->n_threads,                                                                  \
         .value = "N",                                                                             \
         .min = 1,                                                                                 \
         .max = 1024,                                                                              \
         .help = "threads that compute (default: the cores there are)"},                           \
        {.name = "cache-dir",                                                                      \
         .kind = OPTION_TEXT,                                                                      \
         .out = &(o_)->cache_folder,                                                               \
         .value = "FOLDER",                                                                        \
         .help = "where compiled programs and packed weights are kept (default: $REALM_CACHE, or " \
                 "realm in the user's cache)"},                                                    \
        {.name = "no-weight-cache",                                                                \
         .kind = OPTION_FLAG,                                                                      \
         .out = &(o_)->no_weight_cache,                                                            \
         .help = "pack the model's weights at this start and keep no file of them"},               \
        {.name = "map-weights",                                                                    \
         .kind = OPTION_FLAG,                                                                      \
         .out = &(o_)->map_weights,                                                                \
         .help = "map kept weights instead of reading them: a few per cent slower, but processes " \
                 "with the same model share one copy"},                                            \
    {                                                                                              \
        .name = "kv-memory", .kind = OPTION_INT, .out = &(o_)->kv_bytes, .value = "BYTES",         \
        .min = 1 << 20, .max = 0x1p50,                                                             \
        .help = "memory for keys and values, such as 512m or 2g (default: a third of what the "    \
                "machine or container has free)"                                                   \
    }

#endif
