/* base/fail.h: how a function of Realm reports failure in one line.
 *
 *     return realm_fail(error, REALM_CORRUPT, "tensor '%s': offset %" PRIu64 " is odd", ...);
 *
 * Thread-safe; touches only *error. */
#ifndef REALM_BASE_FAIL_H
#define REALM_BASE_FAIL_H

#include <inttypes.h>
#include <stdarg.h>

#include "realm/status.h"

#if defined(__GNUC__)
#define REALM_PRINTF(format_index, first_index)                                                    \
    __attribute__((format(printf, format_index, first_index)))
#else
#define REALM_PRINTF(format_index, first_index)
#endif

/* Writes the sentence to *error unless error is NULL; invalid UTF-8 and control characters that
 * came in with a %s become '?', so that hostile names cannot disturb a terminal or a log.
 * Returns status, so that it can be returned in turn. */
realm_status realm_fail(realm_error *error, realm_status status, const char *format, ...)
    REALM_PRINTF(3, 4);

realm_status realm_fail_v(realm_error *error, realm_status status, const char *format,
                          va_list arguments) REALM_PRINTF(3, 0);

/* realm_fail(REALM_NO_MEMORY) that says what could not be had. */
realm_status realm_fail_memory(realm_error *error, size_t bytes, const char *what);

/* Puts "context: " before the sentence already in *error and returns its status. */
realm_status realm_fail_in(realm_error *error, realm_status status, const char *format, ...)
    REALM_PRINTF(3, 4);

#endif
