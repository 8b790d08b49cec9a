/* sandbox/guest_options.h: the JSON options that guests pass, read strictly: an unknown key is refused by
 * its name, so that a misspelt one is not silently nothing. Pure functions. */
#ifndef REALM_SANDBOX_GUEST_OPTIONS_H
#define REALM_SANDBOX_GUEST_OPTIONS_H

#include "engine/sampler.h"
#include "formats/json.h"

/* An object with keys of the list (NULL-terminated; may be NULL) and, if with_sampler is 1, those of the
 * sampler. size 0 is an empty object. *out is to json_decref. REALM_INVALID, REALM_TOO_LARGE. */
realm_status guest_options_parse(json_t **out, const char *text, size_t size,
                                 const char *const *keys, int with_sampler, realm_error *error);

/* Replaces in *o what the object names. *has_seed (may be NULL): whether it names a seed. */
realm_status guest_options_sampler(const json_t *object, sampler_options *o, int *has_seed,
                                   realm_error *error);

/* A whole number that may be absent. */
realm_status guest_options_int(const json_t *object, const char *key, int64_t min, int64_t max,
                               int32_t *out, realm_error *error);

#endif
