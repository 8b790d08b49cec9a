/* model/weight_folder.h: the folder in which packed weights are kept, a file a model and device.
 *
 * A file is named by the content it was made from (gguf_identity), so a model that is moved still
 * finds its own and one that has changed never finds an old one. Whatever goes wrong here costs a
 * line in the log and the time to pack; it never keeps a model from loading. Loading thread. */
#ifndef REALM_MODEL_WEIGHT_FOLDER_H
#define REALM_MODEL_WEIGHT_FOLDER_H

#include "compute/backend.h"
#include "compute/weight_cache.h"
#include "formats/gguf.h"

/* The most bytes of packed weights that a folder keeps. */
#define WEIGHT_FOLDER_BYTES ((uint64_t)64 << 30)

/* *out is the cache for this model, or NULL: folder is NULL or "", the model is in memory or too small
 * to be worth a file, or the folder cannot be used (told in the log). The folder is made if need be
 * and must then be ours alone: mode 0700, our user. map: see weight_cache_mode.
 *   REALM_NO_MEMORY */
realm_status weight_folder_open(weight_cache **out, const char *folder, int map, const gguf *g,
                                const backend *b, realm_error *error);

/* After all weights are open: writes what is new and then tidies the folder (see weight_folder_tidy).
 * NULL allowed. */
void weight_folder_save(weight_cache *c);

/* Removes from the folder of the file at path: files of the same origin that are of another content;
 * temporary files that nobody has written to for an hour; and, while all together are more than
 * limit_bytes, what has not been used for longest. The file itself stays. */
void weight_folder_tidy(const char *path, const char *origin, uint64_t limit_bytes);

#endif
