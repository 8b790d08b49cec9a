/* formats/json.h: JSON as everything in Realm reads it: jansson, with limits and sentences.
 *
 * What comes in is hostile: json_parse takes a size and a depth it may not pass, refuses a key
 * given twice, and says line and column of what is wrong. The getters name the field. Building is
 * jansson's own (json_pack), printing is json_text and, for what jansson cannot say, json_print_*.
 * Pure functions; a json_t belongs to one thread at a time. */
#ifndef REALM_FORMATS_JSON_H
#define REALM_FORMATS_JSON_H

#include <jansson.h>
#include <stdio.h>

#include "base/fail.h"

/* Deep enough for any JSON schema in use, and far from the end of a thread's stack. */
#define JSON_USUAL_DEPTH 128

/* Parses one value of any kind. *out is the caller's, to json_decref. Strings may hold \u0000. A
 * parsed value takes up to about 30 times its text in memory ("[[],[],..."): choose max_bytes for
 * it.
 *   REALM_TOO_LARGE  size is over max_bytes, or lists and objects nest deeper than max_depth
 *   REALM_INVALID    it is not JSON: line, column and what was found are in error */
realm_status json_parse(json_t **out, const char *text, size_t size, size_t max_bytes,
                        unsigned max_depth, realm_error *error);

/* Fields of an object. An absent field, or null, leaves *out alone and is REALM_NOT_FOUND with a
 * sentence that it is missing; one of another kind or out of range is REALM_INVALID. Wrap a getter
 * in JSON_OPTIONAL where absence is fine:
 *     status = JSON_OPTIONAL(json_get_int(body, "max_tokens", 1, 100000, &n, error));
 * Values are borrowed from object. error may be NULL. */
realm_status json_get_text(const json_t *object, const char *key, const char **out, size_t *size,
                           realm_error *error); /* UTF-8, terminated; size may be NULL, and then a
                                                   text that holds \u0000 is REALM_INVALID */
realm_status json_get_int(const json_t *object, const char *key, int64_t min, int64_t max,
                          int64_t *out, realm_error *error); /* 3.0 is an integer too */
realm_status json_get_real(const json_t *object, const char *key, double min, double max,
                           double *out, realm_error *error);
realm_status json_get_flag(const json_t *object, const char *key, int *out, realm_error *error);
realm_status json_get_list(const json_t *object, const char *key, const json_t **out,
                           realm_error *error);
realm_status json_get_object(const json_t *object, const char *key, const json_t **out,
                             realm_error *error);

#define JSON_OPTIONAL(status) json_optional(status)
static inline realm_status json_optional(realm_status status)
{
    return status == REALM_NOT_FOUND ? REALM_OK : status;
}

/* "a string", "an object", "null": how sentences call a value. */
const char *json_kind(const json_t *value);

/* The value on one line, without blanks, terminated; the caller's to free. NULL: value is NULL, or memory is out
 * (where json_dumps of jansson 2.14 may leave out a key and go on). flags: 0, or JSON_ENSURE_ASCII. */
char *json_text(const json_t *value, size_t flags);

/* Print to a stream, for output that jansson cannot hold: bytes that may not be UTF-8 (what is not
 * becomes U+FFFD; control characters are escaped, so a terminal may be the reader), and numbers
 * exactly (the shortest decimal that reads back as the same double; NaN and the infinities, which
 * JSON lacks, as the strings "NaN", "Infinity" and "-Infinity"). */
void json_print_text(FILE *stream, const char *text, size_t size);
void json_print_real(FILE *stream, double number);

#endif
