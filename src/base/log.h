/* base/log.h: one line a happening, to standard error, as text or as JSON.
 *
 * Lines are whole: each is one write(2), whatever the thread. Never log a key, a prompt or
 * generated text. Values pass through the same cleaning as error sentences. */
#ifndef REALM_BASE_LOG_H
#define REALM_BASE_LOG_H

#include "base/fail.h"

typedef enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR, LOG_OFF } log_level;

/* Process-wide settings, made before threads start. Default: LOG_WARN, text. */
void log_set_level(log_level level);
void log_set_json(int on);

/* "debug", "info", "warn", "error", "off"; 0 if name is none of them. */
int log_level_parse(const char *name, log_level *level);

/* room is the part that speaks ("engine", "sandbox"); request may be NULL or a request's id. */
void log_write(log_level level, const char *room, const char *request, const char *format, ...)
    REALM_PRINTF(4, 5);

/* Whose line it is; "" and NULL: none. trace is of our own making or checking, and written as it is. */
typedef struct log_subject {
    const char *request, *tenant, *trace;
} log_subject;
void log_write_for(log_level level, const char *room, const log_subject *subject,
                   const char *format, ...) REALM_PRINTF(4, 5);

#define LOG_D(room, ...) log_write(LOG_DEBUG, room, NULL, __VA_ARGS__)
#define LOG_I(room, ...) log_write(LOG_INFO, room, NULL, __VA_ARGS__)
#define LOG_W(room, ...) log_write(LOG_WARN, room, NULL, __VA_ARGS__)
#define LOG_E(room, ...) log_write(LOG_ERROR, room, NULL, __VA_ARGS__)

#endif
