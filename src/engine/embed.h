/* engine/embed.h: one vector for a text, pooled from the hidden states of its tokens. Engine
 * thread. */
#ifndef REALM_ENGINE_EMBED_H
#define REALM_ENGINE_EMBED_H

#include "engine/engine.h"

realm_status embed_begin(engine *e, session *s, work *w);
realm_status embed_next(engine *e, session *s, work *w, int *finished);
/* Whether the hidden state at position is pooled. */
int embed_wants(const session *s, int32_t position);
/* Takes in the hidden state of a wanted position [n_embd]; they come in ascending order. */
void embed_add(session *s, int32_t position, const float *state, int32_t n_embd);

#endif
