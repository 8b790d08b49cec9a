/* formats/yaml.h: YAML files as the JSON they mean, through libyaml.
 *
 * For settings that people write: one document, plain types. What makes YAML dangerous or surprising is
 * refused by line: anchors and aliases (a few lines of which can mean gigabytes), tags, keys given twice, keys
 * that are no text. Pure function; any thread. */
#ifndef REALM_FORMATS_YAML_H
#define REALM_FORMATS_YAML_H

#include "formats/json.h"

#define YAML_MAX_BYTES ((size_t)1 << 20)
#define YAML_MAX_DEPTH 32

/* Unquoted true, false, null, ~, numbers and the empty text are what they look like; everything else is text
 * ("yes" and "no" too). An empty document is an empty object. *out is the caller's, to json_decref.
 *   REALM_INVALID    not YAML, or what is refused above: line and reason are in error
 *   REALM_TOO_LARGE  over YAML_MAX_BYTES or YAML_MAX_DEPTH */
realm_status yaml_parse(json_t **out, const char *text, size_t size, realm_error *error);

#endif
