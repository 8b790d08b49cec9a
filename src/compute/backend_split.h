/* compute/backend_split.h: one model on two devices, for models that the first has no room for.
 *
 * The front device computes the first layers, the back one the others and both ends of the network:
 * token embeddings, last norm, output. What a layer has is told by the names of its weights
 * ("blk.N."), its pages by their layer. Every tensor lies on both devices; the stream alone is
 * carried from one to the other, once each way and step, when the walk says that a layer begins
 * (enter_layer). Whoever calls operations without that, as guests that walk the layers themselves
 * do, gets the same numbers: an operation on a weight of the other device takes what it reads there
 * and brings back what it made, which is slow.
 *
 * Both devices keep backend.h's promise about bits, so the whole does; the bits are neither
 * device's own. The back device is the one with the host's threads (lend, read_peaks are its). */
#ifndef REALM_COMPUTE_BACKEND_SPLIT_H
#define REALM_COMPUTE_BACKEND_SPLIT_H

#include "compute/backend.h"

/* Layers 0 .. n_front-1 on front. Takes both over if it succeeds: closing the result closes them. One
 * model's; all three have one owner thread.
 *   REALM_NO_MEMORY */
realm_status backend_split_open(backend **out, backend *front, backend *back, int32_t n_front,
                                realm_error *error);

#endif
