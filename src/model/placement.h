/* model/placement.h: opens a model where the user wants it and there is room for it.
 *
 * A device that has room for the whole model runs the whole. One that does not runs the first layers,
 * as many as fit beside the keys and values of PLACEMENT_KV_TOKENS tokens, and the processor runs
 * the rest (compute/backend_split.h). Room is told beforehand from the sizes in the file, so that no
 * large upload is made in vain; where that was wrong the next smaller way is tried. What was chosen,
 * and why, is a line in the log. Loading thread. */
#ifndef REALM_MODEL_PLACEMENT_H
#define REALM_MODEL_PLACEMENT_H

#include "model/model.h"

#define PLACEMENT_KV_TOKENS 4096

typedef struct placement {
    const char *device; /* a word of backend_open.h; NULL: auto */
    int32_t n_threads;  /* of the processor's backend; 0: cpu_count() */
    int32_t gpu_layers; /* the first so many on the device, all or more: the whole model; 0: as
                           many as there is room for */
} placement;

/* Opens the device, or devices, and the model. Closed by their own functions, the model first; both
 * are NULL after an error. As backend_open and model_open fail, and
 *   REALM_INVALID    gpu_layers for the processor
 *   REALM_NO_MEMORY  the device has no room for so many layers, or (device "cuda") for one */
realm_status placement_open(model **out, backend **on, const char *path, const placement *p,
                            const model_options *options, realm_error *error);

/* The same on a device that is open already; *on is taken over, and what the model runs on after. */
realm_status placement_open_on(model **out, backend **on, const char *path, const placement *p,
                               const model_options *options, realm_error *error);

/* How many of the model's layers, from the first, a device with so many free bytes has room for: all
 * only if the ends of the network fit as well. */
int32_t placement_layers_that_fit(const gguf *g, const hyperparameters *h, uint64_t free_bytes,
                                  const model_options *options);

/* "auto" or a number above 0, as the user writes gpu_layers. NULL: auto. */
realm_status placement_parse_layers(const char *text, int32_t *gpu_layers, realm_error *error);

#endif
