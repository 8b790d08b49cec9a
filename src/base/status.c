/* base/status.c: names and meanings of the statuses, and the writing of error sentences.
 * No state; any thread. */
#include "realm/status.h"

#include <stdio.h>
#include <string.h>

#include "base/fail.h"
#include "base/utf8.h"

const char *realm_status_name(realm_status status)
{
    switch (status) {
#define CASE(name, number, meaning)                                                                \
    case REALM_##name: return #name;
        REALM_STATUS_MAP(CASE)
#undef CASE
    }
    return "UNKNOWN";
}

const char *realm_status_meaning(realm_status status)
{
    switch (status) {
#define CASE(name, number, meaning)                                                                \
    case REALM_##name: return meaning;
        REALM_STATUS_MAP(CASE)
#undef CASE
    }
    return "unknown status";
}

/* C0, DEL and C1 (U+0080 to U+009F, two bytes in UTF-8: some terminals obey U+009B as they obey
 * ESC [). */
static int is_control(const unsigned char *at, int length)
{
    if (length == 2)
        return at[0] == 0xC2 && at[1] < 0xA0;
    return length == 1 && (at[0] < 0x20 || at[0] == 0x7F);
}

/* Replaces in place what must not reach a terminal: control characters and broken UTF-8,
 * including a character that vsnprintf cut in half at the end of the buffer. */
static void make_printable(char *text)
{
    size_t size = strlen(text);
    for (size_t i = 0; i < size;) {
        const unsigned char *at = (const unsigned char *)text + i;
        int length = utf8_length(at, size - i);
        int replaced = length <= 0 || is_control(at, length) ? (length == 2 ? 2 : 1) : 0;
        memset(text + i, '?', (size_t)replaced);
        i += (size_t)(replaced ? replaced : length);
    }
}

realm_status realm_fail_v(realm_error *error, realm_status status, const char *format,
                          va_list arguments)
{
    if (error) {
        error->status = status;
        vsnprintf(error->message, sizeof error->message, format, arguments);
        make_printable(error->message);
    }
    return status;
}

realm_status realm_fail(realm_error *error, realm_status status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    realm_fail_v(error, status, format, arguments);
    va_end(arguments);
    return status;
}

realm_status realm_fail_memory(realm_error *error, size_t bytes, const char *what)
{
    return realm_fail(error, REALM_NO_MEMORY, "out of memory: %zu bytes for %s", bytes, what);
}

realm_status realm_fail_in(realm_error *error, realm_status status, const char *format, ...)
{
    if (!error)
        return status;
    char inner[REALM_ERROR_MESSAGE_SIZE];
    memcpy(inner, error->message, sizeof inner);
    va_list arguments;
    va_start(arguments, format);
    realm_fail_v(error, status, format, arguments);
    va_end(arguments);
    size_t used = strlen(error->message);
    snprintf(error->message + used, sizeof error->message - used, ": %s", inner);
    make_printable(error->message);
    return status;
}
