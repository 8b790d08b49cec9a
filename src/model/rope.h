/* model/rope.h: the angles of rotary embeddings, from a file's metadata to one list of
 * frequencies.
 *
 * Every kind of scaling (linear, YaRN, llama3, longrope) is a change of frequencies and of one
 * magnitude that do not depend on the token, so they are computed here once and a device sees
 * only the list. Called while a model is opened. */
#ifndef REALM_MODEL_ROPE_H
#define REALM_MODEL_ROPE_H

#include "base/arena.h"
#include "model/architecture.h"

typedef enum rope_layers {
    ROPE_GLOBAL, /* layers that see everything */
    ROPE_LOCAL,  /* layers with a window (gemma3 gives them a base of their own) */
} rope_layers;

/* Fills *out; the list of frequencies is taken from a. context_tokens is the longest sequence
 * that will be served: longrope files have two lists of factors and this chooses between them,
 * once, because a choice by sequence would make a token depend on how its prompt was cut.
 *   REALM_UNSUPPORTED  rope.scaling.type by name
 *   REALM_CORRUPT      a key or a tensor of factors is absurd; the sentence names it
 *   REALM_NO_MEMORY    the arena is full */
realm_status rope_build(rope *out, arena *a, const hyperparameters *h, const gguf *g,
                        rope_layers layers, int32_t context_tokens, realm_error *error);

#endif
