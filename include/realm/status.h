/* realm/status.h: what every fallible function of Realm returns.
 *
 * A status is zero or a negative number from the one list below; the same numbers cross the
 * sandbox boundary, so a guest reads the codes that C callers read. Beside the status a caller
 * may pass a realm_error, which receives one sentence: what was wrong, where, and the limit or
 * the name in question. The list only grows; numbers are never reused. */
#ifndef REALM_STATUS_H
#define REALM_STATUS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define REALM_API
#else
#define REALM_API __attribute__((visibility("default")))
#endif

/* name, number, meaning */
#define REALM_STATUS_MAP(X)                                                                        \
    X(OK, 0, "success")                                                                            \
    X(INVALID, -1, "an argument is missing, of the wrong kind or out of its range")                \
    X(NOT_FOUND, -2, "there is nothing by that name or handle")                                    \
    X(DENIED, -3, "the tenant was not granted this capability")                                    \
    X(NO_MEMORY, -4, "the host is out of memory")                                                  \
    X(QUOTA, -5, "a limit of the tenant is reached")                                               \
    X(CORRUPT, -6, "a file or message is damaged")                                                 \
    X(UNSUPPORTED, -7, "well formed, but of a kind this build cannot serve")                       \
    X(IO, -8, "the operating system refused a file or socket operation")                           \
    X(CANCELLED, -9, "the request was cancelled")                                                  \
    X(DEADLINE, -10, "a deadline has passed")                                                      \
    X(TRAPPED, -11, "the guest trapped")                                                           \
    X(CONTEXT_FULL, -12, "the sequence has reached the model's or the session's context length")   \
    X(BUSY, -13, "the object has work in flight")                                                  \
    X(CLOSED, -14, "the object is closing or closed")                                              \
    X(TOO_LARGE, -15, "the input or output is larger than its limit")                              \
    X(INTERNAL, -16, "Realm broke one of its own invariants; please report it")

typedef enum realm_status {
#define REALM_STATUS_ENUM(name, number, meaning) REALM_##name = number,
    REALM_STATUS_MAP(REALM_STATUS_ENUM)
#undef REALM_STATUS_ENUM
} realm_status;

#define REALM_ERROR_MESSAGE_SIZE 512

/* One failure, in words. The caller owns it (usually on its stack) and may pass NULL wherever a
 * realm_error is taken. Functions write it only when they fail. */
typedef struct realm_error {
    realm_status status;
    char message[REALM_ERROR_MESSAGE_SIZE]; /* one UTF-8 sentence, no newline, always terminated */
} realm_error;

/* The status's name without its prefix ("NOT_FOUND"), or "UNKNOWN". Static storage. */
REALM_API const char *realm_status_name(realm_status status);

/* The meaning in the list above, or "unknown status". Static storage. */
REALM_API const char *realm_status_meaning(realm_status status);

#ifdef __cplusplus
}
#endif
#endif
